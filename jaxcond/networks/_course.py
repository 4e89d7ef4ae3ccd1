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

Sources: Chen and Luo, eqs. (3.8) to (3.10), for the effective model. 2 and 3 are derived here; the
lag is the leading term of backward error analysis, $\dot\theta = F - \frac\eta2 F'F$, along $F$.
"""

import enum

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
from .._trajectory import Trajectory, trajectory
from ..blowup import BlowUp, Status, blowup_time
from ..bounds import two_layer_flow
from ._data import AbstractData
from ._effective import EffectiveModel, effective_model
from ._lanes import over_lanes, unstacked
from ._losses import Loss, LossFunction, resolve_loss
from ._modules import MLP
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
    """The loss crosses the level while the effective model holds."""
    NOT_CROSSED = 1
    """The model blows up, but before the loss falls to the level it comes close to what a linear
    map can reach, and slows down: the part of the targets that is linear in the inputs is too
    small, or `fraction` is."""
    OUTSIDE = 2
    """The initial weights are too large: the effective model ceases to hold before the crossing."""
    NO_BLOW_UP = 3
    """The effective model comes to rest."""
    NOT_CONVERGED = 4
    """The blow-up time or the trajectory is not known."""
    INVALID_INPUT = 5
    """The weights are not finite."""
    ALREADY_BELOW = 6
    """The initial loss is not above the level."""

    @property
    def meaning(self) -> str:
        """Why there is no prediction; empty for `PREDICTED`."""
        return _MEANING.get(self, "")


_MEANING = {
    EscapeStatus.NOT_CROSSED: "linear maps, which the effective model is about, do not bring the "
    "loss down to the level, or slow down before it",
    EscapeStatus.OUTSIDE: "the initial weights are too large for the effective model to hold",
    EscapeStatus.NO_BLOW_UP: "the effective model comes to rest",
    EscapeStatus.NOT_CONVERGED: "the blow-up time or the trajectory did not converge",
    EscapeStatus.INVALID_INPUT: "the weights are not finite",
    EscapeStatus.ALREADY_BELOW: "the initial loss is not above the level",
}


class Path(eqx.Module):
    """What one network has at points of its effective trajectory, in effective time.

    `d_effective` and `d_network` are the derivatives of the losses along the trajectory, in
    training time; `speed` is nu; `log_size` the logarithm of the size of the effective gradient;
    `complete`, whether the trajectory comes near its blow-up.
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


def _trajectory(
    network: MLP,
    data: AbstractData,
    model: EffectiveModel,
    loss: Loss,
    drop: Array,
) -> "Trajectory | _Exponential":
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
    closeness = _BEYOND * left / blowup_time(point).time
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
        return data.loss_of(outputs, loss)

    def at(time: Array) -> tuple[Array, ...]:
        point = path(time)
        # The effective gradient in the weights, for a unit of training time.
        weights = model.to_weights(vector_field(point))
        moving = network.replace([model.rate * w for w in weights])
        here = model.lift(network, point)
        size = sum(jnp.sum(w**2) for w in moving.weights)
        effective, d_effective = jax.jvp(linear_loss, (here,), (moving,))
        real, d_real = jax.jvp(lambda n: data.loss(n, loss), (here,), (moving,))
        return effective, d_effective, real, d_real, -d_real / size, 0.5 * jnp.log(size)

    times = path.spread(num)
    effective, d_effective, real, d_real, speed, log_size = lax.map(at, times)
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
    )


