"""`trajectory`: a state brought to the form in which it is followed, its pieces, its blow-up."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float

from .._reduction import Reduction, pad, reduce
from .._state import State
from ..blowup import BlowUp, Taylor, blowup_time, is_on_cpu, resolve_rtol, tolerance_floor
from ..bounds import bracket
from ..flow import Pieces, pieces, time_left
from ._path import Trajectory

# Directions kept: so many for each component of the state, and so many more.
_DIRECTIONS = 12
# Wider states than the directions are padded to this width or to a power of two beyond it, so that
# they share programs.
_LEAST_WIDTH = 256


def trajectory(
    state: State,
    *,
    closeness: float | Float[Array, ""] | None = None,
    dim: int | None = None,
    max_pieces: int = 128,
    rtol: float | Float[Array, ""] | None = None,
) -> Trajectory:
    r"""The effective dynamics from one state, as a function of time.

    $$a_i' = \lambda_i b c_i, \quad b' = \textstyle\sum_i \lambda_i a_i c_i^T, \quad
      c_i' = \lambda_i b^T a_i$$

        path = trajectory(state)
        path(0.9 * path.blowup.time)          # the State there
        path.times_of(energy=1e3), path.onset()

    **Arguments:**

    - `state`: one `State` of any rank; batch by `jax.vmap`.
    - `closeness`: where to stop, in units of $(T^* - t)/T^*$: the trajectory ends there or up to a
      third closer. By default 1e-8 for float64 and 1e-4 for float32.
    - `dim`: directions that wide states are reduced to on either side, by default 12 for each
      component and 12 more; from the larger width on nothing is reduced.
    - `max_pieces`: where flows end that come to rest or blow up late. A piece takes about a third
      off the time left to a blow-up, and adds about a third to the time of a flow at rest.
    - `rtol`: relative accuracy of the states that is taken for granted where signs are counted and
      truncation is judged, by default 1e-12 for float64 and 1e-5 for float32. Pieces are made to
      rounding whatever it is.

    **Returns:** a `Trajectory`. Times are in units of the effective model.

    **Raises:** `ValueError` for a batch of states and for arguments out of range.

    Close to $T^*$ an error in time grows like $T^*/(T^*-t)$ in the states. The flow is followed in
    reduced coordinates (see `reduce`), which are exact while nothing is truncated, by Taylor
    polynomials of order 32 (float32: 14).

    **Derivatives:** of whatever a trajectory returns, by the state and by the times, in forward and
    reverse mode, of any order. They are those of the reduced flow, as exact as it is; NaN for wide
    states whose reduction ends early (as aligned ones), since a change of the state needs
    directions that it lacks.
    """
    if state.batch_shape:
        raise ValueError(
            f"`trajectory` takes one state, but got a batch of shape {state.batch_shape}: use "
            "`jax.vmap`."
        )
    closeness = resolve_closeness(closeness, state.dtype)
    dim = _dim_of(dim, state)
    if not isinstance(max_pieces, int | np.integer) or max_pieces < 1:
        raise ValueError(
            f"Argument `max_pieces` must be a whole number from 1 on, but is {max_pieces}."
        )
    rtol = resolve_trajectory_rtol(rtol, state.dtype)
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
    parts = _pieces(small, jnp.asarray(closeness, state.dtype), int(max_pieces))
    finest = jnp.maximum(tolerance_floor(state.dtype), 0.1 * rtol).astype(state.dtype)
    # Integration stops short of that at higher rank.
    method = None if state.rank == 1 else Taylor(dim=dim)
    blowup = blowup_time(state, method, rtol=finest)
    left = _left_at_end(parts, blowup, scale)
    return Trajectory(blowup, state, parts, left, reduction, scale, rtol)


def _padded(state: State, dim: int) -> State:
    """`pad` by NumPy."""
    p, q = state.widths
    a, b, c = (np.asarray(x) for x in state.layers)
    a = np.pad(a, ((0, 0), (0, dim - p)))
    b = np.pad(b, ((0, dim - p), (0, dim - q)))
    return State(a, b, np.pad(c, ((0, 0), (0, dim - q))), state.strength)


def _dim_of(dim: int | None, state: State) -> int:
    if dim is None:
        return _DIRECTIONS * (state.rank + 1)
    if not isinstance(dim, int | np.integer) or dim < state.rank:
        raise ValueError(
            f"Argument `dim` must be a whole number, at least the rank {state.rank}, but is {dim}."
        )
    return min(int(dim), max(state.widths))


def resolve_closeness(closeness: float | Array | None, dtype: jnp.dtype) -> float | Array:
    """Where a trajectory ends; `ValueError` for what the dtype cannot tell from the blow-up."""
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


def _at_unit_scale(state: State) -> tuple[State, Array]:
    """The state over a power of two; one of ones in the place of what is not finite."""
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(state)]))
    unit, scale = state.unit_scale()
    return jax.tree.map(lambda leaf: jnp.where(finite, leaf, 1), unit), scale


@eqx.filter_jit
def _reduced(state: State, dim: int) -> tuple[State, Array, Reduction]:
    unit, scale = _at_unit_scale(state)
    reduction = reduce(unit, dim)
    sizes = [jnp.sum(jnp.any(x != 0, axis=1)) for x in (reduction.left, reduction.right)]
    # Where a basis holds all of its layer the other has no more to explore.
    whole = [min(dim, width) for width in state.widths]
    ended = (sizes[0] < whole[0]) & (sizes[1] < whole[1])
    reduction = jax.tree.map(lambda leaf: _without_derivatives(leaf, ended), reduction)
    return reduction.state, scale, reduction


@jax.custom_jvp
def _without_derivatives(leaf: Array, ended: Bool[Array, ""]) -> Array:
    """A value as it is, with NaN for its derivatives where the bases have ended.

    They are exact for that state, but a change of the state may need directions that they lack.
    """
    del ended
    return leaf


@_without_derivatives.defjvp
def _(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    leaf, ended = primals
    return _without_derivatives(leaf, ended), tangents[0] * jnp.where(ended, jnp.nan, 1)


@eqx.filter_jit
def _unreduced(state: State) -> tuple[State, Array]:
    return _at_unit_scale(state)


@eqx.filter_jit
def _pieces(state: State, closeness: Array, max_pieces: int) -> Pieces:
    return pieces(state, closeness, max_pieces)


@eqx.filter_jit
def _left_at_end(parts: Pieces, blowup: BlowUp, scale: Array) -> Float[Array, ""]:
    """The time left after the last piece, at unit scale."""
    total = blowup.time * scale
    difference = total - parts.elapsed
    lower, upper = bracket(parts.end)
    inside = jnp.clip(difference, lower, upper)
    # The closed form is exact to two orders more than the bracket is wide, if no other component
    # is left out.
    uncertain = upper - lower
    if parts.end.rank == 1:
        uncertain = uncertain * (inside / total) ** 2
    close = uncertain < 4 * jnp.finfo(lower.dtype).eps * total
    near = jnp.where(close, jnp.clip(time_left(parts.end), lower, upper), inside)
    return jnp.where(parts.ends, near, difference)
