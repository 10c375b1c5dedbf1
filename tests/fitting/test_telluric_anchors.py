"""Factors and shift of a sky's prior means, against a search for the least cost and truths drawn from the priors."""

import numpy as np
import pytest
import torch
from error_bars import forward_jacobian
from scipy.optimize import minimize_scalar

from specutils_blase.fitting import stages as solving
from specutils_blase.fitting.prior_means.telluric import TelluricAmounts
from specutils_blase.fitting.residuals.noise import NoiseModel
from specutils_blase.fitting.start.tellurics import FACTOR_PRIOR, SHIFT_PRIOR, TelluricScale, scale_telluric
from specutils_blase.inference.minimize import minimize
from specutils_blase.inference.objective import Objective
from specutils_blase.inference.prior_mean import STILL, PriorMeans
from specutils_blase.inference.priors import LinePriors
from specutils_blase.inference.solution import Status
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import ForwardModel
from specutils_blase.model.parameters import FreeParameters
from specutils_blase.physics.grids import SPEED_OF_LIGHT
from specutils_blase.simulate import pixel_edges

F64 = torch.float64
N_LINE, SNR = 24, 150.0
PIXELS = np.linspace(10_499.0, 10_500.0 + 1.0 * N_LINE, 420)
KINDS = ("ln_area", "ln_sigma", "rv_offset")
SPECIES = ["H2O" if k % 3 else "O2" for k in range(N_LINE)]
AMOUNT = {"H2O": 0.3, "O2": -0.2}
SHIFT = 0.12


def scattered(seed, freedom, held):
    """What each line's ln area, ln σ and offset differ by from the amounts, in widths of its priors."""
    rng = np.random.default_rng((seed, 1))
    size = (N_LINE, 3)
    draws = rng.standard_t(freedom, size) if np.isfinite(freedom) else rng.standard_normal(size)
    draws[:held] = 0.0
    return draws


def sky_problem(seed, *, kinds=KINDS, freedom=4.0, held=0, snr=SNR):
    """Lines of two species about their amounts, each off by its prior; the first `held` lines as they are."""
    rng = np.random.default_rng(seed)
    count = np.ones(N_LINE)
    strength = 0.02 * 10.0 ** rng.uniform(0.0, 0.9, N_LINE)
    sky = LineEmulator(10_500.0 + np.arange(N_LINE), strength, 0.035 * count, 0.01 * count, species=SPECIES)
    model = ForwardModel.for_order(
        torch.as_tensor(PIXELS), torch.as_tensor(pixel_edges(PIXELS)), telluric=sky, resolving_power=55_000.0,
        continuum_degree=0,
    )  # fmt: skip
    emulator = model.telluric
    start = emulator.line_parameters().clone()
    priors = LinePriors(degrees_of_freedom=freedom)
    with torch.no_grad():
        truth, center = start.clone(), emulator.center.clone()
        draws = torch.as_tensor(scattered(seed, freedom, held))
        truth[:, 0] += priors.ln_area * draws[:, 0] + torch.tensor([AMOUNT[name] for name in SPECIES])
        truth[:, 1] += priors.ln_sigma * draws[:, 1]
        truth[:, 3] += priors.rv_offset * draws[:, 2] + SHIFT
        emulator.set_line_parameters(truth)
        flux = model() + torch.as_tensor(rng.standard_normal(len(PIXELS))) / snr
        emulator.set_line_parameters(start)
        emulator.center.copy_(center)
    weight = torch.full((len(PIXELS),), snr**2, dtype=F64)
    scale = scale_telluric(model, [flux], [weight])
    layout = FreeParameters(model, {"telluric": kinds}, {"telluric": torch.arange(held, N_LINE)}, ("continuum",))
    return Objective(layout, flux, weight, {"telluric": priors}), scale


def amounts(objective, scale):
    """The amounts and the shift, and the hyperparameters of the objective."""
    mean = TelluricAmounts("telluric", scale)
    return mean, PriorMeans(objective.free, [mean])


def settled(problem, scale):
    """Lines and their prior means in turn, until both stand: the objective then, its means, and the lines."""
    mean, means = amounts(problem, scale)
    for _ in range(8):
        vector = minimize(problem, absolute_tolerance=1e-8, from_afar=False).vector
        moved = means.settle(problem, vector)
        if moved is None:
            return problem, mean, means, vector
        problem = moved
    raise AssertionError("anchors do not stand still")


