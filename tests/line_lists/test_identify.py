"""Which species made a line: small cases by hand, probabilities by simulation, and spectra whose lines are known."""

import math
import sys
import tracemalloc

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.table import QTable, vstack

import specutils_blase as sb
from specutils_blase.ledger.emulator import emulator_from_ledger
from specutils_blase.line_lists import read_line_list, to_ledger
from specutils_blase.physics.grids import Sampling
from specutils_blase.spectra.frame import spectrum_on


def ledger_of(center, area=0.02, fwhm=0.1, **more):
    center = np.atleast_1d(np.asarray(center, dtype=float))
    columns = {"center": center * u.AA, "area": np.broadcast_to(area, center.shape) * u.AA}
    return QTable({**columns, "fwhm": np.broadcast_to(fwhm, center.shape) * u.AA, **more})


def list_of(wavelength, species, strength):
    return QTable({"wavelength": wavelength * u.AA, "species": species, "strength": np.array(strength, float) * u.AA})


def test_the_strongest_within_the_core():
    """Near and strong beats near and weak, and strong but far; many weak lines together beat one stronger line."""
    lines = list_of(
        [5000.0, 5000.01, 5000.9, 6000.00, 5999.98, 6000.02, 6000.01, 5999.99],
        ["Fe I", "Ti I", "Ca II", "Cr I", *["CN"] * 4],
        [1.0, 0.1, 100.0, 1.0, *[0.6] * 4],
    )
    result = sb.identify(ledger_of([5000.0, 6000.0]), lines)
    assert list(result["species"]) == ["Fe I", "CN"]
    assert result["species_runners_up"][0].startswith("Ti I 0.0")
    assert result["species_runners_up"][1].startswith("Cr I 0.")
    assert result["species_wavelength"][0].value == pytest.approx(5000.0)
    assert (0.5 < result["species_probability"]).all() and (result["species_probability"] < 1.0).all()


def test_probabilities_are_of_the_strongest():
    """At equal offsets X^α / (Σ X^α + odds · expected^α), α = π/(√6 ln 10 · scatter); expected = total here."""
    lines = list_of([5000.0, 5000.0], ["Fe I", "Ti I"], [3.0, 1.0])
    result = sb.identify(ledger_of([5000.0]), lines, strength_scatter=0.3, background=0.2)
    alpha = math.pi / (math.sqrt(6) * math.log(10) * 0.3)
    norm = 3.0**alpha + 1.0 + 0.2 * 4.0**alpha
    assert result["species_probability"][0] == pytest.approx(3.0**alpha / norm, rel=1e-6)
    assert result["species_runners_up"][0] == f"Ti I {1.0 / norm:.2f}"


def test_offset_against_error():
    """The same line 0.05 Å away explains a line known to 0.05 Å, not one known to 0.002 Å and narrow."""
    lines = list_of([5000.05, 7000.0], ["Fe I", "Fe I"], [1.0, 1.0])
    narrow = {"fwhm": 0.02, "center_err": [0.002, 0.05] * u.AA}
    centers = np.array([5000.0, 5000.0])
    assert list(sb.identify(ledger_of(centers[:1], fwhm=0.02, center_err=[0.002] * u.AA), lines)["species"]) == [""]
    result = sb.identify(ledger_of([5000.0, 7000.0], **narrow), lines)
    assert list(result["species"]) == ["", "Fe I"]
    assert list(sb.identify(ledger_of([5000.0], fwhm=0.02), lines, systematic=3 * u.km / u.s)["species"]) == ["Fe I"]
    moved = sb.identify(ledger_of([5000.0], fwhm=0.02), lines, velocity=-3.0 * u.km / u.s)
    assert list(moved["species"]) == ["Fe I"]


def test_neighbours_share_a_listed_line():
    """A strong listed line goes to the ledger's line that lies on it, not to the blend beside it as well."""
    lines = list_of([5000.0, 5000.06], ["Ca II", "Fe I"], [100.0, 1.0])
    both = sb.identify(ledger_of([5000.0, 5000.06], area=[0.5, 0.005], fwhm=0.08), lines)
    assert list(both["species"]) == ["Ca II", "Fe I"]


def test_too_weak_to_explain():
    """Among lines that follow their predictions, a deep one with hardly any prediction stays empty."""
    wavelength = 5000.0 + np.arange(40)
    lines = list_of(wavelength, ["Fe I"] * 40, np.where(np.arange(40) == 20, 1e-6, 1.0) * np.linspace(0.1, 3, 40))
    area = 0.02 * np.linspace(0.1, 3, 40)
    result = sb.identify(ledger_of(wavelength, area=area), lines)
    assert (result["species"] == "Fe I").sum() == 39 and result["species"][20] == ""
    assert math.isnan(result["species_probability"][20]) and np.isnan(result["species_wavelength"][20].value)
    assert result["species_runners_up"][20] == ""


