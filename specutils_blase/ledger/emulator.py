"""From a ledger, or any table of lines, to an emulator.

Does not live here: from an emulator to a ledger (`ledger.table`), files (`ledger.files`).
"""

from __future__ import annotations

import json

import astropy.units as u
import numpy as np
import torch

from ..model.emulator import LineEmulator
from ..physics.grids import SPEED_OF_LIGHT
from ..physics.saturation import Minnaert, Product, SaturationLaw
from .columns import KMS

NEEDED_COLUMNS = ("center", "area", "sigma", "gamma")
"""Columns that make a table a line ledger."""


PACKED_META = "LEDGER"
"""Key of a FITS header that holds the meta of a ledger as JSON."""


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
