"""Choosing lines: regions in any unit, frame and medium, species, changes against the clone; line lists for others."""

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy.table import QTable, vstack
from scipy.stats import chi2
from specutils import SpectralRegion
from specutils.utils.wcs_utils import vac_to_air

import specutils_blase as sb
from specutils_blase.ledger.table import LineErrors, build_ledger, held_errors
from specutils_blase.model.emulator import LineEmulator
from specutils_blase.physics.grids import SPEED_OF_LIGHT

CENTER = np.array([10490.0, 10495.0, 10500.0, 10505.0, 10510.0])
RV = 60.0  # km/s: 2.1 Å


def lines(center, **options):
    n = len(center)
    return LineEmulator(center, [0.02] * n, [0.05] * n, [0.03] * n, **options)


@pytest.fixture(scope="module")
def ledger():
    star = lines(CENTER, species=["Fe I", "Fe II", "", "Fe I", "CN"], sign=[1, 1, 1, 1, -1])
    sky = lines(CENTER + 1.0, species=["H2O"] * 5)
    return build_ledger(
        {"star": (star, held_errors(star)), "telluric": (sky, held_errors(sky))},
        wavelength_range={"star": [(10480.0, 10520.0)], "telluric": [(10480.0, 10520.0)]},
    )


def centers(table):
    return table["center"].value.tolist()


def test_rows_keep_class_meta_and_descriptions(ledger):
    part = sb.select_lines(ledger)
    assert type(part) is QTable and len(part) == 10 and part.meta == ledger.meta
    assert part["area"].info.description == ledger["area"].info.description
    part["area"][0] = 5.0 * u.AA
    assert ledger["area"][0].value == 0.02


REGIONS = {
    "Å": SpectralRegion(10494 * u.AA, 10501.5 * u.AA),
    "µm": SpectralRegion(1.0494 * u.um, 1.05015 * u.um),
    "Hz": SpectralRegion((10501.5 * u.AA).to(u.THz, u.spectral()), (10494 * u.AA).to(u.THz, u.spectral())),
    "cm-1": SpectralRegion((10494 * u.AA).to(u.cm**-1, u.spectral()), (10501.5 * u.AA).to(u.cm**-1, u.spectral())),
    "eV": ((10494 * u.AA).to(u.eV, u.spectral()), (10501.5 * u.AA).to(u.eV, u.spectral())),
    "bare": (10494, 10501.5),
    "mixed": (10494, 1.05015 * u.um),
    "two parts": SpectralRegion([(10494 * u.AA, 10496.5 * u.AA), (10500 * u.AA, 10501.5 * u.AA)]),
}


@pytest.mark.parametrize("name", REGIONS)
def test_regions_in_every_unit(ledger, name):
    assert centers(sb.select_lines(ledger, region=REGIONS[name])) == [10495.0, 10500.0, 10496.0, 10501.0]


def test_regions_in_air(ledger):
    low, high = vac_to_air([10494.0, 10501.5] * u.AA, method="Ciddor1996")
    assert centers(sb.select_lines(ledger, region=(low, high), medium="air", component="star")) == [10495.0, 10500.0]


