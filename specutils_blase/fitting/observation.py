"""The orders of an observation as a fit takes them: data, the way back, and what is known beside the flux.

Does not live here: units and masks of one spectrum (`spectrum`), what muler objects and headers tell
(`adapters.muler`).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from specutils import Spectrum

from ..spectra.data import SpectralData
from ..spectra.reading import SpectrumFrame, read_spectrum, to_resolving_power

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
        Why each pixel was left out before the fit: an index into `rejection.REASONS`. Their fluxes stay in `data`.
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
    def span(self) -> tuple[float, float]:
        """First and last wavelength, vacuum Å."""
        return float(self.data.wavelength[0]), float(self.data.wavelength[-1])

    @property
    def fitted_span(self) -> tuple[float, float]:
        """First and last wavelength that counts, vacuum Å: what lies beyond, the data say nothing about."""
        counting = self.data.wavelength[self.data.good]
        return float(counting[0]), float(counting[-1])


def read_order(
    spectrum: Spectrum,
    *,
    resolving_power=None,
    medium: str = "vacuum",
    barycentric_velocity=None,
    index: int = 0,
    n_parameter: int = 0,
    trim: bool = False,
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

    Raises
    ------
    ValueError
        If it cannot be fitted; the message says why.
    """
    from ..adapters.muler import describe_order, good_pixels

    data, frame = read_spectrum(spectrum, medium=medium)
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
    spectra: Sequence[Spectrum], *, resolving_power=None, **options
) -> tuple[list[ObservedOrder], dict[int, tuple[str, str]]]:
    """All orders that can be fitted, and of those that cannot name and reason, by their position.

    Parameters
    ----------
    spectra : sequence of Spectrum
    resolving_power : float or sequence of float, optional
        One for all, or one an order.
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
    names, orders, excluded = order_names(spectra), [], {}
    for index, (spectrum, power) in enumerate(zip(spectra, powers, strict=True)):
        try:
            order = read_order(spectrum, resolving_power=power, index=index, trim=True, **options)
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


def warn_excluded(excluded: dict[int, tuple[str, str]]) -> None:
    """Tell the user which orders take no part in a fit, and why."""
    for index, (_, reason) in sorted(excluded.items()):
        warnings.warn(f"order {index} of the list is left out: {reason}", RuntimeWarning, stacklevel=4)
