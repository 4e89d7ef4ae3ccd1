"""Studies on several processes or machines with Dask distributed (the optional extra `cluster`).

Workers compute chunks and write them directly into the store. Only the numbers of the chunks and
their moments are sent. The coordinator, which runs the study, alone marks chunks as finished.
"""

import functools
import logging
import multiprocessing
import os
import signal
import socket
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
from distributed import Client, Future, KilledWorker, LocalCluster, Worker, WorkerPlugin, wait
from distributed.security import Security

from .._threads import num_cores
from ._compute import Outcome
from ._config import Study
from ._run import AbstractCrew, CrewMaker, computed, place_of
from ._store import (
    Store,
    StoreError,
    Task,
    check_states,
    current_platform,
    open_group,
    versions,
)

# Seconds.
_CONNECT, _POLL, _NO_WORKER, _CLOSE = 15.0, 1.0, 60.0, 10.0
_RETRIES = 3
# One running and one waiting, so that a worker stays busy while the coordinator marks chunks.
_TASKS_PER_THREAD = 2
_logger = logging.getLogger("jaxcond")


# On a worker.


@dataclass(frozen=True)
class _Job:
    """The description of a study that each worker receives once.

    - `token`: identifies this run.
    - `path`, `digest`: path and digest of the store.
    - `study`: arguments of `Study`, pickled with cloudpickle to include functions of a script.
    - `versions`: versions of the coordinator.
    """

    token: str
    path: str
    digest: str
    study: bytes
    versions: tuple[tuple[str, str], ...]


_active: Counter[str] = Counter()
_lock = threading.Lock()


@functools.lru_cache(maxsize=4)
def _open(job: _Job) -> Store:
    """The store, opened once per worker process."""
    host, path = socket.gethostname(), Path(job.path)
    differences = _differences(dict(job.versions), versions())
    if differences:
        raise StoreError(
            f"A worker on {host} has other versions than the coordinator: {differences}."
        )
    if not path.exists():
        raise StoreError(
            f"A worker on {host} does not see the store {path}: workers and coordinator need a "
            "file system that they share."
        )
    try:
        keys = cloudpickle.loads(job.study)
    except Exception as error:
        raise ValueError(f"A worker on {host} cannot read the study: {error}") from error
    group = open_group(path)
    if group.attrs.get("configuration_hash") != job.digest:
        raise StoreError(f"A worker on {host} sees the store of another study at {path}.")
    study = Study(**keys)
    check_states(path, group, study)
    return Store(study, group, path)


def _work(job: _Job, task: Task) -> Outcome:
    with _lock:
        _active[job.token] += 1
    try:
        store = _open(job)
        values, outcome = computed(store.study, task)
        seals = store.write(task, values)
    finally:
        with _lock:
            _active[job.token] -= 1
    return replace(outcome, seals=seals)


def _num_active(token: str) -> int:
    with _lock:
        return _active[token]


def _survey() -> dict[str, str]:
    return {**versions(), "platform": current_platform()}


