import contextlib
import dataclasses
import json
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import gaussian_states
from jaxtyping import config

import jaxcond as jc
from jaxcond.sampling import Draws
from jaxcond.study import OBSERVABLES, Study, Task, read_toml
from jaxcond.study._compute import _samples, default_chunk, methods_of

FULL = {"kind": "uniform", "width": 4}


@contextlib.contextmanager
def unchecked():
    """Without the checks of types that the tests are run with: the messages are the package's."""
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


def refused(message, **keys):
    with unchecked(), pytest.raises(ValueError, match=re.escape(message)) as caught:
        Study.from_dict(keys)
    told = str(caught.value)
    assert "\n" not in told
    assert len(told) < 400
    return told


@pytest.fixture(scope="module")
def states_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("states") / "states.npz"
    states = gaussian_states(5, 6, 4, 3)
    np.savez(path, a=states.a, b=states.b, c=states.c)
    return path


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that can be imported, and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    written = []

    def write(text):
        name = f"states_of_a_test_{len(written)}"
        written.append(name)
        sys.modules.pop(name, None)
        (tmp_path / f"{name}.py").write_text(text)
        return name

    yield write
    for name in written:
        sys.modules.pop(name, None)


ONES = "import jax.numpy as jnp\ndef ones(key, p, q):\n    return {}\n"


def all_ones(key, p, q):
    return jnp.ones(p), jnp.ones((p, q)), jnp.ones(q)


# Every key: wrong types, and values out of range.

HUGE = pytest.param(-(10**5000), id="huge")
WHOLE = [True, "5", None, 2.5, math.nan, math.inf, [], {}, 1j, 10**400, HUGE]
REAL = [True, "5", math.nan, math.inf, [], {}, 1j, -1.0, 10**400]


@pytest.mark.parametrize("value", [*WHOLE, 0, -1, 2**40 + 1])
def test_samples_are_a_whole_number(value):
    refused("Key `samples` must be a whole number between 1 and", samples=value)


@pytest.mark.parametrize("value", [*WHOLE, -1, 2**63])
def test_seeds_are_whole_numbers_of_63_bits(value):
    refused("Key `seed` must be a whole number between 0 and 9223372036854775807", seed=value)


@pytest.mark.parametrize("value", [v for v in WHOLE if v is not None] + [0, 2**26 + 1])
def test_chunks_are_whole_numbers(value):
    refused("Key `chunk` must be a whole number between 1 and", chunk=value)


@pytest.mark.parametrize("value", [*WHOLE, 1, 1025])
def test_replicates_are_whole_numbers(value):
    refused("Key `replicates` must be a whole number between 2 and 1024", replicates=value)


@pytest.mark.parametrize("name", ["standard_error", "relative_error", "rtol"])
@pytest.mark.parametrize("value", [*REAL, 0.0])
def test_tolerances_are_positive_numbers(name, value):
    refused(f"Key `{name}` must be a finite number above 0", **{name: value})


@pytest.mark.parametrize("name", ["combine", "sampling", "precision"])
@pytest.mark.parametrize("value", ["no", 1, None, [], {}, ["zip"]])
def test_words_are_among_those_that_there_are(name, value):
    refused(f"Key `{name}` must be one of", **{name: value})


@pytest.mark.parametrize("name", ["ensemble", "sweep"])
@pytest.mark.parametrize("value", [1, "gaussian", [], None])
def test_tables_are_tables(name, value):
    refused(f"Key `{name}` must be a table, but is", **{name: value})


@pytest.mark.parametrize("value", ["energy", 5, None, {}, ["no"], [1], [["energy"]], [None]])
def test_observables_are_a_list_of_those_that_there_are(value):
    refused("Key `observables` must be", observables=value)


@pytest.mark.parametrize(
    "value",
    [[], 0.5, "0.5", None, [1.0], [-0.1], [0.5, 0.5], [0.9, 0.5], ["0.5"], [[0.5]], [math.nan],
     [True], np.eye(20)],
)  # fmt: skip
def test_fractions_are_increasing_and_below_one(value):
    refused("Key `fractions` must be", fractions=value)


