"""The cost of blow-up times: jaxcond against integrators, on the same states at the same accuracy.

    python benchmarks/blowup_time.py                      # some ten minutes on two cores
    python benchmarks/blowup_time.py --quick --out DIR    # a minute or two
    python benchmarks/blowup_time.py --part gpu           # only that part

Parts: `explicit`, given Gaussian states of several widths, at relative accuracy 1e-8; `reduced`,
the Gaussian ensemble with its drawing, in reduced form for jaxcond and in full for its strongest
competitor; `scaling`, cost against width, batch size and error, with a figure; `gpu`, samples per
second on a GPU, checked against the CPU.

Every time is a median over repeats in which the methods take turns, after a first call that
compiles and is reported separately. Errors are against Taylor series at tolerance 1e-13, which are
checked on a few states against integrations of the full state. Linear algebra called by NumPy
and SciPy runs on one thread, Numba and jaxcond on all.
"""

from __future__ import annotations

import argparse
import functools
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# Read when NumPy and SciPy are loaded.
for _variable in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"):
    os.environ[_variable] = "1"

import jax
import numpy as np
from rich.console import Console

jax.config.update("jax_enable_x64", True)

import _peers
from _timing import (
    Batch,
    Floats,
    Row,
    cpus,
    drawing,
    figure,
    gaussian,
    interleaved,
    planned,
    relative_error,
    setup,
    show,
    write_json,
)

import jaxcond as jc

TOL = 1e-8
REDUCED_RTOL = 1e-10

# Samples per width. 0: left out, as a single state takes minutes or the memory of all stages.
EXPLICIT = {
    "jaxcond": {10: 20000, 50: 4000, 200: 1000, 1000: 48},
    "numba rank-one": {10: 20000, 50: 4000, 200: 1000, 1000: 48},
    "numba rank-one, early stop": {10: 20000, 50: 4000, 200: 1000, 1000: 48},
    "numba DOP853": {10: 2000, 50: 200, 200: 16, 1000: 2},
    "scipy DOP853": {10: 100, 50: 50, 200: 10, 1000: 1},
    "diffrax Dopri8": {10: 500, 50: 50, 200: 4, 1000: 0},
    "diffrax Tsit5": {10: 500, 50: 50, 200: 4, 1000: 0},
}
SCALING = {
    "jaxcond": {10: 20000, 20: 10000, 50: 4000, 100: 2000, 200: 1000, 500: 160, 1000: 48},
    "numba rank-one": {10: 10000, 20: 5000, 50: 2000, 100: 500, 200: 200, 500: 32, 1000: 8},
    "scipy DOP853": {10: 32, 20: 32, 50: 16, 100: 8, 200: 4, 500: 1, 1000: 1},
}
BATCHES = {10: 16384, 200: 4096}
SERIES = ((8, 4), (12, 6), (16, 8), (20, 8), (24, 8), (28, 8), (32, 10), (36, 12))

Method = Callable[[Batch, float], Floats]


def by_jaxcond(batch: Batch, tol: float) -> Floats:
    """Times, nan where not settled."""
    found = jc.blowup_times(batch.state, rtol=tol)
    settled = np.asarray(found.status) == jc.Status.CONVERGED
    return np.where(settled, np.asarray(found.time), np.nan)


def by_diffrax(batch: Batch, tol: float, solver: str) -> Floats:
    a, b, c = batch.state.layers
    return _peers.diffrax_vmap(a[:, 0], b, c[:, 0], tol, solver)


METHODS: dict[str, Method] = {
    "jaxcond": by_jaxcond,
    "numba rank-one": lambda batch, tol: _peers.numba_rank_one(*batch.arrays, tol, close=0.0),
    "numba rank-one, early stop": lambda batch, tol: _peers.numba_rank_one(*batch.arrays, tol),
    "numba DOP853": lambda batch, tol: _peers.numba_dop853(*batch.arrays, tol),
    "scipy DOP853": lambda batch, tol: _peers.scipy_dop853(*batch.arrays, tol),
    "diffrax Dopri8": functools.partial(by_diffrax, solver="Dopri8"),
    "diffrax Tsit5": functools.partial(by_diffrax, solver="Tsit5"),
}


def reference(batch: Batch) -> Floats:
    """Times by Taylor series at tolerance 1e-13, nan where that is not reached."""
    found = jc.blowup_times(batch.state, rtol=1e-13, methods=[jc.Series()])
    settled = np.asarray(found.status) == jc.Status.CONVERGED
    return np.where(settled, np.asarray(found.time), np.nan)


