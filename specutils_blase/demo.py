"""The demonstration: a simulated HPF order of known truth, fitted from templates with other lines.

The star is the embedded LTE Arcturus, the atmosphere muler's TelFit. Both are cloned. Strength, widths and centre of
every line are then changed at random, by the widths of the fit's priors. The order is simulated from these lines by
brute force (`simulate`, which shares no code with the model). The fit starts from the unchanged clones, with neither
velocity given. No network, no files.

Does not live here: printing and files (`cli`).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from astropy import units as u
from astropy.table import QTable
from specutils import Spectrum

from . import simulate, templates
from .cloning.clone import CloneResult, clone
from .inference.priors import LinePriors
from .physics.grids import SPEED_OF_LIGHT
from .results.fit_result import FitResult

FILES = {"fit": "demo.asdf", "ledger": "demo_ledger.ecsv", "plot": "demo.png"}

ORDER = 24
"""HPF order with stellar and telluric lines in about equal number, many of them blended with each other."""

TRUTH = {"rv": -35.47, "vsini": 8.3}
RESOLVING_POWER = 55_000.0
SNR = 180.0
CONTINUUM = (1.0, -0.06, 0.02)
SCATTER = {f"scatter_{name}": getattr(LinePriors(), name) for name in ("ln_area", "ln_sigma", "ln_gamma", "rv_offset")}
SEED = 1

REGION_MARGIN_KMS = 200.0
"""Velocity [km/s] by which the star's clone exceeds the order at both ends."""

WELL_MEASURED = 0.1
"""Largest error of ln(area) of a line that counts in the comparison with the truth."""


@dataclass(frozen=True)
class Recovery:
    """Recovery of the line strengths of one component.

    Parameters
    ----------
    n_line : int
        Lines measured to `WELL_MEASURED` or better.
    before, after : float
        Scatter of ln(area) against the truth, of the clone and of the fit.
    correlation : float
        Correlation of the fitted change of ln(area) with the true one.
    mean_pull, pull_scatter : float
        Mean and standard deviation of (fit - truth) / error; 0 and 1 if the errors are right.
    """

    n_line: int
    before: float
    after: float
    correlation: float
    mean_pull: float
    pull_scatter: float


