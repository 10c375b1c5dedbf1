"""Line lists: every format by small records written here, by real lists where they are at hand, and by damaged ones."""

import bz2
import gzip
import lzma
import math
import re
import zipfile
from io import BytesIO

import astropy.units as u
import numpy as np
import pytest
import torch
from astropy import constants as const
from astropy.table import QTable, Table
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid
from specutils_blase.line_lists.elements import ELEMENTS
from specutils_blase.line_lists.equilibrium import EV, K_B, Equilibrium
from specutils_blase.line_lists.species import species_mass

import specutils_blase as sb
from specutils_blase.ledger.emulator import emulator_from_ledger
from specutils_blase.line_lists import LineListError, normalise_species, predicted_strength, read_line_list, to_ledger
from specutils_blase.line_lists.ledgers import _anstee_omara
from specutils_blase.physics.grids import Sampling
from specutils_blase.spectra.wavelengths import vacuum_wavelength

# --- the same two lines of Ti I and CN in all of VALD's formats: made up, in the columns that VALD writes -------------

_END = """* oscillator strengths were scaled by the solar isotopic ratios.
 References:
  1. Kurucz obs. energy level: Ti 1
"""
_STELLAR_END = """'castelli_ap00k2_T05750G40.krz',
'H :  0.92','He: -1.11',
'Es:-20.00','END'
"""
SHORT_ALL = f"""# begin request
# short format
                                             Damping parameters  Lande
Elm Ion       WL_vac(A) Excit(eV) log gf*   Rad.  Stark    Waals factor   References
'Ti 1',      5000.12350,   3.1124, -0.760,  7.970,-5.260,  -7.540,  0.780,'  15 wl:K16  15 K16, K17  Ti'
'CN 1',      5001.50000,   0.2895, -1.137,  7.180, 0.000,   0.000, 99.000,'   6 wl:BRW   (12)C(14)N'
{_END}"""
SHORT_STELLAR = f""" 5000.00000, 5002.00000, 2, 6413, 1.0 Wavelength region, lines selected, lines processed, Vmicro
                                                  Damping parameters    Lande  Central
Spec Ion       WL_vac(A)  Excit(eV) Vmic log gf* Rad.   Stark   Waals   factor  depth  Reference
'Ti 1',        5000.1235,  3.1124, 1.0, -0.760, 7.970,-5.260,  -7.540,  0.780, 0.018, '   1 wl:K16 Ti            '
'CN 1',        5001.5000,  0.2895, 1.0, -1.137, 7.180, 0.000,   0.000, 99.000, 0.101, '   6 wl:BRW CN            '
{_STELLAR_END}{_END}"""
LONG_ALL_AIR = """                                       Lande factors        Damping parameters
Elm Ion       WL_air(A)  log gf* E_low(cm^-1)   J lo  E_up(cm^-1)   J up   lower   upper    mean   Rad.  Stark    Waals
'Ti 1',      4998.72899,  -0.760,  25102.875,    2.0,  45102.381,    3.0,  1.930,  1.360,  0.780, 7.970,-5.260,  -7.540
  LS                                                             3d2.(3P).4s.4p.(3P*) z5S*
  LS                                                                     3d2.4s.(2D).5s 3D
'_          Kurucz TiI 2016    7 wl:K16   7 gf:K16   7 K16             Ti'
'CN 1',      5000.10509,  -1.137,   2334.975,    2.5,  22328.980,    3.5, 99.000, 99.000, 99.000, 7.180, 0.000,   0.000
  Hb                                                             X
  Hb                                                             A
'_                             6 wl:BRW   6 gf:BRW         (12)C(14)N'
* oscillator strengths were NOT scaled by the solar isotopic ratios.
"""
LONG_STELLAR = f""" 5000.00000, 5002.00000, 2, 6413, 1.0 Wavelength region, lines selected, lines processed, Vmicro
                                              Lande factors       Damping parameters   Central
Spec Ion        WL_vac(A)  log gf* E_low(eV) J lo E_up(eV)  J up   lower   upper   mean   Rad.   Stark   Waals   depth
'Ti 1',        5000.1235, -0.760,  3.1124,  2.0,  5.5920,  3.0,  1.930,  1.360,  0.780, 7.970,-5.260,  -7.540, 0.018,
'  LS                                                             3d2.(3P).4s.4p.(3P*) z5S*'
'  LS                                                                     3d2.4s.(2D).5s 3D'
'_          Kurucz TiI 2016 Ti               1 wl:K16   1 gf:K16   1 K16'
'CN 1',        5001.5000, -1.137,  0.2895,  2.5,  2.7684,  3.5, 99.000, 99.000, 99.000, 7.180, 0.000,   0.000, 0.101,
'  Hb                                                             X'
'  Hb                                                             A'
'_                                              6 wl:BRW'
{_STELLAR_END}{_END}"""
VALD = {"short all": SHORT_ALL, "short stellar": SHORT_STELLAR, "long all": LONG_ALL_AIR, "long stellar": LONG_STELLAR}

