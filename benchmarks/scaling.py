"""Memory and work of a fit of Llama 3 8B, from programs that are compiled and not run.

    python -m benchmarks.scaling [--out benchmarks/results]

A step of TARA-B by token distillation, compiled with the real widths for pretended CPU
devices, with one and with two layers; XLA's memory analysis of the two gives what a
layer adds. No weights are needed. Parameters are bfloat16 and, on several devices,
spread over them by rules. Each device has one text of each task. Activations of a layer
are kept, or (`remat`) computed again.
"""

import argparse
import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import jaxmerge as jm
from jaxmerge.learning.distillation import Taught
from jaxmerge.learning.step import Problem, gradient
from jaxmerge.models import (
    DecoderConfig,
    decoder_apply,
    init_decoder,
    vocabulary_head,
)

DEVICES = (1, 8, 16)
TASKS, RANK, LAYERS, TOKENS = 4, 16, 32, 512
SCHEDULE = {"xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"}
RULES = [
    (r"(embedding|kernel)$", PartitionSpec("data", None)),  # rows over all devices
]


def config_of(layers: int) -> DecoderConfig:
    """Llama 3 8B with fewer layers."""
    return DecoderConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        max_position_embeddings=8192,
        rope_theta=500000.0,
    )


def shapes_of(tree: Any, dtype: Any, places: Any) -> Any:
    """The same tree without values, with where each of its arrays lies.

    Args:
      places: one sharding for all, or a tree of them.
    """
    if isinstance(places, NamedSharding):
        one = places
        places = jax.tree.map(lambda _: one, tree)

    def shape(x: Any, place: NamedSharding) -> jax.ShapeDtypeStruct:
        kind = dtype if jnp.issubdtype(x.dtype, jnp.floating) else x.dtype
        return jax.ShapeDtypeStruct(x.shape, kind, sharding=place)

    return jax.tree.map(shape, tree, places)


def analysed(layers: int, devices: int, *, remat: bool) -> dict[str, float]:
    """Bytes on a device and flops of one step, of a model with so many layers."""
    config, mesh = config_of(layers), jm.data_mesh(jax.devices()[:devices])
    whole = NamedSharding(mesh, PartitionSpec())
    spread = NamedSharding(mesh, PartitionSpec("data"))
    params = jax.eval_shape(lambda: init_decoder(config, jax.random.key(0), head=True))
    params = shapes_of(params, jnp.bfloat16, jm.by_rules(mesh, params, RULES))
    ids = jax.ShapeDtypeStruct((devices, TOKENS), jnp.int32, sharding=spread)
    inputs = {"input_ids": ids, "attention_mask": ids}
    apply = decoder_apply(config, output="hidden", remat=remat)
    hidden = jax.ShapeDtypeStruct(
        (devices, TOKENS, config.hidden_size), jnp.bfloat16, sharding=spread
    )
    method, tasks = jm.tara_b(), tuple(f"task {t}" for t in range(TASKS))
    stacks = {
        jax.tree_util.keystr(path[:-1], simple=True, separator="."): _stack(x.shape)
        for path, x in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == "kernel"
    }
    bases = shapes_of(
        {name: jax.eval_shape(method.prepare, x) for name, x in stacks.items()},
        jnp.float32,
        whole,
    )
    phis = {name: jax.eval_shape(method.init, basis) for name, basis in bases.items()}
    losses = jm.token_distillation(apply, vocabulary_head(config), merged=False)
    problem = Problem(method, tasks, losses, jm.smooth_tchebycheff)
    batch = {task: Taught(inputs, hidden) for task in tasks}
    step = jax.jit(partial(gradient, problem))
    program = step.lower(
        shapes_of(phis, jnp.float32, whole), bases, params, batch, None
    ).compile(compiler_options=SCHEDULE)
    memory, cost = program.memory_analysis(), program.cost_analysis() or {}
    return {
        "arguments": memory.argument_size_in_bytes,
        "workspace": memory.temp_size_in_bytes,
        "flops": cost.get("flops", np.nan),
    }


def _stack(kernel: tuple[int, int]) -> jm.AdapterStack:
    n, m = kernel
    b = jax.ShapeDtypeStruct((TASKS, m, RANK), jnp.float32)
    a = jax.ShapeDtypeStruct((TASKS, RANK, n), jnp.float32)
    return jm.AdapterStack(a=a, b=b, ranks=(RANK,) * TASKS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    jax.config.update("jax_num_cpu_devices", max(DEVICES))
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "scaling.jsonl").open("w") as file:
        for devices, remat in itertools.product(DEVICES, (False, True)):
            one, two = (analysed(n, devices, remat=remat) for n in (1, 2))
            row = {"devices": devices, "remat": remat, "layers": LAYERS}
            row |= {"texts": devices}
            row |= {"tokens": TOKENS, "tasks": TASKS, "rank": RANK}
            for name in one:
                layer = two[name] - one[name]
                row |= {f"{name}_of_a_layer": layer}
                row |= {name: one[name] + (LAYERS - 1) * layer}
            file.write(json.dumps(row) + "\n")
            file.flush()
            arguments, workspace = (
                f"{row[name] / 1e9:.1f} GB" for name in ("arguments", "workspace")
            )
            print(
                f"{devices:2d} devices, remat {remat}, each: arguments {arguments}, "
                f"workspace {workspace}, {row['flops'] / 1e12:.0f} Tflop"
            )


if __name__ == "__main__":
    main()
