"""What a line more is worth to a objective: problems with more lines, compared near the features that the lines are of.

Does not live here: finding the features (`missing_lines`), which of them become lines (`line_discovery`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from scipy.special import stdtr
from torch import Tensor

from ...inference.minimize import minimize
from ...inference.objective import Objective
from ...inference.priors import LinePriors, penalty, square_of_penalty
from ...missing_lines.matched_filter import DECISIVE, LINE, Feature, Grown, with_lines
from ...physics.grids import SPEED_OF_LIGHT
from ..stages import ALONE_TOLERANCE, LOOSE, LOOSE_TOLERANCE
from ..start.held_line_fit import LOOSE_ITERATIONS

NEW_LINES = LinePriors(ln_area=2.0, ln_sigma=0.4, ln_gamma=0.5, rv_offset=1.0, degrees_of_freedom=float("inf"))
"""Priors of lines found, about the strength and the place where they were found, and the usual widths of their
component; `rv_offset` in thirds of the width with which the line is observed."""

TRIAL_ITERATIONS = 20
"""Limit on the iterations of a trial."""

NEAR = 2.0
"""Distance in observed widths up to which something is near a feature: a line that comes to do its work may have been
more than one away, and what it leaves behind there counts, too."""


def enlarged(objective: Objective, features: list[Feature]) -> tuple[Objective, Grown]:
    """The objective with more lines: the old ones with their priors, the new ones under `NEW_LINES`."""
    more, blur, usual = {}, {}, {}
    for name in objective.free.model.components:
        own = [feature for feature in features if feature.component == name]
        if own:
            columns = (torch.tensor([getattr(feature, key) for feature in own], dtype=torch.float64) for key in LINE)
            *line, blur[name] = columns
            more[name] = (*line, [feature.orders for feature in own])
            usual[name] = {
                kind: torch.tensor([feature.usual[kind] for feature in own], dtype=torch.float64).unbind(1)
                for kind in ("ln_sigma", "ln_gamma")
            }
    grown = with_lines(objective.free, more)
    larger = Objective(grown.free, objective.flux, objective.noise, objective.line_priors)
    names = ("mean", "precision", "freedom", "lower", "upper")
    new = {field: getattr(larger.priors, field).clone() for field in names}
    for name in more:
        for position, kind in enumerate(grown.free.kinds[name]):
            own, width = grown.columns[name][:, position], getattr(NEW_LINES, kind)
            if kind in usual[name]:
                new["mean"][own], scatter = usual[name][kind]
                width = scatter.clamp(getattr(objective.line_priors[name], kind), width)
            if kind == "rv_offset":
                width = width * blur[name] / 3.0
                new["lower"][own], new["upper"][own] = new["mean"][own] - blur[name], new["mean"][own] + blur[name]
            new["precision"][own] = torch.as_tensor(width, dtype=torch.float64) ** -2
            new["freedom"][own] = NEW_LINES.degrees_of_freedom
    return larger.with_priors(**new).taking(grown.old, objective, slice(None)), grown


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
        factor = 1.0 + model.parts[one.component].velocity / SPEED_OF_LIGHT
        values = {key: float(getattr(emulator, key)[at]) for key in ("area", "sigma", "gamma")}
        center = float(emulator.shifted_center[at])
        now.append(replace(one, wavelength=center * factor, center=center, **values))
    return now


def observed_width(one: Feature) -> float:
    """Width [Å] with which the feature would be observed, whosever it is."""
    return max(each.blur for each in (one, one.rival) if each is not None) * one.wavelength / SPEED_OF_LIGHT


def nearby(objective: Objective, one: Feature) -> Tensor:
    """Parameters of the lines near a feature."""
    near = []
    for name, emulator in objective.free.model.components.items():
        factor = 1.0 + objective.free.model.parts[name].velocity / SPEED_OF_LIGHT
        far = emulator.center[objective.free.lines[name]] * factor - one.wavelength
        near.append(objective.free.columns(name)[far.abs() < NEAR * observed_width(one)].reshape(-1))
    return torch.cat(near)


@torch.no_grad()
def costs_nearby(objective: Objective, features: list[Feature]) -> list[float]:
    """Cost of what is near each feature: its pixels, and the priors of all lines there."""
    rows, priors = objective.evaluate(objective.read())
    rows, total = objective.free.split(rows), []
    for one in features:
        cost = float(priors[nearby(objective, one)].sum())
        for k in one.orders:
            far = objective.free.orders[k].pixels.edges.mean(1) - one.wavelength
            cost += float(rows[k][far.abs() < NEAR * observed_width(one)].sum())
        total.append(cost)
    return total


def whose(
    objective: Objective, features: list[Feature], new: list[Feature], max_iterations: int, report: Callable
) -> list[Feature]:
    """New features as lines of the component that explains them better once their widths are free.

    The response to a strong line is not that to a weak one: as lines of usual widths a deep telluric line and a
    rotating star's look alike. All other lines follow along, velocities do not.
    """
    if all(one.rival is None for one in new):
        return new
    start, tried = objective.read(), []
    for chosen in (new, [one.rival or one for one in new]):
        larger, grown = enlarged(objective, features + chosen)
        larger = larger.holding(larger.free.velocities)
        limit = min(TRIAL_ITERATIONS, max_iterations)
        minimize(larger, max_iterations=limit, absolute_tolerance=ALONE_TOLERANCE, callback=report)
        tried.append(
            (as_fitted(features + chosen, larger.free.model, grown)[len(features) :], costs_nearby(larger, new))
        )
        objective.write(start)
    (best, costs), (other, rivals) = tried
    decided = []
    for one, rival, cost, price in zip(best, other, costs, rivals, strict=True):
        if one.component == rival.component:
            decided.append(one)
            continue
        clear = abs(price - cost) > DECISIVE
        one, rival = (rival, one) if price < cost else (one, rival)
        false = min(one.expected, rival.expected)  # whosever it is, it was found as the more significant of the two
        decided.append(replace(one, verdict=one.component if clear else "undecided", expected=false, rival=rival))
    return decided


@dataclass(frozen=True)
class Trial:
    """A feature taken out again.

    Parameters
    ----------
    gain : float
        The cost nearby that it takes the other lines to do without it, less that with it.
    without : Tensor, (n_parameter,)
        The old lines' parameters without it; only those nearby matter.
    """

    gain: float
    without: Tensor


def worth(
    objective: Objective,
    larger: Objective,
    grown: Grown,
    features: list[Feature],
    which: list[int],
    max_iterations: int,
    report: Callable,
) -> dict[int, Trial]:
    """What some of the features are worth to a objective.

    The other lines begin once from loose priors, as in a fit from the beginning, so that they find the way to do its
    work, and once with the cheapest of them where it does; the lower cost counts. All features of a trial are
    taken out at once as far as they do not touch, and what all lines share is held: each is judged by what is near.

    Parameters
    ----------
    objective : Objective
        Of the old lines, written where they are in the solution of `larger`.
    larger, grown : Objective, Grown
        With all features in it, at its solution.
    features : list of Feature
        As they were when it was made.
    which : list of int
        Those to try.

    Returns
    -------
    dict of int to Trial
        Of each of `which`.
    """
    start, trials = objective.read(), {}
    fitted, solved = as_fitted(features, larger.free.model, grown), larger.read()
    with_it = dict(zip(which, costs_nearby(larger, [fitted[at] for at in which]), strict=True))
    left = list(which)
    while left:
        group = without_touching(fitted, left)
        left = [at for at in left if at not in group]
        gone = [fitted[at] for at in group]
        stay = [at for at in range(len(features)) if at not in group]
        for begin in (_loosely, _taken_over):
            objective.write(start)
            poorer, less = enlarged(objective, [features[at] for at in stay])
            vector, own = poorer.read(), _columns(features, grown)
            for at, columns in zip(stay, _columns([features[at] for at in stay], less), strict=True):
                vector[columns] = solved[own[at]]
            poorer.write(vector)
            shared = slice(poorer.free.n_line_parameter, None)
            poorer = poorer.with_priors(poorer.priors.holding(shared, vector[shared]))
            begin(poorer, less, gone, max_iterations, report)
            limit = min(TRIAL_ITERATIONS, max_iterations)
            minimize(poorer, max_iterations=limit, absolute_tolerance=ALONE_TOLERANCE, from_afar=False, callback=report)
            old = poorer.read()[less.old]
            for at, cost in zip(group, costs_nearby(poorer, gone), strict=True):
                if at not in trials or cost - with_it[at] < trials[at].gain:
                    trials[at] = Trial(cost - with_it[at], old)
    objective.write(start)
    return trials


def _columns(features: list[Feature], grown: Grown) -> list[Tensor]:
    """Where the parameters of each feature's line stand."""
    queues = {name: iter(columns) for name, columns in grown.columns.items()}
    return [next(queues[one.component]) for one in features]


