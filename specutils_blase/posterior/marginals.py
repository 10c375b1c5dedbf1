r"""Moment-matched Gaussian of the posterior: priors of Student's t, and marginal means of shared parameters.

The solution of a fit is the mode of the posterior over *all* parameters together. Its curvature is that of Gaussians
that bound the priors. This Gaussian fails in two ways:

- Student's t has a wider shoulder than the Gaussian that touches its mode, and falls off more slowly. Each prior is
  replaced by a moment-matched Gaussian: the parameter's marginal then has the same variance as with Student's t
  (expectation propagation, Minka 2001).
- Hundreds of lines trade a little of their widths for rotation. At the mode all of them have their best widths at once.
  The bulk of the posterior, with every line somewhere in its error, has another v sin i. Parameters that all lines
  share are therefore put at the mean of their marginal, all lines integrated over at each of their values φ (nested
  Laplace approximation, Tierney & Kadane 1986, Rue et al. 2009):

  .. math:: \ln p(φ) = -\tfrac{1}{2} χ^2(\hat θ_φ) - \tfrac{1}{2} \ln\det A_φ
      + \sum_k \ln \frac{\int c_k t_k}{\int c_k g_k} + \tfrac{1}{2} (d - F)^{T} W \sum_{kl} (A^{-1})_{kl}\, ∂_k ∂_l F

  at the mode θ̂_φ of all other parameters. ln det A, with A = JᵀWJ + P, is the volume of the posterior. The sum runs
  over parameters with priors t_k of moment-matched Gaussians g_k; c_k is the likelihood without the prior. It is the
  evidence of expectation propagation: the agreement of the priors with the data. The last term allows for the extra
  width of scattered lines (Box 1971).

Does not live here: the objective (`inference.objective`), its normal equations, the table of errors
(`fitting.assembly`).
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

LN_MIXING_RANGE = (-11.5, 4.0)
"""Range of ln λ, and hence of scales, over which Student's t is summed as a mixture of Gaussians."""

N_MIXING = 100
"""Gaussians of the mixture."""

LEAST_RELATIVE_PRECISION = 1e-3
"""Smallest precision of a moment-matched Gaussian, over that of the prior's width.

Far out the curvature of Student's t is negative: a parameter's marginal is then wider than that of the data alone.
"""

STRONGEST_GRADIENT = 3.0
"""Largest gradient of the data at the mode, where the prior balances it, over the root of their information.

By chance it is larger once in 400 times. A larger gradient with hardly any curvature, extrapolated in a straight line,
would lead dozens of widths away to a second mode that does not exist.
"""

MATCHING_SWEEPS = 2
"""Sweeps of expectation propagation."""

N_DRAW_PAIR, DRAW_SCALE = 8, 0.5
"""Pairs of draws ±ξ for the curvature of the model, and their scale in units of the errors."""

MARGINAL_STEP = math.sqrt(3.0)
"""Step of a parameter to both sides for its marginal, in units of its error, with all others following.

The slope of a cubic between these two points is that at its first-order mean (Gauss-Hermite quadrature).
"""

LEAST_MARGINAL_STEP, LEAST_CURVATURE = 0.5, 0.3
"""Smallest such step, near a bound, and least curvature of ln p in units of that predicted from the error.

Nearer to a bound, or flatter, three values do not determine the maximum of the marginal.
"""

BESIDE_ITERATIONS, BESIDE_TOLERANCE = 5, 0.02
"""Limits of the minimisation of all other parameters there.

The linear prediction misses the minimum by up to one in χ² where hundreds of lines follow, and may end between two
modes of a line."""

LEAST_VARIANCE_LEFT = 1e-9
"""Least part of a variance that remains when another parameter is held; guards against rounding."""

MOST_SHARED_SHIFT = 2.0
"""Largest shift of a mean, in its errors; the first order is not valid beyond."""


def posterior_mean(objective: Objective, normal: NormalEquations, vector: Tensor) -> NormalEquations:
    """Move an objective to the mean of its moment-matched Gaussian, and return the curvature there.

    Parameters
    ----------
    objective : Objective
    normal : NormalEquations
        At `vector`.
    vector : Tensor, (n_parameter,)
        The solution.

    Returns
    -------
    NormalEquations
    """
    normal = match_priors(objective, normal, vector)
    shift = mean_shift(objective, normal, vector)
    if not bool(shift.any()):
        objective.write(vector)
        return normal
    vector = objective.project(vector + shift)
    return objective.linearize(vector, precise=True).with_precision(normal.prior_precision)


