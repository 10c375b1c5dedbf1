"""How far clones must move to become real stars and skies: the widths of the priors of `LinePriors`, measured.

Pairs of observation and clones from the folder ``../shared`` beside the repository, and a simulation whose lines
scatter by widths that are known. Each order is fitted by itself with ``jitter=True, robust=True``: of a clone that
lacks lines, or whose profiles are wrong, the residuals are many times the noise, and lines asked to explain them at the
noise's price would move as far as they can. The added noise says that they need not.

Does not live here: how widths follow from fits (`prior_evidence`), the simulated order (`cases`).
"""

from __future__ import annotations

import math
import sys
import warnings
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import cases
import numpy as np
import prior_evidence
import torch
from cases import SHARED
from prior_evidence import COMPONENTS, GROUPS

import specutils_blase as sb
from specutils_blase import simulate, templates
from specutils_blase.adapters.muler import load_hpf_orders
from specutils_blase.inference.priors import LinePriors
from specutils_blase.model.parameters import KINDS

FREEDOMS = (2.0, 4.0, 8.0, math.inf)
REFITS, SAME = 3, 0.1
"""Most fits of a pair, and the change of ln s between two of them that ends them."""

SIMULATION = "simulation "
KNOWN = {"ln_area": 0.15, "ln_sigma": 0.08, "ln_gamma": 0.3, "rv_offset": 0.2}
"""Widths of the simulation: other than the defaults, so that an estimator that stays where it starts is found out."""


@dataclass(frozen=True)
class Observed:
    """One order and the clones that it is fitted with; `options` are those of `fit`."""

    name: str
    spectrum: object
    star: object = None
    telluric: object = None
    options: dict = field(default_factory=dict)

    @property
    def emulators(self) -> dict:
        clones = {"star": self.star, "telluric": self.telluric}
        return {name: getattr(each, "emulator", each) for name, each in clones.items() if each is not None}


def _around(spectrum, margin: float) -> tuple[float, float]:
    ends = spectrum.wavelength.value[[0, -1]]
    return float(ends.min()) - margin, float(ends.max()) + margin


def _shared(path: str) -> Path:
    found = SHARED / path
    if not found.exists():
        raise FileNotFoundError(f"needs {found}: real spectra lie in a folder beside the repository, not in it")
    return found


def wasp69() -> list[Observed]:
    """K5 V, HPF order 5, telluric-corrected; the star from blasé's PHOENIX 4700 K lines."""
    from astropy import units as u
    from astropy.nddata import StdDevUncertainty
    from astropy.table import Table
    from specutils import Spectrum

    from specutils_blase.fitting.inputs import component_emulator

    table = Table.read(_shared("data/hpf/WASP_69_hpf_stack.fits"))
    wavelength, flux, sigma = (
        np.ma.filled(np.ma.asarray(table[name]).astype(float), np.nan) for name in ("wavelength", "flux", "uncertainty")
    )
    axis = {"spectral_axis": wavelength * u.AA, "uncertainty": StdDevUncertainty(sigma)}
    spectrum = Spectrum(flux=flux * u.one, **axis)
    lines = Table(dict(np.load(_shared("data/blase/T4700g4p5_lines.npz"))))
    star = component_emulator(lines, "star", _around(spectrum, 0.0), None, 55_000.0, False)
    return [Observed("5", spectrum, star, options={"resolving_power": 55_000})]


def _hpf(path: str, orders: tuple[int, ...]) -> dict:
    return dict(zip(orders, load_hpf_orders(_shared(path), orders), strict=True))


def _telfit(spectrum):
    region = _around(spectrum, 1.0)
    return sb.clone(templates.telfit_hpf(), region=region, resolving_power=55_000, prominence=0.005, progress=False)


def hr3039() -> list[Observed]:
    """A0 V, turning fast: the sky from TelFit, the star from PHOENIX 10,000 K; orders with telluric lines."""
    found = []
    path = "data/hpf/Goldilocks_20210212T072837_v1.0_0037.spectra.fits"
    for order, spectrum in _hpf(path, (11, 13, 15, 20)).items():
        star = sb.clone(templates.phoenix_10000K(), region=_around(spectrum, 25.0), continuum=3, progress=False)
        options = {"rv": 0.0, "vsini": 150.0}
        found.append(Observed(str(order), spectrum, star, _telfit(spectrum), options))
    return found


