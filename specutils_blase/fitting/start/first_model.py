"""The model of an observation at a start, with the noise and the orders that it stands for.

Does not live here: which start (`fitting.start.initial_velocity`, `fitting.start.hypotheses`), what is free
(`fitting.pipeline`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...model.component import Component
from ...model.echelle import EchelleModel
from ...model.emulator import LineEmulator
from ...model.order import ForwardModel
from ...physics.grids import SPEED_OF_LIGHT
from ..inputs import Template, lines_reaching, reached
from ..observation import Observation, ObservedOrder
from ..options import FitOptions
from ..residuals.noise import NoiseModel
from ..residuals.rejected_pixels import impossible
from .initial_velocity import StartingPoint


@dataclass(frozen=True)
class FirstModel:
    """A model at a start.

    Parameters
    ----------
    model : ForwardModel or EchelleModel
    orders : list of ObservedOrder
        Without the pixels that the target's template does not reach there.
    present : dict
        Component to the lines of it that any order can see; those of the model.
    noise : NoiseModel
    fluxes : list of Tensor
        Of each order, in units of its median.
    fixed : dict
        Component to which of its present lines are fixed, (n_line,) boolean.
    rv : float
        The start's, km/s.
    """

    model: ForwardModel | EchelleModel
    orders: list[ObservedOrder]
    present: dict[str, LineEmulator]
    noise: NoiseModel
    fluxes: list[Tensor]
    fixed: dict[str, Tensor]
    rv: float


def target_of(templates: Sequence[Template]) -> Template | None:
    """The template of what is observed: the first of lines that shine and move; its velocities are looked for."""
    moving = (template for template in templates if template.moves and template.component.shines)
    return next((template for template in moving if template.emulator is not None), None)


def atmosphere_of(templates: Sequence[Template]) -> Template | None:
    """The first template of lines that absorb and do not move."""
    still = (template for template in templates if not template.moves and not template.component.shines)
    return next((template for template in still if template.emulator is not None), None)


def first_model(
    observation: Observation, templates: Sequence[Template], options: FitOptions, start: StartingPoint
) -> FirstModel:
    """Build the model at a start, of copies of the templates' lines.

    Parameters
    ----------
    observation : Observation
    templates : sequence of Template
    options : FitOptions
    start : StartingPoint
    """
    target, orders = target_of(templates), list(observation.orders)
    if target is not None:
        kept = []
        for order in orders:
            mask = reached(target.emulator, order.data.wavelength, start.rv, SPEED_OF_LIGHT / order.resolving_power)
            kept.append(order if bool(mask[order.data.good].all()) else replace(order, data=order.data.select(mask)))
        orders = kept
    components, seen, fixed = [], [{} for _ in orders], {}
    for template in templates:
        if template.emulator is None:
            components.append(template.component.alone(None))
            continue
        velocity = start.rv if template is target else template.component.velocity
        lines, places, own = _lines_seen(orders, template, velocity)
        for of_order, index in zip(seen, own, strict=True):
            of_order[template.name] = index
        fixed[template.name] = held = template.held[places]
        lines.fixed = held if bool(held.any()) else None
        component = template.component.alone(lines)
        if template is target:
            component = component.at(start.rv, start.vsini, options.limb_darkening)
        components.append(component)
    model = _model(orders, components, seen, observation.is_list, options)
    noise = NoiseModel(
        [order.sigma for order in orders],
        [order.data.good for order in orders],
        [order.data.noise_known for order in orders],
        jitter=options.jitter,
        robust=options.robust,
    )
    present = {component.name: component.emulator for component in components if component.emulator is not None}
    return FirstModel(model, orders, present, noise, [order.flux for order in orders], fixed, start.rv)


def union(indices: Iterable[Tensor]) -> Tensor:
    """Every index that occurs, once."""
    return torch.unique(torch.cat(tuple(indices)))


def _lines_seen(
    orders: list[ObservedOrder], template: Template, rv: float
) -> tuple[LineEmulator, Tensor, list[Tensor]]:
    """A copy of a template's lines that any order can see, their places, and which of these each order sees.

    Places are among all lines of the template, in the order of their shifted centres.
    """
    emulator = template.emulator.settled()
    reaching = [lines_reaching(emulator, order.span, rv, template.moves) for order in orders]
    every = union(reaching)
    return emulator.subset(every), every, [torch.searchsorted(every, lines) for lines in reaching]


def _model(
    orders: list[ObservedOrder], components: list[Component], seen, is_list: bool, options: FitOptions
) -> ForwardModel | EchelleModel:
    common = {
        "components": components,
        "line_spread": options.line_spread,
        "continuum_degree": options.continuum,
        "velocity_step": options.velocity_step,
    }
    if not is_list:
        (order,) = orders
        data, power = order.data, order.resolving_power
        return ForwardModel.for_order(data.wavelength, data.edges, resolving_power=power, **common)
    return EchelleModel.for_orders(
        [order.data.wavelength for order in orders],
        [order.data.edges for order in orders],
        lines=seen,
        resolving_power=[order.resolving_power for order in orders],
        **common,
    )


def without_impossible(order: ObservedOrder, emission: bool) -> ObservedOrder:
    """An order without the pixels that no spectrum can show; their fluxes stay, to be told.

    Parameters
    ----------
    order : ObservedOrder
    emission : bool
        Whether the model has emission lines.
    """
    codes = impossible(order.flux, order.sigma, order.data.good, emission=emission)
    data = replace(order.data, good=order.data.good & (codes == 0))
    return replace(order, data=data, rejected=codes)
