"""The Voigt profile and its derivatives, as pure functions of tensors.

Lives here: the Faddeeva function w(z), the unit-area Voigt profile V(x; σ, γ), and its analytic derivatives.
Does not live here: where profiles are evaluated (`lines`), what is done with their sum (`saturation`).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

SQRT_PI = math.sqrt(math.pi)

FAR_RADIUS = 8.0
"""|z| beyond which the continued fraction is used."""

_BLOCK = 1 << 16
"""Points evaluated at once: the dozen temporaries of a block then stay in the cache of one core."""


def _weideman(n_term: int) -> tuple[float, list[float]]:
    """Scale L and polynomial coefficients (highest first) of Weideman (1994), eq. (38) and Table 1."""
    n_sample = 4 * n_term
    scale = math.sqrt(n_term / math.sqrt(2.0))
    theta = np.arange(-2 * n_term + 1, 2 * n_term) * math.pi / (2 * n_term)
    t = scale * np.tan(theta / 2.0)
    samples = np.concatenate([[0.0], np.exp(-(t**2)) * (scale**2 + t**2)])
    coefficient = np.real(np.fft.fft(np.fft.fftshift(samples))) / n_sample
    return scale, coefficient[1 : n_term + 1][::-1].tolist()


def _far_polynomials(n_level: int) -> tuple[list[float], list[float], list[float]]:
    """Numerators of w and dw/dz and their common denominator, as polynomials in 1/z² (highest power first).

    The convergents of Laplace's continued fraction are (i/√π) P(z)/Q(z) with both P and Q built by the three-term
    recurrence of the Hermite polynomials. dw/dz = -2zw + 2i/√π = (2i/√π)(Q - zP)/Q: the leading terms of Q - zP
    cancel here, in the coefficients, and not later in floating point, where |z|² digits would be lost.
    """
    z = np.polynomial.Polynomial([0.0, 1.0])
    numerator, previous_numerator = np.polynomial.Polynomial([1.0]), np.polynomial.Polynomial([0.0])
    denominator, previous_denominator = z, np.polynomial.Polynomial([1.0])
    for level in range(1, n_level):
        numerator, previous_numerator = z * numerator - level / 2 * previous_numerator, numerator
        denominator, previous_denominator = z * denominator - level / 2 * previous_denominator, denominator
    slope = 2 * (denominator - z * numerator)

    def in_inverse_square(polynomial: np.polynomial.Polynomial, leading: int) -> list[float]:
        coefficient = np.zeros(n_level + 1)
        coefficient[: polynomial.coef.size] = polynomial.coef
        return coefficient[leading::-2][::-1].tolist()

    return (
        in_inverse_square(numerator, n_level - 1),
        in_inverse_square(slope, n_level - 2),
        in_inverse_square(denominator, n_level),
    )


# Absolute errors, measured against scipy.special.wofz over the upper half plane: 4e-14 (32 terms), 1e-7 (16 terms);
# the continued fraction of 8 levels is good to 7e-14 beyond |z| = 8.
_NEAR = {torch.float64: _weideman(32), torch.float32: _weideman(16)}
_FAR = _far_polynomials(8)


def _horner(coefficients: list[float], variable: Tensor) -> Tensor:
    result = torch.full_like(variable, coefficients[0])
    for coefficient in coefficients[1:]:
        result = result.mul_(variable).add_(coefficient)
    return result


def _near(z: Tensor) -> tuple[Tensor, Tensor]:
    scale, coefficients = _NEAR[z.real.dtype]
    iz = torch.complex(-z.imag, z.real)
    inverse = (scale - iz).reciprocal_()
    polynomial = _horner(coefficients, (scale + iz).mul_(inverse))
    w = polynomial.mul_(2.0).mul_(inverse).add_(1.0 / SQRT_PI).mul_(inverse)
    slope = (z * w).mul_(-2.0).add_(complex(0.0, 2.0 / SQRT_PI))
    return w, slope


def _far(z: Tensor) -> tuple[Tensor, Tensor]:
    numerator, slope, denominator = _FAR
    inverse = z.reciprocal()
    inverse_square = inverse * inverse
    factor = _horner(denominator, inverse_square).reciprocal_().mul_(complex(0.0, 1.0 / SQRT_PI))
    w = _horner(numerator, inverse_square).mul_(inverse).mul_(factor)
    return w, _horner(slope, inverse_square).mul_(inverse_square).mul_(factor)


def faddeeva(z: Tensor) -> tuple[Tensor, Tensor]:
    r"""Faddeeva function w(z) = exp(-z²) erfc(-iz) and dw/dz in the upper half plane.

    Weideman's rational expansion inside |z| < 8 and Laplace's continued fraction outside. Not differentiable by
    autograd; `voigt` is.

    Parameters
    ----------
    z : Tensor, complex
        Points with Im z ≥ 0.

    Returns
    -------
    w, slope : Tensor, complex
        w(z) and dw/dz = -2zw + 2i/√π.

    References
    ----------
    Weideman (1994), SIAM J. Numer. Anal. 31, 1497; Gautschi (1970), SIAM J. Numer. Anal. 7, 187.
    """
    is_near = z.real.square() + z.imag.square() < FAR_RADIUS**2
    if z.is_meta:  # shapes that depend on values do not exist there: evaluate both branches and choose
        (w_near, slope_near), (w_far, slope_far) = _near(z), _far(z)
        return torch.where(is_near, w_near, w_far), torch.where(is_near, slope_near, slope_far)
    flat = z.reshape(-1)
    near_index = is_near.reshape(-1).nonzero().squeeze(-1)
    # The continued fraction is cheap: evaluate it everywhere, away from its poles on the real axis, and overwrite.
    w, slope = _far(flat.index_fill(0, near_index, 2.0 * FAR_RADIUS))
    if near_index.numel():
        w[near_index], slope[near_index] = _near(flat[near_index])
    return w.reshape(z.shape), slope.reshape(z.shape)


def _asymptotic(x: Tensor, y: Tensor, n_term: int) -> tuple[Tensor, Tensor, Tensor]:
    """Re w, and dw/dz as real and imaginary part, at z = x + iy by the asymptotic series in real arithmetic.

    w = (i/√π z) Σ (2k-1)!!/(2z²)^k and its derivative; relative error (2n-1)!!/(2|z|²)^n.
    """
    xx, yy = x.square(), y.square()
    inverse = (xx + yy).reciprocal_()
    square = inverse.square()
    u_real, u_imag = (xx - yy).mul_(square), (x * y).mul_(square).mul_(-2.0)  # 1/z²
    p_real, p_imag = _horner_complex([_DOUBLE_FACTORIAL[k] for k in range(n_term)], u_real, u_imag)
    r_real, r_imag = _horner_complex([_DOUBLE_FACTORIAL[k] * (2 * k + 1) for k in range(n_term)], u_real, u_imag)
    value = (y * p_real).sub_(x * p_imag).mul_(inverse)
    slope_real = (u_real * r_imag).add_(u_imag * r_real)
    slope_imag = (u_imag * r_imag).sub_(u_real * r_real)
    return value.div_(SQRT_PI), slope_real.div_(SQRT_PI), slope_imag.div_(SQRT_PI)


_DOUBLE_FACTORIAL = [1.0, 0.5, 0.75, 1.875]
"""(2k-1)!!/2^k, the coefficients of the asymptotic series in 1/z²."""

ASYMPTOTIC_RADIUS = 40.0
"""|z| beyond which four terms of the asymptotic series are within 1e-12 of |w|."""


def _horner_complex(coefficients: list[float], real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor]:
    """Polynomial (lowest power first) of real + i imag, as real and imaginary part."""
    last = coefficients[-1]
    p_real, p_imag = real * last, imag * last
    for coefficient in reversed(coefficients[1:-1]):
        p_real.add_(coefficient)
        p_real, p_imag = (p_real * real).sub_(p_imag * imag), (p_real * imag).add_(p_imag * real)
    return p_real.add_(coefficients[0]), p_imag


def _real_parts(real: Tensor, imag: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Re w, Re dw/dz and Im dw/dz at real + i imag, each part of the plane by the cheapest way that is exact there."""
    near = None
    if not real.is_meta:
        near = (torch.addcmul(real.square(), imag, imag) < ASYMPTOTIC_RADIUS**2).nonzero().squeeze(-1)
    if near is None or 2 * near.numel() > real.numel():
        w, slope = faddeeva(torch.complex(real, imag))
        return w.real, slope.real, slope.imag
    parts = _asymptotic(real, imag, 4)
    if near.numel():
        w, slope = faddeeva(torch.complex(real[near], imag[near]))
        for part, exact in zip(parts, (w.real, slope.real, slope.imag), strict=True):
            part[near] = exact
    return parts


