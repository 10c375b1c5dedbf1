"""The data of one spectral order as frozen tensors: wavelengths, pixel edges, flux, noise, which pixels are good.

Torch only, no astropy. Does not live here: units, masks, uncertainty types and the medium (`reading`, which makes these
objects from `specutils.Spectrum`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

__all__ = ["SpectralData", "pixel_edges"]

# Ratio of an interval to the pixel beside it above which it is a gap. A single missing pixel gives 2; real dispersions
# change by far less than a factor 1.1 from one pixel to the next.
_GAP_RATIO = 1.5
# Intervals on each side of a pixel alone between two gaps, from whose median it takes its width.
_NEIGHBOURS = 10


def pixel_edges(wavelength: Tensor) -> Tensor:
    """Lower and upper edge of every pixel, from the pixel centres.

    Edges lie halfway between neighbours. Where pixels are missing (order gaps, dropped pixels) the pixel beside the gap
    keeps the width it has on its other side, so that a gap never becomes a giant pixel: an interval is a gap for a
    pixel when it is more than 1.5 times wider than that pixel's narrower interval. A pixel that stands alone between
    two gaps gets the median spacing of its surroundings. The two ends are extrapolated symmetrically.

    Parameters
    ----------
    wavelength : Tensor or array, shape (n,)
        Strictly ascending pixel centres [Å], at least two.

    Returns
    -------
    Tensor, shape (n, 2), float64
        Lower and upper edges [Å]. Neighbours share their edge exactly, except across a gap; pixels never overlap.

    Raises
    ------
    ValueError
        If the wavelengths are fewer than two, not one-dimensional or not strictly ascending.
    """
    wavelength = torch.as_tensor(wavelength, dtype=torch.float64)
    if wavelength.ndim != 1 or len(wavelength) < 2:
        raise ValueError(
            f"pixel edges need at least two wavelengths in one dimension, got shape {tuple(wavelength.shape)}: "
            "give the edges themselves"
        )
    spacing = wavelength.diff()
    if not bool((spacing > 0).all()):
        raise ValueError("pixel edges need strictly ascending wavelengths: sort them and remove duplicates")

    below = torch.cat([spacing[:1], spacing])
    above = torch.cat([spacing, spacing[-1:]])
    width = torch.minimum(below, above)

    # A pixel alone between two gaps has no spacing of its own and takes the median of its surroundings. The median
    # would be wrong for pixels beside a change of the sampling (0.01 to 0.02 Å in PHOENIX): these have a neighbour at
    # their own spacing.
    around = torch.nn.functional.pad(spacing, (_NEIGHBOURS, _NEIGHBOURS), value=float("inf"))
    around = around.unfold(0, 2 * _NEIGHBOURS, 1)
    suspect = (width > _GAP_RATIO * around.amin(1)).nonzero().squeeze(1)
    if len(suspect):
        surroundings = around[suspect]
        surroundings = surroundings.masked_fill(surroundings.isinf(), float("nan"))
        typical = surroundings.nanmedian(dim=1).values
        width[suspect] = torch.where(width[suspect] > _GAP_RATIO * typical, typical, width[suspect])

    middle = 0.5 * (wavelength[1:] + wavelength[:-1])  # one number for both sides: shared edges are equal to the bit
    lower = wavelength - 0.5 * width
    upper = wavelength + 0.5 * width
    lower[1:] = torch.where(spacing > _GAP_RATIO * width[1:], lower[1:], middle)
    upper[:-1] = torch.where(spacing > _GAP_RATIO * width[:-1], upper[:-1], middle)
    return torch.stack([lower, upper], dim=1)


@dataclass(frozen=True, eq=False)
class SpectralData:
    """One order of observed or template spectrum, ready for the model.

    Bad pixels are kept, without weight, so that a model spectrum comes back on every data pixel. The constructor only
    stores; `from_arrays` cleans and completes.

    Parameters
    ----------
    wavelength : Tensor, shape (n,)
        Pixel centres, vacuum Å, float64, strictly ascending.
    edges : Tensor, shape (n, 2)
        Lower and upper edge of each pixel, vacuum Å, float64.
    flux : Tensor, shape (n,)
        Flux in the unit of the input; zero where not good.
    sigma : Tensor, shape (n,)
        1-sigma noise in the unit of the flux; one where not good or unknown.
    good : Tensor, shape (n,)
        Boolean: the pixel counts.
    noise_known : bool
        Whether `sigma` was measured. If not, errors are to be scaled by the scatter of the residuals.
    """

    wavelength: Tensor
    edges: Tensor
    flux: Tensor
    sigma: Tensor
    good: Tensor
    noise_known: bool

    @classmethod
    def from_arrays(
        cls,
        wavelength: Tensor,
        flux: Tensor,
        *,
        sigma: Tensor | None = None,
        good: Tensor | None = None,
        edges: Tensor | None = None,
    ) -> SpectralData:
        """Data from plain arrays or tensors: a pixel that cannot be used is marked so, nothing is dropped.

        Parameters
        ----------
        wavelength : Tensor or array, shape (n,)
            Strictly ascending pixel centres, vacuum Å.
        flux : Tensor or array, shape (n,)
            Flux; pixels where it is not finite are not good.
        sigma : Tensor or array, shape (n,), optional
            1-sigma noise; pixels where it is not finite and positive are not good. Without it the noise is unknown and
            every good pixel has unit weight.
        good : Tensor or array, shape (n,), optional
            Pixels that may be used; all by default.
        edges : Tensor or array, shape (n, 2), optional
            Pixel edges, vacuum Å; from `pixel_edges` by default.

        Returns
        -------
        SpectralData
            In the floating dtype of `flux` (float64 where `flux` is integer), on its device.

        Raises
        ------
        ValueError
            If the wavelengths are not strictly ascending or the shapes differ.
        """
        flux = torch.as_tensor(flux)
        if not flux.is_floating_point():
            flux = flux.double()
        wavelength = torch.as_tensor(wavelength, dtype=torch.float64, device=flux.device)
        edges = pixel_edges(wavelength) if edges is None else edges
        edges = torch.as_tensor(edges, dtype=torch.float64, device=flux.device)
        noise_known = sigma is not None
        sigma = torch.as_tensor(sigma, dtype=flux.dtype, device=flux.device) if noise_known else torch.ones_like(flux)
        good = torch.ones_like(flux) if good is None else torch.as_tensor(good, device=flux.device)
        n = len(wavelength)
        shapes = [tuple(a.shape) for a in (wavelength, edges, flux, sigma, good)]
        if shapes != [(n,), (n, 2), (n,), (n,), (n,)]:
            raise ValueError(
                f"expected wavelength, flux, sigma and good of one shape (n,) and edges (n, 2), got wavelength "
                f"{shapes[0]}, flux {shapes[2]}, sigma {shapes[3]}, good {shapes[4]}, edges {shapes[1]}"
            )
        if not bool((wavelength.diff() > 0).all()):
            raise ValueError("wavelengths must be strictly ascending: sort them and remove duplicates")
        good = good.bool() & flux.isfinite() & sigma.isfinite() & (sigma > 0)
        return cls(wavelength, edges, flux, sigma, good, noise_known).select(good)

    def __len__(self) -> int:
        """Number of pixels, good or not."""
        return len(self.wavelength)

    @property
    def n_good(self) -> int:
        """Number of good pixels."""
        return int(self.good.sum())

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> SpectralData:
        """A copy on another device or in another precision; wavelengths and edges stay float64.

        A float32 wavelength would quantise velocities to 18-36 m/s, so `dtype` applies to flux and sigma only.

        Parameters
        ----------
        device : torch.device or str, optional
        dtype : torch.dtype, optional

        Returns
        -------
        SpectralData
        """
        return replace(
            self,
            wavelength=self.wavelength.to(device=device),
            edges=self.edges.to(device=device),
            flux=self.flux.to(device=device, dtype=dtype),
            sigma=self.sigma.to(device=device, dtype=dtype),
            good=self.good.to(device=device),
        )

    def select(self, mask: Tensor) -> SpectralData:
        """A copy in which only the good pixels inside `mask` stay good; the number of pixels does not change.

        Parameters
        ----------
        mask : Tensor, shape (n,)
            Boolean, True for pixels to keep.

        Returns
        -------
        SpectralData
        """
        good = self.good & torch.as_tensor(mask, dtype=torch.bool, device=self.good.device)
        return replace(
            self, flux=torch.where(good, self.flux, 0.0), sigma=torch.where(good, self.sigma, 1.0), good=good
        )