LINEMAKE = """  8498.023      20.1     1.692    -1.312
 18542.091      20.1     1.700    -0.362                                 KURUCZ
  9000.000    3.0007     0.000    -0.804
  1500.000      26.0     0.000    -1.000
"""


def hitran_record(molecule, isotopologue, wavenumber, intensity, air, own, energy, exponent, shift):
    """160 characters, as Rothman et al. (2005), table 1, lay them out; quantum numbers and references left blank."""
    numbers = f"{molecule:2d}{isotopologue}{wavenumber:12.6f}{intensity:10.3E}{4e-2:10.3E}"
    numbers += (
        f"{air:.4f}"[-5:] + f"{own:5.3f}{energy:10.4f}{exponent:4.2f}" + f"{shift:8.6f}".replace("0.", ".").rjust(8)
    )
    return f"{numbers:160s}\n"


HITRAN = (
    hitran_record(7, "1", 7901.123456, 1.107e-25, 0.0475, 0.049, 130.4375, 0.72, -0.008)
    + hitran_record(1, "1", 5555.018634, 2.526e-29, 0.0728, 0.281, -1.0, 0.47, -0.020922)
    + hitran_record(2, "A", 6000.5, 1e-27, 0.0728, 0.081, 10.0, 0.7, 0.0)
)
ARVE = """species,wave,wave_vald,depth,loggf,E_l,damping_rad,damping_stark,damping_waals
Fe 1,5000.2,5000.1,0.5,-1.5,2.4,7.67,-4.71,-7.5
OH 1,6001.0,6001.0,0.1,-2.0,1.7,0.0,0.0,0.0
"""


def written(folder, text, name="list.txt"):
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode("latin-1"))
    return path


# --- species ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name, species",
    [
        ("Fe 1", "Fe I"), ("FE 3", "Fe III"), ("Fe I", "Fe I"), ("fe_ii", "Fe II"), ("Fe", "Fe I"), ("26.0", "Fe I"),
        ("26.1", "Fe II"), ("56.1137", "Ba II"), ("3.0007", "Li I"), ("CN 1", "CN"), ("(12)C(14)N", "CN"),
        ("607.0", "CN"), ("106.00112", "CH"), ("822.0", "TiO"), ("108.0", "OH"), ("126.0", "FeH"), ("606.0", "C2"),
        ("10108.0", "H2O"), ("C 2", "C II"), ("C2 1", "C2"), ("CO 1", "CO"), ("Co 1", "Co I"), ("NI 1", "Ni I"),
        ("HF", "HF"), ("O2", "O2"), ("NO+", "NO+"), ("U 1", "U I"), ("V IV", "V IV"), ("'Ti 2'", "Ti II"),
    ],
)  # fmt: skip
def test_species(name, species):
    assert normalise_species(name) == species
    assert normalise_species(species) == species


@pytest.mark.parametrize(
    "name", ["", "Xx 1", "0", "99.0", "Fe 0", "Fe 44", "Fe IIII", "nan", "-26.0", "Q2", "é", "1" * 99]
)
def test_species_that_are_none(name):
    with pytest.raises(ValueError, match="expected a"):
        normalise_species(name)


def test_masses():
    assert species_mass("Fe II") == pytest.approx(55.85)
    assert species_mass("H2O") == pytest.approx(18.02, abs=0.01)
    assert math.isnan(species_mass("Tc I"))


