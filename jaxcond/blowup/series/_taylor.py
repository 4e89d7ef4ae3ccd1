r"""Taylor coefficients of the effective dynamics of rank 1, and of its entire function.

With $A = bb^T - aa^T$ and $\kappa = \|c\|^2 - \|a\|^2$ conserved, $a$ closes on itself,

$$a'' = (A + \kappa + 2\|a\|^2)\,a,$$

and $\tau$ with $(\log\tau)'' = -\|a\|^2$, $\tau(0) = 1$, $\tau'(0) = 0$ is entire: the movable
singularities of $a$ are simple poles, and the zeros of $\tau$. With $N = \|a\|^2$, coefficient by
coefficient,

$$(n+1)(n+2)\,a_{n+2} = (A+\kappa)\,a_n + 2\sum_j N_j a_{n-j}, \quad
N_n = \sum_j a_j \cdot a_{n-j}, \quad
(n+2)\,\tau_{n+2} = -\sum_j \frac{N_j}{j+1}\,\tau_{n-j}.$$

Every array carries many states at once along its *last* axis, the lanes. A recurrence is one loop
whose body sums over a window of a buffer; the buffers are filled up with zeros, so the order is a
number, at most the size of the buffers.
"""

import functools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int


class Taylor(eqx.Module):
    r"""Taylor coefficients about one instant, zero beyond the order.

    - `a`, `tau`: of $a$ and $\tau$.
    - `sizes`: for each coefficient of $\tau$ the sum of the absolute values of its terms. Its
      rounding error is a small multiple of epsilon times that.
    - `norms`, `last`: of $N = \|a\|^2$ and of what the last component contributes to it.
    """

    a: Float[Array, "powers k lanes"]
    tau: Float[Array, "powers lanes"]
    sizes: Float[Array, "powers lanes"]
    norms: Float[Array, "squares lanes"]
    last: Float[Array, "squares lanes"]


# XLA's compiler for CPUs breaks longer sums up into windows, and no longer fuses their terms.
_LONGEST_SUM = 32
# Powers of the sums that `evaluate` begins with.
_BLOCK = 8


