r"""Matrix completion by a linear network: initial factors, and the error on unknown entries.

$$W_L\cdots W_1 \approx M, \qquad \|W_L(0)\cdots W_1(0)\| = \alpha .$$

The scale $\alpha$ of the initial product decides how the unknown entries are completed.

Source: S. Gunasekar and others, *Implicit regularization in matrix factorization* (2017), where the
factors are multiples of the identity; S. Arora, N. Cohen, W. Hu and Y. Luo, *Implicit
regularization in deep matrix factorization* (2019), for more layers.
"""

from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray

from ._effective import EffectiveModel
from ._modules import MLP

Kind = Literal["gaussian", "orthogonal", "identity"]
Norm = Literal["frobenius", "spectral"]
_NORMS = {"frobenius": "fro", "spectral": 2}


def _layer(kind: Kind, shape: tuple[int, int], key: PRNGKeyArray, dtype: DTypeLike) -> Array:
    if kind == "identity":
        return jnp.eye(*shape, dtype=dtype)
    layer = jax.random.normal(key, shape, dtype)
    if kind == "gaussian":
        return layer
    left, _, right = jnp.linalg.svd(layer, full_matrices=False)
    return left @ right


def matrix_factors(
    sizes: Sequence[int],
    scale: float | Float[Array, ""],
    *,
    key: PRNGKeyArray,
    kind: Kind = "gaussian",
    norm: Norm = "frobenius",
    dtype: DTypeLike | None = None,
) -> MLP:
    r"""A linear network whose product of layers has a given norm.

        matrix_factors((50, 50, 50), 1e-3, key=key)

    **Arguments:**

    - `sizes`: columns of the matrix, widths of the hidden layers, rows of the matrix; at least
      three numbers.
    - `scale`: $\alpha = \|W_L\cdots W_1\|$; all layers are multiplied by a common factor to reach
      it. May be traced.
    - `key`: a JAX random key; `jax.vmap` over keys makes many networks.
    - `kind`: `"gaussian"`, layers with independent normal entries; `"orthogonal"`, with uniformly
      distributed orthonormal rows or columns; or `"identity"`, with ones on the diagonal.
    - `norm`: `"frobenius"`, or `"spectral"`, the largest singular value: for square layers that are
      multiples of the identity, $W_L\cdots W_1 = \alpha I$.
    - `dtype`: by default JAX's default precision.

    **Raises:** `ValueError` for sizes below 1 or fewer than three, or an unknown `kind` or `norm`.
    """
    sizes = tuple(sizes)
    if len(sizes) < 3 or min(sizes) < 1:
        raise ValueError(
            "Argument `sizes` must be columns, hidden widths and rows, three positive numbers or "
            f"more, but is {sizes}."
        )
    if kind not in ("gaussian", "orthogonal", "identity"):
        raise ValueError(f"Argument `kind` is not known: {kind!r}.")
    if norm not in _NORMS:
        raise ValueError(f"Argument `norm` must be one of {', '.join(_NORMS)}, but is {norm!r}.")
    dtype = jnp.result_type(float) if dtype is None else dtype
    keys = jax.random.split(key, len(sizes) - 1)
    shapes = zip(sizes[1:], sizes[:-1], strict=True)
    layers = [_layer(kind, shape, k, dtype) for shape, k in zip(shapes, keys, strict=True)]
    network = MLP(layers, activation="linear")
    factor = (scale / jnp.linalg.norm(network.product, _NORMS[norm])) ** (1 / len(layers))
    return network.replace([factor.astype(dtype) * layer for layer in layers])


class UnseenError(eqx.Module):
    r"""Observable: the relative error on the unknown entries.

    $$\frac{\|\bar m\circ(W_L\cdots W_1 - M)\|_F}{\|\bar m\circ M\|_F}, \qquad \bar m = 1 - m .$$

        observe={"unseen": UnseenError(matrix, mask)}

    **Arguments:** `matrix`, the complete $M$; `mask`, booleans $m$ that are true for the known
    entries, as for `Entries`.

    **Raises:** `ValueError` for shapes that do not fit, and for unknown entries that are all zero
    or not finite.
    """

    matrix: Float[Array, "outputs inputs"]

    def __init__(self, matrix: ArrayLike, mask: ArrayLike):
        matrix, mask = jnp.asarray(matrix), jnp.asarray(mask)
        if mask.dtype != bool or mask.shape != matrix.shape or matrix.ndim != 2:
            raise ValueError(
                "Argument `mask` must be booleans of the shape of `matrix`, but has dtype "
                f"{mask.dtype} and shape {mask.shape}."
            )
        # NaN at known entries, which do not count.
        unseen = jnp.where(mask, 0, matrix)
        if not bool(jnp.all(jnp.isfinite(unseen))) or not bool(jnp.any(unseen != 0)):
            raise ValueError(
                "Argument `matrix` must be finite, and not zero, where `mask` is false."
            )
        self.matrix = jnp.where(mask, jnp.nan, matrix)

    def __call__(self, network: MLP, model: EffectiveModel | None) -> Float[Array, ""]:
        del model
        unseen = ~jnp.isnan(self.matrix)
        error = jnp.where(unseen, network.product - self.matrix, 0)
        return jnp.linalg.norm(error) / jnp.linalg.norm(jnp.where(unseen, self.matrix, 0))
