"""Error bars by dense algebra, to lay beside those that a fit reports.

``abs(fit - truth) < 3 * error`` holds as well for a bar that is three times too long. Tests of this form check the bar
itself, too: against `dense_errors`, or against a number that `dense_errors` has given for the same simulated data.
"""

import math
from copy import deepcopy

import numpy as np
import torch

from specutils_blase.posterior.laplace import WIDENED, free_parameters, prior_precision

STEP = 1e-3
"""Forward step of a parameter in units of its prior's width, at most a tenth: derivatives are good to about as much."""


def has_jitter(fit):
    """Whether a fit has added jitter to its noise, or doubts outliers."""
    return bool(np.any(fit.orders["jitter"] > 0) or np.any(fit.orders["doubted"] > 0))


def dense_covariance(fit, *, jittered=False):
    """
    Inverse of JᵀWJ + P at a fit, with no factor, window or table of the fit's own.

    J comes from forward differences of the whole model, and P is the result's record of the priors' precisions. W comes
    from the uncertainties of the data alone; where the model lacks something, from the weights that the fit ended with.

    Parameters
    ----------
    fit : FitResult or EchelleFitResult
    jittered : bool
        Whether it is to be expected of the fit that it `has_jitter`.

    Returns
    -------
    free : FreeParameters
        Which parameter stands where.
    covariance : Tensor, (n_parameter, n_parameter)
    """
    free = free_parameters(deepcopy(fit.model), fit.parameters, fit.curvature)
    data = fit.data if isinstance(fit.data, list) else [fit.data]
    assert has_jitter(fit) == jittered
    own = [torch.where(one.good, one.sigma.double() ** -2, 0.0) for one in data]
    weight = free.merge(list(fit.curvature.weight) if jittered else own)
    return free, inverse(free, weight, prior_precision(free, fit.curvature))


@torch.no_grad()
def forward_jacobian(free, steps):
    """∂F/∂θ of the whole model where it stands, one parameter at a time; (n_pixel, n_parameter)."""
    start, here, columns = free.read(), free.flux(), []
    for k, step in enumerate(steps):
        moved = start.clone()
        moved[k] += step
        free.write(moved)
        columns.append((free.flux() - here) / step)
    free.write(start)
    return torch.stack(columns, dim=1)


def inverse(free, weight, precision):
    """(JᵀWJ + P)⁻¹ with the Jacobian by differences, and these weights of pixels and precisions of priors."""
    jacobian = forward_jacobian(free, STEP * precision.rsqrt().clamp(max=0.1))
    return torch.linalg.inv(jacobian.T @ (weight.unsqueeze(1) * jacobian) + torch.diag(precision))


def dense_errors(free, covariance):
    """Errors of "rv", "vsini" and "continuum_k", as far as they are free; of several orders, of the first continuum."""
    error, start, found = covariance.diagonal().sqrt(), free.read(), {}
    for name, place in free.global_slices.items():
        own = error[place].tolist()
        if name == "vsini":  # it stands as its square
            square = float(start[place])
            found[name] = math.sqrt(square + own[0]) - math.sqrt(square)
        elif name == "rv":
            found[name] = own[0]
        elif name in ("continuum", "continuum[0]"):
            found |= {f"continuum_{degree}": one for degree, one in enumerate(own)}
    return found


def assert_bars(fit, *names, rel=0.05, jittered=False):
    """
    The bars of a fit are those of dense algebra, of these parameters and of every free line.

    Bars of velocities are longer by the factors that the fit tells.

    Parameters
    ----------
    fit : FitResult or EchelleFitResult
    *names : str
        Rows of its parameters.
    rel : float
        How near. What lines have in common against their template is not in dense algebra, and adds a little.
    jittered : bool
        As of `dense_covariance`.
    """
    free, covariance = dense_covariance(fit, jittered=jittered)
    expected = dense_errors(free, covariance)
    for name in names:
        widened = math.prod(fit.settings.get(kind, {}).get(name, 1.0) for kind in WIDENED)
        ratio = fit.error(name) / (widened * expected[name])
        assert abs(ratio - 1.0) < rel, (name, ratio)
    for component, lines in free.lines.items():
        rows = fit.ledger[fit.ledger["component"] == component]
        rows = rows[np.argsort(rows["id"])][lines.numpy()]
        assert rows["free"].all()
        for column, kind in zip(free.columns(component).T, free.kinds[component], strict=True):
            name = kind.removeprefix("ln_")
            told = rows[f"{name}_err"] if name == kind else rows[f"{name}_err"] / rows[name]
            ratio = told.value / covariance.diagonal()[column].sqrt().numpy()
            assert np.abs(ratio - 1.0).max(initial=0.0) < rel, (component, kind, ratio)
