"""What the documentation promises: tutorials and the README's example run, commands parse, no module is left out."""

import ast
import contextlib
import re
import shlex
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path

import nights
import pytest

import specutils_blase as sb
from specutils_blase.cli import arguments as cli_arguments
from specutils_blase.cli import commands as cli

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.md"))
HOWTOS = sorted((ROOT / "docs" / "howto").glob("*.md"))
README = ROOT / "README.md"
CONF = ROOT / "docs" / "conf.py"
CELL = re.compile(r"^```\{code-cell\}[^\n]*\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
PYTHON = re.compile(r"^```python\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```\s*$", re.MULTILINE | re.DOTALL)


def program(notebook):
    """
    Python source of a MyST notebook: its code cells, every other line blank.

    Parameters
    ----------
    notebook : str
        Text of the notebook. Its code cells are plain Python, without magics.

    Returns
    -------
    str
        As many lines as the notebook, so that a traceback names the notebook's own lines.
    """
    blank = ["" for _ in notebook.splitlines()]
    for cell in CELL.finditer(notebook):
        first = notebook.count("\n", 0, cell.start(1))
        for number, line in enumerate(cell[1].splitlines(), first):
            if not line.startswith(":"):  # an option of the cell, such as :tags: [hide-input]
                blank[number] = line
    return "\n".join(blank) + "\n"


def test_there_are_tutorials():
    assert TUTORIALS, f"no tutorial in {FOLDER}"


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_tutorial_runs(path, tmp_path):
    source = program(path.read_text(encoding="utf-8"))
    assert source.strip(), f"{path} has no code cell"
    script = f"exec(compile({source!r}, {str(path)!r}, 'exec'))"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def sections(notebook):
    """Title to code of every section of a notebook that has code cells; the cells before the first are left out."""
    parts = re.split(r"^## (.+)$", notebook, flags=re.MULTILINE)
    found = {title: program(text) for title, text in zip(parts[1::2], parts[2::2], strict=True)}
    return {title: code for title, code in found.items() if code.strip()}


def asserts(code):
    return [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Assert)]


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_every_section_asserts_what_it_states(path):
    by_section = {title: asserts(code) for title, code in sections(path.read_text(encoding="utf-8")).items()}
    assert len(by_section) > 5
    assert [title for title, found in by_section.items() if not found] == []
    for one in chain.from_iterable(by_section.values()):  # each of them about something that the page computed
        assert any(isinstance(node, ast.Name) for node in ast.walk(one.test)), ast.unparse(one)


class Fitted:
    """The velocities [km/s] of a fit and their errors, as the pages ask for them."""

    def __init__(self, **velocities):
        self.velocities = velocities

    def value(self, name):
        return self.velocities[name][0]

    def error(self, name):
        return self.velocities[name][1]


TRUE = {"first_fit": (-35.47, 8.3), "hpf_night": (41.3, 5.2), "igrins_pair": (-18.2, 7.5)}


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
@pytest.mark.parametrize(
    ("rv_off", "vsini_off", "error", "right"),
    [(0.02, -0.02, 0.03, True), (-265.0, 410.0, 7.0, False), (0.6, 0.0, 0.03, False), (0.0, 3.0, 0.1, False)],
)
def test_asserts_of_velocities_tell_right_from_wrong(path, rv_off, vsini_off, error, right):
    """The cell that compares with the truth, run on made-up fits; one is a blaze that was taken for rotation."""
    rv, vsini = TRUE[path.stem]
    (cell,) = (cell[1] for cell in CELL.finditer(path.read_text(encoding="utf-8")) if "off by" in cell[1])
    answers = {"rv": (rv + rv_off, error), "vsini": (vsini + vsini_off, error)}
    answers["rv_barycentric"] = (rv + rv_off + 18.342, error)
    given = {"fit": Fitted(**answers), "motion": {"rv": rv, "vsini": vsini}, "simulated": True}
    given["show_amounts"] = lambda fit, airmass: None
    with contextlib.nullcontext() if right else pytest.raises(AssertionError):
        exec(cell, given)


def test_a_wrong_page_fails():
    code = program("```{code-cell} ipython3\nrv = 2.0\nassert rv < 1.0\n```\n")
    with pytest.raises(AssertionError):
        exec(compile(code, "page", "exec"), {})


def test_documentation_stops_at_a_failing_cell():
    """Sphinx executes the pages too."""
    assert re.search(r"^nb_execution_raise_on_error = True$", CONF.read_text(encoding="utf-8"), re.MULTILINE)
    assert re.search(r'^nb_execution_mode = "force"$', CONF.read_text(encoding="utf-8"), re.MULTILINE)


def test_cells_keep_their_lines():
    notebook = "# Title\n\n```{code-cell} ipython3\n:tags: [hide-input]\n\na = 1\n```\ntext\n```python\nnot run\n```\n"
    assert program(notebook).splitlines() == ["", "", "", "", "", "a = 1", "", "", "", "", ""]


