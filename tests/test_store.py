import dataclasses
import errno
import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import filelock
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import xarray as xr
import zarr
import zarr.storage._local
from filelock import FileLock
from helpers import gaussian_states, random_state

import jaxcond as jc
from jaxcond.sampling import Draws, leading_entries
from jaxcond.study import (
    Damage,
    Interrupted,
    SampleError,
    Store,
    StoreError,
    Study,
    Task,
    Watcher,
    damages,
    open_store,
    open_study,
    restore_attributes,
    run_study,
    summarise,
)
from jaxcond.study import _store as store_module
from jaxcond.study import run_study as run
from jaxcond.study._compute import _sobol_seed, compute
from jaxcond.study._run import AbstractCrew
from jaxcond.study._store import (
    Kind,
    create,
    fields_of,
    locked,
    open_group,
    read_configuration,
)

SWEEP = {"width": [20, 50]}
# Two points of two whole chunks and a part of one.
KEYS = {"samples": 40, "chunk": 16, "seed": 3, "sweep": SWEEP}
BASIC = ("blowup_time", "lower", "upper", "error", "status", "num_steps", "stage")


def study(**changes):
    return Study(**(KEYS | changes))


def gaussian(p, q):
    """With arrays, as studies have them: so that programs are shared."""
    p, q, one = jnp.asarray(float(p)), jnp.asarray(float(q)), jnp.asarray(1.0)
    return jc.Gaussian(p, q, (one, one, one))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished store, which nothing changes."""
    path = tmp_path_factory.mktemp("whole") / "whole.zarr"
    run(study(), path)
    return path


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    path = tmp_path_factory.mktemp("extended") / "extended.zarr"
    run(study(samples=75), path)
    return path


@pytest.fixture
def copy(whole, tmp_path):
    path = tmp_path / "study.zarr"
    shutil.copytree(whole, path)
    return path


def contents(path):
    """All files of a store by name: chunks as they are, descriptions without the time."""
    found = {}
    for file in sorted(path.rglob("*")):
        if file.is_file():
            data = file.read_bytes()
            if file.suffix == ".json":
                data = json.loads(data)
                attributes = data.get("attributes", {}) if file.name == "zarr.json" else data
                for name in ("created", "configuration", "checksum"):
                    attributes.pop(name, None)
                data = json.dumps(data, sort_keys=True)
            found[str(file.relative_to(path))] = data
    return found


def assert_same(path, other):
    found, expected = contents(path), contents(other)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []
    with xr.open_zarr(path) as a, xr.open_zarr(other) as b:
        for name in b.variables:
            assert a[name].values.tobytes() == b[name].values.tobytes(), name


class Died(BaseException):
    """Ends a process where it stands."""


class Dies(Watcher):
    """A watcher that dies once some chunks are there, and remembers them all."""

    def __init__(self, after=math.inf):
        self.after, self.tasks = after, []

    def finished(self, task, tally):
        self.tasks.append(task)
        if len(self.tasks) == self.after:
            raise Died


class DyingDisk:
    """Zarr's writes to files: counts them, and fails from one of them on."""

    def __init__(self, monkeypatch, last=math.inf, failure=Died, partial=True):
        self.count, self.last, self.failure, self.partial = 0, last, failure, partial
        self._put = zarr.storage._local._put
        monkeypatch.setattr(zarr.storage._local, "_put", self)

    def __call__(self, path, value, exclusive=False):
        self.count += 1
        if self.count > self.last:
            if self.partial and path.parent.is_dir() and self.count == self.last + 1:
                path.with_suffix(".0123456789abcdef.partial").write_bytes(b"half")
            raise self.failure()
        return self._put(path, value, exclusive=exclusive)


def full_disk():
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def chunk_file(path, name, point=0, chunk=0):
    rest = "/0" if name == "entries" else ""
    if name == "marks":  # those of all points and chunks are in one file
        return path / "marks" / "c" / "0" / "0" / "0"
    return path / name / "c" / str(point) / f"{chunk}{rest}"


def mark_counts(data):
    """How many samples of each chunk are there, in a store as xarray gives it."""
    return data.marks.values[..., 0]


def flip(file):
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def one_line(caught):
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 500
    return told


# The form of the store.


def test_stores_read_without_the_package(whole):
    with xr.open_zarr(whole) as data:
        assert dict(data.sizes) == {"width": 2, "sample": 40, "chunk": 3, "mark": 8}
        np.testing.assert_array_equal(data.width, [20, 50])
        assert data.width.attrs["long_name"] == "width of all hidden layers"
        for name in BASIC:
            assert data[name].dims == ("width", "sample")
            assert data[name].attrs["long_name"]
            assert data[name].chunks == ((1, 1), (16, 16, 8))
        for name in ("blowup_time", "lower", "upper", "error"):
            assert data[name].dtype == np.float64
            assert data[name].attrs["units"] == "time of the effective model"
        assert data.status.dtype == data.stage.dtype == np.int8
        assert data.num_steps.dtype == np.int32
        assert data.status.attrs["flag_values"] == [-1, 0, 1, 2, 3, 4]
        assert data.status.attrs["flag_meanings"].split()[:3] == [
            "not_run", "converged", "no_blow_up"
        ]  # fmt: skip
        np.testing.assert_array_equal(mark_counts(data), [[16, 16, 8]] * 2)
        assert (data.status == 0).all()
        slack = 1e-14 * data.blowup_time
        assert (data.lower <= data.blowup_time + slack).all()
        assert (data.blowup_time <= data.upper + slack).all()
        attributes = data.attrs
    assert attributes["seed"] == 3
    assert attributes["samples"] == 40
    assert attributes["chunk"] == 16
    assert attributes["complete"] is True
    assert attributes["configuration_hash"] == study().digest()
    assert Study.from_dict(json.loads(attributes["configuration"])) == study()
    assert json.loads(attributes["versions"])["jax"] == jax.__version__
    assert attributes["platform"] == "cpu"
    assert json.loads(attributes["methods"])["12x12"]
    assert read_configuration(whole)[0] == study()
    assert not [file for file in whole.rglob("*") if file.suffix == ".partial"]
    assert oct(whole.stat().st_mode & 0o444) == oct(0o444)


def test_every_file_of_samples_has_a_checksum(whole):
    for file in whole.glob("*/zarr.json"):
        assert json.loads(file.read_text())["codecs"][-1]["name"] == "crc32c"


