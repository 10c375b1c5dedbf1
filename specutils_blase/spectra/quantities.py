"""Tests for numbers and whole numbers in arguments: Python's and numpy's own pass, truth values do not.

Does not live here: units (`reading`, `simulate.inputs`).
"""

from __future__ import annotations

from numbers import Integral, Real


def is_number(value) -> bool:
    """Whether a value is one real number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value) -> bool:
    """Whether a value is one whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool)
