"""Amounts and shift of a telluric template, as the prior means of its lines.

Does not live here: the equations (`inference.prior_mean`), the first amounts and shift, lines held
(`fitting.start.tellurics`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...inference.prior_mean import PriorMean
from ...model.emulator import LineEmulator
from ..start.tellurics import FACTOR_PRIOR, SHIFT_PRIOR, TelluricScale


class TelluricAmounts(PriorMean):
    """The logarithm of the factor on the optical depths of each species, and the shift of all lines.

    Parameters
    ----------
    component : str
        With its lines where `scale` left them.
    scale : TelluricScale
    """

    def __init__(self, component: str, scale: TelluricScale):
        self.species = list(scale.factors)
        factors = torch.tensor([scale.factors[name] for name in self.species], dtype=torch.float64)
        errors = [scale.errors[name] / scale.factors[name] for name in self.species]
        super().__init__(
            component,
            [*(f"ln_{name or 'amount'}" for name in self.species), "shift"],
            [*[FACTOR_PRIOR] * len(self.species), SHIFT_PRIOR],
            start=[*factors.log().tolist(), scale.shift],
            start_error=[*errors, scale.shift_error],
        )

    def design(self, emulator: LineEmulator) -> dict[str, Tensor]:
        """A factor on the lines of each species, and one shift."""
        species = emulator.species or [""] * len(emulator)
        # Lines that were found later are of no species: the fit holds them out of the design.
        member = torch.tensor([self.species.index(name) if name in self.species else -1 for name in species])
        area = torch.zeros(len(emulator), len(self.names), dtype=torch.float64)
        shift = torch.zeros_like(area)
        known = member >= 0
        area[known.nonzero().squeeze(-1), member[known]] = 1.0
        shift[:, -1] = 1.0
        device = emulator.center.device
        return {"ln_area": area.to(device), "rv_offset": shift.to(device)}

    def scale(self) -> TelluricScale:
        """The factors and the shift, with the errors that the scatter of the lines leaves them."""
        return TelluricScale.of(self.species, self.value, self.error)
