"""The loop on the host around the steps: records, checkpoints, and how a run ends."""

import time
import warnings
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .. import networks
from ._observe import Observable
from ._run import Run, RunStatus
from ._steps import Crew

# Above this share of steps lost to rounding a run counts as stalled.
_STALLED = 0.5
# Seconds of work given to the device at a time, so that the bar moves and Ctrl-C is heard.
_SECONDS = 0.5


class StallWarning(UserWarning):
    """Steps are too small for the dtype of the weights."""


class DivergenceWarning(UserWarning):
    """The loss grew beyond bounds."""


class Loop:
    """The loop on the host: to the next record or checkpoint, and what is done there."""

    def __init__(
        self,
        crew: Crew,
        observables: Mapping[str, Observable],
        stops: np.ndarray,
        last: int,
        saved: "networks.Checkpoints | None",
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
            network=lanes.network,
            iteration=last,
            time=times(last),
            iterations=iterations,
            times=times(iterations),
            records=records,
            crossings={level: crossings[:, i] for i, level in enumerate(levels)},
            num_gradients=last - iterations[:, 0],
            status=status,
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
