"""The line emulator: a ragged, sparse sum of Voigt lines.

One class serves star and Earth. Each line is evaluated only where it matters: its core on the wavelengths asked for,
its wings on ever coarser grids (`grids.Sampling`), out to where the neglected opacity falls below a tolerance. The
windows come from each line's own current parameters and are rebuilt outside autograd.

Does not live here: the sums themselves (`line_sum`), motion and rotation (`extrinsic`), the saturation laws
(`saturation`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn

from ..physics.compiled import as_array, kernels
from ..physics.grids import HANDOVER_START, LEVEL_REACH, NEVER, SPEED_OF_LIGHT, DoublePrecision, Sampling
from ..physics.line_sum import Windows, line_sum
from ..physics.saturation import SaturationLaw, saturation_law
from ..physics.voigt import voigt, voigt_fwhm

TOLERANCE = 3e-8
"""Opacity of one line below which its wings are neglected."""

CORE_NODES = 24.0
"""Nodes per half width at half maximum from which on a line core may live on a coarser level."""


class LineEmulator(DoublePrecision):
    r"""Spectrum of many Voigt lines, S(λ) = law(Σ_j a_j V(λ - λ_j; σ_j, γ_j)).

    Learnable: `ln_area`, `ln_sigma`, `ln_gamma` (natural logarithms of Å) and `rv_offset`, a shift of each centre in
    km/s; all of shape (n_line,). Emission lines multiply the result by 1 + Σ a V.

    Parameters
    ----------
    center, area, sigma, gamma : array_like, (n_line,)
        Vacuum wavelength, integrated opacity (or depth), Gaussian standard deviation and Lorentzian half width at
        half maximum, all in Å and at rest. Sorted by centre on the way in.
    rv_offset : array_like, optional
        Shift of each centre in km/s.
    sign : array_like of int, optional
        +1 absorption (default), -1 emission.
    law : SaturationLaw or str
        "log", "linear", "minnaert", or an object.
    wavelength_range : (float, float), optional
        Range in Å over which the line list is complete; the outermost centres when not given.
    species : sequence of str, optional
        What makes each line, empty where unknown.

    References
    ----------
    Gully-Santiago & Morley (2022), ApJ 941, 200.
    """

    double = ("center",)

    center: Tensor
    sign: Tensor

    def __init__(
        self,
        center,
        area,
        sigma,
        gamma,
        *,
        rv_offset=None,
        sign=None,
        law="log",
        wavelength_range=None,
        species: Sequence[str] | None = None,
    ):
        super().__init__()
        center, area, sigma, gamma = (
            torch.as_tensor(values, dtype=torch.float64).reshape(-1) for values in (center, area, sigma, gamma)
        )
        if not center.shape == area.shape == sigma.shape == gamma.shape:
            raise ValueError(
                "center, area, sigma and gamma must have one value a line, got "
                f"{center.numel()}, {area.numel()}, {sigma.numel()} and {gamma.numel()}"
            )
        for name, values, lowest in (("center", center, 0), ("area", area, 0), ("sigma", sigma, 0)):
            if not bool((torch.isfinite(values) & (values > lowest)).all()):
                raise ValueError(f"every {name} must be finite and positive (in Å)")
        if not bool((torch.isfinite(gamma) & (gamma >= 0)).all()):
            raise ValueError("every gamma must be finite and not negative (in Å)")
        order = torch.argsort(center)
        if wavelength_range is None:
            wavelength_range = (float(center.min()), float(center.max())) if center.numel() else (0.0, 0.0)
        self.wavelength_range = (float(wavelength_range[0]), float(wavelength_range[1]))
        self.law: SaturationLaw = saturation_law(law, self.wavelength_range)
        sign = torch.ones(center.shape) if sign is None else torch.as_tensor(sign).reshape(-1)
        rv_offset = (
            torch.zeros_like(center)
            if rv_offset is None
            else torch.as_tensor(rv_offset, dtype=torch.float64).reshape(-1)
        )
        self.register_buffer("center", center[order])
        self.register_buffer("sign", sign.to(torch.int8)[order])
        self.has_emission = bool((self.sign < 0).any())
        self.ln_area = nn.Parameter(area[order].log())
        self.ln_sigma = nn.Parameter(sigma[order].log())
        # ln γ = -inf has no gradient; 1e-8 Å is 1e-6 of the narrowest line there is.
        self.ln_gamma = nn.Parameter(gamma[order].clamp(min=1e-8).log())
        self.rv_offset = nn.Parameter(rv_offset[order])
        self.species = None if species is None else [str(species[k]) for k in order.tolist()]
        self.fixed: Tensor | None = None
        """Lines that do not follow what all others have in common, (n_line,) boolean; None for none. Not copied."""

    @classmethod
    def from_ledger(cls, table, *, component: str | None = None, law=None, wavelength_range=None) -> LineEmulator:
        """Emulator from a ledger, or any table with center, area, sigma, gamma; see `ledger.emulator_from_ledger`."""
        from ..ledger.emulator import emulator_from_ledger

        return emulator_from_ledger(table, component=component, law=law, wavelength_range=wavelength_range)

    def __len__(self) -> int:
        return self.center.numel()

    @property
    def area(self) -> Tensor:
        """Areas a_j [Å]."""
        return self.ln_area.exp()

    @property
    def sigma(self) -> Tensor:
        """Gaussian standard deviations σ_j [Å]."""
        return self.ln_sigma.exp()

    @property
    def gamma(self) -> Tensor:
        """Lorentzian half widths at half maximum γ_j [Å]."""
        return self.ln_gamma.exp()

    @property
    def shifted_center(self) -> Tensor:
        """Centres with their offsets applied, λ_j (1 + v_j/c) [Å], float64."""
        return self.center * (1.0 + self.rv_offset.to(torch.float64) / SPEED_OF_LIGHT)

    def line_parameters(self) -> Tensor:
        """ln area, ln σ, ln γ and centre offset stacked, (n_line, 4); the order that Jacobians use."""
        return torch.stack([self.ln_area, self.ln_sigma, self.ln_gamma, self.rv_offset], dim=-1)

    def set_line_parameters(self, values: Tensor) -> None:
        """Overwrite the parameters from the stack of `line_parameters`."""
        with torch.no_grad():
            for parameter, column in zip(
                (self.ln_area, self.ln_sigma, self.ln_gamma, self.rv_offset), values.unbind(-1), strict=True
            ):
                parameter.copy_(column)

    @torch.no_grad()
    def change_together(self, *, shift: Tensor | float = 0.0, **changes: Tensor | float) -> None:
        """Change what lines have in common against their template; those that are `fixed` stay.

        Parameters
        ----------
        shift : float
            Of the centres, km/s.
        **changes : Tensor, (n_line,), or float
            To be added to `ln_area`, `ln_sigma`, `ln_gamma`.
        """
        follows = 1.0 if self.fixed is None else (~self.fixed).to(torch.float64)
        for name, change in changes.items():
            parameter = getattr(self, name)
            parameter += torch.as_tensor(change * follows, dtype=parameter.dtype, device=parameter.device)
        self.center *= 1.0 + shift * follows / SPEED_OF_LIGHT

    def subset(self, index: Tensor) -> LineEmulator:
        """New emulator of some of the lines, sharing nothing with this one."""
        part = LineEmulator(
            self.center[index],
            self.area.detach()[index],
            self.sigma.detach()[index],
            self.gamma.detach()[index],
            rv_offset=self.rv_offset.detach()[index],
            sign=self.sign[index],
            law=deepcopy(self.law),  # its parameters may be fitted: not those of the emulator this came from
            wavelength_range=self.wavelength_range,
            species=None if self.species is None else [self.species[k] for k in index.tolist()],
        )
        return part

    @torch.no_grad()
    def with_lines(self, center, area, sigma, gamma) -> tuple[LineEmulator, Tensor, Tensor]:
        """These lines, as they are, and more absorption lines, under the same law.

        Parameters
        ----------
        center, area, sigma, gamma : array_like, (n_new,)
            Of the new lines, in Å at rest.

        Returns
        -------
        LineEmulator
        old, new : Tensor
            Where this emulator's lines, and the new ones in the order given, stand in it.
        """
        more = [torch.as_tensor(values, dtype=torch.float64).reshape(-1) for values in (center, area, sigma, gamma)]
        old = [self.center, self.area, self.sigma, self.gamma]
        columns = [torch.cat([a.double(), b.to(a.device)]) for a, b in zip(old, more, strict=True)]
        count = more[0].numel()
        grown = LineEmulator(
            *columns,
            rv_offset=torch.cat([self.rv_offset.double(), columns[0].new_zeros(count)]),
            sign=torch.cat([self.sign, self.sign.new_ones(count)]),
            law=self.law,
            wavelength_range=self.wavelength_range,
            species=None if self.species is None else [*self.species, *[""] * count],
        )
        place = torch.empty_like(order := torch.argsort(columns[0]))
        place[order] = torch.arange(order.numel(), device=order.device)
        return grown, place[: len(self)], place[len(self) :]

    @torch.no_grad()
    def settled(self) -> LineEmulator:
        """The same lines with their offsets moved into the centres: `rv_offset` counts from zero.

        A copy, because lines stand in the order of their centres and offsets may have taken one past another.
        """
        return LineEmulator(
            self.shifted_center,
            self.area,
            self.sigma,
            self.gamma,
            sign=self.sign,
            law=deepcopy(self.law),
            wavelength_range=self.wavelength_range,
            species=self.species,
        )

    @torch.no_grad()
    def reach(self, tolerance: float = TOLERANCE) -> Tensor:
        """Distance [Å] from each centre beyond which the opacity of the line stays below `tolerance`."""
        area, sigma, gamma = self.area.double(), self.sigma.double(), self.gamma.double()
        lorentz = (area * gamma / (math.pi * tolerance)).sqrt()
        gauss = sigma * (2.0 * (area / (sigma * tolerance * math.sqrt(2.0 * math.pi))).clamp(min=1.0).log()).sqrt()
        return torch.maximum(lorentz, gauss)

    @torch.no_grad()
    def windows(self, sampling: Sampling, doppler_factor: Tensor | float = 1.0) -> Windows:
        """Runs of nodes on every level of `sampling` from the lines' current parameters."""
        factor = torch.as_tensor(doppler_factor, dtype=torch.float64, device=self.center.device)
        center = self.shifted_center * factor
        half_width = 0.5 * voigt_fwhm(self.sigma.double(), self.gamma.double()) * factor
        relative = self.reach() * factor / center  # in units of ln λ
        top = sampling.n_level - 1
        # Where a law is steep in a line's own depth, only the line's full sampling follows it.
        steep = torch.zeros_like(center, dtype=torch.bool)
        if not self.law.is_identity:
            peak = self.area.double() * voigt(torch.zeros_like(half_width), self.sigma.double(), self.gamma.double())
            steep = self.law.is_steep(peak) & (half_width / center > LEVEL_REACH / 8 * sampling.step)
        if (code := kernels(center.device)) is not None:
            n_most = 2 * sampling.n_level * len(self)
            numbers, fades = np.empty((3, n_most), dtype=np.int64), np.empty((2, n_most))
            lines = (as_array(t) for t in (center, half_width, relative, steep))
            sizes = np.array(sampling.sizes, dtype=np.int64)
            place = as_array(sampling.wavelength), sampling.step, sizes
            n_run = code.runs_of_lines(*place, *lines, CORE_NODES, numbers, fades)
            return Windows(*(torch.from_numpy(row[:n_run].copy()) for row in (*numbers, *fades)))
        core = (half_width / center / (CORE_NODES * sampling.step)).clamp(min=1.0).log2().floor().clamp(max=top)
        last = (2.0 * relative / (LEVEL_REACH * sampling.step)).clamp(min=1.0).log2().ceil().clamp(max=top)
        last = torch.maximum(core, last)
        core, last = torch.where(steep, 0.0, core), torch.where(steep, 0.0, last)
        # From here on (n_level, n_line): runs that a line does not have are empty, so that no count need be known.
        level = torch.arange(sampling.n_level, dtype=torch.float64, device=center.device).unsqueeze(1)
        outer = LEVEL_REACH * sampling.step * level.exp2()
        there, inner = (core <= level) & (level <= last), core < level
        # Where no coarser level takes over, the line runs on to its own reach.
        endless = steep | (level == top)
        extent = torch.where(endless, torch.maximum(relative, outer), outer)
        hole = 0.5 * HANDOVER_START * outer
        low, high = (sampling.first_node(center * (1.0 + side * extent)) for side in (-1.0, 1.0))
        hole_low, hole_high = (
            torch.where(inner, sampling.first_node(center * (1.0 + side * hole)), high) for side in (-1.0, 1.0)
        )
        start = torch.stack([low, hole_high], dim=1)
        count = torch.stack([hole_low, high], dim=1).sub_(start).mul_(there.unsqueeze(1))
        fade_out = (1.0 / outer).expand_as(extent).masked_fill(endless, 0.0)
        fade_in = (2.0 / outer).expand_as(extent).masked_fill(~inner, NEVER)
        line = torch.arange(len(self), device=center.device).expand_as(start)
        fades = (fade.unsqueeze(1).expand_as(start) for fade in (fade_out, fade_in))
        return Windows(*(column.reshape(-1) for column in (line, start, count, *fades)))

    def opacity(
        self, sampling: Sampling, doppler_factor: Tensor | float = 1.0, windows: Windows | None = None
    ) -> Tensor:
        """Summed opacity on the sampling, (1, n); a second row holds Σ a V of emission lines where there are any.

        Parameters
        ----------
        sampling : Sampling
            Observed wavelengths.
        doppler_factor : Tensor or float
            1 + v/c. Observed λ is rest λ times this, so lines are evaluated at λ / factor: centres, widths and areas
            all scale with it, and equivalent widths grow as 1 + v/c.
        windows : Windows, optional
            From `windows`; built here when not given.
        """
        if windows is None:
            windows = self.windows(sampling, doppler_factor)
        parameters = self.shifted_center, self.area, self.sigma, self.gamma
        emits = self.sign < 0 if self.has_emission else None
        return line_sum(*parameters, doppler_factor, windows, sampling, self.law, emits)

    def flux(self, opacity: Tensor, wavelength: Tensor) -> tuple[Tensor, Tensor]:
        """Flux from summed opacity, and its derivatives to both rows of `opacity`, at rest wavelengths."""
        flux, slope = self.law.flux(opacity[0], wavelength)
        if opacity.shape[0] == 1:
            return flux, slope.unsqueeze(0)
        emission = 1.0 + opacity[1]
        return flux * emission, torch.stack([slope * emission, flux])

    def forward(
        self, sampling: Sampling, doppler_factor: Tensor | float = 1.0, windows: Windows | None = None
    ) -> Tensor:
        """Flux on the sampling, (n,)."""
        opacity = self.opacity(sampling, doppler_factor, windows)
        return self.flux(opacity, sampling.wavelength / doppler_factor)[0]
