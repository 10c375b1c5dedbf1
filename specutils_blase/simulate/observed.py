"""Simulated observations: noise, scattered line strengths, one order or many.

The flux itself comes from ``flux.py``, the pixels of instruments from ``pixels.py``.
"""

from collections.abc import Sequence

import astropy.units as u
import numpy as np
from astropy.nddata import StdDevUncertainty
from specutils import Spectrum, SpectrumList

from .flux import LIMB_DARKENING, legendre_continuum, saturation_laws, simulate_flux
from .inputs import C_KMS, Template, checked_edges, component, in_unit, line_table, number, pixel_edges
from .pixels import instrument, order_wavelengths

LAW_OPTIONS = ("flux_scale", "limiting_depth", "telluric_flux_scale", "telluric_limiting_depth")
"""Options that say how lines add up."""


def simulate(
    wavelength,
    star=None,
    telluric=None,
    *,
    orders=None,
    snr=100.0,
    seed=0,
    read_floor=0.02,
    edges=None,
    continuum=(1.0,),
    wavelength_drift=0.0,
    scattered_light=0.0,
    uncertainty_factor=1.0,
    **options,
):
    r"""Noisy observed spectrum of a star behind the atmosphere, with its truth.

    The noise is Gaussian with a photon-like part and a floor, so that the signal-to-noise ratio of a pixel is ``snr``
    where the flux F equals the constant term c_0 of the continuum:

    .. math:: \sigma_i^2 = \left(\frac{c_0}{\mathrm{snr}}\right)^2 \left[(1 - f) \frac{\max(F_i, 0)}{c_0} + f\right],
        \quad f = \mathrm{read\_floor}

    Parameters
    ----------
    wavelength : array_like or Quantity, shape (n_pix,); list of these; or str
        Pixel centres, vacuum, ascending [Å]. Edges lie midway between neighbours, see `pixel_edges`. A list of several,
        one an order, or the name of an instrument, "HPF", "IGRINS H" or "IGRINS K", whose resolving power then is the
        default, gives a list of orders.
    star, telluric : table, LineEmulator, CloneResult or Spectrum, optional
        Lines or a template, as in `simulate_flux`.
    orders : sequence of int, optional
        Which orders of an instrument; all by default.
    snr : float, optional
        Signal-to-noise ratio per pixel at the continuum; ``None`` gives noise-free flux without uncertainty.
    seed : int
        Of the noise; orders of a list have noise of their own.
    read_floor : float
        Part f ∈ [0, 1] of the variance at the continuum that does not follow the flux; f = 1 is constant noise.
    edges : array_like or Quantity, shape (n_pix, 2), optional
        Pixel edges [Å] to use instead.
    continuum : sequence of float
        Legendre coefficients, as in `simulate_flux`.
    wavelength_drift : float or Quantity
        Error of the wavelength solution [km/s]: pixels recorded as λ really saw λ (1 + x d/(2c)), x ∈ [−1, 1] from the
        first to the last centre, so that the order is right in its middle and d apart between its ends.
    scattered_light : float
        Featureless light on every pixel, in units of the continuum there.
    uncertainty_factor : float
        The uncertainty that is told over the true one.
    **options
        ``rv, vsini, limb_darkening, resolving_power, flux_scale, telluric_flux_scale, limiting_depth,
        telluric_limiting_depth, veiling, step, guard`` of `simulate_flux`.

    Returns
    -------
    specutils.Spectrum, or specutils.SpectrumList of many orders
        Dimensionless flux with `~astropy.nddata.StdDevUncertainty`. ``meta["truth"]`` is a plain dictionary: the
        options given and ``rv``, ``vsini``, ``limb_darkening``, ``resolving_power``, ``veiling``, ``continuum``,
        ``snr``, ``seed``, ``read_floor``, ``wavelength_drift``, ``scattered_light``, ``uncertainty_factor``, the lines
        ``star`` and ``telluric`` (`~astropy.table.QTable`, the source of a template in words, or None) with their laws
        ``flux_scale``, ``limiting_depth``, ``telluric_flux_scale``, ``telluric_limiting_depth``, and the noise-free
        ``flux``, shape (n_pix,). What may depend on wavelength has one value a pixel.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from astropy.table import QTable
    >>> import specutils_blase as sb
    >>> numbers = {"center": 8690.0, "area": 0.1, "sigma": 0.05, "gamma": 0.02}
    >>> star = QTable({name: [value] * u.AA for name, value in numbers.items()})
    >>> pixels = np.linspace(8688.0, 8692.0, 60)
    >>> data = sb.simulate.simulate(pixels, star, rv=12.0, resolving_power=55_000, snr=100, seed=1)
    >>> data.spectral_axis[data.flux.argmin()].round(1)
    <SpectralAxis 8690.4 Angstrom>
    >>> data.meta["truth"]["rv"]
    12.0
    """
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or seed < 0:
        raise ValueError(f"seed must be an integer from 0 on, so that the noise can be made again; got {seed!r}")
    if snr is not None:
        if np.ndim(snr) != 0:
            raise ValueError(f"snr must be one number, that at the continuum, or None; got shape {np.shape(snr)}")
        snr = number(snr, u.one, "snr")
    if hasattr(wavelength, "spectral_axis"):
        raise ValueError(
            "wavelength must be pixel centres, a list of such, or the name of an instrument; got a spectrum: give its "
            "spectral_axis"
        )
    if isinstance(orders, (int, np.integer)):
        orders = [orders]
    observing = {"snr": snr, "read_floor": read_floor, "continuum": continuum, "wavelength_drift": wavelength_drift}
    observing |= {"scattered_light": scattered_light, "uncertainty_factor": uncertainty_factor}
    centers: Sequence | None = None
    if isinstance(wavelength, str):
        power, solutions = instrument(wavelength)
        centers = [order_wavelengths(wavelength, k) for k in (range(len(solutions)) if orders is None else orders)]
        options = {"resolving_power": power, **options}
    elif orders is not None:
        raise ValueError(f"orders={orders!r} needs the name of an instrument for wavelength")
    elif isinstance(wavelength, (list, tuple)) and wavelength and all(np.ndim(item) == 1 for item in wavelength):
        centers = wavelength
    # The spline of a template is made once.
    star, telluric = (
        component(source, name, options.get("resolving_power"))[0] if hasattr(source, "spectral_axis") else source
        for source, name in ((star, "star"), (telluric, "telluric"))
    )
    if centers is None:
        return _observed(wavelength, star, telluric, edges, np.random.default_rng(seed), seed, observing, options)
    if edges is not None:
        raise ValueError("edges can be given for one order only: simulate orders with edges of their own one by one")
    noise = [np.random.default_rng([int(seed), k]) for k in range(len(centers))]
    return SpectrumList(
        [
            _observed(item, star, telluric, None, random, seed, observing, options)
            for item, random in zip(centers, noise, strict=True)
        ]
    )


