import errno
import json
import os
import re
import signal
import subprocess
import sys

import equinox as eqx
import jax
import matplotlib.image
import numpy as np
import pytest

import jaxcond as jc
from jaxcond import plotting
from jaxcond.checks import STATEMENTS, Verdict
from jaxcond.checks import run as checks_run
from jaxcond.cli import _check, main

P, Q, NUM_SAMPLES = 600, 400, 1200
SMALL = ("study", "--width", f"{P}x{Q}", "--samples", str(NUM_SAMPLES), "--seed", "7")
PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def _precision():
    """The command line chooses the precision of the whole process."""
    before = jax.config.jax_enable_x64
    yield
    jax.config.update("jax_enable_x64", before)


@pytest.fixture(scope="module")
def result():
    return jc.Study(P, Q, NUM_SAMPLES, seed=7).run()


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run the command line in an empty folder: exit code, standard output and error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments):
        with pytest.raises(SystemExit) as stopped:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return stopped.value.code or 0, captured.out, captured.err

    return run


@pytest.fixture
def studies(monkeypatch, result):
    """Studies are not run but remembered, and all have the same records."""
    asked = []

    def run(self, progress=None):
        asked.append((self, jax.config.jax_enable_x64))
        return jc.StudyResult(self, result.blow_up, 1.0)

    monkeypatch.setattr(jc.Study, "run", run)
    monkeypatch.setattr(jc.Study, "limit", lambda self: 1.25)
    return asked


def the_error(err):
    """The one line that says what went wrong."""
    assert "Traceback" not in err
    lines = [line for line in err.splitlines() if "Error:" in line]
    assert len(lines) == 1, err
    assert err.splitlines()[-1] == lines[0]
    return lines[0]


def only_the_error(err):
    assert len(err.splitlines()) == 1, err
    return the_error(err)


def test_a_study_prints_a_table_and_writes_a_figure(call, tmp_path, result):
    code, out, err = call(*SMALL)
    assert code == 0
    assert "Error" not in err
    summary = result.summary()
    assert f"{summary.mean:.8g} ± {summary.error:.2g}" in out
    assert f"{summary.scaled_mean:.8g} ± {summary.scaled_error:.2g}" in out
    assert f"{summary.limit:.10g}" in out
    for level, value in summary.quantiles:
        assert re.search(rf"quantile {100 * level:.1f}%\s*│\s*{value:.8g}\s", out)
    assert re.search(r"converged\s*│\s*1200  \(100\.0000%\)", out)
    assert "Figure written to study.png" in out
    assert [path.name for path in tmp_path.iterdir()] == ["study.png"]
    assert (tmp_path / "study.png").read_bytes().startswith(PNG)
    image = matplotlib.image.imread(tmp_path / "study.png")
    # A picture, not an empty canvas.
    assert image.ndim == 3
    assert np.ptp(image[..., :3]) > 0.5


def test_saved_records_are_those_of_the_study(call, tmp_path, result):
    code, out, _ = call(*SMALL, "--save", "records.npz", "--out", "figure.pdf")
    assert code == 0
    assert "Records written to records.npz" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.pdf", "records.npz"]
    with np.load(tmp_path / "records.npz") as stored:
        np.testing.assert_array_equal(stored["time"], result.blow_up.time)
        np.testing.assert_array_equal(stored["status"], result.blow_up.status)
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")


def test_progress_is_shown_on_standard_error_unless_quiet(call):
    code, out, err = call(*SMALL)
    assert (code, "1200/1200" in err, "1200/1200" in out) == (0, True, False)
    code, quiet_out, err = call(*SMALL, "--quiet")
    assert (code, err) == (0, "")
    # The same but for the time it took, which the widths of the columns depend on.
    numbers = [re.findall(r"[\w.%±*·-]+", text.split("│ time")[0]) for text in (out, quiet_out)]
    assert numbers[0] == numbers[1]
    assert len(numbers[0]) > 30


@pytest.mark.slow
def test_single_precision(call, tmp_path, result):
    code, _, err = call(*SMALL, "--float32", "--rtol", "1e-3", "--save", "records.npz")
    assert code == 0
    assert "Error" not in err
    with np.load(tmp_path / "records.npz") as stored:
        assert stored["time"].dtype == np.float32
        # Other random numbers, but the same distribution.
        time, error = stored["time"].astype(float), result.summary().error
        assert abs(time.mean() - result.summary().mean) < 5 * np.sqrt(2) * error


def test_a_study_of_states_at_rest_has_no_figure(call, tmp_path):
    code, out, err = call(
        "study", "--width", f"{P}x{Q}", "--samples", "20", "--scales", "0", "1", "0"
    )
    assert code == 0
    assert "No finite blow-up time: no figure." in out
    assert re.search(r"no_blow_up\s*│\s*20  \(100\.0000%\)", out)
    assert "Error" not in err
    assert list(tmp_path.iterdir()) == []


