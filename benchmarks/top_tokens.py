"""How much the k likeliest tokens of a teacher tell, beside all that it says.

    python -m benchmarks.top_tokens math code --base BASE --data DATA [--texts 2]

For some texts of every task the teacher is the base with the task's own adapter, the
student the base alone. Printed and kept are, for each k, the probability of the tokens
beyond k, the divergence that is missed, and by how much its gradient in the student's
hidden states is off, both in parts of the whole.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxmerge as jm
from jaxmerge.learning.teachers import ask_teachers
from jaxmerge.tasks.next_tokens import counted_tokens
from jaxmerge.tasks.predict import predictor

KEPT = (1, 4, 16, 64, 256, 1024)


def hidden_states(options: Any) -> tuple[Any, list[tuple[Any, Any]]]:
    """The head, and last hidden states of teacher and student for every task [n, d]."""
    adapters = jm.io.load_peft(options.adapters)
    base = jm.tasks.load_base(options.base, "causal")
    some = (options.data, adapters.names, base)
    unlabeled = jm.tasks.load_unlabeled(*some, limit=options.texts)
    own = ask_teachers(base, adapters, {}, unlabeled, batch=2)
    without = predictor(base, {}, unlabeled, batch=2)
    pairs = []
    for task in adapters.names:
        counted = counted_tokens(unlabeled.inputs[task])
        pairs.append((own[task][counted], without(task, {})[counted]))
    assert base.vocabulary is not None
    return base.vocabulary(base.params), pairs


@jax.jit
def divergence(teacher: Any, student: Any, head: Any) -> Any:
    """Of all that a teacher says or of what is kept of it, with its gradient."""
    return jax.value_and_grad(lambda x: jm.token_divergence(teacher, x, head))(student)


def main() -> None:
    """Prints a row for each k, and keeps it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("adapters", nargs="+", type=Path)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--texts", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    head, pairs = hidden_states(options)
    teacher, student = (np.concatenate(x) for x in zip(*pairs, strict=True))
    value, change = divergence(teacher, student, head)
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "top_tokens.jsonl").open("w") as file:
        for k in KEPT:
            kept = jax.jit(jm.top_tokens, static_argnames="k")(teacher, head, k=k)
            found, slope = divergence(kept, student, head)
            row = {
                "k": k,
                "tokens": len(teacher),
                "beyond": float(jnp.exp(kept.log_rest).mean()),
                "missed": float(1 - found / value),
                "gradient": float(
                    jnp.linalg.norm(slope - change) / jnp.linalg.norm(change)
                ),
            }
            file.write(json.dumps(row) + "\n")
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
