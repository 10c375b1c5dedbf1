"""Names of a package that load their modules when first used (PEP 562), and places where modules were before."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec


def attach(package: str, where: Mapping[str, str]) -> tuple[Callable[[str], object], Callable[[], list[str]]]:
    """`__getattr__` and `__dir__` of a package whose names live in its modules.

    Parameters
    ----------
    package : str
        Its ``__name__``.
    where : mapping
        Name to the module that has it, as ".module"; a module of that name stands for itself.
    """

    def __getattr__(name: str):
        if name not in where:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(where[name], package)
        value = module if where[name] == f".{name}" else getattr(module, name)
        setattr(sys.modules[package], name, value)  # the next access does not come through here
        return value

    def __dir__() -> list[str]:
        return sorted({*vars(sys.modules[package]), *where})

    return __getattr__, __dir__


class _Moved(MetaPathFinder, Loader):
    """Modules under the names that they had: the same objects, loaded when asked for."""

    def __init__(self, moved: Mapping[str, str]):
        self.moved = moved

    def find_spec(self, fullname, path=None, target=None):
        return ModuleSpec(fullname, self) if fullname in self.moved else None

    def create_module(self, spec):
        module = import_module(self.moved[spec.name])
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module):
        # The import system has put the old name's specification there.
        module.__spec__ = module.__spec__.loader_state


def keep_old_places(package: str, moved: Mapping[str, str]) -> None:
    """Let modules be imported from where they were.

    Parameters
    ----------
    package : str
    moved : mapping
        Old place to new place below the package, with dots.
    """
    if not any(isinstance(finder, _Moved) for finder in sys.meta_path):
        sys.meta_path.append(_Moved({f"{package}.{old}": f"{package}.{new}" for old, new in moved.items()}))
