"""Maps of cosine similarity."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

DIVERGING = "RdBu_r"
"""The colours of quantities of either sign: white is zero."""


def order_of(similarity: np.ndarray) -> np.ndarray:
    """The order of neurons by the leading eigenvector of their similarities, masked ones last."""
    unmasked = np.flatnonzero(~np.isnan(np.diagonal(similarity)))
    block = similarity[np.ix_(unmasked, unmasked)]
    leading = np.linalg.eigh(block)[1][:, -1] if unmasked.size else np.zeros(0)
    masked = np.setdiff1d(np.arange(similarity.shape[0]), unmasked)
    return np.concatenate([unmasked[np.argsort(leading, kind="stable")], masked])


def similarity_map(
    *similarities: Float[Array | np.ndarray, "q q"],
    ordered: bool = True,
    titles: Sequence[str] = (),
) -> Figure:
    r"""Matrices of cosine similarities of the same neurons, as heat maps side by side.

    Condensed neurons form blocks of $\pm1$. In the order of the leading eigenvector of the matrix,
    the two signs of one direction are two blocks on the diagonal.

    **Arguments:**

    - `similarities`: one matrix for each map, as from `jaxcond.indicators.cosine_similarity`, such
      as before and after training. Rows of NaN, of neurons whose weights vanish, are hatched.
    - `ordered`: whether to reorder the neurons, in the same way in all maps: by the last matrix,
      with the neurons without weights at the end.
    - `titles`: one for each map.

    **Raises:** `ValueError` for matrices that are not square and of one size, and for another
    number of titles.
    """
    maps = [np.asarray(similarity, np.float64) for similarity in similarities]
    shapes = [values.shape for values in maps]
    square = all(len(shape) == 2 and shape[0] == shape[1] > 0 for shape in shapes)
    if not maps or not square or len(set(shapes)) > 1:
        raise ValueError(f"Similarities must be square matrices of one size, but are {shapes}.")
    if titles and len(titles) != len(maps):
        raise ValueError(f"{len(maps)} maps need as many titles, but got {len(titles)}.")
    if ordered:
        order = order_of(maps[-1])
        maps = [values[np.ix_(order, order)] for values in maps]
    figure = Figure(figsize=(0.7 + 2.7 * len(maps), 3.0), dpi=200, layout="constrained")
    panels = figure.subplots(1, len(maps), sharey=True, squeeze=False)[0]
    count = maps[0].shape[0]
    name = "neuron, by leading eigenvector" if ordered else "neuron"
    images = [
        axes.imshow(
            np.ma.masked_invalid(values),
            cmap=DIVERGING,
            vmin=-1,
            vmax=1,
            interpolation="nearest",
            extent=(0.5, count + 0.5, count + 0.5, 0.5),
        )
        for axes, values in zip(panels, maps, strict=True)
    ]
    for axes in panels:
        axes.set_facecolor("0.85")
        axes.patch.set(hatch="////", edgecolor="0.6")
        axes.set_xlabel(name, fontsize=8)
        axes.tick_params(labelsize=7)
    panels[0].set_ylabel(name, fontsize=8)
    for axes, title in zip(panels, titles, strict=False):
        axes.set_title(title, fontsize=8)
    bar = figure.colorbar(images[-1], ax=list(panels), ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label("cosine similarity", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    return figure
