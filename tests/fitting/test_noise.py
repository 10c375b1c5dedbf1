"""What a fit learns of its noise, against closed forms."""

import math

import pytest
import torch

from specutils_blase.fitting.residuals.noise import NoiseModel

SIGMA = torch.tensor([0.5, 1.0, 2.0, 4.0], dtype=torch.float64).repeat(50)
GOOD = torch.ones_like(SIGMA, dtype=torch.bool)


def noise(known=True, jitter=True, robust=False):
    return NoiseModel([SIGMA], [GOOD], [known], jitter=jitter, robust=robust)


def test_jitter_adds_in_quadrature():
    """Residuals of variance σ² + 9 want a jitter of 3, whatever σ is."""
    model = noise()
    assert model.update([(SIGMA.square() + 9.0).sqrt()], [0.0])
    assert model.jitter[0] == pytest.approx(3.0, rel=1e-3)
    torch.testing.assert_close(model.variance(0), SIGMA.square() + 9.0, rtol=1e-3, atol=0.0)


def test_jitter_brings_chi2_to_the_degrees_of_freedom():
    """Solved for jitter and used as weights, the sum is the number of pixels less what the fit has used up."""
    model = noise()
    residual = 5.0 * torch.randn(len(SIGMA), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    model.update([residual], [20.0])
    chi2 = float((model.weights()[0] * residual.square()).sum())
    assert chi2 == pytest.approx(len(SIGMA) - 20.0, rel=1e-3)


def test_no_jitter_where_the_noise_explains_all():
    model = noise()
    assert not model.update([SIGMA], [0.0])
    assert model.jitter[0] == 0.0
    torch.testing.assert_close(model.variance(0), SIGMA.square())


def test_unknown_noise_is_scaled():
    """Residuals of 3σ with three quarters of the freedom left: σ is scaled by 3 / √0.75."""
    model = noise(known=False)
    model.update([3.0 * SIGMA], [50.0])
    assert model.factor[0] == pytest.approx(3.0 / math.sqrt(0.75))
    assert model.jitter[0] == 0.0
