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

_WHERE = {
    "NEEDED_COLUMNS": ".emulator",
    "PACKED_META": ".emulator",
    "LineErrors": ".table",
    "build_ledger": ".table",
    "column_values": ".emulator",
    "emulator_from_ledger": ".emulator",
    "equivalent_width": ".equivalent_widths",
    "equivalent_width_with_gradient": ".equivalent_widths",
    "held_errors": ".table",
    "law_shape": ".emulator",
    "ledger_meta": ".emulator",
    "observed_centers": ".emulator",
    "text_column": ".emulator",
}

__getattr__, __dir__ = attach(__name__, _WHERE)
