r"""Steps of gradient descent: many networks in training, and what happens to them on the device.

$$\theta_{k+1} = \theta_k - \eta_k \nabla R(\theta_k)$$
"""

from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ._data import AbstractData
from ._effective import EffectiveModel
from ._lanes import over_lanes, stacked, unstacked
from ._losses import Loss
from ._modules import MLP
from ._observe import Observable
from ._run import RunStatus
from ._schedule import LearningRate

# A loss this many times larger than at the start will not come back.
_DIVERGED = 1e3


class Lane(eqx.Module):
    """One network in training.

    `loss` is what the last step knew, of the weights before it and of its samples; `reached` that
    of the weights as they are and of all samples, for the host.
    """

    network: MLP
    optimiser: Any
    iteration: Int[Array, ""]
    first_loss: Float[Array, ""]
    loss: Float[Array, ""]
    reached: Float[Array, ""]
    crossings: Int[Array, " levels"]
    key: PRNGKeyArray
    ended: Int[Array, ""]  # a RunStatus: of what ended it before its time


class Problem(eqx.Module):
    """What all lanes share: the data, the loss and how a step is made."""

    data: AbstractData
    model: EffectiveModel | None
    rate: LearningRate | None
    levels: Float[Array, " levels"]
    until: Float[Array, ""]
    sample_loss: Loss = eqx.field(static=True)
    batch_size: int | None = eqx.field(static=True)
    optimiser: optax.GradientTransformation = eqx.field(static=True)

    def batch(self, key: PRNGKeyArray, iteration: Int[Array, ""]) -> AbstractData:
        """The samples of one step: every epoch goes through a new permutation of all."""
        if self.batch_size is None:
            return self.data
        total = self.data.targets.shape[0]
        epoch, position = jnp.divmod(iteration, total // self.batch_size)
        order = jax.random.permutation(jax.random.fold_in(key, epoch), total)
        indices = lax.dynamic_slice_in_dim(order, position * self.batch_size, self.batch_size)
        return self.data.take(indices)

    def gradient(self, lane: Lane) -> tuple[Array, MLP]:
        """Loss and gradient at the weights of a lane, on the samples of its next step."""
        data = self.batch(lane.key, lane.iteration)
        return jax.value_and_grad(lambda network: data.loss(network, self.sample_loss))(
            lane.network
        )

    def updates(self, lane: Lane, gradient: MLP) -> tuple[MLP, Any]:
        """What a step adds to the weights, and the optimiser's next state."""
        updates, optimiser = self.optimiser.update(gradient, lane.optimiser, lane.network)  # pyright: ignore[reportArgumentType]
        if self.rate is not None:
            rate = self.rate.at(lane.iteration).astype(lane.network.dtype)
            updates = jax.tree.map(lambda g: -rate * g, updates)
        return updates, optimiser  # pyright: ignore[reportReturnType]

    def step(self, lane: Lane) -> Lane:
        """One iteration."""
        loss, gradient = self.gradient(lane)
        # The loss of the whole data at this iteration, where it is known.
        below = (loss < self.levels * lane.first_loss) & (lane.crossings < 0)
        if self.batch_size is not None:
            below = jnp.zeros_like(below)
        updates, optimiser = self.updates(lane, gradient)
        return Lane(
            network=jax.tree.map(jnp.add, lane.network, updates),
            optimiser=optimiser,
            iteration=lane.iteration + 1,
            first_loss=lane.first_loss,
            loss=loss,
            reached=lane.reached,
            crossings=jnp.where(below, lane.iteration, lane.crossings),
            key=lane.key,
            ended=lane.ended,
        )

    def goes_on(self, lane: Lane) -> Bool[Array, ""]:
        """Whether a lane has neither ended nor come to where it was to stop."""
        sound = (lane.ended == RunStatus.COMPLETED) & (lane.loss <= _DIVERGED * lane.first_loss)
        return sound & (lane.loss >= self.until * lane.first_loss)


@eqx.filter_jit
def _advance(lane: Lane, stop: Array, problem: Problem) -> Lane:
    lane = lax.while_loop(
        lambda lane: (lane.iteration < stop) & problem.goes_on(lane),
        lambda lane: problem.step(lane),
        lane,
    )
    reached = problem.data.loss(lane.network, problem.sample_loss)
    return eqx.tree_at(lambda lane: lane.reached, lane, reached)


@eqx.filter_jit
def _observe(
    lane: Lane, problem: Problem, observables: Mapping[str, Observable]
) -> dict[str, Array]:
    _, gradient = problem.gradient(lane)
    updates, _ = problem.updates(lane, gradient)

    def lost(weights: Array, update: Array) -> Array:
        return jnp.stack([jnp.sum((update != 0) & (weights + update == weights)),
                          jnp.sum(update != 0)])  # fmt: skip

    counts = sum(jax.tree.leaves(jax.tree.map(lost, lane.network, updates)))
    return {
        "iteration": lane.iteration,
        "loss": problem.data.loss(lane.network, problem.sample_loss),
        "rounded_away": counts[0] / jnp.maximum(counts[1], 1),  # pyright: ignore[reportIndexIssue]
        **{name: f(lane.network, problem.model) for name, f in observables.items()},
    }


class Crew:
    """All lanes, and what can be done with them."""

    def __init__(self, lanes: Lane, problem: Problem):
        self.problem = problem
        self.lanes = lanes

    def advance(self, stop: int) -> None:
        """All lanes on to an iteration, or to where they end."""
        at = jnp.asarray(stop, self.lanes.iteration.dtype)
        self.lanes = over_lanes(lambda lane: _advance(lane, at, self.problem), self.lanes)

    def observe(self, observables: Mapping[str, Observable]) -> dict[str, Array]:
        """A record of all lanes, stacked."""
        return over_lanes(lambda lane: _observe(lane, self.problem, observables), self.lanes)

    def end(self, where: np.ndarray, status: RunStatus, back_to: Lane) -> None:
        """End some lanes, with what they were at an earlier point."""
        chosen = jnp.asarray(where)

        def back(now: Array, before: Array) -> Array:
            return jnp.where(chosen.reshape(-1, *(1,) * (now.ndim - 1)), before, now)

        lanes = jax.tree.map(back, self.lanes, back_to)
        self.lanes = eqx.tree_at(
            lambda lane: lane.ended, lanes, jnp.where(chosen, status, self.lanes.ended)
        )

    @property
    def go_on(self) -> np.ndarray:
        """Which lanes are still to be trained."""
        return np.asarray(jax.vmap(lambda lane: self.problem.goes_on(lane))(self.lanes))

    @property
    def diverged(self) -> np.ndarray:
        """Which lanes have just lost their way."""
        bound = _DIVERGED * self.lanes.first_loss
        lost = ~((self.lanes.loss <= bound) & (self.lanes.reached <= bound))
        return np.asarray(lost & (self.lanes.ended == RunStatus.COMPLETED))


def starting_lanes(network: MLP, problem: Problem, key: PRNGKeyArray, first_iteration: int) -> Lane:
    """The lanes of one network or of many at the start, along a new or their leading axis.

    **Raises:** `ValueError` for more than one batch axis, or a loss that is not finite.
    """
    batch = network.batch_shape
    if len(batch) > 1:
        raise ValueError(f"Networks must have one batch axis at most, but have {batch}.")
    networks = unstacked(network) if batch else [network]
    lanes = []
    for index, single in enumerate(networks):
        loss = problem.data.loss(single, problem.sample_loss)
        if not bool(jnp.isfinite(loss)):
            raise ValueError(
                f"The loss of the initial network is {float(loss)}: its weights or the data are "
                "not finite, or too large."
            )
        lanes.append(
            Lane(
                network=single,
                optimiser=problem.optimiser.init(single),  # pyright: ignore[reportArgumentType]
                iteration=jnp.asarray(first_iteration),
                first_loss=loss,
                loss=loss,
                reached=loss,
                crossings=jnp.full(problem.levels.shape, -1),
                key=jax.random.fold_in(key, index),
                ended=jnp.asarray(RunStatus.COMPLETED),
            )
        )
    return stacked(lanes)
