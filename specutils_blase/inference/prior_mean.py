r"""Prior means of line parameters that depend on a few hyperparameters, known from the lines themselves.

Lines scatter about their template, each by its own prior. A factor or a shift that takes the template to the data as if
all its lines were right is that of the few strongest lines, and a mean of factors, not of their logarithms; where all
other lines have it as their prior mean, these means are off by many errors, and all alike. With θ the lines, a their
prior means and M what a change of the hyperparameters h does to these, the posterior is that of both,

.. math:: ψ(θ, h) = \tfrac{1}{2} χ^2(θ) + \sum_k ρ_k(θ_k - a_k - (M h)_k) + \tfrac{1}{2} h^T P_h h,

and with the lines following along, its Gauss-Newton step in h is

.. math:: H δh = M^T P\,(θ - a) - P_h h + M^T P A^{-1} g, \quad H = P_h + M^T P M - M^T P A^{-1} P M,

P being the lines' prior precisions, A = JᵀWJ + P and g the gradient on θ. Lines of which the data say nothing do not
count in H, and those far off count little in P. For errors P is Student's t's information of its centre,
(ν + 1)/(ν + 3)/s².

Does not live here: the amounts of a telluric template (`fitting.prior_means.telluric`), strength and width of a star's
lines (`fitting.prior_means.star`), when they settle (`fitting.stages`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy

import torch
from torch import Tensor

from ..model.emulator import LineEmulator
from ..model.parameters import FreeParameters
from .linear.normal_equations import NormalEquations
from .objective import Objective

STILL = 0.1
"""Part of its error by which a hyperparameter may be off in the end."""

LONGEST = 1.0
"""Largest change of a hyperparameter at once, a logarithm or a shift [km/s]."""


class PriorMean:
    """Contract: the prior means of a component's line parameters as a linear function of hyperparameters.

    A subclass calls this constructor and gives `design`. ``fit(prior_means=)`` takes instances.

    Parameters
    ----------
    component : str
        Whose lines.
    names : sequence of str
        Of the hyperparameters.
    prior_sigma : sequence of float
        Standard deviations of their Gaussian priors about zero.
    start, start_error : sequence of float, optional
        Their values with which the lines already stand, zero by default, and errors of these.

    Examples
    --------
    Deep lines of a template that are all too strong or too weak, by a power of their depth:

    >>> class Saturation(PriorMean):
    ...     def design(self, emulator):
    ...         return {"ln_area": emulator.ln_area.detach().unsqueeze(1) - emulator.ln_area.detach().mean()}
    >>> Saturation("star", ["slope"], [0.5]).names
    ('slope',)
    """

    def __init__(
        self,
        component: str,
        names: Sequence[str],
        prior_sigma: Sequence[float],
        start: Sequence[float] | None = None,
        start_error: Sequence[float] | None = None,
    ):
        self.component, self.names = component, tuple(names)
        self.precision = torch.as_tensor([float(sigma) ** -2 for sigma in prior_sigma], dtype=torch.float64)
        if not self.names or len(self.names) != len(self.precision):
            raise ValueError(f"expected one prior_sigma a name, got {len(self.precision)} for {len(self.names)} names")
        zero = torch.zeros_like(self.precision)
        self.value = zero.clone() if start is None else torch.as_tensor(start, dtype=torch.float64).clone()
        width = self.precision**-0.5
        self.error = width if start_error is None else torch.as_tensor(start_error, dtype=torch.float64).clone()
        self.start = self.value.clone()

    def design(self, emulator: LineEmulator) -> dict[str, Tensor]:
        """What each hyperparameter does to each line.

        Parameters
        ----------
        emulator : LineEmulator
            The component's lines.

        Returns
        -------
        dict
            Kind of line parameter ("ln_area", "ln_sigma", "ln_gamma", "rv_offset" [km/s]) to (n_line, n_name).
        """
        raise NotImplementedError

    def learn(self, objective: Objective, vector: Tensor) -> Objective | None:
        """Let the priors' widths follow the scatter of the lines; None where nothing changes."""
        return None

    def fresh(self) -> PriorMean:
        """A copy with the values of the start, which a fit then moves."""
        other = copy(self)
        other.value, other.error, other.precision = self.start.clone(), self.error.clone(), self.precision.clone()
        return other

    def on(self, free: FreeParameters, columns: Tensor) -> PriorMean:
        """The same where lines have been added; `columns` are those of the old ones' parameters."""
        return copy(self)

    def forget(self, objective: Objective) -> tuple[Objective, Callable[[], None]]:
        """Take back what `learn` has changed, and a way to know it again."""
        return objective, lambda: None

    def least_error(self) -> Tensor:
        """Errors of the hyperparameters, (n_name,), that what follows them has at least."""
        return torch.zeros_like(self.value)


