"""The writer of files, registered by the package, so that results need not import `asdf`.

Does not live here: the files (`asdf`).
"""

from __future__ import annotations

from collections.abc import Callable

_LOADERS: list[Callable[[], Callable]] = []


def register_writer(load: Callable[[], Callable]) -> None:
    """Register the function that loads the writer, ``write(object, path, *, overwrite, compression)``."""
    _LOADERS[:] = [load]


def writer() -> Callable:
    """The writer.

    Raises
    ------
    RuntimeError
        If there is none: a part of the package was imported without the package.
    """
    if not _LOADERS:
        raise RuntimeError("nothing writes files: import specutils_blase first")
    return _LOADERS[0]()
