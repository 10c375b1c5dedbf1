"""The line ledger: one plain QTable, one row a line, and the way between it and a `LineEmulator`.

Every column is defined once, in `COLUMNS`. Does not live here: how lines are found or fitted (`cloning`, `fitting`),
files (`asdf`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import astropy.units as u
import numpy as np
import torch
from astropy.table import QTable
from torch import Tensor

from .grids import SPEED_OF_LIGHT
from .lines import LineEmulator
from .parameters import KINDS
from .profiles import voigt, voigt_fwhm

KMS = u.km / u.s

COLUMNS: dict[str, tuple[u.UnitBase | None, str]] = {
    "id": (None, "Number of the line within its component, in order of wavelength"),
    "component": (None, "star or telluric"),
    "species": (None, "Species, empty where not identified"),
    "center": (u.AA, "Vacuum wavelength of the centre at rest, rv_offset included"),
    "center_err": (u.AA, "1-sigma error of center"),
    "rv_offset": (KMS, "Shift of the centre against the starting line list"),
    "rv_offset_err": (KMS, "1-sigma error of rv_offset"),
    "area": (u.AA, "Integrated opacity of the line (integrated depth in linear scale)"),
    "area_err": (u.AA, "1-sigma error of area"),
    "sigma": (u.AA, "Gaussian standard deviation"),
    "sigma_err": (u.AA, "1-sigma error of sigma"),
    "gamma": (u.AA, "Lorentzian half width at half maximum"),
    "gamma_err": (u.AA, "1-sigma error of gamma"),
    "fwhm": (u.AA, "Full width at half maximum of the Voigt profile (Olivero & Longbothum 1977)"),
    "depth": (None, "Depth of this line alone at its centre, 1 - S; negative in emission"),
    "equivalent_width": (u.AA, "Integral of 1 - S of this line alone; negative in emission"),
    "equivalent_width_err": (u.AA, "1-sigma error of equivalent_width, from the covariance of area, sigma and gamma"),
    "snr": (None, "equivalent_width over its error"),
    "delta_ln_area": (None, "ln(area) minus that of the starting line list"),
    "blended": (None, "Another line of the same component lies within half the sum of the two full widths"),
    "saturated": (None, "Central flux reacts to opacity by less than an eighth of what a weak line's would"),
    "edge": (None, "Centre lies outside the data, or closer to their end than one full width"),
    "unconstrained": (None, "Data narrow ln(area) to no less than 0.7 of its prior, or the line was not fitted"),
    "free": (None, "Whether any parameter of the line was free"),
    "orders": (None, "Orders that contributed, separated by commas"),
}
"""Name → (unit, meaning) of every ledger column, in order."""

_QUADRATURE_NODES = 200


def equivalent_width(law, center: Tensor, area: Tensor, sigma: Tensor, gamma: Tensor) -> Tensor:
    r"""Equivalent width of each line alone, :math:`W = \int (1 - S)\,dλ`, in Å.

    Gauss-Legendre quadrature of the saturated profile over the mapping x = w u/(1 - u), which has both the core and
    the 1/x² wings at finite slope; exact to 1e-6 of W for τ up to 1e4. Differentiable in area, σ and γ.

    Parameters
    ----------
    law : SaturationLaw
    center, area, sigma, gamma : Tensor, (n_line,)
        In Å.
    """
    node, weight = np.polynomial.legendre.leggauss(_QUADRATURE_NODES)
    node = torch.as_tensor(0.5 * (node + 1.0)).to(area)
    weight = torch.as_tensor(0.5 * weight).to(area)
    with torch.no_grad():
        peak_opacity = area / voigt_fwhm(sigma, gamma)
        width = 0.5 * voigt_fwhm(sigma, gamma) * (1.0 + peak_opacity.log1p()) + (area * gamma).sqrt()
    x = width.unsqueeze(1) * node / (1.0 - node)
    y = area.unsqueeze(1) * voigt(x, sigma.unsqueeze(1), gamma.unsqueeze(1))
    depth = 1.0 - _flux(law, y, center)
    return 2.0 * (depth * weight / (1.0 - node).square()).sum(-1) * width


def _flux(law, y: Tensor, center: Tensor) -> Tensor:
    tau = law.opacity(y)[0]
    wavelength = center.unsqueeze(1).expand_as(tau).reshape(-1)
    return law.flux(tau.reshape(-1), wavelength)[0].reshape(tau.shape)


@dataclass(frozen=True)
class LineErrors:
    """What a fit knows beyond the lines' values.

    Parameters
    ----------
    free : Tensor, (n_line,)
        Whether each line was fitted.
    covariance : Tensor, (n_line, 4, 4)
        Covariance of ln area, ln σ, ln γ, rv_offset (`jacobian.KINDS`); zero for what was held.
    reference_ln_area : Tensor, (n_line,)
        ln area at the start.
    prior_ln_area : float
        Prior width of ln area.
    """

    free: Tensor
    covariance: Tensor
    reference_ln_area: Tensor
    prior_ln_area: float


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
    """
    tables = [
        _component_columns(name, emulator, errors, wavelength_range[name], orders)
        for name, (emulator, errors) in components.items()
    ]
    table = QTable()
    for name, (unit, description) in COLUMNS.items():
        values = np.concatenate([columns[name] for columns in tables])
        table[name] = values if unit is None else values * unit
        table[name].info.description = description
    scales = {name: emulator.law.name for name, (emulator, _) in components.items()}
    table.meta = {
        "flux_scale": scales,
        "medium": "vacuum",
        "columns": {name: description for name, (_, description) in COLUMNS.items()},
        **(meta or {}),
    }
    return table


