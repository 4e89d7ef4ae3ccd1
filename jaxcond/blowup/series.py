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

from ..bounds import bracket_from_norms
from ..state import State
from ._taylor import entire_function, flow_coefficients
from .method import AbstractMethod, Raw

# From the start, 12 lower bounds reach the zero to rounding for Gaussian states of any width.
_NUM_ROOT_STEPS = 14
# Duplications of Carlson's algorithm in a step of the root finder; they leave a lower bound.
_NUM_ROUGH_DUPLICATIONS = 2
# What the missing directions contribute to tau, as a share of what the last one kept contributes:
# measured at most 0.1 for Gaussian states of widths 20 to 200 in 8 to 12 dimensions.
_MISSING = 0.25
# The condition of T* is measured by the effect of noise of this size, in units of rounding: not far
# above rounding itself, since close to a state that never blows up T* is far from linear.
_NOISE = 64
# What rounding does, as a share of what that noise does.
_ROUNDING_SHARE = 1 / 8


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

    def check(self, state: State) -> None:
        if state.rank != 1:
            raise ValueError(
                f"Method `Series` applies to states of rank 1, but the rank is {state.rank}."
            )

    def reduced_dim(self, rank: int) -> int:
        del rank
        return self.dim

    def solve(self, states: State, rtol: Float[Array, ""], *, truncated: bool) -> Raw:
        order = self.order or (32 if states.dtype == jnp.float64 else 20)
        if self.max_expansions == 1:
            problem = _Problem.of(states, truncated)
            return problem.in_units(_expand(problem, order, rtol).result)
        probes, lanes = 2, states.b.shape[-1]
        problem = _Problem.of(_perturbed(states, probes), truncated)
        raw = problem.in_units(_follow(problem, order, self.max_expansions, rtol))
        parts = jax.tree.map(lambda x: x.reshape(1 + probes, lanes), raw)
        raw, others = jax.tree.map(lambda x: x[0], parts), parts.time[1:]
        # A copy that does not blow up, or not in time, says that nothing is known.
        condition = _ROUNDING_SHARE * jnp.max(jnp.abs(others - raw.time[None]), axis=0)
        return eqx.tree_at(lambda r: r.error, raw, raw.error + condition)


class _Problem(eqx.Module):
    r"""$a'' = (A + \kappa + 2\|a\|^2)a$ at one instant, many lanes, in units of `unit`.

    The equation is written for whichever of $a$ and $c$ is smaller: with $a$ far larger, $A +
    \kappa$ would cancel against $2\|a\|^2$ and lose the other layers to rounding.
    """

    matrix: Float[Array, "k k lanes"]
    a: Float[Array, "k lanes"]
    velocity: Float[Array, "k lanes"]
    middle_excess: Float[Array, " lanes"]  # ||b||^2 - ||a||^2
    other_excess: Float[Array, " lanes"]  # ||c||^2 - ||a||^2
    unit: Float[Array, " lanes"]
    truncated: bool = eqx.field(static=True)

    @classmethod
    def of(cls, states: State, truncated: bool) -> "_Problem":
        strength = states.strength[0]
        a, b, c = states.a[0], states.b, states.c[0] * jnp.sign(strength)[None]
        size_a, size_b, size_c = jnp.sum(a * a, 0), jnp.sum(b * b, (0, 1)), jnp.sum(c * c, 0)
        _, exponent = jnp.frexp(jnp.sqrt(size_a + size_b + size_c))
        rate = jnp.ldexp(jnp.ones_like(strength), exponent)
        a, b, c = a / rate[None], b / rate[None, None], c / rate[None]
        swap = size_a > size_c
        b = jnp.where(swap[None, None], jnp.swapaxes(b, 0, 1), b)
        a, c = jnp.where(swap[None], c, a), jnp.where(swap[None], a, c)
        size_a, size_b, size_c = jnp.sum(a * a, 0), jnp.sum(b * b, (0, 1)), jnp.sum(c * c, 0)
        width = a.shape[0]
        gram, velocity = jnp.zeros_like(b), jnp.zeros_like(a)
        for j in range(width):
            gram = gram + b[:, None, j] * b[None, :, j]
            velocity = velocity + b[:, j] * c[j][None]
        identity = jnp.eye(width, dtype=a.dtype)[:, :, None]
        return cls(
            matrix=gram - a[:, None] * a[None, :] + (size_c - size_a)[None, None] * identity,
            a=a,
            velocity=velocity,
            middle_excess=size_b - size_a,
            other_excess=size_c - size_a,
            unit=1 / (rate * jnp.abs(strength)),
            truncated=truncated,
        )

    def in_units(self, raw: Raw) -> Raw:
        """Times in the units of the state that the problem was made of."""
        unit = self.unit
        return Raw(
            raw.time * unit,
            raw.lower * unit,
            raw.upper * unit,
            raw.error * unit,
            raw.converged,
            raw.num_steps,
        )

    def norms(self, a_squared: Array) -> Float[Array, "3 lanes"]:
        r"""$(\|a\|^2, \|b\|^2, \|c\|^2)$ when the first of them is `a_squared`."""
        others = [
            jnp.maximum(a_squared + excess, 0) for excess in (self.middle_excess, self.other_excess)
        ]
        return jnp.stack([a_squared, *others])


