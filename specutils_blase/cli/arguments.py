"""The arguments of the command line.

Does not live here: the commands (`main`).
"""

from __future__ import annotations

import argparse
import math
import re
import sys

NAMED_TEMPLATES = {
    "arcturus": {},
    "telfit_hpf": {},
    "psg_hk": {},
    "phoenix_10000K": {"continuum": 4, "teff": 10_000.0},
}
"""Embedded templates, and the options of their cloning."""

BAD_INPUT = 2
"""Exit code of a command whose arguments or files are unusable."""


class _Parser(argparse.ArgumentParser):
    """Parser whose errors are one line."""

    def error(self, message: str):
        self.exit(BAD_INPUT, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"expected a number, got {text!r}")
    return number


def _whole(text: str, least: int = 0) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"expected a whole number, at least {least}, got {text!r}")
    return number


def _positive(text: str) -> float:
    if (number := _number(text)) <= 0.0:
        raise argparse.ArgumentTypeError(f"expected a positive number, got {text!r}")
    return number


def _not_negative(text: str) -> float:
    if (number := _number(text)) < 0.0:
        raise argparse.ArgumentTypeError(f"expected a number that is not negative, got {text!r}")
    return number


def _fraction(text: str) -> float:
    if not 0.0 < (number := _number(text)) < 1.0:
        raise argparse.ArgumentTypeError(f"expected a number between 0 and 1, got {text!r}")
    return number


def _count(text: str) -> int:
    return _whole(text, 1)


def _degree(text: str):
    if text == "none" or text.isdecimal():
        return text if text == "none" else int(text)
    raise argparse.ArgumentTypeError(f"expected none or the degree of a polynomial, got {text!r}")


def _orders(text: str) -> list[int]:
    """Positions and ranges of them, such as 3,5-8, each once."""
    matches = [re.fullmatch(r"(\d+)(?:-(\d+))?", part) for part in text.replace(",", " ").split()]
    ranges = [range(int(match[1]), int(match[2] or match[1]) + 1) for match in matches if match]
    if not matches or None in matches or not all(ranges):
        raise argparse.ArgumentTypeError(f"expected positions and ranges such as 3,5-8, got {text!r}")
    return sorted(set().union(*ranges))


def _names(text: str, allowed: tuple[str, ...]) -> tuple[str, ...]:
    names = tuple(name for name in text.replace(",", " ").split() if name != "none")
    if unknown := [name for name in names if name not in allowed]:
        raise argparse.ArgumentTypeError(f"expected names among {', '.join(allowed)}, got {unknown[0]!r}")
    return names


def _of_lines(text: str) -> tuple[str, ...]:
    from ..model.parameters import KINDS  # brings torch: when there is something to check, not for --help

    return _names(text, KINDS)


def _of_fit(text: str) -> tuple[str, ...]:
    from ..model.parameters import GLOBALS

    return _names(text, GLOBALS)


def in_options(message: str, args: argparse.Namespace) -> str:
    """A message of the library, with options of the command line in place of the library's arguments.

    ``continuum="none"`` becomes ``--continuum none``, ``vsini must`` becomes ``--vsini must``: for the options that the
    command has. File names and other words stay.
    """
    for name in vars(args).keys() - {"command", "file", "files"}:
        option = "--" + name.replace("_", "-")
        word = rf"(?<![\w./-]){name}"
        message = re.sub(rf"{word}=(['\"])([\w.]+)\1", rf"{option} \2", message)
        message = re.sub(rf"{word}=(?=[\w<λ-])", rf"{option} ", message)
        message = re.sub(rf"{word}(=(?!\w)|(?= must ))", option, message)
    return message


