"""Which parameters of a model are free, and the vector in which a solver sees them.

Does not live here: derivatives on windows (`inference.linear.jacobian`), priors and limits of lines
(`inference.priors`, `inference.objective`), parameters that touch every pixel (`model.global_parameter`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from ..physics.parallel import each
from .echelle import EchelleModel
from .global_parameter import GlobalParameter, Owned
from .order import ForwardModel, Stages

KINDS = ("ln_area", "ln_sigma", "ln_gamma", "rv_offset")
"""Line parameters, in the order of `LineEmulator.line_parameters`."""

GLOBALS = ("rv", "vsini", "limb_darkening", "resolving_power", "continuum", "star_law", "telluric_law")
"""Parameters that touch every pixel of a model of star and tellurics; further stages bring their own."""


@dataclass(frozen=True)
class FreeParameters:
    """Which of a model's parameters are free, and where each stands in the parameter vector.

    The vector has the lines' parameters first, component by component, then those that all orders share, then those of
    each order. In the dictionaries a name of an order's own parameter is followed by the model's suffix of the order,
    as "continuum[3]".

    Parameters
    ----------
    model : ForwardModel or EchelleModel
    kinds : dict
        Component name to the free line parameters among `KINDS`.
    lines : dict
        Component name to the indices of its free lines.
    globals : tuple of str
        Names of the free ones among the model's global parameters. A law without coefficients has none.
    """

    model: ForwardModel | EchelleModel
    kinds: dict[str, tuple[str, ...]]
    lines: dict[str, Tensor]
    globals: tuple[str, ...] = ()
    owned: dict[str, Owned] = field(init=False, repr=False, compare=False)
    """Each free global parameter and the stage that owns it, in the order of the vector."""

    def __post_init__(self):
        known = self.model.global_parameters()
        shared = {name: known[name] for name in self.globals if name in known and known[name].parameter.scope == "all"}
        own = {
            f"{name}{suffix}": known[f"{name}{suffix}"]
            for suffix in map(self.model.suffix, range(len(self.model.orders)))
            for name in self.globals
            if f"{name}{suffix}" in known and known[f"{name}{suffix}"].parameter.scope == "order"
        }
        found = {owned.parameter.name for owned in (shared | own).values()}
        for name in self.globals:
            # A saturation law without coefficients lists none.
            if name not in found and name.removesuffix("_law") not in self.model.components:
                raise ValueError(f"{name} cannot be free: the model has no such stage")
        object.__setattr__(self, "owned", shared | own)

    @property
    def _tensors(self) -> dict[str, torch.nn.Parameter]:
        return {key: owned.tensor for key, owned in self.owned.items()}

    @property
    def parameters(self) -> dict[str, GlobalParameter]:
        """Key of each free global parameter to what it is."""
        return {key: owned.parameter for key, owned in self.owned.items()}

    @property
    def shared(self) -> tuple[str, ...]:
        """Names of those that all orders share."""
        return tuple(name for name, parameter in self.parameters.items() if parameter.scope == "all")

    @property
    def velocities(self) -> tuple[str, ...]:
        """Names of those that each order is asked for alone."""
        return tuple(name for name, parameter in self.parameters.items() if parameter.told_by_each_order)

    @property
    def at_posterior_mean(self) -> tuple[str, ...]:
        """Names of those that a result has at the mean of their marginal posterior; not what one order of many has."""
        chosen = {name: p for name, p in self.parameters.items() if p.at_posterior_mean}
        return tuple(name for name, p in chosen.items() if p.name == name)

    def key_of(self, tensor: Tensor) -> str | None:
        """Name of the free global parameter that has this tensor; None where it is held."""
        return next((key for key, owned in self.owned.items() if owned.tensor is tensor), None)

    @property
    def orders(self) -> tuple[ForwardModel, ...]:
        """The models of the single orders."""
        return tuple(self.model.orders)

    def part(self, k: int) -> FreeParameters | OrderParameters:
        """The free parameters as order k sees them."""
        return self if self.model.orders[k] is self.model else OrderParameters.of(self, k)

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
            parts.append(self.owned[name].parameter.transform.coordinate(value))
        return torch.cat(parts)

    def merge(self, parts: list[Tensor]) -> Tensor:
        """One value a pixel of each order, as one tensor in the order in which solvers see them."""
        return self.model.merge(parts)

    def split(self, merged: Tensor) -> list[Tensor]:
        """The inverse of `merge`."""
        return self.model.split(merged)

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
                slope = self.owned[name].parameter.transform.coordinate_slope(tensor.detach())
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
            tensor.copy_(self.owned[name].parameter.transform.tensor(value))
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
        Name of a global parameter, without the order's suffix, to its place in the vector.
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
        slices = {}
        for name, owned in model.global_parameters().items():
            key = name if owned.parameter.scope == "all" else f"{name}{free.model.suffix(k)}"
            if key in free.owned:
                slices[name] = free.global_slices[key]
        return cls(model, free.kinds, lines, slices, columns)

    def columns(self, component: str) -> Tensor:
        """Position in the whole vector of each free parameter of each free line of this order."""
        return self._columns[component]
