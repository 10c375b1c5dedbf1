"""Ledgers in ECSV, FITS, HDF5 and Parquet: everything comes back; damaged files are named."""

import warnings

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.io import fits
from astropy.table import QTable
from astropy.utils.masked import Masked

import specutils_blase as sb
from specutils_blase.ledger.table import LineErrors, build_ledger, held_errors
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.physics.grids import Sampling
from specutils_blase.physics.saturation import Minnaert

SUFFIXES = [".ecsv", ".fits", ".hdf5", ".parquet"]


@pytest.fixture(scope="module")
def ledger():
    """Star and sky with laws of their own, errors for some lines, NaN and empty text for others."""
    n = 12
    rng = np.random.default_rng(1)
    star = LineEmulator(
        np.sort(rng.uniform(10480, 10520, n)), rng.uniform(0.01, 0.1, n), [0.05] * n, [0.03] * n,
        law=Minnaert((10470.0, 10530.0), degree=1), species=["Fe I", "", "Ti II"] * 4, sign=[1] * 11 + [-1],
    )  # fmt: skip
    sky = LineEmulator([10490.0, 10491.0], [0.1, 0.2], [0.05] * 2, [0.03] * 2, law="linear", species=["H2O", ""])
    covariance = torch.diag_embed(torch.full((n, 4), 1e-4, dtype=torch.float64))
    errors = LineErrors(torch.arange(n) > 3, covariance, star.ln_area.detach() - 0.1, 0.3)
    settings = {"free": ["rv"], "degrees": float("inf"), "nothing": None, "pair": (1, 2.5), "count": np.int64(3)}
    return build_ledger(
        {"star": (star, errors), "telluric": (sky, held_errors(sky))},
        wavelength_range={"star": [(10470.0, 10530.0)], "telluric": [(10470.0, 10530.0)]},
        orders=["17"],
        meta={"settings": settings, "rv": -3.5},
    )


def same(one, other):
    assert one.colnames == other.colnames
    for name in one.colnames:
        a, b = one[name], other[name]
        assert getattr(a, "unit", None) == getattr(b, "unit", None), name
        assert a.info.description == b.info.description, name
        assert b.dtype.isnative and a.dtype.kind == b.dtype.kind, name
        mask = np.asarray(getattr(a, "mask", np.zeros(len(a), bool)))
        np.testing.assert_array_equal(mask, np.asarray(getattr(b, "mask", np.zeros(len(b), bool))), err_msg=name)
        a, b = (np.asarray(getattr(getattr(c, "unmasked", c), "value", c)) for c in (a, b))
        np.testing.assert_array_equal(a[~mask], b[~mask], err_msg=name)


@pytest.fixture(params=SUFFIXES)
def path(request, tmp_path):
    if request.param == ".parquet":
        pytest.importorskip("pyarrow")
    return tmp_path / f"ledger{request.param}"


def test_everything_comes_back(ledger, path):
    sb.write_ledger(ledger, path)
    back = sb.read_ledger(path)
    same(ledger, back)
    assert set(back.meta) == set(ledger.meta)
    for key in ("flux_scale", "medium", "columns", "rv", "law"):
        assert back.meta[key] == ledger.meta[key]
    settings = back.meta["settings"]
    assert settings["free"] == ["rv"] and settings["degrees"] == np.inf and settings["nothing"] is None
    assert list(settings["pair"]) == [1, 2.5] and settings["count"] == 3
    sampling = Sampling(torch.linspace(10480.0, 10520.0, 2000, dtype=torch.float64))
    for component in ("star", "telluric"):
        one, other = (LineEmulator.from_ledger(table, component=component) for table in (ledger, back))
        assert one.species == other.species and one.law.name == other.law.name
        assert torch.equal(one(sampling), other(sampling))


def test_masks_are_kept(ledger, path):
    table = QTable(ledger, copy=True)
    odd = np.arange(len(table)) % 2 == 1
    for name in ("equivalent_width", "center_err"):
        description = table[name].info.description
        table[name] = Masked(table[name], mask=odd)
        table[name].info.description = description
    sb.write_ledger(table, path)
    same(table, sb.read_ledger(path))


