"""Rounds of cloning: optimisation of all lines together, and addition of the lines that the residual shows.

Does not live here: the template and the result (`clone`), line finding (`line_finding`), the solver
(`inference.minimize`).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from tqdm.auto import tqdm

from ..inference.minimize import Solution, minimize
from ..inference.objective import Objective
from ..inference.priors import LinePriors
from ..model.emulator import LineEmulator
from ..model.order import ForwardModel
from ..model.parameters import FreeParameters
from ..physics.grids import Sampling
from ..physics.scatter import difference_scatter
from ..physics.voigt import voigt_fwhm
from .line_finding import find_lines, share_out_areas

logger = logging.getLogger(__name__)

CLONE_PRIORS = LinePriors(ln_area=1.0, ln_sigma=0.7, ln_gamma=1.0, rv_offset=0.5)
"""Priors of cloning: wide, since detection determines a line less well than a template does."""

LEAST_PROMINENCE = 1.5
"""Least prominence of a line in the residual, in units of the residual's root mean square."""

BROADEST_FIRST_WIDTH = 2.0
"""Widest first guess for a line in the residual, in units of the median width of the present lines."""

ROUND_ITERATIONS = 5
"""Iterations of a round, after which the residual is searched for lines."""

RESIDUAL_SIGMA = 0.002
"""Noise of a template's pixel in the cost of a clone, in units of the continuum."""

DEFAULT_RMS_TARGET = 0.003
"""Default target of the residual's root mean square, in units of the continuum."""

NOISE_REACHED = 1.05
"""Residual in units of the template's noise below which no line can improve it."""

NOISE_PROMINENCE = 8.0
"""Prominence in units of the noise that noise does not reach in a million pixels: 4 σ on either side."""

LEAST_ROUND_GAIN = 0.1
"""Relative decrease of the residual by a round, below which the round is poor."""

MOST_POOR_ROUNDS = 2
"""Poor rounds in a row after which cloning ends."""

GAIN_ITERATIONS, LEAST_COST_GAIN = 10, 0.02
"""Iterations, and the relative decrease of the cost below which they end the fit: 1 % of the residual."""

N_WORST, WORST_DISTANCE = 5, 10.0
"""Number of the worst resolution elements in the settings, and their least distance in such elements."""


@dataclass
class Template:
    """Pixels to clone.

    Parameters
    ----------
    wavelength, edges : Tensor, (n,), (n, 2)
        Vacuum Å.
    flux : ndarray, (n,)
        Continuum 1; NaN where a pixel does not count.
    inside : ndarray of bool, (n,)
        Pixels of the region: the RMS is that of these.
    resolving_power : float or None
        Resolving power of the template; None if it is fully resolved.
    """

    wavelength: Tensor
    edges: Tensor
    flux: np.ndarray
    inside: np.ndarray
    resolving_power: float | None

    def noise_in(self, values: np.ndarray) -> float:
        """White noise of values on the template's pixels, where these count; zero if too few do."""
        noise = difference_scatter(torch.as_tensor(values[np.isfinite(values)]), order=6)
        return 0.0 if math.isnan(noise) else noise


@dataclass
class Progress:
    """Lines, their clone, and the rounds that led to them.

    `rounds` has lines, RMS, noise and iterations of each round; `noise` is the white noise in the residual; `ended`
    says why there was no further round.
    """

    emulator: LineEmulator
    start_area: Tensor
    flux: np.ndarray
    rms: float
    noise: float
    success: bool
    message: str
    rounds: list[dict] = field(default_factory=list)
    history: list[dict] = field(default_factory=list)
    ended: str = ""


