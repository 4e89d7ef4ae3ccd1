"""Uniform unit vectors."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray


def on_sphere(size: int, dtype: jnp.dtype, *, key: PRNGKeyArray) -> Array:
    """A vector uniform on the unit sphere in `size` dimensions."""
    vector = jax.random.normal(key, (size,), dtype)
    norm = jnp.sqrt(jnp.sum(vector * vector))
    # A single normal number can be drawn as zero in low precision.
    first = jnp.zeros_like(vector).at[0].set(1)
    return jnp.where(norm > 0, vector / jnp.where(norm > 0, norm, 1), first)
