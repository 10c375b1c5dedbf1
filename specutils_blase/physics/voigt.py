"""The Voigt profile and its derivatives, as pure functions of tensors.

Lives here: the Faddeeva function w(z), the unit-area Voigt profile V(x; σ, γ), and its analytic derivatives.
Does not live here: the nodes on which profiles are evaluated (`model.emulator`), the law of their sum (`saturation`).
"""

from __future__ import annotations

import itertools
import math
import operator

import numpy as np
import torch
from torch import Tensor

from .kernels import FWHM_PER_SIGMA

SQRT_PI = math.sqrt(math.pi)

FAR_RADIUS = {torch.float64: 8.0, torch.float32: 5.0}
"""``|z|`` beyond which the asymptotic series is used: inside, -2zw + 2i/√π loses ``|z|²`` roundings."""

_BLOCK = 1 << 15
_BLOCK_ON_GPU = 1 << 22
"""Points that a thread evaluates at once: the dozen temporaries of a block then stay in the cache of its core.

Twice as many take half as long again on one thread; half as many and torch no longer shares them out among threads.
"""


def block_size(device: torch.device) -> int:
    """Points to evaluate at once: what the caches of all threads hold, or what fills a GPU."""
    return _BLOCK * torch.get_num_threads() if device.type == "cpu" else _BLOCK_ON_GPU


def _weideman(n_term: int) -> tuple[float, list[float]]:
    """Scale L and polynomial coefficients (highest first) of Weideman (1994), eq. (38) and Table 1."""
    n_sample = 4 * n_term
    scale = math.sqrt(n_term / math.sqrt(2.0))
    theta = np.arange(-2 * n_term + 1, 2 * n_term) * math.pi / (2 * n_term)
    t = scale * np.tan(theta / 2.0)
    samples = np.concatenate([[0.0], np.exp(-(t**2)) * (scale**2 + t**2)])
    coefficient = np.real(np.fft.fft(np.fft.fftshift(samples))) / n_sample
    return scale, coefficient[1 : n_term + 1][::-1].tolist()


def _asymptotic(n_term: int) -> list[float]:
    """(2k-1)!!/2^k for k = 1 … n: w = (i/√π z) (1 + Σ c_k z^-2k), with an error below the next term."""
    return list(itertools.accumulate((k - 0.5 for k in range(1, n_term + 1)), operator.mul))


# Absolute errors, measured against scipy.special.wofz over the upper half plane: 4e-14 (32 terms), 1e-7 (16 terms).
WEIDEMAN = {torch.float64: _weideman(32), torch.float32: _weideman(16)}
# Errors at those radii, relative to |w|: 3e-15 (12 terms), 2e-8 (9 terms).
ASYMPTOTIC = {torch.float64: _asymptotic(12), torch.float32: _asymptotic(9)}


def _polynomial(coefficients: list[float], real: Tensor, imag: Tensor, square: Tensor) -> tuple[Tensor, Tensor]:
    """Polynomial with real coefficients (highest power first) of u = real + i imag, |u|² = square; as two real parts.

    By b_k = c_k + 2 Re(u) b_(k+1) - |u|² b_(k+2), p = c_0 + u b_1 - |u|² b_2 (Knuth, TAOCP 2, 4.6.4): half the
    arithmetic of Horner's rule in complex numbers, and all of it fused multiply-adds in place.
    """
    twice, minus_square = 2.0 * real, -square
    last, before = torch.full_like(real, coefficients[0]), torch.zeros_like(real)
    constants = torch.tensor(coefficients, dtype=real.dtype, device=real.device)
    for constant in constants[1:-1]:
        torch.addcmul(constant, minus_square, before, out=before).addcmul_(twice, last)
        last, before = before, last
    p_real = torch.addcmul(constants[-1], minus_square, before, out=before).addcmul_(real, last)
    return p_real, last.mul_(imag)