class PriorMeans:
    """The hyperparameters of all prior means of an objective, which know of each other through the lines.

    Parameters
    ----------
    free : FreeParameters
        Of the objective.
    means : sequence of PriorMean
        Their values, errors and precisions become views of the joint ones.
    old_lines : dict, optional
        Component to which of its lines a template has, (n_line,) boolean; all of them by default. Others do not follow.
    """

    def __init__(self, free: FreeParameters, means: Sequence[PriorMean], old_lines: dict[str, Tensor] | None = None):
        self.means = list(means)
        self.value, self.error, self.precision = (
            torch.cat([getattr(mean, name) for mean in means]) for name in ("value", "error", "precision")
        )
        self.design = self.value.new_zeros(len(free), len(self.value))
        self.of_lines: list[dict[str, Tensor]] = []
        for mean, own in zip(means, self._slices(), strict=True):
            for name in ("value", "error", "precision"):
                setattr(mean, name, getattr(self, name)[own])
            follows = None if old_lines is None else old_lines.get(mean.component)
            self.of_lines.append(self._place(free, mean, own, follows))
        self.moving = self.design.any(0)

    def _slices(self) -> list[slice]:
        ends = torch.tensor([len(mean.names) for mean in self.means]).cumsum(0).tolist()
        return [slice(last - len(mean.names), last) for mean, last in zip(self.means, ends, strict=True)]

    def _place(self, free: FreeParameters, mean: PriorMean, own: slice, follows: Tensor | None) -> dict[str, Tensor]:
        """Write a design into that of all parameters; that of all lines, held ones too."""
        name = mean.component
        if name not in free.model.components:
            raise ValueError(
                f"a prior mean is of the component {name!r}, and the model has {', '.join(free.model.components)}"
            )
        emulator, columns, kinds = free.model.components[name], free.columns(name), free.kinds[name]
        lines = {kind: values.double() for kind, values in mean.design(emulator).items()}
        for kind, values in lines.items():
            if values.shape != (len(emulator), len(mean.names)):
                raise ValueError(
                    f"expected the design of {kind} as ({len(emulator)}, {len(mean.names)}), a row a line of the "
                    f"{name} and a column a hyperparameter, got {tuple(values.shape)}"
                )
            if follows is not None:
                lines[kind] = values * follows.unsqueeze(1)  # not in place: a design may be kept by who gives it
            if kind in kinds:
                self.design[columns[:, kinds.index(kind)], own] = lines[kind][free.lines[name]]
        # Areas and widths that are not free say nothing of hyperparameters, and stay where their template has them.
        return {kind: values for kind, values in lines.items() if kind in kinds}

    @torch.no_grad()
    def step(self, objective: Objective, vector: Tensor) -> tuple[Tensor, Tensor] | None:
        """Where the lines say that their prior means should go, and the lines with them; None where all stand.

        Parameters
        ----------
        objective : Objective
        vector : Tensor, (n_parameter,)
            The lines as they are; nearer to the solution, the step is nearer to the end.
        """
        if not bool(self.moving.any()):
            return None
        normal = objective.linearize(vector)
        held, follow, curvature = self._coupling(normal)
        gradient = held.T @ (vector - objective.priors.mean) - (self.precision * self.value)[self.moving]
        step = torch.zeros_like(self.value)
        step[self.moving] = torch.linalg.solve(curvature, gradient + follow.T @ normal.gradient)
        self.error[self.moving] = self._covariance(objective, normal)[1].diagonal().sqrt()
        if bool((step.abs() <= STILL * self.error).all()):
            return None
        step = step.clamp(-LONGEST, LONGEST)
        return step, vector + follow @ step[self.moving]

    @torch.no_grad()
    def settle(self, objective: Objective, vector: Tensor) -> Objective | None:
        """Take that step; the model is left at the lines' new vector. None where nothing moves."""
        found = self.step(objective, vector)
        return None if found is None else self.moved(objective, *found)

    @torch.no_grad()
    def moved(self, objective: Objective, step: Tensor, vector: Tensor) -> Objective:
        """The objective with its prior means moved; lines that are held move too, and the others are at `vector`."""
        vector, model = vector.clone(), objective.free.model
        self.value += step
        change = self.design @ step
        for mean, lines, own in zip(self.means, self.of_lines, self._slices(), strict=True):
            changes = {kind: values @ step[own] for kind, values in lines.items() if kind != "rv_offset"}
            shift = lines["rv_offset"] @ step[own] if "rv_offset" in lines else 0.0
            model.components[mean.component].change_together(shift=shift, **changes)
        for mean in self.means:
            # Offsets count from the centres, which have moved instead of their prior means.
            kinds = objective.free.kinds[mean.component]
            if "rv_offset" in kinds:
                offsets = objective.free.columns(mean.component)[:, kinds.index("rv_offset")]
                vector[offsets] -= change[offsets]
                change[offsets] = 0.0
        other = objective.with_means_moved(change)
        other.write(other.project(vector))
        return other

    def learn(self, objective: Objective, vector: Tensor) -> Objective | None:
        """Let the priors' widths follow the scatter of the lines; None where nothing changes."""
        changed = None
        for mean in self.means:
            learnt = mean.learn(objective if changed is None else changed, vector)
            changed = changed if learnt is None else learnt
        return changed

    def follow(self, objective: Objective, vector: Tensor) -> Objective | None:
        """Widths of priors, then prior means, follow the lines; None where nothing changes."""
        learnt = self.learn(objective, vector)
        settled = self.settle(objective if learnt is None else learnt, vector)
        return learnt if settled is None else settled

    @torch.no_grad()
    def forget(self, objective: Objective) -> tuple[Objective, Callable[[], None]]:
        """Take back all that the lines have told; who calls what is returned has it again, for the old objective."""
        kept = {name: getattr(self, name).clone() for name in ("value", "error", "precision")}
        emulators = {mean.component: objective.free.model.components[mean.component] for mean in self.means}
        states = {name: {k: v.clone() for k, v in one.state_dict().items()} for name, one in emulators.items()}
        start = torch.cat([mean.start for mean in self.means])
        other = self.moved(objective, start - self.value, objective.read())
        ways = []
        for mean in self.means:
            other, way = mean.forget(other)
            ways.append(way)

        def again() -> None:
            for name, values in kept.items():
                getattr(self, name).copy_(values)
            for name, state in states.items():
                emulators[name].load_state_dict(state)
            for way in ways:
                way()

        return other, again

    @torch.no_grad()
    def added_covariance(self, objective: Objective, normal: NormalEquations) -> Tensor:
        """What not knowing the hyperparameters adds to the covariance of the border's parameters, (n_border,) * 2."""
        border = normal.border
        if not bool(self.moving.any()):
            return normal.prior_precision.new_zeros(border.numel(), border.numel())
        follow, covariance = self._covariance(objective, normal)
        least = torch.cat([mean.least_error() for mean in self.means])[self.moving].square()
        covariance = covariance + (least - covariance.diagonal()).clamp(min=0.0).diag()
        return follow[border] @ covariance @ follow[border].T

    def _covariance(self, objective: Objective, normal: NormalEquations) -> tuple[Tensor, Tensor]:
        """How all parameters follow the hyperparameters that may move, and the covariance of these."""
        # Over its scatter, Student's t tells less of its centre than the Gaussians that bound it.
        freedom = objective.priors.freedom
        told = objective.priors.precision * torch.where(freedom.isfinite(), (freedom + 1.0) / (freedom + 3.0), 1.0)
        _, follow, curvature = self._coupling(normal.with_precision(told))
        return follow, torch.linalg.inv(curvature)

    def _coupling(self, normal: NormalEquations) -> tuple[Tensor, Tensor, Tensor]:
        """P M, A⁻¹ P M and H of what may move."""
        design, factor = self.design[:, self.moving], normal.factor()
        held = normal.prior_precision.unsqueeze(1) * design
        follow = torch.stack([factor.solve(column) for column in held.T], dim=1)
        return held, follow, design.T @ held - held.T @ follow + torch.diag(self.precision[self.moving])

    def report(self) -> list[dict]:
        """Values and errors of all hyperparameters, as plain numbers."""
        return [
            {
                "component": mean.component,
                "names": list(mean.names),
                "values": mean.value.tolist(),
                "errors": mean.error.tolist(),
            }
            for mean in self.means
        ]
