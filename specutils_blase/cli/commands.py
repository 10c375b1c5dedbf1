"""The command line: ``specutils-blase demo | clone | fit | orders``.

Results are printed as a few lines, their quality first; the full ones go to the files asked for. The exit code is the
first of these that applies: 2: bad input, with one line on stderr that says why, and nothing written; 130 and 143:
interrupted or terminated; 1: the iteration did not converge; 3: the result is doubtful or bad, for the reasons
printed; 0: good. With 1 and 3 files are written all the same. An order left out of a list changes no code.

Does not live here: the arguments (`arguments`), reading spectra from files (`adapters`), the demonstration (`demo`).
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

from .arguments import BAD_INPUT, NAMED_TEMPLATES, argument_parser, in_options

CLONE_MARGINS_KMS = {"star": 300.0, "telluric": 30.0}
"""Velocity by which the clone of a template exceeds the data at both ends, where the template reaches so far."""

GOOD, NOT_CONVERGED, DOUBTFUL = 0, 1, 3
"""Exit codes of results; see the module."""

INTERRUPTED, TERMINATED = 130, 143
"""Exit codes of SIGINT and SIGTERM, as shells have them: 128 and the number of the signal."""


class _Terminated(KeyboardInterrupt):
    """SIGTERM, handled as Ctrl-C is."""


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : list of str, optional
        Arguments after the program's name; those of the process by default.

    Returns
    -------
    int
        Exit code, see the module.
    """
    args = argument_parser().parse_args(argv)
    try:
        with _terminable(), _threads(1 if args.threads is None else args.threads), _warnings_as_notes():
            return COMMANDS[args.command](args)
    except KeyboardInterrupt as stop:
        terminated = isinstance(stop, _Terminated)
        print("terminated" if terminated else "interrupted", file=sys.stderr)
        return TERMINATED if terminated else INTERRUPTED
    except (ValueError, TypeError, OSError, ImportError) as error:
        if args.debug:
            raise
        reason = in_options(" ".join(str(error).split()), args) or type(error).__name__
        print(f"specutils-blase {args.command}: error: {reason}", file=sys.stderr)
        return BAD_INPUT


def run_demo(args) -> int:
    """Simulate an order, fit it, compare with the truth, leave demo.asdf, demo_ledger.ecsv and demo.png."""
    from .. import demo

    folder = Path(args.out)
    folder.mkdir(parents=True, exist_ok=True)
    targets = {name: folder / file for name, file in demo.FILES.items()}
    start = time.perf_counter()
    shown = demo.run(progress=_progress(args))
    print(shown.report())
    print()
    _write(shown.fit, targets["fit"], targets["ledger"], targets["plot"], overwrite=True, about=shown.report())
    print(f"{time.perf_counter() - start:.0f} s in all")
    return _status(shown.fit)


def run_clone(args) -> int:
    """Clone a template and write the clone."""
    import specutils_blase as sb

    _check_targets(args)
    template, named = _template(args.file, order=args.order, format=args.format)
    options = {
        "prominence": args.prominence,
        "flux_scale": args.flux_scale,
        "continuum": args.continuum,
        "teff": args.teff,
        "resolving_power": args.resolving_power,
        "region": args.region,
        "free": args.free,
        "in_rounds": args.in_rounds,
        "rms_target": args.rms_target,
        "max_iterations": args.max_iterations,
    }
    options = named | {name: value for name, value in options.items() if value is not None}
    result = sb.clone(template, medium=args.medium, emission=args.emission, progress=_progress(args), **options)
    low, high = result.template.spectral_axis.value[[0, -1]]
    print(f"{args.file}: {len(result.ledger)} lines in {low:.1f}-{high:.1f} Å, RMS {100 * result.rms:.2f} %")
    print(f"medium of the template: {args.medium} (as declared)")
    _print_quality(result)
    _write(result, args.out, args.ledger, args.plot, overwrite=args.overwrite)
    return _status(result)


