"""A small order: star, sky, and what is observed."""

import numpy as np
from astropy.table import Table

from specutils_blase.simulate import simulate

WAVELENGTH = np.linspace(10500.0, 10530.0, 500)


RESOLVING_POWER = 55_000.0


def line_tables():
    rng = np.random.default_rng(3)
    n_star, n_sky = 60, 20
    star = Table(
        {
            "center": np.sort(rng.uniform(10490.0, 10540.0, n_star)),
            "area": rng.uniform(0.02, 0.15, n_star),
            "sigma": rng.uniform(0.04, 0.07, n_star),
            "gamma": rng.uniform(0.02, 0.06, n_star),
        }
    )
    sky = Table(
        {
            "center": np.sort(rng.uniform(10499.0, 10531.0, n_sky)),
            "area": rng.uniform(0.01, 0.08, n_sky),
            "sigma": rng.uniform(0.012, 0.02, n_sky),
            "gamma": rng.uniform(0.02, 0.05, n_sky),
        }
    )
    star.meta["wavelength_range"] = (10480.0, 10550.0)
    sky.meta["wavelength_range"] = (10490.0, 10540.0)
    return star, sky


STAR, SKY = line_tables()


TRUTH = {"rv": -27.3, "vsini": 9.0, "resolving_power": RESOLVING_POWER, "limb_darkening": (0.4, 0.2)}


def observed(star=STAR, sky=SKY, **options):
    options = {"snr": 200.0, "seed": 1, "continuum": (3.0, 0.06, -0.03)} | TRUTH | options
    return simulate(WAVELENGTH, star, sky, **options)
