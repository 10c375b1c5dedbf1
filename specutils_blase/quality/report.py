"""Quality of a result: a status, and the reasons for it as data and in words.

Does not live here: measurements and limits (`assessment` for fits, `clones` for clones).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

STATUSES = ("good", "doubtful", "bad")
"""From the best to the worst."""

MOST_NAMES = 3
"""Names of reasons in a headline, at most."""


class BlaseQualityWarning(UserWarning):
    """A result is doubtful or bad; the message says why."""


@dataclass(frozen=True)
class Reason:
    """One finding about a result.

    Parameters
    ----------
    name : str
        Short and the same in every version, such as "chi2".
    status : {"good", "doubtful", "bad"}
        Status that it gives to the result. "good" is a note and no fault.
    text : str
        One sentence for the reader of the result.
    value, limit : float, optional
        Measured value and its limit; None where neither is a number.
    """

    name: str
    status: str
    text: str
    value: float | None = None
    limit: float | None = None

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"the status of a reason must be among {', '.join(STATUSES)}; got {self.status!r}")
        for name in ("value", "limit"):
            number = getattr(self, name)
            number = None if number is None else float(number)
            object.__setattr__(self, name, number if number is not None and math.isfinite(number) else None)


@dataclass(frozen=True)
class Quality:
    """Assessment of a result.

    Parameters
    ----------
    status : {"good", "doubtful", "bad"}
        "good": nothing speaks against it. "doubtful": errors may be too small, or the answer may be another one.
        "bad": its numbers must not be used.
    reasons : tuple of Reason
        The worst first; those of status "good" are notes.
    """

    status: str
    reasons: tuple[Reason, ...] = ()

    def __post_init__(self):
        if self.status not in STATUSES:
            raise ValueError(f"the status must be among {', '.join(STATUSES)}; got {self.status!r}")

    @classmethod
    def of(cls, reasons: Iterable[Reason]) -> Quality:
        """The quality that follows from reasons: its status is the worst of theirs.

        Parameters
        ----------
        reasons : iterable of Reason

        Returns
        -------
        Quality
        """
        ordered = sorted(reasons, key=lambda reason: -STATUSES.index(reason.status))
        return cls(ordered[0].status if ordered else "good", tuple(ordered))

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The status and each reason, a line each.

        Returns
        -------
        list of str
        """
        return [
            f"quality: {self.status}",
            *(f"  {reason.name} ({reason.status}): {reason.text}" for reason in self.reasons),
        ]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the reasons that speak against the result."""
        return tuple(reason.name for reason in self.reasons if reason.status != "good")

    def reason(self, name: str) -> Reason | None:
        """The reason of a name.

        Parameters
        ----------
        name : str

        Returns
        -------
        Reason or None
        """
        return next((reason for reason in self.reasons if reason.name == name), None)

    @property
    def headline(self) -> str:
        """The status and the names of the first reasons, in one line."""
        shown = [*self.names[:MOST_NAMES], *(["…"] if len(self.names) > MOST_NAMES else [])]
        return self.status + (f" ({', '.join(shown)})" if shown else "")

    def warn(self, *, but: tuple[str, ...] = (), stacklevel: int = 2) -> None:
        """Warn, unless the status is good.

        Parameters
        ----------
        but : tuple of str
            Names of reasons that another warning has told already. Without others, there is no warning.
        stacklevel : int
            As of `warnings.warn`, counted from the caller.

        Warns
        -----
        BlaseQualityWarning
            With the texts of all reasons that are not notes.
        """
        if set(self.names) - set(but):
            texts = "; ".join(reason.text for reason in self.reasons if reason.status != "good")
            warnings.warn(f"the result is {self.status}: {texts}", BlaseQualityWarning, stacklevel=stacklevel + 1)

    def record(self) -> dict:
        """The quality as plain data, for files and tables.

        Returns
        -------
        dict
            "status", and "reasons" as a list of dicts.
        """
        return {"status": self.status, "reasons": [_plain(reason) for reason in self.reasons]}

    def write_into(self, *tables) -> None:
        """Put the quality first into the meta of tables.

        Parameters
        ----------
        *tables : Table or None
            None is skipped.
        """
        for table in tables:
            if table is not None:
                table.meta = {"quality": self.record(), **{k: v for k, v in table.meta.items() if k != "quality"}}

    @classmethod
    def from_record(cls, record: Mapping) -> Quality:
        """The quality of a record; the inverse of `record`.

        Parameters
        ----------
        record : mapping

        Returns
        -------
        Quality
        """
        return cls(record["status"], tuple(Reason(**dict(reason)) for reason in record["reasons"]))


def _plain(reason: Reason) -> dict:
    """A reason as a dict, without the entries that are None."""
    return {name: value for name, value in vars(reason).items() if value is not None}


def graded(
    name: str, text: str, value: float, limit: float, bad: float = math.inf, below: bool = False
) -> Iterator[Reason]:
    """A reason if a value is beyond its limit.

    Parameters
    ----------
    name, text : str
        Of the reason.
    value, limit, bad : float
        Measured value, and its limits for "doubtful" and "bad".
    below : bool
        Values below the limits count, not those above.

    Yields
    ------
    Reason
        One, or none.
    """
    beyond, worse = (value < limit, value < bad) if below else (value > limit, value > bad)
    if below and math.isinf(bad):
        worse = False
    if beyond or worse:
        yield Reason(name, "bad" if worse else "doubtful", text, value, bad if worse else limit)
