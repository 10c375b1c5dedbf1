"""Analytic derivatives of a `ForwardModel`, in the shape that the structured solver wants.

Each line touches only the pixels around it, so its derivatives are computed on a window: profile derivative → slope of
the saturation law → the other component → kernels → pixels, all as batched tensor operations. Parameters that touch
everything (radial velocity, rotation, resolving power, continuum, the law's own) give dense columns.

The windows here are narrower than the model's own: the Jacobian only steers, residuals stay exact. Lines too broad for
a window become dense columns.

Does not live here: the model (`model`), the normal equations (`least_squares`), priors and weights (`fitting`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from .echelle import EchelleModel
from .grids import SPEED_OF_LIGHT
from .kernels import convolve, correlate
from .lines import LineEmulator
from .model import ForwardModel, Stages
from .parallel import each
from .parameters import FreeParameters, OrderParameters
from .profiles import voigt_fwhm, voigt_with_derivatives
from .structure import Structure, Window


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

_CHUNK = 1 << 21  # values of a batch of windows held at once


@dataclass(frozen=True)
class LocalBlock:
    """Derivatives of a batch of lines: `values[b, p, w]` belongs to parameter `columns[b, p]`, pixel `start[b] + w`.

    Pixel i of the order is row `rows[i]` of the problem, or row i where there is one order only.
    """

    columns: Tensor
    start: Tensor
    values: Tensor
    rows: Tensor | None = None
    order: int = 0

    @property
    def window(self) -> Window:
        """What `Structure` needs to know."""
        return Window(self.columns, self.start, self.values.shape[-1], self.rows, self.order)


@dataclass(frozen=True)
class Jacobian:
    """Model flux, local blocks, and dense columns `dense[:, k]` of parameters `dense_columns[k]`."""

    flux: Tensor
    blocks: list[LocalBlock]
    dense: Tensor
    dense_columns: Tensor

    def structure(self, n_parameter: int) -> Structure | None:
        """Which of its rows and parameters meet; None if it has no local blocks."""
        if not self.blocks:
            return None
        return Structure([block.window for block in self.blocks], self.flux.numel(), n_parameter)


def linearize(free: FreeParameters, stages: list[Stages] | None = None, cut: Cut | None = None) -> Jacobian:
    """Flux of the model and its derivatives to all free parameters.

    `stages` are those of the present state, one an order, if known; `cut` is the one for steps if not given.
    """
    stages = [None] * len(free.orders) if stages is None else stages
    orders = [free.part(k) for k in range(len(stages))]
    parts = each(lambda item: linearize_order(*item, cut), zip(orders, stages, strict=True))
    return _merged(free, parts) if isinstance(free.model, EchelleModel) else parts[0]


def _merged(free: FreeParameters, parts: list[Jacobian]) -> Jacobian:
    """All orders' derivatives as one Jacobian, its rows in order of wavelength."""
    rows = [free.model.rows(k) for k in range(len(parts))]
    flux = free.merge([part.flux for part in parts])
    dense_columns = torch.unique(torch.cat([part.dense_columns for part in parts]))
    place = torch.full((len(free),), -1, dtype=torch.long, device=flux.device)
    place[dense_columns] = torch.arange(dense_columns.numel(), device=flux.device)
    dense = flux.new_zeros(flux.numel(), dense_columns.numel())
    blocks: list[LocalBlock] = []
    for k, (row, part) in enumerate(zip(rows, parts, strict=True)):
        dense[row.unsqueeze(1), place[part.dense_columns]] = part.dense
        for block in part.blocks:
            elsewhere = place[block.columns[:, 0]] >= 0  # a line that is dense in another order is dense in all
            for line in elsewhere.nonzero().squeeze(-1).tolist():
                pixel = block.start[line] + torch.arange(block.values.shape[-1], device=row.device)
                inside = (pixel >= 0) & (pixel < row.numel())
                dense[row[pixel[inside]].unsqueeze(1), place[block.columns[line]]] = block.values[line][:, inside].T
            keep = ~elsewhere
            if bool(keep.any()):
                blocks.append(LocalBlock(block.columns[keep], block.start[keep], block.values[keep], row, k))
    return Jacobian(flux, blocks, dense, dense_columns)


def covariance_cut(free: FreeParameters) -> Cut | None:
    """The cut for covariances; in a band the one for steps, whose memory is what there is."""
    if len(free.orders) > 1:
        return COVARIANCE_OF_ORDERS
    return None if len(free.orders[0].sampling) > BAND else COVARIANCE


