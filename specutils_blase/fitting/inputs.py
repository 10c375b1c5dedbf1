"""The components of a fit: from whatever the user gives to emulators that cover the data.

Does not live here: the fit (`fitting.pipeline`), cloning itself (`cloning`).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import astropy.units as u
import numpy as np
import torch
from astropy.table import Table
from specutils import Spectrum
from torch import Tensor

from ..cloning.clone import CloneResult, clone
from ..ledger.emulator import emulator_from_ledger, ledger_meta
from ..model.component import Component
from ..model.emulator import LineEmulator
from ..model.extrinsic import DopplerShift, RotationalBroadening
from ..physics.grids import SPEED_OF_LIGHT
from ..physics.voigt import voigt_fwhm
from ..results.fit_result import TEMPLATE_SOURCE, FitResult
from ..spectra.provenance import PIXELS_KEPT, of_lines, of_template, pixel_digests
from .held_lines import held_by_ledger
from .observation import Observation, ObservedOrder
from .options import FitOptions
from .prior_means.telluric_species import by_place
from .start.initial_velocity import COVERED, FASTEST
from .start.order_correlation import coverage

VELOCITY_MARGIN = 60.0
"""km/s beyond the starting velocity up to which a star's lines are kept that may come into the data."""

REACHING_OPACITY = 1e-3
"""A line centred outside the data is free if its opacity inside them exceeds this."""

BESIDE, BROADEST = 0.1, 1.0 / 3.0
"""Farthest free line outside the data, and full width at half maximum of the broadest, in units of their length."""


@dataclass(frozen=True, eq=False)
class Template:
    """A component as a fit takes it.

    Parameters
    ----------
    component : Component
        Its lines, and how it moves at the start.
    held : Tensor, (n_line,) bool
        Lines that its ledger holds, in the order of their shifted centres.
    told : dict
        What a result's settings tell of it: "source", "provenance", and, where they are known, "quality" of a clone
        and "from_fit", whether it comes from a fit of the same data.
    """

    component: Component
    held: Tensor
    told: dict

    @property
    def name(self) -> str:
        """Of the component."""
        return self.component.name

    @property
    def emulator(self) -> LineEmulator | None:
        """Its lines."""
        return self.component.emulator

    @property
    def moves(self) -> bool:
        """Whether it moves against the observatory."""
        return self.component.doppler is not None


def templates_of(
    observation: Observation, star, telluric, components: Sequence[Component], options: FitOptions
) -> list[Template]:
    """All components of a fit from whatever the user gives.

    Parameters
    ----------
    observation : Observation
    star, telluric : CloneResult, LineEmulator, ledger table, FitResult, template Spectrum or None
    components : sequence of Component
        Further ones.
    options : FitOptions
    """
    own = set(data_of(observation.orders, None))
    motion = DopplerShift(options.rv or 0.0), RotationalBroadening(0.0)
    made = []
    if star is not None:
        moving = {"doppler": motion[0], "rotation": motion[1], "shines": True, "prefix": ""}
        made.append(_template(star, Component("star", **moving), observation, options, own))
    if telluric is not None:
        made.append(_template(telluric, Component("telluric"), observation, options, own))
    for component in components:
        if not isinstance(component, Component):
            raise TypeError(
                f"components must be instances of specutils_blase.model.Component, got {type(component).__name__}: "
                "give clones and templates as star= and telluric="
            )
        made.append(_template(component.emulator, component, observation, options, own))
    names = [template.name for template in made]
    if len(set(names)) < len(names):
        raise ValueError(f"expected components of different names, got {', '.join(names)}")
    return made


def _template(given, component: Component, observation: Observation, options: FitOptions, own: set[str]) -> Template:
    """A component with its lines made of what the user gives."""
    if given is None:
        return Template(component, torch.zeros(0, dtype=torch.bool), {"source": type(component).__name__})
    name, moves = component.name, component.doppler is not None
    emulator = component_emulator(
        given,
        name,
        observation.span,
        options.flux_scale,
        observation.finest,
        options.progress,
        component.velocity,
        moves=moves,
    )
    told = {"source": source_of(given), "provenance": provenance_of(given, emulator)}
    if isinstance(given, CloneResult):
        told["quality"] = given.quality.status
    repeated = from_fit(given, name, own)
    if repeated is not None:
        told["from_fit"] = repeated
    return Template(component.with_lines(emulator), held_by_ledger(given, name, emulator), told)


def source_of(component) -> str:
    """What a component was made of, in a word."""
    if isinstance(component, CloneResult):
        return str(component.settings.get("template", ""))
    return "" if component is None else type(component).__name__


def provenance_of(component, emulator: LineEmulator) -> dict:
    """Where a component comes from: its template, as cloned or as given, else the lines that it brought."""
    if isinstance(component, CloneResult):
        return of_template(component.template)
    if isinstance(component, Spectrum):
        return of_template(component)
    meta = component.meta if isinstance(component, Table) else {}
    return of_lines(emulator, str(meta.get("source") or type(component).__name__))


