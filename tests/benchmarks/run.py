"""Benchmarks of the sparse engine: time, accuracy and peak memory, each in a fresh process.

    python tests/benchmarks/run.py                 # everything, about half an hour
    python tests/benchmarks/run.py t4700 forward   # some of it
    python tests/benchmarks/run.py --repeat 3      # medians of three

Needs the folder ``shared`` beside the repository, and a quiet machine. Figures are printed, never asserted; what they
stand on is tested in `test_benchmarks.py`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
SHARED = HERE.parents[2] / "shared"
LAWS = ("log", "linear", "minnaert")
STARS = ("arcturus_4286_hpf", "sun_5777_hpf", "mdwarf_3500_hpf")


def spectrum(wavelength, flux):
    import astropy.units as u
    from specutils import Spectrum

    return Spectrum(flux=flux * u.one, spectral_axis=wavelength * u.AA)


def t4700():
    """The benchmark spectrum; building it takes a quarter of a minute, so it is kept for the session."""
    import numpy as np

    kept = Path(os.environ.get("TMPDIR", "/tmp")) / f"specutils_blase_t4700_{os.getuid()}.npy"
    if not kept.exists():
        sys.path.insert(0, str(SHARED / "tools"))
        from t4700 import t4700 as build

        np.save(kept, np.stack(build()))
    return np.load(kept)


def template(name):
    if name == "t4700":
        return spectrum(*t4700())
    sys.path.insert(0, str(SHARED / "tools"))
    import templates

    own = {"phoenix_10000K": templates.phoenix_10000K, "telfit_hpf": templates.telfit_hpf, "psg_hk": templates.psg_hk}
    return own[name]() if name in own else templates.lte(name)


def interior_rms(result):
    """RMS over the pixels 60 Å inside both ends, in per cent."""
    import numpy as np

    wavelength = result.template.spectral_axis.value
    inside = (wavelength > wavelength[0] + 60.0) & (wavelength < wavelength[-1] - 60.0)
    return 100.0 * float(
        np.sqrt(np.nanmean((result.template.flux.value - result.model_spectrum.flux.value)[inside] ** 2))
    )


def cloned(name, noise=0.0, **options):
    """A clone of a template, to which white noise may be added."""
    import numpy as np
    from specutils import Spectrum

    import specutils_blase as sb

    given = template(name)
    if noise:
        added = np.random.default_rng(0).normal(0.0, noise, given.flux.size)
        given = Spectrum(flux=given.flux + added * given.flux.unit, spectral_axis=given.spectral_axis)
    if name == "phoenix_10000K":
        options["continuum"] = 7
    work = sb.clone  # loads torch: imports do not count
    start = time.perf_counter()
    result = work(given, progress=False, **options)
    seconds = time.perf_counter() - start
    return result, {
        "lines": len(result.emulator),
        "pixels": len(given.flux),
        "rms_percent": interior_rms(result),
        "seconds": seconds,
        "iterations": len(result.history) - 1,
    }


def clone_benchmark(name, **options):
    return cloned(name, in_rounds=False, **options)[1]


def clone_target(name, **options):
    """A clone to a target; for T4700, how many of the true lines deeper than 1 % lie within 0.02 Å of one of it."""
    import numpy as np

    result, figures = cloned(name, **options)
    figures["rounds"] = "; ".join(f"{r['lines']}: {100 * r['rms']:.2f} %" for r in result.settings["rounds"])
    figures["message"], figures["noise_percent"] = result.message, 100.0 * result.settings["noise"]
    if name == "t4700":
        lines = np.load(SHARED / "data" / "blase" / "T4700g4p5_lines.npz")
        from scipy.special import voigt_profile

        deep = lines["area"] * voigt_profile(0.0, lines["sigma"], lines["gamma"]) > 0.01
        true, found = lines["center"][deep], np.sort(result.ledger["center"].value)
        at = np.searchsorted(found, true).clip(1, len(found) - 1)
        near = np.minimum(np.abs(found[at] - true), np.abs(found[at - 1] - true)) < 0.02
        figures["true_lines"], figures["recovered_percent"] = int(deep.sum()), 100.0 * float(near.mean())
    return figures


def emulator_of_t4700(law, n_line=5646):
    """The deepest of the published lines, on the benchmark's wavelengths."""
    import numpy as np
    import torch

    from specutils_blase.model.emulator import LineEmulator
    from specutils_blase.physics.grids import Sampling

    lines = np.load(SHARED / "data" / "blase" / "T4700g4p5_lines.npz")
    deepest = np.argsort(lines["area"] / lines["sigma"])[::-1][:n_line]
    emulator = LineEmulator(*(lines[name][deepest] for name in ("center", "area", "sigma", "gamma")), law=law)
    return emulator, Sampling(torch.as_tensor(t4700()[0]))


