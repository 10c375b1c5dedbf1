"""The thirteen mistakes of the reference implementation that must not come back (DESIGN §12), by number.

Each is tested here at the level where a user would meet it; the modules' own tests go further.
"""

import subprocess
import sys

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.table import Table
from error_bars import assert_bars
from scipy.special import voigt_profile
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.extrinsic import RotationalBroadening
from specutils_blase.model.instrument import LineSpreadFunction, PixelBinning
from specutils_blase.model.order import ForwardModel
from specutils_blase.physics.grids import SPEED_OF_LIGHT, Sampling, velocity_grid
from specutils_blase.physics.voigt import voigt
from specutils_blase.simulate import simulate, simulate_flux
from specutils_blase.spectra.data import pixel_edges

F64 = torch.float64
LOW, HIGH = 10_500.0, 10_514.0
WAVELENGTH = np.arange(LOW, HIGH, 0.055)
KINDS = ("ln_area", "ln_sigma", "ln_gamma", "rv_offset")


def line_table(n=24, seed=5):
    rng = np.random.default_rng(seed)
    table = Table(
        {
            "center": np.sort(rng.uniform(LOW - 3, HIGH + 3, n)),
            "area": rng.uniform(0.02, 0.1, n),
            "sigma": rng.uniform(0.04, 0.07, n),
            "gamma": rng.uniform(0.02, 0.05, n),
        }
    )
    table.meta["wavelength_range"] = (LOW - 12.0, HIGH + 12.0)
    return table


LINES = line_table()


def observed(**options):
    options = {"rv": 4.0, "vsini": 5.0, "limb_darkening": (0.4, 0.2), "resolving_power": 55_000.0, **options}
    return simulate(WAVELENGTH, LINES, snr=200.0, seed=3, **options)


def fit(data, **options):
    options = {"rv": 4.2, "vsini": 4.5, "resolving_power": 55_000.0, "progress": False, **options}
    return sb.fit(data, LINES, **options)


def emulator(lines=LINES, **options):
    return LineEmulator(*(np.asarray(lines[name]) for name in ("center", "area", "sigma", "gamma")), **options)


def order(wavelength=WAVELENGTH, **options):
    wavelength = torch.as_tensor(wavelength)
    options = {"star": emulator(), "rv": 4.0, "vsini": 5.0, "resolving_power": 55_000.0, **options}
    return ForwardModel.for_order(wavelength, pixel_edges(wavelength), **options)


def evaluate(model):
    with torch.no_grad():
        return model().numpy()


# --- 1, 2: the profile ------------------------------------------------------------------------------------------------


def test_01_sigma_and_gamma_are_not_swapped():
    """σ = 0.01, γ = 0.1 is scipy.special.voigt_profile's, in the profile and in the emulator."""
    x = np.linspace(-0.5, 0.5, 201)
    truth = voigt_profile(x, 0.01, 0.1)
    assert np.abs(truth - voigt_profile(x, 0.1, 0.01)).max() > 0.5  # the swap would show
    sigma, gamma = torch.tensor(0.01, dtype=F64), torch.tensor(0.1, dtype=F64)
    np.testing.assert_allclose(voigt(torch.tensor(x), sigma, gamma), truth, rtol=1e-10)
    line = LineEmulator([10_000.0], [0.03], [0.01], [0.1])
    with torch.no_grad():
        flux = line(Sampling(torch.tensor(10_000.0 + x)))
    np.testing.assert_allclose(flux, np.exp(-0.03 * truth), atol=1e-6)


def test_02_the_profile_is_a_voigt_profile():
    """The peak at σ = γ = 1 is 0.2087, not 0.348; a pure Gaussian and a pure Lorentzian keep their own widths."""
    one, zero, tiny = torch.ones(1, dtype=F64), torch.zeros(1, dtype=F64), torch.full((1,), 1e-9, dtype=F64)
    assert float(voigt(zero, one, one)) == pytest.approx(0.20870928052, rel=1e-10)
    half = float(voigt(torch.full((1,), 1.1774100225, dtype=F64), one, tiny) / voigt(zero, one, tiny))
    assert half == pytest.approx(0.5, rel=1e-8)
    half = float(voigt(one, 1e-3 * one, one) / voigt(zero, 1e-3 * one, one))
    assert half == pytest.approx(0.5, rel=1e-5)


# --- 3, 4: kernels ----------------------------------------------------------------------------------------------------


