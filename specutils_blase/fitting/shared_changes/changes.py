r"""What all lines of a component share against their template, known from the lines themselves.

Lines scatter about their template, each by its own prior. A factor or a shift that takes the template to the data as if
all its lines were right is that of the few strongest lines, and a mean of factors, not of their logarithms; where all
other lines have it as their prior mean, these means are off by many errors, and all alike. With θ the lines, a their
prior means and M what a common change h does to these, the posterior is that of both,

.. math:: ψ(θ, h) = \tfrac{1}{2} χ^2(θ) + \sum_k ρ_k(θ_k - a_k - (M h)_k) + \tfrac{1}{2} h^T P_h h,

and with the lines following along, its Gauss-Newton step in h is

.. math:: H δh = M^T P\,(θ - a) - P_h h + M^T P A^{-1} g, \quad H = P_h + M^T P M - M^T P A^{-1} P M,

P being the lines' prior precisions, A = JᵀWJ + P and g the gradient on θ. Lines of which the data say nothing do not
count in H, and those far off count little in P. For errors P is Student's t's information of its centre,
(ν + 1)/(ν + 3)/s².

Does not live here: the amounts of a telluric template (`telluric_anchors`), strength and width of a star's lines
(`star_anchors`), when they settle (`solving`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ...inference.linear.normal_equations import NormalEquations
from ...inference.objective import AnchoredProblem

STILL = 0.1
"""Part of its error by which a common change may be off in the end."""

LONGEST = 1.0
"""Largest change of a logarithm, or of a shift [km/s], at once."""


class CommonChanges:
    """Changes that lines share, as means of their priors.

    Parameters
    ----------
    problem : AnchoredProblem
    state, error, precision : Tensor, (n_change,)
        Values at the start, their errors, and the precisions of their own priors about zero.
    design : Tensor, (n_parameter, n_change)
        What a change does to the prior mean of each parameter.
    """

    def __init__(self, problem: AnchoredProblem, state: Tensor, error: Tensor, precision: Tensor, design: Tensor):
        self.problem, self.state, self.error, self.precision = problem, state, error, precision
        self.design = design
        self.moving = design.any(0)

    @torch.no_grad()
    def step(self, vector: Tensor) -> tuple[Tensor, Tensor] | None:
        """Where the lines say that their prior means should go, and the lines with them; None where all stand.

        Parameters
        ----------
        vector : Tensor, (n_parameter,)
            The lines as they are; nearer to the solution, the step is nearer to the end.
        """
        problem = self.problem
        if not bool(self.moving.any()):
            return None
        normal = problem.linearize(vector)
        held, follow, curvature = self._coupling(normal)
        gradient = held.T @ (vector - problem.anchor) - (self.precision * self.state)[self.moving]
        step = torch.zeros_like(self.state)
        step[self.moving] = torch.linalg.solve(curvature, gradient + follow.T @ normal.gradient)
        self.error[self.moving] = self._covariance(normal)[1].diagonal().sqrt()
        if bool((step.abs() <= STILL * self.error).all()):
            return None
        step = step.clamp(-LONGEST, LONGEST)
        return step, vector + follow @ step[self.moving]

    @torch.no_grad()
    def settle(self, vector: Tensor) -> Tensor | None:
        """Take that step; the lines' new vector, or None where nothing moves."""
        found = self.step(vector)
        if found is None:
            return None
        self._apply(*found)
        return self.problem.read()

    def learn(self, vector: Tensor) -> bool:
        """Let the priors' widths follow the scatter of the lines; True if that changes the fit."""
        return False

    def least_error(self) -> Tensor:
        """Errors of the changes, (n_change,), that what follows them has at least, whatever the lines say of them."""
        return torch.zeros_like(self.state)

    @torch.no_grad()
    def added_covariance(self, normal: NormalEquations) -> Tensor:
        """What not knowing the changes adds to the covariance of the border's parameters, (n_border, n_border)."""
        border = normal.border
        if not bool(self.moving.any()):
            return normal.prior_precision.new_zeros(border.numel(), border.numel())
        follow, covariance = self._covariance(normal)
        least = self.least_error()[self.moving].square()
        covariance = covariance + (least - covariance.diagonal()).clamp(min=0.0).diag()
        return follow[border] @ covariance @ follow[border].T

    def _covariance(self, normal: NormalEquations) -> tuple[Tensor, Tensor]:
        """How all parameters follow the changes that may move, and the covariance of these."""
        problem = self.problem
        # Over its scatter, Student's t tells less of its centre than the Gaussians that bound it.
        heavy, freedom = problem.freedom.isfinite(), problem.freedom
        told = problem.precision * torch.where(heavy, (freedom + 1.0) / (freedom + 3.0), 1.0)
        _, follow, curvature = self._coupling(normal.with_precision(told))
        return follow, torch.linalg.inv(curvature)

    def _coupling(self, normal: NormalEquations) -> tuple[Tensor, Tensor, Tensor]:
        """P M, A⁻¹ P M and H of what may move."""
        design, factor = self.design[:, self.moving], normal.factor()
        held = normal.prior_precision.unsqueeze(1) * design
        follow = torch.stack([factor.solve(column) for column in held.T], dim=1)
        return held, follow, design.T @ held - held.T @ follow + torch.diag(self.precision[self.moving])

    def _apply(self, step: Tensor, vector: Tensor) -> None:
        """Prior means, lines that are held, and the lines at `vector`."""
        vector = self._change(step, vector.clone())
        self.problem.forget()
        self.problem.write(self.problem.project(vector))

    def _change(self, step: Tensor, vector: Tensor) -> Tensor:
        """Change state, emulators and prior means; `vector` as it then reads."""
        raise NotImplementedError


class JointChanges(CommonChanges):
    """Common changes of several components, which know of each other through the lines.

    Parameters
    ----------
    parts : sequence of CommonChanges
        Of one problem. Their states and errors become views of the joint ones.
    """

    def __init__(self, parts: Sequence[CommonChanges]):
        self.parts = list(parts)
        joined = (torch.cat([getattr(part, name) for part in parts]) for name in ("state", "error", "precision"))
        super().__init__(parts[0].problem, *joined, torch.cat([part.design for part in parts], dim=1))
        first = 0
        for part in parts:
            own = slice(first, first + len(part.state))
            for name in ("state", "error", "precision"):
                setattr(part, name, getattr(self, name)[own])
            first = own.stop

    def least_error(self) -> Tensor:
        return torch.cat([part.least_error() for part in self.parts])

    def _change(self, step: Tensor, vector: Tensor) -> Tensor:
        for part, own in zip(self.parts, step.split([len(part.state) for part in self.parts]), strict=True):
            vector = part._change(own, vector)
        return vector

    def learn(self, vector: Tensor) -> bool:
        return any([part.learn(vector) for part in self.parts])
