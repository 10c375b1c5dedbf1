"""What the tests share: tolerances by dtype, devices, the data beside the repository, fixed seeds."""

import os
import sys
from pathlib import Path

os.environ["MPLBACKEND"] = "Agg"  # before matplotlib loads; subprocesses inherit it

import hypothesis
import numpy as np
import pytest
import torch

# Derandomised: a failure in one run is a failure in every run. No deadline: the first call of a torch operator is slow.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))

# Rounding only: results that agree up to the order of the operations. Approximations (windows, interpolation) have
# their own limits, stated in their tests.
TOLERANCES = {
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
    torch.float64: {"rtol": 1e-9, "atol": 1e-11},
}
# Programs of one name in two folders: collecting them for doctests would mix them up.
collect_ignore = ["benchmarks/run.py", "validation/run.py"]
FIRST = (
    "test_validation", "test_tutorials", "test_missing_lines", "test_line_means", "test_echelle_fit",
    "test_marginals", "test_real_data", "test_starting", "test_cli", "test_order_scatter", "test_asdf_hostile",
)  # fmt: skip
"""Files that take minutes. A worker that begins one of them last is waited for by all others."""

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_collection_modifyitems(items):
    """Long files first; what is within a file stays in order."""
    items.sort(key=lambda item: FIRST.index(item.path.stem) if item.path.stem in FIRST else len(FIRST))


@pytest.fixture(scope="session", params=DEVICES)
def device(request):
    """Each device of this machine: the processor, and the graphics card where there is one."""
    return torch.device(request.param)


@pytest.fixture(scope="session", params=list(TOLERANCES), ids=["float32", "float64"])
def dtype(request):
    """Each floating-point type that the models run in."""
    return request.param


@pytest.fixture(scope="session")
def tolerances():
    """`torch.testing.assert_close` tolerances by dtype: ``assert_close(a, b, **tolerances[dtype])``."""
    return TOLERANCES


@pytest.fixture(scope="session")
def shared_data():
    """The folder ``../shared`` beside the repository, with real spectra in ``data/`` and benchmarks in ``tools/``."""
    if not SHARED.is_dir():
        pytest.skip(f"needs the real spectra in {SHARED}, a folder beside the repository that is not part of it")
    return SHARED


@pytest.fixture(autouse=True)
def fixed_seeds():
    """The same random numbers for a test whether it runs alone or with the others."""
    np.random.seed(20220817)  # noqa: NPY002 - for libraries that draw from the global generator
    torch.manual_seed(20220817)


@pytest.fixture(autouse=True)
def closed_figures():
    """No figure outlives its test: matplotlib warns, hence fails, at the 21st."""
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")
