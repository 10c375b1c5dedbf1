r"""Species of the lines of a ledger: cross-match with a line list by wavelength and predicted strength.

A ledger's line is rarely one transition: many of a list lie in its core, most of them negligible. The result is
therefore the probability of each species to *contribute most* to the line:

1. Every listed line k gives its predicted strength x_k to the ledger's lines i in whose core it lies,
   :math:`X_{is} = \sum_{k∈s} x_k\, q_{ik}^2 / \sum_j q_{jk}` with :math:`q_{ik} = \exp(-Δ_{ik}^2 / 2 s_i^2)`: the
   likelihood of the offset Δ, times the line's share where ledger lines compete for it. s_i adds in quadrature the
   error of the ledger's centre, a systematic error of the list and of the star's motions, and `blend_shift` times the
   line's half width, because the centre of a blend lies between its members.
2. ln X is uncertain by `strength_scatter` (log gf, abundances, excitation, one temperature for a whole atmosphere).
   With that error drawn from a Gumbel distribution for each species independently, the probability that species s is
   the strongest is *exactly* :math:`X_{is}^α / \sum_{s'} X_{is'}^α`, α = π/(√6 σ_ln).
3. "None of these" competes as one more candidate: a line that is in no list and as strong as the one observed, with
   odds `background`. Its strength on the scale of predictions follows from the ledger itself, by a robust straight
   line through ln X against ln(area/λ), which is a curve of growth.

A ledger line whose likeliest explanation is none of the list stays empty. Does not live here: reading of line lists
(`reading`), predicted strengths (`chemistry.strengths`).
"""

from __future__ import annotations

import logging
import math

import astropy.units as u
import numpy as np
import torch
from astropy.table import QTable, Table
from scipy.stats import siegelslopes

from ..chemistry.strengths import STANDARD_COLUMNS
from ..ledger.emulator import column_values, text_column
from ..line_lists import predicted_strength, read_line_list
from ..physics.grids import SPEED_OF_LIGHT
from ..physics.voigt import voigt_fwhm
from ..spectra.quantities import to_kms, to_number

logger = logging.getLogger(__name__)

CANDIDATE_REACH = 3.5
"""Offset, in units of s_i, beyond which a listed line is no candidate."""

MOST_PAIRS = 2_000_000
"""Pairs of ledger and list lines that are held in memory at a time."""

MOST_CALIBRATION_LINES = 1500
"""Lines to which the curve of growth is fitted, at most."""

MOST_RUNNERS_UP = 3
"""Other species that are reported for a line, at most."""

LEAST_PROBABILITY = 0.01
"""Probability from which on another species is reported."""

SPECIES_DESCRIPTIONS = {
    "species": "Species that contributes most to the line, empty where not identified",
    "species_probability": "Probability that species is the strongest contributor; NaN where not identified",
    "species_runners_up": "Other species and their probabilities; what is left to 1 is for none of the list",
    "species_wavelength": "Vacuum wavelength of the strongest contributing line of that species in the list",
}


