r"""A spectrum of the model: its lines, how it moves and rotates, whether it shines or absorbs.

A model holds a list of components. With the light :math:`S_c` of those that shine and the transmission :math:`T_c` of
those that absorb, the flux before the line spread is

.. math:: F(λ) = \sum_{c\ \mathrm{shines}} a_c S_c(λ) \prod_{c\ \mathrm{absorbs}} T_c(λ)^{a_c}.

Does not live here: Voigt lines (`model.emulator`), the kernels of motion (`model.extrinsic`), the instrument
(`model.instrument`).
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy, deepcopy
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from ..physics.grids import DoublePrecision, Sampling
from ..physics.kernels import tap_tangents
from ..physics.line_sum import Windows
from .emulator import LineEmulator
from .extrinsic import DopplerShift, RotationalBroadening
from .global_parameter import GlobalParameter
from .line_view import LineView

LAW_PRIOR, LAW_STEP = 1.0, 0.7
"""Prior width of a saturation law's coefficients, and the largest change of one in an iteration."""

AMOUNT_PRIOR, AMOUNT_STEP = 10.0, 0.3
"""Prior width of an amount, wide enough to say nothing, and its largest change in an iteration."""


@dataclass(frozen=True)
class ComponentSpectra:
    """One evaluation of a component on a sampling.

    Parameters
    ----------
    opacity : Tensor or None
        As of `LineEmulator.opacity`; None without lines.
    spectrum : Tensor, (n,)
        Doppler-shifted, before rotation.
    seen : Tensor, (n,)
        After rotation and with its amount: its factor, or its term, of the flux.
    """

    opacity: Tensor | None
    spectrum: Tensor
    seen: Tensor

    def detach(self) -> ComponentSpectra:
        """The same values without their autograd graph."""
        opacity = None if self.opacity is None else self.opacity.detach()
        return ComponentSpectra(opacity, self.spectrum.detach(), self.seen.detach())


