"""Machine code against torch, its reference: the same numbers for everything, and what happens without a compiler.

The oracles of `test_lines`, `test_model` and `test_jacobian` (scipy, dense sums, autograd) hold the machine code; what
equals it here is held by them too.
"""

import subprocess
import sys

import numpy as np
import pytest
import torch
from line_cases import CASES, LAWS, case, emulator
from model_cases import MODELS, everything

from specutils_blase.inference.linear.jacobian import linearize
from specutils_blase.physics import compiled
from specutils_blase.physics.grids import Sampling
from specutils_blase.physics.line_sum import Windows
from specutils_blase.physics.voigt import voigt

F64 = torch.float64
CPU = torch.device("cpu")


@pytest.fixture
def by_torch(monkeypatch):
    """Switch between the two: ``by_torch(True)``, ``by_torch(False)``."""
    load = compiled._load

    def switch(on):
        monkeypatch.setattr(compiled, "_load", (lambda: None) if on else load)
        assert (compiled.kernels(CPU) is None) == on

    return switch


def close(found, expected, part):
    """Within `part` of the largest value of what is expected."""
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) <= part * float(expected.abs().max())


@pytest.mark.parametrize("emission", [False, True])
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_line_sums_and_gradients_are_the_same(name, law, emission, by_torch):
    lines, wavelength = case(name, law)
    sampling, results = Sampling(wavelength), []
    sign = np.where(np.arange(len(lines["center"])) % 3 == 0, -1, 1) if emission else None
    for on in (True, False):
        by_torch(on)
        em = emulator(lines, law=law, sign=sign)
        factor = torch.tensor(1.00007, dtype=F64, requires_grad=True)
        opacity = em.opacity(sampling, factor)
        cotangent = torch.randn(opacity.shape, dtype=F64, generator=torch.Generator().manual_seed(3))
        arguments = [em.ln_area, em.ln_sigma, em.ln_gamma, em.rv_offset, factor]
        results.append((opacity.detach(), *torch.autograd.grad((opacity * cotangent).sum(), arguments)))
    (expected, *slopes), (found, *others) = results
    close(found, expected, 1e-12)
    for one, other in zip(others, slopes, strict=True):
        close(one, other, 1e-10)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("name", CASES)
def test_runs_of_nodes_are_the_same(name, law, by_torch):
    """Those that are not empty, in another order."""
    lines, wavelength = case(name, law)
    sampling, em, tables = Sampling(wavelength), emulator(lines, law=law), []
    for on in (True, False):
        by_torch(on)
        line, start, count, fade_out, fade_in = (column.numpy() for column in em.windows(sampling, 1.0002))
        order = np.lexsort((start, line))[count[np.lexsort((start, line))] > 0]
        tables.append([column[order] for column in (line, start, count, fade_out, fade_in)])
    for found, expected in zip(*tables[::-1], strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-14)


@pytest.mark.parametrize("wavelength", [CASES["order"][1], CASES["native sampling"][1], CASES["short"][1][:40]])
def test_the_way_back_from_coarse_grids_is_the_transpose(wavelength):
    """⟨D x, y⟩ = ⟨x, Dᵀ y⟩, and D is what `Sampling.collapse` does."""
    sampling, code = Sampling(wavelength), compiled.kernels(CPU)
    generator = np.random.default_rng(1)
    x, y = generator.standard_normal((2, sampling.nodes.numel())), generator.standard_normal((2, len(sampling)))
    grids = len(sampling), np.array(sampling.sizes), sampling.index.numpy(), sampling.weight.numpy()
    down, up = np.zeros_like(y), np.zeros_like(x)
    code.carry_down(x, *grids, down)
    code.carry_up(y, *grids, up)
    np.testing.assert_allclose(
        down, sampling.collapse(torch.tensor(x)).numpy(), rtol=0, atol=1e-13 * np.abs(down).max()
    )
    assert np.sum(down * y) == pytest.approx(np.sum(x * up), rel=1e-12)


@pytest.mark.parametrize("name", MODELS)
def test_jacobians_are_the_same(name, by_torch):
    results = []
    for on in (True, False):
        by_torch(on)
        jacobian = linearize(everything(MODELS[name]()))
        results.append([jacobian.flux, jacobian.dense, *(block.values for block in jacobian.blocks)])
    for expected, found in zip(*results, strict=True):
        if expected.numel():
            close(found, expected, 1e-10)