def argument_parser() -> argparse.ArgumentParser:
    """The parser of ``specutils-blase``; its `command` says which command was given."""
    parser = _Parser(
        prog="specutils-blase",
        description="Every line of a high-resolution spectrum, star and Earth's atmosphere fitted together.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    choices = "demo | clone | fit | orders"
    commands = parser.add_subparsers(dest="command", required=True, metavar=choices, parser_class=_Parser)
    common, results, observation = _common_options(), _result_options(), _observation_options()
    demo = commands.add_parser("demo", parents=[common], help="fit a simulated order and compare with the truth")
    demo.add_argument("--out", default=".", metavar="DIR", help="folder for demo.asdf, demo_ledger.ecsv and demo.png")
    _add_clone_options(
        commands.add_parser("clone", parents=[common, results], help="turn a template spectrum into Voigt lines")
    )
    _add_fit_options(
        commands.add_parser("fit", parents=[common, results, observation], help="fit star and atmosphere to a spectrum")
    )
    orders = commands.add_parser(
        "orders", parents=[common, observation], help="list what the files of an observation hold"
    )
    orders.add_argument("--format", help="specutils' format of the file, where it is not recognised")
    orders.add_argument("--medium", choices=("vacuum", "air"), default="vacuum", help="of FILE's wavelengths")
    return parser


def _common_options() -> _Parser:
    """Options of every command."""
    common = _Parser(add_help=False)
    common.add_argument("--quiet", action="store_true", help="no progress bars")
    common.add_argument("--threads", type=_count, help="of the computation (default: 1, or one an order of many)")
    common.add_argument("--debug", action="store_true", help="show where in the code an error arose")
    return common


def _result_options() -> _Parser:
    """Options of the commands that write a result."""
    results = _Parser(add_help=False)
    results.add_argument("--ledger", metavar="ECSV", help="write the line ledger, a table with one row a line")
    results.add_argument("--plot", metavar="IMAGE", help="draw the result (png, pdf, svg, ...)")
    results.add_argument("--overwrite", action="store_true", help="replace files that exist")
    results.add_argument("--format", help="specutils' format of the spectrum, where it is not recognised")
    results.add_argument("--medium", choices=("vacuum", "air"), default="vacuum", help="of FILE's wavelengths")
    results.add_argument("--flux-scale", choices=("log", "linear", "minnaert"), help="law from opacity to flux")
    results.add_argument("--max-iterations", type=_whole, metavar="N")
    return results


def _observation_options() -> _Parser:
    """Options of the commands that read an observation."""
    observation = _Parser(add_help=False)
    observation.add_argument(
        "files", metavar="FILE", nargs="+", help="one file; or IGRINS' H and K; or orders of NIRSPEC"
    )
    observation.add_argument("--extension", metavar="EXTNAME", help="flux of an IGRINS file (default SPEC_DIVIDE_A0V)")
    observation.add_argument("--barycentric-velocity", type=_number, metavar="KM/S", help="instead of the header's")
    return observation


def _add_clone_options(clone: argparse.ArgumentParser) -> None:
    names = ", ".join(NAMED_TEMPLATES)
    clone.add_argument("file", metavar="FILE", help=f"template spectrum, or one of {names}")
    clone.add_argument("--order", type=_whole, metavar="N", help="which spectrum of a file with several")
    clone.add_argument("--out", required=True, metavar="ASDF", help="where to write the clone")
    clone.add_argument("--prominence", type=_fraction, help="smallest prominence of a line (default 0.01)")
    until = clone.add_mutually_exclusive_group()
    until.add_argument("--rms-target", type=_fraction, help="residual at which to stop (default 0.003, or the noise)")
    until.add_argument(
        "--no-rounds", dest="in_rounds", action="store_false", help="do not look for missed lines in the residual"
    )
    clone.add_argument(
        "--continuum", type=_degree, metavar="none|DEGREE", help="continuum to divide out (default none)"
    )
    clone.add_argument("--teff", type=_positive, metavar="K", help="black body to divide out first")
    clone.add_argument("--resolving-power", type=_positive, metavar="R", help="at which the template is broadened")
    clone.add_argument("--region", type=_positive, nargs=2, metavar=("LOW", "HIGH"), help="vacuum Å to clone")
    clone.add_argument("--free", type=_of_lines, metavar="NAMES", help="among ln_area,ln_sigma,ln_gamma,rv_offset")
    clone.add_argument("--emission", action="store_true", help="look for emission lines too")


def _add_fit_options(fit: argparse.ArgumentParser) -> None:
    names = ", ".join(NAMED_TEMPLATES)
    fit.add_argument(
        "--order", type=_orders, metavar="N[,N-N]", help="which orders, from the blue (HPF: 0 to 27); all by default"
    )
    source = f"clone or earlier fit (.asdf), ledger (.ecsv), template spectrum, or one of {names}"
    fit.add_argument("--star", metavar="FILE|NAME", help=source)
    fit.add_argument("--telluric", metavar="FILE|NAME", help="likewise")
    fit.add_argument("--rv", type=_number, metavar="KM/S", help="start of the radial velocity; found if not given")
    fit.add_argument("--vsini", type=_not_negative, metavar="KM/S", help="start of v sin i; found if not given")
    fit.add_argument("--limb-darkening", type=_number, nargs=2, metavar=("U1", "U2"))
    fit.add_argument("--resolving-power", type=_positive, metavar="R", help="of the instrument (HPF's is known)")
    fit.add_argument("--continuum", type=_whole, metavar="DEGREE", help="of the continuum polynomial (default 2)")
    fit.add_argument("--free", type=_of_fit, metavar="NAMES", help="free parameters (default rv,vsini,continuum)")
    fit.add_argument(
        "--star-lines", type=_of_lines, metavar="NAMES", help="free line parameters, or none to hold the star"
    )
    fit.add_argument("--telluric-lines", type=_of_lines, metavar="NAMES", help="likewise for the atmosphere")
    fit.add_argument("--velocity-step", type=_positive, metavar="KM/S", help="of the model's grid")
    fit.add_argument(
        "--missing-lines",
        type=_positive,
        metavar="EXPECTED",
        help="find and fit lines that no template has; how many false ones may be among them, such as 0.1",
    )
    fit.add_argument("--out", metavar="ASDF", help="write the whole result")


class _Version(argparse.Action):
    """Looks the version up only when asked."""

    def __call__(self, parser, *rest):
        from .. import __version__

        sys.stdout.write(f"specutils-blase {__version__}\n")
        parser.exit()
