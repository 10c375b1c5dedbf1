r"""Limits on the error of a radial velocity: from photons alone, behind tellurics, and with the fit's free parameters.

Each pixel of flux F and variance σ² that moves with the star brings (∂F/∂v)²/σ² (Bouchy, Pepe & Queloz 2001, A&A 374,
733, eq. 8), so that without any other unknown

.. math:: \frac{1}{σ_v^2} = \sum_i \frac{(∂F_i/∂v)^2}{σ_i^2}, \qquad
          Q = \frac{c}{σ_v \sqrt{\sum_i F_i^2/σ_i^2}} .

Q is their quality factor: Σ F²/σ² is the number of photoelectrons where these are the noise. The derivative comes from
the forward model at two velocities, not from the solver's Jacobian. The variances are the data's own, without the
jitter of the fit and the down-weighting of outliers, whose loss of information is a step of its own. Further steps free
more and more of the other parameters, by the curvature of the fit.

Does not live here: the curvature (`laplace`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import astropy.units as u
import numpy as np
import torch
from astropy.table import QTable
from scipy.optimize import nnls
from torch import Tensor

from ..model.component import product
from ..model.order import ForwardModel
from ..physics.grids import SPEED_OF_LIGHT
from ..spectra.data import SpectralData
from .laplace import WIDENED, Curvature, free_parameters, normal_equations

SHIFT = 0.1
"""Velocity step [km/s] to either side for ∂F/∂v. Its error is (0.1 km/s over a line's width)²/6, 1e-4 for the narrowest
lines."""


@dataclass(frozen=True)
class RVPhotonLimit:
    """Smallest possible errors of the radial velocity [km/s], each step with more unknowns than the one before.

    The first two are photon limits, from the uncertainties of the data, or the scatter of the residuals where these
    have none. The others have the weights of the fit, with its jitter and down-weighted outliers. Unknown steps are
    NaN: without the fit's weights (see `laplace.Curvature`) those between the first two and `marginal`; with a held
    velocity those after `fit_noise`.

    Parameters
    ----------
    star_only : float
        The star without tellurics, all but the velocity known. Pixels then have more light and more photon noise, by
        the variance a + bF fitted to the uncertainties of the data.
    with_sky : float
        Star and tellurics as observed, all but the velocity known: Bouchy et al.'s limit.
    fit_noise : float
        The same with the weights of the fit: with jitter and down-weighted outliers. Equal to `with_sky` where the fit
        has neither.
    lines_known : float
        With continuum, v sin i and other parameters of the whole order as free as in the fit, and all lines known.
    star_known : float
        With the telluric lines free as well.
    marginal : float
        With everything free as in the fit.
    reported : float
        The error of the fit: with the factors for correlated residuals and for the scatter between orders.
    orders : QTable
        One row a fitted order: order, signal_to_noise (the root of Σ F²/σ²), quality (Q, behind tellurics),
        quality_star_only; star_only, with_sky and fit_noise, which add up in inverse quadrature.
    sky : bool
        Whether the fit has tellurics. Without them `with_sky` and `star_known` add nothing and are not printed.
    """

    star_only: float
    with_sky: float
    fit_noise: float
    lines_known: float
    star_known: float
    marginal: float
    reported: float
    orders: QTable
    sky: bool = True

    @property
    def table(self) -> QTable:
        """One row a step: its unknowns, its error, and the part of the information 1/σ² that it loses."""
        errors = [getattr(self, name) for name in STEPS]
        lost = [math.nan] + [1.0 - (before / after) ** 2 for before, after in pairwise(errors)]
        return QTable(
            {"step": list(STEPS), "unknown": list(STEPS.values()), "error": errors * u.km / u.s, "lost": lost}
        )

    @property
    def lost_to_sky(self) -> float:
        """Part of the information that is lost to telluric absorption and to unknown telluric lines."""
        absorbed, unknown = 1.0 - (self.star_only / self.with_sky) ** 2, 1.0 - (self.lines_known / self.star_known) ** 2
        return absorbed if math.isnan(unknown) else 1.0 - (1.0 - absorbed) * (1.0 - unknown)

    @property
    def lost_to_template(self) -> float:
        """Part of the information that is lost to unknown lines of the star."""
        return 1.0 - (self.star_known / self.marginal) ** 2

    def __repr__(self) -> str:
        absent = () if self.sky else ("with_sky", "star_known")
        if math.isnan(self.fit_noise) or math.isclose(self.fit_noise, self.with_sky, rel_tol=1e-6):
            absent = (*absent, "fit_noise")
        if math.isclose(self.marginal, self.reported, rel_tol=1e-6):
            absent = (*absent, "reported")
        lines, rows = ["RVPhotonLimit"], self.table[np.isfinite(self.table["error"])]
        for row in rows:
            if row["step"] not in absent:
                lost = f", {round(100 * row['lost'])} % of the information lost" if math.isfinite(row["lost"]) else ""
                unknown = row["unknown"] if self.sky else row["unknown"].removesuffix(" without tellurics")
                lines.append(f"  {row['error'].to_value('m/s'):8.2f} m/s  {unknown}{lost}")
        if len(rows) < len(STEPS):
            lines.append("  other steps are unknown: the fit held the velocity, or its weights are not in this result")
        return "\n".join(lines)


STEPS = {
    "star_only": "the velocity alone, of the star without tellurics",
    "with_sky": "the velocity alone, behind tellurics",
    "fit_noise": "the same, with jitter and down-weighted outliers",
    "lines_known": "and parameters of the whole order",
    "star_known": "and the telluric lines",
    "marginal": "and the lines of the star",
    "reported": "the same, with correlated residuals and scatter between orders",
}
"""Steps of `RVPhotonLimit`, and the unknowns that each adds to those before."""

ORDER_STEPS = ("star_only", "with_sky", "fit_noise")
"""Steps that are known for each order."""


def rv_photon_limit(result) -> RVPhotonLimit | None:
    """The limits of a fit; None without a star.

    Parameters
    ----------
    result : FitResult or EchelleFitResult
        Of one order of a fit of many, the last step is that of all orders.

    Returns
    -------
    RVPhotonLimit or None
    """
    if result.model.target is None:
        return None
    models, is_list = result.model.orders, isinstance(result.data, list)
    data = result.data if is_list else [result.data]
    names = [str(k) for k in range(len(models))]
    if is_list:
        names = [str(name) for name in result.orders["order"][result.orders["fitted"]]]
    kept = [None] * len(models) if result.curvature is None else result.curvature.weight
    rows = [(name, *_of_order(*order_parts)) for name, *order_parts in zip(names, models, data, kept, strict=True)]
    table = QTable(rows=rows, names=("order", "signal_to_noise", "quality", "quality_star_only", *ORDER_STEPS))
    total = {name: float(np.sum(table[name] ** -2.0)) ** -0.5 for name in ORDER_STEPS}
    for name in total:
        table[name] = table[name] * u.km / u.s
    sky, lines_known, star_known = len(result.model.parts) > 1, math.nan, math.nan
    if result.curvature is not None:
        lines_known, star_known = with_freedom(result.model, result.parameters, result.curvature)
    reported = result.error("rv") or math.nan  # no error: it was held
    steps = total | {
        "lines_known": lines_known,
        "star_known": star_known if sky else lines_known,
        "marginal": reported / math.prod(result.settings.get(name, {}).get("rv", 1.0) for name in WIDENED),
        "reported": reported,
    }
    return RVPhotonLimit(**steps, orders=table, sky=sky)


def _photon_weight(model: ForwardModel, data: SpectralData, kept: Tensor | None) -> Tensor:
    """Inverse variance of the pixels that count, by the uncertainties of the data.

    Without uncertainties it is that of the fit's weights, `kept`, or of the scatter of the residuals.
    """
    counts = data.good if kept is None else data.good & (kept > 0)
    if data.noise_known:
        return torch.where(counts, data.sigma.double() ** -2, 0.0)
    if kept is not None:  # jitter and down-weighting need known noise
        return torch.where(counts, kept, 0.0)
    with torch.no_grad():
        variance = (data.flux - model())[counts].double().square().mean()
    return torch.where(counts, 1.0 / variance, 0.0)


@torch.no_grad()
def _of_order(model: ForwardModel, data: SpectralData, kept: Tensor | None) -> tuple[float, ...]:
    """Signal-to-noise ratio, Q behind tellurics and without them, and the velocity's errors of `ORDER_STEPS`.

    `kept` are the fit's weights, where they are known.
    """
    target = model.target
    sky, rv = product(model.parts, model.stages().parts, but=target.name), target.velocity
    moved = [_star(model, rv + shift) for shift in (-SHIFT, SHIFT)]
    weight = _photon_weight(model, data, kept)
    good = weight > 0
    variance = 1.0 / weight[good]

    def observed(star: Tensor, behind: bool) -> Tensor:
        return _recorded(model, star if sky is None or not behind else star * sky)[good]

    def photon_limit(behind: bool, noise: Tensor) -> tuple[float, float, Tensor]:
        low, high = (observed(star, behind) for star in moved)
        flux, slope = 0.5 * (low + high), (high - low) / (2.0 * SHIFT)
        return float((flux.square() / noise).sum()) ** 0.5, _error(slope, 1.0 / noise), slope

    observed_flux = observed(_star(model, rv), True)
    snr, with_sky, slope = photon_limit(True, variance)
    snr_alone, star_only = snr, with_sky
    if sky is not None:
        brighter = (observed(_star(model, rv), False) - observed_flux).clamp(min=0.0)
        snr_alone, star_only, _ = photon_limit(False, variance + _photon_noise(observed_flux, variance) * brighter)
    quality, quality_alone = SPEED_OF_LIGHT / (with_sky * snr), SPEED_OF_LIGHT / (star_only * snr_alone)
    fit_noise = math.nan if kept is None else _error(slope, kept[good])
    return snr, quality, quality_alone, star_only, with_sky, fit_noise


def _error(slope: Tensor, weight: Tensor) -> float:
    """Error of the velocity, all else known; infinite for a flux without slope."""
    return float((slope.square() * weight).sum()) ** -0.5 if bool((slope != 0).any()) else math.inf


def _star(model: ForwardModel, rv: float) -> Tensor:
    """The rotated star at another velocity, on the model's grid."""
    target = model.target
    return target.appear(target.emulator(model.sampling, 1.0 + rv / SPEED_OF_LIGHT))


def _recorded(model: ForwardModel, flux: Tensor) -> Tensor:
    """A spectrum on the model's grid as the instrument records it."""
    for stage in (model.line_spread, model.pixels, model.continuum):
        flux = flux if stage is None else stage(flux)
    return flux


def _photon_noise(flux: Tensor, variance: Tensor) -> float:
    """b ≥ 0 of the variance a + bF that the uncertainties follow, by relative least squares; 0 if they do not."""
    design = np.stack([np.ones(flux.numel()), flux.clamp(min=0.0).numpy() / float(flux.mean().abs())], axis=1)
    scale = variance.numpy()
    (_, slope), _ = nnls(design / scale[:, None] * scale.mean(), np.ones(scale.size))
    return float(slope * scale.mean() / float(flux.mean().abs()))


def with_freedom(model, parameters: QTable, curvature: Curvature) -> tuple[float, float]:
    """Errors of the velocity with all lines known, and with those of the star known; NaN where it was held."""
    free = free_parameters(model, parameters, curvature)
    key = free.key_of(model.target.doppler.rv)
    if key is None:
        return math.nan, math.nan
    rv = free.global_slices[key].start
    normal = normal_equations(free, curvature, hold=model.target.name)
    shared = (normal.border >= free.n_line_parameter).nonzero().squeeze(-1)  # broad lines are in the border too
    lines_known = torch.linalg.inv(normal.corner[shared][:, shared])
    position = int((normal.border[shared] == rv).nonzero())
    star_known = normal.factor().border_covariance()[shared][:, shared]
    return float(lines_known[position, position]) ** 0.5, float(star_known[position, position]) ** 0.5