# --- formats ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VALD)
def test_vald(tmp_path, name):
    """All four formats give the same lines, whatever their units and medium."""
    table = sb.read_line_list(written(tmp_path, VALD[name]))
    assert table.colnames[:3] == ["wavelength", "species", "strength"]
    assert list(table["species"]) == ["Ti I", "CN"]
    np.testing.assert_allclose(table["wavelength"].to_value(u.AA), [5000.1235, 5001.5], rtol=0, atol=2e-4)
    np.testing.assert_allclose(table["excitation"].to_value(u.eV), [3.1124, 0.2895], rtol=0, atol=1e-4)
    np.testing.assert_allclose(table["log_gf"], [-0.76, -1.137])
    np.testing.assert_allclose(table["damping_stark"], [-5.26, np.nan])
    np.testing.assert_allclose(table["lande"], [0.78, np.nan])
    assert table.meta["isotopic_scaling"] == (name != "long all")
    assert table.meta["original_medium"] == ("air" if name == "long all" else "vacuum")
    assert (table.meta["medium"], table.meta["format"]) == ("vacuum", "vald")
    assert ("depth" in table.colnames) == ("stellar" in name)
    assert table["strength"].unit == u.AA and (table["strength"] > 0).all()


@pytest.mark.parametrize(
    "old, new, line, reason",
    [
        ("3.1124, -0.760", "3.1124, x0.760", 5, "expected a number for log gf, got 'x0.760'"),
        ("3.1124, -0.760", "3.1124, nan", 5, "expected a finite number for log gf, got 'nan'"),
        ("3.1124, -0.760", "3.1124, 300.0", 5, "expected log gf between -30 and 10, got 300"),
        ("'Ti 1'", "'Qq 1'", 5, "expected a species"),
        ("5000.12350", "0.0", 5, "expected a wavelength between"),
        ("-7.540,  0.780,'  15 wl:K16  15 K16, K17  Ti'", "-7.540", 5, "expected 8 fields .* got 7"),
        ("'CN 1',      5001", "garbage 5001", 6, "expected a transition"),
        ("WL_vac(A)", "WL_vac(feet)", 4, "expected wavelengths in A, nm or cm\\^-1, got 'feet'"),
        ("Excit(eV)", "Excit(J)", 4, "expected energies in eV or cm\\^-1"),
    ],
)
def test_vald_damaged(tmp_path, old, new, line, reason):
    path = written(tmp_path, SHORT_ALL.replace(old, new))
    with pytest.raises(LineListError, match=f"{re.escape(str(path))}, line {line}: {reason}"):
        read_line_list(path, format="vald")


def test_vald_cut_off(tmp_path, caplog):
    with pytest.raises(LineListError, match="the file ends within one"):
        read_line_list(written(tmp_path, "\n".join(LONG_STELLAR.split("\n")[:9])))
    read_line_list(written(tmp_path, "\n".join(SHORT_ALL.split("\n")[:6])))
    assert "is it complete?" in caplog.text


def test_linemake(tmp_path):
    """Columns that touch, isotopes in codes, comments, and vacuum below 2000 Å."""
    table = read_line_list(written(tmp_path, LINEMAKE))
    assert list(table["species"]) == ["Fe I", "Ca II", "Li I", "Ca II"]
    original = [1500.0, 8498.023, 9000.0, 18542.091]
    np.testing.assert_allclose(table["original_wavelength"].value, original)
    expected = [1500.0, *vacuum_wavelength(original[1:] * u.AA, "air").value]
    np.testing.assert_allclose(table["wavelength"].value, expected, rtol=1e-12)
    assert table["wavelength"][1].value == pytest.approx(8500.36, abs=0.01)  # Ca II in NIST
    assert table.meta["original_medium"] == "air"
    titled = read_line_list(written(tmp_path, "my list\n" + LINEMAKE), medium="vacuum")
    np.testing.assert_allclose(titled["wavelength"].value, original)
    with pytest.raises(LineListError, match=r"line 3: expected a number for log gf, got '-0.8x4'"):
        read_line_list(written(tmp_path, LINEMAKE.replace("-0.804", "-0.8x4")), format="linemake")
    with pytest.raises(LineListError, match="line 2: expected a MOOG species code"):
        read_line_list(written(tmp_path, LINEMAKE.replace("20.1     1.700", "98.1     1.700")), format="linemake")
    with pytest.raises(LineListError, match="an excitation in eV between 0 and 50, got 13650"):
        read_line_list(written(tmp_path, LINEMAKE.replace("    1.692", "13650.000".rjust(9))), format="linemake")


