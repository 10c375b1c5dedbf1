"""Line lists in columns of fixed width: linemake (MOOG) and HITRAN's 160-character records.

Does not live here: files and their compression (`files`), predicted strengths (`strengths`).
"""

from __future__ import annotations

import astropy.units as u
import numpy as np
from astropy.table import QTable

from ..chemistry.species import HITRAN_MOLECULES, normalise_species
from ..chemistry.strengths import INTENSITY_UNIT
from .files import LineListError, check_range, float_column

_LINEMAKE = {"wavelength": (0, 10), "code": (10, 20), "excitation": (20, 30), "log_gf": (30, 40)}

# Field → first and one past last column, Rothman et al. (2005), JQSRT 96, 139, table 1.
_HITRAN = {
    "molecule": (0, 2),
    "isotopologue": (2, 3),
    "wavenumber": (3, 15),
    "intensity": (15, 25),
    "einstein_a": (25, 35),
    "gamma_air": (35, 40),
    "gamma_self": (40, 45),
    "lower_energy": (45, 55),
    "n_air": (55, 59),
    "delta_air": (59, 67),
}
HITRAN_RECORD = 160
"""Characters of a record."""

_ISOTOPOLOGUES = {"0": 10, "A": 11, "B": 12}


def read_linemake(path, lines: list[str]) -> tuple[QTable, None]:
    """linemake or MOOG: wavelength [Å], species code, excitation [eV], log gf, in ten characters each; then comments.

    A first line that holds no numbers is MOOG's title. A negative wavelength marks a component of a blend, as in MOOG's
    driver `blends`. MOOG also takes excitations in cm⁻¹, and gf instead of its logarithm: neither is taken here.

    Returns
    -------
    table : QTable
        species, log_gf, excitation; and the original wavelength.
    medium : None
        Not said; by custom air.
    """
    rows = [k for k, line in enumerate(lines) if line.strip() and not line.startswith("#")]
    if rows and not _is_linemake(lines[rows[0]]):
        rows = rows[1:]  # the title
    if not rows:
        raise LineListError(path, "expected lines of wavelength, species code, excitation and log gf, got none")
    text = _columns([lines[k] for k in rows], _LINEMAKE, 40)
    numbers = np.array(rows) + 1
    parts = {name: text[name] for name in ("wavelength", "excitation", "log_gf")}
    values = {name: float_column(path, words, numbers, name.replace("_", " ")) for name, words in parts.items()}
    values["wavelength"] = np.abs(values["wavelength"])
    check_range(path, values["wavelength"], 1.0, 1e8, numbers, "a wavelength in Å")
    check_range(path, values["excitation"], 0.0, 50.0, numbers, "an excitation in eV")
    check_range(path, values["log_gf"], -30.0, 10.0, numbers, "log gf")
    table = QTable()
    table["original_wavelength"] = values["wavelength"] * u.AA
    table["species"] = species_column(path, text["code"], numbers)
    table["log_gf"] = values["log_gf"]
    table["excitation"] = values["excitation"] * u.eV
    return table, None


def _is_linemake(line: str) -> bool:
    try:
        return all(np.isfinite(float(line[a:b])) for a, b in _LINEMAKE.values())
    except ValueError:
        return False


