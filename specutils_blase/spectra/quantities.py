"""Numbers and quantities of arguments: tests for numbers, and velocities, temperatures, resolving powers as numbers.

Does not live here: units of spectra (`spectra.reading`, `spectra.flux`).
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from astropy import units as u

from .flux import WrongUnitsError


def is_number(value) -> bool:
    """Whether a value is one real number."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole(value) -> bool:
    """Whether a value is one whole number."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def to_kms(value: u.Quantity | float, name: str = "velocity") -> float:
    """A velocity as a number of km/s.

    Parameters
    ----------
    value : `~astropy.units.Quantity` or float
        A bare number is in km/s.
    name : str
        Name of the argument in messages.

    Returns
    -------
    float
        In km/s.

    Raises
    ------
    TypeError
        If `value` is not a number; ValueError if it is not one finite number, or has another unit.
    """
    return to_number(value, u.km / u.s, name)


def to_teff(value: u.Quantity | float, name: str = "teff") -> float:
    """A positive temperature as a number of K; errors as of `to_kms`.

    Parameters
    ----------
    value : `~astropy.units.Quantity` or float
        A bare number is in K.
    name : str
        Name of the argument in messages.

    Returns
    -------
    float
        In K.
    """
    return to_number(value, u.K, name, positive=True)


def to_resolving_power(value: u.Quantity | float, name: str = "resolving_power") -> float:
    """A positive resolving power λ/FWHM as a number; errors as of `to_kms`.

    Parameters
    ----------
    value : `~astropy.units.Quantity` or float
    name : str
        Name of the argument in messages.

    Returns
    -------
    float
    """
    return to_number(value, u.dimensionless_unscaled, name, positive=True)


def to_number(value: Any, unit: u.UnitBase, name: str, positive: bool = False) -> float:
    """One finite number in a unit; errors as of `to_kms`.

    Parameters
    ----------
    value : `~astropy.units.Quantity` or float
        A bare number is in `unit`.
    unit : unit
    name : str
        Name of the argument in messages.
    positive : bool
        Whether zero and negative numbers are errors.

    Returns
    -------
    float
        In `unit`.
    """
    of = "" if unit == u.dimensionless_unscaled else f" of {unit}, or a Quantity that converts to it"
    expected = f"expected {name} as one finite{' positive' if positive else ''} number{of}"
    if isinstance(value, u.Quantity):
        try:
            value = value.to_value(unit)
        except u.UnitConversionError as error:
            raise WrongUnitsError(f"{expected}, got a value in [{value.unit}]") from error
    number = as_array(value)
    if number.dtype.kind not in "iuf":  # text, None, booleans, complex
        raise TypeError(f"{expected}, got {value!r} ({type(value).__name__})")
    if number.ndim:
        raise ValueError(f"{expected}, got values of shape {number.shape}")
    if not np.isfinite(number) or (positive and number <= 0):
        raise ValueError(f"{expected}, got {number}")
    return float(number)


def as_array(values: Any) -> Any:
    """Anything as an array on the CPU; quantities as they are."""
    if hasattr(values, "detach"):  # a tensor, without torch for who only reads numbers
        values = values.detach().cpu().numpy()
    return values if isinstance(values, u.Quantity) else np.asarray(values)
