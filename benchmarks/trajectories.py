"""Trajectories, onsets and gradients: how exact, and how fast beside what one would write by hand.

    python benchmarks/trajectories.py                 # all parts, some minutes on two cores
    python benchmarks/trajectories.py --part counts   # one of the following
    python benchmarks/trajectories.py --quick         # a few states of small width

- agreement: full states at 0.5, 0.9, 0.99, 0.999 of T* against scipy's DOP853 (rtol 1e-13), ranks
  1 to 3.
- naive: counts of condition 1 along reduced trajectories against those that NumPy takes from the
  states that are followed in full, for random states.
- onset: onset of the final stage by the reduced and by the full flow, in units of T*.
- one: a trajectory of width 200 to 1e-5 of T*, the count of condition 1 at 200 times, both of them,
  the onset.
- counts: a batch of trajectories with the count of condition 1 at 200 times, against plain diffrax
  on all unknowns under `vmap` (which is told T*, and keeps the counts only).
- gradient: value and gradient of the blow-up time against the value alone, batched by `vmap`.
"""

from __future__ import annotations

import functools

import jax

jax.config.update("jax_enable_x64", True)

import diffrax
import equinox as eqx
import jax.numpy as jnp
import numpy as np
from _timing import Batch, Row, interleaved, run_parts
from scipy.integrate import solve_ivp

import jaxcond as jc

RTOL = 1e-8
NUM_TIMES = 200
# Evenly in log(T* - t), to 1e-3 of T*.
FRACTIONS = 1 - np.logspace(0, -3, NUM_TIMES)


STRENGTHS = (1.0, -0.6, 0.3)


def agreement(quick: bool) -> Row:
    fractions = np.array([0.5, 0.9, 0.99, 0.999])
    rows = []
    cases = (
        ((5, 1), (5, 2))
        if quick
        else ((8, 1), (8, 2), (8, 3), (50, 1), (50, 3), (200, 1), (200, 2))
    )
    for width, rank in cases:
        rng = np.random.default_rng(3)
        shapes = (rank, width), (width, width), (rank, width)
        layers = [rng.standard_normal(shape) for shape in shapes]
        strength = np.array(STRENGTHS[:rank])[:, None]
        path = jc.trajectory(jc.State(*layers, strength[:, 0]))
        times = np.asarray(path.times_of(fraction=fractions))
        cuts = np.cumsum([x.size for x in layers])[:2]

        def field(
            _: float, y: np.ndarray, shapes: tuple = shapes, cuts: np.ndarray = cuts, s=strength
        ) -> np.ndarray:
            a, b, c = (x.reshape(n) for x, n in zip(np.split(y, cuts), shapes, strict=True))
            return np.concatenate([x.ravel() for x in (s * (c @ b.T), (s * a).T @ c, s * (a @ b))])

        start = np.concatenate([x.ravel() for x in layers])
        found = solve_ivp(field, (0, times[-1]), start, "DOP853", times, rtol=1e-13, atol=1e-300)
        for i, fraction in enumerate(fractions):
            pairs = zip(path(times[i]).layers, np.split(found.y[:, i], cuts), strict=True)
            errors = [np.linalg.norm(np.ravel(x) - y) / np.linalg.norm(y) for x, y in pairs]
            worst = dict(zip(("a", "b", "c"), map(float, errors), strict=True))
            row = {"width": width, "rank": rank, "t / T*": float(fraction), **worst}
            rows.append(row | {"drift": float(path.drift(times[i]))})
    return {
        "reference": "scipy DOP853, rtol 1e-13; relative difference of each layer",
        "rows": rows,
    }


def naive(quick: bool) -> Row:
    width, num = 30, 4 if quick else 100
    fractions = np.array([0.0, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999])
    batch = Batch.draw(width, num, seed=7).state
    counted, open_, expected = [], [], []
    for index in range(num):
        state = jax.tree.map(lambda x, i=index: x[i], batch)
        small, full = jc.trajectory(state, dim=16), jc.trajectory(state, dim=width)
        times = small.times_of(fraction=fractions)
        condition, states = small.condition(1, times), full(times)
        a, b, c = (np.asarray(x) for x in (states.a[:, 0], states.b, states.c[:, 0]))
        count = np.sum(c * np.einsum("tp,tpq->tq", a, b) > 0, axis=-1)
        expected.append(count + np.sum(a * np.einsum("tpq,tq->tp", b, c) > 0, axis=-1))
        counted.append(np.asarray(condition.positive))
        open_.append(np.asarray(condition.undecided))
    positive, undecided, count = (np.stack(x) for x in (counted, open_, expected))
    return {
        "width": width,
        "states": num,
        "counts": int(count.size),
        "counts that differ by more than is undecided": int(
            np.sum(np.abs(positive - count) > undecided)
        ),
        "inequalities": int(count.size * 2 * width),
        "undecided inequalities": int(undecided.sum()),
    }


def onset(quick: bool) -> Row:
    rows = []
    for width in (12,) if quick else (12, 30, 60):
        batch = Batch.draw(width, 2 if quick else 8, seed=4).state
        states = [jax.tree.map(lambda x, i=i: x[i], batch) for i in range(batch.batch_shape[0])]
        reduced = [jc.trajectory(s, dim=10 if quick else 24) for s in states]
        found = [path.onset() for path in reduced]
        direct = [jc.trajectory(s, dim=width).onset() for s in states]
        times = np.array([float(path.blowup.time) for path in reduced])
        first = np.array([float(x.time) for x in found])
        difference = np.abs(first - np.array([float(x.time) for x in direct])) / times
        left = np.array([float(x.time_left) for x in found])
        rows.append(
            {
                "width": width,
                "states": times.size,
                "largest difference / T*": float(np.max(difference)),
                "found": sum(int(x.status) == jc.OnsetStatus.FOUND for x in found),
                "median (T* - onset) / T*": float(np.median(left / times)),
            }
        )
    return {"rows": rows}


