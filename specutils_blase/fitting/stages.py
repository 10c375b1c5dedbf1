"""The stages of a fit: loose priors, true priors, the noise that the residuals show; order by order, then together.

Does not live here: the minimisation (`least_squares`), the noise (`noise`), what a fit starts from (`starting`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor

from ..inference.linear.cholesky import Factor
from ..inference.minimize import MESSAGES, Solution, minimize
from ..inference.objective import AnchoredProblem
from ..model.echelle import EchelleModel
from ..model.order import ForwardModel
from ..model.parameters import ORDER_GLOBALS, FreeParameters
from ..physics.parallel import each
from .residuals.noise import NoiseModel
from .residuals.rejection import unlike_lines
from .shared_changes.changes import CommonChanges
from .start.velocities import LOOSE_ITERATIONS

LOOSE = {"ln_area": 3.0, "ln_sigma": 3.0, "ln_gamma": 3.0, "rv_offset": 2.0}
"""Factors on the prior widths in the first stage of a fit."""

LOOSE_TOLERANCE = 0.0005
"""Promised decrease of χ² per datum below which the first stage has come near enough."""

TOLERANCE = 0.0025
"""Promised decrease of χ² below which a fit has converged: no parameter is then 0.05 of its error from the minimum."""

SHARED = ("rv", "vsini", "limb_darkening", "star_law", "telluric_law")
"""What all lines share, and loose lines could imitate; orders of a list that are solved alone hold the same."""

EARLY_ROUNDS, LATE_ROUNDS, ROUND_ITERATIONS = 8, 6, 15
"""How often the noise and the anchors are asked anew: under way, where residuals tell the noise, after so many
iterations each; and at the end.

