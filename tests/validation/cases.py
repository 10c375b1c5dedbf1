"""The cases behind docs/validation.md: what is simulated, how it is fitted, what is kept of each fit.

Every case is one function of plain arguments that returns plain numbers, so that cases run in any process and their
records outlive it. The order is that of the demonstration: HPF 24, with star and sky on top of each other.

What the truth is matters more than the noise. A fit with informative priors is calibrated against truths that come
from these priors (Cook, Gelman & Rubin 2006): over many pairs of truth and data, its pulls have mean 0 and standard
deviation 1. With the truth at the clone, every line is pulled to where it is already, and pulls are narrower than 1;
with one truth and many noises, what that truth's lines happen to do together stays in the radial velocity as a bias. So
each seed here draws lines as well as noise: "prior" from Student's t as the fit believes, "gaussian" from Gaussians of
the same widths, "clone" not at all.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import torch
from astropy import units as u

import specutils_blase as sb
from specutils_blase import simulate, templates
from specutils_blase.inference.objective import line_bounds
from specutils_blase.inference.priors import LinePriors
from specutils_blase.ledger.equivalent_widths import equivalent_width, equivalent_width_with_gradient
from specutils_blase.model.parameters import KINDS
from specutils_blase.physics.grids import SPEED_OF_LIGHT
from specutils_blase.posterior.laplace import free_parameters, normal_equations

ORDER = 24
RESOLVING_POWER = 55_000.0
RV = -35.47
LIMB_DARKENING = (0.4, 0.2)
CONTINUUM = (1.0, -0.06, 0.02)
MARGIN = 200.0 / SPEED_OF_LIGHT
SIGNIFICANT = 10.0
"""True equivalent width over the error that such data allow of it, at the truth, from which on a line's pulls count.

