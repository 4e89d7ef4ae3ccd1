r"""Some steps of the gradient flow of one network, by diffrax, on the device.

$$\dot\theta = -\nabla R(\theta)$$
"""

from collections.abc import Mapping
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import lineax
import optimistix
from jaxtyping import Array, Bool, Float

from ..flow import Layerwise
from ._data import AbstractData
from ._effective import EffectiveModel
from ._losses import Loss
from ._modules import MLP
from ._observe import Observable

# Steps per call to the device; between calls the bar moves and Ctrl-C is handled.
_STEPS = 64
# An explicit step is stable up to this number divided by the largest eigenvalue (Tsit5 on the real
# axis).
STABLE = 3.3


class Flow(eqx.Module):
    """The flow and its observables."""

    data: AbstractData
    model: EffectiveModel | None
    rtol: Float[Array, ""]
    sample_loss: Loss = eqx.field(static=True)
    observables: Mapping[str, Observable]

    def loss(self, network: MLP) -> Array:
        return self.data.loss(network, self.sample_loss)

    def observe(self, time: Array, network: MLP, args: Any) -> dict[str, Array]:
        del time, args
        found = {name: f(network, self.model) for name, f in self.observables.items()}
        # diffrax marks unused steps by infinity, which integers cannot hold.
        return jax.tree.map(
            lambda x: x.astype(network.dtype), {"loss": self.loss(network), **found}
        )


class Leg(eqx.Module):
    """Some steps of the flow."""

    network: MLP
    time: Float[Array, ""]
    step: Float[Array, ""]
    crossed: Bool[Array, ""]
    failed: Bool[Array, ""]
    times: Float[Array, " steps"]
    records: dict[str, Array]
    num_steps: Array


@eqx.filter_jit
def follow(
    network: MLP,
    span: tuple[Array, Array, Array],
    level: Array,
    problem: Flow,
    solver: diffrax.AbstractSolver,
) -> Leg:
    """Follow the flow until its loss falls to `level`, for a limited number of steps."""
    start, end, step = span
    smallest = jnp.min(jnp.stack([jnp.sqrt(jnp.mean(w**2)) for w in network.weights]))

    # The root finder's tolerance is absolute, but losses are of any size.
    scale = jnp.where(jnp.isfinite(level) & (level > 0), level, 1)

    def falling(time: Any, network: MLP, args: Any) -> MLP:
        del time, args
        return jax.tree.map(jnp.negative, jax.grad(problem.loss)(network))

    def above(t: Array, y: MLP, args: Any, **kwargs: Any) -> Array:
        del t, args, kwargs
        # diffrax requires events in JAX's default precision, even if the network has another.
        return ((problem.loss(y) - level) / scale).astype(jnp.result_type(float))

    exact = jnp.finfo(network.dtype).eps ** (2 / 3)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(falling),
        solver,
        start,
        end,
        None,
        network,
        stepsize_controller=Layerwise(rtol=problem.rtol, atol=problem.rtol * smallest, first=step),
        event=diffrax.Event(above, optimistix.Newton(float(exact), float(exact))),
        saveat=diffrax.SaveAt(
            subs=[
                diffrax.SubSaveAt(steps=True, fn=problem.observe),
                diffrax.SubSaveAt(t1=True),
            ]
        ),
        max_steps=_STEPS,
        throw=False,
    )
    assert solution.ts is not None
    assert solution.ys is not None
    (times, (last,)), (records, final) = solution.ts, solution.ys
    num_accepted = solution.stats["num_accepted_steps"]
    before = jnp.where(num_accepted >= 2, times[jnp.maximum(num_accepted - 2, 0)], start)
    result = solution.result
    crossed = result == diffrax.RESULTS.event_occurred
    whole = crossed | (result == diffrax.RESULTS.successful)
    return Leg(
        network=jax.tree.map(lambda x: x[0], final),
        time=last,
        step=last - before,
        crossed=crossed,
        failed=~(whole | (result == diffrax.RESULTS.max_steps_reached)),
        times=times,
        records=records,
        num_steps=solution.stats["num_steps"],
    )


def stiff_solver() -> diffrax.AbstractSolver:
    """The implicit solver for long runs after the plateau: Newton's method with Krylov spaces."""
    krylov = lineax.GMRES(rtol=1e-3, atol=1e-8)
    return diffrax.Kvaerno5(
        root_finder=optimistix.Newton(rtol=1e-5, atol=1e-8, linear_solver=krylov)
    )