def delta(center, step, reach=280.0):
    """A delta function in the middle of a uniform-velocity grid: grid, velocities, flux."""
    grid = velocity_grid(center * (1 - reach / SPEED_OF_LIGHT), center * (1 + reach / SPEED_OF_LIGHT), step)
    flux = torch.zeros_like(grid)
    flux[len(grid) // 2] = 1.0 / step
    return grid, SPEED_OF_LIGHT * torch.log(grid / grid[len(grid) // 2]), flux


def half_width(velocity, line):
    """Velocity at which a line that falls outwards reaches half of its middle."""
    right = velocity >= 0
    return float(np.interp(-0.5 * line[right][0], -line[right], velocity[right]))


@pytest.mark.parametrize("step", [0.2, 0.5])
@pytest.mark.parametrize("center", [8_100.0, 12_700.0])
def test_03_kernels_are_as_wide_as_requested_everywhere(center, step):
    """A delta on two grids at two wavelengths: FWHM c/R, and √3 v sin i, in km/s."""
    grid, velocity, flux = delta(center, step)
    with torch.no_grad():
        spread = LineSpreadFunction(20_000.0, grid)(flux)
        rotated = RotationalBroadening(40.0, step)(flux)
    assert 2 * half_width(velocity, spread) == pytest.approx(SPEED_OF_LIGHT / 20_000.0, rel=2e-3)
    assert 2 * half_width(velocity, rotated) == pytest.approx(40.0 * 3**0.5, rel=2e-3)


def test_03_fast_rotation_keeps_its_support():
    """v sin i = 200 km/s reaches 200 km/s, here 7 Å, where ±4.5 Å was the end of it."""
    _, velocity, flux = delta(10_500.0, 0.5)
    with torch.no_grad():
        rotated = RotationalBroadening(200.0, 0.5, limb_darkening=(0.4, 0.2))(flux)
    assert rotated[velocity.abs() < 198.0].min() > 1e-4
    assert rotated[velocity.abs() > 201.5].abs().max() < 1e-9
    assert float(rotated.sum() * 0.5) == pytest.approx(1.0, abs=1e-9)


def test_03_slow_rotation_has_the_right_derivative():
    """d(flux)/d(vsini) at 1 km/s, below the size of a pixel, against differences of the simulator."""
    edges = pixel_edges(torch.as_tensor(WAVELENGTH)).numpy()
    options = {"rv": 4.0, "limb_darkening": (0.4, 0.2), "resolving_power": 55_000.0}
    truth = np.subtract(*(simulate_flux(edges, LINES, vsini=v, **options) for v in (1.02, 0.98))) / 0.04
    model = order(vsini=1.0, limb_darkening=(0.4, 0.2))
    flux = model()
    projections = np.random.default_rng(1).standard_normal((6, len(flux)))
    found = [
        float(torch.autograd.grad(flux @ torch.tensor(p), model.rotation.vsini, retain_graph=True)[0])
        for p in projections
    ]
    assert np.linalg.norm(found - projections @ truth) < 1e-3 * np.linalg.norm(projections @ truth)


def test_04_ones_stay_ones_to_the_edge():
    """Through each kernel, and through the whole model of a star with no line in sight."""
    grid = velocity_grid(10_000.0, 10_010.0, 0.5)
    ones = torch.ones_like(grid)
    for module in (RotationalBroadening(60.0, 0.5), LineSpreadFunction(20_000.0, grid)):
        torch.testing.assert_close(module(ones).detach(), ones, rtol=0, atol=1e-12)
    nothing = LineEmulator([20_000.0], [1e-9], [0.05], [0.01])
    flux = evaluate(order(star=nothing, vsini=80.0, resolving_power=20_000.0))
    np.testing.assert_allclose(flux, 1.0, rtol=0, atol=1e-9)


# --- 5: pixels --------------------------------------------------------------------------------------------------------


def test_05_data_finer_than_the_grid_keep_their_pixels():
    """N pixels in, N values out, each with its own mean."""
    wavelength = np.arange(10_504.0, 10_506.0, 0.004)  # 0.1 km/s
    found = evaluate(order(wavelength, velocity_step=0.4, continuum_degree=None))
    assert found.shape == wavelength.shape
    edges = pixel_edges(torch.as_tensor(wavelength)).numpy()
    truth = simulate_flux(edges, LINES, rv=4.0, vsini=5.0, resolving_power=55_000.0)
    np.testing.assert_allclose(found, truth, rtol=0, atol=2e-5)


def test_05_flux_is_conserved():
    """Pixels of any size that touch hold the same light, to 1e-6 of the spectrum's own integral and far better."""
    grid = velocity_grid(LOW - 1.0, HIGH + 1.0, 0.4)
    with torch.no_grad():
        flux = emulator()(Sampling(grid))
    boundaries = torch.as_tensor(np.sort(np.random.default_rng(2).uniform(LOW, HIGH, 300)))
    edges = torch.stack([boundaries[:-1], boundaries[1:]], dim=1)
    binned = (PixelBinning(edges, grid)(flux) * edges.diff(dim=1).squeeze(1)).sum()
    whole = PixelBinning(boundaries[[0, -1]].unsqueeze(0), grid)(flux) * boundaries[[0, -1]].diff()
    assert float(binned) == pytest.approx(float(whole), rel=1e-12)
    fine = torch.linspace(float(boundaries[0]), float(boundaries[-1]), 40_001, dtype=F64)
    with torch.no_grad():
        truth = torch.trapezoid(emulator()(Sampling(fine)), fine)
    assert float(binned) == pytest.approx(float(truth), rel=1e-6)


def test_05_a_gapped_order_equals_its_pieces():
    """Each piece alone, on its own grid, has the values that it has in the whole; no pixel reaches into the gap."""
    left, right = np.arange(LOW, LOW + 4.0, 0.055), np.arange(LOW + 8.0, HIGH, 0.055)
    together = np.concatenate([left, right])
    edges = pixel_edges(torch.as_tensor(together))
    assert float(edges.diff(dim=1).max()) < 0.06
    options = {"continuum_degree": None, "velocity_step": 0.25}
    model = order(together, **options)
    pieces = np.concatenate([evaluate(order(piece, **options)) for piece in (left, right)])
    np.testing.assert_allclose(evaluate(model), pieces, rtol=0, atol=3e-6)
    with torch.no_grad():
        flux = model.stages().smeared
    alone = torch.cat([PixelBinning(one, model.sampling.wavelength)(flux) for one in edges.split(1)])
    torch.testing.assert_close(model.pixels(flux), alone, rtol=0, atol=1e-13)


# --- 6: continuum -----------------------------------------------------------------------------------------------------


def test_06_a_quadratic_continuum_is_recovered():
    """5 % across one order, together with everything else, within its error and well below it in size."""
    truth = (2.0, 0.05, -0.1)
    result = fit(observed(continuum=truth))
    assert result.success, result.message
    for degree, value in enumerate(truth):
        assert abs(result.value(f"continuum_{degree}") - value) < 4.0 * result.error(f"continuum_{degree}")
    assert_bars(result, "continuum_0", "continuum_1", "continuum_2")
    shape = np.polynomial.legendre.legval(np.linspace(-1.0, 1.0, len(WAVELENGTH)), truth)
    np.testing.assert_allclose(result.evaluate()["continuum"].numpy(), shape, rtol=5e-3)


# --- 7: windows -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rv", [-500.0, 500.0])
def test_07_equivalent_width_follows_the_velocity(rv):
    """EW(v) = EW(0)(1 + v/c), through the whole model."""

    def width(rv):
        middle = 10_000.0 * (1 + rv / SPEED_OF_LIGHT)
        wavelength = torch.linspace(middle - 25.0, middle + 25.0, 3001, dtype=F64)
        line = LineEmulator([10_000.0], [0.05], [0.06], [0.003])
        flux = evaluate(order(wavelength, star=line, rv=rv, continuum_degree=None, resolving_power=None))
        return float(((1.0 - flux) * pixel_edges(wavelength).diff(dim=1).squeeze(1).numpy()).sum())

    assert width(rv) == pytest.approx(width(0.0) * (1 + rv / SPEED_OF_LIGHT), rel=3e-6)


def test_07_a_short_chunk_clones():
    """50 Å, shorter than any fixed window or buffer."""
    wavelength = np.arange(10_500.0, 10_550.0, 0.02)
    center = np.arange(10_502.5, 10_550.0, 5.0)
    truth = np.exp(-np.sum(0.06 * voigt_profile(wavelength[:, None] - center, 0.06, 0.03), axis=1))
    clone = sb.clone(Spectrum(flux=truth * u.one, spectral_axis=wavelength * u.AA), progress=False)
    assert clone.success, clone.message
    assert len(clone.emulator) == 10
    np.testing.assert_allclose(clone.model_spectrum.flux.value, truth, rtol=0, atol=2e-3)
    np.testing.assert_allclose(clone.emulator.center.numpy(), center, atol=5e-3)


@pytest.mark.parametrize("width", [50.0, 2_000.0])
def test_07_sparse_equals_dense_for_broad_wings(width):
    """γ = 1 Å: no hole, no step where windows end, no wing lost."""
    wavelength = torch.arange(10_500.0, 10_500.0 + width, 0.02, dtype=F64)
    center = 10_500.0 + width * np.array([0.0, 0.31, 0.5, 0.97])
    with torch.no_grad():
        flux = LineEmulator(center, [2.0] * 4, [0.1] * 4, [1.0] * 4)(Sampling(wavelength)).numpy()
    truth = np.exp(-np.sum(2.0 * voigt_profile(wavelength.numpy()[:, None] - center, 0.1, 1.0), axis=1))
    np.testing.assert_allclose(flux, truth, rtol=0, atol=1e-5)
    assert np.abs(np.diff(flux - truth)).max() < 3e-6


# --- 8: held and free -------------------------------------------------------------------------------------------------


def test_08_only_what_is_declared_free_moves():
    """Globals, kinds of line parameters, whole components: held to the bit; centres never move."""
    result = fit(observed(), free=("rv",), star_lines=("ln_area",))
    start, fitted = emulator(), result.model.star
    picked = torch.searchsorted(start.center, fitted.center)
    assert torch.equal(fitted.center, start.center[picked])
    for held in ("ln_sigma", "ln_gamma", "rv_offset"):
        assert torch.equal(getattr(fitted, held), getattr(start, held)[picked]), held
    assert not torch.equal(fitted.ln_area, start.ln_area[picked])
    assert result.value("vsini") == 4.5 and result.error("vsini") == 0.0
    assert result.value("rv") != 4.2 and result.error("rv") > 0.0
    nothing = fit(observed(), free=("continuum",), star_lines=())
    assert nothing.value("rv") == 4.2
    assert all(torch.equal(getattr(nothing.model.star, kind), getattr(start, kind)[picked]) for kind in KINDS)


def test_08_cloning_has_no_velocity():
    """The radial velocity is not a parameter of a clone: only offsets of single lines are, if asked for."""
    wavelength = np.arange(10_500.0, 10_520.0, 0.02)
    truth = np.exp(-0.1 * voigt_profile(wavelength - 10_510.0, 0.06, 0.03))
    template = Spectrum(flux=truth * u.one, spectral_axis=wavelength * u.AA)
    clone = sb.clone(template, free=("ln_area", "ln_sigma"), progress=False)
    assert {name for name, _ in clone.emulator.named_parameters()} == set(KINDS)
    assert (clone.emulator.rv_offset == 0).all()


# --- 9, 10: precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rv", [-23.0, 0.0, 480.0])
def test_09_a_metre_per_second_is_seen(rv, dtype):
    """In float32, where 1 + v/c itself has quanta of 18 to 36 m/s, too: the flux moves by 1 m/s times its slope."""
    model = order(rv=rv)
    model.star.center /= 1.0 + rv / SPEED_OF_LIGHT  # so that the lines stand in the order
    model = model.to(dtype)
    fluxes = []
    with torch.no_grad():
        for velocity in (rv, rv + 1e-3, rv + 11e-3):
            model.doppler.rv.fill_(velocity)
            fluxes.append(model().double())
    one, ten = fluxes[1] - fluxes[0], fluxes[2] - fluxes[1]
    assert float(one.abs().max()) > 1e-5
    assert float((10 * one - ten).norm()) < (0.05 if dtype == torch.float32 else 0.005) * float(ten.norm())


@pytest.mark.parametrize("x, ratio", [(0.0, 1e-7), (0.0, 1.0), (1e-6, 1e-7), (4.0, 1e-7)])
def test_10_gradcheck_where_branches_meet(x, ratio):
    point = [torch.tensor([t], dtype=F64, requires_grad=True) for t in (x, 1.0, ratio)]
    assert torch.autograd.gradcheck(voigt, point)
    single = [t.detach().float().requires_grad_() for t in point]
    voigt(*single).sum().backward()
    assert all(torch.isfinite(t.grad).all() for t in single)


@pytest.mark.parametrize("law", ["log", "linear", "minnaert"])
@pytest.mark.parametrize("depth", [0.97, 2.0, 8.0])
def test_10_saturated_cores_keep_their_gradient(law, depth, dtype):
    """Lines up to eight times as deep as the continuum, with a node exactly at the centre."""
    area = depth / voigt_profile(0.0, 0.06, 0.03)
    line = LineEmulator([10_000.0], [area], [0.06], [0.03], law=law).to(dtype)
    wavelength = torch.arange(-50, 51, dtype=F64) * 0.02 + 10_000.0
    flux = line(Sampling(wavelength))
    core = torch.autograd.grad(flux[50], line.ln_area, retain_graph=True)[0]
    assert float(core.abs()) > 1e-6
    everywhere = torch.autograd.grad(flux.sum(), [line.ln_area, line.ln_sigma, line.ln_gamma, line.rv_offset])
    assert all(torch.isfinite(g).all() for g in (core, *everywhere))


# --- 11: bad pixels ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean_fit():
    """A fit without the pixel that the next test spoils."""
    data = observed()
    mask = np.zeros(len(WAVELENGTH), dtype=bool)
    mask[100] = True
    return fit(Spectrum(flux=data.flux, spectral_axis=data.spectral_axis, uncertainty=data.uncertainty, mask=mask))


@pytest.mark.parametrize("harm", ["masked spike", "NaN", "inf", "no uncertainty", "negative uncertainty"])
def test_11_a_bad_pixel_changes_nothing(harm, clean_fit):
    """A masked pixel 1e6 σ high, a pixel without value or noise: the fit is that without the pixel."""
    data = observed()
    flux, uncertainty = data.flux.value.copy(), type(data.uncertainty)(data.uncertainty.array.copy())
    mask = np.zeros(len(flux), dtype=bool)
    if harm == "masked spike":
        flux[100] += 1e6 * uncertainty.array[100]
        mask[100] = True
    elif harm in ("NaN", "inf"):
        flux[100] = float(harm)
    else:
        uncertainty.array[100] = np.nan if harm == "no uncertainty" else -1.0
    spoiled = fit(Spectrum(flux=flux * u.one, spectral_axis=data.spectral_axis, uncertainty=uncertainty, mask=mask))
    for column in ("value", "error"):
        np.testing.assert_allclose(spoiled.parameters[column], clean_fit.parameters[column], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(spoiled.ledger["area"].value, clean_fit.ledger["area"].value, rtol=1e-9)
    assert spoiled.reduced_chi2 == pytest.approx(clean_fit.reduced_chi2, rel=1e-9)
    assert np.isfinite(spoiled.model_spectrum.flux.value).all()


# --- 12, 13: conduct --------------------------------------------------------------------------------------------------


def whole_model():
    """Every stage and law, absorption and emission."""
    star = LineEmulator([10_501.5, 10_502.5], [0.05, 0.2], [0.03, 0.05], [0.02, 0.04], law="minnaert")
    sky = LineEmulator([10_501.9, 10_502.2], [0.02, 0.03], [0.02, 0.02], [0.03, 0.02], sign=[1, -1])
    return order(WAVELENGTH[:60], star=star, telluric=sky, resolving_power=(55_000.0, 0.02))


def test_12_the_whole_model_moves_to_meta_and_back():
    """Forward and backward where any tensor left behind would raise; then the same flux again. More in test_meta.py."""
    model = whole_model()
    before, state = evaluate(model), {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.freeze_windows()
    np.testing.assert_array_equal(evaluate(model), before)
    model = model.to("meta")
    assert all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers()))
    flux = model()
    flux.sum().backward()
    assert flux.is_meta and all(parameter.grad.is_meta for parameter in model.parameters())
    model = model.to_empty(device="cpu")
    model.load_state_dict(state)
    np.testing.assert_array_equal(evaluate(model), before)


def test_12_devices(device):
    """On each device of this machine, and back."""
    model = whole_model().to(device)
    model().sum().backward()
    assert all(parameter.grad.device.type == device.type for parameter in model.parameters())
    np.testing.assert_allclose(evaluate(model.to("cpu")), evaluate(whole_model()), rtol=0, atol=1e-10)


def test_13_importing_what_computes_is_silent(tmp_path):
    """Nothing printed, no warning, nothing left behind. The package itself, and global state: test_imports.py."""
    code = "import specutils_blase.fitting.pipeline, specutils_blase.cloning.clone, specutils_blase.simulate"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []
