"""Where fits start, over instruments, stars and skies: radial velocity and rotation before any line is free (item 10).

What is drawn beside the arguments, all from the seed: S/N 30 to 300 and v sin i 1 to 200 km/s (both evenly in their
logarithms), a radial velocity within ±600 km/s, the amounts of the sky, and every line about its clone: the star's as
the priors expect, the sky's as those of TelFit are on a real spectrum. HPF and NIRSPEC see Arcturus and TelFit; IGRINS
sees lines at random places in H and the CO bands of Arcturus in K, both through PSG's sky and with the blaze left in.

The template is "right" (lines scatter about it as the priors expect), of an "other" star (the Sun for Arcturus where
there is such a template; else lines with strengths of their own, all of them stronger or weaker by a common factor), or
lacks lines ("missing": one in twenty). That of an M dwarf of 3500 K has nothing in common with Arcturus in HPF 24: the
correlation at the true velocity is nought, and nothing could be found by it.
"""

from __future__ import annotations

import time
import warnings
from functools import cache, partial

import numpy as np
import torch
from astropy import units as u
from astropy.nddata import StdDevUncertainty
from astropy.table import Table
from cases import LINE_COLUMNS, SHARED, WIDTHS, true_lines
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase import simulate, templates
from specutils_blase.cloning.clone import NoLinesError
from specutils_blase.fitting.inputs import templates_of
from specutils_blase.fitting.observation import Observation, read_orders
from specutils_blase.fitting.options import FitOptions
from specutils_blase.fitting.start.first_model import first_model
from specutils_blase.fitting.start.held_line_fit import start_continuum, velocity_information
from specutils_blase.fitting.start.hypotheses import likeliest
from specutils_blase.fitting.start.initial_velocity import cross_correlate
from specutils_blase.ledger.emulator import emulator_from_ledger
from specutils_blase.model.order import ForwardModel
from specutils_blase.physics.grids import SPEED_OF_LIGHT

FASTEST, MARGIN = 600.0, 1100.0
"""km/s; of stars, and by which clones exceed the orders."""

LIMB_DARKENING = (0.4, 0.2)
TEMPLATES = ("right", "other", "missing")
MISSING = 0.05
SKY_WIDTHS = {"scatter_ln_area": 0.07, "scatter_ln_sigma": 0.23, "scatter_ln_gamma": 0.14, "scatter_rv_offset": 0.10}
"""How far the sky's lines are from their clone: as measured of TelFit on HR 3039 (docs/validation.md, section 8)."""

ELEMENTS, PHOTON_ERRORS = 3.0, 5.0
"""A start is off beyond so many times the larger of resolution element and rotation, and of the photon limit."""

DOUBTFUL = 25.0
"""A start is flagged whose second solution is so close, in χ², or whose star is detected no better, or at an edge: as
`FitResult.quality` does."""


def igrins(band: str, middle: float) -> np.ndarray:
    """Pixels of an IGRINS order without its dark ends."""
    return middle * (1.0 + 0.0069 * np.linspace(-1.0, 1.0, 2048)[400:1800])


INSTRUMENTS = {
    "HPF": (55_000.0, 2, lambda: [simulate.hpf_wavelengths(24)[400:1600], simulate.hpf_wavelengths(14)[400:1600]]),
    "IGRINS H": (45_000.0, 6, lambda: [igrins("H", 16_010.0), igrins("H", 16_150.0)]),
    "IGRINS K": (45_000.0, 6, lambda: [igrins("K", 23_100.0), igrins("K", 23_400.0)]),
    "NIRSPEC": (22_000.0, 2, lambda: [10_600.0 * np.exp(4.2 / SPEED_OF_LIGHT * np.arange(-450, 450)),
                                     10_780.0 * np.exp(4.2 / SPEED_OF_LIGHT * np.arange(-450, 450))]),
}  # fmt: skip
"""Resolving power, degree of the continuum, pixels of two orders."""


def near(pixels: list[np.ndarray], margin: float = MARGIN):
    return [(p[0] * (1.0 - margin / SPEED_OF_LIGHT), p[-1] * (1.0 + margin / SPEED_OF_LIGHT)) for p in pixels]


