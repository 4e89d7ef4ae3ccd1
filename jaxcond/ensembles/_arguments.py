"""Checks that ensembles share, and widths and scales as their samplers need them."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def check_width(name: str, width: Any) -> None:
    """Raise `ValueError` for a width that is a number but not a positive whole one."""
    if isinstance(width, (int, float)) and not (width >= 1 and float(width).is_integer()):
        raise ValueError(f"Argument `{name}` must be a positive whole number, but is {width}.")


def check_scale(name: str, scale: Any, shown: Any) -> None:
    """Raise `ValueError` for a scale that is a number but not finite and positive or zero."""
    if isinstance(scale, (int, float)) and not (0 <= scale < math.inf):
        raise ValueError(f"Argument `{name}` must be finite and not negative, but is {shown}.")


def check_scales(scales: tuple) -> None:
    """Raise `ValueError` unless there are three right scales."""
    if len(scales) != 3:
        raise ValueError(f"Argument `scales` must hold three values, but is {scales}.")
    for scale in scales:
        check_scale("scales", scale, scales)


def as_indices(indices: int | np.integer | Sequence[int] | np.ndarray) -> np.ndarray:
    """Global indices of samples, from themselves or from a number of samples.

    **Raises:** `ValueError` for what is neither, and for indices beyond 32 bits where JAX has none.
    """
    if isinstance(indices, int | np.integer):
        if indices < 1:
            raise ValueError(
                f"Argument `indices` must be a positive number of samples, but is {indices}."
            )
        indices = np.arange(indices)
    array = np.asarray(indices)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            "Argument `indices` must be a number of samples or a list of whole numbers."
        )
    if array.min() < 0:
        raise ValueError(f"Argument `indices` must not be negative, but holds {array.min()}.")
    largest = np.iinfo(np.uint32).max
    if array.max() > largest and jnp.result_type(float) != jnp.float64:
        raise ValueError(
            f"Sample indices above {largest} need 64-bit integers: enable `jax_enable_x64`."
        )
    return array.astype(np.uint32 if array.max() <= largest else np.int64)


def full_widths(p: Any, q: Any) -> tuple[int, int]:
    """The widths of a full state, whose shapes must be known.

    **Raises:** `ValueError` if they are arrays.
    """
    if not all(isinstance(width, (int, float)) for width in (p, q)):
        raise ValueError("Full states need widths that are Python integers, not arrays.")
    return int(p), int(q)


def default_dtype(dtype: jnp.dtype | None) -> jnp.dtype:
    """The dtype asked for, or JAX's own."""
    return jnp.result_type(float) if dtype is None else dtype


def as_dtype(values: tuple, dtype: jnp.dtype) -> tuple[Array, ...]:
    """Numbers or arrays in a dtype, so that what they multiply keeps it."""
    return tuple(jnp.asarray(value, dtype) for value in values)
