import errno
import io
import math
import os
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import EPS
from matplotlib.figure import Figure
from scipy import special

import jaxcond as jc
from jaxcond import plotting, study

P, Q = 600, 400
# So many that half of them, on two threads, are solved by the same program.
NUM_SAMPLES = 1200
SIGMAS = 5
INFINITE_WIDTH = 1.167972771072370061114301568


@pytest.fixture(scope="module")
def result():
    return jc.Study(P, Q, NUM_SAMPLES, seed=7).run()


@pytest.fixture(scope="module")
def at_rest():
    """With a = c = 0 nothing ever moves."""
    return jc.Study(P, Q, 20, scales=(0.0, 1.0, 0.0)).run()


def doctored(result, count, **fields):
    """The first samples of a result, with some of their fields replaced."""
    found = jax.tree.map(lambda leaf: np.asarray(leaf)[:count].copy(), result.blow_up)
    for name, values in fields.items():
        found = eqx.tree_at(lambda b, name=name: getattr(b, name), found, np.asarray(values))
    configuration = result.study
    shorter = jc.Study(configuration.p, configuration.q, count, configuration.seed)
    return jc.StudyResult(shorter, found, 1.0)


def leftovers(folder):
    return sorted(path.name for path in folder.iterdir())


def broken_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_summary_is_what_numpy_finds_in_the_records(result):
    summary = result.summary()
    times = np.asarray(result.blow_up.time)
    assert times.shape == (NUM_SAMPLES,)
    assert summary.count == NUM_SAMPLES
    assert summary.statuses["converged"] == sum(summary.statuses.values()) == NUM_SAMPLES
    assert sum(summary.settled_by.values()) == NUM_SAMPLES
    error = np.std(times, ddof=1) / math.sqrt(NUM_SAMPLES)
    width = (np.asarray(result.blow_up.upper) - np.asarray(result.blow_up.lower)) / times
    pairs = [
        (summary.mean, np.mean(times)),
        (summary.deviation, np.std(times, ddof=1)),
        (summary.error, error),
        (summary.scaled_mean, math.sqrt(Q) * np.mean(times)),
        (summary.scaled_error, math.sqrt(Q) * error),
        (summary.widest_bracket, width.max()),
        (summary.largest_error, (np.asarray(result.blow_up.error) / times).max()),
    ]
    for found, expected in pairs:
        assert found == pytest.approx(expected, rel=8 * EPS)
    levels, values = zip(*summary.quantiles, strict=True)
    np.testing.assert_allclose(values, np.quantile(times, levels), rtol=8 * EPS)
    assert list(levels) == sorted(levels)
    assert result.known.all()
    assert result.seconds > 0


def test_records_are_within_the_default_tolerance(result):
    found = result.blow_up
    assert np.all(found.upper - found.lower <= 1e-10 * found.time)
    assert np.all(found.error <= 1e-10 * found.time)


def test_summary_counts_only_what_is_finite_and_known(result):
    Status = jc.Status
    status = [Status.CONVERGED, Status.NO_BLOW_UP, Status.NOT_CONVERGED, Status.INVALID_INPUT]
    status += [Status.CONVERGED]
    time = [1.0, math.inf, 5.0, math.nan, 3.0]
    stage = np.array([0, 0, 3, 0, 1], np.int32)
    mixed = doctored(result, 5, status=np.array(status, np.int32), time=time, stage=stage)
    summary = mixed.summary()
    np.testing.assert_array_equal(mixed.known, [True, False, False, False, True])
    assert summary.count == 2
    assert summary.mean == 2
    assert summary.deviation == pytest.approx(math.sqrt(2))
    assert summary.error == pytest.approx(1)
    assert dict(summary.quantiles)[0.5] == 2
    assert summary.statuses == {
        "converged": 2,
        "no_blow_up": 1,
        "not_converged": 1,
        "invalid_input": 1,
    }
    assert list(summary.settled_by.values())[:4] == [3, 1, 0, 1]


