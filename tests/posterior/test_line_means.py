"""Means of lines against posteriors that can be integrated; the probes against the dense inverse."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from astropy import units as u
from astropy.table import Table
from specutils import Spectrum

import specutils_blase as sb
from specutils_blase.inference.linear.cholesky import APART
from specutils_blase.inference.priors import LinePriors
from specutils_blase.model.parameters import KINDS
from specutils_blase.posterior.laplace import free_parameters, normal_equations
from specutils_blase.simulate import simulate

PIXELS = np.linspace(10_498.0, 10_538.0, 680)
CENTERS = 10_500.5 + 5.0 * np.arange(8)
KNOWN = {"rv": 0.0, "vsini": 6.0, "resolving_power": 55_000.0}
BROAD = {"ln_area": 0.3, "ln_sigma": 0.3, "ln_gamma": 0.6, "rv_offset": 0.3}


def isolated(spread=0.0, seed=0):
    """Lines that do not touch each other, off by this in the logarithms."""
    rng = np.random.default_rng(seed)
    off = np.exp(spread * rng.standard_normal((3, len(CENTERS))))
    table = Table({"center": CENTERS, "area": 0.06 * off[0], "sigma": 0.06 * off[1], "gamma": 0.03 * off[2]})
    table.meta["wavelength_range"] = (10_480.0, 10_560.0)
    return table


def fitted(data, star, freedom=4.0, **options):
    options = (
        {
            "star_lines": KINDS,
            "free": (),
            "continuum": 0,
            "star_priors": LinePriors(**BROAD, degrees_of_freedom=freedom),
        }
        | KNOWN
        | options
    )
    return sb.fit(data, star, progress=False, **options)  # fmt: skip


def integrated(result, kinds, freedom, n_grid=31, reach=5.5):
    """Mean and standard deviation of each line's two parameters, by sums over a grid around the fit.

    Their priors stand where the fit has left them: what the lines have in common moves and widens them.
    """
    common = result.settings["star_scale"]
    moved = {"ln_area": np.log(common["strength"]), "ln_sigma": np.log(common["width"]), "rv_offset": 0.0}
    moved["ln_gamma"] = moved["ln_sigma"]
    free = free_parameters(result.model, result.parameters, result.curvature)
    start, columns = free.read(), free.columns("star")
    error = normal_equations(free, result.curvature).factor().variance().sqrt()
    grid = torch.linspace(-reach, reach, n_grid, dtype=torch.float64)
    nearest = np.abs(PIXELS[:, None] - CENTERS).argmin(axis=1)
    weight, anchor = result.curvature.weight[0], torch.as_tensor([*np.log([0.06, 0.06, 0.03]), 0.0])
    found = torch.zeros(n_grid, n_grid, len(CENTERS), dtype=torch.float64)
    for i, a in enumerate(grid):
        for j, b in enumerate(grid):
            vector = start.clone()
            vector[columns] += torch.stack([a * error[columns[:, 0]], b * error[columns[:, 1]]], dim=1)
            with torch.no_grad():
                free.write(vector)
                chi2 = weight * (result.data.flux - result.model()).square()
            found[i, j].index_add_(0, torch.as_tensor(nearest), -0.5 * chi2)
            for k, kind in enumerate(kinds):
                d = vector[columns[:, k]] - anchor[KINDS.index(kind)] - moved[kind]
                d = d / (BROAD[kind] * common["inflation"][kind])
                one = 0.5 * (freedom + 1.0) * torch.log1p(d**2 / freedom) if np.isfinite(freedom) else 0.5 * d**2
                found[i, j] -= one
    free.write(start)
    density = torch.softmax(found.reshape(-1, len(CENTERS)), dim=0).reshape(found.shape)
    assert float(density[[0, -1]].sum(dim=(0, 1)).max() + density[:, [0, -1]].sum(dim=(0, 1)).max()) < 5e-3
    moments = []
    for marginal in (density.sum(1), density.sum(0)):
        mean = (grid.unsqueeze(1) * marginal).sum(0)
        moments.append((mean.numpy(), ((grid.unsqueeze(1) - mean).square() * marginal).sum(0).sqrt().numpy()))
    return moments


@pytest.mark.parametrize(
    "kinds, snr, freedom, spread",
    [
        (("ln_area", "ln_gamma"), 60.0, np.inf, 0.2),
        (("ln_area", "ln_sigma"), 40.0, np.inf, 0.2),
        (("ln_area", "ln_gamma"), 150.0, np.inf, 0.2),
        (("ln_area", "ln_gamma"), 150.0, 4.0, 0.2),
        (("ln_area", "rv_offset"), 20.0, 4.0, 0.3),
    ],
)
def test_means_are_those_of_the_posterior(kinds, snr, freedom, spread):
    """Two parameters a line, which can be summed over; profiles and priors lean by up to half an error."""
    data = simulate(PIXELS, isolated(spread, seed=6), snr=snr, seed=2, **KNOWN)
    result = fitted(data, isolated(), freedom, star_lines=kinds)
    table = result.line_means(progress=False)
    left, found = [], []
    for kind, (mean, width) in zip(kinds, integrated(result, kinds, freedom), strict=True):
        column = kind.removeprefix("ln_")
        value, error = result.ledger[column].value, result.ledger[f"{column}_err"].value
        if column != kind:
            value, error = np.log(value), error / value
        shift = (np.asarray(table[kind]) - value) / error
        np.testing.assert_allclose(table[f"{kind}_shift"], shift, rtol=1e-6, atol=1e-9)
        np.testing.assert_allclose(np.median(np.asarray(table[f"{kind}_err"]) / error / width), 1.0, atol=0.1)
        left.append(mean)
        found.append(shift - mean)
    left, found = np.concatenate(left), np.concatenate(found)
    assert np.sqrt(np.mean(found**2)) < 0.5 * np.sqrt(np.mean(left**2)) and np.abs(found).max() < 0.2


def blended(n=70):
    """Seventy lines of star and as many of the sky on top of each other, more than are probed at once."""
    rng = np.random.default_rng(3)
    tables = []
    for k in range(2):
        table = Table({"center": np.sort(rng.uniform(10_500.0, 10_536.0, n)), "area": rng.uniform(0.02, 0.1, n)})
        table["sigma"], table["gamma"] = (0.05, 0.015)[k], rng.uniform(0.02, 0.04, n)
        table.meta["wavelength_range"] = (10_480.0, 10_560.0)
        tables.append(table)
    return tables


@pytest.fixture(scope="module")
def crowded():
    star, sky = blended()
    data = simulate(PIXELS, star, sky, snr=150.0, seed=8, continuum=(2.0, 0.1), **KNOWN)
    return sb.fit(
        data, star, telluric=sky, rv=0.0, vsini=6.0, resolving_power=55_000.0, scale_tellurics=False, progress=False
    )


@pytest.fixture(scope="module")
def crowded_means(crowded):
    return crowded.line_means(progress=False)


def probed(result):
    """The probes' sum of squares beside the dense covariance, both in units of the errors; and which are lines'."""
    free = free_parameters(result.model, result.parameters, result.curvature)
    factor = normal_equations(free, result.curvature).factor()
    probes = factor.probes(torch.Generator().manual_seed(1))
    unit = torch.eye(len(free), dtype=torch.float64)
    covariance = torch.stack([factor.solve(row) for row in unit])
    error = covariance.diagonal().sqrt()
    scale = error.unsqueeze(1) * error
    return len(probes), probes.T @ probes / scale, covariance / scale, free


def test_probes_of_few_lines_are_the_whole_covariance():
    data = simulate(PIXELS, isolated(), snr=60.0, seed=2, **KNOWN)
    result = fitted(data, isolated(), free=("rv", "continuum"), continuum=2)
    n_probe, found, covariance, free = probed(result)
    assert n_probe == len(free) == 4 * 8 + 4
    torch.testing.assert_close(found, covariance, rtol=0, atol=1e-9)


def test_probes_of_many_lines_are_the_covariance_of_neighbours(crowded):
    """Lines that are probed at once know nothing of each other: 64 lines are 16 Å here, 60 line widths."""
    n_probe, found, covariance, free = probed(crowded)
    assert n_probe == 4 * APART + 5 < len(free) == 4 * 140 + 5
    assert float((found - covariance).diagonal().abs().max()) < 0.02


def test_means_do_not_depend_on_what_is_probed_at_once(crowded, crowded_means, monkeypatch):
    monkeypatch.setattr("specutils_blase.inference.linear.cholesky.APART", 1000)
    exact = crowded.line_means(progress=False)
    for kind in KINDS:
        off = np.asarray(crowded_means[f"{kind}_shift"] - exact[f"{kind}_shift"])
        assert np.sqrt(np.mean(off**2)) < 0.03 and np.abs(off).max() < 0.2


def test_rows_are_those_of_the_ledger(crowded, crowded_means):
    table, ledger = crowded_means, crowded.ledger
    assert (table["component"] == ledger["component"]).all() and (table["id"] == ledger["id"]).all()
    assert table["rv_offset"].unit == table["rv_offset_err"].unit == u.km / u.s
    assert all(table[name].info.description for name in table.colnames)
    far = np.abs((table["rv_offset"] - ledger["rv_offset"]) / ledger["rv_offset_err"])
    np.testing.assert_allclose(far, np.abs(table["rv_offset_shift"]), atol=1e-9)
    assert 0.0 < np.median(far) < 0.2


def test_what_is_held_stays():
    result = fitted(
        simulate(PIXELS, isolated(), snr=60.0, seed=2, **KNOWN), isolated(), star_lines=("ln_area",), free=("rv",)
    )
    before = {name: value.clone() for name, value in result.model.state_dict().items()}
    table = result.line_means(progress=False)
    for name, value in result.model.state_dict().items():
        assert torch.equal(value, before[name]), name
    for kind in ("ln_sigma", "ln_gamma", "rv_offset"):
        assert not np.asarray(table[f"{kind}_err"]).any() and not table[f"{kind}_shift"].any()
    np.testing.assert_allclose(table["ln_gamma"], np.log(result.ledger["gamma"].value), rtol=1e-12)
    assert np.all(table["ln_area_err"] > 0.0)


def test_unknown_noise_widens_the_errors():
    data = simulate(PIXELS, isolated(0.1, seed=4), snr=60.0, seed=2, **KNOWN)
    bare = Spectrum(flux=data.flux, spectral_axis=data.spectral_axis)
    result = fitted(bare, isolated())
    error = result.ledger["area_err"] / result.ledger["area"]
    assert result.noise_scale != 1.0
    np.testing.assert_allclose(result.line_means(progress=False)["ln_area_err"], error, rtol=0.15)


def test_many_orders_and_files(tmp_path):
    """Means of orders fitted together, the same from a file; an order alone has none, nor has an older file."""
    star, sky = blended(30)
    data = [simulate(pixels, star, sky, snr=150.0, seed=8, **KNOWN) for pixels in (PIXELS[:380], PIXELS[340:])]
    result = sb.fit(
        data, star, telluric=sky, rv=0.0, vsini=6.0, resolving_power=[55_000.0] * 2, scale_tellurics=False,
        progress=False,
    )  # fmt: skip
    table = result.line_means(progress=False)
    assert len(table) == len(result.ledger) == 60
    result.write(tmp_path / "fit.asdf")
    again = sb.read(tmp_path / "fit.asdf")
    for name, column in again.line_means(progress=False).items():
        if name != "component":
            np.testing.assert_allclose(np.asarray(column), np.asarray(table[name]), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="one order of a fit of many"):
        result.order(0).line_means()
    again.curvature = replace(again.curvature, mean_pull=None)
    again.write(tmp_path / "older.asdf")
    with pytest.raises(ValueError, match=r"older versions.*fit again"):
        sb.read(tmp_path / "older.asdf").line_means()
