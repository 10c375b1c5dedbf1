"""Pixels that no spectrum behind this line spread can show: negative flux, gaps, spikes, features sharper than a line.

Does not live here: weights of what is merely unlikely (`noise`), masks that the data bring (`spectrum`).
"""

from __future__ import annotations

import math

import astropy.units as u
import numpy as np
import torch
from astropy.table import QTable
from scipy.ndimage import median_filter, percentile_filter
from torch import Tensor

REASONS = ("", "negative", "spike", "sharp", "zeros")
"""What the codes 1 to 4 of a rejected pixel mean; 0 is a pixel that stays."""

NEGATIVE, SPIKE, SHARP, ZEROS = 1, 2, 3, 4

FEWEST_ZEROS = 5
"""Exact zeros in a row that are a gap of the data: noise leaves none at the bottom of a black line."""

LEAST_DEVIATION = 6.0
"""Standard deviations from which on a pixel can be rejected. One pixel in 5e8 is as far off by noise alone."""

LEAST_EXCESS = 0.02
"""Least rejected excess or deficit, in units of the continuum: errors of flat field and sky are as large."""

ENVELOPE_PIXELS, ENVELOPE_PERCENT = 101, 90.0
"""Window and percentile of the flux that stand for the local continuum before a model exists."""

LEAST_RATIO = 1.4
"""Flux over that envelope from which on a pixel is a spike before a model exists.

In the forest of an M dwarf the true continuum rises above the 90th percentile by 20 to 30 %, never by 40 %.
"""

SURROUNDINGS, TYPICAL = 101, 5.0
"""Window [pixels] of the typical absolute residual, and the multiple of it from which on a pixel stands out."""

SHARPNESS = 0.5
"""Part of the flux that a feature at the line spread's width puts into the next pixel, below which it is no line."""

ALONE = 0.5
"""Part of a sharp feature that the residuals three pixels around it must stay below: a misplaced line leaves more."""

MOST_REJECTED = 0.02
"""Largest part of an order that is rejected beside a model: beyond it, the model is wrong, not the data."""


def impossible(flux: Tensor, sigma: Tensor, good: Tensor, *, emission: bool = False) -> Tensor:
    """Pixels that no absorption spectrum explains, before any model exists.

    Parameters
    ----------
    flux, sigma : Tensor, (n,)
        Flux in units of its median, and its 1-sigma noise.
    good : Tensor, (n,)
        Boolean: the pixels that count.
    emission : bool
        Whether the model has emission lines, which no spike can be told from here.

    Returns
    -------
    Tensor, (n,) int8
        Index into `REASONS`.
    """
    codes = torch.zeros(flux.shape, dtype=torch.int8, device=flux.device)
    if not bool(good.any()):
        return codes
    least = torch.clamp(LEAST_DEVIATION * sigma, min=LEAST_EXCESS)
    codes[good & (flux < -least)] = NEGATIVE
    zero = np.pad((good & (flux == 0.0)).cpu().numpy().astype(np.int8), 1)
    first, after = (np.diff(zero) == 1).nonzero()[0], (np.diff(zero) == -1).nonzero()[0]
    for low, high in zip(first.tolist(), after.tolist(), strict=True):
        if high - low >= FEWEST_ZEROS:
            codes[low:high] = ZEROS
    if not emission:
        pixels, counts = np.arange(flux.numel()), good.cpu().numpy()
        values = np.interp(pixels, pixels[counts], flux.detach().cpu().double().numpy()[counts])
        envelope = torch.as_tensor(percentile_filter(values, ENVELOPE_PERCENT, ENVELOPE_PIXELS, mode="mirror"))
        envelope = envelope.to(flux).clamp(min=0.0)
        spike = good & (flux > LEAST_RATIO * envelope + torch.maximum(least, 0.1 * envelope.median()))
        codes[spike] = SPIKE
    return codes


