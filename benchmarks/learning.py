"""Times one step of learned merging against plain LoRA and against torch with PEFT.

    python -m benchmarks.learning [--rounds 5] [--out benchmarks/results]

A BERT of MiniLM-L6's size with random weights, T = 6 adapters of rank 16 on all its
linear layers, 16 texts of 64 tokens for each task. The plain step is the forward and
backward pass of every task through the model with its own adapter, with gradients for
both factors, which plain gradient descent applies. As in `fit`, several steps are one
compiled call; seconds are those of one step. A taught step, whose answers of the
teachers are stored, stands beside one by entropy. Each side is timed several times in
turn, so that a busy moment of the machine meets all of them.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from functools import partial
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmerge as jm
from benchmarks.problems import clock
from benchmarks.torch_tara import BATCH, CLASSES, LENGTH, RANK, SIZES, TASKS, targets
from jaxmerge.learning.step import Problem, gradient
from jaxmerge.models import BertConfig, bert_apply, head_logits, init_bert

CONFIG = BertConfig(**SIZES)
STEPS_PER_CALL = 4


def adapters(rng: np.random.Generator) -> dict[str, list[tuple]]:
    """Factors (b, a) of every task for every linear layer."""
    return {
        name: [
            (
                rng.normal(size=(m, RANK)).astype(np.float32) * 0.02,
                rng.normal(size=(RANK, n)).astype(np.float32) / np.sqrt(n),
            )
            for _ in range(TASKS)
        ]
        for name, (m, n) in targets().items()
    }


def steps() -> dict[str, tuple]:
    """Name -> compiled step and its arguments."""
    rng, key = np.random.default_rng(0), jax.random.key(0)
    params, apply = init_bert(CONFIG, key), bert_apply(CONFIG)
    pairs = adapters(rng)
    stacks = {name: jm.stack_adapters(each) for name, each in pairs.items()}
    names = tuple(f"task{t}" for t in range(TASKS))
    width = SIZES["hidden_size"]
    heads = {
        name: {
            "kernel": jnp.asarray(rng.normal(size=(width, CLASSES)), jnp.float32),
            "bias": jnp.zeros(CLASSES, jnp.float32),
        }
        for name in names
    }
    ids = rng.integers(5, SIZES["vocab_size"], size=(TASKS, BATCH, LENGTH))
    batch = {
        name: {
            "input_ids": jnp.asarray(ids[t], jnp.int32),
            "attention_mask": jnp.ones((BATCH, LENGTH), jnp.int32),
        }
        for t, name in enumerate(names)
    }
    own = {
        name: {module: jm.LowRank(*each[t]) for module, each in pairs.items()}
        for t, name in enumerate(names)
    }

    def plain(own, params, batch):
        def total(own):
            find = jm.entropies(apply, head_logits, heads, merged=False)
            return sum(find(params, own[t], {t: batch[t]})[t] for t in names)

        value, change = jax.value_and_grad(total)(own)
        return jax.tree.map(lambda x, y: x - 1e-3 * y, own, change), value

    def several(step):
        def run(carry, fixed, batches):
            return jax.lax.scan(lambda c, batch: step(c, *fixed, batch), carry, batches)

        return jax.jit(run)

    batches = jax.tree.map(lambda x: jnp.stack([x] * STEPS_PER_CALL), batch)
    found = {"plain LoRA": (several(plain), (own, (params,), batches))}
    answers = rng.normal(size=(TASKS, BATCH, CLASSES)).astype(np.float32)
    taught = {
        task: jm.Taught(own, jnp.asarray(answers[t]))
        for t, (task, own) in enumerate(batch.items())
    }
    entropy = (jm.entropies(apply, head_logits, heads), batch)
    distillation = (jm.distillation(apply, head_logits, heads), taught)
    optimizer = optax.adamw(1e-3)
    for name, learned, (losses, shown) in (
        ("TARA-A", jm.tara_a(), entropy),
        ("TARA-B", jm.tara_b(), entropy),
        ("TARA-B, taught", jm.tara_b(), distillation),
    ):
        batches = jax.tree.map(lambda x: jnp.stack([x] * STEPS_PER_CALL), shown)
        problem = Problem(learned, names, losses, jm.smooth_tchebycheff)
        bases = jm.map_modules(learned.prepare, stacks)
        phis = {module: learned.init(basis) for module, basis in bases.items()}

        def step(carry, bases, params, batch, problem=problem):
            phis, state = carry
            record, change = gradient(problem, phis, bases, params, batch, None)
            change, state = optimizer.update(change, state, phis)
            return (optax.apply_updates(phis, change), state), record

        carry = (phis, optimizer.init(phis))
        found[name] = (several(step), (carry, (bases, params), batches))
    return found


def compile_all(found: dict[str, tuple]) -> tuple[dict, list[dict]]:
    """Programs ready to run, and how long they took to compile and what they hold."""
    ready, rows = {}, []
    for name, (function, arguments) in found.items():
        lowered = function.lower(*arguments)
        programs = []
        (seconds,) = clock(
            lambda x=lowered, p=programs: p.append(x.compile()), repeats=1
        )
        memory = programs[0].memory_analysis().temp_size_in_bytes / 2**20
        rows.append({"side": name, "compile_s": seconds, "workspace_mib": memory})
        run = partial(programs[0], *arguments)
        ready[name] = lambda run=run: jax.block_until_ready(run())
        ready[name]()
    return ready, rows


def time_torch(count: int) -> list[float]:
    """Seconds of the same TARA-A step in torch with PEFT, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.torch_tara", str(count)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(os.cpu_count())}
    done = subprocess.run(
        command, env=environment, check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    machine = f"{platform.machine()}, {os.cpu_count()} cores, JAX {jax.__version__}"
    ready, rows = compile_all(steps())
    seconds = {name: [] for name in ready}
    torch_seconds = []
    for _ in range(options.rounds):
        for name, run in ready.items():
            seconds[name] += [x / STEPS_PER_CALL for x in clock(run, repeats=1)]
        torch_seconds += time_torch(STEPS_PER_CALL)
    rows.append({"side": "TARA-A, torch with PEFT"})
    plain = float(np.median(seconds["plain LoRA"]))
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "learning.jsonl").open("w") as file:
        for row in rows:
            each = seconds.get(row["side"], torch_seconds)
            row |= {
                "step_s": float(np.median(each)),
                "spread_s": [min(each), max(each)],
                "to_plain": float(np.median(each)) / plain,
                "machine": machine,
                "load": os.getloadavg()[0],
            }
            file.write(json.dumps(row) + "\n")
            print(
                f"{row['side']:24s} {row['step_s']:6.2f} s  {row['to_plain']:5.2f} x "
                f"plain  workspace {row.get('workspace_mib', float('nan')):7.0f} MiB"
            )


if __name__ == "__main__":
    main()
