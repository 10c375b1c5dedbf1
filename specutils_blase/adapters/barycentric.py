"""Time and place of an observation, and its barycentric velocity, from the header of the instrument.

Offline: no site lists, no Earth-orientation tables are fetched. Does not live here: finding the header (`muler`).
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import TypeAlias

import astropy.units as u
from astropy.coordinates import FK5, Angle, EarthLocation, SkyCoord
from astropy.io import fits
from astropy.time import Time
from astropy.utils.iers import conf as iers_conf
from erfa import ErfaWarning

SITES = {
    "HET": (-104.014722, 30.681444, 2025.0),
    "McDonald": (-104.0217, 30.6717, 2075.0),
    "LDT": (-111.4222, 34.7444, 2361.0),
    "Gemini South": (-70.7367, -30.2407, 2722.0),
    "Gemini North": (-155.4690, 19.8238, 4213.0),
    "Keck": (-155.4783, 19.8283, 4160.0),
}
"""Longitude [deg, east positive], latitude [deg], height [m]; an error of a kilometre is 0.1 m/s.

`EarthLocation.of_site` would use the network."""

SITE_UNITS = (u.deg, u.deg, u.m)

IGRINS_SITES = (
    ("gemini.*south", "Gemini South"),
    ("gemini.*north", "Gemini North"),
    ("discovery|dct|ldt|lowell", "LDT"),
    ("smith|mcdonald|2\\.7", "McDonald"),
)
"""Pattern in TELESCOP, or else OBSERVAT, to the site of IGRINS at the time."""

HEADER_KEYWORDS = (
    *("TELESCOP", "OBSERVAT", "DATE-OBS", "MJD-OBS", "UTC", "UT", "EXPTIME", "ITIME", "COADDS"),
    *("QRA", "QDEC", "QEQUINOX", "QEPOCH", "QPMRA", "QPMDEC"),
    *("OBJRA", "OBJDEC", "OBJEPOCH", "TELRA", "TELDEC", "TELEPOCH", "RA", "DEC", "EQUINOX"),
)
"""Keywords from which a barycentric velocity is computed."""

POINTING_LIMIT_DEG = 0.2
"""Distance of target and telescope above which one of their coordinates is wrong; below it, 0.1 km/s at most."""

Header: TypeAlias = Mapping | fits.Header


def number(header: Header, key: str) -> float | None:
    """A finite number from a header, which may hold it as text, as nothing, or not at all; else None."""
    try:
        value = float(header[key])
    except (KeyError, TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def text(header: Header, key: str) -> str | None:
    """A text that is not empty, from a header; else None."""
    value = str(header.get(key) or "").strip()
    return value or None


def site_of(header: Header, instrument: str) -> str | None:
    """Key of `SITES` of an observation; None for IGRINS, which travels, where the header does not tell."""
    fixed = {"HPF": "HET", "NIRSPEC": "Keck"}.get(instrument)
    if fixed is not None:
        return fixed
    for key in ("TELESCOP", "OBSERVAT"):
        header_text = (text(header, key) or "").lower()
        for pattern, site in IGRINS_SITES:
            if re.search(pattern, header_text):
                return site
    return None


def mid_exposure(header: Header, instrument: str) -> Time | None:
    """The middle of the exposure [UTC]: its start and half its length; None where the header has no start.

    DATE-END is not used: those of IGRINS may lie before the start. A spectrum combined from several exposures has the
    time of the first; an hour is 0.12 km/s at most.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ErfaWarning)  # "dubious year" of dates whose leap seconds are not known yet
        start = _start(header, instrument)
        if start is None:
            return None
        length = number(header, "EXPTIME" if instrument == "IGRINS" else "ITIME") or 0.0
        if instrument == "NIRSPEC":
            length *= number(header, "COADDS") or 1.0
        return Time(start + 0.5 * length * u.s, format="isot")


def _start(header: Header, instrument: str) -> Time | None:
    mjd = number(header, "MJD-OBS")
    if mjd and instrument != "HPF":
        return Time(mjd, format="mjd", scale="utc")
    # Older headers of IGRINS put a hyphen between date and time; those of NIRSPEC have the time in a keyword apart.
    date = re.fullmatch(r"(\d{4}-\d\d-\d\d)(?:[T -](\d\d:\d\d:\d\d(?:\.\d+)?))?", text(header, "DATE-OBS") or "")
    clock = None if date is None else date[2] or text(header, "UTC") or text(header, "UT")
    if date is None or clock is None:
        return None
    try:
        return Time(f"{date[1]}T{clock}", format="isot", scale="utc")
    except ValueError:
        return None


