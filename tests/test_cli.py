import csv
import dataclasses
import errno
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import matplotlib.image
import numpy as np
import pytest
from helpers import gaussian_states
from matplotlib.figure import Figure
from scipy import stats

import jaxcond as jc
from jaxcond import plotting
from jaxcond.blowup import Status
from jaxcond.checks import STATEMENTS, Verdict
from jaxcond.checks import _run as checks_run
from jaxcond.cli import _check, _summary, main
from jaxcond.cli._late import progress
from jaxcond.study import Interrupted, StoreError, Study, Tally, Task, open_store, summarise
from jaxcond.study import run_study as run
from jaxcond.study._store import create, fields_of, locked

P, Q, NUM_SAMPLES, CHUNK = 600, 400, 256, 64
CONFIGURED = Study(NUM_SAMPLES, ensemble={"p": P, "q": Q}, seed=7, chunk=CHUNK)
# One size of chunks throughout, so that JAX compiles once.
SMALL = ("study", "--width", f"{P}x{Q}", "--samples", NUM_SAMPLES, "--seed", 7,
         "--set", f"chunk={CHUNK}")  # fmt: skip
PNG = b"\x89PNG\r\n\x1a\n"
COMMANDS = ("study", "resume", "summary", "plot", "info", "phase", "check")


@pytest.fixture(autouse=True)
def _precision():
    """The command line chooses the precision of the whole process."""
    before, paths = jax.config.jax_enable_x64, list(sys.path)
    yield
    jax.config.update("jax_enable_x64", before)
    sys.path[:] = paths


@pytest.fixture(scope="module")
def result():
    """What the Python API finds for the study of the command line."""
    return run(CONFIGURED)


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

    def remember(study, path, **options):
        asked.append((study, path, options))
        return result

    monkeypatch.setattr(jc.study, "run_study", remember)
    return asked


@pytest.fixture
def refusing(monkeypatch, unchecked):
    """No study may be run, and what is wrong with it is told by the package."""

    def refuse(*_, **__):
        raise AssertionError("work was begun")

    monkeypatch.setattr(jc.study, "run_study", refuse)


def made(path, times, *, status=None, finished=None, **keys):
    """A store with these blow-up times at each point, which no sampler has drawn."""
    keys = {"samples": len(times[0]), "ensemble": {"kind": "balanced"}} | keys
    study = Study(chunk=CHUNK, **keys)
    store = create(study, path, CHUNK, {"12x12": ("series", "direct")})
    for point, t in enumerate(map(np.asarray, times)):
        known = np.where(np.isfinite(t), Status.CONVERGED, Status.NO_BLOW_UP)
        known = known if status is None else np.asarray(status)
        columns = {
            "blowup_time": t,
            "lower": t,
            "upper": t,
            "error": 0 * np.ones_like(t),
            "status": known,
            "num_steps": np.ones(t.size, int),
            "stage": np.zeros(t.size, int),
        }
        for first in range(0, t.size if finished is None else finished, CHUNK):
            piece = slice(first, min(first + CHUNK, t.size))
            task = Task(point, first // CHUNK, piece.start, piece.stop)
            values = {f.name: columns[f.name][piece] for f in fields_of(study)}
            store.mark(task, store.write(task, values))
    store.describe(complete=finished is None)
    return store


def drawn(count, seed=0, mean=1.0):
    return np.random.default_rng(seed).normal(mean, 0.05, count)


def same_records(found, expected):
    for field in fields_of(expected.study):
        for point in range(len(expected.study.points)):
            pairs = [np.concatenate(list(s.stream(field.name, point))) for s in (found, expected)]
            np.testing.assert_array_equal(*pairs)


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


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def strictly(path):
    return json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))


# Studies.


def test_a_study_prints_a_table_and_writes_records_and_a_figure(call, tmp_path, result):
    code, out, err = call(*SMALL, "--store", "records.zarr")
    assert code == 0
    assert "Error" not in err
    (point,) = summarise(result).points
    mean, root = point.mean, math.sqrt(Q)
    assert f"gaussian, width {P} x {Q}, {NUM_SAMPLES} samples" in out
    assert f"{mean.mean:.8g} ± {mean.standard_error:.2g}" in out
    assert f"{root * mean.mean:.8g} ± {root * mean.standard_error:.2g}" in out
    assert f"{point.limit:.8g}" in out
    for quantile in point.quantiles:
        found = re.search(rf"quantile {quantile.level:.1%} \(95% interval\) *│ *([\d.]+) ", out)
        assert float(found[1]) == pytest.approx(quantile.value, rel=1e-2)
    assert re.search(r"status converged\s*│\s*256  \(100\.0000%\)", out)
    assert "Records in records.zarr" in out
    assert "Figure written to records.png" in out
    assert (tmp_path / "records.png").read_bytes().startswith(PNG)
    image = matplotlib.image.imread(tmp_path / "records.png")
    # A picture, not an empty canvas.
    assert image.ndim == 3
    assert np.ptp(image[..., :3]) > 0.5
    same_records(open_store("records.zarr"), result)
    assert names(tmp_path) == ["records.png", "records.zarr"]
    # Once more there is nothing left to do.
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.glob("records.zarr/status/**/*"))
    assert call(*SMALL, "--store", "records.zarr", "--quiet")[0] == 0
    after = sorted(path.stat().st_mtime_ns for path in tmp_path.glob("records.zarr/status/**/*"))
    assert before == after


def test_progress_is_shown_on_standard_error(call, tmp_path):
    code, out, err = call(*SMALL, "--out", "figure.pdf")
    # Not on a terminal: lines.
    assert (code, "256 of 256" in err, "256 of 256" in out) == (0, True, False)
    # Without a name the records are not kept.
    assert "Records" not in out
    assert names(tmp_path) == ["figure.pdf"]
    assert (tmp_path / "figure.pdf").read_bytes().startswith(b"%PDF")
    code, out, err = call(*SMALL, "--log")
    assert code == 0
    assert "mean ± standard error" in out
    begin, compiling, *_, last = err.splitlines()
    assert begin == "study of 1 points, 256 samples each, 0 of 256 there already"
    assert compiling == "compiling …"
    assert re.match(r"256 of 256 samples, [\d,]+/s, 0 s left; T\* [\d.]+ ± ", last)
    # The figure of the same study may be made again, in each format; that of another is kept.
    assert call(*SMALL, "--quiet") == (0, "", "")
    for suffix in ("pdf", "svg"):
        for _ in range(2):
            assert call(*SMALL, "--quiet", "--out", f"other.{suffix}") == (0, "", "")
    code, out, err = call(*SMALL, "--quiet", "--seed", "9")
    assert (code, out, err) == (1, "", "Error: study.png is there already: --out FILE writes to "
                                "another file, --force over this one\n")  # fmt: skip
    code, out, err = call(*SMALL, "--quiet", "--seed", "9", "--force")
    assert (code, out, err) == (0, "", "")


