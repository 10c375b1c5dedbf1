"""What motion does to a star's spectrum: Doppler shift and rotational broadening.

Does not live here: the kernels' formulae (`physics.kernels`), anything the instrument does (`model.instrument`).
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor, nn

from ..physics.grids import SPEED_OF_LIGHT, DoublePrecision, Sampling
from ..physics.kernels import convolve, rotation_half_width, rotation_taps, tap_tangents
from .global_parameter import SQUARED, GlobalParameter

EIGHTH_ORDER = (-1 / 280, 4 / 105, -1 / 5, 4 / 5, 0.0, -4 / 5, 1 / 5, -4 / 105, 1 / 280)
"""Weights of a spectral difference."""


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

    def global_parameters(self) -> tuple[GlobalParameter, ...]:
        """The radial velocity, whose prior is wide enough to say nothing."""
        velocity = GlobalParameter("rv", "rv", 1e3, 5.0, ("rv",), "km / s", told_by_each_order=True)
        return (velocity,)

    def tangents(self, spectrum: Tensor, sampling: Sampling) -> Tensor:
        """∂S/∂v on the nodes, (1, n): by spectral differences, S being resolved on a uniform-velocity grid.

        ln λ_rest = ln λ - ln(1 + v/c), so ∂S/∂v = -(∂S/∂ln λ) / (c + v). The eighth-order difference is exact to 1e-4
        of the slope for a feature three nodes wide, and 1e-7 for one of six.
        """
        slope = convolve(spectrum, spectrum.new_tensor(EIGHTH_ORDER)) / sampling.step
        return (-slope / (SPEED_OF_LIGHT * self.factor).to(spectrum.dtype)).unsqueeze(0)


class RotationalBroadening(DoublePrecision):
    """Convolution with the rotation kernel on a uniform-velocity grid.

    Parameters
    ----------
    vsini : float
        Projected rotation velocity in km/s, ≥ 0. Learnable. Held above `floor`, where the kernel is a delta function
        for any spectrum and its derivative vanishes like v sin i itself.
    step : float
        Grid step in km/s; `placed` gives it to other grids.
    limb_darkening : (float, float)
        Quadratic coefficients u1, u2. Learnable as `limb_darkening`.
    max_vsini : float, optional
        Largest v sin i that the taps have room for; 1.5 vsini + 20 km/s when not given.
    """

    double = ("vsini", "limb_darkening")
    floor = 1e-2

    def __init__(self, vsini: float, step: float = 1.0, *, limb_darkening=(0.0, 0.0), max_vsini: float | None = None):
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
        """Derivatives of `taps` to (vsini, u1, u2), or to those `chosen` of them, (3, n_tap)."""
        point = torch.cat([self.vsini.detach().reshape(1), self.limb_darkening.detach()])
        directions = torch.eye(3, dtype=point.dtype, device=point.device)[chosen]
        return tap_tangents(lambda p: self.taps(p[0], p[1:]), point, directions)

    def tangents(self, attribute: str, spectrum: Tensor) -> Tensor:
        """Change of the rotated spectrum with (v sin i)², or with each limb-darkening coefficient, (n, n_node)."""
        is_speed = attribute == "vsini"
        taps = self.tap_derivatives(slice(0, 1) if is_speed else slice(1, None))
        if is_speed:
            taps = taps / (2.0 * self.vsini.detach())
        return torch.stack([convolve(spectrum, tap) for tap in taps])

    def global_parameters(self) -> tuple[GlobalParameter, ...]:
        """Rotation and limb darkening.

        The solver sees (v sin i)²: the kernel is even in v sin i, so near zero the spectrum is linear in the square and
        flat in v sin i itself, where a Gauss-Newton step would be arbitrary. Data rarely say anything of limb
        darkening: its prior does.
        """
        speed = GlobalParameter(
            "vsini", "vsini", 1e4, _longest_square, ("vsini",), "km / s", transform=SQUARED, bounds=_square_bounds,
            told_by_each_order=True,
        )  # fmt: skip
        labels = "limb_darkening_u1", "limb_darkening_u2"
        return speed, GlobalParameter("limb_darkening", "limb_darkening", 0.1, 0.2, labels)

    def placed(self, step: float) -> RotationalBroadening:
        """The same rotation, its parameters shared, on a grid of another step [km/s]."""
        other = copy(self)
        for name in ("_parameters", "_buffers", "_modules"):
            other.__dict__[name] = dict(self.__dict__[name])
        other.step = float(step)
        return other

    def forward(self, flux: Tensor) -> Tensor:
        return convolve(flux, self.taps(self.vsini, self.limb_darkening))


def _longest_square(start: Tensor) -> Tensor:
    """Largest change of (v sin i)² in an iteration."""
    return 0.5 * start + 10.0


def _square_bounds(rotation: RotationalBroadening) -> tuple[float, float]:
    """Between what (v sin i)² must stay: where the kernel has room."""
    return rotation.floor**2, rotation.max_vsini**2
