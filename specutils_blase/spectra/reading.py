"""The rim: `specutils.Spectrum` to `~specutils_blase.spectra.data.SpectralData` and back; quantities to numbers.

With `flux`, the only code of the package that knows units, masks, uncertainty types, air and vacuum. Inside the
package, wavelengths are vacuum Å, velocities km/s, noise is one sigma in the unit of the flux, and pixels ascend.

Does not live here: attributes of instruments' own classes (`adapters`), tables of lines (`ledger`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy import units as u
from astropy.coordinates import SpectralCoord
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum
from specutils.utils.wcs_utils import air_to_vac, vac_to_air
from torch import Tensor

from .data import SpectralData
from .flux import WrongUnitsError, float64, read_flux, read_sigma


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


def read_spectrum(spectrum: Spectrum, *, medium: str = "vacuum") -> tuple[SpectralData, SpectrumFrame]:
    """Data tensors of a spectrum, and the frame that leads back to its axis.

    Pixels whose flux is not finite, whose uncertainty is not finite and positive, or whose mask is set are kept but
    marked not good. The axis stays as observed: `radial_velocity` and `redshift` of the spectrum shift nothing. True
    bin edges are used when the spectrum was built from them and still has them (most operations of specutils lose
    them), otherwise `~specutils_blase.spectra.data.pixel_edges`.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        One-dimensional, any spectral unit, ascending or descending. It is not changed.
    medium : {"vacuum", "air"}
        The medium of its wavelengths, which a plain array does not tell.

    Returns
    -------
    data : SpectralData
        float64, ascending, vacuum Å, sharing no memory with `spectrum`.
    frame : SpectrumFrame
        Axis, order, unit and meta, with which results return to the axis of `spectrum`.

    Raises
    ------
    TypeError
        If `spectrum` is not a `~specutils.Spectrum`, or its flux is not real numbers.
    ValueError
        If nothing can be fitted: see the message. `~astropy.units.UnitsError` (one of them) for the units of the axis,
        or a flux in magnitudes, dex or dB.
    """
    if not isinstance(spectrum, Spectrum):
        many = isinstance(spectrum, (list, tuple))
        todo = "read its members one by one" if many else "wrap it, Spectrum(flux=..., spectral_axis=...)"
        raise TypeError(f"expected a specutils.Spectrum, got {type(spectrum).__name__}: {todo}")
    if medium == "vacuum" and _says_air(spectrum):
        raise ValueError(
            "expected vacuum wavelengths, got a spectrum whose WCS (CTYPE AWAV) or meta['medium'] says air: pass "
            "medium='air', or remove the label if it is wrong"
        )
    flux = read_flux(spectrum)
    wavelength = vacuum_wavelength(spectrum.spectral_axis, medium).value
    order = _ascending(wavelength)
    sigma = read_sigma(spectrum)
    edges = _true_edges(spectrum.spectral_axis, medium)

    good = np.isfinite(flux)
    if not good.any():
        raise ValueError(f"expected a spectrum, got {len(flux)} pixels and no finite flux among them: check the file")
    if spectrum.mask is not None:
        good &= ~np.asarray(spectrum.mask).astype(bool)
    if not good.any():
        raise ValueError("expected unmasked pixels, got a mask over all finite flux: True means bad, is it inverted?")
    if sigma is not None and not np.any(good & np.isfinite(sigma) & (sigma > 0)):
        raise ValueError(
            "expected positive uncertainties, got zero, negative or non-finite ones in every usable pixel: correct "
            "them, or set uncertainty=None to fit with unit weights"
        )
    data = SpectralData.from_arrays(  # indexing by `order` makes contiguous copies of native byte order
        wavelength[order],
        flux[order],
        sigma=None if sigma is None else sigma[order],
        good=good[order],
        edges=None if edges is None else edges[order],
    )
    axis = _copy_axis(spectrum.spectral_axis)
    return data, SpectrumFrame(axis, order, spectrum.flux.unit, medium, _plain(spectrum.meta or {}))


def _says_air(spectrum: Spectrum) -> bool:
    """Whether the spectrum itself declares air wavelengths, which specutils reads without a warning."""
    meta = spectrum.meta or {}
    ctypes = [getattr(getattr(wcs, "wcs", None), "ctype", ()) for wcs in (spectrum.wcs, meta.get("original_wcs"))]
    return meta.get("medium") == "air" or any(str(ctype).startswith("AWAV") for ctype in (*ctypes[0], *ctypes[1]))


def _ascending(wavelength: np.ndarray) -> np.ndarray:
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


def _true_edges(axis: u.Quantity, medium: str) -> np.ndarray | None:
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


def _plain(value: Any) -> Any:
    """Copy of a meta entry as numbers, text, arrays, lists, dicts, which every file format holds; else None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, np.ndarray):  # quantities too
        return None if value.dtype.kind == "O" else value.copy()
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, fits.Header):  # no Mapping; COMMENT and HISTORY occur many times and come joined
        value = {key: str(value[key]) if key in ("COMMENT", "HISTORY") else value[key] for key in value if key}
    if isinstance(value, Mapping):
        return {str(key): plain for key, item in value.items() if (plain := _plain(item)) is not None}
    return None  # WCS objects, muler's sky spectrum


