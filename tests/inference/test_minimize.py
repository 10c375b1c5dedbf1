"""Levenberg-Marquardt on problems with known minima, and its ways to fail: failure is a result, not an exception."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from error_bars import inverse

from specutils_blase.inference.linear.blocks import Structure, Window
from specutils_blase.inference.linear.jacobian import Jacobian, LocalBlock
from specutils_blase.inference.linear.normal_equations import NormalEquations
from specutils_blase.inference.minimize import minimize
from specutils_blase.inference.noise import Diagonal
from specutils_blase.inference.objective import Objective
from specutils_blase.inference.priors import LinePriors
from specutils_blase.inference.solution import Status
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import ForwardModel
from specutils_blase.model.parameters import KINDS, FreeParameters
from specutils_blase.simulate import pixel_edges

F64 = torch.float64
WEAK = 1e-10  # prior precision that says nothing


class Toy:
    """Residual functions of a few parameters, all of them in the border."""

    def __init__(self, residuals, start, *, limit=1e3, lower=-math.inf, upper=math.inf, n_datum=None):
        self.residuals, self.lower, self.upper = residuals, lower, upper
        self.vector = torch.tensor(start, dtype=F64)
        self.limit = torch.full_like(self.vector, limit)
        self.n_datum = n_datum or len(residuals(self.vector))
        self.visited = []

    def read(self):
        return self.vector.clone()

    def write(self, vector):
        self.vector = vector.clone()

    def project(self, vector):
        return vector.clamp(self.lower, self.upper)

    def evaluate(self, vector):
        self.vector = vector.clone()
        self.visited.append(self.vector)
        return self.residuals(vector).square(), WEAK * vector.square()

    def value_and_gradient(self, vector):
        terms = self.evaluate(vector)
        pull = self.jacobian(vector).T @ self.residuals(vector) - WEAK * vector
        return float(terms[0].sum() + terms[1].sum()), pull

    def shorten(self, step, longest):
        return step / (step.abs() / (longest * self.limit)).max().clamp(min=1.0)

    def pinned(self, vector, pull):
        return (vector <= self.lower) & (pull < 0) | (vector >= self.upper) & (pull > 0)

    def jacobian(self, vector):
        return -torch.autograd.functional.jacobian(self.residuals, vector)

    def linearize(self, vector, precise=False):
        matrix, residual = self.jacobian(vector), self.residuals(vector)
        structured = Jacobian(residual, [], matrix, torch.arange(len(vector)), None)
        prior = torch.full_like(vector, WEAK)
        return NormalEquations(structured, residual, Diagonal(torch.ones_like(residual)), prior, -WEAK * vector)


def rosenbrock(p):
    return torch.stack([10.0 * (p[1] - p[0] ** 2), 1.0 - p[0]])


class ManyRosenbrocks(Toy):
    """Rosenbrock valleys that do not touch one another, as lines far apart: each pair has its own rows."""

    def residuals_of(self, vector):
        x, y = vector.reshape(-1, 2).T
        pair = torch.stack([10.0 * (y - x**2), 1.0 - x], dim=1) / math.sqrt(2.0)
        return torch.cat([pair, pair], dim=1).reshape(-1)  # twice, so that the middle half of the window has both

    def __init__(self, start):
        super().__init__(self.residuals_of, start)

    def linearize(self, vector, precise=False):
        x, _ = vector.reshape(-1, 2).T
        one, zero = torch.ones_like(x), torch.zeros_like(x)
        pair = torch.stack(
            [torch.stack([20.0 * x, one], dim=1), torch.stack([-10.0 * one, zero], dim=1)], dim=1
        ) / math.sqrt(2.0)
        values = torch.cat([pair, pair], dim=2)  # (line, parameter, row)
        columns = torch.arange(len(vector)).reshape(-1, 2)
        block = LocalBlock(columns, 4 * torch.arange(len(x)), values)
        residual = self.residuals(vector)
        empty = torch.zeros(len(residual), 0, dtype=F64), torch.zeros(0, dtype=torch.long)
        structure = Structure([Window(columns, block.start, 4, None, 0)], len(residual), len(vector))
        structured = Jacobian(residual, [block], *empty, structure)
        prior = torch.full_like(vector, WEAK)
        return NormalEquations(structured, residual, Diagonal(torch.ones_like(residual)), prior, -WEAK * vector)


# --- convergence ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start", [(-1.2, 1.0), (3.0, -4.0), (-5.0, 20.0)])
def test_rosenbrock(start):
    solution = minimize(Toy(rosenbrock, start), max_iterations=200, absolute_tolerance=1e-12)
    assert solution.success and solution.message == "converged"
    torch.testing.assert_close(solution.vector, torch.ones(2, dtype=F64), rtol=0, atol=1e-5)
    assert solution.cost < 1e-9


def test_many_rosenbrocks_at_once():
    """Each with its own damping: forty of them take hardly longer than the slowest alone."""
    starts = np.random.default_rng(1).uniform(-3, 3, (40, 2))
    alone = [
        len(minimize(ManyRosenbrocks(list(s)), max_iterations=300, absolute_tolerance=1e-9).history) for s in starts
    ]
    solution = minimize(ManyRosenbrocks(list(starts.ravel())), max_iterations=300, absolute_tolerance=1e-9)
    assert solution.success
    torch.testing.assert_close(solution.vector, torch.ones(80, dtype=F64), rtol=0, atol=1e-3)
    assert len(solution.history) <= 2 * max(alone)


def test_linear_problem():
    """The normal equations are the answer: reached as fast as damping falls, with the covariance of the textbook."""
    rng = np.random.default_rng(2)
    matrix, data = torch.as_tensor(rng.standard_normal((30, 4))), torch.as_tensor(rng.standard_normal(30))
    solution = minimize(Toy(lambda p: data - matrix @ p, [0.0] * 4), absolute_tolerance=1e-16)
    truth = torch.linalg.lstsq(matrix, data.unsqueeze(1)).solution.squeeze(1)
    assert solution.success and len(solution.history) <= 12
    torch.testing.assert_close(solution.vector, truth, rtol=1e-6, atol=1e-8)
    variance = torch.diagonal(torch.linalg.inv(matrix.T @ matrix))
    torch.testing.assert_close(solution.normal.factor().variance(), variance.clone(), rtol=1e-6, atol=0)


def test_a_start_at_the_minimum_stays():
    toy = Toy(rosenbrock, (1.0, 1.0))
    solution = minimize(toy)
    assert solution.success and len(solution.history) <= 3
    torch.testing.assert_close(solution.vector, torch.ones(2, dtype=F64), rtol=0, atol=1e-6)


def test_tolerance_bounds_the_remaining_step():
    """Predicted decrease ε bounds each parameter's distance from the minimum by √ε of its error."""
    t = torch.linspace(0, 3, 60, dtype=F64)
    noise = torch.as_tensor(np.random.default_rng(3).standard_normal(60))

    def residuals(p):
        return 50.0 * (torch.exp(-2.0 * t) + 0.3 - p[1] * torch.exp(-p[0] * t) - p[2]) + noise

    tight = minimize(Toy(residuals, (1.0, 0.5, 0.0)), absolute_tolerance=1e-10, max_iterations=100)
    loose = minimize(Toy(residuals, (1.0, 0.5, 0.0)), absolute_tolerance=1e-2)
    errors = tight.normal.factor().variance().sqrt()
    jacobian = torch.autograd.functional.jacobian(residuals, tight.vector)
    torch.testing.assert_close(errors, torch.linalg.inv(jacobian.T @ jacobian).diagonal().sqrt(), rtol=1e-6, atol=0.0)
    assert tight.success and loose.success
    assert (((loose.vector - tight.vector) / errors).abs() < 0.1).all()
    assert ((tight.vector - torch.tensor([2.0, 1.0, 0.3])).abs() < 4 * errors).all()


