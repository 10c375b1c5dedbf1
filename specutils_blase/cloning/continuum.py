"""Gaps and continuum of a template.

Does not live here: units and masks (`spectra.reading`), lines (`line_finding`).
"""

from __future__ import annotations

import astropy.units as u
import numpy as np
from astropy.modeling.models import BlackBody

from ..physics.scatter import robust_sigma
from ..spectra.quantities import is_whole, to_teff

SHORTEST_GAP = 3
"""Fewest adjacent pixels of zero flux that may be a gap."""

GAP_FLUX = 0.01
"""Largest flux, in units of the upper envelope, of a run of equal values that may be a gap."""

GAP_STEP = 0.1
"""Least flux beside a gap, in units of the upper envelope.

The flux of a black line falls smoothly: its last pixel before an exact zero is nearly black itself.
"""


def gaps(flux: np.ndarray, good: np.ndarray) -> list[tuple[int, int]]:
    """Runs of zeros, or of one value near zero, without data: between detectors, or between orders that do not meet.

    A run is a gap if the flux steps down to it on either side. Beside a saturated band, the flux falls smoothly.

    Parameters
    ----------
    flux, good : ndarray, (n,)
        Flux in order of wavelength, and whether a pixel counts.

    Returns
    -------
    list of (int, int)
        First pixel of each, and the pixel after its last.
    """
    alike = np.diff(flux) == 0.0
    flat = np.concatenate([[False], alike]) | np.concatenate([alike, [False]])
    zero = ((flux == 0.0) | flat) & good
    if not zero.any() or zero.all():
        return []
    top = float(np.quantile(flux[good & (flux != 0.0)], 0.9)) if bool((good & (flux != 0.0)).any()) else 0.0
    zero &= np.abs(flux) <= GAP_FLUX * top
    step = GAP_STEP * top
    bounds = np.flatnonzero(np.diff(np.concatenate([[False], zero, [False]]).astype(np.int8)))
    runs = []
    for first, after in bounds.reshape(-1, 2).tolist():
        beside = [k for k in (first - 1, after) if 0 <= k < flux.size and good[k]]
        if after - first >= SHORTEST_GAP and any(flux[k] > step for k in beside):
            runs.append((first, after))
    return runs


def template_continuum(wavelength, flux, good, continuum, teff) -> np.ndarray:
    """Continuum of a template: black body × polynomial through its upper envelope.

    Parameters
    ----------
    wavelength, flux, good : ndarray, (n,)
        Vacuum Å, flux, and whether a pixel counts.
    continuum : "none" or int
        "none": the template is normalised already. A number: degree of the polynomial.
    teff : Quantity or float, optional
        Temperature [K] of the black body.

    Returns
    -------
    ndarray, (n,)
        In the unit of the flux.

    Raises
    ------
    ValueError
        If the template is not normalised where it should be, or the polynomial is not positive.
    """
    level = np.ones_like(wavelength)
    if teff is not None:
        level = BlackBody(to_teff(teff) * u.K, scale=1.0 * u.erg / (u.s * u.cm**2 * u.AA * u.sr))(
            wavelength * u.AA
        ).value
        level = level / np.median(level)
    if continuum == "none":
        top = float(np.quantile(flux[good] / level[good], 0.98))
        if not 0.5 < top < 2.0:
            raise ValueError(
                f'continuum="none" says that the template is normalised, but its upper envelope is at {top:.3g}: '
                "divide it out first, or give continuum=<polynomial degree>"
            )
        return level
    if not is_whole(continuum) or continuum < 0:
        raise ValueError(f'continuum must be "none" or a polynomial degree (0, 1, 2, ...), got {continuum!r}')
    x = np.interp(wavelength, [wavelength[0], wavelength[-1]], [-1.0, 1.0])
    ratio = flux / level
    use = good & (ratio > 0)
    # Medians and quantiles in bins first: the envelope then weighs wavelengths, not pixels, and deep lines drop out.
    for _ in range(12):
        basis = np.polynomial.legendre.legvander(x[use], continuum)
        coefficient = np.linalg.lstsq(basis, ratio[use], rcond=None)[0]
        fitted = np.polynomial.legendre.legval(x, coefficient)
        residual = ratio / fitted - 1.0
        above = residual[use & (residual > 0)]  # lines lie below: only these tell the noise
        scatter = robust_sigma(above) if above.size else 0.0
        kept = good & (ratio > 0) & (residual > -max(scatter, 1e-3)) & (residual < 4.0 * max(scatter, 1e-3))
        if kept.sum() < 10 * (continuum + 1) or np.array_equal(kept, use):
            break
        use = kept
    if not (fitted > 0).all():
        raise ValueError(
            f"a polynomial of degree {continuum} through the template's envelope is not positive: lower it"
        )
    return level * fitted
