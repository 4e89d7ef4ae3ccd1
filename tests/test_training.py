"""Gradient descent, its checkpoints and gradient flow, against plain loops and scipy."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from helpers import EPS
from scipy.integrate import solve_ivp

import jaxcond as jc
import jaxcond.networks as jn
from jaxcond.networks import _descent, stiff_solver
from jaxcond.networks._observe import NAMES

P, Q, N, INPUTS = 6, 5, 12, 2
STEPS, RATE = 300, 0.05
STOPS = [0, 1, 2, 50, 51, 200, STEPS]
# Rounding of STEPS steps, which grows by some thousand while the plateau is left.
ROUNDING = 1e4 * EPS
# The solver keeps 1e-6 in a step; some thirty steps, and their growth while the plateau is left.
FLOW = 1e-4


def samples():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((N, INPUTS))
    return x, (x @ [1.0, 0.5] + 0.3 * rng.standard_normal(N))[:, None]


X, Y = samples()
DATA = jn.Regression(X, Y)


def draw(seed=0, std=0.1, dtype=jnp.float64, activation="tanh"):
    key = jax.random.key(seed)
    return jn.MLP.random((INPUTS, Q, P, 1), key=key, std=std, dtype=dtype, activation=activation)


def descend(network=None, data=DATA, learning_rate=RATE, **options):
    settings = {"num_steps": STEPS, "record": STOPS, **options}
    network = draw() if network is None else network
    return jn.gradient_descent(network, data, learning_rate, **settings)


def gradient_by_hand(layers, x=X, y=Y, kappa=0.5):
    """Loss and gradient of a tanh network by backpropagation in NumPy."""
    w1, w2, w3 = layers
    first = np.tanh(w1 @ x.T)
    second = np.tanh(w2 @ first)
    residual = w3 @ second - y.T
    back3 = 2 * kappa / len(x) * residual
    back2 = (w3.T @ back3) * (1 - second**2)
    back1 = (w2.T @ back2) * (1 - first**2)
    return kappa / len(x) * np.sum(residual**2), [back1 @ x, back2 @ first.T, back3 @ second.T]


def loop_by_hand(network, rate_at, num_steps=STEPS, kappa=0.5):
    """Weights and losses at all iterations."""
    layers = [np.asarray(w) for w in network.weights]
    weights, losses = [], []
    for iteration in range(num_steps + 1):
        loss, gradient = gradient_by_hand(layers, kappa=kappa)
        weights.append(layers)
        losses.append(loss)
        rate = rate_at(iteration)
        layers = [w - rate * g for w, g in zip(layers, gradient, strict=True)]
    return weights, np.array(losses)


def assert_same_run(first, second):
    """Bit for bit, dtype for dtype."""
    (leaves, structure), (others, other_structure) = map(jax.tree.flatten, (first, second))
    assert structure == other_structure
    for leaf, other in zip(leaves, others, strict=True):
        assert leaf.dtype == other.dtype
        np.testing.assert_array_equal(leaf, other)


def assert_layers(network, expected, tolerance):
    for found, wanted in zip(network.weights, expected, strict=True):
        np.testing.assert_allclose(found, wanted, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def plain():
    return descend()


@pytest.fixture(scope="module")
def by_hand():
    return loop_by_hand(draw(), lambda iteration: RATE)


def test_descent_equals_a_plain_loop(plain, by_hand):
    weights, losses = by_hand
    assert plain.status == jn.RunStatus.COMPLETED
    assert_layers(plain.network, weights[STEPS], ROUNDING)
    np.testing.assert_array_equal(plain.iterations, STOPS)
    np.testing.assert_allclose(plain.loss, losses[STOPS], ROUNDING)
    np.testing.assert_allclose(plain.times, RATE * np.array(STOPS), ROUNDING)
    np.testing.assert_array_equal(plain["rounded_away"], 0)
    assert plain.num_gradients == plain.iteration == STEPS


def test_learning_rates_change_at_their_iterations():
    table = {0: 0.05, 100: 0.01, 101: 0.1, 250: 0.02}
    run = descend(learning_rate=table, loss="mse")
    weights, losses = loop_by_hand(
        draw(), lambda i: table[max(start for start in table if start <= i)], kappa=1.0
    )
    assert_layers(run.network, weights[STEPS], ROUNDING)
    np.testing.assert_allclose(run.loss, losses[STOPS], ROUNDING)
    expected = 0.05 * 100 + 0.01 + 0.1 * 149 + 0.02 * 50
    np.testing.assert_allclose(run.times[-1], expected, ROUNDING)


def test_crossings_are_the_first_iterations_below(plain, by_hand):
    _, losses = by_hand
    for level in (0.9, 0.5):
        assert plain.crossings[level] == np.argmax(losses < level * losses[0])


@pytest.mark.parametrize("late", [0, 1, 2])
def test_crossings_at_the_end_of_a_run(by_hand, late):
    _, losses = by_hand
    first = int(np.argmax(losses < 0.9 * losses[0]))
    crossed = descend(num_steps=first - 1 + late).crossings[0.9]
    np.testing.assert_array_equal(crossed, first if late else np.nan)


def test_a_run_ends_once_the_loss_is_low(plain, by_hand):
    weights, losses = by_hand
    first = int(np.argmax(losses < 0.7 * losses[0]))
    run = descend(until=0.7, levels=(0.7,))
    assert run.crossings[0.7] == first
    # The loss of an iteration is known with its gradient, which is used too.
    assert run.iteration == run.iterations[-1] == first + 1
    assert_layers(run.network, weights[first + 1], ROUNDING)
    np.testing.assert_allclose(run.loss[-1], losses[first + 1], ROUNDING)


def test_records_are_the_observables_of_the_state(plain):
    run = descend(num_steps=2, record=[2], observe=NAMES)
    state = jn.to_state(run.network, DATA)
    np.testing.assert_array_equal(run.iterations, [0, 2])
    assert set(run.records) == {"loss", "rounded_away", *NAMES}
    np.testing.assert_allclose(run["energy"][-1], jc.energy(state), ROUNDING)
    np.testing.assert_allclose(run["energy"][-1], plain["energy"][2], ROUNDING)
    norms = [np.linalg.norm(layer) for layer in state.layers]
    np.testing.assert_allclose(run["norms"][-1], norms, ROUNDING)
    w1, w2, w3 = (np.asarray(w) for w in run.network.weights)
    values = np.linalg.svd(w3 @ w2 @ w1, compute_uv=False)
    np.testing.assert_allclose(run["singular_values"][-1], values, ROUNDING)
    rows = w1 / np.linalg.norm(w1, axis=1, keepdims=True)
    np.testing.assert_allclose(run["similarity"][-1], rows @ rows.T, ROUNDING, ROUNDING)
    v = (Y.T @ X)[0] / np.linalg.norm(Y.T @ X)
    np.testing.assert_allclose(run["alignment"][-1, 0], rows @ v, ROUNDING, ROUNDING)
    final = jc.final_stage(state)
    for number, name in enumerate(("first", "second", "third"), 1):
        assert run[f"positive_{number}"][-1] == getattr(final, name).positive
    with pytest.raises(KeyError, match="'energies' was not recorded; there are "):
        run["energies"]


def test_observables_of_the_caller():
    def trace(network, model):
        return jnp.sum(network.weights[1] ** 2) + 0 * model.rate

    run = descend(num_steps=2, observe={"square": trace})
    np.testing.assert_allclose(
        run["square"][-1], np.sum(np.asarray(run.network.weights[1]) ** 2), ROUNDING
    )


def test_adam_equals_optax():
    optimiser = optax.adam(1e-2)
    run = descend(learning_rate=None, optimiser=optimiser, num_steps=60)
    weights = [jnp.asarray(w) for w in draw().weights]
    state = optimiser.init(weights)
    for _ in range(60):
        _, gradient = gradient_by_hand([np.asarray(w) for w in weights])
        updates, state = optimiser.update([jnp.asarray(g) for g in gradient], state)
        weights = optax.apply_updates(weights, updates)
    assert_layers(run.network, weights, ROUNDING)
    assert np.all(np.isnan(run.times))
    assert run.iteration == 60


BATCH = 5


def test_every_epoch_visits_every_sample_once():
    # With W1 = W2 = 1 and W3 = 0 a step moves entry j of W3 if sample j was in its batch. Further
    # steps move the others by the square of the learning rate.
    rate, identity = 1e-4, jnp.eye(12)
    data = jn.Regression(identity, jnp.ones((12, 1)))
    network = jn.MLP([identity, identity, jnp.zeros((1, 12))], activation="linear")
    run = jn.gradient_descent(
        network, data, rate, num_steps=9, batch_size=4, record=10, observe={"w3": output_layer}
    )
    seen = np.abs(np.diff(run["w3"][:, 0], axis=0)) > 0.1 * rate
    np.testing.assert_array_equal(seen.sum(axis=1), 4)
    epochs = seen.reshape(3, 3, 12)
    np.testing.assert_array_equal(epochs.sum(axis=1), 1)
    assert not np.array_equal(epochs[0], epochs[1])


def output_layer(network, model):
    del model
    return network.weights[2]


def test_minibatches_do_not_depend_on_what_is_recorded(key, tmp_path):
    options = {"batch_size": BATCH, "key": key, "num_steps": 50}
    first = descend(**options, record=2)
    second = descend(**options, record=51, checkpoint=tmp_path / "a", checkpoint_every=7)
    assert_same_run(first.network, second.network)
    np.testing.assert_array_equal(first.loss, second.loss[[0, -1]])
    other = descend(**{**options, "key": jax.random.key(1)}, record=2)
    assert np.max(np.abs(other.network.weights[1] - first.network.weights[1])) > 1e-6


def test_a_batch_of_all_samples_is_no_minibatch(plain):
    assert_same_run(descend(batch_size=N), plain)


def test_results_do_not_depend_on_what_is_recorded(plain):
    run = descend(record=STEPS + 1, observe=["norms"])
    assert_same_run(run.network, plain.network)
    np.testing.assert_array_equal(run.loss[STOPS], plain.loss)
    assert run.crossings == plain.crossings


def together(networks):
    return jax.tree.map(lambda *w: jnp.stack(w), *networks)


def test_many_networks_are_each_alone():
    networks = [draw(seed) for seed in range(3)]
    runs = descend(together(networks), until=0.7)
    assert len(np.unique(runs.iteration)) == 3
    for index, network in enumerate(networks):
        alone = descend(network, until=0.7)
        assert_same_run(jax.tree.map(lambda w, i=index: w[i], runs.network), alone.network)
        np.testing.assert_array_equal(runs.iteration[index], alone.iteration)
        np.testing.assert_array_equal(runs.crossings[0.9][index], alone.crossings[0.9])
        np.testing.assert_array_equal(runs.loss[index, : alone.loss.size - 1], alone.loss[:-1])


@pytest.mark.parametrize("record", [2, 7, 401])
@pytest.mark.parametrize("num_steps", [3, 400])
def test_a_divergence_keeps_the_last_good_network(record, num_steps):
    first = float(DATA.loss(draw()))
    with pytest.warns(jn.DivergenceWarning, match="1 of 1 networks diverged"):
        run = descend(learning_rate=40.0, num_steps=num_steps, record=record)
    assert run.status == jn.RunStatus.DIVERGED
    assert np.all(run.loss <= 1e3 * first)
    weights, losses = loop_by_hand(draw(), lambda i: 40.0, int(run.iteration))
    assert_layers(run.network, weights[-1], ROUNDING)
    np.testing.assert_allclose(run.loss[-1], losses[-1], ROUNDING)
    assert run.iteration == run.iterations[-1]


def test_one_of_many_diverges_alone():
    networks = together([draw(0), draw(1, std=3.0)])
    with pytest.warns(jn.DivergenceWarning, match="1 of 2 networks diverged"):
        runs = descend(networks, learning_rate=2.0, num_steps=40, record=2)
    assert runs.status.tolist() == [jn.RunStatus.COMPLETED, jn.RunStatus.DIVERGED]
    alone = descend(draw(0), learning_rate=2.0, num_steps=40, record=2)
    np.testing.assert_array_equal(runs.network.weights[1][0], alone.network.weights[1])


def test_stalls_of_float32_are_told():
    with pytest.warns(jn.StallWarning, match="1 of 1 networks stalled: up to 98 %"):
        run = descend(draw(std=1e-6, dtype=jnp.float32), learning_rate=1e-3, record=2)
    assert run.status == jn.RunStatus.STALLED
    assert run["rounded_away"][0] > 0.5
    assert run.network.dtype == jnp.float32
    run = descend(draw(std=1e-6), learning_rate=1e-3, record=2)
    assert run.status == jn.RunStatus.COMPLETED
    np.testing.assert_array_equal(run["rounded_away"], 0)


def test_a_run_that_goes_on_is_one_run(plain):
    table = {0: 0.05, 120: 0.02}
    whole = descend(learning_rate=table)
    half = descend(learning_rate=table, num_steps=100)
    rest = descend(half.network, learning_rate=table, num_steps=200, first_iteration=100)
    assert_same_run(rest.network, whole.network)
    np.testing.assert_array_equal(rest.times[-1], whole.times[-1])
    assert rest.iteration == STEPS
    assert rest.num_gradients == 200


def test_activations_without_an_effective_model_are_trained():
    run = descend(draw(std=1.0, activation="z_tanh_z"), num_steps=50)
    assert run.loss[-1] < run.loss[0]
    assert "energy" not in run.records
    with pytest.raises(ValueError, match=r"Observable 'energy' .* does not apply"):
        descend(draw(std=1.0, activation="z_tanh_z"), observe=["energy"])


class Interrupted(Exception):
    pass


def interrupt_at(monkeypatch, iteration):
    """Raise at the checkpoint of an iteration, before it is written."""
    save = ocp.CheckpointManager.save

    def stop(self, step, *args, **options):
        if step == iteration:
            raise Interrupted
        return save(self, step, *args, **options)

    monkeypatch.setattr(ocp.CheckpointManager, "save", stop)


SAVED = {"checkpoint_every": 60, "batch_size": BATCH}


def test_an_interrupted_run_goes_on_to_the_same_numbers(tmp_path, monkeypatch, key):
    networks = together([draw(0), draw(1)])
    whole = descend(networks, **SAVED, key=key, checkpoint=tmp_path / "whole")
    unsaved = descend(networks, batch_size=BATCH, key=key)
    assert_same_run(whole, unsaved)
    with monkeypatch.context() as patched:
        interrupt_at(patched, 180)
        with pytest.raises(Interrupted):
            descend(networks, **SAVED, key=key, checkpoint=tmp_path / "cut")
    assert {int(p.name) for p in (tmp_path / "cut").iterdir() if p.name.isdigit()} >= {120}
    steps = []
    with monkeypatch.context() as patched:
        advance = _descent.Crew.advance

        def watched(self, stops, pause):
            steps.append(int(np.min(self.lanes.iteration)))
            return advance(self, stops, pause)

        patched.setattr(_descent.Crew, "advance", watched)
        again = descend(networks, **SAVED, key=key, checkpoint=tmp_path / "cut")
    assert steps[0] == 120
    assert_same_run(again, whole)
    # A run that is complete is read, not done again.
    assert_same_run(descend(networks, **SAVED, key=key, checkpoint=tmp_path / "cut"), whole)


def contents(folder):
    return {p: p.read_bytes() for p in sorted(Path(folder).rglob("*")) if p.is_file()}


def test_folders_of_other_runs_are_refused(tmp_path):
    folder = tmp_path / "run"
    run = {"num_steps": 20, "checkpoint_every": 10, "checkpoint": folder, "record": 2}
    descend(**run)
    before = contents(folder)
    momenta = [optax.sgd(0.1, momentum=m) for m in (0.5, 0.9)]
    others = {
        "initial weights": {"network": draw(1)},
        "learning_rate": {"learning_rate": 0.04},
        "data": {"data": jn.Regression(X, 2 * Y)},
        "loss": {"loss": "mse"},
        "activation": {"network": draw(activation="sin")},
        "layers": {"network": together([draw(0), draw(1)])},
        "dtype": {"network": draw(dtype=jnp.float32)},
        "batch_size": {"batch_size": BATCH},
        "optimiser": {"optimiser": momenta[0], "learning_rate": None},
        "first_iteration": {"first_iteration": 10},
        "levels": {"levels": (0.8,)},
        "until": {"until": 0.1},
        "observe": {"observe": ["norms"]},
    }
    for name, change in others.items():
        with pytest.raises(ValueError, match=rf"another run: .*{name} .*nothing was changed"):
            descend(**{**run, **change})
    assert contents(folder) == before
    run = {**run, "learning_rate": None, "checkpoint": tmp_path / "momentum"}
    descend(**run, optimiser=momenta[0])
    with pytest.raises(ValueError, match="another run: optimiser"):
        descend(**run, optimiser=momenta[1])


def test_a_checkpoint_that_cannot_be_written(tmp_path, monkeypatch):
    folder = tmp_path / "full"
    run = {"num_steps": 40, "checkpoint_every": 10, "checkpoint": folder, "record": 5}
    with monkeypatch.context() as patched:
        save = ocp.CheckpointManager.save

        def full(self, step, *args, **options):
            if step >= 30:
                raise OSError(28, os.strerror(28))
            return save(self, step, *args, **options)

        patched.setattr(ocp.CheckpointManager, "save", full)
        message = r"iteration 30 into .*No space left.*the last one is of iteration 20"
        with pytest.raises(OSError, match=message):
            descend(**run)
    assert_same_run(descend(**run), descend(num_steps=40, record=5))


def test_a_folder_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="file"):
        descend(num_steps=2, checkpoint=tmp_path / "file")


KILLED = """
import sys
import jax
jax.config.update("jax_enable_x64", True)
sys.path.insert(0, sys.argv[1])
import test_training
print("ready", flush=True)
test_training.descend(
    num_steps=4_000_000, record=41, checkpoint=sys.argv[2], checkpoint_every=20_000
)
"""


@pytest.mark.slow
def test_a_killed_process_goes_on_to_the_same_numbers(tmp_path):
    folder = tmp_path / "killed"
    command = [sys.executable, "-c", textwrap.dedent(KILLED), str(Path(__file__).parent), folder]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 200
    try:
        while time.monotonic() < deadline and process.poll() is None:
            steps = [int(p.name) for p in folder.glob("*") if p.name.isdigit()]
            if len(steps) >= 2:
                break
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    last = max(int(p.name) for p in folder.glob("*") if p.name.isdigit())
    end = last + 30_000
    options = {"num_steps": end, "checkpoint_every": 20_000, "observe": None}
    stops = np.unique(np.linspace(0, 4_000_000, 41).round().astype(int))
    again = descend(**options, record=stops, checkpoint=folder)
    assert_same_run(again, descend(**options, record=stops))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": None}, "one of `learning_rate` and `optimiser`"),
        ({"optimiser": optax.sgd(0.1)}, "one of `learning_rate` and `optimiser`"),
        ({"num_steps": 0}, "`num_steps` .* is 0"),
        ({"first_iteration": -1}, "`first_iteration` .* -1"),
        ({"batch_size": N + 1}, "`batch_size` must be 1 to 12, but is 13"),
        ({"record": 1}, "`record` must be at least 2, but is 1"),
        ({"record": [STEPS + 1]}, "`record` has no iteration between 0 and 300"),
        ({"record": np.array([0.5])}, "`record` must be a number of records"),
        ({"observe": ["energies"]}, "`observe` .* has 'energies'"),
        ({"observe": "energy"}, "`observe` must hold names, but is the string 'energy'"),
        ({"checkpoint_every": 0}, "`checkpoint_every` must be at least 1, but is 0"),
        ({"learning_rate": -1.0}, "`learning_rate` must be positive"),
        ({"data": jn.Regression(X[:, :1], Y)}, "2 inputs, but the data have 1"),
        ({"network": draw(std=1e200)}, "The loss of the initial network is"),
        ({"loss": "rmse"}, "`loss` .* 'rmse'"),
    ],
)
def test_bad_input_of_descent_is_named(options, message):
    with pytest.raises(ValueError, match=message):
        descend(**options)


HALF = jax.tree.map(lambda w: w.astype(jnp.float16), draw())
SCHEDULE = optax.exponential_decay(0.1, 10, 0.9)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"learning_rate": SCHEDULE}, r"schedule inside it, as in `optimiser=optax.sgd\(schedule"),
        ({"learning_rate": optax.sgd(0.1)}, "give an optimiser of optax as `optimiser`"),
        ({"learning_rate": {0: 0.1, 9: SCHEDULE}}, "a mapping of iterations to numbers"),
        ({"learning_rate": [0.1, 0.2]}, "`learning_rate` must be a number .* type list"),
        ({"learning_rate": None, "optimiser": SCHEDULE}, "an optimiser of optax, .* type function"),
        ({"learning_rate": None, "optimiser": "adam"}, "an optimiser of optax, .* type str"),
        ({"network": HALF}, "in float32 or float64, but this one has dtype float16"),
        ({"network": eqx.nn.MLP(2, 1, 5, 2, key=jax.random.key(0))}, "`from_arrays` takes the"),
        ({"network": "weights.npz"}, "`network` must be an `MLP` .* type builtins.str"),
        ({"data": iter([(X, Y)])}, "`data` must be .* list_iterator: batches .* into `batches`"),
        ({"data": (X, Y)}, r"`data` must be .* is of type tuple\."),
        ({"loss": lambda f: f}, "`loss` cannot be traced .* takes 1 positional argument"),
        ({"loss": lambda f, y: f - y}, r"`loss` must return one number .* shape \(1,\)"),
        ({"loss": lambda f, y: (f, y)}, "`loss` must return one number .* returns tuple"),
        ({"loss": lambda f, y: None}, "`loss` must return one number .* returns NoneType"),
        ({"loss": lambda f, y: jnp.sum(f > y)}, "one number .* a floating one, .* dtype int"),
        ({"loss": lambda f, y: float(jnp.sum(f - y))}, "`loss` cannot be traced .* concrete"),
        ({"loss": None}, "`loss` must be a function, .* type NoneType"),
    ],
)
def test_what_is_not_of_the_kind_is_named(options, message, unchecked):
    with pytest.raises(ValueError, match=message):
        descend(**options)


@pytest.mark.parametrize("network", [HALF, "weights.npz"])
def test_flows_name_what_is_not_of_the_kind(network, unchecked):
    with pytest.raises(ValueError, match=r"Networks are trained in|`network` must be an `MLP`"):
        jn.gradient_flow(network, DATA, 1.0)


def test_schedules_go_into_the_optimiser():
    def schedule(count):
        return RATE * (1 + count)

    run = descend(learning_rate=None, optimiser=optax.sgd(schedule), num_steps=20)
    weights, _ = loop_by_hand(draw(), schedule, 20)
    assert_layers(run.network, weights[20], ROUNDING)


def test_entries_have_no_minibatches():
    network = jn.MLP(draw().weights, activation="linear")
    data = jn.Entries(np.ones((1, 2)))
    with pytest.raises(ValueError, match="no minibatches"):
        descend(network, data, batch_size=1)


T1 = 15.0


@pytest.fixture(scope="module")
def flow():
    return jn.gradient_flow(draw(), DATA, T1, observe=["energy"])


@pytest.fixture(scope="module")
def reference():
    """The flow by DOP853 from NumPy's gradient, as a dense solution."""
    start = [np.asarray(w) for w in draw().weights]
    shapes = [w.shape for w in start]
    cuts = np.cumsum([w.size for w in start])[:-1]

    def unpack(y):
        return [p.reshape(s) for p, s in zip(np.split(y, cuts), shapes, strict=True)]

    def falling(_, y):
        return -np.concatenate([g.ravel() for g in gradient_by_hand(unpack(y))[1]])

    y0 = np.concatenate([w.ravel() for w in start])
    first, _ = gradient_by_hand(start)
    events = [lambda t, y, level=level: gradient_by_hand(unpack(y))[0] - level * first
              for level in (0.9, 0.5)]  # fmt: skip
    solution = solve_ivp(
        falling, (0, T1), y0, "DOP853", dense_output=True, events=events, rtol=1e-12, atol=1e-14
    )
    return lambda t: unpack(solution.sol(t)), [float(e[0]) for e in solution.t_events]


