"""What the documentation promises: tutorials and the README's example run, commands parse, no module is left out."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import nights
import pytest
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase import cli, cli_arguments

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.md"))
README = ROOT / "README.md"
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


def test_cells_keep_their_lines():
    notebook = "# Title\n\n```{code-cell} ipython3\n:tags: [hide-input]\n\na = 1\n```\ntext\n```python\nnot run\n```\n"
    assert program(notebook).splitlines() == ["", "", "", "", "", "a = 1", "", "", "", "", ""]


def cut(template, low, high):
    """Part of a template, as a spectrum of its own."""
    wavelength = template.spectral_axis.value
    inside = (wavelength > low) & (wavelength < high)
    return Spectrum(flux=template.flux[inside], spectral_axis=template.spectral_axis[inside])


def examples():
    """The README's examples, in order: one spectrum; whole échelle spectra."""
    return PYTHON.findall(README.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_example_of_the_readme_runs(tmp_path, monkeypatch):
    example, _ = examples()
    wavelength = sb.simulate.hpf_wavelengths(24)[600:1000]
    low, high = wavelength[0] - 8.0, wavelength[-1] + 8.0
    given = {"phoenix": cut(sb.templates.arcturus(), low, high), "telfit": cut(sb.templates.telfit_hpf(), low, high)}
    star = sb.clone(given["phoenix"], progress=False).ledger["center", "area", "sigma", "gamma"]
    sky = sb.clone(given["telfit"], resolving_power=55_000, progress=False).ledger["center", "area", "sigma", "gamma"]
    truth = {"rv": 12.0, "vsini": 4.0, "limb_darkening": (0.4, 0.2), "resolving_power": 55_000, "snr": 150}
    given["data"] = sb.simulate.simulate(wavelength, star, sky, **truth)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, str(README), "exec"), given)
    fit = given["fit"]
    assert fit.success
    assert abs(fit.value("rv") - truth["rv"]) < 4.0 * fit.error("rv")
    assert len(given["strong"]) > 0
    assert given["clean"].flux.shape == wavelength.shape
    assert sb.read("order.asdf").value("rv") == fit.value("rv")
    assert Path("order.png").stat().st_size > 0


def test_example_of_the_readme_with_many_orders(tmp_path, monkeypatch, capsys):
    _, example = examples()
    monkeypatch.chdir(tmp_path)
    nights.write_hpf_night("my_star.spectra.fits")
    given = {"sb": sb, "star": nights.star_lines(), "sky": nights.sky_lines()}
    exec(compile(example, str(README), "exec"), given)
    fit, printed = given["fit"], capsys.readouterr().out
    assert fit.success and list(fit.orders["order"]) == ["17", "18", "20"]
    assert abs(fit.value("rv") - nights.TRUTH["rv"]) < 4.0 * fit.error("rv") < 0.2
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
    assert modules - {"__init__"} <= listed
