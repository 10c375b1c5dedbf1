"""The forward model of many orders: the same components behind all of them.

Does not live here: the model of one order (`model.order`), which of its parameters are free (`model.parameters`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from .component import Component, OfComponents
from .emulator import LineEmulator
from .extrinsic import DopplerShift, RotationalBroadening
from .global_parameter import Owned
from .line_view import LineView
from .order import ForwardModel, star_and_telluric


class EchelleModel(OfComponents, nn.Module):
    """`ForwardModel` of every order, sharing lines, velocity, rotation, and laws of all components.

    Orders keep what is their own: pixels, line spread, continuum, and the grid on which lines are summed.

    Parameters
    ----------
    orders : sequence of ForwardModel
        In any order of wavelength. Their components must be `Component.placed` of this model's: `for_orders` sees to
        that.
    star, telluric : LineEmulator, optional
        The owners of the lines of the two usual components.
    components : iterable of Component
        All components, as owners of their lines, in place of `star` and `telluric`.
    """

    def __init__(
        self,
        orders: Sequence[ForwardModel],
        *,
        star: LineEmulator | None = None,
        telluric: LineEmulator | None = None,
        components: Iterable[Component] = (),
    ):
        super().__init__()
        if not len(orders):
            raise ValueError("an échelle model needs at least one order")
        usual = star_and_telluric(star, telluric, orders[0].doppler, orders[0].rotation)
        self.parts = nn.ModuleDict({part.name: part for part in (*usual, *components)})
        self.orders = nn.ModuleList(orders)
        wavelength = torch.cat([order.pixels.edges.mean(1) for order in orders])
        # Solvers see the pixels of all orders in order of wavelength: lines then touch neighbouring rows only, those in
        # the overlap of two orders as well.
        self.register_buffer("ascending", torch.argsort(wavelength, stable=True))
        place = torch.empty_like(self.ascending)
        place[self.ascending] = torch.arange(place.numel(), device=place.device)
        self.register_buffer("place", place)

    @classmethod
    def for_orders(
        cls,
        wavelengths: Sequence[Tensor],
        edges: Sequence[Tensor],
        *,
        star: LineEmulator | None = None,
        telluric: LineEmulator | None = None,
        rv: float = 0.0,
        vsini: float = 0.0,
        limb_darkening: tuple[float, float] = (0.0, 0.0),
        components: Sequence[Component] = (),
        lines: Sequence[dict[str, Tensor]] | None = None,
        resolving_power: Sequence | None = None,
        **options,
    ) -> EchelleModel:
        """Build the models of all orders.

        Parameters
        ----------
        wavelengths, edges : sequence of Tensor
            Pixel centres, (n,), and edges, (n, 2), of each order in vacuum Å, ascending.
        star, telluric : LineEmulator, optional
            The two usual components.
        rv, vsini, limb_darkening
            Of the star, see `ForwardModel.for_order`.
        components : sequence of Component
            Further ones, or all.
        lines : sequence of dict, optional
            Component to the lines of it that each order can see; all of them when not given.
        resolving_power : sequence, optional
            One value, or one sequence of coefficients, an order; None for no line spread.
        **options
            The others of `ForwardModel.for_order`.
        """
        motion = DopplerShift(rv), RotationalBroadening(vsini, limb_darkening=limb_darkening)
        parts = [*star_and_telluric(star, telluric, *motion), *components]
        everything = {part.name: torch.arange(len(part.emulator)) for part in parts if part.emulator is not None}
        orders = [
            ForwardModel.for_order(
                wavelength,
                edge,
                components=parts,
                lines=everything if lines is None else lines[k],
                resolving_power=None if resolving_power is None else resolving_power[k],
                **options,
            )
            for k, (wavelength, edge) in enumerate(zip(wavelengths, edges, strict=True))
        ]
        return cls(orders, components=parts)

    def with_components(self, lines: Sequence[dict[str, Tensor]], **emulators: LineEmulator) -> EchelleModel:
        """A model of other lines behind the same stages, which both models then share.

        Parameters
        ----------
        lines : sequence of dict
            Component to the lines of it that each order can see.
        **emulators : LineEmulator
            By component.
        """
        parts = [part.with_lines(emulators[name]) if name in emulators else part for name, part in self.parts.items()]
        orders = [
            order.with_components(**{name: LineView(emulator, seen[name]) for name, emulator in emulators.items()})
            for order, seen in zip(self.orders, lines, strict=True)
        ]
        return EchelleModel(orders, components=parts)

    def with_emulators(self, emulators: dict[str, LineEmulator], seen: Sequence[dict[str, Tensor]]) -> EchelleModel:
        """A model of other lines behind the same stages, whatever the number of orders.

        Parameters
        ----------
        emulators : dict
            Component to its new lines.
        seen : sequence of dict
            Of each order: component to the lines of it that the order can see.
        """
        return self.with_components(seen, **emulators)

    def seen_lines(self, k: int) -> dict[str, Tensor]:
        """Component to the lines of it that order k can see."""
        return {name: view.index for name, view in self.orders[k].components.items()}

    def global_parameters(self) -> dict[str, Owned]:
        """All parameters that touch every pixel of an order or of all, by name and, for an order's own, its suffix."""
        found = {}
        for k, order in enumerate(self.orders):
            for name, owned in order.global_parameters().items():
                key = name if owned.parameter.scope == "all" else f"{name}{self.suffix(k)}"
                found.setdefault(key, owned)
        return found

    def suffix(self, k: int) -> str:
        """What follows the name of a parameter that order k has for itself."""
        return f"[{k}]"

    def rows(self, k: int) -> Tensor:
        """Where the pixels of order k stand among those of all orders, in order of wavelength."""
        counts = [order.n_pixel for order in self.orders]
        first = sum(counts[:k])
        return self.place[first : first + counts[k]]

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        """One value a pixel of every order → one tensor in order of wavelength."""
        return torch.cat(tuple(parts))[self.ascending]

    def split(self, merged: Tensor) -> list[Tensor]:
        """The inverse of `merge`."""
        return list(merged[self.place].split([order.n_pixel for order in self.orders]))

    def forward(self) -> list[Tensor]:
        """Model flux of each order on its pixels."""
        return [order() for order in self.orders]
