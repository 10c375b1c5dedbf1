"""The ledger: what its columns say, equivalent widths and their errors, the way to an emulator and back, bad tables."""

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.table import MaskedColumn, QTable, Table
from astropy.utils.masked import Masked
from scipy.special import voigt_profile
from specutils import Spectrum
from specutils.analysis import equivalent_width

import specutils_blase as sb
from specutils_blase.ledger.columns import COLUMNS, FLAG_LIMITS
from specutils_blase.ledger.table import LineErrors, build_ledger, held_errors
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.physics.grids import Sampling
from specutils_blase.physics.saturation import Minnaert, Product

DESIGN = (
    "id component species center center_err rv_offset rv_offset_err area area_err sigma sigma_err gamma gamma_err fwhm "
    "depth equivalent_width equivalent_width_err snr delta_ln_area blended saturated edge free orders"
).split()
UNITS = {"center": "Angstrom", "rv_offset": "km / s", "area": "Angstrom", "sigma": "Angstrom", "gamma": "Angstrom"}


def many_lines(n=40, law="log", seed=0, **options):
    rng = np.random.default_rng(seed)
    width = rng.uniform(0.02, 0.08, (2, n))
    area = rng.uniform(0.002, 0.05, n)
    return LineEmulator(
        np.sort(rng.uniform(10480.0, 10520.0, n)),
        area,
        *width,
        rv_offset=rng.normal(0.0, 0.4, n),
        law=law,
        wavelength_range=(10470.0, 10530.0),
        **options,
    )


def ledger_of(emulator, component="star", errors=None, ranges=None):
    return build_ledger(
        {component: (emulator, errors or held_errors(emulator))},
        wavelength_range={component: ranges or [emulator.wavelength_range]},
        meta={"wavelength_range": list(emulator.wavelength_range)},
    )


# --- what a column is -------------------------------------------------------------------------------------------------


def test_every_column_of_the_design_with_unit_and_description():
    ledger = ledger_of(many_lines())
    assert set(DESIGN) <= set(ledger.colnames) and list(COLUMNS) == ledger.colnames
    for name in ledger.colnames:
        column = COLUMNS[name]
        assert ledger[name].info.description == ledger.meta["columns"][name] == column.description
        assert column.description.isascii() and column.meaning in column.description
        assert getattr(ledger[name], "unit", None) == column.unit
        unit = UNITS.get(name.removesuffix("_err"))
        assert unit is None or column.unit == u.Unit(unit)


@pytest.mark.parametrize("flag", FLAG_LIMITS)
def test_flags_say_their_thresholds(flag):
    assert str(FLAG_LIMITS[flag]) in COLUMNS[flag.removesuffix("_linear")].description


def test_fwhm_and_depth_are_their_formulas():
    emulator = many_lines()
    ledger = ledger_of(emulator)
    sigma, gamma, area = (ledger[name].value for name in ("sigma", "gamma", "area"))
    expected = 1.0692 * gamma + np.sqrt(0.86639 * gamma**2 + 8 * np.log(2) * sigma**2)
    np.testing.assert_allclose(ledger["fwhm"].value, expected, rtol=1e-4)
    np.testing.assert_allclose(ledger["depth"], -np.expm1(-area * voigt_profile(0.0, sigma, gamma)), rtol=1e-6)


def test_flags_at_their_thresholds():
    """Pairs at 0.99 and 1.01 of half the sum of their widths; ends of the data nearer and further than one width."""
    fwhm = 1.0692 * 0.03 + np.sqrt(0.86639 * 0.03**2 + 8 * np.log(2) * 0.04**2)
    center = 10490.0 + np.array([0.0, 0.99 * fwhm, 5.0, 5.0 + 1.01 * fwhm])
    lines = LineEmulator(center, [0.01] * 4, [0.04] * 4, [0.03] * 4)
    ledger = ledger_of(lines, ranges=[(center[0] - 1.01 * fwhm, center[-1] + 0.99 * fwhm)])
    assert list(ledger["blended"]) == [True, True, False, False]
    assert list(ledger["edge"]) == [False, False, False, True]
    # A broad line reaches past its neighbour to the next, and centres that have moved may have changed places.
    lines = LineEmulator([10490.0, 10490.3, 10490.6], [0.01] * 3, [0.6, 0.02, 0.02], [0.03] * 3)
    assert ledger_of(lines)["blended"].all()
    lines = LineEmulator([10490.0, 10490.3, 10492.0], [0.01] * 3, [0.02] * 3, [0.03] * 3, rv_offset=[57.0, 0.0, 0.0])
    assert list(ledger_of(lines)["blended"]) == [True, False, True]
    # exp(-tau) reacts an eighth of a weak line's at tau = ln 8; a product is full at its own limit.
    peak = np.array([np.log(8) * 0.99, np.log(8) * 1.01, 0.874, 0.876])
    height = voigt_profile(0.0, 0.04, 0.03)
    center = [10490.0, 10492.0, 10494.0, 10496.0]
    for law, expected in (("log", [False, True, False, False]), ("linear", [True, True, False, True])):
        lines = LineEmulator(center, peak / height, [0.04] * 4, [0.03] * 4, law=law)
        assert list(ledger_of(lines)["saturated"]) == expected


