r"""What the lines of a star's template have in common against it: strength, width, and how far they scatter.

A template of another star is not only wrong line by line. All its lines may be too strong or too broad, which the means
of their priors follow; and they scatter about these means by more than the priors expect, which the widths follow. The
width of a kind of parameter is where the evidence of all lines,

.. math:: \sum_k \ln \int c_k(x)\, t_ν(x / s w)\, dx - \tfrac{1}{2} \ln^2 s,

is highest, c_k being what is known of line k without its prior (see `stand_in`), w the width that was given and
s ≥ 1 the inflation. A common shift is the radial velocity itself.

Does not live here: the equations of common changes (`common_changes`), when they settle (`solving`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...inference.bounds import MOST_INFLATION
from ...inference.linear.cholesky import Factor
from ...inference.objective import AnchoredProblem
from ...inference.priors import LinePriors
from ...physics.voigt import voigt_fwhm
from ...posterior.marginals import ROUNDING, student_evidence, without_prior
from ..start.star import STRENGTH_PRIOR, StarScale
from .changes import CommonChanges

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


class StarAnchors(CommonChanges):
    """Strength, width and scatter of the star's lines of a problem against their template.

    Parameters
    ----------
    problem : AnchoredProblem
    start : StarScale, optional
        By which the star's areas have been scaled already.
    columns : Tensor, (n, n_kind), optional
        Where the parameters of the lines that the template has are among all; all of the star's by default.
    """

    def __init__(self, problem: AnchoredProblem, start: StarScale | None = None, columns: Tensor | None = None):
        start = StarScale(1.0, STRENGTH_PRIOR) if start is None else start
        free = problem.free
        self.columns, self.kinds = free.columns("star") if columns is None else columns, free.kinds["star"]
        self.given: LinePriors = problem.line_priors["star"]
        self.inflation = dict.fromkeys(self.kinds, 1.0)
        like = problem.anchor
        state = like.new_tensor([math.log(start.strength), 0.0])
        errors = like.new_tensor([start.strength_error / start.strength, LEAST_WIDTH_PRIOR])
        precision = like.new_tensor([STRENGTH_PRIOR**-2, LEAST_WIDTH_PRIOR**-2])
        design = like.new_zeros(len(free), 2)
        for position, kind in enumerate(self.kinds):
            if kind != "rv_offset":
                design[self.columns[:, position], int(kind != "ln_area")] = 1.0
        super().__init__(problem, state, errors, precision, design)
        self.start = state.clone()
        self.wide = self.columns[self._apart()] if self.columns.numel() else self.columns
        """Of `columns`, those of lines that stand apart from stronger ones: their priors follow the scatter."""

    def on(self, problem: AnchoredProblem, columns: Tensor) -> StarAnchors:
        """The same for a problem to which lines have been added; `columns` are those of the old ones."""
        other = StarAnchors(problem, columns=columns)
        other.state, other.error, other.precision = self.state, self.error, self.precision
        other.start, other.given, other.inflation = self.start, self.given, self.inflation
        return other

    @torch.no_grad()
    def _apart(self) -> Tensor:
        """Which of the lines of `columns` no stronger one is near to, (n,) boolean."""
        free, star = self.problem.free, self.problem.free.model.star
        mine = (free.columns("star")[:, :1] == self.columns[:, 0]).any(1)
        index = free.lines["star"][mine]
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
    def anew(self) -> Callable[[], None]:
        """Take back all that the lines have told; who calls what is returned has it again."""
        problem, star = self.problem, self.problem.free.model.star
        state, precision, anchor = self.state.clone(), self.precision.clone(), problem.anchor.clone()
        lines = {name: values.clone() for name, values in star.state_dict().items()}
        inflation, priors = self.inflation, problem.line_priors["star"]

        def again() -> None:
            self.state.copy_(state)
            self.precision.copy_(precision)
            self.inflation = inflation
            problem.anchor.copy_(anchor)
            problem.set_line_priors("star", priors, self.wide)
            star.load_state_dict(lines)
            problem.forget()

        self._apply(self.start - self.state, problem.read())
        self.precision[1] = LEAST_WIDTH_PRIOR**-2
        self.inflation = dict.fromkeys(self.kinds, 1.0)
        problem.set_line_priors("star", self.given, self.wide)
        return again

    def least_error(self) -> Tensor:
        """The common width may be v sin i instead: that it is the template's has to stay within the error of v sin i.

        Lines tell both by their shapes, which those of another star's template do not have.
        """
        return torch.stack([torch.zeros_like(self.state[0]), self.state[1].abs()])

    def _change(self, step: Tensor, vector: Tensor) -> Tensor:
        """Lines that are held change with the others."""
        self.state += step
        changes = {kind: step[int(kind != "ln_area")] for kind in self.kinds if kind != "rv_offset"}
        self.problem.free.model.star.change_together(**changes)
        self.problem.anchor += self.design @ step
        return vector

    @torch.no_grad()
    def learn(self, vector: Tensor) -> bool:
        """Find how much wider than given the priors must be; True if that changes the fit.

        Parameters
        ----------
        vector : Tensor, (n_parameter,)
            The lines as they are. What is left to go is taken from the quadratic model there.
        """
        problem, columns = self.problem, self.wide
        if not columns.numel():
            return False
        normal = problem.linearize(vector)
        factor = normal.factor()
        step = factor.solve(normal.gradient).clamp(-problem.limit, problem.limit)
        variance = self._variance_beside_shared(factor)
        known = without_prior(problem, normal, problem.project(vector + step), variance)
        changed, priors = False, self.given
        for kind, own in zip(self.kinds, columns.T, strict=True):
            best = self._best(kind, known[0][own], known[1][own], problem.freedom[own])
            changed |= abs(math.log(best / self.inflation[kind])) > UNCHANGED
            self.inflation[kind] = best
            priors = replace(priors, **{kind: best * getattr(self.given, kind)})
        if changed:
            problem.set_line_priors("star", priors, columns)
            # Once free the common width stays so: what it takes on no longer shows as scatter.
            self.precision[1] = min(float(self.precision[1]), self._width_prior() ** -2)
        return changed

    def _variance_beside_shared(self, factor: Factor) -> Tensor:
        """Variance of each parameter with velocity and rotation held: lines that move together do not scatter less."""
        places = self.problem.free.global_slices
        shared = [k for name in ("rv", "vsini") if name in places for k in range(places[name].start, places[name].stop)]
        variance = factor.variance()
        if not shared:
            return variance
        unit = torch.eye(len(variance), dtype=variance.dtype, device=variance.device)[shared]
        columns = torch.stack([factor.solve(each) for each in unit], dim=1)
        explained = (columns @ torch.linalg.inv(columns[shared]) * columns).sum(1)
        return torch.maximum(variance - explained, ROUNDING * variance)

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
        (strength, width), (strength_error, width_error) = self.state.exp().tolist(), self.error.tolist()
        if not bool(self.moving[1]) or float(self.precision[1]) == LEAST_WIDTH_PRIOR**-2:
            width, width_error = 1.0, 0.0
        return FittedStarScale(strength, strength * strength_error, width, width * width_error, dict(self.inflation))
