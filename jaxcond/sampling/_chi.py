"""Uniform, normal and chi variates, each independent of how many are drawn together."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, PRNGKeyArray

# At worst one round in 20 is rejected; no sample was observed to need ten rounds.
_MAX_ROUNDS = 64


def uniform(key: PRNGKeyArray, shape: tuple[int, ...], dtype: jnp.dtype) -> Float[Array, "..."]:
    """Midpoints of $2^{52}$ equal cells of the unit interval, or $2^{23}$ in single precision.

    Never 0 or 1, and symmetric in both tails. A longer request begins with the same numbers.
    """
    long = jnp.finfo(dtype).bits >= 64
    kind = jnp.float64 if long else jnp.float32
    words = jax.random.bits(key, shape, jnp.uint64 if long else jnp.uint32)
    digits = 52 if long else 23
    cells = (words >> (words.dtype.itemsize * 8 - digits)).astype(kind)
    return ((cells + 0.5) * 2.0**-digits).astype(dtype)


def chi(
    degrees: Float[Array, "*n"], proposals: Callable[[Array | int], tuple[Array, Array]]
) -> Float[Array, "*n"]:
    r"""Chi variates $\chi_k$ for an array of whole degrees of freedom, exact at any $k$; $\chi_0 =
    0$.

    Marsaglia and Tsang (2000), for $d = k/2 - 1/3$, $y = x / \sqrt{9d}$ with normal $x$ and uniform
    $u$: $\sqrt{2d}(1+y)^{3/2}$ is accepted if $\log u < x^2/2 + d(1 - v + \log v)$, $v = (1+y)^3$.
    $\chi_1$ is $|x|$.

    **Arguments:** `proposals`, for each round, counted from 0, two independent uniform variates per
    entry, which give $x$ and $u$.
    """
    at_least_two = jnp.maximum(degrees, 2)
    d = at_least_two / 2 - 1 / 3
    rate = 1 / (3 * jnp.sqrt(d))

    def propose(number: Array | int) -> tuple[Array, Array, Array]:
        of_x, u = proposals(number)
        x = ndtri(of_x)
        y = rate * x
        # d (1 - v + log v) + x^2 / 2 vanishes to fourth order in y; written out, no digits cancel
        # at large degrees.
        small = jnp.abs(y) < 0.02
        near = x * x / 9 * y * y * (-0.75 + y * (0.6 + y * (-0.5 + y * (3 / 7 - 0.375 * y))))
        safe = jnp.where(small, 0, jnp.maximum(y, -0.999999))
        v = (1 + safe) ** 3
        far = 0.5 * x * x + d * (1 - v + 3 * jnp.log1p(safe))
        accepted = (y > -1) & (jnp.log(u) < jnp.where(small, near, far))
        return x, y, accepted | (degrees < 2)

    def turn(carry):
        y, done, number = carry
        _, proposal, accepted = propose(number)
        return jnp.where(done, y, proposal), done | accepted, number + 1

    x, y, done = propose(0)
    y, _, _ = lax.while_loop(
        lambda carry: ~jnp.all(carry[1]) & (carry[2] < _MAX_ROUNDS), turn, (y, done, 1)
    )
    chi = jnp.sqrt(2 * d) * (1 + y) * jnp.sqrt(1 + y)
    return jnp.where(degrees >= 2, chi, jnp.where(degrees > 0, jnp.abs(x), 0))


def chi_of_key(degrees: Float[Array, "*n"], *, key: PRNGKeyArray) -> Float[Array, "*n"]:
    """Chi variates of one key."""

    def proposals(number: Array | int) -> tuple[Array, Array]:
        pairs = uniform(jax.random.fold_in(key, number), (2, *degrees.shape), degrees.dtype)
        return pairs[0], pairs[1]

    return chi(degrees, proposals)
