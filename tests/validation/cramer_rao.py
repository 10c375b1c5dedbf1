r"""The least errors that velocities can have, found without the model, beside those that a fit reports.

Section 1 of docs/validation.md divides the scatter of velocities by the errors reported, and these are the curvature
that the fit makes of its own Jacobian, on windows, in blocks. Here that curvature is made again from other parts:

.. math:: A = J^T W J + P, \quad J_{ik} = \frac{F_i(θ + h_k) - F_i(θ - h_k)}{2 h_k},

with F the brute force of `specutils_blase.simulate`, W from the uncertainties of the data, all that the fit has free
in θ (radial velocity, (v sin i)², continuum, four numbers a line), and a dense inverse. The fit only says where: θ is
where it stands, as its errors are those there.

For P there are two answers: the Gaussians that the fit itself used, so that nothing but the Jacobian and the algebra
differ, and the mean information of Student's t, (ν + 1)/(ν + 3)/s², which makes it the bound of van Trees (1968), below
which no estimate's mean square error over truths drawn from the priors can be. What the lines have in common against
their templates, strength, amount and shift, adds to both by the same dense algebra.

    python tests/validation/run.py bound
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cases
import numpy as np

from specutils_blase.fitting.start.star import STRENGTH_PRIOR
from specutils_blase.fitting.start.tellurics import FACTOR_PRIOR, SHIFT_PRIOR
from specutils_blase.inference.priors import LinePriors
from specutils_blase.model.parameters import KINDS
from specutils_blase.physics.grids import SPEED_OF_LIGHT
from specutils_blase.simulate.flux import legendre_continuum, simulate_flux

CHANGE = {"ln_area": 1e-3, "ln_sigma": 1e-3, "ln_gamma": 1e-3, "rv_offset": 1e-2, "rv": 1e-2, "vsini": 1e-2}
"""Steps h of the differences: they truncate by 1e-6, and the simulator's own error, 1e-10, does not show."""

STEP = 0.2
"""Fine step of the simulator [km/s]: on this order within 4e-11 of its default, at a third of the time."""

UNSEEN = 3e-5
"""Opacity of a line below which its pixels are not evaluated: its own changes are smaller still."""


@dataclass(frozen=True)
class Place:
    """Where a fit stands, in plain numbers.

    Parameters
    ----------
    edges : ndarray, (n_pixel, 2)
        Of the pixels [Å].
    lines : dict
        Component to (n_line, 5): the centre before the offset [Å], and `KINDS`.
    free : dict
        Component to the indices of its free lines.
    rv, vsini : float
        km/s.
    continuum : ndarray
        Legendre coefficients.
    """

    edges: np.ndarray
    lines: dict[str, np.ndarray]
    free: dict[str, np.ndarray]
    rv: float
    vsini: float
    continuum: np.ndarray

    @classmethod
    def of(cls, fit) -> Place:
        lines, free = {}, {}
        for name, emulator in fit.model.components.items():
            values = emulator.line_parameters().detach().double().numpy()
            lines[name] = np.column_stack([emulator.center.numpy(), values])
            free[name] = np.flatnonzero((fit.curvature.prior_precision[name] > 0).any(1).numpy())
        continuum = fit.model.continuum.coefficients.detach().numpy()
        return cls(fit.data.edges.numpy(), lines, free, fit.value("rv"), fit.value("vsini"), continuum)

    def moved(self, name: str, line: int, kind: str, change: float) -> Place:
        """The same with one line changed."""
        own = self.lines[name].copy()
        own[line, 1 + KINDS.index(kind)] += change
        return replace(self, lines=self.lines | {name: own})

    def flux(self, pixels: slice = slice(None)) -> np.ndarray:
        """By brute force, before the continuum."""
        tables = {}
        for name, (center, *logs, offset) in ((name, lines.T) for name, lines in self.lines.items()):
            widths = dict(zip(("area", "sigma", "gamma"), np.exp(logs), strict=True))
            tables[name] = {"center": center * (1.0 + offset / SPEED_OF_LIGHT)} | widths
        return simulate_flux(
            self.edges[pixels], **tables, rv=self.rv, vsini=self.vsini, limb_darkening=cases.LIMB_DARKENING,
            resolving_power=cases.RESOLVING_POWER, step=STEP,
        )  # fmt: skip

    def reach(self, name: str, line: int) -> slice:
        """Pixels on which a line shows, through rotation and line spread."""
        center, ln_area, ln_sigma, ln_gamma, offset = self.lines[name][line]
        core = 6.0 * np.exp(ln_sigma)
        wing = np.exp(0.5 * (ln_area + ln_gamma)) / np.sqrt(np.pi * UNSEEN)
        velocity, rotation = (self.rv, self.vsini) if name == "star" else (0.0, 0.0)
        place = center * (1.0 + (offset + velocity) / SPEED_OF_LIGHT)
        spread = place * (rotation / SPEED_OF_LIGHT + 2.5 / cases.RESOLVING_POWER)
        half = core + wing + spread
        first, last = np.searchsorted(self.edges.mean(axis=1), (place - half, place + half))
        return slice(max(first - 1, 0), last + 1)


