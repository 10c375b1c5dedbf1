"""Fitting: from observed orders and clones to a `FitResult`, in five calls.

``FitOptions.of`` checks what is asked for. ``observe`` and ``templates_of`` read what a user holds. ``start`` finds
where to begin, ``solve`` minimises, ``assemble`` makes the result. Only `fit` warns and sets threads; `fit_observation`
is a pure function of data that can be sent to another process.

Does not live here: what an order brings along (`fitting.observation`), the physics (`model`), the solver
(`inference`), tables and errors (`fitting.assembly`).
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

from specutils import Spectrum
from tqdm.auto import tqdm

from ..inference.prior_mean import PriorMean, PriorMeans
from ..inference.priors import LinePriors
from ..model.component import Component
from ..model.instrument import LineSpread
from ..model.parameters import KINDS
from ..physics.parallel import side_by_side
from ..results.echelle_result import EchelleFitResult
from ..results.fit_result import FitResult
from . import stages
from .assembly import Fitted, assemble
from .inputs import Template, covered, templates_of
from .line_search.search import Searched, discover
from .observation import Observation, observe
from .options import FitOptions
from .start.begin import Started, start


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
    line_spread: LineSpread | None = None,
    components: Sequence[Component] = (),
    prior_means: Sequence[PriorMean] = (),
    noise=None,
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
        stand there, and follow from the lines (`specutils_blase.fitting.prior_means.telluric`). Lines without a
        species have that of their place (`specutils_blase.fitting.prior_means.telluric_species`).
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
    line_spread : LineSpread, optional
        The instrument's, as an instance that stands on no grid yet; a Gaussian of the resolving power by default.
    components : sequence of Component
        Further components, such as a companion with a velocity of its own, sky emission or fringes. What they can
        learn is fitted where `free` names it.
    prior_means : sequence of PriorMean
        What the prior means of lines depend on, besides the amounts of the tellurics and the strength of the star;
        ``settings["prior_means"]`` tells what was found.
    noise : Diagonal or sequence of Diagonal, optional
        Noise of the data in place of their uncertainties; for a list of orders one each.

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

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from specutils import Spectrum
    >>> import specutils_blase as sb
    >>> wavelength = np.arange(8680.0, 8700.0, 0.02) * u.AA
    >>> dip = 0.4 * np.exp(-0.5 * ((wavelength.value - 8688.0) / 0.1) ** 2)
    >>> template = Spectrum(flux=(1.0 - dip) * u.one, spectral_axis=wavelength)
    >>> star = sb.clone(template)
    >>> pixels = np.arange(8682.0, 8698.0, 0.06)
    >>> data = sb.simulate.simulate(pixels, star.emulator, rv=12.0, resolving_power=55_000, snr=100, seed=0)
    >>> held = {"vsini": 0.0, "resolving_power": 55_000, "free": ("rv", "continuum"), "continuum": 1}
    >>> fit = sb.fit(data, star, rv=10.0, **held, progress=False)
    >>> print(f"{fit.value('rv'):.0f} ± {fit.error('rv'):.1f} km/s")
    12 ± 0.2 km/s
    """
    further = [parameter.name for component in components for parameter in _parameters_of(component)]
    partly = [part for part in components if isinstance(part, Component) and part.free_lines is not None]
    options = FitOptions.of(
        free=free,
        star_lines=star_lines,
        telluric_lines=telluric_lines,
        star_priors=star_priors,
        telluric_priors=telluric_priors,
        rv=rv,
        vsini=vsini,
        velocity_step=velocity_step,
        continuum=continuum,
        missing_lines=missing_lines,
        line_spread=line_spread,
        prior_means=prior_means,
        with_star=star is not None,
        further=[*further, *(parameter.name for parameter in _parameters_of(line_spread))],
        further_lines={part.name: part.free_lines for part in partly},
        limb_darkening=limb_darkening,
        flux_scale=flux_scale,
        medium=medium,
        scale_tellurics=scale_tellurics,
        jitter=jitter,
        robust=robust,
        max_iterations=max_iterations,
        progress=progress,
    )
    if star is None and telluric is None and not components:
        raise ValueError("fit needs a star, a telluric component, or both: pass a clone or a template spectrum")
    observation = observe(
        data,
        resolving_power=resolving_power,
        medium=medium,
        barycentric_velocity=barycentric_velocity,
        n_parameter=continuum + 1 + len(options.free),
        noise=noise,
    )
    with side_by_side(len(observation.orders)):
        templates = templates_of(observation, star, telluric, components, options)
        result = fit_observation(observation, templates, options)
    _tell(result)
    return result


def fit_observation(observation: Observation, templates: Sequence[Template], options: FitOptions) -> FitResult:
    """Fit an observation: a pure function, whose arguments and result can be sent to another process.

    Parameters
    ----------
    observation : Observation
        From `observe`.
    templates : sequence of Template
        From `templates_of`; their lines are copied.
    options : FitOptions

    Returns
    -------
    FitResult or EchelleFitResult
        The latter for an observation that came as a list.

    Raises
    ------
    ValueError
        If the templates do not cover the data, no order looks like them, or nothing is free.
    """
    return assemble(solve(start(covered(observation, templates, options), templates, options)))


def solve(started: Started) -> Fitted:
    """Minimise; then, where it is asked for, look for missing lines and minimise again."""
    objective, options, means = started.objective, started.options, started.means
    with tqdm(desc="fit", unit="it", disable=not options.progress, leave=False, delay=2.0) as bar:

        def report(entry: dict[str, float]) -> None:
            bar.update()
            bar.set_postfix_str(f"{entry.get('order', '')} χ² {entry['cost']:.1f}".strip())

        limit, noise = options.max_iterations, started.noise
        names = [order.name for order in started.observation.orders]
        if len(names) > 1:
            solved = stages.solve_orders(objective, noise, names, limit, report, means)
        else:
            solved = stages.solve(objective, noise, limit, report, means=means)
        area = {name: solved.objective.prior_mean_of_ln_area(name) for name in objective.free.model.components}
        if options.missing_lines is None:
            return Fitted(started, *solved, noise, area, means, started.star)
        # Amounts of the tellurics stay as the fit before the search has found them.
        star = started.star
        of_star = None if star is None else PriorMeans(solved.objective.free, [star])
        before = Searched(*solved, noise, area, None, of_star)
        after = discover(before, options.missing_lines, limit, report)
    star = star if after.means is None else after.means.means[0]
    return Fitted(
        started, after.objective, after.solution, after.noise, after.start_area, after.means, star, after.found
    )


def _tell(result: FitResult) -> None:
    """What a user must not overlook, as warnings."""
    if result.orders is not None:
        for row in result.orders:
            if not row["fitted"]:
                text = f"order {row['index']} of the list is left out: {row['reason']}"
                warnings.warn(text, RuntimeWarning, stacklevel=3)
    if not result.success:
        warnings.warn(f"the fit did not converge: {result.message}", RuntimeWarning, stacklevel=3)
    result.quality.warn(but=("converged",))


def _parameters_of(stage) -> tuple:
    """What a component or a line spread can learn; of anything else nothing, which is told later."""
    return stage.global_parameters() if isinstance(stage, Component | LineSpread) else ()
