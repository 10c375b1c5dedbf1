"""Whole échelle spectra from the files of HPF, IGRINS and NIRSPEC, as muler's lists of orders.

The lists and orders are of muler's classes, so that its methods work on them. These loaders also take `pathlib.Path`,
compressed files, H and K together, files of other names, and the earlier form of IGRINS' files, which muler 0.5.6 does
not read. Nothing is reduced: fluxes are those of the file, wavelengths are as observed, in vacuum, and the sky fibre is
left to muler.

Does not live here: recognition of files (`identify`), the content of headers (`muler`, `barycentric`).
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from astropy.utils.exceptions import AstropyUserWarning
from specutils import Spectrum, SpectrumList

from . import barycentric
from .identify import DIVIDED_EXTENSION, NIRSPEC_COLUMNS, hpf_pipeline, igrins_layout, is_nirspec_table, open_fits
from .muler import NOT_HPF, quiet_muler

IGRINS_BANDS = {"H": (1.40, 1.85, 98), "K": (1.83, 2.55, 71)}
"""Wavelengths [µm] and the grating's order of the reddest row, as in muler."""

HPF_RANGE_AA = (7_500.0, 13_500.0)
NIRSPEC_RANGE_AA = (9_000.0, 56_000.0)
"""Widest ranges of wavelengths [Å] of the instruments."""

SAME_EXPOSURE_SECONDS = 600.0
"""Limit on the difference in time of the H and the K file of one observation."""


def from_hpf(path) -> SpectrumList:
    """All orders of an HPF file, as they are in it.

    Parameters
    ----------
    path : path-like
        File of the Goldilocks pipeline, or of the instrument team's ("Slope"), whatever it is called.

    Returns
    -------
    muler.hpf.HPFSpectrumList
        28 orders, blue to red, [ct] against vacuum Å as observed; sky and calibration fibre in each order's meta.
        Pixels without light are zeros, or NaN, and masked.

    Raises
    ------
    ValueError
        If the file is not a reduced HPF spectrum, damaged, cut short, or without a single finite pixel.
    OSError
        If there is no such file, or it is a folder.

    See Also
    --------
    specutils_blase.adapters.muler.load_hpf : one order, sky-subtracted and deblazed.
    """
    with quiet_muler(), open_fits(path, "HPF") as units:
        pipeline = hpf_pipeline(units)
        if pipeline is None:
            raise ValueError(f"{path} {NOT_HPF}, got {_contents(units)}")
        number = _common_shape(path, units, range(1, 10))[0]
        for fibre in (7, 8, 9):
            _check_wavelengths(path, np.asarray(units[fibre].data, dtype=float), HPF_RANGE_AA, "Å")
        from muler.hpf import HPFSpectrum, HPFSpectrumList

        orders = [HPFSpectrum(file=pipeline, order=order, cached_hdus=[units]) for order in range(number)]
    return HPFSpectrumList(_with_light(path, orders))


def from_igrins(path, *, extension: str | None = None) -> SpectrumList:
    """All orders of an IGRINS file, or of the H and the K file of one observation.

    Parameters
    ----------
    path : path-like or sequence of path-like
        A ``spec_a0v.fits`` file, of the later form or of the earlier one without variances, or a ``spec.fits`` file,
        whose variances are read from the ``variance.fits`` beside it where that is there; or two, one of each band. A
        partner is never looked for.
    extension : str, optional
        EXTNAME of the flux: by default ``SPEC_DIVIDE_A0V``, as in muler: the target divided by a hot star, so that most
        of the telluric absorption is gone. To fit the Earth's atmosphere itself give ``"TGT_SPEC"``.

    Returns
    -------
    muler.igrins.IGRINSSpectrumList
        Orders from blue to red, against vacuum Å as observed. Where the file has no variances the orders have no
        uncertainty, and a warning says so.

    Raises
    ------
    ValueError
        If a file is not IGRINS', has no such extension, is damaged, cut short, or without a single finite pixel; or if
        two files are of the same band, of two targets, or of two exposures.
    OSError
        If there is no such file, or it is a folder.
    """
    paths = _paths(path)
    if len(paths) > 2:
        raise ValueError(f"expected one IGRINS file, or its H and its K file, got {len(paths)} files")
    with quiet_muler():
        from muler.igrins import IGRINSSpectrumList

        read = [_read_igrins(path, extension) for path in paths]
        if len(read) == 2:
            _check_pair(paths, *read)
        orders = [order for _, _, orders in sorted(read, key=lambda part: part[0]) for order in orders]
        spectra = IGRINSSpectrumList(orders)
    silent = [str(path) for path, (_, _, orders) in zip(paths, read, strict=True) if orders[0].uncertainty is None]
    if silent:
        warnings.warn(
            f"no variances of {', '.join(silent)}: the noise is unknown, errors of a fit can only be relative",
            AstropyUserWarning,
            stacklevel=2,
        )
    return spectra


