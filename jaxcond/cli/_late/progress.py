"""Progress of a study: a bar for each point in work and one for all, or lines for a log."""

from __future__ import annotations

import time
from collections.abc import Sequence

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from ...study import Store, Study, Tally, Watcher
from ...study import Task as Chunk
from .._common import err

_LOG_SECONDS = 30.0
# Until the first samples are there.
_COMPILING = "compiling …"


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text("" if speed is None else f"{speed:,.0f}/s")


def _estimate(tally: Tally, study: Study) -> str:
    if not tally.moments.count:
        return ""
    return f"{study.quantity.symbol} {tally.moments.mean:.6g} ± {tally.moments.standard_error:.1g}"


class Bars(Watcher):
    """Bars on standard error: the point in work with its running mean ± error, and the whole."""

    def __init__(self):
        columns = (
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[estimate]}"),
        )
        self.progress = Progress(*columns, console=err)
        self._points: dict[int, TaskID] = {}
        self._whole = TaskID(0)

    def start(self, study: Study, store: Store, tallies: Sequence[Tally]) -> None:
        """Bars for all samples and, in a sweep, for each point once it is in work."""
        self._study, self._tallies = study, tallies
        # Not before: what is wrong with a store is told without bars.
        self.progress.start()
        total = study.samples * len(tallies)
        self._whole = self.progress.add_task(
            _COMPILING, total=total, completed=sum(t.done for t in tallies), estimate=""
        )

    def stop(self) -> None:
        """Leave the bars as they are."""
        if self.progress.live.is_started:
            self.progress.stop()

    def _bar(self, point: int) -> TaskID | None:
        if not self._study.sweep:
            return None
        if point not in self._points:
            self._points[point] = self.progress.add_task(
                self._study.name(point),
                total=self._study.samples,
                completed=self._tallies[point].done,
                estimate="",
            )
        return self._points[point]

    def solved(self, point: int, count: int) -> None:
        """Move the bars."""
        bar = self._bar(point)
        name = "all" if self._study.sweep else "samples"
        self.progress.update(self._whole, advance=count, estimate="", description=name)
        if bar is not None:
            self.progress.update(bar, advance=count)

    def finished(self, task: Chunk, tally: Tally) -> None:
        """Show the mean; take away the bars of points that are done, but for the last few."""
        bar = self._bar(task.point)
        done = tally.done >= self._study.samples or tally.enough is not None
        if bar is None:
            self.progress.update(self._whole, estimate=_estimate(tally, self._study))
            return
        self.progress.update(bar, estimate=_estimate(tally, self._study), completed=tally.done)
        if done:
            self.progress.update(bar, total=tally.done)
            over = [b for b in self._points.values() if self.progress.tasks[b].finished]
            for old in over[:-6]:
                self.progress.update(old, visible=False)


class Lines(Watcher):
    """A line on standard error now and then: for logs of batch jobs."""

    def __init__(self):
        self._told = self._begin = time.monotonic()
        self._done = self._before = 0

    def start(self, study: Study, store: Store, tallies: Sequence[Tally]) -> None:
        """Tell what there is."""
        self._study = study
        self._total = study.samples * len(tallies)
        self._done = self._before = sum(t.done for t in tallies)
        err.print(
            f"study of {len(tallies)} points, {study.samples} samples each, "
            f"{self._done} of {self._total} there already",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
        if self._done < self._total:
            err.print(_COMPILING)

    def finished(self, task: Chunk, tally: Tally) -> None:
        """Tell samples, rate, time left and the running mean, twice a minute at most."""
        self._done += task.stop - task.start
        now = time.monotonic()
        if now - self._told < _LOG_SECONDS and self._done < self._total:
            return
        self._told = now
        rate = (self._done - self._before) / max(now - self._begin, 1e-9)
        left = (self._total - self._done) / rate
        name = self._study.name(task.point)
        err.print(
            f"{self._done} of {self._total} samples, {rate:,.0f}/s, {left:,.0f} s left"
            f"{'; ' + name if name else ''}; {_estimate(tally, self._study)}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
