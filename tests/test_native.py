"""The native kernel against the JAX programs beside it, against SciPy, and at its edges."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy import stats

import jaxcond as jc
from jaxcond import _native
from jaxcond._native import _library
from jaxcond.blowup import HostStates
from jaxcond.flow import pieces, pieces_by_program
from jaxcond.sampling import Draws

pytestmark = pytest.mark.skipif(
    _native.instruction_set() is None, reason=f"no kernel in use: {_native.status()}"
)

EPS = {np.float64: 2.0**-52, np.float32: 2.0**-23}
RTOL = {np.float64: 1e-10, np.float32: 1e-5}
FIELDS = ("time", "lower", "upper", "error", "status", "num_steps")
ONCE = jc.Series(order=32, dim=10, max_expansions=1)
AGAIN = jc.Series()


@pytest.fixture(params=["avx512", "avx2", "baseline"])
def instruction_set(request):
    """Each instruction set that the machine has."""
    usual = _native.instruction_set()
    try:
        _native.instruction_set(request.param)
    except ValueError:
        pytest.skip("the machine lacks it")
    yield request.param
    _native.instruction_set(usual)


def random_states(count, p, q, scales=(1.0, 1.0, 1.0), seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    shapes = ((count, p), (count, p, q), (count, q))
    layers = [s * rng.standard_normal(shape) for s, shape in zip(scales, shapes, strict=True)]
    strength = rng.choice([-2.0, -1.0, 1.0, 0.5], (count, 1))
    a, b, c = (layer.astype(dtype) for layer in layers)
    return jc.State(a[:, None], b, c[:, None], strength.astype(dtype))


def by_kernel(method, states, rtol, truncated=False):
    solve = method.kernel(states)
    fields = (states.a, states.b, states.c, states.strength)
    return solve(HostStates(*(np.asarray(field) for field in fields)), rtol, truncated)


def by_program(method, states, rtol, truncated=False):
    result = method.batch_solver(states)(states, rtol, truncated)
    return {name: np.asarray(getattr(result, name)) for name in FIELDS}


def assert_agree(kernel, program, dtype):
    """To rounding, as far as the condition of each sample lets them, which its error tells."""
    both = (kernel["status"] == 0) & (program["status"] == 0)
    rounding = 200 * EPS[dtype] * program["time"][both] + 2 * program["error"][both]
    for name in ("time", "lower", "upper"):
        assert np.all(np.abs(kernel[name][both] - program[name][both]) <= rounding)
    # A sample whose error lies at the tolerance may fall on either side: none that one of the two
    # settles with an error far below it.
    differ = kernel["status"] != program["status"]
    error, time = (np.minimum(kernel[name], program[name])[differ] for name in ("error", "time"))
    assert np.all(error >= 0.01 * RTOL[dtype] * time)
    for found in (kernel, program):
        assert not np.any(np.isnan(found["error"][found["status"] == jc.Status.NOT_CONVERGED]))
    for status in (1, 3):
        np.testing.assert_array_equal(kernel["status"] == status, program["status"] == status)
    decades = np.abs(np.log10(kernel["error"][both]) - np.log10(program["error"][both]))
    # In float32 the last terms, which it is estimated from, may be rounding and nothing else.
    assert np.all(decades < (1.5 if dtype == np.float64 else 2))


@settings(max_examples=40, deadline=None)
@given(
    p=st.integers(1, 24),
    q=st.integers(1, 24),
    scales=st.tuples(*[st.floats(-3, 3)] * 3),
    seed=st.integers(0, 2**32 - 1),
    method=st.sampled_from([ONCE, AGAIN]),
    dtype=st.sampled_from([np.float64, np.float32]),
    truncated=st.booleans(),
)
@example(1, 16, (-1.0, 3.0, -1.0), 0, ONCE, np.float32, False)
@example(1, 10, (-2.0, 3.0, 0.0), 0, ONCE, np.float32, False)
@example(14, 19, (0.0, 3.0, 0.0), 1, ONCE, np.float32, False)  # its series overflows
def test_the_kernel_agrees_with_the_program(p, q, scales, seed, method, dtype, truncated):
    powers = [2.0**exponent for exponent in scales]
    states = random_states(6, p, q, powers, seed, dtype)
    kernel = by_kernel(method, states, RTOL[dtype], truncated)
    program = by_program(method, states, RTOL[dtype], truncated)
    assert_agree(kernel, program, dtype)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", [ONCE, AGAIN], ids=["once", "again"])
def test_wide_states_on_every_instruction_set(instruction_set, method, dtype):
    states = random_states(32, 60, 45, (3.0, 1.0, 0.1), 5, dtype)
    kernel = by_kernel(method, states, RTOL[dtype])
    assert_agree(kernel, by_program(method, states, RTOL[dtype]), dtype)


def test_traced_programs_call_the_same_kernel():
    states = random_states(9, 30, 20)
    kernel = by_kernel(AGAIN, states, 1e-10)
    traced = jax.jit(jax.vmap(lambda state: jc.blowup_time(state)))(states)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(traced, name), kernel[name])
    nested = jax.tree.map(lambda x: x.reshape(3, 3, *x.shape[1:]), states)
    traced = jax.vmap(jax.vmap(jc.blowup_time))(nested)
    np.testing.assert_array_equal(traced.time.ravel(), kernel["time"])
    alone = [float(jc.blowup_time(jax.tree.map(lambda x, i=i: x[i], states)).time) for i in (0, 8)]
    np.testing.assert_array_equal(alone, kernel["time"][[0, 8]])


def test_large_batches_under_jit_use_all_lanes():
    states = random_states(1500, 8, 8)
    kernel = by_kernel(ONCE, states, 1e-6)
    traced = jax.jit(lambda s: ONCE.solve(s, jnp.asarray(1e-6), jnp.asarray(False)))(states)
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(traced, name), kernel[name])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_bad_lanes_leave_good_ones_alone(instruction_set, dtype):
    states = random_states(24, 12, 9, dtype=dtype)
    b = np.array(states.b)
    b[1, 3, 4], b[5, 0, 0], b[9] = np.nan, np.inf, 0
    a, strength = np.array(states.a), np.array(states.strength)
    a[13], strength[14], strength[15] = 0, 0, np.nan
    b[14] = 0
    mixed = jc.State(a, b, states.c, strength)
    for method in (ONCE, AGAIN, jc.Series(dim=4)):
        good = by_kernel(method, states, 1e-4)
        found = by_kernel(method, mixed, 1e-4)
        invalid = np.isin(np.arange(24), [1, 5, 15])
        np.testing.assert_array_equal(found["status"] == jc.Status.INVALID_INPUT, invalid)
        assert found["status"][14] == jc.Status.NO_BLOW_UP
        assert all(np.all(np.isnan(found[name][invalid])) for name in FIELDS[:4])
        untouched = ~np.isin(np.arange(24), [1, 5, 9, 13, 14, 15])
        for name in FIELDS:
            np.testing.assert_array_equal(found[name][untouched], good[name][untouched])


@pytest.mark.parametrize("exponent", [-900, -300, 0, 300, 900])
def test_any_scale(exponent):
    states = random_states(5, 20, 20, seed=3)
    scaled = states.scale(2.0**exponent)
    kernel, expected = by_kernel(AGAIN, scaled, 1e-10), by_kernel(AGAIN, states, 1e-10)
    np.testing.assert_array_equal(kernel["time"] * 2.0**exponent, expected["time"])
    np.testing.assert_array_equal(kernel["status"], expected["status"])


@pytest.mark.parametrize("dim", [64, 65, 96])
def test_many_dimensions(dim):
    states = random_states(3, 120, 110, seed=4)
    wide = by_kernel(jc.Series(dim=dim), states, 1e-10)
    np.testing.assert_allclose(wide["time"], by_kernel(AGAIN, states, 1e-10)["time"], rtol=1e-13)
    narrow = random_states(3, dim, dim, seed=4)
    full = by_kernel(jc.Series(dim=dim), narrow, 1e-10)
    np.testing.assert_allclose(full["time"], by_kernel(AGAIN, narrow, 1e-10)["time"], rtol=1e-13)


# The gradient.


@pytest.fixture(scope="module")
def gradient_by_program():
    """Of every state; one program for each dtype, shape and method."""

    def find(method, state, time, rtol):
        return method.gradient_by_program(state, time, rtol)

    batched = jax.jit(jax.vmap(find, in_axes=(None, 0, 0, None)), static_argnums=0)

    def every(method, states, times, rtol):
        gradient = batched(method, states, jnp.asarray(times), jnp.asarray(rtol, times.dtype))
        return tuple(np.asarray(layer).reshape(len(times), -1) for layer in gradient.layers)

    return every


def gradient_by_kernel(method, states, rtol):
    fields = (np.asarray(x) for x in (states.a, states.b, states.c, states.strength))
    layers = _native.series_gradient(
        *fields,
        np.full(len(states.strength), rtol, states.dtype),
        order=method.degree(states.dtype),
        dim=method.dim,
        max_expansions=method.max_expansions,
    )
    return tuple(layer.reshape(len(layer), -1) for layer in layers)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("method", [ONCE, AGAIN], ids=["once", "again"])
@pytest.mark.parametrize("widths", [(5, 9), (60, 45)])
def test_the_gradient_agrees_with_the_program(dtype, method, widths, gradient_by_program):
    """As far as the condition of each sample lets them, which the error of its time tells."""
    some = 0
    for scales in ((1, 1, 1), (1, 1e-2, 1e-2), (1e-2, 3, 1)):
        states = random_states(11, *widths, scales, 2, dtype)
        found = by_kernel(method, states, RTOL[dtype])
        kernel = gradient_by_kernel(method, states, RTOL[dtype])
        program = gradient_by_program(method, states, found["time"], RTOL[dtype])
        exact = gradient_by_kernel(AGAIN, jax.tree.map(np.float64, states), 1e-10)
        settled = found["status"] == 0
        some += np.sum(settled)
        bound = 200 * EPS[dtype] + 20 * found["error"] / found["time"]
        for x, y, z in zip(kernel, program, exact, strict=True):
            unknown, unknown_there = (np.isnan(gradient).any(axis=1) for gradient in (x, y))
            assert not np.any(unknown & settled)
            # In float32 rounding may decide whether an expansion suffices.
            if dtype == np.float64:
                np.testing.assert_array_equal(unknown, unknown_there)
            largest = np.max([np.max(np.abs(layer), axis=1) for layer in exact], axis=0)
            known = settled & ~unknown_there
            assert np.all((np.max(np.abs(x - y), axis=1) <= bound * largest)[known])
            # One expansion in few dimensions has directions of its own.
            if method is AGAIN:
                assert np.all((np.max(np.abs(x - z), axis=1) <= bound * largest)[settled])
    assert some >= 11


def test_the_gradient_on_every_instruction_set_and_scale(instruction_set, gradient_by_program):
    states = random_states(9, 30, 20, seed=6)
    times = by_kernel(AGAIN, states, 1e-10)["time"]
    expected = gradient_by_program(AGAIN, states, times, 1e-10)
    usual = gradient_by_kernel(AGAIN, states, 1e-10)
    for x, y in zip(usual, expected, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-12 * np.abs(y).max())
    for scale in (2.0**-400, 2.0**400):
        scaled = gradient_by_kernel(AGAIN, states.scale(scale), 1e-10)
        for x, y in zip(scaled, usual, strict=True):
            np.testing.assert_array_equal(x * scale * scale, y)


def test_the_gradient_inside_programs_is_that_outside():
    states = random_states(5, 30, 20, seed=7)
    slopes = jax.jit(jax.vmap(jax.grad(lambda s: jc.blowup_time(s, AGAIN).time)))(states)
    direct = gradient_by_kernel(AGAIN, states, 1e-10)
    for index in range(5):
        state = jax.tree.map(lambda x, i=index: x[i], states)
        alone = jax.grad(lambda s: jc.blowup_time(s, AGAIN).time)(state)
        for x, y, z in zip(slopes.layers, alone.layers, direct, strict=True):
            np.testing.assert_array_equal(x[index], y)
            np.testing.assert_array_equal(np.ravel(y), z[index])
        time = float(jc.blowup_time(state, AGAIN).time)
        np.testing.assert_allclose(alone.strength, -time / state.strength, rtol=1e-15)


def test_the_gradient_of_states_that_never_blow_up_is_unknown():
    states = random_states(9, 5, 5)
    a, b = np.array(states.a), np.array(states.b)
    a[3], b[3] = 0, 0
    b[6, 1, 1] = np.nan
    bad = jc.State(a, b, states.c, states.strength)
    kernel = gradient_by_kernel(AGAIN, bad, 1e-10)
    usual = gradient_by_kernel(AGAIN, states, 1e-10)
    good = ~np.isin(np.arange(9), [3, 6])
    for x, y in zip(kernel, usual, strict=True):
        np.testing.assert_array_equal(x[good], y[good])
    for index in (3, 6):
        state = jax.tree.map(lambda x, i=index: jnp.asarray(x[i]), bad)
        for leaf in jax.tree.leaves(jax.grad(lambda s: jc.blowup_time(s).time)(state)):
            assert np.all(np.isnan(leaf))


# Pieces of a flow.


def flows(dtype):
    """A random one, one of other strength, one far from equal sizes, one at rest, one of zeros."""
    states = random_states(5, 7, 7, seed=8, dtype=dtype)
    a, b, c = (np.array(x) for x in states.layers)
    b[2] *= 1e-3
    a[3] = [[1, 0, 0, 0, 0, 0, 0]]
    b[3] = a[3].T @ a[3]
    c[3] = -a[3]
    a[4] = b[4] = c[4] = 0
    strength = np.array(states.strength)
    strength[3] = 1
    return jax.tree.map(jnp.asarray, jc.State(a, b, c, strength))


def along(pieces, dtype, max_pieces=48):
    closeness = jnp.asarray({np.float64: 1e-6, np.float32: 1e-3}[dtype], dtype)
    return jax.jit(jax.vmap(lambda state: pieces(state, closeness, max_pieces)))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_kernel_follows_a_flow_as_the_program_does(instruction_set, dtype):
    states = flows(dtype)
    kernel = along(pieces, dtype)(states)
    program = along(pieces_by_program, dtype)(states)
    np.testing.assert_array_equal(kernel.ends, program.ends)
    np.testing.assert_array_equal(kernel.ends, [True, True, True, False, False])
    rounding = 2000 * EPS[dtype]
    # At rest rounding grows like the square of the time, until it ends the flow.
    moving = [0, 1, 2, 4]
    np.testing.assert_array_equal(kernel.num[jnp.array(moving)], program.num[jnp.array(moving)])
    assert min(int(kernel.num[3]), int(program.num[3])) > 20
    for name in ("begin", "length", "elapsed"):
        found, wanted = (np.asarray(getattr(x, name))[moving] for x in (kernel, program))
        np.testing.assert_allclose(found, wanted, rtol=rounding)
    # Apart by rounding at the start, they part like 1 / (T* - t).
    for lane in range(5):
        few = int(kernel.num[lane]) // 3
        lengths = [np.asarray(x.length[lane])[:few] for x in (kernel, program)]
        np.testing.assert_allclose(*lengths, rtol=rounding)
        for name in ("sides", "b"):
            found, wanted = (np.asarray(getattr(x, name)[lane]) for x in (kernel, program))
            largest = np.max(np.abs(wanted[:few]))
            assert np.max(np.abs(found - wanted)[:few]) <= rounding * largest
            assert np.all(found[int(kernel.num[lane]) :] == 0)


def test_pieces_of_a_batch_are_those_of_each_state_alone():
    states = flows(np.float64)
    batch = along(pieces, np.float64)(states)
    one = jax.jit(lambda state: pieces(state, jnp.asarray(1e-6), 48))
    for index in (0, 2, 4):
        alone = one(jax.tree.map(lambda x, i=index: x[i], states))
        for x, y in zip(jax.tree.leaves(batch), jax.tree.leaves(alone), strict=True):
            np.testing.assert_array_equal(x[index], y)


_BUSY = """
import jax
jax.config.update("jax_enable_x64", True)
import jaxcond as jc
from jaxcond.study import run_study
store = run_study(jc.Study(1024, ensemble={"width": 6}, observables=("counts",), chunk=1024))
print(int((store.dataset().counts_status == 0).all()))
"""


def test_programs_that_run_at_once_do_not_wait_for_each_other():
    """On every core a program with the kernel, each of which would like the other cores' help."""
    ended = subprocess.run(
        [sys.executable, "-c", _BUSY], capture_output=True, text=True, timeout=200
    )
    assert ended.stdout.strip() == "1", ended.stderr


