"""The result of a training run: the network, its records, and a status."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import equinox as eqx
import numpy as np

from .._results import batch_dims, dataset
from .._status import AbstractStatus
from ._modules import MLP

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


class RunStatus(AbstractStatus):
    """How a run ended."""

    COMPLETED = 0, "the run went on to its end, or to the loss at which it was to stop"
    STALLED = 1, "most weights no longer move: their steps are lost to the rounding of the dtype"
    DIVERGED = 2, "the loss grew beyond bounds or is not finite; the network is the last good one"
    NOT_CONVERGED = 3, "the solver of a gradient flow took too many steps"
    EXHAUSTED = 4, "the batches of the caller ended before the run did"


class Run(eqx.Module):
    r"""The outcome of `gradient_descent` or `gradient_flow`.

    - `network`: the trained network; after a divergence the last good one.
    - `iteration`, `time`: its position, in steps of gradient descent (for a flow, accepted steps of
      the solver) and in training time $t$, the sum of the learning rates.
    - `iterations`, `times`: of the records, shape `(num,)`.
    - `records`: arrays by name, with the records along the first axis: `loss`, `rounded_away` (the
      share of the weights whose steps were lost to rounding) and the observables.
    - `crossings`: for each requested fraction of the initial loss, the iteration (for a flow, the
      training time) at which the loss first fell below it; NaN if it did not.
    - `num_gradients`: evaluations of the gradient (for a flow, including rejected steps).
    - `status`: a `RunStatus`.

    For a batch of networks all fields have a leading axis.
    """

    network: MLP
    iteration: np.ndarray
    time: np.ndarray
    iterations: np.ndarray
    times: np.ndarray
    records: Mapping[str, np.ndarray]
    crossings: Mapping[float, np.ndarray]
    num_gradients: np.ndarray
    status: np.ndarray

    def __getitem__(self, name: str) -> np.ndarray:
        """The record of a name; its last axes are those of the observable."""
        if name not in self.records:
            raise KeyError(f"{name!r} was not recorded; there are {', '.join(self.records)}")
        return self.records[name]

    @property
    def loss(self) -> np.ndarray:
        """The recorded loss."""
        return self.records["loss"]

    def to_xarray(self) -> "xr.Dataset":
        """The records against their iterations, with the dimensions `network` and `record`.

        The axes of an observable follow as `loss_0`, ...; the crossings have the dimension `level`.
        """
        batch = batch_dims("network", self.status.ndim)
        variables = {name: (batch, getattr(self, name)) for name in ("iteration", "time")}
        variables |= {name: (batch, getattr(self, name)) for name in ("num_gradients", "status")}
        variables |= {
            name: ((*batch, "record"), getattr(self, name)) for name in ("iterations", "times")
        }
        for name, values in self.records.items():
            own = tuple(f"{name}_{i}" for i in range(values.ndim - len(batch) - 1))
            variables[name] = ((*batch, "record", *own), values)
        if self.crossings:
            crossings = np.stack([*self.crossings.values()], axis=-1)
            variables["crossings"] = ((*batch, "level"), crossings)
            variables["level"] = (("level",), np.asarray([*self.crossings], float))
        return dataset(variables, {"status": RunStatus.flags()})

    def plot(self) -> "Figure":
        """The recorded loss: see `jaxcond.plotting.training_loss`."""
        from ..plotting import training_loss

        return training_loss(self)

    def __str__(self) -> str:
        loss = np.atleast_2d(self.loss)
        names = [label for label, count in RunStatus.counts(self.status).items() if count]
        losses = ", ".join(f"{row[0]:.4g} -> {row[-1]:.4g}" for row in loss[:4])
        more = ", ..." if len(loss) > 4 else ""
        return (
            f"Run of {int(np.max(self.iteration)):,} steps ({', '.join(names)}), "
            f"{self.times.shape[-1]} records, loss {losses}{more}"
        )
