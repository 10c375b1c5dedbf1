"""The whole forward model of an order against the brute-force simulator: flux, gradients, precision."""

from functools import cache

import numpy as np
import pytest
import torch

from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import MAX_STEP, MIN_STEP, ForwardModel, grid_step
from specutils_blase.model.parameters import KINDS
from specutils_blase.physics.grids import SPEED_OF_LIGHT, Sampling, velocity_grid
from specutils_blase.physics.voigt import voigt_fwhm
from specutils_blase.simulate import pixel_edges, simulate_flux

F64 = torch.float64
CONTINUUM = (1.02, 0.03, -0.02)
BASE = {"rv": 0.0, "vsini": 5.0, "limb_darkening": (0.4, 0.2), "resolving_power": 55_000.0}

# 400 pixels of 1.5 km/s, as HPF's, slightly wider towards the red.
WAVELENGTH = 10_000.0 + 0.05 * np.arange(400) * (1.0 + 5e-5 * np.arange(400))
EDGES = pixel_edges(WAVELENGTH)


def lines(seed, n, low, high, area, sigma, gamma):
    rng = np.random.default_rng(seed)
    return {
        "center": np.sort(rng.uniform(low, high, n)),
        "area": area * rng.random(n) ** 2 + 1e-3,
        "sigma": sigma * np.exp(0.25 * rng.standard_normal(n)),
        "gamma": gamma * np.exp(0.4 * rng.standard_normal(n)),
    }


# Lines of a cool dwarf, 4 km/s wide, and of the atmosphere, 3 km/s wide; some reach in from outside.
STAR = lines(1, 60, 9_990.0, 10_032.0, 0.12, 0.06, 0.03)
SKY = lines(2, 30, 9_997.0, 10_023.0, 0.15, 0.02, 0.04)


def at_rest(star, rv):
    """Rest-frame lines that stand where `star` says when the star moves at `rv`, so that every velocity sees them."""
    return {**star, "center": star["center"] / (1.0 + rv / SPEED_OF_LIGHT)}


def emulator(table, **options):
    return None if table is None else LineEmulator(*(table[k] for k in ("center", "area", "sigma", "gamma")), **options)


def build(star=STAR, sky=SKY, *, wavelength=WAVELENGTH, edges=EDGES, star_law="log", sky_law="log", **options):
    options = {**BASE, **options}
    model = ForwardModel.for_order(
        torch.tensor(wavelength),
        torch.tensor(edges),
        star=emulator(star, law=star_law),
        telluric=emulator(sky, law=sky_law),
        **options,
    )
    if model.continuum is not None and model.continuum.coefficients.numel() == len(CONTINUUM):
        with torch.no_grad():
            model.continuum.coefficients.copy_(torch.tensor(CONTINUUM))
    return model


def evaluate(model):
    with torch.no_grad():
        return model().double().cpu().numpy()


def simulated(star=STAR, sky=SKY, edges=EDGES, **options):
    return simulate_flux(edges, star, sky, **{**BASE, "continuum": CONTINUUM, **options})


# --- flux -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rv", [0.0, 50.0, -50.0, 500.0, -500.0])
@pytest.mark.parametrize("vsini", [0.5, 5.0, 50.0, 200.0])
def test_flux_against_the_simulator(vsini, rv):
    """Limit of the design 1e-4. Measured 1e-5 for every velocity and rotation: cubics through the telluric lines."""
    star = at_rest(STAR, rv)
    truth = simulated(star, vsini=vsini, rv=rv)
    assert truth.min() < 0.7
    np.testing.assert_allclose(evaluate(build(star, vsini=vsini, rv=rv)), truth, rtol=0, atol=2e-5)


def test_error_falls_with_the_fourth_power_of_the_step():
    """What error there is comes from the grid: no other approximation shows down to 1e-7."""
    truth = simulated()
    errors = [np.abs(evaluate(build(velocity_step=step)) - truth).max() for step in (0.4, 0.2, 0.1)]
    assert errors[0] < 2e-5 and errors[1] < 1.5e-6 and errors[2] < 1.5e-7


@pytest.mark.parametrize("law", ["linear", "minnaert"])
@pytest.mark.parametrize("component", ["star", "telluric"])
def test_laws_against_the_simulator(component, law):
    star_law, sky_law = (law, "log") if component == "star" else ("log", law)
    sky = {**SKY, "area": 0.4 * SKY["area"]}  # shallower than the linear law's guard
    truth = simulated(sky=sky, flux_scale=star_law, telluric_flux_scale=sky_law)
    assert np.abs(truth - simulated(sky=sky)).max() > 0.02
    np.testing.assert_allclose(evaluate(build(sky=sky, star_law=star_law, sky_law=sky_law)), truth, rtol=0, atol=2e-5)


