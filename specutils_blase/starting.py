"""Starting values of a fit: noise where none is given, continuum, and velocities with all lines held.

Does not live here: the first guess of the radial velocity (`velocity`), the fit itself (`fitting`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .instrument import Continuum
from .least_squares import minimize
from .model import ForwardModel
from .parameters import FreeParameters
from .priors import LinePriors
from .problem import AnchoredProblem

LOOSE_ITERATIONS = 15
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


def start_velocities(model: ForwardModel, free: tuple[str, ...], flux: Tensor, weight: Tensor) -> None:
    """Velocities and continuum with all lines held at their clones.

    Thousands of line widths can imitate a rotation: started at the wrong v sin i with precise data, they do, and the
    fit ends there (at S/N 2000, 1.2 km/s off with a reduced χ² of 3.5). Held lines cannot.
    """
    moving = tuple(name for name in free if name in ("rv", "vsini", "continuum"))
    if model.star is None or not {"rv", "vsini"} & set(moving):
        return
    nothing = {name: torch.zeros(0, dtype=torch.long) for name in model.components}
    layout = FreeParameters(model, dict.fromkeys(model.components, ()), nothing, moving)
    if len(layout):
        problem = AnchoredProblem(layout, flux, weight, dict.fromkeys(model.components, LinePriors()))
        minimize(problem, max_iterations=LOOSE_ITERATIONS, absolute_tolerance=1.0)
