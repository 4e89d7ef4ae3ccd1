"""Time of a fresh process to its first answer, next to a SciPy script that computes one T*.

    python benchmarks/latency.py                   # all, writes latency.json
    python benchmarks/latency.py --quick           # fewer, once each, stored only with --out
    python benchmarks/latency.py --against FOLDER  # and the package in another folder, in turns

Whole processes, from their start to their exit, float64 on a CPU, medians of three. First with an
empty cache of compiled programs, then with the cache of the first run. The script of SciPy
integrates the effective dynamics of width 200 until the energy tells T* to 1e-8. `programs` are
those that XLA compiles in one process for a session of ten different calls.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from _timing import Row, setup, show, write_json
from rich.console import Console

STATE = """
import numpy as np
rng = np.random.default_rng(0)
a, b, c = (rng.standard_normal(shape) for shape in (M, (M, M), M))
"""
SCIPY = """
M = 200
import numpy as np
from scipy.integrate import solve_ivp
rng = np.random.default_rng(0)
a, b, c = (rng.standard_normal(shape) for shape in (M, (M, M), M))

def flow(t, y):
    a, b, c = y[:M], y[M:-M].reshape(M, M), y[-M:]
    return np.concatenate([b @ c, np.outer(a, c).ravel(), a @ b])

def energy(y):
    return y[:M] @ y[M:-M].reshape(M, M) @ y[-M:]

def late(t, y):
    # What is left is E^(-1/3) at most, and that to higher order the closer.
    return energy(y) ** (-1 / 3) - 1e-6 if energy(y) > 0 else 1.0

late.terminal = True
start = np.concatenate([a, b.ravel(), c])
run = solve_ivp(flow, (0, 10), start, "DOP853", events=late, rtol=1e-9, atol=1e-9)
print(repr(float(run.t[-1] + energy(run.y[:, -1]) ** (-1 / 3))))
"""
BEGIN = 'import jax\njax.config.update("jax_enable_x64", True)\nimport jaxcond as jc\n'
ONE = "M = 200" + STATE + BEGIN + "state = jc.State.from_vectors(a, b, c)\n"
TIME = "print(repr(float(jc.blowup_time(state).time)))\n"
MANY = """
import numpy as np
rng = np.random.default_rng(0)
a, b, c = (rng.standard_normal(shape) for shape in ((N, 50), (N, 50, 50), (N, 50)))
"""
TRAINING = """
import jax.numpy as jnp
x = jnp.linspace(-jnp.pi, jnp.pi, 100)
data = jc.networks.Regression(x, jnp.tanh(x))
network = jc.networks.MLP.random((1, 50, 50, 1), key=jax.random.key(0), std=1e-3, bias="input")
print(jc.networks.predict_escape(network, data, 5e-3, loss="mse"))
"""
GRADIENT = "print(jax.value_and_grad(lambda s: jc.blowup_time(s).time)(state)[0])\n"
SCENARIOS = {
    "import jax": "import jax",
    "import jaxcond": "import jax, jaxcond",
    "blowup_time, width 200": ONE + TIME,
    "blowup_time, width 7": ONE.replace("200", "7") + TIME,
    "blowup_times, 1000 states of width 50": "N = 1000"
    + MANY
    + BEGIN
    + "print(jc.blowup_times(jc.State.from_vectors(a, b, c), rtol=1e-8))\n",
    "value and gradient": ONE + GRADIENT,
    "trajectory": ONE + "print(jc.trajectory(state)(0.05).a[0, 0])\n",
    "prediction": BEGIN + TRAINING,
}
COMMANDS = {
    "jaxcond --help": ["--help"],
    "jaxcond study": ["study", "--width", "200", "--samples", "10000", "--seed", "0"],
}
QUICK = ("import jax", "blowup_time, width 200", "value and gradient")
SESSION = """
import json
from jax import monitoring
seconds = []
def listen(event, duration, **_):
    if event == "/jax/core/compile/backend_compile_duration":
        seconds.append(duration)
rng = np.random.default_rng(1)
def state(m):
    return jc.State.from_vectors(*(rng.standard_normal(s) for s in (m, (m, m), m)))
def batch(n, m):
    return jc.State.from_vectors(*(rng.standard_normal(s) for s in ((n, m), (n, m, m), (n, m))))
