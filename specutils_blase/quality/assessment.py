"""The assessment of a fit: reasons against its numbers, each with a measured value and its limit.

Convergence does not show that the answer is right. The assessment compares it with the noise, the template, the lines,
the tellurics and the continuum. The limits are set on simulated fits, right and wrong ones; see docs/validation.md,
section 10, and ``tests/validation/run.py quality``.

Does not live here: statuses and reasons (`report`), measurements of template and lines (`template_agreement`,
`line_moves`), reasons against a continuum (`continua`) or a start (`starts`), the assessment of clones (`clones`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import torch
from torch import Tensor

from ..inference.bounds import MOST_INFLATION, largest_factor
from ..model.parameters import KINDS
from ..physics.grids import SPEED_OF_LIGHT
from .continua import continuum_reasons
from .line_moves import LineMoves, line_moves
from .report import Quality, Reason, graded
from .starts import same_data_reasons, start_reasons, template_reasons
from .template_agreement import Agreement, observed_pixels, template_agreement

CHI2_DOUBTFUL = 2.0
"""Reduced χ² with the noise of the data above which errors without jitter are too small by a factor of 1.4."""

CHI2_BAD = 30.0
"""Reduced χ² above which errors mean nothing: they are too small by more than a factor of five."""

CHI2_LOW, CHI2_TINY = 0.5, 0.1
"""Reduced χ² below which errors are noted as too large, by more than 1.4; and are doubtful, by more than 3."""

MISFIT_DOUBTFUL, MISFIT_BAD = 0.5, 1.0
"""Residual beyond the noise in units of the signal of the star's lines.

At 1 the unexplained signal is as large as that of the star, and the velocity follows it as much."""

MOST_OUTLIERS = 0.05
"""Part of the pixels that are down-weighted or left out: 0.3 % for Gaussian noise, rarely 1 % with cosmic rays."""

DETECTION_DOUBTFUL, DETECTION_BAD = 8.0, 5.0
"""Strength of the template in the data over its error. By chance the best of a thousand velocities reaches 3.5, and
more where the stated noise is too small."""

CORRELATION_DOUBTFUL, CORRELATION_BAD = 0.6, 0.3
"""Correlation of data and template, lines held, corrected for noise. Another star's template reaches 0.7."""

ELSEWHERE_DOUBTFUL, ELSEWHERE_BAD = 10.0, 50.0
"""Gain of ln L at another velocity than the fitted one; wrong lines of the template make a few."""

STRENGTH_DOUBTFUL, STRENGTH_BAD = 2.0, 6.0
"""Factor, up or down, between the star's lines in the data and in its template."""

MOST_WIDTH_FACTOR = 3.5
"""Factor, up or down, on the widths of the star's lines above which rotation and widths absorb another effect. Lines of
an M dwarf have two to three times the widths of its template."""

LEAST_SMEARING = 0.1
"""RMS of the rotating template over that of the template at rest below which v sin i is undetermined: continuum, blaze
and molecular bands have as much structure."""

RESOLVED_FWHM = 0.3
"""v sin i plus its error, in units of the FWHM of the line spread, below which the data give an upper limit."""

MOVED_SIGMA = 4.0
"""Common change of a component's lines against its template, in units of its error, above which it is significant."""

LEAST_MOVE = {"ln_area": math.log(STRENGTH_DOUBTFUL), "ln_sigma": 0.25, "ln_gamma": 0.7, "rv_offset": 1.0}
"""Least common change that counts [ln, or km/s]. A resolving power wrong by a quarter changes widths by as much."""

MOST_SPREAD = 3.0
"""Scatter of lines about their template in units of that of priors and noise, above which the priors are too narrow."""

FEWEST_LINES = 6
"""Fewest lines whose scatter is assessed."""

MOST_AT_LIMIT = 0.12
"""Part of the star's significant lines at the limit of their change. With another star's template it is one in nine at
the right velocity; beside a line that the template lacks, one in eight."""

LEAST_SNR = 5.0
"""Least signal-to-noise ratio of an equivalent width for a line to count in `MOST_AT_LIMIT`."""

MOST_AMOUNT = 40.0
"""Factor, up or down, on the water of a telluric template: the range from a humid night at sea level to a dry one on a
high mountain. Other molecules have the limits of the fit."""

MOST_SHIFT_KMS = 1.0
"""Shift of the tellurics beyond that of winds and good wavelength scales; three widths of its prior."""

MOST_SCATTER = 5.0
"""Scatter between orders, or parts of one, in units of their errors. The joint error allows for it; its cause is
unknown."""

WIDTH_KINDS = ("ln_sigma", "ln_gamma")
"""Kinds of line parameters whose template values are missing in files of older versions."""

IGNORED_MOVES = {"star": WIDTH_KINDS}
"""Common changes that are not assessed: rotation, which is fitted, broadens all lines of a star."""

