"""Steps of the loss after the first escape: predicted, and seen in training.

    python benchmarks/steps.py                 # all parts, a quarter of an hour on two cores
    python benchmarks/steps.py --part linear   # one of the following; more may be named
    python benchmarks/steps.py --quick         # small widths
    python benchmarks/steps.py --out FILE      # another JSON file than steps.json

- linear: linear networks of two, three and four layers against gradient descent written in NumPy,
  to the end: iterations at which the singular values have half their final values, and the loss.
- spaces: by how much the times of the steps change with the multiplications after which the spaces
  of the hidden layers are cut off, against those of whole layers.
- tanh: three layers of tanh, two outputs, targets of several sizes: where the loss is half-way down
  each step, against the steps of the linear network with the same weights.
- masks: completion of a matrix of rank two from a share of its entries: the rises in descent
  against `predict_steps` of the mask, and of the matrix with zeros for the entries not known, times
  the inverse of the share, as if all were known.
"""

from __future__ import annotations

import time

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np
from _timing import Row, out_path, parser_of, setup, show, write_json
from matplotlib.figure import Figure
from rich.console import Console
from scipy.interpolate import CubicSpline

from jaxcond import networks as nw
from jaxcond import plotting
from jaxcond.networks import _smaller

FULL = {
    "linear": {"width": 100, "stds": {2: 1e-3, 3: 2e-3, 4: 2e-2}, "values": (1.0, 0.7, 0.5, 0.35)},
    "spaces": {"width": 60, "stds": {3: 5e-3, 4: 3e-2, 5: 5e-2}, "rounds": (5, 7, 9)},
    "tanh": {"width": 60, "sizes": (1e-3, 1e-2, 1e-1, 0.3, 1.0, 3.0), "std": 1e-2},
    "masks": {"width": 30, "shares": (1.0, 0.8, 0.6, 0.4), "depths": (2, 3), "scale": 1e-6},
}
QUICK = {
    "linear": {"width": 12, "stds": {2: 1e-3, 3: 1e-2}, "values": (1.0, 0.6)},
    "spaces": {"width": 12, "stds": {3: 1e-2}, "rounds": (2,)},
    "tanh": {"width": 12, "sizes": (1e-2, 1.0), "std": 3e-2},
    "masks": {"width": 10, "shares": (1.0, 0.8), "depths": (2,), "scale": 1e-4},
}
RATE = 0.05
# Singular values in descent are computed at every so many iterations.
EVERY = 4


class Seen:
    """What descent written in NumPy does: losses, and singular values at every few iterations."""

    def __init__(self, weights: list[np.ndarray], target: np.ndarray, mask: np.ndarray, last: int):
        """Descent of half the square of the distance on the mask, to an iteration."""
        weights = [w.copy() for w in weights]
        losses, values = [], []
        began = time.perf_counter()
        for iteration in range(last + 1):
            forward = [weights[0]]
            for w in weights[1:]:
                forward.append(w @ forward[-1])
            back = mask * (forward[-1] - target)
            losses.append(0.5 * float(np.sum(back**2)))
            if iteration % EVERY == 0:
                values.append(np.linalg.svd(forward[-1], compute_uv=False))
            for k in reversed(range(len(weights))):
                slope = back @ forward[k - 1].T if k else back
                back = weights[k].T @ back
                weights[k] -= RATE * slope
        self.seconds = time.perf_counter() - began
        self.losses = np.asarray(losses)
        self.values = CubicSpline(EVERY * np.arange(len(values)), np.asarray(values))

    def rises(self, final: np.ndarray) -> list[float]:
        """Iterations at which the singular values have half of their final values."""
        found = []
        for i, value in enumerate(final):
            curve = CubicSpline(self.values.x, self.values(self.values.x)[:, i] - value / 2)
            roots = curve.roots(extrapolate=False)
            found.append(float(roots[0]) if roots.size else np.nan)
        return found


def timed(call) -> tuple[nw.Steps, float, float]:
    """What is predicted, the seconds of the first call and the least of three others."""
    seconds = []
    for _ in range(4):
        began = time.perf_counter()
        found = call()
        seconds.append(time.perf_counter() - began)
    return found, seconds[0], min(seconds[1:])


