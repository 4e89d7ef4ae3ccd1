r"""States along the way to the blow-up, kept small and lifted to full width on demand.

The reduced flow is followed by diffrax; what full width needs is stored once: the initial state and
the bases. Quantities of the full states that the final stage asks for follow without forming $b$.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._energy import energy
from .._reduction import Reduction
from .._state import State
from ..blowup import BlowUp
from ..bounds import energy_growth, theorem_1_upper
from ..indicators import (
    CONDITIONS,
    Angles,
    Condition,
    Products,
    angles_of,
    ratios_of,
    resolve_tolerance,
)
from ._status import PointStatus


class Trajectory(eqx.Module):
    r"""States of one flow, `num` of them, in the order asked for.

    - `times`: shape `(num,)`, from the initial state on, in units of the effective model.
    - `time_left`: $T^* - t$, shape `(num,)`, without cancellation close to $T^*$.
    - `blow_up`: the `BlowUp` of the initial state.
    - `status`: a `PointStatus` for each point.
    - `drift`: how far the conserved matrices and balances have moved from their initial values,
      over $\|\theta(t)\|^2$, shape `(num,)`.
    - `truncation`: bound on the relative size of what the reduction leaves out of $a$ and $c$,
      shape `(num,)`; zero where nothing is left out.
    - `reduced`: the states in the coordinates of `reduction`, batched; `reduction` is `None` for
      states that were followed in full.
    - `initial`: the full state at time 0; `scale`, a power of two that brings it to order 1.
    - `tolerance`: the relative accuracy asked for.
    """

    times: Float[Array, "*batch num"]
    time_left: Float[Array, "*batch num"]
    status: Int[Array, "*batch num"]
    drift: Float[Array, "*batch num"]
    truncation: Float[Array, "*batch num"]
    blow_up: BlowUp
    reduced: State
    reduction: Reduction | None
    initial: State
    scale: Float[Array, "*batch"]
    tolerance: Float[Array, "*batch"]

    def __len__(self) -> int:
        return self.times.shape[-1]

    def state(self, index: int) -> State:
        """The full state at one point of an unbatched trajectory; negative indices from the end."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"There is no point {index} in a trajectory of {len(self)}.")
        return self.lift(jax.tree.map(lambda x: x[index], self.reduced))

    def states(self) -> State:
        """All full states at once, batched along the first axis: `num` copies of $b$."""
        return jax.vmap(self.lift)(self.reduced)

    def lift(self, reduced: State) -> State:
        """The full state that a state on the reduced flow stands for."""
        return reduced if self.reduction is None else self.reduction.lift(reduced, self.initial)

    def map(self, function: Callable[[Products], Any]) -> Any:
        """A function of the `Products` of every state, stacked, without forming any $b$.

        The products are those of the states over `scale`.
        """
        return _map(self, function)

    @property
    def energy(self) -> Float[Array, " num"]:
        """The energy at every point."""
        return jax.vmap(energy)(self.reduced)

    def condition(
        self, number: int, *, tolerance: float | Float[Array, ""] | None = None
    ) -> Condition:
        """Condition 1, 2 or 3 of the final stage at every point.

        **Arguments:** `tolerance`, the accuracy of the states that decides which inequalities are
        `undecided`, by default that of the trajectory. **Raises:** `ValueError` for other numbers.

        The second condition forms the Gram matrices of $b$, point after point.
        """
        if number not in CONDITIONS:
            raise ValueError(f"Argument `number` must be 1, 2 or 3, but is {number}.")
        accuracy = (
            self.tolerance
            if tolerance is None
            else resolve_tolerance(tolerance, self.initial.dtype)
        )
        # What the reduction leaves out is not known either.
        return _condition(self, jnp.maximum(accuracy, self.truncation), number)

    def angles(self) -> Angles:
        """The angles of Definition 2 at every point, as cosines."""
        return self.map(angles_of)

    def ratios(self) -> Float[Array, "num 2 rank"]:
        """The ratios of eq. (4.5) at every point."""
        return self.map(ratios_of)

    def growth(self) -> Float[Array, " num"]:
        r"""The constant $C$ of Theorem 2 from every point on, for rank 1.

        The largest $E'/(3E^{4/3})$ at that point and all later ones saved; NaN where $E \le 0$.
        """
        order = jnp.argsort(self.times)
        values = jax.vmap(energy_growth)(self._units())[order]
        # Points that were not reached come last, and must not stand for the others.
        back = jnp.argsort(order)
        largest = jax.lax.cummax(jnp.where(jnp.isnan(values), -jnp.inf, values), reverse=True)
        return jnp.where(values[back] == values[back], largest[back], jnp.nan)

    def theorem_bounds(self) -> tuple[Float[Array, " num"], Float[Array, " num"]]:
        r"""Bounds of Theorems 2 and 1 on $T^*$ from every point: $t + E^{-1/3}/C$, $t + E^{-1/3}$.

        For rank 1; eqs. (4.22) and (3.15). NaN and infinite where $E \le 0$.
        """
        rate = jnp.abs(self.initial.strength[0]) * self.scale
        left = jax.vmap(theorem_1_upper)(self._units()) / rate
        return self.times + left / self.growth(), self.times + left

    def _units(self) -> State:
        """The states at unit scale and unit strength, rank 1: squares of these do not overflow."""
        return jax.vmap(lambda s: _unit_strength(s.scale(1 / self.scale)))(self.reduced)

    def __str__(self) -> str:
        if self.times.ndim > 1:
            return f"Trajectory of {self.times.shape[-1]} points, batch {self.times.shape[:-1]}"
        reached = int(jnp.sum(self.status <= PointStatus.TRUNCATED))
        time = float(self.blow_up.time)
        if time < float("inf"):
            nearest = float(jnp.nanmin(self.time_left)) / time
            course = f"up to {nearest:.3g} T* from the blow-up at T* = {time:.10g}"
        else:
            course = f"up to t = {float(jnp.nanmax(self.times)):.10g}, no blow-up"
        drift = float(jnp.nanmax(self.drift))
        return f"Trajectory of {len(self)} points, {reached} reached, {course}; drift {drift:.1g}"


