"""The records of a study: an xarray Dataset on Zarr v3, written chunk by chunk.

Dimensions are the sweep's axes and `sample`; `finished` tells how many samples of every chunk are
there, and is written after them. A file is replaced at once or not at all (Zarr's local store
renames), and carries a checksum: a killed process leaves what it had finished and nothing half
written. `xr.open_zarr` reads a store without this package.
"""

import contextlib
import datetime
import importlib.metadata
import json
import platform
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import jax
import numpy as np
import xarray as xr
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.storage import LocalStore, MemoryStore

from .._threads import chosen_device
from ..blowup import Status
from ._axes import AXES
from ._config import Study
from ._functions import function_name
from ._observables import OBSERVABLES, Field, entry_labels
from ._trust import SEAL, seal

FINISHED = "finished"
_TIME_FIELDS = (
    Field("blowup_time", "blow-up time T*"),
    Field("lower", "lower end of the bracket of T*"),
    Field("upper", "upper end of the bracket of T*"),
    Field("error", "estimate of the numerical error of T*"),
    Field(
        "status",
        "outcome of the sample",
        "int8",
        flags=tuple(status.name.lower() for status in Status),
    ),
    Field("num_steps", "Taylor expansions or solver steps", "int32"),
    Field("stage", "which of the methods settled the sample", "int8"),
)
_TIMES = ("blowup_time", "lower", "upper", "error", "onset", "onset_time_left")
# Files that hold the marks of so many chunks: neither a file for each chunk nor one for all.
_MARKS = 256
# What has a say in the numbers: a store is continued with these versions only.
_VERSIONS = ("jaxcond", "jax", "jaxlib", "diffrax", "equinox", "numpy", "scipy")
# What reading raises for a file whose checksum or content is wrong.
_UNREADABLE = (ValueError, RuntimeError)


# Without these attributes, and of these types, a group is no store of a study.
_ATTRIBUTES = {
    "configuration": str,
    "identity": str,
    "versions": str,
    "methods": str,
    "samples": int,
    "chunk": int,
}


class StoreError(OSError):
    """A store that is missing, damaged, in use, or of another configuration."""


@dataclass(frozen=True)
class Task:
    """Samples `start` to `stop` of a sweep point, within one chunk."""

    point: int
    chunk: int
    start: int
    stop: int


def fields_of(study: Study) -> tuple[Field, ...]:
    """The variables of a study's store, besides `finished`."""
    return _TIME_FIELDS + observed_fields(study)


def observed_fields(study: Study) -> tuple[Field, ...]:
    """The variables of the observables that a study asks for."""
    return tuple(f for name in study.observables for f in OBSERVABLES[name].fields)


def versions() -> dict[str, str]:
    """The versions of what computes the samples."""
    return {name: importlib.metadata.version(name) for name in _VERSIONS}


def _codecs() -> list[Any]:
    # Random digits do not compress; what is padding does at any level.
    return [ZstdCodec(level=1), Crc32cCodec()]


