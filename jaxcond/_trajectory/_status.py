"""Status codes of times on a trajectory, and of onsets."""

import enum


class PointStatus(enum.IntEnum):
    """What is known at one time of a trajectory; all but `REACHED` and `TRUNCATED` hold NaN."""

    REACHED = 0
    """The state is known to the tolerance."""
    TRUNCATED = 1
    """Reached, but the reduction's dimension limits the accuracy: see `Trajectory.truncation`."""
    BEYOND_BLOW_UP = 2
    """The time lies at or beyond $T^*$."""
    BEFORE_START = 3
    """The time is negative, or the energy below that of the initial state."""
    NEVER_REACHED = 4
    """The state comes to rest: the energy, or the fraction of $T^*$, is never reached."""
    TOO_CLOSE = 5
    """Between the last piece and the blow-up: a smaller `closeness` goes further."""
    NOT_CONVERGED = 6
    """After the last of `max_pieces` pieces, or $T^*$ is not known."""
    INVALID_INPUT = 7
    """The initial state is not finite, or the time is NaN."""


class OnsetStatus(enum.IntEnum):
    """What is known of the onset of the final stage."""

    FOUND = 0
    """It begins at `Onset.time`."""
    FROM_START = 1
    """The initial state satisfies the condition: the time is 0."""
    NOT_REACHED = 2
    """The condition does not hold where the trajectory ends: the time is infinite."""
    NO_BLOW_UP = 3
    """The flow comes to rest; there is no final stage: the time is infinite."""
    NOT_CONVERGED = 4
    """The trajectory ends far from the blow-up, or $T^*$ is not known: the time is NaN."""
    INVALID_INPUT = 5
    """The state is not finite: the time is NaN."""
