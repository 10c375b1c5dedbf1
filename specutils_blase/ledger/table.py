"""The line ledger: one plain QTable, one row a line, and the way between it and a `LineEmulator`.

Does not live here: the meaning of its columns (`columns`), the selection of lines (`selection`), files (`files`,
`asdf`), the cloning and fitting of lines (`cloning`, `fitting`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

import astropy.units as u
import numpy as np
import torch
from astropy.table import QTable
from torch import Tensor

from ..model.emulator import LineEmulator
from ..model.parameters import KINDS
from ..physics.grids import SPEED_OF_LIGHT
from ..physics.saturation import Minnaert, Product, SaturationLaw
from ..physics.voigt import voigt, voigt_fwhm
from .columns import COLUMNS, FLAG_LIMITS, KMS

NEEDED_COLUMNS = ("center", "area", "sigma", "gamma")
"""Columns that make a table a line ledger."""

PACKED_META = "LEDGER"
"""Key of a FITS header that holds the meta of a ledger as JSON."""

WIDTH_NODES = 200
"""Nodes of the quadrature of an equivalent width."""


def equivalent_width(law, center: Tensor, area: Tensor, sigma: Tensor, gamma: Tensor) -> Tensor:
    r"""Equivalent width of each line alone, :math:`W = \int (1 - S)\,dλ`, in Å.

    Gauss-Legendre quadrature of the saturated profile over the mapping x = w u/(1 - u), which has both the core and
    the 1/x² wings at finite slope; exact to 1e-6 of W for τ up to 1e4. Differentiable in area, σ and γ.

    Parameters
    ----------
    law : SaturationLaw
    center, area, sigma, gamma : Tensor, (n_line,)
        In Å.

    Returns
    -------
    Tensor, (n_line,)
        In Å.
    """
    nodes, weights = np.polynomial.legendre.leggauss(WIDTH_NODES)
    node = torch.as_tensor(0.5 * (nodes + 1.0)).to(area)
    weight = torch.as_tensor(0.5 * weights).to(area)
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
    width, width_error = _equivalent_width_and_error(emulator, center, area, sigma, gamma, errors.covariance)
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


def _equivalent_width_and_error(emulator, center, area, sigma, gamma, covariance) -> tuple[Tensor, Tensor]:
    """Equivalent width of each line alone [Å], negative in emission, and its 1-sigma error."""
    emission = emulator.sign.double() < 0
    width, gradient = equivalent_width_with_gradient(emulator.law, center, area, sigma, gamma)
    width = torch.where(emission, -area, width)
    gradient[emission] = 0.0
    gradient[emission, 0] = -area[emission]
    variance = torch.einsum("li,lij,lj->l", gradient, covariance[:, :3, :3], gradient)
    return width, variance.clamp(min=0.0).sqrt()


def _overlapping(center: Tensor, half_width: Tensor) -> Tensor:
    """Whether the interval around each line overlaps that of any other, next to it or not."""
    low, order = (center - half_width).sort()
    high = (center + half_width)[order]
    overlaps = torch.zeros_like(center, dtype=torch.bool)
    overlaps[order[1:]] |= high.cummax(0).values[:-1] > low[1:]
    overlaps[order[:-1]] |= low[1:] < high[:-1]
    return overlaps


def equivalent_width_with_gradient(law, center, area, sigma, gamma) -> tuple[Tensor, Tensor]:
    """Equivalent width of each line alone, and its derivatives to (ln area, ln σ, ln γ).

    Parameters
    ----------
    law : SaturationLaw
    center, area, sigma, gamma : Tensor, (n_line,)
        In Å.

    Returns
    -------
    width : Tensor, (n_line,)
        In Å.
    gradient : Tensor, (n_line, 3)
        In Å.
    """
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
        Columns may be quantities of any length unit, or bare numbers in Å. `center` includes `rv_offset` [km/s] where
        that is present; `depth` < 0, or `sign` < 0, marks emission. `species`, if present, stays with the lines.
    component : str, optional
        Rows of this component only, where the table has the column `component`; needed if it has more than one.
    law : SaturationLaw or str, optional
        By default the `flux_scale` in the table's meta, else "log".
    wavelength_range : (float, float), optional
        See `LineEmulator`.

    Returns
    -------
    LineEmulator

    Raises
    ------
    ValueError
        If a needed column is missing, has the wrong unit, or lacks a number; if an area or a width is not positive, an
        id occurs twice, or the component is absent or ambiguous. The message names the row.
    """
    missing = [name for name in NEEDED_COLUMNS if name not in table.colnames]
    if missing:
        raise ValueError(
            f"a line ledger needs the columns {', '.join(NEEDED_COLUMNS)} (Å); {', '.join(missing)} missing from "
            f"{', '.join(table.colnames) or 'an empty table'}: add or rename them"
        )
    table, component = _rows_of(table, component)
    meta = ledger_meta(table)
    center, area, sigma, gamma = (_positive(table, name) for name in NEEDED_COLUMNS)
    offset = column_values(table, "rv_offset", KMS) if "rv_offset" in table.colnames else np.zeros_like(center)
    offset = np.where(np.isfinite(offset), offset, 0.0)
    sign = np.ones(center.size)
    for name in ("depth", "sign"):
        if name in table.colnames:
            sign = np.where(column_values(table, name, u.dimensionless_unscaled) < 0, -1, 1)
    return LineEmulator(
        center / (1.0 + offset / SPEED_OF_LIGHT),
        area,
        sigma,
        gamma,
        rv_offset=offset,
        sign=sign,
        law=_law(meta, component) if law is None else law,
        wavelength_range=wavelength_range or _of(meta.get("wavelength_range"), component),
        species=text_column(table, "species").tolist() if "species" in table.colnames else None,
    )