class _Expansion(eqx.Module):
    """One Taylor expansion, and what its polynomial says of the blow-up time."""

    result: Raw
    coefficients: Float[Array, "powers k lanes"]


def _polynomial(coefficients: Array, x: Array, num_derivatives: int) -> list[Array]:
    """A polynomial with coefficients along the first axis and its first derivatives, by Horner."""
    values = [jnp.zeros_like(coefficients[0]) for _ in range(num_derivatives + 1)]
    for coefficient in coefficients[::-1]:
        for i in range(num_derivatives, 0, -1):
            values[i] = values[i] * x + values[i - 1]
        values[0] = values[0] * x + coefficient
    factorial = 1
    for i in range(2, num_derivatives + 1):
        factorial *= i
        values[i] = values[i] * factorial
    return values


def _first_zero(tau: Float[Array, "powers lanes"], problem: _Problem) -> Float[Array, " lanes"]:
    r"""The first positive zero of $\tau$, approached from the left.

    Each step is a lower bound on the time left, so the zero cannot be passed, let alone a later one
    be found; the bound is sharp to third order, and so the steps converge. Newton's method from
    there removes the last rounding.
    """

    def advance(_: Array, x: Array) -> Array:
        value, first, second = _polynomial(tau, x, 2)
        a_squared = jnp.maximum(first * first - value * second, 0) / (value * value)
        # Carlson's algorithm broken off: the mean of what is left bounds R_F from below, since
        # R_F is an average of a convex function.
        bound = _rough_lower_bound(problem.norms(a_squared))
        return x + jnp.where((value > 0) & jnp.isfinite(bound), bound, 0)

    x = lax.fori_loop(0, _NUM_ROOT_STEPS, advance, jnp.zeros_like(tau[0]))
    for _ in range(2):
        value, first = _polynomial(tau, x, 1)
        step = value / first
        x = x - jnp.where(jnp.abs(step) < 0.01 * x, step, 0)
    return x


def _rough_lower_bound(norms: Float[Array, "3 lanes"]) -> Float[Array, " lanes"]:
    x, y, z = norms
    for _ in range(_NUM_ROUGH_DUPLICATIONS):
        root_x, root_y, root_z = jnp.sqrt(x), jnp.sqrt(y), jnp.sqrt(z)
        shift = root_x * (root_y + root_z) + root_y * root_z
        x, y, z = 0.25 * (x + shift), 0.25 * (y + shift), 0.25 * (z + shift)
    return jnp.sqrt(3 / (x + y + z))


def _bracket_before(
    tau: Float[Array, "powers lanes"],
    zero: Float[Array, " lanes"],
    problem: _Problem,
    width: Float[Array, " lanes"],
) -> tuple[Float[Array, " lanes"], Float[Array, " lanes"]]:
    r"""The bracket from a state shortly before the zero of $\tau$, about as narrow as `width`."""

    def at(distance: Array) -> tuple[Array, Array]:
        x = zero - distance
        value, first, second, third = _polynomial(tau, x, 3)
        ratio = first / value
        a_squared = ratio * ratio - second / value
        energy = -0.5 * third / value + 1.5 * ratio * second / value - ratio**3
        lower, upper = bracket_from_norms(problem.norms(a_squared), energy, jnp.ones_like(energy))
        return x + lower, x + upper

    # In these units the norms differ by at most 1, and the width is about distance^3.
    distance = jnp.minimum(jnp.cbrt(width), 0.25 * zero)
    lower, upper = at(distance)
    excess = jnp.cbrt(0.3 * width / jnp.maximum(upper - lower, 0.3 * width))
    return at(distance * jnp.where(jnp.isfinite(upper), excess, 0.03))


