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
from typing import NamedTuple

import torch
from torch import Tensor

from ...inference.linear.cholesky import Factor
from ...inference.minimize import minimize
from ...inference.objective import Objective
from ...inference.prior_mean import PriorMeans
from ...inference.solution import Solution
from ...ledger.equivalent_widths import equivalent_width_with_gradient
from ...missing_lines.matched_filter import HELD, Feature, Grown, search
from ...missing_lines.table import Discovery
from ...model.parameters import KINDS
from ..residuals.noise import NoiseModel
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


class Searched(NamedTuple):
    """A fit that has looked for missing lines.

    Parameters
    ----------
    objective, solution : Objective, Solution
        With all lines in it.
    noise : NoiseModel
    start_area : dict
        Component to ln area of every line at the start, of those found the strengths at which they were found.
    found : Discovery
    means : PriorMeans or None
        Of the star's lines beside those found.
    """

    objective: Objective
    solution: Solution
    noise: NoiseModel
    start_area: dict[str, Tensor]
    found: Discovery
    means: PriorMeans | None


def discover(before: Searched, expected: float, max_iterations: int, report: Callable) -> Searched:
    """Search the residuals of a fit for lines, add them, solve again.

    Parameters
    ----------
    before : Searched
        The fit, without anything found.
    expected : float
        Number of false lines that may be expected.
    max_iterations : int
    report : callable
    """
    objective, means = before.objective, before.means
    again = None
    if means is not None:  # lines that did what missing ones should tell nothing of it
        objective, again = means.forget(objective)
    noise = before.noise.anew()  # jitter may stand for what is missing
    objective = objective.with_noise(objective.free.merge(noise.weights()))
    features, doubtful, history = _gather(objective, noise, expected, max_iterations, report)
    features = features + doubtful
    while features:
        larger, grown = enlarged(objective, features)
        larger, final = solve_near(larger, noise, max_iterations, report)
        history += final.history
        objective.write(final.vector[grown.old])
        objective = objective.with_noise(larger.noise)
        fitted = _needed(objective, larger, grown, final, features, expected, max_iterations, report)
        if len(fitted) == len(features):
            larger.write(final.vector)
            break
        features = fitted
    if not features:  # nothing, or only what the old lines do as well under their own priors
        if again is not None:
            again()
        original = before.objective.afresh()
        original.write(before.solution.vector)
        return before._replace(objective=original, found=Discovery(expected, [], []))
    if means is not None:
        means = _means_of_old_lines(means, larger, grown)
        larger, final = solve_near(larger, noise, max_iterations, report, means)
        history += final.history
        fitted = as_fitted(fitted, larger.free.model, grown)
    areas = {}
    for name in before.start_area:
        old = larger.prior_mean_of_ln_area(name)[grown.kept[name]]
        areas[name] = old.new_empty(len(larger.free.model.components[name]))
        areas[name][grown.kept[name]] = old
        ln_area = [math.log(feature.area) for feature in features if feature.component == name]
        areas[name][grown.added[name]] = old.new_tensor(ln_area)
    history = [*before.solution.history, *history]
    final = replace(final, history=[entry | {"iteration": k} for k, entry in enumerate(history)])
    return Searched(larger, final, noise, areas, Discovery(expected, fitted, places(features, grown)), means)


def _means_of_old_lines(means: PriorMeans, larger: Objective, grown: Grown) -> PriorMeans:
    """The prior means of an objective to which lines have been added, which do not follow them."""
    free, moved = larger.free, []
    for mean in means.means:
        columns = free.columns(mean.component)
        moved.append(mean.on(free, columns[torch.isin(columns[:, 0], grown.old)]))
    old = {}
    for name, emulator in free.model.components.items():
        old[name] = torch.zeros(len(emulator), dtype=torch.float64)
        old[name][grown.kept[name]] = 1.0
    return PriorMeans(free, moved, old)


