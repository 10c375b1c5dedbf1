"""What arguments take for numbers."""

import numpy as np
import pytest
import torch

from specutils_blase.spectra.quantities import is_number, is_whole


@pytest.mark.parametrize("value", [3, -1, np.int64(3), np.uint8(3)])
def test_whole_numbers(value):
    assert is_whole(value) and is_number(value)


@pytest.mark.parametrize("value", [2.5, 3.0, np.float32(0.1), np.float64(0.1), float("nan")])
def test_numbers_that_are_not_whole(value):
    assert is_number(value) and not is_whole(value)


@pytest.mark.parametrize("value", [True, np.bool_(True), "3", None, 1j, [3], np.array([3]), torch.tensor(3)])
def test_what_is_neither(value):
    assert not is_number(value) and not is_whole(value)
