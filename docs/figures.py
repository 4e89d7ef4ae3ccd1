"""The figures of the README that no command makes: `python docs/figures.py`."""

from pathlib import Path

import jax

jax.config.update("jax_enable_x64", True)

import jaxcond as jc  # noqa: E402
from jaxcond import plotting  # noqa: E402


def main() -> None:
    state = jc.Gaussian(50, 50).sample(key=jax.random.key(7))
    trajectory = jc.trajectory(state, num=120, closeness=1e-5)
    path = Path(__file__).with_name("trajectory.png")
    plotting.save(plotting.trajectory_panel(trajectory), path)
    print(f"{trajectory}: {path}")


if __name__ == "__main__":
    main()
