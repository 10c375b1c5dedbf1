"""What the curvature at a solution tells: errors, draws, means of lines, correlations, the photon limit.

Does not live here: how the solution is found (`inference`).
"""

from .._lazy import attach

__all__ = [
    "BATCH",
    "KNOWN",
    "PHYSICAL",
    "SPECTRA",
    "WIDENED",
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
