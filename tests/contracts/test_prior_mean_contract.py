"""What every `PriorMean` does, the package's own and strangers': posteriors of lines and hyperparameters together."""

import math
from contextlib import contextmanager
from copy import deepcopy
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize
from small_models import F64, SNR, differences, lines, order

from specutils_blase.fitting.prior_means.star import StarLines
from specutils_blase.fitting.prior_means.telluric import TelluricAmounts
from specutils_blase.fitting.start.tellurics import TelluricScale
from specutils_blase.inference.minimize import minimize
from specutils_blase.inference.objective import Objective
from specutils_blase.inference.prior_mean import STILL, PriorMean, PriorMeans
from specutils_blase.inference.priors import LinePriors, penalty
from specutils_blase.model.parameters import KINDS, FreeParameters
from specutils_blase.physics.grids import SPEED_OF_LIGHT

FREE_KINDS = {"star": ("ln_area",), "telluric": ("ln_area", "rv_offset")}


class StrengthByDepth(PriorMean):
    """A stranger's: ln area of a line, less the mean of all, times one slope."""

    def __init__(self):
        super().__init__("star", ["slope"], [0.5])

    def design(self, emulator):
        ln_area = emulator.ln_area.detach().double()
        return {"ln_area": (ln_area - ln_area.mean()).unsqueeze(1)}


class Layers(PriorMean):
    """A stranger's, which keeps its design: two layers of air, each with an amount, and a wind in the upper one."""

    def __init__(self):
        super().__init__("telluric", ["lower", "upper", "wind"], [0.4, 0.4, 0.5])
        share = torch.linspace(0.0, 1.0, 5, dtype=F64)
        nothing = torch.zeros_like(share)
        self.kept = {
            "ln_area": torch.stack([1.0 - share, share, nothing], dim=1),
            "rv_offset": torch.stack([nothing, nothing, share], dim=1),
        }

    def design(self, emulator):
        return dict(self.kept)


def _telluric_amounts(free):
    return TelluricAmounts("telluric", TelluricScale({"": 1.0}, 0.0, {"": 0.3}, 0.2))


INSTANCES = {
    "slope": lambda free: StrengthByDepth(),
    "layers": lambda free: Layers(),
    "telluric amounts": _telluric_amounts,
    "star's lines": lambda free: StarLines(free, "star", LinePriors()),
}


@pytest.fixture(params=INSTANCES)
def make(request):
    return INSTANCES[request.param]


def problem(make, held=0, freedom=math.inf, single=False):
    """Data of lines that stand where the hyperparameters are not zero, a template of them, and the prior mean."""
    truth = order(star=lines(), telluric=lines(4, 5))
    nothing = {name: torch.arange(len(emulator)) for name, emulator in truth.components.items()}
    mean = make(FreeParameters(truth, FREE_KINDS, nothing, ()))
    with torch.no_grad():
        emulator = truth.components[mean.component]
        for kind, values in mean.design(emulator).items():
            if kind in FREE_KINDS[mean.component]:
                getattr(emulator, kind).add_(values @ torch.linspace(0.12, 0.2, len(mean.names), dtype=F64))
        flux = truth() + torch.as_tensor(np.random.default_rng(5).standard_normal(truth.n_pixel)) / SNR
    model = order(star=lines(), telluric=lines(4, 5))
    if single:
        model.float()
    some = {name: torch.arange(held, len(emulator)) for name, emulator in model.components.items()}
    free = FreeParameters(model, FREE_KINDS, some, ("continuum",))
    priors = LinePriors(ln_area=0.1, rv_offset=0.1, degrees_of_freedom=freedom)
    weight = torch.full_like(flux, SNR**2)
    return Objective(free, flux, weight, {"star": priors, "telluric": priors}), mean


def together(objective, mean):
    """The joint object, whose view the mean becomes."""
    return PriorMeans(objective.free, [mean])


def follow(objective, means):
    """Lines and hyperparameters in turn until both stand; the posterior of both after each turn."""
    costs = []
    for _ in range(12):
        solution = minimize(objective, absolute_tolerance=1e-8)
        costs.append(solution.cost + float((means.precision * means.value.square()).sum()))
        moved = means.settle(objective, solution.vector)
        if moved is None:
            return objective, solution, costs
        objective = moved
    raise AssertionError("the hyperparameters do not come to rest")


