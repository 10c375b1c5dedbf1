"""Wavelengths: air to vacuum and back, their order, the edges of pixels.

Does not live here: fluxes and masks (`spectra.reading`, `spectra.flux`), grids of the model (`physics.grids`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from astropy import units as u
from astropy.coordinates import SpectralCoord
from specutils import Spectrum
from specutils.utils.wcs_utils import air_to_vac, vac_to_air

from .flux import WrongUnitsError, float64


def vacuum_wavelength(axis: u.Quantity, medium: str = "vacuum") -> u.Quantity:
    """Vacuum wavelength of any spectral quantity.

    Air is that of Ciddor (1996, Appl. Opt. 35, 1566, eq. 1: dry, 15 °C, 101325 Pa, 450 ppm CO2), inverted by iteration.

    Parameters
    ----------
    axis : `~astropy.units.Quantity`
        Wavelength, frequency, wavenumber or energy; or a velocity, if it is a `~astropy.coordinates.SpectralCoord` that
        carries a rest value and a convention.
    medium : {"vacuum", "air"}
        The medium of `axis`. For "air", a frequency, wavenumber or energy is taken as one that was computed from an air
        wavelength by λ = c/ν, as astropy does: it is no frequency of light.

    Returns
    -------
    `~astropy.units.Quantity`
        Vacuum wavelength [Å], float64, of the shape and in the order of `axis`.

    Raises
    ------
    `~astropy.units.UnitsError`
        If `axis` is in pixels, in a unit that is not spectral, or a velocity without rest value or convention.
    ValueError
        If a wavelength is not finite and positive, or in air and below 2000 Å, or `medium` is unknown.
    """
    if medium not in ("vacuum", "air"):
        raise ValueError(f"expected medium 'vacuum' or 'air', got {medium!r}")
    rest, convention = getattr(axis, "doppler_rest", None), getattr(axis, "doppler_convention", None)
    if axis.unit.is_equivalent(u.km / u.s):
        if rest is None or convention is None:
            raise WrongUnitsError(
                f"expected a velocity axis with its reference, got [{axis.unit}] with rest value {rest} and convention "
                f"{convention}: give both, Spectrum(..., rest_value=8664.52 * u.AA, velocity_convention='optical')"
            )
    elif not axis.unit.is_equivalent(u.AA, u.spectral()):
        raise WrongUnitsError(
            "expected a spectral axis in wavelength, frequency, wavenumber, energy or velocity, got "
            f"[{axis.unit}]: calibrate it, Spectrum(flux=..., spectral_axis=wavelength * u.AA)"
        )
    values = float64(axis.value)
    with np.errstate(divide="ignore", invalid="ignore"):  # zero frequency, superluminal velocity: reported below
        coordinate = SpectralCoord(values, axis.unit, doppler_rest=rest, doppler_convention=convention)
        wavelength = float64(coordinate.to_value(u.AA))
    bad = np.flatnonzero(~(np.isfinite(wavelength) & (wavelength > 0)))
    if len(bad):
        raise ValueError(
            f"expected finite, positive wavelengths, got {values.flat[bad[0]]:g} {axis.unit} at pixel {bad[0]} and "
            f"{len(bad) - 1} more like it: remove these pixels or repair the spectral axis"
        )
    if medium == "air":
        wavelength = _refract(air_to_vac, wavelength, method="Ciddor1996", scheme="iteration")
    return wavelength * u.AA


def air_wavelength(axis: u.Quantity) -> u.Quantity:
    """Wavelength in air of any vacuum spectral quantity; inverse of `vacuum_wavelength`.

    Parameters
    ----------
    axis : `~astropy.units.Quantity`
        As of `vacuum_wavelength`, in vacuum.

    Returns
    -------
    `~astropy.units.Quantity`
        Wavelength [Å] in the air of Ciddor (1996), float64, of the shape of `axis`.

    Raises
    ------
    ValueError
        As `vacuum_wavelength`, and for wavelengths below 2000 Å.
    """
    return _refract(vac_to_air, vacuum_wavelength(axis).value, method="Ciddor1996") * u.AA


def _refract(convert: Any, wavelength: np.ndarray, **options: str) -> np.ndarray:
    if not wavelength.size:
        return wavelength
    if wavelength.min() < 2000:
        raise ValueError(
            f"expected air wavelengths above 2000 Å, got {wavelength.min():g} Å: below it they are given in vacuum, "
            "pass medium='vacuum'"
        )
    # In µm: the iteration of specutils stops at an absolute 1e-12, which is below the rounding of a float64 in Å.
    return convert(wavelength * 1e-4 * u.um, **options).value * 1e4


def says_air(spectrum: Spectrum) -> bool:
    """Whether the spectrum itself declares air wavelengths, which specutils reads without a warning."""
    meta = spectrum.meta or {}
    ctypes = [getattr(getattr(wcs, "wcs", None), "ctype", ()) for wcs in (spectrum.wcs, meta.get("original_wcs"))]
    return meta.get("medium") == "air" or any(str(ctype).startswith("AWAV") for ctype in (*ctypes[0], *ctypes[1]))


def ascending(wavelength: np.ndarray) -> np.ndarray:
    """Indices that sort ascending or descending wavelengths; others are an error."""
    step = np.diff(wavelength)
    if np.any(step == 0):
        twice = wavelength[:-1][step == 0]
        raise ValueError(
            f"expected distinct wavelengths, got {len(twice)} duplicate(s), the first at {twice[0]:.6f} Å (vacuum): "
            "remove or average these pixels; give overlapping orders as a list"
        )
    turns = np.flatnonzero((step > 0) != (step[0] > 0))
    if len(turns):
        raise ValueError(
            f"expected ascending or descending wavelengths, got a turn at {wavelength[turns[0]]:.6f} Å (vacuum): not "
            "monotonic, sort the pixels; give overlapping orders as a list"
        )
    index = np.arange(len(wavelength))
    return index if step[0] > 0 else index[::-1].copy()


def true_edges(axis: u.Quantity, medium: str) -> np.ndarray | None:
    """Edges (n, 2) [vacuum Å] that the axis was built from, in its own order; None if it has none."""
    # The public `bin_edges` always answers, with midpoints that bridge gaps; only the private attribute shows whether
    # edges were given. specutils drops it in every operation that makes new centres, except in-place ones: hence the
    # check.
    edges = getattr(axis, "_bin_edges", None)
    if edges is None or len(edges) != len(axis) + 1:
        return None
    values, centres = float64(edges.to_value(axis.unit)), float64(axis.value)
    rounding = 4 * np.abs(centres) * max(np.finfo(a.dtype).eps for a in (axis, edges) if a.dtype.kind == "f")
    if np.any(np.abs(0.5 * (values[1:] + values[:-1]) - centres) > 1e-6 * np.abs(np.diff(values)) + rounding):
        return None
    doppler = {"doppler_rest": axis.doppler_rest, "doppler_convention": axis.doppler_convention}
    values = vacuum_wavelength(SpectralCoord(values, axis.unit, **doppler), medium).value
    return np.sort(np.stack([values[:-1], values[1:]], axis=1), axis=1)
