"""Runs a study chunk by chunk, on local devices or a cluster; interrupted runs can resume."""

import abc
import dataclasses
import shutil
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import jax
import numpy as np

from .._threads import chosen_device
from ..blowup import Status
from ..statistics import Moments
from ._compute import Outcome, compute, default_chunk, methods_of
from ._config import Study
from ._cost import check_cost
from ._functions import function_name
from ._store import (
    Store,
    StoreError,
    Task,
    attributes_of,
    check_descriptions,
    check_same,
    create,
    locked,
    open_group,
    restore_attributes,
    written,
)
from ._store import repair as repair_store


class Interrupted(KeyboardInterrupt):
    """Raised when a run is interrupted, after it has written the chunks in flight."""


class SampleError(RuntimeError):
    """The function of an ensemble raised an exception, which is the cause of this error."""


def computed(
    study: Study, task: Task, progress: Callable[[int], None] | None = None
) -> tuple[Mapping[str, np.ndarray], Outcome]:
    """The result of `compute` for a task.

    **Raises:** `SampleError` that names the function and the samples, for every exception in a
    study of a `function` ensemble.
    """
    try:
        return compute(study, task, progress)
    except Exception as error:
        if "function" not in study.ensemble:
            raise
        _, settings = study.settings[task.point]
        function = settings.function
        failure = f"{function_name(function)} failed{_line_of(function, error)}"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise SampleError(f"{failure} on {place_of(study, task)}: {reason}") from error


def _line_of(function: Any, error: Exception) -> str:
    """The last line of the function's file in the traceback, if known."""
    file = getattr(getattr(function, "__code__", None), "co_filename", None)
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == file]
    return f" at line {frames[-1].lineno} of {file}" if frames else ""


def place_of(study: Study, task: Task) -> str:
    """The samples of a task in words."""
    place = f"samples {task.start} to {task.stop - 1}"
    return f"{place} at {study.name(task.point)}" if study.points[task.point] else place


@dataclass
class Tally:
    """Running statistics of one sweep point."""

    moments: Moments = field(default_factory=Moments)
    statuses: dict[str, int] = field(
        default_factory=lambda: {status.name.lower(): 0 for status in Status}
    )
    done: int = 0
    enough: int | None = None
    """Number of chunks after which the point is precise enough; `None` before that."""

    def add(self, outcome: Outcome) -> None:
        """Add the outcome of a task."""
        self.moments = self.moments.merge(outcome.moments)
        for name, count in outcome.statuses.items():
            self.statuses[name] += count
            self.done += count


class Watcher:
    """Progress callbacks that do nothing; subclass to observe a run.

    Methods are called from the main thread, except `solved`, which is called from any thread.
    """

    def start(self, study: Study, store: Store, tallies: Sequence[Tally]) -> None:
        """The store is open; `tallies` hold the statistics of its finished chunks."""

    def solved(self, point: int, count: int) -> None:
        """`count` more samples of a sweep point have a blow-up time."""

    def finished(self, task: Task, tally: Tally) -> None:
        """The samples of a task are in the store."""


class AbstractCrew(abc.ABC):
    """Computes tasks and writes their samples into the store."""

    capacity: int

    @abc.abstractmethod
    def submit(self, task: Task) -> None:
        """Start or queue a task."""

    @abc.abstractmethod
    def collect(self) -> list[tuple[Task, Outcome]]:
        """Wait for some tasks and return their outcomes; re-raises the exception of a task."""

    @abc.abstractmethod
    def close(self, *, wait: bool = True) -> None:
        """Release the workers, after the tasks in flight if `wait` is true, otherwise at once."""


class Devices(AbstractCrew):
    """One thread per local device; each computes and writes one task at a time."""

    def __init__(
        self,
        study: Study,
        store: Store,
        devices: Sequence[Any],
        solved: Callable[[int, int], None],
    ):
        self.capacity = len(devices)
        self._study, self._store, self._solved = study, store, solved
        self._pool = ThreadPoolExecutor(len(devices))
        self._free: SimpleQueue = SimpleQueue()
        for device in devices:
            self._free.put(device)
        self._futures: set[Future] = set()

    def _work(self, task: Task) -> tuple[Task, Outcome]:
        device = self._free.get()
        try:
            with jax.default_device(device):
                fields, outcome = computed(
                    self._study, task, lambda count: self._solved(task.point, count)
                )
            seals = self._store.write(task, fields)
        finally:
            self._free.put(device)
        return task, dataclasses.replace(outcome, seals=seals)

    def submit(self, task: Task) -> None:
        """Give a task to the next free device."""
        self._futures.add(self._pool.submit(self._work, task))

    def collect(self) -> list[tuple[Task, Outcome]]:
        """Wait for at least one device and return the outcomes."""
        done, self._futures = wait(self._futures, return_when=FIRST_COMPLETED)
        failed = {future for future in done if future.exception() is not None}
        if failed < done:
            # Failures are raised by the next call, so that the finished tasks are recorded first.
            self._futures |= failed
            return [future.result() for future in done - failed]
        return [future.result() for future in failed]

    def close(self, *, wait: bool = True) -> None:
        """End the threads once their tasks are done."""
        self._pool.shutdown(wait=wait, cancel_futures=True)


