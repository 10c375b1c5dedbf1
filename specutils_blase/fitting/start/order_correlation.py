"""One order against the star's clone at rest, at all velocities at once: what a search of the velocity sums up.

Does not live here: which velocity and rotation are taken (`velocity`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.emulator import LineEmulator
from ...model.extrinsic import RotationalBroadening
from ...model.instrument import LineSpreadFunction
from ...physics.grids import SPEED_OF_LIGHT, Sampling, velocity_grid
from ...physics.saturation import legendre
from ...spectra.data import SpectralData

STEP = 0.5
"""km/s; grid of the templates."""

ROOM = 60
"""Steps of the grid beyond the largest shift."""

CLIP = 1.5
"""Typical sizes of what stands above and below the trend, at which deep features are cut for a second correlation."""

TAILS, REWEIGHTINGS = 2.0, 6
"""Degrees of freedom of the residuals' Student's t, and steps to its maximum."""

SKY_DOUBT = 0.1
"""Part of a telluric line's depth by which it may be off after its species is scaled."""

FAINTEST = 0.02
"""Least continuum, in units of the median flux."""

LEAST_COVER = 0.5
"""Part of an order's pixels that a template must reach for the order to vote."""

TYPICAL_GAPS = 2.0
"""Median distances of lines by which a list that ends at its outermost lines tells of more."""


def coverage(emulator: LineEmulator) -> tuple[float, float]:
    """Rest wavelengths [Å] about which the lines tell: the emulator's range, or a gap more than its outermost lines.

    A list of lines, unlike a template, says nothing of where it ends: its range ends at its outermost lines.
    """
    low, high = emulator.wavelength_range
    if len(emulator) < 2:
        return low, high
    center = emulator.center.double()
    gap = TYPICAL_GAPS * float(center.diff().median())
    first, last = float(center[0]), float(center[-1])
    return (first - gap if low >= first else low), (last + gap if high <= last else high)


def near(emulator: LineEmulator, grid: Tensor) -> LineEmulator:
    """The lines that can be seen on a grid."""
    reach = emulator.reach()
    seen = (emulator.shifted_center + reach > grid[0]) & (emulator.shifted_center - reach < grid[-1])
    return emulator.subset(seen.nonzero().squeeze(-1))


