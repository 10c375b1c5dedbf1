"""Search of the residuals of a finished fit for lines that its templates lack.

Does not live here: the search (`matched_filter`), lines that a fit adds (`fitting.line_search`).
"""

from __future__ import annotations

import torch
from astropy.table import QTable

from ..posterior.laplace import free_parameters, needed, prior_precision
from .matched_filter import EXPECTED_FALSE, search
from .table import Discovery, missing_lines_table


def search_result(result) -> QTable:
    """Missing lines of a finished fit; see `FitResult.missing_lines`.

    Parameters
    ----------
    result : FitResult or EchelleFitResult

    Returns
    -------
    QTable
        One row a feature of the residuals; no line is added to the fit.

    Raises
    ------
    ValueError
        If the result has no curvature, or no component's ln_area was free.
    """
    curvature = needed(result)
    free = free_parameters(result.model, result.parameters, curvature)
    data = result.data if isinstance(result.data, list) else [result.data]
    with torch.no_grad():
        residual = [order_data.flux.double() - order() for order_data, order in zip(data, free.orders, strict=True)]
    features, _ = search(free, residual, curvature.weight, prior_precision(free, curvature))
    return missing_lines_table(result.model, Discovery(EXPECTED_FALSE, features))
