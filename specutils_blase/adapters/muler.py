"""Spectra of muler: which files are HPF's, one order of them reduced, and what its objects know beyond a `Spectrum`.

muler is imported inside the functions only, and with the process's warning filters put back afterwards: it installs its
own, which would silence every `RuntimeWarning`. Does not live here: units, masks and uncertainties (`spectrum`).
"""

from __future__ import annotations

import operator
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from astropy.io import fits
from specutils import Spectrum

HPF_ORDERS = 28
HPF_RESOLVING_POWER = 55_000.0

PIPELINES = {"SCI ERROR": "Goldilocks", "SCI VARIANCE": "Slope"}
"""Name of the fourth extension to the word by which muler knows the pipeline that wrote it."""


def is_hpf(path) -> bool:
    """Whether a file is a reduced spectrum of HPF: by INSTRUME and its extensions, whatever it is called.

    Parameters
    ----------
    path : path-like
        A file. Anything that is not FITS is not HPF's.

    Raises
    ------
    OSError
        If there is no such file, or it may not be read.
    """
    with open(path, "rb") as stream:
        if stream.read(6) != b"SIMPLE":
            return False
    with fits.open(path, memmap=False) as units:
        return _pipeline(units) is not None


def _pipeline(units: fits.HDUList) -> str | None:
    if units[0].header.get("INSTRUME") != "HPF" or len(units) < 10 or units[1].name.upper() != "SCI FLUX":
        return None
    return PIPELINES.get(units[4].name.upper())


def load_hpf(path, order: int) -> Spectrum:
    """One order of an HPF file, reduced as astronomers do with muler.

    ``remove_nans, sky_subtract, deblaze, normalize``, each with muler's defaults. Wavelengths are vacuum, as observed:
    nothing is shifted to the barycentre.

    Parameters
    ----------
    path : path-like
        File of the Goldilocks pipeline, or of the instrument team's ("Slope").
    order : int
        0 (8079-8184 Å) to 27 (12625-12786 Å).

    Returns
    -------
    muler.hpf.HPFSpectrum
        Flux in units of its median; ``instrumental_resolution`` and ``meta["m"]``, ``meta["header"]`` are kept.

    Raises
    ------
    ValueError
        If the file is not HPF's, HPF has no such order, or no pixel of it is finite.
    OSError
        If there is no such file.
    """
    try:
        order = operator.index(order)
    except TypeError:
        raise ValueError(f"order must be a whole number, got {order!r}") from None
    if not 0 <= order < HPF_ORDERS:
        raise ValueError(f"order must lie between 0 and {HPF_ORDERS - 1} for HPF, got {order}")
    if not is_hpf(path):
        raise ValueError(
            f"{path} is not a reduced HPF spectrum: expected FITS with INSTRUME = HPF and the extensions Sci Flux, "
            "..., Sci Error (Goldilocks) or Sci Variance (Slope)"
        )
    with quiet_muler(), fits.open(path, memmap=False) as units:
        from muler.hpf import HPFSpectrum

        # Handed over open: muler would never close the file, insists on text for a path, and takes errors for
        # variances, or the reverse, where the file's name or folder has the wrong word in it.
        raw = HPFSpectrum(file=_pipeline(units), order=order, cached_hdus=[units])
        if not np.isfinite(raw.flux.value).any():
            raise ValueError(f"order {order} of {path} has no finite pixel")
        reduced = raw.remove_nans().sky_subtract().deblaze().normalize()
    if resolving_power(reduced) is None:  # operators of specutils may return a class that has lost it
        reduced.instrumental_resolution = resolving_power(raw) or HPF_RESOLVING_POWER
    return reduced


def resolving_power(spectrum) -> float | None:
    """``instrumental_resolution`` of a muler object as a number; None for anything that has none."""
    value = getattr(spectrum, "instrumental_resolution", None)
    return None if value is None else float(value)


@contextmanager
def quiet_muler() -> Iterator[None]:
    """A block in which muler may be imported and used: its own warnings are silent, and the filters come back.

    Every muler object warns of specutils' deprecated ``Spectrum1D``, and division by the blaze of the NaN there.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
