"""Whether a study may go on with a store: what differs, in words."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import zarr

from .._config import Study
from ._damage import StoreError
from ._description import parsed, versions


def check_same(path: Path, group: zarr.Group, study: Study, *, any_version: bool) -> None:
    """Refuse to continue a store with another configuration or, unless `any_version`, version.

    **Raises:** `StoreError` that says what differs.
    """
    attributes = dict(group.attrs)
    stored = parsed(path, attributes, "identity")
    check_states(path, group, study)
    differences = [
        f"`{name}` is {there} in the store and {here} here"
        for name, there, here in _differences(stored, study.identity())
    ]
    if differences:
        raise StoreError(f"{path} holds another study: {'; '.join(differences)}")
    if study.chunk is not None and study.chunk != attributes["chunk"]:
        raise StoreError(f"{path} is cut into chunks of {attributes['chunk']}, not {study.chunk}")
    there = parsed(path, attributes, "versions")
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
    ensemble = parsed(path, dict(group.attrs), "identity").get("ensemble")
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
