"""Minimisation on structured normal equations: Levenberg-Marquardt, with a quasi-Newton end.

Does not live here: the equations and their factor (`normal_equations`), the end of the way (`quasi_newton`), what the
residuals are (`objective`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from .lbfgs import State, quasi_newton, remaining_decrease
from .linear.normal_equations import NormalEquations
from .solution import Solution, Status


class Minimizable(Protocol):
    """What `minimize` needs to know of an objective."""

    @property
    def n_datum(self) -> int:
        """Number of data that count."""

    @property
    def limit(self) -> Tensor:
        """Largest step of each parameter in one iteration."""

    def read(self) -> Tensor:
        """Present parameter vector."""

    def write(self, vector: Tensor) -> None:
        """Leave the model at a parameter vector."""

    def evaluate(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """Terms of the cost at a parameter vector: one a datum, one a parameter."""

    def value_and_gradient(self, vector: Tensor) -> tuple[float, Tensor]:
        """Cost at a parameter vector, and minus half its exact gradient."""

    def linearize(self, vector: Tensor, precise: bool = False) -> NormalEquations:
        """Normal equations at a parameter vector; `precise` where they serve for more than one step."""

    def project(self, vector: Tensor) -> Tensor:
        """Nearest allowed parameter vector."""

    def shorten(self, step: Tensor, longest: float) -> Tensor:
        """A step with no parameter beyond `longest` times its limit; parameters that belong together are cut alike."""

    def pinned(self, vector: Tensor, gradient: Tensor) -> Tensor:
        """Which parameters stand at a bound that `gradient` would take them across."""


RELATIVE_TOLERANCE = 1e-4
"""Part of the misfit in excess of the noise that is not worth further iterations."""

FIRST_DAMPING, LEAST_DAMPING, MOST_DAMPING = 0.1, 1e-8, 1e6

MOST_REJECTIONS = 25
"""Steps rejected in a row after which the iteration gives up."""

HELD_BACK, PATIENCE = 0.25, 3
"""Predicted decrease of a damped step, relative to the undamped one's, below which damping is in the way; how many
such iterations are waited for."""


def minimize(
    objective: Minimizable,
    *,
    max_iterations: int = 50,
    absolute_tolerance: float = 1e-2,
    from_afar: bool = True,
    least_gain: tuple[int, float] | None = None,
    callback: Callable[[dict[str, float]], None] | None = None,
) -> Solution:
    r"""Minimise an objective's cost: Levenberg-Marquardt from afar, quasi-Newton at the end where that is slow.

    The iteration has converged once the *undamped* quadratic model predicts a decrease below `absolute_tolerance` × q +
    `RELATIVE_TOLERANCE` × (cost - n_datum), with q = max(1, cost / n_datum). In units of χ², a predicted decrease of ε
    bounds every parameter's remaining step by √ε of its standard error; where the model is incomplete, q > 1, errors
    are really √q larger. A damped step predicts little whatever is left: it says nothing about convergence.

    Levenberg-Marquardt hands over when damping keeps its steps below `HELD_BACK` of what is left, `PATIENCE` times in
    a row, or when no step leads down any more. Without `from_afar`, the start is near enough for the quasi-Newton end
    alone, whose iterations cost a quarter: the normal matrix is formed once in `quasi_newton.REFRESH` of them.

    With `least_gain`, a number of iterations and a part of the cost, it also ends, without success, once so many
    iterations together have taken less than this part off the cost.
    """

    def tolerance(cost: float) -> float:
        return absolute_tolerance * max(1.0, cost / objective.n_datum) + RELATIVE_TOLERANCE * max(
            0.0, cost - objective.n_datum
        )

    history: list[dict[str, float]] = []

    def record(state: State) -> None:
        history.append({"iteration": len(history), "cost": state.cost, "predicted": state.predicted})
        if callback is not None and len(history) > 1:
            callback(history[-1])

    def slow() -> bool:
        stretch, part = least_gain or (math.inf, 0.0)
        return len(history) > stretch and history[-1]["cost"] > (1.0 - part) * history[-1 - stretch]["cost"]

    start, n_left = objective.read(), max_iterations
    if from_afar:
        for state in levenberg_marquardt(objective, tolerance, max_iterations):
            if state.status is not Status.HANDED_OVER:
                record(state)
            if state.status is Status.GOES_ON and slow():
                state = state._replace(status=Status.SLOW)
                break
        start, n_left = state.vector, max_iterations + 1 - len(history)
    if not from_afar or state.status is Status.HANDED_OVER:
        for state in quasi_newton(objective, start, tolerance, n_left):
            if state.status is Status.GOES_ON:
                record(state)
                if slow():
                    state = state._replace(status=Status.SLOW)
                    break
    if not history:
        record(state)
    objective.write(state.vector)  # leave the model at the solution, not at the last trial
    return Solution(state.vector, state.cost, state.status, state.normal, history)


def levenberg_marquardt(
    objective: Minimizable, tolerance: Callable[[float], float], max_iterations: int
) -> Iterator[State]:
    r"""Damped Gauss-Newton steps with *local* gain-ratio control; yields as `quasi_newton` does.

    Thousands of lines are thousands of nearly independent problems; with one damping for all, the worst of them at any
    moment slows every other. Here each line has its own: after a step, the actual decrease of the cost over the
    line's own window is compared with what the quadratic model predicted there, and the line's damping follows that
    ratio (Nielsen 1999). Parameters that touch everything follow the total. A step is taken if the total decreases.
    """
    vector = objective.read()
    terms = objective.evaluate(vector)
    cost = _total(terms)
    normal = objective.linearize(vector)
    damping = torch.full_like(vector, FIRST_DAMPING)
    if not math.isfinite(cost):
        yield State(Status.NOT_FINITE, vector, cost, math.nan, normal)
        return
    held_back = 0
    for iteration in range(max_iterations + 1):
        limit = tolerance(cost)
        left = remaining_decrease(normal)
        last = Status.ITERATIONS if iteration == max_iterations else Status.GOES_ON
        status = Status.CONVERGED if left < limit else last
        yield State(status, vector, cost, left, normal)
        if status.is_end:
            return
        if held_back == PATIENCE:
            yield State(Status.HANDED_OVER, vector, cost, left, normal)
            return
        for rejection in range(MOST_REJECTIONS):
            step, predicted, expected = _propose(objective, normal, damping)
            trial = objective.project(vector + step)
            trial_terms = objective.evaluate(trial)
            trial_cost = _total(trial_terms)
            accepted = math.isfinite(trial_cost) and trial_cost < cost
            if math.isfinite(trial_cost):
                actual = normal.by_line(terms[0] - trial_terms[0], terms[1] - trial_terms[1])
                damping = _adapt(damping, actual, expected, limit, accepted, patient=rejection < 3)
            else:
                damping = damping * 10.0
            if accepted or predicted < limit or bool((damping > MOST_DAMPING).all()):
                break
        held_back = held_back + 1 if predicted < HELD_BACK * left else 0
        if accepted:
            vector, terms, cost = trial, trial_terms, trial_cost
            normal = objective.linearize(vector)
        else:
            held_back = PATIENCE


def _total(terms: tuple[Tensor, Tensor]) -> float:
    return float(terms[0].sum() + terms[1].sum())


def _propose(objective: Minimizable, normal: NormalEquations, damping: Tensor) -> tuple[Tensor, float, Tensor]:
    """Step, the decrease of the cost that the quadratic model predicts for it, and the same by line."""
    step, _ = normal.step(damping)
    predicted, _ = _predicted_decrease(normal, step)
    step = step.clamp(-objective.limit, objective.limit)
    _, expected = _predicted_decrease(normal, step)
    return step, predicted, expected


def _predicted_decrease(normal: NormalEquations, step: Tensor) -> tuple[float, Tensor]:
    change = normal.push_forward(step)
    stiffness = normal.prior_precision * step.square()
    total = 2.0 * normal.gradient @ step - change.square().sum() - stiffness.sum()
    rows = change * (2.0 * normal.residual - change)
    return float(total), normal.by_line(rows, 2.0 * step * normal.prior_gradient - stiffness)


def _adapt(
    damping: Tensor, actual: Tensor, expected: Tensor, tolerance: float, accepted: bool, patient: bool
) -> Tensor:
    """New damping of every parameter from its line's gain ratio."""
    gain = actual / expected.clamp(min=1e-12 + 1e-3 * tolerance)
    change = (1.0 - (2.0 * gain.clamp(-0.5, 1.5) - 1.0) ** 3).clamp(0.2, 8.0)
    # A line whose step was cut at its limits may promise nothing at all: shorten it the regular way.
    change = torch.where(expected < 0.0, torch.full_like(change, 8.0), change)
    idle = expected.abs() < 1e-3 * tolerance  # a line that has arrived: rounding decides its ratio
    change = torch.where(idle, torch.full_like(change, 0.5 if accepted else 1.0), change)
    if not accepted:
        # First blame the lines whose own cost rose; if that does not help, the rest must shorten their steps too.
        change = torch.where(gain > 0.25, 1.0 if patient else 4.0, 8.0)
    return (damping * change).clamp(LEAST_DAMPING, 10.0 * MOST_DAMPING)
