r"""Appendix A of Chen and Luo: the flow of any rank, its final stage condition, and Proposition 6.

Components are numbered up to the rank $r$, where the paper uses $n$ or $m$. Eqs. (A.11) to (A.14)
are checked at rank 1 too, where they are the derivatives in the proof of Proposition 2.
"""

from collections.abc import Callable

import numpy as np

from ._evidence import HIGHER, RECTANGULAR, Evidence
from ._section_3 import gradient_flow, norm_growth, unit_conservation
from ._section_4 import falling, persistence
from ._statement import Statement, in_final_stage, largest


def _other_side(evidence: Evidence) -> Evidence:
    """The same flow with the layers in reverse order, which swaps $a$ and $c$, rows and columns."""
    return Evidence(
        states=evidence.states.transpose(),
        rates=evidence.rates.transpose(),
        times=evidence.times,
        blow_up=evidence.blow_up,
        error=evidence.error,
    )


def first_rates(evidence: Evidence) -> np.ndarray:
    r"""$(\lambda_i c_{ij}\,a_i^T b^j)'$ of the flow against (A.11), divided by $\|\theta\|^4$."""
    states, rates = evidence.states, evidence.rates
    a, b, c = states.layers
    weight = states.strength[..., None]
    onto = weight * np.einsum("...pq,...rp->...rq", b, a)
    moving = weight * (
        np.einsum("...pq,...rp->...rq", rates.b, a) + np.einsum("...pq,...rp->...rq", b, rates.a)
    )
    rate = rates.c * onto + c * moving
    between = weight * np.einsum("...ip,...kp->...ik", a, a) * np.swapaxes(weight, -1, -2)
    printed = (
        onto**2
        + c * np.einsum("...ik,...kj->...ij", between, c)
        + weight**2 * c * np.einsum("...ik,...kj->...ij", c, evidence.columns)
    )
    return largest(np.abs(rate - printed) / evidence.size[..., None, None] ** 4)


def second_rates(evidence: Evidence) -> np.ndarray:
    r"""$\langle c_{ik}b^k, c_{ij}b^j\rangle'$ against (A.13), divided by $\|\theta\|^5$."""
    b, c = evidence.states.b, evidence.states.c
    moving = np.einsum("...pk,...pj->...kj", evidence.rates.b, b)
    moving = moving + np.swapaxes(moving, -1, -2)
    # λ_i b^j·a_i, which (A.13) divides by c_ij² and multiplies by c_ij.
    onto = evidence.gradient.c
    mixed = np.einsum("...lk,...lj->...kj", c, onto)
    mixed = mixed + np.swapaxes(mixed, -1, -2)
    worst = []
    for i in range(c.shape[2]):
        ours, rate, pull = (x[:, :, i] for x in (c, evidence.rates.c, onto))
        pairs = ours[..., :, None] * ours[..., None, :]
        turned = rate[..., :, None] * ours[..., None, :]
        turned = turned + np.swapaxes(turned, -1, -2)
        grown = pull[..., :, None] / ours[..., :, None]
        grown = grown + np.swapaxes(grown, -1, -2)
        change = turned * evidence.columns + pairs * moving
        printed = pairs * evidence.columns * grown + pairs * mixed
        worst.append(largest(np.abs(change - printed) / evidence.size[..., None, None] ** 5))
    return np.max(worst, axis=0)


def _pulls(a: np.ndarray, c: np.ndarray, strength: np.ndarray) -> np.ndarray:
    r"""$\lambda_i a_{ik} c_{il}$, shape `(samples, points, rank, p, q)`."""
    return strength[..., None, None] * a[..., :, None] * c[..., None, :]


def third_rates(evidence: Evidence) -> np.ndarray:
    r"""$(\lambda_i\lambda_j a_{ik}a_{jk}c_{il}c_{jl})'$ along the flow against (A.14)."""
    a, _, c = evidence.states.layers
    strength = evidence.states.strength
    pulls = _pulls(a, c, strength)
    moving = _pulls(evidence.rates.a, c, strength) + _pulls(a, evidence.rates.c, strength)
    # The bracket of (A.14) for one component: λ_i b_k·c_i / a_ik + λ_i b^l·a_i / c_il.
    grown = (evidence.gradient.a / a)[..., :, None] + (evidence.gradient.c / c)[..., None, :]
    worst = []
    for i in range(a.shape[2]):
        rate = moving[:, :, i : i + 1] * pulls + pulls[:, :, i : i + 1] * moving
        printed = pulls[:, :, i : i + 1] * pulls * (grown[:, :, i : i + 1] + grown)
        worst.append(largest(np.abs(rate - printed) / evidence.size[..., None, None, None] ** 5))
    return np.max(worst, axis=0)


