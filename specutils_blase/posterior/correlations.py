"""Strong correlations between parameters of a fit, in words.

Does not live here: covariances (`inference.linear.cholesky`, `fitting.assembly`).
"""

from __future__ import annotations

import re

import numpy as np
from astropy.table import QTable

REPORTED_CORRELATION = 0.9
"""Smallest correlation that is reported."""

PARAMETER_WORDS = {
    "rv": "radial velocity",
    "vsini": "v sin i",
    "resolving_power": "resolving power",
    "limb_darkening_u1": "limb darkening (u1)",
    "limb_darkening_u2": "limb darkening (u2)",
}
PARAMETER_PATTERNS = (
    (re.compile(r"continuum_(\d+)"), r"continuum (degree \1)"),
    (re.compile(r"star_law_(\d+)"), r"saturation law of the star (coefficient \1)"),
    (re.compile(r"telluric_law_(\d+)"), r"saturation law of the tellurics (coefficient \1)"),
)


def degeneracies(parameters: QTable, covariance: np.ndarray) -> list[str]:
    r"""Sentences about pairs of parameters with a correlation :math:`|C_{ij}| / \sqrt{C_{ii} C_{jj}}` above 0.9.

    Coefficients of the continuum among themselves are left out.

    Parameters
    ----------
    parameters : QTable
        `FitResult.parameters`.
    covariance : ndarray, (n_free, n_free)
        Of its free rows, in their order.

    Returns
    -------
    list of str
        The strongest first.
    """
    rows = [row for row in parameters if row["free"]]
    error = np.sqrt(np.diag(covariance))
    with np.errstate(divide="ignore", invalid="ignore"):
        correlation = np.nan_to_num(covariance / np.outer(error, error))
    sentences = []
    for i, j in zip(*np.triu_indices(len(rows), 1), strict=True):
        value = float(correlation[i, j])
        together = all(str(rows[k]["name"]).startswith("continuum") for k in (i, j))  # nobody wants them for themselves
        if abs(value) > REPORTED_CORRELATION and not together:
            gain = 1.0 / np.sqrt(max(1.0 - value**2, 1e-12))
            first, second = _words(rows[i]), _words(rows[j])
            direction = "one up, the other up" if value > 0 else "one up, the other down"
            sentences.append(
                (
                    abs(value),
                    f"{first} and {second} are hard to tell apart (correlation {value:+.3f}; {direction}): with one of "
                    f"them known, the error of the other would be {gain:.1f} times smaller",
                )
            )
    return [sentence for _, sentence in sorted(sentences, reverse=True)]


def _words(row) -> str:
    name = str(row["name"])
    words = PARAMETER_WORDS.get(name, name)
    for pattern, replacement in PARAMETER_PATTERNS:
        words = pattern.sub(replacement, words)
    order = str(row["order"]) if "order" in row.colnames else ""
    return f"{words} of order {order}" if order else words
