"""The Voigt profile against scipy.special and mpmath, and its identities."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import voigt_profile, wofz

from specutils_blase.physics.voigt import faddeeva, voigt, voigt_fwhm, voigt_with_derivatives

F64 = torch.float64

# Errors in units of the peak, and of the peak over the width for derivatives. Measured over the grids below:
# value 2.9e-13 and 5.2e-7, derivatives 4e-11 and 7e-6.
VALUE_ERROR = {torch.float64: 1e-12, torch.float32: 2e-6}
SLOPE_ERROR = {torch.float64: 1e-10, torch.float32: 2e-5}

DECADES = np.logspace(-4, 5, 181)
OFFSETS, RATIOS = np.concatenate([[0.0], DECADES]), np.concatenate([[0.0, 1e-7], DECADES])

# Both sides of the seams between the two expansions, |z| = 8 and 5, that is x² + γ² = 2|z|² σ², in several directions.
SEAM = np.array(
    [
        (radius * np.cos(angle), radius * np.sin(angle))
        for radius in np.outer([8.0, 5.0], np.sqrt(2.0) * (1.0 + np.array([-1e-2, -1e-9, 1e-9, 1e-2]))).ravel()
        for angle in (1e-7, 1e-3, 0.3, 0.8, 1.2, 1.5, np.pi / 2)
    ]
)

exact = st.floats(0.01, 100.0)


def grid_of(dtype):
    """Offsets and Lorentzian widths in units of σ, as they are after rounding to `dtype`."""
    x, gamma = np.meshgrid(OFFSETS, RATIOS)
    return torch.tensor(x, dtype=dtype), torch.tensor(gamma, dtype=dtype)


def reference(x, sigma, gamma):
    """V by scipy.special.wofz."""
    return wofz((x + 1j * gamma) / (sigma * np.sqrt(2.0))).real / (sigma * np.sqrt(2.0 * np.pi))


def reference_derivatives(x, sigma, gamma):
    """V, ∂V/∂x, ∂V/∂σ, ∂V/∂γ by mpmath with 40 digits: dw/dz = -2zw + 2i/√π loses |z|² of them."""
    mp = pytest.importorskip("mpmath")
    with mp.workdps(40):
        x, sigma, gamma = mp.mpf(x), mp.mpf(sigma), mp.mpf(gamma)
        k = 1 / (sigma * mp.sqrt(2))
        z = mp.mpc(x, gamma) * k
        w = mp.exp(-z * z) * mp.erfc(mp.mpc(0, -1) * z)
        slope = -2 * z * w + mp.mpc(0, 2) / mp.sqrt(mp.pi)
        norm = k / mp.sqrt(mp.pi)
        value, d_x, d_gamma = w.real * norm, slope.real * norm * k, -slope.imag * norm * k
        d_sigma = -(value + (slope * z).real * norm) / sigma
        return [float(t) for t in (value, d_x, d_sigma, d_gamma)]


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, 0.01])
@pytest.mark.parametrize("oracle", [reference, voigt_profile], ids=["wofz", "voigt_profile"])
def test_value_against_scipy(oracle, sigma, dtype, device):
    """Over x/σ and γ/σ from 1e-4 to 1e5, and zero, and 1e-7: in units of the peak."""
    x, gamma = (t * sigma for t in grid_of(dtype))
    value = voigt(x.to(device), torch.tensor(sigma, dtype=dtype, device=device), gamma.to(device)).cpu()
    x, gamma, sigma = x.double().numpy(), gamma.double().numpy(), torch.tensor(sigma, dtype=dtype).item()
    error = np.abs(value.double().numpy() - oracle(x, sigma, gamma)) / oracle(0.0, sigma, gamma)
    assert value.dtype == dtype
    assert error.max() < VALUE_ERROR[dtype]


def test_far_wings_keep_their_relative_accuracy():
    """Strong lines show wings of 1e-5 of their peak: what counts there is the error relative to the wing (3e-12)."""
    x, gamma = np.meshgrid(np.logspace(1.1, 5, 100), np.logspace(-4, 5, 100))
    value = voigt(torch.tensor(x), torch.ones(1, dtype=F64), torch.tensor(gamma)).numpy()
    np.testing.assert_allclose(value, reference(x, 1.0, gamma), rtol=1e-11)


@pytest.mark.parametrize("points", [SEAM], ids=["seam"])
def test_the_seam_does_not_show(points, dtype):
    x, gamma = (torch.tensor(column, dtype=dtype) for column in points.T)
    value = voigt(x, torch.ones((), dtype=dtype), gamma).double().numpy()
    truth = reference(x.double().numpy(), 1.0, gamma.double().numpy())
    peak = reference(0.0, 1.0, gamma.double().numpy())
    assert np.max(np.abs(value - truth) / peak) < VALUE_ERROR[dtype]


def test_blocks_do_not_show():
    """More points than one cache block holds, with broadcasting: the same as point by point."""
    x = torch.linspace(-30, 30, 40_001, dtype=F64)
    sigma, gamma = torch.tensor([[0.3], [2.0]], dtype=F64), torch.tensor([[1.0], [1e-3]], dtype=F64)
    whole = torch.stack(voigt_with_derivatives(x, sigma, gamma))
    pick = slice(16_380, 16_390)
    part = torch.stack(voigt_with_derivatives(x[pick], sigma, gamma))
    assert whole.shape == (4, 2, 40_001)
    torch.testing.assert_close(whole[..., pick], part, rtol=0, atol=1e-16)


@pytest.mark.parametrize("sigma", [1e-3, 1.0])
def test_no_value_or_derivative_is_lost(sigma, dtype):
    """Lines sit exactly on pixels (x = 0), and underflow or overflow of an unused branch must not become NaN."""
    x, gamma = (t * sigma for t in grid_of(dtype))
    parts = voigt_with_derivatives(torch.cat([x, -x]), torch.tensor(sigma, dtype=dtype), torch.cat([gamma, gamma]))
    for part in parts:
        assert torch.isfinite(part).all()
    assert (parts[0] >= -VALUE_ERROR[dtype] * parts[0].max()).all()


# --- derivatives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.0, 0.02])
def test_derivatives_against_mpmath(sigma, dtype):
    offsets = [0.0, 1e-4, 1e-2, 0.5, 2.0, 5.0, 10.0, 11.2, 11.4, 30.0, 1e3, 1e5]
    ratios = [1e-7, 1e-4, 1e-2, 0.3, 1.0, 5.0, 11.2, 11.4, 40.0, 1e3, 1e5]
    points = np.concatenate([np.array([(x, r) for x in offsets for r in ratios]), SEAM]) * sigma
    x, gamma = (torch.tensor(column, dtype=dtype) for column in points.T)
    sigma = torch.tensor(sigma, dtype=dtype)
    found = torch.stack(voigt_with_derivatives(x, sigma, gamma)).double().numpy()
    x, gamma, sigma = x.double().numpy(), gamma.double().numpy(), float(sigma)
    truth = np.array([reference_derivatives(a, sigma, g) for a, g in zip(x, gamma, strict=True)]).T
    peak, width = reference(0.0, sigma, gamma), sigma + gamma
    assert np.max(np.abs(found[0] - truth[0]) / peak) < VALUE_ERROR[dtype]
    for index, unit in ((1, peak / width), (2, peak / sigma), (3, peak / width)):
        assert np.max(np.abs(found[index] - truth[index]) / unit) < SLOPE_ERROR[dtype]


@pytest.mark.parametrize("gamma", [1e-6, 0.3, 2.0])
@pytest.mark.parametrize("x", [0.0, 0.7, -3.0, 20.0])
def test_derivatives_against_differences_of_wofz(x, gamma):
    """Five-point differences of scipy's function, which knows nothing of ours."""
    point = np.array([x, 0.4, gamma])
    sizes = np.array([4e-4, 4e-4, max(1e-3 * gamma, 3e-7)])  # smaller ones drown in the rounding of wofz

    def difference(index):
        step = np.zeros(3)
        step[index] = sizes[index]
        values = [reference(*(point + k * step)) for k in (-2, -1, 1, 2)]
        return (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step[index])

    found = voigt_with_derivatives(*(torch.tensor(t, dtype=F64) for t in point))[1:]
    scale = reference(0.0, 0.4, gamma) / (0.4 + gamma)
    for index, derivative in enumerate(found):
        assert float(derivative) == pytest.approx(difference(index), rel=1e-8, abs=1e-9 * scale)


