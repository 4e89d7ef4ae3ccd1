r"""The course of a network along its effective trajectory: three curves, and where they cross.

The effective model blows up at $T^*$ of the initial weights; the loss falls a little earlier. Along
the effective trajectory $\theta(t)$, lifted to the network, there are three curves:

1. the loss of the linearised network,
   $R_1 = \frac1n\sum\ell(\sigma'(0)^{L-1} W_L\cdots W_1x_i, y_i)
   = R_0 - \mathrm{rate}\cdot E + O(E^2)$: the effective model with the quadratic term;
2. the loss of the network itself at these weights;
3. the clock of the network. It moves along the trajectory not with the speed of the effective
   model but, to first order in what that leaves out, with the share
   $\nu = \langle -\nabla R, g\rangle/\|g\|^2$ of it, $g$ being the effective gradient, and gradient
   descent of step $\eta$ lags behind the flow as the forward Euler method does, by
   $\frac\eta2\log(\|\dot\theta\|/\|\dot\theta(0)\|)$:

$$t_\mathrm{network}(t) = \int_0^t \frac{ds}{\nu(s)} + \frac\eta2\log\frac{\|g(t)\|}{\|g(0)\|} .$$

Where there are biases in every layer, the output bias learns before the effective model begins, and
follows the outputs as it goes on. The network's own flow takes over before the crossing there, and
wherever the effective model ceases to hold (`jaxcond.networks._handover`).

Sources: Chen and Luo, eqs. (3.8) to (3.10), for the effective model. 2 and 3 are derived here; the
lag is the leading term of backward error analysis, $\dot\theta = F - \frac\eta2 F'F$, along $F$.
"""

import enum
import math
from collections.abc import Callable
from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float
from scipy.interpolate import CubicHermiteSpline

from .._chain import Chain
from .._energy import energy as _energy
from .._energy import vector_field
from .._state import State
from .._trajectory import Trajectory, method_of, trajectory
from ..blowup import BlowUp, Status, blowup_time
from ..bounds import two_layer_flow
from ._data import AbstractData
from ._effective import EffectiveModel, effective_model, plateau_output
from ._handover import (
    LossOf,
    handover_point,
    is_stable,
    large_targets,
    large_weights,
    own_flow,
    settled,
    uneven_inputs,
)
from ._lanes import over_lanes, stacked, unstacked
from ._losses import Loss, LossFunction, resolve_loss
from ._modules import MLP
from ._own_flow import Arrival
from ._schedule import LearningRate

# Trajectories go on to this share of the time left where the effective loss has fallen by as much
# as was asked for, since the quadratic term holds it up.
_BEYOND = 0.3
_RTOL = 1e-10
# The first-order clock is trusted while the network moves at between a half and twice the speed.
_SLOWEST, _FASTEST = 0.5, 2.0


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
    """The blow-up time or the trajectory is not known."""
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
    Limit.LEVEL: "the level is low, and the weights not small any more at the crossing: raise "
    "`fraction`, or take T*",
}


class Path(eqx.Module):
    """What one network has at points of its effective trajectory, in effective time.

    `d_effective` and `d_network` are the derivatives of the losses along the trajectory, in
    training time; `speed` is nu; `norms` those of the layers; `log_size` the logarithm of the size
    of the effective gradient; `complete`, whether the trajectory comes near its blow-up.
    """

    blowup: BlowUp
    complete: Bool[Array, ""]
    times: Float[Array, " num"]
    time_left: Float[Array, " num"]
    effective_loss: Float[Array, " num"]
    d_effective: Float[Array, " num"]
    network_loss: Float[Array, " num"]
    d_network: Float[Array, " num"]
    speed: Float[Array, " num"]
    log_size: Float[Array, " num"]
    energy: Float[Array, " num"]
    norms: Float[Array, "num layers"]


class _Exponential(eqx.Module):
    r"""The effective trajectory of two layers, which does not blow up: by its closed form.

    It ends at the effective time `end`; `complete`, whether it has the energy asked for there.
    """

    start: Chain
    end: Float[Array, ""]
    complete: Bool[Array, ""]
    blowup: BlowUp

    @classmethod
    def to_energy(cls, start: Chain, energy: Array) -> "_Exponential":
        """From its start to the time at which it has an energy, which never falls."""

        def reached(time: Array) -> Array:
            return _energy(two_layers_at(start, time)) >= energy

        def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            below, above = ends
            middle = 0.5 * (below + above)
            hit = reached(middle)
            return jnp.where(hit, below, middle), jnp.where(hit, middle, above)

        # Beyond that energies overflow, which grow like exp(2 t) at most.
        longest = jnp.asarray(0.4 * jnp.log(jnp.finfo(start.dtype).max), start.dtype)
        _, end = lax.fori_loop(0, 40, halve, (jnp.zeros_like(longest), longest))
        return cls(start, end, reached(end), blowup_time(start))

    def __call__(self, time: Array) -> Chain:
        return two_layers_at(self.start, time)

    def spread(self, num: int) -> Array:
        return jnp.linspace(0, self.end, num)

    def time_left(self, times: Array) -> Array:
        return jnp.full_like(times, jnp.inf)

    def energy(self, times: Array) -> Array:
        return jax.vmap(lambda time: _energy(self(time)))(times)