@dataclass(frozen=True, eq=False)
class SpectrumFrame:
    """The way back from data tensors to a spectrum on the axis it was read from.

    Parameters
    ----------
    axis : `~astropy.units.Quantity`, shape (n,)
        The original spectral axis: its unit, direction and medium.
    order : ndarray, shape (n,)
        ``order[i]`` is the index on `axis` of data pixel i (ascending vacuum wavelength).
    flux_unit : `~astropy.units.UnitBase`
        Unit of the flux.
    medium : {"vacuum", "air"}
        Medium of `axis`.
    meta : dict
        Plain copy of the spectrum's meta: numbers, text, arrays, lists, dicts; FITS headers as dicts.
    """

    axis: u.Quantity
    order: np.ndarray
    flux_unit: u.UnitBase
    medium: str
    meta: dict[str, Any]

    def spectrum(
        self,
        flux: Tensor | np.ndarray | u.Quantity,
        uncertainty: Tensor | np.ndarray | u.Quantity | None = None,
        mask: Tensor | np.ndarray | None = None,
        meta: dict[str, Any] | None = None,
        *,
        unit: u.UnitBase | str | None = None,
    ) -> Spectrum:
        """A plain `~specutils.Spectrum` on the original axis, in its order and unit.

        Parameters
        ----------
        flux : Tensor or array, shape (n,)
            Values on the data pixels, ascending in vacuum wavelength.
        uncertainty : Tensor or array, shape (n,), optional
            1-sigma errors in the unit of `flux`.
        mask : Tensor or array, shape (n,), optional
            True = bad, for example ``~data.good``.
        meta : dict, optional
            Instead of the meta of the spectrum read; ``meta["medium"]`` is added to either.
        unit : unit, optional
            Unit of `flux`, e.g. ``""`` for a transmission; by default that of the spectrum read, if `flux` has none.

        Returns
        -------
        `~specutils.Spectrum`
            On a copy of `axis`.

        Raises
        ------
        ValueError
            If an array has not the shape of the data.
        """
        unit = self.flux_unit if unit is None else u.Unit(unit)
        values = self._back(flux, "flux")
        values = values if isinstance(values, u.Quantity) else values * unit
        options = {}
        if uncertainty is not None:
            errors = self._back(uncertainty, "uncertainty")
            errors = errors.to(values.unit) if isinstance(errors, u.Quantity) else errors * values.unit
            options["uncertainty"] = StdDevUncertainty(errors)
        if mask is not None:  # left out otherwise: specutils then masks NaN itself
            options["mask"] = self._back(mask, "mask").astype(bool)
        meta = copy.deepcopy(self.meta if meta is None else meta) | {"medium": self.medium}
        return Spectrum(flux=values, spectral_axis=_copy_axis(self.axis), meta=meta, **options)

    def _back(self, values: Any, name: str) -> Any:
        values = _array(values)
        if values.shape != self.order.shape:
            expected = f"expected {name} on the {len(self.order)} pixels of the spectrum that was read"
            raise ValueError(f"{expected}, got shape {values.shape}")
        back = np.empty_like(values)  # keeps the unit of a Quantity
        back[self.order] = values
        return back


