r"""Chains of Gaussian layers: networks of any depth with independent normal initial weights."""

from collections.abc import Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray, Real

from .._chain import Chain
from ..blowup import AbstractChainSource, ChainSamples, as_indices
from ..sampling import check_width, sample_key
from ._arguments import as_dtype, check_scale, default_dtype


class GaussianChain(eqx.Module):
    r"""Chains whose layers have independent normal entries of mean zero.

    With all scales $\epsilon$ and all hidden widths $m$, blow-up times are $(\epsilon\sqrt
    m)^{2-L}$ times numbers whose law has a limit as $m \to \infty$ (`docs/depth.md`).

    **Arguments:**

    - `widths`: $(n_0, n_1, \dots, n_L)$, positive whole numbers, at least three: from the inputs to
      the outputs.
    - `scales`: standard deviation of the entries of all layers, or $(s_1, \dots, s_L)$, the layer
      next to the input first; positive or zero. They may be arrays, so that a sweep compiles once.
    - `target`: $V$, shape `(n_L, n_0)`; by default 1 where both are 1. For Gaussian layers of one
      scale each only its singular values matter for the law of the blow-up time.

    Samples are drawn in full, since the exact law of reduced states is known only for three layers
    (`Gaussian`).

    **Raises:** `ValueError` for widths, scales or a target that do not fit.
    """

    widths: tuple[int | float, ...] = eqx.field(static=True, converter=tuple)
    scales: tuple[Real[Array, ""] | float, ...] | Real[Array, ""] | float = 1.0
    target: Float[Array, "outputs inputs"] | None = eqx.field(
        default=None, converter=lambda target: None if target is None else jnp.asarray(target)
    )

    def __check_init__(self):
        if len(self.widths) < 3:
            raise ValueError(
                "Argument `widths` must hold at least 3 widths (n_0, n_1, ..., n_L), but is "
                f"{self.widths}."
            )
        for width in self.widths:
            check_width("widths", width)
        if isinstance(self.scales, tuple) and len(self.scales) != self.depth:
            raise ValueError(
                f"Argument `scales` must be one value or {self.depth}, one for each layer, but is "
                f"{self.scales}."
            )
        for scale in self._scales():
            check_scale("scales", scale, self.scales)
        given = (1, 1) if self.target is None else self.target.shape
        if given != (self.widths[-1], self.widths[0]):
            raise ValueError(
                f"Argument `target` must have shape (n_L, n_0) = "
                f"{(self.widths[-1], self.widths[0])}, but has {given}; it may be left out only "
                "where n_L and n_0 are 1."
            )

    @property
    def depth(self) -> int:
        """The number of layers $L$."""
        return len(self.widths) - 1

    def _scales(self) -> tuple:
        return self.scales if isinstance(self.scales, tuple) else (self.scales,) * self.depth

    def sample(self, *, key: PRNGKeyArray, dtype: jnp.dtype | None = None) -> Chain:
        """One chain, in the given dtype or JAX's default."""
        dtype = default_dtype(dtype)
        widths = [int(width) for width in self.widths]
        layers = [
            scale * jax.random.normal(k, (widths[i + 1], widths[i]), dtype)
            for i, (scale, k) in enumerate(
                zip(as_dtype(self._scales(), dtype), jax.random.split(key, self.depth), strict=True)
            )
        ]
        return Chain(layers, None if self.target is None else self.target.astype(dtype))

    def draws(
        self, indices: int | np.integer | Sequence[int] | np.ndarray, *, key: PRNGKeyArray
    ) -> ChainSamples:
        """Samples for `blowup_times`, drawn where they are solved and never stored.

        **Arguments:**

        - `indices`: which samples: a number $n$ for the first $n$, or their global indices. A
          sample depends only on the key and its index.
        - `key`: a JAX random key.

        **Raises:** `ValueError` for negative counts or indices, and for indices beyond 32 bits
        without `jax_enable_x64`.
        """
        return ChainSamples(ChainDraws(self, key), as_indices(indices))


class ChainDraws(AbstractChainSource):
    """The samples of an ensemble of chains, numbered from 0.

    - `ensemble`, `key`: sample $i$ depends only on these and $i$.
    """

    ensemble: GaussianChain
    key: PRNGKeyArray

    @property
    def form(self) -> Chain:
        """The form of the samples."""
        return eqx.filter_eval_shape(self, np.uint32(0))

    def __call__(self, index: Integer[Array, ""]) -> Chain:
        """The sample with a global index."""
        return self.ensemble.sample(key=sample_key(self.key, index))
