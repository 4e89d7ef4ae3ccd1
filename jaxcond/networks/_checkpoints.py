"""Checkpoints of a training run, written by orbax: whole or not at all.

Each holds a SHA-256 of its contents, which is verified on reading, since orbax reads overwritten
bytes without an error.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PRNGKeyArray

from .._results import table
from ._losses import Custom, Loss
from ._modules import ACTIVATIONS, MLP, Activation
from ._schedule import LearningRate

_LANES, _RECORDS, _RUN = "lanes", "records", "run"
_STOPS = "stops"


class CheckpointWarning(UserWarning):
    """A damaged checkpoint was skipped."""


def _sha256(tree: Any, *more: str) -> str:
    total = hashlib.sha256()
    for text in more:
        total.update(text.encode())
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


def _digest(tree: Any) -> str:
    """A digest short enough for messages."""
    return _sha256(tree)[:16]


def _name(activation: Activation) -> str:
    names = [name for name, function in ACTIVATIONS.items() if function == activation]
    return names[0] if names else getattr(activation, "__name__", repr(activation))


def _loss_name(loss: Loss) -> str:
    if isinstance(loss, Custom):
        return getattr(loss.function, "__qualname__", repr(loss.function))
    return repr(loss)


def _optimiser(problem: Any, network: MLP) -> str:
    """A digest of an optimiser's first two steps, since closures have no other identity.

    The first step alone does not distinguish momenta.
    """
    single = jax.tree.map(lambda w: w[0], network) if network.batch_shape else network
    state, steps = problem.optimiser.init(single), []
    for _ in range(2):
        updates, state = problem.optimiser.update(single, state, single)
        steps.append(updates)
    return f"{jax.tree.structure(state).num_leaves} leaves, {_digest((steps, state))}"


def identity(
    network: MLP, problem: Any, key: PRNGKeyArray, first_iteration: int, first_batch: Any
) -> dict[str, Any]:
    """The plain values that identify a run, without the learning rate, which `_check` compares."""
    rate, size = problem.rate, getattr(problem.batches, "size", None)
    return {
        "layers": [list(w.shape) for w in network.weights],
        "dtype": str(network.dtype),
        "activation": _name(network.activation),
        "bias": True if network.biases is not None else network.bias,
        "initial weights": _digest(network),
        "data": _digest(problem.data),
        "loss": _loss_name(problem.sample_loss),
        "batches": None if first_batch is None else _digest(first_batch),
        "batch_size": size,
        "key": None if problem.batches.whole else _digest(jax.random.key_data(key)),
        "learning_rate": None if rate is None else [rate.starts.tolist(), rate.rates.tolist()],
        "optimiser": _optimiser(problem, network),
        "first_iteration": first_iteration,
        "levels": [float(x) for x in problem.levels],
        "until": float(problem.until),
        "observe": sorted(problem.observables),
    }


class Checkpoints:
    """The checkpoints of one run in a folder.

    **Arguments:** as for `identity`, which decides whether two runs are the same.

    **Raises:** `OSError` if the folder cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        network: MLP,
        problem: Any,
        key: PRNGKeyArray,
        first_iteration: int,
        first_batch: Any,
    ):
        self.path = path
        self.identity = identity(network, problem, key, first_iteration, first_batch)
        self._manager = _manager(path, create=True)
        self._damaged: list[int] = []

    def _check(self, saved: Mapping[str, Any], step: int) -> None:
        """Reject a checkpoint of another run. Learning rates must agree up to the checkpoint."""
        own = json.loads(json.dumps(self.identity))
        differing = [name for name in own if saved.get(name) != own[name]]
        saved_rate, own_rate = saved.get("learning_rate"), own["learning_rate"]
        if saved_rate is not None and own_rate is not None and _agree(saved_rate, own_rate, step):
            differing = [name for name in differing if name != "learning_rate"]
        if differing:
            differences = "; ".join(
                f"{name} {saved.get(name)} there, {own[name]} here" for name in differing
            )
            raise ValueError(
                f"Folder {self.path} holds checkpoints of another run: {differences}. Choose "
                "another folder; nothing was changed."
            )

    def save(
        self,
        iteration: int,
        lanes: Any,
        records: list[dict[str, np.ndarray]],
        stops: np.ndarray,
    ) -> None:
        """Write a checkpoint unless it exists; damaged ones are removed first.

        **Raises:** `OSError` if it cannot be written; earlier checkpoints are kept.
        """
        if iteration in self._manager.all_steps() and iteration not in self._damaged:
            return
        arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(_plain(lanes))}
        arrays[_STOPS] = stops
        stacked = {name: np.stack([r[name] for r in records]) for name in records[0]}
        run = json.loads(json.dumps(self.identity))
        run["digest"] = _sha256((arrays, stacked), json.dumps(run, sort_keys=True))
        items = {
            _LANES: ocp.args.StandardSave(arrays),  # pyright: ignore[reportCallIssue]
            _RECORDS: ocp.args.StandardSave(stacked),  # pyright: ignore[reportCallIssue]
            _RUN: ocp.args.JsonSave(run),  # pyright: ignore[reportCallIssue]
        }
        try:
            while self._damaged:
                self._manager.delete(self._damaged.pop())
            self._manager.save(iteration, args=ocp.args.Composite(**items))
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            kept = [step for step in self._manager.all_steps() if step < iteration]
            last = f"the last one is of iteration {max(kept)}" if kept else "there is none before"
            raise OSError(
                f"cannot write the checkpoint of iteration {iteration} into {self.path}: "
                f"{str(error).splitlines()[0]}; {last}"
            ) from error

    def latest(
        self, lanes: Any, stops: np.ndarray
    ) -> tuple[Any, list[dict[str, np.ndarray]], np.ndarray] | None:
        """The last sound checkpoint within the run, in the form of `lanes`, and its records.

        Only the records at `stops` are kept, as in a run without interruption. A
        `CheckpointWarning` names damaged checkpoints that are skipped.

        **Raises:** `ValueError` for checkpoints of another run, or of this run without the required
        records; `OSError` if no checkpoint is sound.
        """
        steps = list(self._manager.all_steps())
        if not steps:
            return None
        within = [step for step in steps if step <= stops[-1]]
        saved, self._damaged = _last_sound(self._manager, self.path, within or steps)
        self._check(saved.run, saved.step)
        if not within:
            return None
        recorded = saved.arrays.pop(_STOPS)
        wanted = stops[stops <= saved.step]
        missing = np.setdiff1d(wanted, recorded)
        # A run that ends at the checkpoint can still record its last iteration.
        missing = missing[missing < saved.step]
        if missing.size:
            raise ValueError(
                f"Folder {self.path} holds this run up to iteration {saved.step} without records "
                f"at iterations {', '.join(map(str, missing[:5]))}{', ...' * (missing.size > 5)}, "
                f"which `record` asks for; it has them at {', '.join(map(str, recorded[:5]))}"
                f"{', ...' * (recorded.size > 5)}. Give `record` as a list of some of these "
                "iterations, or choose another folder; nothing was changed."
            )
        chosen = np.isin(recorded, wanted)
        records = [record for record, keep in zip(saved.records, chosen, strict=True) if keep]
        leaves = [jnp.asarray(saved.arrays[str(i)]) for i in range(len(saved.arrays))]
        return _unplain(leaves, lanes), records, recorded[chosen]


