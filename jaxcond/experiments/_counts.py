r"""Figs. 2a and 2b: how many inequalities of the final stage hold while a network trains.

At one output, condition 1 consists of the $p + q$ inequalities $c_l\, a^Tb^l > 0$ and
$a_k\, b_kc > 0$. They are evaluated for the network, and along the effective trajectory from the
same initial weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import equinox as eqx
import jax
import numpy as np

from .._trajectory import trajectory
from ..networks import (
    MLP,
    Run,
    effective_model,
    gradient_descent,
    gradient_flow,
    predict_escape,
)
from ..networks._lanes import stacked, unstacked
from ._defaults import ALPHAS
from ._result import Experiment, read_experiment, require_effective_model, require_sound
from ._setting import LOSS, TanhSetting

_OBSERVE = ("positive_1", "undecided_1")
_CLOSEST = 1e-3
# Runs end beyond T* by this share of it.
_BEYOND = 0.05


def _effective_counts(
    networks: MLP, setting: TanhSetting, num: int
) -> tuple[np.ndarray, np.ndarray]:
    """Training times and counts of the effective model, evenly spaced in log(T* - t)."""
    model = effective_model(networks, setting.data, LOSS)
    fractions = 1 - np.geomspace(1, _CLOSEST, num)

    @eqx.filter_jit
    def count(network: MLP) -> tuple[jax.Array, jax.Array]:
        path = trajectory(model.to_state(network), closeness=0.5 * _CLOSEST)
        times = path.times_of(fraction=fractions)
        return times / model.rate, path.condition(1, times).positive

    times, positive = stacked([count(network) for network in unstacked(networks)])
    return np.asarray(times), np.asarray(positive)


def figure_2a(
    setting: TanhSetting,
    *,
    method: Literal["descent", "flow"] = "descent",
    checkpoint: Path | None = None,
    num_records: int = 200,
    progress: bool = True,
) -> Experiment:
    r"""Positive counts of condition 1 through training, of the network and of the effective model.

    **Arguments:** `setting`; `method`, gradient descent as in the paper or gradient flow, which is
    much faster; `checkpoint`, for descent only, a folder for checkpoints, from which an interrupted
    run continues; `num_records`, records of a run; `progress`, whether to show progress bars.

    **Returns:** an `Experiment` with the arrays

    - `times` (seeds, records), in units of the predicted crossing of 90 % of the loss; `positive`,
      `undecided`, `loss` of the same shape: of the network;
    - `effective_times`, `effective_positive` (seeds, records): of the effective model;
    - `crossing` (seeds,): the crossing in iterations.

    **Raises:** `ValueError` for another method, and for checkpoints of a flow.
    """
    if method not in ("descent", "flow"):
        raise ValueError(f"Argument `method` must be 'descent' or 'flow', but is {method!r}.")
    if method == "flow" and checkpoint is not None:
        raise ValueError(
            "Argument `checkpoint` needs `method='descent'`: flows keep no checkpoints."
        )
    networks, data, rate = setting.networks(), setting.data, setting.learning_rate
    escape = predict_escape(networks, data, rate, loss=LOSS)
    require_effective_model(escape, setting.deviation)
    longest = (1 + _BEYOND) * float(np.max(np.asarray(escape.blowup.time)))
    # Evenly spaced in t, and evenly spaced in log(T* - t).
    shares = np.unique(
        np.concatenate([np.linspace(0, 1 + _BEYOND, num_records),
                        1 - np.geomspace(1, _CLOSEST, num_records)])
    )  # fmt: skip
    times = np.unique(np.outer(np.asarray(escape.blowup.time), shares))
    if method == "descent":
        run = gradient_descent(
            networks,
            data,
            rate,
            num_steps=int(np.ceil(longest / rate)),
            loss=LOSS,
            record=np.unique((times / rate).astype(np.int64)),
            observe=_OBSERVE,
            checkpoint=checkpoint,
            progress=progress,
        )
    else:
        run = gradient_flow(
            networks, data, longest, loss=LOSS, rtol=1e-8, observe=_OBSERVE, progress=progress
        )
    require_sound(run)
    effective_times, effective = _effective_counts(networks, setting, num_records)
    crossing = escape.crossing[:, None]
    arrays = {
        "times": run.times / crossing,
        "positive": run["positive_1"],
        "undecided": run["undecided_1"],
        "loss": run.loss,
        "effective_times": effective_times / crossing,
        "effective_positive": effective,
        "crossing": escape.crossing_iteration,
    }
    return Experiment("2a", arrays, {**setting.as_dict(), "method": method})


def figure_2b(
    setting: TanhSetting,
    *,
    alphas: Sequence[float] = ALPHAS,
    checkpoint: Path | None = None,
    progress: bool = True,
) -> Experiment:
    r"""The largest count of condition 1 in training against $\alpha$, $\varepsilon = m^{-\alpha}$.

    The networks follow the gradient flow, because the plateau of gradient descent grows like
    $m^{\alpha}$. A run ends when the loss has fallen to a tenth, or at three times the blow-up time
    of the effective model.

    **Arguments:** `setting`, whose `std` is not used; `alphas`, the exponents; `checkpoint`, a
    folder in which the result of each exponent is kept, so that an interrupted run continues with
    the next one; `progress`, whether to show progress bars.

    **Returns:** an `Experiment` with the arrays

    - `alpha` (num,), `std` (num,): $\alpha$ and $\varepsilon$;
    - `largest`, `at_crossing`, `first` (num, seeds): the largest count, the count when the loss
      falls below 90 %, and the count of the initial weights; `total`: the number of inequalities;
    - `blowup` (num, seeds): $T^*$ in iterations at the learning rate of the setting.

    **Raises:** `ValueError` if a file in the folder holds the result of other settings.
    """
    if checkpoint is not None:
        checkpoint.mkdir(parents=True, exist_ok=True)
    rows = [_counts_of_exponent(setting, float(alpha), checkpoint, progress) for alpha in alphas]
    arrays = {name: np.stack([row[name] for row in rows]) for name in rows[0].arrays}
    arrays["total"] = np.asarray(2 * setting.width)
    return Experiment("2b", arrays, setting.as_dict() | {"std": None})


def _counts_of_exponent(
    setting: TanhSetting, alpha: float, folder: Path | None, progress: bool
) -> Experiment:
    """The point of Fig. 2b at one exponent, from the folder if it was computed before."""
    std = float(setting.width**-alpha)
    settings = setting.as_dict() | {"std": std}
    path = None if folder is None else folder / f"alpha_{alpha:.17g}.npz"
    if path is not None and path.exists():
        kept = read_experiment(path)
        if {name: kept.settings.get(name) for name in settings} != settings:
            raise ValueError(f"File {path} holds the result of other settings: use another folder.")
        return kept
    networks = setting.networks(std)
    time = np.asarray(predict_escape(networks, setting.data, loss=LOSS).blowup.time)
    run = gradient_flow(
        networks,
        setting.data,
        float(3 * np.max(time)),
        loss=LOSS,
        observe=_OBSERVE,
        until=0.1,
        progress=progress,
    )
    positive = run["positive_1"]
    arrays = {
        "alpha": np.asarray(alpha),
        "std": np.asarray(std),
        "largest": np.nanmax(positive, axis=1),
        "at_crossing": np.asarray(_counts_at(run, positive)),
        "first": positive[:, 0],
        "blowup": time / setting.learning_rate,
    }
    point = Experiment("2b", arrays, settings)
    if path is not None:
        point.save(path)
    return point


def _counts_at(run: Run, positive: np.ndarray) -> list[float]:
    """The counts at the last record before the loss falls below 90 %; NaN if it does not fall."""
    counts = []
    for row, times, crossing in zip(positive, run.times, run.crossings[0.9], strict=True):
        before = np.flatnonzero(times <= crossing)
        counts.append(row[before[-1]] if before.size else np.nan)
    return counts
