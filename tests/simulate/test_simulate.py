"""The simulator against independent truth: closed forms and scipy.integrate.quad, never the package's own model."""

import ast
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.nddata import StdDevUncertainty
from astropy.table import QTable, Table
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.testing import assert_allclose, assert_array_equal
from scipy.integrate import quad
from scipy.special import voigt_profile
from specutils import Spectrum

from specutils_blase import simulate as sim

C = 299792.458
FWHM = 2.0 * np.sqrt(2.0 * np.log(2.0))


def one_line(center=10_000.0, area=0.02, sigma=0.06, gamma=0.02, **more):
    return {"center": [center], "area": [area], "sigma": [sigma], "gamma": [gamma], **more}


def many_lines(seed, n=40, low=9_990.0, high=10_010.0, area=0.05):
    rng = np.random.default_rng(seed)
    return {
        "center": rng.uniform(low, high, n),
        "area": area * rng.random(n) ** 2,
        "sigma": 0.05 * np.exp(0.3 * rng.standard_normal(n)),
        "gamma": 0.02 * np.exp(0.5 * rng.standard_normal(n)),
    }


def narrow_pixels(wavelength, width=1e-4):
    """Pixels so narrow that their mean is the value at the centre (curvature error below 1e-8)."""
    wavelength = np.asarray(wavelength, dtype=float)
    return np.stack([wavelength - width / 2, wavelength + width / 2], axis=1)


def log_flux(wavelength, lines):
    """S = exp(−Σ a V) by scipy's own Voigt."""
    columns = (lines[name] for name in ("center", "area", "sigma", "gamma"))
    return np.exp(-sum(a * voigt_profile(wavelength - c, s, g) for c, a, s, g in zip(*columns, strict=True)))


PIXELS = sim.pixel_edges(np.arange(9_995.0, 10_005.0, 0.06))