def _differences(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    """The versions that differ, as text."""
    return "; ".join(
        f"{name} {there.get(name)} there and {version} here"
        for name, version in here.items()
        if there.get(name) != version
    )


class _Share(WorkerPlugin):
    """Assigns each worker of a machine its own cores and one of the visible GPUs.

    The plugin starts with the worker and not through the scheduler, so that it is active before the
    first task, also if a lost worker restarts under the same name.
    """

    name = "jaxcond-share"

    def __init__(self, shares: Sequence[Sequence[int]]):
        self.shares = shares

    def setup(self, worker: Worker) -> None:
        """Set the affinity of all existing threads, on the main thread, before JAX counts cores."""
        place = int(worker.name)
        if hasattr(os, "sched_setaffinity"):
            for thread in _threads():
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(thread, self.shares[place % len(self.shares)])
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        if len(gpus) > 1:
            os.environ["CUDA_VISIBLE_DEVICES"] = gpus[place % len(gpus)]
        _ignore_interrupts()


def _threads() -> list[int]:
    with suppress(OSError):
        return [int(name) for name in os.listdir("/proc/self/task")]
    return [0]


def _ignore_interrupts() -> None:
    # Ctrl-C reaches all processes of a terminal; only the coordinator handles it.
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


# In the coordinator.


class Cluster(AbstractCrew):
    """The workers of a Dask cluster, with a few tasks queued per thread.

    **Arguments:** `client`: a connected client; `cluster`: a cluster to close at the end, if any.

    **Raises:** `StoreError` if the workers have other versions than this process, `ValueError` for
    a store in memory.
    """

    def __init__(
        self,
        study: Study,
        store: Store,
        solved: Callable[[int, int], None],
        client: Client,
        cluster: LocalCluster | None = None,
    ):
        self._path = _path_of(store)
        self._study, self._solved = study, solved
        # Annotated as if every call were asynchronous.
        self._client: Any = client
        self._cluster = cluster
        self._futures: dict[Future, Task] = {}
        self._job = _Job(
            token=uuid.uuid4().hex,
            path=str(self._path),
            digest=str(store.group.attrs["configuration_hash"]),
            study=_pickled(study),
            versions=tuple(versions().items()),
        )
        self._asked = self._seen = time.monotonic()
        self.capacity = 1
        self._count()
        platforms = self._check_workers()
        if len(platforms) == 1:
            store.describe(platform=platforms.pop())

    def _check_workers(self) -> set[str]:
        """Compare versions; returns the platforms of the workers."""
        platforms = set()
        for address, survey in self._client.run(_survey, on_error="return").items():
            if isinstance(survey, BaseException):
                raise StoreError(f"The worker at {address} cannot import jaxcond: {survey}")
            differences = _differences(dict(self._job.versions), survey)
            if differences:
                raise StoreError(
                    f"The worker at {address} has other versions than this process: {differences}."
                )
            platforms.add(survey["platform"])
        return platforms

    def _count(self) -> bool:
        """Count the workers; returns whether the capacity has grown."""
        before = self.capacity
        try:
            threads = sum(self._client.nthreads().values())
        except OSError as error:
            raise self._lost() from error
        self._asked = time.monotonic()
        if threads > 0:
            self._seen = self._asked
        elif self._asked - self._seen >= _NO_WORKER:
            address = self._client.scheduler_info()["address"]
            _logger.warning("No worker at %s for %.0f s; waiting for one.", address, _NO_WORKER)
            self._seen = self._asked
        self.capacity = max(1, _TASKS_PER_THREAD * threads)
        return self.capacity > before

    def _lost(self) -> StoreError:
        return StoreError(
            f"The Dask scheduler is gone. Finished chunks are kept: `jaxcond resume {self._path}` "
            "goes on."
        )

    def submit(self, task: Task) -> None:
        """Queue a task; Dask moves the tasks of a lost worker to another."""
        name = f"jaxcond-{self._job.token[:8]}-{task.point}-{task.start}"
        try:
            future = self._client.submit(
                _work, self._job, task, key=name, pure=False, retries=_RETRIES
            )
        except (OSError, RuntimeError) as error:
            raise self._lost() from error
        self._futures[future] = task

    def collect(self) -> list[tuple[Task, Outcome]]:
        """Wait for a finished task or for new workers; the list is empty for new workers."""
        while True:
            if time.monotonic() - self._asked >= _POLL and self._count():
                return []
            try:
                with self._client.as_current():
                    wait(list(self._futures), timeout=_POLL, return_when="FIRST_COMPLETED")
            except TimeoutError:
                continue
            except CancelledError as error:
                raise self._lost() from error
            # Return finished tasks before raising for failed tasks.
            done = [future for future in self._futures if future.status == "finished"]
            if done:
                return self._take(done)
            for future, task in self._futures.items():
                if future.done():
                    self._raise(future, task)

    def _take(self, done: list[Future]) -> list[tuple[Task, Outcome]]:
        try:
            outcomes = self._client.gather(done)
        except (CancelledError, OSError) as error:
            raise self._lost() from error
        finished = [
            (self._futures.pop(f), outcome) for f, outcome in zip(done, outcomes, strict=True)
        ]
        for task, _ in finished:
            self._solved(task.point, task.stop - task.start)
        return finished

    def _raise(self, future: Future, task: Task) -> None:
        place = place_of(self._study, task)
        kept = f"Finished chunks are kept: `jaxcond resume {self._path}` goes on."
        error: Any = future.exception()
        if isinstance(error, KilledWorker):
            raise StoreError(
                f"Every worker that was given {place} died, the last at "
                f"{error.last_worker.address}; too little memory is the common reason, and "
                f"smaller chunks need less. {kept}"
            ) from error
        if error is None or isinstance(error, CancelledError):
            raise self._lost()
        error.add_note(f"While a worker computed {place}. {kept}")
        raise error

    def close(self, *, wait: bool = True) -> None:
        """Cancel waiting tasks, wait for running tasks, and close the cluster of this run."""
        with _quiet():
            with suppress(Exception):
                if self._futures:
                    self._client.cancel(list(self._futures), force=True)
                while wait and self._futures and self._num_active():
                    time.sleep(0.1)
            self._futures.clear()
            _close(self._client, self._cluster)

    def _num_active(self) -> int:
        counts = self._client.run(_num_active, self._job.token, on_error="ignore")
        return sum(counts.values())


def _path_of(store: Store) -> Path:
    if store.path is None:
        raise ValueError(
            "A study on a cluster needs a store on a file system that all workers share; one in "
            "memory cannot be."
        )
    return store.path.absolute()


def _pickled(study: Study) -> bytes:
    """The pickled arguments of a study without loaded data, with absolute file paths."""
    keys = {field.name: getattr(study, field.name) for field in fields(study)}
    if "path" in study.ensemble:
        path = str(Path(study.ensemble["path"]).absolute())
        keys["ensemble"] = {**study.ensemble, "path": path}
    return cloudpickle.dumps(keys)


@contextmanager
def _quiet():
    """Silence Dask's loggers, which report every connection closed at the end."""
    loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client", "tornado")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _close(client: Client | None, cluster: LocalCluster | None) -> None:
    if client is not None:
        with suppress(Exception):
            client.close(timeout=_CLOSE)
    if cluster is not None:
        with suppress(Exception):
            cluster.close(timeout=_CLOSE)


def _start(num_workers: int) -> LocalCluster:
    """Start processes on this machine, each with its share of the available cores."""
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    else:
        cores = list(range(num_cores()))
    if num_workers <= len(cores):
        shares = [part.tolist() for part in np.array_split(cores, num_workers)]
    else:
        shares = [[core] for core in cores]
    # Workers use the same platform as this process.
    environment = {"JAX_PLATFORMS": "cpu"} if current_platform() == "cpu" else {}
    guard = (
        "The workers on this machine could not be started. In a script, what runs the study must "
        'stand under `if __name__ == "__main__":`, since every worker imports the script.'
    )
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(guard)
    try:
        return LocalCluster(
            n_workers=num_workers,
            threads_per_worker=1,
            processes=True,
            # No dashboard; Dask still opens a port, which can be any free one.
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"dashboard": False},
            silence_logs=logging.CRITICAL,
            # Dask derives its limit from the thread count and would kill workers that need more.
            memory_limit=0,
            plugins=(_Share(shares),),
            env=environment,
        )
    except (OSError, RuntimeError) as error:
        raise RuntimeError(guard) from error


