"""Measures what a token costs in one layer with adapters beside its weights.

    taskset -c 1 python -m benchmarks.routed [--width 1024] [--out benchmarks/results]

Eight adapters of rank 16 on a square layer: the layer alone, one adapter, and routed
cores of some widths with gates that are given and with a router. Times are medians of
rounds in turn, of processor time on one core; beside them are the multiplications that
the docstring of `jaxmerge.models.routed_product` counts.
"""

import argparse
import json
import os
import platform
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import jaxmerge as jm
from benchmarks.problems import in_turn
from jaxmerge.models import with_updates

TASKS, RANK, TOKENS = 8, 16, 1024
WIDTHS = (16, 64, 128)
LAYER = "layers_0"


def sides(width: int) -> dict[str, tuple[dict, int]]:
    """Name -> the updates of the layer, and multiplications a token beside its own."""
    rng = np.random.default_rng(0)
    stack = jm.stack_adapters(
        [
            (rng.normal(size=(width, RANK)), rng.normal(size=(RANK, width)))
            for _ in range(TASKS)
        ]
    )
    one = jm.task_updates({LAYER: stack}, 0)
    found: dict[str, tuple[dict, int]] = {
        "layer alone": ({}, 0),
        "one adapter": (one, 2 * RANK * width),
    }
    for rank in WIDTHS:
        routed = jm.route_cores(stack, rank=rank)
        thin = 2 * rank * width
        weights = jnp.asarray(rng.normal(size=(TASKS, rank)), jnp.float32)
        router = jm.Router(weights, jnp.zeros(TASKS, jnp.float32))
        found[f"gates, width {rank}"] = ({LAYER: routed}, thin + rank**2)
        found[f"router, width {rank}"] = (
            {LAYER: routed.replace(gates=router)},
            thin + TASKS * (rank**2 + rank),
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    model = nn.Sequential([nn.Dense(options.width, use_bias=False)])
    x = jax.random.normal(jax.random.key(0), (TOKENS, options.width), jnp.float32)
    params = model.init(jax.random.key(1), x)
    programs = {}
    for name, (updates, _) in sides(options.width).items():

        @jax.jit
        def run(updates, params, x):
            return with_updates(model.apply, updates)(params, x)

        programs[name] = lambda run=run, updates=updates: jax.block_until_ready(
            run(updates, params, x)
        )
    found = in_turn(*programs.values(), rounds=options.rounds) / TOKENS
    seconds = dict(zip(programs, found.tolist(), strict=True))
    machine = f"{platform.machine()}, {os.cpu_count()} cores, JAX {jax.__version__}"
    alone = float(np.median(seconds["layer alone"]))
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "routed.jsonl").open("w") as file:
        for name, (_, products) in sides(options.width).items():
            each = float(np.median(seconds[name]))
            row = {
                "side": name,
                "token_us": 1e6 * each,
                "to_layer": each / alone,
                "products_to_layer": 1 + products / options.width**2,
                "spread_us": [1e6 * min(seconds[name]), 1e6 * max(seconds[name])],
                "width": options.width,
                "tokens": TOKENS,
                "machine": machine,
                "load": os.getloadavg()[0],
            }
            file.write(json.dumps(row) + "\n")
            print(
                f"{name:20s} {row['token_us']:7.2f} us  {row['to_layer']:5.2f} x "
                f"(multiplications {row['products_to_layer']:.2f} x)"
            )


if __name__ == "__main__":
    main()
