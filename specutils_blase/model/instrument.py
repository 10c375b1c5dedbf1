"""What the spectrograph does: line spread, pixel integration, continuum.

Does not live here: kernel formulae (`kernels`), overlap weights (`grids`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..physics.grids import SPEED_OF_LIGHT, DoublePrecision, pixel_overlap
from ..physics.kernels import FWHM_PER_SIGMA, convolve, gaussian_half_width, gaussian_taps, tap_tangents
from ..physics.saturation import legendre


class LineSpreadFunction(DoublePrecision):
    r"""Gaussian line spread of FWHM c/R on a uniform-velocity grid.

    ln R is a Legendre polynomial Σ_k c_k P_k(x) of wavelength, x ∈ [-1, 1] over the grid; a constant by default.
    Learnable as `ln_resolving_power`, the coefficients c_k.

    Parameters
    ----------
    resolving_power : float or sequence of float
        R = λ/FWHM; a sequence gives c_0 = ln R and further coefficients of ln R.
    grid : Tensor, (n,)
        Uniform-velocity wavelengths in Å.
    """

    double = ("ln_resolving_power", "basis")

    def __init__(self, resolving_power, grid: Tensor):
        super().__init__()
        first, *rest = resolving_power if isinstance(resolving_power, (list, tuple)) else (resolving_power,)
        if not (float(first) > 0.0 and math.isfinite(float(first))):
            raise ValueError(f"resolving_power must be positive and finite, got {first}")
        coefficients = torch.tensor([math.log(float(first)), *map(float, rest)], dtype=torch.float64)
        grid = grid.to(torch.float64)
        self.step = float(torch.log(grid[-1] / grid[0]) / (grid.numel() - 1)) * SPEED_OF_LIGHT
        x = (2.0 * grid - grid[0] - grid[-1]) / (grid[-1] - grid[0])
        self.register_buffer("basis", legendre(x, coefficients.numel()))
        self.ln_resolving_power = nn.Parameter(coefficients)
        # Room for the resolving power to fall by a third in a fit without the kernel being cut.
        self.n_half = gaussian_half_width(1.5 * float(self.sigma_cells(coefficients).max()))

    @property
    def resolving_power(self) -> Tensor:
        """R at the middle of the grid."""
        return self.ln_resolving_power[0].exp()

    def sigma_cells(self, ln_resolving_power: Tensor) -> Tensor:
        """Kernel standard deviation in grid cells: a scalar, or one a node when R varies."""
        if ln_resolving_power.numel() == 1:
            ln_r = ln_resolving_power[0]
        else:
            ln_r = ln_resolving_power @ self.basis
        return SPEED_OF_LIGHT * torch.exp(-ln_r) / (FWHM_PER_SIGMA * self.step)

    def taps(self, ln_resolving_power: Tensor) -> Tensor:
        """Kernel taps as a function of the parameters: (n_tap,), or (n, n_tap) when R varies."""
        return gaussian_taps(self.sigma_cells(ln_resolving_power), self.n_half)

    def tap_derivatives(self) -> Tensor:
        """Taps' derivatives to each coefficient, (n_coefficient, ...)."""
        sigma = self.sigma_cells(self.ln_resolving_power.detach())
        slope = tap_tangents(lambda s: gaussian_taps(s, self.n_half), sigma, torch.ones_like(sigma).unsqueeze(0))
        if sigma.ndim == 0:
            return -sigma * slope
        return slope * (-sigma * self.basis).unsqueeze(-1)  # each node's taps depend on its own sigma only

    def forward(self, flux: Tensor) -> Tensor:
        return convolve(flux, self.taps(self.ln_resolving_power))


class PixelBinning(DoublePrecision):
    """Mean flux of a spectrum on a uniform-velocity grid over pixels with their own edges.

    Parameters
    ----------
    edges : Tensor, (n_pixel, 2)
        Lower and upper edge of each pixel in Å; neighbours need not touch.
    grid : Tensor, (n,)
        Uniform-velocity wavelengths in Å reaching beyond all edges.
    """

    double = ("edges", "weight")

    def __init__(self, edges: Tensor, grid: Tensor):
        super().__init__()
        start, weight = pixel_overlap(edges, grid)
        self.register_buffer("edges", edges.to(torch.float64))  # not used again here: files rebuild the weights from it
        node = start.unsqueeze(1) + torch.arange(weight.shape[1], device=weight.device)
        self.register_buffer("start", start)
        self.register_buffer("node", node.clamp(max=grid.numel() - 1))
        self.register_buffer("weight", weight)

    def forward(self, flux: Tensor) -> Tensor:
        return (flux[..., self.node] * self.weight.to(flux.dtype)).sum(-1)


class Continuum(DoublePrecision):
    """Legendre polynomial Σ_k c_k P_k(x), x ∈ [-1, 1] from the first to the last wavelength.

    Parameters
    ----------
    wavelength : Tensor, (n,)
        Pixel centres in Å.
    degree : int
        Polynomial degree, ≥ 0.
    """

    double = ("coefficients", "wavelength", "basis")

    def __init__(self, wavelength: Tensor, degree: int = 2):
        super().__init__()
        if degree < 0:
            raise ValueError(f"the continuum's degree must be 0 or more, got {degree}")
        wavelength = wavelength.to(torch.float64)
        x = (2.0 * wavelength - wavelength[0] - wavelength[-1]) / (wavelength[-1] - wavelength[0])
        self.register_buffer("wavelength", wavelength)
        self.register_buffer("basis", legendre(x, degree + 1))
        coefficients = torch.zeros(degree + 1, dtype=torch.float64)
        coefficients[0] = 1.0
        self.coefficients = nn.Parameter(coefficients)

    def value(self) -> Tensor:
        """Continuum at each wavelength."""
        return self.coefficients @ self.basis

    def forward(self, flux: Tensor) -> Tensor:
        return flux * self.value().to(flux.dtype)
