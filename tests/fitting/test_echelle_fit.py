"""Fits of many orders: simulated stars whose truth is known, broken orders, and what comes back."""

import warnings

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum, SpectrumList

import specutils_blase as sb
from specutils_blase import demo, simulate, templates
from specutils_blase.physics.grids import SPEED_OF_LIGHT

TRUTH = {"rv": -21.3, "vsini": 6.5}
CHOSEN = (17, 23, 24)
DENSE = {"rv": 0.0435, "vsini": 0.0986}
"""Errors of all orders together, by `error_bars.dense_errors`."""


@pytest.fixture(scope="module")
def clones():
    """Star and sky over three HPF orders, cut to their middles."""
    low, high = (simulate.hpf_wavelengths(order)[k] for order, k in ((CHOSEN[0], 0), (CHOSEN[-1], -1)))
    margin = 200.0 / SPEED_OF_LIGHT
    region = (low * (1 - margin), high * (1 + margin))
    options = {"region": region, "progress": False, "prominence": 0.03, "rms_target": 0.04}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sb.BlaseQualityWarning)  # coarse ones do, and are fast
        star = sb.clone(templates.arcturus(), **options)
        sky = sb.clone(templates.telfit_hpf(), resolving_power=55_000, **options)
    return star, sky


def wavelengths(order):
    return simulate.hpf_wavelengths(order)[700:1200]


def observed(clones, order, seed, snr=150.0):
    star, sky = clones
    return simulate.simulate(
        wavelengths(order),
        demo.true_lines(star, seed=5),
        demo.true_lines(sky, seed=6),
        resolving_power=55_000,
        continuum=(1.0, 0.05, -0.02),
        limb_darkening=(0.4, 0.2),
        snr=snr,
        seed=seed,
        **TRUTH,
    )


@pytest.fixture(scope="module")
def night(clones):
    return SpectrumList([observed(clones, order, 40 + order) for order in CHOSEN])


def fit(data, clones, **options):
    star, sky = clones
    return sb.fit(data, star, telluric=sky, **({"resolving_power": 55_000, "progress": False} | options))


@pytest.fixture(scope="module")
def together(night, clones):
    return fit(night, clones)


@pytest.fixture(scope="module")
def single(night, clones):
    return [fit(spectrum, clones, rv=TRUTH["rv"]) for spectrum in night]


def test_velocities_of_all_orders_together(together):
    assert together.success, together.message
    for name, true in TRUTH.items():
        assert abs(together.value(name) - true) < 3.0 * together.error(name)
        assert together.error(name) == pytest.approx(DENSE[name], rel=0.1)
    assert 0.8 < together.reduced_chi2 < 1.2
    assert not np.any(together.orders["jitter"])


def test_errors_shrink_as_the_information_adds(together, single):
    """Nearly: rotation is shared too, and each order alone is free to choose its own."""
    errors = np.array([result.error("rv") for result in single])
    assert together.error("rv") == pytest.approx(np.sum(errors**-2.0) ** -0.5, rel=0.1)
    assert together.error("rv") < errors.min()


def test_every_order_is_fitted_as_well_as_alone(together, single, night):
    assert list(together.orders["index"]) == [0, 1, 2] and len(together) == 3
    for k, alone in enumerate(single):
        order = together.order(k)
        assert order.rms == pytest.approx(alone.rms, rel=0.05)
        np.testing.assert_allclose(order.model_spectrum.flux.value, alone.model_spectrum.flux.value, atol=0.005)


def test_spectra_are_lists(together, night):
    for name in ("model_spectrum", "star_spectrum", "telluric_transmission", "telluric_corrected"):
        spectra = getattr(together, name)
        assert isinstance(spectra, SpectrumList) and len(spectra) == 3
        for spectrum, given in zip(spectra, night, strict=True):
            np.testing.assert_allclose(spectrum.spectral_axis.value, given.spectral_axis.value)
    residual = together.model_spectrum[1].flux.value - night[1].flux.value
    assert np.std(residual / night[1].uncertainty.array) == pytest.approx(0.95, abs=0.12)
    template = together.star_template.spectral_axis.value
    assert (np.diff(template) > 0).all()


