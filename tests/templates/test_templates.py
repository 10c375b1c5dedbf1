"""Templates: the embedded star equals its source, the others equal muler's files, and their absence is explained."""

import hashlib
import importlib.util
import subprocess
import sys
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from specutils import Spectrum
from specutils.utils.wcs_utils import vac_to_air

from specutils_blase import templates

ALL = [templates.arcturus, templates.telfit_hpf, templates.psg_hk, templates.phoenix_10000K]


def muler_file(name):
    return Path(importlib.util.find_spec("muler").origin).parent / "templates" / name


@pytest.mark.parametrize("template", ALL)
def test_vacuum_angstrom_ascending_with_provenance(template):
    spectrum = template()
    assert type(spectrum) is Spectrum
    assert spectrum.spectral_axis.unit == u.AA and spectrum.flux.unit == u.dimensionless_unscaled
    assert spectrum.spectral_axis.dtype == spectrum.flux.dtype == np.float64
    assert np.all(np.diff(spectrum.spectral_axis.value) > 0)
    assert np.all(np.isfinite(spectrum.flux.value)) and spectrum.flux.min() >= 0
    assert spectrum.meta["medium"] == "vacuum"
    assert len(spectrum.meta["source"]) > 10 and len(spectrum.meta["citation"]) > 10


def test_arcturus_is_the_computed_flux():
    """Delta coding loses nothing: the uint16 values have the digest that PROVENANCE.md records."""
    spectrum = templates.arcturus()
    stored = np.rint(spectrum.flux.value * 60000).astype("<u2")
    digest = hashlib.sha256(stored.tobytes()).hexdigest()
    provenance = Path(templates.__file__).with_name("PROVENANCE.md").read_text(encoding="utf-8")
    assert digest in provenance and "Gustafsson et al. 2008" in provenance and "linemake" in provenance
    assert spectrum.flux.max() == 1.0
    assert spectrum.meta["resolving_power"] is None
    assert "4286" in spectrum.meta["source"]


def test_arcturus_equals_its_source(shared_data):
    source = np.load(shared_data / "data" / "templates" / "pysme_arcturus_4286_hpf.npz")
    assert_array_equal(templates.arcturus().flux.value, source["flux_u2"] / 60000.0)


def test_arcturus_goes_back_to_its_air_grid():
    """vac_to_air is the closed formula that the iteration inverts: 0.01 Å steps from 8040 Å to 1e-5 Å (0.4 m/s)."""
    axis = templates.arcturus().spectral_axis
    assert_allclose(vac_to_air(axis, method="Ciddor1996").value, 8040.0 + 0.01 * np.arange(axis.size), atol=1e-5)


def test_arcturus_has_the_calcium_triplet():
    """Ca II 8544.44 Å (vacuum; 8542.09 Å in air) is the deepest strong line near it."""
    spectrum = templates.arcturus()
    near = np.abs(spectrum.spectral_axis.value - 8544.4) < 3.0
    assert abs(spectrum.spectral_axis.value[near][np.argmin(spectrum.flux.value[near])] - 8544.44) < 0.05


def test_telfit_equals_the_file():
    spectrum = templates.telfit_hpf()
    wavelength, transmission = np.loadtxt(
        muler_file("telfit_HPFtemplate_temp286_hum050.csv"), delimiter=",", skiprows=1, unpack=True
    )
    order = np.argsort(wavelength)
    assert_array_equal(spectrum.spectral_axis.value, wavelength[order])
    assert_array_equal(spectrum.flux.value, transmission[order])
    assert spectrum.meta["resolving_power"] == 55_000


def test_psg_total_and_molecules():
    table = np.loadtxt(muler_file("psg_trn_r100000_1.4_2.5_um.txt"))
    total, methane = templates.psg_hk(), templates.psg_hk(molecule="CH4")
    assert_allclose(total.spectral_axis.value, table[:, 0] * 1e4, rtol=1e-15)
    assert_array_equal(total.flux.value, table[:, 1])
    assert_array_equal(methane.flux.value, table[:, 7])
    assert total.meta["resolving_power"] == methane.meta["resolving_power"] == 100_000
    assert "CH4" in methane.meta["source"]


def test_psg_unknown_molecule_lists_the_known():
    with pytest.raises(ValueError, match=r"molecule='ch5' is not in the PSG file: choose one of Total, H2O, CO2"):
        templates.psg_hk(molecule="ch5")


def test_phoenix_is_native():
    axis = templates.phoenix_10000K().spectral_axis.value
    assert axis.size == 338_649
    assert np.all(np.diff(axis) < 0.021)


@pytest.mark.parametrize("template", ALL[1:])
def test_without_muler(template, monkeypatch):
    monkeypatch.setattr(templates, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"muler is not installed: run `pip install muler`"):
        template()


def test_muler_without_the_file(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("muler", tmp_path / "__init__.py")
    monkeypatch.setattr(templates, "find_spec", lambda name: spec)
    with pytest.raises(FileNotFoundError, match=r"expected the template telfit_HPF.* found no file .*: install muler"):
        templates.telfit_hpf()


def test_muler_and_torch_stay_out():
    code = (
        "import sys; from specutils_blase import templates; templates.telfit_hpf(); templates.arcturus();"
        "assert 'muler' not in sys.modules and 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""
