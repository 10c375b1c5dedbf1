"""What every `LineSpread` does, the package's own and strangers'."""

import math

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
from specutils_blase.model import GlobalParameter, LineSpread, LineSpreadFunction
from specutils_blase.model.global_parameter import LOGARITHMIC
from specutils_blase.physics.grids import velocity_grid


class GaussHermite(LineSpread):
    """A stranger's: a Gaussian times 1 + h3 H3 + h4 H4."""

    double = (*LineSpread.double, "hermite")

    def __init__(self):
        super().__init__()
        self.hermite = torch.nn.Parameter(torch.tensor([0.06, -0.03], dtype=F64))

    def taps(self, ln_resolving_power, hermite):
        cells = torch.arange(-self.n_half - 1, self.n_half + 2, dtype=F64, device=hermite.device)
        x = cells / self.sigma_cells(ln_resolving_power)
        third = (2.0 * x**3 - 3.0 * x) / math.sqrt(3.0)
        fourth = (4.0 * x**4 - 12.0 * x**2 + 3.0) / math.sqrt(24.0)
        taps = torch.exp(-0.5 * x.square()) * (1.0 + hermite[0] * third + hermite[1] * fourth)
        return taps / taps.sum()

    def global_parameters(self):
        own = GlobalParameter("hermite", "hermite", 0.1, 0.05, ("h3", "h4"), scope="order")
        return (*super().global_parameters(), own)


class Wings(LineSpread):
    """A stranger's: a Gaussian and a part of a broader one, whose width it learns as a logarithm."""

    double = (*LineSpread.double, "ln_ratio")
    reach = 9.0

    def __init__(self):
        super().__init__()
        self.ln_ratio = torch.nn.Parameter(torch.tensor(math.log(1.8), dtype=F64))

    def taps(self, ln_resolving_power, ln_ratio):
        cells = torch.arange(-self.n_half - 1, self.n_half + 2, dtype=F64, device=ln_ratio.device)
        sigma = self.sigma_cells(ln_resolving_power)
        core, wing = (torch.exp(-0.5 * (cells / width) ** 2) for width in (sigma, sigma * ln_ratio.exp()))
        return 0.85 * core / core.sum() + 0.15 * wing / wing.sum()

    def global_parameters(self):
        own = GlobalParameter("wings", "ln_ratio", 0.2, 0.1, ("wings",), scope="order", transform=LOGARITHMIC)
        return (*super().global_parameters(), own)


INSTANCES = {
    "gaussian": (LineSpreadFunction, 50_000.0),
    "gaussian of varying width": (LineSpreadFunction, (50_000.0, 0.15)),
    "Gauss-Hermite": (GaussHermite, 50_000.0),
    "wings": (Wings, 50_000.0),
}
GRIDS = velocity_grid(10_000.0, 10_008.0, 0.8), velocity_grid(8_600.0, 8_612.0, 1.1)


@pytest.fixture(params=INSTANCES)
def instance(request):
    return INSTANCES[request.param]


def model_of(instance):
    make, power = instance
    return order(star=lines(), line_spread=make(), resolving_power=power)


def test_taps_sum_to_one(instance):
    make, power = instance
    for grid in GRIDS:
        spread = make().placed(power, grid)
        taps = spread.current_taps().detach()
        assert taps.shape[-1] == 2 * spread.n_half + 3
        assert float((taps.sum(-1) - 1.0).abs().max()) < 1e-12
        assert float(taps[..., [0, -1]].abs().max()) < 1e-6  # nothing is cut


def test_derivatives_of_taps(instance):
    make, power = instance
    spread = make().placed(power, GRIDS[0])
    for parameter in spread.global_parameters():
        tensor = getattr(spread, parameter.attribute)
        stated = spread.tap_derivatives(parameter.attribute)
        assert len(stated) == tensor.numel()
        for k in range(tensor.numel()):
            ends = []
            with torch.no_grad():
                start = tensor.clone()
                for side in (1.0, -1.0):
                    tensor.view(-1)[k] = start.view(-1)[k] + side * 1e-5
                    ends.append(spread.current_taps())
                tensor.copy_(start)
            difference = (ends[0] - ends[1]) / 2e-5
            assert float((stated[k] - difference).abs().max()) < 1e-4 * float(difference.abs().max())


def test_derivatives_of_the_flux(instance):
    model = model_of(instance)
    free = free_of(model, [parameter.name for parameter in model.line_spread.global_parameters()])
    assert_columns(linearize(free).dense, differences(free, range(len(free))), 1e-4)


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_meta(instance, dtype):
    assert_on_meta(model_of(instance), dtype)


def test_single_precision(instance):
    assert_single_precision(model_of(instance))


def test_copies_on_grids_are_independent(instance):
    make, power = instance
    template = make()
    before = {name: tensor.detach().clone() for name, tensor in template.named_parameters()}
    one, other = (template.placed(power, grid) for grid in GRIDS)
    assert type(one) is type(other) is make and one.step != other.step
    assert template.ln_resolving_power is None and template.basis is None
    for name, tensor in one.named_parameters():
        assert dict(other.named_parameters())[name] is not tensor
    with torch.no_grad():
        for tensor in one.parameters():
            tensor.add_(0.1)
    for name, tensor in template.named_parameters():
        assert torch.equal(tensor, before[name])
    assert not torch.equal(one.ln_resolving_power, other.ln_resolving_power)
    again = one.placed(power, GRIDS[1])  # from one grid to the next
    assert again.step == other.step and torch.equal(again.ln_resolving_power, other.ln_resolving_power)


def test_flat_flux_stays_flat(instance):
    make, power = instance
    spread = make().placed(power, GRIDS[0])
    flat = torch.full_like(GRIDS[0], 0.7)
    assert float((spread(flat).detach() - flat).abs().max()) < 1e-12


def test_through_a_file(instance, tmp_path):
    model = model_of(instance)
    if type(model.line_spread) is not LineSpreadFunction:
        with pytest.raises(ValueError, match="a file holds no code"):
            write(model, tmp_path / "never.asdf")
        assert list(tmp_path.iterdir()) == []
        return
    write(model, tmp_path / "model.asdf")
    back = sb.read(tmp_path / "model.asdf")
    assert torch.equal(back(), model()) and back.line_spread.n_half == model.line_spread.n_half


@pytest.mark.parametrize("power", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_resolving_powers_are_refused(instance, power):
    with pytest.raises(ValueError, match="resolving_power must be positive and finite"):
        instance[0]().placed(power, GRIDS[0])
