r"""Bounds on the blow-up time from the current state alone, and the closed forms.

With $N$ any of $\|a\|^2, \|b\|_F^2, \|c\|^2$ the flow has $N' = 2E$ and
$E \le \max_i|\lambda_i|\,\|a\|\|b\|_F\|c\|$; integrating,

$$T^* \ge t + R_F(\|a\|^2, \|b\|_F^2, \|c\|^2) / \max_i|\lambda_i|,$$

for every state, with Carlson's symmetric integral $R_F$. When $E > 0$,

$$T^* \le t + E^{-1/3} \quad (r = 1), \qquad
T^* \le t + (\|a\|^2+\|b\|_F^2+\|c\|^2)/(3E) \quad (\text{any } r).$$

Sources: the upper bound for rank 1 is Chen and Luo, Theorem 1, eq. (3.15); the other two follow
from $N' = 2E$ and from $E' = \|\nabla E\|^2 \ge 9E^2/\|\theta\|^2$. All bounds are on the time left
from the given state. `bracket` takes chains of any depth too.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, ArrayLike, Bool, Float

from ._chain import Chain, as_state, check_single
from ._chain_bounds import chain_bracket, chain_integral
from ._energy import conserved, energy, squared_norms, vector_field
from ._state import State

# Each duplication halves the logarithm of the ratio of the arguments until they are comparable,
# then divides their relative differences by four. Fourteen take the ratios that float64 squares can
# have (1e300) to differences under 1e-2, where the remainder of the series is below rounding.
_NUM_DUPLICATIONS = 14


def carlson_rf(
    x: Float[ArrayLike, "..."],
    y: Float[ArrayLike, "..."],
    z: Float[ArrayLike, "..."],
    *,
    num_duplications: int = _NUM_DUPLICATIONS,
) -> Float[Array, "..."]:
    r"""Carlson's symmetric elliptic integral of the first kind.

    $$R_F(x, y, z) = \tfrac12 \int_0^\infty \frac{dt}{\sqrt{(t+x)(t+y)(t+z)}}$$

    **Arguments:** `x`, `y`, `z` non-negative (they broadcast), at most one of them zero;
    `num_duplications` may be lowered where the arguments are known to be close to each other.

    **Returns:** the integral to a few units in the last place of the dtype; infinity where two
    arguments vanish, NaN where one is negative or NaN. Differentiable where all are positive.

    Source: B. C. Carlson, *Numerical computation of real or complex elliptic integrals* (1995);
    the series is DLMF 19.36.1.
    """
    x, y, z = jnp.broadcast_arrays(
        *(jnp.asarray(v, jnp.result_type(x, y, z, 0.0)) for v in (x, y, z))
    )
    num_zeros = sum((v == 0).astype(jnp.int32) for v in (x, y, z))
    diverges = num_zeros >= 2
    # Away from the arguments that diverge, so that gradients stay finite.
    x, y, z = (jnp.where(diverges, 1.0, v) for v in (x, y, z))

    def duplicate(_: Array, point: tuple[Array, Array, Array]) -> tuple[Array, ...]:
        x, y, z = point
        root_x, root_y, root_z = jnp.sqrt(x), jnp.sqrt(y), jnp.sqrt(z)
        shift = root_x * (root_y + root_z) + root_y * root_z
        return 0.25 * (x + shift), 0.25 * (y + shift), 0.25 * (z + shift)

    x, y, z = lax.fori_loop(0, num_duplications, duplicate, (x, y, z))
    mean = (x + y + z) / 3
    dx, dy = 1 - x / mean, 1 - y / mean
    dz = -dx - dy
    e2, e3 = dx * dy - dz * dz, dx * dy * dz
    series = 1 + e2 * (-1 / 10 + e2 * (1 / 24 - 5 / 208 * e2) - 3 / 44 * e3)
    series = series + e3 * (1 / 14 + 3 / 104 * e3 + 1 / 16 * e2 * e2)
    return jnp.where(diverges, jnp.inf, series / jnp.sqrt(mean))


def bracket(point: State | Chain) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""A rigorous interval for the time from one state or chain to its blow-up.

    For states the bounds at the top of this module; for chains of $L \ge 3$ layers, with $n_l =
    \|W_l\|_F^2$,

    $$\frac{1}{2\|V\|_2}\int_0^\infty \prod_{l=1}^L \frac{dx}{\sqrt{n_l+x}} \;\le\; T^* \;\le\;
      \frac{\sum_l n_l}{L(L-2)E}, \qquad
      T^* \le \frac{(E/\lambda)^{2/L-1}}{(L-2)\lambda} \quad (V = \pm\lambda,\ 1 \times 1).$$

    The bounds are evaluated in the singular vectors of the target, where the norms are smallest.
    They coincide if the layers are aligned, have equal norms, and the energy is positive.

    **Arguments:** one `State`, or one `Chain`.

    **Returns:** `(lower, upper)`. `upper` is infinite unless the energy is positive; both are
    infinite if all strengths are zero or there are two layers, and NaN for entries that are not
    finite.

    **Raises:** `ValueError` for a batch of chains.
    """
    if isinstance(point, Chain):
        check_single("bracket", point)
        if point.depth != 3:
            return chain_bracket(point)
    state = as_state(point) if isinstance(point, Chain) else point
    unit, scale = state.unit_scale()
    strongest = jnp.max(jnp.abs(unit.strength))
    norms = squared_norms(unit)
    lower, upper = bracket_from_norms(norms, energy(unit), strongest)
    if state.rank > 1:
        # The rank-one bound needs E' >= 3 E^{4/3}, which several components need not satisfy.
        upper = jnp.where(upper < jnp.inf, jnp.sum(norms) / (3 * energy(unit)), jnp.inf)
    return lower / scale, upper / scale