def test_copy_and_columns():
    ledger = ledger_of([5000.0, 6000.0], species=["old", "kept"], component=["star", "telluric"])
    ledger.meta["settings"] = {"a": 1}
    before = ledger.copy()
    lines = list_of([5000.0, 6000.0], ["Fe I", "Fe I"], [1.0, 1.0])
    result = sb.identify(ledger, lines, component="star")
    assert list(result["species"]) == ["Fe I", "kept"]
    assert ledger.colnames == before.colnames and list(ledger["species"]) == ["old", "kept"]
    assert result.meta["settings"] == {"a": 1}
    again = sb.identify(result, list_of([6000.0], ["H2O"], [1.0]), component="telluric")
    assert list(again["species"]) == ["Fe I", "H2O"]
    assert again["species_probability"][0] == result["species_probability"][0]
    for name in ("species", "species_probability", "species_runners_up", "species_wavelength"):
        assert result[name].info.description
    with pytest.raises(ValueError, match="a ledger with the column component"):
        sb.identify(ledger_of([5000.0]), lines, component="star")


def test_nothing_in_reach():
    result = sb.identify(ledger_of([5000.0, 5001.0]), list_of([9000.0], ["Fe I"], [1.0]))
    assert list(result["species"]) == ["", ""] and np.isnan(result["species_probability"]).all()
    empty = sb.identify(ledger_of([5000.0])[:0], list_of([9000.0], ["Fe I"], [1.0]))
    assert len(empty) == 0 and "species_probability" in empty.colnames


@pytest.mark.parametrize(
    "ledger, lines, options, message",
    [
        (QTable({"center": [5000.0]}), None, {}, "takes a ledger with center and area, area missing"),
        (QTable({"center": [5000.0], "area": [0.1]}), None, {}, "takes a ledger with fwhm, or sigma and gamma"),
        (ledger_of([np.nan]), None, {}, "every center of the ledger must be finite and positive"),
        (
            QTable({"center": [1.0] * u.kg, "area": [1.0], "fwhm": [1.0]}),
            None,
            {},
            "center must be in Å or convertible",
        ),
        (None, list_of([5000.0], ["Fe I"], [np.nan]), {}, "no line of the list has a predicted strength"),
        (None, QTable({"x": [1.0]}), {}, "expected a column called wavelength"),
        (None, None, {"background": -1.0}, "expected background as one finite positive number"),
        (None, None, {"strength_scatter": 0.0}, "expected strength_scatter as one finite positive number"),
        (None, None, {"systematic": 0.0}, "systematic must be positive"),
        (None, None, {"temperature": 5000}, "predicting strengths takes the columns"),
    ],
)
def test_refuses(ledger, lines, options, message):
    ledger = ledger_of([5000.0]) if ledger is None else ledger
    lines = list_of([5000.0], ["Fe I"], [1.0]) if lines is None else lines
    with pytest.raises(ValueError, match=message):
        sb.identify(ledger, lines, **options)


def test_probabilities_are_frequencies():
    """Strengths off by 0.5 dex, a tenth of the lines in no list: what is said to be likely is so at least as often.

    Doubtful cases are right more often than said, as the unlisted line has exactly the strength observed.
    """
    rng = np.random.default_rng(5)
    n_line, n_list = 3000, 30_000
    names = np.array(["Fe I", "Ti I", "CN", "Ca I", "V I", "Si I"])
    wavelength = np.sort(rng.uniform(8000.0, 11000.0, n_list))
    species = names[rng.integers(0, len(names), n_list)]
    predicted = 10.0 ** rng.normal(-1.0, 1.0, n_list)
    true = predicted * 10.0 ** (0.5 * rng.normal(size=n_list))
    strongest = np.sort(np.argsort(-true)[:n_line])
    listed = rng.random(n_list) > 0.1 * np.isin(np.arange(n_list), strongest)
    center = wavelength[strongest] + rng.normal(0.0, 0.01, n_line)
    ledger = ledger_of(center, area=true[strongest] * 1e-3, fwhm=0.15, center_err=np.full(n_line, 0.01) * u.AA)
    lines = list_of(wavelength[listed], species[listed], predicted[listed])
    result = sb.identify(ledger, lines, background=0.1)
    probability, named = result["species_probability"], result["species"] != ""
    right = (result["species"] == species[strongest]) & listed[strongest]
    for low, high in ((0.4, 0.7), (0.7, 0.9), (0.9, 1.01)):
        chosen = named & (probability >= low) & (probability < high)
        assert chosen.sum() > 100
        assert -0.05 < right[chosen].mean() - probability[chosen].mean() < 0.2
    assert named[listed[strongest]].mean() > 0.9
    assert right[named].mean() > 0.85


