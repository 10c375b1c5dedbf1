"""Item 6: the Laplace approximation of a fit against a real sampler, on twenty lines.

The sampler sees the very posterior: χ² of the whole model and the priors as they are, Student's t or Gaussian. The
No-U-Turn Sampler (Hoffman & Gelman 2014, as in pyro) walks in the coordinates in which the approximation is a unit
sphere, which changes how fast it walks and nothing of where it ends.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from astropy.table import Table

import specutils_blase as sb
from specutils_blase.inference.objective import Objective
from specutils_blase.inference.priors import LinePriors
from specutils_blase.posterior.laplace import free_parameters, normal_equations
from specutils_blase.simulate import perturbed, simulate

WAVELENGTH = np.linspace(10_500.0, 10_511.0, 190)
POWER, SNR, RV, VSINI = 55_000.0, 200.0, -12.0, 9.0
N_STAR, N_SKY = 14, 6
N_WARMUP, N_SAMPLE = 300, 3000
FIRST_SEED = 3


@dataclass
class Comparison:
    """The sampler's means and widths against those that a fit tells, parameter by parameter."""

    names: list[str]
    n_effective: np.ndarray
    mean_shift: np.ndarray
    """(sampler's mean − value told) / error reported."""

    width_ratio: np.ndarray
    """Sampler's standard deviation / error told."""


def lines(n: int, low: float, high: float, sigma: float, seed: int) -> Table:
    rng = np.random.default_rng(seed)
    table = Table(
        {
            "center": np.linspace(low, high, n) + rng.uniform(-0.2, 0.2, n),
            "area": rng.uniform(0.05, 0.15, n),
            "sigma": np.full(n, sigma),
            "gamma": rng.uniform(0.02, 0.05, n),
        }
    )
    table.meta["wavelength_range"] = (10_480.0, 10_530.0)
    return table


STAR, SKY = lines(N_STAR, 10_500.5, 10_510.2, 0.05, 1), lines(N_SKY, 10_501.0, 10_510.0, 0.015, 2)


def fitted(seed: int = FIRST_SEED, priors: LinePriors | None = None):
    """A fit of twenty lines whose truth is scattered as the priors believe."""
    priors = priors or LinePriors()
    scatter = {f"scatter_{name}": getattr(priors, name) for name in ("ln_area", "ln_sigma", "ln_gamma", "rv_offset")}
    truth = [
        perturbed(table, seed=seed + k, degrees_of_freedom=priors.degrees_of_freedom, **scatter)
        for k, table in enumerate((STAR, SKY))
    ]
    data = simulate(
        WAVELENGTH, *truth, snr=SNR, seed=seed, rv=RV, vsini=VSINI, resolving_power=POWER, limb_darkening=(0.4, 0.2)
    )
    return sb.fit(
        data, STAR, telluric=SKY, rv=RV, vsini=VSINI, resolving_power=POWER, continuum=1, scale_tellurics=False,
        star_priors=priors, telluric_priors=priors, progress=False,
    )  # fmt: skip


def posterior(result, priors: LinePriors) -> tuple[Objective, torch.Tensor]:
    """The problem that a fit solved, anchored at the clones, and its solution."""
    free = free_parameters(result.model, result.parameters, result.curvature)
    solution = free.read()
    problem = Objective(free, result.data.flux, result.curvature.weight[0], dict.fromkeys(free.lines, priors))
    mean = problem.priors.mean.clone()
    for name, table in (("star", STAR), ("telluric", SKY)):
        table = table[np.argsort(table["center"])]
        logs = [np.log(np.asarray(table[column])) for column in ("area", "sigma", "gamma")]
        anchor = torch.as_tensor(np.stack([*logs, np.zeros(len(table))], axis=1))
        mean[free.columns(name)] = anchor[free.lines[name]]
    return problem.with_priors(mean=mean), solution


class _Potential(torch.autograd.Function):
    """Half the cost as a function of the whitened parameters; its gradient comes along with it."""

    @staticmethod
    def forward(ctx, z, problem, solution, root):
        vector = solution + root @ z
        if not torch.equal(vector, problem.project(vector)):
            ctx.gradient = torch.zeros_like(z)
            return z.new_tensor(torch.inf)
        cost, pull = problem.value_and_gradient(vector)
        ctx.gradient = -(root.T @ pull)
        return z.new_tensor(0.5 * cost)

    @staticmethod
    def backward(ctx, cotangent):
        return cotangent * ctx.gradient, None, None, None


def sample(problem: Objective, solution: torch.Tensor, root: torch.Tensor, n_warmup: int, n_sample: int, seed: int):
    """Samples of the whitened parameters, (n_sample, n); the model is left at the solution, where the fit stands."""
    import pyro
    from pyro.infer.mcmc import MCMC, NUTS

    pyro.set_rng_seed(seed)
    kernel = NUTS(
        potential_fn=lambda values: _Potential.apply(values["z"], problem, solution, root),
        adapt_mass_matrix=False,
        max_tree_depth=6,
    )
    start = {"z": torch.zeros_like(solution)}
    chain = MCMC(kernel, n_sample, warmup_steps=n_warmup, initial_params=start, disable_progbar=True)
    try:
        chain.run()
    finally:
        problem.evaluate(solution)
    return chain.get_samples()["z"].reshape(n_sample, -1)


