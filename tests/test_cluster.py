"""Studies on a Dask cluster: two workers for the whole file, since each compiles for itself."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import zarr
from helpers import gaussian_states, random_state

from jaxcond._threads import num_cores
from jaxcond.study import SampleError, Store, StoreError, Study, Watcher, versions
from jaxcond.study import run_study as run
from jaxcond.study._store import create

distributed = pytest.importorskip("distributed")
from jaxcond.study import cluster  # noqa: E402
from jaxcond.study.cluster import dask_cluster  # noqa: E402

# Connections that are cut when workers are killed or a loop ends are collected without a farewell.
pytestmark = [
    pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:.*tornado.*:pytest.PytestUnraisableExceptionWarning"),
]
STUDY = Study(600, sweep={"width": [10, 100]}, chunk=128, seed=3)
# Cores per process change how samples are batched, and with it rounding.
RTOL = 1e-12
FIELDS = ("blowup_time", "lower", "upper")


def raises_at(key, p, q):
    """An ensemble's function that fails on one width."""
    if p == 7:
        raise ArithmeticError("no state of width 7")
    return random_state(key, 1, p, q)


def dies(job, task):
    os._exit(1)


def test_a_worker_refuses_other_states_at_the_same_path(tmp_path):
    states = tmp_path / "states.npz"

    def save(seed):
        drawn = gaussian_states(seed, 4, 4, 3)
        np.savez(states, a=drawn.a, b=drawn.b, c=drawn.c)

    save(1)
    study = Study(samples=4, ensemble={"kind": "file", "path": states})
    store = create(study, tmp_path / "s.zarr", 4, {})
    job = cluster._Job(
        token="",
        path=str(store.path),
        digest=study.digest(),
        study=cluster._pickled(study),
        versions=tuple(versions().items()),
    )
    save(2)
    with pytest.raises(StoreError, match=f"{states} holds other states than"):
        cluster._open(job)
    save(1)
    assert cluster._open(job).study.digest() == study.digest()


def same(store: Store, other: Store) -> None:
    found, expected = store.dataset(), other.dataset()
    np.testing.assert_array_equal(store.finished(), other.finished())
    for name in ("status", "stage"):
        np.testing.assert_array_equal(found[name], expected[name])
    for name in FIELDS:
        np.testing.assert_allclose(found[name], expected[name], rtol=RTOL, atol=0)


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """Of processes that find in a cache what another has compiled, and this file as a module."""
    folders = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    return {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
        "PYTHONPATH": os.pathsep.join(folders),
    }


@pytest.fixture(scope="module")
def alone(environment, tmp_path_factory):
    """The study in one process, on all its cores."""
    path = tmp_path_factory.mktemp("alone") / "store"
    code = "import jaxcond as jc, test_cluster; jc.run_study(test_cluster.STUDY, sys.argv[1])"
    command = [sys.executable, "-c", "import sys; " + code, path]
    subprocess.run(command, env=os.environ | environment, check=True)
    return Store(STUDY, zarr.open_group(path, mode="r"), path)


