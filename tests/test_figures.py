"""The experiments of the paper, their files and their figures, by the API and the command line."""

import matplotlib.image
import numpy as np
import pytest

import jaxcond.networks as jn
from jaxcond import plotting
from jaxcond.cli import main
from jaxcond.experiments import (
    Experiment,
    TanhSetting,
    figure_1,
    figure_2a,
    figure_2b,
    figure_3,
    read_experiment,
)
from jaxcond.experiments._setting import LOSS

# Narrow, and with weights large enough for a plateau of some thousand iterations.
SETTING = TanhSetting(width=12, std=5e-3, learning_rate=2e-2, num_samples=40, num_seeds=2)


@pytest.fixture(scope="module")
def first():
    return figure_1(SETTING, num_records=40, progress=False)


@pytest.fixture(scope="module")
def counts():
    return figure_2a(SETTING, method="flow", num_records=40, progress=False)


@pytest.fixture(scope="module")
def exponents():
    return figure_2b(SETTING, alphas=(0.5, 2.5), progress=False)


def test_figure_2b_continues_from_its_folder(tmp_path, exponents):
    kept = figure_2b(SETTING, alphas=(0.5,), checkpoint=tmp_path, progress=False)
    np.testing.assert_array_equal(kept["largest"][0], exponents["largest"][0])
    path = tmp_path / "alpha_0.5.npz"
    point = read_experiment(path)
    # A mark that only the file can have put into the result.
    marked = Experiment("2b", {**point.arrays, "first": point["first"] - 1000}, point.settings)
    marked.save(path)
    both = figure_2b(SETTING, alphas=(0.5, 2.5), checkpoint=tmp_path, progress=False)
    np.testing.assert_array_equal(both["first"][0], exponents["first"][0] - 1000)
    for name in ("largest", "at_crossing", "blowup"):
        np.testing.assert_array_equal(both[name], exponents[name])
    other = TanhSetting(width=12, std=5e-3, learning_rate=1e-2, num_samples=40, num_seeds=2)
    with pytest.raises(ValueError, match="other settings"):
        figure_2b(other, alphas=(0.5,), checkpoint=tmp_path, progress=False)


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run the command line in an empty folder: exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


def test_the_plateau_ends_when_predicted(first):
    # The step of about a thousandth of the fall, and the next order of the model at this width.
    np.testing.assert_allclose(first["predicted"], first["observed"], rtol=3e-3)
    assert np.all(first["predicted"] < first["blowup"])
    assert first["iterations"].shape == first["loss"].shape
    assert np.all(np.diff(first["iterations"], axis=1) > 0)


def test_the_repeated_run_joins_the_first(first):
    """A tenth of the step comes a little sooner: descent lags half a step for each e of speed."""
    restart, slower = first.settings["restart"], first.settings["slower"]
    again = restart + (first["again_iterations"] - restart) / slower
    for level in first["loss"][0, 0] * np.array([0.9, 0.7, 0.5, 0.3]):
        whole = np.interp(-level, -first["loss"][0], first["iterations"][0])
        repeated = np.interp(-level, -first["again_loss"], again)
        # The speed has grown by less than e^4 since the restart, of which 0.9 is the difference.
        assert 0 < whole - repeated < 0.9 * 4 / 2


def test_rows_condense_onto_a_line(first):
    def share(name):
        return np.mean(np.abs(first[name]) > 0.95)

    assert share("similarity_condensed") > share("similarity_start") + 0.2
    np.testing.assert_allclose(np.diagonal(first["similarity_start"]), 1)


def test_counts_of_network_and_effective_model_agree(counts):
    total = 2 * SETTING.width
    for row in range(SETTING.num_seeds):
        times, positive = counts["times"][row], counts["positive"][row]
        known = np.isfinite(times)
        shares = np.linspace(0.05, 0.8, 16)
        real = np.interp(shares, times[known], positive[known])
        effective = np.interp(
            shares, counts["effective_times"][row], counts["effective_positive"][row]
        )
        # Between two records an inequality or two may turn.
        assert np.mean(np.abs(real - effective)) < 0.05 * total
        assert positive[known][0] == counts["effective_positive"][row][0]


def test_smaller_weights_fulfil_more_inequalities(exponents):
    assert exponents["total"] == 2 * SETTING.width
    large, small = exponents["largest"]
    assert np.all(small > large)
    assert np.all(exponents["first"][0] == exponents["first"][1])
    np.testing.assert_allclose(exponents["std"], SETTING.width ** -exponents["alpha"])
    networks = SETTING.networks(float(exponents["std"][1]))
    escape = jn.predict_escape(networks, SETTING.data, loss=LOSS)
    iterations = np.asarray(escape.blowup.time) / SETTING.learning_rate
    np.testing.assert_allclose(exponents["blowup"][1], iterations)


