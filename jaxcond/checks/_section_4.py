r"""Section 4 of Chen and Luo: what the final stage condition implies, up to condensation.

Statements about $t \to T^*$ are checked at the last point, about $10^{-6}\,T^*$ before it. For
statements that claim a constant from some time on, the constant is computed on the first half of
the way from the onset of the final stage and tested on the second half. Half of the way is half of
the points, which are evenly spaced in the logarithm of $T^* - t$.
"""

import numpy as np

from ._evidence import PARTIAL, RANK_1, Evidence
from ._statement import (
    Statement,
    at,
    closest,
    halves,
    in_final_stage,
    largest,
    over_points,
    where_tested,
)

# Units with at least this share of the root mean square of c count as members of C₁. It must be
# well above the distance of the last point from T*.
_SHARE = 1e-2
# Relative distance from the blow-up from which on quantities are compared with their limits.
_NEAR = 1e-4


def persistence(evidence: Evidence) -> np.ndarray:
    """The most negative margin of the final stage condition after its onset."""
    return in_final_stage(evidence, -evidence.margin)


def _products(evidence: Evidence) -> list[np.ndarray]:
    """The left-hand sides of the final stage condition at rank 1, shapes `(samples, points, n)`."""
    a, _, c = evidence.states.layers
    firsts = [c[:, :, 0] * evidence.gradient.c[:, :, 0], a[:, :, 0] * evidence.gradient.a[:, :, 0]]
    seconds = [
        layer[:, :, 0, :, None] * layer[:, :, 0, None, :] * gram
        for layer, gram in ((c, evidence.columns), (a, evidence.rows))
    ]
    return [*firsts, *(x.reshape(*x.shape[:2], -1) for x in seconds)]


def rising_products(evidence: Evidence) -> np.ndarray:
    """The largest fall of any left-hand side from one point to the next, divided by its value."""
    return falling(evidence, _products(evidence))


def falling(evidence: Evidence, values: list[np.ndarray]) -> np.ndarray:
    """The largest relative fall of values from one point of the final stage to the next."""
    after = evidence.once_final[:, :-1]
    falls = [(x[:, :-1] - x[:, 1:]) / np.abs(x[:, 1:]) for x in values]
    worst = [over_points(evidence, after, fall) for fall in falls]
    return np.max(worst, axis=0)


def rising_units(evidence: Evidence) -> np.ndarray:
    r"""The largest relative fall of any $c_l^2$ in the final stage."""
    return falling(evidence, [evidence.states.c[:, :, 0] ** 2])


def bounded_unit(evidence: Evidence) -> np.ndarray:
    r"""How far the unit outside of $C_1$ moves on the last stretch, over the size of $c_l(0)$."""
    c = evidence.states.c[:, :, 0]
    moved = np.abs(c[:, -1, 0] - at(c, closest(evidence, _NEAR))[:, 0])
    moved = moved / np.sqrt(np.mean(c[:, 0] ** 2, axis=-1))
    return where_tested(np.isfinite(evidence.blow_up), moved, evidence)


def never_final(evidence: Evidence) -> np.ndarray:
    """The share of the points at which the final stage condition holds."""
    share = np.mean(evidence.final, axis=1)
    return where_tested(np.isfinite(evidence.blow_up), share, evidence)


def pair_rates(evidence: Evidence) -> np.ndarray:
    r"""$p'$, $q'$ and $p' - (p/q+1)\,q'/2$ of the flow against (4.6)-(4.8), over $|\theta|^5$."""
    b, c = evidence.states.b, evidence.states.c[:, :, 0]
    db, dc = evidence.rates.b, evidence.rates.c[:, :, 0]
    onto = np.einsum("...pq,...p->...q", b, evidence.states.a[:, :, 0])
    moving = np.einsum("...pi,...pj->...ij", db, b)
    moving = moving + np.swapaxes(moving, -1, -2)
    product, square = _outer(c, c), _outer(c * c, c * c)
    p = product * evidence.columns
    turning = _outer(dc, c) + _outer(c, dc)
    p_rate = turning * evidence.columns + product * moving
    q_rate = 2 * product * turning
    pull = _outer(c * c, c * onto) + _outer(c * onto, c * c)
    size = evidence.size[..., None, None]
    return largest(
        np.stack(
            [
                np.abs(p_rate - pull * (1 + p / square)) / size**5,
                np.abs(q_rate - 2 * pull) / size**5,
                np.abs(p_rate - q_rate * (p / square + 1) / 2) / size**5,
            ],
            axis=-1,
        )
    )


