"""Real networks: predictions of the effective model for their training, and training speed.

    python benchmarks/networks.py                   # all parts, half an hour and more on two cores
    python benchmarks/networks.py --part flow       # one of the following; more may be named
    python benchmarks/networks.py --keep FOLDER     # checkpoints of the long runs, to go on from
    python benchmarks/networks.py --quick           # small widths

- prediction: where the loss falls below 90 % of its initial value, foretold from the initial
  weights and observed in gradient descent, on the paper's Fig. 1 and seven other trainings.
- skip: training from `skip_plateau` against the whole run, aligned by the iteration it reports.
- indicators: signs of the inequalities of the final stage along the plateau, of the real network
  and of the effective model, where the difference of the two leaves a sign open and where not.
- speed: iterations of gradient descent against PyTorch, and many networks at once.
- records: what a record of the default observables costs at width 50, over steps without records.
- minibatches: crossings of stochastic descent over orders of the samples, against the prediction,
  which is that of the mean path.
- flow: gradients that `gradient_flow` takes to the end of the plateau against descent, and explicit
  against implicit steps behind it, which is why `gradient_flow` prefers explicit ones.

PyTorch is used where it can be imported.
"""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import diffrax
import numpy as np
from _settings import FIG_1, LOSS, QUICK, SETTINGS, Setting
from _timing import Row, interleaved, out_path, parser_of, setup, show, write_json
from _training import has_torch, side_by_side, vmapped
from rich.console import Console

import jaxcond as jc
from jaxcond import networks as nw
from jaxcond.networks._lanes import stacked
from jaxcond.networks._legs import STABLE, stiff_solver
from jaxcond.networks._own_flow import largest_curvature

DROPS = (0.003, 0.01, 0.03)
NUM_RECORDS = 60


@dataclass
class Skipped:
    """Training of the first seed from `skip_plateau` until half the initial loss."""

    start: int
    run: nw.Run
    halved: float
    seconds: float


@dataclass
class Trained:
    """The whole runs of a setting, all seeds at once, and what was foretold of them."""

    setting: Setting
    data: nw.AbstractData
    escapes: list[nw.Escape]
    skipped: dict[float, Skipped]
    run: nw.Run

    def first(self, name: str) -> np.ndarray:
        """A record of the first seed, or its iterations."""
        return (self.run.iterations if name == "iterations" else self.run[name])[0]


@functools.cache
def trained(setting: Setting, keep: Path | None) -> Trained:
    data = setting.data()
    networks = [setting.network(seed) for seed in range(setting.seeds)]
    batch, rate = stacked(networks), setting.rate
    # One by one, as `skip_plateau` below: so they share what is compiled.
    escapes = [nw.predict_escape(network, data, rate, loss=LOSS) for network in networks]
    last = 2 * int(max(escape.crossing_iteration for escape in escapes))
    # The first seed is looked at closely, from where it is skipped to until its loss has halved.
    starts = {drop: skip_to(setting, networks[0], data, drop) for drop in DROPS}
    nearest = from_skip(setting, data, starts[max(DROPS)], 2)
    closely = np.linspace(int(starts[min(DROPS)][1].iteration), nearest.halved, NUM_RECORDS)
    closely = np.unique(closely.round().astype(int))
    skipped = {drop: from_skip(setting, data, start, closely) for drop, start in starts.items()}
    folder = None if keep is None else keep / setting.name.replace(" ", "_").replace(".", "")
    run = nw.gradient_descent(
        batch,
        data,
        rate,
        loss=LOSS,
        num_steps=last,
        record=np.append(0, closely),
        observe=[],
        until=0.5,
        checkpoint=folder,
    )
    return Trained(setting, data, escapes, skipped, run)


def skip_to(
    setting: Setting, network: nw.MLP, data: nw.AbstractData, drop: float
) -> tuple[float, nw.Skip, float]:
    """The initial loss, the skip, and the seconds that it took once compiled."""
    initial = float(data.loss(network, nw.resolve_loss(LOSS)))

    def go() -> nw.Skip:
        return nw.skip_plateau(network, data, setting.rate, loss=LOSS, drop=drop)

    go()
    began = time.perf_counter()
    found = go()
    jax.block_until_ready(found.network)
    return initial, found, time.perf_counter() - began