def _observed(wavelength, star, telluric, edges, random, seed, observing, options):
    """One order; see `simulate`."""
    snr, read_floor, continuum = (observing[name] for name in ("snr", "read_floor", "continuum"))
    scattered_light, uncertainty_factor = observing["scattered_light"], observing["uncertainty_factor"]
    if np.ndim(continuum) != 1 or len(continuum) == 0:
        raise ValueError(f"continuum must be a sequence of Legendre coefficients such as (1.0, 0.1), got {continuum!r}")
    wavelength = in_unit(wavelength, u.AA, "wavelength")
    edges = pixel_edges(wavelength) if edges is None else checked_edges(edges)
    if edges.shape != (wavelength.size, 2):
        raise ValueError(
            f"edges have shape {edges.shape}: expected ({wavelength.size}, 2), one pair for each wavelength"
        )
    drift = number(observing["wavelength_drift"], u.km / u.s, "wavelength_drift")
    if not (scattered_light >= 0 and uncertainty_factor > 0):
        raise ValueError(
            f"expected scattered_light >= 0 and uncertainty_factor > 0, got {scattered_light} and {uncertainty_factor}"
        )
    seen = edges
    if drift:
        x = 2.0 * (edges - wavelength[0]) / (wavelength[-1] - wavelength[0]) - 1.0
        seen = edges * (1.0 + 0.5 * drift * x / C_KMS)
    flux = simulate_flux(seen, star, telluric, continuum=continuum, **options)
    flux = flux + scattered_light * legendre_continuum(seen.mean(axis=1), continuum)
    power = options.get("resolving_power")
    star_truth, star_law = component(star, "star", power)
    telluric_truth, telluric_law = component(telluric, "telluric", power)
    chosen_laws = {name: value for name, value in options.items() if name in LAW_OPTIONS}
    laws = saturation_laws(star_law, telluric_law, **chosen_laws)
    truth = {"rv": 0.0, "vsini": 0.0, "limb_darkening": LIMB_DARKENING, "resolving_power": None, "veiling": 0.0}
    truth |= options | laws
    truth = {key: value(wavelength) if callable(value) else value for key, value in truth.items()}
    truth |= {"continuum": [float(term) for term in continuum], "snr": snr, "seed": seed, "read_floor": read_floor}
    truth |= {
        "wavelength_drift": drift,
        "scattered_light": float(scattered_light),
        "uncertainty_factor": float(uncertainty_factor),
    }
    truth |= {"star": _of(star_truth), "flux": flux, "telluric": _of(telluric_truth)}
    observed, uncertainty = flux, None
    if snr is not None:
        level = float(continuum[0])
        if not (snr > 0 and level > 0 and 0 <= read_floor <= 1):
            raise ValueError(
                f"noise needs snr > 0, continuum[0] > 0 and 0 <= read_floor <= 1, "
                f"got snr={snr}, continuum[0]={level}, read_floor={read_floor}: use snr=None for no noise"
            )
        sigma = level / snr * np.sqrt((1.0 - read_floor) * np.maximum(flux / level, 0.0) + read_floor)
        observed = flux + sigma * random.standard_normal(flux.size)
        uncertainty = StdDevUncertainty(uncertainty_factor * sigma)
    return Spectrum(
        spectral_axis=wavelength * u.AA,
        flux=observed * u.dimensionless_unscaled,
        uncertainty=uncertainty,
        meta={"source": "specutils_blase.simulate", "medium": "vacuum", "truth": truth},
    )