@torch.no_grad()
def cost(problem, means, change):
    """Twice ψ with the prior means moved by `change`, all lines following to their best."""
    moved = means.moved(problem, torch.as_tensor(change), problem.read())
    total = minimize(moved, absolute_tolerance=1e-9, from_afar=False).history[-1]["cost"]
    total += float((means.precision * means.value.square()).sum())
    means.moved(moved, -torch.as_tensor(change), moved.read())
    return total


@torch.no_grad()
def information(problem, means, vector, bend):
    """Dense: what ψ bends by along each common change, all lines following, with priors that bend by `bend`."""
    problem.write(vector)
    jacobian = forward_jacobian(problem.free, torch.full_like(vector, 1e-4))
    bend = torch.where(
        problem.priors.freedom.isfinite(), bend, problem.priors.precision
    )  # the continuum's prior is Gaussian
    held = bend.unsqueeze(1) * means.design
    curvature = jacobian.T @ (problem.weight.unsqueeze(1) * jacobian) + torch.diag(bend)
    return torch.diag(means.precision) + means.design.T @ held - held.T @ torch.linalg.solve(curvature, held)


@pytest.mark.parametrize("freedom", [4.0, np.inf])
def test_anchors_stand_where_the_posterior_is_highest(freedom):
    """Parabolas through the least cost over all lines: their summits within `STILL`, their widths by dense algebra.

    The cost bends as Student's t does where the lines are. The errors told are those that it bends by on average over
    its scatter, which is (ν + 1)/(ν + 3) of the Gaussian of its width.
    """
    problem, scale = sky_problem(1, freedom=freedom)
    problem, _, means, vector = settled(problem, scale)
    precision, square = problem.priors.precision, problem.priors.precision * (vector - problem.priors.mean).square()
    told, bend = precision, precision
    if freedom < np.inf:
        told = precision * (freedom + 1.0) / (freedom + 3.0)
        bend = precision * (freedom + 1.0) * (freedom - square) / (freedom + square).square()
    expected = torch.linalg.inv(information(problem, means, vector, told)).diagonal().sqrt()
    torch.testing.assert_close(means.error, expected, rtol=0.02, atol=0.0)
    here = information(problem, means, vector, bend).diagonal()
    for k, error in enumerate(means.error.tolist()):
        change = np.zeros(3)
        change[k] = error
        low, middle, high = (cost(problem, means, side * change) for side in (-1.0, 0.0, 1.0))
        turn = high + low - 2.0 * middle
        assert abs(0.5 * (low - high) / turn) < STILL, k
        assert turn == pytest.approx(2.0 * error**2 * float(here[k]), rel=0.05), k


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_anchors_of_lines_that_are_known(seed):
    """Where noise hides no line, they stand at the likeliest centres of Student's t for what the lines are off by."""
    problem, scale = sky_problem(seed, snr=10_000.0)
    _, mean, _, _ = settled(problem, scale)
    draws, priors, freedom = scattered(seed, 4.0, 0), LinePriors(), 4.0
    species = np.array(SPECIES)
    samples = [
        (AMOUNT[name] + priors.ln_area * draws[species == name, 0], priors.ln_area, FACTOR_PRIOR)
        for name in mean.species
    ] + [(SHIFT + priors.rv_offset * draws[:, 2], priors.rv_offset, SHIFT_PRIOR)]
    for (values, width, prior), found, error in zip(samples, mean.value.tolist(), mean.error, strict=True):

        def cost(center, values=values, width=width, prior=prior):
            terms = np.log1p(((values - center) / width) ** 2 / freedom)
            return (freedom + 1.0) * terms.sum() + (center / prior) ** 2

        likeliest = minimize_scalar(cost, bounds=(-1.0, 1.0), method="bounded", options={"xatol": 1e-8}).x
        assert abs(found - likeliest) < 1.5 * STILL * float(
            error
        )  # the step is that of the Gaussians which bound the t
        information = (freedom + 1.0) / (freedom + 3.0) * len(values) / width**2 + prior**-2
        assert float(error) == pytest.approx(information**-0.5, rel=0.05)