KIND_WORDS = {"ln_area": "strength", "ln_sigma": "Gaussian width", "ln_gamma": "Lorentzian width"}
"""Kinds of line parameters in words."""


def assess(result, template_lines: dict[str, Tensor] | None = None, more: Iterable[Reason] = ()) -> Quality:
    """Assess the answer of a fit.

    Parameters
    ----------
    result : FitResult or EchelleFitResult
        Of one order or of many.
    template_lines : dict of Tensor, optional
        Component to (n_line, 4), where the template has its lines, as `LineEmulator.line_parameters`. From the ledger
        when not given: widths then count as they were fitted.
    more : iterable of Reason
        Reasons of the fit itself.

    Returns
    -------
    Quality
    """
    many = isinstance(result.data, list)
    template_known = template_lines is not None
    template_lines = template_lines if template_known else _template_by_ledger(result)
    pixels = observed_pixels(result.data if many else [result.data], result.curvature)
    agreement = template_agreement(result.model, pixels, template_lines.get("star"))
    moves = {
        name: line_moves(
            emulator.line_parameters().detach(),
            template_lines[name],
            torch.as_tensor(result.line_covariance[name]),
            result.curvature.prior_precision[name],
            _priors(result.settings, name),
        )
        for name, emulator in result.model.components.items()
        if result.curvature is not None and name in result.settings.get("priors", {})
    }
    parts = result.evaluate()
    reasons = [
        *more,
        *_iteration(result),
        *_noise(result, agreement),
        *_velocities(result, agreement),
        *_scatter(result.settings, "order_scatter", "orders", "look at the orders one by one"),
        *_scatter(
            result.settings, "part_scatter", "parts of an order", "look for what the template lacks in one of them"
        ),
        *start_reasons(result.settings.get("start")),
        *same_data_reasons(result.settings.get("from_fit")),
        *template_reasons(result.settings.get("template_quality")),
        *_template(result, agreement),
        *_inflation(result.settings.get("star_scale")),
        *_lines(result, moves, template_known),
        *_tellurics(result.settings.get("telluric_scale")),
        *continuum_reasons(result, parts if many else [parts]),
        *_left_out(result),
    ]
    return Quality.of(reasons)


def _priors(settings: dict, name: str) -> dict[str, float]:
    """Widths of a component's priors at the end of the fit, inflation included: the errors allow for their scatter."""
    scale = settings.get("star_scale") if name == "star" else None
    inflation = scale.get("inflation", {}) if scale else {}
    return {kind: width * inflation.get(kind, 1.0) for kind, width in settings["priors"][name].items()}


def _template_by_ledger(result) -> dict[str, Tensor]:
    """Lines before the fit as far as a ledger tells them: strengths and centres."""
    template_lines = {}
    for name, emulator in result.model.components.items():
        values = emulator.line_parameters().detach().double().clone()
        rows = result.ledger[result.ledger["component"] == name]
        change = torch.as_tensor(np.array(rows["delta_ln_area"], dtype=float))
        values[:, KINDS.index("ln_area")] -= change.nan_to_num()
        values[:, KINDS.index("rv_offset")] = 0.0
        template_lines[name] = values
    return template_lines


def _iteration(result) -> Iterator[Reason]:
    if not result.success:
        yield Reason("converged", "doubtful", f"the iteration has not converged ({result.message})")


def _noise(result, agreement: Agreement | None) -> Iterator[Reason]:
    fitted = result.orders[result.orders["fitted"]]
    chi2, jitter = np.asarray(fitted["reduced_chi2"]), np.asarray(fitted["jitter"])
    if np.isnan(chi2).any():
        text = "the data have no uncertainty: all pixels weigh the same, and errors follow from the residual scatter"
        yield Reason("uncertainty", "good", text)
    unpaid = chi2[np.isfinite(chi2) & (jitter == 0.0)]
    if unpaid.size:
        worst = float(unpaid.max())
        text = f"reduced χ² is {worst:.3g}: the model lacks something, and errors are too small by {worst**0.5:.2g}"
        yield from graded("chi2", text, worst, CHI2_DOUBTFUL, CHI2_BAD)
        least = float(unpaid.min())
        text = (
            f"reduced χ² is {least:.3g}: uncertainties are larger than the residuals, and errors too large by "
            f"{max(least, 1e-30) ** -0.5:.2g}"
        )
        if least < CHI2_LOW:
            yield Reason("chi2_low", "doubtful" if least < CHI2_TINY else "good", text, least, CHI2_TINY)
    if (jitter > 0.0).any():
        text = (
            f"jitter was added in {int((jitter > 0).sum())} of {len(fitted)} orders, up to {100 * jitter.max():.2g} % "
            "of the continuum: their model is incomplete, and the errors allow for it"
        )
        yield Reason("jitter", "good", text, float(jitter.max()))
    if agreement is not None:
        text = (
            f"the residual beyond the noise is {agreement.misfit:.2g} times the signal of the star's lines: velocities "
            "follow it as much as the star"
        )
        yield from graded("misfit", text, agreement.misfit, MISFIT_DOUBTFUL, MISFIT_BAD)
    rejected = getattr(result, "rejected", None)
    # A gap is no outlier.
    n_out = 0 if rejected is None else int(np.sum(np.asarray(rejected["reason"]) != "zeros"))
    part = (int(np.sum(fitted["doubted"])) + n_out) / max(int(np.sum(fitted["good"])) + n_out, 1)
    text = f"{100 * part:.2g} % of the pixels are outliers, down-weighted or left out: no noise has as many"
    yield from graded("outliers", text, part, MOST_OUTLIERS)


