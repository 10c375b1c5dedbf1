"""Small results, and the frozen files of them in ``tests/data``: one of each kind for each version of the file format.

``python tests/frozen.py`` writes those of the present version (`VERSION`) anew and prints `FLUX` of
``tests/asdf/test_asdf_frozen.py``. That is right as long as the version is not released, and never again: a released
file says what users have on their disks. With a new manifest, `VERSION` moves on and the older files stay. A kind that
a new version writes as an older one did keeps the file of that version: see `VERSIONS`.
"""

import sys
import warnings
from pathlib import Path

import astropy.units as u
import numpy as np
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase.model import Component, DopplerShift
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.extrinsic import RotationalBroadening
from specutils_blase.simulate import simulate

VERSION = "1.2.0"
VERSIONS = {"clone": "1.1.0", "fit": "1.1.0", "echelle": "1.1.0", "companion": "1.2.0", "companions": "1.2.0"}
"""Kind of result to the version of its newest file."""

FOLDER = Path(__file__).parent / "data"
ORDERS = (np.linspace(10490.0, 10493.5, 40), np.linspace(10492.9, 10496.4, 40))
HIT = 25
"""Pixel of the first order that is below zero: the fits leave it out."""

TRUTH = {"rv": -12.0, "vsini": 4.0, "resolving_power": 55_000.0}


def star():
    """Ten lines, two of them in the overlap of the orders, one in emission, with saturation that can be fitted."""
    rng = np.random.default_rng(7)
    center = np.linspace(10489.6, 10497.4, 10)
    area, sigma, gamma = rng.uniform(0.03, 0.08, 10), rng.uniform(0.05, 0.08, 10), rng.uniform(0.02, 0.05, 10)
    sign = [1, 1, 1, -1, 1, 1, 1, 1, 1, 1]
    species = ["Fe I", "Ti I", "", "Si I", "Fe I", "", "", "Cr I", "", "Fe I"]
    options = {"sign": sign, "species": species, "law": "minnaert", "wavelength_range": (10483.0, 10504.0)}
    return LineEmulator(center, area, sigma, gamma, rv_offset=rng.normal(0.0, 0.1, 10), **options)


def sky():
    """Four telluric lines on a linear scale."""
    center = [10490.6, 10492.2, 10493.2, 10495.3]
    return LineEmulator(center, [0.03] * 4, [0.03] * 4, [0.02] * 4, law="linear", wavelength_range=(10489.0, 10497.5))


def companion():
    """The light of a second star, at a velocity and with a rotation of its own."""
    center = [10490.9, 10492.4, 10493.6, 10495.9]
    lines = LineEmulator(center, [0.05] * 4, [0.06] * 4, [0.03] * 4, wavelength_range=(10483.0, 10504.0))
    motion = {"doppler": DopplerShift(21.0), "rotation": RotationalBroadening(6.0, max_vsini=25.0)}
    return Component("companion", lines, shines=True, amount=0.2, prefix="b_", free_lines=(), **motion)


def observed():
    """Two orders that overlap, a pixel below zero in the first, and between them one without light."""
    names = ("center", "area", "sigma", "gamma", "rv_offset")
    true_star, true_sky = ({name: getattr(each, name).detach().numpy() for name in names} for each in (star(), sky()))
    orders = [
        simulate(pixels, true_star, true_sky, snr=200.0, continuum=(3.0, 0.1), seed=seed, **TRUTH)
        for seed, pixels in enumerate(ORDERS)
    ]
    for number, order in enumerate(orders):
        order.meta |= {"m": 4 + number, "header": {"OBJECT": "a star", "EXPTIME": 30.0}}
    orders[0].flux[HIT] *= -0.3
    dark = Spectrum(flux=np.full(40, np.nan) * u.one, spectral_axis=ORDERS[0] * u.AA)
    return [orders[0], dark, orders[1]]


def results():
    """One result of each kind, by the name of its file."""
    options = {"telluric": sky(), "rv": -12.0, "resolving_power": 55_000, "progress": False, "max_iterations": 60}
    options |= {"star_lines": ["ln_area"], "telluric_lines": ["ln_area", "rv_offset"]}
    data = observed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # order 1 of the list is left out
        warnings.simplefilter("ignore", sb.BlaseQualityWarning)  # a clone of three iterations
        return {
            "clone": sb.clone(data[-1] / 3.0, prominence=0.05, max_iterations=3, progress=False),
            "fit": sb.fit(data[0], star(), **options),
            "echelle": sb.fit(data, star(), **options),
        }


def companion_results():
    """Fits with a third component, by the names of their files."""
    options = {"telluric": sky(), "rv": -12.0, "resolving_power": 55_000, "progress": False}
    options |= {"star_lines": ["ln_area"], "telluric_lines": ["ln_area", "rv_offset"], "max_iterations": 60}
    data = observed()
    names = ("center", "area", "sigma", "gamma", "rv_offset")
    second, absorbing = (
        {name: getattr(each, name).detach().numpy() for name in names} for each in (companion().emulator, sky())
    )
    truth = TRUTH | {"rv": 21.0, "vsini": 6.0, "continuum": (0.6, 0.02)}
    for order, pixels in ((data[0], ORDERS[0]), (data[2], ORDERS[1])):
        order.flux[:] += simulate(pixels, second, absorbing, snr=1e5, **truth).flux
    data[0].flux[HIT] *= -0.1 * np.sign(data[0].flux[HIT])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # order 1 of the list is left out
        warnings.simplefilter("ignore", sb.BlaseQualityWarning)  # its saturation is not free
        return {
            "companion": sb.fit(data[0], star(), components=[companion()], **options),
            "companions": sb.fit(data, star(), components=[companion()], **options),
        }


def path(name):
    """The newest file of a kind."""
    return FOLDER / f"{name}-{VERSIONS[name]}.asdf"


def flux(result):
    """The numbers by which a result is known again: every eighth pixel of its model, of all orders."""
    spectra = result.model_spectrum
    spectra = spectra if isinstance(spectra, list) else [spectra]
    return np.concatenate([spectrum.flux.value[::8] for spectrum in spectra])


def main():
    FOLDER.mkdir(exist_ok=True)
    for name, result in (results() | companion_results()).items():
        if VERSIONS[name] != VERSION:
            continue
        result.write(path(name), overwrite=True, compression="zlib")
        numbers = ", ".join(repr(float(value)) for value in flux(result))
        sys.stdout.write(f'    "{path(name).stem}": [{numbers}],\n')


if __name__ == "__main__":
    main()
