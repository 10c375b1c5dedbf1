"""A template spectrum to tunable lines: continuum, line finding, rounds of refinement, species by species.

Does not live here: the fit to data (`fitting`).
"""

from .._lazy import attach

__all__ = ["CloneResult", "NoLinesError", "clone", "clone_ledger"]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".clone"))
