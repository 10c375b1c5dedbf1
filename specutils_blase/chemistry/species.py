"""Names of species, written one way: "Fe I", "Ti II", "CN", "H2O".

Does not live here: their masses and densities (`elements`, `equilibrium`).
"""

from __future__ import annotations

import re
from functools import lru_cache

from .elements import ELEMENTS, SYMBOLS

HITRAN_MOLECULES = (
    "H2O CO2 O3 N2O CO CH4 O2 NO SO2 NO2 NH3 HNO3 OH HF HCl HBr HI ClO OCS H2CO HOCl N2 HCN CH3Cl H2O2 C2H2 C2H6 PH3 "
    "COF2 SF6 H2S HCOOH HO2 O ClONO2 NO+ HOBr C2H4 CH3OH CH3Br CH3CN CF4 C4H2 HC3N H2 CS SO3 C2N2 COCl2 SO CH3F GeH4 "
    "CS2 CH3I NF3"
).split()
"""Names of HITRAN's molecules, in order of their numbers from 1 on (https://hitran.org/docs/molec-meta)."""

_STELLAR = (
    "C2 CN CH NH CaH MgH SiH FeH CrH AlH TiH NaH NiH MnH SH PH TiO VO ZrO YO LaO ScO AlO SiO MgO CaO FeO SiS TiS C3"
)
MOLECULES = (frozenset(HITRAN_MOLECULES) | frozenset(_STELLAR.split())) - frozenset(SYMBOLS)
"""Formulas that are molecules although their capitals also spell an element (CO, HF, NO)."""

_ROMAN = ((10, "X"), (9, "IX"), (5, "V"), (4, "IV"), (1, "I"))
_ATOM = re.compile(r"([A-Za-z]{1,2})\s*(?:[ _]\s*(\d{1,2}|[IVXivx]{1,6}))?")
_FORMULA = re.compile(r"(?:[A-Z][a-z]?\d{0,2}){1,8}")
_PART = re.compile(r"([A-Z][a-z]?)(\d*)")
# Metals come first, then in this order: SiC, CN, CO, NH, OH, but HF and HCl.
_ORDER = {
    symbol: rank for rank, symbol in enumerate(("Si", "B", "P", "C", "S", "N", "O", "H", "I", "Br", "Cl", "F"), 1)
}


@lru_cache(maxsize=4096)
def normalise_species(name: str) -> str:
    """A species as "Fe I", "Ti II" (spectroscopic stage) for atoms and "CN", "H2O", "NO+" for molecules.

    Parameters
    ----------
    name : str
        "Fe 1", "FE 1", "Fe I", "Fe_I", "Fe" (taken as neutral), "CN 1", "(12)C(14)N", or a MOOG code: "26.0" (Fe I),
        "26.1", "607.0" (CN), "56.1137" (with isotopes, which are dropped).

    Returns
    -------
    str
        The normalised name.

    Raises
    ------
    ValueError
        If it is none of these.

    Examples
    --------
    >>> import specutils_blase as sb
    >>> [sb.line_lists.normalise_species(name) for name in ("FE 1", "26.1", "607.0")]
    ['Fe I', 'Fe II', 'CN']
    """
    text = re.sub(r"\(\d+\)", "", str(name).strip().strip("'\"")).strip()
    if re.fullmatch(r"\d{1,8}(\.\d*)?", text):
        return _from_code(text)
    formula, _, stage = text.rpartition(" ") if re.search(r"\s\d+$", text) else (text, "", "")
    formula = formula.strip()
    if formula in MOLECULES:
        return formula + "+" * (int(stage or 1) - 1)
    atom = _ATOM.fullmatch(text)
    if atom and (symbol := _symbol(atom[1])):
        return f"{symbol} {_roman(_stage_number(atom[2] or '1', name))}"
    if _FORMULA.fullmatch(formula) and all(symbol in SYMBOLS for symbol, _ in _PART.findall(formula)):
        return formula + "+" * (int(stage or 1) - 1)
    raise ValueError(
        f"expected a species such as 'Fe 1', 'Ti II', 'CN', 'H2O' or a MOOG code such as 26.0, got {name!r}"
    )


def _symbol(text: str) -> str | None:
    """Symbol of an element, whose capitals may be wrong (VALD-EMS wrote FE 3)."""
    return next((form for form in (text, text.capitalize()) if form in SYMBOLS), None)


def _stage_number(text: str, name: str) -> int:
    if text.isdigit():
        number = int(text)
    else:
        number = next((n for n in range(1, 31) if _roman(n) == text.upper()), 0)
    if not 1 <= number <= 30:
        raise ValueError(f"expected an ionisation stage between 1 (neutral) and 30, got {text!r} in {name!r}")
    return number


def _roman(number: int) -> str:
    text = ""
    for value, digits in _ROMAN:
        while number >= value:
            text, number = text + digits, number - value
    return text


def _from_code(code: str) -> str:
    """MOOG: atoms Z.i with i the charge, molecules the numbers of their atoms in pairs of digits; then isotopes."""
    digits, _, decimals = code.partition(".")
    if len(digits) <= 2:
        numbers = [int(digits)]
    else:
        digits = digits.zfill(2 * ((len(digits) + 1) // 2))
        numbers = [int(digits[k : k + 2]) for k in range(0, len(digits), 2)]
    if not all(1 <= number <= len(SYMBOLS) for number in numbers):
        raise ValueError(f"expected a MOOG species code made of atomic numbers 1 to {len(SYMBOLS)}, got {code!r}")
    charge = int(decimals[:1] or 0)
    symbols = [SYMBOLS[number - 1] for number in numbers]
    if len(symbols) == 1:
        return f"{symbols[0]} {_roman(charge + 1)}"
    counts: dict[str, int] = {}
    for symbol in sorted(symbols, key=lambda s: _ORDER.get(s, 0)):
        counts[symbol] = counts.get(symbol, 0) + 1
    if counts == {"O": 1, "H": 2}:
        return "H2O"  # the one triatomic molecule of MOOG's lists, written as everyone does
    return "".join(f"{symbol}{count if count > 1 else ''}" for symbol, count in counts.items()) + "+" * charge


@lru_cache(maxsize=4096)
def composition(species: str) -> tuple[dict[str, int], int]:
    """Atoms of a normalised species and its charge: "Ti II" → ({"Ti": 1}, 1)."""
    symbol, _, stage = species.partition(" ")
    if stage:
        return {symbol: 1}, _stage_number(stage, species) - 1
    atoms: dict[str, int] = {}
    for symbol, count in _PART.findall(species):
        atoms[symbol] = atoms.get(symbol, 0) + int(count or 1)
    return atoms, species.count("+")


def species_mass(species: str) -> float:
    """Mass of a normalised species [u], NaN for elements that the Sun has not."""
    atoms, _ = composition(species)
    return sum(ELEMENTS[symbol].mass * count if symbol in ELEMENTS else float("nan") for symbol, count in atoms.items())