def pairs_conserved(evidence: Evidence) -> np.ndarray:
    r"""How far $\sqrt{q}\,|1 - p/q|$ moves for any pair, over $\|\theta\|^2$."""
    c = evidence.states.c[:, :, 0]
    root = np.abs(_outer(c, c))
    kept = root * np.abs(1 - _outer(c, c) * evidence.columns / root**2)
    return largest(np.abs(kept - kept[:, :1]) / evidence.unit_square[..., None, None])


def _outer(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x[..., :, None] * y[..., None, :]


def _last_columns(evidence: Evidence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    r"""$c$, $b^Tb$ and membership in $C_1$ at the last point."""
    c = evidence.states.c[:, -1, 0]
    inside = np.abs(c) > _SHARE * np.sqrt(np.mean(c * c, axis=-1, keepdims=True))
    return c, evidence.columns[:, -1], inside


def aligned_columns(evidence: Evidence) -> np.ndarray:
    r"""$1 - \cos\xi_{ij}$ and $|1 - \|b^i\|^2/c_i^2|$ on $C_1$ at the last point."""
    c, gram, inside = _last_columns(evidence)
    square = np.diagonal(gram, axis1=-2, axis2=-1)
    cosines = np.sign(_outer(c, c)) * gram / np.sqrt(_outer(square, square))
    pairs = inside[:, :, None] & inside[:, None, :]
    apart = largest(np.where(pairs, 1 - cosines, 0))
    lengths = largest(np.where(inside, np.abs(1 - square / c**2), 0))
    return where_tested(np.isfinite(evidence.blow_up), np.maximum(apart, lengths), evidence)


def equal_norms(evidence: Evidence) -> np.ndarray:
    r"""$m$ times the distance of $\|a'\|/\|c\|^2$ and $\|a'\|/\|a\|^2$ from 1 at the last point.

    $a'$ is that of the flow. The norms at the last point grow like the square root of $m$.
    """
    speed = np.linalg.norm(evidence.rates.a[:, -1, 0], axis=-1)
    ratios = speed / evidence.norms[[0, 2], :, -1]
    apart = max(evidence.states.widths) * np.max(np.abs(ratios - 1), axis=0)
    return where_tested(np.isfinite(evidence.blow_up), apart, evidence)


def shares(evidence: Evidence) -> np.ndarray:
    r"""$m$ times the distance of $\|a'\|^2/(\sum_{C_1} c_i^2)^2$ and of the share of $C_1$ from 1.

    $C_1$ holds the units that have grown tenfold since $10^{-4}\,T^*$ before the blow-up.
    """
    c = evidence.states.c[:, :, 0]
    last = c[:, -1]
    inside = np.abs(last) > 10 * np.abs(at(c, closest(evidence, _NEAR)))
    square = np.sum(np.where(inside, last**2, 0), axis=-1)
    speed = np.sum(evidence.rates.a[:, -1, 0] ** 2, axis=-1)
    ratios = np.stack([speed / square**2, square / evidence.norms[2, :, -1]])
    apart = max(evidence.states.widths) * np.max(np.abs(ratios - 1), axis=0)
    return where_tested(np.isfinite(evidence.blow_up), apart, evidence)


def aligned_velocity(evidence: Evidence) -> np.ndarray:
    r"""$1 - \cos\psi_i$ on $C_1$ at the last point, with $a'$ of the flow."""
    c, gram, inside = _last_columns(evidence)
    b, speed = evidence.states.b[:, -1], evidence.rates.a[:, -1, 0]
    onto = np.sign(c) * np.einsum("spq,sp->sq", b, speed)
    square = np.diagonal(gram, axis1=-2, axis2=-1)
    cosines = onto / (np.sqrt(square) * np.linalg.norm(speed, axis=-1, keepdims=True))
    return where_tested(
        np.isfinite(evidence.blow_up), largest(np.where(inside, 1 - cosines, 0)), evidence
    )


def _phi(evidence: Evidence) -> np.ndarray:
    r"""The least $\cos\varphi_i$ at each point."""
    a, b, c = evidence.states.layers
    onto = np.sign(c[:, :, 0]) * np.einsum("...pq,...p->...q", b, a[:, :, 0])
    square = np.diagonal(evidence.columns, axis1=-2, axis2=-1)
    return np.min(onto / np.sqrt(square * evidence.norms[0][..., None]), axis=-1)


def _zeta(evidence: Evidence) -> np.ndarray:
    r"""$\cos\zeta$ at each point, with $a'$ of the flow."""
    a, speed = evidence.states.a[:, :, 0], evidence.rates.a[:, :, 0]
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(speed, axis=-1)
    return np.sum(a * speed, axis=-1) / lengths


def _below_first_half(evidence: Evidence, cosines: np.ndarray, values: np.ndarray) -> np.ndarray:
    """The fall of values on the second half below the least cosine on the first, divided by it."""
    first, second = halves(evidence)
    least = np.min(np.where(first, cosines, np.inf), axis=1, keepdims=True)
    short = np.where(least > 0, 1 - values / least, np.inf)
    return over_points(evidence, second, short)


def onto_columns(evidence: Evidence) -> np.ndarray:
    r"""How far $\cos\varphi_i$ falls below $\cos\Theta_1$, over it."""
    cosines = _phi(evidence)
    return _below_first_half(evidence, cosines, cosines)


def onto_velocity(evidence: Evidence) -> np.ndarray:
    r"""How far $\cos\zeta$ falls below $\cos\Theta_2$, over it."""
    cosines = _zeta(evidence)
    return _below_first_half(evidence, cosines, cosines)


def energy_along(evidence: Evidence) -> np.ndarray:
    r"""How far $E/(\|a\|\|a'\|)$, with $a'$ of the flow, falls below $\cos\Theta_2$, over it."""
    speed = np.linalg.norm(evidence.rates.a[:, :, 0], axis=-1)
    along = evidence.energies / (np.sqrt(evidence.norms[0]) * speed)
    return _below_first_half(evidence, _zeta(evidence), along)


def _constant(evidence: Evidence) -> tuple[np.ndarray, np.ndarray]:
    r"""$C = \frac43(\cos\Theta_2)^{-4/3}$ of each sample, and the points after $T_3$.

    These are the points of the second half after which (4.5) keeps
    $\|a'\|^{2/3}\|a\|^{-4/3}(1 + \|c'\|^2/\|a'\|^2 + \|a\|^2\|c\|^2/\|a'\|^2)$ below 4.
    """
    first, second = halves(evidence)
    least = np.min(np.where(first, _zeta(evidence), np.inf), axis=1)
    constant = np.where(least > 0, 4 / 3 * least ** (-4 / 3), np.nan)
    speed_a, speed_c = (
        np.sum(x * x, axis=(-2, -1)) for x in (evidence.gradient.a, evidence.gradient.c)
    )
    norms = evidence.norms
    factor = np.cbrt(speed_a / norms[0] ** 2) * (
        1 + speed_c / speed_a + norms[0] * norms[2] / speed_a
    )
    settled = np.flip(np.logical_and.accumulate(np.flip(factor <= 4, 1), axis=1), 1)
    return constant, second & settled


def energy_upper_bound(evidence: Evidence) -> np.ndarray:
    r"""$(E(s)^{-1/3} - E(t)^{-1/3})/(C(t-s))$ less 1, for $s < t$ after $T_3$."""
    constant, after = _constant(evidence)
    reach = np.cbrt(1 / evidence.energies)
    # E^(-1/3) is a sum over the stretches between points, so the worst pair are neighbours.
    slopes = (reach[:, :-1] - reach[:, 1:]) / np.diff(evidence.times, axis=1)
    excess = slopes / constant[:, None] - 1
    return over_points(evidence, after[:, :-1], excess)


def lower_bound(evidence: Evidence) -> np.ndarray:
    r"""How far $E^{-1/3}/C$ exceeds $T^* - t$ after $T_3$, over $E^{-1/3}$."""
    constant, after = _constant(evidence)
    left = (evidence.blow_up[:, None] - evidence.times) * np.cbrt(evidence.energies)
    return over_points(evidence, after, 1 / constant[:, None] - left)


def energy_by_norm(evidence: Evidence) -> np.ndarray:
    r"""The relative excess over (4.26) and the inequality after it on the second half."""
    speed = np.linalg.norm(evidence.rates.a[:, :, 0], axis=-1)
    size = np.sqrt(evidence.norms[0])
    ratios = (
        evidence.energies / (speed * size),
        speed / (2 * np.sqrt(2) * size**2),
        np.cbrt(evidence.energies) ** 2 / (2 * size**2),
    )
    _, second = halves(evidence)
    return over_points(evidence, second, np.stack(ratios, axis=-1) - 1)


def growth_by_stretch(evidence: Evidence) -> np.ndarray:
    r"""How far $c_i(t_2) - c_i(t_1)$ falls short of (4.27) on the second half, over $c_i(T_4)$.

    $t_1$ is a point and $t_2$ the next one, if that is not later than the $t_2$ of the proof.
    """
    constant, after = _constant(evidence)
    constant = constant[:, None]
    size = np.abs(evidence.states.c[:, :, 0])
    first = np.argmax(after, axis=1)
    beginning = at(size, first)[:, None]
    length = np.cbrt(1 / evidence.energies) / (2 * constant)
    within = np.diff(evidence.times, axis=1) <= length[:, :-1]
    least = (np.log(1 / (1 - 1 / (2 * constant))) - 1 / (2 * constant)) / 2
    grown = np.diff(size, axis=1) / beginning
    return over_points(evidence, after[:, :-1] & within, least[..., None] - grown)


def _growth(evidence: Evidence) -> np.ndarray:
    r"""$|1 - E^{-1/3} c_l'/c_l|$ of the unit farthest from it, at every point.

    $E^{-1/3}$ equals $T^* - t$ to higher order, with more digits.
    """
    c, rate = evidence.states.c[:, :, 0], evidence.rates.c[:, :, 0]
    left = np.cbrt(1 / evidence.energies)[..., None]
    return np.max(np.abs(1 - left * rate / c), axis=-1)


def condensation(evidence: Evidence) -> np.ndarray:
    r"""$|1 - \text{exponent}|$ of the slowest $|c_l| \sim (T^*-t)^{-1}$ at the last point."""
    return where_tested(evidence.final[:, -1], _growth(evidence)[:, -1], evidence)


def exact_growth(evidence: Evidence) -> np.ndarray:
    r"""Relative change of $c_l (T^*-t)$ from $10^{-4}\,T^*$ before $T^*$ to the last point."""
    steady = evidence.states.c[:, :, 0] * np.cbrt(1 / evidence.energies)[..., None]
    near = closest(evidence, _NEAR)
    moved = largest(np.abs(at(steady, near) / steady[:, -1] - 1))
    return where_tested(at(evidence.final, near), moved, evidence)


def lower_bound_always(evidence: Evidence) -> np.ndarray:
    r"""How far $E^{-1/3}/C$ exceeds $T^* - t$ at any time with $E > 0$, over $E^{-1/3}$."""
    constant, _ = _constant(evidence)
    positive = evidence.energies > 0
    inverse = np.cbrt(np.where(positive, evidence.energies, np.nan))
    left = (evidence.blow_up[:, None] - evidence.times) * inverse
    excess = np.where(positive, 1 / constant[:, None] - left, -np.inf)
    reached = np.any(evidence.final, axis=1)
    return where_tested(reached, np.max(excess, axis=1), evidence)


SECTION_4 = (
    Statement(
        name="Assumption 2, Proposition 2",
        proven="the condition, once true, stays true",
        observed="least cosine from then on, with its sign changed",
        deviation=persistence,
        limit=0.0,
        on=RANK_1,
    ),
    Statement(
        name="Proposition 2, proof",
        proven="its left-hand sides increase from then on",
        observed="fall between points, over the value",
        deviation=rising_products,
        limit=0.0,
        on=RANK_1,
    ),
    Statement(
        name="Proposition 3 (i), (4.3)",
        proven="under Assumption 2 every c_l² increases",
        observed="fall between points, over the value",
        deviation=rising_units,
        limit=0.0,
        on=RANK_1,
    ),
    Statement(
        name="Proposition 3 (i), C₂",
        proven="c_l has a limit, l in C₂",
        observed="change from 1e-4 T* before T* on, over rms c(0)",
        deviation=bounded_unit,
        limit=1.4e-3,
        on=(PARTIAL,),
    ),
    Statement(
        name="Theorem 3, C₂",
        proven="where C₂ is not empty, Assumption 2 never holds",
        observed="share of the points where it does",
        deviation=never_final,
        limit=0.0,
        on=(PARTIAL,),
    ),
    Statement(
        name="Proposition 3 (ii), (4.4), (4.12)",
        proven="cos ξ_ij → 1, |b^i|²/c_i² → 1 on C₁",
        observed="distance from 1 at the end",
        deviation=aligned_columns,
        limit=2e-7,
        on=(*RANK_1, PARTIAL),
    ),
    Statement(
        name="Proposition 3 (iii), (4.5)",
        proven="|a'|/|c|² → 1, |a'|/|a|² → 1",
        observed="m times the distance from 1 at the end",
        deviation=equal_norms,
        limit=4e-11,
        on=(*RANK_1, PARTIAL),
    ),
    Statement(
        name="(4.14)-(4.16)",
        proven="|a'|/Σ_C₁ c_i² → 1, Σ_C₁ c_i²/|c|² → 1",
        observed="m times the distance from 1, the first squared",
        deviation=shares,
        limit=8e-11,
        on=(*RANK_1, PARTIAL),
    ),
    Statement(
        name="(4.6)-(4.9)",
        proven="p', q' as given, dp/dq = (p/q + 1)/2",
        observed="rates against them, over powers of |θ|",
        deviation=pair_rates,
        limit=5e-16,
        on=(*RANK_1, PARTIAL),
    ),
    Statement(
        name="(4.10)",
        proven="q(1 - p/q)² constant, every pair",
        observed="change of its root, over |θ|²/m",
        deviation=pairs_conserved,
        limit=5e-14,
        on=(*RANK_1, PARTIAL),
    ),
    Statement(
        name="Corollary 2, (4.17)",
        proven="cos ψ_i → 1 on C₁",
        observed="distance from 1 at the end",
        deviation=aligned_velocity,
        limit=1e-7,
        on=(*RANK_1, PARTIAL),
    ),
    Statement(
        name="Proposition 4, (4.18)",
        proven="cos φ_i ≥ cos Θ₁ > 0 on C₁",
        observed="shortfall; Θ₁ of the first half",
        deviation=onto_columns,
        limit=0.0,
        on=RANK_1,
    ),
    Statement(
        name="Proposition 5, (4.19)",
        proven="cos ζ ≥ cos Θ₂ > 0",
        observed="shortfall; Θ₂ of the first half",
        deviation=onto_velocity,
        limit=1e-15,
        on=RANK_1,
    ),
    Statement(
        name="Proposition 5, (4.20)",
        proven="E ≥ cos Θ₂ |a||a'|",
        observed="shortfall over E; Θ₂ of the first half",
        deviation=energy_along,
        limit=1e-15,
        on=RANK_1,
    ),
    Statement(
        name="Theorem 2, (4.21)",
        proven="E(t) ≤ (E(s)^(-1/3) - C(t-s))^(-3), T₃ ≤ s < t",
        observed="excess over C; C = 4/3 (cos Θ₂)^(-4/3)",
        deviation=energy_upper_bound,
        limit=0.0,
        on=RANK_1,
    ),
    Statement(
        name="Theorem 2, (4.22)",
        proven="T* ≥ t + E^(-1/3)/C, t > T₃",
        observed="excess over E^(-1/3); C as above",
        deviation=lower_bound,
        limit=0.0,
        on=RANK_1,
    ),
    Statement(
        name="Theorem 2, (4.22) as printed",
        proven="T* ≥ t + E^(-1/3)/C, every t < T*: wrong where E passes 0",
        observed="excess over E^(-1/3); C as above",
        deviation=lower_bound_always,
        limit=0.0,
        on=RANK_1,
        refuted=True,
    ),
    Statement(
        name="Theorem 3, (4.26)",
        proven="E ≤ |a'||a| ≤ 2√2|a|³, |a|² ≥ E^(2/3)/2, t > T₄",
        observed="excess, relative, on the second half",
        deviation=energy_by_norm,
        limit=3e-15,
        on=RANK_1,
    ),
    Statement(
        name="Theorem 3, (4.25), (4.27)",
        proven="c_i(t₂) - c_i(t₁) ≥ c_i(T₄)/2 (ln 1/(1-1/(2C)) - 1/(2C))",
        observed="shortfall over c_i(T₄); C as above",
        deviation=growth_by_stretch,
        limit=0.0,
        on=RANK_1,
    ),
    Statement(
        name="Theorem 3, Definition 1",
        proven="every c_i → ±∞",
        observed="c_i'(T*-t)/c_i against 1 at the end",
        deviation=condensation,
        limit=8e-9,
        on=RANK_1,
    ),
    Statement(
        name="Theorem 3, rate",
        proven="(observed only) c_i(T*-t) has a limit",
        observed="change from 1e-4 T* before T* on, relative",
        deviation=exact_growth,
        limit=2e-4,
        on=RANK_1,
    ),
)
