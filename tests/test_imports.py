"""The shape of the package: a silent light import, imports that point down only."""

import ast
import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import specutils_blase

PACKAGE = Path(specutils_blase.__file__).parent
NAME = "specutils_blase"

# The folders of docs/architecture.md, from the bottom up, and modules that stand alone. Each may import those of the
# rows below its own. A new one needs a place here and in that picture.
LAYERS = (
    {"_lazy", "_places", "physics", "simulate", "templates"},
    {"model"},
    {"spectra"},
    {"adapters", "chemistry", "inference", "plotting"},
    {"ledger", "quality"},
    {"cloning", "line_lists", "posterior"},
    {"missing_lines"},
    {"results"},
    {"asdf", "fitting"},
    {"cross_validation", "demo"},
    {"accessor", "cli"},
)
LEAVES = set.union(*LAYERS[-2:]) | {"asdf"}
TORCH_ONLY = {"physics", "model"}

# The one import that points up: inside a function, so that the lower module loads without the upper one.
EXCEPTION = ("model", "ledger")  # LineEmulator.from_ledger()


def modules():
    """Every module of the package, by its path below the package."""
    return {path.relative_to(PACKAGE).as_posix(): path for path in sorted(PACKAGE.rglob("*.py"))}


def room(relative):
    """The module or subpackage in the picture that a file belongs to; None for the package's own ``__init__``."""
    first = relative.split("/")[0].removesuffix(".py")
    return None if first == "__init__" else first