def test_shapes(make):
    objective, mean = problem(make)
    emulator = objective.free.model.components[mean.component]
    design = mean.design(emulator)
    assert design and set(design) <= set(KINDS)
    for values in design.values():
        assert values.shape == (len(emulator), len(mean.names)) and values.dtype == F64
        assert bool(values.isfinite().all()) and values.device == emulator.center.device
    size = (len(mean.names),)
    assert mean.value.shape == mean.error.shape == mean.precision.shape == mean.least_error().shape == size
    means = together(objective, mean)
    assert means.design.shape == (len(objective.free), *size) and bool(means.moving.any())
    (told,) = means.report()
    assert told["names"] == list(mean.names) and len(told["values"]) == len(told["errors"]) == len(mean.names)


def test_copy_for_a_fit(make):
    objective, mean = problem(make)
    before, fresh = mean.value.clone(), mean.fresh()
    assert type(fresh) is type(mean) and torch.equal(fresh.value, mean.start)
    follow(objective, together(objective, fresh))
    assert torch.equal(mean.value, before) and not torch.equal(fresh.value, before)


def test_design_is_not_changed(make):
    """A line that was found later does not follow, and the design that is given stays as it is."""
    objective, mean = problem(make)
    emulator = objective.free.model.components[mean.component]
    before = {kind: values.clone() for kind, values in mean.design(emulator).items()}
    old = torch.arange(len(emulator)) != 2
    means = PriorMeans(objective.free, [mean], {mean.component: old})
    columns = objective.free.columns(mean.component)
    assert not means.design[columns[2]].any() and bool(means.design[columns[old]].any())
    for kind, values in mean.design(emulator).items():
        assert torch.equal(values, before[kind])


def test_moved_objective(make):
    """Its cost is that of data, lines and prior means moved by hand; lines that are held move alike."""
    objective, mean = problem(make, held=1, freedom=4.0)
    free, means = objective.free, together(objective, mean)
    step = torch.where(means.moving, 0.07, 0.0) * torch.linspace(1.0, -0.5, len(mean.names), dtype=F64)
    width = objective.priors.precision**-0.5
    vector = objective.read() + 0.3 * width.clamp(max=0.1) * torch.randn(len(width), dtype=F64)
    design = mean.design(free.model.components[mean.component])  # that of the template, before lines change
    model = deepcopy(free.model)
    by_hand = FreeParameters(model, free.kinds, free.lines, free.globals)
    with torch.no_grad():
        by_hand.write(vector)
        emulator, kinds = model.components[mean.component], free.kinds[mean.component]
        for kind, values in design.items():
            change = (values @ step)[:1]  # of the line that is held
            if kind == "rv_offset" and kind in kinds:
                emulator.center[:1] *= 1.0 + change / SPEED_OF_LIGHT
            elif kind in kinds:
                getattr(emulator, kind)[:1] += change
        residual = objective.flux - by_hand.flux()
    distance = vector - objective.priors.mean - means.design @ step
    prior = penalty(objective.priors.precision * distance.square(), objective.priors.freedom)
    moved = means.moved(objective, step, vector)
    rows, terms = moved.evaluate(moved.read())
    assert float(rows.sum()) == pytest.approx(float((SNR * residual).square().sum()), rel=1e-8)
    assert float(terms.sum()) == pytest.approx(float(prior.sum()), rel=1e-8)
    torch.testing.assert_close(mean.value, mean.start + step, rtol=1e-12, atol=1e-12)


def posterior_maximum(objective, means):
    """Lines and hyperparameters at the maximum of their posterior, by scipy from the exact gradient."""
    start, design = objective.read(), means.design[:, means.moving]
    precision, size = means.precision[means.moving], len(start)
    width = torch.cat([objective.linearize(start).diagonal ** -0.5, precision**-0.5])

    def both(scaled):
        point = torch.as_tensor(scaled) * width + torch.cat([start, torch.zeros_like(precision)])
        vector, hyper = point[:size], point[size:]
        there = objective.with_priors(mean=objective.priors.mean + design @ hyper)
        cost, half = there.value_and_gradient(vector)
        held = there.priors.precision_at(vector) * (vector - there.priors.mean)
        gradient = torch.cat([-2.0 * half, 2.0 * (precision * hyper - design.T @ held)])
        return cost + float(precision @ hyper.square()), (gradient * width).numpy()

    found = scipy_minimize(both, np.zeros(len(width)), jac=True, method="BFGS", options={"gtol": 1e-4, "maxiter": 500})
    objective.write(start)
    assert np.abs(found.jac).max() < 1e-2
    return (torch.as_tensor(found.x) * width)[size:], found.fun


