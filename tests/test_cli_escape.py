"""`jaxcond escape`."""

import json
import sys

import jax
import numpy as np
import pytest

import jaxcond.networks as jn
from jaxcond.cli import main

N, RATE, STD, WIDTH = 40, 0.1, 1e-3, 12
RNG = np.random.default_rng(0)
X = RNG.standard_normal((N, 2))
Y = np.tanh(X @ RNG.standard_normal((2, 1)))
PNG = b"\x89PNG\r\n\x1a\n"
COMMON = ("--hidden", WIDTH, WIDTH, "--learning-rate", RATE, "--quiet", "--no-cache")


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run the command line in a folder with samples: exit code, standard output and error."""
    before, paths = jax.config.jax_enable_x64, list(sys.path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")
    np.savez("samples.npz", x=X, y=Y)
    np.savetxt("samples.csv", np.hstack([X, Y]), delimiter=",", header="u,v,y", comments="")

    def run(*arguments):
        with pytest.raises(SystemExit) as left:
            main(["escape", *map(str, arguments)])
        told = capsys.readouterr()
        return left.value.code, told.out, told.err

    yield run
    jax.config.update("jax_enable_x64", before)
    sys.path[:] = paths


def test_iterations_are_those_of_predict_escape(call, tmp_path):
    options = ("--std", STD, "--seeds", 3, "--seed", 5, "--json", "found.json")
    code, out, _ = call("samples.csv", *COMMON, *options)
    assert code == 0
    assert "3 of 3" in out
    assert (tmp_path / "escape.png").read_bytes().startswith(PNG)
    (point,) = json.loads((tmp_path / "found.json").read_text())["points"]
    for seed, iteration in zip((5, 6, 7), point["iterations"], strict=True):
        network = jn.MLP.random((2, WIDTH, WIDTH, 1), key=jax.random.key(seed), std=STD)
        escape = jn.predict_escape(network, jn.Regression(X, Y), RATE)
        np.testing.assert_allclose(iteration, escape.crossing_iteration, 1e-5)


def test_a_sweep_says_which_weights_are_too_large(call, tmp_path):
    options = ("--sweep", "std", 1e-3, 0.8, "--points", 2, "--seeds", 2, "--json", "found.json")
    code, out, _ = call("samples.npz", *COMMON, *options)
    assert code == 0
    told = " ".join(out.split())
    assert "2 by their own flow, not the effective model: the initial weights are too large" in told
    small, large = json.loads((tmp_path / "found.json").read_text())["points"]
    assert (small["std"], large["std"]) == pytest.approx((1e-3, 0.8))
    assert small["status"] == large["status"] == ["predicted"] * 2
    assert max(large["iterations"]) < 0.01 * min(small["iterations"])


def test_rates_beyond_stability_have_no_prediction(call, tmp_path):
    options = ("--std", 1e-3, "--learning-rate", 100, "--seeds", 2, "--json", "found.json")
    code, out, _ = call("samples.npz", *COMMON, *options)
    assert code == 3
    assert "2 without a prediction: the learning rate is above 2" in " ".join(out.split())
    assert (
        json.loads((tmp_path / "found.json").read_text())["points"][0]["iterations"] == [None] * 2
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("samples.npz", *COMMON), "give one of --std and --exponent"),
        (("samples.npz", *COMMON, "--std", 1, "--exponent", 1), "give one of"),
        (("samples.npz", *COMMON, "--std", -1), "`std` must be finite and not negative"),
        (("samples.npz", *COMMON, "--std", 1e-3, "--seeds", 0), "--seeds must be at least 1"),
        (("samples.npz", *COMMON, "--std", 1, "--sweep", "bias", 1, 2), "takes std, width, depth"),
        (("samples.npz", *COMMON, "--std", 1, "--sweep", "std", 1, 2), "neither --std nor"),
        (("samples.npz", *COMMON, "--sweep", "std", 0, 1), "positive values"),
        (("samples.npz", *COMMON, "--sweep", "std", "a", 1), "needs two numbers"),
        (("samples.npz", *COMMON, "--std", 1, "--loss", "rmse"), "`loss` must be"),
        (("samples.npz", *COMMON, "--std", 1, "--out", "x.doc"), "cannot be written as .doc"),
        (("text.csv", *COMMON, "--std", 1), "sample 2: 'three' is no number"),
        (("ragged.csv", *COMMON, "--std", 1), "sample 2: 1 columns for 2"),
        (("empty.csv", *COMMON, "--std", 1), "holds no samples"),
        (("samples.csv", *COMMON, "--std", 1, "--targets", 3), "too few for inputs and 3 targets"),
    ],
)
def test_wrong_arguments_give_one_line_and_exit_code_2(call, tmp_path, arguments, message):
    (tmp_path / "text.csv").write_text("1,2\nthree,4\n")
    (tmp_path / "ragged.csv").write_text("1,2\n3\n")
    (tmp_path / "empty.csv").write_text("x,y\n")
    code, _, err = call(*arguments)
    assert (code, message in " ".join(err.split())) == (2, True), err
    assert not (tmp_path / "escape.png").exists()


def test_help_tells_what_is_swept(call):
    code, out, _ = call("--help")
    assert code == 0
    assert "sweep std, width, depth (of all hidden layers) FROM one value TO another" in " ".join(
        out.split()
    )
