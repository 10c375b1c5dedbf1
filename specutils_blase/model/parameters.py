"""Which parameters of a `ForwardModel` are free, and the vector in which a solver sees them.

Does not live here: derivatives on windows (`jacobian`), priors and limits (`priors`, `problem`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..physics.parallel import each
from .echelle import EchelleModel, orders_of
from .order import ForwardModel, Stages

KINDS = ("ln_area", "ln_sigma", "ln_gamma", "rv_offset")
"""Line parameters, in the order of `LineEmulator.line_parameters`."""

GLOBALS = ("rv", "vsini", "limb_darkening", "resolving_power", "continuum", "star_law", "telluric_law")
"""Parameters that touch every pixel, in the order in which they follow the lines'.

Rotation stands in the vector as (v sin i)²: the kernel is even in v sin i, so near zero the spectrum is linear in the
square and flat in v sin i itself, where a Gauss-Newton step would be arbitrary.
"""


ORDER_GLOBALS = ("resolving_power", "continuum")
"""Those of `GLOBALS` that every order of an échelle spectrum has for itself."""


@dataclass(frozen=True)
class FreeParameters:
    """Which of a model's parameters are free, and where each stands in the parameter vector.

    The vector has the lines' parameters first, component by component, then the shared `GLOBALS`, then those of each
    order. In the dictionaries a name of an order's own parameter is followed by the order's position, as
    "continuum[3]", if the model is an `EchelleModel`.

    Parameters
    ----------
    model : ForwardModel or EchelleModel
    kinds : dict
        Component name to the free line parameters among `KINDS`.
    lines : dict
        Component name to the indices of its free lines.
    globals : tuple of str
        Free ones among `GLOBALS`.
    """

    model: ForwardModel | EchelleModel
    kinds: dict[str, tuple[str, ...]]
    lines: dict[str, Tensor]
    globals: tuple[str, ...] = ()
    _tensors: dict[str, torch.nn.Parameter] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        model, many = self.model, isinstance(self.model, EchelleModel)
        owners = {
            "rv": (model.doppler, "rv"),
            "vsini": (model.rotation, "vsini"),
            "limb_darkening": (model.rotation, "limb_darkening"),
            "star_law": (model.star.law if model.star is not None else None, "coefficients"),
            "telluric_law": (model.telluric.law if model.telluric is not None else None, "coefficients"),
        }
        wanted = {name: (name, *owners[name]) for name in self.globals if name in owners}
        for k, order in enumerate(self.orders):
            own = {
                "resolving_power": (order.line_spread, "ln_resolving_power"),
                "continuum": (order.continuum, "coefficients"),
            }
            wanted |= {f"{name}[{k}]" if many else name: (name, *own[name]) for name in self.globals if name in own}
        tensors = {}
        for key, (name, owner, attribute) in wanted.items():
            if owner is None:
                raise ValueError(f"{name} cannot be free: the model has no such stage")
            if name.endswith("_law") and not owner.n_parameter:
                continue
            tensors[key] = getattr(owner, attribute)
        object.__setattr__(self, "_tensors", tensors)

    @property
    def orders(self) -> tuple[ForwardModel, ...]:
        """The models of the single orders."""
        return orders_of(self.model)

    def part(self, k: int) -> FreeParameters | OrderParameters:
        """The free parameters as order k sees them."""
        return OrderParameters.of(self, k) if isinstance(self.model, EchelleModel) else self

    def columns(self, component: str) -> Tensor:
        """Position in the vector of each free parameter of each free line, (n_free_line, n_kind)."""
        start = 0
        for name in self.model.components:
            n_line, n_kind = self.lines[name].numel(), len(self.kinds[name])
            if name == component:
                count = torch.arange(n_line * n_kind, device=self.lines[name].device)
                return start + count.reshape(n_line, n_kind)
            start += n_line * n_kind
        raise KeyError(component)

    @property
    def n_line_parameter(self) -> int:
        return sum(self.lines[name].numel() * len(self.kinds[name]) for name in self.model.components)

    @property
    def global_slices(self) -> dict[str, slice]:
        """Position of each free global parameter in the vector."""
        start, slices = self.n_line_parameter, {}
        for name, tensor in self._tensors.items():
            slices[name] = slice(start, start + tensor.numel())
            start += tensor.numel()
        return slices

    def __len__(self) -> int:
        return self.n_line_parameter + sum(tensor.numel() for tensor in self._tensors.values())

    def read(self) -> Tensor:
        """Present values as one float64 vector."""
        parts = []
        for name, emulator in self.model.components.items():
            kinds = [KINDS.index(kind) for kind in self.kinds[name]]
            parts.append(emulator.line_parameters().detach()[self.lines[name]][:, kinds].double().reshape(-1))
        for name, tensor in self._tensors.items():
            value = tensor.detach().double().reshape(-1)
            parts.append(value.square() if name == "vsini" else value)
        return torch.cat(parts)

    def merge(self, parts: list[Tensor]) -> Tensor:
        """One value a pixel of each order, as one tensor in the order in which solvers see them."""
        return self.model.merge(parts) if isinstance(self.model, EchelleModel) else parts[0]

    def split(self, merged: Tensor) -> list[Tensor]:
        """The inverse of `merge`."""
        return self.model.split(merged) if isinstance(self.model, EchelleModel) else [merged]

    def flux(self) -> Tensor:
        """Model flux of all orders, as `merge` puts them."""
        return self.merge(each(ForwardModel.forward, self.orders))

    def evaluate(self) -> tuple[Tensor, list[Stages], Callable[[Tensor], Tensor]]:
        """Flux, stages of each order, and the way back: the exact Jᵀ × a cotangent of the flux, by autograd, once."""
        inputs, kinds = [], {}
        for name, emulator in self.model.components.items():
            kinds[name] = [getattr(emulator, kind) for kind in self.kinds[name]]
            inputs += kinds[name]
        inputs += list(self._tensors.values())
        # An order's graph needs no other's: orders go forward and back side by side.
        stages = each(_recorded, self.orders)
        flux = self.merge([part.flux.detach() for part in stages])

        def pull(cotangent: Tensor) -> Tensor:
            back = partial(_pulled, inputs)
            parts = each(back, zip(stages, self.split(cotangent.to(flux.dtype)), strict=True))
            gradients = [torch.stack(parts).sum(0) for parts in zip(*parts, strict=True)]
            parts = []
            for name in self.model.components:
                own = [gradients.pop(0)[self.lines[name]] for _ in kinds[name]]
                if own:
                    parts.append(torch.stack(own, dim=-1).double().reshape(-1))
            for (name, tensor), gradient in zip(self._tensors.items(), gradients, strict=True):
                slope = 2.0 * tensor.detach() if name == "vsini" else 1.0
                parts.append((gradient.double() / slope).reshape(-1))
            return torch.cat(parts)

        return flux, [part.detach() for part in stages], pull

    @torch.no_grad()
    def write(self, vector: Tensor) -> None:
        """Put a vector into the model."""
        start = 0
        for name, emulator in self.model.components.items():
            lines, kinds = self.lines[name], [KINDS.index(kind) for kind in self.kinds[name]]
            count = lines.numel() * len(kinds)
            if count:
                values = emulator.line_parameters()
                part = vector[start : start + count].reshape(lines.numel(), len(kinds)).to(values.dtype)
                values[lines.unsqueeze(1), torch.tensor(kinds, device=lines.device)] = part
                emulator.set_line_parameters(values)
            start += count
        for name, tensor in self._tensors.items():
            value = vector[start : start + tensor.numel()].reshape(tensor.shape)
            tensor.copy_(value.clamp(min=0.0).sqrt() if name == "vsini" else value)
            start += tensor.numel()


def _recorded(order: ForwardModel) -> Stages:
    with torch.enable_grad():
        return order.stages()


def _pulled(inputs: list[Tensor], item: tuple[Stages, Tensor]) -> tuple[Tensor, ...]:
    """Jᵀ × the cotangent of one order's flux."""
    stages, cotangent = item
    with torch.enable_grad():
        product = stages.flux @ cotangent
    return torch.autograd.grad(product, inputs, materialize_grads=True)