def from_skip(
    setting: Setting,
    data: nw.AbstractData,
    start: tuple[float, nw.Skip, float],
    record: int | np.ndarray,
) -> Skipped:
    initial, skip, seconds = start
    # Half of the initial loss, as a fraction of the loss that the skipped run begins with.
    half = 0.5 * initial / float(data.loss(skip.network, nw.resolve_loss(LOSS)))
    iteration = int(skip.iteration)
    run = nw.gradient_descent(
        skip.network,
        data,
        setting.rate,
        loss=LOSS,
        num_steps=iteration,
        first_iteration=iteration,
        record=record,
        observe=[],
        levels=[half],
        until=half,
    )
    return Skipped(iteration, run, float(run.crossings[half]), seconds)


def settings(quick: bool) -> tuple[Setting, ...]:
    return (QUICK,) if quick else SETTINGS


def whole(iteration: float) -> int | None:
    """The first iteration from there on, as a whole number: all its digits are kept in JSON."""
    return int(np.ceil(iteration)) if np.isfinite(iteration) else None


def prediction(quick: bool, keep: Path | None) -> Row:
    rows = []
    for setting in settings(quick):
        found = trained(setting, keep)
        observed = found.run.crossings[0.9]
        for seed, escape in enumerate(found.escapes):
            foretold = float(escape.crossing_iteration)
            alone = float(escape.iterations(escape.effective_crossing))
            rows.append(
                {
                    "setting": setting.name,
                    "std": setting.std,
                    "seed": seed,
                    "status": nw.EscapeStatus(int(escape.status)).name,
                    "predicted": whole(foretold),
                    "effective model": whole(alone),
                    "T*": whole(float(escape.iteration)),
                    "observed": whole(observed[seed]),
                    "error": float(foretold / observed[seed] - 1),
                    "effective error": float(alone / observed[seed] - 1),
                }
            )
    worst: dict[str, float] = {}
    for row in rows:
        worst[row["setting"]] = max(worst.get(row["setting"], 0.0), abs(row["error"]))
    return {
        "level": "90 % of the initial loss, in iterations",
        "rows": rows,
        "worst": [{"setting": name, "error": error} for name, error in worst.items()],
    }


def skip(quick: bool, keep: Path | None) -> Row:
    rows = []
    for setting in settings(quick):
        found = trained(setting, keep)
        half = 0.5 * found.first("loss")[0]
        for drop, skipped in found.skipped.items():
            common, here, there = np.intersect1d(
                found.first("iterations"), skipped.run.iterations, return_indices=True
            )
            reference, losses = found.first("loss")[here], skipped.run.loss[there]
            before = reference >= half
            halved = float(found.run.crossings[0.5][0])
            rows.append(
                {
                    "setting": setting.name,
                    "drop": drop,
                    "skipped to": skipped.start,
                    "compared": int(np.sum(before)),
                    "first": int(common[0]),
                    "worst difference": float(np.max(np.abs(losses / reference - 1)[before])),
                    "halved": whole(halved),
                    "halved after skip": whole(skipped.halved),
                    "fewer iterations": halved / (skipped.halved - skipped.start),
                    "skip, s": skipped.seconds,
                }
            )
    return {"difference": "of the losses, relative, until the loss has halved", "rows": rows}


FRACTIONS = np.linspace(0.1, 0.9, 9)
LAYERS = {
    name: lambda network, model, name=name: getattr(model.to_state(network), name)
    for name in ("a", "b", "c")
}


def difference(real: jc.State, effective: jc.State) -> float:
    """The largest relative difference of a layer, or of a component of one."""
    pairs = [(real.b[None], effective.b[None]), (real.a, effective.a), (real.c, effective.c)]
    return max(
        float(np.linalg.norm(x - y) / np.linalg.norm(y))
        for layers in pairs
        for x, y in zip(*map(np.asarray, layers), strict=True)
    )


