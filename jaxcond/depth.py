r"""Other depths: two layers, which never blow up, and any number of layers from three on.

$$E = \langle W_L \cdots W_1, V\rangle, \qquad W_l' = \partial E/\partial W_l .$$

With two layers and one output this is $a' = c$, $c' = a$: exponential growth. From three layers on
(a `State` has three) it can blow up. Every $n_l = \|W_l\|_F^2$ has $n_l' = 2E$, $R = \sum_l n_l$
has $R' = 2LE$, and $E \le \|V\|_2\prod_l\|W_l\|_F$, $E' = \|\nabla E\|^2 \ge L^2E^2/R$, so that
$(R/E)' \le -L(L-2)$. Integrated, these are the two bounds of `deep_bracket`.

Source: Chen and Luo, eqs. (3.8), (3.10) and (3.11) with another number of factors.
"""

import dataclasses
from typing import Any

import diffrax
import equinox as eqx
import jax
import jax.numpy as jnp
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from ._exact import chain_rests
from ._noise import LARGEST_SHIFT, with_noise
from ._state import State
from .blowup import BlowUp, Status, resolve_rtol
from .blowup._method import Known, Raw, classify
from .flow import CLOSED, ERROR_FACTOR, FIRST_STEP, LEAST_ERROR, LOOSER, SAFETY, solve

# The integrand of `chain_blowup_time` is analytic in a strip of half-width pi about the real axis,
# so the trapezoidal rule of spacing h is exact to exp(-2 pi^2 / h).
_NUM_NODES = 512
# As in `blowup._integrate`, but longer, as layers much smaller than their mean grow slowly.
_LONGEST_COURSE = 1e12


def two_layer(
    a: Float[ArrayLike, " width"], c: Float[ArrayLike, " width"], t: Float[ArrayLike, "*num"]
) -> tuple[Float[Array, "*num width"], Float[Array, "*num width"]]:
    r"""The effective dynamics of two-layer networks, which exists for all times.

    $$a' = c,\ c' = a: \qquad a(t) = a\cosh t + c\sinh t, \quad c(t) = a\sinh t + c\cosh t .$$

    **Arguments:** the output layer `a` and the input layer along the target direction `c`, shape
    `(width,)`; times `t` of either sign, a scalar or of shape `(num,)`.

    **Returns:** $(a(t), c(t))$, each `(width,)` or `(num, width)`. They overflow only where the
    solution does, and keep their digits where it decays.
    """
    a, c, t = (jnp.asarray(x, jnp.result_type(a, c, t, 0.0)) for x in (a, c, t))
    a, c = (jnp.broadcast_to(x, (*t.shape, *x.shape)) for x in (a, c))
    t = t[..., None]
    # By cosh and sinh small components keep their digits, by exponentials decaying ones do.
    short = jnp.abs(t) < 1
    cosh, sinh = jnp.cosh(jnp.where(short, t, 0)), jnp.sinh(jnp.where(short, t, 0))
    # In two halves, so that the exponential does not overflow before the product; sums at unit
    # scale, so that they do not underflow before it.
    _, exponent = jnp.frexp(jnp.maximum(jnp.abs(a), jnp.abs(c)))
    unit_a, unit_c = jnp.ldexp(a, -exponent), jnp.ldexp(c, -exponent)
    half, plus, minus = jnp.exp(0.5 * t), 0.5 * (unit_a + unit_c), 0.5 * (unit_a - unit_c)
    growing = jnp.where(plus == 0, 0, half * jnp.ldexp(half * plus, exponent))
    decaying = jnp.where(minus == 0, 0, jnp.ldexp(minus / half, exponent) / half)
    later_a = jnp.where(short, a * cosh + c * sinh, growing + decaying)
    return later_a, jnp.where(short, a * sinh + c * cosh, growing - decaying)