def _velocities(result, agreement: Agreement | None) -> Iterator[Reason]:
    rotation = result.model.rotation
    names = list(result.parameters["name"])
    if rotation is None or "vsini" not in names or not bool(result.parameters["free"][names.index("vsini")]):
        return
    vsini, error = result.value("vsini"), result.error("vsini")
    if vsini >= (1.0 - 1e-6) * rotation.max_vsini:
        text = (
            f"v sin i stands at the largest value that this model has room for, {rotation.max_vsini:.0f} km/s, and its "
            "error means nothing: give a larger vsini= to start from, or ask whether the template is right"
        )
        yield Reason("vsini_bound", "bad", text, vsini, rotation.max_vsini)
    spreads = [order.line_spread for order in result.model.orders if order.line_spread is not None]
    if spreads:
        widths = [SPEED_OF_LIGHT / math.exp(spread.ln_resolving_power[0].item()) for spread in spreads]
        element = min(widths)
        if vsini + error < RESOLVED_FWHM * element:
            text = (
                f"v sin i is far below the resolution of {element:.1f} km/s: take {vsini + 2 * error:.1f} km/s as its "
                "upper limit, which holds as well as the resolving power is known"
            )
            yield Reason("vsini_upper_limit", "good", text, vsini, RESOLVED_FWHM * element)
    if agreement is not None and math.isfinite(agreement.smearing):
        text = (
            f"rotating with {vsini:.0f} km/s the template keeps {100 * agreement.smearing:.2g} % of its structure: "
            "hardly a line is left that could tell v sin i from continuum and blaze"
        )
        yield from graded("vsini_template", text, agreement.smearing, LEAST_SMEARING, below=True)


def _scatter(settings: dict, key: str, of: str, remedy: str) -> Iterator[Reason]:
    for name, factor in (settings.get(key) or {}).items():
        if factor > 1.0:
            text = (
                f"{name} scatters between {of} {factor:.2g} times as much as their errors allow: its error was "
                f"multiplied by as much; {remedy}"
            )
            status = "doubtful" if factor > MOST_SCATTER else "good"
            yield Reason(f"{key}_{name}", status, text, factor, MOST_SCATTER)


def _template(result, agreement: Agreement | None) -> Iterator[Reason]:
    if agreement is None:
        return
    strength, error = agreement.strength, agreement.strength_error
    significance = strength / error
    text = (
        f"the star is hardly detected: its template has {strength:.2g} ± {error:.2g} of its strength in the data, "
        f"{significance:.1f} standard deviations"
    )
    yield from graded("detection", text, significance, DETECTION_DOUBTFUL, DETECTION_BAD, below=True)
    text = (
        f"data and template correlate with {agreement.correlation:.2f}, noise taken out: they do not show the same "
        "lines; are wavelengths, velocities and the kind of star right?"
    )
    yield from graded("correlation", text, agreement.correlation, CORRELATION_DOUBTFUL, CORRELATION_BAD, below=True)
    text = (
        f"the template agrees better {agreement.elsewhere:+.0f} km/s from the fitted velocity (ln L higher by "
        f"{agreement.gain:.0f}): the star may be there"
    )
    yield from graded("elsewhere", text, agreement.gain, ELSEWHERE_DOUBTFUL, ELSEWHERE_BAD)
    factor = strength * (result.settings.get("star_scale") or {}).get("strength", 1.0)
    if factor > 0.0:
        text = (
            f"the star's lines have {factor:.2g} of the strength that its template has: is the template of this kind "
            "of star, and the flux linear, without scattered light?"
        )
        yield from graded("strength", text, max(factor, 1.0 / factor), STRENGTH_DOUBTFUL, STRENGTH_BAD)
    width = (result.settings.get("star_scale") or {}).get("width", 1.0)
    text = f"the star's lines are {width:.2g} times as wide as in its template: v sin i may be what they have too much"
    yield from graded("width", text, max(width, 1.0 / width), MOST_WIDTH_FACTOR)


