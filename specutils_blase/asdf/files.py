"""Reading and writing whole files: atomic, refusing to overwrite unasked, and clear about what is wrong with a file.

Does not live here: the content of a file (`converters`, `records`, the schemas), the checks before it is read
(`checks`).
"""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
import warnings
from io import BytesIO
from pathlib import Path

import asdf
from asdf.exceptions import AsdfConversionWarning, AsdfPackageVersionWarning
from yaml import YAMLError

from .checks import ASDF_MAGIC, DIGEST_KEY, RESULT_KEY, ZERO_DIGEST, checked, seal

COMPRESSIONS = ("zlib", "bzp2", "lz4")
"""Compressions of arrays that every asdf reads; the last needs the package lz4."""

MOST_REASON_CHARACTERS = 500
"""Characters of another package's message that ours repeats at most: schemas print whole arrays."""


def write(result, path, *, overwrite: bool = False, compression: str | None = None) -> None:
    """Write a clone, a fit, or a model alone to an ASDF file.

    The file appears whole or not at all: a temporary file in the same folder takes its place once it is safely on disk,
    so that a crash or a full disk leaves an older file of that name as it was.

    Parameters
    ----------
    result : CloneResult, FitResult, EchelleFitResult, LineEmulator, ForwardModel or EchelleModel
        What to write.
    path : path-like
        Where to; by custom it ends in ``.asdf``.
    overwrite : bool
        Replace a file that is there already.
    compression : {None, "zlib", "bzp2", "lz4"}
        How to compress arrays. About a third is won, at 20 MB/s ("zlib"): fitted numbers are hardly compressible.

    Raises
    ------
    TypeError
        If `result` is something else.
    FileExistsError
        If the file exists and `overwrite` was not asked for.
    OSError
        If the folder does not exist or cannot be written to; nothing is left behind.
    ValueError
        If `result` holds what no file can: a saturation law or a stage of the user's own, a unit without a name, a
        table without its columns; or if `compression` is unknown.
    ModuleNotFoundError
        If `compression` is "lz4" and that package is missing.
    """
    if type(result) not in _nouns():
        names = ", ".join(noun.__name__ for noun in _nouns())
        raise TypeError(f"expected one of {names} to write, got {type(result).__name__}")
    _check_compression(compression)
    try:
        target = Path(os.path.realpath(path))  # through a symbolic link: its target is replaced, not the link
        if target.is_dir():
            raise IsADirectoryError(f"cannot write {path}: it is a folder, give the name of a file in it")
        if target.exists() and not overwrite:
            raise FileExistsError(f"{path} exists already: choose another name, or pass overwrite=True to replace it")
        if not target.parent.is_dir():
            raise FileNotFoundError(f"cannot write {path}: there is no folder {target.parent}, make it first")
        _replace(target, _content(result, compression))
    except asdf.ValidationError as error:
        name = type(result).__name__
        raise ValueError(f"cannot write {path}: {name} does not fit its schema: {_reason(error)}") from error
    except OSError as error:
        if error.errno is None:  # our own, above
            raise
        reason = f"cannot write {path}: {error.strerror}; is {Path(path).parent} writable, with space left?"
        raise OSError(error.errno, reason) from error  # which makes it a PermissionError again, or what it was


