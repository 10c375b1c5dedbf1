"""Lines that a fit holds: by its ledger, or because the data cannot tell so many; and fits as templates of fits."""

import warnings

import numpy as np
import pytest
import torch
from astropy.table import QTable
from error_bars import assert_bars
from scipy.special import voigt_profile

import specutils_blase as sb
from specutils_blase.fitting.held_lines import MOST_LINES_PER_PIXEL, told_by_data
from specutils_blase.fitting.inputs import data_of, from_fit
from specutils_blase.fitting.observation import read_order
from specutils_blase.ledger.emulator import emulator_from_ledger
from specutils_blase.physics.grids import SPEED_OF_LIGHT
from specutils_blase.spectra.frame import spectrum_on

POWER, RV = 45_000.0, 7.0
PIXELS = np.linspace(8600.0, 8612.0, 200)
OPTIONS = {"resolving_power": POWER, "rv": RV, "vsini": 3.0, "continuum": 1, "progress": False, "jitter": False}


def lines(n, seed=4, low=8595.0, high=8617.0):
    rng = np.random.default_rng(seed)
    table = QTable()
    table["center"] = np.sort(rng.uniform(low, high, n))
    table["area"] = 10.0 ** rng.uniform(-3.5, -1.3, n)
    table["sigma"] = rng.uniform(0.03, 0.06, n)
    table["gamma"] = rng.uniform(0.01, 0.04, n)
    return table


def observed(table, snr=150, seed=1, pixels=PIXELS, rv=RV):
    return sb.simulate.simulate(
        pixels, table, rv=rv, vsini=3.0, resolving_power=POWER, snr=snr, seed=seed, continuum=[1.0, 0.02]
    )


@pytest.fixture(scope="module")
def few():
    return lines(30)


@pytest.fixture(scope="module")
def fitted(few):
    return sb.fit(observed(few), few, **OPTIONS)


def test_rows_that_are_not_free_are_held(few):
    """As they are in the table, all their parameters, in whatever order its rows stand; the others are fitted."""
    shuffled = few[np.random.default_rng(0).permutation(len(few))]
    shuffled["free"] = True
    shuffled["rv_offset"] = 0.0
    seen = (shuffled["center"] > 8601.0) & (shuffled["center"] < 8611.0)
    strongest = np.argsort(np.where(seen, shuffled["area"], 0.0))[-6:]
    shuffled["free"][strongest[::2]] = False
    fit = sb.fit(observed(few), shuffled, **OPTIONS)
    for row in strongest:
        (k,) = np.flatnonzero(np.abs(fit.ledger["center"].value - shuffled["center"][row]) < 0.02)
        held = not shuffled["free"][row]
        assert fit.ledger["free"][k] != held
        for name in ("area", "sigma", "gamma"):
            assert (fit.ledger[name][k].value == pytest.approx(shuffled[name][row], rel=1e-12)) == held
            assert (fit.ledger[f"{name}_err"][k].value == 0.0) == held
    assert fit.settings["held_lines"] == {"star": 3}
    assert fit.success


def test_a_column_free_of_other_kinds_is_refused(few):
    table = few.copy()
    table["free"] = 1.0
    with pytest.raises(ValueError, match="expected True or False in the column free of the star's ledger, got float64"):
        sb.fit(observed(few), table, **OPTIONS)


def test_clones_hold_nothing(few):
    wavelength = np.arange(8590.0, 8622.0, 0.01)
    center, area, sigma, gamma = (np.array(few[name]) for name in ("center", "area", "sigma", "gamma"))
    flux = np.exp(-(area * voigt_profile(wavelength[:, None] - center, sigma, gamma)).sum(1))
    clone = sb.clone(spectrum_on(wavelength, flux), progress=False)
    assert clone.ledger["free"].all()
    fit = sb.fit(observed(few), clone.ledger, **OPTIONS)
    assert fit.settings["held_lines"] == {"star": 0} and fit.settings["from_fit"] == {}


def test_more_lines_than_pixels_can_tell_are_held_weakest_first():
    """Three lines to the pixel: the strong ones are fitted, the weak ones are in the model as the template has them."""
    pixels = PIXELS[:100]
    many = lines(300, low=8598.0, high=8608.0)
    many["area"] *= 0.02
    strong = np.isin(
        np.arange(len(many)), np.abs(np.array(many["center"])[:, None] - [8601.0, 8602.5, 8604.0]).argmin(0)
    )
    many["area"][strong] = 0.03
    truth = many.copy()
    truth["area"][strong] *= 1.3
    fit = sb.fit(observed(truth, snr=300, pixels=pixels), many, **OPTIONS)
    assert fit.success
    free, held = np.asarray(fit.ledger["free"]), fit.settings["held_lines"]["star"]
    assert free.sum() == int(MOST_LINES_PER_PIXEL * pixels.size) and held > 100
    assert fit.value("rv") == pytest.approx(RV, abs=4.0 * fit.error("rv"))
    assert_bars(fit, "rv")
    # By the centres that they started from, the template's line of each row.
    start = fit.ledger["center"].value / (1.0 + fit.ledger["rv_offset"].value / SPEED_OF_LIGHT)
    template = np.abs(start[:, None] - np.array(many["center"])).argmin(1)
    np.testing.assert_allclose(start, many["center"][template], rtol=1e-12)
    assert free[strong[template]].all()
    np.testing.assert_allclose(fit.ledger["area"].value[strong[template]], 1.3 * 0.03, rtol=0.15)
    common = fit.settings["star_scale"]["strength"]  # what they have in common with the lines that are fitted
    np.testing.assert_allclose(fit.ledger["area"].value[~free], common * many["area"][template][~free], rtol=1e-9)


