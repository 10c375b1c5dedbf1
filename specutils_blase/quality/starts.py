"""Reasons against the start of a fit: its velocity, and the source of its lines.

Does not live here: the comparison of starts (`fitting.start.hypotheses`), the other reasons (`assessment`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from .report import Reason, graded

SECOND_DOUBTFUL, SECOND_BAD = 25.0, 9.0
"""Least Δχ² of the second solution of (rv, v sin i), or of no star: 5 and 3 standard deviations. Chance reaches 15
among a thousand velocities."""


def start_reasons(start: dict | None) -> Iterator[Reason]:
    """Reasons where the search ended at its edge, or another solution, or none, is nearly as good.

    Parameters
    ----------
    start : dict or None
        `FitResult.settings["start"]`.
    """
    if not start:
        return
    if start.get("at_edge"):
        low, high = start.get("search", (math.nan, math.nan))
        text = (
            f"the radial velocity was searched between {low:.0f} and {high:.0f} km/s, and agreement still grew at "
            "the end: the star may be beyond it; clone a wider region, or give rv="
        )
        yield Reason("rv_search", "bad", text, start.get("rv"))
    gap = start.get("delta_chi2")
    if gap is not None:
        other = start.get("second") or {}
        where = (
            f" at rv {other['rv']:.1f}, v sin i {other['vsini']:.1f} km/s" if {"rv", "vsini"} <= other.keys() else ""
        )
        text = f"a second solution{where} is worse by only {gap:.2g} in χ²: the answer may be that one"
        yield from graded("second_solution", text, gap, SECOND_DOUBTFUL, SECOND_BAD, below=True)
    gain = start.get("detection")
    if gain is not None:
        text = f"in the range of the search, the star's template lowers χ² by only {gain:.2g}: it may be elsewhere"
        yield from graded("start_detection", text, gain, SECOND_DOUBTFUL, SECOND_BAD, below=True)


def template_reasons(templates: dict[str, str] | None) -> Iterator[Reason]:
    """Reasons where the clone of a component is doubtful or bad.

    Parameters
    ----------
    templates : dict or None
        `FitResult.settings["template_quality"]`: component to the status of its clone.
    """
    for name, status in (templates or {}).items():
        if status != "good":
            text = f"the {name}'s clone is {status} itself: see its quality"
            yield Reason(f"{name}_clone", "doubtful" if status == "bad" else "good", text)


def same_data_reasons(from_fit: dict[str, bool] | None) -> Iterator[Reason]:
    """A reason where lines come from a fit of the same data.

    Parameters
    ----------
    from_fit : dict or None
        `FitResult.settings["from_fit"]`: component to whether it comes from a fit of the same data.
    """
    if names := [name for name, same in (from_fit or {}).items() if same]:
        text = (
            f"lines of the {' and the '.join(names)} come from a fit of these data, or of data that it does not name: "
            "where data count twice, errors are too small; fit from the template instead"
        )
        yield Reason("same_data", "doubtful", text)