def read(path):
    """Read what `write` wrote.

    Checksums are verified, every array is a copy of its own, and nothing in the file is run as code.

    Parameters
    ----------
    path : path-like
        An ASDF file.

    Returns
    -------
    CloneResult, FitResult, EchelleFitResult, LineEmulator, ForwardModel or EchelleModel
        On the CPU, with the same spectrum as the object that was written. `specutils_blase.fit` takes its emulators as
        ``star=`` or ``telluric=``.

    Raises
    ------
    OSError
        If there is no such file, or it may not be read.
    ValueError
        If the file is not ours, damaged, or of a version that this package does not know; the message names the file
        and the reason. No part of it is returned then.

    Examples
    --------
    >>> from pathlib import Path
    >>> from tempfile import TemporaryDirectory
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from specutils import Spectrum
    >>> import specutils_blase as sb
    >>> wavelength = np.arange(8680.0, 8700.0, 0.02) * u.AA
    >>> dip = 0.4 * np.exp(-0.5 * ((wavelength.value - 8688.0) / 0.1) ** 2)
    >>> template = Spectrum(flux=(1.0 - dip) * u.one, spectral_axis=wavelength)
    >>> with TemporaryDirectory() as folder:
    ...     sb.clone(template).write(Path(folder) / "star.asdf")
    ...     len(sb.read(Path(folder) / "star.asdf").ledger)
    1
    """
    with open(os.fspath(path), "rb") as stream:
        start = stream.read(len(ASDF_MAGIC))
        if start != ASDF_MAGIC:
            raise ValueError(f"cannot read {path}: expected an ASDF file, got one that starts with {start!r}")
        try:
            content = start + stream.read()
        except MemoryError as error:
            raise ValueError(f"cannot read {path}: it is larger than this machine's memory") from error
    try:
        return _load(checked(content))
    except Exception as error:  # a damaged file can fail anywhere below: yaml, schemas, blocks, constructors
        raise ValueError(f"cannot read {path}: {_reason(error)}") from error


def _nouns() -> tuple[type, ...]:
    from ..cloning.clone import CloneResult
    from ..model.echelle import EchelleModel
    from ..model.emulator import LineEmulator
    from ..model.order import ForwardModel
    from ..results.echelle_result import EchelleFitResult
    from ..results.fit_result import FitResult

    return CloneResult, FitResult, EchelleFitResult, LineEmulator, ForwardModel, EchelleModel


def _check_compression(compression: str | None) -> None:
    if compression is not None and compression not in COMPRESSIONS:
        raise ValueError(f"compression must be None or one of {', '.join(COMPRESSIONS)}, got {compression!r}")
    if compression == "lz4" and importlib.util.find_spec("lz4") is None:
        raise ModuleNotFoundError('compression="lz4" needs the package lz4: pip install lz4, or choose "zlib"')


def _content(result, compression: str | None) -> bytes:
    """The bytes of a file, sealed."""
    stream = BytesIO()
    with asdf.config_context() as config:
        config.array_inline_threshold = None  # the user's own would put arrays into the text, rounded
        file = asdf.AsdfFile({RESULT_KEY: result, DIGEST_KEY: ZERO_DIGEST})
        file.write_to(stream, all_array_storage="internal", all_array_compression=compression)
    content = seal(stream.getvalue())
    checked(content)  # a user's meta may hold what `read` refuses: then no file is written
    return content


def _replace(target: Path, content: bytes) -> None:
    """Put a file in the place of another, all of it or nothing."""
    temporary = target.with_name(f".blase-{secrets.token_hex(8)}.tmp")
    try:
        with open(temporary, "xb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if target.exists():
            shutil.copymode(target, temporary)
        os.replace(temporary, target)
        _sync_folder(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system lets folders be opened."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def _load(content: bytes):
    with warnings.catch_warnings(), asdf.config_context() as config:
        config.validate_on_read = True
        config.warn_on_failed_conversion = False
        # A part that asdf leaves raw would be half an object; versions are in the tags, which were checked.
        warnings.simplefilter("error", AsdfConversionWarning)
        warnings.simplefilter("ignore", AsdfPackageVersionWarning)
        # Not lazily: the checksum of every array is then verified.
        with asdf.open(BytesIO(content), validate_checksums=True, lazy_load=False, memmap=False) as file:
            result = file[RESULT_KEY]
    if type(result) not in _nouns():
        raise ValueError(f"its {RESULT_KEY!r} is a {type(result).__name__}, nothing that specutils_blase writes")
    return result


def _reason(error: Exception) -> str:
    """Reason of an error in one line."""
    if isinstance(error, RecursionError):
        return "its tree is nested too deeply"
    text = str(error)
    if isinstance(error, asdf.ValidationError):
        path = "/".join(map(str, error.absolute_path))
        text = f"{path}: {error.message}" if path else error.message
    text = " ".join(text.split()) or type(error).__name__
    if not isinstance(error, (ValueError, asdf.ValidationError, YAMLError, OSError, Warning)):
        text = f"its contents are not as specutils_blase writes them ({type(error).__name__}: {text})"
    return text if len(text) <= MOST_REASON_CHARACTERS else f"{text[:MOST_REASON_CHARACTERS]} …"
