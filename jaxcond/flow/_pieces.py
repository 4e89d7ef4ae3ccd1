r"""The flow as a function of time: one Taylor polynomial after another.

With $Y = [a_1 \dots a_r]$, $Z = [c_1 \dots c_r]$, $S = \mathrm{diag}(\lambda)$ and the conserved
matrices $A = bb^T - YY^T$ and $C = b^Tb - ZZ^T$, $b$ leaves the equations:

$$Y'' = AYS^2 + Y K, \quad K = S(Z^TZ)S + (Y^TY)S^2, \qquad
  Z'' = CZS^2 + Z L, \quad L = S(Y^TY)S + (Z^TZ)S^2 .$$

Each coefficient of $Y$ and $Z$ is a convolution of the previous ones. Every piece computes its own
$A$ and $C$ from $Y$, $Z$ and $b$, so that rounding errors are relative to the current state. Within
a piece $b$ follows from $b' = \sum_i\lambda_i a_ic_i^T$, the integral of a product of polynomials.

The step is as long as the last coefficients allow (Jorba and Zou, 2005), relative to each vector
separately. Close to the blow-up the nearest singularity is $T^*$ itself, and a piece of order $n$
leaves about $1 - \epsilon^{1/n}$ of the remaining time.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import equinox.internal as eqxi
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .._energy import conserved, energy, squared_norms, vector_field
from .._noise import LARGEST_SHIFT
from .._state import State

# Number of last coefficients whose size decides the step: two in a row may be small by chance.
_LAST = 4


def order_of(dtype: jnp.dtype) -> int:
    """The degree of the polynomials; each piece then leaves two thirds of the remaining time."""
    return 32 if jnp.finfo(dtype).bits >= 64 else 14


class Timeline(eqx.Module):
    r"""The times of the pieces of a flow: `num` of them, at most `max`.

    - `begin`, `lag`: the start of a piece, as a sum of two numbers that keeps the rounding error of
      the additions; `length`, zero for unused pieces.
    - `elapsed`: the time after the last piece; `ends`, whether that is as close to the blow-up as
      requested.
    """

    begin: Float[Array, "*batch max"]
    lag: Float[Array, "*batch max"]
    length: Float[Array, "*batch max"]
    num: Int[Array, "*batch"]
    ends: Bool[Array, "*batch"]
    elapsed: Float[Array, "*batch"]

    def find(self, time: Float[Array, ""]) -> tuple[Int[Array, ""], Float[Array, ""]]:
        """The piece that contains a time, and the place in it, from 0 to 1."""
        used = self.length > 0
        index = jnp.sum(used & (lax.stop_gradient(self.begin) <= time)) - 1
        index = jnp.clip(index, 0, None)
        length = jnp.where(used[index], self.length[index], 1)
        return index, ((time - self.begin[index]) - self.lag[index]) / length


class Pieces(Timeline):
    r"""The flow of one state by polynomials.

    - `sides`: the coefficients of $a$ and $c$ (first and second on the third axis) by powers of
      $u = (t - \text{begin}) / \text{length}$.
    - `b`: the middle layer at the start of a piece.
    - `end`: the state after the last piece.
    """

    sides: Float[Array, "*batch max terms 2 rank dim"]
    b: Float[Array, "*batch max dim dim"]
    strength: Float[Array, "*batch rank"]
    end: State

    def at(self, index: Int[Array, ""], place: Float[Array, ""]) -> State:
        """The state at a place, 0 to 1, of one piece."""
        sides = self.sides[index]
        terms = place ** jnp.arange(sides.shape[0], dtype=place.dtype)
        a, c = jnp.tensordot(terms, sides, 1)
        change = _change(sides, place, self.strength)
        return State(a, self.b[index] + self.length[index] * change, c, self.strength)


def _change(sides: Array, place: Array, strength: Array) -> Array:
    r"""The change of $b$ since the start of a piece, divided by its length."""
    weights = integral_weights(sides.shape[0], place)
    left = jnp.einsum("jik,jl->lik", sides[:, 0], weights)
    return jnp.einsum("lik,i,lim->km", left, strength, sides[:, 1])


def integral_weights(terms: int, place: Array) -> Float[Array, "terms terms"]:
    """Integrals of products of two powers of $u$ from 0 to `place`."""
    degrees = jnp.arange(terms)
    powers = place ** degrees.astype(place.dtype)
    return place * jnp.outer(powers, powers) / (degrees[:, None] + degrees[None, :] + 1)


def _coefficients(state: State) -> Array:
    r"""Taylor coefficients of $a$ and $c$ at one state, shape `(terms, 2, rank, dim)`."""
    order = order_of(state.dtype)
    strength, slope = state.strength, vector_field(state)
    sides = jnp.stack([state.a, state.c])
    squares = jnp.stack([state.b @ state.b.T, state.b.T @ state.b])
    constant = squares - jnp.einsum("sik,sim->skm", sides, sides)
    rows, columns = strength[None, :, None], strength[None, None, :]
    # Power n stands at place `order - n`, so a window that begins there holds powers n, n - 1, ...,
    # 0, and zeros.
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


def reach_of(terms: Array, first: Array) -> Float[Array, ""]:
    """The step over which polynomials hold to rounding, from the last coefficients relative to a
    size.

    **Arguments:** `terms`, norms of coefficients, with the powers along the first axis; `first`,
    the sizes to compare them with, in the shape of one power.

    Without a limit, the step is the longest whose powers do not overflow.
    """
    order = terms.shape[0] - 1
    powers = jnp.arange(order + 1 - _LAST, order + 1)
    late, first = terms[powers], first[None]
    info = jnp.finfo(terms.dtype)
    # Coefficients that underflow, or belong to a vector at rest, do not limit the step.
    limits = (late > info.tiny) & (first > info.tiny)
    ratio = jnp.where(limits, info.eps * first / jnp.where(limits, late, 1), jnp.inf)
    shape = (-1, *(1 for _ in terms.shape[1:]))
    reach = jnp.exp(jnp.min(jnp.log(ratio) / powers.reshape(shape)))
    return jnp.minimum(reach, float(info.max) ** (0.9 / order))


class Front(eqx.Module):
    """The point that the flow has reached, a `State` or a `Chain`, and its time."""

    point: Any
    elapsed: Float[Array, ""]
    lag: Float[Array, ""]
    going: Bool[Array, ""]

    @classmethod
    def of(cls, point: Any) -> "Front":
        """The front at the start."""
        zero = jnp.zeros((), point.dtype)
        return cls(point, zero, zero, jnp.ones((), bool))

    def advanced(self, point: Any, length: Array) -> "Front":
        """The front after another piece."""
        elapsed, lag = _two_sum(self.elapsed, length + self.lag)
        return Front(point, elapsed, lag, self.going)


def _grow(front: Front) -> tuple[Front, tuple[Array, Array, Array]]:
    """Another piece: the front after it, its length, coefficients, and middle layer."""
    state = front.point
    # At unit scale, coefficients of any order neither overflow nor underflow.
    unit, exponent = _unit(state)
    terms = _coefficients(unit)
    sizes = lax.stop_gradient(jnp.sqrt(jnp.sum(terms * terms, axis=-1)))
    step = reach_of(sizes, jnp.maximum(sizes[0], sizes[1]))
    terms = terms * (step ** jnp.arange(terms.shape[0], dtype=step.dtype))[:, None, None, None]
    a, c = jnp.sum(terms, axis=0)
    b = unit.b + step * _change(terms, jnp.ones_like(step), unit.strength)
    a, b, c = (jnp.ldexp(x, exponent[0]) for x in (a, b, c))
    after = State(a, b, c, state.strength)
    length = jnp.ldexp(step, -exponent[0] - exponent[1])
    return front.advanced(after, length), (length, jnp.ldexp(terms, exponent[0]), state.b)


def upper_of(state: State) -> Array:
    """An upper bound on the time left; negative if there is none."""
    return jnp.sum(squared_norms(state)) / (3 * energy(state))


def is_near(front: Front, closeness: Array, upper: Callable[[Any], Array]) -> Bool[Array, ""]:
    """Whether the blow-up is as close as requested, judged by an upper bound."""
    left = upper(front.point)
    return (left > 0) & (left <= closeness * (front.elapsed + left))


def drift(start: Any, point: Any) -> Float[Array, ""]:
    r"""The change of the conserved quantities since the start, divided by $\|\theta\|^2$."""
    moved = jax.tree.map(lambda x, y: jnp.max(jnp.abs(x - y)), conserved(point), start)
    size = sum(jnp.sum(layer * layer) for layer in point.layers)
    return jnp.max(jnp.stack(jax.tree.leaves(moved))) / jnp.where(size == 0, 1, size)


def is_sound(front: Front, start: Any) -> Bool[Array, ""]:
    """Whether the point still has correct digits, which a flow at rest loses in the end."""
    finite = jnp.isfinite(energy(front.point)) & jnp.isfinite(front.elapsed)
    return finite & (drift(start, front.point) <= LARGEST_SHIFT)


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
    """A sum and its rounding error; `x` is the larger term."""
    total = x + y
    return total, y - (total - x)


Grown = tuple[Any, ...]


def grow_all(
    start: Any,
    grow: Callable[[Front], tuple[Front, Grown]],
    nothing: Grown,
    closeness: Float[Array, ""],
    upper: Callable[[Any], Array],
    max_pieces: int,
) -> tuple[Front, Array, Array, Grown, Array]:
    """All pieces until the blow-up is near.

    **Arguments:** `grow`, the function that makes one; `nothing`, the placeholder for unused
    pieces; `upper`, a bound on the time left.

    **Returns:** the last front, the starts of the pieces (two numbers each), the pieces, and
    whether the blow-up is as close as requested.
    """
    begun = lax.stop_gradient(conserved(start))

    def going_on(front: Front) -> tuple[Front, Grown]:
        after, grown = jax.checkpoint(grow)(front)
        sound = is_sound(after, begun)
        # A piece without progress is not kept.
        after, grown = jax.tree.map(
            lambda x, y: jnp.where(sound, x, y), (after, grown), (front, nothing)
        )
        going = front.going & sound & ~is_near(after, closeness, upper)
        return eqx.tree_at(lambda front: front.going, after, going), grown

    def piece(front: Front, _: None) -> tuple[Front, tuple[Array, Array, Grown]]:
        after, grown = lax.cond(
            eqxi.unvmap_any(front.going), going_on, lambda front: (front, nothing), front
        )
        after, grown = jax.tree.map(
            lambda x, y: jnp.where(front.going, x, y), (after, grown), (front, nothing)
        )
        return after, (front.elapsed, front.lag, grown)

    last, (begin, lag, grown) = lax.scan(piece, Front.of(start), None, length=max_pieces)
    return last, begin, lag, grown, is_near(last, closeness, upper)


@jax.named_call
def pieces_by_program(state: State, closeness: Float[Array, ""], max_pieces: int) -> Pieces:
    """`pieces` by a JAX program, whether or not the native kernel is in use."""
    order, (p, q) = order_of(state.dtype), state.widths
    nothing = (
        jnp.zeros((), state.dtype),
        jnp.zeros((order + 1, 2, state.rank, p), state.dtype),
        jnp.zeros((p, q), state.dtype),
    )
    last, begin, lag, grown, ends = grow_all(state, _grow, nothing, closeness, upper_of, max_pieces)
    length, sides, b = grown
    return Pieces(
        begin=begin,
        lag=lag,
        length=length,
        num=jnp.sum(length > 0),
        ends=ends,
        elapsed=last.elapsed,
        sides=sides,
        b=b,
        strength=state.strength,
        end=last.point,
    )


class Arrival(eqx.Module):
    """The end of a run of pieces that are not stored, and the number of pieces."""

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
    """Follow one state of equal widths until a function of the state and the time is true.

    **Arguments:** `stir` changes the state before each piece, given the number of the piece.
    """

    def piece(carry: tuple[Front, Array]) -> tuple[Front, Array]:
        front, num = carry
        front = eqx.tree_at(lambda front: front.point, front, stir(front.point, num))
        after, _ = _grow(front)
        going = ~arrives(after.point, after.elapsed) & is_sound(after, begun)
        return eqx.tree_at(lambda front: front.going, after, going), num + 1

    begun, start = conserved(state), Front.of(state)
    going = ~arrives(state, start.elapsed)
    start = eqx.tree_at(lambda front: front.going, start, going)
    last, num = lax.while_loop(
        lambda carry: carry[0].going & (carry[1] < max_pieces),
        piece,
        (start, jnp.zeros((), jnp.int32)),
    )
    arrived = arrives(last.point, last.elapsed)
    return Arrival(last.point, last.elapsed + last.lag, arrived, num)
