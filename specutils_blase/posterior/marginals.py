r"""The Gaussian that stands for the posterior, where the one at its summit would not.

The solution of a fit is the summit of the posterior over *all* parameters together, and the curvature there is that of
Gaussians that bound the priors. Two things are lost so:

- Student's t has a wider shoulder than the Gaussian that touches its summit, and falls off more slowly. Each prior is
  replaced by the Gaussian with which the parameter's marginal has the variance that it has with Student's t (moment
  matching, as in expectation propagation, Minka 2001).
- Hundreds of lines trade a little of their widths for rotation. At the summit every one of them is at its best at once;
  the bulk of the posterior, with every line somewhere in its error, has another v sin i. What all lines share stands at
  the mean of its own marginal, all lines summed over at each of its values φ (nested Laplace approximation, Tierney &
  Kadane 1986, Rue et al. 2009):

  .. math:: \ln p(φ) = -\tfrac{1}{2} χ^2(\hat θ_φ) - \tfrac{1}{2} \ln\det A_φ
      + \sum_k \ln \frac{\int c_k t_k}{\int c_k g_k} + \tfrac{1}{2} (d - F)^{T} W \sum_{kl} (A^{-1})_{kl}\, ∂_k ∂_l F

  at the summit θ̂_φ of everything else. A = JᵀWJ + P says how much room there is; the sum over parameters with priors
  t_k, of what is known without the prior (c_k) times the prior over the same with its Gaussian g_k, how well the priors
  foretell what is found (the evidence of expectation propagation); the last term that spread lines look broader than
  any one of them (Box 1971).

Does not live here: the problem (`problem`), its normal equations, what is made of the errors (`outcome`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..inference.linear.cholesky import Factor
from ..inference.linear.normal_equations import NormalEquations
from ..inference.minimize import minimize
from ..inference.objective import Objective
from ..inference.priors import LinePriors

LN_MIXING = (-11.5, 4.0)
"""Range of ln λ, and hence of scales, over which Student's t is summed as a mixture of Gaussians."""

N_MIXING = 100

LEAST_PRECISION = 1e-3
"""Smallest precision that a stand-in may have, over that of the prior's width.

Far out, Student's t bends the other way: there a parameter's marginal is wider than the data alone make it.
"""

STRONGEST_PULL = 3.0
"""Largest pull of the data beyond the summit, where the prior balances it, over the root of what they know.

By chance it is larger once in 400 times. Where it comes out larger, with hardly any curvature behind it, a straight
line would go on for dozens of widths to a second summit that is not there.
"""

SWEEPS = 2

N_PAIR, SPREAD = 8, 0.5
"""Pairs of draws ±ξ that tell the curvature of the model, and the part of an error that they go out."""

REACH = math.sqrt(3.0)
"""Errors by which a parameter is moved to both sides, everything else following, for its marginal.

The slope of a cubic between these two places is that at which its first-order mean stands (as of Gauss and Hermite).
"""

LEAST_REACH, LEAST_CURVATURE = 0.5, 0.3
"""Errors that it must be able to move, and least curvature of ln p in units of what the errors promise.

Nearer to a bound, or flatter, the marginal has no summit that three values could tell.
"""

BESIDE_ITERATIONS, BESIDE_TOLERANCE = 5, 0.02
"""Of finding the best of all else there. The straight way misses it by up to one in χ² where hundreds of lines follow,
and where one of them has two summits it may end between them."""

ROUNDING = 1e-9
"""Least part of a variance that is left when another parameter is held."""

FARTHEST = 2.0
"""Largest shift of a mean, in its errors; beyond, the first order says nothing."""


def posterior_mean(problem: Objective, normal: NormalEquations, vector: Tensor) -> NormalEquations:
    """Leave a problem at the mean of the Gaussian that stands for its posterior, and return the curvature there.

    Parameters
    ----------
    problem : Objective
    normal : NormalEquations
        At `vector`.
    vector : Tensor, (n_parameter,)
        The solution.
    """
    normal = match_priors(problem, normal, vector)
    shift = mean_shift(problem, normal, vector)
    if not bool(shift.any()):
        problem.write(vector)
        return normal
    vector = problem.project(vector + shift)
    return problem.linearize(vector, precise=True).with_precision(normal.prior_precision)


