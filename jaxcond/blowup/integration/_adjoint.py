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
from ._integrate import (
    SAFETY,
    Layerwise,
    desingularised,
    run_to_distance,
    speed_of,
    split_terms,
    time_left,
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
    stops = jnp.linspace(0, end.course, _NUM_ANCHORS + 1)
    smallest = jnp.min(jnp.stack([jnp.sqrt(jnp.mean(x**2)) for x in state.layers]))

    def follow(term: Any, start: Array, stop: Array, y: Any, saveat: diffrax.SaveAt) -> Any:
        solution = diffrax.diffeqsolve(
            split_terms(diffrax.ODETerm(term), solver),
            solver,
            t0=start,
            t1=stop,
            dt0=jnp.asarray(1e-3, state.dtype),
            y0=y,
            args=state.strength,
            stepsize_controller=Layerwise(rtol=tolerance, atol=tolerance * smallest),
            saveat=saveat,
            max_steps=max_steps,
            throw=False,
            adjoint=diffrax.ForwardMode(),
        )
        return solution.ys, solution.result == diffrax.RESULTS.successful

    def back(_: Array, pair: tuple[Any, State], strength: Array) -> tuple[Any, State]:
        (a, b, c), gradient = pair
        state = State(a, b, c, strength)
        speed = speed_of(state)
        field, pull = jax.vjp(vector_field, state)
        (pulled,) = pull(gradient)
        return jax.tree.map(
            lambda x: -speed * x, (field.layers, jax.tree.map(jnp.negative, pulled))
        )

    def step_back(carry: tuple[State, Array], anchor: Any) -> tuple[tuple[State, Array], None]:
        gradient, known = carry
        layers, length = anchor
        zero = jnp.zeros_like(length)
        pair, fine = follow(back, zero, length, (layers, gradient), diffrax.SaveAt(t1=True))
        gradient = jax.tree.map(lambda x: x[0], pair[1])
        return (gradient, known & fine), None

    start = (state.layers, jnp.zeros((), state.dtype))
    anchors, fine = follow(desingularised, stops[0], stops[-1], start, diffrax.SaveAt(ts=stops[1:]))
    layers, _ = anchors
    a, b, c = (x[-1] for x in layers)
    last = State(a, b, c, state.strength)
    gradient = _at_end(last)
    carry = (gradient, end.reached & fine)
    (gradient, known), _ = lax.scan(step_back, carry, (layers, jnp.diff(stops)), reverse=True)
    return jax.tree.map(lambda x: jnp.where(known, x, jnp.nan), gradient)


def _at_end(state: State) -> State:
    """The gradient close to the blow-up."""
    layers = state.layers
    fall = sum(jnp.vdot(x, y) for x, y in zip(layers, vector_field(state).layers, strict=True))
    lower, upper = bracket(state)
    left = jnp.clip(time_left(state), lower, upper)
    # A component's strength matters as much as its share of the energy.
    shares = jnp.sum(state.a * (state.c @ state.b.T), axis=-1) / energy(state)
    a, b, c = (-layer / fall for layer in layers)
    return State(a, b, c, -left * shares)
