"""The rim: `specutils.Spectrum` to `~specutils_blase.spectra.data.SpectralData` and back; quantities to numbers.

With `flux`, the only code of the package that knows units, masks, uncertainty types, air and vacuum. Inside the
package, wavelengths are vacuum Å, velocities km/s, noise is one sigma in the unit of the flux, and pixels ascend.

Does not live here: attributes of instruments' own classes (`adapters`), tables of lines (`ledger`).
"""

from __future__ import annotations

import numpy as np
from specutils import Spectrum

from .data import SpectralData
from .flux import read_flux, read_sigma
from .frame import SpectrumFrame, copy_axis, plain, spectrum_on
from .quantities import to_kms, to_number, to_resolving_power, to_teff
from .wavelengths import air_wavelength, ascending, says_air, true_edges, vacuum_wavelength

__all__ = [
    "SpectrumFrame",
    "air_wavelength",
    "read_spectrum",
    "spectrum_on",
    "to_kms",
    "to_number",
    "to_resolving_power",
    "to_teff",
    "vacuum_wavelength",
]


def read_spectrum(spectrum: Spectrum, *, medium: str = "vacuum") -> tuple[SpectralData, SpectrumFrame]:
    """Data tensors of a spectrum, and the frame that leads back to its axis.

    Pixels whose flux is not finite, whose uncertainty is not finite and positive, or whose mask is set are kept but
    marked not good. The axis stays as observed: `radial_velocity` and `redshift` of the spectrum shift nothing. True
    bin edges are used when the spectrum was built from them and still has them (most operations of specutils lose
    them), otherwise `~specutils_blase.spectra.data.pixel_edges`.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        One-dimensional, any spectral unit, ascending or descending. It is not changed.
    medium : {"vacuum", "air"}
        The medium of its wavelengths, which a plain array does not tell.

    Returns
    -------
    data : SpectralData
        float64, ascending, vacuum Å, sharing no memory with `spectrum`.
    frame : SpectrumFrame
        Axis, order, unit and meta, with which results return to the axis of `spectrum`.

    Raises
    ------
    TypeError
        If `spectrum` is not a `~specutils.Spectrum`, or its flux is not real numbers.
    ValueError
        If nothing can be fitted: see the message. `~astropy.units.UnitsError` (one of them) for the units of the axis,
        or a flux in magnitudes, dex or dB.
    """
    if not isinstance(spectrum, Spectrum):
        many = isinstance(spectrum, (list, tuple))
        todo = "read its members one by one" if many else "wrap it, Spectrum(flux=..., spectral_axis=...)"
        raise TypeError(f"expected a specutils.Spectrum, got {type(spectrum).__name__}: {todo}")
    if medium == "vacuum" and says_air(spectrum):
        raise ValueError(
            "expected vacuum wavelengths, got a spectrum whose WCS (CTYPE AWAV) or meta['medium'] says air: pass "
            "medium='air', or remove the label if it is wrong"
        )
    flux = read_flux(spectrum)
    wavelength = vacuum_wavelength(spectrum.spectral_axis, medium).value
    order = ascending(wavelength)
    sigma = read_sigma(spectrum)
    edges = true_edges(spectrum.spectral_axis, medium)

    good = np.isfinite(flux)
    if not good.any():
        raise ValueError(f"expected a spectrum, got {len(flux)} pixels and no finite flux among them: check the file")
    if spectrum.mask is not None:
        good &= ~np.asarray(spectrum.mask).astype(bool)
    if not good.any():
        raise ValueError("expected unmasked pixels, got a mask over all finite flux: True means bad, is it inverted?")
    if sigma is not None and not np.any(good & np.isfinite(sigma) & (sigma > 0)):
        raise ValueError(
            "expected positive uncertainties, got zero, negative or non-finite ones in every usable pixel: correct "
            "them, or set uncertainty=None to fit with unit weights"
        )
    data = SpectralData.from_arrays(  # indexing by `order` makes contiguous copies of native byte order
        wavelength[order],
        flux[order],
        sigma=None if sigma is None else sigma[order],
        good=good[order],
        edges=None if edges is None else edges[order],
    )
    axis = copy_axis(spectrum.spectral_axis)
    return data, SpectrumFrame(axis, order, spectrum.flux.unit, medium, plain(spectrum.meta or {}))
