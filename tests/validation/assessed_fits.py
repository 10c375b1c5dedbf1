"""Right and wrong fits, and what their assessment says of them: item "quality", docs/validation.md, section 10.

Every fit is of a small order of one of `INSTRUMENTS`, simulated by brute force. `GOOD` are what the model is for, each
of `WRONG` is an everyday fault of data or of what a user says of them. Not every faulty fit is wrong: what counts is
how far it is from the truth, in its own errors.
"""

from __future__ import annotations

import copy
import warnings
from functools import cache

import numpy as np
import torch
from astropy.nddata import StdDevUncertainty
from cases import true_lines
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase import simulate, templates
from specutils_blase.physics.grids import SPEED_OF_LIGHT

KMS_MARGIN = 700.0
"""km/s by which clones exceed the pixels."""


def _uniform(first: float, n_pixel: int, step: float) -> np.ndarray:
    """Pixels of the same step in km/s."""
    return first * np.exp(np.arange(n_pixel) * step / SPEED_OF_LIGHT)


INSTRUMENTS = {
    "HPF 24": (lambda: simulate.hpf_wavelengths(24)[400:700], 55_000.0),
    "HPF 5": (lambda: simulate.hpf_wavelengths(5)[600:900], 55_000.0),
    "NIRSPEC-like": (lambda: _uniform(11_600.0, 250, 4.5), 25_000.0),
    "R = 100,000": (lambda: _uniform(10_450.0, 400, 1.4), 100_000.0),
}
"""Name to pixels and resolving power."""

GOOD = ("as cloned", "scattered", "without sky")
"""Lines of star and sky as the template has them, or scattered as their priors say; the star alone."""

WRONG = (
    "fast star", "spikes", "negative pixels", "steep blaze", "blaze, continuum 6", "logarithm", "magnitudes",
    "constant", "useless ends", "line table", "another order", "three times too strong", "another star's strengths",
    "no tellurics in the model", "no star", "twice the resolving power", "half the resolving power", "emission",
    "signal-to-noise ratio times 5", "scattered light",
)  # fmt: skip
"""What is wrong with data, template or options; the scripts F01 to N01 stand for the first of them."""

WITHOUT_TRUTH = ("constant", "another order", "no star")
"""Where there is no star with this spectrum: every answer is wrong."""

LIMB_DARKENING = (0.4, 0.2)


@cache
def clones(instrument: str):
    """The star's clone around the pixels of an instrument, and the emulator of a sky of ten lines."""
    pixels = INSTRUMENTS[instrument][0]()
    margin = KMS_MARGIN / SPEED_OF_LIGHT
    span = (pixels[0] * (1.0 - margin), pixels[-1] * (1.0 + margin))
    star = sb.clone(templates.arcturus(), prominence=0.04, region=span, progress=False)
    rng = np.random.default_rng(len(instrument))
    center = np.sort(rng.uniform(pixels[0], pixels[-1], 10))
    width = center * 1.5 / SPEED_OF_LIGHT
    sky = sb.LineEmulator(
        center, width * np.exp(rng.normal(-0.5, 0.8, 10)), width / 2.0, width / 3.0,
        wavelength_range=(pixels[0] * (1.0 - 1e-3), pixels[-1] * (1.0 + 1e-3)),
    )  # fmt: skip
    return star, sky


def assessed(kind: str, instrument: str, seed: int) -> dict:
    """One fit, how far it is from the truth, and what is said of it."""
    rng = np.random.default_rng([seed, (*GOOD, *WRONG).index(kind), list(INSTRUMENTS).index(instrument)])
    pixels, power = INSTRUMENTS[instrument][0](), INSTRUMENTS[instrument][1]
    star, sky = clones(instrument)
    snr, vsini = float(np.exp(rng.uniform(np.log(30), np.log(300)))), float(np.exp(rng.uniform(0.0, np.log(60))))
    rv = float(rng.uniform(-100.0, 100.0))
    if kind == "fast star":
        rv = float(rng.choice([-1.0, 1.0]) * rng.uniform(310.0, 600.0))
    spread = "prior" if kind == "scattered" or rng.random() < 0.5 else "clone"
    spread = "clone" if kind == "as cloned" else spread
    seen_star = true_lines(star, 2 * seed + 1, spread)
    seen_sky = _sky_lines(sky, rng, 0.0 if spread == "clone" else 1.0)
    if kind == "another star's strengths":
        seen_star = seen_star.copy()
        seen_star["area"] = seen_star["area"] * np.exp(rng.normal(0.0, 1.0, len(seen_star)))
    if kind == "no star":
        seen_star = seen_star[:1]
        seen_star["area"] = seen_star["area"] * 1e-6
    simulated = {"snr": snr, "continuum": (1.0, -0.06, 0.02), "seed": seed, "rv": rv, "vsini": vsini}
    simulated |= {"limb_darkening": LIMB_DARKENING, "resolving_power": power}
    skyless = kind == "without sky" or kind in ("line table", "useless ends", "emission")
    data = simulate.simulate(pixels, seen_star, None if skyless else seen_sky, **simulated)
    options = {"resolving_power": power, "limb_darkening": LIMB_DARKENING}
    data, star, sky, options = _spoilt(kind, data, star.emulator, None if skyless else sky, options, rng)
    record = {"snr": snr, "true_rv": rv, "true_vsini": vsini, "element": SPEED_OF_LIGHT / power}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fit = sb.fit(data, star, telluric=sky, progress=False, **options)
        except ValueError as error:
            return record | {"status": "refused", "reasons": [], "error": str(error)}
    return record | {
        "rv": fit.value("rv") - rv, "rv_err": fit.error("rv"), "vsini": fit.value("vsini") - vsini,
        "vsini_err": fit.error("vsini"), "success": fit.success, "status": fit.quality.status,
        "reasons": list(fit.quality.names), "values": [one.value for one in fit.quality.reasons],
        "n_iteration": len(fit.history),
    }  # fmt: skip


