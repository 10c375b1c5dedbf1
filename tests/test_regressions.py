"""The thirteen mistakes of the reference implementation that must not come back (DESIGN §12), by number."""

import astropy.units as u
import numpy as np
import pytest
import torch
from scipy.special import voigt_profile
from test_fitting import observed, quick

from specutils_blase.data import pixel_edges
from specutils_blase.extrinsic import DopplerShift, RotationalBroadening
from specutils_blase.grids import SPEED_OF_LIGHT, Sampling, velocity_grid
from specutils_blase.instrument import LineSpreadFunction, PixelBinning
from specutils_blase.lines import LineEmulator
from specutils_blase.model import ForwardModel
from specutils_blase.profiles import voigt

F64 = torch.float64


def test_01_sigma_and_gamma_are_not_swapped():
    x = np.linspace(-1.0, 1.0, 201)
    ours = voigt(torch.tensor(x), torch.tensor(0.01, dtype=F64), torch.tensor(0.1, dtype=F64)).numpy()
    assert np.allclose(ours, voigt_profile(x, 0.01, 0.1), rtol=1e-10)


def test_02_the_voigt_profile_is_one():
    one = torch.ones((), dtype=F64)
    assert voigt(0.0 * one, one, one).item() == pytest.approx(voigt_profile(0.0, 1.0, 1.0), rel=1e-11)  # 0.2087


def width_at_half_maximum(velocity, profile):
    above = np.flatnonzero(profile > profile.max() / 2)
    ends = []
    for inside, outside in ((above[0], above[0] - 1), (above[-1], above[-1] + 1)):
        fraction = (profile[inside] - profile.max() / 2) / (profile[inside] - profile[outside])
        ends.append(velocity[inside] + fraction * (velocity[outside] - velocity[inside]))
    return ends[1] - ends[0]


@pytest.mark.parametrize("wavelength", [8100.0, 12700.0])
@pytest.mark.parametrize("step", [0.2, 0.5])
def test_03_kernels_are_in_velocity_whatever_the_grid(wavelength, step):
    grid = velocity_grid(wavelength, wavelength * np.exp(500 / SPEED_OF_LIGHT), step)
    middle = grid.numel() // 2
    delta = torch.zeros_like(grid)
    delta[middle] = 1.0
    velocity = ((grid / grid[middle]).log() * SPEED_OF_LIGHT).numpy()
    spread = LineSpreadFunction(55_000.0, grid)(delta).detach().numpy()
    assert width_at_half_maximum(velocity, spread) == pytest.approx(SPEED_OF_LIGHT / 55_000, rel=0.01)
    rotated = RotationalBroadening(200.0, step)(delta).detach().numpy()
    support = np.abs(velocity[rotated > 1e-9 * rotated.max()]).max()
    assert 200.0 - step < support < 200.0 + 2.5 * step


def test_03_derivative_to_vsini_at_one_kilometre_a_second():
    grid = velocity_grid(10000.0, 10003.0, 0.5)
    flux = 1.0 - 0.6 * torch.exp(-0.5 * ((grid - 10001.5) / 0.03).square())

    def total(vsini):
        return (RotationalBroadening(vsini, 0.5)(flux) * torch.cos(grid * 40.0)).sum()

    module = RotationalBroadening(1.0, 0.5)
    (analytic,) = torch.autograd.grad((module(flux) * torch.cos(grid * 40.0)).sum(), module.vsini)
    finite = (total(1.0 + 1e-4) - total(1.0 - 1e-4)) / 2e-4
    assert analytic.item() == pytest.approx(finite.item(), rel=1e-5)
    assert analytic.item() != 0.0


def test_04_ones_stay_ones_to_the_edge():
    grid = velocity_grid(10000.0, 10010.0, 0.5)
    ones = torch.ones_like(grid)
    for module in (RotationalBroadening(60.0, 0.5), LineSpreadFunction(20_000.0, grid)):
        assert torch.allclose(module(ones), ones, rtol=0, atol=1e-12)


def test_05_pixels_finer_than_the_grid_and_gaps():
    grid = velocity_grid(9998.0, 10012.0, 0.5)
    flux = 1.0 - 0.5 * torch.exp(-0.5 * ((grid - 10004.0) / 0.2).square())
    fine = torch.arange(10002.0, 10008.0, 0.003, dtype=F64)
    binned = PixelBinning(pixel_edges(fine), grid)(flux)
    assert binned.shape == fine.shape
    edges = pixel_edges(fine)
    integral = (binned * (edges[:, 1] - edges[:, 0])).sum().item()
    exact = 6.0 - 0.5 * 0.2 * np.sqrt(2 * np.pi)  # the Gaussian lies whole inside the pixels
    assert integral == pytest.approx(exact, rel=1e-6)
    pieces = [torch.arange(10001.0, 10003.0, 0.05, dtype=F64), torch.arange(10006.0, 10008.0, 0.05, dtype=F64)]
    joined = PixelBinning(pixel_edges(torch.cat(pieces)), grid)(flux)
    alone = torch.cat([PixelBinning(pixel_edges(piece), grid)(flux) for piece in pieces])
    assert torch.allclose(joined, alone, rtol=0, atol=1e-12)


