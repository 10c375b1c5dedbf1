"""Noise of a spectrum from the differences of neighbouring pixels.

Does not live here: what a fit believes of the noise of its data (`noise`).
"""

from __future__ import annotations

import math

from torch import Tensor

FEWEST = 8
"""Values from which on their differences tell a scatter."""


def difference_scatter(values: Tensor, order: int = 2, stride: int = 1) -> float:
    r"""Standard deviation of white noise, from the median of the differences of some order.

    .. math:: σ = 1.4826\,\mathrm{med}\,|Δ^n f| \Big/ \sqrt{\textstyle\binom{2n}{n}}

    Second differences of every other pixel are DER_SNR (Stoehr et al. 2008, ADASS XVII, 505), for data whose lines are
    resolved by few pixels. Sixth differences of adjacent pixels hardly see lines that a template resolves: of seven
    noise-free ones they find 0.0 to 0.08 %, and 0.1 % where that much is added.

    Parameters
    ----------
    values : Tensor, (n,)
        Flux of neighbouring pixels.
    order : int
        Of the differences, even or odd.
    stride : int
        Pixels from one value of a difference to the next.

    Returns
    -------
    float
        In the unit of the values; NaN if there are fewer than `FEWEST`, or than a difference needs.
    """
    if values.numel() < max(FEWEST, order * stride + 1):
        return math.nan
    for _ in range(order):
        values = values[stride:] - values[:-stride]
    return 1.482602 * float(values.abs().median()) / math.sqrt(math.comb(2 * order, order))
