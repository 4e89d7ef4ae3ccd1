r"""The blow-up time as the first positive zero of an entire function (rank 1).

With $(\log\tau)'' = -\|a\|^2$, $\tau(0)=1$, $\tau'(0)=0$, the function $\tau$ is entire and $T^*$
is its first positive zero. Its Taylor polynomial is found by recurrence, without time stepping;
everything that the bracket needs follows from it, since $\|a\|^2 = (\tau'^2 - \tau\tau'')/\tau^2$,
the other norms differ from it by constants, and $E = \frac12 (\|a\|^2)'$. Where one expansion does
not reach $T^*$, the flow is followed part of the way and expanded again.
"""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from ..._state import State
from .._gradient import gradient_in_reduction
from .._method import AbstractMethod, Form, Kernel, Raw, classify, prepare
from .._result import BlowUp
from ._expansion import PACE, Problem, advance, expand, rough_lower_bound
from ._gradient import series_gradient
from ._native import native_kernel, solve_natively

# The condition of T* is measured by the effect of noise of this size, in units of rounding: not far
# above rounding itself, since close to a state that never blows up T* is far from linear.
_NOISE = 64
# What rounding does, as a share of what that noise does.
_ROUNDING_SHARE = 1 / 8
# The pace of the state itself, and of its copies.
_PACES = (PACE, 1.0, 0.7)