def test_flow_equals_scipy(flow, reference):
    at, crossings = reference
    assert flow.status == jn.RunStatus.COMPLETED
    assert flow.times[0] == 0
    assert flow.times[-1] == flow.time == T1
    assert np.all(np.diff(flow.times) > 0)
    assert_layers(flow.network, at(T1), FLOW)
    losses = [gradient_by_hand(at(t))[0] for t in flow.times]
    np.testing.assert_allclose(flow.loss, losses, FLOW)
    np.testing.assert_allclose([flow.crossings[x] for x in (0.9, 0.5)], crossings, FLOW)
    assert flow["energy"].shape == flow.times.shape


def test_tighter_tolerances_are_kept(reference):
    at, crossings = reference
    run = jn.gradient_flow(draw(), DATA, T1, observe=["energy"], rtol=1e-9)
    assert_layers(run.network, at(T1), FLOW / 1000)
    np.testing.assert_allclose([run.crossings[x] for x in (0.9, 0.5)], crossings, rtol=FLOW / 1000)


def test_crossings_of_the_flow_are_those_of_fine_descent(flow):
    rate = 2e-4
    run = descend(learning_rate=rate, num_steps=60_000, until=0.4)
    for level in (0.9, 0.5):
        # Euler's method is behind by about half a step for every factor e of the speed: see
        # jaxcond.networks._course; an iteration is a step.
        assert abs(run.crossings[level] * rate - flow.crossings[level]) < 3 * rate


