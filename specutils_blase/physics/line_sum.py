"""Sparse sums of Voigt lines on nested grids, with their gradient.

An entry is one line at one node of its runs. Entries are evaluated and added up block by block. The dozen temporaries
of a block then stay in a core's cache, and no line × pixel array exists. The gradient needs four numbers an entry.

Does not live here: the runs of each line (`model.emulator`), the profile (`voigt`), the laws (`saturation`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .compiled import as_array, kernels
from .grids import HANDOVER_START, NEVER, Sampling
from .voigt import block_size, voigt_with_derivatives


@dataclass(frozen=True)
class Windows:
    """Contiguous runs of nodes on which lines are evaluated; nodes of all levels are numbered consecutively.

    Parameters
    ----------
    line, start, count : Tensor, (n_run,)
        Line, first node and number of nodes, perhaps 0, of each run.
    fade_out, fade_in : Tensor, (n_run,)
        Reciprocals of the relative distances ``|λ - λ_j| / λ_j`` at which the line has left this level for the next
        coarser one (0: never), and the next finer one for this (`NEVER`: there is none).
    """

    line: Tensor
    start: Tensor
    count: Tensor
    fade_out: Tensor
    fade_in: Tensor

    def __iter__(self):
        return iter((self.line, self.start, self.count, self.fade_out, self.fade_in))

    def to(self, device) -> Windows:
        return Windows(*(column.to(device) for column in self))


def line_sum(
    center: Tensor, area: Tensor, sigma: Tensor, gamma: Tensor, factor, windows: Windows, sampling: Sampling, law, emits
) -> Tensor:
    """Σ_j t(a_j V(λ/factor - λ_j; σ_j, γ_j)), summed on all levels and carried down; differentiable in the first five.

    Parameters
    ----------
    center, area, sigma, gamma : Tensor, (n_line,)
        Å; `center` in float64, the others in the type in which profiles are evaluated.
    factor : Tensor or float
        1 + v/c.
    windows : Windows
    sampling : Sampling
        Observed wavelengths.
    law : SaturationLaw
        Its `opacity` makes t of a V.
    emits : Tensor or None
        Whether each line is in emission; such lines add a V, without law, to a second row.

    Returns
    -------
    Tensor, (1 or 2, n)
    """
    factor = torch.as_tensor(factor, dtype=torch.float64, device=center.device)
    if kernels(center.device) is None:
        return sampling.collapse(
            _LineSum.apply(center, area, sigma, gamma, factor, windows, sampling.nodes, law, emits)
        )
    return _CompiledLineSum.apply(center, area, sigma, gamma, factor, windows, sampling, law, emits)


class _CompiledLineSum(torch.autograd.Function):
    """The sum on CPUs by compiled kernels, in float64 whatever the type of the widths: float32 is no faster there."""

    @staticmethod
    def forward(ctx, center, area, sigma, gamma, factor, windows, sampling, law, emits):
        code, nodes = kernels(center.device), sampling.nodes
        assert code is not None  # else `line_sum` had taken the other class
        n_row, n_node, identity = 1 if emits is None else 2, nodes.numel(), law.is_identity
        row = torch.zeros_like(center, dtype=torch.int64) if emits is None else emits * n_node
        total = torch.zeros(n_row, n_node, dtype=torch.float64)
        rest, lines = as_array(nodes / factor), [as_array(t) for t in (center, area, sigma, gamma, row)]
        wanted, kept = any(ctx.needs_input_grad[:5]), []
        chunks = [(windows, int(windows.count.sum()))] if identity else _chunks(windows)
        for runs, n_entry in chunks:
            offset = torch.cumsum(runs.count, 0).sub_(runs.count)
            entries = torch.empty(4 if identity else 6, n_entry if wanted or not identity else 0, dtype=torch.float64)
            run_arrays = [as_array(t) for t in runs]
            arrays = [as_array(t) for t in (offset, total.view(-1), entries)]
            code.sum_of_runs(rest, *run_arrays, *lines, *arrays, wanted, identity)
            if not identity:
                opacity, slope = _by_law(law, entries[4], emits, runs)
                code.add_runs(*run_arrays[:3], lines[4], arrays[0], as_array(opacity.mul_(entries[5])), arrays[1])
                entries[:4] *= slope
            if wanted:
                kept.append(entries[:4])
        down = torch.zeros(n_row, len(sampling), dtype=torch.float64)
        code.carry_down(as_array(total), *_grids(sampling), as_array(down))
        ctx.save_for_backward(center, factor, *kept)
        ctx.chunks, ctx.sampling, ctx.row, ctx.dtype = chunks, sampling, row, area.dtype
        return down.to(area.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        center, factor, *kept = ctx.saved_tensors
        code, by_line, of_factor = kernels(center.device), torch.zeros(4, center.numel(), dtype=torch.float64), 0.0
        assert code is not None
        nodes = ctx.sampling.nodes
        everywhere = torch.zeros(grad.shape[0], nodes.numel(), dtype=torch.float64)
        code.carry_up(as_array(grad), *_grids(ctx.sampling), as_array(everywhere))
        for (runs, _), entries in zip(ctx.chunks, kept, strict=True):
            offset = torch.cumsum(runs.count, 0).sub_(runs.count)
            run_tensors = (runs.line, runs.start, runs.count)
            arrays = (nodes, *run_tensors, ctx.row, offset, everywhere.view(-1), entries, by_line)
            of_factor += code.gradient_of_runs(*(as_array(t) for t in arrays))
        d_area, d_x, d_sigma, d_gamma = by_line.unbind()
        widths = (t.to(ctx.dtype) for t in (d_area, d_sigma, d_gamma))
        return -d_x, *widths, -of_factor / factor.square(), None, None, None, None  # ∂x/∂factor = -λ / factor²


def _grids(sampling: Sampling) -> tuple:
    """Arguments of the compiled kernels that describe the nested grids."""
    sizes = np.array(sampling.sizes, dtype=np.int64)
    return len(sampling), sizes, as_array(sampling.index), as_array(sampling.weight)


def _by_law(law, y: Tensor, emits: Tensor | None, runs: Windows) -> tuple[Tensor, Tensor]:
    """Opacity of entries and its slope; lines in emission follow no law."""
    opacity, slope = law.opacity(y)
    if emits is None:
        return opacity, slope
    bright = torch.repeat_interleave(emits[runs.line], runs.count)
    return torch.where(bright, y, opacity), torch.where(bright, 1.0, slope)


class _LineSum(torch.autograd.Function):
    @staticmethod
    def forward(ctx, center, area, sigma, gamma, factor, windows, nodes, law, emits):
        n_row, n_node = 1 if emits is None else 2, nodes.numel()
        total = area.new_zeros(n_row * n_node)
        rest = nodes / factor
        wanted = any(ctx.needs_input_grad[:5])
        kept, chunks = [], _chunks(windows)
        for part, n_entry in chunks:
            line, node, fade_out, fade_in = _entries(part, n_entry)
            assert fade_out is not None and fade_in is not None
            middle = center[line]
            x = rest[node].sub_(middle)
            distance = x.abs().div_(middle).clamp_(min=1.0 / math.sqrt(NEVER))
            weight = _cutoff(fade_out.mul_(distance)).sub_(_cutoff(fade_in.mul_(distance))).to(area.dtype)
            a, s, g = area[line], sigma[line], gamma[line]
            value, d_x, d_sigma, d_gamma = voigt_with_derivatives(x.to(area.dtype), s, g)
            y = a * value
            opacity, slope = law.opacity(y)
            if emits is not None:
                bright = emits[line]
                opacity = torch.where(bright, y, opacity)
                slope = torch.where(bright, 1.0, slope)
                node = node + bright * n_node
            total.index_add_(0, node, opacity * weight)
            if wanted:
                weight = weight.mul_(slope)
                kept.append(value.mul_(weight))
                weight.mul_(a)
                kept += [d_x.mul_(weight), d_sigma.mul_(weight), d_gamma.mul_(weight)]
        ctx.save_for_backward(center, factor, *kept)
        ctx.chunks, ctx.nodes, ctx.emits = chunks, nodes, emits
        return total.reshape(n_row, n_node)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        center, factor, *kept = ctx.saved_tensors
        n_node = ctx.nodes.numel()
        grad = grad.reshape(-1)
        by_line = grad.new_zeros(4, center.numel())
        of_factor = torch.zeros_like(factor)
        for index, (part, n_entry) in enumerate(ctx.chunks):
            line, node, _, _ = _entries(part, n_entry, with_fades=False)
            node_grad = grad[node if ctx.emits is None else node + ctx.emits[line] * n_node]
            gradients = [node_grad * derivative for derivative in kept[4 * index : 4 * index + 4]]
            for row, gradient in zip(by_line, gradients, strict=True):
                row.index_add_(0, line, gradient)
            if ctx.needs_input_grad[4]:
                of_factor = of_factor - gradients[1].double() @ ctx.nodes[node]  # ∂x/∂factor = -λ / factor²
        d_area, d_x, d_sigma, d_gamma = by_line
        return -d_x.double(), d_area, d_sigma, d_gamma, of_factor / factor.square(), None, None, None, None


def _chunks(windows: Windows) -> list[tuple[Windows, int]]:
    """Split runs so that each part holds about `voigt.block_size` entries; parts and their numbers of entries."""
    if windows.line.is_meta:
        return [(windows, windows.line.numel())]
    if not windows.line.numel():
        return []
    total = torch.cumsum(windows.count, 0)
    size, n_entry = block_size(total.device), int(total[-1])
    if n_entry <= size:
        return [(windows, n_entry)]
    cut = torch.searchsorted(total, torch.arange(1, n_entry // size + 1, device=total.device) * size)
    bounds, reached = torch.stack([cut, torch.where(cut > 0, total[cut - 1], 0)]).tolist()
    bounds, reached = [0, *bounds, total.numel()], [0, *reached, n_entry]
    return [
        (Windows(*(column[a:b] for column in windows)), after - before)
        for a, b, before, after in zip(bounds, bounds[1:], reached, reached[1:], strict=False)
        if b > a
    ]


def _entries(
    windows: Windows, n_entry: int, with_fades: bool = True
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Line, node, `fade_out` and `fade_in` of every entry of the runs."""
    line, start, count, fade_out, fade_in = windows
    if line.is_meta:  # counts have no values here: shape inference gets one entry a run
        return line, start, fade_out.clone(), fade_in.clone()
    run = torch.repeat_interleave(count, output_size=n_entry)
    before = torch.cumsum(count, 0).sub_(count)
    node = (start - before)[run].add_(torch.arange(n_entry, device=line.device))
    if not with_fades:
        return line[run], node, None, None
    return line[run], node, fade_out[run], fade_in[run]


def _cutoff(ratio: Tensor) -> Tensor:
    """1 up to ratio `HANDOVER_START`, 0 from ratio 1 on, four continuous derivatives between; overwrites `ratio`."""
    r = ratio.sub_(HANDOVER_START).mul_(1.0 / (1.0 - HANDOVER_START)).clamp_(0.0, 1.0)
    polynomial = (r * -70.0).add_(315.0).mul_(r).sub_(540.0).mul_(r).add_(420.0).mul_(r).sub_(126.0)
    return polynomial.mul_(r.square().square_()).mul_(r).add_(1.0)
