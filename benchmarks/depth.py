"""How the blow-up time scales with depth, width and the scale of the initial weights.

    python benchmarks/depth.py           # some minutes on two cores; depth.json and depth.png
    python benchmarks/depth.py --quick   # few samples of small width

Layers are Gaussian, one input and one output, hidden widths m, standard deviation epsilon.

- scale: T* at one width against epsilon, independent samples at each; slopes of log-log fits, which
  the theory says are 2 - L.
- width: (epsilon sqrt(m))^(L-2) T* at each width and depth: medians and quartiles, whose limit at
  infinite width is known for L = 3.
- spaces: what it would bring to reduce chains of four and more layers, as three layers are, to the
  spaces that the input and the output layer span under the layers between them and their
  transposes: their dimensions, the error of T* in them, and the time beside that of the full chain.
"""

from __future__ import annotations

import time

import jax

jax.config.update("jax_enable_x64", True)

import numpy as np
from _timing import Row, out_path, parser_of, setup, show, write_json
from matplotlib.figure import Figure
from rich.console import Console

import jaxcond as jc
from jaxcond import plotting

RTOL, RTOL_OF_SPACES = 1e-6, 1e-8
FULL = {
    "scale": {"depths": (3, 4, 5, 6), "width": 20, "samples": 32},
    "width": {"depths": (3, 4, 5, 6, 7), "widths": (10, 20, 50, 100), "samples": 64},
    "spaces": {"depths": (4, 5), "width": 200, "most": 100},
}
QUICK = {
    "scale": {"depths": (3, 4), "width": 4, "samples": 4},
    "width": {"depths": (3, 4), "widths": (3, 4), "samples": 4},
    "spaces": {"depths": (4,), "width": 8, "most": 4},
}
EPSILONS = (1e-3, 1e-2, 1e-1)


def blowup_times(depth: int, width: int, epsilon: float, samples: int, seed: int) -> np.ndarray:
    """Blow-up times of random chains, all of which must be known."""
    # An array, so that one program serves every scale.
    ensemble = jc.GaussianChain((1, *[width] * (depth - 1), 1), jax.numpy.asarray(epsilon))
    found = jc.blowup_times(ensemble.draws(samples, key=jax.random.key(seed)), rtol=RTOL)
    assert bool(found.is_known().all()), str(found)
    return np.asarray(found.time)


def scale(depths: tuple[int, ...], width: int, samples: int) -> Row:
    rows = []
    for depth in depths:
        times = [blowup_times(depth, width, e, samples, i) for i, e in enumerate(EPSILONS)]
        logs = np.log(times)
        x = np.repeat(np.log(EPSILONS), samples)
        (slope, _), covariance = np.polyfit(x, logs.ravel(), 1, cov=True)
        rows.append(
            {
                "depth": depth,
                "slope": float(slope),
                "standard error": float(np.sqrt(covariance[0, 0])),
                "2 - depth": 2 - depth,
                **{
                    f"median at {e:g}": float(np.median(t))
                    for e, t in zip(EPSILONS, times, strict=True)
                },
            }
        )
    return {"width": width, "samples": samples, "rtol": RTOL, "epsilon": EPSILONS, "rows": rows}


def width(depths: tuple[int, ...], widths: tuple[int, ...], samples: int) -> Row:
    rows = []
    for depth in depths:
        for m in widths:
            begun = time.perf_counter()
            scaled = m ** (depth / 2 - 1) * blowup_times(depth, m, 1.0, samples, 100 + depth)
            low, median, high = np.quantile(scaled, [0.25, 0.5, 0.75])
            rows.append(
                {
                    "depth": depth,
                    "width": m,
                    "lower quartile": float(low),
                    "median": float(median),
                    "upper quartile": float(high),
                    "seconds": time.perf_counter() - begun,
                }
            )
    limit = float(jc.blowup_time(jc.infinite_width()).time)
    return {"samples": samples, "rtol": RTOL, "limit at depth 3": limit, "rows": rows}


@jax.jit
def one(chain: jc.Chain) -> jc.blowup.BlowUp:
    return jc.blowup_time(chain, rtol=RTOL_OF_SPACES)


def timed(layers: list[np.ndarray]) -> tuple[float, float]:
    """The blow-up time of a chain, and the seconds that it takes once compiled."""
    chain = jc.Chain(layers)
    jax.block_until_ready(one(chain))
    begun = time.perf_counter()
    found = jax.block_until_ready(one(chain))
    return float(found.time), time.perf_counter() - begun


def extended(basis: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """What of some vectors is orthogonal to a basis, as an orthonormal one."""
    for _ in range(2):
        vectors = np.linalg.qr(vectors - basis @ (basis.T @ vectors))[0]
    return vectors[:, : basis.shape[0] - basis.shape[1]]


def spaces(depths: tuple[int, ...], width: int, most: int) -> Row:
    rows = []
    for depth in depths:
        ensemble = jc.GaussianChain((1, *[width] * (depth - 1), 1), width**-0.5)
        layers = [np.asarray(x) for x in ensemble.sample(key=jax.random.key(0)).layers]
        exact, seconds = timed(layers)
        none = np.zeros((width, 0))
        bases, new = [none] * (depth - 1), [none] * (depth - 1)
        new[0], new[-1] = (x / np.linalg.norm(x) for x in (layers[0], layers[-1].T))
        while max(basis.shape[1] for basis in bases) < most:
            bases = [np.hstack(pair) for pair in zip(bases, new, strict=True)]
            onward = [none, *(w @ x for w, x in zip(layers[1:-1], new[:-1], strict=True))]
            back = [*(w.T @ x for w, x in zip(layers[1:-1], new[1:], strict=True)), none]
            pairs = zip(bases, onward, back, strict=True)
            new = [extended(basis, np.hstack((x, y))) for basis, x, y in pairs]
            if not all(basis.shape[1] for basis in bases):
                continue
            inner = zip(bases[1:], layers[1:-1], bases[:-1], strict=True)
            small = [p.T @ w @ q for p, w, q in inner]
            found, cost = timed([bases[0].T @ layers[0], *small, layers[-1] @ bases[-1]])
            rows.append(
                {
                    "depth": depth,
                    "dimensions": " ".join(str(basis.shape[1]) for basis in bases),
                    "relative error": abs(found / exact - 1),
                    "seconds": cost,
                    "full over it": seconds / cost,
                }
            )
    return {"width": width, "rtol": RTOL_OF_SPACES, "rows": rows}


def figure(found: dict[str, Row]) -> Figure:
    """The figure of both parts."""
    scaled: dict[int, dict[int, tuple[float, ...]]] = {}
    for row in found["width"]["rows"]:
        quartiles = (row["lower quartile"], row["median"], row["upper quartile"])
        scaled.setdefault(row["width"], {})[row["depth"]] = quartiles
    times = {
        row["depth"]: [row[f"median at {e:g}"] for e in EPSILONS] for row in found["scale"]["rows"]
    }
    return plotting.depth_scaling(EPSILONS, times, scaled, width=found["scale"]["width"])


def main() -> None:
    arguments = parser_of(__doc__).parse_args()
    sizes = QUICK if arguments.quick else FULL
    found = {
        "setup": setup(),
        "scale": scale(**sizes["scale"]),
        "width": width(**sizes["width"]),
        "spaces": spaces(**sizes["spaces"]),
    }
    console = Console()
    for name in sizes:
        show(name, found[name], console)
    out = out_path(arguments, __file__)
    if out is not None:
        write_json(out, found)
        plotting.save(figure(found), out.with_suffix(".png"))


if __name__ == "__main__":
    main()
