r"""Chemical equilibrium of a gas of solar composition: how many atoms, ions and molecules absorb.

One temperature and one pressure, LTE: ionisation by Saha, molecules by the law of mass action. Strengths of species
follow to about a factor of two in a star of such a photosphere; this is no model atmosphere.

Does not live here: the lines themselves (`strengths`).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from astropy import constants as const

from .elements import ELEMENTS, PARTITION_TEMPERATURES
from .species import composition

K_B = const.k_B.si.value
EV = const.e.si.value
_H = const.h.si.value
_U = const.u.si.value
_BAR = 1e5

# ln(kp / bar^(1-n)) = a/T + b ln T + c + d T + e T²: partial pressure of the molecule over the product of its atoms'.
# Fits by P. Woitke et al. (2018, A&A 614, A1: GGchem) to Barklem & Collet (2016, A&A 588, A96); H2O: Stock (2008) in
# the same place. a is the energy of dissociation into atoms over k.
_MASS_ACTION = """
H2   5.194707E+04 -1.681701E+00 -7.044513E-01 1.789520E-04 2.233763E-09
C2   7.408290E+04 -6.278570E-01 -9.924651E+00 1.383649E-04 -1.135000E-08
N2   1.131799E+05 -1.645242E+00 -3.026424E+00 3.175810E-04 -1.547802E-08
O2   5.934844E+04 -2.209004E+00 3.269996E-01 7.871866E-04 -4.729599E-08
CH   4.030951E+04 -1.681514E+00 2.530961E-01 3.039235E-04 -5.348072E-09
NH   3.967622E+04 -1.595612E+00 1.139670E-01 1.836689E-04 1.177581E-09
OH   5.127271E+04 -1.874746E+00 1.351533E+00 3.267810E-04 -1.176351E-08
HF   6.805922E+04 -1.749916E+00 -3.877079E-01 1.549781E-04 3.150169E-09
NaH  2.187997E+04 -1.660181E+00 1.141581E+00 6.411312E-04 -3.891020E-08
MgH  1.474174E+04 -1.665377E+00 2.412960E+00 5.175463E-04 -2.263743E-08
AlH  3.422716E+04 -1.961349E+00 1.777576E+00 6.685620E-04 -3.777197E-08
SiH  3.530410E+04 -2.199413E+00 4.220183E+00 7.399671E-04 -4.639531E-08
SH   4.206292E+04 -1.899374E+00 1.644711E+00 3.349005E-04 -9.867606E-09
HCl  5.142463E+04 -1.658567E+00 -2.189289E-01 1.193575E-04 7.429318E-09
CaH  2.646073E+04 -1.687083E+00 2.790737E+00 6.214348E-04 -4.768213E-08
TiH  2.415128E+04 -1.877576E+00 2.146634E+00 1.124811E-03 -8.962180E-08
CrH  2.239154E+04 -1.636321E+00 1.315004E+00 4.481169E-04 -3.108727E-08
MnH  3.018554E+04 -1.685146E+00 1.972066E+00 5.430454E-04 -3.201983E-08
FeH  1.738943E+04 -1.455738E+00 -9.264411E-01 8.183990E-04 -6.072974E-08
NiH  2.844792E+04 -1.866976E+00 1.560573E+00 4.660924E-04 -2.328946E-08
CN   8.980708E+04 -1.682454E+00 -2.051591E+00 3.737830E-04 -1.613254E-08
CO   1.290203E+05 -1.959790E+00 -1.791473E+00 5.377538E-04 -3.260909E-08
CS   8.535528E+04 -1.935569E+00 -1.244023E+00 6.034817E-04 -3.867377E-08
NO   7.549953E+04 -1.695910E+00 -1.355765E+00 4.038305E-04 -2.145345E-08
MgO  2.976709E+04 -2.105406E+00 1.571416E+00 1.832445E-03 -1.505704E-07
AlO  5.993077E+04 -2.261719E+00 1.685720E+00 1.110874E-03 -6.712672E-08
SiO  9.496724E+04 -2.452287E+00 1.812703E+00 1.051324E-03 -7.767699E-08
SO   6.180305E+04 -2.178283E+00 1.318273E+00 7.920102E-04 -4.760472E-08
CaO  4.624067E+04 -1.910268E+00 6.974214E-01 9.615433E-04 -5.375449E-08
ScO  8.029589E+04 -2.299385E+00 1.525487E+00 1.078131E-03 -8.887238E-08
TiO  7.967471E+04 -2.147232E+00 1.023613E+00 8.858727E-04 -7.822523E-08
VO   7.614749E+04 -2.694860E+00 4.112153E+00 9.774264E-04 -7.093089E-08
FeO  4.846927E+04 -2.288931E+00 2.697377E+00 8.351577E-04 -6.077012E-08
YO   8.541027E+04 -2.259232E+00 1.838031E+00 9.037701E-04 -7.487166E-08
ZrO  9.167381E+04 -1.959262E+00 -9.350160E-01 1.016636E-03 -9.434666E-08
LaO  9.551508E+04 -1.672998E+00 -1.240577E+00 1.561905E-05 2.862768E-09
SiS  7.379132E+04 -2.296406E+00 1.447306E+00 9.984479E-04 -7.580733E-08
TiS  4.979099E+04 -1.970790E+00 5.877193E-01 7.967522E-04 -7.219884E-08
H2O  1.103365E+05 -4.178360E+00 3.174469E+00 9.406468E-04 -4.048246E-08
"""


def _mass_action() -> dict[str, np.ndarray]:
    rows = (line.split() for line in _MASS_ACTION.strip().splitlines())
    return {name: np.array(words, dtype=float) for name, *words in rows}


MASS_ACTION = _mass_action()
"""Molecule → coefficients of ln kp."""


class Equilibrium:
    """A gas in chemical equilibrium.

    Parameters
    ----------
    temperature : float
        In K, 2000 to 10000.
    gas_pressure : float
        In Pa.
    abundances : dict of str to float, optional
        A(X) = log10 n_X/n_H + 12 of elements that differ from the Sun.

    Raises
    ------
    ValueError
        If the temperature is outside the tables, the pressure not positive, or an element unknown.
    """

    def __init__(self, temperature: float, gas_pressure: float, abundances: dict[str, float] | None = None):
        low, high = PARTITION_TEMPERATURES[0], PARTITION_TEMPERATURES[-1]
        if not low <= temperature <= high:
            raise ValueError(
                f"the partition functions cover {low:g} to {high:g} K, got a temperature of {temperature:g} K"
            )
        if not 0 < gas_pressure < math.inf:
            raise ValueError(f"expected a positive gas pressure in Pa, got {gas_pressure:g}")
        unknown = set(abundances or {}) - set(ELEMENTS)
        if unknown:
            raise ValueError(f"expected abundances of elements by symbol, got {', '.join(sorted(unknown))}")
        self.temperature, self.gas_pressure = temperature, gas_pressure
        logs = {symbol: element.abundance for symbol, element in ELEMENTS.items()} | (abundances or {})
        self._symbols = list(ELEMENTS)
        self._relative = np.array([10.0 ** (logs[symbol] - 12.0) for symbol in self._symbols])
        self._partition = np.array(
            [[e.partition_function(temperature, k) for k in (0, 1, 2)] for e in ELEMENTS.values()]
        )
        thermal = (2.0 * math.pi * const.m_e.si.value * K_B * temperature / _H**2) ** 1.5  # [m⁻³]
        energy = np.array([element.ionization_energy for element in ELEMENTS.values()])
        # n(ion) n_e / n(atom), Saha
        ratio = self._partition[:, 1:] / self._partition[:, :-1]
        self._saha = 2.0 * thermal * ratio * np.exp(-energy * EV / (K_B * temperature))
        self._solve()

    def _solve(self) -> None:
        """Neutral atoms of every element [m⁻³], free electrons and nuclei of hydrogen."""
        kt = K_B * self.temperature
        particles = self.gas_pressure / kt
        electrons, hydrogen = 1e-4 * particles, 0.9 * particles
        index = {symbol: k for k, symbol in enumerate(self._symbols)}
        atoms = np.zeros((len(MASS_ACTION), len(self._symbols)))
        for row, name in enumerate(MASS_ACTION):
            for symbol, count in composition(name)[0].items():
                atoms[row, index[symbol]] = count
        powers = np.array(
            [1.0 / self.temperature, math.log(self.temperature), 1.0, self.temperature, self.temperature**2]
        )
        ln_k = np.array(list(MASS_ACTION.values())) @ powers + (atoms.sum(1) - 1.0) * math.log(kt / _BAR)
        ln_atom = None
        for _ in range(200):
            first = self._saha[:, 0] / electrons
            second = first * self._saha[:, 1] / electrons
            total = self._relative * hydrogen
            ln_atom = _balance(1.0 + first + second, atoms, ln_k, total, ln_atom)
            neutral, molecules = np.exp(ln_atom), np.exp(ln_k + atoms @ ln_atom)
            charge = (neutral * (first + 2.0 * second)).sum()
            pressure = (neutral * (1.0 + first + second)).sum() + molecules.sum() + charge
            # Ions fall as electrons rise: the geometric mean of both is stable where either alone swings.
            new = math.sqrt(electrons * charge), hydrogen * particles / pressure
            done = abs(new[0] / electrons - 1.0) + abs(new[1] / hydrogen - 1.0) < 1e-8
            electrons, hydrogen = new
            if done:
                break
        self.electron_density, self.hydrogen_density = electrons, hydrogen
        self._neutral = dict(zip(self._symbols, neutral, strict=True))
        self._molecule = dict(zip(MASS_ACTION, molecules, strict=True))

    def density(self, species: str) -> float:
        """Number density [m⁻³] of a normalised species; NaN where the tables do not know it."""
        if species in self._molecule:
            return float(self._molecule[species])
        atoms, charge = composition(species)
        symbol = next(iter(atoms))
        if len(atoms) > 1 or atoms[symbol] > 1 or symbol not in self._neutral or charge > 2:
            return math.nan
        row = self._symbols.index(symbol)
        return float(self._neutral[symbol] * np.prod(self._saha[row, :charge] / self.electron_density))

    def population(self, species: str) -> float:
        r"""Density over partition function and density of hydrogen nuclei, n/(U n_H); NaN where unknown.

        Times the statistical weight and the Boltzmann factor of a level, it is that level's population for one
        nucleus of hydrogen. A molecule needs no partition function of its own, as it cancels:
        n/U = Π (n_i/U_i) (M/Π m_i)^{3/2} (h²/2πkT)^{3(n-1)/2} exp(D/kT).
        """
        atoms, charge = composition(species)
        if species not in self._molecule:
            symbol = next(iter(atoms))
            density = self.density(species)
            if math.isnan(density):
                return math.nan
            return density / self._partition[self._symbols.index(symbol), charge] / self.hydrogen_density
        kt, count = K_B * self.temperature, sum(atoms.values())
        ln = MASS_ACTION[species][0] / self.temperature
        ln += 1.5 * (count - 1) * math.log(_H**2 / (2.0 * math.pi * kt))
        ln += 1.5 * math.log(sum(ELEMENTS[symbol].mass * number for symbol, number in atoms.items()) * _U)
        for symbol, number in atoms.items():
            atom = self._neutral[symbol] / self._partition[self._symbols.index(symbol), 0]
            ln += number * (math.log(atom) - 1.5 * math.log(ELEMENTS[symbol].mass * _U))
        return math.exp(ln) / self.hydrogen_density


def _balance(weight, atoms, ln_k, total, start) -> np.ndarray:
    """Logarithms of the neutral densities, at which atoms, ions and molecules add up to `total` for every element.

    They minimise Σ w eʸ + Σ_mol exp(ln k + a·y) − total·y, which is convex: Newton's method with short steps always
    arrives.
    """
    y = np.log(total / weight) if start is None else start
    scale = np.sqrt(total)
    for _ in range(300):
        free = weight * np.exp(y)
        molecules = np.exp(ln_k + atoms @ y)
        gradient = free + atoms.T @ molecules - total
        if np.abs(gradient / total).max() < 1e-10:
            break
        hessian = np.diag(free) + atoms.T @ (molecules[:, None] * atoms)
        step = np.linalg.solve(hessian / np.outer(scale, scale), -gradient / scale) / scale
        y = y + np.clip(step, -2.0, 2.0)
    return y


@lru_cache(maxsize=32)
def solar_gas(temperature: float, gas_pressure: float) -> Equilibrium:
    """The gas of the Sun's composition, computed once for each temperature [K] and pressure [Pa]."""
    return Equilibrium(temperature, gas_pressure)