def test_spectra_as_one_list(together, night):
    """By name and then by order; the template is one for all."""
    spectra = together.to_spectrum_list()
    assert isinstance(spectra, SpectrumList) and len(spectra) == 5 * 3 + 1
    assert [(each.meta["name"], each.meta.get("order")) for each in spectra[:4]] == [
        ("data", "0"), ("data", "1"), ("data", "2"), ("model_spectrum", "0"),
    ]  # fmt: skip
    assert spectra[-1].meta["name"] == "star_template" and "order" not in spectra[-1].meta
    for mine, given in zip(spectra[:3], night, strict=True):
        np.testing.assert_allclose(mine.flux.value, given.flux.value)
        np.testing.assert_allclose(mine.uncertainty.array, given.uncertainty.array)
    corrected = together.to_spectrum_list("telluric_corrected")
    for one, other in zip(corrected, together.telluric_corrected, strict=True):
        np.testing.assert_array_equal(one.flux.value, other.flux.value)


def test_one_row_a_line_and_the_orders_that_saw_it(together):
    ledger = together.ledger
    for component in ("star", "telluric"):
        lines = ledger[ledger["component"] == component]
        assert len(np.unique(lines["id"])) == len(lines)
    assert {"0", "1", "2"} <= set(ledger["orders"]) <= {"", "0", "1", "2"}
    inside = ledger[(ledger["orders"] == "1") & (ledger["component"] == "telluric") & (ledger["fwhm"] < 1 * u.AA)]
    span = wavelengths(CHOSEN[1])
    assert (inside["center"].value > span[0] - 1).all() and (inside["center"].value < span[-1] + 1).all()


def test_a_line_in_the_overlap_of_two_orders_is_measured_by_both(clones):
    """The same pixels twice, as two orders, tell what their mean tells with its smaller noise."""
    one, two = observed(clones, 24, 1), observed(clones, 24, 2)
    noise = np.hypot(one.uncertainty.array, two.uncertainty.array) / 2
    mean = Spectrum(
        flux=(one.flux + two.flux) / 2, spectral_axis=one.spectral_axis, uncertainty=StdDevUncertainty(noise)
    )  # fmt: skip
    both, alone = fit([one, two], clones), fit(mean, clones)
    assert both.success and len(both.ledger) == len(alone.ledger)
    rows = np.flatnonzero((both.ledger["orders"] == "0,1") & (alone.ledger["snr"] > 5))
    assert len(rows) > 20
    for name in ("equivalent_width", "sigma", "rv_offset"):
        error = alone.ledger[f"{name}_err"].value[rows]
        assert np.median(both.ledger[f"{name}_err"].value[rows] / error) == pytest.approx(1.0, abs=0.05)
        assert np.median(np.abs(both.ledger[name].value - alone.ledger[name].value)[rows] / error) < 0.1
    assert both.error("rv") == pytest.approx(alone.error("rv"), rel=0.05)
    assert abs(both.value("rv") - alone.value("rv")) < 0.2 * alone.error("rv")


def nothing(spectrum):
    return Spectrum(flux=np.nan * spectrum.flux, spectral_axis=spectrum.spectral_axis)


def negative(spectrum):
    return Spectrum(flux=-1 * spectrum.flux, spectral_axis=spectrum.spectral_axis, uncertainty=spectrum.uncertainty)


def almost_nothing(spectrum):
    """A corner of the detector: fewer pixels than tell a continuum."""
    mask = np.ones(spectrum.flux.shape, dtype=bool)
    mask[100:112] = False
    return Spectrum(
        flux=spectrum.flux, spectral_axis=spectrum.spectral_axis, uncertainty=spectrum.uncertainty, mask=mask
    )


def elsewhere(spectrum):
    axis = wavelengths(24) * u.AA
    return Spectrum(flux=spectrum.flux, spectral_axis=axis, uncertainty=spectrum.uncertainty)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (nothing, "no finite flux"),
        (negative, "there is no light to fit"),
        (almost_nothing, "12 good pixels cannot constrain"),
        (elsewhere, "wavelengths"),
    ],
)
def test_a_broken_order_is_left_out_and_the_rest_unharmed(night, clones, together, single, broken, reason):
    data = SpectrumList([night[0], broken(night[1]), night[2]])
    with pytest.warns(RuntimeWarning, match=f"order 1 of the list is left out: .*{reason}"):
        result = fit(data, clones)
    assert result.success and len(result) == 2
    assert list(result.orders["fitted"]) == [True, False, True]
    assert reason in result.orders["reason"][1] and "order 1 left out" in repr(result)
    assert abs(result.value("rv") - TRUTH["rv"]) < 3.0 * result.error("rv")
    others = np.array([single[k].error("rv") for k in (0, 2)])
    assert result.error("rv") == pytest.approx(np.sum(others**-2.0) ** -0.5, rel=0.1)
    for k, whole in ((0, 0), (1, 2)):
        difference = result.order(k).model_spectrum.flux.value - together.order(whole).model_spectrum.flux.value
        assert np.abs(difference).max() < 0.01