def test_zipped_axes_are_coordinates_of_the_points():
    zipped = study(sweep={"width": [20, 50], "kind": ["gaussian"] * 2}, combine="zip", samples=4)
    data = run(zipped).dataset()
    assert set(data.coords) == {"width", "kind"}
    assert data.blowup_time.dims == ("point", "sample")
    np.testing.assert_array_equal(data.width, [20, 50])
    assert list(data.kind.values) == ["gaussian", "gaussian"]


def test_no_sweep_leaves_the_samples_alone():
    data = run(study(sweep={}, samples=20)).dataset()
    assert dict(data.sizes) == {"sample": 20, "chunk": 2, "mark": 8}


# The samples.


def test_samples_are_those_of_the_ensemble_by_index(whole):
    with xr.open_zarr(whole) as data:
        for point, width in enumerate(SWEEP["width"]):
            with jax.default_device(jax.local_devices()[0]):
                found = jc.blowup_times(gaussian(width, width).draws(40, key=study().key(point)))
            here = data.isel(width=point)
            for name, field in zip(BASIC, ("time", *BASIC[1:]), strict=True):
                np.testing.assert_allclose(here[name], getattr(found, field), rtol=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 40, None])
def test_chunks_make_no_difference(whole, chunk):
    keys = {"samples": 5} if chunk == 1 else {}
    found = run(study(chunk=chunk, **keys)).dataset()
    with xr.open_zarr(whole) as data:
        for name in ("blowup_time", "lower", "upper", "status", "num_steps", "stage"):
            expected = data[name].isel(sample=slice(found.sizes["sample"]))
            np.testing.assert_allclose(found[name], expected, rtol=1e-12)


def test_the_precision_of_jax_makes_no_difference(whole, tmp_path):
    with jax.enable_x64(False):
        run(study(), tmp_path / "study.zarr")
    assert_same(tmp_path / "study.zarr", whole)


def test_a_store_in_memory_holds_the_same(whole):
    with xr.open_zarr(whole) as data:
        found = run(study()).dataset()
        for name in data.variables:
            assert found[name].values.tobytes() == data[name].values.tobytes()


def test_stores_are_streamed_by_chunks(whole):
    store = Store(study(), open_group(whole), whole)
    pieces = list(store.stream("blowup_time", 1))
    assert [piece.size for piece in pieces] == [16, 16, 8]
    with xr.open_zarr(whole) as data:
        np.testing.assert_array_equal(np.concatenate(pieces), data.blowup_time[1])


@pytest.mark.slow
def test_observables_of_reduced_states():
    names = ("energy", "norms", "gradient_norm", "entries")
    asked = study(sweep={}, ensemble={"p": 20, "q": 50}, observables=names, samples=20)
    data = run(asked).dataset()
    states = jax.vmap(Draws(gaussian(20, 50), asked.key(0), 12))(jnp.arange(20, dtype=jnp.uint32))
    field = jax.vmap(jc.vector_field)(states)
    squares = sum(jnp.sum(layer.reshape(20, -1) ** 2, axis=1) for layer in field.layers)
    expected = {
        "energy": jax.vmap(jc.energy)(states),
        "norm_a": jnp.linalg.norm(states.a[:, 0], axis=-1),
        "norm_c": jnp.linalg.norm(states.c[:, 0], axis=-1),
        "gradient_norm": jnp.sqrt(squares),
        "entries": leading_entries(states, 8),
    }
    for name, values in expected.items():
        np.testing.assert_allclose(data[name], values, rtol=1e-12, atol=1e-12)
        assert data[name].attrs["units"] == "1"
    assert data.entries.dims == ("sample", "entry")
    assert list(data.entry.values[:2]) == ["|a|", "|c|"]


@pytest.mark.slow
def test_observables_of_full_states_from_a_file(tmp_path):
    states = gaussian_states(11, 8, 3, 3)
    np.savez(tmp_path / "states.npz", a=states.a, b=states.b, c=states.c)
    asked = Study(
        samples=8,
        chunk=5,
        ensemble={"kind": "file", "path": tmp_path / "states.npz"},
        observables=("energy", "norm_b", "onset", "counts"),
        fractions=(0.5, 0.99),
    )
    path = tmp_path / "study.zarr"
    run(asked, path)
    with xr.open_zarr(path) as data:
        with jax.default_device(jax.local_devices()[0]):
            found = jc.blowup_times(states)
        np.testing.assert_allclose(data.blowup_time, found.time, rtol=1e-12)
        np.testing.assert_array_equal(data.status, found.status)
        np.testing.assert_allclose(data.energy, jax.vmap(jc.energy)(states), rtol=1e-12)
        norms = jnp.linalg.norm(states.b.reshape(8, -1), axis=1)
        np.testing.assert_allclose(data.norm_b, norms, rtol=1e-13)
        onset, times = data.onset.values, data.blowup_time.values
        assert (data.onset_status.values == jc.OnsetStatus.FOUND).all()
        np.testing.assert_allclose(onset + data.onset_time_left.values, times, rtol=1e-8)
        np.testing.assert_array_equal(data.fraction, [0.5, 0.99])
        # A point lies in the final stage exactly if its time is after the onset.
        later = times[:, None] * data.fraction.values > onset[:, None]
        assert later.any()
        assert not later.all()
        full = np.ones_like(later)
        for number in (1, 2, 3):
            found = data[f"positive_{number}"]
            assert found.dims == ("sample", "fraction")
            assert (data[f"undecided_{number}"] == 0).all()
            full &= found.values == found.values.max()
        np.testing.assert_array_equal(full, later)
        assert (data.counts_status == 0).all()
    # The file may have moved: what is in it counts.
    shutil.move(tmp_path / "states.npz", tmp_path / "moved.npz")
    moved = Study(
        **(vars_of(asked) | {"ensemble": {"kind": "file", "path": tmp_path / "moved.npz"}})
    )
    watcher = Dies()
    run(moved, path, watcher=watcher)
    assert watcher.tasks == []


def vars_of(asked):
    return {name: getattr(asked, name) for name in Study.__dataclass_fields__}


def test_functions_that_have_no_name_can_be_continued(tmp_path, monkeypatch):
    def local(key, p, q):
        return jnp.ones(p), jnp.ones((p, q)), jnp.ones(q)

    def made_up(study, task, progress=None):
        fields, outcome = compute(other, task)
        return fields, outcome

    other = study(sweep={})
    monkeypatch.setattr(sys.modules["jaxcond.study._run"], "compute", made_up)
    asked = study(sweep={}, ensemble={"kind": "function", "function": local, "width": 3})
    path = tmp_path / "study.zarr"
    with pytest.raises(Died):
        run(asked, path, watcher=Dies(1))
    assert run(asked, path).finished().sum() == 40
    described, _ = read_configuration(path)
    with pytest.raises(ValueError, match=r"Key `ensemble\.function`: .* cannot be imported"):
        described.loaded()