def test_shares_nothing_with_the_package():
    for path in Path(sim.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1 and not (node.module or "").startswith(("specutils_blase", "torch"))
            elif isinstance(node, ast.Import):
                assert not any(alias.name.startswith(("specutils_blase", "torch")) for alias in node.names)


# --- profiles and saturation ------------------------------------------------------------------------------------------


@given(st.floats(-50, 50), st.floats(1e-3, 10), st.floats(0, 10))
def test_voigt_is_scipys(offset, sigma, gamma):
    assert_allclose(sim.voigt(offset, sigma, gamma), voigt_profile(offset, sigma, gamma), rtol=1e-12)


def test_one_line_at_points():
    wavelength = np.array([9_999.0, 9_999.93, 10_000.0, 10_000.4])
    flux = sim.simulate_flux(narrow_pixels(wavelength), one_line(area=0.3), step=0.05)
    assert_allclose(flux, log_flux(wavelength, one_line(area=0.3)), atol=1e-7)


def test_linear_is_a_product():
    lines = many_lines(1)
    wavelength = np.linspace(9_998.0, 10_002.0, 50)
    columns = zip(*lines.values(), strict=True)
    truth = np.prod([1.0 - a * voigt_profile(wavelength - c, s, g) for c, a, s, g in columns], axis=0)
    assert_allclose(sim.simulate_flux(narrow_pixels(wavelength), lines, flux_scale="linear"), truth, atol=1e-6)


@pytest.mark.parametrize("depth", [0.9, 0.97, 1.5])
def test_linear_guard(depth):
    """Below the guard 1 − y; above, ln S = −t with t, t', t'' continuous at 0.95."""
    area = depth / voigt_profile(0.0, 0.06, 0.02)
    flux = sim.simulate_flux(narrow_pixels([10_000.0], 1e-5), one_line(area=area), flux_scale="linear", step=0.01)
    excess = max(depth - 0.95, 0.0)
    truth = min(depth, 0.95)
    truth = (1.0 - truth) / (1.0 + excess / 0.05 + (excess / 0.05) ** 2)
    assert_allclose(flux, truth, rtol=1e-6, atol=1e-8)


def test_minnaert_with_a_depth_that_varies():
    lines = many_lines(2, area=0.5)
    wavelength = np.linspace(9_998.0, 10_002.0, 50)
    tau = -np.log(log_flux(wavelength, lines))
    limit = 0.8 + 0.01 * (wavelength - 10_000.0)
    flux = sim.simulate_flux(
        narrow_pixels(wavelength), lines, flux_scale="minnaert", limiting_depth=lambda x: 0.8 + 0.01 * (x - 10_000.0)
    )
    assert_allclose(flux, 1.0 - tau * limit / (tau + limit), atol=1e-7)


@pytest.mark.parametrize("flux_scale", ["log", "linear", "minnaert"])
def test_emission_multiplies(flux_scale):
    wavelength = np.array([9_999.95, 10_000.1])
    line = voigt_profile(wavelength - 10_000.0, 0.06, 0.02)
    flux = sim.simulate_flux(narrow_pixels(wavelength), one_line(area=0.5, sign=[-1]), flux_scale=flux_scale)
    assert_allclose(flux, 1.0 + 0.5 * line, atol=1e-6)


def test_sky_has_its_own_law():
    wavelength = np.array([9_999.95, 10_000.1])
    tau = 0.3 * voigt_profile(wavelength - 10_000.0, 0.06, 0.02)
    flux = sim.simulate_flux(
        narrow_pixels(wavelength),
        one_line(area=0.3),
        one_line(area=0.3),
        telluric_flux_scale="minnaert",
        telluric_limiting_depth=0.5,
    )
    assert_allclose(flux, np.exp(-tau) * (1.0 - tau * 0.5 / (tau + 0.5)), atol=1e-7)


# --- motion -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rv", [-500.0, 30.0, 500.0])
def test_doppler_moves_the_star_only(rv):
    """Centre and widths stretch by 1 + v/c; so does the equivalent width; the sky stays."""
    moved = 10_000.0 * (1.0 + rv / C)
    wavelength = moved + np.array([-0.2, 0.0, 0.05])
    star = sim.simulate_flux(narrow_pixels(wavelength), one_line(), rv=rv)
    assert_allclose(star, log_flux(wavelength / (1.0 + rv / C), one_line()), atol=1e-7)
    sky = sim.simulate_flux(narrow_pixels([10_000.0]), None, one_line(), rv=rv)
    assert_allclose(sky, log_flux(10_000.0, one_line()), atol=1e-7)


def test_centres_include_their_offsets():
    """As in ledgers: a fitted ledger simulates to what was fitted."""
    told = one_line(rv_offset=[12.0] * u.km / u.s)
    assert_array_equal(sim.simulate_flux(PIXELS, told), sim.simulate_flux(PIXELS, one_line()))


@pytest.mark.parametrize("u1, u2", [(0.0, 0.0), (0.6, 0.0), (0.4, 0.3)])
def test_rotation_kernel_is_a_limb_darkened_disc(u1, u2):
    """Against the disc itself: ∫ I(μ) dy along the chord at x."""

    def chord(x):
        half = np.sqrt(1.0 - x**2)

        def intensity(y):
            mu = np.sqrt(max(1.0 - x**2 - y**2, 0.0))
            return 1.0 - u1 * (1.0 - mu) - u2 * (1.0 - mu) ** 2

        return 2.0 * quad(intensity, 0.0, half, epsabs=1e-12)[0]

    total = np.pi * (1.0 - u1 / 3.0 - u2 / 6.0)
    assert_allclose(quad(lambda x: sim.rotation_kernel(x, u1, u2), -1, 1)[0], 1.0, rtol=1e-8)
    for x in (-0.9, 0.0, 0.5):
        assert_allclose(sim.rotation_kernel(x, u1, u2), chord(x) / total, rtol=1e-7)


@pytest.mark.parametrize("vsini", [0.05, 0.5, 5.0, 50.0, 200.0])
def test_rotation_of_a_narrow_line(vsini):
    """Direct quadrature of ∫ K(x) S(λ exp(−x vsini/c)) dx, in x = sin θ."""
    line = one_line(area=0.2, sigma=0.03, gamma=0.005)
    wavelength = 10_000.0 * np.exp(np.array([-1.1, -0.97, -0.4, 0.0, 0.99]) * vsini / C)

    def truth(point):
        def integrand(theta):
            x = np.sin(theta)
            shifted = point * np.exp(-x * vsini / C)
            return sim.rotation_kernel(x, 0.4, 0.2) * (log_flux(shifted, line) - 1.0) * np.cos(theta)

        peak = np.arcsin(np.clip(np.log(point / 10_000.0) * C / vsini, -1, 1))
        points = [peak + np.sign(side) * delta for side in (-1, 1) for delta in (0.0, 0.02, 0.2)]
        points = [point for point in points if abs(point) < np.pi / 2]
        return 1.0 + quad(integrand, -np.pi / 2, np.pi / 2, points=points, limit=400, epsabs=1e-10)[0]

    flux = sim.simulate_flux(narrow_pixels(wavelength), line, vsini=vsini, limb_darkening=(0.4, 0.2), step=0.05)
    assert_allclose(flux, [truth(point) for point in wavelength], atol=2e-7)


# --- instrument -------------------------------------------------------------------------------------------------------


def gaussian_lsf(resolving_power, wavelength=10_000.0):
    return wavelength / resolving_power / FWHM


@pytest.mark.parametrize("gamma", [0.0, 0.03])
def test_line_spread_adds_in_quadrature(gamma):
    """A weak Voigt through a Gaussian is the Voigt with σ² + σ_lsf² (to first order in σ_lsf/λ)."""
    area, sigma, power = 1e-3, 0.05, 55_000.0
    wavelength = 10_000.0 + np.linspace(-0.5, 0.5, 21)
    flux = sim.simulate_flux(narrow_pixels(wavelength), one_line(area=area, gamma=gamma), resolving_power=power)
    sigma = np.hypot(0.06, gaussian_lsf(power))
    # exp(−τ) is not quite linear: add back its second-order term, by quadrature in λ
    assert_allclose(1.0 - flux, area * voigt_profile(wavelength - 10_000.0, sigma, gamma), atol=2e-5)
    fine = np.linspace(9_990.0, 10_010.0, 20_001)
    kernel = np.exp(-0.5 * (np.log(wavelength[:, None] / fine) * C / (C / power / FWHM)) ** 2) / fine
    truth = (kernel * log_flux(fine, one_line(area=area, gamma=gamma))).sum(1) / kernel.sum(1)
    assert_allclose(flux, truth, atol=1e-9)


def test_line_spread_gaussian_line_to_1e_6():
    """Weak enough for exp(−τ) ≈ 1 − τ: closed form to 1e-6 of the continuum."""
    wavelength = 10_000.0 + np.linspace(-0.5, 0.5, 21)
    flux = sim.simulate_flux(narrow_pixels(wavelength), one_line(area=1e-4, gamma=0.0), resolving_power=55_000.0)
    sigma = np.hypot(0.06, gaussian_lsf(55_000.0))
    truth = 1e-4 * np.exp(-0.5 * ((wavelength - 10_000.0) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    assert_allclose(1.0 - flux, truth, atol=1e-6)
    assert np.ptp(truth) > 3e-4


def test_varying_resolving_power():
    """A line sees the line spread of where it falls; a constant function is the constant."""
    constant = sim.simulate_flux(PIXELS, one_line(), resolving_power=40_000.0)
    assert_allclose(sim.simulate_flux(PIXELS, one_line(), resolving_power=lambda x: 0 * x + 4e4), constant, atol=1e-12)
    lines = {name: values * 2 for name, values in one_line().items()}
    lines["center"] = [9_997.0, 10_003.0]

    def power(wavelength):
        return np.where(wavelength < 10_000.0, 30_000.0, 60_000.0)

    both = sim.simulate_flux(PIXELS, lines, resolving_power=power)
    blue = PIXELS[:, 0] < 9_999.0
    assert_allclose(both[blue], sim.simulate_flux(PIXELS, lines, resolving_power=30_000.0)[blue], atol=1e-9)


def test_pixel_mean_against_quad():
    edges = np.array([[9_999.93, 9_999.99], [10_000.05, 10_000.35]])
    line = one_line(area=0.3)
    truth = [quad(log_flux, *pair, args=(line,), epsabs=1e-13)[0] / (pair[1] - pair[0]) for pair in edges]
    assert_allclose(sim.simulate_flux(edges, line), truth, atol=1e-9)


def test_star_times_sky_before_the_line_spread():
    """The product is broadened, not the factors: on coincident deep lines the two differ by per cents."""
    star, sky = one_line(area=0.3), one_line(area=0.2, sigma=0.04)
    wavelength = np.array([9_999.9, 10_000.0])
    fine = np.linspace(9_999.0, 10_001.0, 20_001)
    kernel = np.exp(-0.5 * (np.log(wavelength[:, None] / fine) * 30_000.0 * FWHM) ** 2) / fine
    truth = (kernel * log_flux(fine, star) * log_flux(fine, sky)).sum(1) / kernel.sum(1)
    assert_allclose(sim.simulate_flux(narrow_pixels(wavelength), star, sky, resolving_power=30_000.0), truth, atol=1e-7)


def test_equivalent_width_survives_everything():
    """Rotation and line spread act in ln λ, so ∫(1 − F) dλ/λ is kept; ∫(1 − F) dλ to (width/λ)²."""
    line = one_line(area=0.05, gamma=0.0)
    edges = sim.pixel_edges(np.arange(9_985.0, 10_015.0, 0.06))
    plain = quad(lambda x: 1.0 - log_flux(x, line), 9_999, 10_001, points=[10_000.0], epsabs=1e-12)[0]
    flux = sim.simulate_flux(edges, line, vsini=60.0, limb_darkening=(0.5, 0.1), resolving_power=45_000.0)
    assert_allclose(np.sum((1.0 - flux) * np.diff(edges)[:, 0]), plain, rtol=1e-6)


@pytest.mark.parametrize("vsini", [0.0, 0.3, 200.0])
@pytest.mark.parametrize("resolving_power", [None, 20_000.0, lambda x: 2.0 * x])
def test_ones_stay_ones_to_the_edge(vsini, resolving_power):
    flux = sim.simulate_flux(PIXELS, vsini=vsini, resolving_power=resolving_power, limb_darkening=(0.4, 0.2))
    assert_allclose(flux, 1.0, atol=1e-12)


def test_lines_beyond_the_edge_count():
    """No droop and no hole: a part of the order equals the same pixels of the whole."""
    lines = many_lines(3, n=60)
    options = {"vsini": 20.0, "resolving_power": 30_000.0, "rv": -40.0}
    whole = sim.simulate_flux(PIXELS, lines, **options)
    assert_allclose(sim.simulate_flux(PIXELS[50:80], lines, **options), whole[50:80], atol=1e-8)


def test_gap_and_chunks(monkeypatch):
    """Pixels on both sides of a gap, and an order cut in chunks, have the values of the whole."""
    lines = many_lines(3, n=60)
    options = {"vsini": 5.0, "resolving_power": 50_000.0}
    whole = sim.simulate_flux(PIXELS, lines, **options)
    kept = np.r_[0:40, 120 : len(PIXELS)]
    assert_allclose(sim.simulate_flux(PIXELS[kept], lines, **options), whole[kept], atol=1e-8)
    monkeypatch.setattr("specutils_blase.simulate.flux.CHUNK", 700)
    assert_allclose(sim.simulate_flux(PIXELS, lines, **options), whole, atol=1e-8)


def test_continuum_is_a_legendre_series_in_the_centres():
    coefficients = (2.0, 0.3, -0.05)
    flux = sim.simulate_flux(PIXELS, one_line(), continuum=coefficients)
    x = np.linspace(-1.0, 1.0, len(PIXELS))
    truth = 2.0 + 0.3 * x - 0.05 * (1.5 * x**2 - 0.5)
    assert_allclose(flux, truth * sim.simulate_flux(PIXELS, one_line()), rtol=1e-9)


def test_veiling_dilutes_the_star_only():
    star = sim.simulate_flux(PIXELS, one_line())
    assert_allclose(sim.simulate_flux(PIXELS, one_line(), veiling=0.5), (star + 0.5) / 1.5, atol=1e-10)
    assert_allclose(sim.simulate_flux(PIXELS, None, one_line(), veiling=0.5), star, atol=1e-10)


@pytest.mark.parametrize("flux_scale", ["log", "linear", "minnaert"])
@pytest.mark.parametrize("vsini", [0.5, 50.0])
def test_default_step_has_converged(flux_scale, vsini):
    """Half the default step, strong and weak lines: ≤ 1e-6 (measured 1e-10; linear with saturated lines 3e-7)."""
    star, sky = many_lines(4, area=0.3), many_lines(5, n=15, area=0.2)
    options = {"vsini": vsini, "rv": 13.0, "resolving_power": 55_000.0, "flux_scale": flux_scale}
    flux = sim.simulate_flux(PIXELS, star, sky, **options)
    assert np.min(flux) < 0.7
    narrowest = min(np.min(np.asarray(lines["sigma"])) for lines in (star, sky)) / 10_000.0 * C
    finer = sim.simulate_flux(PIXELS, star, sky, step=narrowest / 36.0, **options)
    assert_allclose(flux, finer, atol=1e-6)


# --- inputs -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        dict,
        Table,
        lambda lines: QTable({name: values * u.AA for name, values in lines.items()}),
        lambda lines: QTable({name: (values * u.AA).to(u.nm) for name, values in lines.items()}),
        lambda lines: Table({name: values * u.AA for name, values in lines.items()}),
        lambda lines: Table(lines).as_array(),
    ],
)
def test_any_table_of_lines(make):
    lines = many_lines(6)
    assert_allclose(sim.simulate_flux(PIXELS, make(lines)), sim.simulate_flux(PIXELS, lines), atol=1e-12)


def test_quantities():
    bare = sim.simulate_flux(PIXELS, one_line(), rv=-3.0, vsini=4.0, step=0.1)
    kms = u.km / u.s
    given = {"rv": -3000.0 * u.m / u.s, "vsini": 4.0 * kms, "step": 0.1 * kms}
    assert_allclose(sim.simulate_flux(PIXELS * 0.1 * u.nm, one_line(), **given), bare, atol=1e-12)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"vsini": -1.0}, r"vsini=-1.0 km/s: expected zero or a positive"),
        ({"vsini": np.nan}, r"vsini=nan: expected one finite number"),
        ({"rv": 4e5}, r"rv=400000.0 km/s: expected a velocity below that of light"),
        ({"rv": 3.0 * u.AA}, r"rv has the wrong unit, expected km / s"),
        ({"resolving_power": 0.0}, r"resolving_power: expected positive, finite"),
        ({"resolving_power": lambda x: -x}, r"resolving_power: expected positive, finite"),
        ({"flux_scale": "cubic"}, r"flux_scale='cubic': expected one of log, linear, minnaert"),
        ({"telluric_flux_scale": "cubic"}, r"flux_scale='cubic'"),
        ({"flux_scale": "minnaert", "limiting_depth": 1.2}, r"limiting_depth: expected values in \(0, 1\]"),
        ({"veiling": -0.1}, r"veiling=-0.1: expected zero or a positive"),
        ({"step": 0.0}, r"step=0.0 km/s: expected a positive"),
        ({"step": 5.0, "resolving_power": 1e5}, r"step=5 km/s does not sample the line spread"),
        ({"vsini": 3.0, "limb_darkening": (3.0, 1.0)}, r"limb_darkening=\(3.0, 1.0\): the disc has no light"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        sim.simulate_flux(PIXELS, one_line(), **options)


@pytest.mark.parametrize(
    "lines, message",
    [
        ({"center": [1e4], "area": [0.1]}, r"lines lack sigma, gamma: expected columns center, area, sigma, gamma"),
        (one_line(sigma=0.0), r"star: 1 lines without physical meaning"),
        (one_line(area=-0.1), r"emission is sign = -1 with a positive area"),
        (one_line(gamma=np.nan), r"star: 1 lines without physical meaning"),
        (one_line(sign=[2]), r"sign \+1 or -1"),
    ],
)
def test_bad_lines(lines, message):
    with pytest.raises(ValueError, match=message):
        sim.simulate_flux(PIXELS, lines)


@pytest.mark.parametrize(
    "edges, message",
    [
        (np.arange(5.0), r"edges have shape \(5,\): expected \(n_pix, 2\)"),
        (np.zeros((0, 2)), r"edges have shape \(0, 2\)"),
        (PIXELS[:, ::-1], r"expected lower < upper"),
        (PIXELS[::-1], r"pixels in ascending order"),
        (np.full((3, 2), np.nan), r"finite, positive"),
        (PIXELS * u.km, None),
        (PIXELS * u.km / u.s, r"edges has the wrong unit, expected Angstrom"),
    ],
)
def test_bad_edges(edges, message):
    if message is None:  # a length in any unit is a wavelength
        assert_allclose(sim.simulate_flux(edges[:3]), 1.0)
        return
    with pytest.raises(ValueError, match=message):
        sim.simulate_flux(edges)


# --- pixels and HPF ---------------------------------------------------------------------------------------------------


def test_edges_midway():
    assert_allclose(sim.pixel_edges([1.0, 2.0, 3.2]), [[0.5, 1.5], [1.5, 2.6], [2.6, 3.8]])
    assert_allclose(sim.pixel_edges([1.0, 2.0]), [[0.5, 1.5], [1.5, 2.5]])


def test_edges_at_gaps():
    """No giant pixels: next to a gap a pixel is symmetric, and a lone pixel takes its neighbours' width."""
    edges = sim.pixel_edges([1.0, 2.0, 3.0, 50.0, 100.0, 101.0, 102.0])
    assert_allclose(edges[:, 1] - edges[:, 0], 1.0)
    assert_allclose(edges.mean(axis=1), [1.0, 2.0, 3.0, 50.0, 100.0, 101.0, 102.0])
    assert_allclose(sim.pixel_edges([1.0, 2.0, 3.0, 50.0])[-1], [49.5, 50.5])


@settings(max_examples=50)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30))
def test_edges_enclose_their_centres_and_do_not_overlap(spacing):
    wavelength = 10.0 + 1e3 + np.cumsum(np.r_[0.0, spacing])
    edges = sim.pixel_edges(wavelength)
    assert np.all(edges[:, 0] < wavelength) and np.all(wavelength < edges[:, 1])
    assert np.all(edges[:-1, 1] <= edges[1:, 0] + 1e-9)


