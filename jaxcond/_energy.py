r"""Energy of the effective dynamics, its gradient flow, and what the flow conserves.

$$E = \sum_i \lambda_i a_i^T b c_i, \qquad
a_i' = \lambda_i b c_i, \quad b' = \sum_i \lambda_i a_i c_i^T, \quad c_i' = \lambda_i b^T a_i .$$

Source: Chen and Luo, eqs. (3.8), (3.10), (3.11) for rank 1 and (A.8) for any rank.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._state import State


def energy(state: State) -> Float[Array, ""]:
    r"""The energy $E = \sum_i \lambda_i a_i^T b c_i$ of one state (eq. (3.8), (A.8))."""
    return jnp.sum(component_energies(state))


def component_energies(state: State) -> Float[Array, " rank"]:
    r"""The terms $\lambda_i a_i^T b c_i$ of the energy, shape `(rank,)`."""
    return state.strength * jnp.sum(state.a * (state.c @ state.b.T), axis=-1)


def vector_field(state: State) -> State:
    """Right-hand side of the effective dynamics, the gradient of the energy (eq. (3.10), (A.8)).

    **Returns:** a `State` whose layers are $(a', b', c')$ and whose strengths are zero, since
    strengths do not move: it can be added to a state.
    """
    weighted_a = state.strength[:, None] * state.a
    return State(
        state.strength[:, None] * (state.c @ state.b.T),
        weighted_a.T @ state.c,
        weighted_a @ state.b,
        jnp.zeros_like(state.strength),
    )


def squared_norms(state: State) -> Float[Array, " 3"]:
    r"""$(\|a\|^2, \|b\|_F^2, \|c\|^2)$; each grows at the rate $2E$ (eq. (3.11))."""
    return jnp.stack([jnp.sum(layer * layer) for layer in state.layers])


class Conserved(eqx.Module):
    r"""Quantities that the flow of a state leaves constant.

    - `left`: the matrix $A = b b^T - \sum_i a_i a_i^T$, shape `(p, p)`.
    - `right`: the matrix $C = b^T b - \sum_i c_i c_i^T$, shape `(q, q)`.
    - `balance`: $\|c_i\|^2 - \|a_i\|^2$, shape `(rank,)`.
    """

    left: Float[Array, "p p"]
    right: Float[Array, "q q"]
    balance: Float[Array, " rank"]

    @property
    def left_units(self) -> Float[Array, " p"]:
        r"""$\sum_{k'} b_{kk'}^2 - \sum_i a_{ik}^2$ for each unit $k$, eq. (3.11)."""
        return jnp.diagonal(self.left)

    @property
    def right_units(self) -> Float[Array, " q"]:
        r"""$\sum_k b_{kk'}^2 - \sum_i c_{ik'}^2$ for each unit $k'$, eq. (3.11)."""
        return jnp.diagonal(self.right)


def conserved(state: State) -> Conserved:
    r"""The conserved matrices and balances of one state.

    The matrices contain the conserved vectors of eq. (3.11) as their diagonals; that the whole
    matrices are conserved follows from $(b b^T)' = \sum_i \lambda_i (a_i (b c_i)^T + (b c_i) a_i^T)
    = (\sum_i a_i a_i^T)'$.
    """
    a, b, c = state.layers
    return Conserved(
        left=b @ b.T - a.T @ a,
        right=b.T @ b - c.T @ c,
        balance=jnp.sum(c * c, axis=-1) - jnp.sum(a * a, axis=-1),
    )
