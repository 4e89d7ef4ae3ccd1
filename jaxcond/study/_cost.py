"""Lower bounds on the cost of a study, checked before it starts: chunks, memory, storage.

Each chunk of a sweep point is one file per variable, with a mark that is read at the start.
Thousands of chunks are fast; a million chunks take hours to write and to read, however small they
are.
"""

import os
import shutil
from pathlib import Path

import jax
import numpy as np

from .._threads import chosen_device, num_cores
from ._config import LARGEST_CHUNK, LARGEST_POINTS, Study
from ._store import fields_of

# Equal to the largest number of points, so that every sweep can have one chunk per point.
_MOST_CHUNKS = LARGEST_POINTS
# Drawing and solving a state takes at least twice its memory.
_COPIES = 2


def least_chunk(study: Study) -> int:
    """The smallest chunk size that keeps the number of chunks within its limit."""
    return -(-study.samples // (_MOST_CHUNKS // len(study.points)))


def check_cost(study: Study, chunk: int, path: Path | None) -> None:
    """Reject a study that cannot succeed; the message says which key to change.

    **Arguments:** `chunk`: samples per chunk; `path`: location of the store, `None` for a store in
    memory.

    **Raises:** `ValueError` that names the key.
    """
    _check_chunks(study, chunk)
    _check_states(study, chunk)
    _check_records(study, chunk, path)


def _check_chunks(study: Study, chunk: int) -> None:
    points, least = len(study.points), least_chunk(study)
    if chunk >= least:
        return
    chunks = points * -(-study.samples // chunk)
    more = f" at each of {points} points" if points > 1 else ""
    reason = (
        f"{study.samples} samples{more} make {chunks} chunks of {chunk}, more than {_MOST_CHUNKS}"
    )
    if least <= LARGEST_CHUNK:
        raise ValueError(f"Key `chunk`: {reason}; it must be at least {least}.")
    raise ValueError(f"Key `samples`: {reason}, and a chunk holds at most {LARGEST_CHUNK}.")


def _check_states(study: Study, chunk: int) -> None:
    """Check that one full state per thread fits into memory."""
    if study.reduced or study.kinds == {"file"}:
        return
    itemsize = np.dtype(study.precision).itemsize
    together = min(num_cores(), chunk, study.samples)
    for point, (_, settings) in enumerate(study.settings):
        needed = _COPIES * together * itemsize * settings.entries
        memory = _memory(on_device=True)
        if memory is not None and needed > memory:
            key = "sweep" if study.points[point] else "ensemble"
            raise ValueError(
                f"Key `{key}`: full states of width {settings.form} take at least "
                f"{_size(needed)} of memory, {together} at a time, but only {_size(memory)} are "
                "available."
            )


def _check_records(study: Study, chunk: int, path: Path | None) -> None:
    """Check that the records of a chunk fit into memory, and all records into the store."""
    lengths = {None: 1, "entry": 8, "fraction": len(study.fractions)}
    each = sum(
        lengths[field.dim] * np.dtype(study.precision).itemsize
        for field in fields_of(study)
        if field.dtype == "float"  # whole numbers are few, and compress well
    )
    memory = _memory(on_device=False)
    if memory is not None and (needed := each * min(chunk, study.samples)) > memory:
        raise ValueError(
            f"Key `chunk`: the records of {chunk} samples take {_size(needed)} of memory, but "
            f"only {_size(memory)} are available."
        )
    if study.standard_error is not None or study.relative_error is not None:
        return  # most of the samples may never be drawn
    needed = each * study.samples * len(study.points)
    room = memory if path is None else shutil.disk_usage(_existing(path)).free
    if room is not None and needed > room:
        where = "memory" if path is None else f"the disk of {path}"
        raise ValueError(
            f"Key `samples`: the records of {study.samples * len(study.points)} samples take "
            f"{_size(needed)}, but {where} has {_size(room)}."
        )


def _existing(path: Path) -> Path:
    """The store, or its nearest parent folder that exists."""
    path = path.resolve()
    return next(place for place in (path, *path.parents) if place.exists())


def _memory(*, on_device: bool) -> int | None:
    """Bytes of memory of the machine or of the computing device; `None` if unknown."""
    if on_device:
        device = chosen_device() or jax.local_devices()[0]
        stats = device.memory_stats() if hasattr(device, "memory_stats") else None
        if stats and "bytes_limit" in stats:
            return stats["bytes_limit"]
    if not hasattr(os, "sysconf"):
        return None
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _size(number: int) -> str:
    """A number of bytes with its unit."""
    units = ("bytes", "kB", "MB", "GB", "TB", "PB")
    power = min(max(len(f"{number}") - 1, 0) // 3, len(units) - 1)
    return f"{number / 1000**power:.3g} {units[power]}"