def student_moments(pull: Tensor, precision: Tensor, scale: Tensor, freedom: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of x under exp(-q x²/2 + h x) × Student's t of width s.

    With Student's t as a mixture of N(0, s²/λ), λ ~ Γ(ν/2, ν/2), everything else is Gaussian: at each λ the precision
    is q + λ/s², the mean h over it, and the weight (1 + q s²/λ)^{-1/2} exp(h²/2(q + λ/s²)).

    Parameters
    ----------
    pull, precision : Tensor, (n,)
        h and q ≥ 0 of all that is known but from the prior, x being counted from the prior's anchor.
    scale, freedom : Tensor, (n,)
        Width s and degrees of freedom ν.
    """
    ln_mixing = torch.linspace(*LN_MIXING, N_MIXING, dtype=torch.float64, device=pull.device)
    ln_weight, _, total, pull = _mixture(pull, precision, scale, freedom, ln_mixing)
    weight = torch.softmax(ln_weight, dim=1)
    mean = (weight * pull / total).sum(1)
    variance = (weight * (1.0 / total + (pull / total - mean.unsqueeze(1)).square())).sum(1)
    return mean, variance


def student_evidence(pull: Tensor, precision: Tensor, scale: Tensor, freedom: Tensor) -> tuple[Tensor, Tensor]:
    r"""Logarithm of :math:`Z = \int \exp(-q x^2/2 + h x)\, t_{ν,s}(x)\, dx`, and its derivative to ln s.

    How well a prior of width s foretells what is known of x without it. Its derivative is E[λ x²/s²] - 1 over the
    posterior of x and of the mixing variable λ: where the sum over many x vanishes, the expectation maximisation of
    their common width stands still.

    Parameters
    ----------
    pull, precision, scale, freedom : Tensor, (n,)
        As of `student_moments`; degrees of freedom may be infinite, then of all.
    """
    gaussian = bool(freedom.isinf().all())
    n_mixing, ends = (1, (0.0, 0.0)) if gaussian else (N_MIXING, LN_MIXING)
    ln_mixing = torch.linspace(*ends, n_mixing, dtype=torch.float64, device=pull.device)
    ln_weight, narrow, total, pull = _mixture(pull, precision, scale, freedom.nan_to_num(posinf=1.0), ln_mixing)
    evidence = torch.logsumexp(ln_weight, dim=1)
    square = 1.0 / total + (pull / total).square()
    return evidence, (torch.exp(ln_weight - evidence.unsqueeze(1)) * narrow * square).sum(1) - 1.0


def _mixture(pull: Tensor, precision: Tensor, scale: Tensor, freedom: Tensor, ln_mixing: Tensor) -> tuple[Tensor, ...]:
    """ln of prior weight × evidence, precision λ/s² and total precision at every λ, and h; (n, n_mixing), h (n, 1)."""
    mixing = ln_mixing.exp()
    pull, precision, freedom = pull.unsqueeze(1), precision.unsqueeze(1), freedom.unsqueeze(1)
    narrow = mixing / scale.square().unsqueeze(1)
    total = precision + narrow
    ln_prior = torch.log_softmax(0.5 * freedom * (ln_mixing - mixing), dim=1)
    ln_weight = ln_prior - 0.5 * torch.log1p(precision / narrow) + 0.5 * pull**2 / total
    return ln_weight, narrow, total, pull


def without_prior(
    problem: Objective, normal: NormalEquations, vector: Tensor, variance: Tensor, balance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradient h and precision q that all but its own prior leave each parameter, as of `student_moments`.

    Parameters
    ----------
    problem : Objective
    normal : NormalEquations
    vector : Tensor, (n_parameter,)
        Where data and priors balance.
    variance : Tensor, (n_parameter,)
        Of each parameter, from `normal`.
    balance : Tensor, (n_parameter,), optional
        Precisions of the Gaussian priors that balance there, if not those of `normal`.

    Returns
    -------
    pull, precision : Tensor, (n_parameter,)
    """
    known = (1.0 / variance - normal.prior_precision).clamp(min=0.0)
    offset = vector - problem.priors.mean
    # The prior itself pulls towards its mean there: what pulls the parameter away is all else.
    strongest = STRONGEST_PULL * known.sqrt()
    away = ((normal.prior_precision if balance is None else balance) * offset).clamp(-strongest, strongest)
    return known * offset + away, known


def prior_error(priors: LinePriors, kind: str) -> float:
    """Standard deviation of the Gaussian that stands for a prior of which the data know nothing."""
    width, freedom = getattr(priors, kind), priors.degrees_of_freedom
    if math.isinf(freedom):
        return width
    nothing = torch.zeros(1, dtype=torch.float64)
    return float(student_moments(nothing, nothing, nothing + width, nothing + freedom)[1].sqrt())


def match_priors(problem: Objective, normal: NormalEquations, vector: Tensor) -> NormalEquations:
    """Normal equations at the solution with the Gaussians that stand for the priors of Student's t.

    Parameters
    ----------
    problem : Objective
    normal : NormalEquations
        Its equations at `vector`; their precisions are what the Gaussians start from.
    vector : Tensor, (n_parameter,)
        The solution.
    """
    if not bool(problem.priors.freedom.isfinite().any()):
        return normal
    for _ in range(SWEEPS):
        heavy = _Heavy.of(problem, normal, vector, normal.factor().variance())
        normal = normal.with_precision(heavy.matched(normal.prior_precision))
    return normal


def mean_pull(problem: Objective, factor: Factor, vector: Tensor) -> Tensor:
    """Pull on each parameter that Student's t adds to the Gaussian standing for it, so that it has the same mean.

    Where a fit stands, with the factor of its equations there; one sweep of expectation propagation. None for Gaussian
    priors, and for what stands at a bound. (n_parameter,).
    """
    pull = torch.zeros_like(vector)
    if not bool(problem.priors.freedom.isfinite().any()):
        return pull
    heavy = _Heavy.of(problem, factor.normal, vector, factor.variance())
    pull[heavy.which] = heavy.mean_pull(factor.normal.prior_precision)
    return pull.masked_fill((vector <= problem.priors.lower) | (vector >= problem.priors.upper), 0.0)


@dataclass(frozen=True)
class _Heavy:
    """The parameters with priors of Student's t: what is known of each without its prior, as of `student_moments`."""

    which: Tensor
    pull: Tensor
    known: Tensor
    offset: Tensor
    width: Tensor
    freedom: Tensor

    @classmethod
    def of(cls, problem: Objective, normal: NormalEquations, vector: Tensor, variance: Tensor) -> _Heavy:
        """At a vector where prior and data balance, with the variance of each parameter."""
        which = problem.priors.freedom.isfinite()
        pull, known = without_prior(problem, normal, vector, variance, problem.priors.precision_at(vector))
        offset, width = vector - problem.priors.mean, problem.priors.precision**-0.5
        return cls(which, *(values[which] for values in (pull, known, offset, width, problem.priors.freedom)))

    def matched(self, precision: Tensor) -> Tensor:
        """Precisions with those of the Gaussians that leave each parameter the variance it has with Student's t."""
        moments = student_moments(self.pull, self.known, self.width, self.freedom)
        precision = precision.clone()
        precision[self.which] = torch.maximum(1.0 / moments[1] - self.known, LEAST_PRECISION * self.width**-2)
        return precision

    def mean_pull(self, precision: Tensor) -> Tensor:
        """Pull that brings each parameter's mean from where it stands to where it is with Student's t."""
        mean = student_moments(self.pull, self.known, self.width, self.freedom)[0]
        return (self.known + precision[self.which]) * (mean - self.offset)

    def ln_evidence(self, precision: Tensor) -> float:
        """Σ ln of the integral with the prior over that with its Gaussian, which is 1 where the parameter stands."""
        prior = student_evidence(self.pull, self.known, self.width, self.freedom)[0]
        height = self.pull * self.offset - 0.5 * self.known * self.offset.square()
        return float((prior - height + 0.5 * torch.log(self.known + precision[self.which])).sum())


def mean_shift(problem: Objective, normal: NormalEquations, vector: Tensor) -> Tensor:
    """Step from the solution to the posterior mean of what shapes all lines alike, everything else following along.

    Of what an order or a line has for itself it is left out: it is small against the errors there.

    Parameters
    ----------
    problem : Objective
    normal : NormalEquations
        At `vector`, with the Gaussians that stand for the priors.
    vector : Tensor, (n_parameter,)
        The solution.

    Returns
    -------
    Tensor, (n_parameter,)
    """
    places = [problem.free.global_slices[name] for name in problem.free.at_posterior_mean]
    pinned = problem.pinned(vector, problem.value_and_gradient(vector)[1])
    moving = [k for place in places for k in range(place.start, place.stop) if not bool(pinned[k])]
    if not moving or not problem.free.n_line_parameter:
        return torch.zeros_like(vector)
    factor = normal.factor()
    unit = torch.eye(len(vector), dtype=vector.dtype, device=vector.device)[moving]
    response = torch.stack([factor.solve(each) for each in unit])  # rows of A⁻¹
    covariance = response[:, moving]
    error = covariance.diagonal().sqrt()
    bend = -0.5 * response @ _pull_of_curvature(problem, factor, vector) / error
    shift = torch.zeros_like(error)
    for k, direction in enumerate(response / error.unsqueeze(1)):
        ends = [problem.project(vector + side * REACH * direction) for side in (-1.0, 1.0)]
        back, ahead = (float((end - vector)[moving[k]] / error[k]) for end in ends)
        if min(-back, ahead) < LEAST_REACH:
            continue
        here = _ln_marginal(problem, normal, vector, moving[k])
        low, high = (_ln_marginal(problem, None, end, moving[k], normal.prior_precision) - here for end in ends)
        # The parabola through the three.
        curvature = 2.0 * (high / ahead - low / back) / (ahead - back)
        if not math.isfinite(curvature):
            continue
        slope = high / ahead - 0.5 * curvature * ahead
        shift[k] = error[k] * (slope + bend[k]) / max(-curvature, LEAST_CURVATURE)
    problem.write(vector)
    shift = torch.clamp(shift, -FARTHEST * error, FARTHEST * error)
    step = torch.linalg.solve(covariance, shift) @ response
    return step.masked_fill(pinned, 0.0)  # what stands at a bound does not follow the others off it


def _ln_marginal(
    problem: Objective,
    normal: NormalEquations | None,
    vector: Tensor,
    held: int,
    precision: Tensor | None = None,
) -> float:
    """ln p of a parameter at its value in `vector`, all others summed over, but for the model's own curvature.

    Where no equations are given, `vector` is near the best of the others, which is found; so are the Gaussians of their
    priors, from `precision`.
    """
    if normal is None:
        vector = _beside(problem, vector, held)
        normal = match_priors(problem, problem.linearize(vector, precise=True).with_precision(precision), vector)
    factor = normal.factor()
    unit = torch.zeros_like(vector)
    unit[held] = 1.0
    column = factor.solve(unit)
    pixels, priors = problem.evaluate(vector)
    gaussian = problem.priors.freedom.isinf()
    # With the parameter held, the others know each other's place better.
    variance = factor.variance()
    variance = torch.maximum(variance - column.square() / column[held], ROUNDING * variance)
    heavy = _Heavy.of(problem, normal, vector, variance)
    ln_determinant = _ln_determinant(factor) + float(column[held].log())
    cost = float(pixels.sum() + priors[gaussian].sum())
    return -0.5 * (cost + ln_determinant) + heavy.ln_evidence(normal.prior_precision)


def _beside(problem: Objective, vector: Tensor, held: int) -> Tensor:
    """The best of all others beside a parameter held at its value in `vector`."""
    problem.write(vector)
    # As it reads back: what is off its bounds by a rounding does not stand at them.
    beside = problem.with_priors(problem.priors.holding(held, problem.read()[held]))
    return minimize(beside, max_iterations=BESIDE_ITERATIONS, absolute_tolerance=BESIDE_TOLERANCE).vector


def _ln_determinant(factor: Factor) -> float:
    parts = [block.diagonal() for block in (*factor.lower, factor.corner)]
    return 2.0 * float(torch.cat(parts).log().sum())


def _pull_of_curvature(problem: Objective, factor: Factor, vector: Tensor) -> Tensor:
    """JᵀW Σ_kl (A⁻¹)_kl ∂_k ∂_l F, the sum being twice the mean of F(θ + ξ) - F(θ) over draws ξ."""
    problem.write(vector)
    with torch.no_grad():
        flux = problem.free.flux()
        bend = torch.zeros_like(flux)
        for draw in SPREAD * factor.draw(N_PAIR, torch.Generator().manual_seed(0)):
            for side in (draw, -draw):
                problem.write(problem.project(vector + side))
                bend += problem.free.flux() - flux
    problem.write(vector)
    return problem.free.evaluate()[2](problem.weight * bend / (N_PAIR * SPREAD**2))
