"""Columns of a line ledger: unit, meaning, formula and source of each, defined here once.

Does not live here: their computation (`table`).
"""

from __future__ import annotations

from typing import NamedTuple

import astropy.units as u

KMS = u.km / u.s
"""Unit of velocities."""

FLAG_LIMITS = {"blended": 0.5, "saturated": 0.125, "saturated_linear": 0.875, "edge": 1.0, "unconstrained": 0.7}
"""Thresholds of the flags, each relative to the quantity in the column's description."""


class Column(NamedTuple):
    """Definition of a ledger column.

    Parameters
    ----------
    unit : Unit or None
        None for plain numbers, flags and text.
    meaning : str
        Meaning in plain ASCII, which every file format holds.
    formula : str
        In terms of other columns, where there is one; S is the flux of the line alone, continuum 1.
    source : str
        Where the formula is from, unless it is a definition.
    """

    unit: u.UnitBase | None
    meaning: str
    formula: str = ""
    source: str = ""

    @property
    def description(self) -> str:
        """Meaning, formula and source in one line, as in the tables."""
        formula = f": {self.formula}" if self.formula else ""
        source = f" ({self.source})" if self.source else ""
        return f"{self.meaning}{formula}{source}"


COLUMNS: dict[str, Column] = {
    "id": Column(None, "Number of the line within its component, in order of wavelength, from 0"),
    "component": Column(None, "star or telluric"),
    "species": Column(None, "Species, empty where not identified"),
    "center": Column(
        u.AA, "Vacuum wavelength of the centre at rest, rv_offset included", "center at the start * (1 + rv_offset / c)"
    ),
    "center_err": Column(u.AA, "1-sigma error of center", "center at the start * rv_offset_err / c"),
    "rv_offset": Column(KMS, "Shift of the centre against the starting line list"),
    "rv_offset_err": Column(KMS, "1-sigma error of rv_offset"),
    "area": Column(
        u.AA,
        "Integrated opacity of the line (integrated depth in linear scale)",
        "a in tau(x) = a V(x - center; sigma, gamma), the integral of V being 1; S = exp(-tau) in log scale",
        "Gully-Santiago & Morley 2022, ApJ 941, 200",
    ),
    "area_err": Column(u.AA, "1-sigma error of area", "area * error of ln(area)"),
    "sigma": Column(u.AA, "Gaussian standard deviation of V"),
    "sigma_err": Column(u.AA, "1-sigma error of sigma", "sigma * error of ln(sigma)"),
    "gamma": Column(u.AA, "Lorentzian half width at half maximum of V"),
    "gamma_err": Column(u.AA, "1-sigma error of gamma", "gamma * error of ln(gamma)"),
    "fwhm": Column(
        u.AA,
        "Full width at half maximum of V",
        "1.0692 gamma + sqrt(0.86639 gamma^2 + 8 ln(2) sigma^2)",
        "Olivero & Longbothum 1977, JQSRT 17, 233",
    ),
    "depth": Column(None, "Depth of this line alone at its centre; negative in emission", "1 - S(center)"),
    "equivalent_width": Column(
        u.AA, "Equivalent width of this line alone; negative in emission", "integral of 1 - S over wavelength"
    ),
    "equivalent_width_err": Column(
        u.AA,
        "1-sigma error of equivalent_width",
        "sqrt(g C g), C the covariance of ln(area), ln(sigma), ln(gamma), g the derivatives of the width to them",
    ),
    "snr": Column(None, "Significance of the line", "|equivalent_width| / equivalent_width_err"),
    "delta_ln_area": Column(
        None, "Change of strength against the starting line list", "ln(area) - ln(area at the start)"
    ),
    "blended": Column(
        None,
        "Another line of the same component is near",
        f"|difference of their centers| < {FLAG_LIMITS['blended']} * (sum of their fwhm)",
    ),
    "saturated": Column(
        None,
        "The line's centre hardly reacts to more opacity",
        f"|dS/dtau| at the centre < {FLAG_LIMITS['saturated']} of that of a weak line; in linear scale, depth > "
        f"{FLAG_LIMITS['saturated_linear']}",
    ),
    "edge": Column(
        None, "Centre lies outside the data, or near their end", f"nearer to it than {FLAG_LIMITS['edge']} * fwhm"
    ),
    "unconstrained": Column(
        None,
        "The data say little of the line's strength, or it was not fitted",
        f"error of ln(area) > {FLAG_LIMITS['unconstrained']} of its prior's width",
    ),
    "at_limit": Column(
        None,
        "Strength, width or place stands at the farthest from the start that a fit lets a line go: the data ask for a "
        "line that the template does not have, and the errors hold only for one that stays what it is",
    ),
    "free": Column(None, "Whether any parameter of the line was free"),
    "orders": Column(None, "Orders that contributed, separated by commas"),
}
"""Definition of every ledger column, in order."""
