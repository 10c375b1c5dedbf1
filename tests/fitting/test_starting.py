"""Where fits start: velocity and rotation by cross-correlation, then with all lines held."""

import warnings
from itertools import accumulate

import numpy as np
import pytest
import torch
from astropy.nddata import StdDevUncertainty
from astropy.table import Table, vstack
from error_bars import assert_bars
from small_order import SKY, STAR, WAVELENGTH, observed
from specutils import Spectrum

from specutils_blase.fitting.pipeline import fit
from specutils_blase.fitting.start import hypotheses
from specutils_blase.fitting.start import initial_velocity as velocity
from specutils_blase.fitting.start.held_line_fit import start_continuum, start_velocities
from specutils_blase.fitting.start.initial_velocity import ROTATIONS, cross_correlate
from specutils_blase.fitting.start.order_correlation import OrderCorrelation
from specutils_blase.fitting.start.star import scale_star, strength_tangent
from specutils_blase.ledger.emulator import emulator_from_ledger
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import ForwardModel
from specutils_blase.physics.grids import SPEED_OF_LIGHT
from specutils_blase.quality.report import BlaseQualityWarning
from specutils_blase.simulate import pixel_edges, simulate
from specutils_blase.spectra.data import SpectralData
from specutils_blase.spectra.reading import read_spectrum

R = 55_000.0


def given(**truth):
    """Data of one order, and the clones."""
    spectrum = observed(limb_darkening=(0.4, 0.2), **truth)
    return read_spectrum(spectrum)[0], emulator_from_ledger(STAR), emulator_from_ledger(SKY)


def started(data, star, **options):
    """What a fit says of its start; it goes no farther than a step."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the fit did not converge", RuntimeWarning)
        warnings.simplefilter("ignore", BlaseQualityWarning)  # how good a start is, is what is tested
        options = {"telluric": SKY, "resolving_power": R, "progress": False, "max_iterations": 1} | options
        return fit(data, star, **options).settings["start"]


@pytest.mark.parametrize(("rv", "vsini"), [(-27.3, 2.0), (61.0, 12.0), (-27.3, 45.0), (0.0, 60.0)])
def test_cross_correlation_finds_velocity_and_rotation(rv, vsini):
    data, star, sky = given(rv=rv, vsini=vsini)
    search = cross_correlate([data], star, sky, resolving_power=[R])
    found, rotation = search.rv, search.vsini
    assert found == pytest.approx(rv, abs=0.4 + 0.1 * vsini)
    assert rotation in ROTATIONS and 0.4 * vsini < rotation < 2.5 * vsini


@pytest.mark.parametrize("center", [10502.0, 10508.0, 10515.5, 10523.0])
def test_a_deep_line_that_no_clone_has_is_not_the_star(center):
    """A telluric line deeper than all of the star's, unknown to the clones: it correlates with each of them."""
    star = STAR.copy()
    star["area"] *= 0.4
    deep = Table({"center": [center], "area": [0.4], "sigma": [0.02], "gamma": [0.09]})
    sky = vstack([SKY, deep], metadata_conflicts="silent")
    sky.sort("center")
    data, _, known_sky = given(star=star, sky=sky, rv=-27.3, vsini=9.0)
    search = cross_correlate([data], emulator_from_ledger(star), known_sky, resolving_power=[R])
    found, rotation = search.rv, search.vsini
    assert found == pytest.approx(-27.3, abs=2.0)
    assert rotation in (5.0, 10.0)


@pytest.mark.parametrize("rv", [350.0, 442.5, -420.0, 690.0, -690.0])
def test_fast_stars_are_found(rv):
    """As far as the template reaches: a fifth of the data may lie beyond its end."""
    data, star, sky = given(rv=rv, vsini=4.0)
    search = cross_correlate([data], star, sky, resolving_power=[R])
    assert search.low < -700.0 and search.high > 700.0 and not search.at_edge
    assert search.rv == pytest.approx(rv, abs=0.8)
    assert search.solutions[0].gain > search.solutions[1].gain + 100.0


