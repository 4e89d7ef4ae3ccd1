r"""The gradient of the blow-up time.

Along the flow $T^*(\theta(t)) = T^*(\theta(0)) - t$, so that the gradient at one instant gives it
at every earlier one. The last expansion reaches the zero of $\tau$; by the implicit function
theorem, with $\log\tau = -\iint N$ and $N = \|a\|^2$,

$$\frac{\partial T^*}{\partial N_m} = \frac{1}{(m+1)(m+2)\,\tau'(T^*)}
  \sum_{i=0}^{k-m-2} \tau_i\,(T^*)^{m+2+i}$$

for polynomials of degree $k$. From there the cotangents go back through the recurrence, and through
the earlier expansions, whose lengths are constants: $T^*$ does not depend on where the flow is
expanded again.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..._state import State
from ._expansion import Problem, advance, find_zero
from ._follow import Plan
from ._taylor import derivatives, evaluate, flow_cotangents, powers_of, summed


class _Record(eqx.Module):
    """Every instant at which the flow was expanded, up to the one that reaches the zero."""

    problem: Problem
    elapsed: Float[Array, " lanes"]
    points: Float[Array, "expansions 2 k lanes"]  # a and a'
    steps: Float[Array, "expansions lanes"]
    zero: Float[Array, " lanes"]
    settled: Bool[Array, " lanes"]
    num_steps: Int[Array, " lanes"]
    turn: Int[Array, ""]


def series_gradient(states: State, plan: Plan, room: int, rtol: Float[Array, ""]) -> State:
    """Derivatives of the blow-up times with respect to the layers, lanes on the last axis.

    **Arguments:** `room`, how many expansions can be kept, at least `plan.max_expansions`.

    NaN where no expansion reaches the blow-up.
    """

    def problem_of(states: State) -> tuple[tuple[Array, Array], Problem]:
        problem = Problem.of(states, jnp.zeros(states.b.shape[-1], bool), plan.width)
        return (problem.matrix, problem.point), problem

    _, to_states, problem = jax.vjp(problem_of, states, has_aux=True)
    record = _record(problem, plan, room, rtol)

    def back(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        index, of_matrix, of_point = carry
        start = eqx.tree_at(lambda p: p.point, problem, record.points[index])
        last = index == record.num_steps
        part, of_start = _back_through(
            start, plan, record.steps[index], record.zero, last, of_point
        )
        taken = index <= record.num_steps
        of_matrix = of_matrix + jnp.where(taken[None, None], part, 0)
        return index - 1, of_matrix, jnp.where(taken[None, None], of_start, of_point)

    carry = (
        jnp.max(record.num_steps),
        jnp.zeros_like(problem.matrix),
        jnp.zeros_like(problem.point),
    )
    _, of_matrix, of_point = lax.while_loop(lambda carry: carry[0] >= 0, back, carry)
    unit = jnp.expand_dims(problem.unit * jnp.where(record.settled, 1, jnp.nan), (0, 1))
    (gradient,) = to_states((of_matrix * unit, of_point * unit))
    return gradient


def _record(problem: Problem, plan: Plan, room: int, rtol: Float[Array, ""]) -> _Record:
    """Follow the flow until an expansion reaches the zero, and keep where it was expanded."""

    def turn(record: _Record) -> _Record:
        problem, settled = record.problem, record.settled
        taylor = problem.expand(plan.order, plan.size)
        # How the zero is found has no derivative: see `_of_norms`.
        expansion = find_zero(*lax.stop_gradient((taylor, problem)), plan.order)
        # An only expansion has to do, if it is as exact as the time was asked for.
        enough = expansion.suffices(rtol) & (not plan.again)
        zero = jnp.where(settled, record.zero, expansion.zero)
        settled = settled | enough | expansion.reaches(record.elapsed, rtol)
        moved, step = advance(taylor.a, plan.order)
        stays = settled | ~jnp.isfinite(step)
        moved = jnp.where(stays[None, None], problem.point, moved)
        return _Record(
            problem=eqx.tree_at(lambda p: p.point, problem, moved),
            elapsed=record.elapsed + jnp.where(stays, 0, step),
            points=lax.dynamic_update_index_in_dim(record.points, problem.point, record.turn, 0),
            steps=lax.dynamic_update_index_in_dim(record.steps, step, record.turn, 0),
            zero=zero,
            settled=settled,
            num_steps=record.num_steps + jnp.where(stays, 0, 1),
            turn=record.turn + 1,
        )

    dtype, (_, k, lanes) = problem.point.dtype, problem.point.shape
    start = _Record(
        problem=problem,
        elapsed=jnp.zeros(lanes, dtype),
        points=jnp.zeros((room, 2, k, lanes), dtype),
        steps=jnp.zeros((room, lanes), dtype),
        zero=jnp.ones(lanes, dtype),
        settled=jnp.zeros(lanes, bool),
        num_steps=jnp.zeros(lanes, jnp.int32),
        turn=jnp.zeros((), jnp.int32),
    )
    return lax.while_loop(
        lambda record: (record.turn < plan.max_expansions) & ~jnp.all(record.settled), turn, start
    )


def _back_through(
    problem: Problem,
    plan: Plan,
    step: Float[Array, " lanes"],
    zero: Float[Array, " lanes"],
    last: Bool[Array, " lanes"],
    of_end: Float[Array, "2 k lanes"],
) -> tuple[Float[Array, "k k lanes"], Float[Array, "2 k lanes"]]:
    """Cotangents of the matrix and of $(a, a')$ at the start of an expansion.

    From those of $(a, a')$ at the end of its step, or, for the last expansion, from its zero.
    """
    taylor = problem.expand(plan.order, plan.size)
    n = np.arange(plan.size + 1)[:, None]
    kept = (n <= plan.order) & ~last[None]
    values = powers_of(step, plan.size + 1)
    slopes = n.astype(step.dtype) * jnp.roll(values, 1, axis=0)
    values, slopes = (jnp.where(kept, x, 0)[:, None] for x in (values, slopes))
    of_norms = jnp.where(last[None], _of_norms(taylor.tau, zero, plan.order), 0)
    of_a = values * of_end[0][None] + slopes * of_end[1][None]
    return flow_cotangents(problem.matrix, taylor, of_a, of_norms)


def _of_norms(
    tau: Float[Array, "powers lanes"], zero: Float[Array, " lanes"], order: Int[Array, ""]
) -> Float[Array, "squares lanes"]:
    r"""Derivatives of the zero of $\tau$ by the coefficients of $N$."""
    value, slope, second = evaluate(derivatives(tau, 2), zero)
    # One step of Newton's method passes on the derivatives of the zero, whatever found it.
    step = value / slope
    zero, slope = zero - step, slope - second * step
    size = tau.shape[0] - 1
    rising = powers_of(zero, size + 1)
    m, i = np.arange(size - 1)[:, None], np.arange(size + 1)
    terms = jnp.where(tau == 0, 0, tau * rising)
    sums = summed(jnp.where((m + i <= order - 2)[..., None], terms[None], 0), 1)
    weights = (1 / ((m + 1) * (m + 2))).astype(tau.dtype)
    return jnp.where(m <= order - 2, weights * rising[2:] * sums / slope[None], 0)
