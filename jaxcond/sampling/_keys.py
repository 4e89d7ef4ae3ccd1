"""Random keys of a seed and of a sample."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PRNGKeyArray


def check_seed(seed: int) -> None:
    """Raise `ValueError` for a seed that `seed_key` does not take."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"Argument `seed` must lie between 0 and 2^63 - 1, but is {seed}.")


def seed_key(seed: int) -> PRNGKeyArray:
    """The key of a seed between 0 and 2^63 - 1, the same in every precision of JAX."""
    check_seed(seed)
    with jax.enable_x64(True):  # otherwise seeds are cut to 32 bits
        return jax.random.key(seed)


def sample_key(key: PRNGKeyArray, index: Array | int) -> PRNGKeyArray:
    """The key of the sample with a global index, which determines all its random numbers.

    **Arguments:** `key`, that of the study; `index`, from 0, below 2^32 or, as a 64-bit integer,
    below 2^64.
    """
    index = jnp.asarray(index)
    low = jax.random.fold_in(key, index.astype(jnp.uint32))
    if index.dtype.itemsize < 8:
        return low
    # Indices that fit 32 bits give the same key in every integer dtype.
    high = (index >> 32).astype(jnp.uint32)
    return jax.lax.cond(high > 0, lambda: jax.random.fold_in(low, high), lambda: low)


def threefry_words(key: PRNGKeyArray) -> np.ndarray | None:
    """The two words of a key of JAX's default generator; `None` for others, and traced ones.

    From them the native kernel computes the same numbers as `jax.random.bits` with the setting
    `jax_threefry_partitionable`, JAX's default.
    """
    partitionable = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(key, Tracer) or not partitionable:
        return None
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return None
    return np.asarray(jax.random.key_data(key))
