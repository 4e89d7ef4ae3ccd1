r"""Learning rates, constant or changed at some iterations, and the training time as their sum.

Iteration $k$ of gradient descent is time $t_k = \sum_{j<k} \eta_j$ of gradient flow.
"""

import math
from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class LearningRate(eqx.Module):
    r"""A learning rate that is constant between changes.

    - `starts`: the iterations at which the rates begin, the first one 0, shape `(num,)`.
    - `rates`: the rates $\eta$, shape `(num,)`.
    """

    starts: Int[np.ndarray | Array, " num"]
    rates: Float[np.ndarray | Array, " num"]

    @classmethod
    def of(cls, learning_rate: "float | Mapping[int, float] | LearningRate") -> "LearningRate":
        """From a number, or a mapping of iterations to rates like `{0: 5e-3, 205_000: 5e-4}`.

        **Raises:** `ValueError` for rates that are not positive and finite, if no rate begins at 0,
        or for a schedule of optax, which belongs into the optimiser.
        """
        if isinstance(learning_rate, LearningRate):
            return learning_rate
        table = learning_rate if isinstance(learning_rate, Mapping) else {0: learning_rate}
        if any(callable(rate) or np.ndim(rate) for rate in table.values()):
            raise ValueError(
                "Argument `learning_rate` must be a number or a mapping of iterations to numbers, "
                f"but is of type {type(learning_rate).__name__}: give an optimiser of optax as "
                "`optimiser`, and a schedule inside it, as in `optimiser=optax.sgd(schedule)`."
            )
        starts = sorted(table)
        if not starts or starts[0] != 0 or any(start != int(start) for start in starts):
            raise ValueError(
                "Argument `learning_rate` must map iterations, the first of them 0, to rates, but "
                f"has the iterations {starts}."
            )
        rates = [float(table[start]) for start in starts]
        if not all(0 < rate < math.inf for rate in rates):
            raise ValueError(
                f"Argument `learning_rate` must be positive and finite, but is {learning_rate}."
            )
        return cls(np.asarray(starts, np.int64), np.asarray(rates, np.float64))

    def at(self, iteration: Int[Array, ""]) -> Float[Array, ""]:
        """The rate of the step from an iteration on, traced."""
        # Counted, not searched, since a search would be a loop inside every step.
        index = jnp.sum(jnp.asarray(self.starts) <= iteration) - 1
        return jnp.asarray(self.rates)[index]

    def _boundaries(self) -> np.ndarray:
        """Training time at each of `starts`."""
        spans = np.diff(self.starts) * self.rates[:-1]
        return np.concatenate([[0.0], np.cumsum(spans)])

    def rate_at(self, times: np.ndarray) -> np.ndarray:
        """The rates at some training times, on the host."""
        index = np.searchsorted(self._boundaries(), times, side="right") - 1
        return np.asarray(np.asarray(self.rates)[np.maximum(index, 0)])

    def time_of(self, iterations: np.ndarray) -> np.ndarray:
        """Training time of some iterations, on the host."""
        index = np.searchsorted(self.starts, iterations, side="right") - 1
        begun = np.asarray(self.starts)[index]
        rates = np.asarray(self.rates)[index]
        return np.asarray(self._boundaries()[index] + (iterations - begun) * rates)

    def iteration_of(self, times: np.ndarray) -> np.ndarray:
        """Iterations of some training times, not rounded, on the host; inf and NaN stay."""
        times = np.asarray(times, np.float64)
        boundaries = self._boundaries()
        index = np.maximum(np.searchsorted(boundaries, times, side="right") - 1, 0)
        index = np.minimum(index, len(boundaries) - 1)
        rates = np.asarray(self.rates)[index]
        return np.asarray(np.asarray(self.starts)[index] + (times - boundaries[index]) / rates)
