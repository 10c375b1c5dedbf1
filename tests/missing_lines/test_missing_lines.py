"""Lines that no template knew: the score test against dense algebra, false alarms against their rate, injection."""

import astropy.units as u
import numpy as np
import pytest
import scipy.stats
import torch
from astropy.table import QTable, Table, vstack
from error_bars import assert_bars
from specutils import SpectrumList

import specutils_blase as sb
from specutils_blase.fitting.line_search.comparison import expected_false
from specutils_blase.inference.objective import Objective
from specutils_blase.inference.priors import LinePriors, penalty, square_of_penalty
from specutils_blase.missing_lines.matched_filter import FREE_PRECISION, Feature, search, with_lines
from specutils_blase.missing_lines.matched_filter import _try as tried
from specutils_blase.physics.grids import SPEED_OF_LIGHT
from specutils_blase.posterior.laplace import free_parameters, prior_precision
from specutils_blase.quality.report import BlaseQualityWarning
from specutils_blase.simulate import simulate

WAVELENGTH = np.arange(10_500.0, 10_536.0, 0.06)
POWER = 55_000.0
TRUTH = {"rv": 5.0, "vsini": 20.0, "resolving_power": POWER, "limb_darkening": (0.4, 0.2)}
FACTOR = 1.0 + TRUTH["rv"] / SPEED_OF_LIGHT
NOBODY = Table({"center": [], "area": [], "sigma": [], "gamma": []}, dtype=[float] * 4)


def lines(centers, area, sigma, seed):
    rng = np.random.default_rng(seed)
    n = len(centers)
    table = Table(
        {
            "center": np.asarray(centers),
            "area": area * rng.uniform(0.7, 1.4, n),
            "sigma": np.full(n, sigma),
            "gamma": np.full(n, 0.02),
        }
    )
    table.meta["wavelength_range"] = (10_470.0, 10_560.0)
    return table


STAR = lines(np.arange(10_499.0, 10_539.0, 2.3), 0.09, 0.05, 1)
SKY = lines(np.arange(10_498.7, 10_539.0, 4.1), 0.04, 0.03, 2)
NEW_STAR, NEW_SKY = lines([10_514.0], 0.10, 0.05, 3), lines([10_524.6], 0.05, 0.03, 4)


def more(table, new):
    both = vstack([table, new], metadata_conflicts="silent")
    both.sort("center")
    return both


def observed(star=STAR, sky=SKY, pixels=WAVELENGTH, seed=5, snr=150.0):
    return simulate(pixels, star, sky, snr=snr, seed=seed, continuum=(1.0, 0.05), **TRUTH)


def fitted(data, **options):
    given = {"telluric": SKY, "rv": 5.1, "vsini": 19.0, "resolving_power": POWER, "limb_darkening": (0.4, 0.2)}
    return sb.fit(data, STAR, continuum=1, scale_tellurics=False, progress=False, **(given | options))


@pytest.fixture(scope="module")
def lacking():
    return observed(more(STAR, NEW_STAR), more(SKY, NEW_SKY))


@pytest.fixture(scope="module")
def without(lacking):
    with pytest.warns(BlaseQualityWarning, match="of the star's lines are as far from their template"):
        return fitted(lacking)


@pytest.fixture(scope="module")
def found(lacking):
    return fitted(lacking, missing_lines=0.1)


def test_lines_that_are_missing_are_found(found):
    """Where they are, whose they are, as strong as they are; and nothing else."""
    table = found.missing_lines
    assert found.success, found.message
    assert list(table["component"]) == ["star", "telluric"] and table["added"].all()
    centers = np.array([NEW_STAR["center"][0], NEW_SKY["center"][0]])
    seen = table["wavelength"].to_value(u.AA)
    np.testing.assert_allclose(seen, centers * [FACTOR, 1.0], atol=10_520.0 / POWER / 6.0)
    np.testing.assert_allclose(table["center"].to_value(u.AA), centers, atol=10_520.0 / POWER / 6.0)
    reference = sb.LineEmulator.from_ledger(more(NEW_STAR, NEW_SKY))
    true = [_equivalent_width(reference, k) for k in range(2)]
    pulls = (table["equivalent_width"].to_value(u.AA) - true) / table["equivalent_width_err"].to_value(u.AA)
    assert np.abs(pulls).max() < 3.0
    assert (table["significance"] > 8.0).all() and (table["false_alarm_probability"] < 1e-6).all()


