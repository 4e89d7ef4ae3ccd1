"""Loops of gradient descent side by side, each in a process of its own with its number of threads.

A process of its own, since threads are set when a library starts, and those of one library that
wait for work would hold up another.
"""

from __future__ import annotations

import functools
import importlib.util
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import jax
import numpy as np
from _settings import LOSS, Setting

from jaxcond import networks as nw

Loop = Callable[[int], float]
"""So many iterations from the initial weights; gives the loss after them."""


def jaxcond_loop(setting: Setting) -> Loop:
    """Iterations of `gradient_descent`."""
    network, data = setting.network(0), setting.data()

    def loop(num_steps: int) -> float:
        run = nw.gradient_descent(
            network, data, setting.rate, loss=LOSS, num_steps=num_steps, record=2, observe=[]
        )
        return float(run.loss[-1])

    return loop


def torch_loop(setting: Setting, threads: int, compiled: bool) -> Loop:
    """The same in PyTorch: the loss as one would write it, updates in place or compiled."""
    import torch

    torch.set_num_threads(threads)
    data = setting.data()
    assert isinstance(data, nw.Regression)
    assert setting.activation == "tanh"
    features = np.pad(np.asarray(data.x), ((0, 0), (0, int(setting.bias))), constant_values=1)
    x, y = torch.from_numpy(features), torch.from_numpy(np.array(data.y))
    initial = [torch.from_numpy(np.array(w)) for w in setting.network(0).weights]

    def loss_of(w1: Any, w2: Any, w3: Any) -> Any:
        hidden = torch.tanh(torch.tanh(x @ w1.T) @ w2.T)
        return ((hidden @ w3.T - y) ** 2).sum(1).mean()

    def updated(weights: list[Any]) -> list[Any]:
        slopes = torch.func.grad(lambda weights: loss_of(*weights))(weights)
        return [w - setting.rate * slope for w, slope in zip(weights, slopes, strict=True)]

    def update(weights: list[Any]) -> list[Any]:
        slopes = torch.autograd.grad(loss_of(*weights), weights)
        with torch.no_grad():
            for weight, slope in zip(weights, slopes, strict=True):
                weight.sub_(slope, alpha=setting.rate)
        return weights

    # What is fastest of each: compiled, one function of the weights rather than autograd's tape.
    step = torch.compile(updated) if compiled else update

    def loop(num_steps: int) -> float:
        weights = [w.clone().requires_grad_(not compiled) for w in initial]
        for _ in range(num_steps):
            weights = step(weights)
        with torch.no_grad():
            return float(loss_of(*weights))

    return loop


def has_torch() -> bool:
    """Whether PyTorch can be imported."""
    return importlib.util.find_spec("torch") is not None


def _serve(pipe: Connection, kind: str, threads: int, setting: Setting) -> None:
    """Run the loop as often as asked: gives seconds and the loss, or what went wrong."""
    jax.config.update("jax_enable_x64", True)
    try:
        if kind == "jaxcond":
            if threads == 1 and hasattr(os, "sched_setaffinity"):
                # Before the first computation starts XLA's threads, which no option limits.
                os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
            loop = jaxcond_loop(setting)
        else:
            loop = torch_loop(setting, threads, kind == "torch.compile")
        while True:
            num_steps = pipe.recv()
            began = time.perf_counter()
            loss = loop(num_steps)
            pipe.send((time.perf_counter() - began, loss))
    except EOFError:
        return
    except Exception as error:
        pipe.send(f"{type(error).__name__}: {str(error).splitlines()[0]}")


class Worker:
    """A loop in its process."""

    def __init__(self, kind: str, threads: int, setting: Setting):
        self.kind, self.threads = kind, threads
        self.seconds: list[float] = []
        self.loss = float("nan")
        self.failure: str | None = None
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(other, kind, threads, setting), daemon=True
        )
        before = dict(os.environ)
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(threads)
        self._process.start()
        os.environ.clear()
        os.environ.update(before)
        other.close()

    def run(self, num_steps: int) -> float:
        """Seconds of so many iterations; NaN once it has failed."""
        if self.failure is not None:
            return float("nan")
        try:
            self._pipe.send(num_steps)
            found = self._pipe.recv()
        except (EOFError, OSError):
            found = "the process ended"
        if isinstance(found, str):
            self.failure = found
            return float("nan")
        seconds, self.loss = found
        return seconds

    def close(self) -> None:
        """End the process."""
        self._pipe.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.terminate()


def side_by_side(
    setting: Setting, num_steps: int, repeats: int, numbers: tuple[int, ...]
) -> list[dict[str, Any]]:
    """All loops in turns, with these numbers of threads: medians of the time of an iteration, and
    their ratios to the fastest of ours.
    """
    kinds = ["jaxcond", *(["torch", "torch.compile"] if has_torch() else [])]
    workers = [Worker(kind, threads, setting) for kind in kinds for threads in numbers]
    try:
        firsts = [worker.run(max(2, num_steps // 10)) for worker in workers]
        for _ in range(repeats):
            for worker in workers:
                worker.seconds.append(worker.run(num_steps))
    finally:
        for worker in workers:
            worker.close()
    medians = [statistics.median(worker.seconds) for worker in workers]
    ours = min(s for s, w in zip(medians, workers, strict=True) if w.kind == "jaxcond")
    return [
        {
            "loop": worker.kind,
            "threads": worker.threads,
            "ms an iteration": 1e3 * median / num_steps,
            "least, ms": 1e3 * min(worker.seconds) / num_steps,
            "over jaxcond's fastest": median / ours,
            "first call, s": first,
            "loss": worker.loss,
            **({} if worker.failure is None else {"failed": worker.failure}),
        }
        for worker, median, first in zip(workers, medians, firsts, strict=True)
    ]


def vmapped(setting: Setting, num_seeds: int) -> Callable[[int], jax.Array]:
    """A loop of the vmapped step of many seeds."""
    data = setting.data()
    networks = [setting.network(seed) for seed in range(num_seeds)]
    batch = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *networks)
    factor = nw.resolve_loss(LOSS)

    @functools.partial(jax.jit, static_argnums=1)
    def loop(batch: nw.MLP, num_steps: int) -> jax.Array:
        slope = jax.vmap(jax.grad(lambda network: data.loss(network, factor)))

        def step(_: jax.Array, batch: nw.MLP) -> nw.MLP:
            return jax.tree.map(lambda w, g: w - setting.rate * g, batch, slope(batch))

        batch = jax.lax.fori_loop(0, num_steps, step, batch)
        return jax.vmap(lambda network: data.loss(network, factor))(batch)

    return lambda num_steps: loop(batch, num_steps)