def test_a_study_from_a_store_is_described_and_loaded_when_asked(tmp_path):
    np.savez(tmp_path / "states.npz", **vars_of_states(gaussian_states(11, 3, 4, 3)))
    ensemble = {"kind": "file", "path": tmp_path / "states.npz"}
    for asked in (
        Study(samples=3, ensemble=ensemble),
        Study(ensemble={"kind": "function", "function": no_number, "width": 5}),
    ):
        path = tmp_path / f"{asked.ensemble['kind']}.zarr"
        create(asked, path, 4, {})
        described, _ = read_configuration(path)
        for use in (described.identity, described.digest, lambda d=described: d.stored):
            with pytest.raises(ValueError, match=r"`study\.loaded\(\)`"):
                use()
        assert described.loaded().digest() == asked.digest()
        assert described.loaded().loaded().ensemble == described.ensemble
    (tmp_path / "states.npz").unlink()
    described, _ = read_configuration(tmp_path / "file.zarr")
    with pytest.raises(OSError, match=r"states\.npz"):
        described.loaded()


def test_stores_of_an_older_format_are_refused(copy, tmp_path):
    old = tmp_path / "old.zarr"
    zarr.create_group(old, zarr_format=2, attributes=dict(zarr.open_group(copy).attrs))
    for read in (read_configuration, summarise, open_study):
        with pytest.raises(StoreError, match="is no Zarr store"):
            read(old)


def vars_of_states(states):
    return {"a": states.a, "b": states.b, "c": states.c}


def no_number(key, p, q):
    """Initial states whose middle layer is NaN: none of them has a blow-up time."""
    return jnp.ones(p), jnp.full((p, q), jnp.nan), jnp.ones(q)


def test_a_study_without_any_blow_up_time_is_finished(tmp_path):
    asked = Study(samples=64, chunk=32, observables=("energy",),
                  ensemble={"kind": "function", "function": no_number, "width": 5})  # fmt: skip
    path = tmp_path / "study.zarr"
    with pytest.raises(Died):
        run(asked, path, watcher=Dies(1))
    store = run(asked, path)
    assert damages(store) == []
    assert store.finished().tolist() == [[32, 32]]
    assert store.group.attrs["complete"]
    assert np.isnan(np.concatenate(list(store.stream("blowup_time", 0)))).all()
    assert summarise(path).points[0].statuses["invalid_input"] == 64
    # Written by another run, also into the second half of a chunk.
    longer = dataclasses.replace(asked, samples=80)
    run(longer, path)
    assert damages(run(dataclasses.replace(asked, samples=96), path)) == []


@pytest.mark.parametrize("value", ["fill value", 0])
@pytest.mark.parametrize("reopened", [False, True])
def test_chunks_of_one_value_are_written(tmp_path, reopened, value):
    asked = Study(samples=8, chunk=4, observables=("energy", "norms", "entries"))
    path = tmp_path / "study.zarr"
    store = create(asked, path, 4, {})
    if reopened:
        store = Store(asked, open_group(path), path)
    task, fields = Task(0, 1, 4, 8), {}
    for field in fields_of(asked):
        array = store.array(field.name)
        # Statuses that are not of any sample would be refused.
        one = array.fill_value if value == "fill value" and not field.flags else 0
        fields[field.name] = np.full((4, *array.shape[1:]), one, array.dtype)
    store.mark(task, store.write(task, fields))
    again = Store(asked, open_group(path), path)
    for name, values in fields.items():
        np.testing.assert_array_equal(again.read(name, 0, 1, 4), values)


@pytest.mark.slow
def test_single_precision(tmp_path):
    path = tmp_path / "study.zarr"
    run(study(precision="float32", sweep={}, samples=20), path)
    with jax.enable_x64(False), jax.default_device(jax.local_devices()[0]):
        found = jc.blowup_times(gaussian(200, 200).draws(20, key=study().key(0)))
    with xr.open_zarr(path) as data:
        assert data.blowup_time.dtype == np.float32
        np.testing.assert_array_equal(data.blowup_time, found.time)


@pytest.mark.slow
def test_quasi_monte_carlo(tmp_path):
    asked = study(sampling="sobol", replicates=4, samples=40)
    data = run(asked).dataset()
    for point, width in enumerate(SWEEP["width"]):
        with jax.default_device(jax.local_devices()[0]):
            seed = _sobol_seed(asked, point)
            samples = gaussian(width, width).quasi(
                40, key=asked.key(point), seed=seed, num_replicates=4
            )
            found = jc.blowup_times(samples)
        np.testing.assert_allclose(data.blowup_time[point], found.time, rtol=1e-12)
    assert _sobol_seed(asked, 0) != _sobol_seed(asked, 1)


# Resumption.


@pytest.mark.parametrize("after", [1, 2, 5, 6])
def test_what_is_finished_stays_and_the_rest_follows(whole, tmp_path, after):
    path = tmp_path / "study.zarr"
    first, second, third = Dies(after), Dies(), Dies()
    with pytest.raises(Died):
        run(study(), path, watcher=first)
    with xr.open_zarr(path) as data:
        assert not data.attrs["complete"]
        assert mark_counts(data).sum() == sum(t.stop - t.start for t in first.tasks)
        assert np.isnan(data.blowup_time.values).sum() == (data.status.values == -1).sum()
    run(study(), path, watcher=second)
    assert len(second.tasks) == 6 - after
    assert_same(path, whole)
    before = contents(path)
    run(study(), path, watcher=third)
    assert third.tasks == []
    assert contents(path) == before


def test_a_chunk_that_fails_is_done_again(whole, tmp_path, monkeypatch):
    path = tmp_path / "study.zarr"
    module = sys.modules["jaxcond.study._run"]
    for failing in (Task(0, 1, 16, 32), Task(1, 2, 32, 40)):

        def fails(study, task, progress=None, failing=failing):
            if task == failing:
                raise RuntimeError("device lost")
            return compute(study, task, progress)

        monkeypatch.setattr(module, "compute", fails)
        with pytest.raises(RuntimeError, match="device lost"):
            run(study(), path)
    monkeypatch.setattr(module, "compute", compute)
    run(study(), path)
    assert_same(path, whole)


def test_raising_the_samples_extends_a_study(copy, extended):
    watcher = Dies()
    run(study(samples=75), copy, watcher=watcher)
    assert watcher.tasks[0] == Task(0, 2, 40, 48)
    assert len(watcher.tasks) == 6
    assert_same(copy, extended)
    assert read_configuration(copy)[0].samples == 75
    with pytest.raises(StoreError, match="has 75 samples at each point; fewer, 40, cannot be"):
        run(study(), copy)