def read_hitran(path, lines: list[str]) -> tuple[QTable, str]:
    """HITRAN's 160-character records, HITRAN2004 and later.

    Returns
    -------
    table : QTable
        species, isotopologue, wavenumber [cm⁻¹, vacuum], intensity at 296 K [cm/molecule], einstein_a [1/s],
        gamma_air and gamma_self (half widths at half maximum) [cm⁻¹, for 1 atm], lower_energy [cm⁻¹], n_air, delta_air
        (shift) [cm⁻¹, for 1 atm]. A lower energy of -1 means that it is unknown: NaN.
    medium : str
        "vacuum".
    """
    numbers = np.array([k for k, line in enumerate(lines) if line.strip()]) + 1
    if not len(numbers):
        raise LineListError(path, f"expected records of {HITRAN_RECORD} characters, got none")
    records = [lines[k - 1] for k in numbers]
    wrong = next(
        (k for k, record in enumerate(records) if len(record.rstrip()) > HITRAN_RECORD or len(record) < 67), None
    )
    if wrong is not None:
        length = len(records[wrong])
        raise LineListError(path, f"expected a record of {HITRAN_RECORD} characters, got {length}", int(numbers[wrong]))
    text = _columns(records, _HITRAN, HITRAN_RECORD)
    values = {
        name: float_column(path, text[name], numbers, name.replace("_", " "))
        for name in _HITRAN
        if name not in ("isotopologue", "n_air", "delta_air", "gamma_self", "einstein_a")
    }
    values |= {
        name: float_column(path, text[name], numbers, name.replace("_", " "), blank=0.0)
        for name in ("n_air", "delta_air", "gamma_self", "einstein_a")
    }
    check_range(path, values["molecule"], 1, len(HITRAN_MOLECULES), numbers, "a molecule number of HITRAN")
    check_range(path, values["wavenumber"], 1e-6, 1e8, numbers, "a wavenumber in cm⁻¹")
    check_range(path, values["intensity"], 0.0, 1.0, numbers, "an intensity in cm/molecule")
    for name in ("gamma_air", "gamma_self"):
        check_range(path, values[name], 0.0, 100.0, numbers, "a half width in cm⁻¹")
    energy = np.where(values["lower_energy"] < 0, np.nan, values["lower_energy"])
    table = QTable()
    names = np.array(["", *HITRAN_MOLECULES])
    names = np.array([normalise_species(name) if name else "" for name in names])
    table["original_wavelength"] = values["wavenumber"] / u.cm
    table["species"] = names[values["molecule"].astype(int)]
    table["isotopologue"] = _isotopologue_column(path, text["isotopologue"], numbers)
    table["intensity"] = values["intensity"] * INTENSITY_UNIT
    table["einstein_a"] = values["einstein_a"] / u.s
    table["gamma_air"] = values["gamma_air"] / u.cm
    table["gamma_self"] = values["gamma_self"] / u.cm
    table["lower_energy"] = energy / u.cm
    table["n_air"] = values["n_air"]
    table["delta_air"] = values["delta_air"] / u.cm
    return table, "vacuum"


def _columns(lines: list[str], layout: dict[str, tuple[int, int]], width: int) -> dict[str, np.ndarray]:
    """Columns of text of lines of equal length, cut from a matrix of characters without a loop over lines."""
    matrix = np.array([line[:width].ljust(width) for line in lines], dtype=f"U{width}")
    characters = matrix.view("U1").reshape(len(lines), width)
    return {
        name: np.ascontiguousarray(characters[:, low:high]).view(f"U{high - low}").ravel()
        for name, (low, high) in layout.items()
    }


def species_column(path, words, numbers) -> np.ndarray:
    """Normalised species from their names or codes; each distinct name is parsed once."""
    names, first, which = np.unique(np.char.strip(np.asarray(words, dtype="U")), return_index=True, return_inverse=True)
    result = []
    for name, row in zip(names, first, strict=True):
        try:
            result.append(normalise_species(str(name)))
        except ValueError as error:
            raise LineListError(path, str(error), int(np.asarray(numbers)[row])) from None
    return np.array(result)[which]


def _isotopologue_column(path, words, numbers) -> np.ndarray:
    names, first, which = np.unique(words, return_index=True, return_inverse=True)
    result = []
    for name, row in zip(names, first, strict=True):
        number = _ISOTOPOLOGUES.get(name, int(name) if name.isascii() and name.isdigit() else None)
        if number is None:
            raise LineListError(path, f"expected an isotopologue 0-9, A or B, got {str(name)!r}", int(numbers[row]))
        result.append(number)
    return np.array(result, dtype=np.int16)[which]