def test_orders_that_the_template_does_not_cover_are_left_out(night, clones):
    star, sky = clones
    far = Spectrum(flux=night[0].flux, spectral_axis=night[0].spectral_axis * 1.15, uncertainty=night[0].uncertainty)
    with pytest.warns(RuntimeWarning, match=r"order 3 of the list is left out: the star template covers"):
        result = fit(SpectrumList([*night, far]), (star, sky))
    assert len(result) == 3


def test_a_list_of_nothing():
    with pytest.raises(ValueError, match="the list is empty"):
        sb.fit([], templates.arcturus(), resolving_power=55_000)


def test_lines_where_nothing_counts_are_held(night, clones):
    """Behind masked ends lies what the data say nothing about: not free, at its clone, and no order saw it."""
    ends = np.zeros(len(night[0].flux), dtype=bool)
    ends[:120] = ends[-120:] = True
    masked = Spectrum(
        flux=night[0].flux, spectral_axis=night[0].spectral_axis, uncertainty=night[0].uncertainty, mask=ends
    )
    result = fit(SpectrumList([masked]), clones, rv=TRUTH["rv"], vsini=TRUTH["vsini"])
    ledger = result.ledger[result.ledger["component"] == "star"]
    counting = night[0].spectral_axis.to_value(u.AA)[~ends] / (1.0 + TRUTH["rv"] / SPEED_OF_LIGHT)
    beyond = np.maximum(counting[0] - ledger["center"].value, ledger["center"].value - counting[-1]) > 0.5
    assert beyond.sum() > 10 and (~beyond).sum() >= 10
    assert not ledger["free"][beyond].any() and ledger["free"][~beyond].sum() > 8
    assert not any(ledger["orders"][beyond])
    assert ledger["unconstrained"][beyond].all() and ledger["edge"][beyond].all()


def test_resolving_powers_must_match_the_orders(night, clones):
    with pytest.raises(ValueError, match="one for each of 3 orders, got 2"):
        fit(night, clones, resolving_power=[55_000, 55_000])


def test_sky_only(night, clones):
    """`star=None`: continuum and telluric lines, no velocity."""
    result = sb.fit(night[1:], telluric=clones[1], resolving_power=55_000, progress=False)
    assert "rv" not in result.parameters["name"]
    assert np.all(result.orders["jitter"] > 0)  # the star's lines are not in the model
    assert result.telluric_corrected[0].flux.shape == night[1].flux.shape


def test_jitter_makes_an_incomplete_model_consistent(night, clones):
    with pytest.warns(sb.BlaseQualityWarning, match="of the star's lines are as far from their template"):
        result = sb.fit(night, clones[0], resolving_power=55_000, rv=TRUTH["rv"], progress=False)  # no atmosphere
    assert result.reduced_chi2 == pytest.approx(1.0, abs=0.15)
    jitter = np.asarray(result.orders["jitter"])
    assert (jitter[np.asarray(result.orders["reduced_chi2"]) > 2.0] > 0).all()
    assert result.quality.reason("jitter").status == "good"


def test_telluric_scaling_finds_the_amount(clones):
    """The truth has 1.6 times the optical depth of the clone, 0.15 km/s away, and another star's lines on top."""
    star, sky = clones
    true_sky = sky.ledger["center", "area", "sigma", "gamma"].copy()
    true_sky["area"] = true_sky["area"] * 1.6
    true_sky["center"] = true_sky["center"] * (1 + 0.15 / SPEED_OF_LIGHT)
    lines = star.ledger["center", "area", "sigma", "gamma"]
    data = [
        simulate.simulate(wavelengths(k), lines, true_sky, resolving_power=55_000, snr=200, seed=k, **TRUTH)
        for k in CHOSEN
    ]
    result = fit(data, clones, rv=TRUTH["rv"])
    scale = result.settings["telluric_scale"]
    assert scale["factors"][""] == pytest.approx(1.6, rel=0.03)
    assert scale["shift"] == pytest.approx(0.15, abs=0.03)