def spectrum_on(
    wavelength: Tensor | np.ndarray,
    flux: Tensor | np.ndarray,
    flux_unit: u.UnitBase | str = "",
    meta: dict[str, Any] | None = None,
    uncertainty: Tensor | np.ndarray | None = None,
) -> Spectrum:
    """A plain `~specutils.Spectrum` on given vacuum wavelengths.

    Parameters
    ----------
    wavelength : Tensor or ndarray, shape (n,)
        Vacuum Å.
    flux : Tensor or ndarray, shape (n,)
    flux_unit : unit
        Dimensionless by default.
    meta : dict, optional
        Meta of the spectrum; ``meta["medium"]`` is added.
    uncertainty : Tensor or ndarray, shape (n,), optional
        1-sigma errors in `flux_unit`.

    Returns
    -------
    `~specutils.Spectrum`
    """
    axis = u.Quantity(_array(wavelength), u.AA)
    return SpectrumFrame(axis, np.arange(len(axis)), u.Unit(flux_unit), "vacuum", meta or {}).spectrum(
        flux, uncertainty
    )


def to_kms(value: u.Quantity | float, name: str = "velocity") -> float:
    """A velocity as a number of km/s.

    Parameters
    ----------
    value : `~astropy.units.Quantity` or float
        A bare number is in km/s.
    name : str
        Name of the argument in messages.

    Returns
    -------
    float
        In km/s.

    Raises
    ------
    TypeError
        If `value` is not a number; ValueError if it is not one finite number, or has another unit.
    """
    return to_number(value, u.km / u.s, name)


def to_teff(value: u.Quantity | float, name: str = "teff") -> float:
    """A positive temperature as a number of K; errors as of `to_kms`.

    Parameters
    ----------
    value : `~astropy.units.Quantity` or float
        A bare number is in K.
    name : str
        Name of the argument in messages.

    Returns
    -------
    float
        In K.
    """
    return to_number(value, u.K, name, positive=True)


def to_resolving_power(value: u.Quantity | float, name: str = "resolving_power") -> float:
    """A positive resolving power λ/FWHM as a number; errors as of `to_kms`.

    Parameters
    ----------
    value : `~astropy.units.Quantity` or float
    name : str
        Name of the argument in messages.

    Returns
    -------
    float
    """
    return to_number(value, u.dimensionless_unscaled, name, positive=True)


def to_number(value: Any, unit: u.UnitBase, name: str, positive: bool = False) -> float:
    """One finite number in a unit; errors as of `to_kms`.

    Parameters
    ----------
    value : `~astropy.units.Quantity` or float
        A bare number is in `unit`.
    unit : unit
    name : str
        Name of the argument in messages.
    positive : bool
        Whether zero and negative numbers are errors.

    Returns
    -------
    float
        In `unit`.
    """
    of = "" if unit == u.dimensionless_unscaled else f" of {unit}, or a Quantity that converts to it"
    expected = f"expected {name} as one finite{' positive' if positive else ''} number{of}"
    if isinstance(value, u.Quantity):
        try:
            value = value.to_value(unit)
        except u.UnitConversionError as error:
            raise WrongUnitsError(f"{expected}, got a value in [{value.unit}]") from error
    number = _array(value)
    if number.dtype.kind not in "iuf":  # text, None, booleans, complex
        raise TypeError(f"{expected}, got {value!r} ({type(value).__name__})")
    if number.ndim:
        raise ValueError(f"{expected}, got values of shape {number.shape}")
    if not np.isfinite(number) or (positive and number <= 0):
        raise ValueError(f"{expected}, got {number}")
    return float(number)


def _array(values: Any) -> Any:
    """Anything as an array on the CPU; quantities as they are."""
    values = values.detach().cpu().numpy() if isinstance(values, Tensor) else values
    return values if isinstance(values, u.Quantity) else np.asarray(values)


def _copy_axis(axis: u.Quantity) -> u.Quantity:
    """A copy that, unlike ``axis.copy()``, still has the bin edges it was built from."""
    new = axis.copy()
    if getattr(axis, "_bin_edges", None) is not None:
        new._bin_edges = axis._bin_edges.copy()
    return new
