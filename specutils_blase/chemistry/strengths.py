r"""Predicted strengths of the lines in a list.

For atoms and molecules with log gf, the strength is what one nucleus of hydrogen contributes,

.. math:: X = \frac{n}{U\,n_H}\, gf\, λ\, 10^{-θχ} (1 - e^{-hc/λkT}), \quad θ = 5040/T,

in Å, with the species' density over its partition function from chemical equilibrium (`equilibrium`). A weak line's
equivalent width is W = (π e²/m_e c²) N_H λ X, so that strengths compare between species and the reduced widths W/λ go
as X. For HITRAN's lines it is their intensity S(T) in cm per molecule.

Does not live here: the identification of lines (`line_lists.identification`), profiles (`line_lists.ledgers`).
"""

from __future__ import annotations

import logging
import math

import astropy.units as u
import numpy as np
from astropy import constants as const

from ..spectra.quantities import to_number, to_teff
from .equilibrium import Equilibrium, solar_gas
from .species import composition

logger = logging.getLogger(__name__)

STELLAR_TEMPERATURE = 5000.0
"""Temperature [K] of predicted strengths where none is given."""

GAS_PRESSURE = 1e4
"""Gas pressure [Pa] of a dwarf's photosphere, where none is given; a giant's is ten to a hundred times less."""

HITRAN_TEMPERATURE = 296.0
"""Reference temperature [K] of HITRAN's intensities."""

STANDARD_COLUMNS = {
    "H2O": 4.74e22,
    "CO2": 9.0e21,
    "O3": 9.2e18,
    "N2O": 7.2e18,
    "CO": 2.1e18,
    "CH4": 4.1e19,
    "O2": 4.50e24,
    "N2": 1.68e25,
}
"""Vertical columns [molecules/cm²] above sea level: H2O (1.42 cm) and O3 (344 DU) of the U.S. Standard Atmosphere 1976
(Anderson et al. 1986, AFGL-TR-86-0110), for the others 2.15·10²⁵ cm⁻² of dry air times its mixing ratios of 2020."""

INTENSITY_UNIT = u.cm
"""HITRAN's cm⁻¹/(molecule cm⁻²), for one molecule."""

HC_PER_K = (const.h * const.c / const.k_B).to_value(u.K * u.cm)
"""Second radiation constant hc/k [cm K]."""

_CM_PER_EV = (1.0 * u.eV).to_value(u.cm**-1, u.spectral())


def predicted_strength(line_list, *, temperature=None, gas_pressure=None, abundances: dict | None = None) -> u.Quantity:
    """Predicted strength of every line.

    Lists with log gf have the strength of one nucleus of hydrogen, X = n/(U n_H) gf λ 10^(-θχ) (1 - exp(-hc/λkT)), in
    Å. HITRAN's lists have their intensity S(T), in cm per molecule.

    Parameters
    ----------
    line_list : QTable
        With the columns wavelength and species, and either log_gf and excitation, or intensity and lower_energy.
    temperature : Quantity or float, optional
        In K. By default 5000 K for lists with log gf, and for HITRAN's lists their own 296 K.
    gas_pressure : Quantity or float, optional
        In Pa, for a list with log gf: 10⁴ Pa by default, a dwarf's photosphere.
    abundances : dict, optional
        A(X) = log10 n_X/n_H + 12 of elements that differ from the Sun, such as ``{"Ti": 4.7}``.

    Returns
    -------
    Quantity, (n_line,)
        In Å (log gf) or cm (HITRAN). NaN where the species is in no table, or log gf is missing.

    Raises
    ------
    ValueError
        If the list has neither set of columns.

    Examples
    --------
    >>> import astropy.units as u
    >>> from astropy.table import QTable
    >>> import specutils_blase as sb
    >>> known = {"wavelength": [8690.0, 8695.5] * u.AA, "species": ["Fe I", "Fe I"]}
    >>> line_list = QTable({**known, "log_gf": [-1.0, -1.0], "excitation": [1.0, 4.0] * u.eV})
    >>> low, high = sb.line_lists.predicted_strength(line_list, temperature=5000 * u.K)
    >>> float((low / high).round(0))
    1056.0
    """
    wavelength = line_list["wavelength"].to_value(u.AA)
    if {"log_gf", "excitation"} <= set(line_list.colnames):
        temperature = STELLAR_TEMPERATURE if temperature is None else to_teff(temperature, "temperature")
        pressure = GAS_PRESSURE if gas_pressure is None else to_number(gas_pressure, u.Pa, "gas_pressure", True)
        gas = Equilibrium(temperature, pressure, abundances) if abundances else solar_gas(temperature, pressure)
        return _gf_strength(line_list, wavelength, gas) * u.AA
    if {"intensity", "lower_energy"} <= set(line_list.colnames):
        temperature = HITRAN_TEMPERATURE if temperature is None else to_teff(temperature, "temperature")
        return _hitran_intensity(line_list, wavelength, temperature) * INTENSITY_UNIT
    raise ValueError(
        "predicting strengths takes the columns log_gf and excitation, or intensity and lower_energy, got "
        f"{', '.join(line_list.colnames)}"
    )


def _gf_strength(line_list, wavelength, gas: Equilibrium) -> np.ndarray:
    names, which = np.unique(np.asarray(line_list["species"]), return_inverse=True)
    population = np.array([gas.population(str(name)) for name in names])
    unknown = names[np.isnan(population)]
    if len(unknown):
        logger.warning("no strength predicted for species outside the tables: %s", ", ".join(map(str, unknown)))
    log_gf = np.asarray(line_list["log_gf"], dtype=float)
    excitation = line_list["excitation"].to_value(u.eV)
    stimulated = -np.expm1(-HC_PER_K * 1e8 / wavelength / gas.temperature)
    boltzmann = np.exp(-HC_PER_K * _CM_PER_EV * excitation / gas.temperature)
    return population[which] * 10.0**log_gf * wavelength * boltzmann * stimulated


def _hitran_intensity(line_list, wavelength, temperature: float) -> np.ndarray:
    """S(T) of Šimečková et al. (2006), JQSRT 98, 130, eq. 11, with the classical rotational partition function.

    Q(T) ∝ T for linear molecules and T^1.5 for others. Vibrations are left out: between 200 and 320 K that is less than
    1 % for O2, H2O, CO and CH4, but at 200 K leaves CO2 6 %, N2O 9 % and O3 4 % too weak.
    """
    intensity = line_list["intensity"].to_value(INTENSITY_UNIT)
    if temperature == HITRAN_TEMPERATURE:
        return intensity.copy()
    names, which = np.unique(np.asarray(line_list["species"]), return_inverse=True)
    linear = {"CO2", "N2O", "OCS", "HCN", "C2H2", "C4H2", "HC3N", "CS2", "C2N2"}
    power = np.array([1.0 if sum(composition(str(n))[0].values()) == 2 or n in linear else 1.5 for n in names])[which]
    wavenumber = 1e8 / wavelength
    energy = line_list["lower_energy"].to_value(u.cm**-1)
    reference = HITRAN_TEMPERATURE
    ln = power * math.log(reference / temperature) - HC_PER_K * energy * (1.0 / temperature - 1.0 / reference)
    stimulated = np.expm1(-HC_PER_K * wavenumber / temperature) / np.expm1(-HC_PER_K * wavenumber / reference)
    return intensity * np.exp(ln) * stimulated
