r"""The blow-up time as the first positive zero of an entire function (rank 1).

With $(\log\tau)'' = -\|a\|^2$, $\tau(0)=1$, $\tau'(0)=0$, the function $\tau$ is entire and $T^*$
is its first positive zero. Its Taylor polynomial is found by recurrence, without time stepping;
everything that the bracket needs follows from it, since $\|a\|^2 = (\tau'^2 - \tau\tau'')/\tau^2$,
the other norms differ from it by constants, and $E = \frac12 (\|a\|^2)'$. Where one expansion does
not reach $T^*$, the flow is followed part of the way and expanded again.
"""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from ..._native._calls import only_cpus
from ..._reduction import pad, reduce
from ..._state import State
from .._gradient import gradient_in_reduction
from .._method import (
    AbstractMethod,
    BatchSolver,
    Form,
    HostStates,
    Kernel,
    classify,
    fields_of,
    host_states,
    is_on_cpu,
    prepare,
)
from .._result import BlowUp
from ._follow import Plan, solve_lanes
from ._gradient import series_gradient
from ._native import gradient_natively, gradient_on_host, native_kernel, solve_natively

# Sizes of the buffers of coefficients, and of states, which are filled up with units that never
# move: orders and widths up to the same size share their programs. On a GPU what is read in vain
# costs more than another program.
_ORDERS, _DIMS = (40, 64), (12, 24, 48, 64)
_GPU_ORDERS, _GPU_DIMS = (32, 40, 64), (10, 12, 24, 48, 64)
# Lanes that are solved together: what a core's second-level cache holds of their coefficients, and
# enough for a GPU. States that a GPU reduces together.
_CPU_LANES, _GPU_LANES, _GPU_TOGETHER = 32, 1 << 19, 256
# States up to this width are filled up before they are reduced, so that they share that, too.
_SHARED = 24


