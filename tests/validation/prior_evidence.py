r"""Empirical Bayes: the widths of the priors under which what a fit's data say of its lines is most probable.

The scatter of fitted values is not it: they are drawn in by the prior that they were fitted with, and blown up by
noise. Around a fit, what the data alone say of all parameters together is a quadratic form, L(y) = gᵀy - ½ yᵀHy with
H = JᵀWJ; g is what the priors hold in balance at the summit. Under priors of width s for each kind of parameter and
component, expectation propagation (Minka 2001) gives what is known of each displacement x without its own prior,
exp(hx - ½qx²): each Student's t is replaced by the Gaussian that gives its parameter the mean and the variance that it
has with Student's t, all else being Gaussian. The width is where

.. math:: \sum_i \frac{∂}{∂ \ln s} \ln \int e^{h_i x - q_i x^2/2}\, t_{ν, s}(x)\, dx
    = \sum_i \left( E[λ_i x_i^2/s^2] - 1 \right) = 0,

at the end of expectation maximisation with a mixing variable λ for each line (Dempster, Laird & Rubin 1977). A line of
which the data say nothing adds nothing to the sum. Only lines of which one can be sure vote (`secure`); the others
have the same prior, and no say in it: weak lines and blends are also a basis in which the misfit of everything else
can be written.

Does not live here: which stars and skies (`measured_priors`), the mixture of Gaussians (`stand_in`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import brentq, minimize_scalar
from scipy.special import voigt_profile
from torch import Tensor

from specutils_blase.inference.linear.normal_equations import NormalEquations
from specutils_blase.model.parameters import KINDS
from specutils_blase.physics.grids import SPEED_OF_LIGHT
from specutils_blase.physics.kernels import FWHM_PER_SIGMA
from specutils_blase.posterior.laplace import free_parameters, normal_equations
from specutils_blase.posterior.marginals import LEAST_RELATIVE_PRECISION, student_evidence, student_moments

COMPONENTS = ("star", "telluric")
GROUPS = tuple((component, kind) for component in COMPONENTS for kind in KINDS)
"""What has a width of its own."""

DEEP, ALONE, SLOPE = 0.03, 0.8, 10.0
"""What makes a line secure: its clone's opacity at its centre, at the data's resolution; the part of all opacity there
that this is; and the width, in those of the line, from which on another line is but a slope beneath it."""

NARROWEST, WIDEST = 0.002, 3.0
"""Widths that are looked for, in natural logarithms or km/s."""

SWEEPS, SETTLED = 60, 0.03
"""Most sweeps of expectation propagation, and the change of a mean, in its errors, that ends them."""

DAMPED, CALMER, LEAST_DAMPED = 0.7, 0.6, 0.05
"""Part of each step that is taken, the factor on it after a change larger than the last, and its least."""

ROUNDS, STEADY = 20, 0.02
"""Most rounds of widths, and the change of ln s that ends them."""

PROBE = 0.1
"""Change of ln s that tells how the sums turn."""

LEAST_INFORMATION = 4.0
"""Fisher information on ln s that the lines of a group must hold for its width to be looked for: an error of a factor
of 1.6. Counted at the widths that the search starts from, with which nothing that the lines do has anything to do."""

UNLIKELY = 2.0
"""Decrease of the logarithm of the evidence at which an upper limit lies: 95 %."""


@dataclass(frozen=True)
class Knowledge:
    """What the data of one fit say of its lines.

    Parameters
    ----------
    normal : NormalEquations
        At the solution; its precisions are those of the fit.
    pull : Tensor, (n_parameter,)
        g; zero for what is no line's.
    displacement : Tensor, (n_parameter,)
        From the clone.
    group : Tensor, (n_parameter,)
        Position in `GROUPS`; -1 for what is no line's.
    votes : Tensor, (n_parameter,)
        Whether it is a parameter of a secure line.
    """

    normal: NormalEquations
    pull: Tensor
    displacement: Tensor
    group: Tensor
    votes: Tensor


def knowledge(fit, clones: dict) -> Knowledge:
    """From a fit of one order, under Student's t, and the emulators that it started from.

    Parameters
    ----------
    fit : FitResult
    clones : dict
        Component to its `LineEmulator`.
    """
    free = free_parameters(fit.model, fit.parameters, fit.curvature)
    normal = normal_equations(free, fit.curvature)
    group = torch.full((len(free),), -1)
    votes = torch.zeros(len(free), dtype=torch.bool)
    displacement, pull = torch.zeros(2, len(free), dtype=torch.float64)
    anchors = {name: _anchors(fit, name, clones[name]) for name in fit.model.components}
    sure = secure(fit, anchors)
    for name, emulator in fit.model.components.items():
        columns, lines = free.columns(name), free.lines[name]
        moved = (emulator.line_parameters().detach().double() - anchors[name])[lines]
        priors = dict(fit.settings["priors"][name])
        freedom = priors["degrees_of_freedom"]
        if name == "star":  # as wide as the fit has found that they have to be
            priors |= {kind: factor * priors[kind] for kind, factor in fit.settings["star_scale"]["inflation"].items()}
        for position, kind in enumerate(free.kinds[name]):
            own, d = columns[:, position], moved[:, KINDS.index(kind)]
            group[own], displacement[own] = GROUPS.index((name, kind)), d
            # Not JᵀWr: what all lines share stands at its posterior mean, off the summit.
            pull[own] = (freedom + 1.0) / (freedom * priors[kind] ** 2 + d.square()) * d
        votes[columns] = sure[name][lines].unsqueeze(1)
    return Knowledge(normal, pull, displacement, group, votes)


def _anchors(fit, name: str, clone) -> Tensor:
    """Prior mean of each line: the clone, with what the fit has found its lines to have in common against it."""
    emulator, start = fit.model.components[name], clone.settled()
    center = emulator.center.detach().double()
    scale = fit.settings["telluric_scale"] if name == "telluric" else None
    if scale is not None:
        center = center / (1.0 + scale["shift"] / SPEED_OF_LIGHT)
    known = start.center.detach().double()
    index = torch.searchsorted(known, center * (1.0 - 1e-10)).clamp(max=len(known) - 1)
    if not torch.allclose(known[index], center, rtol=1e-9, atol=0.0):
        raise ValueError(f"the {name} lines of the fit are not those of the clone")
    anchors = start.line_parameters().detach().double()[index]
    if scale is not None:
        species = start.species or [""] * len(start)
        anchors[:, 0] += torch.tensor([math.log(scale["factors"][species[i]]) for i in index.tolist()])
    if name == "star":
        anchors[:, 0] += math.log(fit.settings["star_scale"]["strength"])
        anchors[:, 1:3] += math.log(fit.settings["star_scale"]["width"])
    return anchors


def secure(fit, anchors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Lines of each component that are deep and alone enough for a misfit of theirs to be theirs, by their clones.

    Parameters
    ----------
    fit : FitResult
        For resolving power and velocities.
    anchors : dict
        Component to (n_line, 4), ln area, ln σ, ln γ and offset of the clones' lines.
    """
    power = float(fit.parameters["value"][list(fit.parameters["name"]).index("resolving_power")])
    columns, first = [], {}
    for name, emulator in fit.model.components.items():
        rotation = fit.value("vsini") / 2.0 if name == "star" else 0.0  # standard deviation of the kernel
        shift = 1.0 + (fit.value("rv") if name == "star" else 0.0) / SPEED_OF_LIGHT
        center = emulator.center.detach().numpy() * shift
        area, sigma, gamma = anchors[name][:, :3].exp().numpy().T
        blur = center * math.hypot(1.0 / (power * FWHM_PER_SIGMA), rotation / SPEED_OF_LIGHT)
        first[name] = sum(len(part[0]) for part in columns)
        columns.append((center, area, np.hypot(sigma, blur), gamma))
    center, area, sigma, gamma = (np.concatenate(parts) for parts in zip(*columns, strict=True))
    opacity = area * voigt_profile(center[:, None] - center, sigma, gamma)  # of line j at the centre of line i
    width = 2.0 * gamma + FWHM_PER_SIGMA * sigma
    own = opacity.diagonal()
    total = np.where(width > SLOPE * width[:, None], 0.0, opacity).sum(1)
    chosen = torch.as_tensor((own > DEEP) & (own > ALONE * total))
    return {name: chosen[start : start + len(anchors[name])] for name, start in first.items()}


