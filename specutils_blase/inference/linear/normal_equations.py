"""Structured normal equations.

Lines in wavelength order touch only their neighbours, so the normal matrix of their parameters is block-tridiagonal;
parameters that touch everything form a thin border. Factorising, solving and the marginal covariances cost time and
memory linear in the number of lines, with dense blocks that run on any device.

Does not live here: their factor (`cholesky`), which of them meet (`blocks`), derivatives (`jacobian`), noise
(`inference.noise`), the iteration (`inference.minimize`).
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from ..noise import Diagonal, Noise
from .blocks import TILE, Structure
from .cholesky import Factor
from .jacobian import Jacobian, LocalBlock

_CHUNK = 1 << 20  # values of pieces handled at once where a copy of them is needed


class NormalEquations:
    r"""Normal equations (JᵀC⁻¹J + P) δ = JᵀC⁻¹r + P(θ₀ - θ) in block-tridiagonal form with a border.

    Parameters
    ----------
    jacobian : Jacobian
        From `jacobian.linearize`.
    residual : Tensor, (n_row,)
        Data minus model.
    noise : Noise
        Of the data. Only independent pixels keep the structure: other noise makes all columns dense.
    prior_precision, prior_gradient : Tensor, (n_parameter,)
        Inverse variances of the Gaussian priors, and precision × (prior mean - value).

    Attributes
    ----------
    border : Tensor, (n_border,)
        Parameters that touch everything.
    structure : Structure or None
        Of all others; None where there are none.
    """

    def __init__(
        self, jacobian: Jacobian, residual: Tensor, noise: Noise, prior_precision: Tensor, prior_gradient: Tensor
    ):
        self.n_parameter = prior_precision.numel()
        independent = isinstance(noise, Diagonal)
        jacobian = jacobian if independent else jacobian.all_dense(self.n_parameter)
        self.border = jacobian.dense_columns
        self.pinned: Tensor | None = None
        """Which parameters stand at a bound and would leave it; steps leave them alone, covariances do not."""
        self.residual = noise.whiten(residual.double())
        self._dense = noise.whiten(jacobian.dense.double())
        self.prior_precision, self.prior_gradient = prior_precision, prior_gradient
        self.gradient = prior_gradient.clone()
        self.gradient[self.border] += self._dense.T @ self.residual
        self._corner = self._dense.T @ self._dense
        self._curvature = torch.zeros_like(prior_precision)  # the diagonal of JᵀWJ
        self._curvature[self.border] += torch.diagonal(self._corner)
        self.structure = jacobian.structure
        if self.structure is not None:
            self._assemble(jacobian.blocks, noise.weight.double().sqrt())

    @property
    def diagonal(self) -> Tensor:
        """Diagonal of the matrix, (n_parameter,)."""
        return self._curvature + self.prior_precision

    @property
    def corner(self) -> Tensor:
        """The border's part of the matrix, (n_border, n_border)."""
        return self._corner + torch.diag(self.prior_precision[self.border])

    def block(self, k: int) -> tuple[Tensor, Tensor]:
        """JᵀWJ of block k with the block before it, and with itself."""
        return self.structure.matrix_block(self._matrix, k)

    def with_precision(self, prior_precision: Tensor) -> NormalEquations:
        """The same equations with other prior precisions, (n_parameter,)."""
        other = copy(self)
        other.prior_precision = prior_precision
        return other

    def push_forward(self, step: Tensor) -> Tensor:
        """Whitened change of the model flux, L⁻¹ J step, (n_row,)."""
        change = self._dense @ step[self.border]
        if self.structure is None:
            return change
        structure, n_row = self.structure, change.numel()
        local = step[structure.parameter][structure.piece_slot]
        tiles = change.new_zeros(structure.tile_rows.shape[0] + 1, TILE)
        for first in range(0, local.numel(), _CHUNK // TILE):
            part = slice(first, min(first + _CHUNK // TILE, local.numel()))
            tiles.index_add_(0, structure.piece_tile[part], self._pieces[part] * local[part].unsqueeze(1))
        change = torch.cat([change, change.new_zeros(1)])
        return change.index_add_(0, structure.tile_rows.reshape(-1), tiles[:-1].reshape(-1))[:n_row]

    def pull_back(self, rows: Tensor) -> Tensor:
        """Jᵀ L⁻ᵀ of whitened rows, (n_row,): the transpose of `push_forward`, (n_parameter,)."""
        result = torch.zeros_like(self.prior_precision)
        result[self.border] = self._dense.T @ rows
        if self.structure is None:
            return result
        structure = self.structure
        tiles = torch.cat([rows, rows.new_zeros(1)])[structure.tile_rows]
        tiles = torch.cat([tiles, tiles.new_zeros(1, TILE)])
        slots = rows.new_zeros(structure.n_slot)
        for first in range(0, structure.piece_slot.numel(), _CHUNK // TILE):
            part = slice(first, min(first + _CHUNK // TILE, structure.piece_slot.numel()))
            local = (self._pieces[part] * tiles[structure.piece_tile[part]]).sum(1)
            slots.index_add_(0, structure.piece_slot[part], local)
        result[structure.parameter] = slots
        return result

    def _assemble(self, blocks: list[LocalBlock], root: Tensor) -> None:
        structure = self.structure
        nothing = root.new_zeros(1)
        weights = torch.cat([root, nothing])[structure.tile_rows]
        pieces = _pieces(blocks, structure, torch.cat([weights, weights.new_zeros(1, TILE)]))
        self._pieces = pieces
        # What the border and the residual are on each tile, the latter as one column more.
        dense = torch.cat([self._dense, self.residual.unsqueeze(1)], dim=1)
        dense = torch.cat([dense, dense.new_zeros(1, dense.shape[1])])
        self._matrix = root.new_zeros(structure.matrix_size)
        border = root.new_zeros(structure.n_slot, dense.shape[1])
        for batch in structure.batches:
            local = pieces[batch.piece]
            product = local @ local.mT
            place, above = structure.places(batch.slot)
            self._matrix.index_add_(0, place.reshape(-1), product.masked_fill_(above, 0.0).reshape(-1))
            product = local @ dense[structure.tile_rows[batch.first : batch.last]]
            border.index_add_(0, batch.slot.reshape(-1), product.flatten(0, 1))
        self.border_blocks, gradient = border[:, :-1], border[:, -1]
        self._curvature[structure.parameter] = structure.diagonal(self._matrix)
        self.gradient[structure.parameter] += gradient

    def by_line(self, rows: Tensor, parameters: Tensor) -> Tensor:
        """Sum of a row quantity over the middle half of each line's window, and of one of its parameters.

        Border parameters, which have no window, get the total of everything. Returned for every parameter,
        (n_parameter,), the same for all parameters of a line.
        """
        result = (rows.sum() + parameters.sum()).expand(self.n_parameter).clone()
        if self.structure is not None:
            result[self.structure.parameter] = self.structure.by_line(rows, parameters)
        return result

    def factor(self, damping: Tensor | float = 0.0) -> Factor:
        """Cholesky factor with `damping` times the diagonal added to it (Marquardt); a number or one a parameter."""
        return Factor(self, damping * self.diagonal)

    def step(self, damping: Tensor | float) -> tuple[Tensor, Factor]:
        """Damped step, pinned parameters left alone, and the factor that gave it."""
        if self.pinned is None:
            factor = self.factor(damping)
            return factor.solve(self.gradient), factor
        keep = (~self.pinned).double()
        factor = Factor(self, damping * self.diagonal, keep)
        return factor.solve(self.gradient * keep), factor


def _pieces(blocks: list[LocalBlock], structure: Structure, weights: Tensor) -> Tensor:
    """Root-weighted derivatives cut where tiles end, (n_piece + 1, TILE), the last one zero."""
    pieces = weights.new_zeros(structure.piece_tile.numel() + 1, TILE)
    first = 0
    for block in blocks:
        n_line, n_kind, width = block.values.shape
        n_part = (width + TILE - 2) // TILE + 1
        last = first + n_line * n_kind * n_part
        own = pieces[first:last].reshape(n_line, n_kind, n_part * TILE)
        offset = torch.remainder(block.start, TILE).unsqueeze(1) + torch.arange(width, device=weights.device)
        own.scatter_(2, offset.unsqueeze(1).expand(-1, n_kind, -1), block.values.double())
        pieces[first:last] *= weights[structure.piece_tile[first:last]]
        first = last
    return pieces
