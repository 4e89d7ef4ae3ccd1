"""The blow-up time by integration, of the full state or of the reduced one."""

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from ..._reduction import pad, reduce, truncation
from ..._state import State
from ...flow import run_copies
from .._gradient import gradient_in_reduction
from .._method import AbstractMethod, Form, Integrator, Known, Raw, classify, prepare
from .._result import BlowUp
from ._adjoint import adjoint_gradient


class _Integration(AbstractMethod):
    """Integration in desingularised time by a diffrax solver, any rank.

    The error is measured by a second, looser run and by one of a copy with noise in its last bits,
    and for reduced states by the weight of the last state on the last basis vectors.
    """

    solver: diffrax.AbstractSolver = eqx.field(default_factory=diffrax.Dopri8)
    max_steps: int = eqx.field(static=True, default=4096)

    @property
    def integrator(self) -> Integrator:
        return Integrator(self.solver, self.max_steps)

    def solve(self, states: State, rtol: Float[Array, ""], truncated: Bool[Array, ""]) -> BlowUp:
        dim = self.reduced_dim(states.rank)
        wide = self.truncates(states)

        def one(state: State) -> tuple[Raw, Known]:
            if dim is not None:
                state = reduce(state, dim).state if wide else pad(state, max(state.widths))
            unit, known = prepare(state, wide)
            runs = run_copies(unit, self.solver, rtol, self.max_steps)
            lost = jnp.where(truncated | wide, truncation(runs.last) * runs.time, 0)
            raw = Raw(
                time=runs.time,
                lower=runs.lower,
                upper=runs.upper,
                error=runs.error + lost,
                spread=runs.spread,
                settled=runs.reached & (lost <= rtol * runs.time),
                limited=runs.some_reach,
                num_steps=runs.num_steps,
            )
            return raw, known

        raw, known = jax.vmap(one)(states)
        return classify(raw, known, rtol, self.label)

    def gradient(self, state: State, time: Float[Array, ""], rtol: Float[Array, ""]) -> State:
        """By the adjoint equation, in the coordinates of the reduced state."""
        dim = self.reduced_dim(state.rank) or 12 * (state.rank + 1)

        def small_gradient(small: State, time: Array) -> State:
            return adjoint_gradient(small, time, self.solver, self.max_steps, rtol)

        return gradient_in_reduction(state, time, dim, small_gradient)


class Direct(_Integration):
    """Integration of all unknowns in desingularised time, any rank and any depth.

    **Arguments:**

    - `solver`: any adaptive diffrax solver; `Dopri8` is the fastest at tight tolerances, the
      implicit `Kvaerno` ones solve linear systems in all unknowns, and of the implicit-explicit
      `KenCarp` ones the explicit side is used, as the flow is not stiff in this time.
    - `max_steps`: after so many steps the sample is `not_converged`.

    The simplest method, and the slowest by far on wide states: it makes about 1,000 products with
    $b$ where the reduction makes a dozen. Its error is measured by two more runs: a
    looser one, and one of a copy with noise in its last bits.
    """

    @property
    def label(self) -> str:
        return f"direct, {type(self.solver).__name__}"

    @property
    def takes_chains(self) -> bool:
        return True

    def check(self, state: Form | State) -> None:
        del state

    def reduced_dim(self, rank: int) -> int | None:
        del rank
        return None


class Reduced(_Integration):
    """Integration in Krylov coordinates, any rank.

    **Arguments:**

    - `dim`: dimension to which wider states are reduced; `None` is 12 for each component and 12
      more. Narrower states are solved as they are.
    - `solver`, `max_steps`: as for `Direct`.

    The error is measured as by `Direct`, and by the weight of the last state on the last basis
    vectors.
    """

    dim: int | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self):
        if self.dim is not None and self.dim < 2:
            raise ValueError(f"Argument `dim` must be at least 2, but is {self.dim}.")

    @property
    def label(self) -> str:
        return f"reduced, dim {self.dim or 'by rank'}, {type(self.solver).__name__}"

    def check(self, state: Form | State) -> None:
        if self.dim is not None and self.dim < state.rank:
            raise ValueError(
                f"Argument `dim` must be at least the rank {state.rank}, but is {self.dim}."
            )

    def reduced_dim(self, rank: int) -> int:
        return 12 * (rank + 1) if self.dim is None else self.dim
