r"""Training without the plateau: the weights shortly before its end.

The effective trajectory from the initial weights, followed until the loss has fallen by a small
share, and lifted to the network:

$$W_1 = W_1(0) + (c - c_0)^T Q^T, \qquad W_2 = b, \qquad W_3 = W_3(0) + P\,(a - a_0)$$

for three layers; other depths likewise, for the first, the middle and the last layers. Where the
effective model ceases to hold earlier, and with biases in every layer, the network's own flow is
followed from that point on (`jaxcond.networks._handover`).
"""

from collections.abc import Mapping

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ._course import Course, Crossing, courses
from ._data import AbstractData
from ._escape_status import EscapeStatus, Limit
from ._lanes import stacked
from ._losses import Loss, LossFunction
from ._modules import MLP
from ._own_flow import earlier
from ._schedule import LearningRate


class Skip(eqx.Module):
    r"""A network shortly before the end of its plateau.

    - `network`: the network with its weights at that time.
    - `iteration`: the corresponding iteration of gradient descent, to be used as `first_iteration`;
      -1 without a learning rate.
    - `time`: the corresponding training time, to be used as `t0` of a gradient flow.
    - `effective_time`: the time of the effective model in the same units.

    For many networks all fields have a leading axis.
    """

    network: MLP
    iteration: Int[np.ndarray, "*batch"]
    time: Float[np.ndarray, "*batch"]
    effective_time: Float[np.ndarray, "*batch"]

    def __str__(self) -> str:
        if self.time.ndim:
            return f"Skip of {self.time.size} networks"
        at = f"t = {float(self.time):.6g}"
        if self.iteration >= 0:
            at = f"iteration {int(self.iteration):,} ({at})"
        return f"Skip to {at}"


def skip_plateau(
    network: MLP,
    data: AbstractData,
    learning_rate: float | Mapping[int, float] | LearningRate | None = None,
    *,
    loss: str | float | LossFunction | Loss = "half_mse",
    drop: float = 0.01,
    fraction: float | None = None,
    num: int = 100,
) -> Skip:
    r"""The network shortly before the end of its plateau, and the corresponding iteration.

    Training continues from there:

        skip = skip_plateau(network, data, 5e-3)
        gradient_descent(
            skip.network, data, 5e-3, num_steps=5_000, first_iteration=int(skip.iteration)
        )

    **Arguments:**

    - `network`: the network with its initial weights; many networks with a leading axis.
    - `data`, `loss`: as for `gradient_descent`.
    - `learning_rate`: learning rate of the gradient descent that follows; without it, `iteration`
      is -1.
    - `drop`: the plateau is skipped until the loss has fallen by this share. The relative error of
      the effective model is about this share, too, and the time left falls with its cube root.
    - `fraction`: in place of `drop`, the fraction of $T^*$ to skip.
    - `num`: as for `predict_escape`.

    **Returns:** a `Skip`.

    **Raises:** `ValueError`, whose message names the cause, if an argument is out of range, there
    is no effective model, the network does not leave its plateau, or the effective model does not
    hold up to `fraction`.
    """
    if not 0 < drop < 1:
        raise ValueError(f"Argument `drop` must lie between 0 and 1, but is {drop}.")
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f"Argument `fraction` must lie between 0 and 1, but is {fraction}.")
    rate = None if learning_rate is None else LearningRate.of(learning_rate)
    skips = [
        _skip(course, fraction, rate) for course in courses(network, data, loss, rate, drop, num)
    ]
    if not network.batch_shape:
        return skips[0]
    names = ("iteration", "time", "effective_time")
    arrays = (np.stack([getattr(skip, name) for skip in skips]) for name in names)
    return Skip(stacked([skip.network for skip in skips]), *arrays)


def _skip(course: Course, fraction: float | None, rate: LearningRate | None) -> Skip:
    if fraction is None:
        crossing = course.crossing()
        if crossing.arrival is not None:
            return _along_own_flow(crossing, course, rate)
        status, limit, time = crossing.status, crossing.limit, crossing.effective
        if status == EscapeStatus.PREDICTED and np.isnan(time):
            raise ValueError(
                "The plateau cannot be skipped: the loss falls by `drop` before the output bias "
                "settles, so there is no plateau."
            )
    else:
        if course.grows_exponentially:
            raise ValueError("Two layers have no blow-up time: give `drop`, not `fraction`.")
        until = course.begun + fraction * (float(course.blowup.time) - course.begun)
        time = min(until, float(course.times[-1]))
        status, limit = course.known(), course.limit(time)
    if status != EscapeStatus.PREDICTED or limit != Limit.NONE:
        raise ValueError(f"The plateau cannot be skipped: {(limit or status).meaning}.")
    clock, iteration = course.network_time(time), -1
    if rate is not None:
        clock, iteration = _whole(clock, rate)
        time = max(course.effective_time(clock), course.begun)
    return Skip(course.lifted(time), *_numbers(iteration, clock, time))


def _along_own_flow(crossing: Crossing, course: Course, rate: LearningRate | None) -> Skip:
    """The network where its own flow crosses, or at the last whole iteration before that."""
    assert crossing.arrival is not None
    network, clock, iteration = crossing.arrival.floats, crossing.time, -1
    if rate is not None:
        clock, iteration = _whole(clock, rate)
        eta = jnp.asarray(float(rate.rate_at(np.asarray(clock))), network.dtype)
        span = jnp.asarray(crossing.time - clock, network.dtype)
        network = earlier(course.problem, network, eta, span)
    return Skip(network, *_numbers(iteration, clock, course.effective_time(clock)))


def _whole(clock: float, rate: LearningRate) -> tuple[float, int]:
    """The last whole iteration before a training time: its time and its number."""
    iteration = int(rate.iteration_of(np.asarray(clock)))
    return float(rate.time_of(np.asarray(iteration))), iteration


def _numbers(iteration: int, clock: float, effective_time: float) -> tuple[np.ndarray, ...]:
    return np.asarray(iteration), np.asarray(clock), np.asarray(effective_time)
