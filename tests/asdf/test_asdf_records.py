"""The records that results are written with: spectra, tables and settings."""

from pathlib import Path

import astropy.units as u
import numpy as np
import pytest
import torch
from asdf.testing.helpers import roundtrip_object
from astropy.nddata import InverseVariance
from astropy.table import QTable
from astropy.utils.masked import Masked
from numpy.testing import assert_array_equal
from specutils import Spectrum

from specutils_blase.asdf import records


def test_spectrum_record_keeps_what_specutils_loses():
    """Uncertainty in a unit of its own, bin edges, velocity, meta: all lost or wrong through specutils' converter."""
    spectrum = Spectrum(
        spectral_axis=np.array([1000.0, 1000.1, 1000.3, 1000.6]) * u.nm,
        bin_specification="edges",
        flux=np.array([1.0, 2.0, np.nan]) * u.Jy,
        uncertainty=InverseVariance(np.array([1e-4, 1e-4, 0.0]), unit=u.mJy**-2),
        mask=np.array([False, False, True]),
        radial_velocity=12.5 * u.km / u.s,
        rest_value=1000.2 * u.nm,
        velocity_convention="optical",
        meta={"m": 5, "list": [1, 2]},
    )
    back = records.load_spectrum(roundtrip_object(records.spectrum_record(spectrum)))
    assert type(back) is Spectrum and back.meta == spectrum.meta
    for one, other in ((spectrum.flux, back.flux), (spectrum.spectral_axis, back.spectral_axis)):
        assert one.unit == other.unit
        assert_array_equal(one.value, other.value)
    assert type(back.uncertainty) is InverseVariance and back.uncertainty.unit == spectrum.uncertainty.unit
    assert_array_equal(back.uncertainty.array, spectrum.uncertainty.array)
    assert_array_equal(back.mask, spectrum.mask)
    assert_array_equal(back.spectral_axis.bin_edges, spectrum.spectral_axis.bin_edges)
    assert back.radial_velocity == spectrum.radial_velocity
    assert back.rest_value == spectrum.rest_value and back.velocity_convention == "optical"


def test_settings_become_plain():
    value = {
        "none": None,
        1: np.bool_(True),
        "number": np.float32(0.5),
        "big": 2**70,
        "tuple": (1, "two", {"three": np.int64(3)}),
        "quantity": 3.0 * u.km / u.s,
        "tensor": torch.arange(3),
        "array": np.arange(3, dtype=">f4"),
        "date": np.datetime64("2026-01-01"),
        "path": Path("folder"),
        "type": dict,
        "infinite": float("inf"),
    }
    back = records.load_plain(roundtrip_object({"tree": records.plain(value)})["tree"])
    assert back["none"] is None and back["1"] is True and back["number"] == 0.5 and back["big"] == str(2**70)
    assert back["tuple"] == [1, "two", {"three": 3}] and back["infinite"] == float("inf")
    assert back["quantity"] == 3.0 * u.km / u.s and back["date"] == "2026-01-01" and back["type"] == "<class 'dict'>"
    assert back["path"] == "folder"
    assert_array_equal(back["tensor"], [0, 1, 2])
    assert_array_equal(back["array"], [0, 1, 2])
    assert back["array"].dtype.isnative


def test_unknown_unit_is_refused():
    with pytest.raises(ValueError, match=r"a unit that astropy knows by name, got \[blob\]"):
        records.axis_record(np.arange(3.0) * u.def_unit("blob"))


def test_table_keeps_descriptions_masks_and_order():
    """Of quantity columns asdf drops the description: it travels in the table's meta."""
    table = QTable({"b": [1.0, 2.0] * u.AA, "a": ["x", "yy"], "c": Masked([1.0, 2.0], mask=[True, False]) * u.km})
    table["b"].info.description = "lengths"
    table["a"].info.description = "names"
    table.meta["pair"] = (1, 2)
    back = records.load_table(roundtrip_object(records.table_record(table, "table", ("a", "b"))), "table", ("a",))
    assert back.colnames == ["b", "a", "c"] and back.meta["pair"] == [1, 2]
    assert [back[name].info.description for name in "ba"] == ["lengths", "names"]
    assert back["b"].unit == u.AA and list(back["a"]) == ["x", "yy"]
    assert_array_equal(back["c"].mask, [True, False])
    assert back["c"][1] == 2.0 * u.km


def test_objects_are_no_array():
    with pytest.raises(ValueError, match="got one of objects, which no file of ours holds"):
        records.array(np.array([{}, []], dtype=object))


def test_text_columns_are_text():
    """A ledger whose orders are truth values passed, and failed where its orders were asked for."""
    table = QTable({"orders": np.array([True, False]), "value": [1.0, 2.0]})
    with pytest.raises(ValueError, match="expected text in the column orders of ledger, got bool"):
        records.load_table(table, "ledger", ("orders", "value"))
    table["orders"] = ["5", "5,6"]
    assert records.load_table(table, "ledger", ("orders", "value"))["orders"].tolist() == ["5", "5,6"]