def run_fit(args) -> int:
    """Fit one order, or many at once, and write the result."""
    import specutils_blase as sb

    from ..adapters.files import load_observation

    if args.star is None and args.telluric is None:
        raise ValueError("fit needs --star, --telluric, or both")
    _check_targets(args)
    sources = {
        name: source for name, source in (("star", args.star), ("telluric", args.telluric)) if source is not None
    }
    _check_free(sources, args)
    for source in sources.values():
        _check_exists(source)
    data = load_observation(args.files, orders=args.order, format=args.format, extension=args.extension)
    _check_data(data, args)
    inputs = {name: _given_component(source, name) for name, source in sources.items()}
    components = {name: _cloned(inputs[name], source, name, data, args) for name, source in sources.items()}
    options = {
        "rv": args.rv,
        "vsini": args.vsini,
        "limb_darkening": args.limb_darkening,
        "resolving_power": args.resolving_power,
        "continuum": args.continuum,
        "free": args.free,
        "star_lines": args.star_lines,
        "telluric_lines": args.telluric_lines,
        "flux_scale": args.flux_scale,
        "velocity_step": args.velocity_step,
        "max_iterations": args.max_iterations,
        "barycentric_velocity": args.barycentric_velocity,
        "missing_lines": args.missing_lines,
    }
    options = {name: value for name, value in options.items() if value is not None}
    side_by_side = min(len(data), os.cpu_count() or 1) if isinstance(data, list) else 1
    with _threads(side_by_side if args.threads is None else args.threads):
        result = sb.fit(data, **components, medium=args.medium, progress=_progress(args), **options)
    print(result)
    if result.model.star is not None:
        unknown = "" if "rv_barycentric" in result.parameters["name"] else "; the barycentric velocity is unknown"
        print(f"  rv is in the frame of the data's wavelengths{unknown}")
    if args.missing_lines is not None:
        for row in result.missing_lines:
            width = f"{row['equivalent_width'].value:.2g} ± {row['equivalent_width_err'].value:.1g} Å"
            print(f"  found at {row['wavelength'].value:.3f} Å: {row['component']}, equivalent width {width}")
    _write(result, args.out, args.ledger, args.plot, overwrite=args.overwrite)
    return _status(result)


def run_orders(args) -> int:
    """List the orders in the files of an observation."""
    from ..adapters.files import load_orders
    from ..adapters.orders import order_lines

    spectra = load_orders(args.files, format=args.format, extension=args.extension)
    lines = order_lines(spectra, medium=args.medium, barycentric_velocity=args.barycentric_velocity)
    print("\n".join([", ".join(args.files), *lines]))
    return GOOD


def _print_quality(result) -> None:
    if result.quality is not None and result.quality.reasons:
        print("\n".join(result.quality.lines()))


def _status(result) -> int:
    """The exit code of a result, and on stderr why it is not 0."""
    if not result.success:
        print(result.message, file=sys.stderr)
        return NOT_CONVERGED
    if result.quality is None or result.quality.status == "good":
        return GOOD
    print(f"the result is {result.quality.headline}", file=sys.stderr)
    return DOUBTFUL


def _progress(args) -> bool:
    return sys.stderr.isatty() and not args.quiet


