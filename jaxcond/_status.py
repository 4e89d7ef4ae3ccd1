"""Status codes that carry their messages."""

import enum
from typing import Any, Self

import numpy as np


class AbstractStatus(enum.IntEnum):
    """An integer code for arrays, with a sentence for people.

    class Status(AbstractStatus):
        CONVERGED = 0, "the time is known to the tolerance"
    """

    meaning: str
    """What the status says, and what to do about it."""

    def __new__(cls, code: int, meaning: str) -> Self:
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = member.__doc__ = meaning
        return member

    @property
    def label(self) -> str:
        """The name in lower case, as results and stores show it."""
        return self.name.lower()

    @classmethod
    def counts(cls, codes: Any) -> dict[str, int]:
        """Number of samples by label, zeros included, in the order of the codes."""
        codes = np.asarray(codes)
        return {status.label: int(np.sum(codes == status)) for status in cls}

    @classmethod
    def summary(cls, codes: Any) -> str:
        """The counts that are not zero in one line: `3 converged, 1 not_converged`."""
        return ", ".join(f"{count} {label}" for label, count in cls.counts(codes).items() if count)

    @classmethod
    def flags(cls) -> dict[str, Any]:
        """The attributes that describe a variable of codes by the CF conventions."""
        return {
            "flag_values": [int(status) for status in cls],
            "flag_meanings": " ".join(status.label for status in cls),
        }
