"""Memory of learning block by block, beside that of learning through the whole model.

    python -m benchmarks.blocks [--out benchmarks/results]

The shapes of SmolLM2-135M with adapters of rank 16 for q and v of four tasks, TARA-B,
2 texts of 128 tokens for each task in a step. The programs are compiled and never run:
what counts are the bytes of their arguments and of what they keep while they run. Of a
fit by blocks there are three programs, of the embeddings, of a block that inputs go
through, and of the steps in one; the largest of them counts.
"""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax

import jaxmerge as jm
from jaxmerge.learning.blockwise import block_losses
from jaxmerge.learning.loop import program_of
from jaxmerge.learning.objectives import smooth_tchebycheff
from jaxmerge.learning.step import Problem, first_phis, first_state
from jaxmerge.models import (
    DecoderConfig,
    Stream,
    decoder_apply,
    decoder_blocks,
    init_decoder,
    vocabulary_head,
    with_updates,
)

CONFIG = DecoderConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
SHAPES = {"self_attn.q_proj": (576, 576), "self_attn.v_proj": (192, 576)}
TASKS, RANK, TEXTS, TOKENS, STEPS = ("a", "b", "c", "d"), 16, 2, 128, 2
Shape: Any = jax.ShapeDtypeStruct  # in the place of arrays


def stacks_of(prefixes: list[str]) -> dict[str, jm.AdapterStack]:
    """Shapes of adapters of blocks."""
    count = len(TASKS)

    def shaped(*shape: int) -> Any:
        return Shape(shape, jnp.float32)

    return {
        f"{prefix}{name}": jm.AdapterStack(
            a=shaped(count, RANK, n), b=shaped(count, m, RANK), ranks=(RANK,) * count
        )
        for prefix in prefixes
        for name, (m, n) in SHAPES.items()
    }


def steps(losses: Any, params: Any, batch: Any, prefixes: list[str]) -> Any:
    """The compiled steps of a fit."""
    optimizer, learned = optax.adam(0.02), jm.tara_b()
    problem = Problem(learned, TASKS, losses, smooth_tchebycheff)

    def start(stacks: Any) -> Any:
        bases = {name: learned.prepare(stack) for name, stack in stacks.items()}
        first_phis(learned, bases, shared=False)
        return first_state(learned, bases, optimizer, shared=False), bases

    state, bases = jax.eval_shape(start, stacks_of(prefixes))
    stacked = jax.tree.map(lambda x: Shape((STEPS, *x.shape), x.dtype), batch)
    run: Any = program_of(problem, optimizer).run
    return run.lower(state, bases, params, stacked, None).compile()


def size(program: Any) -> int:
    """Bytes of a program's arguments, results and what it keeps while it runs."""
    found = program.memory_analysis()
    return found.argument_size_in_bytes + found.temp_size_in_bytes


def main() -> None:
    """Prints the bytes of each program, and keeps them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    out = parser.parse_args().out
    params = jax.eval_shape(partial(init_decoder, CONFIG), jax.random.key(0))
    ids = Shape((TEXTS, TOKENS), jnp.int32)
    inputs = {"input_ids": ids, "attention_mask": ids}
    hidden = Shape((TEXTS, TOKENS, CONFIG.hidden_size), jnp.float32)
    blocks = decoder_blocks(CONFIG)
    block = blocks.rest[0]
    own = block.select(params)
    stream = Stream(hidden, Shape((TEXTS, TOKENS), jnp.bool_))
    update = jax.eval_shape(lambda x: jm.task_updates(x, 0), stacks_of([""]))
    through = jax.jit(lambda p, u, s: with_updates(block.apply, u)(p, s))
    found = {
        "embeddings": jax.jit(blocks.first.apply)
        .lower(blocks.first.select(params), inputs)
        .compile(),
        "through a block": through.lower(own, update, stream).compile(),
        "steps in a block": steps(
            block_losses(block.apply, jm.relative_distance),
            own,
            {task: jm.Taught(stream, hidden) for task in TASKS},
            [""],
        ),
        "steps in the model": steps(
            jm.token_distillation(
                decoder_apply(CONFIG, output="hidden"), vocabulary_head(CONFIG)
            ),
            params,
            {task: jm.Taught(inputs, hidden) for task in TASKS},
            [x.prefix for x in blocks.rest],
        ),
    }
    sizes = {name: size(program) for name, program in found.items()}
    whole = sizes["steps in the model"]
    largest = max(
        value for name, value in sizes.items() if name != "steps in the model"
    )
    row = {"bytes": sizes, "share": largest / whole, "jax": jax.__version__}
    out.mkdir(parents=True, exist_ok=True)
    (out / "blocks.jsonl").write_text(json.dumps(row) + "\n")
    print(json.dumps(row, indent=2))


if __name__ == "__main__":
    main()
