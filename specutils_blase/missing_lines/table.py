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

from ..ledger.equivalent_widths import equivalent_width
from .matched_filter import LINE, Feature


@dataclass
class Discovery:
    """Lines that a fit found.

    Parameters
    ----------
    expected : float
        Expected number of false lines.
    features : list of Feature
    index : list of int
        Position of each feature's line among those of its component, if it was added.
    """

    expected: float
    features: list[Feature] = field(default_factory=list)
    index: list[int] | None = None


MISSING_LINE_COLUMNS = {
    "wavelength": (u.AA, "Observed vacuum wavelength"),
    "component": (None, "star or telluric, whichever explains it better; undecided where neither does decisively"),
    "added": (None, "Whether the fit took it in as a line and was repeated"),
    "added_to": (None, "Component whose ledger has the line, or would have it"),
    "id": (None, "The line's id in the ledger of that component; -1 where it was not added"),
    "center": (u.AA, "Vacuum wavelength of the line at rest"),
    "equivalent_width": (u.AA, "Of the line at rest, as fitted; from the search where it was not added"),
    "equivalent_width_err": (u.AA, "1-sigma error of equivalent_width"),
    "significance": (None, "Strength over its error when it was found, marginal over all else"),
    "expected_false": (
        None,
        "Expected number of false features at least as significant in the whole search, from noise; for added lines, "
        "from noise or from strongly displaced template lines, whichever is larger",
    ),
    "false_alarm_probability": (None, "Probability of at least one such feature: 1 - exp(-expected_false)"),
}
"""Name → unit and meaning of every column of `FitResult.missing_lines`."""


def missing_lines_table(model, discovery: Discovery, ledger: QTable | None = None) -> QTable:
    """Table of found lines in order of wavelength.

    Parameters
    ----------
    model : ForwardModel or EchelleModel
    discovery : Discovery
    ledger : QTable, optional
        Ledger of the fit that has the lines; without it their values are those of the search.

    Returns
    -------
    QTable
        With the columns of `MISSING_LINE_COLUMNS`.
    """
    rows = {name: [] for name in MISSING_LINE_COLUMNS}
    indices = [-1] * len(discovery.features) if ledger is None else discovery.index
    for feature, index in zip(discovery.features, indices, strict=True):
        if ledger is None:
            law = model.components[feature.component].law
            line = (torch.tensor([getattr(feature, key)], dtype=torch.float64) for key in LINE[:4])
            with torch.no_grad():
                width = float(equivalent_width(law, *line)[0])
            center, error = feature.center, width / feature.significance
        else:
            row = ledger[ledger["component"] == feature.component][index]
            names = ("center", "equivalent_width", "equivalent_width_err")
            center, width, error = (row[key].to_value(u.AA) for key in names)
        probability = -math.expm1(-feature.expected)
        values = (
            feature.wavelength, feature.verdict, ledger is not None, feature.component, index, center, width, error,
            feature.significance, feature.expected, probability,
        )  # fmt: skip
        for key, value in zip(MISSING_LINE_COLUMNS, values, strict=True):
            rows[key].append(value)
    table, order = QTable(), np.argsort(rows["wavelength"], kind="stable")
    kinds = {"component": "U9", "added_to": "U8", "added": bool, "id": int}
    for key, (unit, meaning) in MISSING_LINE_COLUMNS.items():
        values = np.array(rows[key], dtype=kinds.get(key, float))[order]
        table[key] = values if unit is None else values * unit
        table[key].info.description = meaning
    table.meta = {
        "expected_false": discovery.expected,
        "columns": {key: meaning for key, (_, meaning) in MISSING_LINE_COLUMNS.items()},
    }
    return table