@torch.no_grad()
def linearize_order(
    free: FreeParameters | OrderParameters, stages: Stages | None = None, cut: Cut | None = None
) -> Jacobian:
    """The same of one order, its pixels being the rows."""
    model = free.model
    in_band = len(model.sampling) > BAND
    cut = cut or (STEERING_IN_BAND if in_band else STEERING)
    stages = model.stages() if stages is None else stages
    context = _Context(model, stages)
    blocks: list[LocalBlock] = []
    dense, dense_columns = [], []
    for name, emulator in model.components.items():
        lines, kinds = free.lines[name], free.kinds[name]
        if not (lines.numel() and kinds):
            continue
        columns = free.columns(name)
        first, count = context.line_windows(emulator, name, lines, cut)
        narrow = count > 0
        widest = cut.widest
        too_wide = count > widest
        if bool(too_wide.any()):
            if not in_band:
                core = context.core_nodes(emulator, lines)
                narrow &= ~too_wide | (core * 6 <= widest)
            clipped = too_wide & narrow
            # About the line, not the window, which the ends of the grid may have clipped.
            about = context.middle_nodes(emulator, name, lines) - widest // 2
            first = torch.where(clipped, torch.minimum(torch.maximum(about, first), first + count - widest), first)
            count = torch.where(clipped, widest, count)
        for part in _batches(count, narrow, len(kinds), context.halo):
            blocks.append(
                context.local_block(emulator, name, lines[part], columns[part], kinds, first[part], count[part])
            )
        wide = (~narrow & (count > 0)).nonzero().squeeze(-1)
        for index in wide.split(16) if wide.numel() else ():
            everywhere = torch.zeros_like(first[index]), torch.full_like(first[index], len(model.sampling))
            tangents = context.line_tangents(emulator, name, lines[index], kinds, *everywhere, len(model.sampling))
            tangents = context.through_star(tangents) if name == "star" else context.through_sky(tangents)
            dense.append(context.to_pixels(tangents).reshape(-1, stages.flux.numel()))
            dense_columns.append(columns[index].reshape(-1))
    for name, columns in free.global_slices.items():
        dense.append(context.global_tangents(name))
        dense_columns.append(torch.arange(columns.start, columns.stop))
    n_row = stages.flux.numel()
    device = stages.flux.device
    return Jacobian(
        stages.flux,
        blocks,
        torch.cat(dense).T if dense else stages.flux.new_zeros(n_row, 0),
        torch.cat(dense_columns).to(device) if dense_columns else torch.zeros(0, dtype=torch.long, device=device),
    )


def _batches(count: Tensor, narrow: Tensor, n_kind: int, halo: int):
    """Lines of like window size together, so that padding costs little."""
    order = torch.argsort(torch.where(narrow, count, 0))
    order = order[narrow[order]]
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


