r"""Taylor coefficients of the effective dynamics of rank 1, and of its entire function.

With $A = bb^T - aa^T$ and $\kappa = \|c\|^2 - \|a\|^2$ conserved, $a$ closes on itself,

$$a'' = (A + \kappa + 2\|a\|^2)\,a,$$

and $\tau$ with $(\log\tau)'' = -\|a\|^2$, $\tau(0) = 1$, $\tau'(0) = 0$ is entire: the movable
singularities of $a$ are simple poles, and the zeros of $\tau$. With $N = \|a\|^2$, coefficient by
coefficient,

$$(n+1)(n+2)\,a_{n+2} = (A+\kappa)\,a_n + 2\sum_j N_j a_{n-j}, \quad
N_n = \sum_j a_j \cdot a_{n-j}, \quad
(n+1)\,\tau_{n+1} = -\sum_j \frac{N_{j-1}}{j}\,\tau_{n-j}.$$

Every array here carries many states at once along its *last* axis, the lanes: so that XLA compiles
the recurrences, whose loops over $j$ are unrolled, to long runs of vector arithmetic in place.
(The batching rules of JAX put a batch first and turn updates in place into scatters: measured three
times slower.)
"""

import itertools

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# The recurrence is compiled for a few lengths rather than for every order: an order costs as much
# as the longest of its stretch.
_NUM_STRETCHES = 2


Carry = tuple[Array, Array, Array, Array, Array]


def _earlier(values: Array, n: Array, j: int) -> Array:
    """The coefficient of power $n - j$ in a buffer that holds power $m$ at index `order - m`."""
    order = (values.shape[0] - 1) // 2
    return lax.dynamic_index_in_dim(values, order - n + j, 0, keepdims=False)


def flow_coefficients(
    matrix: Float[Array, "k k lanes"],
    a: Float[Array, "k lanes"],
    velocity: Float[Array, "k lanes"],
    order: int,
) -> tuple[
    Float[Array, "powers k lanes"],
    Float[Array, "squares lanes"],
    Float[Array, "squares lanes"],
]:
    r"""Taylor coefficients of $a$ and of $\|a\|^2$.

    **Arguments:** `matrix`, $A + \kappa$; `a` and `velocity`, $a$ and $a'$ at the point of
    expansion; `order`, the highest power of $a$, at least 4.

    **Returns:** coefficients of $a$ up to `order`, and up to `order - 2` those of $N = \|a\|^2$
    and of what its last component contributes to it.
    """
    width, lanes = a.shape
    # Index order - m holds the coefficient of power m; negative powers are zero.
    vectors = jnp.zeros((2 * order + 1, width, lanes), a.dtype)
    vectors = lax.dynamic_update_index_in_dim(vectors, a, order, 0)
    norms = jnp.zeros((order, lanes), a.dtype)
    last = jnp.zeros((order, lanes), a.dtype)

    def stretch(length: int):
        def body(n: Array, carry: Carry) -> Carry:
            vectors, norms, last, current, square = carry
            # The values found by the previous turn go into the buffers before anything reads
            # them, and the sum over components is over a value that already stands in memory.
            # Anything else makes XLA copy the buffers each turn, or recompute the sum's terms.
            vectors = lax.dynamic_update_index_in_dim(vectors, current, order - n, 0)
            norms = lax.dynamic_update_index_in_dim(norms, jnp.sum(square, 0), n - 1, 0)
            last = lax.dynamic_update_index_in_dim(last, square[-1], n - 1, 0)
            pull = jnp.zeros_like(a)
            for j in range(length):
                pull = pull + norms[j][None] * _earlier(vectors, n - 1, j)
            previous = _earlier(vectors, n - 1, 0)
            linear = jnp.zeros_like(a)
            for i in range(width):
                linear = linear + matrix[i] * previous[i][None]
            following = (linear + 2 * pull) / (n * (n + 1)).astype(a.dtype)
            square = jnp.zeros_like(a)
            for j in range(length // 2 + 1):
                weight = jnp.where(2 * j < n, 2, jnp.where(2 * j == n, 1, 0)).astype(a.dtype)
                square = square + weight * vectors[order - j] * _earlier(vectors, n, j)
            return vectors, norms, last, following, square

        return body

    carry = (vectors, norms, last, velocity, a * a)
    stops = [1 + round(i * (order - 1) / _NUM_STRETCHES) for i in range(_NUM_STRETCHES + 1)]
    for start, stop in itertools.pairwise(stops):
        carry = lax.fori_loop(start, stop, stretch(stop), carry)
    vectors, norms, last, current, _ = carry
    coefficients = jnp.concatenate([vectors[order:0:-1], current[None]])
    return coefficients, norms[:-1], last[:-1]


def entire_function(
    norms: Float[Array, "squares lanes"],
) -> tuple[Float[Array, "powers lanes"], Float[Array, "powers lanes"]]:
    r"""Taylor coefficients of $\tau$ from those of $N = \|a\|^2$.

    **Returns:** the coefficients $\tau_0, \dots, \tau_{order}$, and for each the sum of the
    absolute values of the terms that it was added up from: its rounding error is a small multiple
    of epsilon times that.
    """
    order, lanes = norms.shape[0] + 1, norms.shape[1]
    logarithmic = norms / jnp.arange(1, order, dtype=norms.dtype)[:, None]
    # Index order - m holds the coefficient of power m.
    values = jnp.zeros((2 * order + 1, lanes), norms.dtype).at[order].set(1)
    sizes = jnp.zeros((order + 1, lanes), norms.dtype).at[0].set(1)

    def stretch(length: int):
        def body(n: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            values, sizes = carry
            total = size = jnp.zeros(lanes, norms.dtype)
            for j in range(1, length):
                term = logarithmic[j - 1] * _earlier(values, n, j)
                total, size = total - term, size + jnp.abs(term)
            scale = 1 / (n + 1).astype(norms.dtype)
            values = lax.dynamic_update_index_in_dim(values, total * scale, order - 1 - n, 0)
            return values, lax.dynamic_update_index_in_dim(sizes, size * scale, n + 1, 0)

        return body

    carry = (values, sizes)
    stops = [1 + round(i * (order - 1) / _NUM_STRETCHES) for i in range(_NUM_STRETCHES + 1)]
    for start, stop in itertools.pairwise(stops):
        carry = lax.fori_loop(start, stop, stretch(stop), carry)
    values, sizes = carry
    return values[order::-1], sizes
