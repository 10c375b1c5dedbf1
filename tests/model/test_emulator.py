"""The sparse line sum against a dense one by scipy, and what it promises of motion, emission and short spectra."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from line_cases import BROAD, CASES, LAWS, ORDER, case, emulator, joined, table
from scipy.special import voigt_profile

from specutils_blase.model.emulator import TOLERANCE, LineEmulator
from specutils_blase.physics.grids import SPEED_OF_LIGHT, Sampling, velocity_grid
from specutils_blase.physics.saturation import Exponential, Minnaert, Product
from specutils_blase.physics.voigt import voigt

F64 = torch.float64


def dense_flux(lines, wavelength, law, sign=None, factor=1.0):
    """Every line at every wavelength, in numpy, with scipy's Voigt."""
    rest = np.asarray(wavelength)[:, None] / factor
    depth = lines["area"] * voigt_profile(rest - lines["center"], lines["sigma"], lines["gamma"])
    sign = np.ones(len(lines["center"])) if sign is None else np.asarray(sign)
    absorption, emission = depth[:, sign > 0], depth[:, sign < 0].sum(1)
    if law == "linear":
        inside = np.minimum(absorption, 0.95)
        over = (absorption - inside) / 0.05
        flux = np.prod((1.0 - inside) * 1.0 / (1.0 + over + over**2), axis=1)
    else:
        tau = absorption.sum(1)
        flux = np.exp(-tau) if law == "log" else 1.0 - tau * 0.82 / (tau + 0.82)
    return flux * (1.0 + emission)


def dense_model(em, wavelength, factor=1.0):
    """The same in torch with a graph, for gradients; `voigt` has its own tests."""
    rest = wavelength / factor
    y = em.area * voigt(rest.unsqueeze(1) - em.shifted_center, em.sigma, em.gamma)
    absorbing = em.sign > 0
    flux = em.law.flux(em.law.opacity(y[:, absorbing])[0].sum(1), rest)[0]
    return flux * (1.0 + y[:, ~absorbing].sum(1))


def line_gradients(flux, em, cotangent):
    parameters = [em.ln_area, em.ln_sigma, em.ln_gamma, em.rv_offset]
    return torch.autograd.grad((flux * cotangent).sum(), parameters, retain_graph=True)


# --- sparse equals dense ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_flux_equals_dense(name, law):
    """Limit of the design 1e-5. Measured 4e-6 for strong Gaussian lines, 1.4e-6 otherwise."""
    lines, wavelength = case(name, law)
    with torch.no_grad():
        flux = emulator(lines, law=law)(Sampling(wavelength)).numpy()
    truth = dense_flux(lines, wavelength, law)
    assert truth.min() < 0.9
    np.testing.assert_allclose(flux, truth, rtol=0, atol=8e-6 if name == "nearly Gaussian" else 3e-6)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_dense(name, law):
    """Each line's gradient, both its size and the error averaged over random losses so that none cancels by chance.

    Limit of the design 1e-4, measured 2e-5 for Gaussian lines, 6e-6 otherwise; and the wings fade out from four times
    the neglected opacity of 3e-8 on, which is all there is of the damping of a nearly Gaussian line.
    """
    lines, wavelength = case(name, law)
    em, sampling = emulator(lines, law=law), Sampling(wavelength)
    dense, sparse = dense_model(em, wavelength), em(sampling)
    torch.manual_seed(12)
    cotangents = torch.randn(6, len(wavelength), dtype=F64)
    truth = torch.stack([torch.stack(line_gradients(dense, em, w)) for w in cotangents])
    error = torch.stack([torch.stack(line_gradients(sparse, em, w)) for w in cotangents]) - truth
    size, error = truth.square().mean(0).sqrt(), error.square().mean(0).sqrt()  # (kind, line)
    inside = (em.center > wavelength[0]) & (em.center < wavelength[-1])
    assert inside.sum() > 1
    neglected = 4.0 * TOLERANCE * len(wavelength) ** 0.5
    assert (error < 3e-5 * size + neglected)[:, inside].all()


