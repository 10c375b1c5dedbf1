"""From a solved problem to the tables and the result object that a fit returns.

Does not live here: the fit (`fitting`), what a ledger column means (`ledger`), the results' spectra (`result`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from astropy.table import QTable
from torch import Tensor

from ..inference.linear.cholesky import Factor
from ..inference.linear.normal_equations import NormalEquations
from ..inference.minimize import Solution
from ..inference.objective import AnchoredProblem
from ..ledger.table import LineErrors, build_ledger, held_errors
from ..missing_lines.table import Discovery, missing_lines_table
from ..model.echelle import EchelleModel
from ..model.emulator import LineEmulator
from ..model.parameters import KINDS
from ..physics.grids import SPEED_OF_LIGHT
from ..physics.parallel import each
from ..posterior.laplace import WIDENED, Curvature
from ..posterior.marginals import mean_pull, posterior_mean, prior_error
from ..quality.assessment import assess
from ..quality.report import Reason
from ..quality.resolving_power import resolving_power_reasons, wanted_resolving_power
from ..results.echelle_result import EchelleFitResult
from ..results.fit_result import FitResult, model_spectra
from .observation import ObservedOrder
from .residuals.correlated import correlation_factor
from .residuals.noise import NoiseModel
from .residuals.order_scatter import VELOCITIES, OrderScatter, order_scatter, part_scatter
from .residuals.rejection import rejected_table
from .shared_changes.changes import CommonChanges
from .stages import degrees_of_freedom_used, reduced_chi_square

BARYCENTRIC_AGREEMENT = 0.01
"""km/s within which the orders' barycentric velocities must agree to count as one exposure's."""

NARROW = 3.5
"""Errors of (v sin i)² by which the data want it below zero, from which on it is no chance."""


@dataclass(frozen=True)
class Given:
    """What a fit was given and started from.

    Parameters
    ----------
    orders : list of ObservedOrder
        Those that were fitted.
    excluded : dict
        Position in the user's list to the name of an order that was left out, and the reason.
    lines : dict
        Component to its free lines.
    start_area : dict
        Component to ln area of every line at the start.
    noise : NoiseModel
    settings : dict
        Everything asked for.
    found : Discovery, optional
        Lines that the fit has found and added.
    anchors : CommonChanges, optional
        What the lines have in common against their templates.
    """

    orders: list[ObservedOrder]
    excluded: dict[int, tuple[str, str]]
    lines: dict[str, Tensor]
    start_area: dict[str, Tensor]
    noise: NoiseModel
    settings: dict
    found: Discovery | None = None
    anchors: CommonChanges | None = None


def build_result(problem: AnchoredProblem, solution: Solution, given: Given) -> FitResult | EchelleFitResult:
    """Errors from the curvature at the solution, tables, and the model in the data's own flux units.

    What all lines share stands at its posterior mean, not at the summit over all lines together: see `stand_in`.
    """
    model, orders, noise = problem.free.model, given.orders, given.noise
    problem.forget()  # the same solution gives the same result, whatever way led to it
    normal = problem.linearize(solution.vector, precise=True)
    used = degrees_of_freedom_used(problem.free, normal.factor())  # at the summit, with the priors as they hold there
    gradient = normal.gradient
    normal = posterior_mean(problem, normal, solution.vector)
    factor = normal.factor()
    pull = mean_pull(problem, factor, problem.read())
    border = factor.border_covariance()
    if given.anchors is not None:
        border = border + given.anchors.added_covariance(normal)
    wanted = wanted_resolving_power(problem, normal, factor)
    many = isinstance(model, EchelleModel)
    between, told, factors = _widened(problem, normal, factor, noise)
    border = border * torch.outer(factors, factors)
    settings = given.settings | told
    reduced = reduced_chi_square(problem, used)
    measured = any(noise.known)
    inflation = 1.0 if measured else reduced
    components, ranges = _lines(problem, factor, given, inflation)
    rejected = _rejected(problem, given)
    # Those of the errors: what the noise has learnt since, too little for another fit, is not in them.
    weights = [w / order.scale**2 for w, order in zip(problem.free.split(problem.weight), orders, strict=True)]
    with torch.no_grad():
        for order, one in zip(orders, problem.free.orders, strict=True):
            one.continuum.coefficients.mul_(order.scale)
    orders = [replace(o, data=o.data.select(good)) for o, good in zip(orders, noise.good, strict=True)]
    table = _order_table(problem, replace(given, orders=orders), used, between.get("rv"))
    parameters, covariance = _parameters(problem, normal.border, inflation * border, orders)
    names = [order.name if many or order.frame.meta.get("m") is not None else "" for order in orders]
    meta = {"settings": settings, "rv": model.doppler.rv.item() if model.doppler is not None else None}
    ledger = build_ledger(components, wavelength_range=ranges, orders=names, meta=meta)
    common = {
        "model": model,
        "parameters": parameters,
        "ledger": ledger,
        "found": None if given.found is None else missing_lines_table(model, given.found, ledger),
        "covariance": covariance,
        "line_covariance": {name: errors.covariance.numpy() for name, (_, errors) in components.items()},
        "reduced_chi2": reduced if measured else 1.0,
        "noise_scale": math.sqrt(inflation),
        "success": solution.success,
        "message": solution.message,
        "history": solution.history,
        "settings": settings,
        "rejected": rejected,
        "curvature": Curvature.of(problem.free, weights, normal.prior_precision, pull, inflation),
    }
    if many:
        data, frame = [order.data for order in orders], [order.frame for order in orders]
        result = EchelleFitResult(data=data, frame=frame, orders=table, **common)
    else:
        result = FitResult(data=orders[0].data, frame=orders[0].frame, orders=table, **common)
    noticed = [*_noticed(problem, orders), *_narrow(problem, gradient, factor, settings.get("star_scale"))]
    noticed += resolving_power_reasons(wanted, orders[0].resolving_power, result)
    return result.assessed(assess(result, problem.anchored_lines(), noticed))


def _widened(
    problem: AnchoredProblem, normal: NormalEquations, factor: Factor, noise: NoiseModel
) -> tuple[dict[str, OrderScatter], dict[str, dict[str, float]], Tensor]:
    """What residuals that are alike, and parts and orders that disagree, add to the errors of the velocities.

    Returns
    -------
    between : dict
        Scatter between the orders, where there are many.
    told : dict
        The factors by name, as settings of the result.
    factors : Tensor, (n_border,)
        By how much the error of each parameter of the border grows.
    """
    incomplete = [jitter > 0.0 or not known for jitter, known in zip(noise.jitter, noise.known, strict=True)]
    places = problem.free.global_slices
    columns = {name: places[name].start for name in VELOCITIES if name in places}
    correlated = {
        name: correlation_factor(problem, normal, factor, column, incomplete) for name, column in columns.items()
    }
    if isinstance(problem.free.model, EchelleModel):
        between = order_scatter(problem, incomplete)
        within = {name: scatter.within for name, scatter in between.items()}
    else:
        between, within = {}, part_scatter(problem, correlated, any(incomplete))
    told = {
        "correlated_residuals": correlated,
        "part_scatter": within,
        "order_scatter": {name: scatter.factor for name, scatter in between.items()},
    }
    factors = torch.ones_like(normal.prior_precision[normal.border])
    for name, column in columns.items():
        factors[normal.border == column] = math.prod(told[kind].get(name, 1.0) for kind in WIDENED)
    return between, told, factors


def _lines(
    problem: AnchoredProblem, factor: Factor, given: Given, inflation: float
) -> tuple[dict[str, tuple[LineEmulator, LineErrors]], dict[str, list[tuple[float, float]]]]:
    """Each component's lines with their errors, and its wavelengths at rest in each order."""
    model, components, ranges = problem.free.model, {}, {}
    for name, emulator in model.components.items():
        errors = held_errors(emulator)
        kinds = [KINDS.index(kind) for kind in problem.free.kinds[name]]
        free = errors.free.clone()
        covariance = errors.covariance
        lines = given.lines[name]
        if kinds and lines.numel():
            free[lines] = True
            picked = torch.tensor(kinds)
            block = inflation * factor.covariance_blocks(problem.free.columns(name))
            covariance[lines.view(-1, 1, 1), picked.view(1, -1, 1), picked.view(1, 1, -1)] = block
        prior, at_limit = prior_error(problem.line_priors[name], "ln_area"), problem.at_limit(name)
        components[name] = (emulator, LineErrors(free, covariance, given.start_area[name], prior, at_limit))
        shift = 1.0 + (model.doppler.rv.item() / SPEED_OF_LIGHT if name == "star" else 0.0)
        ranges[name] = [(low / shift, high / shift) for low, high in (order.fitted_span for order in given.orders)]
    return components, ranges


