"""Flux and noise of a spectrum as plain numbers on a linear scale.

Does not live here: the spectral axis, masks, and the return to a spectrum (`reading`).
"""

from __future__ import annotations

from typing import Any

import astropy.units as u
import numpy as np
from astropy.nddata import InverseVariance, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from specutils import Spectrum


class WrongUnitsError(u.UnitsError, ValueError):
    """A quantity in units of another kind; also a ValueError, which astropy's own class is not."""


def read_flux(spectrum: Spectrum) -> np.ndarray:
    """Flux of one spectrum.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`

    Returns
    -------
    ndarray, shape (n,)
        float64, in the spectrum's own unit.

    Raises
    ------
    TypeError
        If the flux is not real numbers.
    ValueError
        If it is not one spectrum of at least two pixels; `~astropy.units.UnitsError` (one of them) if it is a
        logarithm: dex, magnitudes or dB.
    """
    flux = np.asarray(spectrum.data)
    if flux.ndim != 1:
        raise ValueError(
            f"expected one spectrum, got flux of shape {flux.shape}: loop over its rows, "
            "`spectra = [s for s in spectrum]`, and give the list to `sb.fit(spectra, ...)`"
        )
    if flux.dtype.kind not in "iuf":
        raise TypeError(f"expected flux as real numbers, got {flux.dtype.name}: convert it, e.g. with flux.real")
    if len(flux) < 2:
        raise ValueError(f"expected a spectrum of at least 2 pixels, got {len(flux)}: a pixel alone has no width")
    check_linear(spectrum.unit)  # not flux.unit: specutils' readers make spectra in mag(AB) whose flux raises
    return float64(flux)


def check_linear(unit: u.UnitBase | u.function.FunctionUnitBase) -> None:
    """Raise `~astropy.units.UnitsError` if a flux in a unit is a logarithm (dex, mag, dB, or these of a unit).

    Parameters
    ----------
    unit : unit
    """
    of_unit = isinstance(unit, u.function.FunctionUnitBase)
    scale = unit.function_unit if of_unit else unit
    if u.dex not in scale.decompose().bases:
        return
    if of_unit:
        remedy = "flux.physical"
    elif scale.is_equivalent(u.dex):
        remedy = "10**flux" if scale == u.dex else f"10**({scale.to(u.dex):g} * flux)"
    else:
        remedy = "the flux itself"
    raise WrongUnitsError(
        f"expected flux on a linear scale, got its logarithm [{unit}]: give {remedy}, and errors on that scale"
    )


def read_sigma(spectrum: Spectrum) -> np.ndarray | None:
    """One-sigma noise of a spectrum.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`

    Returns
    -------
    ndarray, shape (n,), or None
        In the unit of the flux; None without an uncertainty, or for an `~astropy.nddata.UnknownUncertainty`.

    Raises
    ------
    TypeError
        If the uncertainty is of another kind than a standard deviation, a variance or an inverse variance.
    """
    uncertainty = spectrum.uncertainty
    if uncertainty is None or isinstance(uncertainty, UnknownUncertainty):
        return None
    # Not by represent_as: it needs the uncertainty's parent, and `spectrum * 2` gives the uncertainty another one.
    powers = {StdDevUncertainty: 1, VarianceUncertainty: 2, InverseVariance: -2}
    kind = next((kind for kind in powers if isinstance(uncertainty, kind)), None)
    if kind is None:
        raise TypeError(
            "expected a StdDevUncertainty, VarianceUncertainty or InverseVariance, got "
            f"{type(uncertainty).__name__}: convert it to one of these"
        )
    unit = spectrum.flux.unit ** powers[kind]
    values = u.Quantity(float64(uncertainty.array), uncertainty.unit or unit).to_value(unit)
    with np.errstate(divide="ignore", invalid="ignore"):  # zero and negative (inverse) variances become bad pixels
        return values ** (1 / powers[kind])


def float64(values: Any) -> np.ndarray:
    """An owned, contiguous, native-endian copy: torch refuses negative strides and FITS byte order."""
    return np.array(values, dtype=np.float64, order="C")
