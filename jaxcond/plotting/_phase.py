"""Maps of a quantity over two axes: phase diagrams."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import CenteredNorm, Colormap, LogNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import LogLocator, MaxNLocator
from numpy.typing import ArrayLike

# Values over more than this factor are coloured by their logarithm.
_DECADES = 100.0
# Larger maps are stored in vector files as pixels.
_MOST_CELLS = 4096
_NUM_LEVELS = 8
# Points of contours per point of an axis.
_DENSER = 8
_NO_MAPS: Mapping[str, ArrayLike] = {}


def phase_map(
    x: ArrayLike,
    y: ArrayLike,
    values: ArrayLike,
    *,
    x_label: str,
    y_label: str,
    label: str,
    title: str | None = None,
    log_x: bool = False,
    log_y: bool = False,
    contours: bool = True,
) -> Figure:
    r"""A map of a quantity over two axes, at column width.

    Each value fills the cell around its point, with edges half-way to its neighbours: on a
    logarithmic axis half-way in the logarithm. Positive values over more than two decades are
    coloured by their logarithm, and those of both signs about zero. Cells without a finite value
    are hatched, and counted in the title.

    **Arguments:**

    - `x`, `y`: the axes, of shapes `(nx,)` and `(ny,)`, increasing or decreasing at any spacing.
    - `values`: shape `(ny, nx)`.
    - `x_label`, `y_label`, `label`: names of the axes and of the values.
    - `log_x`, `log_y`: whether an axis is logarithmic; its values must then be positive.
    - `contours`: whether to draw labelled contour lines.

    **Raises:** `ValueError` for axes that are not monotone and finite, values of another shape, and
    values of which none is finite.
    """
    grid = _Grid(x, y, log_x, log_y)
    array = grid.checked("values", values)
    figure = Figure(figsize=(3.9, 3.1), dpi=200, layout="constrained")
    axes = figure.subplots()
    scale = _Scale.of([array])
    mesh = grid.draw(axes, array, scale, contours, title or "")
    axes.set_xlabel(x_label, fontsize=8)
    axes.set_ylabel(y_label, fontsize=8)
    _bar(figure, mesh, [axes], label)
    return figure


def phase_maps(
    x: ArrayLike,
    y: ArrayLike,
    maps: Mapping[str, ArrayLike],
    *,
    x_label: str,
    y_label: str,
    label: str,
    differences: Mapping[str, ArrayLike] = _NO_MAPS,
    difference_label: str = "relative difference",
    log_x: bool = False,
    log_y: bool = False,
    contours: bool = True,
) -> Figure:
    """Several maps over the same axes side by side, with a common scale of colours.

    **Arguments:** as for `phase_map`, but

    - `maps`: values by the titles of their panels, from left to right.
    - `differences`, `difference_label`: further panels on the right, on a separate scale that is
      centred at zero.

    **Raises:** `ValueError` as `phase_map`, and without any maps.
    """
    if not maps:
        raise ValueError("Argument `maps` must hold at least one map, but is empty.")
    grid = _Grid(x, y, log_x, log_y)
    groups = [
        ([(title, grid.checked(title, values)) for title, values in group.items()], name, centred)
        for group, name, centred in (
            (maps, label, False),
            (differences, difference_label, True),
        )
        if group
    ]
    count = len(maps) + len(differences)
    width = 0.5 + 2.3 * count + 0.6 * len(groups)
    figure = Figure(figsize=(width, 2.9), dpi=200, layout=ConstrainedLayoutEngine(w_pad=0.07))
    panels = list(figure.subplots(1, count, sharex=True, sharey=True, squeeze=False)[0])
    letters = iter("abcdefghijklmnopqrstuvwxyz" if 1 < count <= 26 else "")
    rest = list(panels)
    for group, name, centred in groups:
        scale = _Scale.of([array for _, array in group], centred)
        mine, rest = rest[: len(group)], rest[len(group) :]
        meshes = [
            grid.draw(axes, array, scale, contours, title, next(letters, ""))
            for axes, (title, array) in zip(mine, group, strict=True)
        ]
        _bar(figure, meshes[-1], mine, name)
    for axes in panels:
        axes.set_xlabel(x_label, fontsize=8)
    panels[0].set_ylabel(y_label, fontsize=8)
    return figure


class _Scale(NamedTuple):
    """The colours of values, and the levels of their contours."""

    norm: Normalize
    colours: Colormap
    levels: np.ndarray

    @classmethod
    def of(cls, maps: list[np.ma.MaskedArray], centred: bool = False) -> "_Scale":
        finite = np.concatenate([array.compressed() for array in maps])
        if finite.size == 0:
            raise ValueError("No cell has a finite value: there is nothing to plot.")
        low, high = float(finite.min()), float(finite.max())
        if low > 0 and high > _DECADES * low and not centred:
            decades = math.log10(high / low)
            subs = (1.0, 2.0, 5.0) if decades < 3 else (1.0, 3.0) if decades < 5 else (1.0,)
            levels = LogLocator(subs=subs, numticks=_NUM_LEVELS + 1).tick_values(low, high)
            return cls(LogNorm(low, high), colormaps["viridis"], np.asarray(levels))
        levels = np.asarray(MaxNLocator(_NUM_LEVELS).tick_values(low, high))
        if centred or low < 0 < high:
            largest = max(-low, high)
            norm = CenteredNorm(0, largest if largest > 0 else 1.0)
            return cls(norm, colormaps["RdBu_r"], levels)
        # Values that agree to rounding still need a scale of some width.
        least = 1e3 * np.finfo(np.float64).eps * max(abs(low), abs(high)) or 1.0
        if high - low < least:
            low, high, levels = low - least, high + least, levels[:0]
        return cls(Normalize(low, high), colormaps["viridis"], levels)


class _Grid:
    """The two axes of a map, and how a map is drawn over them."""

    def __init__(self, x: ArrayLike, y: ArrayLike, log_x: bool, log_y: bool):
        self.x, self.x_edges = _axis("x", x, log_x)
        self.y, self.y_edges = _axis("y", y, log_y)
        self.log_x, self.log_y = log_x, log_y

    def checked(self, name: str, values: ArrayLike) -> np.ma.MaskedArray:
        """Values of the right shape, masked where they are not finite."""
        array = np.asarray(values, np.float64)
        shape = (self.y.size, self.x.size)
        if array.shape != shape:
            raise ValueError(
                f"Argument `{name}` must have the shape (ny, nx) = {shape} of its axes, "
                f"but has {array.shape}."
            )
        return np.ma.masked_invalid(array)

    def draw(
        self,
        axes: Axes,
        values: np.ma.MaskedArray,
        scale: _Scale,
        contours: bool,
        title: str,
        letter: str = "",
    ) -> QuadMesh:
        axes.set_facecolor("0.85")
        axes.patch.set(hatch="////", edgecolor="0.6")
        if self.log_x:
            axes.set_xscale("log")
        if self.log_y:
            axes.set_yscale("log")
        mesh = axes.pcolormesh(
            self.x_edges,
            self.y_edges,
            values,
            norm=scale.norm,
            cmap=scale.colours,
            rasterized=values.size > _MOST_CELLS,
        )
        axes.set_xlim(self.x_edges.min(), self.x_edges.max())
        axes.set_ylim(self.y_edges.min(), self.y_edges.max())
        if contours and min(values.shape) > 1 and values.count():
            self._contours(axes, values, scale)
        missing = values.size - values.count()
        if missing:
            note = f"{missing} of {values.size} cells hatched: no value"
            title = f"{title}\n{note}" if title or letter else note
            letter = f"{letter}\n "
        axes.set_title(title, fontsize=8)
        if letter.strip():
            axes.set_title(letter, loc="left", fontsize=9, fontweight="bold")
        axes.tick_params(labelsize=7)
        axes.tick_params(which="minor", labelsize=6)
        return mesh

    def _contours(self, axes: Axes, values: np.ma.MaskedArray, scale: _Scale) -> None:
        levels = scale.levels
        levels = levels[(levels > values.min()) & (levels < values.max())]
        if levels.size == 0:
            return
        # Dark lines on light colours, light lines on dark ones.
        red, green, blue, _ = scale.colours(scale.norm(levels)).T
        light = 0.3 * red + 0.59 * green + 0.11 * blue
        # Interpolated as shown, in the logarithm if an axis or the colours are logarithmic.
        log_values = isinstance(scale.norm, LogNorm)
        dense = values.filled(np.nan)
        dense = np.log(dense) if log_values else dense
        x, dense = _denser(self.x, self.log_x, dense)
        y, dense = _denser(self.y, self.log_y, dense.T)
        dense = np.ma.masked_invalid(np.exp(dense.T) if log_values else dense.T)
        colours = ["0.1" if bright > 0.5 else "w" for bright in light]
        lines = axes.contour(x, y, dense, levels=levels, colors=colours, linewidths=0.6)
        axes.clabel(lines, fmt="%g", fontsize=6)


def _denser(
    points: np.ndarray, logarithmic: bool, values: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """An axis with points added in between, and linearly interpolated rows of values."""
    places = np.arange(_DENSER * (points.size - 1) + 1) / _DENSER
    left = np.minimum(places.astype(np.int64), points.size - 2)
    share = places - left

    def between(v: np.ndarray) -> np.ndarray:
        mixed = (1 - share) * v[..., left] + share * v[..., left + 1]
        # A point keeps its value, whatever its neighbours are.
        mixed = np.where(share == 0, v[..., left], mixed)
        return np.where(share == 1, v[..., left + 1], mixed)

    axis = np.exp(between(np.log(points))) if logarithmic else between(points)
    return axis, between(values)


def _axis(name: str, points: ArrayLike, logarithmic: bool) -> tuple[np.ndarray, np.ndarray]:
    """An axis with the edges of its cells."""
    array = np.asarray(points, np.float64)
    if array.ndim != 1 or array.size == 0 or not np.all(np.isfinite(array)):
        raise ValueError(
            f"Argument `{name}` must be a vector of finite values, but has shape {array.shape}"
            + ("." if array.ndim != 1 or array.size == 0 else " and holds others.")
        )
    steps = np.diff(array)
    if not (np.all(steps > 0) or np.all(steps < 0)):
        raise ValueError(f"Argument `{name}` must be strictly increasing or decreasing.")
    if not logarithmic:
        return array, _edges(array)
    if array.min() <= 0:
        raise ValueError(
            f"Argument `{name}` must be positive on a logarithmic axis, but holds {array.min()}."
        )
    return array, np.exp(_edges(np.log(array)))


def _edges(points: np.ndarray) -> np.ndarray:
    """The edges half-way between neighbours, and as far beyond the ends."""
    if points.size == 1:
        return points + np.array([-0.5, 0.5])
    half = 0.5 * np.diff(points)
    return np.concatenate(
        [points[:1] - half[0], points[:-1] + half, points[-1:] + half[-1]], dtype=np.float64
    )


def _bar(figure: Figure, mesh: QuadMesh, axes: list[Axes], label: str) -> None:
    bar = figure.colorbar(mesh, ax=axes, pad=0.02)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7)
