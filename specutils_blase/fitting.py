"""Fitting: from a data spectrum and clones to a `FitResult`.

Does not live here: units and masks (`spectrum`), the physics (`model`), the solver (`least_squares`), what a ledger
column means (`ledger`).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable

import astropy.units as u
import numpy as np
import torch
from astropy.table import QTable
from specutils import Spectrum
from torch import Tensor
from tqdm.auto import tqdm

from .components import component_emulator, lines_inside, lines_reaching, source_of
from .data import SpectralData
from .grids import SPEED_OF_LIGHT
from .jacobian import COVARIANCE
from .least_squares import Solution, minimize
from .ledger import LineErrors, build_ledger, held_errors
from .model import ForwardModel
from .normal_equations import Factor
from .parameters import GLOBALS, KINDS, FreeParameters
from .priors import LinePriors
from .problem import AnchoredProblem
from .result import FitResult
from .spectrum import SpectrumFrame, read_spectrum, to_kms, to_resolving_power
from .starting import LOOSE_ITERATIONS, scatter, start_continuum, start_velocities
from .velocity import cross_correlate

logger = logging.getLogger(__name__)

LOOSE = {"ln_area": 3.0, "ln_sigma": 3.0, "ln_gamma": 3.0, "rv_offset": 2.0}
"""Factors on the prior widths in the first stage of a fit."""

LOOSE_TOLERANCE = 0.002
"""Promised decrease of χ² per datum below which the first stage has come near enough."""

TOLERANCE = 0.0025
"""Promised decrease of χ² below which a fit has converged: no parameter is then 0.05 of its error from the minimum."""

NOISE_ROUNDS = 3
"""Fits repeated with the noise that the residuals show, where the data bring none."""

MOST_LINES_PER_PIXEL = 0.6
"""Lines per pixel beyond which a template is too fine for the data to say anything about."""


def fit(
    data: Spectrum,
    star=None,
    *,
    telluric=None,
    rv=None,
    vsini=2.0 * u.km / u.s,
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
    velocity_step=None,
    max_iterations: int = 400,
    progress: bool = True,
) -> FitResult:
    """Fit star and telluric lines to one order of an observed spectrum.

    Parameters
    ----------
    data : Spectrum
        The observation. A muler object brings its resolving power along.
    star, telluric : CloneResult, LineEmulator, ledger table, or template Spectrum
        The two components; at least one. A template is cloned first, over the range of the data, with default
        settings.
    rv : Quantity or float, optional
        Starting radial velocity [km/s] of the star; by cross-correlation with the star's clone when not given.
    vsini : Quantity or float
        Starting projected rotation velocity [km/s].
    limb_darkening : (float, float)
        Quadratic coefficients u1, u2.
    resolving_power : float, optional
        λ/FWHM of the line spread; by default the data's attribute `instrumental_resolution` (muler).
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
    velocity_step : Quantity or float, optional
        Step [km/s] of the model's grid; a quarter pixel or less by default.
    max_iterations : int
        Limit on iterations, over all stages.
    progress : bool
        Show a progress bar.

    Returns
    -------
    FitResult
        `success` and `message` say whether it converged.

    Raises
    ------
    ValueError
        For input that cannot be fitted; the message says what was expected, what came, and what to do.
    """
    free = _names(free, GLOBALS, "free")
    kinds = {
        "star": _names(star_lines, KINDS, "star_lines"),
        "telluric": _names(telluric_lines, KINDS, "telluric_lines"),
    }
    if star is None and telluric is None:
        raise ValueError("fit needs a star, a telluric component, or both: pass a clone or a template spectrum")
    vsini = to_kms(vsini, "vsini")
    if vsini < 0.0:
        raise ValueError(f"vsini must not be negative, got {vsini} km/s")
    rv = None if rv is None else to_kms(rv, "rv")
    velocity_step = None if velocity_step is None else to_kms(velocity_step, "velocity_step")
    if isinstance(continuum, bool) or not isinstance(continuum, int) or continuum < 0:
        raise ValueError(f"continuum must be a polynomial degree (0, 1, 2, ...), got {continuum!r}")
    resolving_power = _resolving_power(data, resolving_power)
    spectrum, frame = read_spectrum(data, medium=medium)
    free_count = continuum + 1 + len(free)
    if spectrum.n_good <= free_count:
        raise ValueError(f"{spectrum.n_good} good pixels cannot constrain {free_count} parameters: unmask more of them")
    scale = float(spectrum.flux[spectrum.good].abs().median())
    if not scale > 0.0:
        raise ValueError("the median flux of the good pixels is zero: there is no light to fit")
    span = float(spectrum.wavelength[0]), float(spectrum.wavelength[-1])
    components = {}
    for name, given in (("star", star), ("telluric", telluric)):
        if given is not None:
            components[name] = component_emulator(given, name, span, flux_scale, rv, resolving_power, progress)
    sky = components.get("telluric")
    if "star" in components and rv is None:
        rv = cross_correlate(spectrum, components["star"], sky, vsini=vsini, resolving_power=resolving_power)
        logger.info("cross-correlation: rv = %.2f km/s", rv)
    rv = rv or 0.0
    reaching = {
        name: lines_reaching(emulator, name, span, rv if name == "star" else 0.0)
        for name, emulator in components.items()
    }
    components = {name: emulator.subset(reaching[name]) for name, emulator in components.items()}
    for emulator in components.values():
        emulator.settle_offsets()
    n_line = sum(len(emulator) for emulator in components.values())
    if n_line > MOST_LINES_PER_PIXEL * len(spectrum):
        raise ValueError(
            f"the templates bring {n_line} lines to {len(spectrum)} pixels, more than the data can tell apart: clone "
            "with a higher prominence, or drop the weakest lines"
        )
    model = ForwardModel.for_order(
        spectrum.wavelength,
        spectrum.edges,
        **components,
        rv=rv,
        vsini=vsini,
        limb_darkening=limb_darkening,
        resolving_power=resolving_power,
        continuum_degree=continuum,
        velocity_step=velocity_step,
    )
    free = tuple(name for name in free if _exists(model, name))
    lines = {name: lines_inside(emulator, span, rv if name == "star" else 0.0) for name, emulator in components.items()}
    layout = FreeParameters(model, {name: kinds[name] for name in components}, lines, free)
    flux = spectrum.flux.double() / scale
    sigma = spectrum.sigma.double() / scale if spectrum.noise_known else scatter(flux, spectrum.good)
    weight = torch.where(spectrum.good, sigma**-2, 0.0)
    start_continuum(model, flux, weight)
    start_velocities(model, free, flux, weight)
    priors = {"star": star_priors or LinePriors(), "telluric": telluric_priors or LinePriors()}
    problem = AnchoredProblem(layout, flux, weight, priors)
    start_area = {name: emulator.ln_area.detach().double().clone() for name, emulator in components.items()}
    with tqdm(total=max_iterations, desc="fit", unit="it", disable=not progress, leave=False, delay=2.0) as bar:

        def report(entry: dict[str, float]) -> None:
            bar.update()
            bar.set_postfix_str(f"χ² {entry['cost']:.1f}")

        solution = _solve(problem, max_iterations, report)
        for _ in range(0 if spectrum.noise_known else NOISE_ROUNDS):
            # Data and priors must weigh against each other as they should: the scatter has to be right in the fit.
            reduced = _reduced_chi_square(problem, solution.normal.factor())
            if abs(reduced - 1.0) < 0.02:
                break
            problem.weight = problem.weight / reduced
            history = solution.history
            solution = minimize(problem, max_iterations=max_iterations, absolute_tolerance=TOLERANCE, callback=report)
            solution.history = history + [e | {"iteration": len(history) + k} for k, e in enumerate(solution.history)]
    settings = {
        "free": list(free),
        "star_lines": list(kinds["star"]),
        "telluric_lines": list(kinds["telluric"]),
        "continuum": continuum,
        "start_rv": rv,
        "medium": medium,
        "priors": {name: vars(priors[name]) for name in components},
        "noise": "from the data" if spectrum.noise_known else "unknown: scaled from the residuals",
        "star": source_of(star),
        "telluric": source_of(telluric),
    }
    return _result(problem, solution, spectrum, frame, scale, lines, start_area, settings)


def _solve(problem: AnchoredProblem, max_iterations: int, report) -> Solution:
    """Minimise first with loose priors, then with the true ones.

    Student's t is not convex: from its narrow centre a line that is far off finds its way out only by chance of the
    starting point. Where the priors are loose first, lines go where the data want them; the true priors then pull
    back what does not need to be away, and their tails let go of what does.
    """
    history: list[dict[str, float]] = []
    loose_iterations = min(LOOSE_ITERATIONS, max_iterations - 1)
    if loose_iterations > 0 and bool(problem.freedom.isfinite().any()):
        problem.loosen(LOOSE)
        tolerance = LOOSE_TOLERANCE * problem.n_datum
        first = minimize(problem, max_iterations=loose_iterations, absolute_tolerance=tolerance, callback=report)
        history = first.history
        problem.loosen(None)
    n_left = max_iterations - max(0, len(history) - 1)
    solution = minimize(
        problem, max_iterations=n_left, absolute_tolerance=TOLERANCE, from_afar=not history, callback=report
    )
    for entry in solution.history:
        history.append(entry | {"iteration": len(history)})
    solution.history = history
    return solution


def _names(given, allowed: tuple[str, ...], argument: str) -> tuple[str, ...]:
    given = (given,) if isinstance(given, str) else tuple(given)
    unknown = [name for name in given if name not in allowed]
    if unknown:
        raise ValueError(f"{argument} must be among {', '.join(allowed)}; got {', '.join(map(repr, unknown))}")
    return tuple(name for name in allowed if name in given)


def _resolving_power(data, resolving_power):
    if resolving_power is None:
        resolving_power = getattr(data, "instrumental_resolution", None)
        if resolving_power is None:
            raise ValueError(
                "the data do not say their resolving power: pass resolving_power=λ/FWHM (HPF 55000, IGRINS 45000, "
                "NIRSPEC 20000)"
            )
    return to_resolving_power(resolving_power)


def _exists(model: ForwardModel, name: str) -> bool:
    stages = {"rv": model.doppler, "vsini": model.rotation, "limb_darkening": model.rotation}
    laws = {"star_law": model.star, "telluric_law": model.telluric}
    if name in laws:
        return laws[name] is not None and laws[name].law.n_parameter > 0
    return stages.get(name, True) is not None


def _reduced_chi_square(problem: AnchoredProblem, factor: Factor) -> float:
    """χ² per degree of freedom; a parameter counts as used up as far as the data, not its prior, determine it."""
    variance = factor.variance()
    effective = len(variance) - float((factor.normal.prior_precision * variance).sum())
    return problem.chi_square() / max(problem.n_datum - effective, 1.0)


def _result(
    problem, solution: Solution, spectrum: SpectralData, frame: SpectrumFrame, scale, lines, start_area, settings
):
    model = problem.free.model
    factor = problem.linearize(solution.vector, COVARIANCE).factor()
    reduced = _reduced_chi_square(problem, factor)
    inflation = 1.0 if spectrum.noise_known else reduced
    components, ranges = {}, {}
    for name, emulator in model.components.items():
        errors = held_errors(emulator)
        kinds = [KINDS.index(kind) for kind in problem.free.kinds[name]]
        free = errors.free.clone()
        covariance = errors.covariance
        if kinds and lines[name].numel():
            free[lines[name]] = True
            picked = torch.tensor(kinds)
            block = inflation * factor.covariance_blocks(problem.free.columns(name))
            covariance[lines[name].view(-1, 1, 1), picked.view(1, -1, 1), picked.view(1, 1, -1)] = block
        prior = settings["priors"][name]["ln_area"]
        components[name] = (emulator, LineErrors(free, covariance, start_area[name], prior))
        shift = 1.0 + (model.doppler.rv.item() / SPEED_OF_LIGHT if name == "star" else 0.0)
        ranges[name] = (float(spectrum.wavelength[0]) / shift, float(spectrum.wavelength[-1]) / shift)
    message = solution.message
    if not spectrum.noise_known:
        message += (
            "; the data bring no uncertainty: all pixels weigh the same, errors are scaled by the residual scatter"
        )
    if not solution.success:
        warnings.warn(f"the fit did not converge: {message}", RuntimeWarning, stacklevel=3)
    with torch.no_grad():
        model.continuum.coefficients.mul_(scale)
    parameters, covariance = _parameters(problem, factor, scale, inflation)
    meta = {"settings": settings, "rv": model.doppler.rv.item() if model.doppler is not None else None}
    ledger = build_ledger(components, wavelength_range=ranges, orders=_order_name(frame.meta), meta=meta)
    return FitResult(
        model=model,
        data=spectrum,
        frame=frame,
        parameters=parameters,
        ledger=ledger,
        covariance=covariance,
        line_covariance={name: errors.covariance.numpy() for name, (_, errors) in components.items()},
        reduced_chi2=reduced if spectrum.noise_known else 1.0,
        noise_scale=math.sqrt(inflation),
        success=solution.success,
        message=message,
        history=solution.history,
        settings=settings,
    )


def _order_name(meta: dict) -> str:
    return str(meta.get("m", "")) if isinstance(meta.get("m", ""), (int, str)) else ""


def _parameters(problem: AnchoredProblem, factor: Factor, scale: float, inflation: float) -> tuple[QTable, np.ndarray]:
    """Table of the global parameters, and the covariance of the free ones in its order."""
    model, free = problem.free.model, problem.free
    border = {int(column): position for position, column in enumerate(factor.normal.border)}
    covariance = inflation * factor.border_covariance()
    rows, picked, per_value = [], [], []

    def add(
        name: str, tensor: Tensor, owner: str, unit: str, labels: list[str], slope=lambda v: 1.0, value=lambda v: v
    ):
        columns = free.global_slices.get(owner)
        for position, label in enumerate(labels):
            raw = float(tensor.detach().reshape(-1)[position])
            error, is_free = 0.0, columns is not None
            if is_free:
                at = border[columns.start + position]
                picked.append(at)
                per_value.append(slope(raw))
                error = math.sqrt(max(float(covariance[at, at]), 0.0))
                # (v sin i)² is what the data constrain: its error, carried over, stays finite at v sin i = 0.
                error = math.sqrt(raw**2 + error) - raw if name == "vsini" else abs(slope(raw)) * error
            rows.append((label, value(raw), error, unit, is_free))

    if model.doppler is not None:
        add("rv", model.doppler.rv, "rv", "km / s", ["rv"])
        add("vsini", model.rotation.vsini, "vsini", "km / s", ["vsini"], slope=lambda v: 0.5 / max(v, 1e-2))
        add("limb", model.rotation.limb_darkening, "limb_darkening", "", ["limb_darkening_u1", "limb_darkening_u2"])
    if model.line_spread is not None:
        add(
            "R", model.line_spread.ln_resolving_power[:1], "resolving_power", "", ["resolving_power"],
            slope=math.exp, value=math.exp,
        )  # fmt: skip
    coefficients = model.continuum.coefficients
    # The coefficients are already in the data's flux unit, their covariance in units of the median flux.
    add(
        "continuum", coefficients, "continuum", "flux", [f"continuum_{k}" for k in range(coefficients.numel())],
        slope=lambda v: scale,
    )  # fmt: skip
    for component in model.components:
        law = model.components[component].law
        if law.n_parameter:
            labels = [f"{component}_law_{k}" for k in range(law.n_parameter)]
            add("law", law.coefficients, f"{component}_law", "", labels)
    slope = torch.tensor(per_value, dtype=torch.float64)
    table = QTable(rows=rows, names=("name", "value", "error", "unit", "free"))
    return table, (covariance[picked][:, picked] * slope * slope.unsqueeze(1)).numpy()
