"""Converters between the package's nouns and plain trees, one for each noun.

The schema of the same name in ``resources/schemas`` defines each tree. Numbers, tables and spectra inside it are
written by `specutils_blase.asdf.records`.
"""

from .clone_result import CloneResultConverter
from .echelle_model import EchelleModelConverter
from .fit_result import EchelleFitResultConverter, FitResultConverter
from .forward_model import ForwardModelConverter
from .line_emulator import LineEmulatorConverter

CONVERTERS = (
    LineEmulatorConverter,
    ForwardModelConverter,
    EchelleModelConverter,
    CloneResultConverter,
    FitResultConverter,
    EchelleFitResultConverter,
)

__all__ = [
    "CONVERTERS",
    "CloneResultConverter",
    "EchelleFitResultConverter",
    "EchelleModelConverter",
    "FitResultConverter",
    "ForwardModelConverter",
    "LineEmulatorConverter",
]
