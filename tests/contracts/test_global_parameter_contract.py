"""What every `Transform` and every `GlobalParameter` does, the package's own and strangers'."""

import math

import pytest
import torch
from small_models import F64, lines

from specutils_blase.model import Component, DopplerShift, GlobalParameter
from specutils_blase.model.echelle import EchelleModel
from specutils_blase.model.extrinsic import RotationalBroadening
from specutils_blase.model.global_parameter import LINEAR, LOGARITHMIC, SQUARED, Transform, owned_by
from specutils_blase.model.parameters import FreeParameters
from specutils_blase.simulate import pixel_edges


def _logit(value):
    return torch.log(value / (1.0 - value))


def _logit_slope(value):
    return 1.0 / (value * (1.0 - value))


FRACTION = Transform(
    _logit,
    torch.sigmoid,
    _logit_slope,
    torch.sigmoid,
    lambda value: value * (1.0 - value),
    lambda value, error: value * (1.0 - value) * error,
)
"""A stranger's: the tensor is a fraction, the solver sees its logit."""

TRANSFORMS = {
    "linear": (LINEAR, (-30.0, 0.0, 7.5)),
    "squared": (SQUARED, (0.05, 1.0, 12.0)),
    "logarithmic": (LOGARITHMIC, (-1.0, 0.3, 10.8)),
    "fraction": (FRACTION, (0.02, 0.4, 0.97)),
}


@pytest.fixture(params=[(name, value) for name, (_, values) in TRANSFORMS.items() for value in values], ids=str)
def case(request):
    name, value = request.param
    return TRANSFORMS[name][0], torch.tensor([value], dtype=F64)


def slope(function, point, step=1e-6):
    """A central difference."""
    step = step * max(1.0, abs(float(point)))
    return float((function(point + step) - function(point - step)) / (2.0 * step))


def test_there_and_back(case):
    transform, tensor = case
    coordinate = transform.coordinate(tensor)
    torch.testing.assert_close(transform.tensor(coordinate), tensor, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(transform.coordinate(transform.tensor(coordinate)), coordinate, rtol=1e-12, atol=1e-12)
    assert float(coordinate) >= transform.lowest


def test_slopes(case):
    """Of the coordinate to the tensor, and of the value to the coordinate."""
    transform, tensor = case
    stated = float(torch.as_tensor(transform.coordinate_slope(tensor)))
    assert stated == pytest.approx(slope(transform.coordinate, tensor), rel=1e-4)
    coordinate = transform.coordinate(tensor)
    assert transform.value_slope(float(tensor)) == pytest.approx(slope(transform.value, coordinate), rel=1e-4)


def test_small_errors_follow_the_slope(case):
    transform, tensor = case
    small = 1e-6 * max(1e-3, float(transform.coordinate(tensor).abs()))
    expected = abs(transform.value_slope(float(tensor))) * small
    assert transform.value_error(float(tensor), small) == pytest.approx(expected, rel=1e-4)


def test_errors_grow_and_stay_finite(case):
    transform, tensor = case
    errors = [transform.value_error(float(tensor), size) for size in (0.0, 1e-3, 1.0, 100.0)]
    assert errors[0] == 0.0 and errors == sorted(errors) and errors[1] < errors[2]
    assert all(map(math.isfinite, errors))


class Glow(Component):
    """A stranger's light of no lines, a fraction of the continuum."""

    def __init__(self):
        super().__init__("glow", shines=True)
        self.fraction = torch.nn.Parameter(torch.tensor([0.1, 0.3], dtype=F64))

    def evaluate(self, sampling, windows=None):
        x = torch.linspace(0.0, 1.0, len(sampling), dtype=F64, device=self.fraction.device)
        return None, ((1.0 - x) * self.fraction[0] + x * self.fraction[1]).to(self.fraction.dtype)

    def global_parameters(self):
        return (GlobalParameter("glow", "fraction", 5.0, 1.0, transform=FRACTION),)


def model():
    """Two orders with all that the package can learn, and a stranger's."""
    motion = {"doppler": DopplerShift(-11.0), "rotation": RotationalBroadening(6.0)}
    companion = Component("companion", lines(5, law="minnaert"), shines=True, amount=0.3, **motion)
    pixels = [torch.linspace(10_000.0, 10_003.5, 70, dtype=F64), torch.linspace(10_003.0, 10_006.5, 70, dtype=F64)]
    edges = [torch.as_tensor(pixel_edges(centres.numpy())) for centres in pixels]
    return EchelleModel.for_orders(
        pixels, edges, star=lines(), telluric=lines(4, 3), components=[companion, Glow()], rv=3.0, vsini=5.0,
        resolving_power=[50_000.0, 45_000.0], continuum_degree=1,
    )  # fmt: skip


def test_vector_of_all_parameters():
    """Written and read again; derivatives to each are those to its coordinate."""
    many = model()
    names = tuple(dict.fromkeys(owned.parameter.name for owned in many.global_parameters().values()))
    assert {"rv", "companion_rv", "vsini", "companion_law", "companion_amount", "glow", "continuum"} <= set(names)
    nothing = {name: torch.zeros(0).long() for name in many.components}
    free = FreeParameters(many, dict.fromkeys(many.components, ()), nothing, names)
    assert len(free) == sum(owned.tensor.numel() for owned in free.owned.values())
    start = free.read()
    free.write(start)
    torch.testing.assert_close(free.read(), start, rtol=1e-14, atol=1e-14)
    flux, _, back = free.evaluate()
    cotangent = torch.randn(len(flux), dtype=F64)
    gradient = back(cotangent)
    for key, place in free.global_slices.items():
        for k in range(place.start, place.stop):
            ends, step = [], 1e-5 * max(1.0, abs(float(start[k])))
            for side in (1.0, -1.0):
                vector = start.clone()
                vector[k] += side * step
                free.write(vector)
                ends.append(float(free.flux().detach() @ cotangent))
            expected = (ends[0] - ends[1]) / (2.0 * step)
            assert float(gradient[k]) == pytest.approx(expected, rel=1e-4, abs=1e-7 * float(cotangent.norm())), key
    free.write(start)


def test_what_each_says_of_itself():
    many, rows = model(), []
    for stage in (*many.parts.values(), many.orders[0].line_spread, many.orders[0].continuum):
        for name, owned in owned_by(stage).items():
            parameter, coordinate = owned.parameter, owned.parameter.transform.coordinate(owned.tensor.detach())
            assert parameter.name == name and parameter.scope in ("all", "order")
            assert parameter.prior_sigma > 0.0
            limit = parameter.limit(coordinate)
            assert limit.shape == coordinate.shape and bool((limit > 0.0).all())
            lower, upper = owned.bounds
            assert bool(((lower <= coordinate) & (coordinate <= upper)).all()) and lower >= parameter.transform.lowest
            assert len(owned.rows) == owned.tensor.numel()
            rows += owned.rows
    assert len(set(rows)) == len(rows)
