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


def flow_cotangents(
    matrix: Float[Array, "k k lanes"],
    coefficients: Float[Array, "powers k lanes"],
    norms: Float[Array, "squares lanes"],
    of_coefficients: Float[Array, "powers k lanes"],
    of_norms: Float[Array, "squares lanes"],
) -> tuple[Float[Array, "k k lanes"], Float[Array, "k lanes"], Float[Array, "k lanes"]]:
    r"""Reverse mode of `flow_coefficients`: cotangents of `matrix`, `a` and `velocity`.

    With $\lambda_n = \bar a_{n+2}/((n+1)(n+2))$, from the highest power down,

    $$\bar N_n \mathrel{+}= 2\sum_i \lambda_{n+i} \cdot a_i, \qquad
    \bar a_n \mathrel{+}= (A+\kappa)^T\lambda_n + 2\sum_i N_i \lambda_{n+i}
      + 2\sum_i \bar N_{n+i} a_i .$$

    Each power gathers what the later ones owe to it: the transposes that JAX derives of the
    recurrence would scatter every term into buffers of all powers instead.

    **Arguments:** `coefficients` and `norms` as found by `flow_coefficients`; `of_coefficients` and
    `of_norms`, the cotangents of these results.
    """
    order = coefficients.shape[0] - 1
    # Index n holds power n; what lies beyond the highest power is zero.
    owed = jnp.zeros((2 * order + 1, *coefficients.shape[1:]), coefficients.dtype)
    owed_norms = jnp.zeros((2 * order + 1, norms.shape[-1]), norms.dtype)

    def later(values: Array, n: Array, i: int) -> Array:
        return lax.dynamic_index_in_dim(values, n + i, 0, keepdims=False)

    def stretch(length: int):
        def body(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            owed, owed_norms = carry
            n = order - 2 - index
            scale = ((n + 1) * (n + 2)).astype(matrix.dtype)
            _, following = gathered(owed, owed_norms, n + 2, length)
            factor = following / scale
            owed = lax.dynamic_update_index_in_dim(owed, factor, n, 0)
            total = jnp.zeros_like(factor)
            for i in range(length):
                total = total + later(owed, n, i) * coefficients[i]
            of_norm = lax.dynamic_index_in_dim(of_norms, n, 0, keepdims=False)
            of_norm = of_norm + 2 * jnp.sum(total, axis=0)
            return owed, lax.dynamic_update_index_in_dim(owed_norms, of_norm, n, 0)

        return body

    def gathered(
        owed: Array, owed_norms: Array, n: Array | int, length: int
    ) -> tuple[Array, Array]:
        n = jnp.asarray(n)
        factor = lax.dynamic_index_in_dim(owed, n, 0, keepdims=False)
        total = jnp.zeros_like(factor)
        for i in range(length):
            total = total + norms[i][None] * later(owed, n, i)
            total = total + later(owed_norms, n, i)[None] * coefficients[i]
        linear = jnp.zeros_like(factor)
        for i in range(matrix.shape[0]):
            linear = linear + matrix[:, i] * factor[i][None]
        own = lax.dynamic_index_in_dim(of_coefficients, n, 0, keepdims=False)
        return factor, own + linear + 2 * total

    powers = order - 1
    carry = (owed, owed_norms)
    stops = [round(i * powers / _NUM_STRETCHES) for i in range(_NUM_STRETCHES + 1)]
    for start, stop in itertools.pairwise(stops):
        carry = lax.fori_loop(start, stop, stretch(stop), carry)
    owed, owed_norms = carry
    _, of_a = gathered(owed, owed_norms, 0, powers)
    _, of_velocity = gathered(owed, owed_norms, 1, powers)
    of_matrix = jnp.zeros_like(matrix)
    for n in range(powers):
        of_matrix = of_matrix + coefficients[n][:, None] * owed[n][None, :]
    return of_matrix, of_a, of_velocity
