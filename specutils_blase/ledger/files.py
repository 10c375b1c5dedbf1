"""Ledgers in the table formats of astropy: ECSV, FITS, HDF5 and Parquet, with units, masks, descriptions and meta.

astropy's own ``ledger.write`` keeps columns and units in each of them. These functions add, for FITS, the meta as one
card of JSON and masks apart from NaN; for HDF5, a name inside the file and units; for both, text that stays text.

Does not live here: ASDF (`asdf`), the meaning of the columns (`columns`).
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from astropy.io.registry import IORegistryError
from astropy.table import QTable, Table

from .columns import COLUMNS
from .emulator import NEEDED_COLUMNS, PACKED_META, ledger_meta, text_column

LEDGER_FORMATS = {
    ".ecsv": "ascii.ecsv",
    ".fits": "fits",
    ".fit": "fits",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".parquet": "parquet",
}
"""Suffix of a file → astropy's name of its format. Parquet needs the package pyarrow."""

HDF5_PATH = "ledger"
"""Name of the table in an HDF5 file."""

WRITER_OPTIONS = {"hdf5": {"path": HDF5_PATH, "serialize_meta": True}}
READER_OPTIONS: dict[str, dict[str, Any]] = {
    "hdf5": {"path": HDF5_PATH, "character_as_bytes": False},
    "fits": {"mask_invalid": False},
}
"""Options of astropy's writers and readers. NaN and empty text are values of a ledger, not missing ones."""


def write_ledger(ledger: Table, path, *, overwrite: bool = False) -> None:
    """Write a ledger as a table.

    Parameters
    ----------
    ledger : Table
        Of a clone or a fit, or any other that has center, area, sigma and gamma.
    path : path-like
        Its suffix chooses the format: .ecsv (text), .fits or .fit, .h5 or .hdf5, .parquet.
    overwrite : bool
        Whether an existing file may be replaced.

    Raises
    ------
    ValueError
        If the suffix is none of these, or the table is no ledger.
    ModuleNotFoundError
        If the format needs a package that is not installed: h5py for HDF5, pyarrow for Parquet.
    OSError
        If there is a file already, or the place cannot be written to.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import astropy.units as u
    >>> from astropy.table import QTable
    >>> import specutils_blase as sb
    >>> numbers = {"center": 8690.0, "area": 0.03, "sigma": 0.05, "gamma": 0.01}
    >>> ledger = QTable({name: [value] * u.AA for name, value in numbers.items()})
    >>> with TemporaryDirectory() as folder:
    ...     sb.write_ledger(ledger, Path(folder) / "lines.fits")
    ...     sb.read_ledger(Path(folder) / "lines.fits")["area"]
    <Quantity [0.03] Angstrom>
    """
    path, form = Path(path), _format(path)
    _check(ledger, "the table")
    table = QTable(ledger, copy=False)
    if form == "fits":
        table = QTable(ledger, copy=True)
        for column in table.itercols():
            if "fits" in getattr(column.info, "serialize_method", {}) and column.dtype.kind != "U":
                column.info.serialize_method["fits"] = "data_mask"  # by default masked values become NaN like any other
        table.meta = {PACKED_META: json.dumps(ledger_meta(ledger), default=_jsonable)}
    _with_packages(form, lambda: table.write(path, format=form, overwrite=overwrite, **WRITER_OPTIONS.get(form, {})))


def read_ledger(path) -> QTable:
    """A ledger from a file of `write_ledger`, or of ``ledger.write`` in the same formats.

    Parameters
    ----------
    path : path-like
        Its suffix tells the format.

    Returns
    -------
    QTable
        With units, masks, descriptions and meta; columns of native byte order. Missing text is empty text.

    Raises
    ------
    ValueError
        If the file is damaged, of another format, or its table no ledger; the message names the file and the reason.
    ModuleNotFoundError
        If the format needs a package that is not installed.
    OSError
        If there is no such file, or it may not be read.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import astropy.units as u
    >>> from astropy.table import QTable
    >>> import specutils_blase as sb
    >>> numbers = {"center": 8690.0, "area": 0.03, "sigma": 0.05, "gamma": 0.01}
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "lines.ecsv"
    ...     QTable({name: [value] * u.AA for name, value in numbers.items()}).write(path)
    ...     sb.read_ledger(path)["sigma"]
    <Quantity [0.05] Angstrom>
    """
    path = Path(path)
    form = _format(path)
    with path.open("rb"):  # says what is wrong with a file that is not there, which HDF5 does not
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged files, which raise below
            read = _with_packages(form, lambda: QTable.read(str(path), format=form, **READER_OPTIONS.get(form, {})))
    except ModuleNotFoundError:
        raise
    except Exception as error:  # a damaged table can fail anywhere in astropy's readers, and in yaml below them
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"cannot read a ledger from {path}: {reason}") from error
    _check(read, str(path))
    table = QTable(read, copy=True)
    table.convert_bytestring_to_unicode()
    for name in table.colnames:
        dtype, description = table[name].dtype, table[name].info.description
        if dtype.kind == "U" and hasattr(table[name], "filled"):
            table[name] = text_column(table, name)  # in ECSV, empty and missing text look the same
        elif not dtype.isnative:
            table[name] = table[name].astype(dtype.newbyteorder("="))
        table[name].info.description = description
    table.meta = ledger_meta(read)
    for key in (PACKED_META, "comments"):
        table.meta.pop(key, None)
    for name in table.colnames:
        if not table[name].info.description and name in COLUMNS:
            table[name].info.description = table.meta.get("columns", {}).get(name)
    return table


def _format(path: Path) -> str:
    if path.suffix.lower() not in LEDGER_FORMATS:
        raise ValueError(f"expected a file name that ends in {', '.join(LEDGER_FORMATS)}, got {path}: rename it")
    return LEDGER_FORMATS[path.suffix.lower()]


def _check(table: Table, source: str) -> None:
    missing = [name for name in NEEDED_COLUMNS if name not in table.colnames]
    if missing:
        raise ValueError(
            f"{source} is no line ledger: {', '.join(missing)} missing from {', '.join(table.colnames) or 'no columns'}"
        )


def _with_packages(form: str, action):
    """Result of the action; ModuleNotFoundError with the same message for every format that lacks a package."""
    try:
        return action()
    except (ImportError, IORegistryError) as error:
        package = {"hdf5": "h5py", "parquet": "pyarrow"}.get(form)
        if package is None:
            raise
        raise ModuleNotFoundError(
            f"tables in {form} need the package {package}: run `pip install {package}`, or choose .ecsv or .fits",
            name=package,
        ) from error


def _jsonable(value):
    """Numbers and arrays of numpy as JSON has them; other objects as text."""
    if isinstance(value, np.generic):
        return value.item()
    return value.tolist() if isinstance(value, np.ndarray) else str(value)
