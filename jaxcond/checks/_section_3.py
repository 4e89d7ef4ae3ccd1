r"""Section 3 of Chen and Luo: conservation laws, Assumption 1, the blow-up and its bounds.

Deviations are relative and at best of the size of rounding. For a bound the deviation is the excess
over it, so that negative numbers are a margin.
"""

import numpy as np

from ..bounds import assumption_1
from ._evidence import EXAMPLE, HIGHER, RANK_1, Evidence, in_lanes
from ._statement import Statement, at, closest, largest, where_tested

# Relative distance from the blow-up at which limits are evaluated: the neglected terms are of the
# order of its square, and the rounding of T* divided by it is smaller.
CLOSENESS = 1e-4


def gradient_flow(evidence: Evidence) -> np.ndarray:
    """Rates of the flow against the gradient of the energy."""
    pairs = zip(evidence.rates.layers, evidence.gradient.layers, strict=True)
    apart = [np.sqrt(np.sum((x - y) ** 2, axis=(-2, -1))) for x, y in pairs]
    return largest(np.stack(apart, axis=-1) / evidence.size[..., None] ** 2)


def unit_conservation(evidence: Evidence) -> np.ndarray:
    """The change of the conserved quantities of single units."""
    a, _, c = evidence.states.layers
    kept = (
        np.diagonal(evidence.rows, axis1=-2, axis2=-1) - np.sum(a * a, axis=-2),
        np.diagonal(evidence.columns, axis1=-2, axis2=-1) - np.sum(c * c, axis=-2),
    )
    moved = [np.abs(x - x[:, :1]) / evidence.unit_square[..., None] for x in kept]
    return largest(np.concatenate(moved, axis=-1))


def norm_growth(evidence: Evidence) -> np.ndarray:
    """Rates of the three squared norms against $2E$."""
    layers = zip(evidence.states.layers, evidence.rates.layers, strict=True)
    rates = np.stack([2 * np.sum(x * y, axis=(-2, -1)) for x, y in layers], axis=-1)
    apart = np.abs(rates - 2 * evidence.energies[..., None])
    return largest(apart / evidence.size[..., None] ** 3)