def jacobian(place: Place) -> np.ndarray:
    """Derivatives of the flux to the free lines, by component, line and `KINDS`, to rv, (v sin i)² and the continuum.

    Shape (n_pixel, n_parameter).
    """
    centers = place.edges.mean(axis=1)
    continuum = legendre_continuum(centers, place.continuum)
    columns = []
    for name, lines in place.free.items():
        for line in lines:
            pixels = place.reach(name, line)
            for kind in KINDS:
                column = np.zeros(len(centers))
                if len(centers[pixels]):
                    up, down = (place.moved(name, line, kind, s * CHANGE[kind]).flux(pixels) for s in (1.0, -1.0))
                    column[pixels] = (up - down) / (2.0 * CHANGE[kind])
                columns.append(continuum * column)
    for kind in ("rv", "vsini"):
        up, down = (replace(place, **{kind: getattr(place, kind) + s * CHANGE[kind]}).flux() for s in (1.0, -1.0))
        columns.append(continuum * (up - down) / (2.0 * CHANGE[kind]))
    columns[-1] /= 2.0 * place.vsini  # of its square, whose error it is that is reported
    flux = place.flux()
    columns += [flux * legendre_continuum(centers, unit) for unit in np.eye(len(place.continuum))]
    return np.stack(columns, axis=1)


def common_changes(place: Place, n_parameter: int) -> tuple[np.ndarray, np.ndarray]:
    """What strength of the star, amount and shift of the sky do to each parameter, and the precisions of their priors.

    Shapes (n_parameter, 3) and (3,).
    """
    design, first = np.zeros((n_parameter, 3)), 0
    for name, lines in place.free.items():
        rows = first + len(KINDS) * np.arange(len(lines))
        design[rows + KINDS.index("ln_area"), 0 if name == "star" else 1] = 1.0
        if name == "telluric":
            design[rows + KINDS.index("rv_offset"), 2] = 1.0
        first += len(KINDS) * len(lines)
    return design, np.array([STRENGTH_PRIOR, FACTOR_PRIOR, SHIFT_PRIOR]) ** -2


def added(place: Place, data: np.ndarray, information: np.ndarray) -> np.ndarray:
    """What not knowing the common changes adds to the variance of every parameter.

    `information` is that of the lines' priors, of their centres.
    """
    n_line = len(information)
    design, precision = common_changes(place, len(data))
    priors = np.zeros(len(data))
    priors[:n_line] = information
    held = priors[:, None] * design
    follow = np.linalg.solve(data + np.diag(priors), held)
    covariance = np.linalg.inv(design.T @ held - held.T @ follow + np.diag(precision))
    return np.einsum("ki,ij,kj->k", follow, covariance, follow)


def errors(curvature: np.ndarray, place: Place, rows: int, more: np.ndarray) -> tuple[float, float]:
    """Of the radial velocity and v sin i [km/s], which follow on `rows` line parameters; `more` is added variance."""
    variance = (np.linalg.inv(curvature).diagonal() + more)[rows : rows + 2]
    return float(np.sqrt(variance[0])), float(np.sqrt(place.vsini**2 + np.sqrt(variance[1])) - place.vsini)


def bounds(fit) -> dict[str, tuple[float, float]]:
    """Errors of the radial velocity and v sin i [km/s], by the name of what stands for the priors."""
    place = Place.of(fit)
    columns = jacobian(place)
    data = columns.T @ (columns / fit.data.sigma.numpy()[:, None] ** 2)
    own = [fit.curvature.prior_precision[name].numpy()[free].ravel() for name, free in place.free.items()]
    n_line = sum(map(len, own))
    information = np.tile(cases.mean_information(LinePriors()), n_line // len(KINDS))
    precisions = {"own": np.concatenate(own), "van_trees": information}
    found = {}
    for name, precision in precisions.items():
        curvature = data.copy()
        curvature[np.arange(n_line), np.arange(n_line)] += precision
        found[name] = errors(curvature, place, n_line, added(place, data, information))
    return found


def bound(snr: float, vsini: float, seed: int, part: float = 1.0) -> dict:
    """One fit of the calibration, with its errors and the bounds at the place where it stands."""
    fit, *_ = cases.scattered(snr, vsini, "prior", seed, part)
    record = {"rv_err": fit.error("rv"), "vsini_err": fit.error("vsini"), "success": fit.success}
    for name, (rv, rotation) in bounds(fit).items():
        record |= {f"rv_{name}": rv, f"vsini_{name}": rotation}
    return record
