"""What an ensemble is, and how its samples are numbered."""

import abc
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from .._reduction import reduce
from .._state import State


class AbstractEnsemble(eqx.Module):
    """A distribution of initial states.

    - `exact_reduction`: whether the law of its reduced states is known, so that `sample_reduced`
      costs the same at any width; otherwise that draws a full state and reduces it.
    """

    exact_reduction: ClassVar[bool] = False

    @abc.abstractmethod
    def sample(self, *, key: PRNGKeyArray, dtype: jnp.dtype | None = None) -> State:
        """One state at full width."""

    def sample_reduced(
        self, *, key: PRNGKeyArray, dim: int = 12, dtype: jnp.dtype | None = None
    ) -> State:
        """One state with the law of the ensemble's states reduced to `dim` dimensions.

        Here `reduce` of the full state with the same key: ensembles whose reduced law is known
        draw from that instead.

        **Raises:** `ValueError` as `reduce`.
        """
        return reduce(self.sample(key=key, dtype=dtype), dim).state


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
