"""Contents of a file or a list of orders: a table with one row an order, and the same as text.

Does not live here: reading the file (`files`, `loaders`), the properties of one order (`muler`).
"""

from __future__ import annotations

from collections.abc import Sequence

import astropy.units as u
import numpy as np
from astropy.table import MaskedColumn, QTable
from specutils import Spectrum

from ..spectra.reading import read_spectrum
from ..spectra.wavelengths import vacuum_wavelength
from .muler import describe_order, good_pixels


def order_table(
    spectra: Sequence[Spectrum],
    *,
    medium: str = "vacuum",
    barycentric_velocity: u.Quantity | float | None = None,
) -> QTable:
    """Table of a list of orders, one row an order.

    Parameters
    ----------
    spectra : sequence of `~specutils.Spectrum`
        The orders, as the loaders or muler read them, or anyone's.
    medium : {"vacuum", "air"}
        The medium of their wavelengths.
    barycentric_velocity : `~astropy.units.Quantity` or float, optional
        [km/s], where the headers have none or a wrong one.

    Returns
    -------
    `~astropy.table.QTable`
        One row an order: ``index`` in the list, ``order`` number, ``low`` and ``high`` [vacuum Å], ``pixels``, ``good``
        (those with light, inside the noisy edges), ``snr`` (median of the good ones; NaN without uncertainties),
        ``resolving_power``, ``target``, ``time`` (middle of the exposure, UTC, text), ``barycentric_velocity`` [km/s]
        and ``barycentric_source``. What is not known is masked, or NaN.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from specutils import Spectrum
    >>> from specutils_blase.adapters.orders import order_table
    >>> wavelength = np.linspace(8690.0, 8700.0, 50) * u.AA
    >>> table = order_table([Spectrum(flux=np.ones(50) * u.Jy, spectral_axis=wavelength)])
    >>> print(table["low"][0], table["high"][0], table["pixels"][0], table["good"][0])
    8690.0 Angstrom 8700.0 Angstrom 50 50
    """
    infos = [describe_order(spectrum, barycentric_velocity=barycentric_velocity) for spectrum in spectra]
    wavelengths = [vacuum_wavelength(spectrum.spectral_axis, medium) for spectrum in spectra]
    good = [good_pixels(spectrum) for spectrum in spectra]
    unknown = [info.order is None for info in infos]
    return QTable(
        {
            "index": np.arange(len(infos)),
            "order": MaskedColumn([info.order or 0 for info in infos], mask=unknown, dtype=int),
            "low": u.Quantity([wavelength.min() for wavelength in wavelengths]),
            "high": u.Quantity([wavelength.max() for wavelength in wavelengths]),
            "pixels": np.array([len(pixels) for pixels in good]),
            "good": np.array([int(pixels.sum()) for pixels in good]),
            "snr": np.array([_snr(*pair, medium) for pair in zip(spectra, good, strict=True)]),
            "resolving_power": _numbers(info.resolving_power for info in infos),
            "target": _texts(info.target for info in infos),
            "time": _texts(None if info.time is None else info.time.isot[:19] for info in infos),
            "barycentric_velocity": _numbers(info.barycentric_velocity for info in infos) * u.km / u.s,
            "barycentric_source": [info.barycentric_source for info in infos],
        }
    )


def order_lines(spectra: Sequence[Spectrum], **options) -> list[str]:
    """Lines of text that show `order_table`, after the properties that all orders share.

    Parameters
    ----------
    spectra : sequence of `~specutils.Spectrum`
        The orders.
    **options
        Those of `order_table`.

    Returns
    -------
    list of str
    """
    table = order_table(spectra, **options)
    instruments = {info.instrument for info in map(describe_order, spectra) if info.instrument is not None}
    lines = [f"{len(table)} order{'s' * (len(table) > 1)}" + "".join(f" of {name}" for name in sorted(instruments))]
    shared = ("target", "time", "barycentric_velocity", "barycentric_source")
    groups: dict[tuple, list[int]] = {}
    for row in table:
        key = tuple(_shown(row[name]) for name in shared)
        groups.setdefault(key, []).append(int(row["index"]))
    for (target, time, velocity, source), rows in groups.items():
        which = f"orders {rows[0]}-{rows[-1]}: " if len(groups) > 1 else ""
        when = f"{time} UTC" if time else "unknown"
        lines.append(f"{which}target {target or 'unknown'}, middle of the exposure {when}")
        value = f"{float(velocity):+.3f} km/s ({source})" if velocity else source
        lines.append(f"{which}barycentric velocity {value}")
    lines.append(" index  order     from Å       to Å  pixels   good     S/N       R")
    for row in table:
        order, snr = _shown(row["order"]) or "-", _shown(row["snr"], ".0f") or "-"
        power = _shown(row["resolving_power"], ".0f") or "-"
        lines.append(
            f"{row['index']:6d} {order:>6} {row['low'].value:10.3f} {row['high'].value:10.3f} {row['pixels']:7d} "
            f"{row['good']:6d} {snr:>7} {power:>7}"
        )
    return lines


def _snr(spectrum: Spectrum, good: np.ndarray, medium: str) -> float:
    if not good.any():
        return float("nan")
    data, frame = read_spectrum(spectrum, medium=medium)
    if not data.noise_known:
        return float("nan")
    return float(np.median((data.flux / data.sigma)[good[frame.order]]))


def _numbers(values) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _texts(values) -> MaskedColumn:
    values = list(values)
    return MaskedColumn([value or "" for value in values], mask=[value is None for value in values], dtype=str)


def _shown(value, style: str = "") -> str:
    """As text; empty for what is masked or NaN."""
    value = getattr(value, "value", value)
    if value is np.ma.masked or (isinstance(value, float) and np.isnan(value)):
        return ""
    return format(value, style)
