"""The list of statements, and their verdicts on random ensembles."""

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from .._energy import vector_field
from .._state import State
from ..sampling import check_seed
from ._appendix import APPENDIX
from ._evidence import INITIAL, SQUARE, Evidence, Field, gather, initial_states, start
from ._own import OWN
from ._section_3 import SECTION_3
from ._section_4 import SECTION_4
from ._statement import NOT_TESTED, Statement

# Largest number of entries of the middle layers of the square ensemble in one part: the evidence
# takes about five thousand bytes per entry.
_MOST_ENTRIES = 16 * 200**2

STATEMENTS: tuple[Statement, ...] = SECTION_3 + SECTION_4 + APPENDIX + OWN


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The verdict on one statement.

    - `worst`: the largest deviation; `num_tested`: the number of samples; `holds`: whether the
      result is as expected, which it is not if no sample tests the statement.
    - `ensemble`, `sample`: the sample with the largest deviation; `None` and -1 if no sample tests
      the statement.
    """

    statement: Statement
    worst: float
    num_tested: int
    holds: bool
    ensemble: str | None
    sample: int


def judge(statement: Statement, evidence: Mapping[str, Evidence]) -> Verdict:
    """Check one statement on its ensembles."""
    worst, count, ensemble, sample = -np.inf, 0, None, -1
    for name in statement.on:
        deviations = statement.deviations(evidence[name])
        count += int(np.sum(deviations != NOT_TESTED))
        index = int(np.argmax(deviations))
        if deviations[index] > worst:
            worst, ensemble, sample = float(deviations[index]), name, index
    return Verdict(
        statement=statement,
        worst=worst if count else float("nan"),
        num_tested=count,
        holds=count > 0 and (worst > statement.limit) == statement.refuted,
        ensemble=ensemble,
        sample=sample,
    )


def _together(parts: list[Verdict]) -> Verdict:
    """The verdict on several parts of the samples; `sample` counts from the first part on."""
    tested = [part for part in parts if part.num_tested]
    if not tested:
        return parts[0]
    worst = max(tested, key=lambda part: part.worst)
    return dataclasses.replace(
        worst,
        num_tested=sum(part.num_tested for part in tested),
        # One counter-example suffices for a refuted statement.
        holds=(any if worst.statement.refuted else all)(part.holds for part in tested),
    )


def _parts(states: dict[str, State]) -> list[tuple[dict[str, State], dict[str, int]]]:
    """Batches in parts whose evidence fits into memory, with the indices of their first samples."""
    fewest = min(len(batch.strength) for batch in states.values())
    entries = states[SQUARE].b.size
    count = min(fewest, -(-entries // _MOST_ENTRIES))
    parts = []
    for index in range(count):
        bounds = {
            name: [len(batch.strength) * i // count for i in (index, index + 1)]
            for name, batch in states.items()
        }
        part = {
            name: jax.tree.map(lambda x, ends=bounds[name]: x[slice(*ends)], batch)
            for name, batch in states.items()
        }
        parts.append((part, {name: ends[0] for name, ends in bounds.items()}))
    return parts


def run_checks(
    width: int = 16,
    samples: int = 128,
    seed: int = 0,
    *,
    field: Field = vector_field,
    progress: Callable[[str], None] | None = None,
) -> list[Verdict]:
    """Check every statement on Gaussian initial states, followed in full by plain integration.

    **Arguments:** `width` of the wider hidden layer, at least 2; `samples`, random initial states
    of rank 1 and equal widths, and a quarter as many of each other ensemble; `seed`; `field`, the
    right-hand side to follow, which only tests of the checks replace; `progress`, called
    with the name of each part when it is done, from any thread.

    **Returns:** a `Verdict` for each of `STATEMENTS`.

    **Raises:** `ValueError` for a width below 2, no samples, a seed out of range, or 32-bit floats.
    """
    if width < 2:
        raise ValueError(f"Argument `width` must be at least 2, but is {width}.")
    if samples < 1:
        raise ValueError(f"Argument `samples` must be at least 1, but is {samples}.")
    check_seed(seed)
    if jnp.result_type(float) != jnp.float64:
        raise ValueError(
            "The checks need 64-bit floats: call jax.config.update('jax_enable_x64', True) "
            "beforehand."
        )
    report = progress or (lambda _: None)
    states = initial_states(width, samples, seed)

    def check(statement: Statement, evidence: Mapping[str, Evidence], last: bool = True) -> Verdict:
        # The caller's setting may be local to its thread.
        with jax.enable_x64(True):
            verdict = judge(statement, evidence)
        if last:
            report(statement.name)
        return verdict

    # Most of the time is compilation, which two threads share well: statements without trajectories
    # are checked while the first trajectories are followed.
    first = [statement for statement in STATEMENTS if statement.on == (INITIAL,)]
    others = [statement for statement in STATEMENTS if statement.on != (INITIAL,)]
    found: dict[str, list[Verdict]] = {statement.name: [] for statement in others}
    with ThreadPoolExecutor(2) as pool:
        begun = start(states[SQUARE], field)
        early = [pool.submit(check, statement, begun) for statement in first]
        parts = _parts(states)
        for number, (part, offsets) in enumerate(parts, 1):
            evidence, last = gather(part, field), number == len(parts)
            if last:
                report("followed all trajectories")
            verdicts = pool.map(lambda s, e=evidence, last=last: check(s, e, last), others)
            for verdict in verdicts:
                sample = verdict.sample + offsets.get(verdict.ensemble or "", 0)
                found[verdict.statement.name].append(dataclasses.replace(verdict, sample=sample))
        done = {s.name: task.result() for s, task in zip(first, early, strict=True)}
    done |= {name: _together(verdicts) for name, verdicts in found.items()}
    return [done[statement.name] for statement in STATEMENTS]
