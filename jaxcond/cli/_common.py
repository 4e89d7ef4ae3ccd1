"""Consoles, parser and checks that all commands share."""

import argparse
import os
import sys
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table
from rich_argparse import RichHelpFormatter

EXIT_CODES = (
    "Exit codes: 0 done; 1 failed; 2 wrong arguments; 3 done, but some samples did not converge "
    "or some statement did not hold; 130 interrupted."
)
_WIDEST = 10_000


class _Help(RichHelpFormatter):
    """Help formatter that prints [ensemble] as a TOML table instead of reading it as markup."""

    help_markup = text_markup = False


out = Console()
err = Console(stderr=True)


class UsageError(ValueError):
    """Arguments that the parser rejects."""


class Parser(argparse.ArgumentParser):
    """A parser that raises errors instead of printing them, with the common help style."""

    def __init__(self, **settings):
        super().__init__(epilog=EXIT_CODES, formatter_class=_Help, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def add_cache(parser: argparse.ArgumentParser) -> None:
    """Add the option that all computing commands share."""
    parser.add_argument(
        "--no-cache",
        action="store_true",
        help=(
            "do not cache compiled programs for the next call; the cache is in the user's cache "
            "folder, or in the folder that the environment variable JAXCOND_CACHE_DIR names"
        ),
    )


def check_writable(path: Path) -> None:
    """Check that a file can be written before the computation starts."""
    folder = path.parent
    if path.is_dir():
        raise OSError(f"cannot write {path}: it is a folder")
    if not folder.is_dir():
        raise OSError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise OSError(f"cannot write {path}: permission denied")


def check_store(path: Path) -> None:
    """Reject a store that is not a folder, with a hint if it is a configuration."""
    if path.suffix == ".toml":
        store = path.with_suffix(".zarr").name
        raise ValueError(
            f"{path} is the name of a configuration, and a store is a folder: the one that "
            f"`jaxcond study {path}` makes is {store}"
        )
    if path.is_file():
        raise OSError(f"{path} is a file, and a store is a folder")


def check_distinct(**options: Path | None) -> None:
    """Reject options that name the same file, since the last one would overwrite the others."""
    seen: dict[Path, str] = {}
    for name, path in options.items():
        if path is None:
            continue
        before = seen.setdefault(path.resolve(), name)
        if before != name:
            raise ValueError(f"--{before} and --{name} name the same file, {path}")


def importable() -> None:
    """Let `module:name` import modules from the current folder."""
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def print_table(table: Table) -> None:
    """Print a table without cutting its numbers; its lines may be wider than the console."""
    natural = out.measure(table, options=out.options.update(width=_WIDEST)).maximum
    if natural > out.width:
        table.width = natural
    out.print(table, crop=False, soft_wrap=natural > out.width)