def test_a_store_of_another_study_is_replaced_by_force_only(call, tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    assert call(*SMALL, "--store", "s.zarr", "--quiet")[0] == 0
    again = [*SMALL, "--seed", 8, "--store"]
    code, _, err = call(*again, "s.zarr", "--quiet")
    assert (code, "holds another study: `seed` is 7 in the store and 8" in the_error(err)) == (1, 1)
    assert open_store("s.zarr").study.seed == 7
    assert call(*again, "s.zarr", "--quiet", "--force")[0] == 0
    assert open_store("s.zarr").study.seed == 8
    # By force too, a folder that is no store stays.
    code, _, err = call(*again, "other", "--quiet", "--force", "--out", "o.png")
    assert (code, "other is no" in the_error(err)) == (1, True)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"
    assert names(tmp_path) == ["other", "s.png", "s.zarr"]


@pytest.mark.parametrize(
    "command", [("summary",), ("info",), ("plot",), ("resume",), (*SMALL, "--store")]
)
def test_what_is_no_folder_is_no_store(call, tmp_path, command):
    (tmp_path / "widths.toml").write_text("samples = 5\n")
    (tmp_path / "file").write_text("")
    code, _, err = call(*command, "widths.toml")
    assert (code, "makes is widths.zarr" in only_the_error(err)) == (2, True)
    code, _, err = call(*command, "file")
    assert (code, only_the_error(err)) == (1, "Error: file is a file, and a store is a folder")


def test_deep_nesting_is_told(call):
    code, _, err = call("study", "--set", f"sweep.width={'[' * 5000}{']' * 5000}")
    assert (code, only_the_error(err)) == (2, "Error: the configuration is nested too deeply")


def test_tls_files_go_to_the_scheduler(call, tmp_path):
    pytest.importorskip("distributed")
    (tmp_path / "ca.pem").write_text("")
    address = ("--scheduler", "tls://127.0.0.1:9", "--store", "s.zarr")
    code, _, err = call(*SMALL, *address, "--tls-ca", "ca.pem")
    assert (code, "no certificate and no key" in only_the_error(err)) == (2, True)
    files = ("--tls-ca", "ca.pem", "--tls-cert", "no.pem", "--tls-key", "ca.pem")
    code, _, err = call(*SMALL, *address, *files)
    assert (code, "There is no file no.pem" in only_the_error(err)) == (1, True)


def test_bars_tell_of_compiling_until_there_are_samples(result):
    bars = progress.Bars()
    study = dataclasses.replace(CONFIGURED, sweep={"width": [5, 6]}, ensemble={})
    for asked, name in ((CONFIGURED, "samples"), (study, "all")):
        bars = progress.Bars()
        bars.start(asked, result, [Tally() for _ in asked.points])
        assert [task.description for task in bars.progress.tasks] == ["compiling …"]
        bars.solved(0, 5)
        bars.stop()
        assert bars.progress.tasks[0].description == name
        assert bars.progress.tasks[0].completed == 5


def test_a_study_of_states_at_rest_has_no_figure(call, tmp_path):
    code, out, err = call(*SMALL, "--set", "ensemble.scales=[0, 1, 0]")
    assert code == 0
    assert "No finite blow-up time: no figure." in out
    assert re.search(r"no_blow_up\s*│\s*256  \(100\.0000%\)", out)
    assert "nan" not in out
    assert "Error" not in err
    assert names(tmp_path) == []


def test_samples_that_did_not_converge_give_exit_code_3(call, tmp_path, monkeypatch):
    status = [Status.NOT_CONVERGED] * 3 + [Status.CONVERGED] * 97
    store = made(tmp_path / "s.zarr", [drawn(100)], status=status)
    monkeypatch.setattr(jc.study, "run_study", lambda *_, **__: store)
    code, out, _ = call("study")
    assert code == 3
    assert re.search(r"not_converged\s*│\s*3  \(3\.0000%\)", out)
    assert (tmp_path / "study.png").read_bytes().startswith(PNG)
    for command in ("summary", "resume"):
        assert call(command, "s.zarr")[0] == 3


def test_the_configuration_is_that_of_the_file_and_the_options(call, tmp_path, studies, unchecked):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "wide.toml").write_text(
        """
        samples = 1e5
        seed = 3
        precision = "float32"
        [ensemble]
        scales = [0.5, 2, 1]
        width = 30
        [sweep]
        aspect = {start = 0.1, stop = 10, num = 3, spacing = "log"}
        """
    )
    assert call("study", "folder/wide.toml")[0] == 0
    code, _, _ = call(
        "study", "folder/wide.toml", "--store", "other", "--samples", "1e6", "--seed", 4,
        "--set", "ensemble.width=50", "--set", "samples=20", "--set",
        "sweep.kind=[gaussian,uniform]", "--set", 'observables=["energy"]', "--any-version",
    )  # fmt: skip
    assert code == 0
    (first, path, options), (second, other, changed) = studies
    keys = {"seed": 3, "precision": "float32", "sweep": {"aspect": [0.1, 1.0, 10.0]}}
    ensemble = {"scales": [0.5, 2, 1], "width": 30}
    assert first == Study(100_000, ensemble=ensemble, **keys)
    # Beside where the command is called, not where its file is.
    assert path == Path("wide.zarr")
    assert (options["any_version"], options["repair"], options["crew"]) == (False, False, None)
    keys |= {"seed": 4, "sweep": {"aspect": [0.1, 1.0, 10.0], "kind": ["gaussian", "uniform"]}}
    ensemble["width"] = 50
    assert second == Study(20, ensemble=ensemble, observables=("energy",), **keys)
    assert other == Path("other")
    assert changed["any_version"]


@pytest.mark.parametrize(
    ("text", "widths"), [("7", (7, 7)), ("30x20", (30, 20)), ("1e15X3", (10**15, 3))]
)
def test_widths(call, tmp_path, studies, text, widths):
    (tmp_path / "file.toml").write_text("ensemble = {width = 3}")
    assert call("study", "file.toml", "--width", text)[0] == 0
    (((_, settings),),) = [study.settings for study, _, _ in studies]
    assert (settings.p, settings.q) == widths


def test_workers_reach_the_crew(call, studies, monkeypatch):
    asked = []
    cluster = type(sys)("cluster")
    cluster.dask_cluster = lambda address, **rest: asked.append((address, rest))
    monkeypatch.setitem(sys.modules, "jaxcond.study.cluster", cluster)
    assert call("study", "--workers", 3)[0] == 0
    assert call("study", "--force", "--scheduler", "tcp://host:8786")[0] == 0
    files = [part for name in ("ca", "cert", "key") for part in (f"--tls-{name}", name)]
    assert call("study", "--force", "--scheduler", "tls://host:8786", *files)[0] == 0
    none, three = (None, None, None), (Path("ca"), Path("cert"), Path("key"))
    assert asked == [
        (None, {"num_workers": 3, "tls": none}),
        ("tcp://host:8786", {"num_workers": None, "tls": none}),
        ("tls://host:8786", {"num_workers": None, "tls": three}),
    ]
    code, _, err = call("study", "--force", "--scheduler", "tcp://host:8786", "--workers", 2)
    assert code == 2
    assert "give one" in only_the_error(err)
    monkeypatch.setitem(sys.modules, "jaxcond.study.cluster", None)
    code, _, err = call("study", "--force", "--workers", 2)
    assert code == 2
    assert 'install "jaxcond[cluster]"' in only_the_error(err)


FUNCTION = """
import jax, jaxcond as jc
def draw(key, p, q):
    normal = jax.random.normal
    a, b, c = jax.random.split(key, 3)
    return jc.State.from_vectors(normal(a, (p,)), normal(b, (p, q)), normal(c, (q,)))
"""


IMPORTED = """
from pathlib import Path
Path(__file__).with_name("imported").touch()
"""


@pytest.fixture
def of_a_function(tmp_path, monkeypatch):
    """A store, `s.zarr`, and the module that it names, of which `imported` tells."""
    (tmp_path / "of_this_test.py").write_text(IMPORTED + FUNCTION)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(str(tmp_path))
        ensemble = {"kind": "function", "function": "of_this_test:draw", "width": 3}
        made(tmp_path / "s.zarr", [drawn(9)], ensemble=ensemble)
    imported = tmp_path / "imported"

    def forget():
        # Found by a command, not by what an earlier one has imported.
        sys.modules.pop("of_this_test", None)
        sys.path[:] = [folder for folder in sys.path if folder != str(tmp_path)]
        imported.unlink(missing_ok=True)

    forget()
    yield imported, forget
    forget()


