"""What a blow-up time computation returns, and its status codes."""

import enum
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


class Status(enum.IntEnum):
    """Outcome of one sample."""

    CONVERGED = 0
    """The time is known to the tolerance asked for: `BlowUp.error` is at most `rtol` of it."""
    NO_BLOW_UP = 1
    """It is proven that the flow comes to rest: the time is infinite, the error zero."""
    NOT_CONVERGED = 2
    """The method gave up; `lower` and `upper` still hold."""
    INVALID_INPUT = 3
    """The state holds NaN or infinite entries; all values are NaN."""
    ILL_CONDITIONED = 4
    """The arithmetic cannot give the time to the tolerance asked for, since digits beyond its last
    ones decide it. `error` says how well it is known: infinite, as the time, where the state comes
    to rest as far as can be seen."""


def is_known(time: Any, status: Any) -> Any:
    """Where a time is finite with a finite error, be it within the tolerance asked for or not.

    Converged samples, and ill-conditioned ones of which something is known: those that statistics
    take. Arrays of NumPy or JAX that broadcast.
    """
    limited = (status == Status.ILL_CONDITIONED) & (time < np.inf)
    return (status == Status.CONVERGED) | limited


class BlowUp(eqx.Module):
    """The blow-up time of a state, with what is known about its accuracy.

    All fields are scalars for one state and have the batch's shape for a batch.

    - `time`: the blow-up time $T^*$, in units of the effective model; infinite where the flow comes
      to rest, or does as far as can be seen.
    - `lower`, `upper`: a bracket of $T^*$, which holds `time`. That of `jaxcond.bracket` is a
      theorem for the state that a method has reached, and is widened by `error`, an estimate of how
      far the blow-up time of that state is from the one asked for. Where `error` is infinite it is
      the theorem for the state given.
    - `error`: an estimate, meant not to be exceeded, of the absolute error of `time`: truncation,
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
        """`is_known` of its times: where they are finite with a finite error."""
        return is_known(self.time, self.status)

    def counts(self) -> dict[str, int]:
        """Number of samples per status name, in the order of the codes. On the host."""
        codes = np.asarray(self.status)
        return {status.name.lower(): int(np.sum(codes == status)) for status in Status}

    def settled_by(self) -> dict[str, int]:
        """Number of samples that each method settled, in the order tried. On the host."""
        stages = np.asarray(self.stage)
        return {name: int(np.sum(stages == i)) for i, name in enumerate(self.methods)}

    def __str__(self) -> str:
        if self.status.ndim == 0:
            status = Status(int(self.status))
            digits = 8 if self.time.dtype == jnp.float32 else 16
            return (
                f"T* = {float(self.time):.{digits}g} ({status.name.lower()}, "
                f"error {float(self.error):.1g}, bracket [{float(self.lower):.{digits}g}, "
                f"{float(self.upper):.{digits}g}], {self.time.dtype})"
            )
        listed = ", ".join(f"{n} {name}" for name, n in self.counts().items() if n)
        return f"BlowUp of {self.status.size} samples in {self.time.dtype}: {listed}"
