"""The first table of docs/validation.md: one row a claim, with test, result, limit and commit.

Results of claims whose records are kept follow from these. The others are what the tables of their sections say; their
commit is the one that wrote these figures down.

Does not live here: the tables of the sections (`tables`, `document`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import record_files
import tables


class Claim(NamedTuple):
    """A row. A result or commit that is a function is made from the records of `cases`."""

    section: str
    text: str
    test: str
    result: str | Callable[[list[dict]], str]
    limit: str
    commit: str = ""
    cases: tuple[str, ...] = ()


def _bugs(records: list[dict]) -> str:
    caught = sum(bool(record["result"]["caught_by"]) for record in records)
    return f"{caught} of {len(records)}: {_verdict(caught == len(records))}"


def _verdict(met: bool) -> str:
    return "met" if met else "missed"


def _starts(records: list[dict]) -> str:
    from starts import is_flagged, is_off

    results = [record["result"] for record in records if "refused" not in record["result"]]
    off = [result for result in results if is_off(result)]
    silent = sum(not is_flagged(result) for result in off)
    told = f"{len(off)} of {len(results):,} off ({100 * len(off) / len(results):.1f} %), {silent} of them silent"
    return f"{told}: {_verdict(len(off) <= 0.003 * len(results) and not silent)}"


def _quality(records: list[dict]) -> str:
    from assessed_fits import GOOD

    fits = tables.judged(records)

    def part(some: list[dict]) -> str:
        return f"{sum(fit['flagged'] for fit in some)} of {len(some)}"

    def share(some: list[dict]) -> float:
        return float(np.mean([fit["flagged"] for fit in some]))

    wrong = [fit for fit in fits if fit["beyond"]]
    right = [fit for fit in fits if fit["within"] and fit["kind"] in GOOD]
    far = [fit for fit in wrong if fit["far"]]
    met = share(wrong) >= 0.95 and share(far) >= 0.99 and share(right) <= 0.02
    return f"flagged: {part(wrong)} wrong fits, {part(far)} far ones, {part(right)} right ones: {_verdict(met)}"


def _another(records: list[dict]) -> str:
    from other_star import PUBLISHED

    fits = [record["result"] for record in records if len(record["arguments"]["orders"]) == 1]
    pulls = (tables.column(fits, "rv") - PUBLISHED) / tables.column(fits, "rv_err")
    spread, largest = np.sqrt(np.mean(pulls**2)), np.abs(pulls).max()
    told = f"pulls of {pulls.size} orders: s.d. {spread:.2f}, largest {largest:.1f}"
    return f"{told}: {_verdict(0.6 <= spread <= 1.4 and largest <= 3.5)}"


CLAIMS = (
    Claim(
        "1", "Errors of velocities are right", "truths drawn from the priors, 200 seeds, four settings",
        "s.d. of pulls: rv 0.95 to 1.00, v sin i 1.00 to 1.10", "1.00 ± 0.05 by chance", "3989229",
    ),
    Claim(
        "1", "Errors of lines are right", "the same, lines of S/N above 10",
        "s.d. of pulls: ln area 1.02 to 1.04, ln equivalent width 1.01 to 1.02", "none set", "3989229",
    ),
    Claim(
        "1", "Errors are those of the simulator's own derivatives", "finite differences, dense inverse, one seed",
        "ratios 1.0000 to 1.0002", "0.2 % (CI)", "47c49f8",
    ),
    Claim(
        "2", "Changed lines come back", "a fifth of the lines off by up to ten times, prior of 1 in ln area, 8 seeds",
        "92.5 and 94.0 % within 2 σ", "95.4 % of a Gaussian", "d16331f",
    ),
    Claim(
        "3", "Missing lines are found", "a twentieth of the lines taken out, 20 seeds",
        "94 and 93 % above 5 σ, 100 % above 10 σ", "90 %", "47c49f8",
    ),
    Claim(
        "3", "Hardly any of them is false", "the same", "0.20 and 0.32 in 1,000 pixels", "none set", "47c49f8",
    ),
    Claim(
        "4", "The Sun's lines give the velocity of Arcturus' lines", "a third of an order, 8 seeds, S/N 300, jitter",
        "+6 m/s, error 44 m/s", "none set", "e457866",
    ),
    Claim(
        "5", "Flaws of data: how far each one moves the answer", "seven flaws, a third of an order, 8 seeds",
        "drift of 0.3 km/s: rv +0.87 σ; resolving power 10 % off: v sin i +0.12 or −0.21 km/s; others less", "none set",
        "47c49f8",
    ),
    Claim(
        "6", "Means and errors agree with a sampler", "twenty lines, three problems, 3,000 samples",
        "`line_means` off by 0.05 to 0.06 σ, widths 1.00 to 1.01", "0.1 σ, 5 % (CI)", "f9df13f",
    ),
    Claim("7", "Tests catch planted bugs", "one bug at a time in a copy", _bugs, "all", cases=("bug",)),
    Claim(
        "8", "Widths of priors can be measured", "known widths of lines, four seeds",
        "25 widths off by 1.2 of their errors (RMS)", "1 by chance", "8f1e10d",
    ),
    Claim(
        "8", "The default widths of priors are a compromise", "held-out pixels of HR 3039 and WASP-69, two folds",
        "RMS held out, default and measured widths: 1.35 and 1.32 %; 0.80 and 0.61 %", "none set", "8f1e10d",
    ),
    Claim(
        "9", "Errors of several orders add up", "nights of four orders, 100 seeds",
        "s.d. of pulls: rv 0.98 ± 0.07, v sin i 1.09 ± 0.08", "1.00 ± 0.07 by chance", "bd10dd3",
    ),
    Claim(
        "10", "Wrong fits say so, right ones do not", "twenty everyday faults, and good fits", _quality,
        "≥ 95 % of wrong, ≥ 99 % of far, ≤ 2 % of right", cases=("assessed",),
    ),
    Claim(
        "11", "Fits start at the right velocity", "four instruments, right and wrong templates", _starts,
        "≤ 0.3 %, none silent", cases=("start", "fitted"),
    ),
    Claim(
        "12", "Errors hold with a template of another star", "orders of GJ 699, published velocity", _another,
        "s.d. 0.6 to 1.4, largest 3.5", cases=("another",),
    ),
)  # fmt: skip


def summary(records: list[dict]) -> str:
    """The table; claims of which there are no records have no result."""
    rows = []
    for claim in CLAIMS:
        some = [record for record in records if record["case"] in claim.cases]
        result, commit = claim.result, claim.commit
        if claim.cases:
            result = claim.result(some) if some else "no records"
            commit = ", ".join(record_files.commits(some))
        rows.append([claim.section, claim.text, claim.test, result, claim.limit, commit])
    return tables.markdown(["section", "claim", "test", "result", "limit", "commit"], rows)
