"""Held-out pixels: that they are not fitted, what they say of priors, and by hand."""

import re
from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
from astropy.table import Table
from specutils import SpectrumList

import specutils_blase as sb
from specutils_blase.cross_validation import BLOCK_PIXELS, _behind
from specutils_blase.inference.priors import LinePriors
from specutils_blase.quality.report import BlaseQualityWarning
from specutils_blase.simulate import perturbed, simulate

WAVELENGTH = np.arange(10_500.0, 10_524.0, 0.06)
POWER = 55_000.0
TRUTH = {"rv": 5.0, "vsini": 6.0, "resolving_power": POWER, "limb_darkening": (0.4, 0.2)}


def lines(step, area, seed):
    rng = np.random.default_rng(seed)
    centers = np.arange(10_497.0, 10_527.0, step) + rng.uniform(-0.2, 0.2, len(np.arange(10_497.0, 10_527.0, step)))
    n = len(centers)
    table = Table({"center": centers, "area": area * rng.uniform(0.5, 1.5, n)})
    table["sigma"], table["gamma"] = 0.05, 0.02
    table.meta["wavelength_range"] = (10_470.0, 10_550.0)
    return table


STAR, SKY = lines(0.9, 0.08, 1), lines(3.0, 0.04, 2)


def observed(seed=3, snr=150.0, scatter=0.5):
    star = perturbed(STAR, seed=3, scatter_ln_area=scatter)
    return simulate(WAVELENGTH, star, SKY, snr=snr, seed=seed, **TRUTH)