def _of(component):
    """A component in the truth: its lines, or the source of a template."""
    return component.source if isinstance(component, Template) else component


def perturbed(
    lines,
    seed=0,
    scatter_ln_area=0.1,
    *,
    scatter_ln_sigma=0.0,
    scatter_ln_gamma=0.0,
    scatter_rv_offset=0.0,
    degrees_of_freedom=np.inf,
):
    """True lines of a star that a template describes nearly: the given lines, scattered.

    Parameters
    ----------
    lines : table
        Lines, as in `simulate_flux`.
    seed : int
        Of the scatter.
    scatter_ln_area, scatter_ln_sigma, scatter_ln_gamma : float
        Standard deviations of ln area, ln sigma and ln gamma; scales, where the scatter is Student's t.
    scatter_rv_offset : float or Quantity
        The same of the centre offset [km/s].
    degrees_of_freedom : float
        Of Student's t; infinity, the default, is Gaussian scatter.

    Returns
    -------
    astropy.table.QTable
        Same rows, same order: ``center, area, sigma, gamma`` [Å], ``sign``, ``rv_offset`` [km/s]; the
        centres include the offsets.

    Examples
    --------
    >>> import astropy.units as u
    >>> import numpy as np
    >>> from astropy.table import QTable
    >>> import specutils_blase as sb
    >>> numbers = {"center": 8690.0, "area": 0.1, "sigma": 0.05, "gamma": 0.02}
    >>> lines = QTable({name: np.full(1000, value) * u.AA for name, value in numbers.items()})
    >>> true = sb.simulate.perturbed(lines, 0, scatter_ln_area=0.2)
    >>> float(np.log(true["area"] / lines["area"]).std().round(2))
    0.2
    """
    table = line_table(lines)
    if not degrees_of_freedom > 0:
        raise ValueError(f"degrees_of_freedom={degrees_of_freedom}: expected a positive number, or infinity")
    generator = np.random.default_rng(seed)
    random = generator.standard_normal((4, len(table)))
    if np.isfinite(degrees_of_freedom):
        random /= np.sqrt(generator.chisquare(degrees_of_freedom, random.shape) / degrees_of_freedom)
    table["area"] *= np.exp(scatter_ln_area * random[0])
    table["sigma"] *= np.exp(scatter_ln_sigma * random[1])
    table["gamma"] *= np.exp(scatter_ln_gamma * random[2])
    shift = number(scatter_rv_offset, u.km / u.s, "scatter_rv_offset") * random[3]
    table["center"] *= 1.0 + shift / C_KMS
    table["rv_offset"] += shift * u.km / u.s
    return table