@pytest.mark.parametrize("alone", [True, False], ids=["only CPUs", "other devices"])
def test_derivatives_of_pieces_are_those_of_the_program(monkeypatch, alone):
    monkeypatch.setattr("jaxcond.flow._native_pieces.only_cpus", lambda: alone)
    state, direction = (jax.tree.map(lambda x, i=i: x[i], flows(np.float64)) for i in (0, 1))

    def ends_of(function):
        def energy(step):
            layers = [x + step * y for x, y in zip(state.layers, direction.layers, strict=True)]
            found = function(jc.State(*layers, state.strength), jnp.asarray(1e-2), 16)
            return jc.energy(found.end)

        return jax.jit(lambda step: [f(energy)(step) for f in (jax.jacfwd, jax.grad, jax.hessian)])(
            0.0
        )

    np.testing.assert_allclose(ends_of(pieces), ends_of(pieces_by_program), rtol=1e-10)


# Drawing.


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize(("p", "q"), [(200, 200), (7, 4), (2, 1), (10**9, 30)])
def test_the_kernel_draws_the_programs_samples(instruction_set, p, q, dtype):
    with jax.enable_x64(dtype == np.float64):
        key = jax.random.key(3)
        draws = Draws(jc.Gaussian(p, q, (0.5, 2.0, 3.0)), key, 11)
        indices = np.array([0, 1, 77, 2**32 - 1, 5, 6, 7, 8, 9], np.uint32)
        kernel = draws.on_host()(indices)
        program = jax.vmap(draws)(jnp.asarray(indices))
        for name in ("a", "b", "c", "strength"):
            expected = np.asarray(getattr(program, name))
            assert getattr(kernel, name).dtype == dtype
            size = np.max(np.abs(expected))
            tolerance = {np.float64: 1e-14, np.float32: 2e-5}[dtype]
            np.testing.assert_allclose(getattr(kernel, name), expected, tolerance, tolerance * size)


