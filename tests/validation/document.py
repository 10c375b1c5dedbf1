"""Tables of docs/validation.md from records: what stands between two markers is written by ``run.py tables``.

A table stands between ``<!-- table: NAME -->`` and ``<!-- end -->``; `TABLES` knows the names. Below each table one
line says how many records it is made of, and of which commits. A table of which there are no records stays as it is.

Does not live here: how a table is laid out (`tables`), the table of all claims (`claims`), figures (`record_figures`).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import record_files
import tables

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "validation.md"
BLOCK = re.compile(r"^<!-- table: (?P<name>[\w-]+) -->\n(?P<body>.*?)^<!-- end -->$", re.MULTILINE | re.DOTALL)


class Table(NamedTuple):
    """Cases of records that a table is made of, the function that makes it, and the records that it takes."""

    cases: tuple[str, ...]
    make: Callable[[list[dict]], str]
    takes: Callable[[dict], bool] = lambda arguments: True


TABLES = {
    "calibration": Table(("calibration",), tables.calibration),
    "bound": Table(("bound",), tables.bound),
    "changed": Table(("changed",), tables.changed),
    "missing": Table(("missing",), tables.missing, lambda arguments: arguments["truth"] == "clone"),
    "scattered": Table(("missing",), tables.scattered, lambda arguments: arguments["truth"] != "clone"),
    "star": Table(("wrong_star",), tables.star),
    "flaws": Table(("flaw",), tables.flaws),
    "means": Table(("means",), tables.means),
    "bugs": Table(("bug",), tables.bugs),
    "priors": Table(("measured",), tables.priors),
    "held-out": Table(("held_out",), tables.held_out),
    "orders": Table(("orders",), tables.orders),
    "quality": Table(("assessed",), tables.flagged),
    "quality-kinds": Table(("assessed",), lambda records: f"{tables.kinds(records)}\n\n{tables.missed(records)}"),
    "start": Table(("start", "fitted"), lambda records: f"{tables.starts(records)}\n\n{tables.half_widths(records)}"),
    "start-ends": Table(("start", "fitted"), tables.ends),
    "start-good": Table(("start", "fitted"), tables.good),
    "another": Table(("another",), tables.another),
}


def chosen(name: str, records: list[dict]) -> list[dict]:
    """Records that a table is made of."""
    table = TABLES[name]
    return [record for record in records if record["case"] in table.cases and table.takes(record["arguments"])]


def body(name: str, records: list[dict]) -> str:
    """What stands between the markers of a table."""
    return f"\n{TABLES[name].make(records)}\n\n*{record_files.told(records)}.*\n\n"


def names(text: str) -> list[str]:
    """Names of the tables of a document, in order."""
    return [block["name"] for block in BLOCK.finditer(text)]


def written(text: str, records: list[dict], more: dict[str, Callable[[list[dict]], str]] | None = None) -> str:
    """A document with its tables made anew.

    Parameters
    ----------
    text : str
        The document. What stands outside of markers stays, and so does a table without records.
    records : list of dict
        Of any cases.
    more : dict, optional
        Further names, to functions from all records to what stands between the markers.

    Raises
    ------
    ValueError
        A marker has a name that nothing makes, comes twice, or has no end.
    """
    more = more or {}
    found = names(text)
    if text.count("<!-- table:") != len(found) or text.count("<!-- end -->") != len(found):
        raise ValueError("every '<!-- table: NAME -->' needs one '<!-- end -->', each on a line of its own")
    if len(set(found)) != len(found):
        raise ValueError(f"tables that come twice: {', '.join(sorted({one for one in found if found.count(one) > 1}))}")
    if unknown := set(found) - set(TABLES) - set(more):
        raise ValueError(f"no table {', '.join(sorted(unknown))}: choose among {', '.join((*TABLES, *more))}")

    def made(block: re.Match) -> str:
        name, text = block["name"], block["body"]
        if name in more:
            text = f"\n{more[name](records)}\n\n"
        elif some := chosen(name, records):
            text = body(name, some)
        return f"<!-- table: {name} -->\n{text}<!-- end -->"

    return BLOCK.sub(made, text)