def test_tolerances_beyond_the_precision_are_refused():
    refused("Key `rtol`: ", rtol=1e-20)
    refused("Key `rtol`: ", rtol=1e-10, precision="float32")
    assert Study(rtol=1e-4, precision="float32").rtol == 1e-4


def test_single_precision_has_indices_of_32_bits():
    refused("Key `samples` must be", samples=2**32 + 1, precision="float32")
    assert Study(samples=2**32 + 1).samples == 2**32 + 1


@pytest.mark.parametrize(
    "keys",
    [{"sample": 5}, {"ensemble": {"widht": 5}}, {"sweep": {"seed": [1]}},
     {"sweep": {"width": {"start": 1, "stop": 2, "num": 2, "by": 1}}}],
)  # fmt: skip
def test_unknown_keys_are_named_with_those_that_there_are(keys):
    told = refused("is not known; known are", **keys)
    assert re.match(r"Key `(sample|ensemble\.widht|sweep\.seed|sweep\.width\.by)` ", told)


@pytest.mark.parametrize("value", ["no", 3, None, [1], {}, ["gaussian"]])
def test_kinds_are_among_those_that_there_are(value):
    refused("Key `ensemble.kind` must be one of", ensemble={"kind": value})
    if not isinstance(value, list):
        refused("Key `sweep.kind` must be one of", sweep={"kind": [value]})


@pytest.mark.parametrize("name", ["width", "p", "q"])
@pytest.mark.parametrize("value", [*WHOLE, 0, 10**18 + 1])
def test_widths_are_whole_numbers(name, value):
    refused(f"Key `ensemble.{name}` must be a whole number", ensemble={name: value})
    refused(f"Key `sweep.{name}` must be a whole number", sweep={name: [value]})


@pytest.mark.parametrize("value", [*REAL, 0.0])
def test_aspects_are_positive(value):
    refused("Key `ensemble.aspect` must be a finite number above 0", ensemble={"aspect": value})


@pytest.mark.parametrize("name", ["scale", "scale_a", "scale_b", "scale_c"])
@pytest.mark.parametrize("value", [*REAL, None])
def test_scales_are_not_negative(name, value):
    message = "must be a finite number of at least 0"
    refused(f"Key `ensemble.{name}` {message}", ensemble={name: value})
    refused(f"Key `sweep.{name}` {message}", sweep={name: [value]})


@pytest.mark.parametrize("value", [1.0, [1, 1], [1, 1, 1, 1], "111", [1, 1, -1], [1, None, 1]])
def test_scales_are_three(value):
    refused("Key `ensemble.scales` must be", ensemble={"scales": value})


@pytest.mark.parametrize("value", [*WHOLE, 0, 5])
def test_ranks_are_whole_numbers_up_to_the_widths(value):
    keys = {"kind": "low_rank", "width": 4, "rank": value}
    refused("Key `ensemble.rank` must be a whole number between 1 and 4", ensemble=keys)


@pytest.mark.parametrize("value", [*REAL, 1.5])
def test_noise_is_a_share(value):
    refused("Key `ensemble.noise` must be", ensemble={"kind": "low_rank", "noise": value})


@pytest.mark.parametrize("value", [1, "true", None.__class__, []])
def test_reduced_is_true_or_false(value):
    refused("Key `ensemble.reduced` must be true or false", ensemble={"reduced": value})


