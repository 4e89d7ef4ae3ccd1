"""Where the chains of a batch come from."""

import abc
from dataclasses import dataclass

import equinox as eqx
import jax
import numpy as np
from jax import lax
from jaxtyping import Array, Integer

from .._chain import Chain, as_state
from .._state import State
from ._method import AbstractMethod, Form
from ._source import AbstractSource


class AbstractChainSource(eqx.Module):
    """What chain an index stands for."""

    @abc.abstractmethod
    def __call__(self, index: Integer[Array, ""]) -> Chain:
        """The chain at an index; may be traced."""

    @property
    @abc.abstractmethod
    def form(self) -> Chain:
        """A chain without entries: the shapes and the dtype of every chain of this source."""


class StoredChains(AbstractChainSource):
    """The chains of a batch along the leading axis."""

    chains: Chain

    @property
    def form(self) -> Chain:
        """That of the batch."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.chains)

    def __call__(self, index: Integer[Array, ""]) -> Chain:
        """The chain at an index."""
        return jax.tree.map(
            lambda leaf: lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False), self.chains
        )


@dataclass(frozen=True)
class ChainSamples:
    """Some samples of a source of chains: what `blowup_times` takes besides a batch.

    - `source`: what chain an index stands for.
    - `indices`: which samples, in their order.
    """

    source: AbstractChainSource
    indices: np.ndarray

    def __len__(self) -> int:
        """How many samples."""
        return self.indices.size

    def __getitem__(self, where: slice) -> "ChainSamples":
        """Some of these samples."""
        return ChainSamples(self.source, self.indices[where])


class AsStates(AbstractSource):
    """Chains of three layers as states."""

    chains: AbstractChainSource

    @property
    def truncated(self) -> bool:
        """They are taken for what they are."""
        return False

    @property
    def form(self) -> Form:
        """That of their states."""
        state = eqx.filter_eval_shape(as_state, self.chains.form)
        return Form(state.rank, state.widths, state.dtype)

    def suited_to(self, method: AbstractMethod) -> "AsStates":
        """They have one form."""
        del method
        return self

    def __call__(self, index: Integer[Array, ""]) -> State:
        """The state at an index."""
        return as_state(self.chains(index))
