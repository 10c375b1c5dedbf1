"""Wavelength grids: uniform velocity, the nested coarse grids behind sparse evaluation, and pixel overlap.

Does not live here: the pixels of a spectrum (`spectra.data`), the lines on a grid (`model.emulator`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .kernels import lagrange_weights, weights_of_nodes

SPEED_OF_LIGHT = 299792.458
"""km/s, exact."""

LEVEL_REACH = 64
"""Nodes on each side of a line that a level covers; the next level takes over between a quarter and all of them.

A longer hand-over makes the profile on the coarser level smoother. Ten-point interpolation is then good to 1e-6 of the
opacity; with 48 nodes the error is 5e-6, with 32 nodes 7e-5.
"""

HANDOVER_START = 0.25
"""Part of `LEVEL_REACH` that a level covers alone; beyond it the next coarser level fades in."""

NEVER = 1e30
"""Reciprocal reach of the finer level where there is none: the hand-over from it is complete everywhere."""

STENCIL = 10
"""Nodes of one interpolation, from `1 - STENCIL / 2` to `STENCIL / 2` around the cell."""

PAD = 8
"""Coarse nodes beyond each end of the grid; even, and at least as many as the stencil needs."""


def velocity_grid(low: float, high: float, step: float) -> Tensor:
    """Wavelengths [Å] from `low` to at least `high` in equal steps of `step` km/s: λ_k = low exp(k step / c)."""
    n_node = math.ceil(math.log(high / low) * SPEED_OF_LIGHT / step) + 1
    return low * torch.exp(torch.arange(n_node, dtype=torch.float64) * (step / SPEED_OF_LIGHT))


class DoublePrecision(nn.Module):
    """Module whose buffers and parameters named in `double` stay float64 through `.float()` and `.to(dtype)`.

    In float32 a wavelength near 10,000 Å has quanta of 1e-3 Å (30 m/s), and 1 + v/c quanta of 18-36 m/s: wavelengths
    and velocities must be differenced in float64 first. Devices change as usual.
    """

    double: tuple[str, ...] = ()  # type: ignore[assignment]  # hides Module.double()

    def _apply(self, fn, recurse=True):
        kept = {name: getattr(self, name).detach() for name in self.double}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = getattr(self, name)
            if after.dtype != torch.float64:
                after.data = before.to(after.device)
        return self


class Sampling(DoublePrecision):
    """Wavelengths at which lines are summed, with nested coarse grids for their wings.

    Level 0 holds the wavelengths asked for, in any ascending sampling. Level ℓ ≥ 1 is uniform in ln λ with step
    2^ℓ h, h being the median step of level 0, and is carried down by ten-point Lagrange interpolation, level by
    level. Smooth contributions can so be evaluated on few nodes and still reach every wavelength.

    Parameters
    ----------
    wavelength : Tensor, (n,)
        Ascending wavelengths in Å.
    """

    double = ("wavelength", "coarse", "weight")

    wavelength: Tensor
    coarse: Tensor
    index: Tensor
    weight: Tensor

    def __init__(self, wavelength: Tensor):
        super().__init__()
        wavelength = torch.as_tensor(wavelength, dtype=torch.float64)
        if wavelength.ndim != 1 or wavelength.numel() < 2 or not bool((wavelength.diff() > 0).all()):
            raise ValueError("sampling needs at least two strictly ascending wavelengths in one dimension")
        ln = wavelength.log()
        self.step = float(ln.diff().median())  # in ln λ
        span = float(ln[-1] - ln[0])
        sizes = [math.ceil(span / (2 * self.step)) + 2 * PAD + 2]
        steps = [2 * self.step]
        while sizes[-1] > 64:
            sizes.append((sizes[-1] + PAD) // 2 + PAD + 2)
            steps.append(2 * steps[-1])
        self.sizes = tuple(sizes)
        coarse = [
            ln[0] + step * torch.arange(-PAD, n - PAD, dtype=torch.float64)
            for n, step in zip(sizes, steps, strict=True)
        ]
        position = (ln - ln[0]) / steps[0] + PAD
        index = position.floor().clamp(STENCIL // 2 - 1, sizes[0] - STENCIL // 2 - 1)
        self.register_buffer("wavelength", wavelength)
        self.register_buffer("coarse", torch.cat(coarse).exp())
        self.register_buffer("index", index.long())
        self.register_buffer("weight", _lagrange(position - index))

    @property
    def n_level(self) -> int:
        return len(self.sizes) + 1

    def __len__(self) -> int:
        return self.wavelength.numel()

    def level(self, level: int) -> Tensor:
        """Wavelengths of one level."""
        if level == 0:
            return self.wavelength
        start = sum(self.sizes[: level - 1])
        return self.coarse[start : start + self.sizes[level - 1]]

    def first_node(self, wavelength: Tensor) -> Tensor:
        """First node at or above wavelengths (n_level, n), each row on its own level; counted as `nodes` are."""
        fine = torch.searchsorted(self.wavelength, wavelength[0])
        level = torch.arange(1, self.n_level, device=fine.device).unsqueeze(1)
        size = torch.tensor(self.sizes, device=fine.device).unsqueeze(1)
        ratio = (wavelength[1:] / self.wavelength[0]).clamp(min=1e-6)  # what is below zero is below the first node
        position = ratio.log() / (self.step * level.double().exp2()) + PAD
        coarse = torch.minimum(position.ceil().clamp(min=0.0).long(), size)
        return torch.cat([fine.unsqueeze(0), coarse + (len(self) + size.cumsum(0) - size)])

    @property
    def nodes(self) -> Tensor:
        """Wavelengths of all levels, one after the other, the finest first."""
        return torch.cat([self.wavelength, self.coarse])

    def collapse(self, values: Tensor) -> Tensor:
        """Sum on level 0 of values (..., n_node) at the nodes of all levels, each coarse level interpolated down."""
        values = values.split((len(self), *self.sizes), dim=-1)
        carried = values[-1]
        for level in range(self.n_level - 2, 0, -1):
            carried = _refine(carried, self.sizes[level - 1]) + values[level]
        windows = carried.unfold(-1, STENCIL, 1)[..., self.index - (STENCIL // 2 - 1), :]
        return values[0] + (windows * self.weight.to(carried.dtype)).sum(-1)


def _lagrange(fraction: Tensor) -> Tensor:
    """Lagrange weights of the stencil's nodes for a point at `fraction` between nodes 0 and 1, (n, STENCIL)."""
    nodes = range(1 - STENCIL // 2, 1 + STENCIL // 2)
    columns = []
    for node in nodes:
        column = torch.ones_like(fraction)
        for other in nodes:
            if other != node:
                column = column * (fraction - other) / (node - other)
        columns.append(column)
    return torch.stack(columns, dim=-1)


MIDPOINT = _lagrange(torch.tensor([0.5], dtype=torch.float64))[0].tolist()


def _refine(coarse: Tensor, n_fine: int) -> Tensor:
    """Values on the next finer level: every other node is shared, the rest are midpoints."""
    shared = coarse[..., PAD // 2 :]
    midpoint = coarse.unfold(-1, STENCIL, 1) @ coarse.new_tensor(MIDPOINT)
    n_pair = (n_fine + 1) // 2
    pairs = torch.stack([shared[..., :n_pair], midpoint[..., PAD // 2 + 1 - STENCIL // 2 :][..., :n_pair]], dim=-1)
    return pairs.flatten(-2)[..., :n_fine]


def pixel_overlap(edges: Tensor, grid: Tensor) -> tuple[Tensor, Tensor]:
    r"""Weights that average a function sampled on a uniform-velocity grid over pixels.

    The mean flux density of pixel p between its own edges, :math:`\frac1{Δλ_p}\int F\,dλ`, with F λ (the density in
    ln λ) interpolated by cubic Lagrange polynomials: fractional overlap is exact, pixels finer than the grid
    included, and Σ_p F_p Δλ_p equals the integral of the interpolant to rounding.

    Parameters
    ----------
    edges : Tensor, (n_pixel, 2)
        Lower and upper edges in Å. They need not touch.
    grid : Tensor, (n_node,)
        Uniform-velocity wavelengths in Å that contain all edges, two nodes to spare at each end.

    Returns
    -------
    start : Tensor, (n_pixel,)
        First node that each pixel uses.
    weight : Tensor, (n_pixel, n_tap)
        Weights of the nodes from `start` on; each row sums to one (to the interpolation error of λ itself, 1e-20).
    """
    edges, grid = edges.to(torch.float64), grid.to(torch.float64)
    step = torch.log(grid[-1] / grid[0]) / (grid.numel() - 1)
    position = torch.log(edges / grid[0]) / step
    if bool((position[:, 0] < 1).any()) or bool((position[:, 1] > grid.numel() - 3).any()):
        raise ValueError("the grid does not reach two nodes beyond all pixel edges")
    low, high = position[:, 0], position[:, 1]
    first = low.floor()
    n_cell = int((high.ceil() - first).max())
    cell = first.unsqueeze(1) + torch.arange(n_cell, dtype=torch.float64, device=edges.device)
    begin = (low.unsqueeze(1) - cell).clamp(0.0, 1.0)
    end = (high.unsqueeze(1) - cell).clamp(0.0, 1.0)
    power_integrals = torch.stack([(end**p - begin**p) / p for p in range(1, 5)], dim=-1)
    cell_weights = lagrange_weights(power_integrals)  # (n_pixel, n_cell, 4)
    weight = weights_of_nodes(cell_weights)
    start = (first - 1).long()
    node = (start.unsqueeze(1) + torch.arange(weight.shape[1], device=edges.device)).clamp(max=grid.numel() - 1)
    return start, weight * grid[node] * step / (edges[:, 1] - edges[:, 0]).unsqueeze(1)
