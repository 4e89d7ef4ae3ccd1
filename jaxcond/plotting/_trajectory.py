"""The panel of one trajectory: energy, bracket, indicators and angles on the way to blow-up."""

from typing import Literal

import jax
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .._trajectory import PointStatus, Trajectory
from ..bounds import bracket

Place = Literal["upper left", "lower left", "lower right"]


def trajectory_panel(trajectory: Trajectory) -> Figure:
    r"""Four views of one trajectory of rank 1 against $(T^* - t)/T^*$, at column width.

    1. The energy, between the lower bound of Theorem 1 and the upper bound of Theorem 2 from half
       of $T^*$ on (or where $E$ becomes positive, if that is later).
    2. How far the ends of the bracket lie from $T^*$, with the bound of Theorem 2.
    3. The shares of the inequalities of conditions 1 and 2 of the final stage that hold.
    4. The least cosines of the angles $\xi$ and $\psi$, and that of $\zeta$.

    **Raises:** `ValueError` for a batch, a higher rank, or fewer than two points before the
    blow-up.
    """
    if trajectory.times.ndim != 1 or trajectory.initial.rank != 1:
        raise ValueError(
            "Argument `trajectory` must be a single one of rank 1, but its times have shape "
            f"{trajectory.times.shape} and its rank is {trajectory.initial.rank}."
        )
    order = np.argsort(np.asarray(trajectory.times))
    usable = np.asarray(trajectory.status)[order] <= PointStatus.TRUNCATED
    shown = order[usable]
    if shown.size < 2 or not np.isfinite(float(trajectory.blow_up.time)):
        raise ValueError("A panel needs at least two points on the way to a blow-up.")
    time = float(trajectory.blow_up.time)
    left = np.asarray(trajectory.time_left)[shown] / time
    figure = Figure(figsize=(3.4, 6.6), dpi=200, layout="constrained")
    rows = figure.subplots(4, 1, sharex=True)
    _energy(rows[0], trajectory, shown, left)
    _bracket(rows[1], trajectory, shown, left, time)
    _counts(rows[2], trajectory, shown, left)
    _angles(rows[3], trajectory, shown, left)
    for axes, letter in zip(rows, "abcd", strict=True):
        axes.text(-0.2, 1.0, letter, transform=axes.transAxes, fontweight="bold", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.grid(color="0.9", linewidth=0.5)
        axes.spines[["top", "right"]].set_visible(False)
    rows[-1].set_xscale("log")
    rows[-1].set_xlim(1.0, float(left.min()))
    rows[-1].set_xlabel(r"relative time left $(T^*-t)\,/\,T^*$", fontsize=8)
    p, q = trajectory.initial.widths
    rows[0].set_title(f"width {p} × {q}, $T^*$ = {time:.6g}", fontsize=8)
    return figure


def _legend(axes: Axes, place: Place) -> None:
    axes.legend(frameon=False, fontsize=6.5, handlelength=2.2, loc=place)


def _energy(axes: Axes, trajectory: Trajectory, shown: np.ndarray, left: np.ndarray) -> None:
    energy = np.asarray(trajectory.energy)[shown]
    time = np.asarray(trajectory.times)[shown]
    strength = abs(float(trajectory.initial.strength[0]))
    positive = energy > 0
    axes.plot(left[positive], energy[positive], "k-", linewidth=1.2, label="energy $E$")
    begun = np.flatnonzero(positive & (left <= 0.5))
    if begun.size:
        first = int(begun[0])
        growth = float(np.asarray(trajectory.growth())[shown][first])
        start = (energy[first] / strength) ** (-1 / 3)
        elapsed = strength * (time[first:] - time[first])
        for factor, style, label in (
            (growth, "--", "upper, Theorem 2"),
            (1.0, ":", "lower, Theorem 1"),
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
    _legend(axes, "upper left")


def _bracket(
    axes: Axes, trajectory: Trajectory, shown: np.ndarray, left: np.ndarray, time: float
) -> None:
    lower, upper = (np.asarray(x)[shown] for x in jax.vmap(bracket)(trajectory.reduced))
    remaining = left * time
    theorem_2 = np.asarray(trajectory.theorem_bounds()[0] - trajectory.times)[shown]
    # What is left of a difference below the rounding of its parts says nothing.
    floor = 64 * np.finfo(np.float64).eps * time + float(trajectory.tolerance) * remaining
    for bound, style, label in (
        (upper, "k-", "$E^{-1/3}$ above"),
        (lower, "k--", "$R_F$ below"),
        (theorem_2, "k:", "$E^{-1/3}/C$ below"),
    ):
        gap = np.abs(bound - remaining)
        gap = np.where(np.isfinite(gap) & (gap > floor), gap, np.nan) / time
        axes.plot(left, gap, style, linewidth=1.1, label=label)
    axes.set_yscale("log")
    axes.set_ylabel("bound $-$ $T^*$, over $T^*$", fontsize=8)
    _legend(axes, "lower left")


def _counts(axes: Axes, trajectory: Trajectory, shown: np.ndarray, left: np.ndarray) -> None:
    for number, style in ((1, "k-"), (2, "k--")):
        condition = trajectory.condition(number)
        share = np.asarray(condition.positive)[shown] / condition.total
        label = f"condition {number} (of {condition.total})"
        axes.plot(left, share, style, linewidth=1.1, label=label)
        holds = np.asarray(condition.holds)[shown]
        if holds[-1]:
            begun = left[np.flatnonzero(~holds)[-1] + 1] if (~holds).any() else left[0]
            mark = {"color": "k", "markersize": 3.5, "fillstyle": "none", "linestyle": "none"}
            axes.plot([begun], [1.0], "o", label="all hold from here on", **mark)
    axes.set_ylim(None, 1.03)
    axes.set_ylabel("share that holds", fontsize=8)
    _legend(axes, "lower right")


def _angles(axes: Axes, trajectory: Trajectory, shown: np.ndarray, left: np.ndarray) -> None:
    angles = trajectory.angles()
    count = len(trajectory)
    for values, style, label in (
        (angles.xi, "k-", r"least $\cos\,\xi_{ll'}$"),
        (angles.psi, "k--", r"least $\cos\,\psi_l$"),
        (angles.zeta, "k:", r"$\cos\,\zeta$"),
    ):
        least = np.min(np.asarray(values).reshape(count, -1), axis=1)[shown]
        axes.plot(left, least, style, linewidth=1.1, label=label)
    axes.set_ylim(-1.05, 1.05)
    axes.set_ylabel("cosine", fontsize=8)
    _legend(axes, "lower right")
