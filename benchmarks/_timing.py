"""Components of `blowup_time.py`: batches of states, interleaved timing, tables, figure."""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

import jaxcond as jc

Floats = NDArray[np.float64]
Row = dict[str, Any]

PACKAGES = ("jaxcond", "jax", "jaxlib", "diffrax", "numba", "scipy", "numpy")
DRAWN = 1 << 22  # random numbers in one timed draw, at most


class Batch:
    """Standard normal states of one width, as NumPy arrays and as a `State` on the device."""

    def __init__(self, a: Floats, b: Floats, c: Floats):
        self.arrays = (a, b, c)
        self.state = jax.block_until_ready(jc.State.from_vectors(a, b, c))

    @classmethod
    def draw(cls, width: int, count: int, seed: int = 0) -> Batch:
        """`count` states of widths `(width, width)`."""
        rng = np.random.default_rng([seed, width])
        shapes = (count, width), (count, width, width), (count, width)
        a, b, c = (rng.standard_normal(shape) for shape in shapes)
        return cls(a, b, c)

    def __len__(self) -> int:
        return len(self.arrays[0])

    def first(self, count: int) -> Batch:
        """Its first states, at most all of them."""
        if count >= len(self):
            return self
        a, b, c = (x[:count] for x in self.arrays)
        return Batch(a, b, c)


