r"""Gradient flow of a network by diffrax.

$$\dot\theta = -\nabla R(\theta)$$

On the plateau the flow is slow and smooth, and an adaptive solver crosses it in about fifty steps
where gradient descent needs hundreds of thousands. After the plateau the flow is stiff, and the
largest eigenvalue of the Hessian bounds the steps of explicit solvers.
"""

from collections.abc import Mapping, Sequence

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ._data import AbstractData, check_trainable
from ._lanes import over_lanes, stacked, unstacked
from ._legs import STABLE, Flow, Leg, follow, stiff_solver
from ._losses import Loss, LossFunction, resolve_loss
from ._modules import MLP
from ._observe import Observable, model_where_it_applies, resolve_observables
from ._own_flow import largest_curvature
from ._progress import training_bar
from ._run import Run, RunStatus

# Measured growth of the largest eigenvalue of the Hessian after the plateau.
_CURVATURE_GROWTH = 4


def gradient_flow(
    network: MLP,
    data: AbstractData,
    t1: float,
    *,
    loss: str | float | LossFunction | Loss = "half_mse",
    t0: float = 0.0,
    times: Sequence[float] | np.ndarray | None = None,
    observe: Sequence[str] | Mapping[str, Observable] | None = None,
    levels: Sequence[float] = (0.9, 0.5),
    until: float | None = None,
    rtol: float | None = None,
    solver: diffrax.AbstractSolver | None = None,
    solver_after: diffrax.AbstractSolver | None = None,
    max_steps: int = 100_000,
    progress: bool = True,
) -> Run:
    r"""Follow the gradient flow of a network, or of many, through the plateau.

    $$\dot\theta = -\nabla R(\theta), \qquad R = \tfrac\kappa n\textstyle\sum_i\|f(x_i)-y_i\|^2$$

    **Arguments:**

    - `network`, `data`, `loss`, `observe`, `levels`, `until`, `progress`: as for
      `gradient_descent`, except that `Run.crossings` are training times, the roots on the solver's
      interpolation.
    - `t1`: final training time; each iteration of gradient descent corresponds to the learning
      rate.
    - `t0`: initial training time.
    - `times`: times of the records, by default after every step of the solver, which are dense
      where the network changes fast.
    - `rtol`: relative tolerance of each layer for a step, by default 1e-6 for float64 and 1e-4 for
      float32: layers are resolved even if they differ by orders of magnitude.
    - `solver`: a diffrax solver for the plateau, by default `Dopri8`.
    - `solver_after`: the solver after the first of `levels` is crossed. By default `Tsit5`; if
      stability would force that to more than `max_steps` until `t1`, `stiff_solver()`, each step of
      which costs hundreds of explicit ones.
    - `max_steps`: number of steps after which the run is `NOT_CONVERGED`.

    **Returns:** a `Run`. `num_gradients` is that of the explicit solvers' stages, rejected steps
    included, and -1 once an implicit solver was used.

    **Raises:** `ValueError` as `gradient_descent`.
    """
    check_trainable(network, data)
    loss = resolve_loss(loss)
    prepared = data.prepared(network, loss)
    # In the dtype of the network, as in the solver, so that it reaches them exactly.
    t0, t1 = (float(np.asarray(t, network.dtype)) for t in (t0, t1))
    if not t0 < t1 < np.inf:
        raise ValueError(f"Argument `t1` must be finite and later than {t0}, but is {t1}.")
    if rtol is None:
        rtol = 1e-6 if jnp.finfo(network.dtype).bits >= 64 else 1e-4
    if not 0 < rtol < 1:
        raise ValueError(f"Argument `rtol` must lie between 0 and 1, but is {rtol}.")
    stops = None if times is None else np.unique(np.asarray(times, network.dtype))
    if stops is not None:
        stops = stops[(stops >= t0) & (stops <= t1)]
        if not stops.size:
            raise ValueError(f"Argument `times` has no time between {t0} and {t1}.")
    model = model_where_it_applies(network, data, loss)
    problem = Flow(
        data=prepared,
        model=model,
        rtol=jnp.asarray(rtol, network.dtype),
        sample_loss=loss,
        observables=resolve_observables(observe, network, model),
    )
    singles = unstacked(network) if network.batch_shape else [network]
    falling: list[float] = sorted({*levels, *([] if until is None else [until])}, reverse=True)
    plateau = _PLATEAU if solver is None else solver
    courses = [
        _Course(single, problem, falling, until, (t0, t1), stops, plateau) for single in singles
    ]
    with training_bar(t0, t1, progress) as tell:
        while going := [course for course in courses if course.goes_on]:
            _round(going, problem, (plateau, solver_after), max_steps)
            now = [course.time for course in courses]
            tell(min(now), float(np.mean([course.loss for course in courses])))
    runs = [course.run(levels) for course in courses]
    return _together(runs) if network.batch_shape else runs[0]