@dataclass(frozen=True)
class OrderCorrelation:
    r"""One order's data without continuum and sky, and the star at rest on a grid with room for all shifts.

    With :math:`d(λ)` the depth of the star's clone and T the sky, the flux is :math:`T C - s\,T C\,d` up to a
    polynomial C, whose terms times T are projected out of data and template. The strength s is linear here.

    Attributes
    ----------
    star : Tensor, (n_node,)
        Flux of the clone at rest, before rotation and line spread.
    position : Tensor, (n,)
        Node on which each good pixel falls at rest.
    trend : Tensor, (n, n_term)
        Orthonormal continuum terms times sky, times the root of the weight.
    scale : Tensor, (n,)
        What a depth is worth in units of the noise.
    observed, cut : Tensor, (n,)
        Data in units of the noise without trend, and the same with all that is deep cut off.
    votes : float
        Number of pixels that weigh as much as all of these.
    starless : float
        ln L of the observed under Student's t.
    first, last : int
        Nodes of the template between which it tells something.
    """

    star: Tensor
    spread: LineSpreadFunction
    position: Tensor
    trend: Tensor
    scale: Tensor
    observed: Tensor
    cut: Tensor
    votes: float
    starless: float
    first: int
    last: int

    @classmethod
    def of(
        cls,
        data: SpectralData,
        resolving_power: float,
        star: LineEmulator,
        sky: Tensor | None,
        degree: int,
        reach: tuple[float, float],
    ) -> OrderCorrelation:
        """Prepare an order.

        Parameters
        ----------
        data : SpectralData
        resolving_power : float
        star : LineEmulator
        sky : Tensor, (n_pixel,), optional
            Transmission on the data's pixels.
        degree : int
            Of the continuum.
        reach : (float, float)
            Velocities [km/s] between which shifts will be asked for.
        """
        good = data.good
        wavelength = data.wavelength[good]
        low, high = (math.log(float(end)) for end in (wavelength[0], wavelength[-1]))
        room = ROOM * STEP
        # The star at all its shifts, and the pixels at rest.
        grid = velocity_grid(
            math.exp(low - (max(reach[1], 0.0) + room) / SPEED_OF_LIGHT),
            math.exp(high - (min(reach[0], 0.0) - room) / SPEED_OF_LIGHT),
            STEP,
        )
        flux = data.flux[good].double()
        flux = flux / flux.median()
        if data.noise_known:
            sigma = data.sigma[good].double() / data.flux[good].double().median()
        else:
            sigma = torch.full_like(flux, max(float(flux.diff().abs().median()), 1e-4))
        x = (2.0 * data.wavelength - data.wavelength[0] - data.wavelength[-1]) / (
            data.wavelength[-1] - data.wavelength[0]
        )
        terms = legendre(x, degree + 1).T[good]
        sky = torch.ones_like(flux) if sky is None else sky[good].double()
        variance = sigma.square()
        continuum, doubt = torch.ones_like(flux), SKY_DOUBT * (1.0 - sky)
        for _ in range(2):
            root = (variance + (doubt * continuum).square()).rsqrt()
            basis = terms * (sky * root).unsqueeze(1)
            coefficients = student(basis, flux * root)[1]
            continuum = (terms @ coefficients).clamp(min=FAINTEST)
        trend = torch.linalg.qr(basis).Q
        observed = _without(trend, flux * root)
        most = CLIP * (observed - observed.median()).abs().median()
        cut = _without(trend, (observed - observed.median()).clamp(-most, most))
        position = (torch.log(wavelength / grid[0]) * (SPEED_OF_LIGHT / STEP)).round().long()
        covered = torch.log(torch.tensor(coverage(star), dtype=torch.float64) / grid[0]) * (SPEED_OF_LIGHT / STEP)
        first, last = (int(end) for end in covered.clamp(0, grid.numel() - 1).round())
        weight = root.square()
        return cls(
            star=near(star, grid)(Sampling(grid)).double(),
            spread=LineSpreadFunction(resolving_power, grid),
            position=position,
            trend=trend,
            scale=-continuum * sky * root,
            observed=observed,
            cut=cut,
            votes=float(weight.sum().square() / weight.square().sum()),
            starless=float(student(trend, observed)[0]),
            first=first,
            last=last,
        )

    def depth(self, vsini: float) -> Tensor:
        """Depth of the star on the grid, rotating and seen by the instrument; zero where its clone tells nothing."""
        flux = RotationalBroadening(vsini, STEP)(self.star) if vsini > STEP else self.star
        depth = 1.0 - self.spread(flux)
        depth[: self.first] = 0.0
        depth[self.last + 1 :] = 0.0
        return depth

    def seen(self, shifts: Tensor) -> tuple[Tensor, Tensor]:
        """First of the pixels that the template reaches at shifts in steps, and the first that it does not any more."""
        return (
            torch.searchsorted(self.position, self.first + shifts),
            torch.searchsorted(self.position, self.last + shifts, right=True),
        )

    def log_likelihoods(self, depth: Tensor, shifts: Tensor) -> Tensor:
        r"""Zucker's ln L at shifts in steps, of the data and of the data with what is deep cut off, (2, n_shift).

        Sums over pixels at all shifts are correlations, by Fourier transform. Pixels without template do not count:
        the trend is projected out of those that do.
        """
        n_node, n_term = depth.numel(), self.trend.shape[1]
        size = 2 ** math.ceil(math.log2(n_node))
        data = torch.stack([self.observed, self.cut])
        values = torch.cat([data * self.scale, self.trend.T * self.scale])
        fields = depth.new_zeros(n_term + 2, n_node).index_add_(1, self.position, values)
        square = depth.new_zeros(n_node).index_add_(0, self.position, self.scale.square())
        sums = torch.fft.irfft(torch.fft.rfft(fields, size) * torch.fft.rfft(depth, size).conj(), size)
        power = torch.fft.irfft(torch.fft.rfft(square, size) * torch.fft.rfft(depth.square(), size).conj(), size)
        at = shifts % size
        overlap, leaning, power = sums[:2, at].T, sums[2:, at].T, power[at]
        start, stop = self.seen(shifts)
        total = data.square().sum(1).expand(shifts.numel(), 2)
        part = (stop - start).clamp(min=0) / max(self.position.numel(), 1)
        if bool((part < 1.0).any()):
            inner = self._between(torch.einsum("ik,il->ikl", self.trend, self.trend).flatten(1), start, stop)
            inner = inner.view(-1, n_term, n_term) + 1e-9 * torch.eye(n_term, dtype=depth.dtype)
            shared = self._between(torch.einsum("jn,nk->nkj", data, self.trend).flatten(1), start, stop)
            shared = shared.view(-1, n_term, 2)
            solved = torch.linalg.solve(inner, torch.cat([shared, leaning.unsqueeze(2)], dim=2))
            overlap = overlap - (solved[..., 2:] * shared).sum(1)
            power = power - (solved[..., 2] * leaning).sum(1)
            total = self._between(data.square().T, start, stop) - (solved[..., :2] * shared).sum(1)
        else:
            power = power - leaning.square().sum(1)
        overlap = overlap.clamp(min=0.0)  # an emission spectrum is no match
        common = overlap.square() / (power.clamp(min=1e-30).unsqueeze(1) * total.clamp(min=1e-30))
        # A template of which nothing is left has nothing in common with anything.
        common = torch.where((power > 1e-9 * self.scale.square().sum()).unsqueeze(1), common, 0.0)
        score = -0.5 * self.votes * part.unsqueeze(1) * torch.log1p(-common.clamp(max=1.0 - 1e-12))
        return torch.where((part >= LEAST_COVER).unsqueeze(1), score, 0.0).T

    def robust(self, depth: Tensor, shifts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gain of ln L by the template at shifts, under Student's t; its strength, and the error of that; (n_shift,).

        Where the template agrees with nothing, the gain is zero and the error infinite.
        """
        n_pixel = self.position.numel()
        start, stop = self.seen(shifts)
        pixel = torch.arange(n_pixel)
        counts = ((pixel >= start.unsqueeze(1)) & (pixel < stop.unsqueeze(1))).to(depth.dtype)
        column = self.scale * depth[(self.position - shifts.unsqueeze(1)).clamp(0, depth.numel() - 1)]
        trend = self.trend.expand(shifts.numel(), -1, -1)
        partial = bool((counts < 1.0).any())
        without = student(trend, self.observed, counts)[0] if partial else self.starless
        score, solution, error = student(torch.cat([column.unsqueeze(2), trend], dim=2), self.observed, counts)
        strength = solution[:, 0]
        agrees = (strength > 0.0) & error.isfinite() & (stop - start >= LEAST_COVER * n_pixel)
        gain = torch.where(agrees, (score - without) * self.votes / n_pixel, 0.0)
        return gain, strength, torch.where(agrees, error, math.inf)

    @staticmethod
    def _between(values: Tensor, start: Tensor, stop: Tensor) -> Tensor:
        """Sums of values (n, m) over pixels from start to stop."""
        running = torch.cat([values.new_zeros(1, values.shape[1]), values.cumsum(0)])
        return running[torch.maximum(start, stop)] - running[start]


def student(design: Tensor, values: Tensor, counts: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """ln L of what designs (..., n, n_column) leave of values (n,), under Student's t of whatever width is best.

    Pixels whose `counts` (..., n) is zero are left out.

    Returns
    -------
    score : Tensor, (...)
    solution : Tensor, (..., n_column)
    error : Tensor, (...)
        Of the first column's coefficient.
    """
    counts = torch.ones_like(values) if counts is None else counts
    number = counts.sum(-1, keepdim=True).clamp(min=1.0)
    size = design.norm(dim=-2, keepdim=True).clamp(min=1e-30)
    scaled = design / size
    turned = scaled.transpose(-1, -2)
    ridge = 1e-10 * torch.eye(design.shape[-1], dtype=design.dtype)
    trust = counts
    for _ in range(REWEIGHTINGS):
        weighted = turned * trust.unsqueeze(-2)
        normal = weighted @ scaled + ridge
        solution = torch.linalg.solve(normal, weighted @ values.unsqueeze(-1))
        left = (values - (scaled @ solution).squeeze(-1)).square()
        width = ((trust * left).sum(-1, keepdim=True) / number).clamp(min=1e-30)
        trust = counts * (TAILS + 1.0) / (TAILS + left / width)
    tails = 0.5 * (TAILS + 1.0) * (counts * torch.log1p(left / (TAILS * width))).sum(-1)
    score = -tails - 0.5 * number.squeeze(-1) * width.squeeze(-1).log()
    error = (torch.linalg.inv(normal)[..., 0, 0] * width.squeeze(-1)).sqrt() / size[..., 0, 0]
    return score, (solution / size.transpose(-1, -2)).squeeze(-1), error


def _without(trend: Tensor, values: Tensor) -> Tensor:
    return values - trend @ (trend.T @ values)
