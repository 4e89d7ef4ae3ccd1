r"""Losses of one sample, and the pull of a sample on a network with small weights.

$$R = \frac1n \sum_{i=1}^n \ell(f(x_i), y_i), \qquad
  g_i = -\frac{\partial\ell}{\partial f}(0, y_i) .$$

| name | $\ell(f, y)$ | pull $g$ |
|---|---|---|
| `half_mse` | $\frac12\|f-y\|^2$ | $y$ |
| `mse` | $\|f-y\|^2$ | $2y$ |
| `softmax` | $\log\sum_k e^{f_k} - \langle y, f\rangle$ | $y - 1/m$ for $m$ classes |
| `logistic` | $\sum_k\log(1 + e^{-y_kf_k})$, $y_k = \pm1$ | $y/2$ |

An output bias first comes to rest at the constant output of least loss, $b^*$. After that, the
pulls at $f = b^*$ replace those at zero, and they add up to zero.

Source: Chen and Luo, eq. (3.2), for the first; the rest is derived here.
"""

import abc
import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

LossFunction = Callable[[Array, Array], Array]


class Loss(abc.ABC):
    """A loss as a sum over samples; the data divide it by their number."""

    def targets(self, y: Array, num_outputs: int) -> Array:
        """The targets in the form that this loss takes.

        **Raises:** `ValueError` for targets that do not fit the loss.
        """
        if y.ndim == 2 and y.shape[1] != num_outputs:
            raise ValueError(
                f"The network has {num_outputs} outputs, but the data have {y.shape[1]}."
            )
        return y

    @abc.abstractmethod
    def total(self, outputs: Array, targets: Array) -> Float[Array, ""]:
        r"""$\sum_i\ell(f_i, y_i)$."""

    @abc.abstractmethod
    def pull(self, targets: Array, output: np.ndarray) -> np.ndarray:
        r"""$-\partial\ell/\partial f$ of all samples at one output `(outputs,)`, on the host."""

    @property
    def largest_curvature(self) -> float:
        r"""A bound on $\partial^2\ell/\partial f^2$; infinity where none is known."""
        return math.inf

    @abc.abstractmethod
    def rest(self, targets: Array, num_outputs: int) -> "Rest":
        """The rest of an output bias while all weights are small.

        **Raises:** `ValueError` if there is none.
        """


@dataclasses.dataclass(frozen=True)
class Rest:
    r"""The constant output of least loss, $b^*$, and the rate at which an output bias approaches
    it.

    - `output`: $b^*$, shape `(outputs,)`. The pulls there add up to zero.
    - `rate`: the smallest eigenvalue of the mean of $\partial^2\ell(b^*, y_i)$, apart from
      directions in which no output changes the loss.
    """

    output: np.ndarray
    rate: float


def _never_rests(why: str) -> ValueError:
    return ValueError(
        f"The output bias never comes to rest: {why}. Without a plateau there is nothing to "
        "predict; follow the network by `gradient_flow`."
    )


@dataclasses.dataclass(frozen=True)
class Squared(Loss):
    r"""$\kappa\|f - y\|^2$."""

    factor: float

    def total(self, outputs: Array, targets: Array) -> Float[Array, ""]:
        return self.factor * jnp.sum((outputs - targets) ** 2)

    def pull(self, targets: Array, output: np.ndarray) -> np.ndarray:
        return 2 * self.factor * (np.asarray(targets, np.float64) - output)

    @property
    def largest_curvature(self) -> float:
        return 2 * self.factor

    def rest(self, targets: Array, num_outputs: int) -> Rest:
        del num_outputs
        return Rest(np.mean(np.asarray(targets, np.float64), axis=0), 2 * self.factor)


