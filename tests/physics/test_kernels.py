"""Rotation and line-spread kernels against quadrature, their moments, and what they do to spectra."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad

from specutils_blase.physics.kernels import (
    FWHM_PER_SIGMA,
    convolve,
    gaussian_half_width,
    gaussian_taps,
    lagrange_weights,
    rotation_half_width,
    rotation_taps,
    tap_tangents,
)
from specutils_blase.simulate import rotation_kernel

F64 = torch.float64
LIMB = [(0.0, 0.0), (0.6, 0.0), (0.4, 0.2), (0.1, 0.8)]
VSINI = [0.1, 0.7, 1.0, 2.3, 7.0, 40.4]  # cells
SIGMA = [0.05, 0.3, 1.0, 2.7, 9.0]  # cells


def scalar(value):
    return torch.tensor(value, dtype=F64)


def rotation(vsini, u1=0.0, u2=0.0, room=0):
    return rotation_taps(scalar(vsini), scalar(u1), scalar(u2), rotation_half_width(vsini) + room)


def gaussian(sigma, room=0):
    return gaussian_taps(scalar(sigma), gaussian_half_width(sigma) + room)


def rounding(taps):
    """Of one tap: moments about far cells cancel, up to the third power of their distance.

    Neighbouring taps share these errors with alternating signs, so that what a spectrum sees of them is 1e-10 even for
    3000 cells, see `test_rounding_of_far_taps_does_not_reach_the_spectrum`.
    """
    return 1e-13 + 3e-16 * (taps.shape[-1] // 2) ** 3


def offsets(taps):
    """Cell of each tap, the middle one at zero."""
    n_half = taps.shape[-1] // 2
    return torch.arange(-n_half, n_half + 1, dtype=F64)


def moment(taps, power):
    return float((taps * offsets(taps) ** power).sum())


def basis(t):
    """Interpolation kernel of cubic Lagrange interpolation, written down from its definition."""
    t = abs(t)
    if t <= 1:
        return (1 - t) * (1 + t) * (2 - t) / 2
    return (1 - t) * (2 - t) * (3 - t) / 6 if t < 2 else 0.0


def rotation_density(vsini, u1, u2):
    """Kernel per cell in the variable θ, x = sin θ, which has no singular slope at the ends; and its range."""
    return lambda theta: rotation_kernel(np.sin(theta), u1, u2) * np.cos(theta), lambda theta: vsini * np.sin(theta)


def rotation_truth(vsini, u1, u2, power_or_tap, is_tap=True):
    """∫ K(t) φ(t - j) dt, or ∫ K(t) t^p dt, by scipy.integrate.quad between the knots of φ."""
    density, position = rotation_density(vsini, u1, u2)
    knots = np.arange(-np.floor(vsini), np.floor(vsini) + 1)
    edges = np.unique(np.r_[-np.pi / 2, np.arcsin(np.clip(knots / vsini, -1, 1)), np.pi / 2])
    function = (lambda t: basis(t - power_or_tap)) if is_tap else (lambda t: t**power_or_tap)
    return sum(quad(lambda a: density(a) * function(position(a)), *piece, epsabs=1e-14)[0] for piece in pairwise(edges))


def gaussian_truth(sigma, tap):
    """∫ K(t) φ(t - j) dt of a Gaussian."""

    def integrand(t):
        return np.exp(-0.5 * (t / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi)) * basis(t - tap)

    edges = np.unique(np.r_[np.arange(tap - 2, tap + 3), np.clip([-8 * sigma, 0, 8 * sigma], tap - 2, tap + 2)])
    return sum(quad(integrand, a, b, epsabs=1e-14)[0] for a, b in pairwise(edges))


# --- taps -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("u1, u2", LIMB)
@pytest.mark.parametrize("vsini", VSINI)
def test_rotation_taps_are_integrals_of_the_kernel(vsini, u1, u2):
    taps = rotation(vsini, u1, u2)
    chosen = torch.linspace(0, taps.numel() - 1, min(taps.numel(), 15)).long()
    truth = [rotation_truth(vsini, u1, u2, float(offset)) for offset in offsets(taps)[chosen]]
    np.testing.assert_allclose(taps[chosen].numpy(), truth, atol=rounding(taps))


@pytest.mark.parametrize("sigma", SIGMA)
def test_gaussian_taps_are_integrals_of_the_kernel(sigma):
    """Up to what lies beyond six standard deviations, 2e-9 of the area."""
    taps = gaussian(sigma)
    truth = [gaussian_truth(sigma, float(offset)) for offset in offsets(taps)]
    np.testing.assert_allclose(taps.numpy(), truth, atol=5e-9)
    wide = gaussian_taps(scalar(sigma), int(np.ceil(9 * sigma)) + 1)
    truth = [gaussian_truth(sigma, float(offset)) for offset in offsets(wide)]
    np.testing.assert_allclose(wide.numpy(), truth, atol=rounding(wide))


@pytest.mark.parametrize("u1, u2", LIMB)
def test_rotation_kernel_is_the_integrated_disc(u1, u2):
    """Fine taps are K/v: of the simulator's formula, and of the limb-darkening law integrated over the disc."""
    vsini = 400.0
    taps = rotation(vsini, u1, u2)
    x = offsets(taps) / vsini
    inner = (x.abs() < 0.99).numpy()
    np.testing.assert_allclose(taps.numpy()[inner] * vsini, rotation_kernel(x.numpy()[inner], u1, u2), atol=3e-5)

    def chord(at):
        s = np.sqrt(1 - at**2)

        def intensity(y):
            mu = np.sqrt(max(s**2 - y**2, 0.0))
            return 1 - u1 * (1 - mu) - u2 * (1 - mu) ** 2

        return quad(lambda theta: intensity(s * np.sin(theta)) * s * np.cos(theta), -np.pi / 2, np.pi / 2)[0]

    total = quad(chord, -1, 1)[0]
    for offset in (-333, 0, 120):
        found = float(taps[taps.numel() // 2 + offset]) * vsini
        assert found == pytest.approx(chord(offset / vsini) / total, abs=3e-5)


@given(vsini=st.floats(1e-3, 60.0), u1=st.floats(0.0, 1.0), u2=st.floats(0.0, 1.0), room=st.integers(0, 5))
def test_rotation_moments(vsini, u1, u2, room):
    """Area one, centred, symmetric, and of the kernel's own variance, however much narrower than a cell."""
    u2 = min(u2, 1.0 - u1)
    taps = rotation(vsini, u1, u2, room)
    # ∫ x² K dx from the Beta functions of s, s², s³.
    c1, c2, c3 = 2 * (1 - u1 - u2), np.pi / 2 * (u1 + 2 * u2), -4 / 3 * u2
    variance = (c1 * np.pi / 8 + c2 * 4 / 15 + c3 * np.pi / 16) / (np.pi * (1 - u1 / 3 - u2 / 6))
    assert moment(taps, 0) == pytest.approx(1.0, abs=1e-13)
    assert moment(taps, 1) == pytest.approx(0.0, abs=1e-10)
    assert moment(taps, 2) == pytest.approx(variance * vsini**2, rel=1e-9, abs=1e-12)
    assert torch.allclose(taps, taps.flip(0), rtol=0, atol=rounding(taps))


@given(sigma=st.floats(1e-3, 30.0), room=st.integers(0, 5))
def test_gaussian_moments(sigma, room):
    taps = gaussian(sigma, room)
    assert moment(taps, 0) == pytest.approx(1.0, abs=1e-13)
    assert moment(taps, 1) == pytest.approx(0.0, abs=1e-10)
    assert moment(taps, 2) == pytest.approx(sigma**2, rel=1e-7)  # the cut at six sigma takes 8e-8 of the variance
    assert torch.allclose(taps, taps.flip(0), rtol=0, atol=rounding(taps))


@pytest.mark.parametrize("vsini", [0.3, 0.1, 0.01])
def test_kernels_much_narrower_than_a_cell(vsini):
    """They move a smooth spectrum by half its curvature times their variance, not by nothing.

    Cubic Lagrange interpolants have kinks at the nodes: with f the function, F its fourth derivative and t the distance
    from a node they are f - (2|t| - t² - 2|t|³ + t⁴)F/24. A kernel narrower than a cell sees that kink as well.
    """
    width = 25.0  # cells
    x = torch.arange(-200, 201, dtype=F64) / width
    line = 0.7 * torch.exp(-0.5 * x**2)
    second = line * (1 - x**2) / width**2
    fourth = -line * (x**4 - 6 * x**2 + 3) / width**4
    sigma = vsini / 2  # so that the variances are equal
    kernels = {  # mean |t| and mean |t|³
        rotation: (4 / (3 * np.pi) * vsini, 8 / (15 * np.pi) * vsini**3),
        gaussian: (np.sqrt(2 / np.pi) * sigma, np.sqrt(8 / np.pi) * sigma**3),
    }
    for kernel, (first, third) in kernels.items():
        change = convolve(1.0 - line, kernel(vsini if kernel is rotation else sigma)) - (1.0 - line)
        kink = -(2 * first - sigma**2 - 2 * third) / 24 * fourth
        accuracy = 1e-15 + 1e-2 * float(kink.abs().max())
        torch.testing.assert_close(change[20:-20], (0.5 * sigma**2 * second + kink)[20:-20], rtol=0, atol=accuracy)


def test_support():
    """Nothing beyond v sin i plus the interpolation's own two cells, and something up to it."""
    for vsini in (7.0, 33.3):
        taps = rotation(vsini, 0.4, 0.2, room=8)
        beyond = offsets(taps).abs() >= vsini + 2
        assert taps[beyond].abs().max() < 1e-13
        assert taps[offsets(taps).abs() <= vsini - 1].min() > 1e-3 / vsini
        torch.testing.assert_close(taps[8:-8], rotation(vsini, 0.4, 0.2), rtol=0, atol=1e-13)


# --- derivatives ------------------------------------------------------------------------------------------------------


def differences(function, point, direction, size):
    """Five-point difference of a function of a vector along a direction."""
    values = [function(point + k * size * direction) for k in (-2, -1, 1, 2)]
    return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * size)


@pytest.mark.parametrize("vsini", [1e-2, 0.1, 0.7, 1.3, 2.6, 17.4])
def test_rotation_derivatives_against_differences(vsini):
    """Also of a star that hardly turns: 2.6 cells are 1 km/s, 0.01 are a thousandth of what HPF resolves."""
    n_half, axes = rotation_half_width(vsini) + 1, torch.eye(3, dtype=F64)

    def taps(p):
        return rotation_taps(p[0], p[1], p[2], n_half)

    point = torch.tensor([vsini, 0.4, 0.2], dtype=F64)
    found = tap_tangents(taps, point, axes)
    for tangent, axis, size in zip(found, axes, (1e-3 * vsini, 1e-3, 1e-3), strict=True):
        truth = differences(taps, point, axis, size)
        torch.testing.assert_close(tangent, truth, rtol=0, atol=1e-5 * float(truth.abs().max()) + 1e-10)
    assert float(found[0].abs().max()) > 0.05 * min(vsini, vsini**-2)


@pytest.mark.parametrize("sigma", [1e-2, 0.1, 0.9, 4.2])
def test_gaussian_derivative_against_differences(sigma):
    n_half = gaussian_half_width(sigma) + 1
    one = torch.ones((), dtype=F64)
    found = tap_tangents(lambda s: gaussian_taps(s, n_half), scalar(sigma), one.unsqueeze(0))[0]
    truth = differences(lambda s: gaussian_taps(s, n_half), scalar(sigma), one, 1e-3 * sigma)
    torch.testing.assert_close(found, truth, rtol=0, atol=1e-7 * float(truth.abs().max()) + 1e-10)


def test_tangents_do_not_load_forward_mode():
    """Torch's forward mode loads its jit, which warns (an error here) and takes a second; and they keep no graph."""
    sigma = torch.tensor([0.5, 2.0], dtype=F64, requires_grad=True)
    with torch.no_grad():
        tangents = tap_tangents(lambda s: gaussian_taps(s, 12), sigma.detach(), torch.eye(2, dtype=F64))
    assert not tangents.requires_grad
    full = torch.autograd.functional.jacobian(lambda s: gaussian_taps(s, 12), sigma)
    torch.testing.assert_close(tangents, full.movedim(-1, 0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("vsini", [0.05, 0.9, 3.4])
def test_rotation_gradcheck(vsini):
    inputs = [scalar(t).requires_grad_() for t in (vsini, 0.3, 0.25)]
    assert torch.autograd.gradcheck(lambda *p: rotation_taps(*p, rotation_half_width(vsini) + 1), inputs)


@pytest.mark.parametrize("vsini", [1.0, 2.0, 5.0])
def test_rotation_derivative_where_the_kernel_ends_on_a_node(vsini):
    """Infinite slopes of arcsin and of the square root meet at ±1: the derivative is finite, and continuous there."""

    def slope(at):
        at = scalar(at).requires_grad_()
        taps = rotation_taps(at, scalar(0.4), scalar(0.2), int(vsini) + 2)
        return torch.autograd.grad((taps * torch.cos(offsets(taps))).sum(), at)[0]

    left, middle, right = (slope(vsini + d) for d in (-1e-9, 0.0, 1e-9))
    assert torch.isfinite(middle)
    torch.testing.assert_close(torch.stack([left, right]), middle.expand(2), rtol=1e-3, atol=1e-6)


def test_gaussian_gradcheck():
    sigma = torch.tensor([0.05, 0.8, 2.5], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda s: gaussian_taps(s, 16), (sigma,))


# --- convolution ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "taps", [rotation(30.2, 0.4, 0.2), gaussian(8.0), gaussian(0.05)], ids=["vsini", "lsf", "thin"]
)
def test_ones_stay_ones(taps, dtype, tolerances):
    ones = torch.ones(50, dtype=dtype)  # shorter than the kernels
    torch.testing.assert_close(convolve(ones, taps), ones, **tolerances[dtype])
    torch.testing.assert_close(convolve(ones, taps.expand(50, -1)), ones, **tolerances[dtype])


def test_convolution_against_quadrature():
    """A Gaussian line through a Gaussian: widths add in squares; through rotation: scipy's quad.

    Sampled at 14 nodes a full width: 2e-5, which falls with the fourth power, as the next test says.
    """
    x = torch.arange(-150, 151, dtype=F64)

    def line(t, s):
        return np.exp(-0.5 * (np.asarray(t) / s) ** 2) / s

    flux = torch.tensor(line(x, 6.0))
    wider = torch.tensor(line(x, np.hypot(6.0, 3.3)))
    torch.testing.assert_close(convolve(flux, gaussian(3.3)), wider, rtol=0, atol=5e-5 * float(wider.max()))
    density, position = rotation_density(21.7, 0.4, 0.2)
    found = convolve(flux, rotation(21.7, 0.4, 0.2))
    for at in (-30, -7, 0, 12, 25):
        truth = quad(lambda a, at=at: density(a) * line(at - position(a), 6.0), -np.pi / 2, np.pi / 2, limit=200)[0]
        assert float(found[at + 150]) == pytest.approx(truth, abs=5e-5 * float(found.max()))


def test_convolution_error_falls_with_the_fourth_power_of_the_cell():
    """Halving the cells of the same physical problem."""

    def error(cell):
        x = torch.arange(-int(120 / cell), int(120 / cell) + 1, dtype=F64) * cell
        smeared = convolve(torch.exp(-0.5 * (x / 6.0) ** 2), gaussian(3.3 / cell))
        s = np.hypot(6.0, 3.3)
        return float((smeared - 6.0 / s * torch.exp(-0.5 * (x / s) ** 2)).abs().max())

    assert error(2.0) / error(1.0) == pytest.approx(16.0, rel=0.15)
    assert error(1.0) / error(0.5) == pytest.approx(16.0, rel=0.15)


@pytest.mark.parametrize("cells", [400.0, 3000.0])
def test_rounding_of_far_taps_does_not_reach_the_spectrum(cells):
    """200 km/s on the finest grid are 2000 cells: the line is the exact kernel at its centre."""
    x = torch.arange(-3600, 3601, dtype=F64)
    density, position = rotation_density(cells, 0.4, 0.2)
    found = convolve(torch.exp(-0.5 * (x / 60.0) ** 2), rotation(cells, 0.4, 0.2))
    for at in (0, 50, 333):
        inner = np.arcsin(np.clip([(at - 600) / cells, (at + 600) / cells], -1, 1))
        truth = quad(
            lambda a, at=at: density(a) * np.exp(-0.5 * ((at - position(a)) / 60.0) ** 2),
            *inner,
            limit=500,
            epsabs=1e-13,
        )[0]
        assert float(found[at + 3600]) == pytest.approx(truth, abs=5e-8 * float(found.max()))


@given(a=st.floats(0.2, 6.0), b=st.floats(0.2, 6.0))
@settings(max_examples=40)
def test_gaussians_compose(a, b):
    """Two line spreads one after the other are one of the root of the sum of squares: for every moment up to the third,
    hence for a smooth spectrum."""
    x = torch.arange(-200, 201, dtype=F64)
    flux = torch.exp(-0.5 * (x / 12.0) ** 2)
    twice = convolve(convolve(flux, gaussian(a)), gaussian(b))
    once = convolve(flux, gaussian(float(np.hypot(a, b))))
    torch.testing.assert_close(twice, once, rtol=0, atol=3e-6)


@pytest.mark.parametrize("n", [60, 7])
def test_taps_per_node(n):
    """The same for every node: as constant ones. Different: each node gathers with its own."""
    torch.manual_seed(3)
    flux = torch.rand(n, dtype=F64)
    constant = gaussian(2.0)
    torch.testing.assert_close(convolve(flux, constant.expand(n, -1)), convolve(flux, constant), rtol=0, atol=1e-14)
    sigma = torch.linspace(1.0, 2.0, n, dtype=F64)
    varying = gaussian_taps(sigma, gaussian_half_width(2.0))
    found = convolve(flux, varying)
    for node in (0, n // 2, n - 1):
        alone = convolve(flux, gaussian_taps(sigma[node], gaussian_half_width(2.0)))[node]
        assert float(found[node]) == pytest.approx(float(alone), abs=1e-14)


def test_convolution_keeps_leading_dimensions_and_orientation():
    """An asymmetric kernel moves light to where its long side points."""
    taps = torch.tensor([0.0, 0.0, 0.25, 0.75, 0.0], dtype=F64)  # most of the light one cell up
    flux = torch.zeros(2, 3, 9, dtype=F64)
    flux[1, 2, 4] = 1.0
    smeared = convolve(flux, taps)
    assert smeared.shape == flux.shape
    torch.testing.assert_close(smeared[1, 2, 3:7], torch.tensor([0.0, 0.25, 0.75, 0.0], dtype=F64))
    assert float(smeared[0].abs().max()) == 0.0
    per_node = convolve(flux, taps.expand(9, -1))
    torch.testing.assert_close(per_node, smeared)


def test_convolution_gradcheck():
    torch.manual_seed(4)
    flux = torch.rand(12, dtype=F64, requires_grad=True)
    vsini = scalar(1.4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda f, v: convolve(f, rotation_taps(v, scalar(0.4), scalar(0.2), 3)), (flux, vsini)
    )


@settings(max_examples=30)
@given(u=st.floats(0.0, 1.0), coefficients=st.tuples(*[st.floats(-2, 2)] * 4))
def test_interpolation_is_exact_for_cubics(u, coefficients):
    powers = torch.tensor([1.0, u, u**2, u**3], dtype=F64)
    weights = lagrange_weights(powers)
    nodes = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=F64)
    cubic = sum(c * nodes**k for k, c in enumerate(coefficients))
    truth = sum(c * u**k for k, c in enumerate(coefficients))
    assert float(weights @ cubic) == pytest.approx(truth, abs=1e-13)
    np.testing.assert_allclose(weights.numpy(), [basis(u - node) for node in (-1, 0, 1, 2)], atol=1e-14)


def test_gaussian_full_width_at_half_maximum():
    """FWHM_PER_SIGMA is what it says: a finely sampled kernel falls to half at half of it."""
    taps = gaussian(200.0)
    half = 0.5 * FWHM_PER_SIGMA * 200.0
    at = float(np.interp(half, offsets(taps).numpy(), taps.numpy()))
    assert at / float(taps.max()) == pytest.approx(0.5, abs=1e-5)
