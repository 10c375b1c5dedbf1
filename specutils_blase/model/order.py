"""The forward model of one order: from line parameters to data pixels.

``star → Doppler → rotation → × sky → line spread → pixels → continuum``. Every stage is a module with one physical
name and may be absent. The same model clones a template: one emulator on the template's own sampling, nothing else.

Does not live here: derivatives for the solver (`jacobian`), data and weights (`data`, `fitting`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..physics.grids import SPEED_OF_LIGHT, Sampling, velocity_grid
from ..physics.kernels import FWHM_PER_SIGMA, GAUSSIAN_REACH
from ..physics.voigt import voigt_fwhm
from .emulator import LineEmulator, Windows
from .extrinsic import DopplerShift, RotationalBroadening
from .instrument import Continuum, LineSpreadFunction, PixelBinning

MIN_STEP, MAX_STEP = 0.1, 1.0
"""km/s; bounds of the automatic grid step."""

STEPS_PER_LINE_SPREAD = 16.0
"""Steps in the full width at half maximum of the line spread beyond which narrow lines make the grid no finer."""


@dataclass(frozen=True)
class Stages:
    """Every intermediate spectrum of one evaluation; None where the stage is absent.

    `star` and `sky` are on the sampling, before rotation; `product` is rotated star × sky, `smeared` is after the line
    spread; `binned` and `flux` are on the output pixels, before and after the continuum.
    """

    star_opacity: Tensor | None
    star: Tensor | None
    rotated: Tensor | None
    sky_opacity: Tensor | None
    sky: Tensor | None
    product: Tensor
    smeared: Tensor
    binned: Tensor
    flux: Tensor

    def detach(self) -> Stages:
        """The same values without their autograd graph."""
        return Stages(*(None if value is None else value.detach() for value in vars(self).values()))


class ForwardModel(nn.Module):
    """Star and sky, through motion and instrument, onto the pixels of one order.

    Parameters
    ----------
    sampling : Sampling
        Wavelengths at which the two emulators are summed. Uniform in velocity if any kernel is present.
    star, telluric : LineEmulator, optional
        At least one of them.
    doppler, rotation, line_spread, pixels, continuum : nn.Module, optional
        Stages; an absent one is skipped. Doppler and rotation act on the star only.

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
        line_spread: LineSpreadFunction | None = None,
        pixels: PixelBinning | None = None,
        continuum: Continuum | None = None,
    ):
        super().__init__()
        if star is None and telluric is None:
            raise ValueError("a forward model needs a star, a telluric component, or both")
        self.sampling = sampling
        self.star, self.telluric = star, telluric
        self.doppler, self.rotation = doppler, rotation
        self.line_spread, self.pixels, self.continuum = line_spread, pixels, continuum
        self._windows: dict[str, Windows] = {}

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
        resolving_power=None,
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
            The two components.
        rv, vsini : float
            Starting values in km/s.
        limb_darkening : (float, float)
            Quadratic coefficients.
        resolving_power : float, sequence or None
            See `LineSpreadFunction`; None for no line spread.
        continuum_degree : int or None
            Degree of the continuum polynomial; None for none.
        velocity_step : float, optional
            Grid step in km/s; see `grid_step`.
        """
        first = resolving_power[0] if isinstance(resolving_power, (list, tuple)) else resolving_power
        if velocity_step is None:
            velocity_step = grid_step(wavelength, star, telluric, rv, None if resolving_power is None else float(first))
        doppler = rotation = line_spread = continuum = None
        margin = 8.0 * velocity_step
        if star is not None:
            doppler = DopplerShift(rv)
            rotation = RotationalBroadening(vsini, velocity_step, limb_darkening=limb_darkening)
            margin += rotation.max_vsini
        if resolving_power is not None:
            margin += 1.5 * GAUSSIAN_REACH * SPEED_OF_LIGHT / (float(first) * FWHM_PER_SIGMA)
        low = float(edges.min()) * (1.0 - margin / SPEED_OF_LIGHT)
        high = float(edges.max()) * (1.0 + margin / SPEED_OF_LIGHT)
        grid = velocity_grid(low, high, velocity_step)
        if resolving_power is not None:
            line_spread = LineSpreadFunction(resolving_power, grid)
        if continuum_degree is not None:
            continuum = Continuum(wavelength, continuum_degree)
        return cls(
            Sampling(grid),
            star=star,
            telluric=telluric,
            doppler=doppler,
            rotation=rotation,
            line_spread=line_spread,
            pixels=PixelBinning(edges, grid),
            continuum=continuum,
        )

    def with_components(self, **components: LineEmulator) -> ForwardModel:
        """A model of other lines behind the same stages, which both models then share."""
        stages = {name: getattr(self, name) for name in ("doppler", "rotation", "line_spread", "pixels", "continuum")}
        return ForwardModel(self.sampling, **components, **stages)

    @property
    def components(self) -> dict[str, LineEmulator]:
        """The emulators present, by name."""
        found = {"star": self.star, "telluric": self.telluric}
        return {name: emulator for name, emulator in found.items() if emulator is not None}

    @property
    def n_pixel(self) -> int:
        """Number of output pixels."""
        return len(self.sampling) if self.pixels is None else self.pixels.start.numel()

    def doppler_factor(self, component: str) -> Tensor | float:
        """1 + v/c of a component; the sky does not move."""
        return self.doppler.factor if component == "star" and self.doppler is not None else 1.0

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

    def _component(self, name: str) -> tuple[Tensor, Tensor]:
        emulator = self.components[name]
        factor = self.doppler_factor(name)
        opacity = emulator.opacity(self.sampling, factor, self._windows.get(name))
        return opacity, emulator.flux(opacity, self.sampling.wavelength / factor)[0]

    def stages(self) -> Stages:
        """Evaluate the model and keep every intermediate spectrum."""
        star_opacity = star = rotated = sky_opacity = sky = None
        if self.star is not None:
            star_opacity, star = self._component("star")
            rotated = star if self.rotation is None else self.rotation(star)
        if self.telluric is not None:
            sky_opacity, sky = self._component("telluric")
        product = sky if rotated is None else rotated if sky is None else rotated * sky
        smeared = product if self.line_spread is None else self.line_spread(product)
        binned = smeared if self.pixels is None else self.pixels(smeared)
        flux = binned if self.continuum is None else self.continuum(binned)
        return Stages(star_opacity, star, rotated, sky_opacity, sky, product, smeared, binned, flux)

    def forward(self) -> Tensor:
        """Model flux on the output pixels, (n,)."""
        return self.stages().flux

    @torch.no_grad()
    def observed(self, component: str) -> Tensor:
        """One component alone as the instrument would see it, continuum 1, (n,)."""
        flux = self._component(component)[1]
        if component == "star" and self.rotation is not None:
            flux = self.rotation(flux)
        return self.through_instrument(flux)

    def through_instrument(self, flux: Tensor) -> Tensor:
        """A spectrum on the sampling as the instrument would see it, (n,): line spread and pixels."""
        smeared = flux if self.line_spread is None else self.line_spread(flux)
        return smeared if self.pixels is None else self.pixels(smeared)


def grid_step(
    wavelength: Tensor,
    star: LineEmulator | None,
    telluric: LineEmulator | None,
    rv: float,
    resolving_power: float | None = None,
) -> float:
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
    for emulator, velocity in ((star, rv), (telluric, 0.0)):
        if emulator is None:
            continue
        factor = 1.0 + velocity / SPEED_OF_LIGHT
        center = emulator.center * factor
        near = (center > wavelength[0]) & (center < wavelength[-1])
        if bool(near.any()):
            with torch.no_grad():
                fwhm = voigt_fwhm(emulator.sigma, emulator.gamma)[near] / emulator.center[near] * SPEED_OF_LIGHT
            step = min(step, float(fwhm.quantile(0.01)) / 3.0)
    if resolving_power is not None:
        step = max(step, min(SPEED_OF_LIGHT / resolving_power / STEPS_PER_LINE_SPREAD, pixel / 4.0))
    return max(step, MIN_STEP)
