"""Sphinx configuration: `sphinx-build docs docs/_build` after `pip install -c constraints.txt '.[docs]'`."""

import shutil
from importlib.metadata import version as installed_version
from pathlib import Path

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
exclude_patterns = ["_build", "jupyter_execute"]
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
numpydoc_show_class_members = False  # autosummary lists them

intersphinx_mapping = {
    "python": ("https://docs.python.org/3", None),
    "astropy": ("https://docs.astropy.org/en/stable", None),
    "specutils": ("https://specutils.readthedocs.io/en/stable", None),
    "torch": ("https://docs.pytorch.org/docs/stable", None),
}