def _expand(problem: _Problem, order: int, rtol: Float[Array, ""]) -> _Expansion:
    r"""Expand the flow and find the zero of $\tau$, with an estimate of its error."""
    coefficients, norms, last = flow_coefficients(
        problem.matrix, problem.a, problem.velocity, order
    )
    tau, sizes = entire_function(norms)
    zero = _first_zero(tau, problem)
    value, slope = _polynomial(tau, zero, 1)
    tail = _polynomial(jnp.abs(tau.at[:-2].set(0)), zero, 0)[0]
    rounding = 4 * jnp.finfo(tau.dtype).eps * _polynomial(sizes, zero, 0)[0]
    wrong = jnp.abs(value) + tail + rounding
    if problem.truncated:
        powers = jnp.arange(2, order + 1, dtype=tau.dtype)[:, None]
        weight = _polynomial(last / (powers * (powers - 1)), zero, 0)[0] * zero * zero
        wrong = wrong + _MISSING * jnp.abs(weight)
    error = wrong / jnp.abs(slope)
    lower, upper = _bracket_before(tau, zero, problem, rtol * zero)
    narrow = jnp.abs(upper - lower) <= rtol * zero
    converged = narrow & (error <= rtol * zero) & (slope < 0)
    result = Raw(zero, lower, upper, error, converged, jnp.ones(zero.shape, jnp.int32))
    return _Expansion(result, coefficients)


class _Course(eqx.Module):
    """Where the flow has been followed to."""

    problem: _Problem
    elapsed: Float[Array, " lanes"]
    best: Raw
    settled: Bool[Array, " lanes"]
    num_expansions: Array


def _follow(problem: _Problem, order: int, max_expansions: int, rtol: Float[Array, ""]) -> Raw:
    """Expand again and again, part of the way each time, until an expansion reaches the zero."""
    eps = jnp.finfo(problem.a.dtype).eps

    def turn(course: _Course) -> _Course:
        problem = course.problem
        expansion = _expand(problem, order, rtol)
        found, elapsed = expansion.result, course.elapsed
        total = elapsed + found.time
        # Narrow against the whole time, and as exact as the arithmetic allows.
        narrow = jnp.abs(found.upper - found.lower) <= rtol * total
        exact = found.error <= jnp.maximum(16 * eps, 0.01 * rtol) * total
        reached = narrow & exact & jnp.isfinite(total) & ~course.settled
        num = course.best.num_steps + jnp.where(course.settled, 0, 1)
        # Until an expansion reaches the zero, what is certain is a lower bound.
        ahead = elapsed + _rough_lower_bound(problem.norms(jnp.sum(problem.a**2, 0)))
        here = Raw(
            jnp.where(reached, total, course.best.time),
            jnp.where(
                reached, elapsed + found.lower, jnp.where(course.settled, course.best.lower, ahead)
            ),
            jnp.where(reached, elapsed + found.upper, course.best.upper),
            jnp.where(reached, found.error, course.best.error),
            course.best.converged | reached,
            num,
        )
        settled = course.settled | reached
        a, velocity, step = _advance(expansion.coefficients)
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


def _advance(coefficients: Float[Array, "powers k lanes"]) -> tuple[Array, Array, Array]:
    """Follow an expansion as far as its last terms stay below rounding: $a$, $a'$ and the step."""
    order = coefficients.shape[0] - 1
    size = jnp.max(jnp.abs(coefficients), axis=1)
    eps = jnp.finfo(coefficients.dtype).eps

    def reach(n: int) -> Array:
        from_a = (eps * size[0] / size[n]) ** (1 / n)
        from_velocity = (eps * size[1] / size[n]) ** (1 / (n - 1))
        return jnp.maximum(from_a, from_velocity)

    step = jnp.minimum(reach(order), reach(order - 1))
    a, velocity = _polynomial(coefficients, step[None], 1)
    return a, velocity, step


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
