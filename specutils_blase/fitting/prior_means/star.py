r"""What the lines of a star's template have in common against it: strength, width, and how far they scatter.

A template of another star is not only wrong line by line. All its lines may be too strong or too broad, which the means
of their priors follow; and they scatter about these means by more than the priors expect, which the widths follow. The
width of a kind of parameter is where the evidence of all lines,

.. math:: \sum_k \ln \int c_k(x)\, t_ν(x / s w)\, dx - \tfrac{1}{2} \ln^2 s,

is highest, c_k being what is known of line k without its prior (see `posterior.marginals`), w the width that was given
and s ≥ 1 the inflation. A common shift is the radial velocity itself.

Does not live here: the equations of prior means (`inference.prior_mean`), when they settle (`fitting.stages`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...inference.bounds import MOST_INFLATION
from ...inference.linear.cholesky import Factor
from ...inference.objective import Objective
from ...inference.prior_mean import PriorMean
from ...inference.priors import LinePriors
from ...model.emulator import LineEmulator
from ...model.parameters import FreeParameters
from ...physics.voigt import voigt_fwhm
from ...posterior.marginals import LEAST_VARIANCE_LEFT, student_evidence, without_prior
from ..start.star import STRENGTH_PRIOR, StarScale

LARGEST_WIDTH_PRIOR, LEAST_WIDTH_PRIOR = 0.2, 1e-4
"""Bounds on the standard deviation of ln(width factor)."""

ANOTHER_STAR = 1.15
"""Geometric mean of the inflations of all kinds, from which on a template may have all its widths wrong.

A line that is missing beside others inflates one kind by as much, and must not let all widths trade with rotation.
"""

DECISIVE = 6.0
"""Gain of ln evidence from which on priors are inflated: lines of a right template scatter as the priors say."""

UNCHANGED = 0.1
"""Change of ln inflation below which another fit would change nothing."""

APART = 0.3
"""Least distance, in units of the full width at half maximum through the instrument, of lines whose priors widen.

A line nearer to a stronger one mends the shape of that one's clone. With wide priors the two would trade place and
strength without end, and it has neither of its own.
"""

N_TRIAL = 16
"""Inflations that are compared, in equal steps of the logarithm, before a parabola finds the best between them."""

TOLD = 0.1
"""Information of the data on a parameter, in units of its prior's, from which on it tells of the scatter."""


@dataclass(frozen=True)
class FittedStarScale(StarScale):
    """A star's lines against their template, as fitted.

    Parameters
    ----------
    width, width_error : float
        Factor on all σ and γ, and its 1-sigma error. It is held at 1 until the lines scatter more than their priors.
    inflation : dict
        Kind of line parameter to the factor by which its prior is wider than it was given.
    """

    width: float
    width_error: float
    inflation: dict[str, float]


