r"""The whole training of a linear network: every step of its loss, from its initial weights.

$$\dot W_l = (W_L\cdots W_{l+1})^T\,(V - MH)\,(W_{l-1}\cdots W_1)^T, \qquad M = W_L\cdots W_1 .$$

With small initial weights the singular values of $M$ rise one after the other, and each lowers the
loss by a step. Between two steps the loss rests near the least loss of maps of that rank. The flow
is that of a network of a few units, and `jaxcond.networks._smaller` says which parts of it are
exact. Gradient descent is followed as the flow $\dot\theta = -\nabla R(\theta + \frac\eta2\nabla
R(\theta))$ of `jaxcond.networks._own_flow`, so that each step has its own lag.

Source: A. M. Saxe, J. L. McClelland and S. Ganguli, *Exact solutions to the nonlinear dynamics of
learning in deep linear networks* (2014), for aligned weights of two layers, where
$t_i \approx \frac1{\mu_i}\log\frac{\mu_i}{h\,u_i(0)}$; here other initial weights and depths are
integrated.
"""

import itertools
from collections.abc import Mapping
from functools import reduce
from typing import TYPE_CHECKING

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree
from scipy.interpolate import CubicHermiteSpline

from .._results import batch_dims, dataset
from .._status import AbstractStatus
from ._data import AbstractData
from ._lanes import unstacked
from ._losses import Loss, LossFunction, Squared, resolve_loss
from ._modules import MLP, linear
from ._own_flow import as_descent, integrate, largest_curvature, smallest_array, usual_rtol
from ._schedule import LearningRate
from ._smaller import AbstractProblem, Smaller, smaller

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure

# The flow ends at this share of the last step's height; for measurements, of the whole loss.
_LEFT, _LEFT_OF_ALL = 1e-3, 1e-4
# Descent does not settle if the learning rate times the largest curvature exceeds this.
_STABLE = 2.0


class StepsStatus(AbstractStatus):
    """How far the steps of a loss are known."""

    COMPLETE = 0, "all steps are predicted"
    CUT_SHORT = 1, "`max_time` came before the end of the last step"
    NOT_CONVERGED = 2, "the solver took too many steps, or failed"
    UNSTABLE = 3, "at this learning rate gradient descent does not settle where the flow ends"


class Steps(eqx.Module):
    r"""The predicted steps of the loss of a linear network; times are training times $t$.

    - `rise`: the time at which each singular value of $W_L\cdots W_1$ reaches half its final value,
      shape `(rank,)`; NaN for one that does not rise to it, or begins above it. `rise_iteration` in
      iterations.
    - `final`: the final values: those of the least squares solution or, for masks and other
      measurements, those at the end.
    - `levels`: the loss at the start, at the slowest fall between two steps, and at the end, shape
      `(rank + 1,)`; NaN between unknown steps.
    - `times`, `loss`, `singular_values`: the course, shapes `(num,)`, `(num,)` and `(num, rank)`;
      the points lie closer where the loss falls.
    - `widths`: those of the smaller network that was followed, including inputs and outputs.
    - `cut_off`: the share of the squares of its outer layers, at the end, in the last directions
      kept of hidden layers; 0 if nothing is cut off. It indicates the error but is no bound.
    - `status`: a `StepsStatus`. `learning_rate`, if it was given.

    For many networks all fields have a leading axis.
    """

    rise: Float[np.ndarray, "*batch rank"]
    final: Float[np.ndarray, "*batch rank"]
    levels: Float[np.ndarray, "*batch levels"]
    times: Float[np.ndarray, "*batch num"]
    loss: Float[np.ndarray, "*batch num"]
    singular_values: Float[np.ndarray, "*batch num rank"]
    widths: Int[np.ndarray, "*batch layers"]
    cut_off: Float[np.ndarray, "*batch"]
    status: Int[np.ndarray, "*batch"]
    learning_rate: LearningRate | None

    def iterations(self, times: np.ndarray) -> np.ndarray:
        """Training times in iterations.

        **Raises:** `ValueError` if no learning rate was given.
        """
        if self.learning_rate is None:
            raise ValueError("Iterations need a learning rate: give `predict_steps` one.")
        return self.learning_rate.iteration_of(np.asarray(times))

    @property
    def rise_iteration(self) -> np.ndarray:
        """`rise` in iterations, not rounded."""
        return self.iterations(self.rise)

    def to_xarray(self) -> "xr.Dataset":
        """All fields as a dataset, with the dimensions `network`, `point` and `component`."""
        batch = batch_dims("network", self.status.ndim)
        dims = {
            "rise": ("component",),
            "final": ("component",),
            "levels": ("level",),
            "times": ("point",),
            "loss": ("point",),
            "singular_values": ("point", "component"),
            "widths": ("layer",),
            "cut_off": (),
            "status": (),
        }
        variables = {name: ((*batch, *own), getattr(self, name)) for name, own in dims.items()}
        if self.learning_rate is not None:
            variables["rise_iteration"] = ((*batch, "component"), self.rise_iteration)
        return dataset(variables, {"status": StepsStatus.flags()})

    def plot(self) -> "Figure":
        """The loss and the singular values of one network: see `jaxcond.plotting.loss_steps`."""
        from ..plotting import loss_steps

        return loss_steps(self)

    def __str__(self) -> str:
        names = [label for label, count in StepsStatus.counts(self.status).items() if count]
        if self.status.ndim:
            return f"Steps of {len(self.status)} networks ({', '.join(names)})"
        at = self.rise if self.learning_rate is None else self.rise_iteration
        unit = "t = " if self.learning_rate is None else "iteration "
        rows = [
            f"{unit}{time:,.6g}: singular value {i + 1} on its way to {value:.4g}, "
            f"loss {self.levels[i]:.4g} -> {self.levels[i + 1]:.4g}"
            for i, (time, value) in enumerate(zip(at, self.final, strict=True))
        ]
        return "\n".join([f"Steps ({names[0]}):", *rows])