def test_long_species_are_not_cut():
    name = "a molecule with a very long name"
    emulator = LineEmulator([10490.0, 10491.0], [0.1, 0.1], [0.04, 0.04], [0.03, 0.03], species=[name, "Fe I"])
    assert list(ledger_of(emulator)["species"]) == [name, "Fe I"]


# --- equivalent widths ------------------------------------------------------------------------------------------------


def integrated(area, sigma, gamma):
    """W of S = exp(-a V) by the trapezoidal rule in t, x = w sinh t: exponentially exact. Shapes (..., 1)."""
    t = np.linspace(-22.0, 22.0, 1601)
    scale = 0.3 * (sigma + gamma)
    x = scale * np.sinh(t)
    depth = -np.expm1(-area * voigt_profile(x, sigma, gamma))
    return (depth * scale * np.cosh(t)).sum(-1) * (t[1] - t[0])


@pytest.fixture(scope="module")
def hundred():
    """Random lines, from a hundredth to a thousand in central opacity, with correlated errors of a few per cent."""
    rng = np.random.default_rng(11)
    n = 100
    center = 10000.0 + 20.0 * np.arange(n)
    sigma, gamma = rng.uniform(0.02, 0.1, n), 10.0 ** rng.uniform(-3.5, -0.7, n)
    area = 10.0 ** rng.uniform(-2.0, 3.0, n) / voigt_profile(0.0, sigma, gamma)
    emulator = LineEmulator(center, area, sigma, gamma)
    mix = rng.normal(0.0, 1.0, (n, 4, 4)) * rng.uniform(0.002, 0.02, (n, 4, 1))
    covariance = mix @ mix.transpose(0, 2, 1)
    free = torch.ones(n, dtype=torch.bool)
    errors = LineErrors(free, torch.as_tensor(covariance), emulator.ln_area.detach().clone(), 0.3)
    return ledger_of(emulator, errors=errors), covariance[:, :3, :3]


def test_equivalent_widths_are_integrals(hundred):
    ledger, _ = hundred
    values = (ledger[name].value[:, None] for name in ("area", "sigma", "gamma"))
    np.testing.assert_allclose(ledger["equivalent_width"].value, integrated(*values), rtol=1e-5)
    assert ledger["saturated"].sum() > 40 and (~ledger["saturated"]).sum() > 20


def test_errors_of_equivalent_widths_are_the_scatter_of_draws(hundred):
    """Draws with exactly this covariance: what is left beside the propagation is the curvature of W."""
    ledger, covariance = hundred
    rng = np.random.default_rng(12)
    logs = np.log([ledger[name].value for name in ("area", "sigma", "gamma")])
    spread = np.empty(len(ledger))
    for k, matrix in enumerate(covariance):
        draws = rng.normal(size=(50, 3))
        draws = np.concatenate([draws, -draws])
        draws = draws @ np.linalg.inv(np.linalg.cholesky(np.cov(draws.T))).T @ np.linalg.cholesky(matrix).T
        spread[k] = integrated(*np.exp(logs[:, k] + draws).T[..., None]).std(ddof=1)
    np.testing.assert_allclose(ledger["equivalent_width_err"].value, spread, rtol=0.01)
    np.testing.assert_allclose(ledger["snr"], (ledger["equivalent_width"] / ledger["equivalent_width_err"]).value)
    alone = np.sqrt(np.einsum("lii->li", covariance)[:, 0])
    assert np.median(np.abs(ledger["equivalent_width_err"] / ledger["equivalent_width"] / alone - 1.0)) > 0.1