@pytest.mark.parametrize("wavelength", [[3.0], [2.0, 1.0], [1.0, 1.0], [0.0, 1.0], [1.0, np.nan], [[1.0, 2.0]]])
def test_edges_bad_input(wavelength):
    with pytest.raises(ValueError, match="wavelength"):
        sim.pixel_edges(wavelength)


def test_hpf_wavelengths(shared_data):
    fits = pytest.importorskip("astropy.io.fits")
    with fits.open(shared_data / "data" / "hpf" / "Goldilocks_20210212T072837_v1.0_0037.spectra.fits") as file:
        truth = file["Sci Wavl"].data
    assert_allclose([sim.hpf_wavelengths(order) for order in range(28)], truth, atol=3e-6)


def test_hpf_orders_ascend():
    orders = np.array([sim.hpf_wavelengths(order) for order in range(28)])
    assert orders.shape == (28, 2048)
    assert np.all(np.diff(orders, axis=1) > 0) and np.all(np.diff(orders, axis=0) > 0)
    assert 8079 < orders.min() < 8080 and 12785 < orders.max() < 12786


@pytest.mark.parametrize("order", [-1, 28, 1.5])
def test_hpf_order_that_does_not_exist(order):
    with pytest.raises(ValueError, match="HPF has orders 0 to 27"):
        sim.hpf_wavelengths(order)


