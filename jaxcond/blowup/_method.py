"""The interface of a method, and what surrounds every method."""

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
    """Rank, widths and dtype of states, by the names that a `State` has for them."""

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
    """Whether all arrays of a tree lie on CPUs; without arrays, whether JAX's default is one."""
    arrays = [leaf for leaf in jax.tree.leaves(tree) if isinstance(leaf, jax.Array)]
    if not arrays:
        return jax.default_backend() == "cpu"
    return all(device.platform == "cpu" for leaf in arrays for device in leaf.devices())


def fields_of(states: State | HostStates) -> tuple[Any, Any, Any, Any]:
    """The arrays of a batch, wherever they lie."""
    return states.a, states.b, states.c, states.strength


def host_states(states: State, change: Callable[[np.ndarray], np.ndarray]) -> HostStates:
    """The fields of states as NumPy arrays, each changed in the same way."""
    fields = fields_of(states)
    return HostStates(*(change(np.asarray(field)) for field in fields))


class Integrator(NamedTuple):
    """What a method that integrates does it with: a diffrax solver, and its steps at most."""

    solver: Any
    max_steps: int


Kernel = Callable[[HostStates, float, bool], dict[str, np.ndarray]]
BatchSolver = Callable[[State | HostStates, float, bool], BlowUp]


class Raw(eqx.Module):
    """What a method makes of states of unit scale, before it is scaled back and classified.

    - `lower`, `upper`: the bracket of the state that it has reached, `error` that of the way there.
    - `spread`: by how much the times of copies with noise differ from `time`; infinite where one of
      them, or the state itself, does not reach the blow-up.
    - `settled`: whether the state reaches the blow-up with all the digits asked for but for its
      condition; `limited`: whether some copy does, so that the condition is what limits it.
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
    """What is known of a state before it is solved at unit scale.

    - `lower`, `upper`: a bracket at unit scale; `scale`, by which times are divided afterwards.
    - `finite`, `rests`: whether its entries are, and whether it provably comes to rest.
    """

    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    scale: Float[Array, "*batch"]
    finite: Bool[Array, "*batch"]
    rests: Bool[Array, "*batch"]


class AbstractMethod(eqx.Module):
    """How to compute a blow-up time, and its gradient."""

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """A short name that tells the method and its size from others."""

    @abc.abstractmethod
    def check(self, state: Form | State) -> None:
        """Raise `ValueError` where the method does not apply to the shape of a state."""

    @abc.abstractmethod
    def reduced_dim(self, rank: int) -> int | None:
        """The dimension to which wider states are reduced; `None` if they are solved in full."""

    def truncates(self, state: Form | State) -> bool:
        """Whether a state is wider than `reduced_dim`, and so loses directions to reduction."""
        dim = self.reduced_dim(state.rank)
        return dim is not None and max(state.widths) > dim

    @property
    def is_finest(self) -> bool:
        """Whether methods after it cannot know more of a state that it finds ill-conditioned."""
        return False

    @property
    def integrator(self) -> Integrator | None:
        """What a flow can be followed with, where the method integrates."""
        return None

    @property
    def takes_chains(self) -> bool:
        """Whether it follows chains of four layers and more by its `integrator`."""
        return False

    def kernel(self, form: Form | State) -> Kernel | None:
        """A function of states in NumPy arrays, a tolerance and whether they are truncated.

        It returns the fields of a `BlowUp` but `stage`, needs no program of JAX, and may be called
        from many threads. `None` where there is none for states of this form.
        """
        del form
        return None

    def batch_solver(self, form: Form | State) -> BatchSolver:
        """`solve` by compiled programs for states of a form that are not traced."""
        del form

        def solve(states: State | HostStates, rtol: float, truncated: bool) -> BlowUp:
            batch = State(*fields_of(states))
            tolerance = jnp.asarray(rtol, batch.dtype)
            return _solve_batch(self, batch, tolerance, jnp.asarray(truncated))

        return solve

    @abc.abstractmethod
    def solve(self, states: State, rtol: Float[Array, ""], truncated: Bool[Array, ""]) -> BlowUp:
        """Blow-up times of a batch of states of any scale, with one leading axis.

        `truncated` says that the states stand for wider ones. May be traced.
        """

    @abc.abstractmethod
    def gradient(self, state: State, time: Float[Array, ""], rtol: Float[Array, ""]) -> State:
        """The gradient of the blow-up time `time` of one state, by every field of it.

        NaN where it is not known. May be traced, and differentiated in forward mode.
        """

    def gradient_of_known(
        self, state: State, time: Float[Array, ""], rtol: Float[Array, ""]
    ) -> State:
        """`gradient` by a compiled program, for a state that is not traced."""
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

    What cannot be solved is replaced by a state that is solved at once. `reduced` says that the
    state is a wider one's reduction: its entries are rounded, and prove rest only by outer layers
    that vanish.
    """
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(state)]))
    unit, scale = state.unit_scale()
    outer = jnp.any(state.a != 0) | jnp.any(state.c != 0)
    rests = jnp.where(reduced, ~outer, comes_to_rest(state))
    solvable = finite & ~rests
    unit = jax.tree.map(lambda leaf: jnp.where(solvable, leaf, 1), unit)
    return unit, Known(*proven_bracket(unit), scale, finite, rests)


def classify(raw: Raw, known: Known, rtol: Float[Array, "..."], label: str) -> BlowUp:
    """Scale back what a method found for a batch, and give every state its status."""
    scale, eps = known.scale, jnp.finfo(known.scale.dtype).eps
    allowed = rtol * raw.time
    proportional = raw.spread <= LARGEST_SHIFT * raw.time
    condition = jnp.where(proportional, ROUNDING_SHARE * raw.spread, jnp.inf)
    error = raw.error + condition
    error = jnp.where(jnp.isnan(error), jnp.inf, error)  # of an overflow nothing is known
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
    found = (error < jnp.inf) & (raw.lower < jnp.inf)
    lower = jnp.where(found, lower, known.lower)
    upper = jnp.where(found, upper, known.upper)
    time = jnp.where(found, jnp.clip(time, lower, upper), time)

    def outcome(value: Array, at_rest: float) -> Array:
        value = jnp.where(known.rests, at_rest, value / scale)
        return jnp.where(known.finite, value, jnp.nan)

    # Beyond the range of the dtype.
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
