"""From a solved objective to the tables and the result object that a fit returns.

Does not live here: the fit (`fitting`), what a ledger column means (`ledger`), the results' spectra (`result`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
from astropy.table import QTable
from torch import Tensor

from ..inference.linear.cholesky import Factor
from ..inference.linear.normal_equations import NormalEquations
from ..inference.objective import Objective
from ..inference.prior_mean import PriorMeans
from ..inference.solution import Solution
from ..ledger.table import LineErrors, build_ledger, held_errors
from ..missing_lines.table import Discovery, missing_lines_table
from ..model.emulator import LineEmulator
from ..model.global_parameter import Owned
from ..model.parameters import KINDS
from ..physics.grids import SPEED_OF_LIGHT
from ..physics.parallel import each
from ..posterior.laplace import WIDENED, Curvature
from ..posterior.marginals import mean_pull, posterior_mean, prior_error
from ..quality.assessment import assess
from ..quality.report import Reason
from ..quality.resolving_power import WantedResolvingPower, resolving_power_reasons, wanted_resolving_power
from ..results.echelle_result import EchelleFitResult
from ..results.fit_result import FitResult, model_spectra
from .inputs import data_of
from .observation import ObservedOrder
from .prior_means.star import StarLines
from .residuals.correlated import correlation_factor
from .residuals.noise import NoiseModel
from .residuals.order_scatter import OrderScatter, order_scatter, part_scatter
from .residuals.rejected_pixels import rejected_table
from .stages import degrees_of_freedom_used, reduced_chi_square
from .start.begin import Started

BARYCENTRIC_AGREEMENT = 0.01
"""km/s within which the orders' barycentric velocities must agree to count as one exposure's."""

NARROW = 3.5
"""Errors of (v sin i)² by which the data want it below zero, from which on it is no chance."""


@dataclass(frozen=True)
class Fitted:
    """A fit that is solved.

    Parameters
    ----------
    started : Started
    objective, solution : Objective, Solution
        With its noise, priors and lines as they have become.
    noise : NoiseModel
    start_area : dict
        Component to ln area of every line at the start.
    means : PriorMeans or None
        The hyperparameters that were free in the end.
    star : StarLines or None
        What the target's lines have in common against their template.
    found : Discovery, optional
        Lines that the fit has found and added.
    """

    started: Started
    objective: Objective
    solution: Solution
    noise: NoiseModel
    start_area: dict[str, Tensor]
    means: PriorMeans | None
    star: StarLines | None
    found: Discovery | None = None

    @property
    def orders(self) -> tuple[ObservedOrder, ...]:
        """Those that were fitted."""
        return self.started.observation.orders


@dataclass(frozen=True)
class _Errors:
    """What the curvature at a solution says, the model being left at the posterior mean of what all lines share.

    Parameters
    ----------
    normal, factor : NormalEquations, Factor
        With the Gaussians that stand for the priors.
    covariance : Tensor
        Of the parameters of ``normal.border``, in units of the noise that was believed.
    gradient : Tensor
        At the posterior mode.
    mean_gradient : Tensor
        See `posterior.marginals`.
    used : list of float
        Degrees of freedom that each order has used up.
    reduced_chi2 : float
    inflation : float
        Factor on all variances.
    between : dict
        Scatter between the orders.
    told : dict
        Factors on the errors of velocities, for the settings.
    wanted : WantedResolvingPower or None
    """

    normal: NormalEquations
    factor: Factor
    covariance: Tensor
    gradient: Tensor
    mean_gradient: Tensor
    used: list[float]
    reduced_chi2: float
    inflation: float
    between: dict[str, OrderScatter]
    told: dict[str, dict[str, float]]
    wanted: WantedResolvingPower | None

    @classmethod
    def of(cls, fitted: Fitted) -> _Errors:
        """Of a fit; moves its model."""
        objective, noise, vector = fitted.objective, fitted.noise, fitted.solution.vector
        normal = objective.linearize(vector, precise=True)
        # At the posterior mode, with the priors as they hold there.
        used, gradient = degrees_of_freedom_used(objective.free, normal.factor()), normal.gradient
        normal = posterior_mean(objective, normal, vector)
        factor = normal.factor()
        mean_gradient = mean_pull(objective, factor, objective.read())
        covariance = factor.border_covariance()
        if fitted.means is not None:
            covariance = covariance + fitted.means.added_covariance(objective, normal)
        wanted = wanted_resolving_power(objective, normal, factor)
        between, told, factors = _widened(objective, normal, factor, noise)
        covariance = covariance * torch.outer(factors, factors)
        reduced = reduced_chi_square(objective, used)
        inflation = 1.0 if any(noise.known) else reduced
        parts = normal, factor, covariance, gradient, mean_gradient, used, reduced, inflation, between, told, wanted
        return cls(*parts)


def assemble(fitted: Fitted) -> FitResult | EchelleFitResult:
    """Errors from the curvature at the solution, tables, and the model in the data's own flux units.

    What all lines share stands at its posterior mean, not at the mode over all lines together: see
    `posterior.marginals`.
    """
    # Knowing nothing of what led here, the same solution gives the same result.
    fitted = replace(fitted, objective=fitted.objective.afresh())
    objective, solution, noise = fitted.objective, fitted.solution, fitted.noise
    model, observation = objective.free.model, fitted.started.observation
    errors = _Errors.of(fitted)
    settings = _settings(fitted) | errors.told
    components, ranges = _lines(fitted, errors)
    rejected = _rejected(objective, fitted)
    # Those of the errors: what the noise has learnt since, too little for another fit, is not in them.
    split = objective.free.split(objective.weight)
    weights = [weight / order.scale**2 for weight, order in zip(split, observation.orders, strict=True)]
    with torch.no_grad():
        for order, order_model in zip(observation.orders, model.orders, strict=True):
            order_model.continuum.coefficients.mul_(order.scale)
    orders = [replace(o, data=o.data.select(good)) for o, good in zip(observation.orders, noise.good, strict=True)]
    parameters, covariance = _parameters(objective, errors.normal.border, errors.inflation * errors.covariance, orders)
    is_list, measured = observation.is_list, any(noise.known)
    names = [order.name if is_list or order.frame.meta.get("m") is not None else "" for order in orders]
    meta = {"settings": settings, "rv": None if model.target is None else model.target.velocity}
    ledger = build_ledger(components, wavelength_range=ranges, orders=names, meta=meta)
    common = {
        "model": model,
        "parameters": parameters,
        "ledger": ledger,
        "found": None if fitted.found is None else missing_lines_table(model, fitted.found, ledger),
        "covariance": covariance,
        "line_covariance": {name: line_errors.covariance.numpy() for name, (_, line_errors) in components.items()},
        "reduced_chi2": errors.reduced_chi2 if measured else 1.0,
        "noise_scale": math.sqrt(errors.inflation),
        "success": solution.success,
        "message": solution.message,
        "history": solution.history,
        "settings": settings,
        "orders": _order_table(fitted, orders, errors),
        "rejected": rejected,
        "curvature": Curvature.of(
            objective.free, weights, errors.normal.prior_precision, errors.mean_gradient, errors.inflation
        ),
    }
    data, frames = [order.data for order in orders], [order.frame for order in orders]
    if is_list:
        result = EchelleFitResult(data=data, frame=frames, **common)
    else:
        result = FitResult(data=data[0], frame=frames[0], **common)
    noticed = [*_noticed(objective, orders), *_narrow(objective, errors, settings.get("star_scale"))]
    noticed += resolving_power_reasons(errors.wanted, orders[0].resolving_power, result)
    return result.assessed(assess(result, objective.prior_means_of_lines(), noticed))


def _settings(fitted: Fitted) -> dict:
    """Everything that was asked for, and what the fit found beside its parameters."""
    started, noise = fitted.started, fitted.noise
    options, templates = started.options, started.templates
    told = {template.name: template.told for template in templates}
    settings = {
        "free": [name for name in options.free if name in _names_of(fitted.objective)],
        "star_lines": list(options.kinds_of("star")),
        "telluric_lines": list(options.kinds_of("telluric")),
        "continuum": options.continuum,
        "start_rv": started.rv,
        "start": started.told,
        "medium": options.medium,
        "priors": {name: vars(options.priors_of(name)) for name in fitted.objective.free.model.components},
        "noise": "from the data" if all(noise.known) else "unknown: scaled from the residuals",
        "jitter": noise.may_add_jitter,
        "robust": noise.may_down_weight,
        "missing_lines": options.missing_lines,
        "star_scale": None if fitted.star is None else asdict(fitted.star.scale()),
        "telluric_scale": None if started.tellurics is None else asdict(started.tellurics.scale()),
        "star": told.get("star", {}).get("source", ""),
        "telluric": told.get("telluric", {}).get("source", ""),
        "templates": {name: part["provenance"] for name, part in told.items() if "provenance" in part},
        "held_lines": started.held,
        "data": data_of(fitted.orders),
        "from_fit": {name: part["from_fit"] for name, part in told.items() if "from_fit" in part},
        "template_quality": {name: part["quality"] for name, part in told.items() if "quality" in part},
    }
    own = () if started.means is None else started.means.report()[-len(options.prior_means) :]
    if options.prior_means:
        settings["prior_means"] = list(own)
    if options.line_spread is not None:
        settings["line_spread"] = type(options.line_spread).__name__
    return settings


def _names_of(objective: Objective) -> set[str]:
    return {parameter.name for parameter in objective.free.parameters.values()}


def _widened(
    objective: Objective, normal: NormalEquations, factor: Factor, noise: NoiseModel
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
    places = objective.free.global_slices
    columns = {name: places[name].start for name in objective.free.velocities}
    correlated = {
        name: correlation_factor(objective, normal, factor, column, incomplete) for name, column in columns.items()
    }
    if len(objective.free.orders) > 1:
        between = order_scatter(objective, incomplete)
        within = {name: scatter.within for name, scatter in between.items()}
    else:
        between, within = {}, part_scatter(objective, correlated, any(incomplete))
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
    fitted: Fitted, found: _Errors
) -> tuple[dict[str, tuple[LineEmulator, LineErrors]], dict[str, list[tuple[float, float]]]]:
    """Each component's lines with their errors, and its wavelengths at rest in each order."""
    objective, components, ranges = fitted.objective, {}, {}
    model = objective.free.model
    for name, emulator in model.components.items():
        errors = held_errors(emulator)
        kinds = [KINDS.index(kind) for kind in objective.free.kinds[name]]
        free = errors.free.clone()
        covariance = errors.covariance
        lines = objective.free.lines[name]
        if kinds and lines.numel():
            free[lines] = True
            picked = torch.tensor(kinds)
            block = found.inflation * found.factor.covariance_blocks(objective.free.columns(name))
            covariance[lines.view(-1, 1, 1), picked.view(1, -1, 1), picked.view(1, 1, -1)] = block
        prior, at_limit = prior_error(objective.line_priors[name], "ln_area"), objective.at_limit(name)
        components[name] = (emulator, LineErrors(free, covariance, fitted.start_area[name], prior, at_limit))
        shift = 1.0 + model.parts[name].velocity / SPEED_OF_LIGHT
        ranges[name] = [(low / shift, high / shift) for low, high in (order.fitted_span for order in fitted.orders)]
    return components, ranges