def _size_for(number: int, sizes: tuple[int, ...]) -> int:
    """The first of some sizes that holds a number, or the next multiple of 32."""
    return next((size for size in sizes if number <= size), -(-number // 32) * 32)


class Series(AbstractMethod):
    r"""The zero of the entire function $\tau$, from Taylor polynomials in Krylov coordinates.

    **Arguments:**

    - `order`: degree of the polynomials, at least 4; `None` chooses by the dtype, 32 for float64
      and 20 for float32. For Gaussian states 24 and 32 give $T^*$ to about 5e-11 and 2e-15.
    - `dim`: dimension to which wider states are reduced. 12 suffices for equal layer scales, 24
      covers scales that differ by 1e8. Narrower states are solved as they are.
    - `max_expansions`: how often the flow may be expanded again where one expansion does not reach.
      With 1 every state costs the same, and its error is estimated from the sizes of the terms
      alone; with more, the condition of $T^*$ is measured too, by perturbing the state.

    **Status:** `not_converged` where the last terms are not small enough for the tolerance, or the
    expansions are used up.

    Rank 1 only.
    """

    order: int | None = eqx.field(static=True, default=None)
    dim: int = eqx.field(static=True, default=24)
    max_expansions: int = eqx.field(static=True, default=128)

    def __check_init__(self):
        if self.order is not None and self.order < 4:
            raise ValueError(f"Argument `order` must be at least 4, but is {self.order}.")
        if self.dim < 2:
            raise ValueError(f"Argument `dim` must be at least 2, but is {self.dim}.")
        if self.max_expansions < 1:
            raise ValueError(
                f"Argument `max_expansions` must be at least 1, but is {self.max_expansions}."
            )

    @property
    def label(self) -> str:
        expansions = "one expansion" if self.max_expansions == 1 else "re-expanding"
        return f"series, dim {self.dim}, {expansions}"

    def check(self, state: Form | State) -> None:
        if state.rank != 1:
            raise ValueError(
                f"Method `Series` applies to states of rank 1, but the rank is {state.rank}."
            )

    def reduced_dim(self, rank: int) -> int:
        del rank
        return self.dim

    def degree(self, dtype: jnp.dtype) -> int:
        """The order of the polynomials for states of a dtype."""
        return self.order or (32 if dtype == jnp.float64 else 20)

    def plan(self, form: Form | State, orders: tuple[int, ...] = _ORDERS) -> Plan:
        """What a program is told about states of a form, as numbers."""
        width = min(max(form.widths), self.dim)
        numbers = (self.degree(form.dtype), width, self.max_expansions)
        order, width, max_expansions = (jnp.asarray(number, jnp.int32) for number in numbers)
        size = _size_for(self.degree(form.dtype), orders)
        reduced = jnp.asarray(self.truncates(form))
        return Plan(
            order=order,
            width=width,
            max_expansions=max_expansions,
            reduced=reduced,
            size=size,
            again=self.max_expansions > 1,
        )

    def kernel(self, form: Form | State) -> Kernel | None:
        return native_kernel(self, form)

    def batch_solver(self, form: Form | State) -> BatchSolver:
        wide, width = self.truncates(form), max(form.widths)

        def solve(states: State | HostStates, rtol: float, truncated: bool) -> BlowUp:
            on_cpu = is_on_cpu(fields_of(states))
            plan = self.plan(form, _ORDERS if on_cpu else _GPU_ORDERS)
            dims = _DIMS if on_cpu else _GPU_DIMS
            size = _size_for(min(width, self.dim), dims)
            filled = _size_for(width, dims) if width <= _SHARED else None
            if filled is not None or not wide:
                whole = _fill_up(states, filled or size)
            else:
                whole = State(*fields_of(states))
            count = whole.batch_shape[0]
            together = min(1 if on_cpu else _GPU_TOGETHER, count)
            small = _reduce_batch(whole, size, plan.width, together) if wide else whole
            lanes = min(_CPU_LANES if on_cpu else _GPU_LANES, count)
            tolerance, flag = jnp.asarray(rtol, small.dtype), jnp.asarray(truncated or wide)
            result = _solve_batch(small, tolerance, flag, plan, lanes)
            return dataclasses.replace(result, methods=(self.label,))

        return solve

    def solve(self, states: State, rtol: Float[Array, ""], truncated: Bool[Array, ""]) -> BlowUp:
        if native_kernel(self, states) is None:
            return self.solve_by_program(states, rtol, truncated)
        if only_cpus():
            return solve_natively(self, states, rtol, truncated)
        return lax.platform_dependent(
            states,
            rtol,
            truncated,
            cpu=functools.partial(solve_natively, self),
            default=self.solve_by_program,
        )

    def solve_by_program(
        self, states: State, rtol: Float[Array, ""], truncated: Bool[Array, ""]
    ) -> BlowUp:
        """`solve` by a JAX program, whether or not the native kernel is in use."""
        wide, plan = self.truncates(states), self.plan(states)
        if wide:
            states = jax.vmap(lambda state: reduce(state, self.dim).state)(states)
        else:
            states = jax.vmap(lambda state: pad(state, max(state.widths)))(states)
        return _solve(states, rtol, truncated | wide, plan, self.label)

    def gradient(self, state: State, time: Float[Array, ""], rtol: Float[Array, ""]) -> State:
        if native_kernel(self, state) is None:
            return self.gradient_by_program(state, time, rtol)
        return _native_gradient(self, state, time, rtol)

    def gradient_by_program(
        self, state: State, time: Float[Array, ""], rtol: Float[Array, ""]
    ) -> State:
        """`gradient` by a JAX program, whether or not the native kernel is in use."""
        room = _size_for(self.max_expansions, (1, 128))
        return _gradient(state, time, rtol, self.plan(state), self.dim, room)

    def gradient_of_known(
        self, state: State, time: Float[Array, ""], rtol: Float[Array, ""]
    ) -> State:
        if not is_on_cpu((state, time)):
            return super().gradient_of_known(state, time, rtol)
        if native_kernel(self, state) is not None:
            return gradient_on_host(self, state, time, rtol)
        p, q = state.widths
        size = _size_for(max(p, q), _DIMS)
        if size > self.dim:
            return super().gradient_of_known(state, time, rtol)
        filled = jax.tree.map(
            lambda leaf: leaf[0], _fill_up(host_states(state, lambda leaf: leaf[None]), size)
        )
        room = _size_for(self.max_expansions, (1, 128))
        gradient = _gradient(filled, time, rtol, self.plan(state), self.dim, room)
        a, b, c, strength = (np.asarray(field) for field in fields_of(gradient))
        return jax.device_put(State(a[:, :p], b[:p, :q], c[:, :q], strength))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _native_gradient(
    method: Series, state: State, time: Float[Array, ""], rtol: Float[Array, ""]
) -> State:
    """The gradient by the native kernel on CPUs; its own derivatives are those of the program."""
    natively = functools.partial(gradient_natively, method)
    if only_cpus():
        return natively(state, time, rtol)
    return lax.platform_dependent(
        state, time, rtol, cpu=natively, default=method.gradient_by_program
    )


@_native_gradient.defjvp
def _(
    method: Series, primals: tuple[State, Array, Array], tangents: tuple[State, Array, Array]
) -> tuple[State, State]:
    return jax.jvp(method.gradient_by_program, primals, tangents)


@functools.partial(jax.jit, static_argnames=("dim", "room"))
def _gradient(
    state: State, time: Float[Array, ""], rtol: Float[Array, ""], plan: Plan, dim: int, room: int
) -> State:
    def small_gradient(small: State, time: Array) -> State:
        lanes = jax.tree.map(lambda leaf: leaf[..., None], small)
        gradient = series_gradient(lanes, plan, room, rtol)
        gradient = jax.tree.map(lambda leaf: leaf[..., 0], gradient)
        # The strength of a single component sets the unit of time.
        return eqx.tree_at(lambda g: g.strength, gradient, -time[None] / small.strength)

    return gradient_in_reduction(state, time, dim, small_gradient)


def _solve(
    states: State, rtol: Float[Array, "..."], truncated: Bool[Array, "..."], plan: Plan, label: str
) -> BlowUp:
    """States of equal widths, none of them to be reduced, with one leading axis."""
    units, known = jax.vmap(lambda state: prepare(state, plan.reduced))(states)
    lanes = jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, -1), units)
    flags = jnp.broadcast_to(truncated, known.scale.shape)
    return classify(solve_lanes(lanes, flags, rtol, plan), known, rtol, label)


