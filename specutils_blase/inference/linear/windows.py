"""Which pixels each line's derivatives are followed over.

The windows here are narrower than the model's own: the Jacobian only steers, residuals stay exact. Lines too broad for
a window become dense columns. Sizes of windows are numbers that the host needs, so they are laid out once and kept for
as long as the lines are still much like they were (`Layout.holds`): an iteration in between asks the host nothing.

Does not live here: the derivatives (`jacobian`), the model's own windows (`lines`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ...model.emulator import LineEmulator
from ...model.order import ForwardModel
from ...model.parameters import FreeParameters, OrderParameters
from ...physics.voigt import voigt_fwhm
from .blocks import Structure, Window


class Cut(NamedTuple):
    """How far out a Jacobian follows the lines.

    To where a line's opacity falls below `opacity` or below `fraction` of its peak, whichever is less, over `widest`
    nodes at most: a cut Jacobian still steers, and its memory stays linear in the number of lines. Except in a band, a
    line whose core fills more than a sixth of the widest window gets dense columns instead.
    """

    fraction: float
    opacity: float
    widest: int


STEERING = Cut(1e-2, 3e-4, 2048)
"""For steps: the gradient is exact anyway. Errors from it are up to 5 % off (measured on WASP-69)."""

STEERING_IN_BAND = Cut(1e-2, 3e-4, 512)
"""For steps in a spectrum of more than `BAND` nodes."""

COVARIANCE = Cut(1e-3, 1e-5, 8192)
"""For covariances: errors within 0.15 % of those from the whole Jacobian."""

COVARIANCE_OF_ORDERS = Cut(3e-3, 1e-4, 2048)
"""The same for many orders, whose wings would tie each to the next: 98 % of the errors within 2 %, all within 4 %."""

BAND = 30_000

MOVED, GROWN = 0.15, 1.3
"""Parts of its half width by which a line's window for steps may be off its place, and the factor off its width."""

_CHUNK = 1 << 21  # values of a batch of windows held at once

_DENSE = 16  # lines with dense columns that are evaluated at once


def covariance_cut(free: FreeParameters) -> Cut | None:
    """The cut for covariances; in a band the one for steps, whose memory is what there is."""
    if len(free.orders) > 1:
        return COVARIANCE_OF_ORDERS
    return None if _in_band(free.orders[0]) else COVARIANCE


def _in_band(model: ForwardModel) -> bool:
    return len(model.sampling) > BAND


@dataclass(frozen=True)
class LineBatch:
    """Lines of one component, in windows of like size.

    Parameters
    ----------
    component : str
    lines : Tensor, (n,)
        As the component's emulator counts them.
    columns : Tensor, (n, n_kind)
        Their parameters.
    first, count : Tensor, (n,)
        First node and number of nodes of each window; `width` nodes at most.
    width : int
    pixel : Tensor, (n,)
        First pixel that the window reaches through the kernels; it may lie before the order.
    n_pixel : int
        Pixels of the widest.
    dense : bool
        Whether the derivatives go into dense columns, because another order needs these.
    """

    component: str
    lines: Tensor
    columns: Tensor
    first: Tensor
    count: Tensor
    width: int
    pixel: Tensor
    n_pixel: int
    dense: bool


@dataclass(frozen=True)
class OrderLayout:
    """Windows of one order; `everywhere` are lines, and their parameters, without a window; `halo` is the kernels'."""

    batches: list[LineBatch]
    everywhere: list[tuple[str, Tensor, Tensor]]
    halo: int


class Layout:
    """Windows of all lines in all orders, and which of the Jacobian's columns are dense.

    Parameters
    ----------
    free : FreeParameters
        At whose present state windows are laid out.
    cut : Cut, optional
        The one for steps by default.

    Attributes
    ----------
    parts : list
        The free parameters as each order sees them.
    orders : list of OrderLayout
    dense_columns : Tensor
        Parameters without windows, ascending.
    place : Tensor, (n_parameter,)
        Position of each of them among the dense columns.
    structure : Structure or None
        Of all others.
    """

    def __init__(self, free: FreeParameters, cut: Cut | None = None):
        self.parts = parts = [free.part(k) for k in range(len(free.orders))]
        known = [list(_windows(part, cut)) for part in parts]
        device = parts[0].model.sampling.wavelength.device
        everywhere = torch.zeros(len(free), dtype=torch.bool, device=device)
        everywhere[free.n_line_parameter :] = True
        for windows in known:
            for _, columns, narrow, _, count in windows:
                everywhere[columns[~narrow & (count > 0)]] = True
        self.dense_columns = everywhere.nonzero().squeeze(-1)
        self.place = everywhere.cumsum(0) - 1
        self.orders = [_order_layout(part, windows, everywhere) for part, windows in zip(parts, known, strict=True)]
        self.rows = [free.model.rows(k) for k in range(len(parts))]
        self.windows = [
            Window(batch.columns, batch.pixel, batch.n_pixel, rows, k)
            for k, (order, rows) in enumerate(zip(self.orders, self.rows, strict=True))
            for batch in order.batches
            if not batch.dense
        ]
        n_row = sum(part.model.n_pixel for part in parts)
        self.structure = Structure(self.windows, n_row, len(free)) if self.windows else None

    @torch.no_grad()
    def holds(self, free: FreeParameters, cut: Cut | None = None) -> bool:
        """Whether nearly all windows for steps are still where, and about as wide as, they would be laid out now."""
        off = []
        for k, order in enumerate(self.orders):
            model = free.orders[k]
            if order.halo != _halo(model):
                return False
            for batch in order.batches:
                emulator = model.components[batch.component]
                low, high = _extent(model, emulator, batch.component, batch.lines, cut or steering_cut(model))
                high = torch.minimum(high, low + batch.width)
                half, other = 0.5 * batch.count, 0.5 * (high - low)
                astray = ((low + other) - (batch.first + half)).abs() > MOVED * half + 2
                off.append(astray | (other > GROWN * half + 2))
        if not off:
            return True
        off = torch.cat(off)
        return bool(off.double().mean() < 0.02)


