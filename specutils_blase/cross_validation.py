"""Cross-validation over held-out pixels: comparison of priors, or other settings, by pixels that no fit has seen.

Does not live here: the fit (`fitting`).
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from astropy.table import QTable
from specutils import Spectrum
from tqdm.auto import tqdm

from .fitting.observation import ObservedOrder, read_order, read_orders
from .fitting.pipeline import fit
from .physics.scatter import robust_sigma
from .spectra.quantities import is_whole

CROSS_VALIDATION_COLUMNS = {
    "name": "Name of the settings",
    "fits": "Number of fits, each without another part of the pixels",
    "converged": "How many of them converged",
    "held_out": "Number of pixels that were held out and predicted, over all fits",
    "held_out_rms": "RMS of data minus prediction over them, in units of the median flux of their order",
    "fitted_rms": "The same over the pixels that were fitted",
    "ratio": "held_out_rms / fitted_rms",
    "held_out_chi2": "Mean of (residual / uncertainty)^2 over the pixels held out; NaN where the data bring none",
    "held_out_typical": "1.4826 median |residual| over them, in units of the uncertainty or else of the median flux",
    "best": "Whether these settings predict best, by held_out_typical",
    "behind_best": "held_out_typical less that of the best, over pixels that both predict",
    "behind_best_err": "Its error, of pairs: what makes pixels hard for both alike is not in it; NaN from one block",
}
"""Name → meaning of every column of the table that `cross_validate` returns."""

BLOCK_PIXELS = 30
"""Pixels of an order that one draw of the bootstrap takes together: a wrong line is wrong in all of its pixels."""

N_BOOTSTRAP = 400
"""Draws of the bootstrap: its standard deviation is then known to 4 %."""


def cross_validate(
    data: Spectrum | Sequence[Spectrum],
    star=None,
    *,
    settings: Mapping[str, Mapping] | None = None,
    every: int = 10,
    folds: int = 3,
    progress: bool = True,
    **options,
) -> QTable:
    """Fit without a part of the pixels, predict these, and compare settings by how well that goes.

    A model that is too free fits noise, one that is held too tightly cannot fit: both predict pixels badly that they
    have not seen. Neighbouring pixels share a line spread of some pixels, so that single pixels left out test what
    lines do between the others; jitter and Huber's weights do not enter the comparison.

    All settings predict the same pixels with the same noise, so that they differ by much less than each is uncertain:
    `behind_best_err` is the standard deviation of the difference over drawings of blocks of pixels with replacement
    (bootstrap, Künsch 1989), the same for both. Within one such error of the best, settings predict alike, and the
    simplest will do. Compare settings of the same `held_out`: one that leaves out orders is judged by the others only.

    Parameters
    ----------
    data, star : as for `fit`
    settings : dict
        Name to the arguments of `fit` that are to be compared, such as
        ``{"narrow": {"star_priors": LinePriors(ln_area=0.1)}, "default": {}}``; by default one fit as `options` say.
        All but the data and `progress`, which are the same for all.
    every, folds : int
        One pixel in `every` is held out, another one in each of `folds` fits; 2 <= every, 1 <= folds <= every.
    progress : bool
        Show a progress bar.
    **options
        Arguments of `fit` that all settings have in common.

    Returns
    -------
    QTable
        One row a setting, with the columns of `cross_validation.CROSS_VALIDATION_COLUMNS`.

    Raises
    ------
    ValueError
        For numbers out of range, settings that are none, and whatever `fit` refuses.
    """
    settings = {"default": {}} if settings is None else settings
    _check_settings(settings, options, every, folds)
    orders = _read_observation(data, settings, options)
    predicted = {}
    n_fit = len(settings) * folds
    with tqdm(total=n_fit, desc="cross-validation", disable=not progress, leave=False, delay=2.0) as bar:
        for name, chosen in settings.items():
            arguments = {"star": star} | options | dict(chosen)
            predictions, converged = [], 0
            for phase in range(folds):
                prediction, success = _predicted(data, orders, arguments, every, phase)
                predictions.append(prediction)
                converged += success
                bar.update()
            predicted[name] = converged, _Prediction.joined(predictions)
    return _comparison(predicted, folds)


@dataclass(frozen=True)
class _Prediction:
    """Residuals of one fit or more, and the pixels held out of them.

    Parameters
    ----------
    fitted, held_out : ndarray, (n_fitted,), (n_held_out,)
        Data minus model over the median flux of the order.
    noise : ndarray, (n_held_out,)
        Likewise the 1-sigma noise; NaN where the order brings none.
    pixel : ndarray, (n_held_out,)
        Position among the good pixels of all orders; those of two orders share no block of `BLOCK_PIXELS`.
    """

    fitted: np.ndarray
    held_out: np.ndarray
    noise: np.ndarray
    pixel: np.ndarray

    @classmethod
    def joined(cls, parts: Sequence[_Prediction]) -> _Prediction:
        return cls(*(np.concatenate([getattr(part, item.name) for part in parts]) for item in dataclasses.fields(cls)))


def _check_settings(settings, options: Mapping, every: int, folds: int) -> None:
    """Raise ValueError for numbers out of range, and for arguments that `fit` has not or all settings share."""
    if not isinstance(settings, Mapping) or not settings or not all(isinstance(v, Mapping) for v in settings.values()):
        raise ValueError(f"settings must be a dictionary of names to arguments of fit, got {settings!r}")
    for name, number, low, high in (("every", every, 2, math.inf), ("folds", folds, 1, every)):
        if not is_whole(number) or not low <= number <= high:
            raise ValueError(f"{name} must be a whole number from {low} to {high}, got {number!r}")
    for name, chosen in settings.items():
        if shared := sorted({"data", "progress", "settings", "every", "folds"} & set(chosen)):
            raise ValueError(
                f"settings[{name!r}] has {', '.join(shared)}, which all settings share: give it to cross_validate "
                "itself"
            )
    arguments = set(inspect.signature(fit).parameters)
    for name, chosen in [*settings.items(), (None, options)]:
        if unknown := sorted(set(chosen) - arguments):
            where = "options" if name is None else f"settings[{name!r}]"
            raise ValueError(
                f"{where} must be arguments of fit, which has none called {', '.join(unknown)}; it has "
                f"{', '.join(sorted(arguments - {'data', 'progress'}))}"
            )


def _read_observation(data, settings: Mapping[str, Mapping], options: Mapping) -> list[ObservedOrder]:
    """The orders of the data as `fit` reads them.

    Only fluxes and errors are read here: the medium and resolving power of any setting will do.
    """
    reading = {
        name: arguments[name]
        for arguments in (*settings.values(), options)
        for name in ("resolving_power", "medium")
        if name in arguments
    }
    return read_orders(data, **reading)[0] if isinstance(data, (list, tuple)) else [read_order(data, **reading)]


def _predicted(
    data, orders: Sequence[ObservedOrder], arguments: Mapping, every: int, phase: int
) -> tuple[_Prediction, bool]:
    """Residuals of one fit, over the pixels that it saw and those that it did not; and whether it converged."""
    many = isinstance(data, (list, tuple))
    masks = {order.index: _held_out(order, every, phase) for order in orders}
    parts = [
        _without(spectrum, masks[index]) if index in masks else spectrum
        for index, spectrum in enumerate(data if many else [data])
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # convergence is counted, left-out orders are known
        result: Any = fit(parts if many else parts[0], **arguments, progress=False)
    indices = [int(k) for k in result.orders["index"][result.orders["fitted"]]] if many else [0]
    spectra = result.evaluate() if many else [result.evaluate()]
    by_index = {order.index: order for order in orders}
    # Pixels of an order start at a multiple of the block, so that no block spans two orders.
    sizes = [BLOCK_PIXELS * math.ceil(len(order.data) / BLOCK_PIXELS) for order in orders]
    first = dict(zip([order.index for order in orders], np.cumsum([0, *sizes]), strict=False))
    predictions = []
    for index, values in zip(indices, spectra, strict=True):
        order = by_index[index]
        good, out = order.data.good.numpy(), masks[index][order.frame.order] & order.data.good.numpy()
        residual = ((order.data.flux - values["model"]) / order.scale).numpy()
        sigma = order.data.sigma.numpy()[out] / order.scale
        noise = sigma if order.data.noise_known else np.full(int(out.sum()), np.nan)
        pixel = first[index] + np.flatnonzero(out)
        predictions.append(_Prediction(residual[good & ~out], residual[out], noise, pixel))
    return _Prediction.joined(predictions), result.success


def _comparison(predicted: Mapping[str, tuple[int, _Prediction]], folds: int) -> QTable:
    """The table of `cross_validate`, from the number of converged fits and the prediction of each setting."""
    # One unit for all settings: some may have left out the order that brings no uncertainties, others not.
    noise_known = all(np.isfinite(prediction.noise).all() for _, prediction in predicted.values())
    residuals = {
        name: (prediction.pixel, prediction.held_out / prediction.noise if noise_known else prediction.held_out)
        for name, (_, prediction) in predicted.items()
    }
    typical = {name: robust_sigma(values) for name, (_, values) in residuals.items()}
    best = min(typical, key=typical.__getitem__)
    rows = []
    for name, (converged, prediction) in predicted.items():
        rms = [float(np.sqrt(np.mean(values**2))) for values in (prediction.held_out, prediction.fitted)]
        chi2 = float(np.mean((prediction.held_out / prediction.noise) ** 2))
        behind = _behind(residuals[best], residuals[name])
        n_pixel = len(prediction.held_out)
        rows.append(
            (name, folds, converged, n_pixel, *rms, rms[0] / rms[1], chi2, typical[name], name == best, *behind)
        )
    table = QTable(rows=rows, names=list(CROSS_VALIDATION_COLUMNS))
    for name, meaning in CROSS_VALIDATION_COLUMNS.items():
        table[name].info.description = meaning
    return table


def _behind(best: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> tuple[float, float]:
    """Excess of the typical residual of one setting over that of the best, and its error.

    Parameters
    ----------
    best, other : (ndarray, ndarray)
        Positions of the pixels of a setting, of which `BLOCK_PIXELS` are drawn together, and their residuals.

    Returns
    -------
    float, float
        Both NaN without a common pixel. One block alone has no scatter: the error is then NaN, or 0 for the best.
    """
    pixel, *chosen = np.intersect1d(best[0], other[0], return_indices=True)
    if not pixel.size:
        return math.nan, math.nan
    values = np.stack([residuals[rows] for (_, residuals), rows in zip((best, other), chosen, strict=True)])
    behind = robust_sigma(values[1]) - robust_sigma(values[0])
    blocks = np.split(np.arange(pixel.size), np.flatnonzero(np.diff(pixel // BLOCK_PIXELS)) + 1)
    if len(blocks) == 1:
        return behind, 0.0 if np.array_equal(*values) else math.nan
    rng, drawn = np.random.default_rng(0), []
    for _ in range(N_BOOTSTRAP):
        sample = np.concatenate([blocks[k] for k in rng.integers(len(blocks), size=len(blocks))])
        drawn.append(robust_sigma(values[1, sample]) - robust_sigma(values[0, sample]))
    return behind, float(np.std(drawn, ddof=1))


def _held_out(order: ObservedOrder, every: int, phase: int) -> np.ndarray:
    """Which pixels of the spectrum as given are held out."""
    out = torch.zeros_like(order.data.good)
    out[order.data.good.nonzero().squeeze(1)[phase::every]] = True
    mask = np.zeros(len(order.frame.axis), dtype=bool)
    mask[order.frame.order] = out.numpy()
    return mask


def _without(spectrum: Spectrum, out: np.ndarray) -> Spectrum:
    """The spectrum, whatever its class, with more pixels masked."""
    part = copy.copy(spectrum)
    part.mask = out if spectrum.mask is None else out | np.asarray(spectrum.mask, dtype=bool)
    return part
