r"""Fig. 1: the loss through the plateau, and the directions of the weights before and after.

The end of the plateau is predicted from the initial weights. As in the paper, the run is repeated
from shortly before this point with a tenth of the learning rate, which resolves the fall of the
loss.
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ..indicators import cosine_similarity
from ..networks import (
    MLP,
    EffectiveModel,
    Run,
    gradient_descent,
    predict_escape,
)
from ._defaults import RESTART, SLOWER
from ._result import Experiment, require_effective_model, require_sound
from ._setting import LOSS, TanhSetting

# The repeated run starts at this share of the predicted crossing at the latest.
_LATEST = 0.92
# The first run ends beyond the predicted crossing by this share of it; the repeated run ends when
# the loss has fallen to this share.
_BEYOND, _FALLEN = 0.04, 0.02


def _first_layer(network: MLP, model: EffectiveModel | None) -> Array:
    del model
    return network.weights[0]


_OBSERVE = {"w1": _first_layer}


def _similarity(rows: np.ndarray) -> np.ndarray:
    return np.asarray(cosine_similarity(jnp.asarray(rows)))


def _stops(first: int, last: int, crossing: float, num: int) -> np.ndarray:
    """Iterations of the records: evenly spaced, with more of them near the crossing."""
    near = max(0.01 * crossing, 50.0)
    dense = np.linspace(crossing - near, crossing + near, num)
    stops = np.concatenate([np.linspace(first, last, num), dense, [crossing]])
    return np.unique(np.clip(stops.round().astype(np.int64), first, last))


def figure_1(
    setting: TanhSetting,
    *,
    restart: int = RESTART,
    checkpoint: Path | None = None,
    num_records: int = 200,
    progress: bool = True,
) -> Experiment:
    r"""Train through the plateau, from the initial weights and again from shortly before its end.

    **Arguments:** `setting`; `restart`, the iteration from which the first network is trained again
    at a tenth of the learning rate: by default the iteration of the paper, and at most 0.92 of the
    predicted crossing; `checkpoint`, a folder for checkpoints, from which an interrupted run
    continues; `num_records`, records of a run; `progress`, whether to show progress bars.

    **Returns:** an `Experiment` with the arrays

    - `iterations`, `loss` (seeds, records): the records of the runs;
    - `predicted`, `observed` (seeds,): the iteration at which the loss falls below 90 %, predicted
      from the initial weights and observed; `blowup` (seeds,): $T^*$ in iterations;
    - `effective_iterations`, `effective_loss` (points,): the prediction for the first network;
    - `again_iterations`, `again_loss` (records,): the repeated run, in its own iterations counted
      from `restart`;
    - `similarity_start`, `similarity_condensed` ($m$, $m$): cosines of the rows of $W^1$ at the
      start and at the last record before the loss has fallen to 90 %, for the first network.

    **Raises:** `ValueError` if the effective model does not hold for the setting.
    """
    networks, data = setting.networks(), setting.data
    rate = setting.learning_rate
    escape = predict_escape(networks, data, rate, loss=LOSS)
    require_effective_model(escape, setting.deviation)
    predicted = escape.crossing_iteration
    last = int(np.ceil((1 + _BEYOND) * predicted.max()))
    restart = min(restart, int(_LATEST * predicted[0]))

    def folder(name: str) -> Path | None:
        return None if checkpoint is None else checkpoint / name

    def train(networks: MLP, rate: float, first: int, last: int, **further: Any) -> Run:
        run = gradient_descent(
            networks,
            data,
            rate,
            num_steps=last - first,
            first_iteration=first,
            loss=LOSS,
            observe=_OBSERVE,
            progress=progress,
            **further,
        )
        require_sound(run)
        return run

    stops = np.unique(
        np.concatenate([_stops(0, last, crossing, num_records) for crossing in predicted])
    )
    early = train(networks, rate, 0, restart, record=stops, checkpoint=folder("plateau"))
    late = train(early.network, rate, restart, last, record=stops, checkpoint=folder("escape"))
    left = int(SLOWER * (predicted[0] - restart))
    again = train(
        jax.tree.map(lambda x: x[0], early.network),
        rate / SLOWER,
        restart,
        restart + 2 * left,
        record=_stops(restart, restart + 2 * left, restart + left, num_records),
        until=_FALLEN,
        checkpoint=folder("again"),
    )
    iterations, loss, w1 = (
        np.concatenate([x, y[:, 1:]], axis=1)
        for x, y in (
            (early.iterations, late.iterations),
            (early.loss, late.loss),
            (early["w1"], late["w1"]),
        )
    )
    before = int(np.flatnonzero(loss[0] >= 0.9 * loss[0, 0])[-1])
    arrays = {
        "iterations": iterations,
        "loss": loss,
        "predicted": predicted,
        "observed": late.crossings[0.9],
        "blowup": escape.iteration,
        "effective_iterations": escape.iterations(escape.clock[0]),
        "effective_loss": escape.network_loss[0],
        "again_iterations": again.iterations,
        "again_loss": again.loss,
        "similarity_start": _similarity(w1[0, 0]),
        "similarity_condensed": _similarity(w1[0, before]),
        "condensed_iteration": iterations[0, before],
    }
    return Experiment("1", arrays, {**setting.as_dict(), "restart": restart, "slower": SLOWER})
