"""Figures of docs/validation.md from records, one a claim; ``run.py tables`` draws them.

Does not live here: tables of the same records (`tables`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import tables

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "images"
SIZE, DPI = (6.4, 3.2), 100
RIGHT, WRONG, LIMIT = "#3b6ea8", "#c2452d", "#777777"


def _axes():
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    return plt.subplots(figsize=SIZE, dpi=DPI, layout="constrained")


def starts(records: list[dict]):
    """Distance of each start from the truth, in units that say how far is far, against rotation."""
    from starts import ELEMENTS, is_flagged

    figure, axes = _axes()
    results = [record["result"] for record in records if "refused" not in record["result"]]
    vsini = tables.column(results, "vsini")
    width = np.maximum(vsini, tables.column(results, "element"))
    off = np.abs(tables.column(results, "found_rv") - tables.column(results, "rv")) / width
    flagged = np.array([is_flagged(result) for result in results])
    for some, color, label in ((~flagged, RIGHT, "nothing told"), (flagged, WRONG, "flagged")):
        axes.loglog(vsini[some], np.maximum(off[some], 1e-4), ".", color=color, ms=4, alpha=0.7, label=label)
    axes.axhline(ELEMENTS, color=LIMIT, lw=1, label="off")
    axes.axhline(0.5, color=LIMIT, lw=1, ls=":", label="half a width")
    axes.set(xlabel="v sin i [km/s]", ylabel="|start − truth| / width", xlim=(1, 200))
    axes.legend(ncols=2, fontsize="small", loc="lower right")
    return figure


def quality(records: list[dict]):
    """The larger pull of both velocities, of fits that are flagged and that are not; only of spectra with a star."""
    from assessed_fits import WITHOUT_TRUTH

    figure, axes = _axes()
    fits = [fit for fit in tables.judged(records) if fit["kind"] not in WITHOUT_TRUTH]
    pulls = np.array([max(abs(fit[name]) / max(fit[f"{name}_err"], 1e-9) for name in ("rv", "vsini")) for fit in fits])
    flagged = np.array([fit["flagged"] for fit in fits])
    bins = np.geomspace(0.03, 3000.0, 51)
    clipped = np.clip(pulls, bins[0], bins[-1] * 0.999)
    axes.hist(
        [clipped[~flagged], clipped[flagged]], bins, stacked=True, color=[RIGHT, WRONG], label=["good", "flagged"]
    )
    for limit in (tables.WITHIN, tables.BEYOND):
        axes.axvline(limit, color=LIMIT, lw=1, ls=":")
    axes.set(xscale="log", xlabel="largest |fit − truth| / error, of rv and v sin i", ylabel="fits")
    axes.legend(fontsize="small")
    return figure


def another(records: list[dict]):
    """Velocities of orders, one by one and together, beside the published one."""
    from other_star import PUBLISHED

    figure, axes = _axes()
    labels = []
    for place, record in enumerate(records):
        fit = record["result"]
        color = RIGHT if fit["status"] == "good" else WRONG
        axes.errorbar(place, fit["rv"] - PUBLISHED, fit["rv_err"], fmt="o", ms=4, capsize=2, color=color)
        labels.append(", ".join(map(str, record["arguments"]["orders"])))
    for color, label in ((RIGHT, "good"), (WRONG, "doubtful or bad")):
        axes.plot([], [], "o", ms=4, color=color, label=label)
    axes.axhline(0.0, color=LIMIT, lw=1)
    axes.set_xticks(range(len(labels)), labels)
    axes.set(xlabel="HPF order", ylabel="rv − published [km/s]")
    axes.legend(fontsize="small")
    return figure


FIGURES: dict[str, tuple[tuple[str, ...], Callable]] = {
    "validation_starts": (("start", "fitted"), starts),
    "validation_quality": (("assessed",), quality),
    "validation_another": (("another",), another),
}
"""Name of the file to the cases of the records, and what draws them."""


def draw(records: list[dict], folder: Path) -> list[Path]:
    """Draw all figures of which there are records."""
    from matplotlib import pyplot as plt

    drawn = []
    for name, (cases, make) in FIGURES.items():
        if some := [record for record in records if record["case"] in cases]:
            figure = make(some)
            drawn.append(folder / f"{name}.png")
            figure.savefig(drawn[-1], metadata={"Software": None})
            plt.close(figure)
    return drawn
