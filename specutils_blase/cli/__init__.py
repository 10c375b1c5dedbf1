"""The command line.

Does not live here: the work of its commands (`fitting`, `cloning`, `asdf`).
"""

from .._lazy import attach

__all__ = [
    "CLONE_MARGINS_KMS",
    "COMMANDS",
    "DOUBTFUL",
    "GOOD",
    "INTERRUPTED",
    "NOT_CONVERGED",
    "TERMINATED",
    "main",
    "run_clone",
    "run_demo",
    "run_fit",
    "run_orders",
]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".commands"))