def test_indices_beyond_32_bits():
    draws = Draws(jc.Gaussian(50, 50), jax.random.key(3), 5)
    indices = np.array([3, 2**32 + 3, 2**40, 3], np.int64)
    kernel = draws.on_host()(indices)
    np.testing.assert_allclose(kernel.b, jax.vmap(draws)(jnp.asarray(indices)).b, rtol=1e-13)
    np.testing.assert_array_equal(kernel.b[0], kernel.b[3])
    assert np.all(kernel.b[0, 0, :2] != kernel.b[1, 0, :2])


def test_other_generators_are_left_to_the_program():
    ensemble = jc.Gaussian(40, 40)
    key = jax.random.key(3, impl="rbg")
    assert Draws(ensemble, key, 10).on_host() is None
    found = jc.blowup_times(ensemble.draws(5, key=key))
    assert np.all(np.asarray(found.status) == jc.Status.CONVERGED)


@pytest.mark.parametrize("degrees", [1, 2, 3, 10, 200, 5000, 10**6, 10**9])
def test_a_million_draws_have_the_law(degrees):
    draws = Draws(jc.Gaussian(degrees, degrees), jax.random.key(11), 2)
    states = draws.on_host()(np.arange(10**6, dtype=np.uint32))
    if degrees < 10**5:
        law = stats.chi(degrees).cdf
    else:
        # The distribution function of SciPy loses digits there; chi itself is normal to 1e-4 of a
        # deviation, moved by the mean of Wilson and Hilferty's cube root.
        shift = np.sqrt(degrees) * (1 - 1 / (4 * degrees))
        law = stats.norm(shift, np.sqrt(0.5)).cdf
    for sample in (states.a[:, 0, 0], states.c[:, 0, 0]):
        assert stats.kstest(sample, law).pvalue > 1e-4
    assert stats.kstest(states.b[:, 0, 0], "norm").pvalue > 1e-4
    pairs = np.corrcoef([states.a[:, 0, 0], states.c[:, 0, 0], states.b[:, 0, 0]])
    assert np.max(np.abs(pairs - np.eye(3))) < 5e-3


