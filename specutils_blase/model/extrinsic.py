"""What motion does to a star's spectrum: Doppler shift and rotational broadening.

Does not live here: the kernels' formulae (`kernels`), anything the instrument does (`instrument`).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..physics.grids import SPEED_OF_LIGHT, DoublePrecision
from ..physics.kernels import convolve, rotation_half_width, rotation_taps, tap_tangents


class DopplerShift(DoublePrecision):
    """Radial velocity v: λ_observed = λ_rest (1 + v/c).

    Parameters
    ----------
    rv : float
        Radial velocity in km/s, positive for recession. Learnable as `rv`, always float64.
    """

    double = ("rv",)

    def __init__(self, rv: float = 0.0):
        super().__init__()
        self.rv = nn.Parameter(torch.tensor(float(rv), dtype=torch.float64))

    @property
    def factor(self) -> Tensor:
        return 1.0 + self.rv / SPEED_OF_LIGHT

    def forward(self, wavelength: Tensor) -> Tensor:
        """Rest wavelengths of observed ones."""
        return wavelength / self.factor


class RotationalBroadening(DoublePrecision):
    """Convolution with the rotation kernel on a uniform-velocity grid.

    Parameters
    ----------
    vsini : float
        Projected rotation velocity in km/s, ≥ 0. Learnable. Held above `floor`, where the kernel is a delta function
        for any spectrum and its derivative vanishes like v sin i itself.
    step : float
        Grid step in km/s.
    limb_darkening : (float, float)
        Quadratic coefficients u1, u2. Learnable as `limb_darkening`.
    max_vsini : float, optional
        Largest v sin i that the taps have room for; 1.5 vsini + 20 km/s when not given.
    """

    double = ("vsini", "limb_darkening")
    floor = 1e-2

    def __init__(self, vsini: float, step: float, *, limb_darkening=(0.0, 0.0), max_vsini: float | None = None):
        super().__init__()
        if not vsini >= 0.0:
            raise ValueError(f"vsini must not be negative, got {vsini} km/s")
        self.step = float(step)
        self.max_vsini = float(1.5 * vsini + 20.0 if max_vsini is None else max(max_vsini, vsini))
        self.vsini = nn.Parameter(torch.tensor(max(float(vsini), self.floor), dtype=torch.float64))
        self.limb_darkening = nn.Parameter(torch.tensor(tuple(map(float, limb_darkening)), dtype=torch.float64))

    @property
    def n_half(self) -> int:
        """Cells that the kernel needs now, by its current v sin i."""
        vsini = self.max_vsini if self.vsini.is_meta else min(float(self.vsini.detach()), self.max_vsini)
        return rotation_half_width(vsini / self.step)

    def taps(self, vsini: Tensor, limb_darkening: Tensor) -> Tensor:
        """Kernel taps as a function of the parameters, for differentiation."""
        cells = vsini.clamp(self.floor, self.max_vsini) / self.step
        return rotation_taps(cells, limb_darkening[0], limb_darkening[1], self.n_half)

    def tap_derivatives(self, chosen: slice = slice(None)) -> Tensor:
        """Taps' derivatives to (vsini, u1, u2), or to those `chosen` of them, shape (3, n_tap)."""
        point = torch.cat([self.vsini.detach().reshape(1), self.limb_darkening.detach()])
        directions = torch.eye(3, dtype=point.dtype, device=point.device)[chosen]
        return tap_tangents(lambda p: self.taps(p[0], p[1:]), point, directions)

    def forward(self, flux: Tensor) -> Tensor:
        return convolve(flux, self.taps(self.vsini, self.limb_darkening))
