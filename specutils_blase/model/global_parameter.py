r"""What a parameter is that touches every pixel: a velocity, a rotation, a resolving power, a continuum.

Each stage of a model lists its own in ``global_parameters()``. It gives the derivatives of the flux to them in
``flux_tangents(parameter, propagation)``. Solvers, priors and tables ask the parameter, never its name.

Does not live here: parameters of single lines (`model.parameters`), the stages (`model.component`, `model.instrument`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Transform:
    """From the tensor of a stage to the coordinate of the solver, and to the value in tables.

    Parameters
    ----------
    coordinate, tensor : callable
        Tensor to coordinate, and back.
    coordinate_slope : callable
        d coordinate / d tensor.
    value : callable
        Coordinate to the value in tables.
    value_slope : callable
        d value / d coordinate, from the tensor's value.
    value_error : callable
        Error of the value, from the tensor's value and the error of the coordinate.
    lowest : float
        Lowest coordinate.
    """

    coordinate: Callable[[Tensor], Tensor]
    tensor: Callable[[Tensor], Tensor]
    coordinate_slope: Callable[[Tensor], Tensor | float]
    value: Callable[[Tensor], Tensor]
    value_slope: Callable[[float], float]
    value_error: Callable[[float, float], float]
    lowest: float = -math.inf


def _same(value):
    return value


def _unit_slope(value) -> float:
    return 1.0


def _same_error(value: float, error: float) -> float:
    return error


def _square(value: Tensor) -> Tensor:
    return value.square()


def _root(value: Tensor) -> Tensor:
    return value.clamp(min=0.0).sqrt()


def _twice(value: Tensor) -> Tensor:
    return 2.0 * value


def _root_slope(value: float) -> float:
    return 0.5 / max(value, 1e-2)


def _root_error(value: float, error: float) -> float:
    # The data constrain the square: its error, carried over, stays finite at zero.
    return math.sqrt(value**2 + error) - value


def _exponential_error(value: float, error: float) -> float:
    return math.exp(value) * error


LINEAR = Transform(_same, _same, _unit_slope, _same, _unit_slope, _same_error)
"""Tensor, coordinate and value are the same."""

SQUARED = Transform(_square, _root, _twice, torch.sqrt, _root_slope, _root_error, lowest=0.0)
"""The solver sees the square of the tensor: for what acts on the flux by its square, near zero."""

LOGARITHMIC = Transform(_same, _same, _unit_slope, torch.exp, math.exp, _exponential_error)
"""The tensor is the logarithm of the value."""


@dataclass(frozen=True)
class GlobalParameter:
    """A parameter that touches every pixel.

    Parameters
    ----------
    name : str
        As ``fit(free=)`` calls it.
    attribute : str
        Its tensor, from the stage that lists it, as "amount" or "doppler.rv".
    prior_sigma : float
        Standard deviation of the Gaussian prior about the start, in the solver's coordinate.
    longest_step : float or callable
        Largest change in one iteration, in the solver's coordinate; a callable gets the coordinate at the start.
    labels : tuple of str
        Rows of `FitResult.parameters`, one a value; ``name_0``, ``name_1``, … where empty.
    unit : str
        Of the value in tables.
    scope : "all" or "order"
        Whether all orders share it, or each has its own.
    transform : Transform
    bounds : callable, optional
        The module that holds the tensor, to lower and upper bounds of the coordinate.
    at_posterior_mean : bool
        Whether the result has it at the mean of its marginal posterior. The mode of all parameters together is beside
        the mean for what many lines shape alike.
    told_by_each_order : bool
        Whether each order alone is asked for it, to see whether orders scatter as their errors allow.
    in_flux_unit : bool
        Whether the value scales with the unit of the data.
    listed_last : bool
        Whether its rows of `FitResult.parameters` stand behind those of the orders.
    """

    name: str
    attribute: str
    prior_sigma: float
    longest_step: float | Callable[[Tensor], Tensor]
    labels: tuple[str, ...] = ()
    unit: str = ""
    scope: str = "all"
    transform: Transform = LINEAR
    bounds: Callable[[nn.Module], tuple[float, float]] | None = None
    at_posterior_mean: bool = True
    told_by_each_order: bool = False
    in_flux_unit: bool = False
    listed_last: bool = False

    def limit(self, start: Tensor) -> Tensor:
        """Largest change in one iteration, from the coordinate at the start."""
        longest = self.longest_step(start) if callable(self.longest_step) else self.longest_step
        return torch.as_tensor(longest, dtype=start.dtype, device=start.device).expand_as(start)


class Owned(NamedTuple):
    """A parameter and the stage that lists it."""

    parameter: GlobalParameter
    stage: nn.Module

    @property
    def tensor(self) -> nn.Parameter:
        """Its value."""
        return attrgetter(self.parameter.attribute)(self.stage)

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows of a table that tell its values."""
        return self.parameter.labels or tuple(f"{self.parameter.name}_{k}" for k in range(self.tensor.numel()))

    @property
    def bounds(self) -> tuple[float, float]:
        """Between what its coordinate must stay."""
        if self.parameter.bounds is None:
            return -math.inf, math.inf
        holder, dot, _ = self.parameter.attribute.rpartition(".")
        return self.parameter.bounds(attrgetter(holder)(self.stage) if dot else self.stage)


def owned_by(stage: nn.Module | None) -> dict[str, Owned]:
    """Name of each parameter that a stage lists, to the parameter and the stage."""
    if stage is None:
        return {}
    return {parameter.name: Owned(parameter, stage) for parameter in stage.global_parameters()}
