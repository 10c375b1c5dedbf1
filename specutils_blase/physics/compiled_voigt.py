"""Voigt lines in machine code: values and derivatives of runs of nodes, their sum, and the sum's gradient.

The formulae are those of `voigt`, the reference; a contract test compares both. Sixty-four nodes at a time go through
small arrays that stay in the first cache. Each step is a loop without a branch, which compilers turn into vector
instructions. All numbers are float64, and the global interpreter lock is released.

Importing this module takes half a second; only `compiled` imports it, when lines are first evaluated. Compiled code on
disk is used until this file changes. After a change of a constant of `grids` or `voigt`, remove `__pycache__`.

Does not live here: tensors, autograd and laws (`line_sum`, `inference.linear.jacobian`).
"""

from __future__ import annotations

import math
from typing import Any

import numba
import numpy as np
import torch

from .grids import HANDOVER_START, NEVER
from .voigt import ASYMPTOTIC, FAR_RADIUS, SQRT_PI, WEIDEMAN

BLOCK_NODES = 64
"""Nodes that are evaluated at once."""

# Sums may be reordered and multiplications fused; infinities and NaN keep their meaning.
_ARITHMETIC = {"contract", "reassoc", "nsz", "arcp"}

_RADIUS = FAR_RADIUS[torch.float64]
_SCALE = WEIDEMAN[torch.float64][0]
_NEAR, _FAR = np.array(WEIDEMAN[torch.float64][1]), np.array(ASYMPTOTIC[torch.float64][::-1])
_N_NEAR, _N_FAR = len(_NEAR), len(_FAR)
_PER_ROOT_PI, _SQRT_2 = 1.0 / SQRT_PI, math.sqrt(2.0)
_NEAREST = 1.0 / math.sqrt(NEVER)


def kernel(function):
    """Compiled on its first call, for the types of that call, and kept on disk if there is a folder for it."""
    options: dict[str, Any] = {"nogil": True, "error_model": "numpy", "fastmath": _ARITHMETIC}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder that numba may write to
        return numba.njit(**options)(function)


@numba.njit(fastmath=_ARITHMETIC, inline="always")
def _near(x, y):
    """Re w, and both parts of w', inside `FAR_RADIUS`: Weideman's expansion, as `voigt._near`."""
    up = y + _SCALE
    inverse = 1.0 / (up * up + x * x)
    i_real, i_imag = up * inverse, x * inverse
    z_real, z_imag = i_real * (2.0 * _SCALE) - 1.0, i_imag * (2.0 * _SCALE)
    twice, minus_square = 2.0 * z_real, -(z_real * z_real + z_imag * z_imag)
    before, last = 0.0, _NEAR[0]
    for k in range(1, _N_NEAR - 1):
        value = _NEAR[k] + minus_square * before + twice * last
        before, last = last, value
    p_real, p_imag = _NEAR[_N_NEAR - 1] + minus_square * before + z_real * last, last * z_imag
    s_real = (p_real * i_real - p_imag * i_imag) * 2.0 + _PER_ROOT_PI
    s_imag = (p_real * i_imag + p_imag * i_real) * 2.0
    w_real, w_imag = s_real * i_real - s_imag * i_imag, s_real * i_imag + s_imag * i_real
    return w_real, 2.0 * (y * w_imag - x * w_real), -2.0 * (x * w_imag + y * w_real) + 2.0 * _PER_ROOT_PI


@numba.njit(fastmath=_ARITHMETIC, inline="always")
def _far(x, y):
    """The same outside, by the asymptotic series, as `voigt._far`."""
    inverse = 1.0 / (x * x + y * y)
    z_real, z_imag = x * inverse, -y * inverse
    u_real, u_imag = z_real * z_real - z_imag * z_imag, 2.0 * z_real * z_imag
    twice, minus_square = 2.0 * u_real, -inverse * inverse
    before, last = 0.0, _FAR[0]
    for k in range(1, _N_FAR - 1):
        value = _FAR[k] + minus_square * before + twice * last
        before, last = last, value
    p_real, p_imag = _FAR[_N_FAR - 1] + minus_square * before + u_real * last, last * u_imag
    t_real, t_imag = p_real * u_real - p_imag * u_imag, p_real * u_imag + p_imag * u_real
    slope_real, slope_imag = t_imag * (2.0 * _PER_ROOT_PI), t_real * (-2.0 * _PER_ROOT_PI)
    t_real, t_imag = (t_real + 1.0) * _PER_ROOT_PI, t_imag * _PER_ROOT_PI
    return -(t_real * z_imag + t_imag * z_real), slope_real, slope_imag


