"""Measures the memory that a merge of folders takes, beside the bytes that it reads.

    python -m benchmarks.memory [--layers 4,16] [--out benchmarks/results]

Eight adapters of rank 16 in bfloat16 on all linear layers of Llama 3 8B, for some
numbers of layers, are merged, each time by a process of its own. That process has
merged tiny adapters before by the same pipeline, so that JAX and all modules are
loaded; what its peak of resident memory rises by from there is the row. The programs
are in a cache, where a run before has put them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import ml_dtypes
import numpy as np
import safetensors.numpy

TASKS, RANK = 8, 16
SHAPES = {  # outputs and inputs of the layers of Llama 3 8B
    "self_attn.q_proj": (4096, 4096),
    "self_attn.k_proj": (1024, 4096),
    "self_attn.v_proj": (1024, 4096),
    "self_attn.o_proj": (4096, 4096),
    "mlp.gate_proj": (14336, 4096),
    "mlp.up_proj": (14336, 4096),
    "mlp.down_proj": (4096, 14336),
}
TINY = {"self_attn.q_proj": (64, 48)}
PIPELINES = (
    "ties(density=0.2)|core",
    "ties(density=0.2)|knots",
    "elect|trim_whole_model(density=0.2)|core",
    "tsv_m",
    "concat",
    "concat|truncate(rank=16)",
)
MEASURED = """
import json, resource, sys, time
from jaxmerge.runtime import limit_threads, return_freed_memory, start_jax
limit_threads()
return_freed_memory()
start_jax()
import jaxmerge as jm
def peak():
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pipeline, out, tiny, large = json.loads(sys.argv[1])
jm.merge(tiny, pipeline, out=out, force=True)
before, clock = peak(), time.process_time()
jm.merge(large, pipeline, out=out, force=True)
print(json.dumps([before, peak() - before, time.process_time() - clock]))
"""


def write(folder: Path, layers: int, shapes: dict, seed: int) -> str:
    """One adapter with random weights."""
    folder.mkdir(parents=True)
    rng, tensors = np.random.default_rng(seed), {}
    for layer in range(layers):
        for name, (m, n) in shapes.items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            for part, shape in {"A": (RANK, n), "B": (m, RANK)}.items():
                values = rng.standard_normal(shape, np.float32) / 50
                key = f"{module}.lora_{part}.weight"
                tensors[key] = values.astype(ml_dtypes.bfloat16)
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    targets = sorted({name.rpartition(".")[2] for name in shapes})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 32}
    text = json.dumps({**config, "target_modules": targets})
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
    return str(folder)


def measure(pipeline: str, tiny: list[str], large: list[str], out: str) -> list[float]:
    """Bytes before, bytes that the merge adds to the peak, seconds of one core."""
    arguments = json.dumps([pipeline, out, tiny, large])
    command = [sys.executable, "-c", MEASURED, arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", default="4,16")
    parser.add_argument("--pipelines", nargs="*", default=PIPELINES)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        os.environ["JAXMERGE_CACHE"] = f"{place}/programs"
        tiny = [write(Path(place, f"s{t}"), 1, TINY, t) for t in range(TASKS)]
        for layers in map(int, arguments.layers.split(",")):
            large = [
                write(Path(place, f"{layers}-{t}"), layers, SHAPES, t)
                for t in range(TASKS)
            ]
            read = sum(f.stat().st_size for p in large for f in Path(p).iterdir())
            for pipeline in arguments.pipelines:
                for _ in range(2):  # the first run fills the cache
                    before, added, seconds = measure(
                        pipeline, tiny, large, f"{place}/out"
                    )
                row = {
                    "pipeline": pipeline,
                    "layers": layers,
                    "input_mb": round(read / 1e6, 1),
                    "before_mb": round(before / 1e6, 1),
                    "added_mb": round(added / 1e6, 1),
                    "added_per_input_byte": round(added / read, 3),
                    "cpu_seconds": round(seconds, 2),
                    "machine": f"{platform.machine()}, {os.cpu_count()} cores",
                }
                print(json.dumps(row), flush=True)
                arguments.out.mkdir(parents=True, exist_ok=True)
                with (arguments.out / "memory.jsonl").open("a") as file:
                    file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