def test_one_sample_has_a_mean_but_no_deviation(result):
    summary = doctored(result, 1).summary()
    assert summary.mean == float(result.blow_up.time[0])
    assert math.isnan(summary.deviation)
    assert math.isnan(summary.error)


def test_studies_are_samples_by_index(result):
    # The seed is the JAX key, and the order is that of the indices.
    found = jc.sample_blowup_times(jc.Gaussian(P, Q), np.arange(NUM_SAMPLES), key=jax.random.key(7))
    np.testing.assert_array_equal(found.time, result.blow_up.time)


def test_pieces_make_no_difference(result, monkeypatch):
    finished = []
    monkeypatch.setattr(study, "_PIECE", NUM_SAMPLES // 2)
    pieces = jc.Study(P, Q, NUM_SAMPLES, seed=7).run(finished.append)
    for name in ("time", "lower", "upper", "error", "status", "num_steps", "stage"):
        found, expected = getattr(pieces.blow_up, name), getattr(result.blow_up, name)
        np.testing.assert_array_equal(found, expected)
    assert pieces.blow_up.methods == result.blow_up.methods
    assert sum(finished) == NUM_SAMPLES


def test_seeds_are_told_apart_beyond_32_bits_in_either_precision(monkeypatch):
    used = []

    def remember(ensemble, indices, *, key, **options):
        used.append(tuple(np.asarray(jax.random.key_data(key)).tolist()))
        raise InterruptedError

    monkeypatch.setattr(study, "sample_blowup_times", remember)
    seeds = (0, 5, 2**32, 2**32 + 5, 2**63 - 1)
    for wide in (True, False):
        with jax.enable_x64(wide):
            for seed in seeds:
                with pytest.raises(InterruptedError):
                    jc.Study(P, Q, 4, seed=seed).run()
    assert len(set(used)) == len(seeds)
    assert used[: len(seeds)] == used[len(seeds) :]


def test_a_study_of_states_at_rest(at_rest):
    summary = at_rest.summary()
    assert summary.statuses["no_blow_up"] == 20
    assert summary.count == 0
    assert np.all(np.isinf(at_rest.blow_up.time))
    assert not at_rest.known.any()
    numbers = (summary.mean, summary.deviation, summary.error, summary.scaled_mean)
    numbers += (summary.scaled_error, summary.limit, summary.widest_bracket, summary.largest_error)
    numbers += tuple(value for _, value in summary.quantiles)
    assert all(math.isnan(number) for number in numbers)


def test_limit_of_equal_widths():
    assert jc.Study(5, 5, 1).limit() == pytest.approx(INFINITE_WIDTH, rel=1e-14)


def test_limit_depends_on_the_aspect_ratio_alone():
    one, other = jc.Study(P, Q, 1).limit(), jc.Study(P * 10**9, Q * 10**9, 1).limit()
    assert one == other
    # Transposed, sqrt(p) T* tends to the same as sqrt(q) T* did, of the aspect ratio 1 / alpha.
    back = jc.Study(Q, P, 1).limit()
    assert back == pytest.approx(one * math.sqrt(P / Q), rel=1e-12)


def test_limit_without_a_middle_layer_is_known_in_closed_form():
    limit = jc.Study(20, 20, 1, scales=(1.0, 0.0, 2.0)).limit()
    assert limit == pytest.approx(special.elliprf(1, 0, 4), rel=1e-13)


@pytest.mark.parametrize("scales", [(0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0)])
def test_limit_of_states_at_rest_is_unknown(scales):
    assert math.isnan(jc.Study(20, 20, 1, scales=scales).limit())


def test_samples_lie_about_the_limit(result):
    summary = result.summary()
    # The correction at finite width is of relative order 1 / width with a constant of order 1.
    tolerance = SIGMAS * summary.scaled_error + 2 / Q
    assert abs(summary.scaled_mean - summary.limit) < tolerance


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"p": 0}, "Argument `p` must be a positive whole number, but is 0."),
        ({"q": -4}, "Argument `q` must be a positive whole number, but is -4."),
        ({"num_samples": 0}, "Argument `num_samples` must be positive, but is 0."),
        ({"num_samples": -1}, "Argument `num_samples` must be positive, but is -1."),
        ({"seed": -1}, "Argument `seed` must lie between 0 and 2^63 - 1, but is -1."),
        ({"seed": 2**63}, "Argument `seed` must lie between 0 and 2^63 - 1"),
        ({"scales": (1.0, -1.0, 1.0)}, "Argument `scales` must be finite and not negative"),
        ({"scales": (math.nan, 1.0, 1.0)}, "Argument `scales` must be finite and not negative"),
    ],
)
def test_studies_refuse_values_out_of_range(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        jc.Study(**({"p": P, "q": Q, "num_samples": 10} | changes))


def test_studies_refuse_tolerances_beyond_the_dtype():
    with pytest.raises(ValueError, match="Argument `rtol` must lie between"):
        jc.Study(P, Q, 10, rtol=1e-20).run()


def test_saved_records_load(result, tmp_path):
    path = tmp_path / "records.npz"
    result.save(str(path))
    assert leftovers(tmp_path) == ["records.npz"]
    with np.load(path) as stored:
        for name in ("time", "lower", "upper", "error", "status", "num_steps", "stage"):
            np.testing.assert_array_equal(stored[name], getattr(result.blow_up, name))
        assert tuple(stored["methods"]) == result.blow_up.methods
        np.testing.assert_array_equal(stored["widths"], [P, Q])
        np.testing.assert_array_equal(stored["scales"], [1, 1, 1])
        assert stored["seed"] == 7
        assert np.isnan(stored["rtol"])


def test_saved_records_of_enormous_widths_load(result, tmp_path):
    # Beyond 64-bit integers; nothing may be pickled.
    wide = jc.StudyResult(jc.Study(10**30, 10**25, 1, rtol=1e-6), result.blow_up, 1.0)
    wide.save(str(tmp_path / "records.npz"))
    with np.load(tmp_path / "records.npz", allow_pickle=False) as stored:
        np.testing.assert_allclose(stored["widths"], [1e30, 1e25])
        assert stored["rtol"] == 1e-6


def test_records_are_saved_whole_or_not_at_all(result, tmp_path, monkeypatch):
    path = tmp_path / "records.npz"
    path.write_text("earlier")
    monkeypatch.setattr(np, "savez_compressed", broken_disk)
    with pytest.raises(OSError, match="No space left"):
        result.save(str(path))
    assert leftovers(tmp_path) == ["records.npz"]
    assert path.read_text() == "earlier"


def test_histogram_shows_the_distribution_and_the_limit(result):
    figure = plotting.histogram(result)
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    assert "blow-up time" in axes.get_xlabel()
    assert "T^*" in axes.get_xlabel()
    assert axes.get_ylabel() == "probability density"
    assert f"{P} × {Q}" in axes.get_title()
    summary = result.summary()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert f"infinite width {summary.limit:.6g}" in labels
    assert any(label.startswith(f"mean {summary.scaled_mean:.5g} ±") for label in labels)
    marks = sorted(float(line.get_xdata()[0]) for line in axes.lines)
    assert marks == pytest.approx(sorted([summary.scaled_mean, summary.limit]))
    area = sum(patch.get_width() * patch.get_height() for patch in axes.patches)
    assert area == pytest.approx(1)
    # All samples but the ones said to be beyond the axis are in the bars.
    hidden = int(re.search(r"\((\d+) of 1200 beyond", axes.get_xlabel()).group(1))
    assert 0 < hidden <= 0.002 * NUM_SAMPLES + 2


@pytest.mark.parametrize("count", [1, 2, 3, 200])
def test_histogram_of_few_samples_shows_all_of_them(result, count):
    figure = plotting.histogram(doctored(result, count))
    (axes,) = figure.axes
    assert "beyond" not in axes.get_xlabel()
    area = sum(patch.get_width() * patch.get_height() for patch in axes.patches)
    assert area == pytest.approx(1)
    figure.savefig(io.BytesIO())


def test_histogram_of_samples_equal_to_rounding(result):
    # At enormous widths the fluctuations are below the precision.
    time = 1.2 + EPS * np.arange(10)
    figure = plotting.histogram(doctored(result, 10, time=time))
    area = sum(patch.get_width() * patch.get_height() for patch in figure.axes[0].patches)
    assert area == pytest.approx(1)
    figure.savefig(io.BytesIO())


def test_histogram_without_a_limit_leaves_it_out(result, monkeypatch):
    monkeypatch.setattr(jc.Study, "limit", lambda self: math.nan)
    labels = [text.get_text() for text in plotting.histogram(result).axes[0].get_legend().texts]
    assert len(labels) == 1
    assert labels[0].startswith("mean")


def test_histogram_needs_a_finite_time(at_rest):
    with pytest.raises(ValueError, match="No sample has a finite blow-up time"):
        plotting.histogram(at_rest)


@pytest.mark.parametrize(
    ("name", "start"), [("f.png", b"\x89PNG\r\n\x1a\n"), ("f.pdf", b"%PDF"), ("f", b"\x89PNG")]
)
def test_figures_are_written_in_the_format_of_the_suffix(tmp_path, name, start):
    plotting.check_format(tmp_path / name)
    plotting.save(Figure(), tmp_path / name)
    assert leftovers(tmp_path) == [name]
    assert (tmp_path / name).read_bytes().startswith(start)


def test_unknown_formats_are_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"cannot be written as \.doc; known are .*pdf, .*png"):
        plotting.check_format("figure.doc")


