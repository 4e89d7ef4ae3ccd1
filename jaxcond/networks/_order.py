r"""The leading order of any loss at zero parameters, by Taylor-mode differentiation.

$$R(\varepsilon\theta) = R(0) - \varepsilon^p E_p(\theta) + O(\varepsilon^{p+1}),$$

where $E_p$ is a homogeneous polynomial of degree $p$, whatever the architecture. Gradient descent
from small weights is at first the gradient ascent of $E_p$: it blows up for $p\ge3$, which is the
end of the plateau, and grows exponentially or not at all for $p\le2$.

Sources: Chen and Luo, eqs. (3.8) to (3.10), for three layers, $p=3$; the general form is derived
here. Taylor mode: Bettencourt, Johnson and Duvenaud (2019), `jax.experimental.jet`.
"""

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental.jet import jet
from jaxtyping import Array, Float, Int, PyTree

from .._status import AbstractStatus

# Powers whose terms stay below this share of the largest one, at the scale at which the loss
# changes by as much as itself, count as rounding; single and double precision.
_ABSENT = {32: 1e-4, 64: 1e-9}
_PROBES = 2
# Scales at which the Taylor polynomial is compared with the loss, as powers of 2.
_SCALES = np.arange(-24.0, 9.0)


def once_jit(function: Callable[..., Any]) -> Callable[..., Any]:
    """Compile a program that runs once for a module, whose time is that of its compilation.

    This level takes 40 % off it (two shared cores with AVX-512), and running takes no longer.
    """
    options = {"xla_backend_optimization_level": "0"}
    return eqx.filter_jit(function, compiler_options=options)  # pyright: ignore[reportCallIssue]


class OrderStatus(AbstractStatus):
    """Status of the leading order of a loss at zero parameters."""

    HOMOGENEOUS = 0, "the gradient ascent of the leading order is the beginning of training"
    LOW_DEGREE = (
        1,
        "the lowest power does not blow up, and higher powers decide when the plateau ends, as "
        "with output biases or residual paths",
    )
    KINK = (
        2,
        "the loss has a kink at zero parameters, as with ReLU, so that there is no Taylor "
        "polynomial; use a smooth activation, or follow the flow",
    )
    TOO_FLAT = 3, "no power up to `max_order` changes the loss; raise `max_order`"
    INVALID_INPUT = 4, "the loss at zero parameters is not finite"


def arrays_of(params: PyTree) -> PyTree:
    """Parameters whose NumPy arrays are JAX arrays.

    **Raises:** `ValueError` if there is no array of real floats, or one of complex numbers.
    """
    params = jax.tree.map(lambda x: jnp.asarray(x) if isinstance(x, np.ndarray) else x, params)
    leaves = [x for x in jax.tree.leaves(params) if eqx.is_inexact_array(x)]
    if not leaves:
        raise ValueError("Argument `params` has no array of floats: there is nothing to train.")
    if any(jnp.iscomplexobj(x) for x in leaves):
        raise ValueError("Argument `params` has complex arrays, but real ones are needed.")
    return params


def checked_loss(loss_fn: Callable[[PyTree], Any], params: PyTree) -> None:
    """**Raises:** `ValueError` if the loss is no real number."""
    shape = eqx.filter_eval_shape(loss_fn, params)
    ok = isinstance(shape, jax.ShapeDtypeStruct) and shape.shape == ()
    if not ok or not jnp.issubdtype(shape.dtype, jnp.floating):
        raise ValueError(f"Argument `loss_fn` must return one real number, but returns {shape}.")


def split(loss_fn: Callable, params: PyTree) -> tuple[Callable[[PyTree], Array], PyTree]:
    """The loss as a function of the arrays of floats alone, and these."""
    floats, others = eqx.partition(params, eqx.is_inexact_array)
    return lambda floats: loss_fn(eqx.combine(floats, others)), floats


