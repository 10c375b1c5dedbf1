"""The whole model on the meta device, where a tensor left behind on the processor is an error, and back."""

import numpy as np
import pytest
import torch

from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import ForwardModel
from specutils_blase.model.parameters import KINDS, FreeParameters
from specutils_blase.physics.grids import Sampling
from specutils_blase.physics.saturation import Minnaert
from specutils_blase.physics.voigt import voigt, voigt_with_derivatives
from specutils_blase.simulate import pixel_edges

F64 = torch.float64
N = 120


def emulator(law="log", emission=False, broad=False):
    rng = np.random.default_rng(41)
    return LineEmulator(
        rng.uniform(10_000, 10_006, 15),
        rng.uniform(0.02, 0.1, 15),
        np.full(15, 0.06),
        np.full(15, 1.0 if broad else 0.03),
        sign=np.where(np.arange(15) % 4 == 0, -1, 1) if emission else None,
        law=Minnaert((10_000.0, 10_006.0), degree=1) if law == "minnaert" else law,
    )


def order(**options):
    wavelength = 10_000.0 + 0.05 * np.arange(N)
    options = {"star": emulator(), "telluric": emulator(), "vsini": 5.0, "resolving_power": 55_000.0, **options}
    return ForwardModel.for_order(torch.tensor(wavelength), torch.tensor(pixel_edges(wavelength)), **options)


MODELS = {
    "star and sky": order,
    "resolving power varies": lambda: order(resolving_power=(55_000.0, 0.1)),
    "laws and emission": lambda: order(star=emulator("minnaert", True), telluric=emulator("linear", True)),
    "broad lines": lambda: order(star=emulator(broad=True)),
    "no kernels": lambda: order(resolving_power=None, telluric=None, continuum_degree=None),
    "clone": lambda: ForwardModel(Sampling(torch.arange(10_000.0, 10_006.0, 0.02, dtype=F64)), star=emulator()),
}


def tensors(model):
    yield from model.named_parameters()
    yield from model.named_buffers()
    for name, windows in model._windows.items():
        yield from ((f"windows of {name}", tensor) for tensor in windows)


@pytest.fixture(params=MODELS)
def model(request):
    model = MODELS[request.param]()
    model.freeze_windows()
    return model


def test_forward_and_backward_on_meta(model, dtype):
    """Every parameter, buffer and window moves; flux and gradients come out of the right shape, type and device."""
    with torch.no_grad():
        expected = model().shape
    model = model.to("meta", dtype)
    for name, tensor in tensors(model):
        assert tensor.is_meta, name
    flux = model()
    assert flux.is_meta and flux.dtype == dtype and flux.shape == expected
    flux.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.is_meta, name
        assert parameter.grad.shape == parameter.shape and parameter.grad.dtype == parameter.dtype, name


def test_back_again(model):
    """Onto the processor with the values of before, windows built afresh there: the same flux to the bit."""
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = model()
    model = model.to("meta")
    model = model.to_empty(device="cpu")
    model.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(model(), before, rtol=0, atol=0)
    assert not any(tensor.is_meta for _, tensor in tensors(model))


def test_cuda_and_back():
    if not torch.cuda.is_available():
        pytest.skip("needs a graphics card")
    model = order()
    with torch.no_grad():
        before = model()
        model = model.to("cuda")
        assert all(tensor.is_cuda for _, tensor in tensors(model))
        torch.testing.assert_close(model().cpu(), before, rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(model.to("cpu")(), before, rtol=0, atol=0)


def test_everything_that_evaluates_is_registered():
    """No tensor hides in an attribute that `.to()` would not see."""
    for make in MODELS.values():
        for module in make().modules():
            registered = {id(tensor) for tensor in (*module.parameters(), *module.buffers())}
            for name, value in vars(module).items():
                if name in {"_parameters", "_buffers", "_modules"}:
                    continue
                held = value if isinstance(value, (list, tuple)) else [value]
                hidden = [v for v in held if isinstance(v, torch.Tensor) and id(v) not in registered]
                assert not hidden, f"{type(module).__name__}.{name}"


def test_conversion_touches_nothing_twice():
    """Precision named double survives any route; the rest follows."""
    model = order().float().to("cpu").double().float()
    names = {name: tensor.dtype for name, tensor in (*model.named_parameters(), *model.named_buffers())}
    single = {name for name, dtype in names.items() if dtype == torch.float32}
    kinds = {f"parts.{component}.emulator.{kind}" for component in ("star", "telluric") for kind in KINDS}
    assert single == kinds
    for name in ("parts.star.doppler.rv", "parts.star.emulator.center", "sampling.wavelength"):
        assert names[name] == torch.float64


def test_profile_on_meta():
    x, sigma, gamma = (torch.empty(shape, device="meta", requires_grad=True) for shape in ((4, 1), (3,), ()))
    value = voigt(x, sigma, gamma)
    assert value.is_meta and value.shape == (4, 3)
    value.sum().backward()
    assert [t.grad.shape for t in (x, sigma, gamma)] == [(4, 1), (3,), ()]
    assert all(part.is_meta and part.shape == (4, 3) for part in voigt_with_derivatives(x, sigma, gamma))


def test_devices_of_the_parameter_vector(device):
    """Read, written and pulled back where the model lives."""
    model = order().to(device)
    lines = {name: torch.arange(15, device=device) for name in model.components}
    free = FreeParameters(model, dict.fromkeys(lines, KINDS), lines, ("rv", "vsini", "continuum"))
    vector = free.read()
    assert vector.device.type == device.type
    free.write(vector + 0.01)
    torch.testing.assert_close(free.read(), vector + 0.01, rtol=1e-12, atol=1e-12)
    assert free.evaluate()[2](torch.ones(N, dtype=F64, device=device)).device.type == device.type
