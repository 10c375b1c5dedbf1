"""Lines that no template has: a matched filter on residuals, its table, and what a finished fit lacks.

Does not live here: how a fit takes them in (`fitting.line_search`).
"""

from .._lazy import attach

__all__ = [
    "DECISIVE",
    "EXPECTED",
    "FREE",
    "HELD",
    "HINT",
    "LINE",
    "MOST_PIXELS",
    "NOTHING_FREE",
    "SEEN",
    "WINGS",
    "Feature",
    "Grown",
    "search",
    "with_lines",
]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".matched_filter"))
