"""`trajectory`: what is asked for, the flow to it, and what became of each point."""

import dataclasses
from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from .._energy import conserved, energy, squared_norms
from .._reduction import Reduction, reduce, truncation
from .._state import State
from ..blowup import (
    AbstractMethod,
    BlowUp,
    Integrator,
    Status,
    blowup_time,
    integration,
    resolve_rtol,
    tolerance_floor,
)
from ..bounds import bracket
from ..flow import (
    SAFETY,
    Clock,
    EnergyClock,
    Followed,
    desingularised_time,
    follow,
    physical_time,
    run_to_distance,
    time_left,
)
from ._result import Trajectory
from ._status import PointStatus


class Start(eqx.Module):
    """What is followed, at unit scale: the state itself, or what it is reduced to."""

    small: State
    scale: Float[Array, ""]
    finite: Bool[Array, ""]
    blow_up: BlowUp  # of the unit state
    rtol: Float[Array, ""]
    truncated: bool = eqx.field(static=True)
    method: AbstractMethod

    @property
    def integrator(self) -> Integrator:
        """What it is followed with."""
        integrator = self.method.integrator
        assert integrator is not None
        return integrator

    @property
    def tolerance(self) -> Float[Array, ""]:
        """The solver's."""
        return jnp.maximum(SAFETY * self.rtol, 20 * jnp.finfo(self.small.dtype).eps)

    def follow(
        self, clock: Clock, begin: Float[Array, ""], stops: Float[Array, " num"]
    ) -> Followed:
        """The flow from `begin` through the rising `stops`."""
        solver, max_steps = self.integrator
        return follow(self.small, clock, begin, stops, solver, self.tolerance, max_steps)


class Setting(eqx.Module):
    """One state of any width at unit scale, its reduction, and the start of its flow.

    The blow-up time and what follows the start are programs of their own: states of all widths
    that are reduced to the same share them.
    """

    unit: State
    reduction: Reduction | None
    start: Start

    @classmethod
    def of(cls, state: State, method: AbstractMethod, rtol: Float[Array, ""]) -> "Setting":
        unit, scale, finite, small, reduction = _prepare(state, method)
        # Points are told from the blow-up by the time left, so T* should be finer than they are.
        finest = jnp.maximum(tolerance_floor(state.dtype), 0.1 * rtol).astype(state.dtype)
        blow_up = blowup_time(unit, rtol=finest)
        # What falls short of that may still be as fine as they are.
        enough = (blow_up.status == Status.NOT_CONVERGED) & (blow_up.error <= rtol * blow_up.time)
        status = jnp.where(enough, Status.CONVERGED, blow_up.status)
        blow_up = eqx.tree_at(lambda b: b.status, blow_up, status)
        start = Start(small, scale, finite, blow_up, rtol, reduction is not None, method)
        return cls(unit, reduction, start)


@eqx.filter_jit
def _prepare(
    state: State, method: AbstractMethod
) -> tuple[State, Array, Array, State, Reduction | None]:
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state)]))
    unit, scale = state.unit_scale()
    # What cannot be followed is replaced by a state that can, and its results by NaN.
    small = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 1), unit)
    reduction = None
    if method.truncates(unit):
        reduction = reduce(small, method.reduced_dim(unit.rank) or 0)
        small = reduction.state
    return unit, scale, finite, small, reduction


def check_method(method: AbstractMethod | None, state: State, name: str) -> AbstractMethod:
    """The method to follow a flow with; `ValueError` where it does not apply."""
    if state.batch_shape:
        raise ValueError(
            f"`{name}` takes one state, but got a batch of shape {state.batch_shape}: use "
            "`jax.vmap`."
        )
    method = integration.Reduced() if method is None else method
    if method.integrator is None:
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


@eqx.filter_jit
def course_to(start: Start, closeness: Float[Array, ""]) -> Float[Array, ""]:
    r"""The desingularised time to where $(T^* - t)/T^*$ is `closeness`; 0 if it is not reached."""
    distance = closeness * start.blow_up.time
    solver, max_steps = start.integrator
    end = run_to_distance(start.small, solver, distance, start.tolerance, max_steps)
    return jnp.where(end.reached, end.course, 0)


class Stops(eqx.Module):
    """Values of a clock to follow the flow to, and the status of those that cannot be reached."""

    clock: Clock
    begin: Float[Array, ""]
    values: Float[Array, " num"]
    status: Int[Array, " num"]


def _mark(status: Array, where: Array, code: PointStatus) -> Array:
    """The first thing that is wrong with a point is what its status tells."""
    return jnp.where(where & (status == PointStatus.REACHED), code, status)


@eqx.filter_jit
def stops_for(start: Start, kind: str, values: Float[Array, " num"]) -> Stops:
    """What `values` of a kind stand for; those of `even` points are all the course to the end."""
    reached = jnp.full(values.shape, PointStatus.REACHED, jnp.int32)
    status = _mark(reached, jnp.isnan(values) | ~start.finite, PointStatus.INVALID_INPUT)
    if kind == "even":
        stops = _even_stops(start, values, status)
    elif kind == "energies":
        stops = _energy_stops(start, values, status)
    else:
        stops = _time_stops(start, values, status, kind == "fractions")
    values = jnp.where(stops.status == PointStatus.REACHED, stops.values, stops.begin)
    return eqx.tree_at(lambda s: s.values, stops, values)