def inner(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """The inner product of two trees of arrays."""
    return sum(jnp.vdot(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))  # pyright: ignore[reportReturnType]


def taylor(loss: Callable[[PyTree], Array], floats: PyTree, order: int) -> Float[Array, " order"]:
    r"""The coefficients of $R(\varepsilon\theta) = R(0) + \sum_k c_k\varepsilon^k$, from $c_1$ on.

    Where `jet` has no rule for an operation, by nested derivatives: the work doubles with each
    order.
    """
    leaves, tree = jax.tree.flatten(floats)

    def flat(*leaves: Array) -> Array:
        return loss(jax.tree.unflatten(tree, leaves))

    zeros = tuple(jnp.zeros_like(x) for x in leaves)
    series = tuple([x] + [jnp.zeros_like(x)] * (order - 1) for x in leaves)
    try:
        _, derivatives = jet(flat, zeros, series)
    except (NotImplementedError, KeyError, TypeError):
        derivatives = _nested(flat, leaves, order)
    return jnp.stack([jnp.asarray(d) / math.factorial(k + 1) for k, d in enumerate(derivatives)])


def _nested(flat: Callable[..., Array], leaves: list[Array], order: int) -> list[Array]:
    def along(scale: Array) -> Array:
        return flat(*(scale * x for x in leaves))

    def differentiated(function: Callable[[Array], Array]) -> Callable[[Array], Array]:
        return lambda scale: jax.jvp(function, (scale,), (jnp.ones_like(scale),))[1]

    derivatives, derivative = [], along
    for _ in range(order):
        derivative = differentiated(derivative)
        derivatives.append(derivative(jnp.zeros((), leaves[0].dtype)))
    return derivatives


class LeadingOrder(eqx.Module):
    r"""The leading order of a loss at zero parameters.

    - `degree`: the degree $p$; 0 if unknown.
    - `status`: an `OrderStatus`; `reason`: why there is no usable $E_p$, or "".
    - `powers`: the powers up to `max_order` that do not vanish in a general direction.
    - `value`: $E_p$ at the parameters; NaN if it is not homogeneous.
    - `mismatch`: $\|\nabla R + \nabla E_p\| / \|\nabla E_p\|$ at the parameters: the share of
      the gradient that the leading order leaves out; NaN if it is not homogeneous.
    - `moved`: names of the arrays that $E_p$ depends on; the other arrays do not move at this
      order.
    """

    degree: int = eqx.field(static=True)
    status: Int[np.ndarray, ""]
    powers: tuple[int, ...] = eqx.field(static=True)
    value: Float[np.ndarray, ""]
    mismatch: Float[np.ndarray, ""]
    moved: tuple[str, ...] = eqx.field(static=True)
    loss_fn: Callable[[PyTree], Array]

    @property
    def homogeneous(self) -> bool:
        """Whether the gradient ascent of $E_p$ describes the beginning of training."""
        return int(self.status) == OrderStatus.HOMOGENEOUS

    @property
    def reason(self) -> str:
        """Why there is no usable leading order; empty if there is one."""
        return "" if self.homogeneous else OrderStatus(int(self.status)).meaning

    def energy(self, params: PyTree) -> Float[Array, ""]:
        """$E_p$ of some parameters, a pure function that can be differentiated.

        **Raises:** `ValueError` if the degree is not known.
        """
        if not self.degree:
            raise ValueError(f"There is no leading order: {self.reason}.")
        loss, floats = split(self.loss_fn, arrays_of(params))
        return -taylor(loss, floats, self.degree)[-1]

    def __str__(self) -> str:
        name = OrderStatus(int(self.status)).label
        if not self.homogeneous:
            degree = f"degree {self.degree}, " if self.degree else ""
            return f"LeadingOrder ({degree}{name}): {self.reason}"
        return (
            f"LeadingOrder: degree {self.degree}; powers {', '.join(map(str, self.powers))}; "
            f"at these parameters it leaves out {100 * float(self.mismatch):.2g} % of the gradient"
        )


@once_jit
def _probe(loss_fn: Callable, params: PyTree, order: int) -> tuple[Array, ...]:
    """Taylor coefficients in random directions, and the loss at several scales along the first one.

    Each array of a direction has the size of the corresponding parameters. Arrays that are zero,
    like biases, get the typical size of the others, because powers depend on all parameters.
    """
    loss, floats = split(loss_fn, params)
    leaves, tree = jax.tree.flatten(floats)
    sizes = jnp.stack([jnp.sqrt(jnp.mean(x**2)) for x in leaves])
    typical = jnp.sqrt(jnp.mean(sizes**2))
    sizes = jnp.where(sizes > 0, sizes, typical) / jnp.where(typical > 0, typical, 1)
    sizes = jnp.where(typical > 0, sizes, 1)

    def direction(key: Array) -> PyTree:
        keys = jax.random.split(key, len(leaves))
        drawn = [
            size * jax.random.normal(k, x.shape, x.dtype)
            for k, size, x in zip(keys, sizes.astype(leaves[0].dtype), leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, drawn)

    keys = jax.random.split(jax.random.key(20240225), _PROBES)
    coefficients = lax.map(lambda key: taylor(loss, direction(key), order), keys)
    # The scale at which the first term changes the loss by as much as itself.
    at_zero = loss(jax.tree.map(jnp.zeros_like, floats))
    size = jnp.where(at_zero == 0, 1, jnp.abs(at_zero))
    powers = jnp.arange(1, order + 1)
    largest = jnp.max(jnp.abs(coefficients), axis=0)
    scale = jnp.min(jnp.where(largest > 0, (size / largest) ** (1 / powers), jnp.inf))
    scale = jnp.where(jnp.isfinite(scale), scale, 1)
    scales = scale * jnp.exp2(jnp.asarray(_SCALES, scale.dtype))
    scales = jnp.concatenate([scales, -scales])
    theta = direction(keys[0])
    changes = lax.map(lambda s: loss(jax.tree.map(lambda x: s * x, theta)) - at_zero, scales)
    polynomial = jax.vmap(lambda s: jnp.sum(coefficients[0] * s**powers))(scales)
    shares = largest * scale**powers / size
    return at_zero, shares, changes.reshape(2, -1) / size, polynomial.reshape(2, -1) / size


@once_jit
def _at_params(order: LeadingOrder, params: PyTree) -> tuple[Array, Array, PyTree]:
    """The energy, the mismatch of the gradients, and the size of that of the energy by array."""
    loss, floats = split(order.loss_fn, params)
    energy, _ = split(order.energy, params)
    # Which arrays matter is asked where none of them is zero.
    general = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size)).reshape(x.shape), floats)
    both = jax.tree.map(lambda x, y: jnp.stack([x, y.astype(x.dtype)]), floats, general)
    values, slopes = lax.map(jax.value_and_grad(energy), both)
    ascent = jax.tree.map(lambda g: g[0], slopes)
    left = jax.tree.map(jnp.add, ascent, jax.grad(loss)(floats))
    mismatch = jnp.sqrt(inner(left, left) / inner(ascent, ascent))
    return values[0], mismatch, jax.tree.map(lambda g: jnp.max(jnp.abs(g[1])), slopes)


