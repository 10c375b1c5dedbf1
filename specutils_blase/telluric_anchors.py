r"""Where the priors of a sky's lines stand together: a factor a species and a shift, known from the lines themselves.

Lines scatter about their template, each by its own prior. A factor or a shift that takes the template to the data as if
all its lines were right is that of the few strongest lines, and a mean of factors, not of their logarithms; where all
other lines are anchored by it, their anchors are off by many of their errors, and all alike. With θ the lines, a their
anchors and M what a common change h does to these, the posterior is that of both,

.. math:: ψ(θ, h) = \tfrac{1}{2} χ^2(θ) + \sum_k ρ_k(θ_k - a_k - (M h)_k) + \tfrac{1}{2} h^T P_h h,

and with the lines following along, its Gauss-Newton step in h is

.. math:: H δh = M^T P\,(θ - a) - P_h h + M^T P A^{-1} g, \quad H = P_h + M^T P M - M^T P A^{-1} P M,

P being the lines' prior precisions, A = JᵀWJ + P and g the pull on θ. Lines of which the data say nothing do not count
in H, and those far off count little in P. For errors P is Student's t's information of its centre, (ν + 1)/(ν + 3)/s².

Does not live here: the first factors and shift, lines held (`telluric_scaling`); when anchors settle (`solving`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from .grids import SPEED_OF_LIGHT
from .normal_equations import NormalEquations
from .problem import AnchoredProblem
from .telluric_scaling import FACTOR_PRIOR, SHIFT_PRIOR, TelluricScale

STILL = 0.1
"""Part of its error by which a factor or the shift may be off in the end."""

LONGEST = 1.0
"""Largest change of ln f, or of the shift [km/s], at once."""


class TelluricAnchors:
    """The factors and the shift at which the telluric lines of a problem are anchored.

    Parameters
    ----------
    problem : AnchoredProblem
        With the sky where `scale` left it.
    scale : TelluricScale
    """

    def __init__(self, problem: AnchoredProblem, scale: TelluricScale):
        self.problem, self.names = problem, list(scale.factors)
        emulator, free = problem.free.model.telluric, problem.free
        species = list(emulator.species or [""] * len(emulator))
        device = emulator.center.device
        self.member = torch.tensor([self.names.index(each) for each in species], device=device)
        factors = torch.tensor([scale.factors[name] for name in self.names], dtype=torch.float64, device=device)
        self.state = torch.cat([factors.log(), factors.new_tensor([scale.shift])])
        errors = [scale.errors[name] / scale.factors[name] for name in self.names]
        self.error = factors.new_tensor([*errors, scale.shift_error])
        self.precision = factors.new_tensor([FACTOR_PRIOR**-2] * len(self.names) + [SHIFT_PRIOR**-2])
        columns, lines, kinds = free.columns("telluric"), free.lines["telluric"], free.kinds["telluric"]
        self.area, self.offset = (
            columns[:, kinds.index(kind)] if kind in kinds else columns.new_empty(0)
            for kind in ("ln_area", "rv_offset")
        )
        self.design = factors.new_zeros(len(free), len(self.state))
        if self.area.numel():
            self.design[self.area, self.member[lines]] = 1.0
        self.design[self.offset, -1] = 1.0
        self.moving = self.design.any(0)

    @torch.no_grad()
    def step(self, vector: Tensor) -> tuple[Tensor, Tensor] | None:
        """Where the lines say that the anchors should go, and the lines with them; None where all stand within `STILL`.

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
        pull = held.T @ (vector - problem.anchor) - (self.precision * self.state)[self.moving]
        step = torch.zeros_like(self.state)
        step[self.moving] = torch.linalg.solve(curvature, pull + follow.T @ normal.gradient)
        # Over its scatter, Student's t tells less of its centre than the Gaussians that bound it.
        heavy, freedom = problem.freedom.isfinite(), problem.freedom
        told = problem.precision * torch.where(heavy, (freedom + 1.0) / (freedom + 3.0), 1.0)
        curvature = self._coupling(normal.with_precision(told))[-1]
        self.error[self.moving] = torch.linalg.inv(curvature).diagonal().sqrt()
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

    def _coupling(self, normal: NormalEquations) -> tuple[Tensor, Tensor, Tensor]:
        """P M, A⁻¹ P M and H of what may move."""
        design, factor = self.design[:, self.moving], normal.factor()
        held = normal.prior_precision.unsqueeze(1) * design
        follow = torch.stack([factor.solve(column) for column in held.T], dim=1)
        return held, follow, design.T @ held - held.T @ follow + torch.diag(self.precision[self.moving])

    def _apply(self, step: Tensor, vector: Tensor) -> None:
        """Anchors, lines that are held, and the lines at `vector`, whose offsets count from the anchors' centres."""
        problem, emulator = self.problem, self.problem.free.model.telluric
        self.state += step
        vector = vector.clone()
        if self.area.numel():
            emulator.ln_area += step[self.member].to(emulator.ln_area.dtype)
            problem.anchor[self.area] += self.design[self.area] @ step
        if self.offset.numel():
            emulator.center *= 1.0 + step[-1] / SPEED_OF_LIGHT
            vector[self.offset] -= step[-1]
        problem.forget()
        problem.write(problem.project(vector))

    def scale(self) -> TelluricScale:
        """The factors and the shift, with the errors that the scatter of the lines leaves them."""
        return TelluricScale.of(self.names, self.state, self.error)