@pytest.fixture(scope="module")
def client(environment):
    """Two workers, as `dask_cluster` starts them."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        started = cluster._start(2)
        found = distributed.Client(started, set_as_default=False)
        yield found
        with cluster._quiet():
            cluster._close(found, started)


def address_of(client):
    return client.scheduler.address


class Killer(Watcher):
    """Kills a worker when the first task is done."""

    def __init__(self, client):
        self.client, self.killed, self.count = client, None, 0

    def solved(self, point, count):
        self.count += count

    def finished(self, task, tally):
        if self.killed is None:
            self.killed = min(self.client.run(os.getpid).values())
            os.kill(self.killed, signal.SIGKILL)


@pytest.mark.slow
def test_two_workers_find_what_one_process_finds(client, alone, tmp_path):
    told = []

    class Listener(Watcher):
        def solved(self, point, count):
            told.append((point, count))

    store = run(
        STUDY, tmp_path / "store", crew=dask_cluster(address_of(client)), watcher=Listener()
    )
    same(store, alone)
    assert store.group.attrs["complete"]
    for point in range(2):
        assert sum(count for at, count in told if at == point) == STUDY.samples
    # The scheduler and its workers are not ours to end.
    assert len(client.nthreads()) == 2


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no affinity on this platform")
def test_workers_share_the_cores_also_when_started_again(client):
    allowed = sorted(os.sched_getaffinity(0))

    def shares():
        return list(client.run(os.sched_getaffinity, 0).values())

    def whole():
        found = shares()
        assert list(client.run(num_cores).values()) == [len(share) for share in found]
        if len(allowed) > 1:
            assert sorted(core for share in found for core in share) == allowed

    whole()
    before = set(client.run(os.getpid).values())
    os.kill(min(before), signal.SIGKILL)
    deadline = time.monotonic() + 60
    while len(set(client.run(os.getpid, on_error="ignore").values()) - {min(before)}) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert set(client.run(os.getpid).values()) != before
    whole()


@pytest.mark.slow
def test_a_killed_worker_changes_nothing(client, alone, tmp_path):
    killer = Killer(client)
    store = run(STUDY, tmp_path / "store", crew=dask_cluster(address_of(client)), watcher=killer)
    assert killer.killed is not None
    assert killer.count == 2 * STUDY.samples
    same(store, alone)


@pytest.mark.slow
def test_an_error_in_a_task_is_told_and_the_rest_is_kept(client, tmp_path):
    ensemble = {"kind": "function", "function": "test_cluster:raises_at"}
    study = Study(8, ensemble, {"width": [3, 7]}, chunk=4)
    path = tmp_path / "store"
    finished = []

    class Listener(Watcher):
        def finished(self, task, tally):
            finished.append(task)

    with pytest.raises(
        SampleError, match=r"raises_at failed .*ArithmeticError: .* width 7"
    ) as raised:
        run(study, path, crew=dask_cluster(address_of(client)), watcher=Listener())
    note = "\n".join(raised.value.__notes__)
    assert "width=7" in note
    assert f"jaxcond resume {path}" in note
    kept = {(task.point, task.chunk) for task in finished}
    with pytest.raises(SampleError):
        run(study, path, crew=dask_cluster(address_of(client)))
    marks = Store(study, zarr.open_group(path, mode="r"), path).finished()
    assert all(marks[point, chunk] == 4 for point, chunk in kept)
    assert (marks[1] == 0).all()


@pytest.mark.slow
def test_other_versions_are_refused(client, tmp_path, monkeypatch):
    here = cluster.versions()
    monkeypatch.setattr(cluster, "versions", lambda: {**here, "jaxlib": "0.0.1"})
    with pytest.raises(StoreError, match=f"jaxlib {here['jaxlib']} there and 0.0.1 here"):
        run(STUDY, tmp_path / "store", crew=dask_cluster(address_of(client)))
    # Those who come later look themselves.
    monkeypatch.setattr(cluster.Cluster, "_check_workers", lambda self: set())
    with pytest.raises(StoreError, match="has other versions than the coordinator: jaxlib"):
        run(STUDY, tmp_path / "other", crew=dask_cluster(address_of(client)))


def test_no_scheduler(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT", 0.5)
    with pytest.raises(OSError, match=r"No Dask scheduler answers at tcp://127.0.0.1:9"):
        run(STUDY, tmp_path / "store", crew=dask_cluster("tcp://127.0.0.1:9"))
    with pytest.raises(FileNotFoundError, match=r"no scheduler file nowhere\.json"):
        run(STUDY, tmp_path / "store", crew=dask_cluster("nowhere.json"))


def test_a_store_in_memory_is_refused():
    before = threading.active_count()
    with pytest.raises(ValueError, match="in memory"):
        run(STUDY, crew=dask_cluster(num_workers=2))
    assert threading.active_count() == before


def test_arguments():
    with pytest.raises(ValueError, match="`num_workers` must be at least 1, but is 0"):
        dask_cluster(num_workers=0)
    with pytest.raises(ValueError, match="excludes `address`"):
        dask_cluster("tcp://host:8786", num_workers=2)


@pytest.mark.slow
def test_a_task_that_kills_its_workers_is_told(client, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "_work", dies)
    # Not one after the other.
    monkeypatch.setattr(client.cluster.scheduler, "allowed_failures", 0)
    with pytest.raises(StoreError, match=r"given samples .* at width=.* died.*`jaxcond resume"):
        run(STUDY, tmp_path / "store", crew=dask_cluster(address_of(client)))
