r"""The reduced Gaussian state: the exact law of its entries, drawn from a few dozen numbers.

$$\|a\| = s_a\chi_p, \quad \|c\| = s_c\chi_q, \quad T_{jj} = s_b N(0,1), \quad
  T_{j,j+1} = s_b\chi_{q-j}, \quad T_{j+1,j} = s_b\chi_{p-j} \qquad (j = 1, 2, \dots)$$

are independent. Step $j$ takes five random words at places $5j$ to $5j + 4$, one for $T_{jj}$ and
two for each $\chi$; a rejected proposal is replaced by the words at the same places of the next
round's key. So a state drawn in more dimensions continues the one drawn in fewer.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float, PRNGKeyArray

from .. import _native
from .._state import State
from ..blowup import HostStates
from ._chi import chi, uniform

_WORDS_OF_STEP = 5


def reduced_gaussian(
    p: Float[Array, ""],
    q: Float[Array, ""],
    scales: tuple[Array, Array, Array],
    dim: int,
    *,
    key: PRNGKeyArray,
) -> State:
    """One state of widths `(dim, dim)` with the law above, in the dtype of `p`.

    Entries beyond a width smaller than `dim` are zero, as in the matrix itself.
    """
    scale_a, scale_b, scale_c = scales
    steps = jnp.arange(dim, dtype=p.dtype)
    least = jnp.minimum(p, q)
    # An off-diagonal entry exists only if both its row and its column do.
    degrees = jnp.where(steps <= least, jnp.maximum(jnp.stack([p - steps, q - steps]), 0), 0)

    def words(number: Array | int) -> Float[Array, "dim words"]:
        return uniform(jax.random.fold_in(key, number), (dim * _WORDS_OF_STEP,), p.dtype).reshape(
            dim, _WORDS_OF_STEP
        )

    def proposals(number: Array | int) -> tuple[Array, Array]:
        some = words(number)
        return some[:, 1::2].T, some[:, 2::2].T

    normal = jnp.where(steps < least, ndtri(words(0)[:, 0]), 0)
    chi_p, chi_q = chi(degrees, proposals)
    return tridiagonal_state(
        scale_a * chi_p[0],
        scale_c * chi_q[0],
        scale_b * normal,
        scale_b * chi_q[1:],
        scale_b * chi_p[1:],
    )


def reduced_gaussians_on_host(
    indices: np.ndarray,
    p: float,
    q: float,
    scales: tuple[float, float, float],
    dim: int,
    dtype: np.dtype,
    *,
    words: np.ndarray,
) -> HostStates:
    """The states with some global indices, by the native kernel; they agree to rounding.

    **Arguments:** `words`, from `threefry_words`.
    """
    layers = _native.draw_gaussian(indices, words, p, q, scales, dim, dtype)
    assert layers is not None
    a, b, c = layers
    return HostStates(a[:, None], b, c[:, None], np.ones((indices.size, 1), dtype))


def tridiagonal_state(
    norm_a: Array, norm_c: Array, diagonal: Array, upper: Array, lower: Array
) -> State:
    """The state $a = |a|e_1$, $c = |c|e_1$ with tridiagonal $b$."""
    first = jnp.zeros_like(diagonal).at[0].set(1)
    b = jnp.diag(diagonal) + jnp.diag(upper, 1) + jnp.diag(lower, -1)
    return State.from_vectors(norm_a * first, b, norm_c * first)
