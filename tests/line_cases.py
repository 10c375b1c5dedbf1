"""Lines of all shapes on samplings of all kinds."""

import numpy as np
import torch
from scipy.special import voigt_profile

from specutils_blase.model.emulator import LineEmulator
from specutils_blase.physics.grids import velocity_grid

F64 = torch.float64


def table(seed, n, low, high, area=0.05, sigma=0.06, gamma=0.03, scatter=0.4):
    rng = np.random.default_rng(seed)
    return {
        "center": rng.uniform(low, high, n),
        "area": area * np.exp(rng.standard_normal(n)),
        "sigma": sigma * np.exp(scatter * rng.standard_normal(n)),
        "gamma": gamma * np.exp(scatter * rng.standard_normal(n)),
    }


def joined(*tables):
    return {name: np.concatenate([t[name] for t in tables]) for name in tables[0]}


def emulator(lines, **options):
    return LineEmulator(*(lines[name] for name in ("center", "area", "sigma", "gamma")), **options)


ORDER = velocity_grid(9992.0, 10038.0, 0.4)


NATIVE = torch.tensor(np.concatenate([np.arange(9980.0, 10000.0, 0.01), np.arange(10000.0, 10030.0, 0.02)]))


BROAD = table(4, 4, 9995, 10030, area=5.0, sigma=0.5, gamma=2.0)


CASES = {
    "order": (table(1, 100, 9990, 10040), ORDER),
    "gamma of 1 Å": (table(2, 20, 9990, 10040, area=1.0, sigma=0.1, gamma=1.0), ORDER),
    "narrow and broad": (joined(table(3, 80, 9990, 10040), BROAD), ORDER),
    "native sampling": (table(5, 150, 9980, 10030, sigma=0.04, gamma=0.02), NATIVE),
    "short": (table(6, 150, 9980, 10030, sigma=0.04, gamma=0.02), torch.arange(9980.0, 10030.0, 0.01, dtype=F64)),
    "shorter than a window": (table(7, 3, 9999.5, 10000.5), torch.arange(9999.0, 10001.0, 0.05, dtype=F64)),
    "unresolved": (table(8, 100, 9990, 10040, area=0.005, sigma=0.004, gamma=0.002), velocity_grid(9992, 10038, 0.2)),
    "very strong": (table(9, 6, 9990, 10040, area=30.0, sigma=0.1, gamma=0.5), velocity_grid(9980, 10050, 0.4)),
    "hydrogen": (table(10, 2, 9990, 10040, area=20.0, sigma=3.0, gamma=4.0), velocity_grid(9900, 10150, 0.5)),
    "nearly Gaussian": (table(11, 30, 9990, 10040, area=3.0, sigma=0.2, gamma=1e-4), ORDER),
}


LAWS = ["log", "linear", "minnaert"]


def case(name, law):
    """Lines and wavelengths; in the linear law shallower than its guard, see the expected failure below."""
    lines, wavelength = CASES[name]
    if law != "linear":
        return lines, wavelength
    deepest = 0.85 / voigt_profile(0.0, lines["sigma"], lines["gamma"])
    return {**lines, "area": np.minimum(lines["area"], deepest)}, wavelength
