r"""A telluric clone brought to another night: one optical-depth factor a species, and a small shift of them all.

A template computed for one airmass, humidity and wind differs from a night's atmosphere first of all by how much there
is of each molecule. A handful of numbers, measured by all orders together, take the lines most of the way before any
of them is set free. Does not live here: the fit that follows (`fitting`).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...inference.bounds import largest_factor
from ...model.component import product
from ...model.echelle import EchelleModel
from ...model.order import ForwardModel
from ...physics.grids import SPEED_OF_LIGHT
from ...physics.kernels import convolve

logger = logging.getLogger(__name__)

FACTOR_PRIOR = 1.0
"""Standard deviation of ln(optical depth factor)."""

SHIFT_PRIOR = 0.3
"""Standard deviation of the shift, km/s: winds, and the stability of the wavelength scale."""

SEEN = 1e-4
"""Optical depth that a species must reach somewhere in the data to count as seen."""

LARGEST_SHIFT = 3.0
"""km/s."""

ITERATIONS = 8

FAINT = 0.02
"""Optical depth that lines must reach somewhere in the data for a transmission to be scaled."""

TAILS = 2.0
"""Degrees of freedom of Student's t, by which pixels weigh less that a sky cannot explain."""


@dataclass(frozen=True)
class TelluricScale:
    """Outcome of `scale_telluric`.

    Parameters
    ----------
    factors : dict
        Species ("" where unknown) to the factor on its optical depth.
    shift : float
        Shift of all lines, km/s.
    errors : dict
        1-sigma error of each factor. A species of which the data show nothing keeps the factor 1 and gets the error of
        the prior, 1.
    shift_error : float
        1-sigma error of the shift, km/s.

    Notes
    -----
    Errors are multiplied by the square root of the reduced χ² where that exceeds 1: at this stage star and lines are
    only nearly right. What that does to the factors beyond noise, they do not tell.
    """

    factors: dict[str, float]
    shift: float
    errors: dict[str, float]
    shift_error: float

    @classmethod
    def of(cls, names: list[str], state: Tensor, error: Tensor) -> TelluricScale:
        """From ln f of each species, and the shift, behind one another."""
        factors = dict(zip(names, state[:-1].exp().tolist(), strict=True))
        relative = dict(zip(names, error[:-1].tolist(), strict=True))
        errors = {name: factor * relative[name] for name, factor in factors.items()}
        return cls(factors, state[-1].item(), errors, error[-1].item())


@torch.no_grad()
def scale_telluric(model: ForwardModel | EchelleModel, fluxes: list[Tensor], weights: list[Tensor]) -> TelluricScale:
    r"""Fit the factors and the shift, and apply them to the areas and centres of the model's telluric lines.

    Gauss-Newton on :math:`F = P\,(S \cdot \exp(-\sum_s f_s τ_s(λ(1 - v/c))))` with the star S held, P being line
    spread, pixels and a free continuum an order, which is projected out. Optical depths are summed once.

    Parameters
    ----------
    model : ForwardModel or EchelleModel
        With a telluric component; continua and star near their values.
    fluxes, weights : list of Tensor
        Data and inverse variances of each order.
    """
    orders = model.orders
    emulator = model.atmosphere.emulator
    names, member = _species(emulator)
    depths = [_optical_depths(order, member, len(names)) for order in orders]
    stars = [_beside(order) for order in orders]
    best, cost, normal, precision = _fitted(names, orders, stars, depths, fluxes, weights)
    emulator.change_together(ln_area=best[member], shift=best[-1])
    result = TelluricScale.of(names, best, _errors(normal, precision, cost, weights))
    logger.info("telluric optical depths scaled by %s, shifted by %.3f km/s", result.factors, result.shift)
    for name, depth in zip(names, torch.stack([each.amax(1) for each in depths]).amax(0).tolist(), strict=True):
        if depth < SEEN:
            logger.info("the data show no lines of %s: its factor stays 1", name or "the telluric template")
    return result


@torch.no_grad()
def scaled_transmissions(
    model: ForwardModel | EchelleModel, fluxes: list[Tensor], weights: list[Tensor]
) -> list[Tensor]:
    """Transmission on the pixels of each order of a sky with the amounts of these data, whatever star is behind it.

    As `scale_telluric`, for a model without a star, which stays as it is. The fit is made twice, the second time with
    little weight on what the first cannot explain: a star's lines must not pass for telluric ones.

    Parameters
    ----------
    model : ForwardModel or EchelleModel
        With telluric lines only.
    fluxes, weights : list of Tensor
        Data and inverse variances of each order.

    Returns
    -------
    list of Tensor, (n_pixel,)
    """
    orders = model.orders
    names, member = _species(model.atmosphere.emulator)
    depths = [_optical_depths(order, member, len(names)) for order in orders]
    stars = [None] * len(orders)
    state = depths[0].new_zeros(len(names) + 1)
    if any(bool((depth > FAINT).any()) for depth in depths):
        for _ in range(2):
            state = _fitted(names, orders, stars, depths, fluxes, weights, state)[0]
            weights = [_trusted(*each, state) for each in zip(orders, depths, fluxes, weights, strict=True)]
    return [
        order.through_instrument((-_scaled(order, depth, state)[0].sum(0)).exp())
        for order, depth in zip(orders, depths, strict=True)
    ]


def _beside(order: ForwardModel) -> Tensor | None:
    """All but the tellurics, on the nodes of an order; None for 1."""
    return product(order.parts, order.stages().parts, but=order.atmosphere.name)


