"""The priors that anchor parameters: widths, tails, and the steps that each may take in one iteration.

Does not live here: which parameters are free by default (`fitting`, `cloning`), the cost itself (`problem`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..spectra.quantities import is_number


@dataclass(frozen=True)
class LinePriors:
    """Widths of the priors on line parameters, anchored at their starting values.

    `ln_area`, `ln_sigma`, `ln_gamma` are in natural logarithms, `rv_offset` in km/s, or a Quantity of velocity. They
    say how far a line of a good template is expected to be from the real one: that is the transfer of what the template
    knows.

    The priors are Student's t with `degrees_of_freedom`; infinity makes them Gaussian. Templates have many lines that
    are nearly right and some that are wrong altogether. A Gaussian must be wide enough for the latter and then holds
    nothing, or it spreads their misfit over all their neighbours and over the radial velocity. On WASP-69 (HPF order
    5, PHOENIX 4700 K lines) Gaussians of these widths reach RMS 0.88 %, of three times these 0.68 %; with four degrees
    of freedom it is 0.48 %, at the published radial velocity.

    Measured (docs/validation.md, section 8) is how far secure lines of clones must move to become real: those of TelFit
    on HR 3039 by 0.07, 0.23, 0.14 and 0.10 km/s in the order above; those of poor stellar templates by 0.65 to 0.85 in
    ln area, 0.5 to 0.7 in ln gamma and 1.0 to 1.2 km/s, ln sigma untold (PHOENIX 4700 K lines on WASP-69, LTE 3500 K on
    GJ 699); all with tails of four degrees of freedom or fewer. The defaults, older than the measurement, stand between
    these: for ln area and ln gamma near the geometric means of sky and stars, 0.23 and 0.28, for centres at the sky's
    width, for ln sigma at two thirds of the sky's. Where you know how good a template is, say so: on WASP-69 the
    measured widths predict held-out pixels better (RMS 0.61 instead of 0.80 %), on HR 3039 there is no difference.
    """

    ln_area: float = 0.3
    ln_sigma: float = 0.15
    ln_gamma: float = 0.3
    rv_offset: float = 0.1
    degrees_of_freedom: float = 4.0

    def __post_init__(self):
        for name in ("ln_area", "ln_sigma", "ln_gamma", "rv_offset", "degrees_of_freedom"):
            given = getattr(self, name)
            value = _as_number(given, "km/s" if name == "rv_offset" else "")
            if not value > 0.0 or (math.isinf(value) and name != "degrees_of_freedom"):
                finite, unit = " finite", ""
                remedy = "To fix a parameter, hold it instead; to let it go, give a wide prior"
                if name == "rv_offset":
                    unit = " in km/s, or a Quantity of velocity"
                elif name == "degrees_of_freedom":
                    finite, remedy = "", "Infinity makes the priors Gaussian; the smaller, the heavier their tails"
                raise ValueError(
                    f"{name} of a prior must be one positive{finite} number{unit}; got {given!r}. {remedy}"
                )
            object.__setattr__(self, name, value)


def _as_number(given, unit: str) -> float:
    """A number or Quantity as a float in this unit; NaN for what is none."""
    try:
        value = given.to_value(unit) if hasattr(given, "to_value") else given
        if hasattr(value, "item") and value.ndim == 0:  # of numpy or torch, which have truth values of their own
            value = value.item()
        return float(value) if is_number(value) else math.nan
    except (TypeError, ValueError, OverflowError):  # astropy's UnitConversionError is the first two
        return math.nan


def penalty(square: Tensor, freedom: Tensor) -> Tensor:
    """-2 ln prior at a squared distance from its anchor in units of its width, over that at the anchor.

    z² for a Gaussian, of infinite degrees of freedom, and (ν + 1) ln(1 + z²/ν) for Student's t.
    """
    heavy = freedom.isfinite()
    tails = torch.where(heavy, freedom, 1.0)
    return torch.where(heavy, (tails + 1.0) * torch.log1p(square / tails), square)


def square_of_penalty(cost: float, freedom: Tensor) -> Tensor:
    """The squared distance at which the `penalty` is this."""
    heavy = freedom.isfinite()
    tails = torch.where(heavy, freedom, 1.0)
    return torch.where(heavy, tails * torch.expm1(cost / (tails + 1.0)), cost)


LINE_LIMITS = {"ln_area": 1.0, "ln_sigma": 0.7, "ln_gamma": 0.7, "rv_offset": 1.5}
"""Largest change of a line's parameter in one iteration."""
