"""Models of one order, away from every default value."""

import numpy as np
import torch

from specutils_blase.model.emulator import LineEmulator
from specutils_blase.model.order import ForwardModel
from specutils_blase.model.parameters import GLOBALS, KINDS, FreeParameters
from specutils_blase.physics.grids import Sampling
from specutils_blase.physics.saturation import Minnaert
from specutils_blase.simulate import pixel_edges


def emulator(seed, n, low, high, area=0.1, sigma=0.06, gamma=0.03, emission=False, law="log", offsets=0.3):
    rng = np.random.default_rng(seed)
    law = Minnaert((9_995.0, 10_025.0), 0.8, degree=1) if law == "minnaert" else law
    return LineEmulator(
        rng.uniform(low, high, n),
        area * rng.random(n) ** 2 + 1e-3,
        sigma * np.exp(0.25 * rng.standard_normal(n)),
        gamma * np.exp(0.4 * rng.standard_normal(n)),
        rv_offset=offsets * rng.standard_normal(n),
        sign=np.where(np.arange(n) % 6 == 0, -1, 1) if emission else None,
        law=law,
    )


def order(star=None, sky=None, *, n=260, degree=2, **options):
    """A model of one order, away from every default value."""
    wavelength = 10_000.0 + 0.05 * np.arange(n)
    options = {"rv": -7.0, "vsini": 6.0, "limb_darkening": (0.4, 0.2), "resolving_power": 50_000.0, **options}
    model = ForwardModel.for_order(
        torch.tensor(wavelength),
        torch.tensor(pixel_edges(wavelength)),
        star=star,
        telluric=sky,
        continuum_degree=degree,
        **options,
    )
    if degree is not None:
        with torch.no_grad():
            model.continuum.coefficients += 0.02 * torch.arange(1, degree + 2)
    return model


def star(**options):
    return emulator(1, 40, 9_998.0, 10_015.0, **options)


def sky(**options):
    return emulator(2, 20, 9_999.0, 10_014.0, sigma=0.02, gamma=0.04, **options)


MODELS = {
    "star and sky": lambda: order(star(), sky()),
    "fast rotator": lambda: order(star(), sky(), vsini=60.0, rv=150.0),
    "hardly rotating": lambda: order(star(), sky(), vsini=0.4),
    "resolving power varies": lambda: order(star(), sky(), resolving_power=(50_000.0, 0.1, -0.05)),
    "Minnaert": lambda: order(star(law="minnaert"), sky(law="minnaert")),
    "linear": lambda: order(star(law="linear"), sky()),
    "emission": lambda: order(star(emission=True), sky(emission=True, law="minnaert")),
    "no continuum": lambda: order(star(), sky(), degree=None),
    "star only": lambda: order(star(), None),
    "sky only": lambda: order(None, sky()),
    "no line spread": lambda: order(star(), sky(), resolving_power=None),
    "clone": lambda: ForwardModel(Sampling(native()), star=star(law="minnaert", emission=True)),
    "clone through a line spread": lambda: order(None, star(), degree=None),
}


def native():
    """Sampling whose step doubles in the middle."""
    return torch.tensor(np.concatenate([np.arange(9_999.0, 10_007.0, 0.01), np.arange(10_007.0, 10_014.0, 0.02)]))


def everything(model, kinds=KINDS):
    """All that can be free in a model."""
    owners = {
        "rv": model.doppler,
        "vsini": model.rotation,
        "limb_darkening": model.rotation,
        "resolving_power": model.line_spread,
        "continuum": model.continuum,
        "star_law": model.star,
        "telluric_law": model.telluric,
    }
    names = tuple(name for name in GLOBALS if owners[name] is not None)
    lines = {name: torch.arange(len(component)) for name, component in model.components.items()}
    return FreeParameters(model, dict.fromkeys(model.components, kinds), lines, names)
