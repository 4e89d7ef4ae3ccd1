"""`jaxcond study`: the distribution of the blow-up time."""

import argparse
import math
from pathlib import Path

import jax
import jax.numpy as jnp
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from .. import plotting
from ..blowup import resolve_rtol
from ..study import Study, StudyResult
from ._common import Parser, check_writable, err, out


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f} samples/s")


def _widths(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    try:
        numbers = [int(float(part)) if float(part).is_integer() else 0 for part in parts]
    except (ValueError, OverflowError):
        numbers = []
    if len(numbers) not in (1, 2) or min(numbers) < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r} is neither a positive width like 200 nor a pair like 200x100"
        )
    return numbers[0], numbers[-1]


def add_study(commands: "argparse._SubParsersAction[Parser]") -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the command and its options."""
    study = commands.add_parser(
        "study",
        help="distribution of the blow-up time over random initialisations",
        description=(
            "The distribution of the blow-up time T* over random initialisations of a network. "
            "Draws Gaussian initial states, finds the blow-up time of each with a rigorous "
            "bracket, prints a summary and writes a histogram with the infinite-width value. "
            "Times are in units of the effective model."
        ),
    )
    add = study.add_argument
    add(
        "--width",
        type=_widths,
        default=(200, 200),
        metavar="M|PxQ",
        help="width of both hidden layers, or a pair like 200x100; any size, 1e9 too (default 200)",
    )
    add(
        "--samples",
        type=int,
        default=10_000,
        metavar="N",
        help="random initialisations (default 10000)",
    )
    add("--seed", type=int, default=0, help="a sample depends on it and its index only (default 0)")
    add(
        "--scales",
        type=float,
        nargs=3,
        default=(1.0, 1.0, 1.0),
        metavar=("A", "B", "C"),
        help="standard deviations of the entries of a (output), b, c (input) (default 1 1 1)",
    )
    add("--rtol", type=float, help="relative tolerance (default 1e-10, or 1e-5 with --float32)")
    add(
        "--out",
        type=Path,
        default=Path("study.png"),
        metavar="FILE",
        help="figure to write; the suffix tells the format (default study.png)",
    )
    add(
        "--save", type=Path, metavar="FILE", help="also write every sample's record to an .npz file"
    )
    add(
        "--full",
        action="store_true",
        help="form every state in full, not in its exact reduced form",
    )
    add("--float32", action="store_true", help="compute in single precision")
    add("--quiet", action="store_true", help="no progress bar")
    study.set_defaults(command=_study)


def _study(arguments: argparse.Namespace) -> int:
    jax.config.update("jax_enable_x64", not arguments.float32)
    targets = [path for path in (arguments.out, arguments.save) if path is not None]
    for path in targets:
        check_writable(path)
    plotting.check_format(arguments.out)
    if arguments.save is not None and arguments.save.resolve() == arguments.out.resolve():
        raise ValueError(f"--out and --save name the same file, {arguments.out}")
    p, q = arguments.width
    configuration = Study(
        p,
        q,
        arguments.samples,
        arguments.seed,
        tuple(arguments.scales),
        arguments.rtol,
        reduced=not arguments.full,
    )
    # Refused before a progress bar stands above the message.
    resolve_rtol(configuration.rtol, jnp.zeros(()).dtype)
    result = _run(configuration, arguments.quiet)
    _print_summary(result)
    if arguments.save is not None:
        result.save(str(arguments.save))
        out.print(Text(f"Records written to {arguments.save}"), soft_wrap=True)
    if result.known.any():
        plotting.save(plotting.histogram(result), arguments.out)
        out.print(Text(f"Figure written to {arguments.out}"), soft_wrap=True)
    else:
        out.print("No finite blow-up time: no figure.")
    return 3 if result.summary().statuses["not_converged"] else 0


def _run(configuration: Study, quiet: bool) -> StudyResult:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, disable=quiet) as progress:
        task = progress.add_task("compiling", total=configuration.num_samples)

        def advance(count: int) -> None:
            progress.update(task, advance=count, description="solving")

        return configuration.run(advance)


def _print_summary(result: StudyResult) -> None:
    study, summary = result.study, result.summary()
    rate = study.num_samples / result.seconds
    title = f"Blow-up time T*, width {study.p} x {study.q}, {study.num_samples} samples"
    table = Table(title=title, show_header=False)
    table.add_column(justify="left")
    table.add_column(justify="right")
    rows: list[tuple[str, str]] = [
        ("mean ± standard error", f"{summary.mean:.8g} ± {summary.error:.2g}"),
        ("standard deviation", f"{summary.deviation:.4g}"),
        *((f"quantile {level:.1%}", f"{value:.8g}") for level, value in summary.quantiles),
        ("mean of √q·T*", f"{summary.scaled_mean:.8g} ± {summary.scaled_error:.2g}"),
        (
            "√q·T* at infinite width",
            f"{summary.limit:.10g}" if math.isfinite(summary.limit) else "–",
        ),
        ("widest bracket, relative", f"{summary.widest_bracket:.2g}"),
        ("largest numerical error, relative", f"{summary.largest_error:.2g}"),
    ]
    shares = [(name, n) for name, n in summary.statuses.items() if n or name == "converged"]
    rows += [(f"status {name}", f"{n}  ({n / study.num_samples:.4%})") for name, n in shares]
    rows += [(f"settled by {name}", str(n)) for name, n in summary.settled_by.items() if n]
    rows.append(("time", f"{result.seconds:.2f} s  ({rate:,.0f} samples/s with compilation)"))
    for row in rows:
        table.add_row(*row)
    out.print(table)