@pytest.mark.parametrize("name", ["order", "native sampling", "short", "unresolved"])
def test_flux_equals_dense_beyond_the_guard_of_the_linear_law(name):
    """Narrow lines deeper than the continuum, whose cores stay on the finest level."""
    lines, wavelength = CASES[name]
    deep = {**lines, "area": 3.0 * lines["area"]}
    assert (deep["area"] * voigt_profile(0.0, deep["sigma"], deep["gamma"]) > 1).sum() > 10
    with torch.no_grad():
        flux = emulator(deep, law="linear")(Sampling(wavelength)).numpy()
    np.testing.assert_allclose(flux, dense_flux(deep, wavelength, "linear"), rtol=0, atol=3e-6)


@pytest.mark.parametrize("name", ["gamma of 1 Å", "very strong"])
def test_flux_equals_dense_for_broad_saturated_lines_in_the_linear_law(name):
    lines, wavelength = CASES[name]
    with torch.no_grad():
        flux = emulator(lines, law="linear")(Sampling(wavelength)).numpy()
    np.testing.assert_allclose(flux, dense_flux(lines, wavelength, "linear"), rtol=0, atol=1e-5)


def test_a_whole_line_list_equals_dense(shared_data):
    """The 9,028 lines of the T4700 clone: wings neglected below 3e-8 a line do not add up."""
    lines = dict(np.load(shared_data / "data" / "blase" / "T4700g4p5_lines.npz"))
    wavelength = torch.arange(10500.0, 10540.0, 0.02, dtype=F64)
    near = np.abs(lines["center"] - 10520.0) < 1500.0
    with torch.no_grad():
        flux = emulator(lines, law="log")(Sampling(wavelength)).numpy()
    some = slice(None, None, 9)
    assert near.sum() > 4000
    np.testing.assert_allclose(flux[some], dense_flux(lines, wavelength[some], "log"), rtol=0, atol=1e-5)


@pytest.mark.parametrize("rv", [-500.0, 0.3, 500.0])
@pytest.mark.parametrize("law", ["log", "minnaert"])
def test_moving_lines_equal_dense(rv, law):
    """Windows follow the lines: centres, widths and areas scale with 1 + v/c."""
    factor = 1.0 + rv / SPEED_OF_LIGHT
    lines = joined(table(3, 80, 9990, 10040), BROAD)
    lines["center"] = lines["center"] / factor
    with torch.no_grad():
        flux = emulator(lines, law=law)(Sampling(ORDER), torch.tensor(factor, dtype=F64)).numpy()
    np.testing.assert_allclose(flux, dense_flux(lines, ORDER, law, factor=factor), rtol=0, atol=3e-6)


@pytest.mark.parametrize("width", [0.02, 0.15, 0.6, 3.0])
@pytest.mark.parametrize("strength", [0.3, 5.0, 80.0])
@pytest.mark.parametrize("ratio", [1e-3, 0.3, 1.0, 30.0])
def test_one_line_of_any_shape(width, strength, ratio):
    """Gaussian to Lorentzian, weak to saturated, unresolved to hundreds of nodes: levels hand over without a seam."""
    sigma, gamma = width / (1 + ratio), width * ratio / (1 + ratio)
    line = {"center": np.array([10015.0]), "sigma": np.array([sigma]), "gamma": np.array([gamma])}
    line["area"] = strength / voigt_profile(0.0, line["sigma"], line["gamma"])
    with torch.no_grad():
        flux = emulator(line)(Sampling(velocity_grid(9990.0, 10040.0, 0.4))).numpy()
    np.testing.assert_allclose(flux, dense_flux(line, velocity_grid(9990.0, 10040.0, 0.4), "log"), rtol=0, atol=8e-6)


@settings(max_examples=25)
@given(position=st.floats(-40.0, 40.0), gamma=st.floats(0.001, 3.0))
def test_lines_at_and_beyond_the_ends(position, gamma):
    """A line outside the spectrum reaches in by its wing alone."""
    line = {"center": np.array([10000.0 + position]), "area": np.array([0.5]), "sigma": np.array([0.05])}
    line["gamma"] = np.array([gamma])
    wavelength = torch.arange(9990.0, 10010.0, 0.03, dtype=F64)
    with torch.no_grad():
        flux = emulator(line)(Sampling(wavelength)).numpy()
    np.testing.assert_allclose(flux, dense_flux(line, wavelength, "log"), rtol=0, atol=3e-6)