def _equivalent_width(emulator, k):
    x = torch.linspace(-40.0, 40.0, 400_001, dtype=torch.float64) + emulator.center[k]
    one = emulator.subset(torch.tensor([k]))
    from specutils_blase.physics.grids import Sampling

    with torch.no_grad():
        return float((1.0 - one(Sampling(x))).sum() * (x[1] - x[0]))


def test_the_ledger_has_them(found, without):
    table, ledger = found.missing_lines, found.ledger
    assert len(ledger) == len(without.ledger) + 2
    for row in table:
        line = ledger[(ledger["component"] == row["added_to"]) & (ledger["id"] == row["id"])][0]
        assert line["center"] == row["center"] and line["equivalent_width"] == row["equivalent_width"]
        assert line["free"]
    # All other lines are those of the templates, anchored where they were.
    for name, start in (("star", STAR), ("telluric", SKY)):
        new = table["id"][table["added_to"] == name]
        area = np.delete(found.model.components[name].center.numpy(), new)
        np.testing.assert_allclose(area, np.asarray(start["center"])[: len(area)], atol=1e-9)
    assert found.quality.reason("missing_lines").text.startswith("2 lines found")


def test_the_fit_is_better_for_it(found, without):
    assert without.orders["jitter"][0] > 0.0 and without.rms > 1.25 * found.rms
    assert found.orders["jitter"][0] == 0.0 and 0.85 < found.reduced_chi2 < 1.15
    for name, true in (("rv", TRUTH["rv"]), ("vsini", TRUTH["vsini"])):
        assert abs(found.value(name) - true) < 3.0 * found.error(name)
    assert_bars(found, "rv", "vsini")


def test_what_a_fit_lacks_is_told_without_being_asked(without, found):
    """Searched for in the residuals, not added."""
    table = without.missing_lines
    assert not table["added"].any() and (table["id"] == -1).all()
    for row in found.missing_lines:
        near = np.abs(table["wavelength"] - row["wavelength"]).to_value(u.AA)
        assert near.min() < 0.2
    assert len(without.model.star.center) == len(STAR)


def one_line(center, area, sigma, gamma):
    return Table({"center": [center], "area": [area], "sigma": [sigma], "gamma": [gamma]})


def test_a_deep_line_is_one_line():
    """Black in its centre, with wings: not the star's, whose lines the rotation smears, and no pair beside it."""
    deep = one_line(10_524.6, 0.9, 0.03, 0.06)
    result = fitted(observed(sky=more(SKY, deep), snr=300.0), missing_lines=0.1)
    (row,) = result.missing_lines
    assert row["component"] == row["added_to"] == "telluric"
    assert row["wavelength"].to_value(u.AA) == pytest.approx(10_524.6, abs=0.01)
    line = result.ledger[(result.ledger["component"] == "telluric") & (result.ledger["id"] == row["id"])][0]
    assert line["area"].to_value(u.AA) == pytest.approx(0.9, abs=4.0 * line["area_err"].to_value(u.AA))
    assert abs(result.value("vsini") - TRUTH["vsini"]) < 3.0 * result.error("vsini")
    assert 0.85 < result.reduced_chi2 < 1.15


def test_a_line_upon_another_is_found():
    """The star's line there could be so strong at a low price, but not so narrow."""
    center = STAR["center"][7] * FACTOR
    data = observed(sky=more(SKY, one_line(center, 0.06, 0.03, 0.02)), snr=300.0)
    (row,) = fitted(data, missing_lines=0.1).missing_lines
    assert row["added_to"] == "telluric"
    assert row["wavelength"].to_value(u.AA) == pytest.approx(center, abs=10_520.0 / POWER / 3.0)


def test_a_stronger_line_is_no_new_one():
    star = STAR.copy()
    star["area"][7] *= 2.2
    result = fitted(observed(star=star, snr=300.0), missing_lines=0.1)
    assert len(result.missing_lines) == 0
    assert 0.85 < result.reduced_chi2 < 1.15