class StarLines(PriorMean):
    """Strength and width of a star's lines against their template, and how far they scatter about these.

    Parameters
    ----------
    free : FreeParameters
    component : str
    given : LinePriors
        Of the star's lines, as the fit was given them.
    start : StarScale, optional
        By which the star's areas have been scaled already.
    """

    def __init__(self, free: FreeParameters, component: str, given: LinePriors, start: StarScale | None = None):
        start = StarScale(1.0, STRENGTH_PRIOR) if start is None else start
        super().__init__(
            component,
            ("ln_strength", "ln_width"),
            (STRENGTH_PRIOR, LEAST_WIDTH_PRIOR),
            start=[math.log(start.strength), 0.0],
            start_error=[start.strength_error / start.strength, LEAST_WIDTH_PRIOR],
        )
        self.kinds, self.given = free.kinds[component], given
        self.inflation = dict.fromkeys(self.kinds, 1.0)
        columns = free.columns(component)
        self.wide = columns[self._apart(free, free.lines[component])] if columns.numel() else columns
        """Columns of lines that stand apart from stronger ones: their priors follow the scatter."""

    def design(self, emulator: LineEmulator) -> dict[str, Tensor]:
        """One factor on all areas, one on all widths."""
        like = torch.zeros(len(emulator), 2, dtype=torch.float64, device=emulator.center.device)
        area, width = like.clone(), like
        area[:, 0] = width[:, 1] = 1.0
        return {"ln_area": area, "ln_sigma": width, "ln_gamma": width.clone()}

    def on(self, free: FreeParameters, columns: Tensor) -> StarLines:
        """The same where lines have been added; `columns` are those of the old ones' parameters."""
        other = copy(self)
        other.inflation = dict(self.inflation)
        mine = (free.columns(self.component)[:, :1] == columns[:, 0]).any(1)
        other.wide = columns[other._apart(free, free.lines[self.component][mine])] if columns.numel() else columns
        return other

    @torch.no_grad()
    def _apart(self, free: FreeParameters, index: Tensor) -> Tensor:
        """Which of some lines no stronger one of them is near to, (n,) boolean."""
        star = free.model.components[self.component]
        spreads = [order.line_spread for order in free.orders if order.line_spread is not None]
        finest = max((float(one.ln_resolving_power[0].exp()) for one in spreads), default=math.inf)
        center = star.shifted_center.double()[index]
        width = (voigt_fwhm(star.sigma, star.gamma).double()[index].square() + (center / finest).square()).sqrt()
        found = torch.ones_like(center, dtype=torch.bool)
        # The signal of a line of a given area falls with the noise under its width.
        for strong in (star.area.double()[index] / width.sqrt()).argsort(descending=True).tolist():
            if found[strong]:
                near = (center - center[strong]).abs() < APART * torch.minimum(width, width[strong])
                near[strong] = False
                found &= ~near
        return found

    @torch.no_grad()
    def forget(self, objective: Objective) -> tuple[Objective, Callable[[], None]]:
        """Priors as they were given."""
        inflation = self.inflation

        def again() -> None:
            self.inflation = inflation

        self.precision[1] = LEAST_WIDTH_PRIOR**-2
        self.inflation = dict.fromkeys(self.kinds, 1.0)
        return objective.with_line_priors(self.component, self.given, self.wide), again

    def least_error(self) -> Tensor:
        """The common width may be v sin i instead: that it is the template's has to stay within the error of v sin i.

        Lines tell both by their shapes, which those of another star's template do not have.
        """
        return torch.stack([torch.zeros_like(self.value[0]), self.value[1].abs()])

    @torch.no_grad()
    def learn(self, objective: Objective, vector: Tensor) -> Objective | None:
        """Find how much wider than given the priors must be; None where that changes nothing.

        Parameters
        ----------
        objective : Objective
        vector : Tensor, (n_parameter,)
            The lines as they are. What is left to go is taken from the quadratic model there.
        """
        columns = self.wide
        if not columns.numel():
            return None
        normal = objective.linearize(vector)
        factor = normal.factor()
        step = factor.solve(normal.gradient).clamp(-objective.limit, objective.limit)
        variance = self._variance_beside_shared(objective, factor)
        known = without_prior(objective, normal, objective.project(vector + step), variance)
        changed, priors, freedom = False, self.given, objective.priors.freedom
        for kind, own in zip(self.kinds, columns.T, strict=True):
            best = self._best(kind, known[0][own], known[1][own], freedom[own])
            changed |= abs(math.log(best / self.inflation[kind])) > UNCHANGED
            self.inflation[kind] = best
            priors = replace(priors, **{kind: best * getattr(self.given, kind)})
        if not changed:
            return None
        # Once free the common width stays so: what it takes on no longer shows as scatter.
        self.precision[1] = min(float(self.precision[1]), self._width_prior() ** -2)
        return objective.with_line_priors(self.component, priors, columns)

    def _variance_beside_shared(self, objective: Objective, factor: Factor) -> Tensor:
        """Variance of each parameter with velocity and rotation held: lines that move together do not scatter less."""
        places = objective.free.global_slices
        shared = [k for name in objective.free.velocities for k in range(places[name].start, places[name].stop)]
        variance = factor.variance()
        if not shared:
            return variance
        unit = torch.eye(len(variance), dtype=variance.dtype, device=variance.device)[shared]
        columns = torch.stack([factor.solve(each) for each in unit], dim=1)
        explained = (columns @ torch.linalg.inv(columns[shared]) * columns).sum(1)
        return torch.maximum(variance - explained, LEAST_VARIANCE_LEFT * variance)

    def _best(self, kind: str, pull: Tensor, precision: Tensor, freedom: Tensor) -> float:
        """Inflation of a kind of parameter, from the gradient and the precision that all but its prior leave it."""
        width = getattr(self.given, kind)
        tells = precision * width**2 > TOLD
        if not bool(tells.any()):
            return 1.0
        trials = torch.linspace(0.0, math.log(MOST_INFLATION[kind]), N_TRIAL, dtype=torch.float64).tolist()
        pull, precision, freedom = pull[tells], precision[tells], freedom[tells]
        evidence = [
            float(student_evidence(pull, precision, torch.full_like(pull, width * math.exp(ln_s)), freedom)[0].sum())
            - 0.5 * ln_s**2
            for ln_s in trials
        ]
        at = max(range(N_TRIAL), key=evidence.__getitem__)
        # What is inflated already stays so until it is worse than not to be: two thresholds, so that both settle.
        if at == 0 or evidence[at] - evidence[0] < (DECISIVE if self.inflation[kind] == 1.0 else 0.0):
            return 1.0
        ln_s = trials[at]
        if at < N_TRIAL - 1:
            low, here, high = evidence[at - 1 : at + 2]
            ln_s += 0.5 * (low - high) / (low - 2.0 * here + high) * (trials[1] - trials[0])
        return math.exp(ln_s)

    def _width_prior(self) -> float:
        """Standard deviation of the common ln width: that of one line, as far as the template is known to be wrong."""
        wrong = math.exp(sum(math.log(each) for each in self.inflation.values()) / len(self.inflation))
        if wrong < ANOTHER_STAR:
            return LEAST_WIDTH_PRIOR
        width = self.given.ln_sigma * math.sqrt(wrong**2 - 1.0)
        return min(max(width, LEAST_WIDTH_PRIOR), LARGEST_WIDTH_PRIOR)

    def scale(self) -> FittedStarScale:
        """The common changes, with the errors that the scatter of the lines leaves them."""
        (strength, width), (strength_error, width_error) = self.value.exp().tolist(), self.error.tolist()
        if not {"ln_sigma", "ln_gamma"} & set(self.kinds) or float(self.precision[1]) == LEAST_WIDTH_PRIOR**-2:
            width, width_error = 1.0, 0.0
        return FittedStarScale(strength, strength * strength_error, width, width * width_error, dict(self.inflation))
