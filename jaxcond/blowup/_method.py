"""The interface of a method, and what surrounds every method."""

import abc

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .._reduction import pad, reduce
from .._state import State


class Raw(eqx.Module):
    """What a method finds for a state of unit scale; the caller rescales and classifies."""

    time: Float[Array, "*batch"]
    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    error: Float[Array, "*batch"]
    converged: Array
    num_steps: Int[Array, "*batch"]


class AbstractMethod(eqx.Module):
    """How to compute a blow-up time.

    A method works in two parts. `prepare` takes one state of any size to the state that is
    solved: it is where the cost of the width is paid. `solve` takes many prepared states at once,
    batched along the *last* axis of every array (the lanes).
    """

    @property
    @abc.abstractmethod
    def label(self) -> str:
        """A short name that tells the method and its size from others."""

    @abc.abstractmethod
    def check(self, state: State) -> None:
        """Raise `ValueError` where the method does not apply to the shape of a state."""

    @abc.abstractmethod
    def reduced_dim(self, rank: int) -> int | None:
        """The dimension to which wider states are reduced; `None` if they are solved in full."""

    def truncates(self, state: State) -> bool:
        """Whether a state is wider than `reduced_dim`, and so loses directions to `prepare`."""
        dim = self.reduced_dim(state.rank)
        return dim is not None and max(state.widths) > dim

    def prepare(self, state: State) -> State:
        """The state to solve for: reduced if it is wide, with equal widths if it is not."""
        dim = self.reduced_dim(state.rank)
        if dim is None:
            return state
        return reduce(state, dim).state if self.truncates(state) else pad(state, max(state.widths))

    @abc.abstractmethod
    def solve(self, states: State, rtol: Float[Array, ""], *, truncated: bool) -> Raw:
        """Blow-up times of prepared states of unit scale, with the lanes on the last axis.

        `truncated` says that the states stand for wider ones, so that what is missing beyond their
        last basis vectors counts into the error.
        """


def tolerance_floor(dtype: jnp.dtype) -> float:
    """The smallest relative tolerance that a dtype can give: 64 units of rounding."""
    return 64 * float(jnp.finfo(dtype).eps)
