r"""Networks of any depth: the data type beside `State`.

$$E = \langle W_L \cdots W_1, V\rangle, \qquad W_l' = \partial E/\partial W_l .$$

A `State` is the case $L = 3$ in the singular vectors of $V$. Two layers grow exponentially and
never blow up; from three layers on, blow-up times scale like $\kappa^{2-L}$ when all layers are
multiplied by $\kappa$.

Source: Chen and Luo, eqs. (3.8), (3.10) and (A.8) with another number of factors.
"""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from ._precision import to_jax
from ._state import State


class Chain(eqx.Module):
    r"""A point in the phase space of $L$ layers, $E = \langle W_L\cdots W_1, V\rangle$.

    **Arguments:**

    - `layers`: $(W_1, \dots, W_L)$, at least two, the one next to the input first, of shapes
      `(n_l, n_{l-1})`.
    - `target`: $V$, shape `(n_L, n_0)`; by default 1 where both are 1, as for one output and an
      input layer along the target direction.

    All quantities are dimensionless. A batch of chains has the same leading axes on every layer,
    and on the target unless all share it; functions take one chain and are batched by `jax.vmap`.

    **Raises:** `ValueError` for shapes that do not fit together or arrays that are not floating.
    """

    layers: tuple[Float[Array, "..."], ...]
    target: Float[Array, "..."]

    def __init__(self, layers: Sequence[ArrayLike], target: ArrayLike | None = None):
        matrices = [to_jax(x) for x in layers]
        default = jnp.ones((1, 1), matrices[0].dtype if matrices else float)
        arrays = [*matrices, default if target is None else jnp.asarray(target)]
        if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in arrays):
            raise ValueError(
                "Arguments `layers` and `target` must be real floating, but are "
                f"{[str(x.dtype) for x in arrays]}."
            )
        dtype = jnp.result_type(*arrays)
        *matrices, target = (x.astype(dtype) for x in arrays)
        if target.ndim == 2 and matrices:
            target = jnp.broadcast_to(target, (*matrices[0].shape[:-2], *target.shape))
        self.layers, self.target = tuple(matrices), target

    def __check_init__(self):
        shapes = [layer.shape for layer in self.layers]
        fit = len(shapes) >= 2 and all(len(s) >= 2 and 0 not in s[-2:] for s in shapes)
        fit = fit and all(s[:-2] == shapes[0][:-2] for s in shapes)
        if not fit or any(shapes[i + 1][-1] != s[-2] for i, s in enumerate(shapes[:-1])):
            raise ValueError(
                "Argument `layers` must be at least two matrices of shapes (n_1, n_0), "
                f"(n_2, n_1), ..., with the same leading axes, but has shapes {shapes}."
            )
        expected = (*shapes[0][:-2], shapes[-1][-2], shapes[0][-1])
        if self.target.shape != expected:
            raise ValueError(
                f"Argument `target` must have shape (..., n_L, n_0) = {expected}, but has "
                f"{self.target.shape}; it may be left out only where n_L and n_0 are 1."
            )

    @classmethod
    def from_state(cls, state: State) -> "Chain":
        r"""The three layers $(c^T, b, a)$ and the target $\mathrm{diag}(\lambda)$ of a state."""
        target = state.strength[..., None, :] * jnp.eye(state.rank, dtype=state.dtype)
        return cls((jnp.swapaxes(state.c, -1, -2), state.b, state.a), target)

    @property
    def depth(self) -> int:
        """The number of layers $L$."""
        return len(self.layers)

    @property
    def widths(self) -> tuple[int, ...]:
        r"""The widths $(n_0, n_1, \dots, n_L)$."""
        return self.layers[0].shape[-1], *(layer.shape[-2] for layer in self.layers)

    @property
    def batch_shape(self) -> tuple[int, ...]:
        """Leading axes; `()` for a single chain."""
        return self.target.shape[:-2]

    @property
    def dtype(self) -> jnp.dtype:
        """Floating dtype shared by all layers and the target."""
        return self.target.dtype

    def scale(self, factor: ArrayLike) -> "Chain":
        r"""All layers times `factor`; the blow-up time is multiplied by its power $2-L$."""
        return Chain(tuple(layer * factor for layer in self.layers), self.target)

    def unit_scale(self) -> tuple["Chain", Int[Array, ""]]:
        """Divide powers of two out of layers and target, so that the largest entries are near 1.

        Nothing is rounded. For one chain.

        **Returns:** `(unit, exponent)`: times of `unit` are `2**exponent` times those of the chain.
        """
        sizes = jnp.stack([jnp.max(jnp.abs(x)) for x in (*self.layers, self.target)])
        sizes = jnp.stack([jnp.max(sizes[:-1]), sizes[-1]])
        of_layers, of_target = jnp.frexp(jnp.where(jnp.isfinite(sizes), sizes, 1))[1]
        layers = tuple(jnp.ldexp(layer, -of_layers) for layer in self.layers)
        unit = Chain(layers, jnp.ldexp(self.target, -of_target))
        return unit, (self.depth - 2) * of_layers + of_target


def check_single(name: str, chain: Chain) -> None:
    """Raise `ValueError` for a batch where a function takes one chain."""
    if chain.batch_shape:
        raise ValueError(
            f"`{name}` takes one chain, but got a batch of shape {chain.batch_shape}: batch by "
            "`jax.vmap`."
        )


def with_diagonal_target(chain: Chain) -> Chain:
    r"""The same flow in the singular vectors of the target, $V = P\Lambda Q^T$.

    $$(W_1Q,\ W_2,\ \dots,\ W_{L-1},\ P^TW_L), \qquad \text{target } \Lambda .$$

    The parts of the first and the last layer outside of $Q$ and $P$ do not move. A diagonal target
    is kept as it is, with strengths of either sign, so that nothing is rounded. Under a JAX
    transformation only a 1 by 1 target is recognised as diagonal.
    """
    target, rank = chain.target, min(chain.target.shape[-2:])
    first, *middle, last = chain.layers
    if target.shape[-2:] == (1, 1):
        return chain
    if _is_diagonal(target):
        layers = (first[..., :rank], *middle, last[..., :rank, :])
        return Chain(layers, target[..., :rank, :rank])
    left, strength, right = jnp.linalg.svd(target, full_matrices=False)
    layers = (first @ jnp.swapaxes(right, -1, -2), *middle, jnp.swapaxes(left, -1, -2) @ last)
    return Chain(layers, strength[..., None, :] * jnp.eye(rank, dtype=chain.dtype))


def _is_diagonal(target: Any) -> bool:
    if isinstance(target, Tracer):
        return False
    rows, columns = target.shape[-2:]
    apart = np.arange(rows)[:, None] != np.arange(columns)
    return not np.any(np.asarray(target)[..., apart])


def as_state(chain: Chain) -> State:
    r"""The state of three layers: $a_i = W_3^TP_i$, $b = W_2$, $c_i = W_1Q_i$ (eq. (A.8)).

    For one chain or a batch.
    """
    chain = with_diagonal_target(chain)
    first, middle, last = chain.layers
    strength = jnp.diagonal(chain.target, axis1=-2, axis2=-1)
    return State(last, middle, jnp.swapaxes(first, -1, -2), strength)
