"""The content of line-list files, plain or compressed, and errors that name file, line and reason.

Does not live here: the formats (`vald`, `fixed_width`, `tables`).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

MOST_BYTES = 1 << 30
"""Most bytes that a file may hold or unpack to: some ten million transitions."""

BINARY_MAGIC = (b"SIMPLE  =", b"\x89HDF", b"PAR1")
"""First bytes of FITS, HDF5 and Parquet."""

_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}


class LineListError(ValueError):
    """A file that is damaged or not of its format; the message names file, line and reason.

    Parameters
    ----------
    path : path-like
    reason : str
        Expected and actual content.
    line : int, optional
        Number of the line in the file, from 1.
    """

    def __init__(self, path, reason: str, line: int | None = None):
        where = f"{path}, line {line}" if line else f"{path}"
        super().__init__(f"cannot read {where}: {reason}")


def read_bytes(path) -> bytes:
    """Content of a file; gzip, bzip2, xz, and zip archives of one file are unpacked.

    Raises
    ------
    LineListError
        If it is damaged, or unpacks to more than `MOST_BYTES`.
    OSError
        If there is no such file, or it may not be read.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"expected a line-list file, got the folder {path}")
    with open(path, "rb") as stream:
        content = stream.read(MOST_BYTES + 1)
    try:
        content = _unpacked(path, content)
    except LineListError:
        raise
    except Exception as error:  # eight kinds of them, zipfile's bare ValueError and NotImplementedError included
        raise LineListError(path, f"its compression is damaged ({error})") from error
    if len(content) > MOST_BYTES:
        raise LineListError(path, f"expected at most {MOST_BYTES >> 20} MiB")
    return content


def is_text(content: bytes) -> bool:
    """Whether the content is text: of no binary format that astropy reads, without zero bytes near its beginning."""
    return not content.startswith(BINARY_MAGIC) and b"\0" not in content[:4096]


def text_lines(content: bytes) -> list[str]:
    """Lines of a text, without their ends."""
    # Latin-1 decodes anything; what matters in these formats is ASCII, and numbers are checked one by one.
    return content.decode("latin-1").replace("\r\n", "\n").replace("\r", "\n").split("\n")


def _unpacked(path: Path, content: bytes) -> bytes:
    for magic, opener in _OPENERS.items():
        if content.startswith(magic):
            with opener(BytesIO(content)) as stream:
                return stream.read(MOST_BYTES + 1)
    if content.startswith(b"PK\x03\x04"):
        with zipfile.ZipFile(BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if not name.endswith("/")]
            if len(names) != 1:
                raise LineListError(path, f"expected an archive of one file, got {len(names)}: unpack it")
            with archive.open(names[0]) as stream:
                return stream.read(MOST_BYTES + 1)
    return content


def float_column(path, words, line_numbers, name: str, *, blank: float | None = None) -> np.ndarray:
    """Numbers from their text, float64.

    Parameters
    ----------
    path : path-like
    words : sequence of str
        One a line.
    line_numbers : sequence of int
        Where each stands in the file, for messages.
    name : str
        Name of the quantity, for messages.
    blank : float, optional
        Value of empty text; by default it is an error.
    """
    words = np.char.strip(np.asarray(words, dtype="U"))
    if blank is not None:
        words = np.where(words == "", str(blank), words)
    try:
        values = words.astype(np.float64)
    except ValueError:
        for word, line in zip(words, line_numbers, strict=True):
            try:
                float(word)
            except ValueError:
                raise LineListError(path, f"expected a number for {name}, got {str(word)!r}", int(line)) from None
        raise LineListError(path, f"expected numbers for {name}") from None
    bad = np.flatnonzero(~np.isfinite(values)) if blank is None else np.flatnonzero(np.isinf(values))
    if len(bad):
        line = int(np.asarray(line_numbers)[bad[0]])
        raise LineListError(path, f"expected a finite number for {name}, got {str(words[bad[0]])!r}", line)
    return values


def check_range(path, values: np.ndarray, low: float, high: float, line_numbers, name: str) -> None:
    """Refuse numbers that no line has, such as a wavelength of zero or a log gf of 300; NaN passes."""
    bad = np.flatnonzero((values < low) | (values > high))
    if len(bad):
        line = int(np.asarray(line_numbers)[bad[0]])
        raise LineListError(path, f"expected {name} between {low:g} and {high:g}, got {values[bad[0]]:g}", line)
