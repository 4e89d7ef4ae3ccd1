"""Checks and conversions of widths and scales that ensembles share."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Real

Width = Real[Array, ""] | int | float
Scale = Real[Array, ""] | float
Scales = tuple[Scale, Scale, Scale]


def check_scale(name: str, scale: Any, shown: Any) -> None:
    """Raise `ValueError` for a scale that is a number but infinite, NaN, or negative."""
    if isinstance(scale, (int, float)) and not (0 <= scale < math.inf):
        raise ValueError(f"Argument `{name}` must be finite and not negative, but is {shown}.")


def check_scales(scales: tuple) -> None:
    """Raise `ValueError` unless there are three valid scales."""
    if len(scales) != 3:
        raise ValueError(f"Argument `scales` must hold three values, but is {scales}.")
    for scale in scales:
        check_scale("scales", scale, scales)


def full_widths(p: Any, q: Any) -> tuple[int, int]:
    """The widths of a full state, which fix its shapes.

    **Raises:** `ValueError` if they are arrays.
    """
    if not all(isinstance(width, (int, float)) for width in (p, q)):
        raise ValueError("Full states need widths that are Python integers, not arrays.")
    return int(p), int(q)


def default_dtype(dtype: jnp.dtype | None) -> jnp.dtype:
    """The given dtype, or JAX's default."""
    return jnp.result_type(float) if dtype is None else dtype


def as_dtype(values: tuple, dtype: jnp.dtype) -> tuple[Array, ...]:
    """Numbers or arrays in a dtype, so that products with them keep it."""
    return tuple(jnp.asarray(value, dtype) for value in values)
