"""The ledger of lines: its columns and flags, equivalent widths, lines as an emulator and back, files.

Does not live here: how errors of lines are found (`posterior`).
"""

from .._lazy import attach

__all__ = [
    "NEEDED",
    "PACKED_META",
    "LineErrors",
    "build_ledger",
    "column_values",
    "emulator_from_ledger",
    "equivalent_width",
    "equivalent_width_with_gradient",
    "held_errors",
    "law_shape",
    "ledger_meta",
    "observed_centers",
    "text_column",
]

__getattr__, __dir__ = attach(__name__, dict.fromkeys(__all__, ".table"))
