"""Strength, width and scatter of a star's lines against their template, from truths drawn from the priors."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar

from specutils_blase.fitting.prior_means.star import LEAST_WIDTH_PRIOR, MOST_INFLATION, StarLines
from specutils_blase.fitting.residuals.noise import NoiseModel
from specutils_blase.fitting.stages import solve
from specutils_blase.inference.minimize import minimize
from specutils_blase.inference.objective import Objective
from specutils_blase.inference.prior_mean import PriorMeans
from specutils_blase.inference.priors import LinePriors
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import ForwardModel
from specutils_blase.model.parameters import FreeParameters
from specutils_blase.posterior.marginals import posterior_mean
from specutils_blase.simulate import pixel_edges

F64 = torch.float64
N_LINE = 40
PIXELS = np.linspace(10_499.0, 10_500.0 + 1.0 * N_LINE, 17 * N_LINE)
KINDS = ("ln_area", "ln_sigma", "ln_gamma", "rv_offset")


def star_problem(
    seed, *, wider=1.0, strength=0.0, width=0.0, vsini=2.0, snr=300.0, free=("rv",), kinds=KINDS, told=False
):
    """Lines of a star, each off by its prior made `wider`, all stronger and broader than the template."""
    rng = np.random.default_rng(seed)
    count = np.ones(N_LINE)
    area = 0.02 * 10.0 ** rng.uniform(0.3, 0.9, N_LINE)
    star = LineEmulator(10_500.0 + np.arange(N_LINE), area, 0.05 * count, 0.03 * count)
    model = ForwardModel.for_order(
        torch.as_tensor(PIXELS), torch.as_tensor(pixel_edges(PIXELS)), star=star, resolving_power=80_000.0,
        continuum_degree=0, vsini=vsini,
    )  # fmt: skip
    priors = LinePriors()
    with torch.no_grad():
        start = model.star.line_parameters().clone()
        truth, offsets = start.clone(), np.zeros(N_LINE)
        for column, kind in ((KINDS.index(kind), kind) for kind in kinds):
            draws = rng.standard_t(priors.degrees_of_freedom, N_LINE)
            factor = wider if kind == "rv_offset" else min(wider, 3.0)  # no line is to hide its neighbours
            change = factor * getattr(priors, kind) * np.clip(draws, -3.0, 3.0)
            truth[:, column] += torch.as_tensor(change)
            offsets = change if kind == "rv_offset" else offsets
        truth[:, 0] += strength
        truth[:, 1:3] += width
        model.star.set_line_parameters(truth)
        flux = model() + torch.as_tensor(rng.standard_normal(len(PIXELS))) / snr
        model.star.set_line_parameters(start)
    weight = torch.full((len(PIXELS),), snr**2, dtype=F64)
    layout = FreeParameters(model, {"star": kinds}, {"star": torch.arange(N_LINE)}, (*free, "continuum"))
    problem = Objective(layout, flux, weight, {"star": priors})
    return (problem, offsets) if told else problem


def star_means(problem):
    """Strength and width of the star's lines, and the hyperparameters of the objective."""
    lines = StarLines(problem.free, "star", problem.line_priors["star"])
    return lines, PriorMeans(problem.free, [lines])


def settled(problem, told=False):
    """Lines, means and widths of priors in turn, until all stand."""
    lines, means = star_means(problem)
    for _ in range(12):
        vector = minimize(problem, absolute_tolerance=1e-4, max_iterations=60).vector
        followed = means.follow(problem, vector)
        if followed is None:
            return (problem, lines, means) if told else lines
        problem = followed
    raise AssertionError("widths and means do not stand still")


def asymptotic(*kinds, inflation=None):
    """Error of what 40 well-known lines share in parameters of these kinds: (ν + 1)/(ν + 3) of each line's 1/s²."""
    priors = LinePriors()
    widths = np.array([getattr(priors, kind) * (inflation or {}).get(kind, 1.0) for kind in kinds])
    told = (priors.degrees_of_freedom + 1.0) / (priors.degrees_of_freedom + 3.0)
    return (told * N_LINE * np.sum(widths**-2.0)) ** -0.5