def from_nirspec(path) -> SpectrumList:
    """Orders of NIRSPEC, one a file, of the NSDRP pipeline.

    Parameters
    ----------
    path : path-like or sequence of path-like
        Files ``NS.*_NN_flux_tbl.fits``, NN being the number of the order. The header is that of the companion
        ``NS.*_NN_flux.fits``, in the same folder or, with ``fitstbl`` in the path, in the parallel ``fits``.

    Returns
    -------
    muler.nirspec.KeckNIRSPECSpectrumList
        Orders from blue to red, [ct] against vacuum Å as observed; the subtracted sky in each order's meta. Without
        companions, target, time and barycentric velocity are unknown, and a warning says so.

    Raises
    ------
    ValueError
        If a file, or its companion, is not NIRSPEC's, is damaged, cut short, or without a single finite pixel; or if
        the files' names are of several exposures.
    OSError
        If there is no such file, or it is a folder.
    """
    paths = _paths(path)
    exposures = {match[0] for path in paths if (match := re.match(r"NS\.\d+\.\d+", path.name))}
    if len(exposures) > 1:
        raise ValueError(f"expected orders of one NIRSPEC exposure, got files of {', '.join(sorted(exposures))}")
    with quiet_muler():
        from muler.nirspec import KeckNIRSPECSpectrumList

        orders = [_read_nirspec(path) for path in paths]
        alone = [str(path) for path, order in zip(paths, orders, strict=True) if order.meta["header"] is None]
        spectra = KeckNIRSPECSpectrumList(sorted(orders, key=lambda order: order.spectral_axis[0]))
    if alone:
        warnings.warn(
            f"no header of {', '.join(alone)} ({_companion(Path(alone[0]))} is missing): target, time of observation "
            "and barycentric velocity are unknown",
            AstropyUserWarning,
            stacklevel=2,
        )
    return spectra


def _paths(path) -> list[Path]:
    if isinstance(path, str | os.PathLike):
        return [Path(path)]
    if not isinstance(path, Iterable) or not (paths := [Path(item) for item in path]):
        raise TypeError(f"expected a path or a sequence of paths, got {path!r}")
    return paths


def _contents(units: fits.HDUList) -> str:
    """What a file holds, for messages."""
    instrument = units[0].header.get("INSTRUME")
    names = ", ".join(unit.name or "?" for unit in units[:6]) + (", ..." if len(units) > 6 else "")
    return f"{'no INSTRUME' if instrument is None else f'INSTRUME = {instrument}'} and {len(units)} units ({names})"


def _common_shape(path, units: fits.HDUList, numbers) -> tuple[int, ...]:
    shapes = {() if units[number].data is None else units[number].data.shape for number in numbers}
    if len(shapes) != 1 or len(shape := shapes.pop()) != 2:
        raise ValueError(f"{path} is damaged: its units are not images of one shape (orders, pixels)")
    return shape


def _check_wavelengths(path, rows: np.ndarray, limits: tuple[float, float], unit: str) -> None:
    """Rising, and such as the instrument sees. specutils accepts repeated ones, and any unit."""
    for row, values in enumerate(rows):
        if not np.all(np.isfinite(values)):
            raise ValueError(f"row {row} of {path} is no spectrum: not all its wavelengths are finite")
        if np.any(np.diff(values) <= 0):
            raise ValueError(f"row {row} of {path} is no spectrum: its wavelengths do not rise from pixel to pixel")
    if rows.min() < limits[0] or rows.max() > limits[1]:
        raise ValueError(
            f"{path} holds wavelengths from {rows.min():g} to {rows.max():g}: expected {limits[0]:g} to {limits[1]:g} "
            f"{unit}"
        )


def _with_light(path, orders: list[Spectrum]) -> list[Spectrum]:
    if not any(np.isfinite(order.flux.value).any() for order in orders):
        raise ValueError(f"{path} has no finite pixel")
    return orders


def _read_igrins(path: Path, extension: str | None) -> tuple[str, fits.Header, list[Spectrum]]:
    """Band, header and orders (blue to red) of one file."""
    from muler.igrins import IGRINSSpectrum

    with open_fits(path, "IGRINS") as units:
        layout = igrins_layout(units, extension)
        if layout is None:
            wanted = "flux" if extension is None else extension
            raise ValueError(
                f"{path} is not a reduced IGRINS spectrum: expected INSTRUME = IGRINS, with {wanted} and WAVELENGTH of "
                f"one shape (orders, pixels), got {_contents(units)}"
            )
        header = units[layout.flux].header.copy()
        if layout.flux:  # as muler does: the observation's keywords stand in the primary header
            header.extend(units[0].header)
        flux, micron = (np.array(units[number].data) for number in (layout.flux, layout.wavelength))
        variance: np.ndarray | None = None
        if layout.variance is not None:
            variance = np.array(units[layout.variance].data)
        elif layout.flux == 0 and units[0].name != DIVIDED_EXTENSION:
            variance = _variance_beside(path, flux.shape)
    band = _band(path, micron)
    orders = []
    for row in range(len(micron)):
        if variance is None:
            order = _without_noise(IGRINSSpectrum, micron[row], flux[row])
            order.meta.update(m=IGRINS_BANDS[band][2] + row, header=header)
        else:
            units = [_Unit(header, flux), _Unit(None, variance), _Unit(None, micron)]
            order = IGRINSSpectrum(order=row, band=band, cached_hdus=units)
        orders.append(order)
    orders.sort(key=lambda order: order.spectral_axis[0])
    return band, header, _with_light(path, orders)