@dataclass
class Belief:
    """Gaussians that stand for the priors of all parameters, and what is known of each parameter without its own.

    Parameters
    ----------
    precision, shift : Tensor, (n_parameter,)
        The Gaussians' p and r, exp(-½py² + ry), y being counted from the solution.
    known, pull : Tensor, (n_parameter,)
        q and h of all else, exp(-½qx² + hx), x being counted from the clone.
    """

    precision: Tensor
    shift: Tensor
    known: Tensor
    pull: Tensor


def believe(data: Knowledge, widths: Tensor, freedom: float, start: Belief | None = None) -> Belief:
    """Expectation propagation with priors of these widths.

    Parameters
    ----------
    data : Knowledge
    widths : Tensor, (n_group,)
    freedom : float
        Degrees of freedom ν.
    start : Belief, optional
        That of other widths.
    """
    line, d = data.group >= 0, data.displacement
    scale = widths[data.group[line]]
    precision = (data.normal.prior_precision if start is None else start.precision).clone()
    shift = -precision * d if start is None else start.shift.clone()  # as if each prior were Gaussian
    shift[~line] = 0.0
    before, damped, last = torch.full_like(d, math.inf), DAMPED, math.inf
    for _ in range(SWEEPS):
        factor = data.normal.with_precision(precision).factor()
        variance, mean = factor.variance(), factor.solve(data.pull + shift)
        known = (1.0 / variance - precision).clamp(min=0.0)
        pull = mean / variance - shift
        q, h = known[line], pull[line]
        center, spread = student_moments(h + q * d[line], q, scale, torch.full_like(scale, freedom))
        center = center - d[line]
        matched = torch.maximum(1.0 / spread - q, LEAST_RELATIVE_PRECISION / scale**2)
        change = float(((mean - before)[line].abs() / variance[line].sqrt()).max())
        if change < SETTLED:
            break
        damped = max(CALMER * damped, LEAST_DAMPED) if change > last else damped
        before, last = mean, change
        precision[line] += damped * (matched - precision[line])
        shift[line] += damped * (center * (q + matched) - h - shift[line])
    if not change < 1.0:
        raise ArithmeticError(f"expectation propagation does not settle: the last change was {change:.3g} errors")
    return Belief(precision, shift, known, pull + known * d)


