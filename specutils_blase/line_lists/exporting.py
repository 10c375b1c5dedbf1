"""From a ledger to a line list for other programs.

Does not live here: line lists coming in (`reading`), the choice of lines (`ledger.selection`).
"""

from __future__ import annotations

import astropy.units as u
import numpy as np
from astropy.table import QTable, Table

from ..ledger.emulator import column_values, observed_centers, text_column
from ..spectra.quantities import to_kms
from ..spectra.wavelengths import air_wavelength

EXPORT_DESCRIPTIONS = {
    "linename": "Species, or the component where it is not identified",
    "rest": "Wavelength of the centre",
    "species": "Species, empty where not identified",
    "component": "star or telluric",
    "line_type": "absorption or emission",
    "depth": "Depth of this line alone at its centre; negative in emission",
    "equivalent_width": "Equivalent width of this line alone; negative in emission",
}


def ledger_to_line_list(ledger: Table, *, unit=u.AA, medium: str = "vacuum", rv=None) -> QTable:
    """Line list of a ledger's lines, with the columns that jdaviz, specutils and `read_line_list` take.

    Parameters
    ----------
    ledger : Table
        Of a clone or a fit: at least center (Å where it has no unit).
    unit : Unit or str
        Unit of the column rest: of wavelength, or of frequency, wavenumber or energy (in vacuum).
    medium : "vacuum" or "air"
        Medium of the wavelengths in the list; those of the ledger are vacuum.
    rv : Quantity or float, optional
        Radial velocity [km/s] that moves stellar lines to their observed wavelengths. By default stellar lines are at
        rest, and a viewer needs the star's redshift.

    Returns
    -------
    QTable
        In the order of the ledger: linename and rest, which jdaviz asks for (``specviz.load_line_list``, or
        ``jdaviz.load(..., format="Line List")``); line_type, as specutils' line finders call it; species and component,
        and depth and equivalent_width where the ledger has them. Its meta has medium, and frame: "rest" or "observed".

    Raises
    ------
    ValueError
        If center is missing or not positive, or `unit` is not spectral, or one of frequency is asked for in air.

    Examples
    --------
    >>> import astropy.units as u
    >>> from astropy.table import QTable
    >>> import specutils_blase as sb
    >>> ledger = QTable({"center": [8690.0] * u.AA, "species": ["Fe I"], "component": ["star"], "depth": [0.4]})
    >>> sb.ledger_to_line_list(ledger, unit=u.nm, rv=30.0)["rest"].round(4)
    <Quantity [869.087] nm>
    """
    if "center" not in ledger.colnames:
        raise ValueError(f"expected a ledger with the column center, got {', '.join(ledger.colnames) or 'none'}")
    if medium not in ("vacuum", "air"):
        raise ValueError(f"expected medium 'vacuum' or 'air', got {medium!r}")
    unit = u.Unit(unit)
    if not unit.is_equivalent(u.AA if medium == "air" else u.Hz, [] if medium == "air" else u.spectral()):
        raise ValueError(f"expected a unit of {'wavelength, in air' if medium == 'air' else 'light'}, got {unit}")
    center = observed_centers(ledger, None if rv is None else to_kms(rv, "rv"))
    if not (np.isfinite(center) & (center > 0)).all():
        raise ValueError("every center of the ledger must be finite and positive (Å)")
    component, species = text_column(ledger, "component", "star"), text_column(ledger, "species")
    depth = column_values(ledger, "depth", u.one) if "depth" in ledger.colnames else np.ones(len(ledger))
    rest = (air_wavelength(center * u.AA) if medium == "air" else center * u.AA).to(unit, u.spectral())
    table = QTable()
    table["linename"] = np.where(species == "", component, species)
    table["rest"] = rest
    table["species"], table["component"] = species, component
    table["line_type"] = np.where(depth < 0, "emission", "absorption")
    for name in ("depth", "equivalent_width"):
        if name in ledger.colnames:
            table[name] = ledger[name]
    for name in table.colnames:
        table[name].info.description = EXPORT_DESCRIPTIONS[name]
    table.meta = {"medium": medium, "frame": "rest" if rv is None else "observed"}
    return table
