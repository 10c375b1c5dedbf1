"""Quick looks with matplotlib: a fit of one order, and a clone.

Figures are made without `matplotlib.pyplot`: nothing is registered anywhere, no window opens, and no display is needed.
They show themselves in notebooks; scripts save them with ``figure.savefig(...)``. To have a window of pyplot's, pass
one of its figures: ``fit.plot(figure=plt.figure()); plt.show()``.

Does not live here: the results (`results.fit_result`, `cloning.clone`), units of input (`spectra.reading`), panels and
margins (`panels`).
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any, Protocol

import astropy.units as u
import numpy as np
from astropy.table import QTable
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, MaxNLocator
from specutils import Spectrum

from ..physics.grids import SPEED_OF_LIGHT
from ..spectra.quantities import is_whole
from ..spectra.wavelengths import air_wavelength
from .panels import crown, label_panels, legend_of, limits_around, make_panels, scale_flux_axis


class PlottableFit(Protocol):
    """Attributes of a fit that a figure needs; a `FitResult` has them."""

    data: Any
    frame: Any
    model: Any
    ledger: QTable
    parameters: QTable
    reduced_chi2: float
    quality: Any
    settings: dict

    @property
    def rms(self) -> float: ...

    def evaluate(self) -> Any: ...

    def value(self, name: str) -> float: ...

    def error(self, name: str) -> float: ...


class PlottableClone(Protocol):
    """Attributes of a clone that a figure needs; a `CloneResult` has them."""

    template: Spectrum
    model_spectrum: Spectrum
    emulator: Any
    ledger: QTable
    rms: float
    quality: Any


COLOURS = {
    "data": "0.66",
    "model": "0.0",
    "star": "#c8500a",
    "telluric": "#0067a5",
    "continuum": "0.35",
    "missing": "0.88",
}
"""Colours after Okabe & Ito (2008): distinct to colour-blind readers, and in grey by their lightness."""

COMPONENT_LABELS = {"star": "star", "telluric": "atmosphere"}
TICK_COLOURS = {"star lines": COLOURS["star"], "atmosphere lines": COLOURS["telluric"], "lines": COLOURS["star"]}
MOST_TICKS = 60
"""Ticks of a component in a row, at most: more would merge."""

PIXELS_PER_ROW = 700
MOST_ROWS = 4
"""Pixels in a row, and number of rows at most, by default."""

RESIDUAL_LIMIT_SIGMA = 5.0
"""Residuals beyond this many sigma are drawn as triangles at the edge."""


def plot_fit(
    result: PlottableFit,
    *,
    figure: Figure | None = None,
    region=None,
    rows: int | None = None,
    tick_depth: float = 0.05,
    title: str | None = None,
) -> Figure:
    """Data, model, each component alone, residuals and line ticks of a fit.

    Every row of the figure covers a part of the wavelength range with three panels: data and model below the ticks of
    the lines, the components alone, and the residual in units of its sigma. Pixels that did not count, and gaps
    between pixels, are shaded. The label of the axis says whether wavelengths are those of air or vacuum.

    Parameters
    ----------
    result : FitResult
        The fit.
    figure : Figure, optional
        An empty figure to draw on; a new one by default.
    region : (Quantity, Quantity) or (float, float), optional
        Wavelengths to show (bare numbers: Å), in the medium of the data; all by default.
    rows : int, optional
        Number of rows; by default as many as leave about 700 pixels to each, at most 4.
    tick_depth : float
        Lines get a tick if their depth, as broadened by rotation and line spread, exceeds this.
    title : str, optional
        Instead of the fitted velocities and χ².

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If `region` holds no pixels, or `rows` is not positive.
    """
    pixels = _Pixels(result)
    ranges = _rows(pixels.wavelength, region, rows, pixels.unit)
    figure, panels = make_panels(figure, len(ranges), (1.75, 0.85, 0.65))
    limits = _limits(pixels, ranges[0][0], ranges[-1][1])
    ticks = {f"{COMPONENT_LABELS[name]} lines": _ticks(result, name, tick_depth, pixels) for name in pixels.components}
    for (low, high), (main, alone, residual) in zip(ranges, panels, strict=True):
        _draw_data(main, pixels)
        main.set_ylim(limits)
        _draw_ticks(main, ticks, low, high)
        _draw_components(alone, pixels)
        _draw_residuals(residual, pixels)
        for panel in (main, alone, residual):
            for span in pixels.missing:
                panel.axvspan(*span, color=COLOURS["missing"], lw=0, zorder=0)
            panel.set_xlim(low, high)
    flux_label = scale_flux_axis(panels, limits, pixels.flux_unit)
    label_panels(panels, (flux_label, "Components", pixels.residual_label), pixels.axis_label)
    handles, labels = legend_of(panels[0][0], ("data", "model", "continuum", *ticks))
    if pixels.missing:
        handles.append(panels[0][0].patches[0])
        labels.append("masked or no data")
    crown(figure, title if title is not None else _headline(result), handles, labels)
    return figure


def plot_clone(
    result: PlottableClone,
    *,
    figure: Figure | None = None,
    region=None,
    rows: int | None = None,
    tick_depth: float = 0.05,
    title: str | None = None,
) -> Figure:
    """Template, clone, their difference and line ticks.

    Parameters
    ----------
    result : CloneResult
        The clone.
    figure, region, rows, tick_depth, title
        As for `plot_fit`; here `tick_depth` is the depth of the line alone.

    Returns
    -------
    Figure

    Raises
    ------
    ValueError
        If `region` holds no pixels, or `rows` is not positive.
    """
    wavelength = result.template.spectral_axis.to_value(u.AA)
    template, clone = result.template.flux.value, result.model_spectrum.flux.value
    ranges = _rows(wavelength, region, rows, u.AA)
    figure, panels = make_panels(figure, len(ranges), (1.75, 0.75))
    limits = limits_around(np.concatenate([template, clone, [1.0]]))
    depth = np.abs(np.asarray(result.ledger["depth"]))
    deep = depth > tick_depth
    ticks = {"lines": (result.ledger["center"].to_value(u.AA)[deep], depth[deep])}
    percent = 100.0 * (template - clone)
    reach = 1.1 * np.nanquantile(np.abs(percent), 0.999) + 1e-6
    for (low, high), (main, residual) in zip(ranges, panels, strict=True):
        shown = slice(np.searchsorted(wavelength, low), np.searchsorted(wavelength, high, side="right"))
        main.plot(wavelength[shown], template[shown], color=COLOURS["data"], lw=2.2, label="template")
        main.plot(wavelength[shown], clone[shown], color=COLOURS["model"], lw=0.7, label="clone")
        main.set_ylim(limits)
        _draw_ticks(main, ticks, low, high)
        residual.axhline(0.0, color=COLOURS["continuum"], lw=0.6)
        residual.plot(wavelength[shown], percent[shown], color=COLOURS["model"], lw=0.5)
        residual.set_ylim(-reach, reach)
        for panel in (main, residual):
            panel.set_xlim(low, high)
    label_panels(panels, ("Flux / continuum", "Resid. [%]"), "Vacuum wavelength [Å]")
    handles, labels = legend_of(panels[0][0], ("template", "clone", "lines"))
    if title is None:
        title = f"{len(result.ledger)} lines, RMS of template − clone {100 * result.rms:.3g} %"
        title += "" if result.quality is None else f"     quality: {result.quality.headline}"
    crown(figure, title, handles, labels)
    return figure


class _Pixels:
    """What is drawn on the pixels of a fit, in the unit and the medium of the data."""

    def __init__(self, result: PlottableFit):
        data, frame = result.data, result.frame
        parts = {name: value.cpu().numpy() for name, value in result.evaluate().items()}
        length = frame.axis.unit.is_equivalent(u.AA)
        self.unit = frame.axis.unit if length else u.AA
        self.medium = frame.medium
        self.axis_label = f"{self.medium.capitalize()} wavelength [{self.unit.to_string('unicode')}]"
        self.wavelength = self.shown(data.wavelength.cpu().numpy())
        edges = self.shown(data.edges.cpu().numpy())
        self.good = data.good.cpu().numpy()
        self.flux = np.where(self.good, data.flux.cpu().numpy(), np.nan)
        self.model, self.continuum = parts["model"], parts["continuum"]
        self.components = {name: parts[name] for name in COMPONENT_LABELS if name in parts}
        residual = self.flux - self.model
        if data.noise_known:
            self.sigma = np.where(self.good, data.sigma.cpu().numpy(), np.nan)
            self.residual, self.residual_label = residual / self.sigma, "Resid. [σ]"
        else:
            self.sigma = np.full_like(residual, np.nan)
            self.residual, self.residual_label = residual / np.nanstd(residual), "Resid. / RMS"
        self.flux_unit = frame.flux_unit
        # Where neighbours do not touch, a line drawn through both would invent data.
        width = edges[:, 1] - edges[:, 0]
        hole = edges[1:, 0] - edges[:-1, 1] > 0.5 * np.minimum(width[1:], width[:-1])
        self.breaks = np.flatnonzero(hole) + 1
        self.missing = _spans(edges, ~self.good) + [(edges[i - 1, 1], edges[i, 0]) for i in self.breaks]

    def shown(self, vacuum: np.ndarray) -> np.ndarray:
        """Vacuum Å as on the axis."""
        wavelength = vacuum * u.AA
        return (air_wavelength(wavelength) if self.medium == "air" else wavelength).to_value(self.unit)

    def line(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Abscissae and ordinates of a line that does not bridge gaps."""
        return np.insert(self.wavelength, self.breaks, np.nan), np.insert(values, self.breaks, np.nan)


