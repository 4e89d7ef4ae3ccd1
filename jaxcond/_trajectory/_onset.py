"""When the final stage begins."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .._state import State
from ..blowup import Status
from ..flow import root
from ..indicators import CONDITIONS
from ._path import Trajectory, View
from ._status import OnsetStatus


class Onset(eqx.Module):
    r"""When the final stage condition begins to hold.

    - `time`: in units of the effective model; `time_left`: $T^*$ less that.
    - `stays`: whether it held ever after: by Proposition 2 if all three conditions are asked for;
      of some of them, where later pieces begin and in their middle.
    - `status`: an `OnsetStatus`.
    """

    time: Float[Array, "*batch"]
    time_left: Float[Array, "*batch"]
    stays: Bool[Array, "*batch"]
    status: Int[Array, "*batch"]

    def __str__(self) -> str:
        if self.status.ndim:
            names, counts = np.unique(np.asarray(self.status), return_counts=True)
            listed = ", ".join(
                f"{count} {OnsetStatus(code).name.lower()}"
                for code, count in zip(names, counts, strict=True)
            )
            return f"Onset of the final stage of {self.status.size} states: {listed}"
        status = OnsetStatus(int(self.status))
        text = f"Onset of the final stage at t = {float(self.time):.10g} ({status.name.lower()})"
        if status > OnsetStatus.FROM_START:
            return text
        return f"{text}, {float(self.time_left):.6g} before T*"


def onset(path: Trajectory, conditions: int | tuple[int, ...]) -> Onset:
    """When some of the conditions begin to hold for good along a trajectory.

    The least margin is looked at where pieces begin and in their middle, and brought to zero after
    the last point at which it is not positive. The three conditions together hold for good once
    they hold (Proposition 2), so that this point is found by halving.
    """
    conditions = (conditions,) if isinstance(conditions, int) else tuple(conditions)
    if not conditions or not set(conditions) <= set(CONDITIONS):
        raise ValueError(f"Argument `conditions` must be some of 1, 2 and 3, but is {conditions}.")
    return _onset(path, tuple(sorted(set(conditions))))


@eqx.filter_jit
def _onset(path: Trajectory, conditions: tuple[int, ...]) -> Onset:
    pieces: Any = path.pieces
    blowup, view = path.blowup, View.of(path)
    exact = jnp.zeros_like(path.left)
    cheap = tuple(number for number in conditions if number != 2)

    def margin(state: State, numbers: tuple[int, ...] = conditions) -> Array:
        products = view.products(state)
        margins = [CONDITIONS[number](products, exact).margin for number in numbers]
        return jnp.min(jnp.stack(margins))

    most = pieces.length.size
    points = jnp.arange(2 * most + 1)

    def holds(point: Array) -> Bool[Array, ""]:
        """Whether the conditions hold where a piece begins or in its middle."""
        at_end = point == 2 * pieces.num
        state = pieces.at(jnp.where(at_end, 0, point // 2), 0.5 * (point % 2).astype(exact.dtype))
        state = jax.tree.map(lambda x, y: jnp.where(at_end, y, x), state, pieces.end)
        state = lax.stop_gradient(state)
        if not cheap or cheap == conditions:
            return margin(state) > 0
        # The second condition costs most, and the first one fails for longest.
        fails = margin(state, cheap) <= 0
        return lax.cond(fails, lambda _: False, lambda state: margin(state, (2,)) > 0, state)

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
    half = 0.5 * (last_failure % 2).astype(exact.dtype)
    place = root(lambda x: margin(pieces.at(index, half + 0.5 * x)), exact.dtype)
    inside = (half + 0.5 * place) * pieces.length[index]
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


def _last_failure(
    holds: Callable[[Array], Bool[Array, ""]], last: Int[Array, ""]
) -> Int[Array, ""]:
    """The last of the points 0 to `last` at which what never ends again does not hold, or -1."""

    def halve(ends: tuple[Array, Array]) -> tuple[Array, Array]:
        fails, held = ends
        middle = (fails + held) // 2
        there = holds(middle)
        return jnp.where(there, fails, middle), jnp.where(there, middle, held)

    ends = (jnp.full_like(last, -1), last + 1)
    return lax.while_loop(lambda ends: ends[1] - ends[0] > 1, halve, ends)[0]
