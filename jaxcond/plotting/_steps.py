"""Steps of the loss of a linear network, with the rising singular values."""

from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from ..networks import Steps

_COLOURS = colormaps["viridis"]


def loss_steps(
    steps: "Steps", *, observed: tuple[ArrayLike, ArrayLike] | None = None, title: str = ""
) -> Figure:
    """The loss (a) and the singular values (b) of a linear network, with the predicted steps.

    **Arguments:** `steps`, of one network; `observed`, iterations (training times where `steps` has
    no learning rate) and losses of a training run, drawn as dots; `title`, a description of the
    network.

    **Raises:** `ValueError` for steps of many networks.
    """
    if steps.status.ndim:
        raise ValueError("Argument `steps` must be that of one network, but is that of many.")
    at = steps.times if steps.learning_rate is None else steps.iterations(steps.times)
    rises = steps.rise if steps.learning_rate is None else steps.rise_iteration
    figure = Figure(figsize=(7.2, 2.8), dpi=200, layout="constrained")
    loss, values = figure.subplots(1, 2, sharex=True)
    loss.plot(at, steps.loss, color="#4c72b0", linewidth=1.2, label="predicted")
    if observed is not None:
        loss.plot(*observed, "k.", markersize=3, label="training")
    for i, rise in enumerate(rises):
        colour = _COLOURS(0.85 * i / max(len(rises) - 1, 1))
        values.plot(
            at, steps.singular_values[:, i], color=colour, linewidth=1.2, label=f"$\\sigma_{i + 1}$"
        )
        if np.isfinite(rise):
            for axes in (loss, values):
                axes.axvline(rise, color=colour, linewidth=0.7, linestyle=":")
    loss.set_ylabel("loss", fontsize=8)
    values.set_ylabel("singular values of $W_L\\cdots W_1$", fontsize=8)
    unit = "training time $t$" if steps.learning_rate is None else "iteration"
    for axes, letter in ((loss, "a"), (values, "b")):
        axes.set_ylim(bottom=0)
        axes.set_xlabel(unit, fontsize=8)
        axes.set_title(letter, loc="left", fontsize=9, fontweight="bold")
        axes.tick_params(labelsize=7)
        axes.legend(fontsize=7, frameon=False)
    loss.set_title(title, fontsize=8)
    return figure
