"""The marks of a store: how many samples of each chunk are there, and the digests of their values.

The row of a chunk holds both, so that they are replaced at once or not at all.
"""

from collections.abc import Iterator

import numpy as np
import zarr

from ._backend import AbstractBackend, Memory
from ._damage import Damage, DamageError, Kind, repairing
from ._layout import MARKS, Layout
from ._seals import unmarked_seal

# What reading raises for a file whose checksum or content is wrong.
UNREADABLE = (ValueError, RuntimeError, TypeError)


class Marks:
    """The rows of all chunks, as they are when they are first asked for, or refreshed.

    **Arguments:** `backend`, `layout`, of the store; `array`, the variable on `backend`.
    """

    def __init__(self, backend: AbstractBackend, layout: Layout, array: zarr.Array):
        self._backend, self._layout, self._array = backend, layout, array
        self._unmarked = np.full(1 + len(layout.variables), unmarked_seal(layout.identity))
        self._unmarked[0] = 0
        self._shape: tuple[int, ...] = array.chunks
        # Of one file, which encodes the rows of any.
        self._twin = Memory()
        self._encoder = zarr.create_array(
            self._twin.zarr,
            shape=self._shape,
            chunks=self._shape,
            dtype=np.int64,
            fill_value=-1,
            compressors=array.compressors,
        )
        self.rows = self._read()
        self.legal = self._are_legal(self.rows, 0)
        """Which rows may stand where they do, of shape (points, chunks)."""

    def _read(self) -> np.ndarray:
        shape = (self._layout.num_points, self._layout.num_chunks, self._unmarked.size)
        rows = np.full(shape, -1, np.int64)
        if self._layout.growing:
            rows[:, self._array.shape[-2] :] = self._unmarked
        try:
            found = np.asarray(self._array[...], np.int64)
            found = found.reshape(shape[0], -1, shape[2])[:, : shape[1]]
            rows[:, : found.shape[1]] = found
        except UNREADABLE:
            # Some file is damaged: each for itself.
            _, chunks = self._layout.mark_files
            for point in range(shape[0]):
                for first in range(0, shape[1], chunks):
                    where = (*self._layout.position(point), slice(first, first + chunks))
                    try:
                        found = np.asarray(self._array[where])
                        rows[point, first : first + len(found)] = found
                    except UNREADABLE:
                        continue
        return rows

    def _are_legal(self, rows: np.ndarray, first: int) -> np.ndarray:
        start = (first + np.arange(rows.shape[1])) * self._layout.chunk
        most = np.minimum(self._layout.chunk, self._layout.samples - start)
        counts = rows[..., 0]
        return ((counts >= 1) & (counts <= most)) | (rows == self._unmarked).all(-1)

    def row(self, point: int, chunk: int) -> np.ndarray:
        """Samples and digests of a chunk.

        **Raises:** `DamageError` if the row has no meaning.
        """
        if not self.legal[point, chunk]:
            raise self._damaged(point, chunk)
        return self.rows[point, chunk]

    def counts(self, point: int | None = None) -> np.ndarray:
        """How many samples of each chunk are there, at one sweep point or at all.

        **Raises:** `DamageError` if a row has no meaning.
        """
        where = slice(None) if point is None else slice(point, point + 1)
        if not self.legal[where].all():
            at, chunk = np.argwhere(~self.legal[where])[0]
            raise self._damaged(int(at) + (point or 0), int(chunk))
        counts = self.rows[where, :, 0]
        return counts.copy() if point is None else counts[0].copy()

    def _damaged(self, point: int, chunk: int) -> DamageError:
        told = f"{self._backend.path}: variable `{MARKS}` is damaged at chunk {chunk}"
        told += f" at {self._layout.name_of(point)}" if self._layout.dims else ""
        told += f"; {repairing(self._backend.path)} computes that chunk again"
        return DamageError(told, Damage(point, chunk, MARKS, Kind.ALTERED))

    def put(self, point: int, chunk: int, row: np.ndarray) -> None:
        """Replace a row, and with it its file; there must be no other writer."""
        points, chunks = self._layout.mark_files
        last = self._layout.shape[-1] if self._layout.dims else 1
        begin, first = point - point % last % points, chunk - chunk % chunks
        end = min(begin + points, begin - begin % last + last)
        rows = self.rows[begin:end, first : first + chunks].copy()
        rows[point - begin, chunk - first] = row
        self._backend.write(self._layout.mark_key(point, chunk), self._encoded(rows))
        self.rows[point, chunk] = row
        self.legal[point, chunk] = self._are_legal(row[None, None], chunk)[0, 0]

    def unmark(self, point: int, chunk: int) -> None:
        """Say that no samples of a chunk are there."""
        key = self._layout.mark_key(point, chunk)
        if not self._backend.exists(key):
            self._backend.remove(key)  # a folder in its place
        self.put(point, chunk, self._unmarked)

    def lay(self, num_chunks: int) -> None:
        """Write the files of marks beyond those of so many chunks, without any mark.

        Those of a store that is to grow are written before it is enlarged: a file that is missing
        is always damage.
        """
        missing = [key for key in self._keys(num_chunks) if not self._backend.exists(key)]
        if missing:
            content = self._encoded(np.empty((0, 0, self._unmarked.size), np.int64))
            for key in missing:
                self._backend.write(key, content)

    def _keys(self, num_chunks: int) -> Iterator[str]:
        points, chunks = self._layout.mark_files
        last = self._layout.shape[-1] if self._layout.dims else 1
        for point in range(self._layout.num_points):
            if point % last % points == 0:
                for chunk in range(
                    -(-num_chunks // chunks) * chunks, self._layout.num_chunks, chunks
                ):
                    yield self._layout.mark_key(point, chunk)

    def _encoded(self, rows: np.ndarray) -> bytes:
        """A file with these rows, and no mark in the others."""
        whole = np.empty((*self._layout.mark_files, self._unmarked.size), np.int64)
        whole[...] = self._unmarked
        whole[: rows.shape[0], : rows.shape[1]] = rows
        self._encoder[...] = whole.reshape(self._shape)
        content = self._twin.read("/".join(["c", *("0" for _ in self._shape)]))
        assert content is not None
        return content
