"""Identifies the maker of a store, so that resuming it never imports a stranger's function unasked.

A store of a `function` study carries a seal: a keyed hash of the function's name, the file of its
module, the user, the machine and the study. The key stays in a folder of the user. Nobody else can
therefore make a valid seal, and a copied seal is not valid for another function.
"""

import contextlib
import hashlib
import hmac
import importlib.util
import json
import os
import secrets
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import platformdirs

SEAL = "seal"
_KEY_SIZE = 32


def module_file(function: str) -> str | None:
    """The file in which Python finds the module of `module:name`, without importing it.

    For `package.module:name` this is the file of the package, since a closer look would import it.

    **Returns:** `None` if the module does not exist.
    """
    top = function.partition(":")[0].partition(".")[0]
    loaded = getattr(sys.modules.get(top), "__file__", None)
    if loaded is not None:
        return os.path.realpath(loaded)
    spec = None
    with contextlib.suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(top) if top else None
    if spec is None:
        return None
    places = list(spec.submodule_search_locations or ())
    place = spec.origin or (places[0] if places else None)
    return os.path.realpath(place) if place and os.path.exists(place) else place


def seal(function: str, digest: str) -> str | None:
    """The seal of this user and machine for a study with the given digest.

    **Returns:** `None` if no key exists and none can be stored.
    """
    key = _key()
    if key is None:
        return None
    user = os.getuid() if hasattr(os, "getuid") else os.environ.get("USERNAME", "")
    message = json.dumps([function, module_file(function), digest, user, socket.gethostname()])
    return hmac.new(key, message.encode(), hashlib.sha256).hexdigest()


def is_ours(function: str, attributes: Mapping[str, Any]) -> bool:
    """Whether this user made the store with these attributes, on this machine."""
    stored = attributes.get(SEAL)
    expected = seal(function, str(attributes.get("configuration_hash")))
    return (
        isinstance(stored, str)
        and expected is not None
        and hmac.compare_digest(stored.encode(), expected.encode())
    )


def _key() -> bytes | None:
    named = os.environ.get("JAXCOND_STATE_DIR")
    folder = Path(named) if named else Path(platformdirs.user_state_dir("jaxcond"))
    path = folder / "seal.key"
    with contextlib.suppress(OSError):
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            # Whole or not at all: another process may be making one, and the first one stays.
            beside = folder / f".seal.key.{secrets.token_hex(8)}"
            with open(os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
                file.write(secrets.token_bytes(_KEY_SIZE))
            with contextlib.suppress(FileExistsError):
                os.link(beside, path)
            beside.unlink()
        found = path.read_bytes()
        return found if len(found) == _KEY_SIZE else None
    return None