def test_barycentric_velocity(night, clones):
    result = fit(night, clones, barycentric_velocity=12.5 * u.km / u.s)
    expected = (1 + result.value("rv") / SPEED_OF_LIGHT) * (1 + 12.5 / SPEED_OF_LIGHT) - 1
    assert result.value("rv_barycentric") == pytest.approx(expected * SPEED_OF_LIGHT, abs=1e-9)
    assert result.error("rv_barycentric") == pytest.approx(result.error("rv"), rel=1e-3)


def test_an_order_that_does_not_know_the_correction_shares_the_others(night, clones):
    quick = {"star_lines": (), "telluric_lines": (), "rv": TRUTH["rv"], "vsini": TRUTH["vsini"], "max_iterations": 3}
    data = [
        Spectrum(flux=one.flux, spectral_axis=one.spectral_axis, uncertainty=one.uncertainty, meta=meta)
        for one, meta in zip(night, ({"header": {"BRVCORR": 7500.0}}, {"header": {"BRVCORR": 7500.0}}, {}), strict=True)
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # three iterations
        warnings.simplefilter("ignore", sb.BlaseQualityWarning)
        result = fit(data, clones, **quick)
        assert result.value("rv_barycentric") - result.value("rv") == pytest.approx(7.5, abs=0.01)
        data[1].meta["header"] = {"BRVCORR": 9000.0}
        result = fit(data, clones, **quick)
    assert "rv_barycentric" not in result.parameters["name"]
    reason = result.quality.reason("barycentric")
    assert reason.status == "doubtful" and "barycentric corrections differ by 1.5 km/s" in reason.text


def test_two_exposures_of_one_order(night, clones):
    """Each keeps its own continuum, also where both are called alike; what is left out keeps its name."""
    data = []
    for one in (night[0], night[0], nothing(night[1])):
        spectrum = Spectrum(flux=one.flux, spectral_axis=one.spectral_axis, uncertainty=one.uncertainty)
        spectrum.meta["m"] = 5 if len(data) < 2 else 17
        data.append(spectrum)
    quick = {"star_lines": (), "telluric_lines": (), "rv": TRUTH["rv"], "vsini": TRUTH["vsini"], "max_iterations": 3}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        result = fit(data, clones, **quick)
    assert list(result.orders["order"]) == ["5#0", "5#1", "17"]
    one = result.order(0)
    assert len(set(one.parameters["name"])) == len(one.parameters)
    assert one.covariance.shape[0] == one.parameters["free"].sum()


def test_amounts_of_air_that_no_night_brings_are_doubted(clones):
    """The atmosphere is divided out of the data already."""
    star, _ = clones
    lines = star.ledger["center", "area", "sigma", "gamma"]
    data = [
        simulate.simulate(wavelengths(k), lines, None, resolving_power=55_000, snr=200, seed=k, **TRUTH) for k in CHOSEN
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        warnings.simplefilter("ignore", sb.BlaseQualityWarning)
        result = fit(data, clones, rv=TRUTH["rv"], star_lines=(), telluric_lines=(), max_iterations=5)
    reason = result.quality.reason("telluric_amount")
    assert reason.status == "doubtful" and "outside the range of observing nights (all species 0.0" in reason.text


def test_parameters_of_one_order(together):
    order = together.order(-1)
    names = list(order.parameters["name"])
    assert names.count("continuum_0") == 1 and "order" not in order.parameters.colnames
    assert order.covariance.shape == (order.parameters["free"].sum(),) * 2
    with pytest.raises(IndexError, match="order 3 of a fit of 3 orders"):
        together.order(3)


def test_plot_of_all_orders(together, tmp_path):
    figure = together.plot()
    figure.savefig(tmp_path / "orders.png")
    assert len(figure.axes) == 3
    assert len(together.plot(orders=[1]).axes) == 1
    assert together.plot(1).axes


def test_through_a_file(together, tmp_path):
    together.write(tmp_path / "night.asdf")
    back = sb.read(tmp_path / "night.asdf")
    assert repr(back) == repr(together)
    for one, other in zip(together.model_spectrum, back.model_spectrum, strict=True):
        np.testing.assert_allclose(other.flux.value, one.flux.value, rtol=1e-12)