Neither may be the fit's. Chosen by the width that is found, lines come in for being found too strong, and their pulls
have a median of +0.1; by the error that is found, which is relative, lines of S/N 3 come in for being found too weak.
"""

SHARED = Path(__file__).resolve().parents[3] / "shared"
"""Spectra and templates that are no part of the repository."""

WIDTHS = {f"scatter_{name}": getattr(LinePriors(), name) for name in KINDS}
LINE_COLUMNS = ["center", "area", "sigma", "gamma"]


@cache
def region(part: float = 1.0) -> np.ndarray:
    """Pixels of the order, or of its first part."""
    pixels = simulate.hpf_wavelengths(ORDER)
    return pixels[: int(part * pixels.size)]


@cache
def clones(part: float = 1.0):
    """The star's and the sky's clone around these pixels."""
    pixels = region(part)
    span = (pixels[0] * (1.0 - MARGIN), pixels[-1] * (1.0 + MARGIN))
    # One line a dip, as in the document's tables: rounds add three times as many, of which most do another's work.
    options = {"region": span, "in_rounds": False, "progress": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", sb.BlaseQualityWarning)  # 1.4 % off their templates, which nobody sees
        star = sb.clone(templates.arcturus(), **options)
        sky = sb.clone(templates.telfit_hpf(), resolving_power=RESOLVING_POWER, **options)
    return star, sky


def true_lines(clone, seed: int, truth: str, widths: dict[str, float] = WIDTHS):
    """A clone's lines, scattered as `truth` and `widths` say, within the bounds that a fit sets to them.

    The bounds are part of the fit's prior, which is nothing beyond them. Student's t has one line in a thousand there,
    with σ of ångströms or an area 10⁴ times the clone's: these values are drawn again.
    """
    lines = clone.ledger[LINE_COLUMNS]
    if truth == "clone":
        return lines
    scatter = {"degrees_of_freedom": LinePriors().degrees_of_freedom if truth == "prior" else np.inf} | widths
    drawn = simulate.perturbed(lines, seed=seed, **scatter)
    again = np.random.default_rng([seed, 1])
    while any((beyond := beyond_bounds(clone, drawn)).values()):
        other = simulate.perturbed(lines, seed=int(again.integers(2**32)), **scatter)
        for name, which in beyond.items():
            drawn[name][which] = other[name][which]
    return drawn


def beyond_bounds(clone, lines) -> dict[str, list[int]]:
    """Of each of `LINE_COLUMNS` the lines that have it where a fit that starts from the clone does not let it go."""
    true, center = values(lines, np.arange(len(lines))), clone.emulator.center.numpy()
    found = {name: np.log(true[name]) for name in ("area", "sigma", "gamma")}
    found["center"] = SPEED_OF_LIGHT * (true["center"] / center - 1.0)
    bounds = line_bounds(clone.emulator)
    beyond = {}
    for kind, name in zip(KINDS, ("area", "sigma", "gamma", "center"), strict=True):
        lower, upper = (bound.numpy() for bound in bounds[kind])
        beyond[name] = np.flatnonzero((found[name] < lower) | (found[name] > upper)).tolist()
    return beyond


def observe(star, sky, *, seed: int, part: float = 1.0, vsini: float = 8.3, resolving_power=RESOLVING_POWER, **options):
    """The order, by brute force."""
    options = {"snr": 100.0, "continuum": CONTINUUM, "limb_darkening": LIMB_DARKENING, "rv": RV} | options
    return simulate.simulate(
        region(part), star, sky, vsini=vsini, resolving_power=resolving_power, seed=seed, **options
    )


def fitted(data, star, sky, **options):
    """A fit as a user asks for it who knows the spectrograph and neither velocity."""
    options = {"resolving_power": RESOLVING_POWER, "limb_darkening": LIMB_DARKENING} | options
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the fit did not converge", RuntimeWarning)  # kept in the record
        warnings.simplefilter("ignore", sb.BlaseQualityWarning)
        return sb.fit(data, star, telluric=sky, progress=False, **options)


def in_clone(rows, clone) -> np.ndarray:
    """Which lines of a clone these rows of a ledger are.

    A fit keeps the lines that the order can see, and moves them: they are known by where they started.
    """
    start = rows["center"].to_value(u.AA) / (1.0 + rows["rv_offset"].to_value(u.km / u.s) / SPEED_OF_LIGHT)
    return np.abs(clone.emulator.shifted_center.detach().numpy()[:, None] - start).argmin(axis=0)


def values(truth, index: np.ndarray) -> dict[str, np.ndarray]:
    """Centre, area, σ, γ [Å] of some of the true lines."""
    return {name: np.asarray(u.Quantity(truth[name], u.AA).value)[index] for name in LINE_COLUMNS}


def against_truth(fit, clone, truth, component: str) -> dict[str, np.ndarray]:
    """Lines of a component that were fitted, beside what they were made from."""
    rows = fit.ledger[(fit.ledger["component"] == component) & fit.ledger["free"] & ~fit.ledger["edge"]]
    index = in_clone(rows, clone)
    true = values(truth, index)
    columns = {name: torch.as_tensor(values) for name, values in true.items()}
    with torch.no_grad():
        width = equivalent_width(clone.emulator.law, **columns).numpy()
    area, error = rows["area"].value, rows["area_err"].value
    return {
        "index": index,
        "id": np.asarray(rows["id"]),
        "snr": rows["snr"].value,
        "ln_area": np.log(area / true["area"]),
        "ln_area_err": error / area,
        "equivalent_width": rows["equivalent_width"].value - width,
        "equivalent_width_err": rows["equivalent_width_err"].value,
        "true_width": width,
    }


def mean_information(priors: LinePriors) -> np.ndarray:
    """Of Student's t of each of `KINDS`, over truths drawn from it: (ν + 1)/(ν + 3)/s²."""
    width = np.array([getattr(priors, kind) for kind in KINDS])
    return (priors.degrees_of_freedom + 1.0) / (priors.degrees_of_freedom + 3.0) / width**2


