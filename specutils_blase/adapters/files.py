"""Spectra from any file: through muler, through any reader of specutils, or from a plain table.

Does not live here: our own ASDF files (`asdf`), units and masks of the spectrum (`spectra.reading`), the files of HPF,
IGRINS and NIRSPEC themselves (`loaders`).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import astropy.units as u
import numpy as np
from astropy.io.registry import IORegistryError
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable
from astropy.wcs import WCS, FITSFixedWarning
from specutils import Spectrum, SpectrumList

from .identify import instrument_of
from .loaders import from_hpf, from_igrins, from_nirspec
from .muler import HPF_ORDERS, load_hpf, load_hpf_orders

COLUMN_SPELLINGS = {
    "wavelength": ("wavelength", "wave", "lambda"),
    "flux": ("flux", "transmission"),
    "uncertainty": ("uncertainty", "error", "err", "sigma", "flux_err"),
}
"""Names that the columns of a plain table may have; the last column is optional."""

READER_ERRORS = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, IORegistryError)
"""Errors of the readers of specutils and astropy at a file that is not theirs."""


def load_spectrum(path, *, order: int | None = None, format: str | None = None) -> Spectrum:
    """One spectrum of a file.

    Parameters
    ----------
    path : path-like
        A reduced HPF, IGRINS or NIRSPEC file; a file that specutils reads; or a table that astropy reads, with the
        columns wavelength (Å where it has no unit), flux and, optionally, uncertainty.
    order : int, optional
        Which one, from the blue, for files that hold several; HPF's are reduced as `load_hpf` says.
    format : str, optional
        Name of specutils' format, where it does not recognise the file.

    Raises
    ------
    ValueError
        If the file cannot be read as a spectrum, or holds several and `order` does not choose one.
    OSError
        If there is no such file.
    """
    path = _existing(path)
    instrument = instrument_of(path) if format is None else None
    if instrument == "HPF":
        if order is None:
            raise ValueError(f"{path} holds {HPF_ORDERS} orders of HPF: choose one, order=0 to {HPF_ORDERS - 1}")
        return load_hpf(path, order)
    if instrument is not None:
        return _one(from_igrins(path) if instrument == "IGRINS" else from_nirspec(path), order, path)
    classes = (Spectrum, SpectrumList) if order is None else (SpectrumList, Spectrum)
    return _one(_read(path, classes, format), order, path)


def load_orders(paths: Sequence, *, format: str | None = None, extension: str | None = None) -> SpectrumList:
    """All spectra of a file, or of the files of one observation.

    Parameters
    ----------
    paths : sequence of path-like
        One file of anything that `load_spectrum` reads; or the H and the K file of IGRINS; or orders of NIRSPEC.
    format : str, optional
        Name of specutils' format, where it does not recognise the file.
    extension : str, optional
        EXTNAME of the flux, see `~specutils_blase.from_igrins`.

    Returns
    -------
    `~specutils.SpectrumList`
        As they are in the file, nothing reduced.

    Raises
    ------
    ValueError
        If a file cannot be read, or the files do not belong together.
    OSError
        If there is no such file.
    """
    paths = [_existing(path) for path in paths]
    instruments = {instrument_of(path) for path in paths} if format is None else {None}
    if extension is not None and instruments != {"IGRINS"}:
        raise ValueError(f"extension {extension} chooses among the fluxes of an IGRINS file, {paths[0]} is none")
    if instruments == {"IGRINS"}:
        return from_igrins(paths, extension=extension)
    if instruments == {"NIRSPEC"}:
        return from_nirspec(paths)
    if len(paths) != 1:
        kinds = ", ".join(str(kind or "another") for kind in sorted(instruments, key=str))
        raise ValueError(
            f"expected one file, the H and K files of IGRINS, or orders of NIRSPEC, got {len(paths)} files of {kinds}"
        )
    if instruments == {"HPF"}:
        return from_hpf(paths[0])
    spectra = _read(paths[0], (SpectrumList, Spectrum), format)
    return SpectrumList([spectra] if isinstance(spectra, Spectrum) and spectra.data.ndim < 2 else list(spectra))


def load_observation(
    paths: Sequence, *, orders: Sequence[int] | None = None, format: str | None = None, extension: str | None = None
) -> Spectrum | SpectrumList:
    """Input of a fit: one spectrum, or a list of all orders or of those chosen.

    Parameters
    ----------
    paths, format, extension
        See `load_orders`; HPF's orders are reduced as `load_hpf` says.
    orders : sequence of int, optional
        Positions among the spectra of the files, from the blue.

    Raises
    ------
    ValueError
        As `load_orders`, and if there is no such order.
    OSError
        If there is no such file.
    """
    paths = [_existing(path) for path in paths]
    if extension is None and len(paths) == 1 and orders is not None and len(orders) == 1:
        return load_spectrum(paths[0], order=orders[0], format=format)
    is_hpf = format is None and extension is None and len(paths) == 1 and instrument_of(paths[0]) == "HPF"
    chosen = range(HPF_ORDERS) if is_hpf else load_orders(paths, format=format, extension=extension)
    if orders is not None:
        chosen = [_one(chosen, order, paths[0]) for order in orders]
    if is_hpf:
        chosen = load_hpf_orders(paths[0], chosen)
    return chosen[0] if len(chosen) == 1 else SpectrumList(chosen)


def _existing(path) -> Path:
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"expected the file of a spectrum, got the folder {path}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    return path


def _read(path: Path, classes: tuple[Any, ...], format: str | None) -> Spectrum | SpectrumList:
    """By the first reader that can, those of specutils for each class in turn before the one for tables."""
    options = {} if format is None else {"format": format}
    readers = [(cls.read, options) for cls in classes]
    if format is None:
        readers.append((_from_table, {}))
    reasons = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)  # of readers that try a table's header as coordinates
        for read, options in readers:
            try:
                return _on_wavelengths(read(str(path), **options))
            except READER_ERRORS as error:
                reasons.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    hint = "give its specutils format, or a table with the columns wavelength, flux, uncertainty"
    raise ValueError(f"cannot read a spectrum from {path} ({reasons[0].rstrip('.')}): {hint}")


def _on_wavelengths(spectra: Spectrum | SpectrumList) -> Spectrum | SpectrumList:
    """The spectra as read; ValueError if the header has no wavelengths, for which specutils puts pixels in Å."""
    for spectrum in [spectra] if isinstance(spectra, Spectrum) else spectra:
        header = spectrum.meta.get("header") or {}
        axes = spectrum.wcs
        counted = isinstance(axes, WCS) and axes.naxis == 1 and axes.wcs.cdelt[0] == 1.0 and axes.wcs.crval[0] == 0.0
        if counted and not any(key in header for key in ("CRVAL1", "CDELT1", "CD1_1", "PC1_1", "CTYPE1")):
            raise ValueError("its header tells no wavelengths, CRVAL1 and CDELT1 are missing")
    return spectra


def _one(spectra, order: int | None, path: Path) -> Spectrum:
    """The one spectrum asked for, of a spectrum, a list, or a stack of rows."""
    if isinstance(spectra, Spectrum) and spectra.data.ndim < 2:
        spectra = [spectra]
    number = len(spectra)
    if order is None and number == 1:
        order = 0
    if order is None:
        raise ValueError(f"{path} holds {number} spectra: choose one, order=0 to {number - 1}")
    if not 0 <= order < number:
        raise ValueError(f"{path} holds {number} spectra, order must lie between 0 and {number - 1}, got {order}")
    return spectra[order]


def _from_table(path: str) -> Spectrum:
    table = QTable.read(path)
    column_names = {name.lower(): name for name in table.colnames}
    columns = {}
    for wanted, spellings in COLUMN_SPELLINGS.items():
        name = next((column_names[spelling] for spelling in spellings if spelling in column_names), None)
        if name is None and wanted != "uncertainty":
            raise ValueError(f"no column {wanted} among {', '.join(table.colnames)}")
        if name is not None:
            column = table[name]
            column = column.filled(np.nan) if hasattr(column, "filled") else column
            columns[wanted] = u.Quantity(column, dtype=float)
    wavelength = columns["wavelength"]
    wavelength = wavelength.value * u.AA if wavelength.unit == u.dimensionless_unscaled else wavelength
    options = {"uncertainty": StdDevUncertainty(columns["uncertainty"])} if "uncertainty" in columns else {}
    return Spectrum(spectral_axis=wavelength, flux=columns["flux"], mask=np.isnan(columns["flux"].value), **options)
