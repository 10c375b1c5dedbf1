r"""blasé's "pseudo-Voigt", and exact Voigts that give the same flux.

blasé 0.3 mixes a Lorentzian and a Gaussian at their *own* widths,

.. math:: P(x) = η\,L(x; γ) + (1 - η)\,G(x; σ),

with the mixing η of a pseudo-Voigt whose parts have the common width of the whole (Thompson, Cox & Hastings 1987,
J. Appl. Cryst. 20, 79). P does not approximate a Voigt profile: its peak is 67 % too high at σ = γ. One exact Voigt
comes within a thousandth of the flux of every second such line, two or three together of nearly all. Where the product
would exceed 1, blasé cuts the flux off at zero; such a corner takes up to eight.

Does not live here: the files (`blase`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..physics.saturation import SaturationLaw
from ..physics.voigt import voigt_with_derivatives

N_OFFSET = 32
"""Offsets [σ] over the core, and over the wing, at which fluxes are compared; about a corner twice as many more."""

MOST_ITERATIONS, LEAST_GAIN, MOST_DAMPING = 60, 1e-3, 1e8
"""Limits of the iteration of a line: steps, relative decrease of the cost by a step, and damping."""

LINES_AT_ONCE = 1024
"""Lines that are fitted in one batch."""

MOST_VOIGTS = 8
"""Voigts of one line at most."""

MOST_USUAL_VOIGTS, MORE_VOIGTS_FROM = 3, 3.0
"""Voigts that any line may take; error in units of the tolerance from which on a line may take more."""

LARGEST_AREA = 100.0
"""Limit on the area of one Voigt, over that of the line."""

START_GRID_STEP, GRID_START_ERROR = 0.25, 4.0
"""Steps of ln γ/σ and ln a/σ of the grid of starts; largest error of a start, in units of the tolerance."""

GOOD_ENOUGH = 0.5
"""Error in units of the tolerance below which the fit of a line stops."""


def mixed_profile(x: Tensor, sigma: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """blasé's profile P(x), in 1/Å and with its own rounded constants, and its mixing η."""
    gauss, lorentz = 2.3548 * sigma, 2.0 * gamma
    powers = (1.0, 2.69269, 2.42843, 4.47163, 0.07842, 1.0)
    common_width = sum(c * gauss ** (5 - k) * lorentz**k for k, c in enumerate(powers)) ** 0.2
    ratio = lorentz / common_width
    mixing = 1.36603 * ratio - 0.47719 * ratio**2 + 0.11116 * ratio**3
    lorentzian = gamma / (3.141592654 * (gamma**2 + x**2))
    gaussian = torch.exp(-0.5 * (x / sigma) ** 2) / (2.5066 * sigma)
    return mixing * lorentzian + (1.0 - mixing) * gaussian, mixing