def test_hitran(tmp_path):
    table = read_line_list(written(tmp_path, HITRAN))
    assert list(table["species"]) == ["O2", "CO2", "H2O"]
    assert list(table["isotopologue"]) == [1, 11, 1]
    np.testing.assert_allclose(table["wavelength"].value, [1e8 / 7901.123456, 1e8 / 6000.5, 1e8 / 5555.018634])
    np.testing.assert_allclose(table["strength"].to_value(u.cm), [1.107e-25, 1e-27, 2.526e-29])
    np.testing.assert_allclose(table["gamma_air"].value, [0.0475, 0.0728, 0.0728])
    np.testing.assert_allclose(table["lower_energy"].value, [130.4375, 10.0, np.nan])
    np.testing.assert_allclose(table["delta_air"].value, [-0.008, 0.0, -0.020922])
    assert table.meta["strength_temperature"] == 296.0
    with pytest.raises(LineListError, match="as asked for, but the format says vacuum"):
        read_line_list(written(tmp_path, HITRAN), medium="air")
    with pytest.raises(LineListError, match=r"line 2: expected a record of 160 characters, got 40"):
        read_line_list(written(tmp_path, HITRAN.split("\n")[0] + "\n" + HITRAN[:40]), format="hitran")
    with pytest.raises(LineListError, match="line 1: expected a molecule number"):
        read_line_list(written(tmp_path, "99" + HITRAN[2:]), format="hitran")
    with pytest.raises(LineListError, match="line 3: expected an isotopologue"):
        read_line_list(written(tmp_path, HITRAN.replace(" 2A ", " 2Z ")), format="hitran")


def test_arve(tmp_path):
    """The laboratory's wavelength, not that of the template's bottom."""
    table = read_line_list(written(tmp_path, ARVE, "K5.csv"))
    np.testing.assert_allclose(table["wavelength"].value, [5000.1, 6001.0])
    np.testing.assert_allclose(table["template_wavelength"].value, [5000.2, 6001.0])
    assert list(table["species"]) == ["Fe I", "OH"] and list(table["depth"]) == [0.5, 0.1]
    with pytest.raises(LineListError, match="line 2: expected 9 fields, got 8"):
        read_line_list(written(tmp_path, ARVE.replace(",-7.5\n", "\n")), format="arve")


def some_table(**more):
    return QTable(
        {"wave": [900.0, 800.0] * u.nm, "Species": ["Ti 1", "26.1"], "loggf": [-1.0, 0.5], "E_low": [1.0, 2.0], **more}
    )


@pytest.mark.parametrize("name", ["list.ecsv", "list.fits", "list.csv"])
def test_any_table(tmp_path, name):
    table = some_table()
    if name.endswith("csv") and not name.endswith("ecsv"):
        table["wave"] = table["wave"].to_value(u.AA)  # bare numbers: Å
    table.write(tmp_path / name)
    found = sb.read_line_list(tmp_path / name, medium="air")
    assert list(found["species"]) == ["Fe II", "Ti I"]
    np.testing.assert_allclose(found["wavelength"].value, vacuum_wavelength([8000.0, 9000.0] * u.AA, "air").value)
    np.testing.assert_allclose(found["excitation"].value, [2.0, 1.0])
    with pytest.raises(LineListError, match="a table does not tell its medium"):
        sb.read_line_list(tmp_path / name)


def test_table_in_memory():
    table = some_table(note=["a", "b"], depth=[0.5, 0.2])
    table.meta["medium"] = "vacuum"
    before = table.copy()
    found = sb.read_line_list(table)
    np.testing.assert_allclose(found["wavelength"].to_value(u.AA), [8000.0, 9000.0])
    assert list(found["note"]) == ["b", "a"]
    assert table.colnames == before.colnames and (table["wave"] == before["wave"]).all()
    again = sb.read_line_list(found)
    np.testing.assert_array_equal(again["wavelength"].value, found["wavelength"].value)
    wavenumber = Table({"wavenumber": [1e4], "molecule": ["H2O"], "strength": [2.0]})
    assert sb.read_line_list(wavenumber, medium="vacuum")["wavelength"][0].to_value(u.AA) == pytest.approx(1e4)
    shallow = QTable({"wavelength": [5000.0] * u.AA, "species": ["Fe I"], "depth": [0.5]})
    assert sb.read_line_list(shallow, medium="vacuum")["strength"][0].value == pytest.approx(math.log(2))