@torch.no_grad()
def errors_at_truth(fit, clones: dict, truths: dict, vsini: float) -> dict[str, np.ndarray]:
    """Errors of all equivalent widths [Å] that the data of a fit allow with every line as it truly is.

    With the mean information of the priors: nothing in it has seen the noise.
    """
    model, precision = copy.deepcopy(fit.model), {}
    model.doppler.rv.fill_(RV)
    model.rotation.vsini.fill_(vsini)
    information = torch.as_tensor(mean_information(LinePriors()))
    for name, emulator in model.components.items():
        true = values(truths[name], in_clone(fit.ledger[fit.ledger["component"] == name], clones[name]))
        offset = SPEED_OF_LIGHT * (true["center"] / emulator.center.numpy() - 1.0)
        logs = [np.log(true[kind]) for kind in ("area", "sigma", "gamma")]
        emulator.set_line_parameters(torch.as_tensor(np.stack([*logs, offset], axis=1)))
        precision[name] = torch.where(fit.curvature.prior_precision[name] > 0, information, 0.0)
    curvature = replace(fit.curvature, prior_precision=precision)
    free = free_parameters(model, fit.parameters, curvature)
    factor, found = normal_equations(free, curvature).factor(), {}
    for name, emulator in model.components.items():
        chosen = free.lines[name]
        covariance = factor.covariance_blocks(free.columns(name))[:, :3, :3]
        line = (emulator.shifted_center, emulator.area, emulator.sigma, emulator.gamma)
        _, slope = equivalent_width_with_gradient(emulator.law, *(each[chosen] for each in line))
        found[name] = np.full(len(emulator), np.inf)
        found[name][chosen] = torch.einsum("ni,nij,nj->n", slope, covariance, slope).sqrt().numpy()
    return found


def line_pulls(fit, star, sky, true_star, true_sky, vsini: float) -> dict[str, list[float]]:
    """Pulls of ln area and equivalent width of all lines above `SIGNIFICANT`, star and sky."""
    found = {"ln_area": [], "equivalent_width": [], "relative_width": []}
    clones, truths = {"star": star, "telluric": sky}, {"star": true_star, "telluric": true_sky}
    allowed = errors_at_truth(fit, clones, truths, vsini)
    for name, clone in clones.items():
        lines = against_truth(fit, clone, truths[name], name)
        use = lines["true_width"] > SIGNIFICANT * allowed[name][lines["id"]]
        for kind in ("ln_area", "equivalent_width"):
            found[kind] += (lines[kind] / lines[f"{kind}_err"])[use].tolist()
        found["relative_width"] += (lines["equivalent_width"] / lines["true_width"])[use].tolist()
    return found


def velocities(fit, vsini: float) -> dict:
    """What a fit says of the velocities, against the truth, and of itself."""
    return {
        "rv": fit.value("rv") - RV,
        "rv_err": fit.error("rv"),
        "vsini": fit.value("vsini") - vsini,
        "vsini_err": fit.error("vsini"),
        "chi2": fit.reduced_chi2,
        "rms": fit.rms,
        "success": fit.success,
        "n_iteration": len(fit.history),
    }


def scattered(snr: float, vsini: float, truth: str, seed: int, part: float, **options):
    """One truth, one noise, one fit, with the clones and the true lines of star and sky."""
    star, sky = clones(part)
    true = true_lines(star, 2 * seed + 1, truth), true_lines(sky, 2 * seed + 2, truth)
    data = observe(*true, seed=seed, snr=snr, vsini=vsini, part=part)
    return fitted(data, star, sky, **options), (star, sky), true


def calibration(snr: float, vsini: float, truth: str, seed: int, part: float = 1.0, **options) -> dict:
    """Pulls of everything (item 1)."""
    fit, components, true = scattered(snr, vsini, truth, seed, part, **options)
    return velocities(fit, vsini) | line_pulls(fit, *components, *true, vsini)


def means(snr: float, vsini: float, seed: int, part: float = 1.0) -> dict:
    """As `calibration`: pulls of ln area of all lines, where the ledger has them and at their means (item 6)."""
    fit, components, true = scattered(snr, vsini, "prior", seed, part)
    told = fit.line_means(progress=False)
    record = velocities(fit, vsini) | {"significance": [], "ledger": [], "means": []}
    for name, clone, truth in zip(("star", "telluric"), components, true, strict=True):
        lines = against_truth(fit, clone, truth, name)
        chosen = (fit.ledger["component"] == name) & fit.ledger["free"] & ~fit.ledger["edge"]
        at_mean = lines["ln_area"] + told["ln_area_shift"][chosen] * lines["ln_area_err"]
        record["significance"] += (lines["true_width"] / lines["equivalent_width_err"]).tolist()
        record["ledger"] += (lines["ln_area"] / lines["ln_area_err"]).tolist()
        record["means"] += (at_mean / told["ln_area_err"][chosen]).tolist()
    return record


