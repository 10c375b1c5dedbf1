"""Line lists that are tables: arve's masks, and anything that astropy reads as columns.

Does not live here: text formats of their own (`vald`, `fixed_width`).
"""

from __future__ import annotations

import csv
import warnings
from io import BytesIO
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.table import MaskedColumn, QTable, Table

from ..chemistry.strengths import INTENSITY_UNIT
from .files import LineListError, check_range, float_column
from .fixed_width import species_column

# Column → its names in tables, in any case, and the unit of a bare number.
LIST_COLUMNS: dict[str, tuple[tuple[str, ...], u.UnitBase | None]] = {
    "original_wavelength": (("wavelength", "wave", "lambda", "wl", "wavelength_air", "wavenumber", "nu", "rest"), u.AA),
    "species": (("species", "spec", "element", "ion", "molecule"), None),
    "log_gf": (("log_gf", "loggf", "gflog"), None),
    "excitation": (("excitation", "excit", "e_low", "e_lower", "elow", "ep", "chi"), u.eV),
    "intensity": (("intensity", "sw"), INTENSITY_UNIT),
    "lower_energy": (("lower_energy", "elower"), u.cm**-1),
    "strength": (("strength",), u.dimensionless_unscaled),
    "depth": (("depth",), None),
    "damping_rad": (("damping_rad", "gamrad", "gamma_rad"), None),
    "damping_stark": (("damping_stark", "gamqst", "gamma_stark"), None),
    "damping_waals": (("damping_waals", "gamvw", "gamma_waals", "gamma_vdw"), None),
    "isotopologue": (("isotopologue", "local_iso_id"), None),
    "gamma_air": (("gamma_air",), u.cm**-1),
    "gamma_self": (("gamma_self",), u.cm**-1),
    "n_air": (("n_air",), None),
    "delta_air": (("delta_air",), u.cm**-1),
}

_ARVE = {"species": "species", "wave": "wavelength", "depth": "depth", "loggf": "log_gf", "E_l": "excitation"}
_ARVE_DAMPING = ("damping_rad", "damping_stark", "damping_waals")


def is_arve(lines: list[str]) -> bool:
    """Whether the first line is the header of a mask of arve."""
    return bool(lines) and {"species", "wave", "depth", "loggf"} <= set(lines[0].split(","))


def read_arve(path, lines: list[str]) -> tuple[QTable, str]:
    """A mask of arve (Al Moulla et al. 2022): lines of VALD in comma-separated columns, vacuum Å.

    Their `wave` is the bottom of the line in a template, up to several Å off in blends, and becomes the column
    `template_wavelength`. `wave_vald`, where present, is that of the laboratory and taken as the wavelength.

    Returns
    -------
    table : QTable
        species, log_gf, excitation, depth (of the template), damping as in `vald.read_vald`, template_wavelength.
    medium : str
        "vacuum".
    """
    rows = [(k + 1, line) for k, line in enumerate(lines) if line.strip()]
    header = rows[0][1].split(",") if rows else []
    missing = [name for name in _ARVE if name not in header]
    if missing:
        raise LineListError(path, f"expected arve's columns, {', '.join(missing)} missing from the header", 1)
    if len(rows) < 2:
        raise LineListError(path, "expected lines of data after the header, got none")
    numbers = np.array([number for number, _ in rows[1:]])
    try:
        fields = list(csv.reader(line for _, line in rows[1:]))
    except csv.Error as error:
        raise LineListError(path, f"expected fields separated by commas ({error})") from None
    for number, field in zip(numbers, fields, strict=False):
        if len(field) != len(header):
            raise LineListError(path, f"expected {len(header)} fields, got {len(field)}", int(number))
    if len(fields) != len(numbers):
        raise LineListError(path, "expected one line of text for each transition, got a quoted line break")
    words = dict(zip(header, zip(*fields, strict=True), strict=True))
    values = {
        name: float_column(path, words[name], numbers, _ARVE.get(name, name))
        for name in (*_ARVE, "wave_vald", *_ARVE_DAMPING)
        if name in words and name != "species"
    }
    for name in ("wave", "wave_vald"):
        if name in values:
            check_range(path, values[name], 1.0, 1e8, numbers, "a wavelength in Å")
    check_range(path, values["loggf"], -30.0, 10.0, numbers, "log gf")
    check_range(path, values["E_l"], 0.0, 400.0, numbers, "an excitation in eV")
    table = QTable()
    table["original_wavelength"] = values.get("wave_vald", values["wave"]) * u.AA
    table["species"] = species_column(path, words["species"], numbers)
    table["log_gf"] = values["loggf"]
    table["excitation"] = values["E_l"] * u.eV
    for name in _ARVE_DAMPING:
        if name in values:
            table[name] = np.where(values[name] == 0, np.nan, values[name])
    table["depth"] = values["depth"]
    table["template_wavelength"] = values["wave"] * u.AA
    return table, "vacuum"