# --- rules ------------------------------------------------------------------------------------------------------------


def test_cost_never_rises_and_history_tells():
    seen = []
    solution = minimize(Toy(rosenbrock, (-1.2, 1.0)), max_iterations=100, callback=seen.append)
    costs = [entry["cost"] for entry in solution.history]
    assert all(b <= a for a, b in pairwise(costs))
    assert costs[-1] == solution.cost < 1e-2 * costs[0]
    assert seen == solution.history[1:]
    assert [entry["iteration"] for entry in solution.history] == list(range(len(costs)))


def test_steps_respect_their_limits():
    """No accepted step is longer than the limit of its parameter."""
    toy = Toy(lambda p: torch.stack([p[0] - 50.0, 3.0 * (p[1] - 2.0)]), (0.0, 0.0), limit=4.0, n_datum=1000)
    solution = minimize(toy, max_iterations=50)
    assert solution.success
    torch.testing.assert_close(solution.vector, torch.tensor([50.0, 2.0], dtype=F64), rtol=0, atol=0.2)
    moves = torch.stack(toy.visited).diff(dim=0)
    assert float(moves.abs().max()) <= 4.0 + 1e-12


def test_bounds_hold():
    """The minimum lies beyond the bound: the solution stands on it."""
    toy = Toy(lambda p: torch.stack([p[0] + 3.0, p[1] - p[0] - 1.0]), (5.0, 5.0), lower=0.5)
    solution = minimize(toy, max_iterations=60)
    assert all((vector >= 0.5).all() for vector in toy.visited)
    assert float(solution.vector[0]) == pytest.approx(0.5, abs=1e-6)