def test_through_a_file(found, tmp_path):
    path = tmp_path / "found.asdf"
    found.write(path)
    again = sb.read(path)
    for name in found.missing_lines.colnames:
        np.testing.assert_array_equal(again.missing_lines[name], found.missing_lines[name])
    assert again.missing_lines.meta["expected_false"] == 0.1


def test_nothing_is_missing():
    result = fitted(observed(), missing_lines=0.01)
    plain = fitted(observed())
    assert isinstance(result.missing_lines, QTable) and len(result.missing_lines) == 0
    assert result.quality.reason("missing_lines").text.startswith("no lines found")
    for name in ("rv", "vsini"):
        assert result.value(name) == plain.value(name) and result.error(name) == plain.error(name)


def test_a_line_in_the_overlap_of_two_orders_is_one():
    pixels = [WAVELENGTH[:360], WAVELENGTH[150:]]  # the star's new line lies in both
    star, sky = more(STAR, NEW_STAR), more(SKY, NEW_SKY)
    night = SpectrumList([observed(star, sky, part, seed) for seed, part in enumerate(pixels)])
    result = fitted(night, missing_lines=0.1)
    table = result.missing_lines
    where = table["wavelength"].to_value(u.AA)
    assert (np.abs(where - NEW_STAR["center"][0] * FACTOR) < 0.05).sum() == 1
    assert (np.abs(where - NEW_SKY["center"][0]) < 0.05).sum() == 1
    row = table[np.abs(where - NEW_STAR["center"][0] * FACTOR) < 0.05][0]
    line = result.ledger[(result.ledger["component"] == row["added_to"]) & (result.ledger["id"] == row["id"])][0]
    assert line["orders"] == "0,1"
    for k, ends in enumerate(((0, 359), (150, len(WAVELENGTH) - 1))):  # each order alone has those that it saw
        own = result.order(k).missing_lines
        seen = (where > WAVELENGTH[ends[0]]) & (where < WAVELENGTH[ends[1]])
        assert own["wavelength"].to_value(u.AA).tolist() == where[seen].tolist() and len(own) > 0
    assert not np.any(result.orders["jitter"])


def test_the_score_test_is_dense_algebra(without):
    """z of `_try` against tᵀWr / √(tᵀWt - tᵀWJ A⁻¹ JᵀWt), t by differences, J by autograd with the candidate there."""
    free = free_parameters(without.model, without.parameters, without.curvature)
    precision = prior_precision(free, without.curvature)
    weight = without.curvature.weight[0]
    with torch.no_grad():
        residual = without.data.flux - without.model()
    unit = torch.eye(len(weight), dtype=torch.float64)
    for name, place in (("star", 10_514.3), ("telluric", 10_508.2)):
        width = (1.2, 0.6, 0.5, 10.0, {})  # area, σ, γ, blur in km/s
        z, line, _ = tried(free, name, [(place, 9.0, {name: width}, [0])], [residual], [weight], precision)
        center, _, sigma, gamma, _ = line
        area = center / SPEED_OF_LIGHT * width[0]
        flux = []
        for factor in (1.001, 0.999, 1.0):
            grown = with_lines(free, {name: (center, factor * area, sigma, gamma, [[0]])})
            with torch.no_grad():
                flux.append(grown.free.model())
        t = (flux[0] - flux[1]) / np.log(1.001 / 0.999)
        jacobian = torch.stack([grown.free.evaluate()[2](row) for row in unit])[:, grown.old]
        curvature = jacobian.T @ (weight[:, None] * jacobian) + torch.diag(precision)
        absorbed = jacobian.T @ (weight * t)
        power = t @ (weight * t) - absorbed @ torch.linalg.solve(curvature, absorbed) + FREE_PRECISION
        expected = t @ (weight * residual) / power.sqrt()
        assert float(z[0]) == pytest.approx(float(expected), rel=2e-3, abs=2e-3)


def test_false_alarms_come_at_the_rate_stated():
    """Twelve noises without a missing line, four false features allowed to each by Rice's formula."""
    n_seed, expected, count = 12, 4.0, 0
    for seed in range(n_seed):
        result = fitted(observed(seed=100 + seed), rv=TRUTH["rv"], vsini=TRUTH["vsini"])
        free = free_parameters(result.model, result.parameters, result.curvature)
        with torch.no_grad():
            residual = result.data.flux - result.model()
        precision = prior_precision(free, result.curvature)
        features, threshold = search(free, [residual], result.curvature.weight, precision, expected)
        assert 1.0 < threshold < 3.0
        assert all(one.expected <= expected for one in features)
        count += len(features)
    allowed = n_seed * expected
    # Where star and sky respond nearly alike, what is expected of both counts the same noise twice.
    assert 0.3 * allowed < count < allowed + 3.0 * allowed**0.5


