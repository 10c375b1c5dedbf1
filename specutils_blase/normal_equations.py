"""Structured normal equations and their factor.

Lines in wavelength order touch only their neighbours, so the normal matrix of their parameters is block-tridiagonal;
parameters that touch everything form a thin border. Factorising, solving and the marginal covariances cost time and
memory linear in the number of lines, with dense blocks that run on any device.

Does not live here: derivatives (`jacobian`), the iteration (`least_squares`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from .jacobian import Jacobian

_CHUNK = 1 << 22  # dense values held at once during assembly

LINES_PER_BLOCK = 12
"""Smallest number of lines in a block: fewer make many tiny matrices, more waste work on far pairs."""


@dataclass(frozen=True)
class _Partition:
    """Blocks of lines in wavelength order such that only neighbouring blocks share rows."""

    columns: Tensor  # (n_block, max_parameter) position in the parameter vector; -1 pads
    first_row: Tensor  # (n_block,)
    n_row: list[int]  # rows that each block spans


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
        """Border parameters that stand at a bound and would leave it; steps leave them alone, covariances do not."""
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
        self._spans = [
            (block.columns, block.start + block.values.shape[-1] // 4, block.start + (3 * block.values.shape[-1]) // 4)
            for block in jacobian.blocks
        ]
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
        n_row = self.partition.n_row
        first = 0
        while first < n_block:
            last, tallest = first + 1, n_row[first]
            while last < n_block and (last + 1 - first) * max(tallest, n_row[last]) * width <= _CHUNK:
                tallest = max(tallest, n_row[last])
                last += 1
            local = self._densify(first, last, bound, tallest, behind=0)
            self.diagonal_blocks[first:last] = local.mT @ local
            if dense.shape[1]:
                row = self.partition.first_row[first:last].unsqueeze(1) + torch.arange(tallest, device=columns.device)
                self.border_blocks[first:last] = local.mT @ dense[row.clamp(max=dense.shape[0] - 1)]
            n_pair = min(last, n_block - 1) - first
            if n_pair:
                # The next blocks' derivatives on the rows of these; what lies beyond touches nothing here.
                following = self._densify(first + 1, first + 1 + n_pair, bound, tallest, behind=1)
                self.lower_blocks[first : first + n_pair] = following.mT @ local[:n_pair]
            first = last
        pull = residual.new_zeros(n_block * width)
        pull.index_add_(0, entries.place, entries.value * residual[entries.row])
        flat = columns.reshape(-1)
        used = flat >= 0
        padding = (columns < 0).double()
        spread = torch.where(columns >= 0, prior_precision[columns.clamp(min=0)], 0.0)
        self.diagonal_blocks += torch.diag_embed(spread + padding)
        self.diagonal[flat[used]] = torch.diagonal(self.diagonal_blocks, dim1=-2, dim2=-1).reshape(-1)[used]
        self.gradient[flat[used]] += pull[used]

    def _densify(self, first: int, last: int, bound: list[int], n_row: int, behind: int) -> Tensor:
        """Derivatives of blocks `first … last`, (n, n_row, width), from the first row of the block `behind` each."""
        width = self.partition.columns.shape[1]
        part = slice(bound[first], bound[last])
        place = self._entries.place[part]
        owner = place // width
        row = self._entries.row[part] - self.partition.first_row[owner - behind]
        value = torch.where(row < n_row, self._entries.value[part], 0.0)
        index = ((owner - first) * n_row + row.clamp(0, n_row - 1)) * width + place % width
        local = value.new_zeros((last - first) * n_row * width).index_add_(0, index, value)
        return local.reshape(last - first, n_row, width)

    def by_line(self, rows: Tensor, parameters: Tensor) -> Tensor:
        """Sum of a row quantity over the middle half of each line's window, and of one of its parameters.

        Border parameters, which have no window, get the total of everything. Returned for every parameter,
        (n_parameter,), the same for all parameters of a line.
        """
        total = torch.cat([rows.new_zeros(1), rows.cumsum(0)])
        result = (rows.sum() + parameters.sum()).expand(self.n_parameter).clone()
        for columns, start, stop in self._spans:
            window = total[stop.clamp(0, rows.numel())] - total[start.clamp(0, rows.numel())]
            result[columns] = (window + parameters[columns].sum(1)).unsqueeze(1).expand(columns.shape)
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
            normal, gradient = copy(self), self.gradient.clone()
            gradient[self.border] *= keep
            normal.corner = self.corner * keep * keep.unsqueeze(1) + torch.diag(1.0 - keep)
            if self.partition is not None:
                normal.border_blocks = self.border_blocks * keep
        factor = normal.factor(damping)
        return factor.solve(gradient), factor


class Factor:
    """Block Cholesky factor of `NormalEquations`, with its Schur complement for the border."""

    def __init__(self, normal: NormalEquations, damping: Tensor):
        self.normal = normal
        # Whether blocks are positive definite is asked once, at the end: on a GPU every question stalls the queue.
        failures = self._factorise(damping, lambda matrix: torch.linalg.cholesky_ex(matrix))
        if failures and bool(torch.stack(failures).any()):
            self._factorise(damping, _mended_cholesky)

    def _factorise(self, damping: Tensor, cholesky: Callable[[Tensor], tuple[Tensor, Tensor]]) -> list[Tensor]:
        normal, failures = self.normal, []
        corner = normal.corner + torch.diag((damping * normal.diagonal)[normal.border])
        self.lower: list[Tensor] = []
        self.below: list[Tensor] = []
        if normal.partition is not None:
            blocks = normal.diagonal_blocks
            blocks = blocks + torch.diag_embed(self._gather(damping * normal.diagonal))
            for index in range(blocks.shape[0]):
                block = blocks[index]
                if index:
                    below = torch.linalg.solve_triangular(
                        self.lower[-1], normal.lower_blocks[index - 1].mT, upper=False
                    ).mT
                    self.below.append(below)
                    block = block - below @ below.mT
                lower, info = cholesky(block)
                self.lower.append(lower)
                failures.append(info)
            self.border_solution = self._solve_local(normal.border_blocks)
            corner = corner - torch.einsum("bpi,bpj->ij", normal.border_blocks, self.border_solution)
        self.corner = corner
        if corner.numel():
            self.corner, info = cholesky(corner)
            failures.append(info)
        return failures

    def _solve_local(self, right: Tensor) -> Tensor:
        """Solve the block-tridiagonal part for right sides (n_block, width, n)."""
        forward: list[Tensor] = []
        for index, lower in enumerate(self.lower):
            value = right[index]
            if index:
                value = value - self.below[index - 1] @ forward[-1]
            forward.append(torch.linalg.solve_triangular(lower, value, upper=False))
        return self._back_substitute(forward)

    def _back_substitute(self, forward: list[Tensor]) -> Tensor:
        result: list[Tensor] = [None] * len(forward)
        for index in range(len(forward) - 1, -1, -1):
            value = forward[index]
            if index + 1 < len(forward):
                value = value - self.below[index].mT @ result[index + 1]
            result[index] = torch.linalg.solve_triangular(self.lower[index].mT, value, upper=True)
        return torch.stack(result)

    def _gather(self, vector: Tensor) -> Tensor:
        columns = self.normal.partition.columns
        return torch.where(columns >= 0, vector[columns.clamp(min=0)], 0.0)

    def _scatter(self, blocks: Tensor, border: Tensor, elsewhere: Tensor | None = None) -> Tensor:
        """Vector of parameters; `elsewhere` (or zero) for those that no datum touches."""
        result = border.new_zeros(self.normal.n_parameter) if elsewhere is None else elsewhere
        if self.normal.partition is not None:
            columns = self.normal.partition.columns
            used = columns >= 0
            result[columns[used]] = blocks[used]
        result[self.normal.border] = border
        return result

    def solve(self, right: Tensor) -> Tensor:
        """Solution δ for a right side (n_parameter,)."""
        border = right[self.normal.border]
        if self.normal.partition is None:
            return self._scatter(None, torch.cholesky_solve(border.unsqueeze(-1), self.corner).squeeze(-1))
        local = self._solve_local(self._gather(right).unsqueeze(-1))
        if border.numel():
            reduced = border - torch.einsum("bpi,bp->i", self.normal.border_blocks, local.squeeze(-1))
            border = torch.cholesky_solve(reduced.unsqueeze(-1), self.corner).squeeze(-1)
            local = local - (self.border_solution @ border).unsqueeze(-1)
        return self._scatter(local.squeeze(-1), border)

    def variance(self) -> Tensor:
        """Marginal variance of every parameter, (n_parameter,)."""
        border, prior = torch.diagonal(self.border_covariance()), 1.0 / self.normal.prior_precision
        if self.normal.partition is None:
            return self._scatter(None, border, prior)
        return self._scatter(torch.diagonal(self.block_covariance(), dim1=-2, dim2=-1), border, prior)

    def border_covariance(self) -> Tensor:
        """Covariance of the border's parameters, in the order of `NormalEquations.border`."""
        return torch.cholesky_inverse(self.corner) if self.corner.numel() else self.corner

    def block_covariance(self) -> Tensor:
        """Marginal covariance within each block, (n_block, width, width), by selected inversion (Takahashi 1973)."""
        result: list[Tensor] = [None] * len(self.lower)
        for index in range(len(self.lower) - 1, -1, -1):
            inverse = torch.cholesky_inverse(self.lower[index])
            if index + 1 < len(self.lower):
                gain = torch.linalg.solve_triangular(self.lower[index].mT, self.below[index].mT, upper=True)
                inverse = inverse + gain @ result[index + 1] @ gain.mT
            result[index] = inverse
        covariance = torch.stack(result)
        if self.corner.numel():
            covariance = covariance + self.border_solution @ self.border_covariance() @ self.border_solution.mT
        return covariance

    def covariance_blocks(self, columns: Tensor) -> Tensor:
        """Marginal covariance of small groups of local parameters, e.g. of each line; (n_group, k, k) for (n_group, k).

        Groups that belong to the border are served too, and groups that no datum touches keep their prior's; a group
        must not straddle blocks.
        """
        place = torch.full((self.normal.n_parameter,), -1, dtype=torch.long, device=columns.device)
        result = torch.diag_embed(1.0 / self.normal.prior_precision[columns])
        place[self.normal.border] = torch.arange(self.normal.border.numel(), device=columns.device)
        at = place[columns]
        chosen = (at >= 0).all(-1)
        pick = at[chosen]
        result[chosen] = self.border_covariance()[pick.unsqueeze(-1), pick.unsqueeze(-2)]
        if self.normal.partition is not None:
            table = self.normal.partition.columns
            flat = table.reshape(-1)
            used = flat >= 0
            place.fill_(-1)
            place[flat[used]] = torch.arange(flat.numel(), device=columns.device)[used]
            at = place[columns]
            chosen = (at >= 0).all(-1)
            block, inner = at[chosen][:, 0] // table.shape[1], at[chosen] % table.shape[1]
            covariance = self.block_covariance()
            result[chosen] = covariance[block.view(-1, 1, 1), inner.unsqueeze(-1), inner.unsqueeze(-2)]
        return result

    def draw(self, n_draw: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws from the Gaussian with this precision matrix, zero mean, (n_draw, n_parameter).

        Parameters that no datum touches scatter as their priors do.
        """
        dtype, device = self.corner.dtype, self.corner.device
        shape = (n_draw, self.normal.n_parameter)
        elsewhere = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        elsewhere /= self.normal.prior_precision.sqrt()
        n_border = self.normal.border.numel()
        noise = torch.randn(n_border, n_draw, generator=generator, dtype=dtype, device=device)
        border = torch.linalg.solve_triangular(self.corner.mT, noise, upper=True) if n_border else noise
        if self.normal.partition is None:
            return torch.stack([self._scatter(None, border[:, k], elsewhere[k]) for k in range(n_draw)])
        shape = (*self.normal.partition.columns.shape, n_draw)
        noise = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        local = self._back_substitute(list(noise))
        local = local - self.border_solution @ border
        return torch.stack([self._scatter(local[..., k], border[:, k], elsewhere[k]) for k in range(n_draw)])


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
        inside = (rows >= 0) & (rows < root.numel())
        rows = rows.clamp(0, root.numel() - 1)
        scaled = block.values.double() * (root[rows] * inside).unsqueeze(1)
        value[position] = scaled.reshape(position.shape)
        row[position] = rows.repeat_interleave(block.columns.shape[1], dim=0)
    return _Entries(value, row, torch.repeat_interleave(at[order], length[order]))


def _mended_cholesky(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Cholesky factor; a matrix that rounding has made indefinite gets the smallest jitter that mends it."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    jitter = 1e-14
    while int(info) and jitter < 1e-3:
        jitter *= 100.0
        factor, info = torch.linalg.cholesky_ex(matrix + jitter * torch.diag(torch.diagonal(matrix).abs()))
    if int(info):
        raise torch.linalg.LinAlgError("the normal matrix is not positive definite: a parameter has no information")
    return factor, info


def _partition(jacobian: Jacobian, device) -> _Partition | None:
    """Group lines into blocks that share rows with their neighbours only."""
    if not jacobian.blocks:
        return None
    start = torch.cat([block.start for block in jacobian.blocks])
    stop = torch.cat([block.start + block.values.shape[-1] for block in jacobian.blocks])
    groups = [row.tolist() for block in jacobian.blocks for row in block.columns]
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
    width = max(sum(len(group) for group in block) for block in members)
    columns = torch.full((len(members), width), -1, dtype=torch.long)
    for row, block in enumerate(members):
        flat = [column for group in block for column in group]
        columns[row, : len(flat)] = torch.tensor(flat)
    spans = list(pairwise(bounds))
    first = [max(0, min(start[a:b])) for a, b in spans]
    n_row = [max(1, max(stop[a:b]) - low) for (a, b), low in zip(spans, first, strict=True)]
    return _Partition(columns.to(device), torch.tensor(first, device=device), n_row)
