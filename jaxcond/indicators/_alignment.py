r"""Alignment and rank of weight matrices: indicators that also apply before the final stage."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .._state import State


def _unit_rows(rows: Float[Array, "q d"]) -> Float[Array, "q d"]:
    """Rows divided by their norms, without overflow or underflow; NaN for rows of zeros."""
    largest = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)
    rows = rows / jnp.where(largest == 0, jnp.nan, largest)
    return rows / jnp.linalg.norm(rows, axis=-1, keepdims=True)


def cosine_similarity(rows: Float[Array, "q d"]) -> Float[Array, "q q"]:
    r"""Cosines $\langle w_i, w_j\rangle / (\|w_i\|\|w_j\|)$ of the rows of a weight matrix.

    For a network, take the rows of $W^1$, with a column for the bias if it has one. With one column
    the cosines are $\pm1$ by definition.

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
    r"""Share of the rows within `angle` (radians) of a direction or its opposite.

    Rows that vanish count as outside.
    """
    return jnp.mean(jnp.abs(alignment(rows, direction)) >= jnp.cos(angle))


def singular_values(matrix: Float[Array, "m n"], num: int | None = None) -> Float[Array, " k"]:
    """The `num` largest singular values of a matrix (all by default), in descending order."""
    return jnp.linalg.svd(matrix, compute_uv=False)[:num]


def nuclear_norm(matrix: Float[Array, "m n"]) -> Float[Array, ""]:
    r"""$\|M\|_* = \sum_i\sigma_i$, a convex substitute for the rank."""
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
    r"""The product of the three layers along the target directions, $a_i^T b c_j$, shape `(rank,
    rank)`.

    For a network it is $P^T W^3W^2W^1 Q$. The energy is the sum of its diagonal, weighted by the
    strengths.
    """
    return state.a @ state.b @ state.c.T