def test_expected_signal():
    """By brute force: the least-squares signal to noise of each line's dip, blurred, alone on white noise.

    The estimate needs to get the order right, not the number.
    """
    table = lines(400, seed=8)
    order = read_order(observed(table, snr=100), resolving_power=POWER)
    emulator = emulator_from_ledger(table)
    weight = torch.full((PIXELS.size,), 100.0**2, dtype=torch.float64)
    everything = torch.arange(len(emulator))
    kept = told_by_data({"star": emulator}, {"star": everything}, [order], [weight], {"star": (RV, 3.0)})[
        "star"
    ].numpy()
    assert kept.size == int(MOST_LINES_PER_PIXEL * PIXELS.size)
    fine = np.arange(8590.0, 8622.0, 0.005)
    seen = (fine > PIXELS[0]) & (fine < PIXELS[-1])
    kernel = np.exp(-0.5 * (np.arange(-200, 201) * 0.005 / (8606.0 / POWER / 2.3548)) ** 2)
    signal = []
    for row in table:
        dip = 1.0 - np.exp(
            -row["area"] * voigt_profile(fine - row["center"] * (1 + RV / SPEED_OF_LIGHT), row["sigma"], row["gamma"])
        )
        signal.append(np.sqrt((np.convolve(dip, kernel / kernel.sum(), "same")[seen] ** 2).sum()))
    best = np.argsort(signal)[::-1][: kept.size]
    assert np.isin(kept, best).mean() > 0.93


# --- fits as templates ------------------------------------------------------------------------------------------------


def test_a_fit_is_a_template_of_another_epoch(few, fitted):
    """Its lines at their fitted values; other data, no warning."""
    other = observed(few, seed=2, rv=9.5)
    fit = sb.fit(other, fitted, **OPTIONS | {"rv": 9.5})
    assert fit.success and fit.settings["from_fit"] == {"star": False}
    assert fit.value("rv") == pytest.approx(9.5, abs=4.0 * fit.error("rv"))
    assert_bars(fit, "rv", "vsini")
    held = sb.fit(other, fitted, star_lines=(), **OPTIONS | {"rv": 9.5})
    strong = fitted.ledger[fitted.ledger["snr"] > 5]
    near = np.abs(held.ledger["center"].value[:, None] - strong["center"].value).argmin(0)
    np.testing.assert_allclose(held.ledger["area"].value[near], strong["area"].value, rtol=1e-9)


@pytest.mark.parametrize("what", ["fit", "ledger", "star_template", "clone"])
def test_the_same_data_twice_are_told(few, fitted, what):
    given = {"fit": fitted, "ledger": fitted.ledger}.get(what)
    if given is None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            given = fitted.star_template if what == "star_template" else sb.clone(fitted.star_template, progress=False)
    with (
        pytest.warns(RuntimeWarning, match="the star's lines come from a fit of the same data"),
        pytest.warns(sb.BlaseQualityWarning, match="where data count twice, errors are too small"),
    ):
        fit = sb.fit(observed(few), given, **OPTIONS)
    assert fit.settings["from_fit"] == {"star": True}
    assert fit.quality.reason("same_data").status == "doubtful"


def test_a_part_of_the_same_data_is_told(few, fitted):
    """Half of the pixels; half of another epoch's is not the same."""
    for seed, same in ((1, True), (2, False)):
        whole = observed(few, seed=seed)
        part = read_order(whole[PIXELS.size // 4 : 3 * PIXELS.size // 4], resolving_power=POWER)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            assert from_fit(fitted.ledger, "star", set(data_of([part], None))) == same
        assert bool(told) == same


def test_a_fit_without_the_component_is_named(few, fitted):
    with pytest.raises(ValueError, match="the fit given as telluric has no telluric, only star"):
        sb.fit(observed(few), telluric=fitted, **OPTIONS)


def test_a_component_that_is_held_as_a_whole_costs_nothing(few):
    """More telluric lines than pixels, none of them asked for: every star line is free."""
    sky = lines(400, seed=6)
    sky["area"] *= 1e-3
    fit = sb.fit(observed(few), few, telluric=sky, telluric_lines=(), scale_tellurics=False, **OPTIONS)
    assert fit.settings["held_lines"] == {"star": 0, "telluric": 0}
    own = fit.ledger["component"] == "star"
    assert fit.ledger["free"][own].sum() > 10 and not fit.ledger["free"][~own].any()