def exact_voigts(
    area: Tensor, sigma: Tensor, gamma: Tensor, law: SaturationLaw, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact Voigts whose flux under `law` is that of mixed profiles: as few a line as possible.

    Levenberg-Marquardt on all lines together, in ln a, ln σ, ln γ of each Voigt. In units of its σ a line has two
    numbers, γ/σ and a/σ. Each line starts from the solution at the nearest node of a grid of these.

    Parameters
    ----------
    area, sigma, gamma : Tensor, (n_line,)
        blasé's, in Å.
    law : SaturationLaw
    tolerance : float
        Error of the flux of a line above which it takes a second and a third Voigt; above `MORE_VOIGTS_FROM` times as
        much it takes up to `MOST_VOIGTS`.

    Returns
    -------
    parameters : Tensor, (n_line, MOST_VOIGTS, 3)
        ln a, ln σ, ln γ [Å] of each Voigt; the area is zero (ln a = -inf) where a line needs fewer.
    count : Tensor of int, (n_line,)
        Number of Voigts.
    error : Tensor, (n_line,)
        Largest remaining error of the flux.
    """
    ln_scale = sigma.log()
    area, gamma = area / sigma, gamma / sigma
    node, member = (
        torch.stack([area.log(), gamma.log()], 1).div(START_GRID_STEP).round().unique(dim=0, return_inverse=True)
    )
    at_node = (node * START_GRID_STEP).exp()
    best = _Voigts.none(area.numel())
    for n_voigt in (1, 2):
        grid_voigts = _Voigts.none(len(node))
        grid_voigts.improve(at_node[:, 0], at_node[:, 1], law, 0.0, (n_voigt,))
        near = (grid_voigts.error < GRID_START_ERROR * tolerance)[member] & (best.error > tolerance)
        for line in near.nonzero().squeeze(-1).split(LINES_AT_ONCE):
            start = grid_voigts.parameters[member[line], :n_voigt].clone()
            start[..., 0] += (area[line] / at_node[member[line], 0]).log().unsqueeze(1)
            best.take(line, *_fit(area[line], gamma[line], start, law, GOOD_ENOUGH * tolerance))
    best.improve(area, gamma, law, tolerance, range(1, MOST_VOIGTS + 1))
    best.parameters += ln_scale.view(-1, 1, 1)
    return best.parameters, best.count, best.error


@dataclass
class _Voigts:
    """The best Voigts so far of each line, in units of its σ."""

    parameters: Tensor
    count: Tensor
    error: Tensor

    @classmethod
    def none(cls, n_line: int) -> _Voigts:
        parameters = torch.full((n_line, MOST_VOIGTS, 3), -math.inf, dtype=torch.float64)
        parameters[:, :, 1:] = 0.0
        error = torch.full((n_line,), math.inf, dtype=torch.float64)
        return cls(parameters, torch.zeros(n_line, dtype=torch.long), error)

    def take(self, line: Tensor, fitted: Tensor, left: Tensor) -> None:
        """Keep the fits of some lines where they are better than their present ones."""
        better = left < self.error[line]
        self.parameters[line[better], : fitted.shape[1]] = fitted[better]
        self.count[line[better]], self.error[line[better]] = fitted.shape[1], left[better]

    def improve(self, area: Tensor, gamma: Tensor, law: SaturationLaw, tolerance: float, numbers) -> None:
        """Try these numbers of Voigts in turn on lines whose error exceeds the tolerance."""
        for n_voigt in numbers:
            limit = tolerance if n_voigt <= MOST_USUAL_VOIGTS else MORE_VOIGTS_FROM * tolerance
            for line in ((self.error > limit) & (self.count < n_voigt)).nonzero().squeeze(-1).split(LINES_AT_ONCE):
                starts = _starts(area[line], gamma[line], self.parameters[line], n_voigt)
                every = line.repeat(len(starts))
                fitted, left = _fit(area[every], gamma[every], torch.cat(starts), law, GOOD_ENOUGH * tolerance)
                for result in zip(fitted.split(len(line)), left.split(len(line)), strict=True):
                    self.take(line, *result)


EXTRA_STARTS = ((0.05, 0.5), (0.3, 0.3), (0.01, 0.8), (1.0, 0.15))
"""Areas and Gaussian widths, over the line's, from which the fourth and further Voigts start."""


def _starts(area, gamma, fewer, n_voigt) -> list[Tensor]:
    """First parameters: the whole; its Lorentzian and its Gaussian; those fitted, with a narrow one more."""
    sigma = torch.ones_like(gamma)
    mixing = mixed_profile(torch.zeros_like(sigma), sigma, gamma)[1].clamp(1e-3, 1.0 - 1e-3)
    pair = (area * mixing, 0.3 * sigma, gamma), (area * (1.0 - mixing), sigma, 0.1 * gamma)
    narrow = torch.minimum(sigma, gamma)
    if n_voigt == 1:
        return [_stacked([(area, sigma, gamma)])]
    if n_voigt == 2:
        return [_stacked(pair)]
    fitted_before = fewer[:, : n_voigt - 1]
    usable = torch.isfinite(fitted_before).all(-1).all(-1)
    if n_voigt == 3:
        fitted_before = torch.where(usable[:, None, None], fitted_before, _stacked(pair))
        added = [(0.03 * area, 0.3 * narrow, 0.1 * narrow)]
    else:  # a line that the last Voigt has not improved
        fitted_before = torch.where(torch.isfinite(fitted_before), fitted_before, -8.0)
        added = [(a * area, s * sigma, 0.01 * narrow) for a, s in EXTRA_STARTS]
    return [torch.cat([fitted_before, _stacked([voigt])], 1) for voigt in added]


def _stacked(parts) -> Tensor:
    """Logarithms of areas and widths, (n_line, n_voigt, 3)."""
    return torch.stack([torch.stack([value.log() for value in part], -1) for part in parts], 1)


def _nodes(area: Tensor, gamma: Tensor, corner: bool) -> Tensor:
    """Offsets [σ] over the Gaussian, ever wider apart over the Lorentzian and its wings, and about a corner.

    The corner is where blasé cuts the flux off; of lines without one, the nodes for it are about the centre.
    """
    core = (2.3548 * torch.linspace(0.0, 2.5, N_OFFSET, dtype=torch.float64)).expand(area.numel(), -1)
    wing = 0.2 * gamma.unsqueeze(1) * torch.sinh(torch.linspace(0.1, 6.0, N_OFFSET, dtype=torch.float64))
    if not corner:
        return torch.cat([core, wing], 1)
    inside, outside = torch.zeros_like(gamma), wing[:, -1]
    for _ in range(50):
        middle = 0.5 * (inside + outside)
        deep = area * mixed_profile(middle, torch.ones_like(gamma), gamma)[0] > 1.0
        inside, outside = torch.where(deep, middle, inside), torch.where(deep, outside, middle)
    steps = outside.unsqueeze(1) * torch.linspace(0.0, 1.5, 2 * N_OFFSET, dtype=torch.float64)
    return torch.cat([core, wing, steps], 1)


def _fit(area, gamma, start: Tensor, law, enough: float) -> tuple[Tensor, Tensor]:
    """Parameters from a start, and the largest difference of the flux that they leave; units of σ."""
    peak = area * mixed_profile(torch.zeros_like(gamma), torch.ones_like(gamma), gamma)[0]
    cut = (peak > 1.0) & (law.name == "linear")
    fitted, left = start.clone(), torch.empty_like(area)
    for corner in (False, True):
        line = (cut == corner).nonzero().squeeze(-1)
        if line.numel():
            fitted[line], left[line] = _fit_alike(area[line], gamma[line], start[line], law, enough, corner)
    return fitted, left


def _fit_alike(area, gamma, start: Tensor, law, enough: float, corner: bool) -> tuple[Tensor, Tensor]:
    x = _nodes(area, gamma, corner)
    mixed = area.unsqueeze(1) * mixed_profile(x, torch.ones_like(gamma).unsqueeze(1), gamma.unsqueeze(1))[0]
    # As blasé computes it: a product cut off at zero flux, or the exponential of the sum.
    target = 1.0 - mixed.clamp(0.0, 0.999999999) if law.name == "linear" else torch.exp(-mixed)
    # Wings of many lines add up, so that their errors weigh more than those of the core.
    weight = 1.0 + (x / (3.0 * (2.3548 + 2.0 * gamma)).unsqueeze(1)).clamp(max=10.0)
    most = (LARGEST_AREA * area).log().unsqueeze(1)
    n_voigt = start.shape[1]
    fitted, left = start.clone(), torch.empty_like(area)
    line, parameters, damping = torch.arange(area.numel()), start, torch.full_like(area, 1e-3)
    flux, slope = _flux(x, parameters, law)
    residual = (flux - target) * weight
    cost = residual.square().sum(1)
    going = torch.ones_like(cost, dtype=torch.bool)
    for iteration in range(MOST_ITERATIONS + 1):
        off = (residual / weight).abs().amax(1)
        going &= (off > enough) & (iteration < MOST_ITERATIONS)
        fitted[line[~going]], left[line[~going]] = parameters[~going], off[~going]
        if not bool(going.any()):
            break
        parts = (line, x, target, weight, most, parameters, damping, slope, residual, cost)
        line, x, target, weight, most, parameters, damping, slope, residual, cost = (part[going] for part in parts)
        weighted = slope * weight.unsqueeze(-1)
        normal = weighted.mT @ weighted
        gradient = (weighted.mT @ residual.unsqueeze(-1)).squeeze(-1)
        diagonal = torch.diagonal(normal, dim1=-2, dim2=-1)
        floor = 1e-9 * diagonal.amax(1, keepdim=True) + 1e-14
        damped = normal + torch.diag_embed(damping.unsqueeze(1) * diagonal + floor)
        step = torch.linalg.solve(damped, -gradient).clamp(-0.7, 0.7).reshape(-1, n_voigt, 3)
        trial = (parameters + step).clamp(-25.0, 10.0)
        trial[..., 0] = torch.minimum(trial[..., 0], most)
        new_flux, new_slope = _flux(x, trial, law)
        new_residual = (new_flux - target) * weight
        new_cost = new_residual.square().sum(1)
        good = new_cost < cost
        going = torch.where(good, new_cost < (1.0 - LEAST_GAIN) * cost, damping < MOST_DAMPING)
        parameters = torch.where(good[:, None, None], trial, parameters)
        residual, cost = torch.where(good[:, None], new_residual, residual), torch.where(good, new_cost, cost)
        slope = torch.where(good[:, None, None], new_slope, slope)
        damping = torch.where(good, 0.2 * damping, 5.0 * damping).clamp(1e-10, MOST_DAMPING)
    return fitted, left


def _flux(x: Tensor, parameters: Tensor, law) -> tuple[Tensor, Tensor]:
    """Flux of the Voigts of each line alone, (n_line, n), and its derivatives to their logarithms, (n_line, n, 3 k)."""
    opacity, slopes = torch.zeros_like(x), []
    for part in parameters.exp().unbind(1):
        area, sigma, gamma = (value.unsqueeze(1) for value in part.unbind(-1))
        value, _, d_sigma, d_gamma = voigt_with_derivatives(x, sigma, gamma)
        t, slope = law.opacity(area * value)
        opacity = opacity + t
        slopes += [slope * area * value, slope * area * d_sigma * sigma, slope * area * d_gamma * gamma]
    flux, steep = law.flux(opacity.reshape(-1), x.reshape(-1))
    return flux.reshape(x.shape), torch.stack(slopes, -1) * steep.reshape(x.shape).unsqueeze(-1)
