"""Reading of line lists of every format into one table.

Does not live here: the formats (`vald`, `fixed_width`, `tables`), files and compression (`files`).
"""

from __future__ import annotations

import logging

import astropy.units as u
import numpy as np
from astropy.table import QTable, Table

from ..chemistry.strengths import HITRAN_TEMPERATURE, STELLAR_TEMPERATURE, predicted_strength
from ..spectra.wavelengths import vacuum_wavelength
from .files import LineListError, is_text, read_bytes, text_lines
from .fixed_width import HITRAN_RECORD, read_hitran, read_linemake
from .tables import from_table, is_arve, read_arve, read_table
from .vald import is_vald, read_vald

logger = logging.getLogger(__name__)

LIST_FORMATS = ("vald", "linemake", "hitran", "arve", "table")
"""Formats of `read_line_list`."""

USUAL_MEDIUM = {"linemake": "air"}
"""Customary medium of formats that do not record it; another medium may be given."""

SHORTEST_AIR_WAVELENGTH = 2000.0
"""Wavelength [Å] below which lists in air have vacuum wavelengths (VALD, Kurucz, MOOG)."""

LIST_DESCRIPTIONS = {
    "wavelength": "Vacuum wavelength",
    "original_wavelength": "Wavelength or wavenumber as in the file, in the medium of meta['original_medium']",
    "species": "Species, normalised",
    "strength": "Predicted strength at meta['strength_temperature']; see specutils_blase.chemistry.strengths",
    "log_gf": "log10 of statistical weight times oscillator strength",
    "excitation": "Energy of the lower level",
    "intensity": "HITRAN's intensity at 296 K, isotopic abundance included, for one molecule",
    "lower_energy": "Energy of the lower level",
    "damping_rad": "log10 of the radiative full width [1/s]",
    "damping_stark": "log10 of the Stark full width per electron in cm^3 [1/s cm^3] at 10^4 K",
    "damping_waals": "log10 of the van der Waals full width per hydrogen atom in cm^3 [1/s cm^3] at 10^4 K; or σ.α",
    "depth": "Central depth that the source predicts",
    "gamma_air": "Half width at half maximum for 1 atm of air at 296 K",
    "gamma_self": "Half width at half maximum for 1 atm of the molecule itself at 296 K",
    "n_air": "Exponent of temperature of gamma_air",
    "delta_air": "Shift for 1 atm of air",
}


def read_line_list(
    source, *, format: str | None = None, medium: str | None = None, temperature=None, gas_pressure=None
) -> QTable:
    """Read a list of spectral lines.

    Parameters
    ----------
    source : path-like or Table
        A file, which may be compressed (gzip, bzip2, xz, or a zip archive of one file); or a table with columns for
        wavelength and species (`tables.LIST_COLUMNS`). Nothing is ever downloaded.
    format : str, optional
        "vald" (extracts, short or long), "linemake" (MOOG), "hitran" (160-character records), "arve" (masks) or
        "table" (anything that astropy reads). By default it is recognised by its content.
    medium : "air" or "vacuum", optional
        Medium of the file's wavelengths. VALD's extracts, HITRAN and arve record it; linemake is in air. A table needs
        it here or in its ``meta["medium"]``. By custom, lists in air have vacuum wavelengths below 2000 Å.
    temperature, gas_pressure : Quantity or float, optional
        For the predicted strengths; see `predicted_strength`.

    Returns
    -------
    QTable
        In order of wavelength: wavelength [Å, vacuum], species, strength, the other columns of the format, and
        original_wavelength. Its meta has source, format, medium ("vacuum"), original_medium, strength_temperature [K].

    Raises
    ------
    LineListError
        If the file is not of the format, or damaged: names file, line and reason. It is a `ValueError`.
    OSError
        If there is no such file, or it may not be read.

    Examples
    --------
    >>> import astropy.units as u
    >>> from astropy.table import QTable
    >>> import specutils_blase as sb
    >>> table = QTable({"wavelength": [6562.8, 6564.6] * u.AA, "species": ["H 1", "H 1"]})
    >>> sb.read_line_list(table, medium="air")["wavelength"].round(2)
    <Quantity [6564.61, 6566.41] Angstrom>
    """
    if format is not None and format not in LIST_FORMATS:
        raise ValueError(f"format must be one of {', '.join(LIST_FORMATS)}, got {format!r}")
    if medium not in (None, "air", "vacuum"):
        raise ValueError(f"expected medium 'air' or 'vacuum', got {medium!r}")
    if isinstance(source, Table):
        table, stated_medium = from_table(source)
        source, format = source.meta.get("source", "a table"), "table"
    else:
        table, stated_medium, format = _read_file(source, format)
    table = _finished(table, stated_medium, medium, format, source)
    no_strength = "strength" not in table.colnames
    if no_strength and (
        {"log_gf", "excitation"} <= set(table.colnames) or {"intensity", "lower_energy"} <= set(table.colnames)
    ):
        table["strength"] = predicted_strength(table, temperature=temperature, gas_pressure=gas_pressure)
        default = HITRAN_TEMPERATURE if "intensity" in table.colnames else STELLAR_TEMPERATURE
        kelvin = default if temperature is None else u.Quantity(temperature, u.K).value
        table.meta["strength_temperature"] = float(kelvin)
    elif no_strength and "intensity" in table.colnames:
        table["strength"] = table["intensity"]
    elif no_strength and "depth" in table.colnames:
        # An opacity, as far as a depth determines it.
        table["strength"] = -np.log1p(-np.clip(table["depth"], 0.0, 1.0 - 1e-4)) * u.dimensionless_unscaled
    elif no_strength:
        logger.warning("%s: neither log gf nor intensity nor depth: all lines count as equally strong", source)
        table["strength"] = np.ones(len(table)) * u.dimensionless_unscaled
    first = ["wavelength", "species", "strength"]
    table = table[[*first, *(name for name in table.colnames if name not in first)]]
    for name in table.colnames:
        table[name].info.description = LIST_DESCRIPTIONS.get(name)
    logger.info("%s: %d lines of %d species", source, len(table), len(np.unique(table["species"])))
    return table