@pytest.mark.parametrize("seed", range(4))
def test_lines_that_scatter_as_their_priors_say_change_nothing(seed):
    problem = star_problem(seed)
    before = problem.priors.precision.clone()
    problem, changes, _ = settled(problem, told=True)
    assert changes.inflation == dict.fromkeys(KINDS, 1.0)
    torch.testing.assert_close(problem.priors.precision, before, rtol=0, atol=0)
    scale = changes.scale()
    assert scale.width == 1.0 and scale.width_error == 0.0
    error = scale.strength_error / scale.strength
    assert error == pytest.approx(asymptotic("ln_area"), rel=0.03) and abs(np.log(scale.strength)) < 3.0 * error


@pytest.mark.parametrize("seed", [1, 2])
def test_scatter_beyond_the_priors_is_found(seed):
    """Three times as wide: each kind that the data know comes back within a factor of 1.6, 40 lines telling it."""
    changes = settled(star_problem(seed, wider=3.0))
    for kind in ("ln_area", "rv_offset"):
        assert 3.0 / 1.6 < changes.inflation[kind] < 3.0 * 1.6, kind
    assert all(1.0 <= factor <= MOST_INFLATION[kind] for kind, factor in changes.inflation.items())
    assert changes.precision[1] < LEAST_WIDTH_PRIOR**-2


def ideal_velocity(offsets, scale):
    """Likeliest centre of Student's t of known width for offsets that are known: as well as anybody can do."""
    freedom = LinePriors().degrees_of_freedom

    def cost(center):
        return np.log1p(((offsets - center) / scale) ** 2 / freedom).sum()

    return minimize_scalar(cost, bounds=(-1.0, 1.0), method="bounded", options={"xatol": 1e-8}).x


def test_velocity_and_error_of_lines_that_scatter():
    """Lines off by five times their priors: the velocity is the ideal one, and its error that one's scatter."""
    wider, errors, behind = 5.0, [], []
    scale = wider * LinePriors().rv_offset
    for seed in range(100, 108):
        problem, offsets = star_problem(seed, wider=wider, kinds=("ln_area", "rv_offset"), told=True)
        (_, means), good = star_means(problem), problem.weight > 0
        noise = NoiseModel([problem.weight**-0.5], [good], [True], jitter=False, robust=False)
        problem, solution = solve(problem, noise, 200, lambda entry: None, means=means)
        vector = solution.vector
        normal = posterior_mean(problem, problem.linearize(vector, precise=True), vector)
        covariance = normal.factor().border_covariance() + means.added_covariance(problem, normal)
        at = int((normal.border == problem.free.global_slices["rv"].start).nonzero())
        errors.append(float(covariance[at, at]) ** 0.5)
        behind.append(problem.free.model.doppler.rv.item() - ideal_velocity(offsets, scale))
    assert np.abs(behind).max() < 0.5 * min(errors)
    # Of draws of 40 lines, cut at three widths as here, the ideal velocity scatters by 0.92 of this asymptotic value.
    expected = wider * asymptotic("rv_offset")
    assert np.median(errors) == pytest.approx(expected, rel=0.15)
    assert max(errors) < 1.5 * expected and min(errors) > 0.7 * expected


@pytest.mark.parametrize("strength", [-1.2, 0.6])
def test_a_common_strength_is_found(strength):
    changes = settled(star_problem(5, strength=strength))
    found, error = float(changes.value[0]), float(changes.error[0])
    assert abs(found - strength) < 3.0 * error
    assert error == pytest.approx(asymptotic("ln_area"), rel=0.15)  # lines of a third of the strength are known less
    assert changes.inflation["ln_area"] == 1.0  # nobody scatters: all are stronger alike


