"""Provenance of a result: the descriptions of its templates and the digests of their arrays.

Equal digests mean that two files started from the same numbers. Does not live here: the components that a fit takes
(`fitting.inputs`), files (`asdf`).
"""

from __future__ import annotations

import hashlib

import numpy as np
from specutils import Spectrum

from ..model.emulator import LineEmulator

KEPT_META = ("source", "medium", "citation")
"""Entries of a template's meta that are kept, as text."""


def digest(*arrays) -> str:
    """SHA-256 of arrays, one after the other, in little-endian float64."""
    result = hashlib.sha256()
    for values in arrays:
        result.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
    return result.hexdigest()


PIXELS_KEPT = 16
"""Pixels whose digests identify an order: a quarter of its pixels holds one of them in 99 of 100 cases."""


def pixel_digests(wavelength, flux, most: int | None = PIXELS_KEPT) -> list[str]:
    """Digests of the pixels of an order, the smallest first; the digests of a part are among those of the whole.

    Parameters
    ----------
    wavelength, flux : array_like, (n,)
    most : int or None
        Number of digests at most; None for all.

    Returns
    -------
    list of str
        64-bit hashes in hexadecimal.

    Examples
    --------
    >>> import numpy as np
    >>> from specutils_blase.spectra.provenance import pixel_digests
    >>> wavelength, flux = np.linspace(5000.0, 5010.0, 2000), np.random.default_rng(1).normal(1.0, 0.01, 2000)
    >>> kept = pixel_digests(wavelength, flux)
    >>> len(kept), len(set(kept) & set(pixel_digests(wavelength[300:900], flux[300:900], None)))
    (16, 5)
    """
    bits = [np.ascontiguousarray(values, dtype="<f8").view("<u8") for values in (wavelength, flux)]
    mixed = bits[0] * np.uint64(0x9E3779B97F4A7C15) ^ bits[1]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):  # Steele et al. 2014, splitmix64
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    mixed ^= mixed >> np.uint64(31)
    return [f"{value:016x}" for value in np.sort(mixed)[:most].tolist()]


def of_template(template: Spectrum) -> dict[str, str | float]:
    """Description of a template, and the digest of its wavelengths and then its flux, in their own units.

    Parameters
    ----------
    template : `~specutils.Spectrum`

    Returns
    -------
    dict
        ``source``, ``medium``, ``citation`` (text), ``resolving_power`` (number) where its meta has them; ``sha256``.
    """
    meta = template.meta or {}
    record: dict[str, str | float] = {name: str(meta[name]) for name in KEPT_META if meta.get(name) is not None}
    if meta.get("resolving_power") is not None:
        record["resolving_power"] = float(meta["resolving_power"])
    return {**record, "sha256": digest(template.spectral_axis.value, template.flux.value)}


def of_lines(emulator: LineEmulator, source: str) -> dict[str, str]:
    """Description of given lines: `source`, and the digest of shifted centres, areas, σ, γ and signs."""
    columns = (emulator.shifted_center, emulator.area, emulator.sigma, emulator.gamma, emulator.sign)
    return {
        "source": source,
        "medium": "vacuum",
        "sha256": digest(*(column.detach().cpu().numpy() for column in columns)),
    }
