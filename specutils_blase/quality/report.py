"""What a result says of itself: a status, and the reasons for it as data and in words.

Does not live here: what is looked at, and the limits (`assessment` for fits, `clone_assessment` for clones).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

STATUSES = ("good", "doubtful", "bad")
"""From the best to the worst."""

MOST_TOLD = 3
"""Names of reasons in a headline."""


class BlaseQualityWarning(UserWarning):
    """A result is doubtful or bad; the message says why."""


@dataclass(frozen=True)
class Reason:
    """One thing that was noticed.

    Parameters
    ----------
    name : str
        Short and the same in every version, such as "chi2".
    status : {"good", "doubtful", "bad"}
        What it makes of the result. "good" is a note: worth knowing, and no fault.
    text : str
        One sentence for who reads the result.
    value, limit : float, optional
        What was measured, and from where on it counts; None where neither is a number.
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
    """How far a result can be believed.

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
        """The quality that follows from reasons: the worst of them decides."""
        ordered = sorted(reasons, key=lambda reason: -STATUSES.index(reason.status))
        return cls(ordered[0].status if ordered else "good", tuple(ordered))

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> list[str]:
        """The status and each reason, a line each."""
        return [f"quality: {self.status}", *(f"  {one.name} ({one.status}): {one.text}" for one in self.reasons)]

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the reasons that speak against the result."""
        return tuple(one.name for one in self.reasons if one.status != "good")

    def reason(self, name: str) -> Reason | None:
        """The reason of that name, if there is one."""
        return next((one for one in self.reasons if one.name == name), None)

    @property
    def headline(self) -> str:
        """The status and the names of the first reasons, in one line."""
        told = [*self.names[:MOST_TOLD], *(["…"] if len(self.names) > MOST_TOLD else [])]
        return self.status + (f" ({', '.join(told)})" if told else "")

    def warn(self, *, but: tuple[str, ...] = (), stacklevel: int = 2) -> None:
        """Warn, unless the status is good.

        Parameters
        ----------
        but : tuple of str
            Names of reasons that another warning has told already: where there are no others, there is none to give.
        stacklevel : int
            As of `warnings.warn`, counted from who calls this.
        """
        if set(self.names) - set(but):
            told = "; ".join(one.text for one in self.reasons if one.status != "good")
            warnings.warn(f"the result is {self.status}: {told}", BlaseQualityWarning, stacklevel=stacklevel + 1)

    def record(self) -> dict:
        """As plain data, for files and tables."""
        return {"status": self.status, "reasons": [_plain(one) for one in self.reasons]}

    def write_into(self, *tables) -> None:
        """Put it into the meta of tables, before all else that is there; None among them is no table."""
        for table in tables:
            if table is not None:
                table.meta = {"quality": self.record(), **{k: v for k, v in table.meta.items() if k != "quality"}}

    @classmethod
    def from_record(cls, record: Mapping) -> Quality:
        """The inverse of `record`."""
        return cls(record["status"], tuple(Reason(**dict(one)) for one in record["reasons"]))


def _plain(reason: Reason) -> dict:
    """Without what is not a number."""
    return {name: value for name, value in vars(reason).items() if value is not None}


def graded(
    name: str, text: str, value: float, limit: float, bad: float = math.inf, below: bool = False
) -> Iterator[Reason]:
    """A reason where a value is beyond its limit: above it, or below it."""
    beyond, worse = (value < limit, value < bad) if below else (value > limit, value > bad)
    if below and math.isinf(bad):
        worse = False
    if beyond or worse:
        yield Reason(name, "bad" if worse else "doubtful", text, value, bad if worse else limit)
