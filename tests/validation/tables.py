"""From records of fits to the Markdown tables of docs/validation.md."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
from scipy.stats import binomtest


def grouped(records: list[dict], *names: str) -> dict[tuple, list[dict]]:
    """Results by the values of some arguments, in the order in which these first came."""
    groups = defaultdict(list)
    for record in records:
        groups[tuple(record["arguments"][name] for name in names)].append(record["result"])
    return groups


def column(results: list[dict], name: str) -> np.ndarray:
    return np.array([result[name] for result in results])


def pooled(results: list[dict], name: str) -> np.ndarray:
    return np.concatenate([np.asarray(result[name], dtype=float) for result in results])


def markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def pull(results: list[dict], name: str) -> tuple[str, str]:
    """Mean with its standard error, and standard deviation with its own, of the pulls of a velocity."""
    values = column(results, name) / column(results, f"{name}_err")
    n, spread = values.size, values.std(ddof=1)
    return f"{values.mean():+.2f} ± {spread / n**0.5:.2f}", f"{spread:.2f} ± {spread / (2 * (n - 1)) ** 0.5:.2f}"


def calibration(records: list[dict]) -> str:
    """Item 1. The scatter of the velocity is over its bound with the same freedom, the error that the fit reports."""
    head = [
        "truth", "S/N", "v sin i", "fits (converged)", "RV pull, mean", "RV pull, s.d.", "RV scatter / bound",
        "RV error [m/s]", "v sin i pull, mean", "v sin i pull, s.d.", "lines S/N > 10",
        "ln area pull, median", "ln area pull, s.d. (from quartiles)", "ln EW pull, median",
        "ln EW pull, s.d. (from quartiles)", "EW pull, s.d.",
    ]  # fmt: skip
    rows = []
    for (truth, snr, vsini), results in grouped(records, "truth", "snr", "vsini").items():
        error = column(results, "rv_err")
        scatter = np.sqrt(np.mean(column(results, "rv") ** 2) / np.mean(error**2))
        lines = []
        linear, deviation = pooled(results, "equivalent_width"), pooled(results, "relative_width")
        # Errors are propagated from ln area: of a width that came out far too small, so is the error.
        relative = np.log1p(deviation) * (1.0 + deviation) * linear / deviation
        for values in (pooled(results, "ln_area"), relative):
            quartile = np.subtract(*np.percentile(values, [75, 25])) / 1.349
            lines += [f"{np.median(values):+.2f}", f"{values.std():.2f} ({quartile:.2f})"]
        rows.append(
            [
                truth, f"{snr:.0f}", f"{vsini:g}", f"{len(results)} ({column(results, 'success').sum()})",
                *pull(results, "rv"), f"{scatter:.2f}", f"{1e3 * np.median(error):.0f}", *pull(results, "vsini"),
                f"{pooled(results, 'ln_area').size / len(results):.0f}", *lines, f"{linear.std():.2f}",
            ]
        )  # fmt: skip
    return markdown(head, rows)


def means(records: list[dict]) -> str:
    """Item 6, of a whole order."""
    head = [
        "S/N", "v sin i", "fits (converged)", "lines", "number", "ledger: pull of ln area, mean", "s.d.",
        "line means: pull of ln area, mean", "s.d. ",
    ]  # fmt: skip
    rows = []
    for (snr, vsini), results in grouped(records, "snr", "vsini").items():
        significance = pooled(results, "significance")
        for text, least in (("all", 0.0), ("S/N > 10", 10.0)):
            chosen = significance > least
            cells = []
            for told in ("ledger", "means"):
                pulls = pooled(results, told)[chosen]
                cells += [f"{pulls.mean():+.2f} ± {pulls.std() / chosen.sum() ** 0.5:.2f}", f"{pulls.std():.2f}"]
            rows.append(
                [
                    f"{snr:.0f}", f"{vsini:g}", f"{len(results)} ({column(results, 'success').sum()})", text,
                    f"{chosen.sum()}", *cells,
                ]
            )  # fmt: skip
    return markdown(head, rows)


def changed(records: list[dict]) -> str:
    """Item 2."""
    head = [
        "prior on ln area", "S/N", "fits (converged)", "lines", "changed lines", "within 2 σ", "unchanged lines",
        "off by more than 3 σ", "RV pull, mean", "RV pull, s.d.",
    ]  # fmt: skip
    rows = []
    for (width, snr), results in grouped(records, "ln_area", "snr").items():
        for text, least in (("all", -np.inf), ("S/N > 3", 3.0), ("S/N > 10", 10.0)):
            part = {}
            for kind in ("changed", "unchanged"):
                part[kind] = np.abs(pooled(results, kind)[pooled(results, f"{kind}_snr") > least])
            rows.append(
                [
                    "default" if width is None else f"{width:g}", f"{snr:.0f}",
                    f"{len(results)} ({column(results, 'success').sum()})", text,
                    f"{part['changed'].size / len(results):.0f}", f"{100 * np.mean(part['changed'] < 2):.1f} %",
                    f"{part['unchanged'].size / len(results):.0f}", f"{100 * np.mean(part['unchanged'] > 3):.1f} %",
                    *pull(results, "rv"),
                ]
            )  # fmt: skip
    return markdown(head, rows)


def bound(records: list[dict]) -> str:
    """Item 1: errors over what they cannot be below, by the Jacobian of the simulator."""
    head = ["S/N", "v sin i"]
    head += [f"{value} error / {whose}" for value in ("RV", "v sin i") for whose in ("its own bound", "van Trees'")]
    rows = []
    for (snr, vsini), results in grouped(records, "snr", "vsini").items():
        ratios = [
            (column(results, f"{value}_err") / column(results, f"{value}_{whose}")).mean()
            for value in ("rv", "vsini")
            for whose in ("own", "van_trees")
        ]
        rows.append([f"{snr:.0f}", f"{vsini:g}", *(f"{ratio:.4f}" for ratio in ratios)])
    return markdown(head, rows)


def missing(records: list[dict]) -> str:
    """Item 3. How significant a line taken out could be is what the fit that has it says, its prior taken away."""
    head = [
        "truth", "S/N", "fits (converged)", "lines taken out above 5 σ", "found", "above 10 σ", "found ",
        "false per 1000 pixels", "of these beyond a resolution element", "RV pull, all lines in", "without search",
        "with search",
        "reduced χ², all lines in", "without search ", "with search ",
    ]  # fmt: skip
    rows = []
    for (truth, snr), results in grouped(records, "truth", "snr").items():
        possible, found = pooled(results, "possible"), pooled(results, "found").astype(bool)
        pixels = column(results, "pixels").sum() / 1000.0
        counts = []
        for level in (5.0, 10.0):
            above = possible > level
            counts += [f"{above.sum()}", f"{100 * found[above].mean():.0f} %"]
        velocities, squares = [], []
        for which in ("complete", "without", "with"):
            pulls = column(results, f"rv_{which}") / column(results, f"rv_err_{which}")
            velocities.append(f"{np.median(np.abs(pulls)):.2f} (largest {np.abs(pulls).max():.1f})")
            squares.append(f"{np.median(column(results, f'chi2_{which}')):.2f}")
        rows.append(
            [
                truth, f"{snr:.0f}", f"{len(results)} ({int(column(results, 'success_with').sum())})", *counts,
                f"{sum(len(result['false']) for result in results) / pixels:.2f}",
                f"{sum(len(result['stray']) for result in results) / pixels:.2f}", *velocities, *squares,
            ]
        )  # fmt: skip
    return markdown(head, rows)


scattered = missing


def star(records: list[dict]) -> str:
    """Item 4."""
    names = {"right": "Arcturus' own", "sun_5777_hpf": "the Sun's"}
    head = [
        "S/N", "lines fitted", "jitter", "fits (converged)", "RV bias [m/s]", "RV scatter [m/s]", "RV error [m/s]",
        "reduced χ²", "RMS",
    ]  # fmt: skip
    rows = []
    for (snr, name, jitter), results in grouped(records, "snr", "name", "jitter").items():
        off = 1e3 * column(results, "rv")
        rows.append(
            [
                f"{snr:.0f}", names[name], "yes" if jitter else "no",
                f"{len(results)} ({column(results, 'success').sum()})",
                f"{off.mean():+.0f}", f"{off.std(ddof=1):.0f}", f"{1e3 * np.median(column(results, 'rv_err')):.0f}",
                f"{np.median(column(results, 'chi2')):.2f}", f"{100 * np.median(column(results, 'rms')):.2f} %",
            ]
        )  # fmt: skip
    return markdown(head, rows)


def flaws(records: list[dict]) -> str:
    """Item 5: changes against the fits of the same truths and noise with nothing wrong."""
    head = [
        "what is wrong", "fits (converged)", "RV change [m/s]", "in σ", "RV pull, s.d.", "v sin i change [km/s]",
        "EW change, median", "EW pull, s.d.", "reduced χ²",
    ]  # fmt: skip
    groups = grouped(records, "name")
    base, rows = groups[("none",)], []
    for (name,), results in groups.items():
        change = column(results, "rv") - column(base, "rv")
        turn = column(results, "vsini") - column(base, "vsini")
        width = np.median(pooled(results, "relative_width")) - np.median(pooled(base, "relative_width"))
        rows.append(
            [
                name, f"{len(results)} ({column(results, 'success').sum()})",
                f"{1e3 * change.mean():+.1f} ± {1e3 * change.std(ddof=1):.1f}",
                f"{np.mean(change / column(results, 'rv_err')):+.2f}", pull(results, "rv")[1],
                f"{turn.mean():+.2f} ± {turn.std(ddof=1):.2f}", f"{100 * width:+.2f} %",
                f"{pooled(results, 'equivalent_width').std():.2f}",
                f"{np.mean(column(results, 'chi2')):.3f} ± {column(results, 'chi2').std(ddof=1):.3f}",
            ]
        )  # fmt: skip
    return markdown(head, rows)


def orders(records: list[dict]) -> str:
    """Nights of many orders: velocities, and the errors of single orders against that of all."""
    head = [
        "orders", "S/N", "nights (converged)", "RV within 3 σ", "RV pull, mean", "RV pull, s.d.", "RV error [m/s]",
        "from the orders alone [m/s]", "v sin i within 3 σ", "v sin i pull, mean", "v sin i pull, s.d.",
        "v sin i error [km/s]", "from the orders alone [km/s]",
    ]  # fmt: skip
    groups = defaultdict(list)
    for record in records:
        arguments = record["arguments"]
        groups[len(arguments["orders"]), arguments["snr"]].append(record["result"])
    rows = []
    for (n_order, snr), results in groups.items():
        cells = [f"{n_order}", f"{snr:.0f}", f"{len(results)} ({column(results, 'success').sum()})"]
        for name, scale, form in (("rv", 1e3, ".1f"), ("vsini", 1.0, ".3f")):
            pulls = column(results, name) / column(results, f"{name}_err")
            alone = [one[f"{name}_err_alone"] for one in results if f"{name}_err_alone" in one]
            sums = [np.sum(np.array(errors) ** -2.0) ** -0.5 for errors in alone]
            cells += [
                f"{np.sum(np.abs(pulls) < 3)}", *(pull(results, name) if len(results) > 1 else ("", "")),
                f"{scale * np.median(column(results, f'{name}_err')):{form}}",
                f"{scale * sums[0]:{form}} (best order {scale * np.min(alone[0]):{form}})" if sums else "",
            ]  # fmt: skip
        rows.append(cells)
    return markdown(head, rows)


def priors(records: list[dict]) -> str:
    """Item 7: widths by component and kind, what the lines do in the mean, and degrees of freedom."""
    from measured_priors import COMPONENTS, GROUPS, KINDS, KNOWN, SIMULATION

    from specutils_blase.inference.priors import LinePriors

    def cells(values: list[str], component: str) -> list[str]:
        return [values[GROUPS.index((component, kind))] for kind in KINDS]

    widths = [["default", "", "", *(f"{getattr(LinePriors(), kind):g}" for kind in KINDS)]]
    means, freedoms, simulated, reasons = [], [], [], []
    for record in records:
        pair, result = record["arguments"]["pair"], record["result"]
        if "reason" in result:
            reasons.append(f"{pair}: not measured, {result['reason']}")
            continue
        if pair.startswith(SIMULATION):
            simulated.append(result)
            continue
        columns = {name: np.array(result[name], dtype=float) for name in ("value", "error", "limit", "n_telling")}
        width = [_width(*each) for each in zip(*columns.values(), strict=True)]
        mean = [
            "" if np.isnan(each[0]) else f"{each[0]:+.2f} ± {each[1]:.2f} (± {each[2]:.2f})"
            for each in zip(result["center"], result["center_error"], result["spread"], strict=True)
        ]
        for component in COMPONENTS:
            n = max(cells(result["n_line"], component))
            if n:
                widths.append([pair, component, f"{n}", *cells(width, component)])
                means.append([pair, component, *cells(mean, component)])
        evidence = np.array(result["freedom_evidence"]) - result["freedom_evidence"][result["freedom"].index("4.0")]
        freedoms.append(
            [pair, *(f"{each:+.1f}" for each in evidence), f"{np.median(result['chi2']):.1f}",
             f"{100 * np.median(result['jitter']):.2f} %"]
        )  # fmt: skip
    if simulated:
        widths.append(["simulation, truth", "", "", *(f"{width:g}" for width in KNOWN.values())])
        values, errors = (np.array([result[name] for result in simulated], dtype=float) for name in ("value", "error"))
        known = np.isfinite(values) & np.isfinite(errors)
        weight = np.where(known, (values / np.where(known, errors, 1.0)) ** 2, 0.0)  # of ln s
        total = weight.sum(0)
        ln_mean = np.where(known, weight * np.log(np.where(known, values, 1.0)), 0.0).sum(0) / np.maximum(total, 1e-9)
        width = [
            f"{np.exp(m):.3f} ± {np.exp(m) / t**0.5:.3f} ({n})" if n else ""
            for m, t, n in zip(ln_mean, total, known.sum(0), strict=True)
        ]
        n_line = np.sum([result["n_line"] for result in simulated], axis=0)
        for component in COMPONENTS:
            text = f"simulation, {len(simulated)} seeds"
            widths.append([text, component, f"{max(cells(n_line, component))}", *cells(width, component)])
    kinds = ["ln area", "ln σ", "ln γ", "offset [km/s]"]
    parts = [markdown(["pair", "component", "secure lines", *kinds], widths)]
    if means:
        parts.append(markdown(["pair", "component", *kinds], means))
        head = ["pair", "ν = 2", "4", "8", "∞", "χ² without jitter", "jitter"]
        parts.append(markdown(head, freedoms))
    return "\n\n".join(parts + reasons)


def _width(value: float, error: float, limit: float, n_telling: float) -> str:
    """A width with its error and the number of lines that tell it; or its upper limit."""
    if np.isfinite(error):
        return f"{value:.2f} ± {error:.2f} ({n_telling:.0f})"
    return f"< {limit:.2f}" if np.isfinite(limit) else ""


def held_out(records: list[dict]) -> str:
    """Item 7: held-out pixels of all orders of a pair, each order weighing as its pixels."""
    head = ["pair", "widths", "fits (converged)", "RMS held out", "RMS fitted", "χ² held out", "typical [σ]"]
    rows = []
    for (pair, name), results in grouped(records, "pair", "name").items():
        n = column(results, "held_out")
        rms = [np.sqrt(np.average(column(results, key) ** 2, weights=n)) for key in ("held_out_rms", "fitted_rms")]
        mean = [np.average(column(results, key), weights=n) for key in ("held_out_chi2", "held_out_typical")]
        counts = f"{column(results, 'fits').sum()} ({column(results, 'converged').sum()})"
        rows.append([pair, name, counts, *(f"{100 * each:.2f} %" for each in rms), *(f"{each:.2f}" for each in mean)])
    return markdown(head, rows)


def bugs(records: list[dict]) -> str:
    """Section 7: the first test that fails with each bug, in the order of `planted_bugs.BUGS`."""
    from planted_bugs import BUGS

    found = {record["arguments"]["name"]: record["result"]["caught_by"].split("[")[0] for record in records}
    rows = [
        [bug.what, f"`{bug.module}`", f"`{found[name]}`" if found[name] else "NOTHING"]
        for name, bug in BUGS.items()
        if name in found
    ]
    return markdown(["bug", "module", "caught by"], rows)


def interval(count: int, total: int) -> str:
    """A part in per cent, with the 68 % interval of Clopper and Pearson."""
    from scipy.stats import beta

    low = beta.ppf(0.16, count, total - count + 1) if count else 0.0
    high = beta.ppf(0.84, count + 1, total - count) if count < total else 1.0
    return f"{100 * count / total:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def start(records: list[dict]) -> str:
    """Section 11: all tables of starts and of the fits that went on from them."""
    refused = sum("refused" in record["result"] for record in records)
    return "\n\n".join(
        [starts(records), half_widths(records), ends(records), f"{refused} were refused.", good(records)]
    )


def starts(records: list[dict]) -> str:
    """Starts that are somewhere else, and whether they say so, by each of the arguments."""
    from starts import is_flagged, is_off

    head = ["starts", "number", "off [%]", "off and not flagged", "right and flagged [%]", "median time [s]"]
    rows = []

    def row(name: str, results: list[dict]) -> None:
        off = [result for result in results if is_off(result)]
        right = [result for result in results if not is_off(result)]
        silent = sum(not is_flagged(result) for result in off)
        doubted = sum(map(is_flagged, right))
        rows.append(
            [
                name, f"{len(results)}", f"{len(off)}: {interval(len(off), len(results))}", f"{silent}",
                interval(doubted, len(right)) if right else "", f"{np.median(column(results, 'seconds')):.2f}",
            ]
        )  # fmt: skip

    begun = [record for record in records if "refused" not in record["result"]]
    for argument in ("instrument", "orders", "template", "sky"):
        for (value,), results in grouped(begun, argument).items():
            if argument == "sky":
                row("with tellurics" if value else "without tellurics", results)
            else:
                row(f"{argument} {value}", results)
    everything = [record["result"] for record in begun]
    for low, high in ((1.0, 10.0), (10.0, 50.0), (50.0, 200.0)):
        if chosen := [result for result in everything if low <= result["vsini"] < high]:
            row(f"v sin i {low:.0f} to {high:.0f} km/s", chosen)
    row("all", everything)
    return markdown(head, rows)


def half_widths(records: list[dict]) -> str:
    """A sentence: starts half a width off, and how many of them say nothing."""
    from starts import is_astray, is_flagged

    near = [record["result"] for record in records if "refused" not in record["result"]]
    near = [result for result in near if is_astray(result)]
    return f"Half a width off, or more: {len(near)}, of which {sum(not is_flagged(one) for one in near)} say nothing."


def ends(records: list[dict]) -> str:
    """Of the starts that were fitted to the end: answers that are somewhere else, and what quality says of them."""
    from starts import is_off

    fits = [record["result"] for record in records if record["case"] == "fitted"]
    fits = [result for result in fits if "refused" not in result]

    def pull(result: dict) -> float:
        return abs(result["fit_rv"] - result["rv"]) / result["fit_rv_err"]

    kinds = {
        "all": fits,
        "started off": [fit for fit in fits if is_off(fit)],
        "ended off": [fit for fit in fits if is_off(fit, "fit_rv")],
        f"beyond {BEYOND:.0f} errors in rv": [fit for fit in fits if pull(fit) > BEYOND],
        f"within {WITHIN:.0f} errors in rv": [fit for fit in fits if pull(fit) <= WITHIN],
    }
    rows = []
    for name, chosen in kinds.items():
        flagged = sum(fit["status"] != "good" for fit in chosen)
        told = interval(flagged, len(chosen)) if chosen else ""
        rows.append([name, f"{len(chosen)}", f"{flagged}", told, ", ".join(_reasons(chosen))])
    return markdown(["fits to the end", "number", "flagged", "flagged [%]", "reasons"], rows)


def good(records: list[dict]) -> str:
    """Pulls of fits to the end that call themselves good, template by template."""
    rows = []
    fitted = [one for one in records if one["case"] == "fitted" and one["result"].get("status") == "good"]
    for (template,), fits in grouped(fitted, "template").items():
        cells = [template, f"{len(fits)}"]
        for name in ("rv", "vsini"):
            found, true, error = (column(fits, key) for key in (f"fit_{name}", name, f"fit_{name}_err"))
            pulls = (found - true) / error
            cells += [f"{np.sqrt(np.mean(pulls**2)):.2f}", f"{np.abs(pulls).max():.1f}"]
        rows.append(cells)
    return markdown(["template", "good fits", "rms of pulls, rv", "largest", "rms, v sin i", "largest"], rows)


def another(records: list[dict]) -> str:
    """Section 12: orders of a real star by the template of another, and their pulls."""
    return f"{orders_of_another(records)}\n\n{pulls_of_another(records)}"


def orders_of_another(records: list[dict]) -> str:
    """Orders of a real star by the template of another, against its published velocity."""
    from other_star import PUBLISHED

    head = ["orders", "rv [km/s]", "off by", "in errors", "strength", "width", "alike", "parts", "quality"]
    rows = []
    for record in records:
        fit, orders = record["result"], record["arguments"]["orders"]
        off = fit["rv"] - PUBLISHED
        told = [f"{fit[name]:.2f}" for name in ("strength", "width")]
        told += [f"{fit['factors'][name]:.2f}" for name in ("correlated_residuals", "part_scatter")]
        quality = ", ".join([fit["status"], *(fit["reasons"][:3] if fit["status"] != "good" else [])])
        named = ", ".join(map(str, orders))
        rows.append(
            [
                named,
                f"{fit['rv']:.3f} ± {fit['rv_err']:.3f}",
                f"{off:+.2f}",
                f"{abs(off) / fit['rv_err']:.1f}",
                *told,
                quality,
            ]
        )
    return markdown(head, rows)


def pulls_of_another(records: list[dict]) -> str:
    """A sentence: pulls of single orders about the published velocity."""
    from other_star import PUBLISHED

    fits = [record["result"] for record in records if len(record["arguments"]["orders"]) == 1]
    pulls = (column(fits, "rv") - PUBLISHED) / column(fits, "rv_err")
    summary = f"Pulls of {pulls.size} orders: mean {pulls.mean():+.2f}, s.d. about the published velocity "
    summary += f"{np.sqrt(np.mean(pulls**2)):.2f}, largest {np.abs(pulls).max():.1f}."
    return summary


def _reasons(fits: list[dict]) -> list[str]:
    """Names of reasons and how often they came, the commonest first."""
    counts = Counter(name for fit in fits for name in fit["reasons"])
    return [f"{name} {count}" for name, count in counts.most_common(4)]


BEYOND, WITHIN = 5.0, 3.0
"""Errors from the truth beyond which a fit counts as wrong, and within which as right."""


def quality(records: list[dict]) -> str:
    """Section 10: which fits were flagged, of those that are wrong and of those that are right."""
    return "\n\n".join([flagged(records), kinds(records), missed(records)])


def judged(records: list[dict]) -> list[dict]:
    """Fits that gave an answer, beside their truth."""
    return [
        _judged(record["arguments"]["kind"], record["result"])
        for record in records
        if record["result"]["status"] != "refused"
    ]


def flagged(records: list[dict]) -> str:
    """Which fits are flagged, by how far they are off."""
    from assessed_fits import GOOD

    fits = judged(records)
    chosen = {
        f"beyond {BEYOND:g} σ in rv or v sin i": [fit for fit in fits if fit["beyond"]],
        "of these, beyond a resolution element": [fit for fit in fits if fit["beyond"] and fit["far"]],
        f"good ones within {WITHIN:g} σ in both": [fit for fit in fits if fit["within"] and fit["kind"] in GOOD],
        "good ones, all": [fit for fit in fits if fit["kind"] in GOOD],
    }
    rows = [
        [name, str(len(some)), str(count := sum(fit["flagged"] for fit in some)), _interval(count, len(some))]
        for name, some in chosen.items()
    ]
    return markdown(["fits", "number", "flagged", "95 % interval"], rows)


def kinds(records: list[dict]) -> str:
    """The same, fault by fault."""
    rows = []
    for (kind,), results in grouped(records, "kind").items():
        fits = [_judged(kind, result) for result in results if result["status"] != "refused"]
        beyond = [fit for fit in fits if fit["beyond"]]
        rows.append(
            [
                kind, str(len(results)), str(len(results) - len(fits)), str(sum(fit["flagged"] for fit in fits)),
                f"{sum(fit['flagged'] for fit in beyond)} of {len(beyond)}",
                ", ".join(_reasons(fits)),
            ]
        )  # fmt: skip
    return markdown(["kind", "fits", "refused", "flagged", "flagged of those beyond", "reasons"], rows)


def missed(records: list[dict]) -> str:
    """Sentences: what counts as wrong everywhere, and what is wrong and not flagged."""
    from assessed_fits import WITHOUT_TRUTH

    fits = [fit for fit in judged(records) if fit["beyond"] and not fit["flagged"]]
    told = "; ".join(", ".join([fit["kind"], *(_beside(fit, name) for name in ("rv", "vsini"))]) for fit in fits)
    return (
        f"Every answer counts as wrong where there is no star: {', '.join(WITHOUT_TRUTH)}.\n"
        f"Wrong and not flagged: {told or 'none'}."
    )


def _judged(kind: str, result: dict) -> dict:
    """A fit beside its truth."""
    from assessed_fits import WITHOUT_TRUTH

    pulls = [abs(result[name]) / max(result[f"{name}_err"], 1e-9) for name in ("rv", "vsini")]
    nothing = kind in WITHOUT_TRUTH
    return result | {
        "kind": kind,
        "flagged": result["status"] in ("doubtful", "bad"),
        "beyond": nothing or max(pulls) > BEYOND,
        "far": nothing or max(abs(result["rv"]), abs(result["vsini"])) > result["element"],
        "within": not nothing and max(pulls) < WITHIN,
    }


def _beside(fit: dict, name: str) -> str:
    """A velocity less the truth, and its error."""
    return f"{name} {fit[name]:+.2f} ± {fit[f'{name}_err']:.2f}"


def _interval(count: int, number: int) -> str:
    """Clopper & Pearson's (1934) interval of a fraction."""
    if not number:
        return ""
    interval = binomtest(count, number).proportion_ci(0.95)
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f} %"
