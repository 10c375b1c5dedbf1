"""Grids in machine code: runs of nodes, interpolation from coarse grids and its transpose, windows to pixels.

Does not live here: profiles (`compiled_voigt`), tensors (`model.emulator`, `grids`, `inference.linear.jacobian`).
"""

from __future__ import annotations

import math

import numba
import numpy as np

from .compiled_voigt import first_from, kernel
from .grids import HANDOVER_START, LEVEL_REACH, MIDPOINT, NEVER, PAD, STENCIL

_MIDPOINT = np.array(MIDPOINT)
_BEFORE = STENCIL // 2 - 1
_LN_2 = math.log(2.0)


@numba.njit(error_model="numpy")
def _first_node(wavelength, step, sizes, level, target):
    """`Sampling.first_node` of one wavelength."""
    if level == 0:
        return first_from(wavelength, 0, wavelength.size, target)
    position = math.log(max(target / wavelength[0], 1e-6)) / (step * 2.0**level) + PAD
    before = wavelength.size
    for k in range(level - 1):
        before += sizes[k]
    return before + int(min(max(math.ceil(position), 0.0), float(sizes[level - 1])))


@numba.njit(error_model="numpy")
def _level(ratio, top):
    """Doublings in a ratio, from 0 to `top`."""
    return min(max(math.log(max(ratio, 1.0)) / _LN_2, 0.0), float(top))


@kernel
def runs_of_lines(wavelength, step, sizes, center, half_width, relative, steep, core_nodes, numbers, fades):
    """Runs of nodes on every level that each line needs, and none that are empty; returns how many.

    Parameters
    ----------
    wavelength : ndarray, (n,)
        Nodes of level 0.
    step : float
        Of level 0, in ln λ.
    sizes : ndarray of int, (n_level - 1,)
        Nodes of the coarse levels.
    center, half_width, relative : ndarray, (n_line,)
        Observed centre and half width at half maximum [Å], and reach in ln λ.
    steep : ndarray of bool, (n_line,)
        Lines that stay on level 0.
    core_nodes : float
        Nodes per half width from which on a core may live on a coarser level.
    numbers : ndarray of int, (3, 2 * n_level * n_line)
        Takes line, first node and number of nodes of each run.
    fades : ndarray, (2, 2 * n_level * n_line)
        Takes `fade_out` and `fade_in`; see `line_sum.Windows`.
    """
    top, n_run = sizes.size, 0
    for j in range(center.size):
        core = math.floor(_level(half_width[j] / center[j] / (core_nodes * step), top))
        last = max(core, math.ceil(_level(2.0 * relative[j] / (LEVEL_REACH * step), top)))
        if steep[j]:
            core, last = 0.0, 0.0
        for level in range(int(core), int(last) + 1):
            outer = LEVEL_REACH * step * 2.0**level
            endless = steep[j] or level == top
            extent = max(relative[j], outer) if endless else outer
            fade_out = 0.0 if endless else 1.0 / outer
            low = _first_node(wavelength, step, sizes, level, center[j] * (1.0 - extent))
            high = _first_node(wavelength, step, sizes, level, center[j] * (1.0 + extent))
            hole_low, hole_high, fade_in = high, high, NEVER
            if level > core:
                hole, fade_in = 0.5 * HANDOVER_START * outer, 2.0 / outer
                hole_low = _first_node(wavelength, step, sizes, level, center[j] * (1.0 - hole))
                hole_high = _first_node(wavelength, step, sizes, level, center[j] * (1.0 + hole))
            for side in range(2):
                begin, end = (low, hole_low) if side == 0 else (hole_high, high)
                if end > begin:
                    numbers[0, n_run], numbers[1, n_run], numbers[2, n_run] = j, begin, end - begin
                    fades[0, n_run], fades[1, n_run] = fade_out, fade_in
                    n_run += 1
    return n_run


