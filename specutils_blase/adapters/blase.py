"""States that blasé saved (`.pt` files of PyTorch state dicts), read as line emulators.

A state does not record its class of model, so that the caller names it. Nothing in a file is run as code.

Does not live here: the profile of most of blasé's states (`mixed_profile`).

Gully-Santiago & Morley (2022), ApJ 941, 200; the classes meant are those of blasé 0.3, commit 6f6817b.
"""

from __future__ import annotations

import logging
import pickle
import warnings
from pathlib import Path

import astropy.units as u
import numpy as np
import torch
from torch import Tensor

from ..model.emulator import LineEmulator
from ..physics.saturation import saturation_law
from .mixed_profile import exact_voigts

logger = logging.getLogger(__name__)

LINE_KEYS = ("lam_centers", "amplitudes", "sigma_widths", "gamma_widths")
"""Keys that a state of lines must have: centres [Å], and natural logarithms of Å, one value a line."""

SCALARS = {"a_coeff": 1.0, "b_coeff": 0.0, "c_coeff": 0.0, "radial_velocity": 0.0}
"""Keys that it may have besides, with the values at which they have no effect."""

PARAMETER_KEYS = ("ln_vsini", "ln_sigma_angs", "linear_model.weight", "linear_model.bias")
"""Keys of a state of blasé's ExtrinsicModel or InstrumentalModel."""

PROFILES = {"linear": ("mixed",), "log": ("exact", "mixed")}
"""Flux scale → profiles that blasé has for it, the usual one first."""

MOST_LINES = 10_000_000
"""Values that a tensor of a state may claim."""


