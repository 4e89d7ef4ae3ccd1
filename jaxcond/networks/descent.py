r"""Gradient descent, and any other optimiser of optax.

$$\theta_{k+1} = \theta_k - \eta_k \nabla R(\theta_k)$$

A compiled loop on the device between the iterations at which something is to be recorded or saved;
a loop on the host around it. What is recorded, saved or shown does not change the numbers.
"""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from .checkpoints import Checkpoints
from .data import AbstractData, loss_factor
from .effective import EffectiveModel
from .lanes import over_lanes, stacked, unstacked
from .modules import ThreeLayer
from .observe import Observable, model_where_it_applies, resolve_observables
from .progress import training_bar
from .run import Run, RunStatus
from .schedule import LearningRate

# A loss this many times larger than at the start will not come back.
_DIVERGED = 1e3
# Above this share of steps lost to rounding a run counts as stalled.
_STALLED = 0.5
# Seconds of work given to the device at a time, so that the bar moves and Ctrl-C is heard.
_SECONDS = 0.5


class StallWarning(UserWarning):
    """Steps are too small for the dtype of the weights."""


class DivergenceWarning(UserWarning):
    """The loss grew beyond bounds."""


class Lane(eqx.Module):
    """One network in training.

    `loss` is what the last step knew, of the weights before it and of its samples; `reached` that
    of the weights as they are and of all samples, for the host.
    """

    network: ThreeLayer
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
    factor: float = eqx.field(static=True)
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

    def gradient(self, lane: Lane) -> tuple[Array, ThreeLayer]:
        """Loss and gradient at the weights of a lane, on the samples of its next step."""
        data = self.batch(lane.key, lane.iteration)
        return jax.value_and_grad(lambda network: data.loss(network, self.factor))(lane.network)

    def updates(self, lane: Lane, gradient: ThreeLayer) -> tuple[ThreeLayer, Any]:
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
            jax.tree.map(jnp.add, lane.network, updates),
            optimiser,
            lane.iteration + 1,
            lane.first_loss,
            loss,
            lane.reached,
            jnp.where(below, lane.iteration, lane.crossings),
            lane.key,
            lane.ended,
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
    reached = problem.data.loss(lane.network, problem.factor)
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
        "loss": problem.data.loss(lane.network, problem.factor),
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


def _lanes(network: ThreeLayer, problem: Problem, key: PRNGKeyArray, first_iteration: int) -> Lane:
    batch = network.batch_shape
    if len(batch) > 1:
        raise ValueError(f"Networks must have one batch axis at most, but have {batch}.")
    networks = unstacked(network) if batch else [network]
    lanes = []
    for index, single in enumerate(networks):
        loss = problem.data.loss(single, problem.factor)
        if not bool(jnp.isfinite(loss)):
            raise ValueError(
                f"The loss of the initial network is {float(loss)}: its weights or the data are "
                "not finite, or too large."
            )
        lanes.append(
            Lane(
                single,
                problem.optimiser.init(single),  # pyright: ignore[reportArgumentType]
                jnp.asarray(first_iteration),
                loss,
                loss,
                loss,
                jnp.full(problem.levels.shape, -1),
                jax.random.fold_in(key, index),
                jnp.asarray(RunStatus.COMPLETED),
            )
        )
    return stacked(lanes)


def record_stops(record: int | Sequence[int] | np.ndarray, first: int, last: int) -> np.ndarray:
    """The iterations of the records: so many evenly, or those given that lie within the run.

    **Raises:** `ValueError` for less than two, or no iteration within.
    """
    if isinstance(record, int | np.integer):
        if record < 2:
            raise ValueError(f"Argument `record` must be at least 2, but is {record}.")
        return np.unique(np.linspace(first, last, int(record)).round().astype(np.int64))
    stops = np.unique(np.asarray(record))
    if not np.issubdtype(stops.dtype, np.integer):
        raise ValueError("Argument `record` must be a number of records or a list of iterations.")
    stops = stops[(stops >= first) & (stops <= last)]
    if not stops.size:
        raise ValueError(f"Argument `record` has no iteration between {first} and {last}.")
    return stops


def log_spaced(num_steps: int, num: int = 100) -> np.ndarray:
    """Iterations 0, 1, ... up to `num_steps`, about `num` of them, evenly in their logarithm."""
    if num_steps < 1:
        raise ValueError(f"Argument `num_steps` must be positive, but is {num_steps}.")
    return np.unique(np.append(0, np.geomspace(1, num_steps, num).round().astype(np.int64)))


_PLAIN = optax.identity()


