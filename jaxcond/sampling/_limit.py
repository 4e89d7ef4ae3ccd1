r"""Blow-up times at infinite width over a grid of aspect ratios and scales: no sampling.

With $p = \alpha m$, $q = m$ the rescaled time $\sqrt m\,T^*$ of a Gaussian state tends to

$$\tau(\alpha, s_a, s_b, s_c), \qquad \tau(\alpha, \kappa s) = \tau(\alpha, s)/\kappa, \qquad
  \tau(\alpha, s_a, s_b, s_c) = \tau(1/\alpha, s_c, s_b, s_a)/\sqrt\alpha,$$

the blow-up time of the deterministic state `infinite_width`. The second equation is the symmetry
$(a, b, c) \to (c, b^T, a)$. Without a middle layer, $s_b = 0$, the time is
$R_F(0, \alpha s_a^2, s_c^2)$.
"""

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Float, Integer

from .._state import State
from ..blowup import (
    AbstractMethod,
    AbstractSource,
    BlowUp,
    Form,
    HostStates,
    Samples,
    Series,
    Status,
    blowup_times,
    check_rtol,
)
from ._draws import HostSampler
from ._gaussian import tridiagonal_state

_METHODS = (
    Series(dim=12, max_expansions=1),
    Series(dim=24),
    Series(dim=48),
    Series(dim=96),
)
_FIELDS = ("time", "lower", "upper", "error", "status", "num_steps", "stage")
# Grids are padded to a power of two, at least this one, so that grids of any size share programs.
_LEAST = 64


def infinite_width(
    *,
    aspect: float | Array = 1.0,
    scales: tuple[float | Array, float | Array, float | Array] = (1.0, 1.0, 1.0),
    dim: int = 16,
    dtype: jnp.dtype | None = None,
) -> State:
    r"""The state to which reduced Gaussian states of growing width converge.

    With $p = \alpha m$ and $q = m$, everything divided by $\sqrt m$, fluctuations vanish as
    $1/\sqrt m$: $\|a\| = s_a\sqrt\alpha$, $\|c\| = s_c$, $T_{jj} = 0$, $T_{j,j+1} = s_b$,
    $T_{j+1,j} = s_b\sqrt\alpha$. So $\sqrt m\,T^*$ of a wide random state tends to the blow-up time
    of this one; for equal widths and unit scales that is 1.167972771072370….

    **Arguments:** `aspect`, the ratio $\alpha = p/q$; `scales`, the standard deviations
    $(s_a, s_b, s_c)$; `dim`, the dimension kept (16 is exact to rounding for equal scales; unequal
    ones need more).

    **Returns:** a deterministic `State` of widths `(dim, dim)`.

    **Raises:** `ValueError` for a `dim` smaller than 2, or an aspect that is not positive.
    """
    if dim < 2:
        raise ValueError(f"Argument `dim` must be at least 2, but is {dim}.")
    if isinstance(aspect, (int, float)) and not 0 < aspect < math.inf:
        raise ValueError(f"Argument `aspect` must be positive and finite, but is {aspect}.")
    dtype = jnp.result_type(float) if dtype is None else dtype
    scale_a, scale_b, scale_c = (jnp.asarray(scale, dtype) for scale in scales)
    root = jnp.sqrt(jnp.asarray(aspect, dtype))
    ones = jnp.ones(dim - 1, dtype)
    return tridiagonal_state(
        scale_a * root, scale_c, jnp.zeros(dim, dtype), scale_b * ones, scale_b * root * ones
    )


class _Limits(AbstractSource):
    """States at infinite width, one for each element of flat arrays."""

    aspect: Float[Array, " n"]
    scales: Float[Array, "3 n"]
    dim: int = eqx.field(static=True)

    @property
    def truncated(self) -> bool:
        """True: the states are truncated from infinite width."""
        return True

    @property
    def form(self) -> Form:
        """The form: rank 1, in the dimension kept."""
        return Form(1, (self.dim, self.dim), self.aspect.dtype)

    def suited_to(self, method: AbstractMethod) -> "_Limits":
        """The same states in the dimension that a method works in."""
        dim = method.reduced_dim(1)
        return _Limits(self.aspect, self.scales, self.dim if dim is None else dim)

    def on_host(self) -> HostSampler:
        """The states as NumPy arrays."""
        aspect, dim = np.asarray(self.aspect), self.dim
        scale_a, scale_b, scale_c = np.asarray(self.scales)

        def at(indices: np.ndarray) -> HostStates:
            root, count = np.sqrt(aspect[indices]), indices.size
            a, c = np.zeros((2, count, 1, dim), aspect.dtype)
            b, steps = np.zeros((count, dim, dim), aspect.dtype), np.arange(dim - 1)
            a[:, 0, 0], c[:, 0, 0] = scale_a[indices] * root, scale_c[indices]
            b[:, steps, steps + 1] = scale_b[indices, None]
            b[:, steps + 1, steps] = (scale_b[indices] * root)[:, None]
            return HostStates(a, b, c, np.ones((count, 1), aspect.dtype))

        return at

    def __call__(self, index: Integer[Array, ""]) -> State:
        """The state of one element."""
        scale_a, scale_b, scale_c = self.scales[:, index]
        return infinite_width(
            aspect=self.aspect[index], scales=(scale_a, scale_b, scale_c), dim=self.dim
        )


