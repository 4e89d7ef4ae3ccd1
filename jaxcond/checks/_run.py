"""The list of statements, and their verdicts on random ensembles."""

import dataclasses
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from .._energy import vector_field
from ..sampling import check_seed
from ._appendix import APPENDIX
from ._evidence import INITIAL, SQUARE, Evidence, Field, gather, initial_states, start
from ._own import OWN
from ._section_3 import SECTION_3
from ._section_4 import SECTION_4
from ._statement import NOT_TESTED, Statement

STATEMENTS: tuple[Statement, ...] = SECTION_3 + SECTION_4 + APPENDIX + OWN


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What came of one statement.

    - `worst`: the largest deviation; `num_tested`: the number of samples; `holds`: whether what is
      said of the statement holds, which it does not if no sample tests it.
    - `ensemble`, `sample`: where the worst one is; `None` and -1 if no sample tests it.
    """

    statement: Statement
    worst: float
    num_tested: int
    holds: bool
    ensemble: str | None = None
    sample: int = -1


def judge(statement: Statement, evidence: Mapping[str, Evidence]) -> Verdict:
    """Check one statement on the ensembles that it is about."""
    worst, count, ensemble, sample = -np.inf, 0, None, -1
    for name in statement.on:
        deviations = statement.deviations(evidence[name])
        count += int(np.sum(deviations != NOT_TESTED))
        index = int(np.argmax(deviations))
        if deviations[index] > worst:
            worst, ensemble, sample = float(deviations[index]), name, index
    if count == 0:
        return Verdict(statement, float("nan"), 0, False)
    return Verdict(
        statement=statement,
        worst=worst,
        num_tested=count,
        holds=(worst > statement.limit) if statement.refuted else (worst <= statement.limit),
        ensemble=ensemble,
        sample=sample,
    )


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
    right-hand side to follow, which only a test of the checks would replace; `progress`, called
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

    def follow() -> dict[str, Evidence]:
        # The setting that the caller was checked for may be local to its thread.
        with jax.enable_x64(True):
            evidence = gather(states, field)
        report("followed all trajectories")
        return evidence

    def begin() -> dict[str, Evidence]:
        with jax.enable_x64(True):
            return start(states[SQUARE], field)

    def check(statement: Statement) -> Verdict:
        evidence = (at_first if statement.on == (INITIAL,) else followed).result()
        with jax.enable_x64(True):
            verdict = judge(statement, evidence)
        report(statement.name)
        return verdict

    # Most of the time goes into compilation, which two threads share well. What needs no trajectory
    # comes first.
    with ThreadPoolExecutor(2) as pool:
        followed: Future[dict[str, Evidence]] = pool.submit(follow)
        at_first: Future[dict[str, Evidence]] = pool.submit(begin)
        early = sorted(STATEMENTS, key=lambda statement: statement.on != (INITIAL,))
        found = {s.name: pool.submit(check, s) for s in early}
        return [found[statement.name].result() for statement in STATEMENTS]