def _spans(edges: np.ndarray, flag: np.ndarray) -> list[tuple[float, float]]:
    """Lower and upper end of each run of flagged pixels."""
    change = np.flatnonzero(np.diff(np.concatenate([[False], flag, [False]]).astype(int)))
    return [(edges[first, 0], edges[after - 1, 1]) for first, after in change.reshape(-1, 2)]


def _rows(wavelength: np.ndarray, region, rows: int | None, unit: u.UnitBase) -> list[tuple[float, float]]:
    """Range of wavelengths of each row."""
    low, high = wavelength[0], wavelength[-1]
    if region is not None:
        asked = (u.Quantity(end, u.AA if not hasattr(end, "unit") else None) for end in region)
        low, high = sorted(end.to_value(unit, u.spectral()) for end in asked)
    inside = int(np.sum((wavelength >= low) & (wavelength <= high)))
    if inside < 2:
        raise ValueError(
            f"region {low:.6g}-{high:.6g} {unit} holds {inside} pixels of {wavelength[0]:.6g}-{wavelength[-1]:.6g} "
            f"{unit}: give (low, high) inside it"
        )
    if rows is None:
        rows = min(max(round(inside / PIXELS_PER_ROW), 1), MOST_ROWS)
    if not is_whole(rows) or rows < 1:
        raise ValueError(f"rows must be a positive number of rows, got {rows!r}")
    ends = np.linspace(low, high, rows + 1)
    return list(pairwise(ends))


