"""Structured normal equations.

Lines in wavelength order touch only their neighbours, so the normal matrix of their parameters is block-tridiagonal;
parameters that touch everything form a thin border. Factorising, solving and the marginal covariances cost time and
memory linear in the number of lines, with dense blocks that run on any device.

Does not live here: their factor (`factor`), derivatives (`jacobian`), the iteration (`least_squares`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .factor import Factor
from .jacobian import Jacobian

_CHUNK = 1 << 22  # dense values held at once during assembly

_FEW = 16  # border parameters that are not worth asking which rows they touch

LINES_PER_BLOCK = 12
"""Smallest number of lines in a block: fewer make many tiny matrices, more waste work on far pairs."""


@dataclass(frozen=True)
class _Partition:
    """Blocks of lines in wavelength order such that only neighbouring blocks share rows."""

    columns: Tensor  # (n_block, max_parameter) position in the parameter vector; -1 pads
    first_row: Tensor  # (n_block,)
    n_row: list[int]  # rows that each block spans
    n_column: list[int]  # parameters of each block, which come first in its row of columns


@dataclass(frozen=True)
class _Entries:
    """Root-weighted local derivatives, block by block; `place` counts through the padded columns of all blocks."""

    value: Tensor
    row: Tensor
    place: Tensor


class NormalEquations:
    r"""Weighted normal equations (JᵀWJ + P) δ = JᵀWr + P(θ₀ - θ) in block-tridiagonal form with a border.

    Parameters
    ----------
    jacobian : Jacobian
        From `jacobian.linearize`.
    residual : Tensor, (n_row,)
        Data minus model.
    weight : Tensor, (n_row,)
        Inverse variances; zero where a pixel does not count.
    prior_precision, prior_pull : Tensor, (n_parameter,)
        Inverse variances of the Gaussian priors, and precision × (anchor - value).
    """

    def __init__(
        self, jacobian: Jacobian, residual: Tensor, weight: Tensor, prior_precision: Tensor, prior_pull: Tensor
    ):
        self.n_parameter = prior_precision.numel()
        self.border = jacobian.dense_columns
        self.pinned: Tensor | None = None
        """Which parameters stand at a bound and would leave it; steps leave them alone, covariances do not."""
        root = weight.double().sqrt()
        residual = residual.double() * root
        dense = jacobian.dense.double() * root.unsqueeze(1)
        self.prior_precision, self.prior_pull = prior_precision, prior_pull
        self.gradient = prior_pull.clone()
        self.gradient[self.border] += dense.T @ residual
        self.corner = dense.T @ dense + torch.diag(prior_precision[self.border])
        self.diagonal = prior_precision.clone()
        self.diagonal[self.border] += dense.square().sum(0)
        self.partition = _partition(jacobian, residual.device)
        self._root, self._dense = root, dense
        self.residual = residual
        self._spans = []
        for block in jacobian.blocks:
            start, stop = block.span(residual.numel())
            width = stop - start
            self._spans.append((block.columns, start + width // 4, start + (3 * width) // 4))
        if self.partition is not None:
            self._assemble(jacobian, residual, dense, prior_precision)

    def push_forward(self, step: Tensor) -> Tensor:
        """Root-weighted change of the model flux, W^½ J step, (n_row,)."""
        change = self._dense @ step[self.border]
        if self.partition is not None:
            columns, entries = self.partition.columns.reshape(-1), self._entries
            local = step[columns.clamp(min=0)]
            change = change.index_add(0, entries.row, entries.value * local[entries.place])
        return change

    def _assemble(self, jacobian: Jacobian, residual: Tensor, dense: Tensor, prior_precision: Tensor) -> None:
        columns = self.partition.columns
        n_block, width = columns.shape
        entries = self._entries = _flatten(jacobian, columns, self._root)
        self.diagonal_blocks = residual.new_zeros(n_block, width, width)
        self.lower_blocks = residual.new_zeros(n_block - 1, width, width)
        self.border_blocks = residual.new_zeros(n_block, width, dense.shape[1])
        edges = torch.arange(n_block + 1, device=columns.device) * width
        bound = torch.searchsorted(entries.place, edges).tolist()
        for first, last, tallest, wide in self._batches(_CHUNK):
            local = self._densify(first, last, bound, tallest, wide, behind=0)
            self.diagonal_blocks[first:last, :wide, :wide] = local.mT @ local
            if dense.shape[1]:
                row = self.partition.first_row[first:last].unsqueeze(1) + torch.arange(tallest, device=columns.device)
                touching = self._touching(dense, first, last)
                rows = dense[row.clamp(max=dense.shape[0] - 1).unsqueeze(-1), touching]
                self.border_blocks[first:last, :wide, touching] = local.mT @ rows
            n_pair = min(last, n_block - 1) - first
            if n_pair:
                # The next blocks' derivatives on the rows of these; what lies beyond touches nothing here.
                broad = max(self.partition.n_column[first + 1 : first + 1 + n_pair])
                following = self._densify(first + 1, first + 1 + n_pair, bound, tallest, broad, behind=1)
                self.lower_blocks[first : first + n_pair, :broad, :wide] = following.mT @ local[:n_pair]
        pull = residual.new_zeros(n_block * width)
        pull.index_add_(0, entries.place, entries.value * residual[entries.row])
        flat = columns.reshape(-1)
        used = flat >= 0
        padding = (columns < 0).double()
        spread = torch.where(columns >= 0, prior_precision[columns.clamp(min=0)], 0.0)
        self.diagonal_blocks += torch.diag_embed(spread + padding)
        self.diagonal[flat[used]] = torch.diagonal(self.diagonal_blocks, dim1=-2, dim2=-1).reshape(-1)[used]
        self.gradient[flat[used]] += pull[used]

    def _batches(self, limit: int) -> Iterator[tuple[int, int, int, int]]:
        """Runs of blocks of at most `limit` dense values: first, one past the last, largest height and width."""
        n_row, n_column = self.partition.n_row, self.partition.n_column
        first = 0
        while first < len(n_row):
            last, tallest, wide, area = first + 1, n_row[first], n_column[first], n_row[first] * n_column[first]
            while last < len(n_row):
                tall, broad = max(tallest, n_row[last]), max(wide, n_column[last])
                own = area + n_row[last] * n_column[last]
                size = (last + 1 - first) * tall * broad
                if size > limit or size > 3 * own:  # blocks of one batch are padded to the largest of it
                    break
                last, tallest, wide, area = last + 1, tall, broad, own
            yield first, last, tallest, wide
            first = last

    def _touching(self, dense: Tensor, first: int, last: int) -> Tensor:
        """Border parameters with any derivative on the rows of some blocks: not those of other orders."""
        if dense.shape[1] <= _FEW:
            return torch.arange(dense.shape[1], device=dense.device)
        start = self.partition.first_row[first:last].tolist()
        low, high = min(start), max(map(operator.add, start, self.partition.n_row[first:last]))
        return (dense[low:high] != 0).any(0).nonzero().squeeze(-1)

    def _densify(self, first: int, last: int, bound: list[int], n_row: int, wide: int, behind: int) -> Tensor:
        """Derivatives of blocks `first … last`, (n, n_row, wide), from the first row of the block `behind` each."""
        width = self.partition.columns.shape[1]
        part = slice(bound[first], bound[last])
        place = self._entries.place[part]
        owner = place // width
        row = self._entries.row[part] - self.partition.first_row[owner - behind]
        value = torch.where(row < n_row, self._entries.value[part], 0.0)
        index = ((owner - first) * n_row + row.clamp(0, n_row - 1)) * wide + place % width
        local = value.new_zeros((last - first) * n_row * wide).index_add_(0, index, value)
        return local.reshape(last - first, n_row, wide)

    def by_line(self, rows: Tensor, parameters: Tensor) -> Tensor:
        """Sum of a row quantity over the middle half of each line's window, and of one of its parameters.

        Border parameters, which have no window, get the total of everything. Returned for every parameter,
        (n_parameter,), the same for all parameters of a line.
        """
        total = torch.cat([rows.new_zeros(1), rows.cumsum(0)])
        result = (rows.sum() + parameters.sum()).expand(self.n_parameter).clone()
        for columns, _, _ in self._spans:
            result[columns] = parameters[columns].sum(1).unsqueeze(1).expand(columns.shape)
        for columns, start, stop in self._spans:  # more than one for a line that several orders see
            window = total[stop.clamp(0, rows.numel())] - total[start.clamp(0, rows.numel())]
            result[columns] += window.unsqueeze(1)
        return result

    def factor(self, damping: Tensor | float = 0.0) -> Factor:
        """Cholesky factor with `damping` times the diagonal added to it (Marquardt); a number or one a parameter."""
        if not isinstance(damping, Tensor):
            damping = torch.full_like(self.diagonal, damping)
        return Factor(self, damping)

    def step(self, damping: Tensor) -> tuple[Tensor, Factor]:
        """Damped step, pinned parameters left alone, and the factor that gave it."""
        normal, gradient = self, self.gradient
        if self.pinned is not None and bool(self.pinned.any()):
            keep = (~self.pinned).double()
            normal, gradient = copy(self), self.gradient * keep
            border = keep[self.border]
            # Each keeps its own curvature: one that is let go before the next matrix must not run away.
            own = torch.diagonal(self.corner) * (1.0 - border)
            normal.corner = self.corner * border * border.unsqueeze(1) + torch.diag(own)
            if self.partition is not None:
                columns = self.partition.columns
                local = torch.where(columns >= 0, keep[columns.clamp(min=0)], 1.0)
                rows = local.unsqueeze(-1)
                normal.border_blocks = self.border_blocks * rows * border
                own = torch.diagonal(self.diagonal_blocks, dim1=-2, dim2=-1) * (1.0 - local)
                normal.diagonal_blocks = self.diagonal_blocks * rows * rows.mT + torch.diag_embed(own)
                normal.lower_blocks = self.lower_blocks * rows[1:] * rows[:-1].mT
        factor = normal.factor(damping)
        return factor.solve(gradient), factor


def _flatten(jacobian: Jacobian, columns: Tensor, root: Tensor) -> _Entries:
    """All local derivatives in the order of the blocks' columns, times the root of the weights."""
    flat = columns.reshape(-1)
    place = torch.full((int(flat.max()) + 1,), -1, dtype=torch.long, device=flat.device)
    place[flat[flat >= 0]] = (flat >= 0).nonzero().squeeze(-1)
    places = [place[block.columns].reshape(-1) for block in jacobian.blocks]
    lengths = [torch.full_like(at, block.values.shape[-1]) for at, block in zip(places, jacobian.blocks, strict=True)]
    at, length = torch.cat(places), torch.cat(lengths)
    order = torch.argsort(at)
    begin = torch.empty_like(at)
    begin[order] = torch.cumsum(length[order], 0) - length[order]
    total = int(length.sum())
    value, row = root.new_empty(total), torch.empty(total, dtype=torch.long, device=flat.device)
    for block, start in zip(jacobian.blocks, begin.split([at.numel() for at in places]), strict=True):
        offset = torch.arange(block.values.shape[-1], device=flat.device)
        position = start.unsqueeze(1) + offset
        rows = block.start.unsqueeze(1) + offset
        n_pixel = root.numel() if block.rows is None else block.rows.numel()
        inside = (rows >= 0) & (rows < n_pixel)
        rows = rows.clamp(0, n_pixel - 1)
        if block.rows is not None:
            rows = block.rows[rows]
        scaled = block.values.double() * (root[rows] * inside).unsqueeze(1)
        value[position] = scaled.reshape(position.shape)
        row[position] = rows.repeat_interleave(block.columns.shape[1], dim=0)
    return _Entries(value, row, torch.repeat_interleave(at[order], length[order]))


