"""The spectrograph: line spread in velocity, pixels, continuum."""

import numpy as np
import pytest
import torch

from specutils_blase.model.instrument import Continuum, LineSpreadFunction, PixelBinning
from specutils_blase.physics.grids import SPEED_OF_LIGHT, velocity_grid
from specutils_blase.physics.kernels import FWHM_PER_SIGMA
from specutils_blase.simulate import pixel_edges

F64 = torch.float64


def around(center, reach, step):
    grid = velocity_grid(center * (1 - reach / SPEED_OF_LIGHT), center * (1 + reach / SPEED_OF_LIGHT), step)
    return grid, SPEED_OF_LIGHT * torch.log(grid / center)


def gaussian(velocity, width):
    return torch.exp(-0.5 * (velocity / width) ** 2) / (width * np.sqrt(2 * np.pi))


# --- line spread ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [0.2, 0.5, 0.8])
@pytest.mark.parametrize("center", [8100.0, 12700.0, 22000.0])
@pytest.mark.parametrize("power", [20_000.0, 55_000.0])
def test_delta_becomes_a_gaussian_of_the_requested_width(center, power, step):
    """FWHM = c/R in km/s on any grid at any wavelength, from the second moment: to the cut at six sigma, 1e-7."""
    grid, velocity = around(center, 120.0, step)
    delta = torch.zeros_like(grid)
    delta[len(grid) // 2] = 1.0
    with torch.no_grad():
        spread = LineSpreadFunction(power, grid)(delta)
    mean = (spread * velocity).sum()
    fwhm = FWHM_PER_SIGMA * ((spread * (velocity - mean) ** 2).sum()).sqrt()
    assert float(spread.sum()) == pytest.approx(1.0, abs=1e-12)
    assert float(fwhm) == pytest.approx(SPEED_OF_LIGHT / power, rel=1e-6)


@pytest.mark.parametrize("power", [20_000.0, 55_000.0])
def test_gaussian_line_through_the_line_spread(power):
    """Widths add in squares; 14 nodes a full width give 2e-5."""
    grid, velocity = around(10000.0, 80.0, 0.4)
    sigma = SPEED_OF_LIGHT / power / FWHM_PER_SIGMA
    with torch.no_grad():
        found = LineSpreadFunction(power, grid)(gaussian(velocity, 2.4))
    truth = gaussian(velocity, np.hypot(2.4, sigma))
    torch.testing.assert_close(found, truth, rtol=0, atol=3e-5 * float(truth.max()))


def test_resolving_power_that_varies():
    """ln R is a Legendre series over the grid; each node gathers with the width of its own wavelength."""
    grid = velocity_grid(10000.0, 10060.0, 0.4)
    spread = LineSpreadFunction((50_000.0, 0.2, -0.1), grid)
    x = (2 * grid.numpy() - grid[0].item() - grid[-1].item()) / (grid[-1] - grid[0]).item()
    power = np.exp(np.polynomial.legendre.legval(x, [np.log(50_000.0), 0.2, -0.1]))
    with torch.no_grad():
        sigma = spread.sigma_cells(spread.ln_resolving_power).numpy() * spread.step
        np.testing.assert_allclose(sigma, SPEED_OF_LIGHT / power / FWHM_PER_SIGMA, rtol=1e-9)
        for node in (300, 2000, len(grid) - 400):
            velocity = SPEED_OF_LIGHT * torch.log(grid / grid[node])
            found = spread(gaussian(velocity, 2.4))[node]
            truth = 1.0 / (np.sqrt(2 * np.pi) * np.hypot(2.4, sigma[node]))
            assert float(found) == pytest.approx(truth, rel=5e-5)
        ones = torch.ones_like(grid)
        torch.testing.assert_close(spread(ones), ones, rtol=0, atol=1e-12)


def test_varying_resolving_power_that_is_constant():
    grid = velocity_grid(10000.0, 10010.0, 0.4)
    flux = torch.rand(len(grid), dtype=F64)
    with torch.no_grad():
        constant, varying = LineSpreadFunction(45_000.0, grid), LineSpreadFunction((45_000.0, 0.0), grid)
        torch.testing.assert_close(varying(flux), constant(flux), rtol=0, atol=1e-13)
        assert float(varying.resolving_power) == pytest.approx(45_000.0, rel=1e-12)


@pytest.mark.parametrize("power", [55_000.0, (50_000.0, 0.2), (50_000.0, 0.2, -0.1)])
def test_tap_derivatives_equal_autograd(power):
    grid = velocity_grid(10000.0, 10000.4, 0.8)
    spread = LineSpreadFunction(power, grid)
    stated = spread.tap_derivatives()
    truth = torch.autograd.functional.jacobian(spread.taps, spread.ln_resolving_power.detach()).movedim(-1, 0)
    torch.testing.assert_close(stated, truth, rtol=1e-8, atol=1e-11)
    assert not stated.requires_grad


def test_line_spread_gradcheck():
    grid = velocity_grid(10000.0, 10001.0, 0.8)
    spread = LineSpreadFunction((50_000.0, 0.2), grid)
    flux = torch.rand(len(grid), dtype=F64)

    def through(coefficients):
        return torch.func.functional_call(spread, {"ln_resolving_power": coefficients}, (flux,))

    assert torch.autograd.gradcheck(through, (spread.ln_resolving_power.detach().clone().requires_grad_(),))


@pytest.mark.parametrize("power", [0.0, -5.0, float("nan"), float("inf")])
def test_bad_resolving_power(power):
    with pytest.raises(ValueError, match="resolving_power must be positive and finite"):
        LineSpreadFunction(power, velocity_grid(10000.0, 10001.0, 0.8))


# --- pixels -----------------------------------------------------------------------------------------------------------


def test_pixels_do_not_see_their_neighbours():
    """Pixels on both sides of a gap have the values that they have without the other side."""
    grid = velocity_grid(9999.0, 10011.0, 0.4)
    flux = 1.0 - 0.5 * torch.exp(-0.5 * ((grid - 10005.0) / 0.2) ** 2)
    edges = torch.tensor(pixel_edges(np.r_[np.arange(10000.0, 10004.0, 0.05), np.arange(10006.0, 10010.0, 0.05)]))
    whole = PixelBinning(edges, grid)(flux)
    for part in (slice(0, 80), slice(80, 160), slice(17, 18)):
        torch.testing.assert_close(PixelBinning(edges[part], grid)(flux), whole[part], rtol=0, atol=1e-14)
    assert (edges.diff(dim=1) < 0.06).all()
    assert float((whole - 1.0).abs().max()) < 1e-5  # nothing of the line in the gap reaches a pixel


def test_binning_gradcheck():
    grid = velocity_grid(9999.0, 10001.0, 1.5)
    binning = PixelBinning(torch.tensor([[9999.6, 9999.7], [9999.9, 10000.4]], dtype=F64), grid)
    assert torch.autograd.gradcheck(binning, (torch.rand(len(grid), dtype=F64, requires_grad=True),))


# --- continuum --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degree", [0, 1, 4])
def test_continuum(degree, dtype):
    wavelength = torch.linspace(10000.0, 10100.0, 33, dtype=F64) + torch.rand(33, dtype=F64)
    continuum = Continuum(wavelength, degree)
    flux = torch.rand(33, dtype=dtype)
    torch.testing.assert_close(continuum.to(dtype)(flux), flux)  # one to begin with
    coefficients = torch.randn(degree + 1, dtype=F64)
    with torch.no_grad():
        continuum.coefficients.copy_(coefficients)
    x = np.interp(wavelength, [wavelength[0], wavelength[-1]], [-1, 1])
    truth = np.polynomial.legendre.legval(x, coefficients.numpy())
    np.testing.assert_allclose(continuum.value().detach(), truth, rtol=1e-12, atol=1e-13)
    found = continuum(flux)
    assert found.dtype == dtype
    torch.testing.assert_close(found.detach(), (flux.double() * torch.tensor(truth)).to(dtype))


def test_continuum_refuses():
    with pytest.raises(ValueError, match="degree must be 0 or more, got -1"):
        Continuum(torch.arange(5.0), -1)


def test_pixels_hold_the_mean_over_their_own_edges():
    """Of λ and λ², which the grid's interpolation follows to 1e-9, the means over [a, b] are known."""
    grid = velocity_grid(10_000.0, 10_020.0, 0.5)
    low = torch.linspace(10_005.0, 10_010.0, 40, dtype=torch.float64)
    edges = torch.stack([low, low + torch.linspace(0.01, 0.3, 40, dtype=torch.float64)], dim=1)
    pixels = PixelBinning(edges, grid)
    a, b = (edges - 10_007.0).unbind(1)
    x = grid - 10_007.0
    torch.testing.assert_close(pixels(x), 0.5 * (a + b), rtol=0.0, atol=1e-6)
    torch.testing.assert_close(pixels(x.square()), (a * a + a * b + b * b) / 3.0, rtol=0.0, atol=1e-5)
