"""Where the files of a store are: in a folder, or in memory."""

import abc
import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import LocalStore, MemoryStore

from ._damage import StoreError


class AbstractBackend(abc.ABC):
    """Files by their keys, like `lower/c/0/3`, beneath a Zarr store."""

    path: Path | None
    zarr: Any
    """The Zarr store."""

    def read(self, key: str) -> bytes | None:
        """The content of a file; `None` if there is none."""
        found = sync(self.zarr.get(key, default_buffer_prototype()))
        return None if found is None else found.to_bytes()

    def write(self, key: str, content: bytes) -> None:
        """Replace a file, at once or not at all."""
        with written(self.path):
            sync(self.zarr.set(key, default_buffer_prototype().buffer.from_bytes(content)))

    @abc.abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is a file."""

    @abc.abstractmethod
    def blocked(self, key: str) -> bool:
        """Whether a folder stands in the place of a file."""

    @abc.abstractmethod
    def remove(self, key: str) -> None:
        """Remove a file, or whatever stands in its place."""

    @abc.abstractmethod
    def clean(self) -> None:
        """Remove what a killed process was writing."""


class Folder(AbstractBackend):
    """The files of a store on disk."""

    def __init__(self, path: Path):
        self.path: Path | None = path
        self._folder = path
        self.zarr = LocalStore(path)

    def exists(self, key: str) -> bool:
        """Whether there is a file."""
        return (self._folder / key).is_file()

    def blocked(self, key: str) -> bool:
        """Whether a folder stands in the place of a file."""
        return (self._folder / key).is_dir()

    def remove(self, key: str) -> None:
        """Remove a file, or a folder in its place."""
        place = self._folder / key
        with written(self.path):
            if place.is_dir() and not place.is_symlink():
                shutil.rmtree(place)
            else:
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    place.unlink()

    def clean(self) -> None:
        """Remove what a killed process was writing."""
        for leftover in self._folder.rglob("*.partial"):
            if leftover.is_file():
                leftover.unlink(missing_ok=True)


class Memory(AbstractBackend):
    """The files of a store in memory, which end with it."""

    def __init__(self, store: MemoryStore | None = None):
        self.path = None
        self.zarr = MemoryStore() if store is None else store

    def exists(self, key: str) -> bool:
        """Whether there is a file."""
        return sync(self.zarr.exists(key))

    def blocked(self, key: str) -> bool:
        """No: there are no folders in memory."""
        del key
        return False

    def remove(self, key: str) -> None:
        """Remove a file."""
        sync(self.zarr.delete(key))

    def clean(self) -> None:
        """Do nothing, since no other process writes here."""


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


@contextlib.contextmanager
def locked(path: Path | None) -> Iterator[None]:
    """Keep other processes off a store. The lock ends with the process; its file is removed.

    **Raises:** `StoreError` if another process is working on the store.
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
        if not Path(lock.lock_file).exists():
            # The last process removed the file after it was opened here: others would not see it.
            raise StoreError(f"another process is just leaving {path}")
        yield
    finally:
        # Where files that are open cannot be removed, the file stays.
        with contextlib.suppress(OSError):
            Path(lock.lock_file).unlink()
        lock.release()
