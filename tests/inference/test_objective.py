"""The cost that is minimised: χ², priors, their derivatives, bounds."""

import re
from fractions import Fraction

import astropy.units as u
import numpy as np
import pytest
import torch

from specutils_blase.inference.objective import Objective
from specutils_blase.inference.priors import LINE_LIMITS, LinePriors
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import ForwardModel
from specutils_blase.model.parameters import KINDS, FreeParameters
from specutils_blase.physics.grids import SPEED_OF_LIGHT
from specutils_blase.physics.voigt import voigt_fwhm
from specutils_blase.simulate import pixel_edges

F64 = torch.float64
N = 160
STAR = LinePriors(ln_area=0.3, ln_sigma=0.15, ln_gamma=0.4, rv_offset=0.1, degrees_of_freedom=4.0)
SKY = LinePriors(ln_area=0.2, ln_sigma=0.1, ln_gamma=0.2, rv_offset=0.05, degrees_of_freedom=float("inf"))
GLOBAL = ("rv", "vsini", "limb_darkening", "resolving_power", "continuum")


GLOBAL_PRIORS = {
    "rv": 1e3, "vsini": 1e4, "limb_darkening": 0.1, "resolving_power": 0.1, "continuum": 1e2, "star_law": 1.0,
    "telluric_law": 1.0,
}  # fmt: skip
GLOBAL_LIMITS = {
    "rv": 5.0, "limb_darkening": 0.2, "resolving_power": 0.1, "continuum": 1e3, "star_law": 0.7, "telluric_law": 0.7,
}  # fmt: skip


def problem(vsini=4.0, masked=(), free=GLOBAL, star=STAR, sky=SKY):
    """Random data against a small model of star and sky."""
    rng = np.random.default_rng(31)
    wavelength = 10_000.0 + 0.05 * np.arange(N)

    def lines(n, sigma):
        return LineEmulator(
            rng.uniform(10_000.3, 10_007.7, n), rng.uniform(0.02, 0.1, n), np.full(n, sigma), np.full(n, 0.03)
        )

    model = ForwardModel.for_order(
        torch.tensor(wavelength),
        torch.tensor(pixel_edges(wavelength)),
        star=lines(12, 0.06),
        telluric=lines(6, 0.02),
        vsini=vsini,
        limb_darkening=(0.4, 0.2),
        resolving_power=55_000.0,
    )
    layout = FreeParameters(
        model,
        {"star": KINDS, "telluric": ("ln_area", "rv_offset")},
        {"star": torch.arange(12), "telluric": torch.arange(6)},
        free,
    )
    flux = torch.as_tensor(0.9 + 0.02 * rng.standard_normal(N))
    weight = torch.as_tensor(rng.uniform(500.0, 3000.0, N))
    weight[list(masked)] = 0.0
    return Objective(layout, flux, weight, {"star": star, "telluric": sky})


def away(p, size=1.0, seed=2):
    """A vector about `size` prior widths from the anchor, globals a little."""
    scatter = torch.randn(len(p.priors.mean), dtype=F64, generator=torch.Generator().manual_seed(seed))
    width = p.priors.precision**-0.5
    for name, columns in p.free.global_slices.items():
        width[columns] = {"rv": 0.3, "vsini": 2.0, "limb_darkening": 0.05, "resolving_power": 0.03}.get(name, 0.01)
    return p.project(p.priors.mean + size * width * scatter)


def total(p, vector):
    rows, priors = p.evaluate(vector)
    return float(rows.sum() + priors.sum())


# --- priors -----------------------------------------------------------------------------------------------------------


def test_prior_widths_by_kind():
    p = problem()
    precision = p.priors.precision[p.free.columns("star")]
    torch.testing.assert_close(precision[5], torch.tensor([0.3, 0.15, 0.4, 0.1], dtype=F64) ** -2)
    torch.testing.assert_close(
        p.priors.precision[p.free.columns("telluric")][2], torch.tensor([0.2, 0.05], dtype=F64) ** -2
    )
    for name, columns in p.free.global_slices.items():
        torch.testing.assert_close(
            p.priors.precision[columns], torch.full_like(p.priors.precision[columns], GLOBAL_PRIORS[name] ** -2)
        )
    assert float(p.priors.cost(p.priors.mean).abs().max()) == 0.0


