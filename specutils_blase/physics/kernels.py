r"""Rotation and line-spread kernels on a uniform-velocity grid, as pure functions of tensors.

A kernel K is not sampled on the grid: it is integrated against the grid's own interpolation basis. With the cubic
Lagrange interpolant S̃ of the samples S_k, the convolution (K ∗ S̃)(x_i) = Σ_j k_{i-j} S_j is exact for the taps

.. math:: k_j = \int K(t)\, φ(t - j)\, dt ,

where φ is the interpolation kernel. Only the moments of K over each cell are needed, and both kernels have them in
closed form. A kernel narrower than a cell keeps its exact mean and variance; a resolved one is exact to fourth order in
the cell. Below about a tenth of a cell the derivative to the width is not to be trusted: the interpolant has kinks at
its nodes, and what they add, E|t|/12 of the fourth derivative, outweighs the variance there.

All lengths here are in cells; taps are made in float64 whatever the flux's dtype is, because moments about far cells
cancel.

Does not live here: the modules that own v sin i or the resolving power (`model.extrinsic`, `model.instrument`).
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

FWHM_PER_SIGMA = 2.0 * math.sqrt(2.0 * math.log(2.0))

GAUSSIAN_REACH = 6.0
"""Standard deviations at which the line-spread kernel is cut; what lies beyond is 2e-9 of its area."""

LONGEST_DIRECT = 256
"""Taps up to which a direct sum is cheaper than Fourier transforms."""

# Cubic Lagrange basis on the nodes -1, 0, 1, 2: rows are nodes, columns the powers of u in [0, 1].
_LAGRANGE = torch.tensor(
    [
        [0.0, -1.0 / 3.0, 0.5, -1.0 / 6.0],
        [1.0, -0.5, -1.0, 0.5],
        [0.0, 1.0, 0.5, -0.5],
        [0.0, -1.0 / 6.0, 0.0, 1.0 / 6.0],
    ],
    dtype=torch.float64,
)


def lagrange_weights(u_powers: Tensor) -> Tensor:
    """Weights of the four nodes around a cell from the powers (1, u, u², u³), or from their integrals, (..., 4)."""
    return u_powers @ _LAGRANGE.to(u_powers).T


def weights_of_nodes(cell_weights: Tensor) -> Tensor:
    """Weights of four nodes a cell, (..., n_cell, 4), summed over cells: weights of nodes, (..., n_cell + 3)."""
    pad = torch.nn.functional.pad
    total = pad(cell_weights[..., 0], (0, 3))
    for node in range(1, 4):
        total = total + pad(cell_weights[..., node], (node, 3 - node))
    return total


def _taps(cumulative_moments: Tensor, n_half: int) -> Tensor:
    """Taps from the cumulative moments ∫^t t'^p K dt' at the cell edges -n_half … n_half.

    Parameters
    ----------
    cumulative_moments : Tensor, (..., 4, 2 n_half + 1)
        p = 0 … 3 along the last but one axis.

    Returns
    -------
    Tensor, (..., 2 n_half + 3)
        Taps at -n_half - 1 … n_half + 1, summing to one.
    """
    moments = cumulative_moments[..., 1:] - cumulative_moments[..., :-1]
    left = torch.arange(-n_half, n_half, dtype=moments.dtype, device=moments.device)
    m0, m1, m2, m3 = moments.unbind(-2)
    local = torch.stack(  # moments about the left edge of each cell
        [
            m0,
            m1 - left * m0,
            m2 - 2 * left * m1 + left**2 * m0,
            m3 - 3 * left * m2 + 3 * left**2 * m1 - left**3 * m0,
        ],
        dim=-1,
    )
    weights = lagrange_weights(local)
    n_cell = 2 * n_half
    taps = weights_of_nodes(weights)
    return taps[..., : n_cell + 3] / taps.sum(-1, keepdim=True)


def gaussian_half_width(sigma: float) -> int:
    """Cells on each side that a Gaussian of standard deviation `sigma` cells needs."""
    return max(1, math.ceil(GAUSSIAN_REACH * sigma))


def gaussian_taps(sigma: Tensor, n_half: int) -> Tensor:
    """Taps of a Gaussian of standard deviation `sigma` cells.

    Parameters
    ----------
    sigma : Tensor, (...)
        Standard deviation in cells, > 0.
    n_half : int
        Cells kept on each side, see `gaussian_half_width`.

    Returns
    -------
    Tensor, (..., 2 n_half + 3)
    """
    sigma = sigma.to(torch.float64).unsqueeze(-1)
    t = torch.arange(-n_half, n_half + 1, dtype=torch.float64, device=sigma.device)
    x = t / sigma
    density = torch.exp(-0.5 * x.square()) / math.sqrt(2.0 * math.pi)
    cumulative = 0.5 * (1.0 + torch.erf(x / math.sqrt(2.0)))
    moments = torch.stack(
        [cumulative, -sigma * density, sigma**2 * (cumulative - x * density), -(sigma**3) * density * (x.square() + 2)],
        dim=-2,
    )
    return _taps(moments, n_half)


def rotation_half_width(vsini: float) -> int:
    """Cells on each side that a rotation kernel of `vsini` cells needs."""
    return max(1, math.ceil(vsini))


def rotation_taps(vsini: Tensor, u1: Tensor, u2: Tensor, n_half: int) -> Tensor:
    r"""Taps of the rotation kernel with quadratic limb darkening.

    .. math:: K(x) ∝ 2 s (1 - u_1 - u_2) + \frac{π}{2}(u_1 + 2 u_2) s^2 - \frac{4}{3} u_2 s^3,
              \quad s = \sqrt{1 - x^2},\ x = v / v\sin i,

    for the intensity law I(μ) = 1 - u1 (1 - μ) - u2 (1 - μ)² (Gray 2005, ch. 18; the integral is
    π (1 - u1/3 - u2/6)).

    Parameters
    ----------
    vsini : Tensor, scalar
        Projected rotation velocity in cells, > 0.
    u1, u2 : Tensor, scalars
        Quadratic limb-darkening coefficients.
    n_half : int
        Cells kept on each side; the kernel must end inside, see `rotation_half_width`.

    Returns
    -------
    Tensor, (2 n_half + 3,)
    """
    vsini, u1, u2 = (t.to(torch.float64) for t in (vsini, u1, u2))
    t = torch.arange(-n_half, n_half + 1, dtype=torch.float64, device=vsini.device)
    x = t / vsini
    inside = x.abs() < 1.0
    # arcsin and the square root have infinite slopes at ±1: the unused branch must not reach autograd (0 × inf).
    x = torch.where(inside, x, torch.zeros_like(x))
    s = (1.0 - x.square()).sqrt()
    theta = torch.asin(x)
    beyond = torch.where(inside, 0.0, 0.5 * math.pi * torch.sign(t))

    # Cumulative moments of s, s², s³ against x^p, all from the substitution x = sin θ; each tends to its value at
    # x = ±1, which for even p is ± a constant and for odd p is zero.
    def ended(interior: Tensor, at_one: float) -> Tensor:
        return torch.where(inside, interior, at_one * beyond)

    s3, s5, s7 = s**3, s**5, s**7
    first = (
        ended((x * s + theta) / 2, 1 / 2),
        ended(-s3 / 3, 0.0),
        ended((theta - x * s * (1 - 2 * x.square())) / 8, 1 / 8),
        ended(-s3 / 3 + s5 / 5, 0.0),
    )
    x2 = x.square()
    second = (
        ended(x - x * x2 / 3, 4 / (3 * math.pi)),
        ended(-(s**4) / 4, 0.0),
        ended(x * x2 / 3 - x * x2 * x2 / 5, 4 / (15 * math.pi)),
        ended(-(s**4) / 4 + s**6 / 6, 0.0),
    )
    third = (
        ended((x * s * (5 - 2 * x2) + 3 * theta) / 8, 3 / 8),
        ended(-s5 / 5, 0.0),
        ended(theta / 16 - torch.sin(4 * theta) / 64 + torch.sin(2 * theta) ** 3 / 48, 1 / 16),
        ended(-s5 / 5 + s7 / 7, 0.0),
    )
    area = math.pi * (1 - u1 / 3 - u2 / 6)
    c1, c2, c3 = 2 * (1 - u1 - u2) / area, 0.5 * math.pi * (u1 + 2 * u2) / area, -4.0 / 3.0 * u2 / area
    moments = torch.stack([vsini**p * (c1 * first[p] + c2 * second[p] + c3 * third[p]) for p in range(4)])
    return _taps(moments, n_half)


def tap_tangents(taps: Callable[[Tensor], Tensor], point: Tensor, directions: Tensor) -> Tensor:
    """Derivatives of taps at `point` along each of `directions`, (n_direction, ...).

    The reverse pass is linear in what it starts from; a reverse pass through it is a forward one. torch's own forward
    mode would load its jit, which takes a second and warns.
    """
    with torch.enable_grad():
        point = point.detach().requires_grad_(True)
        values = taps(point)
        start = torch.zeros_like(values, requires_grad=True)
        (back,) = torch.autograd.grad(values, point, start, create_graph=True)
        return torch.stack([torch.autograd.grad(back, start, along, retain_graph=True)[0] for along in directions])


def convolve(flux: Tensor, taps: Tensor) -> Tensor:
    """Convolve (..., n) samples with odd-length taps, (n_tap,) or one set per sample (n, n_tap).

    The samples are continued by their end values, so that a constant stays constant up to the edge.
    """
    n_half = taps.shape[-1] // 2
    flat = flux.reshape(-1, 1, flux.shape[-1])
    padded = torch.nn.functional.pad(flat, (n_half, n_half), mode="replicate").squeeze(1)
    if taps.ndim == 1:
        result = correlate(padded, taps.to(flux.dtype).flip(0))
    else:
        result = torch.einsum("bnt,nt->bn", padded.unfold(-1, taps.shape[-1], 1), taps.to(flux.dtype).flip(-1))
    return result.reshape(flux.shape)


def correlate(padded: Tensor, taps: Tensor) -> Tensor:
    """Sums Σ_t taps_t x_{i + t} of each row of (n_row, n + n_tap - 1).

    By matrix products of overlapping tiles with the taps' Toeplitz matrix, 20 to 40 times faster than torch's own
    convolution of one channel with 40 to 100 taps; by Fourier transform where there are many taps.
    """
    n_tap, n_sample = taps.numel(), padded.shape[-1]
    if not padded.numel():
        return padded[..., n_tap - 1 :]
    if n_tap > LONGEST_DIRECT:
        size = 2 ** math.ceil(math.log2(n_sample))  # wrapped products land where fewer than n_tap samples exist
        spectrum = torch.fft.rfft(padded, size) * torch.fft.rfft(taps.flip(0), size)
        return torch.fft.irfft(spectrum, size)[..., n_tap - 1 : n_sample]
    n_out = n_sample - n_tap + 1
    width = min(max(n_tap // 2 + 1, 32), n_out)
    n_tile = -(-n_out // width)
    tiles = torch.nn.functional.pad(padded, (0, n_tile * width - n_out)).unfold(-1, width + n_tap - 1, width)
    offset = torch.arange(width + n_tap - 1, device=taps.device).unsqueeze(1) - torch.arange(width, device=taps.device)
    toeplitz = torch.where((offset >= 0) & (offset < n_tap), taps[offset.clamp(0, n_tap - 1)], 0.0)
    return (tiles @ toeplitz).reshape(padded.shape[0], -1)[:, :n_out]