def ledger_meta(table) -> dict:
    """Meta of a ledger, of a table from FITS the content of its card `PACKED_META`.

    Parameters
    ----------
    table : Table

    Returns
    -------
    dict
    """
    packed = table.meta.get(PACKED_META)
    return {**table.meta, **json.loads(packed)} if isinstance(packed, str) else dict(table.meta)


def column_values(table, name: str, unit: u.UnitBase) -> np.ndarray:
    """A column as float64.

    Parameters
    ----------
    table : Table
    name : str
        Name of the column.
    unit : Unit
        Unit of the result, and of bare numbers in the table.

    Returns
    -------
    ndarray, (n_row,)
        NaN where the column is masked.

    Raises
    ------
    ValueError
        If its unit does not convert, or it does not hold one number a row.
    """
    column = table[name]
    column_unit = unit if getattr(column, "unit", None) is None else column.unit
    plain = getattr(column, "unmasked", column)
    try:
        values = np.array(np.ma.getdata(getattr(plain, "value", plain)), dtype=np.float64)
        values = (values * column_unit).to_value(unit)
    except u.UnitConversionError:
        raise ValueError(
            f"the column {name} must be in {unit.to_string('unicode')} or convertible, got {column_unit}: set the unit "
            "of its numbers"
        ) from None
    except (TypeError, ValueError):
        raise ValueError(f"expected numbers in the column {name}, got {column.dtype}") from None
    if values.shape != (len(table),):
        raise ValueError(f"expected one number a row in the column {name}, got shape {values.shape}")
    return np.where(np.asarray(getattr(column, "mask", False)), np.nan, values)


def text_column(table, name: str, default: str = "") -> np.ndarray:
    """A column of text.

    Parameters
    ----------
    table : Table
    name : str
        Name of the column.
    default : str
        Value where the column is masked, or everywhere if the table has no such column.

    Returns
    -------
    ndarray of str, (n_row,)
    """
    if name not in table.colnames:
        return np.full(len(table), default)
    column = table[name]
    return np.asarray(column.filled(default) if hasattr(column, "filled") else column).astype("U")


