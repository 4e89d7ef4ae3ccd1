"""The abstract ensemble of initial states."""

import abc
from collections.abc import Sequence
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PRNGKeyArray

from .._reduction import reduce
from .._state import State
from ..blowup import Form, Samples, as_indices
from ..sampling import Draws, HostSampler

# Default dimension of reduced samples; a method may ask for another.
_DIM = 12


class AbstractEnsemble(eqx.Module):
    """A distribution of initial states.

    - `exact_reduction`: whether the law of the reduced states is known, so that the cost of
      `sample_reduced` does not depend on the width. Otherwise that method draws a full state and
      reduces it.
    """

    exact_reduction: ClassVar[bool] = False

    @abc.abstractmethod
    def sample(self, *, key: PRNGKeyArray, dtype: jnp.dtype | None = None) -> State:
        """One state at full width."""

    def sample_reduced(
        self, *, key: PRNGKeyArray, dim: int = 12, dtype: jnp.dtype | None = None
    ) -> State:
        """One state with the law of the ensemble's states reduced to `dim` dimensions.

        By default the full state with the same key, reduced; ensembles with a known reduced law
        draw from that law instead.

        **Raises:** `ValueError` as `reduce`.
        """
        return reduce(self.sample(key=key, dtype=dtype), dim).state

    def form(self) -> Form:
        """Rank, widths and dtype of the full states."""
        state = eqx.filter_eval_shape(lambda: self.sample(key=jax.random.key(0)))
        return Form(state.rank, state.widths, state.dtype)

    def reduction_ends(self, dim: int) -> bool:
        """Whether reduction to `dim` dimensions is certain to lose nothing."""
        del dim
        return False

    def reduced_on_host(self, key: PRNGKeyArray, dim: int) -> HostSampler | None:
        """A function that draws the reduced states of some indices without a JAX program.

        `None` if the ensemble has none.
        """
        del key, dim
        return None

    def draws(
        self,
        indices: int | np.integer | Sequence[int] | np.ndarray,
        *,
        key: PRNGKeyArray,
        reduced: bool = True,
    ) -> Samples:
        """Samples for `blowup_times`, drawn where they are solved and never stored.

        **Arguments:**

        - `indices`: which samples: a number $n$ for the first $n$, or their global indices. A
          sample depends only on the key and its index.
        - `key`: a JAX random key.
        - `reduced`: whether to draw samples in reduced form instead of in full. With
          `exact_reduction`, time and memory then do not depend on the width.

        **Raises:** `ValueError` for negative counts or indices, and for indices beyond 32 bits
        without `jax_enable_x64`.
        """
        return Samples(Draws(self, key, _DIM if reduced else None), as_indices(indices))