def _blow_up_terms(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    r"""$\kappa$, and $\|a'\|^2 - \|c'\|^2 - \kappa\|a\|^2$, at every point."""
    norms, speeds = evidence.norms, evidence.gradient
    kappa = norms[2] - norms[0]
    squares = [np.sum(x * x, axis=(-2, -1)) for x in (speeds.a, speeds.c)]
    return kappa, squares[0] - squares[1] - kappa * norms[0]


def blow_up_assumption(evidence: Evidence) -> np.ndarray:
    """Whether Assumption 1 holds initially, and the later change of its quantities."""
    kappa, integral = _blow_up_terms(evidence)
    moved = np.maximum(
        np.abs(kappa - kappa[:, :1]) / evidence.unit_square,
        np.abs(integral - integral[:, :1]) / (evidence.unit_square * evidence.size**2),
    )
    return np.where(_assumed(evidence), largest(moved), np.inf)


def _assumed(evidence: Evidence) -> np.ndarray:
    return in_lanes(assumption_1, evidence.initial)


def blow_up_identity(evidence: Evidence) -> np.ndarray:
    r"""$(\|a'\|^2-\|c'\|^2)'$ along the flow against $2\kappa E$."""
    a, b, c = evidence.states.layers
    da, db, dc = evidence.rates.layers
    speeds = evidence.gradient
    onto_a = np.einsum("...pq,...rq->...rp", db, c) + np.einsum("...pq,...rq->...rp", b, dc)
    onto_c = np.einsum("...pq,...rp->...rq", db, a) + np.einsum("...pq,...rp->...rq", b, da)
    sides = [np.sum(x * y, axis=(-2, -1)) for x, y in ((speeds.a, onto_a), (speeds.c, onto_c))]
    kappa = evidence.norms[2] - evidence.norms[0]
    rate = 2 * (sides[0] - sides[1])
    return largest(np.abs(rate - 2 * kappa * evidence.energies) / evidence.size**5)


def energy_rate(evidence: Evidence) -> np.ndarray:
    r"""Rate of the energy against the sum of squares, and the excess of $3|E|^{4/3}$ over it."""
    pairs = zip(evidence.gradient.layers, evidence.rates.layers, strict=True)
    rate = sum(np.sum(x * y, axis=(-2, -1)) for x, y in pairs)
    squares = [np.sum(x * x, axis=(-2, -1)) for x in (evidence.gradient.a, evidence.gradient.c)]
    total = squares[0] + squares[1] + evidence.norms[0] * evidence.norms[2]
    floor = 3 * np.cbrt(evidence.energies) ** 4
    return largest(np.stack([np.abs(rate - total), floor - rate], axis=-1) / total[..., None])


def _reach(evidence: Evidence) -> np.ndarray:
    """$E^{-1/3}$ where the energy is positive, else infinity."""
    positive = evidence.energies > 0
    return np.where(positive, np.cbrt(1 / np.where(positive, evidence.energies, 1)), np.inf)


def energy_lower_bound(evidence: Evidence) -> np.ndarray:
    r"""$E(t)^{-1/3}$ beyond $E(s)^{-1/3} - (t-s)$ for $s < t$, over $T^*$."""
    reach = _reach(evidence)
    # t + E^(-1/3) must not rise, so it is compared with its minimum so far.
    ends = evidence.times + reach
    least = np.minimum.accumulate(ends, axis=1)[:, :-1]
    later = np.isfinite(least)
    excess = np.where(later, ends[:, 1:] - np.where(later, least, 0), -np.inf)
    excess = excess / evidence.blow_up[:, None]
    return where_tested(np.any(later, axis=1), largest(excess), evidence)


def upper_bound(evidence: Evidence) -> np.ndarray:
    """The excess of $T^*$ over $t + E^{-1/3}$ at every point with $E > 0$."""
    excess = evidence.blow_up[:, None] - evidence.times - _reach(evidence)
    known = _known(evidence) & np.any(evidence.energies > 0, axis=1)
    return where_tested(known, largest(excess / evidence.blow_up[:, None]), evidence)


def negative_energy(evidence: Evidence) -> np.ndarray:
    r"""$(-E(s))^{-1/3} + t - s$ over $(-E(t))^{-1/3}$, less 1, for $s < t$ with $E(t) < 0$."""
    negative = evidence.energies < 0
    reach = np.where(negative, np.cbrt(1 / np.where(negative, -evidence.energies, 1)), np.nan)
    # (-E)^(-1/3) - t must not fall, so it is compared with its maximum so far.
    most = np.fmax.accumulate(reach - evidence.times, axis=1)[:, :-1]
    excess = (most + evidence.times[:, 1:]) / reach[:, 1:] - 1
    excess = np.where(negative[:, 1:], excess, -np.inf)
    return where_tested(np.sum(negative, axis=1) >= 2, largest(excess), evidence)


def blow_up(evidence: Evidence) -> np.ndarray:
    """Time of the last point and the bound from there against $T^*$ by other means."""
    end = evidence.times[:, -1] + _reach(evidence)[:, -1]
    apart = np.abs(end - evidence.blow_up) / evidence.blow_up
    return where_tested(_assumed(evidence) & _known(evidence), apart, evidence)


def _known(evidence: Evidence) -> np.ndarray:
    """Which blow-up times are compared: near rest they depend on the last bits of the state."""
    return evidence.error <= 1e-12


def diverging_norms(evidence: Evidence) -> np.ndarray:
    r"""$\|a\|(T^*-t)$, $\|b\|_F(T^*-t)$ and $\|c\|(T^*-t)$ against 1."""
    point = closest(evidence, CLOSENESS)
    left = evidence.blow_up - at(evidence.times, point)
    growth = [np.sqrt(at(x, point)) * left for x in evidence.norms]
    return where_tested(
        np.isfinite(evidence.blow_up), np.max(np.abs(np.stack(growth) - 1), axis=0), evidence
    )


def example(evidence: Evidence) -> np.ndarray:
    r"""Example 1: $E = -(1+t)^{-3}$ and no blow-up, where Assumption 1 does not hold."""
    expected = -((1 + evidence.times) ** -3)
    wrong = largest(np.abs(evidence.energies / expected - 1))
    return np.where(_assumed(evidence) | np.isfinite(evidence.blow_up), np.inf, wrong)


SECTION_3 = (
    Statement(
        name="(3.10)",
        proven="the flow is the gradient of E",
        observed="|θ' - ∇E|/|θ|²",
        deviation=gradient_flow,
        limit=1e-15,
        on=(*RANK_1, *HIGHER),
    ),
    Statement(
        name="Proposition 1, (3.11), units",
        proven="a_k² - Σ_l b_kl², c_l² - Σ_k b_kl² constant",
        observed="change, over |θ|²/m",
        deviation=unit_conservation,
        limit=5e-14,
        on=RANK_1,
    ),
    Statement(
        name="Proposition 1, (3.11), norms",
        proven="|a|², |b|², |c|² grow at 2E",
        observed="rates against 2E, over |θ|³",
        deviation=norm_growth,
        limit=1e-15,
        on=RANK_1,
    ),
    Statement(
        name="Assumption 1, (3.12)-(3.13)",
        proven="holds with probability 1; its terms are constant",
        observed="change of κ and (3.13), over |θ|²/m, |θ|⁴/m",
        deviation=blow_up_assumption,
        limit=5e-14,
        on=RANK_1,
    ),
    Statement(
        name="Theorem 1, identity",
        proven="(|a'|² - |c'|²)' = 2(|c|² - |a|²)E",
        observed="difference/|θ|⁵",
        deviation=blow_up_identity,
        limit=1e-15,
        on=RANK_1,
    ),
    Statement(
        name="(3.14)",
        proven="E' = |a'|² + |c'|² + |a|²|c|² ≥ 3|E|^(4/3)",
        observed="difference, and shortfall, over E'",
        deviation=energy_rate,
        limit=5e-15,
        on=(*RANK_1, EXAMPLE),
    ),
    Statement(
        name="(3.15), energy",
        proven="E(t) ≥ (E(s)^(-1/3) - (t-s))^(-3), E(s) > 0",
        observed="excess of E(t)^(-1/3), over T*",
        deviation=energy_lower_bound,
        limit=1e-14,
        on=RANK_1,
    ),
    Statement(
        name="(3.15), T*",
        proven="T* ≤ t + E^(-1/3), E > 0",
        observed="excess of T*, over T*",
        deviation=upper_bound,
        limit=1e-13,
        on=RANK_1,
    ),
    Statement(
        name="(3.16)",
        proven="E(t) ≥ -(t - s + (-E(s))^(-1/3))^(-3), E(s) < 0",
        observed="excess of (-E(s))^(-1/3) + t - s, over (-E(t))^(-1/3)",
        deviation=negative_energy,
        limit=7e-14,
        on=(*RANK_1, EXAMPLE),
    ),
    Statement(
        name="Theorem 1",
        proven="Assumption 1: E → ∞ at a finite T*",
        observed="end of the flow against T*, over T*",
        deviation=blow_up,
        limit=1e-13,
        on=RANK_1,
    ),
    Statement(
        name="Corollary 1, (3.18)",
        proven="|a|, |b|, |c| → ∞ at T*",
        observed="each times T*-t against 1, at 1e-4 T*",
        deviation=diverging_norms,
        limit=2e-6,
        on=RANK_1,
    ),
    Statement(
        name="Example 1",
        proven="E' = 3E^(4/3), E → 0: no blow-up, without Assumption 1",
        observed="E against -(1+t)^(-3) up to E = -1e-9",
        deviation=example,
        limit=2e-13,
        on=(EXAMPLE,),
    ),
)
