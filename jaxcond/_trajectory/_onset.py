"""When the final stage begins."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .._state import State
from ..blowup import AbstractMethod, Status
from ..flow import desingularised_time, follow_densely
from ..indicators import CONDITIONS
from ._result import products_along
from ._solve import (
    Setting,
    Start,
    check_closeness,
    check_method,
    check_num,
    course_to,
    resolve_trajectory_rtol,
)
from ._status import OnsetStatus

# Halvings of one interval of the grid: to rounding.
_NUM_HALVINGS = 50
# With fewer points an interval of the grid may take more steps than are kept.
_FEWEST = 32
# Steps within one interval of the grid: what dense output keeps in memory.
_INTERVAL_STEPS = 64


class Onset(eqx.Module):
    r"""When the final stage condition begins to hold.

    - `time`: in units of the effective model; `time_left`: $T^*$ less that.
    - `stays`: whether it held at every later point of the grid, as Proposition 2 says.
    - `status`: an `OnsetStatus`.
    """

    time: Float[Array, "*batch"]
    time_left: Float[Array, "*batch"]
    stays: Bool[Array, "*batch"]
    status: Int[Array, "*batch"]

    def __str__(self) -> str:
        if self.status.ndim:
            names, counts = np.unique(np.asarray(self.status), return_counts=True)
            told = ", ".join(
                f"{count} {OnsetStatus(code).name.lower()}"
                for code, count in zip(names, counts, strict=True)
            )
            return f"Onset of the final stage of {self.status.size} states: {told}"
        status = OnsetStatus(int(self.status))
        told = f"Onset of the final stage at t = {float(self.time):.10g} ({status.name.lower()})"
        if status > OnsetStatus.FROM_START:
            return told
        return f"{told}, {float(self.time_left):.6g} before T*"


def final_stage_time(
    state: State,
    *,
    conditions: int | tuple[int, ...] = (1, 2, 3),
    num: int = 128,
    closeness: float | Float[Array, ""] | None = None,
    method: AbstractMethod | None = None,
    rtol: float | Float[Array, ""] | None = None,
) -> Onset:
    r"""The time from which the final stage condition holds, any rank.

    The lifted flow is looked at on a grid even in desingularised time; in the interval after the
    last point at which the condition fails, the least margin is brought to zero by bisection on
    dense output.

    **Arguments:** `state`, one `State`; `conditions`, which of the three (see `final_stage`) have
    to hold; `num`, points of the grid, at least 32; `closeness`, the $(T^* - t)/T^*$ at which the
    grid ends, by default 1e-8 for float64 and 1e-4 for float32: wide states have small entries,
    whose signs are settled late; `method` and `rtol` as for
    `trajectory`.

    **Returns:** an `Onset`. Where the condition held for a while, failed and held again (which by
    Proposition 2 does not happen for the three together), it is the last onset, and `stays` is
    false.

    **Raises:** `ValueError` as `trajectory` does, and for conditions other than 1, 2, 3.
    """
    method = check_method(method, state, "final_stage_time")
    if closeness is None:
        closeness = 1e-8 if jnp.finfo(state.dtype).bits >= 64 else 1e-4
    check_closeness(closeness)
    conditions = (conditions,) if isinstance(conditions, int) else tuple(conditions)
    if not conditions or not set(conditions) <= set(CONDITIONS):
        raise ValueError(f"Argument `conditions` must be some of 1, 2 and 3, but is {conditions}.")
    num = check_num(num, _FEWEST)
    rtol = resolve_trajectory_rtol(rtol, state.dtype)
    setting = Setting.of(state, method, rtol)
    course = course_to(setting.start, jnp.asarray(closeness, state.dtype))
    return _onset(setting, course, tuple(sorted(set(conditions))), num)


@eqx.filter_jit
def _onset(setting: Setting, course: Array, conditions: tuple[int, ...], num: int) -> Onset:
    """The onset, looked for from the start to the end of a course."""
    start = setting.start
    products = products_along(setting.reduction, setting.unit)
    exact = jnp.zeros((), course.dtype)

    def margin(reduced: State) -> Array:
        seen = products(reduced)
        margins = [CONDITIONS[number](seen, exact).margin for number in conditions]
        return jnp.min(jnp.stack(margins))

    stops = jnp.linspace(0, course, num)
    followed = start.follow(desingularised_time, stops[0], stops)
    holds = lax.map(margin, followed.states) > 0
    last_failure = jnp.max(jnp.where(holds, -1, jnp.arange(num)))
    first_success = jnp.min(jnp.where(holds, jnp.arange(num), num))
    before = jnp.clip(last_failure, 0, num - 2)
    begin = jax.tree.map(lambda x: x[before], followed.states)
    elapsed, found = _root(margin, begin, stops[before + 1] - stops[before], start)
    time = jnp.where(last_failure < 0, 0, followed.times[before] + elapsed)

    blow_up = start.blow_up
    reached = followed.reached & found & jnp.isfinite(time) & (course > 0)
    status = jnp.where(last_failure < 0, OnsetStatus.FROM_START, OnsetStatus.FOUND)
    status = jnp.where(last_failure == num - 1, OnsetStatus.NOT_REACHED, status)
    known = reached & blow_up.is_known()
    status = jnp.where(known, status, OnsetStatus.NOT_CONVERGED)
    status = jnp.where(blow_up.status == Status.NO_BLOW_UP, OnsetStatus.NO_BLOW_UP, status)
    status = jnp.where(start.finite, status, OnsetStatus.INVALID_INPUT)
    never = (status == OnsetStatus.NOT_REACHED) | (status == OnsetStatus.NO_BLOW_UP)
    time = jnp.where(status >= OnsetStatus.NOT_CONVERGED, jnp.nan, time)
    left = jnp.where(never, jnp.nan, blow_up.time - time)
    return Onset(
        jnp.where(never, jnp.inf, time) / start.scale,
        left / start.scale,
        (first_success > last_failure) & (status <= OnsetStatus.FROM_START),
        status.astype(jnp.int32),
    )


def _root(
    margin: Callable[[State], Array], begin: State, length: Array, start: Start
) -> tuple[Float[Array, ""], Bool[Array, ""]]:
    """The time after `begin` at which the margin becomes positive, and whether it was followed."""
    at, reached = follow_densely(
        begin,
        desingularised_time,
        length,
        start.integrator.solver,
        start.tolerance,
        _INTERVAL_STEPS,
    )

    def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = 0.5 * (low + high)
        inside = margin(at(middle)[0]) > 0
        return jnp.where(inside, low, middle), jnp.where(inside, middle, high)

    _, high = lax.fori_loop(0, _NUM_HALVINGS, halve, (jnp.zeros_like(length), length))
    return at(high)[1], reached
