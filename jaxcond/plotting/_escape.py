"""When networks leave their plateau: over random initial weights, and against what is swept."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator
from numpy.typing import ArrayLike

_COLOUR, _LINE = "#4c72b0", "#c44e52"


def escape_histogram(iterations: ArrayLike, *, title: str = "") -> Figure:
    """The distribution of the escape iteration over random initial weights.

    **Arguments:** `iterations`, shape `(seeds,)`; those that are not finite are left out, and
    counted in the title. `title`, what the networks are.

    **Raises:** `ValueError` if none is finite.
    """
    values = np.asarray(iterations, np.float64).ravel()
    known = values[np.isfinite(values)]
    if not known.size:
        raise ValueError("Argument `iterations` must hold at least one finite number.")
    figure = Figure(figsize=(4.2, 3.0), dpi=200, layout="constrained")
    axes = figure.subplots()
    axes.hist(known, bins="auto" if np.ptp(known) > 0 else 1, color=_COLOUR, edgecolor="white")
    median = float(np.median(known))
    axes.axvline(median, color=_LINE, linewidth=1.2, label=f"median {median:,.0f}")
    axes.set_xlabel("escape iteration (loss falls below the level)", fontsize=8)
    axes.set_ylabel("networks", fontsize=8)
    left_out = f"; {values.size - known.size} without a prediction" * (values.size > known.size)
    axes.set_title(f"{title}\n{known.size} random initial weights{left_out}".strip(), fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)
    return figure


def escape_sweep(
    name: str, values: Sequence[float], iterations: Sequence[ArrayLike], *, title: str = ""
) -> Figure:
    """Medians and quartiles of the escape iteration against what is swept.

    **Arguments:** `name` of what is swept, and its `values`; for each of them `iterations` over the
    seeds, of which those that are not finite are left out; `title`, what the networks are.

    **Raises:** `ValueError` for other lengths, or if no iteration is finite.
    """
    if len(values) != len(iterations):
        raise ValueError(
            f"There are {len(values)} values of {name!r}, but iterations for {len(iterations)}."
        )
    known = [np.asarray(x, np.float64) for x in iterations]
    known = [x[np.isfinite(x)] for x in known]
    kept = [(value, x) for value, x in zip(values, known, strict=True) if x.size]
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
