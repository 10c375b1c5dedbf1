"""Fits: injection and recovery, what is held, bad pixels, unknown noise, bad input."""

import warnings
from copy import deepcopy
from dataclasses import replace

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.nddata import InverseVariance, StdDevUncertainty
from astropy.table import QTable
from error_bars import assert_bars
from small_order import RESOLVING_POWER, SKY, STAR, TRUTH, observed
from specutils import Spectrum, SpectrumList

import specutils_blase as sb
from specutils_blase.adapters.files import load_spectrum
from specutils_blase.fitting.pipeline import fit
from specutils_blase.inference.priors import LinePriors
from specutils_blase.model.order import ForwardModel
from specutils_blase.results.fit_result import SPECTRUM_NAMES
from specutils_blase.simulate import perturbed


def quick(data, star=STAR, **options):
    options = {"telluric": SKY, "rv": -27.0, "vsini": 8.0, "resolving_power": RESOLVING_POWER} | options
    with warnings.catch_warnings():
        if "max_iterations" in options:  # stopped early on purpose
            warnings.filterwarnings("ignore", "the fit did not converge", RuntimeWarning)
            warnings.simplefilter("ignore", sb.BlaseQualityWarning)
        return fit(data, star, progress=False, **options)


@pytest.fixture(scope="module")
def recovered():
    star = perturbed(STAR, seed=5, scatter_ln_area=0.2)
    sky = perturbed(SKY, seed=6, scatter_ln_area=0.2)
    return star, sky, quick(observed(star, sky), rv=None)


def test_recovers_truth_from_perturbed_lines(recovered):
    star, sky, result = recovered
    assert result.success, result.message
    assert abs(result.value("rv") - TRUTH["rv"]) < 3.0 * result.error("rv")
    assert abs(result.value("vsini") - TRUTH["vsini"]) < 3.0 * result.error("vsini")
    assert_bars(result, "rv", "vsini", "continuum_0", "continuum_1", "continuum_2")
    assert 0.8 < result.reduced_chi2 < 1.2
    for name, truth in (("star", star), ("telluric", sky)):
        rows = result.ledger[result.ledger["component"] == name]
        rows = rows[rows["free"] & ~rows["edge"] & ~rows["blended"]]
        true_center = np.sort(np.asarray(truth["center"], dtype=float))
        true_area = np.asarray(truth["area"], dtype=float)[np.argsort(np.asarray(truth["center"], dtype=float))]
        nearest = np.abs(rows["center"].value[:, None] - true_center).argmin(1)
        pulls = (rows["area"].value - true_area[nearest]) / rows["area_err"].value
        assert len(pulls) > 8
        assert 0.3 < np.sqrt(np.mean(pulls**2)) < 1.6, name  # their priors are twice as wide as their scatter


def test_continuum_comes_back_in_the_unit_of_the_flux(recovered):
    result = recovered[2]
    for degree, truth in enumerate((3.0, 0.06, -0.03)):
        error = result.error(f"continuum_{degree}")  # the bar itself: see the test above
        assert abs(result.value(f"continuum_{degree}") - truth) < 4.0 * error


def test_spectra_of_the_result_are_consistent(recovered):
    result = recovered[2]
    model = result.model_spectrum.flux.value
    corrected = result.telluric_corrected
    star = result.star_spectrum.flux.value
    assert np.allclose(model / star, result.data.flux.numpy() / corrected.flux.value, rtol=1e-10)
    template = result.star_template
    step = np.diff(np.log(template.spectral_axis.value)) * 299792.458
    assert step.max() < 1.0  # finer than HPF's 5.5 km/s
    assert template.flux.value.min() < star.min() / 3.0  # unbroadened lines are deeper
    noise = (result.data.sigma / result.evaluate()["continuum"]).square().mean().sqrt().item()
    assert 0.75 * noise < result.rms < 1.05 * noise  # a little below: lines adapt to the noise as well


def test_spectra_are_kept(recovered, monkeypatch):
    """Printing, drawing and writing evaluate the model once; a result of a changed model is made by `replace`."""
    result = replace(deepcopy(recovered[2]))
    evaluations = []
    stages = ForwardModel.stages
    monkeypatch.setattr(ForwardModel, "stages", lambda self: evaluations.append(0) or stages(self))
    before = result.evaluate()["model"]
    before += 1.0  # what is handed out is a copy
    repr(result), result.telluric_corrected, result.model_spectrum
    assert len(evaluations) == 1
    torch.testing.assert_close(result.evaluate()["model"] + 1.0, before, rtol=0, atol=0)
    with torch.no_grad():
        result.model.star.ln_area += 0.5
    changed = replace(result).evaluate()["model"]
    assert len(evaluations) == 2 and float((changed + 1.0 - before).abs().max()) > 1e-3
    result.model.doppler.rv = torch.nn.Parameter(result.model.doppler.rv.detach() + 5.0)
    assert float((replace(result).evaluate()["model"] - changed).abs().max()) > 1e-3