def two_layers_at(start: Chain, time: Array) -> Chain:
    """A chain of two layers with a diagonal target at an effective time, by its closed form."""
    first, last = start.layers
    strength = jnp.diagonal(start.target)

    def pair(a: Array, c: Array, rate: Array) -> tuple[Array, Array]:
        return two_layer_flow(a, c, rate * time)

    a, c = jax.vmap(pair)(last, first.T, strength)
    return Chain((c.T, a), start.target)


def _trajectory(network: MLP, model: EffectiveModel, drop: Array) -> "Trajectory | _Exponential":
    """The effective trajectory of a network, past where its loss falls by `drop`."""
    point = model.to_state(network)
    drops = drop / model.rate
    depth = network.depth
    if depth == 2:
        assert isinstance(point, Chain)
        return _Exponential.to_energy(point, drops / _BEYOND)
    # Close to the blow-up E^(-(L-2)/L)/(L-2) is the time left, and rate * E what the loss has
    # fallen by.
    left = drops ** (-(depth - 2) / depth) / (depth - 2)
    method = method_of(point) if isinstance(point, State) else None
    closeness = _BEYOND * left / blowup_time(point, method).time
    least = max(1e-9, 64 * float(jnp.finfo(network.dtype).eps))
    closeness = jnp.where(jnp.isfinite(closeness), jnp.clip(closeness, least, 0.5), 0.5)
    rtol = _RTOL if jnp.finfo(network.dtype).bits >= 64 else None
    return trajectory(point, closeness=closeness, rtol=rtol)


@eqx.filter_jit
def _along(
    network: MLP,
    path: "Trajectory | _Exponential",
    data: AbstractData,
    model: EffectiveModel,
    loss: Loss,
    num: int,
) -> Path:
    """What a network has along the effective trajectory from its weights."""

    def linear_loss(network: MLP) -> Array:
        outputs = model.gain * data.predict_linear(network.product, bool(network.bias))
        if network.biases is not None:
            outputs = outputs + _output_bias(outputs, network.biases[-1], data, loss)[None]
        return data.loss_of(outputs, loss)

    def at(time: Array) -> tuple[Array, ...]:
        point = path(time)
        # The effective gradient in the weights, for a unit of training time.
        weights = model.to_weights(vector_field(point))
        still = jax.tree.map(jnp.zeros_like, network)
        moving = still.replace([model.rate * w for w in weights])
        here = lifted(network, point, data, model, loss)
        size = sum(jnp.sum(w**2) for w in moving.weights)
        effective, d_effective = jax.jvp(linear_loss, (here,), (moving,))
        real, d_real = jax.jvp(lambda n: data.loss(n, loss), (here,), (moving,))
        norms = jnp.stack([jnp.linalg.norm(w) for w in here.weights])
        return effective, d_effective, real, d_real, -d_real / size, 0.5 * jnp.log(size), norms

    times = path.spread(num)
    effective, d_effective, real, d_real, speed, log_size, norms = lax.map(at, times)
    return Path(
        blowup=path.blowup,
        complete=path.complete if isinstance(path, _Exponential) else path.pieces.ends,
        times=times,
        time_left=path.time_left(times),
        effective_loss=effective,
        d_effective=d_effective,
        network_loss=real,
        d_network=d_real,
        speed=speed,
        log_size=log_size,
        energy=path.energy(times),
        norms=norms,
    )


@eqx.filter_jit
def lifted(
    network: MLP, point: State | Chain, data: AbstractData, model: EffectiveModel, loss: Loss
) -> MLP:
    """The network at a point of the effective model, its output bias at rest."""
    here = model.lift(network, point)
    if here.biases is None:
        return here
    *hidden, last = here.biases
    without = here.replace(here.weights, (*hidden, jnp.zeros_like(last)))
    best = _output_bias(data.predict(without), last, data, loss)
    return here.replace(here.weights, (*hidden, best))