def first_signs(state: jc.State, tolerance: float) -> np.ndarray:
    """Signs of the inequalities of condition 1; 0 where the layers' accuracy leaves them open."""
    a, b, c = (np.asarray(x) for x in (state.a, state.b, state.c))
    signs = []
    for layer, other, matrix in ((c, a, b.T), (a, c, b)):
        onto, rows = other @ matrix.T, np.linalg.norm(matrix, axis=1)
        for values, sizes in (
            (layer, np.linalg.norm(layer, axis=1, keepdims=True)),
            (onto, np.linalg.norm(other, axis=1, keepdims=True) * rows),
        ):
            signs.append(np.where(np.abs(values) > tolerance * sizes, np.sign(values), 0))
    return np.concatenate([(x * y).ravel() for x, y in zip(signs[::2], signs[1::2], strict=True)])


def indicators(quick: bool, keep: Path | None) -> Row:
    del keep
    rows = []
    several = next(s for s in SETTINGS if s.outputs == 3)
    cases = [dataclasses.replace(QUICK, std=std) for std in (1e-3, 1e-4)]
    if not quick:
        cases = [dataclasses.replace(FIG_1, std=s, seeds=3) for s in (1e-3, 1e-4, FIG_1.std)]
        cases += [dataclasses.replace(several, std=std, seeds=2) for std in (1e-3, 1e-4)]
    for setting in cases:
        row = {"setting": setting.name, "std": setting.std, "seeds": setting.seeds}
        rows.append(row | along_the_plateau(setting))
    return {
        "fractions of T*": f"{FRACTIONS[0]:.1f} to {FRACTIONS[-1]:.1f}",
        "undecided": "closer to zero than the relative difference of the layers at that time",
        "rows": rows,
    }


def along_the_plateau(setting: Setting) -> Row:
    data = setting.data()
    model = nw.effective_model(setting.network(0), data, LOSS)
    compared = disagree = raw = undecided = 0
    worst, counts = 0.0, {2: [0, 0, 0], 3: [0, 0, 0]}
    for seed in range(setting.seeds):
        network = setting.network(seed)
        path = jc.trajectory(model.to_state(network))
        effective_times = path.times_of(fraction=FRACTIONS)
        times = np.asarray(effective_times) / float(model.rate)
        run = nw.gradient_flow(
            network, data, times[-1], loss=LOSS, times=times, observe=LAYERS, rtol=1e-9
        )
        for i in range(len(FRACTIONS)):
            real = jc.State(run["a"][i], run["b"][i], run["c"][i], model.strength)
            effective = path(effective_times[i])
            tolerance = difference(real, effective)
            worst = max(worst, tolerance)
            ours, theirs = (first_signs(state, tolerance) for state in (effective, real))
            decided = (ours != 0) & (theirs != 0)
            compared += decided.size
            undecided += int(np.sum(~decided))
            disagree += int(np.sum((ours != theirs) & decided))
            ours, theirs = (first_signs(state, 0.0) for state in (effective, real))
            raw += int(np.sum(ours != theirs))
            stages = [jc.final_stage(s, tolerance=tolerance) for s in (effective, real)]
            for number, name in ((2, "second"), (3, "third")):
                one, other = (getattr(stage, name) for stage in stages)
                off = abs(int(one.positive) - int(other.positive))
                left_open = max(int(one.undecided), int(other.undecided))
                counts[number][0] += max(0, off - left_open)
                counts[number][1] += left_open
                counts[number][2] += one.total
    found = {
        "rank": int(model.strength.size),
        "largest difference of a layer": worst,
        "inequalities of 1": compared,
        "undecided share": undecided / compared,
        "disagree, decided": disagree,
        "disagree, all": raw,
    }
    for number in (2, 3) if found["rank"] > 1 else (2,):
        off, left_open, total = counts[number]
        found |= {f"{number}: counts off": off, f"{number}: undecided share": left_open / total}
    return found