@pytest.mark.parametrize(
    ("ensemble", "message"),
    [
        ({"width": 5, "p": 5}, "Key `ensemble.width` gives both widths"),
        ({"p": 5}, "Key `ensemble.q` is missing"),
        ({"q": 5}, "Key `ensemble.p` is missing"),
        ({"p": 5, "q": 5, "aspect": 2.0}, "Key `ensemble.aspect` goes with `width`"),
        ({"width": 2, "aspect": 0.1}, "Key `ensemble.aspect` times the width 2 gives p = 0.2"),
        ({"width": 200, "aspect": 1e308}, "Key `ensemble.aspect` times the width 200 gives p"),
        ({"scale": 1.0, "scales": [1, 1, 1]}, "Key `ensemble.scale` and `scales`"),
        ({"rank": 1}, "Key `ensemble.rank` is not one that a gaussian ensemble takes"),
        ({"kind": "balanced", "scale_a": 1.0}, "Key `ensemble.scale_a` is not one that a balanced"),
        ({"kind": "uniform", "reduced": True}, "Key `ensemble.reduced` cannot be true: the uni"),
        ({"kind": "file"}, "Key `ensemble.path` must be the name of"),
        ({"kind": "file", "path": 5}, "Key `ensemble.path` must be the name of"),
        ({"kind": "file", "path": ""}, "Key `ensemble.path` must be the name of"),
        ({"path": "x.npz"}, "Key `ensemble.path` is not one that a gaussian ensemble takes"),
        ({"kind": "function"}, "Key `ensemble.function` must be a function"),
        ({"kind": "function", "function": 5}, "Key `ensemble.function` must be a function"),
        ({"kind": "function", "function": "math"}, "Key `ensemble.function` must be a function"),
        ({"kind": "function", "function": "no_module:f"}, "Key `ensemble.function`: 'no_module:f'"),
        ({"kind": "function", "function": "math:no"}, "Key `ensemble.function`: 'math:no' cannot"),
        ({"kind": "function", "function": "math:pi"}, "Key `ensemble.function` must be a function"),
        ({"kind": "function", "function": ".math:pi"}, "Key `ensemble.function`: '.math:pi'"),
        ({"kind": "function", "function": ":pi"}, "Key `ensemble.function`: ':pi'"),
    ],
)
def test_keys_that_do_not_go_together_are_named(ensemble, message):
    refused(message, ensemble=ensemble)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"observables": ["norm_b"]}, "the observable `norm_b` needs the full state"),
        ({"observables": ["onset"]}, "the observable `onset` needs the full state"),
        ({"observables": ["counts"]}, "the observable `counts` needs the full state"),
    ],
)
def test_reduced_samples_lack_what_needs_the_full_state(keys, message):
    refused(message, ensemble={"reduced": True}, **keys)
    assert not Study.from_dict(keys).reduced
    assert not Study.from_dict(keys | {"ensemble": {"reduced": False}}).reduced


@pytest.mark.parametrize("name", [name for name in OBSERVABLES if name != "escape"])
def test_samples_are_reduced_unless_something_needs_the_full_state(name):
    assert Study().reduced
    assert Study(observables=(name,)).reduced is not OBSERVABLES[name].needs_full
    if name != "entries":
        assert not Study(observables=(name,), ensemble=FULL).reduced


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"ensemble": {"kind": "orthogonal"}}, "Key `sampling` can be 'sobol' for the reduced Gau"),
        ({"ensemble": {"reduced": False}}, "Key `sampling` can be 'sobol' for the reduced Gauss"),
        ({"observables": ["onset"]}, "Key `sampling` can be 'sobol' for the reduced Gaussian"),
        ({"samples": 31}, "Key `samples` must be at least twice the 16 replicates"),
        ({"standard_error": 0.1}, "Key `sampling`: a 'sobol' study cannot end early"),
        ({"relative_error": 0.1}, "Key `sampling`: a 'sobol' study cannot end early"),
    ],
)
def test_quasi_monte_carlo_is_for_what_it_can_do(keys, message):
    refused(message, sampling="sobol", **keys)


@pytest.mark.parametrize("ensemble", [{"kind": "orthogonal"}, {"reduced": False}])
def test_entries_are_those_of_reduced_gaussian_states(ensemble):
    refused("Key `observables`: `entries` are", ensemble=ensemble, observables=["entries"])


# Sweeps.


