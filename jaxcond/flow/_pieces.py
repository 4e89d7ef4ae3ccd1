r"""The flow as a function of time: one Taylor polynomial after another.

With $Y = [a_1 \dots a_r]$, $Z = [c_1 \dots c_r]$, $S = \mathrm{diag}(\lambda)$ and the conserved
matrices $A = bb^T - YY^T$ and $C = b^Tb - ZZ^T$, $b$ leaves the equations:

$$Y'' = AYS^2 + Y K, \quad K = S(Z^TZ)S + (Y^TY)S^2, \qquad
  Z'' = CZS^2 + Z L, \quad L = S(Y^TY)S + (Z^TZ)S^2 .$$

A coefficient of $Y$ and $Z$ is a convolution of those before it. Every piece starts from $Y$, $Z$
and $b$, and so from an $A$ and a $C$ of their own: what is rounded is relative to the state that
the flow has reached. Within a piece $b$ follows from $b' = \sum_i\lambda_i a_ic_i^T$, the integral
of a product of polynomials.

The step is as long as the last coefficients allow (Jorba and Zou, 2005), relative to each vector by
itself. The singularity nearest to a real time is, close to the blow-up, $T^*$ itself: a piece of
order $n$ then leaves about $1 - \epsilon^{1/n}$ of the time that was left.
"""

from collections.abc import Callable

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .._energy import Conserved, conserved, energy, squared_norms, vector_field
from .._noise import LARGEST_SHIFT
from .._state import State

# Coefficients whose size decides the step: two in a row may be small by chance.
_LAST = 4


def order_of(dtype: jnp.dtype) -> int:
    """The degree of the polynomials: two thirds of the time left remain after each."""
    return 32 if jnp.finfo(dtype).bits >= 64 else 14


class Pieces(eqx.Module):
    r"""The flow of one state by `num` polynomials, of `max` pieces at most.

    - `begin`, `lag`: where a piece starts, as a sum of two numbers, so that what adding rounds is
      not lost; `length`, zero for pieces that are not used.
    - `sides`: the coefficients of $a$ and $c$ (first and second on the third axis) by powers of
      $u = (t - \text{begin}) / \text{length}$.
    - `b`: the middle layer at the start of a piece.
    - `ends`: whether the flow was followed to as near its blow-up as was asked for.
    - `end`: the state after the last piece; `elapsed`, the time there.
    """

    begin: Float[Array, " max"]
    lag: Float[Array, " max"]
    length: Float[Array, " max"]
    sides: Float[Array, "max terms 2 rank dim"]
    b: Float[Array, "max dim dim"]
    strength: Float[Array, " rank"]
    num: Int[Array, ""]
    ends: Bool[Array, ""]
    end: State
    elapsed: Float[Array, ""]

    def find(self, time: Float[Array, ""]) -> tuple[Int[Array, ""], Float[Array, ""]]:
        """The piece that a time lies in, and where in it, from 0 to 1."""
        used = self.length > 0
        index = jnp.sum(used & (lax.stop_gradient(self.begin) <= time)) - 1
        index = jnp.clip(index, 0, None)
        length = jnp.where(used[index], self.length[index], 1)
        return index, ((time - self.begin[index]) - self.lag[index]) / length

    def at(self, index: Int[Array, ""], place: Float[Array, ""]) -> State:
        """The state at a place, 0 to 1, of one piece."""
        sides = self.sides[index]
        terms = place ** jnp.arange(sides.shape[0], dtype=place.dtype)
        a, c = jnp.tensordot(terms, sides, 1)
        change = _change(sides, place, self.strength)
        return State(a, self.b[index] + self.length[index] * change, c, self.strength)


def _change(sides: Array, place: Array, strength: Array) -> Array:
    r"""The integral of $\sum_i \lambda_i a_i c_i^T$ from the start of a piece, over its length."""
    powers = jnp.arange(sides.shape[0])
    degree = powers[:, None] + powers[None, :] + 1
    weights = place**degree / degree
    left = jnp.einsum("jik,jl->lik", sides[:, 0], weights)
    return jnp.einsum("lik,i,lim->km", left, strength, sides[:, 1])