def _connect(address: str, security: Security | None = None) -> Client:
    """A client of a scheduler, from the address or the scheduler file."""
    by_file = "://" not in address and (address.endswith(".json") or Path(address).is_file())
    if by_file and not Path(address).is_file():
        raise FileNotFoundError(f"There is no scheduler file {address}.")
    try:
        with _quiet():
            return Client(
                None if by_file else address,
                scheduler_file=address if by_file else None,
                timeout=_CONNECT,
                set_as_default=False,
                security=security,
            )
    except (OSError, ValueError) as error:
        raise OSError(
            f"No Dask scheduler answers at {address} within {_CONNECT:g} s: {error}"
        ) from error


def _security(ca: Path | None, certificate: Path | None, key: Path | None) -> Security | None:
    """TLS settings from these files; `None` without files, for Dask's own configuration."""
    files = {"ca": ca, "certificate": certificate, "key": key}
    if not any(files.values()):
        return None
    missing = [name for name, path in files.items() if path is None]
    if missing:
        raise ValueError(
            f"Argument `tls` takes the files of authority, certificate and key, but has no "
            f"{' and no '.join(missing)}."
        )
    for path in files.values():
        if path is not None and not path.is_file():
            raise FileNotFoundError(f"There is no file {path}.")
    return Security(
        tls_ca_file=str(ca),
        tls_client_cert=str(certificate),
        tls_client_key=str(key),
        require_encryption=True,
    )


def dask_cluster(
    address: str | None = None,
    *,
    num_workers: int | None = None,
    tls: tuple[Path | None, Path | None, Path | None] = (None, None, None),
) -> CrewMaker:
    """Compute with Dask distributed workers, on this machine or on others.

    Workers and this process must see the store at the same path and have the same versions. Another
    worker recomputes the chunks of a lost worker.

    **Arguments:**

    - `address`: address of a scheduler, as `tcp://host:8786`, or the name of its scheduler file.
    - `num_workers`: number of processes to start on this machine if no address is given, each with
      its own share of the cores; the default is one per core. A script that starts workers needs
      `if __name__ == "__main__":`, since every worker imports the script.
    - `tls`: PEM files of the certificate authority, the client certificate and its key, for an
      address that begins with `tls://`. By default Dask's configuration (`distributed.comm.tls`)
      gives these files.

    **Returns:** the argument `crew` of `run`.

    **Raises:** `ValueError` for arguments that exclude each other. The returned function raises
    `ValueError` for a store in memory, `OSError` if no scheduler answers, `StoreError` if workers
    have other versions, and `RuntimeError` if workers cannot be started.
    """
    if address is not None and num_workers is not None:
        raise ValueError(
            "Argument `num_workers` starts workers on this machine and excludes `address`."
        )
    security = _security(*tls)
    if security is not None and address is None:
        raise ValueError("Argument `tls` requires `address`.")
    if num_workers is not None and num_workers < 1:
        raise ValueError(f"Argument `num_workers` must be at least 1, but is {num_workers}.")

    def make(study: Study, store: Store, solved: Callable[[int, int], None]) -> AbstractCrew:
        _path_of(store)
        client: Client | None = None
        cluster: LocalCluster | None = None
        try:
            if address is None:
                cluster = _start(num_cores() if num_workers is None else num_workers)
                client = _connect(cluster.scheduler_address)
            else:
                client = _connect(address, security)
            return Cluster(study, store, solved, client, cluster)
        except BaseException:
            with _quiet():
                _close(client, cluster)
            raise

    return make
