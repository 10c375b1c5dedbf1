"""Quick look at a fit of many orders: one row an order.

Does not live here: the plot of one order (`order`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .order import COLOURS
from .panels import QuickLook

ROW_INCHES = 1.4
"""Height of the row of an order."""

RESIDUAL_FACTOR, RESIDUAL_ZERO = 5.0, -0.15
"""Factor on the residuals, and the ordinate of their zero."""


def plot_orders(result, *, orders: Sequence[int] | None = None, figure: QuickLook | None = None) -> QuickLook:
    """Data, model and residual of every order in a row of its own, with its χ² and jitter.

    Parameters
    ----------
    result : EchelleFitResult
    orders : sequence of int, optional
        Positions among the fitted orders; all of them by default.
    figure : Figure, optional
        To draw into; it gets a constrained layout.

    Returns
    -------
    QuickLook
        A matplotlib figure that notebooks show.
    """
    chosen = list(range(len(result))) if orders is None else list(orders)
    figure = QuickLook(figsize=(11.0, 0.8 + ROW_INCHES * len(chosen))) if figure is None else figure
    figure.set_layout_engine("constrained")
    panels = np.atleast_1d(figure.subplots(len(chosen), 1))
    fitted = result.orders[result.orders["fitted"]]
    for panel, k in zip(panels, chosen, strict=True):
        order_fit = result.order(k)
        parts = {name: values.numpy() for name, values in order_fit.evaluate().items()}
        wavelength, good = order_fit.data.wavelength.numpy(), order_fit.data.good.numpy()
        level = parts["continuum"]
        flux = np.where(good, order_fit.data.flux.numpy() / level, np.nan)
        model = parts["model"] / level
        residual = RESIDUAL_ZERO + RESIDUAL_FACTOR * np.where(good, flux - model, np.nan)
        panel.plot(wavelength, flux, color=COLOURS["data"], lw=2.0)
        if "telluric" in parts:
            panel.plot(wavelength, parts["telluric"], color=COLOURS["telluric"], lw=0.7)
        panel.plot(wavelength, model, color=COLOURS["model"], lw=0.6)
        panel.axhline(RESIDUAL_ZERO, color=COLOURS["continuum"], lw=0.4, zorder=0)
        panel.plot(wavelength, residual, color="#b00020", lw=0.5)
        low, high = np.nanpercentile(flux, [0.5, 99.5]) if good.any() else (0.0, 1.0)
        panel.set_ylim(min(-0.35, low - 0.05), max(1.1, high + 0.05))
        panel.set_xlim(wavelength[0], wavelength[-1])
        row = fitted[k]
        note = f"order {row['order']}   RMS {100 * row['rms']:.2f} %   χ² {row['reduced_chi2']:.2f}"
        if row["jitter"] > 0:
            note += f"   jitter {100 * row['jitter']:.2f} %"
        panel.set_title(note, loc="left", fontsize=7, pad=2)
        panel.tick_params(labelsize=7)
    panels[-1].set_xlabel("vacuum wavelength [Å]", fontsize=8)
    panels[len(chosen) // 2].set_ylabel("flux / continuum", fontsize=8)
    quality = "" if result.quality is None else f"\nquality: {result.quality.headline}"
    figure.suptitle(
        f"{len(chosen)} of {len(result)} orders: data (grey), model (black), atmosphere (blue), "
        f"residual × {RESIDUAL_FACTOR:g} (red){quality}",
        fontsize=9,
    )
    return figure
