"""Figures of a study: distributions, scaling with the width, convergence, maps over two axes."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from ..statistics import Scaling, quantiles, running_mean
from ..study import AXES, PointSummary, Store, StudySummary, converged_times
from ._phase import phase_maps

_MOST_PANELS, _MOST_TICKS = 16, 6
_BARS = {"color": "0.75", "edgecolor": "0.45", "linewidth": 0.4}


def _name(coordinates: dict[str, Any]) -> str:
    told = (f"{k.replace('_', ' ')} {v:g}" if isinstance(v, float) else f"{k} {v}"
            for k, v in coordinates.items())  # fmt: skip
    return ", ".join(told)


def distributions(store: Store, summary: StudySummary) -> Figure:
    r"""The distribution of $\sqrt q\,T^*$ at each sweep point.

    The infinite-width value and the mean with its standard error are marked. Of more than 1000
    samples, tails beyond the 0.1 and 99.9 % quantiles are left out and counted under the axis. The
    first 16 points that have finite blow-up times are shown.

    **Raises:** `ValueError` if no sample has a finite blow-up time.
    """
    shown = [point for point in summary.points if point.moments.count]
    if not shown:
        raise ValueError("No sample has a finite blow-up time: there is nothing to plot.")
    hidden = len(shown) - _MOST_PANELS
    shown = shown[:_MOST_PANELS]
    columns = min(len(shown), 4 if len(shown) > 4 else len(shown))
    rows = -(-len(shown) // columns)
    size = (5.2, 3.4) if len(shown) == 1 else (3.1 * columns, 2.5 * rows)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, point in zip(panels, shown, strict=False):
        _distribution(axes, store, point, alone=len(shown) == 1)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    study = summary.study
    title = f"{', '.join(sorted(study.kinds))} ensemble, seed {study.seed}"
    if hidden > 0:
        title += f"; first {_MOST_PANELS} of {_MOST_PANELS + hidden} points"
    if len(shown) > 1:
        figure.suptitle(title, fontsize=9)
    return figure


def _distribution(axes: Axes, store: Store, point: PointSummary, *, alone: bool) -> None:
    root, index = point.scale, point.point
    low, high = root * point.moments.least, root * point.moments.greatest
    # Quantiles of fewer would lie within the least and the greatest, and leave these out.
    if point.moments.count > 1000:
        found = quantiles(lambda: converged_times(store, index), [0.001, 0.999])
        low, high = (root * q.value for q in found)
    bins = int(np.clip(2 * point.moments.count ** (1 / 3), 8, 120))
    # At enormous widths the values agree to rounding, and bins need some width.
    least = 1e3 * np.finfo(np.float64).eps * high
    span = (low, high) if high - low > least else (low - least, high + least)
    edges = np.linspace(*span, bins + 1)
    counts = np.zeros(bins)
    for times in converged_times(store, index):
        counts += np.histogram(root * times.astype(np.float64), edges)[0]
    axes.bar(
        edges[:-1],
        counts / max(counts.sum(), 1) / np.diff(edges),
        np.diff(edges),
        align="edge",
        **_BARS,
    )
    mean = f"mean {root * point.mean.mean:.5g}"
    if point.moments.count > 1:
        mean += f" ± {root * point.mean.standard_error:.1g}"
    axes.axvline(root * point.mean.mean, color="C0", linewidth=1.4, label=mean)
    if math.isfinite(point.limit):
        text = f"infinite width {point.limit:.6g}"
        axes.axvline(point.limit, color="C3", linewidth=1.4, linestyle="--", label=text)
    beyond = int(point.moments.count - counts.sum())
    note = f"\n({beyond} of {point.moments.count} beyond the axis)" if beyond else ""
    size = 10 if alone else 7
    axes.set_xlabel(f"{store.study.quantity.label}{note}", fontsize=size)
    axes.set_ylabel("probability density", fontsize=size)
    title = f"width {point.p} × {point.q}, {point.num_samples} samples"
    if point.coordinates and not alone:
        title = _name(point.coordinates)
    axes.set_title(title, fontsize=9 if alone else 8)
    axes.tick_params(labelsize=9 if alone else 6)
    # Room above the bars, so that the legend hides none of them.
    axes.margins(y=0.25 if alone else 0.35)
    axes.legend(frameon=False, fontsize=8 if alone else 6, loc="upper right")
    axes.spines[["top", "right"]].set_visible(False)


def scaling(summary: StudySummary) -> Figure:
    r"""How mean and deviation of $\sqrt m\,T^*$ go with the width, beside the limit law.

    Left: how far the mean is from its limit $\tau$, that of infinite width where it is known and
    else that of the fit, with its standard error and the fitted $k/m$. Right: the deviation, with
    its fitted law $s/\sqrt m$. One colour for each combination of the other swept keys.

    **Raises:** `ValueError` if fewer than two widths were swept.
    """
    if not summary.scalings:
        raise ValueError("A plot of the scaling needs a sweep over at least two widths.")
    figure = Figure(figsize=(8.2, 3.6), dpi=160, layout="constrained")
    left, right = figure.subplots(1, 2)
    symbol = summary.study.quantity.tex
    for number, (others, fit) in enumerate(summary.scalings):
        members = [
            p
            for p in summary.points
            if p.moments.count > 3 and all(p.coordinates[k] == v for k, v in others.items())
        ]
        _scaling(left, right, members, others, fit, f"C{number % 10}")
    widths = sorted({float(point.q) for point in summary.points})
    ticks = widths[:: math.ceil(len(widths) / _MOST_TICKS)]
    left.set_ylabel(rf"distance of the mean of {symbol} from $\tau$")
    right.set_ylabel(f"standard deviation of {symbol}")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("width $m$")
        # At the widths themselves: labels between the decades would overlap.
        axes.set_xticks(ticks, [f"{m:g}" for m in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        # Below, where no line runs through it.
        axes.legend(frameon=False, fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.18))
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _scaling(
    left: Axes,
    right: Axes,
    members: Sequence[PointSummary],
    others: dict[str, Any],
    fit: Scaling,
    colour: str,
) -> None:
    m = np.array([float(p.q) for p in members])
    root = np.array([p.scale for p in members])
    means = root * np.array([p.mean.mean for p in members])
    errors = root * np.array([p.mean.standard_error for p in members])
    told = f"{_name(others)}: " if others else ""
    style: dict[str, Any] = {"color": colour, "markersize": 3.5, "linestyle": "none"}
    wide = np.geomspace(m.min(), m.max(), 100)
    known = members[0].limit
    if math.isfinite(known):
        tau, source = known, "of infinite width"
    else:
        tau, source = fit.limit.value, rf"of the fit, $\pm$ {fit.limit.error:.1g}"
    left.errorbar(
        m, np.abs(means - tau), errors, marker="o", capsize=2,
        label=rf"{told}samples, $\tau$ = {tau:.7g} {source}", **style,
    )  # fmt: skip
    k = fit.correction
    left.plot(
        wide, np.abs(k.value) / wide, color=colour, linewidth=0.8,
        label=rf"{told}$k/m$ of the fit, $k$ = {k.value:.4g} $\pm$ {k.error:.1g}",
    )  # fmt: skip
    spreads = root * np.array([p.moments.deviation for p in members])
    spread_errors = root * np.array([p.moments.deviation_error for p in members])
    right.errorbar(
        m, spreads, spread_errors, marker="o", capsize=2, label=f"{told}samples", **style
    )
    amplitude = fit.amplitude
    law = rf"{told}$({amplitude.value:.4g} \pm {amplitude.error:.1g})/\sqrt{{m}}$"
    right.plot(wide, amplitude.value / np.sqrt(wide), color=colour, linewidth=0.8, label=law)


def convergence(store: Store, summary: StudySummary) -> Figure:
    r"""The mean of the first $n$ samples against $n$, over the mean of all, with its error.

    The band is the interval of two standard errors about the mean of all samples.

    **Raises:** `ValueError` if no point has two finite blow-up times.
    """
    shown = [point for point in summary.points if point.moments.count > 1][:10]
    if not shown:
        raise ValueError("No point has two finite blow-up times: there is nothing to plot.")
    figure = Figure(figsize=(5.6, 3.6), dpi=160, layout="constrained")
    axes = figure.subplots()
    for number, point in enumerate(shown):
        index = point.point
        found = running_mean(lambda index=index: converged_times(store, index))
        mean, colour = point.moments.mean, f"C{number % 10}"
        axes.plot(
            found.counts, found.means / mean - 1, color=colour, linewidth=1,
            label=_name(point.coordinates) or f"width {point.p} × {point.q}",
        )  # fmt: skip
        if len(shown) == 1:
            # Half of two standard errors of the mean of the first n.
            half = 2 * found.standard_errors / mean
            axes.fill_between(found.counts, -half, half, color=colour, alpha=0.15, linewidth=0)
    axes.axhline(0, color="0.5", linewidth=0.6)
    axes.set_xscale("log")
    axes.set_xlabel("number of samples $n$")
    axes.set_ylabel("mean of the first $n$ over that of all, less 1")
    axes.legend(frameon=False, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def study_map(summary: StudySummary, x: str, y: str) -> Figure:
    r"""The mean of $\sqrt q\,T^*$ over two axes of a sweep, beside the infinite-width values.

    A third map shows the relative difference of the two, where the limit is known.

    **Arguments:** `x`, `y`, names of two axes; other axes must have one value.

    **Raises:** `ValueError` for axes that are not of the sweep, or that do not form a grid.
    """
    study = summary.study
    for name in (x, y):
        if name not in study.sweep or AXES[name].type is str:
            raise ValueError(f"A map needs axes of numbers, but {name} is not one of this sweep.")
    if x == y:
        raise ValueError("A map needs two different axes.")
    others = [n for n, v in study.axes.items() if n not in (x, y) and len(set(v)) > 1]
    if others or study.combine == "zip":
        what = ", ".join(others) or "zipped axes"
        raise ValueError(f"A map over {x} and {y} cannot show {what} besides.")
    xs, ys = sorted(study.axes[x]), sorted(study.axes[y])
    shape = (len(ys), len(xs))
    sampled, limit = np.full(shape, np.nan), np.full(shape, np.nan)
    for point in summary.points:
        place = ys.index(point.coordinates[y]), xs.index(point.coordinates[x])
        sampled[place] = point.scale * point.mean.mean
        limit[place] = point.limit
    maps = {"sampled": sampled}
    differences = {}
    if np.isfinite(limit).any():
        maps["infinite width"] = limit
        differences["sampled / infinite width − 1"] = sampled / limit - 1
    return phase_maps(
        xs, ys, maps,
        x_label=AXES[x].label, y_label=AXES[y].label, label=study.quantity.tex,
        differences=differences, log_x=_is_log(xs), log_y=_is_log(ys),
    )  # fmt: skip


def _is_log(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) / min(values) >= 8