def check_reference(batch: Batch, times: Floats) -> Row:
    """The reference against an integration of the full state, on the first few states."""
    width = batch.state.widths[0]
    if width <= 200:
        count, name, tol = {10: 8, 50: 4}.get(width, 2), "scipy DOP853", 1e-13
    else:
        count, name, tol = 1, "numba DOP853", 1e-12
    few = batch.first(count)
    known = int(np.isfinite(times).sum())
    return {
        "width": width,
        "states": len(batch),
        "reference_settled": known,
        "checked": len(few),
        "checked_by": f"{name} at {tol:g}",
        "max_difference": relative_error(METHODS[name](few, tol), times[: len(few)]),
    }


# ---------------------------------------------------------------- explicit states


def explicit(quick: bool) -> Row:
    """Given states: microseconds per sample of every method, and the error it reached."""
    rows: list[Row] = []
    checks: list[Row] = []
    for width in (10, 200) if quick else (10, 50, 200, 1000):
        print(f"explicit: width {width}", flush=True)
        counts = planned(EXPLICIT, width, quick)
        batch = Batch.draw(width, max(counts.values()))
        times = reference(batch)
        checks.append(check_reference(batch, times))
        rows += explicit_rows(batch, times, counts, 2 if quick else 5)
    return {"tol": TOL, "reference": checks, "rows": rows}


def explicit_rows(batch: Batch, times: Floats, counts: dict[str, int], repeats: int) -> list[Row]:
    width = batch.state.widths[0]
    batches = {name: batch.first(count) for name, count in counts.items() if count}
    calls = {name: functools.partial(METHODS[name], part, TOL) for name, part in batches.items()}
    drawn, draws = drawing(width, len(batch))
    timed = interleaved(calls | draws, repeats)
    ours = timed["jaxcond"].seconds / len(batches["jaxcond"])
    rows = []
    for name in [*counts, *draws]:
        row: Row = {"width": width, "method": name}
        rows.append(row)
        if name not in timed:
            row["note"] = "left out: too slow or too large"
            continue
        samples = drawn if name in draws else len(batches[name])
        each = timed[name].seconds / samples
        row |= {"samples": samples, "us_per_sample": 1e6 * each, "ratio": each / ours}
        if name in batches:
            found = timed[name].result
            row["max_error"] = relative_error(found, times[:samples])
            row["not_converged"] = int(np.isnan(found).sum())
        row["first_call_s"] = timed[name].first
    return rows


# ---------------------------------------------------------------- reduced ensemble


def draw_and_solve(width: int, count: int, close: float) -> Callable[[], Floats]:
    """Full states drawn by NumPy on all cores into memory that is kept, then Numba on all cores."""
    workers = cpus()
    rngs = np.random.default_rng(2).spawn(workers)
    arrays = [np.empty(s) for s in ((count, width), (count, width, width), (count, width))]
    pool = ThreadPoolExecutor(workers)

    def draw(worker: int) -> None:
        for array in arrays:
            rngs[worker].standard_normal(out=np.array_split(array, workers)[worker])

    def call() -> Floats:
        list(pool.map(draw, range(workers)))
        return _peers.numba_rank_one(*arrays, TOL, close=close)

    return call


def sampler(width: int, count: int, rtol: float = REDUCED_RTOL) -> Callable[[], jc.BlowUp]:
    key, ensemble = jax.random.key(0), gaussian(width)
    return lambda: jc.blowup_times(ensemble.draws(count, key=key), rtol=rtol)


def reduced(quick: bool) -> Row:
    """The Gaussian ensemble, drawing included: samples per second."""
    samples, full = (10_000, 50) if quick else (200_000, 500)
    widths = (100, 200, 10**4, 10**9)
    calls: dict[str, Callable] = {f"jaxcond, width {m:g}": sampler(m, samples) for m in widths}
    calls["jaxcond at 1e-8, width 200"] = sampler(200, samples, TOL)
    for name, close in (("", 0.0), (", early stop", _peers.CLOSE)):
        calls[f"numba rank-one{name}, width 200"] = draw_and_solve(200, full, close)
    timed = interleaved(calls, 2 if quick else 5)
    rows = []
    for name, time in timed.items():
        found = time.result
        ours = isinstance(found, jc.BlowUp)
        count = samples if ours else full
        lost = np.asarray(found.status) != jc.Status.CONVERGED if ours else np.isnan(found)
        tolerance = TOL if "1e-8" in name or not ours else REDUCED_RTOL
        row = {"method": name, "rtol": tolerance, "samples": count}
        row |= {"samples_per_s": count / time.seconds, "not_converged": int(lost.sum())}
        rows.append(row | {"first_call_s": time.first})
    for m, row in zip(widths, rows, strict=False):
        row["max_error"] = reduced_error(m, timed[row["method"]].result)
    rates = {row["method"]: row["samples_per_s"] for row in rows}
    ours = rates["jaxcond at 1e-8, width 200"]
    result: Row = {"rows": rows}
    for name in ("numba rank-one", "numba rank-one, early stop"):
        result[f"ratio to {name}, width 200"] = ours / rates[f"{name}, width 200"]
    narrow, wide = (rates[f"jaxcond, width {m:g}"] for m in (widths[0], widths[-1]))
    return result | {"rate at width 1e2 / rate at 1e9": narrow / wide}


