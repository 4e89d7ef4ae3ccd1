"""Studies that cannot end well are refused before they start, with what to change."""

import re
import zipfile

import numpy as np
import pytest
from helpers import gaussian_states

from jaxcond.ensembles import read_states
from jaxcond.study import Study, run_study
from jaxcond.study._compute import default_chunk
from jaxcond.study._cost import check_cost

TINY = {"ensemble": {"width": 5}, "seed": 1}


def refused(message, study, path, **keys):
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        run_study(study, path, **keys)
    assert "\n" not in str(caught.value)
    assert path is None or not path.exists()
    return str(caught.value)


@pytest.mark.parametrize("combine", ["product", "zip"])
def test_a_million_sweep_points_are_refused_at_once(combine):
    scale = {"start": 1, "stop": 2, "num": 1000}
    sweep = {"scale_a": scale, "scale_b": scale}
    if combine == "zip":
        sweep = {"scale": np.linspace(1, 2, 10**6).tolist()}
    with pytest.raises(ValueError, match="Key `sweep` gives 1000000 points, more than 131072"):
        Study(sweep=sweep, combine=combine)


def test_a_chunk_for_each_of_a_billion_samples_is_refused(tmp_path):
    study = Study(samples=10**9, chunk=1, **TINY)
    told = refused("Key `chunk`: 1000000000 samples make 1000000000 chunks of 1", study,
                   tmp_path / "a.zarr")  # fmt: skip
    (least,) = re.findall(r"it must be at least (\d+)\.", told)
    # What the message asks for is enough, and one less is not.
    early = Study(samples=10**9, relative_error=0.1, **TINY)
    check_cost(early, int(least), None)
    with pytest.raises(ValueError, match="Key `chunk`"):
        check_cost(early, int(least) - 1, None)


def test_a_store_of_small_chunks_is_not_extended_without_end(tmp_path):
    path = tmp_path / "a.zarr"
    run_study(Study(samples=2, chunk=1, **TINY), path)
    before = sorted(path.rglob("*"))
    with pytest.raises(ValueError, match="Key `chunk`: 1000000000 samples"):
        run_study(Study(samples=10**9, **TINY), path)
    assert sorted(path.rglob("*")) == before
    assert run_study(Study(samples=3, **TINY), path).samples == 3


@pytest.mark.parametrize("in_memory", [True, False])
def test_records_of_a_trillion_samples_are_refused(tmp_path, in_memory):
    path = None if in_memory else tmp_path / "a.zarr"
    refused("Key `samples`: the records of 1000000000000 samples take 32 TB, but ",
            Study(samples=10**12, **TINY), path)  # fmt: skip


def test_a_study_that_ends_early_may_allow_for_many_samples():
    study = Study(samples=10**12, relative_error=0.1, **TINY)
    check_cost(study, default_chunk(study), None)
    assert default_chunk(study) == 1 << 23


def test_default_chunks_grow_with_the_samples():
    assert default_chunk(Study(samples=10**9)) == 1 << 16
    assert default_chunk(Study(samples=10**11)) == 1 << 20
    many = Study(samples=10**8, sweep={"scale": {"start": 1, "stop": 2, "num": 1 << 7}})
    assert default_chunk(many) == 1 << 17


@pytest.mark.parametrize(
    "keys",
    [
        {"ensemble": {"width": 10**18, "reduced": False}},
        {"ensemble": {"width": 10**18}, "observables": ("norm_b",)},
        {"ensemble": {"kind": "uniform", "width": 10**7}},
        {"ensemble": {"kind": "uniform"}, "sweep": {"width": [5, 10**7]}},
        {"ensemble": {"kind": "chain", "width": 10**7, "depth": 4}},
    ],
)
def test_states_that_no_memory_holds_are_refused(tmp_path, keys):
    key = "sweep" if "sweep" in keys else "ensemble"
    study = Study(samples=10, **keys)
    refused(f"Key `{key}`: full states of width 1000000", study, tmp_path / "a.zarr")


def test_wide_states_in_reduced_form_take_no_memory():
    check_cost(Study(ensemble={"width": 10**18}), 65536, None)


def test_small_files_that_fill_the_memory_are_refused_from_their_headers(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in "abc":
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                header = {"descr": "<f8", "fortran_order": False, "shape": (1, 2**14, 2**13)}
                np.lib.format.write_array_header_1_0(file, header)
                if name == "b":
                    for _ in range(2**10):
                        file.write(bytes(2**20))
    assert path.stat().st_size < 2**21
    with pytest.raises(ValueError, match=r"bomb\.npz cannot be read.* unpack to 1073"):
        read_states(path)
    with pytest.raises(ValueError, match=r"bomb\.npz cannot be read.* unpack to 1073"):
        Study(samples=1, ensemble={"kind": "file", "path": path})


def test_headers_that_promise_more_than_there_is_are_damage(tmp_path):
    path = tmp_path / "promise.npz"
    with zipfile.ZipFile(path, "w") as archive:
        for name in "abc":
            with archive.open(f"{name}.npy", "w") as file:
                header = {"descr": "<f8", "fortran_order": False, "shape": (2**50,)}
                np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(ValueError, match=r"promise\.npz cannot be read as \.npz"):
        read_states(path)


def test_compressed_files_of_ordinary_weights_are_read(tmp_path):
    path = tmp_path / "states.npz"
    states = gaussian_states(5, 6, 4, 3)
    np.savez_compressed(path, a=states.a, b=states.b, c=states.c, strength=np.ones((6, 1)))
    np.testing.assert_array_equal(read_states(path).b, states.b)
