"""The stages of a fit: loose priors, true priors, the noise that the residuals show; order by order, then together.

Does not live here: the minimisation (`inference.minimize`), the noise (`fitting.residuals.noise`), what a fit starts
from (`fitting.start`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from ..inference.linear.cholesky import Factor
from ..inference.minimize import minimize
from ..inference.objective import Objective
from ..inference.prior_mean import PriorMeans
from ..inference.solution import Solution, Status
from ..model.echelle import EchelleModel
from ..model.order import ForwardModel
from ..model.parameters import FreeParameters
from ..physics.parallel import each
from .residuals.noise import NoiseModel
from .residuals.rejected_pixels import unlike_lines
from .start.held_line_fit import LOOSE_ITERATIONS

LOOSE = {"ln_area": 3.0, "ln_sigma": 3.0, "ln_gamma": 3.0, "rv_offset": 2.0}
"""Factors on the prior widths in the first stage of a fit."""

LOOSE_TOLERANCE = 0.0005
"""Predicted decrease of χ² per datum below which the first stage has come near enough."""

TOLERANCE = 0.0025
"""Predicted decrease of χ² below which a fit has converged: no parameter is then 0.05 of its error from the minimum."""

EARLY_ROUNDS, LATE_ROUNDS, ROUND_ITERATIONS = 8, 6, 15
"""How often the noise and the prior means are asked anew: under way, where residuals tell the noise, after so many
iterations each; and at the end.

