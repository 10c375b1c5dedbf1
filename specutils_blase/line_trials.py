"""What a line more is worth to a problem: problems with more lines, compared near the features that the lines are of.

Does not live here: finding the features (`missing_lines`), which of them become lines (`line_discovery`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from .grids import SPEED_OF_LIGHT
from .least_squares import minimize
from .missing_lines import DECISIVE, LINE, Feature, Grown, with_lines
from .priors import LinePriors
from .problem import AnchoredProblem
from .solving import ALONE_TOLERANCE, LOOSE, LOOSE_TOLERANCE
from .starting import LOOSE_ITERATIONS

NEW_LINES = LinePriors(ln_area=2.0, ln_sigma=0.4, ln_gamma=0.5, rv_offset=1.0, degrees_of_freedom=float("inf"))
"""Priors of lines found, about the strength and the place where they were found, and the usual widths of their
component; `rv_offset` in thirds of the width with which the line is observed."""

TRIAL_ITERATIONS = 20
"""Limit on the iterations of a trial."""


def enlarged(problem: AnchoredProblem, features: list[Feature]) -> tuple[AnchoredProblem, Grown]:
    """The problem with more lines: the old ones anchored where they were, the new ones under `NEW_LINES`."""
    more, blur, usual = {}, {}, {}
    for name in problem.free.model.components:
        own = [one for one in features if one.component == name]
        if own:
            columns = (torch.tensor([getattr(one, key) for one in own], dtype=torch.float64) for key in LINE)
            *line, blur[name] = columns
            more[name] = (*line, [one.orders for one in own])
            usual[name] = {
                kind: torch.tensor([one.usual[kind] for one in own], dtype=torch.float64).unbind(1)
                for kind in ("ln_sigma", "ln_gamma")
            }
    grown = with_lines(problem.free, more)
    larger = AnchoredProblem(grown.free, problem.flux, problem.weight, problem.line_priors)
    for name in more:
        for position, kind in enumerate(grown.free.kinds[name]):
            own, width = grown.columns[name][:, position], getattr(NEW_LINES, kind)
            if kind in usual[name]:
                larger.anchor[own], scatter = usual[name][kind]
                width = scatter.clamp(getattr(problem.line_priors[name], kind), width)
            if kind == "rv_offset":
                width = width * blur[name] / 3.0
                larger.lower[own], larger.upper[own] = larger.anchor[own] - blur[name], larger.anchor[own] + blur[name]
            larger.precision[own] = torch.as_tensor(width, dtype=torch.float64) ** -2
            larger.freedom[own] = NEW_LINES.degrees_of_freedom
    for which in ("anchor", "lower", "upper", "precision", "freedom", "limit"):
        getattr(larger, which)[grown.old] = getattr(problem, which)
    return larger, grown


def places(features: list[Feature], grown: Grown) -> list[int]:
    """Where each feature's line stands among its component's."""
    queues = {name: iter(added.tolist()) for name, added in grown.added.items()}
    return [next(queues[one.component]) for one in features]


@torch.no_grad()
def as_fitted(features: list[Feature], model, grown: Grown) -> list[Feature]:
    """The features with their lines, and their observed wavelengths, as the model has them now."""
    now = []
    for one, at in zip(features, places(features, grown), strict=True):
        emulator = model.components[one.component]
        factor = float(model.doppler.factor) if one.component == "star" else 1.0
        values = {key: float(getattr(emulator, key)[at]) for key in ("area", "sigma", "gamma")}
        center = float(emulator.shifted_center[at])
        now.append(replace(one, wavelength=center * factor, center=center, **values))
    return now


def observed_width(one: Feature) -> float:
    """Width [Å] with which the feature would be observed, whosever it is."""
    return max(each.blur for each in (one, one.rival) if each is not None) * one.wavelength / SPEED_OF_LIGHT


def nearby(problem: AnchoredProblem, one: Feature) -> Tensor:
    """Parameters of the lines that a feature touches."""
    near = []
    for name, emulator in problem.free.model.components.items():
        factor = float(problem.free.model.doppler.factor.detach()) if name == "star" else 1.0
        far = emulator.center[problem.free.lines[name]] * factor - one.wavelength
        near.append(problem.free.columns(name)[far.abs() < observed_width(one)].reshape(-1))
    return torch.cat(near)


@torch.no_grad()
def costs_nearby(problem: AnchoredProblem, features: list[Feature]) -> list[float]:
    """Cost of what is near each feature: its pixels, and the priors of all lines there."""
    rows, priors = problem.evaluate(problem.read())
    rows, total = problem.free.split(rows), []
    for one in features:
        cost = float(priors[nearby(problem, one)].sum())
        for k in one.orders:
            far = problem.free.orders[k].pixels.edges.mean(1) - one.wavelength
            cost += float(rows[k][far.abs() < observed_width(one)].sum())
        total.append(cost)
    return total


def whose(
    problem: AnchoredProblem, features: list[Feature], new: list[Feature], max_iterations: int, report: Callable
) -> list[Feature]:
    """New features as lines of the component that explains them better once their widths are free.

    The response to a strong line is not that to a weak one: as lines of usual widths a deep telluric line and a
    rotating star's look alike. All other lines follow along, velocities do not.
    """
    if all(one.rival is None for one in new):
        return new
    start, tried = problem.read(), []
    for chosen in (new, [one.rival or one for one in new]):
        larger, grown = enlarged(problem, features + chosen)
        for name in {"rv", "vsini"} & set(larger.free.global_slices):
            own = larger.free.global_slices[name]
            larger.lower[own] = larger.upper[own] = larger.read()[own]
        limit = min(TRIAL_ITERATIONS, max_iterations)
        minimize(larger, max_iterations=limit, absolute_tolerance=ALONE_TOLERANCE, callback=report)
        tried.append(
            (as_fitted(features + chosen, larger.free.model, grown)[len(features) :], costs_nearby(larger, new))
        )
        problem.write(start)
    (best, costs), (other, rivals) = tried
    decided = []
    for one, rival, cost, price in zip(best, other, costs, rivals, strict=True):
        if one.component == rival.component:
            decided.append(one)
            continue
        clear = abs(price - cost) > DECISIVE
        one, rival = (rival, one) if price < cost else (one, rival)
        decided.append(replace(one, verdict=one.component if clear else "undecided", rival=rival))
    return decided


def worth(
    problem: AnchoredProblem,
    larger: AnchoredProblem,
    features: list[Feature],
    n: int,
    max_iterations: int,
    report: Callable,
) -> tuple[list[float], Tensor]:
    """What the last n features are worth: the cost that it takes the old lines to do without them, less that with them.

    From loose priors, as in a fit from the beginning, so that an old line finds the way to do the new one's work.
    Also the old lines' parameters without them.
    """
    doubtful = features[-n:]
    costs = costs_nearby(larger, doubtful)
    poorer, grown = enlarged(problem, features[:-n])
    poorer.loosen(LOOSE)
    new = torch.ones_like(poorer.slack, dtype=torch.bool)
    new[grown.old] = False
    poorer.slack[new] = 1.0
    minimize(
        poorer,
        max_iterations=min(LOOSE_ITERATIONS, max_iterations),
        absolute_tolerance=LOOSE_TOLERANCE * poorer.n_datum,
        callback=report,
    )
    poorer.loosen(None)
    minimize(
        poorer,
        max_iterations=min(TRIAL_ITERATIONS, max_iterations),
        absolute_tolerance=ALONE_TOLERANCE * len(problem.free.orders),
        from_afar=False,
        callback=report,
    )
    gains = [price - cost for price, cost in zip(costs_nearby(poorer, doubtful), costs, strict=True)]
    return gains, poorer.read()[grown.old]


@torch.no_grad()
def least_cost(feature: Feature, problem: AnchoredProblem, freedom: Tensor) -> float:
    """The least that it costs under the priors as they are that an old line does what the feature would."""
    cheapest = math.inf
    for name, emulator in problem.free.model.components.items():
        kinds, chosen = problem.free.kinds[name], problem.free.lines[name]
        if not {"ln_area", "rv_offset"} <= set(kinds) or not chosen.numel():
            continue
        columns = problem.free.columns(name)
        factor = problem.free.model.doppler.factor if name == "star" else 1.0
        distance = SPEED_OF_LIGHT * (feature.wavelength / (emulator.shifted_center[chosen] * factor) - 1.0)
        area = emulator.area[chosen].double()
        moves = {
            "ln_area": torch.log(area + feature.area) - problem.anchor[columns[:, kinds.index("ln_area")]],
            "rv_offset": distance * feature.area / (area + feature.area),
        }
        total = torch.zeros_like(area)
        for kind, move in moves.items():
            own = columns[:, kinds.index(kind)]
            square = problem.precision[own] * move.square()
            heavy = freedom[own].isfinite()
            tails = torch.where(heavy, freedom[own], 1.0)
            total += torch.where(heavy, (tails + 1.0) * torch.log1p(square / tails), square)
        near = (distance.abs() < feature.blur) & (emulator.sign[chosen] > 0)
        if bool(near.any()):
            cheapest = min(cheapest, float(total[near].min()))
    return cheapest
