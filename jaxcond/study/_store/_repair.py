"""Damage of a store, found by reading all of it, and mended as far as the rest of it tells how."""

from pathlib import Path

from ._backend import Folder
from ._damage import Damage, DamageError, Kind, StoreError, repairing
from ._description import COPY, read_copy, write_copy
from ._form import layout_of
from ._layout import descriptions, same_description
from ._store import Store, described_study, open_group, reopened

_ROOT = "zarr.json"


def damages(store: Store) -> list[Damage]:
    """All damage of a store.

    Chunks are judged once all descriptions are as they must be.
    """
    store.refresh()
    found = _damaged_descriptions(store)
    if not found:
        found = list(store.damaged_chunks())
    found += [Damage(None, None, name, Kind.ALTERED) for name in store.wrong_coordinates()]
    copy = read_copy(store.backend)
    if copy is None or copy["configuration_hash"] != store.layout.identity:
        found.append(Damage(None, None, COPY, Kind.ALTERED))
    return list(dict.fromkeys(found))


def _key(name: str) -> str:
    return f"{name}/zarr.json" if name else _ROOT


def _damaged_descriptions(store: Store) -> list[Damage]:
    return [
        Damage(None, None, name or _ROOT, Kind.ALTERED)
        for name, content in descriptions(store.layout, dict(store.group.attrs)).items()
        if not same_description(store.backend.read(_key(name)), content, store.layout)
    ]


def check_descriptions(store: Store) -> None:
    """Refuse a store in which a description is not as it must be.

    **Raises:** `DamageError`
    """
    for damage in _damaged_descriptions(store):
        if damage.variable == _ROOT:
            raise DamageError(store.describe_damage(damage), damage)
        raise store.undescribed(damage.variable)


def restore_attributes(path: Path) -> None:
    """Write the `zarr.json` of a store again, if it is damaged, from the copy of its attributes.

    **Raises:** `StoreError` if the copy is damaged too.
    """
    try:
        open_group(path)
        return
    except StoreError as error:
        if not path.is_dir():
            raise
        backend = Folder(path)
        attributes = read_copy(backend)
        if attributes is None:
            raise StoreError(
                f"{error}. That cannot be done: the copy of the attributes, {COPY}, is damaged or "
                "missing, too"
            ) from error
    study = described_study(path, attributes)
    layout = layout_of(study, attributes)
    backend.remove(_ROOT)
    backend.write(_ROOT, descriptions(layout, attributes)[""])


def repair(store: Store) -> None:
    """Restore descriptions and coordinates, and erase chunks that are damaged.

    **Raises:** `StoreError` if it cannot be written.
    """
    attributes = dict(store.group.attrs)
    contents = descriptions(store.layout, attributes)
    for damage in damages(store):
        if damage.point is None:
            _restore(store, damage.variable, contents)
    store.group = reopened(store.group)
    store.refresh()
    coordinates = {coordinate.name for coordinate in store.layout.coordinates}
    found = damages(store)
    for damage in found:
        if damage.variable in coordinates:
            store.write_coordinate(damage.variable)
    damaged = {(d.point, d.chunk) for d in found if d.point is not None and d.chunk is not None}
    if damaged:
        store.describe(complete=False)
    for point, chunk in sorted(damaged):
        store.erase(point, chunk)
    store.remove_obstacles()
    left = damages(store)
    if left:
        told = "; ".join(f"`{damage.variable}`" for damage in left)
        raise StoreError(f"{store.path}: {repairing(store.path)} cannot restore {told}")


def _restore(store: Store, name: str, contents: dict[str, bytes]) -> None:
    if name == COPY:
        write_copy(store.backend, dict(store.group.attrs))
        return
    name = "" if name == _ROOT else name
    store.backend.remove(_key(name))
    store.backend.write(_key(name), contents[name])