def test_the_last_chunk_grows_in_steps(copy, extended):
    for samples in (41, 45, 48, 49, 70, 75):
        run(study(samples=samples), copy)
    assert_same(copy, extended)


def test_a_disk_that_dies_at_any_write(extended, tmp_path, monkeypatch):
    # First a study of 40 samples, then of 75: whatever write is the last one, going on ends alike.
    def both(path):
        run(study(), path)
        run(study(samples=75), path)

    with monkeypatch.context() as patch:
        disk = DyingDisk(patch)
        both(tmp_path / "counted.zarr")
        total = disk.count
    assert total > 100
    chosen = np.random.default_rng(5).choice(total, 7, replace=False)
    for last in sorted({*map(int, chosen), 0, 1, total - 1}):
        path = tmp_path / f"{last}.zarr"
        with monkeypatch.context() as patch:
            DyingDisk(patch, last)
            with pytest.raises(Died):
                both(path)
        if path.exists():
            with xr.open_zarr(path) as data:  # consistent and readable all the time
                done = data.status.values >= 0
                assert np.isfinite(data.blowup_time.values[done]).all() or not done.all()
                size = data.sizes["sample"]
                assert size in (40, 75)
            asked, _ = read_configuration(path)
            run(asked, path)  # as `jaxcond resume` does
            if asked.samples == 40:
                assert read_configuration(path)[0].samples == 40
        run(study(samples=75), path)
        assert_same(path, extended)
        shutil.rmtree(path)


def test_growing_dies_at_any_write(whole, extended, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        disk = DyingDisk(patch)
        path = tmp_path / "counted.zarr"
        shutil.copytree(whole, path)
        with pytest.raises(Died):
            run(study(samples=75), path, watcher=Dies(1))
        total = disk.count
    for last in range(0, total, 4):
        path = tmp_path / f"{last}.zarr"
        shutil.copytree(whole, path)
        with monkeypatch.context() as patch:
            DyingDisk(patch, last)
            with pytest.raises(Died):
                run(study(samples=75), path)
        with xr.open_zarr(path) as data, xr.open_zarr(whole) as before:
            size = before.sizes["sample"]
            np.testing.assert_array_equal(data.blowup_time[:, :size], before.blowup_time)
        asked, _ = read_configuration(path)
        run(asked, path)
        run(study(samples=75), path)
        assert_same(path, extended)
        shutil.rmtree(path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_after_the_chunk_in_flight(whole, tmp_path, number):
    class Interrupts(Dies):
        def finished(self, task, tally):
            super().finished(task, tally)
            if len(self.tasks) == 2:
                signal.raise_signal(number)

    path, watcher, before = tmp_path / "study.zarr", Interrupts(), signal.getsignal(number)
    with pytest.raises(Interrupted):
        run(study(), path, watcher=watcher)
    assert signal.getsignal(number) is before
    assert [file.name for file in tmp_path.iterdir()] == ["study.zarr"]
    with xr.open_zarr(path) as data:
        assert (mark_counts(data) > 0).sum() == len(watcher.tasks) == 2
        assert not data.attrs["complete"]
    run(study(), path)
    assert_same(path, whole)


def test_ctrl_c_while_a_chunk_is_computed(whole, tmp_path):
    class Interrupts(Dies):
        def solved(self, point, count):
            os.kill(os.getpid(), signal.SIGINT)

    path, watcher = tmp_path / "study.zarr", Interrupts()
    with pytest.raises(Interrupted):
        run(study(), path, watcher=watcher)
    assert len(watcher.tasks) == 1
    run(study(), path)
    assert_same(path, whole)


def test_ctrl_c_at_the_last_chunk_is_no_interruption(whole, tmp_path):
    class Interrupts(Dies):
        def finished(self, task, tally):
            super().finished(task, tally)
            if len(self.tasks) == 6:
                signal.raise_signal(signal.SIGINT)

    run(study(), tmp_path / "study.zarr", watcher=Interrupts())
    assert_same(tmp_path / "study.zarr", whole)


def test_a_second_ctrl_c_ends_at_once(whole, tmp_path):
    class Insists(Watcher):
        def finished(self, task, tally):
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    path, before = tmp_path / "study.zarr", signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as caught:
        run(study(), path, watcher=Insists())
    assert not isinstance(caught.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is before
    run(study(), path)
    assert_same(path, whole)


# Early ends.


class Jumbled(AbstractCrew):
    """Computes tasks in the order of an unfair lot."""

    capacity = 5

    def __init__(self, asked, store, seed):
        self.study, self.store = asked, store
        self.random, self.waiting = np.random.default_rng(seed), []

    def submit(self, task):
        self.waiting.append(task)

    def collect(self):
        task = self.waiting.pop(self.random.integers(len(self.waiting)))
        with jax.default_device(jax.local_devices()[0]):
            fields, outcome = compute(self.study, task)
        seals = self.store.write(task, fields)
        return [(task, dataclasses.replace(outcome, seals=seals))]

    def close(self, *, wait=True):
        pass


def jumbled(seed):
    return lambda asked, store, solved: Jumbled(asked, store, seed)


# With this seed every point ends after more than one chunk.
EARLY = {"samples": 250, "chunk": 8, "relative_error": 0.02, "seed": 7}


@pytest.fixture(scope="module")
def early(tmp_path_factory):
    path = tmp_path_factory.mktemp("early") / "early.zarr"
    run(study(**EARLY), path)
    return path


def test_a_point_ends_once_it_is_precise_enough(early):
    with xr.open_zarr(early) as data:
        finished = mark_counts(data)
        for point, marks in enumerate(finished):
            ended = int(np.count_nonzero(marks))
            assert 1 < ended < marks.size
            assert (marks[:ended] == 8).all()
            times = data.blowup_time.values[point]
            assert np.isfinite(times[: 8 * ended]).all()
            assert np.isnan(times[8 * ended :]).all()

            def error(count, times=times):
                return np.std(times[:count], ddof=1) / math.sqrt(count) / np.mean(times[:count])

            assert error(8 * ended) <= 0.02
            assert all(error(8 * chunks) > 0.02 for chunks in range(1, ended))
        assert data.attrs["complete"]


def test_an_absolute_error_ends_a_point_as_well():
    data = run(study(**(EARLY | {"relative_error": None, "standard_error": 0.004}))).dataset()
    counts = (data.status >= 0).sum("sample").values
    errors = (data.blowup_time.std("sample", ddof=1) / np.sqrt(counts)).values
    assert (errors <= 0.004).all()
    assert (counts < 250).all()


@pytest.mark.parametrize("seed", range(3))
def test_the_end_does_not_depend_on_who_is_first(early, tmp_path, seed):
    path, watcher = tmp_path / "study.zarr", Dies()
    run(study(**EARLY), path, crew=jumbled(seed), watcher=watcher)
    assert_same(path, early)
    with xr.open_zarr(path) as data:
        assert len(watcher.tasks) == (mark_counts(data) > 0).sum()


@pytest.mark.parametrize("after", [1, 4, 6])
def test_the_end_does_not_depend_on_interruptions(early, tmp_path, after):
    path = tmp_path / "study.zarr"
    with pytest.raises(Died):
        run(study(**EARLY), path, crew=jumbled(after), watcher=Dies(after))
    run(study(**EARLY), path, crew=jumbled(after + 1))
    assert_same(path, early)


def test_the_order_of_a_study_without_end_makes_no_difference(whole, tmp_path):
    run(study(), tmp_path / "study.zarr", crew=jumbled(0))
    assert_same(tmp_path / "study.zarr", whole)


def test_a_point_that_has_ended_is_not_extended_by_samples(early, tmp_path):
    path, watcher = tmp_path / "study.zarr", Dies()
    shutil.copytree(early, path)
    run(study(**(EARLY | {"samples": 400})), path, watcher=watcher)
    assert watcher.tasks == []
    run(study(**EARLY | {"samples": 400, "relative_error": None}), path, watcher=watcher)
    assert watcher.tasks
    with xr.open_zarr(path) as data:
        assert np.isfinite(data.blowup_time.values).all()


def test_an_error_asked_for_later_loses_no_samples(copy, whole):
    watcher = Dies()
    run(study(standard_error=10.0), copy, watcher=watcher)
    assert watcher.tasks == []
    run(study(), copy)
    assert_same(copy, whole)


# Refusals.


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 4}, "`seed` is 3 in the store and 4 here"),
        ({"rtol": 1e-8}, "`rtol` is default in the store and 1e-08 here"),
        ({"ensemble": {"scale": 2.0}}, "`ensemble.scale` is default in the store and 2.0 here"),
        ({"sweep": {"width": [20, 60]}}, "`sweep.width` is [20, 50] in the store and [20, 60] her"),
        ({"sweep": {}}, "`sweep.width` is [20, 50] in the store and default here"),
        ({"observables": ("energy",)}, "`observables` is [] in the store and ['energy'] here"),
        ({"precision": "float32"}, "`precision` is float64 in the store and float32 here"),
        ({"chunk": 8}, "is cut into chunks of 16, not 8"),
        ({"samples": 39}, "has 40 samples at each point; fewer, 39, cannot be asked for"),
    ],
)
def test_stores_of_another_study_are_refused_with_what_differs(copy, whole, changes, message):
    with pytest.raises(StoreError, match=re.escape(message)) as caught:
        run(study(**changes), copy)
    assert str(copy) in one_line(caught)
    assert_same(copy, whole)


