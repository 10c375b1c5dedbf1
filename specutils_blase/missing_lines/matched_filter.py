r"""Matched-filter search for lines that no template has: features of the residuals, their significance and component.

Residuals are compared with the effect of one more line. At each pixel, for each component, the matched filter is the
response to a line of the component's usual widths through rotation, line spread and pixels. Its maxima are candidates.
Each candidate is then tried as a line of the star and as a telluric line, together with all free parameters of the fit.
With the response t of the candidates, the curvature A of the fit and the residuals r, this is one Gauss-Newton step.
The resulting strength over its error, z, is that of the score test,

.. math:: z = \frac{t^T W r}{\sqrt{t^T W t - t^T W J A^{-1} J^T W t}},

which is normal where there is no line, however much neighbours and continuum can absorb. The maximum of z over the data
exceeds a level more often than z at a given wavelength. z is a smooth Gaussian process of wavelength. Over a length L
it rises through a level :math:`E[N(z)] = (L / 2π) \sqrt{λ_2}\, e^{-z^2/2}` times (Rice 1945), with the curvature λ₂ of
its autocorrelation, which is that of the response.

Does not live here: the addition of the lines and the next fit (`fitting.line_search.search`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from scipy.signal import find_peaks
from torch import Tensor

from ..inference.linear.jacobian import linearize
from ..inference.linear.normal_equations import NormalEquations
from ..inference.linear.windows import covariance_cut
from ..inference.noise import Diagonal
from ..model.order import ForwardModel
from ..model.parameters import FreeParameters
from ..physics.grids import SPEED_OF_LIGHT
from ..physics.kernels import convolve
from ..physics.parabola import vertex_offset
from ..physics.scatter import robust_sigma
from ..physics.voigt import voigt, voigt_fwhm

EXPECTED_FALSE = 0.1
"""Default expected number of false lines of a search."""

CANDIDATE_PART = 0.6
"""Height, in units of the threshold, above which a maximum of the matched filter is a candidate.

A neighbouring feature may lower the maximum of a significant line."""

DECISIVE = 6.0
"""Difference of Δχ² above which a line is the star's or telluric rather than undecided; odds of 20."""

HELD = 1e12
"""Precision of held parameters while candidates are tried."""

FREE_PRECISION = 1e-6
"""Prior precision of ln area of a candidate: none in effect."""

RESPONSE_END = 1e-3
"""Height, in units of its peak, at which a response is cut off."""

LINE = ("center", "area", "sigma", "gamma", "blur")
"""Attributes of a `Feature` that describe its line."""

SEEN_WIDTHS = 3.0
"""Distance beyond an order's ends, in widths of the response, up to which the order sees a line."""

NOTHING_FREE = "a search for missing lines needs ln_area among star_lines or telluric_lines; all are held: free one"

MOST_RESPONSE_PIXELS = 400
"""Largest half width of a response, in pixels."""


@dataclass(frozen=True)
class Feature:
    """A significant feature of the residuals, and the line that would explain it.

    Parameters
    ----------
    wavelength : float
        Observed, vacuum Å.
    verdict : str
        "star", "telluric" or "undecided".
    component : str
        Component whose line has the largest z.
    significance : float
        z in that component.
    expected : float
        Expected number of false detections in the whole fit, from noise, and once tried also from strongly displaced
        template lines.
    center, area, sigma, gamma : float
        Parameters of the line, in Å at rest.
    blur : float
        Full width at half maximum [km/s] with which such a line is observed.
    orders : tuple of int
        Orders in whose range it is.
    level : float
        Threshold of the significance in the search that found it.
    usual : dict
        "ln_sigma" and "ln_gamma" to pairs: median ln σ and ln γ [Å] of the component's lines there, and their scatter.
        `sigma` and `gamma` are these medians until the line has been fitted.
    rival : Feature, optional
        The same feature as a line of the other component.
    tried : bool
        Whether a fit without the line has been compared with one with it.
    """

    wavelength: float
    verdict: str
    component: str
    significance: float
    expected: float
    center: float
    area: float
    sigma: float
    gamma: float
    blur: float
    orders: tuple[int, ...]
    level: float = 0.0
    usual: dict[str, tuple[float, float]] = field(default_factory=dict)
    rival: Feature | None = None
    tried: bool = False


