r"""The gradient ascent of a homogeneous energy, up to its blow-up time.

With $\theta = ru$, $\|u\|=1$, and the desingularised time $d\tau = r^{p-2}\,dt$,

$$u' = \nabla E_p(u) - pE_p(u)\,u, \qquad (\log r)' = pE_p(u), \qquad t' = r^{-(p-2)},$$

which does not blow up: as $t \to T^*$, $\log r$ grows at a constant rate in $\tau$, and the time
left is $r^{-(p-2)}/((p-2)\,pE_p(u))$.

Source: Euler's identity $\langle\theta,\nabla E_p\rangle = pE_p$; derived here.
"""

import math

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from ._order import LeadingOrder, inner, split
from ._own_flow import integrate, smallest_array, usual_rtol

# The formula for the time left is used once it is at most this share of the blow-up time.
_TIME_LEFT = 1e-6
_MAX_STEPS = 2048

# Direction u, its energy, log(r/r(0)), and time.
State = tuple[PyTree, Array, Array, Array]


class Ascent(eqx.Module):
    """The point at which the ascent reaches an energy: parameters, time, and blow-up time.

    `grown` is the logarithm of the norm of the gradient divided by its initial value.
    """

    floats: PyTree
    time: Float[Array, ""]
    blowup_time: Float[Array, ""]
    grown: Float[Array, ""]
    mismatch: Float[Array, ""]
    reached: Bool[Array, ""]
    num_steps: Int[Array, ""]


@eqx.filter_jit
def ascend(order: LeadingOrder, params: PyTree, energy: Float[Array, ""]) -> Ascent:
    """Follow the gradient ascent of the leading order to an energy, and on to the blow-up."""
    loss, floats = split(order.loss_fn, params)
    of, _ = split(order.energy, params)
    p = order.degree
    size = jnp.sqrt(inner(floats, floats))
    unit = jax.tree.map(lambda x: x / size.astype(x.dtype), floats)
    tiny = jnp.finfo(size.dtype).tiny
    # The energy on the sphere can be far from one, so times are in units of 1/pace.
    value_and_slope = jax.jit(jax.value_and_grad(of))
    first, slope = value_and_slope(unit)
    pace = jnp.sqrt(inner(slope, slope))

    def field(y: State) -> State:
        u, _, log_r, _ = y
        value, slope = value_and_slope(u)
        # Projected onto the sphere, so that the solver's drift across it does not add up.
        radial = inner(slope, u) / inner(u, u)
        moving = jax.tree.map(lambda g, x: (g - radial * x) / pace, slope, u)
        return moving, pace * inner(moving, moving), p * value / pace, jnp.exp(-(p - 2) * log_r)

    # The energy on the sphere is part of the state, so that reading it costs nothing.
    def log_energy(y: State) -> Array:
        return p * (y[2] + jnp.log(size)) + jnp.log(jnp.maximum(y[1], tiny))

    def reach(start: State, log_level: Array) -> diffrax.Solution:
        return integrate(
            field,
            lambda y: log_energy(y) - log_level,
            start,
            (1e-2, 1e9),
            (usual_rtol(size.dtype), smallest_array(unit)),
            _MAX_STEPS,
        )

    zero = jnp.zeros((), size.dtype)
    log_level = jnp.log(energy).astype(size.dtype)
    # Beyond that energy, the time left falls like its power -(p - 2)/p.
    further = -math.log(_TIME_LEFT) * p / (p - 2)

    def leg(start: tuple, log_level: Array) -> tuple[tuple, tuple]:
        solution = reach(start, log_level)
        here = jax.tree.map(lambda x: x[0], solution.ys)
        reached = solution.result == diffrax.RESULTS.event_occurred
        return here, (here, reached, solution.stats["num_steps"])

    levels = jnp.stack([log_level, log_level + further])
    _, (visited, reached, steps) = jax.lax.scan(leg, (unit, first, zero, zero), levels)
    u, _, log_r, time = jax.tree.map(lambda x: x[0], visited)
    _, last_energy, last_r, last = jax.tree.map(lambda x: x[1], visited)
    left = jnp.exp(-(p - 2) * last_r) * pace / ((p - 2) * p * last_energy)
    unit_of_time = size ** -(p - 2) / pace
    here = jax.tree.map(lambda x: x * (size * jnp.exp(log_r)).astype(x.dtype), u)
    slope = value_and_slope(here)[1]
    rest = jax.tree.map(jnp.add, slope, jax.grad(loss)(here))
    at_start = pace * size ** (p - 1)
    sizes = [*(jnp.sqrt(inner(x, x)) for x in (slope, rest)), at_start]
    return Ascent(
        floats=here,
        time=time * unit_of_time,
        blowup_time=jnp.where(reached[1], (last + left) * unit_of_time, jnp.nan),
        grown=jnp.log(sizes[0] / sizes[2]),
        mismatch=sizes[1] / sizes[0],
        reached=reached[0],
        num_steps=jnp.sum(steps),
    )
