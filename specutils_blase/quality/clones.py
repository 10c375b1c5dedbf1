"""The assessment of a clone: reasons against its lines, each with a measured value and its limit.

Does not live here: statuses and reasons (`report`), the assessment of fits (`assessment`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .report import Quality, Reason

RMS_DOUBTFUL, RMS_BAD = 0.02, 0.10
"""RMS of template minus clone beyond the template's noise, in units of the continuum: a good clone of a dense spectrum
reaches 0.004, and data of a signal-to-noise ratio of 100 see 0.02; beyond 0.1 lines are not those of the template."""

RMS_GOOD = 0.01
"""RMS up to which a clone that has missed its target is good all the same, with a note."""

LARGEST_RESIDUAL = 0.3
"""Difference of template and clone in a pixel, in units of the continuum, above which a line is missing there."""

RMS_PIXELS = 51
"""Pixels over which the RMS of the worst place is taken."""


def assess_clone(result) -> Quality:
    """Assess a clone.

    Parameters
    ----------
    result : CloneResult

    Returns
    -------
    Quality
    """
    return Quality.of([*_iteration(result), *_residual(result)])


def _beyond_noise(result) -> float:
    """RMS of template minus clone beyond the template's noise."""
    noise = result.settings.get("noise") or 0.0
    return max(result.rms**2 - noise**2, 0.0) ** 0.5


def _iteration(result) -> Iterator[Reason]:
    if not result.success:
        status = "doubtful" if _beyond_noise(result) > RMS_GOOD else "good"
        yield Reason(
            "converged", status, f"the clone has not converged ({result.message})", _beyond_noise(result), RMS_GOOD
        )


def _residual(result) -> Iterator[Reason]:
    wavelength = result.template.spectral_axis.value
    residual = np.nan_to_num(result.template.flux.value - result.model_spectrum.flux.value)
    square = np.convolve(
        residual**2, np.ones(min(RMS_PIXELS, residual.size)) / min(RMS_PIXELS, residual.size), mode="same"
    )
    roughest = int(square.argmax())
    where = f"most around {wavelength[roughest]:.2f} Å, {100 * square[roughest] ** 0.5:.2g} %"
    beyond = _beyond_noise(result)
    if beyond > RMS_DOUBTFUL:
        status = "bad" if beyond > RMS_BAD else "doubtful"
        text = f"the clone is off its template by {100 * beyond:.2g} % of the continuum (RMS beyond its noise), {where}"
        yield Reason("rms", status, text, beyond, RMS_BAD if status == "bad" else RMS_DOUBTFUL)
    worst = int(np.abs(residual).argmax())
    if abs(residual[worst]) > LARGEST_RESIDUAL:
        text = (
            f"at {wavelength[worst]:.2f} Å the clone is off its template by {100 * abs(residual[worst]):.0f} % of the "
            "continuum: a line is missing there, or the feature is no line"
        )
        yield Reason("worst_place", "doubtful", text, abs(float(residual[worst])), LARGEST_RESIDUAL)
