"""Calibration of errors, brackets and statuses on states that are hard to solve.

The states of `jaxcond.checks.adversarial` whose blow-up times an independent integrator has
tabulated (`tests/tables/adversarial.json`), in float64; rank 1 in float32, too, against what
float64 says of the rounded states. For each family: statuses, how often the true error exceeds
`error` and T* lies outside of the bracket (never, it should be), and the ratio of `error` to the
true one.

    python benchmarks/calibration.py                   # 10,677 states, and rank 1 in float32
    python benchmarks/calibration.py --only chains     # one family, in its place in the file
    python benchmarks/calibration.py --quick           # 10 states of each family
"""

import argparse
import collections
import decimal
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

jax.config.update("jax_enable_x64", True)

import jaxcond as jc
from jaxcond.checks.adversarial import FAMILIES, adversarial_states

TABLE = Path(__file__).parents[1] / "tests" / "tables" / "adversarial.json"
FIELDS = ("time", "lower", "upper", "error", "status")


def filled_up(point: jc.State | jc.Chain) -> jc.State | jc.Chain:
    """With units that never move, so that the programs of few shapes serve all."""

    def fill(array: np.ndarray, *sizes: int) -> np.ndarray:
        return np.pad(array, [(0, size - n) for n, size in zip(array.shape, sizes, strict=True)])

    if isinstance(point, jc.State):
        a, b, c = fill(point.a, point.rank, 4), fill(point.b, 4, 4), fill(point.c, point.rank, 4)
        return jc.State(a, b, c, point.strength)
    last = point.depth - 1
    layers = (
        fill(layer, 1 if i == last else 3, 1 if i == 0 else 3)
        for i, layer in enumerate(point.layers)
    )
    return jc.Chain(tuple(layers))


def solve(points: list, dtype: jnp.dtype) -> list[dict[str, float]]:
    """What is said of each, in their order."""
    groups = collections.defaultdict(list)
    for place, point in enumerate(points):
        groups[tuple(leaf.shape for leaf in jax.tree.leaves(point))].append(place)
    rows: list[dict[str, float]] = [{} for _ in points]
    for places in groups.values():
        batch = jax.tree.map(lambda *x: jnp.stack(x).astype(dtype), *(points[i] for i in places))
        found = jc.blowup_times(batch)
        for name in FIELDS:
            for place, value in zip(places, np.asarray(getattr(found, name)), strict=True):
                rows[place][name] = float(value)
    return rows


def compare(rows: list[dict[str, float]], truth: list[decimal.Decimal | None]) -> dict:
    """Violations, and the ratio of `error` to the true one."""
    statuses = collections.Counter(jc.Status(int(row["status"])).name.lower() for row in rows)
    row = {"states": len(rows), "statuses": dict(statuses), "no finite error": 0}
    ratios, errors, brackets = [], 0, 0
    for said, exact in zip(rows, truth, strict=True):
        time, lower, upper, error = (decimal.Decimal(said[name]) for name in FIELDS[:4])
        if exact is None:
            errors += said["status"] == jc.Status.CONVERGED
            continue
        half = exact * decimal.Decimal("1e-17")
        brackets += not lower - half <= exact <= upper + half
        if said["status"] not in (jc.Status.CONVERGED, jc.Status.ILL_CONDITIONED):
            errors += said["status"] == jc.Status.NO_BLOW_UP
            continue
        if time.is_infinite():
            row["no finite error"] += 1
            continue
        errors += abs(time - exact) > error + half
        if time != exact:
            ratios.append(float(error / abs(time - exact)))
    row |= {"errors exceeded": errors, "brackets violated": brackets}
    if ratios:
        row |= {"median of error over true error": float(np.median(ratios)), "least": min(ratios)}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 states of each family")
    parser.add_argument("--only", choices=FAMILIES, nargs="+", default=list(FAMILIES))
    parser.add_argument(
        "--out", type=Path, help="JSON file; by default beside the script, if whole"
    )
    arguments = parser.parse_args()
    tables = json.loads(TABLE.read_text())["times"]
    results = []
    for family in arguments.only:
        table = tables[family][: 10 if arguments.quick else None]
        points = adversarial_states(family, len(table))
        if family in ("rank 2 and 3", "chains"):
            points = [filled_up(point) for point in points]
        truth = [None if exact is None else decimal.Decimal(exact) for exact in table]
        results.append(
            {"family": family, "dtype": "float64"} | compare(solve(points, jnp.float64), truth)
        )
        print(json.dumps(results[-1]), flush=True)
        if family in ("rank 2 and 3", "chains"):
            continue
        rounded = [jax.tree.map(lambda x: x.astype(jnp.float32), point) for point in points]
        wide = solve(rounded, jnp.float64)
        single = solve(rounded, jnp.float32)
        # Only where what float64 leaves open does not matter.
        sure = [
            (said, decimal.Decimal(exact["time"]) if exact["time"] < np.inf else None)
            for said, exact in zip(single, wide, strict=True)
            if exact["error"] <= 1e-3 * said["error"] or exact["status"] == jc.Status.NO_BLOW_UP
        ]
        results.append(
            {"family": family, "dtype": "float32"} | compare(*map(list, zip(*sure, strict=True)))
        )
        print(json.dumps(results[-1]), flush=True)
    out = arguments.out or (None if arguments.quick else Path(__file__).with_suffix(".json"))
    if out is not None:
        stored = json.loads(out.read_text()) if out.exists() else []
        results += [row for row in stored if row["family"] not in arguments.only]
        results.sort(key=lambda row: list(FAMILIES).index(row["family"]))
        out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