def reduced_error(width: int, found: jc.BlowUp, count: int = 2000) -> float:
    """Of the first samples, against the same samples drawn in and solved in more dimensions."""
    methods, key = [jc.Series()], jax.random.key(0)
    better = jc.blowup_times(gaussian(width).draws(count, key=key), rtol=1e-13, methods=methods)
    times = np.where(np.asarray(better.status) == 0, np.asarray(better.time), np.nan)
    return relative_error(np.asarray(found.time)[:count], times)


# ---------------------------------------------------------------- scaling


def scaling(quick: bool) -> Row:
    """Cost against width, batch size and error."""
    widths = width_rows(quick)
    ours = [row for row in widths if row["method"] == "jaxcond"][-2:]
    (low, high), (cheap, dear) = zip(*((r["width"], r["us_per_sample"]) for r in ours), strict=True)
    return {
        "width": widths,
        "slope": math.log(dear / cheap) / math.log(high / low),
        "slope between widths": f"{low} and {high}",
        "batch": batch_rows(quick),
        "accuracy": accuracy_rows(quick),
    }


def width_rows(quick: bool) -> list[Row]:
    rows = []
    samples = 2_000 if quick else 40_000
    for width in (10, 200) if quick else SCALING["jaxcond"]:
        print(f"scaling: width {width}", flush=True)
        counts = planned(SCALING, width, quick)
        batch = Batch.draw(width, max(counts.values()), seed=3)
        calls = {
            name: functools.partial(METHODS[name], batch.first(count), TOL)
            for name, count in counts.items()
        }
        calls["jaxcond, reduced ensemble"] = sampler(width, samples, TOL)
        drawn, draws = drawing(width, len(batch))
        counts |= {"jaxcond, reduced ensemble": samples, "drawing, numpy": drawn}
        calls["drawing, numpy"] = draws["drawing, numpy"]
        for name, time in interleaved(calls, 2 if quick else 3).items():
            each = 1e6 * time.seconds / counts[name]
            rows.append({"method": name, "width": width, "us_per_sample": each})
    return sorted(rows, key=lambda row: row["method"])


def batch_rows(quick: bool) -> list[Row]:
    rows = []
    for width, largest in BATCHES.items():
        print(f"scaling: batches of width {width}", flush=True)
        largest = 64 if quick else largest
        batch = Batch.draw(width, largest, seed=4)
        sizes = [n for n in (4**i for i in range(0, 8, 3 if quick else 1)) if n <= largest]
        calls = {str(n): functools.partial(by_jaxcond, batch.first(n), TOL) for n in sizes}
        for name, time in interleaved(calls, 3 if quick else 7).items():
            each = 1e6 * time.seconds / int(name)
            rows.append({"width": width, "batch": int(name), "us_per_sample": each})
    return rows


def accuracy_methods(batch: Batch, quick: bool) -> list[tuple[str, str, int, Callable[[], Floats]]]:
    """Name, setting, number of samples and call of everything that panel (c) shows.

    A single expansion is taken for what it gives, whether or not it calls that settled.
    """
    few = {"jaxcond Direct": 16, "numba rank-one": 512, "scipy DOP853": 8}
    few |= {"jaxcond Series": len(batch), "jaxcond Reduced": len(batch)}

    def ours(part: Batch, rtol: float, method: object) -> Callable[[], Floats]:
        return lambda: np.asarray(jc.blowup_times(part.state, rtol=rtol, methods=[method]).time)

    found = []
    for order, dim in SERIES[::4] if quick else SERIES:
        method = jc.Series(order=order, dim=dim, max_expansions=1)
        call = ours(batch, 1e-12, method)
        found.append(("jaxcond Series", f"order {order}, dim {dim}", len(batch), call))
    tolerances = (1e-4, 1e-8) if quick else (1e-3, 1e-5, 1e-7, 1e-9, 1e-11)
    for name in ("jaxcond Reduced", "jaxcond Direct", "numba rank-one", "scipy DOP853"):
        part = batch.first(few[name])
        for tol in tolerances:
            if name.startswith("jaxcond"):
                method = jc.Reduced() if name == "jaxcond Reduced" else jc.Direct()
                call = ours(part, tol, method)
            else:
                call = functools.partial(METHODS[name], part, tol)
            found.append((name, f"tol {tol:g}", len(part), call))
    return found