def test_saturated_lines_in_the_linear_law():
    """Where the depth of a line passes the guard its flux has a corner, for which the automatic step is too coarse."""
    truth = simulated(sky={**SKY, "area": 2.0 * SKY["area"]}, telluric_flux_scale="linear")
    errors = [
        np.abs(
            evaluate(build(sky={**SKY, "area": 2.0 * SKY["area"]}, sky_law="linear", velocity_step=step)) - truth
        ).max()
        for step in (0.4, 0.1, 0.05)
    ]
    assert errors[0] < 3e-3 and errors[1] < 2e-4 and errors[2] < 3e-5, errors


@pytest.mark.parametrize(
    "options",
    [
        {"vsini": 0.0},
        {"resolving_power": 20_000.0},
        {"resolving_power": 100_000.0, "vsini": 1.0},
        {"limb_darkening": (0.0, 0.0), "vsini": 20.0},
        {"limb_darkening": (0.1, 0.8), "vsini": 20.0},
    ],
    ids=str,
)
def test_other_instruments_and_stars(options):
    """6e-5 for a line spread as narrow as the lines, 1e-5 otherwise."""
    np.testing.assert_allclose(evaluate(build(**options)), simulated(**options), rtol=0, atol=1e-4)


@pytest.mark.parametrize("missing", ["star", "sky"])
def test_one_component_alone(missing):
    star, sky = (None, SKY) if missing == "star" else (STAR, None)
    np.testing.assert_allclose(evaluate(build(star, sky)), simulated(star, sky), rtol=0, atol=2e-5)


def test_observed_components_alone():
    """Each component through the instrument, continuum one."""
    model = build()
    star, sky = (model.observed(name).numpy() for name in ("star", "telluric"))
    np.testing.assert_allclose(star, simulated(STAR, None, continuum=(1.0,)), rtol=0, atol=2e-5)
    np.testing.assert_allclose(sky, simulated(None, SKY, continuum=(1.0,)), rtol=0, atol=2e-5)
    assert np.abs(star * sky * model.continuum.value().detach().numpy() - evaluate(model)).max() > 1e-3  # no product


def test_resolving_power_that_varies():
    """A polynomial of wavelength: 47,000 at one end, 64,000 at the other."""
    model = build(resolving_power=(55_000.0, 0.15, 0.02))
    low, high = (float(model.sampling.wavelength[k]) for k in (0, -1))

    def power(wavelength):
        x = (2.0 * wavelength - low - high) / (high - low)
        return np.exp(np.polynomial.legendre.legval(x, [np.log(55_000.0), 0.15, 0.02]))

    truth = simulated(resolving_power=power)
    assert np.abs(truth - simulated()).max() > 5e-3
    np.testing.assert_allclose(evaluate(model), truth, rtol=0, atol=2e-5)


def test_limiting_depth_that_varies():
    """Minnaert's R_c as a polynomial of the star's own wavelength."""
    model = build(at_rest(STAR, 500.0), rv=500.0, star_law="minnaert")
    from specutils_blase.physics.saturation import Minnaert

    law = Minnaert((9_980.0, 10_010.0), 0.7, degree=1)
    with torch.no_grad():
        law.coefficients[1] = 0.5
    model.star.law = law

    def depth(wavelength):
        x = np.clip((wavelength - 9_995.0) / 15.0, -1, 1)
        return 1.0 / (1.0 + np.exp(-(np.log(0.7 / 0.3) + 0.5 * x)))

    truth = simulated(
        at_rest(STAR, 500.0), rv=500.0, flux_scale="minnaert", telluric_flux_scale="log", limiting_depth=depth
    )
    np.testing.assert_allclose(evaluate(model), truth, rtol=0, atol=2e-5)


def test_emission_and_centre_offsets():
    offset = np.linspace(-2.0, 2.0, 60)
    center = np.asarray(STAR["center"]) * (1.0 + offset / 299792.458)
    star = {**STAR, "center": center, "sign": np.where(np.arange(60) % 7 == 0, -1, 1)}
    model = build()
    model.star = emulator(STAR, sign=star["sign"], rv_offset=offset)
    truth = simulated(star)
    assert truth.max() > 1.06
    np.testing.assert_allclose(evaluate(model), truth, rtol=0, atol=2e-5)


