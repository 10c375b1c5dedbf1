"""Robust standard deviations: of values, and of the noise of a spectrum from differences of neighbouring pixels.

Does not live here: the noise model of a fit (`fitting.residuals.noise`).
"""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

FEWEST_VALUES = 8
"""Fewest values from whose differences a standard deviation is estimated."""

SIGMA_PER_MEDIAN = 1.482602
"""Standard deviation of a Gaussian over the median of its absolute values, 1/Φ⁻¹(3/4)."""


def robust_sigma(values: Tensor | np.ndarray) -> float:
    r"""Standard deviation of a Gaussian of the same median absolute value: :math:`1.4826\,\mathrm{med}\,|x|`.

    Values are taken about zero: subtract their centre first.

    Parameters
    ----------
    values : Tensor or ndarray, (n,)
        At least one, in any unit.

    Returns
    -------
    float
        In the unit of the values. Less than half of outliers do not move it beyond the spread of the others.
    """
    size = values.abs().median() if isinstance(values, Tensor) else np.median(np.abs(values))
    return SIGMA_PER_MEDIAN * float(size)


def difference_scatter(values: Tensor, order: int = 2, stride: int = 1) -> float:
    r"""Standard deviation of white noise, from the median of the differences of some order.

    .. math:: σ = 1.4826\,\mathrm{med}\,|Δ^n f| \Big/ \sqrt{\textstyle\binom{2n}{n}}

    Second differences of every other pixel are DER_SNR (Stoehr et al. 2008, ADASS XVII, 505), for data whose lines are
    resolved by few pixels. Sixth differences of adjacent pixels are insensitive to lines that a template resolves. They
    give 0.0 to 0.08 % for seven noise-free templates, and 0.1 % where noise of 0.1 % is added.

    Parameters
    ----------
    values : Tensor, (n,)
        Flux of neighbouring pixels.
    order : int
        Order n of the differences, even or odd.
    stride : int
        Pixels between the values of a difference.

    Returns
    -------
    float
        In the unit of the values; NaN for fewer values than `FEWEST_VALUES` or than one difference takes.
    """
    if values.numel() < max(FEWEST_VALUES, order * stride + 1):
        return math.nan
    for _ in range(order):
        values = values[stride:] - values[:-stride]
    return robust_sigma(values) / math.sqrt(math.comb(2 * order, order))
