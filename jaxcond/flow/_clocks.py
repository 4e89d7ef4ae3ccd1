r"""The flow, integrated by diffrax to chosen values of its energy, which never falls.

With the vector field $f$ and $v$ the independent variable,

$$\frac{d\theta}{dv} = \frac{dt}{dv} f(\theta), \qquad
\frac{dt}{dv} = \frac{\sqrt{E^2 + E_0^2}}{\|f\|^2} \ \text{ with } E = E_0 \sinh v .$$

All unknowns are integrated, independently of reduction and series, so that both can be checked
against this.
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
from ._solve import smallest_size, visit

Clock = Callable[[State, State], Array]


class EnergyClock(eqx.Module):
    r"""Independent variable: $v = \mathrm{arsinh}(E/E_0)$."""

    unit: Float[Array, ""]

    def __call__(self, state: State, field: State) -> Float[Array, ""]:
        """The rate $dt/dv$."""
        slope = jnp.sum(squared_norms(field))
        return jnp.hypot(energy(state), self.unit) / slope


class Followed(eqx.Module):
    """The states at the stops, and their times."""

    states: State
    times: Float[Array, " num"]
    reached: Bool[Array, ""]


def _by_clock(clock: Clock, field: Callable[[State], State]) -> Callable[..., Any]:
    """The rates of the layers and of time with respect to a clock."""

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

    `field` is the right-hand side; only tests of the theory replace it.
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