def target_coordinates(header: Header, instrument: str, time: Time) -> tuple[SkyCoord | None, str]:
    """Where the target was at the time of observation, and the keywords that say so, or why it is unknown.

    HPF's RA and DEC are the telescope's, arcminutes off; QRA and QDEC are the target's, with proper motion
    [mas/yr, that in right ascension times cos δ] since QEPOCH. IGRINS' OBJRA and OBJDEC are in degrees. NIRSPEC's RA
    and DEC are numbers of degrees until 2018, text in hours and degrees since.
    """
    if instrument == "HPF":
        coordinates = _coordinates(header, "QRA", "QDEC", "QEQUINOX")
        motion = [number(header, key) or 0.0 for key in ("QPMRA", "QPMDEC")]
        if coordinates is None:
            return None, "no QRA, QDEC in the header"
        years = time.jyear - (number(header, "QEPOCH") or 2000.0)
        east, north = (rate * years * u.mas for rate in motion)
        return coordinates.spherical_offsets_by(east, north), "QRA, QDEC"
    if instrument == "NIRSPEC":
        coordinates = _coordinates(header, "RA", "DEC", "EQUINOX")
        return coordinates, "no RA, DEC in the header" if coordinates is None else "RA, DEC"
    target = _coordinates(header, "OBJRA", "OBJDEC", "OBJEPOCH") or _coordinates(header, "RA", "DEC", "EQUINOX")
    pointing = _coordinates(header, "TELRA", "TELDEC", "TELEPOCH", numbers=False)  # some are whole degrees
    if target is None and pointing is None:
        return None, "no coordinates of the target in the header"
    if target is not None and pointing is not None:
        apart = target.separation(pointing).deg
        if apart > POINTING_LIMIT_DEG:
            return None, f"OBJRA, OBJDEC and TELRA, TELDEC are {apart:.1f} degrees apart"
    return (target, "OBJRA, OBJDEC") if target is not None else (pointing, "TELRA, TELDEC")


def _coordinates(header: Header, ra: str, dec: str, equinox: str, numbers: bool = True) -> SkyCoord | None:
    """Numbers are degrees, text with colons hours and degrees; None for anything else, in one or both."""
    angles = []
    for key, unit in ((ra, u.hourangle), (dec, u.deg)):
        value, angle_text = number(header, key), text(header, key) or ""
        if numbers and value is not None:
            angles.append(value * u.deg)
        elif re.fullmatch(r"[+-]?\d{1,3}:\d{1,2}:\d{1,2}(\.\d*)?", angle_text):
            angles.append(Angle(angle_text, unit))
    if len(angles) < 2 or not (0 <= angles[0].to_value(u.deg) < 360 and abs(angles[1].to_value(u.deg)) <= 90):
        return None
    year = number(header, equinox) or 2000.0
    frame = FK5(equinox=Time(year, format="jyear")) if year != 2000.0 else "icrs"
    return SkyCoord(*angles, frame=frame).icrs


def barycentric_velocity(header: Header | None, instrument: str | None) -> tuple[float | None, str]:
    """Barycentric radial velocity correction and where it comes from.

    The velocity to add to a measured one (the product of the two over c, a few m/s, apart). ``BRVCORR`` [m/s] of the
    header where it is there, otherwise astropy's for the target's coordinates at mid-exposure.

    Parameters
    ----------
    header : mapping or `~astropy.io.fits.Header` or None
        Primary header of the observation.
    instrument : str or None
        "HPF", "IGRINS" or "NIRSPEC": whose keywords they are.

    Returns
    -------
    velocity : float or None
        [km/s]; None where it cannot be known.
    source : str
        The keywords used, or the reason why it is unknown.
    """
    if header is None:
        return None, "unknown: no header"
    stated = number(header, "BRVCORR")
    if stated is not None:
        return stated / 1000.0, "header BRVCORR"
    return computed_velocity(header, instrument)


def computed_velocity(header: Header, instrument: str | None) -> tuple[float | None, str]:
    """Barycentric velocity by astropy from coordinates, time and site; BRVCORR is not read."""
    return _computed(tuple((key, header[key]) for key in HEADER_KEYWORDS if key in header), instrument)


@lru_cache(maxsize=64)  # the orders of a spectrum share it
def _computed(cards: tuple[tuple[str, object], ...], instrument: str | None) -> tuple[float | None, str]:
    header = dict(cards)
    if instrument not in ("HPF", "IGRINS", "NIRSPEC"):
        return None, "unknown: not a header of HPF, IGRINS or NIRSPEC"
    site = site_of(header, instrument)
    if site is None:
        return None, "unknown: no telescope that IGRINS was at in the header"
    time = mid_exposure(header, instrument)
    if time is None:
        return None, "unknown: no time of observation in the header"
    target, keywords = target_coordinates(header, instrument, time)
    if target is None:
        return None, f"unknown: {keywords}"
    location = EarthLocation.from_geodetic(*(value * unit for value, unit in zip(SITES[site], SITE_UNITS, strict=True)))
    with (
        warnings.catch_warnings(),
        iers_conf.set_temp("auto_download", False),
        # For dates after the end of its tables astropy would raise; 1 s of the Earth's rotation is 0.03 m/s.
        iers_conf.set_temp("auto_max_age", None),
        iers_conf.set_temp("iers_degraded_accuracy", "ignore"),
    ):
        warnings.simplefilter("ignore")  # of the same, and of dates whose leap seconds are not known yet
        velocity = target.radial_velocity_correction(obstime=time, location=location)
        return float(velocity.to_value(u.km / u.s)), f"{keywords} at {time.isot[:19]}, {site}"