def identify(
    ledger: Table,
    line_list: Table,
    *,
    component: str | None = None,
    temperature=None,
    gas_pressure=None,
    abundances: dict[str, float] | None = None,
    columns: dict[str, float] | None = None,
    velocity=0.0,
    systematic=0.5,
    blend_shift: float = 0.5,
    strength_scatter: float = 0.5,
    background: float = 0.05,
) -> QTable:
    """Species of a ledger's lines, with their probabilities; see the module docstring for the model.

    Parameters
    ----------
    ledger : Table
        Columns center, area, and sigma and gamma (or fwhm), in Å where they have no unit; center_err where known.
    line_list : Table
        From `read_line_list`, or any table that it takes.
    component : str, optional
        Identify only the rows of this component ("star", "telluric"); the others keep their species.
    temperature, gas_pressure, abundances : optional
        Arguments of `line_lists.predicted_strength`; by default the list's column strength is taken.
    columns : dict, optional
        For HITRAN's lines, molecules per cm² by which intensities of different molecules are compared, where they
        differ from `chemistry.strengths.STANDARD_COLUMNS`.
    velocity : Quantity or float
        Velocity [km/s] of the ledger's lines against the list, beyond that of the ledger's rest frame. Positive is
        redshift.
    systematic : Quantity or float
        Systematic error of wavelengths [km/s], added in quadrature to center_err.
    blend_shift : float
        Distance of a blend's centre from its members, in units of its half width at half maximum (one sigma).
    strength_scatter : float
        Error of predicted strengths [dex] (one sigma).
    background : float
        Odds that a line as strong as the observed one is missing from the list.

    Returns
    -------
    QTable
        A copy of the ledger with the columns species, species_probability, species_runners_up (such as
        "Ti I 0.12; CN 0.03") and species_wavelength.

    Raises
    ------
    ValueError
        If a table lacks a column, or an option has no meaning.

    Examples
    --------
    >>> import astropy.units as u
    >>> from astropy.table import QTable
    >>> import specutils_blase as sb
    >>> ledger = QTable({"center": [8690.01] * u.AA, "area": [0.05] * u.AA, "fwhm": [0.15] * u.AA})
    >>> known = {"wavelength": [8690.0, 8690.3] * u.AA, "species": ["Fe I", "Ti I"], "strength": [1.0, 0.5]}
    >>> line_list = sb.read_line_list(QTable(known), medium="vacuum")
    >>> identified = sb.identify(ledger, line_list)
    >>> print(identified["species"][0], identified["species_probability"][0].round(2))
    Fe I 0.95
    """
    for name, value in (
        ("blend_shift", blend_shift),
        ("strength_scatter", strength_scatter),
        ("background", background),
    ):
        to_number(value, u.dimensionless_unscaled, name, True)
    systematic = to_kms(systematic, "systematic")
    if systematic <= 0:
        raise ValueError(f"systematic must be positive (km/s), got {systematic:g}")
    center, width, error, observed = _ledger_lines(ledger)
    rows = np.arange(len(ledger))
    if component is not None:
        if "component" not in ledger.colnames:
            raise ValueError(f"component={component!r} takes a ledger with the column component")
        rows = np.flatnonzero(np.asarray(ledger["component"]) == component)
    wavelength, species, strength = _list_lines(line_list, temperature, gas_pressure, abundances, columns)
    center = center / (1.0 + to_kms(velocity) / SPEED_OF_LIGHT)
    spread = np.sqrt(error**2 + (systematic / SPEED_OF_LIGHT * center) ** 2 + (0.5 * blend_shift * width) ** 2)
    sharpness = math.pi / (math.sqrt(6.0) * math.log(10.0) * strength_scatter)
    names, which = np.unique(species, return_inverse=True)
    contributions = _contributions(center[rows], spread[rows], wavelength, which, strength, len(names))
    result = _probabilities(contributions, observed[rows], len(rows), sharpness, background)
    return _annotated(ledger, rows, names, wavelength, *result)


def _ledger_lines(ledger) -> tuple[np.ndarray, ...]:
    """Centre, full width, error of the centre [Å] and reduced area of every line."""
    if ledger.meta.get("medium", "vacuum") != "vacuum":
        raise ValueError(f"expected a ledger with vacuum wavelengths, its meta says {ledger.meta['medium']!r}")
    missing = [name for name in ("center", "area") if name not in ledger.colnames]
    if missing:
        raise ValueError(f"identifying takes a ledger with center and area, {', '.join(missing)} missing")
    center, area = column_values(ledger, "center", u.AA), column_values(ledger, "area", u.AA)
    if "fwhm" in ledger.colnames:
        width = column_values(ledger, "fwhm", u.AA)
    elif {"sigma", "gamma"} <= set(ledger.colnames):
        width = voigt_fwhm(*(torch.as_tensor(column_values(ledger, name, u.AA)) for name in ("sigma", "gamma"))).numpy()
    else:
        raise ValueError("identifying takes a ledger with fwhm, or sigma and gamma")
    error = column_values(ledger, "center_err", u.AA) if "center_err" in ledger.colnames else np.zeros(len(ledger))
    for name, values in (("center", center), ("area", area), ("width", width)):
        if not (np.isfinite(values) & (values > 0)).all():
            raise ValueError(f"every {name} of the ledger must be finite and positive")
    return center, width, np.where(np.isfinite(error), error, 0.0), area / center


