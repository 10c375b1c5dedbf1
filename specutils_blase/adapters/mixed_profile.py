r"""blasé's "pseudo-Voigt", and exact Voigts that give the same flux.

blasé 0.3 mixes a Lorentzian and a Gaussian at their *own* widths,

.. math:: P(x) = η\,L(x; γ) + (1 - η)\,G(x; σ),

with the mixing η of a pseudo-Voigt whose parts would have the common width of the whole (Thompson, Cox & Hastings 1987,
J. Appl. Cryst. 20, 79). It is no approximation to a Voigt profile (its peak is 67 % too high at σ = γ), and its σ and γ
are numbers, not widths. One exact Voigt comes within a thousandth of the flux of every second such line, two or three
together of nearly all. Where its product would exceed 1, blasé cuts the flux off at zero: such a corner takes up to
eight.

Does not live here: the files (`blase`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..profiles import voigt_with_derivatives
from ..saturation import SaturationLaw

N_NODE = 40
"""A quarter of the number of offsets from the centre at which fluxes are compared."""

ITERATIONS = 60
BLOCK = 1024
MOST_VOIGTS = 8

USUAL, LAST_RESORT = 3, 3.0
"""Voigts that any line may take; and how many times the tolerance a line must be off to take more."""

LARGEST = 100.0
"""Area that one Voigt may have, over that of the line."""


def mixed_profile(x: Tensor, sigma: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """blasé's profile P(x), in 1/Å and with its own rounded constants, and its mixing η."""
    gauss, lorentz = 2.3548 * sigma, 2.0 * gamma
    powers = (1.0, 2.69269, 2.42843, 4.47163, 0.07842, 1.0)
    whole = sum(c * gauss ** (5 - k) * lorentz**k for k, c in enumerate(powers)) ** 0.2
    ratio = lorentz / whole
    mixing = 1.36603 * ratio - 0.47719 * ratio**2 + 0.11116 * ratio**3
    lorentzian = gamma / (3.141592654 * (gamma**2 + x**2))
    gaussian = torch.exp(-0.5 * (x / sigma) ** 2) / (2.5066 * sigma)
    return mixing * lorentzian + (1.0 - mixing) * gaussian, mixing