# --- observed spectra -------------------------------------------------------------------------------------------------


def test_observed_spectrum_and_its_truth():
    wavelength = np.arange(9_995.0, 10_005.0, 0.06)
    star, sky = many_lines(7), many_lines(8, n=5)
    options = {"rv": -9.6, "vsini": 3.0, "resolving_power": 55_000.0}
    spectrum = sim.simulate(wavelength * u.AA, star, sky, snr=80, seed=3, continuum=(1.1, 0.02), **options)
    truth = spectrum.meta["truth"]
    assert type(truth) is dict
    assert (truth["limb_darkening"], truth["veiling"]) == ((0.0, 0.0), 0.0)
    assert {name: truth[name] for name in options} == options
    assert (truth["snr"], truth["seed"], truth["continuum"]) == (80, 3, [1.1, 0.02])
    assert truth["star"].colnames == ["center", "area", "sigma", "gamma", "sign", "rv_offset"]
    assert_array_equal(truth["telluric"]["area"].value, sky["area"])
    assert spectrum.meta["medium"] == "vacuum"
    assert isinstance(spectrum.uncertainty, StdDevUncertainty)
    assert_allclose(spectrum.spectral_axis.to_value(u.AA), wavelength)
    noise_free = sim.simulate(wavelength, star, sky, snr=None, continuum=(1.1, 0.02), **options)
    assert noise_free.uncertainty is None
    assert_array_equal(noise_free.flux.value, truth["flux"])
    assert_array_equal(sim.simulate_flux(PIXELS, star, sky, continuum=(1.1, 0.02), **options), truth["flux"])


