"""The least-squares problem: data against a forward model, with priors that anchor its parameters.

Does not live here: the solver (`least_squares`), prior widths (`priors`), units and masks (`spectrum`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from ..model.emulator import LineEmulator
from ..model.order import Stages
from ..model.parameters import KINDS, FreeParameters
from ..physics.grids import SPEED_OF_LIGHT
from ..physics.kernels import FWHM_PER_SIGMA
from ..physics.voigt import voigt_fwhm
from .linear.jacobian import Jacobian, linearize
from .linear.normal_equations import NormalEquations
from .linear.windows import Layout, covariance_cut
from .priors import GLOBAL_LIMITS, GLOBAL_PRIORS, LINE_LIMITS, LinePriors, penalty

WIDEST, NARROWEST, FARTHEST, LEAST_WIDTH = 4.0, 1e-3, 2.0, 3.0
"""Largest factor on the full width of a line; part of it below which σ or γ alone are as good as zero; largest shift in
full widths; and the full width [km/s] from which on narrow lines are counted."""

MOST_OPACITY, STRONGER = 100.0, 10.0
"""Largest area in units of the full width that a line may grow to, and the factor that a stronger one may grow by.

Lines of the flux (linear law) and lines of the opacity are alike black long before.
"""

AT_BOUND = 1e-6
"""Distance from a bound within which a parameter stands at it, single precision being what a model may hold."""


@dataclass
class _Evaluation:
    """Everything known of the model at one vector; `pull` may be used once, for `pulled`.

    `state` is the vector as it reads back from the model: who changes the model behind the solver's back is noticed.
    """

    vector: Tensor
    state: Tensor
    flux: Tensor
    weight: Tensor
    model_flux: Tensor
    stages: list[Stages]
    pull: Callable[[Tensor], Tensor] | None
    pulled: Tensor | None = None


@torch.no_grad()
def line_bounds(emulator: LineEmulator) -> dict[str, tuple[Tensor, Tensor]]:
    """Between what each parameter of each line must stay that is anchored where the emulator has it.

    A line stays the line that it is: `WIDEST` times as broad by σ or γ alone at most, `FARTHEST` widths away. Where a
    model lacks something, or a continuum is too stiff, the heavy tails of the priors would else let single lines spread
    over whole orders and beyond, or wander off to what has nothing to do with them. A line that is centred where
    nothing counts would grow without end, until all its neighbours see is the steep end of a box.

    Returns
    -------
    dict
        Each of `KINDS` to lower and upper bounds, (n_line,) float64.
    """
    ln_area, ln_sigma, ln_gamma, rv_offset = emulator.line_parameters().detach().double().unbind(1)
    center = emulator.center.double()
    fwhm = voigt_fwhm(ln_sigma.exp(), ln_gamma.exp())
    width = torch.maximum(fwhm, center * (LEAST_WIDTH / SPEED_OF_LIGHT))
    unbounded = torch.full_like(ln_area, -torch.inf)
    bounds = {"ln_area": (unbounded, torch.maximum((MOST_OPACITY * width).log(), ln_area + math.log(STRONGER)))}
    for kind, anchor, per_width in (("ln_sigma", ln_sigma, FWHM_PER_SIGMA), ("ln_gamma", ln_gamma, 2.0)):
        narrowest, widest = (NARROWEST * width / per_width).log(), (WIDEST * width / per_width).log()
        bounds[kind] = torch.minimum(narrowest, anchor), torch.maximum(widest, anchor)
    reach = FARTHEST * width / center * SPEED_OF_LIGHT
    bounds["rv_offset"] = rv_offset - reach, rv_offset + reach
    return bounds


class AnchoredProblem:
    """χ² of data against a forward model, plus priors anchored at the parameters' values on construction.

    Parameters
    ----------
    free : FreeParameters
        The model and what is free in it.
    flux, weight : Tensor, (n,)
        Data, and inverse variances that are zero where a pixel does not count; of all orders together, as
        `FreeParameters.merge` puts them.
    line_priors : dict
        Component name to its `LinePriors`.
    """

    def __init__(self, free: FreeParameters, flux: Tensor, weight: Tensor, line_priors: dict[str, LinePriors]):
        self.free, self.flux, self.weight = free, flux, weight
        self.line_priors = dict(line_priors)
        self.n_datum = int((weight > 0).sum())
        self.anchor = free.read()
        self._last: _Evaluation | None = None
        self._layout: Layout | None = None  # of the windows for steps
        self._last_jacobian: tuple[Tensor, Jacobian] | None = None
        self.precision = torch.zeros_like(self.anchor)
        self.freedom = torch.full_like(self.anchor, torch.inf)
        self.limit = torch.zeros_like(self.anchor)
        for name in free.model.components:
            self.set_line_priors(name, line_priors[name])
            for position, kind in enumerate(free.kinds[name]):
                self.limit[free.columns(name)[:, position]] = LINE_LIMITS[kind]
        self.loosen(None)
        self.lower = torch.full_like(self.anchor, -torch.inf)
        self.upper = torch.full_like(self.anchor, torch.inf)
        self._bound_lines()
        # What is shortened alike, a row each: the parameters of a line, and all that no line owns.
        everything = torch.arange(len(self.anchor), device=self.anchor.device)
        rows = [free.columns(name) for name in free.model.components] + [
            everything[free.n_line_parameter :].view(1, -1)
        ]
        self._together = [columns for columns in rows if columns.numel()]
        for key, columns in free.global_slices.items():
            name = key.partition("[")[0]
            self.precision[columns] = GLOBAL_PRIORS[name] ** -2
            if name == "vsini":
                rotation = free.model.rotation
                self.lower[columns], self.upper[columns] = rotation.floor**2, rotation.max_vsini**2
                self.limit[columns] = 0.5 * self.anchor[columns] + 10.0
            else:
                self.limit[columns] = GLOBAL_LIMITS[name]

    def _bound_lines(self) -> None:
        for name, emulator in self.free.model.components.items():
            columns, lines = self.free.columns(name), self.free.lines[name]
            bounds = line_bounds(emulator)
            for position, kind in enumerate(self.free.kinds[name]):
                for bound, values in zip((self.lower, self.upper), bounds[kind], strict=True):
                    bound[columns[:, position]] = values[lines]

    @contextmanager
    def held(self, names: tuple[str, ...]) -> Iterator[None]:
        """Hold global parameters at their present values while the block runs."""
        lower, upper, now = self.lower, self.upper, self.read()
        self.lower, self.upper = lower.clone(), upper.clone()
        for name, columns in self.free.global_slices.items():
            if name in names:
                self.lower[columns] = self.upper[columns] = now[columns]
        try:
            yield
        finally:
            self.lower, self.upper = lower, upper

    def at_limit(self, component: str) -> Tensor:
        """Lines of a component, (n_line,), with a parameter at a bound; σ or γ of next to nothing are none."""
        vector, columns = self.read(), self.free.columns(component)
        found = torch.zeros(len(self.free.model.components[component]), dtype=torch.bool, device=vector.device)
        for kind, own in zip(self.free.kinds[component], columns.T, strict=True):
            at = vector[own] >= self.upper[own] - AT_BOUND
            if kind == "rv_offset":
                at |= vector[own] <= self.lower[own] + AT_BOUND
            found[self.free.lines[component][at]] = True
        return found

    def set_line_priors(self, component: str, priors: LinePriors, columns: Tensor | None = None) -> None:
        """Give the lines of a component, or those of `columns`, priors of other widths about the same means."""
        self.line_priors[component] = priors
        columns = self.free.columns(component) if columns is None else columns
        for position, kind in enumerate(self.free.kinds[component]):
            self.precision[columns[:, position]] = getattr(priors, kind) ** -2
        self.freedom[columns] = priors.degrees_of_freedom

    def set_weight(self, weight: Tensor) -> None:
        """Other inverse variances, zero where a pixel does not count, (n,)."""
        self.weight, self.n_datum = weight, int((weight > 0).sum())

    def loosen(self, factors: dict[str, float] | None) -> None:
        """Widen the line priors by a factor for each kind of parameter; None puts them back."""
        self.slack = torch.ones_like(self.anchor)
        for name in self.free.model.components if factors else ():
            columns = self.free.columns(name)
            for position, kind in enumerate(self.free.kinds[name]):
                self.slack[columns[:, position]] = factors[kind]

    def read(self) -> Tensor:
        return self.free.read()

    def project(self, vector: Tensor) -> Tensor:
        return torch.minimum(torch.maximum(vector, self.lower), self.upper)

    def chi_square(self) -> float:
        """Σ weight (data - model)² at the model's present state."""
        with torch.no_grad():
            return float((self.weight * (self.flux - self.free.flux()).square()).sum())

    def write(self, vector: Tensor) -> None:
        """Put a vector into the model."""
        if self._last is not None and self._last.pull is not None:
            self._last = None  # the way back through a graph needs parameters that nobody has touched
        self.free.write(vector)

    def forget(self) -> None:
        """Of the model as it was: for who changes what no vector holds."""
        self._last = self._layout = self._last_jacobian = None

    def anchored_area(self, component: str) -> Tensor:
        """ln area at which each line of a component is anchored, free or not, (n_line,)."""
        area = self.free.model.components[component].ln_area.detach().double().clone()
        if "ln_area" in self.free.kinds[component]:
            own = self.free.columns(component)[:, self.free.kinds[component].index("ln_area")]
            area[self.free.lines[component]] = self.anchor[own]
        return area

    def anchored_lines(self) -> dict[str, Tensor]:
        """Component to (n_line, 4), the parameters of its lines where their priors stand; those held as they are."""
        found = {}
        for name, emulator in self.free.model.components.items():
            found[name] = emulator.line_parameters().detach().double().clone()
            lines = self.free.lines[name].unsqueeze(1)
            kinds = torch.tensor([KINDS.index(kind) for kind in self.free.kinds[name]], device=lines.device).long()
            found[name][lines, kinds] = self.anchor[self.free.columns(name)]
        return found

    def _at(self, vector: Tensor) -> _Evaluation:
        """The evaluation at a vector; the last one is kept, so that nothing is evaluated twice."""
        known = self._last
        if (
            known is None
            or known.flux is not self.flux
            or known.weight is not self.weight
            or not torch.equal(known.vector, vector)
            or not torch.equal(known.state, self.free.read())
        ):
            self._last = None  # its graph goes before the next one comes
            self.free.write(vector)
            state = self.free.read()
            known = self._last = _Evaluation(vector.clone(), state, self.flux, self.weight, *self.free.evaluate())
        return known

    def _pull(self, known: _Evaluation) -> Tensor:
        """JᵀW × residual at an evaluation."""
        if known.pulled is None:
            known.pulled = known.pull(self.weight * (self.flux - known.model_flux))
            known.pull = None
        return known.pulled

    def evaluate(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """χ² of every pixel and prior term of every parameter; their total is the cost."""
        flux = self._at(vector).model_flux
        return self.weight * (self.flux - flux).square(), self.prior_cost(vector)

    def value_and_pull(self, vector: Tensor) -> tuple[float, Tensor]:
        """Cost at a parameter vector, and minus half its exact gradient."""
        rows, priors = self.evaluate(vector)
        pull = self._pull(self._at(vector)) + self.prior_precision(vector) * (self.anchor - vector)
        return float(rows.sum() + priors.sum()), pull

    def shorten(self, step: Tensor, longest: float) -> Tensor:
        """A step with the part of each line, and that of all else, cut to `longest` times its parameters' limits.

        One line that leaves along a direction of which the data know nothing does not hold back all others.
        """
        excess = step.abs() / (longest * self.limit)
        shorter = torch.ones_like(step)
        for columns in self._together:
            shorter[columns] = excess[columns].amax(dim=1, keepdim=True).clamp(min=1.0)
        return step / shorter

    def pinned(self, vector: Tensor, pull: Tensor) -> Tensor:
        """Which parameters stand at a bound that `pull` would take them across."""
        return (vector <= self.lower) & (pull < 0) | (vector >= self.upper) & (pull > 0)

    def prior_cost(self, vector: Tensor) -> Tensor:
        """-2 ln prior of each parameter, up to a constant."""
        return penalty(self.precision * ((vector - self.anchor) / self.slack).square(), self.freedom)

    def prior_precision(self, vector: Tensor) -> Tensor:
        """Inverse variance of each prior at `vector`: for Student's t that of the Gaussian which bounds it there."""
        square = self.precision * ((vector - self.anchor) / self.slack).square()
        heavy = self.freedom.isfinite()
        freedom = torch.where(heavy, self.freedom, 1.0)
        return self.precision / self.slack.square() * torch.where(heavy, (freedom + 1.0) / (freedom + square), 1.0)

    def linearize(self, vector: Tensor, precise: bool = False) -> NormalEquations:
        """Normal equations at a vector; `precise` follows lines out into their wings, as far as a band allows."""
        known = self._at(vector)
        jacobian = self._precise(known) if precise else self._windowed(known)
        precision = self.prior_precision(vector)
        pull = precision * (self.anchor - vector)
        residual = self.flux - jacobian.flux
        normal = NormalEquations(jacobian, residual, self.weight, precision, pull)
        # Windows cut the Jacobian, not the gradient: at the minimum of the true cost, it vanishes.
        normal.gradient = self._pull(known) + pull
        normal.pinned = self.pinned(vector, normal.gradient)
        return normal

    def linearize_parts(self, vector: Tensor, parts: Sequence[Tensor]) -> Iterator[NormalEquations]:
        """Normal equations at a vector as if only the pixels of one part counted, part by part."""
        known = self._at(vector)
        jacobian, precision = self._precise(known), self.prior_precision(vector)
        pull, residual = precision * (self.anchor - vector), self.flux - jacobian.flux
        for part in parts:
            normal = NormalEquations(jacobian, residual, torch.where(part, self.weight, 0.0), precision, pull)
            normal.pinned = self.pinned(vector, normal.gradient)
            yield normal

    def _precise(self, known: _Evaluation) -> Jacobian:
        return linearize(self.free, known.stages, layout=Layout(self.free, covariance_cut(self.free)))

    def _windowed(self, known: _Evaluation) -> Jacobian:
        """The last one is kept: where only noise or priors have changed, derivatives have not."""
        last = self._last_jacobian
        if last is not None and torch.equal(last[0], known.state):
            return last[1]
        self._last_jacobian = None  # its memory goes before the next one comes
        if self._layout is None or not self._layout.holds(self.free):
            self._layout = Layout(self.free)
        jacobian = linearize(self.free, known.stages, layout=self._layout)
        self._last_jacobian = known.state.clone(), jacobian
        return jacobian
