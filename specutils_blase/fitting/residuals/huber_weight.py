"""Huber's weight: outliers count less, and are not left out.

Does not live here: pixels that are left out (`fitting.residuals.rejected_pixels`), when weights are asked for
(`fitting.residuals.noise`).
"""

from __future__ import annotations

from torch import Tensor

HUBER_SIGMA = 3.0
"""Residual in standard deviations from which on the weight falls as its inverse (Huber 1964, k = 3)."""


def huber_weight(residual: Tensor, sigma: Tensor) -> Tensor:
    r"""Weight of each pixel, :math:`\min(1, 3 σ / |r|)`.

    Parameters
    ----------
    residual : Tensor, (n,)
        Data minus model.
    sigma : Tensor, (n,)
        Standard deviation that is believed.

    Examples
    --------
    >>> import torch
    >>> huber_weight(torch.tensor([0.5, -6.0]), torch.tensor([1.0, 1.0])).tolist()
    [1.0, 0.5]
    """
    return (HUBER_SIGMA * sigma / residual.abs().clamp(min=1e-300)).clamp(max=1.0)