def test_noise_statistics():
    """Pulls are standard normal; σ is c0/snr at the continuum, lower in lines, never below its floor."""
    wavelength = np.linspace(10_000.0, 10_400.0, 4_000)
    line = one_line(center=10_200.0, area=100.0, sigma=20.0, gamma=0.0)
    spectrum = sim.simulate(wavelength, line, snr=50.0, seed=11, continuum=(3.0,))
    sigma, truth = spectrum.uncertainty.array, spectrum.meta["truth"]["flux"]
    pulls = (spectrum.flux.value - truth) / sigma
    assert abs(pulls.mean()) < 4 / np.sqrt(pulls.size) and abs(pulls.std() - 1) < 4 / np.sqrt(2 * pulls.size)
    assert_allclose(sigma[0], 3.0 / 50.0, rtol=1e-9)
    assert_allclose(sigma.min(), 3.0 / 50.0 * np.sqrt(0.98 * truth.min() / 3.0 + 0.02), rtol=1e-9)
    assert_array_equal(sim.simulate(wavelength, line, snr=50.0, seed=11, continuum=(3.0,)).flux, spectrum.flux)
    assert np.any(sim.simulate(wavelength, line, snr=50.0, seed=12, continuum=(3.0,)).flux != spectrum.flux)


def test_no_lines_gives_flat_noise():
    spectrum = sim.simulate(np.arange(1e4, 1.001e4, 0.05), snr=100)
    assert_allclose(spectrum.uncertainty.array, 0.01, rtol=1e-9)
    assert spectrum.meta["truth"]["star"] is None