def test_samples_that_did_not_converge_give_exit_code_3(call, tmp_path, monkeypatch, result):
    status = np.array(result.blow_up.status)
    status[:3] = jc.Status.NOT_CONVERGED
    found = eqx.tree_at(lambda b: b.status, result.blow_up, status)
    monkeypatch.setattr(jc.Study, "run", lambda self, _: jc.StudyResult(self, found, 1.0))
    code, out, _ = call(*SMALL)
    assert code == 3
    assert re.search(r"not_converged\s*│\s*3  \(0\.2500%\)", out)
    assert (tmp_path / "study.png").read_bytes().startswith(PNG)


def test_arguments_reach_the_study(call, studies):
    code, _, _ = call("study", "--full", "--rtol", "1e-6", "--scales", "0.5", "2", "1", "--seed", 3)
    assert code == 0
    code, _, _ = call("study", "--width", "1e9", "--samples", "5", "--float32")
    assert code == 0
    (first, wide), (second, narrow) = studies
    assert first == jc.Study(200, 200, 10_000, 3, (0.5, 2.0, 1.0), 1e-6, reduced=False)
    assert second == jc.Study(10**9, 10**9, 5)
    assert (wide, narrow) == (True, False)


@pytest.mark.parametrize(
    ("text", "widths"), [("7", (7, 7)), ("30x20", (30, 20)), ("1e15X3", (10**15, 3))]
)
def test_widths(call, studies, text, widths):
    assert call("study", "--width", text)[0] == 0
    ((study, _),) = studies
    assert (study.p, study.q) == widths


@pytest.mark.parametrize("name", ["[red]figure.png", "[link=x].png", "a b.png", "x" * 120 + ".png"])
def test_file_names_are_printed_as_they_are(call, tmp_path, studies, name):
    code, out, _ = call("study", "--out", name, "--save", name + ".npz")
    assert code == 0
    assert f"Figure written to {name}\n" in out
    assert f"Records written to {name}.npz\n" in out
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, name + ".npz"])


def test_help_and_version(call):
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    assert "study" in out
    assert "Exit codes" in out
    code, out, err = call("study", "--help")
    assert (code, err) == (0, "")
    for option in ("width", "samples", "seed", "scales", "rtol", "out", "save", "full", "float32"):
        assert f"--{option}" in out
    code, out, err = call("--version")
    assert (code, out.strip(), err) == (0, f"jaxcond {jc.__version__}", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--width", "0"), "'0' is neither a positive width like 200 nor a pair"),
        (("--width", "abc"), "'abc' is neither a positive width"),
        (("--width", "-5"), "'-5' is neither a positive width"),
        (("--width", "2.5"), "'2.5' is neither a positive width"),
        (("--width", "nan"), "'nan' is neither a positive width"),
        (("--width", "inf"), "'inf' is neither a positive width"),
        (("--width", "10x20x30"), "'10x20x30' is neither a positive width"),
        (("--width", "10x"), "'10x' is neither a positive width"),
        (("--width", ""), "'' is neither a positive width"),
        (("--samples", "-1"), "`num_samples` must be positive, but is -1"),
        (("--samples", "0"), "`num_samples` must be positive, but is 0"),
        (("--samples", "many"), "--samples: invalid int value: 'many'"),
        (("--seed", "-1"), "`seed` must lie between 0 and 2^63 - 1, but is -1"),
        (("--seed", str(2**63)), "`seed` must lie between 0 and 2^63 - 1"),
        (("--scales", "1", "nan", "1"), "`scales` must be finite and not negative"),
        (("--scales", "-1", "1", "1"), "`scales` must be finite and not negative"),
        (("--scales", "1", "inf", "1"), "`scales` must be finite and not negative"),
        (("--scales", "1", "1"), "--scales: expected 3 arguments"),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("extra",), "unrecognized arguments: extra"),
        (("--out", "figure.doc"), "Figures cannot be written as .doc; known are"),
    ],
)
def test_wrong_arguments_give_one_line_and_exit_code_2(call, tmp_path, arguments, message):
    code, out, err = call("study", *arguments)
    assert code == 2
    assert out == ""
    assert message in only_the_error(err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("rtol", ["1e-20", "nan", "1", "-1e-8"])
def test_tolerances_beyond_the_precision(call, tmp_path, rtol):
    code, out, err = call("study", f"--rtol={rtol}", "--quiet")
    assert (code, out) == (2, "")
    assert "`rtol` must lie between" in only_the_error(err)
    # The line is there beneath a progress bar, too.
    assert "`rtol` must lie between" in the_error(call("study", f"--rtol={rtol}")[2])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("arguments", [(), ("nonsense",)])
def test_a_command_is_needed(call, arguments):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert "COMMAND" in only_the_error(err) or "nonsense" in err


@pytest.mark.parametrize("option", ["--out", "--save"])
def test_files_that_cannot_be_written_are_found_before_the_work(
    call, tmp_path, studies, monkeypatch, option
):
    (tmp_path / "folder.png").mkdir()
    code, out, err = call("study", option, "folder.png")
    assert (code, out) == (1, "")
    assert "cannot write folder.png: it is a folder" in only_the_error(err)
    code, out, err = call("study", option, "no/such/file.png")
    assert (code, out) == (1, "")
    assert "cannot write no/such/file.png: there is no folder no/such" in only_the_error(err)
    # What permissions say does not depend on who runs the tests.
    monkeypatch.setattr(os, "access", lambda path, _: "file" not in str(path))
    (tmp_path / "file.png").touch()
    code, out, err = call("study", option, "file.png")
    assert (code, out) == (1, "")
    assert "cannot write file.png: permission denied" in only_the_error(err)
    assert studies == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file.png", "folder.png"]


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (MemoryError(), "MemoryError"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED:\nno memory"), "EXHAUSTED: no memory"),
    ],
)
def test_failures_give_one_line_and_exit_code_1(
    call, tmp_path, studies, monkeypatch, error, message
):
    def fail(*_):
        raise error

    monkeypatch.setattr(plotting, "histogram", fail)
    code, _, err = call("study", "--quiet")
    assert code == 1
    assert message in only_the_error(err)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_half_written(call, tmp_path, studies, monkeypatch):
    def fill(file, **_):
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", fill)
    code, _, err = call("study", "--quiet", "--save", "records.npz")
    assert code == 1
    assert "No space left on device" in only_the_error(err)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("moment", ["run", "limit"])