@pytest.mark.parametrize(
    "x, ratio",
    [(0.0, 1e-7), (0.0, 1.0), (1e-7, 1e-7), (0.5, 0.3), (3.0, 1e-7), (0.0, 30.0), (40.0, 2.0), (11.0, 1e3)],
)
def test_gradcheck(x, ratio):
    """At the line centre, for hardly any damping, and away from both; the widths through their logarithms as fitted."""
    point = [torch.tensor([t], dtype=F64, requires_grad=True) for t in (x, np.log(1.3), np.log(1.3 * ratio))]
    assert torch.autograd.gradcheck(lambda x, s, g: voigt(x, s.exp(), g.exp()), point)
    point = [torch.tensor([t], dtype=F64, requires_grad=True) for t in (x, 1.3, 1.3 * ratio)]
    assert torch.autograd.gradcheck(voigt, point)


def test_gradcheck_across_the_seam():
    """Points so close to |z| = 8 that the two ends of each difference lie on different sides of it."""
    points = SEAM[np.abs(np.hypot(*SEAM.T) / np.sqrt(128.0) - 1.0) < 1e-6]
    x, gamma = (torch.tensor(column, dtype=F64, requires_grad=True) for column in points.T)
    sigma = torch.ones(len(points), dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(voigt, (x, sigma, gamma), atol=1e-8)


@pytest.mark.parametrize(
    "shapes", [((5,), (1,), ()), ((3, 1), (4,), (1, 4)), ((), (2, 1), (3,)), ((2, 3), (2, 3), (3,))]
)
def test_gradcheck_broadcasting(shapes):
    """Each argument's gradient has the argument's own shape."""
    torch.manual_seed(1)
    inputs = [torch.rand(shape, dtype=F64).add(0.3).requires_grad_() for shape in shapes]
    assert torch.autograd.gradcheck(voigt, inputs)
    voigt(*inputs).sum().backward()
    assert [t.grad.shape for t in inputs] == [t.shape for t in inputs]


def test_gradient_equals_the_derivatives(dtype, device, tolerances):
    x, gamma = (t.to(device).requires_grad_() for t in grid_of(dtype))
    sigma = torch.full_like(x, 1.0).requires_grad_()
    cotangent = torch.rand(x.shape, dtype=dtype, device=device)
    voigt(x, sigma, gamma).backward(cotangent)
    derivatives = voigt_with_derivatives(x, sigma, gamma)
    for argument, derivative in zip((x, sigma, gamma), derivatives[1:], strict=True):
        torch.testing.assert_close(argument.grad, cotangent * derivative, **tolerances[dtype])
    assert not derivatives[0].requires_grad


def test_only_what_needs_a_gradient_gets_one():
    x, sigma, gamma = (
        torch.zeros(3, dtype=F64),
        torch.ones((), dtype=F64, requires_grad=True),
        torch.ones((), dtype=F64),
    )
    voigt(x, sigma, gamma).sum().backward()
    assert x.grad is None and gamma.grad is None
    assert float(sigma.grad) == pytest.approx(3 * reference_derivatives(0.0, 1.0, 1.0)[2], rel=1e-12)


def test_faddeeva_on_the_imaginary_axis():
    """w(iy) = exp(y²) erfc(y) is real and falls from 1."""
    y = torch.logspace(-8, 4, 200, dtype=F64)
    w_real, w_imag, slope_real, slope_imag = faddeeva(torch.zeros_like(y), y)
    torch.testing.assert_close(w_real, torch.special.erfcx(y), rtol=1e-12, atol=0)
    assert w_imag.abs().max() < 1e-15 and slope_real.abs().max() < 1e-13
    truth = 2.0 * y * torch.special.erfcx(y) - 2.0 / np.sqrt(np.pi)  # d/dy of the same
    torch.testing.assert_close(-slope_imag, truth, rtol=1e-6, atol=1e-9)


def test_faddeeva_against_wofz(device):
    """Both parts of w over the upper half plane, near, far and across the seam."""
    radius, angle = np.meshgrid(np.logspace(-3, 4, 300), np.linspace(0.0, np.pi, 61))
    z = radius * np.exp(1j * angle)
    z.imag = np.abs(z.imag)
    w_real, w_imag, *_ = faddeeva(torch.tensor(z.real, device=device), torch.tensor(z.imag, device=device))
    truth = wofz(z)
    assert np.abs(w_real.cpu().numpy() - truth.real).max() < 2e-13
    assert np.abs(w_imag.cpu().numpy() - truth.imag).max() < 2e-13


def test_both_orders_of_work_agree():
    """Where most points are near, the far ones are done apart, and the other way round."""
    generator = torch.Generator().manual_seed(1)
    near, far = (
        torch.rand(1000, generator=generator, dtype=F64),
        10.0 + torch.rand(1000, generator=generator, dtype=F64),
    )
    alone = [torch.stack(faddeeva(part, part)) for part in (near, far)]
    for n_near, n_far in ((1000, 10), (10, 1000), (500, 500)):
        mixed = torch.cat([near[:n_near], far[:n_far]])
        expected = torch.cat([alone[0][:, :n_near], alone[1][:, :n_far]], dim=1)
        torch.testing.assert_close(torch.stack(faddeeva(mixed, mixed)), expected, rtol=1e-14, atol=1e-16)


# --- identities -------------------------------------------------------------------------------------------------------


@given(sigma=exact, gamma=exact)
def test_unit_area(sigma, gamma):
    """x = w tan θ maps the line onto (-π/2, π/2), where the midpoint rule converges exponentially."""
    width = sigma + gamma
    n = 200 + int(100 * max(sigma / gamma, 1.0) ** 0.5)
    theta = (torch.arange(n, dtype=F64) + 0.5) * (np.pi / n) - np.pi / 2
    x = width * theta.tan()
    integrand = voigt(x, torch.tensor(sigma, dtype=F64), torch.tensor(gamma, dtype=F64)) * width / theta.cos().square()
    assert float(integrand.sum() * np.pi / n) == pytest.approx(1.0, abs=1e-9)


@given(x=st.floats(0.0, 1e4), sigma=exact, gamma=exact, k=st.floats(1e-3, 1e3))
def test_symmetric_and_homogeneous(x, sigma, gamma, k):
    """V(-x) = V(x), V(kx; kσ, kγ) = V/k, and the same of the derivatives."""
    x, sigma, gamma = (torch.tensor(t, dtype=F64) for t in (x, sigma, gamma))
    value, d_x, d_sigma, d_gamma = voigt_with_derivatives(x, sigma, gamma)
    for found, expected in zip(voigt_with_derivatives(-x, sigma, gamma), (value, -d_x, d_sigma, d_gamma), strict=True):
        assert float(found) == float(expected)
    peak, width = reference(0.0, float(sigma), float(gamma)), float(sigma + gamma)
    scaled = voigt_with_derivatives(k * x, k * sigma, k * gamma)
    assert float(scaled[0]) * k == pytest.approx(float(value), rel=1e-9, abs=1e-12 * peak)
    for found, expected in zip(scaled[1:], (d_x, d_sigma, d_gamma), strict=True):
        unit = peak / min(width, float(sigma))
        assert float(found) * k**2 == pytest.approx(float(expected), rel=1e-9, abs=1e-10 * unit)
    euler = x * d_x + sigma * d_sigma + gamma * d_gamma
    assert float(euler) == pytest.approx(-float(value), rel=1e-9, abs=1e-12 * peak)


@given(sigma=st.floats(0.001, 10.0), gamma=st.floats(0.001, 10.0))
def test_full_width_at_half_maximum(sigma, gamma):
    """The approximation's own claim: 0.02 %."""
    half = 0.5 * float(voigt_fwhm(torch.tensor(sigma, dtype=F64), torch.tensor(gamma, dtype=F64)))
    low, high = (reference(half * factor, sigma, gamma) for factor in (1.0003, 0.9997))
    assert low < 0.5 * reference(0.0, sigma, gamma) < high


@given(sigma=exact, gamma=exact, other=exact)
def test_lorentzian_widths_add_under_convolution(sigma, gamma, other):
    """V(σ, γ + γ') is V(σ, γ) convolved with a Lorentzian, of which the far wing keeps the first order: γ_total/πx²."""
    x = torch.tensor(1e5 * (sigma + gamma + other), dtype=F64)
    one, two = (voigt(x, torch.tensor(sigma, dtype=F64), torch.tensor(g, dtype=F64)) for g in (gamma, gamma + other))
    assert float(two / one) == pytest.approx((gamma + other) / gamma, rel=1e-8)
