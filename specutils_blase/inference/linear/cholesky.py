"""The factor of structured normal equations: steps, marginal covariances and draws from it.

Does not live here: the equations themselves (`normal_equations`).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

APART = 64
"""Lines from one to the next that are probed at once.

What they still have to do with each other comes in with random signs. In a whole order of HPF, shifts of means from
these probes are off by 0.001 errors, from half as many by 0.001 to 0.06 (RMS).
"""


class Factor:
    """Block Cholesky factor of normal equations, with its Schur complement for the border.

    Parameters
    ----------
    normal : NormalEquations
    added : Tensor, (n_parameter,)
        Added to the diagonal of the matrix.
    keep : Tensor, (n_parameter,), optional
        1 for parameters that stay, 0 for those cut off from all others. The latter keep their own curvature: one that
        is let go before the next matrix must not run away.
    """

    def __init__(self, normal, added: Tensor, keep: Tensor | None = None):
        self.normal = normal
        # Whether blocks are positive definite is asked once, at the end: on a GPU every question stalls the queue.
        failures = self._factorise(added, keep, lambda matrix: torch.linalg.cholesky_ex(matrix))
        if failures and bool(torch.stack(failures).any()):
            self._factorise(added, keep, _mended_cholesky)

    def _factorise(
        self, added: Tensor, keep: Tensor | None, cholesky: Callable[[Tensor], tuple[Tensor, Tensor]]
    ) -> list[Tensor]:
        normal, structure, failures = self.normal, self.normal.structure, []
        border_keep = None if keep is None else keep[normal.border]
        corner = _cut_off(normal.corner, border_keep, border_keep) + torch.diag(added[normal.border])
        added = added + normal.prior_precision
        self.lower: list[Tensor] = []
        self.below: list[Tensor] = []
        if structure is not None:
            local = structure.split(added[structure.parameter])
            kept = [None] * len(local) if keep is None else structure.split(keep[structure.parameter])
            for index, more in enumerate(local):
                touching, own = normal.block(index)
                block = _cut_off(own, kept[index], kept[index]) + torch.diag(more)
                if index:
                    touching = _cut_off(touching, kept[index], kept[index - 1])
                    below = torch.linalg.solve_triangular(self.lower[-1], touching.mT, upper=False).mT
                    self.below.append(below)
                    block = block - below @ below.mT
                lower, info = cholesky(block)
                self.lower.append(lower)
                failures.append(info)
            border = normal.border_blocks
            if keep is not None:
                border = border * keep[structure.parameter].unsqueeze(1) * border_keep
            self._border, self.border_solution = border, self._solve_local(border)
            corner = corner - border.mT @ self.border_solution
        self.corner = corner
        if corner.numel():
            self.corner, info = cholesky(corner)
            failures.append(info)
        return failures

    def _solve_local(self, right: Tensor) -> Tensor:
        """Solve the block-tridiagonal part for right sides (n_slot, n)."""
        forward: list[Tensor] = []
        for index, (lower, value) in enumerate(zip(self.lower, self.normal.structure.split(right), strict=True)):
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
        return torch.cat(result)

    def _scatter(self, local: Tensor | None, border: Tensor, elsewhere: Tensor | None = None) -> Tensor:
        """Vector of parameters; `elsewhere` (or zero) for those that no datum touches."""
        result = border.new_zeros(self.normal.n_parameter) if elsewhere is None else elsewhere
        if local is not None:
            result[self.normal.structure.parameter] = local
        result[self.normal.border] = border
        return result

    def solve(self, right: Tensor) -> Tensor:
        """Solution δ for a right side (n_parameter,)."""
        border = right[self.normal.border]
        if self.normal.structure is None:
            return self._scatter(None, torch.cholesky_solve(border.unsqueeze(-1), self.corner).squeeze(-1))
        local = self._solve_local(right[self.normal.structure.parameter].unsqueeze(-1)).squeeze(-1)
        if border.numel():
            reduced = border - self._border.mT @ local
            border = torch.cholesky_solve(reduced.unsqueeze(-1), self.corner).squeeze(-1)
            local = local - self.border_solution @ border
        return self._scatter(local, border)

    def variance(self) -> Tensor:
        """Marginal variance of every parameter, (n_parameter,)."""
        border, prior = torch.diagonal(self.border_covariance()), 1.0 / self.normal.prior_precision
        if self.normal.structure is None:
            return self._scatter(None, border, prior)
        local = torch.cat([torch.diagonal(block) for block in self.block_covariance()])
        return self._scatter(local, border, prior)

    def border_covariance(self) -> Tensor:
        """Covariance of the border's parameters, in the order of `NormalEquations.border`."""
        return torch.cholesky_inverse(self.corner) if self.corner.numel() else self.corner

    def block_covariance(self) -> list[Tensor]:
        """Marginal covariance within each block, by selected inversion (Takahashi 1973)."""
        result: list[Tensor] = [None] * len(self.lower)
        for index in range(len(self.lower) - 1, -1, -1):
            inverse = torch.cholesky_inverse(self.lower[index])
            if index + 1 < len(self.lower):
                gain = torch.linalg.solve_triangular(self.lower[index].mT, self.below[index].mT, upper=True)
                inverse = inverse + gain @ result[index + 1] @ gain.mT
            result[index] = inverse
        if not self.corner.numel():
            return result
        border = self.border_covariance()
        parts = self.normal.structure.split(self.border_solution)
        return [block + part @ border @ part.mT for block, part in zip(result, parts, strict=True)]

    def covariance_blocks(self, columns: Tensor) -> Tensor:
        """Marginal covariance of small groups of local parameters, e.g. of each line; (n_group, k, k) for (n_group, k).

        Groups that belong to the border are served too, and groups that no datum touches keep their prior's; a group
        must not straddle blocks.
        """
        device, structure = columns.device, self.normal.structure
        result = torch.diag_embed(1.0 / self.normal.prior_precision[columns])

        def found(parameters: Tensor) -> tuple[Tensor, Tensor]:
            """Which groups are of these parameters, and their places among them."""
            place = torch.full((self.normal.n_parameter,), -1, dtype=torch.long, device=device)
            place[parameters] = torch.arange(parameters.numel(), device=device)
            chosen = (place[columns] >= 0).all(-1)
            return chosen, place[columns[chosen]]

        chosen, place = found(self.normal.border)
        result[chosen] = self.border_covariance()[place.unsqueeze(-1), place.unsqueeze(-2)]
        if structure is not None:
            chosen, place = found(structure.parameter)
            size = torch.tensor(structure.n_column, device=device)
            block = torch.repeat_interleave(torch.arange(size.numel(), device=device), size)[place[:, 0]]
            inner = place - (size.cumsum(0) - size)[block].unsqueeze(-1)
            first = (size.square().cumsum(0) - size.square())[block].view(-1, 1, 1)
            covariance = torch.cat([part.reshape(-1) for part in self.block_covariance()])
            result[chosen] = covariance[first + inner.unsqueeze(-1) * size[block].view(-1, 1, 1) + inner.unsqueeze(-2)]
        return result

    def draw(self, n_draw: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws from the Gaussian with this precision matrix, zero mean, (n_draw, n_parameter).

        Parameters that no datum touches scatter as their priors do.
        """
        dtype, device, structure = self.corner.dtype, self.corner.device, self.normal.structure

        def white(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=dtype, device=device)

        elsewhere = white(n_draw, self.normal.n_parameter) / self.normal.prior_precision.sqrt()
        border = white(self.normal.border.numel(), n_draw)
        return self._root(None if structure is None else white(structure.n_slot, n_draw), border, elsewhere)

    def _root(self, local: Tensor | None, border: Tensor, elsewhere: Tensor) -> Tensor:
        """The root of the covariance times columns of numbers, (n, n_column), a row each, (n_column, n_parameter)."""
        if border.numel():
            border = torch.linalg.solve_triangular(self.corner.mT, border, upper=True)
        if local is not None:
            local = self._back_substitute(list(self.normal.structure.split(local))) - self.border_solution @ border
        columns = range(len(elsewhere))
        return torch.stack(
            [self._scatter(None if local is None else local[:, k], border[:, k], elsewhere[k]) for k in columns]
        )

    def probes(self, generator: torch.Generator | None = None) -> Tensor:
        r"""Few vectors ξ with :math:`\sum ξ ξ^T` the covariance of all that touches each other, (n_probe, n_parameter).

        They are the columns of a root of the covariance, those of lines so far apart that they hardly touch as one,
        with random signs (probing, Tang & Saad 2012): four times `APART`, and one for each parameter of the border,
        however many lines there are. Parameters that no datum touches are zero.
        """
        structure, n_border = self.normal.structure, self.normal.border.numel()
        like = {"dtype": self.corner.dtype, "device": self.corner.device}
        local, n_local = None, 0
        if structure is not None:
            slot = torch.arange(structure.n_slot, device=structure.line.device)
            within = slot - torch.searchsorted(structure.line, structure.line)  # which parameter of its line
            _, probe = torch.unique(within * APART + structure.line % APART, return_inverse=True)
            n_local = int(probe.max()) + 1
            sign = 1 - 2 * torch.randint(2, slot.shape, generator=generator, device=slot.device)
            local = torch.zeros(structure.n_slot, n_local + n_border, **like)
            local[slot, probe] = sign.to(like["dtype"])
        border = torch.zeros(n_border, n_local + n_border, **like)
        border[:, n_local:] = torch.eye(n_border, **like)
        return self._root(local, border, torch.zeros(n_local + n_border, self.normal.n_parameter, **like))


def _cut_off(matrix: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    """A matrix whose rows and columns that are not kept are zero, but on its diagonal if these are the same."""
    if rows is None:
        return matrix
    cut = matrix * rows.unsqueeze(1) * columns
    if rows is columns:
        cut = cut + torch.diag(torch.diagonal(matrix) * (1.0 - rows))
    return cut


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