def test_06_a_quadratic_continuum_is_recovered():
    result = quick(observed(continuum=(1.0, 0.0, 0.05)), star_lines=(), telluric_lines=())
    assert result.value("continuum_2") == pytest.approx(0.05, abs=2e-3)


@pytest.mark.parametrize("rv", [-500.0, 500.0])
def test_07_equivalent_width_moves_with_the_line(rv):
    emulator = LineEmulator([10000.0], [0.05], [0.05], [0.02])
    grid = velocity_grid(9960.0, 10040.0, 0.2)
    cell = grid * 0.2 / SPEED_OF_LIGHT
    with torch.no_grad():
        width = [((1.0 - emulator(Sampling(grid), DopplerShift(v).factor)) * cell).sum().item() for v in (0.0, rv)]
    assert width[1] / width[0] == pytest.approx(1.0 + rv / SPEED_OF_LIGHT, rel=1e-4)


def test_08_only_what_is_free_moves():
    result = quick(observed(), free=("continuum",), star_lines=("ln_area",), telluric_lines=(), max_iterations=4)
    assert result.value("rv") == -27.0
    star = result.ledger[result.ledger["component"] == "star"]
    assert (star["rv_offset"].value == 0).all()


def test_09_a_metre_a_second_makes_a_difference_in_float32():
    def flux(rv):
        emulator = LineEmulator([10000.0], [0.05], [0.03], [0.02])
        wavelength = torch.arange(9999.0, 10001.0, 0.05, dtype=F64)
        model = ForwardModel.for_order(wavelength, pixel_edges(wavelength), star=emulator, rv=rv).float()
        assert model.doppler.rv.dtype == F64
        with torch.no_grad():
            return model()

    moved = (flux(25.1) - flux(25.101)).abs().max().item()
    assert moved == pytest.approx((flux(25.1) - flux(25.2)).abs().max().item() / 100.0, rel=0.1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("law", ["log", "linear", "minnaert"])
def test_10_a_saturated_core_keeps_its_gradient(dtype, law):
    emulator = LineEmulator([10000.0], [3.0], [0.1], [0.05], law=law, wavelength_range=(9990, 10010)).to(dtype)
    emulator.ln_area.data.fill_(np.log(0.9))
    sampling = Sampling(torch.linspace(9999.0, 10001.0, 401, dtype=F64))
    core = emulator(sampling)[200]
    (gradient,) = torch.autograd.grad(core, emulator.ln_area)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().item() > 1e-6


def test_11_a_masked_spike_changes_nothing():
    data = observed()
    spoiled = data.flux.value.copy()
    spoiled[100] += 1e6
    mask = np.zeros(spoiled.size, dtype=bool)
    mask[100] = True
    options = {"star_lines": ("ln_area",), "telluric_lines": (), "max_iterations": 4}
    results = [
        quick(
            type(data)(
                flux=flux * u.one, spectral_axis=data.spectral_axis, uncertainty=data.uncertainty, mask=mask
            ),
            **options,
        )
        for flux in (data.flux.value, spoiled)
    ]  # fmt: skip
    assert (results[0].parameters["value"] == results[1].parameters["value"]).all()


def whole_model():
    star = LineEmulator([10000.5, 10001.5], [0.05, 0.2], [0.03, 0.05], [0.02, 0.04], law="minnaert")
    sky = LineEmulator([10000.9, 10001.2], [0.02, 0.03], [0.02, 0.02], [0.03, 0.02], sign=[1, -1])
    wavelength = torch.arange(10000.0, 10003.0, 0.05, dtype=F64)
    return ForwardModel.for_order(
        wavelength,
        pixel_edges(wavelength),
        star=star,
        telluric=sky,
        rv=-5.0,
        vsini=6.0,
        resolving_power=[55_000.0, 0.02],
    )


def test_12_the_whole_model_moves_to_meta_and_computes_there():
    """The meta device has no data: any tensor left behind on the CPU makes an operation fail."""
    model = whole_model()
    expected = model()
    model.freeze_windows()
    assert torch.equal(model(), expected)
    model = model.to("meta")
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    flux = model()
    assert flux.is_meta
    assert flux.shape == expected.shape
    flux.sum().backward()
    assert all(parameter.grad is not None and parameter.grad.is_meta for parameter in model.parameters())


def test_12_devices(device):
    model = whole_model().to(device)
    model().sum().backward()
    back = model.to("cpu")
    assert torch.allclose(back(), whole_model()(), rtol=0, atol=1e-10)


def test_13_importing_is_silent():
    """In tests/test_imports.py: a subprocess that prints nothing, opens nothing and leaves global state alone."""
    import test_imports

    assert callable(test_imports.test_import_is_silent_and_light)