def summed(terms: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
    """The sum along an axis, in as many parts of equal lengths as keep each part fused."""
    count = terms.shape[axis]
    length = -(-count // -(-count // _LONGEST_SUM))
    parts = [
        jnp.sum(lax.slice_in_dim(terms, start, min(start + length, count), axis=axis), axis=axis)
        for start in range(0, count, length)
    ]
    return functools.reduce(jnp.add, parts)


def _window(values: Array, start: Array | int, length: int) -> Array:
    return lax.dynamic_slice_in_dim(values, start, length, 0)


def _stored(values: Array, new: Array, index: Array | int) -> Array:
    return lax.dynamic_update_index_in_dim(values, new, index, 0)


def expand_flow(
    matrix: Float[Array, "k k lanes"],
    point: Float[Array, "2 k lanes"],
    width: Int[Array, ""],
    order: Int[Array, ""],
    size: int,
) -> Taylor:
    r"""Expand the flow and $\tau$ about one instant.

    **Arguments:** `matrix`, $A + \kappa$; `point`, $a$ and $a'$ then; `width`, the number
    of components without those that pad the states; `order`, the highest power of $a$ and $\tau$,
    from 4 to `size`.

    **Returns:** `Taylor`, with powers up to `size`, and up to `size - 2` those of $N$.
    """
    _, k, lanes = point.shape
    dtype = point.dtype
    # Powers 0 and 1 of a, tau and `sizes`.
    others = np.array([[1, 1], [0, 0]], dtype)[:, :, None] * jnp.ones((1, 1, lanes), dtype)
    start = jnp.concatenate([point, others], axis=1)
    # Rows of `values`: the components of a, then tau, then `sizes`. Index size - m holds the
    # coefficients of power m; negative powers are zero.
    values = _stored(jnp.zeros((2 * size + 1, k + 2, lanes), dtype), start[0], size)
    squares = jnp.zeros((size, 2, lanes), dtype)
    powers = np.arange(size)
    # Of the terms of each row, as a multiple of N_j.
    of_tau = -1 / (powers[:, None] + 1)
    weights = np.where(np.arange(k + 1) < k, 2, of_tau)[:, :, None].astype(dtype)

    def turn(n: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        values, squares, current = carry
        # The coefficients of the previous turn enter the buffer before anything reads it: else
        # XLA copies the buffer in each turn.
        values = _stored(values, current, size - n)
        window = _window(values, size - n + 1, size)
        # N_{n-1} is a symmetric sum: half of its terms, those off the middle twice.
        half = size // 2
        rising = values[size - half + 1 : size + 1, :k][::-1]
        twice = jnp.clip(n - 2 * powers[:half], 0, 2).astype(dtype)
        products = summed(jnp.expand_dims(twice, (1, 2)) * rising * window[:half, :k], 0)
        new = jnp.stack([jnp.sum(products, axis=0), products[width - 1]])
        squares = _stored(squares, new, n - 1)
        factors = squares[:, :1] * weights
        pull = summed(factors * window[:, : k + 1], 0)
        absolute = summed(jnp.abs(factors[:, k:] * window[:, k : k + 1]), 0)
        linear = jnp.sum(matrix * window[0, :k][None], axis=1)
        real = n.astype(dtype)
        following = [(linear + pull[:k]) / (real * (real + 1))]
        following += [pull[k:] / (real + 1), absolute / (real + 1)]
        return values, squares, jnp.concatenate(following)

    values, squares, current = lax.fori_loop(1, order, turn, (values, squares, start[1]))
    values = _stored(values, current, size - order)[size::-1]
    return Taylor(
        a=values[:, :k],
        tau=values[:, k],
        sizes=values[:, k + 1],
        norms=squares[:-1, 0],
        last=squares[:-1, 1],
    )


def derivatives(
    coefficients: Float[Array, "powers *some"], num_derivatives: int
) -> Float[Array, "derivatives filled *some"]:
    """The coefficients of a polynomial and of its first derivatives, filled up for `evaluate`."""
    some = coefficients.shape[1:]
    count = -(-coefficients.shape[0] // _BLOCK) * _BLOCK
    none = jnp.zeros((count + num_derivatives - coefficients.shape[0], *some), coefficients.dtype)
    filled = jnp.concatenate([coefficients, none])
    rows = jnp.stack([filled[i : i + count] for i in range(num_derivatives + 1)])
    factors = [np.ones(count)]
    for i in range(1, num_derivatives + 1):
        factors.append(factors[-1] * (np.arange(count) + i))
    factors = np.stack(factors).reshape(*rows.shape[:2], *(1 for _ in some))
    return rows * factors.astype(rows.dtype)


def powers_of(x: Float[Array, " lanes"], count: int) -> Float[Array, "count lanes"]:
    """The powers of `x` from 0 to `count - 1`, by repeated squares."""
    exponents = np.arange(count)[:, None]
    powers, square = jnp.ones((count, x.shape[-1]), x.dtype), x
    for bit in range((count - 1).bit_length()):
        powers = powers * jnp.where(exponents >> bit & 1 == 1, square[None], 1)
        square = square * square
    return powers


def evaluate(
    table: Float[Array, "rows filled *some lanes"], x: Float[Array, " lanes"]
) -> Float[Array, "rows *some lanes"]:
    """The values of several polynomials, of `derivatives`, at one `x` per lane.

    By sums over a few powers each, and Horner's scheme for these: a loop over coefficients would
    cost a call of the device for each.
    """
    (rows, count), some = table.shape[:2], table.shape[2:]
    # Coefficients beyond the order are zero: times a power that overflows they are to be zero, too.
    largest = jnp.finfo(x.dtype).max
    powers = jnp.minimum(powers_of(x, _BLOCK + 1), largest)
    powers = jnp.expand_dims(powers, tuple(range(1, len(some))))
    parts = table.reshape(rows, count // _BLOCK, _BLOCK, *some)
    parts = jnp.sum(parts * powers[None, None, :-1], axis=2)
    values = parts[:, -1]
    for block in range(count // _BLOCK - 2, -1, -1):
        values = values * powers[-1:] + parts[:, block]
    return values


def flow_cotangents(
    matrix: Float[Array, "k k lanes"],
    taylor: Taylor,
    of_a: Float[Array, "powers k lanes"],
    of_norms: Float[Array, "squares lanes"],
) -> tuple[Float[Array, "k k lanes"], Float[Array, "2 k lanes"]]:
    r"""Reverse mode of `expand_flow`: cotangents of `matrix` and `point`.

    With $\lambda_n = \bar a_{n+2}/((n+1)(n+2))$, from the highest power down,

    $$\bar N_n \mathrel{+}= 2\sum_i \lambda_{n+i} \cdot a_i, \qquad
    \bar a_n \mathrel{+}= (A+\kappa)^T\lambda_n + 2\sum_i N_i \lambda_{n+i}
      + 2\sum_i \bar N_{n+i} a_i .$$

    Each power gathers what the later ones owe to it: the transposes that JAX derives of the
    recurrence would scatter every term into buffers of all powers instead.

    **Arguments:** `taylor`, the expansion; `of_a` and `of_norms`, the cotangents of its `a` and
    `norms`, zero beyond the order.
    """
    size = taylor.a.shape[0] - 1
    count = size - 1  # of norms, and of powers with a lambda
    k, lanes = taylor.a.shape[1:]
    powers = taylor.a[:count]
    # Index m = n + 2 holds lambda_n, and in row k the cotangent of N_n; indices 0 and 1 hold the
    # cotangents of a_0 and a_1, which have no lambda. Zero beyond the highest power.
    owed = jnp.zeros((2 * size + 3, k + 1, lanes), powers.dtype)
    of_norms = jnp.pad(of_norms, ((2, 0), (0, 0)))

    def turn(index: Array, owed: Array) -> Array:
        m = size - index
        later = _window(owed, m + 2, count)
        terms = taylor.norms[:, None] * later[:, :k] + later[:, k:] * powers
        linear = jnp.sum(matrix * later[0, :k][:, None], axis=0)
        total = of_a[m] + linear + 2 * summed(terms, 0)
        new = total / jnp.maximum(m * (m - 1), 1).astype(total.dtype)
        # lambda_n itself is the first term of the cotangent of N_n.
        rest = summed(_window(owed, m + 1, count - 1)[:, :k] * powers[1:], 0)
        of_norm = of_norms[m] + 2 * jnp.sum(rest + new * powers[0], axis=0)
        return _stored(owed, jnp.concatenate([new, of_norm[None]]), m)

    owed = lax.fori_loop(0, size + 1, turn, owed)
    lambdas = owed[2 : count + 2, :k]
    of_matrix = jnp.einsum("nil,njl->ijl", lambdas, powers, precision="highest")
    return of_matrix, owed[:2, :k]
