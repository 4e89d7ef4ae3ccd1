"""Records of training: taken on the device, of minibatches and of batches of the caller."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import (
    BATCH,
    DATA,
    INPUTS,
    RATE,
    ROUNDING,
    STEPS,
    STOPS,
    X,
    Y,
    assert_layers,
    assert_same_run,
    descend,
    draw,
    gradient_by_hand,
    loop_by_hand,
    together,
)

import jaxcond.networks as jn
from jaxcond.networks import _descent, _loop, _steps


def calls_of(monkeypatch, name="advance"):
    """The iterations to which the device is sent from now on."""
    calls = []
    original = getattr(_descent.Crew, name)

    def watched(self, stops, pause):
        calls.append((self.iteration, pause))
        return original(self, stops, pause)

    monkeypatch.setattr(_descent.Crew, name, watched)
    return calls


def test_records_at_every_iteration_are_those_of_a_plain_loop():
    _, losses = loop_by_hand(draw(), lambda iteration: RATE)
    assert STEPS > 2 * _steps.SLOTS
    run = descend(record=STEPS + 1)
    np.testing.assert_array_equal(run.iterations, np.arange(STEPS + 1))
    np.testing.assert_allclose(run.loss, losses, ROUNDING)


def test_records_do_not_depend_on_the_size_of_the_buffer(monkeypatch):
    def run():
        # A new function, so that the program is a new one.
        return descend(record=41, observe={"w": lambda network, model: network.weights[1]})

    calls = calls_of(monkeypatch)
    whole = run()
    few = len(calls)
    monkeypatch.setattr(_steps, "_BYTES", 3 * (8 * whole["w"][0].size + 24))
    assert_same_run(run(), whole)
    assert len(calls) - few >= 41 // 3


def test_records_do_not_depend_on_where_the_device_is_stopped(monkeypatch):
    networks = together([draw(seed) for seed in range(3)])
    calls = calls_of(monkeypatch)
    whole = descend(networks, until=0.2)
    assert np.unique(whole.iteration).size == 3
    few = len(calls)
    monkeypatch.setattr(_loop, "_SECONDS", 1e-9)
    monkeypatch.setattr(_loop, "_FIRST", 5)
    assert_same_run(descend(networks, until=0.2), whole)
    assert len(calls) - few > 20 > few


@pytest.mark.parametrize("size", [None, BATCH])
def test_networks_as_one_batch_are_as_each_alone(monkeypatch, size, key):
    """As on accelerators, where lanes that have ended wait for the others."""
    networks = together([draw(seed) for seed in range(3)])
    options = {"until": 0.2, "batch_size": size, "key": key, "record": 31}
    alone = descend(networks, **options)
    assert np.unique(alone.iteration).size > 1
    monkeypatch.setattr("jaxcond.networks._lanes.jax.default_backend", lambda: "gpu")
    batch = descend(networks, **options)
    np.testing.assert_array_equal(batch.iterations, alone.iterations)
    np.testing.assert_array_equal(batch.crossings[0.5], alone.crossings[0.5])
    np.testing.assert_allclose(batch.loss, alone.loss, ROUNDING)


def test_the_bar_shows_the_loss_where_the_run_is(monkeypatch):
    told = []
    monkeypatch.setattr(_loop, "_SECONDS", 1e-9)
    run = _loop.Loop.__init__

    def watched(self, crew, stops, stream, saved, every, tell):
        run(self, crew, stops, stream, saved, every, lambda *now: told.append(now))

    monkeypatch.setattr(_loop.Loop, "__init__", watched)
    descend(record=2)
    _, losses = loop_by_hand(draw(), lambda iteration: RATE)
    iterations, shown = np.array(told).T
    assert iterations[-1] == STEPS
    assert np.unique(iterations).size > 20
    np.testing.assert_allclose(shown, losses[iterations.astype(int)], ROUNDING)


def test_a_run_none_of_whose_weights_moves_ends():
    network = draw(std=1.0, dtype=jnp.float32)
    with pytest.warns(jn.StallWarning, match="up to 100 %"):
        run = descend(network, learning_rate=1e-12)
    assert run.status == jn.RunStatus.STALLED
    np.testing.assert_array_equal(run.iterations, [0])
    # Another minibatch may move them.
    with pytest.warns(jn.StallWarning, match="up to 100 %"):
        run = descend(network, learning_rate=1e-12, batch_size=BATCH)
    np.testing.assert_array_equal(run.iterations, STOPS)


@pytest.mark.parametrize("std", [0.1, 0.3])
def test_minibatches_look_at_the_loss_of_all_samples(std, key):
    options = {"batch_size": BATCH, "key": key, "record": 31, "levels": (0.8,)}
    whole = descend(draw(std=std), **options)
    losses = [float(DATA.loss(descend(draw(std=std), **options, num_steps=10).network))]
    np.testing.assert_allclose(whole.loss[1], losses[0], ROUNDING)
    below = whole.loss < 0.8 * whole.loss[0]
    first = int(np.argmax(below))
    assert 0 < first < 30
    assert whole.crossings[0.8] == whole.iterations[first]
    run = descend(draw(std=std), **options, until=0.8)
    assert run.status == jn.RunStatus.COMPLETED
    assert run.iteration == run.crossings[0.8] == whole.iterations[first]
    np.testing.assert_array_equal(run.loss, whole.loss[: first + 1])


def test_steps_lost_to_rounding_are_those_of_the_loss_of_all_samples(key):
    network = draw(std=1e-3, dtype=jnp.float32)
    options = {"learning_rate": 1e-4, "num_steps": 1, "record": [0]}
    whole = descend(network, **options)["rounded_away"][0]
    assert 0 < whole < 0.5
    for seed in range(3):
        run = descend(network, **options, batch_size=1, key=jax.random.key(seed))
        assert run["rounded_away"][0] == whole


def test_one_dear_sample_is_no_divergence(key):
    total = 1500
    x = np.random.default_rng(0).standard_normal((total, INPUTS))
    y = np.zeros((total, 1))
    y[7] = 100.0
    data = jn.Regression(x, y)
    run = descend(data=data, learning_rate=1e-9, num_steps=total, record=2, batch_size=1, key=key)
    assert run.status == jn.RunStatus.COMPLETED
    assert run.iteration == total


def test_a_divergence_of_minibatches_keeps_the_last_good_network(key):
    with pytest.warns(jn.DivergenceWarning):
        run = descend(learning_rate=40.0, batch_size=BATCH, key=key, record=31)
    assert run.status == jn.RunStatus.DIVERGED
    assert run.iteration == run.iterations[-1] < STEPS
    np.testing.assert_allclose(run.loss[-1], DATA.loss(run.network), ROUNDING)
    assert np.all(run.loss <= 1e3 * run.loss[0])


def batch_of(iteration):
    rng = np.random.default_rng(iteration)
    x = rng.standard_normal((4, INPUTS))
    return x, (x @ [1.0, 0.5])[:, None]


def batches_from(iteration, end=10**6):
    return (batch_of(i) for i in range(iteration, end))


@pytest.mark.parametrize("form", ["function", "iterator"])
def test_batches_of_the_caller_equal_a_plain_loop(form):
    run = descend(batches=batches_from if form == "function" else batches_from(0))
    layers, losses = [np.asarray(w) for w in draw().weights], []
    for iteration in range(STEPS + 1):
        losses.append(gradient_by_hand(layers)[0])
        if iteration < STEPS:
            _, gradient = gradient_by_hand(layers, *batch_of(iteration))
            layers = [w - RATE * g for w, g in zip(layers, gradient, strict=True)]
    assert_layers(run.network, layers, ROUNDING)
    np.testing.assert_array_equal(run.iterations, STOPS)
    np.testing.assert_allclose(run.loss, np.array(losses)[STOPS], ROUNDING)
    assert run.status == jn.RunStatus.COMPLETED
    low = descend(batches=batches_from, record=STEPS + 1, until=0.5)
    assert low.iteration == low.crossings[0.5] == np.argmax(np.array(losses) < 0.5 * losses[0])


def test_batches_of_all_samples_are_gradient_descent():
    batches = [(X, Y[:, 0])] * STEPS
    run = descend(together([draw(0), draw(1)]), batches=batches)
    for index, alone in enumerate([descend(), descend(draw(1))]):
        found = jax.tree.map(lambda w, i=index: w[i], run.network)
        assert_layers(found, alone.network.weights, ROUNDING)
        np.testing.assert_allclose(run.loss[index], alone.loss, ROUNDING)


def test_batches_are_read_when_they_are_needed():
    read = []

    def watched():
        for iteration, pair in enumerate(batches_from(0)):
            read.append(iteration)
            yield pair

    run = descend(batches=watched(), until=0.9, record=STEPS + 1)
    assert run.iteration < 200
    assert run.iteration <= len(read) <= run.iteration + 64
    read.clear()
    descend(batches=watched(), num_steps=70)
    assert len(read) == 70


def test_batches_that_end_early_leave_what_was_trained():
    batches = [batch_of(i) for i in range(100)]
    with pytest.warns(jn.ExhaustedWarning, match="before iteration 300: .* at iteration 100"):
        run = descend(batches=batches)
    assert run.status == jn.RunStatus.EXHAUSTED
    np.testing.assert_array_equal(run.iterations, [0, 1, 2, 50, 51, 100])
    alone = descend(batches=batches, num_steps=100)
    assert_same_run(run.network, alone.network)
    np.testing.assert_array_equal(run.loss, alone.loss)
    with pytest.warns(jn.ExhaustedWarning, match="at iteration 0"):
        run = descend(batches=[])
    np.testing.assert_array_equal(run.iterations, [0])


def test_batches_go_on_from_a_checkpoint(tmp_path):
    folder = tmp_path / "run"
    opened = []

    def batches(iteration, end=130):
        opened.append(iteration)
        return batches_from(iteration, end)

    with pytest.warns(jn.ExhaustedWarning):
        descend(batches=batches, checkpoint=folder, checkpoint_every=50)
    # What ended the run was the end of the batches: with more of them it goes on there.
    opened.clear()
    again = descend(batches=lambda i: batches(i, STEPS), checkpoint=folder, checkpoint_every=50)
    assert opened == [0, 130]
    assert_same_run(again, descend(batches=batches_from))
    with pytest.raises(ValueError, match=r"another run: batches .*nothing was changed"):
        descend(batches=lambda i: batches_from(i + 1), checkpoint=folder)
    with pytest.raises(ValueError, match=r"another run: batches .*nothing was changed"):
        descend(checkpoint=folder, batch_size=BATCH)


def with_batch(iteration, change):
    """Batches of which one is changed."""
    return [change(*batch_of(i)) if i == iteration else batch_of(i) for i in range(200)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": with_batch(70, lambda x, y: (x * np.nan, y))}, "iteration 70 .*`x` holds 8 "),
        ({"batches": with_batch(70, lambda x, y: (x, y + np.inf))}, "iteration 70 .*`y` holds 4 "),
        ({"batches": with_batch(70, lambda x, y: x)}, "iteration 70 .* must be a pair"),
        ({"batches": with_batch(0, lambda x, y: (x, y[:2]))}, r"iteration 0 .*\(4, 2\) and \(2, 1"),
        ({"batches": with_batch(70, lambda x, y: (x[:2], y[:2]))}, "iteration 70 .* of one size"),
        ({"batches": with_batch(0, lambda x, y: (["a"], y))}, "iteration 0 .*must hold numbers"),
        ({"batches": [(X[:, :1], Y)] * STEPS}, "iterations 0 to 63: .* has 2 inputs"),
        ({"batches": 5}, "`batches` must be an iterable"),
        ({"batches": [], "batch_size": 3}, "one of `batch_size` and `batches`"),
        ({"batches": [], "checkpoint": "folder"}, "`batches` must be a function of an iteration"),
        (
            {"batches": [], "data": jn.Entries(np.ones((1, 2))), "network": "linear"},
            "`data` must be `Regression`, but is `Entries`",
        ),
    ],
)
def test_bad_batches_are_named(options, message, unchecked):
    if options.get("network") == "linear":
        options = {**options, "network": jn.MLP(draw().weights, activation="linear")}
    with pytest.raises(ValueError, match=message):
        descend(**options)
