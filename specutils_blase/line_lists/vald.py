"""VALD's extracts: "extract all", "extract element" and "extract stellar", short and long format.

The format is that of VALD3 (https://www.astro.uu.se/valdwiki/select_output, presformat_output): a header that names
medium and units, then one line of data each, or four in the long format. Does not live here: files (`files`), strengths
(`strengths`).
"""

from __future__ import annotations

import csv
import logging
import re

import astropy.units as u
import numpy as np
from astropy.table import QTable

from .files import LineListError, check_range, float_column
from .fixed_width import species_column

logger = logging.getLogger(__name__)

_HEADER = re.compile(r"WL_(air|vac)\(\s*([^)]*?)\s*\)")
_ENERGY = re.compile(r"(?:E_low|Excit)\(\s*([^)]*?)\s*\)")
_WAVELENGTH_UNITS = {"A": u.AA, "nm": u.nm, "cm^-1": u.cm**-1}
_ENERGY_UNITS = {"eV": u.eV, "cm^-1": u.cm**-1}

_DAMPING = ("damping_rad", "damping_stark", "damping_waals")
_SHORT = ("species", "wavelength", "excitation", "log_gf", *_DAMPING, "lande")
_SHORT_STELLAR = ("species", "wavelength", "excitation", "vmic", "log_gf", *_DAMPING, "lande", "depth")
_LEVELS = ("excitation", "j_lower", "upper_energy", "j_upper")
_LONG = ("species", "wavelength", "log_gf", *_LEVELS, "lande_lower", "lande_upper", "lande", *_DAMPING)
_LONG_STELLAR = (*_LONG, "depth")

# Species and wavelength; and the end of the data: the model's name and abundances, remarks, references.
_DATA = re.compile(r"\s*'[A-Za-z0-9]+ +\d+'\s*,\s*[-+.\d]")
_END = re.compile(r"\s*(?:\*|References|'[^',]*'\s*,?\s*$|'[A-Z][a-z]?\s*:)")

HEADER_LINES = 60
"""First lines of a file among which the header must be, after the request, warnings and the stellar summary."""


def is_vald(lines: list[str]) -> bool:
    """Whether the header of an extract is among the first lines."""
    return any(_HEADER.search(line) for line in lines[:HEADER_LINES])


def read_vald(path, lines: list[str]) -> tuple[QTable, str]:
    """An extract of VALD.

    Returns
    -------
    table : QTable
        species, log_gf, excitation of the lower level, damping_rad, damping_stark, damping_waals (log10 of the full
        width in 1/s, the last two for one perturber per cm³ at 10⁴ K; above 20, damping_waals is a cross-section and
        exponent of Anstee & O'Mara; NaN where VALD has none), lande, and depth in stellar extracts. Its meta has
        `isotopic_scaling` where the file tells whether log gf contains the solar isotopic ratios.
    medium : str
        Medium in the header.
    """
    header_line = next((k for k, line in enumerate(lines[:HEADER_LINES]) if _HEADER.search(line)), None)
    if header_line is None:
        raise LineListError(path, "expected a VALD extract, whose header names WL_air(A) or WL_vac(A), found none")
    header = lines[header_line]
    medium, wavelength_unit, energy_unit = _units(path, header, header_line + 1)
    stellar = header_line > 0 and "depth" in (header + lines[header_line - 1])
    long = "E_low" in header
    names = {(0, 0): _SHORT, (0, 1): _SHORT_STELLAR, (1, 0): _LONG, (1, 1): _LONG_STELLAR}[long, stellar]
    rows, numbers, scaling = _rows(path, lines, header_line + 1, names, long)
    words = dict(zip(names, zip(*rows, strict=True), strict=True))
    values = {
        name: float_column(path, words[name], numbers, name.replace("_", " "))
        for name in names
        if name not in ("species", "vmic", "j_lower", "j_upper", "lande_lower", "lande_upper")
    }
    wavelength = values["wavelength"] * wavelength_unit
    check_range(path, values["wavelength"], 1e-3, 1e9, numbers, "a wavelength")
    check_range(path, values["log_gf"], -30.0, 10.0, numbers, "log gf")
    excitation = _energy(values["excitation"], energy_unit)
    # Predicted levels may stand with a negative sign in the sources, and molecules' a little below their ground level.
    check_range(path, excitation, -1.0, 400.0, numbers, "an excitation in eV")
    table = QTable()
    table["original_wavelength"] = wavelength
    table["species"] = species_column(path, words["species"], numbers)
    table["log_gf"] = values["log_gf"]
    table["excitation"] = np.abs(excitation) * u.eV
    if "upper_energy" in values:
        table["upper_energy"] = _energy(values["upper_energy"], energy_unit) * u.eV
    for name in _DAMPING:
        table[name] = np.where(values[name] == 0, np.nan, values[name])
    table["lande"] = np.where(values["lande"] >= 99, np.nan, values["lande"])
    if stellar:
        check_range(path, values["depth"], 0.0, 1.0, numbers, "a central depth")
        table["depth"] = values["depth"]
    if scaling is not None:
        table.meta["isotopic_scaling"] = scaling
        if not scaling:
            logger.warning("%s: log gf without isotopic ratios, so that lines of rare isotopes count as strong", path)
    return table, medium


