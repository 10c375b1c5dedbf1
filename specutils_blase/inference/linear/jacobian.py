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
    """Derivative of the flux of one order to ln R at its middle, and what of it comes by the star's lines, (n_pixel,).

    The latter, for a model of star and sky, is what the star alone changes by, dimmed by the sky as the instrument sees
    it: exact where the sky is smooth.
    """
    stages = model.stages()
    context, taps = _Context(model, stages), model.line_spread.tap_derivatives()[0]
    whole = context._from_smeared(convolve(stages.product, taps))
    if model.star is None or model.telluric is None:
        return (whole,)
    return whole, context._from_smeared(convolve(stages.rotated, taps)) * model.observed("telluric")


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
    context = _Context(model, stages)
    values = [context.local_values(batch, free.kinds[batch.component], layout.halo) for batch in layout.batches]
    dense, columns = [stages.flux.new_zeros(0, stages.flux.numel())], [place[:0]]
    for name, lines, own in layout.everywhere:
        first, n_node = torch.zeros_like(lines), len(model.sampling)
        tangents = context.line_tangents(name, lines, free.kinds[name], first, first + n_node, n_node)
        tangents = context.through_star(tangents) if name == "star" else context.through_sky(tangents)
        dense.append(context.to_pixels(tangents).reshape(-1, stages.flux.numel()))
        columns.append(own.reshape(-1))
    for name, chosen in free.global_slices.items():
        dense.append(context.global_tangents(name))
        columns.append(torch.arange(chosen.start, chosen.stop, device=place.device))
    return _Part(stages.flux, values, torch.cat(dense).T, place[torch.cat(columns)])


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
        if batch.component == "star":
            tangents = self.through_star(tangents, node)
        else:
            tangents = self.through_sky(tangents, node)
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
        is_star = batch.component == "star"
        rotation = self.rotation if is_star and self.rotation is not None else torch.ones(1, dtype=torch.float64)
        other = self.stages.sky if is_star else self.stages.rotated
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
