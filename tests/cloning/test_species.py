"""Clones that know their species, and what a night's amounts of each do to them."""

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.table import vstack
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase import simulate, templates
from specutils_blase.cloning.clone import NoLinesError
from specutils_blase.ledger.emulator import emulator_from_ledger
from specutils_blase.physics.grids import Sampling

CARBON = (20_600 * u.AA, 20_680 * u.AA)  # CO2's band of 2.06 µm on water lines
METHANE = (22_560 * u.AA, 22_640 * u.AA)  # CH4 and N2O on water lines
QUICK = {"progress": False, "prominence": 0.02, "max_iterations": 60, "rms_target": 0.005}


@pytest.fixture(scope="module")
def psg():
    return templates.psg_hk_species()


@pytest.fixture(scope="module")
def sky(psg):
    return sb.clone_species(psg, region=CARBON, **QUICK)


def within(spectrum, region):
    axis = spectrum.spectral_axis
    return (axis >= region[0]) & (axis <= region[1])


def test_psg_species_are_the_columns(psg):
    assert list(psg) == ["H2O", "CO2", "O3", "N2O", "CO", "CH4", "O2"]
    for name in ("H2O", "CO2"):
        np.testing.assert_array_equal(psg[name].flux.value, templates.psg_hk(name).flux.value)
        assert name in psg[name].meta["source"] and psg[name].meta["resolving_power"] == 100_000
    total = np.prod([spectrum.flux.value for spectrum in psg.values()], axis=0)
    smooth = np.prod([templates.psg_hk(name).flux.value for name in ("N2", "Rayleigh", "CIA")], axis=0)
    residual = (
        total * smooth - templates.psg_hk().flux.value
    )  # a product of spectra at R = 100,000, not one of the product
    assert np.sqrt(np.mean(residual**2)) < 1e-3 and np.abs(residual).max() < 0.02


def test_merged_clone_is_the_product(sky, psg):
    assert sky.success, sky.message
    species = np.asarray(sky.ledger["species"])
    assert {"H2O", "CO2"} <= set(species) and list(species) == sky.emulator.species
    assert (sky.emulator.center.diff() >= 0).all() and set(sky.ledger["component"]) == {"telluric"}
    here = within(psg["H2O"], CARBON)
    product = np.prod([psg[name].flux.value[here] for name in ("H2O", "CO2")], axis=0)
    np.testing.assert_allclose(sky.template.flux.value, product, atol=1e-12)
    residual = sky.template.flux.value - sky.model_spectrum.flux.value
    assert np.sqrt(np.mean(residual**2)) == pytest.approx(sky.rms, rel=1e-9)
    assert sky.rms < 0.006
    assert sky.settings["without_lines"] == ["O3", "N2O", "CO", "CH4", "O2"] and "no lines of O3" in sky.message
    assert sum(each["lines"] for each in sky.settings["species"].values()) == len(sky.emulator)


def test_each_species_is_its_own_clone(sky, psg):
    alone = sb.clone(psg["CO2"], region=CARBON, resolving_power=100_000, **QUICK)
    mine = sky.ledger[sky.ledger["species"] == "CO2"]
    for name in ("center", "area", "sigma", "gamma", "delta_ln_area"):
        np.testing.assert_allclose(mine[name], alone.ledger[name], rtol=1e-9)


def test_blends_across_species_are_flagged(sky):
    center, fwhm, species = (np.asarray(sky.ledger[name]) for name in ("center", "fwhm", "species"))
    near = np.abs(center[:, None] - center) < 0.5 * (fwhm[:, None] + fwhm)
    np.fill_diagonal(near, False)
    assert (near & (species[:, None] != species)).any()
    np.testing.assert_array_equal(np.asarray(sky.ledger["blended"]), near.any(1))


def test_ledger_and_file_keep_the_species(sky, tmp_path):
    back = emulator_from_ledger(sky.ledger)
    assert back.species == sky.emulator.species
    sky.write(tmp_path / "sky.asdf")
    assert sb.read(tmp_path / "sky.asdf").emulator.species == sky.emulator.species


def small(depths, axis=None, **meta):
    axis = np.linspace(10490.0, 10510.0, 2000) if axis is None else axis
    center = 10492.0 + 2.0 * np.arange(len(depths))
    flux = np.exp(-np.sum(np.array(depths)[:, None] * np.exp(-0.5 * ((axis - center[:, None]) / 0.06) ** 2), axis=0))
    return Spectrum(flux=flux * u.one, spectral_axis=axis * u.AA, meta=meta)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ({}, {}, "expected a mapping of species to template spectra, got dict without any"),
        (small([0.3]), {}, "expected a mapping of species to template spectra, got Spectrum"),
        ({"H2O": small([0.3])}, {"flux_scale": "minnaert"}, "flux_scale log or linear, in which species multiply"),
        ({"H2O": 3.0}, {}, "expected a Spectrum for H2O, got float"),
        ({"H2O": small([0.3]), "CO2": small([0.3], np.linspace(10490, 10510, 1999))}, {}, "CO2 has another spectral"),
        ({"H2O": small([0.3], resolving_power=1e5), "CO2": small([0.3])}, {}, "several resolving powers"),
        ({"H2O": small([1e-4]), "CO2": small([1e-5])}, {}, "none of H2O, CO2 has a line of the prominence asked for"),
        ({"H2O": small([0.3]) * 5.0}, {}, 'H2O: continuum="none" says that the template is normalised'),
    ],
)
def test_refuses(given, options, message):
    with pytest.raises(ValueError, match=message):
        sb.clone_species(given, progress=False, **options)


