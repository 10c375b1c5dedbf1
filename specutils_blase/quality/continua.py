"""Whether the continuum of a fit swings: where it leaves no scale, or bends in place of blaze and lines.

Does not live here: the other reasons (`assessment`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from .report import Reason, graded

DARKEST, ENVELOPE = 0.02, 3.0
"""Least continuum in units of its median; and the factor by which continuum over upper envelope of the data may change
along an order. A blanket of lines depresses an order, and changes slowly."""

PIECES = 10
"""Parts of an order in each of which the data have an upper envelope."""


def continuum_reasons(result, parts: list[dict[str, Tensor]]) -> Iterator[Reason]:
    """What speaks against the continuum of a fit.

    Parameters
    ----------
    result : FitResult or EchelleFitResult
    parts : list of dict
        `FitResult.evaluate` of each order.
    """
    data = result.data if isinstance(result.data, list) else [result.data]
    lowest, widest = math.inf, 1.0
    for one, spectra in zip(data, parts, strict=True):
        good = one.good.cpu().numpy()
        level, flux = spectra["continuum"].double().cpu().numpy()[good], one.flux.double().cpu().numpy()[good]
        middle = float(np.median(level))
        if not middle > 0.0:
            lowest = -math.inf
            continue
        lowest = min(lowest, float(level.min()) / middle)
        model = spectra["model"].double().cpu().numpy()[good]
        pieces = [
            float(np.quantile(values, 0.95) / max(np.quantile(above, 0.95), 1e-300))
            for values, above in zip(np.array_split(flux, PIECES), np.array_split(model, PIECES), strict=True)
            if values.size
        ]
        if min(pieces) > 0.0:
            widest = max(widest, max(pieces) / min(pieces))
        else:
            widest = math.inf
    text = (
        f"the continuum falls to {lowest:.2g} of its median: what is there has no scale; choose a lower continuum= or "
        "cut the dark end"
    )
    yield from graded("continuum_dark", text, lowest, DARKEST, 0.0, below=True)
    text = (
        f"model and data change against each other by a factor of {widest:.2g} along an order: choose a higher "
        "continuum=, or divide the blaze out"
    )
    yield from graded("continuum", text, widest, ENVELOPE)
