"""Simulated observations: noise, scattered line strengths, and the wavelengths of the Habitable-zone Planet Finder.

The flux itself comes from ``flux.py``.
"""

import astropy.units as u
import numpy as np
from astropy.nddata import StdDevUncertainty
from numpy.polynomial.legendre import legval
from specutils import Spectrum

from .flux import legendre_continuum, simulate_flux
from .inputs import C_KMS, checked_edges, in_unit, line_table, number, pixel_edges

# Legendre coefficients [Å] of HPF's 28 orders on x = -1 (first) to 1 (last of 2048 pixels).
# fmt: off
HPF_LEGENDRE = (
(8134.266398, 52.306373, -2.974064, -0.044099, 0.003709, -0.002489, 8.9e-05),
    (8244.189528, 53.003637, -3.01332, -0.044203, 0.00358, -0.002255, -0.00011),
    (8357.124989, 53.719954, -3.053446, -0.044709, 0.00353, -0.002267, 0.000228),
    (8473.19464, 54.451139, -3.090915, -0.042101, 0.001758, -0.002355, -5.1e-05),
    (8592.536425, 55.210381, -3.138055, -0.044025, 0.003928, -0.00295, 0.000546),
    (8715.288258, 55.98511, -3.180306, -0.044771, 0.003593, -0.002263, 0.000152),
    (8841.597374, 56.782871, -3.224797, -0.045234, 0.003684, -0.002077, 8.7e-05),
    (8971.621596, 57.603116, -3.270675, -0.045459, 0.003645, -0.002427, 0.000309),
    (9105.526818, 58.446889, -3.317816, -0.045801, 0.003715, -0.002214, 0.00028),
    (9243.489677, 59.315316, -3.366408, -0.046037, 0.003731, -0.002509, 4.4e-05),
    (9385.697894, 60.209581, -3.416162, -0.045639, 0.003547, -0.002618, 0.000372),
    (9532.349847, 61.130782, -3.467576, -0.046808, 0.003975, -0.002671, 0.000333),
    (9683.657659, 62.0795, -3.520249, -0.047341, 0.003851, -0.002528, 0.000222),
    (9839.846138, 63.05738, -3.574495, -0.047439, 0.004088, -0.002995, -0.000133),
    (10001.155492, 64.065942, -3.630867, -0.048917, 0.00407, -0.002894, 0.000142),
    (10167.842157, 65.106363, -3.688442, -0.049932, 0.004212, -0.002938, 2.3e-05),
    (10340.179236, 66.179515, -3.748182, -0.05092, 0.004349, -0.002909, 0.000189),
    (10518.459028, 67.288568, -3.809666, -0.052506, 0.005158, -0.002632, -0.000476),
    (10702.994437, 68.431379, -3.874049, -0.054033, 0.005846, -0.003534, 0.000301),
    (10894.1204, 69.614231, -3.938765, -0.056156, 0.005986, -0.003761, -0.000302),
    (11092.196798, 70.836302, -4.006303, -0.057095, 0.005876, -0.003637, 8.6e-05),
    (11297.609719, 72.098809, -4.075722, -0.059855, 0.005919, -0.003181, 7.4e-05),
    (11510.774052, 73.404049, -4.147383, -0.063072, 0.006315, -0.004093, -0.000581),
    (11732.136242, 74.753761, -4.22095, -0.06565, 0.007036, -0.004628, -0.000171),
    (11962.179415, 76.150793, -4.296886, -0.070458, 0.006542, -0.004021, -0.000769),
    (12201.425274, 77.595917, -4.374389, -0.076492, 0.006676, -0.003406, 0.000292),
    (12450.437416, 79.088668, -4.455121, -0.082601, 0.006231, -0.00306, -5e-05),
    (12709.824676, 80.631149, -4.537669, -0.089462, 0.007344, -0.004112, -0.000702),
)
# fmt: on


