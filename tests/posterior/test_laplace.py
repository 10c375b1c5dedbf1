"""Draws from the Laplace approximation: against dense algebra by autograd, and against the errors of the tables."""

import numpy as np
import pytest
import torch
from astropy.table import Table
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase.posterior.laplace import SPECTRA, free_parameters, normal_equations
from specutils_blase.simulate import simulate

WAVELENGTH = np.linspace(10_500.0, 10_509.0, 150)
POWER = 55_000.0


def lines(n, low, high, sigma, seed):
    rng = np.random.default_rng(seed)
    table = Table(
        {
            "center": np.linspace(low, high, n) + rng.uniform(-0.15, 0.15, n),
            "area": rng.uniform(0.03, 0.12, n),
            "sigma": np.full(n, sigma),
            "gamma": rng.uniform(0.02, 0.05, n),
        }
    )
    table.meta["wavelength_range"] = (10_480.0, 10_530.0)
    return table


STAR, SKY = lines(12, 10_499.5, 10_509.5, 0.05, 1), lines(5, 10_501.0, 10_508.5, 0.015, 2)
TRUTH = {"rv": 3.0, "vsini": 9.0, "resolving_power": POWER, "limb_darkening": (0.4, 0.2)}


def observed(pixels=WAVELENGTH, **options):
    options = {"snr": 200.0, "seed": 4, "continuum": (3.0, 0.05)} | TRUTH | options
    return simulate(pixels, STAR, SKY, **options)


def fitted(data=None, **options):
    options = {"telluric": SKY, "rv": 3.1, "vsini": 8.5, "resolving_power": POWER, "continuum": 1} | options
    data = observed() if data is None else data
    return sb.fit(data, STAR, scale_tellurics=False, progress=False, **options)


@pytest.fixture(scope="module")
def result():
    return fitted()


def dense_curvature(result):
    """A = JᵀWJ + P by autograd through the whole model, pixel by pixel; and which parameter is which."""
    free = free_parameters(result.model, result.parameters, result.curvature)
    unit = torch.eye(sum(len(weight) for weight in result.curvature.weight), dtype=torch.float64)
    jacobian = torch.stack([free.evaluate()[2](row) for row in unit])
    precision = normal_equations(free, result.curvature).prior_precision
    weight = free.merge(result.curvature.weight)
    return free, jacobian.T @ (weight.unsqueeze(1) * jacobian) + torch.diag(precision)


def whitened(draws, curvature):
    """Draws times the root of the curvature, about their true mean: white if the curvature is theirs."""
    return (draws.vectors - draws.free.read()) @ torch.linalg.cholesky(curvature)


N_DRAW = 6000
CHANCE = 6.0 * (2.0 / N_DRAW) ** 0.5
"""What the covariance of so many white draws may be off by."""


def test_draws_scatter_as_the_dense_inverse(result):
    """Every variance and covariance of all parameters; the solver's derivatives are cut at 0.15 % of an error."""
    free, curvature = dense_curvature(result)
    draws = result.draw(N_DRAW, seed=3)
    white = whitened(draws, curvature)
    found = white.T @ white / N_DRAW
    assert found.shape == (len(free), len(free)) and len(free) == 4 * (12 + 5) + 4
    torch.testing.assert_close(found, torch.eye(len(free), dtype=torch.float64), rtol=0, atol=CHANCE + 0.01)
    assert float(white.mean(0).abs().max()) < 5.0 * N_DRAW**-0.5


def test_curvature_gives_the_errors_of_the_tables(result):
    """Rebuilt from what the result holds, it is the one that the fit's own errors came from."""
    offsets = fitted(star_lines=("rv_offset",), telluric_lines=())  # nothing that the lines may have in common
    for one, known in ((offsets, True), (result, False)):  # where they have, not knowing it widens the errors
        free = free_parameters(one.model, one.parameters, one.curvature)
        factor = normal_equations(free, one.curvature).factor()
        error, first = factor.variance().sqrt(), free.global_slices["continuum"].start
        places = {"rv": free.global_slices["rv"].start, "continuum_0": first, "continuum_1": first + 1}
        for name, at in places.items():
            ratio = one.error(name) / float(error[at])
            assert ratio == pytest.approx(1.0, abs=1e-6) if known else ratio > 1.0, name
    for name in ("star", "telluric"):
        own = torch.as_tensor(result.line_covariance[name])[free.lines[name]]
        torch.testing.assert_close(factor.covariance_blocks(free.columns(name)), own, rtol=1e-5, atol=1e-12)


