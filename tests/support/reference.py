"""Places outside of the tests, and how XLA compiles in them."""

import os
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("JAXMERGE_SHARED", ROOT.parent / "shared"))

# tests compile thousands of tiny programs and run each of them once or twice
QUICK_XLA = (
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
    # arrays are small: handing parts of them to other threads costs more than it saves
    "--xla_cpu_multi_thread_eigen=false",
    # later versions of XLA do not know it, and end at once
    "--xla_cpu_use_fusion_emitters=false" * version("jax").startswith("0.10."),
)