@dataclasses.dataclass(frozen=True)
class Softmax(Loss):
    """Cross-entropy of the softmax of the outputs."""

    def targets(self, y: Array, num_outputs: int) -> Array:
        if num_outputs < 2:
            raise ValueError('Loss "softmax" needs two outputs or more: use "logistic" for one.')
        values = np.asarray(y, np.float64)
        if values.shape[1] == 1:
            labels = values[:, 0]
            if np.any((labels != np.round(labels)) | (labels < 0) | (labels >= num_outputs)):
                raise ValueError(
                    f"Class labels must be whole numbers from 0 to {num_outputs - 1}, as the "
                    f"network has {num_outputs} outputs, but lie between {labels.min():g} and "
                    f"{labels.max():g}."
                )
            return jax.nn.one_hot(jnp.asarray(labels, int), num_outputs, dtype=y.dtype)
        y = super().targets(y, num_outputs)
        if np.any(values < 0) or np.any(np.abs(np.sum(values, axis=1) - 1) > 1e-6):
            raise ValueError(
                'Targets of the loss "softmax" must be labels, or probabilities that add up to 1.'
            )
        return y

    def total(self, outputs: Array, targets: Array) -> Float[Array, ""]:
        return -jnp.sum(targets * jax.nn.log_softmax(outputs))

    def pull(self, targets: Array, output: np.ndarray) -> np.ndarray:
        powers = np.exp(output - np.max(output))
        return np.asarray(targets, np.float64) - powers / np.sum(powers)

    @property
    def largest_curvature(self) -> float:
        return 0.5

    def rest(self, targets: Array, num_outputs: int) -> Rest:
        shares = np.mean(np.asarray(targets, np.float64), axis=0)
        absent = np.flatnonzero(shares <= 0)
        if absent.size:
            raise _never_rests(f"no sample is of class {absent[0]} of {num_outputs}")
        curvature = np.diag(shares) - np.outer(shares, shares)
        # Softmax does not change along (1, ..., 1), so the sum of the output bias does not either.
        logits = np.log(shares)
        return Rest(logits - np.mean(logits), float(np.linalg.eigvalsh(curvature)[1]))


@dataclasses.dataclass(frozen=True)
class Logistic(Loss):
    """Cross-entropy of two classes for every output."""

    def targets(self, y: Array, num_outputs: int) -> Array:
        y = super().targets(y, num_outputs)
        values = set(np.unique(np.asarray(y)).tolist())
        if values <= {-1.0, 1.0}:
            return y
        if values <= {0.0, 1.0}:
            return 2 * y - 1
        raise ValueError(
            'Targets of the loss "logistic" must be -1 and 1, or 0 and 1, but there are '
            f"{', '.join(f'{value:g}' for value in sorted(values)[:5])}."
        )

    def total(self, outputs: Array, targets: Array) -> Float[Array, ""]:
        return jnp.sum(jax.nn.softplus(-targets * outputs))

    def pull(self, targets: Array, output: np.ndarray) -> np.ndarray:
        signs = np.asarray(targets, np.float64)
        return signs / (1 + np.exp(signs * output))

    @property
    def largest_curvature(self) -> float:
        return 0.25

    def rest(self, targets: Array, num_outputs: int) -> Rest:
        del num_outputs
        shares = np.mean(np.asarray(targets, np.float64) > 0, axis=0)
        if np.any((shares == 0) | (shares == 1)):
            raise _never_rests("all samples of an output are of one class")
        return Rest(np.log(shares / (1 - shares)), float(np.min(shares * (1 - shares))))


