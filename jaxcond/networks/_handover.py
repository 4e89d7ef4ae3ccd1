r"""From a network's own flow to the effective model, and back to its own flow.

- With biases in every layer the effective model begins where the output bias has settled. Until
  then the network's own descent is followed as a flow (`jaxcond.networks._own_flow`).
- It ends, at the latest, where it ceases to hold. From there the own flow is followed to the
  crossing; with biases in every layer from where the loss has fallen by a small share, since later
  the output bias lags behind its rest.

The lag of the output bias in the first part multiplies what is left of the pull of all samples by
$e^{-ht}$, $h$ being the rate of `Rest`. While it settles, $W_L$ and $b_{L-1}$ turn hyperbolically,
of one output by the angle $|b^*|$, which the own flow contains.
"""

import math
from collections.abc import Callable

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ._data import AbstractData, Regression
from ._losses import Loss, Squared
from ._modules import MLP
from ._own_flow import Arrival, fall, largest_curvature

# What is left of the output bias's way where the effective model begins.
_UNSETTLED = 1e-6
# Steps of the own flow; a plateau from its beginning takes some dozens.
_MAX_STEPS = 1024
# The own flow takes over where the loss has fallen by this share of what it is to fall by, or
# before the speed of the network differs by this share from that of the effective model.
_FALLEN, _OFF = 1e-2, 2e-2
# Features count as of different scales beyond this ratio, and as large beyond this size.
_SPREAD = 10.0
# Targets count as large where their root mean square around the plateau is beyond this.
_LARGE_TARGETS = 3.0
# Weights count as large where they stretch a random vector by more than this share.
_LARGE_WEIGHTS = 0.3


class LossOf(eqx.Module):
    """The loss over all data as a function of the network alone."""

    data: AbstractData
    sample_loss: Loss = eqx.field(static=True)

    def __call__(self, network: MLP) -> Array:
        return self.data.loss(network, self.sample_loss)


@eqx.filter_jit
def loss_at(problem: LossOf, network: MLP) -> Array:
    """The loss of a network, as one program."""
    return problem(network)


def own_flow(network: MLP, problem: LossOf, rate: float, level: float, max_time: float) -> Arrival:
    """The network's own flow from `network` to `level`, or for so long a time."""
    dtype = network.dtype
    largest = float(jnp.finfo(dtype).max) ** 0.5
    eta, floor, end = (jnp.asarray(x, dtype) for x in (rate, level, min(max_time, largest)))
    return fall(problem, network, eta, floor, end, _MAX_STEPS)


def settled(
    network: MLP, problem: LossOf, rate: float, level: float
) -> tuple[MLP, float, float, bool]:
    """The network when its output bias has settled, the time that took, and an earlier crossing.

    The crossing of `level` is NaN if there is none by then. Last, whether the output bias has
    settled: where classes are very rare it can take more steps than there are.
    """
    rest = problem.sample_loss.rest(problem.data.targets, network.num_outputs)
    span = -math.log(_UNSETTLED) / rest.rate
    arrival = own_flow(network, problem, rate, level, span)
    time = float(arrival.time)
    crossing = time if bool(arrival.crossed) else math.nan
    return arrival.floats, time, crossing, time > (1 - 1e-3) * span


def handover_point(speed: np.ndarray, loss: np.ndarray, level: float) -> int:
    """The last point of a trajectory from whose beginning on the effective model holds well."""
    astray = ~(np.abs(speed - 1) < _OFF) | ~(loss[0] - loss < _FALLEN * (loss[0] - level))
    return max(int(np.argmax(astray)) - 1, 0) if astray.any() else len(speed) - 1


def is_stable(
    rate: float,
    norms: Float[np.ndarray, " layers"],
    problem: LossOf,
    features: float,
    network: Callable[[], MLP],
) -> bool:
    """Whether a learning rate is below 2 over the curvature at a network.

    At first by the norms of its layers, which bound the part of the curvature that is not negative
    while the activations are about linear; where they leave it open, by its largest eigenvalue.
    """
    squares = norms**2
    through = sum(np.prod(np.delete(squares, layer)) for layer in range(len(squares)))
    if 2 * rate * problem.sample_loss.largest_curvature * (through * features + 1) < 2:
        return True
    return rate * float(largest_curvature(problem, network())) < 2


def large_weights(network: MLP) -> bool:
    """Whether a layer is so large that the activations see more than their slope at zero."""
    stretches = [float(jnp.sqrt(jnp.mean(w**2)) * math.sqrt(w.shape[-1])) for w in network.weights]
    return max(stretches) > _LARGE_WEIGHTS


def uneven_inputs(data: AbstractData) -> bool:
    """Whether features are of very different scales, or large."""
    if not isinstance(data, Regression):
        return False
    scales = np.sqrt(np.mean(np.asarray(data.x, np.float64) ** 2, axis=0))
    scales = scales[scales > 0]
    return bool(scales.size and max(scales.max() / scales.min(), scales.max()) > _SPREAD)


def large_targets(data: AbstractData, loss: Loss, output: Float[np.ndarray, " outputs"]) -> bool:
    """Whether the outputs that the targets ask for are large."""
    if not isinstance(loss, Squared) or not isinstance(data, Regression):
        return False
    return float(np.sqrt(np.mean((np.asarray(data.targets) - output) ** 2))) > _LARGE_TARGETS
