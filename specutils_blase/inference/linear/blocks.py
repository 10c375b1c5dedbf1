"""Which rows and parameters of a Jacobian meet: all that normal equations need before they see a value.

Lines in wavelength order touch only their neighbours, so their parameters fall into blocks of which each touches the
one before and the one after. Products are formed on *tiles*, short runs of rows with the few lines that reach into
them: most windows are far shorter than a block is high, and a dense block would be zeros for the most part.

What is known here are windows, not derivatives: as long as the windows hold, so does the structure, and an iteration
asks the host nothing.

Does not live here: the equations (`normal_equations`), where windows come from (`jacobian_windows`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

LINES_PER_BLOCK = 12
"""Smallest number of lines in a block: fewer make many tiny matrices, more waste work on far pairs."""

TILE = 128
"""Rows of a tile: fewer let more windows end within one, more make larger matrix products."""

_CHUNK = 1 << 22  # values of a batch of tiles, or of their products, held at once


@dataclass(frozen=True)
class Window:
    """A batch of lines of one order: parameters `columns[b, p]` on the pixels `start[b] … start[b] + width`.

    Pixel i of the order is row `rows[i]` of the problem, or row i where there is one order only (`rows` None).
    """

    columns: Tensor
    start: Tensor
    width: int
    rows: Tensor | None
    order: int

    def span(self) -> tuple[Tensor, Tensor]:
        """First row of each line's window, and one past its last."""
        stop = self.start + self.width
        if self.rows is None:
            return self.start, stop
        last = self.rows.numel() - 1
        return self.rows[self.start.clamp(0, last)], self.rows[(stop - 1).clamp(0, last)] + 1


@dataclass(frozen=True)
class Batch:
    """Tiles `first … last`: which pieces, (n_tile, n_piece), and the slots of their parameters.

    Tiles with fewer pieces are filled up with the one past the last piece, which is zero everywhere.
    """

    first: int
    last: int
    piece: Tensor
    slot: Tensor