def test_amounts_are_nearer_than_those_of_the_strongest_lines():
    """Truths from the priors: the first factors are off by many of their errors, the settled ones are not."""
    pulls, first = [], []
    truth = np.array([AMOUNT[name] for name in ("H2O", "O2")] + [SHIFT])
    for seed in range(16):
        problem, scale = sky_problem(100 + seed)
        _, mean, _, _ = settled(problem, scale)
        after = mean.scale()
        for found, each in ((first, scale), (pulls, after)):
            value = np.array([np.log(each.factors["H2O"]), np.log(each.factors["O2"]), each.shift])
            errors = [each.errors[name] / each.factors[name] for name in ("H2O", "O2")]
            found.append((value - truth) / np.array([*errors, each.shift_error]))
    assert np.sqrt(np.mean(np.square(first))) > 3.0
    assert 0.7 < np.sqrt(np.mean(np.square(pulls))) < 1.3  # of 48 pulls, to ± 0.1 if they were Gaussian


def test_lines_held_move_with_the_others():
    problem, scale = sky_problem(5, held=4)
    emulator = problem.free.model.telluric
    area, center = emulator.ln_area.detach().clone(), emulator.center.clone()
    problem, mean, _, vector = settled(problem, scale)
    change = mean.value - torch.tensor([*np.log([scale.factors[name] for name in mean.species]), scale.shift])
    member = torch.tensor([mean.species.index(name) for name in emulator.species])
    assert (change.abs() > 0.005).any()
    moved = emulator.ln_area.detach() - area
    torch.testing.assert_close(moved[:4], change[member[:4]], rtol=0, atol=1e-12)
    ratio = (emulator.center / center - 1.0) * SPEED_OF_LIGHT
    torch.testing.assert_close(ratio, change[-1].expand(N_LINE), rtol=0, atol=1e-6)
    moved = problem.prior_mean_of_ln_area("telluric") - area
    torch.testing.assert_close(moved, change[member], rtol=0, atol=1e-12)
    torch.testing.assert_close(problem.read(), vector)


def test_what_no_line_may_change_stays():
    """Offsets held: no common shift. All held: nothing moves, and the first scale is told."""
    problem, scale = sky_problem(7, kinds=("ln_area",))
    _, mean, _, _ = settled(problem, scale)
    assert mean.scale().shift == scale.shift and mean.scale().factors != scale.factors
    problem, scale = sky_problem(7, kinds=())
    mean, means = amounts(problem, scale)
    assert means.settle(problem, problem.read()) is None
    after = mean.scale()
    assert after.factors == pytest.approx(scale.factors) and after.errors == pytest.approx(scale.errors)


def test_a_species_that_nobody_sees_keeps_its_amount():
    problem, _ = sky_problem(9)
    emulator = problem.free.model.telluric
    emulator.species[3] = "N2O"
    with torch.no_grad():
        emulator.ln_area[3] = -18.0
    problem = problem.with_priors(mean=problem.read()).afresh()
    one = dict.fromkeys(("H2O", "N2O", "O2"), 1.0)
    scale = TelluricScale(one, 0.0, one, SHIFT_PRIOR)
    _, mean, _, _ = settled(problem, scale)
    assert mean.scale().factors["N2O"] == pytest.approx(1.0, abs=0.02)
    assert mean.scale().errors["N2O"] == pytest.approx(FACTOR_PRIOR, rel=0.02)


@pytest.mark.parametrize("n_turn", [1, 6])
def test_a_fit_whose_anchors_still_move_has_not_converged(n_turn, monkeypatch):
    """With too few turns of lines and anchors that is said, and the errors of the amounts are those of the lines."""
    monkeypatch.setattr(solving, "LATE_ROUNDS", n_turn)
    problem, scale = sky_problem(3, freedom=np.inf)
    noise = NoiseModel([problem.weight**-0.5], [problem.weight > 0], [True], jitter=False, robust=False)
    mean, means = amounts(problem, scale)
    problem, solution = solving.solve(problem, noise, 100, lambda entry: None, means=means)
    assert solution.success == (n_turn == 6)
    assert solution.status is (Status.UNSETTLED if n_turn == 1 else Status.CONVERGED)
    assert means.step(problem, solution.vector) is None or n_turn == 1
    torch.testing.assert_close(problem.read(), solution.vector, rtol=0, atol=1e-12)
    assert mean.scale().errors["H2O"] > 2.0 * scale.errors["H2O"]


def test_iterations_are_no_more_than_allowed():
    for limit in (0, 1, 3):
        problem, scale = sky_problem(3, freedom=np.inf)
        noise = NoiseModel([problem.weight**-0.5], [problem.weight > 0], [True], jitter=False, robust=False)
        _, means = amounts(problem, scale)
        _, solution = solving.solve(problem, noise, limit, lambda entry: None, means=means)
        assert len(solution.history) <= limit + 1  # the first entry is the start