def test_equivalent_width_against_specutils():
    """One isolated line on a spectrum, W of specutils against that of its ledger."""
    wavelength = np.arange(10440.0, 10560.0, 0.005)
    for area, law in ((0.02, "log"), (0.6, "log"), (0.06, "linear")):
        emulator = LineEmulator([10500.0], [area], [0.05], [0.03], law=law)
        with torch.no_grad():
            flux = emulator(Sampling(torch.as_tensor(wavelength))).numpy()
        found = equivalent_width(Spectrum(flux=flux * u.one, spectral_axis=wavelength * u.AA), continuum=1.0)
        assert ledger_of(emulator)["equivalent_width"][0].value == pytest.approx(found.to_value(u.AA), rel=0.005)


def test_linear_lines_have_their_area_and_emission_minus_its():
    emulator = LineEmulator([10490.0, 10495.0], [0.05, 0.04], [0.05] * 2, [0.03] * 2, sign=[1, -1], law="linear")
    np.testing.assert_allclose(ledger_of(emulator)["equivalent_width"].value, [0.05, -0.04], rtol=1e-6)


# --- ledger -> emulator -> ledger -------------------------------------------------------------------------------------

LAWS = {
    "log": lambda: "log",
    "linear": lambda: "linear",
    "guard": lambda: Product(guard=0.9),
    "minnaert": lambda: Minnaert((10470.0, 10530.0), limiting_depth=0.7, degree=2),
}


@pytest.mark.parametrize("law", LAWS)
def test_there_and_back(law):
    emulator = many_lines(law=LAWS[law](), sign=[1, -1] * 20, species=[f"X{k % 3}" if k % 4 else "" for k in range(40)])
    if law == "minnaert":
        emulator.law.coefficients.data += torch.tensor([0.1, -0.2, 0.05])
    ledger = ledger_of(emulator)
    back = LineEmulator.from_ledger(ledger)
    again = ledger_of(back)
    assert again.colnames == ledger.colnames and back.wavelength_range == emulator.wavelength_range
    assert {key: again.meta[key] for key in ("flux_scale", "medium")} == {
        "flux_scale": ledger.meta["flux_scale"],
        "medium": "vacuum",
    }
    for name in ledger.colnames:
        one, other = (getattr(table[name], "value", np.asarray(table[name])) for table in (ledger, again))
        if one.dtype.kind == "f":
            np.testing.assert_allclose(other, one, rtol=1e-12, atol=1e-12, err_msg=name)
        else:
            np.testing.assert_array_equal(other, one, err_msg=name)
    sampling = Sampling(torch.linspace(10478.0, 10522.0, 4000, dtype=torch.float64))
    with torch.no_grad():
        torch.testing.assert_close(back(sampling), emulator(sampling), rtol=0, atol=1e-12)


def test_the_component_is_known_without_being_told():
    """The law of a linear clone is found although nobody names the component."""
    emulator = many_lines(law="linear")
    assert LineEmulator.from_ledger(ledger_of(emulator, "telluric")).law.name == "linear"
    both = build_ledger(
        {"star": (emulator, held_errors(emulator)), "telluric": (many_lines(7), held_errors(many_lines(7)))},
        wavelength_range={"star": [(10470.0, 10530.0)], "telluric": [(10470.0, 10530.0)]},
    )
    assert both.meta["flux_scale"] == {"star": "linear", "telluric": "log"}
    assert LineEmulator.from_ledger(both, component="star").law.name == "linear"
    sky = LineEmulator.from_ledger(both, component="telluric")
    assert sky.law.name == "log" and len(sky) == 7
    assert LineEmulator.from_ledger(both, component="star", law="log").law.name == "log"
    with pytest.raises(ValueError, match=r"has the components star, telluric: give component= one of them"):
        LineEmulator.from_ledger(both)


def test_a_bare_table_is_a_ledger():
    table = Table({"center": [10491.0, 10490.0], "area": [20.0, 10.0], "sigma": [50.0, 50.0], "gamma": [0.0, 30.0]})
    for name in ("area", "sigma", "gamma"):
        table[name].unit = "mAA" if name != "sigma" else "1e-3 AA"
    emulator = LineEmulator.from_ledger(table)
    assert emulator.law.name == "log" and emulator.species is None
    np.testing.assert_allclose(emulator.area.detach(), [0.01, 0.02])
    assert emulator.center.tolist() == [10490.0, 10491.0]


