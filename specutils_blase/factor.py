"""The factor of structured normal equations: steps, marginal covariances and draws from it.

Does not live here: the equations themselves (`normal_equations`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Factor:
    """Block Cholesky factor of normal equations, with its Schur complement for the border.

    Parameters
    ----------
    normal : NormalEquations
    damping : Tensor, (n_parameter,)
        Multiple of its diagonal added to each parameter's.
    """

    def __init__(self, normal, damping: Tensor):
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
            self.n_column = normal.partition.n_column
            added = self._gather(damping * normal.diagonal)
            for index, size in enumerate(self.n_column):
                block = normal.diagonal_blocks[index, :size, :size] + torch.diag(added[index, :size])
                if index:
                    touching = normal.lower_blocks[index - 1, :size, : self.n_column[index - 1]]
                    below = torch.linalg.solve_triangular(self.lower[-1], touching.mT, upper=False).mT
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
        """Solve the block-tridiagonal part for right sides (n_block, width, n), zero in the padding."""
        forward: list[Tensor] = []
        for index, lower in enumerate(self.lower):
            value = right[index][: self.n_column[index]]
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
        return self._padded(result, 1)

    def _padded(self, blocks: list[Tensor], n_axis: int) -> Tensor:
        """Blocks of different sizes as one tensor, zero beyond each one's size in the first `n_axis` axes."""
        width, first = self.normal.partition.columns.shape[1], blocks[0]
        shape = (width, width) if n_axis == 2 else (width, *first.shape[1:])
        stacked = first.new_zeros(len(blocks), *shape)
        for whole, block in zip(stacked, blocks, strict=True):
            whole[tuple(slice(size) for size in block.shape[:n_axis])] = block
        return stacked

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
        covariance = self._padded(result, 2)
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
        noise = [values[:size] for values, size in zip(noise, self.n_column, strict=True)]
        local = self._back_substitute(noise)
        local = local - self.border_solution @ border
        return torch.stack([self._scatter(local[..., k], border[:, k], elsewhere[k]) for k in range(n_draw)])


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
