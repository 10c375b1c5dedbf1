"""What no data can determine: damping and priors carry it, the ledger says so, nothing fails or stalls."""

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.nddata import StdDevUncertainty
from error_bars import assert_bars
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase.inference.priors import LinePriors
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import ForwardModel
from specutils_blase.simulate import pixel_edges, simulate

PIXELS = np.linspace(10_490.0, 10_514.0, 400)
MASKED = slice(250, 320)
SNR = 150.0


def lines():
    """Thirty lines; the seventh twice, and one in the middle of the masked stretch."""
    rng = np.random.default_rng(21)
    center = np.linspace(10_491.0, 10_513.0, 30) + rng.uniform(-0.2, 0.2, 30)
    center[20] = PIXELS[285]
    keep = (np.arange(30) == 20) | (np.abs(center - PIXELS[285]) > 1.5)
    table = {
        "center": center[keep],
        "area": rng.uniform(0.02, 0.08, 30)[keep],
        "sigma": rng.uniform(0.05, 0.07, 30)[keep],
        "gamma": rng.uniform(0.02, 0.04, 30)[keep],
    }
    return {name: np.append(values, values[6]) for name, values in table.items()}


@pytest.fixture(scope="module")
def result():
    table = lines()
    clean = simulate(PIXELS, table, rv=12.0, vsini=4.0, resolving_power=55_000, snr=SNR, seed=5)
    mask = np.zeros(PIXELS.size, bool)
    mask[MASKED] = True
    flux = clean.flux.value.copy()
    flux[mask] = 40.0  # whatever stands there does not matter
    data = Spectrum(
        flux=flux * u.one, spectral_axis=PIXELS * u.AA, uncertainty=StdDevUncertainty(np.full(400, 1 / SNR)), mask=mask
    )
    columns = (table[name] for name in ("center", "area", "sigma", "gamma"))
    emulator = LineEmulator(*columns, wavelength_range=(10_480.0, 10_525.0))
    return sb.fit(data, emulator, rv=11.8, vsini=4.0, resolving_power=55_000, progress=False)


def test_it_converges(result):
    assert result.success, result.message
    assert abs(result.value("rv") - 12.0) < 4.0 * result.error("rv")
    assert_bars(result, "rv", "vsini")
    assert 0.7 < result.reduced_chi2 < 1.3
    assert np.isfinite(result.line_covariance["star"]).all()


def test_a_line_outside_every_pixel_keeps_its_clone(result):
    """Its value is the clone's, its error nearly the standard deviation of the prior, and its flag is up."""
    row = result.ledger[int(np.argmin(np.abs(result.ledger["center"].value - PIXELS[285])))]
    prior = LinePriors().ln_area
    assert row["unconstrained"]
    assert abs(row["delta_ln_area"]) < 0.1 * prior
    # Student's t with four degrees of freedom is wider than its scale; the line's far wing is seen.
    assert float(row["area_err"] / row["area"]) == pytest.approx(prior * np.sqrt(2.0), rel=0.03)


def test_two_lines_on_top_of_each_other_share(result):
    """Together they are as strong as they were; each alone is known to its prior only."""
    table = lines()
    pair = np.argsort(np.abs(result.ledger["center"].value - table["center"][6]))[:2]
    rows = result.ledger[pair]
    assert rows["area"].value.sum() == pytest.approx(2.0 * table["area"][6], rel=0.1)
    error = (rows["area_err"] / rows["area"]).value
    alone = np.median((result.ledger["area_err"] / result.ledger["area"]).value)
    assert (error > 2.0 * alone).all() and (error < 1.2 * LinePriors().ln_area).all()


def test_a_line_that_the_template_does_not_have_is_at_its_limit():
    """Where the data have a trough ten times as broad as the template's line, that line says so, and no other does."""
    table = {name: values[:-1].copy() for name, values in lines().items()}
    third = int(np.argmin(np.abs(table["center"] - 10_502.0)))
    true = {name: values.copy() for name, values in table.items()}
    true["sigma"][third] *= 10.0
    true["area"][third] *= 10.0
    data = simulate(PIXELS, true, rv=12.0, vsini=4.0, resolving_power=55_000, snr=SNR, seed=6)
    columns = (table[name] for name in ("center", "area", "sigma", "gamma"))
    emulator = LineEmulator(*columns, wavelength_range=(10_480.0, 10_525.0))
    fit = sb.fit(data, emulator, rv=12.0, vsini=4.0, resolving_power=55_000, progress=False)
    flagged = fit.ledger["center"][fit.ledger["at_limit"]].value
    assert np.abs(flagged - table["center"][third]).tolist() == [pytest.approx(0.0, abs=0.3)]
    assert len(sb.select_lines(fit.ledger, without="at_limit")) == len(fit.ledger) - 1


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.LBFGS])
def test_your_own_loss_and_optimiser(optimizer):
    """The model is a module like any other: Adam and L-BFGS bring a robust loss down to where the data are."""
    table = lines()
    wavelength = torch.as_tensor(PIXELS)
    flux = torch.as_tensor(simulate(PIXELS, table, rv=3.0, vsini=4.0, resolving_power=55_000, snr=None).flux.value)
    star = LineEmulator(table["center"], 1.2 * table["area"], table["sigma"], table["gamma"])
    model = ForwardModel.for_order(
        wavelength, torch.as_tensor(pixel_edges(PIXELS)), star=star, rv=2.5, vsini=4.0, resolving_power=55_000.0
    )

    def loss():
        return torch.nn.functional.huber_loss(model(), flux, delta=0.01)

    options = {"lr": 0.02} if optimizer is torch.optim.Adam else {"max_iter": 40, "line_search_fn": "strong_wolfe"}
    steps = optimizer([star.ln_area, model.doppler.rv], **options)

    def closure():
        steps.zero_grad()
        value = loss()
        value.backward()
        return value

    before = float(loss().detach())
    for _ in range(120 if optimizer is torch.optim.Adam else 1):
        steps.step(closure)
    assert float(loss().detach()) < 2e-2 * before
    assert float(model.doppler.rv.detach()) == pytest.approx(3.0, abs=0.05)