def unlike_lines(
    flux: Tensor, model: Tensor, continuum: Tensor, sigma: Tensor, good: Tensor, *, element: float, emission: bool
) -> Tensor:
    r"""Pixels that stand out of a model by what no line behind the line spread could change.

    A spike is flux above the continuum. A sharp feature is a residual whose neighbours have less than `SHARPNESS` ×
    :math:`\exp(-4 \ln 2 / p^2)` of it, p being the resolution element in pixels; a real line has at least twice that.
    Both must stand out of the noise and of the residuals around them: where the template is wrong, many residuals are
    large, and few of them are pixels gone wrong.

    Parameters
    ----------
    flux, model, continuum, sigma : Tensor, (n,)
        Data, model, its continuum, and the standard deviation that is believed, jitter included.
    good : Tensor, (n,)
        Boolean: the pixels that count.
    element : float
        Full width at half maximum of the line spread, in pixels.
    emission : bool
        Whether the model has emission lines.

    Returns
    -------
    Tensor, (n,) int8
        Index into `REASONS`; nothing where more than `MOST_REJECTED` of the order would go.
    """
    residual = torch.where(good, flux - model, 0.0)
    size = residual.abs()
    typical = torch.as_tensor(median_filter(size.cpu().numpy(), SURROUNDINGS, mode="mirror")).to(size)
    level = torch.maximum(LEAST_DEVIATION * sigma, torch.maximum(TYPICAL * 1.4826 * typical, LEAST_EXCESS * continuum))
    padded = torch.nn.functional.pad(size, (3, 3))
    shifted = {k: padded[3 + k : padded.numel() - 3 + k] for k in (-3, -2, -1, 1, 2, 3)}
    beside = torch.maximum(shifted[-1], shifted[1])
    nearby = torch.stack(list(shifted.values())).amax(0)
    counted = torch.nn.functional.pad(good, (1, 1))
    known = counted[:-2] & counted[2:]
    sharpest = SHARPNESS * math.exp(-4.0 * math.log(2.0) / element**2)
    codes = torch.zeros(flux.shape, dtype=torch.int8, device=flux.device)
    codes[good & known & (size > level) & (beside < sharpest * size) & (nearby < ALONE * size)] = SHARP
    if not emission:
        codes[good & (flux - continuum > level) & (residual > level)] = SPIKE
    return codes if int((codes > 0).sum()) <= max(MOST_REJECTED * int(good.sum()), 1.0) else torch.zeros_like(codes)


COLUMNS = {
    "order": (None, "Name of the order, as in FitResult.orders"),
    "index": (None, "Position of the pixel in its order, in order of wavelength"),
    "wavelength": (u.AA, "Vacuum wavelength"),
    "reason": (None, "negative flux; zeros, several in a row; spike above the continuum; sharp, narrower than a line"),
    "deviation": (None, "Data minus model in standard deviations of the noise"),
}
"""Name → unit and meaning of every column of `FitResult.rejected`."""


def rejected_table(
    names: list[str], wavelengths: list[Tensor], codes: list[Tensor], deviations: list[Tensor]
) -> QTable:
    """One row a pixel that a fit has left out, order by order.

    Parameters
    ----------
    names : list of str
        Of the orders.
    wavelengths, codes, deviations : list of Tensor, (n,)
        Vacuum Å, indices into `REASONS`, and data minus model over the noise, of each order.
    """
    rows = {name: [] for name in COLUMNS}
    for name, wavelength, code, deviation in zip(names, wavelengths, codes, deviations, strict=True):
        index = (code > 0).nonzero().squeeze(1)
        values = [name] * len(index), index, wavelength[index], [REASONS[k] for k in code[index]], deviation[index]
        for key, own in zip(COLUMNS, values, strict=True):
            rows[key] += own if isinstance(own, list) else own.tolist()
    table, kinds = QTable(), {"order": "U16", "index": int, "reason": "U8"}
    for key, (unit, meaning) in COLUMNS.items():
        values = np.array(rows[key], dtype=kinds.get(key, float))
        table[key] = values if unit is None else values * unit
        table[key].info.description = meaning
    return table
