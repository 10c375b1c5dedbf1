"""Pixels gone wrong are found, and what stars and tellurics show is left alone."""

import numpy as np
import pytest
import torch
from astropy.nddata import StdDevUncertainty
from error_bars import assert_bars
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase.fitting.residuals.rejected_pixels import (
    NEGATIVE,
    REASONS,
    SHARP,
    SPIKE,
    ZEROS,
    impossible,
    unlike_lines,
)
from specutils_blase.physics.kernels import FWHM_PER_SIGMA
from specutils_blase.simulate import simulate

N = 600
ELEMENT = 2.6
"""Full width at half maximum of the line spread in pixels, as of HPF."""


def forest(seed, n_line=60, snr=200.0):
    """A continuum with a slope, lines as narrow as the line spread, some of them black, and its noise."""
    rng = np.random.default_rng(seed)
    x = np.arange(N)
    continuum = 1.0 + 0.2 * x / N
    sigma = ELEMENT / FWHM_PER_SIGMA
    depth, place = rng.uniform(0.05, 1.0, n_line), rng.uniform(0, N, n_line)
    tau = (depth[:, None] * np.exp(-0.5 * ((x - place[:, None]) / sigma) ** 2)).sum(0)
    model = continuum * np.exp(-2.0 * tau)
    flux = model + rng.standard_normal(N) * continuum / snr
    noise = continuum / snr
    return [torch.as_tensor(values) for values in (flux, model, continuum, noise)]


GOOD = torch.ones(N, dtype=torch.bool)


@pytest.mark.parametrize("seed", range(20))
def test_a_spectrum_of_lines_loses_no_pixel(seed):
    flux, model, continuum, sigma = forest(seed)
    assert not impossible(flux, sigma, GOOD).any()
    assert not unlike_lines(flux, model, continuum, sigma, GOOD, element=ELEMENT, emission=False).any()


@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_template_loses_next_to_nothing(seed):
    """Its lines half as strong and a third of a resolution element away: residuals of a hundred sigma everywhere."""
    flux, model, continuum, sigma = forest(seed)
    shifted = torch.as_tensor(np.interp(np.arange(N) + ELEMENT / 3, np.arange(N), (model / continuum).sqrt()))
    codes = unlike_lines(flux, continuum * shifted, continuum, sigma, GOOD, element=ELEMENT, emission=False)
    assert ((flux - continuum * shifted).abs() / sigma).max() > 60.0
    assert int((codes > 0).sum()) <= 1


def test_negative_pixels_and_high_spikes_go_before_any_model():
    flux, _, _, sigma = forest(1)
    flux[100:120] = -0.3
    flux[[7, 300, 599]] += 1.0
    codes = impossible(flux, sigma, GOOD)
    assert (codes[100:120] == NEGATIVE).all() and (codes[[7, 300, 599]] == SPIKE).all()
    assert int((codes > 0).sum()) == 23
    assert int((impossible(flux, sigma, GOOD, emission=True) == SPIKE).sum()) == 0


def test_zeros_in_a_row_are_a_gap_and_single_ones_are_not():
    flux, _, _, sigma = forest(6)
    flux[100:105], flux[200], flux[300:304] = 0.0, 0.0, 0.0
    codes = impossible(flux, sigma, GOOD)
    assert (codes == ZEROS).nonzero().squeeze(1).tolist() == list(range(100, 105))


def test_noise_below_zero_in_black_lines_is_no_fault():
    flux, model, _, _ = forest(2)
    sigma = torch.full_like(flux, 0.05)
    flux = model * 1e-3 + sigma * torch.as_tensor(np.random.default_rng(3).standard_normal(N))
    assert not (impossible(flux, sigma, GOOD) == NEGATIVE).any()


