"""A small model, data of it, and differences of its flux, for the contract tests."""

import numpy as np
import torch
from astropy import units as u
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum

from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import ForwardModel
from specutils_blase.model.parameters import FreeParameters
from specutils_blase.simulate import pixel_edges

F64 = torch.float64
N_PIXEL = 130
PIXELS = 10_000.0 + 0.05 * np.arange(N_PIXEL)
POWER, SNR = 50_000.0, 200.0


def lines(seed=0, n_line=8, law="log", **options):
    """Lines all over the order and somewhat beyond."""
    rng = np.random.default_rng(seed)
    center = np.linspace(9_999.6, 10_006.9, n_line) + rng.uniform(-0.2, 0.2, n_line)
    width = rng.uniform(0.05, 0.07, n_line)
    options = {"wavelength_range": (9_990.0, 10_017.0)} | options
    return LineEmulator(center, rng.uniform(0.02, 0.08, n_line), width, 0.5 * width, law=law, **options)


def order(pixels=PIXELS, **options):
    options = {"rv": 3.0, "vsini": 5.0, "resolving_power": POWER, "continuum_degree": 1} | options
    return ForwardModel.for_order(torch.as_tensor(pixels), torch.as_tensor(pixel_edges(pixels)), **options)


def observed(model, pixels=PIXELS, seed=3):
    """What a spectrograph sees of the model, with noise."""
    with torch.no_grad():
        flux = model().numpy() + np.random.default_rng(seed).standard_normal(pixels.size) / SNR
    noise = StdDevUncertainty(np.full(pixels.size, 1.0 / SNR))
    return Spectrum(flux=flux * u.one, spectral_axis=pixels * u.AA, uncertainty=noise)


def free_of(model, names=(), kinds=()):
    """These global parameters are free, and these kinds of all lines."""
    all_lines = {name: torch.arange(len(emulator) if kinds else 0) for name, emulator in model.components.items()}
    return FreeParameters(model, dict.fromkeys(model.components, tuple(kinds)), all_lines, tuple(names))


def differences(free, columns, step=1e-5):
    """Central differences of the flux to some numbers of the vector, (n_pixel, n_column)."""
    start, found = free.read(), []
    for k in columns:
        ends = []
        for side in (1.0, -1.0):
            vector = start.clone()
            vector[k] += side * step * max(1.0, abs(float(start[k])))
            free.write(vector)
            ends.append((float(vector[k]), free.flux().detach().double()))
        found.append((ends[0][1] - ends[1][1]) / (ends[0][0] - ends[1][0]))
    free.write(start)
    return torch.stack(found, dim=1)


def assert_columns(stated, expected, accuracy):
    """Each column to within a part of its largest value."""
    assert stated.shape == expected.shape
    for k, (one, other) in enumerate(zip(stated.T, expected.T, strict=True)):
        assert float(other.abs().max()) > 0.0, k
        assert float((one - other).abs().max()) < accuracy * float(other.abs().max()), k


def assert_on_meta(model, dtype=F64):
    """Every tensor of a model goes to the meta device, and the flux and all gradients come out there."""
    with torch.no_grad():
        shape = model().shape
    model.freeze_windows()
    model.to("meta", dtype)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        assert tensor.is_meta, name
    flux = model()
    assert flux.is_meta and flux.shape == shape and flux.dtype == dtype
    flux.sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.is_meta, name


def assert_single_precision(model, accuracy=2e-6):
    """The flux in float32 is that in float64, as `tests/model/test_order.py` has it."""
    with torch.no_grad():
        exact = model()
        single = model.float()()
    assert single.dtype == torch.float32
    assert float((single.double() - exact).abs().max()) < accuracy * float(exact.abs().max())