@dataclass(frozen=True)
class OrderParameters:
    """What one order sees of the `FreeParameters` of an échelle model: its own lines, the whole vector's positions.

    Parameters
    ----------
    model : ForwardModel
        Of the order.
    kinds, lines : dict
        As of `FreeParameters`; lines are counted as the order's own emulators count them.
    global_slices : dict
        Name of a global parameter, without an order's position, to its place in the vector.
    """

    model: ForwardModel
    kinds: dict[str, tuple[str, ...]]
    lines: dict[str, Tensor]
    global_slices: dict[str, slice]
    _columns: dict[str, Tensor] = field(repr=False)

    @classmethod
    def of(cls, free: FreeParameters, k: int) -> OrderParameters:
        model = free.model.orders[k]
        lines, columns = {}, {}
        for name, view in model.components.items():
            row = torch.full((len(view.parent),), -1, dtype=torch.long, device=view.index.device)
            row[free.lines[name]] = torch.arange(free.lines[name].numel(), device=row.device)
            seen = row[view.index]
            lines[name] = (seen >= 0).nonzero().squeeze(-1)
            columns[name] = free.columns(name)[seen[lines[name]]]
        suffix = f"[{k}]"
        slices = {
            key.removesuffix(suffix): place
            for key, place in free.global_slices.items()
            if key.endswith(suffix) or "[" not in key
        }
        return cls(model, free.kinds, lines, slices, columns)

    def columns(self, component: str) -> Tensor:
        """Position in the whole vector of each free parameter of each free line of this order."""
        return self._columns[component]
