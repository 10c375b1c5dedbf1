"""Equivalent width of a line under a saturation law, its derivatives and its error.

Does not live here: the columns of a ledger (`ledger.columns`), its rows (`ledger.table`).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..physics.voigt import voigt, voigt_fwhm

WIDTH_NODES = 200
"""Nodes of the quadrature of an equivalent width."""


def equivalent_width(law, center: Tensor, area: Tensor, sigma: Tensor, gamma: Tensor) -> Tensor:
    r"""Equivalent width of each line alone, :math:`W = \int (1 - S)\,dλ`, in Å.

    Gauss-Legendre quadrature of the saturated profile over the mapping x = w u/(1 - u), which has both the core and
    the 1/x² wings at finite slope; exact to 1e-6 of W for τ up to 1e4. Differentiable in area, σ and γ.

    Parameters
    ----------
    law : SaturationLaw
    center, area, sigma, gamma : Tensor, (n_line,)
        In Å.

    Returns
    -------
    Tensor, (n_line,)
        In Å.
    """
    nodes, weights = np.polynomial.legendre.leggauss(WIDTH_NODES)
    node = torch.as_tensor(0.5 * (nodes + 1.0)).to(area)
    weight = torch.as_tensor(0.5 * weights).to(area)
    with torch.no_grad():
        peak_opacity = area / voigt_fwhm(sigma, gamma)
        width = 0.5 * voigt_fwhm(sigma, gamma) * (1.0 + peak_opacity.log1p()) + (area * gamma).sqrt()
    x = width.unsqueeze(1) * node / (1.0 - node)
    y = area.unsqueeze(1) * voigt(x, sigma.unsqueeze(1), gamma.unsqueeze(1))
    depth = 1.0 - _flux(law, y, center)
    return 2.0 * (depth * weight / (1.0 - node).square()).sum(-1) * width


def _flux(law, y: Tensor, center: Tensor) -> Tensor:
    tau = law.opacity(y)[0]
    wavelength = center.unsqueeze(1).expand_as(tau).reshape(-1)
    return law.flux(tau.reshape(-1), wavelength)[0].reshape(tau.shape)


def equivalent_width_and_error(emulator, center, area, sigma, gamma, covariance) -> tuple[Tensor, Tensor]:
    """Equivalent width of each line alone [Å], negative in emission, and its 1-sigma error."""
    emission = emulator.sign.double() < 0
    width, gradient = equivalent_width_with_gradient(emulator.law, center, area, sigma, gamma)
    width = torch.where(emission, -area, width)
    gradient[emission] = 0.0
    gradient[emission, 0] = -area[emission]
    variance = torch.einsum("li,lij,lj->l", gradient, covariance[:, :3, :3], gradient)
    return width, variance.clamp(min=0.0).sqrt()


def equivalent_width_with_gradient(law, center, area, sigma, gamma) -> tuple[Tensor, Tensor]:
    """Equivalent width of each line alone, and its derivatives to (ln area, ln σ, ln γ).

    Parameters
    ----------
    law : SaturationLaw
    center, area, sigma, gamma : Tensor, (n_line,)
        In Å.

    Returns
    -------
    width : Tensor, (n_line,)
        In Å.
    gradient : Tensor, (n_line, 3)
        In Å.
    """
    logs = [t.detach().log().requires_grad_(True) for t in (area, sigma, gamma)]
    with torch.enable_grad():
        width = equivalent_width(law, center, *(t.exp() for t in logs))
        gradient = torch.autograd.grad(width.sum(), logs)
    return width.detach(), torch.stack(gradient, dim=-1)
