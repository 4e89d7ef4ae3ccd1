r"""Energy of the effective dynamics, its gradient flow, and what the flow conserves.

$$E = \sum_i \lambda_i a_i^T b c_i, \qquad
a_i' = \lambda_i b c_i, \quad b' = \sum_i \lambda_i a_i c_i^T, \quad c_i' = \lambda_i b^T a_i .$$

For a chain of $L$ layers, $E = \langle W_L \cdots W_1, V\rangle$ and

$$W_l' = (W_L \cdots W_{l+1})^T\, V\, (W_{l-1} \cdots W_1)^T .$$

Source: Chen and Luo, eqs. (3.8), (3.10), (3.11) for rank 1 and (A.8) for any rank.
"""

from typing import Any, overload

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float

from ._chain import Chain, check_single
from ._state import State


def energy(point: State | Chain) -> Float[Array, ""]:
    r"""The energy of one state or chain.

    $$E = \sum_i \lambda_i a_i^T b c_i, \qquad E = \langle W_L \cdots W_1, V\rangle .$$

    **Arguments:** one `State` or one `Chain`.

    **Raises:** `ValueError` for a batch of chains.

    Source: eqs. (3.8) and (A.8).
    """
    if isinstance(point, Chain):
        check_single("energy", point)
        return jnp.sum(jnp.linalg.multi_dot(point.layers[::-1]) * point.target)
    return jnp.sum(component_energies(point))


def component_energies(state: State) -> Float[Array, " rank"]:
    r"""The terms $\lambda_i a_i^T b c_i$ of the energy, shape `(rank,)`."""
    return state.strength * jnp.sum(state.a * (state.c @ state.b.T), axis=-1)


@overload
def vector_field(point: State) -> State: ...
@overload
def vector_field(point: Chain) -> Chain: ...
def vector_field(point: State | Chain) -> State | Chain:
    r"""Right-hand side of the effective dynamics, the gradient of the energy.

    **Arguments:** one `State` or one `Chain`.

    **Returns:** a `State` whose layers are $(a', b', c')$, or a `Chain` with the layers $W_l'$. The
    strengths, or the target, do not move and are zero in the result, so that it can be added to the
    point.

    **Raises:** `ValueError` for a batch of chains.

    Source: eqs. (3.10) and (A.8).
    """
    if isinstance(point, Chain):
        check_single("vector_field", point)
        return _chain_field(point)
    state = point
    weighted_a = state.strength[:, None] * state.a
    return State(
        state.strength[:, None] * (state.c @ state.b.T),
        weighted_a.T @ state.c,
        weighted_a @ state.b,
        jnp.zeros_like(state.strength),
    )


def _chain_field(chain: Chain) -> Chain:
    # W_{l-1} ... W_1 from the input on, (W_L ... W_{l+1})^T V from the output on.
    before = [jnp.eye(chain.widths[0], dtype=chain.dtype)]
    for layer in chain.layers[:-1]:
        before.append(layer @ before[-1])
    behind = [chain.target]
    for layer in chain.layers[:0:-1]:
        behind.append(layer.T @ behind[-1])
    gradient = [x @ y.T for x, y in zip(behind[::-1], before, strict=True)]
    return Chain(gradient, jnp.zeros_like(chain.target))


def squared_norms(state: State) -> Float[Array, " 3"]:
    r"""$(\|a\|^2, \|b\|_F^2, \|c\|^2)$; each grows at the rate $2E$ (eq. (3.11))."""
    return jnp.stack([jnp.sum(layer * layer) for layer in state.layers])


class Conserved(eqx.Module):
    r"""Quantities that the flow of a state leaves constant.

    - `left`: the matrix $A = b b^T - \sum_i a_i a_i^T$, shape `(p, p)`.
    - `right`: the matrix $C = b^T b - \sum_i c_i c_i^T$, shape `(q, q)`.
    - `balance`: $\|c_i\|^2 - \|a_i\|^2$, shape `(rank,)`.
    """

    left: Float[Array, "p p"]
    right: Float[Array, "q q"]
    balance: Float[Array, " rank"]

    @property
    def left_units(self) -> Float[Array, " p"]:
        r"""$\sum_{k'} b_{kk'}^2 - \sum_i a_{ik}^2$ for each unit $k$, eq. (3.11)."""
        return jnp.diagonal(self.left)

    @property
    def right_units(self) -> Float[Array, " q"]:
        r"""$\sum_k b_{kk'}^2 - \sum_i c_{ik'}^2$ for each unit $k'$, eq. (3.11)."""
        return jnp.diagonal(self.right)


