r"""When a network will leave its plateau, from its initial weights alone.

The effective model blows up at $T^*$ of the initial weights; the loss falls a little earlier. Along
the effective trajectory $\theta(t)$, lifted to the network, there are three curves:

1. the loss of the linearised network, $R_1 = \frac\kappa n\sum\|\sigma'(0)^2 W^3W^2W^1x_i - y_i\|^2
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
from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int
from scipy.interpolate import CubicHermiteSpline

from ..blowup import BlowUp, Status, blowup_time
from ..energy import energy, squared_norms, vector_field
from ..state import State
from ..trajectory import PointStatus, Trajectory, trajectory
from .data import AbstractData, loss_factor
from .effective import EffectiveModel, effective_model
from .lanes import over_lanes, unstacked
from .modules import ThreeLayer
from .schedule import LearningRate

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


class Escape(eqx.Module):
    r"""The predicted end of the plateau; times are training times $t$.

    - `crossing`: when the loss falls below `fraction` of its initial value, by the clock of the
      network; `crossing_iteration` in iterations.
    - `effective_crossing`: the same by the effective model and its quadratic term alone.
    - `blow_up`: the `BlowUp` of the effective model, $T^*$ with its bracket; `iteration` is $T^*$
      in iterations, with `iteration_bracket`.
    - `status`: an `EscapeStatus`.
    - `correction`: relative difference of the two crossings, of order $\varepsilon$: what the
      effective model is expected to be off by. The error of `crossing` is of second order.
    - `speed`: $\nu$ at the initial weights and at the crossing, shape `(2,)`.
    - `times`, `clock`: along the trajectory, the time of the effective model and of the network;
      `effective_loss`, `network_loss` (curves 1 and 2), `energy`, `time_left` ($T^* - t$); shape
      `(num,)`.
    - `fraction`, and `learning_rate` if it was given.

    Of many networks all fields have a leading axis.
    """

    crossing: Float[np.ndarray, "*batch"]
    effective_crossing: Float[np.ndarray, "*batch"]
    blow_up: BlowUp
    status: Int[np.ndarray, "*batch"]
    correction: Float[np.ndarray, "*batch"]
    speed: Float[np.ndarray, "*batch 2"]
    times: Float[np.ndarray, "*batch num"]
    clock: Float[np.ndarray, "*batch num"]
    effective_loss: Float[np.ndarray, "*batch num"]
    network_loss: Float[np.ndarray, "*batch num"]
    energy: Float[np.ndarray, "*batch num"]
    time_left: Float[np.ndarray, "*batch num"]
    fraction: float = eqx.field(static=True)
    learning_rate: LearningRate | None

    def iterations(self, times: np.ndarray) -> np.ndarray:
        """Training times in iterations.

        **Raises:** `ValueError` if no learning rate was given.
        """
        if self.learning_rate is None:
            raise ValueError("Iterations need a learning rate: give `predict_escape` one.")
        return self.learning_rate.iteration_of(np.asarray(times))

    @property
    def crossing_iteration(self) -> np.ndarray:
        """The iteration at which the loss falls below `fraction`, with fractions."""
        return self.iterations(self.crossing)

    @property
    def iteration(self) -> np.ndarray:
        """$T^*$ in iterations."""
        return self.iterations(np.asarray(self.blow_up.time))

    @property
    def iteration_bracket(self) -> tuple[np.ndarray, np.ndarray]:
        """The bracket of $T^*$ in iterations."""
        lower, upper = (np.asarray(x) for x in (self.blow_up.lower, self.blow_up.upper))
        return self.iterations(lower), self.iterations(upper)

    def __str__(self) -> str:
        if self.crossing.ndim:
            names, counts = np.unique(self.status, return_counts=True)
            told = ", ".join(
                f"{count} {EscapeStatus(name).name.lower()}"
                for name, count in zip(names, counts, strict=True)
            )
            return f"Escape of {len(self.crossing)} networks: {told}"
        status = EscapeStatus(int(self.status))
        if status != EscapeStatus.PREDICTED:
            meaning = " ".join(MEANING[status].split())
            return f"Escape ({status.name.lower()}): {meaning}"
        at = f"t = {float(self.crossing):.6g}"
        if self.learning_rate is not None:
            at = f"iteration {float(self.crossing_iteration):,.0f} ({at})"
        return (
            f"Escape: the loss falls below {self.fraction:g} of its initial value at {at}; "
            f"T* = {float(self.blow_up.time):.10g}, the effective model alone is "
            f"{100 * float(self.correction):+.2g} % off"
        )


MEANING = {
    EscapeStatus.NOT_CROSSED: "linear maps, which the effective model is about, do not bring the "
    "loss down to the level, or slow down before it",
    EscapeStatus.OUTSIDE: "the initial weights are too large for the effective model to hold",
    EscapeStatus.NO_BLOW_UP: "the effective model comes to rest",
    EscapeStatus.NOT_CONVERGED: "the blow-up time or the trajectory did not converge",
    EscapeStatus.INVALID_INPUT: "the weights are not finite",
}


class Path(eqx.Module):
    """The effective trajectory of one network, in effective time, and what the network has there.

    `d_effective` and `d_network` are the derivatives of the losses along the trajectory, in
    training time; `speed` is nu; `log_size` the logarithm of the size of the effective gradient.
    """

    trajectory: Trajectory
    effective_loss: Float[Array, " num"]
    d_effective: Float[Array, " num"]
    network_loss: Float[Array, " num"]
    d_network: Float[Array, " num"]
    speed: Float[Array, " num"]
    log_size: Float[Array, " num"]
    energy: Float[Array, " num"]


# Compiled as a whole, so that outcomes are told by `Trajectory.status` and not raised.
@eqx.filter_jit
def _trajectory(
    network: ThreeLayer,
    data: AbstractData,
    model: EffectiveModel,
    factor: float,
    drop: Array,
    num: int,
) -> Trajectory:
    """The effective trajectory of a network, past where its loss falls by `drop`."""
    state = model.to_state(network)
    drops = drop * data.loss(network, factor) / model.rate
    # Close to the blow-up E^(-1/3) is the time left, and rate * E what the loss has fallen by.
    closeness = _BEYOND / (jnp.cbrt(drops) * blowup_time(state).time)
    closeness = jnp.where(jnp.isfinite(closeness), jnp.clip(closeness, 1e-9, 0.5), 0.5)
    rtol = _RTOL if jnp.finfo(network.dtype).bits >= 64 else None
    return trajectory(state, num=num, closeness=closeness, rtol=rtol)


@eqx.filter_jit
def _along(
    network: ThreeLayer,
    path: Trajectory,
    data: AbstractData,
    model: EffectiveModel,
    factor: float,
) -> Path:
    """What a network has along the effective trajectory from its weights."""

    def linear_loss(network: ThreeLayer) -> Array:
        outputs = model.slope**2 * data.predict_linear(network.product, network.bias)
        return data.loss_of(outputs, factor)

    def at(reduced: State) -> tuple[Array, ...]:
        full = path.lift(reduced)
        slope = vector_field(full)
        # The effective gradient in the weights, for a unit of training time.
        moving = network.replace(
            model.rate * slope.c.T @ model.right,
            model.rate * slope.b,
            model.rate * model.left.T @ slope.a,
        )
        here = model.lift(network, full)
        size = model.rate**2 * jnp.sum(squared_norms(slope))
        effective, d_effective = jax.jvp(linear_loss, (here,), (moving,))
        real, d_real = jax.jvp(lambda n: data.loss(n, factor), (here,), (moving,))
        return effective, d_effective, real, d_real, -d_real / size, 0.5 * jnp.log(size)

    energies = jax.vmap(energy)(path.reduced)
    effective, d_effective, real, d_real, speed, log_size = lax.map(at, path.reduced)
    return Path(path, effective, d_effective, real, d_real, speed, log_size, energies)


class Course:
    """A path on the host: its curves by training time, and where they cross a level."""

    def __init__(self, path: Path, model: EffectiveModel, rate: LearningRate | None):
        curves = path.trajectory
        per_time = float(model.rate)
        self.path = jax.tree.map(np.asarray, path)
        self.time_left = np.asarray(curves.time_left, np.float64) / per_time
        self.times = np.asarray(curves.times, np.float64) / per_time
        blow_up = curves.blow_up
        names = ("time", "lower", "upper", "error")
        scaled = tuple(np.asarray(getattr(blow_up, n), np.float64) / per_time for n in names)
        self.blow_up = eqx.tree_at(lambda b: [getattr(b, n) for n in names], blow_up, scaled)
        with np.errstate(all="ignore"):
            slow = 1 / np.asarray(path.speed, np.float64) - 1
        steps = np.diff(self.times)
        self.lag = np.concatenate([[0.0], np.cumsum(0.5 * (slow[1:] + slow[:-1]) * steps)])
        if rate is not None:
            grown = np.diff(np.asarray(path.log_size, np.float64))
            eta = rate.rate_at(self.times[1:])
            self.lag[1:] += np.cumsum(0.5 * eta * grown)

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
        solved = int(self.blow_up.status)
        by_solver = {
            Status.NO_BLOW_UP: EscapeStatus.NO_BLOW_UP,
            Status.NOT_CONVERGED: EscapeStatus.NOT_CONVERGED,
            Status.INVALID_INPUT: EscapeStatus.INVALID_INPUT,
        }
        if solved in by_solver:
            return by_solver[Status(solved)]
        if np.any(np.asarray(self.path.trajectory.status) > PointStatus.TRUNCATED):
            return EscapeStatus.NOT_CONVERGED
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
    network: ThreeLayer,
    data: AbstractData,
    loss: str | float,
    rate: LearningRate | None,
    drop: float,
    num: int,
) -> tuple[list[Course], EffectiveModel]:
    """The courses of one network or of many, and their effective model."""
    factor = loss_factor(loss)
    data = data.astype(network.dtype)
    model = effective_model(network, data, factor)
    lanes = network if network.batch_shape else jax.tree.map(lambda x: x[None], network)
    share = jnp.asarray(drop, network.dtype)

    def follow(lane: ThreeLayer) -> Path:
        path = _trajectory(lane, data, model, factor, share, num)
        return _along(lane, path, data, model, factor)

    paths = over_lanes(follow, lanes)
    return [Course(path, model, rate) for path in unstacked(paths)], model


def predict_escape(
    network: ThreeLayer,
    data: AbstractData,
    learning_rate: float | Mapping[int, float] | LearningRate | None = None,
    *,
    loss: str | float = "half_mse",
    fraction: float = 0.9,
    num: int = 400,
) -> Escape:
    r"""When a network will leave its plateau, from its initial weights alone.

    **Arguments:**

    - `network`: with the initial weights; many with a leading axis.
    - `data`, `loss`: as for `gradient_descent`.
    - `learning_rate`: of gradient descent, a number or a mapping of iterations to rates; without it
      only times of gradient flow are predicted.
    - `fraction`: of the initial loss; the prediction is when the loss falls below it.
    - `num`: points along the effective trajectory.

    **Returns:** an `Escape`. The prediction takes some twelve products with $W^2$ for $T^*$, and as
    many losses of the network as there are points.

    **Raises:** `ValueError` for arguments out of range, and where there is no effective model: see
    `effective_model`. **Status:** `Escape.status`, for each network.

    Source: at the top of this module.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"Argument `fraction` must lie between 0 and 1, but is {fraction}.")
    if num < 16:
        raise ValueError(f"Argument `num` must be at least 16, but is {num}.")
    rate = None if learning_rate is None else LearningRate.of(learning_rate)
    found, _ = courses(network, data, loss, rate, 1 - fraction, num)
    escapes = [_escape(course, fraction) for course in found]
    escape = jax.tree.map(lambda *leaves: np.stack(leaves), *escapes)
    if not network.batch_shape:
        escape = escapes[0]
    return eqx.tree_at(lambda e: e.learning_rate, escape, rate, is_leaf=lambda x: x is None)


def _escape(course: Course, fraction: float) -> Escape:
    path = course.path
    effective, network = path.effective_loss, path.network_loss
    crossing = course.network_crossing(fraction * float(network[0]))
    status = course.status(crossing)
    plain = course.crossing(effective, path.d_effective, fraction * float(effective[0]))
    known = status == EscapeStatus.PREDICTED
    corrected = course.network_time(crossing) if known else np.nan
    at_crossing = np.interp(crossing, course.times, path.speed) if known else np.nan
    return Escape(
        np.asarray(corrected),
        np.asarray(plain),
        course.blow_up,
        np.asarray(int(status)),
        np.asarray(plain / corrected - 1),
        np.asarray([path.speed[0], at_crossing]),
        course.times,
        course.clock,
        effective,
        network,
        path.energy,
        course.time_left,
        fraction,
        None,
    )
