"""What every `Component` does, the package's own and strangers'."""

import math
from copy import deepcopy

import pytest
import torch
from small_models import (
    F64,
    assert_columns,
    assert_on_meta,
    assert_single_precision,
    differences,
    free_of,
    lines,
    order,
)

import specutils_blase as sb
from specutils_blase.asdf.files import write
from specutils_blase.inference.linear.jacobian import linearize
from specutils_blase.inference.linear.windows import Cut
from specutils_blase.model import Component, DopplerShift, GlobalParameter
from specutils_blase.model.extrinsic import RotationalBroadening


class Fringes(Component):
    """A stranger's: 1 + a cos + b sin of a phase in ln λ, no lines."""

    def __init__(self, name="fringes", period=2e-4):
        super().__init__(name)
        self.period = period
        self.waves = torch.nn.Parameter(torch.tensor([0.02, -0.03], dtype=F64))

    def evaluate(self, sampling, windows=None):
        phase = 2.0 * math.pi * sampling.wavelength.log() / self.period
        waves = self.waves.double()
        return None, (1.0 + waves[0] * phase.cos() + waves[1] * phase.sin()).to(self.waves.dtype)

    def global_parameters(self):
        return (GlobalParameter(self.name, "waves", 0.1, 0.05, (f"{self.name}_cos", f"{self.name}_sin")),)


class Veil(Component):
    """A stranger's: light of no lines, whose amount is all that there is to learn."""

    def __init__(self):
        super().__init__("veil", shines=True, amount=0.15)
        self.register_buffer("one", torch.ones((), dtype=F64))  # of the precision that the model is in

    def evaluate(self, sampling, windows=None):
        return None, self.one.expand(len(sampling))


def moving(rv, vsini):
    return {"doppler": DopplerShift(rv), "rotation": RotationalBroadening(vsini, limb_darkening=(0.3, 0.1))}


INSTANCES = {
    "telluric": lambda: Component("telluric", lines(4, 5, "linear")),
    "companion": lambda: Component("companion", lines(5), shines=True, amount=0.3, **moving(-11.0, 6.0)),
    "saturated": lambda: Component("saturated", lines(6, law="minnaert"), **moving(8.0, 4.0)),
    "haze": lambda: Component("haze", lines(6, 4), doppler=DopplerShift(8.0), amount=1.4),
    "turning": lambda: Component("turning", lines(6, 4), rotation=RotationalBroadening(9.0), amount=0.6),
    "fringes": Fringes,
    "veil": Veil,
}
STRANGERS = "fringes", "veil"


@pytest.fixture(params=INSTANCES)
def make(request):
    return INSTANCES[request.param]


def model_of(component):
    """Beside a star, behind an instrument."""
    return order(star=lines(), components=[component])


def test_flux_depends_on_it(make):
    with torch.no_grad():
        difference = model_of(make())() - order(star=lines())()
    assert float(difference.abs().max()) > 0.01


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_meta(make, dtype):
    assert_on_meta(model_of(make()), dtype)


def test_single_precision(make):
    assert_single_precision(model_of(make()))


def test_derivatives_of_its_global_parameters(make):
    model = model_of(make())
    part = list(model.parts.values())[-1]
    names = [parameter.name for parameter in part.global_parameters()]
    assert names or part.emulator is not None
    free = free_of(model, names)
    columns = [k for place in free.global_slices.values() for k in range(place.start, place.stop)]
    assert len(columns) == sum(owned.tensor.numel() for owned in free.owned.values())
    if columns:
        jacobian = linearize(free)
        assert jacobian.dense_columns.tolist() == columns
        assert_columns(jacobian.dense, differences(free, columns), 1e-4)


