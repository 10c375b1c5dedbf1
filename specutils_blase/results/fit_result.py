"""`FitResult`: the outcome of a fit of one order, and the spectra that follow from it.

Does not live here: the fit (`fitting`), files (`asdf`), drawing (`plotting`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from astropy.table import QTable
from specutils import Spectrum, SpectrumList

from ..model.order import ForwardModel
from ..physics.parallel import side_by_side
from ..posterior.correlations import degeneracies
from ..posterior.laplace import Curvature, Draws, draw
from ..posterior.line_means import line_means
from ..posterior.rv_photon_limit import RVPhotonLimit, rv_photon_limit
from ..quality.report import Quality
from ..spectra.data import SpectralData
from ..spectra.frame import SpectrumFrame, spectrum_on
from ..spectra.registry import writer

LEAST_TRANSMISSION = 0.02
"""Transmission below which a telluric correction is masked, as noise would dominate it."""

SPECTRUM_NAMES = (
    "data",
    "model_spectrum",
    "star_spectrum",
    "telluric_transmission",
    "telluric_corrected",
    "star_template",
)
"""Names of spectra for `FitResult.to_spectrum_list`: the data as fitted, and attributes of the result."""

TEMPLATE_SOURCE = "specutils_blase semi-empirical template"
"""Source in the meta of a template that comes from a fit."""


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
        The data's own axis, order and unit.
    parameters : QTable
        name, value, error, unit, free: the parameters that concern the whole order.
    ledger : QTable
        One row a line; see `ledger.columns.COLUMNS`.
    covariance : ndarray
        Covariance of the free rows of `parameters`, in their order.
    line_covariance : dict of ndarray
        Component to (n_line, 4, 4): covariance of ln area, ln σ, ln γ [Å] and rv_offset [km/s] of each line, marginal
        over all else.
    reduced_chi2 : float
        χ² per degree of freedom, in which parameters held by their priors do not count.
    noise_scale : float
        Factor on the errors: 1, or the residual scatter where the data bring no uncertainty.
    success, message : bool, str
        Whether the iteration converged, and how it ended; `quality` assesses the answer.
    history : list of dict
        Iteration, cost, damping.
    settings : dict
        All options of `fit`.
    orders : QTable, optional
        One row an order; see `fitting.assembly.ORDER_COLUMNS`.
    curvature : Curvature, optional
        Weights and prior precisions, for draws, the steps of `rv_photon_limit` and `missing_lines`.
    found : QTable, optional
        Lines that the fit found and added, where it was asked to.
    rejected : QTable, optional
        One row a pixel that was left out because no spectrum can show it; see `fitting.residuals.rejected_pixels`.
    quality : Quality, optional
        Assessment of the result; see `quality.assessment`.
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
    curvature: Curvature | None = None
    found: QTable | None = None
    rejected: QTable | None = None
    quality: Quality | None = None
    _evaluated: dict = field(default_factory=dict, init=False, repr=False)

    def __repr__(self) -> str:
        lines = [f"FitResult: {self.message}", *self._quality_lines()]
        for row in self.parameters:
            if (row["free"] and not str(row["name"]).startswith("continuum")) or row["name"] == "rv_barycentric":
                lines.append(f"  {row['name']} = {row['value']:.4f} ± {row['error']:.2g} {row['unit']}")
        lines.append(f"  reduced χ² = {self.reduced_chi2:.3g}, RMS = {100 * self.rms:.3g} % of the continuum")
        lines.append(f"  {len(self.ledger)} lines, {int(np.sum(self.ledger['free']))} of them fitted")
        lines.append(f"  medium of the data: {self.frame.medium} (as declared)")
        lines += [f"  {sentence}" for sentence in self.degeneracies]
        return "\n".join(lines)

    def _quality_lines(self) -> list[str]:
        return [] if self.quality is None else [f"  {line}" for line in self.quality.lines()]

    def assessed(self, quality: Quality) -> FitResult:
        """The result with its quality, which also comes first in the meta of its tables.

        Parameters
        ----------
        quality : Quality

        Returns
        -------
        FitResult
            The same object.
        """
        self.quality = quality
        quality.write_into(self.parameters, self.ledger, self.orders)
        return self

    def value(self, name: str) -> float:
        """Value of a row of `parameters`.

        Parameters
        ----------
        name : str
            Such as "rv" or "vsini".

        Returns
        -------
        float
            In the row's unit.

        Raises
        ------
        ValueError
            If there is no such row.
        """
        return float(self.parameters["value"][list(self.parameters["name"]).index(name)])

    def error(self, name: str) -> float:
        """1-sigma error of a row of `parameters`.

        Parameters
        ----------
        name : str
            As of `value`, which raises the same.

        Returns
        -------
        float
            In the row's unit; 0 for a held parameter.
        """
        return float(self.parameters["error"][list(self.parameters["name"]).index(name)])

    @property
    def degeneracies(self) -> list[str]:
        """Pairs of parameters with correlations above 0.9, in words, the strongest first."""
        return degeneracies(self.parameters, self.covariance)

    @property
    def rv_photon_limit(self) -> RVPhotonLimit | None:
        """Smallest possible errors of the velocity, and what tellurics and the freedom of the lines add to them."""
        with side_by_side(len(self.model.orders)):
            return rv_photon_limit(self)

    @property
    def missing_lines(self) -> QTable:
        """Lines that no template has, with the probability that each is noise; see `missing_lines.table`.

        A fit with ``missing_lines=0.1`` has the lines that it found and added. Otherwise the residuals are searched
        now, with an expected number of 0.1 false lines. That is a hint only. In a fit without the search other lines
        have moved to replace the missing ones. Some features are then gone from the residuals; others are displaced,
        or look like lines of the other component.

        Raises
        ------
        ValueError
            Where a search is needed and no component's ln_area was free, or the result does not hold its `curvature`.
        """
        from ..missing_lines.on_result import search_result

        with side_by_side(len(self.model.orders)):
            return search_result(self) if self.found is None else self.found

    def draw(self, n_draw: int = 100, seed: int = 0) -> Draws:
        """Draws from the posterior around the solution, joint over all parameters, in the Laplace approximation.

        Parameters
        ----------
        n_draw : int
            Number of draws.
        seed : int
            Seed of the random numbers.

        Returns
        -------
        Draws
            `parameters` and `lines` of all draws as tables, and their `spectra`.

        Raises
        ------
        ValueError
            If the result does not hold its `curvature`, `n_draw` is no positive whole number, or `seed` is no whole
            number from 0 on.
        """
        with side_by_side(len(self.model.orders)):
            return draw(self, n_draw, seed)

    def line_means(self, progress: bool = True) -> QTable:
        """Posterior means of ln area, ln sigma, ln gamma and rv_offset of every line, beside the ledger's values.

        Lines of a ledger are at the posterior mode. Where the posterior is skewed, as towards small γ, the mean
        differs from the mode. `posterior.line_means` has the equation, of first order in the change of the curvature
        over an error. Shifts are limited to one error. Two lines that share one feature, or lines of a poor template,
        reach this limit; then neither value is reliable.

        Takes two evaluations of the model with its gradient for each of a few hundred directions: seconds for an
        order, minutes for an échelle.

        Parameters
        ----------
        progress : bool
            Whether to show a progress bar.

        Returns
        -------
        QTable
            Row i is row i of the fit's ledger: component, id, and of each of ``ln_area``, ``ln_sigma``, ``ln_gamma``
            (of the ledger's Å) and ``rv_offset`` the mean, its error, ``ln_area_err``, and how far it is from the
            ledger's value in units of the ledger's error, ``ln_area_shift``.

        Raises
        ------
        ValueError
            If the result does not hold its `curvature`, or is from a file of an older version.
        """
        with side_by_side(len(self.model.orders)):
            return line_means(self, progress)

    def evaluate(self) -> dict[str, torch.Tensor]:
        """Model spectra on the data pixels.

        They are computed once and kept: a result whose model has been changed needs ``dataclasses.replace(result)``.

        Returns
        -------
        dict of Tensor, (n_pixel,)
            "model" and "continuum" in the data's flux unit; "star" and "telluric", where present, with continuum 1.
        """
        if not self._evaluated:
            self._evaluated.update(model_spectra(self.model))
        return {name: values.clone() for name, values in self._evaluated.items()}

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

        Star and tellurics are multiplied before the line spread. Division by the broadened transmission alone would
        be wrong wherever both have lines. Pixels with less than 2 % transmission are masked.
        """
        parts = self.evaluate()
        clean = parts["star"] * parts["continuum"] if "star" in parts else parts["continuum"]
        ratio = parts["model"] / clean
        opaque = ~(ratio > LEAST_TRANSMISSION)
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
        meta = {"source": TEMPLATE_SOURCE, "data": self.settings.get("data", [])}
        return spectrum_on(wavelength, flux, meta=meta)

    def to_spectrum_list(self, names=SPECTRUM_NAMES) -> SpectrumList:
        """The spectra of the fit as one list, for programs that take such, jdaviz among them.

        Parameters
        ----------
        names : str or sequence of str
            Which, among "data" and the attributes "model_spectrum", "star_spectrum", "telluric_transmission",
            "telluric_corrected" and "star_template"; by default all of them.

        Returns
        -------
        SpectrumList
            In the order of the names, and for each name in that of the orders. ``meta["name"]`` and ``meta["order"]``
            identify each spectrum. Spectra that the fit does not have, such as a star where none was fitted, are left
            out. All are on the axes and in the unit of the data, transmissions without unit. The template is one
            spectrum for all orders, at rest, in vacuum Å, with continuum 1. ``spectrum.write(path,
            format="tabular-fits")`` writes each; to read fluxes without unit, specutils needs ``column_mapping``.

        Raises
        ------
        ValueError
            For a name that is none of these.
        """
        names = (names,) if isinstance(names, str) else tuple(names)
        unknown = [name for name in names if name not in SPECTRUM_NAMES]
        if unknown:
            raise ValueError(f"names must be among {', '.join(SPECTRUM_NAMES)}; got {', '.join(map(repr, unknown))}")
        return SpectrumList([spectrum for name in names for spectrum in self._named(name)])

    def _named(self, name: str) -> list[Spectrum]:
        """The spectrum of that name as a list, with the name in its meta; empty without one."""
        if name == "data":
            sigma = self.data.sigma if self.data.noise_known else None
            spectrum = self.frame.spectrum(self.data.flux, uncertainty=sigma, mask=~self.data.good)
        else:
            spectrum = getattr(self, name)
        if spectrum is None:
            return []
        spectrum.meta["name"] = name
        if name != "star_template" and self.orders is not None:
            spectrum.meta["order"] = str(self.orders["order"][0])
        return [spectrum]

    def plot(self, **options):
        """Quick look at the fit; see `specutils_blase.plotting.order.plot_fit`.

        Parameters
        ----------
        **options
            Those of that function.

        Returns
        -------
        Figure
        """
        from ..plotting.order import plot_fit

        return plot_fit(self, **options)

    def write(self, path, *, overwrite: bool = False, compression: str | None = None) -> None:
        """Write to an ASDF file, which `specutils_blase.read` reads; see `specutils_blase.asdf.files.write`.

        Parameters
        ----------
        path : path-like
            By custom it ends in ``.asdf``.
        overwrite : bool
            Replace a file that is there already.
        compression : {None, "zlib", "bzp2", "lz4"}
            Compression of arrays.

        Raises
        ------
        FileExistsError, OSError, ValueError
            As `specutils_blase.asdf.files.write`.
        """
        writer()(self, path, overwrite=overwrite, compression=compression)


@torch.no_grad()
def model_spectra(model: ForwardModel) -> dict[str, torch.Tensor]:
    """Spectra of the model of one order on its pixels; see `FitResult.evaluate`."""
    stages = model.stages()  # all from one sum over the lines, which takes nearly all of the time
    result = {"model": stages.flux, "continuum": model.continuum.value()}
    for name, flux in (("star", stages.rotated), ("telluric", stages.sky)):
        if flux is not None:
            result[name] = model.through_instrument(flux)
    return result