class Store:
    """The Zarr group of a study.

    **Arguments:** `study`; `group`, opened; `path`, `None` for one in memory.
    """

    def __init__(self, study: Study, group: zarr.Group, path: Path | None):
        self.study = study
        self.group = group
        self.path = path
        self.shape = tuple(study.dims.values())
        self.chunk: int = int(group.attrs["chunk"])  # pyright: ignore[reportArgumentType]
        self._arrays: dict[str, Any] = {}

    def array(self, name: str) -> Any:
        """A variable, a `zarr.Array`.

        **Raises:** `StoreError` if its description is missing or damaged.
        """
        if name not in self._arrays:
            try:
                # Zarr forgets this with every opening, and would then not write a chunk that holds
                # the fill value only: of blow-up times, NaN.
                found: Any = self.group[name]
                found = found.with_config({"write_empty_chunks": True})
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise _undescribed(self.path, name) from error
            self._arrays[name] = found
        return self._arrays[name]

    @property
    def samples(self) -> int:
        """Samples per sweep point that the store has room for."""
        return int(self.group.attrs["samples"])  # pyright: ignore[reportArgumentType]

    @property
    def num_chunks(self) -> int:
        """Chunks of each sweep point."""
        return self.array(FINISHED).shape[-1]

    # Writing.

    def clean(self) -> None:
        """Remove what a killed process was writing."""
        if self.path is not None:
            for leftover in self.path.rglob("*.partial"):
                leftover.unlink(missing_ok=True)

    def write(self, task: Task, fields: Mapping[str, np.ndarray]) -> None:
        """Write the samples of a task; they count only once they are marked."""
        first = task.chunk * self.chunk
        where = (*self.study.position(task.point), slice(first, task.stop))
        for name, values in fields.items():
            array = self.array(name)
            if task.start > first:
                # Read here, for Zarr would take a file that is missing for one of no samples.
                head = self.read(name, task.point, task.chunk, task.start - first)
                values = np.concatenate([head, values])
            with written(self.path):
                array[where] = values.astype(array.dtype)

    def mark(self, task: Task) -> None:
        """Say that the samples of a chunk are there, up to the end of a task."""
        self._set_mark(task.point, task.chunk, task.stop - task.chunk * self.chunk)

    def _set_mark(self, point: int, chunk: int, count: int) -> None:
        where = (*self.study.position(point), chunk)
        try:
            with written(self.path):
                self.array(FINISHED)[where] = count
        except _UNREADABLE as error:  # the file that the mark is in is read first
            raise StoreError(_damaged(self.path, FINISHED, "some marks")) from error

    def erase(self, point: int, chunk: int) -> None:
        """Make the samples of a chunk unknown again."""
        self._set_mark(point, chunk, 0)
        start, stop = chunk * self.chunk, min((chunk + 1) * self.chunk, self.samples)
        for field in fields_of(self.study):
            array = self.array(field.name)
            if self.path is not None:
                self._file(field.name, point, chunk).unlink(missing_ok=True)
            else:
                array[(*self.study.position(point), slice(start, stop))] = array.fill_value

    def grow(self, samples: int) -> None:
        """Make room for more samples at every sweep point.

        What the attributes say comes first: of a process that is killed here, the next one goes on
        to enlarge the store, which reads as before until then.
        """
        self.describe(samples=samples)
        with written(self.path):
            for field in fields_of(self.study):
                array = self.array(field.name)
                if array.shape[len(self.shape)] < samples:
                    rest = array.shape[len(self.shape) + 1 :]
                    array.resize((*self.shape, samples, *rest))
            marks = self.array(FINISHED)
            if marks.shape[-1] < -(-samples // self.chunk):
                marks.resize((*self.shape, -(-samples // self.chunk)))
            _consolidate(self.group)

    def describe(self, **attributes: Any) -> None:
        """Set attributes of the store."""
        if any(self.group.attrs.get(name) != value for name, value in attributes.items()):
            with written(self.path):
                # As one file, together with the descriptions of the variables that are in it.
                group = zarr.open_group(self.group.store, mode="r+", zarr_format=3)
                group.attrs.update(attributes)
            self.group = _open(self.group.store)

    # Reading.

    def widths(self, point: int) -> tuple[int, int]:
        """The widths p and q at a sweep point.

        **Raises:** `StoreError` if the store does not tell those of states from a file.
        """
        kind, settings = self.study.settings[point]
        if kind != "file":
            return settings.p, settings.q
        try:
            (shape,) = json.loads(str(self.group.attrs["methods"]))
            p, q = map(int, shape.split("x"))
        except (ValueError, TypeError, AttributeError) as error:
            raise StoreError(f"{self.path}: attribute `methods` is damaged") from error
        return p, q

    def finished(self) -> np.ndarray:
        """How many samples of each chunk are there, of shape (points, chunks).

        **Raises:** `StoreError` if a file of marks is damaged.
        """
        return self._read_marks(...).reshape(len(self.study.points), -1)

    def finished_at(self, point: int) -> np.ndarray:
        """How many samples of each chunk of one sweep point are there.

        **Raises:** `StoreError` if a file of marks is damaged.
        """
        return self._read_marks(self.study.position(point))

    def _read_marks(self, where: Any) -> np.ndarray:
        try:
            return np.asarray(self.array(FINISHED)[where])
        except _UNREADABLE as error:
            raise StoreError(_damaged(self.path, FINISHED, "some marks")) from error

    def read(self, name: str, point: int, chunk: int, count: int, *, start: int = 0) -> np.ndarray:
        """Samples `start` to `count` of a chunk.

        **Raises:** `StoreError` that names the place if the file is missing or damaged.
        """
        first = chunk * self.chunk
        where = (*self.study.position(point), slice(first + start, first + count))
        place = f"samples {first} to {first + count - 1}"
        if self.study.points[point]:
            place += f" at {self.study.name(point)}"
        if self.path is not None and not self._file(name, point, chunk).is_file():
            raise StoreError(_damaged(self.path, name, place, "missing"))
        try:
            return np.asarray(self.array(name)[where])
        except _UNREADABLE as error:
            raise StoreError(_damaged(self.path, name, place)) from error

    def _file(self, name: str, point: int, chunk: int) -> Path:
        assert self.path is not None
        array = self.array(name)
        rest = (0,) * (array.ndim - len(self.shape) - 1)
        return (
            self.path
            / name
            / array.metadata.encode_chunk_key((*self.study.position(point), chunk, *rest))
        )

    def holds(self, point: int, chunk: int) -> bool:
        """Whether there is a file for a chunk, marked or not."""
        if self.path is not None:
            return self._file("status", point, chunk).is_file()
        first = chunk * self.chunk
        where = (*self.study.position(point), slice(first, first + self.chunk))
        return bool(np.any(np.asarray(self.array("status")[where]) >= 0))

    def stream(self, name: str, point: int) -> Iterator[np.ndarray]:
        """All finished samples of a sweep point, a chunk at a time."""
        for chunk, count in enumerate(self.finished_at(point)):
            if count:
                yield self.read(name, point, chunk, int(count))

    def damaged(self) -> list[tuple[int, int, str]]:
        """Finished chunks that cannot be read: sweep point, chunk, and what is wrong."""
        found = []
        for point, counts in enumerate(self._marks_or_none()):
            for chunk, count in enumerate(counts):
                if count < 0:
                    found.append((point, chunk, _damaged(self.path, FINISHED, "a mark")))
                    continue
                for field in fields_of(self.study) if count else ():
                    try:
                        values = self.read(field.name, point, chunk, int(count))
                    except StoreError as error:
                        found.append((point, chunk, str(error)))
                        break
                    if field.name == "status" and np.any(values < 0):
                        place = f"samples from {chunk * self.chunk}"
                        found.append((point, chunk, _damaged(self.path, "status", place)))
                        break
        return found

    def _marks_or_none(self) -> np.ndarray:
        """As `finished`, with -1 where a mark cannot be read."""
        marks = np.full((len(self.study.points), self.num_chunks), -1)
        array = self.array(FINISHED)
        for point in range(len(marks)):
            for first in range(0, self.num_chunks, _MARKS):
                where = (*self.study.position(point), slice(first, first + _MARKS))
                with contextlib.suppress(*_UNREADABLE):
                    marks[point, first : first + _MARKS] = array[where]
        return marks

    def remove_marks(self, point: int, chunk: int) -> None:
        """Forget marks that cannot be read, and with them the chunks that share their file."""
        if self.path is not None:
            self._file(FINISHED, point, chunk // _MARKS).unlink(missing_ok=True)

    def dataset(self) -> xr.Dataset:
        """The store as `xr.open_zarr` gives it, chunks read when asked for.

        **Raises:** `StoreError` if a coordinate is damaged.
        """
        self.check_coordinates()
        source = self.group.store if self.path is None else self.path
        return xr.open_zarr(source, consolidated=False, zarr_format=3)

    # What does not depend on the samples.

    def check_descriptions(self) -> None:
        """Raise `StoreError` for a variable that is not described as this study's must be."""
        for field in fields_of(self.study):
            array, more = self.array(field.name), _more(field, self.study)
            expected = (_dtype(field, self.study), (*self._ones(), self.chunk, *more))
            rest = array.shape[: len(self.shape)] + array.shape[len(self.shape) + 1 :]
            if (array.dtype, array.chunks, rest) != (*expected, self.shape + more):
                raise _undescribed(self.path, field.name)
        for name in _coordinates(self.study):
            self.array(name)
        marks = self.array(FINISHED)
        if (marks.chunks, marks.shape[:-1]) != ((*self._ones(), _MARKS), self.shape):
            raise _undescribed(self.path, FINISHED)

    def _ones(self) -> tuple[int, ...]:
        return tuple(1 for _ in self.shape)

    def check_coordinates(self, *, repair: bool = False) -> None:
        """Read the coordinates; those that are damaged are written again or refused.

        **Raises:** `StoreError`
        """
        for name, (_, values, _) in _coordinates(self.study).items():
            array = self.array(name)
            with contextlib.suppress(*_UNREADABLE):
                if np.array_equal(np.asarray(array[:]), np.asarray(values)):
                    continue
            if not repair:
                raise StoreError(
                    f"{self.path}: coordinate `{name}` is damaged; "
                    f"`jaxcond resume --repair {self.path}` writes it again"
                )
            with written(self.path):
                array[:] = np.asarray(values)


def _undescribed(path: Path | None, name: str) -> StoreError:
    return StoreError(f"{path}: the description of variable `{name}` is missing or damaged")


@contextlib.contextmanager
def written(path: Path | None) -> Iterator[None]:
    """Name the store where it cannot be written."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        told = error.strerror or error
        raise StoreError(f"{path} cannot be written: {told}") from error


def _damaged(path: Path | None, name: str, place: str, what: str = "damaged") -> str:
    return (
        f"{path}: variable `{name}` is {what} at {place}; "
        f"`jaxcond resume --repair {path}` computes that chunk again"
    )


def _consolidate(group: zarr.Group) -> None:
    # So that `xr.open_zarr` reads one file of metadata. Zarr warns that this is not yet in the
    # specification of version 3.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(group.store)


def _open(store: Any) -> zarr.Group:
    # Not by the consolidated metadata, which nothing is read from here. And in version 3 only:
    # version 2 names filters of numcodecs, of which one (pickle) would run what a chunk holds.
    return zarr.open_group(store, mode="r+", use_consolidated=False, zarr_format=3)


def _more(field: Field, study: Study) -> tuple[int, ...]:
    """Sizes of the dimensions of a variable beyond `sample`."""
    sizes = {"entry": len(entry_labels()), "fraction": len(study.fractions)}
    return () if field.dim is None else (sizes[field.dim],)


def _dtype(field: Field, study: Study) -> str:
    return study.precision if field.dtype == "float" else field.dtype


def attributes_of(study: Study) -> dict[str, str]:
    """The configuration in a store, with files by their whole path; and the seal of its maker."""
    plain = study.to_dict()
    if "path" in plain["ensemble"]:
        plain["ensemble"]["path"] = str(Path(plain["ensemble"]["path"]).absolute())
    found = {"configuration": json.dumps(plain)}
    if "function" in study.ensemble:
        sealed = seal(function_name(study.ensemble["function"]), study.digest())
        found |= {} if sealed is None else {SEAL: sealed}
    return found


def create(
    study: Study, path: Path | None, chunk: int, methods: Mapping[str, Sequence[str]]
) -> Store:
    """A new store, without samples.

    **Arguments:** `chunk`, samples of a chunk; `methods`, what `stage` counts: the methods that
    samples go through, by the widths of the states that are drawn.

    **Raises:** `OSError` if it cannot be written.
    """
    shape = tuple(study.dims.values())
    attributes = {
        "title": "Blow-up times of the effective dynamics of three-layer networks",
        **attributes_of(study),
        "identity": json.dumps(study.identity(), sort_keys=True),
        "configuration_hash": study.digest(),
        "seed": study.seed,
        "samples": study.samples,
        "chunk": chunk,
        "methods": json.dumps(methods),
        "versions": json.dumps(versions()),
        "python": platform.python_version(),
        "platform": current_platform(),
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "complete": False,
        # Of a sweep whose axes are zipped no coordinate is called as the dimension is.
        "coordinates": " ".join(_coordinates(study)),
    }
    store = MemoryStore() if path is None else LocalStore(path)
    group = zarr.create_group(store, attributes=attributes)
    codecs = _codecs()
    for field in fields_of(study):
        dtype = np.dtype(_dtype(field, study))
        more = _more(field, study)
        names = (*study.dims, "sample", *(() if field.dim is None else (field.dim,)))
        described: dict[str, Any] = {"long_name": field.long_name}
        if field.flags:
            described["flag_values"] = list(range(-1, len(field.flags)))
            described["flag_meanings"] = " ".join(("not_run", *field.flags))
        elif field.dtype == "float":
            described["units"] = study.time_unit if field.name in _TIMES else "1"
        group.create_array(
            field.name,
            shape=(*shape, study.samples, *more),
            chunks=(*(1 for _ in shape), chunk, *more),
            dtype=dtype,
            fill_value=np.nan if dtype.kind == "f" else -1,
            compressors=codecs,
            dimension_names=names,
            attributes=described,
            config={"write_empty_chunks": True},
        )
    marks = -(-study.samples // chunk)
    group.create_array(
        FINISHED,
        shape=(*shape, marks),
        chunks=(*(1 for _ in shape), _MARKS),
        dtype=np.int32,
        fill_value=0,
        compressors=codecs,
        dimension_names=(*study.dims, "chunk"),
        attributes={"long_name": f"finished samples of each chunk of {chunk}"},
        config={"write_empty_chunks": True},
    )
    _write_coordinates(group, study, codecs)
    _consolidate(group)
    return Store(study, group, path)


def _coordinates(study: Study) -> dict[str, tuple[str, list[Any], str]]:
    """Dimension, values and long name of each coordinate."""
    columns: dict[str, tuple[str, list[Any], str]] = {}
    for name, values in study.axes.items():
        dim = "point" if study.combine == "zip" else name
        columns[name] = (dim, list(values), AXES[name].help)
    if "counts" in study.observables:
        columns["fraction"] = ("fraction", list(study.fractions), "fraction of T*")
    if "entries" in study.observables:
        columns["entry"] = ("entry", list(entry_labels()), "entry of the reduced state")
    return columns


def _write_coordinates(group: zarr.Group, study: Study, codecs: Sequence[Any]) -> None:
    for name, (dim, values, described) in _coordinates(study).items():
        text = isinstance(values[0], str)
        array = group.create_array(
            name,
            shape=(len(values),),
            chunks=(len(values),),
            dtype=str if text else np.asarray(values).dtype,
            compressors=codecs,
            dimension_names=(dim,),
            attributes={"long_name": described},
        )
        array[:] = np.asarray(values)


def open_group(path: Path) -> zarr.Group:
    """The Zarr group of a store on disk.

    **Raises:** `StoreError` if there is none, or it is not that of a study.
    """
    if not path.exists():
        raise StoreError(f"there is no store {path}")
    try:
        group = _open(LocalStore(path))
    except Exception as error:
        told = " ".join(str(error).split())
        raise StoreError(f"{path} is no Zarr store, or its zarr.json is damaged: {told}") from error
    for name, kind in _ATTRIBUTES.items():
        if name not in group.attrs:
            raise StoreError(f"{path} is no store of a study: attribute `{name}` is missing")
        if not isinstance(group.attrs[name], kind):
            raise StoreError(f"{path}: attribute `{name}` is damaged")
    return group


def _parsed(path: Path, group: zarr.Group, name: str) -> dict[str, Any]:
    """An attribute that holds a JSON object."""
    try:
        found = json.loads(str(group.attrs[name]))
    except json.JSONDecodeError as error:
        raise StoreError(f"{path}: attribute `{name}` is damaged: {error}") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path}: attribute `{name}` is damaged: it is no JSON object")
    return found


def read_configuration(path: Path) -> tuple[Study, zarr.Group]:
    """The study of a store on disk; what it names is neither imported nor opened.

    **Raises:** `StoreError` if there is none, or it cannot be read.
    """
    group = open_group(path)
    keys = _parsed(path, group, "configuration")
    try:
        study = Study.from_dict(keys, load=False)
    except ValueError as error:
        raise StoreError(f"{path}: attribute `configuration`: {error}") from error
    return study, group


def check_same(path: Path, group: zarr.Group, study: Study, *, any_version: bool) -> None:
    """Refuse to continue a store with another configuration or, unless `any_version`, version.

    **Raises:** `StoreError` that says what differs.
    """
    stored = _parsed(path, group, "identity")
    check_states(path, group, study)
    differences = [
        f"`{name}` is {there} in the store and {here} here"
        for name, there, here in _differences(stored, study.identity())
    ]
    if differences:
        raise StoreError(f"{path} holds another study: {'; '.join(differences)}")
    if study.chunk is not None and study.chunk != group.attrs["chunk"]:
        raise StoreError(f"{path} is cut into chunks of {group.attrs['chunk']}, not {study.chunk}")
    there = _parsed(path, group, "versions")
    told = [
        f"{name} {there.get(name)} there and {version} here"
        for name, version in versions().items()
        if there.get(name) != version
    ]
    if told and not any_version:
        raise StoreError(
            f"{path} was computed by other versions: {'; '.join(told)} (--any-version continues "
            "all the same; samples may then differ by rounding)"
        )


def check_states(path: Path, group: zarr.Group, study: Study) -> None:
    """Refuse states other than those whose digest is in the store.

    **Raises:** `StoreError`
    """
    ensemble = _parsed(path, group, "identity").get("ensemble")
    there = ensemble.get("content") if isinstance(ensemble, dict) else None
    if study.kinds == {"file"} and isinstance(there, str):
        here = study.identity()["ensemble"]["content"]
        if here != there:
            raise StoreError(
                f"{study.ensemble['path']} holds other states than {path} was computed from: its "
                f"SHA-256 is {here[:16]}, not {there[:16]}. `jaxcond resume --states FILE {path}` "
                "takes them from where they are"
            )


def _differences(there: Any, here: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    if isinstance(there, dict) and isinstance(here, dict):
        for key in sorted(there.keys() | here.keys()):
            inner = f"{name}.{key}" if name else key
            yield from _differences(there.get(key, "default"), here.get(key, "default"), inner)
    elif there != here:
        yield name, there, here


@contextlib.contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Keep a second process off a store; the lock goes with the process, however that ends.

    **Raises:** `StoreError` if another process has it.
    """
    if path is None:
        yield
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(f"{path}.lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise StoreError(f"another process is working on {path}") from None
    try:
        yield
    finally:
        lock.release()


def current_platform() -> str:
    """The kind of device that computes the samples."""
    device = chosen_device()
    return jax.default_backend() if device is None else getattr(device, "platform", str(device))
