"""Many orders behind one star and one sky: the model, its derivatives, its normal equations."""

import numpy as np
import pytest
import torch

from specutils_blase.inference.linear import windows as jacobian_windows
from specutils_blase.inference.linear.jacobian import linearize
from specutils_blase.inference.linear.normal_equations import NormalEquations
from specutils_blase.inference.linear.windows import Cut, Layout
from specutils_blase.inference.objective import Objective
from specutils_blase.inference.priors import LinePriors
from specutils_blase.model.echelle import EchelleModel
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.line_view import LineView
from specutils_blase.model.order import ForwardModel
from specutils_blase.model.parameters import KINDS, FreeParameters
from specutils_blase.spectra.data import pixel_edges

F64 = torch.float64
STARTS = (10_000.0, 10_009.0, 10_030.0)  # the first two overlap, the third stands apart
RESOLVING = (50_000.0, 45_000.0, 60_000.0)
GLOBALS = ("rv", "vsini", "limb_darkening", "resolving_power", "continuum", "star_law", "telluric_law")


def emulator(seed, n, sigma, gamma, law="log"):
    rng = np.random.default_rng(seed)
    return LineEmulator(
        rng.uniform(9_998.0, 10_046.0, n),
        0.03 * rng.random(n) ** 2 + 1e-3,
        sigma * np.exp(0.25 * rng.standard_normal(n)),
        gamma * np.exp(0.4 * rng.standard_normal(n)),
        rv_offset=0.1 * rng.standard_normal(n),
        law=law,
        wavelength_range=(9_995.0, 10_050.0),
    )


def pixels(start, n=240):
    wavelength = torch.arange(n, dtype=F64) * 0.05 + start
    return wavelength, pixel_edges(wavelength)


def seen(component, margin=3.0):
    """Lines near each order."""
    return [
        ((component.center > start - margin) & (component.center < start + 12.0 + margin)).nonzero().squeeze(-1)
        for start in STARTS
    ]


def echelle(starts=STARTS, law="log"):
    star, sky = emulator(1, 60, 0.06, 0.02, law), emulator(2, 40, 0.02, 0.04)
    wavelengths, edges = zip(*map(pixels, starts), strict=True)
    model = EchelleModel.for_orders(
        wavelengths,
        edges,
        star=star,
        telluric=sky,
        lines=[{"star": a, "telluric": b} for a, b in zip(seen(star), seen(sky), strict=True)][: len(starts)],
        rv=-7.0,
        vsini=6.0,
        limb_darkening=(0.4, 0.2),
        resolving_power=RESOLVING,
    )
    with torch.no_grad():
        for k, order in enumerate(model.orders):
            order.continuum.coefficients += 0.02 * torch.arange(1, 4) + 0.1 * k
    return model


@torch.no_grad()
def fluxes(model):
    return [flux.clone() for flux in model()]


def everything(model, globals=GLOBALS):
    lines = {name: torch.arange(len(component)) for name, component in model.components.items()}
    return FreeParameters(model, dict.fromkeys(lines, KINDS), lines, globals)


def worst_projection(free, matrix, columns=None, n_projection=6):
    """Largest error of Jᵀ × random cotangents against autograd, in units of each column's norm."""
    generator, worst = torch.Generator().manual_seed(9), 0.0
    norm = matrix.norm(dim=0).clamp(min=1e-6)
    pick = slice(None) if columns is None else columns
    for _ in range(n_projection):
        cotangent = torch.randn(matrix.shape[0], generator=generator, dtype=F64)
        error = (free.evaluate()[2](cotangent) - matrix.T @ cotangent).abs() / norm
        worst = max(worst, float(error[pick].max()))
    return worst


def dense(free, structured):
    matrix = torch.zeros(len(structured.flux), len(free), dtype=F64)
    for block in structured.blocks:
        for columns, start, values in zip(block.columns, block.start.tolist(), block.values, strict=True):
            pixel = torch.arange(values.shape[-1]) + start
            inside = (pixel >= 0) & (pixel < block.rows.numel())
            assert (values[:, ~inside] == 0).all()
            matrix[block.rows[pixel[inside]].unsqueeze(1), columns] += values[:, inside].T
    matrix[:, structured.dense_columns] += structured.dense
    return matrix


