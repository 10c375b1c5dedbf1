"""The table of lines that no template has.

Does not live here: the search (`matched_filter`), a finished fit (`on_result`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
from astropy import units as u
from astropy.table import QTable

from ..ledger.table import equivalent_width
from .matched_filter import LINE, Feature


@dataclass
class Discovery:
    """Lines that a fit has found.

    Parameters
    ----------
    expected : float
        Number of false ones that may be expected.
    features : list of Feature
    index : list of int
        Where each feature's line stands among its component's, if it was added.
    """

    expected: float
    features: list[Feature] = field(default_factory=list)
    index: list[int] | None = None


COLUMNS = {
    "wavelength": (u.AA, "Observed vacuum wavelength"),
    "component": (None, "star or telluric, whichever explains it better; undecided where neither does decisively"),
    "added": (None, "Whether the fit took it in as a line and was repeated"),
    "added_to": (None, "Component whose ledger has the line, or would have it"),
    "id": (None, "The line's id in the ledger of that component; -1 where it was not added"),
    "center": (u.AA, "Vacuum wavelength of the line at rest"),
    "equivalent_width": (u.AA, "Of the line at rest, as fitted; from the search where it was not added"),
    "equivalent_width_err": (u.AA, "1-sigma error of equivalent_width"),
    "significance": (None, "Strength over its error when it was found, everything else following along"),
    "expected_false": (
        None,
        "False features at least as significant that noise brings to the whole search; of added ones, noise and lines "
        "of the templates that are far from their places there, whichever are more",
    ),
    "false_alarm_probability": (None, "Probability that these bring one: 1 - exp(-expected_false)"),
}
"""Name → unit and meaning of every column of `FitResult.missing_lines`."""


def missing_lines_table(model, found: Discovery, ledger: QTable | None = None) -> QTable:
    """What was found, as a table in order of wavelength; with the ledger of the fit that has the lines, as fitted."""
    rows = {name: [] for name in COLUMNS}
    for one, at in zip(found.features, [-1] * len(found.features) if ledger is None else found.index, strict=True):
        if ledger is None:
            law = model.components[one.component].law
            line = (torch.tensor([getattr(one, key)], dtype=torch.float64) for key in LINE[:4])
            with torch.no_grad():
                width = float(equivalent_width(law, *line)[0])
            center, error = one.center, width / one.significance
        else:
            row = ledger[ledger["component"] == one.component][at]
            names = ("center", "equivalent_width", "equivalent_width_err")
            center, width, error = (row[key].to_value(u.AA) for key in names)
        probability = -math.expm1(-one.expected)
        values = (
            one.wavelength, one.verdict, ledger is not None, one.component, at, center, width, error, one.significance,
            one.expected, probability,
        )  # fmt: skip
        for key, value in zip(COLUMNS, values, strict=True):
            rows[key].append(value)
    table, order = QTable(), np.argsort(rows["wavelength"], kind="stable")
    kinds = {"component": "U9", "added_to": "U8", "added": bool, "id": int}
    for key, (unit, meaning) in COLUMNS.items():
        values = np.array(rows[key], dtype=kinds.get(key, float))[order]
        table[key] = values if unit is None else values * unit
        table[key].info.description = meaning
    table.meta = {"expected_false": found.expected, "columns": {key: meaning for key, (_, meaning) in COLUMNS.items()}}
    return table