def expected_false(gain: float, feature: Feature, expected: float, objective: Objective, known: Tensor) -> float:
    r"""Number of false lines worth at least as much that a whole fit brings.

    Noise brings what Rice's formula says. But an old line that is in truth far out in the tail of its prior looks like
    one at its place in the template with a new one beside it, which spares it the price of the tail. A parameter that
    the data know with a precision q does so from the distance z (in widths s) on at which both its price and what the
    data would lose reach the gain g,

    .. math:: (ν + 1) \ln(1 + z^2 / ν) ≥ g, \quad q s^2 z^2 ≥ g,

    which is as likely as the prior says.

    Parameters
    ----------
    gain : float
    feature : Feature
    expected : float
        Number of false lines at the feature's `level`.
    objective : Objective
        Of the old lines.
    known : Tensor, (n_parameter,)
        q of their parameters.
    """
    gain = max(gain, 0.0)
    noise = expected * math.exp(0.5 * (feature.level**2 - gain))
    lines = slice(objective.free.n_line_parameter)
    freedom = objective.priors.freedom[lines]
    seen = gain * objective.priors.precision[lines] / known[lines].clamp(min=1e-300)
    far = torch.maximum(square_of_penalty(gain, freedom), seen).sqrt()
    return noise + float(2.0 * stdtr(freedom.numpy(), -far.numpy()).sum())


