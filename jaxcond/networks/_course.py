r"""The course of a network along its effective trajectory: three curves, and where they cross.

The effective model blows up at $T^*$ of the initial weights; the loss falls a little earlier. Along
the effective trajectory $\theta(t)$, lifted to the network, there are three curves:

1. the loss of the linearised network,
   $R_1 = \frac1n\sum\ell(\sigma'(0)^{L-1} W_L\cdots W_1x_i, y_i)
   = R_0 - \mathrm{rate}\cdot E + O(E^2)$: the effective model with the quadratic term;
2. the loss of the network itself at these weights;
3. the clock of the network. To first order in the terms that the effective model leaves out, the
   network moves along the trajectory with the share $\nu = \langle -\nabla R, g\rangle/\|g\|^2$ of
   the model's speed, where $g$ is the effective gradient. Gradient descent of step $\eta$ lags
   behind the flow, as the forward Euler method does, by
   $\frac\eta2\log(\|\dot\theta\|/\|\dot\theta(0)\|)$:

$$t_\mathrm{network}(t) = \int_0^t \frac{ds}{\nu(s)} + \frac\eta2\log\frac{\|g(t)\|}{\|g(0)\|} .$$

With biases in every layer, the output bias learns before the effective model begins, and then
follows the outputs. In that case, and wherever the effective model ceases to hold, the network's
own flow takes over before the crossing (`jaxcond.networks._handover`).

Sources: Chen and Luo, eqs. (3.8) to (3.10), for the effective model. 2 and 3 are derived here; the
lag is the leading term of backward error analysis, $\dot\theta = F - \frac\eta2 F'F$, along $F$.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from scipy.interpolate import CubicHermiteSpline

from ..blowup import Status
from ._data import AbstractData
from ._effective import EffectiveModel, effective_model, plateau_output
from ._effective_path import Path, along, lifted_at, trajectory_to
from ._escape_status import EscapeStatus, Limit
from ._handover import (
    LossOf,
    handover_point,
    is_stable,
    large_targets,
    large_weights,
    loss_at,
    own_flow,
    settled,
    uneven_inputs,
)
from ._lanes import over_lanes, stacked, unstacked
from ._losses import Loss, LossFunction, resolve_loss
from ._modules import MLP
from ._own_flow import Arrival
from ._schedule import LearningRate

# The first-order clock is valid while the network moves at half to twice the model's speed.
_SLOWEST, _FASTEST = 0.5, 2.0


def _norms(network: MLP) -> np.ndarray:
    return np.asarray([jnp.linalg.norm(w) for w in network.weights])


class Crossing(NamedTuple):
    """The crossing of a level: `time` by the network's clock and `effective` by the effective model
    (NaN if the network's own flow was followed), with the status and the limit of the effective
    model. `arrival` is the end of the own flow.
    """

    time: float
    effective: float
    status: EscapeStatus
    limit: Limit
    arrival: Arrival | None = None


class Course:
    """A path on the host: its curves against training time, and their crossings of a level.

    It begins at training time `begun` with the network `start`, whose output bias has settled.
    """

    def __init__(self, setting: "_Setting", begin: "_Begin", path: Path):
        per_time = float(setting.model.rate)
        self._setting, self.begun, self.start = setting, begin.time, begin.network
        self.level, self.plateau = begin.level, begin.plateau
        self._first, self._early, self._settled = begin.loss, begin.crossing, begin.settled
        self.path = jax.tree.map(np.asarray, path)
        self.time_left = np.asarray(path.time_left, np.float64) / per_time
        self.times = self.begun + np.asarray(path.times, np.float64) / per_time
        blowup = path.blowup
        names = ("time", "lower", "upper", "error")
        scaled = [np.asarray(getattr(blowup, n), np.float64) / per_time for n in names]
        scaled[:3] = [self.begun + x for x in scaled[:3]]
        self.blowup = eqx.tree_at(lambda b: [getattr(b, n) for n in names], blowup, scaled)
        # For networks at rest none of these is finite.
        with np.errstate(all="ignore"):
            slow = 1 / np.asarray(path.speed, np.float64) - 1
            change, steps = np.gradient(slow, self.times), np.diff(self.times)
            # The trapezoidal rule with the correction by derivatives at the ends of each step.
            passed = 0.5 * (slow[1:] + slow[:-1]) * steps
            passed += (change[:-1] - change[1:]) * steps**2 / 12
            self._lag_slope = slow
            if setting.rate is not None:
                half, size = 0.5 * setting.rate.rate_at(self.times), path.log_size
                passed += half[1:] * np.diff(np.asarray(size, np.float64))
                self._lag_slope = slow + half * np.gradient(size, self.times)
            self.lag = np.concatenate([[0.0], np.cumsum(passed)])

    @property
    def clock(self) -> np.ndarray:
        """The network's times that correspond to the effective `times`."""
        return self.times + self.lag

    @property
    def problem(self) -> LossOf:
        """The loss of a network."""
        return self._setting.problem

    @property
    def grows_exponentially(self) -> bool:
        """Whether the network has two layers, whose model does not blow up."""
        return bool(np.all(np.isinf(self.time_left)))

    def network_time(self, time: float) -> float:
        """The clock, interpolated between the points."""
        after = int(np.clip(np.searchsorted(self.times, time), 1, len(self.times) - 1))
        ends = slice(after - 1, after + 1)
        nearby = self.times[ends], self.lag[ends], self._lag_slope[ends]
        if not np.all(np.isfinite(nearby)) or not nearby[0][0] < nearby[0][1]:
            return math.nan
        return time + float(CubicHermiteSpline(*nearby)(np.clip(time, *nearby[0])))

    def effective_time(self, clock: float) -> float:
        """The inverse of `network_time`."""
        time = clock - float(np.interp(clock, self.clock, self.lag))
        for _ in range(2):  # the lag changes slowly
            time += clock - self.network_time(time)
        return time

    def crossing(self) -> Crossing:
        """The crossing of the level by the network, with its status."""
        if self._first <= self.level:
            return Crossing(math.nan, math.nan, EscapeStatus.ALREADY_BELOW, Limit.NONE)
        if math.isfinite(self._early):
            stable = self._is_stable(self._early, _norms(self.start), lambda: self.start)
            status = EscapeStatus.PREDICTED if stable else EscapeStatus.UNSTABLE
            return Crossing(self._early, math.nan, status, Limit.NONE)
        if not self._settled:
            return self._followed(Limit.OUTPUT_BIAS)
        status = self.known()
        if status == EscapeStatus.NOT_CONVERGED and np.isfinite(self.path.network_loss[0]):
            return self._followed(Limit.TRAJECTORY)
        if status != EscapeStatus.PREDICTED:
            return Crossing(math.nan, math.nan, status, Limit.NONE)
        path = self.path
        effective = self._first_below(path.network_loss, path.d_network, self.level)
        limit = self.limit(effective)
        if limit == Limit.NONE and self.start.biases is None:
            norms = self.path.norms[np.searchsorted(self.times, effective)]
            stable = self._is_stable(effective, norms, lambda: self.lifted(effective))
            status = EscapeStatus.PREDICTED if stable else EscapeStatus.UNSTABLE
            return Crossing(self.network_time(effective), effective, status, limit)
        return self._followed(limit)

    def _is_stable(self, time: float, norms: np.ndarray, network: Callable[[], MLP]) -> bool:
        """Whether the learning rate is small enough for descent to follow the flow at a network."""
        setting = self._setting
        if setting.rate is None:
            return True
        rate = float(setting.rate.rate_at(np.asarray(time)))
        features = setting.data.input_power(self.start.bias)
        return is_stable(rate, np.asarray(norms, np.float64), self.problem, features, network)

    def effective_crossing(self) -> float:
        """The time at which the effective model with its quadratic term crosses the level."""
        return self._first_below(self.path.effective_loss, self.path.d_effective, self.level)

    def known(self) -> EscapeStatus:
        """Whether there is an effective trajectory; `PREDICTED` if there is."""
        by_solver = {
            Status.NO_BLOW_UP: EscapeStatus.NO_BLOW_UP,
            Status.NOT_CONVERGED: EscapeStatus.NOT_CONVERGED,
            Status.INVALID_INPUT: EscapeStatus.INVALID_INPUT,
        }
        rests = self.grows_exponentially
        if not rests and int(self.blowup.status) in by_solver:
            return by_solver[Status(int(self.blowup.status))]
        if not rests and not self.blowup.is_known():
            return EscapeStatus.NOT_CONVERGED
        if not np.all(np.isfinite(self.path.network_loss)):
            return EscapeStatus.INVALID_INPUT
        if not self.path.complete:
            return EscapeStatus.NO_BLOW_UP if rests else EscapeStatus.NOT_CONVERGED
        return EscapeStatus.PREDICTED

    def limit(self, time: float) -> Limit:
        """Why the effective model does not hold up to a time, or to the end if the time is NaN."""
        speed = np.asarray(self.path.speed)
        holds = (speed > _SLOWEST) & (speed < _FASTEST)
        last = len(speed) if math.isnan(time) else int(np.sum(self.times <= time))
        if last < len(speed) and not _SLOWEST < np.interp(time, self.times, speed) < _FASTEST:
            last += 1
        astray = np.flatnonzero(~holds[:last])
        if astray.size:
            return self._why_astray(int(astray[0]))
        return Limit.LINEAR_PART if math.isnan(time) else Limit.NONE

    def _why_astray(self, point: int) -> Limit:
        """Why the speed of the network differs from that of the model."""
        setting, speed = self._setting, float(self.path.speed[point])
        # Whether the quadratic term explains most of the difference.
        linear = -float(self.path.d_effective[point]) * np.exp(-2 * self.path.log_size[point])
        if point > 0 and abs(speed - linear) < 0.5 * abs(speed - 1):
            return Limit.LINEAR_PART
        if point == 0 and large_weights(self.start):
            return Limit.INITIAL_WEIGHTS
        if uneven_inputs(setting.data):
            return Limit.INPUT_SCALES
        if large_targets(setting.data, setting.loss, setting.output):
            return Limit.TARGET_SCALE
        return Limit.INITIAL_WEIGHTS if point == 0 else Limit.LEVEL

    def _first_below(self, loss: np.ndarray, slope: np.ndarray, level: float) -> float:
        """The first effective time at which a loss is below a level; NaN if there is none."""
        below = np.flatnonzero(loss < level)
        if not below.size or below[0] == 0:
            return math.nan
        ends = slice(below[0] - 1, below[0] + 1)
        cubic = CubicHermiteSpline(self.times[ends], loss[ends] - level, slope[ends])
        roots = cubic.roots(extrapolate=False)
        return float(roots[0]) if roots.size else float(self.times[below[0]])

    def _followed(self, limit: Limit) -> Crossing:
        """The crossing by the network's own flow, started where the effective model still holds."""
        setting, path = self._setting, self.path
        point = 0
        if limit not in (Limit.TRAJECTORY, Limit.OUTPUT_BIAS):
            speed, loss = np.asarray(path.speed), np.asarray(path.network_loss)
            point = handover_point(speed, loss, self.level)
        begun = float(self.clock[point])
        network = self.lifted(float(self.times[point])) if point else self.start
        rate = 0.0 if setting.rate is None else float(setting.rate.rate_at(np.asarray(begun)))
        arrival = own_flow(network, self.problem, rate, self.level, math.inf)
        time = begun + float(arrival.time)
        stable = self._is_stable(time, _norms(arrival.floats), lambda: arrival.floats)
        if not bool(arrival.crossed):
            status = EscapeStatus.NOT_CROSSED if stable else EscapeStatus.UNSTABLE
            if stable and bool(arrival.failed):
                status = EscapeStatus.NOT_CONVERGED
            return Crossing(math.nan, math.nan, status, limit)
        status = EscapeStatus.PREDICTED if stable else EscapeStatus.UNSTABLE
        return Crossing(time, math.nan, status, limit, arrival)

    def lifted(self, time: float) -> MLP:
        """The network at a time of the effective model, with its output bias at rest."""
        setting = self._setting
        since = jnp.asarray((time - self.begun) * float(setting.model.rate), self.start.dtype)
        return lifted_at(self.start, since, setting.data, setting.model, setting.loss)


class _Setting(NamedTuple):
    """The arguments that all courses of one call share; `output` is that of the plateau."""

    data: AbstractData
    loss: Loss
    model: EffectiveModel
    output: np.ndarray
    rate: LearningRate | None

    @property
    def problem(self) -> LossOf:
        return LossOf(self.data, self.loss)


class _Begin(NamedTuple):
    """The beginning of a course: the network, its time, an earlier crossing (NaN if none), whether
    the output bias has settled, the loss of the initial weights, that of the plateau, and the
    level.
    """

    network: MLP
    time: float
    crossing: float
    settled: bool
    loss: float
    plateau: float
    level: float


def _begin(lane: MLP, setting: _Setting, drop: float, level: float | None) -> _Begin:
    """Follow a network until its output bias, if it has one, has settled."""
    loss = float(loss_at(setting.problem, lane))
    plateau = loss
    if lane.biases is not None:
        plateau = float(loss_at(setting.problem, _at_rest(lane, setting.output)))
    if level is None and plateau <= 0:
        raise ValueError(
            "The loss of the plateau is not positive, so that a share of it is no level: give "
            "`level`, or add a constant to the loss."
        )
    level = (1 - drop) * plateau if level is None else level
    if lane.biases is None or not loss > level or not math.isfinite(loss):
        return _Begin(lane, 0.0, math.nan, True, loss, plateau, level)
    rate = 0.0 if setting.rate is None else float(setting.rate.rates[0])
    return _Begin(*settled(lane, setting.problem, rate, level), loss, plateau, level)


def _at_rest(network: MLP, output: np.ndarray) -> MLP:
    """The network with zero weights, on its plateau."""
    zero = jax.tree.map(jnp.zeros_like, network)
    assert zero.biases is not None
    return zero.replace(zero.weights, (*zero.biases[:-1], jnp.asarray(output, network.dtype)))


def courses(
    network: MLP,
    data: AbstractData,
    loss: str | float | LossFunction | Loss,
    rate: LearningRate | None,
    drop: float,
    num: int,
    level: float | None = None,
) -> list[Course]:
    """The courses of one network or of many, past the crossing of the level.

    The level is `level`, or the loss of the plateau minus the share `drop` of it. With biases in
    every layer, the loss of the plateau is that of the best constant output, otherwise the initial
    loss.
    """
    loss = resolve_loss(loss)
    model = effective_model(network, data, loss)
    data = data.prepared(network, loss)
    setting = _Setting(data, loss, model, plateau_output(network, data, loss), rate)
    lanes = network if network.batch_shape else jax.tree.map(lambda x: x[None], network)
    begins = [_begin(lane, setting, drop, level) for lane in unstacked(lanes)]

    def follow(lane: tuple[MLP, Array]) -> Path:
        start, level = lane
        initial = data.loss(start, loss)
        # A level that is not below the initial loss is `ALREADY_BELOW` in every case.
        fall = jnp.where(initial > level, initial - level, 0.1 * jnp.abs(initial))
        path = trajectory_to(start, model, fall)
        return along(start, path, data, model, loss, num)

    levels = jnp.asarray([begin.level for begin in begins], network.dtype)
    paths = over_lanes(follow, (stacked([begin.network for begin in begins]), levels))
    return [Course(setting, *pair) for pair in zip(begins, unstacked(paths), strict=True)]
