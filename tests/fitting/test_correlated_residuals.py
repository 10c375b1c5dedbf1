"""Errors where neighbouring residuals are alike: against the scatter of simulated spectra, too large and too small."""

import warnings

import numpy as np
import pytest
import torch
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase.fitting.residuals.correlated import autocorrelation
from specutils_blase.simulate import simulate

POWER, RV, VSINI = 40_000, 12.0, 6.0
ALIKE = 0.7
"""Correlation of a residual with the next."""


def alike(n: int, rho: float, rng) -> np.ndarray:
    """Noise of unit variance whose correlation falls by rho a pixel."""
    values = rng.standard_normal(n)
    for k in range(1, n):
        values[k] = rho * values[k - 1] + np.sqrt(1.0 - rho**2) * values[k]
    return values


def test_autocorrelation_is_that_of_the_noise():
    rng = np.random.default_rng(1)
    found = autocorrelation(torch.as_tensor(alike(200_000, ALIKE, rng)), torch.ones(200_000, dtype=torch.bool))
    np.testing.assert_allclose(found[:6].numpy(), ALIKE ** np.arange(1, 7), atol=0.01)


def test_pixels_that_do_not_count_break_no_pairs():
    rng = np.random.default_rng(2)
    values, counts = alike(200_000, ALIKE, rng), rng.random(200_000) > 0.3
    values[~counts] = 1e6
    found = autocorrelation(torch.as_tensor(values), torch.as_tensor(counts))
    np.testing.assert_allclose(found[:4].numpy(), ALIKE ** np.arange(1, 5), atol=0.02)


def test_white_noise_has_none():
    rng = np.random.default_rng(3)
    counts = torch.ones(1000, dtype=torch.bool)
    lags = [len(autocorrelation(torch.as_tensor(rng.standard_normal(1000)), counts)) for _ in range(1000)]
    assert np.mean(np.array(lags) > 0) == pytest.approx(0.023, abs=0.015)


@pytest.fixture(scope="module")
def star():
    rng = np.random.default_rng(4)
    centers = np.sort(rng.uniform(10490, 10530, 40))
    return sb.LineEmulator(centers, *(np.full(40, v) for v in (0.06, 0.05, 0.01)), wavelength_range=(10470, 10550))


def fitted(star, seed: int, rho: float):
    """A fit of an order that errs by five times the noise that it tells, its neighbouring pixels alike."""
    rng = np.random.default_rng(seed)
    options = {"rv": RV, "vsini": VSINI, "resolving_power": POWER, "limb_darkening": (0.4, 0.2)}
    clean = simulate(np.linspace(10500, 10520, 500), star, snr=None, **options)
    wrong = Spectrum(
        flux=clean.flux * (1.0 + 0.02 * alike(500, rho, rng)),
        spectral_axis=clean.spectral_axis,
        uncertainty=StdDevUncertainty(0.004 * np.asarray(clean.flux.value)),
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sb.BlaseQualityWarning)
        return sb.fit(wrong, star, rv=RV, vsini=VSINI, resolving_power=POWER, star_lines=(), progress=False)


@pytest.mark.parametrize("rho", [0.0, ALIKE])
def test_errors_are_the_scatter(star, rho):
    """Of 30 fits: the error is within 30 % of the scatter (chance: 13 %), and white residuals widen nothing."""
    fits = [fitted(star, seed, rho) for seed in range(30)]
    scatter = np.std([fit.value("rv") for fit in fits])
    told = np.median([fit.error("rv") for fit in fits])
    factors = np.array([fit.settings["correlated_residuals"]["rv"] for fit in fits])
    assert scatter == pytest.approx(told, rel=0.3)
    if rho:
        assert scatter > 1.4 * told / np.median(factors)
    else:
        assert np.median(factors) == 1.0 and np.mean(factors) < 1.03


def test_draws_have_the_error(star):
    fit = fitted(star, 1, ALIKE)
    assert fit.settings["correlated_residuals"]["rv"] > 1.3
    assert np.std(fit.draw(4000, seed=1).parameters["rv"]) == pytest.approx(fit.error("rv"), rel=0.05)