def without_touching(features: list[Feature], order: list[int]) -> list[int]:
    """Those of some features that can be taken out at once, the first first: what is near one is not near another.

    Of two that touch, either may be without use for the other's sake.
    """
    chosen: list[int] = []
    for at in order:
        if not any(_touching(features[at], features[other]) for other in chosen):
            chosen.append(at)
    return chosen


def _touching(one: Feature, other: Feature) -> bool:
    """Whether what is near one feature is near the other too."""
    return abs(one.wavelength - other.wavelength) < NEAR * (observed_width(one) + observed_width(other))


def _loosely(poorer: Objective, grown: Grown, gone: list[Feature], max_iterations: int, report: Callable) -> None:
    """Leave a objective where loose priors take its old lines."""
    loose = poorer.inflated(LOOSE)
    inflation = torch.ones_like(loose.priors.inflation)
    inflation[grown.old] = loose.priors.inflation[grown.old]
    minimize(
        loose.with_priors(inflation=inflation),
        max_iterations=min(LOOSE_ITERATIONS, max_iterations),
        absolute_tolerance=LOOSE_TOLERANCE * poorer.n_datum,
        callback=report,
    )


def _taken_over(poorer: Objective, grown: Grown, gone: list[Feature], max_iterations: int, report: Callable) -> None:
    """Leave a objective with the line that does so most cheaply in the place of each feature that is gone."""
    vector = poorer.read()
    for one in gone:
        cheapest = cheapest_move(one, poorer, poorer.priors.freedom)
        if cheapest is not None:
            vector[cheapest.columns] = cheapest.values
    poorer.write(poorer.project(vector))


@dataclass(frozen=True)
class Move:
    """A line that does what a feature would besides its own.

    Parameters
    ----------
    cost : float
        Of its strength and place under the priors, those of its widths aside.
    columns, values : Tensor, (2,)
        Where its ln area and offset stand among the parameters, and what they become.
    """

    cost: float
    columns: Tensor
    values: Tensor


@torch.no_grad()
def cheapest_move(feature: Feature, objective: Objective, freedom: Tensor) -> Move | None:
    """The least that it costs, with priors of these degrees of freedom, that a line does what the feature would."""
    best = None
    for name, emulator in objective.free.model.components.items():
        kinds, chosen = objective.free.kinds[name], objective.free.lines[name]
        if not {"ln_area", "rv_offset"} <= set(kinds) or not chosen.numel():
            continue
        columns = objective.free.columns(name)[:, [kinds.index("ln_area"), kinds.index("rv_offset")]]
        factor = objective.free.model.parts[name].doppler_factor
        distance = SPEED_OF_LIGHT * (feature.wavelength / (emulator.shifted_center[chosen] * factor) - 1.0)
        area = emulator.area[chosen].double()
        offset = emulator.rv_offset[chosen].double()
        values = torch.stack(
            [torch.log(area + feature.area), offset + distance * feature.area / (area + feature.area)], dim=1
        )
        square = objective.priors.precision[columns] * (values - objective.priors.mean[columns]).square()
        cost = penalty(square, freedom[columns]).sum(1)
        cost = cost.masked_fill((distance.abs() >= feature.blur) | (emulator.sign[chosen] <= 0), math.inf)
        at = int(cost.argmin())
        if float(cost[at]) < (math.inf if best is None else best.cost):
            best = Move(float(cost[at]), columns[at], values[at])
    return best