def test_stores_of_other_versions_are_refused(copy, whole):
    group = open_group(copy)
    stored = json.loads(group.attrs["versions"])
    Store(study(), group, copy).describe(versions=json.dumps(stored | {"jax": "0.0.1"}))
    message = f"other versions: jax 0.0.1 there and {jax.__version__} here"
    with pytest.raises(StoreError, match=re.escape(message)) as caught:
        run(study(), copy)
    assert "--any-version" in one_line(caught)
    run(study(), copy, any_version=True)


def test_without_chunks_those_of_the_store_are_taken(copy, extended):
    run(study(chunk=None, samples=75), copy)
    assert_same(copy, extended)


def test_there_is_no_store(tmp_path):
    with pytest.raises(StoreError, match="there is no store"):
        read_configuration(tmp_path / "no.zarr")


def test_a_plain_folder_and_a_file_are_no_stores(tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "download.partial").write_text("of no concern to us")
    file.write_text("text")
    for path in (folder, file):
        with pytest.raises(StoreError, match="is no Zarr store") as caught:
            run(study(), path)
        assert str(path) in one_line(caught)
    assert (folder / "download.partial").exists()
    with pytest.raises(OSError, match="file"):
        run(study(), file / "study.zarr")


def test_a_zarr_group_of_something_else_is_no_store(tmp_path):
    zarr.create_group(tmp_path / "other.zarr", attributes={"title": "other"})
    with pytest.raises(StoreError, match="no store of a study: attribute `configuration` is missi"):
        run(study(), tmp_path / "other.zarr")


# Two at once.


def test_a_second_one_at_work_is_refused(copy, whole, tmp_path):
    alias = tmp_path / "alias.zarr"
    alias.symlink_to(copy)
    with locked(copy):
        for path in (copy, alias):
            with pytest.raises(StoreError, match="another process is working on"):
                run(study(), path)
    run(study(), copy)
    assert_same(copy, whole)


def test_the_lock_goes_with_its_process(copy):
    code = (
        "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]);"
        "lock.acquire(); print('locked', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, f"{copy.resolve()}.lock"], stdout=subprocess.PIPE
    )
    with other:
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(StoreError, match="another process is working on"):
            run(study(), copy)
        other.kill()
    run(study(), copy)


def test_a_lock_that_was_removed_before_it_was_taken_does_not_count(copy, monkeypatch):
    class Removed(filelock.FileLock):
        def acquire(self, *args, **kwargs):
            super().acquire(*args, **kwargs)
            Path(self.lock_file).unlink()

    monkeypatch.setattr("filelock.FileLock", Removed)
    with pytest.raises(StoreError, match="another process is just leaving"):
        run(study(), copy)


def _two_widths(key, p, q):
    if p == 7:
        raise ArithmeticError("no state of width 7")
    return random_state(key, 1, p, q)


def test_a_function_that_raises_is_named_with_the_samples():
    asked = study(ensemble={"kind": "function", "function": _two_widths}, sweep={"width": [3, 7]})
    with pytest.raises(SampleError) as raised:
        run(asked)
    told = str(raised.value)
    assert told.startswith(f"{__name__}:_two_widths failed at line ")
    assert f"of {__file__} on samples 0 to 15 at width=7: ArithmeticError: no state of" in told
    assert isinstance(raised.value.__cause__, ArithmeticError)


def test_a_store_can_be_read_while_it_is_written(tmp_path):
    path, seen = tmp_path / "study.zarr", []

    class Reads(Watcher):
        def finished(self, task, tally):
            with xr.open_zarr(path) as data:
                seen.append(int((data.status.values >= 0).sum()))

    run(study(), path, watcher=Reads())
    assert seen == [16, 32, 40, 56, 72, 80]