def test_no_lines_is_an_error_of_its_own():
    with pytest.raises(NoLinesError, match=r"no line of prominence 0\.01 in the template"):
        sb.clone(small([1e-4]), progress=False)


def test_linear_scale_and_emulator_of_two_species():
    given = {"H2O": small([0.3, 0.0, 0.2]), "CO2": small([0.0, 0.4])}
    result = sb.clone_species(given, flux_scale="linear", progress=False)
    assert result.emulator.species == ["H2O", "CO2", "H2O"] and result.rms < 2e-3
    one = [sb.clone(spectrum, flux_scale="linear", progress=False).emulator for spectrum in given.values()]
    sampling = Sampling(torch.linspace(10490.0, 10510.0, 3000, dtype=torch.float64))
    with torch.no_grad():
        torch.testing.assert_close(result.emulator(sampling), one[0](sampling) * one[1](sampling), rtol=0, atol=1e-6)


# --- a night's amounts ------------------------------------------------------------------------------------------------

TRUE = {"H2O": 1.4, "CO2": 1.1, "CH4": 1.0, "N2O": 0.8}
EDGES = ((20_605.0, 20_675.0), (22_565.0, 22_635.0))


@pytest.fixture(scope="module")
def two_bands(sky, psg):
    """One emulator of both bands: ledgers of two clones, one below the other."""
    other = sb.clone_species(psg, region=METHANE, **QUICK)
    names = ("center", "area", "sigma", "gamma", "species")
    ledger = vstack([clone.ledger[names] for clone in (sky, other)], metadata_conflicts="silent")
    ledger.meta = {"flux_scale": "log", "wavelength_range": (20_600.0, 22_640.0)}
    return ledger


def night(sky, seed, snr=200.0, star=None, factors=TRUE, shift=0.12, edges=EDGES):
    """Orders at R = 45,000 behind a sky with other amounts of each species."""
    lines = sky["center", "area", "sigma", "gamma"].copy()
    lines["area"] = lines["area"] * np.array([factors.get(name, 1.0) for name in sky["species"]])
    lines["center"] = lines["center"] * (1.0 + shift / 299_792.458)
    options = {"resolving_power": 45_000, "snr": snr, "continuum": (1.0, 0.03, -0.01)}
    return [
        simulate.simulate(np.linspace(*ends, 500), star, lines, seed=seed + k, **options)
        for k, ends in enumerate(edges)
    ]


def scaled(sky, data):
    """Only the factors are wanted: the lines are held in the fit that follows."""
    fit = sb.fit(data, telluric=sky, resolving_power=45_000, telluric_lines=(), progress=False)
    return fit.settings["telluric_scale"]


def test_amounts_of_each_species_are_recovered(two_bands):
    pulls = []
    for seed in (1, 2, 3):
        scale = scaled(two_bands, night(two_bands, 100 * seed))
        assert set(scale["factors"]) == set(TRUE)
        for name, factor in scale["factors"].items():
            pulls.append((factor - TRUE[name]) / scale["errors"][name])
            assert factor == pytest.approx(TRUE[name], rel=0.05)
        pulls.append((scale["shift"] - 0.12) / scale["shift_error"])
    assert np.abs(pulls).max() < 4.0 and 0.4 < np.sqrt(np.mean(np.square(pulls))) < 1.6


def test_a_species_without_lines_in_the_data_keeps_its_amount(two_bands, caplog):
    """One too weak to be seen: no failure, factor 1, an error as wide as the prior, and the log says so."""
    given = two_bands.copy()
    given.add_row([20_630.0 * u.AA, 1e-7 * u.AA, 0.05 * u.AA, 0.05 * u.AA, "HDO"])
    with caplog.at_level("INFO", logger="specutils_blase"):
        scale = scaled(given, night(two_bands, 7))
    assert scale["factors"]["HDO"] == pytest.approx(1.0, abs=1e-3)
    assert scale["errors"]["HDO"] == pytest.approx(1.0, abs=1e-2)
    assert scale["factors"]["H2O"] == pytest.approx(1.4, rel=0.02)
    assert "the data show no lines of HDO: its factor stays 1" in caplog.text


def test_species_of_other_orders_only(two_bands):
    """Only the order of CO2 is there: methane and N2O are not scaled, and nothing fails."""
    scale = scaled(two_bands, night(two_bands, 9, edges=EDGES[:1]))
    assert {"H2O", "CO2"} <= set(scale["factors"])
    for name in ("CH4", "N2O"):
        assert scale["factors"].get(name, 1.0) == pytest.approx(1.0, abs=0.05)
    assert scale["factors"]["CO2"] == pytest.approx(1.1, rel=0.02)