def test_a_star_beyond_the_search_is_told():
    """The template's end comes before the star's velocity: what is best there stands at the edge, or says little."""
    star = STAR[(STAR["center"] > 10499.0) & (STAR["center"] < 10531.0)]
    star.meta["wavelength_range"] = (10499.0, 10531.0)
    data = observed(rv=320.0, vsini=4.0)
    lines = emulator_from_ledger(star), emulator_from_ledger(SKY)
    search = cross_correlate([read_spectrum(data)[0]], *lines, resolving_power=[R])
    assert search.high < 320.0 - 50.0
    assert search.at_edge or search.solutions[0].gain < 60.0
    with pytest.warns(BlaseQualityWarning), pytest.warns(RuntimeWarning, match="the fit did not converge"):
        told = fit(data, star, telluric=SKY, resolving_power=R, progress=False, max_iterations=1).quality
    assert {"rv_search", "start_detection", "second_solution"} & set(told.names)


@pytest.mark.parametrize("sky", [None, SKY])
@pytest.mark.parametrize(("rv", "vsini"), [(-18.2, 7.5), (211.0, 35.0)])
def test_a_blaze_is_no_rotation(sky, rv, vsini):
    spectrum = observed(sky=sky, rv=rv, vsini=vsini, continuum=(1.0,))
    blaze = np.sinc(0.9 * np.linspace(-1.0, 1.0, WAVELENGTH.size) - 0.1) ** 2 + 0.01
    noise = StdDevUncertainty(spectrum.uncertainty.array * np.sqrt(blaze))
    seen = Spectrum(flux=spectrum.flux * blaze, spectral_axis=spectrum.spectral_axis, uncertainty=noise)
    telluric = None if sky is None else emulator_from_ledger(sky)
    options = {"resolving_power": [R], "continuum": 6}
    search = cross_correlate([read_spectrum(seen)[0]], emulator_from_ledger(STAR), telluric, **options)
    assert search.rv == pytest.approx(rv, abs=0.5 + 0.1 * vsini)
    assert 0.4 * vsini < search.vsini < 2.5 * vsini


def test_a_sky_of_another_night_is_no_star():
    """Three times as much absorption as in the clone, stronger than the star's."""
    star, sky = STAR.copy(), SKY.copy()
    star["area"] *= 0.3
    sky["area"] *= 3.0
    data = read_spectrum(observed(star=star, sky=sky, rv=52.0, vsini=6.0))[0]
    search = cross_correlate([data], emulator_from_ledger(star), emulator_from_ledger(SKY), resolving_power=[R])
    assert search.rv == pytest.approx(52.0, abs=1.0) and search.vsini in (5.0, 10.0)
    true = ForwardModel.for_order(
        data.wavelength, data.edges, telluric=emulator_from_ledger(sky), resolving_power=R
    ).observed("telluric")
    assert float((search.skies[0] - true).abs().max()) < 0.06


def test_useless_pixels_at_the_ends_change_nothing():
    data, star, sky = given(rv=55.0, vsini=5.0)
    step = float(WAVELENGTH[1] - WAVELENGTH[0])
    more = [WAVELENGTH[0] - step * np.arange(400, 0, -1), WAVELENGTH[-1] + step * np.arange(1, 401)]
    longer = np.concatenate([more[0], WAVELENGTH, more[1]])
    flux, sigma = (np.pad(each, 400, constant_values=np.nan) for each in (data.flux.numpy(), data.sigma.numpy()))
    padded = SpectralData.from_arrays(longer, flux, sigma=sigma)
    alone, within = (cross_correlate([one], star, sky, resolving_power=[R]) for one in (data, padded))
    assert (within.low, within.high) == (alone.low, alone.high)
    assert within.rv == pytest.approx(alone.rv, abs=0.05) and within.vsini == alone.vsini


def test_lists_of_lines_end_at_their_outermost_lines_and_the_search_does_not():
    """B03: the lines' range is narrower than the data at the star's velocity."""
    centers, width = np.arange(10497.1, 10533.0, 1.7), np.full(22, 0.05)
    centers = centers + np.random.default_rng(2).uniform(-0.4, 0.4, centers.size)
    lines = LineEmulator(centers, width, width, 0.2 * width)
    spectrum = simulate(WAVELENGTH, lines, snr=200.0, seed=2, rv=100.0, vsini=5.0, resolving_power=R)
    fitted = fit(
        spectrum, LineEmulator(centers[2:-2], *(each[2:-2] for each in (width, width, 0.2 * width))),
        resolving_power=R, star_lines=(), progress=False,
    )  # fmt: skip
    assert fitted.value("rv") == pytest.approx(100.0, abs=5.0 * fitted.error("rv"))
    assert_bars(fitted, "rv", jittered=True)
    assert fitted.settings["start"]["search"][1] > 150.0


