"""What speaks against a result: its status, the reasons in data and words, and the limits behind them.

Does not live here: the fit (`fitting`), the results (`results`).
"""

from .._lazy import attach

__all__ = ["MOST_TOLD", "STATUSES", "BlaseQualityWarning", "Quality", "Reason", "graded"]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".report"))