def test_an_interrupt_gives_one_line_and_exit_code_130(
    call, tmp_path, studies, monkeypatch, moment
):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(jc.Study, moment, interrupted)
    code, _, err = call("study", "--quiet")
    assert code == 130
    assert only_the_error(err).endswith("Error: interrupted; nothing was written")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_signal_ends_a_long_run(tmp_path):
    # Says when the first samples are done, so that the signal arrives in the midst of the work.
    script = """
import sys
import jaxcond.cli, jaxcond.study

run = jaxcond.study.Study.run
def run_and_tell(self, progress):
    return run(self, lambda count: print("at work", flush=True))

jaxcond.study.Study.run = run_and_tell
sys.argv = "jaxcond study --samples 100000000 --save records.npz --quiet".split()
jaxcond.cli.console()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert only_the_error(err).endswith("interrupted; nothing was written")
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def verdicts(monkeypatch):
    """Statements are not checked: all of them hold but those whose names are put in here."""
    failing, asked = {}, []

    def run(width, samples, seed, *, progress):
        asked.append((width, samples, seed, jax.config.jax_enable_x64))
        found = []
        for statement in STATEMENTS:
            progress(statement.name)
            worst = failing.get(statement.name, 0.5 * statement.limit)
            tested = 0 if worst != worst else samples
            found.append(Verdict(statement, worst, tested, worst <= statement.limit))
        return found

    monkeypatch.setattr(_check, "run_checks", run)
    return failing, asked


@pytest.fixture
def wide(call, monkeypatch):
    """The command line where every row of the table has a line of its own."""
    monkeypatch.setattr(_check.out, "_width", 160)
    return call


def the_table(out):
    """Rows of the table, by the name of the statement."""
    names = sorted((statement.name for statement in STATEMENTS), key=len, reverse=True)
    rows = {}
    for line in out.splitlines():
        for name in names:
            if line.strip().startswith(name):
                rows.setdefault(name, line)
                break
    return rows


@pytest.mark.slow
def test_the_statements_hold(call, tmp_path):
    code, out, err = call(
        "check", "--width", "3", "--samples", "2", "--quiet", "--json", "found.json"
    )
    assert (code, err) == (0, "")
    assert f"{len(STATEMENTS)} of {len(STATEMENTS)} statements hold." in out
    assert "Table written to found.json" in out
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["width"], found["samples"], found["seed"]) == (3, 2, 0)
    for row, statement in zip(found["statements"], STATEMENTS, strict=True):
        assert row["statement"] == statement.name
        assert row["source"] == statement.source
        assert row["holds"] is True
        assert row["worst"] <= row["limit"] == statement.limit
        assert 0 < row["samples"] <= 2
        assert row["rank"] == statement.rank


def test_a_table_of_all_statements(wide, tmp_path, verdicts):
    code, out, err = wide("check")
    assert code == 0
    assert f"{len(STATEMENTS)}/{len(STATEMENTS) + 2}" in err
    assert set(the_table(out)) == {statement.name for statement in STATEMENTS}
    assert "FAILS" not in out
    assert "Width 16, 128 samples a rank, seed 0" in out
    code, quiet_out, err = wide("check", "--quiet")
    assert (code, quiet_out, err) == (0, out, "")
    assert list(tmp_path.iterdir()) == []


def test_arguments_reach_the_checks(call, verdicts):
    _, asked = verdicts
    assert call("check", "--width", "5", "--samples", "7", "--seed", "9")[0] == 0
    assert call("check")[0] == 0
    assert asked == [(5, 7, 9, True), (16, 128, 0, True)]


@pytest.mark.parametrize("worst", [2.5, float("inf"), float("nan")])
def test_a_statement_that_does_not_hold_gives_exit_code_3(wide, tmp_path, verdicts, worst):
    failing, _ = verdicts
    name = STATEMENTS[3].name
    failing[name] = worst
    code, out, _ = wide("check", "--json", "found.json")
    assert code == 3
    assert f"{len(STATEMENTS) - 1} of {len(STATEMENTS)} statements hold." in out
    assert [row for row, line in the_table(out).items() if "FAILS" in line] == [name]
    # Strict JSON, which knows neither infinity nor NaN.
    text = (tmp_path / "found.json").read_text()
    found = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    row = found["statements"][3]
    assert (row["statement"], row["holds"]) == (name, False)
    assert float(row["worst"]) == pytest.approx(worst, nan_ok=True)
    assert sum(not row["holds"] for row in found["statements"]) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--width", "1"), "`width` must be at least 2, but is 1"),
        (("--width", "0"), "`width` must be at least 2, but is 0"),
        (("--width", "5x4"), "--width: invalid int value: '5x4'"),
        (("--samples", "0"), "`samples` must be at least 1, but is 0"),
        (("--samples", "-2"), "`samples` must be at least 1, but is -2"),
        (("--seed", "one"), "--seed: invalid int value: 'one'"),
        (("--seed", "-1"), "`seed` must lie between 0 and 2^63 - 1, but is -1"),
        (("--seed", str(2**63)), "`seed` must lie between 0 and 2^63 - 1"),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("--json",), "--json: expected one argument"),
    ],
)
def test_wrong_arguments_of_the_checks(call, tmp_path, monkeypatch, arguments, message):
    def refuse(*_):
        raise AssertionError("work was begun")

    monkeypatch.setattr(checks_run, "gather", refuse)
    code, out, err = call("check", "--quiet", *arguments)
    assert (code, out) == (2, "")
    assert message in only_the_error(err)
    assert list(tmp_path.iterdir()) == []


def test_a_json_file_that_cannot_be_written_is_found_before_the_work(call, tmp_path, verdicts):
    (tmp_path / "folder").mkdir()
    for name, reason in (
        ("folder", "it is a folder"),
        ("no/such/file.json", "there is no folder no/such"),
    ):
        code, out, err = call("check", "--json", name)
        assert (code, out) == (1, "")
        assert f"cannot write {name}: {reason}" in only_the_error(err)
    assert verdicts[1] == []


def test_a_failed_check_leaves_the_earlier_table(call, tmp_path, verdicts, monkeypatch):
    def fill(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    (tmp_path / "found.json").write_text("earlier")
    monkeypatch.setattr(_check.json, "dumps", fill)
    code, _, err = call("check", "--quiet", "--json", "found.json")
    assert code == 1
    assert "No space left on device" in only_the_error(err)
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    assert (tmp_path / "found.json").read_text() == "earlier"


def test_interrupted_checks_give_one_line_and_exit_code_130(call, tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_check, "run_checks", interrupted)
    code, out, err = call("check", "--quiet", "--json", "found.json")
    assert (code, out) == (130, "")
    assert only_the_error(err).endswith("Error: interrupted; nothing was written")
    assert list(tmp_path.iterdir()) == []


def test_figure_and_records_may_not_be_one_file(call):
    code, out, err = call("study", "--samples", "10", "--out", "x.png", "--save", "./x.png")
    assert (code, out) == (2, "")
    assert "--out and --save name the same file, x.png" in only_the_error(err)


def test_a_wrong_tolerance_is_told_before_any_progress(call):
    code, out, err = call("study", "--samples", "10", "--rtol", "1e-30")
    assert (code, out) == (2, "")
    assert err.startswith("Error: Argument `rtol` must lie between")