def test_spectra_as_one_list(recovered):
    result = recovered[2]
    spectra = result.to_spectrum_list()
    assert isinstance(spectra, SpectrumList)
    assert [spectrum.meta["name"] for spectrum in spectra] == list(SPECTRUM_NAMES)
    for spectrum in spectra[1:]:
        np.testing.assert_array_equal(spectrum.flux.value, getattr(result, spectrum.meta["name"]).flux.value)
    np.testing.assert_allclose(spectra[0].uncertainty.array, result.data.sigma.numpy())
    assert len(result.to_spectrum_list("model_spectrum")) == 1
    with pytest.raises(ValueError, match=r"names must be among data, model_spectrum, .*; got 'sun'"):
        result.to_spectrum_list(["data", "sun"])


def test_spectra_that_the_fit_does_not_have_are_left_out():
    result = quick(observed(), star=None, rv=None, telluric_lines=(), max_iterations=3)
    names = [spectrum.meta["name"] for spectrum in result.to_spectrum_list()]
    assert names == ["data", "model_spectrum", "telluric_transmission", "telluric_corrected"]


def test_spectra_are_written_by_specutils(recovered, tmp_path):
    """The best-fit template, and what else there is, as files that specutils and we read back.

    specutils finds the columns of fluxes without unit only by being told.
    """
    columns = {"wavelength": ("spectral_axis", "AA"), "flux": ("flux", ""), "uncertainty": ("uncertainty", "")}
    for spectrum in recovered[2].to_spectrum_list():
        path = tmp_path / f"{spectrum.meta['name']}.fits"
        spectrum.write(path, format="tabular-fits")
        told = {name: of for name, of in columns.items() if name != "uncertainty" or spectrum.uncertainty is not None}
        for back in (load_spectrum(path), Spectrum.read(path, format="tabular-fits", column_mapping=told)):
            np.testing.assert_array_equal(back.spectral_axis.to_value(u.AA), spectrum.spectral_axis.to_value(u.AA))
            np.testing.assert_array_equal(back.flux.value, spectrum.flux.value)
            assert back.flux.unit == spectrum.flux.unit
            assert (back.uncertainty is None) == (spectrum.uncertainty is None)
            if spectrum.uncertainty is not None:
                np.testing.assert_array_equal(back.uncertainty.array, spectrum.uncertainty.array)


def test_five_percent_quadratic_continuum_is_recovered():
    result = quick(observed(continuum=(1.0, 0.0, 0.05)), star_lines=(), telluric_lines=())
    assert abs(result.value("continuum_2") - 0.05) < 4.0 * result.error("continuum_2")
    assert_bars(result, "continuum_0", "continuum_2")
    assert result.value("continuum_2") == pytest.approx(0.05, abs=2e-3)


def test_only_what_is_declared_free_moves():
    data = observed()
    result = quick(data, free=("continuum",), star_lines=("ln_area",), telluric_lines=())
    assert result.value("rv") == -27.0
    assert result.value("vsini") == 8.0
    assert result.value("resolving_power") == pytest.approx(RESOLVING_POWER, rel=1e-12)
    ledger = result.ledger
    sky = ledger[ledger["component"] == "telluric"]
    assert not sky["free"].any()
    assert (sky["delta_ln_area"] == 0).all()
    star = ledger[ledger["component"] == "star"]
    assert (star["rv_offset"].value == 0).all()
    original = np.asarray(STAR["sigma"])
    assert np.allclose(np.sort(star["sigma"].value), np.sort(original[np.isin(STAR["center"], star["center"].value)]))
    moved = star["free"]
    assert (star["delta_ln_area"][moved] != 0).all()
    assert not result.parameters["free"][list(result.parameters["name"]).index("rv")]


def test_fitting_leaves_the_clones_alone():
    emulator = sb.LineEmulator(*(np.asarray(STAR[name]) for name in ("center", "area", "sigma", "gamma")),
                               law="minnaert", wavelength_range=(10480.0, 10550.0))  # fmt: skip
    before = {name: value.clone() for name, value in emulator.state_dict().items()}
    quick(observed(), emulator, free=("rv", "continuum", "star_law"), max_iterations=3)
    for name, value in emulator.state_dict().items():
        assert torch.equal(value, before[name]), name


FEW = {"star_lines": ("ln_area",), "telluric_lines": (), "max_iterations": 5}


@pytest.fixture(scope="module")
def without_a_pixel():
    """A short fit of data of which pixel 250 is masked."""
    clean = observed()
    mask = np.zeros(clean.flux.size, dtype=bool)
    mask[250] = True
    return quick(
        Spectrum(flux=clean.flux, spectral_axis=clean.spectral_axis, uncertainty=clean.uncertainty, mask=mask), **FEW
    )