def test_ten_thousand_lines_against_half_a_million():
    """Nothing of the size of all pairs of lines, which would be 40 GB, nor of all within each other's reach."""
    rng = np.random.default_rng(1)
    n_list, n_line = 500_000, 10_000
    names = np.array(["Fe I", "Ti I", "TiO", "CN", "V I", "Ca I"])
    lines = list_of(
        np.sort(rng.uniform(8000, 13000, n_list)), names[rng.integers(0, 6, n_list)], 10 ** rng.normal(-14, 2, n_list)
    )
    ledger = ledger_of(np.sort(rng.uniform(8000, 13000, n_line)), area=10 ** rng.normal(-2, 0.5, n_line))
    tracemalloc.start()
    try:
        result = sb.identify(ledger, lines)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5e8
    assert len(result) == n_line and (result["species"] != "").mean() > 0.5


# --- spectra whose lines are known ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_sun(shared_data):
    """LTE Sun, made of linemake's atoms (and CN): of its clone's 300 deepest lines, nine tenths at least are right.

    Right is the species of the strongest true line within 0.05 Å. The template has no hydrogen lines.
    """
    sys.path.insert(0, str(shared_data / "tools"))
    try:
        import templates
    finally:
        sys.path.pop(0)
    clone = sb.clone(templates.lte("sun_5777_hpf"), region=(8050 * u.AA, 8950 * u.AA), rms_target=0.01, progress=False)
    lines = read_line_list(shared_data / "data/linelists/linemake_atoms.gz", temperature=5777)
    result = sb.identify(clone.ledger, lines, component="star")
    true = lines[lines["species"] != "H I"]
    wavelength, strength = true["wavelength"].value, np.nan_to_num(true["strength"].value)
    right = 0
    deepest = np.argsort(-result["depth"])[:300]
    for line in deepest:
        low, high = np.searchsorted(wavelength, result["center"][line].value + np.array([-0.05, 0.05]))
        right += low < high and true["species"][low + np.argmax(strength[low:high])] == result["species"][line]
    assert right >= 0.9 * len(deepest)
    # Lines with no atom of any strength nearby are CN's, which the list has not, or parts of wings: few are named.
    total = np.array([
        strength[slice(*np.searchsorted(wavelength, c + np.array([-0.1, 0.1])))].sum() for c in result["center"].value
    ])  # fmt: skip
    orphans = total < 1e-6 * np.median(total[deepest])
    assert orphans.sum() > 100 and (result["species"][orphans] == "").mean() > 0.85


def test_k_star_of_vald(shared_data):
    """A K5 star's mask, whose species and depths are VALD's synthesis: truth that shares no strength with us."""
    mask = read_line_list(shared_data / "data/linelists/arve_K5.csv.zip")
    mask = mask[(mask["wavelength"] > 5000 * u.AA) & (mask["wavelength"] < 7000 * u.AA)]
    lines = read_line_list(shared_data / "data/linelists/linemake_atoms.gz", temperature=4400)
    fwhm = (mask["wavelength"] / 5e4).to_value(u.AA)
    area = -np.log1p(-np.clip(mask["depth"], 0, 0.999)) * fwhm
    result = sb.identify(ledger_of(mask["wavelength"].value, area=area, fwhm=fwhm), lines)
    atoms = np.array([" " in name for name in mask["species"]])
    right, empty = result["species"] == mask["species"], result["species"] == ""
    assert right[atoms].mean() > 0.9
    assert right[atoms & ~empty].mean() > 0.96
    assert empty[~atoms].mean() > 0.85  # OH, MgH, ...: not in the list
    sure = atoms & ~empty & (np.nan_to_num(result["species_probability"]) > 0.9)
    assert sure.sum() > 1000 and right[sure].mean() > 0.98


def test_oxygen_band(shared_data):
    """The O2 band at 1.27 µm, computed from HITRAN and cloned, among the lines of O2 and H2O: all O2."""
    oxygen = read_line_list(shared_data / "data/linelists/hitran_O2_10500_16073.par.gz")
    water = read_line_list(shared_data / "data/linelists/hitran_H2O_9000_18000.par.gz")
    emulator = emulator_from_ledger(to_ledger(oxygen, temperature=260, wavelength_range=(12500, 12850)))
    wavelength = torch.arange(12560.0, 12800.0, 0.008, dtype=torch.float64)
    with torch.no_grad():
        transmission = emulator(Sampling(wavelength))
    clone = sb.clone(spectrum_on(wavelength, transmission), max_iterations=10, progress=False)
    result = sb.identify(clone.ledger, vstack([oxygen, water], metadata_conflicts="silent"))
    assert len(result) > 60 and set(result["species"]) == {"O2"}
