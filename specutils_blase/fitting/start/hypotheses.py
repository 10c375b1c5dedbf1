"""Several starts of a fit, each carried through a first fit with all lines held; the likeliest is kept.

Does not live here: where the starts come from (`velocity`), the first fit of one of them (`starting`).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...model.echelle import EchelleModel
from ...model.order import ForwardModel
from ..residuals.correlated import autocorrelation
from ..stages import reject_pixels
from .first_model import FirstModel
from .held_line_fit import CLIP, FASTEST_ROTATION, HeldFit, start_continuum, start_velocities
from .initial_velocity import StartingPoint, VelocitySearch
from .order_correlation import SKY_DOUBT
from .star import scale_star
from .tellurics import TelluricScale, scale_telluric

logger = logging.getLogger(__name__)

CLOSE, PART = 30.0, 0.5
"""Difference of ln L from the likeliest solution, and part of its gain, up to which others are carried on as well."""

ABSURD = 10.0
"""Strength of a star's lines, up or down, that no template of a star can have."""

MOST, NOBODY = 4, 10.0
"""Solutions that are carried on at most, and gain of the likeliest below which there is no star to choose between."""

SLOW, TURNING = 5.0, 15.0
"""km/s; rotation from which a solution is tried too that turns by the other or faster.

Lines that are too strong in the template look like rotation.
"""

ROOM = 0.8
"""Rotation, in units of the largest that a model has room for, from which on another model is made."""

NOISE_MEDIAN = 0.455
"""Median of the square of noise in units of its variance; residuals are never taken for smaller."""

ANOTHER_ROTATION = 0.3
"""Part by which rotation differs in another solution at the same velocity."""


@dataclass(frozen=True)
class Attempt:
    """One start after its first fit.

    Parameters
    ----------
    start : StartingPoint
    begun : FirstModel
        Its model stands at the velocities, the strength and the sky of that fit.
    held : HeldFit
    telluric_scale : TelluricScale or None
    weights : list of Tensor
        Of that fit, for each order: less where the sky absorbs.
    """

    start: StartingPoint
    begun: FirstModel
    held: HeldFit
    telluric_scale: TelluricScale | None
    weights: list[Tensor]

    @property
    def velocities(self) -> tuple[float, float]:
        """rv and v sin i, km/s."""
        star = self.begun.model.target
        return (self.start.rv, self.start.vsini) if star is None else (star.velocity, star.vsini)

    @property
    def is_cramped(self) -> bool:
        """Whether rotation has come near to the largest that the model has room for, and could go on."""
        star = self.begun.model.target
        if star is None:
            return False
        rotation = star.rotation
        return rotation.max_vsini < FASTEST_ROTATION and rotation.vsini.item() > ROOM * rotation.max_vsini

    @property
    def strength(self) -> float:
        """Factor on the areas of the star's lines."""
        return 1.0 if self.held.star_scale is None else self.held.star_scale.strength


@torch.no_grad()
def first_fit(
    build: Callable[[StartingPoint], FirstModel], start: StartingPoint, free: tuple[str, ...], scaling: dict[str, bool]
) -> Attempt:
    """Continua, amounts of the sky, velocities and strength of one start, all lines held.

    Where rotation comes near to the largest that its model has room for, another model begins there.

    Parameters
    ----------
    build : callable
        The model at a start.
    start : StartingPoint
    free : tuple of str
        Global parameters that may move.
    scaling : dict
        Whether the clone of "tellurics" and that of the "star" may be scaled.
    """
    attempt = _once(build, start, free, scaling)
    while "vsini" in free and attempt.is_cramped:
        rv, vsini = attempt.velocities
        attempt = _once(build, StartingPoint(rv, vsini, attempt.strength, start.gain), free, scaling)
    return replace(attempt, start=start)


def _once(
    build: Callable[[StartingPoint], FirstModel], start: StartingPoint, free: tuple[str, ...], scaling: dict[str, bool]
) -> Attempt:
    """A first fit in the room that its start gives to rotation."""
    begun = build(start)
    model, fluxes, weights = begun.model, begun.fluxes, begun.noise.weights()
    ln_strength = None
    if scaling["star"] and model.target is not None:
        ln_strength = math.log(start.strength)
        scale_star(model, ln_strength)
    for item in zip(model.orders, fluxes, weights, strict=True):
        start_continuum(*item)
    is_scaled = scaling["tellurics"] and model.atmosphere is not None
    telluric = scale_telluric(model, fluxes, weights) if is_scaled else None
    weights = _beside_sky(model, weights)
    held = start_velocities(model, free, fluxes, weights, ln_strength)
    if begun.noise.may_down_weight and reject_pixels(model.orders, fluxes, begun.noise):
        ln_strength = None if held.star_scale is None else math.log(held.star_scale.strength)
        weights = _beside_sky(model, begun.noise.weights())
        held = start_velocities(model, free, fluxes, weights, ln_strength)
    return Attempt(start, begun, held, telluric, weights)


