"""The distribution of the blow-up time."""

import math

import numpy as np
from matplotlib.figure import Figure

from ..study import StudyResult


def histogram(result: StudyResult) -> Figure:
    r"""The distribution of $\sqrt q\,T^*$ over the samples of a study.

    The infinite-width value and the mean with its standard error are marked. A tail beyond the 0.1
    and 99.9 % quantiles is left out and counted in the axis label.

    **Raises:** `ValueError` if no sample has a finite blow-up time.
    """
    study, summary = result.study, result.summary()
    if summary.count == 0:
        raise ValueError("No sample has a finite blow-up time: there is nothing to plot.")
    values = math.sqrt(study.q) * np.asarray(result.blow_up.time, np.float64)[result.known]
    low = np.quantile(values, 0.001, method="lower")
    high = np.quantile(values, 0.999, method="higher")
    shown = values[(values >= low) & (values <= high)]
    figure = Figure(figsize=(5.2, 3.4), dpi=160, layout="constrained")
    axes = figure.subplots()
    bins = int(np.clip(2 * shown.size ** (1 / 3), 8, 120))
    # At enormous widths the values agree to rounding, and bins need some width.
    least = 1e3 * np.finfo(np.float64).eps * high
    span = (low, high) if high - low > least else (low - least, high + least)
    style = {"color": "0.75", "edgecolor": "0.45", "linewidth": 0.4}
    axes.hist(shown, bins=bins, range=span, density=True, **style)
    mean = f"mean {summary.scaled_mean:.5g}"
    if summary.count > 1:
        mean += f" ± {summary.scaled_error:.1g}"
    axes.axvline(summary.scaled_mean, color="C0", linewidth=1.4, label=mean)
    if math.isfinite(summary.limit):
        limit = f"infinite width {summary.limit:.6g}"
        axes.axvline(summary.limit, color="C3", linewidth=1.4, linestyle="--", label=limit)
    hidden = values.size - shown.size
    note = f"  ({hidden} of {values.size} beyond the axis)" if hidden else ""
    axes.set_xlabel(rf"rescaled blow-up time $\sqrt{{q}}\,T^*${note}")
    axes.set_ylabel("probability density")
    scales = "" if study.scales == (1.0, 1.0, 1.0) else f", scales {study.scales}"
    axes.set_title(
        f"width {study.p} × {study.q}{scales}, {study.num_samples} samples, seed {study.seed}",
        fontsize=9,
    )
    axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
