"""Limits of the radial velocity: closed form, brute force, Bouchy's quality factor, dense Fisher matrices."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from astropy.table import Table, vstack

import specutils_blase as sb
from specutils_blase import BlaseQualityWarning
from specutils_blase.posterior.laplace import free_parameters, normal_equations
from specutils_blase.posterior.rv_photon_limit import STEPS
from specutils_blase.simulate import pixel_edges, simulate, simulate_flux

C = 299792.458
WAVELENGTH = np.linspace(10_500.0, 10_509.0, 150)
POWER = 55_000.0
TRUTH = {"rv": 3.0, "vsini": 9.0, "resolving_power": POWER, "limb_darkening": (0.4, 0.2)}


def lines(n, low, high, sigma, seed, area=(0.03, 0.12)):
    rng = np.random.default_rng(seed)
    table = Table(
        {
            "center": np.linspace(low, high, n) + rng.uniform(-0.15, 0.15, n),
            "area": rng.uniform(*area, n),
            "sigma": np.full(n, sigma),
            "gamma": rng.uniform(0.02, 0.05, n),
        }
    )
    table.meta["wavelength_range"] = (10_480.0, 10_530.0)
    return table


STAR, SKY = lines(12, 10_499.5, 10_509.5, 0.05, 1), lines(5, 10_501.0, 10_508.5, 0.015, 2)
CONTINUUM = (3.0, 0.05)


def fitted(star=STAR, sky=SKY, pixels=WAVELENGTH, read_floor=0.02, snr=200.0, **options):
    """The truth as the model: nothing but the continuum is free unless asked for."""
    data = simulate(pixels, star, sky, snr=snr, seed=4, continuum=CONTINUUM, read_floor=read_floor, **TRUTH)
    options = {
        "free": ("continuum",),
        "star_lines": (),
        "telluric_lines": (),
        "rv": TRUTH["rv"],
        "vsini": TRUTH["vsini"],
    } | options
    return sb.fit(
        data, star, telluric=sky, resolving_power=POWER, continuum=1, scale_tellurics=False, progress=False, **options
    )


@pytest.fixture(scope="module")
def everything():
    kinds = ("ln_area", "ln_sigma", "ln_gamma", "rv_offset")
    return fitted(free=("rv", "vsini", "continuum"), star_lines=kinds, telluric_lines=kinds)


def brute_force(star, sky, read_floor, snr=200.0, pixels=WAVELENGTH):
    """σ_v, its Q and signal-to-noise ratio from `simulate_flux`, which shares nothing with the model."""
    options = {"continuum": CONTINUUM} | TRUTH
    edges, step = pixel_edges(pixels), 0.05
    low, flux, high = (
        simulate_flux(edges, star, sky, **(options | {"rv": TRUTH["rv"] + shift})) for shift in (-step, 0.0, step)
    )
    level = CONTINUUM[0]
    variance = (level / snr) ** 2 * ((1.0 - read_floor) * flux / level + read_floor)
    error = np.sum(((high - low) / (2.0 * step)) ** 2 / variance) ** -0.5
    total = np.sum(flux**2 / variance) ** 0.5
    return error, C / (error * total), total


@pytest.mark.parametrize("read_floor", [0.0, 0.3, 1.0])
def test_against_brute_force(read_floor):
    """Behind the sky, and without it: there, more light brings more photon noise, as the simulation makes it."""
    limit = fitted(read_floor=read_floor).rv_photon_limit
    error, quality, total = brute_force(STAR, SKY, read_floor)
    assert limit.with_sky == pytest.approx(error, rel=3e-3)  # the fitted continuum has noise of its own
    assert limit.orders["quality"][0] == pytest.approx(quality, rel=2e-3)
    assert limit.orders["signal_to_noise"][0] == pytest.approx(total, rel=3e-3)
    error, quality, _ = brute_force(STAR, None, read_floor)
    assert limit.star_only == pytest.approx(error, rel=3e-3)
    assert limit.orders["quality_star_only"][0] == pytest.approx(quality, rel=2e-3)
    assert limit.star_only < limit.with_sky


def test_quality_factor_of_bouchy():
    """Eq. 12: Q² = Σ λ² (∂A/∂λ)²/A / Σ A for photon noise, A from brute force."""
    limit = fitted(sky=None, read_floor=0.0).rv_photon_limit
    edges, step = pixel_edges(WAVELENGTH), 1e-7
    options = {"continuum": CONTINUUM} | TRUTH
    flux = simulate_flux(edges, STAR, **options)
    # The pixels move along the spectrum; the continuum, a function of the pixel, does not come along.
    slope = (
        simulate_flux(edges * (1 + step), STAR, **options) - simulate_flux(edges * (1 - step), STAR, **options)
    ) / (2 * step)
    assert limit.orders["quality"][0] == pytest.approx(np.sqrt(np.sum(slope**2 / flux) / np.sum(flux)), rel=2e-3)


def test_one_weak_gaussian_line():
    """σ_v² = 4√π s³ σ² Δv / W² for a line of equivalent width W and standard deviation s [km/s] in constant noise."""
    pixels = np.linspace(10_497.0, 10_503.0, 400)
    area, sigma, snr = 1e-3, 0.2, 1000.0
    star = Table({"center": [10_500.0], "area": [area], "sigma": [sigma], "gamma": [1e-6]})
    star.meta["wavelength_range"] = (10_480.0, 10_520.0)
    data = simulate(pixels, star, snr=snr, read_floor=1.0, seed=1, resolving_power=POWER, vsini=0.1)
    result = sb.fit(
        data, star, rv=0.0, vsini=0.1, free=("continuum",), star_lines=(), resolving_power=POWER, continuum=0,
        progress=False,
    )  # fmt: skip
    to_kms = C / 10_500.0
    width = math.hypot(sigma * to_kms, C / POWER / 2.3548)
    pixel = (pixels[1] - pixels[0]) * to_kms
    expected = (4.0 * math.sqrt(math.pi) * width**3 * snr**-2 * pixel / (area * to_kms) ** 2) ** 0.5
    limit = result.rv_photon_limit
    assert limit.with_sky == pytest.approx(expected, rel=5e-3)
    assert limit.star_only == limit.with_sky


def dense_curvature(result):
    """A = JᵀWJ + P with J by autograd through the whole model."""
    free = free_parameters(result.model, result.parameters, result.curvature)
    unit = torch.eye(len(result.curvature.weight[0]), dtype=torch.float64)
    jacobian = torch.stack([free.evaluate()[2](row) for row in unit])
    precision = normal_equations(free, result.curvature).prior_precision
    return free, jacobian.T @ (result.curvature.weight[0].unsqueeze(1) * jacobian) + torch.diag(precision)


def test_steps_against_dense_fisher_matrices(everything):
    """The velocity's error with everything free, with the star's lines struck out, and with all lines struck out."""
    limit = everything.rv_photon_limit
    free, curvature = dense_curvature(everything)
    rv = free.global_slices["rv"].start
    star = set(free.columns("star").reshape(-1).tolist())
    sky = set(free.columns("telluric").reshape(-1).tolist())
    for name, struck in (("marginal", set()), ("star_known", star), ("lines_known", star | sky)):
        kept = [k for k in range(len(free)) if k not in struck]
        dense = torch.linalg.inv(curvature[kept][:, kept])[kept.index(rv), kept.index(rv)] ** 0.5
        assert getattr(limit, name) == pytest.approx(float(dense), rel=3e-3), name
    alone = float(curvature[rv, rv]) ** -0.5
    assert limit.with_sky == pytest.approx(alone, rel=2e-3)
    assert limit.marginal == everything.error("rv")


def test_every_unknown_costs(everything):
    limit = everything.rv_photon_limit
    errors = [getattr(limit, name) for name in STEPS]
    assert all(before <= after * (1 + 1e-9) for before, after in pairwise(errors)), errors
    assert 0.0 < limit.lost_to_sky < 1.0 and 0.0 < limit.lost_to_template < 1.0
    table = limit.table
    assert list(table["step"]) == list(STEPS)
    kept = np.prod(1.0 - table["lost"][1:])
    assert kept == pytest.approx((limit.star_only / limit.reported) ** 2)
    text = repr(limit)
    assert "m/s  the velocity alone, behind tellurics" in text and "% of the information lost" in text


def test_orders_add_in_inverse_quadrature():
    parts = [WAVELENGTH[:75], WAVELENGTH[75:]]
    options = {"free": ("continuum",), "star_lines": (), "telluric_lines": (), "continuum": 1, "progress": False}
    data = [simulate(part, STAR, SKY, snr=200.0, seed=4, continuum=CONTINUUM, **TRUTH) for part in parts]
    result = sb.fit(
        data, STAR, telluric=SKY, resolving_power=[POWER] * 2, rv=3.0, vsini=9.0, scale_tellurics=False, **options
    )
    limit = result.rv_photon_limit
    assert len(limit.orders) == 2
    for name in ("star_only", "with_sky"):
        assert getattr(limit, name) == pytest.approx(float(np.sum(limit.orders[name].to_value("km/s") ** -2.0)) ** -0.5)
    expected = sum(brute_force(STAR, SKY, 0.02, pixels=part)[0] ** -2 for part in parts) ** -0.5
    assert limit.with_sky == pytest.approx(expected, rel=5e-3)
    assert math.isnan(limit.marginal)  # the velocity was held
    alone = result.order(0).rv_photon_limit
    assert alone.with_sky == pytest.approx(limit.orders["with_sky"][0].to_value("km/s"), rel=1e-6)


def test_without_a_star_there_is_none():
    assert fitted(star=None).rv_photon_limit is None


def test_masked_pixels_bring_nothing():
    """As if they were not there."""
    data = simulate(WAVELENGTH, STAR, SKY, snr=200.0, seed=4, continuum=CONTINUUM, **TRUTH)
    result = fitted()
    mask = np.zeros(WAVELENGTH.size, dtype=bool)
    mask[40:90] = True
    data.mask = mask
    masked = sb.fit(
        data, STAR, telluric=SKY, rv=3.0, vsini=9.0, resolving_power=POWER, continuum=1, free=("continuum",),
        star_lines=(), telluric_lines=(), scale_tellurics=False, progress=False,
    )  # fmt: skip
    assert masked.rv_photon_limit.with_sky > 1.1 * result.rv_photon_limit.with_sky


def test_a_result_without_its_weights_tells_the_photons_still(everything):
    """From the data's own uncertainties; what needs the curvature is not a number."""
    from dataclasses import replace

    bare = replace(everything, curvature=None).rv_photon_limit
    limit = everything.rv_photon_limit
    assert bare.with_sky == pytest.approx(limit.with_sky) and bare.star_only == pytest.approx(limit.star_only)
    assert math.isnan(bare.lines_known) and math.isnan(bare.star_known)
    assert bare.marginal == limit.marginal
    assert "nan" not in repr(bare) and "other steps are unknown" in repr(bare)
    assert "are unknown" not in repr(everything.rv_photon_limit)
    assert math.isnan(bare.fit_noise)


