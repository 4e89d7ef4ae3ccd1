r"""Alignment of the rows of weight matrices, and rank: indicators that need no final stage."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._state import State


def _unit_rows(rows: Float[Array, "q d"]) -> Float[Array, "q d"]:
    """Rows over their norms, whose squares neither overflow nor vanish; NaN for rows of zeros."""
    largest = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)
    rows = rows / jnp.where(largest == 0, jnp.nan, largest)
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)


def cosine_similarity(rows: Float[Array, "q d"]) -> Float[Array, "q q"]:
    r"""Cosines $\langle w_i, w_j\rangle / (\|w_i\|\|w_j\|)$ of the rows of a weight matrix.

    Of a network the rows of $W^1$, with a column for the bias if there is one; with one column they
    are $\pm1$ by definition.

    **Returns:** shape `(q, q)`; NaN in the rows and columns of rows that vanish.
    """
    unit = _unit_rows(rows)
    return unit @ unit.T


def alignment(rows: Float[Array, "q d"], direction: Float[Array, " d"]) -> Float[Array, " q"]:
    r"""Cosines of the rows of a weight matrix with a direction, such as the target direction $v$.

    **Returns:** shape `(q,)`; NaN for rows that vanish.
    """
    return _unit_rows(rows) @ _unit_rows(direction[None])[0]


def share_within(
    rows: Float[Array, "q d"], direction: Float[Array, " d"], angle: float
) -> Float[Array, ""]:
    r"""Share of the rows that lie within `angle` (radians) of the line of a direction, either sign.

    Rows that vanish count as outside.
    """
    return jnp.mean(jnp.abs(alignment(rows, direction)) >= jnp.cos(angle))


def singular_values(matrix: Float[Array, "m n"], num: int | None = None) -> Float[Array, " k"]:
    """The `num` largest singular values of a matrix (all by default), in falling order."""
    return jnp.linalg.svd(matrix, compute_uv=False)[:num]


def nuclear_norm(matrix: Float[Array, "m n"]) -> Float[Array, ""]:
    r"""$\|M\|_* = \sum_i\sigma_i$, the least of which stands for low rank."""
    return jnp.sum(singular_values(matrix))


def effective_rank(matrix: Float[Array, "m n"]) -> Float[Array, ""]:
    r"""$\exp(-\sum_i \pi_i\log\pi_i)$ with $\pi_i = \sigma_i/\sum_j\sigma_j$.

    Between 1 and the rank; NaN for a matrix of zeros.

    Source: O. Roy and M. Vetterli, *The effective rank* (2007).
    """
    values = singular_values(matrix)
    shares = values / jnp.sum(values)
    return jnp.exp(
        -jnp.sum(jnp.where(shares > 0, shares * jnp.log(jnp.where(shares > 0, shares, 1)), 0))
    )


def product(state: State) -> Float[Array, "rank rank"]:
    r"""The product of the three layers in the target's directions, $a_i^T b c_j$, $r \times r$.

    It is $P^T W^3W^2W^1 Q$ for a network, and its diagonal is what the energy adds up.
    """
    return state.a @ state.b @ state.c.T