def one(quick: bool) -> Row:
    width = 30 if quick else 200
    state = jax.tree.map(lambda x: x[0], Batch.draw(width, 1, seed=5).state)
    path = jc.trajectory(state, closeness=1e-5)
    times = path.spread(NUM_TIMES)
    calls = {
        "trajectory to 1e-5": lambda: jc.trajectory(state, closeness=1e-5),
        "counts of condition 1 at 200 times": lambda: path.condition(1, times),
        "both": lambda: jc.trajectory(state, closeness=1e-5).condition(1, times),
        "onset": path.onset,
        "trajectory to 1e-8": lambda: jc.trajectory(state),
        "the state at one time": lambda: path(float(times[100])),
    }
    timed = interleaved(calls, 3 if quick else 30)
    return {
        "width": width,
        "pieces to 1e-5": int(path.pieces.num),
        "rows": [
            {"call": name, "ms": 1e3 * row.seconds, "first call, s": row.first}
            for name, row in timed.items()
        ],
    }


@functools.partial(jax.jit, static_argnames="together")
def counts_reduced(states: jc.State, together: int) -> tuple[jax.Array, jax.Array]:
    """Counts of condition 1 along every trajectory by jaxcond, and those left undecided."""

    def one(state: jc.State) -> tuple[jax.Array, jax.Array]:
        path = jc.trajectory(state, closeness=5e-4, rtol=RTOL)
        condition = path.condition(1, path.times_of(fraction=FRACTIONS))
        return condition.positive, condition.undecided

    return jax.lax.map(one, states, batch_size=together)


@jax.jit
def counts_plain(states: jc.State, blowup: jax.Array) -> jax.Array:
    """The same by diffrax on all unknowns, under `vmap`; the tolerance is per unknown."""

    def one(state: jc.State, time: jax.Array) -> jax.Array:
        def field(t: jax.Array, y: tuple, args: None) -> tuple:
            a, b, c = y
            return b @ c, a[:, None] * c[None, :], a @ b

        def count(t: jax.Array, y: tuple, args: None) -> jax.Array:
            a, b, c = y
            return jnp.sum(c * (a @ b) > 0.0) + jnp.sum(a * (b @ c) > 0.0) + 0.0

        return diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Dopri8(),
            t0=0.0,
            t1=FRACTIONS[-1] * time,
            dt0=None,
            y0=(state.a[0], state.b, state.c[0]),
            stepsize_controller=diffrax.PIDController(rtol=RTOL, atol=RTOL),
            saveat=diffrax.SaveAt(ts=jnp.asarray(FRACTIONS) * time, fn=count),
        ).ys

    return jax.vmap(one)(states, blowup)


def counts(quick: bool) -> Row:
    width, num, few, together = (30, 16, 4, 8) if quick else (200, 1000, 8, 16)
    batch = Batch.draw(width, num, seed=5)
    part = batch.first(few).state
    blowup = jc.blowup_times(part, rtol=1e-12).time
    timed = interleaved(
        {
            "jaxcond": lambda: counts_reduced(batch.state, together),
            "diffrax vmap": lambda: counts_plain(part, blowup),
        },
        1 if quick else 3,
    )
    ours, undecided = timed["jaxcond"].result
    plain = timed["diffrax vmap"].result
    different = int(jnp.sum(jnp.abs(ours[:few] - plain) > undecided[:few]))
    each = {"jaxcond": num, "diffrax vmap": few}
    cost = {name: timed[name].seconds / each[name] for name in each}
    return {
        "width": width,
        "times": NUM_TIMES,
        "rtol": RTOL,
        "rows": [
            {"method": name, "trajectories": each[name], "ms each": 1e3 * cost[name],
             "ratio": cost[name] / cost["jaxcond"], "first call, s": timed[name].first}
            for name in each
        ],
        "counts compared": int(plain.size),
        "counts that differ": different,
        "undecided": int(jnp.sum(undecided)),
    }  # fmt: skip


def gradient(quick: bool) -> Row:
    rows = []
    for width, num in ((10, 8),) if quick else ((10, 256), (50, 128), (200, 32)):
        states = Batch.draw(width, num, seed=6).state

        def value(state: jc.State) -> jax.Array:
            return jc.blowup_time(state).time

        calls = {
            "value": eqx.filter_jit(jax.vmap(value)),
            "value and gradient": eqx.filter_jit(jax.vmap(jax.value_and_grad(value))),
        }
        timed = interleaved(
            {name: functools.partial(call, states) for name, call in calls.items()},
            2 if quick else 9,
        )
        seconds = {name: timed[name].seconds for name in calls}
        _, slope = timed["value and gradient"].result
        field = jax.vmap(jc.vector_field)(states)
        onward = sum(
            jnp.sum((x * y).reshape(num, -1), axis=1)
            for x, y in zip(slope.layers, field.layers, strict=True)
        )
        rows.append(
            {
                "width": width,
                "states": num,
                "value, us each": 1e6 * seconds["value"] / num,
                "with gradient, us each": 1e6 * seconds["value and gradient"] / num,
                "ratio": seconds["value and gradient"] / seconds["value"],
                "worst |grad T*.grad E + 1|": float(jnp.max(jnp.abs(onward + 1))),
            }
        )
    return {"rows": rows}


PARTS = {
    "agreement": agreement,
    "naive": naive,
    "onset": onset,
    "one": one,
    "counts": counts,
    "gradient": gradient,
}


if __name__ == "__main__":
    run_parts(__doc__, __file__, PARTS)