def observed_centers(table, rv: float | None) -> np.ndarray:
    """Centres of a ledger's lines in an observed spectrum.

    Parameters
    ----------
    table : Table
        With the column center, and component where it has tellurics.
    rv : float or None
        Radial velocity [km/s] of the star. None leaves stellar lines at rest; tellurics never move.

    Returns
    -------
    ndarray, (n_line,)
        In vacuum Å.
    """
    center = column_values(table, "center", u.AA)
    moves = text_column(table, "component", "star") != "telluric"
    return center if rv is None else np.where(moves, center * (1.0 + rv / SPEED_OF_LIGHT), center)


def _positive(table, name: str) -> np.ndarray:
    """A length [Å] of every line, finite and positive; γ may be zero."""
    values = column_values(table, name, u.AA)
    good = np.isfinite(values) & (values >= 0 if name == "gamma" else values > 0)
    bad = np.flatnonzero(~good)
    if len(bad):
        which = f", id {table['id'][bad[0]]}" if "id" in table.colnames else ""
        more = f" and {len(bad) - 1} more like it" if len(bad) > 1 else ""
        remedy = ", and mark emission by a negative depth" if name == "area" else ""
        raise ValueError(
            f"expected a finite, {'non-negative' if name == 'gamma' else 'positive'} {name} (Å) of every line, got "
            f"{values[bad[0]]:g} in row {bad[0]}{which}{more}: correct or remove such rows{remedy}"
        )
    return values


def _rows_of(table, component: str | None):
    """The rows of one component, and its name."""
    if "component" in table.colnames and len(table):
        names = text_column(table, "component")
        present = sorted(set(names.tolist()))
        if component is None:
            if len(present) > 1:
                raise ValueError(
                    f"the line ledger has the components {', '.join(present)}: give component= one of them"
                )
            component = present[0]
        elif component not in present:
            raise ValueError(
                f"the line ledger has no rows of component {component!r}, only of {', '.join(present)}: choose that, "
                "or remove the column component to use the lines for another"
            )
        table = table[names == component]
    if not len(table):
        raise ValueError("the line ledger has no rows: check what was selected or read")
    if "id" in table.colnames:
        identity, first, count = np.unique(np.asarray(table["id"]), return_index=True, return_counts=True)
        if (count > 1).any():
            twice = np.argmax(count > 1)
            raise ValueError(
                f"expected every id once in a component, got id {identity[twice]} {count[twice]} times, first in row "
                f"{first[twice]}: remove the duplicates, or the column id if the rows are different lines"
            )
    return table, component


def _of(value, component: str | None):
    """Entry of the meta for a component: entries are dicts by component, or hold for all."""
    if not isinstance(value, dict):
        return value
    return next(iter(value.values())) if len(value) == 1 else value.get(component)


def law_shape(law: SaturationLaw) -> dict:
    """Parameters of a law beside its name, as in a ledger's meta.

    Parameters
    ----------
    law : SaturationLaw

    Returns
    -------
    dict
        "guard", or "coefficients" and "wavelength_range" [Å]; empty for a law without parameters.
    """
    if law.n_parameter:
        shape = {"coefficients": law.coefficients.detach().tolist()}
        # A law of a user's own need not have a range.
        return shape | ({"wavelength_range": list(law.wavelength_range)} if hasattr(law, "wavelength_range") else {})
    return {"guard": law.guard} if hasattr(law, "guard") else {}


def _law(meta: dict, component: str | None) -> str | SaturationLaw:
    name, shape = _of(meta.get("flux_scale"), component) or "log", _of(meta.get("law"), component) or {}
    if name == "linear" and "guard" in shape:
        return Product(shape["guard"])
    if name == "minnaert" and "coefficients" in shape:
        law = Minnaert(shape["wavelength_range"], degree=len(shape["coefficients"]) - 1)
        law.coefficients.data = torch.tensor(shape["coefficients"], dtype=law.coefficients.dtype)
        return law
    return name


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
