r"""The Laplace approximation of the posterior around a fit: its curvature rebuilt, and draws from it.

Around the solution θ̂ the posterior is taken for the Gaussian N(θ̂, A⁻¹), A = JᵀWJ + P, with the Jacobian J of the
model, the weights W of the pixels and the precisions P of the priors. A result keeps the last two, a few numbers a
pixel and a line; A follows from them and from the model on demand, in about the time of one iteration of the fit.

Does not live here: the Cholesky factor of A and its draws (`inference.linear.cholesky`), the fit (`fitting`).
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from astropy.table import QTable
from torch import Tensor

from ..inference.linear.jacobian import linearize
from ..inference.linear.normal_equations import NormalEquations
from ..inference.linear.windows import covariance_cut
from ..inference.noise import Diagonal
from ..ledger.columns import COLUMNS
from ..ledger.equivalent_widths import equivalent_width
from ..model.echelle import EchelleModel
from ..model.global_parameter import GlobalParameter
from ..model.order import ForwardModel
from ..model.parameters import KINDS, FreeParameters
from ..physics.grids import SPEED_OF_LIGHT
from ..spectra.quantities import is_whole


@dataclass(frozen=True)
class Curvature:
    """Weights and prior precisions of the curvature at a solution, in the scale of the fit's errors.

    Parameters
    ----------
    weight : list of Tensor
        Inverse variance of every pixel of each order [1/flux²], zero where it does not count. Jitter, the
        down-weighting of outliers and a scale from the residuals are included.
    prior_precision : dict of Tensor
        Component to (n_line, 4), the inverse variances of the priors of ln area, ln σ, ln γ and rv_offset at the
        solution; zero where a parameter was held.
    mean_pull : dict of Tensor, optional
        Likewise the gradients that move the means of the moment-matched Gaussians to those under Student's t; see
        `marginals.mean_pull`. Files of older versions have none.
    """

    weight: list[Tensor]
    prior_precision: dict[str, Tensor]
    mean_pull: dict[str, Tensor] | None = None

    @classmethod
    def of(
        cls, free: FreeParameters, weights: list[Tensor], precision: Tensor, mean_pull: Tensor, inflation: float
    ) -> Curvature:
        """From a solved objective.

        Parameters
        ----------
        free : FreeParameters
        weights : list of Tensor
            Weights of each order.
        precision, mean_pull : Tensor, (n_parameter,)
            Precisions and gradients of the priors at the solution.
        inflation : float
            Factor on all variances.
        """
        lines = (by_line(free, values / inflation) for values in (precision, mean_pull))
        return cls([weight.double() / inflation for weight in weights], *lines)


def by_line(free: FreeParameters, vector: Tensor) -> dict[str, Tensor]:
    """Values of all free parameters, (n_parameter,), as component to (n_line, 4); zero for what is held."""
    lines = {}
    for name, emulator in free.model.components.items():
        kinds = torch.tensor([KINDS.index(kind) for kind in free.kinds[name]], dtype=torch.long)
        lines[name] = torch.zeros(len(emulator), len(KINDS), dtype=torch.float64)
        lines[name][free.lines[name].unsqueeze(1), kinds] = vector[free.columns(name)]
    return lines


def of_lines(free: FreeParameters, lines: dict[str, Tensor]) -> Tensor:
    """The inverse of `by_line`; zero for what is no line's."""
    vector = torch.zeros(len(free), dtype=torch.float64)
    for name in free.model.components:
        kinds = [KINDS.index(kind) for kind in free.kinds[name]]
        vector[free.columns(name)] = lines[name][free.lines[name]][:, kinds]
    return vector


def free_parameters(model: ForwardModel | EchelleModel, parameters: QTable, curvature: Curvature) -> FreeParameters:
    """Free parameters of a fit, from its result.

    Parameters
    ----------
    model : ForwardModel or EchelleModel
    parameters : QTable
        `FitResult.parameters`.
    curvature : Curvature
    """
    kinds, lines = {}, {}
    for name in model.components:
        free = curvature.prior_precision[name] > 0
        kinds[name] = tuple(kind for kind, any_free in zip(KINDS, free.any(0).tolist(), strict=True) if any_free)
        lines[name] = free.any(1).nonzero().squeeze(-1)
    rows = {str(row["name"]) for row in parameters if row["free"]}
    names = [owned.parameter.name for owned in model.global_parameters().values() if rows.intersection(owned.rows)]
    return FreeParameters(model, kinds, lines, tuple(dict.fromkeys(names)))


