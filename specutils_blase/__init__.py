"""
Every line of a high-resolution spectrum, star and Earth's atmosphere fitted together.

Importing this package registers ``blase_clone`` and ``blase_fit`` on `~specutils.Spectrum` and ``blase_fit`` on
`~specutils.SpectrumList`, and the readers of HPF, IGRINS and NIRSPEC files with ``SpectrumList.read``, and nothing
else: the names below load their modules when first used (PEP 562). Torch alone costs seconds, muler changes the warning
filters of the whole process, and *any* use of asdf imports this package because it is the parent of an asdf entry
point; so neither may load here.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ._lazy import attach, keep_old_places
from ._places import MOVED
from .accessor import register
from .adapters.registration import register_readers
from .spectra.registry import register_writer

if TYPE_CHECKING:
    from . import line_lists, simulate, templates
    from .adapters.blase import read_blase_state
    from .adapters.loaders import from_hpf, from_igrins, from_nirspec
    from .asdf.files import read
    from .cloning.clone import CloneResult, clone
    from .cloning.species import clone_species
    from .cross_validation import cross_validate
    from .fitting.pipeline import fit
    from .ledger.files import read_ledger, write_ledger
    from .ledger.selection import change_significance, select_lines
    from .line_lists import ledger_to_line_list, read_line_list
    from .line_lists.identification import identify
    from .model.echelle import EchelleModel
    from .model.emulator import LineEmulator
    from .model.order import ForwardModel
    from .quality.report import BlaseQualityWarning, Quality, Reason
    from .results.echelle_result import EchelleFitResult
    from .results.fit_result import FitResult

    __version__: str

# Public name -> where it lives; a submodule stands for itself.
_LAZY = {
    "BlaseQualityWarning": ".quality.report",
    "CloneResult": ".cloning.clone",
    "EchelleFitResult": ".results.echelle_result",
    "EchelleModel": ".model.echelle",
    "FitResult": ".results.fit_result",
    "ForwardModel": ".model.order",
    "LineEmulator": ".model.emulator",
    "Quality": ".quality.report",
    "Reason": ".quality.report",
    "change_significance": ".ledger.selection",
    "clone": ".cloning.clone",
    "clone_species": ".cloning.species",
    "cross_validate": ".cross_validation",
    "fit": ".fitting.pipeline",
    "from_hpf": ".adapters.loaders",
    "from_igrins": ".adapters.loaders",
    "from_nirspec": ".adapters.loaders",
    "identify": ".line_lists.identification",
    "ledger_to_line_list": ".line_lists",
    "line_lists": ".line_lists",
    "read": ".asdf.files",
    "read_blase_state": ".adapters.blase",
    "read_ledger": ".ledger.files",
    "read_line_list": ".line_lists",
    "select_lines": ".ledger.selection",
    "simulate": ".simulate",
    "templates": ".templates",
    "write_ledger": ".ledger.files",
}

__all__ = [
    "BlaseQualityWarning",
    "CloneResult",
    "EchelleFitResult",
    "EchelleModel",
    "FitResult",
    "ForwardModel",
    "LineEmulator",
    "Quality",
    "Reason",
    "__version__",
    "change_significance",
    "clone",
    "clone_species",
    "cross_validate",
    "fit",
    "from_hpf",
    "from_igrins",
    "from_nirspec",
    "identify",
    "ledger_to_line_list",
    "line_lists",
    "read",
    "read_blase_state",
    "read_ledger",
    "read_line_list",
    "select_lines",
    "simulate",
    "templates",
    "write_ledger",
]


_lazy, _ = attach(__name__, _LAZY)


def __getattr__(name):
    if name != "__version__":
        return _lazy(name)
    from importlib.metadata import version

    globals()[name] = version("specutils-blase")
    return globals()[name]


def __dir__():
    return sorted({*globals(), *__all__})


keep_old_places(__name__, MOVED)
register()
register_readers()
register_writer(lambda: import_module(".asdf.files", __name__).write)
