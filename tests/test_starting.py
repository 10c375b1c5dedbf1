"""Where fits start: velocity and rotation by cross-correlation, then with all lines held."""

import numpy as np
import pytest
import torch
from astropy.table import Table, vstack
from test_fitting import SKY, STAR, WAVELENGTH, observed

from specutils_blase.fitting import fit
from specutils_blase.ledger import emulator_from_ledger
from specutils_blase.lines import LineEmulator
from specutils_blase.model import ForwardModel
from specutils_blase.simulate import pixel_edges
from specutils_blase.spectrum import read_spectrum
from specutils_blase.starting import start_continuum, start_velocities
from specutils_blase.velocity import ROTATIONS, cross_correlate

R = 55_000.0


def given(**truth):
    """Data of one order, and the clones."""
    spectrum = observed(limb_darkening=(0.4, 0.2), **truth)
    return read_spectrum(spectrum)[0], emulator_from_ledger(STAR), emulator_from_ledger(SKY)


@pytest.mark.parametrize(("rv", "vsini"), [(-27.3, 2.0), (61.0, 12.0), (-27.3, 45.0), (0.0, 60.0)])
def test_cross_correlation_finds_velocity_and_rotation(rv, vsini):
    data, star, sky = given(rv=rv, vsini=vsini)
    search = cross_correlate([data], star, sky, resolving_power=[R])
    found, rotation = search.rv, search.vsini
    assert found == pytest.approx(rv, abs=0.4 + 0.1 * vsini)
    assert rotation in ROTATIONS and 0.4 * vsini < rotation < 2.5 * vsini


@pytest.mark.parametrize("center", [10502.0, 10508.0, 10515.5, 10523.0])
def test_a_deep_line_that_no_clone_has_is_not_the_star(center):
    """A telluric line deeper than all of the star's, unknown to the clones: it correlates with each of them."""
    star = STAR.copy()
    star["area"] *= 0.4
    deep = Table({"center": [center], "area": [0.4], "sigma": [0.02], "gamma": [0.09]})
    sky = vstack([SKY, deep], metadata_conflicts="silent")
    sky.sort("center")
    data, _, known_sky = given(star=star, sky=sky, rv=-27.3, vsini=9.0)
    search = cross_correlate([data], emulator_from_ledger(star), known_sky, resolving_power=[R])
    found, rotation = search.rv, search.vsini
    assert found == pytest.approx(-27.3, abs=2.0)
    assert rotation in (5.0, 10.0)


def test_what_is_given_is_kept():
    data, star, sky = given(rv=-27.3, vsini=45.0)
    search = cross_correlate([data], star, sky, rv=-25.0, resolving_power=[R])
    found, rotation = search.rv, search.vsini
    assert found == -25.0 and rotation in (40.0, 80.0)
    search = cross_correlate([data], star, sky, vsini=30.0, resolving_power=[R])
    found, rotation = search.rv, search.vsini
    assert found == pytest.approx(-27.3, abs=4.0) and rotation == 30.0
    search = cross_correlate([data], star, sky, rv=1.0, vsini=3.0, resolving_power=[R])
    assert (search.rv, search.vsini) == (1.0, 3.0)


def test_featureless_data_show_no_star():
    spectrum = observed(star=None, sky=SKY, rv=0.0, vsini=0.0)
    data = read_spectrum(spectrum)[0]
    search = cross_correlate([data], emulator_from_ledger(STAR), emulator_from_ledger(SKY), resolving_power=[R])
    assert all(solution.gain < 10.0 for solution in search.solutions)