@dataclass(frozen=True)
class Widths:
    """Widths that make most probable what the data say of the secure lines.

    Parameters
    ----------
    value, error : Tensor, (n_group,)
        NaN where nothing was measured.
    limit : Tensor, (n_group,)
        Upper limit, where the logarithm of the evidence has fallen by `UNLIKELY`.
    n_line, n_telling : Tensor, (n_group,)
        Secure lines with such a parameter, and those of them of which the data say more than the prior, q s² > 1.
    center, center_error : Tensor, (n_group,)
        Mean displacement of the secure lines, each weighing as much as is known of it.
    spread : Tensor, (n_group,)
        Width about that mean instead of about the clone.
    freedom_value : dict of Tensor
        Degrees of freedom to the widths that are then most probable, what is known of each line being the same.
    freedom_evidence : dict of float
        Degrees of freedom to the logarithm of the evidence of the secure lines at these widths.
    """

    value: Tensor
    error: Tensor
    limit: Tensor
    n_line: Tensor
    n_telling: Tensor
    center: Tensor
    center_error: Tensor
    spread: Tensor
    freedom_value: dict[float, Tensor]
    freedom_evidence: dict[float, float]


def best_widths(data: list[Knowledge], start: Tensor, freedom: float, others: tuple[float, ...] = ()) -> Widths:
    """The widths under which the data of all fits together are most probable.

    Parameters
    ----------
    data : list of Knowledge
    start : Tensor, (n_group,)
        Where the search starts, and ends where the data hold less than `LEAST_INFORMATION`: not those of the fits, so
        that what has once shrunk is looked for again.
    freedom : float
        Degrees of freedom of Student's t, finite.
    others : tuple of float
        Degrees of freedom to compare with; infinity makes the prior Gaussian.
    """
    widths, beliefs = start.clone(), _all_believe(data, start, freedom)
    known = _secure(data, beliefs)
    measured = [k for k, width in enumerate(start) if _information(known[k][1], width) >= LEAST_INFORMATION]
    for _ in range(ROUNDS):
        new = widths.clone()
        for k in measured:
            new[k] = _most_probable(*known[k], freedom)
        change = float((new / widths).log().abs().max())
        widths = new
        beliefs = _all_believe(data, widths, freedom, beliefs)
        known = _secure(data, beliefs)
        if change < STEADY:
            break
    value, error, limit, center, center_error, spread = torch.full((6, len(GROUPS)), math.nan, dtype=widths.dtype)
    inside = [k for k in measured if 1.5 * NARROWEST < widths[k] < 0.9 * WIDEST]
    if inside:
        value[inside] = widths[inside]
        error[inside] = widths[inside] * _errors(data, beliefs, widths, freedom, inside)
    for k in measured:
        pull, precision = known[k]
        limit[k] = _upper_limit(pull, precision, freedom, float(widths[k]))
        center[k], center_error[k] = _center(pull, precision, float(widths[k]), freedom)
        spread[k] = _most_probable(pull - center[k] * precision, precision, freedom)
    telling = torch.tensor([int((known[k][1] * width**2 > 1.0).sum()) for k, width in enumerate(widths)])
    counts = torch.tensor([len(precision) for _, precision in known])
    other = {each: widths.clone() for each in others}
    evidence = dict.fromkeys(others, 0.0)
    for each in others:
        for k in inside:
            other[each][k] = _most_probable(*known[k], each)
            evidence[each] -= _cost(*known[k], each)(math.log(other[each][k]))
    return Widths(value, error, limit, counts, telling, center, center_error, spread, other, evidence)


