"""Selection of lines of a ledger: by component, species, region, quality, and change.

Does not live here: the meaning of the columns (`columns`), the identification of species (`line_lists.identification`).
"""

from __future__ import annotations

from collections.abc import Iterable

import astropy.units as u
import numpy as np
from astropy.table import QTable, Table
from specutils import SpectralRegion

from ..chemistry.species import normalise_species
from ..spectra.quantities import to_kms
from ..spectra.wavelengths import vacuum_wavelength
from .columns import KMS
from .emulator import column_values, observed_centers, text_column

DEFECT_FLAGS = ("blended", "saturated", "edge", "unconstrained", "at_limit")
"""Flags of a ledger that mark a line as unreliable."""


def select_lines(
    ledger: Table,
    *,
    component: str | None = None,
    species: str | Iterable[str] | None = None,
    region=None,
    rv=None,
    medium: str = "vacuum",
    changed: float | None = None,
    without: str | Iterable[str] = (),
) -> Table:
    """Rows of a ledger that satisfy every condition given.

    Parameters
    ----------
    ledger : Table
        Of a clone or a fit, or any table with the columns that the conditions need.
    component : str, optional
        "star" or "telluric".
    species : str or iterable of str, optional
        Names as `line_lists.normalise_species` takes them: "Fe I", "fe 1" and "26.0" are one, "Fe II" another, "" are
        the lines without one.
    region : SpectralRegion or (low, high), optional
        Lines whose centre lies in it, ends included, in wavelength, frequency, wavenumber or energy; bare numbers are
        Å. A region may have several parts. Its frame is that of the ledger: the star's rest frame for stellar lines,
        the observatory's for telluric ones; with `rv`, it is the observatory's for both.
    rv : Quantity or float, optional
        Radial velocity of the star [km/s], as observed: ``fit.value("rv")`` for a region read off the data.
    medium : "vacuum" or "air"
        Medium of the wavelengths of the region.
    changed : float, optional
        Smallest significance of a line's change against the clone, by `change_significance`.
    without : str or iterable of str
        Flags that a line must not have, among "blended", "saturated", "edge", "unconstrained" and "at_limit"; "any" for
        all five, or those of them that a ledger of an older version has.

    Returns
    -------
    Table
        A copy of these rows, of the ledger's own class, with its meta.

    Raises
    ------
    ValueError
        If the ledger lacks a column that a condition needs, or a condition has no meaning. `~astropy.units.UnitsError`
        (one of them) for a region in pixels or velocities.

    Examples
    --------
    >>> import astropy.units as u
    >>> from astropy.table import QTable
    >>> import specutils_blase as sb
    >>> ledger = QTable({"species": ["Fe I", "Ti I"], "center": [8690.0, 8695.5] * u.AA, "snr": [40.0, 6.0]})
    >>> sb.select_lines(ledger, species="Ti I")["center"]
    <Quantity [8695.5] Angstrom>
    >>> len(sb.select_lines(ledger, region=(8680.0 * u.AA, 8700.0 * u.AA)))
    2
    """
    keep = np.ones(len(ledger), dtype=bool)
    if component is not None:
        _need(ledger, "component")
        keep &= text_column(ledger, "component") == component
    if species is not None:
        _need(ledger, "species")
        names = [species] if isinstance(species, str) else list(species)
        wanted = {normalise_species(name) if name else "" for name in names}
        keep &= np.isin(text_column(ledger, "species"), list(wanted))
    if region is not None:
        _need(ledger, "center")
        keep &= _inside(observed_centers(ledger, None if rv is None else to_kms(rv, "rv")), region, medium)
    if changed is not None:
        with np.errstate(invalid="ignore"):  # NaN: never fitted
            keep &= change_significance(ledger)["total"] >= changed
    older = "unconstrained" in ledger.colnames and "at_limit" not in ledger.colnames
    every = DEFECT_FLAGS[:-1] if older else DEFECT_FLAGS
    flags = every if without == "any" else [without] if isinstance(without, str) else list(without)
    for flag in flags:
        if flag not in DEFECT_FLAGS:
            raise ValueError(f"without must be among {', '.join(DEFECT_FLAGS)}, or 'any', got {flag!r}")
        _need(ledger, flag)
        keep &= ~np.asarray(ledger[flag]).astype(bool)
    return ledger[keep]


