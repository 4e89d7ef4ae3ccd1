r"""One Taylor expansion of the flow, and the first zero of its entire function.

The flow of rank 1 is written for the smaller of $a$ and $c$ (`Problem`), expanded about one instant
(`expand`), and followed part of the way where the expansion does not reach the zero (`advance`).
Many states at once, along the last axis of every array.
"""

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..._state import State
from ...bounds import bracket_from_norms
from .._method import Raw
from ._taylor import Taylor, derivatives, evaluate, expand_flow

# From the start, 12 lower bounds reach the zero to rounding for Gaussian states of any width.
_NUM_ROOT_STEPS = 14
# Duplications of Carlson's algorithm in a step of the root finder; they leave a lower bound.
_NUM_ROUGH_DUPLICATIONS = 2
# What the two terms before the last two count in the estimate of what truncation leaves out: two
# orders take away at least seven eighths where the last ones are small enough.
_EARLIER_TERMS = 0.125
# What the missing directions contribute to tau, as a share of what the last one kept contributes:
# measured at most 0.1 for Gaussian states of widths 20 to 200 in 8 to 12 dimensions.
_MISSING = 0.25

# Steps of the flow, over those that end where the last terms of an expansion reach rounding: what
# truncation leaves then lies two decades below. Errors made early grow like the fourth power of the
# time where the flow all but comes to rest.
PACE = 0.85