def _remainder_power(changes: np.ndarray, polynomial: np.ndarray, eps: float) -> float:
    """The power of the remainder of the Taylor polynomial, infinite if there is no remainder.

    It is measured at the smallest scale at which the remainder exceeds rounding, and the next
    larger one. For a smooth loss it is about the first order that the polynomial leaves out; at a
    kink it is the leading order.
    """
    least = np.inf
    for change, taylor_sum in zip(changes, polynomial, strict=True):
        rest = np.abs(change - taylor_sum)
        seen = np.flatnonzero((rest > 64 * eps * np.maximum(1, np.abs(change)))[:-1])
        if seen.size and np.isfinite(rest[seen[0] + 1]):
            least = min(least, float(np.log2(rest[seen[0] + 1] / rest[seen[0]])))
    return least


def leading_order(
    loss_fn: Callable[[PyTree], Any], params: PyTree, max_order: int = 8
) -> LeadingOrder:
    r"""The lowest power of $\varepsilon$ in $R(\varepsilon\theta)-R(0)$, and its coefficient.

    $$R(\varepsilon\theta) = R(0) - \varepsilon^p E_p(\theta) + O(\varepsilon^{p+1})$$

    The leading order is called *homogeneous* if $p\ge3$ and the loss is smooth at zero. The
    gradient ascent of $E_p$ then blows up, at a time of order $\varepsilon^{-(p-2)}$, before terms
    of higher powers matter. For $p\le2$ powers mix: an output bias ($p=1$ or $2$) settles, a
    residual path ($p=2$) grows exponentially, and the escape of the other parameters depends on
    higher powers.

    **Arguments:**

    - `loss_fn`: the loss $R$, a function of the parameters that returns one real number.
    - `params`: any tree with arrays of real floats $\theta$, like an equinox module; other leaves
      stay as they are. The sizes of the arrays set the directions of the Taylor expansion.
    - `max_order`: the largest power considered. The work grows like its square.

    **Returns:** a `LeadingOrder` with `degree` and the pure function `energy`. Its `str` states the
    degree, or the reason why the leading order cannot be used.

    **Raises:** `ValueError` if there is nothing to train, or if the loss is not one real number.
    **Status:** `LeadingOrder.status`. Kinks are found by comparing the loss with its Taylor
    polynomial on both sides of zero; one that changes the loss by less than rounding is not seen.

    Source: at the top of `jaxcond.networks._order`.
    """
    if max_order < 1:
        raise ValueError(f"Argument `max_order` must be at least 1, but is {max_order}.")
    params = arrays_of(params)
    checked_loss(loss_fn, params)
    at_zero, shares, changes, polynomial = map(np.asarray, _probe(loss_fn, params, max_order))
    precision = jnp.finfo(shares.dtype)
    present = np.flatnonzero(~(shares <= _ABSENT.get(precision.bits, 1e-2))) + 1
    status, degree = OrderStatus.HOMOGENEOUS, int(present[0]) if present.size else 0
    power = _remainder_power(changes, polynomial, float(precision.eps))
    if not np.isfinite(at_zero):
        status = OrderStatus.INVALID_INPUT
    elif not np.isfinite(shares).all() or power < (degree or max_order) / 2 + max_order / 2 + 0.5:
        status = OrderStatus.KINK
    elif not present.size:
        status = OrderStatus.TOO_FLAT
    elif degree <= 2:
        status = OrderStatus.LOW_DEGREE
    if status not in (OrderStatus.HOMOGENEOUS, OrderStatus.LOW_DEGREE):
        degree = 0
    powers = tuple(int(k) for k in present) if degree else ()
    unknown = np.asarray(np.nan)
    order = LeadingOrder(
        degree=degree,
        status=np.asarray(int(status)),
        powers=powers,
        value=unknown,
        mismatch=unknown,
        moved=(),
        loss_fn=loss_fn,
    )
    if status != OrderStatus.HOMOGENEOUS:
        return order
    value, mismatch, sizes = _at_params(order, params)
    moved = tuple(
        jax.tree_util.keystr(path)
        for path, size in jax.tree_util.tree_leaves_with_path(sizes)
        if size > 0
    )
    return LeadingOrder(
        degree=degree,
        status=order.status,
        powers=powers,
        value=np.asarray(value),
        mismatch=np.asarray(mismatch),
        moved=moved,
        loss_fn=loss_fn,
    )
