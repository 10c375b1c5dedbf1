"""What the benchmarks stand on: the full band of the T4700 benchmark against dense sums, and that the runner runs."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import voigt_profile

from specutils_blase.physics.voigt import voigt

RUN = Path(__file__).with_name("run.py")
sys.path.insert(0, str(RUN.parent))
import run  # noqa: E402 - a script, not a package


@pytest.fixture(scope="module", params=["log", "linear"])
def band(request, shared_data):
    """5,646 lines on 335,849 wavelengths, and 400 of these, cores as well as far wings."""
    emulator, sampling = run.emulator_of_t4700(request.param)
    rng = np.random.default_rng(3)
    cores = torch.searchsorted(sampling.wavelength, emulator.center[rng.choice(len(emulator), 200)])
    some = torch.cat([cores, torch.as_tensor(rng.choice(len(sampling), 200))]).clamp(max=len(sampling) - 1)
    return emulator, sampling, some


def test_full_band_flux(band):
    """Within 1e-5 of the sum of every line at full reach; in the linear law below its guard, where it is a product."""
    emulator, sampling, some = band
    with torch.no_grad():
        flux = emulator(sampling)[some].numpy()
    wavelength = sampling.wavelength[some].numpy()
    y = emulator.area.detach().numpy() * voigt_profile(
        wavelength[:, None] - emulator.center.numpy(), emulator.sigma.detach().numpy(), emulator.gamma.detach().numpy()
    )
    if emulator.law.name == "log":
        truth, plain = np.exp(-y.sum(1)), np.ones(len(y), bool)
    else:
        truth, plain = np.prod(1.0 - y, axis=1), y.max(1) < emulator.law.guard
    assert plain.mean() > 0.9 and flux.min() < 0.7
    assert np.abs(flux - truth)[plain].max() < 1e-5


def test_full_band_gradient(band):
    """Within 1e-4 of autograd through the dense sum, relative to the largest of each kind."""
    emulator, sampling, some = band
    cotangent = torch.randn(len(some), dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    parameters = [emulator.ln_area, emulator.ln_sigma, emulator.ln_gamma, emulator.rv_offset]
    sparse = torch.autograd.grad(emulator(sampling)[some] @ cotangent, parameters)
    wavelength = sampling.wavelength[some]
    y = emulator.area * voigt(wavelength.unsqueeze(1) - emulator.shifted_center, emulator.sigma, emulator.gamma)
    flux = emulator.law.flux(emulator.law.opacity(y)[0].sum(1), wavelength)[0]
    dense = torch.autograd.grad(flux @ cotangent, parameters)
    for found, truth in zip(sparse, dense, strict=True):
        assert float((found - truth).abs().max()) < 1e-4 * float(truth.abs().max())


def test_the_runner_prints_figures():
    """One small case in a process of its own."""
    done = subprocess.run(
        [sys.executable, str(RUN), "--child", "scaling", "fixed density, 1000"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    figures = json.loads(done.stdout.strip().splitlines()[-1])
    assert figures["lines"] == 1000 and figures["seconds"] > 0.0 and figures["peak_gb"] < 2.0


def test_every_group_is_documented():
    """The runner's own help names all groups."""
    done = subprocess.run([sys.executable, str(RUN), "--help"], capture_output=True, text=True, check=True, timeout=60)
    assert all(group in done.stdout for group in run.BENCHMARKS)
