r"""Gradient descent, and any other optimiser of optax.

$$\theta_{k+1} = \theta_k - \eta_k \nabla R(\theta_k)$$

A compiled loop on the device takes the steps and the records. A loop on the host around it saves
checkpoints and shows progress. Neither records nor checkpoints nor progress change the numbers.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PRNGKeyArray

from .. import networks
from ._batches import AbstractBatches, AllSamples, Batches, Permuted, Stream
from ._data import AbstractData, Regression, check_trainable
from ._loop import Loop
from ._losses import Loss, LossFunction, resolve_loss
from ._modules import MLP
from ._observe import Observable, model_where_it_applies, resolve_observables
from ._progress import training_bar
from ._run import Run
from ._schedule import LearningRate
from ._steps import Crew, Problem, starting_lanes


def record_stops(record: int | Sequence[int] | np.ndarray, first: int, last: int) -> np.ndarray:
    """The iterations of the records: evenly spaced, or those of a list within the run, always with
    the first and the last one.

    **Raises:** `ValueError` for fewer than two, or for a list without an iteration in the run.
    """
    if isinstance(record, int | np.integer):
        if record < 2:
            raise ValueError(f"Argument `record` must be at least 2, but is {record}.")
        return np.unique(np.linspace(first, last, int(record)).round().astype(np.int64))
    stops = np.unique(np.asarray(record))
    if not np.issubdtype(stops.dtype, np.integer):
        raise ValueError("Argument `record` must be a number of records or a list of iterations.")
    stops = stops[(stops >= first) & (stops <= last)]
    if not stops.size:
        raise ValueError(f"Argument `record` has no iteration between {first} and {last}.")
    return np.unique(np.concatenate([stops, [first, last]]).astype(np.int64))


def log_spaced(num_steps: int, num: int = 100) -> np.ndarray:
    """About `num` iterations from 0 to `num_steps`, evenly spaced in their logarithm."""
    if num_steps < 1:
        raise ValueError(f"Argument `num_steps` must be positive, but is {num_steps}.")
    return np.unique(np.append(0, np.geomspace(1, num_steps, num).round().astype(np.int64)))


_PLAIN = optax.identity()


def gradient_descent(
    network: MLP,
    data: AbstractData,
    learning_rate: float | Mapping[int, float] | LearningRate | None = None,
    *,
    num_steps: int,
    optimiser: optax.GradientTransformation | None = None,
    loss: str | float | LossFunction | Loss = "half_mse",
    batch_size: int | None = None,
    batches: Batches | None = None,
    key: PRNGKeyArray | None = None,
    record: int | Sequence[int] | np.ndarray = 200,
    observe: Sequence[str] | Mapping[str, Observable] | None = None,
    levels: Sequence[float] = (0.9, 0.5),
    until: float | None = None,
    first_iteration: int = 0,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    progress: bool = True,
) -> Run:
    r"""Train a network, or many at once, by gradient descent or an optimiser of optax.

    $$\theta_{k+1} = \theta_k - \eta_k \nabla R(\theta_k), \qquad
      R = \tfrac1n \textstyle\sum_i \ell(f(x_i), y_i)$$

    **Arguments:**

    - `network`: one network, or many whose weights have a leading axis. On a CPU each of many
      networks has its own loop, one per core; on an accelerator they form one batch.
    - `data`: `Regression`, `Entries` or `Sensing`, converted to the dtype of the network.
    - `learning_rate`: $\eta$, or a mapping of iterations to rates, `{0: 5e-3, 205_000: 5e-4}`.
    - `num_steps`: number of iterations.
    - `optimiser`: any optax optimiser in place of `learning_rate`, as `optax.adam(1e-3)`, or with a
      schedule `optax.sgd(schedule)`. Training times are then NaN.
    - `loss`: a name of `LOSSES` (`"half_mse"`, `"mse"`, `"softmax"`, `"logistic"`), a number
      $\kappa$ for $\kappa\|f-y\|^2$, or a function of the output and the target of one sample.
    - `batch_size`: size of a minibatch, by default all samples. Every epoch goes through a new
      permutation of the samples, which depends only on `key` and the epoch; an incomplete batch at
      the end of an epoch is dropped.
    - `batches`: batches `(x, y)` of one size, one for each iteration, for data that do not fit into
      memory: an iterable, or a function of an iteration that returns the batches from that
      iteration on. `data` are then the samples for records, `until` and `levels`. Up to 64 batches
      are read ahead.
    - `key`: a JAX random key, for minibatches.
    - `record`: the number of evenly spaced records, or the iterations of the records, as from
      `log_spaced`.
    - `observe`: names of observables (see `networks.observe`), or functions by name which take the
      network and its `EffectiveModel` (None where it does not apply) and return an array.
    - `levels`: fractions of the initial loss; `Run.crossings` has the first iteration below each.
    - `until`: end once the loss is below this fraction of the initial one. With minibatches,
      `levels` and `until` use the loss over all samples, which is computed at the records, so that
      the iterations are those of records.
    - `first_iteration`: the number of the first iteration, for a run that continues another one or
      starts from `skip_plateau`; learning rates and records count from 0.
    - `checkpoint`: a folder for checkpoints. If it holds checkpoints of the same run, the run
      resumes from the last sound one, with the numbers of an uninterrupted run. `num_steps`, later
      learning rates and `checkpoint_every` may differ from before, and `record` may omit earlier
      records but not add any. `batches` must then be a function, since an iterator cannot be
      rewound.
    - `checkpoint_every`: iterations between checkpoints, by default a tenth of the run.
    - `progress`: show a bar with loss and time left on a terminal.

    **Returns:** a `Run`.

    **Raises:** `ValueError` for arguments out of range, a network that does not fit the data, a
    loss that is not finite at the start, a batch that does not fit or is not finite (the message
    names its iteration), or checkpoints of another run (which are not touched). `OSError` if a
    checkpoint cannot be written (earlier ones are kept), or if none in the folder is sound.

    **Status:** `STALLED`, with a `StallWarning`, if most weights no longer move because their steps
    are lost to rounding, as in float32 at small standard deviations; the run ends when no weight
    moves. `DIVERGED` if the loss grows a thousandfold or is no longer finite; the run ends and
    keeps the network of the last record before that. `EXHAUSTED`, with an `ExhaustedWarning`, if
    `batches` end before the run; a checkpoint is written at that point.
    """
    check_trainable(network, data)
    _check(num_steps, first_iteration, learning_rate, optimiser)
    every = max(1, num_steps // 10) if checkpoint_every is None else int(checkpoint_every)
    if every < 1:
        raise ValueError(f"Argument `checkpoint_every` must be at least 1, but is {every}.")
    loss = resolve_loss(loss)
    model = model_where_it_applies(network, data, loss)
    observables = resolve_observables(observe, network, model)
    data = data.prepared(network, loss)
    stream = _stream(batches, batch_size, checkpoint, network, data, loss)
    problem = Problem(
        data=data,
        batches=_batches(batch_size, stream, data),
        model=model,
        rate=None if learning_rate is None else LearningRate.of(learning_rate),
        levels=jnp.asarray(levels, network.dtype),
        until=jnp.asarray(0.0 if until is None else until, network.dtype),
        observables=observables,
        sample_loss=loss,
        optimiser=_PLAIN if optimiser is None else optimiser,
    )
    key = jax.random.key(0) if key is None else key
    last = first_iteration + int(num_steps)
    stops = record_stops(record, first_iteration, last)
    crew = Crew(starting_lanes(network, problem, key, first_iteration), problem)
    saved = None
    if checkpoint is not None:
        first_batch = None if stream is None else stream.first(first_iteration)
        saved = networks.Checkpoints(
            Path(checkpoint), network, problem, key, first_iteration, first_batch
        )
    with training_bar(float(first_iteration), float(last), progress) as tell:
        loop = Loop(crew, stops, stream, saved, every, tell)
        loop.run()
    return loop.result(bool(network.batch_shape), levels)


def _check(
    num_steps: int,
    first_iteration: int,
    learning_rate: object | None,
    optimiser: optax.GradientTransformation | None,
) -> None:
    if (learning_rate is None) == (optimiser is None):
        raise ValueError("Give one of `learning_rate` and `optimiser`.")
    if optimiser is not None and not isinstance(optimiser, optax.GradientTransformation):
        raise ValueError(
            "Argument `optimiser` must be an optimiser of optax, as `optax.adam(1e-3)`, but is of "
            f"type {type(optimiser).__name__}."
        )
    if not isinstance(num_steps, int | np.integer) or num_steps < 1:
        raise ValueError(f"Argument `num_steps` must be a positive integer, but is {num_steps}.")
    if first_iteration < 0:
        raise ValueError(f"Argument `first_iteration` must not be negative: {first_iteration}.")


def _stream(
    batches: Batches | None,
    batch_size: int | None,
    checkpoint: str | Path | None,
    network: MLP,
    data: AbstractData,
    loss: Loss,
) -> Stream | None:
    """The caller's batches, if any."""
    if batches is None:
        return None
    if batch_size is not None:
        raise ValueError("Give one of `batch_size` and `batches`.")
    if not isinstance(data, Regression):
        raise ValueError(
            f"With `batches`, argument `data` must be `Regression`, but is `{type(data).__name__}`."
        )
    if not callable(batches) and not hasattr(batches, "__iter__"):
        raise ValueError(
            "Argument `batches` must be an iterable of pairs (x, y) or a function of an iteration "
            f"that returns one, but is of type {type(batches).__name__}."
        )
    if checkpoint is not None and not callable(batches):
        raise ValueError(
            "With `checkpoint`, argument `batches` must be a function of an iteration that returns "
            "the batches from there on: a run that resumes cannot rewind an iterator."
        )
    return Stream(batches, network, loss)


def _batches(batch_size: int | None, stream: Stream | None, data: AbstractData) -> AbstractBatches:
    """The samples of each step; those of a stream are added once they are read."""
    total = data.targets.shape[0]
    if stream is not None:
        return Permuted(total)
    if batch_size is None:
        return AllSamples()
    if not 1 <= batch_size <= total:
        raise ValueError(f"Argument `batch_size` must be 1 to {total}, but is {batch_size}.")
    data.take(jnp.arange(1))  # raises where there are no minibatches
    return AllSamples() if batch_size == total else Permuted(batch_size)