Noise and model improve each other step by step: solved to the end before the noise is asked, orders of GJ 699 took 187
to 322 iterations instead of 120 to 165.
"""

ALONE_TOLERANCE = 0.1
"""Predicted decrease of χ² below which an order that is solved alone is good enough for the fit of all."""

ALONE_ITERATIONS, SETTLING_ITERATIONS, TOGETHER_AT_FIRST = 150, 15, 8
"""Limits on the iterations of each order by itself and beside the others' solutions, and of all orders together from
afar."""


def degrees_of_freedom_used(free: FreeParameters, factor: Factor) -> list[float]:
    """How many parameters the data of each order determine: 1 - prior precision × variance, shared ones shared out."""
    return _by_order(free, 1.0 - factor.normal.prior_precision * factor.variance())


def _by_order(free: FreeParameters, values: Tensor) -> list[float]:
    """Sum of a quantity of every parameter over those of each order; parameters of several orders count in part."""
    n_order = len(free.orders)
    if n_order == 1:
        return [float(values.sum())]
    columns = []
    for k in range(n_order):
        part = free.part(k)
        own = [part.columns(name).reshape(-1) for name in part.model.components]
        own += [torch.arange(place.start, place.stop) for place in part.global_slices.values()]
        columns.append(torch.cat(own))
    shares = torch.zeros_like(values)
    for own in columns:
        shares[own] += 1.0
    return [float((values[own] / shares[own]).sum()) for own in columns]


def reduced_chi_square(objective: Objective, used: list[float]) -> float:
    """χ² per degree of freedom; a parameter counts as used up as far as the data, not its prior, determine it."""
    return objective.chi_square() / max(objective.n_datum - sum(used), 1.0)


@torch.no_grad()
def residuals(objective: Objective) -> list[Tensor]:
    """Data minus model of each order."""
    return objective.free.split(objective.flux - objective.free.flux())


class Solved(NamedTuple):
    """An objective as its noise and priors have become, and its solution."""

    objective: Objective
    solution: Solution


def solve(
    objective: Objective,
    noise: NoiseModel,
    max_iterations: int,
    report: Callable,
    tolerance: float | None = None,
    means: PriorMeans | None = None,
) -> Solved:
    """Minimise first with loose priors, then with the true ones, then with the noise that the residuals show.

    Student's t is not convex: from its narrow centre a line that is far off finds its way out only by chance of the
    starting point. Where the priors are loose first, lines go where the data want them; the true priors then bring
    back what does not need to be away, and their tails let go of what does.

    Data and priors must weigh against each other as they should: where the noise is not known, or larger than the data
    tell because the model lacks something, it has to be right in the fit, and both are found in turn; and so are the
    telluric lines and their common prior means.
    """
    history: list[dict[str, float]] = []
    tolerance = TOLERANCE if tolerance is None else tolerance
    loose_iterations = min(LOOSE_ITERATIONS, max_iterations - 1)
    from_afar = loose_iterations <= 0 or not bool(objective.priors.freedom.isfinite().any())
    if not from_afar:
        limit = LOOSE_TOLERANCE * objective.n_datum
        # Loose lines can take a velocity anywhere: what all share stays until the lines are where the data want them.
        loose = objective.inflated(LOOSE)
        held = loose.holding(objective.free.shared)
        first = minimize(held, max_iterations=loose_iterations, absolute_tolerance=limit, callback=report)
        history += first.history
        if noise.may_add_jitter or noise.may_down_weight:
            loose, _ = _learn(loose, noise, first)
        if means is not None:
            loose = means.learn(loose, first.vector) or loose  # while the priors hold the lines least
        objective = loose.with_priors(inflation=objective.priors.inflation)
        if means is not None:
            objective = means.settle(objective, first.vector) or objective
    n_left = max_iterations - max(len(history) - 1, 0)  # the first entry is the start
    objective, solution = _settle(objective, noise, n_left, tolerance, report, from_afar, means)
    return Solved(objective, _with_history(solution, history))


def solve_near(
    objective: Objective, noise: NoiseModel, max_iterations: int, report: Callable, means: PriorMeans | None = None
) -> Solved:
    """Minimise from a start that is near, with the noise that the residuals show."""
    return _settle(objective, noise, max_iterations, TOLERANCE * len(objective.free.orders), report, means=means)


def _settle(
    objective: Objective,
    noise: NoiseModel,
    max_iterations: int,
    tolerance: float,
    report: Callable,
    from_afar: bool = False,
    means: PriorMeans | None = None,
) -> Solved:
    """Minimise, find the noise that the residuals show and the lines' prior means, in turn, until none changes."""
    history: list[dict[str, float]] = []
    n_turn = LATE_ROUNDS + (EARLY_ROUNDS if noise.adapts else 0)
    for turn in range(n_turn):
        n_left = max(0, max_iterations - len(history))
        early = noise.adapts and turn < EARLY_ROUNDS
        solution = minimize(
            objective,
            max_iterations=min(n_left, ROUND_ITERATIONS) if early else n_left,
            absolute_tolerance=tolerance,
            from_afar=from_afar,
            callback=report,
        )
        history += solution.history
        cut_off = solution.status is Status.ITERATIONS
        from_afar = from_afar and cut_off
        if turn == n_turn - 1 or len(history) >= max_iterations:
            if solution.success and means is not None and means.step(objective, solution.vector) is not None:
                solution = replace(solution, status=Status.UNSETTLED)
            break
        learnt = False
        if noise.adapts:
            objective, learnt = _learn(objective, noise, solution)
        followed = None if means is None else means.follow(objective, solution.vector)
        objective = objective if followed is None else followed
        if not (learnt or followed is not None or (early and cut_off)):
            break
    return Solved(objective, _with_history(solution, [], history))


def _with_history(solution: Solution, before: list[dict[str, float]], own: list | None = None) -> Solution:
    """A solution with what came before it in its history, iterations counted through."""
    entries = [*before, *(solution.history if own is None else own)]
    return replace(solution, history=[entry | {"iteration": k} for k, entry in enumerate(entries)])


