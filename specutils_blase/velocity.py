"""Starting radial velocity and rotation by cross-correlation.

Does not live here: the fit that refines it (`fitting`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .data import SpectralData
from .extrinsic import RotationalBroadening
from .grids import SPEED_OF_LIGHT, Sampling, velocity_grid
from .instrument import LineSpreadFunction
from .lines import LineEmulator
from .parallel import each

LARGEST_VELOCITY = 300.0
"""km/s; half range of the search, less where the template does not reach."""

STEP = 0.5

ROTATIONS = (2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 240.0, 360.0)
"""Projected rotation velocities [km/s] that are tried where none is given."""

NEARBY = 40.0
"""km/s about the velocity found first, beside the rotation itself, within which rotations are compared."""

DECISIVE, NEARLY = 10.0, 0.9
"""Gain of ln L for which a faster rotation is taken, and the part of the slower one's that it must correlate with."""

CANDIDATES, WORTH = 10, 0.05
"""Highest maxima of the correlation that are compared, and the part of the highest ln L of all that they must reach.

Next to nothing in common with most pixels is no agreement with the few that are left.
"""

CLIP = 1.5
"""Typical sizes of what stands above and below the trend, at which deep features are cut for a second correlation."""

AROUND = torch.arange(-12, 13, 2)
"""Steps about the maximum that is taken, among which the velocity is where most pixels agree."""

TAILS, REWEIGHTINGS = 2.0, 8
"""Degrees of freedom of the residuals' Student's t in that comparison, and steps to its maximum."""

OPAQUE = 0.9
"""Pixels whose telluric transmission is below this do not vote."""


@torch.no_grad()
def cross_correlate(
    orders: Sequence[SpectralData],
    star: LineEmulator,
    telluric: LineEmulator | None = None,
    *,
    rv: float | None = None,
    vsini: float | None = None,
    resolving_power: Sequence[float],
) -> tuple[float, float]:
    r"""Radial velocity and v sin i [km/s] at which the star's clone correlates best with the data of all orders.

    The likelihood of Zucker (2003), :math:`\ln L(v) = -\frac12 \sum_k N_k \ln(1 - C_k(v)^2)`, with C_k the weighted
    correlation coefficient of order k with the template after a parabola is taken off both; on a grid of 0.5 km/s.
    Orders with little in common with the template hardly vote.

    A deep line that neither clone has correlates with any deep line of the template. The same correlation is therefore
    asked of the data with all that is deep cut off as well, and of the highest maxima of both the one is taken with
    which most pixels agree: where the residuals, of unknown size, are most likely under Student's t, which a deep line
    left over costs little. By the same measure the velocity is refined. Rotations are compared likewise, one after the
    other near the velocity of the slowest; a faster one has to be better by `DECISIVE`, and to correlate nearly as
    well: a template so broad that hardly a line is left in it agrees with anything that bends.

    Parameters
    ----------
    orders : sequence of SpectralData
    star, telluric : LineEmulator
        Clones; the telluric one only says which pixels to ignore.
    rv, vsini : float, optional
        Held where given, km/s.
    resolving_power : sequence of float
        Line spread of each order to broaden both with.

    Returns
    -------
    rv, vsini : float
    """
    if rv is not None and vsini is not None:
        return rv, vsini
    first, last = star.wavelength_range
    reach = LARGEST_VELOCITY
    for data in orders:
        low, high = float(data.wavelength[0]), float(data.wavelength[-1])
        room = min(math.log(low / first) if first < low else 0.0, math.log(last / high) if last > high else 0.0)
        reach = min(reach, room * SPEED_OF_LIGHT)
    most = int(reach / STEP)
    seen = [_Template.of(*each, star, telluric, most) for each in zip(orders, resolving_power, strict=True)]

    def correlated(rotation: float, shifts: Tensor) -> Tensor:
        return torch.stack(each(lambda template: template.log_likelihoods(rotation, shifts), seen)).sum(0)

    def agreed(rotation: float, shifts: Tensor) -> Tensor:
        return torch.stack(each(lambda template: template.robust_log_likelihood(rotation, shifts), seen)).sum(0)

    tried = ROTATIONS if vsini is None else (vsini,)
    if rv is None and most < 2:
        return 0.0, tried[0]
    if rv is not None:
        at = round(math.log1p(rv / SPEED_OF_LIGHT) * SPEED_OF_LIGHT / STEP)
        everywhere = torch.tensor([min(max(at, -most), most)])
    else:
        everywhere = torch.arange(-most, most + 1)
    best, highest = None, torch.zeros(2, dtype=torch.float64)
    for rotation in tried:
        near = everywhere
        if best is not None:
            near = near[(near - best[1]).abs() <= (NEARBY + rotation) / STEP]
        scores = correlated(rotation, near)
        highest = torch.maximum(highest, scores.amax(1))
        maxima = torch.cat([_maxima(score, WORTH * float(top)) for score, top in zip(scores, highest, strict=True)])
        maxima = maxima.unique() if maxima.numel() else scores[0].argmax().view(1)
        found = agreed(rotation, near[maxima])
        at = int(maxima[found.argmax()])
        cut = scores[1]
        faster = best is not None
        if not faster or (float(found.max()) > best[0] + DECISIVE and float(cut[at]) > NEARLY * best[2]):
            centre = best[1] if faster else int(near[at])
            best = float(found.max()), centre, float(cut[at]), rotation, int(near[at])
    *_, chosen, at = best
    if rv is not None:
        return rv, chosen
    around = at + AROUND
    around = around[(around >= -most) & (around <= most)]
    return _peak(around, agreed(chosen, around)), chosen