def compare(
    priors: LinePriors | None = None, seed: int = FIRST_SEED, n_warmup: int = N_WARMUP, n_sample: int = N_SAMPLE
) -> tuple[Comparison, Comparison]:
    """Fit, sample, compare: with what the fit reports, and with `FitResult.line_means` for the lines."""
    from pyro.ops.stats import effective_sample_size

    priors = priors or LinePriors()
    result = fitted(seed, priors)
    problem, solution = posterior(result, priors)
    factor = normal_equations(problem.free, result.curvature).factor()
    unit = torch.eye(len(solution), dtype=torch.float64)
    covariance = torch.stack([factor.solve(column) for column in unit])
    root = torch.linalg.cholesky(0.5 * (covariance + covariance.T))
    z = sample(problem, solution, root, n_warmup, n_sample, seed)
    n_effective = effective_sample_size(z.unsqueeze(0)).numpy()
    offset, error = z @ root.T, covariance.diagonal().sqrt()
    means, widths = told_by_means(result, problem.free, error)
    return tuple(
        Comparison(names(problem.free), n_effective, *(each.numpy() for each in (shift, ratio)))
        for shift, ratio in (
            (offset.mean(0) / error, offset.std(0) / error),
            ((offset.mean(0) - means) / error, offset.std(0) / widths),
        )
    )


def told_by_means(result, free, error: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Means of the lines from where the fit stands, and their errors; of all else nothing, and the error reported."""
    table = result.line_means(progress=False)
    means, widths = torch.zeros_like(error), error.clone()
    for name in free.model.components:
        rows = table[table["component"] == name][free.lines[name].tolist()]
        for kind, own in zip(free.kinds[name], free.columns(name).T, strict=True):
            means[own] = torch.as_tensor(np.asarray(rows[f"{kind}_shift"])) * error[own]
            widths[own] = torch.as_tensor(np.asarray(rows[f"{kind}_err"]))
    return means, widths


def names(free) -> list[str]:
    """What each parameter is, in the order of the vector."""
    found = []
    for name in free.model.components:
        found += [f"{name} {kind}" for _ in range(free.lines[name].numel()) for kind in free.kinds[name]]
    return found + [key for key, place in free.global_slices.items() for _ in range(place.stop - place.start)]


def table(comparison: Comparison) -> str:
    """One row a kind of parameter."""
    from tables import markdown

    kinds, rows = np.array(comparison.names), []
    for kind in dict.fromkeys(comparison.names):
        chosen = kinds == kind
        shift, ratio = comparison.mean_shift[chosen], comparison.width_ratio[chosen]
        rows.append(
            [
                kind, f"{chosen.sum()}", f"{np.abs(shift).max():.2f}", f"{np.sqrt(np.mean(shift**2)):.2f}",
                f"{np.median(ratio):.2f}", f"{ratio.min():.2f}-{ratio.max():.2f}",
                f"{comparison.n_effective[chosen].min():.0f}",
            ]
        )  # fmt: skip
    head = ["parameter", "number", "largest shift [σ]", "RMS shift [σ]", "width ratio, median", "range", "least n_eff"]
    return markdown(head, rows)


def summary(found: dict[str, Comparison]) -> str:
    """One row a comparison."""
    from tables import markdown

    rows = []
    for label, one in found.items():
        shift, ratio, n = np.abs(one.mean_shift), one.width_ratio, len(one.names)
        rows.append(
            [
                label, f"{np.sqrt(np.mean(shift**2)):.2f}", f"{shift.max():.2f}", f"{np.sum(shift < 0.2)} of {n}",
                f"{np.median(ratio):.2f} ({ratio.min():.2f}-{ratio.max():.2f})",
                f"{np.sum(np.abs(ratio - 1.0) < 0.15)} of {n}",
            ]
        )  # fmt: skip
    head = ["problem", "RMS shift of means [σ]", "largest", "within 0.2", "ratio of widths, median", "within 15 %"]
    return markdown(head, rows)


def figure(comparisons: dict[str, Comparison], path) -> None:
    """Widths and means of the sampler against those reported, one colour a comparison."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    kinds = list(dict.fromkeys(next(iter(comparisons.values())).names))
    axis, (left, right) = plt.subplots(1, 2, figsize=(10, 4.2), sharey=True, layout="constrained")
    for k, (label, found) in enumerate(comparisons.items()):
        row = np.array([kinds.index(name) for name in found.names]) + 0.25 * (k - 0.5 * (len(comparisons) - 1))
        left.plot(found.width_ratio, row, "o", ms=4, alpha=0.7, label=label)
        right.plot(found.mean_shift, row, "o", ms=4, alpha=0.7)
    left.axvspan(0.85, 1.15, color="0.9", zorder=0)
    right.axvspan(-0.2, 0.2, color="0.9", zorder=0)
    left.set_yticks(range(len(kinds)), kinds)
    left.invert_yaxis()
    left.set_xlabel("sampler's standard deviation / error told")
    right.set_xlabel("(sampler's mean − value told) / error reported")
    left.legend(loc="lower right")
    axis.savefig(path, dpi=110)
    plt.close(axis)