@pytest.mark.parametrize("kind", ["nan", "inf", "negative sigma", "masked spike"])
def test_a_bad_pixel_changes_nothing(kind, without_a_pixel):
    clean = observed()
    flux, sigma = clean.flux.value.copy(), clean.uncertainty.array.copy()
    broken, bad_sigma, bad_mask = flux.copy(), sigma.copy(), np.zeros(flux.size, dtype=bool)
    if kind == "nan":
        broken[250] = np.nan
    elif kind == "inf":
        broken[250] = np.inf
    elif kind == "negative sigma":
        bad_sigma[250] = -1.0
    else:
        broken[250] += 1e6 * sigma[250]
        bad_mask[250] = True
    spoiled = Spectrum(
        flux=broken * u.one, spectral_axis=clean.spectral_axis, uncertainty=StdDevUncertainty(bad_sigma), mask=bad_mask
    )
    results = without_a_pixel, quick(spoiled, **FEW)
    # To rounding: how sums are vectorised depends on where arrays happen to lie in memory.
    for one, other in zip(*((r.parameters["value"], r.ledger["area"].value) for r in results), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-10)


@pytest.fixture(scope="module")
def in_angstrom():
    """A short fit of the data in Å and without a unit of flux."""
    return quick(observed(), **FEW)


@pytest.mark.parametrize("unit", ["nm", "um", "1/cm", "GHz", "eV"])
def test_units_and_direction_do_not_matter(unit, in_angstrom):
    data = observed()
    axis = data.spectral_axis.to(unit, u.spectral())
    jansky = Spectrum(
        flux=data.flux.value * 1e3 * u.mJy,
        spectral_axis=axis,
        uncertainty=InverseVariance((data.uncertainty.array * u.Jy) ** -2),
    )
    plain, other = in_angstrom, quick(jansky, **FEW)
    assert other.value("rv") == pytest.approx(plain.value("rv"), abs=1e-4)
    assert other.value("continuum_0") == pytest.approx(1e3 * plain.value("continuum_0"), rel=1e-6)
    assert other.model_spectrum.flux.unit == u.mJy
    assert other.reduced_chi2 == pytest.approx(plain.reduced_chi2, rel=1e-5)


def test_unknown_noise_scales_errors_by_the_scatter(recovered):
    data = observed()
    silent = Spectrum(flux=data.flux, spectral_axis=data.spectral_axis)
    known, unknown = quick(data), quick(silent)
    assert unknown.quality.reason("uncertainty").status == "good" and known.quality.reason("uncertainty") is None
    assert unknown.reduced_chi2 == 1.0
    assert unknown.error("rv") == pytest.approx(known.error("rv"), rel=0.35)


def test_gaussian_priors_hold_what_data_cannot_say():
    result = quick(observed(snr=5.0), star_priors=LinePriors(0.1, 0.05, 0.1, 0.05, float("inf")))
    star = result.ledger[(result.ledger["component"] == "star") & result.ledger["free"]]
    error = star["gamma_err"].value / star["gamma"].value
    assert (error < 0.1 * 1.0001).all()  # never wider than the prior
    assert np.median(error) > 0.08  # and hardly narrower at this signal-to-noise ratio
    weak = star[np.abs(star["delta_ln_area"]) > 0.5]
    assert len(weak) == 0


def test_stopping_early_is_said():
    with pytest.warns(RuntimeWarning, match="did not converge"):
        result = fit(observed(), STAR, telluric=SKY, rv=-27.0, resolving_power=55e3, progress=False, max_iterations=1)
    assert not result.success
    assert "limit on iterations" in result.message
    assert "limit on iterations" in result.quality.reason("converged").text


def test_a_pixel_that_claims_to_know_everything_is_left_out():
    """Its uncertainty is a flaw of the reduction: with it, the normal matrix is singular."""
    data = observed()
    sigma = data.uncertainty.array.copy()
    sigma[100] = 1e-12
    flaw = Spectrum(flux=data.flux, spectral_axis=data.spectral_axis, uncertainty=StdDevUncertainty(sigma))
    with pytest.warns(RuntimeWarning, match=r"1 pixel is left out, the first at .*: an unc"):
        result = quick(flaw, star_lines=(), telluric_lines=())
    assert not bool(result.data.good[100]) and int((~result.data.good).sum()) == 1
    clean = quick(data, star_lines=(), telluric_lines=())
    assert abs(result.value("rv") - clean.value("rv")) < 0.3 * clean.error("rv")
    assert_bars(clean, "rv")