def component_emulator(
    given, name, span, flux_scale, resolving_power, progress, rv: float = 0.0, *, moves: bool = True
) -> LineEmulator:
    """The lines of a component as an emulator whose parameters are its own; `moves` against the observatory or not."""
    if isinstance(given, Spectrum):
        given = _clone_template(given, name, span, flux_scale, resolving_power, progress, rv if moves else None)
    if isinstance(given, CloneResult):
        given = given.emulator
    elif isinstance(given, FitResult):
        given = _fitted_lines(given, name)
    elif isinstance(given, Table):
        given = emulator_from_ledger(given, component=name, law=flux_scale)
    if not isinstance(given, LineEmulator):
        raise TypeError(
            f"{name} must be a CloneResult, a LineEmulator, a ledger table, a FitResult or a template Spectrum, "
            f"got {type(given).__name__}"
        )
    return given if moves else by_place(given)


def _fitted_lines(fit: FitResult, name: str) -> LineEmulator:
    """The lines of a component as a fit left them, at rest; they cover what its data do."""
    if name not in fit.model.components:
        raise ValueError(f"the fit given as {name} has no {name}, only {', '.join(fit.model.components)}")
    part = fit.model.parts[name]
    emulator = part.emulator.settled()
    data = fit.data if isinstance(fit.data, list) else [fit.data]
    ends = [float(order.wavelength[k]) for order in data for k in (0, -1)]
    margin = 1.0 if part.doppler is None else VELOCITY_MARGIN
    low, high = emulator.wavelength_range
    at_rest = 1.0 + part.velocity / SPEED_OF_LIGHT
    low = max(low, min(ends) * (1.0 - margin / SPEED_OF_LIGHT) / at_rest)
    high = min(high, max(ends) * (1.0 + margin / SPEED_OF_LIGHT) / at_rest)
    emulator.wavelength_range = (low, high)
    return emulator


def data_of(orders: Sequence[ObservedOrder], most: int | None = PIXELS_KEPT) -> list[str]:
    """Digests of some good pixels of each order, or of all: by which a template is known to come from these data."""
    good = [(order.data.good, order.data.wavelength, order.data.flux) for order in orders]
    columns = [[column[some].numpy() for column in pair] for some, *pair in good]
    return [text for wavelength, flux in columns for text in pixel_digests(wavelength, flux, most)]


def from_fit(component, name: str, own: set[str]) -> bool | None:
    """Whether a component comes from a fit whose data were these, or are not known, with a warning; None for others.

    The priors of such a component stand where these data have put them: they count twice, and errors come out too
    small.

    Parameters
    ----------
    component : CloneResult, Spectrum, Table, FitResult or anything else
    name : str
    own : set of str
        Digests of the data's pixels; see `data_of`.
    """
    if isinstance(component, FitResult):
        known = component.settings.get("data", [])
    elif isinstance(component, CloneResult | Spectrum):
        meta = (component.template if isinstance(component, CloneResult) else component).meta or {}
        if meta.get("source") != TEMPLATE_SOURCE:
            return None
        known = meta.get("data", [])
    elif isinstance(component, Table):
        settings = ledger_meta(component).get("settings", {})
        if not (isinstance(settings, dict) and "start_rv" in settings):
            return None
        known = settings.get("data", [])
    else:
        return None
    repeated = not known or bool(own & set(known))
    if repeated:
        whose = "the same data" if known else "data that it does not tell"
        warnings.warn(
            f"the {name}'s lines come from a fit of {whose}: where data count twice, errors are too small; fit "
            "from the template instead",
            RuntimeWarning,
            stacklevel=5,
        )
    return repeated


def covered(observation: Observation, templates: Sequence[Template], options: FitOptions) -> Observation:
    """The orders that all templates cover; a single one that they do not is an error."""
    reasons = {}
    for k, order in enumerate(observation.orders):
        told = (not_covered(template, order.span, options.rv) for template in templates)
        if reason := "; ".join(filter(None, told)):
            reasons[k] = reason
    if reasons and not observation.is_list:
        raise ValueError(reasons[0])
    if len(reasons) == len(observation.orders):
        raise ValueError(f"no order is covered by the templates: {next(iter(reasons.values()))}")
    return observation.without(reasons)