@kernel
def carry_down(values, n_fine, sizes, index, weight, total):
    """`Sampling.collapse`: values (n_row, n_node) of all levels, summed on level 0 in `total` (n_row, n_fine)."""
    for row in range(values.shape[0]):
        end = values.shape[1]
        carried = values[row, end - sizes[-1] : end].copy()
        end -= sizes[-1]
        for level in range(sizes.size - 2, -1, -1):
            size = sizes[level]
            finer = values[row, end - size : end].copy()
            end -= size
            for k in range((size + 1) // 2):
                finer[2 * k] += carried[k + PAD // 2]
            for k in range(size // 2):
                middle = 0.0
                for m in range(STENCIL):
                    middle += _MIDPOINT[m] * carried[k + PAD // 2 - _BEFORE + m]
                finer[2 * k + 1] += middle
            carried = finer
        for i in range(n_fine):
            node_sum = values[row, i]
            for m in range(STENCIL):
                node_sum += weight[i, m] * carried[index[i] - _BEFORE + m]
            total[row, i] = node_sum


@kernel
def carry_up(grad, n_fine, sizes, index, weight, values):
    """The transpose of `carry_down`: gradient (n_row, n_fine) to that of all nodes, into zeros (n_row, n_node)."""
    for row in range(grad.shape[0]):
        begin = n_fine
        for i in range(n_fine):
            values[row, i] = grad[row, i]
            for m in range(STENCIL):
                values[row, begin + index[i] - _BEFORE + m] += weight[i, m] * grad[row, i]
        for level in range(sizes.size - 1):
            size = sizes[level]
            coarser = begin + size
            for k in range((size + 1) // 2):
                values[row, coarser + k + PAD // 2] += values[row, begin + 2 * k]
            for k in range(size // 2):
                midpoint_grad = values[row, begin + 2 * k + 1]
                for m in range(STENCIL):
                    values[row, coarser + k + PAD // 2 - _BEFORE + m] += _MIDPOINT[m] * midpoint_grad
            begin = coarser


@kernel
def response_band(start, weight, taps, n_node, band):
    """Weights of line spread and pixel together: those of each pixel at the nodes from `start - n_half` on.

    Parameters
    ----------
    start : ndarray of int, (n_pixel,)
        First node of each pixel.
    weight : ndarray, (n_pixel, n_share)
        Weights of the nodes from there on.
    taps : ndarray, (1 or n_node, n_tap)
        Of the line spread, for all nodes or each; n_tap = 2 n_half + 1.
    n_node : int
    band : ndarray, (n_pixel, n_share + n_tap - 1)
        All zeros.
    """
    last = taps.shape[1] - 1
    for p in range(start.size):
        for t in range(weight.shape[1]):
            of = min(start[p] + t, n_node - 1) if taps.shape[0] > 1 else 0
            for s in range(taps.shape[1]):
                band[p, t + last - s] += weight[p, t] * taps[of, s]


@kernel
def windows_to_pixels(tangents, begin, count, halo, rotation, other, band, band_start, continuum, pixel, values):
    """Changes of one component's flux on windows of nodes, as changes of the flux of pixels.

    Parameters
    ----------
    tangents : ndarray, (n_line, n_kind, n)
        Zero but for `count` nodes from `halo` on.
    begin, count : ndarray of int, (n_line,)
        Node of the first value, which may lie before the grid.
    halo : int
    rotation : ndarray, (n_tap,)
        One tap of 1 for a component that does not rotate.
    other : ndarray, (n_node,)
        The other component's flux.
    band : ndarray, (n_row, n_band)
        As of `response_band`.
    band_start : ndarray of int, (n_row,)
        First node of each row of it.
    continuum : ndarray, (n_row,)
    pixel : ndarray of int, (n_line,)
        First pixel of each window; it may lie before the order.
    values : ndarray, (n_line, n_kind, n_pixel)
        All zeros.
    """
    half, n_node, n_band = rotation.size // 2, other.size, band.shape[1]
    rotated, dimmed = np.zeros(tangents.shape[2]), np.zeros(tangents.shape[2])
    for j in range(tangents.shape[0]):
        low, high = halo - half, halo + count[j] + half
        for i in range(low, high):
            dimmed[i] = other[min(max(begin[j] + i, 0), n_node - 1)]
        for k in range(tangents.shape[1]):
            # Views of one dimension: with three, the compiler cannot tell that input and output are apart.
            change, result = tangents[j, k, halo : halo + count[j]], values[j, k]
            rotated[low:high] = 0.0
            for s in range(rotation.size):
                tap, shifted = rotation[s], rotated[low + s : low + s + change.size]
                for i in range(change.size):
                    shifted[i] += tap * change[i]
            for i in range(low, high):
                rotated[i] *= dimmed[i]
            for p in range(result.size):
                row = pixel[j] + p
                if row < 0 or row >= continuum.size:
                    continue
                lag = band_start[row] - begin[j]
                first, end = max(low - lag, 0), min(high - lag, n_band)
                if end > first:
                    weight, part, total = band[row, first:end], rotated[lag + first : lag + end], 0.0
                    for m in range(weight.size):
                        total += weight[m] * part[m]
                    result[p] = total * continuum[row]
