"""Starting radial velocity by cross-correlation.

Does not live here: the fit that refines it (`fitting`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

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
    orders: Sequence[SpectralData],
    star: LineEmulator,
    telluric: LineEmulator | None = None,
    *,
    vsini: float = 0.0,
    resolving_power: Sequence[float],
) -> float:
    r"""Velocity [km/s] at which the star's clone, broadened, correlates best with the data of all orders.

    The likelihood of Zucker (2003), :math:`\ln L(v) = -\frac12 \sum_k N_k \ln(1 - C_k(v)^2)`, with C_k the weighted
    correlation coefficient of order k with the template after a parabola is taken off both; on a grid of 0.5 km/s,
    refined by a parabola. Orders with little in common with the template hardly vote.

    Parameters
    ----------
    orders : sequence of SpectralData
    star, telluric : LineEmulator
        Clones; the telluric one only says which pixels to ignore.
    vsini : float
        Rotation to broaden the template with, km/s.
    resolving_power : sequence of float
        Line spread of each order to broaden both with.
    """
    first, last = star.wavelength_range
    reach = LARGEST_VELOCITY
    for data in orders:
        low, high = float(data.wavelength[0]), float(data.wavelength[-1])
        room = min(math.log(low / first) if first < low else 0.0, math.log(last / high) if last > high else 0.0)
        reach = min(reach, room * SPEED_OF_LIGHT)
    n_shift = int(reach / STEP)
    if n_shift < 2:
        return 0.0
    shifts = torch.arange(-n_shift, n_shift + 1)
    score = torch.zeros(shifts.numel(), dtype=torch.float64)
    for data, power in zip(orders, resolving_power, strict=True):
        score += _log_likelihood(data, star, telluric, shifts, vsini, power)
    best = int(score.argmax())
    fraction = 0.0
    if 0 < best < score.numel() - 1:
        left, middle, right = score[best - 1 : best + 2].tolist()
        bend = left - 2.0 * middle + right
        fraction = 0.5 * (left - right) / bend if bend < 0 else 0.0
    return math.expm1((float(shifts[best]) + fraction) * STEP / SPEED_OF_LIGHT) * SPEED_OF_LIGHT


def _log_likelihood(data, star, telluric, shifts, vsini: float, resolving_power: float) -> Tensor:
    """Zucker's ln L of one order on a grid of shifts by `STEP`."""
    low, high = float(data.wavelength[0]), float(data.wavelength[-1])
    margin = (int(shifts[-1]) + 40) * STEP / SPEED_OF_LIGHT
    grid = velocity_grid(low * math.exp(-margin), high * math.exp(margin), STEP)
    template = _near(star, grid)(Sampling(grid))
    if vsini > STEP:
        template = RotationalBroadening(vsini, STEP)(template)
    spread = LineSpreadFunction(resolving_power, grid)
    template = spread(template)
    good = data.good.clone()
    if telluric is not None:
        sky = spread(_near(telluric, grid)(Sampling(grid)))
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
    inverse = torch.linalg.pinv(trend * root)

    def flatten(values):
        return values - trend @ (inverse @ (values * root))

    observed = flatten(flux.unsqueeze(1)).squeeze(1)
    power = (weight * observed.square()).sum()
    scores = []
    for part in shifts.split(128):
        shifted = flatten(template[(position.unsqueeze(1) - part).clamp(0, grid.numel() - 1)])
        overlap = ((weight * observed) @ shifted).clamp(min=0.0)  # an emission spectrum is no match
        scores.append(overlap.square() / ((weight @ shifted.square()) * power).clamp(min=1e-30))
    return -0.5 * flux.numel() * torch.log1p(-torch.cat(scores).clamp(max=1.0 - 1e-12))


def _near(emulator: LineEmulator, grid: Tensor) -> LineEmulator:
    """The lines that can be seen on a grid."""
    reach = emulator.reach()
    near = (emulator.shifted_center + reach > grid[0]) & (emulator.shifted_center - reach < grid[-1])
    return emulator.subset(near.nonzero().squeeze(-1))