def test_callables_are_recorded_as_numbers():
    wavelength = np.arange(9_995.0, 10_005.0, 0.06)
    spectrum = sim.simulate(wavelength, one_line(), resolving_power=lambda x: 5.5 * x)
    assert_allclose(spectrum.meta["truth"]["resolving_power"], 5.5 * wavelength)


@pytest.mark.parametrize("options", [{"snr": 0}, {"snr": -5}, {"read_floor": 2}, {"continuum": (0.0, 1.0)}])
def test_noise_that_makes_no_sense(options):
    with pytest.raises(ValueError, match="noise needs snr > 0"):
        sim.simulate([1e4, 1.00001e4], **options)


def test_edges_of_the_wrong_length():
    with pytest.raises(ValueError, match=r"edges have shape .* expected \(2, 2\)"):
        sim.simulate([1e4, 1.00001e4], edges=PIXELS)


def test_perturbed():
    lines = many_lines(9, n=4_000)
    table = sim.perturbed(lines, 5, 0.2, scatter_rv_offset=0.3)
    ratio = np.log(table["area"].value / lines["area"])
    assert abs(ratio.std() - 0.2) < 0.02 and abs(ratio.mean()) < 0.02
    assert_allclose(table["center"].value, lines["center"] * (1.0 + table["rv_offset"].value / C), rtol=1e-15)
    assert_array_equal(table["sigma"].value, lines["sigma"])
    assert abs(table["rv_offset"].to_value(u.km / u.s).std() - 0.3) < 0.03
    assert_array_equal(table["area"], sim.perturbed(lines, seed=5, scatter_ln_area=0.2)["area"])
    assert np.any(table["area"] != sim.perturbed(lines, seed=6, scatter_ln_area=0.2)["area"])


def test_perturbed_with_heavy_tails():
    """Student's t: quartiles at 0.741 of the scale for four degrees of freedom, tails beyond any Gaussian's."""
    table = sim.perturbed(many_lines(9, n=40_000), 5, 0.2, degrees_of_freedom=4.0)
    ratio = np.log(table["area"].value / many_lines(9, n=40_000)["area"]) / 0.2
    low, high = np.percentile(ratio, [25, 75])
    assert_allclose([-low, high], 0.7407, rtol=0.03)
    assert_allclose(np.mean(np.abs(ratio) > 4.604), 0.01, rtol=0.2)  # 0.995 quantile
    with pytest.raises(ValueError, match=r"degrees_of_freedom=0: expected a positive number, or infinity"):
        sim.perturbed(one_line(), degrees_of_freedom=0)


# --- what is wrong with real data -------------------------------------------------------------------------------------


def test_wavelengths_that_drift():
    """Right in the middle, half the drift off at the ends: a line there falls on another pixel than its wavelength."""
    wavelength = np.linspace(9_990.0, 10_010.0, 4_001)
    lines = {name: np.repeat(values, 3) for name, values in one_line(area=0.05, gamma=0.0).items()}
    lines["center"] = np.array([9_990.5, 10_000.0, 10_009.5])
    spectrum = sim.simulate(wavelength, lines, snr=None, wavelength_drift=400.0 * u.m / u.s)
    depth = 1.0 - spectrum.flux.value
    for center, off in zip(lines["center"], (0.19, 0.0, -0.19), strict=True):
        near = np.abs(wavelength - center) < 0.4
        found = np.sum(depth[near] * wavelength[near]) / np.sum(depth[near])
        assert_allclose((found / center - 1.0) * C, off, atol=2e-4)
    assert spectrum.meta["truth"]["wavelength_drift"] == 0.4