def test_faint_spikes_and_dead_pixels_go_beside_a_model():
    flux, model, continuum, sigma = forest(4, n_line=25)
    clear = ((model / continuum) > 0.97).nonzero().squeeze(1)
    spikes, dead = clear[[10, 60, 110]], clear[[30, 90, 150]]
    flux[spikes] += 0.08
    flux[dead] -= 0.3
    codes = unlike_lines(flux, model, continuum, sigma, GOOD, element=ELEMENT, emission=False)
    assert (codes[spikes] > 0).all() and (codes[dead] == SHARP).all()
    assert int((codes > 0).sum()) == 6


def test_a_line_that_no_template_has_stays():
    """As narrow as the line spread allows, wherever it falls between pixels."""
    for place in np.linspace(300.0, 301.0, 11):
        flux, model, continuum, sigma = forest(5, n_line=10)
        x = np.arange(N)
        profile = np.exp(-4.0 * np.log(2.0) * ((x - place) / ELEMENT) ** 2)
        flux = flux * torch.as_tensor(1.0 - 0.6 * profile)
        codes = unlike_lines(flux, model, continuum, sigma, GOOD, element=ELEMENT, emission=False)
        assert not codes.any(), place


def test_masked_pixels_are_never_named():
    flux, model, continuum, sigma = forest(6)
    good = GOOD.clone()
    flux[50] = -5.0
    good[50] = False
    assert not impossible(flux, sigma, good).any()
    assert not unlike_lines(flux, model, continuum, sigma, good, element=ELEMENT, emission=False).any()


@pytest.fixture(scope="module")
def star():
    rng = np.random.default_rng(0)
    centers = np.sort(rng.uniform(10492, 10528, 18))
    return sb.LineEmulator(centers, *(np.full(18, v) for v in (0.06, 0.05, 0.01)), wavelength_range=(10480, 10540))


TRUTH = {"resolving_power": 40_000, "vsini": 5.0, "limb_darkening": (0.4, 0.2), "rv": 5.0}
SPIKES, LOW, HALF, GAP = [55, 180, 333], slice(250, 262), [77, 290], slice(100, 108)


@pytest.fixture(scope="module")
def hit(star):
    """A simulated order, the same with pixels gone wrong, and which these are."""
    data = simulate(np.linspace(10500, 10520, 400), star, snr=200, seed=3, **TRUTH)
    flux = data.flux.value.copy()
    flux[SPIKES] += [2.0, 0.3, 10.0]
    flux[LOW] = -0.3
    flux[HALF] *= 0.5
    flux[GAP] = 0.0
    bad = Spectrum(
        flux=flux * data.flux.unit,
        spectral_axis=data.spectral_axis,
        uncertainty=StdDevUncertainty(data.uncertainty.array),
    )
    return data, bad, sorted([*SPIKES, *range(LOW.start, LOW.stop), *HALF, *range(GAP.start, GAP.stop)])


def test_a_fit_leaves_them_out_and_tells(star, hit):
    clean, bad, wrong = hit
    options = {"resolving_power": 40_000, "star_lines": (), "progress": False}
    before, after = sb.fit(clean, star, **options), sb.fit(bad, star, **options)
    assert len(before.rejected) == 0
    assert_bars(before, "rv", "vsini")
    assert after.rejected["index"].tolist() == wrong
    assert set(after.rejected["reason"]) == {"negative", "spike", "sharp", "zeros"} == set(REASONS[1:])
    assert (np.abs(after.rejected["deviation"]) > 6.0).all()
    assert not after.data.good[wrong].any() and int(after.data.good.sum()) == 400 - len(wrong)
    for name in ("rv", "vsini"):
        assert abs(after.value(name) - before.value(name)) < 0.5 * before.error(name), name
        assert after.error(name) == pytest.approx(before.error(name), rel=0.15)
    assert after.reduced_chi2 < 1.2


def test_the_old_way_is_an_option(star, hit):
    _, bad, _ = hit
    options = {"resolving_power": 40_000, "star_lines": (), "rv": 5.0, "progress": False}
    with pytest.warns(sb.BlaseQualityWarning, match="the result is bad: reduced χ² is"):
        fit = sb.fit(bad, star, jitter=False, robust=False, **options)
    assert len(fit.rejected) == 0 and fit.data.good.all() and fit.reduced_chi2 > 1000.0
