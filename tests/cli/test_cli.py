"""The command line end to end, in this process: what it prints, what it writes, what it returns."""

import contextlib
import io
import re
import signal
import subprocess
import sys
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import QTable, Table, vstack
from instrument_files import write_hpf, write_igrins
from matplotlib.image import imread
from nights import BARYCENTRIC, LIT, TRUTH, sky_lines, star_lines, write_hpf_night
from PIL import Image
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase import demo
from specutils_blase.cli import arguments as cli_arguments
from specutils_blase.cli import commands as cli
from specutils_blase.simulate import hpf_wavelengths, perturbed, simulate

RV, VSINI, R = -12.4, 6.0, 55_000
STAR = {
    "center": np.array([10493.1, 10496.2, 10500.6, 10502.1, 10505.3, 10508.0, 10510.2, 10514.8, 10517.2, 10521.0]),
    "area": np.array([0.1, 0.2, 0.12, 0.06, 0.25, 0.1, 0.16, 0.1, 0.14, 0.1]),
    "sigma": np.full(10, 0.06),
    "gamma": np.full(10, 0.03),
}
SKY = {
    "center": np.array([10503.2, 10507.0, 10511.9]),
    "area": np.array([0.08, 0.12, 0.05]),
    "sigma": np.full(3, 0.03),
    "gamma": np.full(3, 0.03),
}


