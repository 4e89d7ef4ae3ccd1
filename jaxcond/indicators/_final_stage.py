r"""The final stage condition: counts, margins, and inequalities that rounding leaves undecided.

Source: Chen and Luo, Assumptions 2 to 4. Superscripts are columns of $b$ and subscripts rows; at
rank $r$ every component has its own set of inequalities.
"""

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from .._results import table
from .._state import State
from ._products import Products, Units


class Condition(eqx.Module):
    """One of the final stage conditions: a set of inequalities, each of the form `> 0`.

    - `positive`: number of inequalities that hold.
    - `undecided`: number of those whose sign the accuracy of the state does not decide.
    - `total`: number of all of them.
    - `margin`: the least left-hand side, divided by the norms of its factors. It lies in [-1, 1]
      and is positive inside the condition and negative outside.
    """

    positive: Int[Array, "*batch"]
    undecided: Int[Array, "*batch"]
    total: int = eqx.field(static=True)
    margin: Float[Array, "*batch"]

    @property
    def holds(self) -> Bool[Array, "*batch"]:
        """Whether all inequalities hold and none is undecided."""
        return self.positive == self.total

    def __str__(self) -> str:
        if self.positive.ndim:
            return f"holds for {int(jnp.sum(self.holds))} of {self.holds.size} states"
        return (
            f"{int(self.positive)} of {self.total} inequalities hold, {int(self.undecided)} "
            f"undecided, margin {float(self.margin):.3g}"
        )


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

    def __str__(self) -> str:
        if self.holds.ndim:
            title = f"holds for {int(jnp.sum(self.holds))} of {self.holds.size} states"
        else:
            title = "holds" if self.holds else "does not hold"
        conditions = (self.first, self.second, self.third)
        rows = {f"condition {i}": str(condition) for i, condition in enumerate(conditions, 1)}
        return table(f"Final stage: {title}", rows)


def _safe(denominator: Array) -> Array:
    return jnp.where(denominator == 0, 1, denominator)


def _sign(values: Array, scale: Array, tolerance: Array) -> Array:
    """The sign of values with the error `tolerance * scale`; 0 if the error is larger."""
    return jnp.where(jnp.abs(values) > tolerance * scale, jnp.sign(values), 0)


def resolve_tolerance(tolerance: float | Array | None, dtype: jnp.dtype) -> Array:
    """The relative accuracy of the layers; `None` stands for 16 units of rounding."""
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
    return _condition(signs, _least(_first_cosines(products)))


def _first_cosines(products: Products) -> tuple[Array, Array]:
    """The left-hand sides over norms, by rows and by columns of $b$."""
    strength = jnp.abs(products.strength)[:, None]
    sides = (
        (products.a, products.c, products.onto_a, products.rows),
        (products.c, products.a, products.onto_c, products.columns),
    )
    rows, columns = (
        jnp.sign(layer)
        * onto
        / _safe(strength * jnp.linalg.norm(other, axis=-1, keepdims=True) * norms[None])
        for layer, other, onto, norms in sides
    )
    return rows, columns


def _least(cosines: tuple[Array, Array]) -> Float[Array, ""]:
    return jnp.minimum(*(jnp.min(x) for x in cosines))


def _condition(signs: Array, margin: Array) -> Condition:
    return Condition(jnp.sum(signs > 0), jnp.sum(signs == 0), signs.size, margin)


def second_condition(products: Products, tolerance: Float[Array, ""]) -> Condition:
    r"""$\langle c_{il} b^l, c_{il'} b^{l'}\rangle > 0$, $\langle a_{ik} b_k, a_{ik'} b_{k'}\rangle
    > 0$ for all $i$ and all pairs, equal indices included.

    The margin is the least cosine, of $\xi_{ll'}$ or of its counterpart for the rows.
    """
    parts = []
    for layer, gram, norms in (
        (products.c, products.right, products.columns),
        (products.a, products.left, products.rows),
    ):
        size = jnp.linalg.norm(layer, axis=-1, keepdims=True)
        sign = _sign(layer, size, tolerance)
        scale = norms[:, None] * norms[None, :]
        signs = sign[:, :, None] * sign[:, None, :] * _sign(gram, scale, tolerance)[None]
        parts.append(signs.ravel())
    return _condition(jnp.concatenate(parts), _least(_second_cosines(products)))


def _second_cosines(products: Products) -> tuple[Array, Array]:
    """The left-hand sides over norms, of pairs of rows and of pairs of columns of $b$."""
    sides = (
        (products.a, products.left, products.rows),
        (products.c, products.right, products.columns),
    )
    rows, columns = (
        jnp.sign(layer)[:, :, None]
        * jnp.sign(layer)[:, None, :]
        * (gram / _safe(norms[:, None] * norms[None, :]))[None]
        for layer, gram, norms in sides
    )
    return rows, columns