READING = [
    ("summary",),
    ("info",),
    ("info", "--verify"),
    ("plot",),
    ("plot", "--kind", "convergence"),
]


@pytest.mark.parametrize("command", READING)
def test_reading_a_store_imports_nothing(call, of_a_function, command):
    imported, _ = of_a_function
    assert call(command[0], "s.zarr", *command[1:])[0] == 0
    assert "of_this_test" not in sys.modules
    assert not imported.exists()
    assert str(imported.parent) not in sys.path


def test_only_a_function_puts_the_working_folder_on_the_path(call, tmp_path, studies):
    made(tmp_path / "s.zarr", [drawn(9)])
    for command in (("study",), ("resume", "s.zarr")):
        assert call(*command, "--quiet")[0] == 0
        assert str(tmp_path) not in sys.path
    (tmp_path / "of_this_test.py").write_text(FUNCTION)
    words = ("--set", "ensemble.kind=function", "--set", "ensemble.function=of_this_test:draw")
    assert call("study", *words, "--quiet", "--force")[0] == 0
    assert str(tmp_path) in sys.path
    sys.modules.pop("of_this_test")


def test_resume_imports_what_it_says(call, of_a_function):
    imported, forget = of_a_function
    code, out, _ = call("resume", "s.zarr")
    assert code == 0
    place = imported.with_name("of_this_test.py")
    assert out.startswith(f"Imports of_this_test:draw from {place}\n")
    assert imported.exists()
    forget()
    # And is its own maker's still, once it has been continued.
    assert call("resume", "s.zarr", "--quiet")[0] == 0


def _another_user(monkeypatch, tmp_path):
    monkeypatch.setenv("JAXCOND_STATE_DIR", str(tmp_path / "of another user"))


def _another_machine(monkeypatch, tmp_path):
    monkeypatch.setattr(socket, "gethostname", lambda: "another")


def _another_module(monkeypatch, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "of_this_test.py").write_text(IMPORTED + FUNCTION)
    monkeypatch.chdir(tmp_path / "elsewhere")


def _another_function(monkeypatch, tmp_path):
    """With a seal that its maker had given for another function."""
    store = open_store(tmp_path / "s.zarr")
    keys = store.study.to_dict()
    keys["ensemble"]["function"] = "of_this_test:other"
    store.describe(configuration=json.dumps(keys))


def _no_seal(monkeypatch, tmp_path):
    open_store(tmp_path / "s.zarr").describe(seal=None)


def _no_key(monkeypatch, tmp_path):
    (tmp_path / "text").write_text("")
    monkeypatch.setenv("JAXCOND_STATE_DIR", str(tmp_path / "text" / "folder"))


@pytest.mark.parametrize(
    "made_by",
    [_another_user, _another_machine, _another_module, _another_function, _no_seal, _no_key],
)
def test_stores_of_others_are_resumed_if_they_are_trusted(
    call, of_a_function, monkeypatch, tmp_path, made_by
):
    made_by(monkeypatch, tmp_path)
    store = tmp_path / "s.zarr"
    code, out, err = call("resume", store)
    assert (code, out) == (1, "")
    assert "give --trust" in only_the_error(err)
    assert "imports of_this_test:" in err
    assert "of_this_test" not in sys.modules
    assert list(tmp_path.rglob("imported")) == []
    code, out, err = call("resume", store, "--trust")
    assert out.startswith("Imports of_this_test:")
    assert len(list(tmp_path.rglob("imported"))) == 1
    if made_by is _another_function:
        assert code == 2
        assert "'of_this_test:other' cannot be imported" in only_the_error(err)
        return
    assert code == 0
    if made_by is not _no_key:  # from then on it is this user's
        assert call("resume", store, "--quiet")[0] == 0


def test_the_python_api_trusts(of_a_function, tmp_path, monkeypatch):
    imported, _ = of_a_function
    monkeypatch.syspath_prepend(str(tmp_path))
    store = open_store(tmp_path / "s.zarr")
    assert not imported.exists()
    run(store.study, tmp_path / "s.zarr")
    assert imported.exists()


def test_a_study_says_what_it_imports_before_it_does(call, tmp_path):
    (tmp_path / "broken_module.py").write_text("raise RuntimeError('broken')")
    settings = ("ensemble.kind=function", "ensemble.function=broken_module:f")
    code, out, err = call("study", *(word for s in settings for word in ("--set", s)))
    assert code == 2
    assert out == f"Imports broken_module:f from {tmp_path / 'broken_module.py'}\n"
    assert "cannot be imported: broken" in only_the_error(err)


# States from a file.


def save_states(path, seed):
    states = gaussian_states(seed, 6, 4, 3)
    np.savez(path, a=states.a, b=states.b, c=states.c)


@pytest.fixture
def of_a_file(call, tmp_path, monkeypatch):
    """A store, `s.zarr`, of the first four of six states, made by a name relative to its folder."""
    save_states("states.npz", 5)
    run(Study(4, ensemble={"kind": "file", "path": "states.npz"}, chunk=4), tmp_path / "s.zarr")
    (tmp_path / "elsewhere").mkdir()
    return tmp_path / "s.zarr"


def test_a_store_is_enough_to_read_it(call, of_a_file, tmp_path, monkeypatch):
    outputs = {}
    for state in ("there", "gone", "others"):
        if state == "gone":
            (tmp_path / "states.npz").rename(tmp_path / "moved.npz")
            monkeypatch.chdir(tmp_path / "elsewhere")
        elif state == "others":
            save_states(tmp_path / "states.npz", 6)
        for command in (*READING, ("summary", "--compare", of_a_file)):
            code, out, _ = call(command[0], of_a_file, *command[1:])
            assert code == 0
            # Relative names were given in one folder, and the other folder has its own figure.
            assert outputs.setdefault(command, out) == out
    assert "width 4 x 3" in outputs[("summary",)]


