"""Spectra of muler: the attributes of its objects beyond a `Spectrum`, and one order of HPF reduced with it.

Objects are recognised by their attributes and headers, since muler's operations do not keep their class. muler is
imported inside the functions only, and the process's warning filters are restored afterwards: its own would silence
every `RuntimeWarning`.

Does not live here: units, masks and uncertainties (`spectra.reading`), reading whole files (`loaders`), header keywords
(`barycentric`).
"""

from __future__ import annotations

import logging
import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.nddata import InverseVariance, StdDevUncertainty, VarianceUncertainty
from astropy.time import Time
from specutils import Spectrum

from . import barycentric
from .identify import hpf_pipeline, instrument_of, open_fits

log = logging.getLogger(__name__)

HPF_ORDERS = 28
HPF_RESOLVING_POWER = 55_000.0

NOT_HPF = (
    "is not a reduced HPF spectrum: expected FITS with INSTRUME = HPF and the extensions Sci Flux, ..., Sci Error "
    "(Goldilocks) or Sci Variance (Slope)"
)

INSTRUMENTS = {
    # resolving power, noisy edges, pixels of the detector: as muler has them, for objects that have lost their class
    "HPF": (HPF_RESOLVING_POWER, (3, 2045), 2048),
    "IGRINS": (45_000.0, (450, 1950), 2048),
    "NIRSPEC": (20_000.0, (10, 1000), 1024),
}
MULER_CLASSES = {"HPFSpectrum": "HPF", "IGRINSSpectrum": "IGRINS", "KeckNIRSPECSpectrum": "NIRSPEC"}
MULER_PIPELINES = {"Goldilocks": "HPF", "HPF": "HPF", "NSDRP": "NIRSPEC"}
"""``meta["pipeline"]`` of muler to the instrument."""

SKY_FIBRE_SHIFT_KMS = 1.0
"""Difference [km/s] of the wavelengths of target and sky fibre above which one was shifted; 0.1 by calibration."""


@dataclass(frozen=True)
class OrderInfo:
    """Properties of one order from its object and header; None where these do not tell.

    Parameters
    ----------
    instrument : {"HPF", "IGRINS", "NIRSPEC"} or None
        Instrument that took the spectrum.
    order : int or None
        Number of the order: HPF's 0 to 27 from the blue, the grating's of IGRINS (98-125 in H, 71-96 in K) and NIRSPEC.
    target : str or None
        Name in the header.
    time : `~astropy.time.Time` or None
        Middle of the exposure [UTC].
    resolving_power : float or None
        λ/FWHM, of the instrument.
    trim : tuple of int
        First pixel to use and the one after the last, counted along the object's axis: inside the edges that muler
        calls noisy, and inside the first and last pixel that has light. Both 0 where no pixel has.
    barycentric_velocity : float or None
        [km/s] to add to a velocity measured on wavelengths as observed.
    barycentric_source : str
        The keywords it comes from, "given", or the reason why it is unknown.
    """

    instrument: str | None
    order: int | None
    target: str | None
    time: Time | None
    resolving_power: float | None
    trim: tuple[int, int]
    barycentric_velocity: float | None
    barycentric_source: str


def describe_order(spectrum: Spectrum, *, barycentric_velocity: u.Quantity | float | None = None) -> OrderInfo:
    """Instrument, order number, target, time, resolution, usable pixels and barycentric velocity of an order.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        An order as muler or our loaders read it, before or after muler's operations, or any other spectrum.
    barycentric_velocity : `~astropy.units.Quantity` or float, optional
        Barycentric radial velocity correction [km/s]. By default that of the header (``BRVCORR``), else one computed
        from its coordinates, time and telescope, without network. A value given here takes precedence; a difference
        from the header above 0.1 km/s is logged.

    Returns
    -------
    OrderInfo

    Notes
    -----
    muler's ``rv_shift`` moves the wavelengths and records nothing. Where the sky fibre, which it leaves behind, shows a
    shift, the barycentric velocity is unknown unless given.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from specutils import Spectrum
    >>> from specutils_blase.adapters.muler import describe_order
    >>> header = {"INSTRUME": "HPF", "OBJECT": "GJ 699"}
    >>> wavelength = np.linspace(8690.0, 8700.0, 50) * u.AA
    >>> order = Spectrum(flux=np.ones(50) * u.Jy, spectral_axis=wavelength, meta={"header": header})
    >>> describe_order(order).instrument, describe_order(order).resolving_power
    ('HPF', 55000.0)
    """
    header = _header(spectrum)
    instrument = _instrument(spectrum)
    velocity, source = barycentric.barycentric_velocity(header, instrument)
    shift = _shift_from_sky(spectrum)
    if velocity is not None and abs(shift) > SKY_FIBRE_SHIFT_KMS:
        velocity, source = None, f"unknown: wavelengths shifted by {shift:+.1f} km/s against the sky fibre"
    if barycentric_velocity is not None:
        from ..spectra.quantities import to_kms

        chosen = to_kms(barycentric_velocity, "barycentric_velocity")
        if velocity is not None and abs(chosen - velocity) > 0.1:
            log.warning("barycentric velocity %+.3f km/s given, %+.3f km/s by %s", chosen, velocity, source)
        velocity, source = chosen, "given"
    return OrderInfo(
        instrument=instrument,
        order=order_number(spectrum),
        target=None if header is None else barycentric.text(header, "OBJECT"),
        time=None if header is None or instrument is None else barycentric.mid_exposure(header, instrument),
        resolving_power=resolving_power(spectrum),
        trim=_trim(spectrum, instrument),
        barycentric_velocity=velocity,
        barycentric_source=source,
    )


