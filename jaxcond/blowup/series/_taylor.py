r"""Taylor coefficients of the effective dynamics of rank 1, and of its entire function.

With $A = bb^T - aa^T$ and $\kappa = \|c\|^2 - \|a\|^2$ conserved, $a$ closes on itself,

$$a'' = (A + \kappa + 2\|a\|^2)\,a,$$

and $\tau$ with $(\log\tau)'' = -\|a\|^2$, $\tau(0) = 1$, $\tau'(0) = 0$ is entire: the movable
singularities of $a$ are simple poles, and the zeros of $\tau$. With $N = \|a\|^2$, coefficient by
coefficient,

$$(n+1)(n+2)\,a_{n+2} = (A+\kappa)\,a_n + 2\sum_j N_j a_{n-j}, \quad
N_n = \sum_j a_j \cdot a_{n-j}, \quad
(n+1)\,\tau_{n+1} = -\sum_j \frac{N_{j-1}}{j}\,\tau_{n-j}.$$

Every array carries many states at once along its *last* axis, the lanes. Every recurrence is a
loop in the program whose body sums over a window of a buffer that is filled up with zeros; the
order is a number, at most the size of the buffers.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

Carry = tuple[Array, Array, Array, Array]


def _window(values: Array, start: Array | int, length: int) -> Array:
    return lax.dynamic_slice_in_dim(values, start, length, 0)


def flow_coefficients(
    matrix: Float[Array, "k k lanes"],
    a: Float[Array, "k lanes"],
    velocity: Float[Array, "k lanes"],
    width: Int[Array, ""],
    order: Int[Array, ""],
    size: int,
) -> tuple[
    Float[Array, "powers k lanes"],
    Float[Array, "squares lanes"],
    Float[Array, "squares lanes"],
]:
    r"""Taylor coefficients of $a$ and of $\|a\|^2$.

    **Arguments:** `matrix`, $A + \kappa$; `a` and `velocity`, $a$ and $a'$ at the point of
    expansion; `width`, how many components there are before those that the states were filled
    up with; `order`, the highest power of $a$, from 4 to `size`.

    **Returns:** coefficients of $a$ up to `size`, and up to `size - 2` those of $N = \|a\|^2$ and
    of what its last component contributes to it; zero beyond the order.
    """
    # Index size - m holds the coefficient of power m; negative powers are zero.
    vectors = jnp.zeros((2 * size + 1, *a.shape), a.dtype).at[size].set(a)
    norms = jnp.zeros((size, a.shape[-1]), a.dtype)

    def body(n: Array, carry: Carry) -> Carry:
        vectors, norms, last, current = carry
        # What the previous turn gave goes into the buffer before anything reads it: else XLA copies
        # the buffer each turn.
        vectors = lax.dynamic_update_index_in_dim(vectors, current, size - n, 0)
        # N_{n-1} has all its terms by now.
        rising = vectors[1 : size + 1][::-1]
        products = jnp.sum(rising * _window(vectors, size - n + 1, size), axis=0)
        norms = lax.dynamic_update_index_in_dim(norms, jnp.sum(products, axis=0), n - 1, 0)
        last = lax.dynamic_update_index_in_dim(last, products[width - 1], n - 1, 0)
        window = _window(vectors, size - n + 1, size)
        pull = jnp.sum(norms[:, None] * window, axis=0)
        linear = jnp.sum(matrix * window[0][None], axis=1)
        following = (linear + 2 * pull) / (n * (n + 1)).astype(a.dtype)
        return vectors, norms, last, following

    vectors, norms, last, current = lax.fori_loop(
        1, order, body, (vectors, norms, jnp.zeros_like(norms), velocity)
    )
    vectors = lax.dynamic_update_index_in_dim(vectors, current, size - order, 0)
    return vectors[size::-1], norms[:-1], last[:-1]


def entire_function(
    norms: Float[Array, "squares lanes"], order: Int[Array, ""]
) -> tuple[Float[Array, "powers lanes"], Float[Array, "powers lanes"]]:
    r"""Taylor coefficients of $\tau$ from those of $N = \|a\|^2$.

    **Returns:** the coefficients $\tau_0, \dots, \tau_{order}$, and for each the sum of the
    absolute values of the terms that it was added up from: its rounding error is a small multiple
    of epsilon times that. Filled up with zeros.
    """
    size, lanes = norms.shape[0] + 1, norms.shape[1]
    logarithmic = norms / jnp.arange(1, size, dtype=norms.dtype)[:, None]
    # Index size - m holds the coefficient of power m.
    values = jnp.zeros((2 * size + 1, lanes), norms.dtype).at[size].set(1)
    sizes = jnp.zeros((size + 1, lanes), norms.dtype).at[0].set(1)

    def body(n: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        values, sizes = carry
        terms = logarithmic * _window(values, size - n + 1, size - 1)
        scale = 1 / (n + 1).astype(norms.dtype)
        total, absolute = -jnp.sum(terms, axis=0), jnp.sum(jnp.abs(terms), axis=0)
        values = lax.dynamic_update_index_in_dim(values, total * scale, size - 1 - n, 0)
        return values, lax.dynamic_update_index_in_dim(sizes, absolute * scale, n + 1, 0)

    values, sizes = lax.fori_loop(1, order, body, (values, sizes))
    return values[size::-1], sizes


def polynomial(
    coefficients: Float[Array, "powers *some lanes"],
    x: Float[Array, "..."],
    num_derivatives: int,
) -> list[Array]:
    """A polynomial with coefficients along the first axis and its first derivatives, by Horner."""
    zero = jnp.zeros_like(coefficients[0])

    def step(values: list[Array], coefficient: Array) -> tuple[list[Array], None]:
        lower = [coefficient, *values[:-1]]
        return [value * x + one for value, one in zip(values, lower, strict=True)], None

    values, _ = lax.scan(step, [zero] * (num_derivatives + 1), coefficients, reverse=True)
    factorial = 1
    for i in range(2, num_derivatives + 1):
        factorial *= i
        values[i] = values[i] * factorial
    return values


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
    `of_norms`, the cotangents of these results, zero beyond the order.
    """
    size = coefficients.shape[0] - 1
    count = size - 1  # of norms, and of powers with a lambda
    # Index n holds power n; what lies beyond the highest power is zero.
    owed = jnp.zeros((2 * size + 1, *coefficients.shape[1:]), coefficients.dtype)
    owed_norms = jnp.zeros((2 * size + 1, norms.shape[-1]), norms.dtype)
    of_norms = jnp.pad(of_norms, ((0, size - of_norms.shape[0]), (0, 0)))

    def gathered(owed: Array, owed_norms: Array, n: Array | int) -> Array:
        later, later_norms = _window(owed, n, count), _window(owed_norms, n, count)
        total = jnp.sum(
            norms[:, None] * later + later_norms[:, None] * coefficients[:count], axis=0
        )
        linear = jnp.sum(matrix * later[0][:, None], axis=0)
        own = lax.dynamic_index_in_dim(of_coefficients, n, 0, keepdims=False)
        return own + linear + 2 * total

    def body(index: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        owed, owed_norms = carry
        n = size - 2 - index
        factor = gathered(owed, owed_norms, n + 2) / ((n + 1) * (n + 2)).astype(matrix.dtype)
        owed = lax.dynamic_update_index_in_dim(owed, factor, n, 0)
        of_norm = 2 * jnp.sum(_window(owed, n, count) * coefficients[:count], axis=(0, 1))
        of_norm = of_norm + lax.dynamic_index_in_dim(of_norms, n, 0, keepdims=False)
        return owed, lax.dynamic_update_index_in_dim(owed_norms, of_norm, n, 0)

    owed, owed_norms = lax.fori_loop(0, count, body, (owed, owed_norms))
    of_matrix = jnp.einsum("nil,njl->ijl", owed[:count], coefficients[:count], precision="highest")
    return of_matrix, gathered(owed, owed_norms, 0), gathered(owed, owed_norms, 1)
