"""Recognition of the files of HPF, IGRINS and NIRSPEC by their content, whatever their names.

Light on purpose: specutils calls it at every ``SpectrumList.read``. Does not live here: reading the spectra
(`loaders`).
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from astropy.io import fits

HPF_PIPELINES = {"SCI ERROR": "Goldilocks", "SCI VARIANCE": "Slope"}
"""Name of the fourth extension of an HPF file to the word by which muler knows the pipeline that wrote it."""

NIRSPEC_COLUMNS = ("wave (A)", "flux (cnts)", "noise (cnts)", "sky (cnts)")
"""Columns of the tables of the NIRSPEC pipeline (NSDRP), and of no other pipeline's."""

DIVIDED_EXTENSION = "SPEC_DIVIDE_A0V"
"""EXTNAME of the flux of IGRINS divided by that of a hot star."""

FITS_MAGIC = (b"SIMPLE", b"\x1f\x8b")
"""First bytes of a FITS file and of a compressed one."""


@contextmanager
def open_fits(path, whose: str) -> Iterator[fits.HDUList]:
    """A complete FITS file, open; closed at the end of the block.

    Parameters
    ----------
    path : path-like
        The file, compressed or not.
    whose : str
        Expected instrument, for messages, for example "HPF".

    Raises
    ------
    ValueError
        If the file is not FITS, is damaged, or ends too early.
    OSError
        If there is no such file, it is a folder, or it may not be read.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"expected a file of {whose}, got the folder {path}")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")
    with open(path, "rb") as stream:  # opened here, because astropy leaves a file open that it cannot make sense of
        if not stream.read(6).startswith(FITS_MAGIC):
            raise ValueError(f"{path} is not a FITS file: expected one of {whose}")
        stream.seek(0)
        with warnings.catch_warnings(record=True) as notes:
            warnings.simplefilter("always")
            try:
                units = fits.open(stream, memmap=False, lazy_load_hdus=False)
            except (OSError, EOFError, ValueError, TypeError, zlib.error) as error:
                raise ValueError(f"{path} is damaged, or cut short ({error}): fetch it again") from error
        # Cut in its data, a file opens all the same. Cut in a header, it has fewer units, as its reader will find.
        if any("may have been truncated" in str(note.message) for note in notes):
            units.close()
            raise ValueError(f"{path} is cut short, in the last of {len(units)} units that are left: fetch it again")
        with units:
            yield units


def instrument_of(path) -> str | None:
    """The instrument of a file, "HPF", "IGRINS" or "NIRSPEC"; None for anything else, FITS or not.

    Parameters
    ----------
    path : path-like
        A file.

    Raises
    ------
    OSError
        If there is no such file, or it may not be read.
    """
    with open(path, "rb") as stream:
        if not stream.read(6).startswith(FITS_MAGIC):
            return None
        stream.seek(0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of FITS files that are none of our business
            try:
                with fits.open(stream, memmap=False) as units:
                    if hpf_pipeline(units) is not None:
                        return "HPF"
                    if igrins_layout(units) is not None:
                        return "IGRINS"
                    return "NIRSPEC" if is_nirspec_table(units) else None
            except (OSError, EOFError, ValueError, TypeError, KeyError, IndexError, zlib.error):
                return None


def hpf_pipeline(units: fits.HDUList) -> str | None:
    """The word by which muler knows the pipeline of an HPF file; None for any other file."""
    if units[0].header.get("INSTRUME") != "HPF" or len(units) < 10 or units[1].name.upper() != "SCI FLUX":
        return None
    return HPF_PIPELINES.get(units[4].name.upper())


@dataclass(frozen=True)
class IGRINSLayout:
    """Units of an IGRINS file that hold flux, variances and wavelengths; None for variances that are not in it."""

    flux: int
    variance: int | None
    wavelength: int


def igrins_layout(units: fits.HDUList, extension: str | None = None) -> IGRINSLayout | None:
    """Units of flux, variances and wavelengths in a file of the IGRINS pipeline; None for any other file.

    Three forms are in use: the later A0V-divided one (12 units, empty primary), the earlier one (6 units, the primary
    is the divided spectrum, no variances), and the plain one (flux, wavelengths; variances in a file beside it).

    Parameters
    ----------
    units : `~astropy.io.fits.HDUList`
        The open file.
    extension : str, optional
        EXTNAME of the flux; by default ``SPEC_DIVIDE_A0V``, or the only flux of the plain form.
    """
    if not str(units[0].header.get("INSTRUME", "")).upper().startswith("IGRINS"):
        return None
    shapes = [_shape(unit) for unit in units]
    names = [unit.name.upper() for unit in units]
    if "WAVELENGTH" in names:
        wavelength = names.index("WAVELENGTH")
    elif len(units) > 3 and "EXTVER" in units[1].header:  # of the Gemini archive: by position, as muler has it
        wavelength = 3
    elif len(units) == 2 and shapes[0]:
        wavelength = 1
    else:
        return None
    if extension is not None:
        flux = names.index(extension.upper()) if extension.upper() in names else None
    elif DIVIDED_EXTENSION in names:
        flux = names.index(DIVIDED_EXTENSION)
    else:
        flux = 0 if shapes[0] else 1
    if flux is None or flux == wavelength or len(shapes[wavelength]) != 2 or shapes[flux] != shapes[wavelength]:
        return None
    variance = f"{names[flux]}_VARIANCE"
    if variance in names:
        return IGRINSLayout(flux, names.index(variance), wavelength)
    by_position = wavelength == 3 and flux == 1 and DIVIDED_EXTENSION not in names
    return IGRINSLayout(flux, 2 if by_position and shapes[2] == shapes[1] else None, wavelength)


def _shape(unit) -> tuple[int, ...]:
    """Of an image, from its header; empty for a table."""
    if not unit.is_image:
        return ()
    number = unit.header.get("NAXIS", 0)
    return tuple(unit.header[f"NAXIS{axis}"] for axis in range(number, 0, -1))


def is_nirspec_table(units: fits.HDUList) -> bool:
    """Whether the first extension is a table of the NIRSPEC pipeline, which names no instrument: by its columns."""
    columns = getattr(units[1], "columns", None) if len(units) > 1 else None
    return columns is not None and set(NIRSPEC_COLUMNS) <= set(columns.names)