def student_moments(gradient: Tensor, precision: Tensor, scale: Tensor, freedom: Tensor) -> tuple[Tensor, Tensor]:
    r"""Mean and variance of x under exp(-q x²/2 + h x) × Student's t of width s.

    With Student's t as a mixture of N(0, s²/λ), λ ~ Γ(ν/2, ν/2), everything else is Gaussian: at each λ the precision
    is q + λ/s², the mean h over it, and the weight (1 + q s²/λ)^{-1/2} exp(h²/2(q + λ/s²)).

    Parameters
    ----------
    gradient, precision : Tensor, (n,)
        h and q ≥ 0 of the likelihood without the prior, with x counted from the prior mean.
    scale, freedom : Tensor, (n,)
        Width s and degrees of freedom ν.

    Returns
    -------
    mean, variance : Tensor, (n,)
    """
    ln_mixing = torch.linspace(*LN_MIXING_RANGE, N_MIXING, dtype=torch.float64, device=gradient.device)
    ln_weight, _, total, gradient = _mixture(gradient, precision, scale, freedom, ln_mixing)
    weight = torch.softmax(ln_weight, dim=1)
    mean = (weight * gradient / total).sum(1)
    variance = (weight * (1.0 / total + (gradient / total - mean.unsqueeze(1)).square())).sum(1)
    return mean, variance


def student_evidence(gradient: Tensor, precision: Tensor, scale: Tensor, freedom: Tensor) -> tuple[Tensor, Tensor]:
    r"""Logarithm of :math:`Z = \int \exp(-q x^2/2 + h x)\, t_{ν,s}(x)\, dx`, and its derivative to ln s.

    Z is the agreement of a prior of width s with the likelihood of x. The derivative is E[λ x²/s²] - 1 over the
    posterior of x and of the mixing variable λ. Where the sum over many x vanishes, the expectation maximisation of
    their common width has converged.

    Parameters
    ----------
    gradient, precision, scale, freedom : Tensor, (n,)
        As of `student_moments`; degrees of freedom may be infinite, then of all.

    Returns
    -------
    ln_evidence, derivative : Tensor, (n,)
    """
    gaussian = bool(freedom.isinf().all())
    n_mixing, ends = (1, (0.0, 0.0)) if gaussian else (N_MIXING, LN_MIXING_RANGE)
    ln_mixing = torch.linspace(*ends, n_mixing, dtype=torch.float64, device=gradient.device)
    ln_weight, narrow, total, gradient = _mixture(gradient, precision, scale, freedom.nan_to_num(posinf=1.0), ln_mixing)
    evidence = torch.logsumexp(ln_weight, dim=1)
    square = 1.0 / total + (gradient / total).square()
    return evidence, (torch.exp(ln_weight - evidence.unsqueeze(1)) * narrow * square).sum(1) - 1.0


def _mixture(
    gradient: Tensor, precision: Tensor, scale: Tensor, freedom: Tensor, ln_mixing: Tensor
) -> tuple[Tensor, ...]:
    """ln of prior weight × evidence, precision λ/s² and total precision at every λ, and h; (n, n_mixing), h (n, 1)."""
    mixing = ln_mixing.exp()
    gradient, precision, freedom = gradient.unsqueeze(1), precision.unsqueeze(1), freedom.unsqueeze(1)
    narrow = mixing / scale.square().unsqueeze(1)
    total = precision + narrow
    ln_prior = torch.log_softmax(0.5 * freedom * (ln_mixing - mixing), dim=1)
    ln_weight = ln_prior - 0.5 * torch.log1p(precision / narrow) + 0.5 * gradient**2 / total
    return ln_weight, narrow, total, gradient


