"""Blow-up times and escapes from the plateau: distributions, curves, and dependence on a sweep."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from ..blowup import BlowUp
    from ..networks import Escape, Run

_COLOUR, _LINE = "#4c72b0", "#c44e52"


def escape_histogram(iterations: ArrayLike, *, title: str = "") -> Figure:
    """The distribution of the escape iteration over random initial weights.

    **Arguments:** `iterations`, shape `(seeds,)`; those that are not finite are left out and
    counted in the title. `title`, a description of the networks.

    **Raises:** `ValueError` if none is finite.
    """
    figure, left_out = _histogram(
        "iterations",
        iterations,
        "escape iteration (loss falls below the level)",
        "networks",
        ",.0f",
    )
    count = np.size(iterations) - left_out
    missing = f"; {left_out} without a prediction" * (left_out > 0)
    figure.axes[0].set_title(
        f"{title}\n{count} random initial weights{missing}".strip(), fontsize=8
    )
    return figure


def blowup_histogram(blowup: "BlowUp", *, title: str = "") -> Figure:
    """The distribution of the blow-up time over a batch of samples.

    **Arguments:** `blowup`, of a batch, of which samples without a finite time are left out and
    counted in the title; `title`, a description of the samples.

    **Raises:** `ValueError` if no time is finite.
    """
    figure, left_out = _histogram("blowup", blowup.time, "blow-up time $T^*$", "samples", ".6g")
    count = blowup.time.size - left_out
    missing = f"; {left_out} without a finite time" * (left_out > 0)
    figure.axes[0].set_title(f"{title}\n{count} samples{missing}".strip(), fontsize=8)
    return figure


def escape_curves(escape: "Escape", *, title: str = "") -> Figure:
    """The loss of one network along its plateau, by the effective model and by its own flow.

    **Arguments:** `escape`, of one network; `title`, a description of the network. The horizontal
    axis shows iterations if `escape` has a learning rate, and training times otherwise.

    **Raises:** `ValueError` for many networks.
    """
    if escape.crossing.ndim:
        raise ValueError("Argument `escape` must be that of one network, but is that of many.")
    in_iterations = escape.learning_rate is not None
    place = escape.iterations(escape.clock) if in_iterations else escape.clock
    crossing = escape.crossing_iteration if in_iterations else escape.crossing
    figure = Figure(figsize=(4.2, 3.0), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.plot(place, escape.network_loss, color=_COLOUR, linewidth=1.2, label="network")
    axes.plot(place, escape.effective_loss, "k:", linewidth=1, label="effective model")
    axes.axhline(float(escape.level), color="0.6", linewidth=0.7)
    if np.isfinite(crossing):
        axes.axvline(float(crossing), color=_LINE, linewidth=1.2, label=f"escape {crossing:,.6g}")
    axes.set_xlabel("iteration" if in_iterations else "training time $t$", fontsize=8)
    axes.set_ylabel("loss", fontsize=8)
    axes.set_title(title, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)
    return figure


def training_loss(run: "Run", *, title: str = "") -> Figure:
    """The recorded loss of a training run against the iteration, one line for each network.

    **Arguments:** `run`, of one network or many; `title`, a description of the networks.
    """
    iterations, loss = np.atleast_2d(run.iterations), np.atleast_2d(run.loss)
    figure = Figure(figsize=(4.2, 3.0), dpi=200, layout="constrained")
    axes = figure.subplots()
    for row, values in zip(iterations, loss, strict=True):
        axes.plot(row, values, color=_COLOUR, linewidth=1.2, alpha=max(0.2, 1 / len(loss)))
    axes.set_yscale("log")
    axes.set_xlabel("iteration", fontsize=8)
    axes.set_ylabel("loss", fontsize=8)
    axes.set_title(title, fontsize=8)
    axes.tick_params(which="both", labelsize=7)
    return figure


def _histogram(
    name: str, values: ArrayLike, xlabel: str, ylabel: str, form: str
) -> tuple[Figure, int]:
    """A histogram of the finite values with their median, and how many values are not finite."""
    array = np.asarray(values, np.float64).ravel()
    finite = array[np.isfinite(array)]
    if not finite.size:
        raise ValueError(f"Argument `{name}` must hold at least one finite number.")
    figure = Figure(figsize=(4.2, 3.0), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.hist(finite, bins="auto" if np.ptp(finite) > 0 else 1, color=_COLOUR, edgecolor="white")
    median = float(np.median(finite))
    axes.axvline(median, color=_LINE, linewidth=1.2, label=f"median {median:{form}}")
    axes.set_xlabel(xlabel, fontsize=8)
    axes.set_ylabel(ylabel, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)
    return figure, array.size - finite.size


def escape_sweep(
    name: str, values: Sequence[float], iterations: Sequence[ArrayLike], *, title: str = ""
) -> Figure:
    """Medians and quartiles of the escape iteration against a swept quantity.

    **Arguments:** `name` and `values` of the swept quantity; for each value the `iterations` over
    the seeds, of which those that are not finite are left out; `title`, a description of the
    networks.

    **Raises:** `ValueError` for different lengths, or if no iteration is finite.
    """
    if len(values) != len(iterations):
        raise ValueError(
            f"There are {len(values)} values of {name!r}, but iterations for {len(iterations)}."
        )
    finite = [np.asarray(x, np.float64) for x in iterations]
    finite = [x[np.isfinite(x)] for x in finite]
    kept = [(value, x) for value, x in zip(values, finite, strict=True) if x.size]
    if not kept:
        raise ValueError("Argument `iterations` must hold at least one finite number.")
    low, median, high = np.asarray([np.percentile(x, (25, 50, 75)) for _, x in kept]).T
    figure = Figure(figsize=(4.2, 3.0), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.errorbar(
        [value for value, _ in kept],
        median,
        [median - low, high - median],
        fmt="o-",
        color=_COLOUR,
        markersize=4,
        linewidth=0.9,
        capsize=2,
    )
    axes.set_yscale("log")
    if name != "depth":
        axes.set_xscale("log")
    if name in ("depth", "width"):
        axes.set_xticks([value for value, _ in kept], [f"{value:g}" for value, _ in kept])
        axes.xaxis.set_minor_locator(NullLocator())
    labels = {"std": "standard deviation of the initial weights", "depth": "layers $L$"}
    axes.set_xlabel(labels.get(name, name), fontsize=8)
    axes.set_ylabel("escape iteration, median and quartiles", fontsize=8)
    axes.set_title(title, fontsize=8)
    axes.tick_params(which="both", labelsize=7)
    return figure
