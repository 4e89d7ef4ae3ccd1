"""From expansion to expansion until one reaches the blow-up, with probes of the condition."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..._noise import NOISE, signs
from ..._state import State
from .._method import Raw
from ._expansion import PACE, Problem, advance, bracket_before, find_zero

# The pace of the state itself, and of its copies with noise.
_PACES = (PACE, 1.0, 0.7, 0.78)


class Plan(eqx.Module):
    """What a program is told as numbers, and the little that its structure depends on.

    - `order`: of the polynomials; `width`: of the states before they were filled up.
    - `size`: of the buffers of coefficients, at least `order`.
    - `reduced`: whether the states are reductions of wider ones.
    - `again`: whether the flow is expanded again, and its condition measured by probes.
    """

    order: Int[Array, ""]
    width: Int[Array, ""]
    max_expansions: Int[Array, ""]
    reduced: Bool[Array, ""]
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
        settled, none = narrow & expansion.suffices(rtol), jnp.zeros_like(lower)
        limited = jnp.zeros_like(settled)
        error = expansion.error
        raw = Raw(
            time=expansion.zero,
            lower=lower,
            upper=upper,
            error=error,
            spread=none,
            settled=settled,
            limited=limited,
            num_steps=num_steps,
        )
        return problem.in_units(raw)
    copies, lanes = len(_PACES), states.b.shape[-1]
    problem = Problem.of(_with_probes(states, plan.width), jnp.tile(truncated, copies), plan.width)
    # The copies differ in where they expand again, too, which shows the errors of that.
    pace = jnp.repeat(jnp.array(_PACES, states.dtype), lanes)
    tolerances = jnp.tile(jnp.broadcast_to(rtol, lanes), copies)
    raw = problem.in_units(_follow(problem, plan, tolerances, pace))
    parts = jax.tree.map(lambda x: x.reshape(copies, lanes), raw)
    # A copy that does not blow up, or not in time, says that nothing is known.
    spread = jnp.max(jnp.abs(parts.time[1:] - parts.time[:1]), axis=0)
    limited = jnp.any(parts.settled, axis=0)
    raw = jax.tree.map(lambda x: x[0], parts)
    return eqx.tree_at(lambda r: (r.spread, r.limited), raw, (spread, limited))


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
        # Adding up the steps rounds, too; most of them are short beside the last ones.
        wrong = expansion.error + lost + 2 * jnp.finfo(total.dtype).eps * total
        best = Raw(
            time=jnp.where(reached, total, best.time),
            lower=jnp.where(reached, elapsed + lower, best.lower),
            upper=jnp.where(reached, elapsed + upper, best.upper),
            error=jnp.where(reached, wrong, best.error),
            spread=best.spread,
            settled=best.settled | (reached & (lost <= rtol * total)),
            limited=best.limited,
            num_steps=best.num_steps + jnp.where(course.settled, 0, 1),
        )
        settled = course.settled | reached
        moved, step = advance(taylor.a, plan.order, pace)
        moved = _disturbed(moved, plan.width, course.num_expansions)
        keep = settled | ~jnp.isfinite(step)
        point = jnp.where(keep[None, None], problem.point, moved)
        problem = eqx.tree_at(lambda p: p.point, problem, point)
        elapsed = elapsed + jnp.where(keep, 0, step)
        return _Course(
            problem=problem,
            elapsed=elapsed,
            best=best,
            settled=settled,
            num_expansions=course.num_expansions + 1,
        )

    lanes = problem.unit.shape[0]
    unknown = jnp.full(lanes, jnp.inf, problem.unit.dtype)
    no, none = jnp.zeros(lanes, bool), jnp.zeros(lanes, jnp.int32)
    best = Raw(
        time=unknown,
        lower=unknown,
        upper=unknown,
        error=unknown,
        spread=unknown,
        settled=no,
        limited=no,
        num_steps=none,
    )
    start = _Course(
        problem=problem,
        elapsed=jnp.zeros_like(unknown),
        best=best,
        settled=jnp.zeros(lanes, bool),
        num_expansions=jnp.zeros((), jnp.int32),
    )
    course = lax.while_loop(
        lambda course: (course.num_expansions < plan.max_expansions) & ~jnp.all(course.settled),
        turn,
        start,
    )
    return course.best


def _disturbed(
    point: Float[Array, "2 k lanes"], width: Int[Array, ""], turn: Int[Array, ""]
) -> Float[Array, "2 k lanes"]:
    """Noise in the points of the copies, as large as what is put into the states themselves.

    What rounding does from one expansion to the next shows in it.
    """
    _, k, lanes = point.shape
    copy = np.arange(lanes, dtype=np.uint32) // (lanes // len(_PACES))
    layer, i = np.arange(3, 5, dtype=np.uint32), np.arange(k, dtype=np.uint32)
    chosen = signs(copy[None, None], layer[:, None, None], turn.astype(np.uint32), i[None, :, None])
    chosen = jnp.where((copy > 0)[None, None] & (i < width)[None, :, None], chosen, 0).astype(
        point.dtype
    )
    mean_square = jnp.sum(point**2, axis=1, keepdims=True) / width.astype(point.dtype)
    return point + NOISE * jnp.finfo(point.dtype).eps * jnp.sqrt(mean_square) * chosen


def _with_probes(states: State, width: Int[Array, ""]) -> State:
    """The states followed by copies with noise of `NOISE` units of rounding in every layer.

    The same signs for every lane, so that a sample's error does not depend on its batch; none in
    the units that pad the states.
    """
    k = states.b.shape[0]

    def copies(number: int, layer: Array) -> Array:
        height = layer.shape[0]
        entries = width * width if number == 1 else width
        mean_square = jnp.sum(layer**2, axis=(0, 1)) / entries.astype(layer.dtype)
        size = NOISE * jnp.finfo(layer.dtype).eps * jnp.sqrt(mean_square)
        # No noise in the state itself, which comes first.
        chosen = [np.zeros((height, k), np.int8)]
        i, j = np.indices((height, k), np.uint32)
        for probe in range(1, len(_PACES)):
            chosen.append(signs(np.full_like(i, probe), np.full_like(i, number), i, j))
        chosen = np.stack(chosen, axis=-1)[..., None].astype(layer.dtype)
        inside = np.indices((height, k)).max(0) if number == 1 else np.arange(k)[None]
        inside = jnp.expand_dims(jnp.asarray(inside) < width, (2, 3))
        noise = jnp.where(inside, chosen, 0) * jnp.expand_dims(size, (0, 1, 2))
        return (layer[:, :, None] + noise).reshape(height, k, -1)

    layers = [copies(number, layer) for number, layer in enumerate(states.layers)]
    strength = jnp.tile(states.strength, len(_PACES))
    return eqx.tree_at(lambda s: (s.a, s.b, s.c, s.strength), states, (*layers, strength))
