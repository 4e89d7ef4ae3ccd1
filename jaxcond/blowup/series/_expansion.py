r"""One Taylor expansion of the flow, and the first zero of its entire function.

The flow of rank 1 is written for the smaller of $a$ and $c$ (`Problem`), expanded about one instant
(`expand`), and followed part of the way where the expansion does not reach the zero (`advance`).
Many states at once, along the last axis of every array.
"""

from typing import Any

import equinox as eqx
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..._state import State
from ...bounds import bracket_from_norms
from .._method import Raw
from ._taylor import entire_function, flow_coefficients, polynomial

# From the start, 12 lower bounds reach the zero to rounding for Gaussian states of any width.
_NUM_ROOT_STEPS = 14
# Duplications of Carlson's algorithm in a step of the root finder; they leave a lower bound.
_NUM_ROUGH_DUPLICATIONS = 2
# What the missing directions contribute to tau, as a share of what the last one kept contributes:
# measured at most 0.1 for Gaussian states of widths 20 to 200 in 8 to 12 dimensions.
_MISSING = 0.25

# Steps of the flow, over those that end where the last terms of an expansion reach rounding: what
# truncation leaves then lies two decades below. Errors made early grow like the fourth power of the
# time where the flow all but comes to rest.
PACE = 0.85


class Problem(eqx.Module):
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
    truncated: Bool[Array, " lanes"]
    width: Int[Array, ""]  # without the units that states were filled up with

    @classmethod
    def of(
        cls, states: State, truncated: Bool[Array, " lanes"], width: Int[Array, ""]
    ) -> "Problem":
        strength = states.strength[0]
        a, b, c = states.a[0], states.b, states.c[0] * jnp.sign(strength)[None]
        size_a, size_b, size_c = jnp.sum(a * a, 0), jnp.sum(b * b, (0, 1)), jnp.sum(c * c, 0)
        _, exponent = jnp.frexp(lax.stop_gradient(jnp.sqrt(size_a + size_b + size_c)))
        rate = jnp.ldexp(jnp.ones_like(strength), exponent)
        a, b, c = a / rate[None], b / rate[None, None], c / rate[None]
        swap = size_a > size_c
        b = jnp.where(swap[None, None], jnp.swapaxes(b, 0, 1), b)
        a, c = jnp.where(swap[None], c, a), jnp.where(swap[None], a, c)
        size_a, size_b, size_c = jnp.sum(a * a, 0), jnp.sum(b * b, (0, 1)), jnp.sum(c * c, 0)

        def add(sums: tuple[Array, Array], column: tuple[Array, Array]) -> tuple[Any, None]:
            of_b, of_c = column
            gram = sums[0] + of_b[:, None] * of_b[None]
            return (gram, sums[1] + of_b * of_c[None]), None

        start = jnp.zeros_like(b), jnp.zeros_like(a)
        (gram, velocity), _ = lax.scan(add, start, (jnp.swapaxes(b, 0, 1), c))
        identity = jnp.eye(a.shape[0], dtype=a.dtype)[:, :, None]
        return cls(
            matrix=gram - a[:, None] * a[None, :] + (size_c - size_a)[None, None] * identity,
            a=a,
            velocity=velocity,
            middle_excess=size_b - size_a,
            other_excess=size_c - size_a,
            unit=1 / (rate * jnp.abs(strength)),
            truncated=truncated,
            width=width,
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

    def last_share(self) -> Float[Array, " lanes"]:
        r"""The share of $\|a\|^2$ on the last basis vectors: see `jaxcond.reduction.truncation`."""
        total = jnp.sum(self.a**2, 0)
        return self.a[self.width - 1] ** 2 / jnp.where(total > 0, total, 1)

    def norms(self, a_squared: Array) -> Float[Array, "3 lanes"]:
        r"""$(\|a\|^2, \|b\|^2, \|c\|^2)$ when the first of them is `a_squared`."""
        others = [
            jnp.maximum(a_squared + excess, 0) for excess in (self.middle_excess, self.other_excess)
        ]
        return jnp.stack([a_squared, *others])


class Expansion(eqx.Module):
    """One Taylor expansion, and what its polynomial says of the blow-up time."""

    zero: Float[Array, " lanes"]
    error: Float[Array, " lanes"]
    falls: Bool[Array, " lanes"]  # as tau does at its first zero
    coefficients: Float[Array, "powers k lanes"]
    norms: Float[Array, "squares lanes"]
    tau: Float[Array, "powers lanes"]

    def suffices(self, rtol: Float[Array, "..."]) -> Bool[Array, " lanes"]:
        """Whether its zero is as exact as is asked for."""
        return (self.error <= rtol * self.zero) & self.falls

    def reaches(self, elapsed: Array, rtol: Float[Array, "..."]) -> Bool[Array, " lanes"]:
        """Whether its zero is as exact as the arithmetic allows, against the whole time."""
        total = elapsed + self.zero
        allowed = jnp.maximum(16 * jnp.finfo(total.dtype).eps, 0.01 * rtol)
        return (self.error <= allowed * total) & jnp.isfinite(total)


def _first_zero(tau: Float[Array, "powers lanes"], problem: Problem) -> Float[Array, " lanes"]:
    r"""The first positive zero of $\tau$, approached from the left.

    Each step is a lower bound on the time left, so the zero cannot be passed, let alone a later one
    be found; the bound is sharp to third order, and so the steps converge. Newton's method from
    there removes the last rounding.
    """

    def advance(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, _, count = carry
        value, first, second = polynomial(tau, x, 2)
        a_squared = jnp.maximum(first * first - value * second, 0) / (value * value)
        # Carlson's algorithm broken off: the mean of what is left bounds R_F from below, since
        # R_F is an average of a convex function.
        bound = rough_lower_bound(problem.norms(a_squared))
        bound = jnp.where((value > 0) & jnp.isfinite(bound), bound, 0)
        x = x + bound
        return x, jnp.any(bound > eps / 8 * x), count + 1

    def newton(_: Array, x: Array) -> Array:
        value, first = polynomial(tau, x, 1)
        step = value / first
        return x - jnp.where(jnp.abs(step) < 0.01 * x, step, 0)

    eps = jnp.finfo(tau.dtype).eps
    x, _, _ = lax.while_loop(
        lambda carry: carry[1] & (carry[2] < _NUM_ROOT_STEPS),
        advance,
        (jnp.zeros_like(tau[0]), jnp.ones((), bool), jnp.zeros((), jnp.int32)),
    )
    return lax.fori_loop(0, 2, newton, x)


def rough_lower_bound(norms: Float[Array, "3 lanes"]) -> Float[Array, " lanes"]:
    """A lower bound on the time left, from Carlson's algorithm broken off."""
    x, y, z = norms
    for _ in range(_NUM_ROUGH_DUPLICATIONS):
        root_x, root_y, root_z = jnp.sqrt(x), jnp.sqrt(y), jnp.sqrt(z)
        shift = root_x * (root_y + root_z) + root_y * root_z
        x, y, z = 0.25 * (x + shift), 0.25 * (y + shift), 0.25 * (z + shift)
    return jnp.sqrt(3 / (x + y + z))


def bracket_before(
    expansion: Expansion, problem: Problem, rtol: Float[Array, "..."]
) -> tuple[Float[Array, " lanes"], Float[Array, " lanes"]]:
    r"""The bracket from a state shortly before the zero of $\tau$, about as narrow as `rtol`."""
    tau, zero = expansion.tau, expansion.zero
    width = rtol * zero

    def narrow(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        distance = carry[0]
        x = zero - distance
        value, first, second, third = polynomial(tau, x, 3)
        ratio = first / value
        a_squared = ratio * ratio - second / value
        energy = -0.5 * third / value + 1.5 * ratio * second / value - ratio**3
        lower, upper = bracket_from_norms(problem.norms(a_squared), energy, jnp.ones_like(energy))
        lower, upper = x + lower, x + upper
        excess = jnp.cbrt(0.3 * width / jnp.maximum(upper - lower, 0.3 * width))
        return distance * jnp.where(jnp.isfinite(upper), excess, 0.03), lower, upper

    # In these units the norms differ by at most 1, and the width is about distance^3.
    distance = jnp.minimum(jnp.cbrt(width), 0.25 * zero)
    _, lower, upper = lax.fori_loop(0, 2, narrow, (distance, zero, zero))
    return lower, upper


def expand(problem: Problem, order: Int[Array, ""], size: int) -> Expansion:
    r"""Expand the flow and find the zero of $\tau$, with an estimate of its error.

    **Arguments:** `order`, of the polynomials, at most `size`, which is that of the buffers.
    """
    coefficients, norms, last = flow_coefficients(
        problem.matrix, problem.a, problem.velocity, problem.width, order, size
    )
    tau, sizes = entire_function(norms, order)
    zero = _first_zero(tau, problem)
    powers = jnp.arange(size + 1)
    # The last two terms show what truncation leaves out.
    ends = jnp.where((powers >= order - 1)[:, None], jnp.abs(tau), 0)
    rising = jnp.arange(2, size + 1, dtype=tau.dtype)[:, None]
    missing = jnp.pad(last / (rising * (rising - 1)), ((2, 0), (0, 0)))
    values, slopes = polynomial(jnp.stack([tau, ends, sizes, missing], axis=1), zero[None], 1)
    rounding = 4 * jnp.finfo(tau.dtype).eps * values[2]
    wrong = jnp.abs(values[0]) + values[1] + rounding
    wrong = wrong + jnp.where(problem.truncated, _MISSING * jnp.abs(values[3]), 0)
    error = wrong / jnp.abs(slopes[0])
    return Expansion(zero, error, slopes[0] < 0, coefficients, norms, tau)


def advance(
    coefficients: Float[Array, "powers k lanes"],
    order: Int[Array, ""],
    pace: float | Float[Array, " lanes"] = PACE,
) -> tuple[Array, Array, Array]:
    """Follow an expansion part of the way: $a$, $a'$ and the step.

    `pace` is the step over that at which the last terms reach rounding. To differentiation the step
    is a constant: $T^*$ does not depend on where the flow is expanded.
    """
    size = jnp.max(jnp.abs(lax.stop_gradient(coefficients)), axis=1)
    eps = jnp.finfo(coefficients.dtype).eps
    # Every second term may be missing, by symmetry.
    powers = jnp.stack([order, order - 1])
    ends, n = size[powers], powers[:, None].astype(size.dtype)
    last = jnp.where(ends > 0, ends, 1)
    from_a = (eps * size[:1] / last) ** (1 / n)
    from_velocity = (eps * size[1:2] / last) ** (1 / (n - 1))
    reach = jnp.where(ends > 0, jnp.maximum(from_a, from_velocity), jnp.inf)
    step = pace * jnp.min(reach, axis=0)
    a, velocity = polynomial(coefficients, step[None], 1)
    return a, velocity, step
