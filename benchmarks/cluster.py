"""A study on two workers against one, each of them pinned to one core.

    python benchmarks/cluster.py             # two million samples, three runs of each, in turns
    python benchmarks/cluster.py --quick     # few samples, one run of each
    python benchmarks/cluster.py --out FILE  # JSON

Reduced Gaussian states of width 200. Every run starts its own workers, which find what they
compile in a cache that a run before filled. The rate is taken between finished chunks in the
middle, without the first two and the last of each worker. CPU seconds are those of the workers,
with their start: they tell what a machine that does other things as well hides.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path

from _timing import Row, setup, show, write_json
from rich.console import Console

from jaxcond.study import Store, Study, Tally, Task, Watcher, run
from jaxcond.study.cluster import dask_cluster

WIDTH = 200


class Clock(Watcher):
    """When each chunk was finished."""

    def __init__(self):
        self.times: list[float] = []
        self.samples: list[int] = []

    def finished(self, task: Task, tally: Tally) -> None:
        self.times.append(time.perf_counter())
        self.samples.append(task.stop - task.start)

    def rate(self, num_workers: int) -> float:
        """Samples per second, without the first two chunks of a worker and the last of each."""
        first, last = 2 * num_workers, len(self.times) - num_workers
        return sum(self.samples[first + 1 : last + 1]) / (self.times[last] - self.times[first])


def _cpu_seconds() -> float:
    """Of the processes that this one started and that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(num_workers: int, samples: int, chunk: int) -> Row:
    study = Study(samples, {"width": WIDTH}, chunk=chunk)
    clock, before, start = Clock(), os.getloadavg()[0], time.perf_counter()
    allowed, spent = os.sched_getaffinity(0), _cpu_seconds()
    try:
        # Workers take their shares of the cores that this process may use when it starts them.
        os.sched_setaffinity(0, sorted(allowed)[:num_workers])
        with tempfile.TemporaryDirectory() as folder:
            store: Store = run(
                study, Path(folder) / "store", crew=_unpinned(num_workers, allowed), watcher=clock
            )
            assert int(store.finished().sum()) == samples
    finally:
        os.sched_setaffinity(0, allowed)
    return {
        "workers": num_workers,
        "samples/s": clock.rate(num_workers),
        "seconds in all": time.perf_counter() - start,
        "CPU seconds": _cpu_seconds() - spent,
        "load before": before,
        "load after": os.getloadavg()[0],
    }


def _unpinned(num_workers: int, allowed: set[int]):
    """Workers on their cores; the coordinator, which does little, where there is room."""
    make = dask_cluster(num_workers=num_workers)

    def made(*arguments):
        crew = make(*arguments)
        os.sched_setaffinity(0, allowed)
        return crew

    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few samples, one run of each")
    parser.add_argument("--out", type=Path, help="JSON file")
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        parser.error("two workers need two cores")
    samples, chunk, repeats = (200_000, 1 << 13, 1) if arguments.quick else (2_000_000, 1 << 16, 3)
    console = Console()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        os.environ["JAX_COMPILATION_CACHE_DIR"] = folder
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
        measure(1, 4 * chunk, chunk)
        for _ in range(repeats):
            for workers in (1, 2):
                rows.append(measure(workers, samples, chunk))
                console.print(rows[-1])
    one, two = (
        statistics.median(row["samples/s"] for row in rows if row["workers"] == workers)
        for workers in (1, 2)
    )
    found: dict[str, Row] = {
        "setup": setup(),
        "workers": {
            "width": WIDTH,
            "samples": samples,
            "chunk": chunk,
            "rows": rows,
            "median samples/s, one worker": one,
            "median samples/s, two workers": two,
            "ratio": two / one,
        },
    }
    show("workers", found["workers"], console)
    if arguments.out is not None:
        write_json(arguments.out, found)


if __name__ == "__main__":
    main()
