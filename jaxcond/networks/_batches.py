r"""The samples of each step: all, a minibatch, or a batch that the caller supplies.

$$\theta_{k+1} = \theta_k - \eta_k \nabla R_{B_k}(\theta_k), \qquad
  R_B = \tfrac1{|B|}\textstyle\sum_{i\in B}\ell(f(x_i), y_i)$$
"""

import abc
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, PRNGKeyArray

from ._data import AbstractData, Regression
from ._losses import Loss
from ._modules import MLP

Batches = Iterable[Any] | Callable[[int], Iterable[Any]]
"""Pairs `(x, y)`, or a function of an iteration that returns those from there on."""

# Batches go to the device in blocks of this many, or of this many bytes if that is less.
_BLOCK, _BYTES = 64, 2**24


class AbstractBatches(eqx.Module):
    """The samples of each step."""

    whole: ClassVar[bool] = False
    """Whether every step is taken on all samples, so that its loss is that of the data."""

    @abc.abstractmethod
    def at(self, data: AbstractData, key: PRNGKeyArray, iteration: Int[Array, ""]) -> AbstractData:
        """The samples of the step from an iteration on, traced."""


class AllSamples(AbstractBatches):
    """All samples in every step."""

    whole: ClassVar[bool] = True

    def at(self, data: AbstractData, key: PRNGKeyArray, iteration: Int[Array, ""]) -> AbstractData:
        return data


class Permuted(AbstractBatches):
    """Minibatches: every epoch goes through a new permutation of all samples."""

    size: int = eqx.field(static=True)

    def at(self, data: AbstractData, key: PRNGKeyArray, iteration: Int[Array, ""]) -> AbstractData:
        total = data.targets.shape[0]
        epoch, position = jnp.divmod(iteration, total // self.size)
        order = jax.random.permutation(jax.random.fold_in(key, epoch), total)
        return data.take(lax.dynamic_slice_in_dim(order, position * self.size, self.size))


class Block(AbstractBatches):
    """The caller's batches along a leading axis; the first one is for iteration `start`."""

    samples: Regression
    start: Int[Array, ""]

    def at(self, data: AbstractData, key: PRNGKeyArray, iteration: Int[Array, ""]) -> AbstractData:
        return jax.tree.map(lambda leaf: leaf[iteration - self.start], self.samples)


class Stream:
    """The caller's batches on the host, read once and a block at a time.

    **Raises:** `ValueError` for a batch that is not a pair of arrays, does not fit the network or
    the previous batch, or is not finite; the message names its iteration.
    """

    def __init__(self, batches: Batches, network: MLP, loss: Loss):
        self._batches, self._network, self._loss = batches, network, loss
        self._source = None
        self._shapes: list[tuple[int, ...]] = []

    def first(self, iteration: int) -> tuple[np.ndarray, np.ndarray] | None:
        """The batch of an iteration, from a source that can be opened more than once."""
        assert callable(self._batches)
        for pair in self._batches(iteration):
            return self._arrays(pair, iteration)
        return None

    def read(self, iteration: int, last: int) -> tuple[Block | None, int]:
        """The next batches, at most up to iteration `last`, and the iteration after them."""
        if self._source is None:
            batches = self._batches(iteration) if callable(self._batches) else self._batches
            self._source = iter(batches)
        pairs: list[tuple[np.ndarray, np.ndarray]] = []
        size = 1
        while len(pairs) < min(size, last - iteration):
            pair = next(self._source, None)
            if pair is None:
                break
            pairs.append(self._arrays(pair, iteration + len(pairs)))
            size = max(1, min(_BLOCK, _BYTES // sum(array.nbytes for array in pairs[0])))
        end = iteration + len(pairs)
        return (self._block(pairs, iteration, size) if pairs else None), end

    def _arrays(self, pair: Any, iteration: int) -> tuple[np.ndarray, np.ndarray]:
        where = f"Batch of iteration {iteration} of `batches`"
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise ValueError(
                f"{where} must be a pair (x, y), but is of type {type(pair).__name__}."
            )
        x, y = (np.asarray(part) for part in pair)
        x, y = (part[:, None] if part.ndim == 1 else part for part in (x, y))
        for name, part in (("x", x), ("y", y)):
            if not (np.issubdtype(part.dtype, np.number) or part.dtype == bool):
                raise ValueError(
                    f"{where}: `{name}` must hold numbers, but has dtype {part.dtype}."
                )
            bad = int(np.sum(~np.isfinite(part)))
            if bad:
                raise ValueError(f"{where}: `{name}` holds {bad} entries that are not finite.")
        shapes = [x.shape, y.shape]
        if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or 0 in x.shape + y.shape:
            raise ValueError(
                f"{where} must be arrays (n, inputs) and (n, outputs), but has shapes {shapes[0]} "
                f"and {shapes[1]}."
            )
        if self._shapes and shapes != self._shapes:
            raise ValueError(
                f"{where} has shapes {shapes[0]} and {shapes[1]}, but the one before it "
                f"{self._shapes[0]} and {self._shapes[1]}: all must be of one size, so leave out "
                "what is over at the end of an epoch."
            )
        self._shapes = shapes
        return x, y

    def _block(self, pairs: list[tuple[np.ndarray, np.ndarray]], start: int, size: int) -> Block:
        # Padded to the full size, so that one program takes the last block too.
        padded = pairs + [pairs[-1]] * (size - len(pairs))
        try:
            flat = Regression(*(np.concatenate(parts) for parts in zip(*padded, strict=True)))
            flat = flat.prepared(self._network, self._loss)
        except ValueError as error:
            end = start + len(pairs) - 1
            raise ValueError(f"Batches of iterations {start} to {end}: {error}") from error
        samples = jax.tree.map(lambda leaf: leaf.reshape(size, -1, *leaf.shape[1:]), flat)
        return Block(samples, jnp.asarray(start))
