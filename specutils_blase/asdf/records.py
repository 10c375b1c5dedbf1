"""Parts that the trees of the nouns share: arrays, tables, spectra, settings, time and versions of writing.

Trees are plain dictionaries of numbers, text, arrays and tables. Arrays are read as copies in native byte order, so
that results outlive their file. Spectra have a record of their own because specutils' converter loses meta, bin edges
and velocities and mis-scales uncertainties.

Does not live here: the parts of a noun (`converters`), the provenance of templates (`spectra.provenance`), the file
itself (`files`).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import astropy.units as u
import numpy as np
import torch
from asdf.tags.core.ndarray import NDArrayType
from astropy.nddata import InverseVariance, StdDevUncertainty, UnknownUncertainty, VarianceUncertainty
from astropy.table import Column, QTable, Table
from specutils import Spectrum
from specutils.spectra.spectral_axis import SpectralAxis

from ..spectra.data import SpectralData
from ..spectra.frame import SpectrumFrame

NOTED_PACKAGES = ("specutils-blase", "torch", "numpy", "scipy", "astropy", "specutils", "muler", "asdf", "asdf-astropy")
"""Packages whose versions are noted in every result."""

UNCERTAINTIES = {
    "std": StdDevUncertainty,
    "var": VarianceUncertainty,
    "ivar": InverseVariance,
    "unknown": UnknownUncertainty,
}


def array(values: Any) -> np.ndarray:
    """An owned, contiguous copy of a tensor or an array: of a view, asdf would write the whole array beneath."""
    values = values.detach().cpu().numpy() if isinstance(values, torch.Tensor) else np.asarray(values)
    if values.dtype.kind in "mM":
        return values.astype(str)
    if values.dtype.kind == "O":
        raise ValueError("expected an array of numbers or text, got one of objects, which no file of ours holds")
    is_longdouble = values.dtype.kind == "f" and values.dtype.itemsize > 8  # longdouble: no file format has it
    return np.array(values, dtype=np.float64 if is_longdouble else values.dtype, order="C")


def text(values: Any) -> np.ndarray:
    """An array of text, with one byte a character instead of four where all of it is ASCII, as species are."""
    values = np.array(values, dtype=np.str_)
    try:
        return np.char.encode(values, "ascii").astype(f"S{max(values.dtype.itemsize // 4, 1)}")
    except UnicodeEncodeError:
        return values


def load_array(node: Any, name: str, *, shape: tuple[int | None, ...] | None = None) -> np.ndarray:
    """An owned array of numbers in native byte order.

    Parameters
    ----------
    node : array_like
        From the file, perhaps not read yet.
    name : str
        Name of the array in messages.
    shape : tuple, optional
        Expected shape; None in it stands for any length.
    """
    values = np.array(node, order="C")
    if values.dtype.kind not in "biuf":
        raise ValueError(f"expected {name} as an array of real numbers, got {values.dtype}")
    if shape is not None and (
        values.ndim != len(shape) or any(n not in (None, m) for n, m in zip(shape, values.shape, strict=True))
    ):
        raise ValueError(f"expected {name} of shape {shape}, got {values.shape}")
    return values.astype(values.dtype.newbyteorder("="), copy=False)


def tensor(node: Any, name: str, *, shape: tuple[int | None, ...] = (None,)) -> torch.Tensor:
    """`load_array` as a tensor, of one dimension unless said otherwise."""
    return torch.from_numpy(load_array(node, name, shape=shape))


def plain(value: Any) -> Any:
    """Copy of settings or meta as types that every file holds; other objects as their text."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float)):
        # asdf holds integers of 64 bits
        return value if not isinstance(value, int) or abs(value) < 2**63 else str(value)
    if isinstance(value, str):
        return str(value)
    if isinstance(value, u.Quantity):
        return u.Quantity(array(value.value) if value.ndim else float(value.value), value.unit)
    if isinstance(value, torch.Tensor) or (isinstance(value, np.ndarray) and value.dtype.kind != "O"):
        return array(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(item) for item in value]
    return str(value)


