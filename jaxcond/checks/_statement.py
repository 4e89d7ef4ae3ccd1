"""Statements, and helpers for their deviations."""

import dataclasses
from collections.abc import Callable

import numpy as np

from ._evidence import Evidence

# The deviation of a sample to which a statement does not apply.
NOT_TESTED = -np.inf

Deviation = Callable[[Evidence], np.ndarray]


@dataclasses.dataclass(frozen=True)
class Statement:
    """A statement, and how it is checked.

    - `name`: its number in the paper, or our name for it; `proven`: the statement itself.
    - `observed`: a description of the deviation; `deviation`: a function from evidence to one
      number for each sample, `NOT_TESTED` if the sample does not satisfy the assumptions.
    - `limit`: the largest deviation that still counts as agreement.
    - `on`: the names of its ensembles.
    - `refuted`: whether the statement is wrong as printed, so that a deviation beyond the limit, a
      counter-example, is expected.
    """

    name: str
    proven: str
    observed: str
    deviation: Deviation
    limit: float
    on: tuple[str, ...]
    refuted: bool = False

    def deviations(self, evidence: Evidence) -> np.ndarray:
        """The deviation of each sample; infinite for NaN."""
        # Flows that failed hold infinities.
        with np.errstate(all="ignore"):
            values = np.asarray(self.deviation(evidence), float)
        return np.where(np.isnan(values), np.inf, values)


def largest(values: np.ndarray) -> np.ndarray:
    """The largest value of each sample; NaN counts as infinite."""
    values = np.where(np.isnan(values), np.inf, values)
    return np.max(values.reshape(values.shape[0], -1), axis=1)


def where_tested(tested: np.ndarray, deviation: np.ndarray, evidence: Evidence) -> np.ndarray:
    """The deviations of tested samples, and infinity for samples whose flow failed."""
    lost = ~np.all(np.isfinite(evidence.times), axis=1)
    return np.where(lost, np.inf, np.where(tested, deviation, NOT_TESTED))


def in_final_stage(evidence: Evidence, values: np.ndarray) -> np.ndarray:
    """The largest value of each sample from the onset of the final stage onwards."""
    return over_points(evidence, evidence.once_final, values)


def over_points(evidence: Evidence, points: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The largest value of each sample at the chosen points, if there are any."""
    mask = points.reshape(*points.shape, *(1,) * (values.ndim - 2))
    worst = largest(np.where(mask, values, -np.inf))
    return where_tested(np.any(points, axis=1), worst, evidence)


def at(values: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Values at one point of each sample."""
    return values[np.arange(len(points)), points]


def closest(evidence: Evidence, closeness: float) -> np.ndarray:
    """The point of each sample at which $(T^* - t)/T^*$ is nearest to `closeness`."""
    left = 1 - evidence.times / evidence.blow_up[:, None]
    apart = np.abs(np.log(np.where(left > 0, left, np.nan) / closeness))
    return np.argmin(np.where(np.isnan(apart), np.inf, apart), axis=1)


def halves(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    """Points of the first half of the way from the onset of the final stage, and of the second."""
    index = np.arange(evidence.times.shape[1])
    middle = (evidence.onset + index[-1]) // 2
    first = evidence.once_final & (index <= middle[:, None])
    return first, evidence.once_final & (index > middle[:, None])