@pytest.mark.parametrize(
    "table, reason",
    [
        (QTable({"wave": [5000.0], "x": [1]}), "expected a column called species"),
        (QTable({"species": ["Fe I"]}), "expected a column called wavelength"),
        (QTable({"wave": [5000.0] * u.kg, "species": ["Fe I"]}), "expected the column wave in"),
        (QTable({"wave": [-5000.0], "species": ["Fe I"]}), "expected positive wavelengths in wave, got -5000 in row 1"),
        (QTable({"wave": ["a"], "species": ["Fe I"]}), "expected numbers in the column wave"),
        (QTable({"wave": [5000.0], "species": ["Zz 9"]}), "expected a species"),
        (QTable({"wave": [5000.0], "species": ["Fe I"], "excitation": [1.0] * u.kg}), "excitation in eV"),
        (QTable({"wave": [], "species": []}), "without rows"),
    ],
)
def test_table_refused(table, reason):
    with pytest.raises(ValueError, match=reason):
        sb.read_line_list(table, medium="vacuum")


def test_format_and_medium_must_be_known(tmp_path):
    path = written(tmp_path, LINEMAKE)
    with pytest.raises(ValueError, match="format must be one of vald, linemake"):
        read_line_list(path, format="kurucz")
    with pytest.raises(ValueError, match="expected medium 'air' or 'vacuum'"):
        read_line_list(path, medium="water")


# --- files ------------------------------------------------------------------------------------------------------------


def zipped(content):
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", content)
    return stream.getvalue()


PACKERS = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zip": zipped}


@pytest.mark.parametrize("packer", PACKERS)
def test_compressed(tmp_path, packer):
    content = PACKERS[packer](LINEMAKE.encode())
    assert len(read_line_list(written(tmp_path, content, f"list.{packer}"))) == 4
    broken = content[: len(content) // 2] if packer != "zip" else content[:60] + b"\xff" * 30 + content[90:]
    with pytest.raises(LineListError, match=r"its compression is damaged"):
        read_line_list(written(tmp_path, broken, f"list.{packer}"), format="linemake")


def test_not_a_list(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_line_list(tmp_path / "none.txt")
    with pytest.raises(IsADirectoryError, match="got the folder"):
        read_line_list(tmp_path)
    with pytest.raises(FileNotFoundError):  # never downloaded
        read_line_list("https://example.org/list.ecsv", format="table")
    for content in (b"", b"\n\n", b"hello world\nthis is no list\n", b"\x00\x01binary"):
        with pytest.raises(LineListError, match="cannot read"):
            read_line_list(written(tmp_path, content))


def fits_bytes():
    stream = BytesIO()
    some_table().write(stream, format="fits")
    return stream.getvalue()


BASES = {
    "fits": fits_bytes(),
    **{f"vald {name}": text.encode() for name, text in VALD.items()},
    "linemake": LINEMAKE.encode(),
    "hitran": HITRAN.encode(),
    "arve": ARVE.encode(),
    "gz": gzip.compress(HITRAN.encode()),
    "zip": zipped(ARVE),
    "ecsv": b"# %ECSV 1.0\n# ---\n# datatype:\n# - {name: wave, unit: nm, datatype: float64}\n"
    b"# - {name: species, datatype: string}\n# meta: {medium: air}\n# schema: astropy-2.0\nwave species\n500.0 Fe1\n",
}


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
def test_fuzzed_files(tmp_path, data):
    """Bytes changed, cut out or put in: a list, or one of the documented errors."""
    content = bytearray(BASES[data.draw(st.sampled_from(sorted(BASES)))])
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, max(len(content) - 1, 0)))
        match data.draw(st.sampled_from(["flip", "cut", "insert", "end"])):
            case "flip" if content:
                content[place] = data.draw(st.integers(0, 255))
            case "cut":
                del content[place : place + data.draw(st.integers(1, 40))]
            case "insert":
                content[place:place] = data.draw(st.binary(min_size=1, max_size=12))
            case "end":
                del content[place:]
    form = data.draw(st.sampled_from([None, None, "vald", "linemake", "hitran", "arve", "table"]))
    name = data.draw(st.sampled_from(["list.txt", "list.ecsv", "list.csv"]))
    try:
        table = read_line_list(written(tmp_path, bytes(content), name), format=form)
    except LineListError as error:
        assert name in str(error) or "the table" in str(error)
    else:
        assert len(table) and np.isfinite(table["wavelength"].value).all()


