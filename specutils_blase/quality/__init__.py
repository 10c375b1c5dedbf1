"""Assessment of results: status, reasons as data and in words, and the limits behind them.

Does not live here: the fit (`fitting`), the results (`results`).
"""

from .._lazy import attach

__all__ = ["MOST_NAMES", "STATUSES", "BlaseQualityWarning", "Quality", "Reason", "graded"]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".report"))
