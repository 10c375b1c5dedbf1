"""The objective: data against a forward model, with priors about the parameters.

Does not live here: the solver (`inference.minimize`), prior widths (`inference.priors`), noise (`inference.noise`),
units and masks (`spectra.reading`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from dataclasses import dataclass, replace

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
from .noise import Diagonal, Noise
from .priors import LINE_LIMITS, LinePriors, penalty

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
    """Everything known of the model at one vector; `back` may be used once, for `gradient`.

    `state` is the vector as it reads back from the model: who changes the model behind the solver's back is noticed.
    """

    vector: Tensor
    state: Tensor
    flux: Tensor
    noise: Noise
    model_flux: Tensor
    stages: list[Stages]
    back: Callable[[Tensor], Tensor] | None
    gradient: Tensor | None = None


@dataclass
class _Known:
    """What has been computed already, shared by objectives of one model: nothing is evaluated twice."""

    evaluation: _Evaluation | None = None
    layout: Layout | None = None  # of the windows for steps
    jacobian: tuple[Tensor, Jacobian] | None = None


@dataclass(frozen=True)
class Priors:
    """Priors and bounds of all free parameters, (n_parameter,) each.

    Parameters
    ----------
    mean : Tensor
        Prior means.
    precision : Tensor
        Inverse squares of the prior widths.
    freedom : Tensor
        Degrees of freedom of Student's t; infinite for Gaussians.
    lower, upper : Tensor
        Bounds.
    inflation : Tensor
        Factors on the widths.
    """

    mean: Tensor
    precision: Tensor
    freedom: Tensor
    lower: Tensor
    upper: Tensor
    inflation: Tensor

    def square(self, vector: Tensor) -> Tensor:
        """Squared distance of each parameter from its prior mean, in prior widths."""
        return self.precision * ((vector - self.mean) / self.inflation).square()

    def cost(self, vector: Tensor) -> Tensor:
        """-2 ln prior of each parameter, up to a constant."""
        return penalty(self.square(vector), self.freedom)

    def precision_at(self, vector: Tensor) -> Tensor:
        """Inverse variance of each prior at `vector`: for Student's t that of the Gaussian which bounds it there."""
        heavy = self.freedom.isfinite()
        freedom = torch.where(heavy, self.freedom, 1.0)
        told = torch.where(heavy, (freedom + 1.0) / (freedom + self.square(vector)), 1.0)
        return self.precision / self.inflation.square() * told

    def project(self, vector: Tensor) -> Tensor:
        """Nearest vector within the bounds."""
        return torch.minimum(torch.maximum(vector, self.lower), self.upper)

    def holding(self, columns: Tensor | slice, values: Tensor) -> Priors:
        """The same with some parameters held at values."""
        lower, upper = self.lower.clone(), self.upper.clone()
        lower[columns] = upper[columns] = values
        return replace(self, lower=lower, upper=upper)

    def taking(self, own: Tensor, other: Priors, theirs: Tensor) -> Priors:
        """The same with those of some parameters from those of others, but for inflation."""
        changed = {}
        for name in ("mean", "precision", "freedom", "lower", "upper"):
            changed[name] = getattr(self, name).clone()
            changed[name][own] = getattr(other, name)[theirs]
        return replace(self, **changed)


