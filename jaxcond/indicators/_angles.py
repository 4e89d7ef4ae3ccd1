r"""Angles, ratios and the condensed set: how condensation shows in one state.

Source: Chen and Luo, Definitions 1 and 2, eqs. (4.4), (4.5), (4.17), (4.19).
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .._state import State
from ._products import Products


class Angles(eqx.Module):
    r"""Cosines of the angles of Definition 2, for each component; NaN where a vector vanishes.

    - `xi`: between $c_l b^l$ and $c_{l'} b^{l'}$, shape `(rank, q, q)`; tends to 1 on $C_1$ (4.4).
    - `psi`: between $a'$ and $\lambda c_l b^l$, shape `(rank, q)`; tends to 1 (4.17).
    - `phi`: between $a$ and $\lambda c_l b^l$, shape `(rank, q)`.
    - `zeta`: between $a$ and $a'$, shape `(rank,)`; bounded away from 0 (4.19).

    The angles of the other side are those of `state.transpose()`.
    """

    xi: Float[Array, "*batch rank q q"]
    psi: Float[Array, "*batch rank q"]
    phi: Float[Array, "*batch rank q"]
    zeta: Float[Array, "*batch rank"]


def angles_of(products: Products) -> Angles:
    """`angles` computed from the products of $b$."""
    a, c, onto_a = products.a, products.c, products.onto_a
    norms = products.columns
    sign_c, strength = jnp.sign(c), jnp.sign(products.strength)[:, None]
    gram = products.right / (norms[:, None] * norms[None, :])
    xi = sign_c[:, :, None] * sign_c[:, None, :] * gram[None]
    xi = jnp.where((sign_c == 0)[:, :, None] | (sign_c == 0)[:, None, :], jnp.nan, xi)
    size_a, size_onto = (jnp.linalg.norm(x, axis=-1, keepdims=True) for x in (a, onto_a))
    signed = jnp.where(sign_c == 0, jnp.nan, sign_c)
    # a' = sum_l lambda c_l b^l, and its product with b^l is lambda (b^T b c)_l.
    psi = signed * jnp.abs(products.strength)[:, None] * (c @ products.right)
    psi = psi / (norms[None] * size_onto)
    phi = signed * strength * (products.onto_c / products.strength[:, None])
    phi = phi / (norms[None] * size_a)
    zeta = jnp.sum(a * onto_a, axis=-1) / (size_a * size_onto)[:, 0]
    return Angles(xi, psi, phi, zeta)


@eqx.filter_jit
def angles(state: State) -> Angles:
    r"""The angles $\xi, \psi, \varphi, \zeta$ of Definition 2 of one state, as cosines."""
    return angles_of(Products.of(state.unit_scale()[0]))


def condensed_set(state: State, threshold: float = 1e-2) -> Bool[Array, "rank q"]:
    r"""The index set $C_1$ of the units that take part in the blow-up, $|c_l| \to \infty$.

    Shortly before $T^*$ every layer grows like $1/(T^*-t)$, and a unit outside $C_1$ stays bounded:
    its share of the norm falls like $T^*-t$.

    **Arguments:** `threshold`, the least $|c_l|$ divided by the root mean square of $c$. It should
    lie well above the relative time left of the state.

    **Returns:** booleans, shape `(rank, q)`.

    Source: Chen and Luo, Definition 1 and eq. (4.4).
    """
    largest = jnp.max(jnp.abs(state.c), axis=-1, keepdims=True)
    share = state.c / jnp.where(largest == 0, 1, largest)
    return jnp.abs(share) > threshold * jnp.sqrt(jnp.mean(share**2, axis=-1, keepdims=True))


@eqx.filter_jit
def condensed(state: State, threshold: float = 1e-2, cosine: float = 0.99) -> Bool[Array, ""]:
    r"""Whether a state is a condensed solution: all of $c$ diverges and all $c_l b^l$ align.

    True if $C_1$ (see `condensed_set`) holds every unit of every component and $\cos\xi_{ll'}$ is
    at least `cosine` for all pairs. Source: Chen and Luo, Definition 1, Theorem 3 and eq. (4.4).
    """
    aligned = jnp.all(angles(state).xi >= cosine)
    return jnp.all(condensed_set(state, threshold)) & aligned


def ratios_of(products: Products) -> Float[Array, "2 rank"]:
    """`ratios` computed from the products of $b$."""
    speed = jnp.linalg.norm(products.onto_a, axis=-1) / jnp.abs(products.strength)
    squares = jnp.stack([jnp.sum(products.c**2, -1), jnp.sum(products.a**2, -1)])
    return speed[None] / squares


@eqx.filter_jit
def ratios(state: State) -> Float[Array, "2 rank"]:
    r"""$\|a_i'\|/(|\lambda_i|\|c_i\|^2)$ and $\|a_i'\|/(|\lambda_i|\|a_i\|^2)$ of each component.

    At rank 1 both tend to 1 at $T^*$, eq. (4.5). At higher rank they do not: all components share
    one $b$, and near $T^*$ both ratios are $\|b\|_F/\|c_i\|$, with
    $\|b\|_F^2 \approx \sum_i \|c_i\|^2$. So the ratios tend to 1 only for a component that
    dominates alone. If component 1 dominates, those of a weaker one grow like
    $(T^*-t)^{|\lambda_i|/|\lambda_1| - 1}$: at width 16 with strengths 1 and 0.6, to more than 1000
    at $3\cdot10^{-7}\,T^*$ before $T^*$. Several components of the same largest strength dominate
    together, and the inverse squares of their ratios add up to 1.

    **Arguments:** one `State` of any rank and scale.

    **Returns:** shape `(2, rank)`, dimensionless; not finite for a component that has no strength
    or whose $c_i$ or $a_i$ vanishes.

    Source: Chen and Luo, eq. (4.5), for rank 1.
    """
    return ratios_of(Products.of(state.unit_scale()[0]))
