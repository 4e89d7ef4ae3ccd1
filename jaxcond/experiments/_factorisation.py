r"""Fig. 3: factorisation $W^3W^2W^1$ of a matrix of rank two.

The target is $\mathrm{diag}(1, -1, 0, \dots, 0)$, and all its entries are observed. The weights
start as $N(0, \varepsilon^2)$ with $\varepsilon = m^{-3}$ and follow the gradient flow. The
effective model has rank two with equal strengths.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ..indicators import CONDITIONS
from ..networks import MLP, Entries, gradient_flow, predict_escape
from ._result import Experiment

_OBSERVE = (
    "singular_values",
    *(f"{what}_{number}" for number in CONDITIONS for what in ("positive", "undecided")),
)
# A run ends beyond T* by this share of it, or when the loss has fallen to this share.
_BEYOND, _FALLEN = 1.0, 1e-6


def figure_3(
    *,
    width: int = 100,
    std: float | None = None,
    seed: int = 0,
    num_seeds: int = 1,
    progress: bool = True,
) -> Experiment:
    r"""Loss, singular values and counts of the final stage through a matrix factorisation.

    **Arguments:** `width`, $m$ of all layers and of the matrix; `std`, by default $m^{-3}$; `seed`
    and `num_seeds`, networks have the seeds `seed`, `seed + 1`, ...; `progress`, whether to show
    progress bars.

    **Returns:** an `Experiment` with the arrays

    - `times` (seeds, records), in units of the predicted crossing of 90 % of the loss; `loss`,
      `singular_values` (seeds, records, 4);
    - `positive_1` ... `positive_3` and `undecided_1` ... (seeds, records): counts of the conditions
      of the final stage at rank two; `totals` (3,): the numbers of their inequalities;
    - `effective_times`, `effective_loss` (seeds, points): the prediction by the effective model;
    - `crossing`, `predicted` (seeds,): the observed and the predicted crossing of 90 %, in training
      time; `blowup` (seeds,): $T^*$ in training time.

    **Raises:** `ValueError` for a width below 2.
    """
    if width < 2:
        raise ValueError(f"Argument `width` must be at least 2, but is {width}.")
    deviation = float(width) ** -3 if std is None else std
    target = jnp.diag(jnp.zeros(width).at[:2].set(jnp.asarray([1.0, -1.0])))
    networks = jax.vmap(
        lambda s: MLP.random(
            (width,) * 4, key=jax.random.key(s), std=deviation, activation="linear"
        )
    )(seed + jnp.arange(num_seeds))
    data = Entries(target)
    escape = predict_escape(networks, data)
    time = np.asarray(escape.blowup.time)
    run = gradient_flow(
        networks,
        data,
        float((1 + _BEYOND) * np.max(time)),
        observe=_OBSERVE,
        # Tighter than the loss needs, for more records.
        rtol=1e-9,
        until=_FALLEN,
        progress=progress,
    )
    crossing = run.crossings[0.9][:, None]
    counts = {name: run[name] for name in _OBSERVE[1:]}
    arrays = {
        "times": run.times / crossing,
        "loss": run.loss,
        "singular_values": run["singular_values"],
        **counts,
        "totals": np.asarray([4 * width, 4 * width**2, 4 * width**2]),
        "effective_times": escape.clock / crossing,
        "effective_loss": escape.network_loss,
        "crossing": crossing[:, 0],
        "predicted": escape.crossing,
        "blowup": time,
    }
    settings = {"width": width, "std": deviation, "seed": seed, "num_seeds": num_seeds}
    return Experiment("3", arrays, settings)
