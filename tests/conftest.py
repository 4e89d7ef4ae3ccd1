import gc
import json
import os
from pathlib import Path

# Most of the time of the tests is LLVM's: without its optimisations a third of it is saved, and the
# programs are the same. Benchmarks, notebooks and figures run with them. Before JAX is imported.
os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), "--xla_backend_optimization_level=0"]
)

import jax
import pytest
from jaxtyping import config, install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Names are loaded when they are first used, so the hook stays. What tests replace by stand-ins of
# other types, and what only draws or prints, is not checked.
ROOMS = (
    "_chain _chain_bounds _energy _native _reduction _state _threads _trajectory blowup bounds "
    "ensembles flow indicators networks sampling statistics study"
)
install_import_hook([f"jaxcond.{room}" for room in ROOMS.split()], "beartype.beartype")

# What is imported stays: tracing makes many objects, and looking through all of these each time
# that some are gone is a twentieth of the time.
gc.collect()
gc.freeze()
gc.set_threshold(100_000, 20, 100)

SYSTEMS = Path(__file__).parent / "systems"


@pytest.fixture(scope="module", autouse=True)
def _programs_of_one_file():
    """Compiled programs go with the file whose tests share them: they hold gigabytes."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session", autouse=True)
def _key_of_seals(tmp_path_factory):
    """Not the user's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("JAXCOND_STATE_DIR", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def key():
    return jax.random.key(20240225)


@pytest.fixture(scope="session")
def reference():
    """The thirteen reference states with their blow-up times to 28 digits."""
    return json.loads((SYSTEMS / "reference.json").read_text())


@pytest.fixture
def unchecked():
    """Without the checks of types that the tests are run with: the messages are the package's."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