def test_states_that_have_moved_are_redirected(call, of_a_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert call("resume", of_a_file, "--samples", 5, "--quiet")[0] == 0
    (tmp_path / "states.npz").rename(tmp_path / "moved.npz")
    code, _, err = call("resume", of_a_file, "--samples", 6)
    assert code == 1
    assert f"no longer at {tmp_path / 'states.npz'}: --states" in only_the_error(err)
    code, _, err = call("resume", of_a_file, "--samples", 6, "--states", "no.npz")
    assert (code, only_the_error(err)) == (1, "Error: no.npz: No such file or directory")
    assert call("resume", of_a_file, "--samples", 6, "--states", "../moved.npz", "--quiet")[0] == 0
    whole = run(Study(6, ensemble={"kind": "file", "path": tmp_path / "moved.npz"}, chunk=4))
    found = open_store(of_a_file).dataset().blowup_time
    np.testing.assert_allclose(found, whole.dataset().blowup_time, rtol=1e-12)
    # From now on it knows.
    monkeypatch.chdir(tmp_path)
    assert call("resume", of_a_file, "--quiet")[0] == 0


def test_other_states_are_refused(call, of_a_file, tmp_path):
    save_states("states.npz", 6)
    told = "holds other states than"
    settings = ("samples=4", "chunk=4", "ensemble.kind=file", "ensemble.path=states.npz")
    words = [word for s in settings for word in ("--set", s)]
    for command in (
        ("resume", of_a_file),
        ("resume", of_a_file, "--samples", 5),
        ("resume", of_a_file, "--repair"),
        ("resume", of_a_file, "--states", "states.npz"),
        ("study", *words, "--store", of_a_file),
    ):
        code, _, err = call(*command)
        assert code == 1
        assert told in only_the_error(err)
    with pytest.raises(StoreError, match=told):
        run(open_store(of_a_file).study, of_a_file)
    save_states("states.npz", 5)
    assert call("resume", of_a_file, "--quiet")[0] == 0


def test_states_are_those_of_a_file(call, tmp_path):
    made(tmp_path / "s.zarr", [drawn(9)])
    code, _, err = call("resume", "s.zarr", "--states", "states.npz")
    assert code == 2
    assert "s.zarr is no study of states from a file" in only_the_error(err)


ODD_NAMES = ["[red]figure", "[link=x]", "a b", "x" * 120]


@pytest.mark.parametrize("name", ODD_NAMES)
def test_file_names_are_printed_as_they_are(call, tmp_path, studies, name):
    code, out, _ = call("study", "--out", name + ".png", "--store", name)
    assert code == 0
    assert f"Figure written to {name}.png\n" in out
    assert f"Records in {name}\n" in out
    assert names(tmp_path) == [name + ".png"]
    made(tmp_path / name, [drawn(9)])
    code, out, _ = call("summary", name, "--json", name + ".json", "--csv", name + ".csv",
                        "--compare", name)  # fmt: skip
    assert code == 0
    assert f"Statistics written to {name}.json\n" in out
    assert f"Table written to {name}.csv\n" in out
    assert f"{name} against {name}" in " ".join(out.split())
    code, out, _ = call("plot", name, "--out", name + ".pdf")
    assert (code, out) == (0, f"Figure written to {name}.pdf\n")
    assert f"there is no store {name}-" in only_the_error(call("summary", name + "-")[2])


def test_help_and_version(call):
    code, out, err = call("--help")
    assert (code, err) == (0, "")
    assert all(command in out for command in COMMANDS)
    told = " ".join(call("study", "--help")[1].split())
    assert "tables [ensemble] (kind, width" in told
    assert "[sweep] (width = [50, 100, 200]" in told
    assert "Exit codes" in out
    code, out, err = call("--version")
    assert (code, out.strip(), err) == (0, f"jaxcond {jc.__version__}", "")


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "study",
            "set width samples seed store out force quiet log workers scheduler tls-ca any-version",
        ),
        ("resume", "samples repair quiet log workers scheduler any-version"),
        ("summary", "json csv compare confidence quiet"),
        ("plot", "kind axes out"),
        ("info", "verify"),
        ("phase", "x y num linear aspect scale-a scale-b scale-c out save"),
        ("check", "width samples seed json quiet"),
    ],
)
def test_help_of_every_command(call, command, options):
    code, out, err = call(command, "--help")
    assert (code, err) == (0, "")
    for option in options.split():
        assert f"--{option}" in out
    assert "Exit codes" in out


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
        (("--width", "1e19"), "Key `ensemble.width` must be a whole number between 1 and"),
        (("--set", "ensemble=3", "--width", "5"), "--width: `ensemble` is not a table"),
        (("--set", "sweep.width=[1,2]", "--width", "5"), "stands in both `ensemble` and `sweep`"),
        (("--samples=-1",), "Key `samples` must be a whole number between 1 and"),
        (("--samples", "0"), "Key `samples` must be a whole number between 1 and"),
        (("--samples", "nan"), "Key `samples` must be a whole number"),
        (("--samples", "many"), "Key `samples` must be a whole number"),
        (("--samples", ""), "Key `samples` must be a whole number"),
        (("--seed=-1",), "Key `seed` must be a whole number between 0 and"),
        (("--seed", str(2**63)), "Key `seed` must be a whole number between 0 and"),
        (("--seed", "1.5"), "Key `seed` must be a whole number"),
        (("--set", "samples"), "--set takes KEY=VALUE, not 'samples'"),
        (("--set", "=3"), "--set takes KEY=VALUE, not '=3'"),
        (("--set", "ensemble.width.x=3"), "Key `ensemble.width` must be a whole number"),
        (("--set", "seed=1", "--set", "seed.x=3"), "--set seed.x: `seed` is not a table"),
        (("--set",), "--set: expected one argument"),
        (("--workers", "x"), "--workers: invalid int value: 'x'"),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        (("file.toml", "extra"), "unrecognized arguments: extra"),
        (("--out", "figure.doc"), "Figures cannot be written as .doc; known are"),
        (("--store", "x.png", "--out", "./x.png"), "--store and --out name the same file, x.png"),
    ],
)
def test_wrong_arguments_give_one_line_and_exit_code_2(
    call, tmp_path, refusing, arguments, message
):
    code, out, err = call("study", *arguments)
    assert (code, out) == (2, "")
    assert message in only_the_error(err)
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("colour", "1", "Key `colour` is not known; known are chunk, combine"),
        (
            "ensemble.colour",
            "1",
            "Key `ensemble.colour` is not known; known are activation, aspect",
        ),
        ("sweep.colour", "[1]", "Key `sweep.colour` is not known; known are aspect"),
        ("ensemble", "3", "Key `ensemble` must be a table, but is 3"),
        ("sweep", "[3]", "Key `sweep` must be a table, but is [3]"),
        ("samples", "nan", "Key `samples` must be a whole number"),
        ("chunk", "0", "Key `chunk` must be a whole number between 1"),
        ("rtol", "1e-20", "Argument `rtol` must lie between"),
        ("rtol", "nan", "Key `rtol` must be a finite number above 0"),
        ("precision", '"float16"', "Key `precision` must be one of float64, float32"),
        ("combine", '"all"', "Key `combine` must be one of product, zip"),
        ("fractions", "[0.5, 1.5]", "Key `fractions` must be a list of numbers between 0 and 1"),
        ("observables", '["colour"]', "Key `observables` must be one of energy, norms"),
        ("standard_error", "-1", "Key `standard_error` must be a finite number above 0"),
        ("ensemble.kind", '"cauchy"', "Key `ensemble.kind` must be one of gaussian, uniform"),
        ("ensemble.scales", "[1, 2]", "Key `ensemble.scales` must be three numbers"),
        ("ensemble.scales", "[1, nan, 2]", "Key `ensemble.scales` must be a finite number"),
        ("ensemble.scale", "-1", "Key `ensemble.scale` must be a finite number of at least 0"),
        ("ensemble.p", "3", "Key `ensemble.q` is missing"),
        ("ensemble.rank", "3", "Key `ensemble.rank` is not one that a gaussian ensemble takes"),
        ("sweep.width", "[]", "Key `sweep.width` is empty"),
        ("sweep.width", "[5, 5]", "Key `sweep.width` holds a value twice"),
        ("sweep.width", "{start = 1, stop = 3}", "Key `sweep.width.num` is missing"),
        ("sweep.scale", "[inf]", "Key `sweep.scale` must be a finite number"),
    ],
)
def test_wrong_keys_in_a_file_and_on_the_command_line(
    call, tmp_path, refusing, key, value, message
):
    found = [call("study", "--set", f"{key}={value}")]
    (tmp_path / "file.toml").write_text(f"{key} = {value}")
    found.append(call("study", "file.toml"))
    for code, out, err in found:
        assert (code, out) == (2, "")
        assert message in only_the_error(err)
    assert names(tmp_path) == ["file.toml"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (("sampling=sobol", "ensemble.kind=uniform"), "Key `sampling` can be 'sobol' for the"),
        (("sampling=sobol", "relative_error=0.1"), "Key `sampling`: a 'sobol' study cannot end"),
        (("sampling=sobol", "samples=9"), "at least twice the 16 replicates"),
        (("observables=[entries]", "ensemble.kind=balanced"), "Key `observables`: `entries` are"),
        (("observables=[entries,counts]",), "Key `observables`: `entries` are"),
        (("observables=[counts]", "ensemble.reduced=true"), "Key `ensemble.reduced` cannot be"),
        (("ensemble.kind=uniform", "ensemble.reduced=true"), "the uniform ensemble has no"),
        (("ensemble.scale=1", "ensemble.scales=[1,1,1]"), "cannot be given together"),
        (("ensemble.width=3", "ensemble.p=3"), "`p` and `q` cannot be given as well"),
        (("combine=zip", "sweep.width=[1,2]", "sweep.scale=[1]"), "zipped axes differ in length"),
        (("ensemble.kind=function", "ensemble.function=no:f"), "'no:f' cannot be imported"),
        (("ensemble.kind=file", "ensemble.path=a", "sweep.width=[1]"), "are not swept"),
    ],
)
def test_what_does_not_go_together(call, refusing, settings, message):
    code, out, err = call("study", *(word for s in settings for word in ("--set", s)))
    assert (code, out) == (2, "")
    assert message in only_the_error(err)