def order_number(spectrum) -> int | None:
    """Number of an order on its detector, or None where the object does not tell."""
    number = _meta(spectrum).get("m")
    return int(number) if isinstance(number, int | np.integer) else None


def good_pixels(spectrum: Spectrum) -> np.ndarray:
    """Pixels to use: those with light, inside ``trim``.

    A pixel has light when its flux is finite, its uncertainty, where one is known, finite and positive, and its mask
    not set. muler's own mask is not enough: most of its operations lose it, or make NaN that it does not cover.

    Parameters
    ----------
    spectrum : `~specutils.Spectrum`
        One order.

    Returns
    -------
    ndarray of bool, (n,)
        Along the object's axis.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from specutils import Spectrum
    >>> from specutils_blase.adapters.muler import good_pixels
    >>> flux = np.array([1.0, np.nan, 0.9]) * u.Jy
    >>> good_pixels(Spectrum(flux=flux, spectral_axis=np.array([8690.0, 8690.1, 8690.2]) * u.AA))
    array([ True, False,  True])
    """
    start, stop = _trim(spectrum, _instrument(spectrum))
    good = _with_light(spectrum)
    good[:start] = False
    good[stop:] = False
    return good


def resolving_power(spectrum) -> float | None:
    """λ/FWHM: ``instrumental_resolution`` of a muler object, that of the instrument in the header, or None."""
    value = getattr(spectrum, "instrumental_resolution", None)
    if value is None:
        instrument = INSTRUMENTS.get(_instrument(spectrum) or "")
        value = None if instrument is None else instrument[0]
    return None if value is None else float(value)


def _meta(spectrum) -> Mapping:
    meta = getattr(spectrum, "meta", None)
    return meta if isinstance(meta, Mapping) else {}


def _header(spectrum) -> Mapping | fits.Header | None:
    header = _meta(spectrum).get("header")
    return header if isinstance(header, Mapping | fits.Header) else None


def _instrument(spectrum) -> str | None:
    """By the header, by the pipeline that muler notes, or by the class: any of them may have been lost."""
    header = _header(spectrum)
    header_text = "" if header is None else (barycentric.text(header, "INSTRUME") or "").upper()
    for name in INSTRUMENTS:
        if header_text.startswith(name):
            return name
    if header_text:
        return None
    pipeline = MULER_PIPELINES.get(str(_meta(spectrum).get("pipeline")))
    return pipeline or next(
        (MULER_CLASSES[c.__name__] for c in type(spectrum).__mro__ if c.__name__ in MULER_CLASSES), None
    )


def _with_light(spectrum: Spectrum) -> np.ndarray:
    flux = np.asarray(spectrum.flux.value)
    if flux.ndim != 1:
        raise ValueError(f"expected one order, got flux of shape {flux.shape}: describe the orders one by one")
    good = np.isfinite(flux)
    if isinstance(spectrum.uncertainty, StdDevUncertainty | VarianceUncertainty | InverseVariance):
        noise = np.asarray(spectrum.uncertainty.array)
        good &= np.isfinite(noise) & (noise > 0)
    if spectrum.mask is not None:
        good &= ~np.asarray(spectrum.mask).astype(bool)
    return good


