"""Motion of the star: Doppler shift and rotation as modules, on grids in physical units."""

import numpy as np
import pytest
import torch
from scipy.integrate import quad

from specutils_blase.model.extrinsic import DopplerShift, RotationalBroadening
from specutils_blase.physics.grids import SPEED_OF_LIGHT, velocity_grid
from specutils_blase.simulate import rotation_kernel

F64 = torch.float64


def gaussian_line(center, width, step, reach=260.0):
    """Absorption line of standard deviation `width` km/s on a uniform-velocity grid; velocities and flux."""
    grid = velocity_grid(center * (1 - reach / SPEED_OF_LIGHT), center * (1 + reach / SPEED_OF_LIGHT), step)
    velocity = SPEED_OF_LIGHT * torch.log(grid / center)
    return velocity, 1.0 - 0.8 * torch.exp(-0.5 * (velocity / width) ** 2)


def rotated_line(velocity, width, vsini, u1, u2):
    """The same line, rotated, by scipy.integrate.quad."""

    def one(v):
        def integrand(theta):
            x = np.sin(theta)
            return rotation_kernel(x, u1, u2) * np.cos(theta) * np.exp(-0.5 * ((v - vsini * x) / width) ** 2)

        near = np.arcsin(np.clip([(v - 10 * width) / vsini, (v + 10 * width) / vsini], -1, 1))
        return 1.0 - 0.8 * quad(integrand, *near, epsabs=1e-12, limit=200)[0]

    return np.array([one(v) for v in velocity])


# --- Doppler ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rv", [-500.0, 0.0, 1e-3, 500.0])
def test_doppler_factor(rv):
    doppler = DopplerShift(rv)
    wavelength = torch.tensor([8000.0, 12800.0], dtype=F64)
    torch.testing.assert_close(doppler(wavelength).detach(), wavelength / (1 + rv / SPEED_OF_LIGHT), rtol=1e-15, atol=0)
    assert torch.autograd.gradcheck(lambda w: doppler(w), (wavelength.requires_grad_(),))
    (slope,) = torch.autograd.grad(doppler(wavelength.detach())[0], doppler.rv)
    assert float(slope) == pytest.approx(-8000.0 / SPEED_OF_LIGHT / (1 + rv / SPEED_OF_LIGHT) ** 2, rel=1e-12)


def test_velocity_stays_double():
    doppler = DopplerShift(-9.123456789).float()
    assert doppler.rv.dtype == F64 and doppler.rv.detach().item() == -9.123456789


# --- rotation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limb", [(0.0, 0.0), (0.4, 0.2), (0.9, 0.0)])
@pytest.mark.parametrize("vsini", [0.5, 5.0, 50.0, 200.0])
def test_rotation_against_quadrature(vsini, limb):
    """A line of 3 km/s on a grid of 0.4 km/s; 200 km/s keeps its support."""
    velocity, flux = gaussian_line(10000.0, 3.0, 0.4, reach=240.0)
    with torch.no_grad():
        found = RotationalBroadening(vsini, 0.4, limb_darkening=limb)(flux)
    chosen = slice(3, None, 41)
    np.testing.assert_allclose(found[chosen], rotated_line(velocity[chosen].tolist(), 3.0, vsini, *limb), atol=1e-5)


@pytest.mark.parametrize("step", [0.2, 0.5])
@pytest.mark.parametrize("center", [8100.0, 12700.0, 22000.0])
def test_width_in_velocity_does_not_depend_on_grid_or_wavelength(center, step):
    """Half of the depth at the same ±velocity everywhere: kernels are made in km/s, not in Å or samples."""
    vsini = 30.0
    velocity, flux = gaussian_line(center, 2.0, step, reach=60.0)
    with torch.no_grad():
        line = 1.0 - RotationalBroadening(vsini, step)(flux)
    right = velocity > 0
    half = np.interp(-0.5 * float(line.max()), -line[right].numpy(), velocity[right].numpy())
    assert half == pytest.approx(25.64, abs=0.01)  # a little less than √3/2 of 30: the line itself has a width
    truth = 1.0 - rotated_line([half], 2.0, vsini, 0.0, 0.0)[0]
    assert truth == pytest.approx(0.5 * float(line.max()), abs=2e-4)


