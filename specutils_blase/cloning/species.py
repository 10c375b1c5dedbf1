"""Clones that know their species: one template a molecule, cloned apart and merged into one list of lines.

A telluric spectrum is the product of those of its molecules, and so is the flux of the laws "log" and "linear".

Does not live here: the cloning of one template (`clone`), the amount of each molecule at an observation
(`fitting.start.tellurics`).
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from specutils import Spectrum

from ..model.emulator import LineEmulator
from ..physics.saturation import SaturationLaw
from ..quality.clones import assess_clone
from ..spectra.frame import spectrum_on
from ..spectra.reading import read_spectrum
from .clone import CloneResult, NoLinesError, clone, clone_ledger, clone_model
from .refinement import Template, worst_places

logger = logging.getLogger(__name__)

FACTORISING = ("log", "linear")
"""Laws in which the flux of all lines is the product of the fluxes of some and of the others."""


def clone_species(
    templates: Mapping[str, Spectrum],
    *,
    flux_scale: str = "log",
    resolving_power=None,
    component: str = "telluric",
    **options,
) -> CloneResult:
    r"""Clone one template a species, and merge the lines into one emulator with the species of each line.

    The template of the result is the product :math:`\prod_s T_s` of the templates that have lines, each divided by its
    own continuum, and its RMS that of this product minus the merged clone. Species whose lines are all weaker than the
    prominence are left out; ``settings["without_lines"]`` names them. `fit` scales each species by a factor of its own
    before any line is free.

    Parameters
    ----------
    templates : mapping of str to Spectrum
        Species to its spectrum alone, all on one spectral axis, such as `specutils_blase.templates.psg_hk_species`.
    flux_scale : "log" or "linear"
        One law for all.
    resolving_power : float, optional
        See `clone`; by default "resolving_power" in the templates' meta.
    component : "telluric" or "star"
        Component of the lines in the ledger.
    **options
        The others of `clone`, for every species: region, prominence, medium, rms_target, max_iterations, progress, …

    Returns
    -------
    CloneResult
        ``settings["species"]`` has lines, RMS, success and message of each species.

    Warns
    -----
    BlaseQualityWarning
        Where the clone of a species is poor.

    Raises
    ------
    ValueError
        If there is no template, the axes differ, the law does not factorise, no species has a line, or a template
        cannot be cloned; the message names the species.
    """
    if not isinstance(templates, Mapping) or not templates:
        raise ValueError(
            f"expected a mapping of species to template spectra, got {type(templates).__name__}"
            f"{' without any' if isinstance(templates, Mapping) else ''}"
        )
    name = flux_scale.name if isinstance(flux_scale, SaturationLaw) else flux_scale
    if name not in FACTORISING:
        raise ValueError(
            f"expected flux_scale {' or '.join(FACTORISING)}, in which species multiply, got {name!r}: clone their "
            "product with `clone` for another law"
        )
    first = next(iter(templates.values()))
    powers = {template.meta.get("resolving_power") for template in templates.values() if isinstance(template, Spectrum)}
    if resolving_power is None and len(powers) > 1:
        raise ValueError(f"the templates have several resolving powers, {powers}: give one, or bring them to one")
    clones, without = {}, []
    for species, template in templates.items():
        if not isinstance(template, Spectrum):
            raise ValueError(f"expected a Spectrum for {species}, got {type(template).__name__}")
        axis = template.spectral_axis
        if axis.unit != first.spectral_axis.unit or not np.array_equal(axis.value, first.spectral_axis.value):
            raise ValueError(f"the template of {species} has another spectral axis than the first: resample it")
        power = template.meta.get("resolving_power") if resolving_power is None else resolving_power
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                clones[species] = clone(template, flux_scale=flux_scale, resolving_power=power, **options)
            except NoLinesError:
                without.append(species)
            except ValueError as error:
                raise ValueError(f"{species}: {error}") from error
        for warning in caught:
            warnings.warn(f"{species}: {warning.message}", warning.category, stacklevel=2)
    if not clones:
        raise NoLinesError(f"none of {', '.join(without)} has a line of the prominence asked for: lower it")
    logger.info("no lines of %s", ", ".join(without) or "no species missing")
    return _merged(clones, without, component)


def _merged(clones: dict[str, CloneResult], without: list[str], component: str) -> CloneResult:
    """One clone with the lines of all species, of the product of their templates."""
    example = next(iter(clones.values()))
    emulator, start_area = _merged_lines(clones)
    product = np.prod([result.template.flux.value for result in clones.values()], axis=0)
    data, frame = read_spectrum(example.template)
    power = example.settings["resolving_power"]
    with torch.no_grad():
        flux = clone_model(emulator, data.wavelength, data.edges, power)().numpy()
    rms = float(np.sqrt(np.nanmean((product - flux) ** 2)))
    template = Template(data.wavelength, data.edges, product, np.ones(product.size, dtype=bool), power)
    settings = _merged_settings(clones) | {"worst": worst_places(template, emulator, flux), "without_lines": without}
    failed = [name for name, result in clones.items() if not result.success]
    message = f"{len(emulator)} lines of {', '.join(clones)}, RMS {100 * rms:.3f} %"
    message += f"; no lines of {', '.join(without)}" if without else ""
    message += "".join(f"; {name}: {clones[name].message}" for name in failed)
    history = [entry for result in clones.values() for entry in result.history]
    result = CloneResult(
        emulator,
        clone_ledger(emulator, start_area, settings, component),
        rms,
        [entry | {"iteration": k} for k, entry in enumerate(history)],
        spectrum_on(data.wavelength, product, meta=dict(frame.meta) | {"source": settings["template"]}),
        spectrum_on(data.wavelength, flux, meta={"source": "specutils_blase clone"}),
        not failed,
        message,
        settings,
    )
    return result.assessed(assess_clone(result))


def _merged_lines(clones: dict[str, CloneResult]) -> tuple[LineEmulator, torch.Tensor]:
    """Emulator of the lines of all clones in order of wavelength, and ln area of each at its first guess."""
    example = next(iter(clones.values())).emulator
    emulators = [result.emulator for result in clones.values()]
    with torch.no_grad():
        columns = [
            torch.cat([getattr(emulator, name).double() for emulator in emulators])
            for name in ("center", "area", "sigma", "gamma", "rv_offset", "sign", "ln_area")
        ]
    change = torch.cat([torch.as_tensor(np.asarray(result.ledger["delta_ln_area"])) for result in clones.values()])
    species = np.repeat(list(clones), [len(emulator) for emulator in emulators])
    order = torch.argsort(columns[0], stable=True)
    center, area, sigma, gamma, rv_offset, sign, ln_area = (column[order] for column in columns)
    emulator = LineEmulator(
        center,
        area,
        sigma,
        gamma,
        rv_offset=rv_offset,
        sign=sign,
        law=example.law,
        wavelength_range=example.wavelength_range,
        species=species[order.numpy()].tolist(),
    )
    return emulator, ln_area - change[order]


def _merged_settings(clones: dict[str, CloneResult]) -> dict:
    """Settings that all clones share, and the outcome of each species."""
    example = next(iter(clones.values()))
    species = {
        name: {"lines": len(result.emulator), "rms": result.rms, "success": result.success, "message": result.message}
        for name, result in clones.items()
    }
    return {
        **{key: value for key, value in example.settings.items() if key != "rounds"},
        "noise": math.hypot(*(result.settings["noise"] for result in clones.values())),
        "template": "; ".join(result.settings["template"] for result in clones.values()),
        "species": species,
    }
