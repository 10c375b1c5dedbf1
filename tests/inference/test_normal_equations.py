"""Block-tridiagonal normal equations with a border against dense linear algebra."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specutils_blase.inference.linear.blocks import LINES_PER_BLOCK, Structure, Window
from specutils_blase.inference.linear.jacobian import Jacobian, LocalBlock, linearize
from specutils_blase.inference.linear.normal_equations import NormalEquations
from specutils_blase.inference.noise import Diagonal
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import ForwardModel
from specutils_blase.model.parameters import KINDS, FreeParameters
from specutils_blase.simulate import pixel_edges

F64 = torch.float64


def structured(seed, n_line=60, n_kind=3, n_row=400, n_dense=4, widest=30, wide_lines=0, holes=0):
    """A random Jacobian as `linearize` makes them, and the same as one matrix.

    Lines come in batches of like width, in no order of wavelength; some reach beyond the data, some rows carry no line,
    `holes` parameters at the end are touched by nothing, and the last `wide_lines` lines have dense columns.
    """
    rng = np.random.default_rng(seed)
    n_parameter = n_line * n_kind + n_dense + holes
    matrix = torch.zeros(n_row, n_parameter, dtype=F64)
    columns = torch.arange(n_line * n_kind).reshape(n_line, n_kind)
    lines = torch.as_tensor(rng.permutation(n_line - wide_lines))
    blocks = []
    for part in lines.split(max(1, n_line // 3)) if len(lines) else ():
        width = int(rng.integers(3, widest))
        start = torch.as_tensor(rng.integers(-width // 2, n_row - width // 2, len(part)))
        values = torch.as_tensor(rng.standard_normal((len(part), n_kind, width)))
        rows = start.unsqueeze(1) + torch.arange(width)
        inside = (rows >= 0) & (rows < n_row)
        values = values * inside.unsqueeze(1)
        blocks.append(LocalBlock(columns[part], start, values))
        for line, row, keep, value in zip(part, rows, inside, values, strict=True):
            matrix[row[keep].unsqueeze(1), columns[line]] = value[:, keep].T
    dense_columns = torch.cat(
        [columns[n_line - wide_lines :].reshape(-1), torch.arange(n_line * n_kind, n_line * n_kind + n_dense)]
    )
    dense = torch.as_tensor(rng.standard_normal((n_row, len(dense_columns))))
    matrix[:, dense_columns] = dense
    windows = [Window(block.columns, block.start, block.values.shape[-1], None, 0) for block in blocks]
    structure = Structure(windows, n_row, n_parameter) if windows else None
    return Jacobian(torch.zeros(n_row, dtype=F64), blocks, dense, dense_columns, structure), matrix


def normal_equations(jacobian, matrix, seed=0, masked=0.2):
    """Equations with random weights (some zero), residuals and priors; and their dense matrix and right side."""
    rng = np.random.default_rng(seed + 1)
    n_row, n_parameter = matrix.shape
    weight = torch.as_tensor(rng.uniform(0.1, 3.0, n_row) * (rng.random(n_row) > masked))
    residual = torch.as_tensor(rng.standard_normal(n_row))
    precision = torch.as_tensor(10.0 ** rng.uniform(-3, 2, n_parameter))
    pull = torch.as_tensor(rng.standard_normal(n_parameter))
    pull[(matrix == 0).all(0)] = 0.0  # a parameter that nothing touches has not left its anchor
    normal = NormalEquations(jacobian, residual, Diagonal(weight), precision, pull)
    full = matrix.T @ (weight.unsqueeze(1) * matrix) + torch.diag(precision)
    return normal, full, matrix.T @ (weight * residual) + pull, weight, residual


CASES = {
    "lines and border": {},
    "one block": {"n_line": 5},
    "many blocks": {"n_line": 300, "n_row": 2000, "widest": 20},
    "everything overlaps": {"n_line": 40, "n_row": 60, "widest": 50},
    "no border": {"n_dense": 0},
    "no lines": {"n_line": 0},
    "one kind": {"n_kind": 1},
    "wide lines in the border": {"wide_lines": 3},
    "parameters that nothing touches": {"holes": 4},
    "one line": {"n_line": 1, "n_dense": 1},
}


@pytest.fixture(params=CASES)
def case(request):
    jacobian, matrix = structured(11, **CASES[request.param])
    return normal_equations(jacobian, matrix)


def assert_near(found, expected, accuracy=1e-9):
    torch.testing.assert_close(found, expected, rtol=accuracy, atol=accuracy * float(expected.abs().max().clamp(1e-12)))


# --- equations --------------------------------------------------------------------------------------------------------


def test_gradient_and_diagonal(case):
    normal, full, gradient, *_ = case
    assert_near(normal.gradient, gradient)
    assert_near(normal.diagonal, torch.diagonal(full).clone())


def test_product_with_the_jacobian(case):
    """J step, weighted as it is used."""
    normal, full, *_ = case
    step = torch.as_tensor(np.random.default_rng(5).standard_normal(len(full)))
    forward = normal.push_forward(step)
    precision = normal.prior_precision
    assert float(forward @ forward) == pytest.approx(float(step @ full @ step - (precision * step**2).sum()), rel=1e-9)
    # The transpose: ⟨J s, r⟩ = ⟨s, Jᵀ r⟩.
    rows = torch.randn(forward.numel(), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    assert float(normal.pull_back(rows) @ step) == pytest.approx(float(forward @ rows), rel=1e-9)


@pytest.mark.parametrize("damping", [0.0, 1e-3, 10.0])
def test_solution(case, damping):
    normal, full, gradient, *_ = case
    damped = full + damping * torch.diag(torch.diagonal(full))
    assert_near(normal.factor(damping).solve(gradient), torch.linalg.solve(damped, gradient), 1e-8)


def test_damping_of_each_parameter(case):
    normal, full, gradient, *_ = case
    damping = torch.as_tensor(10.0 ** np.random.default_rng(3).uniform(-4, 2, len(full)))
    damped = full + torch.diag(damping * torch.diagonal(full))
    step, factor = normal.step(damping)
    expected = torch.linalg.solve(damped, gradient)
    assert_near(step, expected, 1e-8)
    assert_near(factor.solve(gradient), expected, 1e-8)


def test_covariance(case):
    """Marginal variances of everything, the border's covariance, and that of each line."""
    normal, full, *_ = case
    inverse, factor = torch.linalg.inv(full), normal.factor()
    assert_near(factor.variance(), torch.diagonal(inverse).clone(), 1e-8)
    border = normal.border
    if len(border):
        assert_near(factor.border_covariance(), inverse[border][:, border], 1e-8)
    if normal.structure is None:
        return
    blocks = normal.structure.split(normal.structure.parameter)
    for chosen, block in zip(blocks, factor.block_covariance(), strict=True):
        assert_near(block, inverse[chosen][:, chosen], 1e-8)