def solve_orders(
    objective: Objective,
    noise: NoiseModel,
    names: Sequence[str],
    max_iterations: int,
    report: Callable,
    means: PriorMeans | None = None,
) -> Solved:
    """Solve every order by itself with what they share held, then all together.

    Orders are nearly independent, and the worst of them needs many times the iterations of the best: solved together
    all the way, all would take part in all of them. What orders do to each other, through lines that reach across and
    through the velocities, Levenberg-Marquardt steps of the whole put right. Success is judged on the whole, whose
    predicted decrease adds up over the orders while the steps that are left do not.
    """
    objective = _each_alone(objective, noise, names, max_iterations, report, means)
    coarse, fine = ALONE_TOLERANCE * len(names), TOLERANCE * len(names)
    limit = min(TOGETHER_AT_FIRST, max_iterations)
    objective = _followed(objective, means)
    first = minimize(objective, max_iterations=limit, absolute_tolerance=coarse, callback=report)
    if noise.adapts:
        objective, _ = _learn(objective, noise, first)
    objective = _followed(objective, means, first.vector)
    objective, solution = _settle(objective, noise, max_iterations, fine, report, means=means)
    solution = _with_history(solution, first.history)
    if not solution.success:
        step, _ = solution.normal.step(torch.zeros_like(solution.vector))
        left = _by_order(objective.free, solution.normal.gradient * step)
        late = [name for name, decrease in zip(names, left, strict=True) if decrease > TOLERANCE]
        where = f" in {'order' if len(late) == 1 else 'orders'} {', '.join(late)}"
        solution = replace(solution, where=where)
    return Solved(objective, solution)


def _followed(objective: Objective, means: PriorMeans | None, vector: Tensor | None = None) -> Objective:
    """The objective with prior means that follow the lines."""
    if means is None:
        return objective
    return means.follow(objective, objective.read() if vector is None else vector) or objective


def _each_alone(
    objective: Objective,
    noise: NoiseModel,
    names: Sequence[str],
    max_iterations: int,
    report: Callable,
    means: PriorMeans | None,
) -> Objective:
    """Every order solved by itself, twice: wings reach the next order.

    Every other order waits for its neighbours, and once all are solved each settles on what the others have become.
    """
    owners = line_owners(objective.free.model)
    limit = min(ALONE_ITERATIONS, max_iterations)
    stages = partial(_go_alone, noise, limit), partial(_settle_alone, min(SETTLING_ITERATIONS, max_iterations))
    for go in stages:
        for parity in (0, 1):
            made = [(k, names[k], report, *alone(objective, k, owners)) for k in range(parity, len(names), 2)]
            for (k, _, _, one_order, copies), vector in zip(made, each(go, made), strict=True):
                one_order.write(vector)
                _take_over(objective.free.model.orders[k], k, copies, owners)
            objective = objective.with_noise(objective.free.merge(noise.weights()))
        if go is not stages[-1]:
            objective = _followed(objective, means)
    return objective


@torch.no_grad()
def line_owners(model: EchelleModel) -> dict[str, Tensor]:
    """The order that may change each line while orders are solved alone: that in whose span it lies deepest.

    Lines of other orders whose wings reach an order stay: there they would do what the continuum does.
    """
    owners = {}
    for name, emulator in model.components.items():
        center = emulator.shifted_center * model.parts[name].doppler_factor
        edges = [order.pixels.edges for order in model.orders]
        depth = torch.stack([torch.minimum(center - edge.min(), edge.max() - center) for edge in edges])
        owners[name] = depth.argmax(0)
    return owners


def _go_alone(noise: NoiseModel, limit: int, made: tuple) -> Tensor:
    """One order by itself, through all stages: its parameters."""
    k, name, report, one_order, _ = made
    return solve(one_order, noise.part(k), limit, _naming(report, name), tolerance=ALONE_TOLERANCE).solution.vector


def _settle_alone(limit: int, made: tuple) -> Tensor:
    """One order by itself, near its solution."""
    _, name, report, one_order, _ = made
    return minimize(
        one_order,
        max_iterations=limit,
        absolute_tolerance=ALONE_TOLERANCE,
        from_afar=False,
        callback=_naming(report, name),
    ).vector


