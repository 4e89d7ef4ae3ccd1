r"""The end of the plateau of any module under any smooth loss.

1. Where the loss has a homogeneous leading order $E_p$, $p\ge3$ (`jaxcond.networks._order`), its
   gradient ascent is followed until $E_p$ is a small share of the fall of the loss asked for, with
   the lag of descent behind the flow, $\frac\eta2\log(\|\nabla E_p(t)\|/\|\nabla E_p(0)\|)$.
2. From there on, the module's own descent is followed as a flow (`jaxcond.networks._own_flow`).
   If there is no such order, or if it leaves out too much, this flow is followed from the start.

Both parts act on all parameters, so nothing has to be lifted.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from .._status import AbstractStatus
from ._ascent import Ascent, ascend
from ._order import LeadingOrder, OrderStatus, arrays_of, checked_loss, inner, leading_order, split
from ._own_flow import (
    Arrival,
    earlier,
    fall,
    gradients_of,
    largest_curvature,
)

# The leading order is followed until its energy is this share of the fall of the loss asked for.
_SHARE = 1e-3
# The leading order is used if it leaves out at most these shares of the gradient: at the initial
# parameters, near which most of the time passes, and where the module's own flow takes over.
_MISMATCH_AT_START, _MISMATCH_AT_SWITCH = 1e-3, 2e-2
_STEPS = 8192


class PlateauStatus(AbstractStatus):
    """Outcome of a prediction for any module."""

    PREDICTED = 0, "the loss crosses the level"
    NOT_CROSSED = (
        1,
        "the loss left its plateau, but did not fall to the level: raise `fraction` or `level`, or "
        "`max_iterations` or `max_steps`",
    )
    AT_REST = (
        2,
        "the gradient vanishes, so descent does not move, as at zero parameters: draw small random "
        "ones",
    )
    UNSTABLE = (
        3,
        "the learning rate is above 2 over the largest curvature of the loss, at the start or at "
        "the crossing, and descent does not follow the flow there: lower it",
    )
    NOT_CONVERGED = (
        4,
        "the solver used all its steps on the plateau, or could not make them small enough: raise "
        "`max_steps`; in single precision a plateau can be below rounding: use float64",
    )
    INVALID_INPUT = 5, "the parameters or the loss are not finite"
    # The flow of a ReLU network of 20 x 20 and 30 samples got stuck at kinks, along which it
    # slides, and used 8,192 steps with a relative tolerance of 1e-5 as with 1e-9.
    NOT_SMOOTH = (
        6,
        "the loss has a kink at zero parameters, as with ReLU: there is no leading order, and "
        "steps of the flow become tiny at kinks; use a smooth activation, train without a "
        'prediction, or try path="flow"',
    )


class ModuleEscape(eqx.Module):
    r"""The predicted end of the plateau of any module.

    - `crossing`: the training time $t=\eta k$ at which the loss of gradient descent falls to
      `level`; `crossing_iteration` in iterations. NaN if not known.
    - `status`: a `PlateauStatus`; if `UNSTABLE`, the crossing is that of the flow.
    - `path`: "leading order" or "flow": the model of most of the plateau; `reason`: why the leading
      order was not used, or "".
    - `degree`: $p$; `blowup_time`: the blow-up time $T^*$ of the leading order, NaN for "flow".
    - `params`: the parameters at the crossing, or where the prediction ended; `loss`: their loss.
    - `first_loss`: the loss of the initial parameters; `level`: the loss to be crossed.
    - `sharpness`: an estimate of the largest eigenvalue of the Hessian at `params`; descent is
      stable for learning rates below 2 / `sharpness`.
    - `num_gradients`: number of gradients of the loss that the flow evaluated.
    """

    crossing: Float[np.ndarray, ""]
    status: Int[np.ndarray, ""]
    params: PyTree
    loss: Float[np.ndarray, ""]
    first_loss: Float[np.ndarray, ""]
    level: Float[np.ndarray, ""]
    blowup_time: Float[np.ndarray, ""]
    sharpness: Float[np.ndarray, ""]
    num_gradients: Int[np.ndarray, ""]
    learning_rate: Float[np.ndarray, ""]
    degree: int = eqx.field(static=True)
    path: str = eqx.field(static=True)
    reason: str = eqx.field(static=True)

    @property
    def crossing_iteration(self) -> np.ndarray:
        """The iteration at which the loss falls to `level`, with fractions."""
        return np.asarray(self.crossing / self.learning_rate)

    def __str__(self) -> str:
        status = PlateauStatus(int(self.status))
        lines = []
        if np.isfinite(self.crossing):
            by = f"leading order, degree {self.degree}" if self.degree else "flow"
            if self.path == "flow" and self.reason:
                by = f"flow, since {self.reason}"
            at = f"iteration {float(self.crossing_iteration):,.0f} (t = {float(self.crossing):.6g}"
            if np.isfinite(self.blowup_time):
                at += f", T* = {float(self.blowup_time):.6g}"
            lines.append(f"Escape: the loss falls to {float(self.level):.6g} at {at}), by {by}")
        if status != PlateauStatus.PREDICTED:
            meaning = status.meaning
            at = f"loss {float(self.loss):.6g}, level {float(self.level):.6g}"
            lines.append(f"Escape ({status.name.lower()}; {at}): {meaning}")
        return "\n".join(lines)


class ModuleSkip(eqx.Module):
    """The parameters of any module shortly before it leaves its plateau.

    - `params`: the parameters of descent after `iteration` iterations, at training time `time`. If
      the status is neither `PREDICTED` nor `UNSTABLE`, these are the initial ones, at time 0.
    - `escape`: the `ModuleEscape` of the loss falling by `drop`, with its `status` and `path`.
    """

    params: PyTree
    iteration: Int[np.ndarray, ""]
    time: Float[np.ndarray, ""]
    escape: ModuleEscape

    @property
    def status(self) -> np.ndarray:
        """A `PlateauStatus`."""
        return self.escape.status

    def __str__(self) -> str:
        if not np.isfinite(self.escape.crossing):
            return f"No skip. {self.escape}"
        text = f"Skip to iteration {int(self.iteration):,} (t = {float(self.time):.6g}), by "
        text += self.escape.path
        if int(self.status) != PlateauStatus.PREDICTED:
            text += f"\n{self.escape}"
        return text


@eqx.filter_jit
def _start(loss_fn: Callable, params: PyTree) -> tuple[Array, Array]:
    loss, floats = split(loss_fn, params)
    value, gradient = jax.value_and_grad(loss)(floats)
    return value, jnp.sqrt(inner(gradient, gradient))


def _usable_ascent(order: LeadingOrder, params: PyTree, drop: float) -> tuple[Ascent | None, str]:
    """The ascent of the leading order where it holds, and the reason where it does not."""
    if not order.homogeneous:
        return None, order.reason
    if not float(order.mismatch) <= _MISMATCH_AT_START:
        share = f"{100 * float(order.mismatch):.2g} %"
        return None, f"the parameters are so large that the leading order leaves out {share}"
    if float(order.value) >= _SHARE * drop:
        return None, "the end of the plateau is near"
    ascent = ascend(order, params, jnp.asarray(_SHARE * drop))
    if not bool(ascent.reached):
        return None, "the leading order does not grow so far"
    if not float(ascent.mismatch) <= _MISMATCH_AT_SWITCH:
        return None, "the leading order ceases to hold before the loss falls"
    return ascent, ""


def _level(first: float, fraction: float, level: float | None) -> float:
    """The loss to fall to.

    **Raises:** `ValueError` if it is not below the first loss.
    """
    if level is None:
        if not 0 < fraction < 1:
            raise ValueError(f"Argument `fraction` must lie between 0 and 1, but is {fraction}.")
        if first <= 0:
            raise ValueError(f"The initial loss is {first}, so that `fraction` needs a `level`.")
        return fraction * first
    if not (math.isfinite(level) and level < first):
        raise ValueError(
            f"Argument `level` must be finite and below the initial loss {first:g}, but is {level}."
        )
    return float(level)


def predict_escape_of(
    loss_fn: Callable[[PyTree], Any],
    params: PyTree,
    learning_rate: float,
    *,
    fraction: float = 0.9,
    level: float | None = None,
    path: str = "auto",
    max_order: int = 8,
    max_iterations: float = 1e9,
    max_steps: int = _STEPS,
) -> ModuleEscape:
    r"""Predict when gradient descent of any smooth loss leaves its plateau, for any module.

    $$\theta_{k+1} = \theta_k - \eta\nabla R(\theta_k), \qquad R(\theta_k) \le \text{level}$$

    Where the loss has a homogeneous leading order that holds at these parameters, its gradient
    ascent is followed for most of the plateau, then the module's own descent as a flow; otherwise
    this flow is followed from the start. Both account for the finite learning rate.

    **Arguments:**

    - `loss_fn`: the loss $R$ over all data, a function of the parameters that returns one real
      number. Programs are compiled once per function and shapes of the parameters: reuse one
      function.
    - `params`: the initial parameters, any tree with arrays of real floats $\theta$, like an
      equinox module; other leaves stay as they are. Double precision is recommended.
    - `learning_rate`: $\eta$ of plain full-batch gradient descent.
    - `fraction`: the crossing is where the loss falls to this fraction of its initial value;
      `level`: in place of it, the loss itself.
    - `path`: "auto", or "flow" to skip the leading order; losses with a kink at zero are then
      accepted, but the flow seldom gets far.
    - `max_order`: the largest power considered, as in `leading_order`.
    - `max_iterations`, `max_steps`: limits on iterations of descent and on steps of the solver. A
      plateau takes some dozens of steps.

    **Returns:** a `ModuleEscape`. Descent is at or below the level for the first time after
    `ceil(crossing_iteration)` iterations. On six plateaus of 400 to 7,000 iterations this was exact
    to one iteration (table in `docs/any_module.md`).

    **Raises:** `ValueError` for arguments out of range, a loss that is no real number, or
    parameters without an array of floats. **Status:** `ModuleEscape.status`.

    Source: at the top of `jaxcond.networks._any_module`.
    """
    if path not in ("auto", "flow"):
        raise ValueError(f'Argument `path` must be "auto" or "flow", but is "{path}".')
    if not 0 < learning_rate < math.inf:
        raise ValueError(
            f"Argument `learning_rate` must be positive and finite, but is {learning_rate}."
        )
    params = arrays_of(params)
    checked_loss(loss_fn, params)
    first, gradient = (float(x) for x in _start(loss_fn, params))
    known = math.isfinite(first) and math.isfinite(gradient)
    level = _level(first, fraction, level) if known else math.nan
    if not known or gradient == 0:
        status = PlateauStatus.AT_REST if known else PlateauStatus.INVALID_INPUT
        return _unknown(params, status, first, level, math.nan, learning_rate)
    curvature = float(largest_curvature(loss_fn, params))
    if learning_rate * curvature > 2:
        return _unknown(params, PlateauStatus.UNSTABLE, first, level, curvature, learning_rate)
    ascent, reason, degree = None, "", 0
    if path == "auto":
        order = leading_order(loss_fn, params, max_order)
        if int(order.status) == OrderStatus.KINK:
            status = PlateauStatus.NOT_SMOOTH
            return _unknown(params, status, first, level, curvature, learning_rate)
        degree = order.degree
        ascent, reason = _usable_ascent(order, params, first - level)
    begun, blowup_time, start = 0.0, math.nan, params
    if ascent is not None:
        begun = float(ascent.time) + 0.5 * learning_rate * float(ascent.grown)
        blowup_time = float(ascent.blowup_time)
        start = eqx.combine(ascent.floats, params)
    dtype = jnp.result_type(*jax.tree.leaves(eqx.filter(params, eqx.is_inexact_array)))
    arguments = (learning_rate, level, max(max_iterations * learning_rate - begun, 0.0))
    rate, floor, max_time = (jnp.asarray(x, dtype) for x in arguments)
    arrival = fall(loss_fn, start, rate, floor, max_time, max_steps)
    params = eqx.combine(arrival.floats, params)
    curvature = float(largest_curvature(loss_fn, params))
    status = _status(arrival, first, gradient, learning_rate * curvature)
    crossed = bool(arrival.crossed)
    return ModuleEscape(
        crossing=np.asarray(begun + float(arrival.time) if crossed else np.nan),
        status=np.asarray(int(status)),
        params=params,
        loss=np.asarray(arrival.loss, np.float64),
        first_loss=np.asarray(first),
        level=np.asarray(level),
        blowup_time=np.asarray(blowup_time),
        sharpness=np.asarray(curvature),
        num_gradients=np.asarray(int(gradients_of(arrival))),
        learning_rate=np.asarray(float(learning_rate)),
        degree=degree,
        path="flow" if ascent is None else "leading order",
        reason=reason,
    )


def _status(arrival: Arrival, first: float, gradient: float, stability: float) -> PlateauStatus:
    """The status that follows from the end of the flow."""
    if bool(arrival.crossed):
        return PlateauStatus.UNSTABLE if stability > 2 else PlateauStatus.PREDICTED
    if not math.isfinite(float(arrival.loss)):
        return PlateauStatus.NOT_CONVERGED
    if float(arrival.gradient) <= 1e-9 * gradient:
        return PlateauStatus.AT_REST
    fallen = first - float(arrival.loss) > 1e-3 * abs(first)
    return PlateauStatus.NOT_CROSSED if fallen else PlateauStatus.NOT_CONVERGED


def _unknown(
    params: PyTree,
    status: PlateauStatus,
    first: float,
    level: float,
    curvature: float,
    learning_rate: float,
) -> ModuleEscape:
    """An escape without a prediction."""
    return ModuleEscape(
        crossing=np.asarray(np.nan),
        status=np.asarray(int(status)),
        params=params,
        loss=np.asarray(first),
        first_loss=np.asarray(first),
        level=np.asarray(level),
        blowup_time=np.asarray(np.nan),
        sharpness=np.asarray(curvature),
        num_gradients=np.asarray(0),
        learning_rate=np.asarray(float(learning_rate)),
        degree=0,
        path="flow",
        reason="",
    )


def skip_plateau_of(
    loss_fn: Callable[[PyTree], Any],
    params: PyTree,
    learning_rate: float,
    *,
    drop: float = 0.01,
    **options: Any,
) -> ModuleSkip:
    r"""The parameters of any module shortly before it leaves its plateau, and their iteration.

    Descent from `params` goes on as it would after `iteration` iterations from the initial ones.

    **Arguments:**

    - `loss_fn`, `params`, `learning_rate`: as for `predict_escape_of`.
    - `drop`: how far to go: until the loss has fallen by this share.
    - `options`: `level`, `path`, `max_order`, `max_iterations`, `max_steps` of `predict_escape_of`.

    **Returns:** a `ModuleSkip`. **Raises:** `ValueError` as `predict_escape_of`. **Status:**
    `ModuleSkip.status`; where it is neither `PREDICTED` nor `UNSTABLE`, nothing is skipped.

    Source: at the top of `jaxcond.networks._any_module`.
    """
    if not 0 < drop < 1:
        raise ValueError(f"Argument `drop` must lie between 0 and 1, but is {drop}.")
    escape = predict_escape_of(loss_fn, params, learning_rate, fraction=1 - drop, **options)
    if not np.isfinite(escape.crossing):
        return ModuleSkip(arrays_of(params), np.asarray(0), np.asarray(0.0), escape)
    exact = float(escape.crossing_iteration)
    iteration = math.floor(exact)
    rate = jnp.asarray(float(learning_rate))
    return ModuleSkip(
        params=earlier(loss_fn, escape.params, rate, (exact - iteration) * rate),
        iteration=np.asarray(iteration),
        time=np.asarray(iteration * float(learning_rate)),
        escape=escape,
    )
