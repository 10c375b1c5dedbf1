r"""Resolving power by the telluric lines where it is held, and its effect on v sin i.

With tangents T of the flux to ln R, and to ln R as it broadens the star alone, and the equations of a solution,
A = JᵀWJ + P, the score of T beside all that is free is :math:`s = T^T W r - B^T A^{-1} g`, with :math:`B = J^T W T` and
the gradient g of all else. Its information is :math:`Q = T^T W T - B^T A^{-1} B`. One step of Gauss and Newton is
:math:`Q^{-1} s` with covariance :math:`Q^{-1}` (Rao's score test). The second tangent has no prior: lines of a template
that are wider than the star's look like too low a resolving power, so that only tellurics are used.

Does not live here: the fit of R (`free=("resolving_power", ...)`), other assessments (`assessment`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..inference.linear.cholesky import Factor
from ..inference.linear.jacobian import line_spread_tangents
from ..inference.linear.normal_equations import NormalEquations
from ..inference.objective import Objective
from .report import Reason

WANTED_SIGMA, WANTED_LN_R = 5.0, 0.25
"""Standard deviations, and step of ln R, above which the resolving power is doubtful. The step is too large where
widths of lines have moved to compensate: it shows that R is off, not by how much.

The line spread of HPF is no Gaussian: 55,000 by its width at half maximum is up to 63,000 by its variance.
"""

R_UNCERTAINTY = 0.1
"""Relative uncertainty of a resolving power that has not been measured."""


@dataclass(frozen=True)
class WantedResolvingPower:
    """Change of a held resolving power that the data ask for.

    Parameters
    ----------
    change, error : float
        Change of ln R by the tellurics, and its error, infinite without tellurics or without a star.
    vsini_change : float
        Change of v sin i [km/s] with ln R; zero where it is held.
    """

    change: float
    error: float
    vsini_change: float


@torch.no_grad()
def wanted_resolving_power(
    objective: Objective, normal: NormalEquations, factor: Factor
) -> WantedResolvingPower | None:
    """Score of ln R at a solution; None where R is free, or an order has no line spread.

    Parameters
    ----------
    objective : Objective
        At the solution.
    normal : NormalEquations
        There.
    factor : Factor
        Of its matrix.
    """
    free = objective.free
    spreads = [order.line_spread for order in free.orders]
    if None in spreads or any(owned.stage in spreads for owned in free.owned.values()):
        return None
    parts = [line_spread_tangents(order) for order in free.orders]
    tangents = torch.stack([free.merge([part.double() for part in of_all]) for of_all in zip(*parts, strict=True)])
    # By the Jacobian that A is made of: another one could make the information negative.
    root = objective.weight.sqrt()
    along = torch.stack([normal.pull_back(root * tangent) for tangent in tangents])
    responses = torch.stack([factor.solve(column) for column in along])
    vsini, change, error = 0.0, 0.0, math.inf
    target = free.model.target
    speed_key = None if target is None or target.rotation is None else free.key_of(target.rotation.vsini)
    if speed_key is not None:
        column = free.global_slices[speed_key].start
        speed = math.sqrt(max(float(objective.read()[column]), 1e-300))  # the vector has its square
        vsini = -float(responses[0, column]) / (2.0 * speed)
    if len(tangents) > 1:
        information = (objective.weight * tangents) @ tangents.T - along @ responses.T
        score = tangents @ (objective.weight * (objective.flux - free.flux())) - responses @ normal.gradient
        covariance = torch.linalg.pinv(information, hermitian=True, rtol=1e-9)
        if float(covariance[0, 0]) > 0.0:
            change, error = float((covariance @ score)[0]), float(covariance[0, 0].sqrt())
    return WantedResolvingPower(change, error, vsini)


def resolving_power_reasons(wanted: WantedResolvingPower | None, power: float, result) -> list[Reason]:
    """Reasons that follow from the score of ln R.

    Parameters
    ----------
    wanted : WantedResolvingPower or None
    power : float
        The held resolving power.
    result : FitResult
        For v sin i and its error.

    Returns
    -------
    list of Reason
    """
    if wanted is None:
        return []
    significance, reasons = abs(wanted.change) / wanted.error, []
    if significance > WANTED_SIGMA and abs(wanted.change) > WANTED_LN_R:
        text = (
            f"the telluric lines are {'narrower' if wanted.change > 0 else 'wider'} than at a resolving power of "
            f"{power:.0f} ({significance:.1f} standard deviations): v sin i takes up the difference; fit it with "
            'free=("rv", "vsini", "continuum", "resolving_power")'
        )
        reasons.append(Reason("resolving_power", "doubtful", text, significance, WANTED_SIGMA))
    if not wanted.vsini_change:
        return reasons
    # Near zero v sin i is an upper limit, and follows no straight line.
    vsini, vsini_error = result.value("vsini"), result.error("vsini")
    moved = min(abs(R_UNCERTAINTY * wanted.vsini_change), vsini)
    if moved > vsini_error and vsini > 2.0 * vsini_error:
        text = (
            f"a resolving power {100 * R_UNCERTAINTY:.0f} % off moves the rotation velocity by {moved:.2g} km/s, more "
            "than its error: v sin i is known as well as the resolving power"
        )
        reasons.append(Reason("vsini_resolving_power", "good", text, moved, vsini_error))
    return reasons