def test_files_that_are_no_configuration(call, tmp_path, refusing):
    code, _, err = call("study", "nowhere.toml")
    assert code == 1
    assert only_the_error(err) == "Error: nowhere.toml: No such file or directory"
    code, _, err = call("study", ".")
    assert code == 1
    assert only_the_error(err) == "Error: .: Is a directory"
    (tmp_path / "file.toml").write_text("samples = ")
    code, _, err = call("study", "file.toml")
    assert code == 2
    assert "file.toml is not a TOML file" in only_the_error(err)
    (tmp_path / "file.toml").write_bytes(b"\xff\xfe\x00")
    assert call("study", "file.toml")[0] == 2
    code, _, err = call("study", "--set", "ensemble.kind=file", "--set", "ensemble.path=no.npz")
    assert code == 1
    assert only_the_error(err) == "Error: no.npz: No such file or directory"


@pytest.mark.parametrize("arguments", [(), ("nonsense",)])
def test_a_command_is_needed(call, arguments):
    code, out, err = call(*arguments)
    assert (code, out) == (2, "")
    assert "COMMAND" in only_the_error(err) or "nonsense" in err


@pytest.mark.parametrize(
    "command",
    [
        ("study", "--out"),
        ("summary", "s.zarr", "--json"),
        ("summary", "s.zarr", "--csv"),
        ("plot", "s.zarr", "--out"),
        ("phase", "--out"),
        ("phase", "--save"),
    ],
)
def test_files_that_cannot_be_written_are_found_before_the_work(
    call, tmp_path, refusing, monkeypatch, command
):
    made(tmp_path / "s.zarr", [drawn(9)])
    monkeypatch.setattr(jc.study, "open_store", lambda _: pytest.fail("work was begun"))
    (tmp_path / "folder.png").mkdir()
    code, out, err = call(*command, "folder.png")
    assert (code, out) == (1, "")
    assert "cannot write folder.png: it is a folder" in only_the_error(err)
    code, out, err = call(*command, "no/such/file.png")
    assert (code, out) == (1, "")
    assert "cannot write no/such/file.png: there is no folder no/such" in only_the_error(err)
    # What permissions say does not depend on who runs the tests.
    monkeypatch.setattr(os, "access", lambda path, _: "file" not in str(path))
    (tmp_path / "file.png").touch()
    code, out, err = call(*command, "file.png")
    assert (code, out) == (1, "")
    assert "cannot write file.png: permission denied" in only_the_error(err)
    assert names(tmp_path) == ["file.png", "folder.png", "s.zarr"]


def test_a_store_that_cannot_be_written_is_found_before_the_work(
    call, tmp_path, refusing, monkeypatch
):
    code, out, err = call("study", "--store", "no/such/store")
    assert (code, out) == (1, "")
    assert "cannot write no/such/store: there is no folder" in only_the_error(err)
    monkeypatch.setattr(os, "access", lambda path, _: str(path) != str(tmp_path))
    code, out, err = call("study", "--store", "store", "--out", str(tmp_path.parent / "x.png"))
    assert (code, out) == (1, "")
    assert "cannot write store: permission denied" in only_the_error(err)
    assert names(tmp_path) == []


def test_options_may_not_name_one_file(call, tmp_path):
    made(tmp_path / "s.zarr", [drawn(9)])
    for command, told in (
        (("summary", "s.zarr", "--json", "a", "--csv", "./a"), "--json and --csv name the same"),
        (("phase", "--out", "a.png", "--save", "./a.png"), "--out and --save name the same"),
    ):
        code, out, err = call(*command)
        assert (code, out) == (2, "")
        assert told in only_the_error(err)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (OSError(errno.ENOSPC, "No space left", "x.png"), "Error: x.png: No space left"),
        (MemoryError(), "MemoryError"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED:\nno memory"), "EXHAUSTED: no memory"),
    ],
)
def test_failures_give_one_line_and_exit_code_1(
    call, tmp_path, studies, monkeypatch, error, message
):
    def fail(*_):
        raise error

    monkeypatch.setattr(plotting, "distributions", fail)
    code, _, err = call("study", "--quiet")
    assert code == 1
    assert message in only_the_error(err)
    assert names(tmp_path) == []


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_leaves_nothing_half_written(call, tmp_path, monkeypatch):
    made(tmp_path / "s.zarr", [drawn(9)])
    files = ("a.json", "a.csv", "a.png")
    for name in files:
        (tmp_path / name).write_text("earlier")
    monkeypatch.setattr(_summary.json, "dumps", full_disk)
    monkeypatch.setattr(_summary.csv, "DictWriter", full_disk)
    monkeypatch.setattr(Figure, "savefig", full_disk)
    for command in (
        ("summary", "s.zarr", "--json", "a.json"),
        ("summary", "s.zarr", "--csv", "a.csv"),
        ("plot", "s.zarr", "--out", "a.png"),
    ):
        code, _, err = call(*command)
        assert code == 1
        assert "No space left on device" in only_the_error(err)
    assert names(tmp_path) == sorted([*files, "s.zarr"])
    assert {(tmp_path / name).read_text() for name in files} == {"earlier"}


# Interrupts.


def raising(error):
    def fail(*_, **__):
        raise error

    return fail


def test_an_interrupt_says_what_was_kept(call, tmp_path, monkeypatch):
    for raised in (KeyboardInterrupt, Interrupted):
        monkeypatch.setattr(jc.study, "run_study", raising(raised))
        code, _, err = call("study", "--quiet")
        assert code == 130
        told = only_the_error(err)
        assert told == "Error: interrupted; nothing was kept: no --store"
        # Before there is a store there is nothing to go on with.
        code, _, err = call("study", "--quiet", "--store", "a b.zarr")
        assert code == 130
        assert only_the_error(err) == "Error: interrupted; nothing was written"
    made(tmp_path / "a b.zarr", [drawn(9)])
    for raised in (KeyboardInterrupt, Interrupted):
        monkeypatch.setattr(jc.study, "run_study", raising(raised))
        for command in (("study", "--store"), ("resume",)):
            code, _, err = call(*command, "a b.zarr", "--quiet")
            assert code == 130
            told = only_the_error(err)
            assert told == "Error: interrupted; go on with `jaxcond resume 'a b.zarr'`"
    assert names(tmp_path) == ["a b.zarr"]