def gradient_descent(
    network: ThreeLayer,
    data: AbstractData,
    learning_rate: float | Mapping[int, float] | LearningRate | None = None,
    *,
    num_steps: int,
    optimiser: optax.GradientTransformation | None = None,
    loss: str | float = "half_mse",
    batch_size: int | None = None,
    key: PRNGKeyArray | None = None,
    record: int | Sequence[int] | np.ndarray = 200,
    observe: Sequence[str] | Mapping[str, Observable] | None = None,
    levels: Sequence[float] = (0.9, 0.5),
    until: float | None = None,
    first_iteration: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> Run:
    r"""Train a network, or many at once, by gradient descent or an optimiser of optax.

    $$\theta_{k+1} = \theta_k - \eta_k \nabla R(\theta_k), \qquad
      R = \tfrac\kappa n \textstyle\sum_i \|f(x_i) - y_i\|^2$$

    **Arguments:**

    - `network`: one, or many whose weights have a leading axis. Of many, on a CPU each has a loop
      of its own, one on every core; on an accelerator they are one batch.
    - `data`: `Regression`, `Entries` or `Sensing`; taken to the dtype of the network.
    - `learning_rate`: $\eta$, or a mapping of iterations to rates, `{0: 5e-3, 205_000: 5e-4}`.
    - `num_steps`: how many iterations.
    - `optimiser`: any optax optimiser in place of `learning_rate`, as `optax.adam(1e-3)`. Training
      times are then NaN.
    - `loss`: `"half_mse"`, `"mse"` or $\kappa$ itself; see `loss_factor`.
    - `batch_size`: size of a minibatch, by default all samples. Every epoch goes through a new
      permutation of the samples, which depends on `key` and the epoch only; what is left over at
      the end of an epoch is passed over.
    - `key`: a JAX random key, for minibatches.
    - `record`: how many records, evenly, or at which iterations, as from `log_spaced`.
    - `observe`: names of observables (see `networks.observe`), or functions by name which take the
      network and its `EffectiveModel` (None where it does not apply) and return an array.
    - `levels`: fractions of the initial loss; `Run.crossings` has the first iteration below each.
      Of minibatches they are not known.
    - `until`: end once the loss is below this fraction of the initial one.
    - `first_iteration`: the number of the first iteration, for a run that goes on from another one
      or from `skip_plateau`; learning rates and records count from 0.
    - `checkpoint`: a folder for checkpoints. If it has some of the same run, the run goes on from
      the last one, with the numbers of an uninterrupted run.
    - `checkpoint_every`: iterations between checkpoints, by default a tenth of the run.
    - `progress`: a bar with loss and time left, where there is a terminal.

    **Returns:** a `Run`.

    **Raises:** `ValueError` for arguments out of range, a network that does not fit the data, a
    loss that is not finite at the start, or checkpoints of another run (which are left alone).
    `OSError` if a checkpoint cannot be written; those before it are kept.

    **Status:** `STALLED`, with a `StallWarning`, where most weights no longer move because their
    steps are lost to rounding, as in float32 at small standard deviations; a run none of whose
    weights moves ends. `DIVERGED` where the loss grows a thousandfold or is no longer finite; the
    run ends, and keeps the network of the last record before that.
    """
    factor = loss_factor(loss)
    data.check(network)
    if (learning_rate is None) == (optimiser is None):
        raise ValueError("Give one of `learning_rate` and `optimiser`.")
    if not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise ValueError(f"Argument `num_steps` must be a positive integer, but is {num_steps}.")
    if first_iteration < 0:
        raise ValueError(f"Argument `first_iteration` must not be negative: {first_iteration}.")
    every = max(1, num_steps // 10) if checkpoint_every is None else int(checkpoint_every)
    if every < 1:
        raise ValueError(f"Argument `checkpoint_every` must be at least 1, but is {every}.")
    data = data.astype(network.dtype)
    total = data.targets.shape[0]
    if batch_size is not None and not 1 <= batch_size <= total:
        raise ValueError(f"Argument `batch_size` must be 1 to {total}, but is {batch_size}.")
    if batch_size is not None:
        data.take(jnp.arange(1))  # raises where there are no minibatches
    rate = None if learning_rate is None else LearningRate.of(learning_rate)
    model = model_where_it_applies(network, data, factor)
    observables = resolve_observables(observe, model)
    problem = Problem(
        data,
        model,
        rate,
        jnp.asarray(levels, network.dtype),
        jnp.asarray(0.0 if until is None else until, network.dtype),
        factor,
        None if batch_size == total else batch_size,
        _PLAIN if optimiser is None else optimiser,
    )
    key = jax.random.key(0) if key is None else key
    last = first_iteration + int(num_steps)
    stops = record_stops(record, first_iteration, last)
    crew = Crew(_lanes(network, problem, key, first_iteration), problem)
    saved = None
    if checkpoint is not None:
        saved = Checkpoints(Path(checkpoint), network, problem, observables, key, first_iteration)
    with training_bar(float(first_iteration), float(last), progress) as tell:
        loop = _Loop(crew, observables, stops, last, saved, every, tell)
        loop.run(first_iteration)
    return loop.result(bool(network.batch_shape), levels)


class _Loop:
    """The loop on the host: to the next record or checkpoint, and what is done there."""

    def __init__(
        self,
        crew: Crew,
        observables: Mapping[str, Observable],
        stops: np.ndarray,
        last: int,
        saved: Checkpoints | None,
        every: int,
        tell: Callable[[float, float], None],
    ):
        self.crew, self.observables, self.last = crew, observables, last
        self.stops, self.saved, self.every, self.tell = stops, saved, every, tell
        self.records: list[dict[str, np.ndarray]] = []
        self.good = crew.lanes
        self.pace = 64.0

    def run(self, first: int) -> None:
        """Train to the end, from the last checkpoint if there is one."""
        iteration = self._resume(first)
        if not self.records:
            self._record()
        while iteration < self.last and self.crew.go_on.any():
            goal = self._next(iteration)
            while iteration < goal and self.crew.go_on.any():
                iteration = self._advance(min(goal, iteration + max(1, int(self.pace))))
            self._arrive(iteration)

    def _resume(self, first: int) -> int:
        found = None if self.saved is None else self.saved.latest(self.crew.lanes, self.last)
        if found is None:
            return first
        iteration, self.crew.lanes, self.records = found
        self.good = self.crew.lanes
        return iteration

    def _next(self, iteration: int) -> int:
        ahead = self.stops[self.stops > iteration]
        goal = int(ahead[0]) if ahead.size else self.last
        if self.saved is not None:
            goal = min(goal, (iteration // self.every + 1) * self.every)
        return min(goal, self.last)

    def _advance(self, stop: int) -> int:
        began = time.perf_counter()
        self.crew.advance(stop)
        took = max(time.perf_counter() - began, 1e-6)
        pace = min(max(self.pace / 2, self.pace * _SECONDS / took), 4 * self.pace)
        self.pace = min(pace, float(self.last))
        self.tell(stop, float(jnp.mean(self.crew.lanes.reached)))
        return stop

    def _arrive(self, iteration: int) -> None:
        """Record, save, and look whether the run is still sound."""
        lost = self.crew.diverged
        if lost.any():
            self.crew.end(lost, RunStatus.DIVERGED, self.good)
        if iteration in self.stops or iteration == self.last or not self.crew.go_on.any():
            self._record()
        self.good = self.crew.lanes
        if self.saved is not None and (iteration % self.every == 0 or iteration == self.last):
            self.saved.save(iteration, self.good, self.records)

    def _record(self) -> None:
        found = self.crew.observe(self.observables)
        self.records.append({name: np.asarray(value) for name, value in found.items()})
        # With all samples a step that moves nothing will never move anything.
        frozen = (self.records[-1]["rounded_away"] == 1) & self.crew.go_on
        if frozen.any() and self.crew.problem.batch_size is None:
            self.crew.end(frozen, RunStatus.STALLED, self.crew.lanes)

    def _crossings(self) -> np.ndarray:
        """The crossings of all lanes, those at the last iteration too; NaN where there is none."""
        lanes, problem = self.crew.lanes, self.crew.problem
        crossed = np.array(lanes.crossings, float)
        if problem.batch_size is None:
            bound = problem.levels[None] * lanes.first_loss[:, None]
            at_last = (crossed < 0) & np.asarray(lanes.reached[:, None] < bound)
            crossed = np.where(at_last, np.asarray(lanes.iteration)[:, None], crossed)
        return np.where(crossed < 0, np.nan, crossed)

    def result(self, batch: bool, levels: Sequence[float]) -> Run:
        """What the run leaves."""
        lanes = self.crew.lanes
        records = {
            name: np.stack([record[name] for record in self.records], axis=1)
            for name in self.records[0]
        }
        status = np.array(lanes.ended)
        stalled = np.max(records["rounded_away"], axis=1) > _STALLED
        status[stalled & (status == RunStatus.COMPLETED)] = RunStatus.STALLED
        iterations = records.pop("iteration")
        rate = self.crew.problem.rate

        def times(where: np.ndarray) -> np.ndarray:
            return np.full(where.shape, np.nan) if rate is None else rate.time_of(where)

        last = np.asarray(lanes.iteration)
        crossings = self._crossings()
        run = Run(
            lanes.network,
            last,
            times(last),
            iterations,
            times(iterations),
            records,
            {level: crossings[:, i] for i, level in enumerate(levels)},
            last - iterations[:, 0],
            status,
        )
        _warn(status, records["rounded_away"])
        return run if batch else jax.tree.map(lambda x: x[0], run)


def _warn(status: np.ndarray, rounded_away: np.ndarray) -> None:
    stalled = status == RunStatus.STALLED
    if stalled.any():
        share = 100 * float(np.max(rounded_away[stalled]))
        warnings.warn(
            f"{int(stalled.sum())} of {status.size} networks stalled: up to {share:.0f} % of the "
            "weights do not move, because their steps are lost to the rounding of their dtype. "
            "Train in float64, with a larger learning rate, or from `skip_plateau`.",
            StallWarning,
            stacklevel=4,
        )
    if (status == RunStatus.DIVERGED).any():
        warnings.warn(
            f"{int(np.sum(status == RunStatus.DIVERGED))} of {status.size} networks diverged: the "
            "learning rate is too large. Their last good weights are kept.",
            DivergenceWarning,
            stacklevel=4,
        )
