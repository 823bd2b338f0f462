"""Test settings: x64, strict promotion, no rank promotion, eight CPU devices."""

import os
from pathlib import Path

from reference import QUICK_XLA, SHARED

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = " ".join(
    (
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        *QUICK_XLA,
    )
)

import jax
import programs
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
programs.compile_cheaply()


# Files that take longest. Each runs in one process, so they come first: two processes
# then end at about the same time.
LONG = (
    *("doctest_test.py", "laws_test.py", "commands_test.py", "pipeline_test.py"),
    *("processes_test.py", "contracts_test.py", "mapping_test.py"),
)


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONG)))


def pytest_collection_finish():
    programs.look_away()


@pytest.fixture(autouse=True, scope="module")
def few_programs_of_other_files():
    """Many of them slow down everything: Python goes through all that it holds."""
    yield
    if programs.count() > programs.FEW:
        programs.forget()


@pytest.fixture(autouse=True)
def not_too_many_programs():
    yield
    if programs.count() > programs.MOST:
        programs.forget()


@pytest.fixture
def shared() -> Path:
    """Reference material that is not part of the project."""
    if not SHARED.is_dir():
        pytest.skip(f"reference material not found at {SHARED}; set JAXMERGE_SHARED")
    return SHARED


@pytest.fixture
def standard_promotion():
    """Dtypes are promoted as outside of tests: optax mixes its counts into floats."""
    with jax.numpy_dtype_promotion("standard"):
        yield


@pytest.fixture
def no_cache(monkeypatch):
    """Commands in this process must not change where JAX keeps its programs."""
    monkeypatch.setenv("JAXMERGE_CACHE", "")


@pytest.fixture
def as_a_user(no_cache, standard_promotion):
    """No cache of programs either."""