def test_a_template_that_is_too_strong_is_not_taken_for_rotation():
    """Saturated lines three times too strong; held at that strength they prefer to turn."""
    strong, vsini = STAR.copy(), 5.0
    strong["area"] *= 6.0
    true = strong.copy()
    true["area"] /= 3.0
    data, names = observed(star=true, rv=12.0, vsini=vsini), ("rv", "vsini", "strength")
    start = started(data, strong)
    assert [start[name] for name in names] == pytest.approx([12.0, vsini, 1.0 / 3.0], abs=0.3, rel=0.03)
    assert start["strength"] == pytest.approx(1.0 / 3.0, abs=5.0 * start["strength_error"])
    assert start["delta_chi2"] > 1000.0 and start["detection"] > 1000.0
    held = started(data, strong, star_lines=())
    assert held["strength"] == 1.0 and held["strength_error"] is None


def test_nobody_is_there():
    start = started(observed(star=None, sky=SKY, rv=0.0, vsini=0.0), STAR)
    assert start["detection"] < 30.0 and (start["delta_chi2"] is None or start["delta_chi2"] < 30.0)


def test_a_template_of_the_same_star_at_another_epoch_ends_where_its_data_ended():
    """Lines from data of a velocity 50 km/s away: no margin at all, and pixels beyond their end."""
    first, last = WAVELENGTH[[0, -1]] * (1.0 + 27.3 / SPEED_OF_LIGHT)
    own = STAR[(STAR["center"] > first) & (STAR["center"] < last)]
    own.meta["wavelength_range"] = (first, last)
    second = observed(sky=None, rv=22.7, seed=4)
    fitted = fit(second, own, resolving_power=R, star_lines=(), progress=False)
    assert fitted.value("rv") == pytest.approx(22.7, abs=5.0 * fitted.error("rv"))
    assert_bars(fitted, "rv", jittered=True)
    counting = fitted.data.wavelength[fitted.data.good]
    assert first * (1.0 + 22.7 / SPEED_OF_LIGHT) < float(counting[0]) < first * (1.0 + 35.0 / SPEED_OF_LIGHT)


def test_strength_has_the_derivative_that_differences_have():
    data, star, sky = given(rv=-27.3, vsini=9.0)
    model = ForwardModel.for_order(
        data.wavelength, data.edges, star=star, telluric=sky, rv=-27.3, vsini=9.0, resolving_power=R
    )
    with torch.no_grad():
        tangent, fluxes = strength_tangent(model, model.stages()), []
        for change in (1e-4, -2e-4):
            scale_star(model, change)
            fluxes.append(model())
    torch.testing.assert_close(tangent, (fluxes[0] - fluxes[1]) / 2e-4, rtol=1e-4, atol=1e-6)


@torch.no_grad()
def test_sums_by_fourier_transform_are_sums():
    """Zucker's ln L with the continuum projected out, pixels without template left out, one shift at a time."""
    data, star, _ = given(rv=-27.3, vsini=9.0)
    star.wavelength_range = (10499.0, 10533.0)
    star = star.subset(((star.center > 10501.0) & (star.center < 10531.0)).nonzero().squeeze(1))
    star.wavelength_range = (10500.5, 10531.5)
    order = OrderCorrelation.of(data, R, star, None, 3, (-700.0, 700.0))
    depth, shifts = order.depth(9.0), torch.tensor([-1200, -54, 0, 300, 1100])
    scores = order.log_likelihoods(depth, shifts)
    for shift, score in zip(shifts.tolist(), scores.T, strict=True):
        at = order.position - shift
        inside = (at >= order.first) & (at <= order.last)
        trend, column = order.trend[inside], (order.scale * depth[at])[inside]
        for observed_, found in zip((order.observed, order.cut), score.tolist(), strict=True):
            values = torch.stack([observed_[inside], column], dim=1)
            left = values - trend @ torch.linalg.lstsq(trend, values).solution
            overlap = float(left[:, 0] @ left[:, 1])
            common = max(overlap, 0.0) ** 2 / float(left[:, 0].square().sum() * left[:, 1].square().sum())
            part = float(inside.double().mean())
            expected = -0.5 * order.votes * part * np.log1p(-common) if part >= 0.5 else 0.0
            assert found == pytest.approx(expected, rel=1e-4, abs=1e-4)


