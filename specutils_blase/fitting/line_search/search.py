"""Fits that go on with the lines they lacked: features of the residuals become lines, and all is fitted again.

Student's t lets a line go far to do what a missing neighbour should. While lines are searched for, the priors are
therefore Gaussian and end at three widths, and what is missing stays in the residuals. Then the lines found compete
with the old ones under the priors as they are, each is tried once, and those that nobody needs go again.

Does not live here: finding the features (`missing_lines`), whose they are and what they are worth (`line_trials`),
solving (`solving`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ...inference.linear.cholesky import Factor
from ...inference.minimize import Solution, minimize
from ...inference.objective import AnchoredProblem
from ...ledger.table import equivalent_width_with_gradient
from ...missing_lines.matched_filter import HELD, Feature, Grown, search
from ...missing_lines.table import Discovery
from ...model.parameters import KINDS
from ..residuals.noise import NoiseModel
from ..shared_changes.star import StarAnchors
from ..stages import ALONE_TOLERANCE, residuals, solve_near
from .comparison import (
    as_fitted,
    cheapest_move,
    enlarged,
    expected_false,
    nearby,
    observed_width,
    places,
    whose,
    without_touching,
    worth,
)

ROUNDS = 10
"""Searches at most."""

ROUGH_ITERATIONS = 60
"""Limit on the iterations before each search. Gaussian priors cannot let lines go that are far from their clones, and
dozens of features around these trade with each other to no end; what comes of them is tried afterwards."""

STRONGEST_FIRST = 0.3
"""Part of the largest significance of a round from which on features become lines in it: a strong line that is missing
bends all around it, and what it leaves there is none."""

STRONG = 3.0
"""Significance in units of the threshold from which on a feature drags velocities along, which wait until it is in."""

WITHIN = 3.0
"""Prior widths that old lines may be away from their clones while lines are searched for."""

BESIDE = 2.0
"""Distance in observed widths within which a feature waits until a stronger one has become a line of its own widths."""

STILL = 0.7
"""Part of the threshold that the equivalent width over its error must keep in the end, width and place being free."""


def discover(
    problem: AnchoredProblem,
    solution: Solution,
    noise: NoiseModel,
    start_area: dict[str, Tensor],
    expected: float,
    max_iterations: int,
    report: Callable,
    anchors: StarAnchors | None = None,
) -> tuple[AnchoredProblem, Solution, NoiseModel, dict[str, Tensor], Discovery, StarAnchors | None]:
    """Search a solved problem's residuals for lines, add them, solve again.

    Returns the problem with all lines in it, its solution, the noise, `start_area` with the strengths at which lines
    were found, what was found, and what the star's lines have in common beside them.
    """
    again = None if anchors is None else anchors.anew()  # lines that did what missing ones should tell nothing of it
    before = problem.weight, noise
    noise = noise.anew()  # jitter may stand for what is missing
    problem.set_weight(problem.free.merge(noise.weights()))
    features, doubtful, history = _gather(problem, noise, expected, max_iterations, report)
    features = features + doubtful
    while features:
        larger, grown = enlarged(problem, features)
        final = solve_near(larger, noise, max_iterations, report)
        history += final.history
        problem.write(final.vector[grown.old])
        problem.set_weight(larger.weight)
        fitted = _needed(problem, larger, grown, final, features, expected, max_iterations, report)
        if len(fitted) == len(features):
            larger.write(final.vector)
            break
        features = fitted
    if not features:  # nothing, or only what the old lines do as well under their own priors
        problem.weight, noise = before
        if again is not None:
            again()
        problem.write(solution.vector)
        return problem, solution, noise, start_area, Discovery(expected, [], []), anchors
    if anchors is not None:
        columns = larger.free.columns("star")
        anchors = anchors.on(larger, columns[torch.isin(columns[:, 0], grown.old)])
        final = solve_near(larger, noise, max_iterations, report, anchors)
        history += final.history
        fitted = as_fitted(fitted, larger.free.model, grown)
    areas = {}
    for name in start_area:
        old = larger.anchored_area(name)[grown.kept[name]]
        areas[name] = old.new_empty(len(larger.free.model.components[name]))
        areas[name][grown.kept[name]] = old
        found = [math.log(one.area) for one in features if one.component == name]
        areas[name][grown.added[name]] = old.new_tensor(found)
    history = [*solution.history, *history]
    final = replace(final, history=[entry | {"iteration": k} for k, entry in enumerate(history)])
    return larger, final, noise, areas, Discovery(expected, fitted, places(features, grown)), anchors


def _gather(problem: AnchoredProblem, noise: NoiseModel, expected: float, max_iterations: int, report: Callable):
    """Features that narrow priors leave, in rounds, the strongest first; the problem is left near its solution.

    Also those of the last round that an old line may do as well at a low price. It begins where the fit began, lines at
    their clones and velocities found without what is far off: a deep line that is missing pulls both to itself.
    """
    features, doubtful, history = [], [], []
    larger, grown = problem, None
    freedom, lower, upper = problem.freedom, problem.lower, problem.upper
    problem.freedom = torch.full_like(freedom, torch.inf)
    reach = WITHIN * problem.precision**-0.5
    reach[problem.free.n_line_parameter :] = torch.inf
    problem.lower = torch.maximum(lower, problem.anchor - reach)
    problem.upper = torch.minimum(upper, problem.anchor + reach)
    velocities = [problem.free.global_slices[name] for name in ("rv", "vsini") if name in problem.free.global_slices]
    for own in velocities:
        problem.lower[own] = problem.upper[own] = problem.anchor[own]
    problem.write(problem.anchor)
    try:
        for _ in range(ROUNDS):
            rough = minimize(
                larger,
                max_iterations=min(ROUGH_ITERATIONS, max_iterations),
                absolute_tolerance=ALONE_TOLERANCE * len(problem.free.orders),
                callback=report,
            )
            history += rough.history
            vector = rough.vector
            at_bound = (vector <= larger.lower) | (vector >= larger.upper)
            precision = torch.where(at_bound, HELD, larger.prior_precision(vector))
            seen, threshold = search(larger.free, residuals(larger), noise.weights(), precision, expected)
            if grown is not None:
                features = as_fitted(features, larger.free.model, grown)
                problem.write(vector[grown.old])
            moves = [cheapest_move(one, problem, freedom) for one in seen]
            cheap = [move is not None and move.cost <= threshold**2 for move in moves]
            doubtful = _alone([one for one, is_cheap in zip(seen, cheap, strict=True) if is_cheap])
            seen = [one for one, is_cheap in zip(seen, cheap, strict=True) if not is_cheap]
            strongest = max((one.significance for one in seen), default=0.0)
            if velocities and strongest < STRONG * threshold:
                for own in velocities:
                    problem.lower[own], problem.upper[own] = lower[own], upper[own]
                velocities = []
                larger, grown = enlarged(problem, features)
                continue
            seen = _alone([one for one in seen if one.significance >= STRONGEST_FIRST * strongest])
            if not seen:
                doubtful = whose(problem, features, doubtful, max_iterations, report)
                break
            features = features + whose(problem, features, seen, max_iterations, report)
            larger, grown = enlarged(problem, features)
        else:
            doubtful = whose(problem, features, doubtful, max_iterations, report)
    finally:
        problem.freedom, problem.lower, problem.upper = freedom, lower, upper
    return features, doubtful, history


def _needed(
    problem: AnchoredProblem,
    larger: AnchoredProblem,
    grown: Grown,
    final: Solution,
    features: list[Feature],
    expected: float,
    max_iterations: int,
    report: Callable,
) -> list[Feature]:
    """Those of the features, as fitted, that the old lines cannot do without under their own priors.

    Where some go, the problem is left with the old lines beside them where these do best without.
    """
    fitted = as_fitted(features, larger.free.model, grown)
    factor = final.normal.factor()
    strengths = _significance(larger, grown, factor, features)
    weak = [at for at, one in enumerate(features) if strengths[at] <= STILL * one.level]
    if weak:
        gone = without_touching(fitted, sorted(weak, key=strengths.__getitem__))
        return [one for at, one in enumerate(fitted) if at not in gone]
    which = [at for at, one in enumerate(features) if not one.tried]
    if not which:
        return fitted
    known = (1.0 / factor.variance() - final.normal.prior_precision)[grown.old]
    start, trials = problem.read(), worth(problem, larger, grown, features, which, max_iterations, report)
    false = {at: expected_false(trial.gain, fitted[at], expected, problem, known) for at, trial in trials.items()}
    spared = [at for at in sorted(which, key=lambda at: trials[at].gain) if false[at] > expected]
    gone = without_touching(fitted, spared)  # the rest may have been spared for these: it is tried again
    for at in which:
        if at in gone:
            there = nearby(problem, fitted[at])
            start[there] = trials[at].without[there]
        elif at not in spared:
            fitted[at] = replace(fitted[at], tried=True, expected=max(false[at], fitted[at].expected))
    problem.write(start)
    return [one for at, one in enumerate(fitted) if at not in gone]


def _alone(features: list[Feature]) -> list[Feature]:
    """Those that have no stronger one beside them, of whose wings they may be all."""
    kept = []
    for one in sorted(features, key=lambda feature: -feature.significance):
        if all(abs(one.wavelength - other.wavelength) > BESIDE * observed_width(other) for other in kept):
            kept.append(one)
    return kept


def _significance(larger: AnchoredProblem, grown: Grown, factor: Factor, features: list[Feature]) -> list[float]:
    """Equivalent width of each new line over its error."""
    strengths = {}
    for name, columns in grown.columns.items():
        if not columns.numel():
            continue
        emulator, at = larger.free.model.components[name], grown.added[name]
        kinds = [KINDS.index(kind) for kind in grown.free.kinds[name]]
        covariance = torch.zeros(len(at), len(KINDS), len(KINDS), dtype=torch.float64)
        place = torch.tensor(kinds)
        covariance[:, place.unsqueeze(1), place] = factor.covariance_blocks(columns)
        line = (emulator.center[at], *(getattr(emulator, key).detach()[at] for key in ("area", "sigma", "gamma")))
        width, slope = equivalent_width_with_gradient(emulator.law, *line)
        variance = torch.einsum("ni,nij,nj->n", slope, covariance[:, :3, :3], slope)
        strengths[name] = iter((width / variance.clamp(min=1e-300).sqrt()).tolist())
    return [next(strengths[one.component]) for one in features]
