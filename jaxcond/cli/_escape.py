"""`jaxcond escape`: predict the length of a network's plateau without training it."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from .. import networks, plotting
from ..files import written_whole
from . import _late as late
from ._common import Parser, add_cache, check_distinct, check_writable, err, out, print_table

if TYPE_CHECKING:
    import numpy as np

_SWEPT = ("std", "width", "depth")


def add_escape(commands: argparse._SubParsersAction[Parser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the command and its options."""
    escape = commands.add_parser(
        "escape",
        help="predict when networks leave their plateau, for random initial weights",
        description=(
            "Predict, without training, the iteration of full-batch gradient descent at which the "
            "loss of a fully connected network leaves its plateau. The command prints a table and "
            "draws a histogram over many random initial weights. --sweep repeats this for several "
            "standard deviations, widths or depths. The exit code is 3 if some networks have no "
            "prediction."
        ),
    )
    add = escape.add_argument
    add("data", type=Path, help="samples: .npz with x and y, or .csv, the last columns as targets")
    add("--targets", type=int, default=1, metavar="N", help="target columns of a .csv (default 1)")
    add(
        "--hidden",
        type=int,
        nargs="+",
        default=[100, 100],
        metavar="M",
        help="widths of the hidden layers, next to the input first (default 100 100)",
    )
    add(
        "--outputs",
        type=int,
        metavar="N",
        help="number of outputs; required for softmax with class labels",
    )
    add("--std", type=float, metavar="EPS", help="standard deviation of the weights")
    add(
        "--exponent",
        type=float,
        metavar="GAMMA",
        help="replaces --std: EPS = M^-GAMMA with the widest hidden layer M",
    )
    add("--activation", default="tanh", metavar="NAME", help="activation (default tanh)")
    add(
        "--bias",
        choices=("none", "input", "all"),
        default="none",
        help="all: biases in every layer, initially 0; input: an additional constant input 1; none "
        "(default)",
    )
    add("--loss", default="half_mse", metavar="NAME", help="half_mse (default), mse, softmax, "
        "logistic")  # fmt: skip
    add("--learning-rate", type=float, required=True, metavar="ETA", help="learning rate")
    add("--fraction", type=float, default=0.9, help="fraction of the initial loss (default 0.9)")
    add("--level", type=float, help="replaces --fraction: value of the loss")
    add("--seeds", type=int, default=100, metavar="N", help="number of networks (default 100)")
    add("--seed", type=int, default=0, metavar="S", help="first seed (default 0)")
    add(
        "--sweep",
        nargs=3,
        metavar=("NAME", "FROM", "TO"),
        help=f"sweep {', '.join(_SWEPT)} (of all hidden layers) FROM one value TO another",
    )
    add("--points", type=int, default=5, metavar="N", help="number of sweep points (default 5)")
    add("--out", type=Path, default=Path("escape.png"), help="figure file (default escape.png)")
    add("--json", type=Path, metavar="FILE", help="also write all iterations to a JSON file")
    add("--quiet", action="store_true", help="hide the progress bar")
    add_cache(escape)
    escape.set_defaults(command=_escape)


def _escape(arguments: argparse.Namespace) -> int:
    late.session.begin(arguments)
    check_distinct(data=arguments.data, out=arguments.out, json=arguments.json)
    for path in filter(None, (arguments.out, arguments.json)):
        check_writable(path)
    plotting.check_format(arguments.out)
    if arguments.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, but is {arguments.seeds}")
    given = (arguments.std is not None) + (arguments.exponent is not None)
    if given != (_swept(arguments) != "std"):
        swept = "neither --std nor --exponent with --sweep std"
        raise ValueError(
            swept if _swept(arguments) == "std" else "give one of --std and --exponent"
        )
    points = _points(arguments)
    data = networks.read_samples(arguments.data, arguments.targets)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    escapes: list[networks.Escape] = []
    with Progress(*columns, TimeElapsedColumn(), console=err, disable=arguments.quiet) as progress:
        task = progress.add_task("compiling …", total=len(points))
        for value, changes in points:
            escapes.append(late.escapes.over_seeds(data, arguments, changes))
            label = "predicted" if value is None else f"{_swept(arguments)} {value:g}"
            progress.update(task, advance=1, description=label)
    _print(points, escapes, arguments)
    _draw(points, escapes, arguments)
    if arguments.json is not None:
        with written_whole(arguments.json) as temporary:
            record = _record(points, escapes, arguments)
            Path(temporary).write_text(json.dumps(record, indent=1) + "\n")
        out.print(Text(f"Iterations written to {arguments.json}"), soft_wrap=True)
    return 0 if all((escape.status == 0).all() for escape in escapes) else 3


def _swept(arguments: argparse.Namespace) -> str:
    """Name of the swept parameter; empty without a sweep."""
    return "" if arguments.sweep is None else str(arguments.sweep[0])


