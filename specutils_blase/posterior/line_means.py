r"""Means of lines: where the posterior's bulk is, beside the summit at which a fit leaves them.

A posterior that leans to one side has its mean beside its summit. To first order in how much the curvature changes over
an error, the mean is where the mean slope of ln p over the Gaussian N(θ̂, A⁻¹) vanishes,

.. math:: \bar θ - \hat θ = A^{-1} \Big( h + \tfrac{1}{2} \sum_k ∂_{ξ_k}^2\, J^T W (d - F) \Big), \qquad
    \sum_k ξ_k ξ_k^T = A^{-1},

the sum being the pull of the curvature itself (Tierney & Kadane 1986; the first term of variational inference by a
Gaussian, Opper & Archambeau 2009), and h the pull that Student's t has beyond the Gaussians that stand for the priors
(`stand_in.mean_pull`). What all lines share stands at the mean of its own marginal already; here it is held.

It is first order: of lines whose posterior is far from any Gaussian, such as two that share one feature, or one of
which data and prior say so different things that it has two summits, neither this nor the summit tells much, and only
draws of the posterior itself would. Further iterations, the same at the mean found, do not settle there.

Does not live here: the curvature (`posterior`), the Gaussians and the means of what is shared (`stand_in`).
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
"""Part of an error by which the model is moved to both sides, for second derivatives."""

LEAST_SPREAD = 0.03
"""Part of an error below which there is no room to both sides."""

FARTHEST = 1.0
"""Largest shift of a mean, in its errors; beyond, the first order says nothing."""

MEANINGS = {
    "ln_area": "the logarithm of area [A]",
    "ln_sigma": "the logarithm of sigma [A]",
    "ln_gamma": "the logarithm of gamma [A]",
    "rv_offset": "rv_offset",
}

COLUMNS = {"component": "star or telluric", "id": "The line's id in the ledger"}
for _kind, _meaning in MEANINGS.items():
    COLUMNS |= {
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
            "this result does not hold how its priors lean, as files of older versions do not: fit again, or take the "
            "ledger, whose lines stand at the summit of the posterior"
        )
    free = free_parameters(deepcopy(result.model), result.parameters, curvature)
    data = result.data if isinstance(result.data, list) else [result.data]
    flux, weight = free.merge([one.flux.double() for one in data]), free.merge(curvature.weight)
    normal, start = normal_equations(free, curvature), free.read()
    factor = normal.factor()
    pull = of_lines(free, curvature.mean_pull) + _pull_of_curvature(free, flux, weight, factor, start, progress)
    variance = factor.variance()
    farthest = FARTHEST * variance.sqrt()
    step = _with_shared_held(free, factor, factor.solve(pull)).clamp(-farthest, farthest)
    free.write(start + step)
    after = normal_equations(free, curvature).factor().variance()
    return _table(free, *(by_line(free, values) for values in (step, variance, after)))


def _pull_of_curvature(
    free: FreeParameters, flux: Tensor, weight: Tensor, factor: Factor, start: Tensor, progress: bool
) -> Tensor:
    """Half the second derivatives of JᵀW(d - F) along the columns of a root of the covariance, summed."""

    def pull_at(vector: Tensor) -> Tensor:
        free.write(vector)
        model, _, back = free.evaluate()
        return back(weight * (flux - model))

    here, total = pull_at(start), torch.zeros_like(start)
    probes = factor.probes(torch.Generator().manual_seed(0))
    for probe in tqdm(probes, desc="means of lines", disable=not progress, leave=False, delay=2.0):
        spread = min(SPREAD, _room(free, start, probe))
        if spread < LEAST_SPREAD:
            continue
        ahead, back = (pull_at(start + side * spread * probe) for side in (1.0, -1.0))
        total += 0.5 * (ahead + back - 2.0 * here) / spread**2
    free.write(start)
    return total


def _room(free: FreeParameters, start: Tensor, probe: Tensor) -> float:
    """How far one may go both ways along a probe: (v sin i)² must stay where the model's rotation is smooth."""
    room = SPREAD
    for key, owned in free.owned.items():
        own, lowest = free.global_slices[key], owned.bounds[0]
        if math.isfinite(lowest) and float(probe[own].abs().max()):
            room = min(room, float(((start[own] - lowest) / probe[own].abs()).min()))
    return room


def _with_shared_held(free: FreeParameters, factor: Factor, step: Tensor) -> Tensor:
    """A step of everything, less what it moves of the parameters that all lines share and what follows these."""
    places = [free.global_slices[name] for name in free.at_posterior_mean]
    shared = [k for place in places for k in range(place.start, place.stop)]
    if not shared:
        return step
    unit = torch.eye(len(step), dtype=step.dtype, device=step.device)[shared]
    response = torch.stack([factor.solve(each) for each in unit])
    return step - torch.linalg.solve(response[:, shared], step[shared]) @ response


def _table(
    free: FreeParameters, step: dict[str, Tensor], before: dict[str, Tensor], after: dict[str, Tensor]
) -> QTable:
    """One row a line of the ledger; steps to the means, variances where the fit stands and at the means."""
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
        table[name].info.description = COLUMNS[name]
    return table
