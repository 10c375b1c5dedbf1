"""Cloning: from a precomputed template spectrum to an optimised `LineEmulator`.

Continuum → line finding → first guess → optimisation of all lines together → what the residual still shows. Does not
live here: how lines are found (`line_finding`), units and masks (`spectrum`), the fit to real data (`fitting`).
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field

import astropy.units as u
import numpy as np
import torch
from astropy.modeling.models import BlackBody
from astropy.table import QTable
from specutils import Spectrum
from tqdm.auto import tqdm

from .clone_assessment import assess_clone
from .grids import SPEED_OF_LIGHT, Sampling
from .least_squares import minimize
from .ledger import build_ledger, held_errors
from .line_finding import find_lines, own_widths, share_out_areas
from .lines import LineEmulator
from .model import ForwardModel
from .numeric import is_number, is_whole
from .parameters import KINDS, FreeParameters
from .priors import LinePriors
from .problem import AnchoredProblem
from .quality import Quality
from .saturation import saturation_law
from .spectrum import read_spectrum, spectrum_on, to_resolving_power, to_teff

logger = logging.getLogger(__name__)

CLONE_PRIORS = LinePriors(ln_area=1.0, ln_sigma=0.7, ln_gamma=1.0, rv_offset=0.5)
"""Priors of cloning: wide, because detection knows less of a line than a template does."""

SIGNIFICANT = 1.5
"""Prominence of a line in the residual, in units of its root mean square, from which on it is taken for a line."""

BROADEST_GUESS = 2.0
"""Widest first guess for a line in the residual, in units of the median width of the lines that are there already."""

ROUND_ITERATIONS = 5
"""Iterations between two looks at the residual."""

BESIDE = 60.0 / SPEED_OF_LIGHT
"""How far beside its region a clone looks for the lines whose wings reach into it, relative to the wavelength."""

TARGET_SCATTER = 0.002
"""Residual, in units of the continuum, that counts as one sigma while cloning."""


class NoLinesError(ValueError):
    """A template has no line of the prominence asked for."""


@dataclass(eq=False)
class CloneResult:
    """A cloned template.

    Parameters
    ----------
    emulator : LineEmulator
        The lines.
    ledger : QTable
        One row a line.
    rms : float
        Root mean square of template minus clone, over all good pixels, continuum 1.
    history : list of dict
        Cost of each iteration.
    template : Spectrum
        What was cloned, divided by its continuum.
    model_spectrum : Spectrum
        The clone on the template's wavelengths.
    success, message : bool, str
        Whether and why the iteration ended well.
    settings : dict
        Everything that was asked for, and the template's provenance.
    quality : Quality, optional
        What speaks against the clone; see `clone_assessment`.
    """

    emulator: LineEmulator
    ledger: QTable
    rms: float
    history: list[dict[str, float]]
    template: Spectrum
    model_spectrum: Spectrum
    success: bool
    message: str
    settings: dict = field(default_factory=dict)
    quality: Quality | None = None

    def __repr__(self) -> str:
        lines = [f"CloneResult: {self.message}"]
        lines += [] if self.quality is None else [f"  {line}" for line in self.quality.lines()]
        low, high = self.emulator.wavelength_range
        return "\n".join([*lines, f"  {len(self.ledger)} lines, {low:.2f}-{high:.2f} Å, RMS {100 * self.rms:.3g} %"])

    def assessed(self, quality: Quality) -> CloneResult:
        """The clone with its quality, which its ledger tells too."""
        self.quality = quality
        quality.write_into(self.ledger)
        return self

    def plot(self, **options):
        """Template, clone and residual; see `specutils_blase.plotting.plot_clone`."""
        from .plotting import plot_clone

        return plot_clone(self, **options)

    def write(self, path, *, overwrite: bool = False, compression: str | None = None) -> None:
        """Write to an ASDF file, which `specutils_blase.read` reads; see `specutils_blase.asdf.files.write`."""
        from .asdf.files import write

        write(self, path, overwrite=overwrite, compression=compression)


def clone(
    template: Spectrum,
    *,
    prominence: float = 0.01,
    flux_scale="log",
    continuum: str | int = "none",
    teff=None,
    resolving_power=None,
    medium: str = "vacuum",
    region=None,
    free: tuple[str, ...] = KINDS,
    emission: bool = False,
    rms_target: float | None = None,
    max_iterations: int = 100,
    progress: bool = True,
) -> CloneResult:
    """Clone a template spectrum into tunable Voigt lines.

    Parameters
    ----------
    template : Spectrum
        Precomputed star or telluric transmission. Its uncertainty, if any, is not used.
    prominence : float
        Smallest prominence of a line, in units of the continuum.
    flux_scale : str or SaturationLaw
        "log" (default), "linear" or "minnaert"; see `specutils_blase.saturation`.
    continuum : "none" or int
        "none": the template is normalised already. A number: degree of the polynomial that is fitted to its upper
        envelope and divided out.
    teff : Quantity or float, optional
        Temperature [K] of a black body to divide out before the polynomial.
    resolving_power : float, optional
        Given, the template is itself at this finite resolution: it is cloned *through* that line spread and its
        pixels, so that the intrinsic lines come out. By default it is taken to be fully resolved.
    medium : "vacuum" or "air"
        What the template's wavelengths are.
    region : (Quantity, Quantity), optional
        Range of wavelengths (bare numbers: Å) to clone; everything by default. Lines just beside it, whose wings reach
        into it, are cloned too and have the flag edge in the ledger.
    free : tuple of str
        Line parameters to optimise, among "ln_area", "ln_sigma", "ln_gamma", "rv_offset".
    emission : bool
        Also look for emission lines.
    rms_target : float, optional
        Root mean square of the residual to reach, in units of the continuum. While it is larger, lines are looked for
        in the residual, where nothing less than `SIGNIFICANT` times its root mean square counts, and all are optimised
        again. ``settings["rounds"]`` of the result tells lines and RMS of every round.
    max_iterations : int
        Limit on iterations; with `rms_target`, over all rounds.
    progress : bool
        Show a progress bar.

    Returns
    -------
    CloneResult

    Raises
    ------
    ValueError
        For input that cannot be cloned; the message says what was expected.
    """
    unknown = set(free) - set(KINDS)
    if unknown:
        raise ValueError(f"free must be among {', '.join(KINDS)}; got {', '.join(sorted(unknown))}")
    if not (is_number(prominence) and 0.0 < prominence < 1.0):
        raise ValueError(f"prominence must lie between 0 and 1 (in units of the continuum), got {prominence!r}")
    resolving_power = None if resolving_power is None else to_resolving_power(resolving_power)
    data, frame = read_spectrum(template, medium=medium)
    if region is not None:
        low, high = sorted(
            value.to_value(u.AA, u.spectral()) if isinstance(value, u.Quantity) else value for value in region
        )
        inside = (data.wavelength >= low) & (data.wavelength <= high)
        if int(inside.sum()) < 16:
            first, last = float(data.wavelength[0]), float(data.wavelength[-1])
            raise ValueError(
                f"region {low:.2f}-{high:.2f} Å holds {int(inside.sum())} pixels of the template, which covers "
                f"{first:.2f}-{last:.2f} Å: give (low, high) in vacuum Å inside it"
            )
        wide = (data.wavelength >= low * (1.0 - BESIDE)) & (data.wavelength <= high * (1.0 + BESIDE))
        inside = inside[wide].numpy()
    else:
        wide, inside = slice(None), np.ones(len(data), dtype=bool)
    wavelength, flux, edges, good = (part[wide] for part in (data.wavelength, data.flux, data.edges, data.good))
    level = _continuum(wavelength.numpy(), flux.numpy(), good.numpy(), continuum, teff)
    normalised = np.where(good.numpy(), flux.numpy() / level, np.nan)
    covered = tuple(wavelength[inside][[0, -1]].tolist())
    law = saturation_law(flux_scale, covered)
    lines = find_lines(wavelength.numpy(), normalised, prominence, resolving_power=resolving_power)
    lines = own_widths(lines, law)
    sign = np.ones(len(lines["center"]))
    if emission:
        bright = find_lines(wavelength.numpy(), 2.0 - normalised, prominence, resolving_power=resolving_power)
        sign = np.concatenate([sign, -np.ones(len(bright["center"]))])
        lines = {name: np.concatenate([lines[name], bright[name]]) for name in lines}
    if not len(sign):
        raise NoLinesError(
            f"no line of prominence {prominence:g} in the template: lower prominence (the deepest feature is "
            f"{1.0 - np.nanmin(normalised):.2g} below the continuum), or check its continuum"
        )
    areas = share_out_areas(wavelength.numpy(), normalised, lines, sign, law)
    emulator = LineEmulator(
        lines["center"],
        areas,
        lines["sigma"],
        lines["gamma"],
        sign=sign,
        law=law,
        wavelength_range=covered,
    )
    if rms_target is not None and not (is_number(rms_target) and 0.0 < rms_target < 1.0):
        raise ValueError(f"rms_target must lie between 0 and 1 (in units of the continuum), got {rms_target!r}")
    start_area = emulator.ln_area.detach().clone()
    rounds, history = [], []
    while True:
        model = clone_model(emulator, wavelength, edges, resolving_power)
        n_left = max_iterations - len(history)
        if rms_target is not None:
            n_left = min(n_left, ROUND_ITERATIONS)
        solution = _optimise(model, normalised, good, free, max(0, n_left), progress)
        history += [e | {"iteration": len(history) + k} for k, e in enumerate(solution.history)]
        with torch.no_grad():
            clone_flux = model().numpy()
        rms = float(np.sqrt(np.nanmean((normalised - clone_flux)[inside] ** 2)))
        rounds.append({"lines": len(emulator), "rms": rms})
        logger.info("round %d: %d lines, RMS %.3f %%", len(rounds), len(emulator), 100 * rms)
        if rms_target is None or rms <= rms_target or len(history) >= max_iterations:
            break
        residual = 1.0 - (clone_flux - normalised)
        missing = find_lines(wavelength.numpy(), residual, SIGNIFICANT * rms, resolving_power=resolving_power)
        # A swell of the residual is no line: what starts no broader than lines are can still grow.
        broadest = BROADEST_GUESS * float((emulator.sigma.detach() + emulator.gamma.detach()).median()) / 2.0
        missing |= {name: np.minimum(missing[name], broadest) for name in ("sigma", "gamma")}
        missing = _worth_adding(missing, wavelength.numpy(), int(good.sum()) * (rms**2 - rms_target**2))
        if not len(missing["center"]):
            break
        # What a line must add to the opacity grows as the light that is left there falls.
        absorbed = 1.0 - (clone_flux - normalised) / np.maximum(clone_flux, 0.1)
        areas = share_out_areas(wavelength.numpy(), absorbed, missing, np.ones(len(missing["center"])), law)
        emulator, old, new = emulator.with_lines(missing["center"], areas, missing["sigma"], missing["gamma"])
        before, start_area = start_area, torch.empty(len(emulator), dtype=start_area.dtype)
        start_area[old], start_area[new] = before, torch.as_tensor(areas).log()
    success, message = solution.success, solution.message
    if rms_target is not None:
        success = rms <= rms_target
        message = f"RMS {100 * rms:.3f} % with {len(emulator)} lines after {len(rounds)} rounds: "
        message += "target reached" if success else f"the target of {100 * rms_target:g} % was not reached"
        if not success and len(history) < max_iterations:
            message += ", and the residual shows no more lines"
    settings = {
        "prominence": prominence,
        "flux_scale": law.name,
        "continuum": continuum,
        "teff": None if teff is None else to_teff(teff),
        "resolving_power": resolving_power,
        "medium": medium,
        "free": list(free),
        "rms_target": rms_target,
        "rounds": rounds,
        "template": str(template.meta.get("source", "")),
    }
    logger.info("cloned %d lines, RMS %.3f %%, %s", len(emulator), 100 * rms, message)
    result = CloneResult(
        emulator,
        clone_ledger(emulator, start_area, settings),
        rms,
        history,
        spectrum_on(wavelength[inside], normalised[inside], meta=dict(frame.meta)),
        spectrum_on(wavelength[inside], clone_flux[inside], meta={"source": "specutils_blase clone", **settings}),
        success,
        message,
        settings,
    )
    result.assessed(assess_clone(result)).quality.warn()
    return result


def clone_ledger(emulator: LineEmulator, start_area: torch.Tensor, settings: dict, component: str = "star") -> QTable:
    """Ledger of a clone, all of whose lines were free; `start_area` is ln area of each at its first guess."""
    ledger = build_ledger(
        {component: (emulator, held_errors(emulator))},
        wavelength_range={component: [emulator.wavelength_range]},
        meta={"settings": settings, "wavelength_range": list(emulator.wavelength_range)},
    )
    ledger["free"][:] = True
    ledger["unconstrained"][:] = False
    ledger["delta_ln_area"][:] = (emulator.ln_area.detach() - start_area).numpy()
    return ledger


def clone_model(emulator: LineEmulator, wavelength: torch.Tensor, edges: torch.Tensor, resolving_power) -> ForwardModel:
    """Model of a template on its own sampling; through line spread and pixels where it has a resolving power."""
    if resolving_power is None:
        return ForwardModel(Sampling(wavelength), star=emulator)
    return ForwardModel.for_order(
        wavelength, edges, telluric=emulator, resolving_power=resolving_power, continuum_degree=None
    )


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


def _continuum(wavelength, flux, good, continuum, teff) -> np.ndarray:
    """Continuum of a template: black body × polynomial through its upper envelope."""
    level = np.ones_like(wavelength)
    if teff is not None:
        level = BlackBody(to_teff(teff) * u.K, scale=1.0 * u.erg / (u.s * u.cm**2 * u.AA * u.sr))(
            wavelength * u.AA
        ).value
        level = level / np.median(level)
    if continuum == "none":
        top = float(np.quantile(flux[good] / level[good], 0.98))
        if not 0.5 < top < 2.0:
            raise ValueError(
                f'continuum="none" says that the template is normalised, but its upper envelope is at {top:.3g}: '
                "divide it out first, or give continuum=<polynomial degree>"
            )
        return level
    if not is_whole(continuum) or continuum < 0:
        raise ValueError(f'continuum must be "none" or a polynomial degree (0, 1, 2, ...), got {continuum!r}')
    x = np.interp(wavelength, [wavelength[0], wavelength[-1]], [-1.0, 1.0])
    ratio = flux / level
    use = good & (ratio > 0)
    # Medians and quantiles in bins first: the envelope then weighs wavelengths, not pixels, and deep lines drop out.
    for _ in range(12):
        basis = np.polynomial.legendre.legvander(x[use], continuum)
        coefficient = np.linalg.lstsq(basis, ratio[use], rcond=None)[0]
        fitted = np.polynomial.legendre.legval(x, coefficient)
        residual = ratio / fitted - 1.0
        scatter = 1.4826 * np.median(np.abs(residual[use & (residual > 0)])) if (use & (residual > 0)).any() else 0.0
        kept = good & (ratio > 0) & (residual > -max(scatter, 1e-3)) & (residual < 4.0 * max(scatter, 1e-3))
        if kept.sum() < 10 * (continuum + 1) or np.array_equal(kept, use):
            break
        use = kept
    if not (fitted > 0).all():
        raise ValueError(
            f"a polynomial of degree {continuum} through the template's envelope is not positive: lower it"
        )
    return level * fitted


def _optimise(model, normalised, good, free, max_iterations, progress):
    name = next(iter(model.components))
    parameters = ("star_law",) if name == "star" else ("telluric_law",)
    layout = FreeParameters(model, {name: tuple(free)}, {name: torch.arange(len(model.components[name]))}, parameters)
    flux = torch.as_tensor(np.where(np.isfinite(normalised), normalised, 0.0))
    weight = torch.where(good & torch.as_tensor(np.isfinite(normalised)), TARGET_SCATTER**-2, 0.0)
    problem = AnchoredProblem(layout, flux, weight, {name: CLONE_PRIORS})
    n_good = int((weight > 0).sum())
    with tqdm(total=max_iterations, desc="clone", unit="it", disable=not progress, leave=False, delay=2.0) as bar:

        def report(entry: dict[str, float]) -> None:
            bar.update()
            bar.set_postfix_str(f"RMS {100 * TARGET_SCATTER * math.sqrt(entry['cost'] / n_good):.3f} %")

        solution = minimize(problem, max_iterations=max_iterations, absolute_tolerance=3e-4 * n_good, callback=report)
    return solution
