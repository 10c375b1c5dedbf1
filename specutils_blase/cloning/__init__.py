"""A template spectrum to tunable lines: continuum, lines found, rounds of refinement, species by species.

Does not live here: data (`fitting`).
"""

from .._lazy import attach

__all__ = ["BESIDE", "CloneResult", "NoLinesError", "clone", "clone_ledger"]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".clone"))
