"""Grids: interpolation between levels, pixel integration, and what stays float64."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from specutils_blase.model.instrument import PixelBinning
from specutils_blase.physics.grids import SPEED_OF_LIGHT, DoublePrecision, Sampling, pixel_overlap, velocity_grid

F64 = torch.float64


def phoenix_like():
    """Native sampling whose step doubles in the middle, with a short stretch missing."""
    wavelength = np.concatenate([np.arange(9990.0, 10000.0, 0.01), np.arange(10000.0, 10020.0, 0.02)])
    return torch.tensor(wavelength[(wavelength < 10005.0) | (wavelength > 10005.2)])


SAMPLINGS = {
    "uniform": Sampling(velocity_grid(10000.0, 10030.0, 0.3)),
    "native": Sampling(phoenix_like()),
    "linear": Sampling(torch.arange(8000.0, 8060.0, 0.05, dtype=F64)),
    "short": Sampling(velocity_grid(10000.0, 10000.2, 0.3)),
}


@pytest.fixture(params=SAMPLINGS)
def sampling(request):
    return SAMPLINGS[request.param]


def interpolated(sampling, level, function):
    """A function of λ evaluated on one level only and carried down to level 0."""
    values = [torch.zeros_like(sampling.level(at)) for at in range(sampling.n_level)]
    values[level] = function(sampling.level(level))
    return sampling.collapse(torch.cat(values))


# --- velocity grid ----------------------------------------------------------------------------------------------------


def test_velocity_grid():
    """Equal steps in velocity, from the first wavelength to at least the last, and not a step more."""
    grid = velocity_grid(8000.0, 8100.0, 0.25)
    steps = SPEED_OF_LIGHT * grid.log().diff()
    torch.testing.assert_close(steps, torch.full_like(steps, 0.25), rtol=1e-8, atol=0)
    assert grid[0] == 8000.0
    assert grid[-2] < 8100.0 <= grid[-1]


# --- levels -----------------------------------------------------------------------------------------------------------


def test_levels_nest(sampling):
    """Every level covers level 0 with nodes to spare, in steps of 2^ℓ medians; every other node is shared."""
    ln = sampling.wavelength.log()
    for level in range(1, sampling.n_level):
        nodes = sampling.level(level).log()
        steps = nodes.diff() / (sampling.step * 2**level)
        torch.testing.assert_close(steps, torch.ones_like(steps), rtol=1e-6, atol=0)
        assert nodes[2] < ln[0] and nodes[-3] > ln[-1]
        if level > 1:
            finer = sampling.level(level - 1)
            inside = sampling.level(level)
            inside = inside[(inside >= finer[0] - 1e-6) & (inside <= finer[-1] + 1e-6)]
            distance = (finer.unsqueeze(0) - inside.unsqueeze(1)).abs().amin(1)
            assert distance.max() < 1e-8


def test_interpolation_is_exact_for_polynomials(sampling):
    """Ten points per interpolation, hence degree 9 in ln λ, from every level and up to both ends."""
    torch.manual_seed(5)
    coefficients = torch.randn(10, dtype=F64)
    low, high = sampling.wavelength[0].log(), sampling.wavelength[-1].log()

    def polynomial(wavelength):
        x = (2 * wavelength.log() - low - high) / (high - low)
        return sum(c * x**k for k, c in enumerate(coefficients))

    for level in range(sampling.n_level):
        found = interpolated(sampling, level, polynomial)
        torch.testing.assert_close(found, polynomial(sampling.wavelength), rtol=0, atol=2e-10)


@pytest.mark.parametrize("nodes, accuracy", [(16.0, 1e-8), (32.0, 2e-10)])
def test_interpolation_of_smooth_functions(nodes, accuracy):
    """A Gaussian of 16 nodes' width, the narrowest that a level carries: ten points, error ∝ width⁻¹⁰."""
    sampling = SAMPLINGS["uniform"]
    for level in range(1, 5):
        width = nodes * sampling.step * 2**level

        def bump(wavelength, width=width):
            return torch.exp(-0.5 * ((wavelength / 10013.3).log() / width) ** 2)

        error = interpolated(sampling, level, bump) - bump(sampling.wavelength)
        assert error.abs().max() < accuracy


