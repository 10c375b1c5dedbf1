"""Starting radial velocity and rotation by cross-correlation: several solutions, the likeliest first.

Does not live here: the correlation of one order (`correlation`), the fits that choose among the solutions and refine
them (`hypotheses`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.echelle import EchelleModel
from ...model.emulator import LineEmulator
from ...physics.grids import SPEED_OF_LIGHT
from ...physics.parallel import each
from ...spectra.data import SpectralData
from .order_correlation import STEP, OrderCorrelation, coverage
from .star import STRENGTH_PRIOR
from .tellurics import scaled_transmissions

FASTEST = 1000.0
"""km/s; half range of the search, less where the template does not reach. No star of the Galaxy is faster."""

STRIDE = 2
"""Steps between the shifts that are searched."""

ROTATIONS = (2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 80.0, 120.0, 160.0, 200.0, 240.0, 300.0, 360.0)
"""Projected rotation velocities [km/s] that are tried where none is given."""

DECISIVE, NEARLY = 10.0, 0.9
"""Gain of ln L for which a faster rotation is taken, and the part of the slower one's that it must correlate with."""

MAXIMA, WORTH = 5, 0.1
"""Highest maxima of each correlation that are compared, and the part of the highest ln L that they must reach."""

SOLUTIONS, SAME = 5, 0.5
"""Distinct solutions that are kept, and the part of their rotation within which two maxima are the same one."""

COVERED = 0.8
"""Part of all pixels that the template must reach at a shift for it to be searched."""

AROUND = torch.arange(-12, 13, 2)
"""Steps about a maximum, among which the velocity is where most pixels agree."""


@dataclass(frozen=True)
class StartingPoint:
    """A starting point of a fit.

    Parameters
    ----------
    rv, vsini : float
        km/s.
    strength : float
        Factor on the depth of the star's lines.
    gain : float
        ln L, under Student's t and with the prior of the strength, less that of data without star.
    """

    rv: float
    vsini: float
    strength: float
    gain: float


@dataclass(frozen=True)
class VelocitySearch:
    """Outcome of `cross_correlate`.

    Parameters
    ----------
    solutions : tuple of StartingPoint
        Distinct ones, the likeliest first; at least one.
    low, high : float
        Velocities [km/s] between which was searched; equal where the velocity was given.
    at_edge : bool
        The likeliest stands at an end of what was searched: the star may be faster.
    skies : tuple of Tensor or None
        Transmission on the pixels of each order, with the amounts of these data as if there were no star.
    """

    solutions: tuple[StartingPoint, ...]
    low: float
    high: float
    at_edge: bool
    skies: tuple[Tensor | None, ...]

    @classmethod
    def given(cls, rv: float, vsini: float, n_order: int) -> VelocitySearch:
        """What needs no search."""
        return cls((StartingPoint(rv, vsini, 1.0, 0.0),), rv, rv, False, (None,) * n_order)

    @property
    def rv(self) -> float:
        """Of the likeliest solution, km/s."""
        return self.solutions[0].rv

    @property
    def vsini(self) -> float:
        """Of the likeliest solution, km/s."""
        return self.solutions[0].vsini