@pytest.mark.parametrize(
    ("sweep", "message"),
    [
        ({"width": []}, "Key `sweep.width` is empty"),
        ({"width": 5}, "Key `sweep.width` must be a list of values"),
        ({"width": "200"}, "Key `sweep.width` must be a list of values"),
        ({"width": [10, 10]}, "Key `sweep.width` holds a value twice"),
        ({"scale": [1, 1.0]}, "Key `sweep.scale` holds a value twice"),
        ({"aspect": [0.0]}, "Key `sweep.aspect` must be a finite number above 0"),
        ({"width": {"start": 1, "stop": 5}}, "Key `sweep.width.num` is missing"),
        ({"width": {"stop": 5, "num": 5}}, "Key `sweep.width.start` is missing"),
        ({"width": {"start": 1, "stop": 5, "num": 0}}, "Key `sweep.width.num` must be a whole"),
        ({"width": {"start": 0, "stop": 5, "num": 2}}, "Key `sweep.width` must be a whole number"),
        ({"width": {"start": "1", "stop": 5, "num": 2}}, "Key `sweep.width.start` must be"),
        (
            {"scale": {"start": 0, "stop": 5, "num": 2, "spacing": "log"}},
            "Key `sweep.scale.start` must be a finite number above 0",
        ),
        (
            {"scale": {"start": 1, "stop": 5, "num": 2, "spacing": "cubic"}},
            "Key `sweep.scale.spacing` must be one of linear, log",
        ),
        (
            {
                "p": {"start": 1, "stop": 2e3, "num": 2000},
                "q": {"start": 1, "stop": 2e3, "num": 2e3},
            },
            "Key `sweep` gives 4000000 points, more than 131072.",
        ),
        ({"rank": [1]}, "Key `sweep.rank` is not one that a gaussian ensemble takes"),
        ({"kind": ["gaussian", "low_rank"], "rank": [1]}, "Key `sweep.rank` is not one that"),
        ({"kind": ["file"]}, "Key `ensemble.path` must be the name"),
        ({"kind": ["file", "gaussian"]}, "Key `sweep.kind`: `file` cannot be swept"),
        ({"p": [5, 6]}, "Key `ensemble.q` is missing"),
    ],
)
def test_sweeps_that_are_none_are_refused(sweep, message):
    if sweep == {"kind": ["file"]}:
        message = "Key `sweep.kind`: states from a file are not swept"
    refused(message, sweep=sweep)


def test_a_key_is_given_once():
    refused("Key `width` stands in both", ensemble={"width": 5}, sweep={"width": [5]})
    refused("Key `kind` stands in both", ensemble={"kind": "gaussian"}, sweep={"kind": ["uniform"]})
    refused("Key `ensemble.width` gives both", ensemble={"width": 5}, sweep={"p": [5]})


def test_zipped_axes_are_of_one_length():
    sweep = {"p": [5, 6], "q": [7, 8, 9]}
    refused("Key `sweep`: zipped axes differ in length: p 2, q 3.", sweep=sweep, combine="zip")


