"""Batches of every size against an expert's numba, and ensembles against NumPy's drawing.

    python benchmarks/batches.py           # all, writes batches.json
    python benchmarks/batches.py --quick   # fewer and smaller, stored only with --out

- batches: microseconds per state of `jaxcond.blowup_times` and of compiled DOP853 for rank one with
  an early stop (`_peers.numba_rank_one`), to 1e-8, on all cores, in turns.
- ensemble: microseconds of a core per sample of reduced Gaussian states, drawing included, to
  1e-10, drawing alone, and what NumPy needs to draw 20 normals and 20 chi-squares, in turns, each
  on all cores at once.
"""

import argparse
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import _peers

# The threads of one call shall not wait for work while the other is timed.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import jax
import numpy as np
from _timing import Row, cpus, gaussian, interleaved, relative_error, setup, show, write_json
from rich.console import Console

import jaxcond as jc
from jaxcond.sampling import Draws

jax.config.update("jax_enable_x64", True)

TOL, FINE = 1e-8, 1e-10
NUMPY = "NumPy, 20 normals and 20 chi-squares"
# Width, and states of a batch.
SIZES = (
    (10, (16, 100, 2_000, 20_000)),
    (50, (16, 100, 2_000, 8_000)),
    (200, (16, 100, 2_000)),
    (1000, (16, 48)),
)
QUICK = ((10, (16, 200)), (50, (16,)))


def layers(width: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(width)
    shapes = ((count, width), (count, width, width), (count, width))
    a, b, c = (rng.standard_normal(shape) for shape in shapes)
    return a, b, c


def batches(quick: bool) -> Row:
    """Times per state, and how many times longer the expert's take."""
    rows = []
    for width, counts in QUICK if quick else SIZES:
        print(f"batches of width {width}", flush=True)
        whole = layers(width, max(counts))
        states = jc.State.from_vectors(*whole)
        for count in counts:
            part = [np.ascontiguousarray(layer[:count]) for layer in whole]
            some = jax.tree.map(lambda leaf, count=count: leaf[:count], states)
            calls = {
                "jaxcond": functools.partial(jc.blowup_times, some, rtol=TOL),
                "numba": functools.partial(_peers.numba_rank_one, *part, TOL),
            }
            timed = interleaved(calls, 3 if quick or count * width**2 > 10**8 else 9)
            ours, theirs = timed["jaxcond"], timed["numba"]
            converged = np.asarray(ours.result.status) == jc.Status.CONVERGED
            rows.append(
                {
                    "width": width,
                    "states": count,
                    "jaxcond_us": 1e6 * ours.seconds / count,
                    "numba_us": 1e6 * theirs.seconds / count,
                    "ratio": theirs.seconds / ours.seconds,
                    "not_converged": int(np.sum(~converged)),
                    "difference": relative_error(np.asarray(ours.result.time), theirs.result),
                }
            )
    return {"rtol": TOL, "rows": rows}


def numpy_draws(pool: ThreadPoolExecutor, count: int) -> None:
    """On every core at once, as what it is compared with: cores may share their units."""

    def draw(seed: int) -> None:
        rng = np.random.default_rng(seed)
        rng.standard_normal((count, 20))
        rng.chisquare(200, (count, 20))

    list(pool.map(draw, range(cpus())))


def ensemble(quick: bool) -> Row:
    """Microseconds of a core per sample, and as multiples of NumPy's drawing."""
    count, key = 10_000 if quick else 400_000, jax.random.key(0)
    few = min(count, 20_000)
    pool = ThreadPoolExecutor(cpus())
    calls: dict[str, Callable] = {NUMPY: functools.partial(numpy_draws, pool, few)}
    for width in (10, 20, 50, 200, 10**6, 10**9):
        samples = gaussian(width).draws(count, key=key)
        calls[f"jaxcond, width {width:g}"] = functools.partial(jc.blowup_times, samples, rtol=FINE)
    draw = Draws(gaussian(200), key, 10).on_host()
    if draw is not None:
        pieces = np.array_split(np.arange(few, dtype=np.uint32), max(1, few // 512))
        calls["jaxcond, drawing alone"] = lambda: [
            list(pool.map(draw, [piece] * cpus())) for piece in pieces
        ]
    timed = interleaved(calls, 3 if quick else 9)
    rows, unit = [], timed[NUMPY].seconds / few
    for name, time in timed.items():
        solved = isinstance(time.result, jc.BlowUp)
        each = time.seconds * cpus() / count if solved else time.seconds / few
        row = {"what": name, "us_of_a_core": 1e6 * each, "ratio_to_numpy": each / unit}
        if solved:
            lost = np.asarray(time.result.status) != jc.Status.CONVERGED
            row |= {"samples_per_s": count / time.seconds, "not_converged": int(lost.sum())}
        rows.append(row)
    return {"rtol": FINE, "rows": rows}


PARTS = {"batches": batches, "ensemble": ensemble}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="small, stored only with --out")
    parser.add_argument("--out", type=Path, help="JSON file, default: batches.json beside this")
    arguments = parser.parse_args()
    path = arguments.out
    if path is None and not arguments.quick:
        path = Path(__file__).with_suffix(".json")
    console = Console()
    console.width = max(console.width, 130)
    whole = setup()
    show("setup", whole, console)
    for name, part in PARTS.items():
        result = part(arguments.quick)
        show(name, result, console)
        if path is not None:
            write_json(path, {name: {"setup": whole, **result}})


if __name__ == "__main__":
    main()