def gj699() -> list[Observed]:
    """M4 V with an LTE spectrum of 3500 K that lacks molecules, a poor template on purpose; sky from TelFit."""
    tools = str(_shared("tools"))
    if tools not in sys.path:
        sys.path.insert(0, tools)
    from templates import lte

    found = []
    for order, spectrum in _hpf("data/hpf/Slope-20181003T014556_R01.optimal.fits", (15, 16, 17)).items():
        star = sb.clone(lte("mdwarf_3500_hpf"), region=_around(spectrum, 15.0), progress=False)
        found.append(Observed(str(order), spectrum, star, _telfit(spectrum), {"vsini": 2.0}))
    return found


def a0v_k() -> list[Observed]:
    """The A0 V standard of CPD-57 1131, IGRINS K: no stellar line but Br γ; the sky from PSG, molecule by molecule.

    CPD-57 1131 itself has broad molecular bands that no template here describes. PSG's lines are unresolved, one sample
    a resolution element of 100,000: with the resolving power held, σ would have to be what the spectrograph is not.
    """
    night = sb.from_igrins(_shared("data/igrins/SDCK_20201202_0059.spec_a0v.fits"), extension="A0V_SPEC")
    found = []
    for order in (8, 21):
        spectrum = night[order].remove_nans()
        spectrum = spectrum[slice(*np.searchsorted(spectrum.wavelength.value, _trimmed(night[order])))]
        low, high = _around(spectrum, 10.0)
        axis = next(iter(templates.psg_hk_species().values())).spectral_axis.value
        inside = slice(*np.searchsorted(axis, (low, high)))
        molecules = {name: each[inside] for name, each in templates.psg_hk_species().items()}
        sky = sb.clone_species(molecules, prominence=0.02, progress=False)
        options = {"resolving_power": 45_000, "free": ("continuum", "resolving_power")}
        found.append(Observed(str(order), spectrum, telluric=sky, options=options))
    return found


def _trimmed(spectrum) -> np.ndarray:
    """First and last wavelength of what muler does not call noisy."""
    return spectrum.wavelength.value[[451, 1949]]


def simulation(seed: int) -> list[Observed]:
    """The order of `cases` at S/N 300, its lines scattered by `KNOWN` in Student's t of four degrees of freedom."""
    star, sky = cases.clones()
    scatter = {f"scatter_{kind}": width for kind, width in KNOWN.items()}
    truth = [
        simulate.perturbed(each.ledger[cases.LINE_COLUMNS], seed=2 * seed + k, degrees_of_freedom=4.0, **scatter)
        for k, each in enumerate((star, sky))
    ]
    data = cases.observe(*truth, seed=seed, snr=300.0)
    return [Observed(f"seed {seed}", data, star, sky, {"resolving_power": cases.RESOLVING_POWER})]


PAIRS = {
    "HR 3039, PHOENIX 10,000 K, TelFit": hr3039,
    "A0 V standard (K), PSG": a0v_k,
    "WASP-69, PHOENIX 4700 K": wasp69,
    "GJ 699, LTE 3500 K, TelFit": gj699,
}


CASES = ("measured", "held_out")
"""What `run.py` finds here."""


def reason_to_skip() -> str:
    """Why real pairs cannot be measured here; nothing if they can."""
    return "" if SHARED.is_dir() else f"real spectra lie in {SHARED}, a folder beside the repository, which is absent"


def measuring_tasks(seeds: range) -> list[tuple[str, dict]]:
    pairs = [] if reason_to_skip() else [("measured", {"pair": pair, "jitter": True}) for pair in PAIRS]
    return pairs + [("measured", {"pair": f"{SIMULATION}{seed}", "jitter": True}) for seed in seeds]