def read_table(path, content: bytes, lines: list[str] | None) -> Table:
    """A table of a file, by astropy.

    astropy gets the content and not the name, except for HDF5 and Parquet. It would download from a name that looks
    like an address, and leaves some unreadable files open.

    Parameters
    ----------
    path : path-like
    content : bytes
    lines : list of str or None
        The same as text; None for a binary file.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # units that astropy does not know, cards of FITS: nothing of ours
            if lines is not None:
                return _read_text(path, lines)
            if content.startswith(b"SIMPLE"):
                return QTable.read(BytesIO(content), format="fits")
            for magic, form in ((b"\x89HDF", "hdf5"), (b"PAR1", "parquet")):
                if content.startswith(magic):
                    return QTable.read(str(path), format=form)
    except Exception as error:  # a damaged table can fail anywhere in astropy's readers, and in yaml below them
        reason = str(error).strip().splitlines()
        raise LineListError(path, reason[0] if reason else type(error).__name__) from error
    raise LineListError(path, "expected text, FITS, HDF5 or Parquet, got other binary data")


def _read_text(path, lines: list[str]) -> Table:
    if lines[0].startswith("# %ECSV"):
        return QTable.read(lines, format="ascii.ecsv")
    if "<VOTABLE" in "".join(lines[:5]):
        return QTable.read(BytesIO("\n".join(lines).encode("latin-1")), format="votable")
    form = "ascii.csv" if Path(path).suffix.lower() == ".csv" else "ascii"
    return QTable.read(lines, format=form)


def from_table(table: Table, source="the table") -> tuple[QTable, str | None]:
    """A line list from any table with a wavelength and a species, by the names of `LIST_COLUMNS`.

    Parameters
    ----------
    table : Table
        Columns with units, or bare numbers in the unit of `LIST_COLUMNS`; other columns are kept as they are.
    source : str
        Name of the table in messages.

    Returns
    -------
    table : QTable
    medium : str or None
        The medium in its meta, or None.
    """
    if not len(table):
        raise LineListError(source, "expected lines, got a table without rows")
    if "original_wavelength" in table.colnames:  # written by us: its wavelength is vacuum already
        table = table.copy(copy_data=False)
        table.remove_column("original_wavelength")
    column_names = {name.lower(): name for name in reversed(table.colnames)}
    result, taken = QTable(), set()
    for wanted, (spellings, unit) in LIST_COLUMNS.items():
        name = next((column_names[spelling] for spelling in spellings if spelling in column_names), None)
        if name is None and wanted in ("original_wavelength", "species"):
            raise LineListError(
                source, f"expected a column called {' or '.join(spellings)}, got {', '.join(table.colnames)}"
            )
        if name is None:
            continue
        taken.add(name)
        result[wanted] = _column(table, name, wanted, unit, source)
    for name in table.colnames:
        if name not in taken and name not in result.colnames:
            result[name] = table[name]
    medium = table.meta.get("medium")
    return result, medium if medium in ("air", "vacuum") else None


def _column(table: Table, name: str, wanted: str, unit, source):
    column = table[name]
    rows = np.arange(1, len(table) + 1)
    if wanted == "species":
        words = column.filled("") if isinstance(column, MaskedColumn) else column
        return species_column(source, [w.decode("latin-1") if isinstance(w, bytes) else str(w) for w in words], rows)
    column_unit = column.unit
    if getattr(column, "mask", None) is not None and np.any(column.mask):
        column = column.filled(np.nan) if np.asarray(column.mask).dtype == bool and column.dtype.kind == "f" else column
    try:
        plain = column.value if isinstance(column, u.Quantity) else getattr(column, "unmasked", column)
        values = np.array(getattr(plain, "unmasked", plain), dtype=np.float64)
    except (TypeError, ValueError):
        raise LineListError(source, f"expected numbers in the column {name}, got {column.dtype}") from None
    if values.ndim != 1:
        raise LineListError(source, f"expected one number a row in the column {name}, got shape {values.shape}")
    if wanted == "original_wavelength":
        bad = np.flatnonzero(~(np.isfinite(values) & (values > 0)))
        if len(bad):
            raise LineListError(
                source, f"expected positive wavelengths in {name}, got {values[bad[0]]:g} in row {bad[0] + 1}"
            )
    if unit is None:
        return values
    if column_unit is None and wanted == "original_wavelength" and name.lower() in ("wavenumber", "nu"):
        column_unit = u.cm**-1
    column_unit = unit if column_unit is None else column_unit
    if wanted == "original_wavelength" and not column_unit.is_equivalent(u.AA, u.spectral()):
        raise LineListError(
            source, f"expected the column {name} in a unit of wavelength or wavenumber, got {column_unit}"
        )
    if wanted == "strength":
        return values * column_unit  # any unit will do, as long as it is one for all
    try:
        return (
            (values * column_unit) if wanted == "original_wavelength" else (values * column_unit).to(unit, u.spectral())
        )
    except u.UnitConversionError:
        raise LineListError(source, f"expected the column {name} in {unit} or convertible, got {column_unit}") from None