def _block(faddeeva):
    """The profile and its derivatives at the first `size` of 64 offsets x of one line."""

    @numba.njit(fastmath=_ARITHMETIC, error_model="numpy")
    def block(x, size, sigma, gamma, value, d_x, d_sigma, d_gamma):
        inverse_width, inverse_sigma = 1.0 / (sigma * _SQRT_2), 1.0 / sigma
        y, norm = gamma * inverse_width, inverse_width * _PER_ROOT_PI
        slope_norm = norm * inverse_width
        for i in range(size):
            w_real, slope_real, slope_imag = faddeeva(x[i] * inverse_width, y)
            v, of_x, of_gamma = w_real * norm, slope_real * slope_norm, -slope_imag * slope_norm
            value[i], d_x[i], d_gamma[i] = v, of_x, of_gamma
            # x ∂x + σ ∂σ + γ ∂γ = -1 on V: it is homogeneous of degree -1.
            d_sigma[i] = -(v + x[i] * of_x + gamma * of_gamma) * inverse_sigma

    return block


_near_block, _far_block = _block(_near), _block(_far)


@numba.njit(error_model="numpy")
def first_from(nodes, low, high, wavelength):
    """First of the ascending nodes `low … high` at or above a wavelength; `high` if there is none."""
    while low < high:
        middle = (low + high) // 2
        if nodes[middle] < wavelength:
            low = middle + 1
        else:
            high = middle
    return low


@numba.njit(error_model="numpy")
def _seams(nodes, low, high, center, sigma, gamma):
    """The nodes between which |z| < `FAR_RADIUS`."""
    square = _RADIUS * _RADIUS - (gamma / (sigma * _SQRT_2)) ** 2
    if not square > 0.0:
        return high, high
    half = math.sqrt(square) * sigma * _SQRT_2
    first = first_from(nodes, low, high, center - half)
    return first, first_from(nodes, first, high, center + half)


@numba.njit(fastmath=_ARITHMETIC, inline="always")
def _cutoff(ratio):
    """`line_sum._cutoff` of one number."""
    r = min(max((ratio - HANDOVER_START) * (1.0 / (1.0 - HANDOVER_START)), 0.0), 1.0)
    square = r * r
    return 1.0 + r * square * square * ((((-70.0 * r + 315.0) * r - 540.0) * r + 420.0) * r - 126.0)


@kernel
def sum_of_runs(
    nodes, line, start, count, fade_out, fade_in, center, area, sigma, gamma, row, offset, total, entries, keep, add
):
    """Lines over their runs of nodes, added up, and what the gradient needs of every entry.

    Parameters
    ----------
    nodes : ndarray, (n_node,)
        Wavelengths at rest of all levels.
    line, start, count, fade_out, fade_in : ndarray, (n_run,)
        As `line_sum.Windows`.
    center, area, sigma, gamma : ndarray, (n_line,)
    row : ndarray of int, (n_line,)
        What is added to a node's number for its place in `total`: emission has a row of its own.
    offset : ndarray of int, (n_run,)
        First entry of each run.
    total : ndarray, (n_row * n_node,)
        Is added to, if `add`.
    entries : ndarray, (4, n_entry), or (6, n_entry) unless `add`
        Share × V, share × a ∂V/∂(x, σ, γ); then a V and the share by themselves. Written if `keep`, except the last
        two, which are written unless `add`.
    keep, add : bool
    """
    x, value, share = np.zeros(BLOCK_NODES), np.zeros(BLOCK_NODES), np.zeros(BLOCK_NODES)
    d_x, d_sigma, d_gamma = np.zeros(BLOCK_NODES), np.zeros(BLOCK_NODES), np.zeros(BLOCK_NODES)
    for run in range(line.size):
        j, low, high = line[run], start[run], start[run] + count[run]
        if high <= low:
            continue
        if low < 0 or high > nodes.size:
            raise IndexError("a run of nodes ends outside the grid")
        mid, a, s, g = center[j], area[j], sigma[j], gamma[j]
        per_mid, out, come_in = 1.0 / mid, fade_out[run], fade_in[run]
        first, last = _seams(nodes, low, high, mid, s, g)
        for piece in range(3):
            begin = low if piece == 0 else first if piece == 1 else last
            end = first if piece == 0 else last if piece == 1 else high
            for block_start in range(begin, end, BLOCK_NODES):
                n = min(BLOCK_NODES, end - block_start)
                size = (n + 7) & ~7
                # Views of one dimension and from zero on: of others the compiler cannot tell that they are apart.
                there = nodes[block_start : block_start + n]
                for i in range(n):
                    x[i] = there[i] - mid
                if piece == 1:
                    _near_block(x, size, s, g, value, d_x, d_sigma, d_gamma)
                else:
                    _far_block(x, size, s, g, value, d_x, d_sigma, d_gamma)
                for i in range(size):
                    share[i] = _cutoff(out * max(abs(x[i]) * per_mid, _NEAREST))
                if come_in < NEVER:
                    for i in range(size):
                        share[i] -= _cutoff(come_in * max(abs(x[i]) * per_mid, _NEAREST))
                p = offset[run] + block_start - low
                if keep:
                    of_area, of_x = entries[0, p : p + n], entries[1, p : p + n]
                    of_sigma, of_gamma = entries[2, p : p + n], entries[3, p : p + n]
                    for i in range(n):
                        of_area[i] = share[i] * value[i]
                    for i in range(n):
                        of_x[i] = share[i] * a * d_x[i]
                    for i in range(n):
                        of_sigma[i] = share[i] * a * d_sigma[i]
                    for i in range(n):
                        of_gamma[i] = share[i] * a * d_gamma[i]
                if add:
                    sums = total[row[j] + block_start : row[j] + block_start + n]
                    for i in range(n):
                        sums[i] += share[i] * a * value[i]
                else:
                    depth, part = entries[4, p : p + n], entries[5, p : p + n]
                    for i in range(n):
                        depth[i] = a * value[i]
                    for i in range(n):
                        part[i] = share[i]


