"""From expansion to expansion until one reaches the blow-up, with probes of the condition."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..._state import State
from .._method import Raw
from ._expansion import PACE, Problem, advance, bracket_before, find_zero, rough_lower_bound

# The condition of T* is measured by the effect of noise of this size, in units of rounding: not far
# above rounding itself, since close to a state that never blows up T* is far from linear.
_NOISE = 64
# What rounding does, as a share of what that noise does.
_ROUNDING_SHARE = 1 / 8
# The pace of the state itself, and of its copies.
_PACES = (PACE, 1.0, 0.7)


class Plan(eqx.Module):
    """What a program is told as numbers, and the little that its structure depends on.

    - `order`: of the polynomials; `width`: of the states before they were filled up.
    - `size`: of the buffers of coefficients, at least `order`.
    - `again`: whether the flow is expanded again, and its condition measured by probes.
    """

    order: Int[Array, ""]
    width: Int[Array, ""]
    max_expansions: Int[Array, ""]
    size: int = eqx.field(static=True)
    again: bool = eqx.field(static=True)


def solve_lanes(
    states: State, truncated: Bool[Array, " lanes"], rtol: Float[Array, "..."], plan: Plan
) -> Raw:
    """Blow-up times of states of unit scale, with the lanes on the last axis."""
    if not plan.again:
        problem = Problem.of(states, truncated, plan.width)
        expansion = find_zero(problem.expand(plan.order, plan.size), problem, plan.order)
        lower, upper = bracket_before(expansion, problem, rtol)
        narrow = jnp.abs(upper - lower) <= rtol * expansion.zero
        num_steps = jnp.ones(lower.shape, jnp.int32)
        converged = narrow & expansion.suffices(rtol)
        raw = Raw(expansion.zero, lower, upper, expansion.error, converged, num_steps)
        return problem.in_units(raw)
    copies, lanes = len(_PACES), states.b.shape[-1]
    problem = Problem.of(_with_probes(states, plan.width), jnp.tile(truncated, copies), plan.width)
    # The copies differ in where they expand again, too, which shows the errors of that.
    pace = jnp.repeat(jnp.array(_PACES, states.dtype), lanes)
    tolerances = jnp.tile(jnp.broadcast_to(rtol, lanes), copies)
    raw = problem.in_units(_follow(problem, plan, tolerances, pace))
    parts = jax.tree.map(lambda x: x.reshape(copies, lanes), raw)
    raw, others = jax.tree.map(lambda x: x[0], parts), parts.time[1:]
    # A copy that does not blow up, or not in time, says that nothing is known.
    condition = _ROUNDING_SHARE * jnp.max(jnp.abs(others - raw.time[None]), axis=0)
    return eqx.tree_at(lambda r: r.error, raw, raw.error + condition)


class _Course(eqx.Module):
    """Where the flow has been followed to."""

    problem: Problem
    elapsed: Float[Array, " lanes"]
    best: Raw
    settled: Bool[Array, " lanes"]
    num_expansions: Array


def _follow(
    problem: Problem, plan: Plan, rtol: Float[Array, " lanes"], pace: Float[Array, " lanes"]
) -> Raw:
    """Expand again and again, part of the way each time, until an expansion reaches the zero."""

    def turn(course: _Course) -> _Course:
        problem, best, elapsed = course.problem, course.best, course.elapsed
        taylor = problem.expand(plan.order, plan.size)
        expansion = find_zero(taylor, problem, plan.order)
        lower, upper = bracket_before(expansion, problem, rtol)
        total = elapsed + expansion.zero
        # An expansion counts what it truncates itself. What those before it did shows in the share
        # of the last direction, as in `Reduced`.
        lost = jnp.where(problem.truncated, problem.last_share() * total, 0)
        # Narrow against the whole time, too.
        narrow = jnp.abs(upper - lower) <= rtol * total
        reached = narrow & expansion.reaches(elapsed, rtol) & ~course.settled
        # Until an expansion reaches the zero, what is certain is a lower bound.
        ahead = elapsed + rough_lower_bound(problem.norms(jnp.sum(problem.point[0] ** 2, 0)))
        ahead = jnp.where(course.settled, best.lower, ahead)
        best = Raw(
            jnp.where(reached, total, best.time),
            jnp.where(reached, elapsed + lower, ahead),
            jnp.where(reached, elapsed + upper, best.upper),
            jnp.where(reached, expansion.error + lost, best.error),
            best.converged | (reached & (lost <= rtol * total)),
            best.num_steps + jnp.where(course.settled, 0, 1),
        )
        settled = course.settled | reached
        moved, step = advance(taylor.a, plan.order, pace)
        keep = settled | ~jnp.isfinite(step)
        point = jnp.where(keep[None, None], problem.point, moved)
        problem = eqx.tree_at(lambda p: p.point, problem, point)
        elapsed = elapsed + jnp.where(keep, 0, step)
        return _Course(problem, elapsed, best, settled, course.num_expansions + 1)

    lanes = problem.unit.shape[0]
    unknown = jnp.full(lanes, jnp.inf, problem.unit.dtype)
    best = Raw(
        unknown, unknown, unknown, unknown, jnp.zeros(lanes, bool), jnp.zeros(lanes, jnp.int32)
    )
    start = _Course(
        problem, jnp.zeros_like(unknown), best, jnp.zeros(lanes, bool), jnp.zeros((), jnp.int32)
    )
    course = lax.while_loop(
        lambda course: (course.num_expansions < plan.max_expansions) & ~jnp.all(course.settled),
        turn,
        start,
    )
    return course.best


def _signs(probe: int, layer: int, height: int, width: int) -> np.ndarray:
    """Signs that depend on their place alone, whatever the states are padded to.

    The native kernel makes the same.
    """
    i, j = np.indices((height, width), np.uint32)
    whole = np.array([probe * 0x9E3779B1 & 0xFFFFFFFF, layer * 0x85EBCA77 & 0xFFFFFFFF], np.uint32)
    h = i * np.uint32(0xC2B2AE3D) ^ j * np.uint32(0x27D4EB2F) ^ np.uint32(0x165667B1)
    h = h ^ whole[0] ^ whole[1]
    h = (h ^ h >> 15) * np.uint32(0x2C1B3C6D)
    h = (h ^ h >> 12) * np.uint32(0x297A2D39)
    return 1 - 2 * ((h ^ h >> 15) & 1).astype(np.int8)


def _with_probes(states: State, width: Int[Array, ""]) -> State:
    """The states followed by copies with noise of `_NOISE` units of rounding in every layer.

    The same signs for every lane, so that a sample's error does not depend on its batch; none in
    the units that pad the states.
    """
    k = states.b.shape[0]

    def copies(number: int, layer: Array) -> Array:
        height = layer.shape[0]
        entries = width * width if number == 1 else width
        mean_square = jnp.sum(layer**2, axis=(0, 1)) / entries.astype(layer.dtype)
        size = _NOISE * jnp.finfo(layer.dtype).eps * jnp.sqrt(mean_square)
        # No noise in the state itself, which comes first.
        signs = [np.zeros((height, k), np.int8)]
        signs += [_signs(probe, number, height, k) for probe in range(1, len(_PACES))]
        signs = np.stack(signs, axis=-1)[..., None].astype(layer.dtype)
        inside = np.indices((height, k)).max(0) if number == 1 else np.arange(k)[None]
        inside = jnp.expand_dims(jnp.asarray(inside) < width, (2, 3))
        noise = jnp.where(inside, signs, 0) * jnp.expand_dims(size, (0, 1, 2))
        return (layer[:, :, None] + noise).reshape(height, k, -1)

    layers = [copies(number, layer) for number, layer in enumerate(states.layers)]
    strength = jnp.tile(states.strength, len(_PACES))
    return eqx.tree_at(lambda s: (s.a, s.b, s.c, s.strength), states, (*layers, strength))