@pytest.mark.parametrize("vsini", [0.3, 1.0, 8.0])
def test_derivative_to_vsini(vsini):
    """At 1 km/s, too, and below a cell: autograd equals differences of the quadrature."""
    velocity, flux = gaussian_line(10000.0, 3.0, 0.4, reach=40.0)
    rotation = RotationalBroadening(vsini, 0.4, limb_darkening=(0.4, 0.2))
    chosen = slice(2, None, 11)
    found = rotation(flux)[chosen]
    gradient = torch.stack([torch.autograd.grad(f, rotation.vsini, retain_graph=True)[0] for f in found])
    h = 0.02 * vsini
    points = velocity[chosen].tolist()
    ends = [rotated_line(points, 3.0, vsini + k * h, 0.4, 0.2) for k in (-2, -1, 1, 2)]
    truth = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
    np.testing.assert_allclose(gradient, truth, atol=2e-3 * np.abs(truth).max())


@pytest.mark.parametrize("vsini", [0.02, 0.7, 30.0])
def test_tap_derivatives_equal_autograd(vsini):
    rotation = RotationalBroadening(vsini, 0.4, limb_darkening=(0.4, 0.2))
    stated = rotation.tap_derivatives()
    d_vsini, d_limb = torch.autograd.functional.jacobian(
        rotation.taps, (rotation.vsini.detach(), rotation.limb_darkening.detach())
    )
    torch.testing.assert_close(stated[0], d_vsini, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(stated[1:], d_limb.T, rtol=1e-6, atol=1e-9)
    assert not stated.requires_grad
    torch.testing.assert_close(stated.sum(1), torch.zeros(3, dtype=F64), rtol=0, atol=1e-9)  # area stays one


def test_no_rotation():
    """v sin i = 0 does nothing, and its derivative is finite."""
    _, flux = gaussian_line(10000.0, 3.0, 0.4, reach=40.0)
    rotation = RotationalBroadening(0.0, 0.4)
    found = rotation(flux)
    torch.testing.assert_close(found.detach(), flux, rtol=0, atol=1e-5)
    found.sum().backward()
    assert torch.isfinite(rotation.vsini.grad) and torch.isfinite(rotation.limb_darkening.grad).all()


def test_kernel_grows_with_vsini():
    """The taps needed follow the present v sin i, up to the maximum that margins were made for."""
    rotation = RotationalBroadening(5.0, 0.5)
    assert rotation.max_vsini == 27.5
    small = rotation.n_half
    with torch.no_grad():
        rotation.vsini.fill_(20.0)
    assert rotation.n_half == 40 > small
    with torch.no_grad():
        rotation.vsini.fill_(500.0)
        taps = rotation.taps(rotation.vsini, rotation.limb_darkening)
    assert rotation.n_half == 55
    torch.testing.assert_close(taps.sum(), torch.ones((), dtype=F64))


def test_negative_rotation_is_refused():
    with pytest.raises(ValueError, match=r"vsini must not be negative, got -1.0 km/s"):
        RotationalBroadening(-1.0, 0.4)
    with pytest.raises(ValueError, match="vsini must not be negative"):
        RotationalBroadening(float("nan"), 0.4)


def test_single_precision(dtype):
    """The kernel is made in float64 and applied in the flux's type; parameters stay float64."""
    _, flux = gaussian_line(10000.0, 3.0, 0.4, reach=60.0)
    rotation = RotationalBroadening(20.0, 0.4, limb_darkening=(0.4, 0.2))
    exact = rotation(flux).detach()
    rotation = rotation.to(dtype)
    found = rotation(flux.to(dtype))
    assert found.dtype == dtype and rotation.vsini.dtype == F64
    torch.testing.assert_close(found.detach().double(), exact, rtol=0, atol=1e-6 if dtype == torch.float32 else 1e-14)
