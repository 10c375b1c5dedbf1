"""Readers registered with specutils, so that ``SpectrumList.read(path)`` knows files of HPF, IGRINS and NIRSPEC.

Loaded with the package itself: nothing heavy is imported before a file is read. specutils has no entry points for
readers; its registry is filled by importing.
"""

from __future__ import annotations

from astropy.io.registry import IORegistryError
from specutils import SpectrumList
from specutils.io.registers import data_loader

READERS = {"HPF": "from_hpf", "IGRINS": "from_igrins", "NIRSPEC": "from_nirspec"}
"""Name of the format, which is the instrument's, to the loader."""

PRIORITY = 10
"""Above specutils' own: its "iraf" claims the earlier IGRINS files, its "tabular-fits" those of NIRSPEC."""


def register_readers() -> None:
    """Enter the readers into specutils' registry; those that are there already, ours or the user's, stay."""
    for instrument, loader in READERS.items():
        try:
            data_loader(instrument, identifier=_identifier(instrument), dtype=SpectrumList, priority=PRIORITY)(
                _reader(loader)
            )
        except IORegistryError:
            continue


def _identifier(instrument: str):
    def identify(origin, path, stream, *args, **kwargs) -> bool:
        from .identify import instrument_of

        path = path or getattr(stream, "name", None)
        return origin == "read" and isinstance(path, str) and instrument_of(path) == instrument

    return identify


def _reader(name: str):
    def read(file, **options) -> SpectrumList:
        from . import loaders

        # Without a format given, the registry hands over the open file that it identified.
        return getattr(loaders, name)(getattr(file, "name", file), **options)

    return read
