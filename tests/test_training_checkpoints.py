"""Checkpoints that were damaged, and runs that go on otherwise than they began."""

import shutil
import warnings

import jax
import numpy as np
import optax
import pytest
from test_training import (
    DATA,
    INPUTS,
    STEPS,
    assert_same_run,
    contents,
    descend,
)

import jaxcond.networks as jn

EVERY = 60
GRID = np.arange(0, STEPS + 1, 10)
# Wide enough that the numbers of its weights are most of a checkpoint.
NETWORK = jn.MLP.random((INPUTS, 40, 40, 1), key=jax.random.key(0), std=0.05)


def go(folder=None, network=NETWORK, **options):
    """A run with records at `GRID` that is saved in a folder."""
    settings = {"record": GRID, "checkpoint": folder, "checkpoint_every": EVERY, **options}
    return descend(network, **settings)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a run up to iteration 180."""
    folder = tmp_path_factory.mktemp("runs") / "saved"
    go(folder, num_steps=180)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    """A copy of it."""
    return shutil.copytree(saved, tmp_path / "copy")


def files_of(folder, step):
    """The files of a checkpoint, the largest first."""
    files = [path for path in (folder / str(step)).rglob("*") if path.is_file()]
    return sorted(files, key=lambda path: -path.stat().st_size)


def damage(path):
    """Change up to 64 bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    for i in range(max(0, middle - 32), min(len(content), middle + 32)):
        content[i] ^= 0x55
    path.write_bytes(bytes(content))


def test_a_damaged_checkpoint_is_passed_over(folder):
    damage(files_of(folder, 180)[0])
    with pytest.warns(jn.CheckpointWarning, match=r"iteration 180 is damaged .*SHA-256.* 120 is"):
        found = jn.read_checkpoint(folder)
    assert found.iteration == 120
    assert_same_run(found.network, go(num_steps=120).network)
    with pytest.raises(OSError, match=r"no sound checkpoint .*iteration 180"):
        jn.read_checkpoint(folder, 180)
    with pytest.warns(jn.CheckpointWarning, match="iteration 180 is damaged"):
        run = go(folder)
    assert_same_run(run, go())
    # It was written anew, so that there is nothing more to be warned of.
    assert_same_run(jn.read_checkpoint(folder, 180).network, go(num_steps=180).network)
    assert_same_run(go(folder), run)


# Orbax leaves reads behind that fail later.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_damage_is_found_wherever_it_matters(folder):
    sound = jn.read_checkpoint(folder)
    found = 0
    for path in files_of(folder, 180):
        before = path.read_bytes()
        damage(path)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            read = jn.read_checkpoint(folder)
        if told:
            assert told[0].category is jn.CheckpointWarning
            assert read.iteration == 120
            found += 1
        else:
            # Orbax keeps some things twice.
            assert_same_run(read, sound)
        path.write_bytes(before)
    assert found > 3


def test_several_damaged_checkpoints_are_named(folder):
    for step in (120, 180):
        damage(files_of(folder, step)[0])
    with pytest.warns(jn.CheckpointWarning, match="120, 180 is damaged .* 60 is taken"):
        run = go(folder)
    assert_same_run(run, go())


def test_a_folder_without_a_sound_checkpoint_is_refused(folder):
    for step in (60, 120, 180):
        damage(files_of(folder, step)[0])
    before = contents(folder)
    for call in (go, jn.read_checkpoint):
        with pytest.raises(OSError, match=r"no sound checkpoint .*iteration 60: .*iteration 180: "):
            call(folder)
    assert contents(folder) == before


def test_a_sound_checkpoint_of_another_run_is_refused_behind_a_damaged_one(folder):
    damage(files_of(folder, 180)[0])
    before = contents(folder)
    with (
        pytest.warns(jn.CheckpointWarning),
        pytest.raises(ValueError, match="another run: initial weights"),
    ):
        go(folder, network=jax.tree.map(lambda w: 2 * w, NETWORK))
    assert contents(folder) == before


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"num_steps": 120},
        {"num_steps": 130},
        {"record": GRID[::3]},
        {"record": np.append(GRID[::3], [185, 186, 187])},
        {"record": 11},
        {"record": [10, 200], "num_steps": 210},
        {"learning_rate": {0: 0.05, 180: 0.01}},
        {"learning_rate": {0: 0.05, 20: 0.05, 210: 0.01}},
        {"checkpoint_every": 7},
    ],
    ids=str,
)
def test_a_run_goes_on_as_if_it_had_always_been_this_one(folder, change):
    assert_same_run(go(folder, **change), go(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"record": np.arange(0, STEPS + 1, 5)}, "without records at iterations 5, 15, 25"),
        ({"record": 21, "num_steps": 900}, "without records at iterations 45, 135, which"),
        ({"observe": ["norms", "energy", "ratios"]}, "another run: observe"),
        ({"learning_rate": {0: 0.05, 179: 0.01}}, "another run: learning_rate"),
        ({"learning_rate": 0.04}, "another run: learning_rate"),
        ({"until": 0.5}, "another run: until"),
    ],
    ids=str,
)
def test_what_a_run_cannot_go_on_with_is_refused(folder, change, message):
    before = contents(folder)
    with pytest.raises(ValueError, match=rf"{message}.*nothing was changed"):
        go(folder, **change)
    assert contents(folder) == before


@pytest.mark.parametrize("bias", [True, "input"])
@pytest.mark.parametrize("count", [1, 2])
def test_checkpoints_have_the_biases(tmp_path, bias, count):
    keys = jax.random.split(jax.random.key(0), count)
    networks = jax.vmap(lambda key: jn.MLP.random((INPUTS, 5, 6, 1), key=key, std=0.1, bias=bias))(
        keys
    )
    if count == 1:
        networks = jax.tree.map(lambda w: w[0], networks)
    run = go(tmp_path / "run", networks, num_steps=60)
    assert_same_run(jn.read_checkpoint(tmp_path / "run").network, run.network)
    assert_same_run(go(tmp_path / "run", networks, num_steps=60), run)
    other = go(tmp_path / "optimiser", networks, learning_rate=None, optimiser=optax.adam(1e-3))
    assert_same_run(jn.read_checkpoint(tmp_path / "optimiser").network, other.network)


def test_a_run_that_diverges_goes_back_as_if_it_was_not_interrupted(tmp_path):
    # Records are far apart, so that the checkpoint lies between the last good one and the end.
    options = {"learning_rate": 40.0, "record": [0, 2, 200], "checkpoint_every": 1}
    with pytest.warns(jn.DivergenceWarning):
        whole = descend(**options)
    assert whole.iteration == 2
    with pytest.warns(jn.DivergenceWarning):
        descend(**options, checkpoint=tmp_path / "run")
    steps = [int(p.name) for p in (tmp_path / "run").iterdir() if p.name.isdigit()]
    assert max(steps) > 2
    with pytest.warns(jn.DivergenceWarning):
        assert_same_run(descend(**options, checkpoint=tmp_path / "run"), whole)


def test_a_run_that_is_complete_takes_no_step(saved, tmp_path, monkeypatch):
    folder = shutil.copytree(saved, tmp_path / "complete")
    whole = go(folder)
    with monkeypatch.context() as patched:
        patched.setattr("jaxcond.networks._steps.Crew.advance", None)
        assert_same_run(go(folder), whole)
    np.testing.assert_allclose(whole.loss[-1], DATA.loss(whole.network))