def test_broad_lines_that_reach_across_the_order():
    """A hydrogen line in the middle and a strong one outside."""
    broad = {"center": [10_011.0, 9_960.0], "area": [6.0, 30.0], "sigma": [1.5, 0.3], "gamma": [1.0, 1.0]}
    star = {name: np.concatenate([STAR[name], broad[name]]) for name in STAR}
    truth = simulated(star)
    assert truth[-1] < 0.99 * simulated()[-1]
    np.testing.assert_allclose(evaluate(build(star)), truth, rtol=0, atol=2e-5)


def test_pixels_finer_than_the_grid_and_gaps():
    """Pixels of 0.3 km/s, a stretch missing, and a lonely pixel: every one has its own mean."""
    wavelength = np.concatenate([np.arange(10_002.0, 10_005.0, 0.01), [10_009.0], np.arange(10_012.0, 10_015.0, 0.05)])
    edges = pixel_edges(wavelength)
    options = {"continuum_degree": None, "velocity_step": 0.4}
    found = evaluate(build(wavelength=wavelength, edges=edges, **options))
    np.testing.assert_allclose(found, simulated(edges=edges, continuum=(1.0,)), rtol=0, atol=4e-5)


# --- gradients --------------------------------------------------------------------------------------------------------


def star_change(name, line, size):
    return {"star": {**STAR, name: np.where(np.arange(60) == line, STAR[name] * np.exp(size), STAR[name])}}


def sky_change(name, line, size):
    return {"sky": {**SKY, name: np.where(np.arange(30) == line, SKY[name] * np.exp(size), SKY[name])}}


def offset_change(line, size):
    return {"star": {**STAR, "center": STAR["center"] * (1.0 + size * (np.arange(60) == line) / SPEED_OF_LIGHT)}}


STRONG_STAR = int(np.argmax(np.where(np.abs(STAR["center"] - 10_010.0) < 7.0, STAR["area"], 0.0)))
STRONG_SKY = int(np.argmax(np.where(np.abs(SKY["center"] - 10_010.0) < 7.0, SKY["area"], 0.0)))
WEAK_STAR = int(np.argmin(np.where(np.abs(STAR["center"] - 10_010.0) < 7.0, STAR["area"], 1.0)))


def changes(vsini):
    """Parameter → change of the simulation by a small step, and the step."""
    table = {
        "rv": (lambda h: {"rv": h}, 0.01),
        "vsini": (lambda h: {"vsini": vsini + h}, 0.01 * min(vsini, 5.0)),
        "u1": (lambda h: {"limb_darkening": (0.4 + h, 0.2)}, 0.01),
        "ln_R": (lambda h: {"resolving_power": 55_000.0 * np.exp(h)}, 2e-3),
        "offset": (lambda h: offset_change(STRONG_STAR, h), 0.01),
    }
    for kind in ("area", "sigma", "gamma"):
        table[f"star {kind}"] = (lambda h, kind=kind: star_change(kind, STRONG_STAR, h), 3e-3)
        table[f"weak {kind}"] = (lambda h, kind=kind: star_change(kind, WEAK_STAR, h), 3e-3)
        table[f"sky {kind}"] = (lambda h, kind=kind: sky_change(kind, STRONG_SKY, h), 3e-3)
    return table


def from_gradients(model, gradients):
    """The same parameters from the model's own gradients."""
    star, sky = model.star, model.telluric
    found = {
        "rv": gradients[model.doppler.rv],
        "vsini": gradients[model.rotation.vsini],
        "u1": gradients[model.rotation.limb_darkening][0],
        "ln_R": gradients[model.line_spread.ln_resolving_power][0],
        "offset": gradients[star.rv_offset][STRONG_STAR],
    }
    for kind in ("area", "sigma", "gamma"):
        found[f"star {kind}"] = gradients[getattr(star, f"ln_{kind}")][STRONG_STAR]
        found[f"weak {kind}"] = gradients[getattr(star, f"ln_{kind}")][WEAK_STAR]
        found[f"sky {kind}"] = gradients[getattr(sky, f"ln_{kind}")][STRONG_SKY]
    return {name: float(value) for name, value in found.items()}