def write_table(path, spectrum):
    """A plain table, as people keep spectra."""
    columns = {"wavelength": spectrum.spectral_axis.to_value(u.AA), "flux": spectrum.flux.value}
    if spectrum.uncertainty is not None:
        columns["uncertainty"] = spectrum.uncertainty.array
    Table(columns).write(path, format="ascii.ecsv")
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Templates of star and sky, their clones, and an observation of lines that differ a little."""
    folder = tmp_path_factory.mktemp("files")
    grid = np.arange(10490.0, 10526.0, 0.02)
    pixels = np.linspace(10499.0, 10516.0, 300)
    data = simulate(
        pixels, perturbed(STAR, 1, 0.1), perturbed(SKY, 2, 0.1), rv=RV, vsini=VSINI, resolving_power=R, snr=150, seed=5
    )
    made = {
        "star": write_table(folder / "star.ecsv", simulate(grid, STAR, snr=None)),
        "sky": write_table(folder / "sky.ecsv", simulate(grid, SKY, snr=None)),
        "data": write_table(folder / "data.ecsv", data),
    }
    for name in ("star", "sky"):
        made[f"{name}_clone"], made[f"{name}_lines"] = (
            str(folder / f"{name}{end}") for end in (".asdf", "_lines.ecsv")
        )
        command = ["clone", made[name], "--out", made[f"{name}_clone"], "--ledger", made[f"{name}_lines"]]
        assert cli.main(command) == 0
    return made


def value(text, name):
    """value ± error of a line that the command printed."""
    found = re.search(rf"^ *{name} = (\S+) ± (\S+)", text, re.MULTILINE)
    return float(found[1]), float(found[2])


def run_fit(files, *options, star="star_clone", telluric="sky_clone"):
    return cli.main(
        [
            "fit",
            files["data"],
            "--star",
            files[star],
            "--telluric",
            files[telluric],
            "--resolving-power",
            str(R),
            *options,
        ]
    )


def test_clone(files, tmp_path, capsys):
    out, ledger, plot = (tmp_path / name for name in ("c.asdf", "c.ecsv", "c.png"))
    command = ["clone", files["star"], "--prominence", "0.02", "--flux-scale", "minnaert", "--region", "10495", "10520"]
    assert cli.main([*command, "--out", str(out), "--ledger", str(ledger), "--plot", str(plot)]) == 0
    printed = capsys.readouterr()
    assert "10 lines in 10495.0-10520.0 Å, RMS" in printed.out  # two of them beside it
    assert "medium of the template: vacuum (as declared)" in printed.out
    assert printed.err == ""
    clone = sb.read(out)
    assert clone.settings["prominence"] == 0.02
    assert clone.emulator.law.name == "minnaert"
    assert len(QTable.read(ledger)) == len(clone.ledger) == 10 and np.sum(clone.ledger["edge"]) == 2
    assert imread(plot).shape[2] == 4


@pytest.mark.parametrize(
    ("option", "key", "value"), [("--rms-target 0.02", "rms_target", 0.02), ("--no-rounds", "in_rounds", False)]
)
def test_how_long_clone_looks_for_lines(files, tmp_path, option, key, value):
    out = tmp_path / "c.asdf"
    cli.main(["clone", files["star"], "--region", "10495", "10520", *option.split(), "--out", str(out)])
    assert sb.read(out).settings[key] == value


@pytest.mark.parametrize(
    ("star", "telluric"), [("star_clone", "sky_clone"), ("star_lines", "sky_lines"), ("star", "sky")]
)
def test_fit_from_clones_ledgers_or_templates(files, star, telluric, tmp_path, capsys):
    out, ledger, plot = (tmp_path / name for name in ("f.asdf", "f.ecsv", "f.png"))
    code = run_fit(files, "--out", str(out), "--ledger", str(ledger), "--plot", str(plot), star=star, telluric=telluric)
    printed = capsys.readouterr()
    assert code == 0 and printed.err == ""
    rv, error = value(printed.out, "rv")
    # Errors by dense algebra: see error_bars.py.
    assert abs(rv - RV) < 4 * error and error == pytest.approx(0.0561, rel=0.1)
    vsini, error = value(printed.out, "vsini")
    assert abs(vsini - VSINI) < 4 * error and error == pytest.approx(0.157, rel=0.1)
    assert "rv is in the frame of the data's wavelengths" in printed.out
    assert f"wrote {out}, {ledger}, {plot}" in printed.out
    fit = sb.read(out)
    assert fit.success and fit.value("rv") == pytest.approx(rv, rel=1e-3)
    lines = QTable.read(ledger)
    assert set(lines["component"]) == {"star", "telluric"}
    np.testing.assert_allclose(lines["area"].value, fit.ledger["area"].value, rtol=1e-12)
    assert imread(plot).shape[1] > 500
    from_template = star == "star"
    assert ("star: cloned" in printed.out) == from_template


def test_fit_continues_an_earlier_fit(files, tmp_path, capsys):
    first = tmp_path / "first.asdf"
    assert run_fit(files, "--out", str(first)) == 0
    files = files | {"first": str(first)}
    options = ("--star-lines", "none", "--telluric-lines", "none", "--rv", "-12", "--vsini", "5")
    assert run_fit(files, *options, star="first", telluric="first") == 3
    printed = capsys.readouterr().out
    assert "same_data (doubtful): lines of the star and the telluric come from a fit of these data" in printed
    rv, _ = value(printed, "rv")
    assert rv == pytest.approx(sb.read(first).value("rv"), abs=0.02)


def test_options_arrive(files, tmp_path):
    out = tmp_path / "f.asdf"
    options = ("--rv", "-11.5", "--vsini", "4", "--free", "rv,continuum", "--continuum", "1", "--star-lines", "ln_area")
    options += ("--telluric-lines", "none", "--limb-darkening", "0.3", "0.1", "--out", str(out))
    assert run_fit(files, *options) in (0, 3)  # with a v sin i that is not the star's, held
    fit = sb.read(out)
    assert fit.settings["free"] == ["rv", "continuum"]
    assert (fit.settings["start_rv"], fit.settings["continuum"]) == (-11.5, 1)
    assert fit.settings["star_lines"] == ["ln_area"] and fit.settings["telluric_lines"] == []
    assert fit.value("vsini") == 4.0
    assert fit.value("limb_darkening_u1") == pytest.approx(0.3)
    assert fit.value("resolving_power") == pytest.approx(R)


def test_lines_that_are_missing_are_found(files, tmp_path, capsys):
    """A clone that lacks one line of the data: how many were found, which, and where they went."""
    lines, out = QTable.read(files["star_lines"]), tmp_path / "f.asdf"
    poorer = files | {"poorer": str(tmp_path / "poorer.ecsv")}
    lines[np.abs(lines["center"].value - 10508.0) > 0.5].write(poorer["poorer"])
    assert run_fit(poorer, "--missing-lines", "0.1", "--out", str(out), star="poorer") == 0
    printed = capsys.readouterr().out
    assert "missing_lines (good): 1 line found that no template has" in printed
    (row,) = sb.read(out).missing_lines
    seen = 10508.0 * (1.0 + RV / 299792.458)
    assert row["added"] and row["wavelength"].to_value(u.AA) == pytest.approx(seen, abs=0.03)
    found = re.search(r"^  found at (\S+) Å: (\w+), equivalent width (\S+) ± (\S+) Å$", printed, re.MULTILINE)
    assert float(found[1]) == pytest.approx(row["wavelength"].to_value(u.AA), abs=1e-3)
    assert found[2] == row["component"]
    assert float(found[3]) == pytest.approx(row["equivalent_width"].to_value(u.AA), rel=0.05)


def test_air_is_recorded(files, tmp_path, capsys):
    plot = tmp_path / "f.png"
    # Vacuum wavelengths declared as air: the star seems to recede by 82 km/s more, which the printed medium explains.
    command = ["fit", files["data"], "--star", files["star_clone"], "--resolving-power", str(R), "--medium", "air"]
    assert cli.main([*command, "--plot", str(plot)]) in (0, 1, 3)
    assert "medium of the data: air (as declared)" in capsys.readouterr().out
    assert plot.exists()


@pytest.fixture(scope="module")
def spoilt(files, tmp_path_factory):
    """The files, with an order that has no lines in the place of the data."""
    table = QTable.read(files["data"])
    rng = np.random.default_rng(3)
    table["flux"] = 1.0 + rng.normal(0.0, 0.005, len(table))
    table["uncertainty"] = np.full(len(table), 0.005)
    path = tmp_path_factory.mktemp("spoilt") / "flat.ecsv"
    table.write(path, format="ascii.ecsv")
    return files | {"data": str(path)}


def test_a_doubtful_result_is_exit_code_3_with_files(spoilt, tmp_path, capsys):
    out, ledger, plot = (tmp_path / name for name in ("f.asdf", "f.ecsv", "f.png"))
    targets = ("--out", str(out), "--ledger", str(ledger), "--plot", str(plot))
    assert run_fit(spoilt, "--star-lines", "none", "--telluric-lines", "none", "--vsini", "6", *targets) == 3
    printed = capsys.readouterr()
    assert re.search(r"^  quality: bad\n    \w+ \(bad\): ", printed.out, re.MULTILINE)
    assert printed.out.startswith("FitResult: converged\n  quality: bad") and "detection" in printed.out
    assert re.fullmatch(r"the result is bad \(.*\)\n", printed.err)
    assert sb.read(out).quality.status == "bad" and plot.exists()
    assert QTable.read(ledger).meta["quality"]["status"] == "bad"


class Stand:
    """What a command prints, writes and judges."""

    def __init__(self, success, status):
        self.success, self.message = success, "converged" if success else "not converged: why"
        self.quality = sb.Quality.of([sb.Reason("noticed", status, "why")])
        self.model = type("Model", (), {"star": None})()

    def __str__(self):
        return str(self.quality)

    def write(self, path, *, overwrite):
        with open(path, "w" if overwrite else "x") as stream:
            stream.write("result")


@pytest.mark.parametrize(
    ("success", "status", "code"),
    [(True, "good", 0), (False, "good", 1), (False, "bad", 1), (True, "doubtful", 3), (True, "bad", 3)],
)
def test_exit_codes(success, status, code, files, tmp_path, capsys, monkeypatch):
    """The first that applies in the order 2, 130, 143, 1, 3; files are written whatever the result is."""
    monkeypatch.setattr(sb, "fit", lambda *_, **__: Stand(success, status))
    out = tmp_path / "f.asdf"
    assert run_fit(files, "--out", str(out)) == code
    assert out.read_text() == "result"
    assert (capsys.readouterr().err == "") == (code == 0)
    assert run_fit(files, "--out", str(out)) == 2  # there is such a file


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted(number, code, files, tmp_path, capsys, monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(sb, "fit", lambda *_, **__: signal.raise_signal(number))
    assert run_fit(files, "--out", str(tmp_path / "f.asdf")) == code
    assert capsys.readouterr().err in ("interrupted\n", "terminated\n")
    assert list(tmp_path.iterdir()) == [] and signal.getsignal(signal.SIGTERM) is before


def test_not_converged_is_exit_code_1_with_files(files, tmp_path, capsys):
    out = tmp_path / "f.asdf"
    assert run_fit(files, "--max-iterations", "1", "--out", str(out)) == 1
    printed = capsys.readouterr()
    assert printed.err == "not converged: the limit on iterations was reached\n"
    assert not sb.read(out).success


def test_overwrite(files, tmp_path, capsys):
    out = tmp_path / "f.asdf"
    out.write_text("precious")
    assert run_fit(files, "--out", str(out)) == 2
    assert out.read_text() == "precious"
    assert "exists already: choose another name, or give --overwrite" in capsys.readouterr().err
    assert run_fit(files, "--out", str(out), "--overwrite") == 0
    assert sb.read(out).success


@pytest.fixture(scope="module")
def bad(files, tmp_path_factory):
    """Files and folders that arguments below name."""
    tmp_path = tmp_path_factory.mktemp("bad")
    for name in ("notes.txt", "notes.ecsv"):
        (tmp_path / name).write_text("not a spectrum\n")
    sky = simulate(np.arange(10490.0, 10526.0, 0.02), SKY, snr=None)
    flux = {"dex": np.log10(sky.flux.value) * u.dex, "counts": 100 * sky.flux}
    made = {name: tmp_path / f"{name}.ecsv" for name in flux}
    for name, path in made.items():
        Table({"wavelength": sky.spectral_axis, "flux": flux[name]}).write(path)
    (tmp_path / "broken.asdf").write_text("#ASDF 1.0.0\nnot: [closed\n")
    star = sb.read(files["star_clone"])
    sb.fit(
        simulate(np.linspace(10499.0, 10516.0, 300), STAR, rv=RV, vsini=VSINI, resolving_power=R, snr=150, seed=5),
        star,
        resolving_power=R,
        progress=False,
    ).write(tmp_path / "star_only.asdf")
    units = [fits.PrimaryHDU(header=fits.Header({"INSTRUME": "HPF"}))]
    names = (
        "Sci Flux",
        "Sky Flux",
        "Cal Flux",
        "Sci Error",
        "Sky Error",
        "Cal Error",
        "Sci Wavl",
        "Sky Wavl",
        "Cal Wavl",
    )
    units += [fits.ImageHDU(np.ones((28, 2048), "f4"), name=name) for name in names]
    fits.HDUList(units).writeto(tmp_path / "hpf.fits")
    return files | made | {"tmp": str(tmp_path)}


BAD = [
    ("fit {tmp}/none.fits --star arcturus", "there is no file .*none.fits"),
    ("fit {tmp} --star arcturus", "expected the file of a spectrum, got the folder"),
    ("fit {tmp}/notes.txt --star arcturus", "cannot read a spectrum from .*notes.txt"),
    ("fit {tmp}/hpf.fits --star arcturus --order 3,28", "hpf.fits holds 28 spectra, --order must lie between 0 and 27"),
    ("fit {tmp}/hpf.fits {data} --star arcturus", "expected one file, the H and K files of IGRINS, or orders"),
    ("fit {tmp}/hpf.fits --star arcturus --order 28", "--order must lie between 0 and 27 for HPF, got 28"),
    ("clone {tmp}/hpf.fits --out {tmp}/c.asdf", "holds 28 orders of HPF: choose one, --order 0 to 27"),
    ("fit {data}", "fit needs --star, --telluric, or both"),
    ("fit {data} --star arcturux", "arcturux is neither a file nor an embedded template .arcturus, telfit_hpf"),
    ("fit {data} --star {tmp}/none.asdf", "none.asdf is neither a file nor an embedded template"),
    ("fit {data} --star {tmp}/broken.asdf --resolving-power 5e4", "cannot read .*broken.asdf"),
    ("fit {data} --telluric {tmp}/star_only.asdf --resolving-power 5e4", "holds a fit without a telluric component"),
    ("fit {data} --star {star_clone}", "the data do not say their resolving power: pass --resolving-power λ/FWHM"),
    ("fit {data} --star {star_clone} --resolving-power 5e4 --rv 900", "the star template covers .*extend the template"),
    ("clone {tmp}/none.ecsv --out {tmp}/c.asdf", "none.ecsv is neither a file nor an embedded template"),
    ("clone {dex} --out {tmp}/c.asdf", r"expected flux on a linear scale, got its logarithm \[dex\]: give 10\*\*flux"),
    ("clone {counts} --out {tmp}/c.asdf", "--continuum none says that .*, or give --continuum <polynomial degree>"),
    ("clone {star} --out {tmp}/c.asdf --prominence 0.99", "no line of prominence 0.99 in the template"),
    ("clone {star} --out {tmp}/c.asdf --region 9000 9100", "region 9000.00-9100.00 Å holds 0 pixels"),
    ("demo --out {tmp}/notes.txt", "File exists"),
]


@pytest.mark.parametrize(("command", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_input_is_one_line_and_exit_code_2(bad, command, message, capsys):
    assert cli.main([part.format(**bad) for part in command.split()]) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(rf"specutils-blase {command.split()[0]}: error: .*{message}.*\n", printed.err), printed.err
    assert printed.out == ""


TEMPLATES = "fit {data} --star {star} --telluric {sky}"
FIT = f"{TEMPLATES} --resolving-power 5e4"
BEFORE_CLONING = [
    (TEMPLATES, "the data do not say their resolving power: pass --resolving-power"),
    ("fit {dex} --star {star} --resolving-power 5e4", r"got its logarithm \[dex\]"),
    ("fit {data} --star {star} --telluric {tmp}/none.asdf --resolving-power 5e4", "none.asdf is neither a file"),
    ("fit {data} --star {star} --telluric {tmp}/broken.asdf --resolving-power 5e4", "cannot read .*broken.asdf"),
    ("fit {data} --star {star} --telluric {tmp}/notes.txt --resolving-power 5e4", "cannot read .*notes.txt"),
    (f"{FIT} --order 1", "--order must lie between 0 and 0, got 1"),
    (f"{FIT} --free none --star-lines none --telluric-lines none", "nothing is free: name parameters in --free"),
    (f"{FIT} --missing-lines 1 --star-lines none --telluric-lines none", "--missing-lines needs lines whose ln_area"),
    (f"{FIT} --out {{tmp}}/no/f.asdf", "cannot write --out .*f.asdf: .* is not a folder"),
    (f"{FIT} --out {{tmp}}/f.fits", "--out must end with .asdf, got .*f.fits"),
    (f"{FIT} --ledger {{tmp}}/f.dat", "--ledger must end with .ecsv, got .*f.dat"),
    (f"{FIT} --plot {{tmp}}", "cannot write --plot .*: it is a folder"),
    (f"{FIT} --plot {{tmp}}/f", "--plot must end with .*png"),
    (f"{FIT} --plot {{tmp}}/f.doc", "--plot must end with .*png.* or .*, got .*f.doc"),
    (f"{FIT} --ledger {{tmp}}/notes.ecsv --plot {{tmp}}/notes.png", "--ledger .*notes.ecsv exists already"),
    ("clone {star} --out {tmp}/c.txt", "--out must end with .asdf, got .*c.txt"),
    ("clone {star} --out {tmp}/c.asdf --plot {tmp}/no/c.png", "cannot write --plot .*c.png: .* is not a folder"),
    ("clone {star} --out {tmp}/c.asdf --order 3", "--order must lie between 0 and 0, got 3"),
]


@pytest.mark.parametrize(("command", "message"), BEFORE_CLONING, ids=[message for _, message in BEFORE_CLONING])
def test_bad_input_is_told_before_any_cloning(bad, command, message, monkeypatch, capsys):
    monkeypatch.setattr(sb, "clone", lambda *given, **options: pytest.fail("cloned"))
    kept = sorted(path.name for path in Path(bad["tmp"]).iterdir())
    assert cli.main([part.format(**bad) for part in command.split()]) == 2
    printed = capsys.readouterr()
    assert re.fullmatch(rf"specutils-blase {command.split()[0]}: error: .*{message}.*\n", printed.err), printed.err
    assert printed.out == "" and sorted(path.name for path in Path(bad["tmp"]).iterdir()) == kept


def test_targets_may_not_be_one_file(monkeypatch, bad, capsys):
    """By whatever way the names lead there."""
    monkeypatch.chdir(bad["tmp"])
    monkeypatch.setattr(cli, "_suffixes", lambda target: (".asdf",))
    command = ["fit", bad["data"], "--star", bad["star"], "--out", "f.asdf", "--plot", f"{bad['tmp']}/f.asdf"]
    assert cli.main(command) == 2
    assert "--out, --ledger and --plot need a file each" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ('continuum="none" says, or give continuum=<degree>', "--continuum none says, or give --continuum <degree>"),
        ("pass resolving_power=λ/FWHM", "pass --resolving-power λ/FWHM"),
        ("pass medium='air', or not", "pass --medium air, or not"),
        ("name it in free=, or in star_lines=", "name it in --free, or in --star-lines"),
        ("vsini must not be negative", "--vsini must not be negative"),
        ("cannot read my_order=3/continuum=2.fits", "cannot read my_order=3/continuum=2.fits"),
        ("set uncertainty=None, the continuum of the order", "set uncertainty=None, the continuum of the order"),
    ],
)
def test_messages_name_options(message, expected):
    assert cli_arguments.in_options(message, cli.argument_parser().parse_args(["fit", "a.fits"])) == expected


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("", "the following arguments are required"),
        ("fry", "invalid choice: 'fry'"),
        ("fit", "the following arguments are required: FILE"),
        ("fit a.fits --medium water", "argument --medium: invalid choice: 'water'"),
        ("fit a.fits --rv fast", "argument --rv: expected a number, got 'fast'"),
        ("fit a.fits --rv nan", "argument --rv: expected a number, got 'nan'"),
        ("fit a.fits --missing-lines few", "argument --missing-lines: expected a number, got 'few'"),
        ("fit a.fits --missing-lines 0", "argument --missing-lines: expected a positive number, got '0'"),
        ("fit a.fits --resolving-power -1", "argument --resolving-power: expected a positive number, got '-1'"),
        ("fit a.fits --vsini -1", "argument --vsini: expected a number that is not negative, got '-1'"),
        ("fit a.fits --velocity-step 0", "argument --velocity-step: expected a positive number"),
        ("fit a.fits --continuum 1.5", "argument --continuum: expected a whole number, at least 0, got '1.5'"),
        ("fit a.fits --continuum -1", "argument --continuum: expected a whole number, at least 0, got '-1'"),
        ("fit a.fits --max-iterations -1", "argument --max-iterations: expected a whole number, at least 0"),
        ("fit a.fits --threads 0", "argument --threads: expected a whole number, at least 1, got '0'"),
        ("fit a.fits --free rv,speed", "argument --free: expected names among rv, vsini, .*, got 'speed'"),
        ("fit a.fits --star-lines ln_area,rv", "argument --star-lines: expected names among ln_area, .*, got 'rv'"),
        ("clone a.fits --out b --prominence 2", "argument --prominence: expected a number between 0 and 1, got '2'"),
        ("clone a.fits --out b --rms-target 2", "argument --rms-target: expected a number between 0 and 1, got '2'"),
        ("clone a.fits --out b --rms-target 0.01 --no-rounds", "--no-rounds: not allowed with argument --rms-target"),
        ("clone a.fits --out b --free ln_area,speed", "argument --free: expected names among ln_area, .*, got 'speed'"),
        ("clone a.fits --out b --teff 0", "argument --teff: expected a positive number, got '0'"),
        ("clone a.fits --out b --order -1", "argument --order: expected a whole number, at least 0, got '-1'"),
        ("fit a.fits --speed 3", "unrecognized arguments: --speed 3"),
        ("clone a.fits", "the following arguments are required: --out"),
        (
            "clone a.fits --out b --continuum some",
            "argument --continuum: expected none or the degree of a poly",
        ),
    ],
)
def test_bad_arguments(command, message, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(command.split())
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and re.search(message, error) and "--help" in error


def test_debug_shows_where(files):
    with pytest.raises(ValueError, match="fit needs --star"):
        cli.main(["fit", files["data"], "--debug"])


def test_interrupt(monkeypatch, capsys):
    def interrupted(**options):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupted)
    assert cli.main(["demo", "--out", "."]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_version_and_help(capsys):
    for flag, expected in (("--version", f"specutils-blase {sb.__version__}\n"), ("--help", "usage: specutils-blase")):
        with pytest.raises(SystemExit) as stop:
            cli.main([flag])
        assert stop.value.code == 0
        assert capsys.readouterr().out.startswith(expected)


def test_help_is_light():
    imports = "import sys; from specutils_blase.cli import main"
    code = f"{imports}; assert 'torch' not in sys.modules; sys.exit(main(['-h']))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60).returncode == 0


def test_threads_are_put_back(files):
    before = torch.get_num_threads()
    assert run_fit(files, "--max-iterations", "1", "--threads", "1") == 1
    assert torch.get_num_threads() == before


def test_ledger_keeps_its_law_under_another_name(files, tmp_path):
    """A clone does not know whether it will be the star or the sky."""
    clone = sb.clone(
        Spectrum(
            spectral_axis=np.arange(10490.0, 10526.0, 0.02) * u.AA,
            flux=simulate(np.arange(10490.0, 10526.0, 0.02), SKY, snr=None).flux,
        ),
        flux_scale="minnaert",
        progress=False,
    )
    path = tmp_path / "sky.ecsv"
    clone.ledger.write(path, format="ascii.ecsv")
    table = cli._ledger(path, "telluric")
    assert table.meta["flux_scale"] == {"telluric": "minnaert"}
    assert cli._ledger(path, "star").meta["flux_scale"] == {"star": "minnaert"}


@pytest.fixture(scope="module")
def night(tmp_path_factory):
    """A file of 28 orders, three of which have light, and the line lists of star and sky."""
    folder = tmp_path_factory.mktemp("night")
    made = {"star": folder / "star.ecsv", "sky": folder / "sky.ecsv", "data": folder / "night.fits"}
    write_hpf_night(made["data"])
    for name, lines in (("star", star_lines()), ("sky", sky_lines())):
        lines.write(made[name], format="ascii.ecsv")
    return {name: str(path) for name, path in made.items()}


class TestFitOfManyOrders:
    def run(self, night, *options):
        command = ["fit", night["data"], "--star", night["star"], "--telluric", night["sky"], "--threads", "1"]
        return cli.main([*command, *map(str, options)])

    def test_all_orders_of_a_file(self, night, tmp_path, capsys):
        out, ledger, plot = (tmp_path / name for name in ("f.asdf", "f.ecsv", "f.png"))
        assert self.run(night, "--out", out, "--ledger", ledger, "--plot", plot) == 0
        printed = capsys.readouterr()
        assert printed.err == ""
        assert printed.out.startswith("FitResult of 3 orders: converged")
        rv, error = value(printed.out, "rv")
        # Errors by dense algebra: see error_bars.py.
        assert abs(rv - TRUTH["rv"]) < 4 * error and error == pytest.approx(0.0205, rel=0.1)
        vsini, error = value(printed.out, "vsini")
        assert abs(vsini - TRUTH["vsini"]) < 4 * error and error == pytest.approx(0.0659, rel=0.1)
        barycentric, _ = value(printed.out, "rv_barycentric")
        assert barycentric == pytest.approx(rv + BARYCENTRIC, abs=2e-3)  # the product of the two over c is 0.6 m/s
        left_out = re.findall(r"^  order (\d+) left out: .*no finite flux", printed.out, re.MULTILINE)
        assert [int(index) for index in left_out] == sorted(set(range(28)) - set(LIT))
        assert f"wrote {out}, {ledger}, {plot}" in printed.out
        assert set(map(str, QTable.read(ledger)["orders"])) >= set(map(str, LIT))
        height, width, _ = imread(plot).shape
        assert 0.3 < height / width < 0.6
        fit = sb.read(out)
        assert isinstance(fit, sb.EchelleFitResult) and list(fit.orders["fitted"]).count(True) == 3
        assert fit.value("rv") == pytest.approx(rv, abs=1e-4)

    def test_some_orders(self, night, tmp_path, capsys):
        plot = tmp_path / "f.pdf"
        options = ("--order", "17-18", "--barycentric-velocity", "5", "--rv", "-12", "--plot", plot)
        assert self.run(night, *options) == 0
        printed = capsys.readouterr().out
        assert printed.startswith("FitResult of 2 orders") and "left out" not in printed
        rv, _ = value(printed, "rv")
        assert value(printed, "rv_barycentric")[0] == pytest.approx(rv + 5.0, abs=2e-3)
        assert plot.read_bytes().startswith(b"%PDF")

    def test_one_order(self, night, capsys):
        assert self.run(night, "--order", "18", "--rv", "-12") == 0
        printed = capsys.readouterr().out
        assert printed.startswith("FitResult: converged")
        rv, error = value(printed, "rv")
        assert abs(rv - TRUTH["rv"]) < 4 * error and error == pytest.approx(0.0374, rel=0.1)  # by dense algebra
        assert value(printed, "rv_barycentric")[0] == pytest.approx(rv + BARYCENTRIC, rel=1e-3)

    def test_not_converged(self, night, tmp_path, capsys):
        ledger = tmp_path / "f.ecsv"
        assert self.run(night, "--order", "17,20", "--max-iterations", "0", "--ledger", ledger) == 1
        assert re.fullmatch("not converged: .*orders? .*\n", capsys.readouterr().err)
        assert ledger.exists()

    def test_no_order_that_can_be_fitted(self, night, capsys):
        assert self.run(night, "--order", "0,1") == 2
        error = capsys.readouterr().err
        assert re.fullmatch(r"specutils-blase fit: error: none of 2 orders can be fitted \(0: .*\n", error), error

    def test_igrins_pair(self, tmp_path, capsys):
        """Two of eight orders, the target's own spectrum instead of the divided one, and no star."""
        paths, lines = [write_igrins(tmp_path / f"SDC{band}_1.fits", band) for band in "HK"], []
        for seed, path in enumerate(paths):
            with fits.open(path, mode="update", memmap=False) as units:
                pixels = 1e4 * units["WAVELENGTH"].data[3]  # the bluest
                center = np.linspace(pixels[0] - 1.0, pixels[-1] + 1.0, 30)
                area, sigma, gamma = (np.full(30, size) for size in (0.1, 0.12, 0.03))
                columns = list([center, area, sigma, gamma] * u.AA)
                lines.append(QTable(columns, names=("center", "area", "sigma", "gamma")))
                sky = perturbed(lines[-1], seed, 0.1)
                seen = simulate(pixels, telluric=sky, resolving_power=45_000, seed=seed, continuum=(1, 0.1), step=0.2)
                units["TGT_SPEC"].data[3] = 1000 * seen.flux.value
                units["TGT_SPEC_VARIANCE"].data[3] = (1000 * seen.uncertainty.array) ** 2
        vstack(lines).write(tmp_path / "sky.ecsv")
        command = ["fit", *map(str, paths), "--telluric", str(tmp_path / "sky.ecsv"), "--extension", "TGT_SPEC"]
        assert cli.main([*command, "--order", "0,4", "--ledger", str(tmp_path / "lines.ecsv")]) == 0
        printed = capsys.readouterr()
        assert printed.out.startswith("FitResult of 2 orders: converged") and " rv" not in printed.out
        assert {"101", "74"} <= set(map(str, QTable.read(tmp_path / "lines.ecsv")["orders"]))

    @pytest.mark.parametrize(
        ("text", "orders"),
        [("3", [3]), ("3,5-8", [3, 5, 6, 7, 8]), ("5-6, 2 5", [2, 5, 6]), ("0-0", [0])],
    )
    def test_choice(self, text, orders):
        assert cli.argument_parser().parse_args(["fit", "a.fits", "--order", text]).order == orders

    @pytest.mark.parametrize("text", ["", "a", "8-5", "3-", "1-2-3", "2.5", "3,-1"])
    def test_no_choice(self, text, capsys):
        with pytest.raises(SystemExit):
            cli.main(["fit", "a.fits", f"--order={text}"])
        assert "argument --order: expected positions and ranges such as 3,5-8, got" in capsys.readouterr().err