def linear(width: int, stds: dict[int, float], values: tuple[float, ...]) -> Row:
    rows, curves = [], {}
    target = np.zeros((width, width))
    target[range(len(values)), range(len(values))] = values
    for depth, std in stds.items():
        rng = np.random.default_rng(depth)
        weights = [std * rng.standard_normal((width, width)) for _ in range(depth)]
        network = nw.MLP([jax.numpy.asarray(w) for w in weights], activation="linear")
        data, loss = nw.Entries(target), width**2 / 2
        steps, first, later = timed(
            lambda n=network, d=data, f=loss: nw.predict_steps(n, d, RATE, loss=f, num=2000)
        )
        iterations = steps.iterations(steps.times)
        seen = Seen(weights, target, np.ones_like(target), int(iterations[-1]))
        here = np.interp(np.arange(len(seen.losses)), iterations, steps.loss)
        error = np.abs(here - seen.losses) / seen.losses[0]
        for i, rise in enumerate(seen.rises(steps.final)):
            predicted = float(steps.rise_iteration[i])
            rows.append(
                {
                    "depth": depth,
                    "std": std,
                    "step": i + 1,
                    "predicted": predicted,
                    "seen": rise,
                    "difference": predicted - rise,
                    "relative": predicted / rise - 1,
                    "worst loss": float(error.max()),
                    "cut off": float(steps.cut_off),
                    "widths": " ".join(map(str, steps.widths)),
                    "first call": first,
                    "seconds": later,
                    "descent": seen.seconds,
                }
            )
        curves[depth] = (steps, seen.losses)
    return {"width": width, "values": values, "rate": RATE, "rows": rows, "_curves": curves}


def tanh(width: int, sizes: tuple[float, ...], std: float) -> Row:
    """All sizes have the same linear network but for units: only tanh tells them apart."""
    rng = np.random.default_rng(0)
    inputs, outputs, num = 6, 4, 300
    x = np.linalg.qr(rng.standard_normal((num, inputs)))[0] * np.sqrt(num)
    directions = (
        np.linalg.qr(rng.standard_normal((outputs, 2)))[0],
        np.linalg.qr(rng.standard_normal((inputs, 2)))[0],
    )
    matrix = directions[0] @ np.diag([1.0, 0.6]) @ directions[1].T
    shapes = [(width, inputs), (width, width), (outputs, width)]
    weights = [std * rng.standard_normal(s) for s in shapes]
    rows = []
    for size in sizes:
        unit = size ** (1 / 3)
        arrays = [jax.numpy.asarray(unit * w) for w in weights]
        # A small one, since what is seen is whole iterations.
        rate = 0.1 * RATE / unit**4
        data = nw.Regression(x, size * x @ matrix.T)
        network = nw.MLP(arrays, activation="linear")
        steps = nw.predict_steps(network, data, rate, num=8000)
        middles = 0.5 * (steps.levels[1:] + steps.levels[:-1])
        iterations = steps.iterations(steps.times)
        predicted = [np.interp(-m, -steps.loss, iterations) for m in middles]
        levels = tuple(float(m / steps.loss[0]) for m in middles)
        for activation in ("linear", "tanh"):
            run = nw.gradient_descent(
                nw.MLP(arrays, activation=activation),
                data,
                rate,
                num_steps=3 * int(iterations[-1]),
                record=2,
                observe=[],
                levels=levels,
                until=0.9 * levels[-1],
                progress=False,
            )
            seen = [float(run.crossings[level]) for level in levels]
            row = {"size": size, "activation": activation}
            for i, (here, there) in enumerate(zip(predicted, seen, strict=True)):
                row |= {
                    f"predicted {i + 1}": float(here),
                    f"seen {i + 1}": there,
                    f"error {i + 1}": float(here) / there - 1,
                }
            rows.append(row)
    return {"width": width, "inputs": inputs, "outputs": outputs, "std": std, "rows": rows}


def masks(width: int, shares: tuple[float, ...], depths: tuple[int, ...], scale: float) -> Row:
    rng = np.random.default_rng(5)
    factors = [np.linalg.qr(rng.standard_normal((width, 2)))[0] for _ in range(2)]
    matrix = factors[0] @ np.diag([1.0, 0.6]) @ factors[1].T
    order = rng.random(matrix.shape)
    rows = []
    for depth in depths:
        key = jax.random.key(depth)
        network = nw.matrix_factors((width,) * (depth + 1), scale, key=key)
        for share in shares:
            mask = order <= np.quantile(order, share)
            known, count = nw.Entries(matrix, mask), int(mask.sum())
            steps, first, later = timed(
                lambda n=network, d=known, c=count: nw.predict_steps(n, d, RATE, loss=c / 2, rank=2)
            )
            weights = [np.asarray(w) for w in network.weights]
            last = int(steps.iterations(steps.times[-1]))
            seen = Seen(weights, matrix, mask.astype(float), last)
            # As if all entries were known: the same pull, and the share of the curvature.
            filled = nw.Entries(np.where(mask, matrix, 0) * (matrix.size / count))
            loss = matrix.size / 2 * (count / matrix.size)
            zeros = nw.predict_steps(network, filled, RATE, loss=loss, rank=2, num=8000)
            unseen = ~mask
            at = zeros.iterations(zeros.times)
            for i, rise in enumerate(seen.rises(steps.final)):
                predicted = float(steps.rise_iteration[i])
                # At the same height.
                as_if = float(np.interp(steps.final[i] / 2, zeros.singular_values[:, i], at))
                rows.append(
                    {
                        "depth": depth,
                        "share known": share,
                        "step": i + 1,
                        "final": float(steps.final[i]),
                        "seen": rise,
                        "predicted": predicted,
                        "relative": predicted / rise - 1,
                        "as if all known": as_if,
                        "its relative": as_if / rise - 1,
                        "entries not known": int(unseen.sum()),
                        "first call": first,
                        "seconds": later,
                        "descent": seen.seconds,
                    }
                )
    return {"width": width, "scale": scale, "rows": rows}


