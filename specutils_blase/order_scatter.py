r"""What each order says of the velocities by itself, and by how much orders scatter beyond their errors.

At the joint solution one Gauss-Newton step of an order alone, its lines and continuum following, gives its own value
x_k and error e_k. A template that is another star's is wrong in each order in another way: where

.. math:: χ^2 = \sum_k (x_k - \bar x)^2 / e_k^2

is larger than chance allows, the error of the joint value is multiplied by :math:`\sqrt{χ^2 / (n - 1)}` (the scale
factor of the Particle Data Group, Navas et al. 2024, section 5.2).

Does not live here: the fit (`solving`), the scatter of lines within an order (`star_anchors`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.stats import chi2 as chi2_distribution

from .correlated_residuals import correlation_factor
from .problem import AnchoredProblem
from .solving import alone_problem, line_owners

VELOCITIES = ("rv", "vsini")

BY_CHANCE = 0.05
"""Probability of a scatter as large by chance, below which errors are multiplied."""

LEAST_WEIGHT = 0.01
"""Information of an order, in units of that of the best, below which it does not count as one that says anything."""


@dataclass(frozen=True)
class OrderScatter:
    """Scatter of one quantity between orders.

    Parameters
    ----------
    values, errors : list of float
        Of each order alone, in the units of the fit's parameters: km/s of rv, (km/s)² of (v sin i)².
    factor : float
        By which the joint error has to be multiplied, at least 1.
    """

    values: list[float]
    errors: list[float]
    factor: float


@torch.no_grad()
def order_scatter(problem: AnchoredProblem, incomplete: Sequence[bool]) -> dict[str, OrderScatter]:
    """Values of every order alone, of the free ones among `VELOCITIES`.

    Parameters
    ----------
    problem : AnchoredProblem
        Of several orders, at its solution.
    incomplete : sequence of bool
        Orders whose model lacks something: neighbouring residuals there are alike, and their errors say so.
    """
    names = [name for name in VELOCITIES if name in problem.free.global_slices]
    if not names:
        return {}
    found = {name: ([], []) for name in names}
    owners = line_owners(problem.free.model)
    for k in range(len(problem.free.orders)):
        alone, _ = alone_problem(problem, k, owners, shared=names)
        vector = alone.read()
        normal = alone.linearize(vector, precise=True)
        factor = normal.factor()
        step = factor.solve(normal.gradient)
        covariance = factor.border_covariance()
        border = {int(column): position for position, column in enumerate(normal.border)}
        for name in names:
            column = alone.free.global_slices[name].start
            at = border[column]
            found[name][0].append(float(vector[column] + step[column]))
            widened = correlation_factor(alone, normal, factor, column, [incomplete[k]])
            found[name][1].append(widened * math.sqrt(max(float(covariance[at, at]), 0.0)))
    return {name: OrderScatter(*lists, scale_factor(*lists)) for name, lists in found.items()}


def scale_factor(values: list[float], errors: list[float]) -> float:
    """Factor on the error of a weighted mean, 1 where values scatter as their errors allow.

    Parameters
    ----------
    values, errors : list of float
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
