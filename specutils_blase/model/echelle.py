"""The forward model of many orders: one star and one sky behind all of them.

Does not live here: the model of one order (`model`), which of its parameters are free (`parameters`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .emulator import LineEmulator
from .extrinsic import DopplerShift
from .line_view import LineView
from .order import ForwardModel


class EchelleModel(nn.Module):
    """`ForwardModel` of every order, sharing the lines of star and sky, the velocity, the rotation, and the laws.

    Orders keep what is their own: pixels, line spread, continuum, and the grid on which lines are summed.

    Parameters
    ----------
    orders : sequence of ForwardModel
        In any order of wavelength. Their emulators must be `LineView` of `star` and `telluric`, their Doppler stage
        one object, their rotations' parameters the same objects; `for_orders` sees to that.
    star, telluric : LineEmulator, optional
        The owners of the lines.
    """

    def __init__(
        self,
        orders: Sequence[ForwardModel],
        *,
        star: LineEmulator | None = None,
        telluric: LineEmulator | None = None,
    ):
        super().__init__()
        if not len(orders):
            raise ValueError("an échelle model needs at least one order")
        self.star, self.telluric = star, telluric
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
            The two components.
        lines : sequence of dict, optional
            Component to the lines of it that each order can see; all of them when not given.
        resolving_power : sequence, optional
            One value, or one sequence of coefficients, an order; None for no line spread.
        **options
            The others of `ForwardModel.for_order`.
        """
        components = {"star": star, "telluric": telluric}
        components = {name: emulator for name, emulator in components.items() if emulator is not None}
        orders: list[ForwardModel] = []
        for k, (wavelength, edge) in enumerate(zip(wavelengths, edges, strict=True)):
            views = {
                name: LineView(emulator, torch.arange(len(emulator)) if lines is None else lines[k][name])
                for name, emulator in components.items()
            }
            order = ForwardModel.for_order(
                wavelength,
                edge,
                **views,
                resolving_power=None if resolving_power is None else resolving_power[k],
                **options,
            )
            if orders and order.doppler is not None:
                order.doppler = orders[0].doppler
                order.rotation.vsini = orders[0].rotation.vsini
                order.rotation.limb_darkening = orders[0].rotation.limb_darkening
            orders.append(order)
        return cls(orders, star=star, telluric=telluric)

    def with_components(self, lines: Sequence[dict[str, Tensor]], **components: LineEmulator) -> EchelleModel:
        """A model of other lines behind the same stages, which both models then share.

        Parameters
        ----------
        lines : sequence of dict
            Component to the lines of it that each order can see.
        **components : LineEmulator
            "star", "telluric".
        """
        orders = [
            order.with_components(**{name: LineView(emulator, seen[name]) for name, emulator in components.items()})
            for order, seen in zip(self.orders, lines, strict=True)
        ]
        return EchelleModel(orders, **components)

    @property
    def components(self) -> dict[str, LineEmulator]:
        """The emulators present, by name."""
        found = {"star": self.star, "telluric": self.telluric}
        return {name: emulator for name, emulator in found.items() if emulator is not None}

    @property
    def doppler(self) -> DopplerShift | None:
        """The shared Doppler stage."""
        return self.orders[0].doppler

    @property
    def rotation(self):
        """The first order's rotation, whose parameters are everybody's."""
        return self.orders[0].rotation

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


def orders_of(model: ForwardModel | EchelleModel) -> tuple[ForwardModel, ...]:
    """The models of the single orders of either."""
    return tuple(model.orders) if isinstance(model, EchelleModel) else (model,)
