"""Status codes of a predicted escape, and why the effective model may not reach it."""

from .._status import AbstractStatus


class EscapeStatus(AbstractStatus):
    """What is known of the end of a plateau."""

    PREDICTED = 0, "the loss crosses the level; `Escape.limit` tells which flow was followed there"
    NOT_CROSSED = (
        1,
        "the loss of the network did not fall to the level as far as its flow was followed",
    )
    NO_BLOW_UP = 2, "the effective model comes to rest"
    NOT_CONVERGED = 3, "the blow-up time or the trajectory did not converge"
    INVALID_INPUT = 4, "the weights are not finite"
    ALREADY_BELOW = 5, "the initial loss is not above the level"
    UNSTABLE = (
        6,
        "the learning rate is above 2 over the largest curvature of the loss, beyond which descent "
        "does not follow the flow: lower it",
    )


class Limit(AbstractStatus):
    """Why the effective model does not hold as far as the crossing, and what to do."""

    NONE = 0, "the effective model holds as far as the crossing"
    INITIAL_WEIGHTS = 1, "the initial weights are too large: draw smaller ones"
    LINEAR_PART = (
        2,
        "linear maps bring the loss hardly down to the level: smaller weights do not help; raise "
        "`fraction`, or take the crossing as that of the nonlinear network, which it is",
    )
    INPUT_SCALES = 3, "the inputs are of very different scales, or large: standardise them"
    TARGET_SCALE = (
        4,
        "the targets are large, so that the weights are no longer small at the crossing: "
        "standardise the targets, or take T*, which lies close to the crossing",
    )
    LEVEL = (
        5,
        "the level is low, so that the weights are no longer small at the crossing: raise "
        "`fraction`, or take T*",
    )
    TRAJECTORY = (
        6,
        "its trajectory did not converge, as with four layers and more in single precision: use "
        "float64",
    )
    OUTPUT_BIAS = (
        7,
        "the output bias settles too late for the effective model to begin, as with very rare "
        "classes",
    )
