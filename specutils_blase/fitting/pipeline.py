"""Fitting: from observed orders and clones to a `FitResult`.

Does not live here: what an order brings along (`observed_orders`), the physics (`model`, `echelle`), the solver
(`least_squares`), tables and errors (`outcome`).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import partial

from specutils import Spectrum
from tqdm.auto import tqdm

from ..inference.objective import AnchoredProblem
from ..inference.priors import LinePriors
from ..model.echelle import EchelleModel, orders_of
from ..model.emulator import LineEmulator
from ..model.order import ForwardModel
from ..model.parameters import GLOBALS, KINDS, FreeParameters
from ..physics.grids import SPEED_OF_LIGHT
from ..results.echelle_result import EchelleFitResult
from ..results.fit_result import FitResult
from ..spectra.quantities import is_number, is_whole
from ..spectra.reading import to_kms
from .assembly import Given, build_result
from .held_lines import held_by_ledger, told_by_data
from .inputs import (
    component_emulator,
    data_of,
    from_fit,
    lines_inside,
    not_covered,
    provenance_of,
    qualities_of,
    source_of,
)
from .line_search.search import discover
from .observation import ObservedOrder, read_order, read_orders, warn_excluded
from .shared_changes.changes import JointChanges
from .shared_changes.star import StarAnchors
from .shared_changes.telluric import TelluricAnchors
from .stages import solve, solve_orders
from .start.cross_correlation import VelocitySearch, cross_correlate
from .start.first_model import first_model, union, without_impossible
from .start.hypotheses import likeliest
from .start.velocities import implausible

logger = logging.getLogger(__name__)


def fit(
    data: Spectrum | Sequence[Spectrum],
    star=None,
    *,
    telluric=None,
    rv=None,
    vsini=None,
    limb_darkening: tuple[float, float] = (0.4, 0.2),
    resolving_power=None,
    continuum: int = 2,
    free: Iterable[str] = ("rv", "vsini", "continuum"),
    star_lines: Iterable[str] = KINDS,
    telluric_lines: Iterable[str] = KINDS,
    star_priors: LinePriors | None = None,
    telluric_priors: LinePriors | None = None,
    flux_scale=None,
    medium: str = "vacuum",
    barycentric_velocity=None,
    scale_tellurics: bool = True,
    jitter: bool = True,
    robust: bool = True,
    velocity_step=None,
    missing_lines: float | None = None,
    max_iterations: int = 400,
    progress: bool = True,
) -> FitResult | EchelleFitResult:
    """Fit star and telluric lines to one order of an observed spectrum, or to many orders at once.

    All orders share the lines of star and sky, the radial velocity, the rotation and the limb darkening; each has a
    continuum and a resolving power of its own. A line in the overlap of two orders is one line. In a list, the edges
    that muler calls noisy are dropped, and an order that cannot be fitted is left out with a warning.

    Parameters
    ----------
    data : Spectrum or sequence of Spectrum
        The observation: one order, or a list of them. A muler object brings its resolving power, order number and
        barycentric velocity along.
    star, telluric : CloneResult, LineEmulator, ledger table, FitResult, or template Spectrum
        The two components; at least one. A template is cloned first, over the range of the data, with default
        settings. Of a fit, its lines as fitted. Lines whose `free` a ledger has set to False are held, and so are the
        weakest where there are more than the data can tell apart; ``settings["held_lines"]`` counts both.
    rv : Quantity or float, optional
        Starting radial velocity [km/s] of the star; by cross-correlation with the star's clone when not given.
    vsini : Quantity or float, optional
        Starting projected rotation velocity [km/s]; by cross-correlation too when not given. Where "vsini" is not free
        it is held, and 2 km/s when not given.
    limb_darkening : (float, float)
        Quadratic coefficients u1, u2.
    resolving_power : float or sequence of float, optional
        λ/FWHM of the line spread, of all orders or of each; by default the data's attribute `instrumental_resolution`
        (muler), or that of the instrument in their header.
    continuum : int
        Degree of the continuum polynomial.
    free : iterable of str
        Global parameters to fit, among "rv", "vsini", "limb_darkening", "resolving_power", "continuum", "star_law",
        "telluric_law"; the others are held.
    star_lines, telluric_lines : iterable of str
        Line parameters to fit, among "ln_area", "ln_sigma", "ln_gamma", "rv_offset"; () holds the component.
    star_priors, telluric_priors : LinePriors, optional
        Widths of the priors that anchor each component's lines at its clone.
    flux_scale : str, optional
        For templates that are cloned here, and for tables that do not say theirs.
    medium : "vacuum" or "air"
        What the data's wavelengths are.
    barycentric_velocity : Quantity or float, optional
        Barycentric correction [km/s], for the row "rv_barycentric" of the parameters; by default that of the data's
        header, or one computed from it.
    scale_tellurics : bool
        Bring the telluric clone to this night's amounts: one optical-depth factor a species, and a small shift. Before
        any line is free they are a start (`specutils_blase.fitting.start.tellurics`). Then the priors of the lines
        stand there, and follow from the lines (`specutils_blase.fitting.shared_changes.telluric`). Lines without a
        species have that of their place (`specutils_blase.fitting.shared_changes.telluric_species`).
    jitter : bool
        Where the reduced χ² of an order exceeds 1.5, because the model lacks something: add noise until it is 1. The
        result's table `orders` tells how much.
    robust : bool
        Leave out negative pixels, spikes, and features sharper than the line spread, which the result's table
        `rejected` lists; and lower the weight of outliers where the reduced χ² of an order exceeds 1.5. With
        ``jitter=False, robust=False`` every pixel counts with the noise that the data bring.
    velocity_step : Quantity or float, optional
        Step [km/s] of the model's grid; a quarter pixel or less by default.
    missing_lines : float, optional
        Search the residuals for lines that neither template has, add those that are significant, and fit again; given
        is the number of false ones that noise, and lines of the templates far from where these have them, may be
        expected to bring, such as 0.1. `FitResult.missing_lines` lists them. A component gets new lines only where the
        ln_area of its own are free; what it lacks looks like lines of the other otherwise, and one has to be free.
        Where the telluric lines are anchored stays as the fit before the search has found it.
    max_iterations : int
        Limit on iterations: of one order over all stages; in a list, of each stage, of which an order by itself gets at
        most 150; of the search for missing lines, of each of its rounds.
    progress : bool
        Show a progress bar.

    Returns
    -------
    FitResult
        `success` and `message` say whether it converged, `quality` what speaks against its answer: a
        `BlaseQualityWarning` is given where that is doubtful or bad.

    Warns
    -----
    RuntimeWarning
        If it did not, if an order is left out, or if a component comes from a fit of the same data, whose priors then
        count these data twice.

    Raises
    ------
    ValueError
        For input that cannot be fitted; the message says what was expected, what came, and what to do.
    TypeError
        Likewise for arguments of another kind, such as priors that are no `LinePriors`.
    """
    free = _names(free, GLOBALS, "free")
    kinds = {
        "star": _names(star_lines, KINDS, "star_lines"),
        "telluric": _names(telluric_lines, KINDS, "telluric_lines"),
    }
    if star is None and telluric is None:
        raise ValueError("fit needs a star, a telluric component, or both: pass a clone or a template spectrum")
    vsini = None if vsini is None else to_kms(vsini, "vsini")
    if vsini is None and ("vsini" not in free or star is None):
        vsini = 2.0
    if vsini is not None and vsini < 0.0:
        raise ValueError(f"vsini must not be negative, got {vsini} km/s")
    rv = None if rv is None else to_kms(rv, "rv")
    velocity_step = None if velocity_step is None else to_kms(velocity_step, "velocity_step")
    if not is_whole(continuum) or continuum < 0:
        raise ValueError(f"continuum must be a polynomial degree (0, 1, 2, ...), got {continuum!r}")
    if missing_lines is not None and not (is_number(missing_lines) and 0.0 < missing_lines < math.inf):
        raise ValueError(
            f"missing_lines must be the number of false lines that may be expected, such as 0.1, or None; got "
            f"{missing_lines!r}"
        )
    priors = {"star": _priors(star_priors, "star_priors"), "telluric": _priors(telluric_priors, "telluric_priors")}
    many = isinstance(data, (list, tuple))
    reading = {
        "resolving_power": resolving_power,
        "medium": medium,
        "barycentric_velocity": barycentric_velocity,
        "n_parameter": continuum + 1 + len(free),
    }
    orders, excluded = read_orders(data, **reading) if many else ([read_order(data, **reading)], {})
    given = {name: each for name, each in (("star", star), ("telluric", telluric)) if each is not None}
    span = min(order.span[0] for order in orders), max(order.span[1] for order in orders)
    finest = max(order.resolving_power for order in orders)
    components = {
        name: component_emulator(each, name, span, flux_scale, finest, progress, rv or 0.0)
        for name, each in given.items()
    }
    orders = _covered(orders, components, rv, excluded, many)
    if robust:
        emission = any(emulator.has_emission for emulator in components.values())
        orders = [without_impossible(order, emission) for order in orders]
    options = {"limb_darkening": limb_darkening, "continuum_degree": continuum, "velocity_step": velocity_step}
    options |= {"many": many, "jitter": jitter, "robust": robust}
    fixed = {name: held_by_ledger(given[name], name, emulator) for name, emulator in components.items()}
    scaling = {"tellurics": scale_tellurics, "star": "ln_area" in kinds["star"]}
    while True:
        search = _search(orders, components, rv, vsini, continuum)
        build = partial(first_model, orders, components, fixed=fixed, **options)
        attempt, start = likeliest(build, search, free, SPEED_OF_LIGHT / finest, vsini is not None, scaling)
        begun = attempt.begun
        model, noise, orders, fluxes = begun.model, begun.noise, begun.orders, begun.fluxes
        wrong = implausible(orders_of(model), fluxes, noise.weights()) if many else {}
        if not wrong:
            break
        if len(wrong) == len(orders):
            raise ValueError(f"none of the orders looks like its templates: order {orders[0].name} {wrong[0]}")
        excluded |= {orders[k].index: (orders[k].name, reason) for k, reason in wrong.items()}
        orders = [order for k, order in enumerate(orders) if k not in wrong]
    free = tuple(name for name in free if _exists(model, name))
    warn_excluded(excluded)
    rv, present = attempt.start.rv, begun.present
    lines = {
        name: union(lines_inside(emulator, order.fitted_span, rv if name == "star" else 0.0) for order in orders)
        for name, emulator in present.items()
    }
    inside, lines = lines, {name: index[~begun.fixed[name][index]] for name, index in lines.items()}
    fitted = {name: index for name, index in lines.items() if kinds[name]}
    lines |= told_by_data(present, fitted, orders, noise.weights(), *attempt.velocities)
    held = {name: int(inside[name].numel() - lines[name].numel()) for name in inside}
    if any(held.values()):
        logger.info("lines held: %s", held)
    layout = FreeParameters(model, {name: kinds[name] for name in present}, lines, free)
    if not len(layout):
        raise ValueError("nothing is free: name parameters in free=, or some of the lines' in star_lines=")
    problem = AnchoredProblem(layout, layout.merge(fluxes), layout.merge(noise.weights()), priors)
    scale = attempt.telluric_scale
    star_anchors = None if "star" not in present else StarAnchors(problem, attempt.held.star_scale)
    telluric_anchors = None if scale is None else TelluricAnchors(problem, scale)
    parts = [part for part in (star_anchors, telluric_anchors) if part is not None]
    anchors = JointChanges(parts) if parts else None
    with tqdm(desc="fit", unit="it", disable=not progress, leave=False, delay=2.0) as bar:

        def report(entry: dict[str, float]) -> None:
            bar.update()
            bar.set_postfix_str(f"{entry.get('order', '')} χ² {entry['cost']:.1f}".strip())

        if many:
            solution = solve_orders(problem, noise, [order.name for order in orders], max_iterations, report, anchors)
        else:
            solution = solve(problem, noise, max_iterations, report, anchors=anchors)
        start_area = {name: problem.anchored_area(name) for name in present}
        found = None
        if missing_lines is not None:
            problem, solution, noise, start_area, found, star_anchors = discover(
                problem, solution, noise, start_area, float(missing_lines), max_iterations, report, star_anchors
            )
            lines, anchors = problem.free.lines, star_anchors
    if not solution.success:
        warnings.warn(f"the fit did not converge: {solution.message}", RuntimeWarning, stacklevel=2)
    settings = {
        "free": list(free),
        "star_lines": list(kinds["star"]),
        "telluric_lines": list(kinds["telluric"]),
        "continuum": continuum,
        "start_rv": rv,
        "start": start,
        "medium": medium,
        "priors": {name: vars(priors[name]) for name in present},
        "noise": "from the data" if all(noise.known) else "unknown: scaled from the residuals",
        "jitter": noise.may_add_jitter,
        "robust": noise.may_doubt,
        "missing_lines": missing_lines,
        "star_scale": None if star_anchors is None else asdict(star_anchors.scale()),
        "telluric_scale": None if telluric_anchors is None else asdict(telluric_anchors.scale()),
        "star": source_of(star),
        "telluric": source_of(telluric),
        "templates": {name: provenance_of(each, components[name]) for name, each in given.items()},
        "held_lines": held,
        "data": data_of(orders),
        "from_fit": from_fit(given, orders),
        "template_quality": qualities_of(given),
    }
    given = Given(orders, excluded, lines, start_area, noise, settings, found, anchors)
    result = build_result(problem, solution, given)
    result.quality.warn(but=("converged",))
    return result


def _search(orders: list[ObservedOrder], components: dict[str, LineEmulator], rv, vsini, continuum: int):
    """Velocities to start from: searched where there is a star, and where they are not given."""
    if "star" not in components:
        return VelocitySearch.given(rv or 0.0, vsini, len(orders))
    search = cross_correlate(
        [order.data for order in orders],
        components["star"],
        components.get("telluric"),
        rv=rv,
        vsini=vsini,
        resolving_power=[order.resolving_power for order in orders],
        continuum=continuum,
    )
    logger.info("start: rv = %.2f km/s, v sin i = %.1f km/s", search.rv, search.vsini)
    return search


def _covered(
    orders: list[ObservedOrder], components: dict[str, LineEmulator], rv, excluded: dict[int, tuple], many: bool
) -> list[ObservedOrder]:
    """The orders that the templates cover; the others go to `excluded`, or, a single one, into an error."""
    kept = []
    for order in orders:
        reasons = [not_covered(emulator, name, order.span, rv) for name, emulator in components.items()]
        reason = "; ".join(filter(None, reasons))
        if not reason:
            kept.append(order)
        elif many:
            excluded[order.index] = order.name, reason
        else:
            raise ValueError(reason)
    if not kept:
        raise ValueError(f"no order is covered by the templates: {next(iter(excluded.values()))[-1]}")
    return kept


def _priors(given, argument: str) -> LinePriors:
    """As given, or the default."""
    if given is None:
        return LinePriors()
    if not isinstance(given, LinePriors):
        raise TypeError(
            f"{argument} must be LinePriors, such as priors.LinePriors(ln_area=0.5), or None; got {given!r}"
        )
    return given


def _names(given, allowed: tuple[str, ...], argument: str) -> tuple[str, ...]:
    given = (given,) if isinstance(given, str) else tuple(given)
    unknown = [name for name in given if name not in allowed]
    if unknown:
        raise ValueError(f"{argument} must be among {', '.join(allowed)}; got {', '.join(map(repr, unknown))}")
    return tuple(name for name in allowed if name in given)


def _exists(model: ForwardModel | EchelleModel, name: str) -> bool:
    stages = {"rv": model.doppler, "vsini": model.rotation, "limb_darkening": model.rotation}
    laws = {"star_law": model.star, "telluric_law": model.telluric}
    if name in laws:
        return laws[name] is not None and laws[name].law.n_parameter > 0
    return stages.get(name, True) is not None
