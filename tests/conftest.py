import json
from pathlib import Path

import jax
import pytest
from jaxtyping import install_import_hook

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

with install_import_hook("jaxcond", "beartype.beartype"):
    import jaxcond  # noqa: F401

SYSTEMS = Path(__file__).parent / "systems"


@pytest.fixture
def key():
    return jax.random.key(20240225)


@pytest.fixture(scope="session")
def reference():
    """The thirteen reference states with their blow-up times to 28 digits."""
    return json.loads((SYSTEMS / "reference.json").read_text())