def _coefficients(state: State) -> Array:
    r"""Taylor coefficients of $a$ and $c$ at one state, shape `(terms, 2, rank, dim)`."""
    order = order_of(state.dtype)
    strength, slope = state.strength, vector_field(state)
    sides = jnp.stack([state.a, state.c])
    squares = jnp.stack([state.b @ state.b.T, state.b.T @ state.b])
    constant = squares - jnp.einsum("sik,sim->skm", sides, sides)
    rows, columns = strength[None, :, None], strength[None, None, :]
    # Of power n at place `order - n`: the window from there on holds powers n, n - 1, ..., 0, and
    # zeros.
    blank = jnp.zeros((2 * order + 1, *sides.shape), state.dtype)
    turned = blank.at[order].set(sides).at[order - 1].set(jnp.stack([slope.a, slope.c]))
    rank = state.rank
    kernels = jnp.zeros((2 * order + 1, 2, rank, rank), state.dtype)
    forward = jnp.zeros((order + 1, *sides.shape), state.dtype)
    forward = forward.at[0].set(turned[order]).at[1].set(turned[order - 1])

    def step(n: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        forward, turned, kernels = carry
        window = lax.dynamic_slice_in_dim(turned, order - n, order + 1)
        products = jnp.einsum("jsik,jslk->sil", forward, window)
        kernel = rows * products[::-1] * columns + products * columns**2
        kernels = lax.dynamic_update_index_in_dim(kernels, kernel, order - n, 0)
        other = lax.dynamic_slice_in_dim(kernels, order - n, order + 1)
        pulled = jnp.einsum("skm,sim->sik", constant, window[0]) * rows**2
        bent = pulled + jnp.einsum("jslk,jsli->sik", forward, other)
        new = bent / ((n + 1) * (n + 2)).astype(state.dtype)
        forward = lax.dynamic_update_index_in_dim(forward, new, n + 2, 0)
        turned = lax.dynamic_update_index_in_dim(turned, new, order - 2 - n, 0)
        return forward, turned, kernels

    forward, _, _ = lax.fori_loop(0, order - 1, step, (forward, turned, kernels))
    return forward


def _reach(terms: Array) -> Float[Array, ""]:
    """How far a polynomial holds to rounding, by its last coefficients relative to its first."""
    order = terms.shape[0] - 1
    sizes = jnp.sqrt(jnp.sum(terms * terms, axis=-1))
    first = jnp.maximum(sizes[0], sizes[1])[None]
    powers = jnp.arange(order + 1 - _LAST, order + 1)
    late = sizes[powers]
    info = jnp.finfo(terms.dtype)
    # What underflows, or belongs to a vector that stands still, limits nothing.
    limits = (late > info.tiny) & (first > info.tiny)
    ratio = jnp.where(limits, info.eps * first / jnp.where(limits, late, 1), 1 / info.eps)
    return jnp.exp(jnp.min(jnp.log(ratio) / powers[:, None, None]))


class _Front(eqx.Module):
    """How far the flow has been followed."""

    state: State
    elapsed: Float[Array, ""]
    lag: Float[Array, ""]
    going: Bool[Array, ""]


def _grow(front: _Front) -> tuple[_Front, tuple[Array, Array, Array]]:
    """One more piece: the front after it, its length, coefficients, and middle layer."""
    state = front.state
    # At unit size coefficients of any order neither overflow nor vanish.
    unit, exponent = _unit(state)
    terms = _coefficients(unit)
    step = lax.stop_gradient(_reach(lax.stop_gradient(terms)))
    terms = terms * (step ** jnp.arange(terms.shape[0], dtype=step.dtype))[:, None, None, None]
    a, c = jnp.sum(terms, axis=0)
    b = unit.b + step * _change(terms, jnp.ones_like(step), unit.strength)
    a, b, c = (jnp.ldexp(x, exponent[0]) for x in (a, b, c))
    after = State(a, b, c, state.strength)
    length = jnp.ldexp(step, -exponent[0] - exponent[1])
    elapsed, lag = _two_sum(front.elapsed, length + front.lag)
    return _Front(after, elapsed, lag, front.going), (
        length,
        jnp.ldexp(terms, exponent[0]),
        state.b,
    )


def _is_near(front: _Front, closeness: Array) -> Bool[Array, ""]:
    """Whether the blow-up is as close as asked for, by its upper bound."""
    current = energy(front.state)
    left = jnp.sum(squared_norms(front.state)) / (3 * current)
    return (current > 0) & (left <= closeness * (front.elapsed + left))


def drift(start: Conserved, state: State) -> Float[Array, ""]:
    r"""How far what the flow conserves has moved from its start, over $\|\theta\|^2$."""
    moved = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), conserved(state), start)
    size = jnp.sum(squared_norms(state))
    return jnp.max(jnp.stack(jax.tree.leaves(moved))) / jnp.where(size == 0, 1, size)


def _is_sound(front: _Front, start: Conserved) -> Bool[Array, ""]:
    """Whether rounding has left digits to the state, which a flow at rest loses in the end."""
    finite = jnp.isfinite(energy(front.state)) & jnp.isfinite(front.elapsed)
    return finite & (drift(start, front.state) <= LARGEST_SHIFT)