def _trim(spectrum: Spectrum, instrument: str | None) -> tuple[int, int]:
    good = _with_light(spectrum)
    number = len(good)
    start, stop = 0, number
    edges, native = INSTRUMENTS[instrument][1:] if instrument in INSTRUMENTS else (None, number)
    edges = getattr(spectrum, "noisy_edges", None) or edges
    # The edges count detector pixels. They say nothing of an order that has been trimmed, and little of one that has
    # lost many pixels; a few, as those without light that `remove_nans` drops, make no difference.
    if edges is not None and number > max(edges[1] - edges[0] - 1, native - 64):
        start, stop = edges[0] + 1, edges[1]  # muler keeps what lies strictly between
        if spectrum.spectral_axis[0] > spectrum.spectral_axis[-1]:  # turned round since
            start, stop = number - stop, number - start
    light = np.flatnonzero(good[start:stop])
    return (start + int(light[0]), start + int(light[-1]) + 1) if len(light) else (0, 0)


def _shift_from_sky(spectrum: Spectrum) -> float:
    """Velocity [km/s] by which the wavelengths exceed those of the sky fibre; 0 where there is none to compare with."""
    axis, sky = spectrum.spectral_axis, getattr(_meta(spectrum).get("sky"), "spectral_axis", None)
    if sky is None or len(sky) != len(axis) or sky.unit != axis.unit or not axis.unit.is_equivalent(u.AA):
        return 0.0
    return 299792.458 * float(np.median(axis.value / sky.value - 1.0))


def is_hpf(path) -> bool:
    """Whether a file is a reduced spectrum of HPF: by INSTRUME and its extensions, whatever it is called.

    Parameters
    ----------
    path : path-like
        A file. Anything that is not FITS is not HPF's.

    Raises
    ------
    OSError
        If there is no such file, or it may not be read.
    """
    return instrument_of(path) == "HPF"


def load_hpf(path, order: int) -> Spectrum:
    """One order of an HPF file, reduced as astronomers do with muler.

    ``remove_nans, sky_subtract, deblaze, normalize``, each with muler's defaults. Wavelengths are vacuum, as observed:
    nothing is shifted to the barycentre.

    Parameters
    ----------
    path : path-like
        File of the Goldilocks pipeline, or of the instrument team's ("Slope").
    order : int
        0 (8079-8184 Å) to 27 (12625-12786 Å).

    Returns
    -------
    muler.hpf.HPFSpectrum
        Flux in units of its median; ``instrumental_resolution`` and ``meta["m"]``, ``meta["header"]`` are kept.

    Raises
    ------
    ValueError
        If the file is not HPF's, HPF has no such order, or no pixel of it is finite.
    OSError
        If there is no such file.
    """
    try:
        order = operator.index(order)
    except TypeError:
        raise ValueError(f"order must be a whole number, got {order!r}") from None
    if not 0 <= order < HPF_ORDERS:
        raise ValueError(f"order must lie between 0 and {HPF_ORDERS - 1} for HPF, got {order}")
    (reduced,) = _reduced_hpf(path, [order])
    if not np.isfinite(reduced.flux.value).any():
        raise ValueError(f"order {order} of {path} has no finite pixel")
    return reduced


def load_hpf_orders(path, orders: Iterable[int] = range(HPF_ORDERS)) -> list[Spectrum]:
    """Orders of an HPF file, each reduced as `load_hpf` does; one without light stays as it is in the file.

    Parameters
    ----------
    path : path-like
        File of the Goldilocks pipeline, or of the instrument team's ("Slope").
    orders : iterable of int
        Which of the 28; all by default.

    Raises
    ------
    ValueError
        If the file is not HPF's.
    OSError
        If there is no such file.
    """
    return _reduced_hpf(path, orders)


def _reduced_hpf(path, orders) -> list[Spectrum]:
    if not is_hpf(path):
        raise ValueError(f"{path} {NOT_HPF}")
    spectra = []
    with quiet_muler(), open_fits(path, "HPF") as units:
        from muler.hpf import HPFSpectrum

        for order in orders:
            # Handed over open: muler would never close the file, insists on text for a path, and takes errors for
            # variances, or the reverse, where the file's name or folder has the wrong word in it.
            raw = reduced = HPFSpectrum(file=hpf_pipeline(units), order=order, cached_hdus=[units])
            if np.isfinite(raw.flux.value).any():
                reduced = raw.remove_nans().sky_subtract().deblaze().normalize()
            if not hasattr(reduced, "instrumental_resolution"):  # operators of specutils may return a class without it
                reduced.instrumental_resolution = resolving_power(raw)
            spectra.append(reduced)
    return spectra


@contextmanager
def quiet_muler() -> Iterator[None]:
    """A block in which muler may be imported and used: its own warnings are silent, and the filters come back.

    Every muler object warns of specutils' deprecated ``Spectrum1D``, and division by the blaze of the NaN there. The
    level of the logger called "logger", which ``muler.igrins`` sets, comes back too.
    """
    logger = logging.getLogger("logger")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.setLevel(level)