@torch.no_grad()
def _rejected(objective: Objective, fitted: Fitted) -> QTable:
    """The pixels left out before and during the fit."""
    codes, deviations = [], []
    residuals = objective.free.split(objective.flux - objective.free.flux())
    for k, (order, residual) in enumerate(zip(fitted.orders, residuals, strict=True)):
        code = fitted.noise.rejected[k]
        codes.append(code if order.rejected is None else torch.maximum(code, order.rejected))
        deviations.append(residual / fitted.noise.variance(k).sqrt())
    names, wavelengths = zip(*((order.name, order.data.wavelength) for order in fitted.orders), strict=True)
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


def _noticed(objective: Objective, orders: list[ObservedOrder]) -> list[Reason]:
    """What the orders tell that the result does not."""
    spread = _barycentric_velocity(orders)[1] if objective.free.model.target is not None else 0.0
    text = (
        f"the orders' barycentric corrections differ by {spread:.3g} km/s: none is applied, and one radial velocity "
        "for all of them may be wrong"
    )
    found = Reason("barycentric", "doubtful", text, spread, BARYCENTRIC_AGREEMENT)
    return [found] if spread > BARYCENTRIC_AGREEMENT else []


def _narrow(objective: Objective, errors: _Errors, scale: dict | None) -> list[Reason]:
    """Whether lines would have to rotate less than not at all.

    At its bound of zero (v sin i)² has a gradient left, which times its error is by how many errors the data want less.
    Where lines are wider than their template's as well, shapes are another star's, and say nothing of the resolution.
    """
    target = objective.free.model.target
    key = None if target is None else objective.free.key_of(target.rotation.vsini)
    if key is None or (scale or {}).get("width", 1.0) > 1.0:
        return []
    column = objective.free.global_slices[key].start
    if float(objective.read()[column]) > 2.0 * float(objective.priors.lower[column]):
        return []
    place = int((errors.normal.border == column).nonzero())
    variance = float(errors.factor.border_covariance()[place, place])
    pull = -float(errors.gradient[column]) * math.sqrt(max(variance, 0.0))
    text = (
        f"v sin i is zero, and the star's lines are still too wide in the model ({pull:.1f} standard deviations): is "
        "the resolving power higher, or the template broadened already?"
    )
    return [Reason("narrow_lines", "doubtful", text, pull, NARROW)] if pull > NARROW else []