class Component(DoublePrecision):
    """One spectrum of a model.

    A subclass without lines overrides `evaluate` and lists what it can learn in `global_parameters`; derivatives then
    follow by automatic differentiation.

    Parameters
    ----------
    name : str
        As tables call it: "star", "telluric", ….
    emulator : LineEmulator, optional
        Its lines; none by default.
    doppler : DopplerShift, optional
        None for what does not move against the observatory.
    rotation : RotationalBroadening, optional
        None for what does not rotate. Its step is that of each order's grid.
    shines : bool
        Whether it adds light; otherwise it takes light away from all that shines.
    amount : float, optional
        Factor on its light, or on its optical depth. Learnable as ``NAME_amount`` where given; 1 otherwise.
    prefix : str, optional
        Of the names of its velocities and rotation in ``fit(free=)`` and in tables: ``NAME_`` by default.
    free_lines : iterable of str, optional
        Line parameters that a fit may change, among "ln_area", "ln_sigma", "ln_gamma", "rv_offset": all by default,
        none for ().

    Examples
    --------
    >>> import specutils_blase as sb
    >>> from specutils_blase.model import Component, DopplerShift
    >>> lines = sb.LineEmulator([8600.0], [0.1], [0.05], [0.02])
    >>> companion = Component("companion", lines, doppler=DopplerShift(40.0), shines=True, amount=0.2)
    >>> [parameter.name for parameter in companion.global_parameters()]
    ['companion_rv', 'companion_amount']
    """

    def __init__(
        self,
        name: str,
        emulator: LineEmulator | None = None,
        *,
        doppler: DopplerShift | None = None,
        rotation: RotationalBroadening | None = None,
        shines: bool = False,
        amount: float | None = None,
        prefix: str | None = None,
        free_lines: Iterable[str] | None = None,
    ):
        super().__init__()
        if not name or "." in name or hasattr(nn.ModuleDict, name):
            raise ValueError(f"expected the name of a component, such as 'companion', got {name!r}")
        self.name, self.shines = name, shines
        self.free_lines = None if free_lines is None else tuple(free_lines)
        self.prefix = f"{name}_" if prefix is None else prefix
        self.emulator, self.doppler, self.rotation = emulator, doppler, rotation
        self.amount = None if amount is None else nn.Parameter(torch.tensor(float(amount), dtype=torch.float64))
        self.double = () if amount is None else ("amount",)

    @property
    def doppler_factor(self) -> Tensor | float:
        """1 + v/c; 1 for what does not move."""
        return 1.0 if self.doppler is None else self.doppler.factor

    @property
    def velocity(self) -> float:
        """Present velocity [km/s]; 0 for what does not move."""
        return 0.0 if self.doppler is None else self.doppler.rv.item()

    def evaluate(self, sampling: Sampling, windows: Windows | None = None) -> tuple[Tensor | None, Tensor]:
        """Opacity, where there are lines, and spectrum at observed wavelengths, before rotation."""
        factor = self.doppler_factor
        opacity = self.emulator.opacity(sampling, factor, windows)
        return opacity, self.emulator.flux(opacity, sampling.wavelength / factor)[0]

    def spectra(self, sampling: Sampling, windows: Windows | None = None) -> ComponentSpectra:
        """All that one evaluation gives."""
        opacity, spectrum = self.evaluate(sampling, windows)
        return ComponentSpectra(opacity, spectrum, self.appear(spectrum))

    def appear(self, spectrum: Tensor) -> Tensor:
        """A spectrum of this component rotated, and by its amount."""
        rotated = spectrum if self.rotation is None else self.rotation(spectrum)
        if self.amount is None:
            return rotated
        amount = self.amount.to(rotated.dtype)
        return amount * rotated if self.shines else rotated**amount

    def gain(self, spectra: ComponentSpectra) -> Tensor | None:
        """∂ seen / ∂ (rotated spectrum) on the nodes; None for 1."""
        if self.amount is None:
            return None
        amount = self.amount.detach().to(spectra.seen.dtype)
        if self.shines:
            return amount.expand_as(spectra.seen)
        rotated = spectra.spectrum if self.rotation is None else self.rotation(spectra.spectrum)
        return amount * rotated ** (amount - 1.0)

    def global_parameters(self) -> tuple[GlobalParameter, ...]:
        """Velocity, rotation, the coefficients of its law and its amount, as far as it has them."""
        found = []
        for stage in ("doppler", "rotation"):
            for p in () if getattr(self, stage) is None else getattr(self, stage).global_parameters():
                labels = tuple(self.prefix + label for label in p.labels)
                found.append(replace(p, name=self.prefix + p.name, attribute=f"{stage}.{p.attribute}", labels=labels))
        if self.emulator is not None and self.emulator.law.n_parameter:
            law = f"{self.name}_law"
            found.append(GlobalParameter(law, "emulator.law.coefficients", LAW_PRIOR, LAW_STEP, listed_last=True))
        if self.amount is not None:
            label = f"{self.name}_amount"
            found.append(GlobalParameter(label, "amount", AMOUNT_PRIOR, AMOUNT_STEP, (label,), listed_last=True))
        return tuple(found)

    def tangents(self, parameter: GlobalParameter, spectra: ComponentSpectra, sampling: Sampling) -> Tensor:
        """Change of `seen` with each number of a parameter's coordinate, (n_number, n_node)."""
        stage, _, attribute = parameter.attribute.partition(".")
        if stage == "doppler":
            return self._after_rotation(self.doppler.tangents(spectra.spectrum, sampling), spectra)
        if stage == "rotation":
            change, gain = self.rotation.tangents(attribute, spectra.spectrum), self.gain(spectra)
            return change if gain is None else change * gain
        if stage == "emulator":
            emulator = self.emulator
            change = emulator.law.parameter_derivatives(spectra.opacity[0], sampling.wavelength / self.doppler_factor)
            if emulator.has_emission:
                change = change * (1.0 + spectra.opacity[1])
            return self._after_rotation(change, spectra)
        return self._by_autograd(parameter, sampling)

    def _after_rotation(self, change: Tensor, spectra: ComponentSpectra) -> Tensor:
        if self.rotation is not None:
            change = self.rotation(change)
        gain = self.gain(spectra)
        return change if gain is None else change * gain

    def _by_autograd(self, parameter: GlobalParameter, sampling: Sampling) -> Tensor:
        tensor = getattr(self, parameter.attribute).detach()

        def seen(coordinate: Tensor) -> Tensor:
            value = parameter.transform.tensor(coordinate.reshape(tensor.shape))
            return torch.func.functional_call(self, {parameter.attribute: value}, (sampling,))

        point = parameter.transform.coordinate(tensor).reshape(-1)
        return tap_tangents(seen, point, torch.eye(point.numel(), dtype=point.dtype, device=point.device))

    def forward(self, sampling: Sampling) -> Tensor:
        """Its factor, or its term, of the flux on the sampling, (n,)."""
        return self.spectra(sampling).seen

    def flux_tangents(self, parameter: GlobalParameter, propagation) -> Tensor:
        """Derivatives of the flux to each number of a parameter, (n_number, n_pixel).

        Parameters
        ----------
        parameter : GlobalParameter
        propagation : inference.linear.jacobian.Propagation
            One evaluation of the order's model.
        """
        spectra = propagation.stages.parts[self.name]
        change = self.tangents(parameter, spectra, propagation.model.sampling)
        return propagation.from_seen(self.name, change)

    def placed(self, step: float, lines: Tensor | None = None) -> Component:
        """The component as one order sees it, its parameters shared.

        Parameters
        ----------
        step : float
            Of the order's grid, km/s.
        lines : Tensor, optional
            Those that the order sees, as a `LineView`; the emulator itself where not given.
        """
        other = self._sharing()
        if self.rotation is not None:
            other.rotation = self.rotation.placed(step)
        if lines is not None and self.emulator is not None:
            other.emulator = LineView(self.emulator, lines)
        return other

    def with_lines(self, emulator: LineEmulator) -> Component:
        """The component with other lines, all else shared."""
        other = self._sharing()
        other.emulator = emulator
        return other

    def alone(self, emulator: LineEmulator | None) -> Component:
        """The component with other lines and copies of all else."""
        other = deepcopy(self.with_lines(None))
        other.emulator = emulator
        return other

    def at(self, rv: float, vsini: float, limb_darkening: tuple[float, float]) -> Component:
        """The component with a motion of its own, from these values on [km/s]."""
        other = self._sharing()
        other.doppler = DopplerShift(rv)
        other.rotation = RotationalBroadening(vsini, limb_darkening=limb_darkening)
        return other

    @property
    def vsini(self) -> float:
        """Present rotation velocity [km/s]; 0 for what does not rotate."""
        return 0.0 if self.rotation is None else self.rotation.vsini.item()

    def _sharing(self) -> Component:
        """A copy that shares parameters and stages, and can have other ones instead."""
        other = copy(self)
        for name in ("_parameters", "_buffers", "_modules"):
            other.__dict__[name] = dict(self.__dict__[name])
        return other