def predict_steps(
    network: MLP,
    data: AbstractData,
    learning_rate: float | Mapping[int, float] | LearningRate | None = None,
    *,
    loss: str | float | LossFunction | Loss = "half_mse",
    rank: int | None = None,
    max_time: float = np.inf,
    num: int = 400,
    max_steps: int = 16_384,
) -> Steps:
    r"""Predict when each singular value of a linear network rises, and the loss along the way.

    **Arguments:**

    - `network`: linear, with the initial weights; many with a leading axis.
    - `data`, `loss`: as for `gradient_descent`; squared losses.
    - `learning_rate`: the rate of gradient descent, a number or a mapping of iterations to rates;
      without it gradient flow is predicted.
    - `rank`: number of largest singular values to follow, by default all in which there is
      something to learn. With noise in the targets that is all of them, and the smallest take long.
    - `max_time`: training time at which to stop. Otherwise the flow ends when 1e-3 of the height of
      the last step is left or, for masks and other measurements, whose heights are not known
      beforehand, 1e-4 of the loss.
    - `num`: number of points of the course.
    - `max_steps`: number of solver steps after which the status is `NOT_CONVERGED`.

    **Returns:** `Steps`. For all entries of a matrix, or inputs whose covariance is a multiple of
    the identity, the smaller network has about a dozen units per layer at any width; for other
    inputs its first layer keeps one column for each input; for masks and other measurements it
    keeps all units, except hidden ones beyond the number of inputs and outputs together.

    **Raises:** `ValueError` for networks that are not linear or have biases, losses that are not
    squared, arguments out of range, weights that are not finite, and if there is nothing to learn
    (see `effective_model`).
    **Status:** `Steps.status`, for each network.

    Source: see the top of `jaxcond.networks._staircase`, and for the neglected terms that of
    `jaxcond.networks._smaller`.
    """
    loss = resolve_loss(loss)
    if network.activation is not linear:
        raise ValueError(
            'The steps are those of linear networks: `activation` must be "linear". For others '
            "`predict_escape` has the first one."
        )
    if network.biases is not None:
        raise ValueError(
            "The steps are those of networks without biases: centre the targets and the inputs in "
            "their place."
        )
    if not isinstance(loss, Squared):
        raise ValueError("The steps are those of squared losses: Argument `loss` is another one.")
    if rank is not None and rank < 1:
        raise ValueError(f"Argument `rank` must be at least 1, but is {rank}.")
    if not max_time > 0:
        raise ValueError(f"Argument `max_time` must be positive, but is {max_time}.")
    if num < 16:
        raise ValueError(f"Argument `num` must be at least 16, but is {num}.")
    rate = None if learning_rate is None else LearningRate.of(learning_rate)
    if not all(bool(jnp.all(jnp.isfinite(w))) for w in network.weights):
        raise ValueError("Argument `network` must have finite weights.")
    data = data.prepared(network, loss)
    singles = unstacked(network) if network.batch_shape else [network]
    results = [
        _steps(single, data, loss, rate, rank, (max_time, num, max_steps)) for single in singles
    ]
    steps = jax.tree.map(lambda *leaves: np.stack(leaves), *results)
    if not network.batch_shape:
        steps = results[0]
    return eqx.tree_at(lambda s: s.learning_rate, steps, rate, is_leaf=lambda x: x is None)


