"""The blow-up time by integration of the full state."""

import diffrax
import equinox as eqx
import jax
from jaxtyping import Array, Float

from .._state import State
from ._integrate import integrate
from ._method import AbstractMethod, Raw


class Direct(AbstractMethod):
    """Integration of all unknowns in desingularised time, any rank.

    **Arguments:**

    - `solver`: any adaptive diffrax solver; `Dopri8` is the fastest at tight tolerances, the
      implicit `Kvaerno` ones solve linear systems in all unknowns, and of the implicit-explicit
      `KenCarp` ones the explicit side is used, as the flow is not stiff in this time.
    - `max_steps`: after so many steps the sample is `not_converged`.

    The simplest method, and the slowest by far on wide states: it makes about 1,000 products with
    $b$ where the reduction makes a dozen. Its error is measured by a second, looser run.
    """

    solver: diffrax.AbstractSolver = eqx.field(default_factory=diffrax.Dopri8)
    max_steps: int = eqx.field(static=True, default=4096)

    @property
    def label(self) -> str:
        return f"direct, {type(self.solver).__name__}"

    def check(self, state: State) -> None:
        del state

    def reduced_dim(self, rank: int) -> int | None:
        del rank
        return None

    def solve(self, states: State, rtol: Float[Array, ""], *, truncated: bool) -> Raw:
        del truncated

        def one(state: State) -> Raw:
            return integrate(state, self.solver, rtol, self.max_steps)[0]

        return jax.vmap(one, in_axes=-1, out_axes=-1)(states)