@torch.no_grad()
def cross_correlate(
    orders: Sequence[SpectralData],
    star: LineEmulator,
    telluric: LineEmulator | None = None,
    *,
    rv: float | None = None,
    vsini: float | None = None,
    resolving_power: Sequence[float],
    continuum: int = 2,
) -> VelocitySearch:
    r"""Radial velocities and v sin i at which the star's clone correlates best with the data of all orders.

    The likelihood of Zucker (2003), :math:`\ln L(v) = -\frac12 \sum_k N_k \ln(1 - C_k(v)^2)`, with C_k the weighted
    correlation coefficient of order k with the template. The continuum of the fit, times the sky, is projected out of
    both; the sky is the telluric clone with its amounts fitted to these data, and pixels within its lines weigh less.
    Orders with little in common with the template hardly vote, and pixels that the template does not reach not at all.

    A deep line that neither clone has correlates with any deep line of the template. The same correlation is therefore
    asked of the data with all that is deep cut off as well. The highest maxima of both, at every rotation, are compared
    by how many pixels agree: by what the residuals, of unknown size, gain under Student's t, which a deep line left
    over costs little. Maxima well within each other's width are one solution. Its rotation is the slowest that is not
    beaten: a faster one has to be better by `DECISIVE`, and to correlate nearly as well, for a template so broad that
    hardly a line is left in it agrees with anything that bends.

    Parameters
    ----------
    orders : sequence of SpectralData
    star, telluric : LineEmulator
        Clones.
    rv, vsini : float, optional
        Held where given, km/s.
    resolving_power : sequence of float
        Line spread of each order to broaden the clones with.
    continuum : int
        Degree of each order's continuum.

    Returns
    -------
    VelocitySearch

    References
    ----------
    Zucker (2003), MNRAS 342, 1291.
    """
    if rv is None:
        low, high = searched(orders, star)
    else:
        low = high = _steps(rv) * STEP
    skies = observed_skies(orders, telluric, resolving_power, continuum)
    work = zip(orders, resolving_power, skies, strict=True)
    seen = each(lambda item: OrderCorrelation.of(item[0], item[1], star, item[2], continuum, (low, high)), work)
    shifts = torch.arange(round(low / STEP), round(high / STEP) + 1, STRIDE)
    resolution = SPEED_OF_LIGHT / max(resolving_power)
    found = [
        trial for rotation in (ROTATIONS if vsini is None else (vsini,)) for trial in _trials(seen, rotation, shifts)
    ]
    solutions = [_refined(seen, trial, rv, shifts) for trial in _distinct(found, resolution)[:SOLUTIONS]]
    solutions.sort(key=lambda solution: -solution.gain)
    ends = _velocity(int(shifts[0])), _velocity(int(shifts[-1]))
    reach = STRIDE * STEP * 1.5
    at_edge = rv is None and not ends[0] + reach < solutions[0].rv < ends[1] - reach
    return VelocitySearch(tuple(solutions), *(ends if rv is None else (rv, rv)), at_edge, tuple(skies))


def searched(orders: Sequence[SpectralData], star: LineEmulator) -> tuple[float, float]:
    """Shifts [km/s, of ln λ] between which the template reaches `COVERED` of the pixels, at most `FASTEST`."""
    first, last = coverage(star)
    shifts = torch.arange(-FASTEST, FASTEST + STRIDE * STEP, STRIDE * STEP, dtype=torch.float64)
    total, reached = 0, torch.zeros_like(shifts)
    for data in orders:
        counting = data.wavelength[data.good]
        ends = (torch.tensor([[first], [last]]) * torch.exp(shifts / SPEED_OF_LIGHT)).double()
        start, stop = torch.searchsorted(counting, ends[0]), torch.searchsorted(counting, ends[1], right=True)
        reached += (stop - start).clamp(min=0)
        total += counting.numel()
    enough = shifts[reached >= COVERED * total]
    return (float(enough[0]), float(enough[-1])) if enough.numel() else (0.0, 0.0)


def observed_skies(
    orders: Sequence[SpectralData], telluric: LineEmulator | None, resolving_power: Sequence[float], continuum: int
) -> list[Tensor | None]:
    """Transmission on the pixels of each order with the amounts of these data, as if there were no star.

    Pixels that the sky cannot explain, such as the star's lines, weigh little.
    """
    if telluric is None or not len(telluric):
        return [None] * len(orders)
    lines = []
    for data in orders:
        low, high = (float(data.wavelength[end]) for end in (0, -1))
        center, reach = telluric.shifted_center, telluric.reach()
        lines.append(((center + reach > low) & (center - reach < high)).nonzero().squeeze(-1))
    union = torch.unique(torch.cat(lines))
    if not union.numel():
        return [None] * len(orders)
    model = EchelleModel.for_orders(
        [data.wavelength for data in orders],
        [data.edges for data in orders],
        telluric=telluric.settled().subset(union),
        lines=[{"telluric": torch.searchsorted(union, seen)} for seen in lines],
        resolving_power=list(resolving_power),
        continuum_degree=continuum,
    )
    fluxes, weights = [], []
    for data in orders:
        scale = data.flux[data.good].double().median()
        flux = data.flux.double() / scale
        sigma = data.sigma.double() / scale if data.noise_known else torch.full_like(flux, 0.01)
        fluxes.append(flux)
        weights.append(torch.where(data.good, sigma**-2, 0.0))
    return scaled_transmissions(model, fluxes, weights)


