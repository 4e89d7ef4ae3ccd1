"""The command line: a thin layer over the Python API.

`jaxcond --help` explains how to print shell completion with shtab from `build_parser`.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

from rich.table import Table
from rich.text import Text

import jaxcond

from .. import study
from . import _late as late
from ._check import add_check
from ._common import EXIT_CODES, Parser, err, out
from ._escape import add_escape
from ._figure import add_figure
from ._plot import add_plot
from ._study import add_study
from ._summary import add_summary

_COMPLETION = (
    "Shell completion: with shtab installed, `shtab --shell=bash jaxcond.cli.build_parser` (or "
    "zsh, tcsh) prints the script."
)


def build_parser() -> Parser:
    """The parser of all commands."""
    parser = Parser(
        prog="jaxcond",
        description="Condensation of three-layer networks: blow-up of the effective dynamics.",
    )
    parser.epilog = f"{EXIT_CODES} {_COMPLETION}"
    parser.add_argument("--version", action="version", version=f"jaxcond {jaxcond.__version__}")
    parser.add_argument(
        "--versions",
        action=_Versions,
        nargs=0,
        help="show the versions of the libraries, the devices, and which kernel is in use",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    add_study(commands)
    add_summary(commands)
    add_plot(commands)
    add_check(commands)
    add_figure(commands)
    add_escape(commands)
    return parser


class _Versions(argparse.Action):
    """Print the environment that a bug report should include."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        table = Table(box=None, show_header=False)
        for name, value in late.session.environment().items():
            table.add_row(name, Text(value))
        out.print(table)
        parser.exit()


def console() -> NoReturn:
    """Entry point of the command: runs `main` and exits at once after an interrupt.

    An orderly exit would abort, because the runtime's threads may still be working. SIGTERM is
    handled like Ctrl-C.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        main()
    except SystemExit as leaving:
        if leaving.code == 130:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(130)
        raise


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run the command line; every error prints one clear line and gives a non-zero exit code."""
    try:
        parsed = build_parser().parse_args(arguments)
        sys.exit(parsed.command(parsed))
    except KeyboardInterrupt as interrupt:
        _fail(f"interrupted; {str(interrupt) or 'nothing was written'}", 130)
    except ValueError as error:
        _fail(str(error), 2)
    except OSError as error:
        named = error.filename is not None and error.strerror is not None
        _fail(f"{error.filename}: {error.strerror}" if named else str(error), 1)
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError | study.SampleError | _runtime_error()):
            raise
        _fail(str(error) or type(error).__name__, 1)


def _runtime_error() -> type[Exception]:
    """The exception that JAX raises when a device fails; a stand-in if JAX is not loaded."""
    jax = sys.modules.get("jax")
    return MemoryError if jax is None else jax.errors.JaxRuntimeError


def _fail(message: str, code: int) -> NoReturn:
    err.print(
        "[bold red]Error:[/]", Text(" ".join(message.split())), highlight=False, soft_wrap=True
    )
    sys.exit(code)