@functools.partial(jax.jit, static_argnames="lanes")
def _solve_batch(
    states: State, rtol: Float[Array, ""], truncated: Bool[Array, ""], plan: Plan, lanes: int
) -> BlowUp:
    blocks = jax.tree.map(lambda leaf: leaf.reshape(-1, lanes, *leaf.shape[1:]), states)
    results = lax.map(lambda block: _solve(block, rtol, truncated, plan, ""), blocks)
    return jax.tree.map(lambda leaf: leaf.reshape(-1), results)


@functools.partial(jax.jit, static_argnames=("size", "together"))
def _reduce_batch(states: State, size: int, dim: Int[Array, ""], together: int) -> State:
    """States reduced to `dim` dimensions, of which those in fewer are the leading part."""
    inside = jnp.arange(size) < dim

    def one(state: State) -> State:
        small = reduce(state, size).state
        a, c = (jnp.where(inside[None], layer, 0) for layer in (small.a, small.c))
        b = jnp.where(inside[:, None] & inside[None], small.b, 0)
        return State(a, b, c, small.strength)

    return lax.map(one, states, batch_size=together)


def _fill_up(states: State | HostStates, size: int) -> State:
    """`pad` of a batch, without a program where it lies on the host."""
    a, b, c, strength = fields_of(states)
    on_host = isinstance(b, np.ndarray) or is_on_cpu(b)
    library = np if on_host else jnp
    none, of_p, of_q = (0, 0), (0, size - b.shape[-2]), (0, size - b.shape[-1])
    return State(
        library.pad(a, (none, none, of_p)),
        library.pad(b, (none, of_p, of_q)),
        library.pad(c, (none, none, of_q)),
        strength,
    )
