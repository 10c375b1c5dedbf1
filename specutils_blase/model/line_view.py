"""Some of another emulator's lines, seen through its parameters.

Does not live here: the emulator itself (`lines`), which orders see which lines (`echelle`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..physics.grids import DoublePrecision
from .emulator import LineEmulator


def _of_parent(name: str) -> property:
    return property(lambda self: getattr(self.parent, name)[self.index], doc=f"`{name}` of the lines that are seen.")


class LineView(LineEmulator):
    """A `LineEmulator` of some lines of another, its parameters being the other's own.

    Each order of an échelle spectrum evaluates only the lines that reach it; a line in the overlap of two orders is
    still one line, and gradients of both orders arrive at its one set of parameters.

    Parameters
    ----------
    parent : LineEmulator
        Whose parameters are used; it stays the owner of them and of the law.
    index : Tensor, (n_line,)
        Lines of `parent`, ascending.
    """

    double = ()

    def __init__(self, parent: LineEmulator, index: Tensor):
        DoublePrecision.__init__(self)
        # Not a submodule: the parent belongs to the échelle model, once.
        object.__setattr__(self, "parent", parent)
        self.register_buffer("index", torch.as_tensor(index, dtype=torch.long))
        self.has_emission = bool((parent.sign[self.index] < 0).any())
        self.wavelength_range = parent.wavelength_range

    def __len__(self) -> int:
        return self.index.numel()

    @property
    def law(self):
        return self.parent.law

    @property
    def species(self) -> list[str] | None:
        known = self.parent.species
        return None if known is None else [known[k] for k in self.index.tolist()]

    center = _of_parent("center")
    sign = _of_parent("sign")
    ln_area = _of_parent("ln_area")
    ln_sigma = _of_parent("ln_sigma")
    ln_gamma = _of_parent("ln_gamma")
    rv_offset = _of_parent("rv_offset")

    def set_line_parameters(self, values: Tensor) -> None:
        """Overwrite the parent's parameters of these lines."""
        everything = self.parent.line_parameters().detach().clone()
        everything[self.index] = values
        self.parent.set_line_parameters(everything)
