"""Status codes of times on a trajectory, and of onsets."""

from .._status import AbstractStatus


class PointStatus(AbstractStatus):
    """What is known at one time of a trajectory; all but `REACHED` and `TRUNCATED` hold NaN."""

    REACHED = 0, "the state is known to the tolerance"
    TRUNCATED = (
        1,
        "reached, but the dimension of the reduction limits the accuracy: see `truncation`",
    )
    BEYOND_BLOW_UP = 2, "lies at or beyond the blow-up time"
    BEFORE_START = 3, "lies before the start of the flow"
    NEVER_REACHED = 4, "is never reached: the flow comes to rest"
    TOO_CLOSE = 5, "lies after the end of the trajectory: give `trajectory` a smaller `closeness`"
    NOT_CONVERGED = (
        6,
        "lies after the end of the trajectory, which does not come near a blow-up: its "
        "`max_pieces` are used up, or rounding has taken its digits",
    )
    INVALID_INPUT = 7, "is not finite, or the state is not"


class OnsetStatus(AbstractStatus):
    """What is known of the onset of the final stage."""

    FOUND = 0, "the final stage begins at `time`"
    FROM_START = 1, "the initial state satisfies the condition: the time is 0"
    NOT_REACHED = 2, "the condition does not hold where the trajectory ends: the time is infinite"
    NO_BLOW_UP = 3, "the flow comes to rest and has no final stage: the time is infinite"
    NOT_CONVERGED = 4, "the trajectory ends far from the blow-up, or T* is unknown: the time is NaN"
    INVALID_INPUT = 5, "the state is not finite: the time is NaN"
