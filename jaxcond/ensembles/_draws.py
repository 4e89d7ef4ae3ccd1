"""Samples of an ensemble by their global index, and their blow-up times."""

from collections.abc import Callable, Sequence

import equinox as eqx
import numpy as np
from jaxtyping import Array, Integer, PRNGKeyArray

from .._state import State
from ..blowup import AbstractMethod, AbstractSource, BlowUp, solve_indices
from ._arguments import as_indices
from ._ensemble import AbstractEnsemble, sample_key


class Draws(AbstractSource):
    """The samples of an ensemble, numbered from 0: a source for `solve_indices`.

    - `ensemble`, `key`: sample $i$ depends on these and on $i$ alone.
    - `dim`: dimension of the reduced form in which samples are drawn; `None` draws them in full.
    """

    ensemble: AbstractEnsemble
    key: PRNGKeyArray
    dim: int | None = eqx.field(static=True)

    @property
    def truncated(self) -> bool:
        """Reduced samples stand for states of any width."""
        return self.dim is not None

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


def sample_blowup_times(
    ensemble: AbstractEnsemble,
    indices: int | np.integer | Sequence[int] | np.ndarray,
    *,
    key: PRNGKeyArray,
    rtol: float | None = None,
    reduced: bool = True,
    methods: Sequence[AbstractMethod] | None = None,
    progress: Callable[[int], None] | None = None,
) -> BlowUp:
    """Blow-up times of random states, drawn where they are solved and never stored.

    **Arguments:**

    - `ensemble`: the distribution of the states.
    - `indices`: which samples: a number $n$ for the first $n$, or their global indices. A sample is
      determined by the key and its index, whatever it is drawn together with.
    - `key`: a JAX random key.
    - `reduced`: draw samples in their reduced form, in time and memory that do not depend on the
      width where the ensemble has `exact_reduction`; otherwise in full.
    - `rtol`, `methods`, `progress`: as for `blowup_times`.

    **Returns:** a `BlowUp` with one entry per index.

    **Raises:** `ValueError` for negative counts or indices, and as `blowup_times`.
    """
    indices = as_indices(indices)
    source = Draws(ensemble, key, 12 if reduced else None)
    return solve_indices(source, indices, rtol=rtol, methods=methods, progress=progress)
