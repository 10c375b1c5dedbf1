"""Many orders at once with known truth: velocities of star and rotation, and what each order adds to them.

Star and sky are the clones of Arcturus and TelFit over the whole band of HPF, every line off as the priors expect; the
fit knows the resolving power and neither velocity.
"""

from __future__ import annotations

import warnings
from functools import cache

import numpy as np
from astropy import units as u
from cases import CONTINUUM, LIMB_DARKENING, RESOLVING_POWER, RV, fitted, true_lines, velocities

import specutils_blase as sb
from specutils_blase import simulate, templates

VSINI = 8.3
FOUR = (8, 14, 17, 24)
"""Orders with more and with less water in front of them."""

BESIDE = 0.003
"""Part of their wavelength up to which lines beside an order are observed with it: 25 to 40 Å."""


@cache
def clones():
    """The star's and the sky's clone over the whole band."""
    star = sb.clone(templates.arcturus(), progress=False)
    sky = sb.clone(templates.telfit_hpf(), resolving_power=RESOLVING_POWER, progress=False)
    return star, sky


def night(snr: float, orders, seed: int) -> list:
    """The orders of one night, by brute force."""
    star, sky = (true_lines(clone, 2 * seed + k, "prior") for k, clone in enumerate(clones(), 1))
    options = {
        "rv": RV, "vsini": VSINI, "resolving_power": RESOLVING_POWER, "limb_darkening": LIMB_DARKENING, "snr": snr,
        "continuum": CONTINUUM,
    }  # fmt: skip
    spectra = []
    for k in orders:
        pixels = simulate.hpf_wavelengths(k)
        middle = 0.5 * (pixels[0] + pixels[-1])
        near = (
            lines[np.abs(lines["center"].to_value(u.AA) / middle - 1.0) < 0.5 * np.ptp(pixels) / middle + BESIDE]
            for lines in (star, sky)
        )
        spectra.append(simulate.simulate(pixels, *near, seed=100 * seed + k, **options))
    return spectra


def orders(snr: float, orders: list[int], seed: int, alone: bool = False) -> dict:
    """One night, one fit of all its orders; with `alone`, a fit of each order by itself beside it."""
    star, sky = clones()
    data = night(snr, orders, seed)
    fit = fitted(data, star, sky)
    record = velocities(fit, VSINI) | {
        "n_fitted": len(fit),
        "jittered": int(np.sum(fit.orders["jitter"] > 0)),
    }
    if alone:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            singles = [fitted(one, star, sky, rv=fit.value("rv"), vsini=fit.value("vsini")) for one in data]
        for name in ("rv", "vsini"):
            record[f"{name}_err_alone"] = [single.error(name) for single in singles]
    return record
