"""The interface of a method, with the preparation and classification that methods share."""

import abc
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from .._noise import LARGEST_SHIFT, ROUNDING_SHARE
from .._state import State
from ..bounds import comes_to_rest, proven_bracket
from ._result import BlowUp, Status


class Form(NamedTuple):
    """Rank, widths and dtype of states, under the same names as in `State`."""

    rank: int
    widths: tuple[int, int]
    dtype: np.dtype


class HostStates(NamedTuple):
    """The fields of a batch of states as NumPy arrays, with one leading axis."""

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray
    strength: np.ndarray


def is_on_cpu(tree: Any) -> bool:
    """Whether all arrays of a tree are on CPUs; without arrays, whether JAX's default is a CPU."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    if not arrays:
        return jax.default_backend() == "cpu"
    return all(device.platform == "cpu" for leaf in arrays for device in leaf.devices())


def fields_of(states: State | HostStates) -> tuple[Any, Any, Any, Any]:
    """The arrays of a batch, on the device or the host."""
    return states.a, states.b, states.c, states.strength


def host_states(states: State, change: Callable[[np.ndarray], np.ndarray]) -> HostStates:
    """The fields of states as NumPy arrays, each mapped by `change`."""
    fields = fields_of(states)
    return HostStates(*(change(np.asarray(field)) for field in fields))


class Integrator(NamedTuple):
    """The diffrax solver of an integrating method, and its largest number of steps."""

    solver: Any
    max_steps: int


Kernel = Callable[[HostStates, float, bool], dict[str, np.ndarray]]
BatchSolver = Callable[[State | HostStates, float, bool], BlowUp]


class Raw(eqx.Module):
    """Results of a method for states of unit scale, before rescaling and classification.

    - `lower`, `upper`: bracket at the state that the method reached; `error`: error of the way to
      this state.
    - `spread`: difference between `time` and the times of copies with noise; infinite if the state
      or one of its copies does not reach the blow-up.
    - `settled`: whether the state reaches the blow-up with the requested accuracy, apart from its
      condition; `limited`: whether some copy does, so that the condition limits the accuracy.
    """

    time: Float[Array, "*batch"]
    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    error: Float[Array, "*batch"]
    spread: Float[Array, "*batch"]
    settled: Bool[Array, "*batch"]
    limited: Bool[Array, "*batch"]
    num_steps: Int[Array, "*batch"]


class Known(eqx.Module):
    """Properties of a state that are known before it is solved at unit scale.

    - `lower`, `upper`: bracket at unit scale; `scale`: divisor that converts times back.
    - `finite`: whether all entries are finite; `rests`: whether the state provably comes to rest.
    """

    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    scale: Float[Array, "*batch"]
    finite: Bool[Array, "*batch"]
    rests: Bool[Array, "*batch"]


class AbstractMethod(eqx.Module):
    """A method that computes a blow-up time and its gradient."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """A short name of the method and its size."""

    @abc.abstractmethod
    def check(self, state: Form | State) -> None:
        """Raise `ValueError` if the method does not apply to the shape of a state."""

    @abc.abstractmethod
    def reduced_dim(self, rank: int) -> int | None:
        """The dimension to which wider states are reduced; `None` if they are solved in full."""

    def truncates(self, state: Form | State) -> bool:
        """Whether a state is wider than `reduced_dim`, and so loses directions to reduction."""
        dim = self.reduced_dim(state.rank)
        return dim is not None and max(state.widths) > dim

    @property
    def is_finest(self) -> bool:
        """Whether no later method can improve the result for an ill-conditioned state."""
        return False

    @property
    def integrator(self) -> Integrator | None:
        """The integrator of the flow; `None` if the method does not integrate."""
        return None

    @property
    def takes_chains(self) -> bool:
        """Whether the method solves chains of four or more layers with its `integrator`."""
        return False

    def kernel(self, form: Form | State) -> Kernel | None:
        """The native kernel of the method: a function of NumPy states, `rtol` and `truncated`.

        The function returns all fields of a `BlowUp` except `stage`, runs no JAX program, and is
        thread-safe. `None` if no kernel exists for states of this form.
        """
        del form
        return None

    def batch_solver(self, form: Form | State) -> BatchSolver:
        """`solve` as a compiled program, for concrete states of this form."""
        del form

        def solve(states: State | HostStates, rtol: float, truncated: bool) -> BlowUp:
            batch = State(*fields_of(states))
            tolerance = jnp.asarray(rtol, batch.dtype)
            return _solve_batch(self, batch, tolerance, jnp.asarray(truncated))

        return solve

    @abc.abstractmethod
    def solve(self, states: State, rtol: Float[Array, ""], truncated: Bool[Array, ""]) -> BlowUp:
        """Blow-up times of a batch of states of any scale, with one leading axis.

        `truncated`: whether the states stand for wider states. May be traced.
        """

    @abc.abstractmethod
    def gradient(self, state: State, time: Float[Array, ""], rtol: Float[Array, ""]) -> State:
        """The gradient of the blow-up time `time` of one state, by every field of it.

        NaN if the gradient is unknown. May be traced and differentiated in forward mode.
        """

    def gradient_of_known(
        self, state: State, time: Float[Array, ""], rtol: Float[Array, ""]
    ) -> State:
        """`gradient` as a compiled program, for a concrete state."""
        return _gradient(self, state, time, rtol)


@eqx.filter_jit
def _gradient(
    method: AbstractMethod, state: State, time: Float[Array, ""], rtol: Float[Array, ""]
) -> State:
    return method.gradient(state, time, rtol)


@eqx.filter_jit
def _solve_batch(
    method: AbstractMethod, states: State, rtol: Float[Array, ""], truncated: Bool[Array, ""]
) -> BlowUp:
    lanes = next(size for size in (32, 8, 1) if states.batch_shape[0] % size == 0)
    blocks = jax.tree.map(lambda leaf: leaf.reshape(-1, lanes, *leaf.shape[1:]), states)
    results = lax.map(lambda block: method.solve(block, rtol, truncated), blocks)
    return jax.tree.map(lambda leaf: leaf.reshape(-1), results)


def prepare(state: State, reduced: bool | Bool[Array, ""] = False) -> tuple[State, Known]:
    """Bring one state to unit scale.

    A state that cannot be solved is replaced by a state that is solved at once. `reduced`: whether
    the state is the reduction of a wider state. The entries of a reduction are rounded, so that
    only vanishing outer layers prove rest.
    """
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]))
    unit, scale = state.unit_scale()
    outer = jnp.any(state.a != 0) | jnp.any(state.c != 0)
    rests = jnp.where(reduced, ~outer, comes_to_rest(state))
    solvable = finite & ~rests
    unit = jax.tree.map(lambda leaf: jnp.where(solvable, leaf, 1), unit)
    return unit, Known(*proven_bracket(unit), scale, finite, rests)


def classify(raw: Raw, known: Known, rtol: Float[Array, "..."], label: str) -> BlowUp:
    """Rescale the results of a method for a batch, and assign a status to every state."""
    scale, eps = known.scale, jnp.finfo(known.scale.dtype).eps
    allowed = rtol * raw.time
    proportional = raw.spread <= LARGEST_SHIFT * raw.time
    condition = jnp.where(proportional, ROUNDING_SHARE * raw.spread, jnp.inf)
    error = raw.error + condition
    error = jnp.where(jnp.isnan(error), jnp.inf, error)  # an overflow says nothing
    converged = raw.settled & (error <= allowed)
    limited = raw.limited & ~(condition <= allowed)
    unsettled = jnp.where(limited, Status.ILL_CONDITIONED, Status.NOT_CONVERGED)
    status = jnp.where(converged, Status.CONVERGED, unsettled)
    status = jnp.where(known.rests, Status.NO_BLOW_UP, status)
    status = jnp.where(known.finite, status, Status.INVALID_INPUT)
    unseen = (status == Status.ILL_CONDITIONED) & (error == jnp.inf)
    time = jnp.where(unseen, jnp.inf, raw.time)
    margin = error + 4 * eps * time
    lower = jnp.maximum(known.lower, jnp.minimum(raw.lower, time) - margin)
    upper = jnp.minimum(known.upper, jnp.maximum(raw.upper, time) + margin)
    has_bracket = (error < jnp.inf) & (raw.lower < jnp.inf)
    lower = jnp.where(has_bracket, lower, known.lower)
    upper = jnp.where(has_bracket, upper, known.upper)
    time = jnp.where(has_bracket, jnp.clip(time, lower, upper), time)

    def outcome(value: Array, at_rest: float) -> Array:
        value = jnp.where(known.rests, at_rest, value / scale)
        return jnp.where(known.finite, value, jnp.nan)

    # Times beyond the range of the dtype.
    time = outcome(time, jnp.inf)
    lost = (status == Status.CONVERGED) & jnp.isinf(time)
    status = jnp.where(lost, Status.NOT_CONVERGED, status)
    lower = outcome(jnp.minimum(lower, jnp.finfo(lower.dtype).max * scale), jnp.inf)
    return BlowUp(
        time=time,
        lower=lower,
        upper=outcome(upper, jnp.inf),
        error=outcome(error, 0.0),
        status=status.astype(jnp.int32),
        num_steps=raw.num_steps,
        stage=jnp.zeros_like(raw.num_steps),
        methods=(label,),
    )


def tolerance_floor(dtype: jnp.dtype) -> float:
    """The smallest relative tolerance that a dtype can give: 64 units of rounding."""
    return 64 * float(jnp.finfo(dtype).eps)
