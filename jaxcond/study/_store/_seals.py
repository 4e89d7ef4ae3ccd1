"""Digests that bind values to their place, so that values in another place are noticed.

They are of 64 bits, by BLAKE2b: an accident escapes with probability $2^{-64}$. They are no
signatures, since who knows the recipe can make them.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

CHECKSUM = "checksum"


def _word(head: list[Any], content: Any = b"") -> int:
    found = hashlib.blake2b(json.dumps(head).encode() + b"\0", digest_size=8)
    found.update(content)
    return int.from_bytes(found.digest(), "little", signed=True)


def chunk_seal(identity: str, point: int, chunk: int, name: str, values: np.ndarray) -> int:
    """The digest of the values of a variable in a chunk.

    **Arguments:** `identity`, of the study; `point`, `chunk`, `name`, the place; `values`, of all
    samples of the chunk.
    """
    plain = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
    head = [identity, point, chunk, name, plain.dtype.str, list(plain.shape)]
    return _word(head, plain.data.cast("B") if plain.size else b"")


def unmarked_seal(identity: str) -> int:
    """What stands in the place of the digests of a chunk without samples: not zero, nor empty."""
    return _word([identity, "unmarked"])


def checksum(attributes: Mapping[str, Any]) -> str:
    """The digest of all other attributes of a store."""
    plain = {name: value for name, value in attributes.items() if name != CHECKSUM}
    text = json.dumps(plain, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
