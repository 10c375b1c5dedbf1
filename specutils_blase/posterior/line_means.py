r"""Posterior means of line parameters, which differ from the posterior mode of the fit.

The mean of a skewed posterior differs from its mode. To first order in the change of the curvature over an error, the
mean is the point at which the mean slope of ln p over the Gaussian N(θ̂, A⁻¹) vanishes,

.. math:: \bar θ - \hat θ = A^{-1} \Big( h + \tfrac{1}{2} \sum_k ∂_{ξ_k}^2\, J^T W (d - F) \Big), \qquad
    \sum_k ξ_k ξ_k^T = A^{-1},

The sum is the gradient of the curvature itself (Tierney & Kadane 1986; the first term of variational inference by a
Gaussian, Opper & Archambeau 2009). h is the gradient of Student's t beyond the moment-matched Gaussians of the priors
(`marginals.mean_pull`). Parameters that all lines share are at the mean of their marginals already; here they are held.

The result is of first order. It fails for posteriors far from a Gaussian: two lines that share one feature, or a line
with two modes because data and prior disagree. There only draws of the posterior itself would help. Further iterations
from the new mean do not converge there.

Does not live here: the curvature (`laplace`), the moment-matched Gaussians and the means of shared parameters
(`marginals`).
"""

from __future__ import annotations

import math
from copy import deepcopy

import numpy as np
import torch
from astropy.table import QTable
from torch import Tensor
from tqdm.auto import tqdm

from ..inference.linear.cholesky import Factor
from ..ledger.columns import KMS
from ..model.parameters import KINDS, FreeParameters
from .laplace import by_line, free_parameters, needed, normal_equations, of_lines

SPREAD = 0.3
"""Step to both sides for second derivatives, in units of an error."""

LEAST_ROOM = 0.03
"""Smallest such step, near a bound; with less room the direction is left out."""

MOST_LINE_SHIFT = 1.0
"""Largest shift of a mean, in its errors; the first order is not valid beyond."""

KIND_MEANINGS = {
    "ln_area": "the logarithm of area [A]",
    "ln_sigma": "the logarithm of sigma [A]",
    "ln_gamma": "the logarithm of gamma [A]",
    "rv_offset": "rv_offset",
}

LINE_MEAN_COLUMNS = {"component": "star or telluric", "id": "The line's id in the ledger"}
for _kind, _meaning in KIND_MEANINGS.items():
    LINE_MEAN_COLUMNS |= {
        _kind: f"Posterior mean of {_meaning}",
        f"{_kind}_err": f"1-sigma error of {_meaning} about its mean; 0 where it was held",
        f"{_kind}_shift": "Mean minus the ledger's value, in the ledger's errors",
    }
"""Name → meaning of every column of `FitResult.line_means`."""


def line_means(result, progress: bool = True) -> QTable:
    """Posterior means of all lines; see `FitResult.line_means`."""
    curvature = needed(result)
    if curvature.mean_pull is None:
        raise ValueError(
            "this result does not hold the gradients of its priors, as files of older versions do not: fit again, or "
            "take the ledger, whose lines are at the posterior mode"
        )
    free = free_parameters(deepcopy(result.model), result.parameters, curvature)
    data = result.data if isinstance(result.data, list) else [result.data]
    flux, weight = free.merge([order_data.flux.double() for order_data in data]), free.merge(curvature.weight)
    normal, start = normal_equations(free, curvature), free.read()
    factor = normal.factor()
    gradient = of_lines(free, curvature.mean_pull) + _pull_of_curvature(free, flux, weight, factor, start, progress)
    variance = factor.variance()
    farthest = MOST_LINE_SHIFT * variance.sqrt()
    step = _with_shared_held(free, factor, factor.solve(gradient)).clamp(-farthest, farthest)
    free.write(start + step)
    after = normal_equations(free, curvature).factor().variance()
    return _table(free, *(by_line(free, values) for values in (step, variance, after)))


def _pull_of_curvature(
    free: FreeParameters, flux: Tensor, weight: Tensor, factor: Factor, start: Tensor, progress: bool
) -> Tensor:
    """Half the second derivatives of JᵀW(d - F) along the columns of a root of the covariance, summed."""

    def gradient_at(vector: Tensor) -> Tensor:
        free.write(vector)
        model, _, back = free.evaluate()
        return back(weight * (flux - model))

    at_start, total = gradient_at(start), torch.zeros_like(start)
    probes = factor.probes(torch.Generator().manual_seed(0))
    for probe in tqdm(probes, desc="means of lines", disable=not progress, leave=False, delay=2.0):
        spread = min(SPREAD, _room(free, start, probe))
        if spread < LEAST_ROOM:
            continue
        ahead, back = (gradient_at(start + side * spread * probe) for side in (1.0, -1.0))
        total += 0.5 * (ahead + back - 2.0 * at_start) / spread**2
    free.write(start)
    return total


def _room(free: FreeParameters, start: Tensor, probe: Tensor) -> float:
    """Largest step both ways along a probe, within the bounds below which the model is not smooth."""
    room = SPREAD
    for key, owned in free.owned.items():
        columns, lowest = free.global_slices[key], owned.bounds[0]
        if math.isfinite(lowest) and float(probe[columns].abs().max()):
            room = min(room, float(((start[columns] - lowest) / probe[columns].abs()).min()))
    return room


def _with_shared_held(free: FreeParameters, factor: Factor, step: Tensor) -> Tensor:
    """A step in all parameters, with those that all lines share held and the others following them."""
    slices = [free.global_slices[name] for name in free.at_posterior_mean]
    shared = [k for columns in slices for k in range(columns.start, columns.stop)]
    if not shared:
        return step
    unit = torch.eye(len(step), dtype=step.dtype, device=step.device)[shared]
    response = torch.stack([factor.solve(column) for column in unit])
    return step - torch.linalg.solve(response[:, shared], step[shared]) @ response


def _table(
    free: FreeParameters, step: dict[str, Tensor], before: dict[str, Tensor], after: dict[str, Tensor]
) -> QTable:
    """One row a line of the ledger, from steps to the means and variances at the mode and at the means."""
    emulators = free.model.components
    mean = torch.cat([emulator.line_parameters().detach().double() for emulator in emulators.values()])
    step, before, after = (torch.cat([values[name] for name in emulators]) for values in (step, before, after))
    shift = torch.where(before > 0.0, step / before.sqrt(), 0.0)
    table = QTable()
    table["component"] = np.repeat(list(emulators), [len(emulator) for emulator in emulators.values()])
    table["id"] = np.concatenate([np.arange(len(emulator)) for emulator in emulators.values()])
    for k, kind in enumerate(KINDS):
        unit = KMS if kind == "rv_offset" else 1.0
        table[kind] = mean[:, k].numpy() * unit
        table[f"{kind}_err"] = after[:, k].sqrt().numpy() * unit
        table[f"{kind}_shift"] = shift[:, k].numpy()
    for name in table.colnames:
        table[name].info.description = LINE_MEAN_COLUMNS[name]
    return table
