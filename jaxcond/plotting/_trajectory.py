"""The panel of one trajectory: energy, bracket, indicators and angles on the way to blow-up."""

from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .._trajectory import Trajectory
from ..bounds import bracket_from_norms
from ..indicators import CONDITIONS, Condition, Products, angles_of


def trajectory_panel(path: Trajectory, *, num: int = 200) -> Figure:
    r"""Four views of one trajectory of rank 1 against $(T^* - t)/T^*$, at column width.

    1. The energy, between the lower bound of Theorem 1 and the upper bound of Theorem 2 from half
       of $T^*$ on (or where $E$ becomes positive, if that is later).
    2. How far the ends of the bracket lie from $T^*$, with the bound of Theorem 2.
    3. The shares of the inequalities of conditions 1 and 2 of the final stage that hold, and the
    times from which each holds permanently. 4. The least cosines of the angles $\xi$ and $\psi$,
    and that of $\zeta$.

    **Arguments:** `path`; `num`, points per line, spread evenly over the pieces of the trajectory.

    **Raises:** `ValueError` for a batch, a higher rank, or a trajectory without blow-up.
    """
    if path.scale.ndim or path.initial.rank != 1:
        raise ValueError(
            "Argument `path` must be a single trajectory of rank 1, but its batch has shape "
            f"{path.scale.shape} and its rank is {path.initial.rank}."
        )
    if not bool(path.pieces.ends) or not bool(path.blowup.is_known()):
        raise ValueError("A panel needs a trajectory that comes close to a blow-up.")
    times = path.spread(num)
    time = float(path.blowup.time)
    left = np.asarray(path.time_left(times)) / time
    # The error of the reduction makes signs undecided too.
    accuracy = max(float(path.rtol), float(path.truncation(path.end)))
    points = path.map(_Looks(accuracy), times)
    figure = Figure(figsize=(3.4, 7.4), dpi=200, layout="constrained")
    rows = figure.subplots(4, 1, sharex=True)
    growth = _later_growth(points)
    _energy(rows[0], path, points, growth, np.asarray(times), left)
    _bracket(rows[1], path, points, growth, left)
    _counts(rows[2], points, left)
    _angles(rows[3], points, left)
    for axes, letter in zip(rows, "abcd", strict=True):
        axes.text(-0.2, 1.0, letter, transform=axes.transAxes, fontweight="bold", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(color="0.9", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xscale("log")
    rows[-1].set_xlim(1.0, float(left.min()))
    rows[-1].set_xlabel(r"relative time left $(T^*-t)\,/\,T^*$", fontsize=8)
    p, q = path.initial.widths
    figure.suptitle(f"width {p} × {q}, $T^*$ = {time:.6g}", fontsize=8)
    return figure


def _legend(axes: Axes) -> None:
    """A legend above the axes, where no line crosses it."""
    axes.legend(
        frameon=False,
        fontsize=6.5,
        handlelength=2.0,
        columnspacing=1.2,
        borderaxespad=0.1,
        loc="lower left",
        bbox_to_anchor=(0.0, 1.0),
        ncols=2,
    )


class Point(NamedTuple):
    """The values of the lines at one time, at unit scale and strength."""

    energy: Array
    lower: Array
    upper: Array
    growth: Array
    first: Condition
    second: Condition
    xi: Array
    psi: Array
    zeta: Array


class _Looks(eqx.Module):
    """A function from the products of a state to a `Point`: one program for all lines."""

    accuracy: float = eqx.field(static=True)

    def __call__(self, products: Products) -> Point:
        strength = jnp.abs(products.strength[0])
        squares = [jnp.sum(x * x) for x in (products.a, products.rows, products.c)]
        energy = jnp.sum(products.a * products.onto_a) / strength
        lower, upper = bracket_from_norms(jnp.stack(squares), energy, jnp.ones_like(energy))
        speed = (jnp.sum(products.onto_a**2) + jnp.sum(products.onto_c**2)) / strength**2
        growth = (speed + squares[0] * squares[2]) / (3 * energy ** (4 / 3))
        accuracy = jnp.asarray(self.accuracy, energy.dtype)
        angles = angles_of(products)
        return Point(
            energy=energy,
            lower=lower,
            upper=upper,
            growth=jnp.where(energy > 0, growth, jnp.nan),
            first=CONDITIONS[1](products, accuracy),
            second=CONDITIONS[2](products, accuracy),
            xi=jnp.nanmin(angles.xi),
            psi=jnp.nanmin(angles.psi),
            zeta=jnp.nanmin(angles.zeta),
        )


def _later_growth(points: Point) -> np.ndarray:
    """The constant of Theorem 2 from every point onwards."""
    growth = np.asarray(points.growth)
    largest = np.maximum.accumulate(np.where(np.isnan(growth), -np.inf, growth)[::-1])[::-1]
    return np.where(np.isnan(growth), np.nan, largest)


def _energy(
    axes: Axes,
    path: Trajectory,
    points: Point,
    growth: np.ndarray,
    times: np.ndarray,
    left: np.ndarray,
) -> None:
    scale, strength = float(path.scale), abs(float(path.initial.strength[0]))
    energy = np.asarray(points.energy, np.float64) * scale**3 * strength
    positive = energy > 0
    axes.plot(left[positive], energy[positive], "k-", linewidth=1.2, label="energy $E$")
    begun = np.flatnonzero(positive & (left <= 0.5))
    if begun.size:
        first = int(begun[0])
        start = (energy[first] / strength) ** (-1 / 3)
        elapsed = strength * (times[first:] - times[first])
        for factor, style, label in (
            (growth[first], "--", "above, Theorem 2"),
            (1.0, ":", "below, Theorem 1"),
        ):
            rest = start - factor * elapsed
            bound = np.where(rest > 0, np.abs(rest) ** -3.0, np.nan) * strength
            axes.plot(left[first:], bound, style, color="0.35", linewidth=1.1, label=label)
    if positive.any():
        axes.set_ylim(energy[positive].min() / 3, energy[positive].max() * 3)
    if (~positive).any():
        axes.axvspan(1.0, left[~positive].min(), color="0.85", linewidth=0, label=r"$E \leq 0$")
    axes.set_yscale("log")
    axes.set_ylabel("energy", fontsize=8)
    _legend(axes)


def _bracket(
    axes: Axes, path: Trajectory, points: Point, growth: np.ndarray, left: np.ndarray
) -> None:
    time = float(path.blowup.time)
    rate = float(path.scale) * abs(float(path.initial.strength[0]))
    lower, upper = np.asarray(points.lower) / rate, np.asarray(points.upper) / rate
    remaining = left * time
    theorem_2 = upper / growth
    # Differences below the rounding error of their terms are not shown.
    floor = 64 * np.finfo(np.float64).eps * time + float(path.rtol) * remaining
    for bound, style, label in (
        (upper, "k-", "$E^{-1/3}$, above"),
        (lower, "k--", "$R_F$, below"),
        (theorem_2, "k:", "$E^{-1/3}/C$, below"),
    ):
        gap = np.abs(bound - remaining)
        gap = np.where(np.isfinite(gap) & (gap > floor), gap, np.nan) / time
        axes.plot(left, gap, style, linewidth=1.1, label=label)
    axes.set_yscale("log")
    axes.set_ylabel(r"$|$bound$\,-\,T^*|\,/\,T^*$", fontsize=8)
    _legend(axes)


def _counts(axes: Axes, points: Point, left: np.ndarray) -> None:
    begun = []
    for number, condition, style in ((1, points.first, "k-"), (2, points.second, "k--")):
        share = np.asarray(condition.positive) / condition.total
        label = f"condition {number} (of {condition.total})"
        axes.plot(left, share, style, linewidth=1.1, label=label)
        holds = np.asarray(condition.holds)
        if holds[-1]:
            begun.append(left[np.flatnonzero(~holds)[-1] + 1] if (~holds).any() else left[0])
    if begun:
        axes.plot(
            begun,
            np.ones(len(begun)),
            "o",
            color="k",
            markersize=3.5,
            fillstyle="none",
            label="holds from here on",
        )
    axes.set_ylim(None, 1.03)
    axes.set_ylabel("share that holds", fontsize=8)
    _legend(axes)


def _angles(axes: Axes, points: Point, left: np.ndarray) -> None:
    for values, style, label in (
        (points.xi, "k-", r"least $\cos\,\xi_{ll'}$"),
        (points.psi, "k--", r"least $\cos\,\psi_l$"),
        (points.zeta, "k:", r"$\cos\,\zeta$"),
    ):
        axes.plot(left, values, style, linewidth=1.1, label=label)
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("least cosine", fontsize=8)
    _legend(axes)
