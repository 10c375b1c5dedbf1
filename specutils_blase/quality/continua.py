"""Reasons against the continuum of a fit: where it is nearly zero, or follows blaze and lines.

Does not live here: the other reasons (`assessment`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from torch import Tensor

from .report import Reason, graded

LEAST_CONTINUUM, MOST_ENVELOPE_CHANGE = 0.02, 3.0
"""Least continuum in units of its median; and the factor by which the ratio of continuum and upper envelope of the data
may change along an order. A blanket of lines depresses an order, and changes slowly."""

ENVELOPE_PIECES = 10
"""Parts of an order for each of which the upper envelope of the data is taken."""


def continuum_reasons(result, parts: list[dict[str, Tensor]]) -> Iterator[Reason]:
    """Reasons against the continuum of a fit.

    Parameters
    ----------
    result : FitResult or EchelleFitResult
    parts : list of dict
        `FitResult.evaluate` of each order.
    """
    data = result.data if isinstance(result.data, list) else [result.data]
    lowest, widest = math.inf, 1.0
    for order_data, spectra in zip(data, parts, strict=True):
        good = order_data.good.cpu().numpy()
        level, flux = spectra["continuum"].double().cpu().numpy()[good], order_data.flux.double().cpu().numpy()[good]
        middle = float(np.median(level))
        if not middle > 0.0:
            lowest = -math.inf
            continue
        lowest = min(lowest, float(level.min()) / middle)
        model = spectra["model"].double().cpu().numpy()[good]
        pieces = [
            float(np.quantile(values, 0.95) / max(np.quantile(above, 0.95), 1e-300))
            for values, above in zip(
                np.array_split(flux, ENVELOPE_PIECES), np.array_split(model, ENVELOPE_PIECES), strict=True
            )
            if values.size
        ]
        if min(pieces) > 0.0:
            widest = max(widest, max(pieces) / min(pieces))
        else:
            widest = math.inf
    text = (
        f"the continuum falls to {lowest:.2g} of its median: pixels there have no scale; choose a lower continuum= or "
        "cut the dark end"
    )
    yield from graded("continuum_dark", text, lowest, LEAST_CONTINUUM, 0.0, below=True)
    text = (
        f"model and data change against each other by a factor of {widest:.2g} along an order: choose a higher "
        "continuum=, or divide the blaze out"
    )
    yield from graded("continuum", text, widest, MOST_ENVELOPE_CHANGE)