def test_flows_are_recorded_at_the_times_asked_for(flow, reference):
    at, _ = reference
    times = [0.1, 3.0, 7.0, T1]
    run = jn.gradient_flow(draw(), DATA, T1, observe=["energy"], times=times)
    np.testing.assert_array_equal(run.times, times)
    np.testing.assert_allclose(run.loss, [gradient_by_hand(at(t))[0] for t in times], FLOW)
    np.testing.assert_allclose(run.crossings[0.5], flow.crossings[0.5], FLOW)


def test_flows_end_once_the_loss_is_low(flow):
    run = jn.gradient_flow(draw(), DATA, T1, observe=["energy"], until=0.5)
    assert run.time == run.times[-1] == run.crossings[0.5] == flow.crossings[0.5]
    np.testing.assert_allclose(run.loss[-1] / run.loss[0], 0.5, FLOW)
    early = jn.gradient_flow(draw(), DATA, T1, observe=["energy"], until=0.5, times=[T1])
    np.testing.assert_allclose(early.time, run.time, FLOW)
    np.testing.assert_allclose(early.loss[-1] / run.loss[0], 0.5, FLOW)


def test_flows_of_many_networks_are_each_alone(flow):
    runs = jn.gradient_flow(together([draw(), draw(1)]), DATA, T1, observe=["energy"])
    longest = flow.times.size
    np.testing.assert_array_equal(runs.times[0, :longest], flow.times)
    assert np.all(np.isnan(runs.times[0, longest:]))
    np.testing.assert_array_equal(runs.loss[0, :longest], flow.loss)
    np.testing.assert_array_equal(runs.network.weights[1][0], flow.network.weights[1])
    np.testing.assert_array_equal(runs.crossings[0.9][0], flow.crossings[0.9])
    np.testing.assert_array_equal(runs.num_gradients[0], flow.num_gradients)