class _Course:
    """One network on its way: its position, its next stop, and its records."""

    def __init__(
        self,
        network: MLP,
        problem: Flow,
        levels: Sequence[float],
        until: float | None,
        ends: tuple[float, float],
        stops: np.ndarray | None,
        solver: diffrax.AbstractSolver,
    ):
        self.network, self.until, self.stops = network, until, stops
        self.time, self.t1 = ends
        self.step = np.nan
        self.first_loss = self.loss = float(problem.loss(network))
        if not np.isfinite(self.loss):
            raise ValueError(
                f"The loss of the initial network is {self.loss}: its weights or the data are not "
                "finite, or too large."
            )
        self.ahead, self.crossings = list(levels), {}
        self.times: list[float] = []
        self.records: list[dict[str, np.ndarray]] = []
        self.status = RunStatus.COMPLETED
        self.num_steps = self.num_gradients = 0
        self.solver = solver
        if stops is None or self.time in stops:
            self._record(problem)

    def _record(self, problem: Flow) -> None:
        values = _observe(self.network, problem)
        self.times.append(self.time)
        self.records.append({name: np.asarray(value) for name, value in values.items()})

    @property
    def goes_on(self) -> bool:
        """Whether the run is not yet complete."""
        ended = self.until is not None and self.until in self.crossings
        return self.time < self.t1 and not ended and self.status == RunStatus.COMPLETED

    @property
    def behind(self) -> bool:
        """Whether the network has left the plateau."""
        return bool(self.crossings)

    def heads_for(self) -> tuple[MLP, tuple[Array, Array, Array], Array]:
        """The arguments of `_follow`."""
        dtype = self.network.dtype
        end = self.t1
        if self.stops is not None:
            later = self.stops[self.stops > self.time]
            end = float(later[0]) if later.size else self.t1
        # A first step that is too short or too long costs a few steps only.
        step = self.step if np.isfinite(self.step) else 1e-3 * (end - self.time)
        level = self.ahead[0] * self.first_loss if self.ahead else -np.inf
        span = tuple(jnp.asarray(x, dtype) for x in (self.time, end, min(step, end - self.time)))
        return self.network, span, jnp.asarray(level, dtype)  # pyright: ignore[reportReturnType]

    def arrive(self, leg: Leg, problem: Flow, max_steps: int) -> None:
        """Take over the results of some steps."""
        self.network, self.time, self.step = leg.network, float(leg.time), float(leg.step)
        num_steps = int(leg.num_steps)
        self.num_steps += num_steps
        self._count(num_steps)
        if self.stops is None:
            times = np.asarray(leg.times)[np.isfinite(leg.times)]
            # At the end of a call its last step may occur twice.
            new = np.diff(times, prepend=self.times[-1]) > 0
            self.times += times[new].tolist()
            kept = {name: np.asarray(x)[: times.size][new] for name, x in leg.records.items()}
            self.records += [{n: v[i] for n, v in kept.items()} for i in range(int(new.sum()))]
        self.loss = float(problem.loss(self.network))
        if bool(leg.crossed):
            self.crossings[self.ahead.pop(0)] = self.time
        if bool(leg.failed) or self.num_steps >= max_steps:
            self.status = RunStatus.NOT_CONVERGED
        if not np.isfinite(self.loss):
            self.status = RunStatus.DIVERGED
        if self.stops is not None and (self.time in self.stops or not self.goes_on):
            self._record(problem)

    def _count(self, num_steps: int) -> None:
        tableau = getattr(self.solver, "tableau", None)
        explicit = not isinstance(self.solver, diffrax.AbstractImplicitSolver)
        if tableau is None or not explicit or self.num_gradients < 0:
            self.num_gradients = -1
        else:
            # The last stage of a step is the first stage of the next.
            self.num_gradients += num_steps * (tableau.num_stages - int(tableau.fsal))

    def run(self, levels: Sequence[float]) -> Run:
        """The `Run` of the course."""
        records = {
            name: np.stack([record[name] for record in self.records]) for name in self.records[0]
        }
        return Run(
            network=self.network,
            iteration=np.asarray(self.num_steps),
            time=np.asarray(self.time),
            iterations=np.arange(len(self.times)),
            times=np.asarray(self.times),
            records=records,
            crossings={level: np.asarray(self.crossings.get(level, np.nan)) for level in levels},
            num_gradients=np.asarray(self.num_gradients),
            status=np.asarray(self.status),
        )