def test_an_interrupt_after_the_run_says_that_the_records_are_there(
    call, tmp_path, monkeypatch, studies
):
    made(tmp_path / "s.zarr", [drawn(9)])
    monkeypatch.setattr(jc.study, "summarise", raising(KeyboardInterrupt))
    code, _, err = call("study", "--quiet", "--store", "s.zarr")
    assert code == 130
    assert "go on with `jaxcond resume s.zarr`" in only_the_error(err)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_a_long_run_and_resume_completes_it(call, tmp_path, number):
    # Says when a chunk is done, and gives the signal time to come before the next ones.
    script = """
import sys, time
import jaxcond.cli, jaxcond.study

def finished(self, task, tally):
    print("at work", flush=True)
    time.sleep(0.2)

jaxcond.study.Watcher.finished = finished
jaxcond.cli.console()
"""
    more = 16 * CHUNK
    options = [*SMALL, "--samples", more, "--store", "s.zarr", "--quiet"]
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, options)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout.readline() == "at work\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert only_the_error(err).endswith("interrupted; go on with `jaxcond resume s.zarr`")
    done = int(open_store(tmp_path / "s.zarr").finished().sum())
    assert 0 < done < more
    code, out, _ = call("summary", "s.zarr")
    assert code == 0
    assert "The study is not complete." in out
    assert f"{done} samples" in out
    code, out, _ = call("resume", "s.zarr")
    assert code == 0
    assert "not complete" not in out
    expected = run(dataclasses.replace(CONFIGURED, samples=more))
    same_records(open_store(tmp_path / "s.zarr"), expected)


# Resumed studies.


@pytest.fixture
def kept(tmp_path, result):
    """The study of the command line with its records on disk."""
    store = create(CONFIGURED, tmp_path / "s.zarr", CHUNK, {"10x10": ("series",)})
    for chunk, count in enumerate(result.finished()[0]):
        task = Task(0, chunk, chunk * CHUNK, chunk * CHUNK + int(count))
        values = {f.name: result.read(f.name, 0, chunk, int(count)) for f in fields_of(CONFIGURED)}
        store.mark(task, store.write(task, values))
    store.describe(complete=True)
    return tmp_path / "s.zarr"


def test_resume_extends_a_study(call, kept, unchecked):
    more = NUM_SAMPLES + CHUNK
    code, out, err = call("resume", "s.zarr", "--samples", more)
    assert code == 0
    assert "320 of 320" in err
    assert "320 samples" in out
    store = open_store(kept)
    assert store.study.samples == more
    expected = run(dataclasses.replace(CONFIGURED, samples=more))
    same_records(store, expected)
    code, _, err = call("resume", "s.zarr", "--samples", 10)
    assert code == 1
    assert "s.zarr has 320 samples at each point" in only_the_error(err)
    for samples in ("0", "nan", "x"):
        code, _, err = call("resume", "s.zarr", "--samples", samples)
        assert code == 2
        assert "Key `samples` must be a whole number" in only_the_error(err)


def test_damage_is_found_and_repaired(call, kept, result):
    (file,) = [path for path in (kept / "blowup_time").rglob("2") if path.is_file()]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for command in (("summary", "s.zarr"), ("plot", "s.zarr"), ("resume", "s.zarr")):
        code, _, err = call(*command)
        assert code == 1
        told = only_the_error(err)
        assert "variable `blowup_time` is damaged at samples 128 to 191" in told
        assert "`jaxcond resume --repair s.zarr`" in told
    code, out, _ = call("info", "s.zarr", "--verify")
    assert code == 1
    assert "variable `blowup_time` is damaged at samples 128 to 191" in out
    assert "3 chunks can be read, 1 not." in out
    assert call("resume", "s.zarr", "--repair", "--quiet")[0] == 0
    code, out, _ = call("info", "s.zarr", "--verify")
    assert code == 0
    assert "4 chunks can be read, 0 not." in out
    same_records(open_store(kept), result)


def test_a_damaged_coordinate_is_found(call, tmp_path):
    made(tmp_path / "s.zarr", [drawn(9), drawn(9)], sweep={"width": [10, 20]})
    (file,) = [path for path in (tmp_path / "s.zarr" / "width" / "c").rglob("*") if path.is_file()]
    file.write_bytes(b"nonsense")
    code, _, err = call("info", "s.zarr", "--verify")
    assert code == 1
    assert "coordinate `width` is damaged" in the_error(err)


def test_stores_that_are_none(call, tmp_path):
    (tmp_path / "file").write_text("text")
    (tmp_path / "folder").mkdir()
    for name, message in (
        ("nowhere", "there is no store nowhere"),
        ("file", "file is a file, and a store is a folder"),
        ("folder", "folder is no Zarr store"),
    ):
        for command in ("resume", "summary", "plot", "info"):
            code, out, err = call(command, name)
            assert (code, out) == (1, "")
            assert message in only_the_error(err)
        code, _, err = call("summary", name, "--compare", name)
        assert code == 1
        if name != "nowhere":
            code, out, err = call("study", "--store", name)
            assert (code, out) == (1, "")
            assert message in only_the_error(err)
    assert names(tmp_path) == ["file", "folder"]


def test_a_store_of_another_study_is_refused(call, kept):
    code, _, err = call(*SMALL, "--store", "s.zarr", "--seed", 8)
    assert code == 1
    assert "s.zarr holds another study: `seed` is 7 in the store and 8 here" in only_the_error(err)
    code, _, err = call(*SMALL, "--store", "s.zarr", "--set", "chunk=32")
    assert code == 1
    assert "s.zarr is cut into chunks of 64, not 32" in only_the_error(err)


def test_a_store_that_is_in_use_is_refused(call, kept):
    with locked(kept):
        for command in (("resume", "s.zarr"), (*SMALL, "--store", "s.zarr")):
            code, out, err = call(*command)
            assert (code, out) == (1, "")
            assert "another process is working on" in only_the_error(err)
        # Reading goes on.
        assert call("summary", "s.zarr")[0] == 0
    assert call("resume", "s.zarr", "--quiet")[0] == 0


def test_a_store_of_other_versions_is_refused_unless_allowed(call, kept):
    store = open_store(kept)
    versions = json.loads(store.group.attrs["versions"]) | {"jax": "0.0.1"}
    store.describe(versions=json.dumps(versions))
    code, _, err = call("resume", "s.zarr")
    assert code == 1
    told = only_the_error(err)
    assert f"jax 0.0.1 there and {jax.__version__} here" in told
    assert "--any-version" in told
    assert call("resume", "s.zarr", "--any-version", "--quiet")[0] == 0
    assert f"jax 0.0.1 (here {jax.__version__})" in " ".join(call("info", "s.zarr")[1].split())


# Summaries.