def test_a_clone_fits_from_its_file(path):
    """Clone → file → fit: the same as without the file."""
    rng = np.random.default_rng(0)
    lines = LineEmulator(np.sort(rng.uniform(10490, 10510, 20)), [0.04] * 20, [0.05] * 20, [0.03] * 20, law="linear")
    table = build_ledger({"telluric": (lines, held_errors(lines))}, wavelength_range={"telluric": [(10480, 10520)]})
    table.meta["wavelength_range"] = [10480.0, 10520.0]
    sb.write_ledger(table, path)
    emulator = LineEmulator.from_ledger(sb.read_ledger(path))
    assert emulator.law.name == "linear" and emulator.wavelength_range == (10480.0, 10520.0)


def test_plain_astropy_reads_it(ledger, path):
    """Without this package: columns, units, and of FITS the meta as JSON; the law is found all the same."""
    sb.write_ledger(ledger, path)
    options = {".hdf5": {"path": "ledger"}}.get(path.suffix, {})
    table = QTable.read(path, **options)
    assert table["center"].unit == u.AA and table["rv_offset"].unit == u.km / u.s
    np.testing.assert_array_equal(table["area"].value, ledger["area"].value)
    if path.suffix != ".hdf5":  # there text is bytes
        assert LineEmulator.from_ledger(table, component="telluric").law.name == "linear"


def test_files_that_astropy_wrote(ledger, path):
    """``ledger.write`` itself: FITS says that it drops the meta, the columns are there."""
    options = {".hdf5": {"path": "ledger", "serialize_meta": True}}.get(path.suffix, {})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        ledger.write(path, **options)
    assert ("flux_scale" in " ".join(str(each.message) for each in said)) == (path.suffix == ".fits")
    same(ledger, sb.read_ledger(path))


def test_overwriting_is_asked_for(ledger, path):
    sb.write_ledger(ledger, path)
    with pytest.raises(OSError, match="exists"):
        sb.write_ledger(ledger, path)
    sb.write_ledger(ledger[:3], path, overwrite=True)
    assert len(sb.read_ledger(path)) == 3


def test_damaged_files_are_named(ledger, path):
    sb.write_ledger(ledger, path)
    whole = path.read_bytes()
    for content in (b"", whole[: len(whole) // 2], b"\x00" * 3000):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"cannot read a ledger from .*ledger\{path.suffix}: ."):
            sb.read_ledger(path)


def test_what_is_no_ledger(tmp_path):
    with pytest.raises(ValueError, match=r"the table is no line ledger: sigma, gamma missing from center, area"):
        sb.write_ledger(QTable({"center": [1.0], "area": [1.0]}), tmp_path / "a.ecsv")
    with pytest.raises(ValueError, match=r"ends in \.ecsv, .*, got .*a\.txt: rename it"):
        sb.read_ledger(tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        sb.read_ledger(tmp_path / "a.hdf5")
    fits.PrimaryHDU(np.ones((3, 3))).writeto(tmp_path / "image.fits")
    with pytest.raises(ValueError, match=r"cannot read a ledger from .*image\.fits: "):
        sb.read_ledger(tmp_path / "image.fits")
    QTable({"wavelength": [1.0] * u.AA}).write(tmp_path / "other.fits")
    with pytest.raises(
        ValueError, match=r"other\.fits is no line ledger: center, area, sigma, gamma missing from wave"
    ):
        sb.read_ledger(tmp_path / "other.fits")


def test_a_package_that_is_missing_is_named(ledger, tmp_path, monkeypatch):
    import builtins

    real = builtins.__import__

    def without(name, *args, **options):
        if name.split(".")[0] in ("h5py", "pyarrow"):
            raise ImportError(f"no {name}")
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    for suffix, package in ((".h5", "h5py"), (".parquet", "pyarrow")):
        with pytest.raises(ModuleNotFoundError, match=f"need the package {package}: run `pip install {package}`"):
            sb.write_ledger(ledger, tmp_path / f"a{suffix}")