@dataclass(frozen=True)
class _Usual:
    """The response to a line of usual widths: of pixels at distance v [km/s], per km/s of opacity area."""

    sigma: float
    gamma: float
    scatter: dict[str, float]
    velocity: np.ndarray
    cumulative: np.ndarray

    @classmethod
    @torch.no_grad()
    def of(cls, order: ForwardModel, name: str) -> _Usual | None:
        view = order.components[name]
        if not len(view):
            return None
        rotation = order.parts[name].rotation
        step = order.sampling.step * SPEED_OF_LIGHT
        per_velocity = SPEED_OF_LIGHT / view.center
        widths = {kind: (getattr(view, kind[3:]).double() * per_velocity).log() for kind in ("ln_sigma", "ln_gamma")}
        sigma, gamma = (math.exp(float(width.median())) for width in widths.values())
        scatter = {kind: 0.5 * float(width.quantile(0.84) - width.quantile(0.16)) for kind, width in widths.items()}
        spread, reach = None, 20.0 * (sigma + gamma) + 4.0 * step
        if order.line_spread is not None:
            spread = order.line_spread.current_taps().detach()
            spread = spread if spread.ndim == 1 else spread[len(spread) // 2]
            reach += step * spread.numel()
        if rotation is not None:
            reach += float(rotation.vsini)
        cells = torch.arange(-math.ceil(reach / step), math.ceil(reach / step) + 1, dtype=torch.float64)
        response = voigt(cells * step, torch.full_like(cells, max(sigma, 0.3 * step)), torch.full_like(cells, gamma))
        response = response if rotation is None else rotation(response)
        response = response if spread is None else convolve(response, spread)
        response = response / (response.sum() * step)
        velocity = (torch.cat([cells[:1] - 0.5, cells + 0.5]) * step).numpy()
        return cls(sigma, gamma, scatter, velocity, np.concatenate([[0.0], np.cumsum(response.numpy()) * step]))

    def at(self, distance: np.ndarray, width: np.ndarray) -> np.ndarray:
        """Mean response over pixels of some width [km/s] at a distance."""
        ends = (np.interp(distance + side * width, self.velocity, self.cumulative) for side in (-0.5, 0.5))
        low, high = ends
        return (high - low) / width

    def half_width(self, width: float, part: float) -> float:
        """Distance [km/s] at which the response has fallen to a part of its peak."""
        distance = np.linspace(0.0, self.velocity[-1], 8000)
        response = self.at(distance, width)
        return float(distance[response > part * response[0]][-1])

    def curvature(self, width: float) -> float:
        """λ₂ [(km/s)⁻²] of the matched filter's noise: ∫K'² / ∫K² of the response K."""
        distance = np.linspace(self.velocity[0], self.velocity[-1], 8001)
        response = self.at(distance, np.full_like(distance, width))
        return float(np.square(np.gradient(response, distance)).sum() / np.square(response).sum())


def _matched(order: ForwardModel, usual: _Usual, flux: np.ndarray, residual: np.ndarray, weight: np.ndarray):
    """z and opacity area [km/s] of the best line at each pixel, FWHM of the response, Rice's constant of the pixels."""
    edges = order.pixels.edges.numpy()
    velocity = SPEED_OF_LIGHT * np.log(edges.mean(1) / edges[0, 0])
    width = SPEED_OF_LIGHT * (edges[:, 1] - edges[:, 0]) / edges.mean(1)
    typical = float(np.median(width))
    half = min(math.ceil(usual.half_width(typical, RESPONSE_END) / float(width.min())), MOST_RESPONSE_PIXELS)
    pixel = np.arange(len(velocity))[:, None] + np.arange(-half, half + 1)
    inside = (pixel >= 0) & (pixel < len(velocity))
    pixel = pixel.clip(0, len(velocity) - 1)
    response = -flux[pixel] * usual.at(velocity[pixel] - velocity[:, None], width[pixel])
    gain = np.where(inside, weight[pixel] * response, 0.0)
    power = np.sum(gain * response, axis=1)
    match = np.sum(gain * residual[pixel], axis=1)
    # Where hardly any light is left, a line has no effect.
    seen = (weight > 0) & (power > 1e-3 * np.median(power[weight > 0]))
    z = np.where(seen, match / np.sqrt(np.where(seen, power, 1.0)), 0.0)
    area = np.where(seen, match / np.where(seen, power, 1.0), 0.0)
    blur = 2.0 * usual.half_width(typical, 0.5)
    return z, area, blur, float(width[seen].sum()) * math.sqrt(usual.curvature(typical)) / (2.0 * math.pi)


@torch.no_grad()
def search(
    free: FreeParameters,
    residual: Sequence[Tensor],
    weight: Sequence[Tensor],
    precision: Tensor,
    expected: float = EXPECTED_FALSE,
) -> tuple[list[Feature], float]:
    """Significant features of a fit's residuals, and the threshold of their significance.

    Parameters
    ----------
    free : FreeParameters
        The solved model and its free parameters. Lines are searched in components whose areas were free; a line that
        another component lacks looks like theirs.
    residual, weight : sequence of Tensor
        For each order data minus model, and inverse variances, zero where a pixel does not count. Weights are lowered
        to the robust scatter of the residuals where that is larger.
    precision : Tensor, (n_parameter,)
        Precision of the priors at the solution.
    expected : float
        Expected number of false lines in the whole fit, from noise.

    Returns
    -------
    features : list of Feature
        In order of wavelength.
    threshold : float
        Smallest significance; infinite without any maximum.

    Raises
    ------
    ValueError
        If no component's areas were free.
    """
    names = [name for name in free.model.components if "ln_area" in free.kinds[name]]
    if not names:
        raise ValueError(NOTHING_FREE)
    scaled = [part / _excess(left, part) for left, part in zip(residual, weight, strict=True)]
    maxima, constant = [], 0.0
    for k, order in enumerate(free.orders):
        order_maxima, order_constant = _maxima(order, names, residual[k], scaled[k])
        maxima += [(*entry, k) for entry in order_maxima]
        constant += order_constant
    if not maxima:
        return [], math.inf
    threshold = math.sqrt(max(2.0 * math.log(constant / expected), 1.0))
    maxima = _distinct(free.orders, [maximum for maximum in maxima if maximum[1] > CANDIDATE_PART * threshold])
    if not maxima:
        return [], threshold
    tried = {name: _try(free, name, maxima, residual, scaled, precision) for name in names}
    features = []
    for index, (wavelength, _, _, orders) in enumerate(maxima):
        z = {name: float(tried[name][0][index]) for name in names}
        best = max(z, key=z.get)
        if not z[best] > threshold:
            continue
        others = [max(z[name], 0.0) for name in names if name != best]
        clear = bool(others) and z[best] ** 2 - max(others) ** 2 > DECISIVE
        shared = {"wavelength": wavelength, "verdict": best if clear else "undecided", "orders": tuple(orders)}
        feature = None
        for name in sorted(names, key=z.get):
            line = {key: float(values[index]) for key, values in zip(LINE, tried[name][1], strict=True)}
            false = constant * math.exp(-0.5 * max(z[name], 0.0) ** 2)
            usual = {kind: (math.log(line[kind[3:]]), scatter) for kind, scatter in tried[name][2][index].items()}
            feature = Feature(
                **shared, component=name, significance=z[name], expected=false, level=threshold, usual=usual,
                rival=feature, **line,
            )  # fmt: skip
        features.append(feature)
    return features, threshold


def _excess(residual: Tensor, weight: Tensor) -> float:
    """Variance of the residuals over that of their weights, robust against lines; at least 1."""
    good = weight > 0
    if not bool(good.any()):
        return 1.0
    return max(1.0, robust_sigma(residual[good] * weight[good].sqrt()) ** 2)


def _maxima(order: ForwardModel, names: list[str], residual: Tensor, weight: Tensor) -> tuple[list[tuple], float]:
    """Wavelength, z, and line by component of the maxima of one order's matched filters, and Rice's constant.

    The filters of star and tellurics are nearly the same, so that their highest value counts at each pixel.
    """
    flux = order().double().numpy()
    filters, constant = {}, 0.0
    for name in names:
        usual = _Usual.of(order, name)
        if usual is not None:
            arrays = (residual.double().numpy(), weight.double().numpy())
            z, area, blur, filter_constant = _matched(order, usual, flux, *arrays)
            filters[name], constant = (z, area, usual, blur), constant + filter_constant
    if not filters:
        return [], 0.0
    height = np.max([z for z, *_ in filters.values()], axis=0)
    peaks, _ = find_peaks(np.concatenate([[0.0], height, [0.0]]), height=1.0)
    peaks = peaks - 1
    wavelength = order.pixels.edges.mean(1).numpy()
    beside = height[np.maximum(peaks - 1, 0)], height[np.minimum(peaks + 1, len(height) - 1)]
    position = peaks + vertex_offset(beside[0], height[peaks], beside[1])
    wavelengths = np.interp(position, np.arange(len(wavelength)), wavelength)
    lines = [
        {
            name: (float(max(area[peak], 0.0)), usual.sigma, usual.gamma, blur, usual.scatter)
            for name, (_, area, usual, blur) in filters.items()
        }
        for peak in peaks
    ]
    return list(zip(wavelengths.tolist(), height[peaks].tolist(), lines, strict=True)), constant


def _distinct(orders: Sequence[ForwardModel], maxima: list[tuple]) -> list[tuple]:
    """Maxima without duplicates in neighbouring orders: the highest of each feature, with all orders in its range."""
    kept: list[tuple] = []
    for wavelength, height, lines, _ in sorted(maxima, key=lambda maximum: -maximum[1]):
        blur = max(line[3] for line in lines.values()) * wavelength / SPEED_OF_LIGHT
        if all(abs(wavelength - other[0]) > 0.5 * blur for other in kept):
            low, high = wavelength - SEEN_WIDTHS * blur, wavelength + SEEN_WIDTHS * blur
            edges = [order.pixels.edges for order in orders]
            seen = [k for k, edge in enumerate(edges) if float(edge.max()) > low and float(edge.min()) < high]
            kept.append((wavelength, height, lines, seen))
    return sorted(kept, key=lambda maximum: maximum[0])


@torch.no_grad()
def _try(free: FreeParameters, name: str, maxima: list[tuple], residual, weight, precision: Tensor):
    """z of every place as a line of one component, and centre, area, σ and γ [Å at rest] of these lines."""
    factor = 1.0 + free.model.parts[name].velocity / SPEED_OF_LIGHT
    center = torch.tensor([maximum[0] for maximum in maxima], dtype=torch.float64) / factor
    usual = [maximum[2].get(name) or next(iter(maximum[2].values())) for maximum in maxima]
    *usual, scatter = zip(*usual, strict=True)
    area, sigma, gamma, blur = (torch.tensor(values, dtype=torch.float64) for values in usual)
    area, sigma, gamma = (center / SPEED_OF_LIGHT * velocity for velocity in (area, sigma, gamma))
    area = torch.maximum(area, 1e-3 * voigt_fwhm(sigma, gamma))  # its derivative to ln area needs some
    grown = with_lines(free, {name: (center, area, sigma, gamma, [maximum[3] for maximum in maxima])})
    free, old = grown.free, grown.old
    jacobian = linearize(free, cut=covariance_cut(free))
    priors = torch.full((len(free),), HELD, dtype=torch.float64)
    priors[old] = precision
    strength = grown.columns[name][:, free.kinds[name].index("ln_area")]
    priors[strength] = FREE_PRECISION
    noise = Diagonal(free.merge(weight))
    normal = NormalEquations(jacobian, free.merge(residual), noise, priors, torch.zeros_like(priors))
    normal.gradient[old] = 0.0  # they stand where data and priors balance
    factored = normal.factor()
    step, variance = factored.solve(normal.gradient)[strength], factored.variance()[strength]
    return step / variance.sqrt(), (center, area * step.clamp(0.1, 10.0), sigma, gamma, blur), scatter


@dataclass(frozen=True)
class Grown:
    """A model with more lines, and the positions of old and new parameters in it.

    Parameters
    ----------
    free : FreeParameters
        Parameters of a model that shares all stages with the old one, with lines of its own.
    old : Tensor
        Positions of the old parameter vector in the new one.
    columns : dict
        Component to the columns of the new lines' parameters, (n_new, n_kind).
    kept, added : dict
        Component to the positions of its old and its new lines among all.
    """

    free: FreeParameters
    old: Tensor
    columns: dict[str, Tensor]
    kept: dict[str, Tensor]
    added: dict[str, Tensor]


def with_lines(free: FreeParameters, more: dict[str, tuple]) -> Grown:
    """The same model and free parameters with more lines in them.

    Parameters
    ----------
    free : FreeParameters
    more : dict
        Component to centre, area, σ, γ [Å at rest] of the new lines, (n_new,) each, and the orders that see each.

    Returns
    -------
    Grown
    """
    model, emulators, lines, kept, added = free.model, {}, {}, {}, {}
    nothing = (torch.zeros(0, dtype=torch.float64),) * 4
    for name, emulator in model.components.items():
        emulators[name], kept[name], added[name] = emulator.with_lines(*more.get(name, nothing)[:4])
        lines[name] = torch.cat([kept[name][free.lines[name]], added[name]]).sort().values
    sees = {
        name: [[line for line, orders in enumerate(columns[4]) if k in orders] for k in range(len(model.orders))]
        for name, columns in more.items()
    }
    seen = [
        {
            name: torch.cat([kept[name][lines_of], added[name][sees[name][k] if name in more else []]]).sort().values
            for name, lines_of in model.seen_lines(k).items()
        }
        for k in range(len(model.orders))
    ]
    grown = FreeParameters(model.with_emulators(emulators, seen), free.kinds, lines, free.globals)
    columns, old = {}, []
    for name in model.components:
        everything = grown.columns(name)
        columns[name] = everything[torch.searchsorted(lines[name], added[name])]
        old.append(everything[torch.searchsorted(lines[name], kept[name][free.lines[name]])].reshape(-1))
    old.append(torch.arange(grown.n_line_parameter, len(grown)))
    return Grown(grown, torch.cat(old), columns, kept, added)
