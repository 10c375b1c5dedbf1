"""Lines of a component that a fit holds: those that a ledger says so of, and those that the data cannot tell.

A held line is in the model as its template has it, and follows what its component has in common. Does not live here:
lines that do not reach the data (`components`), the fit (`fitting`).
"""

from __future__ import annotations

from collections.abc import Sequence

import astropy.units as u
import numpy as np
import torch
from astropy.table import Table
from torch import Tensor

from ..ledger.columns import KMS
from ..ledger.emulator import column_values, text_column
from ..model.emulator import LineEmulator
from ..physics.grids import SPEED_OF_LIGHT
from ..physics.voigt import voigt, voigt_fwhm
from .observation import ObservedOrder

MOST_LINES_PER_PIXEL = 0.6
"""Free lines per pixel beyond which data cannot tell them apart."""


def held_by_ledger(given, name: str, emulator: LineEmulator) -> Tensor:
    """Which lines of a component its ledger holds: rows whose `free` is False.

    Parameters
    ----------
    given : Table or anything else
        What the fit was given; other things than a table with the column `free` hold nothing.
    name : "star" or "telluric"
    emulator : LineEmulator
        Made of it.

    Returns
    -------
    Tensor of bool, (n_line,)
        In the order of the emulator's lines with their offsets moved into the centres.

    Raises
    ------
    ValueError
        If the column is not of truth values.
    """
    if not isinstance(given, Table) or "free" not in given.colnames:
        return torch.zeros(len(emulator), dtype=torch.bool)
    rows = given[text_column(given, "component") == name] if "component" in given.colnames else given
    column = rows["free"]
    free = np.asarray(column.filled(True) if hasattr(column, "filled") else column)
    if free.dtype.kind != "b":
        raise ValueError(f"expected True or False in the column free of the {name}'s ledger, got {free.dtype}")
    center = column_values(rows, "center", u.AA)
    offset = column_values(rows, "rv_offset", KMS) if "rv_offset" in rows.colnames else np.zeros_like(center)
    center = torch.as_tensor(center / (1.0 + np.where(np.isfinite(offset), offset, 0.0) / SPEED_OF_LIGHT))
    held = torch.as_tensor(~free)[torch.argsort(center)]
    return held[torch.argsort(emulator.shifted_center.detach())]


def told_by_data(
    components: dict[str, LineEmulator],
    lines: dict[str, Tensor],
    orders: Sequence[ObservedOrder],
    weights: Sequence[Tensor],
    velocities: dict[str, tuple[float, float]],
) -> dict[str, Tensor]:
    r"""The lines that data can tell apart: those of the largest expected signal, `MOST_LINES_PER_PIXEL` at most.

    .. math:: s = \frac{d\,w_\mathrm{line}}{w} \sqrt{\frac{w}{p}}\,\mathrm{S/N}, \qquad
        w^2 = w_\mathrm{line}^2 + (λ/R)^2 + (2 λ\,v \sin i / c)^2

    with d the depth of a line alone and w_line its full width, w what rotation and instrument make of it, p the pixel;
    orders that share a line add in quadrature.

    Parameters
    ----------
    components : dict
        Component to its lines.
    lines : dict
        Component to those that could be free.
    orders, weights : sequence
        The data, and inverse variances in units of each order's median flux.
    velocities : dict
        Component to its radial velocity and v sin i at the start, km/s.

    Returns
    -------
    dict
        Component to those that are free: all, where they are few enough.
    """
    n_pixel = sum(int((weight > 0).sum()) for weight in weights)
    limit = int(MOST_LINES_PER_PIXEL * n_pixel)
    if sum(index.numel() for index in lines.values()) <= limit:
        return lines
    signals = {
        name: _signal(components[name], orders, weights, *velocities[name])[index] for name, index in lines.items()
    }
    least = torch.cat(tuple(signals.values())).sort(descending=True).values[limit]
    return {name: index[signals[name] > least] for name, index in lines.items()}


def _signal(emulator: LineEmulator, orders, weights, rv: float, vsini: float) -> Tensor:
    with torch.no_grad():
        center = emulator.shifted_center.detach().double() * (1.0 + rv / SPEED_OF_LIGHT)
        area, sigma, gamma = (values.detach().double() for values in (emulator.area, emulator.sigma, emulator.gamma))
        own = voigt_fwhm(sigma, gamma)
        opacity = emulator.law.opacity(area * voigt(torch.zeros_like(area), sigma, gamma))[0]
        depth = 1.0 - emulator.law.flux(opacity, center)[0]
        total = torch.zeros_like(center)
        for order, weight in zip(orders, weights, strict=True):
            blur = (center / order.resolving_power) ** 2 + (2.0 * center * vsini / SPEED_OF_LIGHT) ** 2
            width = (own.square() + blur).sqrt()
            low, high = order.fitted_span
            pixel = (high - low) / max(int((weight > 0).sum()), 1)
            precision = weight[weight > 0].median().double()
            seen = (center > low - width) & (center < high + width)
            total += torch.where(seen, (depth * own / width).square() * width / pixel * precision, 0.0)
    return total.sqrt()