# Damage.


def damage_byte(file):
    flip(file)


def damage_cut(file):
    file.write_bytes(file.read_bytes()[:10])


def damage_empty(file):
    file.write_bytes(b"")


def damage_zeros(file):
    file.write_bytes(bytes(4))


def damage_missing(file):
    file.unlink()


DAMAGES = [damage_byte, damage_cut, damage_empty, damage_zeros, damage_missing]


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", BASIC)
def test_damaged_chunks_are_named_and_repaired(copy, whole, name, damage):
    damage(chunk_file(copy, name, 1, 2))
    if damage is not damage_missing:
        with xr.open_zarr(copy) as data, pytest.raises((ValueError, RuntimeError)):
            data[name].load()
    store = Store(study(), open_group(copy), copy)
    told = f"variable `{name}` is (damaged|missing) at samples 32 to 39 at width=50"
    with pytest.raises(StoreError, match=told) as caught:
        store.read(name, 1, 2, 8)
    assert "--repair" in one_line(caught)
    assert [(point, chunk) for d in damages(store) for point, chunk in [(d.point, d.chunk)]] == [
        (1, 2)
    ]
    if name in ("status", "blowup_time"):
        with pytest.raises(StoreError, match=told):
            run(study(), copy)
    watcher = Dies()
    run(study(), copy, repair=True, watcher=watcher)
    assert watcher.tasks == [Task(1, 2, 32, 40)]
    assert_same(copy, whole)


def test_holes_in_finished_chunks_are_repaired(copy, whole):
    store = Store(study(), open_group(copy), copy)
    store.array("status")[0, 3] = -1
    assert [(point, chunk) for d in damages(store) for point, chunk in [(d.point, d.chunk)]] == [
        (0, 0)
    ]
    run(study(), copy, repair=True)
    assert_same(copy, whole)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_marks_are_named_and_repaired(copy, whole, damage):
    damage(chunk_file(copy, "marks"))
    watcher = Dies()
    for read in (lambda: run(study(), copy), lambda: summarise(copy)):
        with pytest.raises(StoreError, match="variable `marks` is damaged at chunk 0 at width=20"):
            read()
    run(study(), copy, repair=True, watcher=watcher)
    assert [task.point for task in watcher.tasks] == [0, 0, 0, 1, 1, 1]
    assert_same(copy, whole)


def test_a_repair_that_is_interrupted_goes_on(copy, whole):
    for chunk in (0, 2):
        flip(chunk_file(copy, "lower", 0, chunk))
    with pytest.raises(Died):
        run(study(), copy, repair=True, watcher=Dies(1))
    with xr.open_zarr(copy) as data:
        assert not data.attrs["complete"]
    run(study(), copy)
    assert_same(copy, whole)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_chunk_is_not_extended(copy, extended, damage):
    damage(chunk_file(copy, "lower", 0, 2))
    with pytest.raises(StoreError, match=r"variable `lower` is .* at samples 32 to 39 at width=20"):
        run(study(samples=75), copy)
    run(study(samples=75), copy, repair=True)
    assert_same(copy, extended)


def test_damaged_files_without_a_mark_are_written_anew(whole, tmp_path):
    path = tmp_path / "study.zarr"
    with pytest.raises(Died):
        run(study(), path, watcher=Dies(2))
    for name in BASIC:
        for chunk in (1, 2):
            file = chunk_file(path, name, 1, chunk)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(b"damaged")
    run(study(), path)
    assert_same(path, whole)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_coordinates_are_named_and_repaired(copy, whole, damage):
    damage(copy / "width" / "c" / "0")
    with pytest.raises(StoreError, match="coordinate `width` is damaged") as caught:
        run(study(), copy)
    assert "--repair" in one_line(caught)
    with pytest.raises(StoreError, match="coordinate `width` is damaged"):
        Store(study(), open_group(copy), copy).dataset()
    run(study(), copy, repair=True)
    assert_same(copy, whole)


@pytest.mark.parametrize("name", [*BASIC, "marks", "width"])
@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"zarr_format": 3}', None])
def test_damaged_descriptions_of_variables_are_named(copy, name, text):
    file = copy / name / "zarr.json"
    if text is None:
        file.unlink()
    else:
        file.write_text(text)
    message = f"the description of variable `{name}` is missing or damaged"
    with pytest.raises(StoreError, match=message) as caught:
        run(study(), copy)
    assert str(copy) in one_line(caught)


@pytest.mark.parametrize(
    ("there", "damaged"),
    [('"float64"', '"float32"'), ("16", "17"), ('"shape": [\n    2', '"shape": [\n    3')],
)
def test_descriptions_that_are_wrong_are_named(copy, there, damaged):
    file = copy / "lower" / "zarr.json"
    text = file.read_text()
    assert there in text
    file.write_text(text.replace(there, damaged, 1))
    with pytest.raises(StoreError, match="the description of variable `lower` is missing or dama"):
        run(study(), copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"zarr_format": 3}', b"\xff", None])
def test_a_damaged_root_is_named(copy, text):
    file = copy / "zarr.json"
    if text is None:
        file.unlink()
    else:
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(StoreError, match=r"is no (Zarr )?store") as caught:
        run(study(), copy)
    assert str(copy) in one_line(caught)


@pytest.mark.parametrize("name", ["configuration", "identity", "versions"])
@pytest.mark.parametrize("value", ["{", "", "[]", 5])
def test_damaged_attributes_are_named(copy, name, value):
    file = copy / "zarr.json"
    data = json.loads(file.read_text())
    data["attributes"][name] = value
    file.write_text(json.dumps(data))
    with pytest.raises(StoreError, match=f"attribute `{name}` is damaged") as caught:
        read_configuration(copy) if name == "configuration" else run(study(), copy)
    assert str(copy) in one_line(caught)


@pytest.mark.parametrize("name", ["configuration", "identity", "versions", "samples", "chunk"])
def test_missing_attributes_are_named(copy, name):
    file = copy / "zarr.json"
    data = json.loads(file.read_text())
    del data["attributes"][name]
    file.write_text(json.dumps(data))
    with pytest.raises(StoreError, match=f"attribute `{name}` is missing"):
        run(study(), copy)


def swapped(first, second):
    a, b = first.read_bytes(), second.read_bytes()
    assert a != b
    first.write_bytes(b)
    second.write_bytes(a)


def edited(path, name, where, value):
    """Values as Zarr writes them, with a checksum that holds."""
    zarr.open_group(path, mode="r+")[name][where] = value