def bracket_from_norms(
    norms: Float[Array, "3 *lanes"],
    current_energy: Float[Array, " *lanes"],
    strength: Float[Array, " *lanes"],
) -> tuple[Float[Array, " *lanes"], Float[Array, "*lanes"]]:
    r"""The rank-one bracket from $(\|a\|^2, \|b\|_F^2, \|c\|^2)$, $E$ and $|\lambda|$ alone."""
    lower = carlson_rf(norms[0], norms[1], norms[2]) / strength
    positive = current_energy > 0
    # E = strength * a.bc, and time is measured in units of 1 / strength.
    unit_energy = jnp.where(positive, current_energy / strength, 1)
    upper = jnp.where(positive, 1 / (jnp.cbrt(unit_energy) * strength), jnp.inf)
    return lower, jnp.where(jnp.isnan(current_energy), jnp.nan, upper)


def theorem_1_upper(state: State) -> Float[Array, ""]:
    """$E^{-1/3}$, the bound of Theorem 1, eq. (3.15), for rank 1 and unit strength.

    **Returns:** the bound on the time left; infinite unless the energy is positive.
    """
    current = energy(state)
    return jnp.where(current > 0, 1 / jnp.cbrt(jnp.where(current > 0, current, 1)), jnp.inf)


def energy_growth(state: State) -> Float[Array, ""]:
    """The factor $E' / (3 E^{4/3})$ by which the energy grows faster than Theorem 1 needs.

    It is at least 1 (eq. (3.14)); its supremum from some time on is the constant $C$ of
    Theorem 2. For rank 1, unit strength and positive energy; NaN otherwise.
    """
    rate = jnp.sum(squared_norms(vector_field(state)))
    return rate / (3 * energy(state) ** (4 / 3))


def theorem_2_lower(state: State, growth: Float[Array, ""] | float) -> Float[Array, ""]:
    """$E^{-1/3}/C$, the bound of Theorem 2, eq. (4.22), given the constant $C$ = `growth`."""
    return theorem_1_upper(state) / growth


def theorem_2_energy(
    initial_energy: Float[Array, ""], elapsed: Float[Array, ""], growth: Float[Array, ""]
) -> Float[Array, ""]:
    r"""The upper bound $E(t) \le (E(s)^{-1/3} - C (t-s))^{-3}$ of Theorem 2, eq. (4.21).

    **Arguments:** $E(s) > 0$, the time $t - s$, and the constant $C$ = `growth`. With $C = 1$ it is
    the *lower* bound of Theorem 1.

    **Returns:** the bound, infinite from the time on at which it blows up.
    """
    left = initial_energy ** (-1 / 3) - growth * elapsed
    return jnp.where(left > 0, jnp.where(left > 0, left, 1) ** -3, jnp.inf)


