"""What a fit believes of the noise: the data's own, an extra jitter an order, and doubt about outliers.

A model that lacks something leaves residuals larger than the noise. Believed at face value, they make errors too small
and let the most precise pixels bend everything else. Does not live here: the fit (`fitting`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from scipy.optimize import brentq
from torch import Tensor

from .huber_weight import huber_weight

INCOMPLETE = 1.5
"""χ² per degree of freedom from which on the model of an order counts as incomplete."""

SETTLED = 0.03
"""Relative change of the noise of an order below which another fit would change nothing."""


class NoiseModel:
    r"""Variance and weight of every pixel, :math:`w = h / (f^2 σ^2 + s^2)`.

    f scales a noise that the data do not tell; s, the jitter, is what must be added to a noise that they do tell for χ²
    per degree of freedom to be 1, where without it this exceeds `INCOMPLETE`; ``h = min(1, 3σ/|r|)`` is Huber's weight.

    Parameters
    ----------
    sigma, good : sequence of Tensor
        Noise and usable pixels of each order, in the units of the fit.
    known : sequence of bool
        Whether an order's noise was measured.
    jitter, robust : bool
        Whether jitter may be added, and outliers doubted, in orders whose model is incomplete.
    """

    def __init__(
        self, sigma: Sequence[Tensor], good: Sequence[Tensor], known: Sequence[bool], *, jitter: bool, robust: bool
    ):
        self.sigma, self.good, self.known = list(sigma), list(good), list(known)
        self.may_add_jitter, self.may_down_weight = jitter, robust
        self.factor = [1.0] * len(self.sigma)
        self.jitter = [0.0] * len(self.sigma)
        self.huber = [torch.ones_like(each) for each in self.sigma]
        self.rejected = [torch.zeros(each.shape, dtype=torch.int8) for each in self.sigma]
        """Why each pixel was left out while fitting: an index into `rejected_pixels.REASONS`."""

    @property
    def adapts(self) -> bool:
        """Whether residuals can change anything."""
        return self.may_add_jitter or self.may_down_weight or not all(self.known)

    def anew(self) -> NoiseModel:
        """The same noise with neither jitter nor doubt: for a model that lacks less than the one they came from."""
        fresh = NoiseModel(self.sigma, self.good, self.known, jitter=self.may_add_jitter, robust=self.may_down_weight)
        fresh.factor, fresh.rejected = list(self.factor), list(self.rejected)
        return fresh

    def part(self, k: int) -> NoiseModel:
        """The noise of order k alone; what it learns, this one knows."""
        return _Part(self, k)

    def variance(self, k: int) -> Tensor:
        return (self.factor[k] * self.sigma[k]).square() + self.jitter[k] ** 2

    def weights(self) -> list[Tensor]:
        """Weight of every pixel of each order, zero where it does not count."""
        return [torch.where(good, self.huber[k] / self.variance(k), 0.0) for k, good in enumerate(self.good)]

    def doubted(self, k: int) -> int:
        """Number of pixels of order k whose weight Huber's rule has lowered."""
        return int((self.huber[k][self.good[k]] < 1.0).sum())

    def reject(self, k: int, codes: Tensor) -> bool:
        """Leave pixels of order k out from now on; True if there are new ones.

        Parameters
        ----------
        codes : Tensor, (n,) int8
            As of `rejected_pixels`: not 0 where a pixel goes.
        """
        new = self.good[k] & (codes > 0)
        if not bool(new.any()):
            return False
        self.good[k] = self.good[k] & ~new
        self.rejected[k] = torch.where(new, codes, self.rejected[k])
        return True

    def update(self, residuals: Sequence[Tensor], used: Sequence[float]) -> bool:
        """Learn from residuals; True if that changed the noise enough for another fit.

        Parameters
        ----------
        residuals : sequence of Tensor
            Data minus model of each order.
        used : sequence of float
            Degrees of freedom that the fit has used up in each.
        """
        return any([self._update(k, residual, n) for k, (residual, n) in enumerate(zip(residuals, used, strict=True))])

    def _update(self, k: int, residual: Tensor, used: float) -> bool:
        good = self.good[k]
        square, variance = residual[good].square(), self.sigma[k][good].square()
        if not square.numel():
            return False
        freedom = max(float(square.numel()) - used, 1.0)
        before, trusted = self.variance(k)[good], self.huber[k][good]
        if not self.known[k]:
            self.factor[k] = math.sqrt(max(float((square / variance).sum()) / freedom, 1e-12))
        else:
            incomplete = float((square / variance).sum()) > INCOMPLETE * freedom or self.jitter[k] > 0.0
            if incomplete and self.may_down_weight:
                self.huber[k] = huber_weight(residual, self.variance(k).sqrt())
            if incomplete and self.may_add_jitter:
                self.jitter[k] = _jitter(square * self.huber[k][good], variance, freedom)
        change = float((self.variance(k)[good] / before).log().abs().median())
        if self.may_down_weight and not self.may_add_jitter:
            # Without jitter the variance stays: the noise has settled once χ² no longer follows the weights.
            now, was = (float((weight * square / before).sum()) for weight in (self.huber[k][good], trusted))
            change = max(change, abs(now - was) / max(now, 1e-300))
        return change > 2.0 * SETTLED


class _Part(NoiseModel):
    """One order of a `NoiseModel`, by reference."""

    def __init__(self, whole: NoiseModel, k: int):
        options = {"jitter": whole.may_add_jitter, "robust": whole.may_down_weight}
        super().__init__([whole.sigma[k]], [whole.good[k]], [whole.known[k]], **options)
        self.whole, self.k = whole, k

    def update(self, residuals: Sequence[Tensor], used: Sequence[float]) -> bool:
        changed = super().update(residuals, used)
        self.whole.factor[self.k], self.whole.jitter[self.k] = self.factor[0], self.jitter[0]
        self.whole.huber[self.k] = self.huber[0]
        return changed

    def reject(self, k: int, codes: Tensor) -> bool:
        changed = super().reject(k, codes)
        self.whole.good[self.k], self.whole.rejected[self.k] = self.good[0], self.rejected[0]
        return changed


def _jitter(square: Tensor, variance: Tensor, freedom: float) -> float:
    """s such that Σ r²/(σ² + s²) equals the degrees of freedom; 0 if it does not exceed them."""

    def excess(ln_s: float) -> float:
        return float((square / (variance + math.exp(2.0 * ln_s))).sum()) - freedom

    high = 0.5 * math.log(float(square.sum()) / freedom + 1e-300) + 0.01
    low = 0.5 * math.log(float(variance.median())) - 6.0
    if high <= low or excess(low) <= 0.0:
        return 0.0
    return math.exp(brentq(excess, low, high, xtol=1e-4))
