"""Times merges of folders beside reading them, a QR of each stack, and writing.

    python -m benchmarks.reading [--layers 1] [--rounds 5] [--out benchmarks/results]

Eight adapters of rank 16 in bfloat16 on all linear layers of Llama 3 8B. The other side
is the least that such a merge could do: it reads the tensors, makes one thin QR in
float32 (torch's, the fastest here) of the stack of B and one of the stack of A in every
module, and writes factors of the size of the merge. Both run in one process, in turn,
after a first time.
"""

import argparse
import json
import os
import platform
import tempfile
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import ml_dtypes
import numpy as np
import safetensors.numpy
import torch

import jaxmerge as jm
from benchmarks.memory import SHAPES, TASKS, write
from benchmarks.problems import in_turn
from jaxmerge.runtime import return_freed_memory, start_jax

PIPELINES = ("ties(density=0.2)|core", "ties(density=0.2)|knots")
WEIGHTS = "adapter_model.safetensors"


def read_decompose_write(folders: list[str], out: Path) -> None:
    """The least work: every byte read, a basis of every stack, a merge written."""
    read = [safetensors.numpy.load_file(Path(f, WEIGHTS)) for f in folders]
    written = {}
    for key in read[0]:
        stack = [tensors[key].astype(np.float32) for tensors in read]
        tall = [x if x.shape[0] > x.shape[1] else x.T for x in stack]
        both = torch.from_numpy(np.concatenate(tall, axis=1))
        basis = torch.linalg.qr(both).Q.numpy().astype(ml_dtypes.bfloat16)
        wide = stack[0].shape[0] < stack[0].shape[1]
        written[key] = np.ascontiguousarray(basis.T if wide else basis)
    safetensors.numpy.save_file(written, out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    return_freed_memory()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        os.environ.setdefault("JAXMERGE_CACHE", f"{place}/programs")
        start_jax()
        names = [Path(place, str(task)) for task in range(TASKS)]
        folders = [write(f, options.layers, SHAPES, t) for t, f in enumerate(names)]
        sides = [
            lambda text=text: jm.merge(folders, text, out=f"{place}/out", force=True)
            for text in PIPELINES
        ]
        sides.append(lambda: read_decompose_write(folders, Path(place, "other")))
        *ours, least = in_turn(*sides, rounds=options.rounds)
    with (options.out / "reading.jsonl").open("w") as file:
        for pipeline, times in zip(PIPELINES, ours, strict=True):
            ratios = times / least
            row = {
                "pipeline": pipeline,
                "layers": options.layers,
                "seconds": float(np.median(times)),
                "least_seconds": float(np.median(least)),
                "ratio": float(np.median(ratios)),
                "ratio_spread": [float(ratios.min()), float(ratios.max())],
                "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            }
            file.write(json.dumps(row) + "\n")
            low, high = row["ratio_spread"]
            print(f"{pipeline}: {row['ratio']:.2f} ({low:.2f} to {high:.2f})")


if __name__ == "__main__":
    main()