def exact_voigts(
    area: Tensor, sigma: Tensor, gamma: Tensor, law: SaturationLaw, tolerance: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Exact Voigts whose flux under `law` is that of mixed profiles: as few a line as it takes.

    Levenberg-Marquardt on all lines together, in ln a, ln σ, ln γ of each Voigt.

    Parameters
    ----------
    area, sigma, gamma : Tensor, (n_line,)
        blasé's, in Å.
    law : SaturationLaw
    tolerance : float
        Difference of the flux of a line from which on a second and a third Voigt are spent on it; from `LAST_RESORT`
        times as much on, up to `MOST_VOIGTS`.

    Returns
    -------
    parameters : Tensor, (n_line, MOST_VOIGTS, 3)
        ln a, ln σ, ln γ [Å] of each Voigt; the area is zero (ln a = -inf) where a line needs fewer.
    count : Tensor of int, (n_line,)
        How many.
    error : Tensor, (n_line,)
        Largest difference of the flux that is left.
    """
    parameters = torch.full((area.numel(), MOST_VOIGTS, 3), -math.inf, dtype=torch.float64)
    parameters[:, :, 1:] = 0.0
    count = torch.zeros(area.numel(), dtype=torch.long)
    error = torch.full((area.numel(),), math.inf, dtype=torch.float64)
    for n_voigt in range(1, MOST_VOIGTS + 1):
        limit = tolerance if n_voigt <= USUAL else LAST_RESORT * tolerance
        for line in (error > limit).nonzero().squeeze(-1).split(BLOCK):
            for start in _starts(area[line], sigma[line], gamma[line], parameters[line], n_voigt):
                fitted, left = _fit(area[line], sigma[line], gamma[line], start, law)
                better = left < error[line]
                parameters[line[better], :n_voigt] = fitted[better]
                count[line[better]], error[line[better]] = n_voigt, left[better]
    return parameters, count, error


MORE = ((0.05, 0.5), (0.3, 0.3), (0.01, 0.8), (1.0, 0.15))
"""Areas and Gaussian widths, over the line's, that a fourth Voigt and those after it start from."""


def _starts(area, sigma, gamma, fewer, n_voigt) -> list[Tensor]:
    """First parameters: the whole; its Lorentzian and its Gaussian; those fitted, with a narrow one more."""
    mixing = mixed_profile(torch.zeros_like(sigma), sigma, gamma)[1].clamp(1e-3, 1.0 - 1e-3)
    pair = (area * mixing, 0.3 * sigma, gamma), (area * (1.0 - mixing), sigma, 0.1 * gamma)
    narrow = torch.minimum(sigma, gamma)
    if n_voigt == 1:
        return [_stacked([(area, sigma, gamma)])]
    if n_voigt == 2:
        return [_stacked(pair)]
    known = fewer[:, : n_voigt - 1]
    usable = torch.isfinite(known).all(-1).all(-1)
    if n_voigt == 3:
        known = torch.where(usable[:, None, None], known, _stacked(pair))
        added = [(0.03 * area, 0.3 * narrow, 0.1 * narrow)]
    else:  # a line that has got no better with one more since
        known = torch.where(torch.isfinite(known), known, -8.0)
        added = [(a * area, s * sigma, 0.01 * narrow) for a, s in MORE]
    return [torch.cat([known, _stacked([one])], 1) for one in added]


def _stacked(parts) -> Tensor:
    """Logarithms of areas and widths, (n_line, n_voigt, 3)."""
    return torch.stack([torch.stack([value.log() for value in part], -1) for part in parts], 1)


def _nodes(area: Tensor, sigma: Tensor, gamma: Tensor) -> Tensor:
    """Offsets [Å] over the Gaussian, ever wider apart over the Lorentzian and its wings, and about a corner.

    The corner is where blasé cuts the flux off; without one, the nodes for it are about the centre.
    """
    core = 2.3548 * sigma.unsqueeze(1) * torch.linspace(0.0, 2.5, N_NODE, dtype=torch.float64)
    wing = 0.2 * gamma.unsqueeze(1) * torch.sinh(torch.linspace(0.1, 6.0, N_NODE, dtype=torch.float64))
    inside, outside = torch.zeros_like(sigma), wing[:, -1]
    for _ in range(50):
        middle = 0.5 * (inside + outside)
        deep = area * mixed_profile(middle, sigma, gamma)[0] > 1.0
        inside, outside = torch.where(deep, middle, inside), torch.where(deep, outside, middle)
    corner = outside.unsqueeze(1) * torch.linspace(0.0, 1.5, 2 * N_NODE, dtype=torch.float64)
    return torch.cat([core, wing, corner], 1)


def _fit(area, sigma, gamma, start: Tensor, law) -> tuple[Tensor, Tensor]:
    x = _nodes(area, sigma, gamma)
    mixed = area.unsqueeze(1) * mixed_profile(x, sigma.unsqueeze(1), gamma.unsqueeze(1))[0]
    # blasé's own ways: a product cut off at zero flux, or the exponential of the sum.
    target = 1.0 - mixed.clamp(0.0, 0.999999999) if law.name == "linear" else torch.exp(-mixed)
    n_line, n_voigt, _ = start.shape
    # Wings of many lines add up, so that there less error will do than in the core.
    weight = 1.0 + (x / (3.0 * (2.3548 * sigma + 2.0 * gamma)).unsqueeze(1)).clamp(max=10.0)
    parameters, damping = start, torch.full((n_line,), 1e-3, dtype=torch.float64)
    flux, slope = _flux(x, parameters, law)
    residual = (flux - target) * weight
    cost = residual.square().sum(1)
    for _ in range(ITERATIONS):
        weighted = slope * weight.unsqueeze(-1)
        normal = weighted.mT @ weighted
        gradient = (weighted.mT @ residual.unsqueeze(-1)).squeeze(-1)
        diagonal = torch.diagonal(normal, dim1=-2, dim2=-1)
        floor = 1e-9 * diagonal.amax(1, keepdim=True) + 1e-14
        damped = normal + torch.diag_embed(damping.unsqueeze(1) * diagonal + floor)
        step = torch.linalg.solve(damped, -gradient).clamp(-0.7, 0.7).reshape(n_line, n_voigt, 3)
        trial = (parameters + step).clamp(-25.0, 10.0)
        trial[..., 0] = torch.minimum(trial[..., 0], (LARGEST * area).log().unsqueeze(1))
        new_flux, new_slope = _flux(x, trial, law)
        new_residual = (new_flux - target) * weight
        new_cost = new_residual.square().sum(1)
        good = new_cost < cost
        parameters = torch.where(good[:, None, None], trial, parameters)
        residual, cost = torch.where(good[:, None], new_residual, residual), torch.where(good, new_cost, cost)
        slope = torch.where(good[:, None, None], new_slope, slope)
        damping = torch.where(good, 0.2 * damping, 5.0 * damping).clamp(1e-10, 1e8)
    return parameters, (residual / weight).abs().amax(1)


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
