"""Pretrains the base and trains the eight adapters.

    python -m experiments.digits8.train

Takes about 5 minutes on 2 CPU cores. Everything is drawn from one seed (0), so the
results repeat on one machine. Expected accuracies on the 700 test images: base 98 % on
plain digits and 22 to 66 % on the tasks; adapters 86 to 96 % on their own task
(``metrics.json`` has the counts of correct images on validation and test).
"""

import json
import shutil
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import typer

from experiments.digits8.data import SIZES, Split, augment, load_splits
from experiments.digits8.model import (
    CONFIG,
    HERE,
    Base,
    apply,
    correct_answers,
    load_base,
    logits,
    make_exam,
    make_heads,
    save_base,
)
from experiments.digits8.tasks import TASKS, Task, unchanged
from experiments.finetune import fit
from experiments.lora import Factors, Lora, initial_factors, save_adapter, scaled
from jaxmerge.models import init_vision, with_updates

COPIES = 16
BASE_NAME = "experiments/digits8/base"
PRETRAINING = {"steps": 2500, "rate": 1e-3, "decay": 0.05}
ADAPTATION = {"steps": 500, "rate": 2e-3, "decay": 0.0}
PLAIN = Task(vary=unchanged, lora=Lora(rank=1, alpha=1))


def cross_entropy(embeddings: jax.Array, head: Any, labels: jax.Array) -> jax.Array:
    scores = logits(embeddings, jnp.asarray(head))
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def layer_shapes(lora: Lora) -> dict[str, tuple[int, int]]:
    """Sizes (m, n) of the layers that an adapter has, in the order of the draws."""
    width, inner = CONFIG.hidden_size, CONFIG.intermediate_size
    sizes = {"fc1": (inner, width), "fc2": (width, inner)}
    shapes = {}
    for layer in range(CONFIG.num_hidden_layers):
        for target in lora.targets:
            part = "mlp" if target in sizes else "self_attn"
            name = f"vision_model.encoder.layers.{layer}.{part}.{target}"
            shapes[name] = sizes.get(target, (width, width))
    return shapes


def counts(tasks: dict[str, Task], split: str, base: Any, updates: Any) -> list[int]:
    exam = make_exam(tasks, load_splits()[split], base.heads)
    embeddings = jax.jit(with_updates(apply, updates))(base.params, exam.images)
    return correct_answers(embeddings, exam).tolist()


def keys_of(seed: int) -> jax.Array:
    """Two keys of the base, then two of each task."""
    return jax.random.split(jax.random.key(seed), 2 + 2 * len(TASKS))


def examples_of(seed: int) -> Split:
    return augment(load_splits()["train"], copies=COPIES, seed=seed)


def train_adapters(
    base: Base, folder: Path, seed: int
) -> Iterator[tuple[str, Factors]]:
    """Trains and saves the adapter of each task, and gives its factors.

    Args:
      base: below the adapters.
      folder: for a PEFT folder of each task.
      seed: of every random draw.
    """
    keys, train = keys_of(seed), examples_of(seed)
    for index, (name, task) in enumerate(TASKS.items()):

        def loss(factors, images, labels, task=task):
            model = with_updates(apply, scaled(factors, task.lora))
            embeddings = model(base.params, images)
            return cross_entropy(embeddings, base.heads[task.head], labels)

        shapes, rank = layer_shapes(task.lora), task.lora.rank
        initial = initial_factors(shapes, rank, keys[2 + 2 * index])
        key, examples = keys[3 + 2 * index], task.examples(train)
        factors = fit(loss, initial, examples, key=key, **ADAPTATION)
        save_adapter(folder / name, factors, task.lora, base=BASE_NAME)
        yield name, factors


def retrain(folder: Path, seed: int) -> None:
    """Other adapters on the base of this folder, unless they are there."""
    if not (folder / list(TASKS)[-1]).is_dir():
        for name, _ in train_adapters(load_base(), folder, seed):
            print(f"seed {seed}: {name}", flush=True)


def main(
    out: Annotated[Path, typer.Option(help="folder for the results")] = HERE,
    seed: Annotated[int, typer.Option(help="of every random draw")] = 0,
) -> None:
    """Trains everything and writes base/, adapters/ and metrics.json."""
    started = time.perf_counter()
    keys, train = keys_of(seed), examples_of(seed)
    heads = make_heads(seed)

    def pretraining_loss(params, images, labels):
        return cross_entropy(apply(params, images), heads["digits"], labels)

    initial = init_vision(CONFIG, keys[0])
    examples = PLAIN.examples(train)
    params = fit(pretraining_loss, initial, examples, key=keys[1], **PRETRAINING)
    save_base(out / "base", params, heads)
    base = load_base(out / "base")
    plain = {split: counts({"plain": PLAIN}, split, base, {}) for split in SIZES}
    print(f"base: {plain['test'][0]} of {SIZES['test']} plain digits")

    shutil.rmtree(out / "adapters", ignore_errors=True)
    results = {}
    for name, factors in train_adapters(base, out / "adapters", seed):
        task = TASKS[name]
        count = partial(counts, {name: task}, base=base)
        results[name] = {
            split: {
                "base": count(split, updates={})[0],
                "adapter": count(split, updates=scaled(factors, task.lora))[0],
            }
            for split in ("validation", "test")
        }
        print(f"{name}: {results[name]['test']}", flush=True)

    metrics = {
        "seed": seed,
        "images": SIZES,
        "plain": {split: found[0] for split, found in plain.items()},
        "tasks": results,
    }
    (out / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n")
    print(f"{time.perf_counter() - started:.0f} seconds")


if __name__ == "__main__":
    typer.run(main)
