"""Maps of cosine similarity."""

import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure


def order_of(similarity: np.ndarray) -> np.ndarray:
    """Neurons in the order of the leading eigenvector of their similarities, masked ones last."""
    known = np.flatnonzero(~np.isnan(np.diagonal(similarity)))
    block = similarity[np.ix_(known, known)]
    leading = np.linalg.eigh(block)[1][:, -1] if known.size else np.zeros(0)
    masked = np.setdiff1d(np.arange(similarity.shape[0]), known)
    return np.concatenate([known[np.argsort(leading, kind="stable")], masked])


def similarity_map(
    similarity: Float[Array | np.ndarray, "q q"], *, ordered: bool = True, title: str = ""
) -> Figure:
    r"""The matrix of cosine similarities of neurons, as a heat map.

    Condensed neurons show as blocks of $\pm1$: with neurons in the order of the leading eigenvector
    of the matrix, as two blocks on the diagonal for the two signs of one direction.

    **Arguments:** `similarity`, as from `jaxcond.cosine_similarity`, NaN for neurons whose weights
    vanish: these come last and are hatched; `ordered`, whether to reorder the neurons.

    **Raises:** `ValueError` for a matrix that is not square.
    """
    values = np.asarray(similarity, np.float64)
    if values.ndim != 2 or values.shape[0] != values.shape[1] or values.size == 0:
        raise ValueError(
            f"Argument `similarity` must be a square matrix, but has shape {values.shape}."
        )
    if ordered:
        order = order_of(values)
        values = values[np.ix_(order, order)]
    figure = Figure(figsize=(3.4, 3.0), dpi=200, layout="constrained")
    axes = figure.subplots()
    count = values.shape[0]
    axes.set_facecolor("0.85")
    axes.patch.set(hatch="////", edgecolor="0.6")
    # Lightness grows with the value, so that the sign shows in grey too.
    image = axes.imshow(
        np.ma.masked_invalid(values),
        cmap="viridis",
        vmin=-1,
        vmax=1,
        interpolation="nearest",
        extent=(0.5, count + 0.5, count + 0.5, 0.5),
    )
    bar = figure.colorbar(image, ax=axes, ticks=[-1, -0.5, 0, 0.5, 1])
    bar.set_label("cosine similarity", fontsize=8)
    bar.ax.tick_params(labelsize=7)
    name = "neuron, by leading eigenvector" if ordered else "neuron"
    axes.set_xlabel(name, fontsize=8)
    axes.set_ylabel(name, fontsize=8)
    axes.tick_params(labelsize=7)
    if title:
        axes.set_title(title, fontsize=8)
    return figure
