r"""The setting of Figs. 1, 2a and 2b of the paper.

A 1-$m$-$m$-1 tanh network learns tanh on $[-\pi, \pi]$ from 100 samples, with weights
$N(0, \varepsilon^2)$ and the mean squared error. Inputs are augmented by a constant, $(x, 1)$, so
that the rows of $W^1$ have a direction; the target direction is then $(1, 0)$.
"""

from dataclasses import asdict, dataclass
from typing import Any

import jax
import jax.numpy as jnp

from ..networks import MLP, Regression

LOSS = "mse"


@dataclass(frozen=True)
class TanhSetting:
    r"""Sizes and rates; the defaults are the paper's.

    - `width`: $m$ of both hidden layers.
    - `std`: $\varepsilon$, by default $m^{-2}$.
    - `learning_rate`: learning rate of gradient descent on the plateau.
    - `num_samples`: number of samples $n$.
    - `seed`, `num_seeds`: networks have the seeds `seed`, `seed + 1`, ...

    **Raises:** `ValueError` for values out of range.
    """

    width: int = 200
    std: float | None = None
    learning_rate: float = 5e-3
    num_samples: int = 100
    seed: int = 0
    num_seeds: int = 1

    def __post_init__(self):
        for name in ("width", "num_samples", "num_seeds"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, but is {getattr(self, name)}.")
        for name in ("deviation", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` must be positive, but is {getattr(self, name)}.")

    @property
    def deviation(self) -> float:
        r"""$\varepsilon$."""
        return self.width**-2.0 if self.std is None else self.std

    @property
    def data(self) -> Regression:
        """The samples."""
        x = jnp.linspace(-jnp.pi, jnp.pi, self.num_samples)
        return Regression(x, jnp.tanh(x))

    def networks(self, deviation: float | None = None) -> MLP:
        """The initial networks, a batch with one for each seed."""
        std = self.deviation if deviation is None else deviation
        m = self.width
        seeds = self.seed + jnp.arange(self.num_seeds)
        return jax.vmap(
            lambda seed: MLP.random((1, m, m, 1), key=jax.random.key(seed), std=std, bias="input")
        )(seeds)

    def as_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return {**asdict(self), "std": self.deviation, "loss": LOSS}