class _Course(eqx.Module):
    """The flow at the steps of the solver; `_rates` are time derivatives."""

    times: Float[Array, " steps"]
    loss: Float[Array, " steps"]
    loss_rates: Float[Array, " steps"]
    values: Float[Array, "steps rank"]
    value_rates: Float[Array, "steps rank"]
    weights: tuple[Array, ...]
    settled: Array
    failed: Array


def _product(weights: tuple[Array, ...]) -> Array:
    return reduce(lambda product, w: w @ product, weights)


def _loss(weights: tuple[Array, ...], problem: AbstractProblem) -> Array:
    return problem.loss(_product(weights))


@eqx.filter_jit
def _follow(
    start: Smaller, rate: LearningRate, boundaries: Array, max_time: Array, max_steps: int
) -> _Course:
    """Follow descent as a flow until all steps are done."""
    problem = start.problem

    def field(state: PyTree) -> PyTree:
        weights, time = state
        eta = jnp.asarray(rate.rates, time.dtype)[jnp.sum(boundaries <= time) - 1]
        return as_descent(lambda w: _loss(w, problem), weights, eta), jnp.ones_like(time)

    def observe(state: PyTree) -> PyTree:
        weights, time = state
        matrix, moving = jax.jvp(_product, (weights,), (field(state)[0],))
        here, falling = jax.jvp(problem.loss, (matrix,), (moving,))
        left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
        value_rates = jnp.sum((left.T @ moving) * right, axis=1)
        return time, here, falling, values[: problem.rank], value_rates[: problem.rank]

    weights = start.weights
    slope = jax.grad(_loss)(weights, problem)
    size, pace = (jnp.sqrt(sum(jnp.sum(x**2) for x in xs)) for xs in (weights, slope))
    first = jnp.where(pace > 0, 1e-3 * size / jnp.where(pace > 0, pace, 1), 1)
    solution = integrate(
        field,
        lambda state: problem.left(_product(state[0])) - problem.settled,
        (weights, jnp.zeros((), first.dtype)),
        (jnp.minimum(first, max_time), max_time),
        (usual_rtol(first.dtype), smallest_array(weights)),
        max_steps,
        observe,
    )
    assert solution.ys is not None
    end, records = solution.ys
    settled = solution.result == diffrax.RESULTS.event_occurred
    return _Course(
        *records,
        weights=jax.tree.map(lambda x: x[0], end[0]),
        settled=settled,
        failed=~(settled | (solution.result == diffrax.RESULTS.successful)),
    )