def drawing(width: int, count: int) -> tuple[int, dict[str, Callable[[], object]]]:
    """How many states are drawn at once, and the calls that do it."""
    numbers = width * (width + 2)
    count = max(1, min(count, DRAWN // numbers))
    rng, out, key = np.random.default_rng(1), np.empty((count, numbers)), jax.random.key(1)
    draw = jax.jit(lambda key: jax.random.normal(key, (count, numbers)))
    calls = {
        "drawing, numpy": lambda: rng.standard_normal(out=out),
        "drawing, jax": lambda: draw(key),
    }
    return count, calls


def gaussian(width: int) -> jc.Gaussian:
    """The ensemble with its widths as arrays, so that one program serves all of them."""
    return jc.Gaussian(jnp.asarray(float(width)), jnp.asarray(float(width)))


def planned(plans: dict[str, dict[int, int]], width: int, quick: bool) -> dict[str, int]:
    """Samples per method at a width."""
    counts = {name: plan[width] for name, plan in plans.items()}
    return {name: max(min(n, 2), n // 10) for name, n in counts.items()} if quick else counts


@dataclass
class Timed:
    """Seconds of a call: the first, which compiles, and the median of the later ones."""

    first: float
    seconds: float
    result: Any


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = jax.block_until_ready(call())
    return time.perf_counter() - start, result


def interleaved(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timed]:
    """Time several calls in turns, so that what else the machine does meets all of them alike."""
    firsts = {name: _seconds(call) for name, call in calls.items()}
    later: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            later[name].append(_seconds(call)[0])
    return {
        name: Timed(first, statistics.median(later[name]), result)
        for name, (first, result) in firsts.items()
    }


def relative_error(times: Floats, reference: Floats) -> float:
    """Largest relative error where both are known."""
    with np.errstate(invalid="ignore"):
        error = np.abs(np.asarray(times) / reference - 1)
    error = error[np.isfinite(error)]
    return float(error.max()) if error.size else math.nan


def setup() -> Row:
    """Device, processors, dtype and versions."""
    device = jax.devices()[0]
    return {
        "backend": jax.default_backend(),
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "cpus": cpus(),
        "dtype": "float64",
        "python": platform.python_version(),
        **{name: metadata.version(name) for name in PACKAGES},
    }


def cpus() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def show(part: str, result: Row, console: Console) -> None:
    """Print what a part found: a table for each list of rows, a line for anything else."""
    for name, value in result.items():
        if not isinstance(value, list):
            console.print(f"{part}, {name}: {_text(value)}")
            continue
        table = Table(title=f"{part}, {name}" if name != "rows" else part, title_justify="left")
        columns = list(dict.fromkeys(key for row in value for key in row))
        for column in columns:
            left = any(isinstance(row.get(column), str) for row in value)
            justify = "left" if left else "right"
            table.add_column(column.replace("_", " "), justify=justify, no_wrap=left)
        for row in value:
            table.add_row(*(_text(row.get(column)) for column in columns))
        console.print(table)


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1e3 else f"{value:.0f}"
    return str(value)


def _plain(value: Any) -> Any:
    """For JSON: four digits, and null for what is not finite."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def write_json(path: Path, parts: Mapping[str, Row]) -> None:
    """Write parts to a file, keeping what it holds of others."""
    stored = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps(stored | _plain(dict(parts)), indent=1) + "\n")


def parser_of(description: str | None, parts: Iterable[str] = ()) -> argparse.ArgumentParser:
    """The options of a script: `--part`, where it has several, `--quick` and `--out`."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    if parts:
        parser.add_argument("--part", choices=list(parts), nargs="+", help="some parts only")
    parser.add_argument("--quick", action="store_true", help="small sizes, for a first look")
    parser.add_argument(
        "--out", type=Path, help="JSON file; by default beside the script, unless --quick"
    )
    return parser


def out_path(arguments: argparse.Namespace, script: str) -> Path | None:
    """The JSON file to write, if any."""
    if arguments.out is None and not arguments.quick:
        return Path(script).with_suffix(".json")
    return arguments.out


def run_parts(
    description: str | None, script: str, parts: Mapping[str, Callable[[bool], Row]]
) -> None:
    """The whole of a script whose parts take `--quick` only: run, show and write them."""
    arguments = parser_of(description, parts).parse_args()
    console = Console()
    found = {"setup": setup()}
    for name in arguments.part or parts:
        found[name] = parts[name](arguments.quick)
        show(name, found[name], console)
    path = out_path(arguments, script)
    if path is not None:
        write_json(path, found)


STYLES = {
    "jaxcond": ("C0", "o", "-"),
    "jaxcond Series": ("C0", "o", "-"),
    "jaxcond, reduced ensemble": ("C4", "D", "-"),
    "jaxcond Reduced": ("C4", "D", "-"),
    "jaxcond Direct": ("C2", "P", "-"),
    "numba rank-one": ("C1", "s", "--"),
    "scipy DOP853": ("C3", "^", ":"),
    "drawing, numpy": ("0.4", "x", "-."),
    "width 10": ("C0", "o", "-"),
    "width 200": ("C3", "s", "--"),
}


def curves(axes: Axes, rows: list[Row], x: str, label: Callable[[Row], str]) -> None:
    """One curve of the cost for each label, and what all panels have in common."""
    for name in dict.fromkeys(label(row) for row in rows):
        points = [(row[x], row["us_per_sample"]) for row in rows if label(row) == name]
        color, marker, line = STYLES[name]
        axes.plot(*zip(*points, strict=True), line, color=color, marker=marker, ms=5, label=name)
    axes.set(xscale="log", yscale="log", ylabel="cost per sample [µs]")
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.17), ncol=2, frameon=False, fontsize=8)


def figure(found: Row, path: Path) -> None:
    """The three panels of `scaling` in one PNG."""
    canvas = Figure(figsize=(13.5, 4.9), dpi=150, layout="constrained")
    by_width, by_batch, by_error = canvas.subplots(1, 3)
    curves(by_width, found["width"], "width", lambda row: row["method"])
    ends = found["slope between widths"]
    title = f"tolerance 1e-8; slope of jaxcond {found['slope']:.2f} between {ends}"
    by_width.set(xlabel="width of both hidden layers", title=title)
    curves(by_batch, found["batch"], "batch", lambda row: f"width {row['width']}")
    by_batch.set(xlabel="states in the batch", title="jaxcond, tolerance 1e-8")
    curves(by_error, found["accuracy"], "max_error", lambda row: row["method"])
    by_error.set(xlabel="largest relative error of $T^*$", title="width 50, several settings")
    for axes, letter in zip((by_width, by_batch, by_error), "abc", strict=True):
        axes.set_title(f"({letter}) {axes.get_title()}", fontsize=9)
    canvas.savefig(path)
