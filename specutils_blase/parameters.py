"""Which parameters of a `ForwardModel` are free, and the vector in which a solver sees them.

Does not live here: derivatives on windows (`jacobian`), priors and limits (`priors`, `problem`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .model import ForwardModel, Stages

KINDS = ("ln_area", "ln_sigma", "ln_gamma", "rv_offset")
"""Line parameters, in the order of `LineEmulator.line_parameters`."""

GLOBALS = ("rv", "vsini", "limb_darkening", "resolving_power", "continuum", "star_law", "telluric_law")
"""Parameters that touch every pixel, in the order in which they follow the lines'.

Rotation stands in the vector as (v sin i)²: the kernel is even in v sin i, so near zero the spectrum is linear in the
square and flat in v sin i itself, where a Gauss-Newton step would be arbitrary.
"""


@dataclass(frozen=True)
class FreeParameters:
    """Which of a model's parameters are free, and where each stands in the parameter vector.

    Parameters
    ----------
    model : ForwardModel
    kinds : dict
        Component name to the free line parameters among `KINDS`.
    lines : dict
        Component name to the indices of its free lines.
    globals : tuple of str
        Free ones among `GLOBALS`.
    """

    model: ForwardModel
    kinds: dict[str, tuple[str, ...]]
    lines: dict[str, Tensor]
    globals: tuple[str, ...] = ()
    _tensors: dict[str, torch.nn.Parameter] = field(init=False, repr=False, compare=False)

    def __post_init__(self):
        model = self.model
        owners = {
            "rv": (model.doppler, "rv"),
            "vsini": (model.rotation, "vsini"),
            "limb_darkening": (model.rotation, "limb_darkening"),
            "resolving_power": (model.line_spread, "ln_resolving_power"),
            "continuum": (model.continuum, "coefficients"),
            "star_law": (model.star.law if model.star is not None else None, "coefficients"),
            "telluric_law": (model.telluric.law if model.telluric is not None else None, "coefficients"),
        }
        tensors = {}
        for name in self.globals:
            owner, attribute = owners[name]
            if owner is None:
                raise ValueError(f"{name} cannot be free: the model has no such stage")
            if name.endswith("_law") and not owner.n_parameter:
                continue
            tensors[name] = getattr(owner, attribute)
        object.__setattr__(self, "_tensors", tensors)

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

    def evaluate(self) -> tuple[Stages, Callable[[Tensor], Tensor]]:
        """All stages of one evaluation, and the way back: the exact Jᵀ × a cotangent of the flux, by autograd, once."""
        inputs, kinds = [], {}
        for name, emulator in self.model.components.items():
            kinds[name] = [getattr(emulator, kind) for kind in self.kinds[name]]
            inputs += kinds[name]
        inputs += list(self._tensors.values())
        with torch.enable_grad():
            stages = self.model.stages()

        def pull(cotangent: Tensor) -> Tensor:
            with torch.enable_grad():
                product = stages.flux @ cotangent.to(stages.flux.dtype)
            gradients = list(torch.autograd.grad(product, inputs))
            parts = []
            for name in self.model.components:
                own = [gradients.pop(0)[self.lines[name]] for _ in kinds[name]]
                if own:
                    parts.append(torch.stack(own, dim=-1).double().reshape(-1))
            for (name, tensor), gradient in zip(self._tensors.items(), gradients, strict=True):
                slope = 2.0 * tensor.detach() if name == "vsini" else 1.0
                parts.append((gradient.double() / slope).reshape(-1))
            return torch.cat(parts)

        return stages.detach(), pull

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
