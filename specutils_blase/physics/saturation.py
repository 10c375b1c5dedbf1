"""Saturation laws: from the opacity of lines to flux.

A law has two parts. `opacity` turns the depth-like product y = a V of one line into the quantity t that adds up over
lines; `flux` turns the sum τ = Σ t into the flux S. Each returns its value and its derivative, so that the analytic
Jacobian and autograd share one definition.

Does not live here: profiles, or which line is in emission (`model.emulator`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .kernels import tap_tangents


class SaturationLaw(nn.Module):
    """Contract of a law; see the module docstring.

    `n_parameter` counts the law's own learnable parameters, held in `coefficients`. These and `wavelength_range`
    [Å] exist only where > 0.
    """

    name: str
    n_parameter: int = 0
    coefficients: Tensor
    wavelength_range: tuple[float, float]

    def opacity(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Additive opacity t(y) of one line, and dt/dy."""
        return y, torch.ones_like(y)

    @property
    def is_identity(self) -> bool:
        """Whether t(y) = y, as here: then nothing need be evaluated."""
        return type(self).opacity is SaturationLaw.opacity

    def depth_of(self, opacity: Tensor) -> Tensor:
        """The y whose opacity t(y) this is: the inverse of `opacity`, clipped where the law has no answer."""
        return opacity

    def is_steep(self, peak: Tensor) -> Tensor:
        """Whether lines of this largest y change t(y) faster than the profile itself changes."""
        return torch.zeros_like(peak, dtype=torch.bool)

    def flux(self, tau: Tensor, wavelength: Tensor) -> tuple[Tensor, Tensor]:
        """Flux S(τ), and dS/dτ."""
        raise NotImplementedError

    def parameter_derivatives(self, tau: Tensor, wavelength: Tensor) -> Tensor:
        """∂S/∂coefficients, shape (n_parameter, n): of whatever `flux` a subclass has."""
        if not self.n_parameter:
            return tau.new_zeros((0, tau.numel()))
        point = self.coefficients.detach()

        def flux(coefficients: Tensor) -> Tensor:
            return torch.func.functional_call(self, {"coefficients": coefficients}, (tau.detach(), wavelength))

        return tap_tangents(flux, point, torch.eye(point.numel(), dtype=point.dtype, device=point.device))

    def forward(self, tau: Tensor, wavelength: Tensor) -> Tensor:
        """Flux S(τ)."""
        return self.flux(tau, wavelength)[0]

    def line_depth(self, flux_depth: Tensor, wavelength: Tensor) -> Tensor:
        """Opacity τ that gives a depth 1 - S: the inverse of `flux`, clipped where the law has no answer."""
        raise NotImplementedError


class Exponential(SaturationLaw):
    """S = exp(-Σ a V): the "log" flux scale. Saturated lines stay physical."""

    name = "log"

    def flux(self, tau: Tensor, wavelength: Tensor) -> tuple[Tensor, Tensor]:
        flux = torch.exp(-tau)
        return flux, -flux

    def line_depth(self, flux_depth: Tensor, wavelength: Tensor) -> Tensor:
        return -torch.log1p(-flux_depth.clamp(max=1.0 - 1e-4))


class Product(SaturationLaw):
    """S = Π (1 - a V): the "linear" flux scale.

    Written as exp(-Σ t) with t = -ln(1 - y), which is a sum over lines. Above y = `guard` (g) the factor 1 - y is
    continued by (1 - g)/(1 + u + u²), u = (y - g)/(1 - g), with the same value and first two derivatives at g: it stays
    positive where the plain product would change sign, and falls off so slowly that even a core ten times too deep
    keeps a gradient that float32 can see. Below the guard the law is exact.
    """

    name = "linear"

    def __init__(self, guard: float = 0.95):
        super().__init__()
        self.guard = guard

    def opacity(self, y: Tensor) -> tuple[Tensor, Tensor]:
        # Where it is known that no line comes near the guard, most of the work below is idle.
        largest = float(y.detach().max()) if y.device.type == "cpu" and y.numel() else 1.0
        if largest < 1e-3:
            # Five terms of the series are exact to rounding.
            opacity = (y / 5.0).add_(0.25).mul_(y).add_(1.0 / 3.0).mul_(y).add_(0.5).mul_(y).add_(1.0).mul_(y)
            return opacity, 1.0 / (1.0 - y)
        if largest < self.guard:
            return torch.log1p(-y).neg_(), 1.0 / (1.0 - y)
        inverse = 1.0 / (1.0 - self.guard)
        inside = y.clamp(max=self.guard)
        over = (y - self.guard).clamp(min=0.0) * inverse
        opacity = -torch.log1p(-inside) + torch.log1p(over + over.square())
        slope = torch.where(
            y < self.guard, 1.0 / (1.0 - inside), inverse * (1.0 + 2.0 * over) / (1.0 + over + over.square())
        )
        return opacity, slope

    def depth_of(self, opacity: Tensor) -> Tensor:
        return -torch.expm1(-opacity.clamp(max=-math.log1p(-self.guard)))

    def is_steep(self, peak: Tensor) -> Tensor:
        return peak > 0.5  # -ln(1 - y) varies on the scale 1 - y, and has a corner in its third derivative at the guard

    def flux(self, tau: Tensor, wavelength: Tensor) -> tuple[Tensor, Tensor]:
        flux = torch.exp(-tau)
        return flux, -flux

    def line_depth(self, flux_depth: Tensor, wavelength: Tensor) -> Tensor:
        return -torch.log1p(-flux_depth.clamp(max=1.0 - 1e-4))