def _read_file(path, format: str | None) -> tuple[QTable, str | None, str]:
    readers = {"vald": read_vald, "linemake": read_linemake, "hitran": read_hitran, "arve": read_arve}
    content = read_bytes(path)
    lines = text_lines(content) if is_text(content) else None
    if lines is None and format not in (None, "table"):
        raise LineListError(path, "expected text, got binary data")
    format = "table" if lines is None else format or _recognised(lines)
    if lines is not None and format != "table":
        return *readers[format](path, lines), format
    return *from_table(read_table(path, content, lines), str(path)), "table"


def _recognised(lines: list[str]) -> str:
    """Format of a text file by its content."""
    if is_vald(lines):
        return "vald"
    if is_arve(lines):
        return "arve"
    data = [line for line in lines[:20] if line.strip() and not line.startswith("#")]
    if data and all(len(line) == HITRAN_RECORD for line in data[:3]) and data[0][:2].strip().isdigit():
        return "hitran"
    for line in data[:2]:  # the first may be MOOG's title
        try:
            numbers = [float(line[a : a + 10]) for a in range(0, 40, 10)]
        except ValueError:
            continue
        if np.isfinite(numbers).all():
            return "linemake"
    return "table"


def _finished(table: QTable, stated_medium: str | None, medium: str | None, format: str, source) -> QTable:
    """Vacuum wavelengths, order and meta."""
    if stated_medium and medium and stated_medium != medium:
        raise LineListError(
            source, f"expected wavelengths in {medium}, as asked for, but the format says {stated_medium}"
        )
    medium = stated_medium or medium or USUAL_MEDIUM.get(format)
    if medium is None:
        raise LineListError(source, "a table does not tell its medium: give medium='air' or medium='vacuum'")
    original = table["original_wavelength"]
    try:
        wavelength = np.array(vacuum_wavelength(original).to_value(u.AA))
        in_air = (wavelength >= SHORTEST_AIR_WAVELENGTH) & (medium == "air")
        if in_air.any():
            wavelength[in_air] = vacuum_wavelength(original[in_air], "air").to_value(u.AA)
    except ValueError as error:  # wavelengths that are none, or units
        raise LineListError(source, str(error)) from error
    table["wavelength"] = wavelength * u.AA
    table = table[np.argsort(wavelength, kind="stable")]
    table.meta |= {"source": str(source), "format": format, "medium": "vacuum", "original_medium": medium}
    return table