def change_significance(ledger: Table) -> QTable:
    r"""Significance of the change of each line of a fit against the clone that it started from.

    In units of the fit's errors: :math:`z_a = Δ\ln a / σ_{\ln a}`, :math:`z_v = v / σ_v` with v the shift of the
    centre, and together :math:`\sqrt{z_a^2 + z_v^2}`, the strength and the centre of a symmetric line being
    uncorrelated. For a correct clone, its square is distributed as χ² of two degrees of freedom: 1.1 % of the lines
    exceed 3. The prior is part of the fit and makes changes smaller than the data alone would. The clone counts as
    exact.

    Parameters
    ----------
    ledger : Table
        With delta_ln_area, area, area_err, rv_offset and rv_offset_err.

    Returns
    -------
    QTable
        One row a line, in the order of the ledger: area, center (signed), total. NaN where a parameter was held, total
        then being of the other one; NaN where both were.

    Raises
    ------
    ValueError
        If a column is missing.

    Examples
    --------
    >>> from astropy.table import QTable
    >>> import specutils_blase as sb
    >>> area = {"delta_ln_area": [0.3], "area": [0.05], "area_err": [0.005]}
    >>> ledger = QTable({**area, "rv_offset": [0.4], "rv_offset_err": [0.1]})
    >>> float(sb.change_significance(ledger)["total"][0])
    5.0
    """
    _need(ledger, "delta_ln_area", "area", "area_err", "rv_offset", "rv_offset_err")
    area, area_err = (column_values(ledger, name, u.AA) for name in ("area", "area_err"))
    change = column_values(ledger, "delta_ln_area", u.dimensionless_unscaled)
    shift, shift_err = (column_values(ledger, name, KMS) for name in ("rv_offset", "rv_offset_err"))
    with np.errstate(divide="ignore", invalid="ignore"):
        parts = {
            "area": np.where(area_err > 0, change * area / area_err, np.nan),
            "center": np.where(shift_err > 0, shift / shift_err, np.nan),
        }
    fitted = np.isfinite(parts["area"]) | np.isfinite(parts["center"])
    total = np.hypot(*(np.nan_to_num(part) for part in parts.values()))
    table = QTable({**parts, "total": np.where(fitted, total, np.nan)})
    for name, text in (
        ("area", "delta_ln_area over its 1-sigma error"),
        ("center", "rv_offset over its 1-sigma error"),
        ("total", "Both in quadrature"),
    ):
        table[name].info.description = text
    return table


def _inside(wavelength: np.ndarray, region, medium: str) -> np.ndarray:
    if not isinstance(region, SpectralRegion):
        try:
            low, high = (u.Quantity(end, u.AA) if not hasattr(end, "unit") else end for end in region)
        except (TypeError, ValueError):
            raise ValueError(f"expected region as a SpectralRegion or (low, high), got {region!r}") from None
        parts = [(low, high)]
    else:
        parts = region.subregions
    inside = np.zeros(wavelength.size, dtype=bool)
    for ends in parts:
        low, high = sorted(vacuum_wavelength(u.Quantity(end), medium).value.item() for end in ends)
        inside |= (wavelength >= low) & (wavelength <= high)
    return inside


def _need(ledger, *names: str) -> None:
    missing = [name for name in names if name not in ledger.colnames]
    if missing:
        raise ValueError(
            f"expected a ledger with {', '.join(names)}, got {', '.join(ledger.colnames) or 'no columns'}: "
            f"{', '.join(missing)} missing, which the ledger of a fit has"
        )