UNKNOWN = Table({"center": [10_503.3, 10_506.1], "area": [0.1, 0.06], "sigma": [0.05, 0.04], "gamma": [0.03, 0.02]})
"""Lines of the star that its template lacks."""


def incomplete(pixels=WAVELENGTH, sky=SKY, flux_factor=1.0, **options):
    """A fit of data with more lines than the template, with jitter or without; one order, or a list of parts."""
    full = vstack([STAR, UNKNOWN])
    full.meta["wavelength_range"] = STAR.meta["wavelength_range"]
    kept = {"snr": 200.0, "seed": 4, "continuum": tuple(flux_factor * c for c in CONTINUUM)} | TRUTH
    parts = pixels if isinstance(pixels, list) else [pixels]
    data = [simulate(part, full, sky, **kept) for part in parts]
    options = {"free": ("rv", "continuum"), "star_lines": (), "telluric_lines": (), "rv": 3.0, "vsini": 9.0} | options
    with pytest.warns(
        BlaseQualityWarning, match="the model lacks something|the model is incomplete|velocities follow it as much"
    ):
        return sb.fit(
            data if isinstance(pixels, list) else data[0], STAR, telluric=sky, resolving_power=POWER, continuum=1,
            scale_tellurics=False, progress=False, **options,
        )  # fmt: skip