def _inflation(scale: dict | None) -> Iterator[Reason]:
    """Reasons where strengths or widths of the star's lines reach the largest prior inflation, as beside missing lines.

    Centres may: on real stars lines are off by a kilometre a second, and the velocity is the mean of all lines.
    """
    inflation = {name: factor for name, factor in (scale or {}).get("inflation", {}).items() if name in KIND_WORDS}
    widest = max(inflation, key=lambda kind: inflation[kind] / MOST_INFLATION[kind], default=None)
    if widest is not None and inflation[widest] > 0.99 * MOST_INFLATION[widest]:
        text = (
            f"the star's lines scatter about their template {inflation[widest]:.2g} times as much as their priors "
            f"expect ({KIND_WORDS[widest]}), or more: does it lack lines? Try missing_lines=0.1, a better template, or "
            "wider star_priors"
        )
        yield Reason("star_inflation", "doubtful", text, inflation[widest], MOST_INFLATION[widest])


def _lines(result, moves: dict[str, dict[str, LineMoves]], template_known: bool) -> Iterator[Reason]:
    for name, kinds in moves.items():
        for kind, move in kinds.items():
            if (kind in WIDTH_KINDS and not template_known) or kind in IGNORED_MOVES.get(name, ()):
                continue
            significance = abs(move.mean) / move.error
            if significance > MOVED_SIGMA and abs(move.mean) > LEAST_MOVE[kind]:
                change = (
                    f"are {move.mean:+.2g} km/s from where their template has them"
                    if kind == "rv_offset"
                    else f"have {math.exp(move.mean):.2g} times the {KIND_WORDS[kind]} of their template"
                )
                text = (
                    f"the {move.n_line} best lines of the {name} {change}, all together ({significance:.1f} standard "
                    "deviations): is the resolving power right, and the template?"
                )
                yield Reason(f"{name}_{kind}", "doubtful", text, significance, MOVED_SIGMA)
        widest = max(
            (kind for kind in kinds if kinds[kind].n_line >= FEWEST_LINES),
            key=lambda kind: kinds[kind].spread,
            default=None,
        )
        if widest is not None:
            spread = kinds[widest].spread
            text = (
                f"lines of the {name} scatter about their template {spread:.2g} times as much as their priors expect "
                f"({KIND_WORDS.get(widest, 'place')}): give wider {name}_priors, or a better template"
            )
            yield from graded(f"{name}_scatter", text, spread, MOST_SPREAD)
    rows = result.ledger[(result.ledger["component"] == "star") & result.ledger["free"]]
    if "at_limit" in rows.colnames and len(rows):
        rows = rows[np.nan_to_num(np.asarray(rows["snr"])) > LEAST_SNR]
        part = float(np.mean(rows["at_limit"])) if len(rows) else 0.0
        text = f"{100 * part:.0f} % of the star's lines are as far from their template as a fit allows"
        yield from graded("lines_at_limit", text, part, MOST_AT_LIMIT)


def _tellurics(scale: dict | None) -> Iterator[Reason]:
    """Reasons where optical depths or the shift of the tellurics are outside the range of observing nights."""
    if not scale:
        return
    far = {
        name: factor
        for name, factor in scale["factors"].items()
        if abs(math.log(factor)) > 0.99 * math.log(min(largest_factor(name), MOST_AMOUNT))
    }
    if far:
        amounts = ", ".join(f"{name or 'all species'} {factor:.3g}" for name, factor in far.items())
        text = (
            f"optical depths, in units of the telluric template's, outside the range of observing nights ({amounts}): "
            "are the data corrected for tellurics already, are the medium and the frame of their wavelengths as "
            "declared, or does the star have lines there that its template lacks?"
        )
        yield Reason("telluric_amount", "doubtful", text, next(iter(far.values())))
    if abs(scale["shift"]) > MOST_SHIFT_KMS:
        text = (
            f"the telluric lines are shifted by {scale['shift']:.2f} km/s, more than winds and errors of wavelength "
            "scales: are the wavelengths in the frame of the observatory, and in the declared medium?"
        )
        yield Reason("telluric_shift", "doubtful", text, scale["shift"], MOST_SHIFT_KMS)


def _left_out(result) -> Iterator[Reason]:
    out = result.orders[~np.asarray(result.orders["fitted"], dtype=bool)]
    if len(out):
        names = ", ".join(map(str, out["order"]))
        yield Reason("orders", "good", f"{len(out)} of {len(result.orders)} orders were left out: {names}", len(out))
    if result.found is not None:
        n_found = len(result.found)
        text = f"{n_found or 'no'} line{'' if n_found == 1 else 's'} found that no template has"
        yield Reason("missing_lines", "good", text, n_found)
