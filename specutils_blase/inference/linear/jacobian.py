"""Analytic derivatives of a `ForwardModel`, in the shape that the structured solver wants.

Each line touches only the pixels around it, so its derivatives are computed on a window: profile derivative → slope of
the saturation law → the other component → kernels → pixels, all as batched tensor operations. Parameters that touch
everything (radial velocity, rotation, resolving power, continuum, the law's own) and lines too broad for a window give
dense columns.

Does not live here: the windows (`jacobian_windows`), the model (`model`), the normal equations (`normal_equations`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...model.component import product
from ...model.order import ForwardModel, Stages
from ...model.parameters import KINDS, FreeParameters, OrderParameters
from ...physics.compiled import as_array, kernels
from ...physics.grids import SPEED_OF_LIGHT
from ...physics.kernels import convolve, correlate
from ...physics.parallel import each
from ...physics.voigt import voigt_with_derivatives
from .blocks import Structure
from .windows import Cut, Layout, LineBatch, OrderLayout


@dataclass(frozen=True)
class LocalBlock:
    """Derivatives of a batch of lines: `values[b, p, w]` belongs to parameter `columns[b, p]`, pixel `start[b] + w`.

    Pixel i of the order is row `rows[i]` of the problem, or row i where there is one order only.
    """

    columns: Tensor
    start: Tensor
    values: Tensor
    rows: Tensor | None = None


@dataclass(frozen=True)
class Jacobian:
    """Model flux, local blocks, and dense columns `dense[:, k]` of parameters `dense_columns[k]`.

    `structure` says which parameters of the blocks meet; None if there are no blocks.
    """

    flux: Tensor
    blocks: list[LocalBlock]
    dense: Tensor
    dense_columns: Tensor
    structure: Structure | None

    def all_dense(self, n_parameter: int) -> Jacobian:
        """The same without blocks: all columns dense, for noise that ties pixels to each other."""
        n_row = self.flux.numel()
        dense = self.dense.new_zeros(n_row + 1, n_parameter)
        dense[:-1, self.dense_columns] = self.dense
        for block in self.blocks:
            pixel = block.start.unsqueeze(1) + torch.arange(block.values.shape[-1], device=dense.device)
            n_pixel = n_row if block.rows is None else block.rows.numel()
            inside = (pixel >= 0) & (pixel < n_pixel)
            row = pixel.clamp(0, n_pixel - 1)
            row = torch.where(inside, row if block.rows is None else block.rows[row], n_row)
            dense[row.unsqueeze(1), block.columns.unsqueeze(2)] += block.values
        columns = torch.arange(n_parameter, device=dense.device)
        return Jacobian(self.flux, [], dense[:-1], columns, None)


@torch.no_grad()
def linearize(
    free: FreeParameters, stages: list[Stages] | None = None, cut: Cut | None = None, layout: Layout | None = None
) -> Jacobian:
    """Flux of the model and its derivatives to all free parameters.

    Parameters
    ----------
    free : FreeParameters
    stages : list of Stages, optional
        Those of the present state, one an order, if known.
    cut : Cut, optional
        How far out lines are followed; as for steps if not given.
    layout : Layout, optional
        The windows; laid out for the present state if not given.
    """
    layout = Layout(free, cut) if layout is None else layout
    stages = [None] * len(layout.parts) if stages is None else stages
    work = zip(layout.parts, stages, layout.orders, strict=True)
    parts = each(lambda item: _linearize_order(*item, layout.place), work)
    flux = free.merge([part.flux for part in parts])
    dense = flux.new_zeros(flux.numel() + 1, layout.dense_columns.numel())  # one row for pixels that are not there
    blocks: list[LocalBlock] = []
    for part, order, rows in zip(parts, layout.orders, layout.rows, strict=True):
        n_pixel = part.flux.numel()
        own = torch.arange(n_pixel, device=flux.device) if rows is None else rows
        dense[own.unsqueeze(1), part.places] = part.dense
        for batch, values in zip(order.batches, part.values, strict=True):
            if batch.dense:
                pixel = batch.pixel.unsqueeze(1) + torch.arange(batch.n_pixel, device=own.device)
                inside = (pixel >= 0) & (pixel < n_pixel)
                row = torch.where(inside, own[pixel.clamp(0, n_pixel - 1)], flux.numel())
                dense[row.unsqueeze(1), layout.place[batch.columns].unsqueeze(2)] = values
            else:
                blocks.append(LocalBlock(batch.columns, batch.pixel, values, rows))
    return Jacobian(flux, blocks, dense[:-1], layout.dense_columns, layout.structure)


@torch.no_grad()
def line_spread_tangents(model: ForwardModel) -> tuple[Tensor, ...]:
    """Derivative of the flux of one order to ln R at its middle, and what of it comes by lines that rotate, (n_pixel,).

    The latter, for a model that has others as well, is what those that rotate change by alone, dimmed by the others as
    the instrument sees them: exact where the others are smooth.
    """
    stages = model.stages()
    spectra, taps = Propagation(model, stages), model.line_spread.tap_derivatives()[0]
    whole = spectra.from_smeared(convolve(stages.product, taps))
    rotating = {name: part for name, part in model.parts.items() if part.rotation is not None}
    others = {name: part for name, part in model.parts.items() if part.rotation is None}
    if not rotating or not others:
        return (whole,)
    beside = model.through_instrument(product(others, stages.parts))
    return whole, spectra.from_smeared(convolve(product(rotating, stages.parts), taps)) * beside


@dataclass(frozen=True)
class _Part:
    """One order's derivatives: values of its batches, and dense columns with their places among all dense ones."""

    flux: Tensor
    values: list[Tensor]
    dense: Tensor
    places: Tensor


