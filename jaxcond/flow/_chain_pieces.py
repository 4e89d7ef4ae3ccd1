r"""The flow of a chain of any depth by Taylor polynomials.

With the products $R_l = W_l \cdots W_1$ and $L_l = W_{l+1}^T \cdots W_L^T V$, which have one column
for each input,

$$W_l' = L_l R_{l-1}^T, \qquad W_l(t) = W_l(0) + \int_0^t L_l R_{l-1}^T .$$

The change of an $n \times n$ layer has the rank of a few columns, so its coefficients are never
formed. With the coefficients of the products, $W_l[j] = \frac1j\sum_i L_l[i]R_{l-1}[j-1-i]^T$ and
so

$$R_l[k] = W_l(0)R_{l-1}[k] + \sum_i L_l[i]\,c_i, \qquad
  c_i = \sum_j \tfrac1j R_{l-1}[j-1-i]^T R_{l-1}[k-j],$$

and the same for $L_{l-1}$ from the other end.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int

from .._chain import Chain
from .._chain_bounds import squared_sizes
from .._energy import energy
from ._pieces import Front, Grown, Timeline, grow_all, integral_weights, order_of, reach_of

# If layers vanish, the series of their products begin at a higher power.
_FIRST = 8


class ChainPieces(Timeline):
    r"""The flow of one chain by polynomials.

    - `lefts`, `rights`: for each layer the coefficients of $L_l$ and $R_{l-1}$ by powers of
      $u = (t - \text{begin}) / \text{length}$, shapes `(max, terms, n_l, n_0)` and
      `(max, terms, n_{l-1}, n_0)`.
    - `layers`: the layers at the start of a piece; `end`, the chain after the last.
    """

    lefts: tuple[Float[Array, "..."], ...]
    rights: tuple[Float[Array, "..."], ...]
    layers: tuple[Float[Array, "..."], ...]
    end: Chain

    def at(self, index: Int[Array, ""], place: Float[Array, ""]) -> Chain:
        """The chain at a place, 0 to 1, of one piece."""
        lefts, rights = (tuple(x[index] for x in terms) for terms in (self.lefts, self.rights))
        starts = tuple(layer[index] for layer in self.layers)
        changes = _changes(lefts, rights, place)
        length = self.length[index]
        layers = tuple(x + length * y for x, y in zip(starts, changes, strict=True))
        return Chain(layers, self.end.target)


def _changes(lefts: Grown, rights: Grown, place: Array) -> tuple[Array, ...]:
    """The changes of the layers since the start of a piece, divided by its length."""
    weights = integral_weights(lefts[0].shape[0], place)
    return tuple(
        jnp.einsum("lnz,lmz->nm", jnp.einsum("jnz,jl->lnz", left, weights), right)
        for left, right in zip(lefts, rights, strict=True)
    )


def _with_row(gram: Array, terms: Array, k: Array) -> Array:
    """The products $X[m]^TX[m']$ of coefficients, extended by those of coefficient `k`."""
    row = jnp.einsum("nz,mny->mzy", terms[k], terms)
    gram = gram.at[k].set(row)
    return gram.at[:, k].set(jnp.swapaxes(row, -1, -2))


def _kernel(gram: Array, k: Array) -> Array:
    r"""The sums $c_i = \sum_j \frac1j X[j-1-i]^TX[k-j]$ for all $i$, zero from $k$ on."""
    terms, z = gram.shape[0], gram.shape[-1]
    column = jnp.arange(terms)
    weight = jnp.where(column < k, 1 / jnp.where(column < k, k - column, 1), 0)
    weighted = gram * weight.astype(gram.dtype)[None, :, None, None]
    # Sums along antidiagonals: row $i$ is shifted to the right by $i$.
    wide = jnp.pad(weighted, ((0, 0), (0, terms), (0, 0), (0, 0))).reshape(-1, z, z)
    along = jnp.sum(wide[: terms * (2 * terms - 1)].reshape(terms, 2 * terms - 1, z, z), axis=0)
    turned = jnp.pad(along[::-1], ((0, terms), (0, 0), (0, 0)))
    return lax.dynamic_slice_in_dim(turned, 2 * terms - 1 - k, terms)


def _coefficients(chain: Chain) -> tuple[list[Array], list[Array]]:
    """Coefficients of the products to the left and to the right of every layer."""
    order, depth, layers = order_of(chain.dtype), chain.depth, chain.layers
    inputs = chain.widths[0]
    lefts = [jnp.zeros((order + 1, n, inputs), chain.dtype) for n in chain.widths[1:]]
    rights = [jnp.zeros((order + 1, n, inputs), chain.dtype) for n in chain.widths[:-1]]
    lefts[-1] = lefts[-1].at[0].set(chain.target)
    rights[0] = rights[0].at[0].set(jnp.eye(inputs, dtype=chain.dtype))
    blank = jnp.zeros((order + 1, order + 1, inputs, inputs), chain.dtype)

    def step(k: Array, carry: tuple[list[Array], ...]) -> tuple[list[Array], ...]:
        lefts, rights, of_lefts, of_rights = (list(x) for x in carry)
        for n in range(depth - 1):
            moved = jnp.einsum("inz,izy->ny", lefts[n], _kernel(of_rights[n], k))
            rights[n + 1] = rights[n + 1].at[k].set(layers[n] @ rights[n][k] + moved)
        for n in range(depth - 1, 0, -1):
            moved = jnp.einsum("inz,izy->ny", rights[n], _kernel(of_lefts[n], k))
            lefts[n - 1] = lefts[n - 1].at[k].set(layers[n].T @ lefts[n][k] + moved)
        of_rights = [_with_row(gram, x, k) for gram, x in zip(of_rights, rights, strict=True)]
        of_lefts = [_with_row(gram, x, k) for gram, x in zip(of_lefts, lefts, strict=True)]
        return lefts, rights, of_lefts, of_rights

    grams = [blank] * depth
    lefts, rights, _, _ = lax.fori_loop(0, order + 1, step, (lefts, rights, grams, list(grams)))
    return lefts, rights


def _grow(front: Front) -> tuple[Front, Grown]:
    chain = front.point
    # At unit scale, coefficients of any order neither overflow nor underflow.
    (of_layers, of_target), unit = _unit(chain)
    lefts, rights = _coefficients(unit)
    sizes = lax.stop_gradient(
        [jnp.sqrt(jnp.sum(terms * terms, axis=(1, 2))) for terms in (*lefts, *rights)]
    )
    step = jnp.min(jnp.stack([reach_of(x, jnp.max(x[:_FIRST])) for x in sizes]))
    powers = step ** jnp.arange(sizes[0].size, dtype=step.dtype)
    lefts = tuple(x * powers[:, None, None] for x in lefts)
    rights = tuple(x * powers[:, None, None] for x in rights)
    changes = _changes(lefts, rights, jnp.ones_like(step))
    after = (x + step * y for x, y in zip(unit.layers, changes, strict=True))
    after = Chain(tuple(jnp.ldexp(x, of_layers) for x in after), chain.target)
    length = jnp.ldexp(step, -(chain.depth - 2) * of_layers - of_target)
    # The rates, in units of the layers over those of time.
    faster = (chain.depth - 1) * of_layers + of_target
    lefts = tuple(jnp.ldexp(x, faster) for x in lefts)
    return front.advanced(after, length), (length, lefts, rights, chain.layers)


def _unit(chain: Chain) -> tuple[tuple[Array, Array], Chain]:
    """The chain with layers and target of order one, and the powers of two that this removes."""
    sizes = jnp.stack([jnp.sum(squared_sizes(chain)), jnp.sum(chain.target**2)])
    sizes = lax.stop_gradient(jnp.sqrt(sizes))
    sizes = jnp.where(jnp.isfinite(sizes) & (sizes > 0), sizes, 1)
    of_layers, of_target = jnp.frexp(sizes)[1]
    layers = tuple(jnp.ldexp(x, -of_layers) for x in chain.layers)
    return (of_layers, of_target), Chain(layers, jnp.ldexp(chain.target, -of_target))


def _upper(chain: Chain) -> Array:
    """An upper bound on the time left; negative if there is none."""
    depth = chain.depth
    if depth < 3:
        return jnp.full((), -1, chain.dtype)
    return jnp.sum(squared_sizes(chain)) / (depth * (depth - 2) * energy(chain))


def chain_pieces(chain: Chain, closeness: Float[Array, ""], max_pieces: int) -> ChainPieces:
    """`pieces` of one chain of any depth."""
    terms, inputs, dtype = order_of(chain.dtype) + 1, chain.widths[0], chain.dtype
    nothing = (
        jnp.zeros((), dtype),
        tuple(jnp.zeros((terms, n, inputs), dtype) for n in chain.widths[1:]),
        tuple(jnp.zeros((terms, n, inputs), dtype) for n in chain.widths[:-1]),
        tuple(jnp.zeros_like(layer) for layer in chain.layers),
    )
    last, begin, lag, grown, ends = grow_all(chain, _grow, nothing, closeness, _upper, max_pieces)
    length, lefts, rights, layers = grown
    return ChainPieces(
        begin=begin,
        lag=lag,
        length=length,
        num=jnp.sum(length > 0),
        ends=ends,
        elapsed=last.elapsed,
        lefts=lefts,
        rights=rights,
        layers=layers,
        end=last.point,
    )
