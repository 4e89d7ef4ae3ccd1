"""Studies in a store beside the bare method: rate, memory, and what variance reduction gains.

    python benchmarks/studies.py                   # all parts, some minutes on two cores
    python benchmarks/studies.py --part overhead   # one of the following
    python benchmarks/studies.py --quick           # fewer samples

- overhead: samples/s of `blowup_times` against a study of the same samples into a store on
  disk, in alternating runs after compilation, and of the study with its summary.
- memory: peak resident memory of a process that runs and summarises a study of 10^7 samples.
- variance: standard error of the mean by plain Monte Carlo, by the control variate and by
  quasi-Monte Carlo, and how far off they are from one another.
- scaling: mean and fluctuation against the width, beside 1.167973 and 0.533812.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np
from _timing import Row, run_parts

import jaxcond as jc

WIDTH = 200
AMPLITUDE = 0.533812


def overhead(quick: bool) -> Row:
    samples = 1 << (17 if quick else 20)
    study = jc.Study(samples=samples, ensemble={"width": WIDTH})
    arrays = jc.Gaussian(*(jax.numpy.asarray(float(x)) for x in (WIDTH, WIDTH)))
    chunk = 1 << 16

    def bare() -> None:
        for start in range(0, samples, chunk):
            indices = np.arange(start, start + chunk)
            jc.blowup_times(arrays.draws(indices, key=study.key(0)))

    def stored(folder: str) -> jc.study.Store:
        return jc.run_study(study, Path(folder) / "study.zarr")

    seconds: dict[str, list[float]] = {"bare": [], "study": [], "study and summary": []}
    for turn in range(2 if quick else 6):
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            bare()
            middle = time.perf_counter()
            store = stored(folder)
            end = time.perf_counter()
            jc.summarise(store)
            last = time.perf_counter()
        if turn == 0:
            continue  # compilation
        seconds["bare"].append(middle - start)
        seconds["study"].append(end - middle)
        seconds["study and summary"].append(last - middle)
    medians = {name: float(np.median(values)) for name, values in seconds.items()}
    ratios = {
        name: float(np.median(np.array(seconds[name]) / np.array(seconds["bare"])))
        for name in ("study", "study and summary")
    }
    rows = [
        {"what": name, "samples/s": samples / value, "time over bare": ratios.get(name, 1.0)}
        for name, value in medians.items()
    ]
    return {"samples": samples, "width": WIDTH, "rows": rows}


_MEMORY = """
import json, resource, sys, time
import jax
jax.config.update("jax_enable_x64", True)
import jaxcond as jc
samples, path = int(sys.argv[1]), sys.argv[2]
start = time.perf_counter()
store = jc.run_study(jc.Study(samples=samples), path)
middle = time.perf_counter()
found = jc.summarise(store).points[0]
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({
    "samples": found.num_samples,
    "mean": found.mean.mean,
    "run, s": middle - start,
    "summary, s": time.perf_counter() - middle,
    "samples/s with compilation": samples / (middle - start),
    "peak memory, GB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9,
}))
"""


def memory(quick: bool) -> Row:
    rows = []
    for samples in (10**5,) if quick else (10**5, 10**7):
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-c", _MEMORY, str(samples), f"{folder}/study.zarr"]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
        rows.append(json.loads(done.stdout))
    return {"rows": rows}


def variance(quick: bool) -> Row:
    size = 10**4 if quick else 10**5
    plans = {
        "plain and control variate": jc.Study(samples=size, observables=("entries",), seed=1),
        "quasi-Monte Carlo": jc.Study(samples=4096, sampling="sobol", seed=2),
    }
    rows = []
    for study in plans.values():
        point = jc.summarise(jc.run_study(study)).points[0]
        for estimate in dict.fromkeys((point.plain, point.mean)):
            if study.sampling == "sobol" and estimate.method == "plain":
                continue
            rows.append(
                {
                    "estimator": estimate.method,
                    "samples": point.num_samples,
                    "mean of √m T*": point.scale * estimate.mean,
                    "standard error": point.scale * estimate.standard_error,
                    "gain in variance": estimate.gain,
                }
            )
    return {"width": WIDTH, "rows": rows}


def scaling(quick: bool) -> Row:
    study = jc.Study(
        samples=5000 if quick else 10**5,
        sweep={"width": [50, 100, 200, 400, 1000, 10_000]},
        observables=("entries",),
        seed=3,
    )
    (_, fit), *_ = jc.summarise(jc.run_study(study)).scalings
    known = float(jc.infinite_width_times().time)
    rows = [
        {
            "quantity": name,
            "law": law,
            "value": f.value,
            "error": f.error,
            "lower": f.lower,
            "upper": f.upper,
            "off by, in errors": (f.value - law) / f.error,
        }
        for name, f, law in (
            ("limit of √m T*", fit.limit, known),
            ("exponent of the mean", fit.mean_exponent, 0.5),
            ("exponent of the fluctuation", fit.fluctuation_exponent, 0.5),
            ("amplitude of the fluctuation", fit.amplitude, AMPLITUDE),
        )
    ]
    return {"samples at each width": study.samples, "rows": rows}


PARTS = {"overhead": overhead, "memory": memory, "variance": variance, "scaling": scaling}


if __name__ == "__main__":
    run_parts(__doc__, __file__, PARTS)