@eqx.filter_jit
def _observe(network: MLP, problem: Flow) -> dict[str, Array]:
    return problem.observe(jnp.zeros(()), network, None)


def _round(
    courses: list[_Course],
    problem: Flow,
    solvers: tuple[diffrax.AbstractSolver, diffrax.AbstractSolver | None],
    max_steps: int,
) -> None:
    """Some steps of every course; courses with the same solver run together."""
    plateau, after = solvers
    for course in courses:
        if course.behind and course.solver is plateau:
            if after is None:
                course.solver = _solver_after(course, problem, max_steps)
            else:
                course.solver = after
    for solver in {id(course.solver): course.solver for course in courses}.values():
        group = [course for course in courses if course.solver is solver]
        legs = over_lanes(
            lambda lane, solver=solver: follow(lane[0], lane[1], lane[2], problem, solver),
            stacked([course.heads_for() for course in group]),
        )
        for course, leg in zip(group, unstacked(legs), strict=True):
            course.arrive(leg, problem, max_steps)


_PLATEAU, _AFTER, _STIFF = diffrax.Dopri8(), diffrax.Tsit5(), stiff_solver()


def _solver_after(course: _Course, problem: Flow, max_steps: int) -> diffrax.AbstractSolver:
    """An explicit solver after the plateau, unless stability would force more than `max_steps`.

    In measurements, up to 16,000 explicit steps were 3 to 40 times cheaper than the few dozen
    implicit ones that replace them (`benchmarks/networks.py --part flow`).
    """
    largest = float(largest_curvature(problem.loss, course.network))
    steps = _CURVATURE_GROWTH * largest * (course.t1 - course.time) / STABLE
    return _STIFF if steps > max_steps else _AFTER


def _together(runs: list[Run]) -> Run:
    """Runs joined along a leading axis; missing records are NaN."""
    longest = max(run.times.size for run in runs)

    def padded(values: np.ndarray) -> np.ndarray:
        room = [(0, longest - len(values)), *[(0, 0)] * (values.ndim - 1)]
        whole = np.issubdtype(values.dtype, np.integer)
        return np.pad(values.astype(float) if whole else values, room, constant_values=np.nan)

    return Run(
        network=stacked([run.network for run in runs]),
        iteration=np.stack([run.iteration for run in runs]),
        time=np.stack([run.time for run in runs]),
        iterations=np.stack([padded(run.iterations) for run in runs]),
        times=np.stack([padded(run.times) for run in runs]),
        records={name: np.stack([padded(run[name]) for run in runs]) for name in runs[0].records},
        crossings={
            level: np.stack([run.crossings[level] for run in runs]) for level in runs[0].crossings
        },
        num_gradients=np.stack([run.num_gradients for run in runs]),
        status=np.stack([run.status for run in runs]),
    )
