"""Validation by injection and recovery: the tables of docs/validation.md.

    python tests/validation/run.py                              # everything, some hours
    python tests/validation/run.py calibration --seeds 30       # one item
    python tests/validation/run.py calibration --records FILE   # go on where an earlier run stopped
    python tests/validation/run.py tables                       # docs/validation.md from the records that are kept

`ITEMS` has the seeds and the part of the order of each item, as the document shows them; --seeds and --part override
these for all items that are run. Real spectra and another star's template lie in the folder ../shared beside the
repository: without it `star` is skipped, and `priors` measures only its simulation. Every fit is one line of JSON in
--records, with the commit of the code; what stands there is not run again, so that seeds add up over sessions. Tables
are printed, never asserted: what must hold is in `test_validation.py`, on few seeds.

`tables` runs no fit. It writes the tables and figures of the document from `records/` and from --records.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))
import record_files
from record_files import key


class Item(NamedTuple):
    """What an item does by default: seeds of each case and, where that can be chosen, the part of the order."""

    seeds: int | None
    part: float | None
    section: str
    """Of docs/validation.md."""


ITEMS = {
    "calibration": Item(200, 1.0, "1"),
    "bound": Item(1, 1.0, "1"),
    "changed": Item(8, 0.3, "2"),
    "missing": Item(20, 1.0, "3"),
    "scattered": Item(8, 1.0, "3"),
    "star": Item(8, 0.3, "4"),
    "flaws": Item(8, 0.3, "5"),
    "sampler": Item(3, None, "6"),
    "means": Item(12, 1.0, "6"),
    "bugs": Item(None, None, "7"),
    "priors": Item(4, None, "8"),
    "orders": Item(100, None, "9"),
    "start": Item(21, None, "11"),
    "quality": Item(16, None, "10"),
    "another": Item(None, None, "12"),
}

SNRS, VSINIS = (100.0, 300.0), (3.0, 15.0)


def tasks(item: str, seeds: range, truths: list[str], part: float) -> list[tuple[str, dict]]:
    """Functions of `cases` and their arguments; seed by seed, so that a run cut short has all cases."""
    import cases

    if item == "calibration":
        return [
            ("calibration", {"snr": snr, "vsini": vsini, "truth": truth, "seed": seed, "part": part})
            for seed in seeds
            for truth in truths
            for snr in SNRS
            for vsini in VSINIS
        ]
    if item in ("means", "bound"):
        return [
            (item, {"snr": snr, "vsini": vsini, "seed": seed, "part": part})
            for seed in seeds
            for snr in SNRS
            for vsini in VSINIS
        ]
    if item == "changed":
        return [
            ("changed", {"snr": snr, "vsini": 8.3, "seed": seed, "part": part, "ln_area": width})
            for seed in seeds
            for width in (None, cases.EXPECTED)
            for snr in SNRS
        ]
    if item in ("missing", "scattered"):
        return [
            ("missing", {"snr": snr, "vsini": 8.3, "truth": truth, "seed": seed, "part": part})
            for seed in seeds
            for truth in (("clone",) if item == "missing" else truths)
            for snr in SNRS
        ]
    if item == "star":
        return [
            ("wrong_star", {"snr": snr, "vsini": 3.0, "name": name, "jitter": jitter, "seed": seed, "part": part})
            for seed in seeds
            for snr in SNRS
            for name, jitter in (("right", False), ("sun_5777_hpf", False), ("sun_5777_hpf", True))
        ]
    if item == "flaws":
        return [
            ("flaw", {"name": name, "snr": 100.0, "vsini": 8.3, "seed": seed, "part": part})
            for seed in seeds
            for name in cases.FLAWS
        ]
    if item == "start":
        import starts

        return starts.tasks(seeds)
    if item == "orders":
        from simulated_nights import FOUR

        whole = [
            ("orders", {"snr": snr, "orders": list(range(28)), "seed": 0, "alone": True}) for snr in (100.0, 400.0)
        ]
        return whole + [
            ("orders", {"snr": 100.0, "orders": list(FOUR), "seed": seed, "alone": False}) for seed in seeds
        ]
    if item == "quality":
        import assessed_fits

        return assessed_fits.tasks(seeds)
    if item == "another":
        import other_star

        return other_star.tasks()
    if item == "bugs":
        import planted_bugs

        return planted_bugs.tasks()
    raise ValueError(item)


def one(task: tuple[str, dict]) -> dict:
    import assessed_fits
    import cases
    import cramer_rao
    import measured_priors
    import other_star
    import planted_bugs
    import simulated_nights
    import starts

    name, arguments = task
    elsewhere = {
        "orders": simulated_nights,
        "bound": cramer_rao,
        "start": starts,
        "fitted": starts,
        "assessed": assessed_fits,
        "another": other_star,
        "bug": planted_bugs,
    } | dict.fromkeys(measured_priors.CASES, measured_priors)
    module = elsewhere.get(name, cases)
    return {"case": name, "arguments": arguments, "result": getattr(module, name)(**arguments)}


def single_thread() -> None:
    import torch

    torch.set_num_threads(1)


def collect(todo: list[tuple[str, dict]], path: Path | None, jobs: int) -> list[dict]:
    """Records of all tasks, of which those in the file are not run; each new one carries the commit."""
    known = record_files.read(path) if path is not None and path.exists() else {}
    missing = [task for task in todo if key(*task) not in known]
    if not missing:
        return [known[key(*task)] for task in todo]
    commit = record_files.commit()
    with multiprocessing.get_context("spawn").Pool(jobs, single_thread) as pool:
        for record in pool.imap_unordered(one, missing):
            record |= {"commit": commit}
            known[key(record["case"], record["arguments"])] = record
            if path is not None:
                record_files.append(path, record)
    return [known[key(*task)] for task in todo]


def sample(seeds: range, figure: Path | None) -> None:
    """Section 6: the sampler under the default priors and under Gaussians."""
    import sampler

    from specutils_blase.inference.priors import LinePriors

    found, drawn = {}, {}
    for seed in seeds:
        for priors, freedom in (("Student's t", 4.0), ("Gaussian", float("inf"))):
            both = sampler.compare(LinePriors(degrees_of_freedom=freedom), sampler.FIRST_SEED + seed)
            for told, one in zip(("ledger", "line means"), both, strict=True):
                found[f"{seed}, {priors}, {told}"] = one
                if seed == seeds[0] and freedom < float("inf"):
                    drawn[told] = one
                    print(f"{seed}, {priors}, {told}:\n\n{sampler.table(one)}\n", flush=True)
    print(sampler.summary(found))
    if figure is not None:
        sampler.figure(drawn, figure)


def measure_priors(seeds: range, path: Path | None, jobs: int) -> None:
    """Section 8: widths of real pairs and of a simulation, then held-out pixels with these widths."""
    import measured_priors
    import tables

    if reason := measured_priors.reason_to_skip():
        print(f"only the simulation: {reason}\n")
    records = collect(measured_priors.measuring_tasks(seeds), path, jobs)
    print(tables.priors(records), flush=True)
    records = collect(measured_priors.held_out_tasks(records), path, jobs)
    if records:
        print(f"\n{tables.held_out(records)}", flush=True)


def run(item: str, given: argparse.Namespace) -> None:
    """Make the tables of one item."""
    import cases
    import tables

    n_seed, part, _ = ITEMS[item]
    seeds = range(given.first_seed, given.first_seed + ((n_seed or 0) if given.seeds is None else given.seeds))
    if item == "sampler":
        sample(seeds, given.figure)
    elif item == "priors":
        measure_priors(seeds, given.records, given.jobs)
    elif item in ("star", "start", "another") and (reason := cases.reason_to_skip()):
        print(f"skipped: {reason}", flush=True)
    else:
        part = part if given.part is None else given.part
        records = collect(tasks(item, seeds, given.truth, part), given.records, given.jobs)
        print(getattr(tables, item)(records), flush=True)


def write_document(records: Path | None) -> None:
    """Tables and figures of the document, from the records beside this file and one file more."""
    import claims
    import document
    import record_figures

    paths = [*sorted(record_files.FOLDER.glob("*.jsonl")), *([records] if records else [])]
    found = list(record_files.read(*paths).values())
    text = document.DOCUMENT.read_text(encoding="utf-8")
    document.DOCUMENT.write_text(document.written(text, found, {"claims": claims.summary}), encoding="utf-8")
    for name in document.names(text):
        some = found if name == "claims" else document.chosen(name, found)
        print(f"{name}: {record_files.told(some) if some else 'no records, kept as it is'}")
    for path in record_figures.draw(found, record_figures.FOLDER):
        print(path.name)


def by_default(name: str) -> str:
    """The values of a column of `ITEMS`, for the help."""
    return ", ".join(f"{item} {value:g}" for item, one in ITEMS.items() if (value := getattr(one, name)) is not None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "item", nargs="*", help=f"among {', '.join(ITEMS)}; all by default. Or: tables, which writes the document"
    )
    parser.add_argument("--seeds", type=int, help=f"number of truths and noises of each case: {by_default('seeds')}")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument(
        "--truth",
        nargs="*",
        default=["prior"],
        choices=["prior", "gaussian", "clone"],
        help="how true lines scatter about the clones, of calibration and scattered",
    )
    parser.add_argument("--part", type=float, help=f"fit only the first part of the order: {by_default('part')}")
    parser.add_argument("--records", type=Path, help="file of JSON lines to read and add to")
    parser.add_argument("--figure", type=Path, help="where to draw the comparison with the sampler")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    given = parser.parse_args()
    if given.item == ["tables"]:
        write_document(given.records)
        return
    if unknown := set(given.item) - set(ITEMS):
        parser.error(f"no item {', '.join(sorted(unknown))}: choose among {', '.join(ITEMS)}")
    for item in given.item or ITEMS:
        print(f"\n## {item}\n", flush=True)
        run(item, given)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
