r"""Training without the plateau: the network a little before it leaves it.

The effective trajectory from the initial weights, followed until the loss has fallen by a small
share, and lifted to the network:

$$W_1 = W_1(0) + (c - c_0)^T Q^T, \qquad W_2 = b, \qquad W_3 = W_3(0) + P\,(a - a_0)$$

for three layers, and in the same way for the first, the middle and the last layers of others.
"""

from collections.abc import Mapping

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from .._chain import Chain
from .._trajectory import trajectory
from ._course import Course, EscapeStatus, courses, two_layers_at
from ._data import AbstractData
from ._effective import EffectiveModel
from ._lanes import over_lanes
from ._losses import Loss, LossFunction
from ._modules import MLP
from ._schedule import LearningRate


class Skip(eqx.Module):
    r"""A network without its plateau.

    - `network`: with the weights that it will have.
    - `iteration`: the iteration of gradient descent that it stands for, the `first_iteration` of
      what follows; -1 without a learning rate.
    - `time`: its training time, the `t0` of a gradient flow.
    - `effective_time`: the time of the effective model in the same units.

    Of many networks all fields have a leading axis.
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
    num: int = 400,
) -> Skip:
    r"""The network shortly before it leaves its plateau, and the iteration that this is.

    Training goes on from there without the plateau:

        skip = skip_plateau(network, data, 5e-3)
        gradient_descent(
            skip.network, data, 5e-3, num_steps=5_000, first_iteration=int(skip.iteration)
        )

    **Arguments:**

    - `network`: with the initial weights; many with a leading axis.
    - `data`, `loss`: as for `gradient_descent`.
    - `learning_rate`: of the gradient descent that follows. Without it `iteration` is -1.
    - `drop`: how far to go: until the loss has fallen by this share. What the effective model
      leaves out is of about this order there, and the time left falls with its cube root.
    - `fraction`: in place of `drop`, how far to go as a fraction of $T^*$.
    - `num`: as for `predict_escape`.

    **Returns:** a `Skip`.

    **Raises:** `ValueError` for arguments out of range, where there is no effective model, or where
    it does not hold up to that point, as for large initial weights: the message says which.
    """
    if not 0 < drop < 1:
        raise ValueError(f"Argument `drop` must lie between 0 and 1, but is {drop}.")
    if fraction is not None and not 0 < fraction < 1:
        raise ValueError(f"Argument `fraction` must lie between 0 and 1, but is {fraction}.")
    rate = None if learning_rate is None else LearningRate.of(learning_rate)
    found, model = courses(network, data, loss, rate, drop, num)
    chosen = [_choose(course, drop, fraction, rate) for course in found]
    lanes = network if network.batch_shape else jax.tree.map(lambda x: x[None], network)
    times = jnp.asarray([time for time, _, _ in chosen], network.dtype)
    networks = over_lanes(lambda lane: _lifted(lane[0], lane[1], model), (lanes, times))
    skip = Skip(
        networks,
        np.asarray([iteration for _, _, iteration in chosen]),
        np.asarray([clock for _, clock, _ in chosen]),
        np.asarray(times, np.float64),
    )
    return skip if network.batch_shape else jax.tree.map(lambda x: x[0], skip)


def _choose(
    course: Course, drop: float, fraction: float | None, rate: LearningRate | None
) -> tuple[float, float, int]:
    """Effective time, time of the network, and iteration of the point to skip to."""
    if fraction is None:
        time = course.network_crossing((1 - drop) * float(course.path.network_loss[0]))
    else:
        if course.grows_exponentially:
            raise ValueError("Two layers have no blow-up time: give `drop`, not `fraction`.")
        time = min(fraction * float(course.blowup.time), float(course.times[-1]))
    status = course.status(time)
    if status != EscapeStatus.PREDICTED:
        raise ValueError(f"The plateau cannot be skipped: {status.meaning}.")
    clock = course.network_time(time)
    if rate is None:
        return time, clock, -1
    iteration = int(rate.iteration_of(np.asarray(clock)))
    clock = float(rate.time_of(np.asarray(iteration)))
    return max(course.effective_time(clock), 0.0), clock, iteration


def _lifted(network: MLP, time: Float[jax.Array, ""], model: EffectiveModel) -> MLP:
    point = model.to_state(network)
    if isinstance(point, Chain) and point.depth == 2:
        return model.lift(network, two_layers_at(point, time * model.rate))
    return model.lift(network, trajectory(point)(time * model.rate))