def test_a_region_without_values_is_left_alone():
    """Steps into NaN are shortened, not taken, and not the end."""
    toy = Toy(lambda p: torch.stack([torch.log(p[0]) - 3.0, 0.1 * p[0] - 2.0]), (0.01,))
    solution = minimize(toy, max_iterations=100, absolute_tolerance=1e-10)
    assert solution.success
    gradient = (toy.jacobian(solution.vector).T @ toy.residuals(solution.vector)).abs()
    assert float(gradient) < 1e-4


# --- failure is data --------------------------------------------------------------------------------------------------


def test_iteration_limit():
    solution = minimize(Toy(rosenbrock, (-1.2, 1.0)), max_iterations=2, absolute_tolerance=1e-12)
    assert not solution.success
    assert solution.message == "not converged: the limit on iterations was reached"
    assert len(solution.history) == 3 and math.isfinite(solution.cost)
    assert solution.cost < 24.2  # what was gained is kept


def test_no_iterations():
    solution = minimize(Toy(rosenbrock, (-1.2, 1.0)), max_iterations=0)
    assert not solution.success and solution.cost == pytest.approx(24.2)


def test_cost_that_is_not_finite():
    solution = minimize(Toy(lambda p: p * math.nan, (1.0, 2.0)))
    assert not solution.success
    assert solution.message == "not converged: the cost is not finite"
    torch.testing.assert_close(solution.vector, torch.tensor([1.0, 2.0], dtype=F64))


def test_stalled():
    """A Jacobian of the wrong sign promises what no step keeps: said, not looped over for ever."""

    class Liar(Toy):
        def jacobian(self, vector):
            return -super().jacobian(vector)

    toy = Liar(lambda p: torch.stack([p[0] - 3.0, p[1] + 1.0]), (0.0, 0.0))
    solution = minimize(toy, max_iterations=30)
    assert not solution.success
    assert solution.status is Status.STALLED
    assert len(toy.visited) < 100
    torch.testing.assert_close(solution.vector, torch.zeros(2, dtype=F64))


# --- a real spectrum --------------------------------------------------------------------------------------------------


