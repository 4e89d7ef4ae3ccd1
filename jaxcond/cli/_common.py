"""What the commands share: consoles, parser, errors."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich_argparse import RichHelpFormatter

EXIT_CODES = (
    "Exit codes: 0 done; 1 failed; 2 wrong arguments; 3 done, but some samples did not converge "
    "or some statement did not hold; 130 interrupted."
)
out = Console()
err = Console(stderr=True)


class UsageError(ValueError):
    """Arguments that the parser does not take."""


class Parser(argparse.ArgumentParser):
    """A parser that raises instead of printing, and knows our help style."""

    def __init__(self, **settings):
        super().__init__(epilog=EXIT_CODES, formatter_class=RichHelpFormatter, **settings)

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (see {self.prog} --help)")


def check_writable(path: Path) -> None:
    """Find out before the work, not after it, that a file cannot be written."""
    folder = path.parent
    if path.is_dir():
        raise OSError(f"cannot write {path}: it is a folder")
    if not folder.is_dir():
        raise OSError(f"cannot write {path}: there is no folder {folder}")
    if not os.access(path if path.exists() else folder, os.W_OK):
        raise OSError(f"cannot write {path}: permission denied")