def test_a_common_width_is_free_once_the_lines_scatter():
    narrow, wide = star_problem(7, width=0.3), star_problem(7, width=0.3, wider=3.0)
    for problem in (narrow, wide):  # two widths of its prior away, all lines together are no less surprising
        changes = settled(problem)
        scale = changes.scale()
        error = scale.width_error / scale.width
        assert abs(np.log(scale.width) - 0.3) < 3.0 * error
        assert error == pytest.approx(asymptotic("ln_sigma", "ln_gamma", inflation=changes.inflation), rel=0.1)


def test_lines_that_are_held_do_not_vote():
    problem = star_problem(8, strength=0.5, kinds=())
    changes, means = star_means(problem)
    vector = minimize(problem, absolute_tolerance=1e-4).vector
    assert means.follow(problem, vector) is None
    assert changes.scale().strength == 1.0


def test_joint_changes_share_their_state_with_the_parts():
    problem = star_problem(9, strength=0.4)
    part, joint = star_means(problem)
    vector = minimize(problem, absolute_tolerance=1e-4, max_iterations=60).vector
    assert joint.follow(problem, vector) is not None
    assert float(part.value[0]) == float(joint.value[0]) != 0.0
    assert float(part.error[0]) == float(joint.error[0]) < 1.0


def test_added_covariance_is_that_of_the_joint_posterior():
    """With Gaussian priors: lines and common changes in one dense matrix, inverted."""
    problem = star_problem(10, free=("rv", "vsini"))
    problem = problem.with_line_priors("star", LinePriors(degrees_of_freedom=np.inf))
    _, changes = star_means(problem)
    changes.precision[1] = 0.2**-2  # as where lines scatter
    vector = minimize(problem, absolute_tolerance=1e-4, max_iterations=60).vector
    normal = problem.linearize(vector, precise=True)
    factor = normal.factor()
    unit = torch.eye(len(vector), dtype=F64)
    matrix = torch.linalg.inv(torch.stack([factor.solve(each) for each in unit], dim=1))
    held = normal.prior_precision.unsqueeze(1) * changes.design
    joint = torch.cat(
        [
            torch.cat([matrix, -held], dim=1),
            torch.cat([-held.T, torch.diag(changes.precision) + changes.design.T @ held], dim=1),
        ]
    )
    dense = torch.linalg.inv(joint)[: len(vector), : len(vector)]
    border = normal.border
    told = factor.border_covariance() + changes.added_covariance(problem, normal)
    torch.testing.assert_close(told, dense[border][:, border], rtol=1e-6, atol=1e-12)
    added = changes.added_covariance(problem, normal).diagonal() / factor.border_covariance().diagonal()
    assert float(added.max()) > 0.05  # and it is not nothing: rotation depends on the common width


@pytest.mark.parametrize("width", [0.15, 0.3])
def test_the_error_of_rotation_reaches_where_the_width_is_the_templates(width):
    """Solved with the common width and without: v sin i goes from the one to the other, and its error as far."""
    free, held = (star_problem(7, wider=3.0, width=width, free=("rv", "vsini"), vsini=6.0) for _ in range(2))
    free, lines, means = settled(free, told=True)
    vector = free.read()
    column = free.free.global_slices["vsini"].start
    normal = free.linearize(vector, precise=True)
    place = int((normal.border == column).nonzero())
    error = float((normal.factor().border_covariance() + means.added_covariance(free, normal))[place, place].sqrt())
    _, template = star_means(held)
    held = held.with_line_priors("star", free.line_priors["star"], lines.wide)
    for _ in range(12):
        without = minimize(held, absolute_tolerance=1e-4, max_iterations=60).vector
        moved = template.settle(held, without)
        if moved is None:
            break
        held = moved
    apart = abs(float(vector[column] - without[column]))
    assert apart < error < 1.6 * apart
