"""Starting values of a fit: noise where none is given, continuum, and velocities with all lines held.

Does not live here: the first guess of the radial velocity (`velocity`), the fit itself (`fitting`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ...inference.linear.jacobian import linearize
from ...model.echelle import EchelleModel
from ...model.global_parameter import SQUARED, Owned
from ...model.instrument import Continuum
from ...model.order import ForwardModel
from ...model.parameters import FreeParameters
from ...physics.parallel import each
from .star import STRENGTH_PRIOR, StarScale, limited, scale_star, strength_tangent

LOOSE_ITERATIONS = 30
"""Limit on the iterations of each preliminary stage."""

IN_VAIN = 4
"""Steps in a row, each a tenth of the one before, that may gain nothing."""

START_ITERATIONS, START_TOLERANCE = 12, 1e-3
"""Limit on the evaluations that find the starting velocities, and the relative decrease of χ² that ends them."""

FASTEST_ROTATION = 400.0
"""km/s; no star holds together beyond it."""

CLIP = 5.0
"""Robust standard deviations from which on a pixel counts as an outlier of the start."""

MOST_LIGHT, BRIGHT = 10.0, 0.99
"""Largest continuum to start from, in units of this quantile of the flux."""

VELOCITY_PRIOR, SQUARE_PRIOR = 100.0, 1e4
"""Widths [km/s, (km/s)²] that keep the step finite where the data know nothing of a velocity, or of a rotation."""


@torch.no_grad()
def start_continuum(model: ForwardModel, flux: Tensor, weight: Tensor, binned: Tensor | None = None) -> None:
    """Linear least squares of the continuum with everything else at its start, five sigma outliers clipped.

    Where a template is much too deep, the best polynomial soars to make up for it, or swings through zero in between:
    its degree is lowered until, wherever there are data, it is positive and within `MOST_LIGHT` of the brightest.

    `binned` is the model before the continuum, if known.
    """
    if not isinstance(model.continuum, Continuum):
        return
    basis, counts = model.continuum.basis, weight > 0
    design = ((model.stages().binned if binned is None else binned) * basis).T
    brightest = MOST_LIGHT * flux[counts].quantile(BRIGHT)
    model.continuum.coefficients.zero_()
    for n_term in range(basis.shape[0], 0, -1):
        root = weight.sqrt()
        for _ in range(3):
            values = torch.cat([design[:, :n_term], flux.unsqueeze(1)], dim=1) * root.unsqueeze(1)
            solution = torch.linalg.lstsq(values[:, :-1], values[:, -1:]).solution.squeeze(1)
            residual = (flux - design[:, :n_term] @ solution).abs()
            limit = CLIP * 1.4826 * residual[root > 0].median()
            root = torch.where(residual > limit, 0.0, weight.sqrt())
        lowest, highest = (solution @ basis[:n_term])[counts].aminmax()
        if lowest > 0.0 and highest < brightest:
            model.continuum.coefficients[:n_term] = solution
            return
    model.continuum.coefficients[0] = solution.clamp(min=-brightest, max=brightest)


@dataclass(frozen=True)
class HeldFit:
    """Outcome of `start_velocities`.

    Parameters
    ----------
    chi2 : float
        Of all orders, outliers counting at the limit beyond which they are.
    n_datum : int
        Pixels that count.
    star_scale : StarScale or None
        Where it was asked for.
    """

    chi2: float
    n_datum: int
    star_scale: StarScale | None


@torch.no_grad()
def start_velocities(
    model: ForwardModel | EchelleModel,
    free: tuple[str, ...],
    fluxes: list[Tensor],
    weights: list[Tensor],
    ln_strength: float | None = None,
) -> HeldFit:
    """Velocities with all lines held at their clones, every order's continuum projected out, and these continua.

    Thousands of line widths can imitate a rotation: started at the wrong v sin i with precise data, they do, and the
    fit ends there (at S/N 2000, 1.2 km/s off with a reduced χ² of 3.5). Held lines cannot.

    Parameters
    ----------
    model : ForwardModel or EchelleModel
        Near its velocities, which are moved.
    free : tuple of str
        Global parameters; of these "rv" and "vsini" move here.
    fluxes, weights : list of Tensor
        Data and inverse variances of each order.
    ln_strength : float, optional
        By which the star's areas differ from their clone already. If given, this strength moves with the velocities,
        and the areas of all lines of the star with it.
    """
    star = model.target
    known = {name: owned for name, owned in model.global_parameters().items() if owned.stage is model.orders[0].target}
    moving = tuple(name for name, owned in known.items() if owned.parameter.told_by_each_order and name in free)
    scaling = ln_strength is not None and star is not None
    orders = list(zip(model.orders, fluxes, weights, strict=True))
    names = (*moving, "ln_strength") if scaling else moving
    n_datum = sum(int((weight > 0).sum()) for weight in weights)
    if not names:
        each(lambda item: start_continuum(*item), orders)
        return HeldFit(sum(each(lambda item: _held(*item)[0], orders)), n_datum, None)
    prior = torch.tensor([_prior_width(known[name]) ** -2 for name in moving], dtype=torch.float64)
    if scaling:
        prior = torch.cat([prior, prior.new_tensor([STRENGTH_PRIOR**-2])])
    state = {name: known[name].tensor.item() for name in moving} | ({"ln_strength": ln_strength} if scaling else {})
    damping, best, kept, inflation, in_vain = 1e-3, math.inf, dict(state), 0.0, 0
    normal = pull = torch.zeros(())
    for _ in range(START_ITERATIONS):
        sums = each(partial(_velocity_sums, moving, scaling), orders)
        lead = state["ln_strength"] if scaling else 0.0
        cost = sum(chi_square for chi_square, _, _ in sums)
        if not inflation:  # Where χ² says that errors are larger, a prior has to say no less against the data.
            inflation = max(1.0, cost / max(n_datum - len(names), 1))
            prior = prior * inflation
        cost += inflation * (lead / STRENGTH_PRIOR) ** 2
        if cost < best:
            promised, best, kept = best - cost, cost, dict(state)
            normal, pull = sum(a for _, a, _ in sums) + torch.diag(prior), sum(b for _, _, b in sums)
            if scaling:
                pull[-1] -= inflation * lead / STRENGTH_PRIOR**2
            damping, in_vain = max(0.1 * damping, 1e-6), 0
            if promised < START_TOLERANCE * cost:
                break
        else:
            damping, in_vain = 10.0 * damping, in_vain + 1
            if in_vain == IN_VAIN:
                break
        step = torch.linalg.solve(normal + damping * torch.diag(torch.diagonal(normal)), pull)
        if float(pull @ step) < START_TOLERANCE * best:
            break  # nor can a shorter one gain more: pixels that are clipped or come back make the cost rough
        moved = {
            name: _moved(known.get(name), kept[name], change) for name, change in zip(names, step.tolist(), strict=True)
        }
        _place(model, known, state, moved)
        state = moved
    _place(model, known, state, kept)
    each(lambda item: start_continuum(*item), orders)
    if not scaling:
        return HeldFit(best, n_datum, None)
    errors = max(1.0, best / max(n_datum - len(names), 1))
    error = float(torch.linalg.inv((normal - prior.diag()) / errors + prior.diag() / inflation)[-1, -1].sqrt())
    strength = math.exp(kept["ln_strength"])
    return HeldFit(best, n_datum, StarScale(strength, strength * error))


def _prior_width(owned: Owned) -> float:
    return SQUARE_PRIOR if owned.parameter.transform is SQUARED else VELOCITY_PRIOR


def _place(
    model: ForwardModel | EchelleModel, known: dict[str, Owned], before: dict[str, float], after: dict[str, float]
) -> None:
    """Bring a model from one state of velocities and strength to another."""
    for name, value in after.items():
        if name in known:
            known[name].tensor.fill_(value)
        else:
            scale_star(model, value - before[name])


def _moved(owned: Owned | None, value: float, change: float) -> float:
    """A value after a step of limited length; rotation steps are in its square, the strength has no stage."""
    if owned is None:
        return limited(value, change)
    if owned.parameter.transform is not SQUARED:
        return value + min(max(change, -10.0), 10.0)
    low, high = (math.sqrt(bound) for bound in owned.bounds)
    square = value**2 + min(max(change, -0.75 * value**2), 3.0 * value**2 + 10.0)
    return min(max(math.sqrt(max(square, 0.0)), low), max(FASTEST_ROTATION, value), high)


def _velocity_sums(
    moving: tuple[str, ...], scaling: bool, item: tuple[ForwardModel, Tensor, Tensor]
) -> tuple[float, Tensor, Tensor]:
    """χ² of an order with its best continuum, and normal equations of the velocities with that projected out.

    The last row and column are those of ln(strength), if `scaling`.
    """
    order, flux, weight = item
    stages = order.stages()
    start_continuum(order, flux, weight, stages.binned)
    held = {name: torch.zeros(0, dtype=torch.long) for name in order.components}
    if moving:
        tangents = linearize(FreeParameters(order, dict.fromkeys(held, ()), held, moving), [stages]).dense.double()
    else:
        tangents = flux.new_zeros(flux.numel(), 0).double()
    if scaling:
        tangents = torch.cat([tangents, strength_tangent(order, stages).double().unsqueeze(1)], dim=1)
    chi_square, root, residual = _held(order, flux, weight, stages.binned)
    tangents = tangents * root.unsqueeze(1)
    if isinstance(order.continuum, Continuum):
        trend = torch.linalg.qr((stages.binned * order.continuum.basis).T * root.unsqueeze(1)).Q
        left, tangents = (values - trend @ (trend.T @ values) for values in (residual, tangents))
        chi_square += float(left.square().sum() - residual.square().sum())
        residual = left
    return chi_square, tangents.T @ tangents, tangents.T @ residual


@torch.no_grad()
def velocity_information(model: ForwardModel, flux: Tensor, weight: Tensor) -> Tensor:
    """Information that an order has of rv and v sin i² with all lines held and its continuum free, (2, 2)."""
    known = model.global_parameters().items()
    names = tuple(n for n, o in known if o.stage is model.target and o.parameter.told_by_each_order)
    return _velocity_sums(names, False, (model, flux, weight))[1]


def _held(
    order: ForwardModel, flux: Tensor, weight: Tensor, binned: Tensor | None = None
) -> tuple[float, Tensor, Tensor]:
    """χ² of an order as it stands, roots of the weights that are left, and residuals in units of the noise.

    Clipped pixels count at the limit, so that the cost does not jump when one of them comes back.
    """
    binned = order.stages().binned if binned is None else binned
    residual = flux - (binned if order.continuum is None else order.continuum(binned))
    limit = CLIP * 1.4826 * residual[weight > 0].abs().median()
    root = torch.where(residual.abs() > limit, 0.0, weight).sqrt()
    clipped = ((root == 0.0) & (weight > 0)).double() * weight * limit**2
    residual = residual * root
    return float(residual.square().sum() + clipped.sum()), root, residual


LEAST_CORRELATION = {5.0: 0.2, 2.0: 0.1}
"""Features of the model in units of the noise, and the correlation below which data do not look like it then.