def test_hpf_through_muler(shared_data, tmp_path, capsys):
    file = shared_data / "data/hpf/Goldilocks_20210212T072837_v1.0_0037.spectra.fits"
    out, plot = tmp_path / "f.asdf", tmp_path / "f.png"
    command = ["fit", str(file), "--order", "15", "--telluric", "telfit_hpf", "--out", str(out), "--plot", str(plot)]
    assert cli.main([*command, "--continuum", "3"]) == 0
    printed = capsys.readouterr().out
    assert "telluric: cloned telfit_hpf" in printed
    fit = sb.read(out)
    assert fit.value("resolving_power") == pytest.approx(55_000)
    assert set(fit.ledger["orders"]) == {"15"}
    assert fit.rms < 0.01


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """The demonstration, run once: its exit code, what it printed, and its folder."""
    folder = tmp_path_factory.mktemp("demo") / "new"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = cli.main(["demo", "--out", str(folder)])
    return code, printed.getvalue(), folder


class TestDemo:
    def test_files_are_left_and_read_back(self, shown):
        code, _, folder = shown
        assert code == 0
        assert {path.name for path in folder.iterdir()} == {"demo.asdf", "demo_ledger.ecsv", "demo.png"}
        fit = sb.read(folder / "demo.asdf")
        lines = QTable.read(folder / "demo_ledger.ecsv")
        assert len(lines) == len(fit.ledger)
        np.testing.assert_allclose(lines["center"].to_value(u.AA), fit.ledger["center"].to_value(u.AA), rtol=1e-12)
        assert imread(folder / "demo.png").std() > 0.1
        assert (folder / "demo.png").stat().st_size < 300_000

    def test_velocities_are_recovered(self, shown):
        fit = sb.read(shown[2] / "demo.asdf")
        for name, dense in (("rv", 0.0449), ("vsini", 0.0620)):  # errors by dense algebra: see error_bars.py
            assert abs(fit.value(name) - demo.TRUTH[name]) < 3 * fit.error(name)
            assert fit.error(name) == pytest.approx(dense, rel=0.1)
        assert fit.success and 0.85 < fit.reduced_chi2 < 1.15
        assert fit.settings["start_rv"] != demo.TRUTH["rv"]  # by cross-correlation

    def test_line_strengths_are_recovered(self, shown):
        """Errors that mean what they say: pulls of about one, and far less scatter than the clones had."""
        rows = {}
        for line in shown[1].splitlines():
            found = re.fullmatch(r"(star|atmosphere) +(\d+) +(\S+) +(\S+) +(\S+) +(\S+) ± (\S+)", line)
            if found:
                rows[found[1]] = [float(number) for number in found.groups()[1:]]
        assert set(rows) == {"star", "atmosphere"}
        for n_line, before, after, correlation, mean, scatter in rows.values():
            assert n_line >= 30
            assert after < 0.4 * before
            assert correlation > 0.9
            assert abs(mean) < 0.6
            assert 0.7 < scatter < 1.4

    def numbers(self, text, pattern):
        """True value, recovered value and error of both velocities."""
        found = [re.search(rf"{re.escape(label)} +{pattern}", text) for label in ("RV [km/s]", "v sin i")]
        return np.array([[float(number) for number in one.groups()] for one in found])

    def test_picture_and_numbers_of_the_readme_are_its_own(self, shown):
        """Where they are not: copy demo.png to docs/images, and its numbers to the caption in README.md."""
        root = Path(__file__).resolve().parents[2]
        pictures = [Image.open(folder / "demo.png") for folder in (root / "docs" / "images", shown[2])]
        row = r"(-?[\d.]+) +(-?[\d.]+) +([\d.]+) "  # no sentence about v sin i
        kept, made = (self.numbers(picture.text["Description"], row) for picture in pictures)
        np.testing.assert_array_equal(made, self.numbers(shown[1], row))
        np.testing.assert_array_equal(kept[:, 0], made[:, 0])
        # Another processor rounds otherwise.
        assert (np.abs(kept[:, 1] - made[:, 1]) < 0.1 * made[:, 2]).all()
        np.testing.assert_allclose(kept[:, 2], made[:, 2], rtol=0.05)
        readme = (root / "README.md").read_text(encoding="utf-8").replace("−", "-").replace("\n", " ")
        caption = r"= (\S+) ± (\S+) km/s \(true ([-.\d]+)\)"
        told = self.numbers(readme.replace("RV =", "RV [km/s] ="), caption)
        np.testing.assert_array_equal(told, kept[:, [1, 2, 0]])
        pixels = [np.asarray(picture.convert("L"), float) for picture in pictures]
        assert pixels[0].shape == pixels[1].shape
        assert np.mean(np.abs(pixels[0] - pixels[1]) > 64.0) < 0.003


