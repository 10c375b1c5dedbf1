"""`EchelleFitResult`: the outcome of a fit of many orders.

Does not live here: the result of one order and the meaning of its spectra (`fit_result`), the fit (`fitting`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from astropy.table import QTable
from specutils import Spectrum, SpectrumList

from ..model.echelle import EchelleModel
from ..spectra.data import SpectralData
from ..spectra.frame import SpectrumFrame, spectrum_on
from .fit_result import TEMPLATE_SOURCE, FitResult, model_spectra


@dataclass(eq=False, repr=False)
class EchelleFitResult(FitResult):
    """Outcome of `fit` of a list of orders, with one star and one atmosphere.

    Its spectra are `~specutils.SpectrumList`. The lists have the orders that were fitted, in the order of the input;
    ``orders`` tells which, and why others were not. ``result.order(k)`` is the k-th of them as a `FitResult`.

    Parameters
    ----------
    model : EchelleModel
    data : list of SpectralData
    frame : list of SpectrumFrame
    orders : QTable
        One row an order that was given; see `fitting.assembly.ORDER_COLUMNS`.
    """

    model: EchelleModel
    data: list[SpectralData]
    frame: list[SpectrumFrame]

    def __len__(self) -> int:
        """Number of orders that were fitted."""
        return len(self.data)

    def __repr__(self) -> str:
        lines = [f"FitResult of {len(self)} orders: {self.message}", *self._quality_lines()]
        for row in self.parameters:
            if (row["free"] and not row["order"]) or row["name"] == "rv_barycentric":
                lines.append(f"  {row['name']} = {row['value']:.4f} ± {row['error']:.2g} {row['unit']}")
        fitted = self.orders[self.orders["fitted"]]
        chi2 = np.asarray(fitted["reduced_chi2"])
        lines.append(
            f"  reduced χ² = {self.reduced_chi2:.3g} with jitter in {int(np.sum(fitted['jitter'] > 0))} orders; "
            f"by order {np.nanmin(chi2):.3g} to {np.nanmax(chi2):.3g} without" if np.isfinite(chi2).any()
            else f"  reduced χ² = {self.reduced_chi2:.3g}"
        )  # fmt: skip
        lines.append(f"  RMS = {100 * self.rms:.3g} % of the continuum")
        lines.append(f"  {len(self.ledger)} lines, {int(np.sum(self.ledger['free']))} of them fitted")
        lines += [f"  order {row['index']} left out: {row['reason']}" for row in self.orders if not row["fitted"]]
        lines.append(f"  medium of the data: {self.frame[0].medium} (as declared)")
        lines += [f"  {sentence}" for sentence in self.degeneracies]
        return "\n".join(lines)

    def order(self, k: int) -> FitResult:
        """The k-th fitted order alone: its spectra, its own and the shared parameters, and the lines in its range.

        Parameters
        ----------
        k : int
            Position among the fitted orders; negative from the end.

        Returns
        -------
        FitResult

        Raises
        ------
        IndexError
            If there is no such order.
        """
        if not -len(self) <= k < len(self):
            raise IndexError(f"order {k} of a fit of {len(self)} orders")
        k %= len(self)
        row = self.orders[self.orders["fitted"]][k]
        mine = [order in ("", row["order"]) for order in self.parameters["order"]]
        parameters = self.parameters[mine]
        parameters.remove_column("order")
        kept = [belongs for belongs, is_free in zip(mine, self.parameters["free"], strict=True) if is_free]
        ledger = self.ledger[[str(row["order"]) in orders.split(",") for orders in self.ledger["orders"]]]
        result = FitResult(
            model=self.model.orders[k],
            data=self.data[k],
            frame=self.frame[k],
            parameters=parameters,
            ledger=ledger,
            found=None if self.found is None else _lines_of(ledger, self.found),
            rejected=None if self.rejected is None else self.rejected[self.rejected["order"] == str(row["order"])],
            covariance=self.covariance[np.ix_(kept, kept)],
            line_covariance={
                name: self.line_covariance[name][view.index.numpy()]
                for name, view in self.model.orders[k].components.items()
            },
            reduced_chi2=float(row["reduced_chi2"]),
            noise_scale=self.noise_scale,
            success=self.success,
            message=self.message,
            history=self.history,
            settings=self.settings,
            orders=QTable(row),
            quality=self.quality,
        )
        result._evaluated = self._evaluated.setdefault(k, {})  # shared: spectra of an order are computed once
        return result

    def evaluate(self) -> list[dict[str, torch.Tensor]]:
        """Model spectra of each order on its pixels.

        Returns
        -------
        list of dict of Tensor
            One a fitted order, as of `FitResult.evaluate`.
        """
        spectra = []
        for k, order in enumerate(self.model.orders):
            evaluated = self._evaluated.setdefault(k, {})
            if not evaluated:
                evaluated.update(model_spectra(order))
            spectra.append({name: values.clone() for name, values in evaluated.items()})
        return spectra

    @property
    def rms(self) -> float:
        """RMS of data minus model over the good pixels of all orders, in units of the continuum."""
        fitted = self.orders[self.orders["fitted"]]
        good = np.asarray(fitted["good"], dtype=float)
        return float(np.sqrt(np.sum(good * np.asarray(fitted["rms"]) ** 2) / good.sum()))

    def _list(self, name: str) -> SpectrumList | None:
        spectra = [getattr(self.order(k), name) for k in range(len(self))]
        return None if spectra[0] is None else SpectrumList(spectra)

    def _named(self, name: str) -> list[Spectrum]:
        if name == "star_template":
            return super()._named(name)
        return [spectrum for k in range(len(self)) for spectrum in self.order(k)._named(name)]

    @property
    def model_spectrum(self) -> SpectrumList:
        """The model on the data pixels."""
        return self._list("model_spectrum")

    @property
    def star_spectrum(self) -> SpectrumList | None:
        """The star alone as the instrument would see it, times the continuum, on the data pixels."""
        return self._list("star_spectrum")

    @property
    def telluric_transmission(self) -> SpectrumList | None:
        """The telluric transmission as the instrument would see it, on the data pixels."""
        return self._list("telluric_transmission")

    @property
    def telluric_corrected(self) -> SpectrumList:
        """Data × (model without telluric lines) / (model); see `FitResult.telluric_corrected`."""
        return self._list("telluric_corrected")

    @property
    def star_template(self) -> Spectrum | None:
        """Super-resolution semi-empirical template: the fitted star at rest, one spectrum over all orders."""
        if self.model.star is None:
            return None
        pieces = []
        with torch.no_grad():
            for order in self.model.orders:
                flux, wavelength = order.stages().star, order.doppler(order.sampling.wavelength)
                pieces.append((wavelength, flux))
        # Grids of neighbouring orders overlap: one hands over to the next in the middle of the overlap.
        pieces.sort(key=lambda piece: float(piece[0][0]))
        kept, low = [], 0.0
        for k, (wavelength, flux) in enumerate(pieces):
            following = float(pieces[k + 1][0][0]) if k + 1 < len(pieces) else float("inf")
            last = float(wavelength[-1])
            high = 0.5 * (last + following) if following < last else last
            inside = (wavelength > low) & (wavelength <= high)
            kept.append((wavelength[inside], flux[inside]))
            low = max(low, high)
        wavelength, flux = (torch.cat(parts) for parts in zip(*kept, strict=True))
        meta = {"source": TEMPLATE_SOURCE, "data": self.settings.get("data", [])}
        return spectrum_on(wavelength, flux, meta=meta)

    def plot(self, order: int | None = None, **options):
        """Quick look at all orders, or at one; see `plotting.echelle.plot_orders`, `plotting.order.plot_fit`.

        Parameters
        ----------
        order : int, optional
            Position among the fitted orders; all by default.
        **options
            Those of the function.

        Returns
        -------
        Figure
        """
        from ..plotting.echelle import plot_orders

        return plot_orders(self, **options) if order is None else self.order(order).plot(**options)


def _lines_of(ledger: QTable, found_lines: QTable) -> QTable:
    """The lines found that a part of the ledger has."""
    kept = set(zip(ledger["component"].tolist(), ledger["id"].tolist(), strict=True))
    return found_lines[
        [line in kept for line in zip(found_lines["added_to"].tolist(), found_lines["id"].tolist(), strict=True)]
    ]
