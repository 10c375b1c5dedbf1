"""What a finished fit lacks.

Does not live here: the search (`matched_filter`), lines that a fit adds (`fitting.line_search`).
"""

from __future__ import annotations

import torch
from astropy.table import QTable

from ..posterior.laplace import free_parameters, needed, prior_precision
from .matched_filter import EXPECTED, search
from .table import Discovery, missing_lines_table


def search_result(result) -> QTable:
    """What a finished fit lacks: its residuals searched now, nothing added; see `FitResult.missing_lines`."""
    curvature = needed(result)
    free = free_parameters(result.model, result.parameters, curvature)
    data = result.data if isinstance(result.data, list) else [result.data]
    with torch.no_grad():
        left = [one.flux.double() - order() for one, order in zip(data, free.orders, strict=True)]
    features, _ = search(free, left, curvature.weight, prior_precision(free, curvature))
    return missing_lines_table(result.model, Discovery(EXPECTED, features))