Noise and model improve each other step by step: solved to the end before the noise is asked, orders of GJ 699 took 187
to 322 iterations instead of 120 to 165.
"""

UNSETTLED = "not converged: a strength, width or shift that lines have in common still moves"

ALONE_TOLERANCE = 0.1
"""Promised decrease of χ² below which an order that is solved alone is good enough for the fit of all."""

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


def reduced_chi_square(problem: AnchoredProblem, used: list[float]) -> float:
    """χ² per degree of freedom; a parameter counts as used up as far as the data, not its prior, determine it."""
    return problem.chi_square() / max(problem.n_datum - sum(used), 1.0)


@torch.no_grad()
def residuals(problem: AnchoredProblem) -> list[Tensor]:
    """Data minus model of each order."""
    return problem.free.split(problem.flux - problem.free.flux())


def solve(
    problem: AnchoredProblem,
    noise: NoiseModel,
    max_iterations: int,
    report: Callable,
    tolerance: float | None = None,
    anchors: CommonChanges | None = None,
) -> Solution:
    """Minimise first with loose priors, then with the true ones, then with the noise that the residuals show.

    Student's t is not convex: from its narrow centre a line that is far off finds its way out only by chance of the
    starting point. Where the priors are loose first, lines go where the data want them; the true priors then pull
    back what does not need to be away, and their tails let go of what does.

    Data and priors must weigh against each other as they should: where the noise is not known, or larger than the data
    tell because the model lacks something, it has to be right in the fit, and both are found in turn; and so are the
    telluric lines and where their anchors stand together.
    """
    history: list[dict[str, float]] = []
    tolerance = TOLERANCE if tolerance is None else tolerance
    loose_iterations = min(LOOSE_ITERATIONS, max_iterations - 1)
    from_afar = loose_iterations <= 0 or not bool(problem.freedom.isfinite().any())
    if not from_afar:
        problem.loosen(LOOSE)
        limit = LOOSE_TOLERANCE * problem.n_datum
        # Loose lines can take a velocity anywhere: what all share stays until the lines are where the data want them.
        with problem.held(SHARED):
            first = minimize(problem, max_iterations=loose_iterations, absolute_tolerance=limit, callback=report)
        history += first.history
        if noise.may_add_jitter or noise.may_doubt:
            _learn(problem, noise, first)
        if anchors is not None:
            anchors.learn(first.vector)  # while the priors hold the lines least
        problem.loosen(None)
        if anchors is not None:
            anchors.settle(first.vector)
    n_left = max_iterations - max(len(history) - 1, 0)  # the first entry is the start
    solution = _settle(problem, noise, n_left, tolerance, report, from_afar, anchors)
    return _with_history(solution, history)


def solve_near(
    problem: AnchoredProblem,
    noise: NoiseModel,
    max_iterations: int,
    report: Callable,
    anchors: CommonChanges | None = None,
) -> Solution:
    """Minimise from a start that is near, with the noise that the residuals show."""
    return _settle(problem, noise, max_iterations, TOLERANCE * len(problem.free.orders), report, anchors=anchors)


def _settle(
    problem: AnchoredProblem,
    noise: NoiseModel,
    max_iterations: int,
    tolerance: float,
    report: Callable,
    from_afar: bool = False,
    anchors: CommonChanges | None = None,
) -> Solution:
    """Minimise, find the noise that the residuals show and where the anchors stand, in turn, until none changes."""
    history: list[dict[str, float]] = []
    n_turn = LATE_ROUNDS + (EARLY_ROUNDS if noise.adapts else 0)
    for turn in range(n_turn):
        n_left = max(0, max_iterations - len(history))
        early = noise.adapts and turn < EARLY_ROUNDS
        solution = minimize(
            problem,
            max_iterations=min(n_left, ROUND_ITERATIONS) if early else n_left,
            absolute_tolerance=tolerance,
            from_afar=from_afar,
            callback=report,
        )
        history += solution.history
        cut_off = solution.message == MESSAGES["iterations"]
        from_afar = from_afar and cut_off
        if turn == n_turn - 1 or len(history) >= max_iterations:
            if solution.success and anchors is not None and anchors.step(solution.vector) is not None:
                solution.success, solution.message = False, UNSETTLED
            break
        learnt = noise.adapts and _learn(problem, noise, solution)
        moved = anchors is not None and _follow(anchors, solution.vector)
        if not (learnt or moved or (early and cut_off)):
            break
    return _with_history(solution, [], history)


def _follow(anchors: CommonChanges, vector: Tensor) -> bool:
    """Let the widths of priors and what lines have in common follow the lines; True if anything changes."""
    learnt = anchors.learn(vector)
    return anchors.settle(vector) is not None or learnt


def _with_history(solution: Solution, before: list[dict[str, float]], own: list | None = None) -> Solution:
    """A solution with what came before it in its history, iterations counted through."""
    entries = [*before, *(solution.history if own is None else own)]
    solution.history = [entry | {"iteration": k} for k, entry in enumerate(entries)]
    return solution


def solve_orders(
    problem: AnchoredProblem,
    noise: NoiseModel,
    names: Sequence[str],
    max_iterations: int,
    report: Callable,
    anchors: CommonChanges | None = None,
) -> Solution:
    """Solve every order by itself with what they share held, then all together.

    Orders are nearly independent, and the worst of them needs many times the iterations of the best: solved together
    all the way, all would take part in all of them. What orders do to each other, through lines that reach across and
    through the velocities, Levenberg-Marquardt steps of the whole put right. Success is judged on the whole, whose
    promised decrease adds up over the orders while the steps that are left do not.
    """
    owners = line_owners(problem.free.model)
    limit = min(ALONE_ITERATIONS, max_iterations)
    # Wings reach the next order: every other order waits for its neighbours, and once all are solved each settles on
    # what the others have become.
    stages = partial(_go_alone, noise, limit), partial(_settle_alone, min(SETTLING_ITERATIONS, max_iterations))
    for go in stages:
        for parity in (0, 1):
            made = [(k, names[k], report, *alone_problem(problem, k, owners)) for k in range(parity, len(names), 2)]
            for (k, _, _, alone, copies), vector in zip(made, each(go, made), strict=True):
                alone.write(vector)
                _take_over(problem.free.model.orders[k], k, copies, owners)
            problem.set_weight(problem.free.merge(noise.weights()))
        if anchors is not None and go is not stages[-1]:
            _follow(anchors, problem.read())
    coarse, fine = ALONE_TOLERANCE * len(names), TOLERANCE * len(names)
    limit = min(TOGETHER_AT_FIRST, max_iterations)
    if anchors is not None:
        _follow(anchors, problem.read())
    first = minimize(problem, max_iterations=limit, absolute_tolerance=coarse, callback=report)
    if noise.adapts:
        _learn(problem, noise, first)
    if anchors is not None:
        _follow(anchors, first.vector)
    solution = _settle(problem, noise, max_iterations, fine, report, anchors=anchors)
    solution = _with_history(solution, first.history)
    if not solution.success:
        step, _ = solution.normal.step(torch.zeros_like(solution.vector))
        left = _by_order(problem.free, solution.normal.gradient * step)
        late = [name for name, each in zip(names, left, strict=True) if each > TOLERANCE]
        solution.message += f" in {'order' if len(late) == 1 else 'orders'} {', '.join(late)}"
    return solution


@torch.no_grad()
def line_owners(model: EchelleModel) -> dict[str, Tensor]:
    """The order that may change each line while orders are solved alone: that in whose span it lies deepest.

    Lines of other orders whose wings reach an order stay: there they would do what the continuum does.
    """
    owners = {}
    for name, emulator in model.components.items():
        center = emulator.shifted_center * (model.doppler.factor if name == "star" else 1.0)
        edges = [order.pixels.edges for order in model.orders]
        depth = torch.stack([torch.minimum(center - edge.min(), edge.max() - center) for edge in edges])
        owners[name] = depth.argmax(0)
    return owners


def _go_alone(noise: NoiseModel, limit: int, made: tuple) -> Tensor:
    """One order by itself, through all stages: its parameters."""
    k, name, report, alone, _ = made
    return solve(alone, noise.part(k), limit, _naming(report, name), tolerance=ALONE_TOLERANCE).vector


def _settle_alone(limit: int, made: tuple) -> Tensor:
    """One order by itself, near its solution."""
    _, name, report, alone, _ = made
    return minimize(
        alone,
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


def alone_problem(
    problem: AnchoredProblem, k: int, owners: dict[str, Tensor], shared: Sequence[str] = ()
) -> tuple[AnchoredProblem, dict]:
    """The problem of order k with copies of its lines, whose prior means are those of the whole, and these copies.

    Parameters
    ----------
    problem : AnchoredProblem
        Of all orders.
    k : int
    owners : dict
        As of `line_owners`: lines of other orders are held.
    shared : sequence of str
        Parameters of all orders that are free, as copies; the others are held.
    """
    order, part = problem.free.model.orders[k], problem.free.part(k)
    copies = {name: view.subset(torch.arange(len(view))) for name, view in order.components.items()}
    model = ForwardModel(
        order.sampling,
        **copies,
        doppler=deepcopy(order.doppler),
        rotation=deepcopy(order.rotation),
        line_spread=order.line_spread,
        pixels=order.pixels,
        continuum=order.continuum,
    )
    lines = {
        name: (owners[name][view.index][part.lines[name]] == k).nonzero().squeeze(-1)
        for name, view in order.components.items()
    }
    own = (*shared, *(name for name in ORDER_GLOBALS if name in part.global_slices))
    free = FreeParameters(model, part.kinds, {name: part.lines[name][chosen] for name, chosen in lines.items()}, own)
    flux, weight = (problem.free.split(values)[k] for values in (problem.flux, problem.weight))
    alone = AnchoredProblem(free, flux, weight, problem.line_priors)
    for name in copies:
        own, whole = free.columns(name), part.columns(name)[lines[name]]
        # Of the clones, whatever the lines are by now; and the priors of each line, which need not all be as wide.
        for which in ("anchor", "lower", "upper", "precision", "freedom"):
            getattr(alone, which)[own] = getattr(problem, which)[whole]
    return alone, copies


def _learn(problem: AnchoredProblem, noise: NoiseModel, solution: Solution) -> bool:
    """Let the noise learn from the residuals; True if the fit has to be repeated."""
    used = degrees_of_freedom_used(problem.free, solution.normal.factor())
    rejected = noise.may_doubt and reject_pixels(problem.free.orders, problem.free.split(problem.flux), noise)
    if not (noise.update(residuals(problem), used) or rejected):
        return False
    problem.set_weight(problem.free.merge(noise.weights()))
    return True


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
