"""What is wrong with a store: a value that names the place, and the error that carries it."""

import enum
from dataclasses import dataclass
from pathlib import Path


class StoreError(OSError):
    """A store that is missing, damaged, in use, or of another configuration."""


class Kind(enum.StrEnum):
    """How a part of a store is damaged."""

    MISSING = "missing"
    UNREADABLE = "damaged"
    """The file cannot be decoded, or its checksum is wrong."""
    ALTERED = "altered"
    """The file can be read, but does not hold what was written in its place."""
    ILLEGAL = "illegal"
    """The values have no meaning: unknown statuses, or times outside their bracket."""


@dataclass(frozen=True)
class Damage:
    """A damaged part of a store.

    **Arguments:** `point` and `chunk`, `None` for what no chunk has to itself: the description of a
    variable, a coordinate, the attributes; `variable`, its name; `kind`.
    """

    point: int | None
    chunk: int | None
    variable: str
    kind: Kind


class DamageError(StoreError):
    """A damaged part of a store was needed."""

    def __init__(self, message: str, damage: Damage):
        super().__init__(message)
        self.damage = damage


def repairing(path: Path | None) -> str:
    """What to do about damage."""
    return f"`jaxcond resume --repair {path}`"