def test_chunks_do_not_show(monkeypatch):
    lines, wavelength = CASES["narrow and broad"]
    em, sampling = emulator(lines), Sampling(wavelength)
    with torch.no_grad():
        whole = em(sampling)
        monkeypatch.setattr("specutils_blase.physics.line_sum.block_size", lambda device: 1000)
        torch.testing.assert_close(em(sampling), whole, rtol=0, atol=1e-14)


def test_work_stays_far_below_dense():
    """What is evaluated grows with the lines' own reach, not with lines × pixels: here 500 lines on 33,000 nodes."""
    lines = table(13, 500, 9600, 10600, area=0.02, sigma=0.04, gamma=0.01)
    sampling = Sampling(velocity_grid(9600.0, 10600.0, 0.9))
    windows = emulator(lines).windows(sampling)
    evaluated = int(windows.count.sum())
    assert evaluated < 0.06 * 500 * len(sampling)


# --- equivalent width and motion --------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["log", "linear", "minnaert"])
@pytest.mark.parametrize("rv", [-500.0, 500.0])
def test_equivalent_width_grows_with_velocity(rv, law):
    """EW(v) = EW(0)(1 + v/c): the line neither leaves its window nor loses its wings."""
    factor = 1.0 + rv / SPEED_OF_LIGHT
    line = {"center": [10000.0], "area": [0.08], "sigma": [0.06], "gamma": [0.02]}

    def width(factor):
        low, high = 9900.0 * factor, 10100.0 * factor
        wavelength = torch.linspace(low, high, 20_001, dtype=F64)
        with torch.no_grad():
            return float(torch.trapezoid(1.0 - emulator(line, law=law)(Sampling(wavelength), factor), wavelength))

    assert width(factor) == pytest.approx(width(1.0) * factor, rel=2e-7)


def test_area_is_the_equivalent_width():
    """In the linear law that of any line; 2γ/(π 20 Å) of it is in the wings outside."""
    line = {"center": [10000.0], "area": [0.1], "sigma": [0.06], "gamma": [0.001]}
    wavelength = torch.arange(9980.0, 10020.0, 0.01, dtype=F64)
    with torch.no_grad():
        width = torch.trapezoid(1.0 - emulator(line, law="linear")(Sampling(wavelength)), wavelength)
    assert float(width) == pytest.approx(0.1 * (1 - 2e-3 / (np.pi * 20.0)), rel=1e-6)


def test_metre_per_second_shifts_are_seen():
    lines, wavelength = CASES["order"]
    em, sampling = emulator(lines), Sampling(wavelength)
    with torch.no_grad():
        rest = em(sampling)
        for v in (1e-3, 2e-3):
            change = em(sampling, 1.0 + v / SPEED_OF_LIGHT) - rest
            em.rv_offset.fill_(v)
            own = em(sampling) - rest
            em.rv_offset.zero_()
            assert float(change.abs().max()) > 1e-6
            torch.testing.assert_close(own, change, rtol=0, atol=2.0 * v / SPEED_OF_LIGHT)  # widths do not scale