def test_a_summary_is_that_of_the_api(call, tmp_path):
    times = [drawn(100, 0), drawn(100, 1, 0.7), drawn(100, 2, 0.5)]
    store = made(tmp_path / "s.zarr", times, sweep={"width": [100, 200, 400]})
    code, out, err = call("summary", "s.zarr", "--json", "a.json", "--csv", "a.csv")
    assert (code, err) == (0, "")
    summary = summarise(store)
    assert strictly(tmp_path / "a.json") == summary.to_dict()
    with open(tmp_path / "a.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["width"] for row in rows] == ["100", "200", "400"]
    for row, expected in zip(rows, summary.rows(), strict=True):
        assert {name: str(value) for name, value in expected.items()} == row
        assert float(row["mean"]) == expected["mean"]
    for point, t in zip(summary.points, times, strict=True):
        line = next(line for line in out.splitlines() if re.match(rf" *{point.q} ", line))
        cells = line.split()
        assert cells[:2] == [str(point.q), "100"]
        assert float(cells[2]) == pytest.approx(t.mean(), rel=1e-2)
        assert float(cells[4]) == float(f"{t.std(ddof=1) / 10:.1g}")
        assert float(cells[5]) == pytest.approx(t.std(ddof=1), rel=1e-2)
        assert float(cells[6]) == pytest.approx(math.sqrt(point.q) * t.mean(), rel=1e-2)
        assert cells[7:] == ["–", "0"]
    (((_, scaling),),) = (summary.scalings,)
    told = re.search(r"limit of √q·T\* +([\d.e-]+) ± ([\d.e-]+)", out)
    assert float(told[1]) == pytest.approx(scaling.limit.value, rel=1e-1)
    assert float(told[2]) == float(f"{scaling.limit.error:.1g}")
    code, out, err = call("summary", "s.zarr", "--quiet")
    assert (code, out, err) == (0, "", "")


def test_the_confidence_is_that_of_all_intervals(call, tmp_path):
    store = made(tmp_path / "s.zarr", [drawn(100)])
    code, out, _ = call("summary", "s.zarr", "--confidence", "0.8", "--json", "a.json")
    assert code == 0
    assert "quantile 50.0% (80% interval)" in out
    assert strictly(tmp_path / "a.json") == summarise(store, confidence=0.8).to_dict()
    for level in ("0", "1", "nan", "-1"):
        code, out, err = call("summary", "s.zarr", f"--confidence={level}")
        assert (code, out) == (2, "")
        assert "--confidence must be between 0 and 1" in only_the_error(err)


def test_numbers_are_not_cut_where_the_console_is_narrow(call, tmp_path, monkeypatch):
    made(tmp_path / "s.zarr", [drawn(100), drawn(100)], sweep={"width": [100, 200]})
    wide = call("summary", "s.zarr", "--compare", "s.zarr")[1]
    monkeypatch.setenv("COLUMNS", "40")
    narrow = call("summary", "s.zarr", "--compare", "s.zarr")[1]
    assert "…" not in narrow
    rows = [[line.split() for line in text.splitlines() if line.strip()[:4] in ("100 ", "200 ")]
            for text in (wide, narrow)]  # fmt: skip
    assert rows[0] == rows[1]
    assert len(rows[0]) == 2


def test_a_summary_of_nothing_finished(call, tmp_path):
    made(tmp_path / "s.zarr", [drawn(100)], finished=0)
    code, out, _ = call("summary", "s.zarr", "--json", "a.json", "--csv", "a.csv")
    assert code == 0
    assert "The study is not complete." in out
    assert "nan" not in out
    assert strictly(tmp_path / "a.json")["points"][0]["mean"] is None
    code, _, err = call("plot", "s.zarr")
    assert code == 2
    assert "No sample has a finite blow-up time" in only_the_error(err)


def test_a_single_point_is_told_by_its_kind(call, tmp_path):
    made(tmp_path / "s.zarr", [drawn(9)], ensemble={}, sweep={"kind": ["orthogonal"]})
    assert "Blow-up time T*, orthogonal, width 200 x 200, 9 samples" in call("summary", "s.zarr")[1]


def test_two_studies_compared(call, tmp_path):
    one, two = drawn(100, 0), drawn(150, 1, 1.01)
    made(tmp_path / "a.zarr", [one])
    made(tmp_path / "b.zarr", [two])
    code, out, _ = call("summary", "a.zarr", "--compare", "b.zarr", "--quiet")
    assert code == 0
    (row,) = [line.split() for line in out.splitlines() if line.strip().startswith("all ")]
    assert float(row[1]) == pytest.approx(one.mean() - two.mean(), rel=0.1)
    welch = stats.ttest_ind(one, two, equal_var=False)
    interval = welch.confidence_interval(0.95)
    assert float(row[2].rstrip(",")) == pytest.approx(interval.low, rel=0.1)
    assert float(row[3]) == pytest.approx(interval.high, rel=0.1)
    assert row[4] == f"{welch.pvalue:.3g}"
    assert row[5] == f"{one.var(ddof=1) / two.var(ddof=1):.4g}"
    ks = stats.ks_2samp(one, two)
    assert row[8:] == [f"{ks.statistic:.4g}", f"{ks.pvalue:.3g}"]


def test_studies_that_cannot_be_compared(call, tmp_path):
    made(tmp_path / "a.zarr", [drawn(9), drawn(9)], sweep={"width": [10, 20]})
    made(tmp_path / "b.zarr", [drawn(9), drawn(9)], sweep={"width": [10, 30]})
    made(tmp_path / "c.zarr", [drawn(9), np.full(9, np.inf)], sweep={"width": [10, 20]})
    code, out, err = call("summary", "a.zarr", "--compare", "b.zarr", "--json", "a.json")
    assert (code, out) == (2, "")
    assert "a.zarr and b.zarr have different sweep points" in only_the_error(err)
    code, out, err = call("summary", "a.zarr", "--compare", "nowhere")
    assert (code, out) == (1, "")
    assert "there is no store nowhere" in only_the_error(err)
    # A point without samples is passed over.
    code, out, err = call("summary", "a.zarr", "--compare", "c.zarr", "--quiet")
    assert (code, err) == (0, "")
    rows = [line.split() for line in out.splitlines() if line.strip().startswith("width=")]
    assert rows[1] == ["width=20", *["–"] * 7]
    assert rows[0][1] == "0"


def test_info_tells_configuration_and_progress(call, tmp_path):
    store = made(tmp_path / "s.zarr", [drawn(200)], finished=CHUNK)
    code, out, err = call("info", "s.zarr")
    assert (code, err) == (0, "")
    told = " ".join(out.split())
    for text in (
        "samples 64 of 200 (32.00%)",
        "complete no",
        "points 1",
        "chunk 64 samples",
        "drawn in exact reduced form",
        f"jax {jax.__version__},",
    ):
        assert text in told
    assert store.study.digest()[:30] in out
    found = re.search(r"configuration (\{.*?\}) hash", told)
    assert json.loads(found[1]) == store.study.to_dict()
    code, out, _ = call("info", "s.zarr", "--verify")
    assert code == 0
    assert "1 chunks can be read, 0 not." in out


# Figures.


def test_every_kind_of_figure_is_drawn(call, tmp_path):
    sweep = {"width": [10, 20], "scale": [1.0, 2.0]}
    made(tmp_path / "s.zarr", [drawn(30, seed) for seed in range(4)], sweep=sweep)
    for kind in ("distribution", "scaling", "convergence", "phase"):
        code, out, err = call("plot", "s.zarr", "--kind", kind)
        assert (code, out, err) == (0, f"Figure written to s_{kind}.png\n", "")
        assert (tmp_path / f"s_{kind}.png").read_bytes().startswith(PNG)
    code, _, _ = call("plot", "s.zarr", "--kind", "phase", "--axes", "scale", "width", "--out",
                      "map.svg")  # fmt: skip
    assert code == 0
    assert "<svg" in (tmp_path / "map.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--kind", "scaling"), "needs a sweep over at least two widths"),
        (("--kind", "phase"), "A phase map needs a sweep over two axes"),
        (("--kind", "phase", "--axes", "scale", "width"), "width is not one of this sweep"),
        (("--kind", "phase", "--axes", "scale", "scale"), "two different axes"),
        (("--kind", "phase", "--axes", "scale"), "--axes: expected 2 arguments"),
        (("--axes", "scale", "width"), "--axes requires --kind phase"),
        (("--kind", "pie"), "--kind: invalid choice: 'pie'"),
        (("--out", "figure.doc"), "Figures cannot be written as .doc"),
    ],
)
def test_figures_that_cannot_be_drawn(call, tmp_path, arguments, message):
    made(tmp_path / "s.zarr", [drawn(9), drawn(9)], sweep={"scale": [1.0, 2.0]})
    code, out, err = call("plot", "s.zarr", *arguments)
    assert (code, out) == (2, "")
    assert message in only_the_error(err)
    assert names(tmp_path) == ["s.zarr"]


