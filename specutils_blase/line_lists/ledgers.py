r"""From a line list to a ledger: opacities and widths of a homogeneous layer of gas.

Area a = (π e²/m_e c²) N_H λ X for lines with log gf, S N λ² for HITRAN's (N the column density); Gaussian
σ² = (λ/c)² (kT/m + ξ²/2); Lorentzian γ = λ²Γ/4πc with Γ the sum of radiative, Stark and van der Waals full widths, or
HITRAN's pressure broadening. One layer is no stellar atmosphere, but a start for a fit to data (Cargile et al., FAL,
do the same with a model's line list).

Does not live here: the ledger itself (`ledger.table`), predicted strengths (`chemistry.strengths`).
"""

from __future__ import annotations

import math

import astropy.units as u
import numpy as np
from astropy import constants as const
from astropy.table import QTable
from scipy.special import gamma as gamma_function
from scipy.special import voigt_profile

from ..chemistry.elements import ELEMENTS
from ..chemistry.equilibrium import K_B, Equilibrium, solar_gas
from ..chemistry.species import composition, species_mass
from ..chemistry.strengths import (
    GAS_PRESSURE,
    HITRAN_TEMPERATURE,
    STANDARD_COLUMNS,
    STELLAR_TEMPERATURE,
    predicted_strength,
)
from ..spectra.quantities import to_kms, to_number, to_teff

HYDROGEN_COLUMN = 1e24
"""Default column of hydrogen nuclei [cm⁻²] above the continuum of a solar photosphere."""

TELLURIC_PRESSURE = 5e4
"""Mean pressure [Pa] of the molecules of a well-mixed column of the Earth's atmosphere."""

_C = const.c.si.value
_BOHR = const.a0.si.value
_HC_EV = (const.h * const.c).to_value(u.eV * u.AA)
_ELECTRON_RADIUS_CM = (const.e.esu**2 / (const.m_e * const.c**2)).to_value(u.cm)  # classical radius of the electron
_RYDBERG_EV = 13.6057


