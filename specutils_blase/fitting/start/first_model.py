"""The model of an observation at a start, with the noise and the orders that it stands for.

Does not live here: which start (`velocity`, `hypotheses`), what is free (`fitting`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...model.echelle import EchelleModel
from ...model.emulator import LineEmulator
from ...model.order import ForwardModel
from ...physics.grids import SPEED_OF_LIGHT
from ..inputs import lines_reaching, reached
from ..observation import ObservedOrder
from ..residuals.noise import NoiseModel
from ..residuals.rejection import impossible
from .cross_correlation import Solution
from .velocities import scatter


@dataclass(frozen=True)
class FirstModel:
    """A model at a start.

    Parameters
    ----------
    model : ForwardModel or EchelleModel
    orders : list of ObservedOrder
        Without the pixels that the star's template does not reach there.
    present : dict
        Component to the lines of it that any order can see; those of the model.
    noise : NoiseModel
    fluxes : list of Tensor
        Of each order, in units of its median.
    fixed : dict
        Component to which of its present lines are fixed, (n_line,) boolean.
    """

    model: ForwardModel | EchelleModel
    orders: list[ObservedOrder]
    present: dict[str, LineEmulator]
    noise: NoiseModel
    fluxes: list[Tensor]
    fixed: dict[str, Tensor]


def first_model(
    orders: list[ObservedOrder],
    components: dict[str, LineEmulator],
    start: Solution,
    *,
    fixed: dict[str, Tensor] | None = None,
    many: bool,
    jitter: bool,
    robust: bool,
    **options,
) -> FirstModel:
    """Build the model at a start.

    Parameters
    ----------
    orders : list of ObservedOrder
    components : dict
        "star", "telluric" to their lines, which are copied.
    start : Solution
    fixed : dict, optional
        Of each component, which of its lines are fixed, in the order of their shifted centres; none when not given.
    many : bool
        Whether the orders came as a list.
    jitter, robust : bool
        See `NoiseModel`.
    **options
        Of `ForwardModel.for_order`.
    """
    if "star" in components:
        star, kept = components["star"], []
        for order in orders:
            margin = SPEED_OF_LIGHT / order.resolving_power
            mask = reached(star, order.data.wavelength, start.rv, margin)
            kept.append(order if bool(mask[order.data.good].all()) else replace(order, data=order.data.select(mask)))
        orders = kept
    present, seen, places = _lines_seen(orders, components, start.rv)
    none = {name: torch.zeros(len(emulator), dtype=torch.bool) for name, emulator in components.items()}
    fixed = {name: (none if fixed is None else fixed)[name][places[name]] for name in present}
    for name, emulator in present.items():
        emulator.fixed = fixed[name] if bool(fixed[name].any()) else None
    options |= {"rv": start.rv, "vsini": start.vsini}
    model = _model(orders, present, seen, many, options)
    return FirstModel(model, orders, present, *_noise(orders, jitter, robust), fixed)


def union(indices: Iterable[Tensor]) -> Tensor:
    """Every index that occurs, once."""
    return torch.unique(torch.cat(tuple(indices)))


def _lines_seen(
    orders: list[ObservedOrder], components: dict[str, LineEmulator], rv: float
) -> tuple[dict[str, LineEmulator], list[dict[str, Tensor]], dict[str, Tensor]]:
    """Copies of the components with the lines that any order can see, which of these each order sees, and their places.

    Places are among all lines of a component, in the order of their shifted centres.
    """
    present, seen, places = {}, [{} for _ in orders], {}
    for name, emulator in components.items():
        velocity = rv if name == "star" else 0.0
        emulator = emulator.settled()
        reaching = [lines_reaching(emulator, name, order.span, velocity) for order in orders]
        every = union(reaching)
        present[name], places[name] = emulator.subset(every), every
        for own, lines in zip(seen, reaching, strict=True):
            own[name] = torch.searchsorted(every, lines)
    return present, seen, places


def _model(orders: list[ObservedOrder], present, seen, many: bool, options: dict) -> ForwardModel | EchelleModel:
    if not many:
        (order,) = orders
        data, power = order.data, order.resolving_power
        return ForwardModel.for_order(data.wavelength, data.edges, **present, resolving_power=power, **options)
    return EchelleModel.for_orders(
        [order.data.wavelength for order in orders],
        [order.data.edges for order in orders],
        **present,
        lines=seen,
        resolving_power=[order.resolving_power for order in orders],
        **options,
    )


def _noise(orders: list[ObservedOrder], jitter: bool, robust: bool) -> tuple[NoiseModel, list[Tensor]]:
    """Noise and flux of each order, in units of its median flux."""
    fluxes, sigma = zip(*map(_scaled, orders), strict=True)
    known = [order.data.noise_known for order in orders]
    good = [order.data.good for order in orders]
    return NoiseModel(sigma, good, known, jitter=jitter, robust=robust), list(fluxes)


def _scaled(order: ObservedOrder) -> tuple[Tensor, Tensor]:
    """Flux of an order and its noise, in units of the median flux."""
    flux = order.data.flux.double() / order.scale
    known = order.data.noise_known
    return flux, order.data.sigma.double() / order.scale if known else scatter(flux, order.data.good)


def without_impossible(order: ObservedOrder, emission: bool) -> ObservedOrder:
    """An order without the pixels that no spectrum can show; their fluxes stay, to be told.

    Parameters
    ----------
    order : ObservedOrder
    emission : bool
        Whether the model has emission lines.
    """
    codes = impossible(*_scaled(order), order.data.good, emission=emission)
    data = replace(order.data, good=order.data.good & (codes == 0))
    return replace(order, data=data, rejected=codes)
