"""Molecules of a telluric template that was cloned as one, by where its lines are.

From one night to another water changes by other factors than molecules that are well mixed. A clone that does not say
which of its lines are whose has one factor for all. Below 1.4 µm there are the bands of O2, and water; from there to
2.5 µm a line is of the molecule that absorbs most at its place in PSG's atmosphere. Single lines may be another
molecule's; the factors are means over all of them.

Does not live here: clones that know their species (`species_cloning`), what makes a line of a ledger by a line list
(`identification`), the factors (`telluric_scaling`).
"""

from __future__ import annotations

import logging
from collections import Counter
from functools import cache

import numpy as np
import torch

from ...model.emulator import LineEmulator
from ...templates import psg_hk_species

logger = logging.getLogger(__name__)

OXYGEN = ((6270.0, 6350.0), (6860.0, 6970.0), (7590.0, 7720.0), (12_550.0, 12_860.0))
"""Vacuum Å: the γ, B and A bands of O2, and a¹Δ (Rothman et al. 2013, HITRAN)."""

WATER_BELOW = 14_000.0
"""Vacuum Å up to which lines outside the bands of O2 are taken for water's: bands of other molecules are weak."""

FEWEST = 3
"""Lines of a molecule that make a factor of its own."""

SEEN = 1e-3
"""Optical depth from which on a molecule is seen in the table; lines where none is are water's."""


def by_place(emulator: LineEmulator) -> LineEmulator:
    """The same lines with the species of each, where they are of more than one; else the emulator itself.

    Parameters
    ----------
    emulator : LineEmulator
        Telluric lines. One that knows the species of any is returned as it is.

    Returns
    -------
    LineEmulator
        A copy if species were found. They are empty where no table reaches.
    """
    if any(emulator.species or ()):
        return emulator
    species = species_at(emulator.shifted_center.detach().cpu().double().numpy())
    names, counts = np.unique(species, return_counts=True)
    few = names[counts < FEWEST]
    common = str(names[counts.argmax()]) if counts.size else ""
    species = np.where(np.isin(species, few), common, species)
    if len(set(species)) < 2:
        return emulator
    known = emulator.subset(torch.arange(len(emulator)))
    known.species = species.tolist()
    logger.info("telluric lines by molecule: %s", dict(Counter(known.species)))
    return known


def species_at(wavelength: np.ndarray) -> np.ndarray:
    """The molecule that absorbs most at each wavelength.

    Parameters
    ----------
    wavelength : array_like, (n,)
        Vacuum Å.

    Returns
    -------
    ndarray of str, (n,)
        Empty where no table reaches, and from 1.4 µm on where muler is not installed.

    Notes
    -----
    From 1.4 to 2.5 µm by the Planetary Spectrum Generator (Villanueva et al. 2018), `templates.psg_hk_species`.

    Examples
    --------
    >>> species_at(np.array([7615.0, 9400.0, 23_000.0])).tolist()
    ['O2', 'H2O', 'CH4']
    """
    wavelength = np.asarray(wavelength, dtype=float)
    species = np.where(wavelength < WATER_BELOW, "H2O", "").astype("U8")
    for low, high in OXYGEN:
        species[(wavelength > low) & (wavelength < high)] = "O2"
    try:
        grid, names, depths = _table()
    except (ModuleNotFoundError, FileNotFoundError):  # muler is not there, or another version of it
        return species
    inside = (wavelength >= WATER_BELOW) & (wavelength < grid[-1])
    at = np.searchsorted(grid, wavelength[inside]).clip(1, grid.size - 2)
    # One sample to each side, a resolution element of the table: a line need not be at the same place to the ångström.
    strongest = np.maximum(np.maximum(depths[:, at - 1], depths[:, at]), depths[:, at + 1])
    species[inside] = np.where(strongest.max(0) > SEEN, names[strongest.argmax(0)], "H2O")
    return species


@cache
def _table() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Wavelengths, names of molecules, and the optical depth of each, (n_molecule, n_wavelength)."""
    templates = psg_hk_species()
    grid = next(iter(templates.values())).spectral_axis.value
    depths = np.array([-np.log(np.clip(template.flux.value, 1e-12, None)) for template in templates.values()])
    return grid, np.array(list(templates)), depths
