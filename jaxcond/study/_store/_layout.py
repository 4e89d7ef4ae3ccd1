"""The form of a store: its variables, coordinates and marks, whatever study they belong to."""

import json
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from ._backend import AbstractBackend, Memory

MARKS = "marks"
# A file of marks holds so many chunks: neither a file for each chunk nor one for all.
_MARKS_PER_FILE = 256


@dataclass(frozen=True)
class Task:
    """Samples `start` to `stop` of a sweep point, within one chunk."""

    point: int
    chunk: int
    start: int
    stop: int


@dataclass(frozen=True)
class Variable:
    """A variable with a value, or an array of them, for each sample.

    **Arguments:** `num_codes`, how many values from 0 on are legal, 0 for any; `dims`, further
    dimensions by name, with their sizes.
    """

    name: str
    dtype: str
    attributes: Mapping[str, Any]
    num_codes: int = 0
    dims: Mapping[str, int] = field(default_factory=dict)

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the further dimensions."""
        return tuple(self.dims.values())


@dataclass(frozen=True)
class Coordinate:
    """The values along a dimension."""

    name: str
    dim: str
    values: list[Any]
    long_name: str


@dataclass(frozen=True)
class Layout:
    """What a store holds, and in which pieces.

    **Arguments:** `identity`, a digest of what determines the samples; `dims`, of the sweep;
    `samples` at each point, `chunk` of them in a file; `name_of`, a sweep point in words;
    `growing`, whether some variables may be too small yet.
    """

    identity: str
    dims: Mapping[str, int]
    samples: int
    chunk: int
    variables: tuple[Variable, ...]
    coordinates: tuple[Coordinate, ...]
    name_of: Callable[[int], str]
    growing: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The sizes of the sweep's dimensions."""
        return tuple(self.dims.values())

    @property
    def num_points(self) -> int:
        """The number of sweep points."""
        return int(np.prod(self.shape, dtype=int))

    @property
    def num_chunks(self) -> int:
        """Chunks of each sweep point."""
        return -(-self.samples // self.chunk)

    @property
    def mark_files(self) -> tuple[int, int]:
        """How many points along the last dimension, and how many chunks, share a file of marks.

        As many as let a sweep of many points be opened in few reads, whatever the samples.
        """
        points = min(_MARKS_PER_FILE, self.shape[-1]) if self.dims else 1
        return points, _MARKS_PER_FILE // points

    def position(self, point: int) -> tuple[int, ...]:
        """Where a sweep point lies along the dimensions of the sweep."""
        return tuple(int(i) for i in np.unravel_index(point, self.shape))

    def key(self, variable: Variable, point: int, chunk: int) -> str:
        """The file of a chunk."""
        rest = (0,) * len(variable.dims)
        return "/".join(map(str, (variable.name, "c", *self.position(point), chunk, *rest)))

    def mark_key(self, point: int, chunk: int) -> str:
        """The file of a mark."""
        points, chunks = self.mark_files
        place = list(self.position(point))
        if place:
            place[-1] //= points
        return "/".join(map(str, (MARKS, "c", *place, chunk // chunks, 0)))


def _codecs() -> list[Any]:
    # Random digits do not compress; what is padding does at any level.
    return [ZstdCodec(level=1), Crc32cCodec()]


def lay_out(backend: AbstractBackend, layout: Layout, attributes: Mapping[str, Any]) -> zarr.Group:
    """Describe everything in a new store; chunks, marks and coordinates hold nothing yet."""
    group = zarr.create_group(backend.zarr, attributes=dict(attributes))
    ones = tuple(1 for _ in layout.dims)
    for variable in layout.variables:
        dtype = np.dtype(variable.dtype)
        group.create_array(
            variable.name,
            shape=(*layout.shape, layout.samples, *variable.sizes),
            chunks=(*ones, layout.chunk, *variable.sizes),
            dtype=dtype,
            fill_value=np.nan if dtype.kind == "f" else -1,
            compressors=_codecs(),
            dimension_names=(*layout.dims, "sample", *variable.dims),
            attributes=dict(variable.attributes),
        )
    points, chunks = layout.mark_files
    columns = 1 + len(layout.variables)
    group.create_array(
        MARKS,
        shape=(*layout.shape, layout.num_chunks, columns),
        chunks=(*ones[1:], *((points,) if ones else ()), chunks, columns),
        dtype=np.int64,
        fill_value=-1,  # what a missing file reads as: no legal mark
        compressors=_codecs(),
        dimension_names=(*layout.dims, "chunk", "mark"),
        attributes={
            "long_name": (
                f"finished samples of each chunk of {layout.chunk}, and the digest of each "
                f"variable: {', '.join(variable.name for variable in layout.variables)}"
            )
        },
    )
    for coordinate in layout.coordinates:
        text = isinstance(coordinate.values[0], str)
        group.create_array(
            coordinate.name,
            shape=(len(coordinate.values),),
            chunks=(len(coordinate.values),),
            dtype=str if text else np.asarray(coordinate.values).dtype,
            compressors=_codecs(),
            dimension_names=(coordinate.dim,),
            attributes={"long_name": coordinate.long_name},
        )
    consolidate(group)
    return group


def descriptions(layout: Layout, attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """The file that describes each variable, and, under an empty name, the store."""
    twin = Memory()
    lay_out(twin, layout, attributes)
    names = [MARKS, *(v.name for v in (*layout.variables, *layout.coordinates))]
    found = {name: twin.read(f"{name}/zarr.json") for name in names}
    found[""] = twin.read("zarr.json")
    return {name: content for name, content in found.items() if content is not None}


def same_description(found: bytes | None, expected: bytes, layout: Layout) -> bool:
    """Whether a file describes what it must; variables of a growing store may be too small."""
    try:
        there, here = json.loads(found or b""), json.loads(expected)
        if layout.growing:
            _forget_sizes(there, here, len(layout.dims))
        inner = here.get("consolidated_metadata")
        if layout.growing and inner is not None:
            for name, metadata in inner["metadata"].items():
                _forget_sizes(
                    there["consolidated_metadata"]["metadata"][name], metadata, len(layout.dims)
                )
        return there == here
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return False


def _forget_sizes(there: dict[str, Any], here: dict[str, Any], axis: int) -> None:
    """Give the numbers of samples or chunks that are not beyond their bound that bound."""
    names = here.get("dimension_names") or []
    if not {"sample", "chunk"}.isdisjoint(names):
        size = there["shape"][axis]
        if type(size) is int and 0 < size <= here["shape"][axis]:
            there["shape"][axis] = here["shape"][axis]


def consolidate(group: zarr.Group) -> None:
    """Copy all descriptions into that of the store, so that `xr.open_zarr` reads one file."""
    # Zarr warns that this is not yet in the specification of version 3.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        zarr.consolidate_metadata(group.store)