def _partition(jacobian: Jacobian, device) -> _Partition | None:
    """Group lines into blocks that share rows with their neighbours only."""
    if not jacobian.blocks:
        return None
    spans = [block.span(jacobian.flux.numel()) for block in jacobian.blocks]
    start, stop = (torch.cat(ends) for ends in zip(*spans, strict=True))
    columns = [row for block in jacobian.blocks for row in block.columns.tolist()]
    key = torch.tensor([row[0] for row in columns], device=start.device)
    known, line = torch.unique(key, return_inverse=True)
    if known.numel() < key.numel():  # a line that several orders see stands in as many blocks
        start = start.new_full(known.shape, 1 << 60).scatter_reduce(0, line, start, "amin")
        stop = stop.new_zeros(known.shape).scatter_reduce(0, line, stop, "amax")
        first_seen = dict(zip(line.tolist(), columns, strict=True))
        groups = [first_seen[index] for index in range(known.numel())]
    else:
        groups = columns
    order = torch.argsort(start + stop).tolist()
    start, stop = start[order].tolist(), stop[order].tolist()
    lowest_after = start[:]  # smallest start among this and all later lines
    for index in range(len(start) - 2, -1, -1):
        lowest_after[index] = min(lowest_after[index], lowest_after[index + 1])
    highest_before = [-math.inf]  # largest stop among all lines before this one
    for value in stop:
        highest_before.append(max(highest_before[-1], value))
    bounds = [0]
    for index in range(1, len(start)):
        # A block may begin here if none of its lines can touch the block before the present one.
        if index - bounds[-1] >= LINES_PER_BLOCK and lowest_after[index] >= highest_before[bounds[-1]]:
            bounds.append(index)
    bounds.append(len(start))
    members = [[groups[order[i]] for i in range(a, b)] for a, b in pairwise(bounds)]
    n_column = [sum(len(group) for group in block) for block in members]
    columns = torch.full((len(members), max(n_column)), -1, dtype=torch.long)
    for row, block in enumerate(members):
        flat = [column for group in block for column in group]
        columns[row, : len(flat)] = torch.tensor(flat)
    spans = list(pairwise(bounds))
    first = [max(0, min(start[a:b])) for a, b in spans]
    n_row = [max(1, max(stop[a:b]) - low) for (a, b), low in zip(spans, first, strict=True)]
    return _Partition(columns.to(device), torch.tensor(first, device=device), n_row, n_column)
