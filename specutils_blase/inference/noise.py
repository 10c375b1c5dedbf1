r"""Noise of the data: what makes residuals white.

With a covariance :math:`C = L L^T` of the data, least squares need :math:`L^{-1} r` of residuals r, the same of
derivatives, and :math:`\ln \det C`.

Does not live here: what a fit learns of its noise (`fitting.residuals.noise`), the equations
(`inference.linear.normal_equations`).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Noise:
    """Contract: the covariance of the data, known by what whitens them.

    A pixel that does not count has an infinite variance: `whiten` makes it zero.

    Attributes
    ----------
    n_datum : int
        Number of data that count.
    """

    n_datum: int

    def whiten(self, values: Tensor) -> Tensor:
        """L⁻¹ values, of the same shape (n, …): of a residual, or of a Jacobian's columns."""
        raise NotImplementedError

    def whiten_transposed(self, values: Tensor) -> Tensor:
        """L⁻ᵀ values, of the same shape (n, …): of what is whitened already, for gradients."""
        raise NotImplementedError

    def ln_det(self) -> float:
        """ln det C over the data that count."""
        raise NotImplementedError

    def weigh(self, values: Tensor) -> Tensor:
        """C⁻¹ values."""
        return self.whiten_transposed(self.whiten(values))


class Diagonal(Noise):
    """Noise that differs from pixel to pixel, and is independent between pixels.

    Parameters
    ----------
    weight : Tensor, (n,)
        Inverse variances; zero where a pixel does not count.

    Examples
    --------
    >>> import torch
    >>> noise = Diagonal.of_sigma(torch.tensor([0.1, 0.2, torch.inf]))
    >>> noise.whiten(torch.ones(3)).tolist(), noise.n_datum
    ([10.0, 5.0, 0.0], 2)
    """

    def __init__(self, weight: Tensor):
        self.weight = weight
        self.n_datum = int((weight > 0).sum())

    @classmethod
    def of_sigma(cls, sigma: Tensor) -> Diagonal:
        """From standard deviations, infinite where a pixel does not count."""
        sigma = torch.as_tensor(sigma, dtype=torch.float64)
        return cls(torch.where(sigma.isfinite(), sigma**-2.0, 0.0))

    def _by_root(self, values: Tensor) -> Tensor:
        root = self.weight.to(values.dtype).sqrt()
        return values * root.reshape(-1, *[1] * (values.ndim - 1))

    def whiten(self, values: Tensor) -> Tensor:
        return self._by_root(values)

    def whiten_transposed(self, values: Tensor) -> Tensor:
        return self._by_root(values)

    def weigh(self, values: Tensor) -> Tensor:
        return values * self.weight.reshape(-1, *[1] * (values.ndim - 1))

    def ln_det(self) -> float:
        counting = self.weight[self.weight > 0].double()
        return -float(counting.log().sum()) if counting.numel() else -math.inf
