"""`jaxcond plot` and `jaxcond phase`: figures of a store, and maps without any samples."""

from __future__ import annotations

import argparse
import contextlib
from pathlib import Path
from typing import Any

import numpy as np
from rich.text import Text

from .. import blowup, plotting, sampling, study
from ..files import written_whole
from . import _late as late
from ._common import (
    Parser,
    add_cache,
    check_distinct,
    check_store,
    check_writable,
    err,
    out,
)

_KINDS = ("distribution", "scaling", "convergence", "phase")
_AXES = ("aspect", "scale_a", "scale_b", "scale_c")


def add_plot(commands: argparse._SubParsersAction[Parser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add both commands and their options."""
    plot = commands.add_parser(
        "plot",
        help="draw a study: distribution, scaling, convergence or phase map",
        description=(
            "Draw the study in a store: the distribution at each sweep point, the scaling of the "
            "mean and standard deviation with the width next to the limit law, the convergence of "
            "the mean, or a phase map over two axes next to that of infinite width."
        ),
    )
    add = plot.add_argument
    add("store", type=Path, metavar="STORE", help="the store of a study")
    add(
        "--kind",
        choices=_KINDS,
        default="distribution",
        help="kind of figure (default distribution)",
    )
    add("--axes", nargs=2, metavar=("X", "Y"), help="axes of a phase map (default: the first two)")
    add(
        "--out",
        type=Path,
        metavar="FILE",
        help=(
            "figure file; its suffix sets the format (default: the names of store and kind, "
            "as in widths_scaling.png)"
        ),
    )
    add_cache(plot)
    plot.set_defaults(command=_plot)

    phase = commands.add_parser(
        "phase",
        help="draw a phase map of the infinite-width blow-up time, without sampling",
        description=(
            "Draw the infinite-width limit of √q·T* over two axes, chosen from the aspect ratio "
            "p/q and the scales of the layers. No samples are drawn."
        ),
    )
    add = phase.add_argument
    for name, default in (("x", ("scale_b", 0.1, 10.0)), ("y", ("aspect", 0.1, 10.0))):
        add(
            f"--{name}",
            nargs=3,
            default=default,
            metavar=("NAME", "FROM", "TO"),
            help=f"axis ({', '.join(_AXES)}) and its range (default {' '.join(map(str, default))})",
        )
    add(
        "--num",
        type=int,
        default=41,
        metavar="N",
        help="number of values along each axis (default 41)",
    )
    add("--linear", action="store_true", help="space values linearly instead of logarithmically")
    for name in _AXES:
        add(
            f"--{name.replace('_', '-')}",
            type=float,
            default=1.0,
            metavar="VALUE",
            help=f"{name} when it is not swept (default 1)",
        )
    add("--out", type=Path, default=Path("phase.png"), metavar="FILE", help="figure file")
    add("--save", type=Path, metavar="FILE", help="also write the values to an .npz file")
    add("--quiet", action="store_true", help="print errors only")
    add_cache(phase)
    phase.set_defaults(command=_phase)


def _plot(arguments: argparse.Namespace) -> int:
    late.session.begin(arguments)
    path = arguments.out
    if path is None:
        path = Path(f"{arguments.store.stem}_{arguments.kind}.png")
    check_writable(path)
    plotting.check_format(path)
    if arguments.axes is not None and arguments.kind != "phase":
        raise ValueError("--axes requires --kind phase")
    check_store(arguments.store)
    store = study.open_store(arguments.store)
    summary = study.summarise(store)
    if arguments.kind == "distribution":
        figure = plotting.distributions(store, summary)
    elif arguments.kind == "scaling":
        figure = plotting.scaling(summary)
    elif arguments.kind == "convergence":
        figure = plotting.convergence(store, summary)
    else:
        axes = arguments.axes or list(summary.study.sweep)[:2]
        if len(axes) < 2:
            raise ValueError("A phase map needs a sweep over two axes.")
        figure = plotting.study_map(summary, *axes)
    plotting.save(figure, path)
    out.print(Text(f"Figure written to {path}"), soft_wrap=True)
    return 0


def _axis(option: str, given: Any, num: int, linear: bool) -> tuple[str, np.ndarray]:
    name, *ends = given
    if name not in _AXES:
        raise ValueError(f"{option} takes one of {', '.join(_AXES)}, not {name!r}")
    try:
        start, stop = (float(end) for end in ends)
    except ValueError:
        raise ValueError(f"{option} takes a name and two numbers, not {' '.join(ends)!r}") from None
    low = 0 if linear and name != "aspect" else np.nextafter(0, 1)
    if not (low <= start < stop < np.inf):
        raise ValueError(
            f"{option} needs a range of growing, {'' if low == 0 else 'positive, '}finite numbers, "
            f"not {start:g} to {stop:g}"
        )
    return name, (np.linspace if linear else np.geomspace)(start, stop, num)


def _phase(arguments: argparse.Namespace) -> int:
    late.session.begin(arguments)
    check_writable(arguments.out)
    plotting.check_format(arguments.out)
    if arguments.save is not None:
        check_writable(arguments.save)
        check_distinct(out=arguments.out, save=arguments.save)
    if arguments.num < 2:
        raise ValueError(f"--num must be at least 2, but is {arguments.num}")
    x_name, x = _axis("--x", arguments.x, arguments.num, arguments.linear)
    y_name, y = _axis("--y", arguments.y, arguments.num, arguments.linear)
    if x_name == y_name:
        raise ValueError(f"--x and --y name the same axis, {x_name}")
    fixed: dict[str, Any] = {name: getattr(arguments, name) for name in _AXES}
    arguments_of: dict[str, Any] = fixed | {x_name: x[None, :], y_name: y[:, None]}
    # Compiling alone takes most of a minute.
    told = f"compiling, then computing {x.size * y.size} values …"
    with contextlib.nullcontext() if arguments.quiet else err.status(told):
        found = sampling.infinite_width_times(**arguments_of)
    known = np.asarray(found.status) == blowup.Status.CONVERGED
    values = np.where(known, np.asarray(found.time), np.nan)
    rest = ", ".join(
        f"{study.AXES[name].symbol} = {fixed[name]:g}"
        for name in _AXES
        if name not in (x_name, y_name)
    )
    figure = plotting.phase_map(
        x,
        y,
        values,
        x_label=study.AXES[x_name].label,
        y_label=study.AXES[y_name].label,
        label=r"$\sqrt{q}\,T^*$ at infinite width",
        title=rest,
        log_x=not arguments.linear,
        log_y=not arguments.linear,
    )
    plotting.save(figure, arguments.out)
    written = [f"{known.sum()} of {known.size} values found, figure written to {arguments.out}"]
    if arguments.save is not None:
        with written_whole(arguments.save) as temporary, open(temporary, "wb") as file:
            arrays: dict[str, Any] = {x_name: x, y_name: y, "time": values, "error": found.error}
            np.savez_compressed(file, **arrays)
        written.append(f"Values written to {arguments.save}")
    for line in [] if arguments.quiet else written:
        out.print(Text(line), soft_wrap=True)
    return 0 if known.all() else 3