def test_scattered_light_fills_lines_and_makes_noise():
    wavelength = np.linspace(9_995.0, 10_005.0, 200)
    options = {"continuum": (2.0, 0.1), "seed": 3, "read_floor": 0.0}
    clean = sim.simulate(wavelength, one_line(), **options)
    filled = sim.simulate(wavelength, one_line(), scattered_light=0.25, **options)
    level = 2.0 + 0.1 * np.linspace(-1.0, 1.0, 200)
    truth = clean.meta["truth"]["flux"] + 0.25 * level
    assert_allclose(filled.meta["truth"]["flux"], truth, rtol=1e-12)
    assert_allclose(filled.uncertainty.array, 2.0 / 100.0 * np.sqrt(truth / 2.0), rtol=1e-12)


@pytest.mark.parametrize("factor", [0.5, 1.05])
def test_uncertainties_that_are_not_the_noise(factor):
    right = sim.simulate(PIXELS.mean(axis=1), one_line(), seed=1)
    wrong = sim.simulate(PIXELS.mean(axis=1), one_line(), seed=1, uncertainty_factor=factor)
    assert_array_equal(wrong.flux, right.flux)
    assert_allclose(wrong.uncertainty.array, factor * right.uncertainty.array)


@pytest.mark.parametrize("options", [{"scattered_light": -0.1}, {"uncertainty_factor": 0.0}])
def test_flaws_that_make_no_sense(options):
    with pytest.raises(ValueError, match="expected scattered_light >= 0 and uncertainty_factor > 0"):
        sim.simulate([1e4, 1.00001e4], **options)


@pytest.mark.parametrize("band", ["H", "K"])
def test_igrins_wavelengths(shared_data, band):
    from astropy.io import fits

    path = shared_data / "data" / "igrins" / f"SDC{band}_20201202_0059.spec_a0v.fits"
    with fits.open(path) as file:
        known = np.asarray(file["WAVELENGTH"].data, dtype=float) * 1e4
    for order, row in enumerate(known):
        assert_allclose(sim.igrins_wavelengths(band, order), row, atol=3e-6, rtol=0)
    with pytest.raises(ValueError, match=f"IGRINS {band} has orders 0 to {len(known) - 1}"):
        sim.igrins_wavelengths(band, len(known))
    with pytest.raises(ValueError, match="bands H and K"):
        sim.igrins_wavelengths("J", 0)


def test_orders_of_an_instrument():
    """A list with the instrument's resolving power, the orders' own noise, and the fluxes of the single orders."""
    lines = many_lines(3, low=sim.hpf_wavelengths(20)[0], high=sim.hpf_wavelengths(21)[-1])
    night = sim.simulate("HPF", lines, orders=(20, 21), snr=50.0, seed=4, vsini=5.0)
    assert type(night).__name__ == "SpectrumList" and len(night) == 2
    again = sim.simulate([sim.hpf_wavelengths(k) for k in (20, 21)], lines, snr=50.0, seed=4, vsini=5.0,
                         resolving_power=55_000.0)  # fmt: skip
    for one, other, order in zip(night, again, (20, 21), strict=True):
        assert one.meta["truth"]["resolving_power"] == 55_000.0
        assert_allclose(one.flux.value, other.flux.value, rtol=1e-12)
        alone = sim.simulate(sim.hpf_wavelengths(order), lines, snr=None, vsini=5.0, resolving_power=55_000.0)
        assert_allclose(one.meta["truth"]["flux"], alone.flux.value, rtol=1e-12)
    noise = [one.flux.value - one.meta["truth"]["flux"] for one in night]
    assert abs(np.corrcoef(*noise)[0, 1]) < 0.1


@pytest.mark.parametrize("law", ["log", "linear", "minnaert"])
def test_emulators_and_clones_are_their_lines_and_law(law):
    from types import SimpleNamespace

    from specutils_blase.model.emulator import LineEmulator

    lines = many_lines(5)
    emulator = LineEmulator(*(lines[name] for name in ("center", "area", "sigma", "gamma")), law=law,
                            wavelength_range=(9_980.0, 10_020.0))  # fmt: skip
    edges = sim.pixel_edges(np.linspace(9_992.0, 10_008.0, 300))
    expected = sim.simulate_flux(edges, lines, flux_scale=law, vsini=4.0, resolving_power=6e4)
    for form in (emulator, SimpleNamespace(emulator=emulator)):
        assert_allclose(sim.simulate_flux(edges, form, vsini=4.0, resolving_power=6e4), expected, atol=1e-12)