def figure_of_tanh(rows: list[Row]) -> Figure:
    """By how much the steps of the linear network are early for tanh, against the targets' size."""
    drawn = Figure(figsize=(3.6, 2.8), dpi=200, layout="constrained")
    axes = drawn.subplots()
    for activation, line in (("tanh", "-"), ("linear", ":")):
        own = [row for row in rows if row["activation"] == activation]
        for step, colour in ((1, "#4c72b0"), (2, "#c44e52")):
            errors = [abs(row[f"error {step}"]) for row in own]
            label = f"{activation}, step {step}"
            axes.plot([row["size"] for row in own], errors, "o" + line, color=colour, label=label)
    axes.set(xscale="log", yscale="log")
    axes.set_xlabel("largest singular value of the targets", fontsize=8)
    axes.set_ylabel("relative error of the iteration", fontsize=8)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=7, frameon=False)
    return drawn


def figure(found: dict[str, Row]) -> Figure | None:
    """The steps of the network of three layers, where that part was run."""
    curves = found.get("linear", {}).get("_curves", {})
    if 3 not in curves:
        return None
    steps, losses = curves[3]
    at = np.linspace(0, len(losses) - 1, 60).astype(int)
    width = found["linear"]["width"]
    title = f"three linear layers, {width} × {width}"
    return plotting.loss_steps(steps, observed=(at, losses[at]), title=title)


def spaces(width: int, stds: dict[int, float], rounds: tuple[int, ...]) -> Row:
    rows = []
    target = np.zeros((width, width))
    target[range(3), range(3)] = 1.0, 0.6, 0.4
    data, loss = nw.Entries(target), width**2 / 2
    usual = _smaller._ROUNDS
    for depth, std in stds.items():
        rng = np.random.default_rng(7)
        weights = [std * rng.standard_normal((width, width)) for _ in range(depth)]
        network = nw.MLP([jax.numpy.asarray(w) for w in weights], activation="linear")
        found = {}
        for count in (*rounds, width):
            _smaller._ROUNDS = {depth: count}
            found[count] = timed(lambda n=network: nw.predict_steps(n, data, RATE, loss=loss))
        for count, (steps, _, seconds) in found.items():
            errors = np.abs(steps.rise / found[width][0].rise - 1)
            rows.append(
                {
                    "depth": depth,
                    "std": std,
                    "multiplications": count,
                    "widths": " ".join(map(str, steps.widths)),
                    **{f"error {i + 1}": float(e) for i, e in enumerate(errors)},
                    "cut off": float(steps.cut_off),
                    "seconds": seconds,
                }
            )
    _smaller._ROUNDS = usual
    return {"width": width, "rows": rows}


PARTS = {"linear": linear, "spaces": spaces, "tanh": tanh, "masks": masks}


def main() -> None:
    arguments = parser_of(__doc__, PARTS).parse_args()
    names = arguments.part or list(PARTS)
    sizes = QUICK if arguments.quick else FULL
    found = {"setup": setup()}
    for name in names:
        found[name] = PARTS[name](**sizes[name])
    drawn = figure(found)
    found = {
        name: {key: value for key, value in row.items() if not key.startswith("_")}
        for name, row in found.items()
    }
    console = Console()
    for name in names:
        show(name, found[name], console)
    out = out_path(arguments, __file__)
    if out is not None:
        write_json(out, found)
        if drawn is not None:
            plotting.save(drawn, out.with_suffix(".png"))
        if "tanh" in found:
            file = out.with_name(f"{out.stem}_tanh.png")
            plotting.save(figure_of_tanh(found["tanh"]["rows"]), file)


if __name__ == "__main__":
    main()
