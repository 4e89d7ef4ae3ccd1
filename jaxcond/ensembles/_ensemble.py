"""What an ensemble is."""

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

# Dimension in which reduced samples are drawn unless a method asks for another.
_DIM = 12


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

    def form(self) -> Form:
        """Rank, widths and dtype of the full states."""
        state = eqx.filter_eval_shape(lambda: self.sample(key=jax.random.key(0)))
        return Form(state.rank, state.widths, state.dtype)

    def reduction_ends(self, dim: int) -> bool:
        """Whether states reduced to `dim` dimensions lose nothing, as far as is known."""
        del dim
        return False

    def reduced_on_host(self, key: PRNGKeyArray, dim: int) -> HostSampler | None:
        """A function of indices that draws their reduced states without a program of JAX.

        `None` where there is none.
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
        """Samples for `blowup_times`, which are drawn where they are solved and never stored.

        **Arguments:**

        - `indices`: which samples: a number $n$ for the first $n$, or their global indices. A
          sample is determined by the key and its index, whatever it is drawn together with.
        - `key`: a JAX random key.
        - `reduced`: draw samples in their reduced form, in time and memory that do not depend on
          the width where the ensemble has `exact_reduction`; otherwise in full.

        **Raises:** `ValueError` for negative counts or indices, and for indices beyond 32 bits
        without `jax_enable_x64`.
        """
        return Samples(Draws(self, key, _DIM if reduced else None), as_indices(indices))
