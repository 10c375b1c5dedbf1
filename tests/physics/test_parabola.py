"""Maxima between samples."""

import numpy as np
import pytest

from specutils_blase.physics.parabola import vertex_offset


def test_vertex_of_a_parabola_is_exact():
    true = np.array([-0.45, -0.1, 0.0, 0.3, 0.5])
    left, middle, right = (7.0 - 2.5 * (x - true) ** 2 for x in (-1.0, 0.0, 1.0))
    assert vertex_offset(left, middle, right) == pytest.approx(true, abs=1e-14)


def test_vertex_stays_within_half_a_sample_and_where_there_is_a_maximum():
    rising, flat, valley = (0.0, 1.0, 2.0 - 1e-9), (1.0, 1.0, 1.0), (1.0, 0.0, 1.0)
    assert vertex_offset(*np.array([rising, flat, valley]).T).tolist() == [0.5, 0.0, 0.0]