def speed(quick: bool, keep: Path | None) -> Row:
    del keep
    setting = QUICK if quick else FIG_1
    repeats = 2 if quick else 9
    found: Row = {
        "torch": "compared" if has_torch() else "not compared, as it cannot be imported",
        "one network": side_by_side(
            setting, 400 if quick else 2000, repeats, (1,) if quick else (1, 2)
        ),
    }
    seeds, num_steps = (4, 200) if quick else (16, 300)
    data = setting.data()
    networks = [setting.network(seed) for seed in range(seeds)]
    batch = stacked(networks)

    def train(network: nw.MLP) -> jax.Array:
        return nw.gradient_descent(
            network, data, setting.rate, loss=LOSS, num_steps=num_steps, record=2, observe=[]
        ).network.weights[1]

    plain = vmapped(setting, seeds)
    calls: dict[str, Callable[[], object]] = {
        "all at once": lambda: train(batch),
        "one after the other": lambda: [train(network) for network in networks],
        "plain vmap": lambda: plain(num_steps),
    }
    timed = interleaved(calls, 2 if quick else 5)
    base = timed["one after the other"].seconds
    found[f"{seeds} networks, {num_steps} iterations"] = [
        {"how": name, "seconds": timed[name].seconds, "ratio": timed[name].seconds / base}
        for name in calls
    ]
    return found


def records(quick: bool, keep: Path | None) -> Row:
    del keep
    setting = next(s for s in SETTINGS if s.name == "narrow")
    network, data = setting.network(0), setting.data()
    num_steps, most = (200, 101) if quick else (2000, 1001)

    def train(num: int, observe: list[str] | None) -> jax.Array:
        return nw.gradient_descent(
            network, data, setting.rate, loss=LOSS, num_steps=num_steps, record=num, observe=observe
        ).network.weights[1]

    rows = []
    for name, observe in (("none", []), ("default", None)):
        calls = {"few": lambda o=observe: train(2, o), "many": lambda o=observe: train(most, o)}
        timed = interleaved(calls, 2 if quick else 9)
        seconds = timed["many"].seconds - timed["few"].seconds
        rows.append(
            {
                "observe": name,
                "2 records, s": timed["few"].seconds,
                f"{most} records, s": timed["many"].seconds,
                "ms a record": 1e3 * seconds / (most - 2),
            }
        )
    return {
        "setting": setting.name,
        "width": setting.p,
        "samples": data.num_samples,
        "iterations": num_steps,
        "rows": rows,
    }


def minibatches(quick: bool, keep: Path | None) -> Row:
    """Stochastic descent of one network over orders of its samples, against the prediction."""
    del keep
    setting = QUICK if quick else next(s for s in SETTINGS if s.name == "five inputs")
    network, data = setting.network(0), setting.data()
    predicted = float(nw.predict_escape(network, data, setting.rate, loss=LOSS).crossing_iteration)
    stops = np.unique(np.linspace(0.99, 1.01, 501) * predicted).astype(int)
    rows = []
    for size in (2, 8, 32):
        if size >= data.num_samples:
            continue
        runs = [
            nw.gradient_descent(
                network, data, setting.rate, loss=LOSS, num_steps=int(stops[-1]), record=stops,
                observe=[], until=0.85, batch_size=size, key=jax.random.key(seed), progress=False
            )
            for seed in range(2 if quick else 20)
        ]  # fmt: skip
        seen = np.asarray([float(run.crossings[0.9]) for run in runs])
        spread = float(np.std(seen, ddof=1))
        rows.append(
            {
                "batch size": size,
                "orders": len(seen),
                "mean over predicted - 1, %": 100 * (float(np.mean(seen)) / predicted - 1),
                "its standard error, %": 100 * spread / predicted / np.sqrt(len(seen)),
                "spread over predicted, %": 100 * spread / predicted,
            }
        )
    return {
        "setting": setting.name,
        "samples": data.num_samples,
        "predicted": predicted,
        "rows": rows,
    }


def flow(quick: bool, keep: Path | None) -> Row:
    return {
        "plateau": [through_the_plateau(s, keep) for s in settings(quick)],
        "behind": [row for case in behind_cases(quick) for row in behind(*case)],
    }


