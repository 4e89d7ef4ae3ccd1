"""A root in [0, 1], with derivatives by the implicit function theorem."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Bisection alone would need one step for each bit; interpolation seldom takes ten.
_MOST_STEPS = 100


def root(function: Callable[[Array], Array], dtype: jnp.dtype) -> Float[Array, ""]:
    """Where a function of a number in [0, 1] changes its sign, by Chandrupatla's method.

    **Arguments:** `function`, continuous; `dtype`, of its argument.

    **Returns:** the root to rounding; if both ends have the same sign, the end at which the
    function is smaller. Derivatives with respect to the arrays in the function come from the
    implicit equation, in both modes and to any order.

    Source: T. R. Chandrupatla, *A new hybrid quadratic/bisection algorithm* (1997).
    """

    def tangent(linear: Callable[[Array], Array], value: Array) -> Array:
        return value / linear(jnp.ones_like(value))

    guess = jnp.zeros((), dtype)
    return lax.custom_root(function, guess, lambda f, _: _bracketed(f, dtype), tangent)


def _bracketed(function: Callable[[Array], Array], dtype: jnp.dtype) -> Array:
    precision = 2 * jnp.finfo(dtype).eps
    ends = jnp.zeros((), dtype), jnp.ones((), dtype)
    values = tuple(function(x) for x in ends)

    def going(carry: tuple[Array, ...]) -> Array:
        step, x, other, _, f, f_other, _, _ = carry
        open_ = jnp.abs(x - other) > 2 * precision
        return (step < _MOST_STEPS) & (f != 0) & (f_other != 0) & open_

    def refine(carry: tuple[Array, ...]) -> tuple[Array, ...]:
        step, x, other, _, f, f_other, _, share = carry
        new = x + share * (other - x)
        f_new = function(new)
        # `other` stays on the far side of the root, `before` is the point given up.
        same = jnp.sign(f_new) == jnp.sign(f)
        before, f_before = jnp.where(same, x, other), jnp.where(same, f, f_other)
        other, f_other = jnp.where(same, other, x), jnp.where(same, f_other, f)
        xi = (new - other) / (before - other)
        phi = (f_new - f_other) / (f_before - f_other)
        inside = (phi**2 < xi) & ((1 - phi) ** 2 < 1 - xi)
        quadratic = f_new / (f_other - f_new) * f_before / (f_other - f_before)
        quadratic += (
            (before - new) / (other - new)
            * f_new / (f_before - f_new) * f_other / (f_before - f_other)
        )  # fmt: skip
        share = jnp.where(inside & jnp.isfinite(quadratic), quadratic, 0.5)
        least = jnp.minimum(precision / jnp.abs(other - new), 0.5)
        return (
            step + 1,
            new,
            other,
            before,
            f_new,
            f_other,
            f_before,
            jnp.clip(share, least, 1 - least),
        )

    half = jnp.full((), 0.5, dtype)
    step = jnp.zeros((), jnp.int32)
    changes = jnp.sign(values[0]) != jnp.sign(values[1])
    first = (step + jnp.where(changes, 0, _MOST_STEPS), *ends, ends[0], *values, values[0], half)
    _, x, other, _, f, f_other, _, _ = lax.while_loop(going, refine, first)
    return jnp.where(jnp.abs(f) <= jnp.abs(f_other), x, other)