def _power_of_two_above(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The next power of two above positive normal numbers, by the bits of their exponents."""
    info = jnp.finfo(x.dtype)
    whole = jnp.dtype(f"uint{info.bits}")
    bits = lax.bitcast_convert_type(x, whole) >> info.nmant << info.nmant
    return 2 * lax.bitcast_convert_type(bits, x.dtype)


class Problem(eqx.Module):
    r"""$a'' = (A + \kappa + 2\|a\|^2)a$ at one instant, many lanes, in units of `unit`.

    The equation is written for whichever of $a$ and $c$ is smaller: with $a$ far larger, $A +
    \kappa$ would cancel against $2\|a\|^2$ and lose the other layers to rounding.
    """

    matrix: Float[Array, "k k lanes"]
    point: Float[Array, "2 k lanes"]  # a and a'
    excess: Float[Array, "2 lanes"]  # ||b||^2 - ||a||^2 and ||c||^2 - ||a||^2
    unit: Float[Array, " lanes"]
    truncated: Bool[Array, " lanes"]
    width: Int[Array, ""]  # without the units that states were filled up with

    @classmethod
    def of(
        cls, states: State, truncated: Bool[Array, " lanes"], width: Int[Array, ""]
    ) -> "Problem":
        strength = states.strength[0]
        ends = jnp.concatenate([states.a, states.c * jnp.sign(strength)[None, None]])
        squares, size_b = jnp.sum(ends * ends, 1), jnp.sum(states.b * states.b, (0, 1))
        rate = _power_of_two_above(lax.stop_gradient(jnp.sqrt(squares[0] + size_b + squares[1])))
        swap = squares[0] > squares[1]
        ends = jnp.where(swap[None, None], ends[::-1], ends) / rate[None, None]
        b = jnp.where(swap[None, None], jnp.swapaxes(states.b, 0, 1), states.b) / rate[None, None]
        squares = jnp.where(swap[None], squares[::-1], squares)
        excess = (jnp.stack([size_b, squares[1]]) - squares[:1]) / (rate * rate)[None]
        a, c = ends
        identity = np.eye(a.shape[0], dtype=a.dtype)[:, :, None]
        gram = jnp.einsum("ijl,mjl->iml", b, b, precision="highest")
        velocity = jnp.einsum("ijl,jl->il", b, c, precision="highest")
        return cls(
            matrix=gram - a[:, None] * a[None] + excess[1][None, None] * identity,
            point=jnp.stack([a, velocity]),
            excess=excess,
            unit=1 / (rate * jnp.abs(strength)),
            truncated=truncated,
            width=width,
        )

    def expand(self, order: Int[Array, ""], size: int) -> Taylor:
        """Taylor coefficients about this instant, of an order that buffers of a size hold."""
        return expand_flow(self.matrix, self.point, self.width, order, size)

    def in_units(self, raw: Raw) -> Raw:
        """Times in the units of the state that the problem was made of."""
        unit = self.unit
        return Raw(
            time=raw.time * unit,
            lower=raw.lower * unit,
            upper=raw.upper * unit,
            error=raw.error * unit,
            spread=raw.spread * unit,
            settled=raw.settled,
            limited=raw.limited,
            num_steps=raw.num_steps,
        )

    def last_share(self) -> Float[Array, " lanes"]:
        r"""The share of $\|a\|^2$ on the last basis vectors: see `jaxcond.reduction.truncation`."""
        squares = self.point[0] ** 2
        total = jnp.sum(squares, 0)
        return squares[self.width - 1] / jnp.where(total > 0, total, 1)

    def norms(self, a_squared: Float[Array, " lanes"]) -> Float[Array, "3 lanes"]:
        r"""$(\|a\|^2, \|b\|^2, \|c\|^2)$ when the first of them is `a_squared`."""
        return jnp.concatenate([a_squared[None], jnp.maximum(a_squared[None] + self.excess, 0)])


class Expansion(eqx.Module):
    r"""What one Taylor expansion says of the blow-up time.

    - `zero`: the first positive zero of $\tau$, with an estimate of its `error`.
    - `falls`: whether $\tau$ falls there, as it does at its first zero.
    - `table`: the coefficients of $\tau$ and of its first three derivatives.
    """

    zero: Float[Array, " lanes"]
    error: Float[Array, " lanes"]
    falls: Bool[Array, " lanes"]
    table: Float[Array, "4 filled lanes"]

    def suffices(self, rtol: Float[Array, "..."]) -> Bool[Array, " lanes"]:
        """Whether its zero is as exact as is asked for."""
        return (self.error <= rtol * self.zero) & self.falls

    def reaches(self, elapsed: Array, rtol: Float[Array, "..."]) -> Bool[Array, " lanes"]:
        """Whether its zero is as exact as the arithmetic allows, against the whole time."""
        total = elapsed + self.zero
        allowed = jnp.maximum(16 * jnp.finfo(total.dtype).eps, 0.01 * rtol)
        return (self.error <= allowed * total) & jnp.isfinite(total)


def _first_zero(table: Float[Array, "3 filled lanes"], problem: Problem) -> Float[Array, " lanes"]:
    r"""The first positive zero of $\tau$, approached from the left.

    Each step is a lower bound on the time left, so the zero cannot be passed, let alone a later one
    be found; the bound is sharp to third order, and so the steps converge. Newton's method from
    there removes the last rounding.
    """

    def advance(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        x, _, count = carry
        value, first, second = evaluate(table, x)
        a_squared = jnp.maximum(first * first - value * second, 0) / (value * value)
        # Carlson's algorithm broken off: the mean of what is left bounds R_F from below, since
        # R_F is an average of a convex function.
        bound = rough_lower_bound(problem.norms(a_squared))
        bound = jnp.where((value > 0) & jnp.isfinite(bound), bound, 0)
        x = x + bound
        return x, jnp.any(bound > eps / 8 * x), count + 1

    def newton(_: Array, x: Array) -> Array:
        value, first, _ = evaluate(table, x)
        step = value / first
        return x - jnp.where(jnp.abs(step) < 0.01 * x, step, 0)

    eps = jnp.finfo(table.dtype).eps
    x, _, _ = lax.while_loop(
        lambda carry: carry[1] & (carry[2] < _NUM_ROOT_STEPS),
        advance,
        (jnp.zeros_like(table[0, 0]), jnp.ones((), bool), jnp.zeros((), jnp.int32)),
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
    zero = expansion.zero
    width = rtol * zero

    def narrow(_: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        distance = carry[0]
        x = zero - distance
        value, first, second, third = evaluate(expansion.table, x)
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


def find_zero(taylor: Taylor, problem: Problem, order: Int[Array, ""]) -> Expansion:
    r"""Find the zero of $\tau$ from the Taylor coefficients, with an estimate of its error."""
    tau = taylor.tau
    slopes = derivatives(tau, 3)
    powers = np.arange(slopes.shape[1])[:, None]
    # The last two terms show what truncation leaves out, unless they happen to change sign there:
    # the two before them show that.
    share = jnp.where(powers >= order - 1, 1, jnp.where(powers >= order - 3, _EARLIER_TERMS, 0))
    ends = jnp.abs(slopes[0]) * share.astype(tau.dtype)
    sizes = jnp.pad(taylor.sizes, ((0, len(powers) - len(tau)), (0, 0)))
    last = jnp.pad(taylor.last, ((2, len(powers) - len(tau)), (0, 0)))
    missing = last / np.maximum(powers * (powers - 1), 1).astype(tau.dtype)
    table = jnp.concatenate([slopes, jnp.stack([ends, sizes, missing])])
    zero = _first_zero(table[:3], problem)
    values = evaluate(table, zero)
    wrong = jnp.abs(values[0]) + values[4] + 4 * jnp.finfo(tau.dtype).eps * values[5]
    wrong = wrong + jnp.where(problem.truncated, _MISSING * jnp.abs(values[6]), 0)
    return Expansion(zero, wrong / jnp.abs(values[1]), values[1] < 0, table[:4])


def advance(
    a: Float[Array, "powers k lanes"],
    order: Int[Array, ""],
    pace: float | Float[Array, " lanes"] = PACE,
) -> tuple[Float[Array, "2 k lanes"], Float[Array, " lanes"]]:
    """Follow an expansion part of the way: $(a, a')$ and the step.

    `pace` is the step over that at which the last terms reach rounding. To differentiation the step
    is a constant: $T^*$ does not depend on where the flow is expanded.
    """
    size = jnp.max(jnp.abs(lax.stop_gradient(a)), axis=1)
    eps = jnp.finfo(a.dtype).eps
    # Every second term may be missing, by symmetry.
    powers = jnp.stack([order, order - 1])
    ends, n = size[powers], powers[:, None].astype(size.dtype)
    last = jnp.where(ends > 0, ends, 1)
    from_a = (eps * size[:1] / last) ** (1 / n)
    from_velocity = (eps * size[1:2] / last) ** (1 / (n - 1))
    reach = jnp.where(ends > 0, jnp.maximum(from_a, from_velocity), jnp.inf)
    step = pace * jnp.min(reach, axis=0)
    return evaluate(derivatives(a, 1), step), step