@dataclass(eq=False)
class Demonstration:
    """Data, clones and fit of the demonstration.

    Parameters
    ----------
    data : Spectrum
        The simulated order; its truth is in ``data.meta["truth"]``.
    star, sky : CloneResult
        Clones of star and atmosphere from which the fit starts.
    fit : FitResult
    seconds : dict
        Wall-clock time of each stage.
    """

    data: Spectrum
    star: CloneResult
    sky: CloneResult
    fit: FitResult
    seconds: dict[str, float] = field(default_factory=dict)

    def pull(self, name: str) -> float:
        """(recovered - true) / error of "rv" or "vsini"."""
        return (self.fit.value(name) - TRUTH[name]) / self.fit.error(name)

    def recovery(self, component: str) -> Recovery:
        """Line strengths of "star" or "telluric" against the truth."""
        clone = {"star": self.star, "telluric": self.sky}[component]
        lines = self.fit.ledger[self.fit.ledger["component"] == component]
        # The fit keeps the lines that the order can see, and moves them: their start identifies them.
        start = lines["center"].to_value(u.AA) / (1.0 + lines["rv_offset"].to_value(u.km / u.s) / SPEED_OF_LIGHT)
        cloned_centers = clone.emulator.shifted_center.detach().cpu().numpy()
        row = np.abs(cloned_centers[:, None] - start).argmin(axis=0)
        true = np.log(self.data.meta["truth"][component]["area"].to_value(u.AA))[row]
        cloned = clone.emulator.ln_area.detach().double().cpu().numpy()[row]
        fitted = np.log(lines["area"].to_value(u.AA))
        error = (lines["area_err"] / lines["area"]).to_value("")
        use = lines["free"] & ~lines["edge"] & (error > 0.0) & (error < WELL_MEASURED)
        pull = (fitted - true)[use] / error[use]
        return Recovery(
            n_line=int(use.sum()),
            before=float(np.std((cloned - true)[use])),
            after=float(np.std((fitted - true)[use])),
            correlation=float(np.corrcoef((fitted - cloned)[use], (true - cloned)[use])[0, 1]),
            mean_pull=float(pull.mean()),
            pull_scatter=float(pull.std()),
        )

    def report(self) -> str:
        """Settings of the demonstration and recovery of the truth, in a few lines of text."""
        span = self.data.spectral_axis.to_value(u.AA)
        lines = [
            f"Simulated HPF order {ORDER}, {span[0]:.0f}-{span[-1]:.0f} Å, S/N {SNR:.0f}: "
            "a rotating, moving star behind the atmosphere,",
            f"  every line's ln(area) off by {SCATTER['scatter_ln_area']:g}, centre by "
            f"{SCATTER['scatter_rv_offset']:g} km/s (standard deviations) from the templates",
            f"Cloned {len(self.star.ledger)} stellar and {len(self.sky.ledger)} telluric lines in "
            f"{self.seconds['cloning']:.0f} s",
            f"Fitted {int(np.sum(self.fit.ledger['free']))} lines in {self.seconds['fitting']:.0f} s, velocities not "
            f"given: {self.fit.message}, reduced χ² = {self.fit.reduced_chi2:.2f}",
            *([] if self.fit.quality is None else self.fit.quality.lines()),
            "",
            f"{'':12}{'true':>10}{'recovered':>14}{'error':>9}{'pull':>8}",
        ]
        for name, label in (("rv", "RV [km/s]"), ("vsini", "v sin i")):
            value, error = self.fit.value(name), self.fit.error(name)
            lines.append(f"{label:12}{TRUTH[name]:10.3f}{value:14.3f}{error:9.3f}{self.pull(name):+8.2f}")
        lines += ["", f"{'ln(area)':12}{'lines':>10}{'scatter: clone':>18}{'fit':>7}{'correlation':>14}{'pulls':>16}"]
        for component, label in (("star", "star"), ("telluric", "atmosphere")):
            recovery = self.recovery(component)
            lines.append(
                f"{label:12}{recovery.n_line:10d}{recovery.before:18.3f}{recovery.after:7.3f}{recovery.correlation:14.3f}"
                f"{recovery.mean_pull:+9.2f} ± {recovery.pull_scatter:.2f}"
            )
        lines.append(f"  (lines measured to {100 * WELL_MEASURED:.0f} % or better; pull = (fit - true) / error)")
        return "\n".join(lines)


def run(*, progress: bool = False) -> Demonstration:
    """Clone, simulate, fit.

    Parameters
    ----------
    progress : bool
        Show progress bars.

    Returns
    -------
    Demonstration
    """
    seconds, start = {}, time.perf_counter()

    def lap(stage: str) -> None:
        nonlocal start
        now = time.perf_counter()
        seconds[stage], start = now - start, now

    wavelength = simulate.hpf_wavelengths(ORDER)
    margin = REGION_MARGIN_KMS / SPEED_OF_LIGHT
    region = (wavelength[0] * (1.0 - margin), wavelength[-1] * (1.0 + margin))
    star = clone(templates.arcturus(), region=region, progress=progress)
    sky = clone(templates.telfit_hpf(), region=region, resolving_power=RESOLVING_POWER, progress=progress)
    lap("cloning")
    data = simulate.simulate(
        wavelength,
        true_lines(star, seed=SEED),
        true_lines(sky, seed=SEED + 1),
        resolving_power=RESOLVING_POWER,
        continuum=CONTINUUM,
        limb_darkening=(0.4, 0.2),
        snr=SNR,
        seed=SEED + 2,
        **TRUTH,
    )
    lap("simulating")
    fit = data.blase_fit(star, telluric=sky, resolving_power=RESOLVING_POWER, progress=progress)
    lap("fitting")
    return Demonstration(data, star, sky, fit, seconds)


def true_lines(clone: CloneResult, seed: int) -> QTable:
    """A clone's lines, each moved at random: the truth of the simulation."""
    # Columns picked by name: the centres contain the clone's offsets already, which `simulate` would apply once more.
    return simulate.perturbed(clone.ledger["center", "area", "sigma", "gamma"], seed=seed, **SCATTER)