def _draw_data(panel, pixels: _Pixels) -> None:
    panel.errorbar(
        pixels.wavelength, pixels.flux, yerr=pixels.sigma, fmt="o", ms=3.2, mew=0.0, elinewidth=0.7,
        color=COLOURS["data"], label="data", zorder=1,
    )  # fmt: skip
    panel.plot(*pixels.line(pixels.continuum), color=COLOURS["continuum"], lw=0.8, ls=(0, (4, 3)), label="continuum")
    panel.plot(*pixels.line(pixels.model), color=COLOURS["model"], lw=0.8, label="model", zorder=3)


def _limits(pixels: _Pixels, low: float, high: float) -> tuple[float, float]:
    """Ordinate of data and model: the same in every row, so that depths compare; spikes may leave it, and continua
    beyond the data."""
    shown = (pixels.wavelength >= low) & (pixels.wavelength <= high)
    if (shown & pixels.good).any():
        shown &= pixels.good
    lines = np.concatenate([pixels.model[shown], pixels.continuum[shown]])
    data = pixels.flux[shown]
    data = data[np.isfinite(data)]
    if data.size:
        span = lines.max() - min(lines.min(), 0.0)
        data = data.clip(lines.min() - 0.2 * span, lines.max() + 0.2 * span)
    return limits_around(np.concatenate([lines, data]))


def _draw_ticks(panel, ticks: dict[str, tuple[np.ndarray, np.ndarray]], low: float, high: float) -> None:
    """Ticks at the deepest lines of the row; `ticks` is label to positions and depths."""
    for tier, (label, (position, depth)) in enumerate(ticks.items()):
        inside = (position > low) & (position < high)
        position, depth = position[inside], depth[inside]
        position = position[np.argsort(-depth)[:MOST_TICKS]]
        top = 0.975 - 0.075 * tier
        panel.vlines(
            position, top - 0.055, top, transform=panel.get_xaxis_transform(), color=TICK_COLOURS[label], lw=0.8,
            label=label,
        )  # fmt: skip