class Minnaert(SaturationLaw):
    r"""S = 1 - τ R_c / (τ + R_c) with the limiting depth R_c(λ) smooth and learnable (Minnaert 1935).

    R_c = sigmoid(Σ_k c_k P_k(x)), Legendre polynomials on x ∈ [-1, 1] over `wavelength_range`, so 0 < R_c < 1 and the
    flux never falls to zero, as in real atmospheres whose line cores see the temperature minimum.
    """

    name = "minnaert"

    def __init__(self, wavelength_range: tuple[float, float], limiting_depth: float = 0.82, degree: int = 0):
        super().__init__()
        if not 0.0 < limiting_depth < 1.0:
            raise ValueError(f"limiting_depth must lie between 0 and 1, got {limiting_depth}")
        self.n_parameter = degree + 1
        self.wavelength_range = (float(wavelength_range[0]), float(wavelength_range[1]))
        coefficients = torch.zeros(degree + 1, dtype=torch.float64)
        coefficients[0] = math.log(limiting_depth / (1.0 - limiting_depth))
        self.coefficients = nn.Parameter(coefficients)

    def _basis(self, wavelength: Tensor) -> Tensor:
        low, high = self.wavelength_range
        x = ((2.0 * wavelength - low - high) / (high - low)).clamp(-1.0, 1.0).to(self.coefficients.dtype)
        return legendre(x, self.n_parameter)

    def limiting_depth(self, wavelength: Tensor) -> Tensor:
        """R_c at each wavelength [Å]."""
        return torch.sigmoid(self.coefficients @ self._basis(wavelength))

    def flux(self, tau: Tensor, wavelength: Tensor) -> tuple[Tensor, Tensor]:
        limit = self.limiting_depth(wavelength).to(tau.dtype)
        fraction = limit / (tau + limit)
        return 1.0 - tau * fraction, -fraction.square()

    def parameter_derivatives(self, tau: Tensor, wavelength: Tensor) -> Tensor:
        limit = self.limiting_depth(wavelength).to(tau.dtype)
        d_limit = -(tau / (tau + limit)).square()
        return d_limit * limit * (1.0 - limit) * self._basis(wavelength).to(tau.dtype)

    def line_depth(self, flux_depth: Tensor, wavelength: Tensor) -> Tensor:
        limit = self.limiting_depth(wavelength).to(flux_depth.dtype)
        depth = torch.minimum(flux_depth, 0.98 * limit)
        return depth * limit / (limit - depth)


def legendre(x: Tensor, n_term: int) -> Tensor:
    """Legendre polynomials P_0 … P_{n_term - 1} at `x`, shape (n_term, n)."""
    terms = [torch.ones_like(x), x]
    for degree in range(1, n_term - 1):
        terms.append(((2 * degree + 1) * x * terms[-1] - degree * terms[-2]) / (degree + 1))
    return torch.stack(terms[:n_term])


def saturation_law(flux_scale: str | SaturationLaw, wavelength_range: tuple[float, float]) -> SaturationLaw:
    """The law behind a `flux_scale` name ("log", "linear", "minnaert"); a law passes through."""
    if isinstance(flux_scale, SaturationLaw):
        return flux_scale
    makers: dict[str, Callable[[], SaturationLaw]] = {
        "log": Exponential,
        "linear": Product,
        "minnaert": lambda: Minnaert(wavelength_range),
    }
    if flux_scale not in makers:
        raise ValueError(f'flux_scale must be "log", "linear", "minnaert" or a SaturationLaw, got {flux_scale!r}')
    return makers[flux_scale]()