def _beside_sky(model: ForwardModel | EchelleModel, weights: list[Tensor]) -> list[Tensor]:
    """Weights of pixels less what lines of the sky that are held may be wrong by.

    Else the few deep ones that are outweigh a star whose lines rotation has made shallow. Without a star there is
    nothing to choose.
    """
    if model.atmosphere is None or model.target is None:
        return weights
    found = []
    for order, weight in zip(model.orders, weights, strict=True):
        doubt = order.continuum(SKY_DOUBT * (1.0 - order.observed(order.atmosphere.name)))
        found.append(weight / (1.0 + weight * doubt.square()))
    return found


def contenders(search: VelocitySearch, vsini_given: bool) -> list[StartingPoint]:
    """Solutions worth a first fit: the likeliest, those close to it, and its slow counterpart if it turns fast."""
    best, *others = search.solutions
    if best.gain < NOBODY:
        return [best]
    chosen = [best, *(each for each in others if each.gain > best.gain - max(CLOSE, PART * best.gain))][:MOST]
    if not vsini_given and best.vsini >= TURNING:
        chosen.append(StartingPoint(best.rv, SLOW, best.strength, best.gain))
    return chosen


@torch.no_grad()
def likeliest(
    build: Callable[[StartingPoint], FirstModel],
    search: VelocitySearch,
    free: tuple[str, ...],
    resolution: float,
    vsini_given: bool,
    scaling: dict[str, bool],
) -> tuple[Attempt, dict | None]:
    """The best of all first fits, and what is to be told of the start.

    Fits are compared by how much each gains over data without a star, for the pixels that a template reaches depend on
    its velocity. What their own fits say of χ² differs by weights, and by what each takes for an outlier.

    Parameters
    ----------
    build : callable
        The model at a start.
    search : VelocitySearch
    free : tuple of str
        Global parameters that may move.
    resolution : float
        Resolution element [km/s]: solutions nearer to each other than this, or than their rotation, are the same.
    vsini_given : bool
        No other rotation is to be tried.
    scaling : dict
        Whether the clone of "tellurics" and that of the "star" may be scaled.

    Returns
    -------
    Attempt
    dict or None
        None without a star; else of plain numbers: `rv`, `vsini`, `strength`, `strength_error`; `search`, the
        velocities between which was searched, and `at_edge`, whether `rv` stands at one of them, or rotation or
        strength where no star has it; `candidates`, the best first, each with `rv`, `vsini`, `strength`, `chi2`;
        `second`, the best of them at another velocity or of another rotation, and `delta_chi2`, by how much that is
        worse, both None where there is none; `detection`, by how much data without any star are, None where no velocity
        was looked for. Both differences are divided by the reduced χ² of the best where that exceeds 1. `detection` is
        divided by the number of neighbouring residuals that are alike, too: a telluric line that is wrong counts once.
    """
    tried = []
    for start in contenders(search, vsini_given):
        attempt = first_fit(build, start, free, scaling)
        if attempt.begun.model.target is None:
            return attempt, None
        tried.append(attempt)
        logger.info("start at rv %.1f km/s, v sin i %.1f km/s: χ² %.1f", *attempt.velocities, attempt.held.chi2)
    gains, without, n_datum = _gains(tried, search)
    ranked = sorted(zip(gains, tried, strict=True), key=lambda item: -item[0])
    gain, best = ranked[0]
    lowest = without - gain
    inflation = max(1.0, lowest / max(n_datum, 1))
    candidates = [_told(*attempt.velocities, attempt.strength, without - other) for other, attempt in ranked]
    # What was not carried on is as much worse as the correlation says.
    carried = {(attempt.start.rv, attempt.start.vsini) for attempt in tried}
    for each in search.solutions:
        if (each.rv, each.vsini) not in carried:
            chi2 = lowest + 2.0 * inflation * max(search.solutions[0].gain - each.gain, 0.0)
            candidates.append(_told(each.rv, each.vsini, each.strength, chi2))
    first, *others = candidates
    others.sort(key=lambda candidate: candidate["chi2"])
    apart = [candidate for candidate in others if _apart(candidate, first, resolution)]
    second = dict(apart[0]) if apart else None
    scale = best.held.star_scale
    return best, {
        "rv": first["rv"],
        "vsini": first["vsini"],
        "strength": best.strength,
        "strength_error": None if scale is None else scale.strength_error,
        "search": [search.low, search.high],
        "at_edge": bool(search.at_edge and best.start == search.solutions[0]) or _at_limit(first, vsini_given),
        "candidates": [first, *others],
        "second": second,
        "delta_chi2": None if second is None else (second["chi2"] - first["chi2"]) / inflation,
        "detection": None if search.low == search.high else _detection(best, gain / inflation),
    }


