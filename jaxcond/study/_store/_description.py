"""What a store says of itself: its attributes, validated as a whole, and a copy of them.

Attributes carry a checksum. The copy, beside the marks, is what a damaged `zarr.json` is restored
from, with what no configuration tells: the versions that computed the samples, and when.
"""

import importlib.metadata
import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from ..._threads import chosen_device
from ._backend import AbstractBackend
from ._damage import StoreError, repairing
from ._layout import MARKS
from ._seals import CHECKSUM, checksum

FORMAT = 2
COPY = f"{MARKS}/description.json"
# What has a say in the numbers: a store is continued with these versions only.
_VERSIONS = ("jaxcond", "jax", "jaxlib", "diffrax", "equinox", "numpy", "scipy")
# Without these attributes, and of these types, a group is no store of a study.
_ATTRIBUTES = {
    "configuration": str,
    "configuration_hash": str,
    "identity": str,
    "versions": str,
    "methods": str,
    "samples": int,
    "chunk": int,
    "complete": bool,
    CHECKSUM: str,
}
# Those of them that hold a JSON object.
_OBJECTS = ("configuration", "identity", "versions", "methods")


def versions() -> dict[str, str]:
    """The versions of what computes the samples."""
    return {name: importlib.metadata.version(name) for name in _VERSIONS}


def current_platform() -> str:
    """The kind of device that computes the samples."""
    device = chosen_device()
    return jax.default_backend() if device is None else getattr(device, "platform", str(device))


def surroundings() -> dict[str, str]:
    """The attributes that tell what computes the samples."""
    return {
        "versions": json.dumps(versions()),
        "python": platform.python_version(),
        "platform": current_platform(),
    }


def sealed(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes with their checksum."""
    return {**attributes, CHECKSUM: checksum(attributes)}


def check_attributes(path: Path | None, attributes: Mapping[str, Any]) -> None:
    """Refuse attributes that are not those of a store as it was written.

    **Raises:** `StoreError` that names the attribute that is missing or of the wrong kind.
    """
    if "configuration" in attributes and attributes.get("format") != FORMAT:
        raise StoreError(
            f"{path} is of format {attributes.get('format', 1)}, not {FORMAT}, which "
            "this version of the package does not read: the study must be run again, or attribute "
            f"`format` is damaged, and {repairing(path)} restores it"
        )
    for name, kind in _ATTRIBUTES.items():
        if name not in attributes:
            raise StoreError(f"{path} is no store of a study: attribute `{name}` is missing")
        if type(attributes[name]) is not kind:
            raise StoreError(f"{path}: attribute `{name}` is damaged")
    for name in _OBJECTS:
        parsed(path, attributes, name)
    if attributes[CHECKSUM] != checksum(attributes):
        raise StoreError(
            f"{path}: the attributes are not those that were written; {repairing(path)} restores "
            "them"
        )


def parsed(path: Path | None, attributes: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An attribute that holds a JSON object.

    **Raises:** `StoreError`
    """
    try:
        found = json.loads(str(attributes[name]))
    except (ValueError, RecursionError) as error:
        raise StoreError(f"{path}: attribute `{name}` is damaged: {error}") from error
    if not isinstance(found, dict):
        raise StoreError(f"{path}: attribute `{name}` is damaged: it is no JSON object")
    return found


def write_copy(backend: AbstractBackend, attributes: Mapping[str, Any]) -> None:
    """Keep a copy of attributes, unless it is there."""
    content = json.dumps(dict(attributes), sort_keys=True).encode()
    if backend.read(COPY) != content:
        backend.remove(COPY)
        backend.write(COPY, content)


def read_copy(backend: AbstractBackend) -> dict[str, Any] | None:
    """The copy of the attributes; `None` if it is damaged too."""
    try:
        found = json.loads(backend.read(COPY) or b"")
        if not isinstance(found, dict):
            return None
        check_attributes(backend.path, found)
    except (ValueError, OSError, RecursionError):
        return None
    return found
