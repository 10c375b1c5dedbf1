"""Starting values of a fit: noise where none is given, continuum, and velocities with all lines held.

Does not live here: the first guess of the radial velocity (`velocity`), the fit itself (`fitting`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .echelle import EchelleModel
from .instrument import Continuum
from .least_squares import minimize
from .model import ForwardModel
from .parameters import FreeParameters
from .priors import LinePriors
from .problem import AnchoredProblem

LOOSE_ITERATIONS = 30
"""Limit on the iterations of each preliminary stage."""


def scatter(flux: Tensor, good: Tensor) -> Tensor:
    """Noise from third differences of neighbouring pixels (DER_SNR, Stoehr et al. 2008), the same for every pixel."""
    values = flux[good]
    if values.numel() < 8:
        return torch.full_like(flux, 0.01)
    difference = (2.0 * values[2:-2] - values[:-4] - values[4:]).abs().median()
    return torch.full_like(flux, max(1.482602 / math.sqrt(6.0) * float(difference), 1e-4))


@torch.no_grad()
def start_continuum(model: ForwardModel, flux: Tensor, weight: Tensor) -> None:
    """Linear least squares of the continuum with everything else at its start, five sigma outliers clipped."""
    if not isinstance(model.continuum, Continuum):
        return
    design = (model.stages().binned * model.continuum.basis).T
    root = weight.sqrt()
    for _ in range(3):
        solution = torch.linalg.lstsq(design * root.unsqueeze(1), (flux * root).unsqueeze(1)).solution.squeeze(1)
        residual = (flux - design @ solution).abs()
        limit = 5.0 * 1.4826 * residual[root > 0].median()
        root = torch.where(residual > limit, 0.0, weight.sqrt())
    model.continuum.coefficients.copy_(solution)


def start_velocities(
    model: ForwardModel | EchelleModel, free: tuple[str, ...], fluxes: list[Tensor], weights: list[Tensor]
) -> None:
    """Velocities and continuum with all lines held at their clones; data and weights of each order.

    Thousands of line widths can imitate a rotation: started at the wrong v sin i with precise data, they do, and the
    fit ends there (at S/N 2000, 1.2 km/s off with a reduced χ² of 3.5). Held lines cannot.
    """
    moving = tuple(name for name in free if name in ("rv", "vsini", "continuum"))
    if model.star is None or not {"rv", "vsini"} & set(moving):
        return
    nothing = {name: torch.zeros(0, dtype=torch.long) for name in model.components}
    layout = FreeParameters(model, dict.fromkeys(model.components, ()), nothing, moving)
    if len(layout):
        data, weight = layout.merge(fluxes), layout.merge(weights)
        problem = AnchoredProblem(layout, data, weight, dict.fromkeys(model.components, LinePriors()))
        minimize(problem, max_iterations=LOOSE_ITERATIONS, absolute_tolerance=max(1.0, 1e-3 * problem.n_datum))


LEAST_CORRELATION = 0.1
"""Correlation of an order with its model below which it does not look like its templates."""

VISIBLE = 5.0
"""Features of the model, in units of the noise, from which on they must be seen in the data."""

SAME_PLACE = 0.9
"""Common part of two orders' wavelengths from which on one of them is taken for wrong."""


@torch.no_grad()
def implausible(orders, fluxes: list[Tensor], weights: list[Tensor]) -> dict[int, str]:
    """Orders that do not show what their wavelengths promise, and the reason; all lines still held at their clones.

    An order whose model has features well above the noise, none of which the data show, has the wrong wavelengths or is
    no spectrum. Two orders that claim the same wavelengths are not both right: the one that looks less like the model
    is left out.
    """
    correlations, visible = [], []
    for order, flux, weight in zip(orders, fluxes, weights, strict=True):
        root = weight.sqrt()
        trend = order.continuum.basis.T * root.unsqueeze(1)
        values = torch.stack([flux, order()], dim=1).double() * root.unsqueeze(1)
        data, model = (values - trend @ torch.linalg.lstsq(trend, values).solution).unbind(1)
        correlations.append(float(data @ model / (data.norm() * model.norm()).clamp(min=1e-300)))
        visible.append(float(model.square().sum() / (root > 0).sum()) ** 0.5 > VISIBLE)
    wrong = {
        k: f"does not look like its templates (correlation {correlation:.2f}): are its wavelengths right?"
        for k, correlation in enumerate(correlations)
        if visible[k] and correlation < LEAST_CORRELATION
    }
    spans = [(float(order.pixels.edges.min()), float(order.pixels.edges.max())) for order in orders]
    for one in range(len(spans)):
        for other in range(one):
            common = min(spans[one][1], spans[other][1]) - max(spans[one][0], spans[other][0])
            shorter = min(spans[one][1] - spans[one][0], spans[other][1] - spans[other][0])
            if common > SAME_PLACE * shorter and not {one, other} & set(wrong):
                worse = one if correlations[one] < correlations[other] else other
                if correlations[worse] < 0.5 * max(correlations[one], correlations[other]):
                    wrong[worse] = "has the wavelengths of another order, which looks more like the templates"
    return wrong
