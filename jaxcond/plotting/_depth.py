"""How blow-up times scale with the depth of a chain."""

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

_COLOURS = colormaps["viridis"]
# The widths at one depth are spread over this share of the distance between depths.
_SPREAD = 0.5


def depth_scaling(
    epsilons: ArrayLike,
    times: Mapping[int, ArrayLike],
    scaled: Mapping[int, Mapping[int, ArrayLike]],
    *,
    width: int,
) -> Figure:
    r"""Blow-up times of random chains of several depths, in two panels at full text width.

    (a) $T^*$ against the scale $\epsilon$ of the initial weights on logarithmic axes, with lines of
    slope $2 - L$ through the means of the logarithms. (b) $(\epsilon\sqrt m)^{L-2}\,T^*$ against
    the depth $L$ for each width $m$, and for comparison $1/(L-2)$, the value of balanced aligned
    layers of norm $\epsilon\sqrt m$.

    **Arguments:**

    - `epsilons`: scales, shape `(num,)`, positive; `times`: by depth, times of shape `(num,)`;
      `width`: their width.
    - `scaled`: by width and depth, the lower quartile, the median and the upper quartile.

    **Raises:** `ValueError` for scales or times that are not positive, for other shapes, and
    without any depth or width.

    Times are in units of the effective model, everything else is dimensionless.
    """
    scales = np.asarray(epsilons, np.float64)
    curves = {depth: np.asarray(value, np.float64) for depth, value in times.items()}
    if not curves or not scaled:
        raise ValueError("Arguments `times` and `scaled` must hold at least one depth each.")
    for name, array in {
        "epsilons": scales,
        **{f"times[{d}]": t for d, t in curves.items()},
    }.items():
        if scales.ndim != 1 or array.shape != scales.shape or not np.all(array > 0):
            raise ValueError(
                f"Argument `{name}` must hold positive numbers in the shape of `epsilons`, "
                f"{scales.shape}, but has shape {array.shape}."
            )
    figure = Figure(figsize=(7.2, 3.0), dpi=200, layout="constrained")
    left, right = figure.subplots(1, 2)
    _against_scale(left, scales, curves, width)
    _against_depth(right, scaled)
    for axes, letter in ((left, "a"), (right, "b")):
        axes.set_title(letter, loc="left", fontsize=9, fontweight="bold")
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7, frameon=False)
    return figure


def _shade(index: int, count: int) -> tuple[float, float, float, float]:
    # The lightest colours are left out, since they are hard to see on white.
    return _COLOURS(0.85 * index / max(count - 1, 1))


def _against_scale(
    axes: Axes, scales: np.ndarray, curves: Mapping[int, np.ndarray], width: int
) -> None:
    for i, (depth, times) in enumerate(sorted(curves.items())):
        colour = _shade(i, len(curves))
        level = np.exp(np.mean(np.log(times) + (depth - 2) * np.log(scales)))
        axes.plot(scales, level * scales ** (2 - depth), color=colour, linewidth=0.9)
        name = f"$L = {depth}$, slope ${2 - depth}$"
        axes.plot(scales, times, "o", color=colour, markersize=4, label=name)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel(r"scale $\epsilon$ of the initial weights", fontsize=8)
    axes.set_ylabel("median blow-up time $T^*$", fontsize=8)
    axes.set_title(f"width $m = {width}$", fontsize=8)


def _against_depth(axes: Axes, scaled: Mapping[int, Mapping[int, ArrayLike]]) -> None:
    depths = sorted({depth for by_depth in scaled.values() for depth in by_depth})
    for i, (width, by_depth) in enumerate(sorted(scaled.items())):
        quartiles = np.asarray([by_depth[depth] for depth in sorted(by_depth)], np.float64)
        shift = _SPREAD * ((i + 0.5) / len(scaled) - 0.5)
        low, median, high = quartiles.T
        axes.errorbar(
            np.asarray(sorted(by_depth)) + shift,
            median,
            [median - low, high - median],
            fmt="o",
            color=_shade(i, len(scaled)),
            markersize=3.5,
            elinewidth=1,
            capsize=2,
            label=f"$m = {width}$",
        )
    x = np.linspace(depths[0], depths[-1], 200)
    axes.plot(x, 1 / (x - 2), "k:", linewidth=0.9, label=r"aligned, $1/(L-2)$")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("depth $L$", fontsize=8)
    axes.set_ylabel(r"$(\epsilon\sqrt{m})^{L-2}\,T^*$", fontsize=8)
    axes.set_title("medians and quartiles", fontsize=8)