@torch.no_grad()
def line_bounds(emulator: LineEmulator) -> dict[str, tuple[Tensor, Tensor]]:
    """Between what each parameter of each line must stay whose prior mean is where the emulator has it.

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
    for kind, mean, per_width in (("ln_sigma", ln_sigma, FWHM_PER_SIGMA), ("ln_gamma", ln_gamma, 2.0)):
        narrowest, widest = (NARROWEST * width / per_width).log(), (WIDEST * width / per_width).log()
        bounds[kind] = torch.minimum(narrowest, mean), torch.maximum(widest, mean)
    reach = FARTHEST * width / center * SPEED_OF_LIGHT
    bounds["rv_offset"] = rv_offset - reach, rv_offset + reach
    return bounds


class Objective:
    """χ² of data against a forward model, plus priors about the parameters.

    An objective does not change: other noise, priors or bounds make another one, of the same model. The model's
    parameters do change, by `write`.

    Parameters
    ----------
    free : FreeParameters
        The model and what is free in it.
    flux : Tensor, (n,)
        Data of all orders together, as `FreeParameters.merge` puts them.
    noise : Noise or Tensor, (n,)
        Of these data. Inverse variances, zero where a pixel does not count, stand for `Diagonal`.
    line_priors : dict
        Component name to its `LinePriors`, about the lines as they are now.
    """

    def __init__(self, free: FreeParameters, flux: Tensor, noise: Noise | Tensor, line_priors: dict[str, LinePriors]):
        self.free, self.flux = free, flux
        self.noise = noise if isinstance(noise, Noise) else Diagonal(noise)
        self.line_priors = dict(line_priors)
        self._known = _Known()
        mean = free.read()
        nothing, endless = torch.zeros_like(mean), torch.full_like(mean, torch.inf)
        precision, limit, lower, upper = nothing.clone(), nothing.clone(), -endless, endless.clone()
        freedom = endless.clone()
        for name, emulator in free.model.components.items():
            columns, lines, bounds = free.columns(name), free.lines[name], line_bounds(emulator)
            _put_line_priors(precision, freedom, line_priors[name], columns, free.kinds[name])
            for position, kind in enumerate(free.kinds[name]):
                own = columns[:, position]
                limit[own] = LINE_LIMITS[kind]
                lower[own], upper[own] = (values[lines] for values in bounds[kind])
        for key, columns in free.global_slices.items():
            parameter = free.parameters[key]
            precision[columns] = parameter.prior_sigma**-2
            lower[columns], upper[columns] = free.owned[key].bounds
            limit[columns] = parameter.limit(mean[columns])
        self.limit = limit
        self.priors = Priors(mean, precision, freedom, lower, upper, torch.ones_like(mean))
        # What is shortened alike, a row each: the parameters of a line, and all that no line owns.
        everything = torch.arange(len(mean), device=mean.device)
        rows = [free.columns(name) for name in free.model.components]
        rows.append(everything[free.n_line_parameter :].view(1, -1))
        self._together = [columns for columns in rows if columns.numel()]

    def _with(self, **changes) -> Objective:
        other = copy(self)
        for name, value in changes.items():
            setattr(other, name, value)
        return other

    @property
    def n_datum(self) -> int:
        """Number of data that count."""
        return self.noise.n_datum

    @property
    def weight(self) -> Tensor:
        """Inverse variances of independent pixels, (n,)."""
        return self.noise.weight

    def with_noise(self, noise: Noise | Tensor) -> Objective:
        """The same data with other noise; a tensor as on construction."""
        return self._with(noise=noise if isinstance(noise, Noise) else Diagonal(noise))

    def with_priors(self, priors: Priors | None = None, **changes: Tensor) -> Objective:
        """The same data with other priors, or with other values of some fields of `Priors`."""
        return self._with(priors=replace(self.priors if priors is None else priors, **changes))

    def with_line_priors(self, component: str, priors: LinePriors, columns: Tensor | None = None) -> Objective:
        """With priors of other widths, about the same means, for a component's lines or those of `columns`."""
        columns = self.free.columns(component) if columns is None else columns
        precision, freedom = self.priors.precision.clone(), self.priors.freedom.clone()
        _put_line_priors(precision, freedom, priors, columns, self.free.kinds[component])
        other = self.with_priors(precision=precision, freedom=freedom)
        other.line_priors = self.line_priors | {component: priors}
        return other

    def with_means_moved(self, change: Tensor) -> Objective:
        """With prior means moved by a change, (n_parameter,); what is held may have moved with them."""
        return self.with_priors(mean=self.priors.mean + change).afresh()

    def inflated(self, factors: dict[str, float]) -> Objective:
        """With the widths of the lines' priors multiplied by a factor for each kind of parameter."""
        inflation = torch.ones_like(self.priors.mean)
        for name in self.free.model.components:
            columns = self.free.columns(name)
            for position, kind in enumerate(self.free.kinds[name]):
                inflation[columns[:, position]] = factors[kind]
        return self.with_priors(inflation=inflation)

    def holding(self, names: Sequence[str]) -> Objective:
        """With global parameters held at their present values."""
        now, priors = self.read(), self.priors
        for name, columns in self.free.global_slices.items():
            if name in names:
                priors = priors.holding(columns, now[columns])
        return self.with_priors(priors)

    def taking(self, own: Tensor, other: Objective, theirs: Tensor) -> Objective:
        """With priors, bounds and step limits of some parameters from those of another objective."""
        limit = self.limit.clone()
        limit[own] = other.limit[theirs]
        return self._with(priors=self.priors.taking(own, other.priors, theirs), limit=limit)

    def afresh(self) -> Objective:
        """The same, knowing nothing of the model as it was: for who changes what no vector holds."""
        return self._with(_known=_Known())

    def at_limit(self, component: str) -> Tensor:
        """Lines of a component, (n_line,), with a parameter at a bound; σ or γ of next to nothing are none."""
        vector, columns = self.read(), self.free.columns(component)
        found = torch.zeros(len(self.free.model.components[component]), dtype=torch.bool, device=vector.device)
        for kind, own in zip(self.free.kinds[component], columns.T, strict=True):
            at = vector[own] >= self.priors.upper[own] - AT_BOUND
            if kind == "rv_offset":
                at |= vector[own] <= self.priors.lower[own] + AT_BOUND
            found[self.free.lines[component][at]] = True
        return found

    def read(self) -> Tensor:
        """The present parameter vector."""
        return self.free.read()

    def project(self, vector: Tensor) -> Tensor:
        """Nearest vector within the bounds."""
        return self.priors.project(vector)

    def chi_square(self) -> float:
        """rᵀC⁻¹r at the model's present state."""
        with torch.no_grad():
            return float(self._squares(self.free.flux()).sum())

    def _squares(self, model_flux: Tensor) -> Tensor:
        residual = self.flux - model_flux
        return residual * self.noise.weigh(residual)

    def write(self, vector: Tensor) -> None:
        """Put a vector into the model."""
        last = self._known.evaluation
        if last is not None and last.back is not None:
            self._known.evaluation = None  # the way back through a graph needs parameters that nobody has touched
        self.free.write(vector)

    def prior_mean_of_ln_area(self, component: str) -> Tensor:
        """Prior mean of ln area of each line of a component, free or not, (n_line,)."""
        area = self.free.model.components[component].ln_area.detach().double().clone()
        if "ln_area" in self.free.kinds[component]:
            own = self.free.columns(component)[:, self.free.kinds[component].index("ln_area")]
            area[self.free.lines[component]] = self.priors.mean[own]
        return area

    def prior_means_of_lines(self) -> dict[str, Tensor]:
        """Component to (n_line, 4), the prior means of the parameters of its lines; those held as they are."""
        found = {}
        for name, emulator in self.free.model.components.items():
            found[name] = emulator.line_parameters().detach().double().clone()
            lines = self.free.lines[name].unsqueeze(1)
            kinds = torch.tensor([KINDS.index(kind) for kind in self.free.kinds[name]], device=lines.device).long()
            found[name][lines, kinds] = self.priors.mean[self.free.columns(name)]
        return found

    def _at(self, vector: Tensor) -> _Evaluation:
        """The evaluation at a vector; the last one is kept, so that nothing is evaluated twice."""
        known = self._known.evaluation
        if (
            known is None
            or known.flux is not self.flux
            or known.noise is not self.noise
            or not torch.equal(known.vector, vector)
            or not torch.equal(known.state, self.free.read())
        ):
            self._known.evaluation = None  # its graph goes before the next one comes
            self.free.write(vector)
            state = self.free.read()
            known = _Evaluation(vector.clone(), state, self.flux, self.noise, *self.free.evaluate())
            self._known.evaluation = known
        return known

    def _gradient(self, known: _Evaluation) -> Tensor:
        """JᵀC⁻¹ × residual at an evaluation."""
        if known.gradient is None:
            known.gradient = known.back(self.noise.weigh(self.flux - known.model_flux))
            known.back = None
        return known.gradient

    def evaluate(self, vector: Tensor) -> tuple[Tensor, Tensor]:
        """χ² of every pixel and prior term of every parameter; their total is the cost."""
        return self._squares(self._at(vector).model_flux), self.priors.cost(vector)

    def value_and_gradient(self, vector: Tensor) -> tuple[float, Tensor]:
        """Cost at a parameter vector, and minus half its exact gradient."""
        rows, priors = self.evaluate(vector)
        towards_mean = self.priors.precision_at(vector) * (self.priors.mean - vector)
        return float(rows.sum() + priors.sum()), self._gradient(self._at(vector)) + towards_mean

    def shorten(self, step: Tensor, longest: float) -> Tensor:
        """A step with the part of each line, and that of all else, cut to `longest` times its parameters' limits.

        One line that leaves along a direction of which the data know nothing does not hold back all others.
        """
        excess = step.abs() / (longest * self.limit)
        shorter = torch.ones_like(step)
        for columns in self._together:
            shorter[columns] = excess[columns].amax(dim=1, keepdim=True).clamp(min=1.0)
        return step / shorter

    def pinned(self, vector: Tensor, gradient: Tensor) -> Tensor:
        """Which parameters stand at a bound that `gradient` would take them across."""
        return (vector <= self.priors.lower) & (gradient < 0) | (vector >= self.priors.upper) & (gradient > 0)

    def linearize(self, vector: Tensor, precise: bool = False) -> NormalEquations:
        """Normal equations at a vector; `precise` follows lines out into their wings, as far as a band allows."""
        known = self._at(vector)
        jacobian = self._precise(known) if precise else self._windowed(known)
        precision = self.priors.precision_at(vector)
        towards_mean = precision * (self.priors.mean - vector)
        residual = self.flux - jacobian.flux
        normal = NormalEquations(jacobian, residual, self.noise, precision, towards_mean)
        # Windows cut the Jacobian, not the gradient: at the minimum of the true cost, it vanishes.
        normal.gradient = self._gradient(known) + towards_mean
        normal.pinned = self.pinned(vector, normal.gradient)
        return normal

    def linearize_parts(self, vector: Tensor, parts: Sequence[Tensor]) -> Iterator[NormalEquations]:
        """Normal equations at a vector as if only the pixels of one part counted, part by part."""
        known = self._at(vector)
        jacobian, precision = self._precise(known), self.priors.precision_at(vector)
        towards_mean, residual = precision * (self.priors.mean - vector), self.flux - jacobian.flux
        for part in parts:
            noise = Diagonal(torch.where(part, self.weight, 0.0))
            normal = NormalEquations(jacobian, residual, noise, precision, towards_mean)
            normal.pinned = self.pinned(vector, normal.gradient)
            yield normal

    def _precise(self, known: _Evaluation) -> Jacobian:
        return linearize(self.free, known.stages, layout=Layout(self.free, covariance_cut(self.free)))

    def _windowed(self, known: _Evaluation) -> Jacobian:
        """The last one is kept: where only noise or priors have changed, derivatives have not."""
        last = self._known.jacobian
        if last is not None and torch.equal(last[0], known.state):
            return last[1]
        self._known.jacobian = None  # its memory goes before the next one comes
        if self._known.layout is None or not self._known.layout.holds(self.free):
            self._known.layout = Layout(self.free)
        jacobian = linearize(self.free, known.stages, layout=self._known.layout)
        self._known.jacobian = known.state.clone(), jacobian
        return jacobian


def _put_line_priors(
    precision: Tensor, freedom: Tensor, priors: LinePriors, columns: Tensor, kinds: tuple[str, ...]
) -> None:
    """Write the priors of some lines into those of all parameters."""
    for position, kind in enumerate(kinds):
        precision[columns[:, position]] = getattr(priors, kind) ** -2
    freedom[columns] = priors.degrees_of_freedom
