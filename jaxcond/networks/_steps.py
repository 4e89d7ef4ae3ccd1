r"""Steps of gradient descent on the device, for many networks.

$$\theta_{k+1} = \theta_k - \eta_k \nabla R(\theta_k)$$

The same program takes the steps and the records, into a buffer that the host reads when it is full.
So a record costs no more than its arithmetic.
"""

import math
from collections.abc import Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ._batches import AbstractBatches
from ._data import AbstractData
from ._effective import EffectiveModel
from ._lanes import over_lanes, stacked, unstacked
from ._losses import Loss
from ._modules import MLP
from ._observe import Observable
from ._run import RunStatus
from ._schedule import LearningRate

# A loss this many times larger than at the start counts as diverged.
_DIVERGED = 1e3
# Size of the buffer of records on the device: this many, or this many bytes if that is less.
SLOTS = 64
_BYTES = 2**24


class Lane(eqx.Module):
    """One network in training.

    `loss` is the loss that the last step computed, before it and on its samples; `reached` is the
    loss over all samples at the last record.
    """

    network: MLP
    optimiser: Any
    iteration: Int[Array, ""]
    first_loss: Float[Array, ""]
    loss: Float[Array, ""]
    reached: Float[Array, ""]
    crossings: Int[Array, " levels"]
    key: PRNGKeyArray
    ended: Int[Array, ""]  # a RunStatus: the reason if the lane ended early


class Problem(eqx.Module):
    """The data, the loss, the optimiser and the observables, which all lanes share."""

    data: AbstractData
    batches: AbstractBatches
    model: EffectiveModel | None
    rate: LearningRate | None
    levels: Float[Array, " levels"]
    until: Float[Array, ""]
    observables: Mapping[str, Observable]
    sample_loss: Loss = eqx.field(static=True)
    optimiser: optax.GradientTransformation = eqx.field(static=True)

    def loss(self, network: MLP) -> Float[Array, ""]:
        """The loss over all samples."""
        return self.data.loss(network, self.sample_loss)

    def updates(self, lane: Lane, gradient: MLP) -> tuple[MLP, Any]:
        """The change of the weights in a step, and the optimiser's next state."""
        updates, optimiser = self.optimiser.update(gradient, lane.optimiser, lane.network)  # pyright: ignore[reportArgumentType]
        if self.rate is not None:
            rate = self.rate.at(lane.iteration).astype(lane.network.dtype)
            updates = jax.tree.map(lambda g: -rate * g, updates)
        return updates, optimiser  # pyright: ignore[reportReturnType]

    def step(self, lane: Lane) -> Lane:
        """One iteration."""
        samples = self.batches.at(self.data, lane.key, lane.iteration)
        loss, gradient = jax.value_and_grad(
            lambda network: samples.loss(network, self.sample_loss)
        )(lane.network)
        crossings = lane.crossings
        if self.batches.whole:
            crossings = self._crossed(lane, loss)
        updates, optimiser = self.updates(lane, gradient)
        return Lane(
            network=jax.tree.map(jnp.add, lane.network, updates),
            optimiser=optimiser,
            iteration=lane.iteration + 1,
            first_loss=lane.first_loss,
            loss=loss,
            reached=lane.reached,
            crossings=crossings,
            key=lane.key,
            ended=lane.ended,
        )

    def _crossed(self, lane: Lane, loss: Array) -> Array:
        """The crossings, updated by a loss over all samples at the iteration of a lane."""
        below = (loss < self.levels * lane.first_loss) & (lane.crossings < 0)
        return jnp.where(below, lane.iteration, lane.crossings)

    def _sound(self, lane: Lane) -> Bool[Array, ""]:
        """Whether the last step was sound; the loss of a minibatch may be far above the mean."""
        if self.batches.whole:
            return lane.loss <= _DIVERGED * lane.first_loss
        return jnp.isfinite(lane.loss)

    def goes_on(self, lane: Lane) -> Bool[Array, ""]:
        """Whether a lane has neither ended nor reached its stop."""
        loss = lane.loss if self.batches.whole else lane.reached
        going = (lane.ended == RunStatus.COMPLETED) & self._sound(lane)
        return going & (loss >= self.until * lane.first_loss)

    def settle(self, lane: Lane, good: Lane, loss: Array) -> Lane:
        """A lane at a record with loss `loss` over all samples; a diverged lane becomes `good`."""
        sound = self._sound(lane) & (loss <= _DIVERGED * lane.first_loss)
        lost = ~sound & (lane.ended == RunStatus.COMPLETED)
        # Without minibatches the steps have already recorded the crossings.
        crossings = lane.crossings if self.batches.whole else self._crossed(lane, loss)
        new = (loss, crossings)
        here = eqx.tree_at(lambda lane: (lane.reached, lane.crossings), lane, new)
        diverged = jnp.full_like(lane.ended, RunStatus.DIVERGED)
        back = eqx.tree_at(lambda lane: lane.ended, good, diverged)
        return _choose(lost, back, here)

    def record(self, lane: Lane) -> dict[str, Array]:
        """The records of a lane, by name."""
        updates, _ = self.updates(lane, jax.grad(lambda network: self.loss(network))(lane.network))

        def lost(weights: Array, update: Array) -> Array:
            return jnp.stack([jnp.sum((update != 0) & (weights + update == weights)),
                              jnp.sum(update != 0)])  # fmt: skip

        counts = sum(jax.tree.leaves(jax.tree.map(lost, lane.network, updates)))
        return {
            "iteration": lane.iteration,
            "loss": lane.reached,
            "rounded_away": counts[0] / jnp.maximum(counts[1], 1),  # pyright: ignore[reportIndexIssue]
            **{name: f(lane.network, self.model) for name, f in self.observables.items()},
        }


