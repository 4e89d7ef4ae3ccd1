"""All pictures of the README and the documentation.

    python docs/figures.py                     # all, at full size
    python docs/figures.py trajectory study    # some
    python docs/figures.py --quick --out DIR   # all, small, as in CI

The figures of the paper at full size take from a minute to a quarter of an hour on two cores. What
is there is not computed anew: a figure of the paper is drawn again from its data (`.npz` beside the
picture in the folder of `--data`), and training that was interrupted goes on from its checkpoints.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jaxcond as jc  # noqa: E402
from jaxcond import plotting  # noqa: E402
from jaxcond.cli import main as command  # noqa: E402

HERE = Path(__file__).parent


def study(out: Path, data: Path, quick: bool) -> None:
    del data
    samples = 500 if quick else 10_000
    run("study", "--width", 200, "--samples", samples, "--seed", 0, "--quiet", "--out", out)


def trajectory(out: Path, data: Path, quick: bool) -> None:
    del data
    width = 10 if quick else 50
    state = jc.Gaussian(width, width).sample(key=jax.random.key(7))
    plotting.save(jc.trajectory(state, closeness=1e-5).plot(), out)


def of_the_paper(name: str) -> Callable[[Path, Path, bool], None]:
    def figure(out: Path, data: Path, quick: bool) -> None:
        known = data / f"figure_{name}.npz"
        if not known.exists():
            options = ["--quick"] * quick
            if name in ("1", "2a"):
                options += ["--checkpoint", str(data / f"figure_{name}")]
            run("figure", name, *options, "--quiet", "--out", known.with_suffix(".png"))
        run("figure", name, "--data", known, "--out", out)

    return figure


def benchmark(name: str) -> Callable[[Path, Path, bool], None]:
    def figure(out: Path, data: Path, quick: bool) -> None:
        script = HERE.parent / "benchmarks" / f"{name}.py"
        numbers = data / f"{name}.json"
        call = [sys.executable, str(script), *["--quick"] * quick, "--out", str(numbers)]
        subprocess.run(call, check=True)
        numbers.with_suffix(".png").replace(out)

    return figure


FIGURES: dict[str, Callable[[Path, Path, bool], None]] = {
    "study": study,
    "trajectory": trajectory,
    "figure_1": of_the_paper("1"),
    "figure_2a": of_the_paper("2a"),
    "figure_2b": of_the_paper("2b"),
    "figure_3": of_the_paper("3"),
    "depth": benchmark("depth"),
}


def run(*arguments: object) -> None:
    """The command line, in this process."""
    try:
        command([str(argument) for argument in arguments])
    except SystemExit as end:
        if end.code:
            raise


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(FIGURES)}")
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", type=Path, default=HERE, help="folder for pictures (default docs)")
    parser.add_argument("--data", type=Path, help="folder for data and checkpoints "
                        "(default: the folder figures in that for pictures)")  # fmt: skip
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.names) - set(FIGURES))
    if unknown:
        parser.error(f"no figure {unknown[0]!r}; there are {', '.join(FIGURES)}")
    data = arguments.data or arguments.out / "figures"
    data.mkdir(parents=True, exist_ok=True)
    for name in arguments.names or FIGURES:
        started = time.perf_counter()
        FIGURES[name](arguments.out / f"{name}.png", data, arguments.quick)
        print(f"{name}: {time.perf_counter() - started:.1f} s", flush=True)


if __name__ == "__main__":
    main()