def _gather(objective: Objective, noise: NoiseModel, expected: float, max_iterations: int, report: Callable):
    """Features that narrow priors leave, in rounds, the strongest first; the model is left near its solution.

    Also those of the last round that an old line may do as well at a low prior penalty. It begins where the fit
    began, lines at their clones and velocities found without what is far off: a deep line that is missing draws both.
    """
    features, doubtful, history = [], [], []
    full = objective
    objective = _narrow(full)
    velocities = [objective.free.global_slices[name] for name in objective.free.velocities]
    for own in velocities:
        objective = objective.with_priors(objective.priors.holding(own, objective.priors.mean[own]))
    objective.write(objective.priors.mean)
    larger, grown = objective, None
    for _ in range(ROUNDS):
        rough = minimize(
            larger,
            max_iterations=min(ROUGH_ITERATIONS, max_iterations),
            absolute_tolerance=ALONE_TOLERANCE * len(objective.free.orders),
            callback=report,
        )
        history += rough.history
        vector = rough.vector
        at_bound = (vector <= larger.priors.lower) | (vector >= larger.priors.upper)
        precision = torch.where(at_bound, HELD, larger.priors.precision_at(vector))
        seen, threshold = search(larger.free, residuals(larger), noise.weights(), precision, expected)
        if grown is not None:
            features = as_fitted(features, larger.free.model, grown)
            objective.write(vector[grown.old])
        moves = [cheapest_move(feature, objective, full.priors.freedom) for feature in seen]
        cheap = [move is not None and move.cost <= threshold**2 for move in moves]
        doubtful = _alone([feature for feature, is_cheap in zip(seen, cheap, strict=True) if is_cheap])
        seen = [feature for feature, is_cheap in zip(seen, cheap, strict=True) if not is_cheap]
        strongest = max((feature.significance for feature in seen), default=0.0)
        if velocities and strongest < STRONG * threshold:
            objective, velocities = _narrow(full), []
            larger, grown = enlarged(objective, features)
            continue
        seen = _alone([feature for feature in seen if feature.significance >= STRONGEST_FIRST * strongest])
        if not seen:
            doubtful = whose(objective, features, doubtful, max_iterations, report)
            break
        features = features + whose(objective, features, seen, max_iterations, report)
        larger, grown = enlarged(objective, features)
    else:
        doubtful = whose(objective, features, doubtful, max_iterations, report)
    return features, doubtful, history


def _narrow(objective: Objective) -> Objective:
    """With Gaussian priors that end at `WITHIN` widths."""
    priors = objective.priors
    reach = WITHIN * priors.precision**-0.5
    reach[objective.free.n_line_parameter :] = torch.inf
    return objective.with_priors(
        freedom=torch.full_like(priors.freedom, torch.inf),
        lower=torch.maximum(priors.lower, priors.mean - reach),
        upper=torch.minimum(priors.upper, priors.mean + reach),
    )


def _needed(
    objective: Objective,
    larger: Objective,
    grown: Grown,
    final: Solution,
    features: list[Feature],
    expected: float,
    max_iterations: int,
    report: Callable,
) -> list[Feature]:
    """Those of the features, as fitted, that the old lines cannot do without under their own priors.

    Where some go, the objective is left with the old lines beside them where these do best without.
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
    start, trials = objective.read(), worth(objective, larger, grown, features, which, max_iterations, report)
    false = {at: expected_false(trial.gain, fitted[at], expected, objective, known) for at, trial in trials.items()}
    spared = [at for at in sorted(which, key=lambda at: trials[at].gain) if false[at] > expected]
    gone = without_touching(fitted, spared)  # the rest may have been spared for these: it is tried again
    for at in which:
        if at in gone:
            there = nearby(objective, fitted[at])
            start[there] = trials[at].without[there]
        elif at not in spared:
            fitted[at] = replace(fitted[at], tried=True, expected=max(false[at], fitted[at].expected))
    objective.write(start)
    return [one for at, one in enumerate(fitted) if at not in gone]


def _alone(features: list[Feature]) -> list[Feature]:
    """Those that have no stronger one beside them, of whose wings they may be all."""
    kept = []
    for one in sorted(features, key=lambda feature: -feature.significance):
        if all(abs(one.wavelength - other.wavelength) > BESIDE * observed_width(other) for other in kept):
            kept.append(one)
    return kept


def _significance(larger: Objective, grown: Grown, factor: Factor, features: list[Feature]) -> list[float]:
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