def infinite_width_times(
    *,
    aspect: ArrayLike = 1.0,
    scale_a: ArrayLike = 1.0,
    scale_b: ArrayLike = 1.0,
    scale_c: ArrayLike = 1.0,
    rtol: float | None = None,
) -> BlowUp:
    r"""The limit of $\sqrt q\,T^*$ at infinite width, for arrays of aspect ratios and scales.

    **Arguments:** broadcast together, of any shape.

    - `aspect`: the ratio $\alpha = p/q$ of the widths, positive.
    - `scale_a`, `scale_b`, `scale_c`: standard deviations of the entries of $a$, $b$, $c$, not
      negative.
    - `rtol`: as for `blowup_times`.

    **Returns:** a `BlowUp` in the broadcast shape. Grids of any shape share the compiled programs.

    **Raises:** `ValueError` for values out of range and shapes that do not broadcast.

    **Status:** scales that differ widely need more dimensions. An element that does not converge by
    one expansion in 12 dimensions is solved in 24, 48 and 96, until two of these results agree to
    `rtol`; `error` is then at least their difference. `not_converged` if none agree. `no_blow_up`
    where two of the scales are zero: such a state is at rest.

    Runs on the host and cannot be traced. To differentiate, use `blowup_time(infinite_width(...))`.
    """
    named = {"aspect": aspect, "scale_a": scale_a, "scale_b": scale_b, "scale_c": scale_c}
    arrays = {name: np.asarray(value, np.float64) for name, value in named.items()}
    for name, array in arrays.items():
        least = "positive" if name == "aspect" else "not negative"
        right = (array > 0) if name == "aspect" else (array >= 0)
        right &= np.isfinite(array)
        if not np.all(right):
            wrong = array[~right].flat[0]
            raise ValueError(f"Argument `{name}` must be finite and {least}, but holds {wrong}.")
    try:
        full = np.broadcast_arrays(*arrays.values())
    except ValueError:
        listed = ", ".join(f"{name} {array.shape}" for name, array in arrays.items())
        raise ValueError(
            f"The arguments must broadcast together, but have shapes {listed}."
        ) from None
    shape, count = full[0].shape, full[0].size
    if count == 0:
        dtype = jnp.result_type(float)
        empty, none = jnp.zeros(shape, dtype), jnp.zeros(shape, jnp.int32)
        return BlowUp(
            time=empty,
            lower=empty,
            upper=empty,
            error=empty,
            status=none,
            num_steps=none,
            stage=none,
            methods=(),
        )
    flat = np.pad(np.reshape(full, (4, count)), ((0, 0), (0, _missing(count))), mode="edge")
    flat = jnp.asarray(flat, jnp.result_type(float))
    found = _solve(_Limits(flat[0], flat[1:], 12), count, rtol)
    return jax.tree.map(lambda field: field.reshape(shape), found)


def _missing(count: int) -> int:
    return max(_LEAST, 1 << (count - 1).bit_length()) - count


def _on_host(
    source: _Limits, indices: np.ndarray, method: AbstractMethod, rtol: float | None
) -> BlowUp:
    filled = np.pad(indices, (0, _missing(indices.size)), mode="edge")
    found = blowup_times(Samples(source, filled), rtol=rtol, methods=(method,))
    return jax.tree.map(lambda field: np.array(field[: indices.size]), found)


def _solve(source: _Limits, count: int, rtol: float | None) -> BlowUp:
    """Solve in more and more dimensions, until the time no longer changes."""
    tolerance = float(check_rtol(rtol, source.aspect.dtype))
    waiting, before = np.arange(count, dtype=np.int32), np.full(count, np.nan)
    fields: dict[str, np.ndarray] = {}
    for stage, method in enumerate(_METHODS):
        found = _on_host(source, waiting, method, rtol)
        found.stage[:] = stage
        if stage == 0:
            fields = {name: getattr(found, name) for name in _FIELDS}
        else:
            # The error of one expansion includes the truncation up to T*, but that of several
            # includes only the truncation of the last one. The change with more dimensions covers
            # both.
            with np.errstate(invalid="ignore"):
                gap = np.abs(found.time - before)
            found.error[:] = np.fmax(found.error, gap)
            agrees = gap <= tolerance * found.time
            found.status[(found.status == Status.CONVERGED) & ~agrees] = Status.NOT_CONVERGED
            for name, values in fields.items():
                values[waiting] = getattr(found, name)
        is_open = found.status == Status.NOT_CONVERGED
        # The result of one expansion is no time to compare with.
        before = np.where(stage == 0, np.nan, found.time[is_open])
        waiting = waiting[is_open]
        if waiting.size == 0:
            break
    labels = tuple(method.label for method in _METHODS)
    return BlowUp(**{name: jnp.asarray(values) for name, values in fields.items()}, methods=labels)
