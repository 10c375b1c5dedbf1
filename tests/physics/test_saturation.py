"""Saturation laws: values from their definitions, derivatives against differences, saturated cores alive."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from specutils_blase.physics.saturation import Exponential, Minnaert, Product, legendre, saturation_law

F64 = torch.float64
RANGE = (10000.0, 10100.0)
LAWS = {
    "log": Exponential,
    "linear": Product,
    "minnaert": lambda: Minnaert(RANGE),
    "minnaert varying": lambda: tilted(2),
}


def tilted(degree):
    """Minnaert's law with a limiting depth that varies across the range."""
    law = Minnaert(RANGE, 0.7, degree=degree)
    with torch.no_grad():
        law.coefficients[1:] = torch.tensor([0.4, -0.3])[:degree]
    return law


@pytest.fixture(params=LAWS)
def law(request):
    return LAWS[request.param]()


def wavelengths(n):
    return torch.linspace(*RANGE, n, dtype=F64)


# --- derivatives ------------------------------------------------------------------------------------------------------


def test_flux_slope(law):
    """The stated derivative is that of the stated value, from no opacity to a thousand optical depths."""
    tau = torch.cat([torch.zeros(1), torch.logspace(-6, 3, 40)]).double().requires_grad_()
    wavelength = wavelengths(tau.numel())
    flux, slope = law.flux(tau, wavelength)
    (auto,) = torch.autograd.grad(flux.sum(), tau)
    torch.testing.assert_close(slope, auto, rtol=1e-12, atol=1e-300)
    assert torch.autograd.gradcheck(lambda t: law.flux(t, wavelength)[0], (tau,))
    assert (slope[tau < 700] < 0).all()


def test_opacity_slope(law):
    y = torch.cat([torch.linspace(0, 0.9499, 20), torch.linspace(0.9501, 40, 30)]).double().requires_grad_()
    opacity, slope = law.opacity(y)
    (auto,) = torch.autograd.grad(opacity.sum(), y)
    torch.testing.assert_close(slope, auto, rtol=1e-12, atol=0)
    assert torch.autograd.gradcheck(lambda t: law.opacity(t)[0], (y,))
    assert (slope > 0).all() and (opacity.diff() > 0).all()
    assert (slope[y <= 0.95] >= 1).all()  # every law is at least as steep as a plain sum up to the linear law's guard
    if law.name != "linear":
        assert (slope == 1).all()


@pytest.mark.parametrize("degree", [0, 1, 2])
def test_minnaert_parameter_derivatives(degree):
    law = tilted(degree)
    tau, wavelength = torch.logspace(-3, 3, 30, dtype=F64), wavelengths(30)
    stated = law.parameter_derivatives(tau, wavelength).detach()
    truth = by_differences(law, tau, wavelength)
    torch.testing.assert_close(stated, truth, rtol=1e-7, atol=1e-10)


def by_differences(law, tau, wavelength, h=1e-3):
    """Five-point differences of the flux to each coefficient."""
    columns = []
    with torch.no_grad():
        for index in range(law.n_parameter):
            values = []
            for k in (-2, -1, 1, 2):
                law.coefficients[index] += k * h
                values.append(law.flux(tau, wavelength)[0])
                law.coefficients[index] -= k * h
            columns.append((values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * h))
    return torch.stack(columns)


def test_laws_without_parameters():
    for make in (Exponential, Product):
        law = make()
        assert law.n_parameter == 0 and not list(law.parameters())
        assert law.parameter_derivatives(torch.ones(5), wavelengths(5)).shape == (0, 5)


# --- values -----------------------------------------------------------------------------------------------------------


def test_exponential():
    tau = torch.tensor([0.0, 0.5, 3.0], dtype=F64)
    np.testing.assert_allclose(Exponential().flux(tau, wavelengths(3))[0], np.exp(-tau.numpy()), rtol=1e-15)


@given(st.lists(st.floats(0.0, 0.94), min_size=1, max_size=6))
def test_product_is_exact_below_the_guard(depths):
    """Π (1 - y): no continuation, no clamp."""
    law, y = Product(), torch.tensor(depths, dtype=F64)
    flux = law.flux(law.opacity(y)[0].sum().reshape(1), wavelengths(1))[0]
    assert float(flux) == pytest.approx(math.prod(1 - d for d in depths), rel=1e-13)


def test_product_is_smooth_at_the_guard():
    """Value, slope and curvature go on; beyond, the flux stays positive and falls on."""
    law, h = Product(), 1e-5
    y = torch.tensor([0.95 + k * h for k in range(-3, 4)], dtype=F64)
    opacity, slope = law.opacity(y)
    truth = 0.05**-1 + (y - 0.95) / 0.05**2
    torch.testing.assert_close(slope, truth, rtol=2e-6, atol=0)
    torch.testing.assert_close(opacity, -math.log(0.05) + (y - 0.95) * 20 + 200 * (y - 0.95) ** 2, rtol=1e-9, atol=0)
    flux = law.flux(law.opacity(torch.linspace(0.5, 1.5, 200, dtype=F64))[0], wavelengths(200))[0]
    assert (flux > 0).all() and (flux.diff() < 0).all()