def test_what_is_given_is_kept():
    data, star, sky = given(rv=-27.3, vsini=45.0)
    search = cross_correlate([data], star, sky, rv=-25.0, resolving_power=[R])
    found, rotation = search.rv, search.vsini
    assert found == -25.0 and rotation in (40.0, 80.0)
    search = cross_correlate([data], star, sky, vsini=30.0, resolving_power=[R])
    found, rotation = search.rv, search.vsini
    assert found == pytest.approx(-27.3, abs=4.0) and rotation == 30.0
    search = cross_correlate([data], star, sky, rv=1.0, vsini=3.0, resolving_power=[R])
    assert (search.rv, search.vsini) == (1.0, 3.0)


def test_featureless_data_show_no_star():
    spectrum = observed(star=None, sky=SKY, rv=0.0, vsini=0.0)
    data = read_spectrum(spectrum)[0]
    search = cross_correlate([data], emulator_from_ledger(STAR), emulator_from_ledger(SKY), resolving_power=[R])
    assert all(solution.gain < 10.0 for solution in search.solutions)


@pytest.mark.parametrize(("start", "vsini"), [(2.0, 9.0), (20.0, 9.0), (5.0, 2.5), (80.0, 60.0)])
def test_velocities_with_lines_held(start, vsini):
    """The clones are true here, so the velocities come out at the noise from far starts, the continuum as well."""
    data, star, sky = given(rv=-27.3, vsini=vsini)
    model = ForwardModel.for_order(
        data.wavelength, data.edges, star=star, telluric=sky, rv=-25.5, vsini=start, limb_darkening=(0.4, 0.2),
        resolving_power=R,
    )  # fmt: skip
    scale = float(data.flux.median())
    flux, weight = data.flux.double() / scale, (scale / data.sigma.double()).square()
    weight[::17] = 0.0
    flux[40] += 3.0  # an outlier
    start_continuum(model, flux, weight)
    start_velocities(model, ("rv", "vsini", "continuum"), [flux], [weight])
    assert float(model.doppler.rv.detach()) == pytest.approx(-27.3, abs=0.06 if vsini < 30 else 0.6)
    assert float(model.rotation.vsini.detach()) == pytest.approx(vsini, abs=0.15 if vsini < 30 else 0.8)
    np.testing.assert_allclose(model.continuum.coefficients.detach() * scale, (3.0, 0.06, -0.03), atol=0.02)


def test_a_held_velocity_stays():
    data, star, sky = given(rv=-27.3, vsini=9.0)
    model = ForwardModel.for_order(
        data.wavelength, data.edges, star=star, telluric=sky, rv=-26.0, vsini=9.0, resolving_power=R
    )
    flux, weight = data.flux.double(), data.sigma.double() ** -2
    start_velocities(model, ("vsini",), [flux], [weight])
    assert float(model.doppler.rv.detach()) == -26.0 and float(model.rotation.vsini.detach()) != 9.0


def test_a_rapid_rotator_needs_no_hint():
    spectrum = observed(rv=31.0, vsini=70.0)
    result = fit(spectrum, STAR, telluric=SKY, resolving_power=R, progress=False)
    assert result.success
    assert abs(result.value("rv") - 31.0) < 4 * result.error("rv")
    assert abs(result.value("vsini") - 70.0) < 4 * result.error("vsini")
    assert_bars(result, "rv", "vsini")
    assert torch.isfinite(result.model()).all() and len(WAVELENGTH) == len(result.data)


