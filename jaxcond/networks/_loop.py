"""The loop on the host around the steps: records, checkpoints, and how a run ends."""

import time
import warnings
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import numpy as np

from .. import networks
from .._precision import SWITCH
from ._batches import Stream
from ._run import Run, RunStatus
from ._steps import SLOTS, Crew

# A run counts as stalled above this share of steps lost to rounding.
_STALLED = 0.5
# Seconds of work per call to the device; between calls the bar moves and Ctrl-C is handled.
_SECONDS = 0.5
# Iterations of the first call, which measures their speed.
_FIRST = 64


class StallWarning(UserWarning):
    """Steps are too small for the dtype of the weights."""


class DivergenceWarning(UserWarning):
    """The loss grew beyond bounds."""


class ExhaustedWarning(UserWarning):
    """The batches of the caller ended before the run did."""


class Loop:
    """The loop on the host: from one call of the device to the next, and to checkpoints.

    `stops` are the iterations of the records, including the first and the last one of the run.
    """

    def __init__(
        self,
        crew: Crew,
        stops: np.ndarray,
        stream: Stream | None,
        saved: "networks.Checkpoints | None",
        every: int,
        tell: Callable[[float, float], None],
    ):
        self.crew, self.stops, self.stream = crew, stops, stream
        self.saved, self.every, self.tell = saved, every, tell
        self.last = int(stops[-1])
        self.records: list[dict[str, np.ndarray]] = []
        self.taken = np.zeros(0, np.int64)  # the stops at which records were taken
        self.pace = float(_FIRST)
        self.ready = self.last if stream is None else 0
        self.exhausted = False

    def run(self) -> None:
        """Train to the end, from the last checkpoint if there is one."""
        if self.saved is not None:
            self._resume(self.saved)
        while self._pending().size and self.crew.go_on.any() and self._fill():
            self._advance()
        # If lanes or batches have ended, the current iteration is not a stop.
        end = self.crew.iteration
        if not self.taken.size or self.taken[-1] < end:
            self.records += self.crew.advance(np.asarray([end]), end)

    def _resume(self, saved: "networks.Checkpoints") -> None:
        checkpoint = saved.latest((self.crew.lanes, self.crew.good), self.stops)
        if checkpoint is not None:
            (self.crew.lanes, self.crew.good), self.records, self.taken = checkpoint

    def _pending(self) -> np.ndarray:
        return self.stops[self.taken.size :]

    def _fill(self) -> bool:
        """Put the caller's next batches on the device; return whether there are any."""
        at = self.crew.iteration
        if self.stream is None or at < self.ready or at == self.last:
            return True
        block, self.ready = self.stream.read(at, self.last)
        if block is None:
            self.exhausted = True
            self._save(at)
            return False
        self.crew.problem = eqx.tree_at(lambda p: p.batches, self.crew.problem, block)
        return True

    def _advance(self) -> None:
        at, stops = self.crew.iteration, self._pending()[:SLOTS]
        pause = min(int(stops[-1]), at + max(1, int(self.pace)), max(self.ready, at))
        if self.saved is not None:
            pause = min(pause, (at // self.every + 1) * self.every)
        began = time.perf_counter()
        records = self.crew.advance(stops, pause)
        took = max(time.perf_counter() - began, 1e-6)
        pace = min(max(self.pace / 2, self.pace * _SECONDS / took), 4 * self.pace)
        self.pace = min(pace, float(self.last))
        self.records += records
        self.taken = np.append(self.taken, stops[: len(records)])
        now = self.crew.iteration
        self.tell(now, self.crew.loss)
        # At `pause` some lane is still running, or the run is complete.
        if now == pause and (now % self.every == 0 or now == self.last):
            self._save(now)

    def _save(self, iteration: int) -> None:
        if self.saved is not None and self.records:
            self.saved.save(iteration, (self.crew.lanes, self.crew.good), self.records, self.taken)

    def _crossings(self) -> np.ndarray:
        """The crossings of all lanes, including the last iteration; NaN where there is none."""
        lanes, problem = self.crew.lanes, self.crew.problem
        crossed = np.array(lanes.crossings, float)
        bound = problem.levels[None] * lanes.first_loss[:, None]
        at_last = (crossed < 0) & np.asarray(lanes.reached[:, None] < bound)
        crossed = np.where(at_last, np.asarray(lanes.iteration)[:, None], crossed)
        return np.where(crossed < 0, np.nan, crossed)

    def result(self, batch: bool, levels: Sequence[float]) -> Run:
        """The `Run`."""
        lanes = self.crew.lanes
        records = {
            name: np.stack([record[name] for record in self.records], axis=1)
            for name in self.records[0]
        }
        status = np.array(lanes.ended)
        stalled = np.max(records["rounded_away"], axis=1) > _STALLED
        status[stalled & (status == RunStatus.COMPLETED)] = RunStatus.STALLED
        if self.exhausted:
            status[self.crew.go_on & (status == RunStatus.COMPLETED)] = RunStatus.EXHAUSTED
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
        _warn(status, records["rounded_away"], self.crew.iteration, self.last)
        return run if batch else jax.tree.map(lambda x: x[0], run)


def _warn(status: np.ndarray, rounded_away: np.ndarray, end: int, last: int) -> None:
    stalled = status == RunStatus.STALLED
    if stalled.any():
        share = 100 * float(np.max(rounded_away[stalled]))
        warnings.warn(
            f"{int(stalled.sum())} of {status.size} networks stalled: up to {share:.0f} % of the "
            "weights do not move, because their steps are lost to the rounding of their dtype. "
            f"Train in float64 (call {SWITCH} before any other use of JAX), with a larger learning "
            "rate, or from `skip_plateau`.",
            StallWarning,
            stacklevel=4,
        )
    if (status == RunStatus.EXHAUSTED).any():
        warnings.warn(
            f"`batches` ended before iteration {last}: the run ends at iteration {end}, and what "
            "was trained and saved is kept.",
            ExhaustedWarning,
            stacklevel=4,
        )
    if (status == RunStatus.DIVERGED).any():
        warnings.warn(
            f"{int(np.sum(status == RunStatus.DIVERGED))} of {status.size} networks diverged: the "
            "learning rate is too large. Their last good weights are kept.",
            DivergenceWarning,
            stacklevel=4,
        )