def two_layer_energy(
    a: Float[ArrayLike, "*num width"], c: Float[ArrayLike, "*num width"]
) -> Float[Array, "*num"]:
    r"""The energy $E = a \cdot c$ of a two-layer network, at one time or at each of several."""
    return jnp.sum(jnp.asarray(a) * jnp.asarray(c), axis=-1)


class Deep(eqx.Module):
    r"""A point in the phase space of $L$ layers, $E = \langle W_L\cdots W_1, V\rangle$.

    **Arguments:**

    - `layers`: $(W_1, \dots, W_L)$, the one next to the input first, of shapes `(n_l, n_{l-1})`.
    - `target`: $V$, shape `(n_L, n_0)`; by default 1 where both are 1, as for one output and an
      input layer along the target direction.

    All quantities are dimensionless. Functions take one point and are batched by `jax.vmap`.

    **Raises:** `ValueError` for shapes that do not fit together or arrays that are not floating.
    """

    layers: tuple[Float[Array, "..."], ...]
    target: Float[Array, "..."]

    def __init__(self, layers: tuple[ArrayLike, ...], target: ArrayLike | None = None):
        arrays = [jnp.asarray(x) for x in layers]
        default = jnp.ones((1, 1), arrays[0].dtype if arrays else float)
        arrays.append(default if target is None else jnp.asarray(target))
        dtypes = [str(x.dtype) for x in arrays]
        if not all(jnp.issubdtype(x.dtype, jnp.floating) for x in arrays):
            raise ValueError(f"`layers` and `target` must be real floating, but are {dtypes}.")
        *matrices, self.target = (x.astype(jnp.result_type(*arrays)) for x in arrays)
        self.layers = tuple(matrices)

    def __check_init__(self):
        shapes = [layer.shape for layer in self.layers]
        matrices = len(shapes) >= 2 and all(len(s) == 2 and 0 not in s for s in shapes)
        if not matrices or any(shapes[i + 1][1] != s[0] for i, s in enumerate(shapes[:-1])):
            raise ValueError(
                "Argument `layers` must be at least two matrices of shapes (n_1, n_0), "
                f"(n_2, n_1), ..., but has shapes {shapes}."
            )
        if self.target.shape != (shapes[-1][0], shapes[0][1]):
            raise ValueError(
                f"Argument `target` must have shape (n_L, n_0) = {(shapes[-1][0], shapes[0][1])}, "
                f"but has {self.target.shape}; it may be left out only where both are 1."
            )

    @classmethod
    def from_state(cls, state: State) -> "Deep":
        r"""The three layers $(c^T, b, a)$ and the target $\mathrm{diag}(\lambda)$ of one state."""
        return cls((state.c.T, state.b, state.a), jnp.diag(state.strength))

    @property
    def depth(self) -> int:
        """The number of layers $L$."""
        return len(self.layers)


def deep_energy(deep: Deep) -> Float[Array, ""]:
    r"""The energy $E = \langle W_L \cdots W_1, V\rangle$ of one point."""
    return jnp.sum(jnp.linalg.multi_dot(deep.layers[::-1]) * deep.target)


def deep_vector_field(deep: Deep) -> Deep:
    """Right-hand side of the flow: the layers' gradient, with zero for the target."""
    gradient = jax.grad(lambda layers: deep_energy(Deep(layers, deep.target)))(deep.layers)
    return Deep(gradient, jnp.zeros_like(deep.target))


