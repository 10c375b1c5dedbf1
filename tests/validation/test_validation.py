"""A seeded subset of the validation: what docs/validation.md tabulates, on a third of an order and few seeds.

Limits are those of chance for so few seeds, not of the method: the tables say how good it is.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import cases  # noqa: E402 - scripts, not a package
import planted_bugs  # noqa: E402
import sampler  # noqa: E402
import tables  # noqa: E402

PART = 0.3
SEEDS = range(3)


def records(case, **arguments):
    """As `run.py` keeps them."""
    found = []
    for seed in SEEDS:
        given = {**arguments, "part": PART, "seed": seed}
        found.append({"case": case, "arguments": given, "result": getattr(cases, case)(**given)})
    return found


@pytest.fixture(scope="module")
def calibrated():
    return records("calibration", snr=100.0, vsini=8.3, truth="prior")


def test_errors_are_calibrated(calibrated):
    """Truths from the priors: velocities within 3 of their errors, pulls of strong lines of width 1 and about 0."""
    results = [record["result"] for record in calibrated]
    assert all(result["success"] for result in results)
    for name in ("rv", "vsini"):
        pulls = tables.column(results, name) / tables.column(results, f"{name}_err")
        assert np.abs(pulls).max() < 3.0 and np.sqrt(np.mean(pulls**2)) < 1.7, (name, pulls)
    for name in ("ln_area", "equivalent_width"):
        pulls = tables.pooled(results, name)
        assert pulls.size > 50
        # A standard deviation of n pulls is known to 1/√(2n); three seeds have 50 to 100.
        assert abs(pulls.std() - 1.0) < 3.0 / np.sqrt(2.0 * pulls.size), name
        assert abs(np.median(pulls)) < 0.4, name
    assert 0.85 < np.mean(tables.column(results, "chi2")) < 1.15


def test_tables_are_markdown(calibrated):
    table = tables.calibration(calibrated).splitlines()
    assert len(table) == 3
    assert {line.count("|") for line in table} == {16}
    assert table[2].startswith("| prior | 100 | 8.3 | 3 (3) |")


def test_changed_lines_come_back_and_others_stay():
    """A fifth of the lines off by up to a factor of ten, on one seed."""
    result = cases.changed(snr=300.0, vsini=8.3, seed=1, part=PART)
    visible = np.array(result["changed_snr"]) > 3.0
    assert visible.sum() >= 5
    assert np.mean(np.abs(np.array(result["changed"])[visible]) < 2.0) >= 0.8
    assert np.mean(np.abs(result["unchanged"]) > 3.0) <= 0.05


def test_a_wrong_resolving_power_goes_to_the_rotation():
    """Told 10 % too high, v sin i makes up for it; the radial velocity stays where it was."""
    right, wrong = (
        cases.flaw(name, snr=100.0, vsini=8.3, seed=0, part=PART)
        for name in ("none", "resolving power told 10 % too high")
    )
    assert wrong["vsini"] - right["vsini"] > 0.5 * right["vsini_err"]
    assert abs(wrong["rv"] - right["rv"]) < 0.5 * right["rv_err"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # pyro's own, of the newest torch
def test_errors_against_a_sampler():
    """Twenty lines, Gaussian priors: RMS shift below 0.2, widths within 15 % and the chance of so few samples."""
    pytest.importorskip("pyro")
    from specutils_blase.priors import LinePriors

    found = sampler.compare(LinePriors(degrees_of_freedom=np.inf), n_warmup=60, n_sample=250)
    assert len(found.names) == 84
    assert np.sqrt(np.mean(found.mean_shift**2)) < 0.2
    assert np.abs(np.log(np.median(found.width_ratio))) < 0.05
    assert np.all(np.abs(np.log(found.width_ratio)) < 0.35)


def test_lines_taken_out_of_the_templates_are_found():
    """Two seeds of the whole order: nearly all above 5 σ, about one false line in 1000 pixels, the velocity is back."""
    results = [cases.missing(snr=100.0, vsini=8.3, seed=seed) for seed in range(2)]
    possible = np.concatenate([result["possible"] for result in results])
    found = np.concatenate([result["found"] for result in results])
    assert (possible > 5.0).sum() >= 8
    assert found[possible > 10.0].all() and found[possible > 5.0].mean() > 0.85
    assert sum(len(result["stray"]) for result in results) <= 4
    for result in results:
        assert abs(result["rv_with"]) < 3.0 * result["rv_err_with"]


def test_the_command_explains_itself(tmp_path):
    def run(*arguments):
        return subprocess.run(
            [sys.executable, str(HERE / "run.py"), *arguments], capture_output=True, text=True, cwd=tmp_path, timeout=60
        )

    told = run("--help")
    assert told.returncode == 0
    assert "calibration, changed, missing, star, flaws, orders, sampler" in " ".join(told.stdout.split())
    assert "no item spectra" in run("spectra").stderr
    assert list(tmp_path.iterdir()) == []


def test_planted_bugs_still_fit_their_places():
    """Each text to be replaced stands exactly once in its module, and the test files that are to notice exist."""
    package = planted_bugs.ROOT / "specutils_blase"
    for name, bug in planted_bugs.BUGS.items():
        assert (package / bug.module).read_text().count(bug.right) == 1, name
        assert all((planted_bugs.ROOT / "tests" / test).exists() for test in bug.tests), name


def test_a_planted_bug_is_caught():
    assert "test_gaussian_full_width_at_half_maximum" in planted_bugs.caught(planted_bugs.BUGS["half-for-full"])