def held_out_tasks(records: list[dict]) -> list[tuple[str, dict]]:
    """Cross-validation of every order of the real pairs: the defaults, half and twice these, and what was measured."""
    todo, default = [], default_widths()
    for record in records:
        pair, result = record["arguments"]["pair"], record["result"]
        if pair.startswith(SIMULATION) or "reason" in result:
            continue
        best = result["freedom"][int(np.argmax(result["freedom_evidence"]))]
        settings = {
            "default": (default.tolist(), "4.0"),
            "half": ((0.5 * default).tolist(), "4.0"),
            "twice": ((2.0 * default).tolist(), "4.0"),
            "measured": (result["widths"], "4.0"),
        }
        if best != "4.0":
            settings[f"measured, ν = {best.removesuffix('.0')}"] = (
                result["freedom_value"][result["freedom"].index(best)],
                best,
            )
        for name, (widths, freedom) in settings.items():
            for order in result["orders"]:
                arguments = {"pair": pair, "order": order, "name": name, "widths": widths, "freedom": freedom}
                todo.append(("held_out", arguments))
    return todo


@cache
def observed(pair: str) -> list[Observed]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if pair.startswith(SIMULATION):
            return simulation(int(pair.removeprefix(SIMULATION)))
        return PAIRS[pair]()


def default_widths() -> torch.Tensor:
    return torch.tensor([getattr(LinePriors(), kind) for _, kind in GROUPS], dtype=torch.float64)


def priors(widths, freedom: float) -> dict[str, LinePriors]:
    """The arguments of `fit` for widths of all groups."""
    by_group = {group: float(width) for group, width in zip(GROUPS, widths, strict=True)}
    return {
        f"{name}_priors": LinePriors(**{kind: by_group[name, kind] for kind in KINDS}, degrees_of_freedom=freedom)
        for name in COMPONENTS
    }


def usable(found: prior_evidence.Widths, start: torch.Tensor) -> torch.Tensor:
    """Widths to fit with: where there is only an upper limit, what they were, if that is below it."""
    kept = torch.minimum(start, torch.nan_to_num(found.limit, nan=math.inf))
    return torch.where(found.error.isfinite(), found.value, kept)


def fitted(order: Observed, jitter: bool = True, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # convergence is kept in the record
        return sb.fit(
            order.spectrum, order.star, telluric=order.telluric, jitter=jitter, robust=jitter, progress=False,
            **(order.options | more),
        )  # fmt: skip


def measured(pair: str, jitter: bool = True) -> dict:
    """Widths of a pair: fits and widths in turn until these stand still, then other degrees of freedom."""
    orders, start = observed(pair), default_widths()
    widths, rounds = start, []
    for _ in range(REFITS):
        fits = [fitted(order, jitter, **priors(widths, 4.0)) for order in orders]
        known = [prior_evidence.knowledge(fit, order.emulators) for fit, order in zip(fits, orders, strict=True)]
        try:
            found = prior_evidence.best_widths(known, start, 4.0, FREEDOMS)
        except ArithmeticError as error:  # a result too: nothing is measured where nothing settles
            return {"orders": [order.name for order in orders], "rounds": rounds, "reason": str(error)}
        rounds.append(found.value.tolist())
        before, widths = widths, usable(found, start)
        if float((widths / before).log().abs().max()) < SAME:
            break
    columns = ("value", "error", "limit", "n_line", "n_telling", "center", "center_error", "spread")
    return {name: getattr(found, name).tolist() for name in columns} | {
        "orders": [order.name for order in orders],
        "rounds": rounds,
        "widths": widths.tolist(),
        "freedom": [str(each) for each in FREEDOMS],
        "freedom_value": [found.freedom_value[each].tolist() for each in FREEDOMS],
        "freedom_evidence": [found.freedom_evidence[each] for each in FREEDOMS],
        "success": [fit.success for fit in fits],
        "chi2": [float(fit.orders["reduced_chi2"][0]) for fit in fits],
        "jitter": [float(fit.orders["jitter"][0]) for fit in fits],
        "rms": [fit.rms for fit in fits],
    }


def held_out(pair: str, order: str, name: str, widths: list[float], freedom: str, folds: int = 2) -> dict:
    """`cross_validate` of one order of a pair with these widths, which go by a name."""
    (one,) = [each for each in observed(pair) if each.name == order]
    table = sb.cross_validate(
        one.spectrum, one.star, settings={name: priors(widths, float(freedom))}, folds=folds, progress=False,
        telluric=one.telluric, jitter=True, robust=True, **one.options,
    )  # fmt: skip
    return {column: table[column][0].item() for column in table.colnames if column not in ("name", "best")}
