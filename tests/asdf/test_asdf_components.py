"""Models of further components through a file, and files of such that are refused."""

import re

import frozen
import pytest
import torch
from test_asdf import assert_same_state, through_file

from specutils_blase.asdf.files import read, write
from specutils_blase.model import Component, DopplerShift, ForwardModel
from specutils_blase.model.echelle import EchelleModel
from specutils_blase.model.extrinsic import RotationalBroadening
from specutils_blase.spectra.data import pixel_edges

F64 = torch.float64
WAVELENGTHS = [torch.as_tensor(pixels) for pixels in frozen.ORDERS]
SEEN = [
    {"star": torch.arange(7), "telluric": torch.arange(3), "companion": torch.arange(2), "haze": torch.arange(4)},
    {"star": torch.arange(4, 10), "telluric": torch.tensor([2, 3]), "companion": torch.arange(2, 4),
     "haze": torch.tensor([1, 3])},
]  # fmt: skip


def haze():
    """A transmission that moves, with an amount and no rotation; all its lines may be fitted."""
    return Component("haze", frozen.sky(), doppler=DopplerShift(-3.0), amount=1.3)


def moved(model):
    """The same, away from where constructors put parameters."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.97)
    return model


def one(components=(frozen.companion, haze), **options):
    options = {"star": frozen.star(), "telluric": frozen.sky(), "rv": -12.0, "vsini": 4.0} | options
    parts = [make() for make in components]
    edges = pixel_edges(WAVELENGTHS[0])
    model = ForwardModel.for_order(WAVELENGTHS[0], edges, components=parts, resolving_power=55_000.0, **options)
    return moved(model)


def many(components=(frozen.companion, haze), **options):
    options = {"star": frozen.star(), "telluric": frozen.sky(), "rv": -12.0, "vsini": 4.0} | options
    parts = [make() for make in components]
    present = {name for name in ("star", "telluric") if options[name] is not None} | {part.name for part in parts}
    seen = [{name: lines for name, lines in order.items() if name in present} for order in SEEN]
    edges = [pixel_edges(wavelength) for wavelength in WAVELENGTHS]
    powers = [55_000.0, 50_000.0]
    model = EchelleModel.for_orders(WAVELENGTHS, edges, components=parts, lines=seen, resolving_power=powers, **options)
    return moved(model)


def assert_same_parts(original, back):
    assert list(back.parts) == list(original.parts)
    for before, after in zip(original.parts.values(), back.parts.values(), strict=True):
        for name in ("name", "shines", "prefix", "free_lines", "velocity", "vsini"):
            assert getattr(after, name) == getattr(before, name), name
        if before.amount is not None:
            assert torch.equal(after.amount, before.amount) and after.double == before.double
        assert (after.rotation is None) == (before.rotation is None)


def assert_same_room(original, back):
    for before, after in zip(original.parts.values(), back.parts.values(), strict=True):
        if before.rotation is not None:
            assert (after.rotation.step, after.rotation.max_vsini) == (before.rotation.step, before.rotation.max_vsini)


CASES = {
    "both": {},
    "no star": {"star": None},
    "no telluric": {"telluric": None},
    "companion alone": {"star": None, "telluric": None, "components": (frozen.companion,)},
}


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_model_of_one_order(options, tmp_path):
    original = one(**options)
    back = through_file(original, tmp_path)
    assert_same_parts(original, back)
    assert_same_room(original, back)
    assert_same_state(original, back)
    assert [name for name, _ in back.named_parameters()] == [name for name, _ in original.named_parameters()]
    assert back.global_parameters().keys() == original.global_parameters().keys()
    assert torch.equal(back(), original())


@pytest.mark.parametrize("options", CASES.values(), ids=CASES)
def test_model_of_many_orders(options, tmp_path):
    original = many(**options)
    original.orders[1].parts["companion"].rotation.max_vsini = 31.0
    back = through_file(original, tmp_path)
    assert_same_parts(original, back)
    assert_same_state(original, back)
    assert back.global_parameters().keys() == original.global_parameters().keys()
    for before, after in zip(original.orders, back.orders, strict=True):
        assert_same_parts(before, after)
        assert_same_room(before, after)
        assert torch.equal(after(), before())


def test_what_orders_share_is_shared_again(tmp_path):
    original = many()
    back = through_file(original, tmp_path)
    for name, part in back.parts.items():
        for order in back.orders:
            placed = order.parts[name]
            assert placed.doppler is part.doppler and placed.amount is part.amount
            assert placed.emulator.parent is part.emulator
            assert part.rotation is None or placed.rotation.vsini is part.rotation.vsini
    for model in (original, back):
        sum(flux.square().sum() for flux in model()).backward()
    for before, after in zip(original.parameters(), back.parameters(), strict=True):
        assert torch.equal(before.grad, after.grad)


def test_star_that_is_not_the_usual_one(tmp_path):
    """A name does not make a star: its amount, its prefix and what it can fit come back."""
    rotation = RotationalBroadening(4.0)
    star = Component("star", frozen.star(), doppler=DopplerShift(-12.0), rotation=rotation, shines=True, amount=0.9)
    original = one((lambda: star,), star=None)
    back = through_file(original, tmp_path)
    assert_same_parts(original, back)
    assert back.parts["star"].prefix == "star_" and torch.equal(back(), original())


@pytest.mark.parametrize("make", [one, many])
def test_star_and_tellurics_alone_stay_at_version_1_0_0(make, tmp_path):
    """Older versions of the package read what they could have written."""
    write(make(()), tmp_path / "usual.asdf")
    write(make(), tmp_path / "further.asdf")
    usual, further = ((tmp_path / f"{name}.asdf").read_bytes() for name in ("usual", "further"))
    tag = b"tags/forward_model-" if make is one else b"tags/echelle_model-"
    assert tag + b"1.0.0" in usual and tag + b"1.1.0" in further
    assert further.count(b"tags/line_emulator-1.0.0") == 4  # of all orders once


class Veil(Component):
    """A stranger's component of no lines."""

    def evaluate(self, sampling, windows=None):
        return None, torch.full_like(sampling.wavelength, 0.9)