# Loading.

SCRIPT = """
import jax
jax.config.update("jax_enable_x64", True)
import jaxcond as jc
from jaxcond import _native
print(_native.status())
print(float(jc.blowup_time(jc.infinite_width(dim=12)).time))
print(float(jc.trajectory(jc.infinite_width(dim=12), closeness=1e-2).onset().time))
"""


def test_it_can_be_switched_off():
    environment = os.environ | {"JAXCOND_NATIVE": "0"}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, check=True
    )
    status, time, onset = done.stdout.split("\n")[:3]
    assert status == "none: switched off by JAXCOND_NATIVE=0"
    assert float(time) == pytest.approx(1.167972771072370, rel=1e-9)
    natively = jc.trajectory(jc.infinite_width(dim=12), closeness=1e-2).onset()
    assert float(onset) == pytest.approx(float(natively.time), rel=1e-12)


@pytest.fixture
def reload(monkeypatch):
    """Loading as in a fresh process, and the kernel as it was afterwards."""
    _library._load.cache_clear()
    yield monkeypatch
    monkeypatch.undo()
    _library._load.cache_clear()


def test_a_file_of_another_machine_is_not_loaded(reload, tmp_path):
    file = tmp_path / "libjaxcond.so"
    file.write_bytes(b"\x7fELF" + bytes(200))
    reload.setattr(_library, "FILE", file)
    assert _native.status().startswith("none: built for another machine")
    assert _native.handlers() == {}
    assert _native.instruction_set() is None
    assert AGAIN.kernel(random_states(1, 3, 3)) is None


def test_no_file_means_no_compiler(reload, tmp_path):
    reload.setattr(_library, "FILE", tmp_path / "nothing.so")
    assert _native.status() == "none: not built (no C++17 compiler at installation)"


def test_an_instruction_set_that_the_machine_lacks(reload):
    reload.setenv("JAXCOND_NATIVE", "neon9")
    assert _native.status() == "none: JAXCOND_NATIVE=neon9 is not one that this machine runs"
    reload.setenv("JAXCOND_NATIVE", "1")
    _library._load.cache_clear()
    with pytest.raises(ValueError, match="which this machine does not run"):
        _native.instruction_set("neon9")
