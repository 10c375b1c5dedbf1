"""Cloning: from a precomputed template spectrum to an optimised `LineEmulator`.

Continuum → line finding → first guess → rounds. Does not live here: gaps and continuum of a template (`continuum`),
line finding (`line_finding`), optimisation (`refinement`), units and masks (`spectra.reading`), the fit to data
(`fitting`).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import Any

import astropy.units as u
import numpy as np
from astropy.table import QTable
from specutils import Spectrum
from torch import Tensor

from ..ledger.table import build_ledger, held_errors
from ..model.emulator import LineEmulator
from ..model.parameters import KINDS
from ..physics.grids import SPEED_OF_LIGHT
from ..physics.saturation import saturation_law
from ..quality.clones import assess_clone
from ..quality.report import Quality
from ..spectra.data import SpectralData
from ..spectra.frame import spectrum_of_state, spectrum_on, spectrum_state
from ..spectra.quantities import is_number, to_resolving_power, to_teff
from ..spectra.reading import read_spectrum
from ..spectra.registry import writer
from .continuum import gaps, template_continuum
from .line_finding import find_lines, own_widths, share_out_areas
from .refinement import (
    CLONE_PRIORS,
    LEAST_PROMINENCE,
    NOISE_PROMINENCE,
    Progress,
    Template,
    clone_at_once,
    clone_in_rounds,
    clone_model,
    worst_places,
)

__all__ = [
    "CLONE_PRIORS",
    "LEAST_PROMINENCE",
    "CloneResult",
    "NoLinesError",
    "clone",
    "clone_ledger",
    "clone_model",
    "find_lines",
]

logger = logging.getLogger(__name__)

REGION_MARGIN = 60.0 / SPEED_OF_LIGHT
"""Margin on either side of a region, Δλ/λ (60 km/s), whose lines are cloned because their wings reach into it."""


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
        Iteration, cost and damping of each iteration.
    template : Spectrum
        The template, divided by its continuum.
    model_spectrum : Spectrum
        The clone on the template's wavelengths.
    success, message : bool, str
        Whether and why the iteration ended well.
    settings : dict
        All options of `clone`, and the template's provenance.
    quality : Quality, optional
        Assessment of the clone; see `quality.clones`.
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

    def __getstate__(self) -> dict:
        spectra = {name: spectrum_state(getattr(self, name)) for name in ("template", "model_spectrum")}
        return self.__dict__ | spectra

    def __setstate__(self, state: dict) -> None:
        spectra = {name: spectrum_of_state(state[name]) for name in ("template", "model_spectrum")}
        self.__dict__.update(state | spectra)

    def __repr__(self) -> str:
        lines = [f"CloneResult: {self.message}"]
        lines += [] if self.quality is None else [f"  {line}" for line in self.quality.lines()]
        low, high = self.emulator.wavelength_range
        ended = f", {self.settings['ended']}" if self.settings.get("ended") else ""
        summary = f"  {len(self.ledger)} lines, {low:.2f}-{high:.2f} Å, RMS {100 * self.rms:.3g} %{ended}"
        return "\n".join([*lines, summary])

    def assessed(self, quality: Quality) -> CloneResult:
        """The clone with its quality, which is also written to its ledger.

        Parameters
        ----------
        quality : Quality

        Returns
        -------
        CloneResult
            The same object.
        """
        self.quality = quality
        quality.write_into(self.ledger)
        return self

    def plot(self, **options):
        """Template, clone and residual; see `specutils_blase.plotting.order.plot_clone`.

        Parameters
        ----------
        **options
            Those of that function.

        Returns
        -------
        Figure
        """
        from ..plotting.order import plot_clone

        return plot_clone(self, **options)

    def write(self, path, *, overwrite: bool = False, compression: str | None = None) -> None:
        """Write to an ASDF file, which `specutils_blase.read` reads; see `specutils_blase.asdf.files.write`.

        Parameters
        ----------
        path : path-like
            By custom it ends in ``.asdf``.
        overwrite : bool
            Replace a file that is there already.
        compression : {None, "zlib", "bzp2", "lz4"}
            Compression of arrays.

        Raises
        ------
        FileExistsError, OSError, ValueError
            As `specutils_blase.asdf.files.write`.
        """
        writer()(self, path, overwrite=overwrite, compression=compression)


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
    in_rounds: bool = True,
    rms_target: float | None = None,
    max_iterations: int = 100,
    progress: bool = True,
) -> CloneResult:
    """Clone a template spectrum into tunable Voigt lines.

    Runs of zeros, or of one value near zero, to which the flux steps down are gaps, not black lines: see
    ``settings["gaps"]``. Noise of the template is measured, and no line is added for it.

    Parameters
    ----------
    template : Spectrum
        Precomputed star or telluric transmission. Its uncertainty, if any, is not used.
    prominence : float
        Smallest prominence of a line, in units of the continuum.
    flux_scale : str or SaturationLaw
        "log" (default), "linear" or "minnaert"; see `specutils_blase.physics.saturation`.
    continuum : "none" or int
        "none": the template is normalised already. A number: degree of the polynomial that is fitted to its upper
        envelope and divided out.
    teff : Quantity or float, optional
        Temperature [K] of a black body to divide out before the polynomial.
    resolving_power : float, optional
        Resolving power of the template. Its intrinsic lines are then cloned *through* that line spread and its pixels.
        By default the template is fully resolved.
    medium : "vacuum" or "air"
        Medium of the template's wavelengths.
    region : (Quantity, Quantity), optional
        Range of wavelengths (bare numbers: vacuum Å) to clone; everything by default. Lines within 60 km/s of it,
        whose wings reach into it, are cloned too and have the flag edge in the ledger.
    free : tuple of str
        Line parameters to optimise, among "ln_area", "ln_sigma", "ln_gamma", "rv_offset".
    emission : bool
        Also look for emission lines.
    in_rounds : bool
        Every few iterations, add the significant lines of the residual and optimise all lines again, until the residual
        reaches its target or improves no more. A line is significant if its prominence exceeds that of the residual's
        root mean square and of the template's noise. False: optimise only the lines found at first.
    rms_target : float, optional
        Root mean square of the residual to reach, in units of the continuum. By default 0.003, or the noise of the
        template where that is more.
    max_iterations : int
        Limit on iterations, over all rounds.
    progress : bool
        Show a progress bar.

    Returns
    -------
    CloneResult
        Its `settings` have "rounds" (lines, RMS, noise, iterations of each), "ended" (why there were no more), "noise"
        of the template, "worst" (wavelength [Å] and residual of the worst resolution elements) and "gaps" ((low, high)
        [Å] of pixels without data).

    Warns
    -----
    BlaseQualityWarning
        Where the clone does not reach its target, or does not converge.

    Raises
    ------
    ValueError
        For options out of range, or a template that cannot be cloned; the message says what was expected. A template
        without lines raises `NoLinesError`, one of them.

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
    >>> star.ledger["center"].round(2), star.rms < 0.003
    (<Quantity [8688.] Angstrom>, True)
    """
    options = CloneOptions.of(
        prominence=prominence,
        flux_scale=flux_scale,
        continuum=continuum,
        teff=teff,
        resolving_power=resolving_power,
        medium=medium,
        region=region,
        free=tuple(free),
        emission=emission,
        in_rounds=in_rounds,
        rms_target=rms_target,
        max_iterations=max_iterations,
        progress=progress,
    )
    result = clone_template(observe(template, options), options)
    if result.quality is not None:
        result.quality.warn()
    return result


@dataclass(frozen=True)
class CloneOptions:
    """What a clone is asked for; `CloneOptions.of` checks it. The fields are the arguments of `clone`."""

    prominence: float = 0.01
    flux_scale: object = "log"
    continuum: str | int = "none"
    teff: object = None
    resolving_power: float | None = None
    medium: str = "vacuum"
    region: object = None
    free: tuple[str, ...] = KINDS
    emission: bool = False
    in_rounds: bool = True
    rms_target: float | None = None
    max_iterations: int = 100
    progress: bool = False

    @classmethod
    def of(cls, *, resolving_power, **given) -> CloneOptions:
        """From the arguments of `clone`.

        Raises
        ------
        ValueError
            For options that are out of range or contradict each other.
        """
        power = None if resolving_power is None else to_resolving_power(resolving_power)
        options = cls(resolving_power=power, **given)
        prominence, target = options.prominence, options.rms_target
        unknown = set(options.free) - set(KINDS)
        if unknown:
            raise ValueError(f"free must be among {', '.join(KINDS)}; got {', '.join(sorted(unknown))}")
        if not (is_number(prominence) and 0.0 < prominence < 1.0):
            raise ValueError(f"prominence must lie between 0 and 1 (in units of the continuum), got {prominence!r}")
        if target is not None and not (is_number(target) and 0.0 < target < 1.0):
            raise ValueError(f"rms_target must lie between 0 and 1 (in units of the continuum), got {target!r}")
        if target is not None and not options.in_rounds:
            raise ValueError("rms_target is reached in rounds only: leave it out, or in_rounds=False")
        return options


@dataclass(frozen=True, eq=False)
class ReadTemplate:
    """A template as it is cloned.

    Parameters
    ----------
    pixels : Template
        Divided by their continuum.
    gaps : list of [float, float]
        Ranges [vacuum Å] of pixels without data.
    meta : dict
        Of the template.
    source : str
        What the template calls itself.
    """

    pixels: Template
    gaps: list[list[float]]
    meta: dict
    source: str


def observe(template: Spectrum, options: CloneOptions) -> ReadTemplate:
    """The pixels of a template that are cloned."""
    data, frame = read_spectrum(template, medium=options.medium)
    pixels, gap_ranges = _template_pixels(data, options)
    return ReadTemplate(pixels, gap_ranges, dict(frame.meta), str(template.meta.get("source", "")))


def clone_template(read: ReadTemplate, options: CloneOptions) -> CloneResult:
    """Clone a template: a pure function of data; see `clone`."""
    return assemble(read, solve(read.pixels, start(read.pixels, options), options), options)


def start(pixels: Template, options: CloneOptions) -> LineEmulator:
    """Lines of the template, with first guesses."""
    noise = pixels.noise_in(pixels.flux)
    least = max(options.prominence, NOISE_PROMINENCE * noise) if options.in_rounds else options.prominence
    return _first_lines(pixels, least, noise, options.flux_scale, options.emission)


def solve(pixels: Template, emulator: LineEmulator, options: CloneOptions) -> Progress:
    """The lines optimised, with those that the residual shows."""
    given: dict[str, Any] = {
        "free": options.free,
        "max_iterations": options.max_iterations,
        "progress": options.progress,
    }
    if options.in_rounds:
        return clone_in_rounds(pixels, emulator, rms_target=options.rms_target, **given)
    return clone_at_once(pixels, emulator, **given)


def assemble(read: ReadTemplate, done: Progress, options: CloneOptions) -> CloneResult:
    """The result with its ledger, its spectra and its quality."""
    pixels = read.pixels
    settings = {
        "prominence": options.prominence,
        "flux_scale": done.emulator.law.name,
        "continuum": options.continuum,
        "teff": None if options.teff is None else to_teff(options.teff),
        "resolving_power": options.resolving_power,
        "medium": options.medium,
        "free": list(options.free),
        "in_rounds": options.in_rounds,
        "rms_target": options.rms_target,
        "rounds": done.rounds,
        "ended": done.ended,
        "noise": done.noise,
        "worst": worst_places(pixels, done.emulator, done.flux),
        "gaps": read.gaps,
        "template": read.source,
    }
    logger.info("cloned %d lines, RMS %.3f %%, %s", len(done.emulator), 100 * done.rms, done.message)
    wavelength = pixels.wavelength[pixels.inside]
    result = CloneResult(
        done.emulator,
        clone_ledger(done.emulator, done.start_area, settings),
        done.rms,
        done.history,
        spectrum_on(wavelength, pixels.flux[pixels.inside], meta=dict(read.meta)),
        spectrum_on(wavelength, done.flux[pixels.inside], meta={"source": "specutils_blase clone", **settings}),
        done.success,
        done.message,
        settings,
    )
    return result.assessed(assess_clone(result))


def _template_pixels(data: SpectralData, options: CloneOptions) -> tuple[Template, list[list[float]]]:
    """The pixels to clone, divided by their continuum, and the gaps among them as [low, high] in vacuum Å."""
    selected, inside = _select_region(data.wavelength, options.region)
    edges = data.edges[selected]
    wavelength, flux, good = (part[selected].numpy() for part in (data.wavelength, data.flux, data.good))
    pixel_runs = gaps(flux, good)
    for first, after in pixel_runs:
        good[first:after] = False
    if not good[inside].any():
        low, high = wavelength[inside][0], wavelength[inside][-1]
        raise ValueError(f"the template has no flux in {low:.2f}-{high:.2f} Å, only gaps: give another region")
    level = template_continuum(wavelength, flux, good, options.continuum, options.teff)
    normalised = np.where(good, flux / level, np.nan)
    gap_ranges = [[float(edges[first, 0]), float(edges[after - 1, 1])] for first, after in pixel_runs]
    return Template(data.wavelength[selected], edges, normalised, inside, options.resolving_power), gap_ranges


def _select_region(wavelength: Tensor, region) -> tuple[Tensor | slice, np.ndarray]:
    """Pixels of the region and its margin, and which of these lie in the region itself."""
    if region is None:
        return slice(None), np.ones(len(wavelength), dtype=bool)
    low, high = sorted(
        value.to_value(u.AA, u.spectral()) if isinstance(value, u.Quantity) else value for value in region
    )
    inside = (wavelength >= low) & (wavelength <= high)
    if int(inside.sum()) < 16:
        first, last = float(wavelength[0]), float(wavelength[-1])
        raise ValueError(
            f"region {low:.2f}-{high:.2f} Å holds {int(inside.sum())} pixels of the template, which covers "
            f"{first:.2f}-{last:.2f} Å: give (low, high) in vacuum Å inside it"
        )
    selected = (wavelength >= low * (1.0 - REGION_MARGIN)) & (wavelength <= high * (1.0 + REGION_MARGIN))
    return selected, inside[selected].numpy()


def _first_lines(template: Template, least: float, noise: float, flux_scale, emission: bool) -> LineEmulator:
    """Emulator of the lines of prominence `least` in the template, with first guesses of widths and areas.

    Raises
    ------
    NoLinesError
        If there is none; the message tells the deepest feature and the noise.
    """
    wavelength, flux = template.wavelength.numpy(), template.flux
    covered = tuple(wavelength[template.inside][[0, -1]].tolist())
    law = saturation_law(flux_scale, covered)
    lines = own_widths(find_lines(wavelength, flux, least, resolving_power=template.resolving_power), law)
    sign = np.ones(len(lines["center"]))
    if emission:
        bright = find_lines(wavelength, 2.0 - flux, least, resolving_power=template.resolving_power)
        sign = np.concatenate([sign, -np.ones(len(bright["center"]))])
        lines = {name: np.concatenate([lines[name], bright[name]]) for name in lines}
    if not len(sign):
        raise NoLinesError(
            f"no line of prominence {least:.3g} in the template: lower prominence (the deepest feature is "
            f"{1.0 - np.nanmin(flux):.2g} below the continuum, the noise {noise:.2g}), or check its continuum"
        )
    areas = share_out_areas(wavelength, flux, lines, sign, law)
    return LineEmulator(
        lines["center"], areas, lines["sigma"], lines["gamma"], sign=sign, law=law, wavelength_range=covered
    )


def clone_ledger(emulator: LineEmulator, start_area: Tensor, settings: dict, component: str = "star") -> QTable:
    """Ledger of a clone, all of whose lines were free.

    Parameters
    ----------
    emulator : LineEmulator
    start_area : Tensor, (n_line,)
        ln area [ln Å] of each line at its first guess.
    settings : dict
        Kept in the ledger's meta.
    component : str
        "star" or "telluric".

    Returns
    -------
    QTable
        One row a line; see `specutils_blase.ledger.columns.COLUMNS`.
    """
    ledger = build_ledger(
        {component: (emulator, held_errors(emulator))},
        wavelength_range={component: [emulator.wavelength_range]},
        meta={"settings": settings, "wavelength_range": list(emulator.wavelength_range)},
    )
    ledger["free"][:] = True
    ledger["unconstrained"][:] = False
    ledger["delta_ln_area"][:] = (emulator.ln_area.detach() - start_area).numpy()
    return ledger
