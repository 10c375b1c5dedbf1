"""The ledger of lines: its columns and flags, equivalent widths, lines as an emulator and back, files.

Does not live here: the errors of lines (`posterior`, `fitting.assembly`).
"""

from .._lazy import attach

__all__ = [
    "NEEDED_COLUMNS",
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