def test_a_product_has_the_last_axis_fastest():
    study = Study(sweep={"width": [5, 7], "scale": [1, 2.5, 3]})
    assert study.dims == {"width": 2, "scale": 3}
    assert [tuple(point.values()) for point in study.points] == [
        (5, 1), (5, 2.5), (5, 3), (7, 1), (7, 2.5), (7, 3)
    ]  # fmt: skip
    assert [study.position(i) for i in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
    assert study.name(4) == "width=7, scale=2.5"
    assert [s.scales for _, s in study.settings[:2]] == [(1.0,) * 3, (2.5,) * 3]
    assert [s.q for _, s in study.settings] == [5, 5, 5, 7, 7, 7]


def test_a_zip_goes_along_its_axes():
    study = Study(sweep={"p": [5, 7, 5], "q": [6, 6, 6]}, combine="zip")
    assert study.dims == {"point": 3}
    assert [(s.p, s.q) for _, s in study.settings] == [(5, 6), (7, 6), (5, 6)]
    assert study.name(1) == "p=7, q=6"


def test_no_sweep_is_one_point():
    for combine in ("product", "zip"):
        study = Study(combine=combine)
        assert study.dims == {}
        assert study.points == ({},)
        assert study.position(0) == ()
        assert study.name(0) == ""


def test_ranges_are_spaced_evenly_or_by_a_factor():
    study = Study(
        sweep={
            "width": {"start": 10, "stop": 1000, "num": 3, "spacing": "log"},
            "scale": {"start": 1, "stop": 2, "num": 5},
        }
    )
    assert study.axes["width"] == (10, 100, 1000)
    assert study.axes["scale"] == (1.0, 1.25, 1.5, 1.75, 2.0)
    # Widths that round to the same one are taken once.
    narrow = Study(sweep={"width": {"start": 1, "stop": 3, "num": 9}})
    assert narrow.axes["width"] == (1, 2, 3)


def test_numbers_of_numpy_are_numbers():
    with unchecked():
        study = Study(
            samples=np.int64(50),
            seed=np.uint8(3),
            rtol=np.float32(0.001),
            ensemble={"scales": np.array([1, 2, 3])},
            sweep={"width": np.array([5, 6])},
            fractions=np.array([0.25, 0.5]),
        )
    plain = Study(
        samples=50,
        seed=3,
        rtol=float(np.float32(0.001)),
        ensemble={"scales": [1, 2, 3]},
        sweep={"width": [5, 6]},
        fractions=(0.25, 0.5),
    )
    assert study.to_dict() == plain.to_dict()
    assert study.digest() == plain.digest()
    with unchecked():
        assert type(Study(samples=1e6).samples) is int


# Forms.


def test_a_study_reads_back_from_its_plain_values():
    study = Study(
        samples=123,
        ensemble={"kind": "low_rank", "rank": 2, "noise": 0.25, "aspect": 1.5},
        sweep={"width": [20, 30], "scale": {"start": 1, "stop": 2, "num": 2}},
        seed=2**63 - 1,
        observables=("norms", "energy"),
        rtol=1e-9,
        relative_error=0.01,
        chunk=32,
    )
    back = Study.from_dict(json.loads(json.dumps(study.to_dict())))
    assert back.to_dict() == study.to_dict()
    assert back.digest() == study.digest()
    assert back.settings == study.settings
    assert study.observables == ("energy", "norms")
    assert "standard_error" not in study.to_dict()
    with pytest.raises(dataclasses.FrozenInstanceError):
        study.samples = 5


TOML = """
samples = 1e3
seed = 7
observables = ["energy"]
[ensemble]
kind = "gaussian"
aspect = 2
scales = [1, 2, 3]
[sweep]
width = { start = 10, stop = 1000, num = 3, spacing = "log" }
"""


def test_toml(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text(TOML)
    with unchecked():
        study = Study.from_toml(path)
        assert Study.from_toml(str(path)) == study
    assert (study.samples, study.seed, study.observables) == (1000, 7, ("energy",))
    assert [(s.p, s.q) for _, s in study.settings] == [(20, 10), (200, 100), (2000, 1000)]
    assert {s.scales for _, s in study.settings} == {(1.0, 2.0, 3.0)}


@pytest.mark.parametrize(
    "text",
    [b"samples = ", b"samples = 5\nsamples = 6", b"[ensemble", b"\xff\xfe", b"samples = 5 6",
     b"a = " + b"9" * 5000, b"a = " + b"[" * 100_000, b"\x00"],
)  # fmt: skip
def test_damaged_toml_is_named_with_its_place(tmp_path, text):
    path = tmp_path / "study.toml"
    path.write_bytes(text)
    with pytest.raises(ValueError, match="is not a TOML file: ") as caught:
        Study.from_toml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_toml_that_is_not_there(tmp_path):
    for path in (tmp_path / "no.toml", tmp_path):
        with pytest.raises(OSError, match=re.escape(str(path))):
            Study.from_toml(path)


def test_values_of_toml_that_json_has_not_are_refused(tmp_path):
    path = tmp_path / "study.toml"
    path.write_text("samples = 2020-01-01")
    with unchecked(), pytest.raises(ValueError, match="Key `samples` must be a whole number"):
        Study.from_toml(path)
    path.write_text("[[ensemble]]\nwidth = 5")
    with unchecked(), pytest.raises(ValueError, match="Key `ensemble` must be a table"):
        Study.from_toml(path)


def test_files_are_found_from_the_folder_of_the_toml(tmp_path, states_file):
    path = tmp_path / "study.toml"
    relative = states_file.parent.name
    (tmp_path / relative).mkdir(exist_ok=True)
    (tmp_path / relative / "states.npz").write_bytes(states_file.read_bytes())
    path.write_text(f'samples = 6\nensemble = {{ kind = "file", path = "{relative}/states.npz" }}')
    assert read_toml(path)["ensemble"]["path"] == str(tmp_path / relative / "states.npz")
    assert Study.from_toml(path).stored.widths == (4, 3)


# What determines the samples.


BASE = {
    "samples": 100,
    "seed": 1,
    "ensemble": {"width": 20},
    "sweep": {"scale": [1.0, 2.0]},
}


@pytest.mark.parametrize(
    "changes",
    [{"samples": 200}, {"chunk": 7}, {"standard_error": 0.1}, {"relative_error": 0.1},
     {"ensemble": {"width": 20.0}}, {"sweep": {"scale": [1, 2]}}, {"observables": []}],
)  # fmt: skip
def test_the_hash_does_not_depend_on_how_many_samples_there_are(changes):
    assert Study.from_dict(BASE | changes).digest() == Study(**BASE).digest()


@pytest.mark.parametrize(
    "changes",
    [{"seed": 2}, {"rtol": 1e-8}, {"precision": "float32"}, {"observables": ["energy"]},
     {"ensemble": {"width": 21}}, {"ensemble": {"width": 20, "kind": "orthogonal"}},
     {"sweep": {"scale": [1.0, 2.5]}}, {"sweep": {"scale_a": [1.0, 2.0]}}, {"combine": "zip"},
     {"sampling": "sobol"}, {"ensemble": {"width": 20, "reduced": False}}],
)  # fmt: skip
def test_the_hash_depends_on_all_that_determines_the_samples(changes):
    assert Study.from_dict(BASE | changes).digest() != Study(**BASE).digest()


def test_the_hash_depends_on_what_a_function_does(module):
    one = Study(ensemble={"kind": "function", "function": f"{module(ONES.format(1))}:ones"})
    name = next(m for m in sys.modules if m.startswith("states_of_a_test"))
    sys.modules.pop(name)
    before = one.identity()["ensemble"]["source"]
    assert re.fullmatch("[0-9a-f]{64}", before)
    assert one.identity()["ensemble"]["function"] == f"{name}:ones"
    other = module(ONES.format(2))
    assert Study(
        ensemble={"kind": "function", "function": f"{other}:ones"}
    ).identity()["ensemble"]["source"] != before  # fmt: skip


def test_functions_are_taken_as_such_or_by_name():
    given = Study(ensemble={"kind": "function", "function": all_ones, "p": 3, "q": 2})
    named = Study.from_dict(given.to_dict())
    assert named.to_dict()["ensemble"]["function"] == f"{__name__}:all_ones"
    assert named.digest() == given.digest()
    assert named.settings[0][1].function is all_ones


class Container:
    @staticmethod
    def inside(key, p, q):
        return all_ones(key, p, q)


def test_functions_within_a_class_are_found_by_name():
    given = Study(ensemble={"kind": "function", "function": Container.inside})
    assert Study.from_dict(given.to_dict()).settings[0][1].function is Container.inside


def test_modules_that_fail_to_import_are_named(module):
    name = module("raise RuntimeError('broken')")
    refused(f"Key `ensemble.function`: '{name}:f' cannot be imported: broken",
            ensemble={"kind": "function", "function": f"{name}:f"})  # fmt: skip


def test_the_hash_depends_on_the_content_of_a_file_not_its_name(states_file, tmp_path):
    def study(path, **keys):
        return Study(samples=5, ensemble={"kind": "file", "path": path, **keys})

    copy = tmp_path / "copy.npz"
    copy.write_bytes(states_file.read_bytes())
    assert study(states_file).digest() == study(str(copy)).digest()
    states = gaussian_states(6, 6, 4, 3)
    np.savez(copy, a=states.a, b=states.b, c=states.c)
    assert study(states_file).digest() != study(copy).digest()


def test_states_from_a_file(states_file, tmp_path):
    ensemble = {"kind": "file", "path": states_file}
    study = Study(samples=6, ensemble=ensemble)
    np.testing.assert_array_equal(study.stored.b, gaussian_states(5, 6, 4, 3).b)
    assert not study.reduced
    assert Study(samples=6, ensemble=ensemble, precision="float32").stored.dtype == jnp.float32
    refused(f"Key `samples` is 7, but {states_file} holds 6 states", samples=7, ensemble=ensemble)
    refused("Key `sweep.scale`: states from a file are not swept", samples=5, ensemble=ensemble,
            sweep={"scale": [1.0]})  # fmt: skip
    refused("Key `ensemble.width` is not one that a file ensemble takes", samples=5,
            ensemble=ensemble | {"width": 5})  # fmt: skip
    refused("cannot be true: the file ensemble", samples=5, ensemble=ensemble | {"reduced": True})
    for wrong in (5, "a", {"d": "x"}, {"a": 5}):
        refused("Key `ensemble.names", samples=5, ensemble=ensemble | {"names": wrong})
    for wrong in (5, "abc", ["a", "b"], [1, 2, 3]):
        refused("Key `ensemble.layers` must be", samples=5, ensemble=ensemble | {"layers": wrong})
    for wrong in (5, {}, ["x"], [math.inf]):
        refused("Key `ensemble.direction` must be", samples=5,
                ensemble=ensemble | {"layers": ["a", "b", "c"], "direction": wrong})  # fmt: skip
    with pytest.raises(OSError, match=r"no\.npz"):
        Study(samples=5, ensemble={"kind": "file", "path": tmp_path / "no.npz"})
    (tmp_path / "broken.npz").write_bytes(states_file.read_bytes()[:100])
    refused("broken.npz", samples=5, ensemble={"kind": "file", "path": tmp_path / "broken.npz"})


# What the kinds come to.


@pytest.mark.parametrize(
    ("ensemble", "expected"),
    [
        ({}, jc.Gaussian(200, 200)),
        ({"width": 5, "aspect": 1.4, "scales": [1, 2, 3]}, jc.Gaussian(7, 5, (1.0, 2.0, 3.0))),
        ({"p": 5, "q": 6, "scale": 2, "scale_b": 3}, jc.Gaussian(5, 6, (2.0, 3.0, 2.0))),
        ({"kind": "uniform", "p": 4, "q": 3}, jc.ensembles.Uniform(4, 3)),
        ({"kind": "orthogonal", "p": 20, "q": 30}, jc.ensembles.Orthogonal(20, 30)),
        ({"kind": "balanced", "width": 20, "scale": 2}, jc.ensembles.Balanced(20, 20, 2.0)),
        (
            {"kind": "low_rank", "p": 4, "q": 3, "rank": 2, "noise": 0.5},
            jc.ensembles.LowRank(4, 3, 2, 0.5),
        ),
        (
            {"kind": "function", "function": all_ones, "p": 4, "q": 3},
            jc.ensembles.FromFunction(all_ones, 4, 3),
        ),
    ],
)
def test_each_kind_draws_from_its_ensemble(ensemble, expected):
    study = Study(samples=20, ensemble=ensemble, seed=9)
    samples = _samples(study, Task(0, 0, 3, 7))
    source = samples.source
    np.testing.assert_array_equal(samples.indices, [3, 4, 5, 6])
    direct = Draws(expected, study.key(0), 12 if study.reduced else None)
    for found, wanted in zip(
        jax.tree.leaves(source(jnp.uint32(5))), jax.tree.leaves(direct(jnp.uint32(5))), strict=True
    ):
        np.testing.assert_allclose(found, wanted, rtol=1e-14)
    assert study.reduced == expected.exact_reduction


def test_points_have_keys_of_their_own_whatever_the_precision():
    study = Study(sweep={"width": [5, 6]}, seed=2**40)
    keys = set()
    for wide in (True, False):
        with jax.enable_x64(wide):
            keys |= {tuple(jax.random.key_data(study.key(p)).tolist()) for p in (0, 1)}
    assert len(keys) == 2


def test_chunks_are_powers_of_two_by_the_cost_of_a_sample():
    assert default_chunk(Study()) == 65536
    sizes = [
        default_chunk(Study(ensemble={"kind": "uniform", "width": width}))
        for width in (1, 100, 1000, 10**6, 10**18)
    ]
    assert sizes == [65536, 4096, 64, 32, 32]
    # Trajectories: seconds of work, so that there is something to show and to keep soon.
    for width, size in ((20, 512), (200, 256), (10**4, 256)):
        study = Study(ensemble={"width": width}, observables=("onset", "counts"))
        assert default_chunk(study) == size


def test_methods_are_told_by_widths(states_file):
    assert list(methods_of(Study(sweep={"width": [5, 6]}))) == ["12x12"]
    full = methods_of(Study(sweep={"width": [5, 6]}, ensemble={"reduced": False}))
    assert list(full) == ["5x5", "6x6"]
    assert all(full.values())
    assert list(methods_of(Study(samples=5, ensemble={"kind": "file", "path": states_file}))) == [
        "4x3"
    ]
