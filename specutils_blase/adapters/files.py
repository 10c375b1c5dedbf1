"""A spectrum from a file, whoever wrote it: HPF's through muler, anything that specutils reads, or a plain table.

Does not live here: our own ASDF files (`asdf`), what the spectrum then means (`spectrum`).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import astropy.units as u
import numpy as np
from astropy.io.registry import IORegistryError
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable
from astropy.wcs import FITSFixedWarning
from specutils import Spectrum, SpectrumList

from .muler import HPF_ORDERS, is_hpf, load_hpf

COLUMNS = {
    "wavelength": ("wavelength", "wave", "lambda"),
    "flux": ("flux", "transmission"),
    "uncertainty": ("uncertainty", "error", "err", "sigma", "flux_err"),
}
"""What a column of a plain table may be called; the last is optional."""

UNREADABLE = (OSError, ValueError, TypeError, KeyError, IndexError, AttributeError, IORegistryError)
"""What the readers of specutils and astropy raise at a file that is not theirs."""


def load_spectrum(path, *, order: int | None = None, format: str | None = None) -> Spectrum:
    """One spectrum of a file.

    Parameters
    ----------
    path : path-like
        A reduced HPF file; a file that specutils reads; or a table that astropy reads, with the columns wavelength (Å
        where it has no unit), flux and, optionally, uncertainty.
    order : int, optional
        Which one, for files that hold several; HPF's are reduced as `load_hpf` says.
    format : str, optional
        Name of specutils' format, where it does not recognise the file.

    Raises
    ------
    ValueError
        If the file cannot be read as a spectrum, or holds several and `order` does not choose one.
    OSError
        If there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"expected the file of a spectrum, got the folder {path}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    if is_hpf(path) and format is None:
        if order is None:
            raise ValueError(f"{path} holds {HPF_ORDERS} orders of HPF: choose one, order=0 to {HPF_ORDERS - 1}")
        return load_hpf(path, order)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FITSFixedWarning)  # of readers that try a table's header as coordinates
        return _read(path, order, format)


def _read(path: Path, order: int | None, format: str | None) -> Spectrum:
    options = {} if format is None else {"format": format}
    reasons = []
    for cls in (Spectrum, SpectrumList) if order is None else (SpectrumList, Spectrum):
        try:
            return _one(cls.read(str(path), **options), order, path)
        except _NotOneSpectrum:
            raise
        except UNREADABLE as error:
            reasons.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    if format is None:
        try:
            return _from_table(QTable.read(str(path)))
        except UNREADABLE as error:
            reasons.append(str(error).strip().splitlines()[0])
    hint = "give its specutils format, or a table with the columns wavelength, flux, uncertainty"
    raise ValueError(f"cannot read a spectrum from {path} ({reasons[0].rstrip('.')}): {hint}")


class _NotOneSpectrum(ValueError):
    """A file that was read well, but not to one spectrum: no reason to try another reader."""


def _one(found, order: int | None, path: Path) -> Spectrum:
    """The one spectrum asked for, of a spectrum, a list, or a stack of rows."""
    if isinstance(found, Spectrum) and found.flux.ndim < 2:
        found = [found]
    number = len(found)
    if order is None and number == 1:
        order = 0
    if order is None:
        raise _NotOneSpectrum(f"{path} holds {number} spectra: choose one, order=0 to {number - 1}")
    if not 0 <= order < number:
        raise _NotOneSpectrum(f"{path} holds {number} spectra, order must lie between 0 and {number - 1}, got {order}")
    return found[order]


def _from_table(table: QTable) -> Spectrum:
    names = {name.lower(): name for name in table.colnames}
    columns = {}
    for wanted, spellings in COLUMNS.items():
        found = next((names[spelling] for spelling in spellings if spelling in names), None)
        if found is None and wanted != "uncertainty":
            raise ValueError(f"no column {wanted} among {', '.join(table.colnames)}")
        if found is not None:
            column = table[found]
            column = column.filled(np.nan) if hasattr(column, "filled") else column
            columns[wanted] = u.Quantity(column, dtype=float)
    wavelength = columns["wavelength"]
    wavelength = wavelength.value * u.AA if wavelength.unit == u.dimensionless_unscaled else wavelength
    options = {"uncertainty": StdDevUncertainty(columns["uncertainty"])} if "uncertainty" in columns else {}
    return Spectrum(spectral_axis=wavelength, flux=columns["flux"], mask=np.isnan(columns["flux"].value), **options)