@torch.no_grad()
def _rejected(problem: AnchoredProblem, given: Given) -> QTable:
    """The pixels left out before and during the fit."""
    codes, deviations = [], []
    residuals = problem.free.split(problem.flux - problem.free.flux())
    for k, (order, residual) in enumerate(zip(given.orders, residuals, strict=True)):
        code = given.noise.rejected[k]
        codes.append(code if order.rejected is None else torch.maximum(code, order.rejected))
        deviations.append(residual / given.noise.variance(k).sqrt())
    names, wavelengths = zip(*((order.name, order.data.wavelength) for order in given.orders), strict=True)
    return rejected_table(names, wavelengths, codes, deviations)


def _barycentric_velocity(orders: list[ObservedOrder]) -> tuple[float | None, float]:
    """The orders' barycentric correction [km/s], and by how much theirs differ; None where they have no one correction.

    An order that does not know it shares that of the others.
    """
    known = [order.barycentric_velocity for order in orders if order.barycentric_velocity is not None]
    if not known:
        return None, 0.0
    spread = max(known) - min(known)
    return (known[0] if spread <= BARYCENTRIC_AGREEMENT else None), spread


def _noticed(problem: AnchoredProblem, orders: list[ObservedOrder]) -> list[Reason]:
    """What the orders tell that the result does not."""
    spread = _barycentric_velocity(orders)[1] if problem.free.model.doppler is not None else 0.0
    text = (
        f"the orders' barycentric corrections differ by {spread:.3g} km/s: none is applied, and one radial velocity "
        "for all of them may be wrong"
    )
    found = Reason("barycentric", "doubtful", text, spread, BARYCENTRIC_AGREEMENT)
    return [found] if spread > BARYCENTRIC_AGREEMENT else []


