"""Maxima between samples.

Does not live here: the search for the highest sample (`cloning.line_finding`, `missing_lines.matched_filter`).
"""

from __future__ import annotations

import numpy as np


def vertex_offset(left: np.ndarray, middle: np.ndarray, right: np.ndarray) -> np.ndarray:
    r"""Offset of the maximum from the middle one of three equidistant samples, by the parabola through them.

    .. math:: δ = \frac12 \frac{f_{-1} - f_{1}}{f_{-1} - 2 f_0 + f_1}

    Parameters
    ----------
    left, middle, right : ndarray, (n,)
        Samples, in any unit.

    Returns
    -------
    ndarray, (n,)
        In units of the spacing, from -1/2 to 1/2. Zero where the parabola has no maximum.
    """
    bend = left - 2.0 * middle + right
    return np.where(bend < 0, 0.5 * (left - right) / np.where(bend < 0, bend, -1.0), 0.0).clip(-0.5, 0.5)