@pytest.mark.parametrize("name", ["lines and border", "wide lines in the border", "one kind"])
def test_covariance_of_lines(name):
    """In any order of the groups: those of blocks, those of the border."""
    options = CASES[name]
    jacobian, matrix = structured(12, **options)
    normal, full, *_ = normal_equations(jacobian, matrix)
    inverse = torch.linalg.inv(full)
    groups = torch.arange(60 * options.get("n_kind", 3)).reshape(60, -1)[torch.randperm(60)]
    found = normal.factor().covariance_blocks(groups)
    expected = inverse[groups.unsqueeze(-1), groups.unsqueeze(-2)]
    assert_near(found, expected, 1e-8)


def test_what_no_datum_touches_keeps_its_prior():
    """Variance, covariance, draws; and a step of nothing."""
    jacobian, matrix = structured(13, holes=6)
    normal, full, gradient, *_ = normal_equations(jacobian, matrix)
    factor, holes = normal.factor(), torch.arange(len(full) - 6, len(full))
    prior = 1.0 / normal.prior_precision[holes]
    assert_near(factor.variance()[holes], prior)
    assert_near(factor.covariance_blocks(holes.reshape(2, 3)), torch.diag_embed(prior.reshape(2, 3)))
    assert float(factor.solve(gradient)[holes].abs().max()) == 0.0
    draws = factor.draw(4000, torch.Generator().manual_seed(1))[:, holes]
    ratio = draws.var(0) / prior
    assert ((ratio - 1).abs() < 5 * (2 / 4000) ** 0.5).all()


