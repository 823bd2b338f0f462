"""Times merges of one module beside the same ones in torch, in turn, on one core.

    python -m benchmarks.peer [--out benchmarks/results]

The torch side is `benchmarks.torch_merges`: low rank throughout, thin QR, small SVDs.
Both sides are in float32 with one thread and take the same adapters, in memory;
compilation is not counted. Each row is written as soon as it is measured.
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
import numpy as np
import torch

import jaxmerge as jm
from benchmarks.problems import in_turn
from benchmarks.torch_merges import MERGES

TASKS, RANK, ROUNDS = 8, 16, 9
SHAPES = {  # outputs and inputs of layers of ViT-L and of Llama 3 8B
    "ViT-L q": (1024, 1024),
    "ViT-L mlp": (4096, 1024),
    "Llama q": (4096, 4096),
    "Llama k": (1024, 4096),
    "Llama up": (14336, 4096),
}
OURS = {
    "core_ties": jm.core_space(partial(jm.ties, density=0.2)),
    "knots_ties": jm.knots_space(partial(jm.ties, density=0.2)),
    "tsv_m": jm.tsv_m,
    "truncated_sum": jm.then(jm.concat, partial(jm.truncate, rank=RANK)),
}


def compare(name: str, m: int, n: int) -> dict:
    """Milliseconds of both sides, and the ratio of each round."""
    rng = np.random.default_rng(0)
    b = rng.normal(size=(TASKS, m, RANK)).astype(np.float32)
    a = rng.normal(size=(TASKS, RANK, n)).astype(np.float32)
    stack = jm.stack_adapters(list(zip(b, a, strict=True)))
    merge, factors = jax.jit(OURS[name]), (torch.from_numpy(b), torch.from_numpy(a))
    ours, theirs = in_turn(
        lambda: jax.block_until_ready(merge(stack)),
        lambda: MERGES[name](*factors),
        rounds=ROUNDS,
    )
    ratios = theirs / ours
    return {
        "method": name,
        "m": m,
        "n": n,
        "ours_ms": 1e3 * float(np.median(ours)),
        "torch_ms": 1e3 * float(np.median(theirs)),
        "ratio": float(np.median(ratios)),
        "ratio_spread": [float(ratios.min()), float(ratios.max())],
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": f"JAX {jax.__version__}, torch {torch.__version__}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "peer.jsonl").open("w") as file:
        for name in OURS:
            for layer, (m, n) in SHAPES.items():
                row = {"layer": layer, **compare(name, m, n)}
                file.write(json.dumps(row) + "\n")
                file.flush()
                low, high = row["ratio_spread"]
                print(
                    f"{name:14s} {layer:10s} ours {row['ours_ms']:6.1f} ms, torch "
                    f"{row['torch_ms']:6.1f} ms: {row['ratio']:.2f} ({low:.2f} to "
                    f"{high:.2f})"
                )


if __name__ == "__main__":
    main()