def test_gradients_by_differences():
    """Of the compiled sum itself, velocity and emission included."""
    lines = {name: values[:4] for name, values in CASES["order"][0].items()}
    sampling = Sampling(CASES["order"][1][:300])
    lines["center"] = np.linspace(9_993.0, 10_003.0, 4)
    em = emulator(lines, sign=[1, -1, 1, 1])
    weight = torch.randn(2, len(sampling), dtype=F64, generator=torch.Generator().manual_seed(3))
    windows = em.windows(sampling)

    def weighted(ln_area, ln_sigma, ln_gamma, offset, velocity):
        """Offsets and velocity in units whose millionth part is neither rounding nor curvature."""
        parameters = {"ln_area": ln_area, "ln_sigma": ln_sigma, "ln_gamma": ln_gamma, "rv_offset": 100.0 * offset}
        call = (sampling, 1.0 + 1e-3 * velocity, windows)
        opacity = torch.func.functional_call(_Opacity(em), {f"em.{k}": v for k, v in parameters.items()}, call)
        return (opacity * weight).sum()

    point = [em.ln_area, em.ln_sigma, em.ln_gamma, em.rv_offset, torch.tensor(0.0, dtype=F64)]
    point = [t.detach().clone().requires_grad_(True) for t in point]
    assert torch.autograd.gradcheck(weighted, point, eps=1e-6, atol=1e-7, rtol=1e-5)


class _Opacity(torch.nn.Module):
    def __init__(self, em):
        super().__init__()
        self.em = em

    def forward(self, *arguments):
        return self.em.opacity(*arguments)


def test_single_precision_is_as_good_as_its_output():
    lines, wavelength = CASES["narrow and broad"]
    sampling = Sampling(wavelength)
    exact, single = (emulator(lines).to(dtype).opacity(sampling).detach() for dtype in (F64, torch.float32))
    assert single.dtype == torch.float32
    close(single.double(), exact, 1e-6)


def test_what_is_no_number_stays_none():
    """A line that diverged must not look like one that is not there."""
    lines, wavelength = CASES["order"]
    sampling = Sampling(wavelength)
    for name in ("ln_area", "ln_sigma", "ln_gamma"):
        em = emulator(lines)
        windows = em.windows(sampling)
        with torch.no_grad():
            getattr(em, name)[50] = torch.nan
        assert not bool(torch.isfinite(em.opacity(sampling, windows=windows)).all())


def test_a_run_beyond_the_grid_is_refused():
    lines, wavelength = CASES["order"]
    sampling, em = Sampling(wavelength), emulator(lines)
    line, start, count, *fades = em.windows(sampling)
    for wrong in (start - 10**6, start + 10**6):
        with pytest.raises(IndexError, match="ends outside the grid"):
            em.opacity(sampling, windows=Windows(line, wrong, count, *fades))


# --- without a compiler -----------------------------------------------------------------------------------------------

PROGRAM = """
import sys, warnings
{before}
import numpy as np, torch
from specutils_blase.physics.grids import Sampling, velocity_grid
from specutils_blase.model.emulator import LineEmulator
em = LineEmulator([10000.0, 10003.0], [0.05, 0.1], [0.05, 0.06], [0.02, 0.01])
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for _ in range(2):
        flux = em(Sampling(velocity_grid(9995.0, 10008.0, 0.4)))
np.save(sys.argv[1], flux.detach().numpy())
print([str(w.message) for w in told])
"""
WITHOUT = {
    "no numba": ("sys.modules['numba'] = None", "lines are summed by torch, several times more slowly"),
    "switched off": ("import os; os.environ['NUMBA_DISABLE_JIT'] = '1'", "NUMBA_DISABLE_JIT is set"),
    "no folder": ("from numba.core import caching; caching.CacheImpl._locator_classes = []", "set NUMBA_CACHE_DIR"),
}


@pytest.mark.parametrize("name", WITHOUT)
def test_without_a_compiler_or_its_folder_one_warning_and_the_same_answer(name, tmp_path):
    before, message = WITHOUT[name]
    kept = tmp_path / "flux.npy"
    code = PROGRAM.format(before=before)
    done = subprocess.run([sys.executable, "-c", code, str(kept)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    told = eval(done.stdout)
    assert len(told) == 1 and message in told[0]
    x = np.exp(np.log(9995.0) + np.arange(len(np.load(kept))) * 0.4 / 299_792.458)
    tau = sum(
        a * voigt(torch.tensor(x - c), torch.tensor(s, dtype=F64), torch.tensor(g, dtype=F64))
        for c, a, s, g in ((10000.0, 0.05, 0.05, 0.02), (10003.0, 0.1, 0.06, 0.01))
    )
    np.testing.assert_allclose(np.load(kept), np.exp(-tau.numpy()), rtol=0, atol=3e-6)
