"""How an iteration ends: its status, and the solution with its status.

Does not live here: the iteration (`inference.minimize`), what an answer is worth (`quality`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from .linear.normal_equations import NormalEquations


class Status(Enum):
    """Where an iteration stands, or how it has ended; the value is what a user reads."""

    GOES_ON = "goes on"
    HANDED_OVER = "goes on by quasi-Newton steps"
    CONVERGED = "converged"
    STALLED = "stopped: no step decreases the cost any more although more decrease is predicted"
    ITERATIONS = "not converged: the limit on iterations was reached"
    SLOW = "stopped: further iterations improve next to nothing although more decrease is predicted"
    NOT_FINITE = "not converged: the cost is not finite"
    UNSETTLED = "not converged: a strength, width or shift that lines have in common still moves"

    @property
    def is_end(self) -> bool:
        """Whether the iteration is over."""
        return self not in (Status.GOES_ON, Status.HANDED_OVER)


@dataclass(frozen=True)
class Solution:
    """Outcome of `minimize`: failure is data, not an exception.

    Parameters
    ----------
    vector : Tensor, (n_parameter,)
    cost : float
    status : Status
    normal : NormalEquations
        Undamped, at the solution: covariances follow from them.
    history : list of dict
        Iteration, cost and predicted decrease.
    where : str
        Where it has not converged, in words, if that is known.
    """

    vector: Tensor
    cost: float
    status: Status
    normal: NormalEquations
    history: list[dict[str, float]] = field(default_factory=list)
    where: str = ""

    @property
    def success(self) -> bool:
        """Whether it has converged."""
        return self.status is Status.CONVERGED

    @property
    def message(self) -> str:
        """How it has ended, in words."""
        return self.status.value + self.where
