"""Figures that show themselves, their panels, and labels that are never cut.

Does not live here: the content of the panels (`order`, `echelle`).
"""

from __future__ import annotations

import io
import math

import astropy.units as u
import numpy as np
from matplotlib import rcParams
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.ticker import MaxNLocator, ScalarFormatter

PLAIN_POWERS = range(-2, 4)
"""Powers of ten of a flux that need no factor in the label."""

SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

LABEL_GAP_POINTS = 4.0
"""Least distance of a label from the edge of the figure, in points."""

LONGEST_LABEL = 0.95
"""Length of an ordinate's label, in units of the height of its panel."""


LABEL_ROOM = 0.7
"""Least distance of a tick from the end of its panel, in units of the size of its label: half the label, and air."""


class QuickLook(Figure):
    """A matplotlib figure that shows itself in a notebook whether or not pyplot has been imported."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", bbox_inches="tight")
        return buffer.getvalue()


def make_panels(figure: Figure | None, n_row: int, heights: tuple[float, ...]):
    """A figure and its axes, [row][panel]; the panels of a row share their abscissa."""
    if figure is None:
        figure = QuickLook(figsize=(10.0, 1.1 + n_row * (sum(heights) + 0.3)), dpi=110)
    outer = figure.add_gridspec(n_row, 1, hspace=0.3 / sum(heights))
    panels = []
    for row in range(n_row):
        inner = outer[row].subgridspec(len(heights), 1, height_ratios=heights, hspace=0.0)
        first = figure.add_subplot(inner[0])
        panels.append([first, *(figure.add_subplot(inner[k], sharex=first) for k in range(1, len(heights)))])
    return figure, panels


def limits_around(values: np.ndarray) -> tuple[float, float]:
    """Limits around values, with room for ticks above them."""
    bottom, top = np.nanmin(values), np.nanmax(values)
    span = max(top - bottom, 0.1 * abs(top))
    return bottom - 0.06 * span, top + 0.22 * span


def scale_flux_axis(panels, limits: tuple[float, float], unit: u.UnitBase) -> str:
    """Label of the flux, with the power of ten that very large or small numbers on its axis are given in."""
    power = math.floor(math.log10(max(map(abs, limits))))
    if power in PLAIN_POWERS:
        power = 0
    for main, *_ in panels:
        numbers = ScalarFormatter(useOffset=False)
        numbers.set_powerlimits((power, power) if power else (-99, 99))
        main.yaxis.set_major_formatter(numbers)
        main.yaxis.offsetText.set_visible(False)  # it would stand on the labels of the row above
    words = [f"10{str(power).translate(SUPERSCRIPT)}" if power else "", unit.to_string("unicode")]
    text = " ".join(filter(None, words))
    return f"Flux [{text}]" if text else "Flux"


class _ClearOfEnds(MaxNLocator):
    """Ticks whose labels stay within the panel: a label at its edge would stand on one of the panel beside it."""

    def tick_values(self, vmin, vmax):
        panel = self.axis.axes  # type: ignore[union-attr]  # an axis has set itself before it asks for ticks
        size = FontProperties(size=rcParams["ytick.labelsize"]).get_size_in_points()
        room = LABEL_ROOM * size * panel.figure.dpi / 72.0 / panel.bbox.height * abs(vmax - vmin)
        ticks = super().tick_values(vmin, vmax)
        return ticks[(ticks >= min(vmin, vmax) + room) & (ticks <= max(vmin, vmax) - room)]


def label_panels(panels, labels: tuple[str, ...], axis_label: str) -> None:
    for row in panels:
        for panel, label in zip(row, labels, strict=True):
            panel.set_ylabel(label, fontsize=10 if panel is row[0] else 8.5)
            panel.tick_params(direction="in", top=True, right=True, labelbottom=panel is row[-1])
            panel.margins(x=0)
            panel.ticklabel_format(axis="x", useOffset=False)
        row[0].yaxis.set_major_locator(_ClearOfEnds(5))
    panels[-1][-1].set_xlabel(axis_label)


def legend_of(panel, order: tuple[str, ...]):
    """Handles and labels of a panel's legend in the given order."""
    handles, labels = panel.get_legend_handles_labels()
    handle_of = dict(zip(labels, handles, strict=True))
    return [handle_of[label] for label in order if label in handle_of], [label for label in order if label in handle_of]


def crown(figure: Figure, title: str, handles, labels) -> None:
    """Title and legend above the panels, at the same distance whatever the height of the figure."""
    width, height = figure.get_size_inches()
    figure.subplots_adjust(left=0.7 / width, right=1.0 - 0.12 / width, top=1.0 - 0.64 / height, bottom=0.48 / height)
    heading = figure.suptitle(title, y=1.0 - 0.09 / height, va="top", fontsize=11)
    figure.legend(
        handles, labels, loc="upper center", bbox_to_anchor=(0.5, 1.0 - 0.29 / height), ncols=len(labels),
        frameon=False, fontsize=9.5, handlelength=1.6, columnspacing=1.8,
    )  # fmt: skip
    figure.align_ylabels()
    while (longer := heading.get_window_extent().width / figure.bbox.width) > 0.98:  # in steps of whole pixels
        heading.set_fontsize(0.97 * float(heading.get_fontsize()) / max(longer, 1.0))
    for _ in range(2):  # a narrower axis may choose other ticks
        _make_room(figure)


def _make_room(figure: Figure) -> None:
    """Shrink labels longer than their panel, and widen the margins at the sides until none stands out of the figure."""
    for panel in figure.axes:
        label = panel.yaxis.label
        longer = label.get_window_extent().height / (LONGEST_LABEL * panel.get_window_extent().height)
        label.set_fontsize(float(label.get_fontsize()) / max(1.0, longer))
    axes = [axis for panel in figure.axes for axis in (panel.xaxis, panel.yaxis)]
    boxes = [box for axis in axes if (box := axis.get_tightbbox()) is not None]  # None: it shows no labels
    gap, width = LABEL_GAP_POINTS * figure.dpi / 72.0, figure.bbox.width
    missing_left = max(0.0, gap - min(box.x0 for box in boxes))
    missing_right = max(0.0, gap + max(box.x1 for box in boxes) - width)
    margins = figure.subplotpars
    figure.subplots_adjust(left=margins.left + missing_left / width, right=margins.right - missing_right / width)