def _voigt_block(x: Tensor, sigma: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inverse_width = (sigma * math.sqrt(2.0)).reciprocal_()
    real, imag = x * inverse_width, gamma * inverse_width
    w_real, slope_real, slope_imag = _real_parts(real, imag)
    norm = inverse_width / SQRT_PI
    value = w_real * norm
    slope_norm = norm.mul_(inverse_width)
    d_x = slope_real * slope_norm
    d_gamma = (slope_imag * slope_norm).neg_()
    # Homogeneity of degree -1: x ∂x + σ ∂σ + γ ∂γ = -1 on V, so the third derivative follows from the other two.
    d_sigma = torch.addcmul(value, x, d_x).addcmul_(gamma, d_gamma).div_(sigma).neg_()
    return value, d_x, d_sigma, d_gamma


def voigt_with_derivatives(x: Tensor, sigma: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Unit-area Voigt profile and its three first derivatives, from one evaluation of w(z).

    .. math:: V(x; σ, γ) = \mathrm{Re}\,w(z) / (σ\sqrt{2π}), \quad z = (x + iγ)/(σ\sqrt2)

    Parameters
    ----------
    x : Tensor
        Offset from the line centre.
    sigma, gamma : Tensor
        Gaussian standard deviation (> 0) and Lorentzian half width at half maximum (≥ 0), same unit as `x`,
        broadcast against it.

    Returns
    -------
    value, d_x, d_sigma, d_gamma : Tensor
        V and ∂V/∂x, ∂V/∂σ, ∂V/∂γ, of the broadcast shape. No autograd graph is recorded.
    """
    with torch.no_grad():
        x, sigma, gamma = torch.broadcast_tensors(x, sigma, gamma)
        if x.is_meta:
            return _voigt_block(x, sigma, gamma)
        flat = [t.reshape(-1) for t in (x, sigma, gamma)]
        outputs = [torch.empty_like(flat[0]) for _ in range(4)]
        for start in range(0, flat[0].numel(), _BLOCK):
            block = slice(start, start + _BLOCK)
            for output, part in zip(outputs, _voigt_block(*(t[block] for t in flat)), strict=True):
                output[block] = part
        return tuple(output.reshape(x.shape) for output in outputs)


class _Voigt(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, sigma, gamma):
        value, *derivatives = voigt_with_derivatives(x, sigma, gamma)
        ctx.save_for_backward(*derivatives)
        ctx.shapes = (x.shape, sigma.shape, gamma.shape)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        return tuple(
            (grad * derivative).sum_to_size(shape) if needed else None
            for derivative, shape, needed in zip(ctx.saved_tensors, ctx.shapes, ctx.needs_input_grad, strict=True)
        )


def voigt(x: Tensor, sigma: Tensor, gamma: Tensor) -> Tensor:
    r"""Unit-area Voigt profile, differentiable in all three arguments with analytic derivatives.

    .. math:: V(x; σ, γ) = \mathrm{Re}\,w(z) / (σ\sqrt{2π}), \quad z = (x + iγ)/(σ\sqrt2)

    Parameters
    ----------
    x : Tensor
        Offset from the line centre.
    sigma, gamma : Tensor
        Gaussian standard deviation (> 0) and Lorentzian half width at half maximum (≥ 0), same unit as `x`,
        broadcast against it.

    Returns
    -------
    Tensor
        V in 1/[x], of the broadcast shape. Within 1e-12 of the peak of `scipy.special.wofz` in float64, 1e-5 in
        float32.
    """
    return _Voigt.apply(x, sigma, gamma)


def voigt_fwhm(sigma: Tensor, gamma: Tensor) -> Tensor:
    """Full width at half maximum of a Voigt profile, to 0.02 % (Olivero & Longbothum 1977, JQSRT 17, 233)."""
    gauss = 2.0 * math.sqrt(2.0 * math.log(2.0)) * sigma
    return 1.0692 * gamma + (0.86639 * gamma.square() + gauss.square()).sqrt()