def _output_bias(
    outputs: Array, start: Float[Array, " outputs"], data: AbstractData, loss: Loss
) -> Float[Array, " outputs"]:
    """The output bias of least loss beside what the rest of a network gives, by Newton's method.

    No derivative of it is taken: at the minimum the loss does not change with it.
    """
    outputs = lax.stop_gradient(outputs)

    def total(bias: Array) -> Array:
        return data.loss_of(outputs + bias[None], loss)

    unit = jnp.eye(start.shape[0], dtype=start.dtype)

    def step(_: Array, bias: Array) -> Array:
        slope, curvature = jax.grad(total)(bias), jax.hessian(total)(bias)
        # Along (1, ..., 1) softmax has neither slope nor curvature.
        least = jnp.finfo(start.dtype).eps * jnp.trace(curvature)
        return bias - jnp.linalg.solve(curvature + least * unit, slope)

    return lax.stop_gradient(lax.fori_loop(0, 4, step, lax.stop_gradient(start)))


def _norms(network: MLP) -> np.ndarray:
    return np.asarray([jnp.linalg.norm(w) for w in network.weights])


class Crossing(NamedTuple):
    """Where a network crosses a level: `time` by its own clock, `effective` by the effective model
    (NaN where the own flow was followed); what is known; and why the effective model does not
    reach it. `arrival` is where the own flow came to.
    """

    time: float
    effective: float
    status: EscapeStatus
    limit: Limit
    arrival: Arrival | None = None


class Course:
    """A path on the host: its curves by training time, and where they cross its level.

    It begins at the training time `begun` with the network `start`, whose output bias has settled.
    """

    def __init__(self, setting: "_Setting", begin: "_Begin", path: Path):
        per_time = float(setting.model.rate)
        self._setting, self.begun, self.start = setting, begin.time, begin.network
        self.level, self.plateau = begin.level, begin.plateau
        self._first, self._early = begin.loss, begin.crossing
        self.path = jax.tree.map(np.asarray, path)
        self.time_left = np.asarray(path.time_left, np.float64) / per_time
        self.times = self.begun + np.asarray(path.times, np.float64) / per_time
        blowup = path.blowup
        names = ("time", "lower", "upper", "error")
        scaled = [np.asarray(getattr(blowup, n), np.float64) / per_time for n in names]
        scaled[:3] = [self.begun + x for x in scaled[:3]]
        self.blowup = eqx.tree_at(lambda b: [getattr(b, n) for n in names], blowup, scaled)
        # Of networks at rest nothing of it is finite.
        with np.errstate(all="ignore"):
            slow = 1 / np.asarray(path.speed, np.float64) - 1
            steps, grown = np.diff(self.times), np.diff(np.asarray(path.log_size, np.float64))
            self.lag = np.concatenate([[0.0], np.cumsum(0.5 * (slow[1:] + slow[:-1]) * steps)])
            if setting.rate is not None:
                self.lag[1:] += np.cumsum(0.5 * setting.rate.rate_at(self.times[1:]) * grown)

    @property
    def clock(self) -> np.ndarray:
        """The network's time where the effective model is at `times`."""
        return self.times + self.lag

    @property
    def problem(self) -> LossOf:
        """The loss of a network."""
        return self._setting.problem

    @property
    def grows_exponentially(self) -> bool:
        """Whether the model is that of two layers, which does not blow up."""
        return bool(np.all(np.isinf(self.time_left)))

    def network_time(self, time: float) -> float:
        """The clock between the points."""
        return time + float(np.interp(time, self.times, self.lag))

    def effective_time(self, clock: float) -> float:
        """The inverse of `network_time`."""
        return clock - float(np.interp(clock, self.clock, self.lag))

    def crossing(self) -> Crossing:
        """Where the network crosses the level, and what is known of it."""
        if self._first <= self.level:
            return Crossing(math.nan, math.nan, EscapeStatus.ALREADY_BELOW, Limit.NONE)
        if math.isfinite(self._early):
            stable = self._is_stable(self._early, _norms(self.start), lambda: self.start)
            status = EscapeStatus.PREDICTED if stable else EscapeStatus.UNSTABLE
            return Crossing(self._early, math.nan, status, Limit.NONE)
        status = self.known()
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
        """Whether descent follows the flow at a network, so far as its learning rate goes."""
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
        """Why the effective model does not hold up to a time, to the end if it is NaN."""
        until = self.times <= (self.times[-1] if math.isnan(time) else time)
        speed = np.asarray(self.path.speed)
        astray = np.flatnonzero(~((speed > _SLOWEST) & (speed < _FASTEST)) & until)
        if astray.size:
            return self._why_astray(int(astray[0]))
        return Limit.LINEAR_PART if math.isnan(time) else Limit.NONE

    def _why_astray(self, point: int) -> Limit:
        """Why the speed of the network is not that of the model."""
        setting, speed = self._setting, float(self.path.speed[point])
        # Whether the quadratic term accounts for most of it.
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
        """The first effective time at which a loss falls below a level; NaN if it does not."""
        below = np.flatnonzero(loss < level)
        if not below.size or below[0] == 0:
            return math.nan
        ends = slice(below[0] - 1, below[0] + 1)
        cubic = CubicHermiteSpline(self.times[ends], loss[ends] - level, slope[ends])
        roots = cubic.roots(extrapolate=False)
        return float(roots[0]) if roots.size else float(self.times[below[0]])

    def _followed(self, limit: Limit) -> Crossing:
        """The crossing by the network's own flow, from where the effective model holds."""
        setting, path = self._setting, self.path
        point = handover_point(np.asarray(path.speed), np.asarray(path.network_loss), self.level)
        begun = float(self.clock[point])
        network = self.lifted(float(self.times[point])) if point else self.start
        rate = 0.0 if setting.rate is None else float(setting.rate.rate_at(np.asarray(begun)))
        arrival = own_flow(network, self.problem, rate, self.level, math.inf)
        time = begun + float(arrival.time)
        stable = self._is_stable(time, _norms(arrival.floats), lambda: arrival.floats)
        if not bool(arrival.crossed):
            status = EscapeStatus.NOT_CROSSED if stable else EscapeStatus.UNSTABLE
            return Crossing(math.nan, math.nan, status, limit)
        status = EscapeStatus.PREDICTED if stable else EscapeStatus.UNSTABLE
        return Crossing(time, math.nan, status, limit, arrival)

    def lifted(self, time: float) -> MLP:
        """The network at a time of the effective model, its output bias at rest."""
        setting = self._setting
        since = jnp.asarray((time - self.begun) * float(setting.model.rate), self.start.dtype)
        return _lifted_at(self.start, since, setting.data, setting.model, setting.loss)