def cut(spectrum: Spectrum, spans) -> Spectrum:
    """The parts of a template about the orders."""
    wavelength = spectrum.spectral_axis.value
    inside = np.any([(wavelength > low) & (wavelength < high) for low, high in spans], axis=0)
    return Spectrum(spectral_axis=spectrum.spectral_axis[inside], flux=spectrum.flux[inside], meta=spectrum.meta)


def lte(name: str) -> Spectrum:
    """Another star's template, from beside the repository."""
    import sys

    tools = str(SHARED / "tools")
    if tools not in sys.path:
        sys.path.insert(0, tools)
    from templates import lte

    return lte(name)


def cloned(spectrum: Spectrum, spans, prominence: float = 0.02, **options):
    """Lines of a template, one clone a stretch, and the whole range; one line a dip, which is what is then observed."""
    tables = []
    for span in spans:
        try:
            clone = sb.clone(
                cut(spectrum, [span]), prominence=prominence, in_rounds=False, max_iterations=20, progress=False,
                **options,
            )  # fmt: skip
        except NoLinesError:  # such as of a sky that is clear there
            continue
        tables.append(Table(clone.ledger[LINE_COLUMNS]))
    lines = np.concatenate([np.array([table[name] for name in LINE_COLUMNS]) for table in tables], axis=1)
    return emulator(lines, spans)


def emulator(lines: np.ndarray, spans) -> sb.LineEmulator:
    _, first = np.unique(lines[0].round(3), return_index=True)
    whole = min(low for low, _ in spans), max(high for _, high in spans)
    return sb.LineEmulator(*lines[:, first], wavelength_range=whole)


@cache
def components(instrument: str) -> dict:
    """Clones of the star, of other stars where there are, and of the sky."""
    pixels = INSTRUMENTS[instrument][2]
    spans = joined(near(pixels()))
    found = {}
    if instrument == "IGRINS H":
        random = np.random.default_rng(1)
        centers = np.concatenate([random.uniform(low, high, int((high - low) / 3.0)) for low, high in spans])
        areas, sigmas = random.exponential(0.1, centers.size) + 0.005, random.uniform(0.08, 0.13, centers.size)
        found["star"] = emulator(np.array([centers, areas, sigmas, np.full(centers.size, 0.03)]), spans)
    elif instrument == "IGRINS K":
        found["star"] = cloned(lte("arcturus_4286_K"), spans, prominence=0.04)
    else:
        found["star"] = cloned(templates.arcturus(), spans)
        found["sun"] = cloned(lte("sun_5777_hpf"), spans)
    narrow = joined(near(pixels(), 60.0))
    if instrument.startswith("IGRINS"):
        found["sky"] = cloned(templates.psg_hk(), narrow)
    else:
        found["sky"] = cloned(templates.telfit_hpf(), narrow, resolving_power=55_000.0)
    return found


def joined(spans):
    """Stretches that do not overlap."""
    merged = []
    for low, high in sorted(spans):
        if merged and low < merged[-1][1]:
            merged[-1] = merged[-1][0], max(high, merged[-1][1])
        else:
            merged.append((low, high))
    return merged


class _Lines:
    """An emulator as `true_lines` takes it."""

    def __init__(self, lines: sb.LineEmulator):
        self.emulator, self.ledger = lines, table(lines)


def table(lines: sb.LineEmulator) -> Table:
    values = (lines.shifted_center, lines.area, lines.sigma, lines.gamma)
    return Table({name: value.detach().numpy() for name, value in zip(LINE_COLUMNS, values, strict=True)})


def scattered(lines: sb.LineEmulator, random: np.random.Generator, widths: dict[str, float] = WIDTHS) -> Table:
    """Lines about their clone, with these widths and the tails of the priors [Å]."""
    drawn = true_lines(_Lines(lines), int(random.integers(2**31)), "prior", widths)
    return Table({name: u.Quantity(drawn[name], u.AA).value for name in LINE_COLUMNS})