def _agree(first: list[Any], second: list[Any], step: int) -> bool:
    """Whether two tables of starts and rates agree at all iterations before `step`."""
    tables = [LearningRate.of(dict(zip(*table, strict=True))) for table in (first, second)]
    starts = np.unique(np.concatenate([table.starts for table in tables]))
    starts = starts[starts < step]
    rates = [table.rates[np.searchsorted(table.starts, starts, "right") - 1] for table in tables]
    return np.array_equal(rates[0], rates[1])


class Checkpoint(eqx.Module):
    """A saved point of a run.

    - `network`: the saved network, with a leading axis for a batch; `iteration`: that of the
      checkpoint.
    - `records`: the records up to that iteration along the first axis, then the networks of a
      batch.
    """

    network: MLP
    iteration: int = eqx.field(static=True)
    records: dict[str, np.ndarray]

    def __str__(self) -> str:
        return table(
            f"Checkpoint at iteration {self.iteration:,}",
            {
                "network": f"sizes {self.network.sizes}, batch shape {self.network.batch_shape}",
                "records": ", ".join(self.records),
            },
        )


def read_checkpoint(
    path: str | os.PathLike,
    iteration: int | None = None,
    *,
    activation: Activation | None = None,
) -> Checkpoint:
    """A network that a run of `gradient_descent` has saved.

    **Arguments:** `path`, the folder of checkpoints; `iteration`, by default the last;
    `activation`, the activation, if it is not one of `ACTIVATIONS`, which are the only ones stored
    by name.

    **Returns:** a `Checkpoint`. If the last checkpoint is damaged, the last sound one is returned,
    with a `CheckpointWarning`.

    **Raises:** `OSError` if the folder or the iteration does not exist, or the checkpoint is
    damaged, or none is sound; `ValueError` if the activation is unknown.
    """
    path = Path(path)
    manager = _manager(path, create=False)
    steps = list(manager.all_steps())
    step = max(steps, default=None) if iteration is None else iteration
    if step is None or step not in steps:
        listed = ", ".join(map(str, sorted(steps))) or "none"
        raise OSError(f"there is no checkpoint of iteration {step} in {path}; there are {listed}")
    saved, _ = _last_sound(manager, path, steps if iteration is None else [iteration])
    run, records = saved.run, saved.records
    name = run["activation"]
    if activation is None and name not in ACTIVATIONS:
        raise ValueError(f"The activation is {name!r}: give it as argument `activation`.")
    # A lane begins with its network, and a network with its weights, then its biases.
    depth, bias = len(run["layers"]), run["bias"]
    arrays = [
        jnp.asarray(saved.arrays[str(i)]) for i in range(2 * depth if bias is True else depth)
    ]
    if len(run["layers"][0]) == 2:
        arrays = [array[0] for array in arrays]
        records = [{key: value[0] for key, value in record.items()} for record in records]
    network = MLP(
        arrays[:depth],
        arrays[depth:] if bias is True else None,
        activation or ACTIVATIONS[name],
        bias=False if bias is True else bias,
    )
    stacked = {key: np.stack([record[key] for record in records]) for key in records[0]}
    return Checkpoint(network, saved.step, stacked)


