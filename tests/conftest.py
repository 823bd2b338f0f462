"""Test settings: x64, strict promotion, no rank promotion, eight CPU devices."""

import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # the tests compile thousands of tiny programs and run each of them once
        "--xla_backend_optimization_level=0",
        "--xla_llvm_disable_expensive_passes=true",
        "--xla_cpu_parallel_codegen_split_count=1",
        # later versions of XLA do not know it, and end at once
        "--xla_cpu_use_fusion_emitters=false" * version("jax").startswith("0.10."),
    ]
)

import jax
import pytest
from reference import SHARED

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True, scope="module")
def forget_compiled_programs():
    """Bounds the memory of a long run."""
    yield
    jax.clear_caches()


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
def as_a_user(monkeypatch, standard_promotion):
    """No cache of programs either."""
    monkeypatch.setenv("JAXMERGE_CACHE", "")
