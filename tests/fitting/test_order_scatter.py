"""What orders say alone: against their joint mean, and the factor on its error against chance and against scatter."""

import warnings

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.nddata import StdDevUncertainty
from error_bars import assert_bars
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase.fitting.residuals.order_scatter import BY_CHANCE, scale_factor
from specutils_blase.simulate import simulate

TRUTH = {"resolving_power": 40_000, "vsini": 6.0, "limb_darkening": (0.4, 0.2), "snr": 150}


def test_chance_seldom_widens_an_error():
    rng = np.random.default_rng(1)
    errors = np.array([0.1, 0.2, 0.1, 0.3])
    factors = [scale_factor(list(rng.standard_normal(4) * errors), list(errors)) for _ in range(2000)]
    assert np.mean(np.array(factors) > 1.0) == pytest.approx(BY_CHANCE, abs=0.015)
    assert min(factors) == 1.0


@pytest.mark.parametrize("true", [3.0, 8.0])
def test_scatter_is_told_by_its_size(true):
    rng = np.random.default_rng(2)
    errors = np.full(20, 0.1)
    factors = [scale_factor(list(true * rng.standard_normal(20) * errors), list(errors)) for _ in range(200)]
    assert np.median(factors) == pytest.approx(true, rel=0.1)


def test_what_says_nothing_does_not_count():
    assert scale_factor([1.0], [0.1]) == 1.0
    assert scale_factor([], []) == 1.0
    assert scale_factor([0.0, 0.01, 1e4], [0.1, 0.1, 50.0]) == 1.0
    assert scale_factor([0.0, 0.0, 0.0], [0.0, 0.1, 0.1]) == 1.0


@pytest.fixture(scope="module")
def star():
    rng = np.random.default_rng(4)
    centers = np.sort(rng.uniform(10490, 10580, 60))
    return sb.LineEmulator(centers, *(np.full(60, v) for v in (0.06, 0.05, 0.01)), wavelength_range=(10470, 10600))


def night(star, velocities):
    windows = [np.linspace(10500 + 22 * k, 10520 + 22 * k, 400) for k in range(len(velocities))]
    return [simulate(w, star, rv=v, seed=k, **TRUTH) for k, (w, v) in enumerate(zip(windows, velocities, strict=True))]


def test_orders_agree_with_the_joint_fit(star):
    fit = sb.fit(night(star, [12.0] * 3), star, resolving_power=40_000, star_lines=(), progress=False)
    values, errors = (np.asarray(fit.orders[name].to_value("km/s")) for name in ("rv", "rv_err"))
    weights = errors**-2
    assert fit.settings["order_scatter"]["rv"] == 1.0
    assert fit.quality.reason("order_scatter_rv") is None
    assert np.sum(weights * values) / np.sum(weights) == pytest.approx(fit.value("rv"), abs=0.1 * fit.error("rv"))
    assert np.sum(weights) ** -0.5 == pytest.approx(fit.error("rv"), rel=0.05)
    assert_bars(fit, "rv", "vsini")


def test_orders_that_disagree_widen_the_error(star):
    shifts = np.array([0.0, 1.5, -1.5])
    options = {"resolving_power": 40_000, "star_lines": (), "progress": False, "jitter": False, "robust": False}
    with pytest.warns(sb.BlaseQualityWarning, match="rv scatters between orders"):
        fit = sb.fit(night(star, 12.0 + shifts), star, **options)
    values, errors = (np.asarray(fit.orders[name].to_value("km/s")) for name in ("rv", "rv_err"))
    np.testing.assert_array_less(np.abs(values - 12.0 - shifts), 4.0 * errors)
    factor = fit.settings["order_scatter"]["rv"]
    assert factor > 5.0
    assert fit.error("rv") == pytest.approx(factor * np.sum(errors**-2.0) ** -0.5, rel=0.1)
    assert abs(fit.value("rv") - 12.0) < 3.0 * fit.error("rv")
    reason = fit.quality.reason("order_scatter_rv")
    assert reason.status == "doubtful" and reason.value == factor


def stitched(star, shift: float, seed: int):
    """An order whose second half is off by a shift, with five times the noise that it tells: it asks for jitter."""
    wavelength = np.linspace(10500, 10520, 500)
    options = TRUTH | {"snr": None}
    halves = [simulate(wavelength, star, rv=12.0 + sign * shift / 2.0, **options).flux.value for sign in (-1, 1)]
    flux = np.where(wavelength < 10510.0, *halves)
    flux = flux * (1.0 + 0.02 * np.random.default_rng(seed).standard_normal(500))
    return Spectrum(
        flux=flux * u.one, spectral_axis=wavelength * u.AA, uncertainty=StdDevUncertainty(np.full(500, 0.004))
    )


def alone(star, shift: float, seed: int):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sb.BlaseQualityWarning)
        options = {"rv": 12.0, "vsini": 6.0, "resolving_power": 40_000, "star_lines": (), "progress": False}
        return sb.fit(stitched(star, shift, seed), star, **options)


def test_parts_of_an_order_that_disagree_widen_its_error(star):
    fit = alone(star, 3.0, 1)
    factor = fit.settings["part_scatter"]["rv"]
    # Halves at ± 1.5 km/s, in quarters whose errors are twice that of the whole.
    alike = fit.settings["correlated_residuals"]["rv"]
    expected = np.sqrt(4.0 / 3.0) * 1.5 / (2.0 * fit.error("rv") / factor / alike) / alike
    assert factor == pytest.approx(expected, rel=0.3) and factor > 2.0
    assert fit.quality.reason("part_scatter_rv").value == factor
    assert abs(fit.value("rv") - 12.0) < 2.0 * fit.error("rv")


def test_parts_that_agree_seldom_widen_it(star):
    fits = [alone(star, 0.0, seed) for seed in range(16)]
    for name in ("rv", "vsini"):
        factors = np.array([fit.settings["part_scatter"][name] for fit in fits])
        assert (factors > 1.0).sum() <= 3 and factors.mean() < 1.1  # expected 0.8 of 16


def test_parts_of_a_complete_model_are_not_asked(star):
    (data,) = night(star, [12.0])
    fit = sb.fit(data, star, resolving_power=40_000, star_lines=(), progress=False, jitter=False)
    assert fit.settings["part_scatter"] == {"rv": 1.0, "vsini": 1.0}


def test_a_line_at_its_bound_stays_there_when_an_order_is_asked_alone(star):
    """Taken across it, it took the velocity along: both orders stood 0.2 km/s to one side of the joint fit."""
    true = star.subset(torch.arange(len(star)))
    for near in (10510.0, 10533.0):
        with torch.no_grad():
            true.center[(true.center - near).abs().argmin()] += 0.35
    options = {"resolving_power": 40_000, "star_lines": ("ln_area", "rv_offset"), "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sb.BlaseQualityWarning)
        fit = sb.fit(night(true, [12.0, 12.0]), star, **options)
    assert fit.ledger["at_limit"].sum() == 1
    values = fit.orders["rv"].to_value("km/s")
    assert values.min() < fit.value("rv") < values.max()
    assert_bars(fit, "rv", "vsini")
    assert abs(fit.value("rv") - 12.0) < 2.0 * fit.error("rv")
