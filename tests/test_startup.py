"""What a fresh process loads, and the cache of compiled programs that commands keep."""

import json
import os
import subprocess
import sys

import pytest

import jaxcond as jc

HEAVY = ("jax", "equinox", "diffrax", "optax", "matplotlib", "xarray", "zarr", "orbax", "scipy")


def python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=True,
    )


def loaded(code):
    """Which of the heavy libraries a fresh process has loaded after some code."""
    tell = f"\nimport sys, json\nprint(json.dumps([m for m in {HEAVY} if m in sys.modules]))"
    return json.loads(python(code + tell).stdout.splitlines()[-1])


def test_the_package_loads_nothing():
    assert loaded("import jaxcond; jaxcond.__version__; dir(jaxcond)") == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["study", "--help"]])
def test_help_loads_nothing(arguments):
    code = f"""
from jaxcond.cli import main
try:
    main({arguments})
except SystemExit as leaving:
    assert leaving.code == 0
"""
    assert loaded(code) == []


def test_blowup_times_load_no_more_than_they_need():
    code = """
import jaxcond as jc, numpy as np
x = np.ones(3)
jc.blowup_time(jc.State.from_vectors(x, np.eye(3), x))
"""
    assert set(loaded(code)) <= {"jax", "equinox", "scipy"}


def test_every_public_name_is_there():
    assert {"State", "blowup_time", "networks", "run_study", "__version__"} <= {
        *dir(jc),
        "__version__",
    }
    for name in dir(jc):
        assert getattr(jc, name) is not None
    for room in ("blowup", "ensembles", "sampling", "indicators", "statistics", "networks"):
        module = getattr(jc, room)
        for name in dir(module):
            assert getattr(module, name) is not None
    with pytest.raises(AttributeError, match="attribute nothing"):
        jc.nothing  # noqa: B018


# The cache.

STUDY = """
from jaxcond.cli import main
main(["study", "--width", "5", "--samples", "20", "--set", "ensemble.kind=low_rank", "--quiet",
      "--out", {}, *{}])
"""


def entries(folder):
    return sorted(path for path in folder.rglob("*-cache"))


def start(figure, *options, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", STUDY.format(repr(str(figure)), options)],
        env=os.environ | environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def ended(process):
    """The exit code and what was told on standard error."""
    told = process.communicate()[1]
    return process.returncode, told


def test_programs_are_kept(tmp_path):
    """By two processes at once, again when entries are damaged, and not where nobody may write."""
    cache = {"JAXCOND_CACHE_DIR": str(tmp_path / "cache")}
    both = [start(tmp_path / f"{i}.png", **cache) for i in range(2)]
    assert [ended(process) for process in both] == [(0, "")] * 2
    kept = entries(tmp_path / "cache")
    assert kept
    for path in kept:
        path.write_bytes(path.read_bytes()[:50])
        # Such as a killed process leaves.
        path.with_name(path.name.replace("-cache", "-atime")).unlink()
        os.utime(path, (0, 0))
    (tmp_path / "file").write_text("")
    impossible = {"JAXCOND_CACHE_DIR": str(tmp_path / "file")}
    unused = {"JAXCOND_CACHE_DIR": str(tmp_path / "none")}
    damaged = start(tmp_path / "again.png", **cache)
    without = start(tmp_path / "without.png", **impossible)
    off = start(tmp_path / "off.png", "--no-cache", **unused)
    assert ended(damaged) == (0, "")
    # None is left as it was; what compiles too fast to be worth a file may be gone.
    again = entries(tmp_path / "cache")
    assert again
    assert all(path.stat().st_size > 50 for path in again)
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "0.png").read_bytes()
    code, told = ended(without)
    assert code == 0
    assert told.startswith("Warning: compiled programs are not kept:")
    assert ended(off) == (0, "")
    assert not (tmp_path / "none").exists()


def test_studies_of_states_do_not_load_what_predicts_escapes():
    code = "from jaxcond.study import Study, run_study, summarise; Study()"
    tell = "\nimport sys\nprint('jaxcond.networks._prediction' in sys.modules)"
    assert python(code + tell).stdout.strip() == "False"
