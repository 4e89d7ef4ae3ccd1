"""Times and energies that a trajectory does not reach, and why."""

from typing import TYPE_CHECKING

import jax
import numpy as np
from jax.core import Tracer
from jaxtyping import ArrayLike

from ..blowup import Status
from ._status import PointStatus

if TYPE_CHECKING:
    from ._path import Trajectory


def is_traced(path: "Trajectory") -> bool:
    """Whether a trajectory holds traced arrays, so that no time can be refused."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(path))


def _reject(path: "Trajectory", name: str, values: np.ndarray, index: int, code: int) -> None:
    place = "" if values.ndim == 0 else str([int(i) for i in np.unravel_index(index, values.shape)])
    raise ValueError(
        f"Argument `{name}`{place} = {float(values.flat[index]):.10g} {PointStatus(code).meaning} "
        f"(end = {float(path.end):.10g}, T* = {float(path.blowup.time):.10g})."
    )


def refuse(path: "Trajectory", times: ArrayLike, values: ArrayLike, name: str) -> None:
    """Raise `ValueError` for times that are not reached, unless they are traced."""
    if isinstance(times, Tracer) or is_traced(path):
        return
    host, shown = np.asarray(times), np.asarray(values)
    reached = (host >= 0) & (host * float(path.scale) <= float(path.pieces.elapsed))
    invalid = int(path.blowup.status) == Status.INVALID_INPUT
    if reached.all() and not invalid:
        return
    index = 0 if invalid else int(np.flatnonzero(~reached.reshape(-1))[0])
    code = int(path.status(host.flat[index]))
    if name == "fraction" and int(path.blowup.status) == Status.NO_BLOW_UP:
        code = PointStatus.NEVER_REACHED
    _reject(path, name, shown, index, code)


def refuse_energies(path: "Trajectory", values: np.ndarray, times: np.ndarray) -> None:
    missing = np.flatnonzero(np.isnan(times.reshape(-1)))
    if not missing.size:
        return
    index = int(missing[0])
    value = float(values.flat[index])
    if not np.isfinite(value) or int(path.blowup.status) == Status.INVALID_INPUT:
        code = PointStatus.INVALID_INPUT
    elif value < float(path.energy(0.0)):
        code = PointStatus.BEFORE_START
    elif int(path.blowup.status) == Status.NO_BLOW_UP and value >= 0:
        code = PointStatus.NEVER_REACHED
    else:
        code = PointStatus.TOO_CLOSE if bool(path.pieces.ends) else PointStatus.NOT_CONVERGED
    _reject(path, "energy", values, index, code)
