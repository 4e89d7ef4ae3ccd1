r"""The trajectory: the flow of one state as a function of time.

Pieces of Taylor polynomials in reduced coordinates, and what full width needs once: the initial
state and the bases. Quantities of the full states follow without forming $b$.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from .._chain import Chain
from .._energy import conserved, energy
from .._reduction import Reduction, truncation
from .._state import State
from ..blowup import BlowUp, Status
from ..bounds import energy_growth, theorem_1_upper
from ..flow import ChainPieces, Pieces, drift, root
from ..indicators import (
    CONDITIONS,
    Angles,
    Condition,
    Products,
    angles_of,
    ratios_of,
    resolve_tolerance,
)
from ._frame import Frame
from ._status import PointStatus

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ._onset import Onset

Values = ArrayLike | Sequence[Any]

# Times that one program looks at: any number of them needs no other program.
_TOGETHER = 32
# Points of every piece that `growth` looks at.
_GROWTH_POINTS = 8


Point = TypeVar("Point", State, Chain)


class Trajectory(eqx.Module, Generic[Point]):
    r"""The flow of one state or chain as a function of time, from 0 to close to its blow-up.

    `path(t)` is the `State` or `Chain` at a time or at many times of any shape. Nothing that it
    returns depends on which other times are asked for. All of it may be differentiated, with
    respect to the times and to what `trajectory` was given, and batched by `jax.vmap`.

    - `blowup`: the `BlowUp` of the initial point.
    - `initial`: the point at time 0, at full width.
    - `end`: the last time that is known.
    - `pieces`: the polynomials, of the reduced state over `scale` (a power of two), or of the
      chain.
    - `reduction`: the reduction at that scale; `None` for states that are followed in full.
    - `rtol`: the relative accuracy that is taken for granted where signs are counted.

    Times outside of $[0, \text{end}]$ raise a `ValueError` which says why; where nothing is known
    beforehand, under `jax.vmap` or `jax.jit`, the values are NaN and `status` tells.
    """

    blowup: BlowUp
    initial: Point
    pieces: Pieces | ChainPieces
    left: Float[Array, "*batch"]
    reduction: Reduction | None
    scale: Float[Array, "*batch"]
    rtol: Float[Array, "*batch"]

    # What is at a time.

    def __call__(self, t: Values) -> Point:
        """The full states, or chains, at times `t` of any shape, which their batch axes have."""
        times, shape = self._flat(t, "t")
        if isinstance(times, Tracer) or _is_traced(self):
            view = View.of(self)
            return _shaped(lax.map(lambda time: _full_state(view, time), times), shape)
        states = [_one_full_state(self, time) for time in times]
        return _shaped(jax.tree.map(lambda *x: np.stack(x), *states), shape)

    def reduced(self, t: Values) -> State:
        """The states at times `t` in the coordinates of `reduction`."""
        self._require_state("reduced")
        states = self._each(_small_state, t, narrow=True)
        if self.reduction is not None:
            return states
        p, q = self.initial.widths
        a, b, c = states.a[..., :p], states.b[..., :p, :q], states.c[..., :q]
        return State(a, b, c, states.strength)

    def status(self, t: Values) -> Int[Array, "*shape"]:
        """A `PointStatus` for every time."""
        return self._each(_status, t, checked=False, narrow=True)

    def energy(self, t: Values) -> Float[Array, "*shape"]:
        """The energy, see `jaxcond.energy`."""
        return self._each(_energy, t, narrow=True)

    def norms(self, t: Values) -> Float[Array, "*shape layers"]:
        r"""The Frobenius norms of the full layers: $a$, $b$, $c$, or those of the chain."""
        return self._each(_norms, t)

    def time_left(self, t: Values) -> Float[Array, "*shape"]:
        """$T^* - t$, without cancellation close to the blow-up; infinite where there is none."""
        return self._each(_time_left, t, narrow=True)

    def drift(self, t: Values) -> Float[Array, "*shape"]:
        r"""How far the conserved matrices and balances have moved, over $\|\theta(t)\|^2$."""
        return self._each(_drift, t, narrow=True)

    def truncation(self, t: Values) -> Float[Array, "*shape"]:
        """Bound on the relative size of what the reduction leaves out of $a$ and $c$, or zero."""
        self._require_state("truncation")
        return self._each(_truncation, t, narrow=True)

    def condition(
        self,
        number: int,
        t: Values,
        *,
        tolerance: float | Float[Array, ""] | None = None,
    ) -> Condition:
        """Condition 1, 2 or 3 of the final stage (see `final_stage`) at every time.

        **Arguments:** `tolerance`, the accuracy of the states that decides which inequalities are
        `undecided`, by default `rtol`. **Raises:** `ValueError` for other numbers.
        """
        self._require_state("condition")
        if number not in CONDITIONS:
            raise ValueError(f"Argument `number` must be 1, 2 or 3, but is {number}.")
        path = self
        if tolerance is not None:
            accuracy = resolve_tolerance(tolerance, self.initial.dtype)
            path = eqx.tree_at(lambda path: path.rtol, self, accuracy)
        return path._each(_CONDITIONS[number], t)

    def angles(self, t: Values) -> Angles:
        """The angles of Definition 2 at every time, as cosines."""
        self._require_state("angles")
        return self._each(_angles, t)

    def ratios(self, t: Values) -> Float[Array, "*shape 2 rank"]:
        """The ratios of eq. (4.5) at every time: see `ratios`."""
        self._require_state("ratios")
        return self._each(_ratios, t)

    def map(self, function: Callable[[Products], Any], t: Values) -> Any:
        """A function of the `Products` of the state at every time, without forming any $b$.

        The products are those of the states over `scale`. A function that is defined once is
        compiled once.
        """
        self._require_state("map")
        return self._each(_Of(function), t)

    def growth(self, t: Values) -> Float[Array, "*shape"]:
        r"""The constant $C$ of Theorem 2 from a time on, for rank 1.

        The largest $E'/(3E^{4/3})$ there and at later places, eight on every piece; NaN where
        $E \le 0$. **Raises:** `ValueError` at higher rank.
        """
        self._require_rank_1("growth")
        return self._each(_growth, t, _later_growth(_narrow(self)), narrow=True)

    def theorem_bounds(self, t: Values) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        r"""Bounds of Theorems 2 and 1 on $T^*$ from a time: $t + E^{-1/3}/C$ and $t + E^{-1/3}$.

        For rank 1; eqs. (4.22) and (3.15). NaN and infinite where $E \le 0$.
        """
        self._require_rank_1("theorem_bounds")
        return self._each(_theorem_bounds, t, _later_growth(_narrow(self)), narrow=True)

    # When something is.

    @property
    def end(self) -> Float[Array, "*batch"]:
        """The last time that is known."""
        return self.pieces.elapsed / self.scale

    def spread(self, num: int) -> Float[Array, " num"]:
        r"""`num` times from 0 to `end`, evenly over the pieces.

        Close to the blow-up that is evenly in $\log(T^* - t)$.
        """
        if not isinstance(num, int | np.integer) or num < 2:
            raise ValueError(f"Argument `num` must be a whole number from 2 on, but is {num}.")
        pieces = self.pieces
        place = jnp.linspace(0, 1, num, dtype=self.scale.dtype) * pieces.num.astype(
            self.scale.dtype
        )
        index = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, pieces.num - 1)
        times = pieces.begin[index] + (place - index) * pieces.length[index]
        return jnp.minimum(times, pieces.elapsed) / self.scale

    def times_of(
        self,
        *,
        energy: Values | None = None,
        fraction: Values | None = None,
    ) -> Float[Array, "*shape"]:
        """Times at which the energy, which never falls, has given values; or fractions of $T^*$.

        **Arguments:** one of `energy` and `fraction`, of any shape.

        **Raises:** `ValueError` for values that are not reached, with the reason; under
        transformations the times are NaN.
        """
        if (energy is None) == (fraction is None):
            raise ValueError("Give one of `energy` and `fraction`.")
        if energy is None:
            values = jnp.asarray(fraction, self.scale.dtype)
            times = values * self.blowup.time
            _refuse(self, times, values, "fraction")
            # Zero times infinity, of states that never blow up, is NaN.
            return jnp.where(
                self._each(_is_known, times, checked=False, narrow=True), times, jnp.nan
            )
        values = jnp.asarray(energy, self.scale.dtype)
        times = self._each(
            _time_of_energy, values, _starting_energies(_narrow(self)), checked=False, narrow=True
        )
        if not isinstance(times, Tracer):
            _refuse_energies(self, np.asarray(values), np.asarray(times))
        return times

    def onset(self, conditions: int | tuple[int, ...] = (1, 2, 3)) -> "Onset":
        """When the final stage condition begins to hold: see `Onset`.

        **Arguments:** `conditions`, which of the three (see `final_stage`) have to hold.

        **Raises:** `ValueError` for conditions other than 1, 2, 3.
        """
        from ._onset import onset

        self._require_state("onset")
        return onset(self, conditions)

    def plot(self) -> "Figure":
        """The panel of the trajectory, for rank 1: see `jaxcond.plotting.trajectory_panel`."""
        from ..plotting import trajectory_panel

        self._require_state("plot")
        return trajectory_panel(self)

    def __str__(self) -> str:
        if self.scale.ndim:
            return f"Trajectory of a batch of shape {self.scale.shape}"
        if int(self.blowup.status) == Status.INVALID_INPUT:
            return "Trajectory of a state that is not finite"
        time, end = float(self.blowup.time), float(self.end)
        course = f"to t = {end:.10g}"
        if np.isfinite(time):
            near = float(self.left / self.scale) / time
            course += f", {near:.2g} T* before the blow-up at T* = {time:.10g}"
        elif int(self.blowup.status) == Status.NO_BLOW_UP:
            course += ", no blow-up"
        worst = f"drift {float(self.drift(end)):.1g}"
        if self.reduction is not None:
            worst += f", truncation {float(self.truncation(end)):.1g}"
        return f"Trajectory of {int(self.pieces.num)} pieces {course}; {worst}"

    # How it is evaluated.

    def _require_state(self, name: str) -> None:
        if not isinstance(self.initial, State):
            raise ValueError(
                f"`{name}` is for states: of a chain of three layers take the trajectory of the "
                "`State`."
            )

    def _require_rank_1(self, name: str) -> None:
        self._require_state(name)
        rank = len(self.pieces.end.layers[0])
        if rank != 1:
            raise ValueError(f"`{name}` is of rank 1, but the rank is {rank}.")

    def _flat(self, t: Values, name: str | None) -> tuple[Any, tuple[int, ...]]:
        if self.scale.ndim:
            raise ValueError(
                f"This is a batch of trajectories of shape {self.scale.shape}: use `jax.vmap` on a "
                "function of one."
            )
        if not isinstance(t, Tracer) and not _is_traced(self):
            times = np.asarray(t, self.scale.dtype)
            if name is not None:
                _refuse(self, times, times, name)
            return times.reshape(-1), times.shape
        times = jnp.asarray(t, self.scale.dtype)
        return times.reshape(-1), times.shape

    def _each(
        self,
        function: Callable[..., Any],
        t: Values,
        *further: Any,
        checked: bool = True,
        narrow: bool = False,
    ) -> Any:
        """A function of a view of the trajectory, a time, and `further`, at every time.

        `narrow` says that it needs nothing of full width.
        """
        times, shape = self._flat(t, "t" if checked else None)
        path = _narrow(self) if narrow else self
        if isinstance(times, Tracer) or _is_traced(self):
            view = View.of(path)
            return _shaped(lax.map(lambda time: function(view, time, *further), times), shape)
        blocks = []
        for begin in range(0, max(times.size, 1), _TOGETHER):
            block = times[begin : begin + _TOGETHER]
            filled = np.zeros(_TOGETHER, times.dtype)
            filled[: block.size] = block
            values = jax.device_get(_block(path, jnp.asarray(filled), function, *further))
            blocks.append(jax.tree.map(lambda x, n=block.size: x[:n], values))
        return _shaped(jax.tree.map(lambda *x: np.concatenate(x), *blocks), shape)


def _is_traced(path: Trajectory) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(path))


def _narrow(path: Trajectory) -> Trajectory:
    """Without anything of full width, so that all widths share the programs."""
    small = path.pieces.end
    if isinstance(small, Chain):
        return path
    if path.reduction is None:
        return eqx.tree_at(lambda path: path.initial, path, small)
    nothing = jnp.zeros(small.widths, small.dtype)
    reduction = Reduction(path.reduction.state, nothing, nothing)
    return eqx.tree_at(lambda path: (path.initial, path.reduction), path, (small, reduction))


def _shaped(values: Any, shape: tuple[int, ...]) -> Any:
    """Values with one leading axis as arrays of JAX with axes of a shape."""
    shaped = jax.tree.map(lambda x: x.reshape((*shape, *x.shape[1:])), values)
    # NumPy arrays, of which `jnp.asarray` would compile a program for every shape.
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), shaped)


@eqx.filter_jit
def _block(path: Trajectory, times: Array, function: Callable[..., Any], *further: Any) -> Any:
    view = View.of(path)
    return lax.map(lambda time: function(view, time, *further), times)


@eqx.filter_jit
def _one_full_state(path: Trajectory, time: Array) -> Any:
    return _full_state(View.of(path), jnp.asarray(time))


class View(eqx.Module):
    """A trajectory with what its full states share, which is computed once for many times."""

    path: Trajectory
    frame: Frame | None

    @classmethod
    def of(cls, path: Trajectory) -> "View":
        """The view of one trajectory."""
        reduction = path.reduction
        if reduction is None:
            return cls(path, None)
        return cls(path, Frame.of(reduction, path.initial.scale(1 / path.scale)))

    def products(self, state: State) -> Products:
        """The products of the full state that a reduced state of unit scale stands for."""
        if self.frame is None:
            return Products.of(_cut(self.path, state))
        return self.frame.products(state)


# Functions of one trajectory and one time.


def _status(view: View, time: Array) -> Int[Array, ""]:
    path = view.path
    pieces, blowup = path.pieces, path.blowup
    status = jnp.where(pieces.ends, PointStatus.TOO_CLOSE, PointStatus.NOT_CONVERGED)
    status = jnp.where(time >= blowup.time, PointStatus.BEYOND_BLOW_UP, status)
    reached = time * path.scale <= pieces.elapsed
    if path.reduction is None:
        there = jnp.asarray(PointStatus.REACHED)
    else:
        lost = _lost(path, _point_at(path, time))
        there = jnp.where(lost > path.rtol, PointStatus.TRUNCATED, PointStatus.REACHED)
    status = jnp.where(reached, there, status)
    status = jnp.where(time < 0, PointStatus.BEFORE_START, status)
    valid = ~jnp.isnan(time) & (blowup.status != Status.INVALID_INPUT)
    return jnp.where(valid, status, PointStatus.INVALID_INPUT).astype(jnp.int32)


def _is_known(view: View, time: Array) -> Bool[Array, ""]:
    return _is_reached(view.path, time)


def _is_reached(path: Trajectory, time: Array) -> Bool[Array, ""]:
    inside = (time >= 0) & (time * path.scale <= path.pieces.elapsed)
    return inside & (path.blowup.status != Status.INVALID_INPUT)


def _point_at(path: Trajectory, time: Array) -> Any:
    """The reduced state over `scale`, or the chain, on the piece nearest to a time."""
    return path.pieces.at(*path.pieces.find(time * path.scale))


def _unit_point(path: Trajectory, time: Array) -> Any:
    """`_point_at` where it is reached, NaN elsewhere."""
    point, reached = _point_at(path, time), _is_reached(path, time)
    layers = tuple(jnp.where(reached, x, jnp.nan) for x in point.layers)
    if isinstance(point, Chain):
        return Chain(layers, point.target)
    a, b, c = layers
    return State(a, b, c, point.strength)


def _cut(path: Trajectory, state: State) -> State:
    """Without the units of zeros that a narrow state is followed with."""
    if path.reduction is not None:
        return state
    p, q = path.initial.widths
    return State(state.a[:, :p], state.b[:p, :q], state.c[:, :q], state.strength)


def _small_state(view: View, time: Array) -> State:
    path = view.path
    return _unit_point(path, time).scale(path.scale)


def _full_state(view: View, time: Array) -> Any:
    path = view.path
    if isinstance(path.initial, Chain):
        return _unit_point(path, time)
    unit = _cut(path, _unit_point(path, time))
    if path.reduction is not None:
        unit = path.reduction.lift(unit, path.initial.scale(1 / path.scale))
    return unit.scale(path.scale)


def _energy(view: View, time: Array) -> Float[Array, ""]:
    path = view.path
    return energy(_unit_point(path, time)) * path.scale**3


def _norms(view: View, time: Array) -> Float[Array, " layers"]:
    path = view.path
    point = _unit_point(path, time)
    squares = jnp.stack([jnp.sum(layer * layer) for layer in point.layers])
    if path.reduction is not None:
        # What lies outside the bases does not move.
        small = path.reduction.state.b
        whole = jnp.sum((path.initial.b / path.scale) ** 2)
        squares = squares.at[1].add(jnp.maximum(whole - jnp.sum(small * small), 0))
    return jnp.sqrt(squares) * path.scale


def _time_left(view: View, time: Array) -> Float[Array, ""]:
    path = view.path
    pieces, now = path.pieces, time * path.scale
    index, place = pieces.find(now)
    # A sum of what is left after the piece, none of it negative.
    later = jnp.arange(pieces.length.size) > index
    after = path.left + jnp.sum(jnp.where(later, pieces.length, 0))
    left = (after + (1 - place) * pieces.length[index]) / path.scale
    left = jnp.where(pieces.ends, left, path.blowup.time - time)
    return jnp.where(_is_reached(path, time), left, jnp.nan)


def _drift(view: View, time: Array) -> Float[Array, ""]:
    path = view.path
    first = path.pieces.at(jnp.zeros((), int), jnp.zeros_like(time))
    return drift(conserved(first), _unit_point(path, time))


def _lost(path: Trajectory, state: State) -> Float[Array, ""]:
    if path.reduction is None:
        return jnp.zeros((), state.dtype)
    return jnp.sqrt(truncation(state))


def _truncation(view: View, time: Array) -> Float[Array, ""]:
    path = view.path
    lost = _lost(path, _point_at(path, time))
    return jnp.where(_is_reached(path, time), lost, jnp.nan)


class _Of(eqx.Module):
    """A function of products as one of a trajectory and a time."""

    function: Callable[[Products], Any] = eqx.field(static=True)

    def __call__(self, view: View, time: Array) -> Any:
        return self.function(view.products(_unit_point(view.path, time)))


class _ConditionAt(eqx.Module):
    """One condition as a function of a trajectory and a time."""

    number: int = eqx.field(static=True)

    def __call__(self, view: View, time: Array) -> Condition:
        state = _unit_point(view.path, time)
        # What the reduction leaves out is not known either.
        accuracy = jnp.maximum(view.path.rtol, _lost(view.path, state))
        return CONDITIONS[self.number](view.products(state), accuracy)


_CONDITIONS = {number: _ConditionAt(number) for number in CONDITIONS}
_angles, _ratios = _Of(angles_of), _Of(ratios_of)


def _unit_strength(state: State) -> State:
    r"""The same energy over $|\lambda|$, its sign with $c$: squares of these do not overflow."""
    sign = jnp.sign(state.strength)[:, None]
    return State(state.a, state.b, sign * state.c, jnp.ones_like(state.strength))


def _growth_of(state: State) -> Float[Array, ""]:
    return energy_growth(_unit_strength(state))


@eqx.filter_jit
def _later_growth(path: Trajectory) -> Float[Array, "max points"]:
    """The largest growth of the energy from points of the pieces on."""
    pieces: Any = path.pieces
    places = jnp.arange(1, _GROWTH_POINTS + 1, dtype=path.scale.dtype) / _GROWTH_POINTS

    def piece(index: Array) -> Array:
        values = jax.vmap(lambda place: _growth_of(pieces.at(index, place)))(places)
        return jnp.where((index < pieces.num) & ~jnp.isnan(values), values, -jnp.inf)

    values = lax.map(piece, jnp.arange(pieces.length.size))
    return lax.cummax(values.reshape(-1), reverse=True).reshape(values.shape)


def _growth(view: View, time: Array, later: Array) -> Float[Array, ""]:
    path = view.path
    index, place = path.pieces.find(time * path.scale)
    here = _growth_of(_unit_point(path, time))
    point = jnp.clip(jnp.ceil(place * _GROWTH_POINTS).astype(jnp.int32) - 1, 0, _GROWTH_POINTS - 1)
    return jnp.where(jnp.isnan(here), jnp.nan, jnp.maximum(here, later[index, point]))


def _theorem_bounds(view: View, time: Array, later: Array) -> tuple[Array, Array]:
    path = view.path
    rate = jnp.abs(path.initial.strength[0]) * path.scale
    left = theorem_1_upper(_unit_strength(_unit_point(path, time))) / rate
    return time + left / _growth(view, time, later), time + left


@eqx.filter_jit
def _starting_energies(path: Trajectory) -> Float[Array, " max"]:
    """The energies where pieces begin, at unit scale."""
    begin = jnp.zeros_like(path.scale)
    numbers = jnp.arange(path.pieces.length.size)
    return lax.map(lambda index: energy(path.pieces.at(index, begin)), numbers)


def _time_of_energy(view: View, value: Array, starts: Array) -> Float[Array, ""]:
    path, pieces = view.path, view.path.pieces
    unit = value / path.scale**3
    last = energy(pieces.end)
    used = pieces.length > 0
    index = jnp.clip(jnp.sum(used & (lax.stop_gradient(starts) <= unit)) - 1, 0, None)

    def above(place: Array) -> Array:
        return energy(pieces.at(index, place)) - unit

    place = root(above, value.dtype)
    time = (pieces.begin[index] + (pieces.lag[index] + place * pieces.length[index])) / path.scale
    # The energy of the state itself may come with another rounding.
    first = pieces.at(jnp.zeros((), int), jnp.zeros_like(value))
    size = 16 * jnp.finfo(value.dtype).eps * _largest_energy(first)
    early = unit <= starts[0]
    time = jnp.where(early, 0, time)
    inside = (unit >= starts[0] - size) & (unit <= last)
    valid = path.blowup.status != Status.INVALID_INPUT
    return jnp.where(inside & valid, time, jnp.nan)


def _largest_energy(point: Any) -> Float[Array, ""]:
    """What the norms of the layers allow."""
    squares = jnp.stack([jnp.sum(layer * layer) for layer in point.layers])
    target = point.target if isinstance(point, Chain) else point.strength
    return jnp.sqrt(jnp.prod(squares) * jnp.sum(target * target))


# What is refused, and why.

_MESSAGES = {
    PointStatus.BEYOND_BLOW_UP: "lies at or beyond the blow-up time {time:.10g}",
    PointStatus.BEFORE_START: "lies before the start of the flow",
    PointStatus.NEVER_REACHED: "is never reached: the flow comes to rest",
    PointStatus.TOO_CLOSE: "lies after the end {end:.10g} of the trajectory: give `trajectory` a "
    "smaller `closeness`",
    PointStatus.NOT_CONVERGED: "lies after the end {end:.10g} of the trajectory, which does not "
    "come near a blow-up: its `max_pieces` are used up, or rounding has taken its digits",
    PointStatus.INVALID_INPUT: "is not finite, or the state is not",
}


def _reject(path: Trajectory, name: str, values: np.ndarray, index: int, code: int) -> None:
    text = _MESSAGES[PointStatus(code)].format(time=float(path.blowup.time), end=float(path.end))
    place = "" if values.ndim == 0 else str([int(i) for i in np.unravel_index(index, values.shape)])
    raise ValueError(f"Argument `{name}`{place} = {float(values.flat[index]):.10g} {text}.")


def _refuse(path: Trajectory, times: ArrayLike, values: ArrayLike, name: str) -> None:
    """Raise `ValueError` for times that are not reached, if they are known."""
    if isinstance(times, Tracer) or _is_traced(path):
        return
    host, shown = np.asarray(times), np.asarray(values)
    reached = (host >= 0) & (host * float(path.scale) <= float(path.pieces.elapsed))
    invalid = int(path.blowup.status) == Status.INVALID_INPUT
    if reached.all() and not invalid:
        return
    index = 0 if invalid else int(np.flatnonzero(~reached.reshape(-1))[0])
    code = int(path.status(host.flat[index]))
    if name == "fraction" and int(path.blowup.status) == Status.NO_BLOW_UP:
        code = PointStatus.NEVER_REACHED
    _reject(path, name, shown, index, code)


def _refuse_energies(path: Trajectory, values: np.ndarray, times: np.ndarray) -> None:
    missing = np.flatnonzero(np.isnan(times.reshape(-1)))
    if not missing.size:
        return
    index = int(missing[0])
    value = float(values.flat[index])
    if not np.isfinite(value) or int(path.blowup.status) == Status.INVALID_INPUT:
        code = PointStatus.INVALID_INPUT
    elif value < float(path.energy(0.0)):
        code = PointStatus.BEFORE_START
    elif int(path.blowup.status) == Status.NO_BLOW_UP and value >= 0:
        code = PointStatus.NEVER_REACHED
    else:
        code = PointStatus.TOO_CLOSE if bool(path.pieces.ends) else PointStatus.NOT_CONVERGED
    _reject(path, "energy", values, index, code)
