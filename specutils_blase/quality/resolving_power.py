r"""What the lines of the sky say of a resolving power that is held, and what another would do to v sin i.

With tangents T of the flux to ln R, and to ln R as it broadens the star alone, and the equations of a solution,
A = JᵀWJ + P, the score of T beside all that is free is :math:`s = T^T W r - B^T A^{-1} g`, with :math:`B = J^T W T` and
the gradient g of all else. Its information is :math:`Q = T^T W T - B^T A^{-1} B`. One step of Gauss and Newton is
:math:`Q^{-1} s` with covariance :math:`Q^{-1}` (Rao's score test). The second tangent has no prior: lines of a template
that are wider than the star's look like a resolving power told too low, so that only the sky is asked.

Does not live here: the fit of R (`free=("resolving_power", ...)`), other assessments (`assessment`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ..inference.linear.cholesky import Factor
from ..inference.linear.jacobian import line_spread_tangents
from ..inference.linear.normal_equations import NormalEquations
from ..inference.objective import AnchoredProblem
from .report import Reason

WANTED, WANTED_BY = 5.0, 0.25
"""Standard deviations, and step of ln R, from which on another resolving power is asked for. The step goes too far
where widths of lines have moved to make up for it: it says that R is off, not by how much.

The line spread of HPF is no Gaussian: 55,000 by its width at half maximum is up to 63,000 by its variance.
"""

KNOWN_TO = 0.1
"""Part to which a resolving power is known where nobody has measured it."""


@dataclass(frozen=True)
class WantedResolvingPower:
    """What the data say of a resolving power that is held.

    Parameters
    ----------
    change, error : float
        Of ln R, as the sky wants it; infinite error where there is no sky, or no star beside it.
    vsini_change : float
        Change of v sin i [km/s] with ln R; zero where it is held.
    """

    change: float
    error: float
    vsini_change: float


@torch.no_grad()
def wanted_resolving_power(
    problem: AnchoredProblem, normal: NormalEquations, factor: Factor
) -> WantedResolvingPower | None:
    """Score of ln R at a solution; None where R is free, or an order has no line spread.

    Parameters
    ----------
    problem : AnchoredProblem
        At the solution.
    normal : NormalEquations
        There.
    factor : Factor
        Of its matrix.
    """
    free = problem.free
    if "resolving_power" in free.global_slices or any(one.line_spread is None for one in free.orders):
        return None
    parts = [line_spread_tangents(one) for one in free.orders]
    tangents = torch.stack([free.merge([part.double() for part in of_all]) for of_all in zip(*parts, strict=True)])
    # By the Jacobian that A is made of: another one could make the information negative.
    root = problem.weight.sqrt()
    along = torch.stack([normal.pull_back(root * tangent) for tangent in tangents])
    responses = torch.stack([factor.solve(one) for one in along])
    vsini, change, error = 0.0, 0.0, math.inf
    if "vsini" in free.global_slices:
        column = free.global_slices["vsini"].start
        speed = math.sqrt(max(float(problem.read()[column]), 1e-300))  # the vector has its square
        vsini = -float(responses[0, column]) / (2.0 * speed)
    if len(tangents) > 1:
        information = (problem.weight * tangents) @ tangents.T - along @ responses.T
        score = tangents @ (problem.weight * (problem.flux - free.flux())) - responses @ normal.gradient
        covariance = torch.linalg.pinv(information, hermitian=True, rtol=1e-9)
        if float(covariance[0, 0]) > 0.0:
            change, error = float((covariance @ score)[0]), float(covariance[0, 0].sqrt())
    return WantedResolvingPower(change, error, vsini)


def resolving_power_reasons(found: WantedResolvingPower | None, power: float, result) -> list[Reason]:
    """In words.

    Parameters
    ----------
    found : WantedResolvingPower or None
    power : float
        The one that is held.
    result : FitResult
        Of which v sin i and its error are asked for, where it is free.
    """
    if found is None:
        return []
    pull, reasons = abs(found.change) / found.error, []
    if pull > WANTED and abs(found.change) > WANTED_BY:
        text = (
            f"the sky's lines are {'narrower' if found.change > 0 else 'wider'} than a resolving power of {power:.0f} "
            f"makes them ({pull:.1f} standard deviations): v sin i takes up the difference; fit it with "
            'free=("rv", "vsini", "continuum", "resolving_power")'
        )
        reasons.append(Reason("resolving_power", "doubtful", text, pull, WANTED))
    if not found.vsini_change:
        return reasons
    # Near zero v sin i is an upper limit, and follows no straight line.
    vsini, vsini_error = result.value("vsini"), result.error("vsini")
    moved = min(abs(KNOWN_TO * found.vsini_change), vsini)
    if moved > vsini_error and vsini > 2.0 * vsini_error:
        text = (
            f"a resolving power {100 * KNOWN_TO:.0f} % off moves the rotation velocity by {moved:.2g} km/s, further "
            "than its error: it is known as well as that is"
        )
        reasons.append(Reason("vsini_resolving_power", "good", text, moved, vsini_error))
    return reasons
