r"""How far the lines of a fit have moved from their template, all together and each for itself.

What the data alone say of a parameter of line j is :math:`u_j = x_j\,(d_j + p_j) / d_j` from its anchor, x being where
the fit has it, d the data's information and p that of its prior; it scatters by the width s of the prior and by the
noise, :math:`s^2 + 1/d_j`. The mean over lines, weighted by the inverse of that, is zero and its scatter one where the
template is of this star.

Does not live here: from where on lines have moved too far (`assessment`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.parameters import KINDS

OUTLIER = 3.0
"""Standard deviations from which on a line's weight in the mean falls (Huber 1964)."""

REWEIGHTINGS = 10


@dataclass(frozen=True)
class LineMoves:
    """Of one kind of parameter, over the lines of a component of which the data say as much as their priors.

    Parameters
    ----------
    n_line : int
        Number of these lines.
    mean, error : float
        Their common change against the template, and its 1-sigma error if lines scatter as their priors say.
    spread : float
        Robust scatter about the mean in units of what priors and noise make of it; 1 is expected.
    """

    n_line: int
    mean: float
    error: float
    spread: float


@torch.no_grad()
def line_moves(
    fitted: Tensor, anchored: Tensor, covariance: Tensor, prior_precision: Tensor, widths: dict[str, float]
) -> dict[str, LineMoves]:
    """How the lines of a component have moved.

    Parameters
    ----------
    fitted, anchored : Tensor, (n_line, 4)
        Parameters of the lines, as `LineEmulator.line_parameters`.
    covariance : Tensor, (n_line, 4, 4)
        Of each line over all else.
    prior_precision : Tensor, (n_line, 4)
        Of the Gaussians that stand for the priors at the solution; zero for what was held.
    widths : dict
        Kind to the width of its prior.

    Returns
    -------
    dict of LineMoves
        By kind; without those that no line tells.
    """
    variance = covariance.diagonal(dim1=1, dim2=2).double()
    result = {}
    for place, kind in enumerate(KINDS):
        own, total = prior_precision[:, place].double(), 1.0 / variance[:, place].clamp(min=1e-300)
        data = total - own
        told = (own > 0) & (data * widths[kind] ** 2 > 1.0)
        if int(told.sum()) < 3:
            continue
        moved = (fitted - anchored)[told, place].double() * (total / data)[told]
        variances = widths[kind] ** 2 + 1.0 / data[told]
        mean = moved.median()
        for _ in range(REWEIGHTINGS):
            pull = (moved - mean).abs() / variances.sqrt()
            weight = (OUTLIER / pull.clamp(min=1e-12)).clamp(max=1.0) / variances
            mean = (weight * moved).sum() / weight.sum()
        spread = 1.4826 * float(((moved - mean) / variances.sqrt()).abs().median())
        result[kind] = LineMoves(int(told.sum()), float(mean), math.sqrt(1.0 / float((1.0 / variances).sum())), spread)
    return result
