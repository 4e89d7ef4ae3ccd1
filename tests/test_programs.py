"""The compiled programs: how many there are, and that none of them calls back to the host."""

import functools
from pathlib import Path

import diffrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import monitoring

import jaxcond as jc
from jaxcond.blowup import _method
from jaxcond.networks import _legs, _steps

PACKAGE = Path(jc.__file__).parent


def state(width=5, rank=1, seed=0):
    rng = np.random.default_rng(seed)
    shapes = ((rank, width), (width, width), (rank, width))
    a, b, c = (jnp.asarray(rng.standard_normal(shape)) for shape in shapes)
    return jc.State(a, b, c, jnp.ones(rank))


def batch(count, width):
    rng = np.random.default_rng(count)
    shapes = ((count, width), (count, width, width), (count, width))
    return jc.State.from_vectors(*(rng.standard_normal(shape) for shape in shapes))


def time_of(method, state):
    return jc.blowup_time(state, method).time


def by_program(state):
    states = jax.tree.map(lambda leaf: leaf[None], state)
    return jc.Series().solve_by_program(states, jnp.asarray(1e-8), jnp.asarray(False)).time


PROGRAMS = {
    "series": (time_of, (jc.Series(),), state()),
    "series without the kernel": (by_program, (), state()),
    "direct": (time_of, (jc.Direct(),), state()),
    "reduced, rank 2": (time_of, (jc.Reduced(),), state(rank=2)),
    "taylor, rank 2": (time_of, (jc.Taylor(),), state(rank=2)),
    "trajectory": (lambda s: jc.trajectory(s)(0.01).b, (), state()),
    "time of an energy": (lambda s: jc.trajectory(s).times_of(energy=50.0), (), state()),
    "onset": (lambda s: jc.trajectory(s).onset().time, (), state()),
    "chain": (lambda s: jc.blowup_time(jc.Chain((s.c.T, s.b, s.a, jnp.eye(1)))).time, (), state()),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_no_program_calls_back_to_the_host(name):
    function, first, last = PROGRAMS[name]
    text = jax.jit(functools.partial(function, *first)).lower(last).as_text()
    assert "callback" not in text
    if name in ("series", "direct", "reduced, rank 2"):
        value = functools.partial(function, *first)
        assert "callback" not in jax.jit(jax.grad(value)).lower(last).as_text()


def test_no_program_of_a_network_calls_back_to_the_host():
    key = jax.random.key(0)
    network = jc.networks.MLP.random((3, 4, 4, 1), key=key, std=1e-2)
    x = jax.random.normal(key, (6, 3))
    data = jc.networks.Regression(x, jnp.sum(x, axis=1))
    flow = _legs.Flow(data, None, jnp.asarray(1e-6), jc.networks.resolve_loss(0.5), {})
    span = tuple(jnp.asarray(value) for value in (0.0, 1.0, 0.1))
    for solver in (diffrax.Tsit5(), jc.networks.stiff_solver()):
        text = _legs.follow.lower(network, span, jnp.asarray(0.0), flow, solver).as_text()
        assert "callback" not in text


def train(num_steps, record, **options):
    network = jc.networks.MLP.random((3, 4, 4, 1), key=jax.random.key(0), std=1e-2)
    x = np.random.default_rng(0).standard_normal((6, 3))
    data = jc.networks.Regression(x, np.sum(x, axis=1))
    return jc.networks.gradient_descent(
        network, data, 1e-3, num_steps=num_steps, record=record, **options
    )


def test_records_of_training_call_nothing_back_to_the_host(monkeypatch):
    programs = []
    advance = _steps.advance

    def watched(*args):
        programs.append(advance.lower(*args).as_text())
        return advance(*args)

    monkeypatch.setattr(_steps, "advance", watched)
    for options in ({}, {"batch_size": 2}):
        train(10, 3, **options)
    assert len(programs) >= 2
    assert not any("callback" in text for text in programs)


def test_one_place_integrates_the_effective_flow():
    """Real networks, and the leading order of any module, have flows of their own."""
    places = [
        str(path.relative_to(PACKAGE))
        for path in sorted(PACKAGE.rglob("*.py"))
        if "diffeqsolve(" in path.read_text()
    ]
    assert places == ["flow/_solve.py", "networks/_legs.py", "networks/_own_flow.py"]


def test_no_room_asks_which_method_it_has():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        for method in ("Series", "Reduced", "Direct"):
            assert f"isinstance(method, {method}" not in text


@pytest.fixture
def compilations():
    """A function that counts the programs that some calls compile; their names are in `names`."""
    counted = []

    def listen(event, _, **about):
        if event == "/jax/core/compile/backend_compile_duration":
            counted.append(about["fun_name"])

    monitoring.register_event_duration_secs_listener(listen)

    def count(calls):
        counted.clear()
        calls()
        return len(counted)

    count.names = counted
    yield count
    monitoring.unregister_event_duration_listener(listen)


def test_new_sizes_and_tolerances_compile_nothing_new(compilations, monkeypatch):
    """With the kernel nothing at all; without it what the first of a size have compiled."""
    alone = [(state(width), 1e-10) for width in (3, 7, 12, 24)]
    alone += [(state(9), rtol) for rtol in (1e-6, 1e-8, 1e-12)]
    batches = [(batch(count, width), 1e-8) for count, width in ((7, 11), (8, 12), (9, 24))]
    batches += [(batch(5, 20), rtol) for rtol in (1e-6, 1e-10, 1e-12)]

    def session():
        for single, rtol in alone:
            jc.blowup_time(single, rtol=rtol)
        for states, rtol in batches:
            jc.blowup_times(states, rtol=rtol)

    if jc.Series().kernel(alone[0][0]) is not None:
        assert compilations(session) == 0
    monkeypatch.setattr("jaxcond.blowup.series._series.native_kernel", lambda *_: None)
    jax.clear_caches()
    sizes = [(state(10), 1e-9), (state(20), 1e-9)]
    more = [(batch(4, 10), 1e-9), (batch(4, 17), 1e-9)]

    def first_of_a_size():
        for single, rtol in sizes:
            jc.blowup_time(single, rtol=rtol)
        for states, rtol in more:
            jc.blowup_times(states, rtol=rtol)

    assert compilations(first_of_a_size) > 0
    assert compilations(session) == 0


def test_gradients_of_new_widths_share_their_programs(compilations, monkeypatch):
    """What is compiled for each width is the product with the tangent alone."""
    states = [state(width) for width in (3, 7, 12, 17, 24)]
    first = [state(10), state(20)]

    def session(states=states):
        for single in states:
            value, gradient = jax.value_and_grad(lambda s: jc.blowup_time(s).time)(single)
            homogeneous = sum(
                np.vdot(*pair) for pair in zip(gradient.layers, single.layers, strict=True)
            )
            np.testing.assert_allclose(homogeneous, -value, rtol=1e-8)

    session(states[:1])
    if jc.Series().kernel(states[0]) is not None:
        assert compilations(lambda: session(states[1:])) <= 2 * 4
        assert set(compilations.names) == {"jit(_along)"}
    monkeypatch.setattr("jaxcond.blowup.series._series.native_kernel", lambda *_: None)
    jax.clear_caches()
    compilations(lambda: session(first))
    assert compilations.names.count("jit(_gradient)") == 2
    compilations(session)
    assert set(compilations.names) == {"jit(_along)"}


def test_other_steps_and_records_of_training_compile_nothing_new(compilations):
    def session():
        train(37, 2)
        train(100, 101)
        train(300, [0, 5, 6, 7, 299], until=0.5, levels=(0.8, 0.4))

    jax.clear_caches()
    assert compilations(lambda: train(20, 5)) > 0
    assert compilations(session) == 0


def test_a_skip_compiles_one_program_of_blow_up_times(monkeypatch):
    """Both the length of the effective trajectory and the trajectory need the time."""
    methods = []
    solve = _method._solve_batch

    def watched(method, states, *rest):
        methods.append(method)
        return solve(method, states, *rest)

    monkeypatch.setattr(_method, "_solve_batch", watched)
    traced = []
    monkeypatch.setattr("jaxcond.blowup._solve._traced", lambda *args: traced.append(args))
    rng = np.random.default_rng(0)
    x = rng.standard_normal((20, 3))
    data = jc.networks.Regression(x, x @ rng.standard_normal((3, 2)))
    network = jc.networks.MLP.random((3, 6, 5, 2), key=jax.random.key(0), std=1e-3)
    jc.networks.skip_plateau(network, data, 0.01)
    assert len(methods) >= 2
    assert len(set(methods)) == 1
    # Within a program times are taken by another one.
    assert not traced


def test_trajectories_of_new_widths_and_times_compile_nothing_new(compilations):
    states = [state(width) for width in (5, 17, 30, 41, 200)]

    def follow(single, closeness, num):
        path = jc.trajectory(single, closeness=closeness)
        path.energy(np.linspace(0, 0.5, num) * float(path.blowup.time))

    def first_of_a_size():
        follow(state(9), 1e-5, 3)
        follow(state(33), 1e-5, 3)

    def session():
        for index, single in enumerate(states):
            follow(single, 1e-4 / (1 + index), 10 * index + 1)

    assert compilations(first_of_a_size) > 0
    if jc.Series().kernel(states[0]) is not None:
        assert compilations(session) == 0