@pytest.mark.parametrize("freedom", [math.inf, 4.0], ids=["Gaussian", "Student's t"])
def test_rest_at_the_maximum_of_the_posterior(make, freedom):
    objective, mean = problem(make, freedom=freedom)
    means = together(objective, mean)
    expected, least = posterior_maximum(objective, means)
    _, _, costs = follow(objective, means)
    assert len(costs) > 1 and all(after < before for before, after in pairwise(costs))
    off = (means.value[means.moving] - expected).abs() / means.error[means.moving]
    assert float(off.max()) < STILL
    assert costs[-1] - least < 2.0 * STILL**2 * len(off)
    assert bool((means.value[~means.moving] == 0.0).all())


def test_errors_are_those_of_dense_algebra(make):
    """Of the Gaussian posterior of lines and hyperparameters together, marginal over the lines."""
    objective, mean = problem(make)
    means = together(objective, mean)
    objective, solution, _ = follow(objective, means)
    objective.write(solution.vector)
    jacobian = SNR * differences(objective.free, range(len(solution.vector)))
    design, held = means.design[:, means.moving], torch.diag(objective.priors.precision)
    matrix = torch.cat(
        [
            torch.cat([jacobian.T @ jacobian + held, -held @ design], dim=1),
            torch.cat([-design.T @ held, design.T @ held @ design + torch.diag(means.precision[means.moving])], dim=1),
        ]
    )
    expected = torch.linalg.inv(matrix).diagonal()[len(solution.vector) :].sqrt()
    torch.testing.assert_close(means.error[means.moving], expected, rtol=0.02, atol=0.0)


def test_taken_back_and_known_again(make):
    objective, mean = problem(make, held=1)
    means = together(objective, mean)
    objective, solution, _ = follow(objective, means)
    objective.write(solution.vector)
    value, flux = means.value.clone(), objective.free.flux().detach()
    before, again = means.forget(objective)
    assert torch.equal(mean.value, mean.start) and not torch.allclose(before.priors.mean, objective.priors.mean)
    again()
    assert torch.equal(means.value, value)
    torch.testing.assert_close(objective.free.flux().detach(), flux, rtol=1e-12, atol=1e-12)


@contextmanager
def of_threads(n_thread):
    before = torch.get_num_threads()
    torch.set_num_threads(n_thread)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_threads_change_nothing(make):
    told = []
    for n_thread in (1, 2):
        with of_threads(n_thread):
            objective, mean = problem(make, held=1, freedom=4.0)
            means = together(objective, mean)
            _, solution, _ = follow(objective, means)
            told.append(torch.cat([means.value, means.error, solution.vector]))
    torch.testing.assert_close(told[1], told[0], rtol=1e-9, atol=1e-9)


def test_single_precision(make):
    told = []
    for single in (False, True):
        objective, mean = problem(make, held=1, single=single)
        means = together(objective, mean)
        follow(objective, means)
        told.append((means.value, means.error))
    assert told[1][0].dtype == F64
    assert bool(((told[1][0] - told[0][0]).abs() <= 0.1 * STILL * told[0][1]).all())
    torch.testing.assert_close(told[1][1], told[0][1], rtol=1e-3, atol=0.0)


def test_what_is_no_design_is_refused():
    objective, _ = problem(INSTANCES["slope"])

    class Wrong(StrengthByDepth):
        def design(self, emulator):
            return {"ln_area": torch.ones(len(emulator), 2, dtype=F64)}

    with pytest.raises(ValueError, match=r"expected the design of ln_area as \(8, 1\)"):
        PriorMeans(objective.free, [Wrong()])
    with pytest.raises(ValueError, match="expected one prior_sigma a name, got 2 for 1 names"):
        PriorMean("star", ["one"], [0.1, 0.2])
