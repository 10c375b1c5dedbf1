"""How far what all lines of a template have in common may go.

Does not live here: the priors of each line (`priors`), what is done at a bound (`quality.assessment`).
"""

from __future__ import annotations

MOST_INFLATION = {"ln_area": 4.0, "ln_sigma": 4.0, "ln_gamma": 4.0, "rv_offset": 8.0}
"""Largest factor on the width of a prior. Lines of LTE 3500 K are off by 0.65, 0.6, 0.7 and 1.1 km/s on GJ 699."""

LARGEST_FACTOR, WELL_MIXED_FACTOR = 100.0, 5.0
"""Of optical depths, up or down. From a humid night at sea level to a dry one on a high mountain water takes a factor
of 40; other molecules follow airmass and pressure, and a star that is not in the model must not take them away."""


def largest_factor(species: str) -> float:
    """By which the optical depth of a species may differ from the template's, up or down."""
    return LARGEST_FACTOR if species in ("", "H2O", "HDO") else WELL_MIXED_FACTOR
