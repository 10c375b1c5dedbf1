r"""A star's clone brought to the strength of the observed lines: one factor on the areas of them all.

A template of another star has lines that are all too strong, or all too weak. Held at its strength, lines that are too
strong prefer rotation, which makes them shallow: the factor is found together with the velocities, before any line is
free. Does not live here: that fit (`starting`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ...model.component import product
from ...model.order import ForwardModel, Stages

STRENGTH_PRIOR = 1.0
"""Standard deviation of ln(strength)."""

LARGEST_STRENGTH = 30.0
"""Up or down."""

LONGEST = 0.7
"""Largest change of ln(strength) at once."""


@dataclass(frozen=True)
class StarScale:
    """Strength of a star's lines against its clone.

    Parameters
    ----------
    strength : float
        Factor on the area of every line.
    strength_error : float
        1-sigma error of it, multiplied by the square root of the reduced χ² where that exceeds 1.
    """

    strength: float
    strength_error: float


@torch.no_grad()
def scale_star(model, ln_strength: float) -> None:
    """Multiply the areas of a model's target by exp(`ln_strength`), but those of lines that are fixed."""
    model.target.emulator.change_together(ln_area=ln_strength)


def limited(ln_strength: float, change: float) -> float:
    """ln(strength) after a step of limited length, within its limits."""
    most = math.log(LARGEST_STRENGTH)
    return min(max(ln_strength + min(max(change, -LONGEST), LONGEST), -most), most)


def strength_tangent(order: ForwardModel, stages: Stages) -> Tensor:
    """Derivative of an order's flux to ln(strength), (n_pixel,)."""
    star = order.target
    spectra, beside = stages.parts[star.name], product(order.parts, stages.parts, but=star.name)
    slope = star.emulator.flux(spectra.opacity, order.sampling.wavelength / star.doppler_factor)[1]
    change = (slope * spectra.opacity).sum(0)
    if star.rotation is not None:
        change = star.rotation(change)
    binned = order.through_instrument(change if beside is None else change * beside)
    return binned if order.continuum is None else order.continuum(binned)