def _points(arguments: argparse.Namespace) -> list[tuple[float | None, dict[str, Any]]]:
    """The sweep values with the arguments that each changes; one point without a value if no sweep.

    **Raises:** `ValueError` for what cannot be swept, and values out of range.
    """
    if arguments.sweep is None:
        return [(None, {})]
    name, *ends = arguments.sweep
    if name not in _SWEPT:
        raise ValueError(f"--sweep takes {', '.join(_SWEPT)}, but got {name!r}")
    try:
        first, last = (float(end) for end in ends)
    except ValueError:
        raise ValueError(f"--sweep {name} needs two numbers, but got {' '.join(ends)}") from None
    least = {"std": 0.0, "width": 1.0, "depth": 2.0}[name]
    if not (0 < first < float("inf") and 0 < last < float("inf")) or min(first, last) < least:
        raise ValueError(f"--sweep {name} needs positive values of at least {least:g}")
    if arguments.points < 2:
        raise ValueError(f"--points must be at least 2, but is {arguments.points}")
    ratio = (last / first) ** (1 / (arguments.points - 1))
    values = [first * ratio**i for i in range(arguments.points)]
    if name == "std":
        return [(value, {"std": value, "exponent": None}) for value in values]
    whole = sorted({round(value) for value in values})
    if name == "depth":
        whole = list(range(round(min(first, last)), round(max(first, last)) + 1))
        return [(n, {"hidden": [max(arguments.hidden)] * (n - 1)}) for n in whole]
    return [(n, {"hidden": [n] * len(arguments.hidden)}) for n in whole]


def _known(escape: networks.Escape) -> np.ndarray:
    """Print the predicted iterations."""
    return escape.crossing_iteration[escape.status == 0]


def _print(
    points: list[tuple[float | None, dict[str, Any]]],
    escapes: list[networks.Escape],
    arguments: argparse.Namespace,
) -> None:
    table = Table(title=_title(arguments), box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    if arguments.sweep is not None:
        table.add_column(_swept(arguments), justify="right", no_wrap=True)
    for name in ("predicted", "median", "quartiles", "least", "largest", "correction"):
        table.add_column(name, justify="right", no_wrap=True)
    for (value, _), escape in zip(points, escapes, strict=True):
        cells = [] if value is None else [f"{value:.4g}"]
        known = _known(escape)
        cells.append(f"{known.size} of {escape.status.size}")
        cells += late.escapes.numbers(known, escape)
        table.add_row(*cells)
    print_table(table)
    out.print(Text(
        "Iterations at which the loss falls below the level. Correction: median of the ratio of "
        "the iteration of the effective model alone to the predicted one, minus 1; positive if "
        "the effective model is late. The error of the prediction is a small part of it."
    ))  # fmt: skip
    for line in late.escapes.reasons(escapes):
        out.print(Text(line), soft_wrap=True)


def _title(arguments: argparse.Namespace) -> str:
    """Description of the networks, without the swept parameter."""
    swept, parts = _swept(arguments), [arguments.data.name]
    if swept == "width":
        parts.append(f"{len(arguments.hidden)} hidden layers")
    else:
        widths = [max(arguments.hidden)] if swept == "depth" else arguments.hidden
        parts.append(f"hidden {'-'.join(map(str, widths))}")
    parts.append(arguments.activation)
    if arguments.std is not None:
        parts.append(f"std {arguments.std:g}")
    if arguments.exponent is not None:
        parts.append(f"exponent {arguments.exponent:g}")
    return ", ".join(parts)


def _draw(
    points: list[tuple[float | None, dict[str, Any]]],
    escapes: list[networks.Escape],
    arguments: argparse.Namespace,
) -> None:
    known = [_known(escape) for escape in escapes]
    if not any(x.size for x in known):
        out.print("No figure: no prediction to draw.")
        return
    title = _title(arguments)
    if arguments.sweep is None:
        iterations = late.escapes.with_gaps(escapes[0])
        figure = plotting.escape_histogram(iterations, title=title)
    else:
        values = [float(value or 0) for value, _ in points]
        figure = plotting.escape_sweep(_swept(arguments), values, known, title=title)
    plotting.save(figure, arguments.out)
    out.print(Text(f"Figure written to {arguments.out}"), soft_wrap=True)


def _record(
    points: list[tuple[float | None, dict[str, Any]]],
    escapes: list[networks.Escape],
    arguments: argparse.Namespace,
) -> dict[str, Any]:
    names = ("hidden", "std", "exponent", "activation", "bias", "loss", "learning_rate",
             "fraction", "level", "seeds", "seed")  # fmt: skip
    settings = {"data": str(arguments.data), **{name: getattr(arguments, name) for name in names}}
    rows = [
        {
            **({} if value is None else {_swept(arguments): value}),
            "iterations": [x if x == x else None for x in late.escapes.with_gaps(escape).tolist()],
            "status": late.escapes.names(escape),
        }
        for (value, _), escape in zip(points, escapes, strict=True)
    ]
    return {**settings, "points": rows}