@pytest.mark.parametrize("y", [0.9999, 1.0, 1.2, 3.0])
def test_saturated_core_keeps_its_gradient(y, law, dtype):
    """A line deeper than the continuum: finite, non-zero gradient of the opacity and of the flux."""
    y = torch.tensor([y], dtype=dtype, requires_grad=True)
    opacity = law.opacity(y)[0]
    flux = law.flux(opacity, wavelengths(1))[0]
    (gradient,) = torch.autograd.grad(opacity, y, retain_graph=True)
    assert torch.isfinite(gradient).all() and (gradient > 0.96).all()  # the continuation: 0.963 at y = 3
    (gradient,) = torch.autograd.grad(flux, y)
    assert torch.isfinite(gradient).all()
    assert float(gradient) < -1e-6
    assert float(flux.detach()) > 0


@pytest.mark.parametrize("limit", [0.3, 0.82, 0.99])
def test_minnaert(limit):
    """Weak lines are as in the exponential law, strong ones end at the limiting depth."""
    law = Minnaert(RANGE, limit)
    tau = torch.tensor([0.0, 1e-6, 0.4, 5.0, 1e9], dtype=F64)
    flux = law.flux(tau, wavelengths(5))[0].detach()
    truth = 1.0 - 1.0 / (1.0 / tau.numpy().clip(1e-300) + 1.0 / limit)
    np.testing.assert_allclose(flux, truth, rtol=1e-12)
    assert float(1 - flux[1]) == pytest.approx(1e-6, rel=1e-5)
    assert float(1 - flux[-1]) == pytest.approx(limit, rel=1e-6)
    torch.testing.assert_close(
        law.limiting_depth(wavelengths(7)).detach(), torch.full((7,), limit, dtype=F64), rtol=1e-12, atol=0
    )


def test_minnaert_limiting_depth_varies_with_wavelength():
    """A Legendre series of the logit on x ∈ [-1, 1], held at its end values outside the range."""
    law = tilted(2)
    wavelength = torch.tensor([9000.0, 10000.0, 10025.0, 10100.0, 12000.0], dtype=F64)
    x = np.array([-1, -1, -0.5, 1, 1])
    c = law.coefficients.detach().numpy()
    logit = np.polynomial.legendre.legval(x, c)
    np.testing.assert_allclose(law.limiting_depth(wavelength).detach(), 1 / (1 + np.exp(-logit)), rtol=1e-12)


@pytest.mark.parametrize("limit", [0.0, 1.0, -0.2, float("nan")])
def test_minnaert_refuses(limit):
    with pytest.raises(ValueError, match="between 0 and 1"):
        Minnaert(RANGE, limit)


@given(st.floats(0.0, 3.0))
def test_line_depth_inverts_the_flux(tau):
    for make in LAWS.values():
        law, wavelength = make(), torch.tensor([10070.0], dtype=F64)
        depth = 1.0 - law.flux(torch.tensor([tau], dtype=F64), wavelength)[0]
        assert float(law.line_depth(depth, wavelength).detach()) == pytest.approx(tau, rel=1e-9, abs=1e-14)


def test_line_depth_where_there_is_no_answer(law):
    """Depths of one, or beyond the limit: a large finite opacity, never inf or NaN."""
    depth, wavelength = torch.tensor([0.83, 0.999999, 1.0, 1.3], dtype=F64), wavelengths(4)
    tau = law.line_depth(depth, wavelength)
    assert torch.isfinite(tau).all() and (tau > 1.5).all()


def test_laws_keep_the_dtype(law, dtype):
    tau = torch.rand(6, dtype=dtype)
    assert law.flux(tau, wavelengths(6))[0].dtype == dtype
    assert law.opacity(tau)[0].dtype == dtype
    assert law.parameter_derivatives(tau, wavelengths(6)).dtype == dtype


# --- helpers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_term", [1, 2, 3, 7])
def test_legendre(n_term):
    x = torch.linspace(-1, 1, 21, dtype=F64)
    truth = np.polynomial.legendre.legvander(x.numpy(), n_term - 1).T
    np.testing.assert_allclose(legendre(x, n_term), truth, atol=1e-14)


def test_names_and_objects():
    for name, kind in (("log", Exponential), ("linear", Product), ("minnaert", Minnaert)):
        law = saturation_law(name, RANGE)
        assert type(law) is kind and law.name == name
    mine = tilted(1)
    assert saturation_law(mine, (0.0, 1.0)) is mine
    assert saturation_law("minnaert", RANGE).wavelength_range == RANGE
    with pytest.raises(ValueError, match='"log", "linear", "minnaert" or a SaturationLaw, got \'cubic\''):
        saturation_law("cubic", RANGE)
