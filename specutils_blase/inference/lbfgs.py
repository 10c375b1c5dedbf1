"""Limited-memory quasi-Newton iteration with the Gauss-Newton matrix as its preconditioner.

Gauss-Newton steps are blind to the residuals' own curvature and to that of the valleys in which near-degenerate blends
lie; there they need so much damping that they hardly move. Here the exact gradients of the last steps teach what the
matrix misses.

Does not live here: the equations and their factor (`inference.linear`), the approach from far (`inference.minimize`).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .linear.cholesky import Factor
from .linear.normal_equations import NormalEquations
from .solution import Status

REFRESH = 15
"""Iterations after which the preconditioner is computed afresh and the memory starts anew."""

SHIFT, LEAST_SHIFT, MOST_SHIFT = 1e-3, 1e-8, 1e-1
"""Multiple of the normal matrix's diagonal added to it, at first, and its bounds.

Directions that only the priors hold stay short. It falls tenfold with every matrix as long as whole steps succeed, and
rises where they do not: WASP-69 takes 114 iterations instead of 128 with a constant one.
"""

SUFFICIENT = 1e-4
"""Part of the decrease that the slope predicts that a step must keep (Armijo)."""

MOST_HALVINGS = 20

LONGEST_STEP = 10.0
"""Longest trial step of any parameter, in units of its limit."""


class State(NamedTuple):
    """Where an iteration stands; `normal` may be of an earlier vector."""

    status: Status
    vector: Tensor
    cost: float
    predicted: float
    normal: NormalEquations


def remaining_decrease(normal: NormalEquations) -> float:
    """Decrease of the cost that the undamped quadratic model predicts, gᵀ A⁻¹ g."""
    step, _ = normal.step(torch.zeros_like(normal.gradient))
    return float(normal.gradient @ step)


@dataclass
class Point:
    """A parameter vector, its cost, minus half the cost's gradient there, and which parameters stand at a bound."""

    vector: Tensor
    cost: float
    gradient: Tensor
    pinned: Tensor

    @classmethod
    def at(cls, objective, vector: Tensor) -> Point:
        cost, gradient = objective.value_and_gradient(vector)
        pinned = objective.pinned(vector, gradient)
        return cls(vector, cost, torch.where(pinned, 0.0, gradient), pinned)


def quasi_newton(
    objective, vector: Tensor, tolerance: Callable[[float], float], max_iterations: int
) -> Iterator[State]:
    r"""Iterate from `vector`, yielding the state after each iteration and, again, at the end.

    The direction is L-BFGS's (Nocedal & Wright 2006, algorithm 7.4) with H₀ ∝ (A + s diag A)⁻¹, A being the
    Gauss-Newton matrix of every `REFRESH` iterations, with the wings of the lines in it, so that what it predicts is
    in units of the errors that will be reported. It has converged once the undamped quadratic model predicts less than
    `tolerance(cost)`, and stalled where not even the steepest way down the preconditioner leads down.
    """
    point = Point.at(objective, vector)
    memory: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=REFRESH)
    normal = factor = None
    expected, fresh, shift, shortened = math.inf, False, 10.0 * SHIFT, 0
    for _ in range(max_iterations):
        if normal is None:
            normal = objective.linearize(point.vector, precise=True)
            expected = remaining_decrease(normal)
            if expected < tolerance(point.cost):
                yield State(Status.CONVERGED, point.vector, point.cost, expected, normal)
                return
            shift = min(max(shift * (0.1 if shortened < 3 else 10.0), LEAST_SHIFT), MOST_SHIFT)
            shortened = 0
            factor = normal.step(torch.full_like(point.gradient, shift))[1]
            memory.clear()
            fresh = True
        direction = _direction(point, factor, memory)
        slope = float(point.gradient @ direction)
        following, scale = _search(objective, point, direction, slope)
        shortened += scale < 0.5
        if following is None:
            if fresh:
                yield State(Status.STALLED, point.vector, point.cost, expected, normal)
                return
            normal = None
            continue
        step, bend = following.vector - point.vector, point.gradient - following.gradient
        product = float(step @ bend)
        if product > 1e-10 * float(step.norm() * bend.norm()):
            memory.append((step, bend, 1.0 / product))
        point, fresh = following, False
        yield State(Status.GOES_ON, point.vector, point.cost, slope, normal)
        # What the quasi-Newton model predicts is only a hint: the criterion wants the matrix of this very place.
        if len(memory) == REFRESH or (slope < 0.3 * tolerance(point.cost) and len(memory) > 2):
            normal = None
    if not fresh:
        normal = objective.linearize(point.vector, precise=True)
        expected = remaining_decrease(normal)
    status = Status.CONVERGED if expected < tolerance(point.cost) else Status.ITERATIONS
    yield State(status, point.vector, point.cost, expected, normal)


def _direction(point: Point, factor: Factor, memory) -> Tensor:
    """Two-loop recursion; pinned parameters stay."""
    gradient, shares = point.gradient.clone(), []
    for step, bend, weight in reversed(memory):
        share = weight * float(step @ gradient)
        shares.append(share)
        gradient = gradient - share * bend
    direction = factor.solve(gradient)
    if memory:
        # How far the matrix is off along the last step: without this, the search would shorten every other step.
        step, bend, weight = memory[-1]
        direction = direction / (weight * float(bend @ factor.solve(bend)))
    for (step, bend, weight), share in zip(memory, reversed(shares), strict=True):
        direction = direction + step * (share - weight * float(bend @ direction))
    return torch.where(point.pinned, 0.0, direction)


def _search(objective, point: Point, direction: Tensor, slope: float) -> tuple[Point | None, float]:
    """Point of sufficient decrease along a direction, by quadratic interpolation, and its distance; None if none."""
    if not (math.isfinite(slope) and slope > 0.0):
        return None, 0.0
    shorter = objective.shorten(direction, LONGEST_STEP)
    if float(point.gradient @ shorter) > 0.0:
        direction, slope, scale = shorter, float(point.gradient @ shorter), 1.0
    else:  # without some of its longest parts, the way does not lead down
        scale = min(1.0, LONGEST_STEP / max(float((direction / objective.limit).abs().max()), 1e-300))
    for _ in range(MOST_HALVINGS):
        trial = Point.at(objective, objective.project(point.vector + scale * direction))
        if not math.isfinite(trial.cost):
            scale *= 0.1
            continue
        rise = trial.cost - point.cost
        if rise <= -2.0 * SUFFICIENT * scale * slope:
            return trial, scale
        scale *= min(max(scale * slope / (rise + 2.0 * scale * slope), 0.1), 0.5)
    return None, 0.0