class Course:
    """A path on the host: its curves by training time, and where they cross a level."""

    def __init__(self, path: Path, model: EffectiveModel, rate: LearningRate | None):
        per_time = float(model.rate)
        self.path = jax.tree.map(np.asarray, path)
        self.time_left = np.asarray(path.time_left, np.float64) / per_time
        self.times = np.asarray(path.times, np.float64) / per_time
        blowup = path.blowup
        names = ("time", "lower", "upper", "error")
        scaled = tuple(np.asarray(getattr(blowup, n), np.float64) / per_time for n in names)
        self.blowup = eqx.tree_at(lambda b: [getattr(b, n) for n in names], blowup, scaled)
        # Of networks at rest nothing of it is finite.
        with np.errstate(all="ignore"):
            slow = 1 / np.asarray(path.speed, np.float64) - 1
            steps, grown = np.diff(self.times), np.diff(np.asarray(path.log_size, np.float64))
            self.lag = np.concatenate([[0.0], np.cumsum(0.5 * (slow[1:] + slow[:-1]) * steps)])
            if rate is not None:
                self.lag[1:] += np.cumsum(0.5 * rate.rate_at(self.times[1:]) * grown)

    @property
    def clock(self) -> np.ndarray:
        """The network's time where the effective model is at `times`."""
        return self.times + self.lag

    def network_time(self, time: float) -> float:
        """The clock between the points."""
        return time + float(np.interp(time, self.times, self.lag))

    def effective_time(self, clock: float) -> float:
        """The inverse of `network_time`."""
        return clock - float(np.interp(clock, self.clock, self.lag))

    def crossing(self, loss: np.ndarray, slope: np.ndarray, level: float) -> float:
        """The first effective time at which a loss falls below a level; NaN if it does not."""
        below = np.flatnonzero(loss < level)
        if not below.size or below[0] == 0:
            return np.nan
        ends = slice(below[0] - 1, below[0] + 1)
        cubic = CubicHermiteSpline(self.times[ends], loss[ends] - level, slope[ends])
        roots = cubic.roots(extrapolate=False)
        return float(roots[0]) if roots.size else float(self.times[below[0]])

    def network_crossing(self, level: float) -> float:
        """`crossing` of the network's own loss."""
        return self.crossing(self.path.network_loss, self.path.d_network, level)

    def status(self, crossing: float) -> EscapeStatus:
        """What is known, given the effective time of the crossing."""
        if self.grows_exponentially:
            return self._status_along(crossing)
        solved = int(self.blowup.status)
        by_solver = {
            Status.NO_BLOW_UP: EscapeStatus.NO_BLOW_UP,
            Status.NOT_CONVERGED: EscapeStatus.NOT_CONVERGED,
            Status.INVALID_INPUT: EscapeStatus.INVALID_INPUT,
        }
        if solved in by_solver:
            return by_solver[Status(solved)]
        if not self.blowup.is_known():
            return EscapeStatus.NOT_CONVERGED
        return self._status_along(crossing)

    @property
    def grows_exponentially(self) -> bool:
        """Whether the model is that of two layers, which does not blow up."""
        return bool(np.all(np.isinf(self.time_left)))

    def _status_along(self, crossing: float) -> EscapeStatus:
        """`status`, by the points of the trajectory."""
        if not np.all(np.isfinite(self.path.network_loss)):
            return EscapeStatus.INVALID_INPUT
        if not self.path.complete:
            rests = self.grows_exponentially
            return EscapeStatus.NO_BLOW_UP if rests else EscapeStatus.NOT_CONVERGED
        until = self.times <= (self.times[-1] if np.isnan(crossing) else crossing)
        speed = np.asarray(self.path.speed)
        astray = np.flatnonzero(~((speed > _SLOWEST) & (speed < _FASTEST)) & until)
        if astray.size:
            return self._why_astray(int(astray[0]))
        return EscapeStatus.NOT_CROSSED if np.isnan(crossing) else EscapeStatus.PREDICTED

    def _why_astray(self, point: int) -> EscapeStatus:
        """Whether the quadratic term accounts for most of a speed that is not that of the model."""
        speed = float(self.path.speed[point])
        linear = -float(self.path.d_effective[point]) * np.exp(-2 * self.path.log_size[point])
        explained = point > 0 and abs(speed - linear) < 0.5 * abs(speed - 1)
        return EscapeStatus.NOT_CROSSED if explained else EscapeStatus.OUTSIDE


def courses(
    network: MLP,
    data: AbstractData,
    loss: str | float | LossFunction | Loss,
    rate: LearningRate | None,
    drop: float,
    num: int,
    level: float | None = None,
) -> tuple[list[Course], EffectiveModel]:
    """The courses of one network or of many, and their effective model.

    Each goes past where the loss has fallen by the share `drop`, or to `level`.
    """
    loss = resolve_loss(loss)
    model = effective_model(network, data, loss)
    data = data.prepared(network, loss)
    lanes = network if network.batch_shape else jax.tree.map(lambda x: x[None], network)

    def follow(lane: MLP) -> Path:
        initial = data.loss(lane, loss)
        fall = drop * initial if level is None else initial - level
        # A level that is not below the initial loss is `ALREADY_BELOW`, whatever is followed.
        fall = jnp.where(fall > 0, fall, 0.1 * jnp.abs(initial))
        path = _trajectory(lane, data, model, loss, fall)
        return _along(lane, path, data, model, loss, num)

    paths = over_lanes(follow, lanes)
    found = [Course(path, model, rate) for path in unstacked(paths)]
    if level is None and any(course.path.network_loss[0] <= 0 for course in found):
        raise ValueError(
            "The initial loss is not positive, so that a share of it is no level: give `level`, "
            "or add a constant to the loss."
        )
    return found, model