@contextmanager
def _warnings_as_notes():
    """A block whose warnings are one line each on stderr, without those that the printed result repeats."""
    from astropy.utils.exceptions import AstropyUserWarning

    def show(message, *where, **more):
        print(f"note: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("always", AstropyUserWarning)  # of the loaders: missing entries of the files
        for pattern in (
            "the fit did not converge", "order .* of the list is left out", "the result is (doubtful|bad): ",
            "the (star|telluric)'s lines come from a fit of",
        ):  # fmt: skip
            warnings.filterwarnings("ignore", message=pattern)
        yield


@contextmanager
def _terminable():
    """A block that SIGTERM ends as Ctrl-C does, so that no part of a file stays; in the main thread only."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(*_):
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def _threads(number: int):
    """A block with this many threads of torch's.

    One order is too small to share out: two threads are no faster on a free machine, and far slower on a busy one.
    """
    if number < 1:
        raise ValueError(f"--threads must be at least 1, got {number}")
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _check_exists(source: str) -> None:
    if source not in NAMED_TEMPLATES and not Path(source).exists():
        raise FileNotFoundError(f"{source} is neither a file nor an embedded template ({', '.join(NAMED_TEMPLATES)})")


def _check_free(sources: dict[str, str], args) -> None:
    lines = [getattr(args, f"{name}_lines") for name in sources]
    if args.free == () and all(kinds == () for kinds in lines):
        raise ValueError("nothing is free: name parameters in --free, or some of the lines' in --star-lines")
    if args.missing_lines is not None and not any(kinds is None or "ln_area" in kinds for kinds in lines):
        raise ValueError("--missing-lines needs lines whose ln_area is free: see --star-lines and --telluric-lines")


def _check_data(data, args) -> None:
    """Raise ValueError before minutes of cloning if the data cannot be fitted, whatever the templates."""
    from ..fitting.observation import read_order, read_orders

    reading = {
        "resolving_power": args.resolving_power,
        "medium": args.medium,
        "barycentric_velocity": args.barycentric_velocity,
        "n_parameter": (args.continuum or 0) + 1 + len(args.free or ()),
    }
    read_orders(data, **reading) if isinstance(data, list) else read_order(data, **reading)


def _template(source: str, **choice):
    """A template spectrum by name or from a file, and the options of its cloning."""
    _check_exists(source)
    if source in NAMED_TEMPLATES:
        import specutils_blase as sb

        spectrum = getattr(sb.templates, source)()
        named = dict(NAMED_TEMPLATES[source])
        if spectrum.meta.get("resolving_power"):
            named["resolving_power"] = spectrum.meta["resolving_power"]
        return spectrum, named
    from ..adapters.files import load_spectrum

    return load_spectrum(source, **choice), {}


def _given_component(source: str, name: str):
    """Star or telluric for `fit`: a clone, an emulator, a ledger; or a template with the options of its cloning."""
    import specutils_blase as sb

    path = Path(source)
    if source not in NAMED_TEMPLATES and path.suffix.lower() == ".asdf":
        result = sb.read(path)
        model = result.model if isinstance(result, sb.FitResult) else result
        if hasattr(model, "components"):
            if name not in model.components:
                raise ValueError(f"{path} holds a fit without a {name} component")
            if model is result:
                result = model.components[name]
        return result
    if source not in NAMED_TEMPLATES and path.suffix.lower() == ".ecsv":
        ledger = _ledger(path, name)
        if ledger is not None:
            return ledger
    return _template(source)


def _cloned(component_input, source: str, name: str, data, args):
    """A component for `fit`; a template is cloned over the range of the data and the margin of its velocity."""
    if not isinstance(component_input, tuple):
        return component_input
    import specutils_blase as sb

    from ..physics.grids import SPEED_OF_LIGHT
    from ..spectra.wavelengths import vacuum_wavelength

    spectrum, options = component_input
    if args.flux_scale is not None:
        options["flux_scale"] = args.flux_scale
    spectra = data if isinstance(data, list) else [data]
    ends = [vacuum_wavelength(order.spectral_axis, args.medium).value[[0, -1]] for order in spectra]
    margin = (CLONE_MARGINS_KMS[name] + abs(args.rv or 0.0)) / SPEED_OF_LIGHT
    region = (min(map(min, ends)) * (1.0 - margin), max(map(max, ends)) * (1.0 + margin))
    clone = sb.clone(spectrum, region=region, progress=_progress(args), **options)
    print(f"{name}: cloned {source}, {len(clone.ledger)} lines, RMS {100 * clone.rms:.2f} %")
    return clone


def _ledger(path: Path, name: str):
    """A line ledger with its rows as those of this component, whatever its name in the file; None for a spectrum."""
    from astropy.table import QTable

    table = QTable.read(path, format="ascii.ecsv")
    if not {"center", "area"} & set(table.colnames):
        return None
    if "component" in table.colnames and name not in (present := set(table["component"])) and len(present) == 1:
        scale = table.meta.get("flux_scale")
        table.meta["flux_scale"] = {name: scale.get(present.pop(), "log") if isinstance(scale, dict) else scale}
        table.remove_column("component")
    return table


def _check_targets(args) -> None:
    """Raise before minutes of work if the results cannot be written."""
    targets = {name: Path(path) for name in ("out", "ledger", "plot") if (path := getattr(args, name)) is not None}
    for name, path in targets.items():
        suffixes = _suffixes(name)
        if path.is_dir():
            raise IsADirectoryError(f"cannot write --{name} {path}: it is a folder; give the name of a file in it")
        if path.suffix.lower() not in suffixes:
            raise ValueError(f"--{name} must end with {' or '.join(suffixes)}, got {path}")
        folder = path.resolve().parent
        if not folder.is_dir() or not os.access(folder, os.W_OK):
            raise OSError(f"cannot write --{name} {path}: {folder} is not a folder that may be written to")
        if path.exists() and not args.overwrite:
            raise FileExistsError(f"--{name} {path} exists already: choose another name, or give --overwrite")
    if len({path.resolve() for path in targets.values()}) < len(targets):
        raise ValueError("--out, --ledger and --plot need a file each")


def _suffixes(target: str) -> tuple[str, ...]:
    """Suffixes that the name of a file to be written may have."""
    if target != "plot":
        return {"out": (".asdf",), "ledger": (".ecsv",)}[target]
    from matplotlib.backend_bases import FigureCanvasBase

    return tuple(f".{kind}" for kind in FigureCanvasBase.filetypes)


def _write(result, out, ledger, plot, *, overwrite: bool, about: str | None = None) -> None:
    """Write the files asked for; `about` is the description inside the picture, a PNG."""
    if out is not None:
        result.write(out, overwrite=overwrite)
    if ledger is not None:
        result.ledger.write(ledger, format="ascii.ecsv", overwrite=overwrite)
    if plot is not None:
        result.plot().savefig(plot, **({} if about is None else {"metadata": {"Description": about}}))
    written = [str(path) for path in (out, ledger, plot) if path is not None]
    if written:
        print(f"wrote {', '.join(written)}")


COMMANDS = {"demo": run_demo, "clone": run_clone, "fit": run_fit, "orders": run_orders}


if __name__ == "__main__":
    sys.exit(main())
