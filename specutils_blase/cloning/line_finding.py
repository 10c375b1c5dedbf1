"""Lines in a spectrum or in a residual, and first guesses of their widths and strengths.

Does not live here: their optimisation (`refinement`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.signal import find_peaks, peak_widths

from ..physics.parabola import vertex_offset
from ..physics.saturation import SaturationLaw
from ..physics.voigt import voigt

PEAK_OF_EQUAL_WIDTHS = 0.2087
"""σ V(0) of a Voigt profile with σ = γ, whose full width at half maximum is 3.6 σ."""

FULL_DEPTH = 0.97
"""Depth above which the width of a dip in exp(-τ) is that of the line's wings, and τ is unknown in its pixels."""


def find_lines(wavelength, flux, prominence: float, *, resolving_power: float | None = None) -> dict[str, np.ndarray]:
    """Absorption lines by prominence, with first widths.

    Parameters
    ----------
    wavelength, flux : ndarray, (n,)
        Vacuum Å and normalised flux; NaN marks pixels without information.
    prominence : float
        Smallest prominence, in units of the continuum.
    resolving_power : float, optional
        Resolution of the template; its width is taken off in quadrature.

    Returns
    -------
    dict
        center, sigma, gamma [Å], depth, fwhm of the dip [Å], full (False: see `own_widths`): one value a line, in order
        of wavelength.
    """
    finite = np.isfinite(flux)
    depth = 1.0 - np.interp(wavelength, wavelength[finite], flux[finite])
    peaks, properties = find_peaks(depth, prominence=prominence)
    peaks, keep = peaks[finite[peaks]], finite[peaks]
    prominences = tuple(properties[name][keep] for name in ("prominences", "left_bases", "right_bases"))
    _, _, left, right = peak_widths(depth, peaks, rel_height=0.5, prominence_data=prominences)
    pixel = np.arange(wavelength.size)
    fwhm = np.interp(right, pixel, wavelength) - np.interp(left, pixel, wavelength)
    fwhm = np.maximum(fwhm, np.gradient(wavelength)[peaks])
    # The vertex is a sixth of a pixel off at worst, the highest sample half a pixel.
    peak = depth[peaks]
    offset = vertex_offset(depth[peaks - 1], peak, depth[np.minimum(peaks + 1, depth.size - 1)])
    center = np.interp(peaks + offset, pixel, wavelength)
    if resolving_power is not None:
        spread = center / resolving_power
        fwhm = np.sqrt(np.maximum(fwhm**2 - spread**2, (0.35 * spread) ** 2))
    full = np.zeros(center.size, dtype=bool)
    return {"center": center, "sigma": fwhm / 3.6, "gamma": fwhm / 3.6, "depth": peak, "fwhm": fwhm, "full": full}


def own_widths(lines: dict[str, np.ndarray], law: SaturationLaw) -> dict[str, np.ndarray]:
    r"""Intrinsic widths of saturated lines, whose dips in exp(-τ) are much wider than the lines.

    Such lines get the median width of the others. Their areas then follow from the width w of their dips,
    :math:`aγ/π(w/2)^2 = \ln 2`. With the widths of the dips instead, the clone of a saturated water band starts at an
    RMS of 37 % and ends at 2.7 %; with these it starts at 10 % and ends at 1.0 %.
    """
    full = lines["depth"] > FULL_DEPTH
    if law.name != "log" or not full.any() or full.all():
        return lines
    usual = float(np.median(lines["sigma"][~full]))
    narrow = np.where(full, np.minimum(lines["sigma"], usual), lines["sigma"])
    return lines | {"sigma": narrow, "gamma": narrow.copy(), "full": full & (lines["sigma"] > usual)}


def share_out_areas(wavelength, flux, lines, sign, law: SaturationLaw, n_iteration: int = 60) -> np.ndarray:
    """Areas at fixed centres and widths: τ is linear in them, so blends are shared out by non-negative least squares.

    Multiplicative updates (Lee & Seung 2001) on the opacity observed: always positive, only sparse sums. Lines of a
    template at finite resolution are shared out with their intrinsic widths, which is good enough for a first guess.
    Where no light is left, only the wings count.
    """
    counted = np.isfinite(flux)
    depth = 1.0 - np.where(counted, flux, 1.0)
    tau = law.line_depth(torch.as_tensor(depth).clamp(min=0.0), torch.as_tensor(wavelength))
    full = lines["full"]
    if full.any():
        counted = counted & (depth < FULL_DEPTH)
    center, width = lines["center"], lines["sigma"]
    area = width * np.abs(lines["depth"]) / PEAK_OF_EQUAL_WIDTHS
    area = np.where(full, math.pi * math.log(2.0) * (0.5 * lines["fwhm"]) ** 2 / width, area)
    absorbing = sign > 0
    reach = np.where(full, np.maximum(25.0 * width, 2.0 * lines["fwhm"]), 25.0 * width)
    low, high = np.searchsorted(wavelength, center - reach), np.searchsorted(wavelength, center + reach)
    high = np.minimum(high, low + 20_000)
    count = np.where(absorbing, high - low, 0)
    line = np.repeat(np.arange(center.size), count)
    node = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    of_line, of_node = torch.as_tensor(line), torch.as_tensor(node)
    x = torch.as_tensor(wavelength)[of_node] - torch.as_tensor(center)[of_line]
    profile = voigt(x, torch.as_tensor(width)[of_line], torch.as_tensor(width)[of_line])
    spacing = torch.as_tensor(np.gradient(wavelength) * counted)[of_node]
    target = torch.zeros(center.size, dtype=torch.float64).index_add(0, of_line, profile * spacing * tau[of_node])
    area = torch.as_tensor(area)
    for _ in range(n_iteration):
        model = torch.zeros(wavelength.size, dtype=torch.float64).index_add(0, of_node, profile * area[of_line])
        overlap = torch.zeros_like(target).index_add(0, of_line, profile * spacing * model[of_node])
        area = area * torch.where(overlap > 0, target / overlap, torch.ones_like(area)).clamp(0.1, 10.0)
    # The sum above is of opacities; an area is one of depths, alike at the peak.
    height = PEAK_OF_EQUAL_WIDTHS / torch.as_tensor(width)
    area = law.depth_of(area * height) / height
    smallest = 1e-4 * torch.as_tensor(width)
    return torch.maximum(area, smallest).detach().numpy()
