"""Samples of a distribution by their global index."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Integer, PRNGKeyArray

from .._state import State
from ..blowup import AbstractMethod, AbstractSource, Form, HostStates
from ._keys import sample_key

HostSampler = Callable[[np.ndarray], HostStates]


@runtime_checkable
class Distribution(Protocol):
    """The part of `ensembles.AbstractEnsemble` that `Draws` needs."""

    def form(self) -> Form:
        """Rank, widths and dtype of its full states."""
        ...

    def sample(self, *, key: PRNGKeyArray, dtype: jnp.dtype | None = None) -> State:
        """One full state."""
        ...

    def sample_reduced(
        self, *, key: PRNGKeyArray, dim: int = 12, dtype: jnp.dtype | None = None
    ) -> State:
        """One reduced state."""
        ...

    def reduction_ends(self, dim: int) -> bool:
        """Whether reduction to `dim` dimensions loses nothing."""
        ...

    def reduced_on_host(self, key: PRNGKeyArray, dim: int) -> HostSampler | None:
        """A function that draws the reduced states of some indices without a JAX program."""
        ...


class Draws(AbstractSource):
    """The samples of an ensemble, numbered from 0.

    - `ensemble`, `key`: sample $i$ depends only on these and $i$.
    - `dim`: dimension of the reduced form in which samples are drawn; `None` draws them in full.
    """

    ensemble: Distribution
    key: PRNGKeyArray
    dim: int | None = eqx.field(static=True)

    @property
    def truncated(self) -> bool:
        """Whether samples are reduced, by a reduction that does not end by itself."""
        return self.dim is not None and not self.ensemble.reduction_ends(self.dim)

    @property
    def form(self) -> Form:
        """The form of the full states, or of the reduced ones of rank 1."""
        if self.dim is None:
            return self.ensemble.form()
        return Form(1, (self.dim, self.dim), np.dtype(jnp.result_type(float)))

    def suited_to(self, method: AbstractMethod) -> "Draws":
        """Reduced samples in the dimension that a method works in."""
        if self.dim is None:
            return self
        dim = method.reduced_dim(1)
        return Draws(self.ensemble, self.key, self.dim if dim is None else dim)

    def __call__(self, index: Integer[Array, ""]) -> State:
        """The sample with a global index."""
        key = sample_key(self.key, index)
        if self.dim is None:
            return self.ensemble.sample(key=key)
        return self.ensemble.sample_reduced(key=key, dim=self.dim)

    def on_host(self) -> HostSampler | None:
        """The ensemble's sampler on the host, if it has one."""
        return None if self.dim is None else self.ensemble.reduced_on_host(self.key, self.dim)