def _steps(
    network: MLP,
    data: AbstractData,
    loss: Squared,
    rate: LearningRate | None,
    rank: int | None,
    limits: tuple[float, int, int],
) -> Steps:
    max_time, num, max_steps = limits
    start = smaller(network, data, loss, rank, (_LEFT, _LEFT_OF_ALL))
    schedule = LearningRate(np.zeros(1, int), np.zeros(1)) if rate is None else rate
    dtype = network.dtype
    longest = min(max_time, float(jnp.finfo(dtype).max) ** 0.5)
    course = _follow(
        start,
        schedule,
        jnp.asarray(schedule.time_of(np.asarray(schedule.starts)), dtype),
        jnp.asarray(longest, dtype),
        max_steps,
    )
    # Unused steps are infinite; the last one may occur twice.
    times = np.asarray(course.times, np.float64)
    used = np.flatnonzero(np.isfinite(times))
    used = used[np.diff(times[used], prepend=-1.0) > 0]
    times, losses, loss_rates, values, value_rates = (
        np.asarray(x, np.float64)[used]
        for x in (course.times, course.loss, course.loss_rates, course.values, course.value_rates)
    )
    final = start.problem.final()
    final = np.asarray(values[-1] if final is None else final, np.float64)
    of_values = CubicHermiteSpline(times, values, value_rates)
    of_loss = CubicHermiteSpline(times, losses, loss_rates)
    rise = np.asarray([_half(times, of_values, i, f) for i, f in enumerate(final)])
    points = _points(times, losses, num)
    status = _status(course, start.problem, schedule)
    return Steps(
        rise=rise,
        final=final,
        levels=_levels(times, losses, loss_rates, rise),
        times=points,
        loss=of_loss(points),
        singular_values=of_values(points),
        widths=np.asarray([start.weights[0].shape[1], *(len(w) for w in start.weights)]),
        cut_off=np.asarray(_cut_off(course.weights, start)),
        status=np.asarray(int(status)),
        learning_rate=None,
    )


def _half(times: np.ndarray, spline: CubicHermiteSpline, index: int, final: float) -> float:
    """The time at which a singular value rises to half its final value; NaN if it does not."""
    values = spline(times)[:, index]
    above = np.flatnonzero(values >= 0.5 * final)
    if not above.size or above[0] == 0:
        return np.nan
    piece = above[0] - 1
    # Coefficients by powers of the time since the start of the piece, the highest first.
    powers = spline.c[:, piece, index].copy()
    powers[-1] -= 0.5 * final
    length = times[piece + 1] - times[piece]
    roots = np.roots(powers)
    roots = np.sort(roots[np.abs(roots.imag) < 1e-9 * length].real)
    inside = roots[(roots >= 0) & (roots <= length)]
    return float(times[piece] + (inside[0] if inside.size else length))


def _levels(
    times: np.ndarray, losses: np.ndarray, rates: np.ndarray, rise: np.ndarray
) -> np.ndarray:
    """The loss at the start, at the slowest fall between two steps, and at the end."""
    between = []
    for before, after in itertools.pairwise(rise):
        here = np.flatnonzero((times > before) & (times < after))
        slowest = here[np.argmin(-rates[here])] if here.size else None
        between.append(np.nan if slowest is None else losses[slowest])
    return np.asarray([losses[0], *between, losses[-1]])


def _points(times: np.ndarray, losses: np.ndarray, num: int) -> np.ndarray:
    """Times spread evenly over the sum of two shares: elapsed time, and fall of the loss."""
    fallen = np.maximum.accumulate(losses[0] - losses)
    passed = times / times[-1] + fallen / max(fallen[-1], np.finfo(float).tiny)
    return np.interp(np.linspace(0, passed[-1], num), passed, times)


def _cut_off(weights: tuple[Array, ...], start: Smaller) -> float:
    """The share of the outer layers in the last directions of hidden layers."""
    (p, q), ends = start.followed, (np.asarray(weights[0]), np.asarray(weights[-1]))
    layers = ends[0][:, :q], ends[1][:p].T
    shares = [
        np.sum(layer[len(layer) - count :] ** 2) / np.sum(layer**2)
        for layer, count in zip(layers, start.last, strict=True)
    ]
    return float(max(shares))


def _status(course: _Course, problem: AbstractProblem, rate: LearningRate) -> StepsStatus:
    if bool(course.failed):
        return StepsStatus.NOT_CONVERGED
    if not bool(course.settled):
        return StepsStatus.CUT_SHORT
    largest = float(
        largest_curvature(jax.tree_util.Partial(_loss, problem=problem), course.weights)
    )
    reached = float(course.times[np.isfinite(course.times)][-1])
    unstable = largest * rate.rate_at(np.asarray(reached)) > _STABLE
    return StepsStatus.UNSTABLE if unstable else StepsStatus.COMPLETE
