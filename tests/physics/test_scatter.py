"""Robust standard deviations."""

import numpy as np
import pytest
import torch
from scipy.stats import norm

from specutils_blase.physics.scatter import SIGMA_PER_MEDIAN, robust_sigma


def test_factor_is_that_of_a_gaussian():
    assert pytest.approx(1.0 / norm.ppf(0.75), rel=1e-6) == SIGMA_PER_MEDIAN


def test_robust_sigma_of_noise_with_outliers():
    values = 0.3 * np.random.default_rng(0).standard_normal(100_001)  # odd: torch takes the lower of two medians
    values[::20] = 50.0
    assert robust_sigma(values) == robust_sigma(torch.as_tensor(values))
    assert robust_sigma(values) == pytest.approx(0.3 * norm.ppf(0.5 + 0.25 / 0.95) * SIGMA_PER_MEDIAN, rel=0.01)
    assert robust_sigma(values[1::20]) == pytest.approx(0.3, rel=0.03)
