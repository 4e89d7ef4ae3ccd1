"""Sources of states for batches."""

import abc
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Integer

from .._state import State
from ._method import AbstractMethod, Form, HostStates


class AbstractSource(eqx.Module):
    """A map from indices to states."""

    @property
    @abc.abstractmethod
    def truncated(self) -> bool:
        """Whether the states are reduced forms of wider states."""

    @property
    @abc.abstractmethod
    def form(self) -> Form:
        """Rank, widths and dtype of the states."""

    @abc.abstractmethod
    def suited_to(self, method: AbstractMethod) -> "AbstractSource":
        """The same states in the dimension that a method needs, if the dimension is free."""

    @abc.abstractmethod
    def __call__(self, index: Integer[Array, ""]) -> State:
        """The state at an index; may be traced."""

    @property
    def is_given(self) -> bool:
        """Whether the user gave the states one by one, so that special states can be intended."""
        return False

    def on_host(self) -> Callable[[np.ndarray], HostStates] | None:
        """A function from indices to states that runs no JAX program; `None` if not available."""
        return None


class Stored(AbstractSource):
    """The states of a batch along the leading axis."""

    states: State

    @property
    def is_given(self) -> bool:
        """True: the user gave the states."""
        return True

    @property
    def truncated(self) -> bool:
        """False: stored states are complete."""
        return False

    @property
    def form(self) -> Form:
        """Rank, widths and dtype of the batch."""
        return Form(self.states.rank, self.states.widths, self.states.dtype)

    def suited_to(self, method: AbstractMethod) -> "Stored":
        """This source itself, since stored states have one form."""
        del method
        return self

    def __call__(self, index: Integer[Array, ""]) -> State:
        """The state at an index."""
        return jax.tree.map(
            lambda leaf: lax.dynamic_index_in_dim(leaf, index, 0, keepdims=False), self.states
        )

    def on_host(self) -> Callable[[np.ndarray], HostStates]:
        """A function from indices to states, without a copy for consecutive indices."""
        states = self.states
        fields = [np.asarray(x) for x in (states.a, states.b, states.c, states.strength)]

        def at(indices: np.ndarray) -> HostStates:
            first, last = int(indices[0]), int(indices[-1])
            ordered = last - first + 1 == indices.size and bool(np.all(np.diff(indices) == 1))
            where = slice(first, last + 1) if ordered else indices
            return HostStates(*(field[where] for field in fields))

        return at


@dataclass(frozen=True)
class Samples:
    """Samples of a source, as an argument of `blowup_times`.

    - `source`: what state an index stands for.
    - `indices`: which samples, in their order.
    """

    source: AbstractSource
    indices: np.ndarray

    def __len__(self) -> int:
        """How many samples."""
        return self.indices.size

    def __getitem__(self, where: slice) -> "Samples":
        """Some of these samples."""
        return Samples(self.source, self.indices[where])


def as_indices(indices: int | np.integer | Sequence[int] | np.ndarray) -> np.ndarray:
    """Global indices of samples, from a list of indices or a number of samples.

    **Raises:** `ValueError` for other values, and for indices that need 64 bits if JAX has 32.
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
