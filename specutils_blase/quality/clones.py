"""The assessment of a clone: what speaks against its lines, each with what was measured and from where on it counts.

Does not live here: statuses and words about them (`quality`), the assessment of fits (`assessment`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .report import Quality, Reason

POOR, BAD = 0.02, 0.10
"""RMS of template minus clone beyond the template's noise, in units of the continuum: a good clone of a dense spectrum
reaches 0.004, and data of a signal-to-noise ratio of 100 see 0.02; beyond 0.1 lines are not those of the template."""

GOOD_ENOUGH = 0.01
"""The same, up to which a clone that has missed its target or not arrived is told so, and is good all the same."""

WORST = 0.3
"""Largest difference of template and clone at one place, of as much light: a line of its own is missing there."""

PLACE = 51
"""Pixels of a place whose RMS is told."""


def assess_clone(result) -> Quality:
    """Look at a clone.

    Parameters
    ----------
    result : CloneResult

    Returns
    -------
    Quality
    """
    return Quality.of([*_iteration(result), *_residual(result)])


def _beyond_noise(result) -> float:
    """RMS of template minus clone, the template's own noise taken off."""
    noise = result.settings.get("noise") or 0.0
    return max(result.rms**2 - noise**2, 0.0) ** 0.5


def _iteration(result) -> Iterator[Reason]:
    if not result.success:
        status = "doubtful" if _beyond_noise(result) > GOOD_ENOUGH else "good"
        yield Reason(
            "converged", status, f"the clone has not arrived ({result.message})", _beyond_noise(result), GOOD_ENOUGH
        )


def _residual(result) -> Iterator[Reason]:
    wavelength = result.template.spectral_axis.value
    residual = np.nan_to_num(result.template.flux.value - result.model_spectrum.flux.value)
    square = np.convolve(residual**2, np.ones(min(PLACE, residual.size)) / min(PLACE, residual.size), mode="same")
    place = int(square.argmax())
    where = f"most around {wavelength[place]:.2f} Å, {100 * square[place] ** 0.5:.2g} %"
    beyond = _beyond_noise(result)
    if beyond > POOR:
        status = "bad" if beyond > BAD else "doubtful"
        text = f"the clone is off its template by {100 * beyond:.2g} % of the continuum (RMS beyond its noise), {where}"
        yield Reason("rms", status, text, beyond, BAD if status == "bad" else POOR)
    worst = int(np.abs(residual).argmax())
    if abs(residual[worst]) > WORST:
        text = (
            f"at {wavelength[worst]:.2f} Å the clone is off its template by {100 * abs(residual[worst]):.0f} % of the "
            "continuum: a line is missing there, or what is cloned is no line"
        )
        yield Reason("worst_place", "doubtful", text, abs(float(residual[worst])), WORST)