def test_tables_of_draws_spread_like_the_errors(result):
    draws = result.draw(N_DRAW, seed=5)
    lines, ledger = draws.lines, result.ledger
    assert (lines["component"] == ledger["component"]).all()
    off = 5.0 / (2 * N_DRAW) ** 0.5
    for name in ("area", "sigma", "gamma"):
        spread = np.log(lines[name].value).std(axis=1)
        error = ledger[f"{name}_err"].value / ledger[name].value
        np.testing.assert_allclose(spread[ledger["free"]], error[ledger["free"]], rtol=off)
    np.testing.assert_allclose(lines["rv_offset"].value.std(axis=1), ledger["rv_offset_err"].value, rtol=off)
    # To first order in the errors, which are up to a quarter of the width itself.
    strong = ledger["snr"] > 10
    assert strong.sum() > 8
    width = lines["equivalent_width"].value.std(axis=1)
    np.testing.assert_allclose(width[strong], ledger["equivalent_width_err"].value[strong], rtol=off + 0.03)
    table = draws.parameters
    assert table.colnames == ["rv", "vsini", "continuum_0", "continuum_1"]
    for name in table.colnames:
        assert np.std(table[name]) == pytest.approx(result.error(name), rel=off + 0.02)
        assert np.mean(table[name]) == pytest.approx(result.value(name), abs=0.1 * result.error(name))


def test_draws_are_reproducible_and_change_nothing(result):
    before = {name: value.clone() for name, value in result.model.state_dict().items()}
    one, two, other = result.draw(4, seed=1), result.draw(4, seed=1), result.draw(4, seed=2)
    assert torch.equal(one.vectors, two.vectors) and not torch.equal(one.vectors, other.vectors)
    one.spectra()
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert len(one) == 4 and "4 draws of 72 parameters" in repr(one)


@pytest.mark.parametrize("name", SPECTRA)
def test_spectra_of_draws(result, name):
    """About the fit's own, and nearer to it than the noise where it is the model of all data."""
    draws = result.draw(40, seed=8)
    spectra = draws.spectra(name)
    assert len(spectra) == 40 and all(isinstance(each, Spectrum) for each in spectra)
    own = getattr(result, name).flux.value
    values = np.array([each.flux.value for each in spectra])
    spread = values.std(axis=0)
    assert (spread > 0).mean() > 0.5
    if name == "model_spectrum":
        noise = result.data.sigma.numpy()
        assert 0.3 < np.sqrt(np.mean((spread / noise) ** 2)) < 0.9
        assert np.abs(values.mean(axis=0) - own).max() < 6.0 * np.max(spread) / 40**0.5


def test_what_the_fit_held_is_the_same_in_all_draws():
    result = fitted(star_lines=("ln_area",), telluric_lines=(), free=("rv", "continuum"))
    draws = result.draw(50)
    lines = draws.lines
    sky = lines["component"] == "telluric"
    for name in ("center", "sigma", "gamma"):
        assert np.ptp(lines[name].value, axis=1).max() == 0.0
    assert np.ptp(lines["area"].value[sky], axis=1).max() == 0.0
    assert np.ptp(lines["area"].value[~sky], axis=1).min() > 0.0
    assert draws.parameters.colnames == ["rv", "continuum_0", "continuum_1"]


def test_unknown_noise_is_in_the_draws():
    data = observed()
    result = fitted(Spectrum(flux=data.flux, spectral_axis=data.spectral_axis))
    assert result.noise_scale != 1.0
    assert np.std(result.draw(N_DRAW).parameters["rv"]) == pytest.approx(result.error("rv"), rel=0.06)


def test_draws_of_many_orders():
    """Shared parameters once, an order's own under its name; a single order has no draws of its own."""
    result = fitted([observed(WAVELENGTH[:85]), observed(WAVELENGTH[65:], seed=9)], resolving_power=[POWER] * 2)
    free, curvature = dense_curvature(result)
    draws = result.draw(N_DRAW, seed=3)
    white = whitened(draws, curvature)
    found = white.T @ white / N_DRAW
    torch.testing.assert_close(found, torch.eye(len(free), dtype=torch.float64), rtol=0, atol=CHANCE + 0.01)
    table = draws.parameters
    assert table.colnames == ["rv", "vsini", "continuum_0[0]", "continuum_1[0]", "continuum_0[1]", "continuum_1[1]"]
    rows = result.parameters[result.parameters["free"]]
    for name, row in zip(table.colnames, rows, strict=True):
        assert np.std(table[name]) == pytest.approx(row["error"], rel=0.07), name
    assert [len(each) for each in result.draw(2).spectra()] == [2, 2]
    with pytest.raises(ValueError, match="one order of a fit of many"):
        result.order(0).draw(3)


def test_what_cannot_be_drawn(result):
    for n_draw in (0, -1, 2.5, True, "3", None):
        with pytest.raises(ValueError, match=f"must be a positive whole number, got {n_draw!r}"):
            result.draw(n_draw)
    for seed in (-1, 1.0, True, "3", None, 2**63):
        with pytest.raises(ValueError, match=rf"seed must be a whole number from 0 on.*got {seed!r}"):
            result.draw(1, seed=seed)
    assert (result.draw(1, seed=np.int64(3)).vectors == result.draw(1, seed=3).vectors).all()
    with pytest.raises(ValueError, match=r"name must be one of model_spectrum.*got 'flux'"):
        result.draw(1).spectra("flux")
