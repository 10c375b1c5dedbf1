"""Access to the compiled kernels, where there are any.

Does not live here: the machine code (`compiled_voigt`, `compiled_grids`), the torch code that runs without it
(`line_sum`, `inference.linear.jacobian`).
"""

from __future__ import annotations

import logging
import threading
import warnings
from functools import cache
from types import SimpleNamespace

import numpy as np
import torch

logger = logging.getLogger(__name__)

_LOADING = threading.Lock()


def kernels(device: torch.device) -> SimpleNamespace | None:
    """All compiled functions by name, or None where torch must do: other devices than the CPU, and without numba.

    Parameters
    ----------
    device : torch.device
        Device of the tensors.

    Warns
    -----
    RuntimeWarning
        Once, if numba is missing or switched off, or finds no folder to keep what it compiles.
    """
    if device.type != "cpu":
        return None
    with _LOADING:
        return _load()


@cache
def _load() -> SimpleNamespace | None:
    try:
        import numba

        if numba.config.DISABLE_JIT:  # type: ignore[attr-defined]  # set when numba loads
            raise ImportError("NUMBA_DISABLE_JIT is set")
        from . import compiled_grids, compiled_voigt
    except ImportError as error:
        warnings.warn(
            f"lines are summed by torch, several times more slowly: {error}; `pip install numba` brings the compiler",
            RuntimeWarning,
            stacklevel=3,
        )
        return None
    if not compiled_voigt.sum_of_runs.stats.cache_path:
        warnings.warn(
            "numba finds no folder that it may write to, and compiles anew in every process; set NUMBA_CACHE_DIR",
            RuntimeWarning,
            stacklevel=3,
        )
    logger.info("the first sum of lines on a new machine compiles for some seconds")
    lines = "sum_of_runs", "add_runs", "gradient_of_runs", "tangents_of_windows"
    grids = "runs_of_lines", "carry_down", "carry_up", "response_band", "windows_to_pixels"
    modules = {**dict.fromkeys(lines, compiled_voigt), **dict.fromkeys(grids, compiled_grids)}
    return SimpleNamespace(**{name: getattr(module, name) for name, module in modules.items()})


def as_array(tensor: torch.Tensor) -> np.ndarray:
    """Array for a kernel: whole numbers as they are, all others in float64; no copy where none is needed."""
    tensor = tensor.detach()
    return (tensor.double() if tensor.is_floating_point() else tensor).contiguous().numpy()
