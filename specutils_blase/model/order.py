"""The forward model of one order: from line parameters to data pixels.

``components (lines → Doppler → rotation) → product → line spread → pixels → continuum``. Every stage is a module with
one physical name and may be absent. The same model clones a template: one emulator on the template's own sampling,
nothing else.

Does not live here: derivatives for the solver (`inference.linear.jacobian`), data and weights (`spectra.data`,
`fitting`), how components combine (`model.component`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..physics.grids import SPEED_OF_LIGHT, Sampling, velocity_grid
from ..physics.kernels import FWHM_PER_SIGMA
from ..physics.voigt import voigt_fwhm
from .component import Component, ComponentSpectra, OfComponents, product
from .emulator import LineEmulator, Windows
from .extrinsic import DopplerShift, RotationalBroadening
from .global_parameter import Owned, owned_by
from .instrument import Continuum, LineSpread, LineSpreadFunction, PixelBinning

MIN_STEP, MAX_STEP = 0.1, 1.0
"""km/s; bounds of the automatic grid step."""

STEPS_PER_LINE_SPREAD = 16.0
"""Steps in the full width at half maximum of the line spread beyond which narrow lines make the grid no finer."""


@dataclass(frozen=True)
class Stages:
    """Every intermediate spectrum of one evaluation.

    Parameters
    ----------
    parts : dict
        Component to its `ComponentSpectra`.
    product : Tensor, (n,)
        On the sampling, before the line spread.
    smeared : Tensor, (n,)
        After the line spread.
    binned, flux : Tensor, (n_pixel,)
        On the output pixels, before and after the continuum.
    """

    parts: dict[str, ComponentSpectra]
    product: Tensor
    smeared: Tensor
    binned: Tensor
    flux: Tensor

    def detach(self) -> Stages:
        """The same values without their autograd graph."""
        parts = {name: spectra.detach() for name, spectra in self.parts.items()}
        return Stages(parts, *(value.detach() for value in (self.product, self.smeared, self.binned, self.flux)))

    @property
    def star(self) -> Tensor | None:
        """The star on the sampling, before rotation; None without one."""
        return self.parts["star"].spectrum if "star" in self.parts else None

    @property
    def rotated(self) -> Tensor | None:
        """The star on the sampling, after rotation; None without one."""
        return self.parts["star"].seen if "star" in self.parts else None

    @property
    def sky(self) -> Tensor | None:
        """The telluric transmission on the sampling; None without one."""
        return self.parts["telluric"].seen if "telluric" in self.parts else None


class ForwardModel(OfComponents, nn.Module):
    """Components, through motion and instrument, onto the pixels of one order.

    Parameters
    ----------
    sampling : Sampling
        Wavelengths at which emulators are summed. Uniform in velocity if any kernel is present.
    star, telluric : LineEmulator, optional
        Lines of a star that moves with `doppler` and rotates with `rotation`, and of the Earth's atmosphere.
    doppler, rotation : nn.Module, optional
        Motion of the star; absent ones are skipped.
    line_spread, pixels, continuum : nn.Module, optional
        Stages; an absent one is skipped.
    components : iterable of Component
        Further ones, or all. At least one component is needed.

    See Also
    --------
    for_order : builds all of this from the pixels of an order.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        star: LineEmulator | None = None,
        telluric: LineEmulator | None = None,
        doppler: DopplerShift | None = None,
        rotation: RotationalBroadening | None = None,
        line_spread: LineSpread | None = None,
        pixels: PixelBinning | None = None,
        continuum: Continuum | None = None,
        components: Iterable[Component] = (),
    ):
        super().__init__()
        parts = [*star_and_telluric(star, telluric, doppler, rotation), *components]
        if not parts:
            raise ValueError("a forward model needs a star, a telluric component, or both")
        self.sampling = sampling
        self.parts = nn.ModuleDict({part.name: part for part in parts})
        if len(self.parts) < len(parts):
            raise ValueError(f"two components have one name: {', '.join(part.name for part in parts)}")
        self.line_spread, self.pixels, self.continuum = line_spread, pixels, continuum
        self._windows: dict[str, Windows] = {}
        names = [parameter.name for stage in self._learning_stages for parameter in stage.global_parameters()]
        if len(set(names)) < len(names):
            twice = ", ".join(sorted({name for name in names if names.count(name) > 1}))
            raise ValueError(f"expected parameters of different names, got {twice} twice: give a component a prefix")

    @property
    def _learning_stages(self) -> list[nn.Module]:
        """The stages that list global parameters."""
        stages = (*self.parts.values(), self.line_spread, self.continuum)
        return [stage for stage in stages if stage is not None]

    @classmethod
    def for_order(
        cls,
        wavelength: Tensor,
        edges: Tensor,
        *,
        star: LineEmulator | None = None,
        telluric: LineEmulator | None = None,
        rv: float = 0.0,
        vsini: float = 0.0,
        limb_darkening: tuple[float, float] = (0.0, 0.0),
        components: Sequence[Component] = (),
        lines: dict[str, Tensor] | None = None,
        resolving_power=None,
        line_spread: LineSpread | None = None,
        continuum_degree: int | None = 2,
        velocity_step: float | None = None,
    ) -> ForwardModel:
        """Build the model of one order.

        Parameters
        ----------
        wavelength : Tensor, (n,)
            Pixel centres, vacuum Å, ascending.
        edges : Tensor, (n, 2)
            Pixel edges in Å.
        star, telluric : LineEmulator, optional
            The two usual components.
        rv, vsini : float
            Starting values of the star in km/s.
        limb_darkening : (float, float)
            Quadratic coefficients of the star.
        components : sequence of Component
            Further ones, whose parameters the model shares.
        lines : dict, optional
            Component to the lines of it that the order can see; where not given, it owns all of them.
        resolving_power : float, sequence or None
            See `LineSpread`; None for no line spread.
        line_spread : LineSpread, optional
            Of which a copy is placed on the grid; a Gaussian where not given.
        continuum_degree : int or None
            Degree of the continuum polynomial; None for none.
        velocity_step : float, optional
            Grid step in km/s; see `grid_step`.
        """
        motion = DopplerShift(rv), RotationalBroadening(vsini, limb_darkening=limb_darkening)
        parts = [*star_and_telluric(star, telluric, *motion), *components]
        first = resolving_power[0] if isinstance(resolving_power, (list, tuple)) else resolving_power
        if velocity_step is None:
            velocity_step = step_for(wavelength, parts, None if resolving_power is None else float(first))
        parts = [part.placed(velocity_step, None if lines is None else lines.get(part.name)) for part in parts]
        margin = 8.0 * velocity_step
        margin += max((part.rotation.max_vsini for part in parts if part.rotation is not None), default=0.0)
        spread = LineSpreadFunction() if line_spread is None else line_spread
        if resolving_power is not None:
            margin += 1.5 * spread.reach * SPEED_OF_LIGHT / (float(first) * FWHM_PER_SIGMA)
        low = float(edges.min()) * (1.0 - margin / SPEED_OF_LIGHT)
        high = float(edges.max()) * (1.0 + margin / SPEED_OF_LIGHT)
        grid = velocity_grid(low, high, velocity_step)
        return cls(
            Sampling(grid),
            components=parts,
            line_spread=None if resolving_power is None else spread.placed(resolving_power, grid),
            pixels=PixelBinning(edges, grid),
            continuum=None if continuum_degree is None else Continuum(wavelength, continuum_degree),
        )

    def with_components(self, **emulators: LineEmulator) -> ForwardModel:
        """A model of other lines behind the same stages, which both models then share."""
        parts = [part.with_lines(emulators[name]) if name in emulators else part for name, part in self.parts.items()]
        stages = {name: getattr(self, name) for name in ("line_spread", "pixels", "continuum")}
        return ForwardModel(self.sampling, components=parts, **stages)

    def with_emulators(self, emulators: dict[str, LineEmulator], seen: Sequence[dict[str, Tensor]]) -> ForwardModel:
        """The same for a model of any number of orders; see `EchelleModel.with_emulators`."""
        return self.with_components(**emulators)

    def seen_lines(self, k: int) -> dict[str, Tensor]:
        """Component to the lines of it that order k can see: here all of them."""
        return {name: torch.arange(len(emulator)) for name, emulator in self.components.items()}

    @property
    def orders(self) -> tuple[ForwardModel, ...]:
        """The models of the single orders: this one. An `EchelleModel` has several."""
        return (self,)

    def rows(self, k: int) -> Tensor | None:
        """Where the pixels of order k stand among those of all orders; None where they are all."""
        return None

    def merge(self, parts: Sequence[Tensor]) -> Tensor:
        """One value a pixel of every order → one tensor, as solvers see them."""
        return parts[0]

    def split(self, merged: Tensor) -> list[Tensor]:
        """The inverse of `merge`."""
        return [merged]

    def suffix(self, k: int) -> str:
        """What follows the name of a parameter that order k has for itself: nothing, for there is one order."""
        return ""

    def global_parameters(self) -> dict[str, Owned]:
        """All parameters that touch every pixel, by name: of the components, then of the instrument."""
        return {name: owned for stage in self._learning_stages for name, owned in owned_by(stage).items()}

    @property
    def n_pixel(self) -> int:
        """Number of output pixels."""
        return len(self.sampling) if self.pixels is None else self.pixels.start.numel()

    def doppler_factor(self, component: str) -> Tensor | float:
        """1 + v/c of a component; 1 for what does not move."""
        return self.parts[component].doppler_factor

    def freeze_windows(self) -> None:
        """Keep the lines' present windows for all further evaluations, until `thaw_windows`.

        For use where windows cannot be built, such as the meta device, or where lines are known to stay put.
        """
        self._windows = {
            name: emulator.windows(self.sampling, self.doppler_factor(name))
            for name, emulator in self.components.items()
        }

    def thaw_windows(self) -> None:
        """Build windows afresh at every evaluation again."""
        self._windows = {}

    def _apply(self, fn, recurse=True):
        before = self.sampling.wavelength.device
        super()._apply(fn, recurse)
        device = self.sampling.wavelength.device
        if before.type == "meta" and device.type != "meta":
            self.thaw_windows()  # they have no values there to bring along
        self._windows = {name: windows.to(device) for name, windows in self._windows.items()}
        return self

    def stages(self) -> Stages:
        """Evaluate the model and keep every intermediate spectrum."""
        parts = {name: part.spectra(self.sampling, self._windows.get(name)) for name, part in self.parts.items()}
        before = product(self.parts, parts)
        smeared = before if self.line_spread is None else self.line_spread(before)
        binned = smeared if self.pixels is None else self.pixels(smeared)
        flux = binned if self.continuum is None else self.continuum(binned)
        return Stages(parts, before, smeared, binned, flux)

    def forward(self) -> Tensor:
        """Model flux on the output pixels, (n,)."""
        return self.stages().flux

    @torch.no_grad()
    def observed(self, component: str) -> Tensor:
        """One component alone as the instrument would see it, continuum 1, (n,)."""
        return self.through_instrument(self.parts[component].spectra(self.sampling, self._windows.get(component)).seen)

    def through_instrument(self, flux: Tensor) -> Tensor:
        """A spectrum on the sampling as the instrument would see it, (n,): line spread and pixels."""
        smeared = flux if self.line_spread is None else self.line_spread(flux)
        return smeared if self.pixels is None else self.pixels(smeared)