def through_the_plateau(setting: Setting, keep: Path | None) -> Row:
    """The flow of the first seed to 90 % of its loss, and descent to the same."""
    found = trained(setting, keep)
    network, observed = setting.network(0), float(found.run.crossings[0.9][0])
    began = time.perf_counter()
    run = nw.gradient_flow(
        network,
        found.data,
        1.5 * observed * setting.rate,
        loss=LOSS,
        until=0.9,
        observe=[],
    )
    first = time.perf_counter() - began
    crossing = float(run.crossings[0.9])
    foretold = nw.predict_escape(network, found.data, loss=LOSS)
    return {
        "setting": setting.name,
        "iterations of descent": whole(observed),
        "gradients of the flow": int(run.num_gradients),
        "ratio": observed / int(run.num_gradients),
        "steps": int(run.iteration),
        "flow crosses at, t": crossing,
        "descent crosses at, t": observed * setting.rate,
        "difference": crossing / (observed * setting.rate) - 1,
        "predicted / flow - 1": float(foretold.crossing) / crossing - 1,
        "first call, s": first,
    }


def behind_cases(quick: bool) -> list[tuple[Setting, tuple[int, ...]]]:
    if quick:
        return [(QUICK, (30, 100))]
    named = {setting.name: setting for setting in SETTINGS}
    everywhere = (100, 1000, 10_000, 100_000)
    return [
        (named["narrow"], everywhere),
        (named["five inputs"], everywhere[:3]),
        (FIG_1, everywhere[:2]),
    ]


def behind(setting: Setting, horizons: tuple[int, ...]) -> list[Row]:
    """Seconds of explicit and of implicit steps from the crossing on."""
    data, network = setting.data(), setting.network(0)
    blowup = float(nw.predict_escape(network, data, loss=LOSS).blowup.time)
    start = nw.gradient_flow(network, data, 2 * blowup, loss=LOSS, until=0.9, observe=[])
    solvers = {"explicit": diffrax.Tsit5(), "implicit": stiff_solver()}
    t0, rows = float(start.time), []

    def go(solver: diffrax.AbstractSolver, horizon: float) -> nw.Run:
        return nw.gradient_flow(
            start.network,
            data,
            t0 + horizon,
            t0=t0,
            loss=LOSS,
            levels=[],
            solver=solver,
            observe=[],
            max_steps=10_000_000,
        )

    def loss_of(network: nw.MLP) -> jax.Array:
        return data.loss(network, LOSS)

    at_crossing = float(largest_curvature(loss_of, start.network))
    for solver in solvers.values():
        go(solver, 1.0)  # compiles
    for horizon in horizons:
        row: Row = {"setting": setting.name, "horizon": horizon}
        run = start
        for name, solver in solvers.items():
            began = time.perf_counter()
            run = go(solver, horizon)
            row[f"{name}, s"] = time.perf_counter() - began
            row[f"{name}, steps"] = int(run.iteration)
            row[f"{name}, gradients"] = int(run.num_gradients)
            row[f"{name}, loss"] = float(run.loss[-1])
            row[f"{name}, status"] = nw.RunStatus(int(run.status)).name
        row["explicit / implicit"] = row["explicit, s"] / row["implicit, s"]
        # What the choice between them is made by, and what it would be at the end.
        row["steps foreseen"] = at_crossing * horizon / STABLE
        at_end = float(largest_curvature(loss_of, run.network))
        row["with the last curvature"] = at_end * horizon / STABLE
        rows.append(row)
    return rows


PARTS = {
    "prediction": prediction,
    "skip": skip,
    "indicators": indicators,
    "speed": speed,
    "records": records,
    "minibatches": minibatches,
    "flow": flow,
}


def main() -> None:
    parser = parser_of(__doc__, PARTS)
    parser.add_argument("--keep", type=Path, help="folder for checkpoints of the whole runs")
    arguments = parser.parse_args()
    console, out = Console(), out_path(arguments, __file__)
    about = setup()
    for name in arguments.part or list(PARTS):
        found = PARTS[name](arguments.quick, arguments.keep)
        show(name, found, console)
        if out is not None:
            write_json(out, {"setup": about, name: found})


if __name__ == "__main__":
    main()
