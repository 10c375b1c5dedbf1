r"""What each order, or part of one, says of the velocities by itself; by how much they scatter beyond their errors.

At the joint solution one Gauss-Newton step of an order alone, its lines and continuum following, gives its own value
x_k and error e_k. A template that is another star's is wrong in each order in another way: where

.. math:: χ^2 = \sum_k (x_k - \bar x)^2 / e_k^2

is larger than chance allows, the error of the joint value is multiplied by :math:`\sqrt{χ^2 / (n - 1)}` (the scale
factor of the Particle Data Group, Navas et al. 2024, section 5.2). Within an order whose model lacks something the same
is asked of its quarters: a band that a template lacks moves all lines of one part, which no line says by itself.

Does not live here: the fit (`solving`), the scatter of lines within an order (`star_anchors`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import chi2 as chi2_distribution
from torch import Tensor

from ...inference.linear.normal_equations import NormalEquations
from ...inference.objective import Objective
from ..stages import alone, line_owners
from .correlated import correlation_factor

BY_CHANCE = 0.05
"""Probability of a scatter as large by chance, below which errors are multiplied."""

N_PART = 4
"""Parts of an order: as many as still have some lines each in a short order."""

LEAST_WEIGHT = 0.01
"""Information of an order or part, in units of that of the best, below which it counts as one that says nothing."""


@dataclass(frozen=True)
class OrderScatter:
    """Scatter of one quantity between orders.

    Parameters
    ----------
    values, errors : list of float
        Of each order alone, in the units of the fit's parameters: km/s of rv, (km/s)² of (v sin i)².
    factor : float
        By which the joint error has to be multiplied, at least 1.
    within : float
        The same for what the parts of the orders scatter, beyond residuals that are alike.
    """

    values: list[float]
    errors: list[float]
    factor: float
    within: float


@torch.no_grad()
def order_scatter(objective: Objective, incomplete: Sequence[bool]) -> dict[str, OrderScatter]:
    """Values of every order alone, of the free velocities.

    Parameters
    ----------
    objective : Objective
        Of several orders, at its solution.
    incomplete : sequence of bool
        Orders whose model lacks something: neighbouring residuals there are alike, and their errors say so.
    """
    names = list(objective.free.velocities)
    if not names:
        return {}
    found, within = {name: ([], []) for name in names}, {name: [] for name in names}
    owners = line_owners(objective.free.model)
    for k in range(len(objective.free.orders)):
        one_order, _ = alone(objective, k, owners, shared=names)
        vector = one_order.read()
        normal = one_order.linearize(vector, precise=True)
        factor = normal.factor()
        covariance = factor.border_covariance()
        border = {int(column): position for position, column in enumerate(normal.border)}
        columns = {name: one_order.free.global_slices[name].start for name in names}
        step = _step(normal, list(columns.values()))
        correlated = {
            name: correlation_factor(one_order, normal, factor, column, [incomplete[k]])
            for name, column in columns.items()
        }
        parts = part_scatter(one_order, correlated, incomplete[k])
        for name, column in columns.items():
            error = correlated[name] * math.sqrt(max(float(covariance[border[column], border[column]]), 0.0))
            within[name].append((parts[name], error))
            found[name][0].append(float(vector[column] + step[column]))
            found[name][1].append(parts[name] * error)
    return {name: OrderScatter(*lists, scale_factor(*lists), _together(within[name])) for name, lists in found.items()}


def _step(normal: NormalEquations, columns: list[int]) -> Tensor:
    """To the minimum of the quadratic model; of what stands at bounds only the parameters of `columns` move."""
    normal.pinned[columns] = False
    return normal.step(0.0)[0]


def _together(found: list[tuple[float, float]]) -> float:
    """Factor on the error of the mean, from factors on the errors of its terms and these errors."""
    told = [(factor, error**-2) for factor, error in found if error > 0.0]
    if not told:
        return 1.0
    return math.sqrt(sum(factor**2 * weight for factor, weight in told) / sum(weight for _, weight in told))


@torch.no_grad()
def part_scatter(objective: Objective, correlated: dict[str, float], incomplete: bool) -> dict[str, float]:
    """Factors on the errors of velocities, beyond `correlated`, for which the parts of an order scatter.

    Parameters
    ----------
    objective : Objective
        Of one order, at its solution.
    correlated : dict
        Name of each free velocity to the factor by which residuals that are alike multiply its error already. They
        scatter the parts, too.
    incomplete : bool
        Whether the order's model lacks something. Parts of a complete one scatter as its errors say.
    """
    if not incomplete:
        return dict.fromkeys(correlated, 1.0)
    vector, counts = objective.read(), objective.weight > 0.0
    part = (counts.cumsum(0) - 1).clamp(min=0) * N_PART // max(int(counts.sum()), 1)
    columns = [objective.free.global_slices[name].start for name in correlated]
    units = torch.eye(len(vector), dtype=vector.dtype, device=vector.device)[columns]
    values, errors = [], []
    for normal in objective.linearize_parts(vector, [part == k for k in range(N_PART)]):
        factor = normal.factor()
        values.append((vector + _step(normal, columns))[columns].tolist())
        errors.append([math.sqrt(max(float(unit @ factor.solve(unit)), 0.0)) for unit in units])
    lists = zip(correlated.items(), zip(*values, strict=True), zip(*errors, strict=True), strict=True)
    return {name: max(1.0, scale_factor(own, told) / already) for (name, already), own, told in lists}


def scale_factor(values: Sequence[float], errors: Sequence[float]) -> float:
    """Factor on the error of a weighted mean, 1 where values scatter as their errors allow.

    Parameters
    ----------
    values, errors : sequence of float
        What tells next to nothing does not count.
    """
    least = min(errors, default=math.inf) / math.sqrt(LEAST_WEIGHT)
    told = [(value, error) for value, error in zip(values, errors, strict=True) if 0.0 < error <= least]
    if len(told) < 2:
        return 1.0
    weights = [error**-2 for _, error in told]
    mean = sum(weight * value for weight, (value, _) in zip(weights, told, strict=True)) / sum(weights)
    chi_square = sum(weight * (value - mean) ** 2 for weight, (value, _) in zip(weights, told, strict=True))
    if chi2_distribution.sf(chi_square, len(told) - 1) > BY_CHANCE:
        return 1.0
    return max(1.0, math.sqrt(chi_square / (len(told) - 1)))