@pytest.mark.parametrize("flux_factor", [1.0, 1e-14])
def test_jitter_is_no_photons(flux_factor):
    """Photons bring what they bring, whatever a fit makes of its model; what jitter takes away is a step of its own."""
    plain = incomplete(flux_factor=flux_factor, jitter=False, robust=False)
    jittered = incomplete(flux_factor=flux_factor, jitter=True, robust=True)
    assert jittered.orders["jitter"][0] > 0.01 and jittered.orders["doubted"][0] > 0
    limit, other = jittered.rv_photon_limit, plain.rv_photon_limit
    for name in ("star_only", "with_sky"):
        # Not to the last digit: the fits have other continua and velocities, as the lines pull less where doubted.
        assert getattr(limit, name) == pytest.approx(getattr(other, name), rel=0.01), name
    for name in ("quality", "quality_star_only", "signal_to_noise"):
        assert limit.orders[name][0] == pytest.approx(other.orders[name][0], rel=0.01), name
    assert other.fit_noise == pytest.approx(other.with_sky, rel=1e-12)
    assert limit.fit_noise > 3.0 * limit.with_sky
    weight, sigma = jittered.curvature.weight[0], jittered.data.sigma
    assert bool((weight[jittered.data.good] < 0.5 * sigma[jittered.data.good] ** -2).any())
    # Nothing but the continuum and the velocity is free: what all else takes away is read off the fit's curvature.
    assert limit.fit_noise <= limit.lines_known == pytest.approx(limit.marginal, rel=1e-6)
    kept = np.prod(1.0 - limit.table["lost"][1:])
    assert kept == pytest.approx((limit.star_only / limit.reported) ** 2)
    assert limit.reported == jittered.error("rv") > 1.2 * limit.marginal  # lines that it lacks are wider than a pixel
    assert other.reported == other.marginal == plain.error("rv")
    assert "jitter" in repr(limit) and "jitter" not in repr(other)
    assert "correlated residuals" in repr(limit) and "correlated residuals" not in repr(other)