def assumption_1(state: State) -> Bool[Array, ""]:
    r"""Whether Assumption 1 holds for one rank-one state, which then blows up (Theorem 1).

    With $\kappa = \|c\|^2 - \|a\|^2$, $a' = bc$ and $c' = b^Ta$ it says that

    $$\|a\| \ne \|c\|, \qquad
      \|a'\|^2 - \|c'\|^2 - \kappa \min(\|a\|^2, \|c\|^2) \ne 0 .$$

    $\kappa$ is conserved, and since $(\|a'\|^2 - \|c'\|^2)' = 2\kappa E$, so is
    $\|a'\|^2 - \|c'\|^2 - \kappa\|a\|^2$: the left-hand side is what $\|a'\|^2 - \|c'\|^2$ would
    tend to if the smaller of $a$ and $c$ came to rest at zero. `blow_up_guaranteed` is another
    condition; neither implies the other.

    **Arguments:** one `State` of rank 1, any widths and scale. The condition is the same for
    strengths 1 and -1; for another strength, times are in units of $1/|\lambda|$.

    **Returns:** a boolean scalar. Differences within 16 units of rounding of their terms count as
    zero. The result is false for zero strength and for entries that are not finite.

    **Raises:** `ValueError` for a higher rank.

    Source: Chen and Luo, eqs. (3.12) and (3.13).
    """
    if state.rank != 1:
        raise ValueError(f"Assumption 1 is about rank 1, but the rank is {state.rank}.")
    unit, _ = state.unit_scale()
    a, b, c = unit.a[0], unit.b, unit.c[0]
    size_a, size_c = jnp.sum(a * a), jnp.sum(c * c)
    speed_a, speed_c = jnp.sum((b @ c) ** 2), jnp.sum((a @ b) ** 2)
    smaller = jnp.minimum(size_a, size_c)
    rounding = 16 * jnp.finfo(state.dtype).eps
    apart = jnp.abs(size_a - size_c) > rounding * (size_a + size_c)
    remainder = speed_a - speed_c - (size_c - size_a) * smaller
    terms = speed_a + speed_c + (size_c + size_a) * smaller
    moving = apart & (jnp.abs(remainder) > rounding * terms)
    return moving & (unit.strength[0] != 0)


def blow_up_guaranteed(state: State) -> Bool[Array, ""]:
    r"""Whether the conserved matrices prove that one rank-one state blows up.

    A flow that does not blow up has $E \le 0$, so its norms do not grow and, being an analytic
    gradient flow, it converges to an equilibrium: $a = 0$ or $c = 0$ there, since $ac^T = 0$. If
    $\|a\| > \|c\|$ it is $c = 0$, hence $C = b^Tb - cc^T$, which is conserved, must be positive
    semidefinite; if $\|c\| > \|a\|$ the same holds for $A = bb^T - aa^T$. A negative eigenvalue of
    that matrix, or $E > 0$, therefore guarantees a finite blow-up time. The condition is
    sufficient, not necessary; `assumption_1` is the condition of the paper, and docs/paper.md
    compares the two.

    **Returns:** a boolean scalar.
    """
    quantities = conserved(state)
    tolerance = 16 * jnp.finfo(state.dtype).eps * jnp.sum(squared_norms(state))
    left = jnp.min(jnp.linalg.eigvalsh(quantities.left)) < -tolerance
    right = jnp.min(jnp.linalg.eigvalsh(quantities.right)) < -tolerance
    balance = quantities.balance[0]
    by_balance = jnp.where(balance > 0, left, jnp.where(balance < 0, right, left | right))
    return (energy(state) > 0) | by_balance


def _rf_of_roots(x: Array, y: Array, z: Array) -> Array:
    """`carlson_rf` of the squares of its arguments, which may be too small for the dtype."""
    diverges = sum((v == 0).astype(jnp.int32) for v in (x, y, z)) >= 2
    # A step of Carlson's duplication, by factors.
    sums = (x + y, y + z, z + x)
    x, y, z = (0.25 * sums[i] * sums[i - 1] for i in range(3))
    return jnp.where(diverges, jnp.inf, carlson_rf(x, y, z))