def test_exact_gradient(make):
    """The way back through autograd agrees with the derivatives that are stated."""
    model = model_of(make())
    free = free_of(model, [parameter.name for parameter in list(model.parts.values())[-1].global_parameters()])
    if len(free):
        cotangent = torch.randn(model.n_pixel, dtype=F64)
        stated = linearize(free).dense.T @ cotangent
        exact = free.evaluate()[2](cotangent)
        scale = linearize(free).dense.norm(dim=0) * cotangent.norm()
        assert bool(((stated - exact).abs() < 1e-4 * scale).all())


def test_derivatives_of_its_lines(make):
    component = make()
    if component.emulator is None:
        pytest.skip("a component of no lines")
    model = model_of(component)
    free = free_of(model, kinds=("ln_area", "ln_sigma", "ln_gamma", "rv_offset"))
    columns = free.columns(component.name).reshape(-1)[:12].tolist()
    everywhere = Cut(1e-7, 1e-10, 1 << 16)
    dense = linearize(free, cut=everywhere).all_dense(len(free)).dense
    assert_columns(dense[:, columns], differences(free, columns), 1e-4)


def test_through_a_file(make, tmp_path):
    component = make()
    model = model_of(component)
    if component.name in STRANGERS:
        with pytest.raises(ValueError, match=f"got .*{type(component).__name__}: a file holds no code"):
            write(model, tmp_path / "never.asdf")
        assert list(tmp_path.iterdir()) == []
        return
    write(model, tmp_path / "model.asdf")
    back = sb.read(tmp_path / "model.asdf")
    assert torch.equal(back(), model())
    assert back.global_parameters().keys() == model.global_parameters().keys()


def tensors(component):
    return {name: tensor for name, tensor in component.named_parameters()}


def test_copies_share_nothing(make):
    one = make()
    other = deepcopy(one)
    assert tensors(other).keys() == tensors(one).keys() != set()
    for name, tensor in tensors(one).items():
        assert tensors(other)[name] is not tensor and torch.equal(tensors(other)[name], tensor)
    with torch.no_grad():
        for tensor in tensors(other).values():
            tensor.mul_(0.9)
    assert not torch.equal(model_of(one)(), model_of(other)())


def test_orders_share_parameters(make):
    one = make()
    step = one.rotation.step if one.rotation is not None else None
    placed = one.placed(0.37)
    assert type(placed) is type(one) and tensors(placed).keys() == tensors(one).keys()
    for name, tensor in tensors(one).items():
        assert tensors(placed)[name] is tensor
    if one.rotation is not None:
        assert placed.rotation.step == 0.37 and one.rotation.step == step
    if one.emulator is not None:
        some = torch.tensor([0, 2])
        view = one.placed(0.37, some).emulator
        assert view.parent is one.emulator and len(view) == 2 and one.emulator is placed.emulator


def test_other_lines(make):
    one = make()
    if one.emulator is None:
        pytest.skip("a component of no lines")
    other = lines(9, 3)
    shared, apart = one.with_lines(other), one.alone(other)
    assert shared.emulator is other and apart.emulator is other and one.emulator is not other
    for name, tensor in tensors(one).items():
        if not name.startswith("emulator"):
            assert tensors(shared)[name] is tensor
            assert tensors(apart)[name] is not tensor and torch.equal(tensors(apart)[name], tensor)
    moved = one.at(17.0, 3.0, (0.1, 0.2))
    assert (moved.velocity, moved.vsini) == (17.0, 3.0) and moved.doppler is not one.doppler
    assert one.velocity != 17.0 and moved.emulator is one.emulator


@pytest.mark.parametrize("name", ["", "a.b", "keys", "type"])
def test_names_that_no_model_can_hold(name):
    with pytest.raises(ValueError, match="expected the name of a component"):
        Component(name, lines())


def test_two_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two components have one name: star, fringes, fringes"):
        order(star=lines(), components=[Fringes(), Fringes()])
    nameless = Component("b", lines(5), doppler=DopplerShift(1.0), shines=True, prefix="")
    with pytest.raises(ValueError, match="expected parameters of different names, got rv twice"):
        order(star=lines(), components=[nameless])