def test_orders_with_jitter_agree_with_each_alone():
    result = incomplete([WAVELENGTH[:75], WAVELENGTH[75:]])
    assert np.all(result.orders["jitter"] > 0.0)
    limit = result.rv_photon_limit
    for k in range(2):
        alone = result.order(k).rv_photon_limit
        for name in ("star_only", "with_sky"):
            assert getattr(alone, name) == pytest.approx(limit.orders[name][k].to_value("km/s"), rel=1e-9)
        assert math.isnan(alone.fit_noise) and alone.marginal == limit.marginal
    for name in ("with_sky", "fit_noise"):
        assert getattr(limit, name) == pytest.approx(np.sum(limit.orders[name].to_value("km/s") ** -2.0) ** -0.5)
    assert limit.fit_noise > 2.0 * limit.with_sky


def test_without_uncertainties_the_fit_tells_the_noise():
    """The scatter of the residuals, as before: nothing else is there."""
    data = simulate(WAVELENGTH, STAR, SKY, snr=200.0, seed=4, continuum=CONTINUUM, read_floor=1.0, **TRUTH)
    data.uncertainty = None
    options = {"free": ("rv", "continuum"), "star_lines": (), "telluric_lines": (), "rv": 3.0, "vsini": 9.0}
    result = sb.fit(
        data, STAR, telluric=SKY, resolving_power=POWER, continuum=1, scale_tellurics=False, progress=False, **options
    )
    limit = result.rv_photon_limit
    assert limit.with_sky == limit.fit_noise == pytest.approx(brute_force(STAR, SKY, 1.0)[0], rel=0.2)


def test_a_file_tells_the_same(tmp_path):
    result = incomplete(jitter=True, robust=True)
    result.write(tmp_path / "fit.asdf")
    limit, back = result.rv_photon_limit, sb.read(tmp_path / "fit.asdf").rv_photon_limit
    for name in STEPS:
        assert getattr(back, name) == pytest.approx(getattr(limit, name), rel=1e-9), name


def test_without_a_sky_no_step_is_the_sky_s():
    """Neither absorbed nor unknown: the steps are equal, and the text does not speak of it."""
    result = incomplete(
        sky=None, star_lines=("ln_area",), free=("rv", "vsini", "continuum"), jitter=False, robust=False
    )
    limit = result.rv_photon_limit
    assert limit.star_only == limit.with_sky and limit.lines_known == limit.star_known
    assert limit.lost_to_sky == 0.0
    text = repr(limit)
    assert "sky" not in text and "-0 %" not in text
    assert len(text.splitlines()) == 1 + 3  # the velocity alone, the order, the lines of the star