def _all_believe(data: list[Knowledge], widths: Tensor, freedom: float, beliefs=None) -> list[Belief]:
    starts = beliefs or [None] * len(data)
    return [believe(each, widths, freedom, belief) for each, belief in zip(data, starts, strict=True)]


def _secure(data: list[Knowledge], beliefs: list[Belief]) -> list[tuple[Tensor, Tensor]]:
    """h and q of the secure lines of every group."""
    found = []
    for k in range(len(GROUPS)):
        chosen = [each.votes & (each.group == k) for each in data]
        parts = [(b.pull[use], b.known[use]) for b, use in zip(beliefs, chosen, strict=True)]
        found.append(tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True)))
    return found


def _information(precision: Tensor, width: float) -> float:
    """Fisher information on ln s, 2 Σ (q s²/(1 + q s²))², as of Gaussians."""
    ratio = precision * width**2
    return float(2.0 * (ratio / (1.0 + ratio)).square().sum())


def _cost(pull: Tensor, precision: Tensor, freedom: float) -> Callable[[float], float]:
    """Minus the logarithm of the evidence as a function of ln s."""
    one = torch.ones_like(precision)
    return lambda ln_s: -float(student_evidence(pull, precision, math.exp(ln_s) * one, freedom * one)[0].sum())


def _most_probable(pull: Tensor, precision: Tensor, freedom: float) -> float:
    bounds = (math.log(NARROWEST), math.log(WIDEST))
    return math.exp(minimize_scalar(_cost(pull, precision, freedom), bounds=bounds, method="bounded").x)


def _upper_limit(pull: Tensor, precision: Tensor, freedom: float, width: float) -> float:
    cost = _cost(pull, precision, freedom)
    level, far = cost(math.log(width)) + UNLIKELY, math.log(10.0 * WIDEST)
    if cost(far) < level:
        return math.inf
    return math.exp(brentq(lambda ln_s: cost(ln_s) - level, math.log(width), far, xtol=1e-3))


def _errors(data, beliefs, widths: Tensor, freedom: float, free: list[int]) -> Tensor:
    """Errors of ln s of these groups: from the differences of the sums, all else following along."""
    turn = []
    for k in free:
        ends = []
        for side in (-PROBE, PROBE):
            moved = widths.clone()
            moved[k] *= math.exp(side)
            known = _secure(data, _all_believe(data, moved, freedom, beliefs))
            ends.append(torch.stack([_slope(*known[i], moved[i], freedom) for i in free]))
        turn.append((ends[0] - ends[1]) / (2.0 * PROBE))
    turn = torch.stack(turn)
    variance = torch.linalg.inv(0.5 * (turn + turn.T)).diagonal()
    return torch.where(variance > 0, variance, math.nan).sqrt()


def _slope(pull: Tensor, precision: Tensor, width: Tensor, freedom: float) -> Tensor:
    one = torch.ones_like(precision)
    return student_evidence(pull, precision, width * one, freedom * one)[1].sum()


def _center(pull: Tensor, precision: Tensor, width: float, freedom: float) -> tuple[float, float]:
    scatter = width * (math.sqrt(freedom / (freedom - 2.0)) if freedom > 2.5 else 1.0)
    share = 1.0 / (1.0 + precision * scatter**2)
    total = float((share * precision).sum())
    return float((share * pull).sum()) / total, total**-0.5