def _manager(path: Path, *, create: bool) -> ocp.CheckpointManager:
    if not create and not path.is_dir():
        raise OSError(f"there is no folder {path}")
    try:
        options = ocp.CheckpointManagerOptions(create=create, enable_async_checkpointing=False)
        return ocp.CheckpointManager(path.absolute(), options=options)
    except (OSError, ValueError) as error:
        raise OSError(f"cannot use folder {path} for checkpoints: {error}") from error


@dataclass
class _Saved:
    """The contents of a verified checkpoint."""

    step: int
    run: dict[str, Any]
    arrays: dict[str, Any]
    records: list[dict[str, np.ndarray]]


def _last_sound(
    manager: ocp.CheckpointManager, path: Path, steps: list[int]
) -> tuple[_Saved, list[int]]:
    """The last sound one of some checkpoints, and the damaged ones after it.

    **Raises:** `OSError` if none is sound.
    """
    damaged: dict[int, str] = {}
    for step in sorted(steps, reverse=True):
        try:
            saved = _read(manager, step)
        except Exception as error:  # whatever orbax and its libraries raise for damaged files
            damaged[step] = (str(error).splitlines() or [type(error).__name__])[0]
            continue
        if damaged:
            details = ", ".join(map(str, sorted(damaged)))
            warnings.warn(
                f"In {path} the checkpoint of iteration {details} is damaged "
                f"({damaged[max(damaged)]}): that of iteration {step} is taken.",
                CheckpointWarning,
                stacklevel=5,
            )
        return saved, list(damaged)
    details = "; ".join(f"iteration {step}: {why}" for step, why in sorted(damaged.items()))
    raise OSError(f"no sound checkpoint in {path}: {details}")


def _read(manager: ocp.CheckpointManager, step: int) -> _Saved:
    restore = {name: ocp.args.StandardRestore() for name in (_LANES, _RECORDS)}
    args = ocp.args.Composite(**restore, **{_RUN: ocp.args.JsonRestore()})
    contents = manager.restore(step, args=args)
    run, arrays, stacked = contents[_RUN], contents[_LANES], contents[_RECORDS]
    digest = run.pop("digest")
    if digest != _sha256((arrays, stacked), json.dumps(run, sort_keys=True)):
        raise ValueError("its contents are not those of its SHA-256")
    stacked = {name: np.asarray(value) for name, value in stacked.items()}
    arrays = {name: np.asarray(value) for name, value in arrays.items()}
    count = len(next(iter(stacked.values())))
    records = [{name: v[i] for name, v in stacked.items()} for i in range(count)]
    return _Saved(step, run, arrays, records)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _plain(lanes: Any) -> list[Any]:
    return [jax.random.key_data(x) if _is_key(x) else x for x in jax.tree.leaves(lanes)]


def _unplain(leaves: list[Any], lanes: Any) -> Any:
    before, structure = jax.tree.flatten(lanes)
    pairs = zip(leaves, before, strict=True)
    back = [
        jax.random.wrap_key_data(new) if _is_key(old) else new.astype(old.dtype)
        for new, old in pairs
    ]
    return jax.tree.unflatten(structure, back)