def forward(law):
    import torch

    emulator, sampling = emulator_of_t4700(law)
    parameters = [emulator.ln_area, emulator.ln_sigma, emulator.ln_gamma, emulator.rv_offset]

    def timed(work, n=5):
        work()
        times = []
        for _ in range(n):
            start = time.perf_counter()
            work()
            times.append(time.perf_counter() - start)
        return statistics.median(times)

    with torch.no_grad():
        alone = timed(lambda: emulator(sampling))
    both = timed(lambda: torch.autograd.grad(emulator(sampling).square().sum(), parameters))
    entries = int(emulator.windows(sampling).count.sum())
    return {
        "lines": len(emulator),
        "pixels": len(sampling),
        "entries_per_line": entries / len(emulator),
        "seconds": alone,
        "seconds_with_gradient": both,
    }


def voigt(n_point=2_000_000):
    """All derivatives against scipy's value alone, on as many threads."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import torch
    from scipy.special import wofz

    from specutils_blase.physics.voigt import voigt_with_derivatives

    rng = np.random.default_rng(1)
    x = rng.uniform(-3.0, 3.0, n_point)
    sigma, gamma = rng.uniform(0.03, 0.1, n_point), rng.uniform(0.005, 0.1, n_point)
    tensors = [torch.as_tensor(values) for values in (x, sigma, gamma)]
    n_thread = torch.get_num_threads()
    z = (x + 1j * gamma) / (sigma * np.sqrt(2.0))
    parts = np.array_split(z, 8 * n_thread)

    def reference():
        with ThreadPoolExecutor(n_thread) as pool:
            return list(pool.map(wofz, parts))

    times = {"ours": [], "scipy": []}
    voigt_with_derivatives(*tensors)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    voigt_with_derivatives(*tensors)
    extra = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / (8 * n_point)
    for _ in range(5):
        for name, work in (("ours", lambda: voigt_with_derivatives(*tensors)), ("scipy", reference)):
            start = time.perf_counter()
            work()
            times[name].append(time.perf_counter() - start)
    ours, scipy = (statistics.median(times[name]) for name in ("ours", "scipy"))
    return {"points": n_point, "seconds": ours, "scipy_seconds": scipy, "ratio": ours / scipy, "more_arrays": extra}


def scaling(n_line, fixed):
    """One forward and backward of random lines, at fixed density (bandwidth grows) or at fixed bandwidth."""
    import numpy as np
    import torch

    from specutils_blase.model.emulator import LineEmulator
    from specutils_blase.physics.grids import Sampling, velocity_grid

    span = np.log(1.6) * (n_line / 30_000 if fixed == "density" else 1.0)
    low = 8000.0
    high = low * np.exp(span)
    rng = np.random.default_rng(n_line)
    center = low * np.exp(rng.uniform(0.0, span, n_line))
    emulator = LineEmulator(
        center, rng.uniform(0.002, 0.05, n_line), rng.uniform(0.03, 0.08, n_line), rng.uniform(0.01, 0.05, n_line)
    )
    sampling = Sampling(velocity_grid(low, high, 0.4))
    parameters = [emulator.ln_area, emulator.ln_sigma, emulator.ln_gamma, emulator.rv_offset]
    base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    times = []
    for _ in range(4):
        start = time.perf_counter()
        torch.autograd.grad(emulator(sampling).square().sum(), parameters)
        times.append(time.perf_counter() - start)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
    return {"lines": n_line, "pixels": len(sampling), "seconds": statistics.median(times[1:]), "grown_mb": grown}


def order_fit():
    """One HPF-like order with both clones ready, from the demonstration."""
    import specutils_blase as sb
    from specutils_blase import demo

    made = demo.run()
    start = time.perf_counter()
    result = sb.fit(made.data, made.star, telluric=made.sky, resolving_power=55_000, progress=False)
    return {
        "lines": len(result.ledger),
        "pixels": len(made.data.flux),
        "seconds": time.perf_counter() - start,
        "iterations": len(result.history),
        "converged": result.success,
    }


def night(name, **options):
    """Whole nights, in a module of their own."""
    import real_nights

    return getattr(real_nights, name)(**options)


BENCHMARKS = {
    "t4700": {
        f"{law}, {n} iterations": (clone_benchmark, {"name": "t4700", "flux_scale": law, "max_iterations": n})
        for law in ("linear", "log")
        for n in (0, 1, 2, 4)
    },
    "t4700_target": {
        law: (clone_target, {"name": "t4700", "flux_scale": law, "rms_target": 0.002}) for law in ("linear", "log")
    },
    "stars": {
        f"{star} {law} {prominence}": (
            clone_benchmark,
            {"name": star, "flux_scale": law, "prominence": prominence, "max_iterations": 6},
        )
        for star in STARS
        for law in LAWS
        for prominence in (0.01, 0.003)
    },
    "stars_target": {
        f"{star} {law}": (clone_target, {"name": star, "flux_scale": law, "rms_target": 0.003})
        for star in STARS
        for law in LAWS
    }
    | {"arcturus to 0.9 %": (clone_target, {"name": STARS[0], "flux_scale": "log", "rms_target": 0.009})},
    "clones": {
        f"{name}{', noise 0.1 %' if noise else ''}": (clone_target, {"name": name, "noise": noise, **options})
        for name, noise, options in (
            ("t4700", 0.0, {}),
            ("t4700", 0.001, {}),
            *((star, 0.0, {}) for star in STARS),
            (STARS[0], 0.001, {}),
            ("phoenix_10000K", 0.0, {}),
            ("telfit_hpf", 0.0, {"resolving_power": 55_000}),
            ("psg_hk", 0.0, {"resolving_power": 100_000}),
        )
    },
    "phoenix": {
        law: (clone_benchmark, {"name": "phoenix_10000K", "flux_scale": law, "max_iterations": 6}) for law in LAWS
    },
    "forward": {law: (forward, {"law": law}) for law in ("log", "linear")},
    "voigt": {"all derivatives": (voigt, {})},
    "scaling": {
        f"fixed {fixed}, {n}": (scaling, {"n_line": n, "fixed": fixed})
        for fixed in ("density", "bandwidth")
        for n in (1_000, 3_000, 10_000, 30_000)
    },
    "order": {"demonstration": (order_fit, {})},
    "nights": {
        "HR 3039": (night, {"name": "hpf", "star": "hr3039"}),
        "HR 3039, every second order": (night, {"name": "hpf", "star": "hr3039", "every": 2}),
        "HR 3039, every fourth order": (night, {"name": "hpf", "star": "hr3039", "every": 4}),
        "GJ 699": (night, {"name": "hpf", "star": "gj699"}),
        "CPD-57 1131, H": (night, {"name": "igrins", "band": "H"}),
        "CPD-57 1131, K": (night, {"name": "igrins", "band": "K"}),
        "CPD-57 1131, K, all molecules as one": (night, {"name": "igrins", "band": "K", "species": False}),
    },
}


def child(group: str, case: str) -> None:
    """Run one case here and write its figures as one line of JSON."""
    import logging
    import warnings

    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    work, options = BENCHMARKS[group][case]
    figures = work(**options)
    figures["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    sys.stdout.write("\n" + json.dumps(figures) + "\n")


def measured(group: str, case: str, repeat: int) -> dict:
    """Median of every number over fresh processes."""
    runs = []
    for _ in range(repeat):
        command = [sys.executable, str(Path(__file__).resolve()), "--child", group, case]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"failed": done.stderr.strip().splitlines()[-1]}
        runs.append(json.loads(done.stdout.strip().splitlines()[-1]))
    return {
        name: statistics.median(run[name] for run in runs) if isinstance(value, float) else value
        for name, value in runs[0].items()
    }


def exponent(rows: dict[str, dict], quantity: str) -> float:
    """Slope of ln quantity against ln lines."""
    import numpy as np

    points = [(row["lines"], max(row[quantity], 1e-9)) for row in rows.values() if "failed" not in row]
    return float(np.polyfit(*np.log(np.array(points)).T, 1)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"among {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--repeat", type=int, default=1, help="runs of each case; medians are printed")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(*arguments.child)
        return
    unknown = set(arguments.groups) - set(BENCHMARKS)
    if unknown:
        parser.error(f"no such group: {', '.join(sorted(unknown))}")
    for group in arguments.groups or BENCHMARKS:
        sys.stdout.write(f"\n{group}\n")
        rows = {}
        for case in BENCHMARKS[group]:
            rows[case] = measured(group, case, arguments.repeat)
            text = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in rows[case].items())
            sys.stdout.write(f"  {case:32s} {text}\n")
            sys.stdout.flush()
        if group == "scaling":
            for fixed in ("density", "bandwidth"):
                part = {case: row for case, row in rows.items() if fixed in case}
                sys.stdout.write(
                    f"  fixed {fixed}: time grows as lines^{exponent(part, 'seconds'):.2f}, "
                    f"memory as lines^{exponent(part, 'grown_mb'):.2f}\n"
                )


if __name__ == "__main__":
    main()
