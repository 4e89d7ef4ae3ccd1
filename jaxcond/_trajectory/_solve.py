"""`trajectory`: reduction of a point, its pieces, and its blow-up time."""

from typing import overload

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from .._chain import Chain
from .._reduction import Reduction, ends_early, pad, reduce, without_derivatives
from .._state import State
from ..blowup import (
    AbstractMethod,
    BlowUp,
    Taylor,
    blowup_time,
    is_on_cpu,
    resolve_rtol,
    time_left_of_chain,
    tolerance_floor,
)
from ..bounds import bracket
from ..flow import ChainPieces, Pieces, chain_pieces, pieces, time_left
from ._path import Trajectory

# Directions kept: the first number for each component of the state, plus the second.
_DIRECTIONS = 12
# States wider than the kept directions are padded to this width or to a power of two above it, so
# that they share programs.
_LEAST_WIDTH = 256


@overload
def trajectory(
    point: State,
    *,
    closeness: float | Float[Array, ""] | None = None,
    dim: int | None = None,
    max_pieces: int | None = None,
    rtol: float | Float[Array, ""] | None = None,
) -> Trajectory[State]: ...
@overload
def trajectory(
    point: Chain,
    *,
    closeness: float | Float[Array, ""] | None = None,
    dim: int | None = None,
    max_pieces: int | None = None,
    rtol: float | Float[Array, ""] | None = None,
) -> Trajectory[Chain]: ...
def trajectory(
    point: State | Chain,
    *,
    closeness: float | Float[Array, ""] | None = None,
    dim: int | None = None,
    max_pieces: int | None = None,
    rtol: float | Float[Array, ""] | None = None,
) -> Trajectory:
    r"""The effective dynamics from one state or chain, as a function of time.

    $$a_i' = \lambda_i b c_i, \quad b' = \textstyle\sum_i \lambda_i a_i c_i^T, \quad
      c_i' = \lambda_i b^T a_i; \qquad
      W_l' = W_{l+1}^T \cdots W_L^T\, V\, W_1^T \cdots W_{l-1}^T$$

        path = trajectory(state)
        path(0.9 * path.blowup.time) # the State at that time
        path.times_of(energy=1e3), path.onset()

    **Arguments:**

    - `point`: one `State` of any rank, or one `Chain` of any depth; batch by `jax.vmap`.
    - `closeness`: the value of $(T^* - t)/T^*$ at which to stop; the trajectory ends there or up to
      a third closer. By default 1e-8 for float64 and 1e-4 for float32.
    - `dim`: directions that wide states are reduced to on either side, by default 12 for each
      component plus 12. With `dim` at the larger width or above, nothing is reduced. Chains are
      followed at full width.
    - `max_pieces`: the number of pieces at which flows end that come to rest or blow up late, by
      default 128 for states and 256 for chains. A piece takes about a third off the time left to a
      blow-up (deep chains: less), and adds about a third to the time of a flow at rest.
    - `rtol`: relative accuracy of the states, which decides which signs are undecided and whether
      truncation matters, by default 1e-12 for float64 and 1e-5 for float32. The pieces are accurate
      to rounding in any case.

    **Returns:** a `Trajectory`. Times are in units of the effective model.

    **Raises:** `ValueError` for a batch, for arguments out of range, and for `dim` with a chain.

    Close to $T^*$ an error in time grows like $T^*/(T^*-t)$ in the states. States are followed in
    reduced coordinates (see `reduce`), which are exact while nothing is truncated, by Taylor
    polynomials of order 32 (float32: 14).

    **Derivatives:** all values have derivatives of any order with respect to the state and the
    times, in forward and reverse mode. They are those of the reduced flow, and as accurate. They
    are NaN for wide states whose reduction ends early, such as aligned ones, since a perturbed
    state needs directions that the reduction lacks.
    """
    if point.batch_shape:
        raise ValueError(
            f"`trajectory` takes one {type(point).__name__.lower()}, but got a batch of shape "
            f"{point.batch_shape}: use `jax.vmap`."
        )
    closeness = resolve_closeness(closeness, point.dtype)
    if max_pieces is None:
        max_pieces = 128 if isinstance(point, State) else 256
    if not isinstance(max_pieces, int | np.integer) or max_pieces < 1:
        raise ValueError(
            f"Argument `max_pieces` must be a whole number from 1 on, but is {max_pieces}."
        )
    rtol = resolve_trajectory_rtol(rtol, point.dtype)
    near = jnp.asarray(closeness, point.dtype)
    if isinstance(point, State):
        return _of_state(point, near, _dim_of(dim, point), int(max_pieces), rtol)
    if dim is not None:
        raise ValueError(f"Argument `dim` is for states, but got a chain of {point.depth} layers.")
    return _of_chain(point, near, int(max_pieces), rtol)


