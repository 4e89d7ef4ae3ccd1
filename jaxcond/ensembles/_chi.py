"""Chi variates with any degrees of freedom."""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray

# A round is refused once in 20 at the worst; no sample has been seen to need ten.
_MAX_ROUNDS = 64


def chi(degrees: Float[Array, " n"], *, key: PRNGKeyArray) -> Float[Array, " n"]:
    r"""Chi variates $\chi_k$ for an array of degrees of freedom, exact at any $k$, with $\chi_0 =
    0$.

    Marsaglia and Tsang (2000), for $d = k/2 - 1/3$, $y = x / \sqrt{9d}$ with normal $x$ and uniform
    $u$: $\sqrt{2d}(1+y)^{3/2}$ is accepted if $\log u < x^2/2 + d(1 - v + \log v)$, $v = (1+y)^3$.
    Below $k = 2$ the shape is raised by one and a power of another uniform multiplied in.
    """
    dtype = degrees.dtype
    boosted = degrees < 2
    shape = jnp.where(boosted, degrees + 2, degrees) / 2
    d = shape - 1 / 3
    rate = 1 / (3 * jnp.sqrt(d))

    def propose(round_key: PRNGKeyArray) -> tuple[Array, Array]:
        normal_key, uniform_key = jax.random.split(round_key)
        x = jax.random.normal(normal_key, degrees.shape, dtype)
        u = jax.random.uniform(uniform_key, degrees.shape, dtype, jnp.finfo(dtype).tiny, 1)
        y = rate * x
        # d (1 - v + log v) + x^2 / 2 vanishes to fourth order in y; written out, no digits cancel
        # at large degrees.
        small = jnp.abs(y) < 0.02
        near = x * x / 9 * y * y * (-0.75 + y * (0.6 + y * (-0.5 + y * (3 / 7 - 0.375 * y))))
        safe = jnp.where(small, 0, jnp.maximum(y, -0.999999))
        v = (1 + safe) ** 3
        far = 0.5 * x * x + d * (1 - v + 3 * jnp.log1p(safe))
        accepted = (y > -1) & (jnp.log(u) < jnp.where(small, near, far))
        return y, accepted

    def turn(carry):
        y, done, count = carry
        proposal, accepted = propose(jax.random.fold_in(key, count))
        return jnp.where(done, y, proposal), done | accepted, count + 1

    start = (jnp.zeros_like(degrees), jnp.zeros(degrees.shape, bool), 0)
    y, _, _ = lax.while_loop(
        lambda carry: ~jnp.all(carry[1]) & (carry[2] < _MAX_ROUNDS), turn, start
    )
    chi = jnp.sqrt(2 * d) * (1 + y) ** 1.5
    u = jax.random.uniform(jax.random.fold_in(key, _MAX_ROUNDS), degrees.shape, dtype)
    chi = jnp.where(boosted, chi * u ** (1 / jnp.maximum(degrees, 1)), chi)
    return jnp.where(degrees > 0, chi, 0)
