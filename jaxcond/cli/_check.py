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

# Fields of a counter-example's state in the JSON file.
_FIELDS = ("a", "b", "c", "strength")


def add_check(commands: argparse._SubParsersAction[Parser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the command and its options."""
    check = commands.add_parser(
        "check",
        help="check the statements of the theory numerically",
        description=(
            "Checks every numbered statement of Chen and Luo, and the statements that this package "
            "adds, on random Gaussian initial states of ranks 1 to 3. Plain integration follows "
            "the whole flow of each state. Prints the proven and the observed statement and the "
            "worst deviation. The exit code is 3 if a statement fails, or if a statement that is "
            "wrong as printed holds."
        ),
    )
    add = check.add_argument
    add("--width", type=int, default=16, metavar="M", help="width of the wider layer (default 16)")
    add(
        "--samples",
        type=int,
        default=128,
        metavar="N",
        help="number of random states of rank 1; each other kind has a quarter of it (default 128)",
    )
    add("--seed", type=int, default=0, help="seed of the initial states (default 0)")
    add("--json", type=Path, metavar="FILE", help="also write the table to a JSON file")
    add("--quiet", action="store_true", help="hide the progress bar")
    add_cache(check)
    check.set_defaults(command=_check)


def _check(arguments: argparse.Namespace) -> int:
    late.session.begin(arguments)
    if arguments.json is not None:
        check_writable(arguments.json)
    for name, least in (("width", 2), ("samples", 1)):
        if getattr(arguments, name) < least:
            raise ValueError(
                f"--{name} must be at least {least}, but is {getattr(arguments, name)}"
            )
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, TimeElapsedColumn(), console=err, disable=arguments.quiet) as progress:
        total = len(checks.STATEMENTS) + 1
        task = progress.add_task("following trajectories", total=total)
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
    title = f"Width {arguments.width}, {arguments.samples} samples, seed {arguments.seed}"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("statement", "proven", "observed"):
        table.add_column(name, overflow="fold")
    for name in ("worst", "limit", "samples"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for verdict in verdicts:
        statement = verdict.statement
        table.add_row(
            Text(statement.name),
            Text(statement.proven),
            Text(statement.observed),
            f"{verdict.worst:.1e}" if math.isfinite(verdict.worst) else str(verdict.worst),
            f"{statement.limit:.0e}",
            str(verdict.num_tested),
            _word(verdict),
        )
    out.print(table)
    failed = sum(not verdict.holds for verdict in verdicts)
    refuted = sum(verdict.holds and verdict.statement.refuted for verdict in verdicts)
    out.print(
        f"{len(verdicts) - failed - refuted} of {len(verdicts)} statements hold; "
        f"{refuted} refuted, as expected."
    )
    call = f"initial_states({arguments.width}, {arguments.samples}, {arguments.seed})"
    for verdict in filter(_is_counter_example, verdicts):
        where = f"sample {verdict.sample} of the ensemble {verdict.ensemble!r}"
        message = f"Counter-example to {verdict.statement.name}: {where} of {call}."
        out.print(Text(message), soft_wrap=True)


def _is_counter_example(verdict: checks.Verdict) -> bool:
    return verdict.ensemble is not None and verdict.holds == verdict.statement.refuted


def _word(verdict: checks.Verdict) -> str:
    if verdict.holds:
        return "refuted" if verdict.statement.refuted else "holds"
    return "[bold red]NOT TESTED[/]" if verdict.num_tested == 0 else "[bold red]FAILS[/]"


def _record(verdicts: list[checks.Verdict], arguments: argparse.Namespace) -> dict[str, object]:
    settings = {name: getattr(arguments, name) for name in ("width", "samples", "seed")}
    states = checks.initial_states(**settings)

    def counter_example(verdict: checks.Verdict) -> dict[str, object] | None:
        if not _is_counter_example(verdict):
            return None
        # Only these ensembles are stored; the other ensembles are derived from them.
        batch = states.get(verdict.ensemble or "")
        layers = {} if batch is None else {n: getattr(batch, n)[verdict.sample] for n in _FIELDS}
        location: dict[str, object] = {"ensemble": verdict.ensemble, "sample": verdict.sample}
        return location | {name: layer.tolist() for name, layer in layers.items()}

    rows = [
        {
            "statement": verdict.statement.name,
            "proven": verdict.statement.proven,
            "observed": verdict.statement.observed,
            "ensembles": verdict.statement.on,
            "worst": verdict.worst if math.isfinite(verdict.worst) else str(verdict.worst),
            "limit": verdict.statement.limit,
            "samples": verdict.num_tested,
            "refuted": verdict.statement.refuted,
            "holds": verdict.holds,
            "counter_example": counter_example(verdict),
        }
        for verdict in verdicts
    ]
    return {**settings, "statements": rows}
