"""Simulated nights in the layout of the instruments' files: what the command line and the README's example read."""

import astropy.units as u
import numpy as np
from astropy.io import fits
from astropy.table import QTable

from specutils_blase import templates
from specutils_blase.simulate import hpf_wavelengths, perturbed, simulate

TRUTH = {"rv": -12.4, "vsini": 6.0, "resolving_power": 55_000, "limb_darkening": (0.4, 0.2)}
BARYCENTRIC = -14.198
"""km/s, as written to the header."""

LIT = {17: slice(700, 1100), 18: slice(900, 1300), 20: slice(600, 1000)}
"""Orders of HPF that have light, and on which of their pixels."""

ELECTRONS, SKY_LEVEL, SKY_SCALE = 20_000.0, 60.0, 0.93
"""Continuum of the star and of the sky fibre, and how much of that is in the star's (muler's default)."""


def lines(seed, every, depth, sigma, margin):
    """A line list of all lit orders: about one line every so many Å, up to `margin` Å beyond their ends."""
    generator = np.random.default_rng(seed)
    centers = []
    for order, pixels in LIT.items():
        low, high = hpf_wavelengths(order)[pixels][[0, -1]]
        number = round((high - low + 2 * margin) / every)
        centers.append(np.linspace(low - margin, high + margin, number) + generator.uniform(-0.3, 0.3, number) * every)
    center = np.concatenate(centers)
    area = generator.uniform(*depth, center.size) * sigma * np.sqrt(2 * np.pi)
    width, wing = np.full(center.size, sigma), np.full(center.size, 0.02)
    return QTable(list([center, area, width, wing] * u.AA), names=("center", "area", "sigma", "gamma"))


def star_lines():
    return lines(1, every=1.6, depth=(0.3, 1.2), sigma=0.07, margin=4.0)


def sky_lines():
    return lines(2, every=4.0, depth=(0.3, 1.5), sigma=0.03, margin=2.0)


def hpf_order(order, snr):
    """What a perfect instrument would record of one order, on its lit pixels; lines a little off those of the lists."""
    star, sky = perturbed(star_lines(), 3, 0.1), perturbed(sky_lines(), 4, 0.1)
    return simulate(hpf_wavelengths(order)[LIT[order]], star, sky, snr=snr, seed=order, **TRUTH)


def write_hpf_night(path, snr=150.0):
    """A Goldilocks file of 28 orders, three of them with light: star and sky fibre, times HPF's blaze."""
    wavelength = np.array([hpf_wavelengths(order) for order in range(28)])
    flux, sigma, sky = (np.full(wavelength.shape, value) for value in (np.nan, 1.0, SKY_LEVEL))
    table = np.genfromtxt(templates._muler_file("HPF_blaze_templates.csv"), delimiter=",", names=True)
    blaze = np.interp(wavelength, table["wavelength_Angstrom"], table["blaze_Goldilocks"])
    for order, pixels in LIT.items():
        spectrum, here = hpf_order(order, snr), (order, pixels)
        flux[here] = spectrum.flux.value * ELECTRONS * blaze[here] + SKY_SCALE * SKY_LEVEL
        sigma[here] = spectrum.uncertainty.array * ELECTRONS * blaze[here]
    header = {"INSTRUME": "HPF", "TELESCOP": "HET", "OBJECT": "simulated", "BRVCORR": 1000 * BARYCENTRIC}
    units = [fits.PrimaryHDU(header=fits.Header(header))]
    small = np.full(wavelength.shape, 0.1)
    for name, arrays in (("Flux", (flux, sky, sky)), ("Error", (sigma, small, small)), ("Wavl", (wavelength,) * 3)):
        fibres = zip(("Sci", "Sky", "Cal"), arrays, strict=True)
        units += [fits.ImageHDU(array, name=f"{fibre} {name}") for fibre, array in fibres]
    fits.HDUList(units).writeto(path)
    return path