def star_and_telluric(
    star: LineEmulator | None,
    telluric: LineEmulator | None,
    doppler: DopplerShift | None = None,
    rotation: RotationalBroadening | None = None,
) -> list[Component]:
    """The two usual components, as far as there are lines of them: a star that shines, tellurics that absorb."""
    parts = []
    if star is not None:
        parts.append(Component("star", star, doppler=doppler, rotation=rotation, shines=True, prefix=""))
    if telluric is not None:
        parts.append(Component("telluric", telluric))
    return parts


def grid_step(
    wavelength: Tensor,
    star: LineEmulator | None,
    telluric: LineEmulator | None,
    rv: float,
    resolving_power: float | None = None,
) -> float:
    """Velocity step [km/s] of the grid of a star and tellurics; see `step_for`."""
    return step_for(wavelength, star_and_telluric(star, telluric, DopplerShift(rv)), resolving_power)


def step_for(wavelength: Tensor, parts: Sequence[Component], resolving_power: float | None = None) -> float:
    """Velocity step [km/s] that resolves pixels and lines: a quarter pixel, a third of the narrowest FWHM.

    With a line spread of an échelle's width behind it, the flux is then within 1e-5 of brute force at R = 55,000 and
    6e-5 at 100,000. Without one, the cubic interpolant between the nodes shows: 2.5e-4 on the narrowest telluric lines;
    give a finer step there, and for lines deeper than the linear law's guard. The narrowest percentile of the lines in
    reach counts, so that one stray line of no width does not set the cost of the whole order; and a line spread is
    never divided into more than `STEPS_PER_LINE_SPREAD`: clones of blurred templates have lines far narrower than the
    blur tells, and of those half a width suffices for their areas (the error of a Gaussian's is 2e-3 of it at a step of
    1.3 of its widths, exp(-2π²σ²/step²)).
    """
    pixel = float((wavelength.diff() / wavelength[1:]).median()) * SPEED_OF_LIGHT
    step = min(pixel / 4.0, MAX_STEP)
    for part in parts:
        emulator, factor = part.emulator, 1.0 + part.velocity / SPEED_OF_LIGHT
        if emulator is None:
            continue
        center = emulator.center * factor
        near = (center > wavelength[0]) & (center < wavelength[-1])
        if bool(near.any()):
            with torch.no_grad():
                fwhm = voigt_fwhm(emulator.sigma, emulator.gamma)[near] / emulator.center[near] * SPEED_OF_LIGHT
            step = min(step, float(fwhm.quantile(0.01)) / 3.0)
    if resolving_power is not None:
        step = max(step, min(SPEED_OF_LIGHT / resolving_power / STEPS_PER_LINE_SPREAD, pixel / 4.0))
    return max(step, MIN_STEP)
