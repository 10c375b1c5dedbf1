"""The shape of the package: a silent light import, imports that point down only, modules that stay small."""

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

# The rooms of docs/architecture.md, from the bottom up. A module or subpackage may import those of the rows below its
# own. A new one needs a place here and in that picture.
LAYERS = (
    {"profiles", "saturation", "kernels", "parallel", "numeric", "scatter", "quality"},
    {"grids"},
    {"compiled_voigt"},
    {"compiled_grids"},
    {"compiled"},
    {"line_sum"},
    {"lines", "extrinsic", "instrument"},
    {"line_view", "model", "data"},
    {"echelle", "correlation"},
    {"parameters", "telluric_scaling", "star_scaling", "template_agreement"},
    {"structure", "velocity", "line_moves"},
    {"jacobian_windows"},
    {"jacobian", "priors", "factor"},
    {"normal_equations"},
    {"quasi_newton", "problem"},
    {"least_squares", "common_changes"},
    {"stand_in", "telluric_anchors"},
    {"ledger_columns", "star_anchors", "flux", "continuum_assessment", "start_assessment"},
    {"spectrum", "ledger", "line_finding", "templates", "simulate", "degeneracies", "provenance"},
    {"posterior", "clone_continuum", "cloning_rounds", "assessment", "clone_assessment"},
    {"photon_limit", "missing_lines", "posterior_means"},
    {"cloning", "result", "line_lists", "ledger_files", "observed_orders", "telluric_species"},
    {
        "components",
        "starting",
        "identification",
        "line_selection",
        "species_cloning",
        "echelle_result",
        "noise",
        "rejection",
        "held_lines",
    },
    {"solving", "first_model", "correlated_residuals", "resolving_power"},
    {"line_trials", "hypotheses", "order_scatter"},
    {"line_discovery"},
    {"outcome"},
    {"fitting"},
    {"cross_validation", "figures"},
    {"plotting", "cli_arguments"},
    {"cli", "demo", "accessor", "adapters", "asdf", "plotting_orders"},
)
LEAVES = LAYERS[-1] | {"plotting"}
TORCH_ONLY = set().union(*LAYERS[:17])

# What the rows alone would forbid, each with its reason.
EXCEPTIONS = {
    ("cli", "demo"): "`specutils-blase demo`",
}
# Allowed inside a function only, so that the lower module loads without the upper one.
LAZY_EXCEPTIONS = {
    ("lines", "ledger"): "LineEmulator.from_ledger()",
    ("cloning", "plotting"): "CloneResult.plot()",
    ("cloning", "asdf"): "CloneResult.write()",
    ("result", "plotting"): "FitResult.plot()",
    ("result", "asdf"): "FitResult.write()",
    ("echelle_result", "plotting_orders"): "EchelleFitResult.plot()",
    ("result", "line_discovery"): "FitResult.missing_lines",
    ("observed_orders", "adapters"): "orders describe themselves",
    ("cli", "adapters"): "`specutils-blase fit` reads HPF files through muler",
    ("cli", "asdf"): "clones come and fits go as ASDF",
    ("cli", "plotting"): "`--plot`",
    ("demo", "plotting"): "demo.png",
    ("demo", "asdf"): "demo.asdf",
    ("cli", "demo"): "`specutils-blase demo`",
}


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
import json, logging, sys, time, warnings
import specutils
def state():
    return [repr(warnings.filters), repr(logging.getLogger().handlers), logging.getLogger().level]