@pytest.mark.parametrize("freedom", [2.5, 4.0, np.inf])
def test_prices_of_tails(freedom):
    """The penalty is -2 ln p of scipy's distributions, over that at the anchor, and its inverse leads back."""
    distance = torch.linspace(0.0, 9.0, 50, dtype=torch.float64)
    degrees = torch.full_like(distance, freedom)
    law = scipy.stats.norm if np.isinf(freedom) else scipy.stats.t(freedom)
    price = penalty(distance.square(), degrees)
    np.testing.assert_allclose(price, -2.0 * (law.logpdf(distance) - law.logpdf(0.0)), rtol=1e-12, atol=1e-12)
    back = [float(square_of_penalty(float(one), degrees[:1])) for one in price]
    np.testing.assert_allclose(back, distance.square(), rtol=1e-10, atol=1e-12)


def test_lines_in_the_tails_are_expected(without):
    """The number of old parameters that are worth as much as a new line, against draws of true ones."""
    rng, n_draw = np.random.default_rng(3), 4000
    free = free_parameters(without.model, without.parameters, without.curvature)
    problem = Objective(
        free, without.data.flux, without.curvature.weight[0], {"star": LinePriors(), "telluric": LinePriors()}
    )
    known = torch.as_tensor(10.0 ** rng.uniform(-1.0, 5.0, len(free)))  # from what data hardly see to what they fix
    feature = Feature(10_514.0, "star", "star", 4.0, 0.1, 10_514.0, 0.1, 0.05, 0.02, 10.0, (0,), level=3.5)
    n_line = free.n_line_parameter
    distance = rng.standard_t(4.0, (n_draw, n_line))
    data = known[:n_line].numpy() / problem.priors.precision[:n_line].numpy() * distance**2
    for gain in (4.0, 12.0, 20.0):
        worth = (5.0 * np.log1p(distance**2 / 4.0) >= gain) & (data >= gain)
        drawn = worth.sum() / n_draw
        noise = 0.3 * np.exp(0.5 * (3.5**2 - gain))
        told = expected_false(gain, feature, 0.3, problem, known)
        assert told - noise == pytest.approx(drawn, abs=4.0 * np.sqrt(worth.sum() + 1.0) / n_draw)
    assert expected_false(-5.0, feature, 0.3, problem, known) == expected_false(0.0, feature, 0.3, problem, known)


def test_a_component_that_is_held_gets_no_lines(lacking):
    table = fitted(lacking, telluric_lines=(), missing_lines=0.1).missing_lines
    assert set(table["added_to"]) == {"star"} and set(table["component"]) == {"undecided"}
    with pytest.raises(ValueError, match="needs ln_area among star_lines or telluric_lines; all are held"):
        fitted(lacking, telluric_lines=(), star_lines=(), missing_lines=0.1)
    held = fitted(lacking, telluric_lines=(), star_lines=("rv_offset",))
    with pytest.raises(ValueError, match="needs ln_area among star_lines"):
        _ = held.missing_lines


def test_sky_alone():
    """Whose a line is cannot be told where only one component is there."""
    data = simulate(WAVELENGTH, NOBODY, more(SKY, NEW_SKY), snr=150.0, seed=1, resolving_power=POWER, rv=0.0, vsini=0.0)
    result = sb.fit(data, telluric=SKY, resolving_power=POWER, scale_tellurics=False, missing_lines=0.1, progress=False)
    (row,) = result.missing_lines
    assert row["component"] == "undecided" and row["added_to"] == "telluric"
    assert row["wavelength"].to_value(u.AA) == pytest.approx(NEW_SKY["center"][0], abs=0.02)


@pytest.mark.parametrize("given", [0.0, -1.0, np.nan, np.inf, True, "0.1"])
def test_what_is_no_number_of_lines(lacking, given):
    with pytest.raises(ValueError, match="missing_lines must be the number of false lines"):
        fitted(lacking, missing_lines=given)