def _unit(state: State) -> tuple[State, tuple[Array, Array]]:
    """A state and its strengths of order one, and the powers of two that were divided out."""
    size = jnp.sqrt(jnp.sum(squared_norms(state)))
    strongest = jnp.max(jnp.abs(state.strength))
    sizes = lax.stop_gradient(jnp.stack([size, strongest]))
    sizes = jnp.where(jnp.isfinite(sizes) & (sizes > 0), sizes, 1)
    of_layers, of_strength = jnp.frexp(sizes)[1]
    a, b, c = (jnp.ldexp(x, -of_layers) for x in state.layers)
    unit = State(a, b, c, jnp.ldexp(state.strength, -of_strength))
    return unit, (of_layers, of_strength)


def _two_sum(x: Array, y: Array) -> tuple[Array, Array]:
    """A sum, and what rounding it has lost; `x` is the larger."""
    total = x + y
    return total, y - (total - x)


@jax.named_call
def pieces(state: State, closeness: Float[Array, ""], max_pieces: int) -> Pieces:
    r"""Follow one state of equal widths until its blow-up is near.

    **Arguments:** `state`, of unit scale; `closeness`, the $(T^* - t)/T^*$ at which to stop, or a
    little closer; `max_pieces`, where the flow comes to rest or the blow-up is far.

    Differentiable in both modes, of any order: the lengths of the pieces are constants.
    """
    begun = lax.stop_gradient(conserved(state))

    def going_on(front: _Front) -> tuple[_Front, tuple[Array, Array, Array]]:
        after, grown = jax.checkpoint(_grow)(front)
        sound = _is_sound(after, begun)
        # A piece that leads nowhere is not kept.
        after, grown = jax.tree.map(
            lambda x, y: jnp.where(sound, x, y), (after, grown), (front, nothing)
        )
        near = _is_near(after, closeness)
        after = eqx.tree_at(lambda front: front.going, after, front.going & sound & ~near)
        return after, grown

    order, (p, q) = order_of(state.dtype), state.widths
    nothing = (
        jnp.zeros((), state.dtype),
        jnp.zeros((order + 1, 2, state.rank, p), state.dtype),
        jnp.zeros((p, q), state.dtype),
    )

    def piece(front: _Front, _: None) -> tuple[_Front, tuple[Array, ...]]:
        after, grown = lax.cond(
            eqxi.unvmap_any(front.going), going_on, lambda front: (front, nothing), front
        )
        after = jax.tree.map(lambda x, y: jnp.where(front.going, x, y), after, front)
        grown = jax.tree.map(lambda x, y: jnp.where(front.going, x, y), grown, nothing)
        return after, (front.elapsed, front.lag, *grown)

    zero = jnp.zeros((), state.dtype)
    start = _Front(state, zero, zero, jnp.ones((), bool))
    last, (begin, lag, length, sides, b) = lax.scan(piece, start, None, length=max_pieces)
    return Pieces(
        begin=begin,
        lag=lag,
        length=length,
        sides=sides,
        b=b,
        strength=state.strength,
        num=jnp.sum(length > 0),
        ends=_is_near(last, closeness),
        end=last.state,
        elapsed=last.elapsed,
    )


class Arrival(eqx.Module):
    """Where a run of pieces that are not kept has ended, and after how many of them."""

    state: State
    elapsed: Float[Array, ""]
    arrived: Bool[Array, ""]
    num: Int[Array, ""]


def follow_pieces(
    state: State,
    arrives: Callable[[State, Array], Bool[Array, ""]],
    max_pieces: int,
    stir: Callable[[State, Array], State] = lambda state, number: state,
) -> Arrival:
    """Follow one state of equal widths to where a function of the state and the time is true.

    **Arguments:** `stir` changes the state before each piece, given the number of it.
    """

    def piece(carry: tuple[_Front, Array]) -> tuple[_Front, Array]:
        front, num = carry
        front = eqx.tree_at(lambda front: front.state, front, stir(front.state, num))
        after, _ = _grow(front)
        going = ~arrives(after.state, after.elapsed) & _is_sound(after, begun)
        return eqx.tree_at(lambda front: front.going, after, going), num + 1

    begun, zero = conserved(state), jnp.zeros((), state.dtype)
    start = _Front(state, zero, zero, ~arrives(state, zero))
    last, num = lax.while_loop(
        lambda carry: carry[0].going & (carry[1] < max_pieces),
        piece,
        (start, jnp.zeros((), jnp.int32)),
    )
    arrived = arrives(last.state, last.elapsed)
    return Arrival(last.state, last.elapsed + last.lag, arrived, num)
