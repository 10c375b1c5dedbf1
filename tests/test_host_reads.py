"""What an iteration asks the host: on a GPU, each question waits for everything queued before it.

Between two layouts of windows only numbers that steer may be read: costs, promises, whether a factor failed, whether
the windows hold, how long a kernel or a sum is. Their count must not depend on how many lines there are.
"""

import traceback
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import specutils_blase
from specutils_blase.inference.minimize import _propose
from specutils_blase.inference.objective import Objective
from specutils_blase.inference.priors import LinePriors
from specutils_blase.model.echelle import EchelleModel
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import ForwardModel
from specutils_blase.model.parameters import KINDS, FreeParameters
from specutils_blase.simulate import pixel_edges

PACKAGE = Path(specutils_blase.__file__).parent
ASKING = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "bincount", "equal.default")


class HostReads(TorchDispatchMode):
    """Counts operations whose result, or whose result's size, the host must know before it can go on."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def note(self):
        frame = next(f for f in reversed(traceback.extract_stack()) if PACKAGE in Path(f.filename).parents)
        # On a CPU `faddeeva` asks which points are near the origin; elsewhere it does not.
        if Path(frame.filename).name != "profiles.py":
            self.counts[f"{Path(frame.filename).name}: {frame.line}"] += 1

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name, kwargs = function.__name__, kwargs or {}
        indices = args[1] if name.startswith(("index.", "index_put")) else ()
        if (
            any(part in name for part in ASKING)
            or any(index is not None and index.dtype == torch.bool for index in indices)
            or (name.startswith("repeat_interleave") and kwargs.get("output_size") is None)
        ):
            self.note()
        return function(*args, **kwargs)


def emulator(seed, n_line, width):
    rng = np.random.default_rng(seed)
    return LineEmulator(
        rng.uniform(9_999, 10_024, n_line), np.full(n_line, 0.03), np.full(n_line, width), np.full(n_line, 0.02)
    )


def problem(n_line, n_order):
    star, sky = emulator(1, n_line, 0.06), emulator(2, n_line // 2, 0.03)
    starts = 10_000.0 + 10.0 * np.arange(n_order)  # neighbours overlap
    wavelengths = [torch.tensor(start + 0.05 * np.arange(260)) for start in starts]
    edges = [torch.tensor(pixel_edges(wavelength.numpy())) for wavelength in wavelengths]
    options = {"star": star, "telluric": sky, "rv": -7.0, "vsini": 6.0}
    if n_order == 1:
        model = ForwardModel.for_order(wavelengths[0], edges[0], resolving_power=50_000.0, **options)
    else:
        model = EchelleModel.for_orders(wavelengths, edges, resolving_power=[50_000.0] * n_order, **options)
    lines = {name: torch.arange(len(component)) for name, component in model.components.items()}
    free = FreeParameters(model, dict.fromkeys(lines, KINDS), lines, ("rv", "vsini", "continuum"))
    flux = free.flux().detach() + 0.01 * torch.randn(
        260 * n_order, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    return Objective(free, flux, torch.full_like(flux, 1e4), dict.fromkeys(lines, LinePriors()))


def reads(made):
    """Of one iteration near a point at which windows have been laid out; steps, costs, gradients and all."""
    vector = made.read()
    made.linearize(vector)
    damping = torch.full_like(vector, 0.1)
    with HostReads() as host:
        normal = made.linearize(vector + 1e-4)
        step, _, _ = _propose(made, normal, damping)
        terms = made.evaluate(made.project(vector + 1e-3 * step))
        normal.by_line(*terms)
        made.value_and_gradient(vector + 2e-4)
    return host.counts


@pytest.mark.parametrize("n_order", [1, 2])
def test_an_iteration_reads_only_what_steers(n_order):
    few, many = reads(problem(12, n_order)), reads(problem(120, n_order))
    assert few == many
    # Of three evaluations and one linearisation: two sums and the rotation's length each, in every order.
    assert sum(many.values()) <= 8 + 16 * n_order, many


def test_windows_are_laid_out_anew_when_lines_have_changed():
    made = problem(30, 1)
    vector = made.read()
    made.linearize(vector)
    layout = made._known.layout
    made.linearize(vector + 1e-3)
    assert made._known.layout is layout
    wider = vector.clone()
    columns = made.free.columns("star")
    wider[columns[:, KINDS.index("ln_gamma")]] += 1.0
    made.linearize(wider)
    assert made._known.layout is not layout
    made.linearize(vector, precise=True)  # what errors come from is always laid out for the present state
    assert made._known.layout is not layout