@kernel
def add_runs(line, start, count, row, offset, values, total):
    """Add values, one for each entry of the runs, to their nodes."""
    for run in range(line.size):
        node, p = row[line[run]] + start[run], offset[run]
        for i in range(count[run]):
            total[node + i] += values[p + i]


@kernel
def gradient_of_runs(nodes, line, start, count, row, offset, grad, entries, by_line):
    """Σ grad × entries of each line, into `by_line` (4, n_line); returns Σ grad × ∂/∂x × node."""
    of_factor = 0.0
    for run in range(line.size):
        j, first, p = line[run], start[run], offset[run]
        node = row[j] + first
        s0, s1, s2, s3, s4 = 0.0, 0.0, 0.0, 0.0, 0.0
        for i in range(count[run]):
            node_grad = grad[node + i]
            of_x = node_grad * entries[1, p + i]
            s0 += node_grad * entries[0, p + i]
            s1 += of_x
            s2 += node_grad * entries[2, p + i]
            s3 += node_grad * entries[3, p + i]
            s4 += of_x * nodes[first + i]
        by_line[0, j] += s0
        by_line[1, j] += s1
        by_line[2, j] += s2
        by_line[3, j] += s3
        of_factor += s4
    return of_factor


@kernel
def tangents_of_windows(
    nodes, first, count, center, area, sigma, gamma, per_velocity, slope, row, kinds, halo, depth, tangents
):
    """Changes of a component's flux with the parameters of lines, each on its own window.

    Parameters
    ----------
    nodes : ndarray, (n_node,)
        Wavelengths at rest.
    first, count : ndarray of int, (n_line,)
        Windows.
    center, area, sigma, gamma : ndarray, (n_line,)
    per_velocity : ndarray, (n_line,)
        Change of the centre with its offset, Å per km/s.
    slope : ndarray, (n_row, n_node)
        Change of the flux with the summed opacity.
    row : ndarray of int, (n_line,)
        Which row of `slope` a line follows.
    kinds : ndarray of int, (n_kind,)
        0: ln area, 1: ln σ, 2: ln γ, 3: offset.
    halo : int
        Zeros on each side of a window.
    depth : ndarray, (n_line, width), or (0, 0)
        Takes a V where there is room.
    tangents : ndarray, (n_line, n_kind, width + 2 halo)
        All zeros.
    """
    x, value = np.zeros(BLOCK_NODES), np.zeros(BLOCK_NODES)
    d_x, d_sigma, d_gamma = np.zeros(BLOCK_NODES), np.zeros(BLOCK_NODES), np.zeros(BLOCK_NODES)
    for j in range(first.size):
        low, high = first[j], first[j] + count[j]
        if low < 0 or high > nodes.size:
            raise IndexError("a window ends outside the grid")
        a, s, g = area[j], sigma[j], gamma[j]
        near, far = _seams(nodes, low, high, center[j], s, g)
        for piece in range(3):
            begin = low if piece == 0 else near if piece == 1 else far
            end = near if piece == 0 else far if piece == 1 else high
            for block_start in range(begin, end, BLOCK_NODES):
                n = min(BLOCK_NODES, end - block_start)
                size = (n + 7) & ~7
                # As in `sum_of_runs`, written out: one function for both costs a tenth of the time.
                for i in range(n):
                    x[i] = nodes[block_start + i] - center[j]
                if piece == 1:
                    _near_block(x, size, s, g, value, d_x, d_sigma, d_gamma)
                else:
                    _far_block(x, size, s, g, value, d_x, d_sigma, d_gamma)
                p = block_start - low
                if depth.size:
                    for i in range(n):
                        depth[j, p + i] = a * value[i]
                for k in range(kinds.size):
                    factor = a
                    source = value
                    if kinds[k] == 1:
                        factor, source = a * s, d_sigma
                    elif kinds[k] == 2:
                        factor, source = a * g, d_gamma
                    elif kinds[k] == 3:
                        factor, source = -a * per_velocity[j], d_x
                    for i in range(n):
                        tangents[j, k, halo + p + i] = factor * source[i] * slope[row[j], block_start + i]
