"""Real orders with a template of another star against a published velocity: item "another", docs/validation.md.

GJ 699 (M4 V) as HPF saw it, orders with more star than sky, with the LTE template of 3500 K: its lines are three times
too strong in some orders, TiO and FeH are not in it. The barycentric velocity is -110.5 km/s.
"""

from __future__ import annotations

import warnings
from functools import cache

from cases import SHARED

import specutils_blase as sb
from specutils_blase import templates
from specutils_blase.adapters.muler import load_hpf_orders

PUBLISHED = -110.5
"""km/s."""

FILE = SHARED / "data" / "hpf" / "Slope-20181003T014556_R01.optimal.fits"
ALONE = (4, 5, 6, 14, 15, 16, 17, 18)
TOGETHER = (5, 6, 15, 16)
MARGINS = {"star": 25.0, "telluric": 1.0}
"""Å by which clones exceed an order."""


@cache
def observed(order: int):
    (spectrum,) = load_hpf_orders(FILE, [order])
    return spectrum


@cache
def clones(first: int, last: int):
    """Clones by default around orders."""
    from starts import cut, lte

    low, high = observed(first).spectral_axis.value[0], observed(last).spectral_axis.value[-1]
    near = {name: [(low - margin, high + margin)] for name, margin in MARGINS.items()}
    star = sb.clone(cut(lte("mdwarf_3500_hpf"), near["star"]), progress=False)
    sky = cut(templates.telfit_hpf(), near["telluric"])
    return star, sb.clone(sky, resolving_power=55_000, prominence=0.005, progress=False)


def another(orders: list[int]) -> dict:
    """One fit by default, of one order or of a list."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        star, sky = clones(orders[0], orders[-1])
        spectra = [observed(order) for order in orders]
        fit = sb.fit(spectra if len(orders) > 1 else spectra[0], star, telluric=sky, progress=False)
    scale = fit.settings["star_scale"]
    return {
        "rv": fit.value("rv_barycentric"),
        "rv_err": fit.error("rv_barycentric"),
        "vsini": fit.value("vsini"),
        "vsini_err": fit.error("vsini"),
        "strength": scale["strength"],
        "width": scale["width"],
        "inflation": scale["inflation"],
        "factors": {name: fit.settings[name].get("rv", 1.0) for name in ("correlated_residuals", "part_scatter")},
        "status": fit.quality.status,
        "reasons": list(fit.quality.names),
        "success": fit.success,
    }


def tasks() -> list[tuple[str, dict]]:
    return [("another", {"orders": list(orders)}) for orders in (*((one,) for one in ALONE), TOGETHER)]