before, start = state(), time.perf_counter()
import {module}
seconds = time.perf_counter() - start
after = state()
heavy = [m for m in ("torch", "muler") if m in sys.modules]
json.dump(dict(unchanged=before == after, heavy=heavy, seconds=seconds), open(sys.argv[1], "w"))
"""


@pytest.mark.parametrize("module", ["specutils_blase", "specutils_blase.asdf.integration"])
def test_import_is_silent_and_light(module, tmp_path):
    """Prints nothing, writes nothing, changes no global state, loads nothing heavy, takes less than a second."""
    empty = tmp_path / "empty"
    empty.mkdir()
    code = SNAPSHOT.format(module=module).replace("sys.argv[1]", repr(str(tmp_path / "report.json")))
    done = python(code, empty)
    report = json.loads((tmp_path / "report.json").read_text())
    assert (done.stdout, done.stderr) == ("", "")
    assert list(empty.iterdir()) == []
    assert report["unchanged"]
    assert report["heavy"] == []
    assert report["seconds"] < 1


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
assert "torch" not in sys.modules and "muler" not in sys.modules
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


@pytest.mark.parametrize("relative", [r for r in modules() if room(r) is not None])
def test_imports_point_down(relative):
    """Of our own modules, a module imports only those of lower rows, wherever in the file the import stands."""
    importer = room(relative)
    for name, lazy, line in imports(PACKAGE / relative):
        # Through the package as a whole everything could be reached, unseen by the rule.
        assert name != NAME or importer in LEAVES, f"{relative}:{line}: import from the module, not the package"
        target = imported_room(name)
        if target is None or target == importer or level(target) < level(importer):
            continue
        allowed = (importer, target) in EXCEPTIONS or (lazy and (importer, target) in LAZY_EXCEPTIONS)
        assert allowed, (
            f"{relative}:{line} imports {name}: {importer} (row {level(importer)}) may not import "
            f"{target} (row {level(target)}){'' if lazy else ' at module level'}"
        )


def test_package_imports_only_what_it_registers_when_it_loads():
    now = {name for name, lazy, _ in runtime_imports(PACKAGE / "__init__.py") if not lazy and imported_room(name)}
    assert now == {f"{NAME}.accessor.register", f"{NAME}.adapters.registration.register_readers"}


def runtime_imports(path):
    """The imports of a file but those under ``if TYPE_CHECKING:``."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    spans = [
        range(node.lineno, node.end_lineno + 1)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)
    ]
    return [entry for entry in imports(path) if not any(entry[2] in span for span in spans)]


def test_leaves_are_imported_by_nobody_else():
    """Said once more for itself: only the listed lazy imports lead into the top row."""
    into_leaves = {
        (room(relative), imported_room(name))
        for relative, path in modules().items()
        for name, _, _ in imports(path)
        if room(relative) is not None and imported_room(name) in LEAVES - {room(relative)}
    }
    assert into_leaves <= set(LAZY_EXCEPTIONS) | {("plotting_orders", "plotting")}


@pytest.mark.parametrize("relative", [r for r in modules() if room(r) in TORCH_ONLY])
def test_physics_knows_no_astropy(relative):
    """Units, masks and tables stop at `spectrum` and `ledger`; below there are only tensors."""
    guests = {"astropy", "specutils", "muler", "gollum", "asdf", "matplotlib"}
    found = {name.split(".")[0]: line for name, _, line in imports(PACKAGE / relative)}
    assert not guests & set(found), {guest: found[guest] for guest in guests & set(found)}


@pytest.mark.parametrize("relative", [r for r in modules() if room(r) == "simulate"])
def test_simulation_shares_nothing_with_the_model(relative):
    """The truth that fits are tested against must not come from the code under test."""
    ours = {imported_room(name) for name, _, _ in imports(PACKAGE / relative)} - {None, "simulate"}
    assert ours == set()


@pytest.mark.parametrize("relative", modules())
def test_muler_loads_only_inside_functions(relative):
    """Importing muler changes the warning filters of the process: nothing of ours may do so by being imported."""
    eager = [line for name, lazy, line in imports(PACKAGE / relative) if name.split(".")[0] == "muler" and not lazy]
    assert eager == [], f"{relative} imports muler at module level, lines {eager}"


@pytest.mark.parametrize("relative", modules())
def test_modules_stay_small(relative):
    lines = len((PACKAGE / relative).read_text(encoding="utf-8").splitlines())
    assert lines <= 400, f"{relative} has {lines} lines: is it still one noun?"


@pytest.mark.parametrize("relative", [r for r in modules() if r != "cli.py"])
def test_library_does_not_print(relative):
    tree = ast.parse((PACKAGE / relative).read_text(encoding="utf-8"))
    printed = [node.lineno for node in ast.walk(tree) if isinstance(node, ast.Call) and _called(node) == "print"]
    assert printed == [], f"{relative} prints at lines {printed}: log, return or raise instead"