CHANGED, DEX = 0.2, 1.0

EXPECTED = 1.0
"""Width of the prior on ln area of a user who expects that: with it Student's t has a standard deviation of 1.41, areas
that are changed evenly by up to `DEX` one of 1.33."""


def changed(snr: float, vsini: float, seed: int, part: float = 1.0, ln_area: float | None = None) -> dict:
    """A fifth of the lines stronger or weaker by up to a factor of ten, all others as cloned (item 2).

    `ln_area` is the width of the prior of a user who expects it.
    """
    priors = LinePriors() if ln_area is None else LinePriors(ln_area=ln_area)
    star, sky = clones(part)
    rng = np.random.default_rng(1000 + seed)
    truth, moved = {}, {}
    for name, clone in (("star", star), ("telluric", sky)):
        lines = clone.ledger[LINE_COLUMNS]
        moved[name] = rng.random(len(lines)) < CHANGED
        lines["area"] = lines["area"] * 10.0 ** (moved[name] * rng.uniform(-DEX, DEX, len(lines)))
        truth[name] = lines
    data = observe(truth["star"], truth["telluric"], seed=seed, snr=snr, vsini=vsini, part=part)
    fit = fitted(data, star, sky, star_priors=priors, telluric_priors=priors)
    record = velocities(fit, vsini) | {"changed": [], "unchanged": [], "changed_snr": [], "unchanged_snr": []}
    for name, clone in (("star", star), ("telluric", sky)):
        lines = against_truth(fit, clone, truth[name], name)
        pulls, which = lines["ln_area"] / lines["ln_area_err"], moved[name][lines["index"]]
        for kind, chosen in (("changed", which), ("unchanged", ~which)):
            record[kind] += pulls[chosen].tolist()
            record[f"{kind}_snr"] += lines["snr"][chosen].tolist()
    return record


def reason_to_skip() -> str:
    """Why there is no other star; nothing if there is."""
    needed = SHARED / "tools" / "templates.py"
    return "" if needed.exists() else f"other stars' templates need {needed}, beside the repository, which is absent"


@cache
def other_star(name: str, part: float = 1.0):
    """Another star's clone, from the templates beside the repository."""
    import sys

    if reason := reason_to_skip():
        raise FileNotFoundError(reason)
    tools = str(SHARED / "tools")
    if tools not in sys.path:
        sys.path.insert(0, tools)
    from templates import lte

    pixels = region(part)
    span = (pixels[0] * (1.0 - MARGIN), pixels[-1] * (1.0 + MARGIN))
    return sb.clone(lte(name), region=span, progress=False)


def wrong_star(snr: float, vsini: float, name: str, jitter: bool, seed: int, part: float = 1.0) -> dict:
    """Arcturus' lines observed, another star's lines fitted (item 4)."""
    star, sky = clones(part)
    true_star, true_sky = true_lines(star, 2 * seed + 1, "clone"), true_lines(sky, 2 * seed + 2, "prior")
    data = observe(true_star, true_sky, seed=seed, snr=snr, vsini=vsini, part=part)
    template = star if name == "right" else other_star(name, part)
    return velocities(fitted(data, template, sky, jitter=jitter, robust=jitter), vsini)


DELETED, DEEP, DETECTABLE = 0.05, 0.02, 5.0