@pytest.mark.parametrize("part", [1.0, 0.35])
def test_the_continuum_starts_near_the_light_behind_a_sky_that_is_much_too_deep(part):
    """A polynomial that makes up for light where the template is black soars there, or swings through zero beside."""
    pixels = np.linspace(14_690.0, 14_830.0, 700)
    centers = np.sort(np.random.default_rng(0).uniform(pixels[0], pixels[0] + part * 140.0, 60))
    clone = LineEmulator(centers, 200.0 * np.ones(60), 0.1 * np.ones(60), 0.08 * np.ones(60))
    model = ForwardModel.for_order(
        torch.as_tensor(pixels), torch.as_tensor(pixel_edges(pixels)), telluric=clone, resolving_power=45_000.0,
        continuum_degree=6,
    )  # fmt: skip
    with torch.no_grad():
        clone.ln_area -= np.log(20.0)
        true = model.stages().binned * (1.0 + 0.3 * model.continuum.basis[1] - 0.4 * model.continuum.basis[2])
        clone.ln_area += np.log(20.0)
    weight = torch.full_like(true, 1e4)
    with torch.no_grad():
        design = (model.stages().binned * model.continuum.basis).T
        free = torch.linalg.lstsq(design, true.unsqueeze(1)).solution.squeeze(1)
        assert float((free @ model.continuum.basis).max()) > 200.0
        start_continuum(model, true, weight)
        assert 0.0 < float(model.continuum.value().min()) <= float(model.continuum.value().max()) < 11.0
    # Where the sky is right, so is the continuum, all terms of it; also without a star.
    with torch.no_grad():
        clone.ln_area -= np.log(20.0)
    start_velocities(model, (), [true], [weight])
    expected = torch.tensor([1.0, 0.3, -0.4, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(model.continuum.coefficients.detach(), expected, rtol=0, atol=1e-9)


FOREST = np.linspace(10500.0, 10560.0, 900)
"""Å; pixels of a star whose lines a fast rotation blends."""


def forest(seed: int) -> LineEmulator:
    rng = np.random.default_rng(seed)
    centers = np.sort(rng.uniform(10460.0, 10600.0, 90))
    areas = rng.exponential(0.08, 90) + 0.01
    return LineEmulator(centers, areas, np.full(90, 0.06), np.full(90, 0.03), wavelength_range=(10460.0, 10600.0))


def wrong_sky(seed: int) -> tuple[LineEmulator, LineEmulator]:
    """A clone of deep lines, and lines a quarter stronger or weaker than these."""
    rng = np.random.default_rng(seed)
    centers = np.sort(rng.uniform(10500.0, 10560.0, 40))
    areas, rest = np.exp(rng.normal(-2.0, 1.0, 40)), (np.full(40, 0.04), np.full(40, 0.04))
    true = areas * np.exp(rng.normal(0.0, 0.25, 40))
    reach = {"wavelength_range": (10490.0, 10570.0)}
    return LineEmulator(centers, areas, *rest, **reach), LineEmulator(centers, true, *rest, **reach)


def rotating(star: LineEmulator, sky: LineEmulator | None, vsini: float, seed: int, rv: float = 150.0) -> Spectrum:
    options = {"rv": rv, "vsini": vsini, "resolving_power": R, "limb_darkening": (0.4, 0.2), "snr": 150.0}
    return simulate(FOREST, star, sky, seed=seed, **options)


@pytest.mark.parametrize("vsini", [55.0, 120.0, 180.0])
def test_fast_rotations_between_those_that_are_tried(vsini):
    for seed in range(2):
        star = forest(seed)
        start = started(rotating(star, None, vsini, seed), star, telluric=None)
        assert start["rv"] == pytest.approx(150.0, abs=0.1 * vsini)
        assert start["vsini"] == pytest.approx(vsini, rel=0.15)


@pytest.mark.parametrize(("seed", "most"), [(2, 6.0), (6, 2.5)])
def test_lines_of_the_sky_that_are_wrong_do_not_lead_a_fast_star_away(seed, most):
    """Held, they leave more than the star's lines are deep; believed, they shift it by 11 and 4 km/s."""
    star, (cloned, true) = forest(seed), wrong_sky(seed)
    start = started(rotating(star, true, 100.0, seed), star, telluric=cloned)
    assert start["rv"] == pytest.approx(150.0, abs=most)
    assert start["vsini"] == pytest.approx(100.0, rel=0.1)


@pytest.mark.parametrize("rho", [0.0, 0.7])
def test_residuals_that_are_alike_count_once(rho, monkeypatch):
    """White noise counts as it is, one that is alike (1 + ρ)/(1 - ρ) times less."""
    star, rng, counted = forest(1), np.random.default_rng(5), []
    alike = hypotheses._alike
    monkeypatch.setattr(hypotheses, "_alike", lambda attempt: counted.append(alike(attempt)) or counted[-1])
    clean = rotating(star, None, 5.0, 1)
    noise = list(accumulate(rng.standard_normal(FOREST.size), lambda a, b: rho * a + np.sqrt(1.0 - rho**2) * b))
    sigma = clean.uncertainty.array
    seen = Spectrum(
        flux=clean.flux + 3.0 * sigma * noise * clean.flux.unit,
        spectral_axis=clean.spectral_axis,
        uncertainty=StdDevUncertainty(sigma),
    )
    started(seen, star, telluric=None)
    assert counted == [pytest.approx((1.0 + rho) / (1.0 - rho), rel=0.15)]


# --- how starts are compared ------------------------------------------------------------------------------------------


def of_another_star(seed, rv=22.9, vsini=40.0):
    """A star of many lines with strengths of its own, seen through a sky, and the clone that is to find it."""
    star, (cloned, true) = forest(seed), wrong_sky(seed)
    rng = np.random.default_rng(seed)
    lines = star.subset(torch.arange(len(star)))
    with torch.no_grad():
        lines.ln_area += torch.as_tensor(rng.normal(0.0, 0.6, len(star)))
    data = simulate(
        FOREST, lines, true, snr=300.0, seed=seed, rv=rv, vsini=vsini, limb_darkening=(0.4, 0.2), resolving_power=R
    )
    return data, star, cloned


def test_a_start_has_room_for_the_rotation_that_it_finds(monkeypatch):
    """From 5 km/s the model has room up to 27.5: the first fit goes on in a wider one."""
    data, star, sky = of_another_star(0)
    monkeypatch.setattr(hypotheses, "contenders", lambda search, given: [velocity.StartingPoint(20.0, 5.0, 1.0, 500.0)])
    start = started(data, star, telluric=sky)
    assert start["vsini"] == pytest.approx(40.0, rel=0.2) and start["rv"] == pytest.approx(22.9, abs=6.0)


def test_attempts_are_measured_alike(monkeypatch):
    """With the same weights and the same limit to outliers, whatever their own fits took for these."""
    data, star, sky = of_another_star(1)
    told, brute, compare = [], [], hypotheses._gains

    @torch.no_grad()
    def gains(tried, search):
        weight = torch.stack([attempt.weights[0] for attempt in tried]).amin(0)
        left = [weight * (attempt.begun.fluxes[0] - attempt.begun.model()).square() for attempt in tried]
        limit = min(float(each.median()) for each in left) * (5.0 * 1.4826) ** 2
        brute.extend(float(each.clamp(max=limit).sum()) for each in left)
        found, without, n_datum = compare(tried, search)
        told.extend(without - np.array(found))
        assert n_datum == FOREST.size
        return found, without, n_datum

    monkeypatch.setattr(hypotheses, "_gains", gains)
    start = started(data, star, telluric=sky)
    assert len(told) > 1
    np.testing.assert_allclose(told, brute, rtol=1e-9)
    assert start["candidates"][0]["chi2"] == pytest.approx(min(brute), rel=1e-9)


def test_data_without_noise_find_their_star():
    """Residuals of nothing are no scale: what the star gains counts in units of the noise that the data tell."""
    star = forest(2)
    truth = {"rv": 22.9, "vsini": 12.0, "limb_darkening": (0.4, 0.2), "resolving_power": R}
    clean = simulate(FOREST, star, snr=None, **truth)
    sigma = StdDevUncertainty(np.full(FOREST.size, 0.005))
    start = started(
        Spectrum(flux=clean.flux, spectral_axis=clean.spectral_axis, uncertainty=sigma), star, telluric=None
    )
    assert start["rv"] == pytest.approx(22.9, abs=0.2) and start["vsini"] == pytest.approx(12.0, rel=0.05)
    assert start["detection"] > 100.0


@pytest.mark.parametrize(
    ("other", "apart"),
    [((12.0, 5.0), False), ((19.0, 5.0), True), ((12.0, 40.0), True), ((40.0, 40.0), True), ((12.0, 9.0), False)],
)
def test_another_velocity_or_rotation_is_another_solution(other, apart):
    first = {"rv": 12.0, "vsini": 5.0}
    assert hypotheses._apart(dict(zip(("rv", "vsini"), other, strict=True)), first, 5.5) is apart
