"""The store of a study: made, opened, described, compared with the study that goes on with it."""

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
import zarr
from zarr.storage import MemoryStore

from .._config import Study
from .._functions import function_name
from .._trust import SEAL, seal
from ._backend import AbstractBackend, Folder, Memory, written
from ._damage import StoreError, repairing
from ._description import FORMAT, check_attributes, parsed, sealed, surroundings, write_copy
from ._form import GROWING, coordinate_names, layout_of
from ._layout import lay_out
from ._marks import UNREADABLE
from ._records import Records


class Store(Records):
    """The records of a study.

    **Arguments:** `study`; `group`, opened; `path`, `None` for one in memory.
    """

    def __init__(self, study: Study, group: zarr.Group, path: Path | None):
        if path is None:
            assert isinstance(group.store, MemoryStore)
            backend: AbstractBackend = Memory(group.store)
        else:
            backend = Folder(path)
        super().__init__(backend, group, layout_of(study, dict(group.attrs)))
        self.study = study

    def describe(self, **attributes: Any) -> None:
        """Set attributes of the store; those that are None are removed."""
        before = dict(self.group.attrs)
        after = {
            name: value for name, value in {**before, **attributes}.items() if value is not None
        }
        after = sealed(after)
        if after != before:
            with written(self.path):
                # As one file, together with the descriptions of the variables that are in it.
                group = zarr.open_group(self.group.store, mode="r+", zarr_format=3)
                group.attrs.put(after)
            self.group = _open(self.group.store)
        write_copy(self.backend, after)

    def grow(self, samples: int) -> None:
        """Make room for more samples at every sweep point.

        What the attributes say comes first: of a process that is killed here, the next one goes on
        to enlarge the store, which reads as before until then.
        """
        if samples == self.samples and not self.layout.growing:
            return
        self.describe(samples=samples, **{GROWING: True})
        self.layout = layout_of(self.study, dict(self.group.attrs))
        self.enlarge()
        self.describe(**{GROWING: None})
        self.layout = layout_of(self.study, dict(self.group.attrs))

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

    def dataset(self) -> xr.Dataset:
        """The store as `xr.open_zarr` gives it, chunks read when asked for.

        **Raises:** `StoreError` if a coordinate is damaged.
        """
        self.check_coordinates()
        source = self.group.store if self.path is None else self.path
        return xr.open_zarr(source, consolidated=False, zarr_format=3)

    def check_coordinates(self) -> None:
        """Compare the coordinates with those of the study.

        **Raises:** `StoreError`
        """
        for name in self.wrong_coordinates():
            raise StoreError(
                f"{self.path}: coordinate `{name}` is damaged or missing; {repairing(self.path)} "
                "writes it again"
            )

    def wrong_coordinates(self) -> Iterator[str]:
        """The coordinates that are not those of the study."""
        for coordinate in self.layout.coordinates:
            try:
                found = np.asarray(self.array(coordinate.name)[...])
                if np.array_equal(found, np.asarray(coordinate.values)):
                    continue
            except (StoreError, *UNREADABLE):
                pass
            yield coordinate.name

    def write_coordinate(self, name: str) -> None:
        """Write the values of a coordinate."""
        for coordinate in self.layout.coordinates:
            if coordinate.name == name:
                self.backend.remove(f"{name}/c/0")
                with written(self.path):
                    self.array(name)[...] = np.asarray(coordinate.values)


def reopened(group: zarr.Group) -> zarr.Group:
    """A group as it is now."""
    return _open(group.store)


def _open(store: Any) -> zarr.Group:
    # Not by the consolidated metadata, which nothing is read from here. And in version 3 only:
    # version 2 names filters of numcodecs, of which one (pickle) would run what a chunk holds.
    return zarr.open_group(store, mode="r+", use_consolidated=False, zarr_format=3)


def attributes_of(study: Study) -> dict[str, str]:
    """The configuration in a store, with files by their whole path; and the seal of its maker."""
    plain = study.to_dict()
    if "path" in plain["ensemble"]:
        plain["ensemble"]["path"] = str(Path(plain["ensemble"]["path"]).absolute())
    found = {"configuration": json.dumps(plain)}
    if "function" in study.ensemble:
        made = seal(function_name(study.ensemble["function"]), study.digest())
        found |= {} if made is None else {SEAL: made}
    return found


def create(
    study: Study, path: Path | None, chunk: int, methods: Mapping[str, Sequence[str]]
) -> Store:
    """A new store, without samples.

    **Arguments:** `chunk`, samples of a chunk; `methods`, what `stage` counts: the methods that
    samples go through, by the widths of the states that are drawn.

    **Raises:** `OSError` if it cannot be written.
    """
    attributes = sealed(
        {
            "title": study.quantity.title,
            "format": FORMAT,
            **attributes_of(study),
            "identity": json.dumps(study.identity(), sort_keys=True),
            "configuration_hash": study.digest(),
            "seed": study.seed,
            "samples": study.samples,
            "chunk": chunk,
            "methods": json.dumps(methods),
            **surroundings(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "complete": False,
            # Of a sweep whose axes are zipped no coordinate is called as the dimension is.
            "coordinates": " ".join(coordinate_names(study)),
        }
    )
    layout = layout_of(study, attributes)
    backend: AbstractBackend = Memory() if path is None else Folder(path)
    store = Store(study, lay_out(backend, layout, attributes), path)
    write_copy(backend, attributes)
    store.marks.lay(0)
    store.refresh()
    for coordinate in layout.coordinates:
        store.write_coordinate(coordinate.name)
    return store


def open_group(path: Path) -> zarr.Group:
    """The Zarr group of a store on disk, with its attributes as they were written.

    **Raises:** `StoreError` if there is none, or it is not that of a study.
    """
    if not path.exists():
        raise StoreError(f"there is no store {path}")
    if not path.is_dir():
        hint = f"; `jaxcond study {path}` runs a configuration" if path.suffix == ".toml" else ""
        raise StoreError(f"{path} is no Zarr store: it is a file, and a store is a folder{hint}")
    try:
        group = _open(Folder(path).zarr)
        attributes = dict(group.attrs)
    except Exception as error:
        told = " ".join(str(error).split())
        raise StoreError(
            f"{path} is no Zarr store, or its zarr.json is damaged: {told}; of a store of a study, "
            f"{repairing(path)} restores it"
        ) from error
    check_attributes(path, attributes)
    return group


def read_configuration(path: Path) -> tuple[Study, zarr.Group]:
    """The study of a store on disk; what it names is neither imported nor opened.

    **Raises:** `StoreError` if there is none, or it cannot be read.
    """
    group = open_group(path)
    return described_study(path, dict(group.attrs)), group


def described_study(path: Path, attributes: Mapping[str, Any]) -> Study:
    """The study that attributes tell of.

    **Raises:** `StoreError`
    """
    try:
        return Study.from_dict(parsed(path, attributes, "configuration"), load=False)
    except ValueError as error:
        raise StoreError(f"{path}: attribute `configuration`: {error}") from error
