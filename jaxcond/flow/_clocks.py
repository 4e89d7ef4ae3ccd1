r"""Following the flow by diffrax to chosen values of an independent variable.

Time itself, desingularised time, and the energy (which never falls) are one flow run by different
clocks: with the vector field $f$ and $v$ the independent variable,

$$\frac{d\theta}{dv} = \frac{dt}{dv} f(\theta), \qquad
\frac{dt}{dv} = 1, \quad \frac1{\|\theta\|}, \quad \frac{\sqrt{E^2 + E_0^2}}{\|f\|^2}
\ \text{ with } E = E_0 \sinh v .$$

What is asked for is then known before the integration starts, and is saved on the way.
"""

from collections.abc import Callable
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._energy import energy, squared_norms, vector_field
from .._state import State
from ._runs import FIRST_STEP, speed_of
from ._solve import smallest_size, solve, visit

Clock = Callable[[State, State], Array]


def physical_time(state: State, field: State) -> Float[Array, ""]:
    """Independent variable: the time itself."""
    del field
    return jnp.ones((), state.dtype)


def desingularised_time(state: State, field: State) -> Float[Array, ""]:
    r"""Independent variable: $s$ with $ds = \max|\lambda_i|\,\|\theta\|\,dt$, which has no end."""
    del field
    return speed_of(state)


class EnergyClock(eqx.Module):
    r"""Independent variable: $v = \mathrm{arsinh}(E/E_0)$."""

    unit: Float[Array, ""]

    def __call__(self, state: State, field: State) -> Float[Array, ""]:
        """The rate $dt/dv$."""
        slope = jnp.sum(squared_norms(field))
        return jnp.hypot(energy(state), self.unit) / slope


class Followed(eqx.Module):
    """States along the way, one for each stop, with the time at each."""

    states: State
    times: Float[Array, " num"]
    reached: Bool[Array, ""]


def _by_clock(clock: Clock, field: Callable[[State], State]) -> Callable[..., Any]:
    """The layers' and the time's change per unit of a clock."""

    def moving(_: Any, point: Any, strength: Array) -> Any:
        (a, b, c), _ = point
        current = State(a, b, c, strength)
        slope = field(current)
        rate = clock(current, slope)
        return jax.tree.map(lambda x: rate * x, slope.layers), rate

    return moving


def follow(
    state: State,
    clock: Clock,
    start: Float[Array, ""],
    stops: Float[Array, " num"],
    solver: diffrax.AbstractSolver,
    tolerance: Float[Array, ""],
    max_steps: int,
    *,
    field: Callable[[State], State] = vector_field,
) -> Followed:
    """Follow one state of unit scale from `start` through the rising `stops`.

    `field` is the right-hand side, which only a test of the theory would replace.
    """
    rate = clock(state, field(state))
    options: dict[str, Any] = {
        "solver": solver,
        "tolerance": tolerance,
        "smallest": smallest_size(state.layers),
        "first": FIRST_STEP * speed_of(state) / rate,
        "max_steps": max_steps,
    }
    y = state.layers, jnp.zeros((), state.dtype)
    lengths = jnp.diff(stops, prepend=start[None])
    visited = visit(_by_clock(clock, field), y, state.strength, lengths, **options)
    (a, b, c), times = visited.values
    strength = jnp.broadcast_to(state.strength, (stops.size, *state.strength.shape))
    return Followed(State(a, b, c, strength), times, visited.reached[-1])


def follow_densely(
    state: State,
    clock: Clock,
    length: Float[Array, ""],
    solver: diffrax.AbstractSolver,
    tolerance: Float[Array, ""],
    max_steps: int,
) -> tuple[Callable[[Array], tuple[State, Array]], Bool[Array, ""]]:
    """Follow one state of unit scale over a length of a clock.

    **Returns:** a function that gives the state and the time at any place in between, and whether
    the end was reached.
    """
    solution = solve(
        _by_clock(clock, vector_field),
        (state.layers, jnp.zeros((), state.dtype)),
        state.strength,
        solver=solver,
        tolerance=tolerance,
        smallest=smallest_size(state.layers),
        until=length,
        first=FIRST_STEP,
        max_steps=max_steps,
        dense=True,
    )

    def at(place: Array) -> tuple[State, Array]:
        (a, b, c), elapsed = solution.evaluate(place)
        return State(a, b, c, state.strength), elapsed

    return at, solution.result == diffrax.RESULTS.successful
