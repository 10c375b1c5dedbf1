"""
Every line of a high-resolution spectrum, star and Earth's atmosphere fitted together.

Importing this package registers ``blase_clone`` and ``blase_fit`` on `~specutils.Spectrum` and ``blase_fit`` on
`~specutils.SpectrumList`, and nothing else: the names below load their modules when first used (PEP 562). Torch alone
costs seconds, muler changes the warning filters of the whole process, and *any* use of asdf imports this package
because it is the parent of an asdf entry point; so neither may load here.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .accessor import register

if TYPE_CHECKING:
    from . import simulate, templates
    from .asdf.files import read
    from .cloning import CloneResult, clone
    from .fitting import FitResult, fit
    from .lines import LineEmulator
    from .model import ForwardModel

    __version__: str

# Public name -> where it lives; a submodule stands for itself.
_LAZY = {
    "CloneResult": ".cloning",
    "FitResult": ".fitting",
    "ForwardModel": ".model",
    "LineEmulator": ".lines",
    "clone": ".cloning",
    "fit": ".fitting",
    "read": ".asdf.files",
    "simulate": ".simulate",
    "templates": ".templates",
}

__all__ = [
    "CloneResult",
    "FitResult",
    "ForwardModel",
    "LineEmulator",
    "__version__",
    "clone",
    "fit",
    "read",
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