@pytest.mark.parametrize("vsini, rv", [(0.5, 0.0), (5.0, 50.0), (50.0, -500.0), (200.0, 500.0)])
def test_gradients_against_differences_of_the_simulator(vsini, rv):
    """Limit of the design 1e-3 of each derivative's norm. Measured 5e-4 for limb darkening at 0.5 km/s, 3e-4 otherwise.

    The norm of the error over the pixels is taken from its projections on random vectors.
    """
    differences = {}
    for name, (change, h) in changes(vsini).items():
        ends = []
        for size in (-h, h):
            given = change(size)
            star = at_rest(given.pop("star", STAR), rv)
            if "rv" in given:
                given["rv"] += rv
            ends.append(simulated(star, given.pop("sky", SKY), **{"vsini": vsini, "rv": rv, **given}))
        differences[name] = (ends[1] - ends[0]) / (2.0 * h)
    model = build(at_rest(STAR, rv), vsini=vsini, rv=rv)
    parameters = [p for p in model.parameters() if p.requires_grad]
    flux, errors = model(), {name: [] for name in differences}
    rng = np.random.default_rng(7)
    for _ in range(8):
        projection = rng.standard_normal(len(WAVELENGTH))
        values = torch.autograd.grad(flux @ torch.tensor(projection), parameters, retain_graph=True)
        found = from_gradients(model, dict(zip(parameters, values, strict=True)))
        for name, truth in differences.items():
            errors[name].append(found[name] - projection @ truth)
    relative = {name: np.sqrt(np.mean(np.square(errors[name]))) / np.linalg.norm(differences[name]) for name in errors}
    assert max(relative.values()) < 1e-3, relative


def test_every_parameter_has_a_gradient(dtype):
    """Finite in both precisions, and none identically zero for what stands inside the order."""
    model = build(star_law="minnaert").to(dtype)
    model().sum().backward()
    inside = {"star": model.star.center, "telluric": model.telluric.center}
    for name, parameter in model.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name
        gradient = parameter.grad
        if name.split(".")[-1] in KINDS:
            center = inside[name.split(".")[1]]
            gradient = gradient[(center > WAVELENGTH[0]) & (center < WAVELENGTH[-1])]
        assert (gradient != 0).all(), name


# --- precision, windows, construction ---------------------------------------------------------------------------------


def test_float32_equals_float64(device):
    """Wavelengths and velocities stay float64, so that only rounding of fluxes is left: 2e-7 measured."""
    exact, single = evaluate(build()), build().float().to(device)
    flux = single()
    assert flux.dtype == torch.float32
    np.testing.assert_allclose(flux.detach().double().cpu().numpy(), exact, rtol=0, atol=2e-6)


def test_gradients_in_float32(device):
    cotangent = torch.randn(len(WAVELENGTH), dtype=F64)
    gradients = []
    for model in (build(), build().float().to(device)):
        flux = model()
        (flux * cotangent.to(flux)).sum().backward()
        gradients.append({name: p.grad.double().cpu() for name, p in model.named_parameters()})
    for name, exact in gradients[0].items():
        assert (gradients[1][name] - exact).norm() < 1e-4 * exact.norm(), name


def test_one_metre_per_second():
    """The model moves by v ∂F/∂v, in float32 too, where 1 + v/c itself would be stuck for 18 m/s."""
    for dtype, accuracy in ((F64, 3e-3), (torch.float32, 0.03)):
        model = build(rv=-9.6).to(dtype)
        fluxes = []
        with torch.no_grad():
            for rv in (-9.6, -9.599, -9.589):
                model.doppler.rv.fill_(rv)
                fluxes.append(model().double())
        one, ten = fluxes[1] - fluxes[0], fluxes[2] - fluxes[1]
        assert float(one.abs().max()) > 2e-5
        assert float((10 * one - ten).norm()) < accuracy * float(ten.norm())


def test_frozen_windows():
    """Frozen, the windows of the moment stay; thawed, they follow the lines."""
    model, fresh = build(), build()
    model.freeze_windows()
    torch.testing.assert_close(model(), fresh(), rtol=0, atol=0)
    with torch.no_grad():
        for one in (model, fresh):
            one.doppler.rv.fill_(300.0)
        assert float((model() - fresh()).abs().max()) > 1e-2
        model.thaw_windows()
        torch.testing.assert_close(model(), fresh(), rtol=0, atol=0)


def test_state_dict_round_trip():
    model = build()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.01)
    copy = build()
    copy.load_state_dict(model.state_dict())
    torch.testing.assert_close(copy(), model(), rtol=0, atol=0)