def chain_blowup_time(squares: Float[Array, " depth"]) -> Float[Array, ""]:
    r"""Blow-up time of $L \ge 3$ scalar, or aligned, layers $w_l$ of positive energy.

    $$T^* = \tfrac12\int_0^\infty \prod_{l=1}^L \frac{1}{\sqrt{w_l^2 + x}}\,dx$$

    **Arguments:** the squares $w_l^2 \ge 0$. For $L = 3$ this is `carlson_rf` of them.

    **Returns:** the time for unit strength, to a few units in the last place if the second and
    third smallest square are within 40 decades of each other; infinite where two squares vanish or
    there are but two layers, NaN where one is negative or NaN.
    """
    if squares.size < 3:
        return jnp.full((), jnp.inf, squares.dtype)
    ordered = jnp.sort(squares)
    diverges = ordered[1] == 0
    ordered = jnp.where(diverges, 1, ordered)
    unit, info = ordered / ordered[2], jnp.finfo(squares.dtype)
    # Trapezoidal rule in log x: the integrand decays on either side of the second and third square,
    # at least as the root of x. All factors are at most one, so that nothing overflows.
    last = -2 * jnp.log(info.eps)
    first = jnp.maximum(jnp.log(unit[1]) - last, jnp.log(info.tiny))
    x = jnp.exp(jnp.linspace(first, last, _NUM_NODES))[:, None]
    factors = jnp.concatenate([x / (unit[None, :2] + x), 1 / (unit[None, 2:] + x)], axis=1)
    integral = jnp.sum(jnp.prod(jnp.sqrt(factors), axis=1)) * (last - first) / (_NUM_NODES - 1)
    return jnp.where(diverges, jnp.inf, 0.5 * integral * jnp.sqrt(ordered[2]) ** (2 - squares.size))