def test_implicit_and_explicit_solvers_agree(flow):
    stiff = jn.gradient_flow(draw(), DATA, T1, observe=["energy"], solver_after=stiff_solver())
    np.testing.assert_allclose(stiff.loss[-1], flow.loss[-1], FLOW)
    assert_layers(stiff.network, flow.network.weights, FLOW)
    assert stiff.crossings[0.9] == flow.crossings[0.9]
    assert stiff.num_gradients == -1


@pytest.mark.parametrize("t1", [0.7, 0.3])
def test_float32_flows_come_to_their_end(t1):
    # Of the two ends one is rounded down and the other up.
    network = draw(dtype=jnp.float32)
    run = jn.gradient_flow(network, DATA, t1, observe=["energy"])
    assert run.status == jn.RunStatus.COMPLETED
    assert run.time == np.float32(t1)
    same = jax.tree.map(lambda w: w.astype(jnp.float64), network)
    descent = descend(same, learning_rate=t1 / STEPS, record=2)
    # The solver keeps 1e-4 in a step in float32, and the loss hardly moves.
    np.testing.assert_allclose(run.loss[-1], descent.loss[-1], rtol=1e-4)


def test_flows_with_too_many_steps_are_told():
    run = jn.gradient_flow(draw(), DATA, T1, observe=["energy"], max_steps=8)
    assert run.status == jn.RunStatus.NOT_CONVERGED


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"t1": -1.0}, "`t1` .* -1"),
        ({"t1": np.inf}, "`t1` .* inf"),
        ({"rtol": 0.0}, "`rtol` .* 0"),
        ({"times": [16.0]}, "`times` has no time between 0.0 and 15.0"),
        ({"network": draw(std=1e200)}, "The loss of the initial network is"),
        ({"observe": ["energies"]}, "`observe` .* has 'energies'"),
    ],
)
def test_bad_input_of_flows_is_named(options, message):
    settings = {"network": draw(), "data": DATA, "t1": T1, **options}
    with pytest.raises(ValueError, match=message):
        jn.gradient_flow(**settings)