def to_ledger(
    line_list: QTable,
    *,
    temperature=None,
    microturbulence=None,
    column=None,
    gas_pressure=None,
    abundances: dict[str, float] | None = None,
    component: str | None = None,
    wavelength_range=None,
    weakest: float = 1e-3,
) -> QTable:
    """A ledger from a line list, for `ledger.emulator_from_ledger` and `specutils_blase.fit`.

    Parameters
    ----------
    line_list : QTable
        From `read_line_list`: with log gf and excitation, or HITRAN's; or with any strength.
    temperature : Quantity or float, optional
        In K: 5000 K, for HITRAN 296 K, by default.
    microturbulence : Quantity or float, optional
        In km/s: 1 km/s, for HITRAN 0, by default.
    column : Quantity, float or dict, optional
        Column density, in cm⁻² where it is a bare number: of hydrogen nuclei, 10²⁴ cm⁻² by default; of each of HITRAN's
        molecules, a dict such as ``{"H2O": 1.7e22}`` (a millimetre of precipitable water has 3.3·10²¹), by default
        `chemistry.strengths.STANDARD_COLUMNS`. For lists with neither log gf nor intensity, the factor from strength
        to an area in Å.
    gas_pressure : Quantity or float, optional
        In Pa: 10⁴ Pa, for HITRAN 5·10⁴ Pa, by default.
    abundances : dict, optional
        See `predicted_strength`.
    component : str, optional
        "star" or "telluric": by default telluric for HITRAN's lines, star for others.
    wavelength_range : (Quantity, Quantity), optional
        Vacuum wavelengths (bare numbers: Å) outside which lines are left out.
    weakest : float
        Central opacity below which lines are left out.

    Returns
    -------
    QTable
        id, component, species, center, area, sigma, gamma, depth, and log_gf or strength for reference. Its meta has
        flux_scale ("log"), medium, settings, and wavelength_range: the one given, or that of the list.

    Raises
    ------
    ValueError
        If the list lacks a column, or no line is left.

    Examples
    --------
    >>> import astropy.units as u
    >>> from astropy.table import QTable
    >>> import specutils_blase as sb
    >>> known = {"wavelength": [8690.0, 8695.5] * u.AA, "species": ["Fe I", "Ti I"]}
    >>> line_list = QTable({**known, "log_gf": [-4.1, -2.6], "excitation": [2.2, 0.8] * u.eV})
    >>> ledger = sb.line_lists.to_ledger(line_list, temperature=4800 * u.K)
    >>> print(ledger["depth"].round(2))
    [0.71 0.29]
    """
    columns = set(line_list.colnames)
    if not {"wavelength", "species"} <= columns:
        raise ValueError(f"expected a line list with wavelength and species, got {', '.join(line_list.colnames)}")
    hitran = {"intensity", "lower_energy", "gamma_air"} <= columns
    if wavelength_range is not None:
        low, high = (u.Quantity(value, u.AA).value for value in wavelength_range)
        inside = (line_list["wavelength"].to_value(u.AA) >= low) & (line_list["wavelength"].to_value(u.AA) <= high)
        line_list = line_list[inside]
        span = [float(low), float(high)]
    if not len(line_list):
        raise ValueError("the line list has no lines" + ("" if wavelength_range is None else f" in {low:g}-{high:g} Å"))
    default = (HITRAN_TEMPERATURE, 0.0, TELLURIC_PRESSURE) if hitran else (STELLAR_TEMPERATURE, 1.0, GAS_PRESSURE)
    kelvin = default[0] if temperature is None else to_teff(temperature, "temperature")
    turbulence = default[1] if microturbulence is None else to_kms(microturbulence, "microturbulence")
    pascal = default[2] if gas_pressure is None else to_number(gas_pressure, u.Pa, "gas_pressure", True)
    center = line_list["wavelength"].to_value(u.AA)
    if wavelength_range is None:
        span = [float(center.min()), float(center.max())]
    if hitran:
        area = _telluric_area(line_list, center, kelvin, column)
        gamma, center = _pressure_width(line_list, center, kelvin, pascal)
    elif {"log_gf", "excitation"} <= columns:
        strength = predicted_strength(line_list, temperature=kelvin, gas_pressure=pascal, abundances=abundances)
        density = HYDROGEN_COLUMN if column is None else to_number(column, u.cm**-2, "column", True)
        area = math.pi * _ELECTRON_RADIUS_CM * density * center * strength.to_value(u.AA) * 1e-8
        gas = Equilibrium(kelvin, pascal, abundances) if abundances else solar_gas(kelvin, pascal)
        gamma = _stellar_width(line_list, center, gas)
    elif "strength" in columns and column is not None:
        area = (u.Quantity(line_list["strength"]) * u.Quantity(column)).to_value(u.AA, u.dimensionless_angles())
        gamma = _C * 1e10 / (4.0 * math.pi) * _classical(center) * (center / (_C * 1e10)) ** 2
    else:
        raise ValueError("expected a line list with log_gf and excitation, HITRAN's columns, or strength and a column=")
    names, which = np.unique(np.asarray(line_list["species"]), return_inverse=True)
    mass = np.array([species_mass(str(name)) for name in names])[which] * const.u.si.value
    sigma = center * np.sqrt(K_B * kelvin / mass + 0.5 * (1e3 * turbulence) ** 2) / _C
    peak = area * voigt_profile(0.0, sigma, gamma)
    keep = np.isfinite(peak) & (peak >= weakest)
    if not keep.any():
        largest = np.nanmax(peak, initial=0.0)
        raise ValueError(
            f"no line reaches a central opacity of {weakest:g}, the strongest has {largest:.2g}: more column?"
        )
    settings = {"temperature": kelvin, "microturbulence": turbulence, "gas_pressure": pascal, "weakest": weakest}
    component = component or ("telluric" if hitran else "star")
    ledger = _ledger(line_list, keep, center, area, sigma, gamma, peak, component)
    source = {"source": line_list.meta.get("source", ""), "settings": settings}
    ledger.meta = {"flux_scale": "log", "medium": "vacuum", "wavelength_range": span, **source}
    return ledger


def _ledger(line_list, keep, center, area, sigma, gamma, peak, component) -> QTable:
    order = np.flatnonzero(keep)[np.argsort(center[keep])]
    table = QTable()
    table["id"] = np.arange(order.size)
    table["component"] = np.full(order.size, component)
    table["species"] = np.asarray(line_list["species"])[order]
    for name, values in (("center", center), ("area", area), ("sigma", sigma), ("gamma", gamma)):
        table[name] = values[order] * u.AA
    table["depth"] = -np.expm1(-peak[order])
    for name in ("log_gf", "excitation", "intensity", "lower_energy"):
        if name in line_list.colnames:
            table[name] = line_list[name][order]
    return table


def _telluric_area(line_list, center, kelvin, column) -> np.ndarray:
    species = np.asarray(line_list["species"])
    names = [str(name) for name in np.unique(species)]
    if column is not None and not isinstance(column, dict):
        if len(names) > 1:
            raise ValueError(f"give column={{molecule: molecules per cm²}} for {', '.join(names)}")
        column = {names[0]: column}
    columns = STANDARD_COLUMNS | (column or {})
    missing = [name for name in names if name not in columns]
    if missing:
        raise ValueError(f"give column={{molecule: molecules per cm²}} for {', '.join(missing)}")
    density = np.zeros(len(line_list))
    for name in names:
        density[species == name] = to_number(columns[name], u.cm**-2, f"column of {name}", True)
    intensity = predicted_strength(line_list, temperature=kelvin).to_value(u.cm)
    return intensity * density * center**2 * 1e-8  # [cm⁻¹] → [Å]