@pytest.mark.slow
@pytest.mark.parametrize("path", HOWTOS, ids=lambda path: path.stem)
def test_howto_runs(path, tmp_path, monkeypatch, capsys):
    """All examples of a page, one after the other, in less than a minute of one core; they assert what the text says.

    Left out is what needs the reader's own data: `cross_validate`, which tests/test_cross_validation.py runs.
    """
    blocks = PYTHON.findall(path.read_text(encoding="utf-8"))
    blocks = [block for block in blocks if "cross_validate" not in block]
    assert sum(len(asserts(block)) for block in blocks) >= 5
    monkeypatch.chdir(tmp_path)
    names, start = {}, time.process_time()
    for block in blocks:
        exec(compile(block, str(path), "exec"), names)
    assert time.process_time() - start < 60.0
    assert capsys.readouterr().out.count("±") == 4
    assert list(tmp_path.iterdir()) == []


def test_there_are_howtos():
    assert HOWTOS


def examples():
    """The README's examples, in order: one spectrum; whole échelle spectra."""
    return PYTHON.findall(README.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_example_of_the_readme_runs(tmp_path, monkeypatch):
    """As it is written, in less than a minute of one core."""
    example, _ = examples()
    monkeypatch.chdir(tmp_path)
    given, start = {}, time.process_time()
    exec(compile(example, str(README), "exec"), given)
    assert time.process_time() - start < 60.0
    fit, truth = given["fit"], given["data"].meta["truth"]
    assert fit.success and 0.8 < fit.reduced_chi2 < 1.2
    for name, dense in (("rv", 0.0745), ("vsini", 0.1938)):  # errors by dense algebra: see error_bars.py
        assert abs(fit.value(name) - truth[name]) < 4.0 * fit.error(name)
        assert fit.error(name) == pytest.approx(dense, rel=0.1)
    assert 0 < len(given["strong"]) < len(fit.ledger)
    assert given["clean"].flux.shape == given["pixels"].shape
    assert sb.read("order.asdf").value("rv") == fit.value("rv")
    assert Path("order.png").stat().st_size > 0


def test_example_of_the_readme_with_many_orders(tmp_path, monkeypatch, capsys):
    _, example = examples()
    monkeypatch.chdir(tmp_path)
    nights.write_hpf_night("my_star.spectra.fits")
    given = {"sb": sb, "star": nights.star_lines(), "tellurics": nights.sky_lines()}
    exec(compile(example, str(README), "exec"), given)
    fit, printed = given["fit"], capsys.readouterr().out
    assert fit.success and list(fit.orders["order"]) == ["17", "18", "20"]
    assert abs(fit.value("rv") - nights.TRUTH["rv"]) < 4.0 * fit.error("rv")
    assert fit.error("rv") == pytest.approx(0.0205, rel=0.1)  # by dense algebra: see error_bars.py
    assert "rv_barycentric = " in printed and re.search("^ *order +fitted +reason", printed, re.MULTILINE)
    assert [len(one.flux) for one in given["clean"]] == [400] * 3
    assert all(Path(name).stat().st_size > 0 for name in ("one_order.png", "orders.png"))
    assert sb.read("night.asdf").value("rv") == fit.value("rv")


def promised_names():
    """Attributes of a fit in the README's table of what comes back."""
    rows = [line for line in README.read_text(encoding="utf-8").splitlines() if line.startswith("| `fit.")]
    return sorted({name for row in rows for name in re.findall(r"`fit\.(\w+)", row.split("|")[1])})


@pytest.mark.parametrize("name", promised_names())
def test_what_comes_back_is_there(name):
    assert name in dir(sb.EchelleFitResult) or name in sb.EchelleFitResult.__dataclass_fields__
    if name != "order":
        assert name in dir(sb.FitResult) or name in sb.FitResult.__dataclass_fields__


def commands():
    """Every call of the command line in the README and the tutorials."""
    for path in (README, *TUTORIALS):
        for block in SHELL.findall(path.read_text(encoding="utf-8")):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("specutils-blase "):
                    yield line


@pytest.mark.parametrize("command", list(commands()))
def test_commands_are_understood(command):
    assert cli_arguments.argument_parser().parse_args(shlex.split(command)[1:]).command in cli.COMMANDS


def test_reference_lists_every_module():
    listed = set(re.findall(r"^   (\w+)$", (ROOT / "docs" / "api.rst").read_text(encoding="utf-8"), re.MULTILINE))
    package = Path(sb.__file__).parent
    modules = {path.stem for path in package.glob("*.py")} | {
        path.parent.name for path in package.glob("*/__init__.py")
    }
    assert {name for name in modules if not name.startswith("_")} <= listed