CrewMaker = Callable[[Study, Store, Callable[[int, int], None]], AbstractCrew]


def local_devices(devices: Sequence[Any] | None = None) -> CrewMaker:
    """Compute on all local devices of JAX's default backend, or on the given devices."""

    def make(study: Study, store: Store, solved: Callable[[int, int], None]) -> AbstractCrew:
        chosen = devices
        if chosen is None:
            default = chosen_device()
            chosen = jax.local_devices() if default is None else [default]
        return Devices(study, store, chosen, solved)

    return make


def run_study(
    study: Study,
    path: str | Path | None = None,
    *,
    crew: CrewMaker | None = None,
    watcher: Watcher | None = None,
    any_version: bool = False,
    repair: bool = False,
) -> Store:
    """Run a study into a store, or continue an existing store.

    Finished chunks are kept. Missing chunks are computed, with the same results as in an
    uninterrupted run. If the study names a function, it is imported, also for a study read from a
    store: run only studies that you trust.

    **Arguments:**

    - `path`: folder of the store; `None` keeps the store in memory.
    - `crew`: where to compute; the default is all local devices.
    - `watcher`: progress callbacks.
    - `any_version`: whether to continue a store that other versions computed.
    - `repair`: whether to recompute damaged chunks, and restore damaged descriptions and
      coordinates.

    **Raises:** `StoreError` for a store that is damaged, in use or of another study; `OSError` if
    the store cannot be written; `SampleError` if the function of the ensemble raises;
    `Interrupted` after Ctrl-C or SIGTERM, once the chunks in flight are written.
    """
    path = None if path is None else Path(path)
    study = study.loaded()
    watcher = Watcher() if watcher is None else watcher
    with locked(path):
        store = _open(study, path, any_version, repair)
        tallies = _read_tallies(store)
        watcher.start(study, store, tallies)
        team = (local_devices() if crew is None else crew)(study, store, watcher.solved)
        try:
            _drive(study, store, team, tallies, watcher)
        except BaseException as error:
            team.close(wait=not isinstance(error, KeyboardInterrupt))
            raise
        team.close()
        store.describe(complete=True)
    return store


def _open(study: Study, path: Path | None, any_version: bool, repair: bool) -> Store:
    if path is None or not path.exists():
        chunk = default_chunk(study) if study.chunk is None else study.chunk
        check_cost(study, chunk, path)
        if path is None:
            return create(study, None, chunk, methods_of(study))
        # Write to a temporary folder and rename it, so that a store is never incomplete.
        temporary = path.with_name(f".{path.name}.new")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            with written(path):
                create(study, temporary, chunk, methods_of(study))
                temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
    if repair:
        restore_attributes(path)
    group = open_group(path)
    check_same(path, group, study, any_version=any_version)
    store = Store(study, group, path)
    if repair:
        repair_store(store)
    check_descriptions(store)
    store.check_coordinates()
    if study.samples < store.samples:
        raise StoreError(
            f"{path} has {store.samples} samples at each point; fewer, {study.samples}, cannot be "
            "asked for"
        )
    store.backend.clean()
    if study.samples > store.samples:
        check_cost(study, store.chunk, path)
        store.describe(complete=False)
    store.describe(**attributes_of(study))
    store.grow(study.samples)
    return store


def _read_tallies(store: Store) -> list[Tally]:
    """The statistics of the finished chunks of a store, for each sweep point."""
    tallies = []
    finished = store.finished()
    for point, counts in enumerate(finished):
        tally = Tally()
        for chunk, count in enumerate(counts):
            if count == 0:
                continue
            status = store.read("status", point, chunk, int(count))
            moments = _stored_moments(store, point, chunk, int(count))
            statuses = {s.name.lower(): int(np.sum(status == s)) for s in Status}
            tally.add(Outcome(moments, statuses))
        tallies.append(tally)
    return tallies


def is_precise(study: Study, moments: Moments) -> bool:
    """Whether a sweep point has reached the standard error of the study."""
    limits = []
    if study.standard_error is not None:
        limits.append(study.standard_error)
    if study.relative_error is not None:
        limits.append(study.relative_error * abs(moments.mean))
    return any(moments.standard_error <= limit for limit in limits)