def without_prior(
    objective: Objective, normal: NormalEquations, vector: Tensor, variance: Tensor, balance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Gradient h and precision q of each parameter without its own prior, as of `student_moments`.

    Parameters
    ----------
    objective : Objective
    normal : NormalEquations
    vector : Tensor, (n_parameter,)
        Point at which data and priors balance.
    variance : Tensor, (n_parameter,)
        Variance of each parameter, from `normal`.
    balance : Tensor, (n_parameter,), optional
        Precisions of the Gaussian priors that balance there, if not those of `normal`.

    Returns
    -------
    gradient, precision : Tensor, (n_parameter,)
    """
    information = (1.0 / variance - normal.prior_precision).clamp(min=0.0)
    offset = vector - objective.priors.mean
    # The gradient of the prior, towards its mean, balances that of all else.
    strongest = STRONGEST_GRADIENT * information.sqrt()
    away = ((normal.prior_precision if balance is None else balance) * offset).clamp(-strongest, strongest)
    return information * offset + away, information


def prior_error(priors: LinePriors, kind: str) -> float:
    """Standard deviation of the moment-matched Gaussian of a prior on which the data have no information."""
    width, freedom = getattr(priors, kind), priors.degrees_of_freedom
    if math.isinf(freedom):
        return width
    nothing = torch.zeros(1, dtype=torch.float64)
    return float(student_moments(nothing, nothing, nothing + width, nothing + freedom)[1].sqrt())


def match_priors(objective: Objective, normal: NormalEquations, vector: Tensor) -> NormalEquations:
    """Normal equations at the solution with the moment-matched Gaussians of priors of Student's t.

    Parameters
    ----------
    objective : Objective
    normal : NormalEquations
        Its equations at `vector`; the precisions of the Gaussians start from theirs.
    vector : Tensor, (n_parameter,)
        The solution.

    Returns
    -------
    NormalEquations
    """
    if not bool(objective.priors.freedom.isfinite().any()):
        return normal
    for _ in range(MATCHING_SWEEPS):
        heavy = _Heavy.of(objective, normal, vector, normal.factor().variance())
        normal = normal.with_precision(heavy.matched(normal.prior_precision))
    return normal


def mean_pull(objective: Objective, factor: Factor, vector: Tensor) -> Tensor:
    """Gradient that gives each parameter the mean under Student's t, beyond its moment-matched Gaussian.

    One sweep of expectation propagation.

    Parameters
    ----------
    objective : Objective
    factor : Factor
        Factor of the equations at `vector`.
    vector : Tensor, (n_parameter,)
        The solution.

    Returns
    -------
    Tensor, (n_parameter,)
        Zero for Gaussian priors and at bounds.
    """
    gradient = torch.zeros_like(vector)
    if not bool(objective.priors.freedom.isfinite().any()):
        return gradient
    heavy = _Heavy.of(objective, factor.normal, vector, factor.variance())
    gradient[heavy.which] = heavy.mean_pull(factor.normal.prior_precision)
    return gradient.masked_fill((vector <= objective.priors.lower) | (vector >= objective.priors.upper), 0.0)


@dataclass(frozen=True)
class _Heavy:
    """Parameters with priors of Student's t: their likelihoods without the prior, as of `student_moments`."""

    which: Tensor
    gradient: Tensor
    information: Tensor
    offset: Tensor
    width: Tensor
    freedom: Tensor

    @classmethod
    def of(cls, objective: Objective, normal: NormalEquations, vector: Tensor, variance: Tensor) -> _Heavy:
        """At a vector where priors and data balance, with the variance of each parameter."""
        which = objective.priors.freedom.isfinite()
        gradient, information = without_prior(
            objective, normal, vector, variance, objective.priors.precision_at(vector)
        )
        offset, width = vector - objective.priors.mean, objective.priors.precision**-0.5
        return cls(
            which, *(values[which] for values in (gradient, information, offset, width, objective.priors.freedom))
        )

    def matched(self, precision: Tensor) -> Tensor:
        """Precisions in which priors of Student's t have those of their moment-matched Gaussians."""
        moments = student_moments(self.gradient, self.information, self.width, self.freedom)
        precision = precision.clone()
        precision[self.which] = torch.maximum(
            1.0 / moments[1] - self.information, LEAST_RELATIVE_PRECISION * self.width**-2
        )
        return precision

    def mean_pull(self, precision: Tensor) -> Tensor:
        """Gradient that moves each parameter from its present value to its mean under Student's t."""
        mean = student_moments(self.gradient, self.information, self.width, self.freedom)[0]
        return (self.information + precision[self.which]) * (mean - self.offset)

    def ln_evidence(self, precision: Tensor) -> float:
        """Σ ln of the integral with the prior over that with its Gaussian, which is 1 at the present values."""
        prior = student_evidence(self.gradient, self.information, self.width, self.freedom)[0]
        height = self.gradient * self.offset - 0.5 * self.information * self.offset.square()
        return float((prior - height + 0.5 * torch.log(self.information + precision[self.which])).sum())


def mean_shift(objective: Objective, normal: NormalEquations, vector: Tensor) -> Tensor:
    """Step from the solution to the marginal means of shared parameters, with all others following.

    Parameters of one order or one line are left out: their shifts are small against their errors.

    Parameters
    ----------
    objective : Objective
    normal : NormalEquations
        At `vector`, with the moment-matched Gaussians of the priors.
    vector : Tensor, (n_parameter,)
        The solution.

    Returns
    -------
    Tensor, (n_parameter,)
    """
    places = [objective.free.global_slices[name] for name in objective.free.at_posterior_mean]
    pinned = objective.pinned(vector, objective.value_and_gradient(vector)[1])
    moving = [k for place in places for k in range(place.start, place.stop) if not bool(pinned[k])]
    if not moving or not objective.free.n_line_parameter:
        return torch.zeros_like(vector)
    factor = normal.factor()
    unit = torch.eye(len(vector), dtype=vector.dtype, device=vector.device)[moving]
    response = torch.stack([factor.solve(column) for column in unit])  # rows of A⁻¹
    covariance = response[:, moving]
    error = covariance.diagonal().sqrt()
    bend = -0.5 * response @ _pull_of_curvature(objective, factor, vector) / error
    shift = torch.zeros_like(error)
    for k, direction in enumerate(response / error.unsqueeze(1)):
        ends = [objective.project(vector + side * MARGINAL_STEP * direction) for side in (-1.0, 1.0)]
        back, ahead = (float((end - vector)[moving[k]] / error[k]) for end in ends)
        if min(-back, ahead) < LEAST_MARGINAL_STEP:
            continue
        at_mode = _ln_marginal(objective, normal, vector, moving[k])
        low, high = (_ln_marginal(objective, None, end, moving[k], normal.prior_precision) - at_mode for end in ends)
        # The parabola through the three.
        curvature = 2.0 * (high / ahead - low / back) / (ahead - back)
        if not math.isfinite(curvature):
            continue
        slope = high / ahead - 0.5 * curvature * ahead
        shift[k] = error[k] * (slope + bend[k]) / max(-curvature, LEAST_CURVATURE)
    objective.write(vector)
    shift = torch.clamp(shift, -MOST_SHARED_SHIFT * error, MOST_SHARED_SHIFT * error)
    step = torch.linalg.solve(covariance, shift) @ response
    return step.masked_fill(pinned, 0.0)  # parameters at a bound stay there


def _ln_marginal(
    objective: Objective,
    normal: NormalEquations | None,
    vector: Tensor,
    held: int,
    precision: Tensor | None = None,
) -> float:
    """ln p of a parameter at its value in `vector`, marginal over all others, without the model's own curvature.

    Without equations, all others are minimised from `vector`, and the Gaussians of their priors matched from
    `precision`.
    """
    if normal is None:
        vector = _beside(objective, vector, held)
        normal = match_priors(objective, objective.linearize(vector, precise=True).with_precision(precision), vector)
    factor = normal.factor()
    unit = torch.zeros_like(vector)
    unit[held] = 1.0
    column = factor.solve(unit)
    pixels, priors = objective.evaluate(vector)
    gaussian = objective.priors.freedom.isinf()
    # Variances of the others with the parameter held.
    variance = factor.variance()
    variance = torch.maximum(variance - column.square() / column[held], LEAST_VARIANCE_LEFT * variance)
    heavy = _Heavy.of(objective, normal, vector, variance)
    ln_determinant = _ln_determinant(factor) + float(column[held].log())
    cost = float(pixels.sum() + priors[gaussian].sum())
    return -0.5 * (cost + ln_determinant) + heavy.ln_evidence(normal.prior_precision)


def _beside(objective: Objective, vector: Tensor, held: int) -> Tensor:
    """Minimum over all other parameters with one held at its value in `vector`."""
    objective.write(vector)
    # The value as it reads back: rounding otherwise puts it off the bounds.
    beside = objective.with_priors(objective.priors.holding(held, objective.read()[held]))
    return minimize(beside, max_iterations=BESIDE_ITERATIONS, absolute_tolerance=BESIDE_TOLERANCE).vector


def _ln_determinant(factor: Factor) -> float:
    parts = [block.diagonal() for block in (*factor.lower, factor.corner)]
    return 2.0 * float(torch.cat(parts).log().sum())


def _pull_of_curvature(objective: Objective, factor: Factor, vector: Tensor) -> Tensor:
    """JᵀW Σ_kl (A⁻¹)_kl ∂_k ∂_l F, the sum being twice the mean of F(θ + ξ) - F(θ) over draws ξ."""
    objective.write(vector)
    with torch.no_grad():
        flux = objective.free.flux()
        bend = torch.zeros_like(flux)
        for draw in DRAW_SCALE * factor.draw(N_DRAW_PAIR, torch.Generator().manual_seed(0)):
            for side in (draw, -draw):
                objective.write(objective.project(vector + side))
                bend += objective.free.flux() - flux
    objective.write(vector)
    return objective.free.evaluate()[2](objective.weight * bend / (N_DRAW_PAIR * DRAW_SCALE**2))