def _of_state(
    state: State, closeness: Array, dim: int, max_pieces: int, rtol: Array
) -> Trajectory[State]:
    width = max(state.widths)
    # NumPy needs no program for a new width.
    on_host = not any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(state))
    on_host = on_host and is_on_cpu(state)
    if width > dim:
        whole = _padded(state, _padded_width(width)) if on_host else state
        small, scale, reduction = _reduced(whole, dim)
        p, q = state.widths
        if on_host:
            left, right = np.asarray(reduction.left)[:, :p], np.asarray(reduction.right)[:, :q]
            reduction = Reduction(reduction.state, *jax.device_put((left, right)))
    else:
        small, scale = _unreduced(_padded(state, dim) if on_host else pad(state, dim))
        reduction = None
    parts = _pieces(small, closeness, max_pieces)
    finest = jnp.maximum(tolerance_floor(state.dtype), 0.1 * rtol).astype(state.dtype)
    blowup = blowup_time(state, method_of(state, dim), rtol=finest)
    left = _left_at_end(parts, blowup, scale)
    return Trajectory(
        blowup=blowup,
        initial=state,
        pieces=parts,
        left=left,
        reduction=reduction,
        scale=scale,
        rtol=rtol,
    )


def _of_chain(chain: Chain, closeness: Array, max_pieces: int, rtol: Array) -> Trajectory[Chain]:
    finite = _is_finite(chain)
    followed = jax.tree.map(lambda leaf: jnp.where(finite, leaf, 1), chain)
    parts = _chain_pieces(followed, closeness, max_pieces)
    # Integration seldom reaches a finer tolerance.
    least = 1e-3 if jnp.finfo(chain.dtype).bits < 64 else 1e-11
    rtol_of_time = jnp.maximum(rtol, least).astype(chain.dtype)
    blowup = blowup_time(lax.stop_gradient(chain), rtol=rtol_of_time)
    left = _left_of_chain(parts, blowup)
    # The lengths of the pieces are constants, so the derivative of the time is that of the time
    # left at the end.
    known = jnp.where(parts.ends, left, 0)
    change = without_derivatives(known - lax.stop_gradient(known), ~parts.ends)
    blowup = eqx.tree_at(lambda b: b.time, blowup, blowup.time + change)
    return Trajectory(
        blowup=blowup,
        initial=chain,
        pieces=parts,
        left=left,
        reduction=None,
        scale=jnp.ones((), chain.dtype),
        rtol=rtol,
    )


def _padded(state: State, dim: int) -> State:
    """`pad` by NumPy."""
    p, q = state.widths
    a, b, c = (np.asarray(x) for x in state.layers)
    a = np.pad(a, ((0, 0), (0, dim - p)))
    b = np.pad(b, ((0, dim - p), (0, dim - q)))
    return State(a, b, np.pad(c, ((0, 0), (0, dim - q))), state.strength)


def method_of(state: State, dim: int | None = None) -> AbstractMethod | None:
    """The method by which the trajectory of a state finds its blow-up time; `None` is the default.

    A caller that needs the time before the trajectory can then share the program, which takes 13 s
    to compile at rank 3. `dim` is the resolved argument of `trajectory`.
    """
    if state.rank == 1:
        return None
    # At higher rank, integration does not reach the accuracy of trajectories.
    return Taylor(dim=_dim_of(None, state) if dim is None else dim)