@pytest.mark.parametrize(("start", "vsini"), [(2.0, 9.0), (20.0, 9.0), (5.0, 2.5), (80.0, 60.0)])
def test_velocities_with_lines_held(start, vsini):
    """The clones are true here, so the velocities come out at the noise from far starts, the continuum as well."""
    data, star, sky = given(rv=-27.3, vsini=vsini)
    model = ForwardModel.for_order(
        data.wavelength, data.edges, star=star, telluric=sky, rv=-25.5, vsini=start, limb_darkening=(0.4, 0.2),
        resolving_power=R,
    )  # fmt: skip
    scale = float(data.flux.median())
    flux, weight = data.flux.double() / scale, (scale / data.sigma.double()).square()
    weight[::17] = 0.0
    flux[40] += 3.0  # an outlier
    start_continuum(model, flux, weight)
    start_velocities(model, ("rv", "vsini", "continuum"), [flux], [weight])
    assert float(model.doppler.rv.detach()) == pytest.approx(-27.3, abs=0.06 if vsini < 30 else 0.6)
    assert float(model.rotation.vsini.detach()) == pytest.approx(vsini, abs=0.15 if vsini < 30 else 0.8)
    np.testing.assert_allclose(model.continuum.coefficients.detach() * scale, (3.0, 0.06, -0.03), atol=0.02)


def test_a_held_velocity_stays():
    data, star, sky = given(rv=-27.3, vsini=9.0)
    model = ForwardModel.for_order(
        data.wavelength, data.edges, star=star, telluric=sky, rv=-26.0, vsini=9.0, resolving_power=R
    )
    flux, weight = data.flux.double(), data.sigma.double() ** -2
    start_velocities(model, ("vsini",), [flux], [weight])
    assert float(model.doppler.rv.detach()) == -26.0 and float(model.rotation.vsini.detach()) != 9.0


def test_a_rapid_rotator_needs_no_hint():
    spectrum = observed(rv=31.0, vsini=70.0)
    result = fit(spectrum, STAR, telluric=SKY, resolving_power=R, progress=False)
    assert result.success
    assert abs(result.value("rv") - 31.0) < 4 * result.error("rv") < 4.0
    assert abs(result.value("vsini") - 70.0) < 4 * result.error("vsini") < 8.0
    assert torch.isfinite(result.model()).all() and len(WAVELENGTH) == len(result.data)


@pytest.mark.parametrize("part", [1.0, 0.35])
def test_the_continuum_starts_near_the_light_behind_a_sky_that_is_much_too_deep(part):
    """A polynomial that makes up for light where the template is black soars there, or swings through zero beside."""
    pixels = np.linspace(14_690.0, 14_830.0, 700)
    centers = np.sort(np.random.default_rng(0).uniform(pixels[0], pixels[0] + part * 140.0, 60))
    clone = LineEmulator(centers, 200.0 * np.ones(60), 0.1 * np.ones(60), 0.08 * np.ones(60))
    model = ForwardModel.for_order(
        torch.as_tensor(pixels), torch.as_tensor(pixel_edges(pixels)), telluric=clone, resolving_power=45_000.0,
        continuum_degree=6,
    )  # fmt: skip
    with torch.no_grad():
        clone.ln_area -= np.log(20.0)
        true = model.stages().binned * (1.0 + 0.3 * model.continuum.basis[1] - 0.4 * model.continuum.basis[2])
        clone.ln_area += np.log(20.0)
    weight = torch.full_like(true, 1e4)
    with torch.no_grad():
        design = (model.stages().binned * model.continuum.basis).T
        free = torch.linalg.lstsq(design, true.unsqueeze(1)).solution.squeeze(1)
        assert float((free @ model.continuum.basis).max()) > 200.0
        start_continuum(model, true, weight)
        assert 0.0 < float(model.continuum.value().min()) <= float(model.continuum.value().max()) < 11.0
    # Where the sky is right, so is the continuum, all terms of it; also without a star.
    with torch.no_grad():
        clone.ln_area -= np.log(20.0)
    start_velocities(model, (), [true], [weight])
    expected = torch.tensor([1.0, 0.3, -0.4, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(model.continuum.coefficients.detach(), expected, rtol=0, atol=1e-9)