def _species(emulator) -> tuple[list[str], Tensor]:
    """Names of the species, and which of them each line is of."""
    species = list(emulator.species or [""] * len(emulator))
    names = sorted(set(species))
    return names, torch.tensor([names.index(each) for each in species], device=emulator.center.device)


def _fitted(names, orders, stars, depths, fluxes, weights, start: Tensor | None = None):
    """ln f of each species and the shift at the least cost, that cost, and its normal matrix with the priors'."""
    like = {"dtype": torch.float64, "device": depths[0].device}
    limits = torch.tensor([*(math.log(largest_factor(name)) for name in names), LARGEST_SHIFT], **like)
    precision = torch.tensor([FACTOR_PRIOR**-2] * len(names) + [SHIFT_PRIOR**-2], **like)
    state = torch.zeros(len(names) + 1, **like) if start is None else start
    best, cost, damping = state, math.inf, 1e-3
    normal = pull = None
    for _ in range(3 * ITERATIONS):
        sums = [_order_sums(*each, state) for each in zip(orders, stars, depths, fluxes, weights, strict=True)]
        now = sum(float(chi2) for chi2, _, _ in sums) + float((precision * state.square()).sum())
        if now < cost:
            promised = cost - now
            best, cost, damping = state, now, max(damping / 5.0, 1e-6)
            normal = sum(a for _, a, _ in sums) + torch.diag(precision)
            pull = sum(b for _, _, b in sums) - precision * state
            if promised < 1e-4 * cost:
                break
        else:
            damping *= 10.0
            if damping > 1e4:
                break
        step = torch.linalg.solve(normal + damping * torch.diag(torch.diagonal(normal)), pull)
        state = (best + step.clamp(-1.0, 1.0)).clamp(-limits, limits)
    return best, cost, normal, precision


def _errors(normal: Tensor, precision: Tensor, cost: float, weights: list[Tensor]) -> Tensor:
    """1-sigma errors of ln f of each species and of the shift, priors included."""
    n_data = sum(int((weight > 0).sum()) for weight in weights)
    inflation = max(1.0, cost / max(n_data - normal.shape[0], 1))
    data = (normal - torch.diag(precision)) / inflation
    return torch.linalg.inv(data + torch.diag(precision)).diagonal().sqrt()


def _optical_depths(order: ForwardModel, member: Tensor, n_species: int) -> Tensor:
    """-ln transmission of each species' lines on the nodes of an order, (n_species, n_node)."""
    view = order.atmosphere.emulator
    here = member[view.index] if hasattr(view, "index") else member
    depths = []
    for number in range(n_species):
        lines = (here == number).nonzero().squeeze(-1)
        if lines.numel():
            flux = view.subset(lines)(order.sampling)
            depths.append(-flux.clamp(min=1e-12).log())
        else:
            depths.append(order.sampling.wavelength.new_zeros(order.sampling.wavelength.shape))
    return torch.stack(depths)


def _scaled(order, depths: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Optical depths of the species with their factors and the shift, and their derivatives to the shift [1/cell]."""
    cells = state[-1] / SPEED_OF_LIGHT / order.sampling.step
    stencil = depths.new_tensor([-1 / 12, 2 / 3, 0.0, -2 / 3, 1 / 12])
    slope = convolve(depths, stencil)  # per cell
    bend = convolve(slope, stencil)
    factors = state[:-1].exp().unsqueeze(1)
    return factors * (depths - cells * slope + 0.5 * cells**2 * bend), factors * (slope - cells * bend)


def _order_sums(order, star: Tensor | None, depths: Tensor, flux: Tensor, weight: Tensor, state: Tensor):
    """χ², JᵀWJ and JᵀWr of one order, its continuum being refitted by linear least squares."""
    scaled, slope = _scaled(order, depths, state)
    sky = (-scaled.sum(0)).exp()
    product = sky if star is None else sky * star
    per_shift = slope.sum(0) / (SPEED_OF_LIGHT * order.sampling.step)
    spectra = torch.cat([product.unsqueeze(0), -scaled * product, (per_shift * product).unsqueeze(0)])
    spectra = order.through_instrument(spectra)
    root = weight.sqrt()
    design, coefficients = _continuum(order, spectra[0], flux, root)
    columns = (spectra[1:] * (coefficients @ order.continuum.basis) * root).T
    columns = columns - design @ torch.linalg.lstsq(design, columns).solution
    residual = flux * root - design @ coefficients
    return residual.square().sum(), columns.T @ columns, columns.T @ residual


def _continuum(order, binned: Tensor, flux: Tensor, root: Tensor) -> tuple[Tensor, Tensor]:
    """Continuum terms times what is seen of them, in units of the noise, and their best coefficients."""
    design = (binned * order.continuum.basis * root).T
    return design, torch.linalg.lstsq(design, (flux * root).unsqueeze(1)).solution.squeeze(1)


def _trusted(order, depths: Tensor, flux: Tensor, weight: Tensor, state: Tensor) -> Tensor:
    """Weights less where a sky cannot explain the data, by Student's t of `TAILS` degrees of freedom."""
    binned = order.through_instrument((-_scaled(order, depths, state)[0].sum(0)).exp())
    root = weight.sqrt()
    design, coefficients = _continuum(order, binned, flux, root)
    left = (flux * root - design @ coefficients)[weight > 0]
    width = 1.4826 * left.abs().median().clamp(min=1e-30)
    trusted = weight.clone()
    trusted[weight > 0] *= (TAILS + 1.0) / (TAILS + (left / width).square())
    return trusted
