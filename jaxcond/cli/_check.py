"""`jaxcond check`: the paper's statements on a random ensemble."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path

from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .. import checks
from ..files import written_whole
from . import _late as late
from ._common import Parser, add_cache, check_writable, err, out


def add_check(commands: argparse._SubParsersAction[Parser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the command and its options."""
    check = commands.add_parser(
        "check",
        help="the statements of the theory as numerical checks",
        description=(
            "Checks the statements of Chen and Luo, and those that this package adds, on random "
            "Gaussian initial states, whose flow is followed in full by plain integration. Prints "
            "the worst deviation for each; exit code 3 if one does not hold."
        ),
    )
    add = check.add_argument
    add("--width", type=int, default=16, metavar="M", help="width of both layers (default 16)")
    add(
        "--samples",
        type=int,
        default=128,
        metavar="N",
        help="random initial states for each rank (default 128)",
    )
    add("--seed", type=int, default=0, help="seed of the initial states (default 0)")
    add("--json", type=Path, metavar="FILE", help="also write the table to a JSON file")
    add("--quiet", action="store_true", help="no progress bar")
    add_cache(check)
    check.set_defaults(command=_check)


def _check(arguments: argparse.Namespace) -> int:
    late.session.begin(arguments)
    if arguments.json is not None:
        check_writable(arguments.json)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=err, disable=arguments.quiet) as progress:
        ranks = len({statement.rank for statement in checks.STATEMENTS})
        task = progress.add_task("following trajectories", total=len(checks.STATEMENTS) + ranks)
        verdicts = checks.run_checks(
            arguments.width,
            arguments.samples,
            arguments.seed,
            progress=lambda name: progress.update(task, advance=1, description=name),
        )
    _print(verdicts, arguments)
    if arguments.json is not None:
        with written_whole(arguments.json) as temporary:
            Path(temporary).write_text(json.dumps(_record(verdicts, arguments), indent=1) + "\n")
        out.print(Text(f"Table written to {arguments.json}"), soft_wrap=True)
    return 0 if all(verdict.holds for verdict in verdicts) else 3


def _print(verdicts: list[checks.Verdict], arguments: argparse.Namespace) -> None:
    title = f"Width {arguments.width}, {arguments.samples} samples a rank, seed {arguments.seed}"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("statement", "source", "tested"):
        table.add_column(name, overflow="fold")
    for name in ("worst", "limit", "samples"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for verdict in verdicts:
        said = verdict.statement
        table.add_row(
            said.name,
            said.source,
            said.tested,
            f"{verdict.worst:.0e}" if math.isfinite(verdict.worst) else str(verdict.worst),
            f"{said.limit:.0e}",
            str(verdict.num_tested),
            "holds" if verdict.holds else "[bold red]FAILS[/]",
        )
    out.print(table)
    failed = sum(not verdict.holds for verdict in verdicts)
    out.print(f"{len(verdicts) - failed} of {len(verdicts)} statements hold.")


def _record(verdicts: list[checks.Verdict], arguments: argparse.Namespace) -> dict[str, object]:
    rows = [
        {
            "statement": verdict.statement.name,
            "source": verdict.statement.source,
            "tested": verdict.statement.tested,
            "rank": verdict.statement.rank,
            "worst": verdict.worst if math.isfinite(verdict.worst) else str(verdict.worst),
            "limit": verdict.statement.limit,
            "samples": verdict.num_tested,
            "holds": verdict.holds,
        }
        for verdict in verdicts
    ]
    settings = {name: getattr(arguments, name) for name in ("width", "samples", "seed")}
    return {**settings, "statements": rows}
