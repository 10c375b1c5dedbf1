"""Records of fits: one line of JSON each, with the commit of the code that made it.

Does not live here: what is recorded (`cases` and its neighbours), tables of records (`tables`, `document`).
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().with_name("records")
"""Records behind the tables of docs/validation.md, one file an item."""

UNKNOWN = "unknown"
"""Commit of records that carry none."""

WATCHED = ("specutils_blase", "tests/validation")
"""A change here that is not committed makes records dirty."""


@cache
def commit() -> str:
    """Commit of the package that is imported, ``+dirty`` behind it where files differ; else the package's version.

    An installed package lies in no checkout of its own, even where its environment does.
    """
    import specutils_blase

    source = Path(specutils_blase.__file__)

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(source.parents[1]), *arguments], capture_output=True, text=True, timeout=60
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", str(source)) is None:
        return f"version {specutils_blase.__version__}"
    dirty = git("status", "--porcelain", "--", *WATCHED) != ""
    return f"{git('rev-parse', '--short=7', 'HEAD')}{'+dirty' if dirty else ''}"


def key(case: str, arguments: dict) -> str:
    """What a record is of."""
    return json.dumps([case, arguments], sort_keys=True)


def read(*paths: Path) -> dict[str, dict]:
    """Records of files by what they are of; the last of two that are of the same counts."""
    found = {}
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            record = json.loads(line)
            found[key(record["case"], record["arguments"])] = record
    return found


def append(path: Path, record: dict) -> None:
    with path.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(record) + "\n")


def commits(records: Iterable[dict]) -> dict[str, int]:
    """Commits that made records, and how many each, in the order in which they first came."""
    counts: dict[str, int] = {}
    for record in records:
        name = record.get("commit", UNKNOWN)
        counts[name] = counts.get(name, 0) + 1
    return counts


def told(records: Iterable[dict]) -> str:
    """The same in words, for the line below a table."""
    counts = commits(records)
    if len(counts) == 1:
        ((name, number),) = counts.items()
        return f"{number:,} records of commit {name}"
    return f"{sum(counts.values()):,} records: " + ", ".join(f"{n:,} of commit {name}" for name, n in counts.items())
