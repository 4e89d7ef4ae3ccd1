"""`trajectory`: what is asked for, the flow to it, and what became of each point."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

from ..blowup import (
    SAFETY,
    AbstractMethod,
    BlowUp,
    Direct,
    Reduced,
    Status,
    blowup_time,
    resolve_rtol,
    run_to_distance,
    time_left,
    tolerance_floor,
)
from ..bounds import bracket
from ..energy import conserved, energy, squared_norms
from ..reduction import Reduction, reduce, truncation
from ..state import State
from ._flow import EnergyClock, desingularised_time, follow, physical_time
from .result import PointStatus, Trajectory


class Setting(eqx.Module):
    """One state brought to unit scale and reduced, ready to be followed."""

    unit: State
    small: State
    scale: Float[Array, ""]
    reduction: Reduction | None
    finite: Bool[Array, ""]
    blow_up: BlowUp  # of the unit state
    tolerance: Float[Array, ""]
    method: Reduced | Direct

    @classmethod
    def of(cls, state: State, method: Reduced | Direct, rtol: Float[Array, ""]) -> "Setting":
        finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state)]))
        unit, scale = state.unit_scale()
        blow_up = blowup_time(unit, rtol=_finest_time(state.dtype, rtol))
        # What cannot be followed is replaced by a state that can, and its results by NaN.
        unit = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 1), unit)
        reduction = None
        if method.truncates(unit):
            reduction = reduce(unit, method.reduced_dim(unit.rank) or 0)
        small = unit if reduction is None else reduction.state
        tolerance = jnp.maximum(SAFETY * rtol, 20 * jnp.finfo(state.dtype).eps)
        return cls(unit, small, scale, reduction, finite, blow_up, tolerance, method)


def _finest_time(dtype: jnp.dtype, rtol: Array) -> Array:
    # Points are told from the blow-up by the time left, so T* should be finer than they are.
    return jnp.maximum(tolerance_floor(dtype), 0.1 * rtol).astype(dtype)


def check_method(method: AbstractMethod | None, state: State, name: str) -> Reduced | Direct:
    """The method to follow a flow with; `ValueError` where it does not apply."""
    if state.batch_shape:
        raise ValueError(
            f"`{name}` takes one state, but got a batch of shape {state.batch_shape}: use "
            "`jax.vmap`."
        )
    method = Reduced() if method is None else method
    if not isinstance(method, Reduced | Direct):
        raise ValueError(
            f"Argument `method` must be a `Reduced` or a `Direct`, but is {type(method).__name__}."
        )
    method.check(state)
    return method


def resolve_trajectory_rtol(rtol: float | Array | None, dtype: jnp.dtype) -> Float[Array, ""]:
    """The tolerance as an array; `None` is 1e-12 in float64 and 1e-5 in float32."""
    if rtol is None and jnp.finfo(dtype).bits >= 64:
        rtol = 1e-12
    return resolve_rtol(rtol, dtype)


def even_stops(setting: Setting, num: int, closeness: Float[Array, ""]) -> Float[Array, " num"]:
    r"""Values of desingularised time, evenly from 0 to where $(T^* - t)/T^*$ is `closeness`."""
    solver, max_steps = setting.method.solver, setting.method.max_steps
    distance = closeness * setting.blow_up.time
    end = run_to_distance(setting.small, solver, distance, setting.tolerance, max_steps)
    return jnp.linspace(0, jnp.where(end.reached, end.course, 0), num)


def _targets(setting: Setting, kind: str, values: Array) -> tuple[Array, Array]:
    """Values of the independent variable, and the status of those that cannot be reached."""
    blow_up = setting.blow_up
    reached = jnp.full(values.shape, PointStatus.REACHED, jnp.int32)

    def mark(status: Array, where: Array, code: PointStatus) -> Array:
        return jnp.where(where & (status == PointStatus.REACHED), code, status)

    rests = blow_up.status == Status.NO_BLOW_UP
    unknown = (blow_up.status == Status.NOT_CONVERGED) & (kind != "energies")
    status = mark(reached, jnp.isnan(values) | ~setting.finite, PointStatus.INVALID_INPUT)
    status = mark(status, jnp.broadcast_to(unknown, values.shape), PointStatus.NOT_CONVERGED)
    if kind == "energies":
        values = values / setting.scale**3
        # The energy of the state itself may come with another rounding.
        size = 16 * jnp.finfo(values.dtype).eps * jnp.prod(squared_norms(setting.small)) ** 0.5
        lowest = energy(setting.small) - size * jnp.max(jnp.abs(setting.small.strength))
        status = mark(status, values < lowest, PointStatus.BEFORE_START)
        # Where the flow comes to rest its energy stays negative.
        status = mark(status, rests & (values >= 0), PointStatus.NEVER_REACHED)
        status = mark(status, jnp.isinf(values), PointStatus.NEVER_REACHED)
    elif kind == "fractions":
        status = mark(status, jnp.broadcast_to(rests, values.shape), PointStatus.NEVER_REACHED)
        status = mark(status, values >= 1, PointStatus.BEYOND_BLOW_UP)
        values = values * blow_up.time
    else:
        values = values * setting.scale
        status = mark(status, values >= blow_up.time, PointStatus.BEYOND_BLOW_UP)
    if kind != "energies":
        status = mark(status, values < 0, PointStatus.BEFORE_START)
    return values, status


@eqx.filter_jit
def solve(
    state: State, kind: str, values: Array, method: Reduced | Direct, rtol: Array
) -> Trajectory:
    """The trajectory of one state; `kind` says what `values` are."""
    setting = Setting.of(state, method, rtol)
    start = jnp.zeros((), state.dtype)
    if kind == "even":
        num, closeness = values.size, values[-1]
        targets = even_stops(setting, num, closeness)
        blow_up = setting.blow_up
        known = (blow_up.status == Status.CONVERGED) & (targets[-1] > 0)
        code = jnp.where(
            blow_up.status == Status.NO_BLOW_UP,
            PointStatus.NEVER_REACHED,
            jnp.where(known, PointStatus.REACHED, PointStatus.NOT_CONVERGED),
        )
        code = jnp.where(setting.finite, code, PointStatus.INVALID_INPUT)
        status = jnp.full(num, code, jnp.int32)
        clock = desingularised_time
    else:
        targets, status = _targets(setting, kind, values)
        clock = physical_time
    if kind == "energies":
        clock = EnergyClock(jnp.sqrt(jnp.sum(squared_norms(setting.small)) / 3) ** 3)
        start = jnp.arcsinh(energy(setting.small) / clock.unit)
        targets = jnp.maximum(jnp.arcsinh(targets / clock.unit), start)
    targets = jnp.where(status == PointStatus.REACHED, targets, start)
    order = jnp.argsort(targets)
    followed = follow(
        setting.small,
        clock,
        start,
        targets[order],
        method.solver,
        setting.tolerance,
        method.max_steps,
    )
    back = jnp.argsort(order)
    states, times = jax.tree.map(lambda x: x[back], (followed.states, followed.times))
    # Where the solver gives up, the points before that are none the worse.
    arrived = jnp.isfinite(times)
    status = jnp.where(
        (status == PointStatus.REACHED) & ~arrived, PointStatus.NOT_CONVERGED, status
    )
    return _collect(state, setting, states, times, status, rtol)


def _collect(
    state: State, setting: Setting, states: State, times: Array, status: Array, rtol: Array
) -> Trajectory:
    reached = status == PointStatus.REACHED
    times = jnp.where(reached, times, jnp.nan)
    a, b, c = (jnp.where(reached[:, None, None], x, jnp.nan) for x in states.layers)
    states = State(a, b, c, states.strength)
    left = _time_left(setting, states, times)
    lost = jnp.zeros_like(times)
    if setting.reduction is not None:
        lost = jnp.sqrt(jax.vmap(truncation)(states))
        status = jnp.where(reached & (lost > rtol), PointStatus.TRUNCATED, status)
    scale = setting.scale
    blow_up = setting.blow_up
    scaled = (x / scale for x in (blow_up.time, blow_up.lower, blow_up.upper, blow_up.error))
    blow_up = eqx.tree_at(lambda b: (b.time, b.lower, b.upper, b.error), blow_up, tuple(scaled))
    reduction = setting.reduction
    if reduction is not None:
        reduction = eqx.tree_at(lambda r: r.state, reduction, reduction.state.scale(scale))
    return Trajectory(
        times / scale,
        left / scale,
        status,
        _drift(setting.small, states),
        lost,
        blow_up,
        states.scale(scale),
        reduction,
        state,
        scale,
        rtol,
    )


def _time_left(setting: Setting, states: State, times: Array) -> Float[Array, " num"]:
    """$T^* - t$: the difference, or where that would cancel, what the states themselves tell."""
    total = setting.blow_up.time
    lower, upper = jax.vmap(bracket)(states)
    difference = jnp.clip(total - times, lower, upper)
    # The closed form is exact to two orders more than the bracket is wide, if no other component
    # is left out.
    uncertain = upper - lower
    if setting.small.rank == 1:
        uncertain = uncertain * (difference / total) ** 2
    close = uncertain < 4 * jnp.finfo(times.dtype).eps * total
    return jnp.where(close, jnp.clip(jax.vmap(time_left)(states), lower, upper), difference)


def _drift(small: State, states: State) -> Float[Array, " num"]:
    start = conserved(small)

    def at(state: State) -> Array:
        now = conserved(state)
        moved = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), now, start)
        return jnp.max(jnp.stack(jax.tree.leaves(moved))) / jnp.sum(squared_norms(state))

    return lax.map(at, states)


def trajectory(
    state: State,
    *,
    times: ArrayLike | Sequence[float] | None = None,
    fractions: ArrayLike | Sequence[float] | None = None,
    energies: ArrayLike | Sequence[float] | None = None,
    num: int | None = None,
    closeness: float | Float[Array, ""] | None = None,
    method: AbstractMethod | None = None,
    rtol: float | Float[Array, ""] | None = None,
) -> Trajectory:
    r"""States of the effective dynamics along the way to the blow-up.

    $$a_i' = \lambda_i b c_i, \quad b' = \textstyle\sum_i \lambda_i a_i c_i^T, \quad
      c_i' = \lambda_i b^T a_i$$

    **Arguments:** `state`, one `State` of any rank, and what to save, one of

    - `times`: in units of the effective model, from 0 on, in any order, shape `(num,)`;
    - `fractions`: times over $T^*$, in [0, 1);
    - `energies`: values of $E$, which never falls, from that of the state on;
    - `num`: so many points (100 unless told otherwise) evenly in desingularised time
      $ds = \max|\lambda_i|\,\|\theta\|\,dt$, which close to the blow-up is evenly in $\log(T^*-t)$,
      from 0 until $(T^*-t)/T^*$ falls to `closeness` (1e-3 unless told otherwise). The last point
      lies there or up to one solver step closer.

    Further `method`, `Reduced` (default: wider states are reduced to 12 directions for each
    component and 12 more) or `Direct`, with their solver; `rtol`, relative accuracy of the states
    and of $T^*$, by default 1e-12 for float64 and 1e-5 for float32: close to $T^*$ an error in time
    grows like $T^*/(T^*-t)$ in the states.

    **Returns:** a `Trajectory`.

    **Raises:** `ValueError` for a batch of states, for anything but one choice of points, and for
    points that cannot be reached. Under `jax.vmap` or `jax.jit` nothing is known beforehand:
    `Trajectory.status` tells, and the states there are NaN.
    """
    method = check_method(method, state, "trajectory")
    rtol = resolve_trajectory_rtol(rtol, state.dtype)
    asked = {"times": times, "fractions": fractions, "energies": energies}
    given = [name for name, value in asked.items() if value is not None]
    if len(given) + (num is not None) > 1:
        raise ValueError(
            "Give one of `times`, `fractions`, `energies` and `num`, but got "
            f"{' and '.join([*given, *(['num'] if num is not None else [])])}."
        )
    if given:
        if closeness is not None:
            raise ValueError(f"Argument `closeness` goes with `num`, not `{given[0]}`.")
        kind = given[0]
        values = jnp.asarray(asked[kind], state.dtype)
        if values.ndim != 1 or values.size == 0:
            raise ValueError(
                f"Argument `{kind}` must be a vector of at least one number, but has shape "
                f"{values.shape}."
            )
    else:
        kind, num = "even", 100 if num is None else check_num(num, 2)
        closeness = 1e-3 if closeness is None else closeness
        check_closeness(closeness)
        values = jnp.full(num, closeness, state.dtype)
    result = solve(state, kind, values, method, rtol)
    if not isinstance(result.status, Tracer):
        _raise_for(result, kind, values)
    return result


def check_num(num: int, least: int) -> int:
    """A number of points; `ValueError` unless it is whole and at least `least`."""
    if not isinstance(num, int | np.integer) or num < least:
        raise ValueError(f"Argument `num` must be a whole number from {least} on, but is {num}.")
    return int(num)


def check_closeness(closeness: float | Array) -> None:
    """Raise `ValueError` unless a distance from the blow-up lies between 0 and 1."""
    if not isinstance(closeness, Tracer) and not 0 < float(closeness) < 1:
        raise ValueError(f"Argument `closeness` must lie between 0 and 1, but is {closeness}.")


_MESSAGES = {
    PointStatus.BEYOND_BLOW_UP: "lies at or beyond the blow-up time {time:.10g}",
    PointStatus.BEFORE_START: "lies before the start of the flow",
    PointStatus.NEVER_REACHED: "is never reached: the flow comes to rest",
    PointStatus.NOT_CONVERGED: "was not reached within the solver's steps",
    PointStatus.INVALID_INPUT: "is not a number, or the state is not finite",
}


def _raise_for(result: Trajectory, kind: str, values: Array) -> None:
    for code, message in _MESSAGES.items():
        where = jnp.flatnonzero(result.status == code)
        if where.size:
            text = message.format(time=float(result.blow_up.time))
            if kind == "even":
                raise ValueError(f"The end of the trajectory {text}.")
            index = int(where[0])
            raise ValueError(f"Argument `{kind}`[{index}] = {float(values[index]):.10g} {text}.")