# --- strengths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature, pressure", [(2500.0, 1e4), (4000.0, 1e3), (5777.0, 1e4), (9000.0, 1e3)])
def test_equilibrium_adds_up(temperature, pressure):
    """Nuclei, charges and pressure are conserved; Saha holds between neighbours."""
    gas = Equilibrium(temperature, pressure)
    h_ions = gas.density("H II")
    hydrogen = gas.density("H I") + h_ions + 2 * gas.density("H2") + 2 * gas.density("H2O") + gas.density("OH")
    assert hydrogen == pytest.approx(gas.hydrogen_density, rel=1e-3)  # the other hydrides hold less
    carbon = gas._relative[gas._symbols.index("C")] * gas.hydrogen_density
    parts = [gas.density(s) for s in ("C I", "C II", "CO", "CH", "CN", "CS")] + [2 * gas.density("C2")]
    assert sum(parts) == pytest.approx(carbon, rel=1e-6)
    charge = sum(gas.density(f"{s} II") + 2 * gas.density(f"{s} III") for s in ELEMENTS if s not in ("H",)) + h_ions
    assert charge == pytest.approx(gas.electron_density, rel=1e-6)
    # Saha for Fe by hand
    iron = ELEMENTS["Fe"]
    ratio = iron.partition_function(temperature, 1) / iron.partition_function(temperature, 0)
    thermal = (2 * math.pi * const.m_e.si.value * K_B * temperature / const.h.si.value**2) ** 1.5
    saha = 2 * ratio * thermal * math.exp(-iron.ionization_energy[0] * EV / (K_B * temperature)) / gas.electron_density
    assert gas.density("Fe II") / gas.density("Fe I") == pytest.approx(saha, rel=1e-6)


def test_equilibrium_is_that_of_a_star():
    """Iron is mostly ionised in the Sun, CO holds the carbon of a K star, TiO the titanium of a late M dwarf."""
    sun, giant, dwarf = Equilibrium(5777.0, 1e4), Equilibrium(3800.0, 1e3), Equilibrium(2500.0, 1e5)
    assert 0.02 < sun.density("Fe I") / sun.density("Fe II") < 0.2
    assert 1.0 < sun.electron_density * K_B * 5777.0 < 4.0  # Pa
    assert giant.density("CO") / giant.density("C I") > 10
    assert dwarf.density("TiO") > dwarf.density("Ti I") > 100 * dwarf.density("Ti II")
    assert dwarf.density("H2") > 5 * dwarf.density("H I")


def test_molecules_by_their_own_partition_function():
    """n/U from atoms agrees with the density over Q of a rigid rotator and harmonic oscillator: CO, B = 1.9225/cm."""
    gas = Equilibrium(4000.0, 1e4)
    kt = (K_B * 4000.0 * u.J).to_value(u.cm**-1, u.spectral())
    q = kt / 1.9225 / (1 - math.exp(-2143.0 / kt))
    assert gas.density("CO") / q / gas.hydrogen_density == pytest.approx(gas.population("CO"), rel=0.08)


def test_strengths():
    """Within a species gf λ 10^(-θχ); between them, abundance and ionisation."""
    table = QTable({
        "wavelength": [5000.0, 5000.0, 6000.0, 5000.0, 5000.0] * u.AA,
        "species": ["Fe I", "Fe I", "Fe I", "Fe II", "Tc I"],
        "log_gf": [0.0, -1.0, 0.0, 0.0, 0.0],
        "excitation": [0.0, 0.0, 2.0, 0.0, 0.0] * u.eV,
    })  # fmt: skip
    x = predicted_strength(table, temperature=5040 * u.K).to_value(u.AA)
    assert x[0] / x[1] == pytest.approx(10.0)
    stimulated = (1 - math.exp(-143877.7 * 1e3 / (6000 * 5040))) / (1 - math.exp(-143877.7 * 1e3 / (5000 * 5040)))
    assert x[2] / x[0] == pytest.approx(1.2 * 10 ** (-2.0 * 5039.78 / 5040) * stimulated, rel=1e-4)
    assert math.isnan(x[4])
    poor = predicted_strength(table, temperature=5040, abundances={"Fe": 6.46}).to_value(u.AA)
    assert poor[0] / x[0] == pytest.approx(0.1, rel=0.2)  # electrons change a little too
    dense = predicted_strength(table, temperature=5040, gas_pressure=1e5 * u.Pa).to_value(u.AA)
    assert dense[0] / dense[3] > 2 * x[0] / x[3]
    with pytest.raises(ValueError, match="cover 2000 to 10000 K, got a temperature of 300 K"):
        predicted_strength(table, temperature=300)
    with pytest.raises(ValueError, match="abundances of elements by symbol, got Unobtainium"):
        predicted_strength(table, abundances={"Unobtainium": 3.0})
    with pytest.raises(ValueError, match="takes the columns log_gf and excitation"):
        predicted_strength(table["wavelength", "species"])


