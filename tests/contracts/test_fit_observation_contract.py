"""`fit_observation`: a pure function whose arguments and result can be sent to another process."""

import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import fields, is_dataclass

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.nddata import StdDevUncertainty
from small_models import F64, PIXELS, POWER, SNR, lines, observed, order
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase.fitting.inputs import templates_of
from specutils_blase.fitting.observation import observe
from specutils_blase.fitting.options import FitOptions
from specutils_blase.fitting.pipeline import fit_observation
from specutils_blase.inference.prior_mean import PriorMean
from specutils_blase.model import Component, DopplerShift, LineSpreadFunction
from specutils_blase.physics.parallel import side_by_side

HALVES = slice(0, 70), slice(60, 130)


class StrengthByDepth(PriorMean):
    """ln area of a line, less the mean of all, times one slope."""

    def __init__(self):
        super().__init__("star", ["slope"], [0.5])

    def design(self, emulator):
        ln_area = emulator.ln_area.detach().double()
        return {"ln_area": (ln_area - ln_area.mean()).unsqueeze(1)}


def companion():
    return Component("companion", lines(7), doppler=DopplerShift(-20.0), shines=True, amount=0.2, free_lines=())


def arguments():
    """Two orders, three components, a line spread and a prior mean."""
    truth = order(star=lines(), telluric=lines(4, 3), components=[companion()])
    data = [observed(truth)[half] for half in HALVES]
    options = FitOptions(
        rv=3.0, vsini=5.0, free=("rv", "continuum", "companion_amount"), continuum=1, line_spread=LineSpreadFunction(),
        kinds={"star": ("ln_area",), "telluric": (), "companion": ()}, prior_means=(StrengthByDepth(),),
    )  # fmt: skip
    observation = observe(data, resolving_power=POWER, n_parameter=5)
    return observation, templates_of(observation, lines(), lines(4, 3), [companion()], options), options


@pytest.fixture(scope="module")
def given():
    return arguments()


@pytest.fixture(scope="module")
def result(given):
    with of_threads(1):
        return fit_observation(*given)


@contextmanager
def of_threads(n_thread):
    before = torch.get_num_threads()
    torch.set_num_threads(n_thread)
    try:
        yield
        assert torch.get_num_threads() == n_thread
    finally:
        torch.set_num_threads(before)


def leaves(thing, path=""):
    """Path and value of all numbers and tensors in nested objects."""
    if isinstance(thing, torch.nn.Module):
        yield from ((f"{path}.{name}", tensor) for name, tensor in thing.state_dict().items())
    elif isinstance(thing, torch.Tensor):
        yield path, thing
    elif isinstance(thing, np.ndarray):
        yield path, torch.as_tensor(np.array(thing))
    elif isinstance(thing, PriorMean):
        yield from leaves(vars(thing), path)
    elif is_dataclass(thing):
        for each in fields(thing):
            yield from leaves(getattr(thing, each.name), f"{path}.{each.name}")
    elif isinstance(thing, dict):
        for name, value in thing.items():
            yield from leaves(value, f"{path}[{name}]")
    elif isinstance(thing, list | tuple):
        for k, value in enumerate(thing):
            yield from leaves(value, f"{path}[{k}]")
    elif isinstance(thing, int | float):
        yield path, torch.tensor(thing, dtype=F64)


def snapshot(thing):
    return {path: value.clone() for path, value in leaves(thing)}


def assert_same(before, after):
    assert before.keys() == after.keys() and len(before) > 5
    for path, value in before.items():
        assert value.dtype == after[path].dtype and torch.equal(value, after[path]), path


def assert_same_fit(one, other, accuracy):
    """Parameters, errors and lines within a part of them."""
    assert list(one.parameters["name"]) == list(other.parameters["name"])
    for table in ("parameters", "ledger"):
        for name in getattr(one, table).colnames:
            first, second = (np.asarray(getattr(fit, table)[name]) for fit in (one, other))
            if first.dtype.kind == "f":
                np.testing.assert_allclose(second, first, rtol=accuracy, atol=accuracy, err_msg=name)
            else:
                np.testing.assert_array_equal(second, first, err_msg=name)