def _near(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w = 2 p(Z)/(L - iz)² + 1/(√π (L - iz)), Z = (L + iz)/(L - iz), and w' = -2zw + 2i/√π."""
    scale, coefficients = WEIDEMAN[x.dtype]
    up = y + scale
    inverse = torch.addcmul(up.square(), x, x).reciprocal_()
    # 1/(L - iz), and Z = 2L/(L - iz) - 1.
    i_real, i_imag = up.mul_(inverse), inverse.mul_(x)
    z_real, z_imag = (i_real * (2.0 * scale)).sub_(1.0), i_imag * (2.0 * scale)
    p_real, p_imag = _polynomial(coefficients, z_real, z_imag, torch.addcmul(z_imag.square(), z_real, z_real))
    # (2p/(L - iz) + 1/√π) / (L - iz)
    s_real = (p_real * i_real).addcmul_(p_imag, i_imag, value=-1.0).mul_(2.0).add_(1.0 / SQRT_PI)
    s_imag = p_real.mul_(i_imag).addcmul_(p_imag, i_real).mul_(2.0)
    w_real = (s_real * i_real).addcmul_(s_imag, i_imag, value=-1.0)
    w_imag = s_real.mul_(i_imag).addcmul_(s_imag, i_real)
    slope_real = (y * w_imag).addcmul_(x, w_real, value=-1.0).mul_(2.0)
    slope_imag = (x * w_imag).addcmul_(y, w_real).mul_(-2.0).add_(2.0 / SQRT_PI)
    return w_real, w_imag, slope_real, slope_imag


def _far(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """w = (i/√π z)(1 + T), w' = -(2i/√π) T with T = Σ c_k z^-2k: nothing cancels, however far out."""
    coefficients = ASYMPTOTIC[x.dtype][::-1]
    inverse = torch.addcmul(x.square(), y, y).reciprocal_()
    z_real, z_imag = x * inverse, (y * inverse).neg_()  # 1/z
    u_real = torch.addcmul(z_real.square(), z_imag, z_imag, value=-1.0)
    u_imag = (z_real * z_imag).mul_(2.0)
    p_real, p_imag = _polynomial(coefficients, u_real, u_imag, inverse.square_())
    t_real = (p_real * u_real).addcmul_(p_imag, u_imag, value=-1.0)
    t_imag = p_real.mul_(u_imag).addcmul_(p_imag, u_real)
    slope_real, slope_imag = t_imag * (2.0 / SQRT_PI), t_real * (-2.0 / SQRT_PI)
    t_real.add_(1.0).mul_(1.0 / SQRT_PI)
    t_imag.mul_(1.0 / SQRT_PI)
    w_real = (t_real * z_imag).addcmul_(t_imag, z_real).neg_()
    w_imag = t_real.mul_(z_real).addcmul_(t_imag, z_imag, value=-1.0)
    return w_real, w_imag, slope_real, slope_imag


def faddeeva(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    r"""Faddeeva function w(z) = exp(-z²) erfc(-iz) and dw/dz at z = x + iy in the upper half plane.

    Weideman's rational expansion inside ``|z|`` < `FAR_RADIUS` and the asymptotic series outside, in real arithmetic.
    Not differentiable by autograd; `voigt` is.

    Parameters
    ----------
    x, y : Tensor
        Real and imaginary parts of the same shape, y ≥ 0.

    Returns
    -------
    w_real, w_imag, slope_real, slope_imag : Tensor
        Of w(z) and dw/dz = -2zw + 2i/√π.

    References
    ----------
    Weideman (1994), SIAM J. Numer. Anal. 31, 1497; Abramowitz & Stegun (1964), 7.1.23.
    """
    radius = FAR_RADIUS[x.dtype]
    is_near = torch.addcmul(x.square(), y, y) < radius**2
    away = torch.where(is_near, 2.0 * radius, x)  # the series diverges near the origin
    if x.device.type != "cpu":  # which points are near would have to come to the host: evaluate both, and choose
        pairs = zip(_near(x, y), _far(away, y), strict=True)
        w_real, w_imag, slope_real, slope_imag = (torch.where(is_near, near, far) for near, far in pairs)
        return w_real, w_imag, slope_real, slope_imag
    shape, index = x.shape, is_near.reshape(-1).nonzero().squeeze(-1)
    x, y = x.reshape(-1), y.reshape(-1)
    if 4 * index.numel() > 3 * x.numel():
        parts, index = _near(x, y), (~is_near).reshape(-1).nonzero().squeeze(-1)
        others = _far(x[index], y[index]) if index.numel() else None
    else:
        parts = _far(away.reshape(-1), y)
        others = _near(x[index], y[index]) if index.numel() else None
    if others is not None:
        for part, other in zip(parts, others, strict=True):
            part[index] = other
    w_real, w_imag, slope_real, slope_imag = (part.reshape(shape) for part in parts)
    return w_real, w_imag, slope_real, slope_imag


def _voigt_block(x: Tensor, sigma: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inverse_width = (sigma * math.sqrt(2.0)).reciprocal_()
    real, imag = x * inverse_width, gamma * inverse_width
    w_real, _, slope_real, slope_imag = faddeeva(real, imag)
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
        size = block_size(x.device)
        for start in range(0, flat[0].numel(), size):
            block = slice(start, start + size)
            for output, part in zip(outputs, _voigt_block(*(t[block] for t in flat)), strict=True):
                output[block] = part
        profile, d_x, d_sigma, d_gamma = (output.reshape(x.shape) for output in outputs)
        return profile, d_x, d_sigma, d_gamma


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
    gauss = FWHM_PER_SIGMA * sigma
    return 1.0692 * gamma + (0.86639 * gamma.square() + gauss.square()).sqrt()
