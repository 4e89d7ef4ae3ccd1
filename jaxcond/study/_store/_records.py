"""The samples of a store: written, marked with digests, and read against them."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr

from ._backend import AbstractBackend, written
from ._damage import Damage, DamageError, Kind, repairing
from ._layout import MARKS, Layout, Task, Variable, consolidate
from ._marks import UNREADABLE, Marks
from ._seals import chunk_seal

TIME, LOWER, UPPER = "blowup_time", "lower", "upper"


class Records:
    """The Zarr group of a layout.

    **Arguments:** `backend`, with the files of `group`; `layout`, what they hold.
    """

    def __init__(self, backend: AbstractBackend, group: zarr.Group, layout: Layout):
        self.backend, self.group, self.layout = backend, group, layout
        self.path = backend.path
        self._arrays: dict[str, Any] = {}
        self._marks: Marks | None = None

    @property
    def chunk(self) -> int:
        """Samples of a chunk."""
        return self.layout.chunk

    @property
    def samples(self) -> int:
        """Samples per sweep point that the store has room for."""
        return self.layout.samples

    @property
    def num_chunks(self) -> int:
        """Chunks of each sweep point."""
        return self.layout.num_chunks

    @property
    def marks(self) -> Marks:
        """How many samples of each chunk are there, and their digests."""
        if self._marks is None:
            self._marks = Marks(self.backend, self.layout, self.array(MARKS))
        return self._marks

    def refresh(self) -> None:
        """Forget the marks and descriptions that were read."""
        self._marks = None
        self._arrays.clear()

    def array(self, name: str) -> Any:
        """A variable, a `zarr.Array`.

        **Raises:** `StoreError` if its description is missing or damaged.
        """
        if name not in self._arrays:
            try:
                # Zarr forgets this with every opening, and would then not write a chunk that holds
                # the fill value only: of blow-up times, NaN.
                found: Any = self.group[name]
                self._arrays[name] = found.with_config({"write_empty_chunks": True})
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise self.undescribed(name) from error
        return self._arrays[name]

    def undescribed(self, name: str) -> DamageError:
        """What to say of a variable whose description is wrong."""
        return DamageError(
            f"{self.path}: the description of variable `{name}` is missing or damaged; "
            f"{repairing(self.path)} writes it again",
            Damage(None, None, name, Kind.ALTERED),
        )

    # Writing.

    def write(self, task: Task, fields: Mapping[str, np.ndarray]) -> tuple[int, ...]:
        """Write the samples of a task, which count only once they are marked.

        **Returns:** the digests of the chunk, for `mark`.
        """
        first = task.chunk * self.chunk
        where = (*self.layout.position(task.point), slice(first, task.stop))
        seals = []
        for variable in self.layout.variables:
            values = np.asarray(fields[variable.name]).astype(variable.dtype)
            if task.start > first:
                head = self.read(variable.name, task.point, task.chunk, task.start - first)
                values = np.concatenate([head, values])
            with written(self.path):
                self.array(variable.name)[where] = values
            seals.append(self._seal(variable.name, task.point, task.chunk, values))
        return tuple(seals)

    def _seal(self, name: str, point: int, chunk: int, values: np.ndarray) -> int:
        return chunk_seal(self.layout.identity, point, chunk, name, values)

    def mark(self, task: Task, seals: tuple[int, ...]) -> None:
        """Say that the samples of a chunk are there, up to the end of a task."""
        row = np.array([task.stop - task.chunk * self.chunk, *seals], np.int64)
        self.marks.put(task.point, task.chunk, row)

    def erase(self, point: int, chunk: int) -> None:
        """Make the samples of a chunk unknown again."""
        self.marks.unmark(point, chunk)
        for variable in self.layout.variables:
            self.backend.remove(self.layout.key(variable, point, chunk))

    def remove_obstacles(self) -> None:
        """Remove folders that stand in the place of chunks that are not marked."""
        for point, chunk in np.argwhere(self.finished() == 0):
            for variable in self.layout.variables:
                key = self.layout.key(variable, int(point), int(chunk))
                if self.backend.blocked(key):
                    self.backend.remove(key)

    def enlarge(self) -> None:
        """Make room for the samples of the layout, where there is less."""
        self._marks = None
        axis = len(self.layout.dims)
        there = self.array(MARKS).shape[axis]
        if there < self.num_chunks:
            self.marks.lay(there)
        with written(self.path):
            for name, size in (
                *((variable.name, self.samples) for variable in self.layout.variables),
                (MARKS, self.num_chunks),
            ):
                array = self.array(name)
                if array.shape[axis] < size:
                    array.resize((*self.layout.shape, size, *array.shape[axis + 1 :]))
            consolidate(self.group)
        self._marks = None

    # Reading.

    def finished(self) -> np.ndarray:
        """How many samples of each chunk are there, of shape (points, chunks).

        **Raises:** `StoreError` if a mark is damaged.
        """
        return self.marks.counts()

    def finished_at(self, point: int) -> np.ndarray:
        """How many samples of each chunk of one sweep point are there.

        **Raises:** `StoreError` if a mark is damaged.
        """
        return self.marks.counts(point)

    def read(self, name: str, point: int, chunk: int, count: int) -> np.ndarray:
        """The first `count` samples of a finished chunk.

        **Raises:** `DamageError` that names the place if the file is missing, damaged or not that
        which was marked.
        """
        row = self.marks.row(point, chunk)
        index, variable = self._variable(name)
        values = self.read_unmarked(name, point, chunk, int(row[0]))
        if len(values) != row[0] or self._seal(name, point, chunk, values) != row[1 + index]:
            raise self._damaged(name, point, chunk, Kind.ALTERED)
        if variable.num_codes and not ((values >= 0) & (values < variable.num_codes)).all():
            raise self._damaged(name, point, chunk, Kind.ILLEGAL)
        return values[:count]

    def read_unmarked(self, name: str, point: int, chunk: int, count: int) -> np.ndarray:
        """The first samples of a chunk that was written, but perhaps not yet marked.

        **Raises:** `DamageError` that names the place if the file is missing or damaged.
        """
        _, variable = self._variable(name)
        first = chunk * self.chunk
        where = (*self.layout.position(point), slice(first, first + count))
        if not self.backend.exists(self.layout.key(variable, point, chunk)):
            raise self._damaged(name, point, chunk, Kind.MISSING)
        try:
            return np.asarray(self.array(name)[where])
        except UNREADABLE as error:
            raise self._damaged(name, point, chunk, Kind.UNREADABLE) from error

    def _variable(self, name: str) -> tuple[int, Variable]:
        for index, variable in enumerate(self.layout.variables):
            if variable.name == name:
                return index, variable
        raise ValueError(f"there is no variable `{name}`")

    def _damaged(self, name: str, point: int, chunk: int, kind: Kind) -> DamageError:
        damage = Damage(point, chunk, name, kind)
        return DamageError(self.describe_damage(damage), damage)

    def describe_damage(self, damage: Damage) -> str:
        """Damage in words, with what to do about it."""
        told = {
            Kind.MISSING: "missing",
            Kind.UNREADABLE: "damaged",
            Kind.ALTERED: "damaged (its values are not those that were written)",
            Kind.ILLEGAL: "damaged (its values have no meaning)",
        }[damage.kind]
        if damage.point is None or damage.chunk is None:
            return (
                f"{self.path}: the description or the values of `{damage.variable}` are {told}; "
                f"{repairing(self.path)} writes them again"
            )
        first = damage.chunk * self.chunk
        count = int(self.marks.rows[damage.point, damage.chunk, 0])
        if not (self.marks.legal[damage.point, damage.chunk] and count > 0):
            count = min(self.chunk, self.samples - first)
        place = f"samples {first} to {first + count - 1}"
        if self.layout.dims:
            place += f" at {self.layout.name_of(damage.point)}"
        return (
            f"{self.path}: variable `{damage.variable}` is {told} at {place}; "
            f"{repairing(self.path)} computes that chunk again"
        )

    def holds(self, point: int, chunk: int) -> bool:
        """Whether there is a file for a chunk, marked or not."""
        return self.backend.exists(self.layout.key(self.layout.variables[0], point, chunk))

    def stream(self, name: str, point: int) -> Iterator[np.ndarray]:
        """All finished samples of a sweep point, a chunk at a time."""
        for chunk, count in enumerate(self.finished_at(point)):
            if count:
                yield self.read(name, point, chunk, int(count))

    def brackets(self, point: int) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Times of a sweep point with the ends of their brackets, a chunk at a time.

        **Raises:** `DamageError` also where a time is not within its bracket.
        """
        for chunk, count in enumerate(self.finished_at(point)):
            if count:
                yield self._bracket(point, chunk, int(count))

    def _bracket(
        self, point: int, chunk: int, count: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        time, lower, upper = (self.read(n, point, chunk, count) for n in (TIME, LOWER, UPPER))
        slack = 64 * np.finfo(time.dtype).eps
        if (lower > time * (1 + slack)).any() or (time > upper * (1 + slack)).any():
            raise self._damaged(TIME, point, chunk, Kind.ILLEGAL)
        return time, lower, upper

    # Damage.

    def damaged_chunks(self) -> Iterator[Damage]:
        """Damage of marks, and of chunks that are marked: every value is read."""
        for point, chunk in np.ndindex(*self.marks.rows.shape[:2]):
            if not self.marks.legal[point, chunk]:
                yield Damage(point, chunk, MARKS, Kind.ALTERED)
                continue
            count = int(self.marks.rows[point, chunk, 0])
            if count == 0:
                continue
            found = list(self._damaged_variables(point, chunk, count))
            yield from found
            if not found:
                try:
                    self._bracket(point, chunk, count)
                except DamageError as error:
                    yield error.damage

    def _damaged_variables(self, point: int, chunk: int, count: int) -> Iterator[Damage]:
        for variable in self.layout.variables:
            try:
                self.read(variable.name, point, chunk, count)
            except DamageError as error:
                yield error.damage
