"""Studies of the end of the plateau over random networks, from the configuration to the figure."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcond.cli import main
from jaxcond.networks import MLP, EscapeStatus, Regression, predict_escape
from jaxcond.plotting import study_map
from jaxcond.sampling import sample_key
from jaxcond.study import Study, open_store, open_study, run_study, summarise

FIELDS = ("crossing", "correction", "escape_status", "limit", "blowup_time", "lower", "upper",
          "status")  # fmt: skip
STD = (0.01, 0.003)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "data.npz"
    random = np.random.default_rng(0)
    x = random.normal(size=(20, 2))
    np.savez(path, x=x, y=np.sin(x[:, :1]) + 0.5 * x[:, 1:])
    return path


def keys(data, **changes):
    ensemble = {"kind": "escape", "data": str(data), "width": 6, "learning_rate": 0.05}
    return {"samples": 6, "seed": 5, "ensemble": ensemble, "sweep": {"std": STD}} | changes


@pytest.fixture(scope="module")
def store(data):
    return run_study(Study(**keys(data)))


def refused(message, **keys):
    with pytest.raises(ValueError, match=re.escape(message)):
        Study.from_dict(keys)


def test_samples_are_predictions_of_the_network_of_each_index(store, data):
    with np.load(data) as arrays:
        samples = Regression(arrays["x"], arrays["y"])
    for point, std in enumerate(STD):
        key = sample_key(store.study.key(point), jnp.asarray(4))
        network = MLP.random((2, 6, 6, 1), key=key, std=std)
        found = predict_escape(network, samples, 0.05, num=32)
        assert found.status == EscapeStatus.PREDICTED
        for name, wanted in (
            ("crossing", found.crossing_iteration),
            ("correction", found.correction),
            ("escape_status", found.status),
            ("blowup_time", found.blowup.time),
        ):
            np.testing.assert_allclose(store.array(name)[point, 4], wanted, rtol=1e-9)
    # Smaller weights stay longer, and the effective model is off by less.
    crossings = store.array("crossing")[...]
    assert crossings[1].min() > crossings[0].max()


@pytest.mark.parametrize("chunk", [4, 6])
def test_chunks_and_resumption_change_nothing_but_rounding(store, data, tmp_path, chunk):
    path = tmp_path / "escape.zarr"
    run_study(Study(**keys(data, samples=3, chunk=chunk)), path)
    assert run_study(Study(**keys(data)), path).finished().sum() == 12
    with open_study(path) as found:
        for name in FIELDS:
            expected = store.array(name)[...]
            np.testing.assert_allclose(found[name].values, expected, rtol=1e-9, err_msg=name)


def test_the_summary_is_that_of_the_iterations(store):
    summary = summarise(store)
    for point, crossings in zip(summary.points, store.array("crossing")[...], strict=True):
        assert point.statuses["predicted"] == 6
        assert point.scale == 1
        assert point.mean.mean == pytest.approx(crossings.mean(), rel=1e-12)
        assert point.quantiles[2].value == pytest.approx(np.median(crossings), rel=1e-12)
        assert point.observables["correction"].count == 6
    assert store.array("blowup_time").attrs["units"] == "training time"


def test_text_is_no_axis_of_a_map(data):
    ensemble = {"kind": "escape", "data": str(data), "width": 6, "learning_rate": 0.05}
    sweep = {"loss": ["half_mse", "mse"], "std": [0.01]}
    summary = summarise(run_study(Study(samples=1, ensemble=ensemble, sweep=sweep)))
    with pytest.raises(ValueError, match="A map needs axes of numbers, but loss is not one"):
        study_map(summary, "std", "loss")


def test_networks_without_a_prediction_are_counted_and_left_out(data):
    """A learning rate beyond what descent follows: the crossing is that of the flow."""
    ensemble = {"kind": "escape", "data": str(data), "width": 6, "std": 0.01}
    study = Study(samples=2, ensemble=ensemble, sweep={"learning_rate": [0.05, 50.0]})
    slow, fast = summarise(run_study(study)).points
    assert slow.statuses["predicted"] == slow.moments.count == 2
    assert fast.statuses["predicted"] == fast.moments.count == 0
    assert fast.num_samples == 2


def test_a_study_is_that_of_its_samples_not_of_their_file(data, tmp_path):
    there = Study(**keys(data))
    copy = tmp_path / "copy.npz"
    copy.write_bytes(data.read_bytes())
    assert Study(**keys(copy)).digest() == there.digest()
    np.savez(copy, x=np.ones((3, 2)), y=np.ones(3))
    assert Study(**keys(copy)).digest() != there.digest()
    swept = {"kind": "escape", "std": 0.01, "learning_rate": 0.1}
    both = Study(ensemble=swept, sweep={"data": [str(data), str(copy)]})
    assert [s.training.data for _, s in both.settings] == [str(data), str(copy)]
    other = Study(ensemble=swept, sweep={"data": [str(copy), str(data)]})
    assert both.digest() != other.digest()


def test_a_store_is_read_without_its_samples(store, data, tmp_path):
    copy, path = tmp_path / "copy.npz", tmp_path / "a.zarr"
    copy.write_bytes(data.read_bytes())
    run_study(Study(**keys(copy, samples=2)), path)
    copy.unlink()
    summary = summarise(open_store(path))
    assert summary.points[0].moments.count == 2
    with pytest.raises(OSError, match=r"copy\.npz"):
        open_store(path).study.loaded()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"std": 0.1, "exponent": 1.0}, "Key `ensemble.std` or `ensemble.exponent` must be given"),
        ({}, "Key `ensemble.std` or `ensemble.exponent` must be given, and not both"),
        ({"std": 0.0}, "Key `ensemble.std` must be a finite number above 0"),
        ({"std": 0.1, "learning_rate": 0}, "Key `ensemble.learning_rate` must be a finite number"),
        ({"std": 0.1, "loss": "huber"}, "Key `ensemble.loss` must be one of half_mse, mse, soft"),
        ({"std": 0.1, "bias": True}, "Key `ensemble.bias` must be one of none, input, all"),
        ({"std": 0.1, "activation": "relu"}, "Key `ensemble.activation` must be one of tanh"),
        ({"std": 0.1, "fraction": 1}, "Key `ensemble.fraction` must be below 1"),
        ({"std": 0.1, "depth": 1}, "Key `ensemble.depth` must be a whole number between 2 and 64"),
        ({"std": 0.1, "width": 2.5}, "Key `ensemble.width` must be a whole number between 1"),
        ({"std": 0.1, "targets": 0}, "Key `ensemble.targets` must be a whole number"),
        ({"std": 0.1, "scale": 1}, "Key `ensemble.scale` is not one that an escape ensemble takes"),
        ({"std": 0.1, "data": 5}, "Key `ensemble.data` must be a text"),
    ],
)
def test_what_is_no_training_is_refused(data, changes, message, unchecked):
    refused(message, ensemble=keys(data)["ensemble"] | changes)


def test_studies_that_are_of_something_else_are_refused(data, unchecked):
    ensemble = keys(data)["ensemble"] | {"std": 0.1}
    refused("Key `observables`: `energy` is one of states", ensemble=ensemble,
            observables=["energy"])  # fmt: skip
    refused("Key `observables`: `escape` is what an escape", observables=["escape"])
    refused("Key `rtol`: predictions", ensemble=ensemble, rtol=1e-8)
    refused("Key `ensemble.data` is missing", ensemble={"kind": "escape", "learning_rate": 1.0})
    with pytest.raises(OSError, match=r"no\.npz"):
        Study.from_dict({"ensemble": ensemble | {"data": "no.npz"}})


def test_the_command_line_goes_the_whole_way(data, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wide = jax.config.jax_enable_x64
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "data.npz").write_bytes(data.read_bytes())
    (tmp_path / "inner" / "escape.toml").write_text("""
samples = 4
[ensemble]
kind = "escape"
data = "data.npz"
depth = 3
learning_rate = 0.05
exponent = 2
[sweep]
width = [6, 8]
""")
    try:
        for command in (
            "study inner/escape.toml --out a.png",
            "resume escape.zarr --samples 5 --quiet",
            "summary escape.zarr --json a.json",
            "plot escape.zarr --kind convergence",
            "info escape.zarr --verify",
        ):
            with pytest.raises(SystemExit) as left:
                main([*command.split(), *([] if "info" in command else ["--no-cache"])])
            assert left.value.code == 0
    finally:
        jax.config.update("jax_enable_x64", wide)
    told = capsys.readouterr().out
    assert "mean iteration ± error" in told
    assert "T*" not in told
    assert "Scaling" not in told
    found = json.loads((tmp_path / "a.json").read_text())
    assert [(point["width"], point["predicted"]) for point in found["points"]] == [(6, 5), (8, 5)]
    assert (tmp_path / "a.png").stat().st_size > 1000