class _Context:
    """One evaluation's intermediate spectra, and how a small change at each stage reaches the pixels."""

    def __init__(self, model: ForwardModel, stages: Stages):
        self.model, self.stages = model, stages
        self.nodes = model.sampling.wavelength
        self.n_node = self.nodes.numel()
        self.slope, self.factor = {}, {}
        for name, emulator in model.components.items():
            opacity = stages.star_opacity if name == "star" else stages.sky_opacity
            self.factor[name] = model.doppler_factor(name)
            self.slope[name] = emulator.flux(opacity, self.nodes / self.factor[name])[1]
        self.rotation = (
            None if model.rotation is None else model.rotation.taps(model.rotation.vsini, model.rotation.limb_darkening)
        )
        self.spread = (
            None if model.line_spread is None else model.line_spread.taps(model.line_spread.ln_resolving_power)
        )
        self.continuum = None if model.continuum is None else model.continuum.value()
        self.halo = sum(taps.shape[-1] // 2 for taps in (self.rotation, self.spread) if taps is not None)

    def line_windows(self, emulator: LineEmulator, name: str, lines: Tensor, cut: Cut) -> tuple[Tensor, Tensor]:
        """First node and number of nodes over which each line steers."""
        factor = float(self.factor[name])
        sigma, gamma = emulator.sigma[lines].double(), emulator.gamma[lines].double()
        area = emulator.area[lines].double()
        fwhm = voigt_fwhm(sigma, gamma)
        threshold = (cut.fraction * area / fwhm).clamp(max=cut.opacity)
        radius = torch.maximum((area * gamma / (math.pi * threshold)).sqrt(), 1.5 * fwhm)
        radius = torch.maximum(radius, sigma * (2.0 * (area / (2.5 * sigma * threshold)).clamp(min=1.0).log()).sqrt())
        center = emulator.shifted_center[lines]
        low = torch.searchsorted(self.nodes, (center - radius) * factor)
        high = torch.searchsorted(self.nodes, (center + radius) * factor)
        return low, high - low

    def middle_nodes(self, emulator: LineEmulator, name: str, lines: Tensor) -> Tensor:
        """Node at the centre of each line."""
        return torch.searchsorted(self.nodes, emulator.shifted_center[lines] * float(self.factor[name]))

    def core_nodes(self, emulator: LineEmulator, lines: Tensor) -> Tensor:
        """Full width at half maximum of each line, in nodes."""
        fwhm = voigt_fwhm(emulator.sigma[lines].double(), emulator.gamma[lines].double())
        return fwhm / emulator.center[lines] / self.model.sampling.step

    def line_tangents(self, emulator, name, lines, kinds, first, count, width) -> Tensor:
        """Change of one component's flux on the nodes `first … first + width`, (n_line, n_kind, width)."""
        offset = torch.arange(width, device=first.device)
        node = (first.unsqueeze(1) + offset).clamp(max=self.n_node - 1)
        inside = offset < count.unsqueeze(1)
        center = emulator.shifted_center[lines].unsqueeze(1)
        area, sigma, gamma = (t[lines].unsqueeze(1) for t in (emulator.area, emulator.sigma, emulator.gamma))
        x = (self.nodes[node] / self.factor[name] - center).to(area.dtype)
        value, d_x, d_sigma, d_gamma = voigt_with_derivatives(x, sigma, gamma)
        y = area * value
        slope = emulator.law.opacity(y)[1]
        flux_slope = self.slope[name][0][node]
        if emulator.has_emission:
            emitting = (emulator.sign[lines] < 0).unsqueeze(1)
            slope = torch.where(emitting, torch.ones_like(slope), slope)
            flux_slope = torch.where(emitting, self.slope[name][1][node], flux_slope)
        slope = slope * flux_slope * inside
        makers = {
            "ln_area": lambda: y,
            "ln_sigma": lambda: area * sigma * d_sigma,
            "ln_gamma": lambda: area * gamma * d_gamma,
            "rv_offset": lambda: -area * d_x * (emulator.center[lines].unsqueeze(1) / SPEED_OF_LIGHT).to(area.dtype),
        }
        return torch.stack([slope * makers[kind]() for kind in kinds], dim=1)

    def local_block(self, emulator, name, lines, columns, kinds, first, count) -> LocalBlock:
        width = int(count.max())
        tangents = self.line_tangents(emulator, name, lines, kinds, first, count, width)
        begin = first - self.halo  # node of the first value after padding; may lie before the grid
        if self.halo:
            tangents = torch.nn.functional.pad(tangents, (self.halo, self.halo))
            width += 2 * self.halo
        node = (begin.unsqueeze(1) + torch.arange(width, device=begin.device)).clamp(0, self.n_node - 1)
        if name == "star":
            tangents = self.through_star(tangents, node)
        else:
            tangents = self.through_sky(tangents, node)
        if self.spread is not None:
            tangents = _convolve_at(tangents, self.spread, node)
        if self.model.pixels is None:
            start, values = begin, tangents
        else:
            start, values = self._bin_windows(tangents, begin, width)
        # Rows before the first or after the last pixel: shift them inside and zero what is not there.
        row = start.unsqueeze(1) + torch.arange(values.shape[-1], device=start.device)
        n_row = self.stages.flux.numel()
        values = values * ((row >= 0) & (row < n_row)).unsqueeze(1)
        if self.continuum is not None:
            values = values * self.continuum[row.clamp(0, n_row - 1)].unsqueeze(1).to(values.dtype)
        return LocalBlock(columns, start, values)

    def _bin_windows(self, tangents: Tensor, begin: Tensor, width: int) -> tuple[Tensor, Tensor]:
        pixels = self.model.pixels
        n_tap = pixels.weight.shape[1]
        first = torch.searchsorted(pixels.start, begin - n_tap, right=True)
        last = torch.searchsorted(pixels.start, begin + width)
        n_pixel = max(1, int((last - first).max()))
        pixel = first.unsqueeze(1) + torch.arange(n_pixel, device=begin.device)
        there = (pixel < last.unsqueeze(1)).unsqueeze(-1)
        pixel = pixel.clamp(max=pixels.start.numel() - 1)
        position = pixels.start[pixel].unsqueeze(-1) + torch.arange(n_tap, device=begin.device) - begin.view(-1, 1, 1)
        weight = pixels.weight[pixel] * (there & (position >= 0) & (position < width))
        position = position.clamp(0, width - 1).reshape(position.shape[0], 1, -1)
        gathered = torch.gather(tangents, 2, position.expand(-1, tangents.shape[1], -1))
        gathered = gathered.reshape(*tangents.shape[:2], n_pixel, n_tap)
        return first, (gathered * weight.to(gathered.dtype).unsqueeze(1)).sum(-1)

    def through_star(self, tangents: Tensor, node: Tensor | None = None) -> Tensor:
        """Star's change on the nodes → rotated and multiplied by the sky."""
        if self.rotation is not None:
            tangents = (
                convolve(tangents, self.rotation) if node is None else _convolve_at(tangents, self.rotation, node)
            )
        return self._times(tangents, self.stages.sky, node)

    def through_sky(self, tangents: Tensor, node: Tensor | None = None) -> Tensor:
        return self._times(tangents, self.stages.rotated, node)

    @staticmethod
    def _times(tangents: Tensor, other: Tensor | None, node: Tensor | None) -> Tensor:
        if other is None:
            return tangents
        return tangents * (other if node is None else other[node].unsqueeze(1))

    def to_pixels(self, tangents: Tensor) -> Tensor:
        """Change of the product on all nodes → change of the flux on all pixels."""
        if self.spread is not None:
            tangents = convolve(tangents, self.spread)
        return self._from_smeared(tangents)

    def _from_smeared(self, tangents: Tensor) -> Tensor:
        if self.model.pixels is not None:
            tangents = self.model.pixels(tangents)
        return tangents if self.continuum is None else tangents * self.continuum.to(tangents.dtype)

    def global_tangents(self, name: str) -> Tensor:
        """Derivatives of the flux to a global parameter, (n_parameter, n_pixel)."""
        model, stages = self.model, self.stages
        if name == "rv":
            return self.to_pixels(self.through_star(self._shift_tangent().unsqueeze(0)))
        if name in ("vsini", "limb_darkening"):
            taps = model.rotation.tap_derivatives(slice(0, 1) if name == "vsini" else slice(1, None))
            if name == "vsini":
                taps = taps / (2.0 * model.rotation.vsini.detach())
            change = torch.stack([convolve(stages.star, tap) for tap in taps])
            return self.to_pixels(self._times(change, stages.sky, None))
        if name == "resolving_power":
            taps = model.line_spread.tap_derivatives()
            return self._from_smeared(torch.stack([convolve(stages.product, tap) for tap in taps]))
        if name == "continuum":
            return stages.binned * model.continuum.basis.to(stages.binned.dtype)
        component = name.removesuffix("_law")
        emulator = model.components[component]
        opacity = stages.star_opacity if component == "star" else stages.sky_opacity
        change = emulator.law.parameter_derivatives(opacity[0], self.nodes / self.factor[component])
        if emulator.has_emission:
            change = change * (1.0 + opacity[1])
        through = self.through_star if component == "star" else self.through_sky
        return self.to_pixels(through(change))

    def _shift_tangent(self) -> Tensor:
        """∂S/∂v on the nodes: by spectral differences, S being resolved on a uniform-velocity grid.

        ln λ_rest = ln λ - ln(1 + v/c), so ∂S/∂v = -(∂S/∂ln λ) / (c + v). The eighth-order difference is exact to 1e-4
        of the slope for a feature three nodes wide, and 1e-7 for one of six.
        """
        star, step = self.stages.star, self.model.sampling.step
        stencil = star.new_tensor([-1 / 280, 4 / 105, -1 / 5, 4 / 5, 0.0, -4 / 5, 1 / 5, -4 / 105, 1 / 280])
        slope = convolve(star, stencil) / step
        return -slope / (SPEED_OF_LIGHT * self.factor["star"]).to(star.dtype)


def _convolve_at(windows: Tensor, taps: Tensor, node: Tensor) -> Tensor:
    """Convolve (n_line, n_kind, width) windows that are zero outside, with taps that may differ from node to node."""
    n_half = taps.shape[-1] // 2
    padded = torch.nn.functional.pad(windows, (n_half, n_half))
    if taps.ndim == 1:
        rows = correlate(padded.reshape(-1, padded.shape[-1]), taps.to(windows.dtype).flip(0))
        return rows.reshape(windows.shape)
    padded = padded.unfold(-1, taps.shape[-1], 1)
    return torch.einsum("bpnt,bnt->bpn", padded, taps.to(windows.dtype).flip(-1)[node])
