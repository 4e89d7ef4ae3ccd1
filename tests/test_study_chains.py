"""Studies of chains: networks of any depth, from the configuration to the figure."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcond as jc
from jaxcond.cli import main
from jaxcond.ensembles import GaussianChain
from jaxcond.statistics import Moments
from jaxcond.study import Study, open_study, run_study, summarise
from jaxcond.study._compute import Outcome

CHAIN = {"kind": "chain", "width": 3, "scale": 0.5}
DEPTHS = {
    "samples": 24,
    "seed": 5,
    "ensemble": CHAIN,
    "sweep": {"depth": [2, 3, 4]},
    "observables": ("energy", "gradient_norm"),
}
FIELDS = ("blowup_time", "lower", "upper", "error", "status", "energy", "gradient_norm")


@pytest.fixture(scope="module")
def store():
    return run_study(Study(**DEPTHS))


def refused(message, **keys):
    with pytest.raises(ValueError, match=re.escape(message)):
        Study.from_dict(keys)


def times(store, point):
    return np.concatenate(list(store.stream("blowup_time", point)))


def test_samples_are_those_of_the_ensemble(store):
    for point, depth in enumerate((2, 3, 4)):
        ensemble = GaussianChain((1, *(3,) * (depth - 1), 1), 0.5)
        draws = ensemble.draws(24, key=store.study.key(point))
        found = jc.blowup_times(draws)
        np.testing.assert_allclose(times(store, point), found.time, rtol=1e-9)
        chain = ensemble.sample(key=jc.sampling.sample_key(store.study.key(point), jnp.uint32(7)))
        energy = np.concatenate(list(store.stream("energy", point)))
        np.testing.assert_allclose(energy[7], jc.energy(chain), rtol=1e-12)
        field = jc.vector_field(chain)
        norm = np.sqrt(sum(np.sum(np.asarray(layer) ** 2) for layer in field.layers))
        gradient = np.concatenate(list(store.stream("gradient_norm", point)))
        np.testing.assert_allclose(gradient[7], norm, rtol=1e-12)


@pytest.mark.parametrize("chunk", [5, 24])
def test_chunks_and_resumption_change_nothing_but_rounding(store, tmp_path, chunk):
    path = tmp_path / "chains.zarr"
    run_study(Study(**DEPTHS | {"samples": 11, "chunk": chunk}), path)
    resumed = run_study(Study(**DEPTHS), path)
    assert resumed.finished().sum() == 72
    with open_study(path) as found:
        for name in FIELDS:
            expected = store.array(name)[...]
            # An error is itself an estimate from noise in the last bits.
            near = {"atol": 1e-10} if name == "error" else {"rtol": 1e-9}
            np.testing.assert_allclose(found[name].values, expected, err_msg=name, **near)
        assert found.depth.attrs["long_name"] == "number of layers of a chain or a network"


def test_each_depth_is_summarised_by_its_own_power_of_the_width(store):
    summary = summarise(store)
    assert [point.coordinates["depth"] for point in summary.points] == [2, 3, 4]
    np.testing.assert_allclose([point.scale for point in summary.points], [1, 3**0.5, 3])
    two, three, four = summary.points
    # Two layers never blow up, three go through the methods of states.
    assert two.statuses["no_blow_up"] == 24
    assert two.moments.count == 0
    assert two.settled_by == {"closed form": 24}
    assert sum(three.settled_by.values()) == 24
    assert "direct" not in {name.lower() for name, count in three.settled_by.items() if count}
    assert list(four.settled_by.values()) == [24]
    np.testing.assert_allclose(four.mean.mean, times(store, 2).mean(), rtol=1e-12)


def test_scaling_with_the_width_has_the_exponent_of_the_depth(monkeypatch):
    """Times that follow the law of five layers exactly give its exponent."""
    widths = (4, 9, 16, 25)
    study = Study(samples=40, ensemble={"kind": "chain", "depth": 5}, sweep={"width": widths})
    noise = np.random.default_rng(0).uniform(0.9, 1.1, 40)

    def made_up(study, task, progress=None):
        width = study.points[task.point]["width"]
        count = task.stop - task.start
        values = width**-1.5 * noise[task.start : task.stop]
        fields = dict.fromkeys(("blowup_time", "lower", "upper"), values)
        fields |= {"error": 0 * values} | {
            name: np.zeros(count, np.int32) for name in ("status", "num_steps", "stage")
        }
        return fields, Outcome(Moments.of(values), {"converged": count})

    monkeypatch.setattr(sys.modules["jaxcond.study._run"], "compute", made_up)
    ((_, scaling),) = summarise(run_study(study)).scalings
    assert scaling.mean_exponent.value == pytest.approx(1.5, abs=1e-6)
    assert scaling.limit.value == pytest.approx(noise.mean(), rel=1e-6)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ensemble": CHAIN | {"depth": 1}}, "Key `ensemble.depth` must be a whole number between"),
        ({"ensemble": CHAIN | {"depth": 65}}, "Key `ensemble.depth` must be a whole number betwee"),
        ({"ensemble": CHAIN, "sweep": {"depth": [3.5]}}, "Key `sweep.depth` must be a whole"),
        ({"ensemble": CHAIN | {"p": 3}}, "Key `ensemble.p` is not one that a chain ensemble takes"),
        ({"ensemble": {"depth": 3}}, "Key `ensemble.depth` is not one that a gaussian ensemble"),
        ({"ensemble": CHAIN | {"reduced": True}}, "Key `ensemble.reduced` cannot be true: the ch"),
        ({"ensemble": CHAIN, "observables": ["onset"]}, "`onset` is one of states; chains have"),
        ({"ensemble": CHAIN, "sampling": "sobol"}, "Key `sampling` can be 'sobol' for the reduced"),
        ({"sweep": {"kind": ["chain", "uniform"]}}, "Key `sweep.kind`: `chain` cannot be swept"),
    ],
)  # fmt: skip
def test_what_chains_cannot_be_is_refused(keys, message):
    refused(message, **keys)


def test_the_command_line_goes_the_whole_way(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    wide = jax.config.jax_enable_x64
    (tmp_path / "depths.toml").write_text("""
samples = 24
seed = 5
[ensemble]
kind = "chain"
width = 3
scale = 0.5
[sweep]
depth = [3, 4]
""")
    try:
        for command in (
            "study depths.toml --out a.png",
            "resume depths.zarr --samples 30 --quiet",
            "summary depths.zarr --json a.json",
            "plot depths.zarr --kind convergence",
        ):
            with pytest.raises(SystemExit) as left:
                main([*command.split(), "--no-cache"])
            assert left.value.code == 0
    finally:
        jax.config.update("jax_enable_x64", wide)
    told = capsys.readouterr().out
    assert "m^(L/2-1)·T*" in told
    points = json.loads((tmp_path / "a.json").read_text())["points"]
    assert [(point["depth"], point["samples"]) for point in points] == [(3, 30), (4, 30)]
    assert (tmp_path / "a.png").stat().st_size > 1000
    assert (tmp_path / "depths_convergence.png").stat().st_size > 1000
