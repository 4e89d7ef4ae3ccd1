"""`jaxcond figure`: the figures of the paper, computed anew."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.text import Text

from .. import experiments, plotting
from ..experiments._defaults import ALPHAS, RESTART
from . import _late as late
from ._common import Parser, add_cache, check_distinct, check_writable, out

# Widths of the paper, and of the minute-sized versions.
_WIDTHS = {"1": (200, 50), "2a": (200, 50), "2b": (200, 50), "3": (100, 30)}
_SEEDS = {"1": 1, "2a": 1, "2b": 3, "3": 1}
_ONLY = {"learning_rate": ("1", "2a"), "method": ("2a",), "alphas": ("2b",),
         "checkpoint": ("1", "2a", "2b"), "restart": ("1",)}  # fmt: skip


def add_figure(commands: argparse._SubParsersAction[Parser]) -> None:  # pyright: ignore[reportPrivateUsage]
    """Add the command and its options."""
    figure = commands.add_parser(
        "figure",
        help="reproduce the figures of the paper with trained networks",
        description=(
            "Recompute a figure of Chen and Luo. 1: the loss through the plateau, the region where "
            "the effective model fails as predicted from the initial weights, and the directions "
            "of the weights before and after. 2a: the number of final stage inequalities that "
            "hold during training, for the network and for the effective model. 2b: the largest "
            "such number against the exponent of the initial weights. 3: a matrix factorisation "
            "of rank two. The defaults are the settings of the paper. The data are written next "
            "to the figure, with the suffix .npz."
        ),
    )
    add = figure.add_argument
    add("figure", choices=tuple(_WIDTHS), help="figure of the paper")
    add("--quick", action="store_true", help="use a narrow network, for about a minute or less")
    add("--width", type=int, metavar="M", help="width of both hidden layers (default 200; 3: 100)")
    add(
        "--std",
        type=float,
        metavar="EPS",
        help="standard deviation of the initial weights (default M^-2; 3: M^-3)",
    )
    add(
        "--learning-rate",
        type=float,
        metavar="ETA",
        help="learning rate of figures 1 and 2a (default 5e-3)",
    )
    add("--seeds", type=int, metavar="N", help="number of networks (default 1; 2b: 3)")
    add("--seed", type=int, default=0, metavar="S", help="seed of the first network (default 0)")
    add(
        "--method",
        choices=("descent", "flow"),
        help="dynamics of figure 2a: gradient descent (default, as in the paper) or gradient flow",
    )
    add(
        "--alphas",
        type=float,
        nargs="+",
        metavar="A",
        help="exponents of figure 2b (default 0.25 to 3)",
    )
    add(
        "--restart",
        type=int,
        metavar="K",
        help=f"figure 1: iteration to restart from with a tenth of the rate (default {RESTART})",
    )
    add(
        "--checkpoint",
        type=Path,
        metavar="FOLDER",
        help="figures 1, 2a, 2b: checkpoint folder, from which an interrupted run continues",
    )
    add("--data", type=Path, metavar="FILE", help="draw the data of an earlier run")
    add("--out", type=Path, metavar="FILE", help="figure file (default figure_FIGURE.png)")
    add("--quiet", action="store_true", help="hide the progress bar")
    add_cache(figure)
    figure.set_defaults(command=_figure)


def _figure(arguments: argparse.Namespace) -> int:
    late.session.begin(arguments)
    name = arguments.figure
    path = Path(f"figure_{name}.png") if arguments.out is None else arguments.out
    data = path.with_suffix(".npz")
    check_writable(path)
    plotting.check_format(path)
    for option, figures in _ONLY.items():
        if getattr(arguments, option) is not None and name not in figures:
            raise ValueError(
                f"--{option.replace('_', '-')} is an option of figure {' and '.join(figures)}"
            )
    if arguments.data is None:
        check_writable(data)
        experiment = _compute(arguments)
        experiment.save(data)
    else:
        check_distinct(out=path, data=arguments.data)
        experiment = experiments.read_experiment(arguments.data)
        if experiment.name != name:
            raise ValueError(f"File {arguments.data} holds the data of figure {experiment.name}")
    plotting.save(plotting.PAPER_FIGURES[name](experiment), path)
    for line in _summary(experiment):
        out.print(Text(line), soft_wrap=True)
    written = f"Figure written to {path}"
    out.print(Text(written if arguments.data else f"{written}, data to {data}"), soft_wrap=True)
    return 0


def _compute(arguments: argparse.Namespace) -> experiments.Experiment:
    name, progress = arguments.figure, not arguments.quiet
    width = arguments.width if arguments.width is not None else _WIDTHS[name][arguments.quick]
    seeds = arguments.seeds if arguments.seeds is not None else _SEEDS[name]
    if seeds < 1:
        raise ValueError(f"--seeds must be at least 1, but is {seeds}")
    if name == "3":
        return experiments.figure_3(
            width=width,
            std=arguments.std,
            seed=arguments.seed,
            num_seeds=seeds,
            progress=progress,
        )
    rate = 5e-3 if arguments.learning_rate is None else arguments.learning_rate
    setting = experiments.TanhSetting(
        width=width,
        std=arguments.std,
        learning_rate=rate,
        seed=arguments.seed,
        num_seeds=seeds,
    )
    if name == "1":
        restart = RESTART if arguments.restart is None else arguments.restart
        return experiments.figure_1(
            setting, restart=restart, checkpoint=arguments.checkpoint, progress=progress
        )
    if name == "2a":
        return experiments.figure_2a(
            setting,
            method=arguments.method or "descent",
            checkpoint=arguments.checkpoint,
            progress=progress,
        )
    return experiments.figure_2b(
        setting,
        alphas=arguments.alphas or ALPHAS,
        checkpoint=arguments.checkpoint,
        progress=progress,
    )


def _summary(experiment: experiments.Experiment) -> list[str]:
    """What the figure says in numbers."""
    if experiment.name == "1":
        pairs = zip(experiment["predicted"], experiment["observed"], strict=True)
        return [
            f"loss below 90 %: predicted iteration {predicted:,.1f}, observed {observed:,.0f} "
            f"({100 * (predicted / observed - 1):+.2g} %)"
            for predicted, observed in pairs
        ]
    if experiment.name == "2a":
        total = 2 * experiment.settings["width"]
        first, most = experiment["positive"][:, 0], experiment["positive"].max(axis=1)
        return [
            f"inequalities that hold, of {total}: {a:.0f} at the start, {b:.0f} at most"
            for a, b in zip(first, most, strict=True)
        ]
    if experiment.name == "2b":
        total = experiment["total"]
        return [
            f"alpha {alpha:g}: {row.mean():.1f} of {total} at most"
            for alpha, row in zip(experiment["alpha"], experiment["largest"], strict=True)
        ]
    pairs = zip(experiment["predicted"], experiment["crossing"], strict=True)
    return [
        f"loss below 90 %: predicted t = {predicted:.8g}, observed {observed:.8g} "
        f"({100 * (predicted / observed - 1):+.2g} %)"
        for predicted, observed in pairs
    ]