@dataclasses.dataclass(frozen=True)
class Custom(Loss):
    """A loss given as a function of the output and the target of one sample."""

    function: LossFunction

    def targets(self, y: Array, num_outputs: int) -> Array:
        output = jax.ShapeDtypeStruct((num_outputs,), y.dtype)
        try:
            found = jax.eval_shape(self.function, output, y[0])
        except Exception as error:  # the caller's function may fail in any way
            raise ValueError(
                f"Argument `loss` cannot be traced with an output of shape {output.shape} and a "
                f"target of shape {y[0].shape}: {str(error).splitlines()[0]}"
            ) from error
        shape, dtype = getattr(found, "shape", None), getattr(found, "dtype", None)
        if shape != () or dtype is None or not jnp.issubdtype(dtype, jnp.floating):
            what = type(found).__name__ if shape is None else f"shape {shape} and dtype {dtype}"
            raise ValueError(
                "Argument `loss` must return one number for the output and the target of one "
                f"sample, a floating one, but returns {what}."
            )
        return y

    def total(self, outputs: Array, targets: Array) -> Float[Array, ""]:
        return jnp.sum(jax.vmap(self.function)(outputs, targets))

    def pull(self, targets: Array, output: np.ndarray) -> np.ndarray:
        here = jnp.broadcast_to(jnp.asarray(output, targets.dtype), (len(targets), len(output)))
        gradient = jax.vmap(jax.grad(self.function))
        pull = -np.asarray(gradient(here, targets), np.float64)
        if not np.all(np.isfinite(pull)):
            raise ValueError("The derivative of `loss` at the output of the plateau is not finite.")
        # A smooth loss has the same slope from either side, up to its curvature.
        step = 1e-3

        def change(size: float) -> np.ndarray:
            ahead, behind = (
                np.asarray(gradient(here + sign * size, targets), np.float64) for sign in (1, -1)
            )
            return np.abs(ahead - behind)

        # The slope of a smooth loss changes four times as much over four times the distance.
        near, far = change(step), change(4 * step)
        if np.any((near > 0.5 * far) & (near > 1e-5 * np.max(np.abs(pull)))):
            raise ValueError(
                "The loss has a kink at zero output, or with biases at that of the plateau, as "
                "absolute values have: there is no leading order. Follow the network by "
                "`gradient_flow`."
            )
        return pull

    def rest(self, targets: Array, num_outputs: int) -> Rest:
        output, curvature, settled = _rest_of(self.function, targets, num_outputs)
        rates = np.linalg.eigvalsh(np.asarray(curvature, np.float64))
        if not bool(settled) or not rates[0] > 1e-6 * rates[-1]:
            raise _never_rests("there is no constant output of least loss, or it is not the only")
        return Rest(np.asarray(output, np.float64), float(rates[0]))


@partial(jax.jit, static_argnums=(0, 2))
def _rest_of(
    function: LossFunction, targets: Array, num_outputs: int
) -> tuple[Array, Array, Array]:
    r"""The rest of an output bias that starts at 0, the curvature there, and whether it converged.

    Implicit steps of the flow, $(1/h + \nabla^2R)\,\delta = -\nabla R$, whose length $h$ doubles:
    they begin as the flow and end as Newton's method.
    """

    def mean(output: Array) -> Array:
        return jnp.mean(jax.vmap(function, in_axes=(None, 0))(output, targets))

    unit = jnp.eye(num_outputs, dtype=targets.dtype)

    def step(index: Array, output: Array) -> Array:
        slope, curvature = jax.grad(mean)(output), jax.hessian(mean)(output)
        damping = 10 * jnp.linalg.norm(curvature) * 2.0 ** -index.astype(output.dtype)
        return output - jnp.linalg.solve(curvature + damping * unit, slope)

    output = lax.fori_loop(0, 60, step, jnp.zeros(num_outputs, targets.dtype))
    left = jnp.linalg.norm(jax.grad(mean)(output))
    scale = jnp.mean(jnp.abs(jax.vmap(jax.grad(function), in_axes=(None, 0))(output, targets)))
    settled = left <= jnp.sqrt(jnp.finfo(output.dtype).eps) * scale
    return output, jax.hessian(mean)(output), settled


LOSSES: dict[str, Loss] = {
    "half_mse": Squared(0.5),
    "mse": Squared(1.0),
    "softmax": Softmax(),
    "logistic": Logistic(),
}
"""Losses by name; any function of the output and the target of one sample may be given instead."""


def resolve_loss(loss: "str | float | LossFunction | Loss") -> Loss:
    r"""The loss that an argument names.

    **Arguments:** `loss`, a name of `LOSSES`; a number $\kappa$ for $\kappa\|f-y\|^2$; or a
    smooth function of the output `(outputs,)` and the target of one sample that returns a number.
    The squares of several outputs are summed, not averaged; for a mean over `m` outputs give `1 /
    m`.

    **Raises:** `ValueError` for other names and for factors that are not positive and finite.
    """
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(
                f"Argument `loss` must be a function, a factor or one of {', '.join(LOSSES)}, but "
                f"is {loss!r}."
            )
        return LOSSES[loss]
    if callable(loss):
        return Custom(loss)
    if not isinstance(loss, int | float | np.number):
        raise ValueError(
            f"Argument `loss` must be a function, a factor or one of {', '.join(LOSSES)}, but is "
            f"of type {type(loss).__name__}."
        )
    if not 0 < loss < math.inf:
        raise ValueError(f"Argument `loss` must be a positive factor, but is {loss}.")
    return Squared(float(loss))
