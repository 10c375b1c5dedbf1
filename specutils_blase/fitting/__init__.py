"""From data and clones to a result: inputs, start, stages, what is common to all lines, residuals, assembly.

Does not live here: the minimiser (`inference`), the model (`model`).
"""

from .._lazy import attach

__all__ = ["fit"]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".pipeline"))
