"""Sphinx configuration.

After ``pip install -c constraints.txt '.[docs]'``::

    sphinx-build docs docs/_build              # executes the tutorials
    sphinx-build -W -t check docs docs/_build  # as CI does: not executed, no network, no warning
"""

import shutil
from importlib import import_module
from importlib.metadata import version as installed_version
from pathlib import Path
from pkgutil import iter_modules
from types import FunctionType

import specutils_blase

HERE = Path(__file__).resolve().parent

# Sphinx reads nothing outside its own folder, and the tutorials stand at the top of the repository.
shutil.copytree(HERE.parent / "tutorials", HERE / "tutorials", dirs_exist_ok=True)

project = "specutils_blase"
author = "specutils_blase developers"
copyright = f"2026, {author}"
release = installed_version("specutils-blase")
version = ".".join(release.split(".")[:2])

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "numpydoc",
    "myst_nb",
]
exclude_patterns = ["_build", "_templates", "jupyter_execute"]
templates_path = ["_templates"]
default_role = "py:obj"
html_theme = "furo"
html_title = "specutils_blase"

myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3  # links between sections of the README
# Executed at every build: a tutorial that no longer runs stops the documentation.
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 900

autosummary_generate = True
autodoc_default_options = {"members": True, "member-order": "bysource"}
numpydoc_show_class_members = False

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "astropy": ("https://docs.astropy.org/en/stable", None),
    "specutils": ("https://specutils.readthedocs.io/en/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
}

suppress_warnings = ["config.cache"]  # autosummary_context holds functions

if "check" in tags:  # noqa: F821  # Sphinx puts it here
    nb_execution_mode = "off"  # tests/test_tutorials.py executes them
    suppress_warnings += ["myst-nb.lexer"]  # the language of a cell comes from its execution
    intersphinx_mapping = {}  # the inventories are elsewhere


SHOWN = (specutils_blase, specutils_blase.line_lists, specutils_blase.simulate)
"""Packages whose names are described on their own page, in the order in which they claim an object."""


def left_out(module: str) -> str:
    """Names that the page of a module leaves out, since each object is described once: "a, b, c"."""
    page = import_module(module)
    names: set[str] = set()
    for package in SHOWN:
        if package is page:
            break
        names |= {name for name in package.__all__ if getattr(page, name, None) is getattr(package, name)}
    return ", ".join(sorted(names))


def re_exports(module: str) -> bool:
    """Whether a package only names what its modules describe."""
    page = import_module(module)
    return hasattr(page, "__path__") and page not in SHOWN


def modules_of(package: str) -> list[str]:
    """Modules of a folder, without those of folders in it, which have pages of their own."""
    entries = iter_modules(getattr(import_module(package), "__path__", []))
    return [f"{package}.{entry.name}" for entry in entries if not entry.ispkg]


def of_others(app, what, name, member, skip, options) -> bool | None:
    """Skip methods that another package puts on our classes, such as matplotlib's ``Artist.set``."""
    foreign = isinstance(member, FunctionType) and not member.__module__.startswith("specutils_blase")
    return True if foreign else None


def setup(app) -> None:
    app.connect("autodoc-skip-member", of_others)


autosummary_context = {"left_out": left_out, "re_exports": re_exports, "modules_of": modules_of}
