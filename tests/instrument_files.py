"""Files laid out as instruments lay them out."""

import numpy as np
from astropy.io import fits

from specutils_blase.adapters.muler import (
    HPF_ORDERS,
)
from specutils_blase.simulate import hpf_wavelengths

GOLDILOCKS = "data/hpf/Goldilocks_20210212T072837_v1.0_0037.spectra.fits"


SLOPE = "data/hpf/Slope-20181003T014556_R01.optimal.fits"


def write_hpf(path, noise="Error", level=100.0):
    """A file laid out as HPF's pipelines do, of flat spectra with one dead pixel."""
    wavelength = np.array([hpf_wavelengths(order) for order in range(HPF_ORDERS)])
    flux = np.full(wavelength.shape, level, "f4")
    flux[:, 1000] = np.nan
    sky = np.full(wavelength.shape, 1.0, "f4")
    sigma = np.full(wavelength.shape, 10.0, "f4")
    header = fits.Header({"INSTRUME": "HPF", "TELESCOP": "HET", "OBJECT": "test", "BRVCORR": -14198.0})
    units = [fits.PrimaryHDU(header=header)]
    for name, values in (("Flux", (flux, sky, sky)), (noise, (sigma,) * 3), ("Wavl", (wavelength,) * 3)):
        units += [
            fits.ImageHDU(array, name=f"{fibre} {name}")
            for fibre, array in zip(("Sci", "Sky", "Cal"), values, strict=True)
        ]
    fits.HDUList(units).writeto(path)
    return path


IGRINS_HEADER = {
    "INSTRUME": "IGRINS",
    "TELESCOP": "Gemini South",
    "OBJECT": "CPD-57 1131",
    "DATE-OBS": "2020-12-03T08:23:36.926",
    "MJD-OBS": 59186.349733,
    "EXPTIME": 16.0,
    "OBJRA": 106.301325,
    "OBJDEC": -57.57048056,
    "OBJEPOCH": 2000.0,
}


N_ROW = 4


def igrins_arrays(band):
    """Wavelengths [µm], flux and variance of a few orders, with a dead pixel in each."""
    number = np.arange({"H": 98, "K": 71}[band], {"H": 98, "K": 71}[band] + N_ROW)[:, None]
    wavelength = 178.0 / number * (1.0 + 0.0068 * np.linspace(-1.0, 1.0, 2048))
    flux = 1000.0 + number + np.arange(2048.0)
    flux[:, 7] = np.nan
    return wavelength, flux, np.where(np.isnan(flux), np.nan, 100.0 + number)


def write_igrins(path, band, form="later", **header):
    """A file laid out as one of the IGRINS pipeline's versions does: later, earlier, plain or archive."""
    wavelength, flux, variance = igrins_arrays(band)
    header = fits.Header(IGRINS_HEADER | header)
    if form == "earlier":
        units = [fits.PrimaryHDU(flux, header)]
        units[0].name = "SPEC_DIVIDE_A0V"
        units += [fits.ImageHDU(wavelength, header, "WAVELENGTH"), fits.ImageHDU(2 * flux, header, "TGT_SPEC")]
    elif form == "plain":
        units = [fits.PrimaryHDU(flux, header), fits.ImageHDU(wavelength)]
        fits.PrimaryHDU(variance, header).writeto(path.with_name(path.name.replace(".spec.", ".variance.")))
    elif form == "archive":
        units = [fits.PrimaryHDU(header=header), *map(fits.ImageHDU, (flux, variance, wavelength))]
        for unit in units[1:]:
            unit.header["EXTVER"] = 1
    else:
        units = [fits.PrimaryHDU(header=header), fits.ImageHDU(flux, name="SPEC_DIVIDE_A0V")]
        units += [
            fits.ImageHDU(variance, name="SPEC_DIVIDE_A0V_VARIANCE"),
            fits.ImageHDU(wavelength, name="WAVELENGTH"),
            fits.ImageHDU(2 * flux, name="TGT_SPEC"),
            fits.ImageHDU(4 * variance, name="TGT_SPEC_VARIANCE"),
            fits.ImageHDU(3 * flux, fits.Header({"OBJECT": "HIP 35183"}), "A0V_SPEC"),
        ]
    fits.HDUList(units).writeto(path)
    return path