def aligned_blowup_time(*weights: Float[ArrayLike, "..."]) -> Float[Array, "..."]:
    r"""Blow-up time of aligned layers, $W_l = w_l u_l u_{l-1}^T$ with unit vectors $u_l$.

    For three layers $a = \alpha u,\ b = \beta u w^T,\ c = \gamma w$. Scalars have width 1.
    With $s_1 \le s_2 \le \dots \le s_L$ the sorted squares $w_l^2$ and

    $$I(s) = \tfrac12\int_0^\infty \prod_{l=1}^L \frac{dx}{\sqrt{s_l + x}}, \qquad
      E > 0:\ T^* = I(s), \qquad E < 0:\ T^* = 2 I(s - s_1) - I(s);$$

    $I = R_F$ for $L = 3$. The time is infinite exactly when $E < 0$ and $s_1 = s_2$ (Example 1 of
    Chen and Luo), or when two of them vanish. With $E = 0$ and one zero the two formulas agree.

    **Arguments:** the weights $w_1, \dots, w_L$, at least three, in any order; they broadcast.

    **Returns:** $T^*$ for unit strength, to a few units in the last place. Three layers may have
    any scale; the weights of more layers must lie within 150 decades of each other (15 in float32).

    **Raises:** `ValueError` for fewer than three weights.
    """
    depth = len(weights)
    if depth < 3:
        raise ValueError(
            f"`aligned_blowup_time` takes at least 3 weights, but got {depth}: two layers never "
            "blow up."
        )
    dtype = jnp.result_type(*weights, 0.0)
    values = jnp.stack(jnp.broadcast_arrays(*(jnp.asarray(w, dtype) for w in weights)))
    # Neither the product nor the squares may underflow, so a difference of squares is computed as
    # the product of an exact difference and a sum.
    _, exponent = jnp.frexp(jnp.max(jnp.abs(values), axis=0))
    negative = jnp.prod(jnp.sign(values), axis=0) < 0
    roots = jnp.sort(jnp.ldexp(jnp.abs(values), -exponent[None]), axis=0)
    low, *others = roots
    shifted = jnp.stack([jnp.zeros_like(low), *(_root_difference(x, low) for x in others)])
    direct, after = _integral_of_roots(roots), _integral_of_roots(shifted)
    return jnp.ldexp(jnp.where(negative, 2 * after - direct, direct), (2 - depth) * exponent)


def _root_difference(high: Array, low: Array) -> Array:
    return jnp.sqrt(high - low) * jnp.sqrt(high + low)


def _integral_of_roots(roots: Array) -> Array:
    """$I$ of the squares of sorted roots, stacked along the first axis."""
    if roots.shape[0] == 3:
        return _rf_of_roots(*roots)
    return chain_integral(jnp.moveaxis(roots * roots, 0, -1))


def two_layer_flow(
    a: Float[ArrayLike, " width"], c: Float[ArrayLike, " width"], t: Float[ArrayLike, "*num"]
) -> tuple[Float[Array, "*num width"], Float[Array, "*num width"]]:
    r"""The effective dynamics of two-layer networks, which exists for all times.

    $$a' = c,\ c' = a: \qquad a(t) = a\cosh t + c\sinh t, \quad c(t) = a\sinh t + c\cosh t .$$

    In the singular vectors of its target a `Chain` of two layers is such a pair $a_i = W_2^TP_i$,
    $c_i = W_1Q_i$ for every singular value $\lambda_i$, with $\lambda_i t$ in place of $t$.

    **Arguments:** the output layer `a` and the input layer along the target direction `c`, shape
    `(width,)`; times `t` of either sign, a scalar or of shape `(num,)`.

    **Returns:** $(a(t), c(t))$, each `(width,)` or `(num, width)`. They overflow only where the
    solution does, and stay accurate where it decays.
    """
    a, c, t = (jnp.asarray(x, jnp.result_type(a, c, t, 0.0)) for x in (a, c, t))
    a, c = (jnp.broadcast_to(x, (*t.shape, *x.shape)) for x in (a, c))
    t = t[..., None]
    # The form with cosh and sinh keeps the digits of small components, the one with exponentials
    # those of decaying ones.
    short = jnp.abs(t) < 1
    cosh, sinh = jnp.cosh(jnp.where(short, t, 0)), jnp.sinh(jnp.where(short, t, 0))
    # Two factors, so that the exponential does not overflow before the product; the sums are formed
    # at unit scale, so that they do not underflow.
    _, exponent = jnp.frexp(jnp.maximum(jnp.abs(a), jnp.abs(c)))
    unit_a, unit_c = jnp.ldexp(a, -exponent), jnp.ldexp(c, -exponent)
    half, plus, minus = jnp.exp(0.5 * t), 0.5 * (unit_a + unit_c), 0.5 * (unit_a - unit_c)
    growing = jnp.where(plus == 0, 0, half * jnp.ldexp(half * plus, exponent))
    decaying = jnp.where(minus == 0, 0, jnp.ldexp(minus / half, exponent) / half)
    later_a = jnp.where(short, a * cosh + c * sinh, growing + decaying)
    return later_a, jnp.where(short, a * sinh + c * cosh, growing - decaying)


