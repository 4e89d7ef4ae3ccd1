"""The products of $b$ from which the indicators of the final stage are computed.

A trajectory computes them from the initial $b$ and the reduced flow, without forming $b$.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._state import State


class Units(eqx.Module):
    """Some rows and some columns of $b$, by their indices; a unit may occur more than once."""

    rows: Int[Array, " some"]
    columns: Int[Array, " others"]


class Products(eqx.Module):
    r"""The products of a state that the final stage indicators need.

    - `a`, `c`, `strength`: as in `State`.
    - `onto_a`: $\lambda_i b c_i = a_i'$, shape `(rank, p)`; `onto_c`: $\lambda_i b^T a_i = c_i'$,
      shape `(rank, q)`.
    - `rows`, `columns`: the norms $\|b_k\|$ and $\|b^l\|$, shapes `(p,)` and `(q,)`; separate from
      the Gram matrices, so that these are formed only where they are needed.
    - `left`, `right`: $bb^T$, shape `(p, p)`, and $b^Tb$, shape `(q, q)`.
    """

    a: Float[Array, "rank p"]
    c: Float[Array, "rank q"]
    strength: Float[Array, " rank"]
    onto_a: Float[Array, "rank p"]
    onto_c: Float[Array, "rank q"]
    rows: Float[Array, " p"]
    columns: Float[Array, " q"]
    left: Float[Array, "p p"]
    right: Float[Array, "q q"]

    @classmethod
    def of(cls, state: State) -> "Products":
        """The products of a full state."""
        a, b, c = state.layers
        strength = state.strength[:, None]
        return cls(
            a=a,
            c=c,
            strength=state.strength,
            onto_a=strength * (c @ b.T),
            onto_c=strength * (a @ b),
            rows=jnp.linalg.norm(b, axis=1),
            columns=jnp.linalg.norm(b, axis=0),
            left=b @ b.T,
            right=b.T @ b,
        )

    def only(self, units: Units) -> "Products":
        """The products of some units."""
        rows, columns = units.rows, units.columns
        return Products(
            a=self.a[:, rows],
            c=self.c[:, columns],
            strength=self.strength,
            onto_a=self.onto_a[:, rows],
            onto_c=self.onto_c[:, columns],
            rows=self.rows[rows],
            columns=self.columns[columns],
            left=self.left[rows[:, None], rows],
            right=self.right[columns[:, None], columns],
        )