@pytest.mark.parametrize("name", ["lines and border", "no border", "no lines", "everything overlaps"])
def test_draws(name):
    """Scatter with the inverse of the matrix: white once multiplied by its root, and of zero mean."""
    jacobian, matrix = structured(14, **{"n_line": 20, "n_row": 120, **CASES[name]})
    normal, full, *_ = normal_equations(jacobian, matrix)
    n_draw = 20_000
    draws = normal.factor().draw(n_draw, torch.Generator().manual_seed(2))
    white = draws @ torch.linalg.cholesky(full)
    covariance = white.T @ white / n_draw
    assert float((covariance - torch.eye(len(full), dtype=F64)).abs().max()) < 6 * (2 / n_draw) ** 0.5
    assert float(white.mean(0).abs().max()) < 5 * n_draw**-0.5


def test_draws_are_reproducible():
    jacobian, matrix = structured(15)
    factor = normal_equations(jacobian, matrix)[0].factor()
    one, two = (factor.draw(3, torch.Generator().manual_seed(9)) for _ in range(2))
    torch.testing.assert_close(one, two, rtol=0, atol=0)


def test_pinned_parameters_do_not_step():
    """Parameters at their bounds, lines' and others': the rest steps as if they were fixed; covariances do not."""
    jacobian, matrix = structured(16)
    normal, full, gradient, *_ = normal_equations(jacobian, matrix)
    local = torch.cat([block.columns.reshape(-1) for block in jacobian.blocks])
    pinned = torch.cat([normal.border[[1, 3]], local[[0, 7, 30, 31]]])
    normal.pinned = torch.zeros(len(full), dtype=torch.bool)
    normal.pinned[pinned] = True
    keep = torch.ones(len(full), dtype=torch.bool)
    keep[pinned] = False
    step, factor = normal.step(torch.zeros(len(full), dtype=F64))
    assert float(step[pinned].abs().max()) == 0.0
    assert_near(step[keep], torch.linalg.solve(full[keep][:, keep], gradient[keep]), 1e-8)
    assert float(factor.solve(torch.where(keep, gradient, 0.0))[pinned].abs().max()) == 0.0
    assert_near(normal.factor().variance(), torch.diagonal(torch.linalg.inv(full)).clone(), 1e-8)


