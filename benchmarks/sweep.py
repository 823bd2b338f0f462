"""Times a sweep over 32 points of (scale, density) in merges at one point.

    python -m benchmarks.sweep [--out benchmarks/results]

A sweep is ``jax.jit(jax.vmap(merge))``. A merge gives the norm of its update; a sweep
either lifts the update of every point, or stays in the coordinates. Both sides take one
module in float32 with one thread, in turn; compilation is not counted. A ratio of 32
would mean that nothing is shared.
"""

import argparse
import json
import os
import platform
from functools import partial
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import jax.numpy as jnp
import numpy as np

import jaxmerge as jm
from benchmarks.problems import in_turn

TASKS, RANK, POINTS, ROUNDS = 8, 16, 32, 5
SPACES = {"core": jm.core, "knots": jm.knots}
SHAPES = {"ViT-B q": (768, 768), "ViT-L q": (1024, 1024), "Llama q": (4096, 4096)}


def lifted(space: str, stack: jm.AdapterStack, by, density):
    """The norm of the update of a point, from its factors."""
    rule = partial(jm.ties, density=density)
    return jm.norm(jm.scale(jm.in_space(SPACES[space], rule)(stack), by=by))


def in_coordinates(space: str, stack: jm.AdapterStack, by, density):
    """The same norm from the coordinates, whose bases are orthonormal."""
    matrices, basis = SPACES[space].project(stack)
    size = SPACES[space].size(matrices, basis)
    merged = jm.ties(matrices, density=density, size=size)
    return by * jnp.sqrt(jnp.vdot(merged, merged))


ASKED = {"lifted": lifted, "in coordinates": in_coordinates}
ROWS = (("core", "lifted"), ("core", "in coordinates"), ("knots", "lifted"))


def compare(space: str, asked: str, m: int, n: int) -> dict:
    """Milliseconds of a merge and of a sweep, and the ratio of each round."""
    rng = np.random.default_rng(0)
    stack = jm.stack_adapters(
        [
            (rng.normal(size=(m, RANK)), rng.normal(size=(RANK, n)))
            for _ in range(TASKS)
        ],
        dtype=jnp.float32,
    )
    one = jax.jit(partial(lifted, space))
    swept = partial(ASKED[asked], space)
    many = jax.jit(jax.vmap(swept, in_axes=(None, 0, 0)))
    points = jnp.linspace(0.1, 1.0, POINTS), jnp.linspace(0.9, 0.1, POINTS)
    single, sweep = in_turn(
        lambda: jax.block_until_ready(one(stack, points[0][9], points[1][9])),
        lambda: jax.block_until_ready(many(stack, *points)),
        rounds=ROUNDS,
    )
    ratios = sweep / single
    return {
        "space": space,
        "asked": asked,
        "m": m,
        "n": n,
        "merge_ms": 1e3 * float(np.median(single)),
        "sweep_ms": 1e3 * float(np.median(sweep)),
        "ratio": float(np.median(ratios)),
        "ratio_spread": [float(ratios.min()), float(ratios.max())],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": f"JAX {jax.__version__}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "sweep.jsonl").open("w") as file:
        for space, asked in ROWS:
            for layer, (m, n) in SHAPES.items():
                row = {"layer": layer, **compare(space, asked, m, n)}
                file.write(json.dumps(row) + "\n")
                file.flush()
                low, high = row["ratio_spread"]
                print(
                    f"{space:6s} {asked:15s} {layer:8s} merge {row['merge_ms']:6.1f} "
                    f"ms, sweep {row['sweep_ms']:7.1f} ms: {row['ratio']:.2f} merges "
                    f"({low:.2f} to {high:.2f})"
                )


if __name__ == "__main__":
    main()
