"""Amounts and shift of a telluric template, as the means of its lines' priors.

Does not live here: the equations (`common_changes`), the first amounts and shift, lines held (`telluric_scaling`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...inference.objective import AnchoredProblem
from ..start.tellurics import FACTOR_PRIOR, SHIFT_PRIOR, TelluricScale
from .changes import CommonChanges


class TelluricAnchors(CommonChanges):
    """The factors and the shift that the telluric lines of a problem have in common.

    Parameters
    ----------
    problem : AnchoredProblem
        With the tellurics where `scale` left them.
    scale : TelluricScale
    """

    def __init__(self, problem: AnchoredProblem, scale: TelluricScale):
        self.names = list(scale.factors)
        emulator, free = problem.free.model.telluric, problem.free
        species = list(emulator.species or [""] * len(emulator))
        device = emulator.center.device
        self.member = torch.tensor([self.names.index(each) for each in species], device=device)
        factors = torch.tensor([scale.factors[name] for name in self.names], dtype=torch.float64, device=device)
        state = torch.cat([factors.log(), factors.new_tensor([scale.shift])])
        errors = [scale.errors[name] / scale.factors[name] for name in self.names]
        error = factors.new_tensor([*errors, scale.shift_error])
        precision = factors.new_tensor([FACTOR_PRIOR**-2] * len(self.names) + [SHIFT_PRIOR**-2])
        columns, lines, kinds = free.columns("telluric"), free.lines["telluric"], free.kinds["telluric"]
        self.area, self.offset = (
            columns[:, kinds.index(kind)] if kind in kinds else columns.new_empty(0)
            for kind in ("ln_area", "rv_offset")
        )
        design = factors.new_zeros(len(free), len(state))
        if self.area.numel():
            design[self.area, self.member[lines]] = 1.0
        design[self.offset, -1] = 1.0
        super().__init__(problem, state, error, precision, design)

    def _change(self, step: Tensor, vector: Tensor) -> Tensor:
        """The free lines' offsets count from the centres, which move."""
        problem, emulator = self.problem, self.problem.free.model.telluric
        self.state += step
        if self.area.numel():
            emulator.change_together(ln_area=step[self.member])
            problem.anchor[self.area] += self.design[self.area] @ step
        if self.offset.numel():
            emulator.change_together(shift=step[-1])
            vector[self.offset] -= step[-1]
        return vector

    def scale(self) -> TelluricScale:
        """The factors and the shift, with the errors that the scatter of the lines leaves them."""
        return TelluricScale.of(self.names, self.state, self.error)
