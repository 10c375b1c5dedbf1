"""The line ledger: one plain QTable, one row a line, and the way between it and a `LineEmulator`.

Does not live here: the meaning of its columns (`columns`), the selection of lines (`selection`), files (`files`,
`asdf`), the cloning and fitting of lines (`cloning`, `fitting`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from astropy.table import QTable
from torch import Tensor

from ..model.emulator import LineEmulator
from ..model.parameters import KINDS
from ..physics.grids import SPEED_OF_LIGHT
from ..physics.voigt import voigt, voigt_fwhm
from .columns import COLUMNS, FLAG_LIMITS
from .emulator import law_shape
from .equivalent_widths import equivalent_width_and_error


@dataclass(frozen=True)
class LineErrors:
    """Errors of the lines of a fit, and their start.

    Parameters
    ----------
    free : Tensor, (n_line,)
        Whether each line was fitted.
    covariance : Tensor, (n_line, 4, 4)
        Covariance of ln area, ln σ, ln γ, rv_offset (`model.parameters.KINDS`); zero for what was held.
    reference_ln_area : Tensor, (n_line,)
        ln area at the start.
    prior_ln_area : float
        Prior width of ln area.
    at_limit : Tensor, (n_line,), optional
        Whether the line stands at the largest distance from its start that the fit allows.
    """

    free: Tensor
    covariance: Tensor
    reference_ln_area: Tensor
    prior_ln_area: float
    at_limit: Tensor | None = None


def build_ledger(
    components: dict[str, tuple[LineEmulator, LineErrors]],
    *,
    wavelength_range: dict[str, list[tuple[float, float]]],
    orders: Sequence[str] = ("",),
    meta: dict | None = None,
) -> QTable:
    """Ledger of one or two emulators.

    Parameters
    ----------
    components : dict
        "star" and/or "telluric" to emulator and errors.
    wavelength_range : dict
        Component to the ranges [Å, in its own rest frame] that the data cover, one an order.
    orders : sequence of str
        Names of the orders.
    meta : dict, optional
        Added to the table's meta, beside column descriptions.

    Returns
    -------
    QTable
        The columns of `columns.COLUMNS`, one row a line, components one after the other.
    """
    tables = [
        _component_columns(name, emulator, errors, wavelength_range[name], orders)
        for name, (emulator, errors) in components.items()
    ]
    table = QTable()
    for name, column in COLUMNS.items():
        values = np.concatenate([columns[name] for columns in tables])
        table[name] = values if column.unit is None else values * column.unit
        table[name].info.description = column.description
    laws = {name: emulator.law for name, (emulator, _) in components.items()}
    table.meta = {"flux_scale": {name: law.name for name, law in laws.items()}, "medium": "vacuum"}
    shapes = {name: shape for name, law in laws.items() if (shape := law_shape(law))}
    if shapes:
        table.meta["law"] = shapes
    table.meta |= {"columns": {name: column.description for name, column in COLUMNS.items()}, **(meta or {})}
    return table


def _component_columns(name, emulator, errors, ranges, orders) -> dict[str, np.ndarray]:
    """Columns of the ledger's rows of one component, by name."""
    with torch.no_grad():
        center = emulator.shifted_center
        area, sigma, gamma = (t.double() for t in (emulator.area, emulator.sigma, emulator.gamma))
        fwhm = voigt_fwhm(sigma, gamma)
        error = torch.diagonal(errors.covariance, dim1=-2, dim2=-1).clamp(min=0.0).sqrt()
        depth, saturated = _depth_and_saturation(emulator.law, center, area, sigma, gamma, emulator.sign < 0)
        low, high = (
            torch.tensor(ends, dtype=torch.float64).to(center).unsqueeze(1) for ends in zip(*ranges, strict=True)
        )
        margin = FLAG_LIMITS["edge"] * fwhm
        edge = ~((center >= low + margin) & (center <= high - margin)).any(0)
        seen = (center > low - fwhm) & (center < high + fwhm)
        blended = _overlapping(center, FLAG_LIMITS["blended"] * fwhm)
    width, width_error = equivalent_width_and_error(emulator, center, area, sigma, gamma, errors.covariance)
    columns = {
        "id": torch.arange(len(emulator)),
        "center": center,
        "center_err": emulator.center * error[:, 3] / SPEED_OF_LIGHT,
        "rv_offset": emulator.rv_offset.detach().double(),
        "rv_offset_err": error[:, 3],
        "area": area,
        "area_err": area * error[:, 0],
        "sigma": sigma,
        "sigma_err": sigma * error[:, 1],
        "gamma": gamma,
        "gamma_err": gamma * error[:, 2],
        "fwhm": fwhm,
        "depth": depth,
        "equivalent_width": width,
        "equivalent_width_err": width_error,
        "snr": torch.where(width_error > 0, width.abs() / width_error, torch.nan),
        "delta_ln_area": emulator.ln_area.detach().double() - errors.reference_ln_area,
        "blended": blended,
        "saturated": saturated,
        "edge": edge,
        "unconstrained": ~errors.free | (error[:, 0] > FLAG_LIMITS["unconstrained"] * errors.prior_ln_area),
        "at_limit": torch.zeros_like(errors.free) if errors.at_limit is None else errors.at_limit,
        "free": errors.free,
    }
    result = {key: value.detach().cpu().numpy() for key, value in columns.items()}
    n_line = len(emulator)
    result["component"] = np.full(n_line, name)
    species = np.array(emulator.species or [""] * n_line, dtype="U")
    result["species"] = species.astype(f"U{max(16, species.dtype.itemsize // 4)}")  # room for later names
    order_names = np.array(orders, dtype="U")
    texts = [",".join(order_names[column]) for column in seen.cpu().numpy().T]
    result["orders"] = np.array(texts, dtype="U") if any(texts) else np.full(n_line, "", dtype="U1")
    return result


def _depth_and_saturation(law, center, area, sigma, gamma, emission) -> tuple[Tensor, Tensor]:
    """Depth of each line alone at its centre, negative in emission, and whether its core hardly deepens any more."""
    peak = area * voigt(torch.zeros_like(area), sigma, gamma)
    tau, per_y = law.opacity(peak)
    flux, slope = law.flux(tau, center)
    weak_slope = law.flux(torch.zeros_like(tau), center)[1]
    saturated = (slope * per_y).abs() < FLAG_LIMITS["saturated"] * weak_slope.abs()
    if law.name == "linear":  # a product never flattens: its core is full once the depth nears one
        saturated = peak > FLAG_LIMITS["saturated_linear"]
    return torch.where(emission, -peak, 1.0 - flux), saturated & ~emission


def _overlapping(center: Tensor, half_width: Tensor) -> Tensor:
    """Whether the interval around each line overlaps that of any other, next to it or not."""
    low, order = (center - half_width).sort()
    high = (center + half_width)[order]
    overlaps = torch.zeros_like(center, dtype=torch.bool)
    overlaps[order[1:]] |= high.cummax(0).values[:-1] > low[1:]
    overlaps[order[:-1]] |= low[1:] < high[:-1]
    return overlaps


def held_errors(emulator: LineEmulator) -> LineErrors:
    """Errors of an emulator that was not fitted: all lines held, zero covariance.

    Parameters
    ----------
    emulator : LineEmulator

    Returns
    -------
    LineErrors
    """
    n_line = len(emulator)
    return LineErrors(
        torch.zeros(n_line, dtype=torch.bool),
        torch.zeros(n_line, len(KINDS), len(KINDS), dtype=torch.float64),
        emulator.ln_area.detach().double().clone(),
        math.inf,
    )