OPTIONS = {
    "telluric": SKY, "rv": 5.0, "vsini": 6.0, "resolving_power": POWER, "limb_darkening": (0.4, 0.2), "continuum": 1,
    "scale_tellurics": False, "progress": False,
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:the result is doubtful:specutils_blase.BlaseQualityWarning")  # of priors too tight
def test_priors_are_told_apart():
    """Lines half a unit of ln area off: priors that hold them at a hundredth cannot predict, the default can."""
    settings = {"held": {"star_priors": LinePriors(ln_area=0.01, degrees_of_freedom=np.inf)}, "default": {}}
    table = sb.cross_validate(observed(), STAR, settings=settings, folds=2, **OPTIONS)
    assert list(table["name"]) == ["held", "default"] and list(table["best"]) == [False, True]
    assert list(table["fits"]) == [2, 2] and list(table["converged"]) == [2, 2]
    held, default = table
    assert held["held_out_chi2"] > 5.0 and 0.8 < default["held_out_chi2"] < 1.8
    assert 0.8 < default["held_out_typical"] < 1.3
    assert 1.0 < default["ratio"] < 1.5
    assert default["behind_best"] == 0.0 and default["behind_best_err"] == 0.0
    assert held["behind_best"] == pytest.approx(held["held_out_typical"] - default["held_out_typical"], rel=1e-12)
    assert held["behind_best"] > 2.0 * held["behind_best_err"] > 0.0


def test_differences_are_of_pairs():
    """Errors of differences of medians against those known for Gaussians: apart, together, and by blocks."""
    rng, n = np.random.default_rng(1), 6000
    pixel = np.arange(n)
    one, two = rng.normal(size=(2, n))
    alone = np.sqrt(np.pi / 2.0) * np.exp(0.5 * 0.6745**2) / (2.0 * 0.6745) / np.sqrt(n)  # of median |x| / 0.6745
    difference, error = _behind((pixel, one), (pixel, two))
    assert error == pytest.approx(np.sqrt(2.0) * alone, rel=0.15) and abs(difference) < 4.0 * error
    # The same residuals, a tenth larger: the difference is known ten times better than either.
    difference, error = _behind((pixel, one), (pixel, 1.1 * one))
    assert difference == pytest.approx(0.1, abs=0.03) and error == pytest.approx(0.1 * alone, rel=0.15)
    # Where whole blocks are alike, there are fewer of them.
    one, two = (np.repeat(rng.normal(size=n // BLOCK_PIXELS), BLOCK_PIXELS) for _ in range(2))
    assert _behind((pixel, one), (pixel, two))[1] == pytest.approx(np.sqrt(2.0 * BLOCK_PIXELS) * alone, rel=0.3)
    # Only pixels that both have count.
    assert _behind((pixel[:99], one[:99]), (pixel[50:], two[50:])) == _behind(
        (pixel[50:99], one[50:99]), (pixel[50:99], two[50:99])
    )
    assert np.isnan(_behind((pixel[:9], one[:9]), (pixel[9:], two[9:]))).all()


def test_one_block_tells_no_error():
    """How blocks scatter cannot be seen from one; that the best is behind itself by nothing can."""
    pixel, (one, two) = np.arange(BLOCK_PIXELS), np.random.default_rng(2).normal(size=(2, BLOCK_PIXELS))
    difference, error = _behind((pixel, one), (pixel, two))
    expected = (np.median(np.abs(two)) - np.median(np.abs(one))) * 1.482602
    assert difference == pytest.approx(expected, rel=1e-9) and np.isnan(error)
    assert _behind((pixel, one), (pixel, one)) == (0.0, 0.0)
    assert _behind((pixel + 1, one), (pixel + 1, two))[1] > 0.0  # two, of which one has a single pixel


def test_templates_are_settings():
    """What a setting gives takes the place of what all have in common, the star as well."""
    other = STAR[::2]
    other.meta.update(STAR.meta)
    with pytest.warns(BlaseQualityWarning, match=r"the result is bad: .*of the strength that its template has"):
        table = sb.cross_validate(observed(), STAR, settings={"half": {"star": other}, "all": {}}, folds=1, **OPTIONS)
    assert list(table["best"]) == [False, True]


def test_settings_that_leave_out_an_order():
    """The order without uncertainties is not in the one, and gives the other's unit: both are in that of the flux."""
    spectrum, half = observed(), len(WAVELENGTH) // 2
    first, second = spectrum[:half], spectrum[half:]
    second.uncertainty = None
    narrow = STAR[STAR["center"] < 10_514.0]
    narrow.meta["wavelength_range"] = (10_470.0, 10_514.0)  # of the second order, a sixth
    options = {name: given for name, given in OPTIONS.items() if name != "resolving_power"}
    settings = {name: {"star": star, "resolving_power": POWER} for name, star in (("all", STAR), ("narrow", narrow))}
    table = sb.cross_validate(SpectrumList([first, second]), settings=settings, folds=1, **options)
    assert list(table["held_out"]) == [half // 5, half // 10]  # of both halves, and of one
    assert np.isnan(table["held_out_chi2"][0]) and 0.5 < table["held_out_chi2"][1] < 2.5
    # Noise of 1/150 of the continuum, both; in units of the uncertainty it would be near one.
    assert np.all(table["held_out_typical"] < 2.0 / 150.0)
    assert np.all(np.abs(table["behind_best"]) < 1.0 / 150.0)
    (best,) = np.flatnonzero(table["best"])
    assert table["behind_best"][best] == table["behind_best_err"][best] == 0.0


@pytest.mark.filterwarnings("ignore:the result is doubtful:specutils_blase.BlaseQualityWarning")  # of priors too tight
def test_the_example_of_the_documentation():
    """What it says of lines half a unit of ln area off: under heavy tails widths hardly matter to held-out pixels."""
    page = Path(__file__).resolve().parents[1] / "docs" / "howto" / "new_instrument_priors.md"
    blocks = re.findall(r"^```python\n(.*?)^```\s*$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    (example,) = (block for block in blocks if "cross_validate" in block)
    names = {"data": observed(), "star": STAR, "options": OPTIONS | {"folds": 1}}
    exec(compile(example, str(page), "exec"), names)
    table = names["table"]
    assert list(table["name"]) == ["0.1", "1", "3"] and list(table["converged"]) == [1, 1, 1]
    assert np.all(table["behind_best"] <= 2.0 * table["behind_best_err"])
    assert np.all(np.diff(table["ratio"]) > 0.0)  # the wider, the more of the noise is fitted


def test_by_hand():
    """One fold, by masking, fitting and predicting here."""
    spectrum = observed()
    table = sb.cross_validate(spectrum, STAR, every=7, folds=1, **OPTIONS)
    out = np.zeros(len(WAVELENGTH), dtype=bool)
    out[::7] = True
    part = observed()
    part.mask = out
    model = sb.fit(part, STAR, **OPTIONS).model_spectrum.flux.value
    left = (spectrum.flux.value - model)[out]
    assert table["held_out"][0] == out.sum()
    sigma = spectrum.uncertainty.array[out]
    assert table["held_out_chi2"][0] == pytest.approx(np.mean((left / sigma) ** 2), rel=1e-6)
    scale = np.median(spectrum.flux.value)
    assert table["held_out_rms"][0] == pytest.approx(np.sqrt(np.mean(left**2)) / scale, rel=0.01)
    assert spectrum.mask is None or not np.any(spectrum.mask)  # the user's own is as it was


def test_orders_masks_and_descending_axes():
    """Of a list, in which one order runs downwards and has masked pixels, all good pixels take their turn."""
    first, second = observed(4), observed(5)
    second.mask = np.arange(len(WAVELENGTH)) < 30
    turned = type(second)(
        flux=second.flux[::-1],
        spectral_axis=(second.spectral_axis.to(u.nm))[::-1],
        uncertainty=type(second.uncertainty)(second.uncertainty.array[::-1]),
        mask=second.mask[::-1],
    )
    options = OPTIONS | {"jitter": False, "robust": False}
    table = sb.cross_validate(SpectrumList([first, turned]), STAR, every=2, folds=2, **options)
    assert table["held_out"][0] == 2 * len(WAVELENGTH) - 30
    assert table["held_out_chi2"][0] < 4.0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"settings": {}}, "settings must be a dictionary"),
        ({"settings": ["a"]}, "settings must be a dictionary"),
        ({"settings": {"a": 1}}, "settings must be a dictionary"),
        ({"settings": {"a": {"progress": False}}}, "progress, which all settings share"),
        ({"settings": {"a": {"every": 5, "data": 1}}}, "data, every, which all settings share"),
        ({"every": 1}, "every must be a whole number"),
        ({"folds": 0}, "folds must be a whole number"),
        ({"every": 3, "folds": 4}, "folds must be a whole number from 1 to 3"),
        (
            {"settings": {"a": {"star_prior": None}}},
            r"settings\['a'\] must be arguments of fit.*none called star_prior",
        ),
        ({"missing_line": 0.1}, "options must be arguments of fit, which has none called missing_line; it has"),
        ({"settings": {"a": {"continuum": -1}}}, "continuum must be"),
    ],
)
def test_what_cannot_be_compared(wrong, message):
    with pytest.raises(ValueError, match=message):
        sb.cross_validate(observed(), STAR, **({k: v for k, v in OPTIONS.items() if k != "continuum"} | wrong))
