"""Figures of fits and clones, which are known by protocols and not by their classes.

Does not live here: the results (`results`, `cloning`).
"""

from .._lazy import attach

__all__ = [
    "COLOURS",
    "COMPONENT_LABELS",
    "MOST_ROWS",
    "MOST_TICKS",
    "PIXELS_PER_ROW",
    "RESIDUAL_LIMIT_SIGMA",
    "TICK_COLOURS",
    "plot_clone",
    "plot_fit",
]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".order"))
