"""Competitors for the benchmarks: blow-up times by direct numerical integration.

Every function here takes a batch of states of ``a' = b c``, ``b' = a c^T``, ``c' = b^T a`` as
arrays ``a (B, p)``, ``b (B, p, q)``, ``c (B, q)`` and a relative tolerance ``tol`` and returns
the blow-up times ``(B,)``, accurate to about ``tol``.  They integrate in the desingularised time
``ds = rho dt`` with ``rho^2 = |a|^2 + |b|^2 + |c|^2``, in which the blow-up is an exponential
growth.  With ``E = a^T b c`` the blow-up time ``T`` is bracketed from any state on the path by

    t + R_F(|a|^2, |b|^2, |c|^2)  <=  T  <=  t + E^(-1/3)     (upper end where E > 0)

and the integrations, the one with diffrax excepted, stop once that bracket is narrower than
``tol T``.  They return ``t + R_F(|a|^2, E^2 / (|a| |c|)^2, |c|^2)``, which lies in the bracket
and is closer to ``T`` than its midpoint.  A sample that does not get there is returned as nan.

The error per step that is asked of each integrator is a multiple of ``tol`` (the ``*_RTOL``
constants), chosen so that the error of the result is about ``tol`` and not far below it.

This module does not set numbers of threads.  For a run on one thread set
``OMP_NUM_THREADS=OPENBLAS_NUM_THREADS=NUMBA_NUM_THREADS=1`` before numpy is imported.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable

import numba
import numpy as np
from numba import njit, prange
from numpy.typing import NDArray
from scipy.integrate import solve_ivp
from scipy.integrate._ivp import dop853_coefficients as dop853
from scipy.special import elliprf

Array = NDArray[np.float64]

STAGES = 12
A = np.ascontiguousarray(dop853.A[:STAGES, :STAGES])
B = np.ascontiguousarray(dop853.B[:STAGES])
# The last entries, those of the derivative at the end of the step, are zero.
E3 = np.ascontiguousarray(dop853.E3[:STAGES])
E5 = np.ascontiguousarray(dop853.E5[:STAGES])
assert dop853.E3[STAGES] == 0.0
assert dop853.E5[STAGES] == 0.0

MAX_STEPS = 20_000
LONGEST = 1e6  # in desingularised time
SAFETY, MIN_FACTOR, MAX_FACTOR = 0.9, 0.2, 10.0  # the step size controller of scipy
FULL_RTOL = 0.5  # relative to tol, for the full state (scipy and numba)
RANK_ONE_RTOL = 0.9
DIFFRAX_RTOL = {"Tsit5": 0.25, "Dopri8": 1.0}
FIRST_STEP = 2.5  # relative to the time scale and rtol^(1/8)
CLOSE, SETTLED = 1e-3, 0.5  # the early stop of numba_rank_one; the first is its default

# All of fastmath but the assumption that there are no nan and inf: a step that overflows is to
# be seen as rejected.
FAST = {"reassoc", "contract", "arcp", "nsz", "afn"}
PAD = 8  # the rank-one version pads p and q to a multiple of this, for loops without a tail


# ---------------------------------------------------------------- scipy


def _scipy_one(a: Array, b: Array, c: Array, tol: float) -> float:
    p, q = b.shape
    n = p * q
    y0 = np.concatenate([a, c, b.ravel(), [0.0]])

    def split(y: Array) -> tuple[Array, Array, Array]:
        return y[:p], y[p : p + q], y[p + q : p + q + n].reshape(p, q)

    def field(_s: float, y: Array) -> Array:
        a, c, b = split(y)
        inv = 1.0 / math.sqrt(np.dot(y[:-1], y[:-1]))
        out = np.empty_like(y)
        a_scaled = a * inv
        np.dot(b, c * inv, out=out[:p])
        np.dot(a_scaled, b, out=out[p : p + q])
        np.multiply(a_scaled[:, None], c, out=out[p + q : -1].reshape(p, q))
        out[-1] = inv
        return out

    def squares(y: Array) -> tuple[float, float, float, float]:
        a, c, b = split(y)
        flat = y[p + q : -1]
        return np.dot(a, a), np.dot(flat, flat), np.dot(c, c), np.dot(a, b @ c)

    def bracket(_s: float, y: Array) -> float:
        aa, bb, cc, energy = squares(y)
        if energy <= 0.0:
            return 1.0
        upper = energy ** (-1 / 3)
        return math.log((upper - elliprf(aa, bb, cc)) / (tol * (y[-1] + upper)) + 1e-9)

    bracket.terminal = True
    rtol = FULL_RTOL * tol
    size = math.sqrt(np.dot(y0, y0))
    atol = np.full(y0.size, rtol * size / math.sqrt(y0.size))
    atol[-1] = rtol / size
    found = solve_ivp(
        field, (0.0, LONGEST), y0, "DOP853", t_eval=[], events=bracket, rtol=rtol, atol=atol
    )
    if found.status != 1:
        return math.nan
    y = found.y_events[0][-1]
    aa, _, cc, energy = squares(y)
    return y[-1] + elliprf(aa, energy**2 / (aa * cc), cc)


def scipy_dop853(a: Array, b: Array, c: Array, tol: float) -> Array:
    """Blow-up times, one sample after the other, with scipy's DOP853 on the full state.

    Linear algebra runs on as many threads as the caller allows: to use a single one, set
    ``OMP_NUM_THREADS`` and ``OPENBLAS_NUM_THREADS`` to 1 before numpy is imported.
    """
    return np.array([_scipy_one(*state, tol) for state in zip(a, b, c, strict=True)])


# ---------------------------------------------------------------- diffrax


@functools.cache
def _diffrax_solver(solver: str) -> Callable:
    import diffrax
    import jax
    import jax.numpy as jnp

    jax.config.update("jax_enable_x64", True)

    def field(_s, state, _args):
        a, b, c, _t = state
        inv = jax.lax.rsqrt(jnp.sum(a * a) + jnp.sum(b * b) + jnp.sum(c * c))
        return b @ c * inv, jnp.outer(a * inv, c), a @ b * inv, inv

    def close(_s, state, tol, **_kwargs):
        a, b, c, t = state
        return a @ b @ c > (0.5 * tol * t) ** -3.0

    def one(a, b, c, tol):
        rtol = DIFFRAX_RTOL.get(solver, 0.25) * tol
        size = jnp.sqrt(jnp.sum(a * a) + jnp.sum(b * b) + jnp.sum(c * c))
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            getattr(diffrax, solver)(),
            t0=0.0,
            t1=LONGEST,
            dt0=None,
            y0=(a, b, c, jnp.zeros_like(size)),
            args=tol,
            saveat=diffrax.SaveAt(t1=True),
            stepsize_controller=diffrax.PIDController(rtol=rtol, atol=rtol),
            event=diffrax.Event(close),
            max_steps=MAX_STEPS,
            throw=False,
        )
        reached = solution.result == diffrax.RESULTS.event_occurred
        return jnp.where(reached, solution.ys[3][0], jnp.nan)

    return jax.jit(jax.vmap(one, in_axes=(0, 0, 0, None)))


def diffrax_vmap(a: Array, b: Array, c: Array, tol: float, solver: str = "Dopri8") -> Array:
    """Blow-up times with diffrax as an ordinary user has it: a vmap over the full states.

    It integrates, in desingularised time, until ``E^(-1/3)``, a bound of the time left, is below
    half of ``tol t`` and takes that ``t``.  ``solver`` is the name of a solver of diffrax, such
    as ``Tsit5`` or ``Dopri8``.  The first call for a shape compiles.
    """
    times = _diffrax_solver(solver)(a, b, c, tol)
    return np.asarray(times.block_until_ready())


# ---------------------------------------------------------------- numba, both


@njit(fastmath=FAST, inline="always")
def _dot(x, y):
    total = 0.0
    for i in range(x.size):
        total += x[i] * y[i]
    return total


@njit(fastmath=FAST)
def _carlson_rf(x, y, z):
    """R_F(x, y, z) by duplication."""
    while True:
        mean = (x + y + z) / 3.0
        dx, dy = 1.0 - x / mean, 1.0 - y / mean
        dz = -dx - dy
        if max(abs(dx), abs(dy), abs(dz)) < 2e-3:
            break
        rx, ry, rz = math.sqrt(x), math.sqrt(y), math.sqrt(z)
        shift = rx * ry + ry * rz + rz * rx
        x, y, z = 0.25 * (x + shift), 0.25 * (y + shift), 0.25 * (z + shift)
    e2 = dx * dy - dz * dz
    e3 = dx * dy * dz
    series = 1.0 - e2 / 10.0 + e3 / 14.0 + e2 * e2 / 24.0 - 3.0 * e2 * e3 / 44.0
    return series / math.sqrt(mean)


@njit(fastmath=FAST)
def _bracket(aa, bb, cc, energy):
    """Time left: lower bound, upper bound, estimate; for a positive energy."""
    lower = _carlson_rf(aa, bb, cc)
    upper = energy ** (-1.0 / 3.0)
    return lower, upper, _carlson_rf(aa, energy * energy / (aa * cc), cc)


@njit(fastmath=FAST)
def _next_step(h, error, rejected):
    """Size of the next step from the error norm of this one (accepted if below 1)."""
    if error < 1.0:
        factor = MAX_FACTOR if error == 0.0 else min(MAX_FACTOR, SAFETY * error**-0.125)
        return h * min(1.0, factor) if rejected else h * factor
    if error < 1e30:
        return h * max(MIN_FACTOR, SAFETY * error**-0.125)
    return h * MIN_FACTOR


# ---------------------------------------------------------------- numba, full state


@njit(fastmath=FAST)
def _combine(y, h, weights, k, count, out):
    """``out = y + h sum_j weights[j] k[j]``, in blocks that stay in the first-level cache."""
    for start in range(0, y.size, 512):
        stop = min(start + 512, y.size)
        for m in range(start, stop):
            out[m] = y[m]
        for j in range(count):
            if weights[j] != 0.0:
                w, row = h * weights[j], k[j]
                for m in range(start, stop):
                    out[m] += w * row[m]


@njit(fastmath=FAST)
def _field(y, p, q, out):
    """Derivative of the state ``(a, c, b, t)`` in desingularised time."""
    first = p + q
    inv = 1.0 / math.sqrt(_dot(y[:-1], y[:-1]))
    a, c, to_c = y[:p], y[p:first], out[p:first]
    to_c[:] = 0.0
    for i in range(p):
        row = y[first + i * q : first + (i + 1) * q]
        to_row = out[first + i * q : first + (i + 1) * q]
        scaled, total = a[i] * inv, 0.0
        for m in range(q):
            total += row[m] * c[m]
            to_c[m] += scaled * row[m]
            to_row[m] = scaled * c[m]
        out[i] = total * inv
    out[-1] = inv


@njit(fastmath=FAST)
def _full_error(y, new, h, k, rtol, atol, atol_time):
    """Error norm of DOP853, as in scipy."""
    size, total5, total3 = y.size, 0.0, 0.0
    part5, part3 = np.empty(512), np.empty(512)
    for start in range(0, size, 512):
        count = min(512, size - start)
        part5[:] = 0.0
        part3[:] = 0.0
        for j in range(STAGES):
            if E5[j] != 0.0 or E3[j] != 0.0:
                e5, e3, row = E5[j], E3[j], k[j, start : start + count]
                for m in range(count):
                    part5[m] += e5 * row[m]
                    part3[m] += e3 * row[m]
        for m in range(count):
            g = start + m
            floor = atol_time if g == size - 1 else atol
            inv = 1.0 / (floor + rtol * max(abs(y[g]), abs(new[g])))
            total5 += (part5[m] * inv) ** 2
            total3 += (part3[m] * inv) ** 2
    if total5 == 0.0:
        return 0.0
    return abs(h) * total5 / math.sqrt((total5 + 0.01 * total3) * size)


@njit(fastmath=FAST)
def _first_step(y, f, p, q, rtol, atol, atol_time):
    """Starting step from the sizes of the state, of ``f`` and of its change, as in scipy."""
    size = y.size
    probe, change = np.empty(size), np.empty(size)
    d0, d1, d2 = 0.0, 0.0, 0.0
    for m in range(size):
        scale = rtol * abs(y[m]) + (atol_time if m == size - 1 else atol)
        d0 += (y[m] / scale) ** 2
        d1 += (f[m] / scale) ** 2
    h0 = 0.01 * math.sqrt(d0 / d1)
    for m in range(size):
        probe[m] = y[m] + h0 * f[m]
    _field(probe, p, q, change)
    for m in range(size):
        scale = rtol * abs(y[m]) + (atol_time if m == size - 1 else atol)
        d2 += ((change[m] - f[m]) / scale) ** 2
    d1, d2 = math.sqrt(d1 / size), math.sqrt(d2 / size) / h0
    return min(100.0 * h0, (0.01 / max(d1, d2)) ** 0.125)


@njit(fastmath=FAST)
def _full_one(a, b, c, tol, rtol):
    p, q = b.shape
    first = p + q
    y, new = np.empty(first + p * q + 1), np.empty(first + p * q + 1)
    k = np.empty((STAGES, y.size))
    y[:p], y[p:first], y[first:-1], y[-1] = a, c, b.ravel(), 0.0
    size = math.sqrt(_dot(y, y))
    atol, atol_time = rtol * size / math.sqrt(y.size), rtol / size
    _field(y, p, q, k[0])
    h, rejected = _first_step(y, k[0], p, q, rtol, atol, atol_time), False
    for _ in range(MAX_STEPS):
        for i in range(1, STAGES):
            _combine(y, h, A[i], k, i, new)
            _field(new, p, q, k[i])
        _combine(y, h, B, k, STAGES, new)
        error = _full_error(y, new, h, k, rtol, atol, atol_time)
        h = _next_step(h, error, rejected)
        rejected = not error < 1.0
        if rejected:
            continue
        y, new = new, y
        _field(y, p, q, k[0])
        aa, cc = _dot(y[:p], y[:p]), _dot(y[p:first], y[p:first])
        energy = _dot(y[:p], k[0, :p]) / k[0, -1]
        if energy > 0.0:
            bb = _dot(y[first:-1], y[first:-1])
            lower, upper, estimate = _bracket(aa, bb, cc, energy)
            if upper - lower < tol * (y[-1] + lower):
                return y[-1] + estimate
    return math.nan


@njit(parallel=True, fastmath=FAST, cache=False)
def _full_all(a, b, c, tol, rtol):
    times = np.empty(a.shape[0])
    for i in prange(a.shape[0]):
        times[i] = _full_one(a[i], b[i], c[i], tol, rtol)
    return times


def numba_dop853(a: Array, b: Array, c: Array, tol: float) -> Array:
    """Blow-up times with a compiled DOP853 on the full state, in parallel over the samples.

    Coefficients, error norm and step size control are those of scipy.
    """
    return _full_all(*_contiguous(a, b, c), tol, FULL_RTOL * tol)


# ---------------------------------------------------------------- numba, rank-one stages


@njit(fastmath=FAST)
def _products(b, sa, sc, ka, kc, k):
    """``ka[k] = b sc[k]``, ``kc[k] = b^T sa[k]`` in one pass over ``b``, four rows at a time."""
    p, q = b.shape
    for m in range(q):
        kc[k, m] = 0.0
    for i in range(0, p, 4):
        a0, a1, a2, a3 = sa[k, i], sa[k, i + 1], sa[k, i + 2], sa[k, i + 3]
        s0, s1, s2, s3 = 0.0, 0.0, 0.0, 0.0
        for m in range(q):
            x0, x1, x2, x3, z = b[i, m], b[i + 1, m], b[i + 2, m], b[i + 3, m], sc[k, m]
            s0 += x0 * z
            s1 += x1 * z
            s2 += x2 * z
            s3 += x3 * z
            kc[k, m] += (a0 * x0 + a1 * x1) + (a2 * x2 + a3 * x3)
        ka[k, i], ka[k, i + 1], ka[k, i + 2], ka[k, i + 3] = s0, s1, s2, s3


@njit(fastmath=FAST)
def _update(b, w, sa, sc, ka, kc):
    """``b += sum_j w[j] sa[j] sc[j]^T`` and the derivatives at the end of the step, in one pass.

    The end of the step is in the last rows of ``sa`` and ``sc``; its derivatives become the first
    rows of ``ka`` and ``kc``.  Only the stages 0 and 5 to 11 have a weight in DOP853.
    """
    p, q = b.shape
    for m in range(q):
        kc[0, m] = 0.0
    for i in range(p):
        w0, w5, w6, w7 = w[0] * sa[0, i], w[5] * sa[5, i], w[6] * sa[6, i], w[7] * sa[7, i]
        w8, w9 = w[8] * sa[8, i], w[9] * sa[9, i]
        w10, w11 = w[10] * sa[10, i], w[11] * sa[11, i]
        ai, total = sa[STAGES, i], 0.0
        for m in range(q):
            x = b[i, m] + (w0 * sc[0, m] + w5 * sc[5, m]) + (w6 * sc[6, m] + w7 * sc[7, m])
            x += (w8 * sc[8, m] + w9 * sc[9, m]) + (w10 * sc[10, m] + w11 * sc[11, m])
            b[i, m] = x
            total += x * sc[STAGES, m]
            kc[0, m] += ai * x
        ka[0, i] = total


@njit(fastmath=FAST)
def _row_dot(x, j, i):
    total = 0.0
    for m in range(x.shape[1]):
        total += x[j, m] * x[i, m]
    return total


@njit(fastmath=FAST)
def _row_copy(x, j, i):
    for m in range(x.shape[1]):
        x[i, m] = x[j, m]


@njit(fastmath=FAST)
def _row_axpy(w, x, j, out, i):
    for m in range(x.shape[1]):
        out[i, m] += w * x[j, m]


@njit(fastmath=FAST)
def _stage(i, h, b, inv, offset, sa, sc, ka, kc, dots):
    """Stage ``i``: states ``sa, sc`` and derivatives ``ka, kc`` with respect to ``t``.

    The functions that it calls take arrays with row numbers: views of single rows, with their
    reference counts, would dominate at small widths.
    """
    _row_copy(sa, 0, i)
    _row_copy(sc, 0, i)
    for j in range(i):
        if A[i, j] != 0.0:
            w = h * A[i, j] * inv[j]
            _row_axpy(w, ka, j, sa, i)
            _row_axpy(w, kc, j, sc, i)
    aa, cc = _row_dot(sa, i, i), _row_dot(sc, i, i)
    inv[i] = 1.0 / math.sqrt(aa + max(aa + offset, 0.0) + cc)
    _products(b, sa, sc, ka, kc, i)
    for j in range(i):
        if A[i, j] != 0.0:
            w = h * A[i, j] * inv[j]
            along_a, along_c = _row_dot(sa, j, i), _row_dot(sc, j, i)
            if j == 0:
                dots[0, i], dots[1, i] = along_a, along_c
            _row_axpy(w * along_c, sa, j, ka, i)
            _row_axpy(w * along_a, sc, j, kc, i)


@njit(fastmath=FAST)
def _squares(w5, w3, x):
    """Squared norms of ``sum_j w5[j] x[j]`` and ``sum_j w3[j] x[j]``.

    Only the stages 0 and 5 to 11 have a weight in DOP853.
    """
    total5, total3 = 0.0, 0.0
    for m in range(x.shape[1]):
        x5 = w5[0] * x[0, m] + w5[5] * x[5, m] + w5[6] * x[6, m] + w5[7] * x[7, m]
        x5 += w5[8] * x[8, m] + w5[9] * x[9, m] + w5[10] * x[10, m] + w5[11] * x[11, m]
        x3 = w3[0] * x[0, m] + w3[5] * x[5, m] + w3[6] * x[6, m] + w3[7] * x[7, m]
        x3 += w3[8] * x[8, m] + w3[9] * x[9, m] + w3[10] * x[10, m] + w3[11] * x[11, m]
        total5 += x5 * x5
        total3 += x3 * x3
    return total5, total3


@njit(fastmath=FAST)
def _rank_one_error(h, inv, sa, sc, ka, kc, dots, scales, work):
    """Error norm of DOP853 on ``a``, ``c``, ``t`` and the products of ``b`` with ``a`` and ``c``.

    The error matrix of ``b`` is ``sum_j w_j a_j c_j^T``.  Its Frobenius norm from Gram matrices
    would be lost to cancellation; its products with the unit vectors along ``a`` and ``c``, by
    which it acts on the path, are not.
    """
    w5, w3, v5, v3 = work[0], work[1], work[2], work[3]
    time5, time3 = 0.0, 0.0
    for j in range(STAGES):
        w5[j], w3[j] = h * E5[j] * inv[j], h * E3[j] * inv[j]
        time5 += w5[j]
        time3 += w3[j]
    in_a5, in_a3 = _squares(w5, w3, ka)
    in_c5, in_c3 = _squares(w5, w3, kc)
    for j in range(STAGES):
        v5[j], v3[j] = w5[j] * dots[1, j], w3[j] * dots[1, j]
    left5, left3 = _squares(v5, v3, sa)
    for j in range(STAGES):
        v5[j], v3[j] = w5[j] * dots[0, j], w3[j] * dots[0, j]
    right5, right3 = _squares(v5, v3, sc)
    sum5 = in_a5 * scales[0] + in_c5 * scales[1] + time5 * time5 * scales[2]
    sum5 += left5 * scales[3] + right5 * scales[4]
    sum3 = in_a3 * scales[0] + in_c3 * scales[1] + time3 * time3 * scales[2]
    sum3 += left3 * scales[3] + right3 * scales[4]
    if sum5 == 0.0:
        return 0.0
    return sum5 / math.sqrt(5.0 * (sum5 + 0.01 * sum3))


@njit(fastmath=FAST)
def _rank_one_loop(b, sa, sc, ka, kc, tol, rtol, close):
    """Blow-up time from ``sa[0], b, sc[0]``; ``b`` is overwritten."""
    inv, w, dots = np.empty(STAGES), np.empty(STAGES), np.zeros((2, STAGES))
    scales, work = np.empty(5), np.empty((4, STAGES))
    flat = b.ravel()
    aa, bb, cc = _dot(sa[0], sa[0]), _dot(flat, flat), _dot(sc[0], sc[0])
    offset = bb - aa  # constant along the path
    _products(b, sa, sc, ka, kc, 0)
    t, shortest, last = 0.0, _carlson_rf(aa, bb, cc), -1.0
    inv[0] = 1.0 / math.sqrt(aa + bb + cc)
    floor = 1e-6 * (aa + bb + cc)
    rate = _dot(ka[0], ka[0]) / max(aa, floor) + _dot(kc[0], kc[0]) / max(cc, floor)
    rate = math.sqrt(max(0.5 * rate, math.sqrt(aa * cc), floor)) * inv[0]
    h, rejected = FIRST_STEP * rtol**0.125 / rate, False
    h_before, error_before, change_before = 0.0, 1.0, 0.0
    for _ in range(MAX_STEPS):
        dots[0, 0], dots[1, 0] = aa, cc
        for i in range(1, STAGES):
            _stage(i, h, b, inv, offset, sa, sc, ka, kc, dots)
        _row_copy(sa, 0, STAGES)
        _row_copy(sc, 0, STAGES)
        t_new = t
        for j in range(STAGES):
            w[j] = h * B[j] * inv[j]
            t_new += w[j]
            if w[j] != 0.0:
                _row_axpy(w[j], ka, j, sa, STAGES)
                _row_axpy(w[j], kc, j, sc, STAGES)
        aa_new, cc_new = _row_dot(sa, STAGES, STAGES), _row_dot(sc, STAGES, STAGES)
        scales[0] = 1.0 / (rtol * rtol * max(aa, aa_new))
        scales[1] = 1.0 / (rtol * rtol * max(cc, cc_new))
        scales[2] = 1.0 / (rtol * max(t_new, shortest)) ** 2
        scales[3] = 1.0 / max(rtol * rtol * max(bb, offset + aa_new) * cc, 1e-200)
        scales[4] = 1.0 / max(rtol * rtol * max(bb, offset + aa_new) * aa, 1e-200)
        error = _rank_one_error(h, inv, sa, sc, ka, kc, dots, scales, work)
        h_used = h
        h = _next_step(h, error, rejected)
        rejected = not error < 1.0
        if rejected:
            continue
        if h_before > 0.0 and error > 0.0:
            # Gustafsson's predictive control: a trend of the step sizes goes on.
            trend = h_used / h_before * (error_before / error) ** 0.125
            if trend < 1.0:
                h = min(h, h_used * max(MIN_FACTOR, SAFETY * error**-0.125 * trend))
        h_before, error_before = h_used, max(error, 1e-2)
        _update(b, w, sa, sc, ka, kc)
        _row_copy(sa, STAGES, 0)
        _row_copy(sc, STAGES, 0)
        t, aa, cc = t_new, aa_new, cc_new
        bb = max(aa + offset, 0.0)
        inv[0] = 1.0 / math.sqrt(aa + bb + cc)
        energy = _dot(sa[0], ka[0])
        if energy > 0.0:
            lower, upper, estimate = _bracket(aa, bb, cc, energy)
            width, found = (upper - lower) / (t + lower), t + estimate
            change = abs(found - last)
            left = change
            if change_before > 0.0:
                left *= min(1.0, max(0.04, change / change_before))
            if width < tol or (width < close and left < SETTLED * tol * found):
                return found
            last, change_before = found, change
    return math.nan


@njit(parallel=True, fastmath=FAST, cache=False)
def _rank_one_all(a, b, c, tol, rtol, close):
    samples, p, q = b.shape
    rows, columns = -(-p // PAD) * PAD, -(-q // PAD) * PAD
    times = np.empty(samples)
    for i in prange(samples):
        matrix = np.zeros((rows, columns))
        sa, sc = np.zeros((STAGES + 1, rows)), np.zeros((STAGES + 1, columns))
        matrix[:p, :q], sa[0, :p], sc[0, :q] = b[i], a[i], c[i]
        ka, kc = np.empty((STAGES, rows)), np.empty((STAGES, columns))
        times[i] = _rank_one_loop(matrix, sa, sc, ka, kc, tol, rtol, close)
    return times


def numba_rank_one(a: Array, b: Array, c: Array, tol: float, close: float = CLOSE) -> Array:
    """Blow-up times with a compiled DOP853 that uses that ``b'`` has rank one at every stage.

    The matrix of a stage is that of the start of the step plus ``sum_j w_j a_j c_j^T``, so a
    stage is one pass over a fixed matrix, for both of its products, and corrections by earlier
    stages; the matrix is written once in an accepted step.  The norm of ``b`` in ``rho`` is taken
    from ``|b|^2 - |a|^2``, which is constant.  The step sizes are controlled by norms of ``a``,
    ``c``, ``t`` and products of ``b``, with a predictive controller.  Apart from the bracket, the
    integration also stops once the estimates of the blow-up time settle while the bracket is
    narrower than ``close T``: nothing proves those times.  With ``close=0`` the bracket alone
    stops it.
    """
    return _rank_one_all(*_contiguous(a, b, c), tol, RANK_ONE_RTOL * tol, close)


# ---------------------------------------------------------------- table


def _contiguous(*arrays: Array) -> list[Array]:
    return [np.ascontiguousarray(x, dtype=np.float64) for x in arrays]


def _timed(function: Callable[..., Array], *args) -> tuple[float, Array]:
    start = time.perf_counter()
    times = function(*args)
    return time.perf_counter() - start, times


def main(tol: float = 1e-8) -> None:
    """Print the seconds per sample of each competitor and its errors, for a few widths."""
    peers: dict[str, Callable[..., Array]] = {
        "scipy_dop853": scipy_dop853,
        "diffrax_vmap Tsit5": functools.partial(diffrax_vmap, solver="Tsit5"),
        "diffrax_vmap Dopri8": functools.partial(diffrax_vmap, solver="Dopri8"),
        "numba_dop853": numba_dop853,
        "numba_rank_one": numba_rank_one,
    }
    threads = numba.get_num_threads()
    print(f"tol {tol:g}, numba on {threads} thread(s), errors against scipy_dop853 at tol 1e-11")
    print(f"{'width':>5}  {'method':<20} {'s / sample':>10} {'max error':>10}")
    for width, samples in ((10, 24), (50, 8), (200, 4)):
        rng = np.random.default_rng(width)
        shapes = (samples, width), (samples, width, width), (samples, width)
        states = [rng.standard_normal(shape) for shape in shapes]
        reference = scipy_dop853(*states, 1e-11)
        for name, peer in peers.items():
            peer(*states, tol)  # compile
            seconds, times = min((_timed(peer, *states, tol) for _ in range(2)), key=lambda x: x[0])
            error = np.max(np.abs(times / reference - 1.0))
            print(f"{width:5d}  {name:<20} {seconds / samples:10.2e} {error:10.1e}", flush=True)


if __name__ == "__main__":
    main()