def spectrum_model(seed=4, shift=0.0):
    """An order of 200 pixels with blended lines; `shift` moves every line parameter at random."""
    rng = np.random.default_rng(seed)
    n = 25
    center, area = np.linspace(10_000.5, 10_009.5, n) + rng.uniform(-0.15, 0.15, n), rng.uniform(0.01, 0.08, n)
    sigma, gamma = rng.uniform(0.05, 0.07, n), rng.uniform(0.02, 0.04, n)
    moved = np.random.default_rng(seed + 1).standard_normal((4, n)) * shift
    wavelength = 10_000.0 + 0.05 * np.arange(200)
    return ForwardModel.for_order(
        torch.tensor(wavelength),
        torch.tensor(pixel_edges(wavelength)),
        star=LineEmulator(
            center,
            area * np.exp(moved[0]),
            sigma * np.exp(0.5 * moved[1]),
            gamma * np.exp(moved[2]),
            rv_offset=0.5 * moved[3],
        ),
        rv=0.4 if shift else 0.0,
        vsini=3.0 if shift else 5.0,
        resolving_power=55_000.0,
    )


def fitted(noise, n_iteration=200):
    """Solution of the spectrum problem from a perturbed start; truth in the vector's order."""
    truth, model = spectrum_model(), spectrum_model(shift=0.15)
    lines = {"star": torch.arange(25)}
    layouts = [FreeParameters(m, {"star": KINDS}, lines, ("rv", "vsini", "continuum")) for m in (truth, model)]
    with torch.no_grad():
        flux = truth()
        flux = flux + noise * torch.randn(200, dtype=F64, generator=torch.Generator().manual_seed(6))
    sigma = max(noise, 1e-4)
    priors = LinePriors(ln_area=0.2, ln_sigma=0.1, ln_gamma=0.2, rv_offset=0.1)
    problem = Objective(layouts[1], flux, torch.full((200,), sigma**-2, dtype=F64), {"star": priors})
    return minimize(problem, max_iterations=n_iteration), problem, layouts[0].read()


@pytest.mark.parametrize("noise", [0.005, 0.002, 3e-4])
def test_converged_means_converged(noise):
    """Starting again from the solution, undamped, gains next to nothing."""
    solution, problem, _ = fitted(noise)
    assert solution.success
    torch.testing.assert_close(problem.read(), solution.vector, rtol=1e-12, atol=1e-12)  # the model is left there
    again = minimize(problem, max_iterations=20, absolute_tolerance=1e-6)
    assert again.cost > solution.cost - 0.05


def test_noisy_spectrum_pulls():
    """Errors from the covariance are those of the scatter: pulls of the well-determined parameters are normal."""
    solution, problem, truth = fitted(0.005)
    assert solution.success
    assert 100 < problem.chi_square() < 230
    error = solution.normal.factor().variance().sqrt()
    pull = ((solution.vector - truth) / error)[:-3]
    torch.testing.assert_close(
        error, inverse(problem.free, problem.weight, problem.priors.precision_at(solution.vector)).diagonal().sqrt(),
        rtol=0.02, atol=0.0,
    )  # fmt: skip
    assert 0.4 < float(pull.square().mean()) < 2.5
    rv = problem.free.global_slices["rv"]
    assert float((solution.vector - truth)[rv].abs()) < 4 * float(error[rv])


def test_the_solution_is_a_minimum():
    """No direction among random ones leads down."""
    solution, problem, _ = fitted(0.005)
    generator = torch.Generator().manual_seed(8)
    error = solution.normal.factor().variance().sqrt()
    for _ in range(6):
        direction = torch.randn(len(error), generator=generator, dtype=F64)
        for sign in (1, -1):
            rows, priors = problem.evaluate(problem.project(solution.vector + sign * 0.3 * error * direction))
            assert float(rows.sum() + priors.sum()) > solution.cost - 0.02
