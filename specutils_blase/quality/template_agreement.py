r"""Agreement of a star's template with the data of a fit, with the lines held as in the template.

Thousands of free lines follow any data. The template does not: its lines at the fitted velocities give the strength of
the star in the data, and show whether it is at another velocity. For every order, P is the projection off the continuum
and W the weights. y is the data less the model without its star, f the template's contribution to that model. Then

.. math:: α = \frac{f^T P W y}{f^T P W f}, \quad C^2 = \frac{(f^T P W y)^2}{f^T P W f \; y^T P W y},

with the strength α of the template in the data, and their correlation C, also at other velocities.

Does not live here: limits of the agreement (`assessment`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.echelle import EchelleModel
from ..model.order import ForwardModel
from ..physics.grids import SPEED_OF_LIGHT

SEARCH_KMS = 1000.0
"""Velocities on either side of the fitted one over which the template is compared with the data."""

LEAST_OVERLAP = 0.4
"""Part of the pixels that a shifted template must cover: on fewer, anything agrees."""

MOST_SHIFTS = 801
"""Number of velocities: over ±1,000 km/s one every 2.5 km/s."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of template and data over all orders together.

    Parameters
    ----------
    strength, strength_error : float
        α and its error: 1 where the data have the template's lines, 0 where they have none of them, negative where they
        have them in emission.
    correlation : float
        C at the fitted velocity, corrected for the noise of y, with the sign of α; at most 1.
    elsewhere : float
        Shift [km/s] from the fitted velocity at which the template agrees best.
    gain : float
        Gain of ln L there over the fitted velocity, with L of Zucker (2003); 0 where there is none.
    structure : float
        RMS of the fitted star's contribution to the model, in units of the continuum.
    misfit : float
        RMS of the residual beyond the noise of the data, in units of `structure`.
    smearing : float
        RMS of the rotating template's structure over that of one at rest.
    """

    strength: float
    strength_error: float
    correlation: float
    elsewhere: float
    gain: float
    structure: float
    misfit: float
    smearing: float


@dataclass(frozen=True)
class ObservedPixels:
    """Pixels of one order, (n,) each: data, 1-sigma noise, and the final weights of the fit."""

    flux: Tensor
    sigma: Tensor
    weight: Tensor


def observed_pixels(data, curvature) -> list[ObservedPixels]:
    """The pixels of each order of a fit.

    Parameters
    ----------
    data : sequence of SpectralData
    curvature : Curvature or None
        With the final weights of the fit; without it the weights follow from the noise of the data.

    Returns
    -------
    list of ObservedPixels
    """
    pixels = []
    for k, order_data in enumerate(data):
        data_weight = torch.where(order_data.good, order_data.sigma.double() ** -2, 0.0)
        weight = data_weight if curvature is None else curvature.weight[k]
        # Without noise in the data, the weights are scaled to the scatter of the residuals.
        sigma = order_data.sigma.double() if order_data.noise_known else torch.where(weight > 0, weight, 1.0).rsqrt()
        pixels.append(ObservedPixels(torch.where(weight > 0, order_data.flux.double(), 0.0), sigma, weight))
    return pixels


@torch.no_grad()
def template_agreement(
    model: ForwardModel | EchelleModel, pixels: Sequence[ObservedPixels], template_lines: Tensor | None
) -> Agreement | None:
    """Compare the template with the data.

    Parameters
    ----------
    model : ForwardModel or EchelleModel
        As fitted; unchanged afterwards.
    pixels : sequence of ObservedPixels
        Of each order.
    template_lines : Tensor, (n_line, 4), optional
        Parameters of the star's lines in the template, as `LineEmulator.line_parameters`; by default as fitted.

    Returns
    -------
    Agreement or None
        None for a model without a star, or data without weight.
    """
    if model.star is None:
        return None
    fitted = [_star_part(order) for order in model.orders]
    template = fitted
    if template_lines is not None:
        before = model.star.line_parameters().detach().clone()
        try:
            model.star.set_line_parameters(template_lines.to(before))
            template = [_star_part(order) for order in model.orders]
        finally:
            model.star.set_line_parameters(before)
    power, still = (sum(float(_structure(part[k]).square().sum()) for part in template) for k in (1, 2))
    smearing = math.sqrt(power / still) if still > 0.0 else math.nan
    return _compare(model, pixels, [part[:2] for part in fitted], [part[1] for part in template], smearing)


def _star_part(order: ForwardModel) -> tuple[Tensor, Tensor, Tensor]:
    """Model of an order without its star, and the star's contribution, rotating and at rest; continuum 1."""
    stages = order.stages()
    telluric = torch.ones_like(stages.product) if stages.sky is None else stages.sky
    without = order.through_instrument(telluric)
    still = order.through_instrument(telluric * stages.star)
    return without, stages.binned - without, still - without


def _structure(values: Tensor) -> Tensor:
    return values - values.mean()