def _lifted_at(
    network: MLP, time: Array, data: AbstractData, model: EffectiveModel, loss: Loss
) -> MLP:
    # No program of its own: a trajectory within would be compiled once more, 14 s at rank 3.
    point = model.to_state(network)
    if isinstance(point, Chain) and point.depth == 2:
        return lifted(network, two_layers_at(point, time), data, model, loss)
    return lifted(network, trajectory(point)(time), data, model, loss)


class _Setting(NamedTuple):
    """What all courses of one call share; `output` is that of the plateau."""

    data: AbstractData
    loss: Loss
    model: EffectiveModel
    output: np.ndarray
    rate: LearningRate | None

    @property
    def problem(self) -> LossOf:
        return LossOf(self.data, self.loss)


class _Begin(NamedTuple):
    """Where a course begins: the network, its time, an earlier crossing (NaN: none), the loss of
    the initial weights, that of the plateau, and the level to fall to.
    """

    network: MLP
    time: float
    crossing: float
    loss: float
    plateau: float
    level: float


def _begin(lane: MLP, setting: _Setting, drop: float, level: float | None) -> _Begin:
    """Follow a network to where its output bias has settled, if it has one."""
    loss = float(setting.problem(lane))
    plateau = loss
    if lane.biases is not None:
        plateau = float(setting.problem(_at_rest(lane, setting.output)))
    if level is None and plateau <= 0:
        raise ValueError(
            "The loss of the plateau is not positive, so that a share of it is no level: give "
            "`level`, or add a constant to the loss."
        )
    level = (1 - drop) * plateau if level is None else level
    if lane.biases is None or not loss > level or not math.isfinite(loss):
        return _Begin(lane, 0.0, math.nan, loss, plateau, level)
    rate = 0.0 if setting.rate is None else float(setting.rate.rates[0])
    return _Begin(*settled(lane, setting.problem, rate, level), loss, plateau, level)


def _at_rest(network: MLP, output: np.ndarray) -> MLP:
    """A network of this shape without weights, on its plateau."""
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
    """The courses of one network or of many, past where the loss has fallen to the level.

    It is `level`, or the loss of the plateau less the share `drop`: with biases in every layer that
    of the constant output of least loss, otherwise the initial loss.
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
        # A level that is not below the initial loss is `ALREADY_BELOW`, whatever is followed.
        fall = jnp.where(initial > level, initial - level, 0.1 * jnp.abs(initial))
        path = _trajectory(start, model, fall)
        return _along(start, path, data, model, loss, num)

    levels = jnp.asarray([begin.level for begin in begins], network.dtype)
    paths = over_lanes(follow, (stacked([begin.network for begin in begins]), levels))
    return [Course(setting, *pair) for pair in zip(begins, unstacked(paths), strict=True)]
