"""The blow-up time by pieces of Taylor polynomials, of the full state or of the reduced one."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from ..._noise import patterns, stirred
from ..._reduction import pad, reduce, truncation
from ..._state import State
from ...bounds import bracket
from ...flow import CLOSED, follow_pieces, pieces, time_left
from .._gradient import gradient_in_reduction
from .._method import AbstractMethod, Form, Known, Raw, classify, prepare
from .._result import BlowUp
from ._adjoint import near_blowup

# Copies with noise that the condition is measured by.
_PROBES = 2
# Units of rounding that a run of some dozens of pieces, each to rounding, may add up to.
_LEAST_ERROR = 64
# How near to the blow-up its gradient is known; what that leaves out falls behind on the way back.
_NEAR = 0.4


class Taylor(AbstractMethod):
    r"""Taylor polynomials of order 32 (float32: 14), one after another, any rank.

    **Arguments:**

    - `dim`: dimension to which wider states are reduced; `None` is 12 for each component and 12
      more. Narrower states are solved as they are.
    - `max_pieces`: after so many polynomials the sample is `not_converged`.

    Every piece is made to rounding, whatever the tolerance, and leaves two thirds of the time to
    the blow-up; the run ends where the bracket closes. The error is measured by runs of copies to
    which noise in the last bits is added at every piece, and for reduced states by the weight of
    the last state on the last basis vectors.
    """

    dim: int | None = eqx.field(static=True, default=None)
    max_pieces: int = eqx.field(static=True, default=256)

    def __check_init__(self):
        if self.dim is not None and self.dim < 2:
            raise ValueError(f"Argument `dim` must be at least 2, but is {self.dim}.")

    @property
    def label(self) -> str:
        return f"taylor, dim {self.dim or 'by rank'}"

    def check(self, state: Form | State) -> None:
        if self.dim is not None and self.dim < state.rank:
            raise ValueError(
                f"Argument `dim` must be at least the rank {state.rank}, but is {self.dim}."
            )

    def reduced_dim(self, rank: int) -> int:
        return 12 * (rank + 1) if self.dim is None else self.dim

    def solve(self, states: State, rtol: Float[Array, ""], truncated: Bool[Array, ""]) -> BlowUp:
        dim, wide = self.reduced_dim(states.rank), self.truncates(states)

        def one(state: State) -> tuple[Raw, Known]:
            # Narrow states are followed in few sizes, which share programs.
            state = reduce(state, dim).state if wide else pad(state, dim)
            unit, known = prepare(state, wide)
            return _runs(unit, rtol, truncated | wide, self.max_pieces), known

        raw, known = jax.vmap(one)(states)
        return classify(raw, known, rtol, self.label)

    def gradient(self, state: State, time: Float[Array, ""], rtol: Float[Array, ""]) -> State:
        """The gradient close to the blow-up, pulled back through the polynomials."""
        del rtol
        dim, eps = self.reduced_dim(state.rank), float(jnp.finfo(state.dtype).eps)

        def small_gradient(small: State, time: Array) -> State:
            del time

            def end_of(small: State) -> tuple[State, Array]:
                whole = pad(small, max(dim, *small.widths))
                path = pieces(whole, jnp.asarray(eps**_NEAR, small.dtype), self.max_pieces)
                return path.end, path.ends

            end, pull, ends = jax.vjp(end_of, small, has_aux=True)
            (gradient,) = pull(near_blowup(end))
            return jax.tree.map(lambda x: jnp.where(ends, x, jnp.nan), gradient)

        return gradient_in_reduction(state, time, dim, small_gradient)


def _runs(state: State, rtol: Float[Array, ""], truncated: Bool[Array, ""], max_pieces: int) -> Raw:
    """One state of unit scale, and copies of it with noise, to where the bracket has closed."""
    probes = [patterns(state.layers, probe) for probe in range(1, _PROBES + 1)]
    none = jax.tree.map(jnp.zeros_like, probes[0])
    copies = jax.tree.map(lambda *leaves: jnp.stack(leaves), none, *probes)

    def closed(current: State, elapsed: Array) -> Bool[Array, ""]:
        lower, upper = bracket(current)
        return upper - lower <= CLOSED * rtol * (elapsed + lower)

    def run(pattern: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        def stir(current: State, number: Array) -> State:
            del number
            a, b, c = stirred(current.layers, pattern)
            return State(a, b, c, current.strength)

        end = follow_pieces(state, closed, max_pieces, stir)
        lower, upper = bracket(end.state)
        left = jnp.clip(time_left(end.state), lower, upper)
        lost = jnp.where(truncated, truncation(end.state), 0)
        time = jnp.where(end.arrived, end.elapsed + left, jnp.inf)
        return time, end.elapsed + lower, end.elapsed + upper, lost, end.arrived, end.num

    times, lower, upper, lost, arrived, num = lax.map(run, copies)
    time = times[0]
    error = _LEAST_ERROR * jnp.finfo(state.dtype).eps * time + lost[0] * time
    if state.rank > 1:
        # Components that do not dominate may still grow, and `time_left` leaves them out.
        error = error + (upper[0] - lower[0])
    return Raw(
        time=time,
        lower=lower[0],
        upper=upper[0],
        error=error,
        spread=jnp.max(jnp.abs(times - time)),
        settled=arrived[0] & (lost[0] <= rtol),
        limited=jnp.any(arrived),
        num_steps=jnp.sum(num).astype(jnp.int32),
    )