def load_plain(value: Any) -> Any:
    """A copy of settings or meta that needs the file no longer."""
    if isinstance(value, Mapping):
        return {key: load_plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [load_plain(item) for item in value]
    if isinstance(value, u.Quantity):
        return u.Quantity(value, copy=True)
    if isinstance(value, (NDArrayType, np.ndarray)):
        values = np.array(value)
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    return value


def same(first: Any, second: Any) -> bool:
    """Whether two plain values are equal, arrays by type, shape and value."""
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        return first.dtype == second.dtype and np.array_equal(first, second)
    if type(first) is not type(second) or isinstance(first, (np.ndarray, u.Quantity)):
        return False
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(first[key], second[key]) for key in first)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def share(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The records, with equal parts as one object, which a file holds once: the orders of a file share a header."""
    for record in records[1:]:
        _share(records[0], record)
    return records


def _share(first: dict[str, Any], second: dict[str, Any]) -> None:
    for key in first.keys() & second.keys():
        if not isinstance(first[key], (dict, list, np.ndarray)):
            continue
        if same(first[key], second[key]):
            second[key] = first[key]
        elif isinstance(first[key], dict) and isinstance(second[key], dict):
            _share(first[key], second[key])


def table_record(table: Table, name: str, columns: Sequence[str]) -> QTable:
    """A plain QTable with plain meta. Descriptions go to ``meta["columns"]``: of quantity columns asdf drops them.

    Parameters
    ----------
    table : Table
    name : str
        Name of the table in messages.
    columns : sequence of str
        Columns that it must have, since `load_table` needs them.
    """
    _check_columns(table, name, columns)
    result = QTable(table, copy=True)
    for column in result.colnames:
        if result[column].dtype.kind == "U" and not hasattr(result[column], "mask"):
            result[column] = Column(text(result[column]), description=table[column].info.description)
    result.meta = plain(table.meta)
    described = {name: table[name].info.description for name in table.colnames if table[name].info.description}
    if described:
        result.meta["columns"] = {**described, **result.meta.get("columns", {})}
    return result


TEXT_COLUMNS = {"name", "component", "orders"}
"""Columns that results read as text."""


def load_table(node: Any, name: str, columns: Sequence[str]) -> QTable:
    """An owned QTable with the descriptions of its ``meta["columns"]``; parameters as of `table_record`."""
    if not isinstance(node, Table):
        raise ValueError(f"expected {name} as a table, got {type(node).__name__}")
    _check_columns(node, name, columns)
    table = QTable(node, copy=True)
    for column in table.colnames:
        dtype = table[column].dtype
        if dtype.kind == "S":
            table[column] = table[column].astype(f"U{max(dtype.itemsize, 1)}")
        elif not dtype.isnative:
            table[column] = table[column].astype(dtype.newbyteorder("="))
    for column in TEXT_COLUMNS & set(columns):
        if table[column].dtype.kind not in "UO":
            raise ValueError(f"expected text in the column {column} of {name}, got {table[column].dtype}")
    table.meta = load_plain(dict(node.meta))
    descriptions = table.meta.get("columns", {})
    for column in table.colnames:
        if isinstance(descriptions, Mapping) and column in descriptions:
            table[column].info.description = descriptions[column]
    return table


def _check_columns(table: Table, name: str, columns: Sequence[str]) -> None:
    missing = [column for column in columns if column not in table.colnames]
    if missing:
        raise ValueError(f"expected {name} with the columns {', '.join(columns)}, got it without {', '.join(missing)}")


def axis_record(axis: u.Quantity) -> dict[str, Any]:
    """A spectral axis with all that specutils' axes carry, but observer and target."""
    record = {"value": array(axis.value), "unit": _unit(axis.unit)}
    edges = getattr(axis, "_bin_edges", None)  # the public bin_edges makes them up where there are none
    if edges is not None:
        record["bin_edges"] = array(edges.to_value(axis.unit))
    rest, convention = getattr(axis, "doppler_rest", None), getattr(axis, "doppler_convention", None)
    if rest is not None:
        record["doppler_rest"] = {"value": float(rest.value), "unit": _unit(rest.unit)}
    if convention is not None:
        record["doppler_convention"] = str(convention)
    velocity = getattr(axis, "radial_velocity", None)
    if velocity is not None and velocity != 0:
        record["radial_velocity"] = float(velocity.to_value(u.km / u.s))
    return record


def load_axis(record: Mapping[str, Any]) -> SpectralAxis:
    """The axis of `axis_record`."""
    unit, options = u.Unit(record["unit"]), {}
    if "doppler_rest" in record:
        options["doppler_rest"] = record["doppler_rest"]["value"] * u.Unit(record["doppler_rest"]["unit"])
    if "doppler_convention" in record:
        options["doppler_convention"] = record["doppler_convention"]
    if "radial_velocity" in record:
        options["radial_velocity"] = record["radial_velocity"] * u.km / u.s
    values = load_array(record["value"], "spectral_axis", shape=(None,))
    axis = SpectralAxis(values, unit, **options)
    if "bin_edges" in record:
        # Not through bin_specification="edges": centres would be recomputed, which rounds.
        axis._bin_edges = load_array(record["bin_edges"], "bin_edges", shape=(len(values) + 1,)) * unit
    return axis


def spectrum_record(spectrum: Spectrum) -> dict[str, Any]:
    """A one-dimensional spectrum: axis, flux, uncertainty in its own unit, mask, meta."""
    record = {
        "spectral_axis": axis_record(spectrum.spectral_axis),
        "flux": {"value": array(spectrum.flux.value), "unit": _unit(spectrum.flux.unit)},
        "meta": plain(spectrum.meta or {}),
    }
    kind = next((name for name, kind in UNCERTAINTIES.items() if isinstance(spectrum.uncertainty, kind)), None)
    if kind is not None:
        unit = spectrum.uncertainty.unit
        values = {"kind": kind, "value": array(spectrum.uncertainty.array)}
        record["uncertainty"] = values if unit is None else {**values, "unit": _unit(unit)}
    if spectrum.mask is not None:
        record["mask"] = array(np.broadcast_to(spectrum.mask, spectrum.flux.shape)).astype(bool)
    return record


def load_spectrum(record: Mapping[str, Any]) -> Spectrum:
    """The spectrum of `spectrum_record`, as a plain `~specutils.Spectrum`."""
    axis, options = load_axis(record["spectral_axis"]), {}
    shape = (len(axis),)
    if "uncertainty" in record:
        noise = record["uncertainty"]
        values = load_array(noise["value"], "uncertainty", shape=shape)
        unit = {"unit": u.Unit(noise["unit"])} if "unit" in noise else {}
        options["uncertainty"] = UNCERTAINTIES[noise["kind"]](values, **unit)
    if "mask" in record:
        options["mask"] = load_array(record["mask"], "mask", shape=shape).astype(bool)
    flux = load_array(record["flux"]["value"], "flux", shape=shape) * u.Unit(record["flux"]["unit"])
    return Spectrum(flux=flux, spectral_axis=axis, meta=load_plain(record["meta"]), **options)


def data_record(data: SpectralData, flux_unit: u.UnitBase) -> dict[str, Any]:
    """The data as fitted: ascending pixels in vacuum Å, bad ones marked."""
    names = ("wavelength", "edges", "flux", "sigma", "good")
    record = {name: array(getattr(data, name)) for name in names}
    units = {"wavelength_unit": "Angstrom", "flux_unit": _unit(flux_unit)}
    return {**record, **units, "medium": "vacuum", "noise_known": bool(data.noise_known)}


def load_data(record: Mapping[str, Any]) -> SpectralData:
    """The data of `data_record`."""
    wavelength = tensor(record["wavelength"], "wavelength")
    shape = wavelength.shape
    if not bool((wavelength.diff() > 0).all()):
        raise ValueError("the data's wavelengths must ascend")
    return SpectralData(
        wavelength=wavelength,
        edges=tensor(record["edges"], "edges", shape=(*shape, 2)),
        flux=tensor(record["flux"], "flux", shape=shape),
        sigma=tensor(record["sigma"], "sigma", shape=shape),
        good=tensor(record["good"], "good", shape=shape).bool(),
        noise_known=record["noise_known"],
    )


def frame_record(frame: SpectrumFrame) -> dict[str, Any]:
    """Axis, order, medium and meta of the spectrum that was read; its flux unit is the data's."""
    axis = axis_record(frame.axis)
    return {"spectral_axis": axis, "order": array(frame.order), "medium": frame.medium, "meta": plain(frame.meta)}


def load_frame(record: Mapping[str, Any], n_pixel: int, flux_unit: str) -> SpectrumFrame:
    """The frame of `frame_record`."""
    order = load_array(record["order"], "order", shape=(n_pixel,))
    if not np.array_equal(np.sort(order), np.arange(n_pixel)):
        raise ValueError(f"expected order as a permutation of {n_pixel} pixels")
    axis = load_axis(record["spectral_axis"])
    if len(axis) != n_pixel:
        raise ValueError(f"expected a spectral axis of {n_pixel} pixels, got {len(axis)}")
    return SpectrumFrame(axis, order, u.Unit(flux_unit), record["medium"], load_plain(record["meta"]))


def written() -> dict[str, Any]:
    """Time of writing, and versions of the packages."""
    versions = {"python": platform.python_version()}
    for name in NOTED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return {"time": datetime.now(UTC).isoformat(timespec="seconds"), "packages": versions}


def _unit(unit: u.UnitBase) -> str:
    """A unit as text that astropy reads back."""
    text = unit.to_string()
    try:
        same = u.Unit(text) == unit
    except ValueError:
        same = False
    if not same:
        raise ValueError(f"expected a unit that astropy knows by name, got [{text}]: convert the spectrum first")
    return text