class TestOrders:
    def run(self, capsys, *words):
        assert cli.main(["orders", *map(str, words)]) == 0
        return capsys.readouterr()

    def test_hpf(self, tmp_path, capsys):
        path = write_hpf(tmp_path / "night.fits")
        printed = self.run(capsys, path)
        lines = printed.out.splitlines()
        assert lines[0] == str(path) and printed.err == ""
        assert lines[1:4] == [
            "28 orders of HPF",
            "target test, middle of the exposure unknown",
            "barycentric velocity -14.198 km/s (header BRVCORR)",
        ]
        assert lines[4].split() == ["index", "order", "from", "Å", "to", "Å", "pixels", "good", "S/N", "R"]
        assert len(lines) == 5 + 28
        low, high = (f"{end:.3f}" for end in hpf_wavelengths(5)[[0, -1]])
        assert lines[10].split() == ["5", "5", low, high, "2048", "2040", "10", "55000"]

    def test_igrins_pair(self, tmp_path, capsys):
        paths = [write_igrins(tmp_path / f"{band}.fits", band) for band in "KH"]
        lines = self.run(capsys, *paths, "--extension", "TGT_SPEC").out.splitlines()
        assert lines[0] == f"{paths[0]}, {paths[1]}" and lines[1] == "8 orders of IGRINS"
        assert lines[2] == "target CPD-57 1131, middle of the exposure 2020-12-03T08:23:44 UTC"
        assert [line.split()[1] for line in lines[5:]] == ["101", "100", "99", "98", "74", "73", "72", "71"]

    def test_what_is_unknown_is_said(self, tmp_path, capsys):
        path = write_igrins(tmp_path / "a.fits", "K", "earlier", OBJRA="", OBJDEC="")
        printed = self.run(capsys, path)
        assert printed.err == (
            f"note: no variances of {path}: the noise is unknown, errors of a fit can only be relative\n"
        )
        assert "barycentric velocity unknown: no coordinates of the target in the header" in printed.out
        assert printed.out.splitlines()[-1].split()[-2:] == ["-", "45000"]
        assert (
            "barycentric velocity -3.200 km/s (given)" in self.run(capsys, path, "--barycentric-velocity", "-3.2").out
        )

    def test_any_spectrum(self, files, capsys):
        lines = self.run(capsys, files["data"], "--medium", "air").out.splitlines()
        assert lines[1] == "1 order" and lines[-1].split()[:6] == ["0", "-", "10501.877", "10518.882", "300", "300"]

    def test_real_files(self, shared_data, capsys):
        file = shared_data / "data/hpf/Goldilocks_20210212T072837_v1.0_0037.spectra.fits"
        lines = self.run(capsys, file).out.splitlines()
        assert lines[2] == "target HR3039_tell_std, middle of the exposure 2021-02-12T07:31:50 UTC"
        assert lines[3] == "barycentric velocity -14.199 km/s (header BRVCORR)"
        assert lines[5].split() == ["0", "0", "8079.036", "8183.556", "2048", "2040", "262", "55000"]

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("none.fits", "there is no file .*none.fits"),
            ("notes.txt", "cannot read a spectrum from .*notes.txt"),
            ("hpf.fits", "row 0 of .*hpf.fits is no spectrum: its wavelengths do not rise from pixel to pixel"),
            ("hpf.fits hpf.fits", "got 2 files of HPF"),
            ("hpf.fits --extension TGT_SPEC", "extension TGT_SPEC chooses among the fluxes of an IGRINS file"),
        ],
    )
    def test_bad_input(self, bad, words, message, capsys):
        words = [f"{bad['tmp']}/{word}" if "." in word else word for word in words.split()]
        assert cli.main(["orders", *words]) == 2
        printed = capsys.readouterr()
        assert re.fullmatch(rf"specutils-blase orders: error: .*{message}.*\n", printed.err), printed.err
        assert printed.out == ""