Of 107 orders (HPF, IGRINS) with their own wavelengths, those with features above 5 have 0.44 or more, but for one of
IGRINS in deep water; where the atmosphere is left out of the model, 0.25 has been seen. Of seven such with another
order's wavelengths six have less than 0.18, one has 0.41.
"""

SAME_PLACE = 0.9
"""Common part of two orders' wavelengths from which on one of them is taken for wrong."""


@torch.no_grad()
def implausible(orders, fluxes: list[Tensor], weights: list[Tensor]) -> dict[int, str]:
    """Orders that do not show what their wavelengths promise, and the reason; all lines still held at their clones.

    An order whose model has features well above the noise, none of which the data show, has the wrong wavelengths or is
    no spectrum. Two orders that claim the same wavelengths are not both right: the one that looks less like the model
    is left out.
    """
    correlations, visible = [], []
    for order, flux, weight in zip(orders, fluxes, weights, strict=True):
        root = weight.sqrt()
        trend = order.continuum.basis.T * root.unsqueeze(1)
        values = torch.stack([flux, order()], dim=1).double() * root.unsqueeze(1)
        data, model = (values - trend @ torch.linalg.lstsq(trend, values).solution).unbind(1)
        correlations.append(float(data @ model / (data.norm() * model.norm()).clamp(min=1e-300)))
        visible.append(float(model.square().sum() / (root > 0).sum()) ** 0.5)
    wrong = {
        k: f"does not look like its templates (correlation {correlation:.2f}): are its wavelengths right?"
        for k, correlation in enumerate(correlations)
        if correlation < max((least for seen, least in LEAST_CORRELATION.items() if visible[k] > seen), default=-1.0)
    }
    spans = [(float(order.pixels.edges.min()), float(order.pixels.edges.max())) for order in orders]
    for one in range(len(spans)):
        for other in range(one):
            common = min(spans[one][1], spans[other][1]) - max(spans[one][0], spans[other][0])
            shorter = min(spans[one][1] - spans[one][0], spans[other][1] - spans[other][0])
            if common > SAME_PLACE * shorter and not {one, other} & set(wrong):
                worse = one if correlations[one] < correlations[other] else other
                if correlations[worse] < 0.5 * max(correlations[one], correlations[other]):
                    wrong[worse] = "has the wavelengths of another order, which looks more like the templates"
    return wrong
