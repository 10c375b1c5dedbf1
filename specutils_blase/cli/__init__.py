"""The command line.

Does not live here: what it calls (`fitting`, `cloning`, `asdf`).
"""

from .._lazy import attach

__all__ = [
    "COMMANDS",
    "DOUBTFUL",
    "GOOD",
    "INTERRUPTED",
    "MARGINS",
    "NOT_CONVERGED",
    "TERMINATED",
    "main",
    "run_clone",
    "run_demo",
    "run_fit",
    "run_orders",
]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".main"))
