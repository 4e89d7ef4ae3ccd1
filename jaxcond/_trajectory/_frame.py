r"""Products of the full $b$ along a reduced flow, without forming $b$."""

from collections.abc import Callable

import equinox as eqx
import equinox.internal as eqxi
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .._reduction import Reduction
from .._state import State
from ..indicators import Products, Units

# $A$ is used unless some squared row norm of $b$ is smaller, by this factor, than the terms that it
# is a difference of: at most six bits are then lost.
_LOST = 64


class Frame(eqx.Module):
    r"""What all states of a trajectory share: the bases, and products of the initial $b$.

    By the conserved $A = bb^T - \sum_i a_ia_i^T$, where $\delta_i$ and $\sigma_i$ are the change of
    $a_i$ and its sum with the initial one,

    $$bb^T = b_0b_0^T + \tfrac12\sum_i (\delta_i\sigma_i^T + \sigma_i\delta_i^T) .$$

    Rounding spoils this where $b$ is far smaller than $a$. There, with
    $b = b_0 + P \Delta Q^T$ and $W = b_0 Q\Delta^T + \tfrac12 P\Delta\Delta^T$,

    $$bb^T = b_0b_0^T + W P^T + P W^T,$$

    which takes one product with a matrix of `dim` columns for each Gram matrix.
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

    def only(self, units: Units) -> "Frame":
        """The frame of some units."""
        rows, columns = units.rows, units.columns
        bases = self.reduction.left[:, rows], self.reduction.right[:, columns]
        return Frame(
            reduction=Reduction(self.reduction.state, *bases),
            rows=self.rows[rows],
            columns=self.columns[columns],
            left=self.left[rows[:, None], rows],
            right=self.right[columns[:, None], columns],
            onto_right=self.onto_right[rows],
            onto_left=self.onto_left[columns],
        )

    def products(self, small: State) -> Products:
        """The products of the full state that a reduced one stands for."""
        strength = small.strength[:, None]
        left, right, first = self.reduction.left, self.reduction.right, self.reduction.state
        change = small.b - first.b
        rows, gram_left = _gram(
            _Side(self.rows, self.left, self.onto_right, left), first.a, small.a, change
        )
        columns, gram_right = _gram(
            _Side(self.columns, self.right, self.onto_left, right), first.c, small.c, change.T
        )
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


class _Side(eqx.Module):
    """The rows of the initial $b$, or its columns."""

    squares: Float[Array, " p"]
    gram: Float[Array, "p p"]
    onto: Float[Array, "p dim"]
    basis: Float[Array, "dim p"]


def _gram(side: _Side, first: Array, layer: Array, change: Array) -> tuple[Array, Array]:
    r"""Row norms and Gram matrix of the rows of $b$; $a$, or $c$, was `first` and is `layer`."""
    moved, total = (layer - first) @ side.basis, (layer + first) @ side.basis
    by_layer = side.squares + jnp.sum(moved * total, axis=0)
    exact = jnp.all(_LOST * by_layer >= 0.5 * jnp.sum(moved * moved + total * total, axis=0))

    def by_change() -> Array:
        part = side.basis.T @ change
        return side.squares + jnp.sum((2 * side.onto + part) * part, axis=1)

    def gram_by_change() -> Array:
        crossed = ((side.onto + 0.5 * (side.basis.T @ change)) @ change.T) @ side.basis
        return side.gram + crossed + crossed.T

    # The norms come separately, so that the matrix need not be formed for them.
    squares = _either(exact, by_layer, by_change)
    crossed = 0.5 * jnp.einsum("ik,il->kl", moved, total)
    gram = _either(exact, side.gram + crossed + crossed.T, gram_by_change)
    return jnp.sqrt(jnp.maximum(squares, 0)), gram


def _either(holds: Bool[Array, ""], cheap: Array, other: Callable[[], Array]) -> Array:
    """A conditional that computes the other value only if some lane of a batch needs it."""
    needed = lax.cond(eqxi.unvmap_all(holds), lambda: cheap, other)
    return jnp.where(holds, cheap, needed)
