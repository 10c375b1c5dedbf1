"""Where the numbers of a result come from: what a template says of itself, and a digest of its arrays.

A digest says whether two files started from the same numbers; words alone do not. Does not live here: what the
components of a fit may be (`components`), files (`asdf`).
"""

from __future__ import annotations

import hashlib

import numpy as np
from specutils import Spectrum

from .lines import LineEmulator

WORDS = ("source", "medium", "citation")
"""Entries of a template's meta that are kept, as text."""


def digest(*arrays) -> str:
    """SHA-256 of arrays, one after the other, in little-endian float64."""
    result = hashlib.sha256()
    for values in arrays:
        result.update(np.ascontiguousarray(values, dtype="<f8").tobytes())
    return result.hexdigest()


def of_template(template: Spectrum) -> dict[str, str | float]:
    """What a template says of itself, and the digest of its wavelengths and then its flux, in their own units.

    Returns
    -------
    dict
        ``source``, ``medium``, ``citation`` (text), ``resolving_power`` (number) where its meta has them; ``sha256``.
    """
    meta = template.meta or {}
    record = {name: str(meta[name]) for name in WORDS if meta.get(name) is not None}
    if meta.get("resolving_power") is not None:
        record["resolving_power"] = float(meta["resolving_power"])
    return {**record, "sha256": digest(template.spectral_axis.value, template.flux.value)}


def of_lines(emulator: LineEmulator, source: str) -> dict[str, str]:
    """The same of lines that came as such: `source`, and the digest of shifted centres, areas, σ, γ and signs."""
    columns = (emulator.shifted_center, emulator.area, emulator.sigma, emulator.gamma, emulator.sign)
    return {
        "source": source,
        "medium": "vacuum",
        "sha256": digest(*(column.detach().cpu().numpy() for column in columns)),
    }
