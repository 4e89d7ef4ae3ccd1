"""The series method in double-double arithmetic, for states close to ones that never blow up."""

import equinox as eqx
import numpy as np
from jaxtyping import Array, Bool, Float

from ... import _native
from ..._state import State
from .._method import AbstractMethod, Form, HostStates, Kernel
from .._result import BlowUp, Status
from ._series import Series

LARGEST_WIDTH = 64


class ExtendedSeries(AbstractMethod):
    r"""`Series`, but the flow is followed with 32 digits from one expansion to the next.

    **Arguments:** `max_expansions`, as for `Series`.

    A state is taken for what it is, every digit of it exact. So close to a state that comes to rest
    $T^*$ may depend on digits beyond the last ones of a double, as long as 32 are enough; whether
    they are is measured, as in `Series`, by noise in the last of them. Single precision is solved
    in the same way, and rounded at the end.

    Rank 1, widths up to 64, by the native kernel and outside of traced programs only.
    """

    max_expansions: int = eqx.field(static=True, default=256)

    @property
    def label(self) -> str:
        return "series, extended precision"

    @property
    def is_finest(self) -> bool:
        return True

    def check(self, state: Form | State) -> None:
        """As in the base class, and where there is no kernel."""
        if state.rank != 1 or max(state.widths) > LARGEST_WIDTH:
            raise ValueError(
                f"Method `ExtendedSeries` applies to states of rank 1 and widths up to "
                f"{LARGEST_WIDTH}, but the rank is {state.rank} and the widths {state.widths}."
            )
        if self.kernel(state) is None:
            raise ValueError(
                "Method `ExtendedSeries` needs the native kernel, and states in float64 or float32 "
                f"(here {state.dtype}): `jaxcond --versions` says why there is none."
            )

    def reduced_dim(self, rank: int) -> int:
        del rank
        return LARGEST_WIDTH

    def kernel(self, form: Form | State) -> Kernel | None:
        if form.dtype not in (np.float64, np.float32) or not _native.handlers():
            return None

        def solve(states: HostStates, rtol: float, truncated: bool) -> dict[str, np.ndarray]:
            fields = (states.a[:, 0], states.b, states.c[:, 0], states.strength[:, 0])
            a, b, c, strength = (np.asarray(x, np.float64) for x in fields)
            results = _native.solve_series(
                a,
                b,
                c,
                strength,
                rtol,
                truncated,
                order=32,
                dim=LARGEST_WIDTH,
                max_expansions=self.max_expansions,
                extended=True,
            )
            assert results is not None
            return results if form.dtype == np.float64 else _rounded(results)

        return solve

    def solve(self, states: State, rtol: Float[Array, ""], truncated: Bool[Array, ""]) -> BlowUp:
        raise ValueError(
            "Method `ExtendedSeries` cannot be used in a traced program: use `Series`."
        )

    def gradient(self, state: State, time: Float[Array, ""], rtol: Float[Array, ""]) -> State:
        return Series(max_expansions=self.max_expansions).gradient(state, time, rtol)


def _rounded(results: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Results in single precision, with the bracket rounded outward."""
    rounded = {**results}
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        for name, away in (("time", 0), ("lower", -1), ("upper", 1), ("error", 1)):
            values = results[name].astype(np.float32)
            inexact = values.astype(np.float64) != results[name]
            outward = np.nextafter(values, np.float32(away * np.inf)) if away else values
            rounded[name] = np.where(inexact & ~np.isnan(values), outward, values)
        lost = np.abs(rounded["time"].astype(np.float64) - results["time"])
        lost = np.where(np.isfinite(lost), lost, 0).astype(np.float32)
        rounded["error"] = rounded["error"] + 2 * lost
    vanished = (results["status"] == Status.CONVERGED) & ~np.isfinite(rounded["time"])
    rounded["status"] = np.where(vanished, Status.NOT_CONVERGED, results["status"]).astype(np.int32)
    return rounded