def _component_columns(name, emulator, errors, ranges, orders) -> dict[str, np.ndarray]:
    with torch.no_grad():
        center, sign = emulator.shifted_center, emulator.sign.double()
        area, sigma, gamma = (t.double() for t in (emulator.area, emulator.sigma, emulator.gamma))
        fwhm = voigt_fwhm(sigma, gamma)
        error = torch.diagonal(errors.covariance, dim1=-2, dim2=-1).clamp(min=0.0).sqrt()
        peak = area * voigt(torch.zeros_like(area), sigma, gamma)
        tau, per_y = emulator.law.opacity(peak)
        flux, slope = emulator.law.flux(tau, center)
        weak_slope = emulator.law.flux(torch.zeros_like(tau), center)[1]
        saturated = (slope * per_y).abs() < 0.125 * weak_slope.abs()
        if emulator.law.name == "linear":  # a product never flattens: its core is full once the depth nears one
            saturated = peak > 0.875
        low, high = (
            torch.tensor(ends, dtype=torch.float64).to(center).unsqueeze(1) for ends in zip(*ranges, strict=True)
        )
        edge = ~((center >= low + fwhm) & (center <= high - fwhm)).any(0)
        seen = (center > low - fwhm) & (center < high + fwhm)
        gap = torch.diff(center)
        touching = gap < 0.5 * (fwhm[1:] + fwhm[:-1])
        blended = torch.zeros_like(edge)
        blended[1:] |= touching
        blended[:-1] |= touching
    emission = sign < 0
    width, gradient = _equivalent_width_with_gradient(emulator.law, center, area, sigma, gamma)
    width = torch.where(emission, -area, width)
    gradient[emission] = 0.0
    gradient[emission, 0] = -area[emission]
    shape = errors.covariance[:, :3, :3]
    width_error = torch.einsum("li,lij,lj->l", gradient, shape, gradient).clamp(min=0.0).sqrt()
    offset = emulator.rv_offset.detach().double()
    columns = {
        "id": torch.arange(len(emulator)),
        "center": center,
        "center_err": emulator.center * error[:, 3] / SPEED_OF_LIGHT,
        "rv_offset": offset,
        "rv_offset_err": error[:, 3],
        "area": area,
        "area_err": area * error[:, 0],
        "sigma": sigma,
        "sigma_err": sigma * error[:, 1],
        "gamma": gamma,
        "gamma_err": gamma * error[:, 2],
        "fwhm": fwhm,
        "depth": torch.where(emission, -peak, 1.0 - flux),
        "equivalent_width": width,
        "equivalent_width_err": width_error,
        "snr": torch.where(width_error > 0, width.abs() / width_error, torch.nan),
        "delta_ln_area": emulator.ln_area.detach().double() - errors.reference_ln_area,
        "blended": blended,
        "saturated": saturated & ~emission,
        "edge": edge,
        "unconstrained": ~errors.free | (error[:, 0] > 0.7 * errors.prior_ln_area),
        "free": errors.free,
    }
    result = {key: value.detach().cpu().numpy() for key, value in columns.items()}
    n_line = len(emulator)
    result["component"] = np.full(n_line, name)
    result["species"] = np.array(emulator.species or [""] * n_line, dtype="U16")
    known = np.array(orders, dtype="U")
    texts = [",".join(known[column]) for column in seen.cpu().numpy().T]
    result["orders"] = np.array(texts, dtype="U") if any(texts) else np.full(n_line, "", dtype="U1")
    return result