def _sky_lines(sky, rng, scatter: float) -> dict[str, np.ndarray]:
    """The sky's lines, scattered by the widths of the default priors."""
    with torch.no_grad():
        lines = {name: getattr(sky, name).numpy().copy() for name in ("center", "area", "sigma", "gamma")}
    lines["center"] *= 1.0 + scatter * rng.normal(0.0, 0.1, len(sky)) / SPEED_OF_LIGHT
    for name, width in (("area", 0.3), ("sigma", 0.15), ("gamma", 0.3)):
        lines[name] *= np.exp(scatter * rng.normal(0.0, width, len(sky)))
    return lines


def _spoilt(kind: str, data: Spectrum, star, sky, options: dict, rng):
    """Data, components and options with what is wrong."""
    wavelength = data.spectral_axis.value
    flux, sigma = np.array(data.flux.value), np.array(data.uncertainty.array)
    n_pixel, typical = flux.size, float(np.median(flux))
    if kind == "spikes":
        flux[rng.choice(n_pixel, 3, replace=False)] += rng.uniform(1.0, 10.0, 3) * typical
    elif kind == "negative pixels":
        flux[rng.choice(n_pixel, 20, replace=False)] = -0.3 * typical
    elif kind in ("steep blaze", "blaze, continuum 6"):
        steep = kind == "steep blaze"
        x = np.linspace(-1.0, 1.0, n_pixel)
        blaze = np.sinc((0.95 if steep else 0.8) * x) ** 2 + 0.01
        flux, sigma = flux * blaze, sigma * np.sqrt(blaze)
        options |= {"continuum": 2 if steep and rng.random() < 0.5 else 6}
    elif kind in ("logarithm", "magnitudes"):
        scale = np.log10(np.e) if kind == "logarithm" else -2.5 * np.log10(np.e)
        safe = np.maximum(flux, 0.01 * typical)
        flux, sigma = (2.0 if kind == "logarithm" else 12.0) + scale * np.log(safe), np.abs(scale) * sigma / safe
    elif kind == "constant":
        flux = np.ones(n_pixel) + rng.normal(0.0, sigma / typical)
        sigma, sky = sigma / typical, None
    elif kind == "useless ends":
        step = wavelength[1] - wavelength[0]
        wavelength = np.r_[wavelength[0] - step * np.arange(150, 0, -1), wavelength]
        flux, sigma = np.r_[np.full(150, np.nan), flux], np.r_[np.ones(150), sigma]
    elif kind == "line table":
        inside = (star.center > wavelength[20]) & (star.center < wavelength[-20])
        part = star.subset(inside.nonzero().squeeze(-1))
        with torch.no_grad():
            columns = [getattr(part, name).numpy() for name in ("shifted_center", "area", "sigma", "gamma")]
        star = sb.LineEmulator(*columns)
    elif kind == "another order":
        flux, sigma = flux[::-1].copy(), sigma[::-1].copy()
    elif kind == "three times too strong":
        star = copy.deepcopy(star)
        with torch.no_grad():
            star.ln_area += np.log(3.0)
    elif kind == "no tellurics in the model":
        sky = None
    elif kind == "twice the resolving power":
        options["resolving_power"] *= 2.0
    elif kind == "half the resolving power":
        options["resolving_power"] *= 0.5
    elif kind == "emission":
        flux = 2.0 * np.quantile(flux, 0.95) - flux
    elif kind == "signal-to-noise ratio times 5":
        sigma = sigma / 5.0
    elif kind == "scattered light":
        flux = flux + rng.uniform(0.5, 2.0) * typical
    seen = Spectrum(
        flux=flux * data.flux.unit, spectral_axis=wavelength * data.spectral_axis.unit,
        uncertainty=StdDevUncertainty(sigma),
    )  # fmt: skip
    return seen, star, sky, options


def tasks(seeds: range) -> list[tuple[str, dict]]:
    """One fit of each kind of `WRONG` a seed, and as many good ones, instrument by instrument in turn."""
    names, todo = list(INSTRUMENTS), []
    for seed in seeds:
        for place, wrong in enumerate(WRONG):
            number = len(WRONG) * seed + place
            for kind, which in ((GOOD[number % len(GOOD)], number // len(GOOD)), (wrong, seed + place)):
                todo.append(("assessed", {"kind": kind, "instrument": names[which % len(names)], "seed": number}))
    return todo
