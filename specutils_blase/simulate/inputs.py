"""Inputs of a simulation: tables of lines, pixel edges and quantities, checked and turned into float64 arrays."""

from dataclasses import dataclass
from numbers import Real

import astropy.units as u
import numpy as np
from astropy.table import QTable
from scipy.interpolate import BSpline, make_interp_spline

C_KMS = 299792.458  # speed of light, km/s, exact
LINE_UNITS = {"center": u.AA, "area": u.AA, "sigma": u.AA, "gamma": u.AA, "sign": u.one, "rv_offset": u.km / u.s}
LINE_DEFAULTS = {"sign": 1.0, "rv_offset": 0.0}


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

    Examples
    --------
    >>> import specutils_blase as sb
    >>> sb.simulate.pixel_edges([10000.0, 10000.1, 10000.2])[0].round(2)
    array([ 9999.95, 10000.05])
    """
    wavelength = in_unit(wavelength, u.AA, "wavelength")
    if wavelength.ndim != 1 or wavelength.size < 2:
        raise ValueError(f"wavelength has shape {wavelength.shape}: expected one dimension and at least two pixels")
    spacing = np.diff(wavelength)
    if not (np.all(np.isfinite(wavelength)) and wavelength[0] > 0 and np.all(spacing > 0)):
        raise ValueError("wavelength: expected finite, positive, strictly ascending pixel centres; sort them first")
    below: np.ndarray = np.r_[np.inf, spacing[:-1]]
    above: np.ndarray = np.r_[spacing[1:], np.inf]
    gap = (spacing > 1.5 * np.minimum(below, above)) & (spacing.size > 1)
    inner = np.where(gap, np.nan, spacing)
    below, above = np.r_[inner[0], inner], np.r_[inner, inner[-1]]
    below, above = np.where(np.isnan(below), above, below), np.where(np.isnan(above), below, above)
    lonely = np.isnan(below)  # a pixel between two gaps is as wide as the pixels around it
    pixel = np.arange(wavelength.size)
    below[lonely] = above[lonely] = np.interp(pixel[lonely], pixel[~lonely], below[~lonely])
    below[1:], above[:-1] = np.minimum(below[1:], spacing), np.minimum(above[:-1], spacing)  # pixels never overlap
    return np.stack([wavelength - 0.5 * below, wavelength + 0.5 * above], axis=1)


@dataclass(frozen=True)
class Template:
    """A spectrum that is taken as it is, fully resolved, continuum 1: a spline through its samples."""

    spline: BSpline
    low: float
    high: float
    spacing: float  # km/s, the smallest of its samples
    source: str

    def __call__(self, wavelength, component):
        if wavelength[0] < self.low or wavelength[-1] > self.high:
            raise ValueError(
                f"{component}: the template covers {self.low:.2f} to {self.high:.2f} Å, and {wavelength[0]:.2f} to "
                f"{wavelength[-1]:.2f} Å are needed, the reach of velocities and line spread included: take fewer "
                "pixels, or a longer template"
            )
        return self.spline(wavelength)


def component(source, name, resolving_power):
    """A component of the simulation: its lines as a QTable, or a `Template`; and its law, as options.

    Emulators and clones are recognised by their attributes, since nothing of the model is imported here.
    """
    source = getattr(source, "emulator", source)  # of a clone
    if source is None or isinstance(source, Template):
        return source, {}
    if hasattr(source, "shifted_center"):
        return _emulated(source)
    if hasattr(source, "spectral_axis"):
        return _template(source, name, resolving_power), {}
    return line_table(source, name), {}


def _emulated(emulator):
    """Lines of an emulator, by their values, and its law."""

    def values(name):
        return np.array(getattr(emulator, name).detach().cpu().numpy(), dtype=float)

    columns = {"center": values("shifted_center")}
    columns |= {name: values(name) for name in ("area", "sigma", "gamma", "sign", "rv_offset")}
    law = emulator.law
    options = {"flux_scale": law.name}
    if law.name == "minnaert":
        like = law.coefficients

        def limiting_depth(wavelength):
            return law.limiting_depth(like.new_tensor(np.asarray(wavelength, dtype=float))).detach().cpu().numpy()

        options["limiting_depth"] = limiting_depth
    return line_table(columns), options


def _template(spectrum, name, resolving_power):
    """A template Spectrum, if it is one that can be taken as it is."""
    template_power = spectrum.meta.get("resolving_power") if spectrum.meta else None
    if template_power is not None:
        asked = f"{resolving_power:g}" if isinstance(resolving_power, Real) else "the one asked for"
        raise ValueError(
            f"{name}: this template is broadened already, to a resolving power of {template_power:g}, and "
            f"would be broadened once more to {asked}: give specutils_blase.clone(template, "
            f"resolving_power={template_power:g}), whose lines are resolved"
        )
    wavelength, flux = spectrum.spectral_axis.to_value(u.AA), np.asarray(spectrum.flux.value, dtype=float)
    order = np.argsort(wavelength)
    wavelength, flux = wavelength[order], flux[order]
    if flux.ndim != 1 or flux.size < 6 or not np.all(np.isfinite(flux)) or not np.all(np.diff(wavelength) > 0):
        raise ValueError(f"{name}: expected a template of one dimension, finite everywhere, no wavelength twice")
    top = np.percentile(flux, 95)
    if not 0.5 < top < 1.5:
        raise ValueError(
            f"{name}: expected a template in units of its continuum, but 95 % of its flux lie below {top:.3g}: divide "
            "it by its continuum, or give specutils_blase.clone(template, continuum=3)"
        )
    spacing = float(np.min(np.diff(wavelength) / wavelength[:-1])) * C_KMS
    return Template(
        make_interp_spline(wavelength, flux, k=5),
        float(wavelength[0]),
        float(wavelength[-1]),
        spacing,
        str((spectrum.meta or {}).get("source", "")),
    )


def line_table(lines, component=None):
    """Lines as a QTable with every column of LINE_UNITS; of a table with several components, those of one."""
    names = getattr(lines, "colnames", None) or getattr(getattr(lines, "dtype", None), "names", None)
    names = names or list(getattr(lines, "keys", lambda: ())())
    missing = [name for name in LINE_UNITS if name not in names and name not in LINE_DEFAULTS]
    if missing:
        raise ValueError(
            f"lines lack {', '.join(missing)}: expected columns center, area, sigma, gamma in Å, an emulator, a clone "
            f"or a template Spectrum, got {type(lines).__name__}"
        )
    chosen = slice(None)
    if component is not None and "component" in names:
        chosen = np.asarray(lines["component"]) == component
        if not np.any(chosen):
            raise ValueError(f"the table has no lines of the component {component}: choose others, or drop the column")
    n_line = np.size(lines["center"])
    table = QTable()
    for name, unit in LINE_UNITS.items():
        if name == "sign" and name not in names and "depth" in names:  # as ledgers mark emission
            column = np.where(in_unit(lines["depth"], u.one, "depth") < 0, -1.0, 1.0)
        else:
            column = in_unit(lines[name] if name in names else LINE_DEFAULTS[name], unit, name)
        table[name] = np.broadcast_to(column, n_line)[chosen].copy() * unit
    return table


def line_columns(table, component):
    """Arrays center, area, sigma, gamma [Å], sign of a table of lines; each of shape (n_line,)."""
    if table is None:
        return np.zeros((5, 0))
    center, area, sigma, gamma, sign, _ = (table[name].value for name in LINE_UNITS)
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
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be numbers in {str(unit) or 'no unit'} or a Quantity, got {values!r}") from error


def number(value, unit, name):
    """Float of a Quantity or a bare number in ``unit``."""
    array = in_unit(value, unit, name)
    if array.ndim or not np.isfinite(array):
        raise ValueError(f"{name}={value}: expected one finite number")
    return float(array)