def test_bare_component_combinations():
    only_sky = quick(observed(), None, max_iterations=3)
    assert "rv" not in list(only_sky.parameters["name"])
    only_star = quick(observed(sky=None), telluric=None, max_iterations=30)
    assert only_star.telluric_transmission is None
    assert only_star.reduced_chi2 < 1.3


def test_muler_brings_its_resolving_power():
    data = observed()
    data.instrumental_resolution = 55_000.0
    result = quick(data, resolving_power=None, max_iterations=2, star_lines=(), telluric_lines=())
    assert result.value("resolving_power") == pytest.approx(55_000.0)


def narrow_star():
    table = STAR[(STAR["center"] > 10505) & (STAR["center"] < 10520)]
    table.meta["wavelength_range"] = (10505.0, 10520.0)
    return table


CASES = {
    "no component": (dict(star=None, telluric=None), "needs a star, a telluric component, or both"),
    "no resolution": (dict(resolving_power=None), "pass resolving_power="),
    "resolution": (dict(resolving_power=-3.0), "resolving_power.*positive"),
    "coarse": (
        dict(resolving_power=5.0),
        r"resolving power of 5 leaves 0\.0\d+ resolution elements between .* at least 5",
    ),
    "vsini": (dict(vsini=-1.0), "vsini must not be negative"),
    "rv unit": (dict(rv=3 * u.AA), "rv"),
    "free": (dict(free=("rv", "mass")), "free must be among.*'mass'"),
    "kinds": (dict(star_lines=("area",)), "star_lines must be among.*'area'"),
    "continuum": (dict(continuum="flat"), "continuum must be a polynomial degree"),
    "medium": (dict(medium="glass"), "medium"),
    "priors": (dict(star_priors={"ln_area": 1.0}), r"star_priors must be LinePriors.*got {'ln_area': 1.0}"),
    "no priors": (dict(telluric_priors=0), "telluric_priors must be LinePriors.*got 0"),
    "coverage": (
        dict(star=narrow_star()),
        r"star template covers 10505\.00-10520\.00 Å, the data need 80 % of .* of -27 km",
    ),
    "nothing free": (dict(free=(), star_lines=(), telluric_lines=()), "nothing is free"),
    "columns": (dict(star=QTable({"center": [1.0]})), "needs the columns"),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_named(case):
    options, message = CASES[case]
    with pytest.raises((ValueError, TypeError, u.UnitsError), match=message):
        quick(observed(), **options)


def test_wrong_kind_of_component_and_keyword():
    with pytest.raises(TypeError, match=r"star must be a CloneResult.*got int"):
        quick(observed(), 3)
    with pytest.raises(TypeError, match="unexpected keyword"):
        quick(observed(), colour="red")


def test_two_dimensional_flux_says_how_to_loop():
    data = observed()
    stacked = Spectrum(flux=np.vstack([data.flux.value] * 2) * u.one, spectral_axis=data.spectral_axis)
    with pytest.raises(ValueError, match=r"for .* in"):
        quick(stacked)


def test_a_template_spectrum_is_cloned_first_unless_it_is_too_coarse(recovered):
    wavelength = np.linspace(10480.0, 10550.0, 7001)
    edges = sb.simulate.pixel_edges(wavelength)
    flux = sb.simulate.simulate_flux(edges, STAR, step=0.2)
    fine = Spectrum(flux=flux * u.one, spectral_axis=wavelength * u.AA)
    coarse = Spectrum(flux=flux[::100] * u.one, spectral_axis=wavelength[::100] * u.AA)
    result = quick(observed(), fine)
    assert abs(result.value("rv") - TRUTH["rv"]) < 3.5 * result.error("rv")
    assert result.error("rv") == pytest.approx(recovered[2].error("rv"), rel=0.25)  # as many lines in as much noise
    assert result.reduced_chi2 < 1.5
    with pytest.raises(ValueError, match=r"sampled every 1 Å, coarser than the data's resolution element"):
        quick(observed(), coarse)


def test_further_iterations_change_nothing(recovered, monkeypatch):
    """Where the model is right, no parameter is 0.05 of its error from where ever more iterations would take it."""
    usual = quick(observed())
    monkeypatch.setattr("specutils_blase.fitting.stages.TOLERANCE", 1e-10)
    further = quick(observed())
    assert usual.success and further.success and len(further.history) > len(usual.history)
    for name in ("rv", "vsini", "continuum_0"):
        assert usual.error(name) == pytest.approx(recovered[2].error(name), rel=0.25)  # whose bars are known
        assert abs(further.value(name) - usual.value(name)) < 0.05 * usual.error(name)
    for name in ("area", "sigma", "gamma", "rv_offset"):
        error = usual.ledger[f"{name}_err"]
        moved = np.abs(further.ledger[name] - usual.ledger[name])[error > 0]
        assert (moved < 0.05 * error[error > 0]).all(), name
