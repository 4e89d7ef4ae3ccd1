r"""The gradient of the blow-up time at any rank, by the adjoint equation.

$p(t) = \nabla T^*(\theta(t))$ obeys $p' = -(D f)^T p$ with the vector field $f$, since $T^*$ falls
at the same rate along every solution. Close to the blow-up $\theta \approx \Phi/(T^*-t)$ with
$\nabla E(\Phi) = \Phi$, whichever components take part. There, as $D f = \nabla^2 E$ is symmetric,
$p$ is along $-\theta$, its length known from $p \cdot f = -1$; what that leaves out falls behind by
the square of the relative time left on the way back.

From there $\theta$ and $p$ are followed back together in desingularised time. Followed back alone,
$\theta$ would lose the digits that condensation has taken from its other directions, and so it
starts anew from the forward run at every anchor.
"""

from typing import Any

import diffrax
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from ..._energy import energy, vector_field
from ..._state import State
from ...bounds import bracket
from ...flow import (
    FIRST_STEP,
    SAFETY,
    desingularised,
    run_to_distance,
    smallest_size,
    solve,
    speed_of,
    time_left,
    visit,
)

# With 32 the derivatives of rank 3 keep the digits of the time.
_NUM_ANCHORS = 32


def adjoint_gradient(
    state: State,
    time: Float[Array, ""],
    solver: diffrax.AbstractSolver,
    max_steps: int,
    rtol: Float[Array, ""],
) -> State:
    """Derivatives of the blow-up time of one state of unit scale with respect to every field.

    `time` is that time. NaN where the solver does not reach the blow-up.
    """
    tolerance = jnp.maximum(SAFETY * rtol, 20 * jnp.finfo(state.dtype).eps)
    # Its square is what the terminal condition leaves out.
    distance = jnp.finfo(state.dtype).eps ** 0.4 * lax.stop_gradient(time)
    end = run_to_distance(lax.stop_gradient(state), solver, distance, tolerance, max_steps)
    options: dict[str, Any] = {
        "solver": solver,
        "tolerance": tolerance,
        "smallest": smallest_size(state.layers),
        "first": FIRST_STEP,
        "max_steps": max_steps,
        "adjoint": diffrax.ForwardMode(),
    }

    def back(_: Array, pair: tuple[Any, State], strength: Array) -> tuple[Any, State]:
        (a, b, c), gradient = pair
        state = State(a, b, c, strength)
        speed = speed_of(state)
        field, pull = jax.vjp(vector_field, state)
        (pulled,) = pull(gradient)
        return jax.tree.map(
            lambda x: -speed * x, (field.layers, jax.tree.map(jnp.negative, pulled))
        )

    def step_back(carry: tuple[State, Array], layers: Any) -> tuple[tuple[State, Array], None]:
        gradient, going = carry
        y = layers, gradient
        solution = solve(back, y, state.strength, until=length, **options)
        assert solution.ys is not None
        gradient = jax.tree.map(lambda x: x[0], solution.ys[1])
        return (gradient, going & (solution.result == diffrax.RESULTS.successful)), None

    length = end.course / _NUM_ANCHORS
    start = (state.layers, jnp.zeros((), state.dtype))
    lengths = jnp.full(_NUM_ANCHORS, length)
    anchors = visit(desingularised, start, state.strength, lengths, **options)
    layers, _ = anchors.values
    a, b, c = (x[-1] for x in layers)
    last = State(a, b, c, state.strength)
    gradient = near_blowup(last)
    carry = (gradient, end.reached & anchors.reached[-1])
    (gradient, reached), _ = lax.scan(step_back, carry, layers, reverse=True)
    return jax.tree.map(lambda x: jnp.where(reached, x, jnp.nan), gradient)


def near_blowup(state: State) -> State:
    """The gradient of the time left, close to the blow-up."""
    layers = state.layers
    fall = sum(jnp.vdot(x, y) for x, y in zip(layers, vector_field(state).layers, strict=True))
    lower, upper = bracket(state)
    left = jnp.clip(time_left(state), lower, upper)
    # A component's strength matters as much as its share of the energy.
    shares = jnp.sum(state.a * (state.c @ state.b.T), axis=-1) / energy(state)
    a, b, c = (-layer / fall for layer in layers)
    return State(a, b, c, -left * shares)
