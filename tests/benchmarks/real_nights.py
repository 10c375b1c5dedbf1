"""Whole nights: HR 3039 and GJ 699 (HPF, 28 orders), CPD-57 1131 (IGRINS); cases of `run.py`.

Clones take longer than some of the fits and do not count: they are made once and kept for the session.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import numpy as np
import torch

import specutils_blase as sb
from specutils_blase import templates
from specutils_blase.adapters.muler import load_hpf_orders

SHARED = Path(__file__).resolve().parents[3] / "shared"
HPF = {
    "hr3039": "Goldilocks_20210212T072837_v1.0_0037.spectra.fits",
    "gj699": "Slope-20181003T014556_R01.optimal.fits",
}


def kept(name: str, make):
    """A clone, read from where it was left by the first that needed it."""
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"specutils_blase_{name}_{os.getuid()}.asdf"
    if not path.exists():
        make().write(path)
    return sb.read(path)


def star_of(name: str):
    if name == "hr3039":
        return kept("phoenix", lambda: sb.clone(templates.phoenix_10000K(), continuum=7, progress=False))
    sys.path.insert(0, str(SHARED / "tools"))
    from templates import lte

    return kept("mdwarf", lambda: sb.clone(lte("mdwarf_3500_hpf"), progress=False))


def telfit():
    options = {"resolving_power": 55_000, "prominence": 0.005, "progress": False}
    return kept("telfit", lambda: sb.clone(templates.telfit_hpf(), **options))


def hpf_orders(name: str, every: int = 1) -> list:
    """Orders as a muler user prepares them."""
    return load_hpf_orders(SHARED / "data" / "hpf" / HPF[name], range(0, 28, every))


def telluric_gain(fit) -> dict[str, float]:
    """Scatter of the corrected spectrum in telluric lines: dividing by plain TelFit over that of the fit, by order."""
    template = templates.telfit_hpf()
    gains = {}
    for k in range(len(fit)):
        order = fit.order(k)
        parts = {name: values.numpy() for name, values in order.evaluate().items()}
        clean = parts["star"] * parts["continuum"]
        through = order.data.good.numpy() & (parts["telluric"] < 0.98) & (parts["telluric"] > 0.1)
        if through.sum() <= 50:
            continue
        transmission = np.interp(order.data.wavelength, template.spectral_axis.value, template.flux.value)
        by_template = np.std((order.data.flux.numpy() / transmission / clean)[through])
        by_fit = np.std((order.telluric_corrected.flux.value / clean)[through])
        gains[str(fit.orders["order"][fit.orders["fitted"]][k])] = float(by_template / by_fit)
    return gains


WINDOW = 0.5
"""Half width [Å] of the pixels around a line that tell how wrong its template is there."""


def concentration(fit, star) -> dict:
    """Where the ledger changed: lines by how far the star's template, behind the fitted sky, is from the data there.

    Quarters of the significant stellar lines, from the best to the worst template: the RMS of data minus template, how
    many lines moved by more than 0.5 in ln area, and by how much the middle one moved.
    """
    ledger, factor = fit.ledger, float(fit.model.doppler.factor)
    centers = star.emulator.shifted_center
    misfit, moved = [], []
    for k, order in enumerate(fit.model.orders):
        data = fit.data[k]
        wavelength, good = data.wavelength.numpy(), data.good.numpy()
        near = (centers > 0.99 * wavelength[0]) & (centers < 1.01 * wavelength[-1])
        own = star.emulator.subset(near.nonzero().squeeze(-1))
        template = order.with_components(star=own, telluric=order.telluric)
        with torch.no_grad():
            level = order.continuum.value().numpy()
            square = ((data.flux.numpy() - template().numpy()) / level) ** 2
        name = str(fit.orders["order"][fit.orders["fitted"]][k])
        mine = [name in orders.split(",") for orders in ledger["orders"]]
        rows = ledger[mine & (ledger["component"] == "star") & ledger["free"] & (ledger["snr"] > 3)]
        for place, change in zip(rows["center"].value * factor, rows["delta_ln_area"], strict=True):
            inside = good & (np.abs(wavelength - place) < WINDOW)
            if inside.sum() > 3:
                misfit.append(np.sqrt(square[inside].mean()))
                moved.append(abs(change))
    misfit, moved = np.array(misfit), np.array(moved)
    quarters = np.array_split(np.argsort(misfit), 4)
    return {
        "misfit_percent": " ".join(f"{100 * np.median(misfit[quarter]):.2g}" for quarter in quarters),
        "changed_percent": " ".join(f"{100 * np.mean(moved[quarter] > 0.5):.0f}" for quarter in quarters),
        "median_change": " ".join(f"{np.median(moved[quarter]):.2f}" for quarter in quarters),
    }


def figures_of(fit, seconds: float) -> dict:
    fitted = fit.orders[fit.orders["fitted"]]
    chi2 = np.asarray(fitted["reduced_chi2"])
    return {
        "orders": len(fit),
        "pixels": int(sum(len(one) for one in fit.data)),
        "lines": len(fit.ledger),
        "seconds": seconds,
        "iterations": len(fit.history),
        "converged": fit.success,
        "rms_percent": 100.0 * fit.rms,
        "chi2_by_order": " ".join(f"{value:.3g}" for value in chi2),
    }


def hpf(star: str, every: int = 1) -> dict:
    """All orders, or every so many, in one fit with both clones ready."""
    orders, clone, sky = hpf_orders(star, every), star_of(star), telfit()
    work = sb.fit  # loads torch: imports do not count
    start = time.perf_counter()
    fit = work(orders, clone, telluric=sky, progress=False)
    figures = figures_of(fit, time.perf_counter() - start)
    for quantity in ("rv_barycentric", "vsini"):
        figures[quantity] = f"{fit.value(quantity):.3f} ± {fit.error(quantity):.3f}"
    if star == "gj699":
        return figures | concentration(fit, clone)
    gains = telluric_gain(fit)
    figures["gain_median"], figures["gain_least"] = float(np.median(list(gains.values()))), min(gains.values())
    return figures | {"gain_by_order": " ".join(f"{name}: {gain:.1f}" for name, gain in gains.items())}


def igrins(band: str, species: bool = True) -> dict:
    """One band of CPD-57 1131 as observed, not divided by a standard: PSG as the sky, no star.

    PSG's template has twenty times as much water as that night: with all molecules as one, carbon dioxide and methane
    have to follow it.
    """
    path = next((SHARED / "data" / "igrins").glob(f"SDC{band}_20201202_0059.spec_a0v.fits"))
    orders = sb.from_igrins(path, extension="TGT_SPEC")

    def make():
        if species:
            return sb.clone_species(templates.psg_hk_species(), progress=False)
        template = templates.psg_hk()
        return sb.clone(template, resolving_power=template.meta["resolving_power"], progress=False)

    sky = kept("psg_species" if species else "psg", make)
    start = time.perf_counter()
    fit = sb.fit(list(orders), telluric=sky, continuum=6, progress=False)  # the blaze is in the counts
    factors = fit.settings["telluric_scale"]["factors"]
    figures = figures_of(fit, time.perf_counter() - start) | {"left_out": len(fit.orders) - len(fit)}
    figures["rms_by_order"] = " ".join(f"{100 * one:.3g}" for one in fit.orders["rms"][fit.orders["fitted"]])
    return figures | {"factors": " ".join(f"{name or 'all'}: {factor:.3f}" for name, factor in factors.items())}