def test_the_frame_of_a_region(ledger):
    """A region read off the data: the star's lines are sought where they are observed, telluric ones as they are."""
    shift = CENTER[1] * RV / SPEED_OF_LIGHT
    region = SpectralRegion((CENTER[1] + shift - 0.2) * u.AA, (CENTER[1] + shift + 0.2) * u.AA)
    assert not len(sb.select_lines(ledger, region=region))
    assert centers(sb.select_lines(ledger, region=region, rv=RV)) == [CENTER[1]]
    assert centers(sb.select_lines(ledger, region=region, rv=6e4 * u.m / u.s)) == [CENTER[1]]
    near = (10495.9, 10496.1)
    assert centers(sb.select_lines(ledger, region=near)) == centers(sb.select_lines(ledger, region=near, rv=RV))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"component": "telluric"}, (CENTER + 1.0).tolist()),
        ({"species": "Fe I"}, [10490.0, 10505.0]),
        ({"species": ["fe 1", "26.1"]}, [10490.0, 10495.0, 10505.0]),
        ({"species": ""}, [10500.0]),
        ({"species": ("H2O", "CN"), "region": (10509, 10512)}, [10510.0, 10511.0]),
        ({"without": "edge"}, [*CENTER, *(CENTER + 1.0)]),
        ({"without": "any"}, []),
        ({"without": ("blended", "saturated"), "component": "star"}, CENTER.tolist()),
        ({"component": "sun"}, []),
    ],
)
def test_conditions(ledger, options, expected):
    assert centers(sb.select_lines(ledger, **options)) == expected


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"region": SpectralRegion(10 * u.pix, 20 * u.pix)}, u.UnitsError, "spectral axis in wavelength"),
        ({"region": 10500.0}, ValueError, r"region as a SpectralRegion or \(low, high\), got 10500.0"),
        ({"region": (10490, 10500), "rv": 3 * u.AA}, u.UnitsError, "expected rv as one finite number of km"),
        (
            {"without": "ugly"},
            ValueError,
            "without must be among blended, saturated, edge, unconstrained, at_limit, or 'any'",
        ),
        ({"species": "Xyz"}, ValueError, "expected a species such as"),
        ({"medium": "water", "region": (10490, 10500)}, ValueError, "medium 'vacuum' or 'air'"),
    ],
)
def test_refuses(ledger, options, error, message):
    with pytest.raises(error, match=message):
        sb.select_lines(ledger, **options)


def test_what_a_condition_needs_is_named(ledger):
    bare = ledger["center", "area", "sigma", "gamma"]
    assert centers(sb.select_lines(bare, region=(10490, 10491))) == [10490.0, 10491.0]
    with pytest.raises(ValueError, match=r"expected a ledger with species, got center, area, .*: species missing"):
        sb.select_lines(bare, species="Fe I")
    with pytest.raises(ValueError, match=r"delta_ln_area, area_err, rv_offset, rv_offset_err missing"):
        sb.select_lines(bare, changed=3.0)


def test_ledgers_of_older_versions_do_not_tell_all(ledger):
    """They have no column at_limit: "any" is of the others, and who asks for it is told."""
    older = ledger[[name for name in ledger.colnames if name != "at_limit"]]
    older["unconstrained"] = False
    older["edge"][2] = True
    assert centers(sb.select_lines(older, without="any", component="star")) == np.delete(CENTER, 2).tolist()
    with pytest.raises(ValueError, match="at_limit missing"):
        sb.select_lines(older, without="at_limit")


# --- significance of change -------------------------------------------------------------------------------------------


def changed_ledger(area, area_err, shift, shift_err, free=None):
    """Lines whose ln area changed by `area` ± `area_err` and whose centre by `shift` ± `shift_err` km/s."""
    n = len(area)
    emulator = lines(10490.0 + np.arange(n), rv_offset=shift)
    covariance = torch.zeros(n, 4, 4, dtype=torch.float64)
    covariance[:, 0, 0], covariance[:, 3, 3] = torch.as_tensor(area_err) ** 2, torch.as_tensor(shift_err) ** 2
    free = torch.ones(n, dtype=torch.bool) if free is None else torch.as_tensor(free)
    errors = LineErrors(free, covariance, emulator.ln_area.detach() - torch.as_tensor(area), 0.3)
    return build_ledger({"star": (emulator, errors)}, wavelength_range={"star": [(10480.0, 10520.0)]})


def test_significance_of_change():
    ledger = changed_ledger(
        area=np.array([0.3, -0.1, 0.0, 0.2, 0.0]),
        area_err=np.array([0.1, 0.05, 0.1, 0.1, 0.0]),
        shift=np.array([0.0, 0.2, -0.5, 0.0, 0.0]),
        shift_err=np.array([0.1, 0.1, 0.1, 0.0, 0.0]),
    )
    found = sb.change_significance(ledger)
    np.testing.assert_allclose(found["area"], [3.0, -2.0, 0.0, 2.0, np.nan], atol=1e-9)
    np.testing.assert_allclose(found["center"], [0.0, 2.0, -5.0, np.nan, np.nan], atol=1e-9)
    np.testing.assert_allclose(found["total"], [3.0, 8**0.5, 5.0, 2.0, np.nan], atol=1e-9)
    assert list(sb.select_lines(ledger, changed=2.5)["id"]) == [0, 1, 2]
    assert list(sb.select_lines(ledger, changed=4.0)["id"]) == [2]


