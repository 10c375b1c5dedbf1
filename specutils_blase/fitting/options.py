"""What a fit is asked for, checked.

Does not live here: the data and what is known of them (`fitting.observation`), templates (`fitting.inputs`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from ..inference.prior_mean import PriorMean
from ..inference.priors import LinePriors
from ..model.instrument import LineSpread
from ..model.parameters import GLOBALS, KINDS
from ..spectra.quantities import is_number, is_whole, to_kms

HELD_VSINI = 2.0
"""Rotation velocity [km/s] where it is neither given nor fitted."""


@dataclass(frozen=True)
class FitOptions:
    """What a fit is asked for; `FitOptions.of` takes what a user gives and checks it.

    Parameters
    ----------
    rv, vsini : float or None
        Starting velocities [km/s]; None where they are searched.
    limb_darkening : (float, float)
    continuum : int
        Degree of the polynomial.
    free : tuple of str
        Global parameters to fit.
    kinds : dict
        Component to its free line parameters; all of `KINDS` for others.
    priors : dict
        Component to its `LinePriors`; the default for others.
    flux_scale : str or None
        Of templates that are cloned here.
    medium : str
        Of the data's wavelengths.
    scale_tellurics, jitter, robust : bool
    velocity_step : float or None
        Of the model's grid, km/s.
    missing_lines : float or None
        Number of false lines that may be expected of a search.
    max_iterations : int
    line_spread : LineSpread or None
        A Gaussian where not given.
    prior_means : tuple of PriorMean
    progress : bool
    """

    rv: float | None = None
    vsini: float | None = None
    limb_darkening: tuple[float, float] = (0.4, 0.2)
    continuum: int = 2
    free: tuple[str, ...] = ("rv", "vsini", "continuum")
    kinds: dict[str, tuple[str, ...]] = field(default_factory=dict)
    priors: dict[str, LinePriors] = field(default_factory=dict)
    flux_scale: object = None
    medium: str = "vacuum"
    scale_tellurics: bool = True
    jitter: bool = True
    robust: bool = True
    velocity_step: float | None = None
    missing_lines: float | None = None
    max_iterations: int = 400
    line_spread: LineSpread | None = None
    prior_means: tuple[PriorMean, ...] = ()
    progress: bool = False

    @classmethod
    def of(
        cls,
        *,
        free: Iterable[str],
        star_lines: Iterable[str],
        telluric_lines: Iterable[str],
        star_priors: LinePriors | None,
        telluric_priors: LinePriors | None,
        rv,
        vsini,
        velocity_step,
        continuum,
        missing_lines,
        line_spread,
        prior_means,
        with_star: bool,
        further: Iterable[str] = (),
        further_lines: dict[str, Iterable[str]] | None = None,
        **others,
    ) -> FitOptions:
        """From the arguments of `fit`.

        Parameters
        ----------
        with_star : bool
            Whether there is a star whose rotation could be searched.
        further : iterable of str
            Names of parameters that components and line spread bring along.
        further_lines : dict, optional
            Further component to its free line parameters, where not all of them are.

        Raises
        ------
        ValueError, TypeError
            For what cannot be meant; the message says what was expected, what came, and what to do.
        """
        allowed = (*GLOBALS, *(name for name in further if name not in GLOBALS))
        free = names_among(free, allowed, "free")
        kinds = {
            "star": names_among(star_lines, KINDS, "star_lines"),
            "telluric": names_among(telluric_lines, KINDS, "telluric_lines"),
        }
        for name, given in (further_lines or {}).items():
            kinds[name] = names_among(given, KINDS, f"free_lines of the component {name}")
        vsini = None if vsini is None else to_kms(vsini, "vsini")
        if vsini is None and ("vsini" not in free or not with_star):
            vsini = HELD_VSINI
        if vsini is not None and vsini < 0.0:
            raise ValueError(f"vsini must not be negative, got {vsini} km/s")
        if not is_whole(continuum) or continuum < 0:
            raise ValueError(f"continuum must be a polynomial degree (0, 1, 2, ...), got {continuum!r}")
        if missing_lines is not None and not (is_number(missing_lines) and 0.0 < missing_lines < math.inf):
            raise ValueError(
                f"missing_lines must be the number of false lines that may be expected, such as 0.1, or None; got "
                f"{missing_lines!r}"
            )
        priors = {
            "star": _line_priors(star_priors, "star_priors"),
            "telluric": _line_priors(telluric_priors, "telluric_priors"),
        }
        return cls(
            rv=None if rv is None else to_kms(rv, "rv"),
            vsini=vsini,
            velocity_step=None if velocity_step is None else to_kms(velocity_step, "velocity_step"),
            continuum=continuum,
            missing_lines=None if missing_lines is None else float(missing_lines),
            free=free,
            kinds=kinds,
            priors=priors,
            line_spread=_instance(line_spread, LineSpread, "line_spread", "None for a Gaussian"),
            prior_means=tuple(
                _instance(mean, PriorMean, "an element of prior_means", "an empty tuple") for mean in prior_means
            ),
            **others,
        )

    def kinds_of(self, component: str) -> tuple[str, ...]:
        """Free line parameters of a component."""
        return self.kinds.get(component, KINDS)

    def priors_of(self, component: str) -> LinePriors:
        """Priors of a component's lines."""
        return self.priors.get(component, LinePriors())


def names_among(given, allowed: tuple[str, ...], argument: str) -> tuple[str, ...]:
    """Names that a user gives, in the order of those allowed."""
    given = (given,) if isinstance(given, str) else tuple(given)
    unknown = [name for name in given if name not in allowed]
    if unknown:
        raise ValueError(f"{argument} must be among {', '.join(allowed)}; got {', '.join(map(repr, unknown))}")
    return tuple(name for name in allowed if name in given)


def _line_priors(given, argument: str) -> LinePriors:
    """As given, or the default."""
    if given is None:
        return LinePriors()
    if not isinstance(given, LinePriors):
        raise TypeError(
            f"{argument} must be LinePriors, such as priors.LinePriors(ln_area=0.5), or None; got {given!r}"
        )
    return given


def _instance(given, kind: type, argument: str, otherwise: str):
    if given is not None and not isinstance(given, kind):
        raise TypeError(
            f"{argument} must be an instance of {kind.__module__}.{kind.__name__} or of a subclass, or {otherwise}; "
            f"got {given!r}"
        )
    return given