def test_what_no_file_can_hold(tmp_path):
    path = tmp_path / "never.asdf"
    for make in (one, many):
        with pytest.raises(ValueError, match=r"expected a Component .* got .*Veil: a file holds no code"):
            write(make((lambda: Veil("veil"),)), path)
    mixed = one()
    mixed.parts["companion"].rotation = torch.nn.Identity()
    with pytest.raises(ValueError, match=r"expected a RotationalBroadening .* a file holds no code"):
        write(mixed, path)
    apart = many()
    apart.orders[1].parts["companion"].amount = torch.nn.Parameter(torch.tensor(0.1, dtype=F64))
    with pytest.raises(ValueError, match="got an order with its own"):
        write(apart, path)
    assert list(tmp_path.iterdir()) == []


HOSTILE = [
    (rb"\n( +)(-? *)amount: [^\n]+", rb"\n\1\2amount: .inf", "finite amount"),
    (rb"\n( +)(-? *)amount: [^\n]+", rb"\n\1\2amount: .nan", "finite amount"),
    (rb"\n( +)(-? *)amount: [^\n]+", rb"\n\1\2amount: much", "is not of type 'number'"),
    (rb"\n( +)(-? *)prefix: b_", rb"\n\1\2prefix: ''", "rv"),
    (rb"name: companion", rb"name: star", "one name|lines of"),
    (rb"name: companion", rb"name: ''", "too short|name"),
    (rb"name: companion", rb"name: a.b", "name of a component|lines of"),
    (rb"name: companion", rb"name: keys", "name of a component|lines of"),
    (rb"shines: true", rb"shines: 1", "is not of type 'boolean'"),
    (rb"free_lines: \[\]", rb"free_lines: [center]", "is not one of"),
    (rb"rv: 2[^\n]+", rb"rv: 4.0e+5", "greater than the maximum"),
    (rb"vsini: 5[^\n,]+", rb"vsini: 1.0e+12", "vsini below"),
    (rb"max_vsini: 2[^\n,}]+", rb"max_vsini: 1.0e+12", "greater than the maximum"),
    (rb"step: [^\n,}]+", rb"step: 1.0e-12", "step"),
    (rb"\n( +)name: companion", rb"\n\1more: 1\n\1name: companion", "more"),
]


@pytest.fixture(scope="module", params=[one, many])
def content(request, tmp_path_factory):
    """The bytes of a file without its checksum, as if written by others."""
    path = tmp_path_factory.mktemp("written") / "model.asdf"
    write(request.param(), path)
    return re.sub(rb"\nsha256: '[0-9a-f]{64}'", b"", path.read_bytes(), count=1)


@pytest.mark.parametrize(("old", "new", "reason"), [("", "", None), *HOSTILE], ids=["none", *(h[2] for h in HOSTILE)])
def test_hostile_values_are_refused(content, old, new, reason, tmp_path):
    path = tmp_path / "hostile.asdf"
    if reason is None:
        path.write_bytes(content)
        assert len(read(path).parts) == 4
        return
    changed = re.sub(old, new, content, count=1)
    assert changed != content
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=f"^cannot read {re.escape(str(path))}: .*({reason})"):
        read(path)


def test_orders_of_other_components_are_refused(tmp_path):
    path = tmp_path / "hostile.asdf"
    write(many(), path)
    content = re.sub(rb"\nsha256: '[0-9a-f]{64}'", b"", path.read_bytes(), count=1)
    orders = content.index(b"orders:")
    for old, new, reason in (
        (rb"companion: (!core|\{)", rb"comparison: \1", "lines of|rotation of a component"),
        (rb"\n +companion: \{[^}]+\}|\n +companion:\n +max_vsini[^\n]+\n +step[^\n]+", rb"", "rotation of a component"),
    ):
        changed, count = re.subn(old, new, content[orders:], count=1)
        assert count == 1
        path.write_bytes(content[:orders] + changed)
        with pytest.raises(ValueError, match=reason):
            read(path)
