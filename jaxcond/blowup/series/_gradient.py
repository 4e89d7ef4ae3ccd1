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
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..._state import State
from ._expansion import Problem, advance, expand
from ._follow import Plan
from ._taylor import entire_function, flow_coefficients, flow_cotangents, polynomial


class _Record(eqx.Module):
    """Every instant at which the flow was expanded, up to the one that reaches the zero."""

    problem: Problem
    elapsed: Float[Array, " lanes"]
    a: Float[Array, "expansions k lanes"]
    velocity: Float[Array, "expansions k lanes"]
    step: Float[Array, "expansions lanes"]
    zero: Float[Array, " lanes"]
    settled: Bool[Array, " lanes"]
    num_steps: Int[Array, " lanes"]
    turn: Int[Array, ""]


def series_gradient(
    states: State, plan: Plan, max_expansions: int, rtol: Float[Array, ""]
) -> State:
    """Derivatives of the blow-up times with respect to the layers, lanes on the last axis.

    **Arguments:** `max_expansions`, for how many expansions there is room.

    NaN where no expansion reaches the blow-up.
    """

    def problem_of(states: State) -> tuple[tuple[Array, Array, Array], Problem]:
        problem = Problem.of(states, jnp.zeros(states.b.shape[-1], bool), plan.width)
        return (problem.matrix, problem.a, problem.velocity), problem

    _, to_states, problem = jax.vjp(problem_of, states, has_aux=True)
    record = _record(problem, plan, max_expansions, rtol)

    def back(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        index, of_matrix, of_a, of_velocity = carry
        start = eqx.tree_at(
            lambda p: (p.a, p.velocity), problem, (record.a[index], record.velocity[index])
        )
        last = index == record.num_steps
        parts = _back_through(start, plan, record.step[index], record.zero, last, of_a, of_velocity)
        taken = index <= record.num_steps
        return (
            index - 1,
            jnp.where(taken[None, None], of_matrix + parts[0], of_matrix),
            jnp.where(taken[None], parts[1], of_a),
            jnp.where(taken[None], parts[2], of_velocity),
        )

    carry = (
        jnp.max(record.num_steps),
        jnp.zeros_like(problem.matrix),
        jnp.zeros_like(problem.a),
        jnp.zeros_like(problem.a),
    )
    _, of_matrix, of_a, of_velocity = lax.while_loop(lambda carry: carry[0] >= 0, back, carry)
    unknown = jnp.where(record.settled, 1, jnp.nan)
    unit = problem.unit * unknown
    cotangents = (of_matrix * unit[None, None], of_a * unit[None], of_velocity * unit[None])
    (gradient,) = to_states(cotangents)
    return gradient


def _record(problem: Problem, plan: Plan, max_expansions: int, rtol: Float[Array, ""]) -> _Record:
    """Follow the flow until an expansion reaches the zero, and keep where it was expanded."""

    def turn(record: _Record) -> _Record:
        expansion = expand(record.problem, plan.order, plan.size)
        # An only expansion has to do, if it is as exact as the time was asked for.
        enough = expansion.suffices(rtol) & (not plan.again)
        settled = record.settled | enough | expansion.reaches(record.elapsed, rtol)
        a, velocity, step = advance(expansion.coefficients, plan.order)
        stays = settled | ~jnp.isfinite(step)
        moved = eqx.tree_at(
            lambda p: (p.a, p.velocity),
            record.problem,
            (
                jnp.where(stays[None], record.problem.a, a),
                jnp.where(stays[None], record.problem.velocity, velocity),
            ),
        )
        return _Record(
            moved,
            record.elapsed + jnp.where(stays, 0, step),
            record.a.at[record.turn].set(record.problem.a),
            record.velocity.at[record.turn].set(record.problem.velocity),
            record.step.at[record.turn].set(step),
            jnp.where(record.settled, record.zero, expansion.zero),
            settled,
            record.num_steps + jnp.where(stays, 0, 1),
            record.turn + 1,
        )

    lanes = problem.a.shape[-1]
    store = jnp.zeros((max_expansions, *problem.a.shape), problem.a.dtype)
    start = _Record(
        problem,
        jnp.zeros(lanes, problem.a.dtype),
        store,
        store,
        store[:, 0],
        jnp.ones(lanes, problem.a.dtype),
        jnp.zeros(lanes, bool),
        jnp.zeros(lanes, jnp.int32),
        jnp.zeros((), jnp.int32),
    )
    record = lax.while_loop(
        lambda record: (record.turn < max_expansions) & ~jnp.all(record.settled), turn, start
    )
    # How the zero was found has no derivative: see `_of_norms`.
    return eqx.tree_at(lambda r: r.zero, record, lax.stop_gradient(record.zero))


def _back_through(
    problem: Problem,
    plan: Plan,
    step: Array,
    zero: Array,
    last: Bool[Array, " lanes"],
    of_a: Array,
    of_velocity: Array,
) -> tuple[Array, Array, Array]:
    """Cotangents at the start of an expansion.

    From those of $a$ and $a'$ at the end of its step, or, for the last expansion, from its zero.
    """
    coefficients, norms, _ = flow_coefficients(
        problem.matrix, problem.a, problem.velocity, plan.width, plan.order, plan.size
    )
    powers = jnp.arange(plan.size + 1, dtype=step.dtype)[:, None]
    values = step[None] ** powers
    slopes = powers * step[None] ** jnp.maximum(powers - 1, 0)
    of_coefficients = values[:, None] * of_a[None] + slopes[:, None] * of_velocity[None]
    of_coefficients = jnp.where(last[None, None], 0, of_coefficients)
    tau, _ = entire_function(norms, plan.order)
    of_norms = jnp.where(last[None], _of_norms(tau, zero, plan.order), 0)
    return flow_cotangents(problem.matrix, coefficients, norms, of_coefficients, of_norms)


def _of_norms(
    tau: Float[Array, "powers lanes"], zero: Float[Array, " lanes"], order: Int[Array, ""]
) -> Float[Array, "squares lanes"]:
    r"""Derivatives of the zero of $\tau$ by the coefficients of $N$."""
    # One step of Newton's method passes on the derivatives of the zero, whatever found it.
    value, slope = polynomial(tau, zero, 1)
    zero = zero - value / slope
    _, slope = polynomial(tau, zero, 1)
    powers = jnp.arange(tau.shape[0], dtype=tau.dtype)[:, None]
    rising = zero[None] ** powers
    partial_sums = jnp.cumsum(tau * rising, axis=0)
    m = jnp.arange(tau.shape[0] - 2)
    end = order - 2 - m
    sums = jnp.where(end[:, None] >= 0, partial_sums[jnp.maximum(end, 0)], 0)
    real = powers[:-2]
    return rising[2:] / ((real + 1) * (real + 2)) * sums / slope[None]