def _narrow(problem: AnchoredProblem, gradient: Tensor, factor: Factor, scale: dict | None) -> list[Reason]:
    """Whether lines would have to rotate less than not at all.

    At its bound of zero (v sin i)² has a gradient left, which times its error is by how many errors the data want less.
    Where lines are wider than their template's as well, shapes are another star's, and say nothing of the resolution.
    """
    if "vsini" not in problem.free.global_slices or (scale or {}).get("width", 1.0) > 1.0:
        return []
    column = problem.free.global_slices["vsini"].start
    if float(problem.read()[column]) > 2.0 * float(problem.lower[column]):
        return []
    place = int((factor.normal.border == column).nonzero())
    pull = -float(gradient[column]) * math.sqrt(max(float(factor.border_covariance()[place, place]), 0.0))
    text = (
        f"v sin i is zero, and the star's lines are still too wide in the model ({pull:.1f} standard deviations): is "
        "the resolving power higher, or the template broadened already?"
    )
    return [Reason("narrow_lines", "doubtful", text, pull, NARROW)] if pull > NARROW else []


def _order_table(problem: AnchoredProblem, given: Given, used: list[float], velocities: OrderScatter | None) -> QTable:
    """One row an order that was given, fitted or not."""
    noise, rows = given.noise, []
    for k, (order, parts) in enumerate(zip(given.orders, each(model_spectra, problem.free.orders), strict=True)):
        good = order.data.good
        own = parts["continuum"]
        residual = (order.data.flux - parts["model"])[good]
        relative = residual / own[good]
        square = (residual / order.scale / noise.sigma[k][good]).square().sum()
        freedom = max(int(good.sum()) - used[k], 1.0)
        rows.append(
            (
                order.index, order.name, *order.span, len(order.data), int(good.sum()), order.resolving_power,
                float(relative.square().mean().sqrt()),
                float(square) / freedom if noise.known[k] else math.nan,
                float(noise.jitter[k] * order.scale / own.mean()), noise.doubted(k),
                *((math.nan,) * 2 if velocities is None else (velocities.values[k], velocities.errors[k])), True, "",
            )
        )  # fmt: skip
    for index, (name, reason) in given.excluded.items():
        rows.append((index, name, *(math.nan,) * 2, 0, 0, *(math.nan,) * 3, 0.0, 0, *(math.nan,) * 2, False, reason))
    names = (
        "index", "order", "low", "high", "pixels", "good", "resolving_power", "rms", "reduced_chi2", "jitter",
        "doubted", "rv", "rv_err", "fitted", "reason",
    )  # fmt: skip
    table = QTable(rows=sorted(rows), names=names)
    for end in ("low", "high"):
        table[end].unit = "AA"
    for name in ("rv", "rv_err"):
        table[name].unit = "km / s"
    for name, text in ORDER_COLUMNS.items():
        table[name].info.description = text
    return table