def missing(snr: float, vsini: float, truth: str, seed: int, part: float = 1.0, expected: float = 0.1) -> dict:
    """A twentieth of the lines deeper than 2 % taken out of the templates, and searched for (item 3).

    The lines that stay are the clones' own, or scattered as `truth` says, and so are those taken out.
    How significant a line could be is what the fit that has it says of its strength, its own prior taken away.
    """
    star, sky = clones(part)
    rng = np.random.default_rng(3000 + seed)
    lines = {"star": true_lines(star, 2 * seed + 1, truth), "telluric": true_lines(sky, 2 * seed + 2, truth)}
    data = observe(lines["star"], lines["telluric"], seed=seed, snr=snr, vsini=vsini, part=part)
    complete = fitted(data, star, sky)
    pixels, n_deleted = region(part), 0
    known = {"wavelength": [], "possible": []}
    poorer, everything = {}, []
    for name, clone in (("star", star), ("telluric", sky)):
        taken = (clone.ledger["depth"] > DEEP) & (rng.random(len(clone.ledger)) < DELETED)
        poorer[name] = clone.emulator.subset(torch.as_tensor(~taken).nonzero().squeeze(-1))
        kept = against_truth(complete, clone, lines[name], name)["index"]
        rows = (complete.ledger["component"] == name) & complete.ledger["free"] & ~complete.ledger["edge"]
        at = complete.ledger["id"][rows]
        variance = complete.line_covariance[name][at, 0, 0]
        own = complete.curvature.prior_precision[name][at, 0].numpy()
        possible = np.sqrt(np.maximum(1.0 / variance - own, 0.0))
        factor = 1.0 + RV / SPEED_OF_LIGHT if name == "star" else 1.0
        inside = taken[kept]
        everything += (lines[name]["center"].to_value(u.AA)[taken] * factor).tolist()
        n_deleted += int(inside.sum())
        known["wavelength"] += (lines[name]["center"].to_value(u.AA)[kept[inside]] * factor).tolist()
        known["possible"] += possible[inside].tolist()
    without = fitted(data, poorer["star"], poorer["telluric"])
    fit = fitted(data, poorer["star"], poorer["telluric"], missing_lines=expected)
    place, true = fit.missing_lines["wavelength"].to_value(u.AA), np.array(known["wavelength"])

    def distances(lines) -> np.ndarray:
        """Of every line found to every one of these, in resolution elements."""
        return np.abs(place[:, None] - np.append(lines, np.inf)) * RESOLVING_POWER / place[:, None]

    found = (distances(true) < 1.0 / 3.0).any(axis=0)[:-1]
    record = {f"{key}_{label}": value for label, one in (("complete", complete), ("without", without), ("with", fit))
              for key, value in velocities(one, vsini).items()}  # fmt: skip
    near = distances(everything).min(axis=1)  # those taken out beyond the ends show inside as well
    return record | {
        "pixels": len(pixels),
        "wavelength": true.tolist(),
        "possible": known["possible"],
        "found": found.tolist(),
        "false": place[near > 1.0 / 3.0].tolist(),
        "stray": place[near > 1.0].tolist(),
    }


FLAWS = {
    "none": ({}, {}),
    "resolving power told 10 % too high": ({}, {"resolving_power": 1.1 * RESOLVING_POWER}),
    "resolving power told 10 % too low": ({}, {"resolving_power": 0.9 * RESOLVING_POWER}),
    "the same, resolving power free": (
        {},
        {
            "resolving_power": 0.9 * RESOLVING_POWER,
            "free": ("rv", "vsini", "continuum", "resolving_power"),
        },
    ),
    "wavelengths drift by 0.3 km/s": ({"wavelength_drift": 0.3}, {}),
    "1 % scattered light": ({"scattered_light": 0.01}, {}),
    "uncertainties told 5 % too small": ({"uncertainty_factor": 0.95}, {}),
    "uncertainties told 5 % too large": ({"uncertainty_factor": 1.05}, {}),
}
"""Name of what is wrong to the options of the simulation and of the fit."""


def flaw(name: str, snr: float, vsini: float, seed: int, part: float = 1.0) -> dict:
    """Data or knowledge of them that are not what they should be (item 5); the same truths and noise for all flaws."""
    star, sky = clones(part)
    true_star, true_sky = true_lines(star, 2 * seed + 1, "prior"), true_lines(sky, 2 * seed + 2, "prior")
    simulation, options = FLAWS[name]
    data = observe(true_star, true_sky, seed=seed, snr=snr, vsini=vsini, part=part, **simulation)
    fit = fitted(data, star, sky, **options)
    return velocities(fit, vsini) | line_pulls(fit, star, sky, true_star, true_sky, vsini)