def test_prior_values():
    """-2 ln of the densities themselves, up to their value at the anchor, by scipy."""
    from scipy.stats import norm, t

    p = problem()
    vector = away(p, 2.0)
    cost = p.priors.cost(vector)
    distance = ((vector - p.priors.mean) * p.priors.precision.sqrt()).numpy()
    star = p.free.columns("star").reshape(-1).numpy()
    rest = np.setdiff1d(np.arange(len(vector)), star)
    np.testing.assert_allclose(cost[star], -2 * (t.logpdf(distance[star], 4) - t.logpdf(0, 4)), rtol=1e-10)
    np.testing.assert_allclose(cost[rest], -2 * (norm.logpdf(distance[rest]) - norm.logpdf(0)), rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("inflation", [None, {"ln_area": 3.0, "ln_sigma": 2.0, "ln_gamma": 1.5, "rv_offset": 4.0}])
@pytest.mark.parametrize("size", [0.3, 3.0])
def test_prior_precision_gives_the_gradient(size, inflation):
    """The gradient of the cost is that of the Gaussian which has this precision: 2 P (θ - θ₀), heavy tails included."""
    p = problem()
    p = p if inflation is None else p.inflated(inflation)
    vector = away(p, size).requires_grad_()
    (gradient,) = torch.autograd.grad(p.priors.cost(vector).sum(), vector)
    stated = 2.0 * p.priors.precision_at(vector.detach()) * (vector.detach() - p.priors.mean)
    torch.testing.assert_close(gradient, stated, rtol=1e-10, atol=1e-12)


def test_prior_precision_bounds_the_prior():
    """The Gaussian touches the heavy-tailed cost at its point and lies above it everywhere else: steps are safe."""
    p = problem()
    vector = away(p, 2.0)
    precision, cost = p.priors.precision_at(vector), p.priors.cost(vector)
    for seed in range(5):
        other = away(p, 4.0, seed=seed)
        bound = cost + precision * ((other - p.priors.mean).square() - (vector - p.priors.mean).square())
        assert (p.priors.cost(other) <= bound + 1e-9).all()


def test_heavy_tails_let_go():
    """Ten widths out a Gaussian costs 100, Student's t with four degrees of freedom 16."""
    p = problem()
    vector = p.priors.mean + 10.0 * p.priors.precision**-0.5
    cost = p.priors.cost(vector)
    assert float(cost[p.free.columns("star")[0, 0]]) == pytest.approx(5.0 * np.log(26.0))
    assert float(cost[p.free.columns("telluric")[0, 0]]) == pytest.approx(100.0)


def test_loosened_priors():
    """Widths times the factor of their kind; the objective that it was made of stays as it is."""
    p = problem()
    vector = away(p, 1.0)
    before = p.priors.cost(vector)
    loose = p.inflated({"ln_area": 2.0, "ln_sigma": 1.0, "ln_gamma": 1.0, "rv_offset": 1.0}).priors.cost(vector)
    sky = p.free.columns("telluric")
    torch.testing.assert_close(loose[sky[:, 0]], before[sky[:, 0]] / 4.0)
    torch.testing.assert_close(loose[sky[:, 1]], before[sky[:, 1]])
    torch.testing.assert_close(p.priors.cost(vector), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["ln_area", "ln_sigma", "ln_gamma", "rv_offset", "degrees_of_freedom"])
@pytest.mark.parametrize(
    "value",
    [
        0.0, -1.0, float("nan"), None, "0.3", b"0.3", True, np.True_, torch.tensor(True), [0.1, 0.2], np.array([0.3]),
        torch.tensor([0.3]), np.complex64(1.0), np.ma.masked, 10**400, 3.0 * u.AA, [0.1] * u.km / u.s, LinePriors,
    ],
    ids=lambda value: f"{type(value).__name__}-{str(value)[:8]}",
)  # fmt: skip
def test_priors_must_be_positive(name, value):
    """The message names the field, what came, and what to do instead."""
    remedy = "Infinity makes the priors Gaussian" if name == "degrees_of_freedom" else "hold it instead"
    message = rf"{name} of a prior must be one positive.*got {re.escape(repr(value))}\. .*{remedy}"
    with pytest.raises(ValueError, match=message):
        LinePriors(**{name: value})


def test_priors_are_plain_numbers():
    """Whatever they came as: they are compared, and written to files."""
    for value in (0.5, np.float32(0.5), np.array(0.5), torch.tensor(0.5), 0.5 * u.one, Fraction(1, 2)):
        priors = LinePriors(ln_area=value)
        assert priors == LinePriors(ln_area=0.5) and type(priors.ln_area) is float
    assert type(LinePriors(degrees_of_freedom=4).degrees_of_freedom) is float


def test_priors_with_units_and_without_end():
    """Velocities in any unit; only degrees of freedom may be infinite, with which the priors are Gaussian."""
    assert LinePriors(rv_offset=250.0 * u.m / u.s).rv_offset == pytest.approx(0.25, rel=1e-12)
    assert LinePriors(ln_area=30.0 * u.percent).ln_area == pytest.approx(0.3, rel=1e-12)
    assert np.isinf(LinePriors(degrees_of_freedom=np.inf).degrees_of_freedom)
    for name in ("ln_area", "ln_sigma", "ln_gamma", "rv_offset"):
        with pytest.raises(ValueError, match=rf"{name} .*finite number.*got inf"):
            LinePriors(**{name: np.inf})


# --- χ² ---------------------------------------------------------------------------------------------------------------


def test_chi_square():
    p = problem(masked=range(10, 30))
    vector = away(p)
    rows, priors = p.evaluate(vector)
    with torch.no_grad():
        model = p.free.model()
    torch.testing.assert_close(p.free.read(), vector, rtol=1e-12, atol=1e-12)  # the model is left there
    truth = (p.weight * (p.flux - model) ** 2).numpy()
    np.testing.assert_allclose(rows, truth, rtol=1e-12)
    assert p.chi_square() == pytest.approx(truth.sum(), rel=1e-12)
    assert (rows[10:30] == 0).all()
    assert p.n_datum == N - 20
    torch.testing.assert_close(priors, p.priors.cost(vector))


def test_masked_pixels_change_nothing():
    one, two = problem(masked=range(10, 30)), problem(masked=range(10, 30))
    two.flux[10:30] = 1e6
    vector = away(one)
    assert total(one, vector) == total(two, vector)
    gradients = [p.linearize(vector).gradient for p in (one, two)]
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


@pytest.mark.parametrize("vsini", [4.0, 0.3])
def test_gradient_of_the_cost(vsini):
    """What the solver is given is -½ of the cost's slope, along every coordinate."""
    p = problem(vsini=vsini)
    vector = away(p, 0.5)
    vector[p.free.global_slices["vsini"]] = vsini**2  # not at its bound, where differences have one side
    gradient = p.linearize(vector).gradient
    for index in [*range(0, p.free.n_line_parameter, 7), *range(p.free.n_line_parameter, len(vector))]:
        h = 1e-4 * max(1.0, abs(float(vector[index])) * 0.01)
        ends = []
        for k in (-2, -1, 1, 2):
            moved = vector.clone()
            moved[index] += k * h
            ends.append(total(p, moved))
        slope = (ends[0] - 8 * ends[1] + 8 * ends[2] - ends[3]) / (12 * h)
        scale = float(gradient[: p.free.n_line_parameter].abs().mean())
        assert float(gradient[index]) == pytest.approx(-0.5 * slope, rel=2e-3, abs=2e-4 * scale), index


def test_value_and_gradient():
    """One evaluation gives what `evaluate` and `linearize` give."""
    p = problem()
    vector = away(p, 0.3)
    cost, pull = p.value_and_gradient(vector)
    assert cost == pytest.approx(sum(float(part.sum()) for part in p.evaluate(vector)), rel=1e-12)
    torch.testing.assert_close(pull, p.linearize(vector).gradient, rtol=1e-12, atol=1e-12)


def test_pinned():
    """Only what stands at a bound and is pulled across it."""
    p = problem()
    vsini = p.free.global_slices["vsini"]
    vector = p.read()
    vector[vsini] = p.priors.lower[vsini]
    for pull, expected in ((-1.0, True), (1.0, False)):
        pinned = p.pinned(vector, torch.full_like(vector, pull))
        assert bool(pinned[vsini]) is expected and int(pinned.sum()) == int(expected)


def test_no_line_becomes_a_continuum():
    """Widths end at four times the clone's, of narrow lines at four times 3 km/s; shifts at twice them."""
    p = problem()
    for name, emulator in p.free.model.components.items():
        with torch.no_grad():
            fwhm = voigt_fwhm(emulator.sigma, emulator.gamma)[p.free.lines[name]]
        floor = 3.0 / SPEED_OF_LIGHT * emulator.center[p.free.lines[name]]
        broadest = 4.0 * torch.maximum(fwhm, floor)
        columns = p.free.columns(name)
        for kind, alone in (("ln_sigma", lambda v: voigt_fwhm(v, 0.0 * v)), ("ln_gamma", lambda v: 2.0 * v)):
            if kind not in p.free.kinds[name]:
                continue
            upper = p.priors.upper[columns[:, p.free.kinds[name].index(kind)]]
            torch.testing.assert_close(alone(upper.exp()), broadest, rtol=1e-3, atol=0)
            lower = p.priors.lower[columns[:, p.free.kinds[name].index(kind)]]
            torch.testing.assert_close(alone(lower.exp()), 0.25e-3 * broadest, rtol=1e-3, atol=0)
        kinds = p.free.kinds[name]
        if "ln_area" in kinds:
            own = columns[:, kinds.index("ln_area")]
            area, black = p.priors.mean[own].exp(), 25.0 * broadest
            torch.testing.assert_close(p.priors.upper[own].exp(), torch.maximum(black, 10.0 * area))
            assert torch.isinf(p.priors.lower[own]).all()
        if "rv_offset" in kinds:
            own = columns[:, kinds.index("rv_offset")]
            reach = 0.5 * broadest / emulator.center[p.free.lines[name]] * SPEED_OF_LIGHT
            torch.testing.assert_close(p.priors.upper[own] - p.priors.mean[own], reach)
            torch.testing.assert_close(p.priors.mean[own] - p.priors.lower[own], reach)
    assert bool((p.priors.mean <= p.priors.upper).all()) and bool((p.priors.mean >= p.priors.lower).all())


def test_lines_at_their_limit():
    """At the upper end of strength or width, or at either end of the place; σ and γ of next to nothing are none."""
    p = problem()
    assert not p.at_limit("star").any() and not p.at_limit("telluric").any()
    vector, star, sky = p.read(), p.free.columns("star"), p.free.columns("telluric")
    for line, kind in ((1, "ln_area"), (3, "ln_sigma"), (4, "ln_gamma"), (6, "rv_offset")):
        vector[star[line, KINDS.index(kind)]] = p.priors.upper[star[line, KINDS.index(kind)]]
    vector[sky[2, 1]] = p.priors.lower[sky[2, 1]] + 1e-9  # as single precision may hold it
    vector[star[8, 1]], vector[star[9, 2]] = p.priors.lower[star[8, 1]], p.priors.lower[star[9, 2]]
    p.write(vector)
    assert p.at_limit("star").nonzero().squeeze(-1).tolist() == [1, 3, 4, 6]
    assert p.at_limit("telluric").nonzero().squeeze(-1).tolist() == [2]


def test_a_long_step_is_cut_line_by_line():
    """Each line's part, and that of all else, keeps its direction and ends at the limits."""
    p = problem()
    for name in p.free.model.components:
        columns = p.free.columns(name)
        step = 0.5 * p.limit
        step[columns[3]] = 7.0 * p.limit[columns[3]] * torch.linspace(0.1, 1.0, columns.shape[1])
        expected = step.clone()
        expected[columns[3]] *= 2.0 / 7.0
        torch.testing.assert_close(p.shorten(step, 2.0), expected)
    step = 0.5 * p.limit
    step[p.free.global_slices["rv"]] = 40.0 * p.limit[p.free.global_slices["rv"]]
    shorter = p.shorten(step, 2.0)
    torch.testing.assert_close(shorter[p.free.global_slices["vsini"]], step[p.free.global_slices["vsini"]] / 20.0)
    torch.testing.assert_close(shorter[columns], step[columns])


# --- bounds and limits ------------------------------------------------------------------------------------------------


def test_limits_by_kind():
    p = problem()
    torch.testing.assert_close(
        p.limit[p.free.columns("star")][3], torch.tensor([LINE_LIMITS[kind] for kind in KINDS], dtype=F64)
    )
    for name, columns in p.free.global_slices.items():
        if name != "vsini":
            assert (p.limit[columns] == GLOBAL_LIMITS[name]).all()
    assert (p.limit > 0).all() and (p.priors.precision > 0).all()


def test_rotation_is_bounded():
    """Between its floor and the largest for which the taps have room; no other parameter of the whole order is."""
    p = problem()
    column = p.free.global_slices["vsini"]
    rotation = p.free.model.rotation
    for value, bound in ((-3.0, rotation.floor), (1e6, rotation.max_vsini)):
        vector = p.priors.mean.clone()
        vector[column] = value
        assert float(p.project(vector)[column]) == pytest.approx(bound**2)
    others = torch.arange(len(p.priors.mean)) >= p.free.n_line_parameter
    others[column] = False
    assert bool(others.any())
    vector = p.priors.mean - 1e3
    torch.testing.assert_close(p.project(vector)[others], vector[others], rtol=0, atol=0)


def test_a_bound_pins_only_what_would_leave_it():
    """At the floor of v sin i, with data sharper than the model it is pinned; with smoother data it is free."""
    p = problem(vsini=0.0)
    column = p.free.global_slices["vsini"].start
    with torch.no_grad():
        sharp = p.free.model()
        p.free.model.rotation.vsini.fill_(8.0)
        smooth = p.free.model()
        p.free.write(p.priors.mean)
    for flux, expected in ((2.0 * sharp - smooth, True), (smooth, False)):
        p.flux = flux
        normal = p.linearize(p.priors.mean)
        pinned = torch.zeros(len(p.priors.mean), dtype=torch.bool)
        pinned[column] = expected
        assert torch.equal(normal.pinned, pinned)
        step, _ = normal.step(torch.full((len(p.priors.mean),), 1e-3, dtype=F64))
        assert (float(step[column]) == 0.0) == expected
