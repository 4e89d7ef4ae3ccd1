"""The figures of the paper, from the data of `jaxcond.experiments`."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..experiments import Experiment
from ._similarity import DIVERGING, order_of

Place = Literal["best", "upper left", "lower left", "lower right", "upper right"]
_FAINT = {"color": "0.6", "linewidth": 0.8}
_GREY = {"color": "0.88", "linewidth": 0}


def _finish(axes: Axes, letter: str, x: str, y: str) -> None:
    axes.set_xlabel(x, fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.text(-0.16, 1.04, letter, transform=axes.transAxes, fontweight="bold", fontsize=9)


def _legend(axes: Axes, place: Place = "best") -> None:
    axes.legend(frameon=False, fontsize=6.5, handlelength=2.2, loc=place)


def figure_1(experiment: Experiment) -> Figure:
    """Loss through the plateau, its end in detail, and cosine similarities before and after."""
    figure = Figure(figsize=(7.0, 5.6), dpi=200, layout="constrained")
    whole, detail, start, condensed = figure.subplots(2, 2).ravel()
    _loss_whole(whole, experiment)
    _loss_detail(detail, experiment)
    order = order_of(experiment["similarity_condensed"])
    condensed_at = int(experiment["condensed_iteration"])
    for axes, letter, name, title in (
        (start, "c", "similarity_start", "iteration 0"),
        (condensed, "d", "similarity_condensed", f"iteration {condensed_at:,}"),
    ):
        values = experiment[name][np.ix_(order, order)]
        count = len(order)
        image = axes.imshow(
            values,
            cmap=DIVERGING,
            vmin=-1,
            vmax=1,
            interpolation="nearest",
            extent=(0.5, count + 0.5, count + 0.5, 0.5),
        )
        _finish(axes, letter, "neuron, by leading eigenvector of d", "neuron, same order")
        axes.set_title(f"cosines of the rows of $W^1$, {title}", fontsize=8)
        axes.spines[["top", "right"]].set_visible(True)
    bar = figure.colorbar(image, ax=[start, condensed], ticks=[-1, 0, 1])
    bar.set_label("cosine similarity", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure


def _title(experiment: Experiment) -> str:
    told = experiment.settings
    return f"width {told['width']}, " + r"$\varepsilon$ = " + f"{told['std']:.3g}"


def _loss_whole(axes: Axes, experiment: Experiment) -> None:
    iterations, loss = experiment["iterations"], experiment["loss"]
    predicted = float(experiment["predicted"][0])
    for row in range(len(loss) - 1, 0, -1):
        axes.plot(iterations[row] / 1e3, loss[row], **_FAINT)
    end = float(iterations.max())
    axes.axvspan(
        predicted / 1e3, end / 1e3, label="effective model has failed (predicted)", **_GREY
    )
    rate = experiment.settings["learning_rate"]
    axes.plot(iterations[0] / 1e3, loss[0], "k-", linewidth=1.2, label=rf"$\eta$ = {rate:g}")
    restart, slower = experiment.settings["restart"], experiment.settings["slower"]
    again = restart + (experiment["again_iterations"] - restart) / slower
    axes.plot(
        again / 1e3,
        experiment["again_loss"],
        "--",
        color="C1",
        linewidth=1.2,
        label=rf"again from {restart:,}, $\eta$ = {rate / slower:g}",
    )
    if len(loss) > 1:
        axes.plot([], [], label=f"{len(loss) - 1} more seeds", **_FAINT)
    axes.set_ylim(0, 1.32 * float(loss[0, 0]))
    axes.set_xlim(0, end / 1e3)
    axes.set_title(_title(experiment), fontsize=8)
    _legend(axes, "upper left")
    _finish(axes, "a", r"iterations / 10$^3$ (in steps of the larger $\eta$)", "loss (MSE)")


def _loss_detail(axes: Axes, experiment: Experiment) -> None:
    predicted, blowup = (float(experiment[name][0]) for name in ("predicted", "blowup"))
    restart, slower = experiment.settings["restart"], experiment.settings["slower"]
    again = restart + (experiment["again_iterations"] - restart) / slower
    # The detail extends to both sides by the width of the fall.
    width = max(4 * abs(blowup - predicted), 1.0)
    axes.axvspan(0, 4.5 * width, **_GREY)
    axes.plot(
        experiment["iterations"][0] - predicted, experiment["loss"][0], "k-", linewidth=1.2,
        label="trained",
    )  # fmt: skip
    axes.plot(
        again - predicted, experiment["again_loss"], "--", color="C1", linewidth=1.2,
        label=f"again, steps {slower} times smaller",
    )  # fmt: skip
    lifted = _falling(experiment["effective_loss"])
    axes.plot(
        experiment["effective_iterations"][lifted] - predicted,
        experiment["effective_loss"][lifted], ":",
        color="C0", linewidth=1.6, label="lifted effective model",
    )  # fmt: skip
    axes.plot(0, 0.9 * experiment["loss"][0, 0], "o", color="C0", fillstyle="none", markersize=5,
              label="predicted: 90 % of the initial loss")  # fmt: skip
    axes.axvline(blowup - predicted, color="0.4", linewidth=0.8, linestyle="-.", label="$T^*$")
    axes.set_xlim(-width, 4.5 * width)
    axes.set_ylim(0, 1.05 * float(experiment["loss"][0, 0]))
    _legend(axes, "upper right")
    _finish(axes, "b", f"iterations after the predicted {predicted:,.0f}", "loss (MSE)")


def _falling(loss: np.ndarray) -> slice:
    """The lifted loss while it falls; after that it is meaningless."""
    return slice(int(np.argmin(loss)) + 1)


def figure_2a(experiment: Experiment) -> Figure:
    """Positive counts through training: of the networks, and of the effective model."""
    figure = Figure(figsize=(7.0, 2.9), dpi=200, layout="constrained")
    even, close = figure.subplots(1, 2, sharey=True)
    total = 2 * experiment.settings["width"]
    for axes, measure in ((even, _as_it_is), (close, _time_left)):
        for row in range(len(experiment["times"]) - 1, -1, -1):
            real = "C1" if row == 0 else "0.6"
            axes.plot(
                measure(experiment["times"][row]), experiment["positive"][row], "-", color=real,
                linewidth=1.4 if row == 0 else 0.8, label="network" if row == 0 else None,
            )  # fmt: skip
            if row == 0:
                axes.plot(
                    measure(experiment["effective_times"][row]),
                    experiment["effective_positive"][row], "k:", linewidth=1.4,
                    label="effective model",
                )  # fmt: skip
        axes.axhline(total, color="0.4", linewidth=0.6, linestyle="--")
    if len(experiment["times"]) > 1:
        even.plot([], [], label=f"networks of {len(experiment['times']) - 1} more seeds", **_FAINT)
    crossing = f"{experiment['crossing'][0]:,.0f} iterations"
    even.axvspan(1, 1.06, label="effective model has failed (predicted)", **_GREY)
    even.set_xlim(0, 1.06)
    close.set_xscale("log")
    close.set_xlim(1, 1e-3)
    even.set_title(_title(experiment), fontsize=8)
    _legend(even, "lower right")
    inequalities = f"inequalities that hold, of {total}"
    _finish(even, "a", f"time / predicted crossing of 90 % ({crossing})", inequalities)
    _finish(close, "b", "time left until the crossing / crossing", "")
    return figure


def _as_it_is(times: np.ndarray) -> np.ndarray:
    return times


def _time_left(times: np.ndarray) -> np.ndarray:
    return np.where(times < 1, 1 - times, np.nan)


def figure_2b(experiment: Experiment) -> Figure:
    r"""The largest count against the exponent $\alpha$ of the initial standard deviation."""
    figure = Figure(figsize=(3.6, 3.0), dpi=200, layout="constrained")
    axes = figure.subplots()
    alpha, total = experiment["alpha"], float(experiment["total"])
    seeds = experiment["largest"].shape[1]
    for name, style, label in (
        ("largest", "o-", "largest during training"),
        ("at_crossing", "s--", "when the loss has fallen to 90 %"),
        ("first", "k:", "initial weights"),
    ):
        values = experiment[name]
        mean = np.nanmean(values, axis=1)
        axes.plot(alpha, mean, style, markersize=3, linewidth=1.1, label=label)
        if seeds > 1 and name != "first":
            low, high = np.nanmin(values, axis=1), np.nanmax(values, axis=1)
            axes.fill_between(alpha, low, high, alpha=0.2, linewidth=0)
    axes.axhline(total, color="0.4", linewidth=0.6, linestyle="--")
    axes.set_ylim(0.3 * total, 1.05 * total)
    m = experiment.settings["width"]
    spread = f", mean and range of {seeds} seeds" if seeds > 1 else ""
    axes.set_title(f"width {m}{spread}", fontsize=8)
    _legend(axes, "lower right")
    _finish(axes, "", rf"$\alpha$, initial weights $N(0, {m}^{{-2\alpha}})$",
            f"inequalities that hold, of {total:.0f}")  # fmt: skip
    return figure


def figure_3(experiment: Experiment) -> Figure:
    """Loss, singular values and counts of the final stage through a factorisation of rank two."""
    figure = Figure(figsize=(7.0, 5.0), dpi=200, layout="constrained")
    loss, values, counts, close = figure.subplots(2, 2).ravel()
    times, first = experiment["times"], experiment["loss"][:, :1]
    effective = experiment["effective_times"]
    for row in range(len(times) - 1, 0, -1):
        loss.plot(times[row], experiment["loss"][row] / first[row], **_FAINT)
        values.plot(times[row], experiment["singular_values"][row, :, 0], **_FAINT)
    loss.plot(times[0], experiment["loss"][0] / first[0], "-", color="C1", label="network")
    lifted = _falling(experiment["effective_loss"][0])
    loss.plot(
        effective[0][lifted], experiment["effective_loss"][0][lifted] / first[0], "k:",
        linewidth=1.6, label="lifted effective model",
    )  # fmt: skip
    for index, style in enumerate(("-", "--", "-.", ":")):
        values.plot(times[0], experiment["singular_values"][0, :, index], f"C{index}{style}",
                    linewidth=1.2, label=rf"$\sigma_{index + 1}$")  # fmt: skip
    span = np.nanmax(times[0])
    end = min(max(1.02, float(np.nanmin(times[0][experiment["loss"][0] < 1e-3 * first[0]],
                                        initial=span))), span)  # fmt: skip
    for axes in (loss, values, counts):
        axes.set_xlim(0, 1.01 * end)
        axes.axvspan(1, 1.01 * end, **_GREY)
    loss.set_title(_title(experiment), fontsize=8)
    _legend(loss, "lower left")
    _legend(values, "upper left")
    for axes, measure in ((counts, _as_it_is), (close, _time_left)):
        _shares(axes, experiment, measure)
    close.set_xscale("log")
    close.set_xlim(1, 1e-4)
    _legend(close, "lower right")
    x = "time / crossing of 90 %"
    _finish(loss, "a", x, "loss / initial loss")
    _finish(values, "b", x, "singular values of $W^3W^2W^1$")
    _finish(counts, "c", x, "share of inequalities that hold")
    _finish(close, "d", "time left until the crossing / crossing", "share that holds")
    return figure


def _shares(
    axes: Axes, experiment: Experiment, measure: Callable[[np.ndarray], np.ndarray]
) -> None:
    for number, style in ((1, "C0-"), (2, "C1--"), (3, "C2-.")):
        share = experiment[f"positive_{number}"][0] / experiment["totals"][number - 1]
        axes.plot(measure(experiment["times"][0]), share, style, linewidth=1.2,
                  label=f"condition {number}, of {experiment['totals'][number - 1]:,}")  # fmt: skip
    axes.set_ylim(0, 1.03)


PAPER_FIGURES: dict[str, Callable[[Experiment], Figure]] = {
    "1": figure_1,
    "2a": figure_2a,
    "2b": figure_2b,
    "3": figure_3,
}
"""How each figure of the paper is drawn."""