def _pressure_width(line_list, center, kelvin, pascal) -> tuple[np.ndarray, np.ndarray]:
    """Half width at half maximum [Å] in air, and the centre shifted by pressure."""
    atm = pascal / const.atm.si.value
    unit = u.cm**-1  # for 1 atm
    exponent = np.asarray(line_list["n_air"]) if "n_air" in line_list.colnames else 0.7
    width = line_list["gamma_air"].to_value(unit) * (HITRAN_TEMPERATURE / kelvin) ** exponent * atm
    shift = line_list["delta_air"].to_value(unit) * atm if "delta_air" in line_list.colnames else 0.0
    center = 1e8 / (1e8 / center + shift)
    return width * center**2 * 1e-8, center


def _stellar_width(line_list, center, gas: Equilibrium) -> np.ndarray:
    """Half width at half maximum [Å] from the damping constants of the list, classical or Unsöld's where missing."""
    kelvin = gas.temperature
    missing = np.full(len(line_list), np.nan)
    rad, stark, waals = (
        np.asarray(line_list[name], dtype=float) if name in line_list.colnames else missing
        for name in ("damping_rad", "damping_stark", "damping_waals")
    )
    full = np.where(np.isfinite(rad), 10.0 ** np.nan_to_num(rad), _classical(center))
    electrons = 1e-6 * gas.electron_density
    # Quadratic Stark broadening hardly shows in cool stars: zero where the list has none.
    full = full + np.where(np.isfinite(stark), 10.0 ** np.nan_to_num(stark, nan=-99.0), 0.0) * electrons * (
        kelvin / 1e4
    ) ** (1 / 6)
    hydrogen = 1e-6 * gas.density("H I")
    distinct, which = np.unique(np.asarray(line_list["species"]), return_inverse=True)
    names = [str(name) for name in distinct]
    unsold = _unsold(line_list, center, names, which)
    cross_section = np.nan_to_num(waals) > 0
    constant = (
        10.0 ** np.where(np.isfinite(waals) & ~cross_section, np.nan_to_num(waals), unsold) * (kelvin / 1e4) ** 0.3
    )
    mass = np.array([species_mass(name) for name in names])[which]
    constant = np.where(cross_section, _anstee_omara(np.nan_to_num(waals), mass, kelvin), constant)
    return (full + constant * hydrogen) * center**2 / (4.0 * math.pi * _C * 1e10)


def _classical(center: np.ndarray) -> np.ndarray:
    """Classical damping 8π²r_e c/3λ² = 0.2223·10¹⁶/λ² [1/s, λ in Å]."""
    return 0.2223e16 / center**2


def _unsold(line_list, center, names, which) -> np.ndarray:
    """log10 of the van der Waals full width per hydrogen atom and cm³ at 10⁴ K: Unsöld (1955), Gray (2005) eq. 11.30.

    log Γ/n = 6.33 + 0.4 log(r_u² − r_l²) + 0.3 log T + log k, with r² = 5/2 n*⁴/Z²; nothing (−99) for molecules and for
    levels above the ionisation limit.
    """
    energy = np.full(len(names), np.nan)
    core = np.ones(len(names))
    for k, name in enumerate(names):
        atoms, charge = composition(name)
        symbol = next(iter(atoms))
        if sum(atoms.values()) == 1 and symbol in ELEMENTS and charge < 2:
            energy[k], core[k] = ELEMENTS[symbol].ionization_energy[charge], charge + 1.0
    limit, core = energy[which], core[which]
    lower = line_list["excitation"].to_value(u.eV)
    upper = lower + _HC_EV / center
    with np.errstate(invalid="ignore", divide="ignore"):
        radii = 2.5 * (_RYDBERG_EV * core) ** 2 * (1.0 / (limit - upper) ** 2 - 1.0 / (limit - lower) ** 2)
        bound = (upper < limit) & (radii > 0) & np.isfinite(limit)
        value = 6.33 + 0.4 * np.log10(np.where(bound, radii, 1.0)) + 0.3 * 4.0 + math.log10(1e7 * K_B)
    return np.where(bound, value, -99.0)


def _anstee_omara(packed, mass, kelvin) -> np.ndarray:
    """Full width per hydrogen atom and cm³ at this temperature from σ.α: Anstee & O'Mara (1995), MNRAS 276, 859."""
    cross_section = np.floor(packed) * (_BOHR * 1e2) ** 2
    alpha = packed - np.floor(packed)
    reduced = mass * 1.008 / (mass + 1.008) * const.u.si.value
    speed = 1e2 * np.sqrt(8.0 * K_B * kelvin / (math.pi * reduced))
    reference = 1e6  # cm/s
    half = (4.0 / math.pi) ** (0.5 * alpha) * gamma_function(2.0 - 0.5 * alpha) * reference * cross_section
    return 2.0 * half * (speed / reference) ** (1.0 - alpha)