def read_blase_state(
    path, *, flux_scale: str, profile: str | None = None, at_rest: bool = False, tolerance: float = 1e-3
) -> LineEmulator:
    """Line emulator from the state dict of one of blasé's emulators.

    Parameters
    ----------
    path : path-like
        File written by ``torch.save(emulator.state_dict(), path)``.
    flux_scale : "linear" or "log"
        "linear" for LinearEmulator and SparseLinearEmulator, "log" for SparseLogEmulator. The file does not tell.
    profile : "exact" or "mixed", optional
        "exact": the exact Voigt of SparseLogEmulator, which takes its σ for its γ and the other way round: undone here,
        so that `sigma` of the result is Gaussian. "mixed": the "pseudo-Voigt" of the linear emulators (and of
        ``sparse_opacity_model``), which is none; it is replaced by one to three exact Voigts a line with the same flux,
        up to eight where blasé cuts a line off at zero flux (`mixed_profile`). By default what blasé uses: "mixed" in
        linear, "exact" in log scale.
    at_rest : bool
        Leave out the state's radial velocity. By default it becomes the `rv_offset` of every line, which gives blasé's
        spectrum: like there, widths do not scale with it.
    tolerance : float
        Of the flux, for "mixed".

    Returns
    -------
    LineEmulator
        On the CPU, float64.

    Raises
    ------
    ValueError
        If the file is no state of lines, is damaged, or holds code; the message names the file and the reason.
    OSError
        If there is no such file, or it may not be read.
    """
    if flux_scale not in PROFILES:
        raise ValueError(f'flux_scale must be "linear" or "log", got {flux_scale!r}')
    profile = PROFILES[flux_scale][0] if profile is None else profile
    if profile not in PROFILES[flux_scale]:
        raise ValueError(
            f"blasé has the profiles {', '.join(PROFILES[flux_scale])} in {flux_scale} scale, got {profile!r}"
        )
    state = _load(path)
    if any(key in PARAMETER_KEYS for key in state) and not any(key in LINE_KEYS for key in state):
        raise ValueError(
            f"cannot read {path}: it holds {', '.join(state)} and no lines; read_blase_parameters reads it"
        )
    missing = [key for key in LINE_KEYS if key not in state]
    unknown = [key for key in state if key not in LINE_KEYS and key not in SCALARS]
    if missing or unknown:
        difference = f"lacks {', '.join(missing)}" if missing else f"has {', '.join(map(str, unknown[:8]))} as well"
        raise ValueError(
            f"cannot read {path}: expected the keys {', '.join(LINE_KEYS)} of a blasé emulator, it {difference}"
        )
    lines = {key: _values(path, state, key, 1) for key in LINE_KEYS}
    sizes = {values.numel() for values in lines.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise ValueError(
            f"cannot read {path}: expected one value a line, got {', '.join(map(str, sorted(sizes)))} values"
        )
    scalars = {key: float(_values(path, state, key, 0)) if key in state else usual for key, usual in SCALARS.items()}
    if any(scalars[key] != SCALARS[key] for key in ("a_coeff", "b_coeff", "c_coeff")):
        logger.warning("%s: its continuum %s is left out: an emulator has lines only", path, scalars)
    center = lines["lam_centers"]
    logs = torch.stack([lines[key] for key in LINE_KEYS[1:]])
    if not bool((center > 0).all()) or float(logs.max()) > 20.0 or float(logs.min()) < -60.0:
        raise ValueError(f"cannot read {path}: expected centres in Å and natural logarithms of Å, got other numbers")
    area, sigma, gamma = logs.exp()
    law = saturation_law(flux_scale, (float(center.min()), float(center.max())))
    velocity = 0.0 if at_rest else scalars["radial_velocity"]
    parts: tuple[torch.Tensor, ...]
    if profile == "exact":
        parts = (center, area, gamma, sigma)  # the names are wrong in blasé's exact profile
    else:
        # Errors of neighbours add up where they overlap: a few lines of depth at a time.
        parameters, count, error = exact_voigts(area, sigma, gamma, law, 0.2 * tolerance)
        _report(path, count, error, tolerance)
        used = torch.arange(parameters.shape[1]) < count.unsqueeze(1)
        parts = (center.unsqueeze(1).expand_as(used)[used], *(parameters[..., k][used].exp() for k in range(3)))
    return LineEmulator(*parts, rv_offset=torch.full_like(parts[0], velocity), law=law)


def read_blase_parameters(path) -> dict[str, u.Quantity | np.ndarray]:
    """Physical values of a state of blasé's ExtrinsicModel or InstrumentalModel.

    Parameters
    ----------
    path : path-like
        File written by ``torch.save(model.state_dict(), path)``.

    Returns
    -------
    dict
        Those present of vsini [km/s] (0.9 + exp ln_vsini), lsf_sigma [Å] (0.01 + exp ln_sigma_angs; blasé assumes
        grids with steps of 0.01 Å), continuum_weight and continuum_bias.

    Raises
    ------
    ValueError, OSError
        As `read_blase_state`.
    """
    state = _load(path)
    wrong = [str(key) for key in state if key not in PARAMETER_KEYS]
    if wrong or not state:
        raise ValueError(
            f"cannot read {path}: expected keys among {', '.join(PARAMETER_KEYS)}, got {', '.join(wrong[:8]) or 'none'}"
        )
    values = {}
    if "ln_vsini" in state:
        values["vsini"] = (0.9 + float(_values(path, state, "ln_vsini", 0).exp())) * u.km / u.s
    if "ln_sigma_angs" in state:
        values["lsf_sigma"] = (0.01 + float(_values(path, state, "ln_sigma_angs", 0).exp())) * u.AA
    for key, name in (("linear_model.weight", "continuum_weight"), ("linear_model.bias", "continuum_bias")):
        if key in state:
            values[name] = _values(path, state, key, None).reshape(-1).numpy()
    return values


def _load(path) -> dict:
    """The state dict of a file, on the CPU; `weights_only`: tensors and containers, no code."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's advice on pickles that it then refuses
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except pickle.UnpicklingError as error:
        # torch names the class or function that it refuses; anything else is no pickle of its own.
        code = "it holds something other than tensors, which could run code"
        reason = code if "GLOBAL" in str(error) else "of another kind, or damaged"
        raise ValueError(f"cannot read {path}: no state dict of PyTorch ({reason})") from error
    except Exception as error:  # a damaged archive can fail anywhere in torch's reader
        said = str(error).strip().splitlines()
        raise ValueError(
            f"cannot read {path}: no file of PyTorch, or damaged ({said[0] if said else error!r})"
        ) from error
    if not isinstance(state, dict):
        raise ValueError(f"cannot read {path}: expected a state dict, got {type(state).__name__}")
    return state


def _values(path, state: dict, key: str, n_dim: int | None) -> Tensor:
    """A tensor of a state as finite float64 numbers, of its own."""
    values = state[key]
    if not isinstance(values, Tensor) or values.is_sparse or values.is_quantized or not values.dtype.is_floating_point:
        kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"cannot read {path}: expected {key} as a tensor of real numbers, got {kind}")
    # A tensor in a file may claim a size that its bytes do not have, with strides of zero.
    if (n_dim is not None and values.ndim != n_dim) or values.numel() > MOST_LINES:
        expected = "any shape" if n_dim is None else f"{n_dim} dimension(s)"
        raise ValueError(f"cannot read {path}: expected {key} with {expected}, got shape {tuple(values.shape)}")
    values = values.detach().to(torch.float64).clone(memory_format=torch.contiguous_format)
    if not bool(torch.isfinite(values).all()):
        raise ValueError(f"cannot read {path}: {key} holds NaN or infinite numbers")
    return values


def _report(path, count: Tensor, error: Tensor, tolerance: float) -> None:
    parts = ", ".join(f"{int((count == k).sum())} as {k}" for k in count.unique().tolist())
    logger.info("%s: mixed profiles of lines made into exact Voigts: %s", path, parts)
    worse = int((error > tolerance).sum())
    if worse:
        logger.warning("%s: %d lines are off by more than %g, at most %.2g", path, worse, tolerance, float(error.max()))