def test_twice_the_same_and_nothing_changed(given, result):
    before, state = snapshot(given), torch.get_rng_state()
    with of_threads(1):
        again = fit_observation(*given)
    assert_same(before, snapshot(given))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.is_grad_enabled()
    assert_same_fit(result, again, 0.0)
    assert result.success and abs(result.value("rv") - 3.0) < 4.0 * result.error("rv")


def test_arguments_can_be_pickled(given):
    before = snapshot(given)
    back = pickle.loads(pickle.dumps(given))
    assert_same(before, snapshot(back))
    for one, other in zip(given[0].orders, back[0].orders, strict=True):
        assert np.array_equal(one.frame.axis, other.frame.axis) and one.frame.axis.unit == other.frame.axis.unit
        assert type(one.frame.axis) is type(other.frame.axis) and one.frame.meta == other.frame.meta
        assert one.frame.flux_unit == other.frame.flux_unit
    assert {part.name for part in back[1]} == {"star", "telluric", "companion"}
    assert back[2].free == given[2].free and type(back[2].line_spread) is LineSpreadFunction


def test_result_can_be_pickled(result):
    back = pickle.loads(pickle.dumps(result))
    assert_same_fit(result, back, 0.0)
    assert back.quality == result.quality and back.settings == result.settings
    for one, other in zip(result.model(), back.model(), strict=True):
        assert torch.equal(one, other)
    first = back.model.orders[0].parts["star"]
    assert first.emulator.parent is back.model.star  # what orders share is shared again
    for one, other in zip(result.model_spectrum, back.model_spectrum, strict=True):
        assert np.array_equal(one.flux, other.flux) and np.array_equal(one.spectral_axis, other.spectral_axis)
    np.testing.assert_array_equal(back.draw(2).vectors, result.draw(2).vectors)


def test_in_another_process(given, result):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        far = pool.submit(fit_observation, *given).result(timeout=600)
    assert_same_fit(result, far, 1e-9)


def test_threads_change_nothing(given, result):
    """One thread, two within torch, and two orders side by side."""
    with of_threads(2):
        two = fit_observation(*given)
    with of_threads(2), side_by_side(2):
        beside = fit_observation(*given)
    assert_same_fit(result, two, 1e-9)
    assert_same_fit(result, beside, 1e-9)


def test_clone_can_be_pickled():
    """Its template and its own spectrum too, whose WCS specutils makes of a class that no pickle can name."""
    truth = observed(order(star=lines(), vsini=0.0))
    edges = np.append(PIXELS - 0.025, PIXELS[-1] + 0.025) * u.AA
    noise = StdDevUncertainty(np.full(PIXELS.size, 1.0 / SNR))
    template = Spectrum(
        flux=truth.flux, spectral_axis=edges, bin_specification="edges", uncertainty=noise, meta={"OBJECT": "a star"}
    )
    clone = sb.clone(template, progress=False, max_iterations=3)
    back = pickle.loads(pickle.dumps(clone))
    for name in ("template", "model_spectrum"):
        one, other = getattr(clone, name), getattr(back, name)
        assert type(one) is type(other) and one.flux.unit == other.flux.unit and one.meta == other.meta
        assert np.array_equal(one.flux, other.flux) and np.array_equal(one.spectral_axis, other.spectral_axis)
        assert np.array_equal(one.spectral_axis.bin_edges, other.spectral_axis.bin_edges)
        assert (one.mask is None) == (other.mask is None) and type(one.uncertainty) is type(other.uncertainty)
        if one.uncertainty is not None:
            assert np.array_equal(one.uncertainty.array, other.uncertainty.array)
            assert one.uncertainty.unit == other.uncertainty.unit
    assert back.ledger.meta["quality"] == clone.ledger.meta["quality"] and repr(back) == repr(clone)
    for one, other in zip(clone.emulator.parameters(), back.emulator.parameters(), strict=True):
        assert torch.equal(one, other)
