r"""The final stage condition: counts, margins, and what rounding leaves open.

Source: Chen and Luo, Assumptions 2 to 4. Superscripts are columns of $b$ and subscripts rows; at
rank $r$ every component has its own set of inequalities.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._state import State
from ._products import Products


class Condition(eqx.Module):
    """How far one of the final stage conditions holds: inequalities, each of them `> 0`.

    - `positive`: number of inequalities that hold.
    - `undecided`: number whose sign the accuracy of the state leaves open.
    - `total`: number of all of them.
    - `margin`: the least left-hand side, made a number in [-1, 1] by the norms of its factors: how
      far inside (positive) or outside (negative) the condition the state is.
    """

    positive: Int[Array, "*batch"]
    undecided: Int[Array, "*batch"]
    total: int = eqx.field(static=True)
    margin: Float[Array, "*batch"]

    @property
    def holds(self) -> Bool[Array, "*batch"]:
        """Whether all inequalities hold, none of them undecided."""
        return self.positive == self.total


class FinalStage(eqx.Module):
    """The final stage condition: `first`, `second` and `third` are `Condition`s, `holds` all."""

    first: Condition
    second: Condition
    third: Condition

    @property
    def holds(self) -> Bool[Array, "*batch"]:
        """Whether the final stage condition holds."""
        return self.first.holds & self.second.holds & self.third.holds

    @property
    def margin(self) -> Float[Array, "*batch"]:
        """The least of the three margins."""
        return jnp.minimum(self.first.margin, jnp.minimum(self.second.margin, self.third.margin))


def _safe(denominator: Array) -> Array:
    return jnp.where(denominator == 0, 1, denominator)


def _sign(values: Array, scale: Array, tolerance: Array) -> Array:
    """The sign of values that are known to `tolerance * scale`: 0 where it is open."""
    return jnp.where(jnp.abs(values) > tolerance * scale, jnp.sign(values), 0)


def resolve_tolerance(tolerance: float | Array | None, dtype: jnp.dtype) -> Array:
    """Relative accuracy of the layers; `None` is 16 units of rounding."""
    value = 16 * float(jnp.finfo(dtype).eps) if tolerance is None else tolerance
    return jnp.asarray(value, dtype)


def first_condition(products: Products, tolerance: Float[Array, ""]) -> Condition:
    r"""$\lambda_i c_{il}\, a_i^T b^l > 0$ and $\lambda_i a_{ik}\, b_k c_i > 0$ for all $i, k, l$.

    At rank 1 these are the $p + q$ numbers counted in Fig. 2a of the paper. The margin is the least
    of $\mathrm{sgn}(c_l)\cos(a, b^l)$ and $\mathrm{sgn}(a_k)\cos(c, b_k)$.
    """
    size_a, size_c = (
        jnp.linalg.norm(layer, axis=-1, keepdims=True) for layer in (products.a, products.c)
    )
    strength = jnp.abs(products.strength)[:, None]
    scale_c = strength * size_a * products.columns[None]
    scale_a = strength * size_c * products.rows[None]
    sides = (
        (products.c, size_c, products.onto_c, scale_c),
        (products.a, size_a, products.onto_a, scale_a),
    )
    signs = [
        _sign(layer, size, tolerance) * _sign(onto, scale, tolerance)
        for layer, size, onto, scale in sides
    ]
    signs = jnp.concatenate([sign.ravel() for sign in signs])
    cosines = [jnp.sign(layer) * onto / _safe(scale) for layer, _, onto, scale in sides]
    margin = jnp.min(jnp.concatenate([cosine.ravel() for cosine in cosines]))
    return _condition(signs, margin)


def _condition(signs: Array, margin: Array) -> Condition:
    return Condition(jnp.sum(signs > 0), jnp.sum(signs == 0), signs.size, margin)


def second_condition(products: Products, tolerance: Float[Array, ""]) -> Condition:
    r"""$\langle c_{il} b^l, c_{il'} b^{l'}\rangle > 0$, $\langle a_{ik} b_k, a_{ik'} b_{k'}\rangle
    > 0$ for all $i$ and all pairs, of equal indices too.

    The margin is the least cosine, of $\xi_{ll'}$ or of its counterpart for the rows.
    """
    parts, margins = [], []
    for layer, gram, norms in (
        (products.c, products.right, products.columns),
        (products.a, products.left, products.rows),
    ):
        size = jnp.linalg.norm(layer, axis=-1, keepdims=True)
        sign = _sign(layer, size, tolerance)
        scale = norms[:, None] * norms[None, :]
        signs = sign[:, :, None] * sign[:, None, :] * _sign(gram, scale, tolerance)[None]
        plain = jnp.sign(layer)
        cosine = plain[:, :, None] * plain[:, None, :] * (gram / _safe(scale))[None]
        parts.append(signs.ravel())
        margins.append(jnp.min(cosine))
    return _condition(jnp.concatenate(parts), jnp.minimum(*margins))


def third_condition(products: Products, tolerance: Float[Array, ""]) -> Condition:
    r"""$\lambda_i\lambda_j\, a_{ik} a_{jk} c_{il} c_{jl} > 0$ for all $i, j, k, l$.

    All components pull every entry of $b$ the same way. At rank 1 it says that no entry of $a$ or
    $c$ vanishes. The margin is the least product over the product of the norms.
    """
    a, c, strength = products.a, products.c, products.strength
    rank = a.shape[0]
    size_a, size_c = (jnp.linalg.norm(layer, axis=-1, keepdims=True) for layer in (a, c))
    signs = _sign(a, size_a, tolerance)[:, :, None] * _sign(c, size_c, tolerance)[:, None, :]
    signs = signs * jnp.sign(strength)[:, None, None]
    # Of the pairs (i, j), those of equal sign are positive.
    up, down = jnp.sum(signs > 0, axis=0), jnp.sum(signs < 0, axis=0)
    total = rank * rank * up.size
    unit = (a / _safe(size_a))[:, :, None] * (c / _safe(size_c))[:, None, :]
    unit = unit * jnp.sign(strength)[:, None, None]
    # The least product of two of them is of the extremes, or the square of the least.
    low, high = jnp.min(unit, axis=0), jnp.max(unit, axis=0)
    least = jnp.where(low * high < 0, low * high, jnp.min(unit**2, axis=0))
    return Condition(
        jnp.sum(up * up + down * down), total - jnp.sum((up + down) ** 2), total, jnp.min(least)
    )


CONDITIONS = {1: first_condition, 2: second_condition, 3: third_condition}
"""The conditions by their numbers, as functions of `Products` and the tolerance."""


def final_stage_of(products: Products, tolerance: Float[Array, ""]) -> FinalStage:
    """`final_stage` from the products of $b$ alone."""
    return FinalStage(
        first_condition(products, tolerance),
        second_condition(products, tolerance),
        third_condition(products, tolerance),
    )


@eqx.filter_jit
def final_stage(state: State, *, tolerance: float | Float[Array, ""] | None = None) -> FinalStage:
    r"""The final stage condition of one state, any rank.

    $$\lambda_i c_{il}\,a_i^T b^l > 0,\quad \lambda_i a_{ik}\,b_k c_i > 0; \qquad
    \langle c_{il} b^l, c_{il'} b^{l'}\rangle > 0,\quad
    \langle a_{ik} b_k, a_{ik'} b_{k'}\rangle > 0; \qquad
    \lambda_i\lambda_j a_{ik} a_{jk} c_{il} c_{jl} > 0 .$$

    Once it holds it holds for good (Proposition 2), and the weights condense.

    **Arguments:** `state`; `tolerance`, the accuracy of its layers relative to their norms, by
    default 16 units of rounding: inequalities that it leaves open are counted as `undecided`.

    **Returns:** a `FinalStage` with counts, margins and `holds`.

    Source: Chen and Luo, Assumption 2 (rank 1: the third condition is then void unless an entry
    vanishes), Assumptions 3 and 4 (any rank).
    """
    return final_stage_of(
        Products.of(state.unit_scale()[0]), resolve_tolerance(tolerance, state.dtype)
    )
