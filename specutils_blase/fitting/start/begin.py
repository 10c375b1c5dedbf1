"""The start of a fit: velocities searched, the first fits compared, and the objective that a solver takes over.

Does not live here: the search (`fitting.start.initial_velocity`), the comparison (`fitting.start.hypotheses`), the
solution (`fitting.stages`).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torch import Tensor

from ...inference.objective import Objective
from ...inference.prior_mean import PriorMeans
from ...model.parameters import FreeParameters
from ...physics.grids import SPEED_OF_LIGHT
from ..held_lines import told_by_data
from ..inputs import Template, lines_inside
from ..observation import Observation
from ..options import FitOptions
from ..prior_means.star import StarLines
from ..prior_means.telluric import TelluricAmounts
from ..residuals.noise import NoiseModel
from .first_model import FirstModel, atmosphere_of, first_model, target_of, union, without_impossible
from .held_line_fit import implausible
from .hypotheses import Attempt, likeliest
from .initial_velocity import VelocitySearch, cross_correlate

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Started:
    """A fit that is ready to be solved.

    Parameters
    ----------
    observation : Observation
        The orders that take part.
    templates : tuple of Template
    options : FitOptions
    objective : Objective
    noise : NoiseModel
    means : PriorMeans or None
    star : StarLines or None
        The one of `means` that is the target's.
    tellurics : TelluricAmounts or None
        The one of `means` that is the atmosphere's.
    rv : float
        Velocity [km/s] at which the model was built.
    told : dict or None
        What is to be told of the start; see `hypotheses.likeliest`.
    held : dict
        Component to the number of its lines that are held though they lie in the data.
    """

    observation: Observation
    templates: tuple[Template, ...]
    options: FitOptions
    objective: Objective
    noise: NoiseModel
    means: PriorMeans | None
    star: StarLines | None
    tellurics: TelluricAmounts | None
    rv: float
    told: dict | None
    held: dict[str, int]


def start(observation: Observation, templates: Sequence[Template], options: FitOptions) -> Started:
    """Find where a fit begins, and what it has free there.

    Parameters
    ----------
    observation : Observation
        Covered by the templates.
    templates : sequence of Template
    options : FitOptions

    Raises
    ------
    ValueError
        If no order looks like its templates, or nothing is free.
    """
    if options.robust:
        emission = any(template.emulator is not None and template.emulator.has_emission for template in templates)
        orders = tuple(without_impossible(order, emission) for order in observation.orders)
        observation = replace(observation, orders=orders)
    observation, attempt, told = _likeliest_start(observation, templates, options)
    begun = attempt.begun
    model, noise = begun.model, begun.noise
    lines, held = _free_lines(begun, options)
    exist = {owned.parameter.name for owned in model.global_parameters().values()}
    kinds = {name: options.kinds_of(name) for name in begun.present}
    free = FreeParameters(model, kinds, lines, tuple(name for name in options.free if name in exist))
    if not len(free):
        raise ValueError("nothing is free: name parameters in free=, or some of the lines' in star_lines=")
    priors = {name: options.priors_of(name) for name in begun.present}
    objective = Objective(free, free.merge(begun.fluxes), free.merge(noise.weights()), priors)
    star = tellurics = None
    target, scale = model.target, attempt.telluric_scale
    if target is not None:
        star = StarLines(free, target.name, priors[target.name], attempt.held.star_scale)
    if scale is not None:
        tellurics = TelluricAmounts(model.atmosphere.name, scale)
    given = [mean.fresh() for mean in options.prior_means]
    means = [mean for mean in (star, tellurics, *given) if mean is not None]
    return Started(
        replace(observation, orders=tuple(begun.orders)),
        tuple(templates),
        options,
        objective,
        noise,
        PriorMeans(free, means) if means else None,
        star,
        tellurics,
        attempt.start.rv,
        told,
        held,
    )


def _likeliest_start(
    observation: Observation, templates: Sequence[Template], options: FitOptions
) -> tuple[Observation, Attempt, dict | None]:
    """The best first fit of the orders that look like their templates, and what is to be told of it."""
    target = target_of(templates)
    scaling = {
        "tellurics": options.scale_tellurics,
        "star": target is not None and "ln_area" in options.kinds_of(target.name),
    }
    resolution = SPEED_OF_LIGHT / observation.finest
    while True:
        search = _search(observation, templates, options)
        build = partial(first_model, observation, templates, options)
        attempt, told = likeliest(build, search, options.free, resolution, options.vsini is not None, scaling)
        begun = attempt.begun
        wrong = {}
        if observation.is_list:
            wrong = implausible(begun.model.orders, begun.fluxes, begun.noise.weights())
        if not wrong:
            return observation, attempt, told
        orders = observation.orders
        if len(wrong) == len(orders):
            raise ValueError(f"none of the orders looks like its templates: order {orders[0].name} {wrong[0]}")
        observation = observation.without(wrong)


def _search(observation: Observation, templates: Sequence[Template], options: FitOptions) -> VelocitySearch:
    """Velocities to start from: searched where something moves, and where they are not given."""
    target, atmosphere = target_of(templates), atmosphere_of(templates)
    if target is None:
        return VelocitySearch.given(options.rv or 0.0, options.vsini, len(observation.orders))
    search = cross_correlate(
        [order.data for order in observation.orders],
        target.emulator,
        None if atmosphere is None else atmosphere.emulator,
        rv=options.rv,
        vsini=options.vsini,
        resolving_power=[order.resolving_power for order in observation.orders],
        continuum=options.continuum,
    )
    logger.info("start: rv = %.2f km/s, v sin i = %.1f km/s", search.rv, search.vsini)
    return search


def _free_lines(begun: FirstModel, options: FitOptions) -> tuple[dict[str, Tensor], dict[str, int]]:
    """Lines of each component that are free, and how many that lie in the data are held."""
    model, inside = begun.model, {}
    for name, emulator in begun.present.items():
        # Where the model was built: what lies in the data must not depend on what first fits have moved.
        rv = begun.rv if name == _name(model.target) else model.parts[name].velocity
        inside[name] = union(lines_inside(emulator, order.fitted_span, rv) for order in begun.orders)
    lines = {name: index[~begun.fixed[name][index]] for name, index in inside.items()}
    fitted = {name: index for name, index in lines.items() if options.kinds_of(name)}
    velocities = {name: (part.velocity, part.vsini) for name, part in model.parts.items()}
    lines |= told_by_data(begun.present, fitted, begun.orders, begun.noise.weights(), velocities)
    held = {name: int(inside[name].numel() - lines[name].numel()) for name in inside}
    if any(held.values()):
        logger.info("lines held: %s", held)
    return lines, held


def _name(component) -> str | None:
    return None if component is None else component.name