def simulate(
    wavelength,
    star=None,
    telluric=None,
    *,
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
    wavelength : array_like or Quantity, shape (n_pix,)
        Pixel centres, vacuum, ascending [Å]. Edges lie midway between neighbours, see `pixel_edges`.
    star, telluric : table, optional
        Lines, as in `simulate_flux`.
    snr : float, optional
        Signal-to-noise ratio per pixel at the continuum; ``None`` gives noise-free flux without uncertainty.
    seed : int
        Of the noise.
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
    specutils.Spectrum
        Dimensionless flux with `~astropy.nddata.StdDevUncertainty`. ``meta["truth"]`` is a plain dictionary: the
        options given and ``rv``, ``vsini``, ``resolving_power``, ``continuum``, ``snr``, ``seed``, ``read_floor``,
        ``wavelength_drift``, ``scattered_light``, ``uncertainty_factor``, the lines ``star`` and ``telluric``
        (`~astropy.table.QTable` or None), and the noise-free ``flux``, shape (n_pix,).
    """
    wavelength = in_unit(wavelength, u.AA, "wavelength")
    edges = pixel_edges(wavelength) if edges is None else checked_edges(edges)
    if edges.shape != (wavelength.size, 2):
        raise ValueError(
            f"edges have shape {edges.shape}: expected ({wavelength.size}, 2), one pair for each wavelength"
        )
    drift = number(wavelength_drift, u.km / u.s, "wavelength_drift")
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
    truth = {"rv": 0.0, "vsini": 0.0, "resolving_power": None, **options}
    truth = {key: value(wavelength) if callable(value) else value for key, value in truth.items()}
    truth |= {"continuum": [float(term) for term in continuum], "snr": snr, "seed": seed, "read_floor": read_floor}
    truth |= {
        "wavelength_drift": drift,
        "scattered_light": float(scattered_light),
        "uncertainty_factor": float(uncertainty_factor),
    }
    truth |= {"star": star if star is None else line_table(star), "flux": flux}
    truth |= {"telluric": telluric if telluric is None else line_table(telluric)}
    observed, uncertainty = flux, None
    if snr is not None:
        level = float(continuum[0])
        if not (snr > 0 and level > 0 and 0 <= read_floor <= 1):
            raise ValueError(
                f"noise needs snr > 0, continuum[0] > 0 and 0 <= read_floor <= 1, "
                f"got snr={snr}, continuum[0]={level}, read_floor={read_floor}: use snr=None for no noise"
            )
        sigma = level / snr * np.sqrt((1.0 - read_floor) * np.maximum(flux / level, 0.0) + read_floor)
        observed = flux + sigma * np.random.default_rng(seed).standard_normal(flux.size)
        uncertainty = StdDevUncertainty(uncertainty_factor * sigma)
    return Spectrum(
        spectral_axis=wavelength * u.AA,
        flux=observed * u.dimensionless_unscaled,
        uncertainty=uncertainty,
        meta={"source": "specutils_blase.simulate", "medium": "vacuum", "truth": truth},
    )


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


def hpf_wavelengths(order):
    """Pixel centres of one order of the Habitable-zone Planet Finder.

    The wavelength solution of HPF's Goldilocks pipeline, science fibre, as stored in its files: a polynomial of degree
    6 in the pixel, tabulated as Legendre coefficients (reproduced to 2e-6 Å; it drifted by 1.5e-3 Å in 2.4 years).

    Parameters
    ----------
    order : int
        0 (8079-8184 Å) to 27 (12625-12786 Å), muler's numbering.

    Returns
    -------
    numpy.ndarray, shape (2048,)
        Vacuum wavelengths [Å], ascending.
    """
    if order not in range(len(HPF_LEGENDRE)):
        raise ValueError(f"order={order!r}: HPF has orders 0 to {len(HPF_LEGENDRE) - 1}")
    return legval(np.linspace(-1.0, 1.0, 2048), HPF_LEGENDRE[order])