# --- bad ledgers ------------------------------------------------------------------------------------------------------


def changed(name, row, value):
    def change(ledger):
        ledger[name][row] = value
        return ledger

    return change


def without(name):
    return lambda ledger: ledger[[column for column in ledger.colnames if column != name]]


def in_unit(name, unit):
    def change(ledger):
        values = ledger[name].value
        ledger.remove_column(name)
        ledger[name] = values * unit
        return ledger

    return change


def masked(ledger):
    ledger["gamma"] = Masked(ledger["gamma"], mask=np.arange(len(ledger)) == 5)
    return ledger


def masked_plain(ledger):
    ledger["area"] = MaskedColumn(ledger["area"].value, mask=np.arange(len(ledger)) == 2)
    return ledger


def words(ledger):
    ledger["sigma"] = ["wide"] * len(ledger)
    return ledger


def pairs(ledger):
    ledger["area"] = np.ones((len(ledger), 2)) * u.AA
    return ledger


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (
            without("gamma"),
            r"needs the columns center, area, sigma, gamma \(Å\); gamma missing from id, .*: add or rename",
        ),
        (in_unit("area", u.s), r"the column area must be in Å or convertible, got s: set the unit"),
        (in_unit("rv_offset", u.AA), r"the column rv_offset must be in km s⁻¹ or convertible, got Angstrom"),
        (changed("sigma", 3, np.nan * u.AA), r"positive sigma \(Å\) of every line, got nan in row 3, id 3: correct or"),
        (changed("sigma", 0, 0.0 * u.AA), r"positive sigma \(Å\) of every line, got 0 in row 0, id 0"),
        (changed("gamma", 7, -1e-3 * u.AA), r"non-negative gamma \(Å\) of every line, got -0.001 in row 7, id 7"),
        (changed("area", 9, -0.1 * u.AA), r"got -0.1 in row 9, id 9: correct .*mark emission by a negative depth"),
        (changed("area", slice(2, 5), np.inf * u.AA), r"got inf in row 2, id 2 and 2 more like it"),
        (changed("center", 1, 0.0 * u.AA), r"positive center \(Å\) of every line, got 0 in row 1"),
        (changed("id", 4, 8), r"every id once in a component, got id 8 2 times, first in row 4: remove the duplicates"),
        (masked, r"gamma \(Å\) of every line, got nan in row 5"),
        (masked_plain, r"area \(Å\) of every line, got nan in row 2"),
        (words, r"expected numbers in the column sigma, got .*U4"),
        (pairs, r"expected one number a row in the column area, got shape \(40, 2\)"),
        (lambda ledger: ledger[:0], r"the line ledger has no rows: check what was selected or read"),
    ],
)
def test_bad_ledgers(break_it, message):
    ledger = break_it(ledger_of(many_lines()))
    with pytest.raises(ValueError, match=message):
        LineEmulator.from_ledger(ledger)


def test_another_component_than_there_is():
    with pytest.raises(ValueError, match=r"no rows of component 'telluric', only of star: choose that, or remove"):
        LineEmulator.from_ledger(ledger_of(many_lines()), component="telluric")


def test_a_fit_names_the_bad_row():
    wavelength = np.linspace(10480.0, 10520.0, 300) * u.AA
    data = Spectrum(flux=np.ones(300) * u.one, spectral_axis=wavelength)
    bad = changed("area", 9, -0.1 * u.AA)(ledger_of(many_lines(), "telluric"))
    with pytest.raises(ValueError, match=r"got -0\.1 in row 9, id 9"):
        sb.fit(data, telluric=bad, resolving_power=50_000)


def test_ids_may_repeat_between_components():
    star, sky = many_lines(5), many_lines(5, seed=2)
    both = build_ledger(
        {"star": (star, held_errors(star)), "telluric": (sky, held_errors(sky))},
        wavelength_range={"star": [(10470.0, 10530.0)], "telluric": [(10470.0, 10530.0)]},
    )
    assert isinstance(both, QTable) and list(both["id"]) == [*range(5), *range(5)]
    assert len(LineEmulator.from_ledger(both, component="telluric")) == 5
