r"""The handover from a network's own flow to the effective model and back.

- With biases in every layer the effective model begins when the output bias has settled. Until
  then the network's own descent is followed as a flow (`jaxcond.networks._own_flow`).
- The effective model ends, at the latest, where it ceases to hold, and the own flow is followed to
  the crossing. With biases in every layer the own flow takes over when the loss has fallen by a
  small share, since later the output bias lags behind its rest.

In the first part the remaining pull of all samples decays like $e^{-ht}$, where $h$ is the rate of
`Rest`. Meanwhile $W_L$ and $b_{L-1}$ undergo a hyperbolic rotation, by the angle $|b^*|$ for one
output, which the own flow includes.
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

# The remaining share of the output bias's way at which the effective model begins.
_UNSETTLED = 1e-6
# Largest number of steps of the own flow; a whole plateau takes a few dozen.
_MAX_STEPS = 1024
# The own flow takes over when the loss has fallen by this share of the whole fall to the level, or
# before the speed of the network differs by this share from that of the effective model.
_FALLEN, _OFF = 1e-2, 2e-2
# Features count as unevenly scaled beyond this ratio, and as large beyond this size.
_SPREAD = 10.0
# Targets count as large if their root mean square around the plateau exceeds this.
_LARGE_TARGETS = 3.0
# Weights count as large if they stretch a random vector by more than this factor.
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
    """The network's own flow from `network` to `level`, or to `max_time`."""
    dtype = network.dtype
    largest = float(jnp.finfo(dtype).max) ** 0.5
    eta, floor, end = (jnp.asarray(x, dtype) for x in (rate, level, min(max_time, largest)))
    return fall(problem, network, eta, floor, end, _MAX_STEPS)


def settled(
    network: MLP, problem: LossOf, rate: float, level: float
) -> tuple[MLP, float, float, bool]:
    """The network once its output bias has settled, the time until then, and an earlier crossing.

    The crossing of `level` is NaN if there is none by then. The last value says whether the output
    bias has settled: with very rare classes that can take more than the allowed steps.
    """
    rest = problem.sample_loss.rest(problem.data.targets, network.num_outputs)
    span = -math.log(_UNSETTLED) / rest.rate
    arrival = own_flow(network, problem, rate, level, span)
    time = float(arrival.time)
    crossing = time if bool(arrival.crossed) else math.nan
    return arrival.floats, time, crossing, time > (1 - 1e-3) * span


def handover_point(speed: np.ndarray, loss: np.ndarray, level: float) -> int:
    """The last point of a trajectory up to which the effective model holds well."""
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

    First by the norms of the layers, which bound the positive part of the curvature while the
    activations are nearly linear; if the bound does not decide it, by the largest eigenvalue.
    """
    squares = norms**2
    through = sum(np.prod(np.delete(squares, layer)) for layer in range(len(squares)))
    if 2 * rate * problem.sample_loss.largest_curvature * (through * features + 1) < 2:
        return True
    return rate * float(largest_curvature(problem, network())) < 2


def large_weights(network: MLP) -> bool:
    """Whether a layer is so large that the activations are not linear."""
    stretches = [float(jnp.sqrt(jnp.mean(w**2)) * math.sqrt(w.shape[-1])) for w in network.weights]
    return max(stretches) > _LARGE_WEIGHTS


def uneven_inputs(data: AbstractData) -> bool:
    """Whether features are unevenly scaled or large."""
    if not isinstance(data, Regression):
        return False
    scales = np.sqrt(np.mean(np.asarray(data.x, np.float64) ** 2, axis=0))
    scales = scales[scales > 0]
    return bool(scales.size and max(scales.max() / scales.min(), scales.max()) > _SPREAD)


def large_targets(data: AbstractData, loss: Loss, output: Float[np.ndarray, " outputs"]) -> bool:
    """Whether the target outputs are large."""
    if not isinstance(loss, Squared) or not isinstance(data, Regression):
        return False
    return float(np.sqrt(np.mean((np.asarray(data.targets) - output) ** 2))) > _LARGE_TARGETS