def test_hitran_intensities_at_other_temperatures(tmp_path):
    """Two lines of one molecule differ by their Boltzmann factors; the partition function of O2 goes as T."""
    table = read_line_list(written(tmp_path, HITRAN))[[0, 0]]
    table["lower_energy"] = [0.0, 1000.0] / u.cm
    s = predicted_strength(table, temperature=220 * u.K).to_value(u.cm)
    assert s[0] / 1.107e-25 == pytest.approx(296 / 220, rel=1e-6)
    assert s[1] / s[0] == pytest.approx(math.exp(-1.438777 * 1000.0 * (1 / 220 - 1 / 296)), rel=1e-5)


# --- to a ledger ------------------------------------------------------------------------------------------------------


def test_ledger_of_weak_lines():
    """W of an emulator made from a list is π e²/m_e c² N_H λ X, in astropy's units."""
    table = QTable({"wavelength": [10000.0] * u.AA, "species": ["Fe I"], "log_gf": [-3.0], "excitation": [3.0] * u.eV})
    ledger = to_ledger(table, temperature=5000, microturbulence=2 * u.km / u.s, column=1e20 / u.cm**2, weakest=1e-12)
    x = predicted_strength(table, temperature=5000)
    radius = const.e.esu**2 / (const.m_e * const.c**2)
    expected = (math.pi * radius * 1e20 / u.cm**2 * 10000 * u.AA * x).to_value(u.AA)
    assert ledger["area"][0].value == pytest.approx(expected[0], rel=1e-6)
    thermal = const.k_B * 5000 * u.K / (55.85 * const.u)
    sigma = 10000 * np.sqrt((thermal + 0.5 * (2 * u.km / u.s) ** 2) / const.c**2).to_value("")
    assert ledger["sigma"][0].value == pytest.approx(sigma, rel=1e-6)
    emulator = emulator_from_ledger(ledger)
    wavelength = torch.linspace(9995.0, 10005.0, 20001, dtype=torch.float64)
    with torch.no_grad():
        depth = 1.0 - emulator(Sampling(wavelength)).numpy()
    assert trapezoid(depth, wavelength.numpy()) == pytest.approx(
        expected[0], rel=5e-3
    )  # two thousandths are further out


def test_damping():
    """Radiative alone is λ²Γ/4πc; a list's constants, Unsöld's and a cross-section are each what they should be."""
    lines = {"wavelength": [5000.0] * u.AA, "species": ["Fe I"], "log_gf": [0.0], "excitation": [3.0] * u.eV}
    thin = {"temperature": 5000, "gas_pressure": 1e-6 * u.Pa, "weakest": 1e-30}
    gamma = to_ledger(QTable({**lines, "damping_rad": [8.0]}), **thin)["gamma"].to_value(u.AA)
    assert gamma[0] == pytest.approx(5000.0**2 * 1e8 / (4 * math.pi * 2.99792458e18), rel=1e-3)
    classical = to_ledger(QTable(lines), **thin)["gamma"].to_value(u.AA)
    assert classical[0] == pytest.approx(5.9e-5, rel=0.01)  # the classical damping width, half of 1.18e-4 Å
    dense = {"temperature": 5000, "weakest": 1e-30}
    unsold = to_ledger(QTable({**lines, "damping_rad": [0.1]}), **dense)["gamma"].value[0]
    known = to_ledger(QTable({**lines, "damping_rad": [0.1], "damping_waals": [-7.5]}), **dense)["gamma"].value[0]
    assert 0.2 < unsold / known < 2.0  # Unsöld is mostly too weak by a factor of two or three
    # Straight paths at one speed: twice the cross-section times the mean speed.
    speed = 1e2 * math.sqrt(8 * K_B * 5000 / (math.pi * const.u.si.value * 55.85 * 1.008 / 56.858))
    area = 300 * (const.a0.to_value(u.cm)) ** 2
    assert _anstee_omara(np.array([300.0]), np.array([55.85]), 5000.0)[0] == pytest.approx(2 * area * speed, rel=1e-6)


