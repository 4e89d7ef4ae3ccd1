"""Values of one trajectory at one time: functions of a view of the trajectory and the time."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .._chain import Chain
from .._energy import conserved, energy
from .._reduction import truncation
from .._state import State
from ..blowup import Status
from ..bounds import energy_growth, theorem_1_upper
from ..flow import drift, root
from ..indicators import CONDITIONS, Condition, Products, Units, angles_of, ratios_of
from ._frame import Frame
from ._status import PointStatus

if TYPE_CHECKING:
    from ._path import Trajectory

# Points per piece at which `growth` is evaluated.
_GROWTH_POINTS = 8


class View(eqx.Module):
    """A trajectory with the products that its full states share, computed once for many times.

    - `units`: the units whose products are computed; `None` for all.
    """

    path: "Trajectory"
    frame: Frame | None
    units: Units | None = None

    @classmethod
    def of(cls, path: "Trajectory") -> "View":
        """The view of one trajectory."""
        reduction = path.reduction
        if reduction is None:
            return cls(path, None)
        return cls(path, Frame.of(reduction, path.initial.scale(1 / path.scale)))

    def only(self, units: Units) -> "View":
        """The view restricted to some units."""
        return View(self.path, None if self.frame is None else self.frame.only(units), units)

    def products(self, state: State) -> Products:
        """The products of the full state that belongs to a reduced state of unit scale."""
        if self.frame is not None:
            return self.frame.products(state)
        products = Products.of(_cut(self.path, state))
        return products if self.units is None else products.only(self.units)


def status_at(view: View, time: Array) -> Int[Array, ""]:
    path = view.path
    pieces, blowup = path.pieces, path.blowup
    status = jnp.where(pieces.ends, PointStatus.TOO_CLOSE, PointStatus.NOT_CONVERGED)
    status = jnp.where(time >= blowup.time, PointStatus.BEYOND_BLOW_UP, status)
    reached = time * path.scale <= pieces.elapsed
    if path.reduction is None:
        accuracy = jnp.asarray(PointStatus.REACHED)
    else:
        lost = _lost(path, _point_at(path, time))
        accuracy = jnp.where(lost > path.rtol, PointStatus.TRUNCATED, PointStatus.REACHED)
    status = jnp.where(reached, accuracy, status)
    status = jnp.where(time < 0, PointStatus.BEFORE_START, status)
    valid = ~jnp.isnan(time) & (blowup.status != Status.INVALID_INPUT)
    return jnp.where(valid, status, PointStatus.INVALID_INPUT).astype(jnp.int32)


def is_known(view: View, time: Array) -> Bool[Array, ""]:
    return _is_reached(view.path, time)


def _is_reached(path: "Trajectory", time: Array) -> Bool[Array, ""]:
    inside = (time >= 0) & (time * path.scale <= path.pieces.elapsed)
    return inside & (path.blowup.status != Status.INVALID_INPUT)


def _point_at(path: "Trajectory", time: Array) -> Any:
    """The reduced state divided by `scale`, or the chain, on the piece nearest to a time."""
    return path.pieces.at(*path.pieces.find(time * path.scale))


def _unit_point(path: "Trajectory", time: Array) -> Any:
    """`_point_at` where it is reached, NaN elsewhere."""
    point, reached = _point_at(path, time), _is_reached(path, time)
    layers = tuple(jnp.where(reached, x, jnp.nan) for x in point.layers)
    if isinstance(point, Chain):
        return Chain(layers, point.target)
    a, b, c = layers
    return State(a, b, c, point.strength)


def _cut(path: "Trajectory", state: State) -> State:
    """The state without the zero units that pad a narrow state."""
    if path.reduction is not None:
        return state
    p, q = path.initial.widths
    return State(state.a[:, :p], state.b[:p, :q], state.c[:, :q], state.strength)


def small_state(view: View, time: Array) -> State:
    path = view.path
    return _unit_point(path, time).scale(path.scale)


def full_state(view: View, time: Array) -> Any:
    path = view.path
    if isinstance(path.initial, Chain):
        return _unit_point(path, time)
    unit = _cut(path, _unit_point(path, time))
    if path.reduction is not None:
        unit = path.reduction.lift(unit, path.initial.scale(1 / path.scale))
    return unit.scale(path.scale)


def energy_at(view: View, time: Array) -> Float[Array, ""]:
    path = view.path
    return energy(_unit_point(path, time)) * path.scale**3


def norms_at(view: View, time: Array) -> Float[Array, " layers"]:
    path = view.path
    point = _unit_point(path, time)
    squares = jnp.stack([jnp.sum(layer * layer) for layer in point.layers])
    if path.reduction is not None:
        # The part outside the bases does not move.
        small = path.reduction.state.b
        whole = jnp.sum((path.initial.b / path.scale) ** 2)
        squares = squares.at[1].add(jnp.maximum(whole - jnp.sum(small * small), 0))
    return jnp.sqrt(squares) * path.scale


def time_left_at(view: View, time: Array) -> Float[Array, ""]:
    path = view.path
    pieces, now = path.pieces, time * path.scale
    index, place = pieces.find(now)
    # A sum of non-negative parts after the piece, without cancellation.
    later = jnp.arange(pieces.length.size) > index
    after = path.left + jnp.sum(jnp.where(later, pieces.length, 0))
    left = (after + (1 - place) * pieces.length[index]) / path.scale
    left = jnp.where(pieces.ends, left, path.blowup.time - time)
    return jnp.where(_is_reached(path, time), left, jnp.nan)


def drift_at(view: View, time: Array) -> Float[Array, ""]:
    path = view.path
    first = path.pieces.at(jnp.zeros((), int), jnp.zeros_like(time))
    return drift(conserved(first), _unit_point(path, time))


def _lost(path: "Trajectory", state: State) -> Float[Array, ""]:
    if path.reduction is None:
        return jnp.zeros((), state.dtype)
    return jnp.sqrt(truncation(state))


def truncation_at(view: View, time: Array) -> Float[Array, ""]:
    path = view.path
    lost = _lost(path, _point_at(path, time))
    return jnp.where(_is_reached(path, time), lost, jnp.nan)


class Of(eqx.Module):
    """A function of products as a function of a trajectory and a time."""

    function: Callable[[Products], Any] = eqx.field(static=True)

    def __call__(self, view: View, time: Array) -> Any:
        return self.function(view.products(_unit_point(view.path, time)))


class _ConditionAt(eqx.Module):
    """One condition as a function of a trajectory and a time."""

    number: int = eqx.field(static=True)

    def __call__(self, view: View, time: Array) -> Condition:
        state = _unit_point(view.path, time)
        # The error of the reduction makes signs undecided too.
        accuracy = jnp.maximum(view.path.rtol, _lost(view.path, state))
        return CONDITIONS[self.number](view.products(state), accuracy)


CONDITIONS_AT = {number: _ConditionAt(number) for number in CONDITIONS}
angles_at, ratios_at = Of(angles_of), Of(ratios_of)


def _unit_strength(state: State) -> State:
    r"""The state with unit strength, the sign moved into $c$, so that squares do not overflow."""
    sign = jnp.sign(state.strength)[:, None]
    return State(state.a, state.b, sign * state.c, jnp.ones_like(state.strength))


def _growth_of(state: State) -> Float[Array, ""]:
    return energy_growth(_unit_strength(state))


@eqx.filter_jit
def later_growth(path: "Trajectory") -> Float[Array, "max points"]:
    """The largest growth of the energy from each point of the pieces onwards."""
    pieces: Any = path.pieces
    places = jnp.arange(1, _GROWTH_POINTS + 1, dtype=path.scale.dtype) / _GROWTH_POINTS

    def piece(index: Array) -> Array:
        values = jax.vmap(lambda place: _growth_of(pieces.at(index, place)))(places)
        return jnp.where((index < pieces.num) & ~jnp.isnan(values), values, -jnp.inf)

    values = lax.map(piece, jnp.arange(pieces.length.size))
    return lax.cummax(values.reshape(-1), reverse=True).reshape(values.shape)


def growth_at(view: View, time: Array, later: Array) -> Float[Array, ""]:
    path = view.path
    index, place = path.pieces.find(time * path.scale)
    here = _growth_of(_unit_point(path, time))
    point = jnp.clip(jnp.ceil(place * _GROWTH_POINTS).astype(jnp.int32) - 1, 0, _GROWTH_POINTS - 1)
    return jnp.where(jnp.isnan(here), jnp.nan, jnp.maximum(here, later[index, point]))


def theorem_bounds_at(view: View, time: Array, later: Array) -> tuple[Array, Array]:
    path = view.path
    rate = jnp.abs(path.initial.strength[0]) * path.scale
    left = theorem_1_upper(_unit_strength(_unit_point(path, time))) / rate
    return time + left / growth_at(view, time, later), time + left


@eqx.filter_jit
def starting_energies(path: "Trajectory") -> Float[Array, " max"]:
    """The energies at the beginning of the pieces, at unit scale."""
    begin = jnp.zeros_like(path.scale)
    numbers = jnp.arange(path.pieces.length.size)
    return lax.map(lambda index: energy(path.pieces.at(index, begin)), numbers)


def time_of_energy(view: View, value: Array, starts: Array) -> Float[Array, ""]:
    path, pieces = view.path, view.path.pieces
    unit = value / path.scale**3
    last = energy(pieces.end)
    used = pieces.length > 0
    index = jnp.clip(jnp.sum(used & (lax.stop_gradient(starts) <= unit)) - 1, 0, None)

    def above(place: Array) -> Array:
        return energy(pieces.at(index, place)) - unit

    place = root(above, value.dtype)
    time = (pieces.begin[index] + (pieces.lag[index] + place * pieces.length[index])) / path.scale
    # The energy of the state itself may be rounded differently.
    first = pieces.at(jnp.zeros((), int), jnp.zeros_like(value))
    size = 16 * jnp.finfo(value.dtype).eps * _largest_energy(first)
    early = unit <= starts[0]
    time = jnp.where(early, 0, time)
    inside = (unit >= starts[0] - size) & (unit <= last)
    valid = path.blowup.status != Status.INVALID_INPUT
    return jnp.where(inside & valid, time, jnp.nan)


def _largest_energy(point: Any) -> Float[Array, ""]:
    """The largest energy that the norms of the layers allow."""
    squares = jnp.stack([jnp.sum(layer * layer) for layer in point.layers])
    target = point.target if isinstance(point, Chain) else point.strength
    return jnp.sqrt(jnp.prod(squares) * jnp.sum(target * target))