def test_the_truth_tells_how_lines_add_up():
    """Given again as tables with the laws that the truth tells, lines make the same flux."""
    from specutils_blase.model.emulator import LineEmulator
    from specutils_blase.physics.saturation import Minnaert

    star, sky = many_lines(5), many_lines(6, n=4)
    law = Minnaert((9_980.0, 10_020.0), degree=1)
    law.coefficients.data[1] += 0.3
    columns = ("center", "area", "sigma", "gamma")
    emulators = [
        LineEmulator(*(lines[name] for name in columns), law=each, wavelength_range=(9_980.0, 10_020.0))
        for lines, each in ((star, law), (sky, "linear"))
    ]
    pixels = np.linspace(9_992.0, 10_008.0, 300)
    options = {"rv": 12.0, "resolving_power": 6e4, "snr": None}
    found = sim.simulate(pixels, *emulators, **options)
    truth = found.meta["truth"]
    assert (truth["flux_scale"], truth["telluric_flux_scale"]) == ("minnaert", "linear")
    assert truth["limiting_depth"].shape == (300,) and np.ptp(truth["limiting_depth"]) > 0.01
    laws = {name: truth[name] for name in ("flux_scale", "telluric_flux_scale")}
    laws["limiting_depth"] = lambda wavelength: np.interp(wavelength, pixels, truth["limiting_depth"])
    again = sim.simulate(pixels, truth["star"], truth["telluric"], **laws, **options)
    assert_allclose(again.flux.value, found.flux.value, atol=2e-5)
    plain = sim.simulate(pixels, star, sky, flux_scale="linear", **options).meta["truth"]
    assert (plain["flux_scale"], plain["telluric_flux_scale"], plain["limiting_depth"]) == ("linear", "linear", 0.82)


def test_templates_are_taken_as_they_are():
    """Lines sampled finely, given as a Spectrum, are the lines."""
    lines = many_lines(5)
    wavelength = np.arange(9_980.0, 10_020.0, 0.004)
    template = Spectrum(
        spectral_axis=wavelength * u.AA, flux=log_flux(wavelength, lines) * u.one, meta={"source": "own"}
    )
    pixels = np.linspace(9_992.0, 10_008.0, 300)
    options = {"rv": 12.0, "vsini": 4.0, "resolving_power": 6e4, "snr": None}
    found = sim.simulate(pixels, template, **options)
    assert_allclose(found.flux.value, sim.simulate(pixels, lines, **options).flux.value, atol=1e-6)
    assert found.meta["truth"]["star"] == "own"
    with pytest.raises(ValueError, match=r"covers 9980\.00 to 10020.00 Å"):
        sim.simulate(np.linspace(9_975.0, 10_008.0, 300), template, **options)
    with pytest.raises(ValueError, match="in units of its continuum"):
        sim.simulate(pixels, Spectrum(spectral_axis=wavelength * u.AA, flux=7.0 * template.flux), **options)
    template.meta["resolving_power"] = 55_000.0
    with pytest.raises(ValueError, match=r"broadened already, to a resolving power of 55000.*clone\(template"):
        sim.simulate(pixels, telluric=template, **options)


def test_components_of_a_ledger():
    lines = many_lines(5)
    ledger = Table({name: np.tile(lines[name], 2) for name in ("center", "area", "sigma", "gamma")})
    ledger["area"][40:] *= 0.5
    ledger["component"] = ["star"] * 40 + ["telluric"] * 40
    ledger["depth"] = np.where(np.arange(80) == 3, -0.1, 0.1)
    edges = sim.pixel_edges(np.linspace(9_992.0, 10_008.0, 300))
    star = {**{name: ledger[name][:40] for name in lines}, "sign": np.where(np.arange(40) == 3, -1.0, 1.0)}
    sky = {name: ledger[name][40:] for name in lines}
    assert_allclose(sim.simulate_flux(edges, ledger, ledger), sim.simulate_flux(edges, star, sky), atol=1e-12)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"wavelength": "ESPRESSO"}, "expected one of HPF, IGRINS H, IGRINS K"),
        ({"wavelength": "HPF", "orders": (28,)}, "HPF has orders 0 to 27"),
        ({"orders": (1,)}, "needs the name of an instrument"),
        ({"continuum": 1.0}, "sequence of Legendre coefficients"),
        ({"snr": [100.0, 50.0]}, "snr must be one number"),
        ({"snr": "high"}, "snr must be numbers in no unit or a Quantity, got 'high'"),
        ({"snr": np.inf}, "snr=inf: expected one finite number"),
        ({"seed": None}, "seed must be an integer"),
        ({"seed": -1}, "seed must be an integer from 0 on"),
        ({"limb_darkening": 0.4}, r"limb_darkening must be two coefficients \(u1, u2\), got 0.4"),
        ({"resolving_power": "R"}, "resolving_power must be numbers in no unit"),
        (
            {"wavelength": Spectrum(flux=np.ones(9) * u.one, spectral_axis=np.arange(1.0, 10.0) * u.AA)},
            "its spectral_axis",
        ),
        ({"star": 3.0}, "an emulator, a clone or a template Spectrum, got float"),
    ],
)
def test_what_cannot_be_simulated(arguments, message):
    with pytest.raises(ValueError, match=message):
        sim.simulate(**{"wavelength": np.linspace(9_992.0, 10_008.0, 300)} | arguments)
