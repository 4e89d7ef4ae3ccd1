"""The figures of the README that no command makes: `python docs/figures.py`."""

from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jaxcond as jc  # noqa: E402
from jaxcond import plotting  # noqa: E402


def main() -> None:
    state = jc.Gaussian(50, 50).sample(key=jax.random.key(7))
    path = jc.trajectory(state, closeness=1e-5)
    file = Path(__file__).with_name("trajectory.png")
    plotting.save(path.plot(), file)
    print(f"{path}: {file}")


if __name__ == "__main__":
    main()
