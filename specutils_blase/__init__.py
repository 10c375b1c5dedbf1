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

from .accessor import register
from .adapters.registration import register_readers

if TYPE_CHECKING:
    from . import line_lists, simulate, templates
    from .adapters.blase import read_blase_state
    from .adapters.loaders import from_hpf, from_igrins, from_nirspec
    from .asdf.files import read
    from .cloning import CloneResult, clone
    from .echelle import EchelleModel
    from .echelle_result import EchelleFitResult
    from .fitting import fit
    from .identification import identify
    from .line_lists import read_line_list
    from .lines import LineEmulator
    from .model import ForwardModel
    from .result import FitResult

    __version__: str

# Public name -> where it lives; a submodule stands for itself.
_LAZY = {
    "CloneResult": ".cloning",
    "EchelleFitResult": ".echelle_result",
    "EchelleModel": ".echelle",
    "FitResult": ".result",
    "ForwardModel": ".model",
    "LineEmulator": ".lines",
    "clone": ".cloning",
    "fit": ".fitting",
    "from_hpf": ".adapters.loaders",
    "from_igrins": ".adapters.loaders",
    "from_nirspec": ".adapters.loaders",
    "identify": ".identification",
    "line_lists": ".line_lists",
    "read": ".asdf.files",
    "read_blase_state": ".adapters.blase",
    "read_line_list": ".line_lists",
    "simulate": ".simulate",
    "templates": ".templates",
}

__all__ = [
    "CloneResult",
    "EchelleFitResult",
    "EchelleModel",
    "FitResult",
    "ForwardModel",
    "LineEmulator",
    "__version__",
    "clone",
    "fit",
    "from_hpf",
    "from_igrins",
    "from_nirspec",
    "identify",
    "line_lists",
    "read",
    "read_blase_state",
    "read_line_list",
    "simulate",
    "templates",
]


def __getattr__(name):
    if name == "__version__":
        from importlib.metadata import version

        value = version("specutils-blase")
    elif name in _LAZY:
        module = import_module(_LAZY[name], __name__)
        value = module if _LAZY[name] == f".{name}" else getattr(module, name)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # the next access does not come through here
    return value


def __dir__():
    return sorted({*globals(), *__all__})


register()
register_readers()