# The largest sum of a layer's entries, in units of their common factor, whose sixth power the dtype
# holds exactly.
_LARGEST_SUMS = {64: 456, 32: 16, 16: 3, 8: 1}


def comes_to_rest(state: State) -> Bool[Array, ""]:
    """Whether rounding-free arithmetic proves that one state never blows up.

    A state is at rest if its strengths or all products in the vector field vanish. At rank 1 a
    state also comes to rest if $a$, $b$, $c$ are aligned with negative energy and the two smallest
    squares of `aligned_blowup_time` are equal. This function decides that only for entries with
    which nothing is rounded: small multiples of a power of two, or powers of two times one number.
    On the host, `blowup_time` and `blowup_times` decide it for all entries. False proves nothing:
    states near a state at rest do blow up.
    """
    unit, _ = state.unit_scale()
    layers, given = jax.tree.leaves(unit.layers), jax.tree.leaves(state.layers)
    vanished = [jnp.any((x == 0) != (y == 0)) for x, y in zip(layers, given, strict=True)]
    exact = ~jnp.any(jnp.stack(vanished))
    acts = state.strength != 0
    some_a, some_c = (jnp.any((x != 0) & acts[:, None], axis=0) for x in (unit.a, unit.c))
    together = jnp.any(acts & jnp.any(unit.a != 0, -1) & jnp.any(unit.c != 0, -1))
    moving = together | jnp.any((unit.b != 0) & (some_a[:, None] | some_c[None]))
    still = exact & ~moving
    if state.rank > 1:
        return still

    most = jnp.max(jnp.stack([jnp.max(jnp.abs(x)) for x in layers]))
    most = jnp.where(most > 0, most, 1)
    fractions = [jnp.abs(jnp.frexp(x / most)[0]) for x in layers]
    alike = jnp.all(jnp.stack([jnp.all((x == 0) | (x == 0.5)) for x in fractions]))
    a, b, c = (x / jnp.where(alike, most, 1) for x in (unit.a[0], unit.b, unit.c[0]))
    limit = _LARGEST_SUMS[jnp.finfo(state.dtype).bits]

    def whole(bits: int) -> Array:
        scaled = [x * 2.0**bits for x in (a, b, c)]
        sums = jnp.stack([jnp.sum(jnp.abs(x)) for x in scaled])
        integers = jnp.stack([jnp.all(x == jnp.rint(x)) for x in scaled])
        return jnp.all((sums <= limit) & integers)

    exact = exact & jnp.any(jnp.stack([whole(bits) for bits in range(9)]))
    size_a, size_c = jnp.sum(a * a), jnp.sum(c * c)
    onto_a, onto_c = (
        jnp.einsum("ij,j->i", b, c, precision="highest"),
        jnp.einsum("i,ij->j", a, b, precision="highest"),
    )
    product = jnp.sum(a * onto_a)
    moves = jnp.any(onto_a != 0) | jnp.any(onto_c != 0) | (size_a * size_c != 0)
    aligned = jnp.all(onto_a * size_a == a * product) & jnp.all(onto_c * size_c == c * product)
    scale = size_a * size_c
    # The squares times the product of the outer two, so that they can be compared without a
    # division.
    squares = jnp.sort(jnp.stack([size_a * scale, product * product, size_c * scale]))
    # a.bc, without the strength; its sign is that of the energy.
    falls = jnp.sign(state.strength[0]) * product < 0
    rests = ~moves | (aligned & falls & (squares[0] == squares[1]))
    return still | ~jnp.any(acts) | (exact & rests)


def proven_bracket(state: State) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`bracket` of one state of unit scale, rounded outwards.

    `upper` is infinite unless the energy is positive beyond all rounding errors.
    """
    rounding = 16 * jnp.finfo(state.dtype).eps * max(state.widths)
    norms, strongest = squared_norms(state), jnp.max(jnp.abs(state.strength))
    strengths = jnp.abs(state.strength)
    terms = jnp.sum(
        strengths * jnp.sum(jnp.abs(state.a) * (jnp.abs(state.c) @ jnp.abs(state.b).T), -1)
    )
    certain = energy(state) - rounding * terms
    lower, upper = bracket_from_norms(norms, certain, strongest)
    if state.rank > 1:
        upper = jnp.where(upper < jnp.inf, jnp.sum(norms) / (3 * certain), jnp.inf)
    return lower * (1 - rounding), upper * (1 + rounding)