def _compare(model, pixels, fitted, template, smearing) -> Agreement | None:
    overlap = power = total = 0.0  # f·y, f·f, y·y of the template
    left = noise = star_power = count = weights = 0.0
    profiles, shifts = [], _shifts(model)
    for order, order_pixels, (without, star), held in zip(model.orders, pixels, fitted, template, strict=True):
        weight = order_pixels.weight.double()
        if not bool((weight > 0).any()):
            continue
        level, basis = _continuum(order, len(weight))
        # Changes of the model by the continuum.
        design = (basis * (without + star)).T.double()
        project = _Projection(design, weight)
        seen, added = order_pixels.flux.double() - level * without, level * held
        f, y = project(added), project(seen)
        overlap, power, total = overlap + float(f @ y), power + float(f @ f), total + float(y @ y)
        expected = float((weight * order_pixels.sigma.double().square()).sum())
        residual = weight * (seen - level * star).square()
        left += max(float(residual.sum()) - expected, 0.0)
        noise += expected
        star_signal = project(level * star)
        star_power += float(star_signal.square().sum())
        count += float((weight * (level * star - (level * star).mean()).square()).sum())
        weights += float((weight * level.square()).sum())
        profiles.append(_log_likelihoods(order, design, weight, seen, added, shifts))
    if not profiles or not power > 0.0:
        return None
    scores = torch.stack(profiles).sum(0)
    nearby = shifts.abs() <= _nearby(model)
    best = int(scores.argmax())
    gain = float(scores[best] - scores[nearby].max())
    # The error follows from the scatter of the data.
    freedom = max(sum(int((order_pixels.weight > 0).sum()) for order_pixels in pixels) - len(profiles), 1)
    scatter = max(total - overlap**2 / power, 0.0) / freedom
    return Agreement(
        strength=overlap / power,
        strength_error=math.sqrt(max(scatter, 1e-300) / power),
        correlation=max(-1.0, min(1.0, overlap / math.sqrt(power * max(total - noise, 1e-12 * total, 1e-300)))),
        elsewhere=float(shifts[best]) if gain > 0.0 else 0.0,
        gain=max(gain, 0.0),
        structure=math.sqrt(count / weights) if weights > 0 else math.nan,
        misfit=math.sqrt(left / star_power) if star_power > 0 else math.inf,
        smearing=smearing,
    )


def _continuum(order: ForwardModel, n_pixel: int) -> tuple[Tensor, Tensor]:
    """The continuum of an order, and its polynomials."""
    if order.continuum is None:
        ones = torch.ones(n_pixel, dtype=torch.float64)
        return ones, ones.unsqueeze(0)
    return order.continuum.value().double(), order.continuum.basis.double()


class _Projection:
    """Weighted values projected off the columns of a design."""

    def __init__(self, design: Tensor, weight: Tensor):
        self.root = weight.sqrt()
        self.columns = torch.linalg.qr(design * self.root.unsqueeze(1)).Q

    def __call__(self, values: Tensor) -> Tensor:
        values = values * self.root
        return values - self.columns @ (self.columns.T @ values)


def _shifts(model) -> Tensor:
    """Velocities [km/s] from the fitted one, (n,)."""
    return torch.linspace(-SEARCH_KMS, SEARCH_KMS, MOST_SHIFTS, dtype=torch.float64, device=model.star.center.device)


def _nearby(model) -> float:
    """Distance [km/s] of the fitted velocity within which the template still agrees, by its broadening."""
    spreads = [order.line_spread for order in model.orders if order.line_spread is not None]
    resolution = max(
        (SPEED_OF_LIGHT / math.exp(spread.ln_resolving_power[0].item()) for spread in spreads), default=5.0
    )
    turning = 0.0 if model.rotation is None else model.rotation.vsini.item()
    return 2.0 * (resolution + turning) + 2.0 * SEARCH_KMS / (MOST_SHIFTS - 1)


def _log_likelihoods(order, design: Tensor, weight: Tensor, seen: Tensor, added: Tensor, shifts: Tensor) -> Tensor:
    """Zucker's ln L of an order at shifts of the template's contribution, (n_shift,); 0 where they do not correlate."""
    ln_wavelength = order.pixels.edges.mean(1).double().log()
    scores = []
    products = (design.unsqueeze(2) * design.unsqueeze(1)).flatten(1)
    enough = LEAST_OVERLAP * int((weight > 0).sum())
    for part in shifts.split(128):
        rest_position = ln_wavelength - torch.log1p(part.unsqueeze(1) / SPEED_OF_LIGHT)
        inside = (rest_position >= ln_wavelength[0]) & (rest_position <= ln_wavelength[-1])
        moved = torch.where(inside, _interpolated(rest_position, ln_wavelength, added), 0.0)
        w = weight * inside
        gram = (w @ products).view(-1, design.shape[1], design.shape[1])
        ridge = 1e-12 * gram.diagonal(dim1=1, dim2=2).mean(1).view(-1, 1, 1).clamp(min=1e-300)
        gram = gram + ridge * torch.eye(design.shape[1], dtype=gram.dtype, device=gram.device)
        data, line = (w * seen) @ design, (w * moved) @ design
        solved = torch.linalg.solve(gram, torch.stack([data, line], dim=2))
        cross = (w * seen * moved).sum(1) - (line * solved[:, :, 0]).sum(1)
        power = (w * moved.square()).sum(1) - (line * solved[:, :, 1]).sum(1)
        total = (w * seen.square()).sum(1) - (data * solved[:, :, 0]).sum(1)
        square = cross.clamp(min=0.0).square() / (power * total).clamp(min=1e-300)
        n_pixel = (w > 0).sum(1)
        score = -0.5 * n_pixel * torch.log1p(-square.clamp(max=1.0 - 1e-12))
        scores.append(torch.where(n_pixel >= enough, score, 0.0))
    return torch.cat(scores)


def _interpolated(position: Tensor, x: Tensor, values: Tensor) -> Tensor:
    """Linear interpolation, (n_shift, n)."""
    high = torch.searchsorted(x, position).clamp(1, len(x) - 1)
    fraction = ((position - x[high - 1]) / (x[high] - x[high - 1])).clamp(0.0, 1.0)
    return values[high - 1] + fraction * (values[high] - values[high - 1])