@pytest.mark.parametrize("failure", [broken_disk, KeyboardInterrupt])
def test_figures_are_saved_whole_or_not_at_all(tmp_path, monkeypatch, failure):
    path = tmp_path / "figure.png"
    path.write_text("earlier")

    def write_half(self, file, **_):
        with open(file, "wb") as half:
            half.write(b"\x89PNG")
        raise failure()

    monkeypatch.setattr(Figure, "savefig", write_half)
    expected = KeyboardInterrupt if failure is KeyboardInterrupt else OSError
    with pytest.raises(expected):
        plotting.save(Figure(), path)
    assert leftovers(tmp_path) == ["figure.png"]
    assert path.read_text() == "earlier"


def test_a_name_that_cannot_be_taken_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        plotting.save(Figure(), tmp_path / "figure.png")
    assert leftovers(tmp_path) == []


def test_read_only_disks_are_reported(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(study.tempfile, "mkstemp", refuse)
    with pytest.raises(OSError, match="Read-only file system"):
        plotting.save(Figure(), tmp_path / "figure.png")
    assert leftovers(tmp_path) == []


def test_folders_that_do_not_exist_are_reported(result, tmp_path):
    with pytest.raises(FileNotFoundError):
        plotting.save(Figure(), tmp_path / "no" / "figure.png")
    with pytest.raises(FileNotFoundError):
        result.save(str(tmp_path / "no" / "records.npz"))


def test_records_in_single_precision_are_summarised_in_double(result):
    single = jax.tree.map(
        lambda leaf: leaf.astype(jnp.float32) if leaf.dtype == jnp.float64 else leaf,
        doctored(result, 100).blow_up,
    )
    summary = jc.StudyResult(jc.Study(P, Q, 100), single, 1.0).summary()
    exact = np.mean(np.asarray(single.time, np.float64))
    assert summary.mean == pytest.approx(exact, rel=8 * EPS)
