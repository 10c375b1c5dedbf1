"""What every `Noise` does, the package's own and strangers', and what objective and solver make of it."""

import math

import numpy as np
import pytest
import torch
from small_models import F64, N_PIXEL, SNR, differences, lines, order

from specutils_blase.inference.minimize import minimize
from specutils_blase.inference.noise import Diagonal, Noise
from specutils_blase.inference.objective import Objective
from specutils_blase.inference.priors import LinePriors
from specutils_blase.model.parameters import FreeParameters


class AutoRegressive(Noise):
    """A stranger's: of a pixel, a part `memory` of the last one's, in units of their σ."""

    def __init__(self, sigma, memory):
        self.sigma, self.memory, self.n_datum = sigma, memory, len(sigma)
        self.rest = math.sqrt(1.0 - memory**2)

    def _scale(self, values):
        return self.sigma.to(values.dtype).reshape(-1, *[1] * (values.ndim - 1))

    def whiten(self, values):
        values = values / self._scale(values)
        return torch.cat([values[:1], (values[1:] - self.memory * values[:-1]) / self.rest])

    def whiten_transposed(self, values):
        own = torch.cat([values[:1], values[1:] / self.rest])
        following = torch.cat([values[1:] * (self.memory / self.rest), torch.zeros_like(values[:1])])
        return (own - following) / self._scale(values)

    def ln_det(self):
        return 2.0 * float(self.sigma.log().sum()) + 2.0 * (len(self.sigma) - 1) * math.log(self.rest)


class Wrapped(Noise):
    """A stranger's that is independent from pixel to pixel, and does not say so."""

    def __init__(self, weight):
        self.inner = Diagonal(weight)
        self.n_datum = self.inner.n_datum

    def whiten(self, values):
        return self.inner.whiten(values)

    def whiten_transposed(self, values):
        return self.inner.whiten_transposed(values)

    def ln_det(self):
        return self.inner.ln_det()


def sigmas(n=40):
    return torch.as_tensor(np.random.default_rng(8).uniform(0.5, 2.0, n) / SNR)


def _holes(n=40):
    sigma = sigmas(n).clone()
    sigma[[0, 7, n - 1]] = torch.inf
    return sigma


def _regressive(n=40, memory=0.7):
    place = torch.arange(n)
    sigma = sigmas(n)
    return AutoRegressive(sigma, memory), sigma * sigma[:, None] * memory ** (place - place[:, None]).abs().double()


INSTANCES = {
    "diagonal": lambda n=40: (Diagonal.of_sigma(sigmas(n)), sigmas(n).square().diag()),
    "diagonal with holes": lambda n=40: (Diagonal.of_sigma(_holes(n)), _holes(n).square().diag()),
    "autoregressive": _regressive,
    "autoregressive, negative": lambda n=40: _regressive(n, -0.4),
    "wrapped": lambda n=40: (Wrapped(sigmas(n) ** -2), sigmas(n).square().diag()),
}


@pytest.fixture(params=INSTANCES)
def make(request):
    return INSTANCES[request.param]


def counting(covariance):
    return covariance.diagonal().isfinite()


def dense(covariance):
    """The covariance of what counts, for numpy."""
    keep = counting(covariance)
    return covariance[keep][:, keep].numpy()


def test_whitening_is_by_the_cholesky_factor(make):
    noise, covariance = make()
    keep, factor = counting(covariance), np.linalg.cholesky(dense(covariance))
    for shape in ((40,), (40, 3)):
        values = torch.randn(*shape, dtype=F64)
        white = noise.whiten(values)
        assert white.shape == values.shape and white.dtype == F64
        assert bool((white[~keep] == 0.0).all())
        np.testing.assert_allclose(white[keep], np.linalg.solve(factor, values[keep].numpy()), rtol=1e-10, atol=1e-9)


def test_transpose(make):
    noise, _ = make()
    one, other = torch.randn(40, dtype=F64), torch.randn(40, dtype=F64)
    assert float(noise.whiten(one) @ other) == pytest.approx(float(one @ noise.whiten_transposed(other)), rel=1e-12)
    columns = torch.randn(40, 2, dtype=F64)
    expected = torch.stack([noise.whiten_transposed(column) for column in columns.T], dim=1)
    torch.testing.assert_close(noise.whiten_transposed(columns), expected, rtol=1e-14, atol=0)


def test_weighing_is_the_inverse(make):
    noise, covariance = make()
    values, keep = torch.randn(40, 2, dtype=F64), counting(covariance)
    weighed = noise.weigh(values)
    expected = np.linalg.solve(dense(covariance), values[keep].numpy())
    np.testing.assert_allclose(weighed[keep], expected, rtol=1e-9, atol=1e-7)
    assert bool((weighed[~keep] == 0.0).all())


def test_determinant(make):
    noise, covariance = make()
    sign, expected = np.linalg.slogdet(dense(covariance))
    assert sign == 1.0 and noise.ln_det() == pytest.approx(expected, rel=1e-12)
    assert noise.n_datum == int(counting(covariance).sum())


def test_single_precision(make):
    noise, _ = make()
    values = torch.randn(40, dtype=F64)
    single = noise.whiten(values.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), noise.whiten(values), rtol=1e-4, atol=1e-3)


# --- in an objective -------------------------------------------------------------------------------------------------


