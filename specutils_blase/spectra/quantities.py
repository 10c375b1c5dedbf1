"""What passes for a number or a whole number in an argument: Python's and numpy's own, but no truth value.

Does not live here: units (`spectrum`, `simulate.inputs`).
"""

from __future__ import annotations

from numbers import Integral, Real


def is_number(value) -> bool:
    """Whether a value is one real number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value) -> bool:
    """Whether a value is one whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool)