def test_stages_follow_one_another():
    """Star → rotated → × sky → smeared → binned → continuum."""
    model = build()
    stages = model.stages()
    torch.testing.assert_close(stages.star, torch.exp(-stages.parts["star"].opacity[0]))
    torch.testing.assert_close(stages.rotated, model.rotation(stages.star))
    torch.testing.assert_close(stages.product, stages.rotated * stages.sky)
    torch.testing.assert_close(stages.smeared, model.line_spread(stages.product))
    torch.testing.assert_close(stages.binned, model.pixels(stages.smeared))
    torch.testing.assert_close(stages.flux, stages.binned * model.continuum.value())
    torch.testing.assert_close(model(), stages.flux, rtol=0, atol=0)


def test_a_bare_model_is_its_emulator():
    """On a template's own sampling, with no stage: cloning."""
    sampling = Sampling(torch.tensor(WAVELENGTH))
    model = ForwardModel(sampling, star=emulator(STAR))
    torch.testing.assert_close(model(), emulator(STAR)(sampling), rtol=0, atol=0)
    with pytest.raises(ValueError, match="needs a star, a telluric component, or both"):
        ForwardModel(sampling)


@cache
def narrow(fwhm):
    """An emulator of lines of one full width [km/s]."""
    sigma = np.full(40, fwhm / SPEED_OF_LIGHT * 10_010.0 / 3.6)
    center = np.linspace(10_001.0, 10_019.0, 40)
    return LineEmulator(center, sigma, sigma, sigma)


def test_grid_step():
    """A quarter of a pixel or a third of the narrowest lines, between bounds; far lines and one stray do not count."""
    wavelength = torch.tensor(WAVELENGTH)
    pixel = float((wavelength.diff() / wavelength[1:]).median()) * SPEED_OF_LIGHT
    assert grid_step(wavelength, emulator(STAR), None, 0.0) == pytest.approx(pixel / 4)
    width = float(voigt_fwhm(narrow(0.9).sigma, narrow(0.9).gamma)[0].detach()) / 10_010.0 * SPEED_OF_LIGHT
    assert grid_step(wavelength, narrow(0.9), None, 0.0) == pytest.approx(width / 3, rel=2e-3)
    assert grid_step(wavelength, emulator(STAR), narrow(0.9), 0.0) == pytest.approx(width / 3, rel=2e-3)
    assert grid_step(wavelength, narrow(0.9), None, 3e4) == pytest.approx(pixel / 4)  # shifted out of the order
    assert grid_step(wavelength, narrow(0.05), None, 0.0) == MIN_STEP
    assert grid_step(torch.linspace(10_000, 10_100, 50, dtype=F64), None, None, 0.0) == MAX_STEP
    # A line spread is not divided into more than sixteen steps, but the pixels' own share is kept.
    assert grid_step(wavelength, narrow(0.05), None, 0.0, 100_000.0) == pytest.approx(SPEED_OF_LIGHT / 1.6e6)
    assert grid_step(wavelength, narrow(0.05), None, 0.0, 5_000.0) == pytest.approx(pixel / 4)
    assert grid_step(wavelength, narrow(0.9), None, 0.0, 100_000.0) == pytest.approx(width / 3, rel=2e-3)


@pytest.mark.parametrize("vsini", [0.0, 30.0])
def test_the_grid_has_room_for_the_kernels(vsini):
    """At both ends the kernels see lines, not a continuation: the margin covers their growth in a fit."""
    edge = {"center": [9_999.9, 10_023.9], "area": [0.05, 0.05], "sigma": [0.05, 0.05], "gamma": [0.02, 0.02]}
    edge = {name: np.array(values) for name, values in edge.items()}
    model = build(edge, None, vsini=vsini)
    with torch.no_grad():
        model.rotation.vsini.fill_(vsini + 15.0)
    truth = simulated(edge, None, vsini=vsini + 15.0)
    np.testing.assert_allclose(evaluate(model), truth, rtol=0, atol=1e-5)


def test_sampling_must_be_of_uniform_velocity_for_kernels():
    """`for_order` makes it so, from the bluest edge to the reddest and beyond."""
    model = build()
    steps = model.sampling.wavelength.log().diff() * SPEED_OF_LIGHT
    torch.testing.assert_close(steps, steps[:1].expand_as(steps), rtol=1e-7, atol=0)
    assert model.sampling.wavelength[0] < EDGES.min() and model.sampling.wavelength[-1] > EDGES.max()
    expected = velocity_grid(float(model.sampling.wavelength[0]), float(model.sampling.wavelength[-1]), float(steps[0]))
    assert abs(len(expected) - len(model.sampling)) <= 1