def steering_cut(model: ForwardModel) -> Cut:
    """The cut for steps."""
    return STEERING_IN_BAND if _in_band(model) else STEERING


def _halo(model: ForwardModel) -> int:
    """Nodes by which kernels widen a window at each end."""
    turning = max((part.rotation.n_half + 1 for part in model.parts.values() if part.rotation is not None), default=0)
    return turning + (0 if model.line_spread is None else model.line_spread.n_half + 1)


def _extent(model: ForwardModel, emulator: LineEmulator, name: str, lines: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
    """Nodes between which each line steers."""
    factor = model.doppler_factor(name)
    sigma, gamma = emulator.sigma[lines].double(), emulator.gamma[lines].double()
    area = emulator.area[lines].double()
    fwhm = voigt_fwhm(sigma, gamma)
    threshold = (cut.fraction * area / fwhm).clamp(max=cut.opacity)
    radius = torch.maximum((area * gamma / (math.pi * threshold)).sqrt(), 1.5 * fwhm)
    radius = torch.maximum(radius, sigma * (2.0 * (area / (2.5 * sigma * threshold)).clamp(min=1.0).log()).sqrt())
    center, nodes = emulator.shifted_center[lines], model.sampling.wavelength
    return tuple(torch.searchsorted(nodes, (center + side * radius) * factor) for side in (-1.0, 1.0))


@torch.no_grad()
def _windows(
    free: FreeParameters | OrderParameters, cut: Cut | None
) -> Iterator[tuple[str, Tensor, Tensor, Tensor, Tensor]]:
    """Component, parameters, whether there is a window, first node and number of nodes of all free lines."""
    model = free.model
    cut = cut or steering_cut(model)
    for name, emulator in model.components.items():
        lines = free.lines[name]
        if not (lines.numel() and free.kinds[name]):
            continue
        first, last = _extent(model, emulator, name, lines, cut)
        count = last - first
        narrow, too_wide = count > 0, count > cut.widest
        if not _in_band(model):
            fwhm = voigt_fwhm(emulator.sigma[lines].double(), emulator.gamma[lines].double())
            core = fwhm / emulator.center[lines] / model.sampling.step
            narrow &= ~too_wide | (core * 6 <= cut.widest)
        clipped = too_wide & narrow
        # About the line, not the window, which the ends of the grid may have clipped.
        middle = emulator.shifted_center[lines] * model.doppler_factor(name)
        about = torch.searchsorted(model.sampling.wavelength, middle) - cut.widest // 2
        first = torch.where(clipped, torch.minimum(torch.maximum(about, first), last - cut.widest), first)
        yield name, free.columns(name), narrow, first, torch.where(clipped, cut.widest, count)


def _order_layout(free: FreeParameters | OrderParameters, windows, everywhere: Tensor) -> OrderLayout:
    model, halo = free.model, _halo(free.model)
    batches, dense = [], []
    for name, columns, narrow, first, count in windows:
        lines, elsewhere = free.lines[name], everywhere[columns[:, 0]]
        for is_dense in (False, True):
            for part in _batches(count, narrow & (elsewhere == is_dense), columns.shape[1], halo):
                width = int(count[part].max())
                pixel, n_pixel = _pixels(model, first[part] - halo, width + 2 * halo)
                own = lines[part], columns[part], first[part], count[part]
                batches.append(LineBatch(name, *own, width, pixel, n_pixel, is_dense))
        wide = (~narrow & (count > 0)).nonzero().squeeze(-1)
        dense += [(name, lines[part], columns[part]) for part in wide.split(_DENSE) if part.numel()]
    return OrderLayout(batches, dense, halo)


def _pixels(model: ForwardModel, begin: Tensor, width: int) -> tuple[Tensor, int]:
    """First pixel that sees the nodes `begin … begin + width`, and the number of them in the largest case."""
    pixels = model.pixels
    if pixels is None:
        return begin, width
    first = torch.searchsorted(pixels.start, begin - pixels.weight.shape[1], right=True)
    last = torch.searchsorted(pixels.start, begin + width)
    return first, max(1, int((last - first).max()))


def _batches(count: Tensor, chosen: Tensor, n_kind: int, halo: int) -> Iterator[Tensor]:
    """Chosen lines of like window size together, so that padding costs little."""
    order = torch.argsort(torch.where(chosen, count, 0))
    order = order[chosen[order]]
    size = count[order].tolist()
    start = 0
    while start < len(size):
        stop = start + 1
        limit = 1.3 * size[start] + 32
        while (
            stop < len(size) and size[stop] <= limit and (stop + 1 - start) * n_kind * (size[stop] + 2 * halo) <= _CHUNK
        ):
            stop += 1
        yield order[start:stop]
        start = stop
