"""Correlations above 0.9, in words."""

import numpy as np
import pytest
from astropy.table import QTable

from specutils_blase.posterior.correlations import degeneracies


def table(*names, order=None):
    rows = QTable({"name": list(names), "free": [not name.startswith("held") for name in names]})
    if order is not None:
        rows["order"] = order
    return rows


def covariance(correlation, error):
    return correlation * np.outer(error, error)


def test_the_strongest_comes_first_in_words():
    names = ["rv", "vsini", "held_1", "resolving_power", "limb_darkening_u1"]
    correlation = np.eye(4)
    correlation[1, 2] = correlation[2, 1] = -0.95
    correlation[1, 3] = correlation[3, 1] = 0.92
    found = degeneracies(table(*names), covariance(correlation, [0.1, 2.0, 500.0, 0.05]))
    assert len(found) == 2
    assert found[0].startswith(
        "v sin i and resolving power are hard to tell apart (correlation -0.950; one up, the oth"
    )
    assert "other down" in found[0] and "3.2 times smaller" in found[0]
    assert found[1].startswith("v sin i and limb darkening (u1) are hard to tell apart (correlation +0.920")


@pytest.mark.parametrize("value, n", [(0.89, 0), (-0.89, 0), (0.91, 1), (-1.0, 1)])
def test_threshold(value, n):
    assert len(degeneracies(table("rv", "continuum_1"), np.array([[1.0, value], [value, 1.0]]))) == n


def test_orders_are_named_and_laws_are_words():
    rows = table("star_law_0", "continuum_0", "continuum_2", order=["", "17", "17"])
    correlation = np.array([[1.0, 0.95, 0.0], [0.95, 1.0, 0.0], [0.0, 0.0, 1.0]])
    (sentence,) = degeneracies(rows, correlation)
    assert sentence.startswith(
        "saturation law of the star (coefficient 0) and continuum (degree 0) of order 17 are hard to tell apart"
    )


def test_the_continuum_among_itself_is_passed_over():
    strong = np.array([[1.0, 0.99], [0.99, 1.0]])
    assert degeneracies(table("continuum_0", "continuum_1"), strong) == []


def test_nothing_to_say():
    assert degeneracies(table("held_1"), np.zeros((0, 0))) == []
    assert degeneracies(table("rv", "vsini"), np.diag([1.0, 0.0])) == []  # at a bound, without an error