@cache
def imports(path):
    """
    All imports of a file.

    Parameters
    ----------
    path : Path
        The file, inside the package.

    Returns
    -------
    tuple of (str, bool, int)
        Dotted absolute name, whether it is imported inside a function, and the line. ``from a import b`` gives
        ``a.b``, since ``b`` may be a module.
    """
    parts = (NAME, *path.relative_to(PACKAGE).with_suffix("").parts)
    package = parts[:-1]  # of a module its parent, of an __init__ the package itself: both drop the last part
    found = []

    def visit(node, lazy):
        if isinstance(node, ast.Import):
            found.extend((alias.name, lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            stem = ".".join((*base, *(node.module or "").split("."))).rstrip(".")
            found.extend((f"{stem}.{alias.name}", lazy, node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "__import__"} and node.args:
            target = node.args[0]
            if isinstance(target, ast.Constant) and isinstance(target.value, str):
                name = target.value
                level = len(name) - len(name.lstrip("."))
                base = package[: len(package) - level + 1] if level else ()
                found.append((".".join((*base, name.lstrip("."))), lazy, node.lineno))
        inside = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for child in ast.iter_child_nodes(node):
            visit(child, inside)

    visit(ast.parse(path.read_text(encoding="utf-8"), filename=str(path)), False)
    return tuple(found)


def _called(node):
    return getattr(node.func, "id", getattr(node.func, "attr", None))


def imported_room(name):
    """The room that a dotted name of ours leads to; None for other people's packages and for ``__version__``."""
    parts = name.split(".")
    if parts[0] != NAME or len(parts) == 1 or parts[1] == "__version__":
        return None
    # A public name taken from the package itself leads to where it lives: `from . import read` imports asdf.
    return specutils_blase._LAZY.get(parts[1], parts[1]).lstrip(".").split(".")[0]


def level(name):
    """The row of a room, counted from the bottom."""
    for row, rooms in enumerate(LAYERS):
        if name in rooms:
            return row
    raise AssertionError(f"{name!r} has no place among the rooms: give it one in LAYERS and in docs/architecture.md")


def python(code, cwd):
    """Run code in a fresh interpreter in an empty folder; return its process."""
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done


SNAPSHOT = """
import json, logging, sys, warnings
import specutils
def state():
    return [repr(warnings.filters), repr(logging.getLogger().handlers), logging.getLogger().level]
before, loaded = state(), set(sys.modules)
import {module}
after, new = state(), sorted(set(sys.modules) - loaded)
json.dump(dict(unchanged=before == after, new=new), open(sys.argv[1], "w"))
"""

MOST_MODULES = 12
"""Of ours that an import may load: those that register the accessors, the readers and the files. They are ten."""


@pytest.mark.parametrize("module", ["specutils_blase", "specutils_blase.asdf.integration"])
def test_import_is_silent_and_light(module, tmp_path):
    """Prints nothing, writes nothing, changes no global state, and loads only a few small modules of ours."""
    empty = tmp_path / "empty"
    empty.mkdir()
    code = SNAPSHOT.format(module=module).replace("sys.argv[1]", repr(str(tmp_path / "report.json")))
    done = python(code, empty)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (done.stdout, done.stderr) == ("", "")
    assert list(empty.iterdir()) == []
    assert report["unchanged"]
    ours = [name for name in report["new"] if name.split(".")[0] == NAME]
    foreign = {name.split(".")[0] for name in report["new"]} - {NAME} - sys.stdlib_module_names
    assert foreign == set()  # neither torch nor muler, nor anything else that takes its time
    assert 1 < len(ours) <= MOST_MODULES, ours


def test_import_registers_the_accessors(tmp_path):
    code = """
from specutils import Spectrum, SpectrumList
assert not hasattr(Spectrum, "blase_fit")
import specutils_blase
assert Spectrum.blase_clone and Spectrum.blase_fit and SpectrumList.blase_fit
"""
    python(code, tmp_path)


def test_any_asdf_use_stays_light(tmp_path):
    """Asdf loads our entry points whoever uses it and for whatever: that must not cost them torch."""
    code = """
import io, sys, asdf
asdf.AsdfFile({"a": 1}).write_to(io.BytesIO())
extensions = [e.package_name for e in asdf.get_config().extensions]
assert "specutils-blase" in extensions, extensions
heavy = {"torch", "muler", "specutils_blase.asdf.records"} & set(sys.modules)
assert not heavy, heavy
"""
    python(code, tmp_path)


@pytest.mark.parametrize("name", specutils_blase.__all__)
def test_public_names_resolve(name):
    assert name in dir(specutils_blase)
    assert getattr(specutils_blase, name) is getattr(specutils_blase, name)


def test_every_lazy_name_is_public():
    assert {*specutils_blase._LAZY, "__version__"} == set(specutils_blase.__all__)


def test_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'specutils_blase' has no attribute 'clones'"):
        specutils_blase.clones  # noqa: B018


FOLDERS = sorted(set.union(*LAYERS))


def files_of(folder):
    """Path below the package, and path, of the modules of a folder."""
    return [(relative, path) for relative, path in modules().items() if room(relative) == folder]


def test_every_folder_has_its_place():
    assert {room(relative) for relative in modules()} - {None} == set(FOLDERS)


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_down(folder):
    """Of our own folders, a module imports only those of lower rows, wherever in the file the import stands."""
    wrong = []
    for relative, path in files_of(folder):
        for name, lazy, line in imports(path):
            # Through the package as a whole everything could be reached, unseen by the rule.
            assert name != NAME or folder in LEAVES, f"{relative}:{line}: import from the module, not the package"
            target = imported_room(name)
            below = target is None or target == folder or level(target) < level(folder)
            if not (below or (lazy and (folder, target) == EXCEPTION)):
                wrong.append(f"{relative}:{line} imports {name}")
    assert wrong == []


def test_modules_of_a_folder_import_each_other_without_a_circle():
    """Within a folder, too, at module level."""
    below = {}
    for relative, path in modules().items():
        own = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        below[own] = {
            target
            for name, lazy, _ in runtime_imports(path)
            if not lazy and (target := _module_of(name)) is not None and target != own
        }

    def walk(name, way):
        assert name not in way, " -> ".join((*way, name))
        for other in below.pop(name, ()):
            walk(other, (*way, name))
        below.setdefault(name, set())

    for name in list(below):
        walk(name, ())


def _module_of(name):
    """The module of ours that a dotted name leads to, below the package."""
    parts = name.split(".")
    while len(parts) > 1 and parts[0] == NAME:
        path = PACKAGE.joinpath(*parts[1:])
        if path.with_suffix(".py").exists() or (path / "__init__.py").exists():
            return ".".join(parts[1:])
        parts.pop()
    return None


def test_modules_import_from_where_they_were():
    """Every documented place of before leads to the same module."""
    code = """
import importlib, sys
import specutils_blase
from specutils_blase._places import MOVED
for old, new in MOVED.items():
    module = importlib.import_module(f"specutils_blase.{old}")
    assert module is importlib.import_module(f"specutils_blase.{new}") and module.__spec__.name.endswith(new), old
from specutils_blase.cloning import clone
from specutils_blase.fitting import fit
from specutils_blase.ledger import emulator_from_ledger
from specutils_blase.model import ForwardModel
from specutils_blase.plotting import plot_fit
from specutils_blase.priors import LinePriors
from specutils_blase.saturation import SaturationLaw
from specutils_blase.inference.priors import LinePriors as same
assert LinePriors is same
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_package_imports_only_what_it_registers_when_it_loads():
    now = {name for name, lazy, _ in runtime_imports(PACKAGE / "__init__.py") if not lazy and imported_room(name)}
    assert now == {
        f"{NAME}._lazy.attach",
        f"{NAME}._lazy.keep_old_places",
        f"{NAME}._places.MOVED",
        f"{NAME}.accessor.register",
        f"{NAME}.adapters.registration.register_readers",
        f"{NAME}.spectra.registry.register_writer",
    }


LONGEST_BODY = 60  # lines, the docstring not counted


def long_functions(path):
    """Names of the functions of a file whose body has more than `LONGEST_BODY` lines."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[ast.get_docstring(node) is not None :]
            if body and body[-1].end_lineno - body[0].lineno + 1 > LONGEST_BODY:
                names.add(node.name)
    return names


def test_no_function_body_above_60_lines():
    """Nor of the compiled kernels, although straight-line numerics might be longer."""
    long = {relative: names for relative, path in modules().items() if (names := long_functions(path))}
    assert long == {}


def runtime_imports(path):
    """The imports of a file but those under ``if TYPE_CHECKING:``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    spans = [
        range(node.lineno, node.end_lineno + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    return [entry for entry in imports(path) if not any(entry[2] in span for span in spans)]


@pytest.mark.parametrize("folder", sorted(TORCH_ONLY))
def test_physics_knows_no_astropy(folder):
    """Units, masks and tables stop at `spectra` and `ledger`; below there are only tensors."""
    guests = {"astropy", "specutils", "muler", "gollum", "asdf", "matplotlib"}
    for relative, path in files_of(folder):
        found = {name.split(".")[0] for name, _, _ in imports(path)}
        assert not guests & found, f"{relative} imports {guests & found}"


def test_simulation_shares_nothing_with_the_model():
    """The truth that fits are tested against must not come from the code under test."""
    for relative, path in files_of("simulate"):
        assert {imported_room(name) for name, _, _ in imports(path)} - {None, "simulate"} == set(), relative


@pytest.mark.parametrize("folder", FOLDERS)
def test_muler_loads_only_inside_functions_and_nothing_prints(folder):
    """Importing muler changes the warning filters of the process; a library logs, returns or raises."""
    for relative, path in files_of(folder):
        eager = [line for name, lazy, line in imports(path) if name.split(".")[0] == "muler" and not lazy]
        assert eager == [], f"{relative} imports muler at module level, lines {eager}"
        if folder != "cli":
            tree = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            printed = [node.lineno for node in tree if isinstance(node, ast.Call) and _called(node) == "print"]
            assert printed == [], f"{relative} prints at lines {printed}"
