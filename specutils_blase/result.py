"""`FitResult`: what a fit returns, and the spectra that follow from it.

Does not live here: the fit (`fitting`), files (`asdf`), drawing (`plotting`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from astropy.table import QTable
from specutils import Spectrum

from .data import SpectralData
from .model import ForwardModel
from .spectrum import SpectrumFrame, spectrum_on

OPAQUE = 0.02
"""Transmission below which a telluric correction is masked: what remains is noise over nothing."""


@dataclass(eq=False)
class FitResult:
    """Outcome of `fit`.

    Parameters
    ----------
    model : ForwardModel
        The fitted model; its output is in the data's flux unit.
    data : SpectralData
        The data as fitted.
    frame : SpectrumFrame
        The way back to the data's own axis and unit.
    parameters : QTable
        name, value, error, unit, free: the parameters that touch the whole order.
    ledger : QTable
        One row a line; see `ledger.COLUMNS`.
    covariance : ndarray
        Covariance of the free rows of `parameters`, in their order.
    line_covariance : dict of ndarray
        Component to (n_line, 4, 4): covariance of ln area, ln σ, ln γ, rv_offset of each line, over all else.
    reduced_chi2 : float
        χ² per degree of freedom; parameters held by their prior do not count as used up.
    noise_scale : float
        Factor on the errors: 1, or the residual scatter where the data bring no uncertainty.
    success, message : bool, str
        Whether the iteration converged, and how it ended.
    history : list of dict
        Iteration, cost, damping.
    settings : dict
        Everything asked for.
    orders : QTable, optional
        One row an order; see `outcome.ORDER_COLUMNS`.
    """

    model: ForwardModel
    data: SpectralData
    frame: SpectrumFrame
    parameters: QTable
    ledger: QTable
    covariance: np.ndarray
    line_covariance: dict[str, np.ndarray]
    reduced_chi2: float
    noise_scale: float
    success: bool
    message: str
    history: list[dict[str, float]]
    settings: dict = field(default_factory=dict)
    orders: QTable | None = None

    def __repr__(self) -> str:
        lines = [f"FitResult: {self.message}"]
        for row in self.parameters:
            if row["free"] and not str(row["name"]).startswith("continuum"):
                lines.append(f"  {row['name']} = {row['value']:.4g} ± {row['error']:.2g} {row['unit']}")
        lines.append(f"  reduced χ² = {self.reduced_chi2:.3g}, RMS = {100 * self.rms:.3g} % of the continuum")
        lines.append(f"  {len(self.ledger)} lines, {int(np.sum(self.ledger['free']))} of them fitted")
        lines.append(f"  medium of the data: {self.frame.medium} (as declared)")
        return "\n".join(lines)

    def value(self, name: str) -> float:
        """Value of a row of `parameters`."""
        return float(self.parameters["value"][list(self.parameters["name"]).index(name)])

    def error(self, name: str) -> float:
        """Error of a row of `parameters`."""
        return float(self.parameters["error"][list(self.parameters["name"]).index(name)])

    @torch.no_grad()
    def evaluate(self) -> dict[str, torch.Tensor]:
        """Model spectra on the data pixels: model, continuum, star and telluric (both with continuum 1)."""
        result = {"model": self.model(), "continuum": self.model.continuum.value()}
        for name in self.model.components:
            result[name] = self.model.observed(name)
        return result

    @property
    def rms(self) -> float:
        """RMS of data minus model over the good pixels, in units of the continuum."""
        parts = self.evaluate()
        relative = (self.data.flux - parts["model"]) / parts["continuum"]
        return float(relative[self.data.good].square().mean().sqrt())

    @property
    def model_spectrum(self) -> Spectrum:
        """The model on the data pixels."""
        return self.frame.spectrum(self.evaluate()["model"])

    @property
    def star_spectrum(self) -> Spectrum | None:
        """The star alone as the instrument would see it, times the continuum, on the data pixels."""
        return self._component("star", scaled=True)

    @property
    def telluric_transmission(self) -> Spectrum | None:
        """The telluric transmission as the instrument would see it, on the data pixels."""
        return self._component("telluric", scaled=False)

    def _component(self, name: str, scaled: bool) -> Spectrum | None:
        parts = self.evaluate()
        if name not in parts:
            return None
        if scaled:
            return self.frame.spectrum(parts[name] * parts["continuum"])
        return self.frame.spectrum(parts[name], unit="")

    @property
    def telluric_corrected(self) -> Spectrum:
        """Data × (model without telluric lines) / (model), with the noise scaled likewise.

        Star and sky are multiplied before the line spread, so dividing by the smeared transmission alone would be
        wrong wherever both have lines. Pixels with almost no light left are masked.
        """
        parts = self.evaluate()
        clean = parts["star"] * parts["continuum"] if "star" in parts else parts["continuum"]
        ratio = parts["model"] / clean
        opaque = ~(ratio > OPAQUE)
        ratio = torch.where(opaque, torch.ones_like(ratio), ratio)
        sigma = self.data.sigma / ratio if self.data.noise_known else None
        corrected = torch.where(self.data.good, self.data.flux / ratio, torch.nan)
        return self.frame.spectrum(corrected, uncertainty=sigma, mask=opaque | ~self.data.good)

    @property
    def star_template(self) -> Spectrum | None:
        """Super-resolution semi-empirical template: the fitted star at rest, unrotated, before the instrument."""
        if self.model.star is None:
            return None
        with torch.no_grad():
            flux = self.model.stages().star
            wavelength = self.model.doppler(self.model.sampling.wavelength)
        return spectrum_on(wavelength, flux, meta={"source": "specutils_blase semi-empirical template"})

    def plot(self, **options):
        """Quick look at the fit; see `specutils_blase.plotting.plot_fit`."""
        from .plotting import plot_fit

        return plot_fit(self, **options)

    def write(self, path, *, overwrite: bool = False) -> None:
        """Write to an ASDF file, which `specutils_blase.read` reads."""
        from .asdf.files import write

        write(self, path, overwrite=overwrite)