def prior_precision(free: FreeParameters, curvature: Curvature) -> Tensor:
    """Inverse variances of the priors of all free parameters at the solution, (n_parameter,)."""
    precision = of_lines(free, curvature.prior_precision)
    for key, columns in free.global_slices.items():
        parameter, _ = owned = free.owned[key]
        # In the data's unit here, in that of their median in the fit.
        scale = float(owned.tensor.detach().reshape(-1)[0].abs()) if parameter.in_flux_unit else 1.0
        precision[columns] = (parameter.prior_sigma * scale) ** -2
    return precision


def normal_equations(free: FreeParameters, curvature: Curvature, hold: str | None = None) -> NormalEquations:
    """The equations whose matrix is the curvature A at the model's present state.

    Parameters
    ----------
    free : FreeParameters
    curvature : Curvature
    hold : str, optional
        A component whose lines are taken as known.

    Returns
    -------
    NormalEquations
    """
    jacobian = linearize(free, cut=covariance_cut(free))
    weight, precision = free.merge(curvature.weight), prior_precision(free, curvature)
    nothing = torch.zeros_like(weight)
    normal = NormalEquations(jacobian, nothing, Diagonal(weight), precision, torch.zeros_like(precision))
    if hold is None:
        return normal
    columns = free.columns(hold).reshape(-1)
    precision = precision.clone()
    precision[columns] += KNOWN_PRECISION * normal.diagonal[columns]
    return normal.with_precision(precision)


WIDTHS_AT_ONCE = 4096
"""Lines whose equivalent widths are integrated in one batch, each on two hundred points."""

KNOWN_PRECISION = 1e12
"""Precision of a parameter that counts as known, over its own."""