class Structure:
    """Blocks of parameters, tiles of rows, and the pieces of windows that lie in them.

    Parameters
    ----------
    windows : sequence of Window
    n_row : int
        Rows of the problem.
    n_parameter : int

    Attributes
    ----------
    parameter : Tensor, (n_slot,)
        Parameter of each *slot*: parameters of lines, block after block.
    n_column : list of int
        Slots of each block.
    line : Tensor, (n_slot,)
        Line of each slot, counted from 0.
    tile_rows : Tensor, (n_tile, TILE)
        Rows of each tile; `n_row`, which is no row, beyond the end of an order.
    batches : list of Batch
    """

    def __init__(self, windows: Sequence[Window], n_row: int, n_parameter: int):
        self.n_row = n_row
        device = windows[0].start.device
        groups, self.n_column = _blocks(windows)
        self.parameter = torch.tensor([column for group in groups for column in group], device=device)
        lengths = torch.tensor([len(group) for group in groups], device=device)
        self.line = torch.repeat_interleave(torch.arange(len(groups), device=device), lengths)
        self.n_line = len(groups)
        slot = torch.zeros(n_parameter, dtype=torch.long, device=device)
        slot[self.parameter] = torch.arange(self.parameter.numel(), device=device)
        self._lay_tiles(windows, slot)
        self._lay_matrix()
        self._middles(windows, slot)

    @property
    def n_slot(self) -> int:
        return self.parameter.numel()

    def split(self, slots: Tensor) -> tuple[Tensor, ...]:
        """Values of all slots → those of each block."""
        return slots.split(self.n_column)

    def _lay_tiles(self, windows: Sequence[Window], slot: Tensor) -> None:
        """Cut the windows where tiles end; a piece is one parameter on one tile."""
        rows, first_tile, n_tile = [], {}, 0
        for window in windows:
            if window.order in first_tile:
                continue
            own = torch.arange(self.n_row, device=slot.device) if window.rows is None else window.rows
            count = -(-own.numel() // TILE)
            rows.append(torch.nn.functional.pad(own, (0, count * TILE - own.numel()), value=self.n_row))
            first_tile[window.order] = n_tile, count
            n_tile += count
        self.tile_rows = torch.cat(rows).reshape(n_tile, TILE)
        tiles, slots = [], []
        for window in windows:
            first, count = first_tile[window.order]
            n_part = (window.width + TILE - 2) // TILE + 1
            part = torch.arange(n_part, device=slot.device)
            begin = torch.div(window.start, TILE, rounding_mode="floor")
            tile = begin.unsqueeze(1) + part
            reached = part * TILE < (window.start - begin * TILE + window.width).unsqueeze(1)
            tile = torch.where(reached & (tile >= 0) & (tile < count), tile + first, n_tile)
            n_kind = window.columns.shape[1]
            tiles.append(tile.unsqueeze(1).expand(-1, n_kind, -1).reshape(-1))
            slots.append(slot[window.columns].unsqueeze(-1).expand(-1, -1, n_part).reshape(-1))
        self.piece_tile, self.piece_slot = torch.cat(tiles), torch.cat(slots)
        order = torch.argsort(self.piece_tile * self.n_slot + self.piece_slot)
        begin = torch.searchsorted(self.piece_tile[order], torch.arange(n_tile + 1, device=slot.device))
        nothing = torch.tensor([order.numel()], device=order.device)
        order = torch.cat([order, nothing])
        slots = torch.cat([self.piece_slot, self.piece_slot[:1]])
        self.batches = []
        for first, last, most in _tile_batches(begin.diff().tolist()):
            place = begin[first:last].unsqueeze(1) + torch.arange(most, device=slot.device)
            piece = order[torch.where(place < begin[first + 1 : last + 1].unsqueeze(1), place, order.numel() - 1)]
            # A filling piece stands in a slot of its own tile: what it adds there is zero.
            self.batches.append(
                Batch(first, last, piece, torch.where(piece == nothing, slots[piece[:, :1]], slots[piece]))
            )

    def _lay_matrix(self) -> None:
        """Where the products of two slots stand: for each block its rows, [those with the block before | its own]."""
        sizes = self.n_column
        strides = [before + own for before, own in zip([0, *sizes], sizes, strict=False)]
        bases = list(
            accumulate((own * stride for own, stride in zip(sizes, strides, strict=True)), initial=self.n_slot)
        )
        firsts = list(accumulate(sizes, initial=0))
        self._matrix = [(base, own, stride) for base, own, stride in zip(bases, sizes, strides, strict=False)]
        # Room for what pieces of far blocks on one tile "add": zeros, up to so many places outside.
        self.matrix_size = bases[-1] + self.n_slot
        device = self.parameter.device
        length = torch.tensor(sizes, device=device)

        def by_slot(values: Sequence[int]) -> Tensor:
            return torch.repeat_interleave(torch.tensor(values, device=device), length)

        inner = torch.arange(self.n_slot, device=device) - by_slot(firsts[:-1])
        self._row_place = by_slot(bases[:-1]) + inner * by_slot(strides) - by_slot([0, *firsts[:-2]])
        self._block = by_slot(list(range(len(sizes))))

    def places(self, slot: Tensor) -> tuple[Tensor, Tensor]:
        """Where the products of pieces stand, (n_tile, n_piece, n_piece), and which of them are above the diagonal."""
        block = self._block[slot]
        place = self._row_place[slot].unsqueeze(2) + slot.unsqueeze(1)
        return place, block.unsqueeze(1) > block.unsqueeze(2)

    def matrix_block(self, matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Of a matrix laid out by `places`: block k with the block before it, and with itself."""
        base, own, stride = self._matrix[k]
        rows = matrix[base : base + own * stride].reshape(own, stride)
        return rows[:, : stride - own], rows[:, stride - own :]

    def diagonal(self, matrix: Tensor) -> Tensor:
        """Diagonal of a matrix laid out by `places`, (n_slot,)."""
        return matrix[self._row_place + torch.arange(self.n_slot, device=matrix.device)]

    def _middles(self, windows: Sequence[Window], slot: Tensor) -> None:
        """Line and middle half of each window, in rows."""
        lines, begins, ends = [], [], []
        for window in windows:
            start, stop = window.span()
            width = stop - start
            lines.append(self.line[slot[window.columns[:, 0]]])
            begins.append((start + width // 4).clamp(0, self.n_row))
            ends.append((start + (3 * width) // 4).clamp(0, self.n_row))
        self._middle = torch.cat(lines), torch.cat(begins), torch.cat(ends)

    def by_line(self, rows: Tensor, parameters: Tensor) -> Tensor:
        """Sum of a row quantity over the middle half of each line's windows and of one of its parameters, (n_slot,)."""
        total = torch.cat([rows.new_zeros(1), rows.cumsum(0)])
        line, begin, end = self._middle
        sums = rows.new_zeros(self.n_line).index_add_(0, line, total[end] - total[begin])
        sums.index_add_(0, self.line, parameters[self.parameter])
        return sums[self.line]


def _tile_batches(count: list[int]) -> Iterator[tuple[int, int, int]]:
    """Runs of tiles with at most `_CHUNK` values: first, one past the last, most pieces of a tile."""
    first = 0
    while first < len(count):
        last, most, own = first + 1, count[first], count[first] ** 2
        while last < len(count):
            wide = max(most, count[last])
            size, filled = (last + 1 - first) * wide, own + count[last] ** 2
            if size * max(wide, TILE) > _CHUNK or size * wide > 1.5 * filled:  # all are filled up to the largest
                break
            last, most, own = last + 1, wide, filled
        if most:
            yield first, last, most
        first = last


def _blocks(windows: Sequence[Window]) -> tuple[list[list[int]], list[int]]:
    """Parameters of each line, lines in wavelength order, and the number of parameters of each block.

    Blocks are the shortest runs of at least `LINES_PER_BLOCK` lines of which only neighbours share rows.
    """
    start, stop = (torch.cat(ends) for ends in zip(*(window.span() for window in windows), strict=True))
    groups = [row for window in windows for row in window.columns.tolist()]
    key = torch.tensor([row[0] for row in groups], device=start.device)
    known, line = torch.unique(key, return_inverse=True)
    if known.numel() < key.numel():  # a line that several orders see stands in as many windows
        start = start.new_full(known.shape, 1 << 60).scatter_reduce(0, line, start, "amin")
        stop = stop.new_zeros(known.shape).scatter_reduce(0, line, stop, "amax")
        first_seen = dict(zip(line.tolist(), groups, strict=True))
        groups = [first_seen[index] for index in range(known.numel())]
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
    groups = [groups[index] for index in order]
    return groups, [sum(len(group) for group in groups[a:b]) for a, b in pairwise(bounds)]