def test_every_order_is_what_it_would_be_alone():
    model = echelle()
    for k, (start, flux) in enumerate(zip(STARTS, model(), strict=True)):
        alone = ForwardModel.for_order(
            *pixels(start),
            star=model.star.subset(model.orders[k].star.index),
            telluric=model.telluric.subset(model.orders[k].telluric.index),
            rv=-7.0,
            vsini=6.0,
            limb_darkening=(0.4, 0.2),
            resolving_power=RESOLVING[k],
        )
        alone.continuum.load_state_dict(model.orders[k].continuum.state_dict())
        torch.testing.assert_close(flux, alone(), rtol=1e-13, atol=1e-13)


def test_parameters_are_shared_and_continua_are_not():
    model = echelle()
    before = fluxes(model)
    with torch.no_grad():
        model.orders[2].doppler.rv += 3.0
        model.orders[1].rotation.vsini += 2.0
    assert all(float((a - b).abs().max()) > 1e-3 for a, b in zip(before, fluxes(model), strict=True))
    before = fluxes(model)
    with torch.no_grad():
        model.orders[1].continuum.coefficients[0] += 1.0
    changed = [float((a - b).abs().max()) > 1e-12 for a, b in zip(before, fluxes(model), strict=True)]
    assert changed == [False, True, False]
    names = {name for name, _ in model.named_parameters()}
    assert sum(name.endswith("ln_area") for name in names) == 2
    assert sum(name.endswith(".rv") for name in names) == sum(name.endswith(".vsini") for name in names) == 1


