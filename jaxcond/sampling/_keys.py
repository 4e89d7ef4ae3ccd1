"""Keys of random numbers: of a seed, and of the sample with an index."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, PRNGKeyArray


def check_seed(seed: int) -> None:
    """Raise `ValueError` unless a seed is one that `seed_key` takes."""
    if not 0 <= seed < 2**63:
        raise ValueError(f"Argument `seed` must lie between 0 and 2^63 - 1, but is {seed}.")


def seed_key(seed: int) -> PRNGKeyArray:
    """The key of a seed between 0 and 2^63 - 1, the same whatever the precision of JAX is."""
    check_seed(seed)
    with jax.enable_x64(True):  # else seeds are cut to 32 bits
        return jax.random.key(seed)


def sample_key(key: PRNGKeyArray, index: Array | int) -> PRNGKeyArray:
    """The key of the sample with a global index: all that its random numbers depend on.

    **Arguments:** `key`, that of the study; `index`, from 0, below 2^32 or, as a 64-bit integer,
    below 2^64.
    """
    index = jnp.asarray(index)
    low = jax.random.fold_in(key, index.astype(jnp.uint32))
    if index.dtype.itemsize < 8:
        return low
    # Indices that fit 32 bits give the same key whatever integer they come in.
    high = (index >> 32).astype(jnp.uint32)
    return jax.lax.cond(high > 0, lambda: jax.random.fold_in(low, high), lambda: low)


def threefry_words(key: PRNGKeyArray) -> np.ndarray | None:
    """The two words of a key of JAX's default generator; `None` for others, and traced ones.

    The native kernel makes the numbers that `jax.random.bits` makes of such a key with the setting
    `jax_threefry_partitionable`, JAX's default.
    """
    partitionable = jax.config.jax_threefry_partitionable  # pyright: ignore[reportAttributeAccessIssue]
    if isinstance(key, Tracer) or not partitionable:
        return None
    if str(jax.random.key_impl(key)) != "threefry2x32":
        return None
    return np.asarray(jax.random.key_data(key))
