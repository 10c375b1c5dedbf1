"""Lines that no template has: a matched filter on residuals, its table, and the search of a finished fit.

Does not live here: the addition of lines to a fit (`fitting.line_search`).
"""

from .._lazy import attach

__all__ = [
    "CANDIDATE_PART",
    "DECISIVE",
    "EXPECTED_FALSE",
    "FREE_PRECISION",
    "HELD",
    "LINE",
    "MOST_RESPONSE_PIXELS",
    "NOTHING_FREE",
    "RESPONSE_END",
    "SEEN_WIDTHS",
    "Feature",
    "Grown",
    "search",
    "with_lines",
]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".matched_filter"))