def _choose(where: Array, first: Any, second: Any) -> Any:
    return jax.tree.map(lambda x, y: jnp.where(where, x, y), first, second)


class Stretch(eqx.Module):
    """A lane on its way past some records.

    - `lane`, and `good`: the same lane at its last record.
    - `records`: in the first `num` places of the leading axis.
    - `loss`: of all samples where the lane stands.
    - `more`: whether the lane has not arrived.
    """

    lane: Lane
    good: Lane
    records: dict[str, Array]
    num: Int[Array, ""]
    loss: Float[Array, ""]
    more: Bool[Array, ""]


@eqx.filter_jit
def advance(
    lane: Lane, good: Lane, stops: Int[Array, " slots"], pause: Array, problem: Problem
) -> Stretch:
    """Advance a lane to `pause`, to its end, or until the buffer is full, with records at `stops`.

    A lane that ends takes its last record in place of the next stop; a lane that ended before has
    one record.
    """
    # The shapes alone decide how many records fit, so that their number needs no new program.
    record = jax.eval_shape(lambda lane: problem.record(lane), lane)
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in record.values())
    room = max(1, min(stops.shape[0], _BYTES // size))

    def stretch(at: Stretch) -> Stretch:
        stop = jnp.minimum(stops[at.num], pause)
        lane = lax.while_loop(
            lambda lane: (lane.iteration < stop) & problem.goes_on(lane),
            lambda lane: problem.step(lane),
            at.lane,
        )
        loss = problem.loss(lane.network)
        arrived = (lane.iteration == stops[at.num]) | ~problem.goes_on(lane)
        lane = _choose(arrived, problem.settle(lane, at.good, loss), lane)
        record = problem.record(lane)
        if problem.batches.whole:
            # Without minibatches, if a step moves nothing, no later step will.
            frozen = arrived & (record["rounded_away"] == 1) & problem.goes_on(lane)
            ended = jnp.where(frozen, RunStatus.STALLED, lane.ended)
            lane = eqx.tree_at(lambda lane: lane.ended, lane, ended)
        num = at.num + arrived
        return Stretch(
            lane=lane,
            good=_choose(arrived, lane, at.good),
            # Without arrival the place is still free and is written again.
            records={name: at.records[name].at[at.num].set(x) for name, x in record.items()},
            num=num,
            loss=loss,
            more=problem.goes_on(lane) & (lane.iteration < pause) & (num < room),
        )

    start = Stretch(
        lane=lane,
        good=good,
        records={name: jnp.zeros((room, *x.shape), x.dtype) for name, x in record.items()},
        num=jnp.zeros_like(lane.iteration),
        loss=lane.reached,
        more=jnp.asarray(True),
    )
    return lax.while_loop(lambda at: at.more, stretch, start)


class Crew:
    """All lanes, and the operations on them."""

    def __init__(self, lanes: Lane, problem: Problem):
        self.problem = problem
        self.lanes = self.good = lanes
        self.loss = float(jnp.mean(lanes.reached))

    def advance(self, stops: np.ndarray, pause: int) -> list[dict[str, np.ndarray]]:
        """Advance all lanes to `pause`, or less far if the buffer is full, and return the records.

        Records are taken at `stops`, at most `SLOTS`. Once all lanes have ended, one more record
        holds their ends.
        """
        dtype = self.lanes.iteration.dtype
        ahead = np.full(SLOTS, np.iinfo(dtype).max, dtype)
        ahead[: stops.size] = stops
        at = (jnp.asarray(ahead), jnp.asarray(pause, dtype))
        found = over_lanes(
            lambda pair: advance(pair[0], pair[1], *at, self.problem), (self.lanes, self.good)
        )
        self.lanes, self.good = found.lane, found.good
        self.loss = float(jnp.mean(found.loss))
        nums = np.asarray(found.num)
        count = int(np.sum(stops <= self.iteration)) if self.go_on.any() else int(nums.max())
        records = {name: np.asarray(value) for name, value in found.records.items()}
        # Lanes that ended early repeat their end in the missing records.
        places = np.minimum(np.arange(count)[:, None], np.maximum(nums, 1) - 1)
        lanes = np.arange(nums.size)
        return [
            {name: value[lanes, places[i]] for name, value in records.items()} for i in range(count)
        ]

    @property
    def iteration(self) -> int:
        """The iteration of the lanes that continue, or the last one that a lane reached."""
        return int(jnp.max(self.lanes.iteration))

    @property
    def go_on(self) -> np.ndarray:
        """Which lanes still train."""
        return np.asarray(jax.vmap(lambda lane: self.problem.goes_on(lane))(self.lanes))


def starting_lanes(network: MLP, problem: Problem, key: PRNGKeyArray, first_iteration: int) -> Lane:
    """The initial lanes of one network or of many, along a new or their leading axis.

    **Raises:** `ValueError` for more than one batch axis, or a loss that is not finite.
    """
    batch = network.batch_shape
    if len(batch) > 1:
        raise ValueError(f"Networks must have one batch axis at most, but have {batch}.")
    networks = unstacked(network) if batch else [network]
    lanes = []
    for index, single in enumerate(networks):
        loss = problem.loss(single)
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