def not_covered(template: Template, span, rv: float | None) -> str:
    """Why the lines of a template do not cover the data, or nothing if they do.

    Lines that move have to cover `COVERED` of the data, at its velocity or, where that is to be found, at any that is
    searched: pixels that they do not reach are left out.
    """
    emulator, name = template.emulator, template.name
    if emulator is None:
        return ""
    if not template.moves:
        low, high = emulator.wavelength_range
        # A line list ends at its outermost lines: up to one typical gap short of what its template covered.
        slack = 2.0 * float(np.median(np.diff(emulator.center.cpu().numpy()))) if len(emulator) > 1 else 1.0
        if low <= span[0] + slack and high >= span[1] - slack:
            return ""
        return (
            f"the {name} template covers {low:.2f}-{high:.2f} Å, the data need {span[0]:.2f}-{span[1]:.2f} Å: extend "
            "the template or trim the data"
        )
    reach = FASTEST / SPEED_OF_LIGHT if rv is None else 0.0
    low, high = (end * (1.0 + (rv or 0.0) / SPEED_OF_LIGHT) for end in coverage(emulator))
    length = span[1] - span[0]
    most = min(high - low, length, high * (1.0 + reach) - span[0], span[1] - low * (1.0 - reach))
    if most >= COVERED * length:
        return ""
    first, last = emulator.wavelength_range
    where = "at some velocity" if rv is None else f"at a radial velocity of {rv:.0f} km/s"
    return (
        f"the {name} template covers {first:.2f}-{last:.2f} Å, the data need {100 * COVERED:.0f} % of "
        f"{span[0]:.2f}-{span[1]:.2f} Å {where}: extend the template or trim the data"
    )


def reached(emulator: LineEmulator, wavelength: Tensor, rv: float, margin: float) -> Tensor:
    """Pixels that a star's lines tell something of at a velocity, `margin` km/s inside their range."""
    low, high = coverage(emulator)
    rest = wavelength / (1.0 + rv / SPEED_OF_LIGHT)
    return (rest >= low * (1.0 + margin / SPEED_OF_LIGHT)) & (rest <= high * (1.0 - margin / SPEED_OF_LIGHT))


def _clone_template(
    template: Spectrum, name: str, span, flux_scale, resolving_power: float, progress: bool, rv: float | None
) -> CloneResult:
    margin = (3.0 * VELOCITY_MARGIN + abs(rv or 0.0)) / SPEED_OF_LIGHT + 10.0 / span[0]
    first = template.spectral_axis.to_value(u.AA, u.spectral())
    low, high = max(span[0] * (1 - margin), first.min()), min(span[1] * (1 + margin), first.max())
    if not low < high:
        raise ValueError(
            f"the {name} template covers {first.min():.2f}-{first.max():.2f} Å and does not overlap the data, "
            f"{span[0]:.2f}-{span[1]:.2f} Å"
        )
    near = np.sort(first[(first >= low) & (first <= high)])
    spacing, element = float(np.median(np.diff(near))) if near.size > 1 else high - low, span[0] / resolving_power
    if spacing > element:
        raise ValueError(
            f"the {name} template is sampled every {spacing:.3g} Å, coarser than the data's resolution element of "
            f"{element:.3g} Å (R = {resolving_power:.0f}): give a finer template"
        )
    options = {} if flux_scale is None else {"flux_scale": flux_scale}
    if rv is None and template.meta.get("resolving_power"):
        options["resolving_power"] = template.meta["resolving_power"]
    return clone(template, region=(low, high), progress=progress, **options)


def _opacity_inside(emulator: LineEmulator, span, rv: float) -> Tensor:
    """Largest opacity of each line within the data: its Lorentz wing at the nearest end, or anything if inside."""
    center = emulator.shifted_center.detach() * (1.0 + rv / SPEED_OF_LIGHT)
    distance = torch.maximum(span[0] - center, center - span[1]).clamp(min=0.0)
    area, sigma, gamma = (t.detach().double() for t in (emulator.area, emulator.sigma, emulator.gamma))
    fwhm = voigt_fwhm(sigma, gamma)
    wing = area * gamma / (math.pi * distance.square().clamp(min=1e-12))
    return torch.where(distance < 2.0 * fwhm, torch.inf, wing)


def lines_reaching(emulator: LineEmulator, span, rv: float, moves: bool) -> Tensor:
    """Lines that the data can see at all, the velocity margin included."""
    margin = (VELOCITY_MARGIN if moves else 1.0) / SPEED_OF_LIGHT
    wide = span[0] * (1 - margin), span[1] * (1 + margin)
    return (_opacity_inside(emulator, wide, rv) > 1e-7).nonzero().squeeze(-1)


def lines_inside(emulator: LineEmulator, span, rv: float) -> Tensor:
    """Lines that the data may change: those that reach into them, and that a continuum could not imitate.

    Of a line broader than a third of the data, or centred outside by more than a tenth of their length, the data see a
    slope or a bow. Free, hydrogen lines from outside and the continuum trade against each other without end.
    """
    center = emulator.shifted_center.detach() * (1.0 + rv / SPEED_OF_LIGHT)
    distance = torch.maximum(span[0] - center, center - span[1])
    fwhm = voigt_fwhm(emulator.sigma.detach().double(), emulator.gamma.detach().double())
    length = span[1] - span[0]
    local = (distance < BESIDE * length) & (fwhm < BROADEST * length)
    return ((_opacity_inside(emulator, span, rv) > REACHING_OPACITY) & local).nonzero().squeeze(-1)