def clone_in_rounds(
    template: Template,
    emulator: LineEmulator,
    *,
    rms_target: float | None,
    free: tuple[str, ...],
    max_iterations: int,
    progress: bool,
) -> Progress:
    """Optimise the lines and add those of the residual, until the target is met or nothing improves.

    The default target is `DEFAULT_RMS_TARGET`, or the noise of the template where that is larger. The best round is
    the result.
    """
    start_area = emulator.ln_area.detach().clone()
    limit = template.noise_in(template.flux)
    rounds: list[dict] = []
    history: list[dict] = []
    best, n_left, poor = None, max_iterations, 0
    while True:
        solution, flux, rms = _optimised(template, emulator, free, min(ROUND_ITERATIONS, max(0, n_left)), progress)
        n_left -= len(solution.history) - 1
        history += [entry | {"iteration": len(history) + k} for k, entry in enumerate(solution.history)]
        # Undersampled lines look like noise until they are cloned.
        noise = min(limit, template.noise_in(template.flux - flux))
        target = max(DEFAULT_RMS_TARGET, NOISE_REACHED * noise) if rms_target is None else rms_target
        rounds.append({"lines": len(emulator), "rms": rms, "noise": noise, "iterations": len(solution.history) - 1})
        logger.info("round %d: %d lines, RMS %.3f %%", len(rounds), len(emulator), 100 * rms)
        before = math.inf if best is None else _beyond(best.rms, best.noise)
        if best is None or rms < best.rms:
            best = Progress(emulator, start_area, flux, rms, noise, rms <= target, "")
        poor = poor + 1 if _beyond(rms, noise) > (1.0 - LEAST_ROUND_GAIN) * before else 0
        ended = _ended(rms, noise, target, rms_target, poor, n_left)
        if not ended:
            missing = _missing(template, emulator, flux, rms, noise, target)
            if not len(missing["center"]):
                ended = "the residual shows no more lines"
        if ended:
            break
        emulator, start_area = _grown(template, emulator, start_area, flux, missing)
    best.rounds, best.history = rounds, history
    best.ended = f"{ended} after {len(rounds)} round{'s' if len(rounds) > 1 else ''}"
    reached = f"RMS {100 * best.rms:.3f} % with {len(best.emulator)} lines, the target is {100 * target:.3g} %"
    best.message = "converged" if best.success else f"not converged: {best.ended}; {reached}"
    return best


def clone_at_once(
    template: Template, emulator: LineEmulator, *, free: tuple[str, ...], max_iterations: int, progress: bool
) -> Progress:
    """Optimise the lines until they converge, or iterations improve nothing; none is added."""
    start_area = emulator.ln_area.detach().clone()
    solution, flux, rms = _optimised(template, emulator, free, max_iterations, progress)
    noise = min(template.noise_in(template.flux), template.noise_in(template.flux - flux))
    message = solution.message
    if not solution.success:
        message += f"; RMS {100 * rms:.3f} % with {len(emulator)} lines"
    rounds = [{"lines": len(emulator), "rms": rms, "noise": noise, "iterations": len(solution.history) - 1}]
    return Progress(emulator, start_area, flux, rms, noise, solution.success, message, rounds, list(solution.history))


def clone_model(emulator: LineEmulator, wavelength: Tensor, edges: Tensor, resolving_power) -> ForwardModel:
    """Model of a template on its own sampling; through line spread and pixels where it has a resolving power."""
    if resolving_power is None:
        return ForwardModel(Sampling(wavelength), star=emulator)
    return ForwardModel.for_order(
        wavelength, edges, telluric=emulator, resolving_power=resolving_power, continuum_degree=None
    )


def worst_places(template: Template, emulator: LineEmulator, flux: np.ndarray) -> list[dict[str, float]]:
    """The resolution elements of the largest mean residuals, no two within `WORST_DISTANCE` of each other.

    Returns
    -------
    list of dict
        wavelength [vacuum Å], residual: template minus clone, continuum 1, over an element; largest first. An element
        of a resolved template is the median full width of its lines.
    """
    wavelength = template.wavelength.numpy()
    counted = np.isfinite(template.flux) & template.inside
    center, residual = wavelength[counted], (template.flux - flux)[counted]
    if template.resolving_power is None:
        width = float(voigt_fwhm(emulator.sigma.detach().double(), emulator.gamma.detach().double()).median())
    else:
        width = float(np.median(center)) / template.resolving_power
    sums = np.concatenate([[0.0], np.cumsum(residual)])
    low = np.searchsorted(center, center - 0.5 * width)
    high = np.searchsorted(center, center + 0.5 * width, side="right")
    mean = (sums[high] - sums[low]) / (high - low)
    size, elements = np.abs(mean), []
    for _ in range(min(N_WORST, center.size)):
        worst = int(size.argmax())
        if size[worst] < 0.0:
            break
        elements.append({"wavelength": float(center[worst]), "residual": float(mean[worst])})
        size[np.abs(center - center[worst]) < WORST_DISTANCE * width] = -1.0
    return elements


def _beyond(rms: float, noise: float) -> float:
    """Root mean square of a residual beyond its noise."""
    return math.sqrt(max(rms**2 - noise**2, 0.0))


def _ended(rms: float, noise: float, target: float, asked: float | None, poor: int, n_left: int) -> str:
    """Why the rounds end here, or nothing if they go on."""
    if rms <= target:
        at_noise = asked is None and rms > DEFAULT_RMS_TARGET
        return f"the noise of the template, {100 * noise:.3g} %, reached" if at_noise else "target reached"
    if rms <= NOISE_REACHED * noise:
        return f"what is left is the noise of the template, {100 * noise:.3g} %"
    if poor >= MOST_POOR_ROUNDS:
        return f"the last {MOST_POOR_ROUNDS} rounds took less than {100 * LEAST_ROUND_GAIN:.0f} % off the residual"
    return "the limit on iterations was reached" if n_left <= 0 else ""


