"""LoRA fine-tuning of the adapters of any `Suite`."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from experiments.checkpoints import restored_state, save_state
from experiments.lora import (
    CONFIG,
    Factors,
    Lora,
    initial_factors,
    lora_shapes,
    save_adapter,
    scaled,
)
from experiments.suite import Suite, Task, of_one_length
from jaxmerge.models import with_updates

Augment = Callable[[jax.Array, Any], Any]  # (key, inputs [B, ...]) -> inputs [B, ...]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How an adapter is trained; ``rate`` is the highest, ``decay`` is AdamW's."""

    steps: int
    rate: float
    decay: float = 0.0
    batch: int = 128


def fit(
    loss: Callable[..., jax.Array],
    initial: Any,
    examples: tuple[Any, Any],
    *,
    key: jax.Array,
    steps: int,
    rate: float,
    decay: float,
    batch: int = 128,
    frozen: tuple[Any, ...] = (),
    augment: Augment | None = None,
    chunk: int | None = None,
    checkpoint: Path | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Any:
    """AdamW with warm-up and cosine decay, as compiled scans over the steps.

    Every step draws its examples anew, with repetition.

    Args:
      loss: ``loss(trained, *frozen, inputs, labels)`` of one batch.
      initial: pytree of arrays to train.
      examples: inputs, a pytree of arrays [N, ...], and labels [N].
      key: of every random draw.
      steps: optimiser steps; the first tenth warms up.
      rate: highest learning rate.
      decay: AdamW's weight decay.
      batch: examples in a step.
      frozen: further arguments of ``loss``, such as the parameters of the base.
      augment: changes the inputs of every step at random.
      chunk: steps in one scan (default: all); results do not depend on it.
      checkpoint: file of the state after every chunk, from which a call that was
        stopped goes on to the same result; it stays at the end.
      report: called after every chunk with the finished steps and their mean loss.

    Returns:
      ``initial`` trained.

    Raises:
      ValueError: the checkpoint is of other steps or rates, or another key or shape.
    """
    optimizer, run = _program(loss, steps, rate, decay, batch, augment)
    examples = jax.tree.map(jnp.asarray, tuple(examples))
    carry = (initial, optimizer.init(initial))
    keys, done = jax.random.split(key, steps), 0
    drawn = jax.random.key_data(key).tolist()
    identity = f"{steps} steps of {batch}, rate {rate}, decay {decay}, key {drawn}"
    if checkpoint is not None:
        done, carry = restored_state(checkpoint, carry, identity=identity)
    for start in range(done, steps, chunk or steps):
        some = keys[start : start + (chunk or steps)]
        carry, losses = run(carry, some, examples, frozen)
        if checkpoint is not None:
            end = start + len(some)
            save_state(checkpoint, end, carry, identity=identity)
        if report is not None:
            report(start + len(some), float(losses.mean()))
    return carry[0]


@lru_cache(maxsize=8)
def _program(
    loss: Callable[..., jax.Array],
    steps: int,
    rate: float,
    decay: float,
    batch: int,
    augment: Augment | None,
) -> tuple[optax.GradientTransformation, Callable]:
    """The optimiser and some steps of it, compiled once for all tasks of one loss."""
    schedule = optax.warmup_cosine_decay_schedule(0, rate, steps // 10, steps)
    optimizer = optax.adamw(schedule, weight_decay=decay)

    def step(carry, key, examples, frozen):
        trained, state = carry
        chosen = jax.random.randint(key, (batch,), 0, len(examples[1]))
        inputs, labels = jax.tree.map(lambda x: x[chosen], examples)
        if augment is not None:
            inputs = augment(jax.random.fold_in(key, 1), inputs)
        value, gradient = jax.value_and_grad(loss)(trained, *frozen, inputs, labels)
        change, state = optimizer.update(gradient, state, trained)
        return (optax.apply_updates(trained, change), state), value

    @jax.jit
    def run(carry, keys, examples, frozen):
        return jax.lax.scan(lambda c, k: step(c, k, examples, frozen), carry, keys)

    return optimizer, run


def train_adapter(
    suite: Suite,
    task: Task,
    lora: Lora,
    recipe: Recipe,
    *,
    seed: int = 0,
    initial_a: Mapping[str, ArrayLike] | None = None,
    augment: Augment | None = None,
    report: Callable[[int, float], None] | None = None,
) -> Factors:
    """Trains LoRA factors for one task; the base and the task's head stay frozen.

    Args:
      suite: the base model and how heads are applied.
      task: whose train part is learned.
      lora: rank, scale and target layers.
      recipe: steps and rates.
      seed: of every random draw; each task draws its own from it.
      initial_a: module -> first A [rank, n] (default: PEFT's random one).
      augment: changes the inputs of every step at random.
      report: called every 50 steps with the finished steps and their mean loss.

    Returns:
      The factors as trained: see `scaled`.
    """
    base, names = suite.base, [known.name for known in suite.tasks]
    key = jax.random.fold_in(jax.random.key(seed), names.index(task.name))
    draw_key, fit_key = jax.random.split(key)
    shapes = lora_shapes(base.params, lora.targets)
    return fit(
        _adapter_loss(base.apply, base.logits, lora),
        initial_factors(shapes, lora.rank, draw_key, a=initial_a),
        of_one_length(suite, task.load("train")),
        key=fit_key,
        steps=recipe.steps,
        rate=recipe.rate,
        decay=recipe.decay,
        batch=recipe.batch,
        frozen=(base.params, task.head),
        augment=augment,
        chunk=50,
        report=report,
    )


@lru_cache(maxsize=8)
def _adapter_loss(apply: Callable, logits: Callable, lora: Lora) -> Callable:
    """Cross-entropy of the base with LoRA factors and the head of a task."""

    def loss(factors, params, head, inputs, labels):
        adapted = with_updates(apply, scaled(factors, lora), merged=None)
        features = adapted(params, inputs)
        scores = logits(head, features).astype(jnp.float32)
        return optax.softmax_cross_entropy_with_integer_labels(scores, labels).mean()

    return loss


def finetune(
    suite: Suite,
    lora: Lora,
    recipe: Recipe,
    *,
    base: str,
    seed: int = 0,
    force: bool = False,
    initial_a: Mapping[str, Mapping[str, ArrayLike]] | None = None,
    augment: Mapping[str, Augment] | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Trains and saves the adapter of every task that has none yet.

    Args:
      base: what the adapters say their base model is.
      force: train adapters that exist again.
      initial_a: name of a task -> module -> first A [rank, n]; all tasks, or none.
      augment: name of a task -> what changes its inputs; the others stay as they are.
      report: takes lines of progress; everything else is as for `train_adapter`.
    """
    for task in suite.tasks:
        if (task.adapter / CONFIG).is_file() and not force:
            report(f"{task.name}: exists, kept")
            continue
        began = time.perf_counter()

        def tell(done: int, loss: float, name=task.name, began=began) -> None:
            passed = time.perf_counter() - began
            report(f"{name}: {done} of {recipe.steps}, loss {loss:.4f}, {passed:.0f} s")

        factors = train_adapter(
            suite,
            task,
            lora,
            recipe,
            seed=seed,
            initial_a=None if initial_a is None else initial_a[task.name],
            augment=(augment or {}).get(task.name),
            report=tell,
        )
        save_adapter(task.adapter, factors, lora, base=base)
