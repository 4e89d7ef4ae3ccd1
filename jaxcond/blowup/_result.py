"""The result of a blow-up time computation, and its status codes."""

from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from .._results import batch_dims, dataset, spread, table
from .._status import AbstractStatus

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.figure import Figure


class Status(AbstractStatus):
    """Outcome of one sample."""

    CONVERGED = 0, "the time is known to the tolerance: `error` is at most `rtol` times the time"
    NO_BLOW_UP = 1, "the flow is proven to come to rest: the time is infinite, the error zero"
    NOT_CONVERGED = 2, "the method gave up; `lower` and `upper` still hold"
    INVALID_INPUT = 3, "the state holds NaN or infinite entries; all values are NaN"
    ILL_CONDITIONED = (
        4,
        "digits beyond the last ones of the dtype decide the time, so that no method reaches the "
        "tolerance; `error` says how well the time is known, and both are infinite where the state "
        "cannot be told from one that comes to rest",
    )


def is_known(time: Any, status: Any) -> Any:
    """Mask of the samples with a finite time and a finite error, within the tolerance or not.

    These are the converged samples and the ill-conditioned samples with a finite error. Statistics
    use exactly these samples. The arguments are NumPy or JAX arrays that broadcast.
    """
    limited = (status == Status.ILL_CONDITIONED) & (time < np.inf)
    return (status == Status.CONVERGED) | limited


class BlowUp(eqx.Module):
    """The blow-up time of a state, with its bracket, error and status.

    All fields are scalars for one state and have the batch's shape for a batch.

    - `time`: the blow-up time $T^*$, in units of the effective model; infinite if the flow comes to
      rest or cannot be distinguished from a flow that does.
    - `lower`, `upper`: a bracket of $T^*$ that contains `time`. The bracket of `jaxcond.bracket` is
      a theorem for the state that a method reached. It is widened by `error`, which estimates the
      distance between the blow-up time of that state and $T^*$. If `error` is infinite, the bracket
      is the theorem for the given state.
    - `error`: a conservative estimate of the absolute error of `time`. It covers truncation,
      rounding, and the condition of $T^*$, measured on copies with noise in their last bits.
    - `status`: a `Status` code.
    - `num_steps`: Taylor expansions or solver steps taken.
    - `stage`: index into `methods` of the method that settled the sample.
    - `methods`: the methods tried, in order.
    """

    time: Float[Array, "*batch"]
    lower: Float[Array, "*batch"]
    upper: Float[Array, "*batch"]
    error: Float[Array, "*batch"]
    status: Int[Array, "*batch"]
    num_steps: Int[Array, "*batch"]
    stage: Int[Array, "*batch"]
    methods: tuple[str, ...] = eqx.field(static=True)

    def is_known(self) -> Bool[Array, "*batch"]:
        """Mask of the samples with a finite time and a finite error; see `is_known`."""
        return is_known(self.time, self.status)

    def counts(self) -> dict[str, int]:
        """Number of samples per status name, in the order of the codes. Runs on the host."""
        return Status.counts(self.status)

    def settled_by(self) -> dict[str, int]:
        """Number of samples that each method settled, in the order tried. Runs on the host."""
        stages = np.asarray(self.stage)
        return {name: int(np.sum(stages == i)) for i, name in enumerate(self.methods)}

    def __str__(self) -> str:
        if self.status.ndim == 0:
            status = Status(int(self.status))
            digits = 8 if self.time.dtype == jnp.float32 else 16
            return (
                f"T* = {float(self.time):.{digits}g} ({status.label}, "
                f"error {float(self.error):.1g}, bracket [{float(self.lower):.{digits}g}, "
                f"{float(self.upper):.{digits}g}], {self.time.dtype})"
            )
        title = (
            f"BlowUp of {self.status.size} samples in {self.time.dtype}: "
            f"{Status.summary(self.status)}"
        )
        relative = np.asarray(self.error) / np.asarray(self.time)
        return table(
            title,
            {
                "T*, median (quartiles)": spread(self.time),
                "relative error, median (quartiles)": spread(relative),
                "settled by": ", ".join(f"{n} {name}" for name, n in self.settled_by().items()),
            },
        )

    def to_xarray(self) -> "xr.Dataset":
        """All fields as a dataset; a batch has the dimension `sample`."""
        dims = batch_dims("sample", self.status.ndim)
        names = ("time", "lower", "upper", "error", "status", "num_steps", "stage")
        return dataset(
            {name: (dims, getattr(self, name)) for name in names},
            flags={"status": Status.flags()},
            methods=list(self.methods),
        )

    def plot(self) -> "Figure":
        """The distribution of the times of a batch: see `jaxcond.plotting.blowup_histogram`."""
        from ..plotting import blowup_histogram

        return blowup_histogram(self)