@dataclass(frozen=True)
class _Trial:
    """One maximum of the correlation at one rotation; `cut` is what it gains of data with deep features cut off."""

    shift: int
    vsini: float
    strength: float
    gain: float
    cut: float


def _trials(seen: list[OrderCorrelation], vsini: float, shifts: Tensor) -> list[_Trial]:
    """The highest maxima at a rotation, with what each gains under Student's t."""
    depths = [order.depth(vsini) for order in seen]
    work = list(zip(seen, depths, strict=True))
    scores = torch.stack(each(lambda item: item[0].log_likelihoods(item[1], shifts), work)).sum(0)
    places = torch.cat([_maxima(score) for score in scores]).unique()
    gains, strengths = _agreement(work, shifts[places])
    values = zip(shifts[places].tolist(), strengths.tolist(), gains.tolist(), scores[1, places].tolist(), strict=True)
    return [_Trial(shift, vsini, strength, gain, cut) for shift, strength, gain, cut in values]


def _agreement(work: list[tuple[OrderCorrelation, Tensor]], shifts: Tensor) -> tuple[Tensor, Tensor]:
    """Gain of all orders by the star at each shift, with the prior of its strength, and that strength."""
    told = each(lambda item: torch.stack(item[0].robust(item[1], shifts)), work)
    gain, strength, error = torch.stack(told, dim=1)
    information = error**-2
    total = information.sum(0)
    strength = torch.where(total > 0.0, (information * strength.clamp(min=0.0)).sum(0) / total, 1.0)
    return gain.sum(0) - 0.5 * (strength.log() / STRENGTH_PRIOR).square(), strength


def _maxima(score: Tensor) -> Tensor:
    """Places of the highest maxima, of those that are worth looking at."""
    outside = score.new_full((1,), -math.inf)
    padded = torch.cat([outside, score, outside])
    places = ((score >= padded[:-2]) & (score >= padded[2:]) & (score >= WORTH * score.max())).nonzero().squeeze(1)
    return places[score[places].argsort(descending=True)[:MAXIMA]]


def _distinct(trials: list[_Trial], resolution: float) -> list[_Trial]:
    """One trial a solution, the likeliest solution first: well within a width of each other they are the same."""
    left, chosen = sorted(trials, key=lambda trial: -trial.gain), []
    while left:
        top = left[0]
        same = [
            trial
            for trial in left
            if abs(trial.shift - top.shift) * STEP <= max(SAME * max(top.vsini, trial.vsini), resolution)
        ]
        left = [trial for trial in left if trial not in same]
        best = None
        for trial in sorted(same, key=lambda trial: (trial.vsini, -trial.gain)):
            if best is None:
                best = trial
            elif trial.vsini == best.vsini:
                continue
            elif trial.gain > best.gain + DECISIVE and trial.cut > NEARLY * best.cut:
                best = trial
        chosen.append(best)
    return sorted(chosen, key=lambda trial: -trial.gain)


def _refined(seen: list[OrderCorrelation], trial: _Trial, rv: float | None, shifts: Tensor) -> StartingPoint:
    """The velocity where most pixels agree, between the steps of the grid by a parabola."""
    if rv is not None:
        return StartingPoint(rv, trial.vsini, trial.strength, trial.gain)
    around = trial.shift + AROUND
    around = around[(around >= shifts[0]) & (around <= shifts[-1])]
    work = [(order, order.depth(trial.vsini)) for order in seen]
    gains, strengths = _agreement(work, around)
    best, fraction = int(gains.argmax()), 0.0
    if 0 < best < around.numel() - 1:
        left, middle, right = gains[best - 1 : best + 2].tolist()
        bend = left - 2.0 * middle + right
        fraction = 0.5 * (left - right) / bend if bend < 0 else 0.0
        fraction *= float(around[best + 1] - around[best])
    found = _velocity(float(around[best]) + fraction)
    return StartingPoint(found, trial.vsini, float(strengths[best]), float(gains[best]))


def _steps(rv: float) -> int:
    """Nearest shift of the grid to a velocity."""
    return round(math.log1p(rv / SPEED_OF_LIGHT) * SPEED_OF_LIGHT / STEP)


def _velocity(steps: float) -> float:
    return math.expm1(steps * STEP / SPEED_OF_LIGHT) * SPEED_OF_LIGHT
