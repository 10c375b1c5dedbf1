"""`FitResult`: what a fit returns, and the spectra that follow from it.

Does not live here: the fit (`fitting`), files (`asdf`), drawing (`plotting`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import numpy as np
import torch
from astropy.table import QTable
from specutils import Spectrum, SpectrumList

from ..model.order import ForwardModel
from ..posterior.correlations import degeneracies
from ..posterior.laplace import Curvature, Draws, draw
from ..posterior.line_means import line_means
from ..posterior.rv_photon_limit import RVPhotonLimit, rv_photon_limit
from ..quality.report import Quality
from ..spectra.data import SpectralData
from ..spectra.reading import SpectrumFrame, spectrum_on
from ..spectra.registry import writer

OPAQUE = 0.02
"""Transmission below which a telluric correction is masked: what remains is noise over nothing."""

SPECTRA = (
    "data",
    "model_spectrum",
    "star_spectrum",
    "telluric_transmission",
    "telluric_corrected",
    "star_template",
)
"""What `FitResult.to_spectrum_list` can hold: the data as fitted, and attributes of the result."""


SEMI_EMPIRICAL = "specutils_blase semi-empirical template"
"""What a template that comes from a fit calls itself, as "source" of its meta."""


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
        Whether the iteration converged, and how it ended; what its answer is worth is told by `quality`.
    history : list of dict
        Iteration, cost, damping.
    settings : dict
        Everything asked for.
    orders : QTable, optional
        One row an order; see `outcome.ORDER_COLUMNS`.
    curvature : Curvature, optional
        What draws, the steps of `rv_photon_limit` and `missing_lines` need beside the model.
    found : QTable, optional
        Lines that the fit found and added, where it was asked to.
    rejected : QTable, optional
        One row a pixel that was left out because no spectrum can show it; see `rejection.COLUMNS`.
    quality : Quality, optional
        What speaks against the result; see `assessment`.
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
        """The result with its quality, which its tables tell too, first of all that is in their meta."""
        self.quality = quality
        quality.write_into(self.parameters, self.ledger, self.orders)
        return self

    def value(self, name: str) -> float:
        """Value of a row of `parameters`."""
        return float(self.parameters["value"][list(self.parameters["name"]).index(name)])

    def error(self, name: str) -> float:
        """Error of a row of `parameters`."""
        return float(self.parameters["error"][list(self.parameters["name"]).index(name)])

    @property
    def degeneracies(self) -> list[str]:
        """Pairs of parameters with correlations above 0.9, in words, the strongest first."""
        return degeneracies(self.parameters, self.covariance)

    @property
    def rv_photon_limit(self) -> RVPhotonLimit | None:
        """Smallest errors that the velocity can have, and what the sky and the freedom of the lines take away."""
        return rv_photon_limit(self)

    @property
    def missing_lines(self) -> QTable:
        """Lines that no template has, with the probability that each is noise; see `missing_lines.table.COLUMNS`.

        Those that the fit found and added where it was asked to (``fit(..., missing_lines=0.1)``); otherwise what is
        significant in its residuals, with 0.1 false ones to be expected, searched for now. That is a hint, not what
        the search would find: in a fit without it the other lines have moved to do the work of what is missing, under
        Student's t by as much as it takes, so that some features are gone from the residuals and others are beside
        their places, or look like the other component's.

        Raises
        ------
        ValueError
            Where a search is needed and no component's ln_area was free, or the result does not hold its `curvature`.
        """
        from ..missing_lines.on_result import search_result

        return search_result(self) if self.found is None else self.found

    def draw(self, n_draw: int = 100, seed: int = 0) -> Draws:
        """Draws from the posterior around the solution, joint over all parameters, in the Laplace approximation.

        Parameters
        ----------
        n_draw : int
            Number of draws.
        seed : int
            Of the random numbers.

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
        return draw(self, n_draw, seed)

    def line_means(self, progress: bool = True) -> QTable:
        """Posterior means of ln area, ln sigma, ln gamma and rv_offset of every line, beside the ledger's values.

        Lines of a ledger stand at the summit of the posterior. Where that leans to one side, as it does towards small
        γ where a profile no longer changes, the mean is beside it: `posterior_means` has the equation, which is first
        order in how much the curvature changes over an error. What is far from any Gaussian, as two lines that share
        one feature, or lines of a poor template, would move by more; it is stopped at one error, where neither value
        is to be trusted.

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
        return line_means(self, progress)

    def evaluate(self) -> dict[str, torch.Tensor]:
        """Model spectra on the data pixels: model, continuum, star and telluric (both with continuum 1)."""
        return model_spectra(self.model)

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
        meta = {"source": SEMI_EMPIRICAL, "data": self.settings.get("data", [])}
        return spectrum_on(wavelength, flux, meta=meta)

    def to_spectrum_list(self, names=SPECTRA) -> SpectrumList:
        """The spectra of the fit as one list, for programs that take such, jdaviz among them.

        Parameters
        ----------
        names : str or sequence of str
            Which, among "data" and the attributes "model_spectrum", "star_spectrum", "telluric_transmission",
            "telluric_corrected" and "star_template"; by default all of them.

        Returns
        -------
        SpectrumList
            In the order of the names, under each name in the order of the échelle's orders. Every spectrum says what it
            is in ``meta["name"]`` and of which order in ``meta["order"]``. What the fit does not have, such as a star
            where none was fitted, is left out. All are on the axes and in the unit of the data, transmissions without
            unit, but for the template: one for all orders, at rest, in vacuum Å, continuum 1. ``spectrum.write(path,
            format="tabular-fits")`` writes each; to read fluxes without unit, specutils must be told their columns
            (``column_mapping``).

        Raises
        ------
        ValueError
            For a name that is none of these.
        """
        names = (names,) if isinstance(names, str) else tuple(names)
        unknown = [name for name in names if name not in SPECTRA]
        if unknown:
            raise ValueError(f"names must be among {', '.join(SPECTRA)}; got {', '.join(map(repr, unknown))}")
        return SpectrumList([spectrum for name in names for spectrum in self._named(name)])

    def _named(self, name: str) -> list[Spectrum]:
        """The spectrum of that name, if there is one, and its name in its meta."""
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
        """Quick look at the fit; see `specutils_blase.plotting.order.plot_fit`."""
        from ..plotting.order import plot_fit

        return plot_fit(self, **options)

    def write(self, path, *, overwrite: bool = False, compression: str | None = None) -> None:
        """Write to an ASDF file, which `specutils_blase.read` reads; see `specutils_blase.asdf.files.write`."""
        writer()(self, path, overwrite=overwrite, compression=compression)


def model_spectra(model: ForwardModel) -> dict[str, torch.Tensor]:
    """Spectra of the model of one order on its pixels; see `FitResult.evaluate`.

    Kept until a parameter of the model changes: printing, drawing and writing a result ask for the same spectra.
    """
    tensors = _tensors(model)
    tracked = not any(tensor.is_inference() for tensor in tensors)
    state = tuple((tensor.data_ptr(), tensor._version, tensor.dtype) for tensor in tensors) if tracked else None
    known = _KNOWN.get(model)
    if known is None or state is None or known[0] != state:
        known = _KNOWN[model] = (state, _model_spectra(model))
    return {name: values.clone() for name, values in known[1].items()}


_KNOWN: WeakKeyDictionary = WeakKeyDictionary()


def _tensors(model: ForwardModel) -> list[torch.Tensor]:
    """All that a model's spectra depend on, the lines included that it sees through views."""
    owners = [getattr(emulator, "parent", emulator) for emulator in model.components.values()]
    return [tensor for module in (model, *owners) for tensor in (*module.parameters(), *module.buffers())]


@torch.no_grad()
def _model_spectra(model: ForwardModel) -> dict[str, torch.Tensor]:
    stages = model.stages()  # all from one sum over the lines, which is what takes the time
    result = {"model": stages.flux, "continuum": model.continuum.value()}
    for name, flux in (("star", stages.rotated), ("telluric", stages.sky)):
        if flux is not None:
            result[name] = model.through_instrument(flux)
    return result
