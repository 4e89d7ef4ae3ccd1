r"""The bracket of a chain's blow-up time, and the integral that aligned layers lead to.

Every $n_l = \|W_l\|_F^2$ has $n_l' = 2E$, and $E \le \|V\|_2\prod_l\|W_l\|_F$. With $R = \sum_l
n_l$, $E' = \|\nabla E\|^2 \ge L^2E^2/R$ and $R' = 2LE$, so that $(R/E)' \le -L(L-2)$. For $V =
\lambda$, 1 by 1, $\nabla_l E = \lambda\, y_l x_{l-1}^T$ with $x_l = W_l \cdots W_1$ and $y_l =
(W_L \cdots W_{l+1})^T$, where $x_0 = y_L = 1$ and $|\lambda||y_l||x_l| \ge E$, so that by the
inequality of the means $E' \ge L\,|\lambda|^{2/L} E^{2-2/L}$: eq. (3.14) of Chen and Luo is the
case $L = 3$.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from ._chain import Chain, with_diagonal_target
from ._energy import energy

# The integrand of `chain_integral` is analytic in a strip of half-width pi about the real axis,
# so the trapezoidal rule of spacing h is exact to exp(-2 pi^2 / h).
_NUM_NODES = 512


def chain_integral(squares: Float[Array, "*batch depth"]) -> Float[Array, "*batch"]:
    r"""$$\tfrac12\int_0^\infty \prod_{l=1}^L \frac{1}{\sqrt{s_l + x}}\,dx, \qquad s_l \ge 0 .$$

    The blow-up time of $L$ aligned layers with squared norms $s_l$, positive energy and unit
    strength; for $L = 3$ it is `carlson_rf`.

    **Arguments:** `squares`, with the layers on the last axis.

    **Returns:** the integral to a few units in the last place if the second and third smallest
    square are within 40 decades of each other; infinite where two squares vanish or there are but
    two layers, NaN where one is negative or NaN.
    """
    if squares.shape[-1] < 3:
        invalid = jnp.any(jnp.isnan(squares) | (squares < 0), axis=-1)
        return jnp.where(invalid, jnp.nan, jnp.full(invalid.shape, jnp.inf, squares.dtype))
    depth = squares.shape[-1]
    ordered = jnp.sort(squares, axis=-1)
    diverges = ordered[..., 1] == 0
    ordered = jnp.where(diverges[..., None], 1, ordered)
    unit, info = ordered / ordered[..., 2:3], jnp.finfo(squares.dtype)
    # Trapezoidal rule in log x: the integrand decays on either side of the second and third square,
    # at least as the root of x. All factors are at most one, so that nothing overflows.
    last = -2 * jnp.log(info.eps)
    first = jnp.maximum(jnp.log(unit[..., 1]) - last, jnp.log(info.tiny))
    x = jnp.exp(jnp.linspace(first, last, _NUM_NODES))[..., None]
    factors = jnp.concatenate([x / (unit[None, ..., :2] + x), 1 / (unit[None, ..., 2:] + x)], -1)
    total = jnp.sum(jnp.prod(jnp.sqrt(factors), axis=-1), axis=0)
    integral = total * (last - first) / (_NUM_NODES - 1)
    return jnp.where(diverges, jnp.inf, 0.5 * integral * jnp.sqrt(ordered[..., 2]) ** (2 - depth))


def squared_sizes(chain: Chain) -> Float[Array, " depth"]:
    r"""The squares $\|W_l\|_F^2$; each grows at the rate $2E$."""
    return jnp.stack([jnp.sum(layer * layer) for layer in chain.layers])


def chain_bracket(chain: Chain) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`bounds.bracket` of one chain of any depth."""
    unit, exponent = with_diagonal_target(chain).unit_scale()
    lower, upper = bracket_of_diagonal(unit)
    return jnp.ldexp(lower, -exponent), jnp.ldexp(upper, -exponent)


def bracket_of_diagonal(chain: Chain) -> tuple[Array, Array]:
    """The bracket of a chain of unit scale with a diagonal target."""
    depth, squares, current = chain.depth, squared_sizes(chain), energy(chain)
    strength = jnp.max(jnp.abs(jnp.diagonal(chain.target)))
    lower = chain_integral(squares) / strength
    if depth < 3:
        return lower, lower
    positive = jnp.where(current > 0, current, 1)
    if chain.target.size == 1:
        upper = (positive / strength) ** (2 / depth - 1) / ((depth - 2) * strength)
    else:
        upper = jnp.sum(squares) / (depth * (depth - 2) * positive)
    upper = jnp.where(current > 0, upper, jnp.inf)
    return lower, jnp.where(jnp.isnan(current), jnp.nan, upper)
