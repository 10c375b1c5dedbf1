"""The forward model: lines, motion, rotation, line spread, pixels and continuum as modules; one order, or many.

Does not live here: what is free and how it is found (`inference`), tables (`ledger`).
"""

from .._lazy import attach

__all__ = ["MAX_STEP", "MIN_STEP", "STEPS_PER_LINE_SPREAD", "ForwardModel", "Stages", "grid_step"]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".order"))
