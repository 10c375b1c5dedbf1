"""Figures of fits and clones, by what they offer, not by what they are.

Does not live here: the results (`results`, `cloning`).
"""

from .._lazy import attach

__all__ = [
    "COLOURS",
    "MOST_ROWS",
    "MOST_TICKS",
    "NAMES",
    "PIXELS_PER_ROW",
    "RESIDUAL_LIMIT",
    "TICK_COLOURS",
    "plot_clone",
    "plot_fit",
]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".order"))