def test_gradient_to_the_velocity():
    """Through a factor that carries a graph, against differences of the dense sum."""
    lines, wavelength = CASES["narrow and broad"]
    em, sampling = emulator(lines), Sampling(wavelength)
    v = torch.tensor(30.0, dtype=F64, requires_grad=True)
    cotangent = torch.rand(len(wavelength), dtype=F64, generator=torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad((em(sampling, 1.0 + v / SPEED_OF_LIGHT) * cotangent).sum(), v)
    h = 0.01
    ends = [dense_flux(lines, wavelength, "log", factor=1.0 + (30.0 + k * h) / SPEED_OF_LIGHT) for k in (-2, -1, 1, 2)]
    truth = ((ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)) @ cotangent.numpy()
    assert float(gradient) == pytest.approx(truth, rel=1e-5)


# --- emission, laws, contract -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["log", "linear", "minnaert"])
def test_emission_by_sign(law):
    """Emission multiplies by 1 + Σ a V whatever the law; gradients too."""
    lines, wavelength = CASES["order"]
    sign = np.where(np.arange(100) % 3 == 0, -1, 1)
    em, sampling = emulator(lines, sign=sign, law=law), Sampling(wavelength)
    sparse = em(sampling)
    order = np.argsort(lines["center"])
    np.testing.assert_array_equal(em.sign.numpy(), sign[order])
    truth = dense_flux(lines, wavelength, law, sign=sign)
    assert truth.max() > 1.1 and truth.min() < 0.8
    np.testing.assert_allclose(sparse.detach().numpy(), truth, rtol=0, atol=3e-6)
    cotangent = torch.rand(len(wavelength), dtype=F64)
    for found, expected in zip(
        line_gradients(sparse, em, cotangent),
        line_gradients(dense_model(em, wavelength), em, cotangent),
        strict=True,
    ):
        assert (found - expected).norm() < 1e-5 * expected.norm()


def test_slopes_of_the_flux_with_emission():
    """`flux` states the derivative to both rows of the opacity."""
    em = emulator(CASES["order"][0], sign=np.where(np.arange(100) % 3 == 0, -1, 1), law="minnaert")
    opacity = torch.rand(2, 50, dtype=F64, requires_grad=True)
    flux, slope = em.flux(opacity, torch.linspace(9990, 10040, 50, dtype=F64))
    (auto,) = torch.autograd.grad(flux.sum(), opacity)
    torch.testing.assert_close(slope, auto, rtol=1e-12, atol=0)


def test_law_parameters_get_gradients():
    lines, wavelength = CASES["order"]
    em = emulator(lines, law="minnaert", wavelength_range=(9990.0, 10040.0))
    em(Sampling(wavelength)).sum().backward()
    assert float(em.law.coefficients.grad) < 0  # a larger limiting depth takes more light


def test_float32_agrees(device):
    """Profiles in float32, differences of wavelengths in float64: 1e-6, where float32 wavelengths would give 1e-2."""
    lines, wavelength = CASES["narrow and broad"]
    exact = emulator(lines)(Sampling(wavelength)).detach()
    em, sampling = emulator(lines).float().to(device), Sampling(wavelength).float().to(device)
    single = em(sampling)
    assert single.dtype == torch.float32 and em.center.dtype == F64
    torch.testing.assert_close(single.detach().cpu().double(), exact, rtol=0, atol=5e-6)
    single.sum().backward()
    for parameter in em.parameters():
        assert torch.isfinite(parameter.grad).all() and (parameter.grad != 0).any()


def test_windows_from_current_parameters():
    """Growing a line's wing widens where it is evaluated; nothing is kept from construction."""
    em, sampling = emulator({"center": [10015.0], "area": [0.1], "sigma": [0.05], "gamma": [0.01]}), Sampling(ORDER)
    with torch.no_grad():
        em(sampling)
        em.ln_gamma.fill_(np.log(1.0))
        em.ln_area.fill_(np.log(3.0))
        flux = em(sampling).numpy()
    line = {"center": np.array([10015.0]), "area": np.array([3.0]), "sigma": np.array([0.05]), "gamma": np.array([1.0])}
    np.testing.assert_allclose(flux, dense_flux(line, ORDER, "log"), rtol=0, atol=3e-6)


def test_reach():
    """Beyond it the opacity of each line is below the tolerance, by scipy; within half of it, not."""
    lines = joined(table(3, 80, 9990, 10040), BROAD)
    em = emulator(lines)
    reach = em.reach(1e-6).numpy()
    parts = [t.detach().numpy() for t in (em.area, em.sigma, em.gamma)]
    assert (parts[0] * voigt_profile(1.05 * reach, *parts[1:]) < 1.05e-6).all()
    assert (parts[0] * voigt_profile(0.5 * reach, *parts[1:]) > 1e-6).all()


def test_parameters_are_sorted_and_physical():
    lines = {"center": [3.0, 1.0, 2.0], "area": [0.3, 0.1, 0.2], "sigma": [0.03, 0.01, 0.02], "gamma": [0.0, 0.1, 0.2]}
    em = emulator(lines, rv_offset=[0.3, 0.1, 0.2])
    torch.testing.assert_close(em.center, torch.tensor([1.0, 2.0, 3.0], dtype=F64))
    torch.testing.assert_close(em.area.detach(), torch.tensor([0.1, 0.2, 0.3], dtype=F64))
    torch.testing.assert_close(em.sigma.detach(), torch.tensor([0.01, 0.02, 0.03], dtype=F64))
    torch.testing.assert_close(em.gamma.detach(), torch.tensor([0.1, 0.2, 1e-8], dtype=F64))
    shifted = em.center * (1 + torch.tensor([0.1, 0.2, 0.3], dtype=F64) / SPEED_OF_LIGHT)
    torch.testing.assert_close(em.shifted_center.detach(), shifted, rtol=1e-15, atol=0)
    stack = em.line_parameters().detach().clone()
    em.set_line_parameters(stack + 0.5)
    torch.testing.assert_close(em.line_parameters().detach(), stack + 0.5, rtol=0, atol=0)


def test_subset_is_the_sum_of_its_lines():
    lines, wavelength = CASES["order"]
    em = emulator(
        lines, sign=np.where(np.arange(100) % 5 == 0, -1, 1), law="minnaert", rv_offset=np.linspace(-1, 1, 100)
    )
    sampling, pick = Sampling(wavelength), torch.arange(0, 100, 2)
    rest = torch.arange(1, 100, 2)
    with torch.no_grad():
        total = em.subset(pick).opacity(sampling) + em.subset(rest).opacity(sampling)
        torch.testing.assert_close(total, em.opacity(sampling), rtol=0, atol=1e-12)


def test_no_lines_in_reach():
    line = {"center": [20000.0], "area": [1e-6], "sigma": [0.05], "gamma": [1e-6]}
    with torch.no_grad():
        flux = emulator(line)(Sampling(ORDER))
    torch.testing.assert_close(flux, torch.ones_like(flux), rtol=0, atol=0)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"area": [0.1, 0.1]}, "one value a line, got 1, 2, 1 and 1"),
        ({"area": [0.0]}, "every area must be finite and positive"),
        ({"sigma": [-1.0]}, "every sigma must be finite and positive"),
        ({"center": [float("nan")]}, "every center must be finite and positive"),
        ({"gamma": [-0.1]}, "every gamma must be finite and not negative"),
    ],
)
def test_refuses(change, message):
    with pytest.raises(ValueError, match=message):
        emulator({"center": [10000.0], "area": [0.1], "sigma": [0.05], "gamma": [0.0], **change})


