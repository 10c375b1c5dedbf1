"""Converters between the package's nouns and plain trees, one for each noun.

What a tree holds is said by the schema of the same name in ``resources/schemas``. Numbers, tables and spectra inside it
are written by `specutils_blase.asdf.records`.
"""

from .clone_result import CloneResultConverter
from .fit_result import FitResultConverter
from .forward_model import ForwardModelConverter
from .line_emulator import LineEmulatorConverter

CONVERTERS = (LineEmulatorConverter, ForwardModelConverter, CloneResultConverter, FitResultConverter)

__all__ = [
    "CONVERTERS",
    "CloneResultConverter",
    "FitResultConverter",
    "ForwardModelConverter",
    "LineEmulatorConverter",
]
