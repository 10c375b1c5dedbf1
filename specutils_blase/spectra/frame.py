"""The way back from tensors to spectra of a user: axis, unit, meta.

Does not live here: the way in (`spectra.reading`).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from astropy import units as u
from astropy.io import fits
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum
from torch import Tensor

from .quantities import as_array


def plain(value: Any) -> Any:
    """Copy of a meta entry as numbers, text, arrays, lists, dicts, which every file format holds; else None."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, np.ndarray):  # quantities too
        return None if value.dtype.kind == "O" else value.copy()
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, fits.Header):  # no Mapping; COMMENT and HISTORY occur many times and come joined
        value = {key: str(value[key]) if key in ("COMMENT", "HISTORY") else value[key] for key in value if key}
    if isinstance(value, Mapping):
        return {str(key): kept for key, item in value.items() if (kept := plain(item)) is not None}
    return None  # WCS objects, muler's sky spectrum


@dataclass(frozen=True, eq=False)
class SpectrumFrame:
    """The way back from data tensors to a spectrum on the axis it was read from.

    Parameters
    ----------
    axis : `~astropy.units.Quantity`, shape (n,)
        The original spectral axis: its unit, direction and medium.
    order : ndarray, shape (n,)
        ``order[i]`` is the index on `axis` of data pixel i (ascending vacuum wavelength).
    flux_unit : `~astropy.units.UnitBase`
        Unit of the flux.
    medium : {"vacuum", "air"}
        Medium of `axis`.
    meta : dict
        Plain copy of the spectrum's meta: numbers, text, arrays, lists, dicts; FITS headers as dicts.
    """

    axis: u.Quantity
    order: np.ndarray
    flux_unit: u.UnitBase
    medium: str
    meta: dict[str, Any]

    def spectrum(
        self,
        flux: Tensor | np.ndarray | u.Quantity,
        uncertainty: Tensor | np.ndarray | u.Quantity | None = None,
        mask: Tensor | np.ndarray | None = None,
        meta: dict[str, Any] | None = None,
        *,
        unit: u.UnitBase | str | None = None,
    ) -> Spectrum:
        """A plain `~specutils.Spectrum` on the original axis, in its order and unit.

        Parameters
        ----------
        flux : Tensor or array, shape (n,)
            Values on the data pixels, ascending in vacuum wavelength.
        uncertainty : Tensor or array, shape (n,), optional
            1-sigma errors in the unit of `flux`.
        mask : Tensor or array, shape (n,), optional
            True = bad, for example ``~data.good``.
        meta : dict, optional
            Instead of the meta of the spectrum read; ``meta["medium"]`` is added to either.
        unit : unit, optional
            Unit of `flux`, e.g. ``""`` for a transmission; by default that of the spectrum read, if `flux` has none.

        Returns
        -------
        `~specutils.Spectrum`
            On a copy of `axis`.

        Raises
        ------
        ValueError
            If an array has not the shape of the data.
        """
        unit = self.flux_unit if unit is None else u.Unit(unit)
        values = self._back(flux, "flux")
        values = values if isinstance(values, u.Quantity) else values * unit
        options = {}
        if uncertainty is not None:
            errors = self._back(uncertainty, "uncertainty")
            errors = errors.to(values.unit) if isinstance(errors, u.Quantity) else errors * values.unit
            options["uncertainty"] = StdDevUncertainty(errors)
        if mask is not None:  # left out otherwise: specutils then masks NaN itself
            options["mask"] = self._back(mask, "mask").astype(bool)
        meta = copy.deepcopy(self.meta if meta is None else meta) | {"medium": self.medium}
        return Spectrum(flux=values, spectral_axis=copy_axis(self.axis), meta=meta, **options)

    def _back(self, values: Any, name: str) -> Any:
        values = as_array(values)
        if values.shape != self.order.shape:
            expected = f"expected {name} on the {len(self.order)} pixels of the spectrum that was read"
            raise ValueError(f"{expected}, got shape {values.shape}")
        back = np.empty_like(values)  # keeps the unit of a Quantity
        back[self.order] = values
        return back


def spectrum_on(
    wavelength: Tensor | np.ndarray,
    flux: Tensor | np.ndarray,
    flux_unit: u.UnitBase | str = "",
    meta: dict[str, Any] | None = None,
    uncertainty: Tensor | np.ndarray | None = None,
) -> Spectrum:
    """A plain `~specutils.Spectrum` on given vacuum wavelengths.

    Parameters
    ----------
    wavelength : Tensor or ndarray, shape (n,)
        Vacuum Å.
    flux : Tensor or ndarray, shape (n,)
    flux_unit : unit
        Dimensionless by default.
    meta : dict, optional
        Meta of the spectrum; ``meta["medium"]`` is added.
    uncertainty : Tensor or ndarray, shape (n,), optional
        1-sigma errors in `flux_unit`.

    Returns
    -------
    `~specutils.Spectrum`
    """
    axis = u.Quantity(as_array(wavelength), u.AA)
    return SpectrumFrame(axis, np.arange(len(axis)), u.Unit(flux_unit), "vacuum", meta or {}).spectrum(
        flux, uncertainty
    )


def spectrum_state(spectrum: Spectrum) -> dict[str, Any]:
    """Axis, flux, uncertainty, mask and meta of a spectrum, which can be pickled where its WCS cannot.

    specutils makes a class of its own for the WCS of every spectrum that is given by its wavelengths.
    """
    uncertainty = spectrum.uncertainty
    return {
        "spectral_axis": copy_axis(spectrum.spectral_axis),
        "flux": spectrum.flux.copy(),
        "uncertainty": None if uncertainty is None else (type(uncertainty), uncertainty.array, uncertainty.unit),
        "mask": spectrum.mask,
        "meta": dict(spectrum.meta or {}),
    }


def spectrum_of_state(state: dict[str, Any]) -> Spectrum:
    """The spectrum of `spectrum_state`."""
    options = {} if state["mask"] is None else {"mask": state["mask"]}
    if state["uncertainty"] is not None:
        kind, values, unit = state["uncertainty"]
        options["uncertainty"] = kind(values, unit=unit)
    return Spectrum(flux=state["flux"], spectral_axis=state["spectral_axis"], meta=state["meta"], **options)


def copy_axis(axis: u.Quantity) -> u.Quantity:
    """A copy that, unlike ``axis.copy()``, still has the bin edges it was built from."""
    new = axis.copy()
    if getattr(axis, "_bin_edges", None) is not None:
        new._bin_edges = axis._bin_edges.copy()
    return new
