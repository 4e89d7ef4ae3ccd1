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
from ..blowup import Layerwise, speed_of, split_terms

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
    dense: diffrax.Solution


def follow(
    state: State,
    clock: Clock,
    start: Float[Array, ""],
    stops: Float[Array, " num"],
    solver: diffrax.AbstractSolver,
    tolerance: Float[Array, ""],
    max_steps: int,
    *,
    dense: bool = False,
    field: Callable[[State], State] = vector_field,
) -> Followed:
    """Follow one state of unit scale from `start` through the rising `stops`.

    `field` is the right-hand side, which only a test of the theory would replace.
    """

    def moving(_: Any, point: Any, strength: Array) -> Any:
        (a, b, c), _ = point
        current = State(a, b, c, strength)
        slope = field(current)
        rate = clock(current, slope)
        return jax.tree.map(lambda x: rate * x, slope.layers), rate

    rate = clock(state, field(state))
    first = 1e-3 * speed_of(state) / rate
    smallest = jnp.min(jnp.stack([jnp.sqrt(jnp.mean(x**2)) for x in state.layers]))
    solution = diffrax.diffeqsolve(
        split_terms(diffrax.ODETerm(moving), solver),
        solver,
        t0=start,
        t1=stops[-1],
        dt0=first,
        y0=(state.layers, jnp.zeros((), state.dtype)),
        args=state.strength,
        stepsize_controller=Layerwise(rtol=tolerance, atol=tolerance * smallest),
        saveat=diffrax.SaveAt(ts=stops, dense=dense),
        max_steps=max_steps,
        throw=False,
    )
    assert solution.ys is not None
    (a, b, c), times = solution.ys
    strength = jnp.broadcast_to(state.strength, (stops.size, *state.strength.shape))
    reached = solution.result == diffrax.RESULTS.successful
    return Followed(State(a, b, c, strength), times, reached, solution)