def _list_lines(line_list, temperature, gas_pressure, abundances, columns) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wavelength [Å], ascending, species and strength of the listed lines whose strength is known."""
    if "strength" not in line_list.colnames or "wavelength" not in line_list.colnames:
        line_list = read_line_list(line_list)
    if line_list.meta.get("medium", "vacuum") != "vacuum":
        line_list = read_line_list(line_list, medium="air")
    if temperature is None and gas_pressure is None and abundances is None:
        strength = np.array(getattr(line_list["strength"], "value", line_list["strength"]), dtype=np.float64)
    else:
        options = {"temperature": temperature, "gas_pressure": gas_pressure, "abundances": abundances}
        strength = predicted_strength(line_list, **options).value
    wavelength = column_values(line_list, "wavelength", u.AA)
    species = text_column(line_list, "species")
    if "intensity" in line_list.colnames:
        names, which = np.unique(species, return_inverse=True)
        density = {**STANDARD_COLUMNS, **(columns or {})}
        missing = [str(name) for name in names if name not in density]
        if missing and len(names) > 1:
            raise ValueError(f"give columns={{molecule: molecules per cm²}} for {', '.join(missing)}")
        strength = strength * np.array([float(density.get(str(name), 1.0)) for name in names])[which]
    usable = np.isfinite(strength) & (strength > 0)
    if not usable.any():
        raise ValueError("no line of the list has a predicted strength")
    order = np.flatnonzero(usable)[np.argsort(wavelength[usable], kind="stable")]
    return wavelength[order], species[order], strength[order]


def _contributions(center, spread, wavelength, which, strength, n_species) -> tuple[np.ndarray, ...]:
    """Strength that every species gives to every line: line, species, X, and the strongest listed line of each."""
    low = np.searchsorted(wavelength, center - CANDIDATE_REACH * spread)
    count = np.searchsorted(wavelength, center + CANDIDATE_REACH * spread) - low
    claims = np.zeros(wavelength.size)
    for line, listed in _pairs(low, count):
        offset = (wavelength[listed] - center[line]) / spread[line]
        claims += np.bincount(listed, np.exp(-0.5 * offset**2), minlength=wavelength.size)
    parts = []
    for line, listed in _pairs(low, count):
        overlap = np.exp(-0.5 * ((wavelength[listed] - center[line]) / spread[line]) ** 2)
        share = strength[listed] * overlap**2 / claims[listed]
        key = line * n_species + which[listed]
        order = np.lexsort((share, key))  # the strongest line of each key comes last
        key, share, listed = key[order], share[order], listed[order]
        last = np.flatnonzero(np.diff(key, append=-1) != 0)
        total = np.add.reduceat(share, np.concatenate([[0], last[:-1] + 1]))
        parts.append((key[last] // n_species, key[last] % n_species, total, listed[last]))
    if not parts:
        return np.zeros(0, int), np.zeros(0, int), np.zeros(0), np.zeros(0, int)
    return tuple(np.concatenate(column) for column in zip(*parts, strict=True))


def _pairs(low, count):
    """Indices of all pairs of a ledger line and a listed line within its reach, in blocks of whole ledger lines."""
    ends = np.cumsum(count)
    start = 0
    while start < len(count):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + MOST_PAIRS, side="right")))
        number = count[start:stop]
        if number.sum():
            line = np.repeat(np.arange(start, stop), number)
            listed = (
                np.arange(number.sum())
                - np.repeat(np.cumsum(number) - number, number)
                + np.repeat(low[start:stop], number)
            )
            yield line, listed
        start = stop


def _probabilities(contributions, observed, n_line, sharpness, background) -> tuple[np.ndarray, ...]:
    """Probabilities of the candidates, sorted by line and falling probability, and of "none" for every line."""
    line, species, strength, listed = contributions
    total = np.bincount(line, strength, minlength=n_line)
    expected = _expected_strength(np.log(observed), total)
    weight = sharpness * (np.log(strength) - expected[line])
    none = np.full(n_line, math.log(background))
    top = none.copy()
    np.maximum.at(top, line, weight)
    weight, none = np.exp(weight - top[line]), np.exp(none - top)
    norm = none + np.bincount(line, weight, minlength=n_line)
    probability, none = weight / norm[line], none / norm
    order = np.lexsort((-probability, line))
    return line[order], species[order], probability[order], listed[order], none


def _expected_strength(observed, total) -> np.ndarray:
    """ln X that lines as strong as those observed have in the list: a robust straight line, the curve of growth."""
    explained = np.flatnonzero(total > 0)
    if not len(explained):
        return observed
    pick = explained[np.linspace(0, len(explained) - 1, min(len(explained), MOST_CALIBRATION_LINES)).astype(int)]
    x, y = observed[pick], np.log(total[pick])
    if len(pick) < 10 or np.ptp(x) < 0.5:  # too few or too alike for a slope
        return observed + np.median(y - x)
    slope, intercept = siegelslopes(y, x)
    slope = min(max(slope, 0.5), 5.0)  # saturation makes it steeper than 1; slopes outside are due to chance
    logger.info("curve of growth: ln X = %.2f ln(area/λ) %+.2f from %d lines", slope, intercept, len(pick))
    return np.median(y - slope * x) + slope * observed


def _annotated(ledger, rows, names, wavelength, line, species, probability, listed, none) -> QTable:
    """The copy of the ledger with its new columns."""
    n_line = len(rows)
    first = np.searchsorted(line, np.arange(n_line))
    last = np.searchsorted(line, np.arange(n_line), side="right")
    best = np.minimum(first, max(len(line) - 1, 0))
    named = (last > first) & (probability[best] > none if len(line) else False)
    result = QTable(ledger, copy=True)
    old = text_column(ledger, "species")
    columns = {
        "species": old.astype(f"U{max(16, old.dtype.itemsize // 4, names.dtype.itemsize // 4)}"),
        "species_probability": _previous(ledger, "species_probability", np.nan, float),
        "species_runners_up": _previous(ledger, "species_runners_up", "", object),
        "species_wavelength": _previous(ledger, "species_wavelength", np.nan, float),
    }
    columns["species"][rows] = ""
    columns["species_probability"][rows] = np.nan
    columns["species_wavelength"][rows] = np.nan
    chosen = rows[named]
    columns["species"][chosen] = names[species[best[named]]] if len(line) else ""
    columns["species_probability"][chosen] = probability[best[named]] if len(line) else np.nan
    columns["species_wavelength"][chosen] = wavelength[listed[best[named]]] if len(line) else np.nan
    worth = np.flatnonzero(probability >= LEAST_PROBABILITY)
    text = [""] * n_line
    left = np.full(n_line, MOST_RUNNERS_UP)
    for k in worth:  # at most a few a line
        i = line[k]
        if (named[i] and k == best[i]) or not left[i]:
            continue
        left[i] -= 1
        text[i] += f"{'; ' if text[i] else ''}{names[species[k]]} {probability[k]:.2f}"
    columns["species_runners_up"][rows] = text
    columns["species_runners_up"] = columns["species_runners_up"].astype("U")
    for name, values in columns.items():
        result[name] = values * u.AA if name == "species_wavelength" else values
        result[name].info.description = SPECIES_DESCRIPTIONS[name]
    logger.info("%d of %d lines identified", int(named.sum()), n_line)
    return result


def _previous(ledger, name: str, default, dtype) -> np.ndarray:
    """Column of an earlier identification of the other component, or the default."""
    if name not in ledger.colnames:
        return np.full(len(ledger), default, dtype=dtype)
    return np.array(getattr(ledger[name], "value", ledger[name]), dtype=dtype)
