"""When the final stage begins."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .._results import batch_dims, dataset, spread, table
from .._state import State
from ..blowup import Status
from ..flow import root
from ..indicators import CONDITIONS, LEAST_SIDES, WEAKEST, Units
from ._path import Trajectory
from ._status import OnsetStatus
from ._values import View

if TYPE_CHECKING:
    import xarray as xr


class Onset(eqx.Module):
    r"""When the final stage condition begins to hold.

    - `time`: in units of the effective model; `time_left`: $T^*$ minus `time`.
    - `stays`: whether the condition holds at all later times. For all three conditions this is
      Proposition 2; for fewer it is checked at the beginning and in the middle of every later
      piece.
    - `status`: an `OnsetStatus`.
    """

    time: Float[Array, "*batch"]
    time_left: Float[Array, "*batch"]
    stays: Bool[Array, "*batch"]
    status: Int[Array, "*batch"]

    def __str__(self) -> str:
        if self.status.ndim:
            return table(
                f"Onset of the final stage of {self.status.size} states: "
                f"{OnsetStatus.summary(self.status)}",
                {
                    "time, median (quartiles)": spread(self.time),
                    "T* - time, median (quartiles)": spread(self.time_left),
                },
            )
        status = OnsetStatus(int(self.status))
        text = f"Onset of the final stage at t = {float(self.time):.10g} ({status.label})"
        if status > OnsetStatus.FROM_START:
            return text
        return f"{text}, {float(self.time_left):.6g} before T*"

    def to_xarray(self) -> "xr.Dataset":
        """All fields as a dataset; a batch has the dimension `sample`."""
        dims = batch_dims("sample", self.status.ndim)
        names = ("time", "time_left", "stays", "status")
        return dataset(
            {name: (dims, getattr(self, name)) for name in names},
            flags={"status": OnsetStatus.flags()},
        )


def onset(path: Trajectory, conditions: int | tuple[int, ...]) -> Onset:
    """When the chosen conditions begin to hold permanently along a trajectory.

    The least margin is evaluated at the beginning and in the middle of the pieces, and its zero is
    sought after the last point at which it is not positive. The three conditions together hold
    permanently once they hold (Proposition 2), so bisection finds this point. After it, only the
    units whose inequalities fail are followed, until no other inequality fails.
    """
    conditions = (conditions,) if isinstance(conditions, int) else tuple(conditions)
    if not conditions or not set(conditions) <= set(CONDITIONS):
        raise ValueError(f"Argument `conditions` must be some of 1, 2 and 3, but is {conditions}.")
    return _onset(path, tuple(sorted(set(conditions))))


@eqx.filter_jit
def _onset(path: Trajectory, conditions: tuple[int, ...]) -> Onset:
    pieces: Any = path.pieces
    blowup, view = path.blowup, View.of(path)
    fixed = lax.stop_gradient(view)
    cheap = tuple(number for number in conditions if number != 2)

    most, dtype = pieces.length.size, path.scale.dtype
    points = jnp.arange(2 * most + 1)

    def holds(point: Array) -> Bool[Array, ""]:
        """Whether the conditions hold where a piece begins or in its middle."""
        at_end = point == 2 * pieces.num
        state = pieces.at(jnp.where(at_end, 0, point // 2), 0.5 * (point % 2).astype(dtype))
        state = jax.tree.map(lambda x, y: jnp.where(at_end, y, x), state, pieces.end)
        state = lax.stop_gradient(state)
        if not cheap or cheap == conditions:
            return _margin(fixed, state, conditions) > 0
        # The second condition costs most, and the first one fails longest.
        fails = _margin(fixed, state, cheap) <= 0
        return lax.cond(
            fails, lambda _: False, lambda state: _margin(fixed, state, (2,)) > 0, state
        )

    if conditions == tuple(CONDITIONS):
        last_failure, stays = _last_failure(holds, 2 * pieces.num), jnp.ones((), bool)
    else:
        used = points <= 2 * pieces.num
        held = lax.map(
            lambda point: lax.cond(point[1], holds, lambda _: True, point[0]), (points, used)
        )
        last_failure = jnp.max(jnp.where(held, -1, points))
        stays = jnp.min(jnp.where(held & used, points, points.size)) > last_failure
    index = jnp.clip(last_failure // 2, 0, jnp.maximum(pieces.num - 1, 0))
    half = 0.5 * (last_failure % 2).astype(dtype)
    last = _Stretch(index, half, half + 0.5)
    begin, units = _last_to_turn(fixed, last, conditions)
    place = _turn(view.only(units), eqx.tree_at(lambda last: last.begin, last, begin), conditions)
    inside = place * pieces.length[index]
    time = (pieces.begin[index] + (pieces.lag[index] + inside)) / path.scale
    later = jnp.where(jnp.arange(most) > index, pieces.length, 0)
    left = (path.left + jnp.sum(later) + (pieces.length[index] - inside)) / path.scale
    from_start = last_failure < 0
    time = jnp.where(from_start, 0, time)
    left = jnp.where(from_start, blowup.time, left)

    status = jnp.where(from_start, OnsetStatus.FROM_START, OnsetStatus.FOUND)
    status = jnp.where(last_failure == 2 * pieces.num, OnsetStatus.NOT_REACHED, status)
    status = jnp.where(pieces.ends & blowup.is_known(), status, OnsetStatus.NOT_CONVERGED)
    status = jnp.where(blowup.status == Status.NO_BLOW_UP, OnsetStatus.NO_BLOW_UP, status)
    invalid = blowup.status == Status.INVALID_INPUT
    status = jnp.where(invalid, OnsetStatus.INVALID_INPUT, status)
    known = status <= OnsetStatus.FROM_START
    never = (status == OnsetStatus.NOT_REACHED) | (status == OnsetStatus.NO_BLOW_UP)
    return Onset(
        time=jnp.where(known, time, jnp.where(never, jnp.inf, jnp.nan)),
        time_left=jnp.where(known, left, jnp.nan),
        stays=known & stays,
        status=status.astype(jnp.int32),
    )


class _Stretch(eqx.Module):
    """A part of a piece, at whose end the conditions hold."""

    index: Int[Array, ""]
    begin: Float[Array, ""]
    end: Float[Array, ""]


def _margin(view: View, state: State, conditions: tuple[int, ...]) -> Float[Array, ""]:
    products, exact = view.products(state), jnp.zeros((), state.dtype)
    margins = [CONDITIONS[number](products, exact).margin for number in conditions]
    return jnp.min(jnp.stack(margins))


def _weakest(
    view: View, state: State, conditions: tuple[int, ...]
) -> tuple[Float[Array, ""], Units]:
    """The least margin, and the units of the least inequalities of every condition."""
    products, exact = view.products(state), jnp.zeros((), state.dtype)
    margins = [CONDITIONS[number](products, exact).margin for number in conditions]
    weakest = [WEAKEST[number](products) for number in conditions]
    units = jax.tree.map(lambda *indices: jnp.concatenate(indices), *weakest)
    return jnp.min(jnp.stack(margins)), units


def _turn(view: View, stretch: _Stretch, conditions: tuple[int, ...]) -> Float[Array, ""]:
    """Where on its piece the least left-hand side over the units of a view changes sign."""
    pieces: Any = view.path.pieces
    begin, length = stretch.begin, stretch.end - stretch.begin

    # At rank 1 the left-hand sides of the third condition are squares.
    signed = tuple(n for n in conditions if n != 3 or view.path.initial.rank > 1) or conditions

    def least(x: Array) -> Array:
        products = view.products(pieces.at(stretch.index, begin + length * x))
        return jnp.min(jnp.stack([LEAST_SIDES[number](products) for number in signed]))

    return begin + length * root(least, begin.dtype)


def _last_to_turn(
    view: View, stretch: _Stretch, conditions: tuple[int, ...]
) -> tuple[Float[Array, ""], Units]:
    """The units whose inequalities are the last to hold, and a place before they do.

    When the inequalities of some units begin to hold, others may still fail, and these units are
    next. A few rounds suffice, each with one evaluation of all units.
    """
    pieces: Any = view.path.pieces
    eps = jnp.finfo(stretch.begin.dtype).eps

    def follow(
        carry: tuple[_Stretch, Units, Bool[Array, ""]],
    ) -> tuple[_Stretch, Units, Bool[Array, ""]]:
        rest, units, _ = carry
        place = _turn(view.only(units), rest, conditions)
        # Away from the zero itself, where rounding decides the signs.
        beyond = jnp.minimum(place + 64 * eps, rest.end)
        margin, others = _weakest(view, pieces.at(rest.index, beyond), conditions)
        going = (margin < -16 * eps) & (place > rest.begin) & (beyond < rest.end)
        later = eqx.tree_at(lambda rest: rest.begin, rest, beyond), others
        rest, units = jax.tree.map(lambda x, y: jnp.where(going, x, y), later, (rest, units))
        return rest, units, going

    _, units = _weakest(view, pieces.at(stretch.index, stretch.begin), conditions)
    start = stretch, units, jnp.ones((), bool)
    rest, units, _ = lax.while_loop(lambda carry: carry[2], follow, start)
    return rest.begin, units


def _last_failure(
    holds: Callable[[Array], Bool[Array, ""]], last: Int[Array, ""]
) -> Int[Array, ""]:
    """The last of the points 0 to `last` at which a permanent condition fails, or -1."""

    def halve(ends: tuple[Array, Array]) -> tuple[Array, Array]:
        fails, held = ends
        middle = (fails + held) // 2
        middle_holds = holds(middle)
        return jnp.where(middle_holds, fails, middle), jnp.where(middle_holds, middle, held)

    ends = (jnp.full_like(last, -1), last + 1)
    return lax.while_loop(lambda ends: ends[1] - ends[0] > 1, halve, ends)[0]