def test_a_right_clone_changes_by_chance_only():
    """1,500 lines scattered by their errors: the squares follow χ² of two degrees of freedom."""
    rng = np.random.default_rng(5)
    n = 1500
    ledger = changed_ledger(rng.normal(0, 0.1, n), np.full(n, 0.1), rng.normal(0, 0.2, n), np.full(n, 0.2))
    total = np.asarray(sb.change_significance(ledger)["total"])
    for limit in (1.0, 2.0, 3.0):
        expected = chi2.sf(limit**2, 2)
        assert np.mean(total > limit) == pytest.approx(expected, abs=4 * np.sqrt(expected / n))


# --- line lists for others --------------------------------------------------------------------------------------------


def test_what_jdaviz_asks_for(ledger):
    """Its importer: a QTable with linename and rest, rest positive and with a unit. specutils: line_type."""
    table = sb.ledger_to_line_list(ledger)
    assert type(table) is QTable and table.colnames[:2] == ["linename", "rest"]
    assert table["rest"].unit == u.AA and (table["rest"] > 0).all()
    assert list(table["linename"][:5]) == ["Fe I", "Fe II", "star", "Fe I", "CN"] and "redshift" not in table.colnames
    assert list(table["line_type"][:5]) == ["absorption"] * 4 + ["emission"]
    np.testing.assert_array_equal(table["rest"].value, ledger["center"].value)
    assert table.meta == {"medium": "vacuum", "frame": "rest"}
    assert all(table[name].info.description for name in table.colnames)


def test_units_media_and_frames_of_line_lists(ledger):
    microns = sb.ledger_to_line_list(ledger, unit="um")["rest"]
    assert microns.unit == u.um
    np.testing.assert_allclose(microns.to_value(u.AA), ledger["center"].value, rtol=1e-14)
    terahertz = sb.ledger_to_line_list(ledger, unit=u.THz)["rest"]
    np.testing.assert_allclose(terahertz.to_value(u.AA, u.spectral()), ledger["center"].value, rtol=1e-14)
    air = sb.ledger_to_line_list(ledger, medium="air")
    np.testing.assert_allclose(air["rest"].value, vac_to_air(ledger["center"], method="Ciddor1996").value, rtol=1e-9)
    assert air.meta["medium"] == "air"
    seen = sb.ledger_to_line_list(ledger, rv=RV * u.km / u.s)
    factor = np.where(ledger["component"] == "star", 1 + RV / SPEED_OF_LIGHT, 1.0)
    np.testing.assert_allclose(seen["rest"].value, ledger["center"].value * factor, rtol=1e-14)
    assert seen.meta["frame"] == "observed"


def test_our_own_reader_takes_it(ledger):
    known = sb.select_lines(ledger, species=["Fe I", "Fe II", "H2O"])
    for medium in ("vacuum", "air"):
        back = sb.read_line_list(sb.ledger_to_line_list(known, medium=medium))
        np.testing.assert_allclose(back["wavelength"].value, np.sort(known["center"].value), rtol=1e-10)
        assert sorted(set(back["species"])) == ["Fe I", "Fe II", "H2O"]
    named = sb.identify(sb.select_lines(ledger, component="telluric"), back)
    assert set(named["species"]) == {"H2O"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unit": u.km / u.s}, "expected a unit of light, got km / s"),
        ({"unit": u.THz, "medium": "air"}, "expected a unit of wavelength, in air, got THz"),
        ({"medium": "water"}, "medium 'vacuum' or 'air', got 'water'"),
    ],
)
def test_line_lists_refuse(ledger, options, message):
    with pytest.raises(ValueError, match=message):
        sb.ledger_to_line_list(ledger, **options)


def test_line_lists_of_odd_tables(ledger):
    bare = ledger["center", "area"]
    assert list(sb.ledger_to_line_list(bare)["linename"]) == ["star"] * 10
    with pytest.raises(ValueError, match="a ledger with the column center, got area"):
        sb.ledger_to_line_list(ledger[["area"]])
    twice = vstack([bare, bare])
    twice["center"][3] = np.nan * u.AA
    with pytest.raises(ValueError, match="every center of the ledger must be finite and positive"):
        sb.ledger_to_line_list(twice)