class Series(AbstractMethod):
    r"""The zero of the entire function $\tau$, from Taylor polynomials in Krylov coordinates.

    **Arguments:**

    - `order`: degree of the polynomials, at least 4; `None` chooses by the dtype, 32 for float64
      and 20 for float32. For Gaussian states 24 and 32 give $T^*$ to about 5e-11 and 2e-15.
    - `dim`: dimension to which wider states are reduced. 12 suffices for equal layer scales, 24
      covers scales that differ by 1e8. Narrower states are solved as they are.
    - `max_expansions`: how often the flow may be expanded again where one expansion does not reach.
      With 1 every state costs the same, and its error is estimated from the sizes of the terms
      alone; with more, the condition of $T^*$ is measured too, by perturbing the state.

    **Status:** `not_converged` where the last terms are not small enough for the tolerance, or the
    expansions are used up.

    Rank 1 only.
    """

    order: int | None = eqx.field(static=True, default=None)
    dim: int = eqx.field(static=True, default=24)
    max_expansions: int = eqx.field(static=True, default=128)

    def __check_init__(self):
        if self.order is not None and self.order < 4:
            raise ValueError(f"Argument `order` must be at least 4, but is {self.order}.")
        if self.dim < 2:
            raise ValueError(f"Argument `dim` must be at least 2, but is {self.dim}.")
        if self.max_expansions < 1:
            raise ValueError(
                f"Argument `max_expansions` must be at least 1, but is {self.max_expansions}."
            )

    @property
    def label(self) -> str:
        expansions = "one expansion" if self.max_expansions == 1 else "re-expanding"
        return f"series, dim {self.dim}, {expansions}"

    def check(self, state: Form | State) -> None:
        if state.rank != 1:
            raise ValueError(
                f"Method `Series` applies to states of rank 1, but the rank is {state.rank}."
            )

    def reduced_dim(self, rank: int) -> int:
        del rank
        return self.dim

    def degree(self, dtype: jnp.dtype) -> int:
        """The order of the polynomials for states of a dtype."""
        return self.order or (32 if dtype == jnp.float64 else 20)

    def kernel(self, form: Form | State) -> Kernel | None:
        return native_kernel(self, form)

    def solve(self, states: State, rtol: Float[Array, ""], truncated: Bool[Array, ""]) -> BlowUp:
        if native_kernel(self, states) is not None:
            return lax.platform_dependent(
                states,
                rtol,
                truncated,
                cpu=lambda *x: solve_natively(self, *x),
                default=self.solve_by_program,
            )
        return self.solve_by_program(states, rtol, truncated)

    def solve_by_program(self, states, rtol, truncated) -> BlowUp:
        prepared = jax.vmap(lambda state: prepare(state, self.dim, truncated))(states)
        lanes = jax.tree.map(lambda x: jnp.moveaxis(x, 0, -1), prepared.state)
        wide = self.truncates(states)
        raw = self._solve_lanes(lanes, rtol, truncated=wide)
        return classify(raw, prepared, self.label)

    def gradient(self, state: State, time: Float[Array, ""], rtol: Float[Array, ""]) -> State:
        order = self.degree(state.dtype)

        def small_gradient(small: State, time: Array) -> State:
            lanes = jax.tree.map(lambda leaf: leaf[..., None], small)
            gradient = series_gradient(lanes, order, self.max_expansions, rtol)
            gradient = jax.tree.map(lambda leaf: leaf[..., 0], gradient)
            # The strength of a single component sets the unit of time.
            return eqx.tree_at(lambda g: g.strength, gradient, -time[None] / small.strength)

        return gradient_in_reduction(state, time, self.dim, small_gradient)

    def _solve_lanes(self, states: State, rtol: Float[Array, ""], *, truncated: bool) -> Raw:
        order = self.degree(states.dtype)
        if self.max_expansions == 1:
            problem = Problem.of(states, truncated)
            return problem.in_units(expand(problem, order, rtol).result)
        probes, lanes = len(_PACES) - 1, states.b.shape[-1]
        problem = Problem.of(_perturbed(states, probes), truncated)
        # The copies differ in where they expand again, too, which shows the errors of that.
        pace = jnp.repeat(jnp.array(_PACES, states.dtype), lanes)
        raw = problem.in_units(_follow(problem, order, self.max_expansions, rtol, pace))
        parts = jax.tree.map(lambda x: x.reshape(1 + probes, lanes), raw)
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
    problem: Problem, order: int, max_expansions: int, rtol: Float[Array, ""], pace: Array
) -> Raw:
    """Expand again and again, part of the way each time, until an expansion reaches the zero."""

    def turn(course: _Course) -> _Course:
        problem = course.problem
        expansion = expand(problem, order, rtol)
        found, elapsed = expansion.result, course.elapsed
        total = elapsed + found.time
        # An expansion counts what it truncates itself. What those before it did shows in the share
        # of the last direction, as in `Reduced`.
        lost = problem.last_share() * total if problem.truncated else jnp.zeros_like(total)
        # Narrow against the whole time, too.
        narrow = jnp.abs(found.upper - found.lower) <= rtol * total
        reached = narrow & expansion.reaches(elapsed, rtol) & ~course.settled
        num = course.best.num_steps + jnp.where(course.settled, 0, 1)
        # Until an expansion reaches the zero, what is certain is a lower bound.
        ahead = elapsed + rough_lower_bound(problem.norms(jnp.sum(problem.a**2, 0)))
        here = Raw(
            jnp.where(reached, total, course.best.time),
            jnp.where(
                reached, elapsed + found.lower, jnp.where(course.settled, course.best.lower, ahead)
            ),
            jnp.where(reached, elapsed + found.upper, course.best.upper),
            jnp.where(reached, found.error + lost, course.best.error),
            course.best.converged | (reached & (lost <= rtol * total)),
            num,
        )
        settled = course.settled | reached
        a, velocity, step = advance(expansion.coefficients, pace)
        moved = eqx.tree_at(lambda p: (p.a, p.velocity), problem, (a, velocity))
        keep = settled | ~jnp.isfinite(step)
        problem = jax.tree.map(lambda old, new: _where_lanes(keep, old, new), problem, moved)
        elapsed = elapsed + jnp.where(keep, 0, step)
        return _Course(problem, elapsed, here, settled, course.num_expansions + 1)

    lanes = problem.a.shape[-1]
    unknown = jnp.full(lanes, jnp.inf, problem.a.dtype)
    best = Raw(
        unknown, unknown, unknown, unknown, jnp.zeros(lanes, bool), jnp.zeros(lanes, jnp.int32)
    )
    start = _Course(
        problem, jnp.zeros_like(unknown), best, jnp.zeros(lanes, bool), jnp.zeros((), jnp.int32)
    )
    course = lax.while_loop(
        lambda course: (course.num_expansions < max_expansions) & ~jnp.all(course.settled),
        turn,
        start,
    )
    return course.best


def _where_lanes(choice: Array, chosen: Array, other: Array) -> Array:
    shape = (1,) * (chosen.ndim - 1) + choice.shape
    return jnp.where(choice.reshape(shape), chosen, other)


def _perturbed(states: State, probes: int) -> State:
    """The states followed by copies with noise of `_NOISE` units of rounding in every layer.

    The same signs for every lane, so that a sample's error does not depend on its batch.
    """
    keys = jax.random.split(jax.random.key(0), 3)

    def copies(layer: Array, key: Array) -> Array:
        shape = layer.shape[:-1]
        signs = jax.random.rademacher(key, (probes, *shape), layer.dtype)
        mean_square = jnp.sum(layer**2, axis=(0, 1)) / (shape[0] * shape[1])
        size = _NOISE * jnp.finfo(layer.dtype).eps * jnp.sqrt(mean_square)
        noise = [jnp.expand_dims(size, (0, 1)) * sign[..., None] for sign in signs]
        return jnp.concatenate([layer, *(layer + part for part in noise)], axis=-1)

    layers = [copies(layer, key) for layer, key in zip(states.layers, keys, strict=True)]
    strength = jnp.concatenate([states.strength] * (1 + probes), axis=-1)
    return eqx.tree_at(lambda s: (s.a, s.b, s.c, s.strength), states, (*layers, strength))