def _order_table(fitted: Fitted, orders: list[ObservedOrder], errors: _Errors) -> QTable:
    """One row an order that was given, fitted or not."""
    noise, rows, velocities = fitted.noise, [], errors.between.get("rv")
    spectra = each(model_spectra, fitted.objective.free.orders)
    for k, (order, parts) in enumerate(zip(orders, spectra, strict=True)):
        good = order.data.good
        own = parts["continuum"]
        residual = (order.data.flux - parts["model"])[good]
        relative = residual / own[good]
        square = (residual / order.scale / noise.sigma[k][good]).square().sum()
        freedom = max(int(good.sum()) - errors.used[k], 1.0)
        rows.append(
            (
                order.index, order.name, *order.span, len(order.data), int(good.sum()), order.resolving_power,
                float(relative.square().mean().sqrt()),
                float(square) / freedom if noise.known[k] else math.nan,
                float(noise.jitter[k] * order.scale / own.mean()), noise.doubted(k),
                *((math.nan,) * 2 if velocities is None else (velocities.values[k], velocities.errors[k])), True, "",
            )
        )  # fmt: skip
    for index, (name, reason) in fitted.started.observation.excluded.items():
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
    objective: Objective, border: Tensor, covariance: Tensor, orders: list[ObservedOrder]
) -> tuple[QTable, np.ndarray]:
    """Table of the global parameters, and the covariance of the free ones in its order.

    `covariance` is that of the parameters whose places in the vector are `border`.
    """
    model, free = objective.free.model, objective.free
    border = {int(column): position for position, column in enumerate(border)}
    rows, picked, per_value = [], [], []

    def add(key: str, owned: Owned, scale: float = 1.0, order: str = "") -> None:
        transform, columns = owned.parameter.transform, free.global_slices.get(key)
        tensor = owned.tensor.detach().reshape(-1)
        values = transform.value(transform.coordinate(tensor)).tolist()
        for position, (label, value) in enumerate(zip(owned.rows, values, strict=False)):
            raw, error = float(tensor[position]), 0.0
            if columns is not None:
                place = border[columns.start + position]
                picked.append(place)
                per_value.append(scale * transform.value_slope(raw))
                error = scale * transform.value_error(raw, math.sqrt(max(float(covariance[place, place]), 0.0)))
            rows.append((label, value, error, owned.parameter.unit, columns is not None, order))

    shared = {key: owned for key, owned in model.global_parameters().items() if owned.parameter.scope == "all"}
    for key, owned in shared.items():
        if not owned.parameter.listed_last:
            add(key, owned)
    for k, (order, one) in enumerate(zip(orders, free.orders, strict=True)):
        suffix = model.suffix(k)
        for name, owned in one.global_parameters().items():
            if owned.parameter.scope == "order":
                # The values are already in the data's flux unit, their covariance in units of the median flux.
                scale = order.scale if owned.parameter.in_flux_unit else 1.0
                add(f"{name}{suffix}", owned, scale, order.name if suffix else "")
    for key, owned in shared.items():
        if owned.parameter.listed_last:
            add(key, owned)
    slope = torch.tensor(per_value, dtype=torch.float64)
    _add_barycentric(rows, orders)
    names = ("name", "value", "error", "unit", "free", "order")
    table = QTable(rows=rows, names=names)
    if not model.suffix(0):
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