def _unit_strength(state: State) -> State:
    r"""The same energy over $|\lambda|$, its sign with $c$."""
    sign = jnp.sign(state.strength)[:, None]
    return State(state.a, state.b, sign * state.c, jnp.ones_like(state.strength))


class _Frame(eqx.Module):
    r"""What all states of a trajectory share: the reduction, and products of the initial $b$.

    With $b = b_0 + P \Delta Q^T$, $bb^T = b_0b_0^T + (b_0Q)\Delta^TP^T + P\Delta(b_0Q)^T +
    P\Delta\Delta^TP^T$. (From the conserved $A$, as $A + \sum_i a_ia_i^T$, it would be lost to
    rounding where $b$ is far smaller than $a$.)
    """

    reduction: Reduction | None
    left: Float[Array, "p p"]
    right: Float[Array, "q q"]
    onto_right: Float[Array, "p dim"]
    onto_left: Float[Array, "q dim"]

    @classmethod
    def of(cls, reduction: Reduction | None, initial: State) -> "_Frame":
        b = initial.b
        if reduction is None:
            nothing = jnp.zeros((0, 0), b.dtype)
            return cls(None, nothing, nothing, nothing, nothing)
        return cls(reduction, b @ b.T, b.T @ b, b @ reduction.right.T, b.T @ reduction.left.T)

    def products(self, reduced: State) -> Products:
        if self.reduction is None:
            return Products.of(reduced)
        strength = reduced.strength[:, None]
        basis_left, basis_right = self.reduction.left, self.reduction.right
        onto_a = (reduced.c @ reduced.b.T) @ basis_left
        onto_c = (reduced.a @ reduced.b) @ basis_right
        change = reduced.b - self.reduction.state.b
        rows, left = _gram(self.left, self.onto_right, change, basis_left)
        columns, right = _gram(self.right, self.onto_left, change.T, basis_right)
        return Products(
            reduced.a @ basis_left,
            reduced.c @ basis_right,
            reduced.strength,
            strength * onto_a,
            strength * onto_c,
            rows,
            columns,
            left,
            right,
        )


def _gram(start: Array, onto: Array, change: Array, basis: Array) -> tuple[Array, Array]:
    r"""Row norms and Gram matrix of the rows of $b_0 + P\Delta Q^T$."""
    moved = onto @ change.T
    square = change @ change.T
    crossed = moved @ basis
    gram = start + crossed + crossed.T + basis.T @ square @ basis
    # Apart from the matrix, so that it need not be formed for them.
    squares = jnp.diagonal(start) + jnp.sum((2 * moved + basis.T @ square) * basis.T, axis=1)
    return jnp.sqrt(jnp.maximum(squares, 0)), gram


def products_along(reduction: Reduction | None, initial: State) -> Callable[[State], Products]:
    """The map from reduced states to the products of their full states."""
    return _Frame.of(reduction, initial).products


@eqx.filter_jit
def _map(
    trajectory: Trajectory, function: Callable[..., Any], *further: Float[Array, " num"]
) -> Any:
    # At unit scale, where squares do not overflow: the indicators do not depend on it.
    factor = 1 / trajectory.scale
    reduction = trajectory.reduction
    if reduction is not None:
        reduction = eqx.tree_at(lambda r: r.state, reduction, reduction.state.scale(factor))
    products = products_along(reduction, trajectory.initial.scale(factor))
    return jax.lax.map(
        lambda point: function(products(point[0].scale(factor)), *point[1:]),
        (trajectory.reduced, *further),
    )


@eqx.filter_jit
def _condition(trajectory: Trajectory, tolerance: Array, number: int) -> Condition:
    return _map(trajectory, CONDITIONS[number], tolerance)