def altered(point, chunk, name):
    return Damage(point, chunk, name, Kind.ALTERED)


WRONG = {
    "swapped within a point": (
        lambda path, _: swapped(*(chunk_file(path, "blowup_time", 1, c) for c in (0, 1))),
        [altered(1, 0, "blowup_time"), altered(1, 1, "blowup_time")],
    ),
    "swapped between points": (
        lambda path, _: swapped(*(chunk_file(path, "upper", p, 1) for p in (0, 1))),
        [altered(0, 1, "upper"), altered(1, 1, "upper")],
    ),
    "of a store of fewer samples": (
        lambda path, old: shutil.copy(*(chunk_file(p, "error", 1, 2) for p in (old, path))),
        [altered(1, 2, "error")],
    ),
    "a time edited": (
        lambda path, _: edited(path, "blowup_time", (0, 20), 0.3),
        [altered(0, 1, "blowup_time")],
    ),
    "a count of steps edited": (
        lambda path, _: edited(path, "num_steps", (0, 20), 1000),
        [altered(0, 1, "num_steps")],
    ),
    "a status edited": (
        lambda path, _: edited(path, "status", (1, 3), 99),
        [altered(1, 0, "status")],
    ),
    "a digest edited": (
        lambda path, _: edited(path, "marks", (1, 0, 5), 1),
        [altered(1, 0, "status")],
    ),
    "a mark zero": (
        lambda path, _: edited(path, "marks", (1, 0), 0),
        [altered(1, 0, "marks")],
    ),
    **{
        f"a mark of {count}": (
            lambda path, _, count=count: edited(path, "marks", (0, 2, 0), count),
            [altered(0, 2, "marks")],
        )
        for count in (0, 51, 20, -5, 10**6)
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def shorter(tmp_path_factory):
    path = tmp_path_factory.mktemp("shorter") / "shorter.zarr"
    run(study(samples=37), path)
    return path


@pytest.mark.parametrize("kind", WRONG)
def test_whole_chunks_that_are_wrong_are_named_and_repaired(copy, whole, shorter, kind):
    strike, expected = WRONG[kind]
    strike(copy, shorter)
    assert damages(open_store(copy)) == expected
    if expected[0].variable != "num_steps":  # of which a summary tells nothing
        with pytest.raises(
            StoreError, match=f"variable `{expected[0].variable}` is damaged"
        ) as caught:
            summarise(copy)
        assert caught.value.damage == expected[0]
        assert "--repair" in one_line(caught)
    run(study(), copy, repair=True)
    assert damages(open_store(copy)) == []
    assert_same(copy, whole)


def test_a_mark_of_fewer_samples_is_no_mark(copy, whole):
    edited(copy, "marks", (0, 2, 0), 5)
    assert {damage.variable for damage in damages(open_store(copy))} == set(BASIC)
    with pytest.raises(StoreError, match="`blowup_time` is damaged"):
        summarise(copy)
    run(study(), copy, repair=True)
    assert_same(copy, whole)


@pytest.mark.parametrize(("name", "value"), [("upper", 0.0), ("lower", 9.0), ("status", 99)])
def test_values_without_a_meaning_are_refused_also_with_their_digest(tmp_path, name, value):
    asked = Study(samples=4, chunk=4)
    store = create(asked, tmp_path / "study.zarr", 4, {})
    fields = {field.name: np.ones(4) for field in fields_of(asked)} | {"status": np.zeros(4)}
    store.mark(Task(0, 0, 0, 4), store.write(Task(0, 0, 0, 4), fields))
    assert damages(store) == []
    fields[name] = np.array([*fields[name][:3], value])
    store.mark(Task(0, 0, 0, 4), store.write(Task(0, 0, 0, 4), fields))
    variable = "status" if name == "status" else "blowup_time"
    assert damages(store) == [Damage(0, 0, variable, Kind.ILLEGAL)]
    with pytest.raises(StoreError, match="its values have no meaning"):
        summarise(store)


@pytest.mark.parametrize("name", ["chunk", "samples", "complete", "configuration", "identity",
                                  "configuration_hash", "versions", "methods", "seed", "created",
                                  "format"])  # fmt: skip
@pytest.mark.parametrize("removed", [True, False])
def test_attributes_that_were_edited_are_refused_and_restored(copy, whole, name, removed):
    file = copy / "zarr.json"
    before = file.read_bytes()
    data = json.loads(before)
    values = {"chunk": 7, "samples": 30, "complete": False, "seed": 4, "format": 1,
              "configuration": json.dumps(study(seed=4).to_dict())}  # fmt: skip
    if removed:
        del data["attributes"][name]
    else:
        data["attributes"][name] = values.get(name, "{}")
    file.write_text(json.dumps(data))
    for read in (open_store, summarise, open_study, lambda path: run(study(), path)):
        with pytest.raises(StoreError, match="attribute") as caught:
            read(copy)
        assert "Traceback" not in one_line(caught)
    run(study(), copy, repair=True)
    assert json.loads(file.read_bytes()) == json.loads(before)
    assert_same(copy, whole)


@pytest.mark.parametrize("name", [".", "lower", "marks", "width"])
@pytest.mark.parametrize("text", ["{", "[]", '{"zarr_format": 3}', "folder", None])
def test_descriptions_are_restored(copy, whole, name, text):
    file = copy / name / "zarr.json"
    before = file.read_bytes()
    file.unlink()
    if text == "folder":
        file.mkdir()
    elif text is not None:
        file.write_text(text)
    restore_attributes(copy)
    if name != ".":
        assert altered(None, None, name) in damages(Store(*read_configuration(copy), copy))
    run(study(), copy, repair=True)
    assert json.loads(file.read_bytes()) == json.loads(before)
    assert_same(copy, whole)


def test_what_cannot_be_restored_is_said(copy):
    for name in ("zarr.json", "marks/description.json"):
        (copy / name).write_text("{")
    with pytest.raises(
        StoreError, match=r"the copy of the attributes, marks/description\.json, is"
    ):
        run(study(), copy, repair=True)


def test_a_damaged_copy_of_the_attributes_is_written_again(copy, whole):
    file = copy / "marks" / "description.json"
    file.write_text(file.read_text().replace('"seed": 3', '"seed": 4'))
    assert damages(open_store(copy)) == [altered(None, None, "marks/description.json")]
    run(study(), copy, repair=True)
    assert damages(open_store(copy)) == []
    assert_same(copy, whole)


@pytest.mark.parametrize("place", ["lower/c/1/2", "marks/c/0/0/0", "width/c/0"])
def test_a_folder_in_the_place_of_a_file_is_replaced(copy, whole, place):
    (copy / place).unlink()
    (copy / place / "inner").mkdir(parents=True)
    run(study(), copy, repair=True)
    assert_same(copy, whole)


def test_a_folder_in_the_place_of_a_chunk_that_is_not_marked_is_replaced(whole, tmp_path):
    path = tmp_path / "study.zarr"
    with pytest.raises(Died):
        run(study(), path, watcher=Dies(2))
    chunk_file(path, "upper", 1, 2).mkdir(parents=True)
    with pytest.raises(StoreError, match="cannot be written"):
        run(study(), path)
    run(study(), path, repair=True)
    assert_same(path, whole)


def test_a_missing_coordinate_is_noticed(copy, whole):
    shutil.rmtree(copy / "width")
    for read in (open_store, summarise, open_study, lambda path: run(study(), path)):
        with pytest.raises(StoreError, match=r"`width` is (damaged or missing|missing or damaged)"):
            read(copy)
    run(study(), copy, repair=True)
    assert_same(copy, whole)


@pytest.mark.parametrize(
    ("name", "hint"), [("study.toml", "; `jaxcond study .*study.toml` runs"), ("file", "folder$")]
)
def test_a_file_is_no_store(tmp_path, name, hint):
    (tmp_path / name).write_text("samples = 10")
    for read in (open_store, summarise, lambda path: run(study(), path)):
        with pytest.raises(StoreError, match=f"is no Zarr store: it is a file.*{hint}"):
            read(tmp_path / name)


def test_stores_of_an_earlier_form_are_refused(copy):
    store = open_store(copy)
    store.describe(format=None)
    with pytest.raises(StoreError, match="is of format 1, not 2, which this version"):
        open_store(copy)


def test_marks_of_many_points_are_opened_in_few_reads(tmp_path, monkeypatch):
    asked = Study(samples=2, chunk=1, sweep={"width": list(range(10, 910))})
    create(asked, tmp_path / "study.zarr", 1, {})
    reads, get = [], zarr.storage._local._get
    monkeypatch.setattr(
        zarr.storage._local, "_get", lambda path, *rest: reads.append(path) or get(path, *rest)
    )
    assert open_store(tmp_path / "study.zarr").finished().shape == (900, 2)
    assert 0 < len([path for path in reads if "marks" in path.parts]) < 20


# Disks.


@pytest.mark.parametrize("last", [0, 10, 28, 30, 37, 45])
def test_a_full_disk_is_told_and_loses_nothing(whole, tmp_path, monkeypatch, last):
    path = tmp_path / "study.zarr"
    with monkeypatch.context() as patch:
        DyingDisk(patch, last, full_disk, partial=False)
        with pytest.raises(
            StoreError, match="cannot be written: No space left on device"
        ) as caught:
            run(study(), path)
    assert str(path) in one_line(caught)
    assert not path.exists() or not list(path.rglob("*.partial"))
    assert not list(tmp_path.glob(".*new"))
    done = 0
    if path.exists():
        with xr.open_zarr(path) as data:
            done = int((mark_counts(data) > 0).sum())
            for point, chunk in zip(*np.nonzero(mark_counts(data)), strict=True):
                count = mark_counts(data)[point, chunk]
                times = data.blowup_time.values[point, 16 * chunk : 16 * chunk + count]
                assert np.isfinite(times).all()
    watcher = Dies()
    run(study(), path, watcher=watcher)
    assert len(watcher.tasks) == 6 - done
    assert_same(path, whole)


def test_a_disk_that_is_really_full(whole, tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(mount)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with pytest.raises(OSError, match="No space left on device"):
            run(study(samples=4000, chunk=100), mount / "study.zarr")
        kept = shutil.copytree(mount / "study.zarr", tmp_path / "study.zarr")
    finally:
        subprocess.run(["umount", str(mount)], check=True)
    with xr.open_zarr(kept) as data:
        done = int(mark_counts(data).sum())
        assert done > 0
        with xr.open_zarr(whole) as expected:
            times = data.blowup_time.values[0, :40]
            np.testing.assert_array_equal(times, expected.blowup_time.values[0])
    assert run(study(samples=4000, chunk=100), kept).finished().sum() == 8000


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.EIO])
def test_places_that_cannot_be_written_are_told(tmp_path, monkeypatch, code):
    path = tmp_path / "study.zarr"
    DyingDisk(monkeypatch, 0, lambda: OSError(code, os.strerror(code)))
    with pytest.raises(
        StoreError, match=re.escape(f"{path} cannot be written: {os.strerror(code)}")
    ):
        run(study(), path)


def test_folders_that_cannot_be_made_are_told():
    with pytest.raises(OSError, match="/proc"):
        run(study(), Path("/proc/none/study.zarr"))


# Processes and devices.


SCRIPT = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
from jaxcond.study import Study, Watcher, run_study as run

class Tells(Watcher):
    def finished(self, task, tally):
        print(task.chunk, flush=True)

{before}
run(Study(**{keys}), sys.argv[1], watcher=Tells())
"""


def script(tmp_path, keys, before=""):
    file = tmp_path / "script.py"
    file.write_text(textwrap.dedent(SCRIPT).format(keys=keys, before=before))
    return file


@pytest.mark.slow
def test_devices_make_no_difference(whole, tmp_path):
    file = script(tmp_path, KEYS, "assert len(jax.local_devices()) == 2")
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    path = tmp_path / "study.zarr"
    subprocess.run([sys.executable, file, path], env=env, check=True)
    assert contents(path).keys() == contents(whole).keys()
    with xr.open_zarr(path) as data, xr.open_zarr(whole) as expected:
        for name in expected.variables:
            np.testing.assert_allclose(data[name], expected[name], rtol=1e-12)


@pytest.mark.slow
def test_kills_at_random_moments(tmp_path):
    keys = KEYS | {"samples": 6000, "chunk": 1000}
    file, random = script(tmp_path, keys), np.random.default_rng()
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    path = tmp_path / "killed.zarr"
    for _ in range(3):
        with subprocess.Popen(
            [sys.executable, file, path], env=env, stdout=subprocess.PIPE
        ) as process:
            for _ in range(int(random.integers(1, 4))):
                process.stdout.readline()
            time.sleep(float(random.uniform(0, 0.1)))
            process.kill()
    with xr.open_zarr(path) as data:
        assert 0 < (mark_counts(data) > 0).sum() <= 12
    assert not FileLock(f"{path}.lock").is_locked
    run_study(Study(**keys), path)
    run_study(Study(**keys), tmp_path / "whole.zarr")
    assert_same(path, tmp_path / "whole.zarr")
    assert store_module.versions()["jax"] == jax.__version__