def _ticks(result: PlottableFit, name: str, tick_depth: float, pixels: _Pixels) -> tuple[np.ndarray, np.ndarray]:
    """Observed positions and depths of a component's lines whose depth at the detector exceeds `tick_depth`."""
    lines = result.ledger[result.ledger["component"] == name]
    center, fwhm = lines["center"].to_value(u.AA), lines["fwhm"].to_value(u.AA)
    velocity = result.value("rv") if name == "star" else 0.0
    rotation = result.value("vsini") if name == "star" else 0.0
    spread = 0.0
    if result.model.line_spread is not None:
        spread = SPEED_OF_LIGHT / result.value("resolving_power")
    # Rotation's profile is about 1.7 v sin i wide at half its depth; widths in quadrature are near enough for a choice.
    width = np.sqrt(fwhm**2 + (center / SPEED_OF_LIGHT) ** 2 * (spread**2 + (1.7 * rotation) ** 2))
    depth = np.abs(lines["equivalent_width"].to_value(u.AA)) / (1.06 * width)
    seen = depth > tick_depth
    return pixels.shown(center[seen] * (1.0 + velocity / SPEED_OF_LIGHT)), depth[seen]


def _draw_components(panel, pixels: _Pixels) -> None:
    for name, values in pixels.components.items():
        panel.plot(*pixels.line(values), color=COLOURS[name], lw=0.9, label=COMPONENT_LABELS[name])
    lowest = min(float(values.min()) for values in pixels.components.values())
    highest = max(float(values.max()) for values in pixels.components.values())
    panel.set_ylim(min(lowest, 0.9) - 0.08, max(highest + 0.03, 1.1))
    panel.yaxis.set_major_locator(FixedLocator([0.5, 1.0]) if lowest < 0.6 else MaxNLocator(3, prune="lower"))


def _draw_residuals(panel, pixels: _Pixels) -> None:
    panel.axhspan(-1.0, 1.0, color="0.92", lw=0)
    panel.axhline(0.0, color=COLOURS["continuum"], lw=0.6)
    panel.plot(pixels.wavelength, pixels.residual, ".", ms=2.2, mew=0.0, color="0.25")
    for sign, marker in ((1, "^"), (-1, "v")):
        beyond = sign * pixels.residual > RESIDUAL_LIMIT_SIGMA
        edge = np.full(int(beyond.sum()), 0.93 * sign * RESIDUAL_LIMIT_SIGMA)
        panel.plot(pixels.wavelength[beyond], edge, marker, ms=4.0, mew=0.0, color="#b00020")
    panel.set_ylim(-RESIDUAL_LIMIT_SIGMA, RESIDUAL_LIMIT_SIGMA)
    panel.set_yticks([-3, 0, 3])


def _headline(result: PlottableFit) -> str:
    """Velocities, χ², RMS and quality of the fit in one line."""
    words = []
    header = result.frame.meta.get("header")
    target = header.get("OBJECT", "") if isinstance(header, dict) else ""
    order = result.frame.meta.get("m", "")
    if target or order != "":
        words.append(f"{target} order {order}".strip() if order != "" else str(target))
    free = dict(zip(result.parameters["name"], result.parameters["free"], strict=True))
    for name, symbol in (("rv", "RV"), ("vsini", "v sin i")):
        if name in free:
            text = (
                _with_error(result.value(name), result.error(name)) if free[name] else f"{result.value(name):g} (held)"
            )
            words.append(f"{symbol} = {text} km/s")
    if result.data.noise_known:
        words.append(f"reduced χ² = {result.reduced_chi2:.2f}")
    words.append(f"RMS = {100 * result.rms:.2f} %")
    if result.quality is not None:
        words.append(f"quality: {result.quality.headline}")
    return "     ".join(words).replace("-", "−")


def _with_error(value: float, error: float) -> str:
    """Value ± error, the error with two significant digits."""
    if not (math.isfinite(error) and error > 0.0):
        return f"{value:.4g}"
    digits = max(1 - math.floor(math.log10(error)), 0)
    return f"{value:.{digits}f} ± {error:.{digits}f}"