def third_condition(products: Products, tolerance: Float[Array, ""]) -> Condition:
    r"""$\lambda_i\lambda_j\, a_{ik} a_{jk} c_{il} c_{jl} > 0$ for all $i, j, k, l$.

    All components pull every entry of $b$ the same way. At rank 1 it says that no entry of $a$ or
    $c$ vanishes. The margin is the least product over the product of the norms.
    """
    a, c, strength = products.a, products.c, products.strength
    rank = len(a)
    size_a, size_c = (jnp.linalg.norm(layer, axis=-1, keepdims=True) for layer in (a, c))
    signs = _sign(a, size_a, tolerance)[:, :, None] * _sign(c, size_c, tolerance)[:, None, :]
    signs = signs * jnp.sign(strength)[:, None, None]
    # Of the pairs (i, j), those of equal sign are positive.
    up, down = jnp.sum(signs > 0, axis=0), jnp.sum(signs < 0, axis=0)
    total = rank * rank * up.size
    return Condition(
        jnp.sum(up * up + down * down),
        total - jnp.sum((up + down) ** 2),
        total,
        jnp.min(_least_pulls(products)),
    )


def _least_pulls(products: Products) -> Float[Array, "p q"]:
    """The least left-hand side over norms for every entry of $b$."""
    a, c = (x / _safe(jnp.linalg.norm(x, axis=-1, keepdims=True)) for x in (products.a, products.c))
    return _least_products(jnp.sign(products.strength)[:, None, None] * a[:, :, None] * c[:, None])


def _least_products(pulls: Float[Array, "rank p q"]) -> Float[Array, "p q"]:
    """The least product of two components: of the extremes, or the square of the least."""
    low, high = jnp.min(pulls, axis=0), jnp.max(pulls, axis=0)
    return jnp.where(low * high < 0, low * high, jnp.min(pulls**2, axis=0))


CONDITIONS = {1: first_condition, 2: second_condition, 3: third_condition}
"""The conditions by their numbers, as functions of `Products` and the tolerance."""


def _first_weakest(products: Products) -> Units:
    return Units(*(jnp.argmin(jnp.min(x, axis=0))[None] for x in _first_cosines(products)))


def _second_weakest(products: Products) -> Units:
    pairs = []
    for cosines in _second_cosines(products):
        least = jnp.min(cosines, axis=0)
        pairs.append(jnp.stack(jnp.unravel_index(jnp.argmin(least), least.shape)))
    return Units(*pairs)


def _third_weakest(products: Products) -> Units:
    least = _least_pulls(products)
    row, column = jnp.unravel_index(jnp.argmin(least), least.shape)
    return Units(row[None], column[None])


WEAKEST = {1: _first_weakest, 2: _second_weakest, 3: _third_weakest}
"""The units of the least left-hand sides over norms, as functions of `Products`."""


def _first_sides(products: Products) -> Float[Array, ""]:
    sides = products.a * products.onto_a, products.c * products.onto_c
    return _least(sides)


def _second_sides(products: Products) -> Float[Array, ""]:
    sides = []
    for layer, gram in ((products.a, products.left), (products.c, products.right)):
        pairs = layer[:, :, None] * layer[:, None, :] * gram[None]
        sides.append(jnp.where(jnp.eye(len(gram), dtype=bool)[None], jnp.inf, pairs))
    return _least((sides[0], sides[1]))


def _third_sides(products: Products) -> Float[Array, ""]:
    a, c = products.a, products.c
    return jnp.min(_least_products(products.strength[:, None, None] * a[:, :, None] * c[:, None]))


LEAST_SIDES = {1: _first_sides, 2: _second_sides, 3: _third_sides}
"""The least left-hand sides themselves, of the second condition those of two units.

As functions of `Products`. They have the sign of the margin, and other than that they are
continuous where an entry of a layer changes its sign.
"""


def final_stage_of(products: Products, tolerance: Float[Array, ""]) -> FinalStage:
    """`final_stage` computed from the products of $b$."""
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

    Once the condition holds, it holds at all later times (Proposition 2), and the weights condense.

    **Arguments:** `state`; `tolerance`, the accuracy of its layers relative to their norms, by
    default 16 units of rounding. Inequalities that it does not decide are counted as `undecided`.

    **Returns:** a `FinalStage` with counts, margins and `holds`.

    Source: Chen and Luo, Assumption 2 (rank 1: the third condition is then void unless an entry
    vanishes), Assumptions 3 and 4 (any rank).
    """
    return final_stage_of(
        Products.of(state.unit_scale()[0]), resolve_tolerance(tolerance, state.dtype)
    )
