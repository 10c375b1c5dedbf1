r"""What neighbouring residuals that are alike add to the errors of the velocities.

A line that a template lacks, or has too strong, leaves residuals over its whole width. Jitter pays for their size, but
weighs pixels as if each erred for itself. Errors of residuals r reach a parameter as :math:`\sum_i z_i r_i`, so that

.. math:: σ^2 = (A^{-1})_{kk} + 2 \sum_{l>0} ρ_l \sum_i u_i u_{i+l}, \quad u = W^{1/2} J A^{-1} e_k,

A being JᵀWJ plus the precision of the priors and ρ the autocorrelation of the residuals in units of their noise. The
sum ends at the first lag whose ρ is no longer beyond chance (an initial positive sequence, Geyer 1992, Stat. Sci. 7,
473): free lines leave a lobe below zero behind it, which is no noise. Residuals of a complete model are not looked at.

Does not live here: the jitter (`noise`), what orders say one by one (`order_scatter`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ...inference.linear.cholesky import Factor
from ...inference.linear.normal_equations import NormalEquations
from ...inference.objective import Objective

BY_CHANCE = 2.0
"""Standard deviations of an autocorrelation of white noise, below which a lag does not count."""


def autocorrelation(residual: Tensor, counts: Tensor) -> Tensor:
    """Autocorrelation of residuals at lags 1, 2, … as long as it is beyond chance, (n_lag,).

    Parameters
    ----------
    residual : Tensor, (n,)
        In units of the noise.
    counts : Tensor, (n,) bool
        Which pixels count.
    """
    values, weight = torch.where(counts, residual, 0.0), counts.to(residual)
    square = float(values.square().sum() / weight.sum().clamp(min=1.0))
    found = []
    for lag in range(1, len(values)):
        pairs = float((weight[lag:] * weight[:-lag]).sum())
        if not pairs or not square:
            break
        rho = float((values[lag:] * values[:-lag]).sum()) / pairs / square
        if rho < BY_CHANCE / math.sqrt(pairs):
            break
        found.append(rho)
    return residual.new_tensor(found)


@torch.no_grad()
def correlation_factor(
    objective: Objective, normal: NormalEquations, factor: Factor, column: int, incomplete: Sequence[bool]
) -> float:
    """Factor on the error of one parameter, 1 where residuals are as white as its error takes them to be.

    Parameters
    ----------
    objective : Objective
    normal : NormalEquations
        Of the objective at its solution.
    factor : Factor
        Of these equations.
    column : int
        Which parameter.
    incomplete : sequence of bool
        Orders whose model lacks something.
    """
    if not any(incomplete):
        return 1.0
    unit = torch.zeros_like(normal.prior_precision)
    unit[column] = 1.0
    covariance = factor.solve(unit)
    variance = float(covariance[column])
    split = objective.free.split
    influences, residuals = split(normal.push_forward(covariance)), split(normal.residual)
    added = 0.0
    for influence, residual, weight, lacks in zip(
        influences, residuals, split(objective.weight), incomplete, strict=True
    ):
        rho = autocorrelation(residual, weight > 0.0).tolist() if lacks else []
        for lag, one in enumerate(rho, start=1):
            added += 2.0 * one * float((influence[lag:] * influence[:-lag]).sum())
    return math.sqrt(max(1.0, 1.0 + added / variance)) if variance > 0.0 else 1.0
