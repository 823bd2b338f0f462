"""Times jaxmerge against the dense routes and PEFT, in one run on one machine.

    python -m benchmarks [--modules 48] [--dense-modules 2] [--out benchmarks/results]

Prints a table and writes it as JSON lines, one line as soon as it is measured. The
dense routes are timed on a few of the modules (they are all of one shape) and compared
by time per module; every side runs on all cores of the machine, the dense routes
with as many BLAS threads, jaxmerge with one (XLA spreads the work itself).
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from functools import partial

import jax
import numpy as np

import jaxmerge as jm
from benchmarks.problems import MODULES, RANK, TASKS, WIDTH, clock, factors

MERGERS = {
    "core_ties": jm.core_space(partial(jm.ties, density=0.2)),
    "knots_ties": jm.knots_space(partial(jm.ties, density=0.2)),
    "tsv_m": jm.tsv_m,
    "peft_svd": jm.then(jm.concat, partial(jm.truncate, rank=RANK)),
}


def time_ours(merger, stacks) -> dict:
    """Compilation and later runs, apart."""

    def run():
        jax.block_until_ready(jm.map_modules(merger, stacks))

    (first,) = clock(run, repeats=1)
    later = clock(run, repeats=5)
    return {
        "ours_s": float(np.median(later)),
        "ours_spread_s": [min(later), max(later)],
        "compile_s": first - float(np.median(later)),
    }


def memory_of(merger, stack) -> dict:
    """What the compiled merge of one module holds at most, inputs and outputs apart."""
    program = jax.jit(merger).lower(stack).compile().memory_analysis()
    dense = TASKS * WIDTH * WIDTH * stack.b.dtype.itemsize
    return {
        "workspace_mib": program.temp_size_in_bytes / 2**20,
        "dense_updates_mib": dense / 2**20,
    }


def time_baseline(name: str, modules: int) -> list[float]:
    """Seconds per module of a baseline, in a process with its own thread settings."""
    threads = str(os.cpu_count())
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": threads}
    command = [sys.executable, "-m", "benchmarks.baselines", name, str(modules)]
    done = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--modules", type=int, default=MODULES)
    parser.add_argument("--dense-modules", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    machine = f"{platform.machine()}, {os.cpu_count()} cores, JAX {jax.__version__}"
    b, a = factors(options.modules)
    stacks = {
        f"module_{i}": jm.stack_adapters(list(zip(b[i], a[i], strict=True)))
        for i in range(options.modules)
    }
    print(f"{options.modules} modules {WIDTH} x {WIDTH}, T = {TASKS}, r = {RANK}")
    print(f"{machine}; load {os.getloadavg()[0]:.1f}")
    with (options.out / "merging.jsonl").open("w") as file:
        for name, merger in MERGERS.items():
            ours = time_ours(merger, stacks)
            per_module = time_baseline(name, options.dense_modules)
            baseline = float(np.median(per_module)) * options.modules
            row = {
                "method": name,
                "modules": options.modules,
                **ours,
                **memory_of(merger, stacks["module_0"]),
                "baseline_s": baseline,
                "baseline_modules_timed": len(per_module),
                "ratio": baseline / ours["ours_s"],
                "machine": machine,
                "load": os.getloadavg()[0],
            }
            file.write(json.dumps(row) + "\n")
            file.flush()
            print(
                f"{name:12s} ours {ours['ours_s']:7.2f} s (+ compile "
                f"{ours['compile_s']:.1f} s)  baseline {baseline:8.1f} s  "
                f"ratio {row['ratio']:7.1f}  workspace {row['workspace_mib']:5.1f} MiB"
            )


if __name__ == "__main__":
    main()