calls = [(jc.blowup_time, state(m), None) for m in (3, 7, 12, 24)]
calls += [(jc.blowup_time, state(9), tol) for tol in (1e-6, 1e-8, 1e-12)]
calls += [(jc.blowup_times, batch(n, 10), 1e-8) for n in (7, 8, 9)]
monitoring.register_event_duration_secs_listener(listen)
for call, x, rtol in calls:
    call(x, rtol=rtol)
print(json.dumps([len(seconds), sum(seconds)]))
"""
WARM = """
import json, statistics, time
def median(call, repeats):
    call()
    seconds = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - begin)
    return statistics.median(seconds)
rng = np.random.default_rng(0)
some = jc.State.from_vectors(*(rng.standard_normal(s) for s in ((16, M), (16, M, M), (16, M))))
def alone():
    jc.blowup_time(state).time.block_until_ready()
def together():
    jc.blowup_times(some, rtol=1e-8).time.block_until_ready()
print(json.dumps([median(alone, 200), median(together, 100)]))
"""


def run(arguments: list[str], package: Path, folder: Path) -> tuple[float, str]:
    """Seconds and output of a fresh process with a home and a cache of its own."""
    environment = os.environ | {
        "HOME": str(folder),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "PYTHONPATH": str(package),
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "programs"),
        "JAXCOND_CACHE_DIR": str(folder / "programs"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }
    begin = time.perf_counter()
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return time.perf_counter() - begin, done.stdout.strip()


def scenarios(quick: bool) -> dict[str, list[str]]:
    """The arguments of Python for each."""
    command = "from jaxcond.cli import console; console()"
    chosen = {name: ["-c", code] for name, code in SCENARIOS.items() if not quick or name in QUICK}
    chosen |= {name: ["-c", command, *arguments] for name, arguments in COMMANDS.items()}
    return {"scipy script": ["-c", SCIPY]} | chosen


def measure(packages: dict[str, Path], quick: bool) -> list[Row]:
    """Medians in seconds and as multiples of the script, with an empty cache and a filled one."""
    repeats = 1 if quick else 3
    rows, unit = [], 0.0
    for name, arguments in scenarios(quick).items():
        print(name, flush=True)
        row: Row = {"process": name}
        seconds: dict[str, list[float]] = {}
        for _ in range(repeats):
            for label, package in packages.items():
                with tempfile.TemporaryDirectory() as folder:
                    for which in ("first", "second"):
                        took, output = run(arguments, package, Path(folder))
                        seconds.setdefault(f"{label} {which}", []).append(took)
                if name in ("scipy script", "blowup_time, width 200"):
                    row["answer"] = float(output)
        for key, values in seconds.items():
            row[f"{key}_s"] = statistics.median(values)
        if name == "scipy script":
            unit = row["jaxcond first_s"]
        row["multiple"] = row["jaxcond first_s"] / unit
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few, stored only with --out")
    parser.add_argument("--against", type=Path, metavar="FOLDER", help="of another checkout")
    parser.add_argument("--out", type=Path, help="JSON file, default: latency.json beside this")
    arguments = parser.parse_args()
    path = arguments.out
    if path is None and not arguments.quick:
        path = Path(__file__).with_suffix(".json")
    packages = {"jaxcond": Path(__file__).resolve().parent.parent}
    if arguments.against is not None:
        packages["other"] = arguments.against.resolve()
    rows = measure(packages, arguments.quick)
    answers = [row["answer"] for row in rows if "answer" in row]
    result: Row = {"rows": rows, "scipy_difference": abs(answers[0] / answers[1] - 1)}
    for label, package in packages.items():
        with tempfile.TemporaryDirectory() as folder:
            programs, seconds = json.loads(run(["-c", ONE + SESSION], package, Path(folder))[1])
            alone, together = json.loads(run(["-c", ONE + WARM], package, Path(folder))[1])
        result |= {f"{label}: programs": programs, f"{label}: seconds of compilation": seconds}
        result |= {f"{label}: warm blowup_time, ms": 1e3 * alone}
        result |= {f"{label}: warm blowup_times of 16, ms": 1e3 * together}
    console = Console()
    console.width = max(console.width, 130)
    show("latency", result, console)
    if path is not None:
        write_json(path, {"latency": {"setup": setup(), **result}})


if __name__ == "__main__":
    main()