def _linearize_order(
    free: FreeParameters | OrderParameters, stages: Stages | None, layout: OrderLayout, place: Tensor
) -> _Part:
    model = free.model
    stages = model.stages() if stages is None else stages
    context = Propagation(model, stages)
    values = [context.local_values(batch, free.kinds[batch.component], layout.halo) for batch in layout.batches]
    dense, columns = [stages.flux.new_zeros(0, stages.flux.numel())], [place[:0]]
    for name, lines, own in layout.everywhere:
        first, n_node = torch.zeros_like(lines), len(model.sampling)
        tangents = context.line_tangents(name, lines, free.kinds[name], first, first + n_node, n_node)
        tangents = context.through(name, tangents)
        dense.append(context.to_pixels(tangents).reshape(-1, stages.flux.numel()))
        columns.append(own.reshape(-1))
    owned = model.global_parameters() if free.global_slices else {}
    for name, chosen in free.global_slices.items():
        parameter, stage = owned[name]
        dense.append(stage.flux_tangents(parameter, context))
        columns.append(torch.arange(chosen.start, chosen.stop, device=place.device))
    return _Part(stages.flux, values, torch.cat(dense).T, place[torch.cat(columns)])


class Propagation:
    """One evaluation's intermediate spectra, and how a small change at each stage reaches the pixels."""

    def __init__(self, model: ForwardModel, stages: Stages):
        self.model, self.stages = model, stages
        self.nodes = model.sampling.wavelength
        self.n_node = self.nodes.numel()
        self.slope, self.factor = {}, {}
        self.rotation, self.beside = {}, {}
        for name, part in model.parts.items():
            gain, beside = part.gain(stages.parts[name]), product(model.parts, stages.parts, but=name)
            self.beside[name] = beside if gain is None else gain if beside is None else gain * beside
            turning = part.rotation
            self.rotation[name] = None if turning is None else turning.taps(turning.vsini, turning.limb_darkening)
        for name, emulator in model.components.items():
            self.factor[name] = model.doppler_factor(name)
            self.slope[name] = emulator.flux(stages.parts[name].opacity, self.nodes / self.factor[name])[1]
        self.spread = None if model.line_spread is None else model.line_spread.current_taps()
        self.continuum = None if model.continuum is None else model.continuum.value()

    def line_tangents(self, name, lines, kinds, first, count, width, halo=0) -> Tensor:
        """Change of a component's flux on the nodes `first … first + width`, zero beyond, (n_line, n_kind, n_node)."""
        emulator, code = self.model.components[name], kernels(first.device)
        bright = emulator.sign[lines] < 0 if emulator.has_emission else None
        per_velocity = emulator.center[lines] / SPEED_OF_LIGHT
        if code is None:
            tangents = self._tangents(name, lines, kinds, first, count, width, bright, per_velocity)
            return torch.nn.functional.pad(tangents, (halo, halo)) if halo else tangents
        shape = lines.numel(), len(kinds), width + 2 * halo
        tangents = torch.zeros(shape, dtype=torch.float64)
        identity = emulator.law.is_identity
        depth = torch.zeros(*((0, 0) if identity else (lines.numel(), width)), dtype=torch.float64)
        row = torch.zeros_like(lines) if bright is None else bright.long()
        widths = (t[lines] for t in (emulator.shifted_center, emulator.area, emulator.sigma, emulator.gamma))
        chosen = torch.tensor([KINDS.index(kind) for kind in kinds])
        before = (self.nodes / self.factor[name], first, count, *widths, per_velocity, self.slope[name], row, chosen)
        code.tangents_of_windows(*(as_array(t) for t in before), halo, as_array(depth), as_array(tangents))
        tangents = tangents.to(emulator.ln_area.dtype)
        if not identity:
            slope = emulator.law.opacity(depth.to(tangents.dtype))[1]
            if bright is not None:
                slope = torch.where(bright.unsqueeze(1), 1.0, slope)
            tangents[..., halo : halo + width] *= slope.unsqueeze(1)
        return tangents

    def _tangents(self, name, lines, kinds, first, count, width, bright, per_velocity) -> Tensor:
        """The same by torch, on every device."""
        emulator = self.model.components[name]
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
        if bright is not None:
            emitting = bright.unsqueeze(1)
            slope = torch.where(emitting, torch.ones_like(slope), slope)
            flux_slope = torch.where(emitting, self.slope[name][1][node], flux_slope)
        slope = slope * flux_slope * inside
        makers = {
            "ln_area": lambda: y,
            "ln_sigma": lambda: area * sigma * d_sigma,
            "ln_gamma": lambda: area * gamma * d_gamma,
            "rv_offset": lambda: -area * d_x * per_velocity.unsqueeze(1).to(area.dtype),
        }
        return torch.stack([slope * makers[kind]() for kind in kinds], dim=1)

    def local_values(self, batch: LineBatch, kinds: tuple[str, ...], halo: int) -> Tensor:
        """Derivatives of a batch of lines on their pixels, (n_line, n_kind, n_pixel)."""
        tangents = self.line_tangents(batch.component, batch.lines, kinds, batch.first, batch.count, batch.width, halo)
        begin = batch.first - halo  # node of the first value; may lie before the grid
        if kernels(begin.device) is not None:
            return self._by_response(tangents, batch, begin, halo)
        node = begin.unsqueeze(1) + torch.arange(batch.width + 2 * halo, device=begin.device)
        node = node.clamp(0, self.n_node - 1)
        tangents = self.through(batch.component, tangents, node)
        if self.spread is not None:
            tangents = _convolve_at(tangents, self.spread, node)
        values = tangents if self.model.pixels is None else self._bin_windows(tangents, begin, batch)
        # Pixels before the first or after the last: zero what is not there.
        pixel = batch.pixel.unsqueeze(1) + torch.arange(batch.n_pixel, device=begin.device)
        n_row = self.stages.flux.numel()
        values = values * ((pixel >= 0) & (pixel < n_row)).unsqueeze(1)
        if self.continuum is not None:
            values = values * self.continuum[pixel.clamp(0, n_row - 1)].unsqueeze(1).to(values.dtype)
        return values

    def _by_response(self, tangents: Tensor, batch: LineBatch, begin: Tensor, halo: int) -> Tensor:
        """Changes of a component's flux on windows of nodes, as changes of pixels."""
        rotation, other = self.rotation[batch.component], self.beside[batch.component]
        rotation = torch.ones(1, dtype=torch.float64) if rotation is None else rotation
        other = torch.ones(self.n_node, dtype=torch.float64) if other is None else other
        values = torch.zeros(*tangents.shape[:2], batch.n_pixel, dtype=torch.float64)
        before = as_array(tangents), as_array(begin), as_array(batch.count), halo, as_array(rotation), as_array(other)
        after = (as_array(t) for t in (*self.response, batch.pixel, values))
        kernels(begin.device).windows_to_pixels(*before, *after)
        return values.to(tangents.dtype)

    @cached_property
    def response(self) -> tuple[Tensor, Tensor, Tensor]:
        """Line spread and pixels in one band: weights of nodes for each pixel, their first, and the continuum."""
        model, n_row = self.model, self.stages.flux.numel()
        start, weight = torch.arange(n_row), torch.ones(n_row, 1, dtype=torch.float64)
        if model.pixels is not None:
            start, weight = model.pixels.start, model.pixels.weight
        spread = torch.ones(1, dtype=torch.float64) if self.spread is None else self.spread.double()
        taps = spread.reshape(-1, spread.shape[-1])
        band = torch.zeros(n_row, weight.shape[1] + taps.shape[1] - 1, dtype=torch.float64)
        code = kernels(start.device)
        code.response_band(as_array(start), as_array(weight), as_array(taps), self.n_node, as_array(band))
        continuum = torch.ones(n_row, dtype=torch.float64) if self.continuum is None else self.continuum
        return band, start - taps.shape[1] // 2, continuum

    def _bin_windows(self, tangents: Tensor, begin: Tensor, batch: LineBatch) -> Tensor:
        pixels, width = self.model.pixels, tangents.shape[-1]
        n_tap = pixels.weight.shape[1]
        last = torch.searchsorted(pixels.start, begin + width)
        pixel = batch.pixel.unsqueeze(1) + torch.arange(batch.n_pixel, device=begin.device)
        there = (pixel < last.unsqueeze(1)).unsqueeze(-1)
        pixel = pixel.clamp(max=pixels.start.numel() - 1)
        position = pixels.start[pixel].unsqueeze(-1) + torch.arange(n_tap, device=begin.device) - begin.view(-1, 1, 1)
        weight = pixels.weight[pixel] * (there & (position >= 0) & (position < width))
        position = position.clamp(0, width - 1).reshape(position.shape[0], 1, -1)
        gathered = torch.gather(tangents, 2, position.expand(-1, tangents.shape[1], -1))
        gathered = gathered.reshape(*tangents.shape[:2], batch.n_pixel, n_tap)
        return (gathered * weight.to(gathered.dtype).unsqueeze(1)).sum(-1)

    def through(self, name: str, tangents: Tensor, node: Tensor | None = None) -> Tensor:
        """Change of a component's lines on the nodes → rotated, and multiplied by all else."""
        rotation = self.rotation[name]
        if rotation is not None:
            tangents = convolve(tangents, rotation) if node is None else _convolve_at(tangents, rotation, node)
        return self._times(name, tangents, node)

    def _times(self, name: str, tangents: Tensor, node: Tensor | None = None) -> Tensor:
        other = self.beside[name]
        if other is None:
            return tangents
        return tangents * (other if node is None else other[node].unsqueeze(1))

    def from_seen(self, name: str, change: Tensor) -> Tensor:
        """Change of a component as `ComponentSpectra.seen` has it, on all nodes → change of the flux on all pixels."""
        other = product(self.model.parts, self.stages.parts, but=name)
        return self.to_pixels(change if other is None else change * other)

    def to_pixels(self, tangents: Tensor) -> Tensor:
        """Change of the product on all nodes → change of the flux on all pixels."""
        if self.spread is not None:
            tangents = convolve(tangents, self.spread)
        return self.from_smeared(tangents)

    def from_smeared(self, tangents: Tensor) -> Tensor:
        """Change behind the line spread, on all nodes → change of the flux on all pixels."""
        if self.model.pixels is not None:
            tangents = self.model.pixels(tangents)
        return tangents if self.continuum is None else tangents * self.continuum.to(tangents.dtype)


def _convolve_at(windows: Tensor, taps: Tensor, node: Tensor) -> Tensor:
    """Convolve (n_line, n_kind, width) windows that are zero outside, with taps that may differ from node to node."""
    n_half = taps.shape[-1] // 2
    padded = torch.nn.functional.pad(windows, (n_half, n_half))
    if taps.ndim == 1:
        rows = correlate(padded.reshape(-1, padded.shape[-1]), taps.to(windows.dtype).flip(0))
        return rows.reshape(windows.shape)
    padded = padded.unfold(-1, taps.shape[-1], 1)
    return torch.einsum("bpnt,bnt->bpn", padded, taps.to(windows.dtype).flip(-1)[node])
