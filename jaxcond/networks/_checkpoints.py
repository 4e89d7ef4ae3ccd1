"""Checkpoints of a training run, written by orbax: whole or not at all."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jaxtyping import PRNGKeyArray

from ._losses import Custom, Loss
from ._modules import ACTIVATIONS, MLP, Activation

_LANES, _RECORDS, _RUN = "lanes", "records", "run"


def _digest(tree: Any) -> str:
    total = hashlib.sha256()
    for leaf in jax.tree.leaves(tree):
        array = np.asarray(leaf)
        total.update(f"{array.dtype}{array.shape}".encode())
        total.update(np.ascontiguousarray(array).tobytes())
    return total.hexdigest()[:16]


def _name(activation: Activation) -> str:
    named = [name for name, known in ACTIVATIONS.items() if known == activation]
    return named[0] if named else getattr(activation, "__name__", repr(activation))


def _loss_name(loss: Loss) -> str:
    if isinstance(loss, Custom):
        return getattr(loss.function, "__qualname__", repr(loss.function))
    return repr(loss)


def _optimiser(problem: Any, network: MLP) -> str:
    """What an optimiser does in its first two steps: closures have no other identity.

    The first step alone does not tell momenta apart.
    """
    single = jax.tree.map(lambda w: w[(0,) * (w.ndim - 2)], network)
    state, steps = problem.optimiser.init(single), []
    for _ in range(2):
        updates, state = problem.optimiser.update(single, state, single)
        steps.append(updates)
    return f"{jax.tree.structure(state).num_leaves} leaves, {_digest((steps, state))}"


def identity(
    network: MLP,
    problem: Any,
    observables: Iterable[str],
    key: PRNGKeyArray,
    first_iteration: int,
) -> dict[str, Any]:
    """What makes two runs the same, as plain values."""
    rate = problem.rate
    return {
        "layers": [list(w.shape) for w in network.weights],
        "dtype": str(network.dtype),
        "activation": _name(network.activation),
        "bias": network.bias,
        "initial weights": _digest(network),
        "data": _digest(problem.data),
        "loss": _loss_name(problem.sample_loss),
        "batch_size": problem.batch_size,
        "key": None if problem.batch_size is None else _digest(jax.random.key_data(key)),
        "learning_rate": None if rate is None else [rate.starts.tolist(), rate.rates.tolist()],
        "optimiser": _optimiser(problem, network),
        "first_iteration": first_iteration,
        "levels": [float(x) for x in problem.levels],
        "until": float(problem.until),
        "observe": sorted(observables),
    }


class Checkpoints:
    """The checkpoints of one run in a folder.

    **Raises:** `ValueError` if the folder holds those of another run, `OSError` if it cannot be
    read or written.
    """

    def __init__(
        self,
        path: Path,
        network: MLP,
        problem: Any,
        observables: Iterable[str],
        key: PRNGKeyArray,
        first_iteration: int,
    ):
        self.path = path
        self.identity = identity(network, problem, observables, key, first_iteration)
        self._manager = _manager(path, create=True)
        steps = self._manager.all_steps()
        if steps:
            self._check(_read_json(self._manager, path, steps[-1]))

    def _check(self, found: Mapping[str, Any]) -> None:
        wanted = json.loads(json.dumps(self.identity))
        differing = [name for name in wanted if found.get(name) != wanted[name]]
        if differing:
            told = "; ".join(
                f"{name} {found.get(name)} there, {wanted[name]} here" for name in differing
            )
            raise ValueError(
                f"Folder {self.path} holds checkpoints of another run: {told}. Choose another "
                "folder; nothing was changed."
            )

    def save(self, iteration: int, lanes: Any, records: list[dict[str, np.ndarray]]) -> None:
        """Write a checkpoint, unless it is there.

        **Raises:** `OSError` if it cannot be written; those before it are kept.
        """
        if iteration in self._manager.all_steps():
            return
        arrays = {str(i): np.asarray(leaf) for i, leaf in enumerate(_plain(lanes))}
        stacked = {name: np.stack([r[name] for r in records]) for name in records[0]}
        items = {
            _LANES: ocp.args.StandardSave(arrays),  # pyright: ignore[reportCallIssue]
            _RECORDS: ocp.args.StandardSave(stacked),  # pyright: ignore[reportCallIssue]
            _RUN: ocp.args.JsonSave(self.identity),  # pyright: ignore[reportCallIssue]
        }
        try:
            self._manager.save(iteration, args=ocp.args.Composite(**items))
            self._manager.wait_until_finished()
        except (OSError, ValueError, RuntimeError) as error:
            kept = [step for step in self._manager.all_steps() if step < iteration]
            last = f"the last one is of iteration {max(kept)}" if kept else "there is none before"
            raise OSError(
                f"cannot write the checkpoint of iteration {iteration} into {self.path}: "
                f"{str(error).splitlines()[0]}; {last}"
            ) from error

    def latest(self, lanes: Any, last: int) -> tuple[int, Any, list[dict[str, np.ndarray]]] | None:
        """The last checkpoint up to an iteration, in the form of `lanes`, and the records to it."""
        steps = [step for step in self._manager.all_steps() if step <= last]
        if not steps:
            return None
        step = max(steps)
        arrays, records = _read(self._manager, self.path, step)
        leaves = [jnp.asarray(arrays[str(i)]) for i in range(len(arrays))]
        return step, _unplain(leaves, lanes), records


class Checkpoint(eqx.Module):
    """A saved point of a run.

    - `network`: as it was, of a batch with its leading axis; `iteration`: of the checkpoint.
    - `records`: those up to it, the records along the first axis, then the networks of a batch.
    """

    network: MLP
    iteration: int = eqx.field(static=True)
    records: dict[str, np.ndarray]


def read_checkpoint(
    path: str | os.PathLike,
    iteration: int | None = None,
    *,
    activation: Activation | None = None,
) -> Checkpoint:
    """A network as a run of `gradient_descent` has saved it, to look at or to go on from.

    **Arguments:** `path`, the folder of checkpoints; `iteration`, by default the last;
    `activation`, where it is none of `ACTIVATIONS`, the only ones that a folder can name.

    **Returns:** a `Checkpoint`.

    **Raises:** `OSError` if there is no such folder or iteration, or it is damaged; `ValueError` if
    the activation is not known.
    """
    path = Path(path)
    manager = _manager(path, create=False)
    steps = list(manager.all_steps())
    step = max(steps, default=None) if iteration is None else iteration
    if step is None or step not in steps:
        there = ", ".join(map(str, sorted(steps))) or "none"
        raise OSError(f"there is no checkpoint of iteration {step} in {path}; there are {there}")
    found = _read_json(manager, path, step)
    name = found["activation"]
    if activation is None and name not in ACTIVATIONS:
        raise ValueError(f"The activation is {name!r}: give it as argument `activation`.")
    arrays, records = _read(manager, path, step)
    # Of a lane the network comes first, and of a network its weights.
    weights = [jnp.asarray(arrays[str(i)]) for i in range(len(found["layers"]))]
    if len(found["layers"][0]) == 2:
        weights = [w[0] for w in weights]
        records = [{key: value[0] for key, value in record.items()} for record in records]
    network = MLP(weights, activation=activation or ACTIVATIONS[name], bias=found["bias"])
    return Checkpoint(network, step, {k: np.stack([r[k] for r in records]) for k in records[0]})


def _manager(path: Path, *, create: bool) -> ocp.CheckpointManager:
    if not create and not path.is_dir():
        raise OSError(f"there is no folder {path}")
    try:
        options = ocp.CheckpointManagerOptions(create=create, enable_async_checkpointing=False)
        return ocp.CheckpointManager(path.absolute(), options=options)
    except (OSError, ValueError) as error:
        raise OSError(f"cannot use folder {path} for checkpoints: {error}") from error


def _read_json(manager: ocp.CheckpointManager, path: Path, step: int) -> dict[str, Any]:
    try:
        args = ocp.args.Composite(**{_RUN: ocp.args.JsonRestore()})
        return manager.restore(step, args=args)[_RUN]
    except (OSError, ValueError, KeyError) as error:
        raise OSError(
            f"cannot read the checkpoint of iteration {step} in {path}: {error}"
        ) from error


def _read(
    manager: ocp.CheckpointManager, path: Path, step: int
) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    args = ocp.args.Composite(**{name: ocp.args.StandardRestore() for name in (_LANES, _RECORDS)})
    try:
        found = manager.restore(step, args=args)
    except (OSError, ValueError, KeyError) as error:
        raise OSError(
            f"cannot read the checkpoint of iteration {step} in {path}: {error}"
        ) from error
    records = {name: np.asarray(value) for name, value in found[_RECORDS].items()}
    count = len(next(iter(records.values())))
    return found[_LANES], [{name: v[i] for name, v in records.items()} for i in range(count)]


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
