"""Random configurations: each ends or is refused in one line, within limits of time and memory.

A child process reads the files one by one, so that nothing here can hang: a child that does not
answer in time is killed and replaced.
"""

import json
import math
import os
import random
import select
import subprocess
import sys

import numpy as np
import pytest

# All 500 take some minutes; those of a shorter run are the first of them.
NUM_FILES = int(os.environ.get("JAXCOND_FUZZ_FILES", "100"))
SECONDS, BYTES = 120, 24 << 30

CHILD = """
import json, resource, sys, warnings
resource.setrlimit(resource.RLIMIT_AS, (BYTES, BYTES))
warnings.simplefilter("error")
import jax
from jaxcond.study import Study, run_study, summarise
from jaxcond.study._compute import default_chunk
from jaxcond.study._cost import check_cost

def outcome(path):
    study = Study.from_toml(path)
    if study.samples * len(study.points) > 200:
        check_cost(study, default_chunk(study) if study.chunk is None else study.chunk, None)
        return "allowed"
    summarise(run_study(study))
    return "done"

for line in sys.stdin:
    try:
        found = outcome(line.strip()), ""
    except (ValueError, OSError) as error:
        found = "refused", str(error)
    except BaseException as error:
        found = "failed", repr(error)
    print(json.dumps(found), flush=True)
"""


class Harness:
    """Asks a child about files, and never waits longer than a limit."""

    def __init__(self, code, seconds):
        self._code, self._seconds, self._child = code, seconds, None

    def ask(self, path):
        if self._child is None:
            self._child = subprocess.Popen(
                [sys.executable, "-c", self._code],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        self._child.stdin.write(f"{path}\n".encode())
        self._child.stdin.flush()
        ready, _, _ = select.select([self._child.stdout], [], [], self._seconds)
        answer = self._child.stdout.readline() if ready else b""
        if not answer:
            self.close()
            return ("died" if ready else "hung"), ""
        return tuple(json.loads(answer))

    def close(self):
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            self._child.stdin.close()
            self._child.stdout.close()
            self._child = None


def toml(value):
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, float):
        return str(value) if not math.isnan(value) else "nan"
    return json.dumps(value)


STRANGE = [True, "", "5", "é\n", -1, 0, 2.5, 1e6, 1e308, -0.0, math.nan, math.inf, [], [[]], {},
           10**18, 10**12, 2**63 - 1, [1, "a"], {"start": 1, "stop": 2, "num": 10**6},
           {"start": 1, "stop": 1e300, "num": 3, "spacing": "log"}, [1] * 3]  # fmt: skip
NAMES = ["samples", "seed", "chunk", "rtol", "precision", "combine", "sampling", "replicates",
         "observables", "fractions", "standard_error", "relative_error", "ensemble", "sweep",
         "no_such_key"]  # fmt: skip
INNER = ["kind", "width", "aspect", "p", "q", "scale", "scales", "scale_a", "depth", "rank",
         "noise", "reduced", "function", "path", "data", "std", "exponent", "loss", "learning_rate",
         "fraction", "bias", "activation", "no_such_key"]  # fmt: skip


def a_study(draw, data):
    """A study that is allowed, and small."""
    kind = draw.choice(["gaussian", "uniform", "orthogonal", "balanced", "low_rank", "chain",
                        "escape"])  # fmt: skip
    ensemble = {"kind": kind, "width": draw.choice([2, 3])}
    sweep = {}
    if kind == "escape":
        ensemble |= {"data": data, "learning_rate": 0.05, "std": 0.01, "bias": "none"}
        if draw.random() < 0.5:
            sweep["learning_rate"] = [0.01, 0.1]
            del ensemble["learning_rate"]
    elif kind == "chain":
        sweep["depth"] = draw.sample([2, 3, 4], 2)
    elif draw.random() < 0.5:
        sweep["scale"] = draw.choice([[0.5, 2], {"start": 1, "stop": 4, "num": 3}])
    study = {"samples": draw.randint(1, 6), "seed": draw.randrange(2**63), "ensemble": ensemble}
    if kind == "gaussian":
        more = draw.choice([{}, {"observables": ["entries"]}, {"precision": "float32"},
                            {"sampling": "sobol", "samples": 8, "replicates": 2}])  # fmt: skip
        study |= more
    if draw.random() < 0.2:
        study["relative_error"] = 0.5
    return study | ({"sweep": sweep} if sweep else {})


def configuration(draw, data):
    """The text of a configuration, in most cases spoilt somewhere."""
    study = a_study(draw, data)
    for _ in range(draw.choice([0, 1, 1, 2, 3])):
        place = draw.choice([study, study.get("ensemble"), study.get("sweep")])
        if not isinstance(place, dict):
            continue
        name = draw.choice(NAMES if place is study else INNER)
        if draw.random() < 0.2:
            place.pop(name, None)
        else:
            place[name] = draw.choice(STRANGE)
    text = "\n".join(f"{name} = {toml(value)}" for name, value in study.items())
    if draw.random() < 0.05:
        text = text[: draw.randrange(len(text))]
    return text


@pytest.mark.slow
def test_random_configurations_end_or_are_refused_in_one_line(tmp_path):
    draw = random.Random(20240225)
    data = tmp_path / "data.npz"
    x = np.random.default_rng(0).normal(size=(12, 2))
    np.savez(data, x=x, y=np.sin(x[:, :1]))
    counts, wrong = {}, []
    harness = Harness(CHILD.replace("BYTES", str(BYTES)), SECONDS)
    try:
        for number in range(NUM_FILES):
            path = tmp_path / f"{number}.toml"
            path.write_text(configuration(draw, str(data)))
            found, told = harness.ask(path)
            counts[found] = counts.get(found, 0) + 1
            fine = found in ("done", "allowed") or (
                found == "refused" and told and "\n" not in told and len(told) < 600
            )
            if not fine:
                wrong.append((found, told, path.read_text()))
    finally:
        harness.close()
    print(counts)
    assert not wrong, wrong[:5]
    # The generator reaches both sides.
    assert min(counts["done"], counts["refused"]) > NUM_FILES // 10


def test_the_harness_does_not_wait_for_a_child_that_hangs_or_dies():
    hangs = Harness("import sys, time\nfor line in sys.stdin: time.sleep(1000)", 1)
    assert hangs.ask("a") == ("hung", "")
    assert hangs._child is None
    assert hangs.ask("a") == ("hung", "")
    dies = Harness("import sys\nsys.stdin.readline()\nsys.exit(1)", 60)
    assert dies.ask("a") == ("died", "")
    answers = Harness('import sys\nfor line in sys.stdin: print(\'["done", ""]\', flush=True)', 60)
    assert answers.ask("a") == ("done", "")
    answers.close()


def test_the_child_tells_a_refusal_from_a_failure(tmp_path):
    harness = Harness(CHILD.replace("BYTES", str(BYTES)), SECONDS)
    path = tmp_path / "a.toml"
    try:
        for text, expected in (
            ("samples = 0", "refused"),
            ("samples = 1e9\nchunk = 1", "refused"),
            ("samples = 1e6\nensemble = {width = 1e18, reduced = false}", "refused"),
            ("samples = 1e6", "allowed"),
            ("samples = ", "refused"),
        ):
            path.write_text(text)
            assert harness.ask(path)[0] == expected, text
        assert harness.ask(tmp_path / "\0")[0] == "refused"
    finally:
        harness.close()