def _equivalent_width_with_gradient(law, center, area, sigma, gamma) -> tuple[Tensor, Tensor]:
    """W and its derivatives to (ln area, ln σ, ln γ), (n_line, 3)."""
    logs = [t.detach().log().requires_grad_(True) for t in (area, sigma, gamma)]
    with torch.enable_grad():
        width = equivalent_width(law, center, *(t.exp() for t in logs))
        gradient = torch.autograd.grad(width.sum(), logs)
    return width.detach(), torch.stack(gradient, dim=-1)


def emulator_from_ledger(table, *, component: str | None = None, law=None, wavelength_range=None) -> LineEmulator:
    """Emulator from a ledger, or from any table with columns center, area, sigma, gamma (Å).

    Parameters
    ----------
    table : Table
        Columns may be quantities of any length unit, or bare numbers in Å. `rv_offset` [km/s], if present, is taken as
        already contained in `center`; `depth` < 0, or `sign` < 0, marks emission. `species`, if present, stays with the
        emulator's lines.
    component : str, optional
        Rows of this component only, where the table has the column `component`.
    law : SaturationLaw or str, optional
        By default what the table's meta says as `flux_scale`, else "log".
    wavelength_range : (float, float), optional
        See `LineEmulator`.

    Raises
    ------
    ValueError
        If a needed column is missing or has the wrong unit.
    """
    missing = [name for name in ("center", "area", "sigma", "gamma") if name not in table.colnames]
    if missing:
        raise ValueError(
            f"a line ledger needs the columns center, area, sigma, gamma (Å); {', '.join(missing)} missing from "
            f"{', '.join(table.colnames) or 'an empty table'}"
        )
    if component is not None and "component" in table.colnames:
        table = table[np.asarray(table["component"]) == component]
    if not len(table):
        raise ValueError(f"the line ledger has no rows{f' of component {component!r}' if component else ''}")
    center = _column(table, "center", u.AA)
    offset = _column(table, "rv_offset", KMS) if "rv_offset" in table.colnames else np.zeros_like(center)
    sign = np.ones(center.size)
    for name in ("depth", "sign"):
        if name in table.colnames:
            sign = np.where(np.asarray(table[name]) < 0, -1, 1)
    if law is None:
        law = table.meta.get("flux_scale", "log")
        law = law.get(component, "log") if isinstance(law, dict) else law
    return LineEmulator(
        center / (1.0 + offset / SPEED_OF_LIGHT),
        *(_column(table, name, u.AA) for name in ("area", "sigma", "gamma")),
        rv_offset=offset,
        sign=sign,
        law=law,
        wavelength_range=wavelength_range or table.meta.get("wavelength_range"),
        species=np.asarray(table["species"]).astype("U") if "species" in table.colnames else None,
    )


def _column(table, name: str, unit: u.UnitBase) -> np.ndarray:
    try:
        values = u.Quantity(table[name], unit) if table[name].unit is None else u.Quantity(table[name]).to(unit)
    except u.UnitConversionError:
        raise ValueError(f"ledger column {name} must be in {unit} or convertible, got {table[name].unit}") from None
    return np.array(values.value, dtype=np.float64)


def held_errors(emulator: LineEmulator) -> LineErrors:
    """Errors of an emulator that was not fitted: none."""
    n_line = len(emulator)
    return LineErrors(
        torch.zeros(n_line, dtype=torch.bool),
        torch.zeros(n_line, len(KINDS), len(KINDS), dtype=torch.float64),
        emulator.ln_area.detach().double().clone(),
        math.inf,
    )
