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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import typer
from safetensors.numpy import save_file

from experiments.digits8.data import SIZES, augment, load_splits
from experiments.digits8.model import (
    CONFIG,
    HERE,
    apply,
    correct_answers,
    load_base,
    logits,
    make_exam,
    make_heads,
    save_base,
)
from experiments.digits8.tasks import TASKS, Lora, Task, unchanged
from jaxmerge.models import init_vision, with_updates
from jaxmerge.types import LowRank

COPIES, BATCH = 16, 128
PRETRAINING = {"steps": 2500, "rate": 1e-3, "decay": 0.05}
ADAPTATION = {"steps": 500, "rate": 2e-3, "decay": 0.0}
PLAIN = Task(vary=unchanged, lora=Lora(rank=1, alpha=1))

Loss = Callable[[Any, jax.Array, jax.Array], jax.Array]


def fit(
    loss: Loss,
    initial: Any,
    examples: tuple[np.ndarray, np.ndarray],
    *,
    key: jax.Array,
    steps: int,
    rate: float,
    decay: float,
) -> Any:
    """AdamW with warm-up and cosine decay; all steps are one compiled scan."""
    schedule = optax.warmup_cosine_decay_schedule(0, rate, steps // 10, steps)
    optimizer = optax.adamw(schedule, weight_decay=decay)
    images, labels = map(jnp.asarray, examples)

    def step(carry, key):
        trained, state = carry
        chosen = jax.random.randint(key, (BATCH,), 0, len(labels))
        gradient = jax.grad(loss)(trained, images[chosen], labels[chosen])
        change, state = optimizer.update(gradient, state, trained)
        return (optax.apply_updates(trained, change), state), None

    @jax.jit
    def run(trained, keys):
        return jax.lax.scan(step, (trained, optimizer.init(trained)), keys)[0][0]

    return run(initial, jax.random.split(key, steps))


def cross_entropy(embeddings: jax.Array, head: Any, labels: jax.Array) -> jax.Array:
    scores = logits(embeddings, jnp.asarray(head))
    return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()


def initial_factors(lora: Lora, key: jax.Array) -> dict[str, LowRank]:
    """PEFT's initialisation: A uniform within 1 / sqrt(n), B zero."""
    width, inner = CONFIG.hidden_size, CONFIG.intermediate_size
    shapes = {"fc1": (inner, width), "fc2": (width, inner)}
    factors = {}
    for layer in range(CONFIG.num_hidden_layers):
        for target in lora.targets:
            m, n = shapes.get(target, (width, width))
            part = "mlp" if target in shapes else "self_attn"
            name = f"vision_model.encoder.layers.{layer}.{part}.{target}"
            key, drawn = jax.random.split(key)
            a = jax.random.uniform(drawn, (lora.rank, n), minval=-1, maxval=1)
            factors[name] = LowRank(b=jnp.zeros((m, lora.rank)), a=a / n**0.5)
    return factors


def scaled(factors: dict[str, LowRank], lora: Lora) -> dict[str, LowRank]:
    return {name: LowRank(b=lora.scale * b, a=a) for name, (b, a) in factors.items()}


def save_adapter(folder: Path, factors: dict[str, LowRank], lora: Lora) -> None:
    """Writes one adapter as PEFT does: the factors as trained, the scale in alpha."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {}
    for name, (b, a) in factors.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = np.asarray(a)
        tensors[f"base_model.model.{name}.lora_B.weight"] = np.asarray(b)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": "experiments/digits8/base",
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "use_rslora": lora.rslora,
        "target_modules": list(lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "modules_to_save": None,
    }
    text = json.dumps(config, indent=2) + "\n"
    (folder / "adapter_config.json").write_text(text)


def counts(tasks: dict[str, Task], split: str, base: Any, updates: Any) -> list[int]:
    exam = make_exam(tasks, load_splits()[split], base.heads)
    embeddings = jax.jit(with_updates(apply, updates))(base.params, exam.images)
    return correct_answers(embeddings, exam).tolist()


def main(
    out: Annotated[Path, typer.Option(help="folder for the results")] = HERE,
    seed: Annotated[int, typer.Option(help="of every random draw")] = 0,
) -> None:
    """Trains everything and writes base/, adapters/ and metrics.json."""
    started = time.perf_counter()
    keys = jax.random.split(jax.random.key(seed), 2 + 2 * len(TASKS))
    train = augment(load_splits()["train"], copies=COPIES, seed=seed)
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
    for index, (name, task) in enumerate(TASKS.items()):

        def loss(factors, images, labels, task=task):
            model = with_updates(apply, scaled(factors, task.lora))
            embeddings = model(base.params, images)
            return cross_entropy(embeddings, base.heads[task.head], labels)

        initial = initial_factors(task.lora, keys[2 + 2 * index])
        key, examples = keys[3 + 2 * index], task.examples(train)
        factors = fit(loss, initial, examples, key=key, **ADAPTATION)
        save_adapter(out / "adapters" / name, factors, task.lora)
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