def _units(path, header: str, line: int):
    wavelength = _HEADER.search(header)
    if wavelength is None:
        raise LineListError(path, f"expected a column WL_air or WL_vac, got {header.strip()!r}", line)
    medium, wavelength_unit = wavelength.groups()
    energy = _ENERGY.search(header)
    if wavelength_unit not in _WAVELENGTH_UNITS:
        raise LineListError(path, f"expected wavelengths in A, nm or cm^-1, got {wavelength_unit!r}", line)
    if energy is None or energy[1] not in _ENERGY_UNITS:
        got = "none" if energy is None else repr(energy[1])
        raise LineListError(path, f"expected energies in eV or cm^-1 in the header, got {got}", line)
    return {"air": "air", "vac": "vacuum"}[medium], _WAVELENGTH_UNITS[wavelength_unit], _ENERGY_UNITS[energy[1]]


def _energy(values: np.ndarray, unit: u.UnitBase) -> np.ndarray:
    return (values * unit).to_value(u.eV, u.spectral())


def _rows(path, lines: list[str], start: int, names: tuple[str, ...], long: bool):
    """Fields of every data line, their line numbers, and whether the file says that isotopes are in log gf."""
    rows, numbers, scaling = [], [], None
    k = start
    while k < len(lines):
        line = lines[k]
        if not line.strip() or line.startswith("#"):
            k += 1
            continue
        if _END.match(line):
            break
        if not _DATA.match(line):
            raise LineListError(path, f"expected a transition such as 'Fe 1', 5000.1235, ..., got {line[:40]!r}", k + 1)
        try:
            row = next(csv.reader([line], quotechar="'", skipinitialspace=True))
        except csv.Error as error:
            raise LineListError(path, f"expected fields separated by commas ({error})", k + 1) from None
        if len(row) < len(names):
            raise LineListError(path, f"expected {len(names)} fields ({', '.join(names)}), got {len(row)}", k + 1)
        rows.append(row[: len(names)])
        numbers.append(k + 1)
        k += 4 if long else 1
        if long and k > len(lines):
            raise LineListError(path, "expected four lines for each transition, the file ends within one", len(lines))
    if not rows:
        raise LineListError(path, "expected lines of data after the header, such as 'Fe 1', 5000.1235, ..., got none")
    if k >= len(lines):
        # Of an extract that was cut off, nothing else would tell.
        logger.warning("%s ends without references after %d transitions: is it complete?", path, len(rows))
    for line in lines[k:]:
        if "oscillator strengths were" in line:
            scaling = "NOT scaled" not in line
    return rows, numbers, scaling
