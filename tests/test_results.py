"""What all results share: status messages, short tables, datasets and pictures."""

import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

import jaxcond as jc
from jaxcond import networks, plotting

STATUSES = (
    jc.Status,
    jc.OnsetStatus,
    jc.PointStatus,
    networks.EscapeStatus,
    networks.Limit,
    networks.RunStatus,
    networks.StepsStatus,
)


@pytest.mark.parametrize("kind", STATUSES)
def test_a_status_carries_its_message(kind):
    for code, status in enumerate(kind):
        assert status == code
        assert status.meaning
        assert status.label == status.name.lower()
        assert pickle.loads(pickle.dumps(status)) is status
        assert jnp.where(True, status, -1) == code


def test_statuses_are_counted():
    codes = np.array([[0, 2], [0, 0]])
    assert jc.Status.counts(codes)["converged"] == 3
    assert jc.Status.summary(codes) == "3 converged, 1 not_converged"


@pytest.fixture(scope="module")
def samples():
    return jc.blowup_times(jc.Gaussian(12, 12).draws(8, key=jax.random.key(1)))


@pytest.fixture(scope="module")
def data():
    x = np.linspace(-1, 1, 16)
    return networks.Regression(x, np.sin(x))


def small_networks(count):
    def draw(key):
        return networks.MLP.random((1, 6, 6, 1), key=key, std=1e-2)

    return jax.vmap(draw)(jax.random.split(jax.random.key(2), count))


def test_a_batch_of_blowup_times(samples):
    title, *rows = str(samples).splitlines()
    assert title == "BlowUp of 8 samples in float64: 8 converged"
    assert f"{np.median(samples.time):.6g}" in rows[0]
    table = samples.to_xarray()
    assert table.sizes == {"sample": 8}
    np.testing.assert_array_equal(table.time, samples.time)
    assert table.status.attrs["flag_meanings"].split()[0] == "converged"
    assert isinstance(samples.plot(), Figure)


def test_pictures_need_finite_times():
    rest = jc.blowup_times(
        jc.State.from_vectors(*(jnp.zeros((2, *s)) for s in ((2,), (2, 2), (2,))))
    )
    with pytest.raises(ValueError, match="`blowup` must hold at least one finite"):
        rest.plot()
    with pytest.raises(ValueError, match="`iterations` must hold at least one finite"):
        plotting.escape_histogram([np.nan])


def test_a_trajectory_as_a_dataset():
    path = jc.trajectory(jc.Gaussian(6, 6).sample(key=jax.random.key(3)))
    table = path.to_xarray(num=5)
    assert table.sizes == {"time": 5, "layer": 3}
    np.testing.assert_allclose(table.energy, path.energy(table.time.values), rtol=1e-12)
    onset = path.onset()
    assert float(onset.to_xarray().time) == float(onset.time)


def test_indicators_print_their_counts():
    keys = jax.random.split(jax.random.key(5), 2)
    states = jax.vmap(lambda key: jc.Gaussian(4, 3).sample(key=key))(keys)
    stage = jc.final_stage(jax.tree.map(lambda leaf: leaf[0], states))
    first, *rows = str(stage).splitlines()
    assert first == f"Final stage: {'holds' if stage.holds else 'does not hold'}"
    assert f"{int(stage.first.positive)} of 7 inequalities hold" in rows[0]
    assert "of 2 states" in str(jax.vmap(jc.final_stage)(states))


def test_an_effective_model_prints_its_scales(data):
    network = networks.MLP.random((1, 6, 6, 1), key=jax.random.key(6), std=1e-2)
    assert "rate" in str(networks.effective_model(network, data))


def test_an_escape_as_a_dataset_and_a_picture(data):
    both = networks.predict_escape(small_networks(2), data, 5e-2)
    table = both.to_xarray()
    assert table.sizes == {"network": 2, "point": 100, "place": 2}
    np.testing.assert_array_equal(table.crossing_iteration, both.crossing_iteration)
    assert "iteration, median (quartiles)" in str(both)
    assert "random initial weights" in both.plot().axes[0].get_title()
    single = jax.tree.map(lambda x: x[0], small_networks(2))
    one = networks.predict_escape(single, data, 5e-2)
    assert one.plot().axes[0].get_xlabel() == "iteration"
    with pytest.raises(ValueError, match="one network"):
        plotting.escape_curves(both)


def test_a_run_as_a_dataset_and_a_picture(data):
    run = networks.gradient_descent(small_networks(2), data, 5e-2, num_steps=20)
    table = run.to_xarray()
    np.testing.assert_array_equal(table.loss, run.loss)
    assert table.loss.dims == ("network", "record")
    assert list(table.level) == list(run.crossings)
    assert len(run.plot().axes[0].lines) == 2


def test_steps_as_a_dataset_and_a_picture():
    network = networks.matrix_factors((3, 3, 3), key=jax.random.key(4), scale=1e-2)
    steps = networks.predict_steps(network, networks.Entries(jnp.diag(jnp.array([3.0, 2.0, 1.0]))))
    table = steps.to_xarray()
    np.testing.assert_array_equal(table.rise, steps.rise)
    assert table.singular_values.dims == ("point", "component")
    assert isinstance(steps.plot(), Figure)


# Precision.

NARROW = """
import warnings
import numpy as np
import jaxcond as jc

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    ones = np.ones(3)
    for _ in range(2):
        jc.State.from_vectors(ones, np.eye(3), ones)
        jc.Chain((ones[:, None], np.eye(3), ones[None]))
    jc.State.from_vectors(*(x.astype("float32") for x in (ones, np.eye(3), ones)))
(warning,) = (one for one in caught if one.category is jc.PrecisionWarning)
assert warning.filename == "<string>", warning.filename
assert "jax_enable_x64" in str(warning.message)
"""


def test_float64_in_32_bit_mode_warns_once():
    subprocess.run([sys.executable, "-c", NARROW], check=True)


# The package.


def test_citation_names_what_was_used(samples):
    assert samples.time.size
    text = jc.citation()
    assert "2402.15958" in text
    assert f"version = {{{jc.__version__}}}" in text
    assert "jax2018github" in text
    assert text.count("{") == text.count("}")


def test_versions_are_shown(capsys):
    jc.show_versions()
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["jaxcond"] == jc.__version__
    assert rows["jax"] == jax.__version__


def test_the_package_runs_as_a_module():
    run = subprocess.run(
        [sys.executable, "-m", "jaxcond", "--version"], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == f"jaxcond {jc.__version__}"
