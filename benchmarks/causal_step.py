"""Times a step of learning to merge language models against one of training adapters.

    taskset -c 1 python -m benchmarks.causal_step [--rounds 3]

The shapes of SmolLM2-135M with random weights and fewer layers, adapters of rank 16 for
q and v of four tasks, 2 texts of 128 tokens for each, all of which count. The plain
step is forward and backward of every task through the model with its own adapter, the
cross entropy of the next tokens from whole logits, with gradients for both factors.
Beside it stand steps of TARA-B taught by the adapters, whose answers are stored: hidden
states, or 256 tokens of each distribution. All sides run in turn on one core; processor
time. It is linear in the number of layers, so two numbers of them tell that of all 30.
"""

import argparse
import json
import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxmerge as jm
from benchmarks.blocks import CONFIG, RANK, SHAPES, TASKS, TEXTS, TOKENS
from benchmarks.problems import in_turn
from jaxmerge.learning.step import Problem, gradient
from jaxmerge.models import decoder_apply, init_decoder, vocabulary_head, with_updates

FEW, ALL, PLAIN = (2, 6), 30, "plain LoRA"


def stacks_of(layers: int, rng: np.random.Generator) -> dict[str, jm.AdapterStack]:
    """Random adapters of some layers."""

    def pair(m: int, n: int) -> tuple[np.ndarray, np.ndarray]:
        b, a = rng.normal(size=(m, RANK)), rng.normal(size=(RANK, n))
        return 0.02 * b, a / np.sqrt(n)

    return {
        f"model.layers.{layer}.{name}": jm.stack_adapters(
            [pair(*shape) for _ in TASKS], dtype=np.float32
        )
        for layer in range(layers)
        for name, shape in SHAPES.items()
    }


def programs(layers: int) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Name of a step -> its compiled program and arguments."""
    rng = np.random.default_rng(0)
    config = replace(CONFIG, num_hidden_layers=layers, layer_types=None)
    apply = decoder_apply(config, output="hidden")
    rows = vocabulary_head(config)
    params = init_decoder(config, jax.random.key(0))
    stacks = stacks_of(layers, rng)
    drawn = rng.integers(config.vocab_size, size=(len(TASKS), TEXTS, TOKENS))
    inputs = {
        task: {"input_ids": jnp.asarray(ids), "attention_mask": jnp.ones_like(ids)}
        for task, ids in zip(TASKS, drawn.astype(np.int32), strict=True)
    }
    own = {task: jm.task_updates(stacks, i) for i, task in enumerate(TASKS)}

    def plain(own: Any, params: Any, inputs: Any) -> Any:
        def total(own: Any) -> Any:
            nats = []
            for task in TASKS:
                hidden = with_updates(apply, own[task])(params, inputs[task])
                said = jax.nn.log_softmax(hidden[:, :-1] @ rows(params).T)
                following = inputs[task]["input_ids"][:, 1:, None]
                nats.append(-jnp.take_along_axis(said, following, axis=-1).mean())
            return jnp.stack(nats).sum()

        value, change = jax.value_and_grad(total)(own)
        return jax.tree.map(lambda x, y: x - 1e-3 * y, own, change), value

    learned, optimizer = jm.tara_b(), optax.adamw(1e-2)
    losses = jm.token_distillation(apply, rows)
    problem = Problem(learned, TASKS, losses, jm.smooth_tchebycheff)
    bases = jm.map_modules(learned.prepare, stacks)
    phis = {module: learned.init(basis) for module, basis in bases.items()}
    state = optimizer.init(phis)

    def step(phis: Any, state: Any, bases: Any, params: Any, batch: Any) -> Any:
        record, change = gradient(problem, phis, bases, params, batch, None)
        change, state = optimizer.update(change, state, phis)
        return optax.apply_updates(phis, change), state, record

    hidden = {
        task: jax.jit(with_updates(apply, own[task]))(params, inputs[task])
        for task in TASKS
    }
    kept = jax.jit(partial(jm.top_tokens, k=256))
    top = {task: kept(hidden[task], rows(params)) for task in TASKS}
    found = {PLAIN: (jax.jit(plain), (own, params, inputs))}
    for name, answers in (("hidden states", hidden), ("256 tokens", top)):
        batch = {task: jm.Taught(inputs[task], answers[task]) for task in TASKS}
        found[f"taught by {name}"] = jax.jit(step), (phis, state, bases, params, batch)
    return {
        name: (function.lower(*given).compile(), given)
        for name, (function, given) in found.items()
    }


def measured(layers: int, rounds: int) -> dict[str, tuple[np.ndarray, float]]:
    """Name of a step -> processor seconds of every round, and MiB of its workspace."""
    ready = programs(layers)

    def side(program: Any, given: Any) -> Any:
        return lambda: jax.block_until_ready(program(*given))

    times = in_turn(*(side(*each) for each in ready.values()), rounds=rounds)
    return {
        name: (seconds, program.memory_analysis().temp_size_in_bytes / 2**20)
        for (name, (program, _)), seconds in zip(ready.items(), times, strict=True)
    }


def main() -> None:
    """Prints a row for each step, and keeps it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    few, more = (measured(layers, options.rounds) for layers in FEW)
    whole = {}
    for name in few:
        one, other = few[name][0], more[name][0]
        whole[name] = one + (other - one) * (ALL - FEW[0]) / (FEW[1] - FEW[0])
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "causal_step.jsonl").open("w") as file:
        for name, (seconds, workspace) in more.items():
            ratios = [
                float(np.median(times[name] / times[PLAIN]))
                for times in ({k: v[0] for k, v in more.items()}, whole)
            ]
            row = {
                "step": name,
                "layers": FEW[1],
                "seconds": seconds.tolist(),
                "seconds_of_fewer": few[name][0].tolist(),
                "to_plain": ratios[0],
                "to_plain_of_30": ratios[1],
                "seconds_of_30": float(np.median(whole[name])),
                "workspace_mib": workspace,
                "jax": jax.__version__,
            }
            file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
