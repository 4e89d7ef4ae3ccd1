"""Predictions of when networks leave their plateau, as the samples of a study."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from .. import networks
from ..sampling import sample_key
from ._axes import AXES
from ._checks import choice, real, whole

ESCAPE_KEYS = (
    "data", "targets", "outputs", "width", "depth", "std", "exponent", "activation", "bias", "loss",
    "learning_rate", "fraction",
)  # fmt: skip
_BIAS: dict[str, bool | Literal["input"]] = {"none": False, "input": "input", "all": True}
# Networks per call, padded with copies of the last one; and points per trajectory. A third of the
# default number of points moves the crossings by less than 1e-5.
_TOGETHER, _POINTS = 32, 32


@dataclass(frozen=True)
class Training:
    """The checked settings of one sweep point of an `escape` study.

    The standard deviation of the weights is either `std` or `width**-exponent`.
    """

    data: str
    targets: int
    outputs: int | None
    width: int
    depth: int
    std: float | None
    exponent: float | None
    activation: str
    bias: str
    loss: str
    learning_rate: float
    fraction: float

    @property
    def deviation(self) -> float:
        """The standard deviation of the weights."""
        if self.std is not None:
            return self.std
        assert self.exponent is not None
        return float(self.width) ** -self.exponent

    def samples(self) -> networks.Regression:
        """The training samples, cached after the first read.

        **Raises:** as `networks.read_samples`.
        """
        return _read(self.data, self.targets, Path(self.data).stat().st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read(path: str, targets: int, changed: int) -> networks.Regression:
    del changed  # part of the cache key: a file that changed is read again
    return networks.read_samples(path, targets)


def read_training(keys: Mapping[str, Any], where: Callable[[str], str]) -> Training:
    """The settings of a sweep point.

    **Arguments:** `where`: maps a key to its full name.

    **Raises:** `ValueError` that names the key.
    """
    given = {name: AXES[name].check(where(name), keys[name]) for name in AXES if name in keys}
    for name in ("data", "learning_rate"):
        if name not in given:
            raise ValueError(f"Key `{where(name)}` is missing: an escape ensemble needs it.")
    if ("std" in given) == ("exponent" in given):
        raise ValueError(
            f"Key `{where('std')}` or `{where('exponent')}` must be given, and not both."
        )
    outputs = keys.get("outputs")
    return Training(
        data=str(Path(given["data"]).absolute()),
        targets=whole(where("targets"), keys.get("targets", 1)),
        outputs=None if outputs is None else whole(where("outputs"), outputs),
        width=given.get("width", 100),
        depth=given.get("depth", 3),
        std=given.get("std"),
        exponent=given.get("exponent"),
        activation=choice(
            where("activation"), keys.get("activation", "tanh"), tuple(networks.ACTIVATIONS)
        ),
        bias=choice(where("bias"), keys.get("bias", "none"), tuple(_BIAS)),
        loss=given.get("loss", "half_mse"),
        learning_rate=given["learning_rate"],
        fraction=_fraction(where("fraction"), keys.get("fraction", 0.9)),
    )


def _fraction(key: str, value: Any) -> float:
    if real(key, value, most=1.0) == 1:
        raise ValueError(f"Key `{key}` must be below 1, but is {value}.")
    return float(value)


@eqx.filter_jit
def _draw(
    activation: str,
    bias: str,
    sizes: tuple[int, ...],
    std: Float[Array, ""],
    key: PRNGKeyArray,
    indices: Integer[Array, " n"],
) -> networks.MLP:
    def one(index: Integer[Array, ""]) -> networks.MLP:
        return networks.MLP.random(
            sizes,
            key=sample_key(key, index),
            std=std,
            activation=activation,
            bias=_BIAS[bias],
        )

    return jax.vmap(one)(indices)


def predict(
    training: Training,
    indices: np.ndarray,
    key: PRNGKeyArray,
    progress: Callable[[int], None],
) -> dict[str, np.ndarray]:
    """The fields of the store for the networks with the given indices.

    **Arguments:** `key`: random key of the sweep point; a network depends only on this key and its
    index.
    """
    data = training.samples()
    outputs = data.y.shape[1] if training.outputs is None else training.outputs
    sizes = (data.x.shape[1], *(training.width,) * (training.depth - 1), outputs)
    std = jnp.asarray(training.deviation)
    pieces = []
    for first in range(0, indices.size, _TOGETHER):
        piece = indices[first : first + _TOGETHER]
        padded = jnp.asarray(np.pad(piece, (0, _TOGETHER - piece.size), mode="edge"))
        drawn = _draw(training.activation, training.bias, sizes, std, key, padded)
        # CPUs solve networks one by one; other devices need a batch of fixed size.
        count = piece.size if jax.default_backend() == "cpu" else _TOGETHER
        escape = networks.predict_escape(
            jax.tree.map(lambda leaf, n=count: leaf[:n], drawn),
            data,
            training.learning_rate,
            loss=training.loss,
            fraction=training.fraction,
            num=_POINTS,
        )
        pieces.append({name: x[: piece.size] for name, x in _fields(escape).items()})
        progress(piece.size)
    return {name: np.concatenate([fields[name] for fields in pieces]) for name in pieces[0]}


def _fields(escape: networks.Escape) -> dict[str, np.ndarray]:
    blowup = escape.blowup
    return {
        "blowup_time": np.asarray(blowup.time),
        "lower": np.asarray(blowup.lower),
        "upper": np.asarray(blowup.upper),
        "error": np.asarray(blowup.error),
        "status": np.asarray(blowup.status),
        "num_steps": np.asarray(blowup.num_steps),
        "stage": np.asarray(blowup.stage),
        "crossing": np.asarray(escape.crossing_iteration),
        "correction": np.asarray(escape.correction),
        "escape_status": np.asarray(escape.status),
        "limit": np.asarray(escape.limit),
    }