def drawn(instrument: str, orders: int, template: str, sky: bool, seed: int) -> dict:
    """What is observed, and what the start is told."""
    power, degree, pixels = INSTRUMENTS[instrument]
    known = components(instrument)
    random = np.random.default_rng([seed, TEMPLATES.index(template), int(sky), orders, len(instrument)])
    snr = float(np.exp(random.uniform(*np.log([30.0, 300.0]))))
    vsini = float(np.exp(random.uniform(*np.log([1.0, 200.0]))))
    rv = float(random.uniform(-FASTEST, FASTEST))
    star, given = scattered(known["star"], random), known["star"]
    if template == "other":
        if "sun" in known:
            given = known["sun"]
        else:
            star["area"] *= np.exp(random.normal(0.0, 0.7) + random.normal(0.0, 0.7, len(star)))
    elif template == "missing":
        given = given.subset(torch.as_tensor(np.flatnonzero(random.random(len(given)) > MISSING)))
    telluric = None
    if sky:
        telluric = scattered(known["sky"], random, SKY_WIDTHS)
        telluric["area"] *= np.exp(random.normal(0.0, 0.4))
    options = {"rv": rv, "vsini": vsini, "resolving_power": power, "limb_darkening": LIMB_DARKENING, "snr": snr}
    spectra = []
    chosen = pixels() if orders == 2 else [pixels()[int(random.integers(2))]]
    for k, one in enumerate(chosen):
        (low, high), (first, last) = near([one])[0], near([one], 60.0)[0]
        lines = star[(star["center"] > low) & (star["center"] < high)]
        here = None
        if telluric is not None:
            here = telluric[(telluric["center"] > first) & (telluric["center"] < last)]
            here = here if len(here) else None
        spectrum = simulate.simulate(one, lines, here, seed=1000 * seed + k, continuum=(1.0, -0.06, 0.02), **options)
        if degree > 2:
            blaze = np.sinc(0.6 * np.linspace(-1.0, 1.0, one.size) - 0.1) ** 2
            noise = StdDevUncertainty(spectrum.uncertainty.array * np.sqrt(blaze))
            spectrum = Spectrum(flux=spectrum.flux * blaze, spectral_axis=spectrum.spectral_axis, uncertainty=noise)
        spectra.append(spectrum)
    truth = {"rv": rv, "vsini": vsini, "snr": snr}
    return {"spectra": spectra, "star": given, "sky": known["sky"] if sky else None, "truth": truth, "lines": star}


@torch.no_grad()
def photon_error(orders, lines: sb.LineEmulator, truth: dict, degree: int) -> float:
    """Error of the velocity [km/s] with lines and sky as they truly are, rotation and continua free."""
    total = torch.zeros(2, 2, dtype=torch.float64)
    for order in orders:
        data = order.data
        model = ForwardModel.for_order(
            data.wavelength, data.edges, star=lines, rv=truth["rv"], vsini=truth["vsini"],
            limb_darkening=LIMB_DARKENING, resolving_power=order.resolving_power, continuum_degree=degree,
        )  # fmt: skip
        flux = data.flux.double() / order.scale
        weight = torch.where(data.good, (order.scale / data.sigma.double()) ** 2, 0.0)
        start_continuum(model, flux, weight)
        total += velocity_information(model, flux, weight)
    return float(torch.linalg.inv(total + 1e-12 * torch.eye(2))[0, 0].sqrt())


def start(instrument: str, orders: int, template: str, sky: bool, seed: int) -> dict:
    """One start, against the truth."""
    power, degree, _ = INSTRUMENTS[instrument]
    case = drawn(instrument, orders, template, sky, seed)
    many, truth = orders > 1, case["truth"]
    read, _ = read_orders(case["spectra"], resolving_power=power)
    powers = [order.resolving_power for order in read]
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        search = cross_correlate(
            [order.data for order in read], case["star"], case["sky"], resolving_power=powers, continuum=degree
        )
        options = FitOptions(limb_darkening=LIMB_DARKENING, continuum=degree)
        observation = Observation(tuple(read), many)
        templates = templates_of(observation, case["star"], case["sky"], (), options)
        build = partial(first_model, observation, templates, options)
        scaling = {"tellurics": True, "star": True}
        _, told = likeliest(build, search, ("rv", "vsini", "continuum"), SPEED_OF_LIGHT / power, False, scaling)
    seconds = time.process_time() - began
    photon = photon_error(read, emulator_from_ledger(case["lines"]), truth, degree)
    result = truth | {
        "found_rv": told["rv"],
        "found_vsini": told["vsini"],
        "strength": told["strength"],
        "element": SPEED_OF_LIGHT / power,
        "photon": photon,
        "delta_chi2": told["delta_chi2"],
        "detection": told["detection"],
        "at_edge": told["at_edge"],
        "correlation": [[s.rv, s.vsini, s.strength, s.gain] for s in search.solutions],
        "candidates": told["candidates"],
        "seconds": seconds,
    }
    if is_off(result):
        # Whether the whole fit says so.
        whole = fitted(instrument, orders, template, sky, seed)
        result |= {name: whole[name] for name in ("fit_rv", "fit_rv_err", "reasons") if name in whole}
        result["status"] = whole.get("status", "refused")
    return result


