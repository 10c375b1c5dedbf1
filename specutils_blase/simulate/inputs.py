"""Inputs of a simulation: tables of lines, pixel edges and quantities, checked and turned into float64 arrays."""

import astropy.units as u
import numpy as np
from astropy.table import QTable

C_KMS = 299792.458  # speed of light, km/s, exact
UNITS = {"center": u.AA, "area": u.AA, "sigma": u.AA, "gamma": u.AA, "sign": u.one, "rv_offset": u.km / u.s}
OPTIONAL = {"sign": 1.0, "rv_offset": 0.0}


def pixel_edges(wavelength):
    """Edges of pixels midway between neighbouring centres; next to a gap, from the spacing on the other side.

    A spacing more than 1.5 times the smaller of its neighbours is a gap, which no pixel reaches into.

    Parameters
    ----------
    wavelength : array_like or Quantity, shape (n_pix,)
        Pixel centres, strictly ascending [Å].

    Returns
    -------
    numpy.ndarray, shape (n_pix, 2)
        Lower and upper edge [Å].
    """
    wavelength = in_unit(wavelength, u.AA, "wavelength")
    if wavelength.ndim != 1 or wavelength.size < 2:
        raise ValueError(f"wavelength has shape {wavelength.shape}: expected one dimension and at least two pixels")
    spacing = np.diff(wavelength)
    if not (np.all(np.isfinite(wavelength)) and wavelength[0] > 0 and np.all(spacing > 0)):
        raise ValueError("wavelength: expected finite, positive, strictly ascending pixel centres; sort them first")
    below, above = np.r_[np.inf, spacing[:-1]], np.r_[spacing[1:], np.inf]
    gap = (spacing > 1.5 * np.minimum(below, above)) & (spacing.size > 1)
    inner = np.where(gap, np.nan, spacing)
    below, above = np.r_[inner[0], inner], np.r_[inner, inner[-1]]
    below, above = np.where(np.isnan(below), above, below), np.where(np.isnan(above), below, above)
    lonely = np.isnan(below)  # a pixel between two gaps is as wide as the pixels around it
    pixel = np.arange(wavelength.size)
    below[lonely] = above[lonely] = np.interp(pixel[lonely], pixel[~lonely], below[~lonely])
    below[1:], above[:-1] = np.minimum(below[1:], spacing), np.minimum(above[:-1], spacing)  # pixels never overlap
    return np.stack([wavelength - 0.5 * below, wavelength + 0.5 * above], axis=1)


def line_table(lines):
    """Lines as a QTable with every column of UNITS."""
    names = getattr(lines, "colnames", None) or getattr(getattr(lines, "dtype", None), "names", None) or list(lines)
    missing = [name for name in UNITS if name not in names and name not in OPTIONAL]
    if missing:
        raise ValueError(f"lines lack {', '.join(missing)}: expected columns center, area, sigma, gamma in Å")
    n_line = np.size(lines["center"])
    table = QTable()
    for name, unit in UNITS.items():
        column = in_unit(lines[name] if name in names else OPTIONAL[name], unit, name)
        table[name] = np.broadcast_to(column, n_line).copy() * unit
    return table


def line_columns(lines, component):
    """Arrays center, area, sigma, gamma [Å], sign; each of shape (n_line,)."""
    if lines is None:
        return np.zeros((5, 0))
    table = line_table(lines)
    center, area, sigma, gamma, sign, _ = (table[name].value for name in UNITS)
    good = (center > 0) & (area >= 0) & (sigma > 0) & (gamma >= 0) & np.isin(sign, (-1, 1))
    good &= np.isfinite(center + area + sigma + gamma)
    if not np.all(good):
        raise ValueError(
            f"{component}: {np.sum(~good)} lines without physical meaning, expected center > 0, area >= 0, sigma > 0, "
            "gamma >= 0 and sign +1 or -1 (emission is sign = -1 with a positive area)"
        )
    return np.stack([center, area, sigma, gamma, sign])


def checked_edges(edges):
    """Pixel edges [Å], shape (n_pix, 2), or an error."""
    edges = in_unit(edges, u.AA, "edges")
    if edges.ndim != 2 or edges.shape[1] != 2 or len(edges) == 0:
        raise ValueError(f"edges have shape {edges.shape}: expected (n_pix, 2), lower and upper edges in Å")
    if not (np.all(np.isfinite(edges)) and np.all(edges > 0)):
        raise ValueError("edges: expected finite, positive wavelengths in Å")
    if not (np.all(edges[:, 1] > edges[:, 0]) and np.all(np.diff(edges[:, 0]) > 0)):
        raise ValueError("edges: expected lower < upper in each pixel, and pixels in ascending order")
    return edges


def in_unit(values, unit, name):
    """Float array of a Quantity, a column or a bare array in ``unit``."""
    try:
        return np.array(u.Quantity(values, unit, dtype=float).value)
    except u.UnitConversionError as error:
        raise ValueError(f"{name} has the wrong unit, expected {unit}: {error}") from error


def number(value, unit, name):
    """Float of a Quantity or a bare number in ``unit``."""
    array = in_unit(value, unit, name)
    if array.ndim or not np.isfinite(array):
        raise ValueError(f"{name}={value}: expected one finite number")
    return float(array)