def deep_bracket(deep: Deep) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""A rigorous interval for the time that one point has left until it blows up.

    $$\frac{1}{2\|V\|_2}\int_0^\infty \prod_{l=1}^L \frac{1}{\sqrt{n_l+x}}\,dx \;\le\; T^* \;\le\;
      \frac{R}{L(L-2)E}, \qquad n_l = \|W_l\|_F^2,\quad R = \sum_l n_l .$$

    By the inequality of the means the lower bound is at least $m^{1-L/2}/((L-2)\|V\|_2)$ with
    $m = R/L$, and equal to it where all norms agree. If the layers are aligned as well, so that
    $E = \|V\|_2\,m^{L/2}$, both bounds coincide.

    **Arguments:** one `Deep` of at least 3 layers.

    **Returns:** `(lower, upper)`. `upper` is infinite unless the energy is positive; both are
    infinite where two layers or the target vanish, and NaN for a point with NaN.

    **Raises:** `ValueError` for a batch or for two layers.
    """
    unit, exponent = _unit_scale(deep)
    lower, upper = _bracket(unit, jnp.linalg.norm(unit.target, ord=2))
    return jnp.ldexp(lower, -exponent), jnp.ldexp(upper, -exponent)


def _unit_scale(deep: Deep) -> tuple[Deep, Int[Array, ""]]:
    """Divide powers of two out of layers and target; times become `2**exponent` times longer."""
    if deep.depth < 3 or deep.target.ndim != 2:
        raise ValueError(
            "Argument `deep` must be one point of at least 3 layers, but has layers of shapes "
            f"{[layer.shape for layer in deep.layers]}: batch by `jax.vmap`."
        )
    sizes = jnp.stack([jnp.max(jnp.abs(x)) for x in (*deep.layers, deep.target)])
    sizes = jnp.stack([jnp.max(sizes[:-1]), sizes[-1]])
    of_layers, of_target = jnp.frexp(jnp.where(jnp.isfinite(sizes), sizes, 1))[1]
    layers = tuple(jnp.ldexp(layer, -of_layers) for layer in deep.layers)
    unit = Deep(layers, jnp.ldexp(deep.target, -of_target))
    return unit, (deep.depth - 2) * of_layers + of_target


def _squares(deep: Deep) -> Float[Array, " depth"]:
    return jnp.stack([jnp.sum(layer * layer) for layer in deep.layers])


def _bracket(deep: Deep, strength: Array) -> tuple[Array, Array]:
    squares, current = _squares(deep), deep_energy(deep)
    ratio = jnp.sum(squares) / (deep.depth * (deep.depth - 2) * current)
    return chain_blowup_time(squares) / strength, jnp.where(current <= 0, jnp.inf, ratio)


def _time_left(deep: Deep) -> Float[Array, ""]:
    # Close to blow-up all layers are aligned but for parts that stay behind and do not count: along
    # its own gradient G, a layer is E / |G|. That leaves an error of higher order than the bracket.
    current = deep_energy(deep)
    along = current / jnp.sqrt(_squares(deep_vector_field(deep)))
    return chain_blowup_time(along**2) * jnp.abs(jnp.prod(along) / current)


def _field(_: Any, point: tuple[tuple[Array, ...], Array], target: Array) -> Any:
    deep = Deep(point[0], target)
    speed = jnp.sqrt(jnp.mean(_squares(deep))) ** (2 - deep.depth)
    return jax.tree.map(lambda x: speed * x, deep_vector_field(deep).layers), speed


def _run(
    deep: Deep, solver: diffrax.AbstractSolver, rtol: Array, tolerance: Array, max_steps: int
) -> tuple[Array, Array, Array, Array]:
    strength = jnp.linalg.norm(deep.target, ord=2)
    zero = jnp.zeros_like(strength)

    def closed(t: Array, y: Any, args: Array, **kwargs: Any) -> Array:
        lower, upper = _bracket(Deep(y[0], args), strength)
        return upper - lower <= rtol * (y[1] + lower)

    solution = solve(
        _field,
        (deep.layers, zero),
        deep.target,
        solver=solver,
        tolerance=tolerance,
        smallest=1.0,
        until=_LONGEST_COURSE,
        first=FIRST_STEP,
        max_steps=max_steps,
        event=closed,
    )
    layers, elapsed = jax.tree.map(lambda x: x[0], solution.ys)
    last = Deep(layers, deep.target)
    lower, upper = _bracket(last, strength)
    times = elapsed + jnp.stack([jnp.clip(_time_left(last), lower, upper), lower, upper])
    # What `_time_left` leaves out is of second order where the bracket's width is of first, unless
    # there are other components of the target that may still grow.
    missed = 1.0 if min(deep.target.shape) > 1 else jnp.minimum(upper / lower - 1, 1)
    ended = solution.result == diffrax.RESULTS.event_occurred
    return times, missed * (upper - lower), ended, solution.stats["num_steps"]


def deep_blowup_time(
    deep: Deep,
    *,
    rtol: float | Float[Array, ""] | None = None,
    solver: diffrax.AbstractSolver = diffrax.Dopri8(),  # noqa: B008
    max_steps: int = 4096,
) -> BlowUp:
    r"""The blow-up time $T^*$ of the flow $W_l' = \partial E/\partial W_l$ of $L \ge 3$ layers.

    It is integrated in the time $ds = (R/L)^{(L-2)/2}\,dt$, in which the layers grow exponentially,
    until `deep_bracket` closes, which it does like $(T^*-t)^{L/(L-2)}$; and twice more to measure
    the error: at a looser tolerance, and from layers with noise in their last bits.

    **Arguments:** one `Deep`; `rtol`, on $T^*$ and on the width of its bracket, by default 1e-10
    for float64 and 1e-5 for float32; any adaptive diffrax `solver`; `max_steps` of a run.

    **Returns:** a `BlowUp`. The time scales as $T^*(\kappa\theta) = \kappa^{2-L}\,T^*(\theta)$.

    **Raises:** `ValueError` for a batch, two layers, or a tolerance beyond the dtype.

    **Status:** see `Status`. `no_blow_up` is reported where no layer moves, and where layers are
    aligned with negative energy and the two smallest of their $w_l^2$ are equal: proven, outside of
    traced programs for one input and one output whatever the entries, inside of them for layers of
    one entry each. `not_converged` also where the time itself is beyond the range of the dtype.
    """
    result = _blowup_time(deep, resolve_rtol(rtol, deep.target.dtype), solver, max_steps)
    unsettled = (Status.NOT_CONVERGED, Status.ILL_CONDITIONED)
    if isinstance(result.status, Tracer) or int(result.status) not in unsettled:
        return result
    if deep.target.size > 1 or not chain_rests(deep.layers, float(deep.target[0, 0])):
        return result
    infinite, none = jnp.full_like(result.time, jnp.inf), jnp.zeros_like(result.error)
    status = jnp.full_like(result.status, Status.NO_BLOW_UP)
    fields = {"time": infinite, "lower": infinite, "upper": infinite, "error": none}
    return dataclasses.replace(result, **fields, status=status)


def _comes_to_rest(deep: Deep) -> Bool[Array, ""]:
    """Whether it is proven in floating point: nothing is rounded."""
    # Which entries of the gradient are not zero, if none of them cancels.
    counts = Deep(
        tuple((layer != 0).astype(deep.target.dtype) for layer in deep.layers),
        (deep.target != 0).astype(deep.target.dtype),
    )
    still = jnp.all(_squares(deep_vector_field(counts)) == 0)
    entries = jnp.stack([jnp.sum(x != 0) for x in (*deep.layers, deep.target)])
    sizes = jnp.sort(jnp.stack([jnp.max(jnp.abs(layer)) for layer in deep.layers]))
    signs = deep_energy(jax.tree.map(jnp.sign, deep))
    single = jnp.all(entries == 1) & (signs < 0)
    return still | (single & (sizes[0] == sizes[1]))


@eqx.filter_jit
def _blowup_time(deep: Deep, rtol: Array, solver: diffrax.AbstractSolver, max_steps: int) -> BlowUp:
    unit, exponent = _unit_scale(deep)
    finite = jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in jax.tree.leaves(deep)]))
    rests = _comes_to_rest(deep)
    # What will not be solved is replaced by a point that is solved at once.
    unit = jax.tree.map(lambda x: jnp.where(finite & ~rests, x, 1), unit)
    eps = jnp.finfo(unit.target.dtype).eps
    tolerances = jnp.array([1, LOOSER, 1], rtol.dtype) * jnp.maximum(SAFETY * rtol, 20 * eps)
    copies = [unit.layers, with_noise(unit.layers, 1), with_noise(unit.layers, 2)]
    copies = jax.tree.map(lambda *leaves: jnp.stack(leaves), *copies)

    def run(copy: tuple[tuple[Array, ...], Array]) -> tuple[Array, Array, Array, Array]:
        return _run(Deep(copy[0], unit.target), solver, CLOSED * rtol, copy[1], max_steps)

    times, missed, ended, num_steps = jax.lax.map(run, (copies, tolerances))
    time, lower, upper = times[0]
    apart = jnp.abs(jnp.where(ended, times[:, 0], jnp.inf) - time)
    error = ERROR_FACTOR * apart[1] + LEAST_ERROR * tolerances[0] * time + missed[0]
    error = jnp.where(apart[1] <= LARGEST_SHIFT * time, error, jnp.inf)
    start = _bracket(unit, jnp.linalg.norm(unit.target, ord=2))
    raw = Raw(
        time,
        lower,
        upper,
        error,
        apart[2],
        ended[0] & jnp.isfinite(error),
        jnp.any(ended),
        jnp.sum(num_steps).astype(jnp.int32),
    )
    # What is rounded; and no upper bound is certain where the energy may be negative by rounding.
    begun = 1 - 16 * eps * max(max(layer.shape) for layer in unit.layers)
    scale, infinite = jnp.ldexp(jnp.ones_like(time), exponent), jnp.full_like(time, jnp.inf)
    known = Known(begun * start[0], infinite, scale, finite, rests)
    result = classify(raw, known, rtol, f"deep, {type(solver).__name__}")
    lost = (result.status == Status.CONVERGED) & ~(result.time > 0)
    status = jnp.where(lost, Status.NOT_CONVERGED, result.status)
    return dataclasses.replace(result, status=status)
