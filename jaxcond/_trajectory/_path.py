r"""The trajectory: the flow of one state as a function of time.

It holds Taylor polynomials in reduced coordinates, the initial state and the bases. Quantities of
the full states follow from these without forming $b$.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Float, Int

from .._chain import Chain
from .._reduction import Reduction
from .._results import dataset
from .._state import State
from ..blowup import BlowUp, Status
from ..flow import ChainPieces, Pieces
from ..indicators import CONDITIONS, Angles, Condition, Products, resolve_tolerance
from ._frame import Frame
from ._refusals import is_traced, refuse, refuse_energies
from ._values import (
    CONDITIONS_AT,
    Of,
    View,
    angles_at,
    drift_at,
    energy_at,
    full_state,
    growth_at,
    is_known,
    later_growth,
    norms_at,
    ratios_at,
    small_state,
    starting_energies,
    status_at,
    theorem_bounds_at,
    time_left_at,
    time_of_energy,
    truncation_at,
)

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

    from ._onset import Onset

Values = ArrayLike | Sequence[Any]

# Times are evaluated in blocks of this size, so that any number of times shares one program.
_TOGETHER = 32

Point = TypeVar("Point", State, Chain)


class Trajectory(eqx.Module, Generic[Point]):
    r"""The flow of one state or chain as a function of time, from 0 to close to its blow-up.

    `path(t)` is the `State` or `Chain` at a time or at many times of any shape. The value at a time
    does not depend on which other times are asked for. All values can be differentiated with
    respect to the times and to the arguments of `trajectory`, and batched by `jax.vmap`.

    - `blowup`: the `BlowUp` of the initial point.
    - `initial`: the point at time 0, at full width.
    - `end`: the last time that the trajectory covers.
    - `pieces`: the polynomials of the reduced state divided by `scale` (a power of two), or of the
      chain.
    - `reduction`: the reduction at that scale; `None` for states that are followed in full.
    - `rtol`: the relative accuracy of the states, which decides what signs count as undecided.

    Times outside of $[0, \text{end}]$ raise a `ValueError` with the reason. Under `jax.vmap` or
    `jax.jit` the values are NaN instead, and `status` has the reason.
    """

    blowup: BlowUp
    initial: Point
    pieces: Pieces | ChainPieces
    left: Float[Array, "*batch"]
    reduction: Reduction | None
    scale: Float[Array, "*batch"]
    rtol: Float[Array, "*batch"]

    # Values at a time.

    def __call__(self, t: Values) -> Point:
        """The full states, or chains, at times `t`, whose shape becomes their batch shape."""
        times, shape = self._flat(t, "t")
        if isinstance(times, Tracer) or is_traced(self):
            view = View.of(self)
            return _shaped(lax.map(lambda time: full_state(view, time), times), shape)
        states = [_one_full_state(self, time) for time in times]
        return _shaped(jax.tree.map(lambda *x: np.stack(x), *states), shape)

    def reduced(self, t: Values) -> State:
        """The states at times `t` in the coordinates of `reduction`."""
        self._require_state("reduced")
        states = self._each(small_state, t, narrow=True)
        if self.reduction is not None:
            return states
        p, q = self.initial.widths
        a, b, c = states.a[..., :p], states.b[..., :p, :q], states.c[..., :q]
        return State(a, b, c, states.strength)

    def status(self, t: Values) -> Int[Array, "*shape"]:
        """A `PointStatus` for every time."""
        return self._each(status_at, t, checked=False, narrow=True)

    def energy(self, t: Values) -> Float[Array, "*shape"]:
        """The energy: see `jaxcond.energy`."""
        return self._each(energy_at, t, narrow=True)

    def norms(self, t: Values) -> Float[Array, "*shape layers"]:
        r"""The Frobenius norms of the full layers $a$, $b$, $c$, or of the layers of the chain."""
        return self._each(norms_at, t)

    def time_left(self, t: Values) -> Float[Array, "*shape"]:
        """$T^* - t$, without cancellation close to the blow-up; infinite where there is none."""
        return self._each(time_left_at, t, narrow=True)

    def drift(self, t: Values) -> Float[Array, "*shape"]:
        r"""The change of the conserved matrices and balances, divided by $\|\theta(t)\|^2$."""
        return self._each(drift_at, t, narrow=True)

    def truncation(self, t: Values) -> Float[Array, "*shape"]:
        """Bound on the relative size of what the reduction leaves out of $a$ and $c$, or zero."""
        self._require_state("truncation")
        return self._each(truncation_at, t, narrow=True)

    def condition(
        self,
        number: int,
        t: Values,
        *,
        tolerance: float | Float[Array, ""] | None = None,
    ) -> Condition:
        """Condition 1, 2 or 3 of the final stage (see `final_stage`) at every time.

        **Arguments:** `tolerance`, the accuracy of the states that decides which inequalities are
        `undecided`, by default `rtol`. **Raises:** `ValueError` for other numbers.
        """
        self._require_state("condition")
        if number not in CONDITIONS:
            raise ValueError(f"Argument `number` must be 1, 2 or 3, but is {number}.")
        path = self
        if tolerance is not None:
            accuracy = resolve_tolerance(tolerance, self.initial.dtype)
            path = eqx.tree_at(lambda path: path.rtol, self, accuracy)
        return path._each(CONDITIONS_AT[number], t)

    def angles(self, t: Values) -> Angles:
        """The angles of Definition 2 at every time, as cosines."""
        self._require_state("angles")
        return self._each(angles_at, t)

    def ratios(self, t: Values) -> Float[Array, "*shape 2 rank"]:
        """The ratios of eq. (4.5) at every time: see `ratios`."""
        self._require_state("ratios")
        return self._each(ratios_at, t)

    def map(self, function: Callable[[Products], Any], t: Values) -> Any:
        """A function of the `Products` of the state at every time, without forming any $b$.

        The products are those of the states divided by `scale`. Define the function once, so that
        it is compiled once.
        """
        self._require_state("map")
        return self._each(Of(function), t)

    def growth(self, t: Values) -> Float[Array, "*shape"]:
        r"""The constant $C$ of Theorem 2 from a time on, for rank 1.

        The largest $E'/(3E^{4/3})$ at that time and at eight later points of every piece; NaN where
        $E \le 0$. **Raises:** `ValueError` at higher rank.
        """
        self._require_rank_1("growth")
        return self._each(growth_at, t, later_growth(_narrow(self)), narrow=True)

    def theorem_bounds(self, t: Values) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
        r"""Bounds of Theorems 2 and 1 on $T^*$ from a time: $t + E^{-1/3}/C$ and $t + E^{-1/3}$.

        For rank 1; eqs. (4.22) and (3.15). NaN and infinite where $E \le 0$.
        """
        self._require_rank_1("theorem_bounds")
        return self._each(theorem_bounds_at, t, later_growth(_narrow(self)), narrow=True)

    # Times of events.

    @property
    def end(self) -> Float[Array, "*batch"]:
        """The last time that the trajectory covers."""
        return self.pieces.elapsed / self.scale

    def spread(self, num: int) -> Float[Array, " num"]:
        r"""`num` times from 0 to `end`, spread evenly over the pieces.

        Close to the blow-up they are evenly spaced in $\log(T^* - t)$.
        """
        if not isinstance(num, int | np.integer) or num < 2:
            raise ValueError(f"Argument `num` must be a whole number from 2 on, but is {num}.")
        pieces = self.pieces
        place = jnp.linspace(0, 1, num, dtype=self.scale.dtype) * pieces.num.astype(
            self.scale.dtype
        )
        index = jnp.clip(jnp.floor(place).astype(jnp.int32), 0, pieces.num - 1)
        times = pieces.begin[index] + (place - index) * pieces.length[index]
        return jnp.minimum(times, pieces.elapsed) / self.scale

    def times_of(
        self,
        *,
        energy: Values | None = None,
        fraction: Values | None = None,
    ) -> Float[Array, "*shape"]:
        """Times at which the energy, which never falls, has given values; or given fractions of
        $T^*$.

        **Arguments:** one of `energy` and `fraction`, of any shape.

        **Raises:** `ValueError` for values that are not reached, with the reason; under
        transformations the times are NaN.
        """
        if (energy is None) == (fraction is None):
            raise ValueError("Give one of `energy` and `fraction`.")
        if energy is None:
            values = jnp.asarray(fraction, self.scale.dtype)
            times = values * self.blowup.time
            refuse(self, times, values, "fraction")
            # Without a blow-up, zero times infinity is NaN.
            return jnp.where(
                self._each(is_known, times, checked=False, narrow=True), times, jnp.nan
            )
        values = jnp.asarray(energy, self.scale.dtype)
        times = self._each(
            time_of_energy, values, starting_energies(_narrow(self)), checked=False, narrow=True
        )
        if not isinstance(times, Tracer):
            refuse_energies(self, np.asarray(values), np.asarray(times))
        return times

    def onset(self, conditions: int | tuple[int, ...] = (1, 2, 3)) -> "Onset":
        """When the final stage condition begins to hold: see `Onset`.

        **Arguments:** `conditions`, which of the three (see `final_stage`) have to hold.

        **Raises:** `ValueError` for conditions other than 1, 2, 3.
        """
        from ._onset import onset

        self._require_state("onset")
        return onset(self, conditions)

    def plot(self) -> "Figure":
        """The panel of the trajectory, for rank 1: see `jaxcond.plotting.trajectory_panel`."""
        from ..plotting import trajectory_panel

        self._require_state("plot")
        return trajectory_panel(self)

    def to_xarray(self, num: int = 200) -> "xr.Dataset":
        """Energy, norms of the layers and $T^* - t$ at `num` times as `spread` has them."""
        times = self.spread(num)
        energy, left, norms = self.energy(times), self.time_left(times), self.norms(times)
        return dataset(
            {
                "time": (("time",), times),
                "energy": (("time",), energy),
                "time_left": (("time",), left),
                "norms": (("time", "layer"), norms),
            },
            blowup_time=float(self.blowup.time),
        )

    def __str__(self) -> str:
        if self.scale.ndim:
            return f"Trajectory of a batch of shape {self.scale.shape}"
        if int(self.blowup.status) == Status.INVALID_INPUT:
            return "Trajectory of a state that is not finite"
        time, end = float(self.blowup.time), float(self.end)
        course = f"to t = {end:.10g}"
        if np.isfinite(time):
            near = float(self.left / self.scale) / time
            course += f", {near:.2g} T* before the blow-up at T* = {time:.10g}"
        elif int(self.blowup.status) == Status.NO_BLOW_UP:
            course += ", no blow-up"
        worst = f"drift {float(self.drift(end)):.1g}"
        if self.reduction is not None:
            worst += f", truncation {float(self.truncation(end)):.1g}"
        return f"Trajectory of {int(self.pieces.num)} pieces {course}; {worst}"

    # Evaluation.

    def _require_state(self, name: str) -> None:
        if not isinstance(self.initial, State):
            raise ValueError(
                f"`{name}` is for states: of a chain of three layers take the trajectory of the "
                "`State`."
            )

    def _require_rank_1(self, name: str) -> None:
        self._require_state(name)
        rank = len(self.pieces.end.layers[0])
        if rank != 1:
            raise ValueError(f"`{name}` is of rank 1, but the rank is {rank}.")

    def _flat(self, t: Values, name: str | None) -> tuple[Any, tuple[int, ...]]:
        if self.scale.ndim:
            raise ValueError(
                f"This is a batch of trajectories of shape {self.scale.shape}: use `jax.vmap` on a "
                "function of one."
            )
        if not isinstance(t, Tracer) and not is_traced(self):
            times = np.asarray(t, self.scale.dtype)
            if name is not None:
                refuse(self, times, times, name)
            return times.reshape(-1), times.shape
        times = jnp.asarray(t, self.scale.dtype)
        return times.reshape(-1), times.shape

    def _each(
        self,
        function: Callable[..., Any],
        t: Values,
        *further: Any,
        checked: bool = True,
        narrow: bool = False,
    ) -> Any:
        """A function of a view of the trajectory, a time, and `further`, at every time.

        `narrow` says that the function needs nothing of full width.
        """
        times, shape = self._flat(t, "t" if checked else None)
        path = _narrow(self) if narrow else self
        if isinstance(times, Tracer) or is_traced(self):
            view = View.of(path)
            return _shaped(lax.map(lambda time: function(view, time, *further), times), shape)
        view = View(path, None if narrow else _frame(path))
        blocks = []
        for begin in range(0, max(times.size, 1), _TOGETHER):
            block = times[begin : begin + _TOGETHER]
            filled = np.zeros(_TOGETHER, times.dtype)
            filled[: block.size] = block
            values = jax.device_get(_block(view, jnp.asarray(filled), function, *further))
            blocks.append(jax.tree.map(lambda x, n=block.size: x[:n], values))
        return _shaped(jax.tree.map(lambda *x: np.concatenate(x), *blocks), shape)


def _narrow(path: Trajectory) -> Trajectory:
    """The trajectory without arrays of full width, so that all widths share the programs."""
    small = path.pieces.end
    if isinstance(small, Chain):
        return path
    if path.reduction is None:
        return eqx.tree_at(lambda path: path.initial, path, small)
    nothing = jnp.zeros(small.widths, small.dtype)
    reduction = Reduction(path.reduction.state, nothing, nothing)
    return eqx.tree_at(lambda path: (path.initial, path.reduction), path, (small, reduction))


def _shaped(values: Any, shape: tuple[int, ...]) -> Any:
    """Values with one leading axis as JAX arrays with leading axes of a shape."""
    shaped = jax.tree.map(lambda x: x.reshape((*shape, *x.shape[1:])), values)
    # NumPy arrays go through `device_put`, since `jnp.asarray` would compile a program for every
    # shape.
    return jax.tree.map(lambda x: x if isinstance(x, jax.Array) else jax.device_put(x), shaped)


@eqx.filter_jit
def _frame(path: Trajectory) -> Frame | None:
    return View.of(path).frame


@eqx.filter_jit
def _block(view: View, times: Array, function: Callable[..., Any], *further: Any) -> Any:
    return lax.map(lambda time: function(view, time, *further), times)


@eqx.filter_jit
def _one_full_state(path: Trajectory, time: Array) -> Any:
    return full_state(View.of(path), jnp.asarray(time))