Done = tuple[Task, Outcome]


class _Prefix:
    """Sorts the chunks of a point, which may arrive in any order.

    A point therefore ends after the same chunk on any number of devices, and only chunks before
    its end are marked.
    """

    def __init__(self):
        self._moments = Moments()
        self._next = 0
        self._early: dict[int, tuple[Moments, Done | None]] = {}
        self.enough: int | None = None
        """Number of chunks after which the point is precise enough; `None` before that."""

    def add(self, study: Study, chunk: int, moments: Moments, done: Done | None) -> list[Done]:
        """Add a complete chunk; returns the tasks that are next in order."""
        self._early[chunk] = moments, done
        ready = []
        while self._next in self._early and self.enough is None:
            moments, done = self._early.pop(self._next)
            self._moments = self._moments.merge(moments)
            self._next += 1
            if done is not None:
                ready.append(done)
            if is_precise(study, self._moments):
                self.enough = self._next
        return ready


def _tasks(study: Study, store: Store, tallies: Sequence[Tally]) -> Iterator[Task]:
    for point, counts in enumerate(store.finished()):
        for chunk, count in enumerate(counts):
            if tallies[point].enough is not None:
                break
            first = chunk * store.chunk
            stop = min(first + store.chunk, study.samples)
            if first + int(count) < stop:
                yield Task(point, chunk, first + int(count), stop)


def _drive(
    study: Study,
    store: Store,
    crew: AbstractCrew,
    tallies: list[Tally],
    watcher: Watcher,
) -> None:
    stops_early = study.standard_error is not None or study.relative_error is not None
    prefixes = _prefixes(study, store, tallies) if stops_early else []
    tasks = _tasks(study, store, tallies)
    in_flight = 0
    with _Interrupt() as interrupt:
        while True:
            while in_flight < crew.capacity and not interrupt.asked:
                task = next(tasks, None)
                if task is None:
                    break
                store.describe(complete=False)
                crew.submit(task)
                in_flight += 1
            if in_flight == 0:
                break
            for done in crew.collect():
                in_flight -= 1
                point = done[0].point
                ready = [done]
                if stops_early:
                    moments = _of_chunk(store, *done)
                    ready = prefixes[point].add(study, done[0].chunk, moments, done)
                    tallies[point].enough = prefixes[point].enough
                for task, outcome in ready:
                    store.mark(task, outcome.seals)
                    tallies[point].add(outcome)
                    watcher.finished(task, tallies[point])
        unfinished = interrupt.asked and next(tasks, None) is not None
    _erase_surplus(store, tallies)
    if unfinished:
        raise Interrupted


def _of_chunk(store: Store, task: Task, outcome: Outcome) -> Moments:
    first = task.chunk * store.chunk
    if task.start == first:
        return outcome.moments
    quantity = store.study.quantity
    status, values = (
        store.read_unmarked(name, task.point, task.chunk, task.stop - first)
        for name in (quantity.status_field, quantity.field)
    )
    return Moments.of(values[quantity.is_known(values, status)])


def _stored_moments(store: Store, point: int, chunk: int, count: int) -> Moments:
    quantity = store.study.quantity
    status = store.read(quantity.status_field, point, chunk, count)
    values = store.read(quantity.field, point, chunk, count)
    return Moments.of(values[quantity.is_known(values, status)])


def _prefixes(study: Study, store: Store, tallies: Sequence[Tally]) -> list[_Prefix]:
    """The sorted chunks of each point in the store; marks points that are precise enough."""
    prefixes = []
    for point, counts in enumerate(store.finished()):
        prefix = _Prefix()
        for chunk, count in enumerate(counts):
            whole = min(store.chunk, study.samples - chunk * store.chunk)
            if count == whole:
                moments = _stored_moments(store, point, chunk, int(count))
                prefix.add(study, chunk, moments, None)
        tallies[point].enough = prefix.enough
        prefixes.append(prefix)
    return prefixes


def _erase_surplus(store: Store, tallies: Sequence[Tally]) -> None:
    """Remove chunks computed after the one at which a point was precise enough.

    Chunks that an earlier run finished without this limit are kept.
    """
    finished = store.finished()
    for point, tally in enumerate(tallies):
        if tally.enough is not None:
            for chunk in range(tally.enough, store.num_chunks):
                if not finished[point, chunk] and store.holds(point, chunk):
                    store.erase(point, chunk)


class _Interrupt:
    """The first Ctrl-C stops a run after the chunks in flight; the second stops it at once.

    SIGTERM, which batch systems and `kill` send, has the same effect.
    """

    def __init__(self):
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "_Interrupt":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def _ask(self, number: int, frame: Any) -> None:
        del number, frame
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
