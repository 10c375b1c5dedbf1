"""An observation as a fit takes it: orders with their data, noise, scale and what is known beside the flux.

Does not live here: units and masks of one spectrum (`spectra.reading`), what muler objects and headers tell
(`adapters.muler`), what a fit learns of the noise (`fitting.residuals.noise`).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from specutils import Spectrum

from ..inference.noise import Diagonal
from ..physics.scatter import difference_scatter
from ..spectra.data import SpectralData
from ..spectra.frame import SpectrumFrame
from ..spectra.quantities import to_resolving_power
from ..spectra.reading import read_spectrum

logger = logging.getLogger(__name__)

PIXELS_PER_PARAMETER = 3
"""Good pixels that each parameter needs: about a resolution element, within which pixels tell the same."""

FEWEST_ELEMENTS = 5
"""Resolution elements of the shortest data: with fewer there is no line beside its continuum."""

LEAST_NOISE = 1e-4
"""Noise of a pixel in units of the median noise, below which it is a flaw of the reduction."""


@dataclass(frozen=True, eq=False)
class ObservedOrder:
    """One order, ready for a fit.

    Parameters
    ----------
    index : int
        Position in the list that was given.
    name : str
        See `order_names`.
    data : SpectralData
    frame : SpectrumFrame
    resolving_power : float
    scale : float
        Median flux of the good pixels, which the fit divides by.
    barycentric_velocity : float or None
        km/s to be added to velocities measured as observed.
    rejected : Tensor, (n,) int8, optional
        Why each pixel was left out before the fit: an index into `rejected_pixels.REASONS`. Their
        fluxes stay in `data`.
    """

    index: int
    name: str
    data: SpectralData
    frame: SpectrumFrame
    resolving_power: float
    scale: float
    barycentric_velocity: float | None
    rejected: torch.Tensor | None = None

    @property
    def flux(self) -> torch.Tensor:
        """Flux in units of the scale, (n,)."""
        return self.data.flux.double() / self.scale

    @property
    def sigma(self) -> torch.Tensor:
        """Noise in units of the scale, (n,): that of the data, or the scatter of neighbouring pixels."""
        known = self.data.noise_known
        return self.data.sigma.double() / self.scale if known else scatter(self.flux, self.data.good)

    @property
    def span(self) -> tuple[float, float]:
        """First and last wavelength, vacuum Å."""
        return float(self.data.wavelength[0]), float(self.data.wavelength[-1])

    @property
    def fitted_span(self) -> tuple[float, float]:
        """First and last wavelength that counts, vacuum Å: what lies beyond, the data say nothing about."""
        counting = self.data.wavelength[self.data.good]
        return float(counting[0]), float(counting[-1])


def scatter(flux: torch.Tensor, good: torch.Tensor) -> torch.Tensor:
    """Noise from differences of every other pixel (DER_SNR, Stoehr et al. 2008), the same for every pixel."""
    noise = difference_scatter(flux[good], stride=2)
    return torch.full_like(flux, 0.01 if math.isnan(noise) else max(noise, 1e-4))


@dataclass(frozen=True, eq=False)
class Observation:
    """What was observed: the orders that can be fitted, and why others cannot.

    Parameters
    ----------
    orders : tuple of ObservedOrder
    is_list : bool
        Whether they came as a list: one of a list may be left out, and spectra of the result are lists.
    excluded : dict
        Position in the list to name and reason of what is left out.
    """

    orders: tuple[ObservedOrder, ...]
    is_list: bool
    excluded: dict[int, tuple[str, str]] = field(default_factory=dict)

    @property
    def span(self) -> tuple[float, float]:
        """First and last wavelength of all orders, vacuum Å."""
        return min(order.span[0] for order in self.orders), max(order.span[1] for order in self.orders)

    @property
    def finest(self) -> float:
        """Highest resolving power of all orders."""
        return max(order.resolving_power for order in self.orders)

    def without(self, reasons: dict[int, str]) -> Observation:
        """Without some of the orders, by their places among these, for reasons."""
        gone = {self.orders[k].index: (self.orders[k].name, reason) for k, reason in reasons.items()}
        kept = tuple(order for k, order in enumerate(self.orders) if k not in reasons)
        return replace(self, orders=kept, excluded=self.excluded | gone)


def observe(data: Spectrum | Sequence[Spectrum], *, noise=None, **options) -> Observation:
    """The observation in what a user holds.

    Parameters
    ----------
    data : Spectrum or sequence of Spectrum
    noise : Diagonal or sequence of Diagonal, optional
        One, or one an order, of the pixels as the spectrum has them.
    **options
        As of `read_order`.

    Raises
    ------
    ValueError, TypeError
        If nothing can be fitted; the message says why.
    """
    if isinstance(data, (list, tuple)):
        orders, excluded = read_orders(data, noise=noise, **options)
        return Observation(tuple(orders), True, excluded)
    return Observation((read_order(data, noise=noise, **options),), False)


def read_order(
    spectrum: Spectrum,
    *,
    resolving_power=None,
    medium: str = "vacuum",
    barycentric_velocity=None,
    index: int = 0,
    n_parameter: int = 0,
    trim: bool = False,
    noise: Diagonal | None = None,
) -> ObservedOrder:
    """One order from what the user holds.

    Parameters
    ----------
    spectrum : Spectrum
        muler objects bring resolving power, order number and barycentric velocity along.
    resolving_power, barycentric_velocity : optional
        Given ones come first.
    medium : "vacuum" or "air"
        What the wavelengths are.
    index : int
        Position among the orders.
    n_parameter : int
        Number of parameters, each of which needs `PIXELS_PER_PARAMETER` good pixels.
    trim : bool
        Drop the edges that muler calls noisy.
    noise : Diagonal, optional
        Of the pixels as the spectrum has them, in its unit of flux, in place of its uncertainties.

    Raises
    ------
    ValueError
        If it cannot be fitted; the message says why.
    """
    from ..adapters.muler import describe_order, good_pixels

    data, frame = read_spectrum(spectrum, medium=medium)
    if noise is not None:
        data = _with_noise(data, noise, frame)
    info = describe_order(spectrum, barycentric_velocity=barycentric_velocity)
    if trim:
        data = data.select(torch.as_tensor(good_pixels(spectrum)[frame.order]))
    resolving_power = info.resolving_power if resolving_power is None else resolving_power
    if resolving_power is None:
        raise ValueError(
            "the data do not say their resolving power: pass resolving_power=λ/FWHM (HPF 55000, IGRINS 45000, "
            "NIRSPEC 20000)"
        )
    data = _without_absurd_noise(data)
    if data.n_good <= PIXELS_PER_PARAMETER * n_parameter:
        raise ValueError(
            f"{data.n_good} good pixels cannot constrain {n_parameter} parameters: unmask more than "
            f"{PIXELS_PER_PARAMETER * n_parameter} of them"
        )
    scale = float(data.flux[data.good].median())
    if not scale > 0.0:
        raise ValueError(f"the median flux of the good pixels is {scale:.3g}: there is no light to fit")
    resolving_power = to_resolving_power(resolving_power)
    ends = data.wavelength[data.good][[0, -1]]
    n_element = resolving_power * math.log(float(ends[1] / ends[0]))
    if n_element < FEWEST_ELEMENTS:
        raise ValueError(
            f"a resolving power of {resolving_power:.4g} leaves {n_element:.2g} resolution elements between "
            f"{ends[0]:.2f} and {ends[1]:.2f} Å, expected at least {FEWEST_ELEMENTS}: give resolving_power=λ/FWHM"
        )
    return ObservedOrder(
        index=index,
        name=str(index if info.order is None else info.order),
        data=data,
        frame=frame,
        resolving_power=resolving_power,
        scale=scale,
        barycentric_velocity=info.barycentric_velocity,
    )


def _with_noise(data: SpectralData, noise: Diagonal, frame: SpectrumFrame) -> SpectralData:
    """The data with the noise that a user gives."""
    if not isinstance(noise, Diagonal):
        raise TypeError(
            "noise must be a Diagonal, independent from pixel to pixel, such as Diagonal.of_sigma(sigma): a fit has no "
            f"equations for other noise yet; got {noise!r}"
        )
    if noise.weight.shape != data.flux.shape:
        raise ValueError(
            f"noise is of {tuple(noise.weight.shape)} pixels and the spectrum has {tuple(data.flux.shape)}: give one "
            "value a pixel, for a list of spectra one Diagonal each"
        )
    weight = noise.weight.double()[torch.as_tensor(np.ascontiguousarray(frame.order))]
    counts = data.good & (weight > 0.0)
    sigma = torch.where(counts, weight, 1.0) ** -0.5
    return replace(data, sigma=sigma.to(data.sigma.dtype), good=counts, noise_known=True)


def _without_absurd_noise(data: SpectralData) -> SpectralData:
    """Without pixels that claim to be thousands of times as precise as the others: one would be all that counts."""
    if not data.noise_known or not data.n_good:
        return data
    absurd = data.good & (data.sigma < LEAST_NOISE * data.sigma[data.good].median())
    if not bool(absurd.any()):
        return data
    count, first = int(absurd.sum()), float(data.wavelength[absurd][0])
    warnings.warn(
        f"{'1 pixel is' if count == 1 else f'{count} pixels are'} left out, the first at {first:.3f} Å: an uncertainty "
        f"less than {LEAST_NOISE:g} of the median is a flaw of the reduction",
        RuntimeWarning,
        stacklevel=5,
    )
    return data.select(~absurd)


def read_orders(
    spectra: Sequence[Spectrum], *, resolving_power=None, noise=None, **options
) -> tuple[list[ObservedOrder], dict[int, tuple[str, str]]]:
    """All orders that can be fitted, and of those that cannot name and reason, by their position.

    Parameters
    ----------
    spectra : sequence of Spectrum
    resolving_power : float or sequence of float, optional
        One for all, or one an order.
    noise : sequence of Diagonal, optional
        One an order.
    **options
        As of `read_order`.

    Raises
    ------
    ValueError
        If none can be fitted.
    """
    n_order = len(spectra)
    if np.ndim(resolving_power):
        if len(resolving_power) != n_order:
            raise ValueError(
                f"expected one resolving power, or one for each of {n_order} orders, got {len(resolving_power)}"
            )
        powers = list(resolving_power)
    else:
        powers = [resolving_power] * n_order
    noises = [None] * n_order if noise is None else noise
    if not isinstance(noises, (list, tuple)) or len(noises) != n_order:
        raise ValueError(f"expected one noise for each of {n_order} orders, got {noise!r}")
    names, orders, excluded = order_names(spectra), [], {}
    for index, (spectrum, power, own) in enumerate(zip(spectra, powers, noises, strict=True)):
        try:
            order = read_order(spectrum, resolving_power=power, index=index, trim=True, noise=own, **options)
            orders.append(replace(order, name=names[index]))
        except (ValueError, TypeError) as reason:
            excluded[index] = names[index], str(reason)
    if not orders:
        reasons = "; ".join(f"{index}: {reason}" for index, (_, reason) in list(excluded.items())[:3])
        raise ValueError(f"none of {n_order} orders can be fitted ({reasons or 'the list is empty'})")
    return orders, excluded


def order_names(spectra: Sequence[Spectrum]) -> list[str]:
    """What orders are called: by their numbers on the detector, if known, otherwise by their positions.

    Where several have the same, as in two exposures, the position follows: "5#0", "5#28".
    """
    from ..adapters.muler import order_number

    numbers = [order_number(spectrum) for spectrum in spectra]
    names = [str(index if number is None else number) for index, number in enumerate(numbers)]
    return [f"{name}#{index}" if names.count(name) > 1 else name for index, name in enumerate(names)]