def objective(noise, covariance, kinds=(), names=("continuum",)):
    """Data of a model with this noise."""
    model = order(star=lines())
    some = torch.arange(len(model.star) if kinds else 0)
    free = FreeParameters(model, {"star": kinds}, {"star": some}, names)
    with torch.no_grad():
        truth = model()
    held = torch.where(covariance.isfinite(), covariance, 0.0).numpy()
    scatter = np.random.default_rng(4).multivariate_normal(np.zeros(N_PIXEL), held)
    priors = LinePriors(degrees_of_freedom=math.inf)
    return Objective(free, truth + torch.as_tensor(scatter), noise, {"star": priors})


def normal_of(problem, covariance, vector):
    """JᵀC⁻¹J + P and JᵀC⁻¹r + P(θ₀ - θ) from differences of the flux, in numpy."""
    problem.write(vector)
    keep = counting(covariance)
    jacobian = differences(problem.free, range(len(vector)))[keep].numpy()
    residual = (problem.flux - problem.free.flux().detach())[keep].numpy()
    weighed = np.linalg.solve(dense(covariance), np.column_stack([jacobian, residual]))
    precision, mean = problem.priors.precision.numpy(), problem.priors.mean.numpy()
    matrix = jacobian.T @ weighed[:, :-1] + np.diag(precision)
    return matrix, jacobian.T @ weighed[:, -1] + precision * (mean - vector.numpy())


def test_cost(make):
    noise, covariance = make(N_PIXEL)
    problem = objective(noise, covariance)
    keep = counting(covariance)
    residual = (problem.flux - problem.free.flux().detach())[keep].numpy()
    expected = residual @ np.linalg.solve(dense(covariance), residual)
    assert problem.chi_square() == pytest.approx(expected, rel=1e-9)
    assert problem.n_datum == int(keep.sum())
    rows, priors = problem.evaluate(problem.read())
    assert float(rows.sum()) == pytest.approx(expected, rel=1e-9) and float(priors.sum()) == 0.0


def test_generalised_least_squares_of_a_linear_model(make):
    """Coefficients of the continuum: one solve, in numpy."""
    noise, covariance = make(N_PIXEL)
    problem = objective(noise, covariance)
    start = problem.read()
    matrix, gradient = normal_of(problem, covariance, start)
    expected = start.numpy() + np.linalg.solve(matrix, gradient)
    problem.write(start)
    solution = minimize(problem, absolute_tolerance=1e-8)
    assert solution.success
    error = np.sqrt(np.diag(np.linalg.inv(matrix)))
    np.testing.assert_allclose(solution.vector, expected, rtol=0, atol=1e-3 * error.min())
    normal = problem.linearize(solution.vector)
    np.testing.assert_allclose(normal.factor().border_covariance(), np.linalg.inv(matrix), rtol=1e-6)


def test_generalised_least_squares_of_lines(make):
    """Areas, a velocity and the continuum: the gradient vanishes, and covariances are those of dense algebra."""
    noise, covariance = make(N_PIXEL)
    problem = objective(noise, covariance, ("ln_area",), ("rv", "continuum"))
    solution = minimize(problem, absolute_tolerance=1e-8)
    assert solution.success
    matrix, gradient = normal_of(problem, covariance, solution.vector)
    expected = np.linalg.inv(matrix)
    error = np.sqrt(np.diag(expected))
    assert np.abs(expected @ gradient / error).max() < 2e-3
    variance = problem.linearize(solution.vector, precise=True).factor().variance()
    np.testing.assert_allclose(variance, np.diag(expected), rtol=3e-3)  # as far out as lines are followed


def test_noise_matters():
    """With memory, the velocity's error is another than its pixels alone would have it."""
    told = []
    noise, covariance = _regressive(N_PIXEL, 0.7)
    for one in (noise, Diagonal.of_sigma(sigmas(N_PIXEL))):
        problem = objective(one, covariance, (), ("rv", "continuum"))
        solution = minimize(problem)
        told.append(float(problem.linearize(solution.vector).factor().border_covariance()[0, 0]) ** 0.5)
    assert abs(told[0] / told[1] - 1.0) > 0.1


def test_all_columns_dense_are_the_structured_equations():
    """Of independent pixels, both ways give one answer."""
    weight = sigmas(N_PIXEL) ** -2
    covariance = (1.0 / weight).diag()
    kinds, names = ("ln_area", "ln_sigma", "rv_offset"), ("rv", "continuum")
    structured, one = (objective(noise, covariance, kinds, names) for noise in (Diagonal(weight), Wrapped(weight)))
    vector = structured.read() + 0.01
    first, second = structured.linearize(vector), one.linearize(vector)
    assert first.structure is not None and second.structure is None
    torch.testing.assert_close(second.gradient, first.gradient, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(second.diagonal, first.diagonal, rtol=1e-9, atol=1e-9)
    for damping in (0.0, 0.1):
        step, other = first.factor(damping).solve(first.gradient), second.factor(damping).solve(second.gradient)
        torch.testing.assert_close(other, step, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(second.factor().variance(), first.factor().variance(), rtol=1e-8, atol=0)
    step = torch.randn(len(vector), dtype=F64)
    torch.testing.assert_close(second.push_forward(step), first.push_forward(step), rtol=1e-9, atol=1e-9)
    rows = torch.randn(N_PIXEL, dtype=F64)
    torch.testing.assert_close(second.pull_back(rows), first.pull_back(rows), rtol=1e-9, atol=1e-9)