def _both_sides(deviation: Callable[[Evidence], np.ndarray]) -> Callable[[Evidence], np.ndarray]:
    """A deviation for the columns and, with the flow read from the other end, for the rows."""

    def worse(evidence: Evidence) -> np.ndarray:
        return np.maximum(deviation(evidence), deviation(_other_side(evidence)))

    return worse


def rising_first(evidence: Evidence) -> np.ndarray:
    r"""How far any $\lambda_i c_{ij}\,a_i^T b^j$ falls in the final stage."""
    return falling(evidence, [evidence.states.c * evidence.gradient.c])


def rising_second(evidence: Evidence) -> np.ndarray:
    r"""How far any $\langle c_{ik}b^k, c_{ij}b^j\rangle$ falls in the final stage."""
    c, gram = evidence.states.c, evidence.columns[:, :, None]
    return falling(evidence, [c[..., :, None] * c[..., None, :] * gram])


def rising_third(evidence: Evidence) -> np.ndarray:
    r"""How far any $\lambda_i\lambda_j a_{ik}a_{jk}c_{il}c_{jl}$ falls in the final stage."""
    a, _, c = evidence.states.layers
    pulls = _pulls(a, c, evidence.states.strength)
    every = range(a.shape[2])
    return falling(evidence, [pulls[:, :, i : i + 1] * pulls for i in every])


def equal_signs(evidence: Evidence) -> np.ndarray:
    r"""Minus the least $c_{ik}c_{jk}c_{il}c_{jl}$ in the final stage, divided by norms."""
    c = evidence.states.c / np.linalg.norm(evidence.states.c, axis=-1, keepdims=True)
    pairs = c[:, :, :, None] * c[:, :, None]
    least, most = np.min(pairs, axis=-1), np.max(pairs, axis=-1)
    product = np.where(least * most > 0, np.minimum(least**2, most**2), least * most)
    return in_final_stage(evidence, -product)


APPENDIX = (
    Statement(
        name="(A.8)",
        proven="the flow is the gradient of E, (A.9)",
        observed="|θ' - ∇E|/|θ|²",
        deviation=gradient_flow,
        limit=1e-15,
        on=HIGHER,
    ),
    Statement(
        name="(3.11), units, rank 2 and 3",
        proven="Σ_i a_ik² - Σ_l b_kl², Σ_i c_il² - Σ_k b_kl² constant",
        observed="change, over |θ|²/m",
        deviation=unit_conservation,
        limit=1e-13,
        on=HIGHER,
    ),
    Statement(
        name="(3.11), norms, rank 2 and 3",
        proven="|a|², |b|², |c|² grow at 2E",
        observed="rates against 2E, over |θ|³",
        deviation=norm_growth,
        limit=1e-15,
        on=HIGHER,
    ),
    Statement(
        name="Assumptions 3, 4; Proposition 6",
        proven="the condition of rank r, once true, stays true",
        observed="least cosine from then on, with its sign changed",
        deviation=persistence,
        limit=0.0,
        on=HIGHER,
    ),
    Statement(
        name="(A.10)",
        proven="c_ik c_jk c_il c_jl > 0, and with a, from then on",
        observed="the least, over norms, with its sign changed",
        deviation=_both_sides(equal_signs),
        limit=0.0,
        on=HIGHER,
    ),
    Statement(
        name="(A.11), (A.12)",
        proven="the derivative of condition 1",
        observed="rates against it, over |θ|⁴",
        deviation=_both_sides(first_rates),
        limit=5e-16,
        on=(RECTANGULAR, *HIGHER),
    ),
    Statement(
        name="(A.13)",
        proven="the derivative of condition 2",
        observed="rates against it, over |θ|⁵",
        deviation=_both_sides(second_rates),
        limit=4e-16,
        on=(RECTANGULAR, *HIGHER),
    ),
    Statement(
        name="(A.14)",
        proven="the derivative of condition 3",
        observed="rates against it, over |θ|⁵",
        deviation=third_rates,
        limit=2.5e-16,
        on=(RECTANGULAR, *HIGHER),
    ),
    Statement(
        name="(A.11), (A.12) > 0",
        proven="condition 1 increases in the final stage",
        observed="fall between points, over the value",
        deviation=_both_sides(rising_first),
        limit=0.0,
        on=HIGHER,
    ),
    Statement(
        name="(A.13) > 0",
        proven="condition 2 increases in the final stage",
        observed="fall between points, over the value",
        deviation=_both_sides(rising_second),
        limit=0.0,
        on=HIGHER,
    ),
    Statement(
        name="(A.14) > 0",
        proven="condition 3 increases in the final stage",
        observed="fall between points, over the value",
        deviation=rising_third,
        limit=0.0,
        on=HIGHER,
    ),
)
