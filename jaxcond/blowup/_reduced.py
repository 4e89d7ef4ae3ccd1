"""The blow-up time by integration of the reduced state."""

import diffrax
import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._reduction import truncation
from .._state import State
from ._integrate import integrate
from ._method import AbstractMethod, Raw


class Reduced(AbstractMethod):
    """Integration in Krylov coordinates, any rank.

    **Arguments:**

    - `dim`: dimension to which wider states are reduced; `None` is 12 for each component and 12
      more. Narrower states are solved as they are.
    - `solver`, `max_steps`: as for `Direct`.

    The error is measured by a second, looser run, and by the weight of the last state on the last
    basis vectors.
    """

    dim: int | None = eqx.field(static=True, default=None)
    solver: diffrax.AbstractSolver = eqx.field(default_factory=diffrax.Dopri8)
    max_steps: int = eqx.field(static=True, default=4096)

    def __check_init__(self):
        if self.dim is not None and self.dim < 2:
            raise ValueError(f"Argument `dim` must be at least 2, but is {self.dim}.")

    @property
    def label(self) -> str:
        return f"reduced, dim {self.dim or 'by rank'}, {type(self.solver).__name__}"

    def check(self, state: State) -> None:
        if self.dim is not None and self.dim < state.rank:
            raise ValueError(
                f"Argument `dim` must be at least the rank {state.rank}, but is {self.dim}."
            )

    def reduced_dim(self, rank: int) -> int:
        return 12 * (rank + 1) if self.dim is None else self.dim

    def solve(self, states: State, rtol: Float[Array, ""], *, truncated: bool) -> Raw:
        def one(state: State) -> Raw:
            raw, last = integrate(state, self.solver, rtol, self.max_steps)
            if not truncated:
                return raw
            lost = truncation(last) * raw.time
            converged = raw.converged & (lost <= rtol * raw.time)
            return eqx.tree_at(lambda r: (r.error, r.converged), raw, (raw.error + lost, converged))

        return jax.vmap(one, in_axes=-1, out_axes=-1)(states)
