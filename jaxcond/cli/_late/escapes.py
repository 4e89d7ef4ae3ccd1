"""Predictions over seeds, and how they are told."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from ... import networks
from ...networks import Escape, EscapeStatus

# Points along each trajectory: a quarter of the default moves crossings by less than 1e-4.
_POINTS = 100


def over_seeds(
    data: networks.Regression, arguments: argparse.Namespace, changes: Mapping[str, Any]
) -> Escape:
    """The predictions for networks of all seeds, with some settings changed."""
    settings = {**vars(arguments), **changes}
    outputs = settings["outputs"] or data.y.shape[1]
    sizes = (data.x.shape[1], *settings["hidden"], outputs)

    def draw(seed: jax.Array) -> networks.MLP:
        return networks.MLP.random(
            sizes,
            key=jax.random.key(seed),
            std=settings["std"],
            exponent=settings["exponent"],
            activation=settings["activation"],
            bias={"none": False, "input": "input", "all": True}[settings["bias"]],
        )

    seeds = settings["seed"] + jax.numpy.arange(settings["seeds"])
    return networks.predict_escape(
        jax.vmap(draw)(seeds),
        data,
        settings["learning_rate"],
        loss=settings["loss"],
        fraction=settings["fraction"],
        level=settings["level"],
        num=_POINTS,
    )


def numbers(known: np.ndarray, escape: Escape) -> list[str]:
    """Median, quartiles, extremes and the correction of those that are predicted."""
    if not known.size:
        return ["–"] * 5
    low, median, high = np.percentile(known, (25, 50, 75))
    correction = 100 * float(np.median(escape.correction[escape.status == 0]))
    return [
        f"{median:,.0f}",
        f"{low:,.0f} to {high:,.0f}",
        f"{known.min():,.0f}",
        f"{known.max():,.0f}",
        f"{correction:+.2g} %",
    ]


def with_gaps(escape: Escape) -> np.ndarray:
    """Iterations of all networks, NaN where none is predicted."""
    return np.where(escape.status == 0, escape.crossing_iteration, np.nan)


def names(escape: Escape) -> list[str]:
    """The statuses by name."""
    return [EscapeStatus(int(code)).name.lower() for code in escape.status]


def reasons(escapes: Sequence[Escape]) -> list[str]:
    """Why networks have no prediction, one line for each reason."""
    codes = np.concatenate([escape.status for escape in escapes])
    found, counts = np.unique(codes[codes != EscapeStatus.PREDICTED], return_counts=True)
    return [
        f"{count} without a prediction: {EscapeStatus(int(code)).meaning}."
        for code, count in zip(found, counts, strict=True)
    ]
