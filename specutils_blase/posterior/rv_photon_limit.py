r"""How well a radial velocity can be known: from photons alone, behind the sky, and with what the fit leaves free.

Each pixel of flux F and variance σ² that moves with the star brings (∂F/∂v)²/σ² (Bouchy, Pepe & Queloz 2001, A&A 374,
733, eq. 8), so that without any other unknown

.. math:: \frac{1}{σ_v^2} = \sum_i \frac{(∂F_i/∂v)^2}{σ_i^2}, \qquad
          Q = \frac{c}{σ_v \sqrt{\sum_i F_i^2/σ_i^2}} .

Q is their quality factor: Σ F²/σ² is the number of photoelectrons where these are the noise. The derivative comes from
the forward model at two velocities, not from the solver's Jacobian. The variances are the data's own: jitter that a fit
adds, because its model lacks something, is no photon's, nor is its doubt about outliers. What these take away is a step
of its own. Whatever else is unknown takes information away too; how much is read off the fit's own curvature, with more
and more of it free.

Does not live here: the curvature (`posterior`).
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
"""km/s to either side of the solution for ∂F/∂v; good to (0.1 km/s over a line's width)²/6, 1e-4 for the narrowest."""


@dataclass(frozen=True)
class RVPhotonLimit:
    """Smallest errors that the radial velocity can have [km/s], each step with more unknowns than the one before.

    The first two are of the photons: with the uncertainties of the data, or the scatter of the residuals where the data
    bring none. The others have the weights of the fit, with jitter and doubt about outliers in them. A step that cannot
    be told is NaN: without the fit's weights (see `posterior.Curvature`) all between these two and `marginal`, where
    the fit held the velocity all after `fit_noise`.

    Parameters
    ----------
    star_only : float
        Of the star seen without the sky, everything but the velocity known. Pixels then have more light, and more
        photon noise: the variance a + bF that the data's uncertainties follow is taken for the larger flux.
    with_sky : float
        Of star and sky as they were observed, everything but the velocity known: Bouchy et al.'s limit.
    fit_noise : float
        The same with the weights of the fit: what jitter and doubt about outliers take away. Equal to `with_sky` where
        the fit has neither.
    lines_known : float
        With continuum, v sin i and whatever else touches the whole order as free as in the fit, and all lines known.
    star_known : float
        With the lines of the sky free as well.
    marginal : float
        With everything free as in the fit.
    reported : float
        The error that the fit reports: with what residuals that are alike, and orders that disagree, add to it.
    orders : QTable
        One row a fitted order: order, signal_to_noise (the root of Σ F²/σ²), quality (Q, behind the sky),
        quality_star_only; star_only, with_sky and fit_noise, which add up in inverse quadrature.
    sky : bool
        Whether the fit has one. Without it the steps that only the sky sets apart are equal, and not printed.
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
        """The steps: what is unknown, the error, and the part of the information 1/σ² that the step takes away."""
        errors = [getattr(self, name) for name in STEPS]
        lost = [math.nan] + [1.0 - (before / after) ** 2 for before, after in pairwise(errors)]
        return QTable(
            {"step": list(STEPS), "unknown": list(STEPS.values()), "error": errors * u.km / u.s, "lost": lost}
        )

    @property
    def lost_to_sky(self) -> float:
        """Part of the information that the sky's absorption, and not knowing its lines, take away."""
        absorbed, unknown = 1.0 - (self.star_only / self.with_sky) ** 2, 1.0 - (self.lines_known / self.star_known) ** 2
        return absorbed if math.isnan(unknown) else 1.0 - (1.0 - absorbed) * (1.0 - unknown)

    @property
    def lost_to_template(self) -> float:
        """Part of the information that not knowing the star's lines takes away."""
        return 1.0 - (self.star_known / self.marginal) ** 2

    def __repr__(self) -> str:
        absent = () if self.sky else ("with_sky", "star_known")
        if math.isnan(self.fit_noise) or math.isclose(self.fit_noise, self.with_sky, rel_tol=1e-6):
            absent = (*absent, "fit_noise")
        if math.isclose(self.marginal, self.reported, rel_tol=1e-6):
            absent = (*absent, "reported")
        lines, told = ["RVPhotonLimit"], self.table[np.isfinite(self.table["error"])]
        for row in told:
            if row["step"] not in absent:
                lost = f", {round(100 * row['lost'])} % of the information lost" if math.isfinite(row["lost"]) else ""
                unknown = row["unknown"] if self.sky else row["unknown"].removesuffix(" without the sky")
                lines.append(f"  {row['error'].to_value('m/s'):8.2f} m/s  {unknown}{lost}")
        if len(told) < len(STEPS):
            lines.append(
                "  other steps cannot be told: the fit held the velocity, or its weights are not in this result"
            )
        return "\n".join(lines)


STEPS = {
    "star_only": "the velocity alone, of the star without the sky",
    "with_sky": "the velocity alone, behind the sky",
    "fit_noise": "the same, with the jitter that the fit added and the outliers that it doubted",
    "lines_known": "and what touches the whole order",
    "star_known": "and the lines of the sky",
    "marginal": "and the lines of the star",
    "reported": "the same, with residuals that are alike and orders that disagree",
}
"""Steps of `RVPhotonLimit` and what is unknown in each, beside what is in those before."""

ADDED_UP = ("star_only", "with_sky", "fit_noise")
"""Steps that each order has for itself."""


def rv_photon_limit(result) -> RVPhotonLimit | None:
    """The limits of a fit; None without a star.

    Parameters
    ----------
    result : FitResult or EchelleFitResult
        Of one order of a fit of many, the last step is that of all orders.
    """
    if result.model.target is None:
        return None
    models = result.model.orders
    data = result.data if isinstance(result.data, list) else [result.data]
    names = [str(k) for k in range(len(models))]
    if isinstance(result.data, list):
        names = [str(name) for name in result.orders["order"][result.orders["fitted"]]]
    kept = [None] * len(models) if result.curvature is None else result.curvature.weight
    rows = [(name, *_of_order(*each)) for name, *each in zip(names, models, data, kept, strict=True)]
    table = QTable(rows=rows, names=("order", "signal_to_noise", "quality", "quality_star_only", *ADDED_UP))
    total = {name: float(np.sum(table[name] ** -2.0)) ** -0.5 for name in ADDED_UP}
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
    """Inverse variance of the pixels that count, as the data tell it.

    Where they do not, it is that of the fit's weights, `kept`, or if these are unknown the residuals' scatter.
    """
    counts = data.good if kept is None else data.good & (kept > 0)
    if data.noise_known:
        return torch.where(counts, data.sigma.double() ** -2, 0.0)
    if kept is not None:  # jitter and doubt need a noise that is known
        return torch.where(counts, kept, 0.0)
    with torch.no_grad():
        variance = (data.flux - model())[counts].double().square().mean()
    return torch.where(counts, 1.0 / variance, 0.0)


@torch.no_grad()
def _of_order(model: ForwardModel, data: SpectralData, kept: Tensor | None) -> tuple[float, ...]:
    """Signal-to-noise ratio, Q behind the sky and without it, and the velocity's errors of `ADDED_UP`.

    `kept` are the fit's weights, where they are known.
    """
    star = model.target
    sky, rv = product(model.parts, model.stages().parts, but=star.name), star.velocity
    moved = [_star(model, rv + shift) for shift in (-SHIFT, SHIFT)]
    weight = _photon_weight(model, data, kept)
    good = weight > 0
    variance = 1.0 / weight[good]

    def observed(star: Tensor, behind: bool) -> Tensor:
        return _recorded(model, star if sky is None or not behind else star * sky)[good]

    def told(behind: bool, noise: Tensor) -> tuple[float, float, Tensor]:
        low, high = (observed(star, behind) for star in moved)
        flux, slope = 0.5 * (low + high), (high - low) / (2.0 * SHIFT)
        return float((flux.square() / noise).sum()) ** 0.5, _error(slope, 1.0 / noise), slope

    here = observed(_star(model, rv), True)
    snr, with_sky, slope = told(True, variance)
    snr_alone, star_only = snr, with_sky
    if sky is not None:
        brighter = (observed(_star(model, rv), False) - here).clamp(min=0.0)
        snr_alone, star_only, _ = told(False, variance + _photon_noise(here, variance) * brighter)
    quality, quality_alone = SPEED_OF_LIGHT / (with_sky * snr), SPEED_OF_LIGHT / (star_only * snr_alone)
    fit_noise = math.nan if kept is None else _error(slope, kept[good])
    return snr, quality, quality_alone, star_only, with_sky, fit_noise


def _error(slope: Tensor, weight: Tensor) -> float:
    """The velocity's, alone unknown; infinite where nothing moves."""
    return float((slope.square() * weight).sum()) ** -0.5 if bool((slope != 0).any()) else math.inf


def _star(model: ForwardModel, rv: float) -> Tensor:
    """The rotated star at another velocity, on the model's grid."""
    star = model.target
    return star.appear(star.emulator(model.sampling, 1.0 + rv / SPEED_OF_LIGHT))


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
    shared = (normal.border >= free.n_line_parameter).nonzero().squeeze(-1)  # broad lines stand in the border too
    lines_known = torch.linalg.inv(normal.corner[shared][:, shared])
    at = int((normal.border[shared] == rv).nonzero())
    star_known = normal.factor().border_covariance()[shared][:, shared]
    return float(lines_known[at, at]) ** 0.5, float(star_known[at, at]) ** 0.5
