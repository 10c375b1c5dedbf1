"""Plant one bug at a time in a copy of the package and see that the tests catch it.

    python tests/validation/planted_bugs.py                 # all, some minutes
    python tests/validation/planted_bugs.py sky-moves       # some of them

The text that a bug replaces must stand exactly once in its module: a bug that no longer fits is an error, not a pass.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]


class Bug(NamedTuple):
    """What is wrong, where, the right text and the wrong one, and the test files that are to notice."""

    what: str
    module: str
    right: str
    wrong: str
    tests: tuple[str, ...]


BUGS = {
    "sigma-is-half-width": Bug(
        "σ of a profile too large by √2",
        "physics/voigt.py",
        "inverse_width = (sigma * math.sqrt(2.0)).reciprocal_()",
        "inverse_width = (sigma * 2.0).reciprocal_()",
        ("physics/test_voigt.py",),
    ),
    "chain-rule": Bug(
        "derivative to γ where that to ln γ is meant",
        "inference/linear/jacobian.py",
        '"ln_gamma": lambda: area * gamma * d_gamma,',
        '"ln_gamma": lambda: area * d_gamma,',
        ("physics/test_compiled.py",),
    ),
    "chain-rule-compiled": Bug(
        "the same in machine code",
        "physics/compiled_voigt.py",
        "factor, source = a * g, d_gamma",
        "factor, source = a, d_gamma",
        ("inference/test_jacobian.py",),
    ),
    "share-of-a-level": Bug(
        "lines handed over to coarser grids twice",
        "physics/compiled_voigt.py",
        "share[i] -= _cutoff(come_in",
        "share[i] -= 0.9 * _cutoff(come_in",
        ("model/test_emulator.py",),
    ),
    "dropped-rotation": Bug(
        "changes of stellar lines not rotated in the Jacobian",
        "inference/linear/jacobian.py",
        "rotation = self.rotation[name]\n",
        "rotation = None\n",
        ("physics/test_compiled.py",),
    ),
    "dropped-sky-compiled": Bug(
        "changes of stellar lines not dimmed by the sky, in machine code",
        "physics/compiled_grids.py",
        "dimmed[i] = other[min(max(begin[j] + i, 0), n_node - 1)]",
        "dimmed[i] = 1.0",
        ("inference/test_jacobian.py",),
    ),
    "blue-is-red": Bug(
        "radial velocity of the wrong sign",
        "model/extrinsic.py",
        "return 1.0 + self.rv / SPEED_OF_LIGHT",
        "return 1.0 - self.rv / SPEED_OF_LIGHT",
        ("model/test_extrinsic.py", "model/test_order.py"),
    ),
    "sky-moves": Bug(
        "the sky moves with the star",
        "model/order.py",
        'parts.append(Component("telluric", telluric))',
        'parts.append(Component("telluric", telluric, doppler=doppler))',
        ("model/test_order.py",),
    ),
    "sky-behind-the-slit": Bug(
        "telluric lines multiplied after the line spread",
        "model/order.py",
        "smeared = before if self.line_spread is None else self.line_spread(before)",
        "smeared = before if self.line_spread is None else self.line_spread(parts['star'].seen) * "
        "parts['telluric'].seen if {'star', 'telluric'} == set(parts) else self.line_spread(before)",
        ("model/test_order.py",),
    ),
    "half-for-full": Bug(
        "resolving power taken for λ over the half width",
        "physics/kernels.py",
        "FWHM_PER_SIGMA = 2.0 * math.sqrt",
        "FWHM_PER_SIGMA = math.sqrt",
        ("physics/test_kernels.py", "model/test_instrument.py", "model/test_order.py"),
    ),
    "pixel-edge": Bug(
        "pixels one node off",
        "model/instrument.py",
        "node = start.unsqueeze(1) + torch.arange(weight.shape[1], device=weight.device)",
        "node = start.unsqueeze(1) + 1 + torch.arange(weight.shape[1], device=weight.device)",
        ("model/test_instrument.py",),
    ),
    "variance-is-sigma": Bug(
        "variances of the data read as standard deviations",
        "spectra/flux.py",
        "return values ** (1 / powers[kind])",
        "return values ** (-1 if powers[kind] < 0 else 1)",
        ("spectra/test_reading.py",),
    ),
    "prior-precision": Bug(
        "prior precision 1/s where 1/s² is meant",
        "inference/objective.py",
        "getattr(priors, kind) ** -2",
        "getattr(priors, kind) ** -1",
        ("inference/test_objective.py", "posterior/test_laplace.py"),
    ),
    "student-t": Bug(
        "curvature of Student's t with ν for ν + 1",
        "inference/objective.py",
        "(freedom + 1.0) / (freedom + self.square(vector))",
        "freedom / (freedom + self.square(vector))",
        ("inference/test_objective.py",),
    ),
    "half-a-line": Bug(
        "equivalent width of one side of a line",
        "ledger/equivalent_widths.py",
        "return 2.0 * (depth * weight",
        "return (depth * weight",
        ("ledger/test_ledger.py",),
    ),
    "barycentre": Bug(
        "barycentric correction of the wrong sign",
        "fitting/assembly.py",
        "rv * factor + velocity",
        "rv * factor - velocity",
        ("fitting/test_echelle_fit.py", "test_real_data.py"),
    ),
    "jitter-adds-up": Bug(
        "jitter added to σ and not in quadrature",
        "fitting/residuals/noise.py",
        "return (self.factor[k] * self.sigma[k]).square() + self.jitter[k] ** 2",
        "return (self.factor[k] * self.sigma[k] + self.jitter[k]).square()",
        ("fitting/test_noise.py",),
    ),
    "neighbours-forgotten": Bug(
        "marginal errors without the next block of the matrix",
        "inference/linear/cholesky.py",
        "inverse = inverse + gain @ result[index + 1] @ gain.mT",
        "inverse = inverse + 0.0 * gain @ result[index + 1] @ gain.mT",
        ("inference/test_normal_equations.py",),
    ),
    "blase-swap": Bug(
        "blasé's σ and γ not swapped back",
        "adapters/blase.py",
        "parts = (center, area, gamma, sigma)",
        "parts = (center, area, sigma, gamma)",
        ("adapters/test_blase_states.py",),
    ),
}


def planted(bug: Bug, package: Path) -> None:
    """Put a bug into a copy of the package; RuntimeError if the place is not there exactly once."""
    path = package / bug.module
    text = path.read_text()
    if text.count(bug.right) != 1:
        raise RuntimeError(f"expected once in {bug.module}, found {text.count(bug.right)} times: {bug.right!r}")
    path.write_text(text.replace(bug.right, bug.wrong))


def caught(bug: Bug) -> str:
    """The first test that fails with the bug; empty if none does."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "main"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "*.asdf.tmp"))
        if (ROOT.parent / "shared").exists():
            (Path(folder) / "shared").symlink_to(ROOT.parent / "shared")
        planted(bug, copy / "specutils_blase")
        where = "import specutils_blase; print(specutils_blase.__file__)"
        environment = os.environ | {"PYTHONPATH": str(copy), "OMP_NUM_THREADS": "1"}
        options = {"cwd": copy, "env": environment, "capture_output": True, "text": True, "check": False}
        found = subprocess.run([sys.executable, "-c", where], **options).stdout.strip()
        if not found.startswith(str(copy)):
            raise RuntimeError(f"the tests would see {found}, not the copy with the bug")
        tests = [f"tests/{name}" for name in bug.tests]
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-n0", "-x", "-q", "-p", "no:cacheprovider", *tests], **options
        )
        failed = re.search(r"^(?:FAILED|ERROR) ([^\s[]+)", done.stdout, flags=re.MULTILINE)
        if done.returncode not in (0, 1) or (done.returncode == 1 and failed is None):
            raise RuntimeError(f"the tests did not run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
        return failed.group(1) if failed else ""


def tasks() -> list[tuple[str, dict]]:
    """Of `run.py`: one a bug."""
    return [("bug", {"name": name}) for name in BUGS]


def bug(name: str) -> dict:
    """What is recorded of a bug: the first test that fails, nothing if none does, and how long that took."""
    start = time.perf_counter()
    test = caught(BUGS[name]).removeprefix("tests/")
    return {"caught_by": test, "seconds": time.perf_counter() - start}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="*", help=f"among {', '.join(BUGS)}; all by default")
    given = parser.parse_args()
    if unknown := set(given.name) - set(BUGS):
        parser.error(f"no bug {', '.join(sorted(unknown))}")
    survived = 0
    print("| bug | module | caught by | seconds |\n| --- | --- | --- | --- |")
    for name in given.name or BUGS:
        found = bug(name)
        survived += not found["caught_by"]
        test = found["caught_by"] or "NOTHING"
        print(f"| {BUGS[name].what} | {BUGS[name].module} | {test} | {found['seconds']:.0f} |", flush=True)
    sys.exit(1 if survived else 0)


if __name__ == "__main__":
    main()