def _maxima(score: Tensor, least: float) -> Tensor:
    """Places of the highest maxima, of those that reach the least that is worth looking at."""
    outside = score.new_full((1,), -math.inf)
    padded = torch.cat([outside, score, outside])
    places = ((score >= padded[:-2]) & (score >= padded[2:]) & (score >= least)).nonzero().squeeze(1)
    return places[score[places].argsort(descending=True)[:CANDIDATES]]


def _peak(shifts: Tensor, score: Tensor) -> float:
    """Velocity of the highest, between those of the shifts by a parabola."""
    fraction, best = 0.0, int(score.argmax())
    if 0 < best < score.numel() - 1:
        left, middle, right = score[best - 1 : best + 2].tolist()
        bend = left - 2.0 * middle + right
        fraction = 0.5 * (left - right) / bend if bend < 0 else 0.0
        fraction *= float(shifts[best + 1] - shifts[best])
    return math.expm1((float(shifts[best]) + fraction) * STEP / SPEED_OF_LIGHT) * SPEED_OF_LIGHT


@dataclass(frozen=True)
class _Template:
    """One order's data without their trend, and the star's clone at rest on a grid with room for all shifts."""

    template: Tensor
    spread: LineSpreadFunction
    position: Tensor
    weight: Tensor
    trend: Tensor
    observed: Tensor
    cut: Tensor

    @classmethod
    def of(cls, data: SpectralData, resolving_power: float, star, telluric, most: int) -> _Template:
        low, high = float(data.wavelength[0]), float(data.wavelength[-1])
        margin = (most + 40) * STEP / SPEED_OF_LIGHT
        grid = velocity_grid(low * math.exp(-margin), high * math.exp(margin), STEP)
        spread = LineSpreadFunction(resolving_power, grid)
        template = _near(star, grid)(Sampling(grid))
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
        observed = _flatten(flux.unsqueeze(1), trend, weight).squeeze(1)
        typical = observed - observed.median()
        most_seen = CLIP * typical.abs().median()
        cut = _flatten(typical.clamp(-most_seen, most_seen).unsqueeze(1), trend, weight).squeeze(1)
        return cls(template, spread, position, weight, trend, observed, cut)

    def log_likelihoods(self, vsini: float, shifts: Tensor) -> Tensor:
        """Zucker's ln L at shifts by `STEP`, of the data and of the data with what is deep cut off, (2, n_shift)."""
        template = self._rotating(vsini)
        data = torch.stack([self.observed, self.cut])
        power = (self.weight * data.square()).sum(1, keepdim=True).clamp(min=1e-30)
        scores = []
        for part in shifts.split(128):
            at = (self.position.unsqueeze(1) - part).clamp(0, template.numel() - 1)
            shifted = _flatten(template[at], self.trend, self.weight)
            overlap = ((self.weight * data) @ shifted).clamp(min=0.0)  # an emission spectrum is no match
            scores.append(overlap.square() / ((self.weight @ shifted.square()) * power).clamp(min=1e-30))
        return -0.5 * self.observed.numel() * torch.log1p(-torch.cat(scores, dim=1).clamp(max=1.0 - 1e-12))

    def robust_log_likelihood(self, vsini: float, shifts: Tensor) -> Tensor:
        """ln L of what template and trend leave at each shift, under Student's t of whatever width is best."""
        template, scores = self._rotating(vsini), []
        for shift in shifts:
            at = (self.position - shift).clamp(0, template.numel() - 1)
            score, strength = self._agreement(torch.cat([template[at].unsqueeze(1), self.trend], dim=1))
            # An emission spectrum is no match.
            scores.append(score if strength > 0.0 else self._agreement(self.trend)[0])
        return torch.stack(scores)

    def _agreement(self, design: Tensor) -> tuple[Tensor, float]:
        """ln L of the observed less what a design makes of it at best, and the strength of its first column."""
        trust = torch.ones_like(self.weight)
        for _ in range(REWEIGHTINGS):
            root = (self.weight * trust).sqrt().unsqueeze(1)
            strength = torch.linalg.lstsq(root * design, root * self.observed.unsqueeze(1)).solution.squeeze(1)
            left = self.weight * (self.observed - design @ strength).square()
            width = (trust * left).mean().clamp(min=1e-30)
            trust = (TAILS + 1.0) / (TAILS + left / width)
        tails = 0.5 * (TAILS + 1.0) * torch.log1p(left / (TAILS * width)).sum()
        return -tails - 0.5 * left.numel() * width.log(), float(strength[0])

    def _rotating(self, vsini: float) -> Tensor:
        template = RotationalBroadening(vsini, STEP)(self.template) if vsini > STEP else self.template
        return self.spread(template)


def _flatten(values: Tensor, trend: Tensor, weight: Tensor) -> Tensor:
    """Columns of values less their weighted trends."""
    root = weight.sqrt().unsqueeze(1)
    return values - trend @ (torch.linalg.pinv(trend * root) @ (values * root))


def _near(emulator: LineEmulator, grid: Tensor) -> LineEmulator:
    """The lines that can be seen on a grid."""
    reach = emulator.reach()
    near = (emulator.shifted_center + reach > grid[0]) & (emulator.shifted_center - reach < grid[-1])
    return emulator.subset(near.nonzero().squeeze(-1))