def test_sums_by_line():
    """A line gets what happens in the middle half of its window and to its own parameters; the border gets all."""
    jacobian, matrix = structured(17)
    normal, full, _, weight, _ = normal_equations(jacobian, matrix)
    rows, parameters = torch.rand(len(weight), dtype=F64), torch.rand(len(full), dtype=F64)
    found = normal.by_line(rows, parameters)
    for block in jacobian.blocks:
        width = block.values.shape[-1]
        for columns, start in zip(block.columns, block.start.tolist(), strict=True):
            window = rows[max(0, start + width // 4) : max(0, start + 3 * width // 4)]
            assert_near(found[columns], (window.sum() + parameters[columns].sum()).expand(3))
    assert_near(found[normal.border], (rows.sum() + parameters.sum()).expand(4))


@settings(max_examples=25)
@given(seed=st.integers(0, 10_000), n_line=st.integers(1, 90), widest=st.integers(4, 80), n_dense=st.integers(0, 3))
def test_any_structure(seed, n_line, widest, n_dense):
    jacobian, matrix = structured(seed, n_line=n_line, n_kind=2, n_row=150, widest=widest, n_dense=n_dense)
    normal, full, gradient, *_ = normal_equations(jacobian, matrix, seed)
    factor = normal.factor()
    assert_near(factor.solve(gradient), torch.linalg.solve(full, gradient), 1e-7)
    assert_near(factor.variance(), torch.diagonal(torch.linalg.inv(full)).clone(), 1e-7)


def test_blocks_share_rows_with_neighbours_only():
    """And there are many of them: the cost stays linear in the number of lines."""
    jacobian, matrix = structured(18, n_line=400, n_row=4000, widest=20)
    normal = normal_equations(jacobian, matrix)[0]
    blocks = normal.structure.split(normal.structure.parameter)
    assert len(blocks) > 400 / (4 * LINES_PER_BLOCK)
    touched = matrix != 0
    reach = [touched[:, block].any(1) for block in blocks]
    for index, rows in enumerate(reach):
        for other in reach[index + 2 :]:
            assert not (rows & other).any()
    assert sorted(normal.structure.parameter.tolist()) == list(range(1200))


def test_a_parameter_without_information_is_an_error():
    jacobian, matrix = structured(19, n_line=5)
    precision = torch.zeros(matrix.shape[1], dtype=F64)
    weight = torch.zeros(len(matrix), dtype=F64)
    normal = NormalEquations(jacobian, weight, Diagonal(weight), precision, precision)
    with pytest.raises(torch.linalg.LinAlgError, match="a parameter has no information"):
        normal.factor()


# --- a real model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vsini", [3.0, 40.0])
def test_real_model(vsini):
    """Lines of star and sky interleaved, blended and broadened, with everything free."""
    rng = np.random.default_rng(21)
    wavelength = 10_000.0 + 0.05 * np.arange(500)

    def lines(n, sigma):
        return LineEmulator(
            rng.uniform(9_999, 10_026, n), rng.uniform(0.01, 0.1, n), np.full(n, sigma), np.full(n, 0.03)
        )

    model = ForwardModel.for_order(
        torch.tensor(wavelength),
        torch.tensor(pixel_edges(wavelength)),
        star=lines(70, 0.06),
        telluric=lines(40, 0.02),
        vsini=vsini,
        resolving_power=55_000.0,
    )
    free = FreeParameters(
        model,
        {"star": KINDS, "telluric": ("ln_area", "ln_gamma")},
        {"star": torch.arange(70), "telluric": torch.arange(0, 40, 2)},
        ("rv", "vsini", "limb_darkening", "resolving_power", "continuum"),
    )
    jacobian = linearize(free)
    matrix = torch.zeros(500, len(free), dtype=F64)
    for block in jacobian.blocks:
        for columns, start, values in zip(block.columns, block.start.tolist(), block.values, strict=True):
            rows = torch.arange(values.shape[-1]) + start
            inside = (rows >= 0) & (rows < 500)
            matrix[rows[inside].unsqueeze(1), columns] = values[:, inside].T
    matrix[:, jacobian.dense_columns] = jacobian.dense
    weight, residual = torch.rand(500, dtype=F64) * 1e4, 0.01 * torch.randn(500, dtype=F64)
    precision, pull = torch.full((len(free),), 10.0, dtype=F64), torch.zeros(len(free), dtype=F64)
    normal = NormalEquations(jacobian, residual, Diagonal(weight), precision, pull)
    full = matrix.T @ (weight.unsqueeze(1) * matrix) + torch.diag(precision)
    gradient, inverse, factor = matrix.T @ (weight * residual), torch.linalg.inv(full), normal.factor()
    assert_near(normal.gradient, gradient)
    step = torch.linalg.solve(full, gradient)
    torch.testing.assert_close(factor.solve(gradient), step, rtol=1e-7, atol=1e-7 * float(step.abs().max()))
    torch.testing.assert_close(factor.variance(), torch.diagonal(inverse).clone(), rtol=1e-7, atol=0)
    star = free.columns("star")
    expected = inverse[star.unsqueeze(-1), star.unsqueeze(-2)]
    torch.testing.assert_close(factor.covariance_blocks(star), expected, rtol=1e-6, atol=1e-10)