class Draws:
    """Draws from the posterior of a fit, joint over all of its parameters.

    Made by `FitResult.draw`. Row i of `lines` is row i of the fit's ledger; what the fit held is the same in all draws.

    Parameters
    ----------
    result : FitResult or EchelleFitResult
    free : FreeParameters
        Of the result's model.
    vectors : Tensor, (n_draw, n_parameter)
    """

    def __init__(self, result, free: FreeParameters, vectors: Tensor):
        self.result, self.free, self.vectors = result, free, vectors

    def __len__(self) -> int:
        return len(self.vectors)

    def __repr__(self) -> str:
        return f"{len(self)} draws of {self.vectors.shape[1]} parameters: .parameters, .lines, .spectra(name)"

    @property
    def parameters(self) -> QTable:
        """One row a draw, one column a free row of the fit's `parameters`, of the same name and unit.

        In a fit of many orders, what an order has for itself is followed by the order's name, as ``continuum_0[17]``.
        """
        table = QTable()
        for row in self.result.parameters:
            if row["free"]:
                order = str(row["order"]) if "order" in row.colnames else ""
                parameter, column = self._column(str(row["name"]), order)
                values = parameter.transform.value(self.vectors[:, column]).numpy()
                table[f"{row['name']}[{order}]" if order else str(row["name"])] = values
        return table

    def _column(self, row: str, order: str) -> tuple[GlobalParameter, int]:
        """The parameter of a row of the fit's `parameters`, and the row's position in the vector."""
        suffix = ""
        if order:
            fitted = self.result.orders[self.result.orders["fitted"]]
            suffix = self.free.model.suffix([str(name) for name in fitted["order"]].index(order))
        for key, owned in self.free.owned.items():
            if row in owned.rows and key in (owned.parameter.name, f"{owned.parameter.name}{suffix}"):
                return owned.parameter, self.free.global_slices[key].start + owned.rows.index(row)
        raise KeyError(row)

    @property
    def lines(self) -> QTable:
        """Row i: line i of the fit's ledger, with one value a draw of each quantity, (n_line, n_draw).

        Columns: component, center, rv_offset, area, sigma, gamma, equivalent_width.
        """
        tables = [self._lines_of(name) for name in self.free.model.components]
        table = QTable()
        for name in tables[0]:
            values = np.concatenate([part[name] for part in tables])
            table[name] = values if COLUMNS[name].unit is None else values * COLUMNS[name].unit
            table[name].info.description = COLUMNS[name].meaning
        return table

    @torch.no_grad()
    def _lines_of(self, name: str) -> dict[str, np.ndarray]:
        emulator, chosen = self.free.model.components[name], self.free.lines[name]
        kinds = torch.tensor([KINDS.index(kind) for kind in self.free.kinds[name]], dtype=torch.long)
        values = emulator.line_parameters().double().repeat(len(self), 1, 1)
        values[:, chosen.unsqueeze(1), kinds] = self.vectors[:, self.free.columns(name)]
        ln_area, ln_sigma, ln_gamma, offset = values.unbind(-1)
        area, sigma, gamma = ln_area.exp(), ln_sigma.exp(), ln_gamma.exp()
        center = emulator.center * (1.0 + offset / SPEED_OF_LIGHT)
        flat = zip(*(values.reshape(-1).split(WIDTHS_AT_ONCE) for values in (center, area, sigma, gamma)), strict=True)
        absorbed = torch.cat([equivalent_width(emulator.law, *arguments) for arguments in flat]).reshape(area.shape)
        columns = {
            "center": center,
            "rv_offset": offset,
            "area": area,
            "sigma": sigma,
            "gamma": gamma,
            "equivalent_width": torch.where(emulator.sign < 0, -area, absorbed),
        }
        component = {"component": np.full(len(emulator), name)}
        return component | {key: column.T.numpy() for key, column in columns.items()}

    def spectra(self, name: str = "model_spectrum") -> list:
        """One spectrum, or list of orders, a draw.

        Parameters
        ----------
        name : str
            Any spectrum of the fit: ``model_spectrum``, ``star_spectrum``, ``telluric_transmission``,
            ``telluric_corrected``, ``star_template``.

        Returns
        -------
        list of Spectrum or SpectrumList

        Raises
        ------
        ValueError
            If the name is none of these.
        """
        if name not in SPECTRA:
            raise ValueError(f"name must be one of {', '.join(SPECTRA)}, got {name!r}")
        state = replace(self.result, model=deepcopy(self.result.model))
        free = replace(self.free, model=state.model)
        spectra = []
        for vector in self.vectors:
            free.write(vector)
            spectra.append(getattr(replace(state), name))  # a new result: one keeps the spectra of its model
        return spectra


WIDENED = ("correlated_residuals", "part_scatter", "order_scatter")
"""Settings with factors by which errors of velocities are larger than the curvature says."""

SPECTRA = ("model_spectrum", "star_spectrum", "telluric_transmission", "telluric_corrected", "star_template")


def draw(result, n_draw: int, seed: int) -> Draws:
    """Draws from the posterior of a result; see `FitResult.draw`."""
    if not is_whole(n_draw) or n_draw < 1:
        raise ValueError(f"the number of draws must be a positive whole number, got {n_draw!r}")
    if not is_whole(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 on, so that draws can be made again; got {seed!r}")
    free = free_parameters(result.model, result.parameters, needed(result))
    factor = normal_equations(free, result.curvature).factor()
    solution = free.read()
    vectors = solution + factor.draw(n_draw, torch.Generator().manual_seed(int(seed)))
    for key, columns in free.global_slices.items():
        # As their errors: by what residuals that are alike, and orders that disagree, add to the curvature.
        factors = [result.settings.get(name, {}).get(key, 1.0) for name in WIDENED]
        vectors[:, columns] += (math.prod(factors) - 1.0) * (vectors[:, columns] - solution[columns])
        # The data cannot tell a square from a little less than nothing.
        vectors[:, columns] = vectors[:, columns].clamp(min=free.parameters[key].transform.lowest)
    return Draws(result, free, vectors)


def needed(result) -> Curvature:
    """The curvature of a result; ValueError if the result has none."""
    if result.curvature is None:
        raise ValueError(
            "this result does not hold the weights and priors of its fit, as one order of a fit of many and files of "
            "older versions do not: ask the fit of all orders, or fit again"
        )
    return result.curvature
