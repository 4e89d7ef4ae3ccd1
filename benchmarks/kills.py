"""Compares a study killed at random moments and resumed with an uninterrupted study.

    python benchmarks/kills.py                          # 20 kills, some minutes on two cores
    python benchmarks/kills.py --quick                  # 2 kills
    python benchmarks/kills.py --out benchmarks/kills.json

`kill -9` meets the process anywhere: as it starts, opens the store, compiles, computes or writes.
Between kills nothing repairs the store. Then one run goes on to the end, and every file of samples
is compared, bit for bit, with those of an uninterrupted study. Exits with 1 if any differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from rich.console import Console

SAMPLES, CHUNK, WIDTHS = 1_000_000, 10_000, (50, 200)
KILLS, QUICK = 20, 2


def work(path: str) -> None:
    """The study, in a process of its own; tells when it begins to compute, and every chunk."""
    import jax

    jax.config.update("jax_enable_x64", True)
    from jaxcond.study import Study, Watcher, run_study

    class Tells(Watcher):
        def start(self, *_: Any) -> None:
            print("open", flush=True)

        def finished(self, *_: Any) -> None:
            print("chunk", flush=True)

    study = Study(samples=SAMPLES, chunk=CHUNK, sweep={"width": list(WIDTHS)}, seed=11)
    run_study(study, path, watcher=Tells())


def start(path: Path, cache: Path) -> subprocess.Popen[str]:
    # Programs are compiled once for all processes, so that most kills meet the study at work.
    env = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    command = [sys.executable, __file__, "--work", str(path)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def uninterrupted(path: Path, cache: Path) -> tuple[float, float]:
    """Seconds from the start of the process to its end, and of those before the first chunk."""
    begin, first = time.perf_counter(), 0.0
    process = start(path, cache)
    assert process.stdout is not None
    for line in process.stdout:
        if line == "chunk\n" and not first:
            first = time.perf_counter() - begin
    if process.wait():
        raise SystemExit("the study itself failed")
    return time.perf_counter() - begin, first


def finished(path: Path) -> int:
    """Chunks of the store that are there."""
    if not path.exists():
        return 0
    with xr.open_zarr(path) as data:
        return int((data["marks"].to_numpy()[..., 0] > 0).sum())


def differences(path: Path, other: Path) -> list[str]:
    """Files of chunks that are not the same in two stores."""

    def files(store: Path) -> dict[str, bytes]:
        return {
            str(file.relative_to(store)): file.read_bytes()
            for file in store.rglob("*")
            if file.is_file() and file.suffix != ".json"
        }

    found, expected = files(path), files(other)
    return sorted(
        name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help=f"{QUICK} kills instead of {KILLS}")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--out", type=Path, help="write the figures to this JSON file")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.work)
        return
    console, random = Console(), np.random.default_rng(arguments.seed)
    kills: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        cache, path, whole = (
            Path(folder) / name for name in ("cache", "killed.zarr", "whole.zarr")
        )
        uninterrupted(Path(folder) / "first.zarr", cache)
        seconds, first = uninterrupted(whole, cache)
        total = finished(whole)
        count = QUICK if arguments.quick else KILLS
        for number in range(count):
            process = start(path, cache)
            assert process.stdout is not None
            begin = time.perf_counter()
            if number % 4 == 0:  # anywhere in the start
                met = "starting"
                time.sleep(random.uniform(0, first))
            else:  # once the store is open, or after some chunks; then anywhere in the next one
                lines = 1 if number % 4 == 1 else int(random.integers(2, 5))
                met = "opened" if lines == 1 else "at work"
                for _ in range(lines):
                    process.stdout.readline()
                time.sleep(random.uniform(0, 1.5 * (seconds - first) / total))
            process.kill()
            moment = time.perf_counter() - begin
            process.stdout.read()
            ended = process.wait()
            partial = len(list(path.rglob("*.partial"))) if path.exists() else 0
            kills.append(
                {
                    "after": moment,
                    "killed": ended == -9,
                    "met": met,
                    "chunks": finished(path),
                    "half_written": partial,
                }
            )
            console.print(
                f"killed {met} after {moment:.1f} s: {kills[-1]['chunks']} of {total} "
                f"chunks there, {partial} half-written files"
            )
        uninterrupted(path, cache)
        wrong = differences(path, whole)
        with xr.open_zarr(path) as a, xr.open_zarr(whole) as b:
            same = not wrong and all(
                a[name].to_numpy().tobytes() == b[name].to_numpy().tobytes() for name in b.variables
            )
            complete = bool(a.attrs["complete"])
    found = {
        "samples": SAMPLES,
        "chunk": CHUNK,
        "widths": WIDTHS,
        "chunks": total,
        "seconds": seconds,
        "first_chunk": first,
        "kills": kills,
        "identical": same and complete,
        "different_files": wrong,
    }
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    at_work = sum(kill["met"] == "at work" for kill in kills)
    console.print(
        f"{len(kills)} kills, {at_work} of them at work; the final store is "
        + ("identical, bit for bit" if same and complete else f"DIFFERENT: {wrong[:5]}")
    )
    if not (same and complete):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