def _even_stops(start: Start, values: Array, status: Array) -> Stops:
    end, blow_up = values[-1], start.blow_up
    status = _mark(status, blow_up.status == Status.NO_BLOW_UP, PointStatus.NEVER_REACHED)
    known = blow_up.is_known() & (end > 0)
    status = _mark(status, ~known, PointStatus.NOT_CONVERGED)
    begin = jnp.zeros((), values.dtype)
    return Stops(desingularised_time, begin, jnp.linspace(0, end, values.size), status)


def _energy_stops(start: Start, values: Array, status: Array) -> Stops:
    small, rests = start.small, start.blow_up.status == Status.NO_BLOW_UP
    values = values / start.scale**3
    # The energy of the state itself may come with another rounding.
    size = 16 * jnp.finfo(values.dtype).eps * jnp.prod(squared_norms(small)) ** 0.5
    lowest = energy(small) - size * jnp.max(jnp.abs(small.strength))
    status = _mark(status, values < lowest, PointStatus.BEFORE_START)
    # Where the flow comes to rest its energy stays negative.
    status = _mark(status, rests & (values >= 0), PointStatus.NEVER_REACHED)
    status = _mark(status, jnp.isinf(values), PointStatus.NEVER_REACHED)
    clock = EnergyClock(jnp.sqrt(jnp.sum(squared_norms(small)) / 3) ** 3)
    begin = jnp.arcsinh(energy(small) / clock.unit)
    return Stops(clock, begin, jnp.maximum(jnp.arcsinh(values / clock.unit), begin), status)


def _time_stops(start: Start, values: Array, status: Array, relative: bool) -> Stops:
    blow_up = start.blow_up
    rests = blow_up.status == Status.NO_BLOW_UP
    unknown = ~(blow_up.is_known() | rests) & start.finite
    status = _mark(status, unknown, PointStatus.NOT_CONVERGED)
    if relative:
        rests = blow_up.status == Status.NO_BLOW_UP
        status = _mark(status, rests, PointStatus.NEVER_REACHED)
        status = _mark(status, values >= 1, PointStatus.BEYOND_BLOW_UP)
        values = values * blow_up.time
    else:
        values = values * start.scale
        status = _mark(status, values >= blow_up.time, PointStatus.BEYOND_BLOW_UP)
    status = _mark(status, values < 0, PointStatus.BEFORE_START)
    return Stops(physical_time, jnp.zeros((), values.dtype), values, status)


@eqx.filter_jit
def solve(start: Start, stops: Stops) -> Trajectory:
    """The trajectory of the state that is followed, which may stand for a wider one."""
    order = jnp.argsort(stops.values)
    followed = start.follow(stops.clock, stops.begin, stops.values[order])
    back = jnp.argsort(order)
    states, times = jax.tree.map(lambda x: x[back], (followed.states, followed.times))
    # Where the solver gives up, the points before that are none the worse.
    status = _mark(stops.status, ~jnp.isfinite(times), PointStatus.NOT_CONVERGED)
    return _collect(start, states, times, status)


def _collect(start: Start, states: State, times: Array, status: Array) -> Trajectory:
    reached = status == PointStatus.REACHED
    times = jnp.where(reached, times, jnp.nan)
    a, b, c = (jnp.where(reached[:, None, None], x, jnp.nan) for x in states.layers)
    states = State(a, b, c, states.strength)
    left = _time_left(start, states, times)
    lost = jnp.zeros_like(times)
    if start.truncated:
        lost = jnp.sqrt(jax.vmap(truncation)(states))
        status = jnp.where(reached & (lost > start.rtol), PointStatus.TRUNCATED, status)
    scale, blow_up = start.scale, start.blow_up
    scaled = (x / scale for x in (blow_up.time, blow_up.lower, blow_up.upper, blow_up.error))
    blow_up = eqx.tree_at(lambda b: (b.time, b.lower, b.upper, b.error), blow_up, tuple(scaled))
    return Trajectory(
        times / scale,
        left / scale,
        status,
        _drift(start.small, states),
        lost,
        blow_up,
        states.scale(scale),
        None,
        start.small.scale(scale),
        scale,
        start.rtol,
    )


def _time_left(start: Start, states: State, times: Array) -> Float[Array, " num"]:
    """$T^* - t$: the difference, or where that would cancel, what the states themselves tell."""
    total = start.blow_up.time
    lower, upper = jax.vmap(bracket)(states)
    difference = jnp.clip(total - times, lower, upper)
    # The closed form is exact to two orders more than the bracket is wide, if no other component
    # is left out.
    uncertain = upper - lower
    if start.small.rank == 1:
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


def _of_full_state(along: Trajectory, setting: Setting, state: State) -> Trajectory:
    """The trajectory of the full state from that of the one that was followed."""
    reduction = setting.reduction
    if reduction is not None:
        reduction = Reduction(along.initial, reduction.left, reduction.right)
    return dataclasses.replace(along, reduction=reduction, initial=state)


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
    setting = Setting.of(state, method, rtol)
    start = setting.start
    if kind == "even":
        values = jnp.broadcast_to(course_to(start, values[0]), values.shape)
    result = _of_full_state(solve(start, stops_for(start, kind, values)), setting, state)
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
