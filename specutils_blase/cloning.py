"""Cloning: from a precomputed template spectrum to an optimised `LineEmulator`.

Continuum → line finding → first guess → Levenberg-Marquardt on all lines together. Does not live here: units and masks
(`spectrum`), the fit to real data (`fitting`).
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
from scipy.signal import find_peaks, peak_widths
from specutils import Spectrum
from tqdm.auto import tqdm

from .grids import Sampling
from .least_squares import minimize
from .ledger import build_ledger, held_errors
from .lines import LineEmulator
from .model import ForwardModel
from .parameters import KINDS, FreeParameters
from .priors import LinePriors
from .problem import AnchoredProblem
from .profiles import voigt
from .saturation import saturation_law
from .spectrum import read_spectrum, spectrum_on, to_resolving_power, to_teff

logger = logging.getLogger(__name__)

PEAK_OF_EQUAL_WIDTHS = 0.2087
"""σ V(0) of a Voigt profile with σ = γ, whose full width at half maximum is 3.6 σ."""

CLONE_PRIORS = LinePriors(ln_area=1.0, ln_sigma=0.7, ln_gamma=1.0, rv_offset=0.5)
"""Priors of cloning: wide, because detection knows less of a line than a template does."""

TARGET_SCATTER = 0.002
"""Residual, in units of the continuum, that counts as one sigma while cloning."""


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

    def plot(self, **options):
        """Template, clone and residual; see `specutils_blase.plotting.plot_clone`."""
        from .plotting import plot_clone

        return plot_clone(self, **options)

    def write(self, path, *, overwrite: bool = False) -> None:
        """Write to an ASDF file, which `specutils_blase.read` reads."""
        from .asdf.files import write

        write(self, path, overwrite=overwrite)


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
        Range of wavelengths (bare numbers: Å) to clone; everything by default.
    free : tuple of str
        Line parameters to optimise, among "ln_area", "ln_sigma", "ln_gamma", "rv_offset".
    emission : bool
        Also look for emission lines.
    max_iterations : int
        Limit on iterations.
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
    if not (isinstance(prominence, (int, float)) and 0.0 < prominence < 1.0):
        raise ValueError(f"prominence must lie between 0 and 1 (in units of the continuum), got {prominence!r}")
    resolving_power = None if resolving_power is None else to_resolving_power(resolving_power)
    data, frame = read_spectrum(template, medium=medium)
    if region is not None:
        low, high = (value.to_value(u.AA, u.spectral()) if isinstance(value, u.Quantity) else value for value in region)
        inside = (data.wavelength >= low) & (data.wavelength <= high)
        if int(inside.sum()) < 16:
            first, last = float(data.wavelength[0]), float(data.wavelength[-1])
            raise ValueError(
                f"region {low:.2f}-{high:.2f} Å holds {int(inside.sum())} pixels of the template, which covers "
                f"{first:.2f}-{last:.2f} Å: give (low, high) in vacuum Å inside it"
            )
        keep = inside.nonzero().squeeze(-1)
        wavelength, flux = data.wavelength[keep], data.flux[keep]
        edges, good = data.edges[keep], data.good[keep]
    else:
        wavelength, flux, edges, good = data.wavelength, data.flux, data.edges, data.good
    level = _continuum(wavelength.numpy(), flux.numpy(), good.numpy(), continuum, teff)
    normalised = np.where(good.numpy(), flux.numpy() / level, np.nan)
    law = saturation_law(flux_scale, (float(wavelength[0]), float(wavelength[-1])))
    lines = find_lines(wavelength.numpy(), normalised, prominence, resolving_power=resolving_power)
    sign = np.ones(len(lines["center"]))
    if emission:
        bright = find_lines(wavelength.numpy(), 2.0 - normalised, prominence, resolving_power=resolving_power)
        sign = np.concatenate([sign, -np.ones(len(bright["center"]))])
        lines = {name: np.concatenate([lines[name], bright[name]]) for name in lines}
    if not len(sign):
        raise ValueError(
            f"no line of prominence {prominence:g} in the template: lower prominence (the deepest feature is "
            f"{1.0 - np.nanmin(normalised):.2g} below the continuum), or check its continuum"
        )
    areas = _share_out_areas(wavelength.numpy(), normalised, lines, sign, law)
    emulator = LineEmulator(
        lines["center"],
        areas,
        lines["sigma"],
        lines["gamma"],
        sign=sign,
        law=law,
        wavelength_range=(float(wavelength[0]), float(wavelength[-1])),
    )
    if resolving_power is None:
        model = ForwardModel(Sampling(wavelength), star=emulator)
    else:
        model = ForwardModel.for_order(
            wavelength, edges, telluric=emulator, resolving_power=resolving_power, continuum_degree=None
        )
    solution, problem = _optimise(model, normalised, good, free, max_iterations, progress)
    with torch.no_grad():
        clone_flux = model().numpy()
    rms = float(np.sqrt(np.nanmean((normalised - clone_flux) ** 2)))
    settings = {
        "prominence": prominence,
        "flux_scale": law.name,
        "continuum": continuum,
        "teff": None if teff is None else to_teff(teff),
        "resolving_power": resolving_power,
        "medium": medium,
        "free": list(free),
        "template": str(template.meta.get("source", "")),
    }
    logger.info("cloned %d lines, RMS %.3f %%, %s", len(emulator), 100 * rms, solution.message)
    name = next(iter(model.components))
    ledger = build_ledger(
        {"star": (emulator, held_errors(emulator))},
        wavelength_range={"star": emulator.wavelength_range},
        meta={"settings": settings, "wavelength_range": list(emulator.wavelength_range)},
    )
    ledger["free"][:] = True
    ledger["unconstrained"][:] = False
    ledger["delta_ln_area"][:] = _change(problem, solution.vector, name, len(emulator))
    return CloneResult(
        emulator,
        ledger,
        rms,
        solution.history,
        spectrum_on(wavelength, normalised, meta=dict(frame.meta)),
        spectrum_on(wavelength, clone_flux, meta={"source": "specutils_blase clone", **settings}),
        solution.success,
        solution.message,
        settings,
    )


def _change(problem: AnchoredProblem, vector: torch.Tensor, component: str, n_line: int) -> np.ndarray:
    kinds = problem.free.kinds[component]
    if "ln_area" not in kinds:
        return np.zeros(n_line)
    columns = problem.free.columns(component)[:, kinds.index("ln_area")]
    return (vector - problem.anchor)[columns].numpy()


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
    if not isinstance(continuum, int) or isinstance(continuum, bool) or continuum < 0:
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


def find_lines(wavelength, flux, prominence: float, *, resolving_power: float | None = None) -> dict[str, np.ndarray]:
    """Absorption lines by prominence, with first widths.

    Parameters
    ----------
    wavelength, flux : ndarray, (n,)
        Vacuum Å and normalised flux; NaN marks pixels without information.
    prominence : float
        Smallest prominence, in units of the continuum.
    resolving_power : float, optional
        Resolution of the template; its width is taken off in quadrature.

    Returns
    -------
    dict
        center, sigma, gamma [Å], depth: one value a line, in order of wavelength.
    """
    known = np.isfinite(flux)
    depth = 1.0 - np.interp(wavelength, wavelength[known], flux[known])
    peaks, found = find_peaks(depth, prominence=prominence)
    peaks, keep = peaks[known[peaks]], known[peaks]
    prominences = tuple(found[name][keep] for name in ("prominences", "left_bases", "right_bases"))
    _, _, left, right = peak_widths(depth, peaks, rel_height=0.5, prominence_data=prominences)
    pixel = np.arange(wavelength.size)
    fwhm = np.interp(right, pixel, wavelength) - np.interp(left, pixel, wavelength)
    fwhm = np.maximum(fwhm, np.gradient(wavelength)[peaks])
    # The vertex of the parabola through the three highest samples: a sixth of a pixel at worst, instead of half.
    before, at, after = depth[peaks - 1], depth[peaks], depth[np.minimum(peaks + 1, depth.size - 1)]
    bend = before - 2 * at + after
    shift = np.where(bend < 0, 0.5 * (before - after) / np.where(bend < 0, bend, -1.0), 0.0).clip(-0.5, 0.5)
    center = np.interp(peaks + shift, pixel, wavelength)
    if resolving_power is not None:
        spread = center / resolving_power
        fwhm = np.sqrt(np.maximum(fwhm**2 - spread**2, (0.35 * spread) ** 2))
    return {"center": center, "sigma": fwhm / 3.6, "gamma": fwhm / 3.6, "depth": at}


def _share_out_areas(wavelength, flux, lines, sign, law, n_iteration: int = 60) -> np.ndarray:
    """Areas at fixed centres and widths: τ is linear in them, so blends are shared out by non-negative least squares.

    Multiplicative updates (Lee & Seung 2001) on the opacity observed: always positive, only sparse sums. Lines of a
    template at finite resolution are shared out with their intrinsic widths, which is good enough for a first guess.
    """
    known = np.isfinite(flux)
    tau = law.line_depth(torch.as_tensor(1.0 - np.where(known, flux, 1.0)).clamp(min=0.0), torch.as_tensor(wavelength))
    area = lines["sigma"] * np.abs(lines["depth"]) / PEAK_OF_EQUAL_WIDTHS
    absorbing = sign > 0
    center, width = lines["center"], lines["sigma"]
    reach = 25.0 * width
    low, high = np.searchsorted(wavelength, center - reach), np.searchsorted(wavelength, center + reach)
    high = np.minimum(high, low + 20_000)
    count = np.where(absorbing, high - low, 0)
    line = np.repeat(np.arange(center.size), count)
    node = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count) + np.repeat(low, count)
    line, node = torch.as_tensor(line), torch.as_tensor(node)
    x = torch.as_tensor(wavelength)[node] - torch.as_tensor(center)[line]
    profile = voigt(x, torch.as_tensor(width)[line], torch.as_tensor(width)[line])
    spacing = torch.as_tensor(np.gradient(wavelength) * known)[node]
    target = torch.zeros(center.size, dtype=torch.float64).index_add(0, line, profile * spacing * tau[node])
    area = torch.as_tensor(area)
    for _ in range(n_iteration):
        model = torch.zeros(wavelength.size, dtype=torch.float64).index_add(0, node, profile * area[line])
        overlap = torch.zeros_like(target).index_add(0, line, profile * spacing * model[node])
        area = area * torch.where(overlap > 0, target / overlap, torch.ones_like(area)).clamp(0.1, 10.0)
    # The sum above is of opacities; an area is one of depths, alike at the peak.
    height = PEAK_OF_EQUAL_WIDTHS / torch.as_tensor(width)
    area = law.depth_of(area * height) / height
    smallest = 1e-4 * torch.as_tensor(width)
    return torch.maximum(area, smallest).detach().numpy()


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
    return solution, problem