@pytest.mark.parametrize("law, kind", [("log", Exponential), ("linear", Product), ("minnaert", Minnaert)])
def test_law_by_name_or_object(law, kind):
    assert type(emulator(CASES["order"][0], law=law).law) is kind
    mine = kind() if kind is not Minnaert else Minnaert((9990.0, 10040.0), 0.6)
    assert emulator(CASES["order"][0], law=mine).law is mine


def test_lines_past_one_another_settle_in_order():
    """Offsets that carry one centre past the next: the settled lines ascend, and the flux is the same."""
    center, offset = [10_000.0, 10_001.0, 10_002.0], [40.0, 0.0, -45.0]
    em = LineEmulator(center, [0.1, 0.05, 0.2], [0.1, 0.05, 0.3], [0.02, 0.01, 0.03], rv_offset=offset, species="abc")
    settled = em.settled()
    assert bool((settled.center.diff() > 0).all()) and not bool(settled.rv_offset.any())
    assert settled.species == ["c", "b", "a"]
    sampling = Sampling(velocity_grid(9990.0, 10_012.0, 0.9))
    with torch.no_grad():
        torch.testing.assert_close(settled(sampling), em(sampling), rtol=0, atol=1e-12)
        part = settled.subset(torch.arange(3))  # a copy of all is a copy in the same order
    torch.testing.assert_close(part.ln_area, settled.ln_area, rtol=0, atol=1e-14)
