r"""Products of the full $b$ along a reduced flow, without forming $b$."""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from .._reduction import Reduction
from .._state import State
from ..indicators import Products


class Frame(eqx.Module):
    r"""What all states of a trajectory share: the bases, and products of the initial $b$.

    With $b = b_0 + P \Delta Q^T$ and $W = b_0 Q\Delta^T + \tfrac12 P\Delta\Delta^T$,

    $$bb^T = b_0b_0^T + W P^T + P W^T,$$

    one product of a matrix of `dim` columns for each Gram matrix. (From the conserved $A$, as
    $A + \sum_i a_ia_i^T$, it would be lost to rounding where $b$ is far smaller than $a$.)
    """

    reduction: Reduction
    rows: Float[Array, " p"]
    columns: Float[Array, " q"]
    left: Float[Array, "p p"]
    right: Float[Array, "q q"]
    onto_right: Float[Array, "p dim"]
    onto_left: Float[Array, "q dim"]

    @classmethod
    def of(cls, reduction: Reduction, initial: State) -> "Frame":
        """The frame of an initial state and its reduction."""
        b = initial.b
        return cls(
            reduction=reduction,
            rows=jnp.sum(b * b, axis=1),
            columns=jnp.sum(b * b, axis=0),
            left=b @ b.T,
            right=b.T @ b,
            onto_right=b @ reduction.right.T,
            onto_left=b.T @ reduction.left.T,
        )

    def products(self, small: State) -> Products:
        """The products of the full state that a reduced one stands for."""
        strength = small.strength[:, None]
        left, right = self.reduction.left, self.reduction.right
        change = small.b - self.reduction.state.b
        rows, gram_left = _gram(self.rows, self.left, self.onto_right, change, left)
        columns, gram_right = _gram(self.columns, self.right, self.onto_left, change.T, right)
        return Products(
            a=small.a @ left,
            c=small.c @ right,
            strength=small.strength,
            onto_a=strength * ((small.c @ small.b.T) @ left),
            onto_c=strength * ((small.a @ small.b) @ right),
            rows=rows,
            columns=columns,
            left=gram_left,
            right=gram_right,
        )


def _gram(
    squares: Array, gram: Array, onto: Array, change: Array, basis: Array
) -> tuple[Array, Array]:
    r"""Row norms and Gram matrix of the rows of $b_0 + P\Delta Q^T$."""
    part = basis.T @ change
    # Apart from the matrix, so that it need not be formed for them.
    squares = squares + jnp.sum((2 * onto + part) * part, axis=1)
    crossed = ((onto + 0.5 * part) @ change.T) @ basis
    return jnp.sqrt(jnp.maximum(squares, 0)), gram + crossed + crossed.T
