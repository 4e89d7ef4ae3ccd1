"""What is known of the end of a plateau, and why the effective model does not reach it."""

import enum


class EscapeStatus(enum.IntEnum):
    """What is known of the end of a plateau."""

    PREDICTED = 0
    """The loss crosses the level: `Escape.limit` tells whether the effective model holds as far as
    that, or the network's own flow was followed."""
    NOT_CROSSED = 1
    """The network was followed to where its loss hardly falls any more, or for as many steps as are
    allowed, and its loss did not fall to the level."""
    NO_BLOW_UP = 2
    """The effective model comes to rest."""
    NOT_CONVERGED = 3
    """Neither the effective model nor the network itself could be followed."""
    INVALID_INPUT = 4
    """The weights are not finite."""
    ALREADY_BELOW = 5
    """The initial loss is not above the level."""
    UNSTABLE = 6
    """The learning rate is above 2 over the largest curvature of the loss at the crossing: descent
    does not follow the flow there, and the crossing is that of the flow."""

    @property
    def meaning(self) -> str:
        """Why there is no prediction; empty for `PREDICTED`."""
        return _MEANING.get(self, "")


_MEANING = {
    EscapeStatus.NOT_CROSSED: "the loss of the network did not fall to the level as far as its "
    "flow was followed",
    EscapeStatus.NO_BLOW_UP: "the effective model comes to rest",
    EscapeStatus.NOT_CONVERGED: "the blow-up time or the trajectory did not converge",
    EscapeStatus.INVALID_INPUT: "the weights are not finite",
    EscapeStatus.ALREADY_BELOW: "the initial loss is not above the level",
    EscapeStatus.UNSTABLE: "the learning rate is above 2 over the largest curvature of the loss, "
    "beyond which descent does not follow the flow: lower it",
}


class Limit(enum.IntEnum):
    """Why the effective model does not hold as far as the crossing."""

    NONE = 0
    """It does."""
    INITIAL_WEIGHTS = 1
    """The initial weights are too large."""
    LINEAR_PART = 2
    """The loss comes close to what linear maps reach, before it falls to the level."""
    INPUT_SCALES = 3
    """Some inputs are so large that the first layer is not linear in them, small as it is."""
    TARGET_SCALE = 4
    """The targets are so large that at the crossing the weights are not small."""
    LEVEL = 5
    """The level is so low that at the crossing the weights are not small."""
    TRAJECTORY = 6
    """The blow-up time or the trajectory of the effective model did not converge."""
    OUTPUT_BIAS = 7
    """The output bias takes too long to settle, as with very rare classes: the effective model does
    not begin."""

    @property
    def meaning(self) -> str:
        """What it is, and what to do; empty for `NONE`."""
        return _LIMITS.get(self, "")


_LIMITS = {
    Limit.INITIAL_WEIGHTS: "the initial weights are too large: draw smaller ones",
    Limit.LINEAR_PART: "linear maps bring the loss hardly down to the level: smaller weights do "
    "not help; raise `fraction`, or take the crossing as what it is, that of the nonlinear network",
    Limit.INPUT_SCALES: "the inputs are of very different scales, or large: standardise them",
    Limit.TARGET_SCALE: "the targets are large, so that the weights are not small any more at the "
    "crossing: standardise the targets, or take T*, close to which all happens",
    Limit.TRAJECTORY: "its trajectory did not converge, as with four layers and more in single "
    "precision: use float64",
    Limit.OUTPUT_BIAS: "the output bias takes so long to settle that the effective model does not "
    "begin, as with very rare classes",
    Limit.LEVEL: "the level is low, and the weights not small any more at the crossing: raise "
    "`fraction`, or take T*",
}
