"""Posterior around a solution: draws, means, correlations, and the photon limit of the velocity.

Does not live here: the search for the solution (`inference`).
"""

from .._lazy import attach

__all__ = [
    "KNOWN_PRECISION",
    "PHYSICAL",
    "SPECTRA",
    "WIDENED",
    "WIDTHS_AT_ONCE",
    "Curvature",
    "Draws",
    "by_line",
    "draw",
    "free_parameters",
    "needed",
    "normal_equations",
    "of_lines",
    "prior_precision",
]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".laplace"))
