"""When a network will leave its plateau, from its initial weights alone.

The derivation is at the top of `jaxcond.networks._course`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int

from .._results import batch_dims, dataset, spread, table
from ..blowup import BlowUp, Status
from ._course import Course, courses
from ._data import AbstractData
from ._escape_status import EscapeStatus, Limit
from ._losses import Loss, LossFunction
from ._modules import MLP
from ._schedule import LearningRate

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


class Escape(eqx.Module):
    r"""The predicted end of the plateau; times are training times $t$.

    - `crossing`: the time at which the loss of the network falls below `level`;
      `crossing_iteration` in iterations.
    - `effective_crossing`: the same by the effective model and its quadratic term alone.
    - `blowup`: the `BlowUp` of the effective model, $T^*$ with its bracket, here in training time
      and not in units of the effective model; `iteration` and `iteration_bracket` are the same in
      iterations.
    - `status`: an `EscapeStatus`; `limit`: a `Limit`, the reason if the effective model does not
      hold up to the crossing, which is then that of the network's own flow.
    - `correction`: relative difference of the two crossings, of order $\varepsilon$: the expected
      error of the effective model. The error of `crossing` is of second order in the weights at the
      crossing, a small share of `correction`, and also falls like $\varepsilon$.
    - `speed`: $\nu$ at the initial weights and at the crossing, shape `(2,)`.
    - `times`, `clock`: the times of the effective model and of the network along the trajectory;
      `clock` is NaN from the point at which the effective model fails and the network would turn
      back; `effective_loss`, `network_loss` (curves 1 and 2), `energy`, `time_left` ($T^* - t$);
      shape `(num,)`.
    - `level`: the loss that is crossed; `plateau`: the loss of the plateau, which is the initial
      loss or, with biases in every layer, that of the best constant output; `learning_rate`, if
      given.

    For many networks all fields have a leading axis.
    """

    crossing: Float[np.ndarray, "*batch"]
    effective_crossing: Float[np.ndarray, "*batch"]
    blowup: BlowUp
    status: Int[np.ndarray, "*batch"]
    limit: Int[np.ndarray, "*batch"]
    correction: Float[np.ndarray, "*batch"]
    speed: Float[np.ndarray, "*batch 2"]
    times: Float[np.ndarray, "*batch num"]
    clock: Float[np.ndarray, "*batch num"]
    effective_loss: Float[np.ndarray, "*batch num"]
    network_loss: Float[np.ndarray, "*batch num"]
    energy: Float[np.ndarray, "*batch num"]
    time_left: Float[np.ndarray, "*batch num"]
    level: Float[np.ndarray, "*batch"]
    plateau: Float[np.ndarray, "*batch"]
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
        """The iteration at which the loss falls below `level`, not rounded."""
        return self.iterations(self.crossing)

    @property
    def iteration(self) -> np.ndarray:
        """$T^*$ in iterations."""
        return self.iterations(np.asarray(self.blowup.time))

    @property
    def iteration_bracket(self) -> tuple[np.ndarray, np.ndarray]:
        """The bracket of $T^*$ in iterations."""
        lower, upper = (np.asarray(x) for x in (self.blowup.lower, self.blowup.upper))
        return self.iterations(lower), self.iterations(upper)

    def to_xarray(self) -> "xr.Dataset":
        """All fields as a dataset, with the dimensions `network` and `point`."""
        batch = batch_dims("network", self.crossing.ndim)
        scalars = ("crossing", "effective_crossing", "correction", "status", "limit")
        curves = ("times", "clock", "effective_loss", "network_loss", "energy", "time_left")
        variables = {name: (batch, getattr(self, name)) for name in (*scalars, "level", "plateau")}
        variables |= {name: ((*batch, "point"), getattr(self, name)) for name in curves}
        variables |= {
            f"blowup_{name}": (batch, getattr(self.blowup, name))
            for name in ("time", "lower", "upper", "error", "status")
        }
        variables["speed"] = ((*batch, "place"), self.speed)
        if self.learning_rate is not None:
            variables["crossing_iteration"] = (batch, self.crossing_iteration)
        flags = {
            "status": EscapeStatus.flags(),
            "limit": Limit.flags(),
            "blowup_status": Status.flags(),
        }
        return dataset(variables, flags)

    def plot(self) -> "Figure":
        """The loss along the plateau, or the distribution of the escapes of many networks.

        See `jaxcond.plotting.escape_curves` and `jaxcond.plotting.escape_histogram`.
        """
        from ..plotting import escape_curves, escape_histogram

        if self.crossing.ndim and self.learning_rate is not None:
            return escape_histogram(self.crossing_iteration)
        return escape_curves(self)

    def _correction_text(self) -> str:
        if np.isnan(self.correction):
            return "the effective model does not cross it, or begins later"
        return f"the effective model alone is {100 * float(self.correction):+.2g} % off"

    def __str__(self) -> str:
        if self.crossing.ndim:
            in_iterations = self.learning_rate is not None
            return table(
                f"Escape of {len(self.crossing)} networks: {EscapeStatus.summary(self.status)}",
                {
                    f"{'iteration' if in_iterations else 'time'}, median (quartiles)": spread(
                        self.crossing_iteration if in_iterations else self.crossing
                    ),
                    "T*, median (quartiles)": spread(self.blowup.time),
                    "limited by": Limit.summary(self.limit[self.limit > 0]) or "nothing",
                },
            )
        status, limit = EscapeStatus(int(self.status)), Limit(int(self.limit))
        if np.isnan(self.crossing):
            why = f": {limit.meaning}" if limit else ""
            return f"Escape ({status.label}): {status.meaning}{why}"
        at = f"t = {float(self.crossing):.6g}"
        if self.learning_rate is not None:
            at = f"iteration {float(self.crossing_iteration):,.0f} ({at})"
        time = float(self.blowup.time)
        blowup = f"T* = {time:.10g}, " if np.isfinite(time) else ""  # two layers have none
        lines = [
            f"Escape: the loss falls below {float(self.level):.6g}, "
            f"{float(self.level / self.plateau):.4g} of its value on the plateau, at {at}; "
            f"{blowup}{self._correction_text()}"
        ]
        if status != EscapeStatus.PREDICTED:
            lines.append(f"That is of the flow ({status.label}): {status.meaning}")
        if limit:
            lines.append(
                "It does not hold as far as that, so the network's own flow was followed: "
                f"{limit.meaning}"
            )
        return "\n".join(lines)


def predict_escape(
    network: MLP,
    data: AbstractData,
    learning_rate: float | Mapping[int, float] | LearningRate | None = None,
    *,
    loss: str | float | LossFunction | Loss = "half_mse",
    fraction: float = 0.9,
    level: float | None = None,
    num: int = 100,
) -> Escape:
    r"""When a network will leave its plateau, from its initial weights alone.

    **Arguments:**

    - `network`: with the initial weights; many with a leading axis.
    - `data`, `loss`: as for `gradient_descent`.
    - `learning_rate`: the rate of gradient descent, a number or a mapping of iterations to rates;
      without it only times of gradient flow are predicted.
    - `fraction`: the share of the initial loss (with biases in every layer, of the loss of the
      plateau, on which the output bias has settled) below which the loss has left the plateau.
    - `level`: the loss itself, in place of `fraction`.
    - `num`: number of points along the effective trajectory.

    **Returns:** an `Escape`. The prediction costs $T^*$ (for three layers about twelve products
    with $W_2$), and `num` losses of the network.

    **Raises:** `ValueError` for arguments out of range, if there is no effective model (see
    `effective_model`), and for an initial loss that is not positive unless `level` is given.
    **Status:** `Escape.status`, for each network.

    For a linear network, `predict_steps` predicts all steps of the loss, not only the first.

    Source: see the top of `jaxcond.networks._course`.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"Argument `fraction` must lie between 0 and 1, but is {fraction}.")
    if num < 16:
        raise ValueError(f"Argument `num` must be at least 16, but is {num}.")
    rate = None if learning_rate is None else LearningRate.of(learning_rate)
    if level is not None and not np.isfinite(level):
        raise ValueError(f"Argument `level` must be finite, but is {level}.")
    predicted = courses(network, data, loss, rate, 1 - fraction, num, level)
    escapes = [_escape(course) for course in predicted]
    escape = jax.tree.map(lambda *leaves: np.stack(leaves), *escapes)
    if not network.batch_shape:
        escape = escapes[0]
    return eqx.tree_at(lambda e: e.learning_rate, escape, rate, is_leaf=lambda x: x is None)


def _escape(course: Course) -> Escape:
    path, crossing = course.path, course.crossing()
    effective = course.effective_crossing()
    with np.errstate(invalid="ignore"):
        turned = np.logical_or.accumulate(np.diff(course.clock, prepend=-np.inf) <= 0)
    at_crossing = np.interp(course.effective_time(crossing.time), course.times, path.speed)
    return Escape(
        crossing=np.asarray(crossing.time),
        effective_crossing=np.asarray(effective),
        blowup=course.blowup,
        status=np.asarray(int(crossing.status)),
        limit=np.asarray(int(crossing.limit)),
        correction=np.asarray(effective / crossing.time - 1),
        speed=np.asarray([path.speed[0], at_crossing]),
        times=course.times,
        clock=np.where(turned, np.nan, course.clock),
        effective_loss=path.effective_loss,
        network_loss=path.network_loss,
        energy=path.energy,
        time_left=course.time_left,
        level=np.asarray(course.level),
        plateau=np.asarray(course.plateau),
        learning_rate=None,
    )