def _dim_of(dim: int | None, state: State) -> int:
    if dim is None:
        return _DIRECTIONS * (state.rank + 1)
    if not isinstance(dim, int | np.integer) or dim < state.rank:
        raise ValueError(
            f"Argument `dim` must be a whole number, at least the rank {state.rank}, but is {dim}."
        )
    return min(int(dim), max(state.widths))


def resolve_closeness(closeness: float | Array | None, dtype: jnp.dtype) -> float | Array:
    """The closeness or its default; `ValueError` if the dtype cannot resolve it."""
    eps = float(jnp.finfo(dtype).eps)
    if closeness is None:
        return 1e-8 if eps < 1e-10 else 1e-4
    if not isinstance(closeness, Tracer) and not 64 * eps <= float(closeness) < 1:
        raise ValueError(
            f"Argument `closeness` must lie between {64 * eps:.2g} and 1 for states in {dtype}, "
            f"but is {closeness}."
        )
    return closeness


def resolve_trajectory_rtol(rtol: float | Array | None, dtype: jnp.dtype) -> Float[Array, ""]:
    """The tolerance as an array; `None` is 1e-12 in float64 and 1e-5 in float32."""
    if rtol is None and jnp.finfo(dtype).bits >= 64:
        rtol = 1e-12
    return resolve_rtol(rtol, dtype)


def _padded_width(width: int) -> int:
    return max(_LEAST_WIDTH, 1 << (width - 1).bit_length())


def _is_finite(point: State | Chain) -> Bool[Array, ""]:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(point)]))


def _at_unit_scale(state: State) -> tuple[State, Array]:
    """The state divided by a power of two; a state of ones if it is not finite."""
    finite = _is_finite(state)
    unit, scale = state.unit_scale()
    return jax.tree.map(lambda leaf: jnp.where(finite, leaf, 1), unit), scale


@eqx.filter_jit
def _reduced(state: State, dim: int) -> tuple[State, Array, Reduction]:
    unit, scale = _at_unit_scale(state)
    reduction = reduce(unit, dim)
    ended = ends_early(reduction, state.widths)
    reduction = jax.tree.map(lambda leaf: without_derivatives(leaf, ended), reduction)
    return reduction.state, scale, reduction


@eqx.filter_jit
def _unreduced(state: State) -> tuple[State, Array]:
    return _at_unit_scale(state)


@eqx.filter_jit
def _pieces(state: State, closeness: Array, max_pieces: int) -> Pieces:
    return pieces(state, closeness, max_pieces)


@eqx.filter_jit
def _chain_pieces(chain: Chain, closeness: Array, max_pieces: int) -> ChainPieces:
    return chain_pieces(chain, closeness, max_pieces)


@eqx.filter_jit
def _left_of_chain(parts: ChainPieces, blowup: BlowUp) -> Float[Array, ""]:
    """The time left after the last piece."""
    difference = blowup.time - parts.elapsed
    if parts.end.depth < 3:
        return difference
    lower, upper = bracket(parts.end)
    closed, missed = time_left_of_chain(parts.end)
    near = missed < 4 * jnp.finfo(lower.dtype).eps * blowup.time
    left = jnp.clip(jnp.where(near, closed, difference), lower, upper)
    return jnp.where(parts.ends, left, lax.stop_gradient(difference))


@eqx.filter_jit
def _left_at_end(parts: Pieces, blowup: BlowUp, scale: Array) -> Float[Array, ""]:
    """The time left after the last piece, at unit scale."""
    total = blowup.time * scale
    difference = total - parts.elapsed
    lower, upper = bracket(parts.end)
    inside = jnp.clip(difference, lower, upper)
    # The closed form is accurate to two orders beyond the width of the bracket, unless it leaves
    # out another component.
    uncertain = upper - lower
    if parts.end.rank == 1:
        uncertain = uncertain * (inside / total) ** 2
    close = uncertain < 4 * jnp.finfo(lower.dtype).eps * total
    near = jnp.where(close, jnp.clip(time_left(parts.end), lower, upper), inside)
    return jnp.where(parts.ends, near, difference)