def fitted(instrument: str, orders: int, template: str, sky: bool, seed: int) -> dict:
    """The same, fitted to the end by defaults: what it started from, where it ended, and what it says of itself."""
    power, degree, _ = INSTRUMENTS[instrument]
    case = drawn(instrument, orders, template, sky, seed)
    many, truth = orders > 1, case["truth"]
    read, _ = read_orders(case["spectra"], resolving_power=power)
    began = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fit = sb.fit(
                case["spectra"] if many else case["spectra"][0], case["star"], telluric=case["sky"],
                resolving_power=power, continuum=degree, limb_darkening=LIMB_DARKENING, progress=False,
            )  # fmt: skip
        except ValueError as error:
            return truth | {"refused": str(error)}
    seconds, told = time.process_time() - began, fit.settings["start"]
    return truth | {
        "found_rv": told["rv"],
        "found_vsini": told["vsini"],
        "element": SPEED_OF_LIGHT / power,
        "photon": photon_error(read, emulator_from_ledger(case["lines"]), truth, degree),
        "delta_chi2": told["delta_chi2"],
        "detection": told["detection"],
        "at_edge": told["at_edge"],
        "fit_rv": fit.value("rv"),
        "fit_rv_err": fit.error("rv"),
        "fit_vsini": fit.value("vsini"),
        "fit_vsini_err": fit.error("vsini"),
        "status": fit.quality.status,
        "reasons": list(fit.quality.names),
        "success": fit.success,
        "seconds": seconds,
    }


def is_off(result: dict, velocity: str = "found_rv") -> bool:
    """Whether a start, or a fit, is somewhere else."""
    difference = abs(result[velocity] - result["rv"])
    far = ELEMENTS * max(result["element"], result["vsini"])
    return difference > far and difference > PHOTON_ERRORS * result["photon"]


def is_astray(result: dict) -> bool:
    """Whether a start is off by half its rotation or a resolution element, and beyond the photon limit."""
    difference = abs(result["found_rv"] - result["rv"])
    return difference > max(result["element"], 0.5 * result["vsini"]) and difference > PHOTON_ERRORS * result["photon"]


def is_flagged(result: dict) -> bool:
    """Whether a start tells its doubt; or the whole fit, where it was made because of that."""
    if "status" in result:
        return result["status"] != "good"
    close = result["delta_chi2"] is not None and result["delta_chi2"] < DOUBTFUL
    return bool(close or result["at_edge"] or result["detection"] < DOUBTFUL)


TO_THE_END = 7
"""Seeds whose fits are made to the end: 336 of them."""


def tasks(seeds: range) -> list[tuple[str, dict]]:
    """All combinations, seed by seed."""
    return [
        (
            "fitted" if seed < TO_THE_END else "start",
            {"instrument": name, "orders": orders, "template": template, "sky": sky, "seed": seed},
        )
        for seed in seeds
        for name in INSTRUMENTS
        for orders in (1, 2)
        for template in TEMPLATES
        for sky in (False, True)
    ]


def reason_to_skip() -> str:
    """Why the matrix cannot be made; nothing if it can."""
    needed = SHARED / "tools" / "templates.py"
    return "" if needed.exists() else f"other stars' templates need {needed}, beside the repository, which is absent"