def test_telluric_ledger(tmp_path):
    table = read_line_list(written(tmp_path, HITRAN))[[0]]
    ledger = to_ledger(table, column=4.5e24 / u.cm**2, gas_pressure=101325 * u.Pa)
    wavelength = 1e8 / (7901.123456 - 0.008)
    assert ledger["center"][0].value == pytest.approx(wavelength, rel=1e-12)
    assert ledger["area"][0].value == pytest.approx(1.107e-25 * 4.5e24 * wavelength**2 * 1e-8, rel=1e-5)
    assert ledger["gamma"][0].value == pytest.approx(0.0475 * wavelength**2 * 1e-8, rel=1e-5)
    half = to_ledger(table, gas_pressure=0.5 * 101325 * u.Pa, temperature=250)  # the standard column
    assert half["gamma"][0].value == pytest.approx(0.0475 / 2 * (296 / 250) ** 0.72 * wavelength**2 * 1e-8, rel=1e-4)
    assert list(ledger["component"]) == ["telluric"] and ledger.meta["flux_scale"] == "log"
    several = read_line_list(written(tmp_path, HITRAN))
    with pytest.raises(ValueError, match=r"give column=\{molecule: molecules per cm²\} for CO2, H2O, O2"):
        to_ledger(several, column=1e22)


def test_ledger_from_any_strength():
    table = QTable({"wavelength": [5000.0, 5001.0] * u.AA, "species": ["Fe I", "CN"], "strength": [1.0, 2.0]})
    ledger = to_ledger(table, column=0.02 * u.AA, weakest=1e-6)
    np.testing.assert_allclose(ledger["area"].value, [0.02, 0.04])
    assert ledger.meta["wavelength_range"] == [5000.0, 5001.0]
    part = to_ledger(table, column=0.02 * u.AA, weakest=1e-6, wavelength_range=(4990, 5000.5))
    assert len(part) == 1 and emulator_from_ledger(part).wavelength_range == (4990.0, 5000.5)
    with pytest.raises(ValueError, match="expected a line list with log_gf and excitation"):
        to_ledger(table)
    with pytest.raises(ValueError, match="no line reaches a central opacity"):
        to_ledger(table, column=1e-20 * u.AA)
    with pytest.raises(ValueError, match="no lines in 6000-7000 Å"):
        to_ledger(table, column=1e-20 * u.AA, wavelength_range=(6000 * u.AA, 0.7 * u.um))


def test_species_stay_with_the_lines():
    """List → ledger → emulator: the species are still those of their lines, in whatever order they came."""
    table = QTable({
        "wavelength": [5000.0, 4999.0, 5001.0] * u.AA, "species": ["Fe I", "CN", "Ti II"],
        "log_gf": [0.0, 0.0, 0.0], "excitation": [1.0, 0.5, 1.0] * u.eV,
    })  # fmt: skip
    emulator = emulator_from_ledger(to_ledger(table)[::-1])
    assert list(emulator.species) == ["CN", "Fe I", "Ti II"]


# --- real lists -------------------------------------------------------------------------------------------------------


def test_real_linemake(shared_data):
    table = read_line_list(shared_data / "data/linelists/linemake_atoms.gz", temperature=5777)
    assert len(table) == 255_712 and (np.diff(table["wavelength"].value) >= 0).all()
    triplet = table[
        (table["species"] == "Ca II") & (abs(table["original_wavelength"] - 8542.091 * u.AA) < 0.001 * u.AA)
    ]
    assert triplet["wavelength"][0].value == pytest.approx(8544.438, abs=0.002)
    band = table[(table["wavelength"] > 8400 * u.AA) & (table["wavelength"] < 8900 * u.AA)]
    strongest = band[np.argsort(-np.nan_to_num(band["strength"].value))[:4]]
    assert list(strongest["species"]) == ["Ca II", "Ca II", "Ca II", "Mg I"]  # as in the Sun


@pytest.mark.parametrize("name, number, molecule", [("O2_10500_16073", 632, "O2"), ("H2O_9000_18000", 48_088, "H2O")])
def test_real_hitran(shared_data, name, number, molecule):
    table = read_line_list(shared_data / f"data/linelists/hitran_{name}.par.gz")
    assert len(table) == number and set(table["species"]) == {molecule}
    low, high = map(float, name.split("_")[1:])
    assert low - 2 < table["wavelength"][0].value and table["wavelength"][-1].value < high + 2
    assert np.isfinite(table["strength"].value).all()


def test_real_arve(shared_data):
    table = read_line_list(shared_data / "data/linelists/arve_K5.csv.zip")
    assert len(table) == 14_221 and {"Fe I", "OH", "MgH", "Nd II"} <= set(table["species"])
    assert table.meta["format"] == "arve"
    assert np.isfinite(table["strength"].value).all()