def test_a_phase_map_without_samples(call, tmp_path):
    code, out, err = call("phase", "--x", "scale_b", "0.8", "1.2", "--y", "aspect", "0.9", "1.1",
                          "--num", 3, "--scale-a", "1.1", "--save", "map.npz")  # fmt: skip
    assert (code, err) == (0, "")
    assert "9 of 9 values found, figure written to phase.png" in out
    assert "Values written to map.npz" in out
    assert names(tmp_path) == ["map.npz", "phase.png"]
    assert (tmp_path / "phase.png").read_bytes().startswith(PNG)
    x, y = np.geomspace(0.8, 1.2, 3), np.geomspace(0.9, 1.1, 3)
    with np.load(tmp_path / "map.npz") as found:
        np.testing.assert_allclose(found["scale_b"], x)
        np.testing.assert_allclose(found["aspect"], y)
        expected = jc.infinite_width_times(aspect=y[:, None], scale_a=1.1, scale_b=x[None, :])
        np.testing.assert_allclose(found["time"], expected.time, rtol=1e-12)


def test_a_phase_map_with_values_that_are_not_known(call, tmp_path, monkeypatch):
    times = jc.infinite_width_times

    def find(**axes):
        found = times(**axes)
        status = found.status.at[1, 2].set(Status.NOT_CONVERGED)
        return eqx.tree_at(lambda f: f.status, found, status)

    monkeypatch.setattr(jc.sampling, "infinite_width_times", find)
    code, out, _ = call("phase", "--x", "scale_b", "0.8", "1.2", "--y", "aspect", "0.9", "1.1",
                        "--linear", "--num", 3, "--save", "map.npz")  # fmt: skip
    assert code == 3
    assert "8 of 9 values found" in out
    with np.load(tmp_path / "map.npz") as found:
        np.testing.assert_allclose(found["scale_b"], [0.8, 1.0, 1.2])
        assert np.argwhere(np.isnan(found["time"])).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--num", "1"), "--num must be at least 2, but is 1"),
        (("--num", "x"), "--num: invalid int value: 'x'"),
        (("--x", "width", "1", "2"), "--x takes one of aspect, scale_a, scale_b, scale_c, not"),
        (("--x", "scale_a", "one", "2"), "--x takes a name and two numbers, not 'one 2'"),
        (("--x", "scale_a", "2", "1"), "--x needs a range of growing, positive, finite numbers"),
        (("--y", "scale_a", "0", "1"), "--y needs a range of growing, positive, finite numbers"),
        (("--y", "scale_a", "nan", "1"), "--y needs a range of growing"),
        (("--linear", "--y", "scale_a", "-1", "1"), "--y needs a range of growing, finite numbers"),
        (("--linear", "--y", "aspect", "0", "1"), "--y needs a range of growing, positive"),
        (("--x", "aspect", "1", "2"), "--x and --y name the same axis, aspect"),
        (("--scale-a=-1",), "Argument `scale_a` must be finite and not negative"),
        (("--scale-a", "nan"), "Argument `scale_a` must be finite and not negative"),
        (("--out", "x.doc"), "Figures cannot be written as .doc"),
    ],
)
def test_wrong_arguments_of_the_phase_map(call, tmp_path, arguments, message):
    code, out, err = call("phase", *arguments)
    assert (code, out) == (2, "")
    assert message in only_the_error(err)
    assert names(tmp_path) == []


# Checks.


@pytest.fixture
def verdicts(monkeypatch):
    """Statements are not checked: all of them hold but those whose names are put in here."""
    failing, asked = {}, []

    def run(width, samples, seed, *, progress):
        asked.append((width, samples, seed, jax.config.jax_enable_x64))
        found = []
        for statement in STATEMENTS:
            progress(statement.name)
            expected = 1.0 if statement.refuted else 0.5 * statement.limit
            worst = failing.get(statement.name, expected)
            tested = 0 if worst != worst else samples
            holds = statement.refuted if worst > statement.limit else worst <= statement.limit
            found.append(
                Verdict(
                    statement=statement,
                    worst=worst,
                    num_tested=tested,
                    holds=holds,
                    ensemble=statement.on[0] if tested else None,
                    sample=1 if tested else -1,
                )
            )
        return found

    monkeypatch.setattr(jc.checks, "run_checks", run)
    return failing, asked


@pytest.fixture
def wide(call, monkeypatch):
    """The command line where every row of the table has a line of its own."""
    monkeypatch.setattr(_check.out, "_width", 220)
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
def test_the_statements_hold(call, tmp_path, monkeypatch):
    # All of them have tests of their own.
    some = STATEMENTS[:4]
    for module in (checks_run, jc.checks):
        monkeypatch.setattr(module, "STATEMENTS", some)
    code, out, err = call(
        "check", "--width", "3", "--samples", "2", "--quiet", "--json", "found.json"
    )
    assert (code, err) == (0, "")
    assert "4 of 4 statements hold; 0 refuted, as expected." in out
    assert "Table written to found.json" in out
    assert [path.name for path in tmp_path.iterdir()] == ["found.json"]
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["width"], found["samples"], found["seed"]) == (3, 2, 0)
    for row, statement in zip(found["statements"], some, strict=True):
        assert row["statement"] == statement.name
        assert row["proven"] == statement.proven
        assert row["observed"] == statement.observed
        assert row["ensembles"] == list(statement.on)
        assert row["counter_example"] is None
        assert row["holds"] is True
        assert row["worst"] <= row["limit"] == statement.limit
        # Two of the square ensemble and one of each other.
        assert 0 < row["samples"] <= 5
        assert row["refuted"] is False


def test_a_table_of_all_statements(wide, tmp_path, verdicts):
    code, out, err = wide("check")
    assert code == 0
    assert f"{len(STATEMENTS)}/{len(STATEMENTS) + 1}" in err
    assert set(the_table(out)) == {statement.name for statement in STATEMENTS}
    assert "FAILS" not in out
    assert "Width 16, 128 samples, seed 0" in out
    refuted = [statement.name for statement in STATEMENTS if statement.refuted]
    assert [row for row, line in the_table(out).items() if "refuted" in line] == refuted
    assert f"Counter-example to {refuted[0]}: sample 1 of the ensemble 'rank 1' of" in out
    assert "of initial_states(16, 128, 0)." in out
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
    assert f"{len(STATEMENTS) - 2} of {len(STATEMENTS)} statements hold; 1 refuted" in out
    word = "NOT TESTED" if worst != worst else "FAILS"
    assert [row for row, line in the_table(out).items() if word in line] == [name]
    assert (f"Counter-example to {name}: sample 1" in out) == (worst == worst)
    # Strict JSON, which knows neither infinity nor NaN.
    text = (tmp_path / "found.json").read_text()
    found = json.loads(text, parse_constant=lambda constant: pytest.fail(constant))
    row = found["statements"][3]
    assert (row["statement"], row["holds"]) == (name, False)
    assert float(row["worst"]) == pytest.approx(worst, nan_ok=True)
    assert sum(not row["holds"] for row in found["statements"]) == 1
    refuted = next(row for row in found["statements"] if row["refuted"])["counter_example"]
    assert (refuted["ensemble"], refuted["sample"]) == ("rank 1", 1)
    state = jc.checks.initial_states(16, 128, 0)["rank 1"]
    np.testing.assert_array_equal(refuted["b"], state.b[1])
    assert (row["counter_example"] is None) == (worst != worst)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--width", "1"), "--width must be at least 2, but is 1"),
        (("--width", "0"), "--width must be at least 2, but is 0"),
        (("--width", "5x4"), "--width: invalid int value: '5x4'"),
        (("--samples", "0"), "--samples must be at least 1, but is 0"),
        (("--samples", "-2"), "--samples must be at least 1, but is -2"),
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

    monkeypatch.setattr(jc.checks, "run_checks", interrupted)
    code, out, err = call("check", "--quiet", "--json", "found.json")
    assert (code, out) == (130, "")
    assert only_the_error(err).endswith("Error: interrupted; nothing was written")
    assert list(tmp_path.iterdir()) == []
