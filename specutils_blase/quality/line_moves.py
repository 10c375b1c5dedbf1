r"""Changes of the lines of a fit against their template, their mean and their scatter.

The data alone put a parameter of line j at :math:`u_j = x_j\,(d_j + p_j) / d_j` from its prior mean. Here x is its
fitted change, d the information of the data and p that of the prior. u scatters by the width s of the prior and by the
noise, :math:`s^2 + 1/d_j`. The mean over lines, with the inverse of that as weights, is zero and its scatter one where
the template is of this star.

Does not live here: limits of the changes (`assessment`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.parameters import KINDS
from ..physics.scatter import robust_sigma

HUBER_SIGMA = 3.0
"""Standard deviations above which a line's weight in the mean falls (Huber 1964)."""

REWEIGHTINGS = 10
"""Iterations of the weights."""


@dataclass(frozen=True)
class LineMoves:
    """Changes of one kind of parameter over the lines whose data have more information than their priors.

    Parameters
    ----------
    n_line : int
        Number of these lines.
    mean, error : float
        Their common change against the template, and its 1-sigma error if lines scatter as their priors say.
    spread : float
        Robust scatter about the mean in units of that of priors and noise; 1 is expected.
    """

    n_line: int
    mean: float
    error: float
    spread: float


@torch.no_grad()
def line_moves(
    fitted: Tensor, template_lines: Tensor, covariance: Tensor, prior_precision: Tensor, widths: dict[str, float]
) -> dict[str, LineMoves]:
    """Changes of the lines of a component.

    Parameters
    ----------
    fitted, template_lines : Tensor, (n_line, 4)
        Parameters of the lines in the fit and in the template, as `LineEmulator.line_parameters`.
    covariance : Tensor, (n_line, 4, 4)
        Covariance of each line, marginal over all else.
    prior_precision : Tensor, (n_line, 4)
        Precision of the moment-matched Gaussians of the priors at the solution; zero for held parameters.
    widths : dict
        Kind to the width of its prior.

    Returns
    -------
    dict of LineMoves
        By kind; without kinds of which fewer than three lines are informed by the data.
    """
    variance = covariance.diagonal(dim1=1, dim2=2).double()
    result = {}
    for column, kind in enumerate(KINDS):
        prior_information, total = prior_precision[:, column].double(), 1.0 / variance[:, column].clamp(min=1e-300)
        data = total - prior_information
        informed = (prior_information > 0) & (data * widths[kind] ** 2 > 1.0)
        if int(informed.sum()) < 3:
            continue
        moved = (fitted - template_lines)[informed, column].double() * (total / data)[informed]
        variances = widths[kind] ** 2 + 1.0 / data[informed]
        mean = moved.median()
        for _ in range(REWEIGHTINGS):
            deviation = (moved - mean).abs() / variances.sqrt()
            weight = (HUBER_SIGMA / deviation.clamp(min=1e-12)).clamp(max=1.0) / variances
            mean = (weight * moved).sum() / weight.sum()
        spread = robust_sigma((moved - mean) / variances.sqrt())
        result[kind] = LineMoves(
            int(informed.sum()), float(mean), math.sqrt(1.0 / float((1.0 / variances).sum())), spread
        )
    return result