class OfComponents:
    """What a model of components, in ``parts``, tells of them."""

    parts: nn.ModuleDict

    def __setattr__(self, name: str, value) -> None:
        # torch would keep a module of this name beside the component, where nothing reads it.
        if name in ("star", "telluric"):
            self.parts[name].emulator = value
        elif name in ("doppler", "rotation"):
            setattr(self.parts["star"], name, value)
        else:
            super().__setattr__(name, value)

    @property
    def components(self) -> dict[str, LineEmulator]:
        """The emulators present, by name of their component."""
        return {name: part.emulator for name, part in self.parts.items() if part.emulator is not None}

    @property
    def target(self) -> Component | None:
        """What is observed: the first component that shines and moves; its velocity and rotation are looked for."""
        return next((part for part in self.parts.values() if part.shines and part.doppler is not None), None)

    @property
    def atmosphere(self) -> Component | None:
        """What the light passes at rest: the first component of lines that absorb and do not move."""
        still = (part for part in self.parts.values() if not part.shines and part.doppler is None)
        return next((part for part in still if part.emulator is not None), None)

    def _of_star(self, stage: str):
        return getattr(self.parts["star"], stage) if "star" in self.parts else None

    @property
    def star(self) -> LineEmulator | None:
        """Lines of the star."""
        return self._of_star("emulator")

    @property
    def telluric(self) -> LineEmulator | None:
        """Lines of the Earth's atmosphere."""
        return self.parts["telluric"].emulator if "telluric" in self.parts else None

    @property
    def doppler(self) -> DopplerShift | None:
        """Motion of the star."""
        return self._of_star("doppler")

    @property
    def rotation(self) -> RotationalBroadening | None:
        """Rotation of the star."""
        return self._of_star("rotation")


def light(parts: dict[str, Component], spectra: dict[str, ComponentSpectra]) -> Tensor | None:
    """Sum of all that shines, on the nodes; None where nothing does."""
    shining = [spectra[name].seen for name, part in parts.items() if part.shines]
    return sum(shining[1:], shining[0]) if shining else None


def product(parts: dict[str, Component], spectra: dict[str, ComponentSpectra], but: str | None = None) -> Tensor | None:
    """The flux before the line spread, or what a change of one component is multiplied with.

    Parameters
    ----------
    parts, spectra : dict
        Component to itself, and to its evaluation.
    but : str, optional
        The component that is left out; with it, other light where it shines, for a change of one term is no change of
        another.

    Returns
    -------
    Tensor or None
        None for 1.
    """
    factors = [] if but is not None and parts[but].shines else [light(parts, spectra)]
    factors += [spectra[name].seen for name, part in parts.items() if not part.shines and name != but]
    factors = [factor for factor in factors if factor is not None]
    result = None
    for factor in factors:
        result = factor if result is None else result * factor
    return result