def test_experiments_are_read_as_they_were_written(first, tmp_path):
    first.save(tmp_path / "a.npz")
    again = read_experiment(tmp_path / "a.npz")
    assert again.name == "1"
    assert again.settings["width"] == SETTING.width
    assert set(again.arrays) == set(first.arrays)
    for name, values in first.arrays.items():
        np.testing.assert_array_equal(again[name], values)
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:500])
    np.savez(tmp_path / "c.npz", x=np.zeros(3))
    for name in ("b.npz", "c.npz"):
        with pytest.raises(ValueError, match="does not hold the data of a figure"):
            read_experiment(tmp_path / name)


def test_figures_are_drawn(first, counts, exponents, tmp_path):
    for experiment in (first, counts, exponents):
        figure = plotting.PAPER_FIGURES[experiment.name](experiment)
        for axes in figure.axes:
            assert axes.get_xlabel() or axes.get_ylabel()
        path = tmp_path / f"{experiment.name}.png"
        plotting.save(figure, path)
        assert np.std(matplotlib.image.imread(path)) > 0


def test_settings_out_of_range_are_named():
    with pytest.raises(ValueError, match="`width` must be at least 1"):
        TanhSetting(width=0)
    with pytest.raises(ValueError, match="`learning_rate` must be positive"):
        TanhSetting(learning_rate=-1.0)
    with pytest.raises(ValueError, match="`width` must be at least 2"):
        figure_3(width=1)
    with pytest.raises(ValueError, match=r"std is 0\.5|std 0\.5"):
        figure_1(TanhSetting(width=12, std=0.5, num_samples=40, num_seeds=2), progress=False)


def test_a_figure_is_drawn_again_from_its_data(call, first, tmp_path):
    first.save(tmp_path / "old.npz")
    code, out, err = call("figure", "1", "--data", "old.npz", "--out", "new.png")
    assert (code, err) == (0, "")
    predicted, observed = first["predicted"][0], first["observed"][0]
    assert f"predicted iteration {predicted:,.1f}, observed {observed:,.0f}" in out
    assert (tmp_path / "new.png").stat().st_size > 10_000
    assert not (tmp_path / "new.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("3", "--method", "flow"), "--method is an option of figure 2a"),
        (("2a", "--alphas", 1), "--alphas is an option of figure 2b"),
        (("1", "--out", "a.xyz"), "cannot be written as .xyz"),
        (("1", "--out", "no/a.png"), "there is no folder no"),
        (("1", "--seeds", 0), "--seeds must be at least 1"),
        (("2b", "--data", "old.npz"), "holds the data of figure 3"),
        (("2b", "--data", "none.npz"), "none.npz"),
        (("4",), "invalid choice"),
    ],
)
def test_wrong_arguments_are_one_line(call, tmp_path, arguments, message):
    Experiment("3", {"x": np.zeros(1)}, {}).save(tmp_path / "old.npz")
    code, _, err = call("figure", *arguments)
    assert code in (1, 2)
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert not list(tmp_path.glob("figure_*"))


def test_scaling_with_depth():
    """Points on the lines of the law, quartiles at their depths."""
    epsilons = np.array([1e-3, 1e-2, 1e-1])
    times = {depth: depth * epsilons ** (2.0 - depth) for depth in (3, 5)}
    scaled = {m: {depth: (0.9, 1.0, 1.2) for depth in (3, 5)} for m in (10, 100)}
    figure = plotting.depth_scaling(epsilons, times, scaled, width=10)
    left, right = figure.axes
    labels = [text.get_text() for text in left.get_legend().get_texts()]
    assert labels == ["$L = 3$, slope $-1$", "$L = 5$, slope $-3$"]
    for line, points in (left.lines[:2], left.lines[2:]):
        np.testing.assert_allclose(line.get_ydata(), points.get_ydata(), rtol=1e-12)
    assert "blow-up time" in left.get_ylabel()
    assert "T^*" in right.get_ylabel()
    assert "depth" in right.get_xlabel()
    medians = [container.lines[0].get_xdata() for container in right.containers]
    np.testing.assert_allclose(np.mean(medians, axis=0), [3, 5])
    with pytest.raises(ValueError, match=r"`times\[4\]` must hold positive numbers"):
        plotting.depth_scaling(epsilons, {4: [1.0, -1.0, 1.0]}, scaled, width=10)
    with pytest.raises(ValueError, match="at least one depth"):
        plotting.depth_scaling(epsilons, {}, scaled, width=10)
