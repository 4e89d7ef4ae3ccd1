"""Sources of chains for batches."""

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
    """A map from indices to chains."""

    @abc.abstractmethod
    def __call__(self, index: Integer[Array, ""]) -> Chain:
        """The chain at an index; may be traced."""

    @property
    @abc.abstractmethod
    def form(self) -> Chain:
        """A chain of shapes and dtypes, common to all chains of this source."""


class StoredChains(AbstractChainSource):
    """The chains of a batch along the leading axis."""

    chains: Chain

    @property
    def form(self) -> Chain:
        """Shapes and dtype of one chain of the batch."""
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.chains)

    def __call__(self, index: Integer[Array, ""]) -> Chain:
        """The chain at an index."""
        return jax.tree.map(
            lambda leaf: lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False), self.chains
        )


@dataclass(frozen=True)
class ChainSamples:
    """Samples of a chain source, as an argument of `blowup_times`.

    - `source`: map from indices to chains.
    - `indices`: indices of the samples, in order.
    """

    source: AbstractChainSource
    indices: np.ndarray

    def __len__(self) -> int:
        """Number of samples."""
        return self.indices.size

    def __getitem__(self, where: slice) -> "ChainSamples":
        """The samples at a slice."""
        return ChainSamples(self.source, self.indices[where])


class AsStates(AbstractSource):
    """Chains of three layers as states."""

    chains: AbstractChainSource

    @property
    def truncated(self) -> bool:
        """False: the states are complete."""
        return False

    @property
    def form(self) -> Form:
        """Rank, widths and dtype of the states."""
        state = eqx.filter_eval_shape(as_state, self.chains.form)
        return Form(state.rank, state.widths, state.dtype)

    def suited_to(self, method: AbstractMethod) -> "AsStates":
        """This source itself, since its states have one form."""
        del method
        return self

    def __call__(self, index: Integer[Array, ""]) -> State:
        """The state at an index."""
        return as_state(self.chains(index))
