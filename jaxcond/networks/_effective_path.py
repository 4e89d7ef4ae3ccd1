"""The effective trajectory from a network's weights, and the losses and the speed along it."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from .._chain import Chain
from .._energy import energy as _energy
from .._energy import vector_field
from .._state import State
from .._trajectory import Trajectory, method_of, trajectory
from ..blowup import BlowUp, blowup_time
from ..bounds import two_layer_flow
from ._data import AbstractData
from ._effective import EffectiveModel
from ._losses import Loss
from ._modules import MLP

# Trajectories end at this share of the time left at the point where the effective loss has fallen
# by `drop`, since the quadratic term delays the fall.
_BEYOND = 0.3
_RTOL = 1e-10


class Path(eqx.Module):
    """Values of one network at points of its effective trajectory, in effective time.

    `d_effective` and `d_network` are the derivatives of the losses along the trajectory, in
    training time; `speed` is nu; `norms` are those of the layers; `log_size` the logarithm of the
    size of the effective gradient; `complete`, whether the trajectory comes near its blow-up.
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
    r"""The effective trajectory of two layers in closed form; it does not blow up.

    It ends at the effective time `end`; `complete`, whether it reaches the requested energy.
    """

    start: Chain
    end: Float[Array, ""]
    complete: Bool[Array, ""]
    blowup: BlowUp

    @classmethod
    def to_energy(cls, start: Chain, energy: Array) -> "_Exponential":
        """The trajectory from its start to the time of a given energy, which never falls."""

        def reached(time: Array) -> Array:
            return _energy(two_layers_at(start, time)) >= energy

        def halve(_: Array, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            below, above = ends
            middle = 0.5 * (below + above)
            hit = reached(middle)
            return jnp.where(hit, below, middle), jnp.where(hit, middle, above)

        # Energies grow like exp(2 t) at most, and overflow beyond this time.
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
    """A chain of two layers with a diagonal target at an effective time, in closed form."""
    first, last = start.layers
    strength = jnp.diagonal(start.target)

    def pair(a: Array, c: Array, rate: Array) -> tuple[Array, Array]:
        return two_layer_flow(a, c, rate * time)

    a, c = jax.vmap(pair)(last, first.T, strength)
    return Chain((c.T, a), start.target)


def trajectory_to(network: MLP, model: EffectiveModel, drop: Array) -> "Trajectory | _Exponential":
    """The effective trajectory of a network, past the point where its loss has fallen by `drop`."""
    point = model.to_state(network)
    drops = drop / model.rate
    depth = network.depth
    if depth == 2:
        assert isinstance(point, Chain)
        return _Exponential.to_energy(point, drops / _BEYOND)
    # Close to the blow-up the time left is E^(-(L-2)/L)/(L-2), and the loss has fallen by rate * E.
    left = drops ** (-(depth - 2) / depth) / (depth - 2)
    method = method_of(point) if isinstance(point, State) else None
    closeness = _BEYOND * left / blowup_time(point, method).time
    least = max(1e-9, 64 * float(jnp.finfo(network.dtype).eps))
    closeness = jnp.where(jnp.isfinite(closeness), jnp.clip(closeness, least, 0.5), 0.5)
    rtol = _RTOL if jnp.finfo(network.dtype).bits >= 64 else None
    return trajectory(point, closeness=closeness, rtol=rtol)


@eqx.filter_jit
def along(
    network: MLP,
    path: "Trajectory | _Exponential",
    data: AbstractData,
    model: EffectiveModel,
    loss: Loss,
    num: int,
) -> Path:
    """Values of a network along the effective trajectory from its weights."""

    def linear_loss(network: MLP) -> Array:
        outputs = model.gain * data.predict_linear(network.product, bool(network.bias))
        if network.biases is not None:
            outputs = outputs + _output_bias(outputs, network.biases[-1], data, loss)[None]
        return data.loss_of(outputs, loss)

    def at(time: Array) -> tuple[Array, ...]:
        point = path(time)
        # The effective gradient in the weights, per unit of training time.
        weights = model.to_weights(vector_field(point))
        still = jax.tree.map(jnp.zeros_like, network)
        moving = still.replace([model.rate * w for w in weights])
        here = _lifted(network, point, data, model, loss)
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
def _lifted(
    network: MLP, point: State | Chain, data: AbstractData, model: EffectiveModel, loss: Loss
) -> MLP:
    """The network at a point of the effective model, with its output bias at rest."""
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
    """The output bias of least loss for the other weights of a network, by Newton's method.

    It has no derivative, since at the minimum the loss does not change with the bias.
    """
    outputs = lax.stop_gradient(outputs)

    def total(bias: Array) -> Array:
        return data.loss_of(outputs + bias[None], loss)

    unit = jnp.eye(start.shape[0], dtype=start.dtype)

    def step(_: Array, bias: Array) -> Array:
        slope, curvature = jax.grad(total)(bias), jax.hessian(total)(bias)
        # Softmax has neither slope nor curvature along (1, ..., 1).
        least = jnp.finfo(start.dtype).eps * jnp.trace(curvature)
        return bias - jnp.linalg.solve(curvature + least * unit, slope)

    return lax.stop_gradient(lax.fori_loop(0, 4, step, lax.stop_gradient(start)))


def lifted_at(
    network: MLP, time: Array, data: AbstractData, model: EffectiveModel, loss: Loss
) -> MLP:
    """The network at an effective time."""
    # Not jitted: a trajectory inside would be compiled again, which takes 14 s at rank 3.
    point = model.to_state(network)
    if isinstance(point, Chain) and point.depth == 2:
        return _lifted(network, two_layers_at(point, time), data, model, loss)
    return _lifted(network, trajectory(point)(time), data, model, loss)