def accuracy_rows(quick: bool) -> list[Row]:
    print("scaling: accuracy", flush=True)
    batch = Batch.draw(50, 64 if quick else 1024, seed=5)
    times = reference(batch)
    entries = {f"{e[0]}, {e[1]}": e for e in accuracy_methods(batch, quick)}
    timed = interleaved({label: entry[3] for label, entry in entries.items()}, 2 if quick else 3)
    rows = []
    for label, (name, setting, samples, _) in entries.items():
        error = relative_error(timed[label].result, times[:samples])
        row = {"method": name, "setting": setting, "samples": samples, "max_error": error}
        rows.append(row | {"us_per_sample": 1e6 * timed[label].seconds / samples})
    return rows


# ---------------------------------------------------------------- GPU


def gpu(quick: bool) -> Row:
    """Samples and states per second on a GPU, and how far its times are from the CPU's."""
    if jax.default_backend() != "gpu":
        return {"skipped": "JAX's default backend is not a GPU"}
    samples, count, few = (100_000, 512, 64) if quick else (2_000_000, 4096, 128)
    draw = jax.jit(jax.vmap(lambda key: jc.Gaussian(200, 200).sample(key=key)))
    states = jax.block_until_ready(draw(jax.random.split(jax.random.key(6), count)))
    calls: dict[str, Callable[[], jc.BlowUp]] = {
        "reduced, width 1e6": sampler(10**6, samples),
        "explicit, width 200": lambda: jc.blowup_times(states, rtol=REDUCED_RTOL),
    }
    timed = interleaved(calls, 2 if quick else 5)
    cpu = jax.devices("cpu")[0]
    with jax.default_device(cpu):
        # Committed to the CPU: a default device does not reach the threads that solve.
        key, ensemble = jax.device_put((jax.random.key(0), gaussian(10**6)), cpu)
        same = jax.device_put(jax.tree.map(lambda x: x[:few], states), cpu)
        checks = {
            "reduced, width 1e6": jc.blowup_times(ensemble.draws(few, key=key), rtol=REDUCED_RTOL),
            "explicit, width 200": jc.blowup_times(same, rtol=REDUCED_RTOL),
        }
    rows = []
    for name, number in zip(calls, (samples, count), strict=True):
        found, check = timed[name].result, np.asarray(checks[name].time)
        difference = relative_error(np.asarray(found.time)[: check.size], check)
        row: Row = {"what": name, "samples": number, "samples_per_s": number / timed[name].seconds}
        lost = int(np.sum(np.asarray(found.status) != jc.Status.CONVERGED))
        row |= {"not_converged": lost, "difference_from_cpu": difference}
        rows.append(row | {"agrees": difference <= 1e-9, "first_call_s": timed[name].first})
    return {"rtol": REDUCED_RTOL, "rows": rows}


PARTS: dict[str, Callable[[bool], Row]] = {
    "explicit": explicit,
    "reduced": reduced,
    "scaling": scaling,
    "gpu": gpu,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", action="append", choices=list(PARTS), help="default: all")
    parser.add_argument("--quick", action="store_true", help="small, stored only with --out")
    parser.add_argument("--out", type=Path, help="folder of the results, default: this file's")
    arguments = parser.parse_args()
    folder = arguments.out
    if folder is None and not arguments.quick:
        folder = Path(__file__).parent
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    console = Console()
    console.width = max(console.width, 130)
    show("setup", setup(), console)
    for part in arguments.part or PARTS:
        found = PARTS[part](arguments.quick)
        show(part, found, console)
        if folder is None or "skipped" in found:
            continue
        if part == "scaling":
            figure(found, folder / "blowup_time.png")
        write_json(folder / "blowup_time.json", {part: {"setup": setup(), **found}})


if __name__ == "__main__":
    main()
