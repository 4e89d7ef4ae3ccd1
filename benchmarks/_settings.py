"""Trainings from small initial weights: the networks, data and learning rates of `networks.py`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import numpy as np

from jaxcond import networks as nw


@dataclass(frozen=True)
class Setting:
    """How a network is made and trained: everything but the seed."""

    name: str
    data: Callable[[], nw.AbstractData]
    rate: float
    std: float
    p: int
    q: int
    inputs: int = 1
    outputs: int = 1
    activation: str = "tanh"
    bias: bool = False
    seeds: int = 3

    def network(self, seed: int) -> nw.MLP:
        """The initial network of a seed."""
        return nw.MLP.random(
            (self.inputs, self.q, self.p, self.outputs),
            key=jax.random.key(seed),
            std=self.std,
            activation=self.activation,
            bias="input" if self.bias else False,
        )


LOSS = "mse"


def tanh_curve() -> nw.Regression:
    """The target of the paper's Fig. 1."""
    x = np.linspace(-np.pi, np.pi, 100)
    return nw.Regression(x, np.tanh(x))


def gaussian_inputs(inputs: int, outputs: int, seed: int) -> nw.Regression:
    """A linear map of Gaussian inputs through tanh, and some noise."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((200, inputs))
    weights = rng.standard_normal((inputs, outputs)) / np.sqrt(inputs)
    return nw.Regression(x, np.tanh(x @ weights) + 0.05 * rng.standard_normal((200, outputs)))


def low_rank(size: int, rank: int, seed: int) -> np.ndarray:
    """A matrix with singular values 1, 1/2, ..., times its size: entries are of order 1."""
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, rank)))[0] for _ in range(2))
    return size * (left / np.arange(1, rank + 1)) @ right.T


def entries() -> nw.Entries:
    """All entries of a matrix of rank 2."""
    return nw.Entries(low_rank(20, 2, 5))


def measurements() -> nw.Sensing:
    """Gaussian measurements of a matrix of rank 2."""
    rng = np.random.default_rng(6)
    operators = rng.standard_normal((300, 10, 10)) / 10
    return nw.Sensing(operators, np.tensordot(operators, low_rank(10, 2, 6), 2))


FIG_1 = Setting("Fig. 1", tanh_curve, 5e-3, 1 / 200**2, 200, 200, bias=True, seeds=5)
SETTINGS = (
    FIG_1,
    Setting("five inputs", partial(gaussian_inputs, 5, 1, 1), 5e-3, 1e-3, 100, 60, inputs=5),
    Setting("three outputs", partial(gaussian_inputs, 6, 3, 2), 5e-3, 1e-3, 100, 100, inputs=6,
            outputs=3, activation="sin"),
    Setting("gelu", partial(gaussian_inputs, 3, 1, 3), 2e-2, 1e-3, 100, 100, inputs=3,
            activation="gelu"),
    Setting("silu", partial(gaussian_inputs, 3, 2, 4), 1e-1, 1e-4, 80, 80, inputs=3, outputs=2,
            activation="silu"),
    Setting("narrow", tanh_curve, 2e-2, 1e-4, 50, 50, bias=True),
    Setting("entries", entries, 5e-2, 1e-3, 60, 60, inputs=20, outputs=20,
            activation="linear"),
    Setting("sensing", measurements, 5e-2, 1e-3, 40, 40, inputs=10, outputs=10,
            activation="linear"),
)  # fmt: skip
QUICK = Setting(
    "five inputs", partial(gaussian_inputs, 5, 1, 1), 2e-2, 1e-3, 20, 12, inputs=5, seeds=1
)