def test_collapse_adds_levels_and_keeps_rows(dtype, tolerances):
    """Levels add up; leading dimensions are rows of their own."""
    sampling = SAMPLINGS["native"]
    torch.manual_seed(6)
    values = torch.rand(3, sampling.nodes.numel(), dtype=dtype)
    total = sampling.collapse(values)
    assert total.dtype == dtype
    parts, start = 0.0, 0
    for level in range(sampling.n_level):
        stop = start + sampling.level(level).numel()
        parts = parts + sampling.collapse(
            torch.nn.functional.pad(values[:, start:stop], (start, values.shape[1] - stop))
        )
        start = stop
    torch.testing.assert_close(total, parts, **tolerances[dtype])
    torch.testing.assert_close(total[1], sampling.collapse(values[1]), **tolerances[dtype])


def test_collapse_gradcheck():
    sampling = SAMPLINGS["short"]
    values = torch.rand(sampling.nodes.numel(), dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(sampling.collapse, values)


@pytest.mark.parametrize("wavelength", [[1.0], [1.0, 1.0], [2.0, 1.0], [[1.0, 2.0]], [1.0, float("nan")]])
def test_sampling_refuses(wavelength):
    with pytest.raises(ValueError, match="strictly ascending"):
        Sampling(torch.tensor(wavelength))


# --- pixels -----------------------------------------------------------------------------------------------------------


def spectrum(wavelength):
    """A smooth spectrum with a known integral: a slope and two Gaussian lines of 5 to 8 nodes of 0.4 km/s."""
    wavelength = np.asarray(wavelength, dtype=float)
    lines = sum(depth * np.exp(-0.5 * ((wavelength - center) / width) ** 2) for depth, center, width in LINES)
    return 1.0 + 2e-3 * (wavelength - 10010.0) - lines


def integral(low, high):
    """∫ spectrum dλ in closed form."""
    from scipy.special import erf

    def primitive(x):
        lines = sum(
            depth * width * np.sqrt(np.pi / 2) * erf((x - center) / width / np.sqrt(2))
            for depth, center, width in LINES
        )
        return x - 10010.0 + 1e-3 * (x - 10010.0) ** 2 - lines

    return primitive(np.asarray(high)) - primitive(np.asarray(low))


LINES = ((0.6, 10006.03, 0.11), (0.3, 10012.4, 0.066))
GRID = velocity_grid(9999.0, 10021.0, 0.4)


def touching(low, high, n):
    edges = torch.linspace(low, high, n + 1, dtype=F64)
    return torch.stack([edges[:-1], edges[1:]], dim=1)


def means(edges, grid=GRID):
    return PixelBinning(edges, grid)(torch.tensor(spectrum(grid))).numpy()


PIXELS = {
    "of five nodes": touching(10001.0, 10019.0, 270),
    "finer than the grid": touching(10004.0, 10014.0, 4001),
    "irregular": torch.stack([torch.linspace(1, 18, 100, dtype=F64) ** 1.01 + 10000.5] * 2, 1)
    + torch.tensor([-0.02, 0.07]),
    "far apart": torch.tensor([[10001.0, 10001.01], [10006.0, 10006.3], [10017.7, 10019.9]], dtype=F64),
    "one wide": torch.tensor([[10000.7, 10019.3]], dtype=F64),
}


@pytest.mark.parametrize("name", PIXELS)
def test_pixel_means_are_integrals(name):
    """Of the exact spectrum. Cubics interpolate the narrower line, of five nodes, to 3.4e-5 between the nodes."""
    edges = PIXELS[name]
    low, high = edges.numpy().T
    np.testing.assert_allclose(means(edges), integral(low, high) / (high - low), atol=4e-5)


@pytest.mark.parametrize("name", ["of five nodes", "finer than the grid", "one wide"])
def test_flux_is_conserved(name):
    """Σ F Δλ over pixels that touch is the integral, whatever the pixels."""
    low, high = PIXELS[name].numpy().T
    found = np.sum(means(PIXELS[name]) * (high - low))
    assert found == pytest.approx(integral(low[0], high[-1]), rel=1e-11)


def test_flux_does_not_depend_on_how_it_is_cut():
    """The same interpolant under any pixels: coarse sums equal fine sums to rounding."""
    fine, coarse = touching(10004.0, 10014.0, 4000), touching(10004.0, 10014.0, 40)
    np.testing.assert_allclose(means(fine).reshape(40, 100).mean(1), means(coarse), atol=1e-12)


def test_pixel_error_falls_with_the_fourth_power_of_the_step():
    edges = PIXELS["of five nodes"]
    truth = integral(*edges.numpy().T) / np.diff(edges.numpy(), axis=1)[:, 0]
    errors = [np.abs(means(edges, velocity_grid(9999.0, 10021.0, step)) - truth).max() for step in (0.6, 0.3, 0.15)]
    assert errors[0] / errors[1] == pytest.approx(16, rel=0.25)
    assert errors[1] / errors[2] == pytest.approx(16, rel=0.25)
    assert errors[2] < 1e-6


@pytest.mark.parametrize("name", PIXELS)
def test_pixels_of_ones_are_one(name):
    start, weight = pixel_overlap(PIXELS[name], GRID)
    width = PIXELS[name].diff(dim=1).squeeze(1)
    rounding = 10020.0 / width * torch.finfo(F64).eps  # of the edges themselves
    assert ((weight.sum(1) - 1.0).abs() < 4.0 * rounding + 1e-12).all()
    # A pixel uses only the nodes whose cells it touches, and one more on either side.
    low, high = GRID[start], GRID[(start + weight.shape[1] - 1).clamp(max=len(GRID) - 1)]
    assert (low <= PIXELS[name][:, 0]).all() and (high >= PIXELS[name][:, 1]).all()
    used = weight.abs() > 1e-12
    node = GRID[(start.unsqueeze(1) + torch.arange(weight.shape[1])).clamp(max=len(GRID) - 1)]
    reach = 2.001 * (GRID[1] / GRID[0] - 1) * 10020
    assert (node[used] > (PIXELS[name][:, :1] - reach).expand_as(node)[used]).all()
    assert (node[used] < (PIXELS[name][:, 1:] + reach).expand_as(node)[used]).all()


@settings(max_examples=40)
@given(st.floats(10002.0, 10017.0), st.floats(1e-4, 1.5))
def test_any_pixel(low, width):
    edges = torch.tensor([[low, low + width]], dtype=F64)
    assert means(edges)[0] == pytest.approx(float(integral(low, low + width)) / width, abs=4e-5)


def test_a_pixel_that_ends_on_a_node():
    """Edges that fall on nodes, up to rounding either side: no cell is lost or counted twice."""
    for shift in (0.0, 1e-10, -1e-10):
        edges = torch.stack([GRID[10:200:10] + shift, GRID[20:210:10] + shift], dim=1)
        low, high = edges.numpy().T
        np.testing.assert_allclose(means(edges), integral(low, high) / (high - low), atol=2e-5)


@pytest.mark.parametrize("edges", [[[9998.0, 10001.0]], [[10001.0, 10021.01]], [[9999.005, 9999.5]]])
def test_a_grid_that_does_not_reach_is_refused(edges):
    with pytest.raises(ValueError, match="does not reach two nodes beyond"):
        pixel_overlap(torch.tensor(edges, dtype=F64), GRID)


def test_binning_keeps_leading_dimensions(dtype, tolerances):
    binning = PixelBinning(PIXELS["far apart"], GRID)
    flux = torch.rand(2, 3, len(GRID), dtype=dtype)
    found = binning(flux)
    assert found.dtype == dtype
    torch.testing.assert_close(found[1, 2], binning(flux[1, 2]), **tolerances[dtype])


# --- double precision -------------------------------------------------------------------------------------------------


class Holder(DoublePrecision):
    double = ("wavelength", "velocity")

    def __init__(self):
        super().__init__()
        self.register_buffer("wavelength", torch.tensor([10000.000123456789], dtype=F64))
        self.velocity = nn.Parameter(torch.tensor(-9.123456789, dtype=F64))
        self.depth = nn.Parameter(torch.tensor(0.1, dtype=F64))


@pytest.mark.parametrize(
    "move",
    [
        lambda module: module.float(),
        lambda module: module.to(torch.float32),
        lambda module: module.half().float(),
        lambda module: nn.Sequential(module).float()[0],
    ],
    ids=["float", "to", "half", "nested"],
)
def test_precision_survives_conversion(move):
    """To the last bit: not float32 values in a float64 tensor. What is not named converts."""
    module = move(Holder())
    assert module.wavelength.dtype == module.velocity.dtype == F64
    assert float(module.wavelength) == 10000.000123456789
    assert float(module.velocity.detach()) == -9.123456789
    assert module.depth.dtype == torch.float32
    assert isinstance(module.velocity, nn.Parameter) and module.velocity.requires_grad


def test_precision_on_devices(device):
    module = Holder().to(device, torch.float32)
    assert module.wavelength.device.type == module.velocity.device.type == module.depth.device.type == device.type
    assert module.wavelength.dtype == module.velocity.dtype == F64
    assert float(module.wavelength) == 10000.000123456789
    meta = Holder().to("meta")
    assert meta.wavelength.is_meta and meta.velocity.is_meta and meta.depth.is_meta
    assert meta.wavelength.dtype == F64 and meta.float().velocity.dtype == F64