ORDER_COLUMNS = {
    "index": "Position of the order in the list that was given",
    "order": "Its number on the detector, if known, otherwise the position; both where several have the same",
    "low": "First wavelength, vacuum",
    "high": "Last wavelength, vacuum",
    "pixels": "Number of pixels",
    "good": "Number of pixels that were fitted",
    "resolving_power": "Resolving power at the start",
    "rms": "RMS of data minus model in units of the continuum",
    "reduced_chi2": "Chi-squared per degree of freedom with the noise that the data tell; NaN if they tell none",
    "jitter": "Noise added in quadrature, in units of the continuum; 0 where the model is complete",
    "doubted": "Pixels whose weight was lowered as outliers (Huber, 3 sigma)",
    "rv": "Radial velocity of this order alone, beside the joint solution; NaN where there is one order or no star",
    "rv_err": "1-sigma error of it",
    "fitted": "Whether the order took part",
    "reason": "Why it did not",
}
"""Name → meaning of every column of `FitResult.orders`."""


def _parameters(
    problem: AnchoredProblem, border: Tensor, covariance: Tensor, orders: list[ObservedOrder]
) -> tuple[QTable, np.ndarray]:
    """Table of the global parameters, and the covariance of the free ones in its order.

    `covariance` is that of the parameters whose places in the vector are `border`.
    """
    model, free = problem.free.model, problem.free
    border = {int(column): position for position, column in enumerate(border)}
    rows, picked, per_value = [], [], []

    def add(
        name: str, tensor: Tensor, owner: str, unit: str, labels: list[str], slope=lambda v: 1.0, value=lambda v: v,
        order: str = "",
    ):  # fmt: skip
        columns = free.global_slices.get(owner)
        for position, label in enumerate(labels):
            raw = float(tensor.detach().reshape(-1)[position])
            error, is_free = 0.0, columns is not None
            if is_free:
                at = border[columns.start + position]
                picked.append(at)
                per_value.append(slope(raw))
                error = math.sqrt(max(float(covariance[at, at]), 0.0))
                # (v sin i)² is what the data constrain: its error, carried over, stays finite at v sin i = 0.
                error = math.sqrt(raw**2 + error) - raw if name == "vsini" else abs(slope(raw)) * error
            rows.append((label, value(raw), error, unit, is_free, order))

    if model.doppler is not None:
        add("rv", model.doppler.rv, "rv", "km / s", ["rv"])
        add("vsini", model.rotation.vsini, "vsini", "km / s", ["vsini"], slope=lambda v: 0.5 / max(v, 1e-2))
        add("limb", model.rotation.limb_darkening, "limb_darkening", "", ["limb_darkening_u1", "limb_darkening_u2"])
    many = isinstance(model, EchelleModel)
    for k, (order, one) in enumerate(zip(orders, free.orders, strict=True)):
        suffix, label = (f"[{k}]", order.name) if many else ("", "")
        if one.line_spread is not None:
            add(
                "R", one.line_spread.ln_resolving_power[:1], f"resolving_power{suffix}", "", ["resolving_power"],
                slope=math.exp, value=math.exp, order=label,
            )  # fmt: skip
        coefficients = one.continuum.coefficients
        # The coefficients are already in the data's flux unit, their covariance in units of the median flux.
        add(
            "continuum", coefficients, f"continuum{suffix}", "flux",
            [f"continuum_{degree}" for degree in range(coefficients.numel())],
            slope=lambda v, scale=order.scale: scale, order=label,
        )  # fmt: skip
    for component in model.components:
        law = model.components[component].law
        if law.n_parameter:
            labels = [f"{component}_law_{k}" for k in range(law.n_parameter)]
            add("law", law.coefficients, f"{component}_law", "", labels)
    slope = torch.tensor(per_value, dtype=torch.float64)
    _add_barycentric(rows, orders)
    names = ("name", "value", "error", "unit", "free", "order")
    table = QTable(rows=rows, names=names)
    if not many:
        table.remove_column("order")
    return table, (covariance[picked][:, picked] * slope * slope.unsqueeze(1)).numpy()


def _add_barycentric(rows: list[tuple], orders: list[ObservedOrder]) -> None:
    """A row for the barycentric radial velocity, (1 + v/c)(1 + b/c) - 1, where the correction b is known."""
    velocity, _ = _barycentric_velocity(orders)
    if velocity is None or not rows or rows[0][0] != "rv":
        return
    _, rv, error, unit, _, order = rows[0]
    factor = 1.0 + velocity / SPEED_OF_LIGHT
    rows.append(("rv_barycentric", rv * factor + velocity, error * factor, unit, False, order))
