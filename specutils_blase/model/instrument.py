"""What the spectrograph does: line spread, pixel integration, continuum.

Does not live here: kernel formulae (`physics.kernels`), overlap weights (`physics.grids`).
"""

from __future__ import annotations

import math
from copy import deepcopy

import torch
from torch import Tensor, nn

from ..physics.grids import SPEED_OF_LIGHT, DoublePrecision, pixel_overlap
from ..physics.kernels import FWHM_PER_SIGMA, GAUSSIAN_REACH, convolve, gaussian_taps, tap_tangents
from ..physics.saturation import legendre
from .global_parameter import LOGARITHMIC, GlobalParameter


class LineSpread(DoublePrecision):
    r"""Contract of a line spread on a uniform-velocity grid: the taps of its kernel, as a function of what it learns.

    A subclass gives `taps`, lists what they depend on in `global_parameters`, and calls ``place`` of this class; the
    derivatives follow from `taps`. ``fit(line_spread=)`` takes an instance that stands on no grid yet, and places a
    copy on the grid of each order.

    ln R is a Legendre polynomial Σ_k c_k P_k(x) of wavelength, x ∈ [-1, 1] over the grid; a constant by default.
    Learnable as `ln_resolving_power`, the coefficients c_k.

    Parameters
    ----------
    resolving_power : float or sequence of float, optional
        R = λ/FWHM; a sequence gives c_0 = ln R and further coefficients of ln R.
    grid : Tensor, (n,), optional
        Uniform-velocity wavelengths in Å.

    Examples
    --------
    >>> from specutils_blase.physics.grids import velocity_grid
    >>> spread = LineSpreadFunction(50_000.0, velocity_grid(8600.0, 8700.0, 1.0))
    >>> round(spread.current_taps().sum().item(), 6)
    1.0
    """

    double = ("ln_resolving_power", "basis")

    reach = GAUSSIAN_REACH
    """Standard deviations, of a Gaussian of this resolving power, at which the kernel is cut."""

    def __init__(self, resolving_power=None, grid: Tensor | None = None):
        super().__init__()
        self.ln_resolving_power = self.basis = None
        if grid is not None:
            self.place(resolving_power, grid)

    def place(self, resolving_power, grid: Tensor) -> None:
        """Stand on a grid, with a resolving power."""
        first, *rest = resolving_power if isinstance(resolving_power, (list, tuple)) else (resolving_power,)
        if not (float(first) > 0.0 and math.isfinite(float(first))):
            raise ValueError(f"resolving_power must be positive and finite, got {first}")
        coefficients = torch.tensor([math.log(float(first)), *map(float, rest)], dtype=torch.float64)
        grid = grid.to(torch.float64)
        self.step = float(torch.log(grid[-1] / grid[0]) / (grid.numel() - 1)) * SPEED_OF_LIGHT
        x = (2.0 * grid - grid[0] - grid[-1]) / (grid[-1] - grid[0])
        for name in ("ln_resolving_power", "basis"):
            if hasattr(self, name):
                delattr(self, name)
        self.register_buffer("basis", legendre(x, coefficients.numel()))
        self.ln_resolving_power = nn.Parameter(coefficients)
        # Room for the resolving power to fall by a third in a fit without the kernel being cut.
        widest = 1.5 * float(self.sigma_cells(coefficients).max())
        self.n_half = max(1, math.ceil(self.reach * widest))

    def placed(self, resolving_power, grid: Tensor) -> LineSpread:
        """A copy on a grid, with a resolving power."""
        other = deepcopy(self)
        other.place(resolving_power, grid)
        return other

    @property
    def resolving_power(self) -> Tensor:
        """R at the middle of the grid."""
        return self.ln_resolving_power[0].exp()

    def sigma_cells(self, ln_resolving_power: Tensor) -> Tensor:
        """Standard deviation in grid cells of a Gaussian of FWHM c/R: a scalar, or one a node when R varies."""
        if ln_resolving_power.numel() == 1:
            ln_r = ln_resolving_power[0]
        else:
            ln_r = ln_resolving_power @ self.basis
        return SPEED_OF_LIGHT * torch.exp(-ln_r) / (FWHM_PER_SIGMA * self.step)

    def taps(self, ln_resolving_power: Tensor, *further: Tensor) -> Tensor:
        """Kernel taps as a function of the parameters in the order of `global_parameters`: (n_tap,), or (n, n_tap).

        They stand at -n_half - 1 … n_half + 1 cells and sum to one; the second form differs from node to node.
        """
        raise NotImplementedError

    def current_taps(self) -> Tensor:
        """The taps at the present parameters."""
        return self.taps(*(getattr(self, parameter.attribute) for parameter in self.global_parameters()))

    def tap_derivatives(self, attribute: str = "ln_resolving_power") -> Tensor:
        """Derivatives of `taps`, whatever a subclass has for them, to each number of a parameter, (n_number, …)."""
        names = [parameter.attribute for parameter in self.global_parameters()]
        values = [getattr(self, name).detach() for name in names]
        place = names.index(attribute)
        point = values[place]

        def taps(changed: Tensor) -> Tensor:
            return self.taps(*values[:place], changed.reshape(point.shape), *values[place + 1 :])

        directions = torch.eye(point.numel(), dtype=point.dtype, device=point.device)
        return tap_tangents(taps, point.reshape(-1), directions)

    def global_parameters(self) -> tuple[GlobalParameter, ...]:
        """The resolving power; its prior says something, as lines of unknown width cannot tell it from their own."""
        label = ("resolving_power",)
        return (GlobalParameter("resolving_power", "ln_resolving_power", 0.1, 0.1, label, "", "order", LOGARITHMIC),)

    def flux_tangents(self, parameter: GlobalParameter, propagation) -> Tensor:
        """Derivatives of the flux to each number of a parameter, (n_number, n_pixel); see `Component.flux_tangents`."""
        taps = self.tap_derivatives(parameter.attribute)
        slope = parameter.transform.coordinate_slope(getattr(self, parameter.attribute).detach())
        change = torch.stack([convolve(propagation.stages.product, tap) for tap in taps])
        return propagation.from_smeared(change / torch.as_tensor(slope).reshape(-1, 1))

    def forward(self, flux: Tensor) -> Tensor:
        return convolve(flux, self.current_taps())


class LineSpreadFunction(LineSpread):
    """Gaussian line spread of FWHM c/R; see `LineSpread`.

    Parameters
    ----------
    resolving_power, grid
        As of `LineSpread`.
    """

    def taps(self, ln_resolving_power: Tensor) -> Tensor:
        """Taps of the Gaussian: (n_tap,), or (n, n_tap) when R varies."""
        return gaussian_taps(self.sigma_cells(ln_resolving_power), self.n_half)


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

    def global_parameters(self) -> tuple[GlobalParameter, ...]:
        """The coefficients, whose priors are wide enough to say nothing."""
        labels = tuple(f"continuum_{degree}" for degree in range(self.coefficients.numel()))
        return (
            GlobalParameter(
                "continuum", "coefficients", 1e2, 1e3, labels, "flux", "order", at_posterior_mean=False,
                in_flux_unit=True,
            ),
        )  # fmt: skip

    def flux_tangents(self, parameter: GlobalParameter, propagation) -> Tensor:
        """Derivatives of the flux to each coefficient, (n_coefficient, n_pixel)."""
        binned = propagation.stages.binned
        return binned * self.basis.to(binned.dtype)

    def forward(self, flux: Tensor) -> Tensor:
        return flux * self.value().to(flux.dtype)