class _Unit:
    """The part of a FITS unit that muler reads."""

    def __init__(self, header: fits.Header | None, data: np.ndarray):
        self.header, self.data = header, data


def _without_noise(cls: type, micron: np.ndarray, flux: np.ndarray) -> Spectrum:
    """The same as muler's reader makes, where there are no variances to give it."""
    flux = np.asarray(flux, dtype=float)
    return cls(spectral_axis=(micron * u.um).to(u.AA), flux=flux * u.ct, mask=np.isnan(flux), wcs=None, meta={})


def _variance_beside(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    """Variances of the plain form, which the pipeline writes to a file of their own; None if it is not there."""
    name, n_replaced = re.subn(r"\.spec(_flattened)?\.fits", ".variance.fits", path.name)
    beside = path.with_name(name)
    if not n_replaced or not beside.exists():
        return None
    with open_fits(beside, "IGRINS variances") as units:
        if units[0].data is None or units[0].data.shape != shape:
            raise ValueError(f"{beside} does not hold the variances of {path}: expected an image of shape {shape}")
        return np.array(units[0].data)


def _band(path: Path, micron: np.ndarray) -> str:
    """Band by the wavelengths, whatever the file is called; wavelengths outside both bands are an error."""
    band = "H" if micron.max() < IGRINS_BANDS["H"][1] else "K"
    low, high, _ = IGRINS_BANDS[band]
    _check_wavelengths(path, micron, (low, high), f"µm ({band})")
    return band


def _check_pair(paths: list[Path], first: Any, second: Any) -> None:
    """Two bands of one exposure of one star, or an error."""
    both = f"{paths[0]} and {paths[1]} are not the H and K spectra of one exposure"
    if first[0] == second[0]:
        raise ValueError(f"{both}: both are {first[0]}")
    targets = [barycentric.text(part[1], "OBJECT") for part in (first, second)]
    if targets[0] != targets[1]:
        raise ValueError(f"{both}: the targets are {targets[0]} and {targets[1]}")
    times = [barycentric.mid_exposure(part[1], "IGRINS") for part in (first, second)]
    known = [time for time in times if time is not None]
    if len(known) == 2 and (apart := abs((known[1] - known[0]).sec)) > SAME_EXPOSURE_SECONDS:
        raise ValueError(f"{both}: they are {apart / 60:.0f} minutes apart")


def _read_nirspec(path: Path) -> Spectrum:
    from muler.nirspec import KeckNIRSPECSpectrum

    with open_fits(path, "NIRSPEC") as units:
        if not is_nirspec_table(units):
            raise ValueError(
                f"{path} is not a NIRSPEC spectrum of the NSDRP pipeline: expected a table with the columns "
                f"{', '.join(NIRSPEC_COLUMNS)}, got {_contents(units)}"
            )
        wavelength, flux, noise, sky = (np.array(units[1].data[name], dtype=float) for name in NIRSPEC_COLUMNS)
    _check_wavelengths(path, wavelength[None], NIRSPEC_RANGE_AA, "Å")
    number = re.search(r"_(\d{2,3})_flux_tbl\.", path.name)
    meta = {"pipeline": "NSDRP", "m": int(number[1]) if number else None, "header": _nirspec_header(path)}
    common = {
        "spectral_axis": wavelength * u.AA,
        "uncertainty": StdDevUncertainty(noise * u.ct),
        "mask": ~(np.isfinite(flux) & (noise > 0)),
        "wcs": None,
    }
    order = KeckNIRSPECSpectrum(flux=flux * u.ct, meta=meta, **common)
    order.meta["sky"] = KeckNIRSPECSpectrum(flux=sky * u.ct, meta=meta.copy(), **common)
    return _with_light(path, [order])[0]


def _companion(path: Path) -> Path:
    """Path of the image with the full header, by the pipeline's naming."""
    return Path(str(path).replace("/fitstbl/", "/fits/").replace("_flux_tbl.", "_flux."))


def _nirspec_header(path: Path) -> fits.Header | None:
    companion = _companion(path)
    if companion == path or not companion.exists():
        return None
    with open_fits(companion, "NIRSPEC") as units:
        header = units[0].header
        if not str(header.get("INSTRUME", "")).upper().startswith("NIRSPEC"):
            raise ValueError(f"{companion}, beside {path}, is not NIRSPEC's: {_contents(units)}")
        return header