def _naming(report: Callable, name: str) -> Callable:
    return lambda entry: report(entry | {"order": f"order {name}"})


@torch.no_grad()
def _take_over(order: ForwardModel, k: int, copies: dict, owners: dict[str, Tensor]) -> None:
    """Lines that are order k's from the copies that it was solved with; the copies of others' are out of date."""
    for component, view in order.components.items():
        mine = (owners[component][view.index] == k).unsqueeze(1)
        view.set_line_parameters(torch.where(mine, copies[component].line_parameters(), view.line_parameters()))


def alone(
    objective: Objective, k: int, owners: dict[str, Tensor], shared: Sequence[str] = ()
) -> tuple[Objective, dict]:
    """The objective of order k with copies of its lines, whose priors are those of the whole, and these copies.

    Parameters
    ----------
    objective : Objective
        Of all orders.
    k : int
    owners : dict
        As of `line_owners`: lines of other orders are held.
    shared : sequence of str
        Parameters of all orders that are free, as copies; the others are held.
    """
    order, part = objective.free.model.orders[k], objective.free.part(k)
    copies = {name: view.subset(torch.arange(len(view))) for name, view in order.components.items()}
    model = ForwardModel(
        order.sampling,
        components=[component.alone(copies.get(name)) for name, component in order.parts.items()],
        line_spread=order.line_spread,
        pixels=order.pixels,
        continuum=order.continuum,
    )
    lines = {
        name: (owners[name][view.index][part.lines[name]] == k).nonzero().squeeze(-1)
        for name, view in order.components.items()
    }
    known = model.global_parameters()
    own = (*shared, *(name for name in part.global_slices if known[name].parameter.scope == "order"))
    free = FreeParameters(model, part.kinds, {name: part.lines[name][chosen] for name, chosen in lines.items()}, own)
    flux, weight = (objective.free.split(values)[k] for values in (objective.flux, objective.weight))
    one_order = Objective(free, flux, weight, objective.line_priors)
    priors = one_order.priors
    for name in copies:
        # Of the clones, whatever the lines are by now; and the priors of each line, which need not all be as wide.
        priors = priors.taking(free.columns(name), objective.priors, part.columns(name)[lines[name]])
    return one_order.with_priors(priors), copies


def _learn(objective: Objective, noise: NoiseModel, solution: Solution) -> tuple[Objective, bool]:
    """Let the noise learn from the residuals; the objective with it, and whether the fit has to be repeated."""
    free = objective.free
    used = degrees_of_freedom_used(free, solution.normal.factor())
    rejected = noise.may_down_weight and reject_pixels(free.orders, free.split(objective.flux), noise)
    if not (noise.update(residuals(objective), used) or rejected):
        return objective, False
    return objective.with_noise(free.merge(noise.weights())), True


@torch.no_grad()
def reject_pixels(orders: Sequence[ForwardModel], fluxes: Sequence[Tensor], noise: NoiseModel) -> bool:
    """Leave out what stands out of the model of each order and cannot be a line; True if that is anything new."""
    new = [False] * len(orders)
    for k, (order, flux) in enumerate(zip(orders, fluxes, strict=True)):
        codes = unlike_lines(
            flux.double(),
            order().double(),
            order.continuum.value().double(),
            noise.variance(k).sqrt(),
            noise.good[k],
            element=_element(order),
            emission=any(emulator.has_emission for emulator in order.components.values()),
        )
        new[k] = noise.reject(k, codes)
    return any(new)


def _element(order: ForwardModel) -> float:
    """Full width at half maximum of the line spread, in pixels."""
    edges = order.pixels.edges
    pixel = float(((edges[:, 1] - edges[:, 0]) / edges.mean(1)).median())
    return 1.0 / (float(order.line_spread.ln_resolving_power[0].exp()) * pixel)