@overload
def conserved(point: State) -> Conserved: ...
@overload
def conserved(point: Chain) -> tuple[Float[Array, "n n"], ...]: ...
def conserved(point: State | Chain) -> Conserved | tuple[Float[Array, "n n"], ...]:
    r"""The conserved matrices of one chain, or matrices and balances of one state.

    **Arguments:** one `State` or one `Chain`.

    **Returns:** `Conserved` for a state. For a chain, the $L - 1$ matrices $W_{l+1}^T W_{l+1} - W_l
    W_l^T$ of shapes `(n_l, n_l)`, $l = 1, \dots, L-1$: $(W_{l+1}^TW_{l+1})'$ and $(W_lW_l^T)'$
    both are $G + G^T$ with $G = W_l (W_l')^T$.

    **Raises:** `ValueError` for a batch of chains.

    The matrices of a state contain the conserved vectors of eq. (3.11) as their diagonals; that the
    whole matrices are conserved follows from $(b b^T)' = \sum_i \lambda_i (a_i (b c_i)^T + (b c_i)
    a_i^T) = (\sum_i a_i a_i^T)'$.
    """
    if isinstance(point, Chain):
        check_single("conserved", point)
        pairs = zip(point.layers[:-1], point.layers[1:], strict=True)
        return tuple(after.T @ after - layer @ layer.T for layer, after in pairs)
    a, b, c = point.layers
    return Conserved(
        left=b @ b.T - a.T @ a,
        right=b.T @ b - c.T @ c,
        balance=jnp.sum(c * c, axis=-1) - jnp.sum(a * a, axis=-1),
    )


class FirstIntegrals(eqx.Module):
    r"""The integrals $F_k$ of the flow of rank 1, and the sizes of their terms.

    - `values`: the $F_k$, one for each eigenvalue $\alpha_k$ of $A + \kappa$ in ascending order;
      where eigenvalues coincide, each entry holds the sum over their eigenspace.
    - `sizes`: for each $F_k$ the sum of the absolute values of its terms, the scale to compare it
      with.
    """

    values: Float[Array, " k"]
    sizes: Float[Array, " k"]

    @property
    def rest_distance(self) -> Float[Array, ""]:
        """The largest $|F_k|$ over the largest of `sizes`: 0 for states that come to rest."""
        largest = self.sizes.max()
        return abs(self.values).max() / (largest + (largest == 0))


def first_integrals(state: State) -> FirstIntegrals:
    r"""The first integrals $F_k$ that make the flow of rank 1 integrable.

    In eigenvectors of $A + \kappa$, $A = bb^T - aa^T$, $\kappa = \|c\|^2 - \|a\|^2$, with
    coordinates $x$ of $a$ and $y$ of $a' = bc$ and $W_{jk} = x_j y_k - x_k y_j$,

    $$F_k = y_k^2 - \alpha_k x_k^2 - \|x\|^2 x_k^2 - \sum_{j \ne k}
      \frac{W_{jk}^2}{\alpha_k - \alpha_j}$$

    do not change along the flow. If the flow comes to rest, $a \to 0$ and $a' \to 0$, so that all
    $F_k$ are zero: a necessary condition for rest, and a measure of the distance from it. The
    formula is for the smaller of $a$ and $c$, with time in units of $1/|\lambda|$.

    **Arguments:** one `State` of rank 1.

    **Returns:** `FirstIntegrals` of length $\max(p, q)$, in units of the fourth power of the state.

    **Raises:** `ValueError` for a higher rank.
    """
    if state.rank != 1:
        raise ValueError(f"First integrals are known for rank 1, but the rank is {state.rank}.")
    k = max(state.widths)
    a, c = (jnp.pad(x[0], (0, k - x.shape[1])) for x in (state.a, state.c))
    b = jnp.pad(state.b, [(0, k - n) for n in state.widths])
    return FirstIntegrals(*integrals_of(a, b, jnp.sign(state.strength[0]) * c, jnp))


def integrals_of(a: Any, b: Any, c: Any, library: Any) -> tuple[Any, Any]:
    """The fields of `first_integrals` from arrays of equal widths, at unit strength."""
    smaller = library.sum(a * a) <= library.sum(c * c)
    a, c = library.where(smaller, a, c), library.where(smaller, c, a)
    b = library.where(smaller, b, b.T)
    size = library.sum(a * a)
    matrix = b @ b.T - library.outer(a, a)
    eigenvalues, vectors = library.linalg.eigh(matrix)
    alpha = eigenvalues + library.sum(c * c) - size
    x, y = a @ vectors, (b @ c) @ vectors
    apart = alpha[:, None] - alpha[None]
    eps = library.finfo(alpha.dtype).eps
    alike = library.abs(apart) <= 64 * eps * len(alpha) * library.max(library.abs(alpha))
    wedge = (x[:, None] * y[None] - x[None] * y[:, None]) ** 2
    pairs = library.where(alike, 0, wedge / library.where(alike, 1, apart))
    terms = library.stack([y * y, -alpha * x * x, -size * x * x, -library.sum(pairs, 1)])
    sizes = library.sum(library.abs(terms), 0)
    group = alike.astype(alpha.dtype)
    return group @ library.sum(terms, 0), group @ sizes