def test_a_line_in_the_overlap_is_one_line():
    """Moving it through one order's view moves it in the other."""
    model = echelle()
    one, two = (set(order.star.index.tolist()) for order in list(model.orders)[:2])
    common = sorted(one & two)
    assert len(common) > 3
    line, view = common[len(common) // 2], model.orders[0].star
    values = view.line_parameters().detach().clone()
    values[view.index == line, 0] += 0.5
    before = fluxes(model)[1]
    view.set_line_parameters(values)
    assert float((fluxes(model)[1] - before).abs().max()) > 1e-4
    assert float(model.star.ln_area[line].detach()) == float(values[view.index == line, 0])


def test_merging_puts_pixels_in_order_of_wavelength():
    model = echelle()
    wavelength = [order.pixels.edges.mean(1) for order in model.orders]
    merged = model.merge(wavelength)
    assert (merged.diff() >= 0).all()
    for k, part in enumerate(model.split(merged)):
        torch.testing.assert_close(part, wavelength[k], rtol=0, atol=0)
        torch.testing.assert_close(merged[model.rows(k)], wavelength[k], rtol=0, atol=0)


@pytest.mark.parametrize("law", ["log", "minnaert"])
def test_jacobian_against_autograd(monkeypatch, law):
    monkeypatch.setattr(jacobian_windows, "STEERING", Cut(1e-2, 1e-8, 10**6))
    free = everything(echelle(law=law))
    structured = linearize(free)
    torch.testing.assert_close(structured.flux, free.flux().detach(), rtol=0, atol=1e-14)
    assert worst_projection(free, dense(free, structured)) < 2e-4


def test_a_line_dense_in_one_order_is_dense_in_all(monkeypatch):
    """A broad line whose core fills the window of one order, and is cut short by the end of the other."""
    model = echelle()
    with torch.no_grad():
        model.star.ln_sigma[30] = np.log(1.5)
        model.star.ln_area[30] = np.log(0.5)
    model.star.center[30] = 10_012.2
    model.star.center.copy_(model.star.center.sort().values)
    monkeypatch.setattr(jacobian_windows, "STEERING", Cut(1e-2, 1e-8, 700))
    free = everything(model)
    structured = linearize(free)
    local = {column for block in structured.blocks for column in block.columns.reshape(-1).tolist()}
    assert not local & set(structured.dense_columns.tolist())
    wide = set(structured.dense_columns.tolist()) & set(range(free.n_line_parameter))
    assert wide
    assert worst_projection(free, dense(free, structured), sorted(wide)) < 1e-4


def problem(model, seed=3):
    generator = torch.Generator().manual_seed(seed)
    free = everything(model, ("rv", "vsini", "continuum"))
    flux = free.flux().detach()
    weight = torch.full_like(flux, 1e4)
    weight[100:130] = 0.0
    noise = 0.01 * torch.randn(flux.shape, generator=generator, dtype=F64)
    return Objective(free, flux + noise, weight, dict.fromkeys(model.components, LinePriors()))


def test_normal_equations_against_dense_ones():
    p = problem(echelle())
    vector = p.read()
    normal = p.linearize(vector)
    matrix = dense(p.free, linearize(p.free))
    full = matrix.T @ (p.weight.unsqueeze(1) * matrix) + torch.diag(p.priors.precision_at(vector))
    factor = normal.factor()
    right = torch.randn(len(vector), generator=torch.Generator().manual_seed(1), dtype=F64)
    touched = matrix.abs().sum(0) > 0  # lines between the orders stay at their priors
    right[~touched] = 0.0
    assert 0 < int((~touched).sum()) < 100
    torch.testing.assert_close(factor.solve(right), torch.linalg.solve(full, right), rtol=1e-8, atol=1e-10)
    inverse = torch.linalg.inv(full)
    torch.testing.assert_close(factor.variance(), torch.diagonal(inverse), rtol=1e-8, atol=0)
    for name in p.free.model.components:
        columns = p.free.columns(name)
        expected = inverse[columns.unsqueeze(2), columns.unsqueeze(1)]
        torch.testing.assert_close(factor.covariance_blocks(columns), expected, rtol=1e-7, atol=1e-12)
    assert len(normal.structure.n_column) > 3


def test_gradient_against_differences():
    p = problem(echelle())
    vector = p.read()
    gradient = p.value_and_gradient(vector)[1]
    for column in (0, 77, 241, 399, p.free.global_slices["rv"].start, p.free.global_slices["continuum[2]"].start):
        step = torch.zeros_like(vector)
        step[column] = 1e-5
        up, down = (p.value_and_gradient(vector + sign * step)[0] for sign in (1, -1))
        assert float(gradient[column]) == pytest.approx(-(up - down) / 4e-5, rel=1e-5, abs=1e-4)


def test_gains_by_line_count_both_orders():
    """Sum over the middle half of a line's windows, in the one order and the other."""
    p = problem(echelle())
    jacobian = linearize(p.free)
    zero = torch.zeros(len(p.priors.mean), dtype=F64)
    normal = NormalEquations(jacobian, p.flux - jacobian.flux, p.noise, p.priors.precision_at(p.priors.mean), zero)
    rows = torch.rand(p.flux.numel(), generator=torch.Generator().manual_seed(5), dtype=F64)
    found, expected = normal.by_line(rows, zero), torch.zeros_like(zero)
    for window in Layout(p.free).windows:
        start, stop = window.span()
        for columns, a, b in zip(window.columns, start.tolist(), stop.tolist(), strict=True):
            expected[columns] += rows[a + (b - a) // 4 : a + 3 * (b - a) // 4].sum()
    expected[jacobian.dense_columns] = rows.sum()
    touched = expected > 0
    torch.testing.assert_close(found[touched], expected[touched])


def test_one_order_alone_gives_the_same_equations():
    """The échelle machinery with a single order, against the single-order machinery."""
    many = echelle(STARTS[:1])
    one = many.orders[0]
    single = ForwardModel.for_order(
        *pixels(STARTS[0]),
        star=many.star.subset(one.star.index),
        telluric=many.telluric.subset(one.telluric.index),
        rv=-7.0,
        vsini=6.0,
        limb_darkening=(0.4, 0.2),
        resolving_power=RESOLVING[0],
    )
    single.continuum.load_state_dict(one.continuum.state_dict())
    a, b = problem(many), problem(single)
    torch.testing.assert_close(a.flux, b.flux, rtol=1e-13, atol=1e-13)
    first, second = (p.linearize(p.read()).factor() for p in (a, b))
    for name in one.components:
        seen_here = one.components[name].index
        torch.testing.assert_close(
            first.covariance_blocks(a.free.columns(name))[seen_here],
            second.covariance_blocks(b.free.columns(name)),
            rtol=1e-9,
            atol=1e-14,
        )
    torch.testing.assert_close(first.border_covariance(), second.border_covariance(), rtol=1e-9, atol=1e-16)


def test_views_do_not_own():
    view = LineView(emulator(1, 10, 0.05, 0.02), torch.tensor([2, 5]))
    assert len(view) == 2 and not list(view.parameters())


def test_devices(device):
    model = echelle().to(device)
    free = everything(model)
    flux, _, pull = free.evaluate()
    assert flux.device.type == pull(torch.ones_like(flux)).device.type == device.type


def test_an_echelle_model_needs_orders():
    with pytest.raises(ValueError, match="at least one order"):
        EchelleModel([])
