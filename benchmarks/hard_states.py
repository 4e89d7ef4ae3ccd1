"""Hard states: how many each stage of the escalation settles, and how well methods agree.

Gaussian states of widths 3 to 1000 with layer scales drawn log-uniformly from 1e-6 to 30, each on
its own, so that every combination occurs; the energy has either sign. Every state must come out
`converged`. `Series` and `Reduced` are compared on the states of each width up to `--compare`.

    python benchmarks/hard_states.py             # 100,000 states, some minutes on two cores
    python benchmarks/hard_states.py --quick     # 1,000 states
"""

import argparse
import json
import time
from pathlib import Path

import jax
import numpy as np

jax.config.update("jax_enable_x64", True)

import jaxcond as jc

# Width: number of states.
PLAN = {3: 12000, 4: 10000, 5: 10000, 7: 10000, 10: 10000, 14: 10000, 20: 10000, 32: 10000}
PLAN |= {50: 8000, 100: 6000, 200: 2500, 500: 1000, 1000: 500}
BATCH_BYTES = 1 << 30


def draw(width: int, count: int, seed: int) -> jc.State:
    """Gaussian states with independent log-uniform layer scales from 1e-6 to 30."""
    rng = np.random.default_rng([seed, width])
    scales = np.exp(rng.uniform(np.log(1e-6), np.log(30), (3, count)))
    a = scales[0][:, None] * rng.standard_normal((count, width))
    b = scales[1][:, None, None] * rng.standard_normal((count, width, width))
    c = scales[2][:, None] * rng.standard_normal((count, width))
    return jc.State.from_vectors(a, b, c)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="1,000 states")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", type=int, default=500, help="states per width to compare")
    parser.add_argument(
        "--widths", type=int, nargs="+", default=list(PLAN), help="some of the plan"
    )
    parser.add_argument(
        "--out", type=Path, help="JSON file; by default beside the script, if whole"
    )
    arguments = parser.parse_args()
    plan = {width: PLAN[width] for width in arguments.widths}
    if arguments.quick:
        plan = {width: max(1, count // 100) for width, count in plan.items()}
    rows = []
    for width, count in plan.items():
        row = run_width(width, count, arguments.seed, arguments.compare)
        rows.append(row)
        print(json.dumps(row), flush=True)
    total = {"states": sum(row["states"] for row in rows)}
    for key in ("statuses", "settled_by"):
        names = {name for row in rows for name in row[key]}
        total[key] = {name: sum(row[key].get(name, 0) for row in rows) for name in sorted(names)}
    for key in ("worst_difference_over_allowance", "compared", "looser_than_1e-9"):
        values = [row[key] for row in rows]
        total[key] = max(values) if key.startswith("worst") else sum(values)
    print(json.dumps(total, indent=1))
    whole = not arguments.quick and plan == PLAN
    out = arguments.out or (Path(__file__).with_name("hard_states.json") if whole else None)
    if out is not None:
        out.write_text(json.dumps({"total": total, "widths": rows}, indent=1) + "\n")


def run_width(width: int, count: int, seed: int, compare: int) -> dict:
    piece = max(1, min(count, BATCH_BYTES // (8 * width * width)))
    row = {"width": width, "states": 0, "negative_energy": 0, "statuses": {}, "settled_by": {}}
    row |= {"compared": 0, "worst_difference_over_allowance": 0.0, "looser_than_1e-9": 0}
    start = time.perf_counter()
    for i, first in enumerate(range(0, count, piece)):
        states = draw(width, min(piece, count - first), seed + i)
        found = jc.blowup_times(states)
        row["states"] += len(found.time)
        row["negative_energy"] += int(np.sum(jax.vmap(jc.energy)(states) < 0))
        for name, part in (("statuses", found.counts()), ("settled_by", found.settled_by())):
            for key, value in part.items():
                row[name][key] = row[name].get(key, 0) + value
        if i == 0:
            row |= agreement(jax.tree.map(lambda x: x[:compare], states))
    row["seconds"] = round(time.perf_counter() - start, 2)
    return row


def agreement(states: jc.State) -> dict:
    """The two methods against each other: within 1e-9, or within the errors that they report."""
    series = jc.blowup_times(states, methods=[jc.Series(dim=24), jc.Series(dim=48)])
    reduced = jc.blowup_times(states, rtol=1e-11, methods=[jc.Reduced(dim=24), jc.Reduced(dim=64)])
    both = (np.asarray(series.status) == 0) & (np.asarray(reduced.status) == 0)
    difference = np.abs(np.asarray(series.time) / np.asarray(reduced.time) - 1)[both]
    reported = np.asarray((series.error + reduced.error) / series.time)[both]
    allowance = np.maximum(reported, 1e-9)
    return {
        "compared": int(both.sum()),
        "not_compared": int((~both).sum()),
        "worst_difference": float(difference.max()),
        "worst_difference_over_allowance": float((difference / allowance).max()),
        "looser_than_1e-9": int((reported > 1e-9).sum()),
        "difference_above_1e-9": int((difference > 1e-9).sum()),
    }


if __name__ == "__main__":
    main()
