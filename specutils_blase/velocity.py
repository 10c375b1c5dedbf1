"""Starting radial velocity by cross-correlation.

Does not live here: the fit that refines it (`fitting`).
"""

from __future__ import annotations

import math

import torch

from .data import SpectralData
from .extrinsic import RotationalBroadening
from .grids import SPEED_OF_LIGHT, Sampling, velocity_grid
from .instrument import LineSpreadFunction
from .lines import LineEmulator

LARGEST_VELOCITY = 300.0
"""km/s; half range of the search, less where the template does not reach."""

STEP = 0.5

OPAQUE = 0.9
"""Pixels whose telluric transmission is below this do not vote."""


@torch.no_grad()
def cross_correlate(
    data: SpectralData,
    star: LineEmulator,
    telluric: LineEmulator | None = None,
    *,
    vsini: float = 0.0,
    resolving_power: float,
) -> float:
    r"""Velocity [km/s] at which the star's clone, broadened, correlates best with the data.

    The weighted, mean-subtracted correlation coefficient of data and template, whose square measures the decrease of
    χ² at free scale and offset (Zucker 2003), on a grid of 0.5 km/s, refined by a parabola.

    Parameters
    ----------
    data : SpectralData
        One order.
    star, telluric : LineEmulator
        Clones; the telluric one only says which pixels to ignore.
    vsini : float
        Rotation to broaden the template with, km/s.
    resolving_power : float
        Line spread to broaden both with.
    """
    low, high = float(data.wavelength[0]), float(data.wavelength[-1])
    first, last = star.wavelength_range
    room = min(math.log(low / first) if first < low else 0.0, math.log(last / high) if last > high else 0.0)
    reach = min(LARGEST_VELOCITY, room * SPEED_OF_LIGHT)
    n_shift = int(reach / STEP)
    if n_shift < 2:
        return 0.0
    margin = (n_shift + 40) * STEP / SPEED_OF_LIGHT
    grid = velocity_grid(low * math.exp(-margin), high * math.exp(margin), STEP)
    template = star(Sampling(grid))
    if vsini > STEP:
        template = RotationalBroadening(vsini, STEP)(template)
    spread = LineSpreadFunction(resolving_power, grid)
    template = spread(template)
    good = data.good.clone()
    if telluric is not None:
        sky = spread(telluric(Sampling(grid)))
        nearest = torch.searchsorted(grid, data.wavelength).clamp(max=grid.numel() - 1)
        clear = sky[nearest] > OPAQUE
        if int((good & clear).sum()) > 0.2 * int(good.sum()):
            good &= clear
    # Each pixel looks its own wavelength up in the shifted template, so gaps and masks need no resampling of data.
    position = (torch.log(data.wavelength / grid[0]) * (SPEED_OF_LIGHT / STEP)).round().long()[good]
    flux = data.flux[good].double()
    flux = flux / flux.median()
    weight = (data.sigma[good].double() ** -2) if data.noise_known else torch.ones_like(flux)
    x = torch.linspace(-1.0, 1.0, flux.numel(), dtype=torch.float64)
    trend = torch.stack([torch.ones_like(x), x, x**2], dim=1)
    root = weight.sqrt().unsqueeze(1)

    def flatten(values):
        return values - trend @ torch.linalg.lstsq(trend * root, values * root).solution

    observed = flatten(flux.unsqueeze(1)).squeeze(1)
    shifts = torch.arange(-n_shift, n_shift + 1)
    scores = []
    for part in shifts.split(128):
        shifted = flatten(template[(position.unsqueeze(1) - part).clamp(0, grid.numel() - 1)])
        overlap = (weight.unsqueeze(1) * shifted * observed.unsqueeze(1)).sum(0)
        scores.append(overlap / (weight.unsqueeze(1) * shifted.square()).sum(0).clamp(min=1e-30).sqrt())
    score = torch.cat(scores)
    best = int(score.argmax())
    fraction = 0.0
    if 0 < best < score.numel() - 1:
        left, middle, right = score[best - 1 : best + 2].tolist()
        bend = left - 2.0 * middle + right
        fraction = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return math.expm1((float(shifts[best]) + fraction) * STEP / SPEED_OF_LIGHT) * SPEED_OF_LIGHT
