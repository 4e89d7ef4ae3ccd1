"""The list of statements, and their verdicts on a random ensemble."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .._energy import vector_field
from ..sampling import check_seed
from . import statements as _s
from ._evidence import Evidence, Field, gather, random_states
from .statements import NOT_TESTED, Deviation, Statement

_ROUNDING = 1e-10
# What holds in the limit is off by the distance from the blow-up, 1e-6, to some power.
_LIMIT = 1e-5


def _own(name: str, tested: str, deviation: Deviation, limit: float, rank: int = 1) -> Statement:
    return Statement(name, "own", tested, deviation, limit, rank)


STATEMENTS: tuple[Statement, ...] = (
    Statement("conserved by unit", "(3.11)", "change over |θ|²", _s.unit_conservation, _ROUNDING),
    Statement("norms grow at 2E", "(3.11)", "rate against 2E", _s.norm_growth, _ROUNDING),
    _own("A and C conserved", "change over |θ|²", _s.matrix_conservation, _ROUNDING),
    Statement("E' ≥ 3E^(4/3)", "(3.14)", "E' against its parts", _s.energy_rate, _ROUNDING),
    Statement("T* ≤ t + E^(-1/3)", "(3.15)", "excess over T*", _s.upper_bound, _ROUNDING),
    Statement("E → ∞ at T*", "Theorem 1", "end of the flow against T*", _s.blow_up, 1e-9),
    _own("blow-up guaranteed", "promises broken", _s.guaranteed_blow_up, 0.5),
    Statement("no blow-up", "Example 1", "E against -(1+t)^-3", _s.example, 1e-8),
    Statement("stays once true", "Proposition 2", "margin below 0 later", _s.persistence, 0.0),
    Statement("|a_k|, |c_l| do not fall", "Assumption 2", "fall", _s.rising_units, _ROUNDING),
    Statement("cos ξ → 1 on C₁", "(4.4)", "1 - cos ξ at the end", _s.aligned_columns, _LIMIT),
    Statement("|a'|/|c|², |a'|/|a|² → 1", "(4.5)", "ratio - 1 at the end", _s.equal_norms, _LIMIT),
    Statement("cos ψ → 1 on C₁", "(4.17)", "1 - cos ψ at the end", _s.aligned_velocity, _LIMIT),
    Statement("cos ζ bounded from 0", "(4.19)", "fall in final stage", _s.velocity_along, 0.1),
    Statement("E ≤ bound with C", "(4.21)", "excess of E^(-1/3) over T*", _s.energy_bound, 1e-9),
    Statement("T* ≥ t + E^(-1/3)/C", "(4.22)", "excess over T*", _s.lower_bound, 1e-9),
    Statement("every |c_l| → ∞", "Theorem 3", "growth exponent - 1", _s.condensation, 0.2),
    _own("bracket holds T*", "distance outside", _s.bracketed, _ROUNDING),
    _own("T*(θ(t)) = T* - t", "difference at T*/2", _s.semigroup, 1e-9),
    _own("∇T*·θ = -T*, ∇T*·θ' = -1", "difference", _s.gradient_identities, 1e-9),
    _own("reduced flow", "lifted velocity", _s.reduced_flow, _ROUNDING),
    _own("A and C conserved, rank 2", "change over |θ|²", _s.matrix_conservation, _ROUNDING, 2),
    Statement("norms grow at 2E, rank 2", "(A.8)", "rate", _s.norm_growth, _ROUNDING, 2),
    Statement("stays, rank 2", "Assumptions 3, 4", "margin below 0", _s.persistence, 0.0, 2),
    _own("bracket holds T*, rank 2", "distance outside", _s.bracketed, 1e-9, 2),
)


class Verdict(eqx.Module):
    """What came of one statement: the worst deviation over `num_tested` samples, and `holds`.

    A statement that no sample tests does not hold.
    """

    statement: Statement
    worst: float
    num_tested: int
    holds: bool


def judge(statement: Statement, evidence: Evidence) -> Verdict:
    """Check one statement on evidence of its rank."""
    deviations = np.asarray(statement.deviation(evidence), np.float64)
    deviations = np.where(np.isnan(deviations), np.inf, deviations)
    tested = deviations[deviations != NOT_TESTED]
    worst = float(np.max(tested)) if tested.size else float("nan")
    return Verdict(statement, worst, tested.size, worst <= statement.limit)


def run_checks(
    width: int = 16,
    samples: int = 128,
    seed: int = 0,
    *,
    field: Field = vector_field,
    progress: Callable[[str], None] | None = None,
) -> list[Verdict]:
    """Check every statement on Gaussian initial states, followed in full by plain integration.

    **Arguments:** `width` of both hidden layers, at least 2; `samples`, random initial states for
    each rank, and `seed`; `field`, the right-hand side to follow, which only a test of the checks
    would replace; `progress`, called with the name of each part when it is done, from any thread.

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

    def follow(rank: int) -> Evidence:
        # The setting that the caller was checked for may be local to its thread.
        with jax.enable_x64(True):
            evidence = gather(random_states(width, samples, seed, rank), field)
        report(f"followed {samples} trajectories of rank {rank}")
        return evidence

    # Most of the time goes into compilation, which two threads share well.
    with ThreadPoolExecutor(2) as pool:
        evidence = {rank: pool.submit(follow, rank) for rank in {s.rank for s in STATEMENTS}}

        def check(statement: Statement) -> Verdict:
            with jax.enable_x64(True):
                verdict = judge(statement, evidence[statement.rank].result())
            report(statement.name)
            return verdict

        return list(pool.map(check, STATEMENTS))