def _missing(
    template: Template, emulator: LineEmulator, flux: np.ndarray, rms: float, noise: float, target: float
) -> dict[str, np.ndarray]:
    """Significant lines of the residual, as few as the target needs."""
    wavelength = template.wavelength.numpy()
    residual = 1.0 - (flux - template.flux)
    width = float((emulator.sigma.detach() + emulator.gamma.detach()).median())
    needed = LEAST_PROMINENCE * _beyond(rms, noise)
    if NOISE_PROMINENCE * noise > needed:
        # Lines are wider than a pixel: through a filter of their shape they stand out of the noise.
        pixel = float(np.median(np.diff(wavelength)))
        reach = max(width / 2.0 / pixel, 0.5)
        finite = np.isfinite(residual)
        residual = np.where(finite, gaussian_filter1d(np.where(finite, residual, 1.0), reach), np.nan)
        needed = max(
            needed,
            NOISE_PROMINENCE * template.noise_in(template.flux - flux) / math.sqrt(2.0 * math.sqrt(math.pi) * reach),
        )
    missing = find_lines(wavelength, residual, needed, resolving_power=template.resolving_power)
    # Broad swells of the residual are no lines. A line that starts narrower can still grow.
    missing |= {name: np.minimum(missing[name], BROADEST_FIRST_WIDTH * width / 2.0) for name in ("sigma", "gamma")}
    n_good = int(np.isfinite(template.flux).sum())
    return _worth_adding(missing, wavelength, n_good * (rms**2 - target**2))


def _worth_adding(lines: dict[str, np.ndarray], wavelength: np.ndarray, excess: float) -> dict[str, np.ndarray]:
    """The fewest lines, largest first, that can take `excess` off the residual's sum of squares, and half as many more.

    A line of depth d and full width w takes about 0.75 d² w: that of its own dip.
    """
    width = 3.6 * lines["sigma"] / np.interp(lines["center"], wavelength, np.gradient(wavelength))
    energy = 0.75 * lines["depth"] ** 2 * width
    largest = np.argsort(energy)[::-1]
    enough = np.searchsorted(np.cumsum(energy[largest]), excess) + 1
    keep = np.sort(largest[: int(1.5 * enough)])
    return {name: values[keep] for name, values in lines.items()}


def _grown(
    template: Template, emulator: LineEmulator, start_area: Tensor, flux: np.ndarray, missing: dict[str, np.ndarray]
) -> tuple[LineEmulator, Tensor]:
    """The lines together with the missing ones; ln area of each at its own first guess."""
    # What a line must add to the opacity grows as the light that is left there falls.
    absorbed = 1.0 - (flux - template.flux) / np.maximum(flux, 0.1)
    sign = np.ones(len(missing["center"]))
    areas = share_out_areas(template.wavelength.numpy(), absorbed, missing, sign, emulator.law)
    grown, old, new = emulator.with_lines(missing["center"], areas, missing["sigma"], missing["gamma"])
    first = torch.empty(len(grown), dtype=start_area.dtype)
    first[old], first[new] = start_area, torch.as_tensor(areas).log()
    return grown, first


def _optimised(
    template: Template, emulator: LineEmulator, free: tuple[str, ...], max_iterations: int, progress: bool
) -> tuple[Solution, np.ndarray, float]:
    """Solution with all lines optimised together, the clone's flux, and the RMS of the residual."""
    model = clone_model(emulator, template.wavelength, template.edges, template.resolving_power)
    (name,) = model.components
    lines = {name: torch.arange(len(emulator))}
    layout = FreeParameters(model, {name: tuple(free)}, lines, (f"{name}_law",))
    counted = np.isfinite(template.flux)
    flux = torch.as_tensor(np.where(counted, template.flux, 0.0))
    weight = torch.where(torch.as_tensor(counted), RESIDUAL_SIGMA**-2, 0.0)
    objective = Objective(layout, flux, weight, {name: CLONE_PRIORS})
    n_good = int(counted.sum())
    with tqdm(total=max_iterations, desc="clone", unit="it", disable=not progress, leave=False, delay=2.0) as bar:

        def report(entry: dict[str, float]) -> None:
            bar.update()
            bar.set_postfix_str(f"RMS {100 * RESIDUAL_SIGMA * math.sqrt(entry['cost'] / n_good):.3f} %")

        solution = minimize(
            objective,
            max_iterations=max_iterations,
            absolute_tolerance=3e-4 * n_good,
            least_gain=(GAIN_ITERATIONS, LEAST_COST_GAIN),
            callback=report,
        )
    with torch.no_grad():
        model_flux = model().numpy()
    rms = float(np.sqrt(np.nanmean((template.flux - model_flux)[template.inside] ** 2)))
    return solution, model_flux, rms