def _apart(one: dict[str, float], other: dict[str, float], resolution: float) -> bool:
    """Whether two solutions are at another velocity, or turn at another rate."""
    widest = max(resolution, one["vsini"], other["vsini"])
    turning = abs(one["vsini"] - other["vsini"]) > max(resolution, ANOTHER_ROTATION * widest)
    return turning or abs(one["rv"] - other["rv"]) > widest


def _gains(tried: list[Attempt], search: VelocitySearch) -> tuple[list[float], float, int]:
    """By how much each attempt lowers χ² from that without any star, this χ², and how many pixels it is of.

    All are measured alike: with the same weights, the least of all attempts; outliers counting at the same limit, that
    of the attempt with the smallest residuals; beside the same model without a star, of the sky of the search or of an
    attempt, whichever explains more. Pixels that a template does not reach gain nothing.
    """
    gains, without, n_datum = [0.0] * len(tried), 0.0, 0
    for k, sky in enumerate(search.skies):
        orders = [attempt.begun.model.orders[k] for attempt in tried]
        fluxes = [attempt.begun.fluxes[k] for attempt in tried]
        reach = torch.stack([attempt.begun.orders[k].data.good for attempt in tried])
        weight = torch.stack([attempt.weights[k] for attempt in tried])
        weight = weight.where(weight > 0.0, torch.inf).amin(0)
        weight = weight.where(weight.isfinite(), 0.0)
        squares = torch.stack([(f - order()).square() * weight for f, order in zip(fluxes, orders, strict=True)])
        counts = reach & (weight > 0.0)
        typical = [float(square[some].median()) for square, some in zip(squares, counts, strict=True) if some.any()]
        limit = (CLIP * 1.4826) ** 2 * max(min(typical, default=math.inf), NOISE_MEDIAN)
        flux = torch.stack(fluxes).where(reach, 0.0).sum(0) / reach.sum(0).clamp(min=1)
        starless = _starless(orders, sky, flux, weight, limit)
        gained = (starless - squares.clamp(max=limit)).where(counts, 0.0).sum(1)
        gains = [gain + float(more) for gain, more in zip(gains, gained, strict=True)]
        without += float(starless.sum())
        n_datum += int((weight > 0.0).sum())
    return gains, without, n_datum


def _starless(orders: list[ForwardModel], sky: Tensor | None, flux: Tensor, weight: Tensor, limit: float) -> Tensor:
    """χ² of each pixel of an order without any star, the best of several skies; outliers counting at the limit."""
    skies = [torch.ones_like(flux) if sky is None else sky]
    skies += [order.observed(order.atmosphere.name) for order in orders if order.atmosphere is not None]
    first, found = orders[0], []
    kept = first.continuum.coefficients.clone()
    for each in skies:
        start_continuum(first, flux, weight, each)
        found.append(((flux - first.continuum(each)).square() * weight).clamp(max=limit))
    first.continuum.coefficients.copy_(kept)
    return min(found, key=lambda square: float(square.sum()))


def _detection(attempt: Attempt, gain: float) -> float:
    """What the star gains, by the first fit or by the search, whichever says less."""
    return min(gain / _alike(attempt), 2.0 * max(attempt.start.gain, 0.0))


def _alike(attempt: Attempt) -> float:
    """Pixels that err together: by how much less a gain in χ² tells than if each erred for itself."""
    total = n_datum = 0.0
    orders = attempt.begun.model.orders
    for order, flux, weight in zip(orders, attempt.begun.fluxes, attempt.weights, strict=True):
        counts = weight > 0.0
        rho = autocorrelation((flux - order()) * weight.sqrt(), counts)
        total += float(counts.sum()) * (1.0 + 2.0 * float(rho.sum()))
        n_datum += float(counts.sum())
    return total / n_datum if n_datum else 1.0


def _at_limit(candidate: dict[str, float], vsini_given: bool) -> bool:
    """Whether rotation or strength stand where they say that something else is wrong."""
    turning = not vsini_given and candidate["vsini"] > 0.9 * FASTEST_ROTATION
    return turning or not 1.0 / ABSURD < candidate["strength"] < ABSURD


def _told(rv: float, vsini: float, strength: float, chi2: float) -> dict[str, float]:
    return {"rv": float(rv), "vsini": float(vsini), "strength": float(strength), "chi2": float(chi2)}
